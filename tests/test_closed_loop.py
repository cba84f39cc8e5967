"""The whole of it, over real wires: the demo as anybody runs it, replay of its session, and the death of each process mid-spasm."""

import hashlib
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import pyxdf

from controller import audit, demo, demo_summary, dose, messages, recording, replay, settings
from controller.journal import clock_now, look
from controller.supervisor import LEASE_NS, MAX_TRIGGER_AGE_NS
from controller.telemetry import QUANTITIES
from drivers.simulated.patient import simulate

CALMLOOP = [sys.executable, "-m", "controller"]


def calmloop(*args, timeout_s=120):
    return subprocess.run([*CALMLOOP, *args], capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="module")
def demo_result(tmp_path_factory):
    """One demo of 20 s, shared by the tests that look at it."""
    sessions = tmp_path_factory.mktemp("sessions")
    env = {"CALMLOOP_RUNTIME_DIR": str(tmp_path_factory.mktemp("run")), "CALMLOOP_STATE_DIR": str(tmp_path_factory.mktemp("state"))}
    answer = subprocess.run(
        [*CALMLOOP, "demo", "--headless", "--seconds", "20", "--seed", "3", "--json", "--sessions", str(sessions)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**os.environ, **env},
    )
    assert answer.returncode == 0, answer.stderr + answer.stdout
    return json.loads(answer.stdout) | {"state_folder": env["CALMLOOP_STATE_DIR"]}


@pytest.fixture
def demo_key(demo_result, monkeypatch):
    """The key with which the demo's audit was made."""
    monkeypatch.setenv("CALMLOOP_STATE_DIR", demo_result["state_folder"])


def test_the_demo_hears_and_answers_every_spasm(demo_result):
    r = demo_result
    assert r["spasms"]["n"] >= 2
    assert r["spasms"] == {"n": r["spasms"]["n"], "detected": r["spasms"]["n"], "missed": 0, "false_triggers": 0}
    assert r["onset_to_first_pulse_ms"]["median"] <= 60
    assert r["spasm_area"]["reduction"] >= 0.5
    assert r["samples"]["lost"] == 0
    assert r["samples"]["recorded"] == r["samples"]["seen"] == r["samples"]["produced"] >= 20 * 2000
    assert r["stimulator"]["outside_limits"] == r["stimulator"]["frames_refused"] == 0
    assert 0 < r["stimulator"]["max_current_ma"] <= 20
    assert set(r["stages_ms"]) == {"signal", "block", "transport", "compute", "guard", "wire", "device"}
    total = sum(stage["median"] for stage in r["stages_ms"].values())
    assert total == pytest.approx(r["onset_to_first_pulse_ms"]["median"], abs=15)
    assert r["stages_sum_ok"]
    assert len(r["events"]) == r["spasms"]["detected"] == r["all_but_signal_ms"]["n"]
    for event in r["events"]:
        assert sum(event["stages_ms"].values()) == pytest.approx(event["total_ms"], abs=0.1)
    # onsets from the body's truth and the rule's back-dated ones, both from the first sample of either
    described = r["described"]["soleus EMG"]  # what the muscle did before it was armed is among it
    assert len(described) >= r["spasms"]["n"]
    assert all(spasm["parts"] >= 1 and 0.0 < spasm["seen"] <= 1.0 for spasm in described)
    seen_s, events_s = [spasm["onset_s"] for spasm in described], [event["onset_s"] for event in r["events"]]
    apart_s = [{round(one_s - event_s, 3) for one_s in seen_s} for event_s in events_s]  # one of them is what the two clocks are apart
    assert any(all(min(abs(other_s - clock_s) for other_s in row) <= 0.03 for row in apart_s) for clock_s in apart_s[0])


def test_the_demo_on_a_slow_stimulator(tmp_path):
    """A RehaStim2: another protocol, answers at no known time, a latency that varies by 14 ms. All others: `calmloop demo --stimulator`."""
    answer = calmloop(
        *("demo", "--headless", "--seconds", "15", "--seed", "3", "--json", "--sessions", str(tmp_path), "--stimulator", "sciencemode2"),
        timeout_s=250,
    )
    r = json.loads(answer.stdout)
    assert r["spasms"]["n"] == r["spasms"]["detected"] >= 1 and r["spasms"]["false_triggers"] == 0
    assert r["stimulator"]["outside_limits"] == r["stimulator"]["frames_refused"] == r["samples"]["lost"] == 0
    assert r["stimulator"]["pulses"] > 20 and r["spasm_area"]["reduction"] > 0
    assert calmloop("demo", "--stimulator", "toaster").returncode == 2


