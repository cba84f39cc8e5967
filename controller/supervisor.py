"""Whether output may happen: states, limits, dose, reasons. `Supervisor.step(event) -> Verdict` is the whole of it.

Pure: no clock, no input or output, no settings file; time enters with each event. Integers only (ns, µA, µs, nC, mm²). Imports the
standard library and `drivers.base` alone. Checks refuse with a reason, they never clip. Disabling is looked at first. What guard does
on the wire is exactly `Verdict.output`, nothing else.

The figures of `HARD` are proposed and need a clinician's signature; a prescription can only be tighter.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

MS = 1_000_000
S = 1_000_000_000
MINUTE = 60 * S


@dataclass(frozen=True, slots=True)
class HardLimits:
    """What no setting can raise (design table "Hard limits"; proposed, needs a clinician's signature)."""

    max_current_ua: int = 60_000
    min_phase_width_us: int = 20
    max_phase_width_us: int = 1_000
    min_pulse_rate_mhz: int = 1_000
    max_pulse_rate_mhz: int = 100_000
    min_pulse_spacing_ns: int = 10 * MS  # of pulses at the electrode, whatever happened in between
    max_charge_nc: int = 30_000
    max_rms_density_ua_per_mm2: int = 20  # 2 mA/cm²: the flag of IEC 60601-2-10
    max_power_density_w_per_m2: int = 2_500  # 0.25 W/cm²: FDA guidance on powered muscle stimulators, 1999
    max_pulse_energy_uj: int = 300_000  # 300 mJ into 500 ohm: IEC 60601-2-10
    max_train_us: int = 2_000_000  # without a look
    min_look_dead_ns: int = 20 * MS
    min_look_ns: int = 100 * MS
    max_event_ns: int = 10 * S
    min_refractory_ns: int = 1 * S
    max_on_time_60s_ns: int = 20 * S
    max_duty_5min_ns: int = 75 * S  # 25 %
    max_events_10min: int = 30
    max_auto_events_1h: int = 60
    max_arming_expires_ns: int = 30 * MINUTE


HARD = HardLimits()
LOAD_OHM = 500  # the load of the standards' figures
LEASE_NS = 200 * MS  # automatic output lives this long beyond the loop's last proof of life (E4)
MAX_TRIGGER_AGE_NS = 250 * MS  # an older trigger is dropped (C7)
ACK_TIMEOUT_NS = 100 * MS  # no answer for this long: fault, and what was sent counts as delivered (E1)
CONTINUE_NS = 500 * MS  # a later request for the same spasm, counted from the end of the look, is an event of its own
MAX_REASON_CHARS = 300
MAX_STARTS = 512  # of events, kept before the old ones are let go: more than any limit lets through in an hour
RECORDER_WORDS = "recording does not keep up: nothing more is stimulated"
LOCKOUT_WORDS = "a person must arm again"


class SafetyState(StrEnum):
    """Where guard is. Output happens in STIMULATING alone."""

    OFF = "OFF"  # no stimulator
    IDLE = "IDLE"  # stimulator identified, high voltage off
    ARMED = "ARMED"
    STIMULATING = "STIMULATING"
    LOCKOUT = "LOCKOUT"  # a dose limit that asks for a person
    FAULT = "FAULT"  # latched until a person clears it


class Kind(StrEnum):
    """What can happen to guard."""

    READY = "ready"  # the stimulator answered and was prepared (ok), or did not (text says why)
    ARM = "arm"
    ARMED = "armed"  # the stimulator confirmed
    DISARM = "disarm"
    STOP = "stop"
    CLEAR = "clear"
    TRIGGER = "trigger"  # a person asks for one train
    REQUEST = "request"  # the loop asks for one train
    HEARTBEAT = "heartbeat"
    LOOP_JOINED = "loop joined"
    LOOP_LOST = "loop lost"
    DAEMON_LOST = "daemon lost"
    ACK = "ack"
    DEVICE_FAULT = "device fault"
    BAD_INPUT = "bad input"
    RECORDER = "recorder"  # whether what happens is being recorded
    TICK = "tick"


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
        When the loop decided, or the person pressed.
    sample_ns : int
        REQUEST: stamp of the sample that decided. HEARTBEAT: stamp of the newest sample; 0 = there was none yet.
    number : int
        Request number of the loop (strictly increasing), or packet number of an acknowledgement.
    event_id : int
        The spasm that a request belongs to.
    ok : bool
        READY: the stimulator is there. HEARTBEAT: data are arriving. RECORDER: it keeps up. ARM: automatic mode is wanted too.
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


@dataclass(frozen=True)
class Train:
    """A prescribed train in integers."""

    name: str
    channel: int
    current_ua: int
    phase_width_us: int
    interphase_gap_us: int
    pulse_rate_mhz: int
    duration_us: int
    ramp_up_us: int
    taper_us: int

    @cached_property
    def period_ns(self) -> int:
        """From pulse to pulse."""
        return 10**12 // self.pulse_rate_mhz

    @cached_property
    def pulse_ns(self) -> int:
        """From the start of the first phase to the end of the second."""
        return (2 * self.phase_width_us + self.interphase_gap_us) * 1000


@dataclass(frozen=True, slots=True)
class Prescription:
    """What the clinician allows, as guard received it. `check_prescription` compares it with `HARD`."""

    trains: tuple[Train, ...]
    manual_train: int
    electrode_area_mm2: int
    max_current_ua: int
    max_charge_nc: int
    look_dead_ns: int
    look_ns: int
    max_event_ns: int
    refractory_ns: int
    max_on_time_60s_ns: int
    max_duty_5min_ns: int
    max_events_10min: int
    max_auto_events_1h: int
    arming_expires_ns: int
    max_sample_age_ns: int
    max_lateness_ns: int
    current_step_ua: int


def prescription_from(view: dict[str, Any], current_step_ua: int) -> Prescription:
    """Build a prescription from the daemon's plain dictionary and check it; a wrong one never reaches the supervisor.

    Raises
    ------
    ValueError
        Names every value that is missing, of the wrong type or outside `HARD`.
    """
    trains = tuple(Train(name, **values) for name, values in view["trains"].items())
    whole = {f.name for f in fields(Prescription)} - {"trains", "manual_train", "current_step_ua"}
    numbers: dict[str, Any] = {name: view.get(name) for name in whole}
    names = [train.name for train in trains]
    if view["manual_train"] not in names:
        raise ValueError(f"manual_train {view['manual_train']!r} is none of {names}")
    prescription = Prescription(trains, names.index(view["manual_train"]), current_step_ua=current_step_ua, **numbers)
    wrong = check_prescription(prescription)
    if wrong:
        raise ValueError("; ".join(wrong))
    return prescription


def check_prescription(p: Prescription) -> list[str]:
    """Compare a prescription with the hard limits, on guard's own account; returns what is wrong."""
    wrong: list[str] = []

    def within(name: str, value: object, low: int, high: int) -> None:
        if type(value) is not int or not low <= value <= high:
            wrong.append(f"{name} = {value!r} must be a whole number from {low} to {high}")

    within("electrode_area_mm2", p.electrode_area_mm2, 1, 100_000)
    within("max_current_ua", p.max_current_ua, 0, HARD.max_current_ua)
    within("max_charge_nc", p.max_charge_nc, 0, HARD.max_charge_nc)
    within("look_dead_ns", p.look_dead_ns, HARD.min_look_dead_ns, S)
    within("look_ns", p.look_ns, HARD.min_look_ns, S)
    within("max_event_ns", p.max_event_ns, 0, HARD.max_event_ns)
    within("refractory_ns", p.refractory_ns, HARD.min_refractory_ns, 24 * 60 * MINUTE)
    within("max_on_time_60s_ns", p.max_on_time_60s_ns, 0, HARD.max_on_time_60s_ns)
    within("max_duty_5min_ns", p.max_duty_5min_ns, 0, HARD.max_duty_5min_ns)
    within("max_events_10min", p.max_events_10min, 0, HARD.max_events_10min)
    within("max_auto_events_1h", p.max_auto_events_1h, 0, HARD.max_auto_events_1h)
    within("arming_expires_ns", p.arming_expires_ns, S, HARD.max_arming_expires_ns)
    within("max_sample_age_ns", p.max_sample_age_ns, MS, MAX_TRIGGER_AGE_NS)
    within("max_lateness_ns", p.max_lateness_ns, MS, MAX_TRIGGER_AGE_NS)
    within("current_step_ua", p.current_step_ua, 1, HARD.max_current_ua)
    if wrong:
        return wrong
    for t in p.trains:
        where = f"train {t.name}: "
        before = len(wrong)
        within(where + "current_ua", t.current_ua, p.current_step_ua, p.max_current_ua)
        within(where + "phase_width_us", t.phase_width_us, HARD.min_phase_width_us, HARD.max_phase_width_us)
        within(where + "interphase_gap_us", t.interphase_gap_us, 0, HARD.max_phase_width_us)
        within(where + "pulse_rate_mhz", t.pulse_rate_mhz, HARD.min_pulse_rate_mhz, HARD.max_pulse_rate_mhz)
        within(where + "duration_us", t.duration_us, 1, HARD.max_train_us)
        within(where + "ramp_up_us", t.ramp_up_us, 0, HARD.max_train_us)
        within(where + "taper_us", t.taper_us, 0, HARD.max_train_us)
        if len(wrong) > before:
            continue
        if t.current_ua % p.current_step_ua:
            wrong.append(f"{where}current_ua = {t.current_ua} is no multiple of the stimulator's step of {p.current_step_ua} uA")
        if t.ramp_up_us + t.taper_us > t.duration_us:
            wrong.append(f"{where}ramp and taper are longer than the train")
        wrong += [where + reason for reason in pulse_reasons(t, t.current_ua, p)]
    return wrong


def pulse_reasons(t: Train, current_ua: int, p: Prescription) -> list[str]:
    """Why a pulse of this train at this current may not leave; empty = it may.

    Charge Q = I w; rms density sqrt(2 w f) I / A; power density I_rms² R / A; energy 2 I² R w (physiology notes, section 4: IEC
    60601-2-10 and FDA 1999), all in integers by comparing squares.
    """
    reasons = []
    if not 0 < current_ua <= min(p.max_current_ua, t.current_ua, HARD.max_current_ua):
        reasons.append(f"current {current_ua} uA is above the {min(p.max_current_ua, t.current_ua)} uA prescribed, or not above 0")
    if current_ua * t.phase_width_us > min(p.max_charge_nc, HARD.max_charge_nc) * 1000:
        reasons.append(
            f"charge {current_ua * t.phase_width_us // 1000} nC per phase is above {min(p.max_charge_nc, HARD.max_charge_nc)} nC"
        )
    # I_rms² in uA² times 10^9: w in us, f in mHz
    square = current_ua**2 * 2 * t.phase_width_us * t.pulse_rate_mhz
    if square > (HARD.max_rms_density_ua_per_mm2 * p.electrode_area_mm2) ** 2 * 10**9:
        reasons.append(f"rms density is above {HARD.max_rms_density_ua_per_mm2 / 10} mA/cm2 on {p.electrode_area_mm2 / 100} cm2")
    # I_rms² R / A in W/m²: 10^-12 A² per uA², 10^-6 m² per mm²
    if square * LOAD_OHM >= HARD.max_power_density_w_per_m2 * p.electrode_area_mm2 * 10**15:
        reasons.append(f"power density is not below {HARD.max_power_density_w_per_m2 / 10_000} W/cm2")
    if current_ua**2 * LOAD_OHM * 2 * t.phase_width_us > HARD.max_pulse_energy_uj * 10**12:
        reasons.append(f"energy of a pulse is above {HARD.max_pulse_energy_uj // 1000} mJ")
    return reasons


def n_pulses(t: Train, duration_us: int) -> int:
    """How many pulses a train of this duration has."""
    return max(1, -(-duration_us // (t.period_ns // 1000)))


def pulse_current(t: Train, k: int, current_ua: int, duration_us: int, step_ua: int) -> int:
    """Current of pulse k of a train, µA: linear ramp, plateau, linear taper, rounded down to the stimulator's step.

    The first pulse of a ramp has a period's worth of it, the last of a taper too; none is below one step.
    """
    period_us = t.period_ns // 1000
    start_us = k * period_us
    part = current_ua
    if t.ramp_up_us and start_us + period_us < t.ramp_up_us:
        part = min(part, current_ua * (start_us + period_us) // t.ramp_up_us)
    if t.taper_us and duration_us - start_us < t.taper_us:
        part = min(part, current_ua * (duration_us - start_us) // t.taper_us)
    return max(step_ua, part // step_ua * step_ua)


def _ms(ns: int) -> int:
    """For people; rounded up, so that what is above a limit looks so."""
    return -(-ns // MS)


def _later(starts: tuple[int, ...], now: int) -> tuple[int, ...]:
    """One start more, now and then without those of more than an hour ago."""
    if len(starts) >= MAX_STARTS:
        starts = starts[bisect_right(starts, now - 60 * MINUTE) :]
    return (*starts, now)


_end_of = itemgetter(1)
_CAUSE_WORDS: dict[int, str] = {Cause.EMG: "emg", Cause.FORCE: "force", Cause.MANUAL: "manual"}
_AUTOMATIC = (Cause.EMG, Cause.FORCE)


@dataclass(slots=True)
class Supervisor:
    """The state that decides, and `step`, which moves it. Plain integers and tuples: a shallow copy is a whole copy."""

    prescription: Prescription
    state: SafetyState = SafetyState.OFF
    reason: str = "no stimulator yet"
    automatic: bool = False  # a person armed automatic mode, for the loop that was alive then
    arming: bool = False
    want_automatic: bool = False
    person_ns: int = 0  # last act of a person
    armed_ns: int = 0
    # the loop
    loop_joined: bool = False
    heartbeat_ns: int = 0
    data_ok: bool = False
    data_age_ns: int = 0  # of the newest sample when the loop last beat
    recorder_ok: bool = True
    last_number: int = 0
    # the running train
    train: int = 0
    request: int = 0
    current_ua: int = 0
    duration_us: int = 0
    n_pulses: int = 0
    train_start_ns: int = 0
    pulse: int = 0  # index of the next pulse
    pulse_due_ns: int = 0
    # the wire
    last_pulse_ns: int = 0
    last_done_ns: int = 0  # when the last pulse was surely over
    outstanding: bool = False
    # the dose
    event_id: int = 0
    event_cause: int = 0
    event_on_ns: int = 0
    event_end_ns: int = -MINUTE
    trains: tuple[tuple[int, int, int], ...] = ()  # (start, end, on-time before it) of those that were over in the last 5 min
    events: tuple[int, ...] = ()  # starts in the last hour
    auto_events: tuple[int, ...] = ()  # of these the loop's
    pulses_total: int = 0
    charge_total_nc: int = 0
    on_time_total_ns: int = 0
    withheld_total: int = 0
    lawful_ua: tuple[frozenset[int], ...] = ()  # of each train, the currents for which `pulse_reasons` has nothing to say
    _said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        p = self.prescription  # never changes, so what follows from it is worked out once
        self.lawful_ua = tuple(
            frozenset(ua for ua in range(p.current_step_ua, t.current_ua + 1, p.current_step_ua) if not pulse_reasons(t, ua, p))
            for t in p.trains
        )

    # --- the step ------------------------------------------------------------------------------------------------------------
    def step(self, event: Event) -> Verdict:
        """Take one event, give the verdict. Never raises on any event of the right types."""
        self._said = []
        output, refused, ended = Output.NONE, 0, 0
        current_ua = 0
        kind, now = event.kind, event.now_ns

        # An answer that is late by guard's own clock is as good as none: what happened in between is not known.
        if self.outstanding and now - self.last_pulse_ns > ACK_TIMEOUT_NS:
            ended = self._fault(f"no acknowledgement within {ACK_TIMEOUT_NS // MS} ms; the pulse counts as delivered", now)
            output = Output.STOP

        # an event is of one kind, so the order of the branches decides nothing: the one in a hurry first, then by severity
        if kind is Kind.REQUEST or kind is Kind.TRIGGER:
            reasons = self._reasons(event)
            if reasons:
                refused = self._refuse(event, reasons)
            else:
                self._begin(event)
        elif kind is Kind.DEVICE_FAULT:
            ended = self._fault(event.text, now) or ended
            output = Output.STOP
        elif kind is Kind.STOP:
            ended = ended or self._end("stopped: " + event.text, now)
            output = Output.STOP
            self.outstanding = False  # the box drops its queue with the stop: an answer need not come
            self.person_ns = now
            if self.state not in (SafetyState.OFF, SafetyState.FAULT):
                self._to(SafetyState.IDLE, "stopped: " + event.text)
        elif kind is Kind.DAEMON_LOST:
            ended = self._end(event.text or "daemon lost", now)
            output = Output.STOP
            self._to(SafetyState.OFF, event.text or "daemon lost: nothing is recorded, so nothing is stimulated")
        elif kind is Kind.LOOP_LOST:
            self.loop_joined = self.data_ok = False
            self.data_age_ns = 0
            if self.request > 0:
                ended = self._end("loop lost", now)
            if self.automatic:
                self.automatic = False
                if self.state is SafetyState.ARMED:
                    self._to(SafetyState.ARMED, "armed for the button only: loop lost; a person must arm automatic mode again")
        elif kind is Kind.DISARM:
            ended = self._end("disarmed: " + event.text, now)
            self.outstanding = self.arming = False
            self.person_ns = now
            if self.state in (SafetyState.ARMED, SafetyState.LOCKOUT):
                output = Output.DISARM
                self._to(SafetyState.IDLE, "disarmed: " + event.text)
        elif kind is Kind.ACK:
            if self.outstanding:
                self.outstanding = False
                self.last_done_ns = now
        elif kind is Kind.HEARTBEAT:
            self._beat(event)
        elif kind is Kind.LOOP_JOINED:
            self.loop_joined, self.automatic, self.data_ok, self.last_number = True, False, False, 0
            self.event_id = self.data_age_ns = 0  # its numbers start anew: it continues nobody's event
        elif kind is Kind.RECORDER:
            self.recorder_ok = event.ok
            self._say("recording keeps up again" if event.ok else RECORDER_WORDS)
        elif kind is Kind.READY:
            if self.state is SafetyState.OFF and event.ok:
                self._to(SafetyState.IDLE, "not armed: " + event.text)
            elif self.state is SafetyState.OFF:
                self._to(SafetyState.OFF, event.text)
        elif kind is Kind.CLEAR:
            self._clear(event)
        elif kind is Kind.ARM:
            output = self._arm(event)
        elif kind is Kind.ARMED:
            output = self._armed(event)
        elif kind is Kind.BAD_INPUT:
            self._say("refused: " + event.text)

        if output is Output.NONE and self.state is SafetyState.STIMULATING:
            cut = self._cut(now)
            if cut:
                ended = self._end(cut, now)
            else:
                current_ua, ended = self._due(now)
                output = Output.PULSE if current_ua else Output.NONE
        if output is Output.NONE and self.state in (SafetyState.ARMED, SafetyState.LOCKOUT) and self._expired(now):
            self._to(SafetyState.IDLE, "arming expired: no person for " + f"{self.prescription.arming_expires_ns // MINUTE} min")
            output = Output.DISARM
        return Verdict(
            delivered=output is Output.PULSE,
            state=self.state,
            automatic=self.automatic,
            reasons=tuple(self._said),
            output=output,
            train=self.train,
            current_ua=current_ua,
            wake_ns=self._wake(),
            refused=refused,
            ended=ended,
        )

    # --- the loop's proof of life ---------------------------------------------------------------------------------------------
    def _beat(self, event: Event) -> None:
        was_stale = self.stale
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

    @property
    def stale(self) -> str:
        """Why the data are too old, by the loop's last heartbeat; empty = they are not."""
        most = self.prescription.max_sample_age_ns
        if -MAX_TRIGGER_AGE_NS <= self.data_age_ns <= most:
            return ""
        return f"data stale: newest sample is {_ms(self.data_age_ns)} ms old (at most {most // MS})"

    # --- arming --------------------------------------------------------------------------------------------------------------
    def _arm(self, event: Event) -> Output:
        if self.state not in (SafetyState.IDLE, SafetyState.ARMED, SafetyState.LOCKOUT):
            self._say(f"refused: arming is possible from IDLE, not from {self.state}: {self.reason}")
            return Output.NONE
        self.person_ns = event.now_ns
        self.arming, self.want_automatic = True, event.ok
        return Output.ARM

    def _armed(self, event: Event) -> Output:
        if not self.arming or self.state not in (SafetyState.IDLE, SafetyState.ARMED, SafetyState.LOCKOUT):
            if self.state in (SafetyState.ARMED, SafetyState.STIMULATING, SafetyState.LOCKOUT):
                self._end("armed without having been asked", event.now_ns)
                self._to(SafetyState.IDLE, "armed without having been asked: taken back")
            return Output.STOP
        self.arming = False
        alive = self.loop_joined and self.data_ok and event.now_ns - self.heartbeat_ns <= LEASE_NS
        self.automatic = self.want_automatic and alive
        self.armed_ns = self.person_ns = event.now_ns
        if self.want_automatic and not alive:
            self._to(SafetyState.ARMED, "armed for the button only: the loop has no data")
        else:
            self._to(SafetyState.ARMED, "armed" if self.automatic else "armed for the button only")
        return Output.NONE

    def _clear(self, event: Event) -> None:
        if self.state is not SafetyState.FAULT:
            self._say("refused: there is no fault to clear")
        elif not event.text.strip():
            self._say("refused: clearing a fault needs a reason in words")
        else:
            self.person_ns = event.now_ns
            self._to(SafetyState.OFF, "fault cleared: " + event.text[:MAX_REASON_CHARS])

    # --- may this train begin? -----------------------------------------------------------------------------------------------
    def _reasons(self, event: Event) -> list[str]:
        p, now = self.prescription, event.now_ns
        by_person = event.kind is Kind.TRIGGER
        reasons: list[str] = []
        if self.state is not SafetyState.ARMED:
            reasons.append(
                f"not armed: {self.state}, {self.reason}" if self.state is not SafetyState.STIMULATING else "already stimulating"
            )
        if self._expired(now):
            reasons.append("arming has expired")
        if not self.recorder_ok:
            reasons.append(RECORDER_WORDS)
        age = now - event.issued_ns
        if by_person:
            if not 0 <= age <= MAX_TRIGGER_AGE_NS:
                reasons.append(f"trigger is {_ms(age)} ms old (0 to {MAX_TRIGGER_AGE_NS // MS} allowed)")
        else:
            if not self.automatic:
                reasons.append("automatic mode is off")
            if now - self.heartbeat_ns > LEASE_NS or not self.data_ok:
                reasons.append(self.stale or "the loop gave no proof of life with data")
            if not 0 <= age <= p.max_lateness_ns:
                reasons.append(f"request is {_ms(age)} ms late (at most {p.max_lateness_ns // MS})")
            sample_age = now - event.sample_ns
            if not -MAX_TRIGGER_AGE_NS <= sample_age <= p.max_sample_age_ns:
                reasons.append(f"deciding sample is {_ms(sample_age)} ms old (at most {p.max_sample_age_ns // MS})")
            if event.number <= self.last_number:
                reasons.append(f"request {event.number} was seen before")
            if event.cause not in _AUTOMATIC:
                reasons.append(f"unknown cause {event.cause}")
            if event.event_id <= 0:
                reasons.append(f"event id {event.event_id} is not above 0")
        if not 0 <= event.train < len(p.trains):
            return [*reasons, f"train {event.train} is not prescribed"]
        t = p.trains[event.train]
        if by_person and event.train != p.manual_train:
            reasons.append("not the train prescribed for the button")
        if not 0 < event.duration_us <= t.duration_us:
            reasons.append(f"duration {event.duration_us} us is not within the {t.duration_us} us prescribed")
        if event.current_ua not in self.lawful_ua[event.train]:
            if event.current_ua % p.current_step_ua:
                reasons.append(f"current {event.current_ua} uA is no multiple of {p.current_step_ua} uA")
            reasons += pulse_reasons(t, event.current_ua, p)
        if self.outstanding:
            reasons.append("the last pulse is not acknowledged yet")
        return reasons + self._dose_reasons(event, now)

    def _continues(self, event: Event, now: int) -> bool:
        return (
            event.kind is Kind.REQUEST
            and event.event_id == self.event_id
            and self.event_cause != Cause.MANUAL
            and now - self.event_end_ns < self.prescription.look_dead_ns + self.prescription.look_ns + CONTINUE_NS
        )

    def _dose_reasons(self, event: Event, now: int) -> list[str]:
        p = self.prescription
        duration = min(max(event.duration_us, 0), HARD.max_train_us) * 1000
        reasons = []
        since = now - self.event_end_ns
        if self._continues(event, now):
            if since < p.look_dead_ns + p.look_ns:
                reasons.append(f"look of {(p.look_dead_ns + p.look_ns) // MS} ms not over")
            if self.event_on_ns + duration > p.max_event_ns:
                reasons.append(f"event would pass {p.max_event_ns // S} s of stimulation")
        else:
            if since < p.refractory_ns:
                reasons.append(f"refractory: {since // MS} of {p.refractory_ns // MS} ms since the last event")
            if len(self.events) - bisect_right(self.events, now - 10 * MINUTE) >= p.max_events_10min:
                reasons.append(f"dose: {p.max_events_10min} events in 10 min")
            automatic = len(self.auto_events) - bisect_left(self.auto_events, max(now - 60 * MINUTE, self.armed_ns))
            if event.kind is Kind.REQUEST and automatic >= p.max_auto_events_1h:
                reasons.append(f"dose: {p.max_auto_events_1h} automatic events in an hour; {LOCKOUT_WORDS}")
        # all that is remembered is at least what any window holds; only if that is much, a closer look is needed
        if self.trains and self.on_time_total_ns - self.trains[0][2] + duration <= min(p.max_on_time_60s_ns, p.max_duty_5min_ns):
            return reasons
        # the fullest window is the one that ends with this train
        if self._on_time(now + duration - MINUTE) + duration > p.max_on_time_60s_ns:
            reasons.append(f"dose: {p.max_on_time_60s_ns // S} s of stimulation in 60 s")
        if self._on_time(now + duration - 5 * MINUTE) + duration > p.max_duty_5min_ns:
            reasons.append(f"dose: {p.max_duty_5min_ns // S} s of stimulation in 5 min")
        return reasons

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

    def _refuse(self, event: Event, reasons: list[str]) -> int:
        if event.kind is Kind.TRIGGER:
            self._say("refused: " + "; ".join(reasons))
            return -1
        self.last_number = max(self.last_number, event.number)
        for reason in reasons:
            if self.automatic and self.state is SafetyState.ARMED and reason.endswith(LOCKOUT_WORDS):
                self._to(SafetyState.LOCKOUT, reason)
        self._say("refused: " + "; ".join(reasons))
        return event.number

    # --- the running train ---------------------------------------------------------------------------------------------------
    def _begin(self, event: Event) -> None:
        p, now = self.prescription, event.now_ns
        by_person = event.kind is Kind.TRIGGER
        if by_person:
            self.person_ns = now
        else:
            self.last_number = event.number
        cause = Cause.MANUAL if by_person else event.cause
        if not self._continues(event, now):
            self.event_id, self.event_cause, self.event_on_ns = event.event_id, cause, 0
            self.events = _later(self.events, now)
            if not by_person:
                self.auto_events = _later(self.auto_events, now)
        self.train = event.train
        self.request = -1 if by_person else event.number
        t = p.trains[event.train]
        self.current_ua, self.duration_us, self.n_pulses = event.current_ua, event.duration_us, n_pulses(t, event.duration_us)
        self.train_start_ns = self.pulse_due_ns = now
        self.pulse = 0
        self._to(SafetyState.STIMULATING, f"{_CAUSE_WORDS[cause]}: train {t.name}")

    def _cut(self, now: int) -> str:
        """Why a running train must end now; empty = it may go on."""
        if self.request < 0:
            return ""
        if not self.automatic:
            return "automatic mode is off"
        if now - self.heartbeat_ns > LEASE_NS:
            return f"the loop is silent for {(now - self.heartbeat_ns) // MS} ms"
        if not self.data_ok:
            return self.stale or "no data"
        return ""

    def _due(self, now: int) -> tuple[int, int]:
        """Current of the pulse that leaves now (0 = none) and the number of the train that is over (0 = none)."""
        t = self.prescription.trains[self.train]
        if now < self.pulse_due_ns:
            return 0, 0
        if self.pulse >= self.n_pulses:
            return 0, self._end("", now)
        k = (now - self.train_start_ns) // t.period_ns  # the slot that now lies in: what is missed is not made up for
        if k >= self.n_pulses:
            self.withheld_total += self.n_pulses - self.pulse
            return 0, self._end("late: the rest of the train is withheld", now)
        self.withheld_total += k - self.pulse
        self.pulse = k
        if self.outstanding or now - self.last_done_ns + t.pulse_ns < HARD.min_pulse_spacing_ns:
            self._next_slot(k + 1)
            self.withheld_total += 1
            return 0, 0
        current_ua = pulse_current(t, k, self.current_ua, self.duration_us, self.prescription.current_step_ua)
        if current_ua not in self.lawful_ua[self.train]:  # cannot be: each pulse is looked at all the same
            return 0, self._fault("internal: a pulse outside its limits was due", now)
        self._next_slot(k + 1)
        self.last_pulse_ns, self.outstanding = now, True
        self.pulses_total += 1
        self.charge_total_nc += current_ua * t.phase_width_us // 1000
        return current_ua, 0

    def _next_slot(self, k: int) -> None:
        t = self.prescription.trains[self.train]
        self.pulse = k
        # the train lasts until its last period is over, so that on-time and refractory time count all of it
        self.pulse_due_ns = self.train_start_ns + k * t.period_ns

    def _end(self, reason: str, now: int) -> int:
        """Close the running train, if any; returns its request number."""
        if self.state is not SafetyState.STIMULATING:
            return 0
        start = self.train_start_ns
        end = min(max(now, start), start + self.duration_us * 1000)
        over = bisect_right(self.trains, now - 5 * MINUTE, key=_end_of)
        self.trains = (*self.trains[over:], (start, end, self.on_time_total_ns))
        self.event_on_ns += end - start
        self.on_time_total_ns += end - start
        self.event_end_ns = now
        number, self.request = self.request, 0
        self._to(SafetyState.ARMED, reason or "armed: the last train is over")
        return number

    def _fault(self, why: str, now: int) -> int:
        number = self._end("fault", now)
        self.outstanding = self.arming = self.automatic = False
        self._to(SafetyState.FAULT, "fault: " + why[:MAX_REASON_CHARS])
        return number

    # --- small things --------------------------------------------------------------------------------------------------------
    def _expired(self, now: int) -> bool:
        return now - self.person_ns > self.prescription.arming_expires_ns

    def _wake(self) -> int:
        if self.state is SafetyState.STIMULATING:
            wake_ns = self.pulse_due_ns
        elif self.state is SafetyState.ARMED or self.state is SafetyState.LOCKOUT:
            wake_ns = self.person_ns + self.prescription.arming_expires_ns + 1
        else:
            wake_ns = 0
        if self.outstanding:
            timeout_ns = self.last_pulse_ns + ACK_TIMEOUT_NS + 1
            wake_ns = min(wake_ns, timeout_ns) if wake_ns else timeout_ns
        return wake_ns

    def _to(self, state: SafetyState, reason: str) -> None:
        if state is not SafetyState.ARMED and state is not SafetyState.STIMULATING:
            self.automatic = False
            self.arming = False
        self.state, self.reason = state, reason[:MAX_REASON_CHARS]
        self._say(self.reason)

    def _say(self, text: str) -> None:
        text = text[:MAX_REASON_CHARS]
        if text and text not in self._said:
            self._said.append(text)
