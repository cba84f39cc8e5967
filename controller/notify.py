"""What a service tells systemd, by sd_notify(3): ready, alive, how it is, ending. Where systemd did not start it, nothing is said."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping


class Notifier:
    """The service's end; every method returns at once, whether or not systemd takes what is said.

    Parameters
    ----------
    environ : mapping
        Where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are taken out of, so that no child speaks for the service.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address, usec, pid = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        self.address = "\0" + address[1:] if address.startswith("@") else address
        ours = bool(address) and usec.isdecimal() and pid in ("", str(os.getpid()))
        self.every_s = int(usec) / 2e6 if ours else 0.0  # half of it, as sd_watchdog_enabled(3) advises; 0 = no watchdog
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if address else None
        self.alive_s, self.ready, self.status = float("-inf"), False, ""

    def say(self, *lines: str) -> bool:
        """Send assignments such as "READY=1"; False where nobody took them."""
        if not self.socket:
            return False
        try:
            self.socket.sendto("\n".join(lines).encode(), self.address)
        except OSError:  # full, or gone: it is said again, or there is nobody to hear it
            return False
        return True

    def turn(self, now_s: float, ready: bool, status: str) -> None:
        """Say what is due: that it is ready, once; what has changed; that it is alive.

        Parameters
        ----------
        now_s : float
            Monotonic time.
        ready : bool
            Whether the service serves.
        status : str
            Its state in one line.
        """
        alive = self.every_s > 0 and now_s - self.alive_s >= self.every_s
        status = " ".join(status.split())
        lines = ["READY=1"] * (ready and not self.ready) + [f"STATUS={status}"] * (status != self.status) + ["WATCHDOG=1"] * alive
        if lines and self.say(*lines):
            self.ready, self.status = self.ready or ready, status
            self.alive_s = now_s if alive else self.alive_s

    def alive(self) -> None:
        """Begin a new watchdog time."""
        if self.every_s > 0:
            self.say("WATCHDOG=1")

    def stopping(self, why: str) -> None:
        """Say that it ends, and why, and nothing after it; what is left to do gets a whole watchdog time."""
        self.say("STOPPING=1", f"STATUS={' '.join(why.split())}", *["WATCHDOG=1"] * (self.every_s > 0))
        if self.socket:
            self.socket.close()
            self.socket = None
