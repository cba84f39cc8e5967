"""What a bed costs: CPU, wake-ups and memory of loop, guard and daemon, and how soon a bed that was started can be armed.

`python -m bench.cost [--quick] [--seconds N] [--json FILE] [--gate]`. The real `calmloop run` listens to an LSL source in another process
and holds the virtual stimulator; it is as a bed is between spasms: recording, nothing armed. CPU is the time that the kernel counts for
all threads of a process (`utime + stime`), in cores; wake-ups are its voluntary context switches. `--quick` is one cell with the kernels'
cache as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import tomllib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.environment import environment
from controller import demo, messages, settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from controller.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
BUDGET = Path(__file__).with_name("budget.toml")
SETTLE_S = 2.0  # after the start, before anything is counted
READ_EVERY_S = 1.0
STARTS = 3
START_S = 180.0
TICKS_HZ = os.sysconf("SC_CLK_TCK")
MUSCLE = 8  # channels that one rule pools


@dataclass(frozen=True)
class Cell:
    """What the bed listens to; no channels = nothing, the button alone."""

    channels: int
    rate_hz: float
    chunk: int

    @property
    def shape(self) -> str:
        """Channels and rate in words."""
        return f"{self.channels} ch x {self.rate_hz / 1000:g} kHz" if self.channels else "button only"

    @property
    def words(self) -> str:
        """All of it in words."""
        return f"{self.shape}, chunk {self.chunk}" if self.channels else self.shape


CELLS = (Cell(8, 2000.0, 1), Cell(8, 2000.0, 10), Cell(64, 4000.0, 1), Cell(64, 4000.0, 10), Cell(0, 0.0, 0))
QUICK = CELLS[:1]


# --- the source, a process of its own ----------------------------------------------------------------------------------------------
def source(channels: int, rate_hz: float, chunk: int, source_id: str) -> None:
    """Push noise on absolute deadlines until standard input ends."""
    import numpy as np

    from controller import realtime
    from drivers.sources import lsl

    realtime.die_with_parent()
    realtime.ask(60)  # below the loop
    outlet = lsl.outlet("calmloop bench EMG", "EMG", names(channels), "uV", rate_hz, source_id)
    noise_uv = np.random.default_rng(0).normal(0.0, 5.0, (chunk * 997, channels))
    blocks = [np.ascontiguousarray(noise_uv[i : i + chunk]) for i in range(0, len(noise_uv), chunk)]
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(json.dumps({"ready": True}), flush=True)
    due_s = time.monotonic()
    while True:
        for block in blocks:
            due_s += chunk / rate_hz
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            outlet.push_chunk(block)


def names(channels: int) -> tuple[str, ...]:
    """Channel names as `config/bench.toml` has them."""
    return tuple(f"EMG{i + 1}" for i in range(channels))


# --- a bed -------------------------------------------------------------------------------------------------------------------------
def config_of(cell: Cell, port: str, source_id: str, folder: Path) -> Settings:
    """Settings of the bench for a cell: one rule for each eight channels."""
    base = settings.load(ROOT / "config" / "bench.toml")
    changes: dict[str, Any] = {
        "session": base.session.model_copy(update={"folder": str(folder)}),
        "stimulator": base.stimulator.model_copy(update={"port": port}),
        "emg": None,
        "emg_rules": (),
    }
    if cell.channels:
        assert base.emg
        all_names, rule = names(cell.channels), base.emg_rules[0]
        changes["emg"] = base.emg.model_copy(update={"channels": all_names, "sample_rate_hz": cell.rate_hz, "source_id": source_id})
        changes["emg_rules"] = tuple(
            rule.model_copy(update={"name": f"muscle {i // MUSCLE + 1}", "channels": all_names[i : i + MUSCLE]})
            for i in range(0, cell.channels, MUSCLE)
        )
    return settings.parse(base.model_copy(update=changes).to_toml(), "bench.cost")


@dataclass
class Bed:
    """A running bed and how long it took until it could be armed."""

    daemon: demo.LiveDaemon
    start_s: float

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name."""
        status = self.daemon.status()
        while status is None:
            self.daemon.check()
            time.sleep(0.05)
            status = self.daemon.status()
        return {"daemon": self.daemon.popen.pid, **status["children"]}


