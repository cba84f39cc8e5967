"""Trigger boxes and the bare line: reads what leaves, from the makers' byte tables alone.

A trigger says which line rises and nothing of the stimulation; so the pulse is what a person has said that the dials show.

Facts from: stimulators notes, section 2.3; Cedrus' own pyxid2 (BSD-3-Clause).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.wire import Pulse
from drivers.base import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

STATELESS = True  # a frame says all that there is to say

_SILENT = {
    "ttl-byte": (b"\x00",),
    # who are you, in which mode, which firmware; lines up for 5 ms; all lines down
    "ttl-cedrus": (b"_c1", b"_d2", b"_d4", b"mp\x05\x00\x00\x00", b"mh\x00\x00"),
    "ttl-line": (),
}
_FIRST_8 = (1, 2, 4, 8, 16, 32, 64, 128)
_CHANNELS = {
    "ttl-byte": {bytes((bit,)): channel for channel, bit in enumerate(_FIRST_8, 1)},
    "ttl-cedrus": {bytes((0x6D, 0x68, bit, 0)): channel for channel, bit in enumerate(_FIRST_8, 1)},
    "ttl-line": {b"\x00": 1},
}


def decoder(name: str, dial_current_ua: int, dial_phase_width_us: int, dial_interphase_gap_us: int) -> Callable[[bytes], Pulse | None]:
    """Return the decoder for one of the three, with what the stimulator behind is set to."""
    silent, channels = _SILENT[name], _CHANNELS[name]
    dials = (dial_current_ua, dial_phase_width_us, dial_interphase_gap_us)

    def decode(data: bytes) -> Pulse | None:
        """Read exactly one frame: its pulse, or None for what raises no line. Raises `WireError` for everything else."""
        if type(data) is not bytes:
            raise WireError(f"not bytes but {type(data).__name__}")
        if data in silent:
            return None
        if data not in channels:
            raise WireError(f"neither one line's pulse nor on the list of what may leave: {data[:40].hex(' ') or 'nothing'}")
        return Pulse(channels[data], *dials)

    return decode