def test_stages_that_are_missing_out_of_order_or_too_short_fall_short(demo_result):
    assert demo_summary.falls_short(demo_result) == []
    whole = demo_result["events"][0]["stages_ms"]
    for stages in (
        None,
        whole | {"guard": whole["guard"] + 0.2},
        whole | {"block": -1.0, "signal": whole["signal"] + whole["block"] + 1.0},
    ):
        event = demo_result["events"][0] | {"stages_ms": stages}
        assert not demo_summary._sums_up(event)
        (short,) = demo_summary.falls_short(demo_result | {"events": [event], "stages_sum_ok": False})
        assert "1 first pulses" in short


def test_its_session_replays_to_the_same_decisions(demo_result, demo_key):
    result = replay.replay_session(Path(demo_result["session"]))
    assert result.identical, result.first_difference
    assert not result.notes
    assert result.cycles > 5000
    assert result.guard_events > 1000
    assert result.pulses == demo_result["stimulator"]["pulses"]


def test_a_changed_decision_is_found_and_named(demo_result, tmp_path):
    folder = Path(demo_result["session"])
    copy = tmp_path / "changed"
    copy.mkdir()
    (copy / "signals.xdf").write_bytes((folder / "signals.xdf").read_bytes())
    (copy / "settings.toml").write_text(
        (folder / "settings.toml").read_text().replace("false_alarms_per_h = 0.04", "false_alarms_per_h = 0.03")
    )
    answer = calmloop("replay", str(copy), "--json")
    assert answer.returncode == 1
    difference = json.loads(answer.stdout)["first_difference"]
    assert difference["cycle"] == 1
    assert difference["replayed"] - difference["recorded"] == pytest.approx(math.log(0.04 / 0.03))


def test_where_the_key_is_not_nothing_is_said_of_the_audit(demo_result):
    result = replay.replay_session(Path(demo_result["session"]))
    assert result.identical
    assert [note for note in result.notes if "audit cannot be verified here" in note]


@pytest.mark.safety("G8")
def test_what_was_altered_around_the_decisions_is_found_too(demo_result, demo_key, tmp_path):
    copy = tmp_path / "altered"
    shutil.copytree(Path(demo_result["session"]), copy)
    assert replay.replay_session(copy).identical
    settings_path, audit_path = copy / "settings.toml", copy / "audit.sqlite"
    was = settings_path.read_text()
    settings_path.write_text(was.replace("max_events_in_10_min = 30", "max_events_in_10_min = 29"))
    assert replay.replay_session(copy).first_difference["field"] == "prescription"
    settings_path.write_text(was)
    db = sqlite3.connect(audit_path)
    with db:
        db.execute("DELETE FROM audit WHERE id > 5")
    db.close()
    result = replay.replay_session(copy)
    assert result.first_difference["field"] == "audit"
    assert "row 6" in result.first_difference["recorded"]


@pytest.mark.safety("G8", "F9")
def test_the_recording_opens_elsewhere_and_the_audit_holds(demo_result, demo_key):
    folder = Path(demo_result["session"])
    streams, _ = pyxdf.load_xdf(folder / "signals.xdf", dejitter_timestamps=False)
    sizes = {stream["info"]["name"][0]: len(stream["time_stamps"]) for stream in streams}
    assert sizes["EMG"] == demo_result["samples"]["recorded"]
    assert sizes["pulses"] == demo_result["stimulator"]["pulses"]
    anchors = recording.load(folder).anchors()
    assert len(anchors) > 5
    assert anchors == sorted(set(anchors))
    assert audit.verify(folder / "audit.sqlite", audit.key(), anchors) == (anchors[-1], None)  # the last row is anchored too
    with sqlite3.connect(folder / "audit.sqlite") as db:
        (detail,) = db.execute("SELECT detail FROM audit WHERE what = 'session'").fetchone()
    db.close()
    assert json.loads(detail)["settings_sha256"] == hashlib.sha256((folder / "settings.toml").read_bytes()).hexdigest()
    assert not list(Path(demo_result["state_folder"]).rglob("*.sqlite"))  # a demo counts for no patient
    assert oct(folder.stat().st_mode & 0o777) == "0o700"


