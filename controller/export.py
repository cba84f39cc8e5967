"""Sessions out: BDF+ with annotations inside a BIDS-EMG dataset (see `bids`), or plain CSV.

BDF+ knows no time stamps, only a rate and a first sample. A sample therefore keeps its place in the row of samples, and whatever happened
beside it is put where its stamp falls among the stamps of the EMG: an event stays at its sample however far the amplifier's clock runs off
its nominal rate. Samples that were lost on the way are filled with `FILL` and annotated as BAD_gap. Force goes into the same file at its
own rate, each place holding the sample that is nearest to it in time.

Reads sessions, writes files, and knows nothing of a running bed. What names a person (who armed, who signed, who stopped) is left out.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from math import ceil, lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from controller import bids, describe, recording
from drivers.base import FileFormatError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from controller.recording import Session

FILL = 0.0  # in the channel's unit: what stands where there was no sample, or no number
HIGHEST = 8_388_607  # 24 bits; the range is made symmetrical, so that FILL is exactly a step
MAX_RANGE = 9_999_999  # the header has 8 characters for "-9999999"
WINDOW_S = 0.25  # on both sides of a jump of the stamps: what is still there after it is a gap, what is caught up was late
RECORD_S = 60.0  # no reader expects a data record that is longer
LONGEST_S = 48 * 3600.0
NEEDS = "BDF+ is written by edfio, which is not installed: pip install edfio"
ASKED = ("request", "trigger", "button")  # guard's events that can start a train


class Event(NamedTuple):
    """Something that happened.

    Attributes
    ----------
    at_s, duration_s : float
        As recorded: LSL clock.
    kind : str
        A key of `bids.KINDS`.
    rule, sort, detail : str
        The rule that saw it, its class, and more; empty = there is none.
    """

    at_s: float
    duration_s: float
    kind: str
    rule: str = ""
    sort: str = ""
    detail: str = ""

    @property
    def words(self) -> str:
        """As an annotation."""
        return " ".join(word for word in (self.kind, self.rule, self.sort, self.detail) if word)


@dataclass(eq=False)
class Channel:
    """One channel of a BDF file: (n,) float64 without NaN."""

    label: str
    name: str
    kind: str  # BIDS: EMG or MISC
    unit: str
    rate_hz: float
    values: NDArray[np.float64]
    limit: int = 1

    @property
    def step(self) -> float:
        """What one of the 24 bits is worth, in the channel's unit."""
        return self.limit / HIGHEST


@dataclass(eq=False)
class Exported:
    """A session made ready for one file; times of events in s from its first EMG sample."""

    channels: list[Channel]
    events: list[Event]
    duration_s: float
    filled: dict[str, int] = field(default_factory=dict)  # samples, by why
    effective_rate_hz: float = 0.0


# --- what happened ----------------------------------------------------------------------------------------------------------------
def reason_words(reason: str) -> str:
    """A refusal without what may name a person: up to the first colon, and the requirement at its end."""
    code = re.search(r"\[[^\]]*\]$", reason)
    head = re.split(r"[:\[]", reason)[0].strip()
    return f"{head} {code[0]}" if code else head


def events(session: Session) -> list[Event]:
    """Spasms, trains, pulses, refusals and presses of a session, by their stamps."""
    found = []
    for rule, spasm in describe.of_session(session):
        detail = f"{spasm.clonus_hz:.1f} Hz" if spasm.clonus_hz else ""
        found.append(Event(spasm.onset_s, max(0.0, spasm.offset_s - spasm.onset_s), "spasm", rule, spasm.kind, detail))
    pulses = session.streams["pulses"]
    current_ua = np.asarray(pulses.values, np.int64).reshape(-1, 5)[:, 0]
    found += [Event(t, 0.0, "pulse", detail=f"{ua / 1e3:g} mA") for t, ua in zip(pulses.stamps_s.tolist(), current_ua, strict=True)]
    closed = False
    for row in session.guard():
        if "event" not in row:
            continue
        event, verdict = row["event"], row["verdict"]
        at_s, kind = event["now_ns"] * 1e-9, event["kind"]
        pressed = kind == "trigger" or (kind == "button" and event.get("ok", False) and not closed)
        if kind == "button":
            closed = event.get("ok", False)
        if pressed:
            found.append(Event(at_s, 0.0, "button", detail="by command" if kind == "trigger" else "patient's button"))
        if verdict["refused"] and kind in ASKED:
            found.append(Event(at_s, 0.0, "refused", detail="; ".join(reason_words(text) for text in verdict["reasons"])))
        if train := row.get("train"):
            start_s, end_s = train["start_ns"] * 1e-9, train["end_ns"] * 1e-9
            given = current_ua[slice(*np.searchsorted(pulses.stamps_s, (start_s, end_s)))]
            most = f", at most {given.max() / 1e3:g} mA" if len(given) else ""
            found.append(Event(start_s, end_s - start_s, "train", detail=f"{train['pulses']} pulses{most}"))
    return sorted(found)


