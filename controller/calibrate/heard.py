"""What the real detector makes of a recording: the kernel that runs at the bed, fed as replay feeds it, looked at on the way."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log10
from typing import TYPE_CHECKING, Any

import numpy as np

from controller import kernels
from controller.calibrate.checks import begins
from controller.calibrate.signals import Muscle
from controller.detector import QUALITIES, VETOES, SpasmDetector
from controller.settings import EmgRule, ForceRule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.calibrate.signals import Floats, Signals, Span
    from controller.settings import Settings

FINE_S, COARSE_S = 0.002, 0.05  # how often is looked at what the rules see: within the parts, and between; it changes nothing they see
AFTER_S = 1.0  # listened on after the last part
SOURCE = (
    "measured by bench.detection on 480 simulated spasms of each strength that rise within 50 ms, one channel of 2 kHz (28 November 2026)"
)
#: dB above rest, share found within 250 ms, median and 95th percentile of the decision in ms: without a rise gate, and with one of 40 ms
MEASURED = (
    *((0, 0.375, 136.0, 229.0), (3, 0.935, 59.5, 203.0), (6, 1.0, 36.5, 62.5)),
    *((10, 1.0, 26.5, 40.5), (15, 1.0, 20.0, 30.0), (20, 1.0, 16.0, 24.5)),
)
GATED = ((3, 0.048, 67.0, 203.0), (6, 0.519, 44.5, 211.0), (10, 0.981, 32.0, 51.0), (15, 1.0, 23.0, 36.5), (20, 1.0, 18.0, 28.0))


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What the detector saw, look by look.

    Attributes
    ----------
    t_s : (n,) float64, s
        Stamp at which each look ends.
    seen : (n, n_rules, kernels.N_SEEN) float64
    envelope, fast : (n, n_emg_rules) float64
        Envelopes of 20 and 8 ms, as power, in rest's.
    triggers : list of list of (decided_s, onset_s), of each rule
    """

    t_s: Floats
    seen: Floats
    envelope: Floats
    fast: Floats
    triggers: list[list[tuple[float, float]]]


def listen(config: Settings, signals: Signals, parts: dict[str, Span]) -> Heard:
    """Run the detector over the recording, from its beginning to the end of the last part, with the kernel that runs at the bed."""
    end_s = min(max(end for _, end in parts.values()) + AFTER_S, signals.length_s + COARSE_S)
    fine = [np.arange(begin, min(end, end_s), FINE_S) for begin, end in parts.values()]
    t_s = signals.begin_s + np.unique(np.concatenate([np.arange(0.0, end_s, COARSE_S), *fine, np.array([end_s])]))
    # stamps may jump back; samples are taken as they came
    cuts = [
        np.searchsorted(np.maximum.accumulate(s), t_s) if s.size else np.zeros(len(t_s), int) for s in (signals.emg_t_s, signals.force_t_s)
    ]
    s = SpasmDetector(config).state
    n_emg = len(s.emg)
    seen = np.zeros((len(t_s), *s.seen.shape))
    envelope, fast = np.zeros((len(t_s), n_emg)), np.zeros((len(t_s), n_emg))
    at_emg, at_force = 0, 0
    emg, force = np.ascontiguousarray(signals.emg_uv), np.ascontiguousarray(signals.force)
    for i, (to_emg, to_force) in enumerate(zip(*(cut.tolist() for cut in cuts), strict=True)):
        emg_slice, force_slice = slice(at_emg, to_emg), slice(at_force, to_force)
        kernels.update(s, emg[emg_slice], signals.emg_t_s[emg_slice], force[force_slice], signals.force_t_s[force_slice], 0.0, 0.0)
        at_emg, at_force = to_emg, to_force
        seen[i] = s.seen
        if n_emg:
            envelope[i], fast[i] = s.emg["envelope"], s.emg["fast"]
    triggers: list[list[tuple[float, float]]] = []
    for r in range(seen.shape[1]):
        decided, onset = seen[:, r, kernels.DECIDED_S], seen[:, r, kernels.ONSET_S]
        new = np.isfinite(decided) & (decided != np.concatenate([[np.nan], decided[:-1]]))
        triggers.append(list(zip(decided[new].tolist(), onset[new].tolist(), strict=True)))
    return Heard(t_s, seen, envelope, fast, triggers)


def onsets(rule: EmgRule | ForceRule, config: Settings, signals: Signals, parts: dict[str, Span]) -> dict[str, float]:
    """Stamp at which each activity begins, seen from behind; NaN where it cannot be told."""
    out: dict[str, float] = {}
    if isinstance(rule, EmgRule):
        assert config.emg
        muscle = Muscle.of(rule, config.emg.channels, config.emg.sample_rate_hz, signals, parts)
        for part in parts:
            if part != "quiet":
                at = begins(muscle.power(part), muscle.power("quiet"), config.emg.sample_rate_hz)
                out[part] = float(signals.emg_t_s[muscle.mine[part]][at]) if at >= 0 else float("nan")
        return out
    assert config.force
    x = signals.force[:, config.force.channels.index(rule.channel)]
    quiet = x[signals.of(parts["quiet"], signals.force_t_s)]
    most = 1.5 * float(np.abs(quiet - np.median(quiet)).max())
    for part, span in parts.items():
        if part != "quiet":
            mine = signals.of(span, signals.force_t_s)
            start = float(np.median(x[mine][: max(1, round(0.1 * config.force.sample_rate_hz))]))
            away = np.flatnonzero(np.abs(x[mine] - start) > most)
            out[part] = float(signals.force_t_s[mine][away[0]]) if away.size else float("nan")
    return out


