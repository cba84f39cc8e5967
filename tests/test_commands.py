"""The command line as people meet it."""

import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from controller import __main__ as cli
from controller import audit, doctor, messages
from controller.doctor import _listed
from controller.journal import Journal, default_path
from tests.rig import GuardRig

ROOT = Path(__file__).resolve().parents[1]


def calmloop(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "controller", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={**os.environ, **env},
    )


def test_people_commands_without_a_bed_say_so_and_exit_2():
    for command in (
        ["stop"],
        ["status"],
        ["trigger"],
        ["arm"],
        ["disarm"],
        ["clear", "why"],
        ["stop", "--bed", "x"],
        ["arm", "--bed", "x"],
    ):
        answer = calmloop(*command)
        assert answer.returncode == 2, command
        assert "running" in answer.stderr + answer.stdout


@pytest.mark.safety("B8", "C1")
def test_status_and_stop_of_a_live_guard(guard):
    answer = json.loads(calmloop("status", "--json").stdout)
    assert answer["beds"]["test"]["state"] == "IDLE"
    assert answer["beds"]["test"]["daemon"] is None
    assert "unknown" in calmloop("status").stdout
    assert calmloop("trigger").returncode == 1
    assert calmloop("arm", "--button-only", "--electrodes-checked").returncode == 0
    assert calmloop("trigger").returncode == 0
    assert calmloop("stop").returncode == 0
    assert json.loads(calmloop("status", "--json").stdout)["beds"]["test"]["state"] == "IDLE"
    assert calmloop("disarm").returncode == 0
    assert calmloop("clear", "nothing").returncode == 1


def test_the_dose_without_a_name_is_that_of_the_one_bed_that_is_running(guard, tmp_path):
    journal = Journal(default_path("test"))
    journal.reset("a new patient", "somebody")
    journal.close()
    answer = json.loads(calmloop("dose", "--json").stdout)
    assert answer["ok"]
    assert Path(answer["journal"]).name == "test.sqlite"
    (tmp_path / "other").mkdir()
    other = GuardRig(tmp_path / "other", bed="a-other")
    answer = calmloop("dose")
    assert answer.returncode == 2
    assert "2 beds are running (a-other, test): say which with --bed" in answer.stderr
    assert json.loads(calmloop("dose", "--bed", "test", "--json").stdout)["ok"]
    other.close()


def test_the_dose_where_no_bed_is_running_is_that_of_bed():
    assert "bed.sqlite: there is no dose journal" in calmloop("dose").stdout


@pytest.mark.safety("C1")
def test_a_bed_that_hangs_is_said_first_and_keeps_no_other_from_stopping(guard, tmp_path):
    (tmp_path / "other").mkdir()
    other = GuardRig(tmp_path / "other", bed="a-other")
    for rig in (guard, other):
        rig.arm()
    os.kill(other.process.pid, signal.SIGSTOP)
    try:
        answer = calmloop("stop")
        assert answer.returncode == 2
        assert "SWITCH ITS STIMULATOR OFF BY HAND" in answer.stdout.splitlines()[0]
        assert guard.ask("status")["state"] == "IDLE"
    finally:
        os.kill(other.process.pid, signal.SIGCONT)
    other.wait_for(lambda s: s["state"] == "IDLE")  # the stop was waiting for it
    other.close()


@pytest.mark.safety("C1")
def test_a_bed_whose_socket_was_deleted_is_stopped_all_the_same(guard):
    guard.arm()
    messages.control_path("test").unlink()
    assert messages.beds() == ["test"]
    answer = calmloop("stop")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert guard.ask("status")["state"] == "IDLE"
    messages.runtime_folder().rmdir()
    assert json.loads(calmloop("status", "--json").stdout)["beds"]["test"]["state"] == "IDLE"


@pytest.mark.safety("C1")
def test_a_bed_of_another_folder_is_found_by_whoever_does_not_name_one(guard, monkeypatch, tmp_path):
    path = os.fspath(messages.control_path("test"))
    monkeypatch.delenv("CALMLOOP_RUNTIME_DIR")  # as `sudo`, cron or another shell would
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    assert path in messages.beds()  # and perhaps the beds of this machine, which are none of our business
    guard.bed = path
    assert guard.ask("stop")["ok"]


@pytest.mark.safety("C1")
def test_a_stranger_at_the_second_address_is_no_bed(monkeypatch):
    path = messages.runtime_folder() / "test.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.bind(messages.second_address(path))
        stranger.listen()
        monkeypatch.setattr(messages, "_listener", lambda _: 12345)
        monkeypatch.setattr(os, "getuid", lambda: 54321)
        with pytest.raises(messages.NoBedError, match="no bed named 'test' is running"):
            monkeypatch.setattr(messages, "runtime_folder", lambda: path.parent)
            messages.ask("test", {"do": "stop"})
        assert not messages._is_ours(path)


