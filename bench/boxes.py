"""Every stimulator of the registries, for benches that run over all of them: what it needs told, what is there, what it says and hears.

Standard library alone, and nothing of ours beyond the drivers, their twins and the wire checks: atheris brings an environment of its own.
"""

from __future__ import annotations

import os
import threading
import time
import tty
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from select import select
from typing import TYPE_CHECKING, Any

from controller.wire import DECODERS
from drivers import stimulators
from drivers.base import DriverError, LimitError, PulseTrain
from drivers.simulated.twin import TWINS, Judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from drivers.base import Stimulator
    from drivers.simulated.twin import Twin

#: what `controller.settings.OPTIONS` asks a person for: ordinary values
_DIAL = {"dial_current_ua": 10_000, "dial_phase_width_us": 500, "dial_interphase_gap_us": 100}
OPTIONS: dict[str, dict[str, int]] = {"pulsepal": {"ua_per_volt": 1000}, **dict.fromkeys(("ttl-byte", "ttl-cedrus", "ttl-line"), _DIAL)}
GAPS_US = (100, 50, 20, 10, 0)  # some have none, or one that nobody can change
N_TRIES = 3  # of a recording, on a machine that has other things to do
ANSWER_S = 0.3


def options(name: str) -> dict[str, int]:
    """What the driver called `name` is told beside its port."""
    return OPTIONS.get(name, {})


def train(name: str) -> PulseTrain:
    """A train of 10 mA that this one can do, with the gap between phases nearest to 100 µs of those tried. Raises `LimitError`."""
    device = stimulators.load(name, "", options=options(name))
    width_us = min(max(device.limits.min_phase_width_us, 500), device.limits.max_phase_width_us)
    for gap_us in GAPS_US:
        one = PulseTrain(1, 10.0, width_us, gap_us, 20.0, 500, 50, 100)
        try:
            device.prepare([one])
        except LimitError as error:
            refused = error
        else:
            return one
    raise refused


def names() -> tuple[str, ...]:
    """Those of any registry."""
    return tuple(dict.fromkeys((*stimulators.STIMULATORS, *TWINS, *DECODERS)))


def missing(name: str) -> list[str]:
    """The modules that the registries name and that are not there; "no ..." where a registry does not know the name."""
    found = {"driver": stimulators.STIMULATORS.get(name, ("",))[0], "twin": TWINS.get(name, ("",))[0], "wire check": DECODERS.get(name, "")}
    return [module or f"no {kind} of that name" for kind, module in found.items() if not module or find_spec(module) is None]


def box(name: str, send: Callable[[bytes], None], log: Callable[[dict[str, object]], None] = lambda _: None) -> Twin:
    """A twin without a process."""
    module, class_name = TWINS[name]
    made: Twin = getattr(import_module(module), class_name)(name, None, Judge(), send, log, lambda _: None)
    return made


# --- a session, written down ------------------------------------------------------------------------------------------------------
@dataclass
class Session:
    """What a driver and its twin said to each other; each frame once, in the order of its first time."""

    name: str
    said: list[bytes] = field(default_factory=list)  # by the driver, one write each
    heard: list[bytes] = field(default_factory=list)  # from the twin, one answer each
    prepared: list[bytes] = field(default_factory=list)  # some of the frames that were encoded before arming


def serve(twin: Twin, master_fd: int, over: threading.Event) -> None:
    """Let a twin answer on a pty until it is `over`."""
    twin.start(time.monotonic_ns())
    while not over.is_set():
        due_ns = twin.next_due_ns
        wait_s = 0.02 if due_ns is None else min(0.02, max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
        ready, _, _ = select([master_fd], [], [], wait_s)
        twin.run_due(time.monotonic_ns())
        if ready:
            try:
                data = os.read(master_fd, 4096)
            except BlockingIOError:  # taken back
                continue
            twin.receive(data, time.monotonic_ns())


def record(name: str, n_pulses: int = 4) -> Session:
    """Open, prepare, arm, pulse, stop, disarm and close once, with the twin on a pty. Raises `DriverError`."""
    for n_left in reversed(range(N_TRIES)):
        try:
            return _record(name, n_pulses)
        except DriverError:
            if not n_left:
                raise
    raise AssertionError("unreachable")


def _record(name: str, n_pulses: int) -> Session:
    session, over = Session(name), threading.Event()
    master_fd, slave_fd = os.openpty()
    tty.setraw(slave_fd)
    os.set_blocking(master_fd, False)

    def write(fd: int, data: bytes) -> int:
        session.said.append(bytes(data))
        return os.write(fd, data)

    def send(answer: bytes) -> None:
        session.heard.append(bytes(answer))
        os.write(master_fd, answer)

    thread = threading.Thread(target=serve, args=(box(name, send), master_fd, over), daemon=True)
    device = stimulators.load(name, os.ttyname(slave_fd), write, options(name))
    thread.start()
    try:
        device.open()
        one = train(name)
        prepared = device.prepare([one])
        session.prepared = [bytes(frame) for frame in prepared[:: max(1, len(prepared) // 64)]]
        device.arm()
        for _ in range(n_pulses):
            device.trigger(0, round(one.current_ma * 1000))
            listen(device)
        device.stop()
        device.disarm()
    finally:
        device.close()
        over.set()
        thread.join()
        os.close(slave_fd)
        os.close(master_fd)
    session.said, session.heard = list(dict.fromkeys(session.said)), list(dict.fromkeys(session.heard))
    return session


def listen(device: Stimulator) -> list[Any]:
    """The events of one pulse, if the device answers any."""
    until_s = time.monotonic() + (ANSWER_S if device.limits.answers_pulses else 0.03)
    while time.monotonic() < until_s:
        if events := device.read_events():
            return events
        time.sleep(0.002)
    return []


def all_there() -> Iterator[str]:
    """The names of which every module is there."""
    return (name for name in names() if not missing(name))