# --- stamps into places -----------------------------------------------------------------------------------------------------------
def holes(stamps_s: NDArray[np.float64], rate_hz: float) -> list[tuple[int, int]]:
    """Where samples are missing: (index of the first sample after it, how many).

    Stamps that come late and catch up are no gap. Where stamps scatter, a gap shows only when it is longer than their scatter; a smaller
    one moves what follows by less than that.
    """
    late_s, w = stamps_s - np.arange(len(stamps_s)) / rate_hz, max(4, round(WINDOW_S * rate_hz))
    jumps = np.flatnonzero(np.diff(stamps_s) > 1.5 / rate_hz) + 1
    at = [i for i in jumps.tolist() if late_s[i : i + w].min() - late_s[max(0, i - w) : i].max() > 0.5 / rate_hz]
    found = []
    for before, i, after in zip([0, *at], at, [*at[1:], len(stamps_s)], strict=False):
        step_s = np.median(late_s[i : min(i + w, after)]) - np.median(late_s[max(before, i - w) : i])
        if (n := round(float(step_s) * rate_hz)) > 0:
            found.append((i, n))
    return found


def places(stamps_s: NDArray[np.float64], rate_hz: float) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """The place of each sample, counted from the first with the missing ones, (n,) int64; and the gaps as (place, how many)."""
    found = holes(stamps_s, rate_hz)
    missing = np.zeros(len(stamps_s), np.int64)
    for i, n in found:
        missing[i] = n
    place = np.arange(len(stamps_s)) + np.cumsum(missing)
    return place, [(int(place[i]) - n, n) for i, n in found]


def to_file(t_s: NDArray[np.float64], stamps_s: NDArray[np.float64], place: NDArray[np.int64], rate_hz: float) -> NDArray[np.float64]:
    """Put stamps on the file's time: s from its first sample, at the nominal rate before and after the signal."""
    rising, file_s = np.maximum.accumulate(stamps_s), place / rate_hz
    outside_s = np.minimum(t_s - rising[0], 0.0) + np.maximum(t_s - rising[-1], 0.0)
    return np.asarray(np.interp(t_s, rising, file_s) + outside_s, np.float64)


def labels(names: list[str]) -> list[str]:
    """Labels that BDF can hold: 16 printable ASCII characters, no two alike."""
    found: list[str] = []
    for name in names:
        plain = "".join(c if " " <= c <= "~" else "_" for c in name)[:16].strip() or "channel"
        label, n = plain, 2
        while label in found:
            label, n = f"{plain[: 15 - len(str(n))]}-{n}", n + 1
        found.append(label)
    return found


def record_s(rates_hz: list[float]) -> int:
    """Length of a data record that holds a whole number of samples of each rate, s."""
    parts = [Fraction(rate).limit_denominator(1000) for rate in rates_hz]
    for rate, part in zip(rates_hz, parts, strict=True):
        if abs(float(part) / rate - 1.0) > 1e-6:
            raise FileFormatError(f"BDF+ has no place for {rate!r} Hz: no whole number of samples fits into a data record; use --csv")
    length = lcm(*(part.denominator for part in parts))
    if length > RECORD_S:
        raise FileFormatError(f"BDF+ has no place for {' and '.join(map(repr, rates_hz))} Hz together; use --csv")
    return length


