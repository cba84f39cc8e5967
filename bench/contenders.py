"""Who competes: each a context manager that starts a program, waits until it hears the source, and ends it again.

calmloop is whole here: daemon, guard and loop with recording, audit, limits and dose checks ON, in the fast clinic (`bench.fast_clinic`).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import fast_clinic, job
from bench.judge import match
from bench.native import HEAD_BEATS, HEAD_READY, Stamps
from controller import messages, ring, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

READY_S = 90.0  # a cold numba cache and a heavy import
LEARN_S = 1.0  # our loop learns the noise
SETTLE_S = 0.3  # others' filters settle
LOOP_RING_BYTES = 32 << 20
BED = "bench"


class Skip(Exception):  # noqa: N818 - no error: said by name, and the others go on
    """A contender cannot take part here; says why."""


@dataclass
class Running:
    """A contender at work."""

    stamps: Stamps | LoggedStamps
    processes: dict[str, int]  # name -> pid
    facts: Callable[[], dict[str, Any]] = dict


class LoggedStamps:
    """When the virtual stimulator had read each pulse, from its log."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def _all(self) -> list[int]:
        rows = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [row["received_ns"] for row in rows if "pulse_ns" in row]

    @property
    def count(self) -> int:
        """How many there are so far."""
        return len(self._all())

    def since(self, count: int) -> np.ndarray:
        """All but the first `count`."""
        return np.array(self._all()[count:], np.int64)


@dataclass
class Rig:
    """What all contenders share: the pipe with its sink, the source's name, a folder for their traces.

    Parameters
    ----------
    folder : Path
        Sessions, logs, the pipe, the C program.
    plant_ms : float
        Sleep in each step of our loop, to show that the gate sees it.
    """

    folder: Path
    plant_ms: float = 0.0
    source_id: str = field(default_factory=lambda: f"bench-{os.getpid()}")
    stamps: Stamps = field(default_factory=Stamps)
    started: int = 0

    def __post_init__(self) -> None:
        self.pipe = self.folder / "pulses"
        os.mkfifo(self.pipe)
        runtime = self.folder / "run"  # control sockets of nobody else's beds
        runtime.mkdir(mode=0o700)
        os.environ["CALMLOOP_RUNTIME_DIR"] = str(runtime)
        self.env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(job.ROOT), os.environ.get("PYTHONPATH", "")))),
            fast_clinic.PLANT_MS: str(self.plant_ms),
        }
        self.config = self.write_settings(settings.load(job.CONFIG), str(self.pipe))
        command = [sys.executable, "-m", "bench.native", "pipe", "--pipe", self.pipe]
        self.sink = self.start("sink", command, ("--stamps", self.stamps.fd))
        wait_until(lambda: self.stamps.head[HEAD_READY], self.sink, "the sink")

    def write_settings(self, config: Any, port: str) -> Path:
        """config/bench.toml with this run's stream and folder, and a port."""
        changed = config.model_copy(
            update={
                "emg": config.emg.model_copy(update={"source_id": self.source_id}),
                "stimulator": config.stimulator.model_copy(update={"port": port}),
                "session": config.session.model_copy(update={"folder": str(self.folder / "sessions")}),
            }
        )
        path = self.folder / f"{Path(port).name}.toml"
        path.write_text(changed.to_toml())
        return path

    def start(
        self, name: str, command: Sequence[object], fds: tuple[str, int] | tuple[()] = (), env: dict[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[str]:
        """Start a process whose words go to a log file of its own; `fds` is an option and the descriptor it passes."""
        self.started += 1
        log = (self.folder / f"{self.started:03d}-{name.replace(' ', '-')}.log").open("w")
        passed = tuple(fd for fd in fds if isinstance(fd, int)) + tuple(more.pop("pass_fds", ()))
        process = subprocess.Popen(
            [str(word) for word in (*command, *fds)], pass_fds=passed, stderr=log, cwd=job.ROOT, env=env or self.env, text=True, **more
        )
        log.close()
        process.log = Path(log.name)  # type: ignore[attr-defined]
        return process

    def close(self) -> None:
        """End the sink."""
        end(self.sink)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], what: str, timeout_s: float = READY_S) -> None:
    """Poll; a process that ends meanwhile is an error with its last words. Raises `Skip`."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None:
            raise Skip(f"{what} ended with code {process.returncode}: {last_words(process)}")
        if time.monotonic() > give_up:
            raise Skip(f"{what} was not ready within {timeout_s:g} s: {last_words(process)}")
        time.sleep(0.02)


def last_words(process: subprocess.Popen[str]) -> str:
    """The end of a process's log."""
    return process.log.read_text(errors="replace").strip()[-400:] or "it said nothing"  # type: ignore[attr-defined]


