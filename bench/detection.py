"""`python -m bench.detection`: how early and how surely a spasm is seen, at what rate of false alarms; ours beside others.

Signals are those of `bench.signals`, labelled to the sample. Every method of ours goes through the product's face,
`SpasmDetector.update(chunk, hold_until_s)`. Rules of scoring (detection notes, section 3): the sample at which the decision leaves counts,
never a back-dated onset; a hit is the first decision within `HIT_S` from the onset; one that was on already at the onset has missed it;
later decisions until `NEUTRAL_S` after the spasm are neutral; all others are false alarms, per hour of quiet with the exact Poisson bound,
and per episode of a contaminant. BioSPPy and NeuroKit2 (`python -m bench.peers install emg`) are offline, see `PEERS_REMARK`.

The floor: no detector with the same rate of false alarms has a mean delay below ln(ARL) / KL (Lorden 1971), `signals.bound_ms`; that counts
a spasm as fully risen from its first sample on. `signals.informed_ms` counts the rise, for one who knows it beforehand.

Results go to `bench/results/` (not kept by git): JSON with every latency and false alarm, and a picture. `--quick` is a slice for CI.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import inf, isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from scipy.stats import chi2

from bench import detection_picture, peers, signals
from bench.signals import Recipe
from controller import classical, kernels
from controller.detector import SpasmDetector
from controller.settings import Settings
from drivers.base import FEEDBACK_PULSE, Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from bench.signals import Floats, Signal

HERE = Path(__file__).resolve().parent
BUDGET, RESULTS, CONFIG = HERE / "budget.toml", HERE / "results", HERE.parent / "config" / "bench.toml"
HIT_S, NEUTRAL_S = 0.25, 0.3
EARLY_S = 0.15  # before the onset, of peers alone
PEERS_REMARK = (
    f"peers are offline: they see the whole recording, are told of {signals.REST_S:g} s of rest, and report back-dated or centred onsets, "
    f"of which up to {1000 * EARLY_S:g} ms too early is accepted (ours: 0). A decision comes about 20-45 ms after such an onset."
)
BLOCK_S = 0.1  # a spasm ends after 0.1 s below at the earliest, so no block can hide one of two decisions
ARTEFACT_S = 0.005  # as `controller.policy` adds to the dead time
HOLD_MS = 2.0  # the artefact of `signals` takes 1.25 ms
STIMULATED = ("stimulation", "stimulation throughout")
SEEDS, QUICK_SEEDS = 20, 1
QUIET_PIECES, QUICK_QUIET_PIECES, QUIET_PIECE_S = 24, 1, 3600.0
SWEEP_PIECES, SWEEP_CELL, QUIET_CELL = 6, "1 ch 10 dB", "quiet"  # hours of quiet for each point of the picture
QUICK_PEERS = "biosppy bonato,biosppy lidierth"  # the others take longer than all of ours
PEER_QUIET = 10  # quiet recordings that peers get

# --- ours: the one place that knows fields of a rule --------------------------------------------------------------------------------
DEFAULT = "calmloop"
#: Fields of `[[emg_rules]]` that make a method, beside `COMMON`.
METHODS: dict[str, dict[str, Any]] = {DEFAULT: {}, "rise gate": {"rise_ms": 40.0}}
METHODS |= {method: {"method": method} for method in classical.METHODS[1:]}
# A floor above the noise would hide what the noise model does; one false alarm a day is what is asked for.
COMMON: dict[str, Any] = {"floor_uv": 1.0, "false_alarms_per_h": 1 / 24}
SWEEP: dict[str, list[Any]] = {"false_alarms_per_h": [360.0, 60.0, 10.0, 1.0, 0.2, 1 / 24, 0.01]}
LOOSE: dict[str, Any] = {"false_alarms_per_h": 360.0}  # so many that they can be counted: for the comparison with the bound


@cache
def _raw() -> dict[str, Any]:
    return tomllib.loads(CONFIG.read_text())


def settings_with(n_channels: int, hold_ms: float = 0.0, **rule_fields: Any) -> Settings:
    """`config/bench.toml` with one rule that pools n channels, its fields changed."""
    raw = _raw()
    names = [f"EMG{i + 1}" for i in range(n_channels)]
    emg = raw["emg"] | {"channels": names, "sample_rate_hz": signals.RATE_HZ, "hold_ms": hold_ms}
    rule = raw["emg_rules"][0] | COMMON | {"channels": names} | rule_fields
    return Settings.model_validate(raw | {"emg": emg, "emg_rules": [rule]})


def listen(settings: Settings, signal: Signal, dead_s: float | None = None) -> tuple[Floats, NDArray[np.bool_]]:
    """Every decision of the one rule in s, and whether it was on already just before each spasm.

    As guard would, pulses are reported: a chunk begins with each, and samples up to the dead time and `ARTEFACT_S` after it carry
    stimulation. `dead_s` is the prescription's unless given.
    """
    hold_s = ARTEFACT_S + (settings.prescription.look_dead_ms / 1000 if dead_s is None else dead_s)
    n, t_s = len(signal.emg_uv), signal.t_s
    onsets, pulses = (np.round(at_s * signal.rate_hz).astype(int) for at_s in (signal.spasms_s[:, 0], signal.pulses_s))
    cuts = np.unique(np.concatenate([np.arange(0, n, round(BLOCK_S * signal.rate_hz)), onsets, pulses, [n]]))
    is_onset, is_pulse = np.isin(cuts, onsets).tolist(), np.isin(cuts, pulses).tolist()
    nothing = np.zeros((0, 1))
    silence = np.zeros((0, 3))
    detector = SpasmDetector(settings)
    decided_s: list[float] = []
    was_on: list[bool] = []
    active, last_s, hold_until_s = False, nan, -1.0
    for i, (start, stop) in enumerate(pairwise(cuts.tolist())):
        if is_onset[i]:
            was_on.append(active)
        feedback = silence
        if is_pulse[i]:
            hold_until_s = t_s[start] + hold_s
            feedback = np.array([[FEEDBACK_PULSE, t_s[start], 0.0]])
        chunk = Chunk(signal.emg_uv[start:stop], t_s[start:stop], nothing, nothing[:, 0], feedback, 0)
        (seen,) = detector.update(chunk, hold_until_s)
        active = seen.active
        if isfinite(seen.decided_s) and seen.decided_s != last_s:
            decided_s.append(seen.decided_s)
            last_s = seen.decided_s
    return np.array(decided_s), np.array(was_on, bool)


# --- scoring ----------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Score:
    """One recording, or several together.

    Attributes
    ----------
    latency_ms : (n_spasms,) float64
        From onset to decision; NaN = missed.
    was_on : (n_spasms,) bool
        Of those missed, which because the detector was on already.
    false_alarms_s : (k,) float64
    quiet_s : float
        Time outside of spasms and the neutral time after them.
    n_episodes, n_triggered : int
        Episodes of a contaminant, and those with a false alarm.
    """

    latency_ms: Floats
    was_on: NDArray[np.bool_]
    false_alarms_s: Floats
    quiet_s: float
    n_episodes: int
    n_triggered: int


def score(decided_s: Floats, signal: Signal, was_on: NDArray[np.bool_] | None = None, early_s: float = 0.0) -> Score:
    """Compare decisions with labels; the first `signals.REST_S` of a recording do not count."""
    decided = np.sort(decided_s)
    decided = decided[decided >= signals.REST_S]
    onset, offset = signal.spasms_s.T
    eps = 0.25 / signal.rate_hz  # stamps of the same sample may differ in the last bit
    on = np.zeros(len(onset), bool) if was_on is None else was_on
    padded = np.append(decided, inf)
    first = padded[np.searchsorted(padded, onset - early_s - eps)]
    hit = (first <= onset + HIT_S + eps) & ~on
    latency_ms = np.where(hit, 1000.0 * np.where(hit, first - onset, 0.0), nan)
    false = decided[~_within(decided, onset - early_s - eps, offset + NEUTRAL_S)[0]]
    inside, which = _within(false, *signal.episodes_s.T)
    length_s = len(signal.emg_uv) / signal.rate_hz
    quiet_s = length_s - signals.REST_S - float(np.sum(np.minimum(offset + NEUTRAL_S, length_s) - onset))
    return Score(latency_ms, on, false, quiet_s, len(signal.episodes_s), len(np.unique(which[inside])))


def _within(at_s: Floats, begin_s: Floats, end_s: Floats) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which are within a span (spans do not overlap), and in which."""
    which = np.searchsorted(begin_s, at_s, "right") - 1
    return (which >= 0) & (at_s <= np.append(end_s, -inf)[which]), which


