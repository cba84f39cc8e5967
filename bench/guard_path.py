"""Guard's own part of the latency: from `select` saying that the loop has spoken until `os.write` of the first pulse has returned.

One process is guard, with everything real but the stimulator, which writes each pulse to a pipe and reads its acknowledgement from there.
A forked process plays the loop. `python -m bench.guard_path [--quick] [--json FILE]` prints three things:

- requests: each to an armed bed with a busy hour behind it, guard having slept before, as it does in life;
- trains: how late the later pulses of a running train leave, with heartbeats and acknowledgements in between;
- wake-ups a second: without a loop, and with one that has nothing to say but its heartbeats.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from bench import pipe_stimulator
from controller import guard as guard_module
from controller import messages, realtime, ring, settings, wire
from controller.limits import MINUTE, MS
from controller.supervisor import Event, Kind, SafetyState, Supervisor
from drivers.base import DeviceEvent, DeviceEventKind, StimulatorLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from drivers.base import PulseTrain

ROOT = Path(__file__).resolve().parents[1]
PRIORITY = 80
N_FIRST = 20  # of each cell, dropped: caches and branch predictors learn
HEARTBEAT_S = 0.01
NO_HISTORY: dict[str, Any] = {"trains": [], "minutes": [], "session": [0, 0, 0], "events": [], "auto_events": [], "lockout": ""}
BEATS_A_REQUEST = 5  # heartbeats keep guard's caches as warm as they are in life; requests themselves are rare


class PipeStimulator:
    """Writes each pulse's real frame to a pipe; what can be read there again is its acknowledgement."""

    limits = StimulatorLimits("pipe", 4, 130_000, 500, 10, 4095, 1, 500.0, 0.0)

    def __init__(self, write: Callable[[int, bytes], int] = os.write) -> None:
        self.write = write
        self.frames: dict[int, dict[int, tuple[bytes, ...]]] = {}
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        self.number = 0
        self.written_ns = 0

    def fileno(self) -> int:
        """To poll."""
        return self.read_fd

    def open(self) -> None:
        """There at once."""

    def identify(self) -> str:
        """A pipe has no number."""
        return "pipe - -"

    def prepare(self, trains: Sequence[PulseTrain]) -> tuple[bytes, ...]:
        """Encode all that `trigger` may need."""
        self.frames = pipe_stimulator.encode(trains, self.limits.current_step_ua)
        return tuple(frame for levels in self.frames.values() for frames in levels.values() for frame in frames)

    def trigger(self, train: int, current_ua: int) -> int:
        """One frame, one write."""
        number = self.number
        self.write(self.write_fd, self.frames[train][current_ua][number])
        self.written_ns = monotonic_ns()
        self.number = (number + 1) % 64
        return number

    def read_events(self) -> list[DeviceEvent]:
        """What was written is what is answered."""
        try:
            os.read(self.read_fd, 4096)
        except BlockingIOError:
            return []
        return [DeviceEvent(DeviceEventKind.ACK, (self.number - 1) % 64, 0, "pulse done")]

    def arm(self) -> None:
        """At once."""

    disarm = stop = close = arm

    def status(self) -> dict[str, object]:
        """Confirms every stop."""
        return {"stop_answered": True}


class StampedSupervisor(Supervisor):
    """The supervisor, with the times at which it was asked and had answered."""

    __slots__ = ("asked_ns", "kind", "said_ns", "sent_ns")

    def step(self, event: Event) -> Any:
        """As the supervisor's."""
        self.kind, self.sent_ns, self.asked_ns = event.kind, event.issued_ns, monotonic_ns()
        verdict = super().step(event)
        self.said_ns = monotonic_ns()
        return verdict


class StampedGuard(guard_module.Guard):
    """Guard, with the times at which it woke and began to read; `before_wait` is the bench's hand on it."""

    before_wait: Callable[[], None] = staticmethod(lambda: None)
    n_waits = 0
    woke_ns = 0
    heard_ns = 0

    def wait(self) -> Any:
        """As guard's."""
        self.n_waits += 1
        self.before_wait()
        ready = super().wait()
        self.woke_ns = monotonic_ns()
        return ready

    def hear_loop(self) -> None:
        """As guard's."""
        self.heard_ns = monotonic_ns()
        super().hear_loop()


