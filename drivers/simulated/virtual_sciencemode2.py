"""A RehaStim2 without electrodes: ScienceMode2, as its documents have it.

Fidelity. As documented: framing, Init each 500 ms until it is answered, the watchdog of 1.2 s, the three modes and what each of them
refuses, single pulses, the channel list (main interval, doublets and triplets, channels of low frequency, one-shot lists, updates), result
codes, stimulation errors, 10 to 24 ms from a command to its pulse (drawn anew for each from a generator with a fixed seed), a pulse width
below 20 µs played as 20, the gap of 100 µs.

Ours, where documents are silent. Link: each command is answered 3 ms after its last byte (the line takes 23.9 µs a byte), a pulse too,
before it starts; before InitAck all else is ignored; an InitAck counts only with the number of the last Init. Single pulses: one waits for
the end of the one before it; one that was taken is played even if a stop comes meanwhile; a current of 0 is no pulse. A stop is answered
"ok" in start mode too (a peer begins each session with one and takes any other answer for an error). Lists: initialised in start mode
alone; the 8 ms between pulses of a group are asked for by the first doublet or triplet (a peer initialises single pulses with 2 ms); a list
begins as late as a single pulse, then keeps its interval; an update is played from the next round on, whatever "execution" says; a channel
of low frequency plays in one of factor + 1 rounds. Faults strike single pulses alone: the emergency stop stays pressed; an electrode error
is found by a pulse that is played, the two other errors prevent it; each is told after the pulse's answer.

Not here: a MOTOmed, electrodes, the 2 mA steps of the README (the protocol's fields count 1 mA).

Facts from: Science_Mode2_Description_Protocol_20121212.pdf (version 1.24); ScienceMode/ScienceMode2 README.md.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from drivers.simulated.twin import RefusedError, Twin, Wire, shape_of

if TYPE_CHECKING:
    pass

MS = 1_000_000
BYTE_NS = 11 * 10**9 / 460_800  # start, 8 data, parity and stop bit
SPREAD_NS = 14 * MS
INIT_NS = 500 * MS
WATCHDOG_NS = 1_200 * MS
ANSWER_NS = 3 * MS  # of at most 100, on average below 20
LATE_NS = 150 * MS
LEAD_NS = 2 * MS  # a round of a list is told so long before it begins
SLOT_NS = 1_500_000
GAP_US = 100
MIN_INTERVAL_US = 8_000


# --- the wire, read from the document ---------------------------------------------------------------------------------------------
def crc8(data: bytes | bytearray) -> int:
    """CRC-8, polynomial 07, start 0, most significant bit first."""
    register = 0
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register << 1 ^ 0x07 if register & 0x80 else register << 1) & 0xFF
    return register


def unwrap(raw: bytes) -> tuple[int, int, bytes]:
    """Packet number, command and data of one frame from F0 to 0F. Raises `RefusedError`."""
    if len(raw) < 8 or raw[1] != 0x81 or raw[3] != 0x81:
        raise RefusedError("too short, or its header is not stuffed")
    stated_crc, stated_length = raw[2] ^ 0x55, raw[4] ^ 0x55
    body = raw[5:-1]
    plain = bytearray()
    lawful, escaped = True, False
    for byte in body:
        if escaped:
            plain.append(byte ^ 0x55)
            lawful &= plain[-1] in (0xF0, 0x0F, 0x81)
            escaped = False
        elif byte == 0x81:
            escaped = True
        else:
            plain.append(byte)
    number, command = plain[:2] if len(plain) >= 2 else (-1, -1)
    if stated_length != len(body):
        raise RefusedError(f"states {stated_length} bytes, has {len(body)}", number, command)
    if stated_crc != crc8(body):
        raise RefusedError("checksum", number, command)
    if escaped or not lawful or command < 0:
        raise RefusedError("stuffing", number, command)
    return number, command, bytes(plain[2:])


def wrap(number: int, command: int, data: bytes = b"") -> bytes:
    """One frame from the box."""
    body = bytearray()
    for byte in bytes((number, command)) + data:
        body += bytes((0x81, byte ^ 0x55)) if byte in (0xF0, 0x0F, 0x81) else bytes((byte,))
    return bytes((0xF0, 0x81, crc8(body) ^ 0x55, 0x81, len(body) ^ 0x55)) + body + b"\x0f"


class Line:
    """Cuts the byte stream into frames and knows when each one's last byte arrived at the line rate.

    Strict: a byte outside a frame, a second F0 inside one, more bytes than stated are refused, and the search begins again at the next F0.
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
        if byte == 0xF0 and frame and (frame[0] != 0xF0 or len(frame) not in (2, 4)):  # as a header's value F0 is lawful
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
            return "outside a frame" if n == 256 else None
        if n in (2, 4) and frame[-1] != 0x81:
            return "header is not stuffed"
        if n <= 5:
            return None
        stated = frame[4] ^ 0x55
        if frame[-1] == 0x0F:
            return "" if n - 6 == stated else f"states {stated} bytes, has {n - 6}"
        return f"states {stated} bytes, has more" if n - 5 > stated else None


