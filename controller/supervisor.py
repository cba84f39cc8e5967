"""Whether output may happen: states, dose, reasons. `Supervisor.step(event) -> Verdict` is the whole of it.

Pure: no clock, no input or output, no settings file; time enters with each event. Integers only. What may leave at all is in `limits`; here
is when. Checks refuse with a reason, they never clip. What guard does on the wire is exactly `Verdict.output`, nothing else.

`TABLE` says what each event does in each state, all of them. A reason ends with the number of the safety requirement behind it.
Named constants are proposed and need a clinician's signature.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from controller.limits import (
    MAX_TRIGGER_AGE_NS,
    MINUTE,
    MS,
    Prescription,
    S,
    Train,
    charge_nc,
    highest_step,
    layer,
    n_pulses,
    pulse_current,
    pulse_reasons,
    soft_start,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LEASE_NS = 200 * MS  # automatic output lives this long beyond the loop's last proof of life (E4)
ACK_TIMEOUT_NS = 100 * MS  # no answer for this long: fault, and what was sent counts as delivered (E1)
CONTINUE_NS = 500 * MS  # a later request for the same spasm, counted from the end of the look, is an event of its own
OFFER_NS = 60 * S  # between the two steps of arming (B3)
PRESENCE_NS = 5 * MINUTE  # since the person who arms proved who they are (B3)
AUDIT_NS = 2 * S  # an arming that is not on the disk by then is not done (G7)
WARN_PERCENT = 90  # of the time after which arming expires (B4)
FAULTS, FAULTS_NS = 3, 10 * MINUTE  # so many faults within that time: guard must be started again (B6)
BOUNCE_NS = 30 * MS  # of a button's contact (C3)
STUCK_NS = 2 * S  # a button that is closed for longer is stuck (C3)
BUTTON_LOST_NS = 2 * S  # a button that says nothing for longer is lost (C4)
BEAT_DUE_NS = 30 * MS  # the loop's longest wait between two heartbeats when all is well (F3)
LATE_NS, VERY_LATE_NS = 20 * MS, 100 * MS  # beyond that: counted; automatic mode is off until the loop is punctual again (F3)
MAX_LATE, LATE_WINDOW_NS = 10, 10 * S  # 1 % of the heartbeats of ten seconds: the same (F3)
PUNCTUAL_NS = S  # so long without a late heartbeat is punctual again
PAUSES, PAUSES_NS = 3, 10 * MINUTE  # so many pauses within that time: a person must arm again
RISE_PERCENT, RISES = 25, 2  # that a muscle shows more than in the look before, so often running: paradox (physiology notes 1.5, 3.4)
MAX_REASON_CHARS = 300
MAX_STARTS = 512  # of events, kept before the old ones are let go: more than any limit lets through in an hour
MAX_IDS = 64  # of triggers within `MAX_TRIGGER_AGE_NS`: nobody presses that often
RECORDER_WORDS = "recording does not keep up: nothing more is stimulated [G7]"
LOCKOUT_WORDS = "a person must arm again"
DAY = 24 * 60


class SafetyState(StrEnum):
    """Where guard is. Output happens in STIMULATING alone."""

    OFF = "OFF"  # no stimulator
    IDLE = "IDLE"  # stimulator identified, high voltage off
    ARMED = "ARMED"
    STIMULATING = "STIMULATING"
    LOCKOUT = "LOCKOUT"  # a dose limit that asks for a person; high voltage off
    FAULT = "FAULT"  # latched until a person clears it


class Kind(StrEnum):
    """What can happen to guard, the most severe first: of what comes at once, guard takes up the first first (B7, C2)."""

    STOP = "stop"
    SELF_FAULT = "self fault"  # guard found itself wrong: only a new start mends that
    DEVICE_FAULT = "device fault"
    DAEMON_LOST = "daemon lost"
    LOOP_LOST = "loop lost"
    DISARM = "disarm"
    RECORDER = "recorder"  # whether what happens is being recorded
    BAD_INPUT = "bad input"
    ACK = "ack"
    HEARTBEAT = "heartbeat"
    LOOP_JOINED = "loop joined"
    READY = "ready"  # the stimulator answered and was prepared (ok), or did not (text says why)
    CLEAR = "clear"
    OFFER = "offer"  # first step of arming: a person is shown what will be armed
    ARM = "arm"  # second step
    AUDITED = "audited"  # the arming is on the disk
    ARMED = "armed"  # the stimulator confirmed
    BUTTON = "button"  # the level of the patient's button
    TRIGGER = "trigger"  # a person asks for one train
    REQUEST = "request"  # the loop asks for one train
    NOTE = "note"  # who came and went, and who holds control: guard's own books, put where what happens is put
    TICK = "tick"


RANK = {kind: n for n, kind in enumerate(Kind)}


class Cause(IntEnum):
    """Why a train was asked for."""

    EMG = 1
    FORCE = 2
    MANUAL = 3


class Output(StrEnum):
    """What guard is to do on the wire."""

    NONE = "none"
    PULSE = "pulse"
    STOP = "stop"
    ARM = "arm"
    DISARM = "disarm"


class Event(NamedTuple):
    """One input of the supervisor. Fields that a kind does not use stay 0.

    Attributes
    ----------
    now_ns : int
        Host monotonic clock when guard took it up.
    issued_ns : int
        When the loop decided, or the person pressed; of ARM: when the person proved who they are.
    sample_ns : int
        REQUEST: stamp of the sample that decided. HEARTBEAT: stamp of the newest sample; 0 = there was none yet.
    number : int
        Request number of the loop (strictly increasing), id of a trigger, packet number of an acknowledgement, number of an offer.
    event_id : int
        The spasm that a request belongs to. ARM: `Prescription.number`.
    ok : bool
        READY: the stimulator is there. HEARTBEAT: data are arriving. RECORDER: it keeps up. ARM: automatic mode is wanted too.
        BUTTON: its contact is closed.
    text : str
        READY: who the stimulator is, or why there is none. Else who did it, or what happened.
    rule, level : int
        REQUEST: which rule asks, and what its muscle showed in the look just before, in 1/1000 of its unit; 0 = no look yet.
    """

    kind: Kind
    now_ns: int
    issued_ns: int = 0
    sample_ns: int = 0
    number: int = 0
    event_id: int = 0
    train: int = 0
    current_ua: int = 0
    duration_us: int = 0
    cause: int = 0
    ok: bool = False
    text: str = ""
    rule: int = 0
    level: int = 0


class Verdict(NamedTuple):
    """What follows from one event.

    Attributes
    ----------
    delivered : bool
        A pulse is to leave now: the first of a train, or one that happened to be due. Whether a request was granted says `refused`.
    automatic : bool
        The loop may stimulate too, not only a person.
    reasons : tuple of str
        Why something was refused, ended or changed; empty when nothing needs saying.
    wake_ns : int
        When the supervisor wants a TICK at the latest; 0 = whenever.
    refused, ended : int
        Number of the request that was refused, or whose train is over; 0 = none. -1 stands for a person's train.
    """

    delivered: bool
    state: SafetyState
    automatic: bool
    reasons: tuple[str, ...]
    output: Output
    train: int
    current_ua: int
    wake_ns: int
    refused: int
    ended: int


class Dose(NamedTuple):
    """What was given, or is about to be."""

    on_ns: int
    charge_nc: int
    pulses: int


class TrainGiven(NamedTuple):
    """A train that is over, for the dose journal."""

    start_ns: int
    end_ns: int
    pulses: int
    charge_nc: int
    event_id: int
    cause: int
    new_event: bool
    automatic: bool


NOTHING = Dose(0, 0, 0)
NO_TRAIN = TrainGiven(0, 0, 0, 0, 0, 0, False, False)


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events that came at once, the most severe first; those of one kind as they came (B7)."""
    return sorted(events, key=lambda event: RANK[event.kind])


