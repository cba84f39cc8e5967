"""ScienceMode2 (RehaStim2): reads what leaves, from the maker's byte tables alone.

Facts from: Science_Mode2_Description_Protocol_20121212.pdf (version 1.24); ScienceMode/ScienceMode2 README.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from controller.wire import Pulse
from drivers.base import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

STATELESS = True  # a frame says all of its pulse


def decoder(name: str) -> Callable[[bytes], Pulse | None]:
    """The decoder for "sciencemode2"."""
    return decode_sciencemode2


# --- the frame -------------------------------------------------------------------------------------------------
# F0, head, payload, 0F. In the head checksum and length are each a pair: 81, byte XOR 55. In the payload just F0, 0F and 81 are such
# pairs, so there is one way alone to write a payload, and nothing but one whole frame matches.
_FRAME = re.compile(rb"\xf0\x81(.)\x81(.)((?:[^\xf0\x0f\x81]|\x81[\xa5\x5a\xd4])+)\x0f", re.DOTALL)
_PAIR = re.compile(rb"\x81(.)", re.DOTALL)


def _remainders() -> tuple[int, ...]:
    """Each byte times x^8, divided by x^8 + x^2 + x + 1: long division."""
    table = []
    for byte in range(256):
        rest = byte << 8
        for place in range(7, -1, -1):
            if rest >> place + 8 & 1:
                rest ^= 0x107 << place
        table.append(rest)
    return tuple(table)


_REMAINDERS = _remainders()


def _remainder(message: bytes) -> int:
    """The whole message as a polynomial, divided as above: 0 where its checksum stands at its end."""
    rest = 0
    for byte in message:
        rest = _REMAINDERS[rest] ^ byte
    return rest


def _unwrap(data: bytes) -> tuple[int, bytes]:
    """Command and its data, of bytes that are one whole frame and nothing else. Raises `WireError`."""
    if type(data) is not bytes:
        raise WireError(f"not bytes but {type(data).__name__}")
    frame = _FRAME.fullmatch(data)
    if frame is None:
        raise WireError(f"not one whole frame: {len(data)} bytes, {data[:40].hex(' ')}")
    crc, length = (ord(value) ^ 0x55 for value in frame.group(1, 2))
    payload = frame[3]
    if length != len(payload):
        raise WireError(f"the frame states {length} bytes of payload, has {len(payload)}")
    if _remainder(payload + bytes((crc,))):
        raise WireError("the frame's checksum is wrong")
    plain = _PAIR.sub(lambda pair: bytes((pair[1][0] ^ 0x55,)), payload)
    if len(plain) < 2:
        raise WireError("the frame has no command")
    return plain[1], plain[2:]  # before it the packet number, which may be any


# --- the commands ----------------------------------------------------------------------------------------------
_SILENT = {  # what has no output, and the data that it may have
    2: (b"\x00", b"\xfb"),  # InitAck: ok, or version not supported (-5)
    4: (b"",),  # Watchdog
    10: (b"",),  # GetStimulationMode
    34: (b"",),  # StopChannelListMode
}
_SINGLE_PULSE = 36
_CHANNELS, _MAX_MA = 8, 126
_MIN_US, _MAX_US = 20, 500  # the box plays anything shorter as 20 µs
_GAP_US = 100  # fixed


def decode_sciencemode2(data: bytes) -> Pulse | None:
    """Read exactly one frame: its pulse, or None for what has no output. Raises `WireError` for everything else."""
    command, data = _unwrap(data)
    if command == _SINGLE_PULSE:
        return _pulse(data)
    if command not in _SILENT:
        raise WireError(f"command {command} is not on the list of what may leave")
    if data not in _SILENT[command]:
        raise WireError(f"command {command} with data that it must not have: {data.hex(' ') or 'none'}")
    return None


def _pulse(data: bytes) -> Pulse:
    """Read SinglePulse: channel from 0, phase width in µs (2 bytes), current in mA. The box makes it biphasic and balanced itself."""
    if len(data) != 4:
        raise WireError(f"a pulse of {len(data)} bytes, not 4")
    channel, width_us, current_ma = data[0], data[1] * 256 + data[2], data[3]
    if channel >= _CHANNELS:
        raise WireError(f"channel is {channel + 1}, the box has {_CHANNELS}")
    if not _MIN_US <= width_us <= _MAX_US:
        raise WireError(f"a pulse that the box would change or refuse: {width_us} us, it can {_MIN_US} to {_MAX_US}")
    if not 0 < current_ma <= _MAX_MA or current_ma % 2:
        raise WireError(f"a pulse that the box would change or refuse: {current_ma} mA, it can 2 to {_MAX_MA} in steps of 2")
    return Pulse(channel + 1, current_ma * 1000, width_us, _GAP_US)