# --- the box ----------------------------------------------------------------------------------------------------------------------
OK, TRANSFER, PARAMETER, WRONG_MODE, NO_MOTOMED = 0, 0xFF, 0xFE, 0xFD, 0xFC
EMERGENCY_STOP, ELECTRODE, MODULE = 0xFF, 0xFE, 0xFD
INIT, INIT_ACK, UNKNOWN, WATCHDOG, GET_MODE = 1, 2, 3, 4, 10
INIT_LIST, START_LIST, STOP_LIST, SINGLE_PULSE, STIMULATION_ERROR = 30, 32, 34, 36, 38
ANSWERED = (GET_MODE, INIT_LIST, START_LIST, STOP_LIST, SINGLE_PULSE)
OF_A_MOTOMED = (12, 50, 52, 54, 56, 70, 72, 74, 76, 80, 82, 84, 86)
START, INITIALISED, STARTED = range(3)


class ChannelList(NamedTuple):
    """What InitChannelListMode says."""

    factor: int
    active: int
    low: int
    inter_pulse_us: int
    main_us: int  # 0 = one-shot: each Start plays the list once

    @property
    def channels(self) -> list[int]:
        """From 1, ascending."""
        return [bit + 1 for bit in range(8) if self.active >> bit & 1]


class Values(NamedTuple):
    """What StartChannelListMode says of one channel, and SinglePulse of its own: 1 to 3 pulses in a group."""

    n_pulses: int
    phase_width_us: int
    current_ma: int


def read_list(data: bytes) -> ChannelList | None:
    """The data of InitChannelListMode; None where they are not lawful."""
    if len(data) != 7:
        return None
    factor, active, low, group, high, rest, execution = data
    main = high * 256 + rest
    made = ChannelList(factor, active, low, 1500 + 500 * group, 1000 + 500 * main if main else 0)
    too_short = main and made.main_us < MIN_INTERVAL_US
    return None if factor > 7 or not active or low & ~active or main > 2048 or execution > 1 or too_short else made


def read_values(data: bytes, made: ChannelList) -> list[Values] | None:
    """The data of StartChannelListMode; None where they are not lawful for this list."""
    if len(data) != 4 * len(made.channels):
        return None
    values = [Values(data[i] + 1, data[i + 1] * 256 + data[i + 2], data[i + 3]) for i in range(0, len(data), 4)]
    for one in values:
        too_near = one.n_pulses > 1 and made.inter_pulse_us < MIN_INTERVAL_US
        too_long = one.n_pulses > 1 and 0 < made.main_us < one.n_pulses * made.inter_pulse_us
        if one.n_pulses > 3 or not _can_be_played(one) or too_near or too_long:
            return None
    return values


def _can_be_played(values: Values) -> bool:
    return values.phase_width_us <= 500 and values.current_ma <= 130


