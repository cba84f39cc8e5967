"""States and arming: two steps of a person, a row on the disk, a stimulator that confirms; faults that latch."""

import itertools

import pytest

from controller.limits import MAX_TRIGGER_AGE_NS, MINUTE, MS, S
from controller.supervisor import (
    _ROWS,
    AUDIT_NS,
    FAULTS_NS,
    MAX_REASON_CHARS,
    OFFER_NS,
    PRESENCE_NS,
    RANK,
    TABLE,
    VERY_LATE_NS,
    Event,
    Kind,
    Output,
    SafetyState,
    Supervisor,
    in_order,
)
from tests.bed import RX, Bed


def found(identity="box 1"):
    bed = Bed()
    bed.do(Kind.READY, ok=True, text=identity)
    return bed


# --- the table --------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("B2")
def test_the_table_of_state_and_event_is_total():
    assert set(TABLE) == set(_ROWS) == set(Kind)
    for kind in Kind:
        assert list(TABLE[kind]) == list(SafetyState)
        for state, word in zip(SafetyState, _ROWS[kind].split(), strict=True):
            assert TABLE[kind][state] is getattr(Supervisor, "_" + word)


@pytest.mark.safety("B2", "A12")
def test_every_event_in_every_state_has_its_verdict_and_only_two_lead_to_output():
    """Whatever single event comes: only a request or a press, and only when armed, begins a train."""
    for state, kind in itertools.product(SafetyState, Kind):
        bed = Bed().armed()
        if state is SafetyState.STIMULATING:
            bed.request()
            bed.now += MS
        else:
            bed.s.state = state
        bed.s.offer, bed.s.offer_ns = 7, bed.now
        bed.s.button_ns = bed.s.button_edge_ns = bed.now - S
        event = Event(kind, bed.now, bed.now, bed.now, 100, 100, 0, 20_000, 500_000, 1, True, "box 1", 0, 0)
        verdict = bed.s.step(event)
        began = kind in (Kind.REQUEST, Kind.TRIGGER, Kind.BUTTON) and state is SafetyState.ARMED
        assert verdict.delivered is began, (state, kind)
        ends = verdict.output is Output.STOP or kind in (Kind.LOOP_LOST, Kind.DISARM, Kind.LOOP_JOINED)
        goes_on = state is SafetyState.STIMULATING and not ends
        assert (verdict.state is SafetyState.STIMULATING) is (began or goes_on), (state, kind)
        assert verdict.wake_ns == 0 or verdict.wake_ns > bed.now


@pytest.mark.safety("B1")
def test_it_begins_off_and_silent():
    s = Supervisor(RX)
    assert (s.state, s.automatic, s.reason) == (SafetyState.OFF, False, "no stimulator yet")
    verdict = s.step(Event(Kind.TICK, S))
    assert (verdict.output, verdict.delivered, verdict.reasons, verdict.wake_ns) == (Output.NONE, False, (), 0)


# --- the stimulator ---------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("B1")
def test_a_stimulator_that_is_found_is_not_armed():
    bed = Bed()
    assert bed.do(Kind.READY, text="nothing at that port").state is SafetyState.OFF
    assert bed.s.reason == "nothing at that port"
    verdict = bed.do(Kind.READY, ok=True, text="box 1")
    assert (verdict.state, verdict.output, verdict.reasons) == (SafetyState.IDLE, Output.NONE, ("not armed: box 1 found",))
    assert bed.do(Kind.READY, ok=True, text="box 2").reasons == ()  # nobody asked


@pytest.mark.safety("E6")
def test_another_stimulator_at_the_port_is_a_fault_until_a_person_accepts_it():
    bed = found()
    bed.do(Kind.DEVICE_FAULT, text="port lost")
    bed.do(Kind.CLEAR, text="plugged in again")
    assert bed.do(Kind.READY, ok=True, text="box 1").state is SafetyState.IDLE
    bed.do(Kind.DEVICE_FAULT, text="port lost")
    bed.now += FAULTS_NS + 1
    bed.do(Kind.CLEAR, text="plugged in again")
    verdict = bed.do(Kind.READY, ok=True, text="box 2")
    assert (verdict.state, verdict.output) == (SafetyState.FAULT, Output.STOP)
    assert verdict.reasons == ("fault: another stimulator: box 2, before box 1 [E6]",)
    assert bed.arm().refused
    bed.do(Kind.CLEAR, text="box 1 is in repair")
    assert bed.do(Kind.READY, ok=True, text="box 2").state is SafetyState.IDLE


