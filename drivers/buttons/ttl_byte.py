"""A button behind a trigger box or microcontroller that sends its state as a byte over a serial port: 0 = let go, any other = pressed.

It is sent at each change, and may be sent again at any time. Such a box cannot be asked and says nothing while nobody presses: that it
hangs while its port stays is seen by nobody, that it is unplugged is. Bits that are not the button's are left out by `mask`. Standard
library only.
"""

from __future__ import annotations

import os
import select
import time

from drivers.base import DeviceNotFoundError, Edge, PortLostError
from drivers.stimulators.serial_device import Line, open_port

BAUD = 115200  # what USB trigger boxes and microcontrollers are made for; those with USB of their own mind no rate
MAX_BYTES = 256
SETTLE_S = 2.0  # a microcontroller that opening its port has reset says who it is (Arduino: within 2 s)


def mask_of(key: str) -> int:
    """The bits that are the button, of `key` in the settings; empty = all eight. Raises `DeviceNotFoundError`."""
    if not key:
        return 0xFF
    if not key.isdecimal() or not 1 <= int(key) <= 0xFF:
        raise DeviceNotFoundError(f"{key!r} names no bits of a byte: a number from 1 to 255, such as 1 for the lowest")
    return int(key)


class TtlByte:
    """A byte that says its level; a `drivers.base.Button`.

    Parameters
    ----------
    port : str
    mask : int
        Bits that are the button: any of them = pressed.
    invert : bool
        0 is a press.
    """

    def __init__(self, port: str, mask: int = 0xFF, invert: bool = False) -> None:
        self.port, self.mask, self.invert = port, mask, invert
        self._fd = -1
        self._closed = False
        self._edges: list[Edge] = []

    def open(self) -> bool:
        """Open the port; what comes in the first moments is a box that starts up, and no press. One that says nothing is not pressed."""
        self.close()
        self._fd, _ = open_port(self.port, Line(BAUD))
        self._closed, self._edges = False, []
        end_s = time.monotonic() + SETTLE_S
        while (left_s := end_s - time.monotonic()) > 0:
            if select.select([self._fd], [], [], left_s)[0]:
                self._hear()
        self._edges.clear()
        return self._closed

    def wait(self, timeout_s: float) -> Edge | None:
        """The next edge, within so long."""
        end_s = time.monotonic() + timeout_s
        while not self._edges and select.select([self._fd], [], [], max(0.0, end_s - time.monotonic()))[0]:
            self._hear()
        return self._edges.pop(0) if self._edges else None

    def _hear(self) -> None:
        try:
            data = os.read(self._fd, MAX_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise PortLostError(f"{self.port}: {error.strerror}") from error
        if not data:
            raise PortLostError(f"{self.port} is gone")
        now_ns = time.monotonic_ns()
        for byte in data:
            closed = bool(byte & self.mask) != self.invert
            if closed is not self._closed:
                self._closed = closed
                self._edges.append(Edge(closed, now_ns))

    def close(self) -> None:
        """Let the port go."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