@pytest.mark.safety("C1", "B8")
def test_a_stop_that_the_box_does_not_confirm_is_no_stop(guard):
    guard.arm()
    os.kill(guard.twin.process.pid, signal.SIGSTOP)
    try:
        words = "the stimulator did not confirm the stop: SWITCH ITS STIMULATOR OFF BY HAND"
        answer = calmloop("stop")
        assert words in answer.stdout and answer.returncode == 1
        guard.wait_for(lambda s: s["state"] == "FAULT" and s["stop_confirmed"] is False)
        assert words in calmloop("status").stdout  # and it stays said
        assert json.loads(calmloop("stop", "--json").stdout)["ok"] is False
    finally:
        os.kill(guard.twin.process.pid, signal.SIGCONT)


@pytest.mark.safety("C1")
def test_a_stop_that_was_pushed_out_is_said_again():
    """Somebody who lets go of the first two that come, before they have said anything or after."""
    path = messages.control_path("crowd")
    heard = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(os.fspath(path))
        door.listen()

        def serve():
            for k in range(4):
                client, _ = door.accept()
                if k == 1:
                    client.recv(4096)
                if k == 3:
                    heard.append(client.recv(4096))
                    client.send(b'{"ok": true}')
                client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        assert messages.ask("crowd", {"do": "stop"})["ok"]
        thread.join(10)
    assert heard == [b'{"do": "stop"}']


def test_a_user_without_a_name_is_a_number(monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert messages.user() == f"user {os.getuid()}"


def test_without_a_bed_whoever_stops_is_told_what_to_do():
    answer = calmloop("stop")
    assert answer.returncode == 2
    assert "SWITCH IT OFF BY HAND" in answer.stderr and os.environ["CALMLOOP_RUNTIME_DIR"] in answer.stderr


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"written_ns": "a"}', "{"])
def test_a_broken_report_is_none(text):
    messages.status_path("test").write_text(text)
    assert messages.daemon_status("test") is None


def test_what_strangers_write_moves_no_cursor(guard):
    assert guard.ask("stop", who="x\n    1.00 s  FAULT\x1b[31m \ud800")["ok"]
    status = calmloop("status")
    assert status.returncode == 0 and "\x1b" not in status.stdout
    assert "x?    1.00 s  FAULT?[31m ?" in status.stdout


def test_arming_for_less_than_was_asked_is_no_success(guard):
    assert calmloop("arm", "--electrodes-checked").returncode == 1  # there is no loop
    assert calmloop("arm", "--button-only", "--electrodes-checked").returncode == 0


def test_a_bed_is_served_once(guard):
    answer = calmloop("run", "config/bench.toml", "--bed", "test")
    assert answer.returncode == 2
    assert "running already" in answer.stderr


def test_a_left_over_socket_is_named_not_mistaken_for_a_bed(guard):
    guard.process.kill()
    guard.process.wait()
    answer = calmloop("stop")
    assert answer.returncode == 2
    assert "is gone" in answer.stdout + answer.stderr


@pytest.mark.parametrize("name", ["demo", "bedside", "bench"])
def test_check_explains_the_shipped_settings(name):
    answer = calmloop("check", f"config/{name}.toml")
    assert answer.returncode == 0, answer.stderr
    assert "charge per phase" in answer.stdout
    assert json.loads(calmloop("check", f"config/{name}.toml", "--json").stdout)["ok"]


@pytest.mark.safety("A12", "F9")
def test_check_names_everything_that_is_wrong(tmp_path):
    path = tmp_path / "bad.toml"
    text = (ROOT / "config" / "demo.toml").read_text()
    path.write_text(
        text.replace("current_ma = 20.0", "current_ma = nan").replace("[session]", "[session]\nfoldr = 1").replace("= 50.0", "= 500.0")
    )
    answer = calmloop("check", str(path))
    assert answer.returncode == 2
    for word in ("foldr", "current_ma", "pulse_rate_hz"):
        assert word in answer.stderr
    assert len(json.loads(calmloop("check", str(path), "--json").stdout)["problems"]) >= 3


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["demo", "--seconds", "x"], ["demo", "--seconds", "0"], ["run", "no.toml"], ["replay", "no.npz"]]
)
def test_wrong_use_exits_2(arguments):
    assert calmloop(*arguments).returncode == 2


NO_BEDS = ["", "a/b", "../x", ".hidden", "x" * 41, "x" * 200, "two words", "b\n", "é", "*"]
WITH_BED = [["run", "no.toml"], ["demo"], ["status"], ["stop"], ["trigger"], ["arm"], ["disarm"], ["clear", "why"], ["dose"]]
WITH_BED += [["stimulator", "test", "no-port"]]