@pytest.mark.safety("B1")
def test_a_stimulator_that_arms_itself_is_stopped_in_every_state():
    for state in SafetyState:
        bed = Bed().armed()
        if state is SafetyState.STIMULATING:
            bed.request()
        bed.s.state = state
        verdict = bed.do(Kind.ARMED)
        assert verdict.output is Output.STOP
        expected = SafetyState.IDLE if state in (SafetyState.ARMED, SafetyState.STIMULATING) else state
        assert verdict.state is expected
        assert verdict.reasons[-1] == "armed without having been asked: taken back [B1]"
        assert bool(verdict.ended) is (state is SafetyState.STIMULATING)


# --- two steps --------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("B3", "G7")
def test_arming_takes_a_look_a_yes_a_row_on_the_disk_and_the_stimulators_word():
    bed = found()
    bed.do(Kind.LOOP_JOINED)
    bed.do(Kind.HEARTBEAT, ok=True)
    assert bed.do(Kind.AUDITED).output is Output.NONE  # nobody asked
    assert bed.do(Kind.OFFER, number=7) == bed.last._replace(output=Output.NONE, reasons=(), refused=0, state=SafetyState.IDLE)
    fields = {"issued_ns": bed.now, "number": 7, "event_id": RX.number, "ok": True, "text": "Ada"}
    verdict = bed.do(Kind.ARM, **fields)
    assert (verdict.output, verdict.state, verdict.reasons, verdict.refused) == (Output.NONE, SafetyState.IDLE, ("arming: Ada",), 0)
    assert verdict.wake_ns == bed.now + AUDIT_NS + 1
    assert "arming is under way" in bed.press().reasons[0]
    verdict = bed.s.step(Event(Kind.AUDITED, bed.now))
    assert (verdict.output, verdict.state) == (Output.ARM, SafetyState.IDLE)
    assert bed.s.step(Event(Kind.AUDITED, bed.now)).output is Output.NONE  # once
    verdict = bed.s.step(Event(Kind.ARMED, bed.now))
    assert (verdict.state, verdict.automatic, verdict.reasons) == (SafetyState.ARMED, True, ("armed",))
    assert verdict.wake_ns == bed.now + 27 * MINUTE
    assert bed.press().delivered


@pytest.mark.safety("B3")
def test_the_second_step_comes_within_a_minute_of_the_first_and_once():
    bed = found()
    words = "arming takes two steps within 60 s: look at what is offered, then arm [B3]"
    fields = {"issued_ns": bed.now, "event_id": RX.number}
    for number in (0, 7):
        verdict = bed.do(Kind.ARM, number=number, **fields)
        assert (verdict.reasons, verdict.refused, verdict.state) == ((f"refused: {words}",), -1, SafetyState.IDLE)
    bed.do(Kind.OFFER, number=7)
    assert words in bed.do(Kind.ARM, number=8, **fields).reasons[0]
    bed.now += OFFER_NS + 1
    assert words in bed.do(Kind.ARM, number=7, **fields).reasons[0]
    bed.do(Kind.OFFER, number=8)
    bed.now += OFFER_NS
    assert not bed.do(Kind.ARM, number=8, **fields).refused
    assert bed.s.offer == 0
    assert words in bed.do(Kind.ARM, number=8, **fields).reasons[0]


@pytest.mark.safety("B3")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"event_id": RX.number + 1}, "refused: the prescription named is not the one in force [B3]"),
        ({"event_id": 0}, "refused: the prescription named is not the one in force [B3]"),
    ],
)
def test_whoever_arms_names_what_is_armed(changes, words):
    bed = found()
    assert bed.arm(**changes).reasons == (words,)
    assert bed.s.state is SafetyState.IDLE


