"""What must run at C speed without a compiler on the machine: the sink that stamps pulses, and the floors of this machine.

Kernels that numba compiles to machine code and that call the C library directly; each is called once before it counts. A process each:
`python -m bench.native pipe|requests|floors`.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
from pathlib import Path

import numpy as np
from numba import njit, types

from bench import fast_clinic
from controller import realtime

SINK_PRIORITY, FLOOR_PRIORITY = 95, 70
CAPACITY = 1 << 19  # stamps of one sink: far more than the longest run gives
HEAD_COUNT, HEAD_BEATS, HEAD_READY, HEAD_WORDS = 0, 1, 2, 8  # int64 words before the stamps
REQUEST_BYTES = 4096
TRAIN_NS = round(1e9 / fast_clinic.PULSE_RATE_HZ)  # a request's train is over after this long, as guard would tell the loop
_MONOTONIC, _ABSTIME = 1, 1
_CODE_PULSE, _CODE_ENDED = (int(np.float64(code).view(np.int64)) for code in (1.0, 3.0))  # drivers.base.FEEDBACK_*, as words

_read = types.ExternalFunction("read", types.int64(types.int32, types.uint64, types.uint64))
_write = types.ExternalFunction("write", types.int64(types.int32, types.uint64, types.uint64))
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.uint64))
_clock_nanosleep = types.ExternalFunction("clock_nanosleep", types.int32(types.int32, types.int32, types.uint64, types.uint64))


@njit(cache=True, nogil=True)
def now_ns(spec):
    """Read CLOCK_MONOTONIC; `spec` is two int64 to work in."""
    _clock_gettime(_MONOTONIC, spec.ctypes.data)
    return spec[0] * 1_000_000_000 + spec[1]


@njit(cache=True, nogil=True)
def sleep_until(spec, at_ns):
    """Sleep to an absolute time."""
    spec[0] = at_ns // 1_000_000_000
    spec[1] = at_ns % 1_000_000_000
    _clock_nanosleep(_MONOTONIC, _ABSTIME, spec.ctypes.data, 0)


@njit(cache=True, nogil=True)
def stamp_pipe(fd, head, stamps):
    """Block in read(); stamp each return; until the pipe ends or the stamps are full."""
    spec = np.zeros(2, np.int64)
    data = np.zeros(4096, np.uint8)
    while head[HEAD_COUNT] < stamps.shape[0]:
        n = _read(fd, data.ctypes.data, 4096)
        stamp = now_ns(spec)
        if n <= 0:
            return
        stamps[head[HEAD_COUNT]] = stamp
        head[HEAD_COUNT] += 1


@njit(cache=True, nogil=True)
def stamp_requests(fd, head, stamps):
    """Play guard at the loop's socket: stamp each request, answer that its train began and when it ends; count heartbeats with data.

    Words of a message (controller.messages.ToGuard): kind, issued, sample, number, ..., ok.
    """
    spec = np.zeros(2, np.int64)
    data = np.zeros(REQUEST_BYTES // 8, np.int64)
    answer = np.zeros(3, np.int64)
    while head[HEAD_COUNT] < stamps.shape[0]:
        n = _read(fd, data.ctypes.data, REQUEST_BYTES)
        stamp = now_ns(spec)
        if n <= 0:
            return
        if data[0] == 1:
            head[HEAD_BEATS] += data[9]
            continue
        stamps[head[HEAD_COUNT]] = stamp
        head[HEAD_COUNT] += 1
        answer[0], answer[1], answer[2] = _CODE_PULSE, stamp, data[3]
        _write(fd, answer.ctypes.data, 24)
        answer[0], answer[1] = _CODE_ENDED, stamp + TRAIN_NS  # the loop's rest counts from here, as it would from guard's later word
        _write(fd, answer.ctypes.data, 24)


@njit(cache=True, nogil=True)
def timer_late(period_ns, late_ns):
    """Fill how late each wake-up of an absolute timer is."""
    spec = np.zeros(2, np.int64)
    at = now_ns(spec)
    for i in range(late_ns.shape[0]):
        at = max(at + period_ns, now_ns(spec))  # after a stall, start anew
        sleep_until(spec, at)
        late_ns[i] = now_ns(spec) - at


@njit(cache=True, nogil=True)
def pipe_hops(fd, period_ns, sent_ns):
    """Write a byte each period; fill when."""
    spec = np.zeros(2, np.int64)
    data = np.zeros(1, np.uint8)
    at = now_ns(spec)
    for i in range(sent_ns.shape[0]):
        at += period_ns
        sleep_until(spec, at)
        sent_ns[i] = now_ns(spec)
        _write(fd, data.ctypes.data, 1)


class Stamps:
    """Times that a sink takes, in memory that it shares with whoever started it."""

    def __init__(self, fd: int | None = None) -> None:
        size = 8 * (HEAD_WORDS + CAPACITY)
        if fd is None:
            fd = os.memfd_create("stamps")
            os.ftruncate(fd, size)
        self.fd = fd
        words = np.frombuffer(mmap.mmap(fd, size), np.int64)
        self.head, self.ns = words[:HEAD_WORDS], words[HEAD_WORDS:]

    @property
    def count(self) -> int:
        """How many were taken so far."""
        return int(self.head[HEAD_COUNT])

    def since(self, count: int) -> np.ndarray:
        """All but the first `count`."""
        return self.ns[count : self.count].copy()


def warm_up() -> None:
    """Compile or load every kernel, and run it."""
    head, stamps, few = np.zeros(HEAD_WORDS, np.int64), np.zeros(4, np.int64), np.zeros(2, np.int64)
    timer_late(1_000_000, few)
    reading, writing = os.pipe()
    pipe_hops(writing, 1_000_000, few)
    os.close(writing)
    stamp_pipe(reading, head, stamps)
    stamp_requests(reading, head, stamps)
    os.close(reading)


def main() -> int:
    """One of the small processes."""
    parser = argparse.ArgumentParser(prog="bench.native")
    parser.add_argument("role", choices=("pipe", "requests", "floors"))
    parser.add_argument("--pipe", type=Path)
    parser.add_argument("--socket", type=int)
    parser.add_argument("--stamps", type=int)
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--timer-only", action="store_true")
    args = parser.parse_args()
    realtime.die_with_parent()
    realtime.ask(FLOOR_PRIORITY if args.role == "floors" else SINK_PRIORITY, awake=False)
    warm_up()
    realtime.freeze()
    if args.role == "floors":
        late_ns, sent_ns = np.zeros(args.events, np.int64), np.zeros(0, np.int64)
        timer_late(2_000_000, late_ns)
        if not args.timer_only:
            sent_ns = np.zeros(args.events, np.int64)
            fd = os.open(args.pipe, os.O_WRONLY)
            pipe_hops(fd, 2_000_000, sent_ns)
        print(json.dumps({"timer_ns": late_ns.tolist(), "sent_ns": sent_ns.tolist()}))
        return 0
    stamps = Stamps(args.stamps)
    # for writing too: the pipe must outlive the contenders that come and go
    fd = args.socket if args.role == "requests" else os.open(args.pipe, os.O_RDWR)
    stamps.head[HEAD_READY] = 1
    (stamp_requests if args.role == "requests" else stamp_pipe)(fd, stamps.head, stamps.ns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
