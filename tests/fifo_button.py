"""The button's own process, with a named pipe for an input device, and beside it a file while the key is down."""

import sys
from pathlib import Path

from controller import button
from drivers.buttons import hid

SPACE = 57


def ioctl(fd, request, argument):
    """The kernel's part, as linux/input.h has it."""
    number, n_bytes = request & 0xFF, request >> 16 & 0x3FFF
    if number == 0x06:
        return b"a pedal".ljust(n_bytes, b"\0")
    if number == 0x21:
        return bytes([0xFF] * n_bytes)
    if number == 0x18:
        down = Path(f"{Path(f'/proc/self/fd/{fd}').readlink()}.down").exists()
        return (down << SPACE).to_bytes(n_bytes, "little")
    assert number in (0x90, 0xA0)
    return argument


if __name__ == "__main__":
    hid.ioctl = ioctl
    sys.exit(button.main())
