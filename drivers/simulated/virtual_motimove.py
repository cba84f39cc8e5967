"""A MotiMove 8 without electrodes, as far as one third-party program shows it. Experimental, as its driver is.

Fidelity. From that program: the 35-byte frame, its checksum and ranges, one pulse a frame on each channel that has a current, the high
voltage, 16 bytes for an answer. All else is ours, since no document says it: the pulse begins `latency_ms` (1 ms) after the frame's last
byte or when the one before it is over; channels follow each other at once; the answer comes when the last of them is over (at once where
there is none); its bytes are 0 but for the intensity in the fifteenth, which a comment of that program reads there; without high voltage a
pulse is answered and not given; the high voltage is on or off at once; a frame with a wrong checksum or value is refused and not answered,
as are bytes outside a frame (FF occurs nowhere else in one); pulses are taken to be biphasic, balanced, with a gap of 10 µs, so that a
limit can be judged at all: that program calls them monophasic. A frame without any current also drops the pulse that has not begun. Not
here: trains that the box times, doublets, sensors, prescalers other than 1 (all refused). As the fault "crc-error" an answer lacks its last
byte.

Facts from: phklatzer/IMUSEF MM_Message_Builder.py, EvilVanillaGlaze/IMUSEF MM_Manager.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from drivers.simulated.twin import RefusedError, Twin, Wire, shape_of

if TYPE_CHECKING:
    pass

BYTE_NS = 10 * 10**9 / 115_200  # start, 8 data and 1 stop bit
LATE_NS = 150_000_000
MAX_STRAY_BYTES = 64
GAP_US = 10
KINDS = {(0x22, 8): "pulse by pulse", (3, 2): "train start", (3, 3): "train stop"}  # bytes that follow FF, type


# --- the wire ---------------------------------------------------------------------------------------------------------------------
def read_frame(frame: bytes) -> tuple[list[tuple[int, int, int]], int, int]:
    """(channel, width in µs, current in µA) of each channel with a current, intensity in percent, voltage. Raises `RefusedError`."""
    kind = KINDS.get((frame[1], frame[2]))
    total = 0
    for byte in frame[1:-1]:
        total = (total + byte) % 128
    if total != frame[-1]:
        raise RefusedError("checksum")
    if kind != "pulse by pulse":
        raise RefusedError(f"{kind or 'unknown command'}: not here")
    delay, period_ms, percent = frame[3:6]
    currents_ma, tens_us, prescalers = frame[6:14], frame[14:22], frame[22:30]
    doublets, _, sensor, voltage = frame[30:34]
    lawful = {
        "delay": delay in (0x00, 0xAB),
        "period": 10 <= period_ms <= 254,
        "intensity": percent <= 100,
        "current": max(currents_ma) <= (170 if delay == 0 else 100),
        "width": max(tens_us) <= 100,
        "prescaler": set(prescalers) == {1},
        "doublets": doublets == 0,
        "sensor": sensor <= 2,
        "voltage": voltage <= 2,
    }
    if wrong := [name for name, good in lawful.items() if not good]:
        raise RefusedError(" and ".join(wrong))
    active = [
        (i + 1, 10 * ten_us, 10 * current_ma * percent)
        for i, (ten_us, current_ma) in enumerate(zip(tens_us, currents_ma, strict=True))
        if ten_us and current_ma and percent
    ]
    return active, percent, voltage


# --- the box ----------------------------------------------------------------------------------------------------------------------
class Box(Twin):
    """MotiMove 8."""

    FAULTS: ClassVar[tuple[str, ...]] = tuple(name for name in Twin.FAULTS if name not in ("electrode-error", "e-stop"))

    def _begin(self) -> None:
        self.high_voltage = False
        self._wire = Wire(BYTE_NS)
        self._frame = bytearray()
        self._free_ns = 0  # when the last pulse is over

    def receive(self, data: bytes, received_ns: int) -> None:
        """Take what one read gave."""
        self.run_due(received_ns)
        for byte, wire_ns in zip(data, self._wire.arrivals(len(data), received_ns), strict=True):
            self._byte(byte, received_ns, wire_ns)

    def _byte(self, byte: int, received_ns: int, wire_ns: int) -> None:
        frame = self._frame
        if byte == 0xFF and frame:
            self._drop("cut short by a new frame" if frame[0] == 0xFF else "outside a frame", received_ns)
        frame.append(byte)
        if frame[0] != 0xFF:
            if len(frame) == MAX_STRAY_BYTES:
                self._drop("outside a frame", received_ns)
        elif len(frame) == 2 and byte not in (3, 0x22):
            self._drop(f"states {byte} bytes", received_ns)
        elif len(frame) > 2 and len(frame) == 1 + frame[1]:
            whole = bytes(frame)
            frame.clear()
            try:
                active, percent, voltage = read_frame(whole)
            except RefusedError as refused:
                self._refuse(str(refused), whole, received_ns)
            else:
                self._judge.frames_accepted += 1
                self._obey(active, percent, voltage, received_ns, wire_ns)

    def _drop(self, reason: str, received_ns: int) -> None:
        self._refuse(reason, bytes(self._frame), received_ns)
        self._frame.clear()

    def _obey(self, active: list[tuple[int, int, int]], percent: int, voltage: int, received_ns: int, wire_ns: int) -> None:
        answer = bytes((*[0] * 14, percent, 0))
        if voltage < 2:
            self.high_voltage = voltage == 1
        if not active:
            if not self.high_voltage:
                self._log({"stop_ns": wire_ns, "number": -1})
            self._cancel(wire_ns, "late")
            self._free_ns = 0
            self._send(answer)
            return
        strike = self._next_fault()
        if strike == "reset":  # neither pulse nor answer
            self._cancel(wire_ns, "late")
            self.high_voltage = False
            return
        for channel, width_us, current_ua in active:
            shape = shape_of([(width_us, round(current_ua / 500)), (GAP_US, 0), (width_us, -round(current_ua / 500))])
            pulse_ns = max(wire_ns + self._latency_ns, self._free_ns)
            self._free_ns = pulse_ns + shape.duration_us * 1000
            if self.high_voltage:
                self._pulse_at(shape, channel, -1, received_ns, wire_ns, pulse_ns, waveform="assumed")

        def over() -> None:
            if strike == "late-ack":
                self._at(pulse_ns + LATE_NS, "late", lambda: self._send(answer))
            elif strike != "lost-ack":
                self._send(answer[:-1] if strike == "crc-error" else answer)
            if strike == "duplicate-ack":
                self._send(answer)
            self._strike_dead()

        self._at(self._free_ns, "over", over)