@contextmanager
def bed(cell: Cell) -> Iterator[Bed]:
    """A bed of `calmloop run` with its source and virtual stimulator, all up; armed once and disarmed again."""
    with tempfile.TemporaryDirectory(prefix="calmloop-cost-") as folder_name, ExitStack() as stack:
        folder = Path(folder_name)
        source_id = folder.name
        stimulator = demo.Process(
            "the virtual stimulator", "drivers.simulated.twin", "--log", str(folder / "stimulator.jsonl"), "--lifeline"
        )
        stack.callback(stimulator.end)
        port = stimulator.line("was ready")["port"]
        if cell.channels:
            shape = (str(cell.channels), str(cell.rate_hz), str(cell.chunk))
            signals = demo.Process("the source", "bench.cost", "_source", *shape, source_id)
            stack.callback(signals.end)
            signals.line("was ready")
        config = config_of(cell, port, source_id, folder)
        errors = stack.enter_context((folder / "errors.txt").open("w+"))
        stack.enter_context(set_environment("CALMLOOP_RUNTIME_DIR", str(folder)))
        begun_s = time.monotonic()
        daemon = demo.LiveDaemon(config, "cost", folder, errors)
        stack.callback(daemon.end)
        try:
            yield Bed(daemon, wait_until_armable(daemon, bool(cell.channels)) - begun_s)
        except demo.DemoError as error:
            errors.seek(0)
            raise demo.DemoError(f"{cell.words}: {error}\n{errors.read()}") from None


def wait_until_armable(daemon: demo.LiveDaemon, automatic: bool) -> float:
    """Ask guard until arming must be granted, then arm and disarm; returns the time of the answer that showed it."""
    end = time.monotonic() + START_S
    status: dict[str, Any] = {}
    while time.monotonic() < end:
        daemon.check()
        try:
            status = messages.ask(daemon.bed, {"do": "status"})
        except messages.NoBedError:
            status = {}
        at_s = time.monotonic()
        if status.get("state") == "IDLE" and (status["data_ok"] or not automatic):
            answer = messages.allow(daemon.bed, automatic, "bench")
            if answer["automatic"] != automatic:
                raise demo.DemoError(f"arming was refused: {answer['reason']}")
            messages.ask(daemon.bed, {"do": "disarm", "who": "bench"})
            return at_s
        time.sleep(0.02)
    raise demo.DemoError(f"it could not be armed within {START_S:g} s; guard's last status: {status}")


@contextmanager
def set_environment(name: str, value: str) -> Iterator[None]:
    """A variable that children inherit."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# --- readings ----------------------------------------------------------------------------------------------------------------------
def read(pid: int) -> dict[str, float]:
    """What the kernel has counted for all threads of a process until now."""
    folder = Path(f"/proc/{pid}")
    ticks = (folder / "stat").read_text().rsplit(")", 1)[1].split()[11:13]
    voluntary = involuntary = threads = 0
    for task in (folder / "task").iterdir():
        try:
            lines = fields(task / "status")
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
        threads += 1
        voluntary += lines["voluntary_ctxt_switches"]
        involuntary += lines["nonvoluntary_ctxt_switches"]
    memory = fields(folder / "status")
    return {
        "at_s": time.monotonic(),
        "cpu_s": sum(map(int, ticks)) / TICKS_HZ,
        "voluntary": voluntary,
        "involuntary": involuntary,
        "threads": threads,
        "pss_kib": fields(folder / "smaps_rollup")["Pss"],
        "rss_kib": memory["VmRSS"],
        "locked_kib": memory["VmLck"],
    }


def fields(path: Path) -> dict[str, int]:
    """The whole numbers of a file of `name: number` lines."""
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return {name: int(words[0]) for name, value in pairs if (words := value.split()) and words[0].isdigit()}


def measure(cell: Cell, seconds: float) -> dict[str, Any]:
    """One bed for some seconds."""
    with bed(cell) as running:
        time.sleep(SETTLE_S)
        processes = running.processes
        readings: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
        samples = []
        end = time.monotonic() + seconds
        while True:
            for name, pid in processes.items():
                readings[name].append(read(pid))
            status = running.daemon.status()
            samples.append(status["recorded"]["emg"] if status else None)
            left_s = end - time.monotonic()
            if left_s <= 0:
                break
            time.sleep(min(left_s, READ_EVERY_S))
        running.daemon.check()
        if running.processes != processes:
            raise demo.DemoError(f"{cell.words}: loop or guard was started again while it was measured")
    return {
        "shape": cell.shape,
        "channels": cell.channels,
        "rate_hz": cell.rate_hz,
        "chunk": cell.chunk,
        "start_s": round(running.start_s, 3),
        "recorded": samples,
        "processes": {name: summary(rows) | {"readings": rows} for name, rows in readings.items()},
    }


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Rates between the first and the last reading, and the memory at the end."""
    first, last = rows[0], rows[-1]
    span_s = last["at_s"] - first["at_s"]
    return {
        "cpu_cores": round((last["cpu_s"] - first["cpu_s"]) / span_s, 4),
        "voluntary_per_s": round((last["voluntary"] - first["voluntary"]) / span_s, 1),
        "involuntary_per_s": round((last["involuntary"] - first["involuntary"]) / span_s, 1),
        **{name: last[name] for name in ("threads", "pss_kib", "rss_kib", "locked_kib")},
    }