def _sum(doses: Iterable[Dose]) -> Dose:
    on_ns = charge_nc = pulses = 0
    for dose in doses:
        on_ns, charge_nc, pulses = on_ns + dose[0], charge_nc + dose[1], pulses + dose[2]
    return Dose(on_ns, charge_nc, pulses)


def _planned(t: Train, current_ua: int, duration_ns: int) -> Dose:
    """What a train can give at most."""
    pulses = n_pulses(t, duration_ns // 1000)
    return Dose(duration_ns, pulses * charge_nc(t, current_ua), pulses)


def _fits(given: Dose, more: Dose, most: Dose) -> bool:
    return given[0] + more[0] <= most[0] and given[1] + more[1] <= most[1] and given[2] + more[2] <= most[2]


def _ms(ns: int) -> int:
    """For people; rounded up, so that what is above a limit looks so."""
    return -(-ns // MS)


def _later(starts: tuple[int, ...], now: int) -> tuple[int, ...]:
    """One start more, now and then without those of more than an hour ago."""
    if len(starts) >= MAX_STARTS:
        starts = starts[bisect_right(starts, now - 60 * MINUTE) :]
    return (*starts, now)


_start_of, _end_of = itemgetter(0), itemgetter(1)
_CAUSE_WORDS: dict[int, str] = {Cause.EMG: "emg", Cause.FORCE: "force", Cause.MANUAL: "manual"}
_AUTOMATIC = (Cause.EMG, Cause.FORCE)
_SEVERITY = {Output.NONE: 0, Output.PULSE: 1, Output.ARM: 2, Output.DISARM: 3, Output.STOP: 4}


def _worse(a: Output, b: Output) -> Output:
    """The more severe of two (B7)."""
    return b if _SEVERITY[b] > _SEVERITY[a] else a


# What happens: event by row, state by column; each word is a method `_WORD` of `Supervisor`.
#                      OFF          IDLE         ARMED        STIMULATING  LOCKOUT      FAULT
_ROWS = {
    Kind.STOP:         "stop         stop         stop         stop         stop         stop",
    Kind.SELF_FAULT:   "wrong        wrong        wrong        wrong        wrong        wrong",
    Kind.DEVICE_FAULT: "trouble      trouble      trouble      trouble      trouble      trouble",
    Kind.DAEMON_LOST:  "end          end          end          end          end          end",
    Kind.LOOP_LOST:    "unhear       unhear       unhear       unhear       unhear       unhear",
    Kind.DISARM:       "nothing      disarm       disarm       disarm       disarm       nothing",
    Kind.RECORDER:     "recorder     recorder     recorder     recorder     recorder     recorder",
    Kind.BAD_INPUT:    "tell         tell         tell         tell         tell         tell",
    Kind.ACK:          "ack          ack          ack          ack          ack          ack",
    Kind.HEARTBEAT:    "beat         beat         beat         beat         beat         beat",
    Kind.LOOP_JOINED:  "join         join         join         join         join         join",
    Kind.READY:        "ready        nothing      nothing      nothing      nothing      nothing",
    Kind.CLEAR:        "no_fault     no_fault     no_fault     no_fault     no_fault     clear",
    Kind.OFFER:        "no_arm       offer        offer        no_arm       offer        no_arm",
    Kind.ARM:          "no_arm       arm          arm          no_arm       arm          no_arm",
    Kind.AUDITED:      "nothing      audited      audited      nothing      audited      nothing",
    Kind.ARMED:        "unasked      armed        armed        unasked      armed        unasked",
    Kind.BUTTON:       "button       button       button       button       button       button",
    Kind.TRIGGER:      "ask          ask          ask          ask          ask          ask",
    Kind.REQUEST:      "ask          ask          ask          ask          ask          ask",
    Kind.NOTE:         "note         note         note         note         note         note",
    Kind.TICK:         "nothing      nothing      nothing      nothing      nothing      nothing",
}  # fmt: skip


@dataclass(slots=True)
class Supervisor:
    """The state that decides, and `step`, which moves it. Plain integers and tuples: a shallow copy is a whole copy."""

    prescription: Prescription
    state: SafetyState = SafetyState.OFF
    reason: str = "no stimulator yet"
    automatic: bool = False  # a person armed automatic mode, for the loop that was alive then
    person_ns: int = 0  # last act of a person
    armed_ns: int = 0
    warned: bool = False  # that arming expires soon
    # arming: offered -> asked for -> on the disk -> confirmed by the stimulator
    offer: int = 0
    offer_ns: int = 0
    arming_ns: int = 0  # when it was asked for; 0 = it is not
    want_automatic: bool = False
    audited: bool = False
    stop_ns: int = 0  # what was asked for before the last stop is void (C2)
    # the stimulator, and what went wrong
    identity: str = ""
    faults: tuple[int, ...] = ()
    permanent: bool = False
    lockout: str = ""
    # the loop
    loop_joined: bool = False
    heartbeat_ns: int = 0
    late: tuple[int, ...] = ()  # heartbeats that were
    late_total: int = 0
    pauses: tuple[int, ...] = ()  # of automatic mode, because the loop was late
    paused: bool = False
    data_ok: bool = False
    data_age_ns: int = 0  # of the newest sample when the loop last beat
    recorder_ok: bool = True
    last_number: int = 0
    ids: tuple[tuple[int, int], ...] = ()  # (when, id) of the last triggers
    # the button: 0 = there is none
    button_ns: int = 0  # when it last said something
    button_edge_ns: int = 0
    button_closed: bool = False
    button_stuck: bool = False
    # the running train
    train: int = 0
    request: int = 0
    current_ua: int = 0
    duration_us: int = 0
    n_pulses: int = 0
    train_start_ns: int = 0
    pulse: int = 0  # index of the next pulse
    pulse_due_ns: int = 0
    train_pulses: int = 0
    train_charge_nc: int = 0
    new_event: bool = False
    first_ns: tuple[int, ...] = ()  # of each train, its first pulse since arming; 0 = none yet
    last_ua: tuple[int, ...] = ()  # of each train, its current when it was last given since arming
    # the wire
    last_pulse_ns: int = 0
    last_done_ns: int = 0  # when the last pulse was surely over
    outstanding: bool = False
    # the event: one spasm, or one press
    event_id: int = 0
    event_cause: int = 0
    event_on_ns: int = 0
    event_end_ns: int = -MINUTE
    event_level: int = 0
    event_rises: int = 0
    # which rules found that stimulation makes their muscle stronger, and the trains that did it
    paradox_rules: frozenset[int] = frozenset()
    paradox_trains: frozenset[int] = frozenset()
    # the dose
    trains: tuple[tuple[int, int, int], ...] = ()  # (start, end, on-time before it) of those that were over in the last 5 min
    events: tuple[int, ...] = ()  # starts in the last hour
    auto_events: tuple[int, ...] = ()  # of these the loop's
    minutes: tuple[tuple[int, Dose], ...] = ()  # (start of the minute, what ended in it) of the last 24 h
    day: Dose = NOTHING  # sum of `minutes`
    session: Dose = NOTHING
    last_train: TrainGiven = NO_TRAIN
    pulses_total: int = 0
    charge_total_nc: int = 0
    on_time_total_ns: int = 0
    withheld_total: int = 0
    lawful_ua: tuple[frozenset[int], ...] = ()  # of each train, the currents for which `pulse_reasons` has nothing to say
    most_session: Dose = NOTHING
    most_day: Dose = NOTHING
    _said: list[str] = field(default_factory=list)
    _refused: int = 0
    _ended: int = 0

    def __post_init__(self) -> None:
        p = self.prescription  # never changes, so what follows from it is worked out once
        step_ua = p.device.current_step_ua
        self.lawful_ua = tuple(
            frozenset(ua for ua in range(step_ua, t.current_ua + 1, step_ua) if not pulse_reasons(t, ua, p)) for t in p.trains
        )
        self.most_session = Dose(p.max_on_time_session_ns, p.max_charge_session_nc, p.max_pulses_session)
        self.most_day = Dose(p.max_on_time_24h_ns, p.max_charge_24h_nc, p.max_pulses_24h)
        self._forget_currents()

    def remember(self, history: dict[str, Any]) -> None:
        """Take over the dose of earlier, from the journal; before the first event.

        Raises
        ------
        ValueError
            The history is not what the journal writes: an unknown dose is no dose of zero, so guard does not start (A10, F8).
        """
        try:
            rows = [(*map(_whole, row),) for row in history["trains"]]
            minutes = [(*map(_whole, row),) for row in history["minutes"]]
            session = Dose(*map(_whole, history["session"]))
            events, auto_events = ((*sorted(map(_whole, history[name])),) for name in ("events", "auto_events"))
            lockout = str(history["lockout"])[:MAX_REASON_CHARS]
            for start, end in rows:
                self.trains = (*self.trains, (start, end, self.on_time_total_ns))
                self.on_time_total_ns += end - start
            self.minutes = tuple(sorted((start, Dose(on_ns, charge_nc, pulses)) for start, on_ns, charge_nc, pulses in minutes))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the dose history cannot be read: {type(error).__name__}: {error} [A10, F8]") from None
        self.day = _sum(dose for _, dose in self.minutes)
        self.session, self.events, self.auto_events, self.lockout = session, events, auto_events, lockout
        if self.trains:
            self.event_end_ns = self.last_done_ns = self.trains[-1][1]

    # --- the step ------------------------------------------------------------------------------------------------------------
    def step(self, event: Event) -> Verdict:
        """Take one event, give the verdict. Never raises on any event of the right types."""
        self._said = []
        self._refused = self._ended = 0
        current_ua, now = 0, event.now_ns
        output = Output.NONE
        # An answer that is late by guard's own clock is as good as none: what happened in between is not known.
        if self.outstanding and now - self.last_pulse_ns > ACK_TIMEOUT_NS:
            output = self._fault(f"no acknowledgement within {ACK_TIMEOUT_NS // MS} ms; the pulse counts as delivered [E1]", now)
        output = _worse(output, TABLE[event.kind][self.state](self, event))
        if self.button_ns:
            output = _worse(output, self._watch_button(now))
        if self.arming_ns and now - self.arming_ns > AUDIT_NS:
            self._disarming("not armed: the audit did not confirm it [G7]")
        if output is Output.NONE and self.state is SafetyState.STIMULATING:
            cut = self._cut(now)
            if cut:
                self._end_train(cut, now)
            else:
                current_ua = self._due(now)
                if current_ua:
                    output = Output.PULSE
                elif self.permanent:
                    output = Output.STOP
        if self.state is SafetyState.ARMED:
            output = _worse(output, self._expire(now))
        said, pulse = tuple(self._said), output is Output.PULSE
        return Verdict(pulse, self.state, self.automatic, said, output, self.train, current_ua, self._wake(), self._refused, self._ended)

    # --- what ends output ----------------------------------------------------------------------------------------------------
    def _stop(self, event: Event) -> Output:
        self._end_train("stopped: " + event.text, event.now_ns)
        self.outstanding = False  # the box drops its queue with the stop: an answer need not come
        self.person_ns = self.stop_ns = event.now_ns
        self._disarming("")
        if self.state in (SafetyState.IDLE, SafetyState.ARMED):
            self._to(SafetyState.IDLE, "stopped: " + event.text)
        else:
            self._say("stopped: " + event.text)
        return Output.STOP

    def _wrong(self, event: Event) -> Output:
        self.permanent = True
        return self._fault(event.text + " (guard must be started again) [B5]", event.now_ns)

    def _trouble(self, event: Event) -> Output:
        return self._fault(event.text, event.now_ns)

    def _end(self, event: Event) -> Output:
        why = event.text or "daemon lost: nothing is recorded, so nothing is stimulated"
        self._end_train(why, event.now_ns)
        self._disarming("")
        if self.state is SafetyState.FAULT:  # it stays latched, even so
            self._say(why)
        else:
            self._to(SafetyState.OFF, why)
        return Output.STOP

    def _unhear(self, event: Event) -> Output:
        self.loop_joined = self.data_ok = False
        self.data_age_ns = self.heartbeat_ns = 0
        self._automatic_off("loop lost; a person must arm automatic mode again", event.now_ns)
        return Output.NONE

    def _disarm(self, event: Event) -> Output:
        self._end_train("disarmed: " + event.text, event.now_ns)
        self.outstanding = False
        self.person_ns = event.now_ns
        self._disarming("")
        if self.state is SafetyState.ARMED:
            self._to(SafetyState.IDLE, "disarmed: " + event.text)
            return Output.DISARM
        return Output.NONE

    def _fault(self, why: str, now: int) -> Output:
        self._end_train("fault", now)
        self.outstanding = False
        if self.state is SafetyState.FAULT:  # the first reason stays: what comes after may only follow from it
            self._say("fault: " + why)
            return Output.STOP
        self.faults = (*self.faults, now)[-FAULTS:]
        if len(self.faults) == FAULTS and now - self.faults[0] <= FAULTS_NS and not self.permanent:
            self.permanent = True
            why = f"{why[: MAX_REASON_CHARS // 2]}; {FAULTS} faults within {FAULTS_NS // MINUTE} min: guard must be started again [B6]"
        self._to(SafetyState.FAULT, "fault: " + why)
        return Output.STOP

    def _automatic_off(self, why: str, now: int) -> None:
        self.paused = False
        if self.automatic:
            self.automatic = False
            self._end_loops_train(why, now)
            self._to(self.state, "armed for the button only: " + why)

    def _end_loops_train(self, why: str, now: int) -> None:
        if self.request > 0:
            self._end_train(why, now)

    # --- what only informs ---------------------------------------------------------------------------------------------------
    def _nothing(self, event: Event) -> Output:
        return Output.NONE

    def _tell(self, event: Event) -> Output:
        self._say("refused: " + event.text)
        return Output.NONE

    def _note(self, event: Event) -> Output:
        self._say(event.text)
        return Output.NONE

    def _recorder(self, event: Event) -> Output:
        self.recorder_ok = event.ok
        self._say("recording keeps up again" if event.ok else event.text or RECORDER_WORDS)
        return Output.NONE

    def _ack(self, event: Event) -> Output:
        if self.outstanding:
            self.outstanding = False
            self.last_done_ns = event.now_ns
            if self.state is not SafetyState.STIMULATING:  # a box may play the last pulse late: the rest begins then
                self.event_end_ns = event.now_ns
        return Output.NONE

    def _ready(self, event: Event) -> Output:
        if not event.ok:
            self._to(SafetyState.OFF, event.text)
        elif self.identity and event.text != self.identity:
            was, self.identity = self.identity, ""  # whoever clears the fault accepts the new one
            return self._fault(f"another stimulator: {event.text}, before {was} [E6]", event.now_ns)
        else:
            self.identity = event.text
            if self.lockout:
                self._to(SafetyState.LOCKOUT, self.lockout)
            else:
                self._to(SafetyState.IDLE, f"not armed: {event.text} found")
        return Output.NONE

    # --- the loop's proof of life --------------------------------------------------------------------------------------------
    def _join(self, event: Event) -> Output:
        self._automatic_off("a new loop; a person must arm automatic mode again", event.now_ns)
        self.loop_joined, self.data_ok, self.last_number = True, False, 0
        self.event_id = self.data_age_ns = self.heartbeat_ns = 0  # its numbers start anew: it continues nobody's event
        return Output.NONE

    def _beat(self, event: Event) -> Output:
        was_stale, before = self.stale, self.heartbeat_ns
        # when the loop lived, not when guard got to hear of it: beats that waited in the socket prove nothing
        self.heartbeat_ns = min(event.issued_ns, event.now_ns)
        if event.sample_ns:
            self.data_age_ns = event.issued_ns - event.sample_ns
        stale = self.stale
        self.data_ok = event.ok and event.sample_ns != 0 and not stale
        if stale and not was_stale:
            self._say(stale)
        elif was_stale and not stale:
            self._say("data fresh again")
        late_ns = self.heartbeat_ns - before - BEAT_DUE_NS if before else 0
        if late_ns > LATE_NS:
            self._count_late(late_ns, event.now_ns)
        elif self.paused and event.now_ns - self.late[-1] > PUNCTUAL_NS:
            self.paused = False
            self._say("the loop is punctual again: automatic mode goes on [F3]")
        return Output.NONE

    def _count_late(self, late_ns: int, now: int) -> None:
        """Late once by much, or in 1 % of ten seconds' heartbeats: automatic mode pauses; the third pause asks for a person."""
        self.late = (*self.late, now)[-MAX_LATE - 1 :]
        self.late_total += 1
        often = len(self.late) > MAX_LATE and now - self.late[0] <= LATE_WINDOW_NS
        if self.paused or not self.automatic or not (often or late_ns > VERY_LATE_NS):
            return
        self.late = (now,)
        self.pauses = (*self.pauses, now)[-PAUSES:]
        why = f"{MAX_LATE + 1} times in {LATE_WINDOW_NS // S} s" if often else f"by {_ms(late_ns)} ms (at most {VERY_LATE_NS // MS})"
        if len(self.pauses) == PAUSES and now - self.pauses[0] <= PAUSES_NS:
            self._automatic_off(f"the loop was late {why}, {PAUSES} times in {PAUSES_NS // MINUTE} min; {LOCKOUT_WORDS} [F3]", now)
            return
        self.paused = True
        words = f"automatic mode pauses: the loop was late {why} [F3]"
        self._end_loops_train(words, now)
        self._say(words)

    @property
    def stale(self) -> str:
        """Why the data are too old, by the loop's last heartbeat; empty = they are not."""
        most = self.prescription.max_sample_age_ns
        if self.data_age_ns > most:
            return f"data stale: newest sample is {_ms(self.data_age_ns)} ms old (at most {most // MS})"
        if self.data_age_ns < -MAX_TRIGGER_AGE_NS:
            return f"data stale: newest sample is stamped {_ms(-self.data_age_ns)} ms ahead of this machine's clock"
        return ""

    # --- arming: two steps by a person, one on the disk, one by the stimulator -----------------------------------------------
    def _no_arm(self, event: Event) -> Output:
        self._refused = -1
        self._say(f"refused: arming is possible from IDLE, not from {self.state}: {self.reason} [B2]")
        return Output.NONE

    def _offer(self, event: Event) -> Output:
        self.offer, self.offer_ns = event.number, event.now_ns
        return Output.NONE

    def _arm(self, event: Event) -> Output:
        now, reasons = event.now_ns, []
        if not self.offer or event.number != self.offer or now - self.offer_ns > OFFER_NS:
            reasons.append(f"arming takes two steps within {OFFER_NS // S} s: look at what is offered, then arm [B3]")
        if event.event_id != self.prescription.number:
            reasons.append("the prescription named is not the one in force [B3]")
        if not 0 <= now - event.issued_ns <= PRESENCE_NS:
            reasons.append(f"whoever arms must have proved who they are within {PRESENCE_NS // MINUTE} min [B3]")
        if self.button_closed:
            reasons.append("the button is closed: let it go first [C3]")
        if not self.recorder_ok:
            reasons.append(RECORDER_WORDS)
        if self.arming_ns:
            reasons.append("arming is under way already [B3]")
        exhausted = self._exhausted(now)
        if exhausted:
            reasons.append(exhausted)
        if reasons:
            self._refused = -1
            self._say("refused: " + "; ".join(reasons))
            return Output.NONE
        self.person_ns = self.arming_ns = now
        self.offer, self.audited, self.want_automatic = 0, False, event.ok
        self._say("arming: " + event.text)
        return Output.NONE

    def _audited(self, event: Event) -> Output:
        if not self.arming_ns or self.audited:
            return Output.NONE
        self.audited = True
        return Output.ARM

    def _armed(self, event: Event) -> Output:
        now = event.now_ns
        if not self.arming_ns or not self.audited:
            return self._unasked(event)
        self._disarming("")
        alive = self.loop_joined and self.data_ok and now - self.heartbeat_ns <= LEASE_NS
        self.automatic = self.want_automatic and alive
        self.armed_ns = self.person_ns = now
        self.warned = False
        self.lockout, self.late, self.pauses, self.paused = "", (), (), False
        self.paradox_rules = self.paradox_trains = frozenset()
        self._forget_currents()
        if self.want_automatic and not alive:
            self._to(SafetyState.ARMED, "armed for the button only: the loop has no data")
        else:
            self._to(SafetyState.ARMED, "armed" if self.automatic else "armed for the button only")
        return Output.NONE

    def _unasked(self, event: Event) -> Output:
        self._end_train("armed without having been asked", event.now_ns)
        self._disarming("")
        if self.state is SafetyState.ARMED:
            self._to(SafetyState.IDLE, "armed without having been asked: taken back [B1]")
        else:
            self._say("armed without having been asked: taken back [B1]")
        return Output.STOP

    def _disarming(self, why: str) -> None:
        self.arming_ns = self.offer = 0
        self.audited = False
        self._say(why)

    def _no_fault(self, event: Event) -> Output:
        self._refused = -1
        self._say("refused: there is no fault to clear")
        return Output.NONE

    def _clear(self, event: Event) -> Output:
        if self.permanent:
            self._refused = -1
            self._say("refused: only a new start of guard clears this fault: " + self.reason)
        elif not event.text.strip():
            self._refused = -1
            self._say("refused: clearing a fault needs a reason in words [B5]")
        else:
            self.person_ns = event.now_ns
            self._to(SafetyState.OFF, "fault cleared: " + event.text)
        return Output.NONE

    def _expire(self, now: int) -> Output:
        most = self.prescription.arming_expires_ns
        if now - self.person_ns > most:
            by = layer(self.prescription, "arming_expires_ns")
            self._to(SafetyState.IDLE, f"arming expired: no person for {most // MINUTE} min [B4, {by}]")
            return Output.DISARM
        if not self.warned and now - self.person_ns >= most * WARN_PERCENT // 100:
            self.warned = True
            self._say(f"arming expires in {(most - (now - self.person_ns)) // S} s unless a person acts [B4]")
        return Output.NONE

    # --- the button ----------------------------------------------------------------------------------------------------------
    def _button(self, event: Event) -> Output:
        now, there = event.now_ns, self.button_ns != 0
        self.button_ns = now
        if event.ok == self.button_closed:
            return Output.NONE
        bounced = there and now - self.button_edge_ns < BOUNCE_NS
        self.button_closed, self.button_edge_ns, self.button_stuck = event.ok, now, False
        if not event.ok or bounced:
            return Output.NONE
        if not there:
            self._say("the button is closed: let it go first [C3]")
            return Output.NONE
        p = self.prescription
        t = p.trains[p.manual_train]
        press = event._replace(kind=Kind.TRIGGER, train=p.manual_train, current_ua=t.current_ua, duration_us=t.duration_us)
        return self._ask(press)

    def _watch_button(self, now: int) -> Output:
        if self.button_closed and not self.button_stuck and now - self.button_edge_ns > STUCK_NS:
            self.button_stuck = True
            self._say(f"the button is stuck: closed for more than {STUCK_NS // S} s [C3]")
        if now - self.button_ns <= BUTTON_LOST_NS:
            return Output.NONE
        self.button_ns, self.button_closed = 0, False
        words = f"the button is lost: nothing heard of it for {BUTTON_LOST_NS // S} s [C4]"
        if not self.automatic:
            self._say(words)
            return Output.NONE
        self._end_train(words, now)
        self._to(SafetyState.IDLE, "disarmed: " + words)
        return Output.DISARM

    # --- may this train begin? -----------------------------------------------------------------------------------------------
    def _ask(self, event: Event) -> Output:
        continues = self._continues(event)
        reasons = self._reasons(event, continues)
        if event.kind is Kind.TRIGGER:
            self.ids = (*(old for old in self.ids if event.now_ns - old[0] <= MAX_TRIGGER_AGE_NS), (event.now_ns, event.number))[-MAX_IDS:]
        else:
            self.last_number = max(self.last_number, event.number)
        if not reasons:
            self._begin(event, continues)
            return Output.NONE
        self._refused = -1 if event.kind is Kind.TRIGGER else event.number
        self._say("refused: " + "; ".join(reasons))
        for reason in reasons:
            if LOCKOUT_WORDS in reason and self.state is SafetyState.ARMED and (self.automatic or event.kind is Kind.TRIGGER):
                self.lockout = reason
                self._to(SafetyState.LOCKOUT, reason)
                return Output.DISARM
        return Output.NONE

    def _reasons(self, event: Event, continues: bool) -> list[str]:
        p, now = self.prescription, event.now_ns
        by_person = event.kind is Kind.TRIGGER
        reasons: list[str] = []
        if self.state is not SafetyState.ARMED:
            stimulating = self.state is SafetyState.STIMULATING
            reasons.append("already stimulating [C6]" if stimulating else f"not armed: {self.state}, {self.reason} [B2]")
        elif now - self.person_ns > p.arming_expires_ns:
            reasons.append("arming has expired [B4]")
        if self.arming_ns:
            reasons.append("arming is under way [B3]")
        if not self.recorder_ok:
            reasons.append(RECORDER_WORDS)
        age = now - event.issued_ns
        if event.issued_ns <= self.stop_ns:
            reasons.append("asked for before the last stop [C2]")
        if by_person:
            if not 0 <= age <= MAX_TRIGGER_AGE_NS:
                reasons.append(f"trigger is {_ms(age)} ms old (0 to {MAX_TRIGGER_AGE_NS // MS} allowed) [C7]")
            recent = [number for when, number in self.ids if now - when <= MAX_TRIGGER_AGE_NS]
            if event.number <= 0 or event.number in recent or len(recent) >= MAX_IDS:
                reasons.append(f"trigger {event.number} was seen before, or has no id [C2]")
            if event.train != p.manual_train:
                reasons.append("not the train prescribed for the button [A1, prescription]")
        else:
            reasons += self._loop_reasons(event, age, continues)
        if not 0 <= event.train < len(p.trains):
            return [*reasons, f"train {event.train} is not prescribed [A12, prescription]"]
        t, step_ua = p.trains[event.train], p.device.current_step_ua
        if not 0 < event.duration_us <= t.duration_us:
            reasons.append(f"duration {event.duration_us} us is not within the {t.duration_us} us prescribed [A8, prescription]")
        if event.current_ua not in self.lawful_ua[event.train]:
            if event.current_ua % step_ua:
                reasons.append(f"current {event.current_ua} uA is no multiple of {step_ua} uA [A12, device]")
            reasons += pulse_reasons(t, event.current_ua, p)
        last_ua = self.last_ua[event.train]
        if last_ua and event.current_ua - last_ua > highest_step(last_ua, step_ua):
            reasons.append(f"current {event.current_ua} uA is too far above the last train's {last_ua} uA [A11, hard limit]")
        if self.outstanding:
            reasons.append("the last pulse is not acknowledged yet [E5]")
        return reasons + self._dose_reasons(event, now, continues)

    def _loop_reasons(self, event: Event, age: int, continues: bool) -> list[str]:
        """What only a loop must prove."""
        p, now = self.prescription, event.now_ns
        reasons = []
        if not self.automatic:
            reasons.append("automatic mode is off [B1]")
        if self.paused:
            reasons.append("automatic mode pauses: the loop was late [F3]")
        if now - self.heartbeat_ns > LEASE_NS or not self.data_ok:
            reasons.append((self.stale or "the loop gave no proof of life with data") + " [E4]")
        if not 0 <= age <= p.max_lateness_ns:
            reasons.append(f"request is {_ms(age)} ms late (at most {p.max_lateness_ns // MS}) [C7]")
        sample_age = now - event.sample_ns
        if not -MAX_TRIGGER_AGE_NS <= sample_age <= p.max_sample_age_ns:
            reasons.append(f"deciding sample is {_ms(sample_age)} ms old (at most {p.max_sample_age_ns // MS}) [C7]")
        if event.number <= self.last_number:
            reasons.append(f"request {event.number} was seen before [E2]")
        if event.cause not in _AUTOMATIC:
            reasons.append(f"unknown cause {event.cause} [A12]")
        if event.event_id <= 0:
            reasons.append(f"event id {event.event_id} is not above 0 [A12]")
        if event.level < 0 or (event.level == 0 and continues):
            reasons.append(f"level {event.level} is none of a muscle that was looked at [A12]")
        if continues and self._rises(event) >= RISES:
            self.paradox_rules, self.paradox_trains = self.paradox_rules | {event.rule}, self.paradox_trains | {event.train}
        if event.rule in self.paradox_rules or event.train in self.paradox_trains:
            reasons.append(f"paradox: a muscle rose over {RISES} looks; rule {event.rule} or its train is locked out until a person arms")
        return reasons

    def _continues(self, event: Event) -> bool:
        p = self.prescription
        return (
            event.kind is Kind.REQUEST
            and event.event_id == self.event_id
            and self.event_cause != Cause.MANUAL
            and event.now_ns - self.event_end_ns < p.look_dead_ns + p.look_ns + CONTINUE_NS
        )

    def _rises(self, event: Event) -> int:
        """Looks of this event running in which the muscle showed `RISE_PERCENT` more than in the one before."""
        if not self.event_level:
            return 0
        return self.event_rises + 1 if event.level * 100 > self.event_level * (100 + RISE_PERCENT) else 0

    def _dose_reasons(self, event: Event, now: int, continues: bool) -> list[str]:
        p = self.prescription
        t = p.trains[event.train]
        # what is asked for beyond the prescription is refused for that, and must not lock anybody out
        duration = min(max(event.duration_us, 0), t.duration_us) * 1000
        current_ua = min(max(event.current_ua, 0), t.current_ua)
        reasons = []
        since = now - self.event_end_ns
        if continues:
            if since < p.look_dead_ns + p.look_ns:
                reasons.append(f"look of {(p.look_dead_ns + p.look_ns) // MS} ms not over [A9, {layer(p, 'look_ns')}]")
        else:
            if since < p.refractory_ns:
                so_far = f"{since // MS} of {p.refractory_ns // MS} ms since the last event"
                reasons.append(f"refractory: {so_far} [A9, {layer(p, 'refractory_ns')}]")
            if len(self.events) - bisect_right(self.events, now - 10 * MINUTE) >= p.max_events_10min:
                reasons.append(f"dose: {p.max_events_10min} events in 10 min [A9, {layer(p, 'max_events_10min')}]")
            automatic = len(self.auto_events) - bisect_left(self.auto_events, max(now - 60 * MINUTE, self.armed_ns))
            if event.kind is Kind.REQUEST and automatic >= p.max_auto_events_1h:
                words = f"dose: {p.max_auto_events_1h} automatic events in an hour; {LOCKOUT_WORDS}"
                reasons.append(f"{words} [A9, {layer(p, 'max_auto_events_1h')}]")
        if self.event_on_ns * continues + duration > p.max_event_ns:
            reasons.append(f"event would pass {p.max_event_ns // S} s of stimulation [A9, {layer(p, 'max_event_ns')}]")
        reasons += self._long_dose_reasons(_planned(t, current_ua, duration), now)
        # all that is remembered is at least what any window holds; only if that is much, a closer look is needed
        if self.trains and self.on_time_total_ns - self.trains[0][2] + duration <= min(p.max_on_time_60s_ns, p.max_duty_5min_ns):
            return reasons
        # the fullest window is the one that ends with this train
        if self._on_time(now + duration - MINUTE) + duration > p.max_on_time_60s_ns:
            reasons.append(f"dose: {p.max_on_time_60s_ns // S} s of stimulation in 60 s [A9, {layer(p, 'max_on_time_60s_ns')}]")
        if self._on_time(now + duration - 5 * MINUTE) + duration > p.max_duty_5min_ns:
            reasons.append(f"dose: {p.max_duty_5min_ns // S} s of stimulation in 5 min [A9, {layer(p, 'max_duty_5min_ns')}]")
        return reasons

    def _long_dose_reasons(self, planned: Dose, now: int) -> list[str]:
        """Dose of the session and of 24 h (A10). Minutes count whole until the last of them is a day old: never less than was given."""
        reasons: list[str] = []
        if not _fits(self.session, planned, self.most_session):
            reasons += self._too_much("session", "this session", self.session, planned, self.most_session)
        if not _fits(self.day, planned, self.most_day):  # a closer look, without what is older
            day = _sum(dose for start, dose in self.minutes if start > now - (DAY + 1) * MINUTE)
            reasons += self._too_much("24h", "24 h", day, planned, self.most_day)
        return reasons

    def _too_much(self, window: str, words: str, given: Dose, planned: Dose, most: Dose) -> list[str]:
        """Which of on-time, charge and pulses would pass its limit, and who set that."""
        figures = (f"{most.on_ns // MINUTE} min of stimulation", f"{most.charge_nc // 10**6} mC", f"{most.pulses} pulses")
        names = (f"max_on_time_{window}_ns", f"max_charge_{window}_nc", f"max_pulses_{window}")
        return [
            f"dose: {figures[i]} in {words}; {LOCKOUT_WORDS} [A10, {layer(self.prescription, names[i])}]"
            for i in range(3)
            if given[i] + planned[i] > most[i]
        ]

    def _exhausted(self, now: int) -> str:
        """Why not even the least of the prescribed trains has room in the dose of session and day; empty = one has."""
        reasons: list[str] = []
        for t in self.prescription.trains:
            reasons = self._long_dose_reasons(_planned(t, t.current_ua, t.duration_us * 1000), now)
            if not reasons:
                return ""
        return reasons[0]

    def _on_time(self, since_ns: int) -> int:
        """Stimulation since then, with all of the running train. One train follows another, so the totals at two times tell it."""
        on_ns = 0
        i = bisect_right(self.trains, since_ns, key=_end_of)  # the first that was not over by then
        if i < len(self.trains):
            start, _, before_ns = self.trains[i]
            on_ns = self.on_time_total_ns - before_ns - max(0, since_ns - start)
        if self.state is SafetyState.STIMULATING:
            on_ns += max(0, self.duration_us * 1000 - max(0, since_ns - self.train_start_ns))
        return on_ns

    # --- the running train ---------------------------------------------------------------------------------------------------
    def _begin(self, event: Event, continues: bool) -> None:
        p, now = self.prescription, event.now_ns
        by_person = event.kind is Kind.TRIGGER
        if by_person:
            self.person_ns, self.warned = now, False
        cause = Cause.MANUAL if by_person else event.cause
        self.new_event = not continues
        if self.new_event:
            self.event_id, self.event_cause, self.event_on_ns = event.event_id, cause, 0
            self.event_level = self.event_rises = 0
            self.events = _later(self.events, now)
            if not by_person:
                self.auto_events = _later(self.auto_events, now)
        else:
            self.event_rises, self.event_level = self._rises(event), event.level
        self.train = event.train
        self.request = -1 if by_person else event.number
        t = p.trains[event.train]
        self.current_ua, self.duration_us, self.n_pulses = event.current_ua, event.duration_us, n_pulses(t, event.duration_us)
        self.train_start_ns = self.pulse_due_ns = now
        self.pulse = self.train_pulses = self.train_charge_nc = 0
        self.first_ns = _with(self.first_ns, self.train, self.first_ns[self.train] or now)
        self.last_ua = _with(self.last_ua, self.train, event.current_ua)
        self._to(SafetyState.STIMULATING, f"{_CAUSE_WORDS[cause]}: train {t.name}")

    def _cut(self, now: int) -> str:
        """Why a running train must end now; empty = it may go on."""
        if self.request < 0:
            return ""
        if now - self.heartbeat_ns > LEASE_NS:
            return f"the loop is silent for {(now - self.heartbeat_ns) // MS} ms [E4]"
        if not self.data_ok:
            return self.stale or "no data"
        return ""

    def _due(self, now: int) -> int:
        """Current of the pulse that leaves now; 0 = none does."""
        t = self.prescription.trains[self.train]
        step_ua = self.prescription.device.current_step_ua
        if now < self.pulse_due_ns:
            return 0
        if self.pulse >= self.n_pulses:
            self._end_train("", now)
            return 0
        k = (now - self.train_start_ns) // t.period_ns  # the slot that now lies in: what is missed is not made up for
        if k >= self.n_pulses:
            self.withheld_total += self.n_pulses - self.pulse
            self._end_train("late: the rest of the train is withheld", now)
            return 0
        self.withheld_total += k - self.pulse
        self._next_slot(k + 1)
        if self.outstanding or now - self.last_done_ns + t.pulse_ns < self.prescription.min_spacing_ns:
            self.withheld_total += 1
            return 0
        current_ua = min(
            pulse_current(t, k, self.current_ua, self.duration_us, step_ua), soft_start(t, now - self.first_ns[self.train], step_ua)
        )
        if current_ua not in self.lawful_ua[self.train]:  # cannot be: each pulse is looked at all the same
            self.permanent = True
            self._fault("internal: a pulse outside its limits was due [A1]", now)
            return 0
        charge = charge_nc(t, current_ua)
        self.last_pulse_ns, self.outstanding = now, True
        self.pulses_total += 1
        self.train_pulses += 1
        self.charge_total_nc += charge
        self.train_charge_nc += charge
        return current_ua

    def _next_slot(self, k: int) -> None:
        t = self.prescription.trains[self.train]
        self.pulse = k
        # the train lasts until its last period is over, so that on-time and refractory time count all of it
        self.pulse_due_ns = self.train_start_ns + k * t.period_ns

    def _end_train(self, reason: str, now: int) -> None:
        """Close the running train, if any, and count it."""
        if self.state is not SafetyState.STIMULATING:
            return
        start = self.train_start_ns
        end = min(max(now, start), start + self.duration_us * 1000)
        over = bisect_right(self.trains, now - 5 * MINUTE, key=_end_of)
        self.trains = (*self.trains[over:], (start, end, self.on_time_total_ns))
        self.event_on_ns += end - start
        self.on_time_total_ns += end - start
        self.event_end_ns = now
        given = Dose(end - start, self.train_charge_nc, self.train_pulses)
        self.session = _sum((self.session, given))
        self._add_to_day(given, now)
        self.last_train = TrainGiven(
            start, end, given.pulses, given.charge_nc, self.event_id, self.event_cause, self.new_event, self.request > 0
        )
        self._ended, self.request = self.request, 0
        self._to(SafetyState.ARMED, reason or "armed: the last train is over")

    def _add_to_day(self, given: Dose, now: int) -> None:
        old = bisect_right(self.minutes, now - (DAY + 1) * MINUTE, key=_start_of)
        gone, kept = _sum(dose for _, dose in self.minutes[:old]), self.minutes[old:]
        if kept and now - kept[-1][0] < MINUTE:
            begun, earlier = kept[-1]
            self.minutes = (*kept[:-1], (begun, _sum((earlier, given))))
        else:
            self.minutes = (*kept, (now, given))
        on_ns, charge_nc, pulses = _sum((self.day, given))
        self.day = Dose(on_ns - gone.on_ns, charge_nc - gone.charge_nc, pulses - gone.pulses)

    # --- small things --------------------------------------------------------------------------------------------------------
    def _forget_currents(self) -> None:
        """After arming each train begins softly again (A11)."""
        self.first_ns = self.last_ua = (0,) * len(self.prescription.trains)

    def _wake(self) -> int:
        """The earliest time at which something is due; 0 = nothing is."""
        p, due = self.prescription, []
        if self.state is SafetyState.STIMULATING:
            due.append(self.pulse_due_ns)
        elif self.state is SafetyState.ARMED:
            due.append(self.person_ns + (p.arming_expires_ns + 1 if self.warned else p.arming_expires_ns * WARN_PERCENT // 100))
        if self.outstanding:
            due.append(self.last_pulse_ns + ACK_TIMEOUT_NS + 1)
        if self.arming_ns:
            due.append(self.arming_ns + AUDIT_NS + 1)
        if self.button_ns:
            due.append(self.button_ns + BUTTON_LOST_NS + 1)
            if self.button_closed and not self.button_stuck:
                due.append(self.button_edge_ns + STUCK_NS + 1)
        return min(due, default=0)

    def _to(self, state: SafetyState, reason: str) -> None:
        if state is not SafetyState.ARMED and state is not SafetyState.STIMULATING:
            self.automatic = False
            self._disarming("")
        self.state, self.reason = state, reason[:MAX_REASON_CHARS]
        self._say(self.reason)

    def _say(self, text: str) -> None:
        text = text[:MAX_REASON_CHARS]
        if text and text not in self._said:
            self._said.append(text)


def _with(values: tuple[int, ...], i: int, value: int) -> tuple[int, ...]:
    return (*values[:i], value, *values[i + 1 :])


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value


TABLE: dict[Kind, dict[SafetyState, Callable[[Supervisor, Event], Output]]] = {
    kind: {state: getattr(Supervisor, "_" + word) for state, word in zip(SafetyState, words.split(), strict=True)}
    for kind, words in _ROWS.items()
}
