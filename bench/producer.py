"""The source of every contender: an LSL outlet that never stops, with strong bursts on command. `t0` is taken just before `push_chunk`.

A process of its own. Commands are lines of JSON on standard input: {"chunk", "flood"} changes how the noise is sent; with {"events",
"rate_hz", "seed"} it plays that many bursts and answers with one line, their times.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
from time import monotonic_ns

import numpy as np

from bench import job
from controller import realtime
from drivers.sources import lsl

POLL_S = 0.05
GIVE_UP_NS = 50_000_000  # arrears beyond this are not made up for


class Producer:
    """Pushes chunks on absolute deadlines."""

    def __init__(self, source_id: str) -> None:
        self.outlet = lsl.outlet(job.STREAM, "EMG", job.CHANNELS, job.UNIT, job.RATE_HZ, source_id)
        self.noise_uv = np.random.default_rng(0).normal(0.0, job.NOISE_UV, (4003, len(job.CHANNELS)))
        self.due_ns = monotonic_ns()

    def play(self, chunks: np.ndarray, period_ns: int, events: set[int]) -> tuple[list[int], list[int]]:
        """Push (n_chunks, n, channels); returns when those in `events` left, and how late each was."""
        t0_ns, late_ns = [], []
        push = self.outlet.push_chunk
        for i, x in enumerate(chunks):
            self.due_ns += period_ns
            wait_ns = self.due_ns - monotonic_ns()
            if wait_ns > 0:
                time.sleep(wait_ns * 1e-9)
            elif wait_ns < -GIVE_UP_NS:
                self.due_ns = monotonic_ns()
            if i in events:
                t0 = monotonic_ns()
                push(x)
                t0_ns.append(t0)
                late_ns.append(t0 - self.due_ns)
            else:
                push(x)
        return t0_ns, late_ns


def main() -> int:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="bench.producer")
    parser.add_argument("--source-id", required=True)
    args = parser.parse_args()
    realtime.die_with_parent()
    got = realtime.ask(job.SOURCE_PRIORITY, awake=False)
    producer = Producer(args.source_id)
    chunk, flood = 1, 1
    realtime.freeze()
    print(json.dumps({"ready": True, "realtime": got}), flush=True)
    while True:
        n = max(1, round(POLL_S * job.RATE_HZ / chunk))
        period_ns = round(chunk / job.RATE_HZ * 1e9)
        noise = np.resize(producer.noise_uv, (n, chunk * flood, len(job.CHANNELS)))
        while not select.select([sys.stdin], [], [], 0)[0]:
            producer.play(noise, period_ns, set())
        line = sys.stdin.readline()
        if not line:
            return 0
        command = json.loads(line)
        chunk, flood = command["chunk"], command.get("flood", 1)
        if command.get("events"):
            first = job.onsets(command["events"], command["rate_hz"], chunk, np.random.default_rng(command["seed"]))
            chunks = job.signal(first, chunk, flood, producer.noise_uv)
            producer.due_ns = monotonic_ns()
            t0_ns, late_ns = producer.play(chunks, round(chunk / job.RATE_HZ * 1e9), set(first.tolist()))
            print(json.dumps({"t0_ns": t0_ns, "late_ns": late_ns}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
