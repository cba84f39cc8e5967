"""HASOMED RehaStim2 (ScienceMode2), single pulses: one frame is one pulse.

On top a pure codec, below it the device on a serial port. Standard library only: guard, a small process, holds this driver. The composition
root imports it through `drivers.stimulators.load`; it imports `drivers.base` alone. Never here: trains in time, doses, retries of a pulse.

Single pulses rather than the channel list mode: a list plays on by itself for up to 1.2 s after its host was killed, a pulse does not.

The box speaks first: an Init each 500 ms until it is answered, and again as soon as it has heard nothing for 1.2 s. So `open` says nothing
before it has heard an Init, which a box that an earlier session left initialised says too, a little later: whatever else is at the port
gets no byte of ours (a trigger box would make a pulse of each). In the middle of a session an Init means that the box has begun anew: an
event. `keep_alive` spares a quiet session that; no output hangs on it, since the box plays nothing on by itself, and a box that hears
nothing any more falls back to where it gives none.

Facts from: Science_Mode2_Description_Protocol_20121212.pdf (version 1.24); ScienceMode/ScienceMode2 README.md. Its text says little endian,
its tables and every implementation have the most significant byte first. The box has no serial number, no high voltage to switch, and no
electrode check without a pulse.
"""

from __future__ import annotations

