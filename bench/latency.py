"""`python -m bench.latency`: from a sample pushed at the source to the pulse at the port, ours beside others, in one run.

An LSL outlet sends eight channels at 2 kHz in chunks of 1 or 10 samples: noise, and thirty times a second a strong burst that begins
with a chunk. The clock starts just before that chunk is pushed and stops when a sink of real-time priority has read the answer from a
named pipe. Contenders do the same job one after the other, shuffled in each round (our own and C next to each other), all with SCHED_FIFO,
locked memory and (but for "all C asleep") processors that are kept awake, where the system grants it; floors of the same minute stand
beside them. See `bench.contenders` for who they are, `bench.fast_clinic` for how thousands of events pass guard's dose checks,
`bench.judge` for what counts.

Results go to `bench/results/` (not kept by git): JSON with every raw sample, and a picture. `--json` prints the JSON on standard output
too (the table then goes to standard error), `--json FILE` writes it there instead.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import environment, fast_clinic, job, judge, picture, stages
from bench.contenders import CONTENDERS, Rig, Skip, Source, floors
from controller import realtime, recording

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESULTS = Path(__file__).with_name("results")
LOADS = ("cpu", "disk", "flood", "browser")
FLOOD = 10  # times the samples that the source declares
QUICK = ("calmloop", "loop", "all C", "all C asleep")
ASLEEP = ("all C asleep",)  # as a program comes that asks for priority and locked memory alone; for all others processors are kept awake
FULL = tuple(name for name in CONTENDERS if name != "calmloop pty")
POLLING = ("mne-lsl", "mne-lsl polled", "Timeflux")  # what they take hardly depends on the chunk: a full run measures them at 1 alone
FLOOR_EVENTS = 1000
SETTLE_S = 0.3


class Cell(NamedTuple):
    """What is measured at one time."""

    contender: str
    chunk: int
    load: str = ""

    def __str__(self) -> str:
        return f"{self.contender}{f', chunk {self.chunk}' if self.chunk else ''}{f', under {self.load}' if self.load else ''}"


FLOORS = Cell("floors", 0)


def plan(names: Sequence[str], chunks: Sequence[int], siege: bool) -> list[Cell]:
    """All cells of a round."""
    cells = [Cell(name, chunk) for name in names for chunk in chunks if chunk == 1 or names != FULL or name not in POLLING]
    if siege:
        cells += [Cell("calmloop", 10, load) for load in LOADS]
    return [*cells, FLOORS]


def shuffled(cells: Sequence[Cell], rng: random.Random) -> list[Cell]:
    """One round's order: our own and C stay next to each other, each of their chunks a block.

    They are a few microseconds apart, and this machine is slower or faster for minutes on end: a ratio of neighbours is free of that.
    """
    blocks: dict[object, list[Cell]] = {}
    for cell in cells:
        blocks.setdefault(cell.chunk if cell.contender in QUICK and not cell.load else cell, []).append(cell)
    order = list(blocks.values())
    rng.shuffle(order)
    for block in order:
        rng.shuffle(block)
    return [cell for block in order for cell in block]


@contextmanager
def under(name: str) -> Iterator[None]:
    """Load the machine, and see at the end that it was loaded all the time. Raises `Skip` where it cannot be."""
    if name in ("", "flood"):  # the flood comes from the source itself
        yield
        return
    try:
        from bench import load
    except ImportError:
        raise Skip("there is no bench/load.py") from None
    try:
        with getattr(load, name)() as loaded:
            yield
            loaded.check()
    except load.Unavailable as why:
        raise Skip(f"load {name}: {why}") from None


@contextmanager
def awake(wanted: bool) -> Iterator[str]:
    """Keep the processors awake, as calmloop does when it can; gives what became of that."""
    try:
        fd = realtime.wake_up_file() if wanted else -1
    except OSError as error:
        yield f"may sleep: {error}"
        return
    try:
        yield "kept awake" if wanted else "may sleep"
    finally:
        if wanted:
            os.close(fd)


def measure(rig: Rig, source: Source, cell: Cell, events: int, seed: int) -> dict[str, Any]:
    """One start of one contender: its latencies, or why there are none; under a load with the wake-up floor of the same load."""
    flood = FLOOD if cell.load == "flood" else 1
    source.noise(cell.chunk, flood)
    try:
        sleeps = cell.contender in ASLEEP
        with awake(not sleeps) as processors, CONTENDERS[cell.contender](rig) as running, under(cell.load):
            sleep(SETTLE_S)
            before = running.stamps.count
            rate_hz = job.EVENTS_HZ_FLOOD if flood > 1 else job.EVENTS_HZ
            played = source.play(cell.chunk, events + job.DROPPED, rate_hz, seed, flood)
            sleep(SETTLE_S)  # for those who are behind
            answers_ns = running.stamps.since(before)
            matched = judge.match(played["t0_ns"], answers_ns, job.DROPPED)
            behind = judge.behind(matched, played["t0_ns"], answers_ns)
            got = {
                "latency_us": [None] * events if behind else matched.latency_us,
                "misses": events if behind else matched.misses,
                "behind": behind,
                "extras": matched.extras,
                "answers": len(answers_ns),
                "source_late_us": judge.figures([ns / 1000 for ns in played["late_ns"]]),
                "scheduling": {name: environment.scheduling(pid) for name, pid in running.processes.items()},
                "processors": processors,
                "facts": running.facts(),
            }
            if cell.load:
                got["floor_us"] = floors(rig, events, timer_only=True)["timer"]
        if folder := got["facts"].get("session"):
            session = recording.load(Path(folder))
            got["refused"] = stages.refusals(session)
            got["stages_us"] = stages.stages(session, played["t0_ns"][job.DROPPED :], answers_ns)
        return got
    except Skip as why:
        return {"skipped": str(why)}
    finally:
        source.noise(1)


def run(rig: Rig, cells: Sequence[Cell], rounds: int, events: int, seed: int) -> list[dict[str, Any]]:
    """All rounds; a row each start."""
    source = Source(rig)
    rows: list[dict[str, Any]] = []
    try:
        for number in range(rounds):
            for cell in shuffled(cells, random.Random(f"{seed}/{number}")):
                began = monotonic()
                common = {"round": number, "chunk": cell.chunk, "load": cell.load}
                if cell == FLOORS:
                    with awake(True):
                        figures = floors(rig, FLOOR_EVENTS)
                    for name, latency_us in figures.items():
                        rows.append(common | {"contender": name, "latency_us": latency_us})
                else:
                    row = common | {"contender": cell.contender, "seed": seed * 1000 + number}
                    row |= measure(rig, source, cell, events, row["seed"])
                    rows.append(row)
                    if "floor_us" in row:
                        rows.append(common | {"contender": "timer", "latency_us": row.pop("floor_us")})
                tell(f"round {number + 1}/{rounds}: {cell}: {said(rows[-1] if cell == FLOORS else row)} ({monotonic() - began:.1f} s)")
    finally:
        source.close()
    return rows


def said(row: dict[str, Any]) -> str:
    """One start in words."""
    if "skipped" in row:
        return f"skipped, {row['skipped']}"
    if row.get("behind"):
        return "fell behind the source: its answers cannot be told apart"
    got = judge.figures(row["latency_us"])
    misses = f", {row['misses']} missed" if row.get("misses") else ""
    misses += "".join(f" (guard {why}: {n})" for why, n in row.get("refused", {}).items())
    return f"p50 {got['p50']:.0f} us, p95 {got['p95']:.0f} us{misses}"


def tell(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


# --- results ----------------------------------------------------------------------------------------------------------------------
def pooled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rounds of each cell together, with percentiles."""
    together: dict[Cell, list[dict[str, Any]]] = {}
    for row in rows:
        together.setdefault(Cell(row["contender"], row["chunk"], row["load"]), []).append(row)
    out = []
    for cell, parts in together.items():
        latency_us = [us for part in parts for us in part.get("latency_us", [])]
        counts = Counter({key: sum(part.get(key, 0) for part in parts) for key in ("misses", "extras")})
        skipped = next((part["skipped"] for part in parts if "skipped" in part), None)
        out.append(cell._asdict() | {"n": len(latency_us), **counts, "skipped": skipped, **judge.figures(latency_us)})
    return sorted(out, key=lambda row: (row["load"], row["chunk"], row["p50"]))