def together(scores: Sequence[Score]) -> Score:
    """All recordings of a cell."""
    arrays = (np.concatenate([getattr(one, name) for one in scores]) for name in ("latency_ms", "was_on", "false_alarms_s"))
    return Score(*arrays, *(sum(getattr(one, name) for one in scores) for name in ("quiet_s", "n_episodes", "n_triggered")))


def upper_per_hour(n: int, hours: float) -> float:
    """Exact Poisson upper 95 % bound of a rate of which n were seen: 3 / hours of none."""
    return float(chi2.ppf(0.95, 2 * (n + 1)) / 2 / hours)


def figures(s: Score) -> dict[str, float]:
    """What goals are about; NaN where there was nothing to measure."""
    hits = s.latency_ms[np.isfinite(s.latency_ms)]
    fair = s.latency_ms[~s.was_on]  # of the mean delay: what a false alarm hid is no delay
    n_false, hours = len(s.false_alarms_s), s.quiet_s / 3600
    return {
        "spasms": len(s.latency_ms),
        "sensitivity": len(hits) / len(s.latency_ms) if len(s.latency_ms) else nan,
        "median_ms": float(np.median(hits)) if len(hits) else nan,
        "p95_ms": float(np.percentile(hits, 95)) if len(hits) else nan,
        "max_ms": float(hits.max()) if len(hits) else nan,
        "mean_ms": float(np.where(np.isfinite(fair), fair, inf).mean()) if len(fair) else nan,
        "false_alarms": n_false,
        "hours": hours,
        "false_alarms_per_hour": n_false / hours,
        "false_alarms_per_min": n_false / hours / 60,
        "upper_per_hour": upper_per_hour(n_false, hours),
        "episodes": s.n_episodes,
        "triggered": s.n_triggered,
        "triggered_share": s.n_triggered / s.n_episodes if s.n_episodes else nan,
    }


