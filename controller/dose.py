"""What the rows of a bed's dose journal mean: stimulation so far, on this boot's clock. Pure.

Within one boot the monotonic clock tells how long ago something was. Between boots UTC does, from the last row of the one to the first of
the next, so that a clock which is set while a session runs changes nothing; where UTC went backwards no time has passed. Dose may look
younger than it is, never older. What nothing here can tell is a clock that is put forward while no daemon runs.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

S = 1_000_000_000
MINUTE = 60 * S
DAY = 24 * 60 * MINUTE
REBOOT_NS = 4 * S  # no machine is back earlier; also room for two assumed trains of the longest kind


class Dose(NamedTuple):
    """Stimulation."""

    on_ns: int = 0
    charge_nc: int = 0
    pulses: int = 0


class Clock(NamedTuple):
    """One moment on a boot's monotonic clock and in UTC."""

    boot: str
    monotonic_ns: int
    utc_ns: int


class Row(NamedTuple):
    """What was written, when. Kinds: session, train, lockout, end, reset."""

    at: Clock
    kind: str
    detail: dict[str, Any]


class Given(NamedTuple):
    """One train on the clock of now. An assumed one counts from when it was assumed: nobody knows when it was."""

    start_ns: int
    end_ns: int
    event_ns: int
    counts_ns: int
    dose: Dose
    new_event: bool
    automatic: bool
    in_session: bool
    assumed: bool


def train_of(said: dict[str, Any]) -> dict[str, Any]:
    """A train as guard told it, checked; KeyError or ValueError where it is none."""
    numbers = {name: said[name] for name in ("start_ns", "end_ns", "pulses", "charge_nc", "event_id", "cause")}
    if any(type(number) is not int for number in numbers.values()) or said["end_ns"] < said["start_ns"]:
        raise ValueError(f"guard told of a train that is none: {said}")
    return numbers | {name: bool(said[name]) for name in ("new_event", "automatic")}


def worst_train(view: dict[str, Any]) -> Dose:
    """The longest and strongest that any train of guard's view can give."""
    doses = []
    for t in view["trains"].values():
        pulses = max(1, -(-t["duration_us"] // (10**9 // t["pulse_rate_mhz"])))
        charge_nc = -(-t["current_ua"] * t["phase_width_us"] // 1000)
        doses.append((t["duration_us"] * 1000, pulses * charge_nc, pulses))
    return Dose(*map(max, zip(*doses, strict=True)))


def shifts(rows: Sequence[Row], now: Clock) -> list[int]:
    """What to add to each row's monotonic times to have them on the clock of `now`."""
    found: list[int] = []
    later, shift = now, 0
    for row in reversed(rows):
        at = row.at
        if at.boot != later.boot or at.monotonic_ns > later.monotonic_ns:  # the second: a machine set back to a snapshot
            shift += later.monotonic_ns - at.monotonic_ns - max(later.utc_ns - at.utc_ns, REBOOT_NS)
        found.append(shift)
        later = at
    return found[::-1]


def lockout_of(rows: Sequence[Row]) -> str:
    """The reason of the lockout in force; empty = none."""
    return next((str(row.detail["lockout"]) for row in reversed(rows) if "lockout" in row.detail), "")


def session_start(rows: Sequence[Row]) -> int:
    """Index of the row with which the session's dose began: an unclean end continues it."""
    return max((i for i, row in enumerate(rows) if row.kind == "reset" or (row.kind == "session" and row.detail["new"])), default=0)


def is_open(rows: Sequence[Row]) -> bool:
    """Whether the last session has no end."""
    return next((row.kind == "session" for row in reversed(rows) if row.kind in ("session", "end", "reset")), False)


def given(rows: Sequence[Row], now: Clock) -> list[Given]:
    """All trains since the last reset, in the order they were written."""
    began, reset = session_start(rows), max((i for i, row in enumerate(rows) if row.kind == "reset"), default=0)
    trains = []
    for i, (row, shift) in enumerate(zip(rows, shifts(rows, now), strict=True)):
        if row.kind == "train" and i >= reset:
            t = row.detail
            dose = Dose(t.get("on_ns", t["end_ns"] - t["start_ns"]), t["charge_nc"], t["pulses"])
            start_ns, end_ns, written_ns = (ns + shift for ns in (t["start_ns"], t["end_ns"], row.at.monotonic_ns))
            counts = (written_ns, written_ns) if "assumed" in t else (start_ns, end_ns)
            trains.append(Given(start_ns, end_ns, *counts, dose, t["new_event"], t["automatic"], i >= began, "assumed" in t))
    return trains


def history(rows: Sequence[Row], now: Clock) -> dict[str, Any]:
    """What guard must know of earlier, on the clock of `now`, in whole numbers.

    `trains` [start, end] of the last 5 min, `minutes` [start, on, nC, pulses] of the last 24 h by the minute in which a train ended,
    `session` [on, nC, pulses], `events` and `auto_events` [start] of the last hour, `lockout` (its reason); times in ns.
    """
    trains, now_ns = given(rows, now), now.monotonic_ns
    minutes: dict[int, list[Dose]] = defaultdict(list)
    for train in trains:
        minutes[train.counts_ns // MINUTE * MINUTE].append(train.dose)
    events = sorted((train.event_ns, train.automatic) for train in trains if train.new_event and train.event_ns > now_ns - 60 * MINUTE)
    return {
        "trains": _apart(sorted([t.start_ns, t.end_ns] for t in trains if t.end_ns > now_ns - 5 * MINUTE)),
        "minutes": [[start_ns, *total(minutes[start_ns])] for start_ns in sorted(minutes) if start_ns > now_ns - DAY - MINUTE],
        "session": [*total(train.dose for train in trains if train.in_session)],
        "events": [start_ns for start_ns, _ in events],
        "auto_events": [start_ns for start_ns, automatic in events if automatic],
        "lockout": lockout_of(rows),
    }


def summary(rows: Sequence[Row], now: Clock) -> dict[str, Any]:
    """The dose for people."""
    trains = given(rows, now)
    past = {
        "session": total(train.dose for train in trains if train.in_session),
        "day": total(train.dose for train in trains if train.counts_ns > now.monotonic_ns - DAY),
    }
    return {
        **{
            name: {"on_time_s": round(dose.on_ns / 1e9, 3), "pulses": dose.pulses, "charge_mc": round(dose.charge_nc / 1e6, 4)}
            for name, dose in past.items()
        },
        "lockout": lockout_of(rows),
        "last_train_ended_s_ago": round((now.monotonic_ns - trains[-1].end_ns) / 1e9, 1) if trains else None,
        "assumed_trains": sum(train.assumed for train in trains if train.counts_ns > now.monotonic_ns - DAY),
    }


def total(doses: Iterable[Dose]) -> Dose:
    """Sum."""
    return Dose(*map(sum, zip(*doses, strict=True)))


def _apart(trains: list[list[int]]) -> list[list[int]]:
    """None begins before the one before is over: where one does, the earlier makes room, at its full length."""
    for i in range(len(trains) - 2, -1, -1):
        over_ns = max(0, trains[i][1] - trains[i + 1][0])
        trains[i] = [trains[i][0] - over_ns, trains[i][1] - over_ns]
    return trains
