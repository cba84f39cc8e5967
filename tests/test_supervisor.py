"""The supervisor, judged by rules written again here: what leaves must be inside them whatever comes in."""

import copy
import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.limits import HARD, MAX_TRIGGER_AGE_NS, MINUTE, MS, S
from controller.supervisor import (
    ACK_TIMEOUT_NS,
    LEASE_NS,
    Cause,
    Event,
    Kind,
    Output,
    SafetyState,
    Supervisor,
)
from tests.bed import RX, TRAIN, Bed


def test_a_train_is_what_was_prescribed():
    bed = Bed().armed()
    start = bed.now
    assert bed.request().delivered
    bed.run(S)
    assert [round((t - start) / MS) for t, _ in bed.pulses] == list(range(0, 500, 20))
    currents = [c for _, c in bed.pulses]
    assert currents[:3] == [8_000, 16_000, 20_000]
    assert set(currents[3:20]) == {20_000}
    assert currents[20:] == [20_000, 16_000, 12_000, 8_000, 4_000]
    assert bed.s.state is SafetyState.ARMED


# --- nothing without arming, and disabling always works ---------------------------------------------------------------------------
@pytest.mark.safety("B1", "B2")
@pytest.mark.parametrize("kind", [k for k in Kind if k is not Kind.ARM])
def test_no_single_event_gives_output_before_arming(kind):
    bed = Bed()
    bed.do(Kind.READY, ok=True, text="box 1")
    verdict = bed.do(kind, ok=True, number=1, event_id=1, current_ua=20_000, duration_us=500_000, issued_ns=bed.now, cause=1, text="x")
    assert not verdict.delivered
    assert verdict.state is not SafetyState.ARMED


@pytest.mark.safety("C1", "E1")
@pytest.mark.parametrize("kind", [Kind.STOP, Kind.DISARM, Kind.DAEMON_LOST, Kind.DEVICE_FAULT])
def test_output_ends_at_once(kind):
    bed = Bed().armed()
    bed.request()
    bed.run(100 * MS)
    n = len(bed.pulses)
    assert bed.do(kind, text="x").output in (Output.STOP, Output.DISARM)
    bed.run(2 * S)
    assert len(bed.pulses) == n
    assert bed.s.state in (SafetyState.IDLE, SafetyState.OFF, SafetyState.FAULT)
    assert not bed.request().delivered
    assert not bed.press().delivered


def test_stop_works_in_every_state():
    for state in SafetyState:
        bed = Bed().armed()
        if state is SafetyState.STIMULATING:
            bed.request()
        bed.s.state = state
        assert bed.do(Kind.STOP, text="x").output is Output.STOP


def test_fault_latches_until_cleared_with_words():
    bed = Bed().armed()
    bed.do(Kind.DEVICE_FAULT, text="electrode error")
    assert bed.arm().refused
    bed.do(Kind.CLEAR, text=" ")
    assert bed.s.state is SafetyState.FAULT
    bed.do(Kind.CLEAR, text="electrode stuck on again")
    assert bed.s.state is SafetyState.OFF
    bed.do(Kind.READY, ok=True, text="box 1")
    assert bed.s.state is SafetyState.IDLE
    assert not bed.request().delivered


@pytest.mark.safety("B1", "F2")
def test_a_new_loop_is_not_trusted_until_armed_again():
    bed = Bed().armed()
    bed.do(Kind.LOOP_LOST)
    assert not bed.s.automatic
    bed.do(Kind.LOOP_JOINED)
    bed.do(Kind.HEARTBEAT, ok=True)
    assert "automatic mode is off" in bed.request().reasons[0]
    assert bed.press().delivered  # the button works with the loop dead
    bed.run(10 * S)
    bed.arm()
    assert bed.request().delivered


def test_arming_without_data_is_for_the_button_only():
    bed = Bed()
    bed.do(Kind.READY, ok=True, text="box 1")
    bed.arm()
    assert bed.s.state is SafetyState.ARMED
    assert not bed.s.automatic
    assert bed.press().delivered


def test_arming_expires():
    bed = Bed().armed()
    bed.beating = False
    bed.now += 30 * MINUTE
    assert bed.do(Kind.TICK).state is SafetyState.ARMED
    bed.now += 2
    verdict = bed.do(Kind.TICK)
    assert (verdict.state, verdict.output) == (SafetyState.IDLE, Output.DISARM)


