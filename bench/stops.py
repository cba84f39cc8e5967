"""`python -m bench.stops`: a thousand STOPs under CPU and disk load, from receipt to the last pulse.

Real beds of `calmloop run` (the button alone, recording on) on a loaded machine: arm, start a train by the button, and at a random moment
of it a person says stop over guard's control socket. Receipt is the stamp in guard's own row; the last pulse is read from the virtual
stimulator's log. No clock is hurried and no limit moved: refractory time is the least there is (1 s), a bed is closed after 28 trains (30
events in 10 min are allowed) and the next one is somebody else's.

Beside it stands what this machine did in the same minutes: a timer of guard's own priority on each processor, and how late it was woken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import tomllib
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from bench import judge, load, pulses
from bench.environment import environment, stolen_ms
from bench.job import GUARD_PRIORITY
from bench.ward import TRAIN, UnusableError, Ward
from controller import demo, messages, recording
from drivers.base import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

BUDGET = Path(__file__).with_name("budget.toml")
PER_BED = 28
STOPS, QUICK_STOPS = 1000, 30
MS, S = 1_000_000, 1_000_000_000
LATE_NS = 50 * MS
ON_NS = 60 * MS  # a train whose last pulse is older than this when a person says stop was not on: that stop counts for nothing
REST_S = 1.05  # after a train
LOAD = "two busy processes a core, four that write and fsync"
GIVE_UP = 3  # beds running that gave not one stop
WORDS = f"at most {PER_BED} stops a bed, then a fresh one: real clock, real dose limits; refractory time 1 s"


def say_stop(ward: Ward) -> dict[str, int]:
    """A person says stop over a connection of their own; when it left and when it was answered."""
    s = messages.socket.socket(messages.socket.AF_UNIX, messages.socket.SOCK_SEQPACKET)
    with s:
        s.settimeout(5.0)
        s.connect(os.fspath(messages.control_path(ward.bed)))
        data = json.dumps({"do": "stop", "who": "bench"}).encode()
        sent_ns = monotonic_ns()
        s.send(data)
        s.recv(65536)
        return {"sent_ns": sent_ns, "answered_ns": monotonic_ns()}


def one_stop(ward: Ward, rng: random.Random) -> dict[str, int]:
    """Arm, press, stop at a random moment of the train. Raises `UnusableError`."""
    last_ns = max((p["pulse_ns"] for p in ward.log.read()), default=0)
    time.sleep(max(0.0, REST_S - (monotonic_ns() - last_ns) / S))
    ward.arm(30.0)
    ward.wait_for(lambda: ward.press(5.0) or time.sleep(0.1), 10.0, "train by the button")
    begun_ns = monotonic_ns()
    time.sleep(rng.uniform(0.0, TRAIN["duration_ms"] / 1000 - 0.02))
    got = say_stop(ward)
    time.sleep(0.1)
    return {"begun_ns": begun_ns, **got, "until_ns": monotonic_ns()}


class Stops:
    """Beds at once until there are enough stops."""

    def __init__(self, folder: Path, wanted: int, seed: int, at_once: int) -> None:
        self.folder, self.wanted, self.seed, self.at_once = folder, wanted, seed, at_once
        self.per_bed = min(PER_BED, -(-wanted // at_once))
        self.rows: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.begun = self.beds = self.barren = 0
        self.lock = threading.Lock()

    def run(self) -> None:
        """All of it."""
        workers = [threading.Thread(target=self.work, args=(i,)) for i in range(self.at_once)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.2)
        finally:
            self.wanted = 0  # ^C
            for worker in workers:
                worker.join()

    def take(self) -> int:
        """How many stops the next bed is to give."""
        with self.lock:
            n = min(self.per_bed, self.wanted - self.begun)
            if self.barren >= GIVE_UP:
                n = 0
            self.begun += max(0, n)
            return n

    def work(self, worker: int) -> None:
        """Bed after bed on one processor."""
        while (n := self.take()) > 0:
            with self.lock:
                self.beds += 1
                number = self.beds
            rows = self.on_one_bed(number, worker % (os.cpu_count() or 1), n)
            counted = sum(row["counts"] for row in rows)
            with self.lock:
                self.rows += rows
                self.begun -= n - counted  # those that were missed are somebody else's
                self.barren = 0 if counted else self.barren + 1
                done = sum(row["counts"] for row in self.rows)
            say(f"bed {number}: {counted} stops; {done} of {self.wanted or 'the'} wanted")

    def on_one_bed(self, number: int, cpu: int, n: int) -> list[dict[str, Any]]:
        """So many stops on a fresh bed, judged once it is closed."""
        rng = random.Random(f"{self.seed}/{number}")
        rows: list[dict[str, Any]] = []
        ward = None
        try:
            ward = Ward(self.folder / f"bed{number}", False, cpu)
            ward.wait_until_ready()
            while len(rows) < n and self.wanted:
                rows.append(one_stop(ward, rng))
        except (UnusableError, messages.NoBedError, demo.DemoError, OSError) as error:
            say(f"bed {number}: {error}"[:500])
        finally:
            if ward:
                ward.close()
        return self.judged(ward, rows) if ward else []

    def judged(self, ward: Ward, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each stop with guard's stamp and the pulses around it; what a bed gave outside its limits is kept aside."""
        log = ward.log.read()
        times = [p["pulse_ns"] for p in log]
        found = pulses.trains(times, ward.limits)
        wrong = pulses.wrong_pulses(log, ward.limits) + pulses.wrong_trains(found, ward.limits)
        wrong += pulses.wrong_causes(found, ward.asked, ward.limits) + pulses.wrong_dose(found, ward.limits)
        with self.lock:
            self.wrong += [f"{ward.bed}: {one.what}: {one.text}" for one in wrong]
        receipts_ns: list[int] = []
        for folder in ward.sessions:
            with suppress(FileFormatError):
                events = [row["event"] for row in recording.load(folder).guard() if "event" in row]
                receipts_ns += [event["now_ns"] for event in events if event["kind"] == "stop"]
        return [row | {"bed": ward.bed} | around(row, times, receipts_ns, ward.log.stop_ns) for row in rows]


