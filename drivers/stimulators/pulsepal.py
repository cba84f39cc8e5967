"""Sanworks Pulse Pal (model 2): four voltage outputs, which drive isolated current stimulators.

On top a pure codec, below it the device on a serial port. Standard library only: guard, a small process, holds this driver. The composition
root imports it through `drivers.stimulators.load`; it imports `drivers.base` alone. Never here: trains in time, doses, retries of a pulse.

The box keeps the pulse: `arm` programs it, and a soft trigger of three bytes plays it once. A channel's pulse train is made exactly as long
as one pulse, so nothing plays on by itself. A pulse of another current, or of another train, is programmed in the same write, in front of
its trigger. Never sent: fixed voltage (79), custom trains (75, 76), continuous loop (82), settings on the card (90).

The box says nothing of a trigger or of an abort, but answers each parameter, in order, with one byte, and these are counted: one too many
is told at once. So behind each trigger goes a parameter that stays as it is, and its answer is the pulse's: no pulse leaves before the box
has taken the last. How many milliampere a volt makes only a person can say: `ua_per_volt`.

Facts from: stimulators notes, section 2.1 (bytes, captures); sites.google.com/site/pulsepalwiki/usb-serial-interface/usb-interface-v2-x
(line, order of bytes, handshake) and .../parameter-guide (ranges).
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import TYPE_CHECKING

from drivers.base import (
    AckTimeoutError,
    DeviceEvent,
    DeviceEventKind,
    DeviceMismatchError,
    LimitError,
    PulseTrain,
    ShortWriteError,
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
    from collections.abc import Callable, Sequence

# --- codec ------------------------------------------------------------------------------------------------------------------------
# D5, operation, its data; integers little-endian. There is no frame around it, so what is cut short swallows what follows.
MENU = 0xD5
N_CHANNELS = 4
CYCLE_US = 50
MAX_VOLTS = 10
MAX_CODE = 0xFFFF


class Operation(IntEnum):
    """What we send."""

    HANDSHAKE = 72  # answered "K" and the firmware, u32
    PROGRAM = 74  # one parameter of one channel; answered 01
    TRIGGER = 77  # the channels in a mask; no answer
    ABORT = 80  # all channels at once; no answer
    NAME = 89  # who we are, six characters for its screen; no answer


class Parameter(IntEnum):
    """What `Operation.PROGRAM` sets."""

    IS_BIPHASIC = 1
    PHASE1_VOLTS = 2
    PHASE2_VOLTS = 3
    PHASE1_CYCLES = 4
    INTERPHASE_CYCLES = 5
    PHASE2_CYCLES = 6
    INTERPULSE_CYCLES = 7
    BURST_CYCLES = 8
    INTERBURST_CYCLES = 9
    TRAIN_CYCLES = 10
    DELAY_CYCLES = 11
    LINK_TO_TRIGGER_1 = 12
    LINK_TO_TRIGGER_2 = 13
    CUSTOM_TRAIN = 14
    CUSTOM_TARGET = 15
    CUSTOM_LOOP = 16
    RESTING_VOLTS = 17


_VOLTS = (Parameter.PHASE1_VOLTS, Parameter.PHASE2_VOLTS, Parameter.RESTING_VOLTS)
_N_BYTES = {it: 2 if it in _VOLTS else 4 if Parameter.PHASE1_CYCLES <= it <= Parameter.DELAY_CYCLES else 1 for it in Parameter}

HANDSHAKE = bytes((MENU, Operation.HANDSHAKE))
ABORT = bytes((MENU, Operation.ABORT))
ACK, HELLO = 0x01, ord("K")
N_HELLO_BYTES = 5


def encode_program(parameter: Parameter, channel: int, value: int) -> bytes:
    """Set one parameter, in the box's units: cycles of 50 µs, or the code of a voltage. Raises `LimitError`."""
    check_in_steps("channel", channel, 1, N_CHANNELS, 1)
    check_in_steps(parameter.name, value, 0, 256 ** _N_BYTES[parameter] - 1, 1)
    return bytes((MENU, Operation.PROGRAM, parameter, channel)) + value.to_bytes(_N_BYTES[parameter], "little")


def encode_trigger(*channels: int) -> bytes:
    """Play the pulse train of each of `channels` once. Raises `LimitError`."""
    for channel in channels:
        check_in_steps("channel", channel, 1, N_CHANNELS, 1)
    return bytes((MENU, Operation.TRIGGER, sum({1 << channel - 1 for channel in channels})))