def test_a_stimulator_that_arms_itself_is_stopped():
    bed = Bed()
    bed.do(Kind.READY, ok=True, text="box 1")
    verdict = bed.do(Kind.ARMED)
    assert verdict.output is Output.STOP
    assert verdict.state is SafetyState.IDLE


# --- the lease, age, order --------------------------------------------------------------------------------------------------------
@pytest.mark.safety("E4", "F1")
def test_a_silent_loop_ends_the_train_within_the_lease():
    bed = Bed().armed()
    bed.request()
    bed.run(60 * MS)
    silent = bed.now
    bed.beating = False
    bed.run(S)
    assert bed.pulses[-1][0] - silent <= LEASE_NS
    assert bed.s.state is SafetyState.ARMED


@pytest.mark.safety("E4")
def test_heartbeats_that_waited_in_the_socket_prove_nothing():
    bed = Bed().armed()
    bed.request()
    bed.run(60 * MS)
    n = len(bed.pulses)
    old = bed.now
    bed.beating = False
    bed.now += LEASE_NS + 1
    bed.do(Kind.HEARTBEAT, ok=True, issued_ns=old)
    bed.run(S)
    assert len(bed.pulses) == n
    assert not bed.request().delivered


def test_no_data_ends_the_train_at_once():
    bed = Bed().armed()
    bed.request()
    bed.run(60 * MS)
    n = len(bed.pulses)
    bed.do(Kind.HEARTBEAT, ok=False)
    bed.beating = False
    bed.run(S)
    assert len(bed.pulses) == n


def test_a_silent_loop_does_not_end_a_persons_train():
    bed = Bed().armed()
    bed.press()
    bed.beating = False
    bed.run(S)
    assert len(bed.pulses) == 25


@pytest.mark.parametrize(("age_ns", "leaves"), [(0, True), (MAX_TRIGGER_AGE_NS, True), (MAX_TRIGGER_AGE_NS + 1, False), (-1, False)])
def test_a_persons_old_triggers_are_dropped(age_ns, leaves):
    bed = Bed().armed()
    assert bed.press(issued_ns=bed.now - age_ns).delivered is leaves


@pytest.mark.safety("C7")
@pytest.mark.parametrize(
    ("age_ns", "why"), [(0, ""), (50 * MS, ""), (50 * MS + 1, "51 ms late (at most 50)"), (-1, "late"), (S, "1000 ms late")]
)
def test_requests_that_come_late_are_dropped(age_ns, why):
    bed = Bed().armed()
    verdict = bed.request(issued_ns=bed.now - age_ns)
    assert verdict.delivered is not bool(why)
    assert why in verdict.reasons[0]


@pytest.mark.safety("C7")
@pytest.mark.parametrize(
    ("age_ns", "why"), [(100 * MS, ""), (100 * MS + 1, "deciding sample is 101 ms old (at most 100)"), (-251 * MS, "deciding sample")]
)
def test_stale_samples_never_stimulate(age_ns, why):
    bed = Bed().armed()
    verdict = bed.request(sample_ns=bed.now - age_ns)
    assert verdict.delivered is not bool(why)
    assert why in verdict.reasons[0]


def test_data_that_turn_stale_end_the_train_and_are_told_once():
    bed = Bed().armed()
    bed.request()
    bed.run(60 * MS)
    n = len(bed.pulses)
    words = "data stale: newest sample is 101 ms old (at most 100)"
    verdict = bed.do(Kind.HEARTBEAT, ok=True, sample_ns=bed.now - 100 * MS - 1)
    assert verdict.reasons == (words,)
    assert bed.s.state is SafetyState.ARMED
    assert bed.s.stale == words
    assert not bed.s.data_ok
    verdict = bed.do(Kind.HEARTBEAT, ok=True, sample_ns=bed.now - 200 * MS)
    assert verdict.reasons == ()
    assert "newest sample is 200 ms old" in bed.s.stale
    assert bed.do(Kind.HEARTBEAT, ok=True, sample_ns=0).reasons == ()  # no stamp does not make it fresh
    bed.skip(4 * S)
    bed.do(Kind.HEARTBEAT, ok=True, sample_ns=bed.now - 150 * MS)
    assert "data stale: newest sample is 150 ms old (at most 100)" in bed.request().reasons[0]
    assert bed.do(Kind.HEARTBEAT, ok=True).reasons == ("data fresh again",)
    assert bed.do(Kind.HEARTBEAT, ok=True).reasons == ()
    assert len(bed.pulses) == n
    assert bed.request().delivered


