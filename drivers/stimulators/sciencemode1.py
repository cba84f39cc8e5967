"""HASOMED RehaStim1 (ScienceMode1): the single pulse, four bytes, one pulse each.

On top a pure codec, below it the device on a serial port. Standard library only: guard, a small process, holds this driver. The composition
root imports it through `drivers.stimulators.load`; it imports `drivers.base` alone. Never here: trains in time, doses, retries of a pulse.

The box has a channel list mode too. It is in the codec, since others use it and the virtual box knows it, and the driver never sends it:
no watchdog is documented, a list runs until a stop comes, whatever happened to the host. Single pulses need no dead-man's timer of our own.

What the protocol does not have: a question who is there (`open` sends a stop, the one command without output, and takes whoever answers it
as a RehaStim1 does; any box that answers one byte alike passes), packet numbers (answers are told apart by their order), a high voltage to
switch on, a report of the emergency stop or of a loose electrode (the README: both are noticed, neither is told).

Not known: the gap between the two phases of a pulse. For RehaStim2 HASOMED states 100 µs, for RehaStim1 we found no figure; we take the
same, and no other is accepted. When a pulse is answered, on being taken or on being over. Whether a box without a list answers a stop with
"good".

Facts from: ScienceMode/ScienceMode1 README.md and 02_Description Protocol/science_mode_200909.pdf (bytes, vectors of its section 5.8);
lara-unb/hasomed_rehastim_stimulator (line settings, channels and masks from 1 = bit 0).
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from drivers.base import DeviceEvent, DeviceEventKind, ProtocolError, PulseTrain, StimulatorLimits
from drivers.stimulators.serial_device import ANSWER_TIMEOUT_S, Line, check_in_steps, check_train
from drivers.stimulators.unnumbered import A_STOP, UnnumberedDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# --- codec ------------------------------------------------------------------------------------------------------------------------
# Only a command's first byte has its top bit set: 1 ident(2) check(5). An answer is one byte: ident(2) 00000 good(1).
LIMITS = StimulatorLimits(
    model="RehaStim1",
    n_channels=8,
    max_current_ua=126_000,
    current_step_ua=2000,  # the field counts 1 mA, the README states steps of 2 mA: what both can do
    min_phase_width_us=20,  # the README; the field would take 10
    max_phase_width_us=500,
    phase_width_step_us=1,
    max_pulse_rate_hz=100.0,
    vendor_latency_ms=2.0,
)
GAP_US = 100  # see "Not known"
REFUSES_STOP = "it refuses a stop"


class Ident(IntEnum):
    """What a command is, and what an answer answers."""

    INIT = 0
    UPDATE = 1
    STOP = 2
    SINGLE_PULSE = 3


class Answer(NamedTuple):
    """One byte from the box."""

    ident: int
    good: bool


class ListPulse(NamedTuple):
    """What one channel of a list gives: 1 to 3 pulses in a group; a current or width of 0 is no pulse."""

    n_pulses: int
    phase_width_us: int
    current_ma: int


STOP = bytes((0x80 | Ident.STOP << 5,))


def encode_single_pulse(channel: int, phase_width_us: int, current_ua: int) -> bytes:
    """One pulse on `channel` (1..8) at once. Raises `LimitError`."""
    check_in_steps("channel", channel, 1, LIMITS.n_channels, 1)
    check_in_steps("phase_width_us", phase_width_us, LIMITS.min_phase_width_us, LIMITS.max_phase_width_us, 1)
    check_in_steps("current_ua", current_ua, 1000, 127_000, 1000)
    current_ma = current_ua // 1000
    check = (channel - 1 + phase_width_us + current_ma) % 32
    return bytes((0xE0 | check, channel - 1 << 4 | phase_width_us >> 7, phase_width_us & 127, current_ma))


def decode_single_pulse(frame: bytes) -> tuple[int, int, int]:
    """Channel, phase width in µs and current in µA of an `encode_single_pulse` frame; for checking our own before they may be sent."""
    head, high, low, current_ma = frame
    channel, phase_width_us = (high >> 4) + 1, (high & 3) << 7 | low
    if head != 0xE0 | (channel - 1 + phase_width_us + current_ma) % 32 or high & 0b1000_1100 or low > 127:
        raise ProtocolError(f"not a pulse: {frame.hex(' ')}")
    return channel, phase_width_us, current_ma * 1000


def encode_init(channels: Sequence[int], low_channels: Sequence[int], n_factor: int, group_ms: float, main_ms: float) -> bytes:
    """Make a list of `channels` ready; it starts with the first `encode_update`. Raises `LimitError`.

    Parameters
    ----------
    channels, low_channels : sequence of int
        Those that stimulate, and those of them that do so at a lower rate (1..8).
    n_factor : int
        How much lower (0..7).
    group_ms : float
        Between the pulses of a doublet or triplet, 1.5..17 in steps of 0.5.
    main_ms : float
        Between groups, 3..1023.5 in steps of 0.5; 0 plays the list once with each update.
    """
    for channel in (*channels, *low_channels):
        check_in_steps("channel", channel, 1, LIMITS.n_channels, 1)
    check_in_steps("n_factor", n_factor, 0, 7, 1)
    check_in_steps("group_us", group_ms * 1000, 1500, 17_000, 500)
    if main_ms:
        check_in_steps("main_us", main_ms * 1000, 3000, 1_023_500, 500)
    stim, low = (sum(1 << channel - 1 for channel in set(them)) for them in (channels, low_channels))
    group, main = round((group_ms - 1.5) * 2), round((main_ms - 1) * 2) if main_ms else 0
    check = (n_factor + stim + low + group + main) % 8
    bits = 1 << 47  # head, then six groups of seven bits, each with a 0 before it
    for width, value in ((2, Ident.INIT), (3, check), (3, n_factor), (8, stim), (8, low), (2, 0), (5, group), (11, main)):
        bits = bits << width | value
    bits &= (1 << 42) - 1
    sevens = bytes(bits >> 7 * i & 127 for i in reversed(range(6)))
    return bytes((0x80 | sevens[0],)) + sevens[1:]


def encode_update(pulses: Sequence[ListPulse]) -> bytes:
    """Give each channel of the list its pulses, in ascending order of channels; the list plays until a stop. Raises `LimitError`."""
    data = bytearray((0,))
    total = 0
    for n_pulses, phase_width_us, current_ma in pulses:
        check_in_steps("n_pulses", n_pulses, 1, 3, 1)
        check_in_steps("phase_width_us", phase_width_us, 0, LIMITS.max_phase_width_us, 1)
        check_in_steps("current_ma", current_ma, 0, 127, 1)
        total += n_pulses - 1 + phase_width_us + current_ma
        data += bytes((n_pulses - 1 << 5 | phase_width_us >> 7, phase_width_us & 127, current_ma))
    data[0] = 0x80 | Ident.UPDATE << 5 | total % 32
    return bytes(data)


class Deframer:
    """Bytes in, answers out; each byte stands for itself, so nothing is kept and nothing can hide the next answer.

    Attributes
    ----------
    n_bad_frames : int
        Runs of bytes that are no answers.
    fault : str
        What was wrong with the last of them.
    """

    def __init__(self) -> None:
        self._in_step = True  # the last byte was an answer
        self.n_bad_frames = 0
        self.fault = ""

    def feed(self, data: bytes) -> list[Answer]:
        """Take what the port gave; return the answers in it."""
        answers = []
        for byte in data:
            if good := not byte & 0b0011_1110:
                answers.append(Answer(byte >> 6, bool(byte & 1)))
            elif self._in_step:
                self.n_bad_frames += 1
                self.fault = f"{byte:02x} is no answer"
            self._in_step = good
        return answers


# --- device -----------------------------------------------------------------------------------------------------------------------
class ScienceMode1(UnnumberedDevice[Answer]):
    """RehaStim1 on a serial port, pulse by pulse; a `drivers.base.Stimulator`.

    Parameters
    ----------
    port : str
        Name of the serial port.
    model : str
        "sciencemode1".
    write : callable
        As `os.write`; every byte goes through it.
    """

    LINE = Line(115_200, stop_bits=2, rts_cts=True)
    N_ANSWER_BYTES = 1

    def __init__(self, port: str, model: str = "sciencemode1", write: Callable[[int, bytes], int] = os.write) -> None:
        super().__init__(port, model, LIMITS, write)

    def _new_deframer(self) -> Deframer:
        return Deframer()

    def _switch_on(self) -> None:
        self._ask_stop(ANSWER_TIMEOUT_S)  # nothing is switched on before a pulse; this says whether the box listens

    def _stop_frame(self) -> bytes:
        return STOP

    def _take_frame(self, frame: Answer) -> DeviceEvent | None:
        number = self._settle(frame.ident)
        if frame.ident == Ident.STOP:
            self._stop_answered |= frame.good
            return None if frame.good else DeviceEvent(DeviceEventKind.DEVICE_ERROR, -1, 0, REFUSES_STOP)
        if frame.ident != Ident.SINGLE_PULSE:
            text = f"answer to a list, which was not sent: {Ident(frame.ident).name}"
            return DeviceEvent(DeviceEventKind.PROTOCOL_ERROR, -1, int(frame.good), text)
        if frame.good:
            return DeviceEvent(DeviceEventKind.ACK, number, 1, "pulse taken" if number >= 0 else "an answer to no pulse of ours")
        return DeviceEvent(DeviceEventKind.DEVICE_ERROR, number, 0, "box refuses a pulse: transfer or value")

    def _settle(self, ident: int) -> int:
        """Whom this answers; answers come in the order of what was sent, so whatever is passed over never got one. -1 = no pulse."""
        while self._waiting:
            number = self._waiting.popleft()
            if ident == (Ident.STOP if number == A_STOP else Ident.SINGLE_PULSE):
                return number
        return -1

    def _ask_stop(self, timeout_s: float) -> None:
        self._take(self._receive())
        self._send(STOP, is_stop=True)
        self._waiting.append(A_STOP)
        answer = self._await(lambda it: it.ident == Ident.STOP, "a stop", timeout_s)
        self._settle(Ident.STOP)
        if not answer.good:
            raise ProtocolError(REFUSES_STOP)
        self._stop_answered = True

    def _encode(self, train: PulseTrain) -> dict[int, tuple[bytes, ...]]:
        """Every frame of one train, each decoded again and compared before it counts as sendable."""
        current_ua = check_train(train, self._limits, 0, range(GAP_US, GAP_US + 1))
        step_ua = self._limits.current_step_ua
        levels: dict[int, tuple[bytes, ...]] = {}
        for level_ua in range(step_ua, current_ua + 1, step_ua):
            frame = encode_single_pulse(train.channel, train.phase_width_us, level_ua)
            if decode_single_pulse(frame) != (train.channel, train.phase_width_us, level_ua):
                raise ProtocolError(f"encoder fault: current_ua = {level_ua}")
            levels[level_ua] = (frame,)
        return levels
