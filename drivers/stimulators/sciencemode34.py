"""HASOMED RehaMove3 (ScienceMode3) and P24 (ScienceMode4): one codec, and a driver that gives one pulse a frame.

On top a pure codec, below it the device on a serial port. Standard library only: guard, a small process, holds this driver. The composition
root imports it through `drivers.stimulators.load`; it imports `drivers.base` alone. Never here: trains in time, doses, retries of a pulse.

The codec knows both levels, the driver gives its pulses on the low level alone. On the mid level the box times a train by itself and plays
on for up to 2 s after the last sign of life, whatever has become of the computer: longer than guard's lease. On the low level output ends
with the last pulse that was sent. So mid level is encoded for twins, benches and other people's tools, and of its frames the driver itself
sends but one: the stop, for a box that another program left running.

Facts from: RehaMove3_ScienceMode_Description_and_Protocol_20180421.pdf; ScienceMode/ScienceMode3 README.md and its mid_level.html;
P24_Instructions_for_Use_v1.1_20230125.pdf (pages 16-26); ScienceMode4_c_library include/general/smpt_definitions_data_types.h,
include/mid-level/smpt_ml_definitions_data_types.h, src/mid-level/smpt_ml_packet_validity.c.
"""

from __future__ import annotations

import math
import os
import re
import struct
from binascii import crc_hqx
from enum import IntEnum
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from drivers.base import (
    AckTimeoutError,
    DeviceEvent,
    DeviceEventKind,
    DeviceMismatchError,
    LimitError,
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
    dotted,
    word,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# --- codec: the frame -------------------------------------------------------------------------------------------------------------
# F0 | 81 length | 81 length | 81 crc | 81 crc | stuffed payload | 0F. Length and crc bytes are always stuffed, so any value, F0 and 0F
# too, may stand there; in the payload those two never do. Length counts the whole frame, crc covers the stuffed payload.
START, STOP, STUFF, KEY = 0xF0, 0x0F, 0x81, 0x55
N_HEADER_BYTES = 9
MIN_FRAME_BYTES = 12
MAX_FRAME_BYTES = 1200
N_NUMBERS = 64

_STUFFED = tuple((bytes((byte,)), bytes((STUFF, byte ^ KEY))) for byte in (STUFF, START, STOP))  # STUFF first, or it is stuffed twice
_FRAME_BYTE = re.compile(b"[%c%c]" % (START, STOP))


class Command(IntEnum):
    """What the box can be told and asked; the answer to `c` is `c + 1`. Those without an encoder have no data: `encode_frame` is theirs."""

    LL_INIT = 0
    LL_CHANNEL_CONFIG = 2
    LL_STOP = 4
    ML_INIT = 30
    ML_UPDATE = 32
    ML_STOP = 34
    ML_GET_CURRENT_DATA = 36
    GET_VERSION_MAIN = 50  # ScienceMode3
    GET_DEVICE_ID = 52
    GET_BATTERY_STATUS = 54  # ScienceMode3
    RESET = 58
    GET_STIM_STATUS = 62
    GET_EXTENDED_VERSION = 68  # ScienceMode4


GENERAL_ERROR = 66  # unasked
UNKNOWN_COMMAND = 67  # the answer to a command that the box does not have
_ANSWERS = {command + 1: command for command in Command}

RESULT_OK = 0
RESULT_NOT_INITIALISED = 7
RESULT_ELECTRODE = 10
_RESULT_NAMES = (
    "ok, transfer error, parameter error, protocol error, stimulation timeout, EMG timeout, EMG register error, not initialised, "
    "high voltage error, demultiplexer timeout, electrode error, invalid command, demultiplexer parameter error, "
    "demultiplexer not initialised, demultiplexer transfer error, demultiplexer unknown answer, pulse timeout, fuel gauge error, "
    "live signal error, file transmission timeout, file not found, busy, file error, flash erase error, flash write error, "
    "unknown controller error, firmware too large, fuel gauge not programmed, pulse current too low"
)
RESULTS = dict(enumerate(_RESULT_NAMES.split(", ")))


class Frame(NamedTuple):
    """A frame without its wrapping."""

    number: int
    command: int
    data: bytes


def encode_frame(number: int, command: int, data: bytes = b"") -> bytes:
    """Wrap one command for the wire; `number` (0..63) comes back in the answer."""
    if not (0 <= number < N_NUMBERS and 0 <= command < 1024):
        raise ValueError(f"packet number {number} or command {command} does not fit its field")
    payload = struct.pack(">H", number << 10 | command) + data
    for plain, stuffed in _STUFFED:
        payload = payload.replace(plain, stuffed)
    crc = crc_hqx(payload, 0)
    n_bytes = N_HEADER_BYTES + len(payload) + 1
    if n_bytes > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {n_bytes} bytes is longer than {MAX_FRAME_BYTES}")
    header = (START, STUFF, n_bytes >> 8 ^ KEY, STUFF, n_bytes & 255 ^ KEY, STUFF, crc >> 8 ^ KEY, STUFF, crc & 255 ^ KEY)
    return bytes(header) + payload + bytes((STOP,))


def _decode_payload(stuffed: bytes) -> Frame | None:
    """Undo the stuffing; None where it is not lawful."""
    payload = stuffed
    for plain, pair in reversed(_STUFFED):
        payload = payload.replace(pair, plain)
    if len(payload) < 2 or len(stuffed) - len(payload) != stuffed.count(STUFF):  # each 81 must have been half of a known pair
        return None
    head = payload[0] << 8 | payload[1]
    return Frame(head >> 10, head & 1023, payload[2:])


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
            if self._buffer[0] != START:
                if self._in_step:
                    self._refuse("bytes outside a frame")
                start = self._buffer.find(START)
                self._buffer = self._buffer[start:] if start >= 0 else b""
                continue
            n_bytes, fault = self._measure()
            frame = None
            if n_bytes:
                stuffed = self._buffer[N_HEADER_BYTES : n_bytes - 1]
                if crc_hqx(stuffed, 0) != (self._buffer[6] ^ KEY) << 8 | self._buffer[8] ^ KEY:
                    fault = "checksum"
                elif (frame := _decode_payload(stuffed)) is None:
                    fault = "stuffing"
            if frame is not None:
                frames.append(frame)
                self._in_step = True
                self._buffer = self._buffer[n_bytes:]
            elif fault:
                self._refuse(fault)
                self._buffer = self._buffer[1:]  # look for the next F0, which a cut frame may have swallowed
            else:
                break
        return frames

    def _measure(self) -> tuple[int, str]:
        """Length of the whole frame at the buffer's start and what is wrong with it; (0, "") while more bytes are needed."""
        buffer = self._buffer
        if any(byte != STUFF for byte in buffer[1:N_HEADER_BYTES:2]):
            return 0, "header"
        if len(buffer) < N_HEADER_BYTES:
            return 0, ""
        n_bytes = (buffer[2] ^ KEY) << 8 | buffer[4] ^ KEY
        if not MIN_FRAME_BYTES <= n_bytes <= MAX_FRAME_BYTES:
            return 0, "length"
        # The payload ends at the first F0 or 0F: a wrong length field shows at once and cannot swallow the frames behind it.
        end = _FRAME_BYTE.search(buffer, N_HEADER_BYTES, n_bytes)
        if end is None:
            return 0, "no stop byte" if len(buffer) >= n_bytes else ""
        if end.start() != n_bytes - 1 or buffer[n_bytes - 1] != STOP:
            return 0, "frame cut short"
        return n_bytes, ""

    def _refuse(self, fault: str) -> None:
        self.n_bad_frames += 1
        self.fault = fault
        self._in_step = False


# --- codec: the commands ----------------------------------------------------------------------------------------------------------
Points = tuple[tuple[int, int], ...]  # (duration_us, current_ua) each, in the order they are played

MAX_CURRENT_UA = 130_000
CURRENT_STEP_UA = 500
MIN_POINT_US = 10  # the box plays anything shorter as 10 µs, so we refuse it
MAX_POINT_US = 4095
MAX_POINTS = 16
MAX_CHANNELS = 8
_CURRENT_ZERO = 300  # code of 0 mA
_RECOVERY_US = 60  # the C library counts this much with each pulse: 40 µs muting, 20 µs reserve


def pulse_points(current_ua: int, phase_width_us: int, interphase_gap_us: int) -> Points:
    """Biphasic, balanced pulse: current, gap, the opposite current. A gap of zero has no point, since the box would make it 10 µs."""
    gap = ((interphase_gap_us, 0),) if interphase_gap_us else ()
    return ((phase_width_us, current_ua), *gap, (phase_width_us, -current_ua))


def _encode_points(points: Points) -> bytes:
    """Four bytes a point. Raises `LimitError`."""
    check_in_steps("points", len(points), 1, MAX_POINTS, 1)
    data = b""
    for duration_us, current_ua in points:
        check_in_steps("duration_us", duration_us, MIN_POINT_US, MAX_POINT_US, 1)
        check_in_steps("current_ua", current_ua, -MAX_CURRENT_UA, MAX_CURRENT_UA, CURRENT_STEP_UA)
        code = current_ua // CURRENT_STEP_UA + _CURRENT_ZERO
        data += (duration_us << 20 | code << 10).to_bytes(4, "big")
    return data


def encode_ll_init(number: int) -> bytes:
    """Low level on, high voltage at its standard 150 V, no measurement. Answered after about 40 ms."""
    return encode_frame(number, Command.LL_INIT, b"\x00")


def encode_ll_channel_config(number: int, channel: int, points: Points) -> bytes:
    """Play `points` once on `channel` (1..4, on a P24 1..8: 5..8 is its second connector). Raises `LimitError`."""
    check_in_steps("channel", channel, 1, MAX_CHANNELS, 1)
    words = _encode_points(points)
    connector, colour = divmod(channel - 1, 4)
    head = 0x80 | colour << 5 | connector << 4 | len(points) - 1
    return encode_frame(number, Command.LL_CHANNEL_CONFIG, bytes((head,)) + words)


def decode_ll_channel_config(data: bytes) -> tuple[int, Points]:
    """Channel and points of an `encode_ll_channel_config` payload; for checking our own frames before they may be sent."""
    head = data[0]
    words = [word for (word,) in struct.iter_unpack(">I", data[1:])]
    if len(words) != (head & 15) + 1 or not head & 0x80:
        raise ProtocolError(f"not a pulse: {data.hex(' ')}")
    points = tuple((word >> 20, ((word >> 10 & 1023) - _CURRENT_ZERO) * CURRENT_STEP_UA) for word in words)
    return (head >> 4 & 1) * 4 + (head >> 5 & 3) + 1, points


def encode_ll_stop(number: int) -> bytes:
    """Output and high voltage off. Answered after about 40 ms."""
    return encode_frame(number, Command.LL_STOP)


class MlTrain(NamedTuple):
    """What the box plays on one channel by itself: `points` again each `period_us`, after `ramp` pulses that rise to their full current."""

    period_us: int
    ramp: int
    points: Points


class MlState(NamedTuple):
    """What the box says of its mid level. `running` are channels; ScienceMode3 does not tell which, so there it is None."""

    is_running: bool
    running: frozenset[int] | None
    errors: dict[int, str]


MAX_RAMP = 15
PERIOD_STEP_US, MAX_PERIOD_US = 500, 16_383_000
FINE_PERIOD_STEP_US, MAX_FINE_PERIOD_US = 250, 8_191_500
MAX_BUSY_MS = 999  # of each second, all channels together
ML_CHANNEL_ERRORS = {1: "electrode error", 2: "pulse timeout", 3: "pulse current too low"}


def encode_ml_init(number: int, stop_all_on_error: bool = False) -> bytes:
    """Mid level on, high voltage too. `stop_all_on_error` (P24 alone): an error on one channel stops them all."""
    return encode_frame(number, Command.ML_INIT, bytes((stop_all_on_error,)))


def encode_ml_update(number: int, trains: Mapping[int, MlTrain], fine_period: bool = False) -> bytes:
    """Play `trains` on their channels (from 1) and nothing on all others, until the next update or 2 s without a sign of life.

    Raises `LimitError`. A period is a whole number of half milliseconds; with `fine_period`, which the P24 alone understands, of quarters
    too.
    """
    mask, data, busy_ms = 0, b"", Fraction(0)
    for channel, (period_us, ramp, points) in sorted(trains.items()):
        check_in_steps("channel", channel, 1, MAX_CHANNELS, 1)
        check_in_steps("ramp", ramp, 0, MAX_RAMP, 1)
        if fine_period and period_us <= MAX_FINE_PERIOD_US:
            check_in_steps("period_us", period_us, FINE_PERIOD_STEP_US, MAX_FINE_PERIOD_US, FINE_PERIOD_STEP_US)
        else:
            check_in_steps("period_us", period_us, PERIOD_STEP_US, MAX_PERIOD_US, PERIOD_STEP_US)
        is_fine = period_us % PERIOD_STEP_US != 0
        code = period_us // (FINE_PERIOD_STEP_US if is_fine else PERIOD_STEP_US)
        words = _encode_points(points)
        mask |= 1 << channel - 1
        data += struct.pack(">BH", len(points) - 1 << 4 | ramp, code << 1 | is_fine) + words
        busy_ms += Fraction(1000 * (sum(duration_us for duration_us, _ in points) + _RECOVERY_US), period_us)
    if busy_ms > MAX_BUSY_MS:
        longer = math.ceil(1000 * busy_ms / MAX_BUSY_MS) / 1000
        raise LimitError(f"trains take {float(busy_ms):.1f} ms of each second, at most {MAX_BUSY_MS}: periods {longer} times as long fit")
    return encode_frame(number, Command.ML_UPDATE, bytes((mask,)) + data)


def encode_ml_stop(number: int) -> bytes:
    """All trains and high voltage off."""
    return encode_frame(number, Command.ML_STOP)


def encode_ml_get_current_data(number: int, selection: int) -> bytes:
    """Ask how the trains are, which keeps them alive: `selection` 2 on a RehaMove3, 4 on a P24."""
    check_in_steps("selection", selection, 2, 4, 2)
    return encode_frame(number, Command.ML_GET_CURRENT_DATA, bytes((selection,)))


def decode_ml_get_current_data(data: bytes) -> MlState:
    """Data of the answer to `encode_ml_get_current_data`. Raises `ProtocolError`, also where the box reports an error in place of them."""
    if data[:1] != b"\0":
        raise ProtocolError(f"no state of the mid level: {_result_name(data[0]) if data else 'no data'}")
    if data[1:2] == b"\2" and len(data) == 3:
        codes = [data[2] >> bit & 1 for bit in range(4)]
        is_running, running = bool(data[2] & 0x10), None
    elif data[1:2] == b"\4" and len(data) == 7:
        codes = [byte >> shift & 15 for byte in data[3:] for shift in (0, 4)]
        is_running, running = bool(data[2]), frozenset(bit + 1 for bit in range(MAX_CHANNELS) if data[2] >> bit & 1)
    else:
        raise ProtocolError(f"no state of the mid level: {data.hex(' ')}")
    errors = {channel: ML_CHANNEL_ERRORS.get(code, f"unknown state {code}") for channel, code in enumerate(codes, 1) if code}
    return MlState(is_running, running, errors)


def decode_battery_status(data: bytes) -> tuple[int, int]:
    """Charge in percent and voltage in mV, from the data of the answer to GET_BATTERY_STATUS. Raises `ProtocolError`."""
    if len(data) != 4 or data[0] != RESULT_OK:
        raise ProtocolError(f"no battery status: {data.hex(' ') or 'no data'}")
    return data[1], data[2] << 8 | data[3]


def event_of(frame: Frame) -> DeviceEvent | None:
    """What a frame from the box means to guard; None for an answer that only confirms a question or a stop."""
    code = frame.data[0] if frame.data else -1
    if frame.command in (GENERAL_ERROR, UNKNOWN_COMMAND):
        return DeviceEvent(DeviceEventKind.DEVICE_ERROR, frame.number, code, f"box reports: {_result_name(code)}")
    command = _ANSWERS.get(frame.command)
    if command is None or code < 0:
        text = f"unexpected frame: command {frame.command}, {len(frame.data)} bytes"
        return DeviceEvent(DeviceEventKind.PROTOCOL_ERROR, frame.number, code, text)
    if code == RESULT_ELECTRODE:
        # ScienceMode3: the channel; ScienceMode4: connector << 4 | channel. Both from 0.
        where = f" on channel {(frame.data[1] >> 4) * 4 + (frame.data[1] & 15) + 1}" if len(frame.data) > 1 else ""
        return DeviceEvent(DeviceEventKind.ELECTRODE_ERROR, frame.number, code, f"electrode error{where}")
    if code == RESULT_OK:
        return DeviceEvent(DeviceEventKind.ACK, frame.number, 0, "pulse done") if command is Command.LL_CHANNEL_CONFIG else None
    if command in (Command.LL_STOP, Command.ML_STOP) and code == RESULT_NOT_INITIALISED:
        return None  # stopped already
    return DeviceEvent(DeviceEventKind.DEVICE_ERROR, frame.number, code, f"{command.name}: {_result_name(code)}")


def _result_name(code: int) -> str:
    return f"{RESULTS.get(code, 'unknown result')} ({code})"


# --- device -----------------------------------------------------------------------------------------------------------------------
MODELS = {
    "rehamove3": StimulatorLimits("RehaMove3", 4, MAX_CURRENT_UA, CURRENT_STEP_UA, MIN_POINT_US, MAX_POINT_US, 1, 500.0, 1.0),
    # Of the P24 its maker states neither a low level rate, so we take RehaMove3's, nor a latency.
    "p24": StimulatorLimits("P24", 8, MAX_CURRENT_UA, CURRENT_STEP_UA, MIN_POINT_US, MAX_POINT_US, 1, 500.0, float("nan")),
}

_STOP_FRAMES = tuple(encode_ll_stop(number) for number in range(N_NUMBERS))


class ScienceMode34(SerialDevice[Frame]):
    """RehaMove3 or P24 on a serial port, pulse by pulse; a `drivers.base.Stimulator`.

    Parameters
    ----------
    port : str
        Name of the serial port.
    model : str
        "rehamove3" or "p24"; `open` refuses the other one.
    write : callable
        As `os.write`; every byte goes through it.
    """

    LINE = Line(3_000_000, stop_bits=2, rts_cts=True)

    def __init__(self, port: str, model: str = "rehamove3", write: Callable[[int, bytes], int] = os.write) -> None:
        super().__init__(port, model, MODELS[model], write)
        self._n_numbers = N_NUMBERS

    def _new_deframer(self) -> Deframer:
        return Deframer()

    def _identify(self) -> dict[str, object]:
        """Identity, firmware and state of the box; one that was left with its high voltage on is switched off."""
        device_id, version = (self._ask_who(*question) for question in self._who)
        found_state = self._ask_who(Command.GET_STIM_STATUS, 3)[1]
        if found_state == 1:
            self.disarm()
        elif found_state in (2, 3):  # by another program: its trains would go on for up to 2 s, and low level cannot be had
            self._ask(Command.ML_STOP)
        return {
            "device_id": word(device_id[1:11]),
            "firmware": dotted(version[1:4]),
            "protocol": dotted(version[4:7]),
            "found_state": ("off", "low level on", "mid level on", "mid level running")[found_state] if found_state < 4 else found_state,
        }

    def _who_is_there(self) -> str:
        device_id, version = (self._ask_who(*question, n_tries=1, timeout_s=IDENTIFY_TIMEOUT_S) for question in self._who)
        return " ".join((self._limits.model, word(device_id[1:11]), dotted(version[1:4])))

    def _ask_more(self) -> dict[str, object]:
        """Battery, which a P24 does not have. Electrodes cannot be asked for on the low level: the answer to a pulse tells of them."""
        percent, mv = (
            (None, None) if self.model == "p24" else decode_battery_status(self._ask_who(Command.GET_BATTERY_STATUS, 4, n_tries=1))
        )
        return {"battery_percent": percent, "battery_mv": mv}

    def _switch_on(self) -> None:
        _, data = self._ask(Command.LL_INIT, b"\x00")
        if data[0] != RESULT_OK:
            raise ProtocolError(f"{self._limits.model} does not arm: {_result_name(data[0])}")

    def _stop_frame(self) -> bytes:
        return _STOP_FRAMES[self._number]

    def _switch_off(self) -> None:
        self._ask(Command.LL_STOP, timeout_s=DISARM_TIMEOUT_S)

    def _take_frame(self, frame: Frame) -> DeviceEvent | None:
        self._stop_answered |= frame.command == Command.LL_STOP + 1
        return event_of(frame)

    @property
    def _who(self) -> tuple[tuple[Command, int], tuple[Command, int]]:
        """The questions after number and version, with the least length of each answer. Each model knows its own alone."""
        version = Command.GET_EXTENDED_VERSION if self.model == "p24" else Command.GET_VERSION_MAIN
        return (Command.GET_DEVICE_ID, 11), (version, 7)

    def _ask_who(self, command: Command, n_data_bytes: int, n_tries: int = N_TRIES, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
        """Ask a question without side effects, again if need be."""
        n_read_before = self._n_read_bytes
        for n_tries_left in reversed(range(n_tries)):
            try:
                answer, data = self._ask(command, timeout_s=timeout_s)
            except AckTimeoutError:
                if n_tries_left:
                    continue
                if self._n_read_bytes > n_read_before:
                    raise DeviceMismatchError(f"{self.port}: something answers, but not as a {self._limits.model}") from None
                raise
            if answer != command + 1 or data[0] != RESULT_OK or len(data) < n_data_bytes:
                raise DeviceMismatchError(f"{self.port}: not a {self._limits.model}: {command.name} is answered {data.hex(' ')}")
            return data
        raise AssertionError("unreachable")

    def _ask(self, command: Command, data: bytes = b"", timeout_s: float = ANSWER_TIMEOUT_S) -> tuple[int, bytes]:
        """Send one command and wait for the answer with its number."""
        number = self._next_number()
        self._send(encode_frame(number, command, data), is_stop=command is Command.LL_STOP)
        answer = self._await(
            lambda it: it.number == number and it.command in (command + 1, UNKNOWN_COMMAND) and bool(it.data), command.name, timeout_s
        )
        self._stop_answered |= answer.command == Command.LL_STOP + 1
        return answer.command, answer.data

    def _encode(self, train: PulseTrain) -> dict[int, tuple[bytes, ...]]:
        """Every frame of one train, each decoded again and compared before it counts as sendable."""
        # a gap below the box's shortest point would be lengthened; none at all is possible
        gaps_us = range(1) if not train.interphase_gap_us else range(MIN_POINT_US, MAX_POINT_US + 1)
        current_ua = check_train(train, self._limits, _RECOVERY_US, gaps_us)
        step_ua = self._limits.current_step_ua
        levels: dict[int, tuple[bytes, ...]] = {}
        for level_ua in range(step_ua, current_ua + 1, step_ua):
            points = pulse_points(level_ua, train.phase_width_us, train.interphase_gap_us)
            levels[level_ua] = tuple(encode_ll_channel_config(number, train.channel, points) for number in range(N_NUMBERS))
            for number, frame in enumerate(Deframer().feed(b"".join(levels[level_ua]))):
                if frame[:2] != (number, Command.LL_CHANNEL_CONFIG) or decode_ll_channel_config(frame.data) != (train.channel, points):
                    raise ProtocolError(f"encoder fault: number {number}, current_ua = {level_ua}")
        return levels