# --- the run -----------------------------------------------------------------------------------------------------------------------
def run(quick: bool, seconds: float) -> dict[str, Any]:
    """All of it, as plain JSON."""
    result: dict[str, Any] = {"bench": "cost", "quick": quick, "seconds": seconds, "environment": environment(), "starts": [], "cells": []}
    with ExitStack() as stack:
        if not quick:
            for _ in range(STARTS):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="calmloop-numba-"))
                os.environ["NUMBA_CACHE_DIR"] = folder  # of this process and its children alone; the last one stays
                result["starts"] += [started(CELLS[0], "cold"), started(CELLS[0], "warm")]
        for cell in QUICK if quick else CELLS:
            say(f"{cell.words}: {seconds:g} s")
            result["cells"].append(measure(cell, seconds))
    result["goals"] = judged(result)
    return result


def started(cell: Cell, cache: str) -> dict[str, Any]:
    """How long one start takes."""
    with bed(cell) as running:
        say(f"start with a {cache} cache: {running.start_s:.2f} s")
    return {"cache": cache, "shape": cell.shape, "seconds": round(running.start_s, 3)}


def judged(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal of `budget.toml` that this run has measured, and whether it was kept."""
    budget = tomllib.loads(BUDGET.read_text())
    goals = []
    for goal in budget["cost"]:
        for cell in result["cells"]:
            if (cell["shape"], cell["chunk"]) == (goal["shape"], goal["chunk"]):
                value = sum(cell["processes"][name]["cpu_cores"] for name in goal["of"].split(" + "))
                words = f"{goal['of']}, {goal['shape']}, chunk {goal['chunk']}"
                goals.append({"goal": words, "unit": "cores", "value": round(value, 4), "limit": goal["limit_cores"]})
    for goal in budget["start"]:
        seconds = [start["seconds"] for start in result["starts"] if start["cache"] == goal["cache"]]
        if seconds:
            goals.append({"goal": f"start, {goal['cache']} cache", "unit": "s", "value": median(seconds), "limit": goal["limit_s"]})
    return [goal | {"met": goal["value"] <= goal["limit"]} for goal in goals]


def in_words(result: dict[str, Any]) -> str:
    """A table."""
    lines = [f"{'':<26}{'CPU':>8}{'wake-ups':>10}{'pushed off':>11}{'Pss':>9}{'RSS':>9}{'locked':>9}{'threads':>9}"]
    lines += [f"{'':<26}{'cores':>8}{'1/s':>10}{'1/s':>11}{'MiB':>9}{'MiB':>9}{'MiB':>9}"]
    for cell in result["cells"]:
        lines.append(Cell(cell["channels"], cell["rate_hz"], cell["chunk"]).words)
        for name, p in sorted(cell["processes"].items()):
            memory = "".join(f"{p[key] / 1024:>9.1f}" for key in ("pss_kib", "rss_kib", "locked_kib"))
            lines.append(
                f"  {name:<24}{p['cpu_cores']:>8.3f}{p['voluntary_per_s']:>10.0f}{p['involuntary_per_s']:>11.0f}{memory}{p['threads']:>9}"
            )
    for cache in ("warm", "cold"):
        seconds = [start["seconds"] for start in result["starts"] if start["cache"] == cache]
        if seconds:
            lines.append(f"start with a {cache} cache: median {median(seconds):.2f} s, longest {max(seconds):.2f} s of {len(seconds)}")
    for goal in result["goals"]:
        lines.append(f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['value']:g} {goal['unit']} (limit {goal['limit']:g})")
    return "\n".join(lines)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["_source"]:
        source(int(words[1]), float(words[2]), int(words[3]), words[4])
    parser = argparse.ArgumentParser(prog="bench.cost", description="CPU, wake-ups, memory and start of a bed.")
    parser.add_argument("--quick", action="store_true", help="one cell, the kernels' cache as it is")
    parser.add_argument("--seconds", type=float, help="how long each cell is measured (20; 2 when quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was read into a file")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a goal of budget.toml is missed")
    args = parser.parse_args(words)
    seconds = args.seconds or (2.0 if args.quick else 20.0)
    if not 1 <= seconds <= 3600:
        parser.error(f"--seconds {seconds:g} must be at least 1 and at most 3600")
    try:
        result = run(args.quick, seconds)
    except demo.DemoError as error:
        say(f"bench.cost: {error}")
        return 1
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    print(in_words(result))
    missed = [goal["goal"] for goal in result["goals"] if not goal["met"]]
    for name in missed if args.gate else ():
        say(f"missed: {name}")
    return 1 if args.gate and missed else 0


if __name__ == "__main__":
    sys.exit(main())