def test_age_counts_at_the_time_of_the_heartbeat_not_when_guard_hears_it():
    bed = Bed().armed()
    sample = bed.now
    bed.now += 150 * MS
    bed.do(Kind.HEARTBEAT, ok=True, issued_ns=sample + 100 * MS, sample_ns=sample)
    assert bed.s.data_ok
    bed.do(Kind.HEARTBEAT, ok=True, issued_ns=sample + 101 * MS, sample_ns=sample)
    assert not bed.s.data_ok


@pytest.mark.parametrize("sample_ns", [0, -1, 1, 10**30])
def test_a_heartbeat_without_a_believable_stamp_has_no_data(sample_ns):
    bed = Bed().armed()
    assert not bed.do(Kind.HEARTBEAT, ok=True, sample_ns=sample_ns).delivered
    assert not bed.s.data_ok
    assert not bed.request().delivered


def test_a_new_loop_begins_without_the_old_ones_stale_data():
    for how in (Kind.LOOP_LOST, Kind.LOOP_JOINED):
        bed = Bed().armed()
        bed.do(Kind.HEARTBEAT, ok=True, sample_ns=bed.now - S)
        bed.do(how)
        assert not bed.s.stale
        assert not bed.s.data_ok


@pytest.mark.safety("E2")
def test_a_request_counts_once():
    bed = Bed().armed()
    assert bed.request().delivered
    bed.run(10 * S)
    assert not bed.request(number=1, event_id=9).delivered


# --- limits: refused, never clipped -----------------------------------------------------------------------------------------------
@pytest.mark.safety("A1", "A8", "A12")
@pytest.mark.parametrize(
    "wrong",
    [
        {"current_ua": 20_500},
        {"current_ua": 0},
        {"current_ua": -500},
        {"current_ua": 300},
        {"current_ua": 10**30},
        {"duration_us": 500_001},
        {"duration_us": 0},
        {"duration_us": -1},
        {"train": 1},
        {"train": -1},
        {"cause": 0},
        {"cause": Cause.MANUAL},
        {"event_id": 0},
        {"number": 0},
    ],
)
def test_requests_outside_the_prescription_are_refused(wrong):
    bed = Bed().armed()
    verdict = bed.request(**wrong)
    assert not verdict.delivered
    assert verdict.reasons
    bed.run(S)
    assert bed.pulses == []


# --- the dose ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A9", "C5", "C6")
def test_refractory_time_counts_for_loop_and_person_alike():
    for first, second in itertools.product(("request", "press"), repeat=2):
        bed = Bed().armed()
        assert getattr(bed, first)().delivered
        bed.run(500 * MS + 2_990 * MS)
        assert not getattr(bed, second)().delivered
        bed.run(20 * MS)
        assert getattr(bed, second)().delivered


@pytest.mark.safety("A9")
def test_an_event_goes_on_after_a_look_and_ends_at_its_limit():
    bed = Bed().armed()
    for _ in range(20):  # 20 trains of 0.5 s are 10 s
        assert bed.request(event_id=1).delivered
        bed.run(501 * MS)
        assert bed.request(event_id=1).refused  # no look yet
        bed.run(120 * MS)
    assert "event would pass 10 s" in bed.request(event_id=1).reasons[0]
    assert "refractory" in bed.request(event_id=2).reasons[0]
    bed.run(3 * S)
    assert bed.request(event_id=2).delivered


@pytest.mark.safety("C6")
def test_press_during_a_train_changes_nothing():
    bed = Bed().armed()
    bed.request()
    bed.run(100 * MS)
    assert bed.press().refused == -1
    bed.run(S)
    assert len(bed.pulses) == 25


@pytest.mark.safety("A9")
def test_sixty_automatic_events_an_hour_then_a_person():
    bed = Bed(replace(RX, max_events_10min=30, max_auto_events_1h=5)).armed()
    for _ in range(5):
        assert bed.request().delivered
        bed.run(30 * S)
    assert not bed.request().delivered
    assert bed.s.state is SafetyState.LOCKOUT
    bed.arm()
    assert bed.request().delivered


@pytest.mark.safety("A3", "A8")
def test_missed_slots_are_not_made_up_for():
    bed = Bed().armed()
    bed.request()
    bed.now += 130 * MS  # guard was held up
    bed.do(Kind.HEARTBEAT, ok=True)
    bed.run(S)
    times = [t for t, _ in bed.pulses]
    assert min(b - a for a, b in itertools.pairwise(times)) >= 10 * MS
    assert len(times) < 25
    assert times[-1] - times[0] <= 480 * MS


