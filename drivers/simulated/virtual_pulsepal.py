"""A Pulse Pal (model 2, firmware 21) without hardware, and behind it an isolated stimulator that makes 2.5 mA of a volt (20 mA = 8 V).

Fidelity. As documented: operations, their lengths and answers, cycles of 50 µs, parameters at switching on, bursts, delay, custom trains,
continuous loop; a soft trigger plays in the next cycle. Ours, where documents are silent: the line takes as long as 12 Mbit/s would; a
cut operation waits for its bytes for ever; a trigger of a channel that plays is ignored; a pulse that outlasts its train is cut; an
operation that is not known, and a parameter out of range, is refused with no answer; a text (78) goes on to the next D5, since sources
differ on its length; a direct voltage is logged and counts as outside limits, as it is no pulse. Currents are given to 10 µA; one step of
the converter is 0.76 µA here. Not here: trigger inputs, settings on the card (90 is taken, and nothing is stored), logic lines (86, 87).

Facts from: stimulators notes, section 2.1; sites.google.com/site/pulsepalwiki/usb-serial-interface/usb-interface-v2-x and
.../parameter-guide; PyPI pypulsepal 0.4.6 (BSD-3-Clause; layout of 73, 78 and 85, values at switching on).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, ClassVar

from drivers.simulated.twin import RefusedError, Shape, Twin, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator


UA_PER_VOLT = 2500
CYCLE_NS = 50_000
BYTE_NS = 10 * 10**9 / 12_000_000
LATE_NS = 150_000_000
FIRMWARE = 21
N_CHANNELS = 4
MAX_CUSTOM = 5000

VOLTS = (2, 3, 17)
CYCLES = (4, 5, 6, 7, 8, 9, 10, 11)
FLAGS = (1, 12, 13, 15, 16)
CUSTOM_TRAIN, TRIGGER_MODE = 14, 128


def cycles(seconds: float) -> int:
    """Time in the box's own unit."""
    return round(seconds * 20_000)


def code(volts: float) -> int:
    """Voltage in the box's own unit."""
    return ceil((volts + 10) / 20 * 65535)


def microamperes(volts_code: int) -> int:
    """What the stimulator behind makes of it, to 10 µA."""
    return 10 * round((volts_code * 20 / 65535 - 10) * UA_PER_VOLT / 10)


def at_switching_on() -> dict[int, int]:
    """Parameters of a channel: 5 V, monophasic, 1 ms long, 10 ms apart, for 1 s, linked to the first trigger input."""
    times_s = (0.001, 0.001, 0.001, 0.01, 0, 0, 1.0, 0)
    volts = dict(zip(VOLTS, map(code, (5, -5, 0)), strict=True))
    return volts | dict(zip(CYCLES, map(cycles, times_s), strict=True)) | dict.fromkeys((*FLAGS, CUSTOM_TRAIN), 0) | {12: 1}


# --- the wire ---------------------------------------------------------------------------------------------------------------------
def length_of(command: bytes | bytearray) -> int:
    """How many bytes the command that begins there has; 0 = more must come to tell. Raises `RefusedError`."""
    n = len(command)
    if command[0] != 0xD5:
        raise RefusedError("outside a command")
    if n < 2:
        return 0
    fixed = {72: 2, 73: 180, 77: 3, 79: 5, 80: 2, 81: 2, 82: 4, 85: 2, 89: 8}
    operation = command[1]
    if operation in fixed:
        return fixed[operation]
    if operation == 74:
        return 0 if n < 3 else 4 + (2 if command[2] in VOLTS else 4 if command[2] in CYCLES else 1)
    if operation in (75, 76):
        if n < 6:
            return 0
        if (n_pulses := int.from_bytes(command[2:6], "little")) > MAX_CUSTOM:  # at once, or all that follows would be swallowed
            raise RefusedError(f"custom train of {n_pulses} pulses", command=operation)
        return 6 + 6 * n_pulses
    if operation == 78:
        return 2  # its text is passed over
    if operation == 90:
        return 0 if n < 4 else 4 + command[3]
    raise RefusedError(f"operation {operation}", command=operation)


class Line:
    """Cuts the byte stream into commands; nothing marks where one begins, so one that is cut short takes what follows."""

    def __init__(self) -> None:
        self._command = bytearray()
        self._in_text = False
        self._wire = Wire(BYTE_NS)

    def receive(self, data: bytes, received_ns: int) -> list[tuple[int, bytes, str]]:
        """(wire_ns, bytes, reason of refusal or "") for everything that ended within `data`."""
        pieces = []
        for byte, wire_ns in zip(data, self._wire.arrivals(len(data), received_ns), strict=True):
            if self._in_text and byte != 0xD5:
                continue
            self._in_text = False
            self._command.append(byte)
            try:
                whole, fault = length_of(self._command) == len(self._command), ""
            except RefusedError as refused:
                whole, fault = True, str(refused)
            if whole:
                pieces.append((wire_ns, bytes(self._command), fault))
                self._in_text = not fault and self._command[1] == 78
                self._command.clear()
        return pieces


