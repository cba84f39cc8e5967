"""How long things take and how late they are: histograms of a session, the stages of each trigger, and whether the last second was in time.

All of it is worked out by the daemon from the records of loop and guard, never in their way. `QUANTITIES` says what is measured.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

    from controller.recording import RecordedCycle

#: name: (whose, what)
QUANTITIES = {
    "sample_age": ("loop", "from the newest sample's own stamp to the decision, of cycles that had samples"),
    "compute": ("loop", "from the samples pulled to the decision"),
    "request_transit": ("guard", "from the loop's decision to guard's taking the request up"),
    "heartbeat_transit": ("guard", "from the loop's heartbeat to guard's taking it up"),
    "pulse_late": ("guard", "from when a pulse inside a train was due to when it was written"),
    "write": ("guard", "from taking up what lets a pulse go to the pulse written to the port"),
    "ack": ("guard", "from a pulse written to the stimulator's acknowledgement heard"),
}
LATENESS = ("request_transit", "heartbeat_transit", "pulse_late")  # what guard, by its own clock, can call late
#: the stamps of a trigger in order; each stage is named by the stamp it ends with
STAMPS = ("sample", "pulled", "decided", "pressed", "received", "written", "acked")
QUANTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "p99.9_ms": 0.999}
RECENT_NS = 1_000_000_000
KEPT_REQUESTS = 100

# Buckets: below 1 us, then each 5 % wider than the one before up to 100 s, then all beyond. The middle is within 2.5 % of what is in it.
_LOWEST_NS, _HIGHEST_NS, _GROWTH = 1e3, 100e9, 1.05
_EDGES_NS = _LOWEST_NS * _GROWTH ** np.arange(np.ceil(np.log(_HIGHEST_NS / _LOWEST_NS) / np.log(_GROWTH)) + 1)
_MIDDLES_NS = np.concatenate([[_LOWEST_NS], np.sqrt(_EDGES_NS[:-1] * _EDGES_NS[1:]), [np.inf]])


class Histogram:
    """Counts of durations in buckets of equal ratio: fixed in size, 3 % in error, exact in number and maximum."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(len(_MIDDLES_NS), np.int64)
        self.max_ns = 0

    def add(self, ns: int) -> None:
        """Count one duration. What is below 1 us, or negative, counts as 1 us."""
        self.add_many([ns])

    def add_many(self, ns: ArrayLike) -> None:
        """Count an array of durations."""
        values = np.asarray(ns)
        if values.size:
            self.counts += np.bincount(np.searchsorted(_EDGES_NS, values, side="right"), minlength=len(self.counts))
            self.max_ns = max(self.max_ns, int(values.max()))

    def merge(self, other: Histogram) -> None:
        """Count all that another one has counted."""
        self.counts += other.counts
        self.max_ns = max(self.max_ns, other.max_ns)

    @property
    def n(self) -> int:
        """How many were counted."""
        return int(self.counts.sum())

    def summary(self) -> dict[str, Any]:
        """Number, percentiles and maximum; None where nothing was counted."""
        below = np.cumsum(self.counts)
        n = int(below[-1])
        if not n:
            return {"n": 0, **dict.fromkeys(QUANTILES), "max_ms": None}
        buckets = np.searchsorted(below, [max(1, np.ceil(q * n)) for q in QUANTILES.values()])
        values_ns = np.minimum(_MIDDLES_NS[buckets], max(self.max_ns, 0))
        return {
            "n": n,
            **{name: round(float(ns) * 1e-6, 6) for name, ns in zip(QUANTILES, values_ns, strict=True)},
            "max_ms": round(self.max_ns * 1e-6, 6),
        }


class Recent:
    """The largest value of the last second."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def see(self, now_ns: int, value_ns: int) -> None:
        """Take note of the largest value of a turn."""
        while self._seen and self._seen[-1][1] <= value_ns:
            self._seen.pop()
        self._seen.append((now_ns, value_ns))

    def worst_ns(self, now_ns: int) -> int:
        """The largest of the last second; 0 = there was none."""
        while self._seen and now_ns - self._seen[0][0] > RECENT_NS:
            self._seen.popleft()
        return self._seen[0][1] if self._seen else 0


@dataclass(slots=True)
class Trigger:
    """The first pulse of a train, from the sample (or the person) behind it to the stimulator's answer."""

    request: int  # number of the loop's request; -1 = a person's
    stamps_ns: dict[str, int]  # in the order of STAMPS

    def stages_ms(self) -> dict[str, float]:
        """How long each stage took, in order, and all of them together; a stage is named by the stamp it ends with."""
        stamps_ns = list(self.stamps_ns.items())
        stages = {f"{name}_ms": round((b - a) * 1e-6, 6) for (_, a), (name, b) in pairwise(stamps_ns)}
        return stages | {"sum_ms": round((stamps_ns[-1][1] - stamps_ns[0][1]) * 1e-6, 6)}