class Bed:
    """A guard in this process, armed by events; and the state to put it back to before each trial."""

    def __init__(self, folder: str) -> None:
        view = settings.guard_view(settings.load(ROOT / "config" / "bench.toml"))
        # the longest train: most of what is measured on trains lies between its first and its last pulse
        view["trains"]["bench"] |= {"duration_us": 2_000_000, "ramp_up_us": 0, "taper_us": 0}
        self.train = view["trains"]["bench"]
        self.ring_fd = ring.create("bench", 64 << 20)
        self.reader = ring.RingReader(self.ring_fd)
        self.link, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.loop, loop = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.setblocking(False)
        control = guard_module.listen(Path(folder) / "bench.sock")
        check = wire.for_driver("rehamove3")
        self.stimulator = PipeStimulator(check.write)
        check.learn(self.stimulator.prepare([guard_module.pulse_train(train) for train in view["trains"].values()]))
        self.guard = StampedGuard(self.stimulator, check, view | {"history": NO_HISTORY}, link, control, ring.RingWriter(self.ring_fd))
        self.reader.durable = 1 << 62  # nothing here waits for a disk
        self.guard.supervisor = StampedSupervisor(self.guard.supervisor.prescription)
        self.guard.device_open = True
        self.guard.take(Event(Kind.READY, monotonic_ns(), ok=True, text=self.stimulator.identify()))
        self.idle = copy.copy(self.guard.supervisor)
        # as over the link: how guard gets its loop is no business of the bench's
        socket.send_fds(self.link, [b"loop"], [loop.fileno()])
        self.guard.hear_daemon()
        loop.close()
        now = monotonic_ns()
        self.guard.take(Event(Kind.HEARTBEAT, now, issued_ns=now, sample_ns=now, ok=True))
        self.guard.take(Event(Kind.OFFER, now, number=1))
        number = self.guard.supervisor.prescription.number
        self.guard.take(Event(Kind.ARM, now, now, number=1, event_id=number, ok=True, text="bench"))
        self.guard.take(Event(Kind.AUDITED, now))
        self.armed = copy.copy(self.guard.supervisor)
        assert self.armed.automatic
        # a busy hour: 20 events in the last 10 min, 40 before, 100 trains in the last 5 min, none in the last minute
        starts = [*(now - 60 * MINUTE + i * 75_000 * MS for i in range(40)), *(now - 9 * MINUTE + i * 24_000 * MS for i in range(20))]
        self.armed.events, self.armed.auto_events = tuple(starts), tuple(starts[::2])
        self.armed.trains = tuple((start := now - 5 * MINUTE + i * 2_000 * MS, start + 200 * MS, i * 200 * MS) for i in range(100))
        self.armed.on_time_total_ns = 100 * 200 * MS

    def rearm(self) -> None:
        """Back to the armed state, with a loop that has just given proof of life."""
        self.guard.supervisor = copy.copy(self.armed)
        self.guard.supervisor.heartbeat_ns = monotonic_ns()
        self.guard.wake_ns = 0
        for _ in self.reader.records():
            pass

    def play(self, loop: Callable[[], None]) -> None:
        """Run guard while a forked process plays the loop, until that is done."""
        pid = os.fork()
        if not pid:
            try:
                loop()
                self.link.send(b"end")
            finally:
                os._exit(0)
        try:
            self.guard.done = False
            self.guard.run()
        finally:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                if not self.guard.done:
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def pace(period_s: float, n: int) -> Iterator[int]:
    """Count to n, one each period."""
    at = time.monotonic()
    for i in range(n):
        at += period_s
        time.sleep(max(0.0, at - time.monotonic()))
        yield i


def ask(bed: Bed, number: int) -> None:
    """One request as the loop sends it; its time of decision is the time of sending."""
    now = monotonic_ns()
    current_ua, duration_us = bed.train["current_ua"], bed.train["duration_us"]
    bed.loop.send(messages.ToGuard(messages.REQUEST, now, now, number, number, 0, current_ua, duration_us, 1).pack())


def beat(bed: Bed) -> None:
    """One heartbeat."""
    now = monotonic_ns()
    bed.loop.send(messages.ToGuard(messages.HEARTBEAT, now, now, ok=1).pack())


def bench_requests(bed: Bed, n: int) -> dict[str, list[float]]:
    """Each request to a bed that is armed anew; µs of each stage."""
    rows: list[tuple[int, ...]] = []

    def before_wait() -> None:
        g, s = bed.guard, bed.guard.supervisor
        if s.kind is Kind.REQUEST:
            assert s.state is SafetyState.STIMULATING, s.reason
            rows.append((s.sent_ns, g.woke_ns, g.heard_ns, s.asked_ns, s.said_ns, bed.stimulator.written_ns, monotonic_ns()))
            bed.rearm()
        bed.guard.supervisor.kind = Kind.TICK

    def loop() -> None:
        for i in pace(HEARTBEAT_S / 2, (n + N_FIRST) * BEATS_A_REQUEST * 2):
            if i % 2:
                beat(bed)
            elif i % (2 * BEATS_A_REQUEST) == 0:
                ask(bed, i + 1)

    bed.rearm()
    bed.guard.before_wait = before_wait
    bed.play(loop)
    rows = rows[N_FIRST:]
    stages = {
        "sent -> written": (0, 5),
        "sent -> select returned": (0, 1),
        "select -> written": (1, 5),
        "  select -> heard": (1, 2),
        "  recv, unpack, Event": (2, 3),
        "  step": (3, 4),
        "  obey": (4, 5),
        "after the write": (5, 6),
    }
    return {name: [(row[b] - row[a]) / 1e3 for row in rows] for name, (a, b) in stages.items()}


