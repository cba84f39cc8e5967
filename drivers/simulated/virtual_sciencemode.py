"""A RehaMove3 or P24 without electrodes: ScienceMode3 and 4, as their documents have it.

Fidelity. As documented: framing, refusals, the two levels that exclude each other, 40 ms to switch the high voltage, a queue of ten pulses
and the answer after the pulse (low level); trains that the box times by itself, ramps, the pause after 2 s without Ml_update or
Ml_get_current_data, errors of each channel, at most 999 ms of pulses in a second (mid level). Ours, where documents are silent: each pulse
starts `latency_ms` after its last byte (the line takes 3.67 µs a byte) or when the one before it is over; an eleventh pulse is answered
"busy"; a stop is answered "ok" also when nothing is on, and "not initialised" when the other level is; the pulse that plays when a stop
comes is cut and never answered. Mid level, ours too: Ml_init and Ml_stop take 40 ms as well; a pulse is decided `latency_ms` before it
starts, and an update counts from there on; the k-th of n ramp pulses has k/(n+1) of the current, cut to half mA; a channel that goes on
keeps its ramp and its rhythm; one in error stops, all do if Ml_init said so, and the next Ml_update that names it starts it anew;
Ml_get_current_data is answered "ok" whatever the channels' errors. Reset ends all at once and only a P24 answers it. Measurement (P24): the
pulse as it was ordered, over 1 kOhm, at 150 V. Not here: electrodes (an error comes by fault injection alone, and faults of answers hit the
low level alone).

Facts from: RehaMove3_ScienceMode_Description_and_Protocol_20180421.pdf; P24_Instructions_for_Use_v1.1_20230125.pdf (pages 16-26);
ScienceMode/ScienceMode3 mid_level.html; ScienceMode4_c_library include/general/smpt_definitions_data_types.h,
include/mid-level/smpt_ml_definitions_data_types.h, src/mid-level/smpt_ml_packet_validity.c, src/mid-level/smpt_ml_packet_client.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from drivers.simulated.twin import RefusedError, Twin, Wire, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence


BYTE_NS = 11 * 10**9 / 3_000_000  # start, 8 data and 2 stop bits
SWITCH_NS = 40_000_000  # Ll_init and Ll_stop take about 40 ms
LATE_NS = 150_000_000
QUEUE_LENGTH = 10
WATCHDOG_NS = 2_000_000_000
RECOVERY_US = 60  # goes with each pulse of the mid level: 40 µs muting, 20 µs reserve


# --- the wire, read from the document ---------------------------------------------------------------------------------------------
def crc16(data: bytes | bytearray) -> int:
    """CRC-16, polynomial 1021, start 0, most significant bit first."""
    register = 0
    for byte in data:
        register ^= byte << 8
        for _ in range(8):
            register = (register << 1 ^ 0x1021 if register & 0x8000 else register << 1) & 0xFFFF
    return register


def unwrap(raw: bytes) -> tuple[int, int, bytes]:
    """Packet number, command and data of one frame from F0 to 0F. Raises `RefusedError`."""
    if len(raw) < 12:
        raise RefusedError("too short")
    if any(raw[i] != 0x81 for i in (1, 3, 5, 7)):
        raise RefusedError("header is not stuffed")
    stated_length, stated_crc = ((raw[i] ^ 0x55) * 256 + (raw[i + 2] ^ 0x55) for i in (2, 6))
    body = raw[9:-1]
    plain = bytearray()
    lawful = True
    escaped = False
    for byte in body:
        if escaped:
            plain.append(byte ^ 0x55)
            lawful &= plain[-1] in (0xF0, 0x0F, 0x81)
            escaped = False
        elif byte == 0x81:
            escaped = True
        else:
            plain.append(byte)
    head = plain[0] * 256 + plain[1] if len(plain) >= 2 else -1
    number, command = (head // 1024, head % 1024) if head >= 0 else (-1, -1)
    if stated_length != len(raw):
        raise RefusedError(f"states {stated_length} bytes, has {len(raw)}", number, command)
    if stated_crc != crc16(body):
        raise RefusedError("checksum", number, command)
    if escaped or not lawful or head < 0:
        raise RefusedError("stuffing", number, command)
    return number, command, bytes(plain[2:])


def wrap(number: int, command: int, data: bytes) -> bytes:
    """One frame from the box."""
    body = bytearray()
    for byte in (number * 1024 + command).to_bytes(2, "big") + data:
        body += bytes((0x81, byte ^ 0x55)) if byte in (0xF0, 0x0F, 0x81) else bytes((byte,))
    header = bytearray((0xF0,))
    for byte in (len(body) + 10).to_bytes(2, "big") + crc16(body).to_bytes(2, "big"):
        header += bytes((0x81, byte ^ 0x55))
    return bytes(header + body) + b"\x0f"


class Line:
    """Cuts the byte stream into frames and knows when each one's last byte arrived at the line rate.

    Strict: a byte outside a frame, a second F0 inside one, or more than 1200 bytes are refused, and the search begins again at the next F0.
    """

    def __init__(self) -> None:
        self._frame = bytearray()
        self._wire = Wire(BYTE_NS)

    def receive(self, data: bytes, received_ns: int) -> list[tuple[int, bytes, str]]:
        """(wire_ns, bytes, reason of refusal or "") for everything that ended within `data`."""
        pieces: list[tuple[int, bytes, str]] = []
        for byte, wire_ns in zip(data, self._wire.arrivals(len(data), received_ns), strict=True):
            self._byte(byte, wire_ns, pieces)
        return pieces

    def _byte(self, byte: int, wire_ns: int, pieces: list[tuple[int, bytes, str]]) -> None:
        frame = self._frame
        if byte == 0xF0 and frame and (frame[0] != 0xF0 or len(frame) not in (2, 4, 6, 8)):  # as a header's value F0 is lawful
            pieces.append((wire_ns, bytes(frame), "cut short by a new frame" if frame[0] == 0xF0 else "outside a frame"))
            frame.clear()
        frame.append(byte)
        verdict = self._verdict()
        if verdict is None:
            return
        pieces.append((wire_ns, bytes(frame), verdict))
        start = frame.find(0xF0, 1) if verdict else -1  # a new frame may hide in the header of a cut one
        hidden = frame[start:] if start > 0 else b""
        frame.clear()
        for late in hidden:
            self._byte(late, wire_ns, pieces)

    def _verdict(self) -> str | None:
        """None: more must come; "": a whole frame; else why it is none."""
        frame = self._frame
        n = len(frame)
        if frame[0] != 0xF0:
            return "outside a frame" if n == 1200 else None
        if n in (2, 4, 6, 8) and frame[-1] != 0x81:
            return "header is not stuffed"
        if n < 9:
            return None
        stated = (frame[2] ^ 0x55) * 256 + (frame[4] ^ 0x55)
        if not 12 <= stated <= 1200 or n > stated:
            return f"states {stated} bytes"
        if n > 9 and frame[-1] == 0x0F:
            return "" if n == stated else f"states {stated} bytes, has {n}"
        return None


# --- the box ----------------------------------------------------------------------------------------------------------------------
OK, TRANSFER, PARAMETER, NOT_INITIALISED, ELECTRODE, INVALID_COMMAND, BUSY = 0, 1, 2, 7, 10, 11, 21
LL_INIT, LL_CONFIG, LL_STOP, ML_INIT, ML_UPDATE, ML_STOP, ML_DATA, RESET = COMMANDS = 0, 2, 4, 30, 32, 34, 36, 58
NO_LEVEL, LOW, MID = 0, 1, 2  # as Get_stim_status has them; 3 is MID with trains
ELECTRODE_STATE, TIMEOUT_STATE = 1, 2  # of a channel


@dataclass(slots=True, eq=False)
class Train:
    """What one channel of the mid level plays; `due_ns` is when its next pulse should start."""

    number: int
    received_ns: int
    wire_ns: int
    period_ns: int
    ramp: int
    points: list[tuple[int, int]]
    due_ns: int = 0
    n_played: int = 0

    @property
    def busy_ms(self) -> float:
        """How much of a second its pulses take."""
        return (sum(duration_us for duration_us, _ in self.points) + RECOVERY_US) * 1e6 / self.period_ns

    def next_points(self) -> list[tuple[int, int]]:
        """Points of the next pulse, weaker while the ramp lasts."""
        self.n_played += 1
        whole = self.ramp + 1
        part = min(self.n_played, whole)
        return [(duration_us, int(half_ma * part / whole)) for duration_us, half_ma in self.points]


class Box(Twin):
    """RehaMove3 and P24."""

    LATENCY_NS = 1_000_000  # RehaMove3; of the P24 nothing is stated
    FAULTS: ClassVar[tuple[str, ...]] = tuple(name for name in Twin.FAULTS if name != "e-stop")

    def _begin(self) -> None:
        self.level = NO_LEVEL
        self.high_voltage = False
        self._line = Line()
        self._claimed = NO_LEVEL  # the level, from Ll_init or Ml_init on
        self._switched_ns = 0  # when the last of the inits and stops is done
        self._free_ns = 0  # when the last pulse is over
        self._n_queued = 0
        self._is_p24 = self.model == "p24"
        self._n_channels = 8 if self._is_p24 else 4
        self._measured = 0  # current, voltage, high voltage; 0 = nothing
        self._stop_all = False
        self._trains: dict[int, Train] = {}  # of the channels that run
        self._states: dict[int, int] = {}  # of the channels in error
        self._alive_ns = 0  # last sign of life

    def receive(self, data: bytes, received_ns: int) -> None:
        """Take what one read gave."""
        self.run_due(received_ns)
        for wire_ns, raw, fault in self._line.receive(data, received_ns):
            try:
                if fault:
                    raise RefusedError(fault)
                number, command, payload = unwrap(raw)
            except RefusedError as refused:
                self._refuse(str(refused), raw, received_ns)
                if refused.command in (*COMMANDS, *self._questions()):
                    self._answer(refused.number, refused.command + 1, bytes((TRANSFER,)) + self._pulse_tail(refused.command))
                continue
            self._judge.frames_accepted += 1
            self._command(number, command, payload, received_ns, wire_ns)

    def _command(self, number: int, command: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        if command == LL_CONFIG:
            self._pulse(number, data, received_ns, wire_ns)
        elif command in (LL_INIT, ML_INIT):
            self._switch_on(number, command, data, wire_ns)
        elif command in (LL_STOP, ML_STOP):
            self._switch_off(number, command, data, wire_ns)
        elif command == ML_UPDATE:
            self._update(number, data, received_ns, wire_ns)
        elif command == ML_DATA:
            self._current_data(number, data, wire_ns)
        elif command == RESET:
            self._reset(number, data, wire_ns)
        elif (answer := self._questions().get(command)) is not None:
            self._answer(number, command + 1, answer if not data else bytes((PARAMETER,)))
        else:
            self._answer(number, 67, bytes((INVALID_COMMAND,)))

    def _questions(self) -> dict[int, bytes]:
        """Answers to what may be asked at any time."""
        known = {
            52: b"\0" + b"CALMTWIN%02d" % self._n_channels,
            62: bytes((OK, self.level + bool(self._trains), 6 if self.high_voltage else 1)),
        }
        if self._is_p24:
            known[68] = bytes((OK, 1, 0, 0, 4, 0, 0)) + bytes.fromhex("c0ffee00") + bytes((1, 1))
        else:
            known[50] = bytes((OK, 3, 2, 0, 3, 1, 0))
            known[54] = bytes((OK, 80)) + (3900).to_bytes(2, "big")
        return known

    def _switch_on(self, number: int, command: int, data: bytes, wire_ns: int) -> None:
        level = LOW if command == LL_INIT else MID
        free = {LL_INIT: 0b0111_1110 if self._is_p24 else 0b0000_1110, ML_INIT: int(self._is_p24)}[command]
        if len(data) != 1 or data[0] & ~free & 255 or data[0] >> 4 > 3:
            self._answer(number, command + 1, bytes((PARAMETER,)))
            return
        if self._claimed not in (NO_LEVEL, level):
            self._answer(number, command + 1, bytes((NOT_INITIALISED,)))
            return

        def done() -> None:
            self.level = level
            self._trains.clear()
            self._states.clear()
            if level == LOW:
                self._measured = data[0] // 16
                self.high_voltage = data[0] // 2 % 8 != 1
            else:
                self._stop_all = data[0] == 1
                self.high_voltage = True
            self._answer(number, command + 1, bytes((OK,)))

        self._claimed = level
        self._switched_ns = max(wire_ns, self._switched_ns) + SWITCH_NS
        self._at(self._switched_ns, "switch on", done)

    def _switch_off(self, number: int, command: int, data: bytes, wire_ns: int) -> None:
        result = OK if self._claimed in (NO_LEVEL, LOW if command == LL_STOP else MID) else NOT_INITIALISED
        if data or result != OK:
            self._answer(number, command + 1, bytes((PARAMETER if data else result,)))
            return
        self._log({"stop_ns": wire_ns, "number": number})
        self._drop_queue(wire_ns)
        self._switched_ns = max(wire_ns, self._switched_ns) + SWITCH_NS
        self._at(self._switched_ns, "switch off", lambda: self._answer(number, command + 1, bytes((OK,))))

    def _reset(self, number: int, data: bytes, wire_ns: int) -> None:
        if data:
            self._answer(number, RESET + 1, bytes((PARAMETER,)))
            return
        self._log({"reset_ns": wire_ns, "number": number})
        self._drop_queue(wire_ns)
        if self._is_p24:
            self._answer(number, RESET + 1, bytes((OK,)))

    def _drop_queue(self, from_ns: int) -> None:
        """Output off: nothing starts at or after `from_ns`, and nothing pending is answered."""
        self._cancel(from_ns, "switch off")
        self.level = self._claimed = NO_LEVEL
        self.high_voltage = False
        self._trains.clear()
        self._n_queued = 0
        self._free_ns = 0

    # --- low level ------------------------------------------------------------------------------------------------------------
    def _pulse(self, number: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        self._reset_if_due(wire_ns)
        if self.level != LOW:
            self._answer(number, 3, bytes((NOT_INITIALISED,)) + self._pulse_tail(LL_CONFIG))
            return
        channel, points, result = self._read_config(data)
        if result == OK and self._n_queued >= QUEUE_LENGTH:
            result = BUSY
        if result != OK or not points:  # without the execute bit the box only stores
            self._answer(number, 3, bytes((result,)) + self._pulse_tail(LL_CONFIG))
            return
        strike = self._next_fault()
        self._n_queued += 1
        shape = shape_of(points)
        pulse_ns = max(wire_ns + self._latency_ns, self._free_ns)
        self._free_ns = pulse_ns + shape.duration_us * 1000
        result = ELECTRODE if strike == "electrode-error" else OK
        tail = self._pulse_tail(LL_CONFIG, channel if result == ELECTRODE or self._is_p24 else 1, points)

        def over() -> None:
            self._n_queued -= 1
            answer = wrap(number, 3, bytes((result,)) + tail)
            if strike == "crc-error":
                answer = answer[:8] + bytes((answer[8] ^ 1,)) + answer[9:]
            if strike == "late-ack":
                self._at(pulse_ns + LATE_NS, "late", lambda: self._send(answer))
            elif strike != "lost-ack":
                self._send(answer)
            if strike == "duplicate-ack":
                self._send(answer)
            self._strike_dead()

        self._pulse_at(shape, channel, number, received_ns, wire_ns, pulse_ns, hv=self.high_voltage, result=result)
        self._at(self._free_ns, "over", over)

    def _read_config(self, data: bytes) -> tuple[int, list[tuple[int, int]], int]:
        """Channel from 1, points (µs, half mA; none if the execute bit is not set) and result code of an Ll_channel_config."""
        if not data:
            return 0, [], PARAMETER
        execute, colour, connector, n_points = data[0] // 128, data[0] // 32 % 4, data[0] // 16 % 2, data[0] % 16 + 1
        channel = connector * 4 + colour + 1
        if channel > self._n_channels or len(data) != 1 + 4 * n_points:
            return channel, [], PARAMETER
        points = self._read_points(data[1:])
        if points is None:
            return channel, [], PARAMETER
        return channel, points if execute else [], OK

    def _read_points(self, data: bytes) -> list[tuple[int, int]] | None:
        """Points (µs, half mA) of 4 bytes each; None where one is not lawful."""
        points = []
        for i in range(0, len(data), 4):
            word = int.from_bytes(data[i : i + 4], "big")
            duration_us, half_ma, reserved = word // 2**20, word // 2**10 % 1024 - 300, word % 1024
            if reserved or abs(half_ma) > 260:  # +-130 mA
                return None
            points.append((duration_us, half_ma))
        return points

    def _reset_if_due(self, from_ns: int) -> None:
        """As the fault says, in place of the next pulse."""
        if self._fault == "reset" and self._n_pulses == self._n_until_fault:
            self._drop_queue(from_ns)
            self._fault = ""

    def _pulse_tail(self, command: int, channel: int = 1, points: Sequence[tuple[int, int]] = ()) -> bytes:
        """What follows the result: ScienceMode3 the channel in error, ScienceMode4 connector, channel and measurement."""
        if command != LL_CONFIG:
            return b""
        connector, colour = divmod(channel - 1, 4)
        if not self._is_p24:
            return bytes((colour,))
        return bytes((connector << 4 | colour, self._measured)) + (self._measure(points) if self._measured else b"")

    def _measure(self, points: Sequence[tuple[int, int]]) -> bytes:
        """Time between samples in µs, then 128 of them over the pulse: 10 µA or 10 mV each, without sign."""
        played = [abs(half_ma) for duration_us, half_ma in points for _ in range(max(duration_us, 10))]
        step_us = max(1, -(-len(played) // 128))
        sampled = [half_ma * 50 for half_ma in played[::step_us]]  # 1 mA over 1 kOhm is 1 V
        samples = (sampled if self._measured < 3 else [15_000] * len(sampled)) + [0] * (128 - len(sampled))
        return b"".join(value.to_bytes(2, "big") for value in (step_us, *samples))

    # --- mid level ------------------------------------------------------------------------------------------------------------
    def _update(self, number: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        self.run_due(wire_ns)  # what was decided before the last byte came
        trains = self._read_update(number, data, received_ns, wire_ns)
        if self.level != MID or trains is None:
            self._answer(number, ML_UPDATE + 1, bytes((PARAMETER if self.level == MID else NOT_INITIALISED,)))
            return
        self._stay_alive(wire_ns)
        for channel, train in trains.items():
            train.due_ns = wire_ns + self._latency_ns
            old = self._trains.get(channel)
            if old is not None:
                train.due_ns = max(train.due_ns, old.due_ns - old.period_ns + train.period_ns)
                train.ramp, train.n_played = old.ramp, old.n_played
            self._states.pop(channel, None)
            self._at(train.due_ns - self._latency_ns, "decide", partial(self._next_pulse, channel, train))
        self._trains = trains
        self._answer(number, ML_UPDATE + 1, bytes((OK,)))

    def _read_update(self, number: int, data: bytes, received_ns: int, wire_ns: int) -> dict[int, Train] | None:
        """Trains by channel from 1; None where they are not lawful."""
        trains = {}
        rest = data[1:]
        for channel in range(1, 9):
            if not data[:1] or not data[0] >> channel - 1 & 1:
                continue
            if channel > self._n_channels or len(rest) < 3:
                return None
            n_points, ramp, code, is_fine = rest[0] // 16 + 1, rest[0] % 16, int.from_bytes(rest[1:3], "big") // 2, rest[2] % 2
            points = self._read_points(rest[3 : 3 + 4 * n_points])
            period_ns = code * (250_000 if is_fine else 500_000)
            if points is None or len(rest) < 3 + 4 * n_points or not 0 < period_ns <= 16_383_000_000 or is_fine > self._is_p24:
                return None
            trains[channel] = Train(number, received_ns, wire_ns, period_ns, ramp, points)
            rest = rest[3 + 4 * n_points :]
        is_lawful = data and not rest and sum(train.busy_ms for train in trains.values()) <= 999
        return trains if is_lawful else None

    def _next_pulse(self, channel: int, train: Train) -> None:
        """Decide one pulse, `latency_ns` before it starts, and when to decide the next."""
        if self._trains.get(channel) is not train:
            return
        self._reset_if_due(train.due_ns)
        if not self._trains:
            return
        pulse_ns = max(train.due_ns, self._free_ns)
        train.due_ns += train.period_ns
        if pulse_ns >= train.due_ns:  # other channels leave no room
            self._fail(channel, TIMEOUT_STATE)
            return
        strike = self._next_fault()
        result = ELECTRODE if strike == "electrode-error" else OK
        shape = shape_of(train.next_points())
        self._free_ns = pulse_ns + (shape.duration_us + RECOVERY_US) * 1000
        origin = (train.number, train.received_ns, train.wire_ns)
        self._pulse_at(shape, channel, *origin, pulse_ns, hv=self.high_voltage, result=result, level="mid")
        self._at(self._free_ns, "over", self._strike_dead)
        if result == ELECTRODE:
            self._fail(channel, ELECTRODE_STATE)
        else:
            self._at(train.due_ns - self._latency_ns, "decide", partial(self._next_pulse, channel, train))

    def _fail(self, channel: int, state: int) -> None:
        self._states[channel] = state
        if self._stop_all:
            self._trains.clear()
        else:
            del self._trains[channel]

    def _stay_alive(self, wire_ns: int) -> None:
        """A sign of life; without another one within 2 s the trains end."""

        def bark() -> None:
            if self._alive_ns == wire_ns and self._trains:
                self._log({"watchdog_ns": wire_ns + WATCHDOG_NS})
                self._trains.clear()

        self._alive_ns = wire_ns
        self._at(wire_ns + WATCHDOG_NS, "watchdog", bark)

    def _current_data(self, number: int, data: bytes, wire_ns: int) -> None:
        """Selections 2 (one bit for all that runs, errors of electrodes 1..4), 3 (5..8 too) and 4 (each channel's own)."""
        if len(data) != 1 or data[0] not in ((2, 3, 4) if self._is_p24 else (2,)):
            self._answer(number, ML_DATA + 1, bytes((PARAMETER,)))
            return
        if self.level == MID:
            self._stay_alive(wire_ns)
        running = sum(1 << channel - 1 for channel in self._trains)
        loose = sum(1 << channel - 1 for channel, state in self._states.items() if state == ELECTRODE_STATE)
        states = sum(state << 4 * (channel - 1) for channel, state in self._states.items())
        first = bytes((bool(running) << 4 | loose & 15,))
        tail = {2: first, 3: first + bytes((loose >> 4,)), 4: bytes((running,)) + states.to_bytes(4, "little")}[data[0]]
        self._answer(number, ML_DATA + 1, bytes((OK if self.level == MID else NOT_INITIALISED, data[0])) + tail)

    def _answer(self, number: int, command: int, data: bytes) -> None:
        self._send(wrap(number, command, data))
