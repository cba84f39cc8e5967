"""MotiMove 8: reads what leaves, from the one third-party program that is known.

On the list: the high voltage on or off with no current anywhere, and one pulse on one channel that leaves the high voltage as it is.

Facts from: phklatzer/IMUSEF MM_Message_Builder.py. Nothing in the frame says what the pulse looks like; that program has no gap between
phases, and 10 us stand for it, the least that a prescription can say.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from controller.wire import Pulse
from drivers.base import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

STATELESS = True  # a frame says all of its pulse
_LAYOUT = struct.Struct("> 4s B B 8s 8s 8s B B B B B")
_HEAD = bytes.fromhex("ff 22 08 00")  # start, 34 bytes follow, pulse by pulse, channels one after the other
_OFF, _ON, _KEEP = 0, 1, 2
_GAP_US = 10


def decoder(name: str) -> Callable[[bytes], Pulse | None]:
    """The decoder for "motimove"."""
    assert name == "motimove", name
    return decode


def decode(data: bytes) -> Pulse | None:
    """Read exactly one frame: its pulse, or None for what has no output. Raises `WireError` for everything else."""
    if type(data) is not bytes:
        raise WireError(f"not bytes but {type(data).__name__}")
    if len(data) != _LAYOUT.size:
        raise WireError(f"not one whole frame: {len(data)} bytes, {data[:40].hex(' ')}")
    head, period_ms, percent, currents_ma, widths, prescalers, doublets, interval, sensor, voltage, check = _LAYOUT.unpack(data)
    if head != _HEAD:
        raise WireError(f"another command, or channels at the same time: {head.hex(' ')}")
    if check != sum(data[1:-1]) & 0x7F:
        raise WireError("the frame's checksum is wrong")
    if set(prescalers) != {1} or (doublets, interval, sensor) != (0, 0, 0):
        raise WireError(f"prescalers, doublets or a sensor: {prescalers.hex(' ')}, {doublets} {interval} {sensor}")
    if not 10 <= period_ms <= 254:
        raise WireError(f"a period that the box cannot do: {period_ms} ms")
    active = [channel for channel in range(1, 9) if currents_ma[channel - 1] or widths[channel - 1]]
    if not active and percent == 0 and voltage in (_OFF, _ON):
        return None
    if voltage != _KEEP:
        raise WireError(f"a pulse, or an intensity, that switches the high voltage: {voltage}")
    if len(active) != 1:
        raise WireError(f"a pulse on channels {active}, not on one")
    current_ma, width = currents_ma[active[0] - 1], widths[active[0] - 1]
    if not 1 <= current_ma <= 170 or not 1 <= width <= 100:
        raise WireError(f"a pulse that the box cannot do: {current_ma} mA, {width * 10} us")
    if percent != 100:
        raise WireError(f"the frame would give {percent} % of its current")
    return Pulse(active[0], current_ma * 1000, width * 10, _GAP_US)
