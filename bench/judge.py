"""What the figures mean: events matched with answers, percentiles, ratios over rounds, promises kept or not. Pure."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
POOLED = ("p99", "p99.9", "max")  # of tails: over all rounds together, and only if there are many events
MIN_POOLED = 2000
BUDGET = Path(__file__).with_name("budget.toml")


@dataclass(frozen=True)
class Matched:
    """Events and their answers.

    Attributes
    ----------
    latency_us : list of float or None
        One for each event: from it to the first answer before the next event; None = a miss.
    extras : int
        Answers beyond the first of an event, or before the first event.
    """

    latency_us: list[float | None]
    extras: int

    @property
    def misses(self) -> int:
        """Events without an answer."""
        return self.latency_us.count(None)


def match(t0_ns: Sequence[int], stamps_ns: Sequence[int], drop: int = 0) -> Matched:
    """Each event with the first stamp after it and before the next event; the first `drop` events do not count."""
    t0, stamps = np.asarray(t0_ns, np.int64)[drop:], np.asarray(stamps_ns, np.int64)
    if drop and len(t0):
        stamps = stamps[stamps >= t0[0]]
    first = np.searchsorted(stamps, t0, "left")
    last = np.append(first, len(stamps))[1:]
    latency_us = [round((int(stamps[i]) - int(at)) / 1000, 1) if i < j else None for at, i, j in zip(t0, first, last, strict=True)]
    return Matched(latency_us, len(stamps) - len(t0) + latency_us.count(None))


def behind(matched: Matched, t0_ns: Sequence[int], stamps_ns: Sequence[int]) -> bool:
    """Whether answers may belong to earlier events than they are matched with: a contender that does not keep up.

    Nothing in a byte says which event it answers. Signs: a median above a quarter of the interval, or answers that still come when the
    last event is long over.
    """
    t0, stamps = np.asarray(t0_ns, np.int64), np.asarray(stamps_ns, np.int64)
    if len(t0) < 2:
        return False
    gaps_ns = np.diff(t0)
    late = int((stamps > t0[-1] + gaps_ns.max()).sum())
    return late > 1 or bool(figures(matched.latency_us)["p50"] * 1000 > np.median(gaps_ns) / 4)


def figures(latency_us: Sequence[float | None]) -> dict[str, float]:
    """Percentiles in µs over all events; an event that was missed is later than any other. NaN without events."""
    x = np.array([np.inf if us is None else us for us in latency_us], np.float64)
    # the next sample up, not a mean of two: infinity must stay where it is
    return {name: float(np.percentile(x, q, method="higher")) if len(x) else float("nan") for name, q in PERCENTILES.items()}


def ratio(metric: str, of: Sequence[Sequence[float | None]], against: Sequence[Sequence[float | None]]) -> float:
    """How many times longer one takes than the other; a list of latencies for each round, paired.

    Medians and p95: the median over rounds of the ratios within each round, so that what slows a whole minute slows both. Tails: of all
    rounds pooled.
    """
    if metric in POOLED:
        return figures([us for part in of for us in part])[metric] / figures([us for part in against for us in part])[metric]
    return float(np.median([figures(a)[metric] / figures(b)[metric] for a, b in zip(of, against, strict=True)]))


@dataclass(frozen=True)
class Judged:
    """One promise and what became of it: `verdict` is met, missed or not measured. `aim` is what we wished for where we promise less."""

    goal: str
    value: float | None
    limit: float
    verdict: str
    why: str = ""
    aim: float | None = None

    @property
    def words(self) -> str:
        """One line."""
        limit = f"limit {self.limit:.3g}"
        if self.aim is not None:
            limit += f", aim {self.aim:.3g}" + (" not reached" if self.value is not None and self.value > self.aim else "")
        got = f"({limit}) {self.why}" if self.value is None else f"{self.value:.3g} ({limit})"
        return f"{self.verdict:<12} {self.goal}: {got}"


def budget(path: Path = BUDGET) -> list[dict[str, Any]]:
    """The latency promises, one for each chunk size."""
    rows = tomllib.loads(path.read_text())["latency"]
    return [row | {"chunk": chunk} for row in rows for chunk in row.get("chunks", (1, 10))]


def judge(rows: Iterable[dict[str, Any]], cells: Sequence[dict[str, Any]]) -> list[Judged]:
    """Compare promises with the cells of a run (see `bench.latency`): rounds of both sides are paired by their number."""
    return [_judge(row, cells) for row in rows]


def _judge(row: dict[str, Any], cells: Sequence[dict[str, Any]]) -> Judged:
    load, chunk, metric, aim = row.get("load", ""), row["chunk"], row["metric"], row.get("aim")
    goal = f"{row['of']}{f' under {load}' if load else ''} / {row['against']}, chunk {chunk}, {metric}"
    of = _rounds(cells, row["of"], chunk, load)
    against = _rounds(cells, row["against"], chunk, "")
    for name, rounds, at in ((row["of"], of, load), (row["against"], against, "")):
        if not rounds:
            return Judged(goal, None, row["limit"], "not measured", why_not(cells, name, chunk, at), aim)
    common = sorted(set(of) & set(against))
    if metric not in POOLED:  # a round in which the other side did not work is no yardstick
        common = [i for i in common if isfinite(figures(against[i])[metric])]
    if len(common) * 2 <= len(against):
        return Judged(
            goal, None, row["limit"], "not measured", f"only {len(common)} of {len(against)} rounds of {row['against']} compare", aim
        )
    a, b = [of[i] for i in common], [against[i] for i in common]
    fewest = min(sum(map(len, a)), sum(map(len, b)))
    if metric in POOLED and fewest < MIN_POOLED:
        return Judged(goal, None, row["limit"], "not measured", f"{fewest} events pooled, {metric} needs {MIN_POOLED}", aim)
    if metric in POOLED and not isfinite(figures([us for part in b for us in part])[metric]):
        return Judged(goal, None, row["limit"], "not measured", f"{row['against']} missed too many events", aim)
    value = ratio(metric, a, b)  # infinite where we missed events: not met
    return Judged(goal, round(value, 4), row["limit"], "met" if value <= row["limit"] else "missed", aim=aim)


def _rounds(cells: Sequence[dict[str, Any]], name: str, chunk: int, load: str) -> dict[int, list[float | None]]:
    return {
        cell["round"]: cell["latency_us"]
        for cell in cells
        if (cell["contender"], cell["chunk"], cell["load"]) == (name, chunk, load) and cell.get("latency_us")
    }


def why_not(cells: Sequence[dict[str, Any]], name: str, chunk: int, load: str) -> str:
    """Why there is nothing of this contender."""
    at = f"{name}{f' under {load}' if load else ''}"
    for cell in cells:
        if (cell["contender"], cell["chunk"], cell["load"]) == (name, chunk, load):
            return f"{at}: {cell.get('skipped') or 'no events'}"
    return f"{at} was not run"
