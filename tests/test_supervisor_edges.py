"""Edges of the supervisor and of the limits: the last value that is allowed and the first that is not, every word, every constant.

`python -m bench.mutants` shows that each line of both modules matters to some test; what no other test minded is here.
"""

import hashlib
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise

import pytest

from controller import limits, supervisor
from controller.limits import HARD, MINUTE, MS, S, check_prescription, n_pulses, prescription_from, pulse_current, pulse_reasons, soft_start
from controller.supervisor import (
    ACK_TIMEOUT_NS,
    LEASE_NS,
    MAX_REASON_CHARS,
    Cause,
    Dose,
    Event,
    Kind,
    Output,
    SafetyState,
    Supervisor,
    TrainGiven,
)
from tests.bed import DEVICE, NO_HISTORY, RX, TRAIN, Bed

FLAT = replace(TRAIN, ramp_up_us=0, taper_us=0)
FREE = replace(RX, trains=(FLAT,), refractory_ns=S)


def idle():
    bed = Bed()
    bed.do(Kind.READY, ok=True, text="box 1")
    return bed


def running(how="request", rx=RX, after_ns=60 * MS):
    """A bed within a train."""
    bed = Bed(rx).armed()
    assert getattr(bed, how)().delivered
    bed.run(after_ns)
    return bed


# --- everything that is no function, written out a second time --------------------------------------------------------------------
@pytest.mark.safety("B3", "B4", "B5", "B6", "C3", "C4", "C7", "E1", "E4", "F1", "F3", "G7")
def test_the_constants_are_those_that_are_to_be_signed():
    assert (limits.MS, limits.S, limits.MINUTE) == (10**6, 10**9, 60 * 10**9)
    assert (limits.LOAD_OHM, limits.MAX_TRIGGER_AGE_NS) == (500, 250_000_000)
    assert (limits.HARD_LAYER, limits.DEVICE_LAYER, limits.PRESCRIPTION_LAYER) == ("hard limit", "device", "prescription")
    assert {name: value for name, value in vars(supervisor).items() if name.isupper() and type(value) in (int, str)} == {
        "LEASE_NS": 200_000_000,
        "ACK_TIMEOUT_NS": 100_000_000,
        "CONTINUE_NS": 500_000_000,
        "OFFER_NS": 60_000_000_000,
        "PRESENCE_NS": 300_000_000_000,
        "AUDIT_NS": 2_000_000_000,
        "WARN_PERCENT": 90,
        "FAULTS": 3,
        "FAULTS_NS": 600_000_000_000,
        "BOUNCE_NS": 30_000_000,
        "STUCK_NS": 2_000_000_000,
        "BUTTON_LOST_NS": 2_000_000_000,
        "BEAT_DUE_NS": 30_000_000,
        "LATE_NS": 20_000_000,
        "VERY_LATE_NS": 100_000_000,
        "MAX_LATE": 10,
        "LATE_WINDOW_NS": 10_000_000_000,
        "PUNCTUAL_NS": 1_000_000_000,
        "PAUSES": 3,
        "PAUSES_NS": 600_000_000_000,
        "RISE_PERCENT": 25,
        "RISES": 2,
        "MAX_REASON_CHARS": 300,
        "MAX_STARTS": 512,
        "MAX_IDS": 64,
        "RECORDER_WORDS": "recording does not keep up: nothing more is stimulated [G7]",
        "LOCKOUT_WORDS": "a person must arm again",
        "DAY": 1440,
        # from the limits
        "MAX_TRIGGER_AGE_NS": 250_000_000,
        "MS": 10**6,
        "S": 10**9,
        "MINUTE": 60 * 10**9,
    }


@pytest.mark.safety("B2", "B7", "C2")
def test_states_events_and_what_follows_are_those_of_the_design():
    assert [state.value for state in SafetyState] == ["OFF", "IDLE", "ARMED", "STIMULATING", "LOCKOUT", "FAULT"]
    assert [kind.value for kind in Kind] == [
        "stop",
        "self fault",
        "device fault",
        "daemon lost",
        "loop lost",
        "disarm",
        "recorder",
        "bad input",
        "ack",
        "heartbeat",
        "loop joined",
        "ready",
        "clear",
        "offer",
        "arm",
        "audited",
        "armed",
        "button",
        "trigger",
        "request",
        "note",
        "tick",
    ]
    assert {kind: supervisor.RANK[kind] for kind in Kind} == dict(zip(Kind, range(22), strict=True))
    assert [(cause.name, cause.value) for cause in Cause] == [("EMG", 1), ("FORCE", 2), ("MANUAL", 3)]
    assert [output.value for output in Output] == ["none", "pulse", "stop", "arm", "disarm"]
    assert supervisor._SEVERITY == {Output.NONE: 0, Output.PULSE: 1, Output.ARM: 2, Output.DISARM: 3, Output.STOP: 4}
    assert supervisor._CAUSE_WORDS == {1: "emg", 2: "force", 3: "manual"}
    assert supervisor._AUTOMATIC == (1, 2)


@pytest.mark.safety("B2", "B7")
def test_the_table_is_that_of_the_design():
    every = {
        Kind.STOP: "stop",
        Kind.SELF_FAULT: "wrong",
        Kind.DEVICE_FAULT: "trouble",
        Kind.DAEMON_LOST: "end",
        Kind.LOOP_LOST: "unhear",
        Kind.RECORDER: "recorder",
        Kind.BAD_INPUT: "tell",
        Kind.ACK: "ack",
        Kind.HEARTBEAT: "beat",
        Kind.LOOP_JOINED: "join",
        Kind.BUTTON: "button",
        Kind.TRIGGER: "ask",
        Kind.REQUEST: "ask",
        Kind.NOTE: "note",
        Kind.TICK: "nothing",
    }
    some = {  # of OFF, IDLE, ARMED, STIMULATING, LOCKOUT, FAULT
        Kind.DISARM: ["nothing", "disarm", "disarm", "disarm", "disarm", "nothing"],
        Kind.READY: ["ready", "nothing", "nothing", "nothing", "nothing", "nothing"],
        Kind.CLEAR: ["no_fault"] * 5 + ["clear"],
        Kind.OFFER: ["no_arm", "offer", "offer", "no_arm", "offer", "no_arm"],
        Kind.ARM: ["no_arm", "arm", "arm", "no_arm", "arm", "no_arm"],
        Kind.AUDITED: ["nothing", "audited", "audited", "nothing", "audited", "nothing"],
        Kind.ARMED: ["unasked", "armed", "armed", "unasked", "armed", "unasked"],
    }
    assert {kind: words.split() for kind, words in supervisor._ROWS.items()} == {kind: [word] * 6 for kind, word in every.items()} | some
    for kind, states in supervisor.TABLE.items():
        words = some.get(kind) or [every[kind]] * 6
        assert states == {state: getattr(Supervisor, "_" + word) for state, word in zip(SafetyState, words, strict=True)}