class Box(Twin):
    """RehaStim2."""

    LATENCY_NS = 10 * MS  # the least
    FAULTS: ClassVar[tuple[str, ...]] = (*Twin.FAULTS, "module-error")

    def _begin(self) -> None:
        self.connected = False  # Init was answered
        self.mode = START
        self._spread_ns = SPREAD_NS if self._latency_stated else 0
        self._dice = random.Random(2)
        self._line = Line()
        self._own_number = 255  # of the last frame that answers none
        self._heard_ns = 0
        self._free_ns = 0  # when the last pulse is over, or a round of a list may begin
        self._emergency = False
        self._list = ChannelList(0, 0, 0, 0, 0)
        self._values: list[Values] = []
        self._n_rounds = 0
        self._cause = (0, 0, 0)  # number, received_ns and wire_ns of the last Start

    def start(self, now_ns: int) -> None:
        """It speaks first."""
        if not self.dead:
            self._say_init(now_ns)

    def receive(self, data: bytes, received_ns: int) -> None:
        """Take what one read gave."""
        self.run_due(received_ns)
        for wire_ns, raw, fault in self._line.receive(data, received_ns):
            try:
                if fault:
                    raise RefusedError(fault)
                number, command, payload = unwrap(raw)
                if not self.connected and command != INIT_ACK:
                    raise RefusedError("before InitAck")
            except RefusedError as refused:
                self._refuse(str(refused), raw, received_ns)
                if self.connected and refused.command in ANSWERED:
                    self._answer(refused.number, refused.command, wire_ns, TRANSFER)
                continue
            self._judge.frames_accepted += 1
            self._heard_ns = wire_ns
            self._command(number, command, payload, received_ns, wire_ns)

    # --- link -----------------------------------------------------------------------------------------------------------------
    def _unasked(self, command: int, *data: int) -> None:
        """Send a frame under the box's own number."""
        self._own_number = (self._own_number + 1) % 256
        self._send(wrap(self._own_number, command, bytes(data)))

    def _say_init(self, now_ns: int) -> None:
        self._unasked(INIT, 1)
        self._at(now_ns + INIT_NS, "init", lambda: self._say_init(now_ns + INIT_NS))

    def _begin_anew(self, from_ns: int) -> None:
        """Output off, all forgotten; Init again."""
        self._cancel(from_ns)
        self.connected, self.mode = False, START
        self._at(from_ns, "init", lambda: self._say_init(from_ns))

    def _watch(self, due_ns: int) -> None:
        """Nothing heard for long enough by then: no host."""
        if due_ns < self._heard_ns + WATCHDOG_NS:
            due_ns = self._heard_ns + WATCHDOG_NS
            self._at(due_ns, "watchdog", lambda: self._watch(due_ns))
        else:
            self._log({"watchdog_ns": due_ns})
            self._begin_anew(due_ns)

    def _answer(self, number: int, command: int, wire_ns: int, *data: int) -> None:
        answer = wrap(number, command + 1, bytes(data))
        self._at(wire_ns + ANSWER_NS, "answer", lambda: self._send(answer))

    # --- commands -------------------------------------------------------------------------------------------------------------
    def _command(self, number: int, command: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        if command == INIT_ACK:
            self._connect(number, data, wire_ns)
        elif command == SINGLE_PULSE:
            self._single(number, data, received_ns, wire_ns)
        elif command == START_LIST:
            self._answer(number, command, wire_ns, self._start_list(number, data, received_ns, wire_ns))
        elif command == INIT_LIST:
            self._answer(number, command, wire_ns, self._init_list(data))
        elif command == STOP_LIST:
            self._log({"stop_ns": wire_ns, "number": number})
            self._answer(number, command, wire_ns, self._stop_list(data, wire_ns))
        elif command == GET_MODE:
            self._answer(number, command, wire_ns, *((PARAMETER,) if data else (OK, self.mode)))
        elif command in OF_A_MOTOMED:
            self._answer(number, command, wire_ns, NO_MOTOMED)
        elif command != WATCHDOG:
            self._answer(number, UNKNOWN - 1, wire_ns, command)

    def _connect(self, number: int, data: bytes, wire_ns: int) -> None:
        if self.connected or number != self._own_number or data != bytes((OK,)):
            self._log({"ignored": "InitAck", "number": number, "data": data.hex(" ")})
            return
        self.connected = True
        self._cancel(wire_ns)  # the next Init
        self._watch(wire_ns)

    def _init_list(self, data: bytes) -> int:
        made = read_list(data)
        if self.mode != START:
            return WRONG_MODE
        if made is None:
            return PARAMETER
        self._list, self.mode = made, INITIALISED
        return OK

    def _start_list(self, number: int, data: bytes, received_ns: int, wire_ns: int) -> int:
        """Begin, or update, what plays on by itself until a stop or the watchdog ends it."""
        if self.mode == START:
            return WRONG_MODE
        values = read_values(data, self._list)
        if values is None:
            return PARAMETER
        self._values, self._cause = values, (number, received_ns, wire_ns)
        if self.mode == INITIALISED:
            self._n_rounds = 0
        if self.mode == INITIALISED or not self._list.main_us:
            self._round_at(max(wire_ns + self._latency(), self._free_ns))
        self.mode = STARTED
        return OK

    def _stop_list(self, data: bytes, wire_ns: int) -> int:
        if data:
            return PARAMETER
        if self.mode != START:
            self._cancel(wire_ns, "answer", "watchdog")
            self.mode = START
        return OK

    # --- pulses ---------------------------------------------------------------------------------------------------------------
    def _latency(self) -> int:
        return self._latency_ns + self._dice.randint(0, self._spread_ns)

    def _give(self, values: Values, channel: int, cause: tuple[int, int, int], pulse_ns: int) -> int:
        """One pulse, unless it is empty; returns when it is over."""
        width_us, current_ma = max(values.phase_width_us, 20), values.current_ma
        shape = shape_of([(width_us, 2 * current_ma), (GAP_US, 0), (width_us, -2 * current_ma)])
        if current_ma:
            number, received_ns, wire_ns = cause
            self._pulse_at(shape, channel, number, received_ns, wire_ns, pulse_ns)
        return pulse_ns + shape.duration_us * 1000

    def _round_at(self, begin_ns: int) -> None:
        self._free_ns = begin_ns + MIN_INTERVAL_US * 1000
        self._at(begin_ns - LEAD_NS, "round", lambda: self._round(begin_ns))

    def _round(self, begin_ns: int) -> None:
        """All channels of the list once, 1.5 ms apart, and the next round."""
        for slot, (channel, values) in enumerate(zip(self._list.channels, self._values, strict=True)):
            if self._list.low >> channel - 1 & 1 and self._n_rounds % (self._list.factor + 1):
                continue
            for i in range(values.n_pulses):
                self._give(values, channel, self._cause, begin_ns + slot * SLOT_NS + i * self._list.inter_pulse_us * 1000)
        self._n_rounds += 1
        if self._list.main_us:
            self._round_at(begin_ns + self._list.main_us * 1000)

    def _single(self, number: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        channel, values = (data[0] + 1, Values(1, data[1] * 256 + data[2], data[3])) if len(data) == 4 else (0, Values(1, 0, 0))
        if self.mode != START:
            self._answer(number, SINGLE_PULSE, wire_ns, WRONG_MODE)
            return
        if not 1 <= channel <= 8 or not _can_be_played(values):
            self._answer(number, SINGLE_PULSE, wire_ns, PARAMETER)
            return
        strike = self._next_fault()
        if strike == "reset":  # neither pulse nor answer
            self._begin_anew(wire_ns)
            return
        self._answer_pulse(number, strike, wire_ns)
        self._emergency |= strike == "e-stop"
        if self._emergency or strike == "module-error":
            self._cancel(wire_ns, "answer", "watchdog")
            self._error_at(wire_ns + ANSWER_NS, EMERGENCY_STOP if self._emergency else MODULE)
            return
        pulse_ns = max(wire_ns + self._latency(), self._free_ns)
        self._free_ns = self._give(values, channel, (number, received_ns, wire_ns), pulse_ns)
        if strike == "electrode-error":
            self._error_at(self._free_ns, ELECTRODE)
        self._at(max(self._free_ns, wire_ns + ANSWER_NS), "over", self._strike_dead)

    def _answer_pulse(self, number: int, strike: str, wire_ns: int) -> None:
        answer = wrap(number, SINGLE_PULSE + 1, bytes((OK,)))
        if strike == "crc-error":
            answer = answer[:2] + bytes((answer[2] ^ 1,)) + answer[3:]
        times_ns = {"lost-ack": (), "late-ack": (LATE_NS,), "duplicate-ack": (ANSWER_NS, ANSWER_NS)}.get(strike, (ANSWER_NS,))
        for after_ns in times_ns:
            self._at(wire_ns + after_ns, "answer", lambda: self._send(answer))

    def _error_at(self, due_ns: int, code: int) -> None:
        self._at(due_ns, "answer", lambda: self._unasked(STIMULATION_ERROR, code))
