"""HASOMED RehaMove3 (ScienceMode3) and P24 (ScienceMode4), low level: one frame is one pulse.

On top a pure codec, below it the device on a serial port. Standard library only: guard, a small process, holds this driver. The composition
root imports it through `drivers.stimulators.load`; it imports `drivers.base` alone. Never here: trains in time, doses, retries of a pulse.

Low level rather than mid level: the box plays nothing on by itself, so whatever happens to this process, output ends with the last pulse.

Facts from: RehaMove3_ScienceMode_Description_and_Protocol_20180421.pdf; ScienceMode/ScienceMode3 README.md;
P24_Instructions_for_Use_v1.1_20230125.pdf (pages 16-26); ScienceMode4_c_library include/general/smpt_definitions_data_types.h.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import termios
import threading
import time
from binascii import crc_hqx
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from drivers.base import (
    AckTimeoutError,
    DeviceEvent,
    DeviceEventKind,
    DeviceMismatchError,
    DeviceNotFoundError,
    DriverError,
    LimitError,
    NotArmedError,
    PortLostError,
    ProtocolError,
    PulseTrain,
    ShortWriteError,
    StimulatorLimits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    """What we send; the answer to `c` is `c + 1`."""

    LL_INIT = 0
    LL_CHANNEL_CONFIG = 2
    LL_STOP = 4
    GET_VERSION_MAIN = 50  # ScienceMode3
    GET_DEVICE_ID = 52
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
_CURRENT_ZERO = 300  # code of 0 mA
_RECOVERY_US = 60  # the C library counts this much after each pulse


def pulse_points(current_ua: int, phase_width_us: int, interphase_gap_us: int) -> Points:
    """Biphasic, balanced pulse: current, gap, the opposite current. A gap of zero has no point, since the box would make it 10 µs."""
    gap = ((interphase_gap_us, 0),) if interphase_gap_us else ()
    return ((phase_width_us, current_ua), *gap, (phase_width_us, -current_ua))


def encode_ll_init(number: int) -> bytes:
    """Low level on, high voltage at its standard 150 V, no measurement. Answered after about 40 ms."""
    return encode_frame(number, Command.LL_INIT, b"\x00")


def encode_ll_channel_config(number: int, channel: int, points: Points) -> bytes:
    """Play `points` once on `channel` (1..4, on a P24 1..8: 5..8 is its second connector). Raises `LimitError`."""
    _check("channel", channel, 1, 8, 1)
    _check("points", len(points), 1, MAX_POINTS, 1)
    connector, colour = divmod(channel - 1, 4)
    data = bytearray((0x80 | colour << 5 | connector << 4 | len(points) - 1,))
    for duration_us, current_ua in points:
        _check("duration_us", duration_us, MIN_POINT_US, MAX_POINT_US, 1)
        _check("current_ua", current_ua, -MAX_CURRENT_UA, MAX_CURRENT_UA, CURRENT_STEP_UA)
        code = current_ua // CURRENT_STEP_UA + _CURRENT_ZERO
        data += (duration_us << 20 | code << 10).to_bytes(4, "big")
    return encode_frame(number, Command.LL_CHANNEL_CONFIG, bytes(data))


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
    if command is Command.LL_STOP and code == RESULT_NOT_INITIALISED:
        return None  # stopped already
    return DeviceEvent(DeviceEventKind.DEVICE_ERROR, frame.number, code, f"{command.name}: {_result_name(code)}")


def _word(text: bytes) -> str:
    """What a box says of itself as one printable word; "-" where it says nothing."""
    return "".join(chr(byte) if 33 <= byte <= 126 else "?" for byte in text.rstrip(b"\0 ")) or "-"


def _dotted(version: bytes) -> str:
    return ".".join(map(str, version))


def _result_name(code: int) -> str:
    return f"{RESULTS.get(code, 'unknown result')} ({code})"


def _check(field: str, value: float, lowest: int, highest: int, step: int) -> None:
    """Refuse what the box would round or cannot do, naming the nearest value that it can."""
    if not lowest <= value <= highest or value % step:
        clamped = min(max(lowest, value), highest)  # NaN becomes `lowest`
        raise LimitError(f"{field} = {value} is not in {lowest}..{highest} in steps of {step}; nearest is {round(clamped / step) * step}")


# --- device -----------------------------------------------------------------------------------------------------------------------
MODELS = {
    "rehamove3": StimulatorLimits("RehaMove3", 4, MAX_CURRENT_UA, CURRENT_STEP_UA, MIN_POINT_US, MAX_POINT_US, 1, 500.0, 1.0),
    # Of the P24 its maker states neither a low level rate, so we take RehaMove3's, nor a latency.
    "p24": StimulatorLimits("P24", 8, MAX_CURRENT_UA, CURRENT_STEP_UA, MIN_POINT_US, MAX_POINT_US, 1, 500.0, float("nan")),
}

ANSWER_TIMEOUT_S = 0.5
N_TRIES = 2  # the first question after plugging in may get no answer (rehamove-integration-lib README)
IDENTIFY_TIMEOUT_S = 0.2
DISARM_TIMEOUT_S = 0.2
CLOSE_TIMEOUT_S = 0.1
READ_BYTES = 4096
ASYNC_LOW_LATENCY = 0x2000  # linux/tty_flags.h: an FTDI chip then hands over answers within 1 ms, not 16
PTY_MAJORS = range(136, 144)  # linux/major.h UNIX98_PTY_SLAVE_MAJOR

_STOP_FRAMES = tuple(encode_ll_stop(number) for number in range(N_NUMBERS))


class ScienceMode34:
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

    def __init__(self, port: str, model: str = "rehamove3", write: Callable[[int, bytes], int] = os.write) -> None:
        self.port = port
        self.model = model
        self._write = write
        self._limits = MODELS[model]
        self._fd = -1
        self._frames: dict[int, dict[int, tuple[bytes, ...]]] = {}
        self._number = 0
        self._armed = False
        self._lost = False
        self._only_stops = False  # all that was written since the last flush
        self._begin_link()
        self._facts: dict[str, object] = {}
        self._prepare_ms = 0.0

    @property
    def limits(self) -> StimulatorLimits:
        """What the model can do."""
        return self._limits

    def open(self) -> None:
        """Open the port and ask who is there; no output. A box that was left with its high voltage on is switched off."""
        if self._fd >= 0:
            return
        self._begin_link()
        self._fd, link = _open_port(self.port)
        try:
            self._facts = link | self._identify()
        except DriverError:
            self._release()
            raise

    def fileno(self) -> int:
        """File descriptor to poll for `read_events`."""
        if self._fd < 0:
            raise PortLostError(f"{self.port} is not open")
        return self._fd

    def identify(self) -> str:
        """Ask again who is there, once: in the middle of a session there is no box that just woke up. No output."""
        if self._armed:
            raise DriverError(f"{self._limits.model} is armed: it is asked who it is before that")
        device_id, version = (self._ask_who(*question, n_tries=1, timeout_s=IDENTIFY_TIMEOUT_S) for question in self._who)
        return " ".join((self._limits.model, _word(device_id[1:11]), _dotted(version[1:4])))

    def prepare(self, trains: Sequence[PulseTrain]) -> tuple[bytes, ...]:
        """Encode each train at each current from one device step up to its own, under each packet number. Raises `LimitError`."""
        began_ns = time.perf_counter_ns()
        self._frames = {index: self._encode(train) for index, train in enumerate(trains)}
        self._prepare_ms = (time.perf_counter_ns() - began_ns) / 1e6
        return tuple(frame for levels in self._frames.values() for frames in levels.values() for frame in frames)

    def arm(self) -> None:
        """Switch the high voltage on and wait for the box to say so."""
        try:
            _, data = self._ask(Command.LL_INIT, b"\x00")
            if data[0] != RESULT_OK:
                raise ProtocolError(f"{self._limits.model} does not arm: {_result_name(data[0])}")
        except DriverError:
            self.stop()  # the box may have heard us even though we did not hear it
            raise
        self._armed = True

    def trigger(self, train: int, current_ua: int) -> int:
        """One pulse: look up, write once. Any doubt about the write disarms."""
        if not self._armed:
            raise NotArmedError(f"{self._limits.model} is not armed")
        number = self._number
        try:
            frame = self._frames[train][current_ua][number]
        except KeyError:
            raise LimitError(f"train {train} at current_ua = {current_ua} was not prepared") from None
        self._only_stops = False
        try:
            n_written = self._write(self._fd, frame)
        except BlockingIOError:
            n_written = 0
        except OSError as error:
            self._armed = False
            raise PortLostError(f"{self.port}: {error}") from error
        except DriverError:  # whoever checks the bytes has not let these go
            self._armed = False
            raise
        self._number = (number + 1) % N_NUMBERS
        if n_written != len(frame):
            self._armed = False
            raise ShortWriteError(f"{self.port} took {n_written} of {len(frame)} bytes")
        return number

    def stop(self) -> None:
        """Drop what has not left yet, unless it is stops alone; then one stop frame. Any state, any number of times, never raises.

        Not every port can drop: linux's usb-serial (FTDI, RehaMove3) cannot, a pty keeps what its reader's side has taken in. There, what
        waits is played when a stalled box goes on, up to this stop; so whoever triggers waits for each answer before the next pulse.
        """
        self._armed = False
        self._stop_answered = False
        if self._fd < 0:
            return
        if not self._only_stops:
            _try(lambda: termios.tcflush(self._fd, termios.TCOFLUSH))
        frame = _STOP_FRAMES[self._number]
        try:
            self._only_stops = self._write(self._fd, frame) == len(frame)
        except (OSError, DriverError):
            pass
        self._number = (self._number + 1) % N_NUMBERS

    def disarm(self) -> None:
        """Stop, and wait shortly for the answer. Never raises."""
        self._armed = False
        self._stop_answered = False
        if self._fd < 0:
            return
        try:
            self._ask(Command.LL_STOP, timeout_s=DISARM_TIMEOUT_S)
        except DriverError:
            pass

    def read_events(self) -> list[DeviceEvent]:
        """What the box has said since the last call; never blocks, never raises."""
        try:
            self._take(self._receive())
        except PortLostError as error:
            if not self._lost:
                self._lost = True
                self._pending.append(DeviceEvent(DeviceEventKind.PORT_LOST, -1, -1, str(error)))
        events = list(self._pending)
        self._pending.clear()
        return events

    def status(self) -> dict[str, object]:
        """Model, firmware, port and link facts, for people."""
        return {
            "model": self._limits.model,
            "port": self.port,
            "open": self._fd >= 0,
            "armed": self._armed,
            "stop_answered": self._stop_answered,
            "prepare_ms": round(self._prepare_ms, 1),
            "n_prepared_frames": N_NUMBERS * sum(map(len, self._frames.values())),
            "n_bad_frames": self._deframer.n_bad_frames,
            **self._facts,
        }

    def close(self) -> None:
        """Stop, disarm, release the port. May be called twice."""
        if self._fd < 0:
            return
        self.stop()
        self.disarm()
        self._release()

    # --- inside -------------------------------------------------------------------------------------------------------------------
    def _begin_link(self) -> None:
        """Forget what an earlier link said."""
        self._deframer = Deframer()
        self._pending: deque[DeviceEvent] = deque(maxlen=256)  # bounded: a babbling box must not fill the memory
        self._n_bad_told = 0
        self._n_read_bytes = 0
        self._stop_answered = False
        self._lost = False
        self._only_stops = False

    def _identify(self) -> dict[str, object]:
        """Identity, firmware and state of the box."""
        device_id, version = (self._ask_who(*question) for question in self._who)
        found_state = self._ask_who(Command.GET_STIM_STATUS, 3)[1]
        if found_state == 1:
            self.disarm()
        return {
            "device_id": _word(device_id[1:11]),
            "firmware": _dotted(version[1:4]),
            "protocol": _dotted(version[4:7]),
            "found_state": ("off", "low level on", "mid level on", "mid level running")[found_state] if found_state < 4 else found_state,
        }

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
        """Send one command and wait for the answer with its number; what else arrives stays for `read_events`."""
        number = self._number
        self._number = (number + 1) % N_NUMBERS
        frame = encode_frame(number, command, data)
        self._only_stops &= command is Command.LL_STOP
        try:
            n_written = self._write(self.fileno(), frame)
        except BlockingIOError:
            n_written = 0
        except OSError as error:
            raise PortLostError(f"{self.port}: {error}") from error
        if n_written != len(frame):
            raise ShortWriteError(f"{self.port} took {n_written} of {len(frame)} bytes")
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            poll.poll(left_s * 1e3)
            frames = self._receive()
            answers = [it for it in frames if it.number == number and it.command in (command + 1, UNKNOWN_COMMAND) and it.data]
            self._take([it for it in frames if it not in answers])
            if answers:
                self._stop_answered |= answers[0].command == Command.LL_STOP + 1
                return answers[0].command, answers[0].data
        raise AckTimeoutError(f"{self._limits.model} on {self.port} did not answer {command.name} within {timeout_s * 1e3:.0f} ms")

    def _receive(self) -> list[Frame]:
        """Frames that have arrived; never blocks. At most one read, so that a babbling box cannot hold us. Raises `PortLostError`."""
        if self._fd < 0:
            return []
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            self._armed = False
            raise PortLostError(f"{self.port}: {error}") from error
        if not data:  # with VMIN = 1 nothing to read is EAGAIN, so this is a hang-up
            self._armed = False
            raise PortLostError(f"{self.port}: hung up")
        self._n_read_bytes += len(data)
        return self._deframer.feed(data)

    def _take(self, frames: list[Frame]) -> None:
        """Turn frames, and what the deframer threw away, into events."""
        for frame in frames:
            self._stop_answered |= frame.command == Command.LL_STOP + 1
            if (event := event_of(frame)) is not None:
                self._pending.append(event)
        n_bad = self._deframer.n_bad_frames - self._n_bad_told
        if n_bad:
            self._n_bad_told += n_bad
            self._pending.append(DeviceEvent(DeviceEventKind.PROTOCOL_ERROR, -1, -1, f"{n_bad} bad frame(s): {self._deframer.fault}"))

    def _encode(self, train: PulseTrain) -> dict[int, tuple[bytes, ...]]:
        """Every frame of one train, each decoded again and compared before it counts as sendable."""
        limits = self._limits
        current_ua = round(train.current_ma * 1e3, 3)
        _check("channel", train.channel, 1, limits.n_channels, 1)
        _check("current_ua", current_ua, limits.current_step_ua, limits.max_current_ua, limits.current_step_ua)
        _check("phase_width_us", train.phase_width_us, limits.min_phase_width_us, limits.max_phase_width_us, limits.phase_width_step_us)
        if train.interphase_gap_us:
            _check("interphase_gap_us (unless 0)", train.interphase_gap_us, MIN_POINT_US, MAX_POINT_US, 1)
        pulse_us = 2 * train.phase_width_us + train.interphase_gap_us + _RECOVERY_US
        highest_hz = min(limits.max_pulse_rate_hz, 1e6 / pulse_us)
        if not 0.0 < train.pulse_rate_hz <= highest_hz:
            raise LimitError(f"pulse_rate_hz = {train.pulse_rate_hz} is not above 0 and at most {highest_hz:.6g}, which is the nearest")
        levels: dict[int, tuple[bytes, ...]] = {}
        for level_ua in range(limits.current_step_ua, int(current_ua) + 1, limits.current_step_ua):
            points = pulse_points(level_ua, train.phase_width_us, train.interphase_gap_us)
            levels[level_ua] = tuple(encode_ll_channel_config(number, train.channel, points) for number in range(N_NUMBERS))
            for number, frame in enumerate(Deframer().feed(b"".join(levels[level_ua]))):
                if frame[:2] != (number, Command.LL_CHANNEL_CONFIG) or decode_ll_channel_config(frame.data) != (train.channel, points):
                    raise ProtocolError(f"encoder fault: number {number}, current_ua = {level_ua}")
        return levels

    def _release(self) -> None:
        """Give the port back, whatever state it is in."""
        self._armed = False
        fd, self._fd = self._fd, -1
        _try(lambda: termios.tcflush(fd, termios.TCIOFLUSH))
        # The kernel waits up to 30 s for a box that takes nothing more; we do not.
        closer = threading.Thread(target=os.close, args=(fd,), daemon=True)
        closer.start()
        closer.join(CLOSE_TIMEOUT_S)


def _open_port(port: str) -> tuple[int, dict[str, object]]:
    """Open a port for us alone, 3 Mbaud 8N2 with RTS/CTS, raw and non-blocking. Raises `DeviceNotFoundError`, `DeviceMismatchError`."""
    try:
        fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise DeviceNotFoundError(f"{port}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        control = termios.CS8 | termios.CSTOPB | termios.CREAD | termios.CLOCAL | termios.CRTSCTS
        characters: list[bytes | int] = [b"\0"] * 32
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        attributes: list[int | list[bytes | int]] = [0, 0, control, 0, termios.B3000000, termios.B3000000, characters]
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
        termios.tcflush(fd, termios.TCIOFLUSH)
    except (OSError, termios.error) as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise DeviceNotFoundError(f"{port} is held by another program") from error
        raise DeviceMismatchError(f"{port} is not a serial port that does 3 Mbaud: {error}") from error
    # flock binds only those who ask for it too, TIOCEXCL only those who are not root. Not on a pty: a virtual box keeps it open, and the
    # flag would outlive a guard that was killed.
    exclusive = os.major(os.fstat(fd).st_rdev) not in PTY_MAJORS and _try(lambda: fcntl.ioctl(fd, termios.TIOCEXCL))
    return fd, {"exclusive": exclusive, "low_latency": _try(lambda: _set_low_latency(fd))}


def _try(setting: Callable[[], object]) -> bool:
    """Do what not every port can (a pty has no latency timer); say whether it worked."""
    try:
        setting()
    except (OSError, termios.error):
        return False
    return True


def _set_low_latency(fd: int) -> None:
    serial = bytearray(72)  # struct serial_struct; its flags are the fifth int
    fcntl.ioctl(fd, termios.TIOCGSERIAL, serial)
    flags = struct.unpack_from("i", serial, 16)[0]
    struct.pack_into("i", serial, 16, flags | ASYNC_LOW_LATENCY)
    fcntl.ioctl(fd, termios.TIOCSSERIAL, serial)