# --- what is measured -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cell:
    """One recipe, so many recordings of it.

    `dead_s`: see `listen`; `hold_ms`: of the settings; `step`: for the comparison with the bound, methods are loosened.
    """

    recipe: Recipe
    recordings: int = SEEDS
    quick_recordings: int = QUICK_SEEDS
    dead_s: float | None = None
    hold_ms: float = 0.0
    step: bool = False


def _cells() -> dict[str, Cell]:
    out = {f"1 ch {snr_db:g} dB": Cell(Recipe(snr_db)) for snr_db in (0.0, 3.0, 6.0, 10.0, 15.0, 20.0)}
    out[SWEEP_CELL] = Cell(Recipe(10.0), quick_recordings=2)
    out |= {f"{n} ch 10 dB": Cell(Recipe(10.0, n)) for n in (2, 4)}
    out["slow rise 10 dB"] = Cell(Recipe(10.0, slow=True))
    for name in signals.CONTAMINANTS:
        out[f"10 dB + {name}"] = Cell(Recipe(10.0, contaminant=name))
        out[f"{name} alone"] = Cell(Recipe(None, contaminant=name))
    # a hold alone, for comparison; then what listens between pulses takes away
    out["10 dB + stimulation held 5 ms"] = Cell(Recipe(10.0, contaminant="stimulation"), dead_s=0.0)
    for name in STIMULATED:
        out[f"10 dB + {name} between pulses"] = Cell(Recipe(10.0, contaminant=name), hold_ms=HOLD_MS)
        out[f"{name} alone between pulses"] = Cell(Recipe(None, contaminant=name), hold_ms=HOLD_MS)
    out[QUIET_CELL] = Cell(Recipe(length_s=QUIET_PIECE_S), QUIET_PIECES, QUICK_QUIET_PIECES)
    out["quiet white"] = Cell(Recipe(white=True, length_s=QUIET_PIECE_S), 6, 1, step=True)
    out |= {f"step {snr_db:g} dB": Cell(Recipe(snr_db, white=True), step=True) for snr_db in (0.0, 3.0, 6.0, 10.0)}
    return out


CELLS = _cells()
SPEED = "speed"


@dataclass(frozen=True)
class Run:
    """A method at one setting. `swept`: a point of the picture alone."""

    method: str
    fields: dict[str, Any]
    swept: bool = False


def runs(name: str, number: int) -> list[Run]:
    """Who hears recording `number` of a cell."""
    cell = CELLS[name]
    out = [Run(method, fields | (LOOSE if cell.step else {})) for method, fields in METHODS.items()]
    if name == SWEEP_CELL or (name == QUIET_CELL and number < SWEEP_PIECES):
        [(field, values)] = SWEEP.items()
        out += [Run(method, fields | {field: value}, True) for method, fields in METHODS.items() for value in values]
    return out