@pytest.mark.safety("B3")
@pytest.mark.parametrize(("age_ns", "good"), [(0, True), (PRESENCE_NS, True), (PRESENCE_NS + 1, False), (-1, False)])
def test_whoever_arms_was_recognised_in_the_last_five_minutes(age_ns, good):
    bed = found()
    verdict = bed.arm(automatic=False, issued_ns=bed.now - age_ns)
    assert (bed.s.state is SafetyState.ARMED) is good
    assert good or verdict.reasons == ("refused: whoever arms must have proved who they are within 5 min [B3]",)


@pytest.mark.safety("B3", "C3", "G7")
def test_everything_that_forbids_arming_is_named_at_once():
    bed = found()
    bed.do(Kind.BUTTON, ok=True, number=1, issued_ns=bed.now)
    bed.do(Kind.RECORDER, ok=False)
    verdict = bed.do(Kind.ARM)
    for words in (
        "two steps",
        "not the one in force",
        "proved who they are",
        "button is closed: let it go first [C3]",
        "recording does not",
    ):
        assert words in verdict.reasons[0]
    assert "under way" not in verdict.reasons[0]


@pytest.mark.safety("B3")
def test_one_arming_at_a_time():
    bed = found()
    bed.do(Kind.OFFER, number=7)
    fields = {"issued_ns": bed.now, "number": 7, "event_id": RX.number}
    bed.do(Kind.ARM, **fields)
    bed.do(Kind.OFFER, number=7)
    assert bed.do(Kind.ARM, **fields).reasons == ("refused: arming is under way already [B3]",)


@pytest.mark.safety("G7")
def test_what_is_not_on_the_disk_in_time_is_not_armed():
    bed = found()
    bed.do(Kind.OFFER, number=7)
    bed.do(Kind.ARM, issued_ns=bed.now, number=7, event_id=RX.number)
    bed.now += AUDIT_NS
    assert bed.do(Kind.TICK).reasons == ()
    bed.now += 1
    verdict = bed.do(Kind.TICK)
    assert (verdict.reasons, verdict.wake_ns) == (("not armed: the audit did not confirm it [G7]",), 0)
    assert bed.do(Kind.AUDITED).output is Output.NONE
    assert bed.do(Kind.ARMED).output is Output.STOP


@pytest.mark.safety("B3", "C2")
@pytest.mark.parametrize("kind", [Kind.STOP, Kind.DISARM, Kind.DEVICE_FAULT, Kind.DAEMON_LOST])
def test_whatever_disables_takes_an_arming_under_way_back(kind):
    bed = found()
    bed.do(Kind.OFFER, number=7)
    bed.do(Kind.ARM, issued_ns=bed.now, number=7, event_id=RX.number)
    bed.do(kind, text="x")
    assert bed.do(Kind.AUDITED).output is Output.NONE
    assert bed.do(Kind.ARMED).output is Output.STOP
    assert bed.s.state is not SafetyState.ARMED


@pytest.mark.safety("B2", "B3")
@pytest.mark.parametrize("state", [SafetyState.OFF, SafetyState.STIMULATING, SafetyState.FAULT])
@pytest.mark.parametrize("kind", [Kind.OFFER, Kind.ARM])
def test_no_arming_from(state, kind):
    bed = Bed().armed()
    if state is SafetyState.STIMULATING:
        bed.request()
    bed.s.state = state
    verdict = bed.do(kind, number=7)
    assert verdict.refused == -1
    assert verdict.reasons[0] == f"refused: arming is possible from IDLE, not from {state}: {bed.s.reason} [B2]"


def test_arming_anew_while_armed_takes_all_steps_and_counts_as_a_persons_act():
    bed = Bed().armed()
    bed.skip(20 * MINUTE)
    bed.do(Kind.TICK)
    assert bed.arm().refused == 0
    assert bed.s.person_ns == bed.s.armed_ns == bed.now
    assert bed.s.automatic