def end(process: subprocess.Popen[str], gently_s: float = 0.0) -> None:
    """End a process that we started."""
    if gently_s:
        try:
            process.wait(gently_s)
        except subprocess.TimeoutExpired:
            pass
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


@contextmanager
def calmloop(rig: Rig, config: Path | None = None, stamps: LoggedStamps | None = None) -> Iterator[Running]:
    """The real daemon with guard and loop, everything on; ready when armed for automatic stimulation."""
    process = rig.start("calmloop", [sys.executable, "-m", "bench.bed", config or rig.config, "--bed", BED], stdin=subprocess.PIPE)
    try:
        status: dict[str, Any] = {}

        def hears() -> bool:
            status.update(messages.daemon_status(BED) or {})
            rules = status.get("rules", {})
            return status.get("state") == "IDLE" and status["data_ok"] and bool(rules) and all(r["quality"] == "ok" for r in rules.values())

        wait_until(hears, process, "calmloop")
        answer = messages.allow(BED, True, "bench latency")
        if not answer["automatic"]:
            raise Skip(f"calmloop was not armed: {answer['reasons']}")

        def facts() -> dict[str, Any]:
            guard = messages.ask(BED, {"do": "status"})
            time.sleep(0.3)  # the daemon's report comes four times a second
            report = messages.daemon_status(BED) or {}
            return {"guard_pulses": guard["pulses"], "state": guard["state"], "reason": guard["reason"]} | {
                key: report.get(key) for key in ("session", "trains", "refusals", "records_lost", "realtime", "recording_bytes")
            }

        yield Running(stamps or rig.stamps, {"daemon": process.pid, **status["children"]}, facts)
    finally:
        if process.stdin:
            process.stdin.close()
        end(process, 10.0)


