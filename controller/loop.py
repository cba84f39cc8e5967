"""The loop: samples in, requests out. Read this page first.

`step` is the whole of the decision, live and in replay: pure, state in its arguments, time in the chunk. `run` is the live loop around
it: pull, hear guard, step, tell guard, record. Both are compiled and go without the interpreter, so that between a sample's arrival and
the request's leaving there is machine code alone (latency notes: as fast as C). `Loop.step` is `step` for Python: replay and tests.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from controller import artefact, compiled_ring, kernels, messages, policy, realtime, ring, settings, streams
from controller.detector import Detection, SpasmDetector
from controller.policy import StimRequest, request_of
from controller.recording import CYCLE
from drivers import native
from drivers.base import Chunk, DriverError
from drivers.sources import lsl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.settings import Settings

READ_TIMEOUT_S = 0.02
HEARTBEAT_NS = 10_000_000
RING_BYTES = 32 << 20
MAX_FEEDBACK = 64  # of guard's words heard in one step; more wait for the next
GUARD_GONE, STREAM_LOST, STREAM_FAULT, ENOUGH = range(4)  # how `run` ended
FOREVER = 1 << 62

BED = np.dtype([("index", np.int64)], align=True)
TO_GUARD = np.dtype([(name, np.int64) for name in messages.ToGuard._fields], align=True)
FROM_GUARD = np.dtype([("code", np.float64), ("t_ns", np.int64), ("number", np.int64)], align=True)  # as messages.FEEDBACK


class BedState(NamedTuple):
    """Everything that one step leaves to the next.

    Attributes
    ----------
    bed : (1,) BED
        Number of steps.
    emg, force : (1,) streams.STREAM
        Whether these signals arrive as they should.
    newest_s : (n_rules + n_joins,) float64
        Newest stamp of each rule's signal; of a join's signals the one that is furthest behind.
    """

    bed: NDArray[np.void]
    emg: NDArray[np.void]
    force: NDArray[np.void]
    newest_s: NDArray[np.float64]
    detector: kernels.DetectorState
    policy: policy.PolicyState


def bed_state(config: Settings, detector: SpasmDetector) -> BedState:
    """A bed that has seen nothing yet."""
    emg, force = (streams.stream(signal.sample_rate_hz if signal else 0.0) for signal in (config.emg, config.force))
    return BedState(np.zeros(1, BED), emg, force, np.zeros(len(config.rows)), detector.state, policy.state(config))


# --- the decision -----------------------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def step(s, emg_uv, emg_t_s, force, force_t_s, feedback, received_ns, cycle):
    """Take what arrived, decide. `s` is a `BedState`, then come the fields of a `Chunk`; the decision goes into `cycle`, a `CYCLE`."""
    now_s = received_ns * 1e-9
    bed, emg_stream, force_stream, n_emg_rules = s.bed[0], s.emg[0], s.force[0], s.detector.emg.shape[0]
    streams.watch(emg_stream, emg_t_s, now_s)
    streams.watch(force_stream, force_t_s, now_s)
    policy.hear(s.policy, feedback)
    p = s.policy.policy[0]
    artefact.hear(s.detector.own, feedback, p.number, p.alike_from_s, p.alike_until_s)
    kernels.update(s.detector, emg_uv, emg_t_s, force, force_t_s, p.hold_until_s, p.look_from_s)
    n_rules = n_emg_rules + s.detector.force.shape[0]
    s.newest_s[:n_emg_rules], s.newest_s[n_emg_rules:n_rules] = emg_stream.newest_s, force_stream.newest_s
    for i in range(s.detector.joins.shape[0]):
        s.newest_s[n_rules + i] = s.detector.joins[i].newest_s
    believed = emg_stream.state <= streams.FINE and force_stream.state <= streams.FINE
    policy.ask(s.policy, now_s, s.newest_s, s.detector.seen, believed, cycle)
    bed.index += 1
    cycle.index, cycle.received_ns, cycle.decided_ns = bed.index, received_ns, received_ns
    cycle.n_emg, cycle.n_emg_channels = emg_uv.shape
    cycle.n_force, cycle.n_force_channels = force.shape
    cycle.n_feedback, cycle.n_rules = feedback.shape[0], s.detector.seen.shape[0]
    cycle.emg_state, cycle.force_state = emg_stream.state, force_stream.state
    cycle.data_ok, cycle.sample_s = data_state(s)


@njit(cache=True, nogil=True)
def data_state(s):
    """Whether every configured signal arrives as it should and no rule sees bad samples; newest stamp of the furthest behind."""
    ok, sample_s = True, np.inf
    for stream in (s.emg[0], s.force[0]):
        if stream.rate_hz > 0.0:
            ok = ok and stream.state == streams.FINE
            sample_s = min(sample_s, stream.newest_s)
    for i in range(s.detector.seen.shape[0]):
        ok = ok and s.detector.seen[i, kernels.QUALITY] != kernels.QUALITY_BAD
    return ok, sample_s


# --- live -------------------------------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def run(s, emg, force, guard_fd, ring, io, last_index):
    """The live loop, from sample to request without the interpreter; ends when guard or a stream is gone, or after `last_index` steps.

    Parameters
    ----------
    emg, force : lsl.Inlet
        The first that exists is waited for, the other is drained.
    guard_fd : int
        Socket to guard; ring : CompiledRing to the daemon; io : Io, scratch.

    Returns
    -------
    int
        GUARD_GONE, STREAM_LOST, STREAM_FAULT or ENOUGH.
    """
    bed, cycle, beat_ns = s.bed[0], io.cycle[0], 0
    emg_timeout_s, force_timeout_s = (READ_TIMEOUT_S, 0.0) if emg.handle else (0.0, READ_TIMEOUT_S)
    while bed.index < last_index:
        n_emg, n_force = lsl.pull(emg, emg_timeout_s), lsl.pull(force, force_timeout_s)
        received_ns = native.monotonic_ns(io.clock)
        n_feedback = hear(guard_fd, io)
        if n_feedback < 0:
            return GUARD_GONE
        emg_uv, emg_t_s, newtons, force_t_s = emg.values[:n_emg], emg.t_s[:n_emg], force.values[:n_force], force.t_s[:n_force]
        feedback = io.feedback[:n_feedback]
        step(s, emg_uv, emg_t_s, newtons, force_t_s, feedback, received_ns, cycle)
        cycle.decided_ns = native.monotonic_ns(io.clock)
        if cycle.request:
            tell(guard_fd, io, messages.REQUEST, cycle.evidence_s)
        if cycle.decided_ns - beat_ns >= HEARTBEAT_NS:
            beat_ns = cycle.decided_ns
            tell(guard_fd, io, messages.HEARTBEAT, cycle.sample_s)
        record(ring, io.cycle, emg_uv, emg_t_s, newtons, force_t_s, feedback, s.detector.seen)
        if emg.error[0] < 0 or force.error[0] < 0:
            return STREAM_LOST
        if s.emg[0].lost or s.force[0].lost:
            return STREAM_FAULT
    return ENOUGH


class Io(NamedTuple):
    """Scratch of `run`: what it reads, decides and sends.

    Attributes
    ----------
    cycle : (1,) CYCLE
    clock : (2,) int64
    to_guard : (1,) TO_GUARD
    from_guard : (1,) FROM_GUARD
    feedback : (MAX_FEEDBACK, 3) float64
    """

    cycle: NDArray[np.void]
    clock: NDArray[np.int64]
    to_guard: NDArray[np.void]
    from_guard: NDArray[np.void]
    feedback: NDArray[np.float64]


def scratch() -> Io:
    """Room for one `run`."""
    return Io(np.zeros(1, CYCLE), np.zeros(2, np.int64), np.zeros(1, TO_GUARD), np.zeros(1, FROM_GUARD), np.zeros((MAX_FEEDBACK, 3)))


@njit(cache=True, nogil=True)
def hear(guard_fd, io):
    """What guard has said since the last step, into `io.feedback`; returns the number of rows, -1 = guard is gone."""
    said = io.from_guard[0]
    for k in range(MAX_FEEDBACK):
        n_bytes = native.receive(guard_fd, io.from_guard)
        if n_bytes == 0:
            return -1
        if n_bytes < 0:
            return k
        io.feedback[k, 0], io.feedback[k, 1], io.feedback[k, 2] = said.code, said.t_ns * 1e-9, said.number
    return MAX_FEEDBACK


@njit(cache=True, nogil=True)
def tell(guard_fd, io, kind, sample_s):
    """Hand over without waiting: what a guard that does not read would get later would be stale anyway."""
    m, cycle = io.to_guard[0], io.cycle[0]
    m.kind, m.issued_ns, m.number, m.event_id, m.train = kind, cycle.decided_ns, cycle.request, cycle.event_id, cycle.train
    m.current_ua, m.duration_us, m.cause, m.ok = cycle.current_ua, cycle.duration_us, cycle.cause, cycle.data_ok
    m.rule, m.level = cycle.rule, cycle.level
    # a stamp that no clock of ours can show counts as stale; it must not stop the loop
    m.sample_ns = np.int64(sample_s * 1e9) if abs(sample_s) < 9e9 else 0
    native.send(guard_fd, io.to_guard)


@njit(cache=True, nogil=True)
def record(ring, cycle, emg_uv, emg_t_s, force, force_t_s, feedback, seen):
    """Put a chunk and what `step` made of it into the ring, as `recording.unpack_cycle` reads it."""
    values = emg_t_s.size + emg_uv.size + force_t_s.size + force.size + feedback.size + seen.size
    at = compiled_ring.begin(ring, messages.RING_CYCLE, cycle.itemsize + 8 * values)
    at = compiled_ring.append(ring, at, cycle)
    at = compiled_ring.append(ring, at, emg_t_s)
    at = compiled_ring.append(ring, at, emg_uv)
    at = compiled_ring.append(ring, at, force_t_s)
    at = compiled_ring.append(ring, at, force)
    at = compiled_ring.append(ring, at, feedback)
    at = compiled_ring.append(ring, at, seen)
    compiled_ring.publish(ring, at)


# --- for Python: replay, tests ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Cycle:
    """What one step found and wants.

    Attributes
    ----------
    index : int
    detections : tuple of Detection, one per rule
    request : StimRequest or None
    sample_s : float
        Newest stamp of the signal that is furthest behind.
    data_ok : bool
        Every configured signal is arriving, and no rule sees bad samples.
    """

    index: int
    detections: tuple[Detection, ...]
    request: StimRequest | None
    sample_s: float
    data_ok: bool


class Loop:
    """One bed's state with `step` for Python."""

    def __init__(self, config: Settings) -> None:
        self.detector = SpasmDetector(config)
        self.state = bed_state(config, self.detector)
        self.cycle = np.zeros(1, CYCLE)

    def step(self, chunk: Chunk) -> Cycle:
        """Take what arrived, decide."""
        c = self.cycle[0]
        step(self.state, chunk.emg_uv, chunk.emg_t_s, chunk.force, chunk.force_t_s, chunk.feedback, chunk.received_ns, c)
        detections = self.detector.detections()
        return Cycle(int(c["index"]), detections, request_of(c), float(c["sample_s"]), bool(c["data_ok"]))


