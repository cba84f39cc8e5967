"""Histograms against numpy, stages and lateness from records as loop and guard write them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import telemetry
from controller.__main__ import describe, latency_words, trigger_words
from controller.telemetry import QUANTILES, Histogram, Recent, Telemetry
from tests.rig import arm_automatic, beat_for, request

MS, S = 1_000_000, 1_000_000_000
durations = st.lists(st.integers(1_000, 100 * S), min_size=1, max_size=300)


@given(durations)
def test_percentiles_are_within_3_percent_of_numpys_and_number_and_maximum_are_exact(values):
    h = Histogram()
    h.add_many(np.array(values))
    s = h.summary()
    assert (s["n"], s["max_ms"]) == (len(values), round(max(values) * 1e-6, 6))
    for name, q in QUANTILES.items():
        exact_ms = np.percentile(values, 100 * q, method="inverted_cdf") * 1e-6
        assert s[name] == pytest.approx(exact_ms, rel=0.03), name
    assert s["p50_ms"] <= s["p95_ms"] <= s["p99_ms"] <= s["p99.9_ms"] <= s["max_ms"]


@given(durations, durations)
def test_merged_is_as_if_all_had_been_counted_together(a, b):
    first, second, both = Histogram(), Histogram(), Histogram()
    first.add_many(a)
    for value in b:
        second.add(value)
    both.add_many(a + b)
    first.merge(second)
    assert first.summary() == both.summary()
    assert np.array_equal(first.counts, both.counts)


@given(st.lists(st.integers(-(2**62), 2**62)))
def test_whatever_comes_is_counted_in_the_same_room(values):
    h = Histogram()
    size = len(h.counts)
    h.add_many(np.array(values, np.int64))
    assert (h.n, len(h.counts)) == (len(values), size)
    assert h.max_ns == max([0, *values])
    json.dumps(h.summary(), allow_nan=False)


def test_nothing_counted_is_said_to_be_nothing():
    assert Histogram().summary() == {"n": 0, "p50_ms": None, "p95_ms": None, "p99_ms": None, "p99.9_ms": None, "max_ms": None}
    assert set(Telemetry(100, 50).summary()) == set(telemetry.QUANTITIES)


@given(st.lists(st.tuples(st.integers(0, S), st.integers(0, 10**12)), max_size=50))
def test_the_worst_of_the_last_second(steps):
    recent, seen, now = Recent(), [], 0
    for step, value in steps:
        now += step
        recent.see(now, value)
        seen.append((now, value))
        assert recent.worst_ns(now) == max(v for t, v in seen if now - t <= telemetry.RECENT_NS)
    assert recent.worst_ns(now + telemetry.RECENT_NS + 1) == 0


# --- records of loop and guard ----------------------------------------------------------------------------------------------------
def cycle(pulled, decided, sample, request=0, n_emg=4):
    numbers = {"received_ns": pulled, "decided_ns": decided, "n_emg": n_emg, "n_force": 0, "request": request}
    return SimpleNamespace(numbers=numbers, sample_s=sample * 1e-9)


def row(kind, now, wake=0, ended=0, written=0, request=0, packet=None, **event):
    verdict = {"wake_ns": wake, "ended": ended, "state": "ARMED"}
    out = {"event": {"kind": kind, "now_ns": now, **event}, "verdict": verdict}
    if written:
        out |= {"written_ns": written, "request": request} | ({} if packet is None else {"packet": packet})
    return out


@pytest.mark.parametrize("packets", [True, False])
def test_a_trigger_carries_its_stages_and_they_sum_to_the_whole(packets):
    t = Telemetry(100, 50)
    t0 = 10 * S
    first = row("request", t0 + 3 * MS, t0 + 23 * MS, 0, t0 + 4 * MS, 7, 0 if packets else None, issued_ns=t0 + 2 * MS, sample_ns=t0)
    t.see_guard([row("heartbeat", t0, issued_ns=t0 - MS), first], t0 + 5 * MS)
    assert t.finished_triggers() == []  # not acknowledged yet
    tick = row("tick", t0 + 24 * MS, t0 + 43 * MS, 0, t0 + 25 * MS, 7, 1 if packets else None)
    t.see_guard([row("ack", t0 + 6 * MS, t0 + 23 * MS), tick], t0 + 30 * MS)
    t.see_cycles([cycle(t0 + MS, t0 + 2 * MS, t0, request=7)], t0 + 30 * MS)  # guard was quicker than the loop's record
    (trigger,) = t.finished_triggers()
    assert trigger.stages_ms() == {"pulled_ms": 1, "decided_ms": 1, "received_ms": 1, "written_ms": 1, "acked_ms": 2, "sum_ms": 6}
    assert trigger.stamps_ns["sample"] == t0
    assert t.finished_triggers() == []
    s = t.summary()
    expected = {"sample_age": 2, "compute": 1, "request_transit": 1, "heartbeat_transit": 1, "pulse_late": 2, "write": 1, "ack": 2}
    assert {name: q["max_ms"] for name, q in s.items()} == expected
    assert s["write"]["n"] == 2
    assert trigger_words(trigger.stages_ms()) == (
        "last trigger: sample, pulled +1.00, decided +1.00, received +1.00, written +1.00, acked +2.00 = 6.00 ms"
    )
    assert latency_words(s).startswith("loop: sample age p50 1.97 ms, p99 1.97, max 2.00, compute p50")


def test_an_answer_to_another_pulse_is_none():
    t = Telemetry(100, 50)
    t.see_guard([row("request", S, 0, 0, S + MS, 1, 5, issued_ns=S, sample_ns=S), row("ack", S + 2 * MS, number=4)], S)
    assert t.finished_triggers() == []
    t.see_guard([row("ack", S + 3 * MS, number=5)], S)
    assert t.finished_triggers()[0].stages_ms()["acked_ms"] == 2


def test_a_trigger_without_an_answer_ends_with_its_train():
    t = Telemetry(100, 50)
    first = row("trigger", S, 0, 0, S + MS, -1, issued_ns=S - MS)
    t.see_guard([first, row("stop", S + 9 * MS, ended=-1)], S)
    (trigger,) = t.finished_triggers()
    assert trigger.stages_ms() == {"received_ms": 1, "written_ms": 1, "sum_ms": 2}
    assert trigger_words(trigger.stages_ms()).startswith("last trigger: request, received +1.00")
    t.see_guard([first, {"start_ns": 2 * S}], 2 * S)  # guard was killed and started again
    assert len(t.finished_triggers()) == 1


def test_requests_of_a_loop_that_is_gone_are_nobodys():
    t = Telemetry(100, 50)
    t.see_cycles([cycle(S, S, S, request=1)], S)
    t.loop_started()
    t.see_guard([row("request", 9 * S, 0, 1, 9 * S, 1, issued_ns=9 * S, sample_ns=9 * S)], 9 * S)
    assert "pulled" not in t.finished_triggers()[0].stamps_ns


def test_of_a_signal_that_has_not_come_yet_there_is_no_age():
    t = Telemetry(100, 50)
    t.see_cycles([cycle(36_000 * S, 36_000 * S, 0)], 36_000 * S)
    assert t.summary()["sample_age"]["n"] == 0
    assert t.late(36_000 * S) == ""


def test_late_for_the_last_second_and_not_for_ever():
    t = Telemetry(100, 50)
    t.see_cycles([cycle(S, S, S)], S)
    assert t.late(S) == ""
    t.see_cycles([cycle(2 * S, 2 * S, 2 * S - 130 * MS), cycle(2 * S, 2 * S, 2 * S)], 2 * S)
    words = "late: sample age 130 ms, budget 100 ms: automatic stimulation is refused"
    assert t.late(2 * S) == t.late(3 * S) == words
    t.see_cycles([cycle(3 * S, 3 * S, 3 * S)], 3 * S)
    assert t.late(3 * S + 1) == ""
    t.see_guard([row("heartbeat", 4 * S, issued_ns=4 * S - 60 * MS)], 4 * S)
    assert t.late(4 * S) == "late: heartbeat transit 60 ms, budget 50 ms: automatic stimulation is refused"


def test_samples_that_do_not_come_are_late_too():
    t = Telemetry(100, 50)
    t.see_cycles([], S)
    assert t.late(S) == ""  # none ever came: nothing can be said of their age
    t.see_cycles([cycle(S, S, S)], S)
    t.see_cycles([cycle(S + 90 * MS, S + 90 * MS, S, n_emg=0)], S + 90 * MS)
    assert t.late(S + 90 * MS) == ""
    t.see_cycles([], S + 400 * MS)  # a loop that hangs
    assert "sample age 400 ms" in t.late(S + 400 * MS)
    assert t.summary()["sample_age"]["n"] == 1


def test_stamps_that_no_clock_shows_are_old_and_raise_nothing():
    t = Telemetry(100, 50)
    for sample_s in (float("nan"), float("inf"), -1e300, -1e9):
        c = cycle(S, S, 0)
        c.sample_s = sample_s
        t.see_cycles([c], S)
    assert t.summary()["sample_age"]["n"] == 4
    assert t.late(S)


def test_a_real_guard_tells_all_that_is_measured_of_it(guard):
    with guard.join_loop() as loop:
        arm_automatic(guard, loop)
        request(loop, 1)
        beat_for(loop, 0.7)
    t = Telemetry(100, 50)
    t.see_guard(guard.rows(), S)
    s = t.summary()
    pulses = len(guard.twin.pulses())
    assert s["request_transit"]["n"] == 1
    assert s["heartbeat_transit"]["n"] > 10
    assert s["write"]["n"] == s["ack"]["n"] == pulses == s["pulse_late"]["n"] + 1
    assert all(q["p50_ms"] >= 0 for name, q in s.items() if q["n"]), s
    (trigger,) = t.finished_triggers()
    assert list(trigger.stamps_ns) == ["sample", "received", "written", "acked"]
    stages = trigger.stages_ms()
    assert stages["sum_ms"] == pytest.approx(sum(ms for name, ms in stages.items() if name != "sum_ms"), abs=1e-3)


@pytest.mark.safety("F3")
def test_status_says_in_words_what_was_refused_and_what_is_late():
    t = Telemetry(100, 50)
    t.see_cycles([cycle(S, S, S - 130 * MS)], S)
    daemon = {
        "session": "x",
        "recording_bytes": 0,
        "realtime": {"loop": {"malloc": "refused: no mallopt in this C library", "cpus": "got [0]"}},
        "late": t.late(S),
        "latency": t.summary(),
        "last_trigger": None,
    }
    guard_says = {"state": "ARMED", "automatic": True, "reason": "armed", "reasons": [], "loop": "alive", "data_ok": True}
    guard_says |= {"pulses": 0, "charge_uc": 0.0, "on_time_s": 8.5}  # since guard was started, or not: what it says of the session counts
    given = {"on_ns": 8_500_000_000, "charge_nc": 4_250_000, "pulses": 425}
    text = describe(guard_says | {"dose": {"session": given}, "daemon": daemon})
    assert "this session: 8.5 s of stimulation, 425 pulses, 4.25 mC" in text
    assert "loop malloc refused: no mallopt" in text
    assert "got [0]" not in text
    assert "late: sample age 130 ms, budget 100 ms: automatic stimulation is refused" in text
    assert "loop: sample age p50" in text
    assert "guard:" not in text