def test_its_latency_is_on_the_disk_and_every_trigger_has_its_stages(demo_result):
    folder = Path(demo_result["session"])
    measured = json.loads((folder / "latency.json").read_text())
    assert measured["budget"]["max_sample_age_ms"] == 100.0
    assert list(measured["quantities"]) == list(QUANTITIES)
    session = recording.load(folder)
    pulses = demo_result["stimulator"]["pulses"]
    counts = {name: q["n"] for name, q in measured["quantities"].items()}
    assert counts["write"] == counts["ack"] == pulses
    assert counts["compute"] == sum(1 for _ in session.cycles())
    assert session.end["latency"] == {
        name: {k: v for k, v in q.items() if k not in ("of", "what")} for name, q in measured["quantities"].items()
    }
    triggers = [note for note in map(json.loads, session.streams["notes"].values) if note["what"] == "trigger"]
    granted = [row["request"] for row in session.guard() if row.get("written_ns") and row["event"]["kind"] in ("request", "trigger")]
    assert [trigger["request"] for trigger in triggers] == granted
    assert granted[0] == -1  # the train that was tried out
    for trigger in triggers[1:]:
        assert list(trigger["stamps_ns"]) == ["sample", "pulled", "decided", "received", "written", "acked"]
        *stages, total = trigger["stages_ms"].values()
        assert sum(stages) == pytest.approx(total, abs=1e-4)
    assert counts["pulse_late"] == pulses - len(granted)


# --- the death of each process ----------------------------------------------------------------------------------------------------
SEED = 5
SOURCE_ID = f"calmloop-kill-test-{os.getpid()}"  # somebody else may run these tests here at the same time


class Ward:
    """Bench, daemon armed, and, after `begin`, spasms."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "stimulator.jsonl"
        self.bench = demo.body(folder, SEED, SOURCE_ID, "--wait")
        config = settings.load(settings.default_config("demo.toml"))
        session = config.session.model_copy(update={"folder": str(folder / "sessions")})
        self.config = settings.parse(config.model_copy(update={"session": session}).to_toml())
        self.errors = (folder / "daemon.log").open("a+")
        self.start()
        self.daemon.arm()

    def start(self):
        """A daemon that hears the body."""
        self.daemon = demo.LiveDaemon(demo.pointed_at(self.config, self.bench.port, SOURCE_ID), "ward", self.folder, self.errors)
        status = self.daemon.wait_until_quiet(self.bench)
        self.session, self.children = Path(status["session"]), status["children"]

    def begin(self):
        """Let spasms come; returns when they may."""
        self.bench.source.send("go 60")
        return self.bench.source.line("began")["go_s"]

    def treat(self):
        """Wait until a spasm is being treated."""
        self.begin()
        self.wait_for(lambda: len(self.pulses()) >= 5, 15)

    def pulses(self):
        return [row for row in map(json.loads, self.log.read_text().splitlines()) if "pulse_ns" in row] if self.log.exists() else []

    def wait_for(self, condition, timeout_s=10):
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, self.said()[-2000:]
            time.sleep(0.02)

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)
        return time.monotonic_ns()

    def last_pulse_after_ms(self, killed_ns):
        return (self.pulses()[-1]["pulse_ns"] - killed_ns) / 1e6

    def said(self):
        self.errors.seek(0)
        return self.errors.read()

    def close(self):
        self.daemon.end()
        self.bench.close()
        self.errors.close()


@pytest.fixture
def quiet_ward(tmp_path):
    """Armed, and no spasm yet."""
    w = Ward(tmp_path)
    yield w
    w.close()


@pytest.fixture
def ward(quiet_ward):
    """In the middle of a spasm that is being treated."""
    quiet_ward.treat()
    return quiet_ward


def opens(ward):
    """The recording opens in pyxdf and its whole part replays without a difference."""
    pyxdf.load_xdf(ward.session / "signals.xdf", dejitter_timestamps=False)
    result = replay.replay_session(ward.session)
    assert result.identical, result.first_difference
    assert result.cycles > 500
    assert not [note for note in result.notes if "audit" in note]
    assert audit.verify(ward.session / "audit.sqlite", audit.key(), recording.load(ward.session).anchors())[1] is None


def remembers(ward):
    """What the dose journal holds covers every pulse in the stimulator's own log, and not a lot more; returns its summary."""
    facts = dose.summary(look(ward.folder / "dose.sqlite")[0], clock_now())
    pulses = ward.pulses()
    charge_mc = sum(p["current_ua"] * p["phase_width_us"] for p in pulses) * 1e-9
    worst = dose.worst_train(settings.guard_view(settings.load(settings.default_config("demo.toml"))))
    more, dropped = facts["assumed_trains"], 5  # with a stop the box drops what waits in it; that counts all the same (E1)
    assert len(pulses) <= facts["day"]["pulses"] <= len(pulses) + dropped + more * worst.pulses
    assert charge_mc - 1e-3 <= facts["day"]["charge_mc"] <= charge_mc + dropped * 10e-3 + more * worst.charge_nc * 1e-6 + 1e-3
    return facts