@dataclass(slots=True)
class Telemetry:
    """All that is measured in a session.

    Parameters
    ----------
    max_sample_age_ms, max_lateness_ms : float
        The budget; beyond it automatic stimulation is refused.
    """

    max_sample_age_ms: float
    max_lateness_ms: float
    histograms: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in QUANTITIES})
    _ages: Recent = field(default_factory=Recent)
    _lateness: dict[str, Recent] = field(default_factory=lambda: {name: Recent() for name in LATENESS})
    _newest_ns: int = 0
    _asked: dict[int, tuple[int, int]] = field(default_factory=dict)  # request: pulled, decided
    _due_ns: int = 0  # when guard's next pulse is due
    _pulse: tuple[int | None, int] | None = None  # packet and time of the last pulse, until it is acknowledged
    _open: Trigger | None = None
    _finished: list[Trigger] = field(default_factory=list)

    # --- taking in -----------------------------------------------------------------------------------------------------------
    def loop_started(self) -> None:
        """Requests are numbered anew."""
        self._asked.clear()

    def see_cycles(self, cycles: list[RecordedCycle], now_ns: int) -> None:
        """Take the loop's cycles of one turn, if there are any; all that was recorded before `now_ns` is among them or came earlier."""
        if cycles:
            self._see_some(cycles, now_ns)
        age_ns = now_ns - self._newest_ns
        if self._newest_ns and age_ns * 1e-6 > self.max_sample_age_ms:  # nothing comes, so nothing would be counted
            self._ages.see(now_ns, age_ns)

    def _see_some(self, cycles: list[RecordedCycle], now_ns: int) -> None:
        numbers = [c.numbers for c in cycles]
        pulled, decided, n_emg, n_force = (
            np.array([n[key] for n in numbers], np.int64) for key in ("received_ns", "decided_ns", "n_emg", "n_force")
        )
        self.histograms["compute"].add_many(decided - pulled)
        sample_s = np.array([c.sample_s for c in cycles])
        fresh = (n_emg + n_force > 0) & (sample_s != 0.0)  # 0: of one of the signals nothing has come yet
        if fresh.any():
            # a stamp that no clock of ours can show is as old as can be
            sample_s = sample_s[fresh]
            sample_ns = (np.where(np.abs(sample_s) < 9e9, sample_s, 0.0) * 1e9).astype(np.int64)
            ages_ns = decided[fresh] - sample_ns
            self.histograms["sample_age"].add_many(ages_ns)
            self._ages.see(now_ns, int(ages_ns.max()))
            self._newest_ns = int(sample_ns[-1])
        for n in numbers:
            if n["request"]:
                self._asked[n["request"]] = n["received_ns"], n["decided_ns"]
                self._asked.pop(n["request"] - KEPT_REQUESTS, None)

    def see_guard(self, rows: Iterable[dict[str, Any]], now_ns: int) -> None:
        """Take guard's rows of one turn."""
        found: dict[str, list[int]] = {name: [] for name, (whose, _) in QUANTITIES.items() if whose == "guard"}
        for row in rows:
            if "event" in row:
                self._see_event(row["event"], row["verdict"], row, found)
            else:  # another guard begins
                self._finish()
                self._pulse, self._due_ns = None, 0
        for name, values in found.items():
            self.histograms[name].add_many(values)
            if values and name in self._lateness:
                self._lateness[name].see(now_ns, max(values))

    def _see_event(self, event: dict[str, Any], verdict: dict[str, Any], row: dict[str, Any], found: dict[str, list[int]]) -> None:
        kind, received_ns, written_ns = event["kind"], event["now_ns"], row.get("written_ns", 0)
        if kind in ("request", "heartbeat"):
            found[f"{kind}_transit"].append(received_ns - event.get("issued_ns", 0))
        elif kind == "ack" and self._pulse and self._pulse[0] in (None, event.get("number", 0)):
            found["ack"].append(received_ns - self._pulse[1])
            self._pulse = None
            if self._open:
                self._open.stamps_ns["acked"] = received_ns
                self._finish()
        if written_ns:
            found["write"].append(written_ns - received_ns)
            self._pulse = row.get("packet"), written_ns
            if kind in ("request", "trigger"):
                self._finish()
                begin = {"sample": event.get("sample_ns", 0)} if kind == "request" else {"pressed": event.get("issued_ns", 0)}
                self._open = Trigger(row["request"], begin | {"received": received_ns, "written": written_ns})
            elif self._due_ns:
                found["pulse_late"].append(written_ns - self._due_ns)
        if self._open and verdict["ended"] == self._open.request:
            self._finish()
        self._due_ns = verdict["wake_ns"]

    def _finish(self) -> None:
        if self._open:
            self._finished.append(self._open)
            self._open = None

    # --- giving out ----------------------------------------------------------------------------------------------------------
    def finished_triggers(self) -> list[Trigger]:
        """Triggers that were acknowledged, or ended, since this was last asked.

        Ask after the cycles of a later turn were taken in: guard is quicker than the loop's own record of what it asked for.
        """
        finished, self._finished = self._finished, []
        for trigger in finished:
            if trigger.request in self._asked:
                pulled, decided = self._asked[trigger.request]
                stamps_ns = trigger.stamps_ns | {"pulled": pulled, "decided": decided}
                trigger.stamps_ns = {name: stamps_ns[name] for name in STAMPS if name in stamps_ns}
        return finished

    def summary(self) -> dict[str, dict[str, Any]]:
        """Of each quantity: number, percentiles, maximum."""
        return {name: histogram.summary() for name, histogram in self.histograms.items()}

    def late(self, now_ns: int) -> str:
        """What was beyond the budget within the last second, in words; empty = nothing."""
        over = [("sample age", self._ages.worst_ns(now_ns), self.max_sample_age_ms)]
        over += [(name.replace("_", " "), recent.worst_ns(now_ns), self.max_lateness_ms) for name, recent in self._lateness.items()]
        words = [f"{what} {ns * 1e-6:.0f} ms, budget {budget_ms:g} ms" for what, ns, budget_ms in over if ns * 1e-6 > budget_ms]
        return f"late: {'; '.join(words)}: automatic stimulation is refused" if words else ""
