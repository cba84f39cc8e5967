"""A RehaStim1 without electrodes: ScienceMode1, as its documents have it.

Fidelity. As documented: the bytes and their checks, single pulses, the channel list (single pulses, doublets, triplets, its two intervals,
the one-shot list), which runs until a stop, with no watchdog; electrode errors and the emergency stop are not reported. Ours, where
documents are silent: the command to pulse time is `latency_ms` (the maker's 2 ms) whatever else runs; a single pulse is answered when it is
over, a list's commands at once; a pulse that a stop cuts is never answered; a stop is answered "good" also when nothing runs; a single
pulse while a list is ready or runs is refused; a stop with its check bits set is refused; a command that is cut short by the next, and
bytes outside a command, are not answered; an update without a list is refused from its first byte on. Simplified: a channel of low
frequency plays in one of N_Factor + 1 rounds; the channels of a list follow each other 1.5 ms apart, and whether they fit into its
intervals is not checked; a pulse of width or current 0 is taken and not given. Pulse and gap are biphasic and 100 µs: the README says
biphasic, the gap is RehaStim2's.

Facts from: ScienceMode/ScienceMode1 README.md and 02_Description Protocol/science_mode_200909.pdf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from drivers.simulated.twin import RefusedError, Twin, Wire, shape_of

if TYPE_CHECKING:
    pass

BYTE_NS = 11 * 10**9 / 115_200  # start, 8 data and 2 stop bits
LATE_NS = 150_000_000
SLOT_NS = 1_500_000
GAP_US = 100
MAX_STRAY_BYTES = 64
INIT, UPDATE, STOP, SINGLE = range(4)
NAMES = ("init", "update", "stop", "single pulse")


# --- the wire, read from the document ---------------------------------------------------------------------------------------------
def take_bits(frame: bytes, *widths: int) -> list[int]:
    """Fields of a command, most significant bit first, from its seven-bit bytes."""
    text = "".join(format(byte % 128, "07b") for byte in frame)
    fields, place = [], 0
    for width in widths:
        fields.append(int(text[place : place + width], 2))
        place += width
    return fields


def read_single(frame: bytes) -> tuple[int, int, int]:
    """Channel from 1, phase width in µs and current in mA. Raises `RefusedError`."""
    _, check, channel, spare, width_us, current_ma = take_bits(frame, 2, 5, 3, 2, 9, 7)
    if check != (channel + width_us + current_ma) % 32:
        raise RefusedError("check", command=SINGLE)
    _refuse_values(SINGLE, spare, width_us)
    return channel + 1, width_us, current_ma


def read_init(frame: bytes) -> tuple[int, list[int], list[int], int, int]:
    """N_Factor, channels, channels of low frequency (from 1), group and main interval in µs; main 0 = one-shot. Raises `RefusedError`."""
    _, check, n_factor, stim, low, spare, group, main = take_bits(frame, 2, 3, 3, 8, 8, 2, 5, 11)
    if check != (n_factor + stim + low + group + main) % 8:
        raise RefusedError("check", command=INIT)
    if spare or 0 < main < 4:  # 3 ms is the shortest
        raise RefusedError("value", command=INIT)
    channels, low_channels = ([bit + 1 for bit in range(8) if mask >> bit & 1] for mask in (stim, low))
    return n_factor, channels, low_channels, 1500 + 500 * group, 1000 + 500 * main if main else 0


def read_update(frame: bytes) -> list[tuple[int, int, int]]:
    """Pulses in a group, phase width in µs and current in mA of each channel of the list. Raises `RefusedError`."""
    blocks = [take_bits(frame[i : i + 3], 2, 3, 9, 7) for i in range(1, len(frame), 3)]
    if frame[0] % 32 != sum(mode + width_us + current_ma for mode, _, width_us, current_ma in blocks) % 32:
        raise RefusedError("check", command=UPDATE)
    for mode, spare, width_us, _ in blocks:
        _refuse_values(UPDATE, spare + (mode == 3), width_us)
    return [(mode + 1, width_us, current_ma) for mode, _, width_us, current_ma in blocks]


def _refuse_values(command: int, spare: int, width_us: int) -> None:
    if spare or not (width_us == 0 or 10 <= width_us <= 500):
        raise RefusedError("value", command=command)


# --- the box ----------------------------------------------------------------------------------------------------------------------
class Box(Twin):
    """RehaStim1."""

    LATENCY_NS = 2_000_000
    FAULTS: ClassVar[tuple[str, ...]] = tuple(name for name in Twin.FAULTS if name != "electrode-error")

    def _begin(self) -> None:
        self.running = False  # a list
        self._wire = Wire(BYTE_NS)
        self._frame = bytearray()
        self._list: tuple[int, list[int], list[int], int, int] | None = None
        self._pulses: list[tuple[int, int, int]] = []
        self._n_rounds = 0
        self._free_ns = 0  # when the last single pulse is over
        self._emergency = False

    def receive(self, data: bytes, received_ns: int) -> None:
        """Take what one read gave."""
        self.run_due(received_ns)
        for byte, wire_ns in zip(data, self._wire.arrivals(len(data), received_ns), strict=True):
            self._byte(byte, received_ns, wire_ns)

    def _byte(self, byte: int, received_ns: int, wire_ns: int) -> None:
        frame = self._frame
        if byte >= 128 and frame:
            self._drop("cut short by a new command" if frame[0] >= 128 else "outside a command", received_ns)
        frame.append(byte)
        if frame[0] < 128:
            if len(frame) == MAX_STRAY_BYTES:
                self._drop("outside a command", received_ns)
            return
        command = frame[0] // 32 % 4
        n_bytes = (6, 1 + 3 * len(self._list[1]) if self._list else 1, 1, 4)[command]
        if len(frame) < n_bytes:
            return
        whole = bytes(frame)
        frame.clear()
        try:
            self._command(command, whole, received_ns, wire_ns)
        except RefusedError as refused:
            self._refuse(f"{NAMES[command]}: {refused}", whole, received_ns)
            self._answer(command, good=False)
        else:
            self._judge.frames_accepted += 1

    def _drop(self, reason: str, received_ns: int) -> None:
        self._refuse(reason, bytes(self._frame), received_ns)
        self._frame.clear()

    def _answer(self, command: int, good: bool = True) -> None:
        self._send(bytes((command * 64 + good,)))

    def _command(self, command: int, frame: bytes, received_ns: int, wire_ns: int) -> None:
        if command == SINGLE:
            self._single(*read_single(frame), received_ns, wire_ns)
            return
        if command == STOP:
            if frame[0] % 32:
                raise RefusedError("check", command=STOP)
            self._log({"stop_ns": wire_ns, "number": -1})
            self._stop(wire_ns)
        elif command == INIT:
            made = read_init(frame)
            self._stop(wire_ns)
            self._list = made
        elif self._list is None:
            raise RefusedError("no list", command=UPDATE)
        else:
            self._pulses = read_update(frame)
            if not self.running or not self._list[4]:
                self.running = True
                self._round(received_ns, wire_ns, wire_ns + self._latency_ns)
        self._answer(command)

    def _stop(self, from_ns: int) -> None:
        self._cancel(from_ns, "late")
        self._list = None
        self.running = False
        self._n_rounds = 0
        self._free_ns = 0

    def _single(self, channel: int, width_us: int, current_ma: int, received_ns: int, wire_ns: int) -> None:
        if self._list is not None:
            raise RefusedError("a list is ready or runs", command=SINGLE)
        strike = self._next_fault()
        if strike == "reset":  # neither pulse nor answer
            self._stop(wire_ns)
            return
        if strike == "crc-error":
            raise RefusedError("check", command=SINGLE)
        self._emergency |= strike == "e-stop"
        pulse_ns = max(wire_ns + self._latency_ns, self._free_ns)
        self._free_ns = pulse_ns + (2 * width_us + GAP_US) * 1000

        def over() -> None:
            if strike == "late-ack":
                self._at(pulse_ns + LATE_NS, "late", lambda: self._answer(SINGLE))
            elif strike != "lost-ack":
                self._answer(SINGLE)
            if strike == "duplicate-ack":
                self._answer(SINGLE)
            self._strike_dead()

        self._give(width_us, current_ma, channel, received_ns, wire_ns, pulse_ns)
        self._at(self._free_ns, "over", over)

    def _give(self, width_us: int, current_ma: int, channel: int, received_ns: int, wire_ns: int, pulse_ns: int) -> None:
        """A pulse, unless it is empty or the emergency stop holds it back; the box tells neither."""
        if width_us and current_ma and not self._emergency:
            shape = shape_of([(width_us, 2 * current_ma), (GAP_US, 0), (width_us, -2 * current_ma)])
            self._pulse_at(shape, channel, -1, received_ns, wire_ns, pulse_ns)

    def _round(self, received_ns: int, wire_ns: int, begin_ns: int) -> None:
        """All channels of the list once, and the next round."""
        assert self._list
        n_factor, channels, low_channels, group_us, main_us = self._list
        for slot, (channel, (n_pulses, width_us, current_ma)) in enumerate(zip(channels, self._pulses, strict=True)):
            if channel in low_channels and self._n_rounds % (n_factor + 1):
                continue
            for i in range(n_pulses):
                pulse_ns = begin_ns + slot * SLOT_NS + i * group_us * 1000
                self._give(width_us, current_ma, channel, received_ns, wire_ns, pulse_ns)
        self._n_rounds += 1
        if main_us:
            next_ns = begin_ns + main_us * 1000
            self._at(next_ns, "round", lambda: self._round(received_ns, wire_ns, next_ns))
