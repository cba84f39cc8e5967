"""The patient's button and stop: one press is one train, stop beats everything, what is late or said twice does nothing."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.limits import MAX_TRIGGER_AGE_NS, MS, S
from controller.supervisor import BOUNCE_NS, BUTTON_LOST_NS, MAX_IDS, STUCK_NS, Kind, Output, SafetyState
from tests.bed import Bed


class Buttoned(Bed):
    """A bed with a button that says its level each second, as a button's driver does."""

    presses = itertools.count(1000)

    def level(self, closed, wait_ns=0, **changes):
        self.now += wait_ns
        self.s.heartbeat_ns = self.s.heartbeat_ns and self.now
        return self.do(Kind.BUTTON, **({"ok": closed, "number": next(self.presses), "issued_ns": self.now, "cause": 3} | changes))

    def armed(self, soft=False):
        super().armed(soft)
        self.level(False)
        self.now += S
        self.level(False)
        return self


def test_a_press_is_one_train_and_a_held_button_too():
    bed = Buttoned().armed()
    assert bed.level(True).delivered
    assert bed.s.state is SafetyState.STIMULATING
    for _ in range(30):
        assert not bed.level(True, 20 * MS).refused
    bed.level(False, 20 * MS)
    assert len(bed.s.events) == 1


@pytest.mark.safety("C3")
def test_a_bouncing_contact_is_one_press():
    bed = Buttoned().armed()
    assert bed.level(True).delivered
    for closed in (False, True, False, True, False):
        verdict = bed.level(closed, BOUNCE_NS - 1)
        assert (verdict.refused, verdict.reasons) == (0, ())
    bed.s.event_end_ns -= 10 * S
    assert bed.level(True, BOUNCE_NS).refused == -1  # a real second press, during the train


@pytest.mark.safety("C3")
def test_a_stuck_button_is_one_trigger_and_an_alarm():
    bed = Buttoned().armed()
    start = bed.now
    assert bed.level(True).delivered
    while bed.now < start + STUCK_NS - 100 * MS:
        assert not any("stuck" in reason for reason in bed.level(True, 100 * MS).reasons)
    bed.now = start + STUCK_NS
    assert not any("stuck" in reason for reason in bed.do(Kind.TICK).reasons)
    assert bed.last.wake_ns <= start + STUCK_NS + 1
    bed.now += 1
    assert bed.do(Kind.TICK).reasons == ("the button is stuck: closed for more than 2 s [C3]",)
    assert not any("stuck" in reason for reason in bed.level(True, 100 * MS).reasons)
    assert bed.level(False, 100 * MS).reasons == ()
    assert len(bed.s.events) == 1
    bed.now += 5 * S
    bed.level(False)
    bed.s.button_edge_ns -= S
    assert bed.level(True).delivered


@pytest.mark.safety("C3")
def test_a_button_that_is_closed_when_it_appears_does_nothing_and_forbids_arming():
    bed = Buttoned()
    bed.do(Kind.READY, ok=True, text="box 1")
    assert bed.level(True).reasons == ("the button is closed: let it go first [C3]",)
    assert bed.arm().reasons == ("refused: the button is closed: let it go first [C3]",)
    bed.level(False, S)
    bed.arm(automatic=False)
    assert bed.s.state is SafetyState.ARMED
    assert bed.level(True, S).delivered


@pytest.mark.safety("C4")
def test_a_lost_button_is_told_and_disarms_an_automatic_bed():
    for automatic in (True, False):
        bed = Buttoned().armed()
        bed.s.automatic = automatic
        heard = bed.now
        bed.now = heard + BUTTON_LOST_NS
        bed.s.heartbeat_ns = bed.now
        assert bed.do(Kind.TICK).reasons == ()
        assert bed.last.wake_ns == heard + BUTTON_LOST_NS + 1
        bed.now += 1
        verdict = bed.do(Kind.TICK)
        words = "the button is lost: nothing heard of it for 2 s [C4]"
        assert verdict.reasons == (("disarmed: " if automatic else "") + words,)
        assert (verdict.state, verdict.output) == ((SafetyState.IDLE, Output.DISARM) if automatic else (SafetyState.ARMED, Output.NONE))
        assert bed.do(Kind.TICK).reasons == ()
        assert bed.s.button_ns == 0


@pytest.mark.safety("C4")
def test_losing_the_button_in_a_train_ends_it():
    bed = Buttoned().armed()
    bed.request()
    bed.now += 3 * S
    bed.s.heartbeat_ns = bed.s.last_pulse_ns = bed.now
    bed.s.outstanding = False
    verdict = bed.do(Kind.TICK)
    assert (verdict.state, verdict.output, verdict.ended) == (SafetyState.IDLE, Output.DISARM, 1)


@pytest.mark.safety("C4")
def test_a_button_lost_while_closed_must_be_let_go_before_it_counts_again():
    bed = Buttoned().armed()
    bed.level(True)
    bed.s.automatic = False
    bed.now += 3 * S
    bed.do(Kind.TICK)
    bed.s.outstanding = False
    assert bed.level(True, S).reasons == ("the button is closed: let it go first [C3]",)
    bed.level(False, S)
    bed.now += 5 * S
    bed.level(False)
    assert bed.level(True, S).delivered or "refractory" in bed.last.reasons[0]


