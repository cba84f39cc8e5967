"""A bare contact between two pins of a serial port: jelly-bean switch, hand bulb, pedal, by a cable that anybody can solder.

Opening the port raises DTR and RTS; the contact joins one of them to CTS, DSR, RI or CD. Looked at each 2 ms, since not every driver can
wait for a change (TIOCMIWAIT). Standard library only. Never on the stimulator's port, and never on that of a trigger box.
"""

from __future__ import annotations

import os
import sys
import termios
import time
from fcntl import ioctl

from drivers.base import DeviceMismatchError, Edge, PortLostError
from drivers.stimulators.serial_device import Line, open_port

LINES = {"cts": termios.TIOCM_CTS, "dsr": termios.TIOCM_DSR, "ri": termios.TIOCM_RI, "cd": termios.TIOCM_CD}
LOOK_S = 0.002


def active(bits: int) -> set[str]:
    """The input lines that are on."""
    return {name for name, bit in LINES.items() if bits & bit}


def open_lines(port: str) -> int:
    """Open a port for us alone. Raises `DeviceNotFoundError`, `DeviceMismatchError`: it has no such lines."""
    fd, _ = open_port(port, Line(9600))
    try:
        read_lines(fd, port)
    except PortLostError as error:
        os.close(fd)
        raise DeviceMismatchError(f"{port} has no CTS, DSR, RI and CD: {error}") from error
    return fd


def read_lines(fd: int, port: str) -> int:
    """The lines as the kernel's bits. Raises `PortLostError`."""
    try:
        return int.from_bytes(ioctl(fd, termios.TIOCMGET, bytes(4)), sys.byteorder)
    except OSError as error:
        raise PortLostError(f"{port}: {error.strerror}") from error


class SerialLine:
    """One input line of a serial port; a `drivers.base.Button`.

    Parameters
    ----------
    port : str
    line : str
        "cts", "dsr", "ri" or "cd".
    invert : bool
        The line is off while the button is pressed.
    """

    def __init__(self, port: str, line: str, invert: bool = False) -> None:
        if line not in LINES:
            raise DeviceMismatchError(f"a serial port has no input line {line!r}: {', '.join(LINES)}")
        self.port, self.line, self.invert = port, line, invert
        self._fd = -1
        self._closed = False

    def open(self) -> bool:
        """Open the port; returns whether the contact is closed."""
        self.close()
        self._fd = open_lines(self.port)
        self._closed = self._level()
        return self._closed

    def wait(self, timeout_s: float) -> Edge | None:
        """The next edge, within so long."""
        end_s = time.monotonic() + timeout_s
        while (closed := self._level()) is self._closed:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return None
            time.sleep(min(LOOK_S, left_s))
        self._closed = closed
        return Edge(closed, time.monotonic_ns())

    def close(self) -> None:
        """Let the port go."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _level(self) -> bool:
        return (self.line in active(read_lines(self._fd, self.port))) != self.invert