@pytest.mark.parametrize("command", WITH_BED)
@pytest.mark.parametrize("name", NO_BEDS)
def test_a_name_that_no_bed_can_have_is_refused_before_anything_is_made(command, name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--bed", name])
    assert caught.value.code == 2
    assert "must be 1 to 40 letters" in capsys.readouterr().err
    for folder in ("CALMLOOP_RUNTIME_DIR", "CALMLOOP_STATE_DIR"):
        assert list(Path(os.environ[folder]).iterdir()) == []


@pytest.mark.parametrize("name", ["bed", "7", "bed-7_b.2", "x" * 40])
def test_a_name_that_a_bed_can_have_is_taken(name):
    assert cli.parser().parse_args(["status", "--bed", name]).bed == name


@pytest.mark.parametrize("special", ["/dev/zero", "/dev/null"])
def test_what_is_no_file_is_no_settings_file_and_never_waited_for(special):
    answer = calmloop("check", special)
    assert answer.returncode == 2
    assert answer.stderr == f"{special}: is no regular file\n"


def test_a_settings_file_has_its_limit_of_size_also_in_a_pipe(tmp_path):
    text = (ROOT / "config" / "demo.toml").read_text()
    pipe = [sys.executable, "-m", "controller", "check", "/dev/stdin"]
    assert subprocess.run(pipe, input=text, text=True, cwd=ROOT, capture_output=True, timeout=30, check=False).returncode == 0
    (tmp_path / "large.toml").write_text(text + "#" * 1_000_000)
    answer = calmloop("check", str(tmp_path / "large.toml"))
    assert answer.returncode == 2
    assert "is larger than 1000000 bytes" in answer.stderr
    endless = subprocess.Popen(["yes", "#"], stdout=subprocess.PIPE)
    answer = subprocess.run(pipe, stdin=endless.stdout, text=True, cwd=ROOT, capture_output=True, timeout=30, check=False)
    endless.stdout.close()
    endless.wait(10)
    assert answer.returncode == 2
    assert "/dev/stdin: is larger than 1000000 bytes" in answer.stderr


@pytest.mark.parametrize("folder", ["/proc/x", "/dev/null", "/dev/null/x"])
def test_a_folder_that_cannot_be_made_is_said_in_words_and_nothing_starts(folder, tmp_path):
    path = tmp_path / "bed.toml"
    path.write_text((ROOT / "config" / "demo.toml").read_text().replace('folder = "sessions"', f'folder = "{folder}"'))
    assert f'folder = "{folder}"' in path.read_text()
    answer = calmloop("run", str(path))
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"no session can be recorded in [session] folder {folder}: ")
    assert len(answer.stderr.splitlines()) == 1
    for command in (["run", "config/demo.toml"], ["dose"], ["dose", "--reset", "a new patient"]):
        answer = calmloop(*command, CALMLOOP_STATE_DIR=folder)
        assert answer.returncode == 2
        assert f"the state folder {folder} cannot be made" in answer.stderr + answer.stdout
        assert "Traceback" not in answer.stderr


def test_a_disk_that_does_not_take_the_key_is_said_in_words_and_leaves_nothing_behind(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(audit.AuditError, match=r"audit\.key: No space left on device"):
        audit.key(make=True)
    assert list(audit.state_folder().iterdir()) == []


def test_replay_of_a_file_prints_its_settings_and_detections(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((20_000, 2)) * 5e-6
    x[12_000:14_000] *= 10
    np.savez(tmp_path / "rec.npz", emg=x, fs=2000.0)
    answer = calmloop("replay", str(tmp_path / "rec.npz"), "--unit", "V", "--json")
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert [round(d["onset_s"], 1) for d in result["detections"]] == [6.0]
    assert result["settings"]["false_alarms_per_h"] == 0.04
    assert "1 detections" in calmloop("replay", str(tmp_path / "rec.npz"), "--unit", "V").stdout


def test_replay_of_rubbish_names_the_file(tmp_path):
    (tmp_path / "rec.mat").write_bytes(b"rubbish")
    answer = calmloop("replay", str(tmp_path / "rec.mat"))
    assert answer.returncode == 2
    assert "rec.mat" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(("cpus", "missing"), [("[1000]", "[1000] of [1000]"), ("[0, 1000]", "[1000] of [0, 1000]"), ("[0]", "")])
def test_doctor_names_processors_that_this_machine_does_not_have(cpus, missing, tmp_path):
    path = tmp_path / "bed.toml"
    text = re.sub(r"(?m)^cpus = .*$", "", (ROOT / "config" / "demo.toml").read_text())
    path.write_text(text.replace("[realtime]", f"[realtime]\ncpus = {cpus}"))
    rows = {row["what"]: row for row in json.loads(calmloop("doctor", str(path), "--json").stdout)["checks"]}
    row = rows["[realtime] cpus"]
    assert row["ok"] == (not missing)
    assert row["needed"]
    assert missing in row["fact"]


def test_the_kernels_list_of_processors_is_read():
    assert _listed("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert _listed("0\n") == {0}


def test_doctor_names_the_place_for_compiled_code(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "a" / "compiled-1"))
    rows = []

    def row(what, ok, fact, mend="", needed=True):
        rows.append((what, ok, fact, mend))

    assert doctor._compiled_code(row)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)  # as for a user without a home
    assert not doctor._compiled_code(row)
    assert rows[0][1] and not rows[1][1]
    assert str(tmp_path) in rows[1][2] and "CALMLOOP_CACHE_DIR" in rows[1][3]


def test_doctor_names_what_is_missing():
    answer = calmloop("doctor", "config/bedside.toml", "--json")
    assert answer.returncode == 1
    missing = [row for row in json.loads(answer.stdout)["checks"] if not row["ok"] and row["needed"]]
    assert any("stimulator port" in row["what"] for row in missing)
    assert all(row["mend"] for row in missing)