@pytest.mark.safety("C5", "C6")
def test_a_press_goes_the_same_way_as_every_request():
    bed = Buttoned().armed()
    assert bed.request().delivered
    bed.now += 100 * MS
    verdict = bed.level(True)
    assert verdict.refused == -1
    assert "already stimulating [C6]" in verdict.reasons[0]
    bed.level(False, 100 * MS)
    n_events = len(bed.s.events)
    bed.run(S)
    bed.level(False)
    assert "refractory" in bed.level(True).reasons[0]
    assert len(bed.s.events) == n_events
    bed.level(False, S)
    bed.level(False, S)
    bed.level(False, S)
    assert bed.level(True, 100 * MS).delivered
    assert (bed.s.event_cause, len(bed.s.events), len(bed.s.auto_events)) == (3, n_events + 1, 1)


@pytest.mark.safety("C2", "C7")
def test_a_press_counts_once_whoever_says_it_again():
    bed = Bed().armed()
    assert bed.press(number=77).delivered
    for _ in range(5):
        bed.now += 10 * MS
        assert "trigger 77 was seen before, or has no id [C2]" in bed.press(number=77).reasons[0]
    bed.run(5 * S)
    verdict = bed.press(number=77, issued_ns=bed.now - 4 * S)
    assert "trigger is 4000 ms old (0 to 250 allowed) [C7]" in verdict.reasons[0]


@pytest.mark.safety("C2")
@pytest.mark.parametrize("number", [0, -1, -(10**18)])
def test_a_press_without_an_id_is_refused(number):
    assert f"trigger {number} was seen before, or has no id [C2]" in Bed().armed().press(number=number).reasons[0]


@pytest.mark.safety("C2")
def test_a_refused_press_does_not_count_later_either():
    bed = Bed()
    bed.do(Kind.READY, ok=True, text="box 1")
    assert bed.press(number=5).refused == -1
    bed.arm(automatic=False)
    bed.now += MAX_TRIGGER_AGE_NS
    assert "seen before" in bed.press(number=5).reasons[0]
    bed.now += 1
    bed.s.ids = bed.s.ids[:1]
    assert bed.press(number=6).delivered


@pytest.mark.safety("C2")
def test_a_flood_of_presses_is_refused_and_remembered_within_bounds():
    bed = Bed().armed()
    bed.s.state = SafetyState.IDLE
    for number in range(1, 3 * MAX_IDS):
        reasons = bed.press(number=number).reasons[0]
        assert ("seen before" in reasons) is (number > MAX_IDS)
        assert len(bed.s.ids) <= MAX_IDS
    bed.now += MAX_TRIGGER_AGE_NS + 1
    bed.press(number=9999)
    assert bed.s.ids == ((bed.now, 9999),)


@pytest.mark.safety("C1", "C2")
@pytest.mark.parametrize("state", list(SafetyState))
def test_stop_works_in_every_state_and_is_never_refused(state):
    bed = Bed().armed()
    if state is SafetyState.STIMULATING:
        bed.request()
        bed.now += MS
    bed.s.state = state
    bed.s.outstanding, bed.s.last_pulse_ns = True, bed.now
    verdict = bed.do(Kind.STOP, text="the patient")
    after = SafetyState.IDLE if state in (SafetyState.IDLE, SafetyState.ARMED, SafetyState.STIMULATING) else state
    assert (verdict.output, verdict.state, verdict.refused) == (Output.STOP, after, 0)
    assert verdict.automatic is (after is state and bed.s.automatic)
    assert verdict.reasons[-1] == "stopped: the patient"
    assert not bed.s.outstanding
    assert bool(verdict.ended) is (state is SafetyState.STIMULATING)
    for _ in range(20):
        bed.now += 20 * MS
        assert not bed.do(Kind.TICK).delivered


@pytest.mark.safety("C2", "B7")
def test_what_was_asked_for_before_a_stop_is_void_even_if_armed_again_at_once():
    bed = Bed().armed()
    asked = bed.now
    bed.now += 10 * MS
    bed.do(Kind.STOP, text="x")
    bed.arm()
    assert "asked for before the last stop [C2]" in bed.press(issued_ns=asked).reasons[0]
    assert "asked for before the last stop [C2]" in bed.request(issued_ns=asked).reasons[0]
    assert "asked for before the last stop [C2]" in bed.press(issued_ns=bed.now).reasons[0]  # of the same instant: stop wins
    bed.now += 1
    assert bed.press().delivered


@pytest.mark.safety("C7")
@pytest.mark.parametrize(("age_ns", "leaves"), [(0, True), (MAX_TRIGGER_AGE_NS, True), (MAX_TRIGGER_AGE_NS + 1, False), (-1, False)])
def test_a_persons_old_triggers_are_dropped(age_ns, leaves):
    bed = Bed().armed()
    verdict = bed.press(issued_ns=bed.now - age_ns)
    assert verdict.delivered is leaves
    assert leaves or f"trigger is {-(-age_ns // MS)} ms old (0 to 250 allowed) [C7]" in verdict.reasons[0]


@pytest.mark.safety("C5")
def test_the_button_gives_its_own_train_alone():
    bed = Bed().armed()
    assert "not the train prescribed for the button [A1, prescription]" in bed.press(train=1).reasons[0]


@pytest.mark.safety("C3", "C6")
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2_500)), max_size=60))
def test_whatever_the_contact_does_there_are_never_more_trains_than_presses(levels):
    bed, presses, was = Buttoned().armed(), 0, False
    for closed, wait_ms in levels:
        bed.level(closed, wait_ms * MS)
        if closed and not was:
            presses += 1
        was = closed
    assert len(bed.s.events) <= presses