@pytest.mark.safety("E1")
def test_a_lost_acknowledgement_is_a_fault_and_counts():
    bed = Bed().armed()
    bed.acking = False
    bed.request()
    assert bed.s.pulses_total == 1
    bed.run(ACK_TIMEOUT_NS + 2 * MS)
    assert bed.s.state is SafetyState.FAULT
    assert len(bed.pulses) == 1


@pytest.mark.safety("A3", "E5")
def test_a_late_acknowledgement_withholds_the_next_pulse():
    bed = Bed().armed()
    bed.acking = False
    bed.request()
    bed.run(25 * MS)
    assert len(bed.pulses) == 1
    bed.do(Kind.ACK)
    bed.acking = True
    bed.run(S)
    times = [t for t, _ in bed.pulses]
    assert times[1] - times[0] == 40 * MS


@pytest.mark.safety("E5", "E2")
def test_no_train_begins_while_a_pulse_is_not_answered():
    bed = Bed(replace(RX, look_ns=100 * MS)).armed()
    bed.acking = False
    bed.request()
    bed.do(Kind.LOOP_LOST)
    bed.now += 50 * MS
    assert "the last pulse is not acknowledged yet [E5]" in bed.press().reasons[0]
    bed.do(Kind.ACK)
    bed.now += 4 * S
    assert bed.press().delivered


@pytest.mark.safety("E1")
def test_a_late_answer_is_as_good_as_none():
    bed = Bed().armed()
    bed.acking = False
    bed.request()
    bed.now += ACK_TIMEOUT_NS + 1
    assert bed.do(Kind.ACK).output is Output.STOP
    assert bed.s.state is SafetyState.FAULT


def test_a_trigger_at_the_very_moment_arming_expires_is_refused():
    for how in ("request", "press"):
        bed = Bed().armed()
        bed.now += 30 * MINUTE + 1
        bed.s.heartbeat_ns = bed.now
        verdict = getattr(bed, how)()
        assert verdict.refused
        assert verdict.output is Output.DISARM


def test_a_new_loop_continues_nobodys_event():
    bed = Bed().armed()
    bed.request(event_id=1)
    bed.run(501 * MS)
    bed.do(Kind.LOOP_LOST)
    bed.do(Kind.LOOP_JOINED)
    bed.do(Kind.HEARTBEAT, ok=True)
    bed.arm()
    bed.run(125 * MS)
    assert "refractory" in bed.request(event_id=1).reasons[0]


def test_an_event_cannot_be_taken_up_again_long_after_its_look():
    bed = Bed(replace(RX, refractory_ns=60 * S)).armed()
    bed.request(event_id=1)
    bed.run(5 * S)
    assert "refractory" in bed.request(event_id=1).reasons[0]


@pytest.mark.safety("C6")
def test_a_loop_that_is_not_armed_cannot_lock_the_button_out():
    bed = Bed(replace(RX, max_auto_events_1h=0))
    bed.do(Kind.READY, ok=True, text="box 1")
    bed.arm(automatic=False)
    bed.request()
    assert bed.s.state is SafetyState.ARMED
    assert bed.press().delivered


def test_disarm_takes_an_arming_under_way_back():
    bed = Bed()
    bed.do(Kind.READY, ok=True, text="box 1")
    bed.s.step(Event(Kind.ARM, bed.now))
    bed.do(Kind.DISARM)
    verdict = bed.do(Kind.ARMED)
    assert (verdict.output, verdict.state) == (Output.STOP, SafetyState.IDLE)


