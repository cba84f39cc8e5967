"""A RehaMove3 or P24 without electrodes: ScienceMode3 and 4, as their documents have it.

Fidelity. As documented: framing, refusals, the states of the low level, 40 ms to switch the high voltage, a queue of ten pulses, the
answer after the pulse. Ours, where documents are silent: each pulse starts `latency_ms` after its last byte (the line takes 3.67 µs a byte)
or when the one before it is over; an eleventh pulse is answered "busy"; Ll_stop is answered "ok" also when nothing runs; the pulse that
plays when Ll_stop comes is cut and never answered. Not here: mid level, electrodes, measurement.

Facts from: RehaMove3_ScienceMode_Description_and_Protocol_20180421.pdf; P24_Instructions_for_Use_v1.1_20230125.pdf (pages 16-26);
ScienceMode4_c_library include/general/smpt_definitions_data_types.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from drivers.simulated.twin import RefusedError, Twin, Wire, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from drivers.simulated.twin import Judge

BYTE_NS = 11 * 10**9 / 3_000_000  # start, 8 data and 2 stop bits
SWITCH_NS = 40_000_000  # Ll_init and Ll_stop take about 40 ms
LATE_NS = 150_000_000
QUEUE_LENGTH = 10


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
LL_INIT, LL_CONFIG, LL_STOP = 0, 2, 4


class Box(Twin):
    """RehaMove3 and P24."""

    LATENCY_NS = 1_000_000  # RehaMove3; of the P24 nothing is stated
    FAULTS: ClassVar[tuple[str, ...]] = tuple(name for name in Twin.FAULTS if name != "e-stop")

    def __init__(
        self,
        model: str,
        latency_ns: int | None,
        judge: Judge,
        send: Callable[[bytes], None],
        log: Callable[[dict[str, object]], None],
        publish: Callable[[bytes], None],
        fault: tuple[str, int] = ("", 0),
    ) -> None:
        super().__init__(model, latency_ns, judge, send, log, publish, fault)
        self.initialised = False
        self.high_voltage = False
        self._line = Line()
        self._switched_ns = 0  # when the last Ll_init or Ll_stop is done
        self._free_ns = 0  # when the last pulse is over
        self._n_queued = 0
        self._n_channels = 8 if model == "p24" else 4

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
                if refused.command in (LL_INIT, LL_CONFIG, LL_STOP, *self._questions()):
                    self._answer(refused.number, refused.command + 1, bytes((TRANSFER,)) + self._pulse_tail(refused.command))
                continue
            self._judge.frames_accepted += 1
            self._command(number, command, payload, received_ns, wire_ns)

    def _command(self, number: int, command: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        if command == LL_CONFIG:
            self._pulse(number, data, received_ns, wire_ns)
        elif command == LL_INIT:
            self._switch_on(number, data, wire_ns)
        elif command == LL_STOP:
            self._switch_off(number, data, wire_ns)
        elif (answer := self._questions().get(command)) is not None:
            self._answer(number, command + 1, answer if not data else bytes((PARAMETER,)))
        else:
            self._answer(number, 67, bytes((INVALID_COMMAND,)))

    def _questions(self) -> dict[int, bytes]:
        """Answers to what may be asked at any time."""
        known = {52: b"\0" + b"CALMTWIN%02d" % self._n_channels, 62: bytes((OK, self.initialised, 6 if self.high_voltage else 1))}
        if self.model == "p24":
            known[68] = bytes((OK, 1, 0, 0, 4, 0, 0)) + bytes.fromhex("c0ffee00") + bytes((1, 1))
        else:
            known[50] = bytes((OK, 3, 2, 0, 3, 1, 0))
            known[54] = bytes((OK, 80)) + (3900).to_bytes(2, "big")
        return known

    def _switch_on(self, number: int, data: bytes, wire_ns: int) -> None:
        free = 0b0111_1110 if self.model == "p24" else 0b0000_1110  # measurement and voltage; voltage alone
        if len(data) != 1 or data[0] & ~free & 255:
            self._answer(number, 1, bytes((PARAMETER,)))
            return

        def done() -> None:
            self.initialised = True
            self.high_voltage = data[0] // 2 % 8 != 1
            self._answer(number, 1, bytes((OK,)))

        self._switched_ns = max(wire_ns, self._switched_ns) + SWITCH_NS
        self._at(self._switched_ns, "switch on", done)

    def _switch_off(self, number: int, data: bytes, wire_ns: int) -> None:
        if data:
            self._answer(number, 5, bytes((PARAMETER,)))
            return
        self._log({"stop_ns": wire_ns, "number": number})
        self._drop_queue(wire_ns)
        self._switched_ns = max(wire_ns, self._switched_ns) + SWITCH_NS
        self._at(self._switched_ns, "switch off", lambda: self._answer(number, 5, bytes((OK,))))

    def _drop_queue(self, from_ns: int) -> None:
        """Output off: nothing starts at or after `from_ns`, and nothing pending is answered."""
        self._cancel(from_ns, "switch off")
        self.initialised = self.high_voltage = False
        self._n_queued = 0
        self._free_ns = 0

    def _pulse(self, number: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        if self._fault == "reset" and self._n_pulses == self._n_until_fault:
            self._drop_queue(wire_ns)
            self._fault = ""
        if not self.initialised:
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
        tail = self._pulse_tail(LL_CONFIG, channel if result == ELECTRODE or self.model == "p24" else 1)

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
        points = []
        for i in range(n_points):
            word = int.from_bytes(data[1 + 4 * i : 5 + 4 * i], "big")
            duration_us, half_ma, reserved = word // 2**20, word // 2**10 % 1024 - 300, word % 1024
            if reserved or abs(half_ma) > 260:  # +-130 mA
                return channel, [], PARAMETER
            points.append((duration_us, half_ma))
        return channel, points if execute else [], OK

    def _pulse_tail(self, command: int, channel: int = 1) -> bytes:
        """What follows the result: ScienceMode3 the channel in error, ScienceMode4 connector, channel and measurement (none)."""
        if command != LL_CONFIG:
            return b""
        connector, colour = divmod(channel - 1, 4)
        return bytes((connector << 4 | colour, 0)) if self.model == "p24" else bytes((colour,))

    def _answer(self, number: int, command: int, data: bytes) -> None:
        self._send(wrap(number, command, data))