# --- the process ------------------------------------------------------------------------------------------------------------------
def warm_up(config: Settings) -> None:
    """Run everything once on a loop to throw away: compiling or loading must not happen in the first real step."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory_fd = ring.create("warm-up", 1 << 20)
    s = bed_state(config, SpasmDetector(config))
    with ours, theirs:
        theirs.send(messages.FEEDBACK.pack(0.0, 0, 0))
        run(s, lsl.NO_INLET, lsl.NO_INLET, ours.fileno(), compiled_ring.compiled(ring.RingWriter(memory_fd)), scratch(), 2)
    os.close(memory_fd)
    emg = np.zeros((8, len(config.emg.channels) if config.emg else 0))
    force = np.zeros((8, len(config.force.channels) if config.force else 0))
    t_s = 1.0 + np.arange(8.0)
    Loop(config).step(Chunk(emg, t_s, force, t_s, np.zeros((0, 3)), 0))


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
    warm_up(config)  # seconds of work, and not with real-time priority: on guard's own CPU it would stall guard by 50 ms a second
    # before the inlets are made, so that LSL's threads inherit the scheduling
    got = realtime.ask(config.realtime.loop_priority, config.realtime.cpus)
    writer = ring.RingWriter(args.ring)
    try:
        source = lsl.LslSource(config.emg, config.force)
    except DriverError as error:
        say(str(error))
        return 2
    got |= realtime.freeze()
    for inlet in (source.emg, source.force):  # what waited in the buffers while we set up is old
        lsl.pull(inlet, 0.5)
    writer.put(messages.RING_LOOP_NOTE, json.dumps({"pid": os.getpid(), "realtime": got}).encode())
    s = bed_state(config, SpasmDetector(config))
    ended = run(s, source.emg, source.force, args.guard, compiled_ring.compiled(writer), scratch(), FOREVER)
    if ended == STREAM_LOST:
        say("an LSL stream is lost: whatever takes its place is looked at anew [D8]")
        return 1
    if ended == STREAM_FAULT:
        for name, stream in (("emg", s.emg[0]), ("force", s.force[0])):
            if stream["lost"]:
                say(f"[{name}] {streams.STATES[stream['wrong']]}, {streams.FAULTS} times within {streams.FAULTS_S:g} s")
        return 1
    return 0  # guard is gone, so there is nobody to ask; the daemon, or guard's last words, say why


if __name__ == "__main__":
    sys.exit(main())