def prepare(session: Session) -> Exported:
    """Put a session's signals into places and its events on the file's time. Raises `FileFormatError` where there is no EMG."""
    emg, config = session.streams.get("EMG"), session.config
    if emg is None or config.emg is None or len(emg.stamps_s) < 2:
        raise FileFormatError(f"{session.folder.name}: has no EMG, and BIDS-EMG is made of it; --csv writes what there is")
    rate_hz, stamps_s = config.emg.sample_rate_hz, emg.stamps_s
    place, gaps = places(stamps_s, rate_hz)
    force = session.streams.get("force") if config.force else None
    if force is not None and len(force.stamps_s) < 2:
        force = None
    rates_hz = [rate_hz, config.force.sample_rate_hz] if config.force and force is not None else [rate_hz]
    one_s = record_s(rates_hz)
    records = ceil(round((int(place[-1]) + 1) / rate_hz / one_s, 9))
    if records * one_s > LONGEST_S:
        raise FileFormatError(
            f"{session.folder.name}: {records * one_s / 3600:.0f} h with its gaps, at most {LONGEST_S / 3600:g} go into one file"
        )
    n = round(records * one_s * rate_hz)
    out = Exported([], [], records * one_s, {"gap": sum(many for _, many in gaps), "end": n - int(place[-1]) - 1, "nan": 0, "force": 0})
    out.effective_rate_hz = float(place[-1] / (stamps_s[-1] - stamps_s[0]))
    found = [event._replace(at_s=t) for event, t in _moved(events(session), stamps_s, place, rate_hz)]
    found += [Event(at / rate_hz, many / rate_hz, "BAD_gap", detail=f"{many} samples") for at, many in gaps]
    if out.filled["end"]:
        found.append(
            Event((place[-1] + 1) / rate_hz, out.filled["end"] / rate_hz, "BAD_gap", detail=f"{out.filled['end']} samples at the end")
        )
    where = np.full(n, -1)
    where[place] = np.arange(len(place))
    _add(out, found, list(config.emg.channels), "EMG", "uV", rate_hz, np.asarray(emg.values), where)
    if config.force and force is not None:
        rate_hz = config.force.sample_rate_hz
        where = _nearest(
            force.stamps_s, rate_hz, to_file(force.stamps_s, stamps_s, place, config.emg.sample_rate_hz), round(out.duration_s * rate_hz)
        )
        for at, many in _runs(where < 0):
            out.filled["force"] += many
            found.append(Event(at / rate_hz, many / rate_hz, "BAD_gap", detail=f"{many} samples of force"))
        _add(out, found, list(config.force.channels), "MISC", config.force.unit, rate_hz, np.asarray(force.values), where)
    for channel, label in zip(out.channels, labels([channel.name for channel in out.channels]), strict=True):
        channel.label = label
    out.events = sorted(found)
    return out


def _moved(found: list[Event], *clock: Any) -> Iterator[tuple[Event, float]]:
    return zip(found, to_file(np.array([event.at_s for event in found]), *clock).tolist(), strict=True)


def _nearest(stamps_s: NDArray[np.float64], rate_hz: float, file_s: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Which sample is nearest to each of n places of another rate's grid, (n,) int64; -1 = none is near."""
    place, _ = places(stamps_s, rate_hz)
    file_s = np.asarray(
        np.polyval(np.polyfit(place, file_s, 1), place), np.float64
    )  # the scatter of single stamps must not shuffle samples
    grid_s = np.arange(n) / rate_hz
    k = np.searchsorted(0.5 * (file_s[1:] + file_s[:-1]), grid_s)
    return np.where(np.abs(file_s[k] - grid_s) <= 0.75 / rate_hz, k, -1)


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(begin, length) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _add(
    out: Exported,
    found: list[Event],
    names: list[str],
    kind: str,
    unit: str,
    rate_hz: float,
    x: NDArray[np.float64],
    where: NDArray[np.int64],
) -> None:
    """Add a stream's channels; a sample that is no number is filled and annotated, a range that no header can hold is refused."""
    for j, name in enumerate(names):
        values = np.where(where >= 0, x[where, j], FILL)
        bad = ~np.isfinite(values)
        for at, many in _runs(bad):
            out.filled["nan"] += many
            found.append(Event(at / rate_hz, many / rate_hz, "BAD_nan", detail=f"{many} samples of {name}"))
        values[bad] = FILL
        limit = max(1, ceil(float(np.abs(values).max())))
        if limit > MAX_RANGE:
            raise FileFormatError(
                f"channel {name}: {limit} {unit} is more than a BDF header can say ({MAX_RANGE}): wrong unit in the settings?"
            )
        out.channels.append(Channel("", name, kind, unit, rate_hz, values, limit))


# --- files ------------------------------------------------------------------------------------------------------------------------
def began(session: Session) -> datetime:
    """When the first EMG sample was taken, UTC, to the second: from the recording's header. Raises `FileFormatError`."""
    with (session.folder / recording.SIGNALS).open("rb") as file:
        found = re.search(rb"<datetime>([^<]+)</datetime>", file.read(1000))
    if not found:
        raise FileFormatError(f"{session.folder.name}: the recording does not say when it began: leave out --keep-date")
    after_s = float(session.streams["EMG"].stamps_s[0] - session.streams["notes"].stamps_s[0])
    return (datetime.fromisoformat(found[1].decode()) + timedelta(seconds=after_s)).replace(microsecond=0)


def write_bdf(path: Path, out: Exported, start: datetime | None) -> None:
    """Write one BDF+ file; without a start its date is the "X" and 1985 of an anonymous EDF+ file."""
    import edfio

    signals = [
        edfio.BdfSignal(
            channel.values,
            channel.rate_hz,
            label=channel.label,
            physical_dimension=channel.unit,
            physical_range=(-channel.limit, channel.limit),
            digital_range=(-HIGHEST, HIGHEST),
        )
        for channel in out.channels
    ]
    edfio.Bdf(
        signals,
        recording=edfio.Recording(startdate=start.date() if start else None, equipment_code="calmloop"),
        starttime=start.time() if start else None,
        data_record_duration=record_s([channel.rate_hz for channel in out.channels]),
        annotations=[
            edfio.EdfAnnotation(round(event.at_s, 6), round(event.duration_s, 6) or None, re.sub(r"[\x00-\x1f]", " ", event.words))
            for event in out.events
        ],
    ).write(path)


def write_csv(folder: Path, session: Session, force: bool) -> list[Path]:
    """Write emg.csv, force.csv and events.csv as recorded: stamps in s from the first sample of all, nothing filled."""
    config, streams = session.config, session.streams
    signals = [
        (name.lower(), streams[name], own.channels, unit)
        for name, own, unit in (("EMG", config.emg, "uV"), ("force", config.force, config.force.unit if config.force else ""))
        if own and name in streams and len(streams[name].stamps_s)
    ]
    zero_s = min([stream.stamps_s[0] for _, stream, _, _ in signals] or streams["notes"].stamps_s[:1].tolist() or [0.0])
    paths = [folder / f"{name}.csv" for name in (*(name for name, *_ in signals), "events")]
    bids.free(paths, force)
    folder.mkdir(parents=True, exist_ok=True)
    for path, (_, stream, names, unit) in zip(paths, signals, strict=False):
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(["time_s", *(f"{name} ({unit})" for name in names)])
            np.savetxt(
                file, np.column_stack([stream.stamps_s - zero_s, stream.values]), fmt=["%.7f"] + ["%.9g"] * len(names), delimiter=","
            )
    with paths[-1].open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["onset_s", "duration_s", "event", "rule", "class", "detail"])
        rows.writerows([f"{event.at_s - zero_s:.6f}", f"{event.duration_s:.6f}", *event[2:]] for event in events(session))
    return paths


