"""ScienceMode1 (RehaStim1): reads what leaves, from the maker's byte table alone.

On the list: the stop and the single pulse; no channel list.

Facts from: ScienceMode/ScienceMode1 02_Description Protocol/science_mode_200909.pdf and README.md. The gap between the phases is not stated
there; the figure is RehaStim2's, and not a field of the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.wire import Pulse
from drivers.base import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

STATELESS = True  # a frame says all of its pulse
_STOP = b"\xc0"
_GAP_US = 100


def decoder(name: str) -> Callable[[bytes], Pulse | None]:
    """The decoder for "sciencemode1"."""
    assert name == "sciencemode1", name
    return decode


def decode(data: bytes) -> Pulse | None:
    """Read exactly one frame: its pulse, or None for the stop. Raises `WireError` for everything else."""
    if type(data) is not bytes:
        raise WireError(f"not bytes but {type(data).__name__}")
    if data == _STOP:
        return None
    # as bits: 1 11 check(5), 0 channel(3) 00 width(2), 0 width(7), 0 milliampere(7)
    bits = "".join(f"{byte:08b}" for byte in data[:5])
    if len(bits) != 32 or bits[:3] != "111" or {bits[8], bits[12], bits[13], bits[16], bits[24]} != {"0"}:
        raise WireError(f"neither a stop nor a single pulse: {len(data)} bytes, {data[:40].hex(' ')}")
    check, channel, width_us, current_ma = (int(them, 2) for them in (bits[3:8], bits[9:12], bits[14:16] + bits[17:24], bits[25:]))
    if check != (channel + width_us + current_ma) & 31:
        raise WireError("the frame's check is wrong")
    if not 20 <= width_us <= 500:
        raise WireError(f"a width that the box cannot do: {width_us} us")
    if current_ma % 2 or not 2 <= current_ma <= 126:
        raise WireError(f"a current that the box cannot do: {current_ma} mA")
    return Pulse(channel + 1, current_ma * 1000, width_us, _GAP_US)
