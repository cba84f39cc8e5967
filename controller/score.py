"""Decisions against labels, event by event: `score` for arrays, `calmloop score` for recordings and sessions.

The rules are those of the detection notes, section 3. A decision counts at the sample at which the trigger leaves, never at a back-dated
onset. The first decision in [onset, onset + 250 ms] is a hit; one before is a false alarm; a detector that is already on at the onset
has missed. An event has one hit, later decisions up to 300 ms after its end are neutral. False alarms are counted per hour of quiet time,
which is what was recorded outside events and those 300 ms.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from drivers.base import FileFormatError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from controller import recording

WITHIN_S = 0.25  # a hit is decided this soon after the onset (detection notes 3b)
MARGIN_S = 0.3  # and decisions this long after an event's end are neutral (3c)
CONFIDENCE = 0.95  # of each bound of the rate of false alarms
SLACK_S = 1e-9  # times are sums of floats: a decision on a limit is inside
INTERVAL = "each bound one-sided 95 %, exact for a Poisson count (Garwood 1936); both together are a two-sided 90 % interval"


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What a detector made of some events, every raw figure kept.

    Attributes
    ----------
    latencies_s : (n_events,) float64
        Hit's decision after the onset, in order of time; NaN where the event was missed.
    offset_errors_s : (n_events,) float64
        End of the last detection decided within the event, after the event's own end; negative is too early. NaN where the event was
        missed, or where that end is not known.
    false_alarms_s : (n_false_alarms,) float64
        When they were decided.
    quiet_s : float
        Recorded time outside events and their margins.
    already_on : int
        Events missed because the detector was on at their onset.
    late : int
        Other events missed, but with a decision before the event and its margin were over.
    splits : int
        Events that two or more detections overlap: one long for the rater, several short for the detector (Thomas 2014).
    merges : int
        Detections that overlap two or more events.
    """

    latencies_s: NDArray[np.float64]
    offset_errors_s: NDArray[np.float64]
    false_alarms_s: NDArray[np.float64]
    quiet_s: float
    already_on: int
    late: int
    splits: int
    merges: int

    @property
    def events(self) -> int:
        """How many there were."""
        return len(self.latencies_s)

    @property
    def hits(self) -> int:
        """How many of them were hit."""
        return int(np.isfinite(self.latencies_s).sum())

    @property
    def misses(self) -> int:
        """How many were not."""
        return self.events - self.hits

    @property
    def false_alarms(self) -> int:
        """How many there were."""
        return len(self.false_alarms_s)

    @property
    def sensitivity(self) -> float:
        """Share of events that were hit; NaN without events."""
        return self.hits / self.events if self.events else math.nan

    @property
    def false_alarms_per_hour(self) -> float:
        """Of quiet time; NaN where none was recorded."""
        return self.false_alarms * 3600 / self.quiet_s if self.quiet_s else math.nan

    @property
    def false_alarm_bounds_per_hour(self) -> tuple[float, float]:
        """Bounds of the rate, each one-sided with 95 %; NaN without quiet time. See `poisson_bounds`."""
        if not self.quiet_s:
            return math.nan, math.nan
        lower, upper = poisson_bounds(self.false_alarms)
        return lower * 3600 / self.quiet_s, upper * 3600 / self.quiet_s

    def summary(self) -> dict[str, Any]:
        """All of it for JSON: NaN becomes None. Median and p95 are of the hits, p95 interpolated between them; misses stand beside."""
        hit_s = self.latencies_s[np.isfinite(self.latencies_s)]
        offset_s = self.offset_errors_s[np.isfinite(self.offset_errors_s)]
        lower, upper = self.false_alarm_bounds_per_hour
        return {
            "events": self.events,
            "hits": self.hits,
            "misses": self.misses,
            "already_on": self.already_on,
            "late": self.late,
            "sensitivity": _known(self.sensitivity),
            "latency_median_s": float(np.median(hit_s)) if len(hit_s) else None,
            "latency_p95_s": float(np.percentile(hit_s, 95)) if len(hit_s) else None,
            "latency_max_s": float(hit_s.max()) if len(hit_s) else None,
            "false_alarms": self.false_alarms,
            "quiet_s": self.quiet_s,
            "false_alarms_per_hour": _known(self.false_alarms_per_hour),
            "false_alarms_per_hour_lower": _known(lower),
            "false_alarms_per_hour_upper": _known(upper),
            "offset_error_median_s": float(np.median(offset_s)) if len(offset_s) else None,
            "splits": self.splits,
            "merges": self.merges,
            "latencies_s": [_known(value) for value in self.latencies_s.tolist()],
            "offset_errors_s": [_known(value) for value in self.offset_errors_s.tolist()],
            "false_alarms_s": self.false_alarms_s.tolist(),
        }


