"""What every virtual stimulator shares: the pty it is served on, the judge of its pulses, its calendar, its log.

`python -m drivers.simulated.twin NAME --log FILE` serves one and prints a JSON line with its port; without NAME, a RehaMove3. Each box
reads its own protocol (`virtual_*.py`) from the maker's documents: it imports nothing of ours but this file, least of all the driver, and
no driver imports it, so an encoder's error shows here. All times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import tty
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

RATE_TOLERANCE_NS = 1_000_000
MIN_PHASE_US = 20
MAX_CHARGE_NC = 30_000
MAX_RECORD_US = 2**31 - 1
PULSE_RECORD = struct.Struct("<qqiiii")  # received_ns, pulse_ns, current_ua, phase_width_us, channel, number

FAULTS = ("lost-ack", "late-ack", "duplicate-ack", "electrode-error", "crc-error", "e-stop", "reset", "hang", "hangup")

TWINS = {  # by the name that settings give the driver: module and class
    "rehamove3": ("drivers.simulated.virtual_sciencemode", "Box"),
    "p24": ("drivers.simulated.virtual_sciencemode", "Box"),
    "sciencemode2": ("drivers.simulated.virtual_sciencemode2", "Box"),
    "sciencemode1": ("drivers.simulated.virtual_sciencemode1", "Box"),
    "pulsepal": ("drivers.simulated.virtual_pulsepal", "Box"),
    "ttl-byte": ("drivers.simulated.virtual_ttl", "Box"),
    "ttl-cedrus": ("drivers.simulated.virtual_ttl", "Box"),
    "ttl-line": ("drivers.simulated.virtual_ttl", "Box"),
    "motimove": ("drivers.simulated.virtual_motimove", "Box"),
}


class RefusedError(Exception):
    """Bytes that the box does not take; `number` and `command` where they could still be read."""

    def __init__(self, reason: str, number: int = -1, command: int = -1) -> None:
        super().__init__(reason)
        self.number = number
        self.command = command


# --- the judge --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Shape:
    """What the points of one Ll_channel_config make on the skin."""

    current_ua: int
    phase_width_us: int
    interphase_gap_us: int
    duration_us: int
    charge_nc: float
    balanced: bool


def shape_of(points: list[tuple[int, int]]) -> Shape:
    """Reduce points (duration in µs, current in half mA) to phases: neighbours of one sign are one phase."""
    played = [(max(duration_us, 10), half_ma) for duration_us, half_ma in points]  # the box plays anything shorter as 10 µs
    runs = [(sign, list(run)) for sign, run in groupby(played, key=lambda point: (point[1] > 0) - (point[1] < 0))]
    phases = [run for sign, run in runs if sign]
    charges = [sum(duration_us * half_ma for duration_us, half_ma in run) for run in phases]
    inner = [index for index, (sign, _) in enumerate(runs) if sign]
    gaps = [run for sign, run in runs[inner[0] : inner[-1]] if not sign] if inner else []
    return Shape(
        current_ua=max(abs(half_ma) for _, half_ma in played) * 500,
        phase_width_us=max((sum(duration_us for duration_us, _ in run) for run in phases), default=0),
        interphase_gap_us=sum(duration_us for run in gaps for duration_us, _ in run),
        duration_us=sum(duration_us for duration_us, _ in played),
        charge_nc=max((abs(charge) for charge in charges), default=0) / 2,
        balanced=sum(charges) == 0,
    )


@dataclass
class Judge:
    """Its own table of limits, and what it has seen. It judges what was decoded, not what was meant; rates are per channel."""

    max_current_ua: int = 60_000
    max_phase_us: int = 1000
    max_rate_hz: float = 100.0
    pulses: int = 0
    seen_current_ua: int = 0
    seen_charge_nc: float = 0.0
    seen_rate_hz: float = 0.0
    outside_limits: int = 0
    unbalanced: int = 0
    frames_accepted: int = 0
    frames_refused: int = 0
    pulses_dropped: int = 0
    answers_lost: int = 0
    records_lost: int = 0
    last_pulse_ns: dict[int, int] = field(default_factory=dict)

    def judge(self, shape: Shape, channel: int, pulse_ns: int) -> list[str]:
        """Count one pulse; return the names of the limits it breaks."""
        last_ns = self.last_pulse_ns.get(channel)
        self.last_pulse_ns[channel] = pulse_ns
        spacing_ns = pulse_ns - last_ns if last_ns is not None else None
        broken = {
            "current": shape.current_ua > self.max_current_ua,
            "phase": not MIN_PHASE_US <= shape.phase_width_us <= self.max_phase_us,
            "charge": shape.charge_nc > MAX_CHARGE_NC,
            "rate": spacing_ns is not None and spacing_ns < 1e9 / self.max_rate_hz - RATE_TOLERANCE_NS,
            "balance": not shape.balanced,
        }
        self.pulses += 1
        self.seen_current_ua = max(self.seen_current_ua, shape.current_ua)
        self.seen_charge_nc = max(self.seen_charge_nc, shape.charge_nc)
        if spacing_ns is not None:
            self.seen_rate_hz = max(self.seen_rate_hz, 1e9 / max(spacing_ns, 1))
        self.outside_limits += any(broken.values())
        self.unbalanced += not shape.balanced
        return [name for name, is_broken in broken.items() if is_broken]

    def summary(self) -> dict[str, object]:
        """The verdict, for the last line of the log."""
        return {
            "pulses": self.pulses,
            "max_current_ma": self.seen_current_ua / 1e3,
            "max_charge_nc": self.seen_charge_nc,
            "max_rate_hz": round(self.seen_rate_hz, 3),
            "outside_limits": self.outside_limits,
            "unbalanced": self.unbalanced,
            "frames_accepted": self.frames_accepted,
            "frames_refused": self.frames_refused,
            "pulses_dropped": self.pulses_dropped,
            "answers_lost": self.answers_lost,
            "records_lost": self.records_lost,
        }


# --- a box ------------------------------------------------------------------------------------------------------------------------
class Twin:
    """A stimulator's firmware, apart from its protocol: `receive` bytes, then `run_due` whenever `next_due_ns` has come.

    Parameters
    ----------
    model : str
        A name of `TWINS`.
    latency_ns : int or None
        From a command's last byte to its pulse; None = as `LATENCY_NS` says.
    judge : Judge
    send : callable
        Takes the bytes of an answer.
    log : callable
        Takes one line of the log.
    publish : callable
        Takes a `PULSE_RECORD` as soon as a pulse is certain to start, unless a stop comes before it does.
    fault : tuple of (str, int)
        One of the box's `FAULTS`, and after how many pulses it strikes. "hang" and "hangup" strike once those pulses are answered, the
        others hit the pulse that follows.
    """

    LATENCY_NS: ClassVar[int] = 1_000_000
    FAULTS: ClassVar[tuple[str, ...]] = FAULTS  # those that the box can have

    def __init__(
        self,
        model: str,
        latency_ns: int | None,
        judge: Judge,
        send: Callable[[bytes], None],
        log: Callable[[dict[str, object]], None],
        publish: Callable[[bytes], None],
        fault: tuple[str, int] = ("", 0),
    ) -> None:
        self.model = model
        self.dead = ""  # "hang" or "hangup"
        self._latency_stated = latency_ns is None
        self._latency_ns = self.LATENCY_NS if latency_ns is None else latency_ns
        self._judge = judge
        self._send = send
        self._log = log
        self._publish = publish
        self._fault, self._n_until_fault = fault
        self._due: list[tuple[int, int, str, Callable[[], None]]] = []
        self._n_due = 0
        self._n_pulses = 0
        self._begin()
        self._strike_dead()

    def _begin(self) -> None:
        """State of the box as it comes out of its carton."""

    @property
    def next_due_ns(self) -> int | None:
        """When `run_due` has something to do."""
        return self._due[0][0] if self._due else None

    def start(self, now_ns: int) -> None:
        """Switched on; some boxes speak first."""

    def receive(self, data: bytes, received_ns: int) -> None:
        """Take what one read gave."""
        raise NotImplementedError

    def run_due(self, now_ns: int) -> None:
        """Do all that has come due."""
        while self._due and self._due[0][0] <= now_ns and not self.dead:
            heapq.heappop(self._due)[3]()

    def _at(self, due_ns: int, kind: str, action: Callable[[], None]) -> None:
        self._n_due += 1
        heapq.heappush(self._due, (due_ns, self._n_due, kind, action))

    def _cancel(self, from_ns: int, *kept: str) -> None:
        """Nothing starts at or after `from_ns`, and nothing pending is answered, apart from the kinds in `kept`."""
        self._judge.pulses_dropped += sum(kind == "pulse" and due_ns >= from_ns for due_ns, _, kind, _ in self._due)
        self._due = [it for it in self._due if it[2] in kept or (it[2] == "pulse" and it[0] < from_ns)]
        heapq.heapify(self._due)

    def _refuse(self, reason: str, raw: bytes, received_ns: int) -> None:
        """Count and log bytes that are not taken."""
        self._judge.frames_refused += 1
        self._log({"refused": reason, "bytes": raw.hex(" "), "received_ns": received_ns})

    def _next_fault(self) -> str:
        """The fault that hits the pulse that is now accepted, empty = none; counts the pulse."""
        strike = self._fault if self._n_pulses == self._n_until_fault else ""
        self._n_pulses += 1
        return strike

    def _pulse_at(self, shape: Shape, channel: int, number: int, received_ns: int, wire_ns: int, pulse_ns: int, **more: object) -> None:
        """Publish a pulse that will start at `pulse_ns`; when it does, judge and log it."""
        felt_us = min(shape.phase_width_us, MAX_RECORD_US)  # a Pulse Pal can be told to play for an hour; the log has all of it
        self._publish(PULSE_RECORD.pack(received_ns, pulse_ns, shape.current_ua, felt_us, channel, number))

        def play() -> None:
            outside = self._judge.judge(shape, channel, pulse_ns)
            self._log(
                {
                    "received_ns": received_ns,
                    "wire_ns": wire_ns,
                    "pulse_ns": pulse_ns,
                    "number": number,
                    "channel": channel,
                    "current_ua": shape.current_ua,
                    "phase_width_us": shape.phase_width_us,
                    "interphase_gap_us": shape.interphase_gap_us,
                    "charge_nc": shape.charge_nc,
                    "balanced": shape.balanced,
                    "outside": outside,
                    **more,
                }
            )

        self._at(pulse_ns, "pulse", play)

    def _strike_dead(self) -> None:
        if self._fault in ("hang", "hangup") and self._n_pulses >= self._n_until_fault:
            self.dead = self._fault
            self._due.clear()


class Wire:
    """When the last byte of what was read has arrived at the line's rate: a pty takes no time, a wire does."""

    def __init__(self, byte_ns: float) -> None:
        self._byte_ns = byte_ns
        self._free_ns = 0.0

    def arrivals(self, n_bytes: int, received_ns: int) -> list[int]:
        """Time of the end of each byte."""
        begin_ns = max(float(received_ns), self._free_ns)
        self._free_ns = begin_ns + n_bytes * self._byte_ns
        return [round(begin_ns + (i + 1) * self._byte_ns) for i in range(n_bytes)]


