"""What every stimulator on a serial port does the same way: the port, one write a frame, answers as events, stop whatever happens.

A driver (`sciencemode34.py` and its neighbours) is a pure codec and a small class on top of `SerialDevice`. Standard library only: guard, a
small process, holds one of these. Never here: a protocol, a limit, a second try at a pulse.

Facts about ports (Linux): stimulators notes, section 4: `os.write` on a non-blocking descriptor takes what fits and returns at once; a
part of a frame is a fault; linux's usb-serial cannot drop what it was given; flock binds only those who ask, TIOCEXCL only those who are
not root; ASYNC_LOW_LATENCY makes an FTDI chip hand over answers within 1 ms, not 16.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

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
    PulseTrain,
    ShortWriteError,
    StimulatorLimits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ANSWER_TIMEOUT_S = 0.5
N_TRIES = 2  # the first question after plugging in may get no answer (rehamove-integration-lib README)
IDENTIFY_TIMEOUT_S = 0.2
DISARM_TIMEOUT_S = 0.2
CLOSE_TIMEOUT_S = 0.1
READ_BYTES = 4096
MAX_EVENTS = 256  # a babbling box must not fill the memory
ASYNC_LOW_LATENCY = 0x2000  # linux/tty_flags.h
PTY_MAJORS = range(136, 144)  # linux/major.h UNIX98_PTY_SLAVE_MAJOR

FrameT = TypeVar("FrameT")


class Line(NamedTuple):
    """Settings of a serial line.

    Attributes
    ----------
    baud : int
    parity : str
        "N" or "E".
    stop_bits : int
    rts_cts : bool
        Hardware flow control.
    """

    baud: int
    parity: str = "N"
    stop_bits: int = 1
    rts_cts: bool = False

    def __str__(self) -> str:
        """As people write it: 460800 8E1."""
        return f"{self.baud} 8{self.parity}{self.stop_bits}{' RTS/CTS' if self.rts_cts else ''}"

    @property
    def byte_s(self) -> float:
        """How long a byte takes: start bit, 8 data bits, parity, stop bits."""
        return (9 + (self.parity != "N") + self.stop_bits) / self.baud


class Deframer(Protocol[FrameT]):
    """Bytes in, frames out, however they are cut up; never raises, never keeps more than a frame between calls."""

    n_bad_frames: int  # thrown away so far
    fault: str  # what was wrong with the last of them

    def feed(self, data: bytes) -> list[FrameT]:
        """Take what the port gave; return the frames that are now complete."""
        ...


class SerialDevice(ABC, Generic[FrameT]):
    """A stimulator on a serial port, pulse by pulse: all of `drivers.base.Stimulator` that no protocol changes.

    Parameters
    ----------
    port : str
        Name of the serial port.
    model : str
        The driver's name in the settings; `open` refuses another device.
    limits : StimulatorLimits
    write : callable
        As `os.write`; every byte goes through it, one frame a call.

    Notes
    -----
    A driver gives `LINE` and the abstract methods; one whose box holds the pulse, not the frame, overrides `_pulse_frame` too.
    """

    LINE: Line
    _may_drop = True  # a stop drops what has not left; not where a half command that stays would take the stop for its other half

    def __init__(self, port: str, model: str, limits: StimulatorLimits, write: Callable[[int, bytes], int] = os.write) -> None:
        self.port = port
        self.model = model
        self._write = write
        self._limits = limits
        self._fd = -1
        self._frames: dict[int, dict[int, tuple[bytes, ...]]] = {}
        self._number = 0
        self._n_numbers = 1  # packet numbers that the protocol counts round
        self._armed = False
        self._only_stops = False  # all that was written since the last flush
        self._torn: tuple[bytes, int] | None = None  # a frame of which the port took a part, and how many bytes
        self._lost = False  # and it was told
        self._facts: dict[str, object] = {}
        self._prepare_ms = 0.0
        self._begin_link()

    # --- what a protocol decides ----------------------------------------------------------------------------------------------
    @abstractmethod
    def _new_deframer(self) -> Deframer[FrameT]:
        """Return a deframer that has heard nothing."""

    @abstractmethod
    def _identify(self) -> dict[str, object]:
        """Ask who is there; facts for `status`. A device that was left on is switched off. Raises as `open`."""

    @abstractmethod
    def _who_is_there(self) -> str:
        """Ask once more, once: "model serial firmware", one word each; "-" for what the device does not say."""

    @abstractmethod
    def _encode(self, train: PulseTrain) -> dict[int, tuple[bytes, ...]]:
        """Encode each current up to the train's own, µA: its frame under each packet number, each checked. Raises `LimitError`."""

    @abstractmethod
    def _switch_on(self) -> None:
        """Make the output ready and wait for the device to say so. Raises `AckTimeoutError`, `ProtocolError`."""

    @abstractmethod
    def _stop_frame(self) -> bytes:
        """Return what ends all output, in any state; empty where there is nothing to end and no byte that could be said."""

    @abstractmethod
    def _switch_off(self) -> None:
        """Send a stop and wait shortly for its answer, if there is one. Raises `DriverError`."""

    @abstractmethod
    def _take_frame(self, frame: FrameT) -> DeviceEvent | None:
        """What a frame from the device means to guard; None = nothing. Sets `_stop_answered`."""

    def _ask_more(self) -> dict[str, object]:
        """Ask what else it says of itself, once, for `questions`."""
        return {}

    # --- the same for all -----------------------------------------------------------------------------------------------------
    @property
    def limits(self) -> StimulatorLimits:
        """What the device can do."""
        return self._limits

    def open(self) -> None:
        """Open the port and ask who is there; no output."""
        if self._fd >= 0:
            return
        self._begin_link()
        self._lost = False
        self._fd, link = open_port(self.port, self.LINE)
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
        self._check_disarmed()
        return self._who_is_there()

    def questions(self) -> dict[str, object]:
        """What else it says of itself; most devices say nothing. No output."""
        self._check_disarmed()
        return self._ask_more()

    def _check_disarmed(self) -> None:
        if self._armed:
            raise DriverError(f"{self._limits.model} is armed: it is asked before that")

    def prepare(self, trains: Sequence[PulseTrain]) -> tuple[bytes, ...]:
        """Encode each train at each current from one device step up to its own, under each packet number. Raises `LimitError`."""
        began_ns = time.perf_counter_ns()
        self._frames = {index: self._encode(train) for index, train in enumerate(trains)}
        self._prepare_ms = (time.perf_counter_ns() - began_ns) / 1e6
        return tuple(frame for levels in self._frames.values() for frames in levels.values() for frame in frames)

    def arm(self) -> None:
        """Make the output ready and wait for the device to say so."""
        try:
            self._switch_on()
        except DriverError:
            self.stop()  # the device may have heard us even though we did not hear it
            raise
        self._armed = True

    def trigger(self, train: int, current_ua: int) -> int:
        """One pulse: look up, write once. Any doubt about the write disarms."""
        if not self._armed:
            raise NotArmedError(f"{self._limits.model} is not armed")
        number = self._number
        try:
            frame = self._pulse_frame(train, current_ua, number)
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
        self._number = (number + 1) % self._n_numbers
        if n_written != len(frame):
            self._armed = False
            self._torn = (frame, n_written) if n_written else None
            raise ShortWriteError(f"{self.port} took {n_written} of {len(frame)} bytes")
        return number

    def _pulse_frame(self, train: int, current_ua: int, number: int) -> bytes:
        return self._frames[train][current_ua][number]

    def keep_alive(self) -> None:
        """Say a word without output, where `limits.keep_alive_s` asks for it. Raises `ShortWriteError`, `PortLostError`."""

    def stop(self) -> None:
        """Drop what has not left yet, unless it is stops alone; then one stop frame. Any state, any number of times, never raises.

        Not every port can drop: linux's usb-serial (FTDI) cannot, a pty keeps what its reader's side has taken in. There, what waits is
        played when a stalled box goes on, up to this stop; so whoever triggers waits for each answer before the next pulse.
        """
        self._armed = False
        self._stop_answered = False
        if self._fd < 0:
            return
        if self._may_drop and not self._only_stops:
            best_effort(lambda: termios.tcflush(self._fd, termios.TCOFLUSH))
        frame = self._stop_frame()
        said = not frame
        try:
            if frame:
                said = self._only_stops = self._write(self._fd, frame) == len(frame)
        except (OSError, DriverError):
            pass
        if frame and said:
            self._torn = None
        self._stop_answered = said and not self._limits.answers_stop
        self._number = (self._number + 1) % self._n_numbers

    def disarm(self) -> None:
        """Stop, and wait shortly for the answer. Never raises."""
        self._armed = False
        self._stop_answered = False
        if self._fd < 0:
            return
        try:
            self._switch_off()
        except DriverError:
            pass

    def read_events(self) -> list[DeviceEvent]:
        """What the device has said since the last call; never blocks, never raises."""
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
            "line": str(self.LINE),
            "open": self._fd >= 0,
            "armed": self._armed,
            "stop_answered": self._stop_answered,
            "prepare_ms": round(self._prepare_ms, 1),
            "n_prepared_frames": sum(len(frames) for levels in self._frames.values() for frames in levels.values()),
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

    # --- for drivers ----------------------------------------------------------------------------------------------------------
    def _next_number(self) -> int:
        """Packet number of the next frame; it counts on."""
        number = self._number
        self._number = (number + 1) % self._n_numbers
        return number

    def _send(self, frame: bytes, is_stop: bool = False) -> None:
        """Write one frame that is no pulse. Raises `ShortWriteError`, `PortLostError`."""
        self._only_stops &= is_stop
        try:
            n_written = self._write(self.fileno(), frame)
        except BlockingIOError:
            n_written = 0
        except OSError as error:
            raise PortLostError(f"{self.port}: {error}") from error
        if n_written != len(frame):
            self._torn = (frame, n_written) if n_written else None
            raise ShortWriteError(f"{self.port} took {n_written} of {len(frame)} bytes")

    def _await(self, is_answer: Callable[[FrameT], bool], what: str, timeout_s: float = ANSWER_TIMEOUT_S) -> FrameT:
        """Wait for the answer to `what`; what else arrives stays for `read_events`. Raises `AckTimeoutError`, `PortLostError`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            poll.poll(left_s * 1e3)
            frames = self._receive()
            answers = [frame for frame in frames if is_answer(frame)]
            self._take([frame for frame in frames if frame not in answers])
            if answers:
                return answers[0]
        raise AckTimeoutError(f"{self._limits.model} on {self.port} did not answer {what} within {timeout_s * 1e3:.0f} ms")

    # --- inside ---------------------------------------------------------------------------------------------------------------
    def _begin_link(self) -> None:
        """Forget what an earlier link said."""
        self._deframer = self._new_deframer()
        self._pending: deque[DeviceEvent] = deque(maxlen=MAX_EVENTS)
        self._n_bad_told = 0
        self._n_read_bytes = 0
        self._stop_answered = False
        self._only_stops = False
        self._torn = None

    def _receive(self) -> list[FrameT]:
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

    def _take(self, frames: list[FrameT]) -> None:
        """Turn frames, and what the deframer threw away, into events."""
        for frame in frames:
            if (event := self._take_frame(frame)) is not None:
                self._pending.append(event)
        n_bad = self._deframer.n_bad_frames - self._n_bad_told
        if n_bad:
            self._n_bad_told += n_bad
            self._pending.append(DeviceEvent(DeviceEventKind.PROTOCOL_ERROR, -1, -1, f"{n_bad} bad frame(s): {self._deframer.fault}"))

    def _release(self) -> None:
        """Give the port back, whatever state it is in."""
        self._armed = False
        fd, self._fd = self._fd, -1
        best_effort(lambda: termios.tcflush(fd, termios.TCIOFLUSH))
        # The kernel waits up to 30 s for a box that takes nothing more; we do not.
        closer = threading.Thread(target=os.close, args=(fd,), daemon=True)
        closer.start()
        closer.join(CLOSE_TIMEOUT_S)


# --- small things for codecs ------------------------------------------------------------------------------------------------------
def check_in_steps(field: str, value: float, lowest: int, highest: int, step: int) -> None:
    """Refuse what the device would round or cannot do, naming the nearest value that it can. Raises `LimitError`."""
    if not lowest <= value <= highest or value % step:
        clamped = min(max(lowest, value), highest)  # NaN becomes `lowest`
        raise LimitError(f"{field} = {value} is not in {lowest}..{highest} in steps of {step}; nearest is {round(clamped / step) * step}")


def check_train(train: PulseTrain, limits: StimulatorLimits, margin_us: int, gap_us: range = range(0)) -> int:
    """Refuse a train that the device cannot give; returns its current in µA. Raises `LimitError`.

    Parameters
    ----------
    margin_us : int
        What the device needs beyond the pulse before the next one.
    gap_us : range
        Interphase gaps that the device can do; 0 is allowed only where it is among them.
    """
    current_ua = round(train.current_ma * 1e3, 3)
    check_in_steps("channel", train.channel, 1, limits.n_channels, 1)
    check_in_steps("current_ua", current_ua, limits.current_step_ua, limits.max_current_ua, limits.current_step_ua)
    check_in_steps("phase_width_us", train.phase_width_us, limits.min_phase_width_us, limits.max_phase_width_us, limits.phase_width_step_us)
    if train.interphase_gap_us not in gap_us:
        nearest = min(gap_us, key=lambda us: abs(us - train.interphase_gap_us))
        raise LimitError(f"interphase_gap_us = {train.interphase_gap_us} cannot be done by a {limits.model}; nearest is {nearest}")
    highest_hz = min(limits.max_pulse_rate_hz, 1e6 / (2 * train.phase_width_us + train.interphase_gap_us + margin_us))
    if not 0.0 < train.pulse_rate_hz <= highest_hz:
        raise LimitError(f"pulse_rate_hz = {train.pulse_rate_hz} is not above 0 and at most {highest_hz:.6g}, which is the nearest")
    return int(current_ua)


def word(text: bytes) -> str:
    """What a device says of itself as one printable word; "-" where it says nothing."""
    return "".join(chr(byte) if 33 <= byte <= 126 else "?" for byte in text.rstrip(b"\0 ")) or "-"


def dotted(version: bytes) -> str:
    """A version as people write it."""
    return ".".join(map(str, version))


# --- the port ---------------------------------------------------------------------------------------------------------------------
def open_port(port: str, line: Line) -> tuple[int, dict[str, object]]:
    """Open a port for us alone, raw and non-blocking. Raises `DeviceNotFoundError`, `DeviceMismatchError`.

    Returns
    -------
    fd : int
    facts : dict
        Whether the port is ours alone (`exclusive`), hands over answers at once (`low_latency`) and does all of `line` (`line_kept`): a pty
        drops the parity and says nothing.
    """
    try:
        fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise DeviceNotFoundError(f"{port}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        control = termios.CS8 | termios.CREAD | termios.CLOCAL
        control |= termios.CSTOPB if line.stop_bits == 2 else 0
        control |= termios.PARENB if line.parity == "E" else 0
        control |= termios.CRTSCTS if line.rts_cts else 0
        speed = getattr(termios, f"B{line.baud}")
        characters: list[bytes | int] = [b"\0"] * 32
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        attributes: list[int | list[bytes | int]] = [0, 0, control, 0, speed, speed, characters]
        try:
            termios.tcsetattr(fd, termios.TCSANOW, attributes)
        except termios.error:  # a pty does all but the parity, and from its second opening on glibc says so
            if (termios.tcgetattr(fd)[2] | termios.PARENB) & control != control:
                raise
        termios.tcflush(fd, termios.TCIOFLUSH)
        line_kept = termios.tcgetattr(fd)[2] & control == control
    except (OSError, termios.error) as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise DeviceNotFoundError(f"{port} is held by another program") from error
        raise DeviceMismatchError(f"{port} is not a serial port that does {line}: {error}") from error
    # flock binds only those who ask for it too, TIOCEXCL only those who are not root. Not on a pty: a virtual box keeps it open, and the
    # flag would outlive a guard that was killed.
    exclusive = os.major(os.fstat(fd).st_rdev) not in PTY_MAJORS and best_effort(lambda: fcntl.ioctl(fd, termios.TIOCEXCL))
    return fd, {"exclusive": exclusive, "low_latency": best_effort(lambda: _set_low_latency(fd)), "line_kept": line_kept}


def best_effort(setting: Callable[[], object]) -> bool:
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
