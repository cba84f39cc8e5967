"""What a spasm was like, told when it is over: onset, offset, tonic, clonus or burst, its frequency, area and peak.

Works on what a rule says of itself block by block (live, replayed or recorded: rows of `DetectorState.seen`), never between a sample and a
request; the daemon and the commands call it, the loop does not. It keeps `KEPT_S` of the envelope of each rule, in bins of `BIN_S`.

Onset: of EMG where Page's statistic left zero for the last time, which is the most likely begin (Page 1954); of force, whose rule decides
late, the last bin before the decision that is no higher than rest's noise. Offset: the rule's end less the time that the envelope has to
stay low for it. Events less than `MERGE_S` apart are one spasm: where raters disagree, it is mostly on that (Thomas 2014, detection notes,
section 3). The decision's time stays beside the onset, and alone is what `score` scores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from controller.detector import ENVELOPE_S, OFF_S, QUALITIES
from controller.recording import CYCLE_FIELDS, DETECTION_FIELDS, TIME_FIELDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.recording import Session
    from controller.settings import Settings

BIN_S = 0.005
MERGE_S = 1.0  # events less than this apart are one spasm
WAIT_S = 1.0  # onsets are back-dated by no more than this: so much longer it takes until nothing can be merged any more
RISE_S = 0.5  # and those of force by no more than this: 3 N m at 15 N m/s take 0.2 s
BEFORE_S = 1.0  # before an onset, what rest is taken from
LONGEST_S = 120.0  # what goes on for longer is told in pieces; clonus lasts 40 s and more (physiology notes)
KEPT_S = LONGEST_S + 40.0
LAST_S = 1e12  # a stamp beyond this, as beyond 0, is none
ROWS = 1000  # at once; a loop that gets nothing still says something each 20 ms
WARM_S = 3.0 * ENVELOPE_S  # after a hold the envelope starts from nothing: in this time it gets to 95 % of the power
SHORT_S = 0.02  # but not after a shorter one, which leaves out a pulse of ours and the envelope as it is: `hold_ms` is at most so much
BRIDGE_S = 0.1  # a hole that is no longer is filled: that of a request which is refused (25 ms held) is no reason to know nothing
# A rhythm shows in two periods. What is too short for two of the slowest clonus is neither tonic nor clonus but a burst: 2 / 4 Hz.
CLONUS_HZ = (4.0, 8.0)  # soleus 5.4 +- 0.9, gastrocnemius 4.7 to 7.0 (physiology notes, 1.3)
SLACK_HZ = 0.2  # so well a frequency is known of 2 s at 10 dB; of half a second to 0.6 Hz
BURST_S = 2.0 / CLONUS_HZ[0]
# Rhythm: the correlation falls and rises again by so much, and the envelope swings (root mean square) by this share of its mean. In clonus
# a muscle is silent between the beats, as its units fire once in each; tonic EMG of one channel swings by chance (tests/test_describe.py).
RHYTHM, DEPTH = 0.6, 0.25
FIRST_PEAK = 0.6  # the shortest lag whose peak reaches this share of the highest is the period, later ones are its multiples
FASTEST_HZ, SLOWEST_HZ = 14.0, 3.3  # rhythms that are told from clonus
UNSEEN = "not seen"
KINDS = ("tonic", "clonus", "burst", UNSEEN)

ACTIVE, ONSET_S, DECIDED_S, STATISTIC, ENVELOPE, QUALITY = (
    DETECTION_FIELDS.index(name) for name in ("active", "onset", "decided", "statistic", "envelope", "quality")
)
HELD, BAD = QUALITIES.index("held"), QUALITIES.index("bad")


@dataclass(frozen=True, slots=True)
class Spasm:
    """One spasm as one rule saw it.

    Attributes
    ----------
    onset_s, offset_s : float
        Back-dated.
    decided_s : float
        When the rule was sure: the first of its events.
    parts : int
        Events of the rule that were merged.
    kind : str
        One of `KINDS`. Burst: none of its events is as long as `BURST_S`, and they have no rhythm of clonus; not seen: stimulation left too
        little of it to tell.
    clonus_hz : float or None
    area : float
        Of the envelope above rest, in µV s, or the settings' unit of force times s; across what was not seen in a straight line.
    peak : float
        Of the envelope, in µV or the settings' unit of force.
    seen : float
        Share of the time in which the muscle was seen, and not stimulated, held or bad.
    on : bool
        It still was when nothing more came, or the next piece goes on with it.
    """

    onset_s: float
    decided_s: float
    offset_s: float
    parts: int
    kind: str
    clonus_hz: float | None
    area: float
    peak: float
    seen: float
    on: bool

    def facts(self, origin_s: float = 0.0) -> dict[str, Any]:
        """For JSON, times from `origin_s` on."""
        return asdict(self) | {name: getattr(self, name) - origin_s for name in ("onset_s", "decided_s", "offset_s")}


def words(facts: dict[str, Any]) -> str:
    """One line for people of what `Spasm.facts` says."""
    kind = f"clonus {facts['clonus_hz']:.1f} Hz" if facts["clonus_hz"] else facts["kind"]
    times = "  ".join(f"{name} {facts[f'{name}_s']:9.3f} s" for name in ("onset", "decided", "offset"))
    parts = f"  ({facts['parts']} parts)" if facts["parts"] > 1 else ""
    seen = f"  {100 * facts['seen']:.0f} % seen" if facts["seen"] < 0.995 else ""
    return f"{times}  {kind:<13}  area {facts['area']:9.2f}  peak {facts['peak']:8.1f}{parts}{seen}"


# --- the arithmetic ---------------------------------------------------------------------------------------------------------------
def bridged(envelope: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same bins with short holes filled; longer ones, and those at the ends, stay NaN."""
    known = np.flatnonzero(np.isfinite(envelope))
    if not len(known):
        return envelope
    at = np.arange(len(envelope))
    after = np.searchsorted(known, at)
    inside = (after > 0) & (after < len(known))
    hole = np.zeros(len(envelope))
    hole[inside] = known[after[inside]] - known[after[inside] - 1] - 1
    fill = np.isnan(envelope) & inside & (hole * BIN_S <= BRIDGE_S)
    return np.where(fill, np.interp(at, known, envelope[known]), envelope)


