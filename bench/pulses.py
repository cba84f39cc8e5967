"""What the virtual stimulator's log says of what was given: limits of its own, trains, events, dose. Pure; imports nothing of the product.

The log is written by a decoder that shares no code with the driver. The limits here are copied by hand from the table "Hard limits" of the
design and read from the settings file of the bed; where the two differ the tighter one counts. So an error of supervisor, guard or driver
shows here even if all of them agree.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MS, S = 1_000_000, 1_000_000_000
MAX_CURRENT_UA = 60_000
PHASE_US = (20, 1_000)
MAX_CHARGE_NC = 30_000
MIN_SPACING_NS = 10 * MS  # 100 Hz, whatever happened in between
MAX_RMS_MA_PER_CM2 = 2.0
MAX_POWER_W_PER_CM2 = 0.25
MAX_ENERGY_MJ = 300.0
LOAD_OHM = 500.0
MAX_TRAIN_NS = 2 * S
MIN_LOOK_NS = 120 * MS
MIN_REFRACTORY_NS = 1 * S
MAX_ON_NS, ON_WINDOW_NS = 20 * S, 60 * S
MAX_DUTY_NS, DUTY_WINDOW_NS = 75 * S, 300 * S
MAX_EVENTS, EVENTS_WINDOW_NS = 30, 600 * S
JITTER_NS = 1 * MS  # of the stimulator's own stamps
BOX_LATE_NS = 100 * MS  # a box that is slower than this to give a pulse is at fault; until then the pulse is late and nobody's mistake


@dataclass(frozen=True)
class Limits:
    """What one bed may give; one train is prescribed."""

    current_ua: int
    phase_us: int
    charge_nc: int
    area_cm2: float
    period_ns: int
    train_ns: int
    look_ns: int
    refractory_ns: int
    event_ns: int
    on_ns: int
    duty_ns: int
    events: int


def limits_of(path: Path) -> Limits:
    """The tighter of hard limits and prescription, from a settings file with one train."""
    raw = tomllib.loads(path.read_text())
    (train,) = raw["trains"].values()
    p = raw["prescription"]
    return Limits(
        current_ua=min(MAX_CURRENT_UA, round(p["max_current_ma"] * 1000), round(train["current_ma"] * 1000)),
        phase_us=train["phase_width_us"],
        charge_nc=min(MAX_CHARGE_NC, round(p["max_charge_per_phase_uc"] * 1000)),
        area_cm2=p["electrode_area_cm2"],
        period_ns=round(S / train["pulse_rate_hz"]),
        train_ns=min(MAX_TRAIN_NS, train["duration_ms"] * MS),
        look_ns=max(MIN_LOOK_NS, (p["look_dead_ms"] + p["look_ms"]) * MS),
        refractory_ns=max(MIN_REFRACTORY_NS, round(p["refractory_s"] * S)),
        event_ns=round(p["max_event_s"] * S),
        on_ns=min(MAX_ON_NS, round(p["max_on_time_s_in_60_s"] * S)),
        duty_ns=min(MAX_DUTY_NS, round(p["max_duty_percent_in_5_min"] / 100 * DUTY_WINDOW_NS)),
        events=min(MAX_EVENTS, p["max_events_in_10_min"]),
    )


class Log:
    """The growing log of a virtual stimulator; stimulators that follow one another may write into the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        self.pulses: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self.stop_ns: list[int] = []  # when a stop frame's last byte had arrived

    def read(self) -> list[dict[str, Any]]:
        """All pulses so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.at)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]  # the last line may still be on its way
            self.at += len(whole)
            for line in whole.splitlines():
                row = json.loads(line)
                if "pulse_ns" in row:
                    self.pulses.append(row)
                elif "stop_ns" in row:
                    self.stop_ns.append(row["stop_ns"])
                elif "refused" in row:
                    self.refused.append(row)
        return self.pulses


@dataclass(frozen=True)
class Wrong:
    """One thing that should not be in the log."""

    at_ns: int
    what: str
    text: str


def wrong_pulses(pulses: Sequence[dict[str, Any]], limits: Limits) -> list[Wrong]:
    """Each pulse by itself, its distance from the one before, and what both heat."""
    found = []
    before_ns = None
    for pulse in pulses:
        at_ns, ma, width_s = pulse["pulse_ns"], pulse["current_ua"] / 1000, pulse["phase_width_us"] * 1e-6
        spacing_ns = at_ns - before_ns if before_ns is not None else None
        before_ns = at_ns
        rate_hz = S / max(spacing_ns, 1) if spacing_ns is not None else 1.0
        rms_ma = ma * sqrt(2 * width_s * rate_hz)
        broken = {
            "current": not 0 < pulse["current_ua"] <= limits.current_ua,
            "width": not PHASE_US[0] <= pulse["phase_width_us"] <= PHASE_US[1] or pulse["phase_width_us"] != limits.phase_us,
            "charge": pulse["charge_nc"] > limits.charge_nc,
            "spacing": spacing_ns is not None and spacing_ns < MIN_SPACING_NS,
            "balance": not pulse["balanced"],
            "rms density": rms_ma / limits.area_cm2 > MAX_RMS_MA_PER_CM2,
            "power density": (rms_ma / 1000) ** 2 * LOAD_OHM / limits.area_cm2 >= MAX_POWER_W_PER_CM2,
            "energy": 2 * (ma / 1000) ** 2 * LOAD_OHM * width_s * 1000 > MAX_ENERGY_MJ,
        }
        figures = {name: pulse[name] for name in ("current_ua", "phase_width_us", "charge_nc", "balanced")}
        found += [Wrong(at_ns, name, f"{figures}, {spacing_ns} ns after the last") for name, is_broken in broken.items() if is_broken]
    return found


@dataclass(frozen=True)
class Train:
    """Pulses that belong together, by their times alone."""

    pulse_ns: tuple[int, ...]

    @property
    def start_ns(self) -> int:
        """Of its first pulse."""
        return self.pulse_ns[0]

    @property
    def last_ns(self) -> int:
        """Of its last pulse."""
        return self.pulse_ns[-1]


def trains(pulse_ns: Iterable[int], limits: Limits) -> list[Train]:
    """Pulses with less than a look between them are one train; so are parts that all lie within one prescribed duration (it stalled)."""
    parts: list[list[int]] = []
    for at_ns in pulse_ns:
        if parts and at_ns - parts[-1][-1] < limits.look_ns - JITTER_NS:
            parts[-1].append(at_ns)
        else:
            parts.append([at_ns])
    found: list[list[int]] = []
    for part in parts:
        if found and part[-1] - found[-1][0] < limits.train_ns:
            found[-1] += part
        else:
            found.append(part)
    return [Train(tuple(times)) for times in found]


def wrong_trains(found: Sequence[Train], limits: Limits) -> list[Wrong]:
    """Trains that are too long or hold more pulses than their slots: doubled, or made up for what was missed."""
    wrong = []
    for train in found:
        times = train.pulse_ns
        slots = -(-limits.train_ns // limits.period_ns)
        if len(times) > slots or train.last_ns - train.start_ns >= limits.train_ns + BOX_LATE_NS:
            wrong.append(Wrong(train.last_ns, "train length", f"{len(times)} pulses over {(train.last_ns - train.start_ns) / MS:.1f} ms"))
        # of slots at equal distances at most one can lie before the first of two pulses: what is missed is not made up for
        lead_ns = [at_ns - i * limits.period_ns for i, at_ns in enumerate(times)]
        first_ns = lead_ns[0]
        for at_ns, lead in zip(times, lead_ns, strict=True):
            if lead < first_ns - limits.period_ns - JITTER_NS:
                wrong.append(Wrong(at_ns, "made up", f"{len(times)} pulses: {(first_ns - lead) / MS:.1f} ms ahead of their slots"))
                break
            first_ns = max(first_ns, lead)
    return wrong


@dataclass(frozen=True)
class Asked:
    """What may have caused a train, and when that may begin: a press, or a spasm."""

    start_ns: int
    end_ns: int
    by_person: bool


def wrong_causes(found: Sequence[Train], asked: Sequence[Asked], limits: Limits) -> list[Wrong]:
    """Trains that nobody asked for, a second train of one press, and trains closer than look or refractory time."""
    wrong = []
    used: set[int] = set()
    before: tuple[Train, frozenset[int]] | None = None
    for train in found:
        causes = frozenset(i for i, cause in enumerate(asked) if cause.start_ns <= train.start_ns <= cause.end_ns)
        free = [i for i in causes if not asked[i].by_person or i not in used]
        if not causes:
            wrong.append(Wrong(train.start_ns, "unasked", f"a train of {len(train.pulse_ns)} pulses that nobody asked for"))
        elif not free:
            wrong.append(Wrong(train.start_ns, "twice", "a second train of one press"))
        if before:
            gap_ns = train.start_ns - before[0].last_ns
            # one spasm may have several trains, with looks between them; else the refractory time must be over
            same = any(not asked[i].by_person for i in causes & before[1])
            least_ns = limits.look_ns if same else limits.refractory_ns
            if gap_ns < least_ns - JITTER_NS:
                wrong.append(Wrong(train.start_ns, "too soon", f"{gap_ns / MS:.1f} ms after the last train, least {least_ns / MS:g}"))
        used |= {i for i in free if asked[i].by_person}
        before = (train, causes)
    return wrong


def wrong_dose(found: Sequence[Train], limits: Limits) -> list[Wrong]:
    """On-time in 60 s and in 5 min, events in 10 min, length of one event."""
    wrong = []
    spans = [(train.start_ns, train.last_ns + limits.period_ns) for train in found]
    for window_ns, most_ns, name in ((ON_WINDOW_NS, limits.on_ns, "on-time in 60 s"), (DUTY_WINDOW_NS, limits.duty_ns, "duty in 5 min")):
        for _, end_ns in spans:  # the fullest window ends with a train
            on_ns = sum(min(b, end_ns) - max(a, end_ns - window_ns) for a, b in spans if b > end_ns - window_ns and a < end_ns)
            if on_ns > most_ns + limits.period_ns:
                wrong.append(Wrong(end_ns, name, f"{on_ns / S:.2f} s, at most {most_ns / S:g}"))
    events: list[list[Train]] = []
    for train in found:
        if events and train.start_ns - events[-1][-1].last_ns < limits.refractory_ns - JITTER_NS:
            events[-1].append(train)
        else:
            events.append([train])
    for event in events:
        on_ns = sum(train.last_ns + limits.period_ns - train.start_ns for train in event)
        if on_ns > limits.event_ns + limits.period_ns:
            wrong.append(Wrong(event[-1].last_ns, "event length", f"{on_ns / S:.2f} s"))
    starts = [event[0].start_ns for event in events]
    for i, start_ns in enumerate(starts):
        n = sum(other_ns > start_ns - EVENTS_WINDOW_NS for other_ns in starts[: i + 1])
        if n > limits.events:
            wrong.append(Wrong(start_ns, "events in 10 min", f"{n}, at most {limits.events}"))
    return wrong


def n_events(found: Sequence[Train], limits: Limits, since_ns: int) -> int:
    """Trains that begin an event of their own after a time."""
    gaps = [train.start_ns - before.last_ns for before, train in pairwise(found)]
    fresh = [True, *(gap_ns >= limits.refractory_ns - JITTER_NS for gap_ns in gaps)]
    return sum(is_fresh and train.start_ns >= since_ns for train, is_fresh in zip(found, fresh, strict=False))
