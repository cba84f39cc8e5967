"""The demo's figures, from outside: truth of the body, log of the stimulator, and the recording only for the stages in between."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from controller import recording, replay

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HIT_S = 0.25  # a first pulse later than this after the onset is a miss (detection notes, section 3)
NEUTRAL_S = 0.3  # trains up to this long after a spasm's end belong to it
TRAIN_GAP_S = 0.1  # pulses further apart than this belong to two trains
STAGES = ("signal", "block", "transport", "compute", "guard", "wire", "device")
SUM_MS = 0.1  # how far the stages of an event may be from its whole
GOALS = {"median onset to first pulse, ms": 60.0, "reduction of spasm area": 0.5}


def quantiles(values: Sequence[float]) -> dict[str, float | int | None]:
    """Number, median, 95th percentile and maximum."""
    if not len(values):
        return {"n": 0, "median": None, "p95": None, "max": None}
    v = np.asarray(values)
    return {
        "n": len(v),
        "median": round(float(np.median(v)), 3),
        "p95": round(float(np.percentile(v, 95)), 3),
        "max": round(float(v.max()), 3),
    }


def summary(session: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Work the summary of one demo session out of its files.

    Returns
    -------
    dict
        The object that `calmloop demo --json` prints.
    """
    from drivers.simulated.patient import simulate

    truth = json.loads((session / "truth" / "truth.json").read_text())
    arrays = np.load(session / "truth" / "truth.npz")
    log = [json.loads(line) for line in (session / "truth" / "stimulator.jsonl").read_text().splitlines()]
    pulses = [row for row in log if "pulse_ns" in row]
    judged = next(row["summary"] for row in log if "summary" in row)
    recorded = recording.load(session)

    _, _, withheld = simulate(seed, truth["n_samples"], truth["go_sample"], (), seconds)
    spasms, others = truth["spasms"], withheld["spasms"]
    pulse_s = np.array([p["pulse_ns"] * 1e-9 for p in pulses])
    firsts = np.flatnonzero(np.diff(pulse_s, prepend=-np.inf) > TRAIN_GAP_S)
    go_s = truth["t0_s"] + truth["go_sample"] / truth["sample_rate_hz"]
    firsts = firsts[pulse_s[firsts] >= go_s]  # what was tried out before answers no spasm
    mine, strays = _assign(spasms, pulse_s[firsts])
    delays_ms = {i: (pulse_s[firsts[k]] - spasms[i]["onset_s"]) * 1e3 for i, k in mine.items()}
    area = sum(s["area_nms"] for s in spasms)
    area_withheld = sum(s["area_nms"] for s in others)
    stages = _stages(recorded, truth, arrays["block_pushed_ns"], pulses, [(spasms[i], int(firsts[k])) for i, k in mine.items()])
    events = [
        {"onset_s": round(spasms[i]["onset_s"] - truth["t0_s"], 6), "total_ms": total_ms, "stages_ms": row}
        for (i, total_ms), row in zip(delays_ms.items(), stages, strict=True)
    ]
    staged = [row for row in stages if row]
    won = [_race(truth, arrays["pic_mean"], spasm, other) for spasm, other in zip(spasms, others, strict=False)]
    return {
        "seconds": seconds,
        "seed": seed,
        "stimulation": True,
        "spasms": {"n": len(spasms), "detected": len(mine), "missed": len(spasms) - len(mine), "false_triggers": strays},
        "onset_to_first_pulse_ms": quantiles(list(delays_ms.values())),
        "stages_ms": {stage: quantiles([row[stage] for row in staged]) for stage in STAGES},
        "all_but_signal_ms": quantiles([sum(row.values()) - row["signal"] for row in staged]),
        "stages_sum_ok": all(_sums_up(event) for event in events),
        "events": events,
        "pic_race": {"n": len(won), "won": sum(won)},
        "spasm_area": {
            "unit": "N m s",
            "stimulated": round(area, 3),
            "withheld": round(area_withheld, 3),
            "reduction": round(1.0 - area / area_withheld, 4) if area_withheld else None,
        },
        "stimulator": {
            "pulses": judged["pulses"],
            "max_current_ma": judged["max_current_ma"],
            "outside_limits": judged["outside_limits"],
            "frames_refused": judged["frames_refused"],
        },
        "samples": _samples(recorded, truth),
        "refusals": _refusals(recorded),
        "described": replay.spasms_of(recorded),
        "session": str(session),
    }


