"""The dose: what was given counts in every window, whoever asked for it, and over a restart; what is felt rises softly."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.limits import HARD, MINUTE, MS, S
from controller.supervisor import Dose, Kind, Output, SafetyState, Supervisor
from tests.bed import NO_HISTORY, RX, TRAIN, Bed

FLAT = replace(TRAIN, ramp_up_us=0, taper_us=0)
FREE = replace(RX, trains=(FLAT,), max_on_time_60s_ns=20 * S, max_duty_5min_ns=75 * S, refractory_ns=S)
PULSE_NC = 10_000


def given_train(bed, by_person=True):
    """A whole train, four seconds before the next may come."""
    verdict = bed.press() if by_person else bed.request()
    bed.run(4 * S)
    return verdict


# --- session and 24 h -------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A10")
@pytest.mark.parametrize(
    ("name", "limit", "n_trains", "words"),
    [
        (
            "max_on_time_session_ns",
            3 * 500 * MS,
            3,
            "dose: 0 min of stimulation in this session; a person must arm again [A10, prescription]",
        ),
        ("max_on_time_session_ns", 3 * 500 * MS - 1, 2, "min of stimulation in this session"),
        ("max_on_time_24h_ns", 3 * 500 * MS, 3, "dose: 0 min of stimulation in 24 h; a person must arm again [A10, prescription]"),
        ("max_pulses_session", 75, 3, "dose: 75 pulses in this session; a person must arm again [A10, prescription]"),
        ("max_pulses_session", 74, 2, "dose: 74 pulses in this session"),
        ("max_pulses_24h", 75, 3, "dose: 75 pulses in 24 h; a person must arm again [A10, prescription]"),
        ("max_charge_session_nc", 75 * PULSE_NC, 3, "dose: 0 mC in this session; a person must arm again [A10, prescription]"),
        ("max_charge_session_nc", 75 * PULSE_NC - 1, 2, "mC in this session"),
        ("max_charge_24h_nc", 75 * PULSE_NC, 3, "dose: 0 mC in 24 h; a person must arm again [A10, prescription]"),
    ],
)
def test_a_full_dose_locks_out_by_name_whoever_asks(name, limit, n_trains, words):
    for by_person in (True, False):
        bed = Bed(replace(FREE, **{name: limit})).armed()
        for _ in range(n_trains):
            assert given_train(bed, by_person).delivered
        verdict = given_train(bed, by_person)
        assert (verdict.delivered, verdict.state, verdict.output, verdict.automatic) == (False, SafetyState.LOCKOUT, Output.DISARM, False)
        assert words in verdict.reasons[0]
        assert verdict.reasons[1] == bed.s.reason == bed.s.lockout
        assert words in bed.s.lockout
        # nobody arms a bed in which no train has room
        refused = bed.arm()
        assert refused.refused == -1
        assert words in refused.reasons[0]
        for kind in (Kind.STOP, Kind.DISARM):
            assert bed.do(kind, text="x").state is SafetyState.LOCKOUT
        bed.do(Kind.DEVICE_FAULT, text="port lost")
        bed.do(Kind.CLEAR, text="cable")
        assert bed.do(Kind.READY, ok=True, text="box 1").state is SafetyState.LOCKOUT


@pytest.mark.safety("A10")
def test_the_figures_of_a_full_dose_in_words():
    bed = Bed(FREE).armed()
    bed.s.prescription = replace(FREE, max_on_time_session_ns=15 * MINUTE, max_charge_24h_nc=450_000_000, max_pulses_24h=9)
    bed.s.__post_init__()
    bed.s.session = Dose(15 * MINUTE, 0, 0)
    bed.s.minutes = ((bed.now, Dose(0, 449_999_999, 0)),)
    bed.s.day = Dose(0, 449_999_999, 0)
    reasons = bed.press().reasons[0]
    assert "dose: 15 min of stimulation in this session; a person must arm again [A10, prescription]" in reasons
    assert "dose: 450 mC in 24 h; a person must arm again [A10, prescription]" in reasons
    assert "dose: 9 pulses in 24 h; a person must arm again [A10, prescription]" in reasons
    hard = Bed(replace(RX, max_on_time_session_ns=HARD.max_on_time_session_ns)).armed()
    hard.s.session = Dose(HARD.max_on_time_session_ns, 0, 0)
    assert "dose: 30 min of stimulation in this session; a person must arm again [A10, hard limit]" in hard.press().reasons[0]


@pytest.mark.safety("A10")
def test_a_smaller_train_may_still_have_room_and_then_it_can_be_armed():
    small = replace(FLAT, name="small", duration_us=100_000)
    bed = Bed(replace(FREE, trains=(FLAT, small), max_pulses_session=30)).armed()
    assert given_train(bed).delivered
    assert given_train(bed).state is SafetyState.LOCKOUT
    bed.beating = True
    bed.do(Kind.HEARTBEAT, ok=True)
    assert not bed.arm().refused
    assert bed.s.lockout == ""
    assert bed.request(train=1, duration_us=100_000).delivered


@pytest.mark.safety("A10")
def test_the_dose_of_a_day_leaves_its_window_no_sooner_than_a_day_later():
    bed = Bed(replace(FREE, max_pulses_24h=50)).armed()
    bed.now = 7 * MINUTE
    first = bed.now
    bed.do(Kind.HEARTBEAT, ok=True)
    bed.arm()
    bed.s.first_ns = (1,)
    assert bed.press().delivered
    bed.run(500 * MS + 10 * MS)
    ended = first + 500 * MS
    assert bed.s.minutes == ((ended, Dose(500 * MS, 25 * PULSE_NC, 25)),)
    bed.run(20 * S)
    assert given_train(bed).delivered
    assert bed.s.minutes == ((ended, Dose(1000 * MS, 50 * PULSE_NC, 50)),)  # within a minute of it
    for at_ns, free in ((24 * 60 * MINUTE, False), (24 * 60 * MINUTE + MINUTE - 1, False), (24 * 60 * MINUTE + MINUTE, True)):
        bed.now = ended + at_ns
        assert (bed.s._exhausted(bed.now) == "") is free
    bed.do(Kind.STOP)
    bed.now += 1
    bed.arm(automatic=False)
    assert bed.press().delivered
    bed.beating = False
    bed.run(S)
    assert [dose.pulses for _, dose in bed.s.minutes] == [len(bed.pulses) - 50]
    assert bed.s.day == bed.s.minutes[0][1]


@pytest.mark.safety("A10")
def test_minutes_are_kept_apart_from_the_sixtieth_second_on():
    bed = Bed(FREE).armed()
    bed.s.minutes = ((bed.now - MINUTE + 480 * MS + 20 * MS + 1, Dose(1, 2, 3)),)
    bed.press()
    bed.run(510 * MS)
    assert len(bed.s.minutes) == 1
    bed.s.minutes, bed.s.day = ((bed.now - MINUTE, Dose(1, 2, 3)),), Dose(1, 2, 3)
    bed.s._add_to_day(Dose(1, 1, 1), bed.now)
    assert bed.s.minutes == ((bed.now - MINUTE, Dose(1, 2, 3)), (bed.now, Dose(1, 1, 1)))
    assert bed.s.day == Dose(2, 3, 4)


@pytest.mark.safety("A9", "A10", "E2")
def test_a_train_that_was_cut_counts_as_far_as_it_went_and_is_told_for_the_journal():
    bed = Bed(FREE).armed()
    start = bed.now
    bed.request(event_id=5)
    bed.run(210 * MS)
    verdict = bed.do(Kind.STOP, text="x")
    assert verdict.ended == 1
    assert bed.s.last_train == (start, start + 210 * MS, 11, 11 * PULSE_NC, 5, 1, True, True)
    assert bed.s.session == bed.s.day == Dose(210 * MS, 11 * PULSE_NC, 11)
    assert (bed.s.pulses_total, bed.s.charge_total_nc, bed.s.on_time_total_ns) == (11, 11 * PULSE_NC, 210 * MS)
    bed.now += 4 * S
    bed.do(Kind.HEARTBEAT, ok=True)
    bed.arm(automatic=False)
    bed.press()
    bed.run(501 * MS)
    assert bed.s.last_train[5:] == (3, True, False)
    assert bed.s.session.pulses == bed.s.pulses_total


@pytest.mark.safety("A10")
def test_a_charge_that_is_no_whole_nc_counts_as_the_next():
    odd = replace(FLAT, phase_width_us=333)  # 20 mA x 333 us = 6660 nC, at 500 uA 166.5
    bed = Bed(replace(FREE, trains=(odd,))).armed(soft=True)
    bed.press()
    bed.run(510 * MS)
    exact = [ua * 333 / 1000 for _, ua in bed.pulses]
    assert any(nc != int(nc) for nc in exact)
    assert bed.s.session.charge_nc == sum(math.ceil(nc) for nc in exact)
    small = replace(odd, current_ua=500)
    for already_nc, leaves in ((0, True), (1, False)):
        bed = Bed(replace(FREE, trains=(small,), max_charge_session_nc=25 * 167)).armed()
        bed.s.session = Dose(0, already_nc, 0)
        assert bed.press(current_ua=500).delivered is leaves


def test_trains_of_one_spasm_are_one_event_in_the_journal():
    bed = Bed(FREE).armed()
    for new in (True, False, False):
        assert bed.request(event_id=1).delivered
        bed.run(501 * MS)
        assert bed.s.last_train.new_event is new
        bed.run(121 * MS)


# --- restored over a restart ------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A10", "F8", "B1")
def test_a_restart_restores_dose_and_lockout_and_is_never_armed():
    s = Supervisor(RX)
    history = {
        "trains": [[-10 * S, -9 * S], [1, S]],
        "minutes": [[0, S, 1000, 10], [-MINUTE, 5 * S, 7000, 50]],
        "session": [6 * S, 8000, 60],
        "events": [5, -7],
        "auto_events": [-7],
        "lockout": "dose: full",
    }
    s.remember(history)
    assert s.trains == ((-10 * S, -9 * S, 0), (1, S, S))
    assert (s.on_time_total_ns, s.event_end_ns, s.last_done_ns) == (2 * S - 1, S, S)
    assert s.minutes == ((-MINUTE, Dose(5 * S, 7000, 50)), (0, Dose(S, 1000, 10)))
    assert (s.day, s.session) == (Dose(6 * S, 8000, 60), Dose(6 * S, 8000, 60))
    assert (s.events, s.auto_events, s.lockout) == ((-7, 5), (-7,), "dose: full")
    assert s.state is SafetyState.OFF
    bed = Bed()
    bed.s = s
    verdict = bed.do(Kind.READY, ok=True, text="box 1")
    assert (verdict.state, verdict.automatic, verdict.output, verdict.reasons) == (SafetyState.LOCKOUT, False, Output.NONE, ("dose: full",))


@pytest.mark.safety("A10", "F8", "A12")
@pytest.mark.parametrize(
    "changes",
    [
        {"trains": None},
        {"trains": [[1]]},
        {"trains": [[1, 2, 3]]},
        {"trains": [[1, 2.5]]},
        {"trains": [[True, 2]]},
        {"minutes": [[1, 2, 3]]},
        {"minutes": [[1, 2, 3, "4"]]},
        {"session": [1, 2]},
        {"session": None},
        {"session": [1, 2, float("nan")]},
        {"events": ["x"]},
        {"events": 5},
        {"auto_events": [None]},
    ],
)
def test_an_unreadable_history_is_no_dose_of_zero(changes):
    with pytest.raises(ValueError, match=r"the dose history cannot be read: \w+Error: .* \[A10, F8\]"):
        Supervisor(RX).remember(NO_HISTORY | changes)


@pytest.mark.safety("A10", "F8")
@pytest.mark.parametrize("name", NO_HISTORY)
def test_a_history_in_which_something_is_missing_is_refused(name):
    with pytest.raises(ValueError, match=f"KeyError: '{name}'"):
        Supervisor(RX).remember({key: value for key, value in NO_HISTORY.items() if key != name})


def test_an_empty_history_changes_nothing():
    s = Supervisor(RX)
    s.remember(NO_HISTORY)
    assert s == Supervisor(RX)


@pytest.mark.safety("A9", "A3", "F8")
def test_refractory_time_and_windows_go_on_over_a_restart():
    """The same supervisor, and one that was killed and took its history over, refuse the same."""
    old = Bed(replace(FREE, max_on_time_60s_ns=2 * S, max_events_10min=6)).armed()
    for _ in range(3):
        assert given_train(old).delivered
    history = {
        "trains": [[start, end] for start, end, _ in old.s.trains],
        "minutes": [[start, *dose] for start, dose in old.s.minutes],
        "session": list(old.s.session),
        "events": list(old.s.events),
        "auto_events": [],
        "lockout": "",
    }
    new = Bed(old.s.prescription)
    new.s.remember(history)
    new.now = old.now
    new.armed()
    for _ in range(8):
        words_old, words_new = old.press().reasons, new.press().reasons
        assert words_old == words_new
        old.run(3 * S)
        new.run(3 * S)
        assert old.now == new.now


# --- sliding windows --------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A9")
def test_a_burst_over_the_edge_of_the_window_counts_with_the_part_inside():
    """The hole that executing the narratives of the Open PCA pump found in its own rule: a dose that straddles the edge."""
    rx = replace(FREE, max_on_time_60s_ns=S)
    for wait_ns, leaves in ((58 * S, False), (60 * S - 1, False), (60 * S, True)):
        bed = Bed(rx).armed()
        start = bed.now
        bed.press()
        bed.run(501 * MS)
        bed.skip(10 * S)
        bed.press()
        bed.run(501 * MS)
        bed.now = start + wait_ns  # this train would end half a second later: how much of the first is then in the window?
        assert bed.press().delivered is leaves


@pytest.mark.safety("A9", "A3")
def test_rests_count_from_the_last_pulse_that_the_box_has_confirmed_if_that_is_later():
    """Found by `bench.faults`: a frozen box plays the last pulse late."""
    for event_id, rest_ns, words in ((1, 120 * MS, "look of 120 ms not over"), (2, S, "refractory: 999 of 1000 ms")):
        bed = Bed(replace(FREE, refractory_ns=S)).armed()
        bed.request(event_id=1)
        bed.run(470 * MS)
        bed.acking = False
        bed.run(31 * MS)
        assert bed.s.state is SafetyState.ARMED
        bed.now += 60 * MS
        bed.do(Kind.ACK)
        done = bed.now
        bed.skip(rest_ns - 1)
        assert bed.now == done + rest_ns - 1
        assert words in bed.request(event_id=event_id).reasons[0]
        bed.now += 1
        bed.do(Kind.HEARTBEAT, ok=True)
        assert bed.request(event_id=event_id).delivered


@pytest.mark.safety("A9")
def test_the_windows_in_words():
    bed = Bed(replace(FREE, max_on_time_60s_ns=S - 1, max_duty_5min_ns=S - 1, max_events_10min=1)).armed()
    given_train(bed)
    assert bed.press().reasons[0] == (
        "refused: dose: 1 events in 10 min [A9, prescription]; dose: 0 s of stimulation in 60 s [A9, prescription]; "
        "dose: 0 s of stimulation in 5 min [A9, prescription]"
    )


def test_starts_of_events_are_kept_within_bounds_and_none_of_the_last_hour_is_lost():
    bed = Bed(replace(FREE, max_on_time_60s_ns=S)).armed()
    hour = bed.now - 60 * MINUTE
    bed.s.events = bed.s.auto_events = (*range(hour - 509, hour + 2),)  # 511, the last of them within the hour
    bed.request()
    assert len(bed.s.events) == len(bed.s.auto_events) == 512
    bed.run(4 * S)
    bed.s.events = tuple(start + 4 * S for start in bed.s.events[:-1]) + bed.s.events[-1:]
    assert bed.request().delivered
    assert bed.s.events == (hour + 1 + 4 * S, bed.now - 4 * S, bed.now)
    assert len(bed.s.auto_events) == 2


# --- the soft start ---------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A11")
def test_the_first_trains_after_arming_rise_by_a_fifth_a_second():
    bed = Bed(FREE).armed(soft=True)
    bed.request(event_id=1)
    start = bed.now
    for _ in range(12):
        bed.run(501 * MS)
        bed.run(121 * MS)
        bed.request(event_id=1)
    assert bed.pulses[0] == (start, 500)
    for at_ns, current_ua in bed.pulses:
        assert current_ua == max(500, min(20_000, 20_000 * (at_ns - start) // (5 * S) // 500 * 500))
    assert bed.pulses[-1][1] == 20_000
    bed.run(15 * S)
    assert bed.press().current_ua == 20_000  # once it has risen it stays so, until somebody arms again
    bed.run(4 * S)
    bed.arm()
    assert bed.press().current_ua == 500


@pytest.mark.safety("A11")
def test_each_train_rises_for_itself():
    other = replace(FLAT, name="other", channel=2)
    bed = Bed(replace(FREE, trains=(FLAT, other))).armed()
    bed.s.first_ns = (bed.now - 5 * S, 0)
    assert bed.request(train=1).current_ua == 500
    bed.run(4 * S)
    assert bed.request(train=0).current_ua == 20_000
    bed.run(4 * S)
    assert bed.s.first_ns[0] < bed.s.first_ns[1]


@pytest.mark.safety("A11")
def test_a_train_may_be_only_a_little_stronger_than_the_last_of_its_name():
    bed = Bed(replace(FREE, trains=(FLAT, replace(FLAT, name="b")))).armed()
    for current_ua, leaves in ((5_000, True), (6_000, False), (5_500, True), (20_000, False), (1_000, True), (2_000, False), (1_500, True)):
        verdict = bed.request(current_ua=current_ua)
        assert verdict.delivered is leaves
        bed.run(4 * S)
    assert "current 20000 uA is too far above the last train's 1500 uA [A11, hard limit]" in bed.request().reasons[0]
    assert bed.request(train=1).delivered
    bed.run(4 * S)
    bed.arm()
    assert bed.request().delivered


# --- paradox ----------------------------------------------------------------------------------------------------------------------
def look(bed, level, **changes):
    """A request of the same spasm after a look in which the muscle showed this."""
    verdict = bed.request(event_id=1, level=level, **changes)
    bed.run(501 * MS)
    bed.run(121 * MS)
    return verdict


@pytest.mark.parametrize(
    ("levels", "refused_at"),
    [
        ([0, 1000, 1251, 1564], 3),
        ([0, 1000, 1250, 1600, 2001], 4),  # the first is no rise
        ([0, 1000, 2000, 1500, 2000, 3000], 5),
        ([0, 1000, 2000, 2500], None),
        ([0, 5000, 4000, 3000, 2000], None),
        ([0, 1, 1, 1, 100], None),
        ([0, 1000, 1300, 1, 1, 1], None),
        ([1000, 2000, 4000], None),  # an event's first request has no look before it
    ],
)
def test_a_muscle_that_rises_over_two_looks_running_locks_its_rule_out(levels, refused_at):
    bed = Bed(replace(FREE, trains=(FLAT, replace(FLAT, name="b")))).armed()
    for i, level in enumerate(levels):
        verdict = look(bed, level)
        assert verdict.delivered is (i != refused_at), (i, verdict.reasons)
    if refused_at is None:
        return
    assert verdict.reasons[0].endswith("paradox: a muscle rose over 2 looks; rule 0 or its train is locked out until a person arms")
    bed.run(10 * S)
    assert "paradox" in bed.request(event_id=2).reasons[0]
    assert "paradox" in bed.request(event_id=3, rule=0, train=1).reasons[0]
    assert "paradox" in bed.request(event_id=4, rule=1, train=0).reasons[0]
    assert bed.request(event_id=5, rule=1, train=1).delivered  # another muscle and another nerve are not concerned
    bed.run(10 * S)
    assert bed.press().delivered
    bed.run(10 * S)
    bed.arm()
    assert bed.request(event_id=6).delivered


@pytest.mark.safety("A12")
@pytest.mark.parametrize(
    ("first", "later", "leaves"), [(0, 1, (True, True)), (0, 0, (True, False)), (-1, 1, (False, True)), (0, -1, (True, False))]
)
def test_a_request_says_what_the_look_before_it_showed(first, later, leaves):
    bed = Bed(FREE).armed()
    assert look(bed, first).delivered is leaves[0]
    assert look(bed, later).delivered is leaves[1]
    assert leaves[0] or "level" not in bed.last.reasons


def test_a_request_that_was_refused_for_something_else_is_no_look():
    bed = Bed(FREE).armed()
    look(bed, 0)
    look(bed, 1000)
    look(bed, 2000)
    assert "uA" in look(bed, 4000, current_ua=30_000).reasons[0]
    bed = Bed(FREE).armed()
    look(bed, 0)
    look(bed, 1000)
    for _ in range(3):
        assert not bed.request(event_id=1, level=2000, current_ua=20_250).delivered
    assert bed.s.event_rises == 0
    assert look(bed, 2000).delivered


# --- everything together ----------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A9", "A10")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 900, 2000, 30_000, 290_000, 3_600_000, 40_000_000]), st.integers(1, 500), st.booleans()), max_size=25
    )
)
def test_session_and_day_are_counted_as_one_would_by_hand(steps):
    rx = replace(FREE, max_on_time_session_ns=4 * S, max_on_time_24h_ns=3 * S, max_events_10min=30)
    bed, trains = Bed(rx).armed(), []
    for wait_ms, cut_ms, by_person in steps:
        bed.now += wait_ms * MS
        bed.do(Kind.HEARTBEAT, ok=True)
        bed.arm()
        armed = bed.s.state is SafetyState.ARMED
        bed.s.first_ns = (1,)
        now, duration = bed.now, 500 * MS
        verdict = bed.press() if by_person else bed.request()
        session = sum(end - start for start, end in trains)
        day = sum(end - start for start, end in trains if end > now - 24 * 60 * MINUTE)
        much = sum(end - start for start, end in trains if end > now - (24 * 60 + 1) * MINUTE - MINUTE)
        if verdict.delivered:
            assert armed
            assert session + duration <= 4 * S
            assert day + duration <= 3 * S
            bed.run((501 if cut_ms == 500 else cut_ms) * MS)
            if cut_ms < 500:
                bed.do(Kind.DISARM)
            trains.append((now, min(bed.now, now + duration)))
        elif not trains or now - trains[-1][1] >= S:  # nothing else stands in its way
            assert session + duration > 4 * S or much + duration > 3 * S
        assert bed.s.session.on_ns == sum(end - start for start, end in trains)