def table(figures: Sequence[dict[str, Any]]) -> str:
    """Percentiles in µs for people."""
    lines = [f"{'':<28}{'p50':>9}{'p95':>9}{'p99':>9}{'p99.9':>9}{'max':>9}{'n':>7}{'missed':>8}{'extra':>7}"]
    heading = None
    for row in figures:
        here = f"under {row['load']}" if row["load"] else f"chunk {row['chunk']}" if row["chunk"] else "floors of the same minutes"
        if here != heading:
            lines += ["", here]
            heading = here
        name = row["contender"] + (f", chunk {row['chunk']}" if row["load"] else "")
        if not row["n"]:
            lines.append(f"  {name:<26}skipped: {row['skipped']}")
            continue
        numbers = "".join(f"{row[p]:>9.0f}" for p in judge.PERCENTILES)
        lines.append(f"  {name:<26}{numbers}{row['n']:>7}{row['misses']:>8}{row['extras']:>7}")
    return "\n".join(lines)


def stage_table(rows: Sequence[dict[str, Any]]) -> str:
    """Where calmloop's time goes, medians and p95 in µs."""
    lines = ["", f"{'stages of calmloop, p50 (p95)':<32}" + "".join(f"{name:>18}" for name in stages.NAMES)]
    together: dict[Cell, list[dict[str, Any]]] = {}
    for row in rows:
        if "stages_us" in row:
            together.setdefault(Cell(row["contender"], row["chunk"], row["load"]), []).append(row["stages_us"])
    for cell, parts in sorted(together.items(), key=lambda item: (item[0].load, item[0].chunk)):
        got = [judge.figures([us for part in parts for us in part[name]]) for name in stages.NAMES]
        words = (f"{one['p50']:.0f} ({one['p95']:.0f})" for one in got)
        lines.append(f"  {cell!s:<30}" + "".join(f"{word:>18}" for word in words))
    return "\n".join(lines) if together else ""