def measure(names: Iterable[str], quick: bool, seed: int) -> list[dict[str, Any]]:
    """A row for each cell, method and setting; methods with the same fields are run once."""
    rows = []
    for name in names:
        cell, began = CELLS[name], time.monotonic()
        scores: dict[tuple[str, bool, str], list[Score]] = {}
        for number in range(cell.quick_recordings if quick else cell.recordings):
            signal = signals.make(cell.recipe, 1000 * seed + number)
            heard: dict[str, Score] = {}
            for run in runs(name, number):
                words = json.dumps(run.fields)
                if words not in heard:
                    decided_s, was_on = listen(settings_with(cell.recipe.n_channels, cell.hold_ms, **run.fields), signal, cell.dead_s)
                    heard[words] = score(decided_s, signal, was_on)
                scores.setdefault((run.method, run.swept, words), []).append(heard[words])
        for (method, swept, words), parts in scores.items():
            rows.append(row(name, method, together(parts)) | {"setting": json.loads(words), "swept": swept, "peer": False})
        tell(f"{name}: {time.monotonic() - began:.1f} s")
    return rows


def row(cell: str, method: str, got: Score) -> dict[str, Any]:
    """Figures and raw samples."""
    raw = {"latency_ms": [round(ms, 2) for ms in got.latency_ms.tolist()], "false_alarms_s": got.false_alarms_s.tolist()}
    return {"cell": cell, "method": method} | figures(got) | raw


def add_bounds(rows: list[dict[str, Any]], full: bool) -> None:
    """Beside each delay the floor at the rate of false alarms that the same setting has in quiet; at one in 24 h where it has none."""
    quiet = {(one["cell"], one["method"], one["swept"]): one for one in rows if not one["peer"]}
    for one in rows:
        recipe = CELLS[one["cell"]].recipe
        if recipe.snr_db is None or one["peer"] or one["swept"]:
            continue
        reference = quiet.get(("quiet white" if recipe.white else QUIET_CELL, one["method"], False))
        per_hour = reference["false_alarms_per_hour"] if reference else 0.0
        one["bound_ms"] = signals.bound_ms(recipe, per_hour or 1 / 24)
        if recipe.white and per_hour:
            # the sample at which the change happens is the first that can tell: it counts as one of the delay
            one["of_bound"] = (one["mean_ms"] + 1000.0 / signals.RATE_HZ) / one["bound_ms"]
        if full and one["method"] == DEFAULT and replace(recipe, snr_db=10.0) == Recipe(10.0):
            known_ms = signals.informed_ms(recipe, 1 / 24)
            one["informed_median_ms"], one["informed_p95_ms"] = float(np.median(known_ms)), float(np.percentile(known_ms, 95))


# --- peers ------------------------------------------------------------------------------------------------------------------------
PEER_CELLS = (*(f"1 ch {snr_db} dB" for snr_db in (3, 6, 10, 15, 20)), *(f"10 dB + {name}" for name in signals.CONTAMINANTS), QUIET_CELL)