# --- the box ----------------------------------------------------------------------------------------------------------------------
@dataclass
class Channel:
    """One output."""

    values: dict[int, int] = field(default_factory=at_switching_on)
    playing: bool = False
    loops: bool = False


class Box(Twin):
    """Pulse Pal."""

    LATENCY_NS = CYCLE_NS
    FAULTS: ClassVar[tuple[str, ...]] = ("lost-ack", "late-ack", "duplicate-ack", "hang", "hangup")

    def _begin(self) -> None:
        self.channels = {number: Channel() for number in range(1, N_CHANNELS + 1)}
        self.custom: dict[int, list[tuple[int, int]]] = {1: [], 2: []}  # onset in cycles, code of the voltage
        self.trigger_modes = [0, 0]
        self._line = Line()

    def receive(self, data: bytes, received_ns: int) -> None:
        """Take what one read gave."""
        self.run_due(received_ns)
        for wire_ns, raw, fault in self._line.receive(data, received_ns):
            try:
                if fault:
                    raise RefusedError(fault)
                self._command(raw[1], raw[2:], received_ns, wire_ns)
                self._judge.frames_accepted += 1
            except RefusedError as refused:
                self._refuse(str(refused), raw, received_ns)

    def _command(self, operation: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        if operation == 72:
            self._send(b"K" + struct.pack("<I", FIRMWARE))
        elif operation == 73:
            self._program_all(data)
        elif operation == 74:
            self._program(data[0], data[1], int.from_bytes(data[2:], "little"), wire_ns)
            self._ack(wire_ns)
        elif operation in (75, 76):
            self._load_custom(operation - 74, data[4:])
        elif operation == 77:
            if data[0] >> N_CHANNELS:
                self._log({"ignored": f"channels {data[0]:#010b}", "wire_ns": wire_ns})
            for number in self.channels:
                if data[0] >> number - 1 & 1:
                    self._trigger(number, received_ns, wire_ns)
        elif operation == 79:
            self._rest(data[0], int.from_bytes(data[1:], "little"), wire_ns)
            self._ack(wire_ns)
        elif operation in (80, 81):
            self._abort(wire_ns)
        elif operation == 82:
            self._loop(data[0], data[1], received_ns, wire_ns)
        elif operation == 85:
            self._send(self._settings())

    def _ack(self, wire_ns: int = 0) -> None:
        """One byte for what was programmed; a fault strikes the first after so many pulses."""
        strike = self._fault if self._n_pulses >= self._n_until_fault else ""
        if strike.endswith("-ack"):
            self._fault = ""
        if strike == "late-ack":
            self._at(wire_ns + LATE_NS, "late", lambda: self._send(b"\x01"))
        elif strike != "lost-ack":
            self._send(b"\x01" * (1 + (strike == "duplicate-ack")))

    # --- parameters -----------------------------------------------------------------------------------------------------------
    def _program(self, parameter: int, number: int, value: int, wire_ns: int) -> None:
        if parameter == TRIGGER_MODE:
            if number not in (1, 2) or value > 2:
                raise RefusedError(f"trigger input {number}, mode {value}")
            self.trigger_modes[number - 1] = value
            return
        channel = self._channel(number)
        if parameter not in channel.values:
            raise RefusedError(f"parameter {parameter}")
        if (parameter in FLAGS and value > 1) or (parameter == CUSTOM_TRAIN and value > 2):
            raise RefusedError(f"parameter {parameter} = {value}")
        channel.values[parameter] = value
        if parameter == 17:
            self._rest(number, value, wire_ns)

    def _program_all(self, data: bytes) -> None:
        for i, channel in enumerate(self.channels.values()):
            channel.values |= zip(CYCLES, struct.unpack_from("<8I", data, 32 * i), strict=True)
            channel.values |= zip(VOLTS, struct.unpack_from("<3H", data, 128 + 6 * i), strict=True)
            channel.values |= zip((1, 14, 15, 16), data[152 + 4 * i : 156 + 4 * i], strict=True)
            channel.values |= {12: data[168 + i], 13: data[172 + i]}
            for parameter in (*FLAGS, CUSTOM_TRAIN):
                if (value := channel.values[parameter]) > 1 + (parameter == CUSTOM_TRAIN):
                    channel.values[parameter] = 0
                    self._log({"ignored": f"parameter {parameter} = {value} of channel {i + 1}"})
        self.trigger_modes = list(data[176:178])
        self._ack()

    def _load_custom(self, number: int, data: bytes) -> None:
        n = len(data) // 6
        self.custom[number] = list(zip(struct.unpack_from(f"<{n}I", data), struct.unpack_from(f"<{n}H", data, 4 * n), strict=True))
        self._ack()

    def _settings(self) -> bytes:
        """Return the parameters as the file on its card has them: what is programmed, since nothing else was ever saved."""
        form = struct.Struct("<8IB3H3B")
        order = (*CYCLES, 1, *VOLTS, 14, 15, 16)
        outputs = [form.pack(*(channel.values[it] for it in order)) for channel in self.channels.values()]
        links = [bytes(channel.values[it] for channel in self.channels.values()) for it in (12, 13)]
        return b"".join(outputs) + b"".join(bytes((mode,)) + it for mode, it in zip(self.trigger_modes, links, strict=True))

    def _channel(self, number: int) -> Channel:
        if number not in self.channels:
            raise RefusedError(f"channel {number}")
        return self.channels[number]

    def _rest(self, number: int, volts_code: int, wire_ns: int) -> None:
        """Put out a voltage at once and for good; a nerve must never get one."""
        self._channel(number)
        direct_ua = microamperes(volts_code)
        if direct_ua:
            self._judge.outside_limits += 1
            self._log({"direct_ua": direct_ua, "channel": number, "wire_ns": wire_ns})

    # --- pulses ---------------------------------------------------------------------------------------------------------------
    def _abort(self, wire_ns: int) -> None:
        self._log({"stop_ns": wire_ns})
        self._cancel(wire_ns, "late")
        for channel in self.channels.values():
            channel.playing = channel.loops = False

    def _loop(self, number: int, on: int, received_ns: int, wire_ns: int) -> None:
        channel = self._channel(number)
        if on > 1:
            raise RefusedError(f"continuous loop {on}")
        channel.loops = bool(on)
        self._ack(wire_ns)
        if on and not channel.playing:
            self._trigger(number, received_ns, wire_ns)

    def _trigger(self, number: int, received_ns: int, wire_ns: int) -> None:
        channel = self.channels[number]
        if channel.playing:
            self._log({"ignored": f"channel {number} plays", "wire_ns": wire_ns})
            return
        channel.playing = True
        self._play_on(number, self._train(channel), wire_ns + self._latency_ns, received_ns, wire_ns)

    def _play_on(self, number: int, train: Iterator[tuple[int, int, Shape]], start_ns: int, received_ns: int, wire_ns: int) -> None:
        """Play the next pulse of a train; when it is over, go on. The fault "hang" strikes between pulses."""
        onset, end, shape = next(train, (0, 0, None))
        if shape is None:
            self.channels[number].playing = False
            return
        self._next_fault()
        pulse_ns = start_ns + onset * CYCLE_NS
        self._pulse_at(shape, number, 0, received_ns, wire_ns, pulse_ns)

        def over() -> None:
            self._strike_dead()
            if not self.dead:
                self._play_on(number, train, start_ns, received_ns, wire_ns)

        self._at(start_ns + end * CYCLE_NS, "train", over)

    def _train(self, channel: Channel) -> Iterator[tuple[int, int, Shape]]:
        """Onset and end in cycles and the shape of each pulse; what is programmed meanwhile holds from the next pulse on."""
        values = channel.values
        delay, onset, i = values[11], 0, 0
        while True:
            if values[CUSTOM_TRAIN]:
                pulses = self.custom[values[CUSTOM_TRAIN]]
                if i == len(pulses):
                    if not pulses or not (values[16] or channel.loops):
                        return
                    i, delay = 0, delay + onset + max(values[4], 1)
                onset, first = pulses[i]
                second = 65535 - first
                i += 1
            else:
                first, second = values[2], values[3]
            left = values[10] - onset
            if not channel.loops and left <= 0:
                return
            gap, width2 = (values[5], values[6]) if values[1] else (0, 0)
            length = values[4] + gap + width2
            if not channel.loops and left < length:  # cut where the train ends
                gap = min(gap, max(left - values[4], 0))
                width2 = min(width2, max(left - values[4] - values[5], 0))
                yield delay + onset, delay + onset + left, shape_of(first, second, min(values[4], left), gap, width2)
                return
            yield delay + onset, delay + onset + length, shape_of(first, second, values[4], gap, width2)
            onset += max(length + values[7], 1)
            if values[8] and (onset + length) % (values[8] + values[9]) > values[8]:  # the next one would not fit into its burst
                onset = (onset // (values[8] + values[9]) + 1) * (values[8] + values[9])


def shape_of(first: int, second: int, width1: int, gap: int, width2: int) -> Shape:
    """What two phases (codes of voltages, cycles) make on the skin; balanced to one step of the converter in each."""
    ua1, ua2 = microamperes(first), microamperes(second) if width2 else 0
    return Shape(
        current_ua=max(abs(ua1), abs(ua2)),
        phase_width_us=max(width1, width2) * 50,
        interphase_gap_us=gap * 50,
        duration_us=(width1 + gap + width2) * 50,
        charge_nc=max(abs(ua1) * width1, abs(ua2) * width2) * 50 / 1000,
        balanced=width1 == width2 and abs(first + second - 65535) <= 1,
    )
