"""Real processes for tests: the virtual stimulator, a guard, and somebody who plays loop and daemon."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

from controller import messages, ring, settings

ROOT = Path(__file__).resolve().parents[1]
NO_HISTORY = {"trains": [], "minutes": [], "session": [0, 0, 0], "events": [], "auto_events": [], "lockout": ""}


class Twin:
    """The virtual stimulator in its own process, with its log."""

    def __init__(self, folder, *more):
        self.log = folder / "stimulator.jsonl"
        command = [sys.executable, "-m", "drivers.simulated.twin", "--log", str(self.log), "--lifeline", *more]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = json.loads(self.process.stdout.readline())["port"]

    def rows(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def pulses(self):
        return [row for row in self.rows() if "pulse_ns" in row]

    def stops(self):
        return [row for row in self.rows() if "stop_ns" in row]

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


class GuardRig:
    """A guard with its twin. This process plays the daemon, and `join_loop` gives a socket to play the loop.

    A thread records what guard says, as the daemon does, unless `recording` is cleared.
    """

    def __init__(self, folder, *twin_options, config=None, bed="test", history=NO_HISTORY, changes=(), patience_s=15.0):
        self.twin = Twin(folder, *twin_options)
        self.config = (config or settings.load(ROOT / "config" / "demo.toml")).with_port(self.twin.port)
        self.bed = bed
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ring_fd = ring.create("test", 1 << 20)
        self.ring = ring.RingReader(ring_fd)
        command = [sys.executable, "-m", "controller.guard", "--link", str(theirs.fileno()), "--ring", str(ring_fd), "--bed", bed]
        self.process = subprocess.Popen(command, pass_fds=(theirs.fileno(), ring_fd), stderr=subprocess.PIPE, text=True)
        os.close(ring_fd)
        theirs.close()
        self.link.send(json.dumps(settings.guard_view(self.config) | {"history": history} | dict(changes)).encode())
        self.recorded, self.recording = deque(), threading.Event()
        self.recording.set()
        self.recorder = threading.Thread(target=self._record, daemon=True)  # a test that fails leaves its rig behind
        self.recorder.start()
        try:
            self.wait_for(lambda s: s["state"] in ("IDLE", "LOCKOUT"), patience_s)
        except AssertionError:
            self.close()
            raise

    def _record(self):
        n = 0
        while self.process.poll() is None:
            if self.recording.is_set():
                new = [json.loads(payload) for _, payload in self.ring.records()]
                n += len(new)
                self.recorded += new
                self.ring.durable = n
            time.sleep(0.002)
        self.recorded += [json.loads(payload) for _, payload in self.ring.records()]

    def ask(self, do, **more):
        return messages.ask(self.bed, {"do": do, **more})

    def arm(self, automatic=False):
        return messages.allow(self.bed, automatic, "test")

    def trigger(self):
        return messages.ask(self.bed, messages.press("test"))

    def wait_for(self, condition, timeout_s=15.0):
        end = time.monotonic() + timeout_s
        status = None
        while time.monotonic() < end:
            try:
                status = self.ask("status")
                if condition(status):
                    return status
            except messages.NoBedError:
                assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.02)
        raise AssertionError(f"guard never got there: {status}")

    def join_loop(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(self.link, [b"loop"], [theirs.fileno()])
        theirs.close()
        return ours

    def rows(self):
        """What was recorded since the last call, up to now."""
        time.sleep(0.02)
        return [self.recorded.popleft() for _ in range(len(self.recorded))]

    def close(self):
        self.link.close()
        self.process.wait(10)
        self.recorder.join()
        self.process.stderr.close()
        self.twin.close()
        self.ring.close()


def beat(loop, ok=True, age_ns=0):
    """One heartbeat of a loop that has data; `age_ns` of the newest sample."""
    now = time.monotonic_ns()
    loop.send(messages.ToGuard(messages.HEARTBEAT, now, now - age_ns, ok=int(ok)).pack())


def request(loop, number, **changes):
    """One request as the demo's settings prescribe it."""
    now = time.monotonic_ns()
    fields = {"issued_ns": now, "sample_ns": now, "number": number, "event_id": number, "cause": 1}
    prescribed = {"train": 0, "current_ua": 20_000, "duration_us": 500_000, "level": 1000}
    loop.send(messages.ToGuard(messages.REQUEST, **(fields | prescribed | changes)).pack())


def beat_for(loop, seconds, ok=True):
    """Heartbeats each 10 ms."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        beat(loop, ok)
        time.sleep(0.01)


def arm_automatic(guard, loop):
    """Arm with a loop that was heard."""
    beat(loop)
    guard.wait_for(lambda s: s["data_ok"])
    beat(loop)
    assert guard.arm(automatic=True)["automatic"]
    beat(loop)
