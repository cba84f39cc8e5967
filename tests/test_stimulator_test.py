"""`calmloop stimulator test`: without --pulse nothing can leave, with it exactly one pulse does; judged by the virtual stimulator's log."""

import json
import os
import pty
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import limits, messages, settings, stimulator
from controller.guard import device_of
from drivers.stimulators import limits_of
from tests.test_commands import ROOT, calmloop
from tests.test_devices import BOXES, LL_CONFIG, LL_INIT, commands_of, silent_port, tapped
from tests.test_virtual_sciencemode import running_twin

YES = "--electrodes-checked"


def config_file(folder, box="p24", **changes):
    """The demo's settings with another stimulator; sessions stay in the test's folder."""
    text = (ROOT / "config" / "demo.toml").read_text().replace('"rehamove3"', f'"{box}"')
    lines = [f"{name} = {value}" for name, value in ({"folder": f'"{folder / "sessions"}"'} | changes).items()]
    for line in lines:
        key = line.split(" = ")[0]
        rows = text.splitlines()
        assert any(row.startswith(f"{key} = ") for row in rows), key
        text = "\n".join(line if row.startswith(f"{key} = ") else row for row in rows)
    path = folder / "bed.toml"
    path.write_text(text)
    return str(path)


def give(twin, config, *more):
    """One `--pulse`; the command's exit code and its JSON."""
    answer = calmloop("stimulator", "test", twin.port, "--config", config, "--pulse", YES, "--json", *more)
    assert "Traceback" not in answer.stderr
    return answer.returncode, json.loads(answer.stdout)


def nobody_serves():
    """Wait until no daemon of a test is left."""
    end = time.monotonic() + 20
    while messages.ask_all(messages.beds(), {"do": "status"})[0]:
        assert time.monotonic() < end
        time.sleep(0.05)


# --- without a pulse --------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A13")
@pytest.mark.parametrize("box", BOXES)
def test_without_pulse_the_box_is_asked_and_nothing_else(tmp_path, box):
    with running_twin(tmp_path, box) as twin:
        with tapped(twin.port) as tap:
            answer = calmloop("stimulator", "test", tap.port, "--driver", box, "--json")
        pulses, refused, _ = twin.end()
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result["ok"] and result["pulse"] is None and "CALMTWIN" in result["identity"]
    assert {"firmware", "found_state", "exclusive", "low_latency"} <= set(result["facts"])
    assert pulses == [] and refused == []
    assert not {LL_INIT, LL_CONFIG} & set(commands_of(tap.sent))


def test_what_the_box_can_say_besides_is_asked_and_no_answer_is_no_failure(monkeypatch):
    from drivers import stimulators
    from drivers.base import AckTimeoutError

    class Box:
        limits = None
        closed = 0

        def open(self):
            pass

        def status(self):
            return {"model": "box"}

        def identify(self):
            return "box 1 2"

        def questions(self):
            return {"battery_percent": 80}

        def close(self):
            self.closed += 1

    box = Box()
    monkeypatch.setattr(stimulators, "load", lambda *_: box)
    assert stimulators.ask("p24", "x", os.write) == {"model": "box", "identity": "box 1 2", "battery_percent": 80}

    def no_answer():
        raise AckTimeoutError("no answer about the battery")

    box.questions = no_answer
    assert stimulators.ask("p24", "x", os.write)["questions"] == "not answered: no answer about the battery"
    box.identify = no_answer
    with pytest.raises(AckTimeoutError):
        stimulators.ask("p24", "x", os.write)
    assert box.closed == 3


def test_another_box_a_silent_one_and_none_fall_short(tmp_path):
    with running_twin(tmp_path, "p24") as twin:
        answer = calmloop("stimulator", "test", twin.port, "--driver", "rehamove3")
        assert answer.returncode == 1 and "not a RehaMove3" in answer.stdout
        assert twin.end()[0] == []
    with silent_port() as silent:
        answer = calmloop("stimulator", "test", silent.port, "--driver", "p24")
    assert answer.returncode == 1 and "did not answer" in answer.stdout
    answer = calmloop("stimulator", "test", "/dev/there-is-no-such-port", "--driver", "p24", "--json")
    assert answer.returncode == 1 and "No such file" in json.loads(answer.stdout)["why"]


