"""ScienceMode3 and 4 (RehaMove3, P24): reads what leaves, from the makers' byte tables alone.

Facts from: RehaMove3_ScienceMode_Description_and_Protocol_20180421.pdf; P24_Instructions_for_Use_v1.1_20230125.pdf (pages 16-26).
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
    """The decoder for "rehamove3" or "p24"."""
    n_channels, questions = _SCIENCEMODE[name]
    return lambda data: decode_sciencemode(data, n_channels, questions)


# --- the frame -------------------------------------------------------------------------------------------------
# F0, head, payload, 0F. In the head each byte of length (2) and checksum (2) is a pair: 81, byte XOR 55. In the payload just F0, 0F and 81
# are such pairs, so there is one way alone to write a payload, and nothing but one whole frame matches.
_FRAME = re.compile(rb"\xf0\x81(.)\x81(.)\x81(.)\x81(.)((?:[^\xf0\x0f\x81]|\x81[\xa5\x5a\xd4])+)\x0f", re.DOTALL)
_PAIR = re.compile(rb"\x81(.)", re.DOTALL)
_MAX_BYTES = 1200


def _remainders() -> tuple[int, ...]:
    """Each byte times x^16, divided by x^16 + x^12 + x^5 + 1: long division."""
    table = []
    for byte in range(256):
        rest = byte << 16
        for place in range(7, -1, -1):
            if rest >> place + 16 & 1:
                rest ^= 0x11021 << place
        table.append(rest)
    return tuple(table)


_REMAINDERS = _remainders()


def _remainder(message: bytes) -> int:
    """The whole message as a polynomial, divided as above: 0 where its checksum stands at its end."""
    rest = 0
    for byte in message:
        rest = (rest & 0xFF) << 8 ^ byte ^ _REMAINDERS[rest >> 8]
    return rest


def _unwrap(data: bytes) -> tuple[int, bytes]:
    """Command and its data, of bytes that are one whole frame and nothing else. Raises `WireError`."""
    if type(data) is not bytes:
        raise WireError(f"not bytes but {type(data).__name__}")
    frame = _FRAME.fullmatch(data) if len(data) <= _MAX_BYTES else None
    if frame is None:
        raise WireError(f"not one whole frame: {len(data)} bytes, {data[:40].hex(' ')}")
    length_high, length_low, crc_high, crc_low = (ord(value) ^ 0x55 for value in frame.group(1, 2, 3, 4))
    payload = frame[5]
    if length_high * 256 + length_low != len(data):
        raise WireError(f"the frame states {length_high * 256 + length_low} bytes, has {len(data)}")
    if _remainder(payload + bytes((crc_high, crc_low))):
        raise WireError("the frame's checksum is wrong")
    plain = _PAIR.sub(lambda pair: bytes((pair[1][0] ^ 0x55,)), payload)
    if len(plain) < 2:
        raise WireError("the frame has no command")
    return (plain[0] & 3) << 8 | plain[1], plain[2:]  # the six bits above are the packet number, which may be any


# --- the commands ----------------------------------------------------------------------------------------------
_LL_INIT, _LL_CHANNEL_CONFIG, _LL_STOP, _ML_STOP = 0, 2, 4, 34
_VERSION_MAIN, _DEVICE_ID, _BATTERY_STATUS, _STIM_STATUS, _EXTENDED_VERSION = 50, 52, 54, 62, 68
_SCIENCEMODE = {  # channels, and the questions that a driver asks
    "rehamove3": (4, frozenset((_DEVICE_ID, _STIM_STATUS, _VERSION_MAIN, _BATTERY_STATUS))),
    "p24": (8, frozenset((_DEVICE_ID, _STIM_STATUS, _EXTENDED_VERSION))),
}
_ZERO, _STEP_UA, _MAX_STEPS = 300, 500, 260  # a point's current: the code of 0 mA, its step, and +-130 mA
_MIN_US = 10  # the box plays anything shorter as 10 µs


def decode_sciencemode(data: bytes, n_channels: int, questions: frozenset[int]) -> Pulse | None:
    """Read exactly one frame: its pulse, or None for what has no output. Raises `WireError` for everything else."""
    command, data = _unwrap(data)
    if command == _LL_CHANNEL_CONFIG:
        return _pulse(data, n_channels)
    if command == _LL_INIT:
        if data != b"\x00":
            raise WireError(f"low level at another high voltage or with a measurement: {data.hex(' ') or 'no data'}")
    elif command not in (_LL_STOP, _ML_STOP) and command not in questions:
        raise WireError(f"command {command} is not on the list of what may leave")
    elif data:
        raise WireError(f"command {command} takes no data, has {data.hex(' ')}")
    return None


def _pulse(data: bytes, n_channels: int) -> Pulse:
    """Read Ll_channel_config: `1 channel(2) connector(1) points-1(4)`, then a point each 4 bytes. Raises `WireError`."""
    head = data[0] if data else 0
    if not head & 0x80:
        raise WireError("a pulse without its execute bit: the box would keep it")
    channel = 1 + (head >> 5 & 3) + 4 * (head >> 4 & 1)
    if channel > n_channels:
        raise WireError(f"channel is {channel}, the box has {n_channels}")
    points = [_point(data[i : i + 4]) for i in range(1, len(data), 4)]
    if len(points) != 1 + (head & 15):
        raise WireError(f"states {1 + (head & 15)} points, has {len(points)}")
    if len(points) not in (2, 3):
        raise WireError(f"{len(points)} points are no biphasic pulse")
    (width_us, current_ua), (second_width_us, second_ua) = points[0], points[-1]
    gap_us, gap_ua = points[1] if len(points) == 3 else (0, 0)
    if gap_ua:
        raise WireError(f"current in the interphase gap: {gap_ua} uA")
    if current_ua <= 0 or second_ua >= 0:
        raise WireError(f"monophasic, empty or turned round: {current_ua} uA, then {second_ua} uA")
    if width_us != second_width_us or current_ua != -second_ua:
        raise WireError(f"unbalanced: {width_us} us at {current_ua} uA, then {second_width_us} us at {second_ua} uA")
    return Pulse(channel, current_ua, width_us, gap_us)


def _point(word: bytes) -> tuple[int, int]:
    """Duration in µs (12 bits), current in µA (10 bits), 10 bits that are nought. Raises `WireError`."""
    if len(word) != 4:
        raise WireError("a point is cut short")
    duration_us = word[0] << 4 | word[1] >> 4
    steps = ((word[1] & 15) << 6 | word[2] >> 2) - _ZERO
    if word[2] & 3 or word[3]:
        raise WireError(f"reserved bits of a point are set: {word.hex(' ')}")
    if duration_us < _MIN_US or abs(steps) > _MAX_STEPS:
        raise WireError(f"a point that the box would change: {duration_us} us at {steps * _STEP_UA} uA")
    return duration_us, steps * _STEP_UA
