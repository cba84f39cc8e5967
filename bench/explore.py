"""`python -m bench.explore`: every state that the shipped `Supervisor.step` can reach, and what must hold in each.

Breadth first over a few models, so that the first violation found is also one of the shortest. A model is a small prescription, a set of
events, and timers scaled to some ticks of 50 ms (the code that counts them is the shipped one; `SCALED` says which constants, and they
are put back afterwards). Beside the supervisor goes a `Witness`, which knows nothing but the events that went in and the verdicts that came
out: its rules are the invariants. States are equal when everything that can still matter is: times as ages, cut off where no rule looks
any further. That this is so is tried out too: one in `CHECK` meetings of two histories in one state compares what both do next.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import tomllib
from collections import deque
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import environment
from controller import supervisor as code
from controller.limits import MS, Device, Prescription, S, Train
from controller.supervisor import Event, Kind, Output, SafetyState, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BUDGET = Path(__file__).with_name("budget.toml")
TICK = 50 * MS
CHECK = 97
START = 1000 * S
DEVICE = Device("model", 1, 100_000, 500, 10, 4_000, 500_000)
TRAIN = Train("t", 1, 500, 500, 100, 20_000, 100_000, 0, 0)  # two pulses of one step, a tick apart
RX = Prescription(
    (TRAIN,), 0, DEVICE, 2_500, 20_000, 10_000, 20 * MS, 80 * MS, 200 * MS, 150 * MS, 400 * MS, 500 * MS, 10**12, 10**12,
    10**9, 10**9, 10**12, 10**12, 10**6, 10**6, 200 * MS, 100 * MS, 50 * MS,
)  # fmt: skip
SCALED: dict[str, int] = {
    "LEASE_NS": 2 * TICK,
    "ACK_TIMEOUT_NS": TICK,
    "CONTINUE_NS": 2 * TICK,
    "OFFER_NS": 2 * TICK,
    "AUDIT_NS": 2 * TICK,
    "FAULTS_NS": 2 * TICK,
    "STUCK_NS": 2 * TICK,
    "BUTTON_LOST_NS": 3 * TICK,
    "BEAT_DUE_NS": TICK,
    "LATE_NS": 0,
    "VERY_LATE_NS": TICK,
    "PUNCTUAL_NS": TICK,
    "PAUSES_NS": 4 * TICK,
    "LATE_WINDOW_NS": 0,
    "MAX_TRIGGER_AGE_NS": 2 * TICK,
}


@contextmanager
def scaled(**more: int) -> Iterator[None]:
    """The supervisor's timers in ticks."""
    values = SCALED | more
    before = {name: getattr(code, name) for name in values}
    for name, value in values.items():
        setattr(code, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(code, name, value)


# --- the witness: events in, verdicts out, nothing else ---------------------------------------------------------------------------
class Witness(NamedTuple):
    """What whoever stands beside the bed knows. Times are ages in ns, -1 = never; they grow with each tick."""

    armed: int = 0  # 0 no, 1 offered, 2 asked for, 3 on the disk, 4 yes
    offer_age: int = -1
    automatic: bool = False  # armed with it, and the loop is still the one that was there
    wanted: bool = False
    beat_age: int = -1
    data: bool = False
    pulse_age: int = -1
    open_pulse: bool = False
    person_age: int = -1
    train_age: int = -1  # of the running train's first pulse
    train_auto: bool = False
    event: int = 0
    ended_age: int = -1
    event_on: int = 0
    trains: tuple[tuple[int, int], ...] = ()  # (age of the start, age of the end) of those that are over
    fault: bool = False
    forever: bool = False
    fault_ages: tuple[int, ...] = ()
    recorder: bool = True
    stop_age: int = -1
    closed: bool = False
    button_age: int = -1  # since it last said something
    starts: int = 0  # trains a press has begun since the button closed
    autos: int = 0  # events of the loop since a person armed
    pulses: int = 0  # of the session, up to the limit


def older(w: Witness, ns: int, window: int) -> Witness:
    """Time passes; what is older than every rule looks is forgotten."""
    cap = {"offer_age": 200 * MS, "beat_age": 200 * MS, "pulse_age": 150 * MS, "person_age": 250 * MS, "stop_age": 150 * MS,
           "ended_age": 250 * MS, "train_age": 10**9}  # fmt: skip
    ages = {name: min(age + ns, most) for name, most in cap.items() if (age := getattr(w, name)) >= 0}
    if w.button_age >= 0:
        lost = w.button_age + ns > code.BUTTON_LOST_NS  # nobody knows any more how it stands
        ages |= {"button_age": -1 if lost else w.button_age + ns}
        w = w._replace(closed=w.closed and not lost)
    trains = tuple((start + ns, end + ns) for start, end in w.trains if end + ns <= window)
    return w._replace(**ages, trains=trains, fault_ages=tuple(age + ns for age in w.fault_ages if age + ns <= 2 * TICK))


def watch(w: Witness, event: Event, v: Any, p: Prescription, before: SafetyState) -> tuple[Witness, str]:
    """Take in one event and its verdict; what is broken, in words."""
    kind = event.kind
    # what the event means to somebody who knows the rules and not the code
    if kind is Kind.STOP:
        w = w._replace(armed=0, automatic=False, stop_age=0, open_pulse=False, person_age=0)
        if v.output is not Output.STOP:
            return w, "stop does not stop"
    elif kind in (Kind.DISARM, Kind.DAEMON_LOST, Kind.DEVICE_FAULT, Kind.SELF_FAULT):
        w = w._replace(armed=0, automatic=False)
        if kind is Kind.DISARM:
            w = w._replace(open_pulse=False, person_age=0)
        elif v.output is not Output.STOP:
            return w, f"{kind} does not stop"
    elif kind is Kind.OFFER and before in (SafetyState.IDLE, SafetyState.ARMED, SafetyState.LOCKOUT):
        w = w._replace(offer_age=0)
    elif kind is Kind.ARM and not v.refused:
        if not 0 <= w.offer_age <= code.OFFER_NS:
            return w, "armed without two steps"
        if w.closed:
            return w, "armed with a closed button"
        w = w._replace(armed=2 if w.armed < 4 else 4, wanted=event.ok, person_age=0, offer_age=-1)
    elif kind is Kind.HEARTBEAT:
        w = w._replace(beat_age=0, data=event.ok)
    elif kind in (Kind.LOOP_LOST, Kind.LOOP_JOINED):
        w = w._replace(automatic=False, beat_age=-1, data=False)
    elif kind is Kind.ACK:
        w = w._replace(open_pulse=False)
    elif kind is Kind.RECORDER:
        w = w._replace(recorder=event.ok)
    elif kind is Kind.BUTTON:
        w = w._replace(closed=event.ok, button_age=0, starts=w.starts if event.ok and w.closed else 0)
    if v.output is Output.ARM:
        if w.armed not in (2, 4):
            return w, "the stimulator is armed though nobody asked"
        w = w._replace(armed=max(w.armed, 3))
    if kind is Kind.ARMED and v.output is Output.NONE:
        if w.armed not in (3, 4) or before not in (SafetyState.IDLE, SafetyState.ARMED, SafetyState.LOCKOUT):
            return w, "armed by itself"
        w = w._replace(armed=4, automatic=w.wanted and v.automatic, person_age=0, autos=0)
    if v.output in (Output.STOP, Output.DISARM):
        w = w._replace(armed=0, automatic=False)
    # faults latch
    if w.fault and v.state is not SafetyState.FAULT and kind is not Kind.CLEAR:
        return w, f"a fault heals by {kind}"
    if w.forever and v.state is not SafetyState.FAULT:
        return w, "a fault that asks for a new guard was cleared"
    if v.state is SafetyState.FAULT and not w.fault:
        ages = (*w.fault_ages, 0)[-3:]
        # the link is closed after a fault, so no answer is waited for: the pulse counts as delivered
        w = w._replace(fault=True, open_pulse=False, fault_ages=ages, forever=w.forever or kind is Kind.SELF_FAULT or len(ages) == 3)
    elif v.state is not SafetyState.FAULT:
        w = w._replace(fault=False)
    # the table of states
    if v.state in (SafetyState.ARMED, SafetyState.STIMULATING) and w.armed != 4:
        return w, f"{v.state} though not armed"
    if v.automatic and not (w.automatic and v.state in (SafetyState.ARMED, SafetyState.STIMULATING)):
        return w, "automatic though nobody wants it"
    if (v.output is Output.PULSE) is not v.delivered or (v.delivered and v.state is not SafetyState.STIMULATING):
        return w, "a pulse that is none"
    if v.wake_ns and v.wake_ns < event.now_ns:
        return w, "a wake-up in the past"
    # the train
    if v.ended and w.train_age >= 0:
        on = min(w.train_age, TRAIN.duration_us * 1000)
        trains = (*w.trains, (w.train_age, w.train_age - on))
        w = w._replace(train_age=-1, ended_age=0, event_on=w.event_on + on, trains=trains)
    return pulse(w, event, v, p) if v.delivered else (w, "")


def pulse(w: Witness, event: Event, v: Any, p: Prescription) -> tuple[Witness, str]:
    """The rules of a pulse that leaves."""
    began = event.kind in (Kind.REQUEST, Kind.TRIGGER, Kind.BUTTON) and w.train_age < 0
    if w.armed != 4:
        return w, "a pulse though not armed"
    if w.open_pulse:
        return w, "a pulse before the last was answered"
    if v.current_ua != TRAIN.current_ua:
        return w, f"a pulse of {v.current_ua} uA"
    if 0 <= w.pulse_age < TICK:
        return w, "two pulses at once"
    if began:
        auto = event.kind is Kind.REQUEST
        same = auto and w.event == event.event_id and w.train_auto and 0 <= w.ended_age < 100 * MS + code.CONTINUE_NS
        if event.now_ns - event.issued_ns > (p.max_lateness_ns if auto else code.MAX_TRIGGER_AGE_NS):
            return w, "late"
        if 0 <= w.stop_age <= event.now_ns - event.issued_ns:
            return w, "asked for before the stop"
        if not w.recorder:
            return w, "a train that is not recorded"
        if w.person_age > p.arming_expires_ns:
            return w, "a train after arming expired"
        if 0 <= w.ended_age < (100 * MS if same else p.refractory_ns):
            return w, "too soon after the last train"
        if same and w.event_on + TRAIN.duration_us * 1000 > p.max_event_ns:
            return w, "an event of too many trains"
        if event.kind is Kind.BUTTON and w.starts:
            return w, "two trains of one press"
        if w.pulses + 2 > p.max_pulses_session:
            return w, "more pulses than a session may have"
        if auto and not same and w.autos >= p.max_auto_events_1h:
            return w, "more automatic events than an hour may have"
        if p.max_auto_events_1h < 100:
            w = w._replace(autos=min(w.autos + (auto and not same), p.max_auto_events_1h))
        ends = TRAIN.duration_us * 1000  # from now: the windows that end then
        for window, most in ((code.MINUTE, p.max_on_time_60s_ns), (5 * code.MINUTE, p.max_duty_5min_ns)):
            on = sum(max(0, min(start, window - ends) - end) for start, end in w.trains)
            if on + ends > most:
                return w, f"more than {most / MS:g} ms of stimulation in {window / MS:g} ms"
        w = w._replace(train_age=0, train_auto=auto, event=event.event_id if auto else 0, event_on=w.event_on if same else 0)
        if event.kind is not Kind.REQUEST:
            w = w._replace(person_age=0, starts=w.starts + (event.kind is Kind.BUTTON))
    elif w.train_age >= TRAIN.duration_us * 1000:
        return w, "a train that is too long"
    if w.train_auto:
        if not w.automatic:
            return w, "an automatic pulse though automatic mode is off"
        if not w.data or not 0 <= w.beat_age <= code.LEASE_NS:
            return w, "an automatic pulse without a sign of life"
    return w._replace(pulse_age=0, open_pulse=True, pulses=min(w.pulses + 1, p.max_pulses_session) if p.max_pulses_session < 100 else 0), ""


# --- states that are equal --------------------------------------------------------------------------------------------------------
DROPPED = {  # totals, words, and what follows from the rest
    "prescription", "reason", "pulses_total", "charge_total_nc", "on_time_total_ns", "withheld_total", "late_total", "day",
    "session", "minutes", "last_train", "lawful_ua", "_said", "_refused", "_ended", "train_charge_nc", "train_pulses", "n_pulses",
    "current_ua", "duration_us", "train", "last_number", "lockout", "new_event", "most_session", "most_day",
}  # fmt: skip
AGES: dict[str, int] = {  # times, and the age beyond which nobody looks
    "person_ns": 250 * MS, "armed_ns": 0, "offer_ns": 150 * MS, "arming_ns": 150 * MS, "stop_ns": 150 * MS, "heartbeat_ns": 250 * MS,
    "button_ns": 200 * MS, "button_edge_ns": 150 * MS, "train_start_ns": 10**9, "pulse_due_ns": 10**9, "last_pulse_ns": 100 * MS,
    "last_done_ns": 10 * MS, "event_end_ns": 250 * MS,
}  # fmt: skip
ONLY_IF: dict[str, Callable[[Supervisor], bool]] = {  # no rule looks at it otherwise
    "train_start_ns": lambda s: s.state is SafetyState.STIMULATING,
    "pulse_due_ns": lambda s: s.state is SafetyState.STIMULATING,
    "pulse": lambda s: s.state is SafetyState.STIMULATING,
    "request": lambda s: s.state is SafetyState.STIMULATING,
    "last_pulse_ns": lambda s: s.outstanding,
    "offer_ns": lambda s: s.offer != 0,
    "person_ns": lambda s: s.state in (SafetyState.ARMED, SafetyState.STIMULATING),
    "warned": lambda s: s.state in (SafetyState.ARMED, SafetyState.STIMULATING),
    "want_automatic": lambda s: s.arming_ns != 0,
    "button_edge_ns": lambda s: s.button_ns != 0,
    "event_rises": lambda s: False,
    "event_level": lambda s: False,
    "late": lambda s: s.paused,
}
FIELDS = tuple(f.name for f in fields(Supervisor) if f.name not in DROPPED)


def key(s: Supervisor, w: Witness, now: int, window: int) -> tuple[Any, ...]:
    """All that can still matter, without absolute times and numbers."""
    out: list[Any] = [w]
    for name in FIELDS:
        value = getattr(s, name)
        if name in ONLY_IF and not ONLY_IF[name](s):
            value = None
        elif name in AGES:
            value = min(now - value, AGES[name]) if value else None
        elif name in ("faults", "pauses"):
            value = tuple(now - t for t in value if now - t <= (2 if name == "faults" else 4) * TICK)
        elif name == "late":
            value = now - value[-1] if value else None
        elif name == "trains":
            value = tuple((now - start, now - end) for start, end, _ in value if now - end <= window)
        elif name == "auto_events":
            most = s.prescription.max_auto_events_1h
            value = min(len([t for t in value if t >= s.armed_ns]), most) if most < 100 else 0
        elif name in ("events", "first_ns", "last_ua"):
            continue  # no limit of these models binds them
        elif name == "ids":
            value = tuple(sorted({now - t for t, _ in value if now - t <= code.MAX_TRIGGER_AGE_NS}))
        elif name == "request":
            value = (value > 0) - (value < 0)
        elif name == "offer":
            value = value != 0
        out.append(value)
    out.append(min(s.session.pulses, s.prescription.max_pulses_session) if s.prescription.max_pulses_session < 100 else 0)
    return tuple(out)


# --- the models -------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Model:
    """Events that may come in any state, each by a name; an event is made of the state and the time."""

    name: str
    events: dict[str, Callable[[Supervisor, int], tuple[Event, ...]]]
    prescription: Prescription = RX
    found: bool = False  # it begins with a stimulator
    armed: bool = False  # or armed
    window: int = 0  # how far back trains matter
    constants: dict[str, int] = field(default_factory=dict)
    prompt: bool = False  # every pulse is answered at once


def one(kind: Kind, **more: Any) -> Callable[[Supervisor, int], tuple[Event, ...]]:
    """An event that is always the same but for its time."""
    return lambda s, now: (Event(kind, now, **({"issued_ns": now} | more)),)


def arm(automatic: bool) -> Callable[[Supervisor, int], tuple[Event, ...]]:
    """The second step, naming the last offer."""
    return lambda s, now: (Event(Kind.ARM, now, now, number=s.offer or 1, event_id=NUMBER[s.prescription], ok=automatic),)


def all_steps(s: Supervisor, now: int) -> tuple[Event, ...]:
    """A person arms, disk and stimulator are prompt."""
    named = Event(Kind.ARM, now, now, number=1, event_id=NUMBER[s.prescription], ok=True, text="x")
    return Event(Kind.OFFER, now, number=1), named, Event(Kind.AUDITED, now), Event(Kind.ARMED, now)


def cut_short(s: Supervisor, now: int) -> tuple[Event, ...]:
    """A person ends the train and arms again."""
    return Event(Kind.DISARM, now, text="x"), *all_steps(s, now)


def recover(s: Supervisor, now: int) -> tuple[Event, ...]:
    """A fault is cleared and the box found again."""
    return Event(Kind.CLEAR, now, text="x"), Event(Kind.READY, now, ok=True, text="box")


def trigger(s: Supervisor, now: int, age: int = 0) -> tuple[Event, ...]:
    """A press with a new id."""
    number = max((n for _, n in s.ids), default=0) + 1
    return (Event(Kind.TRIGGER, now, now - age, number=number, current_ua=500, duration_us=100_000, cause=3),)


def pressed_twice(s: Supervisor, now: int) -> tuple[Event, ...]:
    """The last press again."""
    number = s.ids[-1][1] if s.ids else 1
    return (Event(Kind.TRIGGER, now, now, number=number, current_ua=500, duration_us=100_000, cause=3),)


def ask(event_id: int, age: int = 0, again: bool = False, **more: Any) -> Callable[[Supervisor, int], tuple[Event, ...]]:
    """A request for this spasm."""

    def make(s: Supervisor, now: int) -> tuple[Event, ...]:
        number = s.last_number + (not again)
        asked = {"current_ua": 500, "duration_us": 100_000, "cause": 1, "level": 1_000} | more
        return (Event(Kind.REQUEST, now, now - age, now - age, number, event_id, **asked),)

    return make


def button(closed: bool) -> Callable[[Supervisor, int], tuple[Event, ...]]:
    """The contact's level."""

    def make(s: Supervisor, now: int) -> tuple[Event, ...]:
        number = max((n for _, n in s.ids), default=0) + 1
        return (Event(Kind.BUTTON, now, now, number=number, cause=3, ok=closed),)

    return make


def beat(ok: bool) -> Callable[[Supervisor, int], tuple[Event, ...]]:
    """A sign of life, with data or without."""
    return lambda s, now: (Event(Kind.HEARTBEAT, now, now, now, ok=ok),)


NUMBER: dict[Prescription, int] = {}
PEOPLE = {
    "offer": one(Kind.OFFER, number=1),
    "arm": arm(False),
    "audited": one(Kind.AUDITED),
    "armed": one(Kind.ARMED),
    "disarm": one(Kind.DISARM, text="x"),
    "stop": one(Kind.STOP, text="x"),
    "trigger": trigger,
    "late trigger": lambda s, now: trigger(s, now, 2 * TICK),
    "trigger again": pressed_twice,
    "ack": one(Kind.ACK),
    "recorder fails": one(Kind.RECORDER),
    "recorder works": one(Kind.RECORDER, ok=True),
    "bad input": one(Kind.BAD_INPUT, text="x"),
}
MACHINES = {
    "ready": one(Kind.READY, ok=True, text="box"),
    "not there": one(Kind.READY, text="none"),
    "another": one(Kind.READY, ok=True, text="another box"),
    "device fault": one(Kind.DEVICE_FAULT, text="x"),
    "self fault": one(Kind.SELF_FAULT, text="x"),
    "daemon lost": one(Kind.DAEMON_LOST),
    "clear": one(Kind.CLEAR, text="x"),
    "clear without words": one(Kind.CLEAR),
    "all steps": all_steps,
    "trigger": trigger,
    "ack": one(Kind.ACK),
    "armed": one(Kind.ARMED),
    "stop": one(Kind.STOP, text="x"),
}
LOOP = {
    "beat": beat(True),
    "beat without data": beat(False),
    "loop lost": one(Kind.LOOP_LOST),
    "loop joined": one(Kind.LOOP_JOINED),
    "ask 1": ask(1),
    "ask 2": ask(2),
    "ask late": ask(2, 2 * TICK),
    "ask again": ask(2, again=True),
    "ask too much": ask(2, current_ua=1_000),
}
AT_BED = {"ack": one(Kind.ACK), "stop": PEOPLE["stop"], "disarm": PEOPLE["disarm"], "all steps": all_steps}
DOSE_MINUTE = 400 * MS  # the model's
MODELS = (
    Model("people", PEOPLE, found=True),
    Model("machines", MACHINES),
    Model("loop", LOOP | AT_BED | {"trigger": trigger, "device fault": MACHINES["device fault"], "recover": recover}, armed=True),
    Model(
        "button",
        AT_BED | {"closed": button(True), "open": button(False), "trigger": trigger, "beat": beat(True), "ask 1": ask(1)},
        armed=True,
    ),
    Model(
        "lockout",
        {"ack": one(Kind.ACK), "disarm": PEOPLE["disarm"], "all steps": all_steps, "trigger": trigger, "beat": beat(True)}
        | {"ask 1": ask(1), "ask 2": ask(2), "ready": MACHINES["ready"], "device fault": MACHINES["device fault"], "recover": recover},
        replace(RX, max_auto_events_1h=2, max_pulses_session=9),
        armed=True,
    ),
    Model(
        "dose",
        {"trigger": trigger, "cut short": cut_short},
        replace(RX, max_on_time_60s_ns=150 * MS, max_duty_5min_ns=350 * MS, arming_expires_ns=100 * S),
        armed=True,
        window=5 * DOSE_MINUTE,
        constants={"MINUTE": DOSE_MINUTE},
        prompt=True,
    ),
)


# --- the search -------------------------------------------------------------------------------------------------------------------
@dataclass
class Found:
    """What a search saw."""

    model: str
    states: int = 0
    transitions: int = 0
    checked: int = 0
    complete: bool = False
    seconds: float = 0.0
    violation: str = ""
    path: tuple[str, ...] = ()
    reached: dict[str, int] = field(default_factory=dict)


def begin(model: Model, kind: type[Supervisor]) -> tuple[Supervisor, Witness, int]:
    """The first state."""
    NUMBER[model.prescription] = model.prescription.number
    s, w, now = kind(model.prescription), Witness(), START
    if model.found:
        w, _ = do(s, w, Event(Kind.READY, now, ok=True, text="box"), model.prescription)
    if model.armed:
        ready, joined = Event(Kind.READY, now, ok=True, text="box"), Event(Kind.LOOP_JOINED, now)
        for event in (ready, joined, Event(Kind.HEARTBEAT, now, now, now, ok=True), *all_steps(s, now)):
            w, wrong = do(s, w, event, model.prescription)
            assert not wrong, wrong
    return s, w, now


def do(s: Supervisor, w: Witness, event: Event, p: Prescription) -> tuple[Witness, str]:
    """One event through both."""
    before = s.state
    return watch(w, event, s.step(event), p, before)


def explore(model: Model, most: int, kind: type[Supervisor] = Supervisor) -> Found:
    """Breadth first until nothing is new, something is wrong, or `most` states were seen."""
    found, began = Found(model.name), time.perf_counter()
    names = ["tick", *model.events]
    with scaled(**model.constants):
        s, w, now = begin(model, kind)
        first = key(s, w, now, model.window)
        trail: list[tuple[int, int]] = [(-1, 0)]
        known = {first}
        kept: dict[tuple[Any, ...], tuple[Supervisor, Witness, int]] = {}  # some, to compare with others that are taken for the same
        todo = deque([(0, s, w, now)])
        while todo and len(trail) < most:
            here, s, w, now = todo.popleft()
            found.reached[s.state] = found.reached.get(s.state, 0) + 1
            for i, name in enumerate(names):
                found.transitions += 1
                s2, w2, now2, wrong = move(s, w, now, name, model)
                if wrong:
                    found.violation, found.path = wrong, path(trail, here, names, i)
                    return finish(found, trail, began)
                k = key(s2, w2, now2, model.window)
                if k not in known:
                    known.add(k)
                    trail.append((here, i))
                    todo.append((len(trail) - 1, s2, w2, now2))
                    if len(trail) % CHECK == 0:
                        kept[k] = s2, w2, now2
                elif k in kept:
                    found.checked += 1
                    differs = compare(kept.pop(k), (s2, w2, now2), names, model)
                    if differs:
                        found.violation = f"two histories that the model takes for one differ: {differs}"
                        found.path = path(trail, here, names, i)
                        return finish(found, trail, began)
        found.complete = not todo
    return finish(found, trail, began)


def compare(a: tuple[Supervisor, Witness, int], b: tuple[Supervisor, Witness, int], names: list[str], model: Model) -> str:
    """What both do next, whatever comes next; empty = the same."""
    for name in names:
        (s, w, now, wrong), (s2, w2, now2, wrong2) = move(*a, name, model), move(*b, name, model)
        if wrong != wrong2 or key(s, w, now, model.window) != key(s2, w2, now2, model.window):
            return f"{name}: {wrong or s.state} and {wrong2 or s2.state}"
    return ""


def move(s: Supervisor, w: Witness, now: int, name: str, model: Model) -> tuple[Supervisor, Witness, int, str]:
    """One step of the model on copies."""
    s = copy.copy(s)
    if name == "tick":
        now += TICK
        w = older(w, TICK, model.window)
        events: tuple[Event, ...] = (Event(Kind.TICK, now),)
    else:
        events = model.events[name](s, now)
    for event in events:
        w, wrong = do(s, w, event, model.prescription)
        if not wrong and model.prompt and s.outstanding:
            w, wrong = do(s, w, Event(Kind.ACK, now), model.prescription)
        if wrong:
            return s, w, now, wrong
    return s, w, now, ""


def path(trail: list[tuple[int, int]], here: int, names: list[str], last: int) -> tuple[str, ...]:
    """The names of the events that lead there."""
    steps = [names[last]]
    while here > 0:
        here, i = trail[here]
        steps.append(names[i])
    return tuple(reversed(steps))


def finish(found: Found, trail: list[tuple[int, int]], began: float) -> Found:
    """Add the figures."""
    found.states, found.seconds = len(trail), round(time.perf_counter() - began, 1)
    return found


# --- planted faults: each must be found -------------------------------------------------------------------------------------------
class ShortWindow(Supervisor):
    """The dose's windows are one tick too short."""

    def _on_time(self, since_ns: int) -> int:
        return super()._on_time(since_ns + TICK)


class NoLease(Supervisor):
    """The running train does not look at the loop."""

    def _cut(self, now: int) -> str:
        return ""


class Impatient(Supervisor):
    """The rest between events is forgotten."""

    def _dose_reasons(self, event: Event, now: int, continues: bool) -> list[str]:
        return [reason for reason in super()._dose_reasons(event, now, continues) if "refractory" not in reason]


class Healing(Supervisor):
    """The third fault in a row can be cleared like the first."""

    def _fault(self, why: str, now: int) -> Output:
        output = super()._fault(why, now)
        self.permanent = False
        return output


class Deaf(Supervisor):
    """It does not mind an answer that is missing."""

    def _due(self, now: int) -> int:
        self.outstanding = False
        return super()._due(now)


PLANTED: dict[str, tuple[str, type[Supervisor]]] = {
    "dose window a tick short": ("dose", ShortWindow),
    "train goes on without the loop": ("loop", NoLease),
    "no rest between events": ("loop", Impatient),
    "faults can always be cleared": ("machines", Healing),
    "pulses without answers": ("loop", Deaf),
}


def planted(name: str, most: int) -> Found:
    """Search for one planted fault."""
    model, kind = PLANTED[name]
    return explore(next(m for m in MODELS if m.name == model), most, kind)


# --- the command ------------------------------------------------------------------------------------------------------------------
def main(argv: Sequence[str] | None = None) -> int:
    """0 = done, 1 = something is wrong, or a goal was missed and --gate given."""
    parser = argparse.ArgumentParser(prog="bench.explore", description="every state of the shipped supervisor, and what must hold in each")
    parser.add_argument("--quick", action="store_true", help="at most 3,000 states a model")
    parser.add_argument("--most", type=int, default=300_000, metavar="N", help="states of a model at most")
    parser.add_argument("--model", choices=[m.name for m in MODELS], help="this one alone")
    parser.add_argument("--plant", choices=list(PLANTED), help="with a fault that must be found")
    parser.add_argument("--seed", type=int, default=0, help="for likeness with the other benches: nothing is drawn here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures and environment")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a goal of budget.toml is missed")
    args = parser.parse_args(argv)
    most = min(args.most, 3_000) if args.quick else args.most
    if args.plant:
        found = planted(args.plant, most)
        show(found)
        return 1 if found.violation else 0
    runs = [explore(model, most) for model in MODELS if args.model in (None, model.name)]
    hunts = {name: planted(name, most) for name in ({} if args.model else PLANTED)}
    for found in runs:
        show(found)
    for name, found in hunts.items():
        print(f"planted: {name}: {'FOUND' if found.violation else 'not found'} after {found.states:,} states")
        print(f"    {found.violation}: {' > '.join(found.path)}")
    result = {
        "states": sum(found.states for found in runs),
        "transitions": sum(found.transitions for found in runs),
        "violations": sum(bool(found.violation) for found in runs),
        "incomplete": sum(not found.complete for found in runs),
        "planted_missed": sum(not found.violation for found in hunts.values()),
    }
    print(", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in result.items()))
    rows = tomllib.loads(BUDGET.read_text())["explore"]
    missed = [row["metric"] for row in rows if not row.get("least", 0) <= result[row["metric"]] <= row.get("most", 10**12)]
    if args.json:
        whole = result | {
            "models": [asdict(found) for found in runs],
            "planted": {name: asdict(found) for name, found in hunts.items()},
            "scaled_ns": SCALED,
            "tick_ns": TICK,
            "missed": missed,
            "environment": environment.environment(),
        }
        args.json.write_text(json.dumps(whole, indent=1))
    for name in missed if args.gate else ():
        print(f"missed: {name} = {result[name]:,}", file=sys.stderr)
    return 1 if result["violations"] or (args.gate and missed) else 0


def show(found: Found) -> None:
    """One search in words."""
    whole = "all of them" if found.complete else "not all"
    print(
        f"{found.model}: {found.states:,} states ({whole}), {found.transitions:,} transitions, {found.checked:,} comparisons, "
        f"{found.seconds:g} s; " + ", ".join(f"{state} {n:,}" for state, n in sorted(found.reached.items()))
    )
    if found.violation:
        print(f"    VIOLATION: {found.violation}\n    " + "\n    ".join(found.path))


if __name__ == "__main__":
    sys.exit(main())