def _assign(spasms: list[dict[str, Any]], starts_s: np.ndarray[Any, Any]) -> tuple[dict[int, int], int]:
    """Which spasm's first train is which, and how many trains began outside every spasm."""
    mine: dict[int, int] = {}
    strays = 0
    for k, start_s in enumerate(starts_s):
        owner = next((i for i, s in enumerate(spasms) if s["onset_s"] <= start_s <= s["offset_s"] + NEUTRAL_S), None)
        if owner is None:
            strays += 1
        elif start_s - spasms[owner]["onset_s"] <= HIT_S:
            mine.setdefault(owner, k)
    return mine, strays


def _stages(
    recorded: recording.Session,
    truth: dict[str, Any],
    pushed_ns: Any,
    pulses: list[dict[str, Any]],
    firsts: list[tuple[dict[str, Any], int]],
) -> list[dict[str, float] | None]:
    """The way of each first pulse from the onset to the electrode, cut at the design table's stages; None where it cannot be followed."""
    rows = [row for row in recorded.guard() if row.get("written_ns")]
    written = np.array([row["written_ns"] for row in rows])
    asked = {c.numbers["request"]: c for _, c in recorded.cycles() if c.numbers["request"]}
    block = truth["n_samples"] // len(pushed_ns)
    out: list[dict[str, float] | None] = []
    for spasm, k in firsts:
        pulse = pulses[k]
        at = int(np.searchsorted(written, pulse["received_ns"], side="right")) - 1
        # the frame may be read before guard's clock reading after the write
        if at + 1 < len(written) and abs(written[at + 1] - pulse["received_ns"]) < abs(written[max(at, 0)] - pulse["received_ns"]):
            at += 1
        cycle = asked.get(rows[at].get("request", 0)) if rows else None
        if cycle is None:
            out.append(None)
            continue
        decided_s = max(float(row[2]) for row in cycle.detections if row[0])
        sample = round((decided_s - truth["t0_s"]) * truth["sample_rate_hz"])
        sent_ns = int(pushed_ns[min(sample // block, len(pushed_ns) - 1)])
        cuts = [
            spasm["onset_s"] * 1e9,
            decided_s * 1e9,
            sent_ns,
            cycle.numbers["received_ns"],
            cycle.numbers["decided_ns"],
            int(written[at]),
            pulse["wire_ns"],
            pulse["pulse_ns"],
        ]
        out.append({stage: (b - a) * 1e-6 for stage, (a, b) in zip(STAGES, pairwise(cuts), strict=True)})
    return out


def _sums_up(event: dict[str, Any]) -> bool:
    """Whether the stages of an event are known, in order (the clocks of two processes read within SUM_MS), and sum to its whole."""
    stages = event["stages_ms"]
    if stages is None:
        return False
    return bool(abs(sum(stages.values()) - event["total_ms"]) <= SUM_MS and min(stages.values()) >= -SUM_MS)


def _race(truth: dict[str, Any], pic_mean: Any, spasm: dict[str, Any], withheld: dict[str, Any]) -> bool:
    """Whether inhibition reached the pool before mean PIC activation passed half of what it reaches untreated."""
    reached = [
        p["reached_pool_s"] for p in truth["pulses_felt"] if p["reached_pool_s"] is not None and p["reached_pool_s"] >= spasm["drive_s"]
    ]
    if not reached:
        return False
    first = round((spasm["drive_s"] - truth["t0_s"]) * 1000)
    until = round((min(reached) - truth["t0_s"]) * 1000)
    return bool(
        until > first and np.max(pic_mean[first:until]) < 0.5 * withheld["peak_pic"] and min(reached) < spasm["offset_s"] + NEUTRAL_S
    )


def _samples(recorded: recording.Session, truth: dict[str, Any]) -> dict[str, int]:
    """What the body produced while the loop listened, what the loop saw, what is on the disk."""
    emg = recorded.streams["EMG"].stamps_s
    seen = sum(c.numbers["n_emg"] for _, c in recorded.cycles())
    first, last = (round((t - truth["t0_s"]) * truth["sample_rate_hz"]) for t in (emg[0], emg[-1]))
    produced = last - first + 1
    return {"produced": produced, "seen": seen, "recorded": len(emg), "lost": produced - len(emg)}


def _refusals(recorded: recording.Session) -> dict[str, int]:
    """What guard refused, by reason."""
    counts: Counter[str] = Counter()
    for row in recorded.guard():
        if "verdict" in row and row["verdict"]["refused"]:
            counts[row["verdict"]["reasons"][-1]] += 1
    return dict(counts.most_common(10))


def falls_short(result: dict[str, Any]) -> list[str]:
    """What is not as the demo promises; empty = good."""
    short = []
    spasms, area = result["spasms"], result["spasm_area"]
    if not spasms["n"]:
        short.append("no spasm came in that time: too short to say anything (12 s or more)")
    if spasms["missed"]:
        short.append(f"{spasms['missed']} of {spasms['n']} spasms missed")
    if spasms["false_triggers"]:
        short.append(f"{spasms['false_triggers']} false triggers")
    if result["samples"]["lost"]:
        short.append(f"{result['samples']['lost']} samples lost")
    if result["stimulator"]["outside_limits"] or result["stimulator"]["frames_refused"]:
        short.append("the stimulator saw pulses outside limits or frames it refused")
    if not result["stages_sum_ok"]:
        wrong = [event for event in result["events"] if not _sums_up(event)]
        short.append(f"the stages of {len(wrong)} first pulses are unknown, out of order, or do not sum to the whole within {SUM_MS} ms")
    median = result["onset_to_first_pulse_ms"]["median"]
    if median is not None and median > GOALS["median onset to first pulse, ms"]:
        short.append(f"median onset to first pulse {median} ms")
    if spasms["n"] and (area["reduction"] is None or area["reduction"] < GOALS["reduction of spasm area"]):
        short.append(f"spasm area reduced by {area['reduction']} only")
    return short


def in_words(r: dict[str, Any]) -> str:
    """The summary for a person."""
    spasms, delay, area, stim, samples = (r[k] for k in ("spasms", "onset_to_first_pulse_ms", "spasm_area", "stimulator", "samples"))
    rest = r["all_but_signal_ms"]
    rows = {
        "spasms": f"{spasms['n']}: {spasms['detected']} answered in time, {spasms['missed']} missed, "
        f"{spasms['false_triggers']} false triggers",
        "onset to 1st pulse": f"median {delay['median']} ms, 95 % within {delay['p95']} ms, longest {delay['max']} ms",
        "of which (median)": "  ".join(f"{name} {q['median']}" for name, q in r["stages_ms"].items()),
        "all but the signal": f"median {rest['median']} ms, 95 % within {rest['p95']} ms, longest {rest['max']} ms",
        "race with the PIC": f"{r['pic_race']['won']} of {r['pic_race']['n']} won",
        "spasm area": f"{area['stimulated']} {area['unit']} stimulated, {area['withheld']} withheld: "
        f"reduced by {100 * (area['reduction'] or 0):.0f} %",
        "stimulator's log": f"{stim['pulses']} pulses, at most {stim['max_current_ma']} mA, "
        f"{stim['outside_limits']} outside limits, {stim['frames_refused']} refused",
        "samples": f"{samples['produced']} produced, {samples['recorded']} recorded, {samples['lost']} lost",
        "refused": ", ".join(f"{n} x {reason.removeprefix('refused: ')}" for reason, n in r["refusals"].items()) or "nothing",
        "session": r["session"],
    }
    return "\n".join(
        [
            f"\nclosed loop for {r['seconds']:g} s, seed {r['seed']}",
            *(f"  {what:<20}{text}" for what, text in rows.items()),
            "The body is a model: these figures say that the loop works, not that it helps a patient.",
        ]
    )
