"""MotiMove 8 (3F-Fit Fabricando Faber), experimental: one 35-byte frame is one pulse.

On top a pure codec, below it the device on a serial port. Standard library only: guard, a small process, holds this driver. The composition
root imports it through `drivers.stimulators.load`; it imports `drivers.base` alone. Never here: trains that the box times (the frame can
preload them; the start command is not even in the codec), several channels at once, doublets, retries of a pulse.

EXPERIMENTAL: the maker published nothing that we found. All that is here comes from one third-party program (IMUSEF:
`MM_Message_Builder.py` in phklatzer/IMUSEF, `MM_Manager.py` in EvilVanillaGlaze/IMUSEF), was read and not tried: no box, no capture, no
second source.

A frame takes 3.0 ms on the wire, the stop too: a pulse that was written just before a stop is played.

Not known, and what we take:
- The waveform. No field sets it. That program lists its channels as monophasic with no gap between phases; whether the box balances its
  charge is not said. All of calmloop counts and records biphasic, balanced pulses: measure the output before a person is connected to it.
- The gap between phases: no field. That program has 0; trains say 10 µs, the least that a prescription can, and no other is accepted.
- How true the current is. That program sends 1 mA less than it wants from 11 to 32 mA and 2 mA less from 33 to 50, "for an error of the
  box". We send what was asked: of 20 mA expect 21.
- What the 16 bytes of the answer mean: any 16 count as one. They cannot be told apart, so they answer in the order of what was sent.
- When the answer comes, how soon after the frame the pulse comes, what becomes of a frame with a wrong checksum.
- What the period (10..254 ms) does where each frame is one pulse: we state the train's own, whole milliseconds, never more than it; should
  the box repeat a pulse by itself after all, it is at the train's rate, and slower trains than the field can say are refused.
- Whether a width of 0 on the channels without current is taken: that program has a width there. We send none: twice no output.
- Whether the high voltage, left as it is by a pulse's frame (value 2), stays on. If not, nothing comes: a pulse cannot switch it on.
- How fast the high voltage rises: the first pulses after arming may be weaker than asked.
- A watchdog, an emergency stop, a report of loose electrodes: nothing in what we read.
"""

from __future__ import annotations

import os
import time
from enum import IntEnum
from typing import TYPE_CHECKING

from drivers.base import DeviceEvent, DeviceEventKind, LimitError, ProtocolError, PulseTrain, StimulatorLimits
from drivers.stimulators.serial_device import ANSWER_TIMEOUT_S, Line, check_in_steps, check_train
from drivers.stimulators.unnumbered import A_STOP, UnnumberedDevice

if TYPE_CHECKING:
    from collections.abc import Callable

EXPERIMENTAL = "known from one third-party program and never tried on a box; waveform, charge balance and true current are not known"

# --- codec ------------------------------------------------------------------------------------------------------------------------
# FF | bytes that follow | 08 | delay period intensity | 8 x mA | 8 x width | 8 x prescaler | doublets interval sensor voltage | check
LIMITS = StimulatorLimits(
    model="MotiMove8",
    n_channels=8,
    max_current_ua=170_000,  # where channels follow each other; 100 mA where they are simultaneous, which we never ask for
    current_step_ua=1000,
    min_phase_width_us=10,
    max_phase_width_us=1000,
    phase_width_step_us=10,
    max_pulse_rate_hz=100.0,  # the shortest period
    vendor_latency_ms=float("nan"),
)
GAP_US = 10  # see "Not known"
START, PULSE_BY_PULSE = 0xFF, 0x08
N_FRAME_BYTES = 35
N_ANSWER_BYTES = 16
MIN_PERIOD_MS, MAX_PERIOD_MS = 10, 254


class Voltage(IntEnum):
    """What a frame does with the high voltage."""

    OFF = 0
    ON = 1
    KEEP = 2


def _encode(channel: int, current_ma: int, phase_width_us: int, period_ms: int, intensity_percent: int, voltage: Voltage) -> bytes:
    """One frame; channels follow each other, each plays in each period (prescaler 1), no doublets, sensor "analog in"."""
    currents, widths = bytearray(8), bytearray(8)
    currents[channel - 1], widths[channel - 1] = current_ma, phase_width_us // 10
    head = bytes((N_FRAME_BYTES - 1, PULSE_BY_PULSE, 0, period_ms, intensity_percent))
    body = head + currents + widths + b"\x01" * 8 + bytes((0, 0, 0, voltage))
    return bytes((START,)) + body + bytes((sum(body) & 0x7F,))


def encode_voltage(voltage: Voltage) -> bytes:
    """High voltage on or off, and no current on any channel."""
    return _encode(1, 0, 0, MAX_PERIOD_MS, 0, voltage)


