"""Pulse Pal: follows what leaves, since the box keeps the pulse and a trigger says only which channel plays.

Each parameter that leaves is remembered; a trigger is a pulse where all that its channel needs is known and makes one biphasic, balanced
pulse, once. An abort makes everything unknown again, and so does anything that may not leave.

A frame is read before it is written. Where its write then fails, this model is ahead of the box, until the stop that every failure is
followed by; after it nothing but a full programming leads to a pulse.

Facts from: stimulators notes, section 2.1; sites.google.com/site/pulsepalwiki/usb-serial-interface/usb-interface-v2-x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.wire import Pulse
from drivers.base import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

STATELESS = False  # what a trigger plays was said before

_STEP_UA = 500
_CYCLE_US = 50
_HANDSHAKE, _ABORT, _NAME = b"\xd5\x48", b"\xd5\x50", b"\xd5\x59"
_PROGRAM, _TRIGGER = 0x4A, 0x4D
_BIPHASIC, _VOLTS1, _VOLTS2, _WIDTH1, _GAP, _WIDTH2, _INTERPULSE, _TRAIN = 1, 2, 3, 4, 5, 6, 7, 10
_SIZES = dict.fromkeys((1, 12, 13, 14, 15, 16), 1) | dict.fromkeys((2, 3, 17), 2) | dict.fromkeys(range(4, 12), 4)
# burst, interburst, delay, link to either trigger input, custom train, its target, its loop: none; at rest 0 V, for it is put out at once
_ONLY = {_BIPHASIC: 1} | dict.fromkeys((8, 9, 11, 12, 13, 14, 15, 16), 0) | {17: 0x8000}


def decoder(name: str, ua_per_volt: int) -> Callable[[bytes], Pulse | None]:
    """Return a decoder of its own memory for one box, behind which a volt makes `ua_per_volt`."""
    if name != "pulsepal":
        raise WireError(f"no Pulse Pal is called {name!r}")
    return _Box(ua_per_volt).decode


class _Box:
    """What the box has been told."""

    def __init__(self, ua_per_volt: int) -> None:
        self._ua_per_volt = ua_per_volt
        self._last = b""
        self._forget()

    def _forget(self) -> None:
        self._known: dict[int, dict[int, int]] = {channel: {} for channel in (1, 2, 3, 4)}

    def decode(self, data: bytes) -> Pulse | None:
        """Read one write: its pulse, or None for what has no output. Raises `WireError` for everything else."""
        last, self._last = self._last, b""
        try:
            if type(data) is not bytes:
                raise WireError(f"not bytes but {type(data).__name__}")
            if data.endswith(_ABORT) and data[:-2] in _rests(last):
                self._forget()
                data, pulse = data if data == _ABORT else last, None  # if the port takes nothing of it either, it is said again
            elif data == _HANDSHAKE or (data[:2] == _NAME and len(data) == 8 and data[2:].isascii()):
                pulse = None
            else:
                pulse = self._follow(data)
        except WireError:
            self._forget()
            raise
        self._last = data
        return pulse

    def _follow(self, data: bytes) -> Pulse | None:
        """Parameters, and at the end perhaps one trigger and its receipt."""
        if not data:
            raise WireError("nothing is to be written")
        at = 0
        while at < len(data):
            size = _size(data, at)
            if at + size > len(data):
                raise WireError(f"cut short: {data[at:].hex(' ')}")
            if data[at + 1] == _PROGRAM:
                self._program(data[at + 2], data[at + 3], int.from_bytes(data[at + 4 : at + size], "little"))
            elif data[at + size :] not in (b"", _receipt(data[at + 2])):
                raise WireError(f"something behind a trigger that is no receipt of it: {data.hex(' ')}")
            else:
                return self._play(data[at + 2])
            at += size
        return None

    def _program(self, parameter: int, channel: int, value: int) -> None:
        if channel not in self._known:
            raise WireError(f"channel is {channel}, the box has 4")
        if value != _ONLY.get(parameter, value):
            raise WireError(f"parameter {parameter} is {value}: only {_ONLY[parameter]} may leave")
        self._known[channel][parameter] = value

    def _play(self, mask: int) -> Pulse:
        if mask not in (1, 2, 4, 8):
            raise WireError(f"a trigger of channels {mask:#010b} is not one of one channel")
        channel = mask.bit_length()
        known = self._known[channel]
        if missing := sorted(_SIZES.keys() - known.keys()):
            raise WireError(f"a trigger of channel {channel}, whose parameters {missing} are not known")
        width, gap = known[_WIDTH1], known[_GAP]
        if not width or known[_WIDTH2] != width:
            raise WireError(f"unbalanced: {width} cycles, then {known[_WIDTH2]}")
        if known[_TRAIN] != 2 * width + gap or known[_INTERPULSE] < known[_TRAIN]:
            raise WireError(f"not one pulse: {known[_TRAIN]} cycles with {known[_INTERPULSE]} between pulses of {2 * width + gap}")
        current_ua, second_ua = self._current_ua(known[_VOLTS1]), self._current_ua(known[_VOLTS2])
        if current_ua <= 0 or second_ua != -current_ua:
            raise WireError(f"unbalanced, empty or turned round: {current_ua} uA, then {second_ua} uA")
        return Pulse(channel, current_ua, width * _CYCLE_US, gap * _CYCLE_US)

    def _current_ua(self, code: int) -> int:
        """Return the whole step of current whose voltage, rounded up, has this code: 0 is -10 V, 65535 is 10 V. Raises `WireError`."""
        above, at_most = ((20 * it - 655_350) * self._ua_per_volt for it in (code - 1, code))  # µA x 65535
        current_ua = at_most // 65_535 // _STEP_UA * _STEP_UA
        if current_ua * 65_535 <= above:
            raise WireError(f"code {code} is not a multiple of {_STEP_UA} uA at {self._ua_per_volt} uA for a volt")
        return current_ua


def _size(data: bytes, at: int) -> int:
    """Length of the operation that begins there. Raises `WireError` for one that may not leave."""
    if data[at] == 0xD5 and data[at + 1 : at + 2] == b"\x4d":
        return 3
    if data[at] == 0xD5 and data[at + 1 : at + 2] == b"\x4a" and data[at + 2 : at + 3] and data[at + 2] in _SIZES:
        return 4 + _SIZES[data[at + 2]]
    raise WireError(f"not on the list of what may leave: {data[at : at + 8].hex(' ')}")


def _receipt(mask: int) -> bytes:
    """What may follow a trigger: a parameter that changes nothing, since parameters are acknowledged and triggers are not."""
    return bytes((0xD5, _PROGRAM, 12, mask.bit_length(), 0))


def _rests(last: bytes) -> set[bytes]:
    """All that the box may still wait for when a part of `last` was written: the rest of the operation that was torn, or none.

    Of a trigger it is the mask, which becomes that of no channel.
    """
    rests = {b""}
    at = 0
    while at < len(last):
        size = _size(last, at) if last[at + 1] in (_PROGRAM, _TRIGGER) else len(last)
        whole = last[at : at + size] if last[at + 1] != _TRIGGER else b"\xd5\x4d\x00"
        rests |= {whole[n:] for n in range(1, size)}
        at += size
    return rests