def encode_name(name: str) -> bytes:
    """Tell the box who drives it. Raises `LimitError`."""
    if len(name) != 6 or not name.isascii() or not name.isprintable():
        raise LimitError(f"name = {name!r} is not six printable ASCII characters")
    return bytes((MENU, Operation.NAME)) + name.encode()


def volts_code(current_ua: int, ua_per_volt: int) -> int:
    """Code of the voltage that makes `current_ua`: (V + 10) / 20 * 65535, rounded up as the maker does. Raises `LimitError`."""
    highest_ua = MAX_VOLTS * ua_per_volt
    check_in_steps("current_ua", current_ua, -highest_ua, highest_ua, 1)
    return -(-(current_ua + highest_ua) * MAX_CODE // (2 * highest_ua))


def rest_of_torn(frame: bytes, n_written: int) -> bytes:
    """What the box still waits for when it has got `n_written` bytes of `frame`, made harmless: it would take the next bytes for that.

    The rest of the operation that was torn; of a trigger, that of no channel. A bare D5 50 would trigger channels 1 and 3, not stop.
    """
    begin = end = 0
    while end < n_written:
        begin, end = end, end + _size_of(frame, end)
    rest = frame[n_written:end]
    return rest[:-1] + b"\0" if rest and frame[begin + 1] == Operation.TRIGGER else rest


def _size_of(frame: bytes, at: int) -> int:
    if frame[at + 1] == Operation.PROGRAM:
        return 4 + _N_BYTES[Parameter(frame[at + 2])]
    return {Operation.HANDSHAKE: 2, Operation.TRIGGER: 3, Operation.ABORT: 2, Operation.NAME: 8}[Operation(frame[at + 1])]


class Deframer:
    """Bytes in, answers out, each as `bytes`: an `ACK`, or "K" with its four; never raises, keeps less than an answer between calls.

    An answer says nothing of what it answers, so only those that are due are taken; everything else is bad.

    Attributes
    ----------
    n_acks_due, n_hellos_due : int
        What the box owes us. After a "K" it owes no older acknowledgement: it answers in order.
    n_bad_frames : int
        Bytes that nobody had asked for.
    fault : str
        What the last of them was.
    """

    def __init__(self) -> None:
        self._hello = b""
        self.n_acks_due = 0
        self.n_hellos_due = 0
        self.n_bad_frames = 0
        self.fault = ""

    def feed(self, data: bytes) -> list[bytes]:
        """Take what the port gave; return the answers that are now complete."""
        answers = []
        for byte in data:
            if self._hello:
                self._hello += bytes((byte,))
                if len(self._hello) == N_HELLO_BYTES:
                    answers.append(self._hello)
                    self._hello = b""
                    self.n_acks_due = 0
            elif byte == ACK and self.n_acks_due:
                self.n_acks_due -= 1
                answers.append(bytes((byte,)))
            elif byte == HELLO and self.n_hellos_due:
                self.n_hellos_due -= 1
                self._hello = bytes((byte,))
            else:
                self.n_bad_frames += 1
                self.fault = "an acknowledgement too many" if byte == ACK else f"byte {byte:02x}, for which nobody had asked"
        return answers


# --- device -----------------------------------------------------------------------------------------------------------------------
FIRMWARES = (20, 21)  # 2.0 and 2.1; below 20 is model 1, whose voltages have 8 bits
CURRENT_STEP_UA = 500
MAX_PHASE_US = 1_000_000  # the box goes on to an hour, but no longer pulse fits into a pulse a second
RECOVERY_US = 2 * CYCLE_US  # a trigger is played in the next cycle
CLIENT = "CLMLP "

# What stays as it is while armed. The next pulse of the train would begin a second later, but the train ends with its first.
_CONSTANTS = {
    Parameter.IS_BIPHASIC: 1,
    Parameter.INTERPULSE_CYCLES: 1_000_000 // CYCLE_US,
    Parameter.BURST_CYCLES: 0,
    Parameter.INTERBURST_CYCLES: 0,
    Parameter.DELAY_CYCLES: 0,
    Parameter.LINK_TO_TRIGGER_1: 0,
    Parameter.LINK_TO_TRIGGER_2: 0,
    Parameter.CUSTOM_TRAIN: 0,
    Parameter.CUSTOM_TARGET: 0,
    Parameter.CUSTOM_LOOP: 0,
    Parameter.RESTING_VOLTS: volts_code(0, 1),
}


def _timing(width_us: int, gap_us: int) -> dict[Parameter, int]:
    """Parameters that two trains on one channel may differ in, beside the voltages."""
    return {
        Parameter.PHASE1_CYCLES: width_us // CYCLE_US,
        Parameter.INTERPHASE_CYCLES: gap_us // CYCLE_US,
        Parameter.PHASE2_CYCLES: width_us // CYCLE_US,
        Parameter.TRAIN_CYCLES: (2 * width_us + gap_us) // CYCLE_US,
    }


class PulsePal(SerialDevice[bytes]):
    """Pulse Pal on a serial port, pulse by pulse; a `drivers.base.Stimulator`.

    Parameters
    ----------
    port : str
        Name of the serial port.
    model : str
        "pulsepal".
    write : callable
        As `os.write`; every byte goes through it.
    ua_per_volt : int
        Current that the isolated stimulator behind the box makes of one volt.
    """

    LINE = Line(115_200)  # USB: any rate does; this is its firmware's own
    _may_drop = False

    def __init__(self, port: str, model: str = "pulsepal", write: Callable[[int, bytes], int] = os.write, *, ua_per_volt: int) -> None:
        max_current_ua = MAX_VOLTS * ua_per_volt // CURRENT_STEP_UA * CURRENT_STEP_UA
        if max_current_ua <= 0:
            raise LimitError(
                f"ua_per_volt = {ua_per_volt} is below {CURRENT_STEP_UA // MAX_VOLTS}, with which 10 V make {CURRENT_STEP_UA} uA"
            )
        limits = StimulatorLimits(
            model="PulsePal",
            n_channels=N_CHANNELS,
            max_current_ua=max_current_ua,
            current_step_ua=CURRENT_STEP_UA,
            min_phase_width_us=CYCLE_US,
            max_phase_width_us=MAX_PHASE_US,
            phase_width_step_us=CYCLE_US,
            max_pulse_rate_hz=100.0,
            vendor_latency_ms=0.05,
            latency_spread_ms=0.1,
            answers_stop=False,
        )
        super().__init__(port, model, limits, write)
        self._n_numbers = 256  # ours: the box knows none
        self._ua_per_volt = ua_per_volt
        self._shapes: dict[int, tuple[int, int, int]] = {}  # by train: channel, phase width, gap
        self._programmed: dict[int, tuple[int, int, int]] = {}  # by channel: phase width, gap, current
        self._unconfirmed = -1  # the pulse whose receipt is due

    def prepare(self, trains: Sequence[PulseTrain]) -> tuple[bytes, ...]:
        """As for all; what is new must be programmed by `arm` before it can be triggered."""
        frames = super().prepare(trains)
        self._shapes = {i: (train.channel, train.phase_width_us, train.interphase_gap_us) for i, train in enumerate(trains)}
        self._armed = False
        return frames

    def _new_deframer(self) -> Deframer:
        self._answers = Deframer()
        return self._answers

    def _identify(self) -> dict[str, object]:
        """Firmware of the box; whatever it played for another program ends."""
        firmware = self._ask_who(N_TRIES, ANSWER_TIMEOUT_S)
        self._send(ABORT, is_stop=True)
        self._send(encode_name(CLIENT))
        return {"firmware": firmware, "ua_per_volt": self._ua_per_volt}

    def _who_is_there(self) -> str:
        return f"{self._limits.model} - {self._ask_who(1, IDENTIFY_TIMEOUT_S)}"

    def _switch_on(self) -> None:
        """Program each channel as the first of its trains at the lowest current, each parameter once the one before it is confirmed."""
        self.stop()
        self._ask_who(1, ANSWER_TIMEOUT_S)
        self._programmed, self._unconfirmed = {}, -1
        for channel, width_us, gap_us in self._shapes.values():
            if channel not in self._programmed:
                for parameter, value in (_CONSTANTS | _timing(width_us, gap_us) | self._volts(CURRENT_STEP_UA)).items():
                    self._answers.n_acks_due += 1
                    self._send(encode_program(parameter, channel, value))
                    self._await(lambda it: it[0] == ACK, f"{parameter.name} of channel {channel}")
                self._programmed[channel] = (width_us, gap_us, CURRENT_STEP_UA)

    def stop(self) -> None:
        """As `SerialDevice.stop`; a receipt that comes later is nobody's."""
        self._unconfirmed = -1
        super().stop()

    def _stop_frame(self) -> bytes:
        return rest_of_torn(*self._torn) + ABORT if self._torn else ABORT

    def _switch_off(self) -> None:
        """Stop; the answer to a question behind it shows that the box has read it."""
        self.stop()
        self._stop_answered = False
        self._ask_who(1, DISARM_TIMEOUT_S)
        self._stop_answered = True

    def _take_frame(self, frame: bytes) -> DeviceEvent | None:
        """The last acknowledgement of a pulse's write is the pulse's; what was not due is told as a bad frame."""
        if frame[0] != ACK or self._answers.n_acks_due or self._unconfirmed < 0:
            return None
        number, self._unconfirmed = self._unconfirmed, -1
        return DeviceEvent(DeviceEventKind.ACK, number, 0, "pulse triggered")

    def _ask_who(self, n_tries: int, timeout_s: float) -> int:
        """Ask for the firmware, again if need be; never while the box waits for the rest of something else."""
        if self._torn:
            self.stop()
        if self._torn:
            raise ShortWriteError(f"{self.port} took a part of a write, and not the rest")
        n_read_before = self._n_read_bytes
        for n_tries_left in reversed(range(n_tries)):
            self._answers.n_hellos_due += 1
            self._send(HANDSHAKE)
            try:
                answer = self._await(lambda it: it[0] == HELLO, "HANDSHAKE", timeout_s)
            except AckTimeoutError:
                if n_tries_left:
                    continue
                if self._n_read_bytes > n_read_before:
                    raise DeviceMismatchError(f"{self.port}: something answers, but not as a Pulse Pal") from None
                raise
            firmware = int.from_bytes(answer[1:], "little")
            if firmware not in FIRMWARES:
                raise DeviceMismatchError(f"{self.port}: a Pulse Pal with firmware {firmware}; this driver knows {FIRMWARES}")
            return firmware
        raise AssertionError("unreachable")

    # --- pulses ---------------------------------------------------------------------------------------------------------------
    def _volts(self, current_ua: int) -> dict[Parameter, int]:
        return {
            Parameter.PHASE1_VOLTS: volts_code(current_ua, self._ua_per_volt),
            Parameter.PHASE2_VOLTS: volts_code(-current_ua, self._ua_per_volt),
        }

    def _encode(self, train: PulseTrain) -> dict[int, tuple[bytes, ...]]:
        """At each current three writes: what is programmed already; with other voltages; with another timing too.

        A trigger is not acknowledged. A parameter is, and in order: behind each trigger one that stays as it is asks for a receipt.
        """
        current_ua = check_train(train, self._limits, RECOVERY_US, range(0, MAX_PHASE_US + 1, CYCLE_US))
        trigger = encode_trigger(train.channel) + encode_program(Parameter.LINK_TO_TRIGGER_1, train.channel, 0)

        def program(parameters: dict[Parameter, int]) -> bytes:
            return b"".join(encode_program(parameter, train.channel, value) for parameter, value in parameters.items())

        timing = program(_timing(train.phase_width_us, train.interphase_gap_us))
        levels: dict[int, tuple[bytes, ...]] = {}
        for level_ua in range(CURRENT_STEP_UA, current_ua + 1, CURRENT_STEP_UA):
            volts = program(self._volts(level_ua))
            levels[level_ua] = (trigger, volts + trigger, timing + volts + trigger)
        return levels

    _N_ACKS = (1, 3, 7)  # of the three

    def _pulse_frame(self, train: int, current_ua: int, number: int) -> bytes:
        """The write that makes of what is programmed what is asked."""
        frames = self._frames[train][current_ua]
        channel, width_us, gap_us = self._shapes[train]
        wanted = (width_us, gap_us, current_ua)
        programmed = self._programmed[channel]
        kind = 0 if programmed == wanted else 1 if programmed[:2] == wanted[:2] else 2
        self._answers.n_acks_due += self._N_ACKS[kind]
        self._unconfirmed = number
        self._programmed[channel] = wanted  # if this write fails, `arm` programs everything anew
        return frames[kind]