@pytest.mark.parametrize("what", ["no loop", "no data", "silent"])
def test_arming_without_a_live_loop_is_for_the_button_only(what):
    bed = found()
    if what != "no loop":
        bed.do(Kind.LOOP_JOINED)
        bed.do(Kind.HEARTBEAT, ok=what == "silent")
        bed.now += 200 * MS + (what == "silent")
    bed.arm()
    assert (bed.s.state, bed.s.automatic, bed.s.reason) == (SafetyState.ARMED, False, "armed for the button only: the loop has no data")
    bed.now += 4 * S
    assert bed.press().delivered


def test_arming_for_the_button_alone_says_so():
    bed = found()
    bed.do(Kind.LOOP_JOINED)
    bed.do(Kind.HEARTBEAT, ok=True)
    bed.now += 200 * MS
    bed.arm(automatic=False)
    assert (bed.s.automatic, bed.s.reason) == (False, "armed for the button only")
    bed.arm()
    assert bed.s.automatic


# --- it does not stay on by itself ------------------------------------------------------------------------------------------------
@pytest.mark.safety("B4")
def test_arming_expires_and_says_so_before():
    bed = Bed().armed()
    start = bed.now
    bed.now = start + 27 * MINUTE - 1
    assert bed.do(Kind.TICK).reasons == ()
    bed.now += 1
    verdict = bed.do(Kind.TICK)
    assert (verdict.reasons, verdict.wake_ns) == (("arming expires in 180 s unless a person acts [B4]",), start + 30 * MINUTE + 1)
    assert bed.do(Kind.TICK).reasons == ()
    bed.now = start + 30 * MINUTE
    assert bed.do(Kind.TICK).state is SafetyState.ARMED
    bed.now += 1
    verdict = bed.do(Kind.TICK)
    assert (verdict.state, verdict.output, verdict.automatic) == (SafetyState.IDLE, Output.DISARM, False)
    assert verdict.reasons == ("arming expired: no person for 30 min [B4, hard limit]",)


@pytest.mark.safety("B4")
def test_a_press_puts_it_off_and_the_warning_comes_again():
    bed = Bed().armed()
    bed.now += 28 * MINUTE
    assert "expires in 120 s" in bed.do(Kind.TICK).reasons[0]
    assert bed.press().delivered
    bed.beating = False
    pressed = bed.now
    bed.run(S)
    assert bed.last.wake_ns == pressed + 27 * MINUTE
    bed.now = pressed + 27 * MINUTE
    assert "expires in 180 s" in bed.do(Kind.TICK).reasons[0]


@pytest.mark.safety("B4")
def test_a_trigger_at_the_very_moment_arming_expires_is_refused():
    for how in ("request", "press"):
        bed = Bed().armed()
        bed.now += 30 * MINUTE
        bed.s.heartbeat_ns = bed.now
        assert getattr(bed, how)().delivered
        bed = Bed().armed()
        bed.now += 30 * MINUTE + 1
        bed.s.heartbeat_ns = bed.now
        verdict = getattr(bed, how)()
        assert "arming has expired [B4]" in verdict.reasons[0]
        assert verdict.output is Output.DISARM


# --- faults -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("B5")
def test_a_fault_latches_keeps_its_first_reason_and_is_cleared_with_words():
    bed = Bed().armed()
    verdict = bed.do(Kind.DEVICE_FAULT, text="electrode error")
    assert (verdict.state, verdict.output, verdict.automatic) == (SafetyState.FAULT, Output.STOP, False)
    verdict = bed.do(Kind.DEVICE_FAULT, text="port lost")
    assert (verdict.reasons, bed.s.reason, verdict.output) == (("fault: port lost",), "fault: electrode error", Output.STOP)
    for kind in Kind:
        if kind not in (Kind.CLEAR, Kind.DAEMON_LOST):
            assert bed.do(kind, ok=True, number=9, text="x", issued_ns=bed.now).state is SafetyState.FAULT
    bed.s.faults, bed.s.permanent = (), False
    verdict = bed.do(Kind.CLEAR, text=" ")
    assert (verdict.reasons, verdict.refused) == (("refused: clearing a fault needs a reason in words [B5]",), -1)
    verdict = bed.do(Kind.CLEAR, text="electrode stuck on again")
    assert (verdict.state, verdict.reasons, verdict.refused) == (SafetyState.OFF, ("fault cleared: electrode stuck on again",), 0)
    assert bed.s.person_ns == bed.now
    bed.do(Kind.READY, ok=True, text="box 1")
    assert bed.s.state is SafetyState.IDLE
    assert not bed.request().delivered


