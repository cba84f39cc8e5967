"""A key of a Linux input device: USB button, foot pedal, presenter, keyboard, switch adaptor.

On top a pure decoder, below it the device. Standard library only. Taken for us alone (EVIOCGRAB), so that a press types nothing elsewhere.
Every event carries the kernel's own stamp on the monotonic clock, so that a press which waited somewhere is known to be old (C7).

Formats and numbers: the Linux kernel's Documentation/input/input.rst and event-codes.rst, and its user-space headers linux/input.h and
linux/input-event-codes.h.
"""

from __future__ import annotations

import os
import select
import struct
from collections import deque
from fcntl import ioctl
from time import monotonic
from typing import NamedTuple

from drivers.base import DeviceMismatchError, DeviceNotFoundError, Edge, PortLostError

# --- codec ------------------------------------------------------------------------------------------------------------------------
EVENT = struct.Struct("@llHHi")  # seconds, microseconds, type, code, value
SYN, KEY = 0, 1  # types
REPORT, DROPPED = 0, 3  # codes of SYN
RELEASED, PRESSED, REPEATED = 0, 1, 2  # values of KEY
MAX_KEY = 0x2FF
KEY_BYTES = MAX_KEY // 8 + 1


class InputEvent(NamedTuple):
    """One event; `time_ns` is on the clock that the device was told to use."""

    time_ns: int
    type: int
    code: int
    value: int


