"""Trigger boxes, and a bare serial line, without hardware; behind each a stimulator set by hand to 20 mA, 500 µs, gap 100 µs.

Fidelity. As documented: what raises which line, how long a line stays up (BioSemi 8 ms; Cedrus as it was told, 0 = for good), Cedrus'
identity and its 100 ms for a command to become whole. Ours, where documents are silent: each edge comes 0.1 ms after the last byte; a line
that is up already gives no edge, so no pulse, which is logged; a Cedrus box says nothing to what it does not know; of the bare line, only
00 is one clean pulse, any other byte is refused; pulses count from the end of that byte. Not here: what a stimulator does between edges,
boxes that hold their lines, inputs.

Facts from: stimulators notes, section 2.3; cedrus.com/support/xid/commands.htm; Cedrus' own pyxid2 (BSD-3-Clause).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from drivers.simulated.twin import RefusedError, Shape, Twin, Wire

if TYPE_CHECKING:
    pass

BITS = 10  # start, 8 data and a stop bit
BAUD = {"ttl-byte": 115_200, "ttl-cedrus": 115_200, "ttl-line": 9600}
BIOSEMI_UP_NS = 8_000_000
LINE_UP_NS = BITS * 10**9 // 9600
COMMAND_TIMEOUT_NS = 100_000_000
FOR_GOOD_NS = 2**62
DIALS = Shape(current_ua=20_000, phase_width_us=500, interphase_gap_us=100, duration_us=1100, charge_nc=10_000.0, balanced=True)
ANSWERS = {b"_c1": b"_xid0", b"_d2": b"4", b"_d3": b"0", b"_d4": b"2"}  # a c-pod


class Box(Twin):
    """All three."""

    LATENCY_NS = 100_000
    FAULTS: ClassVar[tuple[str, ...]] = ("hang", "hangup")

    def _begin(self) -> None:
        self._wire = Wire(BITS * 10**9 / BAUD[self.model])
        self._command = b""
        self._command_ns = 0  # when its last byte came
        self._pulse_ns = 0  # Cedrus: how long a line stays up, as told
        self._up_until_ns: dict[int, int] = {}  # by line

    def receive(self, data: bytes, received_ns: int) -> None:
        """Take what one read gave."""
        self.run_due(received_ns)
        for byte, wire_ns in zip(data, self._wire.arrivals(len(data), received_ns), strict=True):
            raw = bytes((byte,))
            try:
                if self.model == "ttl-byte":
                    self._set_lines(byte, BIOSEMI_UP_NS, received_ns, wire_ns)
                elif self.model == "ttl-line":
                    if byte:
                        raise RefusedError("not one clean pulse")
                    self._set_lines(1, LINE_UP_NS, received_ns, wire_ns)
                else:
                    raw = self._collect(byte, received_ns, wire_ns)
                    if not self._cedrus(raw, received_ns, wire_ns):
                        continue
                self._judge.frames_accepted += 1
            except RefusedError as refused:
                self._refuse(str(refused), raw, received_ns)
            self._command = b""

    def _set_lines(self, mask: int, up_ns: int, received_ns: int, wire_ns: int) -> None:
        """Lines of the mask up, all others down; an edge is a pulse."""
        if not mask:
            self._log({"stop_ns": wire_ns})
            self._cancel(wire_ns)
        edge_ns = wire_ns + self._latency_ns
        still_up = {line: until_ns for line, until_ns in self._up_until_ns.items() if until_ns > edge_ns and mask >> line - 1 & 1}
        self._up_until_ns = {line: edge_ns + up_ns for line in range(1, 17) if mask >> line - 1 & 1}
        for line in self._up_until_ns:
            if line in still_up:
                self._log({"ignored": f"line {line} is up already", "wire_ns": wire_ns})
                continue
            self._next_fault()
            self._pulse_at(DIALS, line, 0, received_ns, wire_ns, edge_ns)
            self._at(edge_ns + DIALS.duration_us * 1000, "over", self._strike_dead)

    def _collect(self, byte: int, received_ns: int, wire_ns: int) -> bytes:
        """Return a Cedrus command so far; one that did not become whole in time is thrown away."""
        if self._command and wire_ns - self._command_ns > COMMAND_TIMEOUT_NS:
            self._refuse("not whole within 100 ms", self._command, received_ns)
            self._command = b""
        self._command += bytes((byte,))
        self._command_ns = wire_ns
        return self._command

    def _cedrus(self, command: bytes, received_ns: int, wire_ns: int) -> bool:
        """Carry out a command if it is whole; False while it is not. Raises `RefusedError`."""
        if answer := ANSWERS.get(command):
            self._send(answer)
        elif command[:2] == b"mp" and len(command) == 6:
            self._pulse_ns = int.from_bytes(command[2:], "little") * 1_000_000 or FOR_GOOD_NS
        elif command[:2] == b"mh" and len(command) == 4:
            self._set_lines(int.from_bytes(command[2:], "little"), self._pulse_ns or FOR_GOOD_NS, received_ns, wire_ns)
        elif command[:2] in (b"mp", b"mh") or any(it.startswith(command) for it in (*ANSWERS, b"mp", b"mh")):
            return False
        else:
            raise RefusedError("not a command")
        return True