import os
import re
import time
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from drivers.base import (
    AckTimeoutError,
    DeviceEvent,
    DeviceEventKind,
    DeviceMismatchError,
    ProtocolError,
    PulseTrain,
    StimulatorLimits,
)
from drivers.stimulators.serial_device import (
    ANSWER_TIMEOUT_S,
    DISARM_TIMEOUT_S,
    IDENTIFY_TIMEOUT_S,
    N_TRIES,
    Line,
    SerialDevice,
    check_in_steps,
    check_train,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# --- codec: the frame -------------------------------------------------------------------------------------------------------------
# F0 | 81 crc | 81 length | stuffed payload | 0F. Crc and length are always stuffed, so any value, F0 and 0F too, may stand there; in the
# payload those two never do. Both speak of the stuffed payload: packet number, command, data.
START, STOP, STUFF, KEY = 0xF0, 0x0F, 0x81, 0x55
N_HEADER_BYTES = 5
MAX_PAYLOAD_BYTES = 255
N_NUMBERS = 256

_STUFFED = tuple((bytes((byte,)), bytes((STUFF, byte ^ KEY))) for byte in (STUFF, START, STOP))  # STUFF first, or it is stuffed twice
_PAYLOAD = rb"(?:[^\xf0\x0f\x81]|\x81[\xa5\x5a\xd4])*"
_FRAME = re.compile(rb"\xf0\x81(.)\x81(.)(%b)\x0f" % _PAYLOAD, re.DOTALL)
_BEGUN = re.compile(rb"\xf0(?:\x81(?:.(?:\x81(?:.%b\x81?)?)?)?)?" % _PAYLOAD, re.DOTALL)


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte << 1 ^ (0x107 if byte & 0x80 else 0)
    return byte


_CRC = bytes(map(_crc_of_byte, range(256)))


def crc8(data: bytes) -> int:
    """CRC-8, polynomial 07, start 0, most significant bit first."""
    crc = 0
    for byte in data:
        crc = _CRC[crc ^ byte]
    return crc


class Command(IntEnum):
    """What a frame is; the answer to `c`, where there is one, is `c + 1`."""

    INIT = 1  # from the box
    INIT_ACK = 2  # from us
    UNKNOWN_COMMAND = 3  # from the box
    WATCHDOG = 4
    GET_STIMULATION_MODE = 10
    STOP_CHANNEL_LIST_MODE = 34
    SINGLE_PULSE = 36
    STIMULATION_ERROR = 38  # from the box, unasked


VERSION = 1  # of the protocol; all that a box says of itself
START_MODE = 0
MODES = ("start", "list initialised", "list started")

RESULT_OK, RESULT_WRONG_MODE, RESULT_VERSION = 0, -3, -5
RESULTS = {
    RESULT_OK: "ok",
    -1: "transfer error",
    -2: "parameter error",
    RESULT_WRONG_MODE: "wrong mode",
    -4: "MOTOmed connection error",
    RESULT_VERSION: "version not supported",
    -6: "invalid MOTOmed trainer",
    -7: "MOTOmed busy",
    -8: "busy",
}
ERRORS = {
    -1: (DeviceEventKind.EMERGENCY_STOP, "the emergency stop was pressed, or is not connected"),
    -2: (DeviceEventKind.ELECTRODE_ERROR, "electrode error"),
    -3: (DeviceEventKind.DEVICE_ERROR, "error of the stimulation module"),
}


class Frame(NamedTuple):
    """A frame without its wrapping."""

    number: int
    command: int
    data: bytes

    @property
    def code(self) -> int:
        """First byte of the data as the signed result that most answers begin with; 1, which is no result, where there is none."""
        return int.from_bytes(self.data[:1], signed=True) if self.data else 1


def encode_frame(number: int, command: int, data: bytes = b"") -> bytes:
    """Wrap one command for the wire; `number` (0..255) comes back in the answer."""
    payload = bytes((number, command)) + data
    for plain, stuffed in _STUFFED:
        payload = payload.replace(plain, stuffed)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload of {len(payload)} bytes is longer than {MAX_PAYLOAD_BYTES}")
    return bytes((START, STUFF, crc8(payload) ^ KEY, STUFF, len(payload) ^ KEY)) + payload + bytes((STOP,))


class Deframer:
    """Bytes in, frames out, however the bytes are cut up; never raises, never holds a whole frame's length or more between calls.

    Attributes
    ----------
    n_bad_frames : int
        What was thrown away so far: broken frames, and runs of bytes outside any frame.
    fault : str
        What was wrong with the last of them.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._in_step = True  # the last thing seen was a good frame
        self.n_bad_frames = 0
        self.fault = ""

    def feed(self, data: bytes) -> list[Frame]:
        """Take what the port gave; return the frames that are now complete."""
        frames: list[Frame] = []
        self._buffer += data
        while self._buffer:
            match = _FRAME.match(self._buffer)
            fault = _fault_of(match) if match else _fault_of_piece(self._buffer)
            if match and not fault:
                frames.append(_unstuff(match[3]))
                self._in_step = True
                self._buffer = self._buffer[match.end() :]
            elif fault:
                if self._buffer[0] == START or self._in_step:
                    self.n_bad_frames += 1
                    self.fault = fault
                self._in_step = False
                start = self._buffer.find(START, 1)  # a cut frame may have swallowed the start of the next
                self._buffer = self._buffer[start:] if start > 0 else b""
            else:
                break
        return frames


def _fault_of(match: re.Match[bytes]) -> str:
    """What is wrong with a frame that ends; empty = nothing."""
    crc, n_bytes = (ord(match[i]) ^ KEY for i in (1, 2))
    if len(match[3]) != n_bytes:
        return "length"
    if crc8(match[3]) != crc:
        return "checksum"
    return "" if len(_unstuff_bytes(match[3])) >= 2 else "no command"


def _fault_of_piece(buffer: bytes) -> str:
    """What is wrong with a frame that has not ended yet; empty = nothing."""
    if buffer[0] != START:
        return "bytes outside a frame"
    if not _BEGUN.fullmatch(buffer):
        return "frame cut short"
    if len(buffer) >= N_HEADER_BYTES and len(buffer) - N_HEADER_BYTES > buffer[4] ^ KEY:
        return "no stop byte"
    return ""


def _unstuff_bytes(payload: bytes) -> bytes:
    for plain, pair in reversed(_STUFFED):
        payload = payload.replace(pair, plain)
    return payload


def _unstuff(payload: bytes) -> Frame:
    plain = _unstuff_bytes(payload)
    return Frame(plain[0], plain[1], plain[2:])


# --- codec: the commands ----------------------------------------------------------------------------------------------------------
GAP_US = 100  # between the phases; fixed
_SLOT_US = 1500  # the box gives each pulse so much

LIMITS = StimulatorLimits(
    model="RehaStim2",
    n_channels=8,
    max_current_ua=126_000,
    current_step_ua=2000,  # fields of 1 mA up to 130, README: 126 in steps of 2 mA. What both can do
    min_phase_width_us=20,  # the box plays anything shorter as 20 µs
    max_phase_width_us=500,
    phase_width_step_us=1,
    # A pulse comes 10 to 24 ms after its command (README), and pulses must be 10 ms apart. When in that time the answer comes is not
    # documented (within 100 ms, below 20 on average): guard takes it for the end of the pulse, but it may come before. So its next command
    # is kept 10 + 14 ms after the answer, and the length of the longest pulse more. Of a period of 30.3 ms that leaves 6 for the answer;
    # where it takes longer, guard leaves out pulses, and never makes up for them.
    max_pulse_rate_hz=33.0,
    vendor_latency_ms=10.0,
    latency_spread_ms=14.0 + (2 * 500 + GAP_US) / 1000,
    keep_alive_s=0.5,  # the box waits for 1.2 s
)


def encode_single_pulse(number: int, channel: int, phase_width_us: int, current_ua: int) -> bytes:
    """One biphasic, balanced pulse on `channel` (1..8). Raises `LimitError`."""
    check_in_steps("channel", channel, 1, LIMITS.n_channels, 1)
    check_in_steps("phase_width_us", phase_width_us, LIMITS.min_phase_width_us, LIMITS.max_phase_width_us, 1)
    check_in_steps("current_ua", current_ua, LIMITS.current_step_ua, LIMITS.max_current_ua, LIMITS.current_step_ua)
    data = bytes((channel - 1, phase_width_us >> 8, phase_width_us & 255, current_ua // 1000))
    return encode_frame(number, Command.SINGLE_PULSE, data)


def decode_single_pulse(frame: Frame) -> tuple[int, int, int]:
    """Channel, phase width in µs, current in µA; for checking our own frames before they may be sent. Raises `ProtocolError`."""
    if frame.command != Command.SINGLE_PULSE or len(frame.data) != 4:
        raise ProtocolError(f"not a pulse: {frame}")
    channel, high, low, current_ma = frame.data
    return channel + 1, high << 8 | low, current_ma * 1000


def event_of(frame: Frame) -> DeviceEvent | None:
    """What a frame from the box means to guard; None for an answer that only confirms a question or a stop."""
    code = frame.code
    match frame.command, len(frame.data):
        case Command.INIT, 1:
            return DeviceEvent(DeviceEventKind.DEVICE_RESET, -1, code, "the box began anew: it was reset, or heard nothing for 1.2 s")
        case Command.STIMULATION_ERROR, 1:
            kind, text = ERRORS.get(code, (DeviceEventKind.DEVICE_ERROR, f"unknown stimulation error ({code})"))
            return DeviceEvent(kind, -1, code, text)
        case Command.UNKNOWN_COMMAND, 1:
            return DeviceEvent(DeviceEventKind.DEVICE_ERROR, frame.number, code, f"the box does not know command {frame.data[0]}")
        case answer, 1 if answer == Command.SINGLE_PULSE + 1:
            command = Command.SINGLE_PULSE
        case answer, 1 if answer == Command.STOP_CHANNEL_LIST_MODE + 1:
            command = Command.STOP_CHANNEL_LIST_MODE
        case answer, 1 | 2 if answer == Command.GET_STIMULATION_MODE + 1:
            command = Command.GET_STIMULATION_MODE
        case _:
            words = f"unexpected frame: command {frame.command}, {len(frame.data)} bytes"
            words += ": a MOTOmed is connected" if 50 <= frame.command <= 90 else ""
            return DeviceEvent(DeviceEventKind.PROTOCOL_ERROR, frame.number, code, words)
    if code == RESULT_OK:
        return DeviceEvent(DeviceEventKind.ACK, frame.number, 0, "pulse taken") if command is Command.SINGLE_PULSE else None
    if command is Command.STOP_CHANNEL_LIST_MODE and code == RESULT_WRONG_MODE:
        return None  # no list to stop
    return DeviceEvent(DeviceEventKind.DEVICE_ERROR, frame.number, code, f"{command.name}: {_result_name(code)}")


def _result_name(code: int) -> str:
    return f"{RESULTS.get(code, 'unknown result')} ({code})"


# --- device -----------------------------------------------------------------------------------------------------------------------
# An initialised box that hears nothing for 1.2 s says Init within another 0.5 s.
INIT_WAIT_S = 1.2 + 0.5 + 0.1
GOODBYE_S = 0.05  # closing drops what the port has not sent yet

_STOP_FRAMES = tuple(encode_frame(number, Command.STOP_CHANNEL_LIST_MODE) for number in range(N_NUMBERS))


class ScienceMode2(SerialDevice[Frame]):
    """RehaStim2 on a serial port, pulse by pulse; a `drivers.base.Stimulator`.

    Parameters
    ----------
    port : str
        Name of the serial port.
    model : str
        "sciencemode2".
    write : callable
        As `os.write`; every byte goes through it.
    """

    LINE = Line(460_800, parity="E")

    def __init__(self, port: str, model: str = "sciencemode2", write: Callable[[int, bytes], int] = os.write) -> None:
        super().__init__(port, model, LIMITS, write)
        self._n_numbers = N_NUMBERS

    def keep_alive(self) -> None:
        """Watchdog: the one command without an answer."""
        self._send(encode_frame(self._next_number(), Command.WATCHDOG), is_stop=True)  # as harmless as one, wherever it waits

    def _new_deframer(self) -> Deframer:
        return Deframer()

    def _identify(self) -> dict[str, object]:
        """Wait for the box's Init, answer it, and ask whether that was heard."""
        n_read_before = self._n_read_bytes
        try:
            init = self._await(lambda it: it.command == Command.INIT and len(it.data) == 1, "with its Init", INIT_WAIT_S)
        except AckTimeoutError:
            if self._n_read_bytes > n_read_before:
                words = f"something is heard, but not the Init of a {self._limits.model} at {self.LINE}"
                raise DeviceMismatchError(f"{self.port}: {words}; or another program keeps it awake") from None
            raise
        self._greet(init)
        self._ask_mode(N_TRIES)
        self._pending.clear()  # the rest of an Init, or another one, before the box had heard us: no reset
        return {"protocol": VERSION}

    def _greet(self, init: Frame) -> None:
        """Answer an Init. Raises `DeviceMismatchError` for a version that is not ours, and tells the box so."""
        wrong = init.data[0] != VERSION
        self._send(encode_frame(init.number, Command.INIT_ACK, (RESULT_VERSION if wrong else RESULT_OK).to_bytes(signed=True)))
        if wrong:
            time.sleep(GOODBYE_S)
            raise DeviceMismatchError(f"{self.port}: a {self._limits.model} with version {init.data[0]} of its protocol, not {VERSION}")

    def _who_is_there(self) -> str:
        self._ask_mode(timeout_s=IDENTIFY_TIMEOUT_S)
        return f"{self._limits.model} - {VERSION}"  # whoever has another version was not greeted

    def _switch_on(self) -> None:
        """No high voltage to switch: only whether the box would take a pulse."""
        mode = self._ask_mode()
        if mode != START_MODE:
            raise ProtocolError(f"{self._limits.model} does not arm: its mode is {_mode_name(mode)}, not {MODES[START_MODE]}")

    def _stop_frame(self) -> bytes:
        return _STOP_FRAMES[self._number]

    def _switch_off(self) -> None:
        number = self._next_number()
        self._send(_STOP_FRAMES[number], is_stop=True)
        answer = self._await(
            lambda it: it.number == number and it.command == Command.STOP_CHANNEL_LIST_MODE + 1, "a stop", DISARM_TIMEOUT_S
        )
        self._take([answer])

    def _take_frame(self, frame: Frame) -> DeviceEvent | None:
        self._stop_answered |= frame.command == Command.STOP_CHANNEL_LIST_MODE + 1
        return event_of(frame)

    def _ask_mode(self, n_tries: int = 1, timeout_s: float = ANSWER_TIMEOUT_S) -> int:
        """Ask for the stimulation mode, again if need be. Raises `AckTimeoutError`, `ProtocolError`."""
        for n_tries_left in reversed(range(n_tries)):
            number = self._next_number()
            self._send(encode_frame(number, Command.GET_STIMULATION_MODE))
            try:
                answer = self._await(
                    lambda it, asked=number: it.number == asked and it.command == Command.GET_STIMULATION_MODE + 1,  # type: ignore[misc]
                    Command.GET_STIMULATION_MODE.name,
                    timeout_s,
                )
            except AckTimeoutError:
                if n_tries_left:
                    continue
                raise
            if answer.code != RESULT_OK or len(answer.data) != 2:
                raise ProtocolError(f"{self._limits.model} does not say its mode: {_result_name(answer.code)}")
            return answer.data[1]
        raise AssertionError("unreachable")

    def _encode(self, train: PulseTrain) -> dict[int, tuple[bytes, ...]]:
        """Every frame of one train, each decoded again and compared before it counts as sendable."""
        current_ua = check_train(train, self._limits, _SLOT_US, range(GAP_US, GAP_US + 1))
        step_ua = self._limits.current_step_ua
        levels: dict[int, tuple[bytes, ...]] = {}
        for level_ua in range(step_ua, current_ua + 1, step_ua):
            frames = tuple(encode_single_pulse(number, train.channel, train.phase_width_us, level_ua) for number in range(N_NUMBERS))
            levels[level_ua] = frames
            pulse = (train.channel, train.phase_width_us, level_ua)
            for number, frame in enumerate(Deframer().feed(b"".join(frames))):
                if frame.number != number or decode_single_pulse(frame) != pulse:
                    raise ProtocolError(f"encoder fault: number {number}, current_ua = {level_ua}")
        return levels


def _mode_name(mode: int) -> str:
    return MODES[mode] if mode < len(MODES) else f"unknown ({mode})"