def decode(data: bytes) -> list[InputEvent]:
    """All whole events in what was read; the kernel never tears one."""
    whole = data[: len(data) // EVENT.size * EVENT.size]
    return [InputEvent(s * 10**9 + us * 1000, kind, code, value) for s, us, kind, code, value in EVENT.iter_unpack(whole)]


def has(bits: bytes, code: int) -> bool:
    """Whether a bit of the kernel's bit field of keys is set."""
    return bool(bits[code // 8] >> code % 8 & 1)


def _row(first: int, names: str, prefix: str = "KEY_") -> dict[str, int]:
    return {prefix + name: first + n for n, name in enumerate(names.split())}


#: keys that buttons, pedals and presenters send; any other is given by its number
KEYS = (
    _row(1, "ESC 1 2 3 4 5 6 7 8 9 0 MINUS EQUAL BACKSPACE TAB Q W E R T Y U I O P LEFTBRACE RIGHTBRACE ENTER LEFTCTRL A S D F G H J K L")
    | _row(42, "LEFTSHIFT BACKSLASH Z X C V B N M COMMA DOT SLASH RIGHTSHIFT KPASTERISK LEFTALT SPACE CAPSLOCK")
    | _row(59, "F1 F2 F3 F4 F5 F6 F7 F8 F9 F10 NUMLOCK SCROLLLOCK KP7 KP8 KP9 KPMINUS KP4 KP5 KP6 KPPLUS KP1 KP2 KP3 KP0 KPDOT")
    | _row(87, "F11 F12")
    | _row(96, "KPENTER RIGHTCTRL KPSLASH SYSRQ RIGHTALT")
    | _row(102, "HOME UP PAGEUP LEFT RIGHT END DOWN PAGEDOWN INSERT DELETE")
    | _row(113, "MUTE VOLUMEDOWN VOLUMEUP POWER KPEQUAL KPPLUSMINUS PAUSE")
    | _row(163, "NEXTSONG PLAYPAUSE PREVIOUSSONG STOPCD")
    | _row(183, "F13 F14 F15 F16 F17 F18 F19 F20 F21 F22 F23 F24")
    | _row(0x100, "0 1 2 3 4 5 6 7 8 9", "BTN_")
    | _row(0x110, "LEFT RIGHT MIDDLE SIDE EXTRA FORWARD BACK TASK", "BTN_")
    | _row(0x120, "TRIGGER THUMB THUMB2 TOP TOP2 PINKIE BASE BASE2 BASE3 BASE4 BASE5 BASE6", "BTN_")
    | _row(0x130, "SOUTH EAST C NORTH WEST Z TL TR TL2 TR2 SELECT START MODE THUMBL THUMBR", "BTN_")
)


def code_of(key: str) -> int:
    """Code of a key by its name or number. Raises `DeviceNotFoundError`."""
    code = int(key) if key.isascii() and key.isdecimal() and len(key) < 5 else KEYS.get(key, 0)
    if not 1 <= code <= MAX_KEY:
        raise DeviceNotFoundError(f"no key is called {key!r}: give a name such as KEY_SPACE, or a number from 1 to {MAX_KEY}")
    return code


def name_of(code: int) -> str:
    """A key's name, or its number where we know no name."""
    return next((name for name, known in KEYS.items() if known == code), str(code))


# --- device -----------------------------------------------------------------------------------------------------------------------
def _request(direction: int, number: int, n_bytes: int) -> int:
    """Number of an ioctl of input devices; direction 1 = write, 2 = read (linux/ioctl.h)."""
    return direction << 30 | n_bytes << 16 | ord("E") << 8 | number


NAME_BYTES = 256
EVIOCGNAME = _request(2, 0x06, NAME_BYTES)
EVIOCGKEY = _request(2, 0x18, KEY_BYTES)  # which keys are down
EVIOCGBIT_KEY = _request(2, 0x20 + KEY, KEY_BYTES)  # which there are
EVIOCGRAB = _request(1, 0x90, 4)
EVIOCSCLOCKID = _request(1, 0xA0, 4)
CLOCK_MONOTONIC = 1
READ_EVENTS = 64


def open_input(path: str) -> tuple[int, str]:
    """Open an input device to read its keys, stamped by the monotonic clock. Raises `DeviceNotFoundError`, `DeviceMismatchError`.

    Returns
    -------
    fd : int
        Non-blocking.
    name : str
        What the device calls itself.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except PermissionError:
        raise DeviceNotFoundError(f"{path} may not be read by this user (group input)") from None
    except (OSError, ValueError) as error:
        raise DeviceNotFoundError(f"{path}: {getattr(error, 'strerror', error)}") from error
    try:
        name = ioctl(fd, EVIOCGNAME, bytes(NAME_BYTES)).split(b"\0")[0].decode(errors="replace")
        ioctl(fd, EVIOCSCLOCKID, struct.pack("i", CLOCK_MONOTONIC))
    except OSError as error:
        os.close(fd)
        raise DeviceMismatchError(f"{path} is not an input device: {error.strerror}") from error
    return fd, name


def read_events(fd: int, path: str) -> list[InputEvent]:
    """What has arrived; never blocks. Raises `PortLostError`."""
    try:
        data = os.read(fd, READ_EVENTS * EVENT.size)
    except BlockingIOError:
        return []
    except OSError as error:  # ENODEV: unplugged
        raise PortLostError(f"{path}: {error.strerror}") from error
    if not data:
        raise PortLostError(f"{path}: hung up")
    return decode(data)


class Hid:
    """One key of one input device; a `drivers.base.Button`.

    Parameters
    ----------
    path : str
        /dev/input/by-id/... by preference: /dev/input/event5 can be another device tomorrow.
    code : int
        The key's code.
    invert : bool
        The key is up while the button is pressed.
    """

    def __init__(self, path: str, code: int, invert: bool = False) -> None:
        self.path, self.code, self.invert = path, code, invert
        self.name = ""
        self._fd = -1
        self._closed = self._dropped = False
        self._edges: deque[Edge] = deque()

    def open(self) -> bool:
        """Take the device for us alone; returns whether the contact is closed."""
        self.close()
        self._fd, self.name = open_input(self.path)
        try:
            if not has(ioctl(self._fd, EVIOCGBIT_KEY, bytes(KEY_BYTES)), self.code):
                raise DeviceMismatchError(
                    f"{self.path} ({self.name}) has no {name_of(self.code)}: `calmloop button learn` says what it sends"
                )
            ioctl(self._fd, EVIOCGRAB, 1)
            self._closed = self._level()
        except OSError as error:
            self.close()
            raise DeviceNotFoundError(f"{self.path} is held by another program, or gone: {error.strerror}") from error
        except DeviceMismatchError:
            self.close()
            raise
        return self._closed

    def wait(self, timeout_s: float) -> Edge | None:
        """The next edge, within so long."""
        end_s = monotonic() + timeout_s
        while not self._edges:
            left_s = end_s - monotonic()
            if not select.select([self._fd], [], [], max(0.0, left_s))[0]:
                return None
            for event in read_events(self._fd, self.path):
                self._take(event)
            if left_s <= 0:
                break
        return self._edges.popleft() if self._edges else None

    def close(self) -> None:
        """Let the device go; the kernel ends the grab."""
        fd, self._fd = self._fd, -1
        self._edges.clear()
        self._dropped = False
        if fd >= 0:
            os.close(fd)

    def _take(self, event: InputEvent) -> None:
        if event.type == SYN and event.code == DROPPED:
            self._dropped = True
        elif self._dropped:  # the kernel has lost some: what is queued up to the next report is no whole story
            if event.type == SYN and event.code == REPORT:
                self._dropped = False
                try:
                    self._see(self._level(), event.time_ns)
                except OSError as error:
                    raise PortLostError(f"{self.path}: {error.strerror}") from error
        elif event.type == KEY and event.code == self.code and event.value != REPEATED:
            self._see((event.value == PRESSED) != self.invert, event.time_ns)

    def _see(self, closed: bool, time_ns: int) -> None:
        if closed is not self._closed:
            self._closed = closed
            self._edges.append(Edge(closed, time_ns))

    def _level(self) -> bool:
        return has(ioctl(self._fd, EVIOCGKEY, bytes(KEY_BYTES)), self.code) != self.invert
