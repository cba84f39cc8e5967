"""Guard as a process, judged by the virtual stimulator's own log."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from controller import messages, settings
from controller.guard import event_from_dict, event_to_dict
from controller.supervisor import LEASE_NS, Event, Kind
from tests.rig import GuardRig, arm_automatic, beat, beat_for, request


def test_button_only_bed_gives_exactly_one_train(guard):
    assert not guard.trigger()["ok"]
    assert guard.twin.pulses() == []
    answer = guard.ask("arm", automatic=False)
    assert (answer["state"], answer["automatic"]) == ("ARMED", False)
    assert guard.trigger()["ok"]
    again = guard.trigger()
    assert not again["ok"]
    assert "already stimulating" in again["reasons"][0]
    time.sleep(0.7)
    pulses = guard.twin.pulses()
    # a stalled machine may withhold a pulse, and the twin may read it late: each must still be the right one for its slot
    prescribed = [8000, 16000, *[20000] * 18, 20000, 16000, 12000, 8000, 4000]
    sent = [row for row in guard.rows() if row.get("written_ns")]
    assert [p["current_ua"] for p in pulses] == [prescribed[round((r["written_ns"] - sent[0]["written_ns"]) / 20e6)] for r in sent]
    assert len(pulses) > 20
    assert {(p["phase_width_us"], p["interphase_gap_us"], p["channel"], p["balanced"]) for p in pulses} == {(500, 100, 1, True)}
    gaps_ms = [(b["pulse_ns"] - a["pulse_ns"]) / 1e6 for a, b in itertools.pairwise(pulses)]
    assert min(gaps_ms) > 9.0
    assert "refractory" in guard.trigger()["reasons"][0]


def test_stop_ends_a_train_and_disarms(guard):
    guard.ask("arm")
    guard.trigger()
    time.sleep(0.1)
    answer = guard.ask("stop")
    stopped_ns = time.monotonic_ns()
    assert answer["state"] == "IDLE"
    time.sleep(0.3)
    assert all(p["pulse_ns"] < stopped_ns + 5_000_000 for p in guard.twin.pulses())
    assert not guard.trigger()["ok"]


def test_the_loop_triggers_and_hears_of_every_pulse(guard):
    loop = guard.join_loop()
    arm_automatic(guard, loop)
    request(loop, 1)
    beat_for(loop, 0.6)
    loop.setblocking(False)
    said = [messages.FEEDBACK.unpack(loop.recv(100))]
    while said[-1][0] == 1.0:
        said.append(messages.FEEDBACK.unpack(loop.recv(100)))
    assert said[-1][0] == 3.0
    assert {number for _, _, number in said} == {1}
    assert len(guard.twin.pulses()) == len(said) - 1 > 20  # a machine under load withholds some
    loop.close()


def test_heartbeats_alone_do_nothing(guard):
    loop = guard.join_loop()
    arm_automatic(guard, loop)
    guard.rows()
    before = guard.ask("status")
    beat_for(loop, 0.3)
    after = guard.ask("status")
    assert after == before
    assert {row["event"]["kind"] for row in guard.rows()} == {"heartbeat"}
    assert guard.twin.pulses() == []
    request(loop, 1)
    guard.wait_for(lambda s: s["pulses"])
    loop.close()


def test_a_silent_loop_stops_within_the_lease(guard):
    loop = guard.join_loop()
    arm_automatic(guard, loop)
    request(loop, 1)
    beat_for(loop, 0.1)
    silent_ns = time.monotonic_ns()
    time.sleep(0.6)
    assert guard.twin.pulses()[-1]["pulse_ns"] - silent_ns < LEASE_NS + 20_000_000
    loop.close()


def test_requests_that_come_a_second_late_are_refused_by_age(guard):
    """What a loop says that was stopped and goes on again: no pulse, whatever it is that is old."""
    loop = guard.join_loop()
    arm_automatic(guard, loop)
    guard.rows()
    for number in range(1, 31):
        late_ns = time.monotonic_ns() - 1_000_000_000
        old = {0: {"issued_ns": late_ns}, 1: {"sample_ns": late_ns}, 2: {"issued_ns": late_ns, "sample_ns": late_ns}}[number % 3]
        beat_for(loop, 0.01)
        request(loop, number, **old)
    guard.wait_for(lambda s: s["data_ok"])
    rows = [row for row in guard.rows() if row["event"]["kind"] == "request"]
    assert [row["verdict"]["refused"] for row in rows] == list(range(1, 31))
    for row in rows:
        old = [name for name in ("issued_ns", "sample_ns") if row["event"]["now_ns"] - row["event"][name] > 900_000_000]
        reasons = " ".join(row["verdict"]["reasons"])
        assert ("issued_ns" in old) is ("ms late (at most 50)" in reasons)
        assert ("sample_ns" in old) is ("deciding sample is" in reasons)
    assert guard.twin.pulses() == []
    beat_for(loop, 0.05)
    request(loop, 31)
    beat_for(loop, 0.1)
    assert len(guard.twin.pulses()) > 1  # it was for their age alone
    loop.close()


def test_stale_data_show_in_the_status_and_never_stimulate(guard):
    loop = guard.join_loop()
    arm_automatic(guard, loop)
    beat(loop, age_ns=1_000_000_000)
    status = guard.wait_for(lambda s: not s["data_ok"])
    assert status["reasons"] == ["data stale: newest sample is 1000 ms old (at most 100)"]
    request(loop, 1)
    beat(loop)
    assert guard.wait_for(lambda s: s["data_ok"])["reasons"] == []
    said = [reason for row in guard.rows() if "event" in row for reason in row["verdict"]["reasons"]]
    assert sum(reason.startswith("data stale") for reason in said) == 1
    assert any(reason.startswith("refused: data stale") for reason in said)
    assert said.count("data fresh again") == 1
    assert guard.twin.pulses() == []
    loop.close()


def test_each_pulse_is_recorded_with_its_packet_and_answered_by_it(guard):
    guard.ask("arm", automatic=False)
    guard.rows()
    guard.trigger()
    time.sleep(0.3)
    rows = guard.rows()
    sent = [row for row in rows if "written_ns" in row]
    assert sent[0]["event"]["kind"] == "trigger"
    assert all((b["packet"] - a["packet"]) % 64 == 1 for a, b in itertools.pairwise(sent))
    assert len(sent) > 5
    answers = {row["event"].get("number", 0): row["event"]["now_ns"] for row in rows if row.get("event", {}).get("kind") == "ack"}
    for row in sent[:-1]:
        assert row["event"]["now_ns"] <= row["written_ns"] < answers[row["packet"]]


def test_a_dead_loop_stops_at_once_and_the_button_still_works(guard):
    loop = guard.join_loop()
    arm_automatic(guard, loop)
    request(loop, 1)
    beat_for(loop, 0.1)
    dead_ns = time.monotonic_ns()
    loop.close()
    status = guard.wait_for(lambda s: s["loop"] == "absent")
    assert not status["automatic"]
    time.sleep(0.2)
    assert guard.twin.pulses()[-1]["pulse_ns"] - dead_ns < 25_000_000
    n = len(guard.twin.pulses())
    guard.wait_for(lambda s: guard.trigger()["ok"])
    time.sleep(0.6)
    assert n + 20 < len(guard.twin.pulses()) <= n + 25


def test_a_dead_daemon_ends_guard_without_output(tmp_path):
    rig = GuardRig(tmp_path)
    rig.ask("arm", automatic=False)
    rig.trigger()
    time.sleep(0.1)
    dead_ns = time.monotonic_ns()
    rig.link.close()
    assert rig.process.wait(5) == 0
    time.sleep(0.2)
    assert rig.twin.pulses()[-1]["pulse_ns"] - dead_ns < 25_000_000
    assert "the daemon is gone" in rig.process.stderr.read()
    with pytest.raises(messages.NoBedError):
        rig.ask("status")
    rig.close()


@pytest.mark.parametrize("data", [b"x", b"\0" * 79, b"\xff" * 80, b"\0" * 4000])
def test_garbage_from_the_loop_does_nothing(guard, data):
    loop = guard.join_loop()
    arm_automatic(guard, loop)
    for _ in range(50):
        loop.send(data)
    assert guard.ask("status")["state"] == "ARMED"
    assert guard.twin.pulses() == []
    loop.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'{"do": "fire"}',
        b'{"do": "trigger"}',
        b'{"do": "trigger", "issued_ns": 1e18}',
        b'{"do": ["stop"]}',
        b"[" * 4000,
        b'{"do": "trigger", "issued_ns": ' + b"9" * 3000 + b"}",
    ],
)
def test_garbage_from_a_person_is_answered_and_does_nothing(guard, data):
    guard.ask("arm", automatic=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.settimeout(2)
        s.connect(str(messages.control_path("test")))
        s.send(data)
        s.recv(65536)
    assert guard.ask("status")["state"] == "ARMED"
    assert guard.twin.pulses() == []


def test_a_crowd_that_says_nothing_does_not_keep_stop_out(guard):
    crowd = []
    for _ in range(60):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.setblocking(False)
        try:
            s.connect(str(messages.control_path("test")))
        except BlockingIOError:
            s.close()
            continue
        crowd.append(s)
    start = time.monotonic()
    assert guard.ask("stop")["ok"]
    assert time.monotonic() - start < 1.0
    for s in crowd:
        s.close()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("lost-ack@3", "no acknowledgement"),
        ("late-ack@3", "no acknowledgement"),
        ("electrode-error@3", "electrode"),
        ("hangup@3", "port lost"),
        ("hang@3", "no acknowledgement"),
        ("reset@3", "not initialised"),
    ],
)
def test_a_stimulator_in_trouble_is_a_latched_fault(tmp_path, fault, words):
    rig = GuardRig(tmp_path, "--fault", fault)
    rig.ask("arm", automatic=False)
    rig.trigger()
    status = rig.wait_for(lambda s: s["state"] == "FAULT")
    assert words in status["reason"].lower()
    n = len(rig.twin.pulses())
    assert n <= 5
    assert not rig.trigger()["ok"]
    assert rig.ask("arm")["state"] == "FAULT"
    time.sleep(0.2)
    assert len(rig.twin.pulses()) == n
    rig.close()


def test_a_missing_stimulator_is_named_and_found_later(tmp_path):
    rig = GuardRig(tmp_path)
    rig.twin.close()
    rig.wait_for(lambda s: s["state"] == "FAULT")
    assert rig.ask("clear", reason="")["state"] == "FAULT"
    assert rig.ask("clear", reason="cable was out")["state"] == "OFF"
    assert "no stimulator" in rig.wait_for(lambda s: "no stimulator" in s["reason"])["reason"]
    rig.close()


def test_a_second_guard_for_the_same_bed_is_refused(guard):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(json.dumps(settings.guard_view(guard.config)).encode())
        command = [sys.executable, "-m", "controller.guard", "--link", str(theirs.fileno()), "--ring", "0", "--bed", "test"]
        second = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=10, check=False)
    assert second.returncode == 2
    assert "another guard serves this bed" in second.stderr
    assert guard.ask("status")["ok"]


def test_a_stop_that_is_not_confirmed_is_a_fault(guard):
    guard.ask("arm", automatic=False)
    os.kill(guard.twin.process.pid, signal.SIGSTOP)
    try:
        assert guard.ask("stop")["state"] == "IDLE"
        assert "did not confirm the stop" in guard.wait_for(lambda s: s["state"] == "FAULT")["reason"]
    finally:
        os.kill(guard.twin.process.pid, signal.SIGCONT)


def test_what_cannot_be_recorded_is_not_stimulated(guard):
    guard.ask("arm", automatic=False)
    guard.rows()
    for _ in range(4000):  # nobody reads the ring of 1 MB
        if not guard.ask("clear", reason="x")["recorder_ok"]:
            break
    answer = guard.trigger()
    assert not answer["ok"]
    assert "recording does not keep up" in answer["reasons"][0]
    assert guard.twin.pulses() == []
    guard.rows()  # the daemon catches up
    guard.wait_for(lambda s: s["recorder_ok"])
    assert guard.trigger()["ok"]


def test_a_stimulator_that_never_answers_keeps_nobody_waiting(tmp_path):
    rig = GuardRig(tmp_path, "--fault", "hang@3")
    rig.ask("arm", automatic=False)
    rig.trigger()
    rig.wait_for(lambda s: s["state"] == "FAULT")
    rig.ask("clear", reason="test")
    slowest = 0.0
    for _ in range(20):  # while guard looks for the stimulator again and again
        start = time.monotonic()
        assert rig.ask("stop")["ok"]
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.1)
    assert slowest < 0.3
    rig.close()


def test_sigint_and_sigterm_are_the_daemons_business(guard):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(guard.process.pid, number)
    assert guard.ask("status")["ok"]


def test_events_travel_as_json_and_back():
    event = Event(Kind.REQUEST, 5, issued_ns=3, number=-2, ok=True, text="ü")
    assert event_from_dict(event_to_dict(event)) == event
    assert event_to_dict(Event(Kind.TICK, 0)) == {"kind": "tick", "now_ns": 0}