# --- the command ------------------------------------------------------------------------------------------------------------------
def command(args: argparse.Namespace) -> int:
    """`calmloop export`: 0 = written, 2 = nothing was, or not all, and why."""
    done: list[dict[str, Any]] = []
    try:
        if not (args.bids or args.csv):
            raise FileFormatError("where to? --bids DIR, --csv DIR or both")
        if args.session and len(args.sessions) > 1:
            raise FileFormatError("--session names one session: without it several are numbered")
        if args.bids:
            try:
                import edfio  # noqa: F401
            except ImportError:
                raise FileFormatError(NEEDS) from None
        for i, folder in enumerate(args.sessions, 1):
            session, facts = recording.load(folder), {"session": folder.name}
            if args.csv:
                target = args.csv if len(args.sessions) == 1 else args.csv / f"{i:02d}"
                facts["csv"] = [str(path) for path in write_csv(target, session, args.force)]
            if args.bids:
                facts |= bids.export(session, args)
            done.append(facts)
            if not args.json:
                print("\n".join(_sentences(facts)))
    except (FileFormatError, bids.BidsError, OSError) as error:
        print(
            json.dumps({"ok": False, "error": str(error), "written": done}) if args.json else f"{error}",
            file=sys.stdout if args.json else sys.stderr,
        )
        return 2
    if args.json:
        print(json.dumps({"ok": True, "written": done}))
    return 0


def _sentences(facts: dict[str, Any]) -> list[str]:
    lines = [facts["session"], *(f"  {path}" for path in facts.get("csv", []))]
    if "files" in facts:
        filled = facts["filled"]
        words = {"gap": "lost on the way", "end": "to fill up the last second", "nan": "no number", "force": "of force without a sample"}
        lines += [f"  {path}" for path in facts["files"]]
        lines += [f"  {c['name']}: +-{c['limit']} {c['unit']} in steps of {c['step']:.3g} {c['unit']}" for c in facts["channels"]]
        lines += [f"  filled with {FILL:g}: {n} samples {words[why]}, annotated" for why, n in filled.items() if n]
        lines += [f"  {facts['duration_s']:g} s, {facts['events']} events; sampled at {facts['effective_rate_hz']:.3f} Hz by its stamps"]
    return lines