# --- the process ------------------------------------------------------------------------------------------------------------------
def _parse_fault(text: str) -> tuple[str, int]:
    name, _, n_pulses = text.partition("@")
    if not n_pulses.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME@N")
    return name, int(n_pulses)


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="twin", description="A virtual stimulator on a pty.")
    parser.add_argument("--log", required=True, type=Path, help="file that gets one JSON line a pulse")
    parser.add_argument("name", nargs="?", choices=sorted(TWINS), default="rehamove3", help="whose twin")
    parser.add_argument("--pulses-to", metavar="SOCKETPATH", help="unix datagram socket that is told each pulse before it starts")
    parser.add_argument("--link", type=Path, help="symbolic link to keep to the port")
    parser.add_argument("--latency-ms", type=float, help="from a command's last byte to its pulse; otherwise as its maker states")
    parser.add_argument("--max-current-ma", type=float, default=60.0, help="judge's limit")
    parser.add_argument("--max-phase-us", type=int, default=1000, help="judge's limit")
    parser.add_argument("--max-rate-hz", type=float, default=100.0, help="judge's limit")
    parser.add_argument("--fault", type=_parse_fault, default=("", 0), metavar="NAME@N", help="after N pulses: " + ", ".join(FAULTS))
    parser.add_argument("--lifeline", action="store_true", help="end when stdin does")
    options = parser.parse_args(arguments)
    options.latency_ns = None if options.latency_ms is None else round(options.latency_ms * 1e6)
    module, class_name = TWINS[options.name]
    options.box = getattr(import_module(module), class_name)
    if options.fault[0] not in ("", *options.box.FAULTS):
        parser.error(f"--fault {options.fault[0]!r} is none that a {options.name} can have: {', '.join(options.box.FAULTS)}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Serve one box on a pty until SIGTERM, SIGINT or, with --lifeline, the end of stdin."""
    options = _parse_arguments(arguments)
    judge = Judge(round(options.max_current_ma * 1e3), options.max_phase_us, options.max_rate_hz)
    log_fd = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    records = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    alarm_fd, bell_fd = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(bell_fd)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # We keep the client's end open too: a client that leaves must look like an idle line, not like an unplugged one.
    master_fd, slave_fd = os.openpty()
    tty.setraw(slave_fd)
    os.set_blocking(master_fd, False)
    port = os.ttyname(slave_fd)

    def log(line: dict[str, object]) -> None:
        os.write(log_fd, json.dumps(line).encode() + b"\n")

    def send(answer: bytes) -> None:
        try:
            n_sent = os.write(master_fd, answer)
        except BlockingIOError:
            n_sent = 0
        judge.answers_lost += n_sent != len(answer)

    def publish(record: bytes) -> None:
        if options.pulses_to:
            try:
                records.sendto(record, options.pulses_to)
            except OSError:
                judge.records_lost += 1

    box: Twin = options.box(options.name, options.latency_ns, judge, send, log, publish, options.fault)
    if options.link:
        options.link.unlink(missing_ok=True)
        options.link.symlink_to(port)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(75))
    except OSError as error:
        print(f"twin: no real-time priority ({error.strerror})", file=sys.stderr)
    print(json.dumps({"ready": True, "port": port, "pid": os.getpid()}), flush=True)
    box.start(time.monotonic_ns())

    watched = [master_fd, alarm_fd] + ([sys.stdin.fileno()] if options.lifeline else [])
    while True:
        if box.dead and master_fd in watched:
            watched.remove(master_fd)
            if box.dead == "hangup":
                os.close(slave_fd)
                os.close(master_fd)
        wait_s = None if box.next_due_ns is None else max(0, box.next_due_ns - time.monotonic_ns()) / 1e9
        ready, _, _ = select.select(watched, [], [], wait_s)  # select, since poll() rounds up to whole milliseconds
        now_ns = time.monotonic_ns()
        box.run_due(now_ns)
        if alarm_fd in ready:
            break
        if options.lifeline and sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            break
        if master_fd in ready and not box.dead:
            try:
                data = os.read(master_fd, 4096)
            except BlockingIOError:  # the client took its bytes back (tcflush)
                continue
            box.receive(data, time.monotonic_ns())
    log({"summary": judge.summary()})
    if options.link:
        options.link.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