def rhythm_hz(envelope: NDArray[np.float64]) -> float | None:
    """Frequency with which an envelope swings, by its autocorrelation; None = it does not, or not deeply.

    Parameters
    ----------
    envelope : (n,) float64
        Bins of `BIN_S`; NaN where it was not seen.

    Notes
    -----
    What is slower than two periods of the slowest clonus is taken away first, so that a rise and a fall are no rhythm. Each lag is
    normalised by the energy of its own pairs, so that a short envelope is not biased to short lags. The peak is refined by a parabola.
    """
    seen = np.isfinite(envelope)
    if not seen.any():
        return None
    half = round(BURST_S / BIN_S / 2)
    width, middle = np.ones(2 * half + 1), slice(half, half + len(envelope))
    y = np.where(seen, envelope, 0.0)
    trend = np.convolve(y, width)[middle] / np.maximum(np.convolve(seen, width)[middle], 1.0)
    x = np.where(seen, y - trend, 0.0)
    mean = float(envelope[seen].mean())
    if not mean > 0.0 or float(np.sqrt(np.mean(x[seen] ** 2))) < DEPTH * mean:
        return None
    r = np.ones(min(len(x) // 2, round(1.0 / SLOWEST_HZ / BIN_S)) + 1)
    for lag in range(1, len(r)):
        a, b = x[:-lag] * seen[lag:], x[lag:] * seen[:-lag]
        r[lag] = (a @ b) / max(float(np.sqrt((a @ a) * (b @ b))), 1e-300)
    lags = np.arange(1, len(r) - 1)
    peaks = lags[(r[1:-1] > r[:-2]) & (r[1:-1] >= r[2:])]
    peaks = peaks[(r[peaks] - np.minimum.accumulate(r)[peaks] >= RHYTHM) & (peaks * BIN_S >= 1.0 / FASTEST_HZ)]
    if not len(peaks):
        return None
    lag = peaks[r[peaks] >= FIRST_PEAK * r[peaks].max()][0]
    before, top, after = r[lag - 1], r[lag], r[lag + 1]
    return float(1.0 / (BIN_S * (lag + 0.5 * (before - after) / (before - 2.0 * top + after))))


def longest_run(seen: NDArray[np.bool_]) -> int:
    """Most bins in a row that were seen."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], seen, [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def describe(events_s: list[tuple[float, float]], decided_s: float, on: bool, envelope: NDArray[np.float64], rest: float) -> Spasm:
    """Say what a spasm was like.

    Parameters
    ----------
    events_s : list of (float, float)
        Onset and offset of each event of the rule that makes it.
    envelope : (n,) float64
        From the first onset to the last offset in bins of `BIN_S`; NaN where it was not seen.
    rest : float
        Of the envelope before.
    """
    onset_s, offset_s = events_s[0][0], events_s[-1][1]
    envelope = bridged(envelope)
    seen, at = np.isfinite(envelope), np.arange(len(envelope))
    inside = np.zeros(len(envelope), bool)
    for begin_s, end_s in events_s:
        inside[round((begin_s - onset_s) / BIN_S) : round((end_s - onset_s) / BIN_S)] = True
    hz = rhythm_hz(envelope) if longest_run(seen) * BIN_S >= BURST_S else None
    if hz and CLONUS_HZ[0] - SLACK_HZ <= hz <= CLONUS_HZ[1] + SLACK_HZ:
        kind = "clonus"
    elif max(end_s - begin_s for begin_s, end_s in events_s) < BURST_S:
        kind = "burst"
    else:
        kind = "tonic" if longest_run(seen & inside) * BIN_S >= BURST_S else UNSEEN
    area, peak = 0.0, 0.0
    if seen.any():
        area = max(0.0, float(np.sum(np.interp(at, at[seen], envelope[seen]) - rest)) * BIN_S)
        peak = float(envelope[seen].max())
    share = float(seen.mean()) if len(seen) else 0.0
    return Spasm(onset_s, decided_s, offset_s, len(events_s), kind, hz if kind == "clonus" else None, area, peak, share, on)


# --- as it goes -------------------------------------------------------------------------------------------------------------------
@dataclass
class _Open:
    """A spasm that may go on."""

    events_s: list[tuple[float, float]]
    decided_s: float
    rest: float

    @property
    def onset_s(self) -> float:
        return self.events_s[0][0]

    @property
    def offset_s(self) -> float:
        return self.events_s[-1][1]

    def ends(self, offset_s: float) -> None:
        self.events_s[-1] = (self.events_s[-1][0], offset_s)


class Describer:
    """One rule's spasms, block by block; the same whatever the blocks, up to their length.

    Parameters
    ----------
    of_force : bool
        The rule is a force rule: its height above the baseline stands for the envelope.
    """

    def __init__(self, of_force: bool = False) -> None:
        self.of_force = of_force
        n = round(KEPT_S / BIN_S)
        self.sums, self.counts = np.zeros(n), np.zeros(n)  # bin b of all time stands at b modulo n
        self.newest = -n  # bin
        self.open: _Open | None = None
        self.on = False
        self.decided_s = self.last_decided_s = np.nan  # of the event that is on, and the last that the rule told of
        self.last_s = self.warm_s = self.seen_s = -np.inf
        self.rest = 0.0
        self.done: list[Spasm] = []

    def take(self, t_s: NDArray[np.float64], rows: NDArray[np.float64]) -> list[Spasm]:
        """Take what the rule said; returns the spasms that are over for good.

        Parameters
        ----------
        t_s : (n,) float64
            Stamp of the newest sample behind each row; rows without one (0, NaN) are left out. At most 30 s at once.
        rows : (n, len(DETECTION_FIELDS)) float64
        """
        given = (t_s > 0.0) & (t_s < LAST_S)
        t_s, rows = t_s[given], rows[given]
        if not len(t_s):
            return []
        self._keep(t_s, rows)
        active, decided_s = rows[:, ACTIVE] != 0.0, rows[:, DECIDED_S]
        was = np.concatenate([[self.on], active[:-1]])
        same = np.concatenate([[self.last_decided_s], decided_s[:-1]]) == decided_s
        for i in np.flatnonzero((active != was) | ~(same | np.isnan(decided_s))):
            if isfinite(decided_s[i]) and decided_s[i] != self.last_decided_s:
                if self.on:  # it ended and began anew within a block
                    self._end(t_s[i - 1] if i else self.last_s)
                self.last_decided_s = decided_s[i]
                self._begin(float(rows[i, ONSET_S]), float(decided_s[i]))
            if self.on and not active[i]:
                self._end(t_s[i])
        self.last_s = float(t_s[-1])
        if self.on:
            self._lasts(max(self.last_s - OFF_S, self.decided_s))  # no later than it may turn out to have ended
        elif self.open and self.last_s - self.open.offset_s >= MERGE_S + WAIT_S:
            self._close()
        return self._done()

    def finish(self) -> list[Spasm]:
        """Nothing more will come: the spasm that is still on or may have gone on."""
        if self.on:
            self._lasts(self.last_s)
        self._close(self.on)
        self.on = False
        return self._done()

    def _done(self) -> list[Spasm]:
        done, self.done = self.done, []
        return done

    def _keep(self, t_s: NDArray[np.float64], rows: NDArray[np.float64]) -> None:
        """Put the envelope into its bins, but for what was not seen."""
        n, at = len(self.sums), np.floor(t_s / BIN_S).astype(np.int64)
        first, last = int(at.min()), int(at.max())
        jumps = first < self.newest - n // 2 or last >= self.newest + n  # then nothing of before can be compared
        fresh = np.arange(n) if jumps else np.arange(self.newest + 1, last + 1) % n
        self.sums[fresh] = self.counts[fresh] = 0.0
        self.newest = last if jumps else max(self.newest, last)
        unseen = (rows[:, QUALITY] == HELD) | (rows[:, QUALITY] == BAD)
        seen_s = np.maximum.accumulate(np.concatenate([[self.seen_s], np.where(unseen, -np.inf, t_s)]))
        self.seen_s = float(seen_s[-1])
        long = unseen & (t_s - seen_s[1:] > SHORT_S)
        warm_s = np.maximum.accumulate(np.concatenate([[self.warm_s], np.where(long, t_s + WARM_S, -np.inf)]))
        self.warm_s = float(warm_s[-1])
        value = rows[:, STATISTIC if self.of_force else ENVELOPE]
        good = ~unseen & (t_s >= warm_s[1:]) & np.isfinite(value)
        np.add.at(self.sums, at[good] % n, value[good])
        np.add.at(self.counts, at[good] % n, 1.0)

    def _bins(self, begin_s: float, end_s: float) -> NDArray[np.float64]:
        """The envelope of a span, (n,); NaN where it was not seen, or is kept no more."""
        n = len(self.sums)
        at = np.arange(int(np.floor(begin_s / BIN_S)), max(int(np.ceil(end_s / BIN_S)), 0))[:n]
        counts = np.where((at <= self.newest) & (at > self.newest - n), self.counts[at % n], 0.0)
        return np.where(counts > 0.0, self.sums[at % n] / np.maximum(counts, 1.0), np.nan)

    def _begin(self, onset_s: float, decided_s: float) -> None:
        onset_s = max(onset_s if isfinite(onset_s) else decided_s, decided_s - WAIT_S)
        if self.of_force:
            onset_s = min(onset_s, self._rise(decided_s))
        self.on, self.decided_s = True, decided_s
        if self.open:
            gap_s = max(onset_s - self.open.offset_s, decided_s - self.open.offset_s - WAIT_S)
            if gap_s < MERGE_S and decided_s - self.open.onset_s < LONGEST_S:
                self.open.events_s.append((max(onset_s, self.open.offset_s), decided_s))
                return
            self._close()
        before = self._bins(onset_s - BEFORE_S, onset_s - 10 * BIN_S)
        if np.isfinite(before).any():
            self.rest = float(np.nanmedian(before))
        self.open = _Open([(onset_s, decided_s)], decided_s, self.rest)

    def _rise(self, decided_s: float) -> float:
        """Where force was at rest for the last time before it was decided."""
        last, n = int(decided_s // BIN_S), round(RISE_S / BIN_S)  # that bin may not be full
        height = bridged(self._bins((last - 0.5) * BIN_S - BEFORE_S - RISE_S, (last - 0.5) * BIN_S))
        quiet, near = height[:-n], height[-n:]
        quiet = quiet[np.isfinite(quiet)]
        low = np.flatnonzero(near <= np.median(quiet) + 3.0 * np.std(quiet)) if len(quiet) else np.zeros(0, np.int64)
        return (last - n + int(low[-1]) + 1) * BIN_S if len(low) else decided_s

    def _end(self, t_s: float) -> None:
        self._lasts(max(t_s - OFF_S, self.decided_s))
        self.on = False

    def _lasts(self, until_s: float) -> None:
        """The present event goes on up to here; what is too long is told as far as it may be."""
        while self.open and until_s - self.open.onset_s > LONGEST_S:
            cut_s = self.open.onset_s + LONGEST_S
            self.open.ends(cut_s)
            decided_s, rest = self.open.decided_s, self.open.rest
            self._close(on=True)
            self.open = _Open([(cut_s, cut_s)], decided_s, rest)
        if self.open:
            self.open.ends(until_s)

    def _close(self, on: bool = False) -> None:
        if self.open:
            envelope = self._bins(self.open.onset_s, self.open.offset_s)
            self.done.append(describe(self.open.events_s, self.open.decided_s, on, envelope, self.open.rest))
        self.open = None


class Spasms:
    """All rules of a bed; what joins say follows from them.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self.rules = {rule.name: Describer(i >= len(settings.emg_rules)) for i, rule in enumerate(settings.rules)}

    def take(self, newest_s: NDArray[np.float64], rows: NDArray[np.float64]) -> list[tuple[str, Spasm]]:
        """Take what all rules said.

        Parameters
        ----------
        newest_s : (n, 2) float64
            Newest stamp of EMG and of force.
        rows : (n, n_rules or more, len(DETECTION_FIELDS)) float64

        Returns
        -------
        list of (str, Spasm)
            Those that are over, with the rule's name.
        """
        done = []
        for at in range(0, len(rows), ROWS):
            for i, (name, rule) in enumerate(self.rules.items()):
                some = slice(at, at + ROWS)
                done += [(name, spasm) for spasm in rule.take(newest_s[some, int(rule.of_force)], rows[some, i])]
        return done

    def finish(self) -> list[tuple[str, Spasm]]:
        """Nothing more will come: what was on or might have gone on."""
        return [(name, spasm) for name, rule in self.rules.items() for spasm in rule.finish()]


def of_session(session: Session) -> list[tuple[str, Spasm]]:
    """Spasms of a session as its loops saw them, with the rule's name; each loop began anew."""
    cycles, decided = session.streams["cycles"].values, session.streams["detections"].values
    n = min(len(cycles), len(decided))  # a torn recording may lack the last of either
    rows = decided[:n, len(TIME_FIELDS) :].reshape(n, len(session.config.rows), len(DETECTION_FIELDS))
    newest_s = np.zeros((n, 2))
    for i, (stream, count) in enumerate((("EMG", "n_emg"), ("force", "n_force"))):
        if stream in session.streams:
            stamps_s = np.concatenate([[0.0], session.streams[stream].stamps_s])
            seen = np.cumsum(cycles[:n, 1 + CYCLE_FIELDS.index(count)])
            newest_s[:, i] = stamps_s[np.minimum(seen, len(stamps_s) - 1)]
    found = []
    for number in np.unique(cycles[:n, 0]):
        spasms, own = Spasms(session.config), cycles[:n, 0] == number
        found += spasms.take(newest_s[own], rows[own]) + spasms.finish()
    return found