def score(
    events_s: ArrayLike, detections_s: ArrayLike, recorded_s: ArrayLike, within_s: float = WITHIN_S, margin_s: float = MARGIN_S
) -> Score:
    """Score decisions against events; the order of either does not matter.

    Parameters
    ----------
    events_s : (n_events, 2) array_like
        Onset and offset of each, s; they may touch but not overlap.
    detections_s : (n_detections, 2) array_like
        Decision, and when the detection ended: NaN = not known (it is then on at no onset, and part of no split or merge), inf = still on
        at the end of the recording.
    recorded_s : float or (n_spans, 2) array_like
        How long was recorded, from 0; or beginning and end of each recorded span, in order.
    within_s, margin_s : float
        A hit is decided at most `within_s` after the onset; decisions up to `margin_s` after an event are neutral. A decision belongs to
        the event that began last.

    Raises
    ------
    ValueError
        An array has another shape, times are not finite, run backwards or overlap, or lie outside what was recorded.
    """
    if not (within_s >= 0 and margin_s >= 0 and math.isfinite(within_s + margin_s)):
        raise ValueError(f"within_s = {within_s} and margin_s = {margin_s} must be 0 s or more, and finite")
    spans = np.asarray(recorded_s, np.float64)
    spans = _pairs("recorded_s", [[0.0, float(spans)]] if spans.ndim == 0 else spans)
    events, detections = _pairs("events_s", events_s), _pairs("detections_s", detections_s)
    events, detections = events[np.argsort(events[:, 0])], detections[np.argsort(detections[:, 0], kind="stable")]
    for name, times in (("recorded_s", spans), ("events_s", events)):
        if not np.isfinite(times).all() or (times[:, 1] <= times[:, 0]).any() or (times[1:, 0] < times[:-1, 1] - SLACK_S).any():
            raise ValueError(f"{name}: times are not finite, run backwards or overlap")
    (onset_s, offset_s), (decided_s, end_s) = events.T, detections.T
    if not np.isfinite(decided_s).all() or (end_s < decided_s).any():
        raise ValueError("detections_s: a decision is not finite, or later than its end")
    for name, times in (("an onset", onset_s), ("an offset", offset_s), ("a decision", decided_s)):
        first, last = (spans[0, 0], spans[-1, 1]) if len(spans) else (math.inf, -math.inf)
        if ((times < first - SLACK_S) | (times > last + SLACK_S)).any():
            raise ValueError(f"{name} lies outside what was recorded")

    # what an event covers: itself and its margin, until the next begins
    covered_s = np.maximum(offset_s + margin_s, onset_s + within_s)
    owner = np.searchsorted(onset_s - SLACK_S, decided_s, side="right") - 1
    owner = np.where((owner >= 0) & (decided_s <= np.append(covered_s, math.nan)[owner] + SLACK_S), owner, -1)
    overlap = (decided_s[:, None] <= offset_s + SLACK_S) & (end_s[:, None] > onset_s + SLACK_S)  # NaN overlaps nothing
    on_at_onset = (overlap & (decided_s[:, None] < onset_s - SLACK_S)).any(axis=0)

    latencies_s, offset_errors_s, late = np.full(len(events), math.nan), np.full(len(events), math.nan), 0
    for i in np.flatnonzero(~on_at_onset):
        mine = np.flatnonzero(owner == i)
        if not len(mine):
            continue
        latency_s = decided_s[mine[0]] - onset_s[i]
        if latency_s > within_s + SLACK_S:
            late += 1
            continue
        latencies_s[i] = max(0.0, latency_s)
        inside = mine[decided_s[mine] <= offset_s[i] + SLACK_S]
        error_s = end_s[inside[-1] if len(inside) else mine[0]] - offset_s[i]
        offset_errors_s[i] = error_s if math.isfinite(error_s) else math.nan
    covered_s = np.minimum(covered_s, np.append(onset_s[1:], math.inf))
    quiet_s = sum(
        end - begin - float((np.clip(covered_s, begin, end) - np.clip(onset_s, begin, end)).sum()) for begin, end in spans.tolist()
    )
    return Score(
        latencies_s=latencies_s,
        offset_errors_s=offset_errors_s,
        false_alarms_s=decided_s[owner < 0],
        quiet_s=max(0.0, quiet_s),
        already_on=int(on_at_onset.sum()),
        late=late,
        splits=int((overlap.sum(axis=0) > 1).sum()),
        merges=int((overlap.sum(axis=1) > 1).sum()),
    )