def around(row: dict[str, Any], pulse_ns: Sequence[int], receipts_ns: Sequence[int], stop_ns: Sequence[int]) -> dict[str, Any]:
    """What one stop did; it counts where a train was on and guard's row of it was found."""
    receipt_ns = next((at_ns for at_ns in receipts_ns if row["sent_ns"] <= at_ns <= row["answered_ns"]), None)
    before = [at_ns for at_ns in pulse_ns if row["begun_ns"] - ON_NS <= at_ns <= row["sent_ns"]]
    after = [at_ns for at_ns in pulse_ns if row["sent_ns"] < at_ns <= row["until_ns"]]
    stopped_ns = next((at_ns for at_ns in stop_ns if row["sent_ns"] <= at_ns <= row["until_ns"]), None)
    was_on = bool(before) and row["sent_ns"] - before[-1] < ON_NS
    last_ns = (after or before or [0])[-1]
    return {
        "receipt_ns": receipt_ns,
        "last_pulse_ns": last_ns,
        "pulses_before": len(before),
        "pulses_after_receipt": sum(at_ns > (receipt_ns or row["sent_ns"]) for at_ns in after),
        "counts": was_on and receipt_ns is not None,
        # 0: the last pulse was there before the stop was
        "receipt_to_last_ms": max(0.0, (last_ns - receipt_ns) / MS) if receipt_ns is not None else None,
        # the frame that says stop is at the stimulator; None where its log does not tell
        "receipt_to_stop_ms": (stopped_ns - receipt_ns) / MS if receipt_ns and stopped_ns else None,
        "sent_to_last_ms": max(0.0, (last_ns - row["sent_ns"]) / MS),
        "sent_to_receipt_ms": (receipt_ns - row["sent_ns"]) / MS if receipt_ns is not None else None,
        "sent_to_answer_ms": (row["answered_ns"] - row["sent_ns"]) / MS,
        "late_pulses": sum(at_ns > (receipt_ns or row["sent_ns"]) + LATE_NS for at_ns in after),
    }


