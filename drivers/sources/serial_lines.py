"""A load cell, force gauge or microcontroller that prints its samples: one line each, of one number for each channel.

Numbers are parted by spaces, tabs, commas or semicolons, each perhaps with a name before it ("force:12.3", as the Arduino plotter likes
it). The line that was on its way when the port was opened is left out; one that is not such a line is counted, and ten running are no
source at all. A line has no stamp of its own: its time is when its last byte was read, so USB adapters add up to 16 ms where their latency
timer is not lowered (`open_port` asks for that). Standard library and numpy.
"""

from __future__ import annotations

import os
import re
import select
import time
from math import isfinite

import numpy as np

from drivers.base import DeviceMismatchError, DeviceNotFoundError, PortLostError, SignalBlock
from drivers.stimulators.serial_device import Line, open_port

BAUDS = (9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600, 1000000, 2000000)
MAX_LINE_BYTES = 4096  # more without an end is not text
MAX_BAD_LINES = 10  # running
_PARTED = re.compile(r"[\s,;]+")


def baud_of(text: str) -> int:
    """The rate that the settings name; none is 115200. Raises `DeviceNotFoundError`."""
    if not text:
        return 115200
    if not text.isdecimal() or int(text) not in BAUDS:
        raise DeviceNotFoundError(f"{text!r} is no rate of a serial port: {', '.join(map(str, BAUDS))}")
    return int(text)


def numbers_in(line: bytes, n: int) -> list[float] | None:
    """The `n` numbers of a line; None where it is not such a line. A sample that is no number (nan) is one all the same."""
    words = [word.rpartition(":")[2] for word in _PARTED.split(line.decode("ascii", "replace").strip()) if word and not word.endswith(":")]
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    return values if len(values) == n else None


class SerialLines:
    """A port that prints numbers; a `drivers.base.SignalSource`.

    Parameters
    ----------
    port : str
    n_channels : int
        How many numbers a line must hold.
    baud : int
    """

    def __init__(self, port: str, n_channels: int, baud: int = 115200) -> None:
        self.port, self.n_channels, self.baud = port, n_channels, baud
        self.bad_lines = 0
        self._fd, self._left, self._bad_running, self._begun = -1, b"", 0, False

    def open(self) -> None:
        """Open the port for us alone. Raises `DeviceNotFoundError`, `DeviceMismatchError`."""
        self.close()
        self._fd, _ = open_port(self.port, Line(self.baud))
        self._left, self._bad_running, self._begun = b"", 0, False

    def read(self, timeout_s: float) -> SignalBlock | None:
        """Whole lines that came, within so long. Raises `PortLostError`, `DeviceMismatchError`: what comes is no such lines."""
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return None
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return None
        except OSError as error:
            raise PortLostError(f"{self.port}: {error.strerror}") from error
        newest_s = time.monotonic()
        if not data:
            raise PortLostError(f"{self.port} is gone")
        *lines, self._left = (self._left + data).split(b"\n")
        if len(self._left) > MAX_LINE_BYTES:
            raise DeviceMismatchError(f"{self.port}: {MAX_LINE_BYTES} bytes without an end of line: lines of numbers? {self.baud} baud?")
        if lines and not self._begun:
            lines, self._begun = lines[1:], True
        rows = [row for line in lines if line.strip() and (row := self._row(line)) is not None]
        return SignalBlock(np.array(rows), newest_s) if rows else None

    def _row(self, line: bytes) -> list[float] | None:
        row = numbers_in(line, self.n_channels)
        if row is not None and all(isfinite(value) for value in row):
            self._bad_running = 0
            return row
        self.bad_lines += 1
        self._bad_running += row is None
        if self._bad_running > MAX_BAD_LINES:
            wanted = f"{self.n_channels} number{'s' if self.n_channels > 1 else ''}"
            raise DeviceMismatchError(f"{self.port}: {MAX_BAD_LINES + 1} lines running are not {wanted}, the last was {line[:60]!r}")
        return row  # nan: the loop hears that something is wrong with this sample

    def close(self) -> None:
        """Let the port go."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