def pooled(scores: Sequence[Score]) -> Score:
    """Several recordings as one: raw figures one after the other, counts and quiet time added. Times stay those of each recording."""
    return Score(
        latencies_s=np.concatenate([s.latencies_s for s in scores]),
        offset_errors_s=np.concatenate([s.offset_errors_s for s in scores]),
        false_alarms_s=np.concatenate([s.false_alarms_s for s in scores]),
        quiet_s=sum(s.quiet_s for s in scores),
        already_on=sum(s.already_on for s in scores),
        late=sum(s.late for s in scores),
        splits=sum(s.splits for s in scores),
        merges=sum(s.merges for s in scores),
    )


def poisson_bounds(count: int) -> tuple[float, float]:
    """Lower and upper bound of the mean of a Poisson count, each one-sided with 95 %, exact (Garwood 1936, Biometrika 28:437).

    The upper bound of 0 is -ln 0.05 = 3.0: the "rule of three".
    """
    from scipy.special import gammaincinv

    return float(gammaincinv(count, 1 - CONFIDENCE)) if count else 0.0, float(gammaincinv(count + 1, CONFIDENCE))


def _pairs(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name} must have two columns, not the shape {array.shape}")
    return array


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- labels -----------------------------------------------------------------------------------------------------------------------
class Label(NamedTuple):
    """One event as a rater wrote it, with the line it stands on; `file` is "" where the labels have no such column."""

    line: int
    file: str
    onset_s: float
    offset_s: float


