"""`python -m bench.stimulators`: what a pulse costs the caller, and when its last byte is read and known, against other ways to write it.

Each driver of the registry arms with its own twin, in a peer process at the other end of a pty. Then the twin falls silent: the peer reads
frame after frame, stamps the last byte with CLOCK_MONOTONIC, compares all of them with what is due, and only then the next is written.

- `trigger`: our driver's, its bytes straight to `os.write`;  `checked`: through the wire check, as guard does it
- `os.write`: the same bytes, nothing around them
- `pyserial`, `pyserial no wait`: `Serial.write` of the same bytes, as it comes and with `write_timeout=0`
- `science-mode-4` (P24 alone): the package's awaited call; the peer answers it as soon as it has stamped
- `pipe`: the same bytes through a pipe instead of the pty: what the hop to another process takes at least

Blocks of all of these follow one another in random order, round after round, so whatever else the machine does hits all alike: only ratios
are promised (`budget.toml`). A pty has no line rate and no USB: wire and device times come on top, the same for all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import struct
import subprocess
import sys
import time
import tomllib
import tty
from contextlib import ExitStack
from pathlib import Path
from select import select
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from bench import boxes, judge
from bench.environment import alone, environment, scheduling, stolen_ms
from bench.job import GUARD_PRIORITY
from controller import realtime, wire
from drivers import stimulators
from drivers.base import DriverError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BUDGET = Path(__file__).with_name("budget.toml")
ROOT = Path(__file__).resolve().parents[1]
ROUNDS, QUICK_ROUNDS = 100, 3
BLOCK, AWAITED_BLOCK = 50, 5  # an awaited call takes 10 ms
WARM = 5  # first of a block: they do not count
STAMP = struct.Struct("<q?")
PATIENCE_S = 10.0
FIGURES = ("p50", "p95", "p99", "max")


class PeerError(Exception):
    """The other end is gone, or read something else than what was due."""


# --- the other end ----------------------------------------------------------------------------------------------------------------
def peer(name: str, hop_fd: int, priority: int) -> None:
    """A twin until the first order, then orders: read these frames from there, stamp and compare each."""
    realtime.die_with_parent()
    realtime.ask(priority)
    master_fd, slave_fd = os.openpty()
    tty.setraw(slave_fd)
    twin = boxes.box(name, lambda answer: os.write(master_fd, answer))
    print(json.dumps({"port": os.ttyname(slave_fd)}), flush=True)
    twin.start(monotonic_ns())
    while True:
        due_ns = twin.next_due_ns
        ready, _, _ = select([master_fd, 0], [], [], None if due_ns is None else max(0.0, (due_ns - monotonic_ns()) / 1e9))
        if 0 in ready:  # first: what is on the pty by now belongs to the order
            break
        twin.run_due(monotonic_ns())
        if master_fd in ready:
            twin.receive(os.read(master_fd, 4096), monotonic_ns())
    realtime.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        fd = hop_fd if order["from"] == "pipe" else master_fd
        for frame, answer in zip(map(bytes.fromhex, order["frames"]), map(bytes.fromhex, order["answers"]), strict=True):
            data = b""
            while len(data) < len(frame):
                data += os.read(fd, 4096)
            stamp_ns = monotonic_ns()
            right = data == frame
            if answer:
                os.write(master_fd, answer)
            os.write(1, STAMP.pack(stamp_ns, right))


class Peer:
    """The process of `peer`, seen from here."""

    def __init__(self, name: str, priority: int) -> None:
        read_fd, self.hop_fd = os.pipe()
        command = [sys.executable, "-m", "bench.stimulators", "_peer", name, str(read_fd), str(priority)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(read_fd,), cwd=ROOT)
        os.close(read_fd)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.orders, self.stamps = self.process.stdin, self.process.stdout
        line = self.stamps.readline()
        if not line:
            raise PeerError(f"the peer of {name} did not begin")
        self.port: str = json.loads(line)["port"]

    def expect(self, frames: Sequence[bytes], answers: Sequence[bytes] = (), source: str = "pty") -> None:
        """Order so many frames to be read."""
        order = {"from": source, "frames": [it.hex() for it in frames], "answers": [it.hex() for it in answers or [b""] * len(frames)]}
        self.orders.write(json.dumps(order).encode() + b"\n")
        self.orders.flush()

    def stamp_ns(self) -> int:
        """When the last byte of the next frame was read. Raises `PeerError`."""
        if not select([self.stamps], [], [], PATIENCE_S)[0]:
            raise PeerError("a frame did not arrive")
        stamp_ns, right = STAMP.unpack(os.read(self.stamps.fileno(), STAMP.size))
        if not right:
            raise PeerError("other bytes arrived than were due")
        return int(stamp_ns)

    def end(self) -> None:
        """Leave no process behind."""
        self.process.kill()
        self.process.wait()
        self.orders.close()
        self.stamps.close()
        os.close(self.hop_fd)


# --- the ways to write ------------------------------------------------------------------------------------------------------------
class Bench:
    """One driver, armed, and all ways to write its frames.

    Attributes
    ----------
    ways : dict
        By name: a call that writes the next frame.
    """

    def __init__(self, name: str, priority: int, stack: ExitStack) -> None:
        self.name = name
        self.peer = Peer(name, priority)
        stack.callback(self.peer.end)
        self.check = wire.for_driver(name, boxes.options(name))
        self.device: Any = stimulators.load(name, self.peer.port, self.check.write, boxes.options(name))
        train = boxes.train(name)
        self.current_ua = round(train.current_ma * 1000)
        self.due = (train.channel, self.current_ua, train.phase_width_us, train.interphase_gap_us)
        stack.callback(self.device.close)
        self.device.open()
        self.check.learn(self.device.prepare([train]))
        self.device.arm()
        self.check.due = self.due
        self.device.trigger(0, self.current_ua)  # a box that keeps the pulse has it from now on
        boxes.listen(self.device)
        self.frames = self._frames()
        self.at = 0  # of those who have no packet number of their own
        self.ways: dict[str, Callable[[], object]] = {
            "trigger": self._trigger,
            "checked": self._checked,
            "os.write": self._plain(os.write, self.device.fileno()),
            "pipe": self._plain(os.write, self.peer.hop_fd),
        }
        self._add_pyserial(stack)
        if name == "p24":
            self._add_science_mode_4(stack)

    def _frames(self) -> list[bytes]:
        """What `trigger` writes under each packet number."""
        written: list[bytes] = []
        self.device._write = lambda _, data: written.append(data) or len(data)
        numbers = [self.device.trigger(0, self.current_ua) for _ in range(self.device._n_numbers)]
        if len(written) != len(numbers):
            raise PeerError(f"{self.name}: {len(numbers)} pulses were {len(written)} writes")
        return [frame for _, frame in sorted(zip(numbers, written, strict=True))]

    def _trigger(self) -> None:
        self.device.trigger(0, self.current_ua)

    def _checked(self) -> None:
        self.check.due = self.due
        self.device.trigger(0, self.current_ua)

    def _plain(self, write: Callable[[int, bytes], object], fd: int) -> Callable[[], object]:
        return lambda: write(fd, self.frames[self.at])

    def _add_pyserial(self, stack: ExitStack) -> None:
        import serial

        line = self.device.LINE  # but its parity: a pty has none, and refuses it from whoever asks in vain
        for way, timeout_s in (("pyserial", None), ("pyserial no wait", 0)):
            port = serial.Serial(self.peer.port, line.baud, stopbits=line.stop_bits, rtscts=line.rts_cts, write_timeout=timeout_s)
            stack.enter_context(port)
            self.ways[way] = lambda port=port: port.write(self.frames[self.at])

    def _add_science_mode_4(self, stack: ExitStack) -> None:
        """The same pulse in the package's own words."""
        from science_mode_4.device_p24 import DeviceP24
        from science_mode_4.low_level.low_level_channel_config import PacketLowLevelChannelConfig
        from science_mode_4.protocol.channel_point import ChannelPoint
        from science_mode_4.protocol.types import Channel, Connector
        from science_mode_4.utils.logger import logger
        from science_mode_4.utils.serial_port_connection import SerialPortConnection

        logger().disabled = True  # as its HINTS.md says, for speed
        link = SerialPortConnection(self.peer.port)
        link.open()
        stack.callback(link.close)
        layer = DeviceP24(link).get_layer_low_level()
        _, current_ua, width_us, gap_us = self.due
        packet = PacketLowLevelChannelConfig()
        packet.execute_stimulation, packet.channel, packet.connector = True, Channel.RED, Connector.YELLOW
        packet.points = [ChannelPoint(us, ma) for us, ma in ((width_us, current_ua / 1e3), (gap_us, 0), (width_us, -current_ua / 1e3))]
        self.at_theirs = lambda: (layer._packet_number_generator._current_number + 1) % 64
        self.ways["science-mode-4"] = lambda: layer.send_packet_and_wait(packet)

    # --- one block --------------------------------------------------------------------------------------------------------------
    def block(self, way: str, n: int) -> tuple[list[int], list[int]]:
        """(ns in the call, ns from its begin until the last byte was read), `n` times."""
        if way == "science-mode-4":
            return asyncio.run(self._awaited(n))
        call, device = self.ways[way], self.device
        device._write = self.check.write if way == "checked" else os.write
        ours = way in ("trigger", "checked")
        first = device._number if ours else self.at
        self.peer.expect([self.frames[(first + i) % len(self.frames)] for i in range(n)], source="pipe" if way == "pipe" else "pty")
        call_ns, read_ns = [], []
        for _ in range(n):
            begin_ns = monotonic_ns()
            call()
            end_ns = monotonic_ns()
            stamp_ns = self.peer.stamp_ns()
            call_ns.append(end_ns - begin_ns)
            read_ns.append(stamp_ns - begin_ns)
            if not ours:
                self.at = (self.at + 1) % len(self.frames)
        return call_ns, read_ns

    async def _awaited(self, n: int) -> tuple[list[int], list[int]]:
        from drivers.simulated.virtual_sciencemode import wrap

        numbers = [(self.at_theirs() + i) % 64 for i in range(n)]
        self.peer.expect([self.frames[number] for number in numbers], [wrap(number, 3, b"\0\0\0") for number in numbers])
        call_ns, read_ns = [], []
        for _ in range(n):
            begin_ns = monotonic_ns()
            await self.ways["science-mode-4"]()  # type: ignore[misc]
            end_ns = monotonic_ns()
            call_ns.append(end_ns - begin_ns)
            read_ns.append(self.peer.stamp_ns() - begin_ns)
        return call_ns, read_ns