def encode_pulse(channel: int, current_ua: int, phase_width_us: int, period_ms: int) -> bytes:
    """One pulse on `channel` (1..8), the high voltage left as it is. Raises `LimitError`."""
    check_in_steps("channel", channel, 1, LIMITS.n_channels, 1)
    check_in_steps("current_ua", current_ua, LIMITS.current_step_ua, LIMITS.max_current_ua, LIMITS.current_step_ua)
    check_in_steps("phase_width_us", phase_width_us, LIMITS.min_phase_width_us, LIMITS.max_phase_width_us, LIMITS.phase_width_step_us)
    check_in_steps("period_ms", period_ms, MIN_PERIOD_MS, MAX_PERIOD_MS, 1)
    return _encode(channel, current_ua // 1000, phase_width_us, period_ms, 100, Voltage.KEEP)


def decode_pulse(frame: bytes) -> tuple[int, int, int, int]:
    """Channel, current in µA, width in µs and period in ms of an `encode_pulse` frame; for checking our own before they may be sent."""
    period_ms, currents, widths = frame[4], frame[6:14], frame[14:22]
    rest = (frame[:4], frame[5], frame[22:34], frame[34:])
    if rest != (bytes((START, 34, PULSE_BY_PULSE, 0)), 100, b"\1\1\1\1\1\1\1\1\0\0\0\2", bytes((sum(frame[1:34]) % 128,))):
        raise ProtocolError(f"not a pulse: {frame.hex(' ')}")
    channels = [i for i in range(8) if currents[i] or widths[i]]
    if len(channels) != 1:
        raise ProtocolError(f"not one channel: {frame.hex(' ')}")
    return channels[0] + 1, currents[channels[0]] * 1000, widths[channels[0]] * 10, period_ms


STOP = encode_voltage(Voltage.OFF)
SWITCH_ON = encode_voltage(Voltage.ON)


class Deframer:
    """Bytes in, answers of 16 bytes out, whatever is in them; `restart` where an answer must begin, since nothing in the bytes says so.

    Attributes
    ----------
    n_bad_frames : int
        Answers that were cut short, as far as `restart` noticed.
    fault : str
        What was wrong with the last of them.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self.n_bad_frames = 0
        self.fault = ""

    def feed(self, data: bytes) -> list[bytes]:
        """Take what the port gave; return the answers that are now complete."""
        self._buffer += data
        n_whole = len(self._buffer) // N_ANSWER_BYTES * N_ANSWER_BYTES
        whole, self._buffer = self._buffer[:n_whole], self._buffer[n_whole:]
        return [whole[i : i + N_ANSWER_BYTES] for i in range(0, n_whole, N_ANSWER_BYTES)]

    def restart(self) -> None:
        """Whatever comes now begins an answer."""
        if self._buffer:
            self.n_bad_frames += 1
            self.fault = f"{len(self._buffer)} bytes are no answer, which has {N_ANSWER_BYTES}"
            self._buffer = b""


# --- device -----------------------------------------------------------------------------------------------------------------------
SETTLE_S = 0.05  # for so long a question waits for the answers to what was sent before it


class MotiMove(UnnumberedDevice[bytes]):
    """MotiMove 8 on a serial port, pulse by pulse; a `drivers.base.Stimulator`. Experimental: read the module's "Not known".

    Parameters
    ----------
    port : str
        Name of the serial port.
    model : str
        "motimove".
    write : callable
        As `os.write`; every byte goes through it.
    """

    LINE = Line(115_200)
    N_ANSWER_BYTES = N_ANSWER_BYTES

    def __init__(self, port: str, model: str = "motimove", write: Callable[[int, bytes], int] = os.write) -> None:
        super().__init__(port, model, LIMITS, write)

    def trigger(self, train: int, current_ua: int) -> int:
        """As `UnnumberedDevice.trigger`; what was left of an answer before it is told as a fault."""
        if not self._waiting:
            self._answers.restart()
        return super().trigger(train, current_ua)

    def status(self) -> dict[str, object]:
        """As `SerialDevice.status`, and why not to rely on it."""
        return {**super().status(), "experimental": EXPERIMENTAL}

    def _new_deframer(self) -> Deframer:
        self._answers = Deframer()
        return self._answers

    def _switch_on(self) -> None:
        self._ask(SWITCH_ON, ANSWER_TIMEOUT_S)

    def _stop_frame(self) -> bytes:
        return STOP

    def _take_frame(self, frame: bytes) -> DeviceEvent | None:
        if not self._waiting:
            return DeviceEvent(DeviceEventKind.ACK, -1, 0, "an answer to nothing that was sent")
        number = self._waiting.popleft()
        if number == A_STOP:
            self._stop_answered = True
            return None
        return DeviceEvent(DeviceEventKind.ACK, number, 0, "pulse answered")

    def _ask_stop(self, timeout_s: float) -> None:
        self._ask(STOP, timeout_s)
        self._stop_answered = True

    def _ask(self, frame: bytes, timeout_s: float) -> None:
        """Send a frame without current and wait for an answer; those to earlier frames come first. Raises `AckTimeoutError`."""
        deadline_s = time.monotonic() + SETTLE_S
        self._take(self._receive())
        while self._waiting and time.monotonic() < deadline_s:
            time.sleep(0.001)
            self._take(self._receive())
        self._waiting.clear()
        self._answers.restart()
        self._n_bad_told = self._answers.n_bad_frames  # what went before is no fault of what comes
        self._send(frame, is_stop=frame is STOP)
        self._await(lambda _: True, "a frame without current", timeout_s)

    def _encode(self, train: PulseTrain) -> dict[int, tuple[bytes, ...]]:
        """Every frame of one train, each decoded again and compared before it counts as sendable."""
        current_ua = check_train(train, self._limits, 0, range(GAP_US, GAP_US + 1))
        period_ms = int(1000 / train.pulse_rate_hz)
        if period_ms > MAX_PERIOD_MS:
            lowest_hz = 1000 / MAX_PERIOD_MS
            raise LimitError(f"pulse_rate_hz = {train.pulse_rate_hz} is below {lowest_hz:.6g}, which is the nearest")
        levels: dict[int, tuple[bytes, ...]] = {}
        for level_ua in range(self._limits.current_step_ua, current_ua + 1, self._limits.current_step_ua):
            frame = encode_pulse(train.channel, level_ua, train.phase_width_us, period_ms)
            if decode_pulse(frame) != (train.channel, level_ua, train.phase_width_us, period_ms):
                raise ProtocolError(f"encoder fault: current_ua = {level_ua}")
            levels[level_ua] = (frame,)
        return levels