@pytest.mark.safety("B5")
@pytest.mark.parametrize("state", [state for state in SafetyState if state is not SafetyState.FAULT])
def test_what_is_no_fault_cannot_be_cleared(state):
    bed = Bed().armed()
    if state is SafetyState.STIMULATING:
        bed.request()
    bed.s.state = state
    verdict = bed.do(Kind.CLEAR, text="all is well")
    assert (verdict.state, verdict.refused, verdict.reasons[0]) == (state, -1, "refused: there is no fault to clear")


@pytest.mark.safety("B5")
def test_what_guard_finds_wrong_with_itself_ends_only_with_guard():
    bed = Bed().armed()
    bed.request()
    verdict = bed.do(Kind.SELF_FAULT, text="memory is full")
    assert (verdict.state, verdict.output, verdict.ended) == (SafetyState.FAULT, Output.STOP, 1)
    assert verdict.reasons[-1] == "fault: memory is full (guard must be started again) [B5]"
    verdict = bed.do(Kind.CLEAR, text="I looked")
    assert (verdict.state, verdict.refused) == (SafetyState.FAULT, -1)
    assert verdict.reasons == (f"refused: only a new start of guard clears this fault: {bed.s.reason}",)


@pytest.mark.safety("A1", "B5")
def test_a_pulse_outside_its_limits_inside_guard_is_such_a_fault():
    bed = Bed().armed()
    bed.request()
    bed.run(30 * MS)
    n = len(bed.pulses)
    bed.s.lawful_ua = (frozenset(),)
    bed.now = bed.s.pulse_due_ns
    verdict = bed.do(Kind.TICK)
    assert (verdict.delivered, verdict.output, verdict.state) == (False, Output.STOP, SafetyState.FAULT)
    assert verdict.reasons[-1] == "fault: internal: a pulse outside its limits was due [A1]"
    assert (len(bed.pulses), bed.s.permanent) == (n, True)


@pytest.mark.safety("B6")
def test_the_third_fault_in_ten_minutes_ends_only_with_guard():
    for last_ns, permanent in ((FAULTS_NS, True), (FAULTS_NS + 1, False)):
        bed, start = found(), None
        for at_ns in (0, MINUTE, last_ns):
            start = bed.now if start is None else start
            bed.now = start + at_ns
            assert bed.do(Kind.DEVICE_FAULT, text="port lost").state is SafetyState.FAULT
            if at_ns < last_ns:
                bed.do(Kind.CLEAR, text="cable")
                bed.do(Kind.READY, ok=True, text="box 1")
        assert bed.s.permanent is permanent
        assert bed.s.reason == "fault: port lost" + ("; 3 faults within 10 min: guard must be started again [B6]" if permanent else "")
        bed.do(Kind.CLEAR, text="cable")
        assert (bed.s.state is SafetyState.FAULT) is permanent


@pytest.mark.safety("B6")
def test_long_words_do_not_push_the_reason_of_the_third_fault_out():
    bed = found()
    for _ in range(3):
        bed.do(Kind.DEVICE_FAULT, text="x" * 1000)
        bed.do(Kind.CLEAR, text="y" * 1000)
        bed.do(Kind.READY, ok=True, text="box 1")
    assert bed.s.reason.endswith("guard must be started again [B6]")
    assert len(bed.s.reason) <= MAX_REASON_CHARS