def test_wrong_use_is_named_and_no_byte_leaves(tmp_path):
    config = config_file(tmp_path)
    (tmp_path / "wrong.toml").write_text("x = 1\n")
    with silent_port() as silent:
        for more, words in (
            ([], "--driver"),
            (["--driver", "p25"], "none of"),
            (["--driver", "rehamove3", "--config", config], "is not what"),
            (["--driver", "p24", "--pulse", YES], "--pulse needs --config"),
            (["--driver", "ttl-byte"], "cannot be tested without a pulse"),
            (["--driver", "ttl-line"], "cannot be tested without a pulse"),
            (["--config", str(tmp_path / "wrong.toml")], "not a known"),
            (["--config", str(tmp_path / "none.toml")], "no such file"),
        ):
            answer = calmloop("stimulator", "test", silent.port, *more)
            assert answer.returncode == 2 and words in answer.stderr, (more, answer.stderr)
        assert silent.heard() == b""


def test_a_bed_that_runs_keeps_its_port_and_its_journal(tmp_path, guard):
    answer = calmloop("stimulator", "test", guard.twin.port, "--driver", "rehamove3")
    assert answer.returncode == 2 and "running bed 'test'" in answer.stderr
    config = config_file(tmp_path, "rehamove3")
    with silent_port() as silent:
        answer = calmloop("stimulator", "test", silent.port, "--config", config, "--pulse", YES, "--bed", "test")
        assert answer.returncode == 2 and "bed 'test' is running" in answer.stderr
        assert silent.heard() == b""
    assert guard.ask("status")["state"] == "IDLE"


# --- one pulse --------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A11", "A13")
@pytest.mark.parametrize("box", BOXES)
def test_exactly_one_pulse_of_one_step_through_guard_into_dose_and_audit(tmp_path, box):
    with running_twin(tmp_path, box) as twin:
        with tapped(twin.port) as tap:
            tapped_twin = type(twin)(**vars(twin) | {"port": tap.port})
            code, result = give(tapped_twin, config_file(tmp_path, box), "--bed", "seven")
        pulses, refused, summary = twin.end()
    assert code == 0, result
    assert [(p["current_ua"], p["phase_width_us"], p["channel"], p["outside"]) for p in pulses] == [(500, 500, 1, [])]
    assert refused == [] and summary["outside_limits"] == 0
    commands = commands_of(tap.sent)
    assert commands.count(LL_CONFIG) == 1 and commands.count(LL_INIT) == 1
    assert 4 in commands[commands.index(LL_CONFIG) :]  # Ll_stop: high voltage off
    pulse = result["pulse"]
    assert pulse["ok"] and (pulse["given"], pulse["current_ma"], pulse["channel"]) == (1, 0.5, 1)
    assert pulse["answered_ms"] > 0 and pulse["troubles"] == []
    assert pulse["electrodes"] == f"not checked: {box} does that from 15 mA on, this is 0.5 mA"
    dose = json.loads(calmloop("dose", "--bed", "seven", "--json").stdout)
    assert dose["day"]["pulses"] == 1 and not dose["unclean_end"] and dose["assumed_trains"] == 0
    assert calmloop("audit", "verify", pulse["session"]).returncode == 0
    nobody_serves()