def test_an_event_of_which_nothing_is_said_is_empty():
    assert Event(Kind.TICK, 5) == (Kind.TICK, 5, 0, 0, 0, 0, 0, 0, 0, 0, False, "", 0, 0)


@pytest.mark.safety("B1", "A10")
def test_a_supervisor_begins_with_nothing():
    nothing = {f.name: getattr(Supervisor(RX), f.name) for f in fields(Supervisor)}
    expected = dict.fromkeys(nothing, 0) | {
        "prescription": RX,
        "state": SafetyState.OFF,
        "reason": "no stimulator yet",
        "identity": "",
        "lockout": "",
        "recorder_ok": True,
        "event_end_ns": -60 * S,
        "first_ns": (0,),
        "last_ua": (0,),
        "paradox_rules": frozenset(),
        "paradox_trains": frozenset(),
        "day": (0, 0, 0),
        "session": (0, 0, 0),
        "last_train": (0, 0, 0, 0, 0, 0, False, False),
        "most_session": (30 * MINUTE, 3_600_000_000, 180_000),
        "most_day": (60 * MINUTE, 7_200_000_000, 360_000),
        "lawful_ua": (frozenset(range(500, 20_500, 500)),),
        "_said": [],
    }
    expected |= dict.fromkeys(("faults", "late", "pauses", "ids", "trains", "events", "auto_events", "minutes"), ())
    assert nothing == expected
    assert type(nothing["day"]) is Dose
    assert type(nothing["last_train"]) is TrainGiven


def test_what_was_decided_on_cannot_be_changed_afterwards():
    for thing, name in ((HARD, "max_current_ua"), (TRAIN, "current_ua"), (RX, "look_ns")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, name, 1)
    for slotted in (HARD, RX, Supervisor(RX)):  # a misspelt name raises
        assert not hasattr(slotted, "__dict__")


# --- limits -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A5", "A6")
def test_density_and_energy_at_their_very_limits():
    # 20 mA, 500 us, 40 Hz: 4 mA rms, just 2 mA/cm² on 2 cm²
    t = replace(TRAIN, pulse_rate_mhz=40_000)
    assert pulse_reasons(t, 20_000, replace(RX, electrode_area_mm2=200)) == []
    assert pulse_reasons(t, 20_000, replace(RX, electrode_area_mm2=199)) == ["rms density is above 2.0 mA/cm2 on 1.99 cm2 [A5, hard limit]"]
    # 1 A for 300 us twice into 500 ohm: just 300 mJ
    words = "energy of a pulse is above 300 mJ [A6, hard limit]"
    for width_us, above in ((300, False), (301, True)):
        assert (words in pulse_reasons(replace(TRAIN, phase_width_us=width_us), 10**6, RX)) is above


@pytest.mark.safety("A12")
def test_figures_of_a_train_stay_whole_where_its_period_is_none():
    t = replace(TRAIN, pulse_rate_mhz=30_000)
    for n in (n_pulses(t, 133_333), pulse_current(t, 0, 20_000, 500_000, 500), pulse_current(t, 14, 20_000, 500_000, 500)):
        assert type(n) is int
    assert n_pulses(t, 133_333) == 5
    assert type(soft_start(t, S, 500)) is int
    assert pulse_current(replace(t, ramp_up_us=99_999), 0, 30_000, 500_000, 1) == 10_000


@pytest.mark.safety("B3")
def test_a_prescription_is_named_by_48_bits_of_all_of_it():
    assert RX.number == int.from_bytes(hashlib.sha256(repr(RX).encode()).digest()[:6], "big")


def test_a_view_without_trains_in_words():
    with pytest.raises(ValueError, match=r"^trains must be a table with at least one train \[A12\]$"):
        prescription_from({}, DEVICE)


# --- every word about what ended a train ------------------------------------------------------------------------------------------
@pytest.mark.safety("A12", "C1")
@pytest.mark.parametrize(
    ("kind", "text", "words", "output", "state"),
    [
        (Kind.STOP, "Ada", ("stopped: Ada",), Output.STOP, SafetyState.IDLE),
        (Kind.DISARM, "Ada", ("disarmed: Ada",), Output.DISARM, SafetyState.IDLE),
        (Kind.DEVICE_FAULT, "port lost", ("fault", "fault: port lost"), Output.STOP, SafetyState.FAULT),
        (Kind.DAEMON_LOST, "Ada", ("Ada",), Output.STOP, SafetyState.OFF),
        (Kind.DAEMON_LOST, "", ("daemon lost: nothing is recorded, so nothing is stimulated",), Output.STOP, SafetyState.OFF),
        (
            Kind.ARMED,
            "",
            ("armed without having been asked", "armed without having been asked: taken back [B1]"),
            Output.STOP,
            SafetyState.IDLE,
        ),
        (
            Kind.LOOP_LOST,
            "",
            (
                "loop lost; a person must arm automatic mode again",
                "armed for the button only: loop lost; a person must arm automatic mode again",
            ),
            Output.NONE,
            SafetyState.ARMED,
        ),
    ],
)
def test_whatever_ends_a_train_says_so_once_and_counts_it(kind, text, words, output, state):
    bed = running()
    verdict = bed.do(kind, text=text)
    assert (verdict.reasons, verdict.output, verdict.state, verdict.ended, verdict.refused) == (words, output, state, 1, 0)
    assert (bed.s.reason, bed.s.request, bed.s.audited, bed.s.arming_ns) == (words[-1], 0, False, 0)
    assert not verdict.automatic
    assert bed.s.last_train.end_ns == bed.now


@pytest.mark.parametrize("kind", [Kind.STOP, Kind.DISARM])
def test_what_needs_no_ending_says_the_least(kind):
    bed = idle()
    assert bed.do(kind, text="Ada").reasons == (("stopped: Ada",) if kind is Kind.STOP else ())
    assert bed.s.person_ns == bed.now