def test_reasons_are_of_bounded_length_and_said_once():
    bed = Bed()
    verdict = bed.do(Kind.BAD_INPUT, text="z" * 1000)
    assert verdict.reasons == ("refused: " + "z" * (MAX_REASON_CHARS - 9),)
    assert bed.do(Kind.READY, text="w" * 1000).reasons == ("w" * MAX_REASON_CHARS,)
    assert bed.do(Kind.READY, text="").reasons == ()


# --- several at once --------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("B7", "C2")
def test_of_what_comes_at_once_the_most_severe_goes_first():
    assert list(RANK) == list(Kind)
    assert sorted(RANK.values()) == list(range(len(Kind)))
    severe = (Kind.STOP, Kind.SELF_FAULT, Kind.DEVICE_FAULT, Kind.DAEMON_LOST, Kind.DISARM)
    for kind in severe:
        assert RANK[kind] < min(RANK[k] for k in (Kind.TRIGGER, Kind.REQUEST, Kind.BUTTON, Kind.ARM, Kind.AUDITED, Kind.ARMED, Kind.TICK))
    number = itertools.count(50)
    for chosen in itertools.permutations([*severe, Kind.TRIGGER, Kind.REQUEST, Kind.BUTTON], 3):
        if not set(chosen) & set(severe):
            continue
        bed = Bed().armed()
        bed.do(Kind.BUTTON, number=1, issued_ns=bed.now)
        bed.now += S
        bed.s.heartbeat_ns = bed.now
        events = [Event(k, bed.now, bed.now, bed.now, next(number), 5, 0, 20_000, 500_000, 1, True, "x") for k in chosen]
        first, *rest = in_order(events)
        assert first.kind in severe
        assert not any(bed.s.step(event).delivered for event in (first, *rest))
    same = [Event(Kind.ACK, S, number=n) for n in (3, 1, 2)]
    assert in_order(same) == same


# --- the loop's punctuality -------------------------------------------------------------------------------------------------------
def beats(bed, gap_ns, n=1):
    for _ in range(n):
        bed.now += gap_ns
        bed.do(Kind.HEARTBEAT, ok=True)
    return bed.s


@pytest.mark.safety("F3")
def test_a_loop_that_is_late_by_more_than_100_ms_pauses_automatic_mode_until_it_is_punctual_again():
    bed = Bed().armed()
    assert not beats(bed, 30 * MS + VERY_LATE_NS).paused
    assert bed.s.late_total == 1
    bed.now += 30 * MS + VERY_LATE_NS + 1
    late = bed.now
    verdict = bed.do(Kind.HEARTBEAT, ok=True)
    assert (verdict.automatic, verdict.state) == (True, SafetyState.ARMED)
    assert verdict.reasons == ("automatic mode pauses: the loop was late by 101 ms (at most 100) [F3]",)
    assert bed.request().reasons == ("refused: automatic mode pauses: the loop was late [F3]",)
    assert bed.press().delivered  # the button is not concerned
    bed.now = late
    beats(bed, 50 * MS, 19)
    beats(bed, 50 * MS)
    assert (bed.now, bed.last.reasons, bed.s.paused) == (late + S, (), True)
    bed.now += 1
    bed.do(Kind.HEARTBEAT, ok=True)
    assert (bed.last.reasons, bed.s.paused) == (("the loop is punctual again: automatic mode goes on [F3]",), False)
    bed.run(10 * S)
    assert bed.request().delivered


@pytest.mark.safety("F3")
def test_while_it_is_late_again_the_pause_goes_on():
    bed = Bed().armed()
    beats(bed, 200 * MS)
    for _ in range(3):
        beats(bed, 10 * MS, 90)
        bed.now += 60 * MS
        assert bed.do(Kind.HEARTBEAT, ok=True).reasons == ()
    assert bed.s.paused
    assert len(bed.s.pauses) == 1
    beats(bed, 10 * MS, 101)
    assert not bed.s.paused


