"""A RehaMove3 or P24 without electrodes: the real wire protocol on a pty, in its own process, with a log that judges every pulse.

`python -m drivers.simulated.virtual_sciencemode --log FILE` prints one JSON line with its port. Its decoder and its limits are written
from the maker's documents on their own: it imports nothing of ours, least of all the driver, and the driver never imports it, so an
encoder's error shows here. All times are CLOCK_MONOTONIC ns.

Fidelity. As documented: framing, refusals, the states of the low level, 40 ms to switch the high voltage, a queue of ten pulses, the
answer after the pulse. Ours, where documents are silent: each pulse starts `latency_ms` after its last byte (the line takes 3.67 µs a byte)
or when the one before it is over; an eleventh pulse is answered "busy"; Ll_stop is answered "ok" also when nothing runs; the pulse that
plays when Ll_stop comes is cut and never answered. Not here: mid level, electrodes, measurement.

Facts from: RehaMove3_ScienceMode_Description_and_Protocol_20180421.pdf; P24_Instructions_for_Use_v1.1_20230125.pdf (pages 16-26);
ScienceMode4_c_library include/general/smpt_definitions_data_types.h.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import tty
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BYTE_NS = 11 * 10**9 / 3_000_000  # start, 8 data and 2 stop bits
SWITCH_NS = 40_000_000  # Ll_init and Ll_stop take about 40 ms
LATE_NS = 150_000_000
QUEUE_LENGTH = 10
RATE_TOLERANCE_NS = 1_000_000
MIN_PHASE_US = 20
MAX_CHARGE_NC = 30_000
PULSE_RECORD = struct.Struct("<qqiiii")  # received_ns, pulse_ns, current_ua, phase_width_us, channel, number

FAULTS = ("lost-ack", "late-ack", "duplicate-ack", "electrode-error", "crc-error", "reset", "hang", "hangup")


# --- the wire, read from the document ---------------------------------------------------------------------------------------------
class RefusedError(Exception):
    """Bytes that the box does not take; `number` and `command` where they could still be read."""

    def __init__(self, reason: str, number: int = -1, command: int = -1) -> None:
        super().__init__(reason)
        self.number = number
        self.command = command


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
        self._free_ns = 0.0

    def receive(self, data: bytes, received_ns: int) -> list[tuple[int, bytes, str]]:
        """(wire_ns, bytes, reason of refusal or "") for everything that ended within `data`."""
        begin_ns = max(float(received_ns), self._free_ns)
        self._free_ns = begin_ns + len(data) * BYTE_NS
        pieces: list[tuple[int, bytes, str]] = []
        for i, byte in enumerate(data):
            wire_ns = round(begin_ns + (i + 1) * BYTE_NS)
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


@dataclass(frozen=True, slots=True)
class Shape:
    """What the points of one Ll_channel_config make on the skin."""

    current_ua: int
    phase_width_us: int
    interphase_gap_us: int
    duration_us: int
    charge_nc: float
    balanced: bool


def shape_of(points: list[tuple[int, int]]) -> Shape:
    """Reduce points (duration in µs, current in half mA) to phases: neighbours of one sign are one phase."""
    played = [(max(duration_us, 10), half_ma) for duration_us, half_ma in points]  # the box plays anything shorter as 10 µs
    runs = [(sign, list(run)) for sign, run in groupby(played, key=lambda point: (point[1] > 0) - (point[1] < 0))]
    phases = [run for sign, run in runs if sign]
    charges = [sum(duration_us * half_ma for duration_us, half_ma in run) for run in phases]
    inner = [index for index, (sign, _) in enumerate(runs) if sign]
    gaps = [run for sign, run in runs[inner[0] : inner[-1]] if not sign] if inner else []
    return Shape(
        current_ua=max(abs(half_ma) for _, half_ma in played) * 500,
        phase_width_us=max((sum(duration_us for duration_us, _ in run) for run in phases), default=0),
        interphase_gap_us=sum(duration_us for run in gaps for duration_us, _ in run),
        duration_us=sum(duration_us for duration_us, _ in played),
        charge_nc=max((abs(charge) for charge in charges), default=0) / 2,
        balanced=sum(charges) == 0,
    )


# --- the judge --------------------------------------------------------------------------------------------------------------------
@dataclass
class Judge:
    """Its own table of limits, and what it has seen. It judges what was decoded, not what was meant; rates are per channel."""

    max_current_ua: int = 60_000
    max_phase_us: int = 1000
    max_rate_hz: float = 100.0
    pulses: int = 0
    seen_current_ua: int = 0
    seen_charge_nc: float = 0.0
    seen_rate_hz: float = 0.0
    outside_limits: int = 0
    unbalanced: int = 0
    frames_accepted: int = 0
    frames_refused: int = 0
    pulses_dropped: int = 0
    answers_lost: int = 0
    records_lost: int = 0
    last_pulse_ns: dict[int, int] = field(default_factory=dict)

    def judge(self, shape: Shape, channel: int, pulse_ns: int) -> list[str]:
        """Count one pulse; return the names of the limits it breaks."""
        last_ns = self.last_pulse_ns.get(channel)
        self.last_pulse_ns[channel] = pulse_ns
        spacing_ns = pulse_ns - last_ns if last_ns is not None else None
        broken = {
            "current": shape.current_ua > self.max_current_ua,
            "phase": not MIN_PHASE_US <= shape.phase_width_us <= self.max_phase_us,
            "charge": shape.charge_nc > MAX_CHARGE_NC,
            "rate": spacing_ns is not None and spacing_ns < 1e9 / self.max_rate_hz - RATE_TOLERANCE_NS,
            "balance": not shape.balanced,
        }
        self.pulses += 1
        self.seen_current_ua = max(self.seen_current_ua, shape.current_ua)
        self.seen_charge_nc = max(self.seen_charge_nc, shape.charge_nc)
        if spacing_ns is not None:
            self.seen_rate_hz = max(self.seen_rate_hz, 1e9 / max(spacing_ns, 1))
        self.outside_limits += any(broken.values())
        self.unbalanced += not shape.balanced
        return [name for name, is_broken in broken.items() if is_broken]

    def summary(self) -> dict[str, object]:
        """The verdict, for the last line of the log."""
        return {
            "pulses": self.pulses,
            "max_current_ma": self.seen_current_ua / 1e3,
            "max_charge_nc": self.seen_charge_nc,
            "max_rate_hz": round(self.seen_rate_hz, 3),
            "outside_limits": self.outside_limits,
            "unbalanced": self.unbalanced,
            "frames_accepted": self.frames_accepted,
            "frames_refused": self.frames_refused,
            "pulses_dropped": self.pulses_dropped,
            "answers_lost": self.answers_lost,
            "records_lost": self.records_lost,
        }


# --- the box ----------------------------------------------------------------------------------------------------------------------
OK, TRANSFER, PARAMETER, NOT_INITIALISED, ELECTRODE, INVALID_COMMAND, BUSY = 0, 1, 2, 7, 10, 11, 21
LL_INIT, LL_CONFIG, LL_STOP = 0, 2, 4


class Box:
    """The stimulator's firmware: `receive` bytes, then `run_due` whenever `next_due_ns` has come.

    Parameters
    ----------
    model : str
        "rehamove3" or "p24".
    latency_ns : int
        From a frame's last byte to its pulse.
    judge : Judge
    send : callable
        Takes the bytes of an answer.
    log : callable
        Takes one line of the log.
    publish : callable
        Takes a `PULSE_RECORD` as soon as a pulse is certain to start, unless Ll_stop comes before it does.
    fault : tuple of (str, int)
        One of `FAULTS`, and after how many pulses it strikes. "hang" and "hangup" strike once those pulses are answered, the others
        hit the pulse that follows.
    """

    def __init__(
        self,
        model: str,
        latency_ns: int,
        judge: Judge,
        send: Callable[[bytes], None],
        log: Callable[[dict[str, object]], None],
        publish: Callable[[bytes], None],
        fault: tuple[str, int] = ("", 0),
    ) -> None:
        self.model = model
        self.initialised = False
        self.high_voltage = False
        self.dead = ""  # "hang" or "hangup"
        self._latency_ns = latency_ns
        self._judge = judge
        self._send = send
        self._log = log
        self._publish = publish
        self._fault, self._n_until_fault = fault
        self._line = Line()
        self._due: list[tuple[int, int, str, Callable[[], None]]] = []
        self._n_due = 0
        self._switched_ns = 0  # when the last Ll_init or Ll_stop is done
        self._free_ns = 0  # when the last pulse is over
        self._n_queued = 0
        self._n_configs = 0
        self._n_channels = 8 if model == "p24" else 4
        self._strike_dead(0)

    @property
    def next_due_ns(self) -> int | None:
        """When `run_due` has something to do."""
        return self._due[0][0] if self._due else None

    def run_due(self, now_ns: int) -> None:
        """Do all that has come due."""
        while self._due and self._due[0][0] <= now_ns and not self.dead:
            heapq.heappop(self._due)[3]()

    def receive(self, data: bytes, received_ns: int) -> None:
        """Take what one read gave."""
        self.run_due(received_ns)
        for wire_ns, raw, fault in self._line.receive(data, received_ns):
            try:
                if fault:
                    raise RefusedError(fault)
                number, command, payload = unwrap(raw)
            except RefusedError as refused:
                self._judge.frames_refused += 1
                self._log({"refused": str(refused), "bytes": raw.hex(" "), "received_ns": received_ns})
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
        self._judge.pulses_dropped += sum(kind == "pulse" and due_ns >= from_ns for due_ns, _, kind, _ in self._due)
        self._due = [it for it in self._due if it[2] == "switch off" or (it[2] == "pulse" and it[0] < from_ns)]
        heapq.heapify(self._due)
        self.initialised = self.high_voltage = False
        self._n_queued = 0
        self._free_ns = 0

    def _pulse(self, number: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        if self._fault == "reset" and self._n_configs == self._n_until_fault:
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
        strike = self._fault if self._n_configs == self._n_until_fault else ""
        self._n_configs += 1
        self._n_queued += 1
        shape = shape_of(points)
        high_voltage = self.high_voltage
        pulse_ns = max(wire_ns + self._latency_ns, self._free_ns)
        self._free_ns = pulse_ns + shape.duration_us * 1000
        self._publish(PULSE_RECORD.pack(received_ns, pulse_ns, shape.current_ua, shape.phase_width_us, channel, number))
        result = ELECTRODE if strike == "electrode-error" else OK
        tail = self._pulse_tail(LL_CONFIG, channel if result == ELECTRODE or self.model == "p24" else 1)

        def play() -> None:
            outside = self._judge.judge(shape, channel, pulse_ns)
            self._log(
                {
                    "received_ns": received_ns,
                    "wire_ns": wire_ns,
                    "pulse_ns": pulse_ns,
                    "number": number,
                    "channel": channel,
                    "current_ua": shape.current_ua,
                    "phase_width_us": shape.phase_width_us,
                    "interphase_gap_us": shape.interphase_gap_us,
                    "charge_nc": shape.charge_nc,
                    "balanced": shape.balanced,
                    "hv": high_voltage,
                    "result": result,
                    "outside": outside,
                }
            )

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
            self._strike_dead(self._n_configs)

        self._at(pulse_ns, "pulse", play)
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

    def _strike_dead(self, n_pulses: int) -> None:
        if self._fault in ("hang", "hangup") and n_pulses >= self._n_until_fault:
            self.dead = self._fault
            self._due.clear()

    def _answer(self, number: int, command: int, data: bytes) -> None:
        self._send(wrap(number, command, data))

    def _at(self, due_ns: int, kind: str, action: Callable[[], None]) -> None:
        self._n_due += 1
        heapq.heappush(self._due, (due_ns, self._n_due, kind, action))


# --- the process ------------------------------------------------------------------------------------------------------------------
def _parse_fault(text: str) -> tuple[str, int]:
    name, _, n_pulses = text.partition("@")
    if name not in FAULTS or not n_pulses.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME@N with NAME one of {', '.join(FAULTS)}")
    return name, int(n_pulses)


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="virtual_sciencemode", description="A virtual RehaMove3 or P24 on a pty.")
    parser.add_argument("--log", required=True, type=Path, help="file that gets one JSON line a pulse")
    parser.add_argument("--model", choices=("rehamove3", "p24"), default="rehamove3")
    parser.add_argument("--pulses-to", metavar="SOCKETPATH", help="unix datagram socket that is told each pulse before it starts")
    parser.add_argument("--link", type=Path, help="symbolic link to keep to the port")
    parser.add_argument("--latency-ms", type=float, default=1.0, help="from a frame's last byte to its pulse")
    parser.add_argument("--max-current-ma", type=float, default=60.0, help="judge's limit")
    parser.add_argument("--max-phase-us", type=int, default=1000, help="judge's limit")
    parser.add_argument("--max-rate-hz", type=float, default=100.0, help="judge's limit")
    parser.add_argument("--fault", type=_parse_fault, default=("", 0), metavar="NAME@N", help="after N pulses: " + ", ".join(FAULTS))
    parser.add_argument("--lifeline", action="store_true", help="end when stdin does")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Serve one box on a pty until SIGTERM, SIGINT or, with --lifeline, the end of stdin."""
    options = _parse_arguments(arguments)
    judge = Judge(round(options.max_current_ma * 1e3), options.max_phase_us, options.max_rate_hz)
    log_fd = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    records = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    alarm_fd, bell_fd = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(bell_fd)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # We keep the client's end open too: a client that leaves must look like an idle line, not like an unplugged one.
    master_fd, slave_fd = os.openpty()
    tty.setraw(slave_fd)
    os.set_blocking(master_fd, False)
    port = os.ttyname(slave_fd)

    def log(line: dict[str, object]) -> None:
        os.write(log_fd, json.dumps(line).encode() + b"\n")

    def send(answer: bytes) -> None:
        try:
            n_sent = os.write(master_fd, answer)
        except BlockingIOError:
            n_sent = 0
        judge.answers_lost += n_sent != len(answer)

    def publish(record: bytes) -> None:
        if options.pulses_to:
            try:
                records.sendto(record, options.pulses_to)
            except OSError:
                judge.records_lost += 1

    box = Box(options.model, round(options.latency_ms * 1e6), judge, send, log, publish, options.fault)
    if options.link:
        options.link.unlink(missing_ok=True)
        options.link.symlink_to(port)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(75))
    except OSError as error:
        print(f"virtual_sciencemode: no real-time priority ({error.strerror})", file=sys.stderr)
    print(json.dumps({"ready": True, "port": port, "pid": os.getpid()}), flush=True)

    watched = [master_fd, alarm_fd] + ([sys.stdin.fileno()] if options.lifeline else [])
    while True:
        if box.dead and master_fd in watched:
            watched.remove(master_fd)
            if box.dead == "hangup":
                os.close(slave_fd)
                os.close(master_fd)
        wait_s = None if box.next_due_ns is None else max(0, box.next_due_ns - time.monotonic_ns()) / 1e9
        ready, _, _ = select.select(watched, [], [], wait_s)  # select, since poll() rounds up to whole milliseconds
        now_ns = time.monotonic_ns()
        box.run_due(now_ns)
        if alarm_fd in ready:
            break
        if options.lifeline and sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            break
        if master_fd in ready and not box.dead:
            try:
                data = os.read(master_fd, 4096)
            except BlockingIOError:  # the client took its bytes back (tcflush)
                continue
            box.receive(data, time.monotonic_ns())
    log({"summary": judge.summary()})
    if options.link:
        options.link.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