def read_labels(path: Path) -> list[Label]:
    """Read a CSV or TSV of events, in s from the beginning of the recording.

    Columns are found by name: `onset_s` and `offset_s`, or `onset` and `duration` as in the events.tsv of BIDS, and `file` where one
    table has the labels of several recordings; others are ignored. Two columns without names are onset and offset.

    Raises
    ------
    FileFormatError
        The file cannot be read, a cell holds no number, an event ends before it begins, or comes before or overlaps the one above it;
        the message names file and line.
    """
    try:
        text = path.read_text("utf-8-sig")
        lines = csv.reader(text.splitlines(), delimiter="\t" if "\t" in text.partition("\n")[0] else ",", strict=True)
        rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if any(map(str.strip, row))]
    except OSError as error:
        raise FileFormatError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{path}: not a CSV or TSV in UTF-8: {error}") from None
    if not rows:
        raise FileFormatError(f"{path}: empty; a table without events needs its first line, onset_s,offset_s")
    names = rows[0][1]
    if all(map(_is_number, names)) and len(names) == 2:
        names = ["onset_s", "offset_s"]
    else:
        rows = rows[1:]
    begins, ends = ("onset_s", "offset_s") if "onset_s" in names else ("onset", "duration")
    if any(names.count(name) != 1 for name in (begins, ends)) or names.count("file") > 1:
        raise FileFormatError(
            f"{path}, line 1: columns {', '.join(names)}: needs onset_s and offset_s, or onset and duration, or two columns of numbers"
        )
    labels: list[Label] = []
    above: dict[str, Label] = {}
    for line, row in rows:
        if len(row) != len(names):
            raise FileFormatError(f"{path}, line {line}: {len(row)} cells where there are {len(names)} columns")
        cells = dict(zip(names, row, strict=True))
        for name in (begins, ends):
            if not _is_number(cells[name]):
                raise FileFormatError(f"{path}, line {line}: {name} is {cells[name]!r}, not a time in s")
        onset_s, end_s = float(cells[begins]), float(cells[ends])
        label = Label(line, cells.get("file", ""), onset_s, onset_s + end_s if ends == "duration" else end_s)
        if "file" in names and not label.file:
            raise FileFormatError(f"{path}, line {line}: file is empty")
        if not label.offset_s > onset_s:
            raise FileFormatError(f"{path}, line {line}: the event ends at {label.offset_s:g} s, not after its onset at {onset_s:g} s")
        if (last := above.get(label.file)) and onset_s < last.onset_s:
            raise FileFormatError(f"{path}, line {line}: onset {onset_s:g} s is before that of line {last.line}, {last.onset_s:g} s")
        if last and onset_s < last.offset_s - SLACK_S:
            raise FileFormatError(
                f"{path}, line {line}: the event at {onset_s:g} s overlaps that of line {last.line}, to {last.offset_s:g} s"
            )
        above[label.file] = label
        labels.append(label)
    return labels


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class Labelled(NamedTuple):
    """One recording to be scored, with its labels and the file they stand in."""

    path: Path
    labels_path: Path
    labels: list[Label]


def assign(files: Sequence[str], label_files: Sequence[str]) -> tuple[list[Labelled], list[str]]:
    """Bring recordings and labels together; also returns what a person should know of it.

    Raises
    ------
    FileFormatError
        It is not clear which labels are whose.
    """
    paths = [Path(name) for name in files]
    tables = [(Path(name), read_labels(Path(name))) for name in label_files]
    if len(tables) == len(paths) and not any(label.file for _, labels in tables for label in labels):
        return [Labelled(path, *table) for path, table in zip(paths, tables, strict=True)], []
    if len(tables) != 1:
        raise FileFormatError(f"{len(paths)} recordings and {len(tables)} labels: give one --labels for each, or one with a column 'file'")
    labels_path, labels = tables[0]
    given: dict[Path, list[Label]] = {path: [] for path in paths}
    unused: set[str] = set()
    for label in labels:
        if not label.file:
            raise FileFormatError(f"{labels_path}: labels of {len(paths)} recordings need a column 'file'")
        parts = Path(label.file).parts
        named = [path for path in given if path.absolute().parts[-len(parts) :] == parts]
        if len(named) > 1:
            raise FileFormatError(f"{labels_path}, line {label.line}: {label.file!r} may be {' or '.join(map(str, named))}")
        if named:
            given[named[0]].append(label)
        else:
            unused.add(label.file)
    notes = [f"{labels_path} also has labels of {', '.join(sorted(unused))}, not scored here"] if unused else []
    notes += [f"{labels_path} has no event of {path}" for path, mine in given.items() if not mine]
    return [Labelled(path, labels_path, given[path]) for path in paths], notes


def _fits(labelled: Labelled, spans_s: list[tuple[float, float]]) -> None:
    """Refuse labels that are not in the recording."""
    for label in labelled.labels:
        began = any(begin - SLACK_S <= label.onset_s <= end + SLACK_S for begin, end in spans_s)
        if not began or label.offset_s > spans_s[-1][1] + SLACK_S:
            recorded = ", ".join(f"{begin:.3f} to {end:.3f} s" for begin, end in spans_s)
            raise FileFormatError(
                f"{labelled.labels_path}, line {label.line}: the event from {label.onset_s:g} to {label.offset_s:g} s is outside "
                f"{labelled.path}, which has {recorded}"
            )