def within(triggers: list[tuple[float, float]], signals: Signals, span: Span) -> list[float]:
    """Decisions of a part, in s from the beginning of the recording."""
    return [decided - signals.begin_s for decided, _ in triggers if span[0] <= decided - signals.begin_s < span[1]]


def judge(config: Settings, rules: tuple[EmgRule | ForceRule, ...], signals: Signals, parts: dict[str, Span]) -> list[dict[str, Any]]:
    """Run the detector with these settings and say what it did in each part; a row for each rule and part."""
    heard = listen(config, signals, parts)
    rows = []
    for number, rule in enumerate(config.rules):
        if rule.name not in [one.name for one in rules] or (isinstance(rule, ForceRule) and not signals.force_t_s.size):
            continue
        begin = onsets(rule, config, signals, parts)
        for part, span in parts.items():
            mine = signals.of(span, heard.t_s)
            seen = heard.seen[mine, number]
            triggers = within(heard.triggers[number], signals, span)
            row: dict[str, Any] = {"rule": rule.name, "part": part, "triggers_s": triggers, "seconds": span[1] - span[0]}
            if part == "quiet":
                deaf = np.isin(seen[:, kernels.QUALITY], (kernels.QUALITY_LEARNING, kernels.QUALITY_BAD))
                row["deaf_s"] = float(np.mean(deaf)) * (span[1] - span[0])
                row["on_before"] = bool(seen[0, kernels.ACTIVE]) if len(seen) else False
            else:
                row |= _of_activity(heard, number, begin[part], mine, signals, triggers)
            rows.append(row)
        outside = [
            decided - signals.begin_s
            for decided, _ in heard.triggers[number]
            if not any(begin <= decided - signals.begin_s < end for begin, end in parts.values())
        ]
        rows.append({"rule": rule.name, "part": "elsewhere", "triggers_s": outside})
    return rows


def _of_activity(
    heard: Heard, number: int, begin_s: float, mine: NDArray[np.bool_], signals: Signals, triggers: list[float]
) -> dict[str, Any]:
    seen, t_s = heard.seen[mine, number], heard.t_s[mine]
    before = t_s <= begin_s
    after = seen[~before] if np.isfinite(begin_s) else seen
    began = begin_s - signals.begin_s
    row: dict[str, Any] = {
        "began_s": began if isfinite(began) else None,
        "on_before": bool(before.any() and seen[before][-1, kernels.ACTIVE]),
        "latency_ms": next((1000.0 * (at - began) for at in triggers if at >= began - 0.02), None) if isfinite(began) else None,
        "why_not": None,
    }
    if not triggers and not row["on_before"]:
        vetoes, counts = np.unique(after[after[:, kernels.VETO] > 0, kernels.VETO], return_counts=True)
        worst = int(after[:, kernels.QUALITY].max(initial=0.0))
        if vetoes.size:
            row["why_not"] = VETOES[int(vetoes[np.argmax(counts)])]
        elif worst in (kernels.QUALITY_LEARNING, kernels.QUALITY_BAD):
            row["why_not"] = QUALITIES[worst]
        else:
            row["why_not"] = "weak"
        row["most"] = float(after[:, kernels.STATISTIC].max(initial=0.0))
        row["threshold"] = float(seen[0, kernels.THRESHOLD]) if len(seen) else None
        row["most_rate"] = float(after[:, kernels.ENVELOPE].max(initial=0.0))
    return row


def expectations(
    config: Settings, rules: tuple[EmgRule | ForceRule, ...], strengths: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """How soon a spasm as strong as the spasm (or else the contraction) is decided by each EMG rule, from `MEASURED` or `GATED`.

    What counts is the activity's own power, above rest or floor. The bench's ratio is of the whole band, ours of what is above the
    high-pass; of its noise and of its spasms 80 Hz take about the same share (0.86 and 0.81 of the power).
    """
    out = {}
    for rule in config.emg_rules:
        if rule.name not in [one.name for one in rules]:
            continue
        s = strengths[rule.name]
        of = "spasm" if "spasm_uv" in s else "contraction"
        own = max(s[f"{of}_uv"] ** 2 - s["rest_pooled_uv"] ** 2, 1e-12) / max(s["rest_pooled_uv"], rule.floor_uv) ** 2
        own_db, table = 10.0 * log10(own), np.array(GATED if rule.rise_ms else MEASURED)
        found, median_ms, p95_ms = (float(np.interp(own_db, table[:, 0], table[:, column])) for column in (1, 2, 3))
        out[rule.name] = {
            "of": of,
            "own_db": own_db,
            "gated": rule.rise_ms > 0.0,
            "below_table": own_db < table[0, 0],
            "found": found,
            "median_ms": median_ms,
            "p95_ms": p95_ms,
            "source": SOURCE,
        }
    return out


def falls_short(rows: list[dict[str, Any]]) -> list[str]:
    """What makes the proposal unfit for a bed, in words; empty = nothing does."""
    out = []
    for row in rows:
        if row["part"] == "quiet" and (row["triggers_s"] or row["on_before"]):
            out.append(f"{row['rule']}: rest triggers")
        elif row["part"] == "spasm" and (row["latency_ms"] is None or row["on_before"]):
            out.append(f"{row['rule']}: the spasm does not trigger")
    return out