def measure_peers(names: Iterable[str], quick: bool, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Rows of all peers, or why there are none."""
    python = peers.interpreter("emg")
    if python is None:
        return [], "BioSPPy and NeuroKit2 are not installed as their pinned file says: python -m bench.peers install emg"
    made: dict[str, list[Signal]] = {}
    for name in (name for name in PEER_CELLS if name in names):
        recipe = Recipe() if name == QUIET_CELL else CELLS[name].recipe  # the length of one recording: they take all of it at once
        n = (2 if quick else PEER_QUIET) if name == QUIET_CELL else 1 if quick else 5
        made[name] = [signals.make(recipe, 1000 * seed + number) for number in range(n)]
    if not made:
        return [], "none of these cells is for them"
    arrays: dict[str, Any] = {"rate_hz": signals.RATE_HZ, "rest_s": signals.REST_S}
    arrays |= {f"{name}/{i}": one.emg_uv[:, 0] for name, many in made.items() for i, one in enumerate(many)}
    arrays |= {f"calibration/{i}": signals.make(Recipe(), 10**6 + 1000 * seed + i).emg_uv[:, 0] for i in range(2)}
    with tempfile.TemporaryDirectory(prefix="calmloop-bench-") as folder:
        path = Path(folder) / "signals.npz"
        np.savez(path, **arrays)
        command = [str(python), str(peers.script("emg")), str(path)]
        if quick:
            command.append(QUICK_PEERS)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return [], f"the peers' process ended with {done.returncode}"
    rows = []
    for method, answer in json.loads(done.stdout).items():
        for name, many in answer["cells"].items():
            parts = [score(np.array(at_s), signal, early_s=EARLY_S) for at_s, signal in zip(many, made[name], strict=False)]
            common = {"setting": {"threshold": answer["threshold"]}, "swept": False, "peer": True}
            rows.append(row(name, method, together(parts)) | common)
    return rows, ""


# --- speed ------------------------------------------------------------------------------------------------------------------------
@njit
def _one_by_one(state, emg_uv, t_s, force, force_t_s):
    """The kernel a sample at a time from compiled code, as the loop calls it."""
    for i in range(len(t_s)):
        kernels.update(state, emg_uv[i : i + 1], t_s[i : i + 1], force, force_t_s, -1.0, 0.0)


def speed(quick: bool, seed: int) -> list[dict[str, Any]]:
    """Eight channels at 2 kHz in one rule: the least of several repeats, since whatever else runs only ever adds."""
    n_channels, n = 8, round(10 * signals.RATE_HZ)
    signal = signals.make(Recipe(10.0, n_channels, length_s=60.0), seed)
    emg_uv, t_s = signal.emg_uv[-n:], signal.t_s[-n:]
    nothing, feedback = np.zeros((0, 1)), np.zeros((0, 3))
    rows = []
    for method, fields in METHODS.items():
        settings = settings_with(n_channels, **fields)
        took_s: dict[str, list[float]] = {"block 1": [], "block 1000": [], "face": []}
        for _ in range(4 if quick else 12):
            detector = SpasmDetector(settings)
            began = time.perf_counter()
            _one_by_one(detector.state, emg_uv, t_s, nothing, nothing[:, 0])
            took_s["block 1"].append(time.perf_counter() - began)
            detector = SpasmDetector(settings)
            began = time.perf_counter()
            for i in range(0, n, 1000):
                kernels.update(detector.state, emg_uv[i : i + 1000], t_s[i : i + 1000], nothing, nothing[:, 0], -1.0, 0.0)
            took_s["block 1000"].append(time.perf_counter() - began)
            detector = SpasmDetector(settings)
            began = time.perf_counter()
            for i in range(0, n, 1000):
                detector.update(Chunk(emg_uv[i : i + 1000], t_s[i : i + 1000], nothing, nothing[:, 0], feedback, 0), -1.0)
            took_s["face"].append(time.perf_counter() - began)
        least = {name: min(many) for name, many in took_s.items()}
        rows.append(
            {
                "cell": SPEED,
                "method": method,
                "ns_per_channel_sample": 1e9 * least["block 1000"] / n / n_channels,
                "frame_us_block_1": 1e6 * least["block 1"] / n,
                "frame_us_block_1000": 1e6 * least["block 1000"] / n,
                "times_real_time": n / signals.RATE_HZ / least["face"],
                "took_s": took_s,
                "swept": False,
                "peer": False,
            }
        )
    return rows


# --- results ----------------------------------------------------------------------------------------------------------------------
def judged(goals: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], quick: bool) -> list[dict[str, Any]]:
    """Each goal of `budget.toml`: "met", "missed" or "not measured"; a quick run leaves out those of `full`."""
    values = {(one["cell"], one["method"]): one for one in rows if not one["swept"] and not one["peer"]}
    out = []
    for goal in goals:
        if goal.get("full") and quick:
            continue
        method = goal.get("of", DEFAULT)
        value = values.get((goal["cell"], method), {}).get(goal["metric"])
        limit = goal.get("least", goal.get("most"))
        met = value is not None and (value >= limit if "least" in goal else value <= limit)  # NaN is neither
        verdict = "not measured" if value is None else "met" if met else "missed"
        words = f"{goal['cell']} / {method}: {goal['metric']} {'>=' if 'least' in goal else '<='} {limit:g}"
        out.append({"goal": words, "value": value, "verdict": verdict})
    return out


def budget() -> list[dict[str, Any]]:
    """The promises."""
    goals: list[dict[str, Any]] = tomllib.loads(BUDGET.read_text())["detection"]
    return goals


def table(rows: Sequence[dict[str, Any]], why_no_peers: str) -> str:
    """For people."""
    heading = f"{'S':>7}{'median':>8}{'p95':>7}{'max':>7}{'floor':>7}{'FA':>6}{'hours':>7}{'FA/h':>8}{'<=':>7}{'episodes':>10}{'hit':>5}"
    lines = []
    for peer in (False, True):
        lines += ["", f"{'peers, offline' if peer else 'ours, ms':<40}{heading}"]
        last = ""
        for one in rows:
            if one["swept"] or one["peer"] != peer or one["cell"] == SPEED:
                continue
            if one["cell"] != last:
                last = one["cell"]
                lines.append(last)
            lines.append(
                f"  {one['method']:<38}{_nice(one['sensitivity'], 7, 3)}{_nice(one['median_ms'], 8)}{_nice(one['p95_ms'], 7)}"
                f"{_nice(one['max_ms'], 7)}{_nice(one.get('bound_ms'), 7)}{one['false_alarms']:>6}{one['hours']:>7.2f}"
                f"{one['false_alarms_per_hour']:>8.2f}{one['upper_per_hour']:>7.2f}"
                + (f"{one['episodes']:>10}{one['triggered']:>5}" if one["episodes"] else "")
                + (f"   mean of the bound: {one['of_bound']:.2f} x" if "of_bound" in one else "")
                + (
                    f"   who knows the rise: {one['informed_median_ms']:.1f}/{one['informed_p95_ms']:.1f}"
                    if "informed_p95_ms" in one
                    else ""
                )
            )
        if peer:
            lines.append(why_no_peers or PEERS_REMARK)
    for one in rows:
        if one["cell"] == SPEED:
            lines.append(
                f"speed, 8 ch x 2 kHz: {one['method']:<18}{one['ns_per_channel_sample']:.1f} ns per channel-sample, "
                f"frame {one['frame_us_block_1']:.2f} us alone, {one['frame_us_block_1000']:.2f} us in 1000; "
                f"{one['times_real_time']:.0f} x real time"
            )
    return "\n".join(lines)


def _nice(value: float | None, width: int, digits: int = 1) -> str:
    return f"{'-':>{width}}" if value is None or not isfinite(value) else f"{value:>{width}.{digits}f}"


def tell(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(prog="bench.detection", description="how early, how surely, and how far from what statistics allow")
    parser.add_argument("--quick", action="store_true", help="few recordings, one hour of quiet, the quickest peers alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", metavar="CELLS", help=f"separated by commas: {', '.join([*CELLS, SPEED])}".replace("%", "%%"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures, raw samples, environment (default: in bench/results)")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="the picture (default: beside the JSON)")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a goal of budget.toml is missed or was not measured")
    args = parser.parse_args(argv)
    names = [name.strip() for name in args.only.split(",")] if args.only else [*CELLS, SPEED]
    for name in names:
        if name not in CELLS and name != SPEED:
            parser.error(f"there is no cell {name!r}; there are: {'; '.join([*CELLS, SPEED])}")
    if args.seed < 0:
        parser.error(f"--seed {args.seed} must be at least 0")
    from bench import environment

    place = environment.environment()
    rows = speed(args.quick, args.seed) if SPEED in names else []
    rows = measure([name for name in names if name != SPEED], args.quick, args.seed) + rows
    of_peers, why = measure_peers(names, args.quick, args.seed)
    rows += of_peers
    add_bounds([one for one in rows if one["cell"] != SPEED], not args.quick)
    goals = [goal for goal in judged(budget(), rows, args.quick) if goal["verdict"] != "not measured" or not args.only]
    missed = [goal for goal in goals if goal["verdict"] != "met"]
    result = {
        "bench": "detection",
        "ok": not missed,
        "environment": place,
        "seed": args.seed,
        "quick": args.quick,
        "assumptions": signals.__doc__,
        "peers_remark": why or PEERS_REMARK,
        "goals": goals,
        "rows": rows,
    }
    path = args.json or RESULTS / f"detection-{place['utc'].replace(':', '-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(environment.clean(result)))
    svg = args.svg or path.with_suffix(".svg")
    svg.write_text(detection_picture.draw(result))
    print(table(rows, why))
    for goal in goals:
        print(f"{goal['verdict']:<12} {goal['goal']}" + ("" if goal["value"] is None else f": {goal['value']:.4g}"))
    tell(f"written: {path} and {svg}")
    for goal in missed if args.gate else ():
        tell(f"{goal['verdict']}: {goal['goal']}")
    return 1 if args.gate and missed else 0


if __name__ == "__main__":
    sys.exit(main())