# --- the machine's own stall, a process of its own --------------------------------------------------------------------------------
def timer(cpu: int) -> None:
    """How late a wake-up of guard's priority is on one processor, each millisecond until standard input ends."""
    import select

    import numpy as np

    from bench.native import timer_late
    from controller import realtime

    late_ns = np.zeros(100, np.int64)
    timer_late(1_000_000, late_ns[:2])  # compiled or loaded before it counts
    got = realtime.ask(GUARD_PRIORITY, (cpu,))
    realtime.freeze()
    print(json.dumps({"ready": True}), flush=True)
    counts = np.zeros(4000, np.int64)  # of each 0.05 ms
    worst_ns = 0
    while not select.select([0], [], [], 0)[0]:
        timer_late(1_000_000, late_ns)
        counts += np.bincount(np.minimum(late_ns // 50_000, len(counts) - 1), minlength=len(counts))
        worst_ns = max(worst_ns, int(late_ns.max()))
    share = counts.cumsum() / counts.sum()
    marks = {name: float(np.searchsorted(share, q / 100) + 1) * 0.05 for name, q in judge.PERCENTILES.items() if name != "max"}
    got_ms = {"cpu": cpu, "n": int(counts.sum()), **marks, "max": worst_ns / MS}
    print(json.dumps(got_ms | {"scheduler": got["scheduler"]}), flush=True)


# --- what it comes to -------------------------------------------------------------------------------------------------------------
COLUMNS = {
    "receipt_to_last_ms": "receipt to last pulse",
    "receipt_to_stop_ms": "receipt to stop at the box",
    "sent_to_last_ms": "sent to last pulse",
    "sent_to_receipt_ms": "sent to receipt",
    "sent_to_answer_ms": "sent to answer",
}


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Percentiles of each column in ms."""
    return {name: judge.figures(got) for name in COLUMNS if (got := [row[name] for row in rows if row[name] is not None])}


def judged(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each promise of `budget.toml` and what became of it."""
    rows = [row for row in result["stops"] if row["counts"]]
    values = {
        "stops": float(len(rows)) if not result["quick"] else None,
        "stops that could not be made": float(max(0, result["wanted"] - len(rows))),
        "receipt to last pulse, max ms": max((row["receipt_to_last_ms"] for row in rows), default=None),
        "pulses later than 50 ms": float(sum(row["late_pulses"] for row in result["stops"])),
        "pulses, trains or dose outside limits": float(len(result["wrong"])),
    }
    goals = []
    for goal in tomllib.loads(BUDGET.read_text())["stops"]:
        value, least = values[goal["what"]], goal.get("least")
        limit = goal["most"] if least is None else least
        met = None if value is None else value <= limit if least is None else value >= limit
        goals.append({"goal": goal["what"], "value": value, "limit": limit, "at_least": least is not None, "met": met})
    return goals


def in_words(result: dict[str, Any]) -> str:
    """A table and the promises."""
    rows = [row for row in result["stops"] if row["counts"]]
    lines = [f"{len(rows)} stops in the middle of a train, {len(result['stops']) - len(rows)} more that came when none was on", WORDS]
    n_after = sum(row["pulses_after_receipt"] > 0 for row in rows)
    lines += [
        f"{n_after} of these had a pulse after the receipt (0.00 stands for none)",
        f"load: {result['load']}",
        "",
        f"{'ms':<34}" + "".join(f"{name:>9}" for name in judge.PERCENTILES),
    ]
    for name, got in result["figures_ms"].items():
        lines.append(f"{COLUMNS[name]:<34}" + "".join(f"{got[p]:>9.2f}" for p in judge.PERCENTILES))
    for one in result["timers"]:
        words = f"this machine: timer on CPU {one['cpu']}, late by"
        lines.append(f"{words:<34}"[:41] + "".join(f"{one[p]:>9.2f}" for p in judge.PERCENTILES)[len(words) - 34 :])
    lines += ["", *result["wrong"]]
    for goal in result["goals"]:
        verdict = "not measured" if goal["met"] is None else "met" if goal["met"] else "MISSED"
        value = "" if goal["value"] is None else f"{goal['value']:.4g} "
        lines.append(f"{verdict:<13}{goal['goal']}: {value}({'at least' if goal['at_least'] else 'at most'} {goal['limit']:g})")
    return "\n".join(lines)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["_timer"]:
        timer(int(words[1]))
        return 0
    parser = argparse.ArgumentParser(prog="bench.stops", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STOPS} stops")
    parser.add_argument("--stops", type=int, help=f"how many (default {STOPS})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--beds", type=int, default=4, help="at once (default 4)")
    parser.add_argument("--quiet", action="store_true", help="without the load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every stop with its stamps")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a promise of budget.toml is missed, naming each")
    args = parser.parse_args(words)
    wanted = args.stops or (QUICK_STOPS if args.quick else STOPS)
    if wanted < 1 or not 1 <= args.beds <= 16:
        parser.error("stops are at least 1, beds 1 to 16")
    result: dict[str, Any] = {
        "bench": "stops",
        "quick": args.quick or args.stops is not None,
        "seed": args.seed,
        "clinic": WORDS,
        "wanted": wanted,
    }
    result |= {"environment": environment(), "load": "none" if args.quiet else LOAD}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began_s, before_ms = time.monotonic(), stolen_ms()
    timers: list[demo.Process] = []
    with tempfile.TemporaryDirectory(prefix="calmloop-stops-") as temporary, ExitStack() as stack:
        os.environ["CALMLOOP_RUNTIME_DIR"] = temporary  # of this process and its children: no real bed is ever touched
        campaign = Stops(Path(temporary), wanted, args.seed, min(args.beds, -(-wanted // 4)))
        for cpu in sorted(os.sched_getaffinity(0)):
            timers.append(demo.Process("the timer", "bench.stops", "_timer", str(cpu)))
            stack.callback(timers[-1].end)
            timers[-1].line("was ready")
        try:
            loads = [] if args.quiet else [stack.enter_context(load.cpu()), stack.enter_context(load.disk(Path(temporary)))]
            campaign.run()
            for one in loads:
                one.check()
        except KeyboardInterrupt:
            say("interrupted")
            return 1
        except load.Unavailable as error:
            say(f"bench.stops: {error}")
            return 1
        for one_timer in timers:
            one_timer.send("enough")
        result["timers"] = [one_timer.line("said how late it was") for one_timer in timers]
    result |= {"stops": campaign.rows, "wrong": campaign.wrong, "stolen_ms": stolen_ms() - before_ms}
    result["seconds"] = round(time.monotonic() - began_s, 1)
    result["figures_ms"] = figures([row for row in campaign.rows if row["counts"]])
    result["goals"] = judged(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    print(in_words(result))
    missed = [goal["goal"] for goal in result["goals"] if goal["met"] is False]
    for name in missed if args.gate else ():
        say(f"missed: {name}")
    return 1 if args.gate and missed else 0


if __name__ == "__main__":
    sys.exit(main())