# --- decisions --------------------------------------------------------------------------------------------------------------------
class Decided(NamedTuple):
    """What the loop decided in one recording, s from its first sample."""

    detections_s: dict[str, list[tuple[float, float]]]  # of each rule: decision and end
    spans_s: list[tuple[float, float]]
    settings: list[dict[str, Any]]
    notes: list[str]


def _of_file(path: Path, args: argparse.Namespace) -> Decided:
    from controller import replay
    from controller.loop import Loop

    rec, config, _ = replay.load_file(path, args)
    (found,) = replay.activations(Loop(config), replay.chunks(rec))
    notes = [
        *rec.notes,
        *replay.doubts(rec, sum(a.offset_s - a.onset_s for a in found), args.floor is not None, config.emg_rules[0].floor_uv),
    ]
    detections_s = [(a.decided_s - replay.START_S, math.inf if a.on else a.offset_s - replay.START_S) for a in found]
    rules = [rule.model_dump(mode="json") for rule in config.rules]
    return Decided({config.rules[0].name: detections_s}, [(0.0, rec.duration_s)], rules, notes)


def _of_session(folder: Path) -> Decided:
    """Decide again as the session's loops did; each loop that was started begins anew."""
    from controller import recording, replay
    from controller.loop import Loop

    session = recording.load(folder)
    cycles = list(session.cycles())
    if not cycles:
        raise FileFormatError(f"{folder}: holds no cycle of the loop: there is nothing to score")
    names = [row.name for row in session.config.rows]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in sorted({number for number, _ in cycles}):
        chunks = [cycle.chunk for loop_number, cycle in cycles if loop_number == number]
        for name, activations in zip(names, replay.activations(Loop(session.config), chunks), strict=True):
            found[name] += [(a.decided_s, math.inf if a.on and number == cycles[-1][0] else a.offset_s) for a in activations]
    spans_s = _spans(cycles)
    start_s = spans_s[0][0]
    notes = []
    result = replay.Result(str(folder))
    replay.replay_loop(session, result)
    if not result.identical:
        notes.append(f"this calmloop decides otherwise than the session's, and is what was scored: {json.dumps(result.first_difference)}")
    return Decided(
        {name: [(decided - start_s, end - start_s) for decided, end in mine] for name, mine in found.items()},
        [(begin - start_s, end - start_s) for begin, end in spans_s],
        [row.model_dump(mode="json") for row in session.config.rows],
        notes,
    )


def _spans(cycles: Iterable[tuple[int, recording.RecordedCycle]]) -> list[tuple[float, float]]:
    """Recorded spans: a new one begins after a gap in the stamps, and with each loop."""
    from controller.streams import GAP_S

    spans: list[tuple[float, float]] = []
    last = 0
    for number, cycle in cycles:
        stamps = [t_s for t_s in (cycle.chunk.emg_t_s, cycle.chunk.force_t_s) if len(t_s)]
        if not stamps:
            continue
        begin, end = min(float(t_s[0]) for t_s in stamps), max(float(t_s[-1]) for t_s in stamps)
        if spans and number == last and begin - spans[-1][1] <= GAP_S:
            spans[-1] = (min(spans[-1][0], begin), max(spans[-1][1], end))
        else:
            spans.append((begin, end))
        last = number
    return spans


# --- the command ------------------------------------------------------------------------------------------------------------------
def command(args: argparse.Namespace) -> int:
    """`calmloop score FILE...`; 0 = done, 1 = less than what was asked for, 2 = something cannot be read."""
    from controller.settings import SettingsError
    from drivers.base import DriverError

    try:
        labelled, notes = assign(args.files, args.labels)
        files = [_file(one, args) for one in labelled]
    except (DriverError, SettingsError) as error:
        print(json.dumps({"ok": False, "error": str(error)}) if args.json else error, file=sys.stdout if args.json else sys.stderr)
        return 2
    rules = {name: pooled([file["scores"][name] for file in files if name in file["scores"]]) for file in files for name in file["scores"]}
    short = [words for name, s in rules.items() for words in _short(name, s, args.min_sensitivity, args.max_false_alarms_per_hour)]
    if args.json:
        facts = {
            "ok": not short,
            "short": short,
            "within_s": args.within,
            "margin_s": args.margin,
            "interval": INTERVAL,
            "notes": notes,
            "files": [file | {"scores": {name: s.summary() for name, s in file["scores"].items()}} for file in files],
            "rules": {name: s.summary() for name, s in rules.items()},
        }
        print(json.dumps(facts))
    else:
        print("\n".join([*_table(files, rules), *(f"note: {note}" for note in notes), *(f"SHORT: {words}" for words in short)]))
    return 1 if short else 0