@pytest.mark.parametrize(("answer", "code", "n_pulses"), [("yes\n", 0, 1), ("no\n", 1, 0), ("\n", 1, 0)])
@pytest.mark.safety("B3")
def test_a_person_is_shown_the_pulse_and_decides(tmp_path, answer, code, n_pulses):
    config = config_file(tmp_path)
    keyboard, terminal = pty.openpty()
    with running_twin(tmp_path, "p24") as twin:
        command = [sys.executable, "-m", "controller", "stimulator", "test", twin.port, "--config", config, "--pulse"]
        process = subprocess.Popen(command, cwd=ROOT, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        os.write(keyboard, answer.encode())
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, out + err
        assert "ONE pulse on channel 1: 0.5 mA" in err and "not checked: p24 does that from 15 mA on" in err
        pulses, _, _ = twin.end()
    assert len(pulses) == n_pulses
    os.close(keyboard)
    os.close(terminal)
    nobody_serves()


@pytest.mark.safety("B3")
def test_where_nobody_can_be_asked_nothing_is_armed(tmp_path):
    with running_twin(tmp_path, "p24") as twin:
        with tapped(twin.port) as tap:
            answer = calmloop("stimulator", "test", tap.port, "--config", config_file(tmp_path), "--pulse")
        pulses, _, _ = twin.end()
    assert answer.returncode == 2 and YES in answer.stderr
    assert pulses == [] and not {LL_INIT, LL_CONFIG} & set(commands_of(tap.sent))
    nobody_serves()


@pytest.mark.parametrize(
    ("fault", "words"),
    [("electrode-error@0", "electrode error on channel 1"), ("lost-ack@0", "no acknowledgement"), ("crc-error@0", "checksum")],
)
def test_what_the_box_reports_is_told_and_falls_short(tmp_path, fault, words):
    with running_twin(tmp_path, "p24", "--fault", fault) as twin:
        code, result = give(twin, config_file(tmp_path))
        pulses, _, _ = twin.end()
    assert code == 1 and len(pulses) == 1
    pulse = result["pulse"]
    assert pulse["given"] == 1 and not pulse["ok"]
    assert any(words in trouble for trouble in pulse["troubles"])
    assert (words in pulse["electrodes"]) is (fault == "electrode-error@0")
    assert words in "\n".join(stimulator.words(result))
    nobody_serves()


@pytest.mark.safety("A9", "A10")
def test_the_beds_dose_counts_and_refuses_a_second_pulse(tmp_path):
    config = config_file(tmp_path, max_events_in_10_min=1, refractory_s=1.0)
    with running_twin(tmp_path, "p24") as twin:
        assert give(twin, config)[0] == 0
        code, result = give(twin, config)
        pulses, _, _ = twin.end()
    assert code == 1 and "events in 10 min [A9" in result["why"] and result["pulse"] is None
    assert len(pulses) == 1
    assert result["why"] in "\n".join(stimulator.words(result))


def test_another_box_than_the_prescribed_one_gets_no_pulse(tmp_path):
    config = config_file(tmp_path, serial='"12345"')
    with running_twin(tmp_path, "p24") as twin:
        code, result = give(twin, config)
        pulses, _, _ = twin.end()
    assert code == 1 and "12345" in result["why"] and pulses == []


@pytest.mark.safety("B5", "E4")
def test_a_command_that_is_killed_leaves_nothing_armed_and_nobody_behind(tmp_path):
    config = config_file(tmp_path)
    keyboard, terminal = pty.openpty()
    with running_twin(tmp_path, "p24") as twin:
        command = [sys.executable, "-m", "controller", "stimulator", "test", twin.port, "--config", config, "--pulse"]
        process = subprocess.Popen(command, cwd=ROOT, stdin=terminal, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while "ONE pulse" not in process.stderr.readline():  # it is at the question
            assert process.poll() is None
        process.kill()
        process.wait(10)
        process.stderr.close()
        nobody_serves()
        pulses, _, _ = twin.end()
    os.close(keyboard)
    os.close(terminal)
    assert pulses == []


# --- one pulse is one -------------------------------------------------------------------------------------------------------------
@given(st.floats(1.0, 100.0), st.integers(1, 2000))
def test_whatever_the_train_one_pulse_is_one(rate_hz, duration_ms):
    config = settings.load(ROOT / "config" / "demo.toml")
    name = config.prescription.manual_train
    train = config.trains[name].model_copy(update={"pulse_rate_hz": rate_hz, "duration_ms": duration_ms, "ramp_up_ms": 0, "taper_ms": 0})
    one = stimulator.one_pulse(config.model_copy(update={"trains": {name: train}}), "/dev/x")
    view = settings.guard_view(one)
    rx = limits.prescription_from(view, device_of(limits_of("rehamove3")))
    assert [limits.n_pulses(t, t.duration_us) for t in rx.trains] == [1]
    assert not one.automatic and one.prescription == config.prescription and one.stimulator.port == "/dev/x"
    assert rx.trains[0].current_ua == 20_000  # the prescription's; soft start makes one step of it


def test_what_a_pulse_tells_of_the_electrodes():
    assert stimulator.electrodes("p24", 15.0, []) == "checked: the box found nothing wrong"
    assert stimulator.electrodes("p24", 15.0, ["e-stop"]) == "not known"
    assert "from 15 mA on, this is 14.5 mA" in stimulator.electrodes("p24", 14.5, [])
    assert "not known whether sciencemode2" in stimulator.electrodes("sciencemode2", 60.0, [])
    assert stimulator.electrodes("sciencemode2", 60.0, ["electrode error: channel 2"]) == "electrode error: channel 2"