@pytest.mark.safety("F3")
def test_the_third_pause_in_ten_minutes_asks_for_a_person():
    for last_ns, off in ((10 * MINUTE, True), (10 * MINUTE + 1, False)):
        bed = Bed().armed()
        start = bed.now
        for at_ns in (0, MINUTE, last_ns):
            bed.now = start + at_ns
            bed.s.heartbeat_ns = bed.now - 200 * MS
            verdict = bed.do(Kind.HEARTBEAT, ok=True)
            if at_ns < last_ns:
                beats(bed, 10 * MS, 101)
                assert bed.s.automatic
        assert bed.s.automatic is not off
        assert bed.s.paused is not off
        if off:
            words = "the loop was late by 170 ms (at most 100), 3 times in 10 min; a person must arm again [F3]"
            assert verdict.reasons == ("armed for the button only: " + words,)
            bed.arm()
            assert (bed.s.automatic, bed.s.paused, bed.s.pauses, bed.s.late) == (True, False, (), ())


@pytest.mark.safety("F3")
def test_a_late_loop_that_is_not_armed_only_counts():
    bed = Bed().armed()
    bed.s.automatic = False
    beats(bed, S, 5)
    assert (bed.s.late_total, bed.s.paused, bed.s.pauses) == (5, False, ())


@pytest.mark.safety("F3")
def test_being_late_ends_the_loops_train_and_not_a_persons():
    for how in ("request", "press"):
        bed = Bed().armed()
        getattr(bed, how)()
        bed.now += 131 * MS
        bed.s.outstanding = False
        verdict = bed.do(Kind.HEARTBEAT, ok=True)
        assert bed.s.paused
        assert (verdict.state is SafetyState.STIMULATING) is (how == "press")
        assert bool(verdict.ended) is (how == "request")


@pytest.mark.safety("F3")
def test_a_loop_that_is_late_in_one_of_a_hundred_beats_pauses_too():
    bed = Bed().armed()
    assert beats(bed, 50 * MS, 200).late_total == 0
    for _ in range(10):
        assert not beats(bed, 50 * MS + 1).paused
        beats(bed, 49 * MS, 10)
    assert bed.s.late_total == 10
    bed.now += 50 * MS + 1
    assert bed.do(Kind.HEARTBEAT, ok=True).reasons == ("automatic mode pauses: the loop was late 11 times in 10 s [F3]",)
    assert bed.s.paused
    bed.arm()
    assert not beats(bed, 50 * MS + 1, 10).paused
    assert beats(bed, 50 * MS + 1).paused


@pytest.mark.safety("F3")
def test_eleven_late_beats_count_only_within_ten_seconds():
    for wait_ns, pauses in ((0, True), (1, False)):
        bed = Bed().armed()
        beats(bed, 51 * MS, 10)
        bed.now = bed.s.late[0] + 10 * S + wait_ns
        bed.s.heartbeat_ns = bed.now - 51 * MS
        bed.do(Kind.HEARTBEAT, ok=True)
        assert bed.s.late_total == 11
        assert bed.s.paused is pauses


def test_the_first_beat_of_a_loop_is_not_late():
    for how in (Kind.LOOP_LOST, Kind.LOOP_JOINED):
        bed = Bed().armed()
        bed.do(how)
        beats(bed, 10 * S)
        assert bed.s.late_total == 0


def test_losing_and_joining_say_that_automatic_mode_ends():
    bed = Bed().armed()
    assert bed.do(Kind.LOOP_LOST).reasons == ("armed for the button only: loop lost; a person must arm automatic mode again",)
    assert bed.do(Kind.LOOP_JOINED).reasons == ()
    bed = Bed().armed()
    bed.request()
    verdict = bed.do(Kind.LOOP_JOINED)
    assert verdict.reasons == (
        "a new loop; a person must arm automatic mode again",
        "armed for the button only: a new loop; a person must arm automatic mode again",
    )
    assert (verdict.ended, verdict.state) == (1, SafetyState.ARMED)


def test_the_age_limit_of_a_trigger_is_a_quarter_of_a_second():
    assert MAX_TRIGGER_AGE_NS == 250 * MS