@pytest.mark.safety("A9")
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 20, 500, 1000, 2500, 6000, 20_000, 60_000, 301_000]),
            st.sampled_from([20, 100, 480, 500]),
            st.sampled_from([10, 40, 600]),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_the_dose_is_counted_as_one_would_by_hand(steps):
    rx = replace(RX, refractory_ns=S, max_on_time_60s_ns=2 * S, max_duty_5min_ns=3 * S, max_events_10min=6, max_auto_events_1h=8)
    bed, trains, events = Bed(rx).armed(), [], []

    def on_time(since):
        return sum(max(0, end - max(start, since)) for start, end in trains)

    for wait, duration_ms, cut_ms, by_person in steps:
        bed.now += wait * MS
        bed.do(Kind.HEARTBEAT, ok=True)
        bed.arm()  # a person is there: the count of automatic events begins anew
        now, duration = bed.now, duration_ms * MS
        expected = {
            "2 s of stimulation in 60 s": on_time(now + duration - MINUTE) + duration > 2 * S,
            "3 s of stimulation in 5 min": on_time(now + duration - 5 * MINUTE) + duration > 3 * S,
            "6 events in 10 min": sum(start > now - 10 * MINUTE for start in events) >= 6,
            "refractory": bool(trains) and now - trains[-1][1] < S,
        }
        verdict = bed.press(duration_us=duration // 1000) if by_person else bed.request(duration_us=duration // 1000)
        assert verdict.delivered is not any(expected.values())
        assert {words for words in expected if any(words in reason for reason in verdict.reasons)} == {w for w in expected if expected[w]}
        if verdict.delivered:
            bed.run(cut_ms * MS)
            if cut_ms < duration_ms:  # disarmed half-way: only what was given counts
                bed.do(Kind.DISARM)
            events.append(now)
            trains.append((now, min(bed.now, now + duration)))
    assert bed.s.on_time_total_ns == on_time(0)


# --- whatever comes in ------------------------------------------------------------------------------------------------------------
EVENTS = st.builds(
    dict,
    kind=st.sampled_from([*Kind, *[Kind.REQUEST, Kind.TRIGGER, Kind.HEARTBEAT, Kind.TICK, Kind.ACK] * 3, Kind.ARM, Kind.READY]),
    wait=st.sampled_from([0, 1, 5, 20, 100, 121, 500, 3000, 30_000]),
    age=st.sampled_from([0, 0, 1, 50, 51, 100, 101, 250, 251, -5]),
    number=st.one_of(st.none(), st.integers(-5, 500)),
    event_id=st.integers(-1, 4),
    train=st.integers(-1, 2),
    current_ua=st.sampled_from([20_000, 20_000, 500, 20_500, 60_000, -500, 0, 10**12]),
    duration_us=st.sampled_from([500_000, 500_000, 20_000, 1, 0, 2_000_000, -7]),
    cause=st.sampled_from([1, 1, 2, 3, 0, 9]),
    ok=st.booleans(),
    text=st.sampled_from(["", "x"]),
)


@pytest.mark.safety("A1", "A3", "B1", "C7")
@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=120))
def test_nothing_outside_the_rules_ever_leaves(steps):
    s, now = Supervisor(RX), 1000 * S
    pulses, trains, armed = [], [], False
    for number, step in enumerate(steps, 1):
        now += step["wait"] * MS
        event = Event(
            step["kind"],
            now,
            issued_ns=now - step["age"] * MS,
            sample_ns=now - step["age"] * MS,
            number=number if step["number"] is None else step["number"],
            event_id=step["event_id"],
            train=step["train"],
            current_ua=step["current_ua"],
            duration_us=step["duration_us"],
            cause=step["cause"],
            ok=step["ok"],
            text=step["text"],
        )
        before = copy.copy(s)
        verdict = s.step(event)
        assert copy.copy(before).step(event) == verdict  # pure: the same state and event, the same verdict
        if verdict.output is Output.ARM:
            verdict = s.step(Event(Kind.ARMED, now))
            armed = True
        if event.kind in (Kind.STOP, Kind.DISARM, Kind.DAEMON_LOST, Kind.DEVICE_FAULT):
            armed = False
            assert not verdict.delivered
        if verdict.delivered:
            assert armed
            assert verdict.state is SafetyState.STIMULATING
            assert 500 <= verdict.current_ua <= 20_000
            assert verdict.current_ua % 500 == 0
            if pulses:
                assert now - pulses[-1] >= HARD.min_pulse_spacing_ns - TRAIN.pulse_ns
            if event.kind in (Kind.REQUEST, Kind.TRIGGER) and not verdict.refused:
                assert 0 <= step["age"] <= (50 if event.kind is Kind.REQUEST else 250)
                if trains:
                    assert now - pulses[-1] >= 120 * MS
                trains.append(now)
            pulses.append(now)
        assert verdict.output is not Output.PULSE or verdict.delivered
    for start in pulses:
        on_time = sum(TRAIN.period_ns for t in pulses if start <= t < start + MINUTE)
        assert on_time <= 20 * S + TRAIN.period_ns
    assert s.pulses_total == len(pulses)