@contextmanager
def calmloop_pty(rig: Rig) -> Iterator[Running]:
    """The same with the real driver and the virtual RehaMove3 on a pty: shows that it works; a pty's tails are the kernel's."""
    log = rig.folder / f"{rig.started:03d}-stimulator.jsonl"
    command = [sys.executable, "-m", "drivers.simulated.twin", "--log", log, "--lifeline"]
    twin = rig.start("virtual stimulator", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert twin.stdout
        port = json.loads(twin.stdout.readline())["port"]
        config = rig.write_settings(settings.load(job.CONFIG), port)
        with calmloop(rig, config, LoggedStamps(log)) as running:
            running.processes["stimulator"] = twin.pid
            yield running
    finally:
        end(twin)


@contextmanager
def loop_alone(rig: Rig) -> Iterator[Running]:
    """Our loop with the sink in guard's place: what counts is the request that leaves."""
    stamps = Stamps()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ring_fd = ring.create("bench-loop", LOOP_RING_BYTES)
    with ours, theirs:
        sink = rig.start(
            "loop-sink",
            [sys.executable, "-m", "bench.native", "requests", "--socket", theirs.fileno()],
            ("--stamps", stamps.fd),
            pass_fds=(theirs.fileno(),),
        )
        loop = rig.start(
            "loop",
            [sys.executable, "-m", "bench.bed_loop", "--settings", rig.config, "--guard", ours.fileno(), "--ring", ring_fd],
            pass_fds=(ours.fileno(), ring_fd),
        )
    os.close(ring_fd)
    try:
        wait_until(lambda: stamps.head[HEAD_READY] and stamps.head[HEAD_BEATS] > 10, loop, "the loop")
        time.sleep(LEARN_S)
        yield Running(stamps, {"loop": loop.pid, "sink": sink.pid})
    finally:
        end(loop)
        end(sink)
        os.close(stamps.fd)


@contextmanager
def all_c(rig: Rig) -> Iterator[Running]:
    """One C file, compiled on the spot."""
    with program(rig, "all C", [build_all_c(rig.folder), *all_c_arguments(rig)]) as running:
        yield running


def build_all_c(folder: Path) -> Path:
    """Compile `all_c.c`, once. Raises `Skip` without a compiler."""
    built = folder / "all_c"
    compiler = shutil.which("cc")
    if not compiler:
        raise Skip("no cc on this machine")
    if not built.exists():
        command = [compiler, "-O2", "-o", str(built), str(Path(__file__).with_name("all_c.c")), "-ldl", "-lm"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise Skip(f"cc failed: {answer.stderr.strip()[-400:]}")
    return built


def all_c_arguments(rig: Rig) -> list[object]:
    """What the C program is told."""
    import pylsl.lib

    sos = [repr(float(x)) for x in job.band_pass().ravel()]
    return [pylsl.lib.lib._name, job.STREAM, rig.source_id, rig.pipe, job.PIPELINE_PRIORITY, job.smooth_step(), job.THRESHOLD_UV, *sos]


def peer(name: str, *more: str) -> Callable[[Rig], Any]:
    """Another project's pipeline for the same job, in its own environment."""

    @contextmanager
    def run(rig: Rig) -> Iterator[Running]:
        path = Path(__file__).with_name("peers") / f"{name}_contender.py"
        if not path.exists():
            raise Skip(f"there is no {path.relative_to(job.ROOT)}")
        from bench import peers

        python = peers.interpreter(name)
        if python is None:
            raise Skip(f"no environment for {name}")
        command = [python, path, "--stream", job.STREAM, "--source-id", rig.source_id, "--pipe", rig.pipe, *more]
        with program(rig, name, command) as running:
            yield running

    return run


@contextmanager
def program(rig: Rig, name: str, command: Sequence[object]) -> Iterator[Running]:
    """A program that prints `ready` and writes a byte into the pipe for each event; it asks for its scheduling itself."""
    env = {key: value for key, value in rig.env.items() if key != "PYTHONPATH"}
    process = rig.start(name, command, env=env, stdout=subprocess.PIPE)
    try:
        wait_until(lambda: select.select([process.stdout], [], [], 0)[0], process, name)
        line = process.stdout.readline().strip() if process.stdout else ""
        if line != "ready":
            raise Skip(f"{name} said {line!r}, not 'ready': {last_words(process)}")
        time.sleep(SETTLE_S)
        yield Running(rig.stamps, {name: process.pid})
    finally:
        end(process)


CONTENDERS: dict[str, Callable[[Rig], Any]] = {
    "calmloop": calmloop,
    "calmloop pty": calmloop_pty,
    "loop": loop_alone,
    "all C": all_c,
    "all C asleep": all_c,
    "ezmsg": peer("ezmsg"),
    "mne-lsl": peer("mne_lsl"),
    "mne-lsl polled": peer("mne_lsl", "--polled"),
    "Timeflux": peer("timeflux"),
}


class Source:
    """The producer's process; see `bench.producer`."""

    def __init__(self, rig: Rig) -> None:
        command = [sys.executable, "-m", "bench.producer", "--source-id", rig.source_id]
        self.process = rig.start("producer", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.ready = self._answer(READY_S)

    def noise(self, chunk: int, flood: int = 1) -> None:
        """Send noise in such chunks from now on."""
        self._ask({"chunk": chunk, "flood": flood})

    def play(self, chunk: int, events: int, rate_hz: float, seed: int, flood: int = 1) -> dict[str, list[int]]:
        """Play bursts; returns `t0_ns` and `late_ns` when all are over."""
        self._ask({"chunk": chunk, "flood": flood, "events": events, "rate_hz": rate_hz, "seed": seed})
        return self._answer(60.0 + 3.0 * events / rate_hz)

    def _ask(self, command: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def _answer(self, timeout_s: float) -> Any:
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            raise RuntimeError(f"the source did not answer within {timeout_s:g} s: {last_words(self.process)}")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the source ended: {last_words(self.process)}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        end(self.process)


def floors(rig: Rig, events: int, timer_only: bool = False) -> dict[str, list[float | None]]:
    """Floors of the present minute in µs: `timer`, how late a wake-up is; `pipe`, one hop from C to the sink."""
    before = rig.stamps.count
    more = ["--timer-only"] if timer_only else []
    process = rig.start(
        "floors",
        [sys.executable, "-m", "bench.native", "floors", "--pipe", rig.pipe, "--events", events + job.DROPPED, *more],
        stdout=subprocess.PIPE,
    )
    said, _ = process.communicate(timeout=READY_S)
    if process.returncode:
        raise RuntimeError(f"the floors ended with code {process.returncode}: {last_words(process)}")
    answer = json.loads(said)
    time.sleep(0.05)
    out: dict[str, list[float | None]] = {"timer": [ns / 1000 for ns in answer["timer_ns"][job.DROPPED :]]}
    if not timer_only:
        out["pipe"] = match(answer["sent_ns"], rig.stamps.since(before), job.DROPPED).latency_us
    return out
