"""The loop: samples in, requests out. Read this page first.

`Loop.step(chunk) -> Cycle` is the whole of the decision, live and in replay: pure, state in the object, time in the chunk. `main` is the
live process around it: pull, step, send, heartbeat, record.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING

import numpy as np

from controller import messages, realtime, recording, settings
from controller.detector import Detection, SpasmDetector
from controller.policy import Policy, StimRequest
from controller.ring import RingWriter
from drivers.base import Chunk, DriverError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.settings import Settings
    from drivers.sources.lsl import LslSource

READ_TIMEOUT_S = 0.02
HEARTBEAT_NS = 10_000_000
STALE_S = 0.05  # no sample for this long, or for ten periods, is "no data" (safety notes D1)
RING_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one step found and wants.

    Attributes
    ----------
    index : int
    detections : tuple of Detection, one per rule
    request : StimRequest or None
    sample_s : float
        Stamp of the newest sample seen so far.
    data_ok : bool
        Every configured signal is arriving, and no rule sees bad samples.
    """

    index: int
    detections: tuple[Detection, ...]
    request: StimRequest | None
    sample_s: float
    data_ok: bool


class Loop:
    """Detector, policy and nothing else."""

    def __init__(self, config: Settings) -> None:
        self.detector = SpasmDetector(config)
        self.policy = Policy(config)
        self.index = 0
        # newest stamp of each configured signal, and the age at which it is missing
        self.newest_s = {name: 0.0 for name in ("emg", "force") if getattr(config, name)}
        self.stale_s = {name: max(STALE_S, 10.0 / getattr(config, name).sample_rate_hz) for name in self.newest_s}

    def step(self, chunk: Chunk) -> Cycle:
        """Take what arrived, decide."""
        now_s = chunk.received_ns * 1e-9
        self.policy.hear(chunk.feedback)
        detections = self.detector.update(chunk, self.policy.hold_until_s)
        request = self.policy.ask(now_s, detections)
        data_ok = self.data_ok(chunk, now_s) and all(d.quality != "bad" for d in detections)
        self.index += 1
        return Cycle(self.index, detections, request, min(self.newest_s.values(), default=0.0), data_ok)

    def data_ok(self, chunk: Chunk, now_s: float) -> bool:
        """Whether every configured signal is arriving."""
        for name, t_s in (("emg", chunk.emg_t_s), ("force", chunk.force_t_s)):
            if len(t_s):
                self.newest_s[name] = float(t_s[-1])
        return all(abs(now_s - self.newest_s[name]) < self.stale_s[name] for name in self.newest_s)


def warm_up(config: Settings) -> None:
    """Run every kernel once on a loop to throw away: compiling or loading them must not happen in the first real step."""
    emg = np.zeros((8, len(config.emg.channels) if config.emg else 0))
    force = np.zeros((8, len(config.force.channels) if config.force else 0))
    t_s = 1.0 + np.arange(8.0)
    Loop(config).step(Chunk(emg, t_s, force, t_s, np.zeros((0, 3)), 0))


def to_guard(request: StimRequest, sample_s: float, decided_ns: int) -> messages.ToGuard:
    """A request in guard's words."""
    r = request
    return messages.ToGuard(
        messages.REQUEST, decided_ns, stamp_ns(sample_s), r.number, r.event_id, r.train, r.current_ua, r.duration_us, r.cause
    )


def stamp_ns(t_s: float) -> int:
    """A sample's stamp for guard; one that no clock of ours can show (it then counts as stale) must not stop the loop."""
    return int(t_s * 1e9) if abs(t_s) < 9e9 else 0


def tell(guard: socket.socket, message: messages.ToGuard) -> None:
    """Hand over without waiting: what a guard that does not read would get later would be stale anyway."""
    try:
        guard.send(message.pack())
    except BlockingIOError:
        pass


def hear(guard: socket.socket) -> NDArray[np.float64]:
    """Everything guard has said since the last step, (k, 3). Raises `ConnectionError` when guard is gone."""
    rows: list[tuple[float, float, float]] = []
    while True:
        try:
            data = guard.recv(messages.FEEDBACK.size)
        except BlockingIOError:
            return np.array(rows, np.float64).reshape(-1, 3)
        if not data:
            raise ConnectionError("guard is gone")
        code, t_ns, number = messages.FEEDBACK.unpack(data)
        rows.append((code, t_ns * 1e-9, float(number)))


def run(loop: Loop, source: LslSource, guard: socket.socket, ring: RingWriter) -> None:
    """The live loop: until guard or the daemon is gone."""
    beat_ns = 0
    while True:
        chunk = source.read(READ_TIMEOUT_S, hear(guard))
        cycle = loop.step(chunk)
        decided_ns = monotonic_ns()
        if cycle.request is not None:
            tell(guard, to_guard(cycle.request, cycle.sample_s, decided_ns))
        if decided_ns - beat_ns >= HEARTBEAT_NS:
            beat_ns = decided_ns
            tell(guard, messages.ToGuard(messages.HEARTBEAT, decided_ns, stamp_ns(cycle.sample_s), ok=int(cycle.data_ok)))
        ring.put(messages.RING_CYCLE, recording.pack_cycle(chunk, cycle, decided_ns))


def say(text: str) -> None:
    """For people: start-up troubles and last words."""
    print(f"loop: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """The loop's process: started by the daemon with guard's socket and a ring as inherited file descriptors."""
    parser = argparse.ArgumentParser(prog="controller.loop")
    parser.add_argument("--settings", required=True)
    parser.add_argument("--guard", type=int, required=True)
    parser.add_argument("--ring", type=int, required=True)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's ^C goes to everybody; the daemon decides what it means
    realtime.die_with_parent()
    config = settings.load(args.settings)
    # before the inlets are made, so that LSL's threads inherit the scheduling
    got = realtime.ask(config.realtime.loop_priority, config.realtime.cpus)
    from drivers.sources.lsl import LslSource

    guard = socket.socket(fileno=args.guard)
    guard.setblocking(False)
    ring = RingWriter(args.ring)
    loop = Loop(config)
    warm_up(config)
    try:
        source = LslSource(config.emg, config.force)
    except DriverError as error:
        say(str(error))
        return 2
    source.read(0.5)  # what waited in the buffers while we set up is old
    ring.put(messages.RING_LOOP_NOTE, json.dumps({"pid": os.getpid(), "realtime": got}).encode())
    realtime.freeze()
    try:
        run(loop, source, guard, ring)
    except (ConnectionError, BrokenPipeError):
        pass  # guard is gone, so there is nobody to ask; the daemon, or guard's last words, say why
    return 0


if __name__ == "__main__":
    sys.exit(main())
