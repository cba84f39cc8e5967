"""A stimulator for the latency bench: real frames of the ScienceMode3 protocol into a named pipe, each answered at once.

What guard does with it is what it does with a RehaMove3: every frame prepared and looked up, one `os.write` a pulse, an answer to hear.
A pipe and not a pty, because a pty passes through a kernel worker of ordinary priority. Standard library alone, as guard needs it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from drivers.base import DeviceEvent, DeviceEventKind, DeviceNotFoundError, NotArmedError, PortLostError, ShortWriteError
from drivers.stimulators.sciencemode34 import MODELS, N_NUMBERS, ScienceMode34, encode_ll_channel_config, pulse_points

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from drivers.base import PulseTrain, Stimulator, StimulatorLimits


def stimulator(port: str, model: str, write: Callable[[int, bytes], int] = os.write) -> Stimulator:
    """What belongs to a port: a pipe for a named pipe, else the real driver (a virtual stimulator's pty)."""
    path = Path(port)
    is_pipe = path.exists() and stat.S_ISFIFO(path.stat().st_mode)
    return PipeStimulator(port, model, write) if is_pipe else ScienceMode34(port, model, write)


def encode(trains: Sequence[PulseTrain], step_ua: int) -> dict[int, dict[int, tuple[bytes, ...]]]:
    """The frames of each train at each current under each packet number, as the real driver prepares them."""
    return {
        index: {
            level_ua: tuple(
                encode_ll_channel_config(number, train.channel, pulse_points(level_ua, train.phase_width_us, train.interphase_gap_us))
                for number in range(N_NUMBERS)
            )
            for level_ua in range(step_ua, round(train.current_ma * 1000) + 1, step_ua)
        }
        for index, train in enumerate(trains)
    }


class PipeStimulator:
    """A `drivers.base.Stimulator`; `port` is the named pipe."""

    def __init__(self, port: str, model: str = "rehamove3", write: Callable[[int, bytes], int] = os.write) -> None:
        self.port = port
        self._write = write
        self.limits: StimulatorLimits = MODELS[model]
        self._fd = -1
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._frames: dict[int, dict[int, tuple[bytes, ...]]] = {}
        self._number = 0
        self._armed = False
        self._answers: list[DeviceEvent] = []

    def open(self) -> None:
        """Open the pipe for writing; somebody must read it."""
        try:
            self._fd = os.open(self.port, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            raise DeviceNotFoundError(f"{self.port}: {error.strerror}") from error

    def fileno(self) -> int:
        """What becomes readable when an answer is there."""
        return self._bell

    def identify(self) -> str:
        """A pipe has no number."""
        return "pipe - -"

    def prepare(self, trains: Sequence[PulseTrain]) -> tuple[bytes, ...]:
        """Encode all that `trigger` may need."""
        self._frames = encode(trains, self.limits.current_step_ua)
        return tuple(frame for levels in self._frames.values() for frames in levels.values() for frame in frames)

    def arm(self) -> None:
        """Ready at once: there is no high voltage."""
        self._armed = True

    def trigger(self, train: int, current_ua: int) -> int:
        """One pulse: look up, write once, answer."""
        if not self._armed:
            raise NotArmedError("the pipe is not armed")
        number = self._number
        frame = self._frames[train][current_ua][number]
        try:
            n_written = self._write(self._fd, frame)
        except OSError as error:
            raise PortLostError(f"{self.port}: {error}") from error
        if n_written != len(frame):
            raise ShortWriteError(f"{self.port} took {n_written} of {len(frame)} bytes")
        self._number = (number + 1) % N_NUMBERS
        self._answers.append(DeviceEvent(DeviceEventKind.ACK, number, 0, "pulse done"))
        os.eventfd_write(self._bell, 1)
        return number

    def stop(self) -> None:
        """Nothing waits in a pipe; the sink counts pulses alone, so no stop frame is written."""
        self._armed = False

    def disarm(self) -> None:
        """As `stop`."""
        self._armed = False

    def read_events(self) -> list[DeviceEvent]:
        """Answers since the last call."""
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            pass
        answers, self._answers = self._answers, []
        return answers

    def status(self) -> dict[str, object]:
        """Facts for people."""
        return {"model": "pipe of the latency bench", "port": self.port, "armed": self._armed, "stop_answered": True}

    def close(self) -> None:
        """Let the pipe go."""
        self._armed = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
