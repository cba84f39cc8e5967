"""`python -m bench.wire`: hostile frames against the wire check, judged by the virtual stimulator's decoder; and what the check costs.

Each frame begins as the lawful frame of a random pulse that is due, or as one without output. Then its content is spoilt and wrapped anew
under a right length and checksum, or its raw bytes are. What comes out of the pipe must be whole, and must be the due pulse, or have no
output, before another decoder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench import environment
from controller.wire import Pulse, WireCheck, WireError, for_driver
from drivers.base import PulseTrain
from drivers.simulated.twin import Judge, RefusedError, shape_of
from drivers.simulated.virtual_sciencemode import Box, unwrap
from drivers.stimulators.sciencemode34 import Deframer, ScienceMode34, encode_frame, encode_ll_channel_config, pulse_points

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BUDGET = Path(__file__).with_name("budget.toml")
SILENT = {(0, b"\0"), *((command, b"") for command in (4, 34, 52, 62, 68))}  # of a P24
TRAIN = PulseTrain(1, 60.0, 500, 100, 50.0, 500, 50, 100)


# --- the attack -------------------------------------------------------------------------------------------------------------------
def random_pulse(dice: random.Random) -> Pulse:
    """Anything that a P24 can do."""
    width_us, gap_us = dice.randint(10, 4095), dice.choice((0, 100, dice.randint(10, 4095)))
    return Pulse(dice.randint(1, 8), dice.randint(1, 260) * 500, width_us, gap_us)


def spoilt_content(frame: bytes, dice: random.Random) -> bytes:
    """Another command, other bits, bytes more or less; then a right length, stuffing and checksum."""
    [(number, command, content)] = Deframer().feed(frame)
    data = bytearray(content)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
        match dice.randrange(5):
            case 0 if data:
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[dice.randrange(len(data))] = dice.randrange(256)
            case 2:
                command = dice.choice((0, 2, 4, 30, 32, 50, 52, 58, 62, 68, dice.randrange(1024)))
            case 3:
                del data[dice.randint(0, len(data)) :]
            case _:
                data += dice.randbytes(dice.choice((1, 4, 4, 8)))
    return encode_frame(number, command, bytes(data))


def spoilt_bytes(frame: bytes, dice: random.Random) -> bytes:
    """Bits turned, bytes replaced, lost, doubled or put in between."""
    data = bytearray(frame)
    for _ in range(dice.choice((1, 1, 2, 3, 8))):
        at, byte = dice.randrange(len(data)), dice.choice((0xF0, 0x0F, 0x81, 0x55, dice.randrange(256)))
        match dice.randrange(5):
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                data[at] = byte
            case 2 if len(data) > 1:
                del data[at]
            case 3:
                data.insert(at, byte)
            case _:
                data += data[at:]
    return bytes(data)


def is_right(data: bytes, due: Pulse) -> str:
    """What the virtual stimulator reads: "pulse" or "silent" where it is right, "" where it is wrong."""
    try:
        _, command, content = unwrap(data)
    except RefusedError:
        return ""
    if (command, content) in SILENT:
        return "silent"
    if command != 2:
        return ""
    channel, points, result = Box("p24", 0, Judge(), bytes, dict, bytes)._read_config(content)
    if result or not points:
        return ""
    shape = shape_of(points)
    got = (channel, shape.current_ua, shape.phase_width_us, shape.interphase_gap_us)
    return "pulse" if got == due and shape.balanced and points[0][1] > 0 else ""


def attack(n_frames: int, seed: int, check: WireCheck) -> dict[str, Any]:
    """Write them all into a pipe; count what was refused, what came out, and what of that was wrong."""
    dice = random.Random(seed)
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    counts = {"frames": n_frames, "refused": 0, "pulse": 0, "silent": 0, "wrong": 0}
    examples: list[str] = []
    try:
        for _ in range(n_frames):
            due = random_pulse(dice)
            number = dice.randrange(64)
            frame = encode_ll_channel_config(number, due.channel, pulse_points(*due[1:]))
            if not dice.randrange(8):
                frame = encode_frame(number, *dice.choice(sorted(SILENT)))
            spoil = dice.choice((spoilt_content, spoilt_bytes))
            data = spoil(frame, dice)
            check.due = due
            try:
                check.write(write_fd, data)
            except WireError:
                counts["refused"] += 1
            try:
                left = os.read(read_fd, 65536)
            except BlockingIOError:
                continue
            verdict = is_right(left, due) if left == data else ""
            counts[verdict or "wrong"] += 1
            if not verdict:
                examples = [*examples[:9], f"due {due}, left {left.hex(' ')}"]
    finally:
        os.close(read_fd)
        os.close(write_fd)
    return counts | {"examples": examples}


# --- the cost ---------------------------------------------------------------------------------------------------------------------
def cost(n_repeats: int) -> dict[str, float]:
    """Of one write to /dev/null: alone, checked, and checked without having been learnt; of learning; ns and ms, medians."""
    frames = ScienceMode34("/nowhere").prepare([TRAIN])
    learnt, fresh = for_driver("rehamove3"), for_driver("rehamove3")
    began_ns = time.perf_counter_ns()
    learnt.learn(frames)
    learn_ms = (time.perf_counter_ns() - began_ns) / 1e6
    due, strongest = (1, 60_000, 500, 100), frames[-64:]
    fd = os.open(os.devnull, os.O_WRONLY)

    def checked(check: WireCheck) -> Callable[[], None]:
        def run() -> None:
            for frame in strongest:
                check.due = due
                check.write(fd, frame)

        return run

    def alone() -> None:
        for frame in strongest:
            os.write(fd, frame)

    runs = {"write_ns": alone, "checked_ns": checked(learnt), "unlearnt_ns": checked(fresh)}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_repeats):  # in turn, so that whatever else the machine does hits all alike
        for name, run in runs.items():
            began_ns = time.perf_counter_ns()
            run()
            samples[name].append((time.perf_counter_ns() - began_ns) / len(strongest))
    os.close(fd)
    medians = {name: round(median(values), 1) for name, values in samples.items()}
    return medians | {
        "added_ns": round(medians["checked_ns"] - medians["write_ns"], 1),
        "learn_ms": round(learn_ms, 1),
        "learnt": len(frames),
    }


# --- the command ------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Goal:
    """A line of `budget.toml`, and whether it was kept."""

    goal: str
    value: float
    limit: float
    met: bool


def judged(result: dict[str, Any]) -> list[Goal]:
    """Each goal of the budget."""
    rows = tomllib.loads(BUDGET.read_text())["wire"]
    values = [(row, result[row["of"]][row["metric"]]) for row in rows]
    return [Goal(f"{row['of']}: {row['metric']}", value, row["limit"], value <= row["limit"]) for row, value in values]


def main(argv: Sequence[str] | None = None) -> int:
    """0 = done, 1 = a goal was missed and --gate given."""
    parser = argparse.ArgumentParser(prog="bench.wire", description="hostile frames against the wire check, and its cost")
    parser.add_argument("--frames", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the frames")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures and environment")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a goal of budget.toml is missed")
    args = parser.parse_args(argv)
    n_frames = max(1, args.frames // 100 if args.quick else args.frames)
    result: dict[str, Any] = {"attack": attack(n_frames, args.seed, for_driver("p24")), "cost": cost(20 if args.quick else 2000)}
    goals = judged(result)
    counts, ns = result["attack"], result["cost"]
    print(
        f"{counts['frames']:,} hostile frames (seed {args.seed}): {counts['refused']:,} refused, {counts['wrong']:,} wrong ones left; "
        f"left too: {counts['pulse']:,} that were the due pulse all the same, {counts['silent']:,} without output"
    )
    for example in counts["examples"]:
        print(f"  {example}")
    print(
        f"one write: {ns['write_ns']:.0f} ns alone, {ns['checked_ns']:.0f} ns checked (+{ns['added_ns']:.0f}), {ns['unlearnt_ns']:.0f} ns "
        f"if not learnt; learning {ns['learnt']:,.0f} frames: {ns['learn_ms']:.0f} ms"
    )
    for goal in goals:
        print(f"{'met   ' if goal.met else 'MISSED'} {goal.goal} = {goal.value:g} (limit {goal.limit:g})")
    if args.json:
        whole = result | {"seed": args.seed, "goals": [asdict(goal) for goal in goals], "environment": environment.environment()}
        args.json.write_text(json.dumps(whole, indent=1))
    missed = [goal.goal for goal in goals if not goal.met]
    for name in missed if args.gate else ():
        print(f"missed: {name}", file=sys.stderr)
    return 1 if args.gate and missed else 0


if __name__ == "__main__":
    sys.exit(main())