@pytest.mark.safety("B1", "E4", "F2")
def test_loop_killed(ward):
    killed_ns = ward.kill(ward.children["loop"])
    time.sleep(0.5)
    assert ward.last_pulse_after_ms(killed_ns) < LEASE_NS / 1e6
    ward.wait_for(lambda: messages.ask("ward", {"do": "status"})["loop"] == "alive", 60)  # started again
    answer = messages.ask("ward", {"do": "status"})
    assert not answer["automatic"]
    n = len(ward.pulses())
    # the button works, once the refractory time of the train that was cut is over
    answers = []
    press = lambda: answers.append(messages.ask("ward", messages.press("test")))  # noqa: E731
    ward.wait_for(lambda: press() or answers[-1]["ok"], 5)
    time.sleep(0.7)
    assert len(ward.pulses()) > n + 5  # a machine under load withholds some, and counts them
    assert "loop was killed by SIGKILL" in ward.said()
    ward.daemon.end()
    opens(ward)
    assert remembers(ward)["assumed_trains"] == 0


@pytest.mark.safety("A10", "B1", "F2")
def test_guard_killed(ward):
    killed_ns = ward.kill(ward.children["guard"])
    time.sleep(0.5)
    assert ward.last_pulse_after_ms(killed_ns) < LEASE_NS / 1e6
    ward.wait_for(lambda: (ward.daemon.status() or {"children": {}})["children"].get("guard") not in (None, ward.children["guard"]), 30)

    def up():
        try:
            return messages.ask("ward", {"do": "status"})["state"] == "IDLE"  # not armed
        except messages.NoBedError:
            return False

    ward.wait_for(up, 30)
    assert not messages.ask("ward", messages.press("test"))["ok"]
    assert "guard was killed by SIGKILL" in ward.said()
    given = messages.ask("ward", {"do": "status"})["dose"]["session"]["pulses"]
    ward.daemon.end()
    opens(ward)
    facts = remembers(ward)
    assert facts["assumed_trains"] == 2
    assert facts["session"] == facts["day"]
    assert facts["day"]["pulses"] == given  # the second guard knew of what the first had given


@pytest.mark.safety("A10", "B1", "F2", "F8")
def test_daemon_killed(ward):
    killed_ns = ward.kill(ward.daemon.popen.pid)
    time.sleep(0.5)
    assert ward.last_pulse_after_ms(killed_ns) < LEASE_NS / 1e6
    with pytest.raises(messages.NoBedError):
        messages.ask("ward", {"do": "status"})
    for pid in ward.children.values():
        ward.wait_for(lambda pid=pid: not alive(pid))
    assert "the daemon is gone" in ward.said()
    opens(ward)
    # and its successor goes on with the dose, not armed
    ward.daemon.end()
    ward.start()
    assert "the last session of this bed had no clean end: 2 trains are added" in ward.said()
    status = messages.ask("ward", {"do": "status"})
    assert (status["state"], status["automatic"]) == ("IDLE", False)
    facts = remembers(ward)
    assert facts["assumed_trains"] == 2
    assert status["dose"]["session"]["pulses"] == status["dose"]["24h"]["pulses"] == facts["session"]["pulses"] == facts["day"]["pulses"]