def bench_trains(bed: Bed, n: int) -> dict[str, list[float]]:
    """Trains of 2 s at 50 Hz beside heartbeats; µs from when a pulse was due until it was written."""
    late: list[float] = []
    woke: list[float] = []
    beats: list[float] = []
    period_ns = bed.armed.prescription.trains[0].period_ns
    last_ns = 0

    def before_wait() -> None:
        nonlocal last_ns
        s, written_ns = bed.guard.supervisor, bed.stimulator.written_ns
        if written_ns != last_ns and s.state is SafetyState.STIMULATING:
            k = s.pulse - 1
            if k:
                due_ns = s.train_start_ns + k * period_ns
                woke.append((bed.guard.woke_ns - due_ns) / 1e3)
                late.append((written_ns - due_ns) / 1e3)
        elif s.kind is Kind.HEARTBEAT:
            beats.append((monotonic_ns() - bed.guard.woke_ns) / 1e3)
        last_ns = written_ns
        s.kind = Kind.TICK
        if s.state is SafetyState.ARMED and s.pulses_total > bed.armed.pulses_total:
            bed.rearm()

    def loop() -> None:
        for i in range(n):
            ask(bed, i + 1)
            for _ in pace(HEARTBEAT_S * 1.03, 202):  # so that they meet the pulses in every phase
                beat(bed)

    bed.rearm()
    bed.guard.before_wait = before_wait
    bed.play(loop)
    return {"due -> written": late, "  due -> select returned": woke, "select -> heartbeat done": beats}


def bench_idle(bed: Bed, seconds: float) -> dict[str, float]:
    """How often guard wakes when nothing happens, and what that costs."""
    out: dict[str, float] = {}
    bed.guard.before_wait = lambda: None

    def silence() -> None:
        time.sleep(seconds)

    def beats() -> None:
        for _ in pace(HEARTBEAT_S, round(seconds / HEARTBEAT_S)):
            beat(bed)

    for name, state, loop in (("idle, no heartbeat", bed.idle, silence), ("armed, heartbeats", bed.armed, beats)):
        bed.rearm()
        bed.guard.supervisor = copy.copy(state)
        bed.guard.n_waits = 0
        cpu_s, start_s = time.process_time(), time.monotonic()
        bed.play(loop)
        elapsed_s = time.monotonic() - start_s
        out[f"wake-ups a second: {name}"] = (bed.guard.n_waits - 2) / elapsed_s  # but for the last word
        out[f"CPU, % of a core: {name}"] = (time.process_time() - cpu_s) / elapsed_s * 100
    return out


def figures(values: list[float]) -> dict[str, float]:
    """p50, p95, p99, max."""
    cuts = quantiles(values, n=100)
    return {"n": len(values), "p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(values)}


def main() -> int:
    """The bench."""
    parser = argparse.ArgumentParser(prog="bench.guard_path", description="guard's own part of the latency")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--json", metavar="FILE", help="raw figures and environment")
    args = parser.parse_args()
    n = 200 if args.quick else 2000
    got = realtime.ask(PRIORITY, [max(os.sched_getaffinity(0))])  # loop and guard share a processor, as in the configurations
    with tempfile.TemporaryDirectory() as folder:
        bed = Bed(folder)
        realtime.freeze()
        raw = bench_requests(bed, n) | bench_trains(bed, n // 400 + 1)
        idle = bench_idle(bed, 1.0 if args.quick else 3.0)
    table = {name: figures(values) for name, values in raw.items()}
    print(f"{'us':<28}{'n':>7}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>10}")
    for name, row in table.items():
        print(f"{name:<28}{row['n']:>7}{row['p50']:>9.1f}{row['p95']:>9.1f}{row['p99']:>9.1f}{row['max']:>10.1f}")
    for name, value in idle.items():
        print(f"{name:<48}{value:>8.2f}")
    print(", ".join(got.values()))
    if args.json:
        environment = {
            "python": sys.version.split()[0],
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg(),
            "realtime": got,
        }
        result = {"environment": environment, "figures": table, "idle": idle, "raw_us": raw}
        Path(args.json).write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