def test_the_end_of_a_train_in_words():
    silent = Bed().armed()
    silent.request()
    silent.acking = False
    heard = silent.s.heartbeat_ns
    silent.s.outstanding = False
    silent.now = heard + LEASE_NS
    assert silent.do(Kind.TICK).state is SafetyState.STIMULATING  # just not yet
    silent.s.outstanding = False
    silent.now += 1
    assert silent.do(Kind.TICK).reasons == ("the loop is silent for 200 ms [E4]",)
    dry = running()
    assert dry.do(Kind.HEARTBEAT, ok=False).reasons == ("no data",)
    whole = Bed().armed()
    whole.request()
    whole.run(499 * MS)
    whole.now = whole.s.pulse_due_ns
    whole.do(Kind.HEARTBEAT, ok=True)
    assert (whole.last.reasons, whole.last.state, whole.last.ended) == (("armed: the last train is over",), SafetyState.ARMED, 1)


@pytest.mark.safety("C6", "E2")
def test_a_persons_train_is_a_persons_whatever_its_cause_says():
    bed = Bed().armed()
    verdict = bed.press(cause=1)
    assert (verdict.reasons, bed.s.event_cause) == (("manual: train peroneal",), 3)
    assert bed.do(Kind.LOOP_LOST).ended == 0
    assert bed.do(Kind.STOP, text="x").ended == -1
    assert bed.s.last_train[5:] == (3, True, False)


def test_a_verdict_names_its_train():
    bed = Bed(replace(FREE, trains=(FLAT, replace(FLAT, name="b", channel=2)), manual_train=1)).armed()
    assert bed.request(train=0).train == 0
    bed.run(4 * S)
    verdict = bed.press(train=1)
    assert (verdict.train, verdict.reasons) == (1, ("manual: train b",))
    bed.run(4 * S)
    bed.do(Kind.BUTTON, number=10**6, issued_ns=bed.now)
    bed.now += S
    bed.s.heartbeat_ns = bed.now
    verdict = bed.do(Kind.BUTTON, ok=True, number=10**6 + 1, issued_ns=bed.now)
    assert (verdict.delivered, verdict.train) == (True, 1)


# --- every word about why none begins ---------------------------------------------------------------------------------------------
def test_refusals_in_words():
    def refused(bed, how, **changes):
        verdict = getattr(bed, how)(**changes)
        assert not verdict.delivered
        assert verdict.refused == (-1 if how == "press" else changes.get("number", bed.number))
        return verdict.reasons[0]

    assert refused(idle(), "press") == "refused: not armed: IDLE, not armed: box 1 found [B2]"
    bed = running(after_ns=70 * MS)
    assert refused(bed, "press") == "refused: already stimulating [C6]"
    bed = Bed().armed()
    bed.do(Kind.RECORDER, ok=False)
    for how in ("press", "request"):
        assert refused(bed, how) == "refused: recording does not keep up: nothing more is stimulated [G7]"
    bed = Bed().armed()
    bed.s.automatic = False
    assert refused(bed, "request") == "refused: automatic mode is off [B1]"
    bed = Bed().armed()
    bed.do(Kind.HEARTBEAT, ok=False)
    assert refused(bed, "request") == "refused: the loop gave no proof of life with data [E4]"
    bed = Bed().armed()
    bed.do(Kind.OFFER, number=7)
    bed.do(Kind.ARM, issued_ns=bed.now, number=7, event_id=RX.number)
    assert refused(bed, "press") == "refused: arming is under way [B3]"
    bed = Bed().armed()
    bed.s.stop_ns = bed.now
    assert refused(bed, "press") == "refused: asked for before the last stop [C2]"
    bed = Bed().armed()
    bed.acking = False
    bed.request()
    bed.do(Kind.LOOP_LOST)
    bed.now += 90 * MS
    assert refused(bed, "press").split("; ")[0] == "refused: the last pulse is not acknowledged yet [E5]"
    bed = Bed(replace(RX, trains=(TRAIN, replace(TRAIN, name="b")))).armed()
    assert refused(bed, "press", train=1) == "refused: not the train prescribed for the button [A1, prescription]"
    bed = Bed().armed()
    bed.now += 30 * MINUTE + 1
    assert refused(bed, "press") == "refused: arming has expired [B4]"
    above = "current 20500 uA is not above 0 and at most 20000 uA [A1, hard limit]"
    bed = Bed(replace(RX, max_charge_nc=30_000)).armed()
    assert refused(bed, "press", current_ua=20_500) == "refused: " + above.replace("hard limit", "prescription")
    assert refused(bed, "press", current_ua=300) == "refused: current 300 uA is no multiple of 500 uA [A12, device]"
    assert refused(bed, "press", duration_us=0) == "refused: duration 0 us is not within the 500000 us prescribed [A8, prescription]"
    assert refused(bed, "request", number=5000, event_id=0) == "refused: event id 0 is not above 0 [A12]"
    assert refused(bed, "request", number=5000) == "refused: request 5000 was seen before [E2]"
    assert refused(bed, "request", number=5001, cause=3) == "refused: unknown cause 3 [A12]"


def test_all_that_forbids_arming_is_joined_in_one_sentence():
    bed = idle()
    assert bed.arm(event_id=0, issued_ns=bed.now + 1).reasons == (
        "refused: the prescription named is not the one in force [B3]; whoever arms must have proved who they are within 5 min [B3]",
    )


@pytest.mark.safety("G7")
def test_what_is_said_about_recording():
    bed = idle()
    assert bed.do(Kind.RECORDER, ok=False).reasons == ("recording does not keep up: nothing more is stimulated [G7]",)
    assert bed.do(Kind.RECORDER, ok=False, text="disk full").reasons == ("disk full",)
    assert bed.do(Kind.RECORDER, ok=True).reasons == ("recording keeps up again",)