@pytest.mark.safety("C7")
def test_a_loop_that_stood_still_stimulates_nothing_late(quiet_ward):
    ward = quiet_ward
    go_s = ward.begin()
    onset_s = go_s + first_onset_after_go_s(SEED)
    time.sleep(max(0.0, onset_s - 0.3 - time.monotonic()))
    os.kill(ward.children["loop"], signal.SIGSTOP)
    stopped_ns = time.monotonic_ns()
    time.sleep(1.0)
    continued_ns = time.monotonic_ns()
    os.kill(ward.children["loop"], signal.SIGCONT)
    ward.wait_for(lambda: len(ward.pulses()) >= 5, 20)  # it goes on by itself: this spasm, or the next
    time.sleep(0.5)
    ward.daemon.end()
    rows = [row for row in recording.load(ward.session).guard() if row.get("event", {}).get("kind") == "request"]
    late = [row for row in rows if too_old(row["event"], row["event"]["now_ns"])]
    assert late  # the spasm lay in the backlog, and its request carries the stamp of the sample that decided
    for row in late:  # guard's own clock, guard's own refusal
        assert row["verdict"]["refused"] == row["event"]["number"]
        assert " ms old " in "; ".join(row["verdict"]["reasons"])
    # the stimulator's log: nothing while the loop stood still, and each train from a request that was young when its first pulse came
    pulses = ward.pulses()
    assert not [p for p in pulses if stopped_ns <= p["received_ns"] <= continued_ns]
    starts_ns = [b["received_ns"] for a, b in pairwise([{"received_ns": 0}, *pulses]) if b["received_ns"] - a["received_ns"] > 100e6]
    granted = [row for row in rows if row.get("written_ns")]
    assert len(starts_ns) == len(granted) >= 1
    for start_ns, row in zip(starts_ns, granted, strict=True):
        assert not too_old(row["event"], start_ns, slack_ns=50_000_000)  # the twin reads when it gets to it
    said = ward.said().split("ARMED        armed\n")[1]  # before, the loop's own start may have been late
    assert "late: sample age" in said
    assert "automatic stimulation is refused" in said
    opens(ward)


def first_onset_after_go_s(seed):
    """The body draws its spasms from the seed, counted from when they may come."""
    _, _, truth = simulate(seed, 20_000, 2_000, (), 8.0)
    return truth["spasms"][0]["onset_s"] - 1.0


def too_old(event, now_ns, slack_ns=0):
    """Whether a request, or the sample behind it, is older than may stimulate."""
    max_sample_age_ns = settings.load(settings.default_config("demo.toml")).realtime.max_sample_age_ms * 1e6
    return now_ns - event["sample_ns"] > max_sample_age_ns + slack_ns or now_ns - event["issued_ns"] > MAX_TRIGGER_AGE_NS + slack_ns


@pytest.mark.safety("D8")
def test_body_killed(ward):
    killed_ns = ward.kill(ward.bench.source.popen.pid)
    time.sleep(0.5)
    assert ward.last_pulse_after_ms(killed_ns) < LEASE_NS / 1e6
    ward.wait_for(lambda: "an LSL stream is lost" in ward.said(), 15)  # whatever takes its place is looked at anew (D8)
    ward.wait_for(lambda: not messages.ask("ward", {"do": "status"})["automatic"], 15)
    assert not messages.ask("ward", {"do": "status"})["data_ok"]
    with pytest.raises(demo.DemoError, match="simulated body was killed by SIGKILL"):
        ward.bench.check()
    ward.daemon.end()
    opens(ward)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_missing_streams_are_named_before_anything_starts(tmp_path):
    config = settings.load(settings.default_config("demo.toml")).to_toml().replace("calmloop body", "no such")
    path = tmp_path / "bed.toml"
    path.write_text(config.replace('folder = "sessions"', f'folder = "{tmp_path}"'))
    answer = calmloop("run", str(path))
    assert answer.returncode == 2
    assert "[emg] no LSL stream named 'no such EMG'" in answer.stderr
    assert "[force] no LSL stream named 'no such torque'" in answer.stderr


def test_a_file_plays_into_a_live_daemon_and_its_session_replays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    emg = rng.standard_normal((2000 * 10, 2)) * 5e-6
    emg[14_000:15_000] *= 15  # after two seconds of learning and the arming, 0.5 s of spasm
    np.savez("rec.npz", emg=emg, fs=2000.0)
    answer = calmloop("replay", "rec.npz", "--unit", "V", "--realtime", "--json")
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    assert facts["armed"]
    assert facts["trains"] >= 1
    assert facts["stimulator"]["pulses"] >= 20
    assert facts["stimulator"]["outside_limits"] == 0
    assert replay.replay_session(Path(facts["session"])).identical