def measure(name: str, rounds: int, dice: random.Random, priority: int) -> dict[str, Any]:
    """Every way, round after round in random order. Raises `PeerError`, `DriverError`."""
    with ExitStack() as stack:
        bench = Bench(name, priority, stack)
        samples: dict[str, dict[str, list[list[float]]]] = {way: {"call_us": [], "read_us": []} for way in bench.ways}
        for _ in range(rounds):
            for way in dice.sample(tuple(bench.ways), len(bench.ways)):
                warm, n = (1, AWAITED_BLOCK) if way == "science-mode-4" else (WARM, BLOCK)
                for what, ns in zip(("call_us", "read_us"), bench.block(way, warm + n), strict=True):
                    samples[way][what].append([it / 1e3 for it in ns[warm:]])
        return {"n_bytes": len(bench.frames[0]), "samples": samples}


# --- what it comes to -------------------------------------------------------------------------------------------------------------
def pooled(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Percentiles over all rounds, µs."""
    return judge.figures([us for one in rounds for us in one])


def judged(drivers: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal of `budget.toml`, by the driver that is worst at it; None where nobody could be measured."""
    goals = []
    for row in tomllib.loads(BUDGET.read_text())["stimulators"]:
        ratios = {
            name: judge.ratio(row["metric"], one["samples"][row["of"]][row["what"]], one["samples"][row["against"]][row["what"]])
            for name, one in drivers.items()
            if {row["of"], row["against"]} <= one["samples"].keys()
        }
        worst = max(ratios, key=lambda name: ratios[name], default=None)
        value = None if worst is None else round(ratios[worst], 4)
        goal = f"{row['of']} / {row['against']}, {row['what']} {row['metric']}" + (f" ({worst})" if worst else "")
        goals.append({"goal": goal, "value": value, "limit": row["limit"], "met": value is not None and value <= row["limit"]})
    return goals


def in_words(result: dict[str, Any]) -> Iterator[str]:
    """A table for each driver, then the promises."""
    for name, one in result["drivers"].items():
        yield f"{name}, {one['n_bytes']} bytes{'':<12}" + "in the call, µs".rjust(28) + "until the last byte is read, µs".rjust(42)
        yield f"{'':<24}" + "".join(f"{figure:>9}" for figure in FIGURES) + f"{'':>6}" + "".join(f"{figure:>9}" for figure in FIGURES)
        for way, samples in one["samples"].items():
            call, read = pooled(samples["call_us"]), pooled(samples["read_us"])
            yield f"  {way:<22}" + "".join(f"{call[it]:>9.1f}" for it in FIGURES) + " " * 6 + "".join(f"{read[it]:>9.1f}" for it in FIGURES)
        yield ""
    yield from (f"skipped: {name}: {why}" for name, why in result["skipped"].items())
    for goal in result["goals"]:
        value = "not measured" if goal["value"] is None else f"{goal['value']:.3g}"
        yield f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']} = {value} (limit {goal['limit']:g})"


def main(argv: Sequence[str] | None = None) -> int:
    """0 = done, 1 = something could not be measured, or a goal was missed and --gate given."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["_peer"]:
        peer(words[1], int(words[2]), int(words[3]))
        return 0
    parser = argparse.ArgumentParser(prog="bench.stimulators", description="trigger() against other ways to write a pulse")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"blocks of {BLOCK} for each way and driver (default {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--only", default="", metavar="NAME", help="one driver")
    parser.add_argument("--ordinary", action="store_true", help="ask for no real-time priority")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, and the environment")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a goal of budget.toml is missed, or a driver is not there")
    args = parser.parse_args(words)
    there = tuple(name for name in stimulators.STIMULATORS if not boxes.missing(name))
    if args.only and args.only not in there:
        parser.error(f"there is no {args.only!r}; there are: {', '.join(there)}")
    priority = 0 if args.ordinary else GUARD_PRIORITY
    result: dict[str, Any] = {"bench": "stimulators", "seed": args.seed, "environment": environment(), "alone": alone()}
    result["skipped"] = {name: f"not there: {', '.join(gone)}" for name in stimulators.STIMULATORS if (gone := boxes.missing(name))}
    dice, began_s, before_ms = random.Random(args.seed), time.monotonic(), stolen_ms()
    result["drivers"], failed = {}, []
    result["realtime"] = realtime.ask(priority)
    result["scheduling"] = scheduling(os.getpid())
    for name in (args.only,) if args.only else there:
        try:
            result["drivers"][name] = measure(name, args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS), dice, priority)
        except (PeerError, DriverError, ImportError) as error:
            result["skipped"][name] = f"could not be measured: {type(error).__name__}: {error}"
            failed.append(name)
    result |= {"goals": judged(result["drivers"]), "seconds": round(time.monotonic() - began_s, 1), "stolen_ms": stolen_ms() - before_ms}
    print("\n".join(in_words(result)))
    if args.json:
        args.json.write_text(json.dumps(result))
    missed = [goal["goal"] for goal in result["goals"] if not goal["met"]] + [f"{name}: {why}" for name, why in result["skipped"].items()]
    for name in missed if args.gate else ():
        print(f"missed: {name}", file=sys.stderr)
    return 1 if failed or (args.gate and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