def arguments() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(prog="bench.latency", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--quick", action="store_true", help="a slice of the same code for CI: 2 rounds, few events, our own and all C")
    p.add_argument("--rounds", type=int, help="each starts every contender anew (default 5, quick 2)")
    p.add_argument("--events", type=int, help="measured after each start (default 400, quick 60)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--only", help=f"contenders, separated by commas: {', '.join(CONTENDERS)}")
    p.add_argument("--chunks", default="1,10", help="samples in a chunk, separated by commas (default 1,10)")
    p.add_argument(
        "--sink", choices=("pipe", "pty"), default="pipe", help="pty: a cell more, with the virtual stimulator on a pty; not gated"
    )
    p.add_argument("--siege", action="store_true", help="calmloop under loads too; part of a full --gate run")
    p.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON on standard output, or into FILE")
    p.add_argument("--svg", metavar="FILE", help="the picture (default: beside the JSON)")
    p.add_argument("--gate", action="store_true", help="exit 1 when a promise of bench/budget.toml is missed, naming each")
    p.add_argument("--plant-ms", type=float, default=0.0, help="sleep this long in each step of our loop, to see the gate fail")
    p.add_argument("--keep", metavar="FOLDER", help="keep sessions and logs there (default: a temporary folder)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    parser = arguments()
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else QUICK if args.quick else FULL
    if args.sink == "pty":
        names = (*names, "calmloop pty")
    for name in names:
        if name not in CONTENDERS:
            parser.error(f"there is no contender {name!r}; there are: {', '.join(CONTENDERS)}")
    try:
        chunks = [int(text) for text in args.chunks.split(",")]
    except ValueError:
        chunks = [0]
    rounds, events = args.rounds or (2 if args.quick else 5), args.events or (60 if args.quick else 400)
    if min(*chunks, rounds, events) < 1 or max(chunks) > 100:
        parser.error("rounds and events are at least 1, chunks from 1 to 100")
    siege = args.siege or (args.gate and not args.quick and not args.only)
    alone = environment.alone()
    if not alone:
        words = "another bench runs on this machine: each disturbs the other, and neither's figures are worth much"
        tell(words)
        if args.gate:
            if args.json == "-":
                print(json.dumps({"ok": False, "error": words}))
            return 2
    place, stolen_ms = environment.environment(), environment.stolen_ms()
    if args.keep:
        Path(args.keep).mkdir(parents=True, exist_ok=True)
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory(prefix="calmloop-bench-") as folder:
        rig = Rig(Path(folder).resolve(), args.plant_ms)
        try:
            rows = run(rig, plan(names, chunks, siege), rounds, events, args.seed)
        finally:
            rig.close()
    figures = pooled(rows)
    goals = judge.judge(judge.budget(), rows)
    missed = [goal for goal in goals if goal.verdict == "missed"]
    result = {
        "bench": "latency",
        "ok": not missed,
        "environment": place | {"load_average_after": os.getloadavg(), "stolen_ms": environment.stolen_ms() - stolen_ms, "alone": alone},
        "job": {
            "channels": len(job.CHANNELS),
            "rate_hz": job.RATE_HZ,
            "events_hz": job.EVENTS_HZ,
            "burst_uv": job.BURST_UV,
            "noise_uv": job.NOISE_UV,
            "dropped_per_start": job.DROPPED,
            "clinic": fast_clinic.WORDS,
        },
        "seed": args.seed,
        "rounds": rounds,
        "events": events,
        "plant_ms": args.plant_ms,
        "goals": [asdict(goal) for goal in goals],
        "figures_us": figures,
        "cells": rows,
    }
    write(args, result)
    words = [table(figures), stage_table(rows), "", *(goal.words for goal in goals), "", "clinic: " + fast_clinic.WORDS]
    print("\n".join(words), file=sys.stderr if args.json == "-" else sys.stdout)
    return 1 if args.gate and missed else 0


def write(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """JSON and picture, where they are wanted and in `bench/results`."""
    text = json.dumps(environment.clean(result))
    path = RESULTS / f"latency-{result['environment']['utc'].replace(':', '-')}.json" if args.json in (None, "-") else Path(args.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    svg = Path(args.svg) if args.svg else path.with_suffix(".svg")
    svg.write_text(picture.draw(result))
    tell(f"written: {path} and {svg}")
    if args.json == "-":
        print(text)


if __name__ == "__main__":
    sys.exit(main())