@pytest.mark.safety("B6")
def test_half_of_a_long_reason_stays_of_the_third_fault():
    bed = idle()
    for _ in range(3):
        bed.do(Kind.DEVICE_FAULT, text="x" * 1000)
        bed.do(Kind.CLEAR, text="y")
        bed.do(Kind.READY, ok=True, text="box 1")
    assert bed.s.reason == "fault: " + "x" * (MAX_REASON_CHARS // 2) + "; 3 faults within 10 min: guard must be started again [B6]"


def test_an_unreadable_number_is_named():
    with pytest.raises(ValueError, match=r"ValueError: 2.5 is no whole number \[A10, F8\]"):
        Supervisor(RX).remember(NO_HISTORY | {"session": [0, 0, 2.5]})


# --- the last instant -------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("E1")
def test_an_acknowledgement_may_take_a_tenth_of_a_second_and_no_more():
    for late_ns in (0, 1):
        bed = Bed(replace(RX, trains=(replace(TRAIN, pulse_rate_mhz=1_000),))).armed()
        bed.acking = False
        verdict = bed.press()
        assert verdict.wake_ns == bed.now + 100 * MS + 1
        bed.now += ACK_TIMEOUT_NS + late_ns
        verdict = bed.do(Kind.TICK)
        assert (verdict.state is SafetyState.FAULT) is bool(late_ns)
    assert verdict.reasons[-1] == "fault: no acknowledgement within 100 ms; the pulse counts as delivered [E1]"
    assert bed.s.outstanding is False


@pytest.mark.safety("E4")
def test_a_request_within_the_lease_leaves_and_not_after():
    for late_ns in (0, 1):
        bed = Bed().armed()
        bed.now += LEASE_NS + late_ns
        assert bed.request().delivered is not bool(late_ns)
        assert bed.last.refused == late_ns
    assert bed.last.reasons == ("refused: the loop gave no proof of life with data [E4]",)


@pytest.mark.safety("C7")
def test_a_sample_from_the_future_counts_up_to_a_quarter_of_a_second():
    for ahead_ns, leaves in ((250 * MS, True), (250 * MS + 1, False)):
        bed = Bed().armed()
        assert bed.request(sample_ns=bed.now + ahead_ns).delivered is leaves


@pytest.mark.safety("A9")
def test_looks_and_refractory_time_are_over_at_once_when_they_are_over():
    for early_ns in (0, 1):
        bed = Bed(FREE).armed()
        bed.request(event_id=1)
        bed.run(501 * MS)
        bed.now = bed.s.event_end_ns + 120 * MS - early_ns
        assert bed.request(event_id=1).delivered is not bool(early_ns)
        bed = Bed().armed()
        bed.request()
        bed.run(501 * MS)
        bed.skip(2 * S)
        bed.now = bed.s.event_end_ns + 3 * S - early_ns
        bed.s.heartbeat_ns = bed.now
        assert bed.request().delivered is not bool(early_ns)
    assert bed.last.reasons == ("refused: refractory: 2999 of 3000 ms since the last event [A9, prescription]",)
    bed = Bed().armed()
    bed.request(event_id=1)
    bed.run(510 * MS)
    assert bed.request(event_id=1).reasons == ("refused: look of 120 ms not over [A9, hard limit]",)


@pytest.mark.safety("A9")
def test_an_event_goes_on_within_half_a_second_of_its_look():
    for wait_ns, same in ((620 * MS - 1, True), (620 * MS, False)):
        bed = Bed(replace(RX, refractory_ns=60 * S)).armed()
        bed.request(event_id=1)
        bed.run(501 * MS)
        bed.skip(400 * MS)
        bed.now = bed.s.event_end_ns + wait_ns
        bed.s.heartbeat_ns = bed.now
        assert bed.request(event_id=1).delivered is same


@pytest.mark.safety("A9")
def test_a_train_of_nothing_has_no_dose_that_could_be_too_much():
    bed = Bed(replace(FREE, max_event_ns=500 * MS)).armed()
    bed.request(event_id=1)
    bed.run(640 * MS)
    for duration_us in (0, -5):
        words = f"refused: duration {duration_us} us is not within the 500000 us prescribed [A8, prescription]"
        assert bed.request(event_id=1, duration_us=duration_us).reasons == (words,)
    wide = replace(FLAT, phase_width_us=1_000)
    bed = Bed(replace(FREE, trains=(wide,), max_charge_nc=20_000, max_charge_session_nc=10**6)).armed()
    bed.s.session = Dose(0, 10**6, 0)
    assert bed.press(current_ua=-500).reasons == ("refused: current -500 uA is not above 0 and at most 20000 uA [A1, prescription]",)


@pytest.mark.safety("A9", "A10")
def test_less_than_nothing_gives_no_dose_back():
    bed = Bed(FREE).armed()
    bed.s.session = Dose(30 * MINUTE + 1, 3_600_000_001, 0)
    words = bed.press(duration_us=-5, current_ua=-500).reasons[0]
    assert "dose: 30 min of stimulation in this session" in words
    assert "dose: 3600 mC in this session" in words


@pytest.mark.safety("C5", "A9")
def test_a_persons_event_is_nobody_elses():
    for first, second in (("request", "press"), ("press", "request")):
        bed = Bed().armed()
        assert getattr(bed, first)(event_id=5).delivered
        bed.run(640 * MS)
        assert getattr(bed, second)(event_id=5).reasons == ("refused: refractory: 140 of 3000 ms since the last event [A9, prescription]",)


@pytest.mark.safety("B4")
def test_what_the_loop_does_puts_no_expiry_off():
    bed = Bed().armed()
    armed = bed.now
    for minute in (20, 28):
        bed.skip(armed + minute * MINUTE - bed.now)
        assert bed.request().delivered
        bed.run(S)
        assert bed.s.person_ns == armed
    assert bed.s.warned
    bed.now = armed + 30 * MINUTE + 1
    assert bed.do(Kind.TICK).output is Output.DISARM


@pytest.mark.safety("A10", "B3")
def test_a_bed_without_room_names_the_first_limit():
    bed = idle()
    bed.s.session = Dose(30 * MINUTE, 3_600_000_000, 180_000)
    assert bed.arm().reasons == ("refused: dose: 30 min of stimulation in this session; a person must arm again [A10, hard limit]",)


@pytest.mark.safety("A8")
def test_the_shortest_train_is_one_pulse():
    bed = Bed(FREE).armed()
    assert bed.press(duration_us=1).delivered
    bed.run(S)
    assert len(bed.pulses) == 1
    assert bed.s.last_train[:3] == (bed.pulses[0][0], bed.pulses[0][0] + 1000, 1)


@pytest.mark.safety("C2")
def test_an_id_is_remembered_as_long_as_its_trigger_could_be_in_time():
    bed = idle()
    bed.press(number=5)
    bed.now += 250 * MS
    bed.press(number=6)
    assert "trigger 5 was seen before" in bed.press(number=5).reasons[0]


@pytest.mark.safety("B3", "B1")
def test_a_stimulator_that_confirms_before_the_arming_is_on_the_disk_is_stopped():
    bed = idle()
    bed.do(Kind.OFFER, number=7)
    bed.do(Kind.ARM, issued_ns=bed.now, number=7, event_id=RX.number)
    verdict = bed.do(Kind.ARMED)
    assert (verdict.output, verdict.state) == (Output.STOP, SafetyState.IDLE)
    assert verdict.reasons == ("armed without having been asked: taken back [B1]",)
    assert (bed.s.audited, bed.s.arming_ns) == (False, 0)


@pytest.mark.safety("B3", "C2")
@pytest.mark.parametrize("kind", [Kind.STOP, Kind.DISARM, Kind.DEVICE_FAULT, Kind.DAEMON_LOST])
def test_an_arming_under_way_in_lockout_is_taken_back_too(kind):
    bed = Bed(replace(RX, max_auto_events_1h=0)).armed()
    assert bed.request().state is SafetyState.LOCKOUT
    bed.do(Kind.OFFER, number=7)
    assert not bed.do(Kind.ARM, issued_ns=bed.now, number=7, event_id=bed.s.prescription.number).refused
    bed.do(kind, text="x")
    assert (bed.s.arming_ns, bed.s.offer, bed.s.audited) == (0, 0, False)
    assert bed.do(Kind.AUDITED).output is Output.NONE
    assert bed.do(Kind.ARMED).output is Output.STOP


@pytest.mark.safety("B4")
def test_the_warning_comes_no_later_than_after_nine_tenths():
    bed = Bed(replace(RX, arming_expires_ns=S + 1)).armed()
    assert bed.last.wake_ns == bed.now + 900 * MS
    bed.now += 900 * MS
    assert bed.do(Kind.TICK).reasons == ("arming expires in 0 s unless a person acts [B4]",)


@pytest.mark.safety("B3")
def test_a_bed_for_the_button_alone_misses_no_loop():
    bed = idle()
    bed.arm(automatic=False)
    assert (bed.s.state, bed.s.reason) == (SafetyState.ARMED, "armed for the button only")


@pytest.mark.safety("B5")
def test_clearing_a_fault_is_a_persons_act():
    bed = idle()
    bed.do(Kind.DEVICE_FAULT, text="port lost")
    bed.now += S
    bed.do(Kind.CLEAR, text="cable")
    assert bed.s.person_ns == bed.now


@pytest.mark.safety("A10", "B2")
def test_only_an_armed_bed_can_be_locked_out():
    """A person's press locks out a bed for the button too; what is asked for from elsewhere is refused and changes no state."""
    full = Dose(0, 0, 180_000)
    for automatic in (True, False):
        bed = idle()
        bed.arm(automatic=automatic)
        bed.s.session = full
        assert (bed.press().state, bed.last.output) == (SafetyState.LOCKOUT, Output.DISARM)
    for bed, state in ((idle(), SafetyState.IDLE), (running(after_ns=70 * MS), SafetyState.STIMULATING)):
        bed.s.session = full
        verdict = bed.press()
        assert "in this session; a person must arm again" in verdict.reasons[0]
        assert (verdict.state, verdict.output, bed.s.lockout, verdict.refused) == (state, Output.NONE, "", -1)


@pytest.mark.safety("C3")
def test_an_open_button_is_never_stuck():
    bed = idle()
    for number in range(1, 9):
        bed.now += S
        assert bed.do(Kind.BUTTON, number=number, issued_ns=bed.now).reasons == ()
    assert bed.s.button_stuck is False


@pytest.mark.safety("B4")
def test_arming_anew_warns_anew():
    bed = Bed().armed()
    bed.now += 28 * MINUTE
    assert "arming expires" in bed.do(Kind.TICK).reasons[0]
    bed.arm(automatic=False)
    assert bed.last.wake_ns == bed.now + 27 * MINUTE


@pytest.mark.safety("C3")
def test_guard_wakes_for_a_stuck_button():
    bed = idle()
    bed.do(Kind.BUTTON, ok=True, number=1, issued_ns=bed.now)
    closed = bed.now
    bed.now += S
    assert bed.do(Kind.BUTTON, ok=True, number=2, issued_ns=bed.now).wake_ns == closed + 2 * S + 1


@pytest.mark.safety("C4")
def test_losing_the_button_ends_a_train_in_these_words():
    bed = Bed().armed()
    bed.do(Kind.BUTTON, number=10**6, issued_ns=bed.now)
    bed.request()
    bed.s.outstanding = False
    bed.now += 2 * S + 1
    bed.s.heartbeat_ns = bed.now
    words = "the button is lost: nothing heard of it for 2 s [C4]"
    assert bed.do(Kind.TICK).reasons == (words, "disarmed: " + words)


@pytest.mark.safety("B3")
def test_no_offer_is_no_offer_of_the_number_zero():
    bed = idle()
    bed.do(Kind.OFFER, number=7)
    bed.do(Kind.DISARM, text="x")
    verdict = bed.do(Kind.ARM, issued_ns=bed.now, number=0, event_id=RX.number)
    assert verdict.reasons == ("refused: arming takes two steps within 60 s: look at what is offered, then arm [B3]",)


@pytest.mark.safety("B5")
def test_a_fault_stays_even_when_the_daemon_is_gone():
    bed = Bed().armed()
    bed.do(Kind.DEVICE_FAULT, text="port lost")
    verdict = bed.do(Kind.DAEMON_LOST, text="daemon gone")
    assert (verdict.state, verdict.output, verdict.reasons) == (SafetyState.FAULT, Output.STOP, ("daemon gone",))
    assert bed.s.reason == "fault: port lost"


@pytest.mark.safety("B6")
def test_what_ends_with_guard_anyway_says_nothing_of_three_faults():
    bed = idle()
    for kind in (Kind.DEVICE_FAULT, Kind.DEVICE_FAULT, Kind.SELF_FAULT):
        verdict = bed.do(kind, text="x")
        bed.do(Kind.CLEAR, text="y")
        bed.do(Kind.READY, ok=True, text="box 1")
    assert verdict.reasons == ("fault: x (guard must be started again) [B5]",)


@pytest.mark.safety("E1", "E5")
@pytest.mark.parametrize("kind", [Kind.STOP, Kind.DISARM])
def test_no_answer_is_awaited_after_the_high_voltage_is_off(kind):
    bed = Bed().armed()
    bed.acking = False
    bed.press()
    bed.do(kind, text="x")
    bed.now += ACK_TIMEOUT_NS + 1
    assert bed.do(Kind.TICK).state is SafetyState.IDLE


@pytest.mark.safety("A3", "E2")
def test_an_answer_that_nobody_waits_for_moves_nothing():
    bed = Bed(FREE).armed()
    bed.request()
    bed.now = bed.s.pulse_due_ns - 1
    bed.do(Kind.ACK)
    bed.now += 1
    assert bed.do(Kind.TICK).delivered


# --- the loop's punctuality -------------------------------------------------------------------------------------------------------
@pytest.mark.safety("F3")
def test_the_last_eleven_late_beats_count_and_no_older_one():
    bed = Bed().armed()
    start = bed.now
    for at_ms in (0, *range(5_000, 11_600, 600)):
        bed.now = start + at_ms * MS
        bed.s.heartbeat_ns = bed.now - 60 * MS
        assert not bed.s.paused
        bed.do(Kind.HEARTBEAT, ok=True)
    assert bed.s.paused
    assert bed.s.late == (bed.now,)


@pytest.mark.safety("F3")
def test_a_pause_that_ends_the_loops_train_in_words():
    bed = running()
    bed.now += 131 * MS
    bed.s.outstanding = False
    bed.s.heartbeat_ns = bed.now - 131 * MS
    assert bed.do(Kind.HEARTBEAT, ok=True).reasons == ("automatic mode pauses: the loop was late by 101 ms (at most 100) [F3]",)
    bed = running()
    bed.s.pauses = (bed.now - 2, bed.now - 1)
    bed.now += 131 * MS
    bed.s.outstanding = False
    bed.s.heartbeat_ns = bed.now - 131 * MS
    verdict = bed.do(Kind.HEARTBEAT, ok=True)
    words = "the loop was late by 101 ms (at most 100), 3 times in 10 min; a person must arm again [F3]"
    assert (verdict.reasons, verdict.ended, verdict.state) == ((words, "armed for the button only: " + words), 1, SafetyState.ARMED)
    assert bed.s.last_train.end_ns == bed.now


@pytest.mark.safety("F3")
def test_within_a_pause_no_other_begins():
    bed = Bed().armed()
    for _ in range(2):
        bed.now += 200 * MS
        bed.do(Kind.HEARTBEAT, ok=True)
        assert (bed.s.paused, len(bed.s.pauses)) == (True, 1)
    assert bed.last.reasons == ()
    bed.do(Kind.LOOP_LOST)
    assert (bed.s.paused, bed.s.automatic, bed.s.loop_joined, bed.s.data_ok) == (False, False, False, False)


@pytest.mark.safety("B1", "F2")
def test_beats_of_a_loop_that_did_not_join_prove_nothing():
    bed = Bed().armed()
    bed.do(Kind.LOOP_LOST)
    bed.do(Kind.HEARTBEAT, ok=True)
    bed.arm()
    assert (bed.s.state, bed.s.automatic) == (SafetyState.ARMED, False)


@pytest.mark.safety("F1")
def test_data_that_turn_stale_while_nothing_is_given_are_told():
    bed = Bed().armed()
    assert bed.do(Kind.HEARTBEAT, ok=True, sample_ns=0).reasons == ()  # nothing is known of their age
    assert (bed.s.stale, bed.s.data_ok) == ("", False)
    for ahead_ns, fresh in ((250 * MS, True), (250 * MS + 1, False)):
        bed.do(Kind.HEARTBEAT, ok=True, sample_ns=bed.now + ahead_ns)
        assert bed.s.data_ok is fresh
    assert bed.last.reasons == ("data stale: newest sample is stamped 251 ms ahead of this machine's clock",)
    bed.do(Kind.HEARTBEAT, ok=True, sample_ns=bed.now - 100 * MS - 1)
    assert bed.s.stale == "data stale: newest sample is 101 ms old (at most 100)"


@pytest.mark.safety("A9")
def test_the_first_train_of_an_event_is_no_longer_than_an_event_may_be():
    for most_ns, given in ((500 * MS, True), (500 * MS - 1, False), (0, False)):
        bed = Bed(replace(FREE, max_event_ns=most_ns)).armed()
        assert bed.request().delivered is given
        if not given:
            assert bed.last.reasons[0].startswith("refused: event would pass 0 s of stimulation [A9, ")
        bed = Bed(replace(FREE, max_event_ns=most_ns)).armed()
        assert bed.press().delivered is given


@pytest.mark.safety("A9")
def test_what_a_muscle_showed_in_another_spasm_is_no_rise():
    bed = Bed(FREE).armed()
    for level in (1000, 1000, 2000):  # once, so far
        assert bed.request(event_id=1, level=level).delivered
        bed.run(630 * MS)
    assert bed.s.event_rises == 1
    bed.run(2 * S)
    assert bed.request(event_id=2, level=9000).delivered
    assert (bed.s.event_rises, bed.s.event_level) == (0, 0)


# --- slots of a train -------------------------------------------------------------------------------------------------------------
def held_up(until_ns, rate_mhz=50_000):
    """A train of 25 pulses whose guard comes back so late."""
    bed = Bed(replace(FREE, trains=(replace(FLAT, pulse_rate_mhz=rate_mhz),))).armed()
    bed.request()
    bed.run(10 * MS)
    bed.now = bed.s.train_start_ns + until_ns
    bed.s.heartbeat_ns = bed.now
    bed.do(Kind.TICK)
    return bed


@pytest.mark.safety("A3", "A8")
def test_what_was_missed_is_counted_as_withheld():
    bed = held_up(130 * MS)  # in slot 6: slots 1 to 5 are gone
    assert (bed.last.delivered, bed.s.withheld_total, bed.s.pulse, bed.s.pulse_due_ns - bed.s.train_start_ns) == (True, 5, 7, 140 * MS)
    bed.now = bed.s.train_start_ns + 185 * MS
    bed.s.heartbeat_ns = bed.now
    assert bed.do(Kind.TICK).delivered
    assert bed.s.withheld_total == 7
    bed.now = bed.s.train_start_ns + 499 * MS
    bed.s.heartbeat_ns = bed.now
    assert bed.do(Kind.TICK).delivered
    assert bed.s.withheld_total == 21
    bed.run(S)
    assert (bed.s.pulses_total, bed.s.withheld_total) == (4, 21)


@pytest.mark.safety("A8")
def test_nothing_leaves_when_the_train_should_be_over():
    for until_ns in (500 * MS, 501 * MS, S):
        bed = held_up(until_ns)
        assert (bed.last.delivered, bed.last.reasons) == (False, ("late: the rest of the train is withheld",))
        assert (bed.s.withheld_total, bed.s.pulses_total, bed.last.ended, bed.last.state) == (24, 1, 1, SafetyState.ARMED)
        assert bed.s.last_train.end_ns - bed.s.last_train.start_ns == 500 * MS
    second = held_up(S)
    second.now += 3 * S
    second.s.heartbeat_ns = second.now
    second.request()
    second.run(10 * MS)
    second.now += S
    second.s.heartbeat_ns = second.now
    second.do(Kind.TICK)
    assert second.s.withheld_total == 48


@pytest.mark.safety("A3", "E5")
def test_the_least_spacing_counts_from_when_the_last_pulse_was_surely_over():
    """At 100 Hz the next pulse leaves if the last was answered within its own 1.1 ms, and is withheld if it was a nanosecond more."""
    for late_ns in (0, 1):
        bed = Bed(replace(FREE, trains=(replace(FLAT, pulse_rate_mhz=100_000),))).armed()
        bed.acking = False
        bed.request()
        bed.now += 1_100_000 + late_ns
        bed.do(Kind.ACK)
        bed.now = bed.s.pulse_due_ns
        assert bed.do(Kind.TICK).delivered is not bool(late_ns)
        assert bed.s.withheld_total == late_ns
        bed.s.outstanding = False
        bed.s.last_done_ns = bed.s.pulse_due_ns
        bed.now = bed.s.pulse_due_ns
        assert not bed.do(Kind.TICK).delivered
        assert bed.s.withheld_total == late_ns + 1


@pytest.mark.safety("A3", "E5")
def test_a_stimulator_whose_latency_varies_gets_its_commands_further_apart():
    """Of a RehaStim2 a pulse comes 10 to 24 ms after its command: 24 ms apart, and the pulses are 10 ms apart at least."""
    varies = replace(FREE, trains=(replace(FLAT, pulse_rate_mhz=40_000),), device=DEVICE._replace(latency_spread_ns=14 * MS))
    for late_ns in (0, 1):
        bed = Bed(varies).armed()
        bed.acking = False
        bed.request()
        bed.now += MS + 1_100_000 + late_ns  # of 25 ms, 24 and a pulse are to be left
        bed.do(Kind.ACK)
        bed.now = bed.s.pulse_due_ns
        assert bed.do(Kind.TICK).delivered is not bool(late_ns)


@pytest.mark.safety("A9", "E2")
def test_the_rest_begins_when_the_last_pulse_was_surely_over():
    """A train of one pulse that the box plays late: it is over after 20 ms, and answered for after 80."""
    for early_ns in (0, 1):
        bed = Bed(FREE).armed()
        bed.acking = False
        bed.request(duration_us=20_000)
        start = bed.now
        bed.run(30 * MS)
        assert bed.s.state is SafetyState.ARMED
        bed.now = start + 80 * MS
        bed.do(Kind.ACK)
        bed.do(Kind.HEARTBEAT, ok=True)
        bed.skip(900 * MS)
        bed.now = start + 80 * MS + S - early_ns
        assert bed.request().delivered is not bool(early_ns)
    assert bed.s.on_time_total_ns == 20 * MS  # it is no longer for that


@pytest.mark.safety("C6")
def test_a_request_within_its_own_train_is_refused_for_that_alone():
    bed = Bed(FREE).armed()
    bed.request(event_id=1, level=0)
    bed.run(70 * MS)
    assert bed.request(event_id=1, level=0).reasons == ("refused: already stimulating [C6]",)


def test_a_train_counts_no_longer_than_was_asked_for():
    bed = Bed(FREE).armed()
    bed.request(duration_us=490_000)
    bed.run(S)
    assert len(bed.pulses) == 25
    assert bed.s.last_train.end_ns - bed.s.last_train.start_ns == bed.s.on_time_total_ns == bed.s.event_on_ns == 490 * MS


# --- windows of the dose ----------------------------------------------------------------------------------------------------------
def after(rx, n_trains, wait_ns, by_person=True):
    """A bed in which so many trains were given, the last ended at `end_ns`, and it is `wait_ns` later."""
    bed = Bed(rx).armed()
    for _ in range(n_trains):
        assert bed.press().delivered
        bed.run(4 * S)
    bed.now = bed.s.event_end_ns + wait_ns
    bed.s.heartbeat_ns = bed.s.person_ns = bed.now
    bed.s.warned = False
    bed.do(Kind.HEARTBEAT, ok=True)
    return bed


@pytest.mark.safety("A9")
@pytest.mark.parametrize(("name", "window_ns"), [("max_on_time_60s_ns", MINUTE), ("max_duty_5min_ns", 5 * MINUTE)])
@pytest.mark.parametrize(("most_ns", "inside_ns"), [(500 * MS, 0), (600 * MS, 100 * MS), (999 * MS, 499 * MS), (1000 * MS, 500 * MS)])
def test_of_a_train_at_the_windows_edge_its_part_inside_counts(name, window_ns, most_ns, inside_ns):
    """One train of half a second; the next may begin just when what is left of it in the window and the next one are not too much."""
    for early_ns in (0, 1):
        bed = after(replace(FREE, **{name: most_ns}), 1, window_ns - 500 * MS - inside_ns - early_ns)
        assert bed.press().delivered is (not early_ns or inside_ns == 500 * MS)


def test_on_time_since_any_instant():
    s = Supervisor(RX)
    s.trains, s.on_time_total_ns = ((0, 100, 7), (200, 260, 107)), 167  # seven of an earlier one
    trains = [(0, 100), (200, 260)]

    def by_hand(since):
        return sum(max(0, end - max(start, since)) for start, end in trains)

    assert [s._on_time(since) for since in range(-5, 300)] == [by_hand(since) for since in range(-5, 300)]
    s.state, s.train_start_ns, s.duration_us = SafetyState.STIMULATING, 300, 3
    trains.append((300, 3300))
    assert [s._on_time(since) for since in range(-5, 3400)] == [by_hand(since) for since in range(-5, 3400)]


@pytest.mark.safety("A9")
def test_events_leave_their_windows_after_ten_minutes_and_an_hour():
    for wait_ns, leaves in ((10 * MINUTE - 1, False), (10 * MINUTE, True)):
        bed = Bed(replace(FREE, max_events_10min=1)).armed()
        bed.s.events = (bed.now - wait_ns,)
        assert bed.request().delivered is leaves
    for wait_ns, leaves in ((60 * MINUTE, False), (60 * MINUTE + 1, True)):
        bed = Bed(replace(FREE, max_auto_events_1h=1)).armed()
        bed.s.auto_events = (bed.now - wait_ns,)
        bed.s.armed_ns = bed.now - 2 * 60 * MINUTE
        assert bed.request().delivered is leaves


@pytest.mark.safety("A9")
def test_the_hours_automatic_events_begin_anew_with_arming():
    for before_ns, leaves in ((0, False), (1, True)):
        bed = Bed(replace(FREE, max_auto_events_1h=1)).armed()
        bed.s.auto_events = (bed.s.armed_ns - before_ns,)
        assert bed.request().delivered is leaves


def test_trains_are_let_go_when_no_window_holds_them():
    for wait_ns, kept in ((5 * MINUTE - 1, 2), (5 * MINUTE, 1)):
        bed = after(FREE, 1, wait_ns - 500 * MS)
        ended = bed.s.event_end_ns
        bed.press()
        bed.run(490 * MS)
        bed.now = bed.s.pulse_due_ns
        bed.s.heartbeat_ns = bed.now
        while bed.s.state is SafetyState.STIMULATING:
            bed.do(Kind.TICK)
            bed.now = max(bed.now, bed.s.pulse_due_ns)
        assert bed.s.event_end_ns == ended + wait_ns
        assert len(bed.s.trains) == kept


@pytest.mark.safety("A10")
def test_minutes_are_kept_for_a_day_and_a_minute():
    for age_ns, kept in ((24 * 60 * MINUTE + MINUTE - 1, True), (24 * 60 * MINUTE + MINUTE, False)):
        s = Supervisor(RX)
        s.minutes, s.day = ((10, Dose(1, 2, 3)), (5 * MINUTE, Dose(4, 5, 6))), Dose(5, 7, 9)
        s._add_to_day(Dose(10, 20, 30), 10 + age_ns)
        assert len(s.minutes) == 2 + kept
        assert s.day == (Dose(15, 27, 39) if kept else Dose(14, 25, 36))
    s = Supervisor(RX)
    s.minutes = ((0, Dose(1, 1, 1)), (MINUTE, Dose(2, 2, 2)), (2 * MINUTE, Dose(3, 3, 3)))
    s._add_to_day(Dose(4, 4, 4), 2 * MINUTE + 1)
    assert s.minutes == ((0, Dose(1, 1, 1)), (MINUTE, Dose(2, 2, 2)), (2 * MINUTE, Dose(7, 7, 7)))


@pytest.mark.safety("A10")
def test_what_a_train_can_give_is_planned_to_the_last_pulse():
    """500.001 ms at 50 Hz are 26 pulses; half a nC of each counts as a whole one, as it does when given."""
    long = replace(FLAT, duration_us=500_001)
    for given, leaves in ((74, True), (75, False)):
        bed = Bed(replace(FREE, trains=(long,), max_pulses_session=100)).armed()
        bed.s.session = Dose(0, 0, given)
        assert bed.press(duration_us=500_001).delivered is leaves
    odd = replace(FLAT, phase_width_us=501)
    for given, leaves in ((10**6 - 25 * 251, True), (10**6 - 25 * 251 + 1, False)):
        bed = Bed(replace(FREE, trains=(odd,), max_charge_session_nc=10**6)).armed()
        bed.s.session = Dose(0, given, 0)
        assert bed.press(current_ua=500).delivered is leaves
    planned = supervisor._planned(odd, 500, 500 * MS)
    assert planned == (500 * MS, 6275, 25)
    assert [type(figure) for figure in planned] == [int] * 3


@pytest.mark.safety("A10")
def test_each_figure_of_a_dose_fits_up_to_its_own_limit():
    most = Dose(10, 20, 30)
    assert supervisor._fits(Dose(4, 15, 29), Dose(6, 5, 1), most)
    for i in range(3):
        more = Dose(*(1 if k == i else 0 for k in range(3)))
        assert not supervisor._fits(most, more, most)


@pytest.mark.safety("A10")
def test_only_what_would_be_too_much_is_named():
    bed = Bed(FREE).armed()
    bed.s.session = Dose(30 * MINUTE - 500 * MS, 3_600_000_000 - 250_000, 180_000 - 24)
    words = "dose: 180000 pulses in this session; a person must arm again [A10, hard limit]"
    assert bed.press().reasons == ("refused: " + words, words)


# --- restored ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A9", "F8")
def test_the_last_of_the_restored_trains_began_the_refractory_time():
    s = Supervisor(RX)
    s.remember(NO_HISTORY | {"trains": [[0, 10], [20, 50], [60, 300]]})
    assert (s.trains, s.on_time_total_ns) == (((0, 10, 0), (20, 50, 10), (60, 300, 40)), 280)
    assert (s.event_end_ns, s.last_done_ns) == (300, 300)


# --- each train has its currents --------------------------------------------------------------------------------------------------
@pytest.mark.safety("A1", "A4", "A12")
def test_the_lawful_currents_are_worked_out_in_the_stimulators_steps():
    bed = Bed(replace(RX, device=DEVICE._replace(current_step_ua=5_000), max_charge_nc=7_500, trains=(replace(TRAIN, current_ua=20_000),)))
    assert bed.s.lawful_ua == (frozenset({5_000, 10_000, 15_000}),)
    assert check_prescription(bed.s.prescription) == ["train peroneal: charge 10000 nC per phase is above 7500 nC [A4, prescription]"]
    assert all(a < b for a, b in pairwise(sorted(bed.s.lawful_ua[0])))


@pytest.mark.safety("A1", "A10")
def test_a_negative_current_makes_no_room_in_the_dose():
    """Of a phase of 1 ms a current of -1 uA would be -1 nC a pulse."""
    bed = Bed(replace(FREE, trains=(replace(FLAT, current_ua=10_000, phase_width_us=1000),))).armed()
    bed.s.session = Dose(0, FREE.max_charge_session_nc + 1, 0)
    bed.request(current_ua=-1)
    assert not bed.last.delivered
    assert "in this session" in bed.last.reasons[0] and "[A10" in bed.last.reasons[0]