def _file(one: Labelled, args: argparse.Namespace) -> dict[str, Any]:
    from controller.recording import SIGNALS

    is_session = one.path.is_dir() or one.path.name == SIGNALS
    decided = _of_session(one.path if one.path.is_dir() else one.path.parent) if is_session else _of_file(one.path, args)
    _fits(one, decided.spans_s)
    events_s = [(label.onset_s, label.offset_s) for label in one.labels]
    try:
        scores = {name: score(events_s, mine, decided.spans_s, args.within, args.margin) for name, mine in decided.detections_s.items()}
    except ValueError as error:  # the stamps of a session may be anything
        raise FileFormatError(f"{one.path}: {error}") from None
    return {
        "file": str(one.path),
        "labels": str(one.labels_path),
        "events_s": events_s,
        "detections_s": {name: [(begin, _known(end)) for begin, end in mine] for name, mine in decided.detections_s.items()},
        "recorded_s": decided.spans_s,
        "settings": decided.settings,
        "notes": decided.notes,
        "scores": scores,
    }


def _short(name: str, s: Score, min_sensitivity: float | None, max_per_hour: float | None) -> list[str]:
    """In what a rule falls short; what is not known is not good enough."""
    words = []
    if min_sensitivity is not None and not s.sensitivity >= min_sensitivity:
        words.append(f"{name}: sensitivity {s.sensitivity:.3f}, not {min_sensitivity:g} or more")
    if max_per_hour is not None and not s.false_alarms_per_hour <= max_per_hour:
        words.append(f"{name}: {s.false_alarms_per_hour:.2f} false alarms per hour of quiet time, not {max_per_hour:g} or fewer")
    return words


_HEAD = (
    "events",
    "hit",
    "late",
    "on",
    "sens.",
    "median",
    "p95",
    "max ms",
    "false",
    "quiet h",
    "per hour",
    "bounds",
    "end ms",
    "split",
    "merged",
)


def _table(files: list[dict[str, Any]], rules: dict[str, Score]) -> Iterable[str]:
    rows = [(f"{Path(file['file']).name}: {name}", s) for file in files for name, s in file["scores"].items()]
    rows += [(f"all: {name}", s) for name, s in rules.items()] if len(files) > 1 else []
    cells = [("", *_HEAD), *((name, *_cells(s.summary())) for name, s in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
    yield "late, on: misses decided too late, or with the detector on already at the onset; latencies are of hits alone; end: offset error"
    yield f"false alarms: {INTERVAL}"
    for file in files:
        yield from (f"note: {file['file']}: {note}" for note in file["notes"])


def _cells(s: dict[str, Any]) -> Iterable[str]:
    def ms(name: str) -> str:
        return "-" if s[name] is None else f"{1000 * s[name]:.0f}"

    def number(name: str, form: str) -> str:
        return "-" if s[name] is None else format(s[name], form)

    return (
        *(str(s[name]) for name in ("events", "hits", "late", "already_on")),
        number("sensitivity", ".3f"),
        *(ms(f"latency_{name}_s") for name in ("median", "p95", "max")),
        str(s["false_alarms"]),
        f"{s['quiet_s'] / 3600:.3f}",
        number("false_alarms_per_hour", ".2f"),
        f"{number('false_alarms_per_hour_lower', '.2f')}-{number('false_alarms_per_hour_upper', '.2f')}",
        ms("offset_error_median_s"),
        *(str(s[name]) for name in ("splits", "merges")),
    )
