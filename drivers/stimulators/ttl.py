"""A trigger box or a bare serial line in front of a stimulator that is set by hand: Digitimer DS7A or DS8R, Grass, and others.

On top a pure codec, below it the device on a serial port. Standard library only: guard, a small process, holds this driver. The composition
root imports it through `drivers.stimulators.load`; it imports `drivers.base` alone. Never here: trains in time, doses, retries of a pulse.

Nothing shows whether a port still takes what it is given: what waits in a stalled one is played when it goes on, by a box as one edge, by
a bare line as one for each byte. Prefer a stimulator that answers, or a Cedrus box, which answers at arming and at the end.

The edge on a line is all that we make: current, widths, and whether the pulse is biphasic and balanced, are set on the stimulator's
dials, and a person must tell us what they show (`dial_*`). Nothing confirms a pulse. One trigger is one pulse and nothing plays on.

- "ttl-byte": BioSemi USB Trigger Interface, NeuroSpec MMBT-S, Arduino sketches: the bits of one byte are the lines. The box must lower
  them by itself (BioSemi after 8 ms, MMBT-S in pulse mode): one that holds them gives a single edge, hence a single pulse.
- "ttl-cedrus": StimTracker and c-pod: "mh" and a mask raise lines for the time that "mp" had set.
- "ttl-line": no box, the transmit line itself: the byte 00 at 9600 8N1 holds it in its other state for nine bits, 0.94 ms. At RS-232's
  levels that is a positive pulse, which needs a limiter to 5 V; at a TTL adaptor's it is a negative one, whose end is the rising edge.
  Any byte would be a pulse, so there is none for a stop. Not RTS or DTR: each edge would cost a system call, with an FTDI chip each a USB
  transfer, opening the port moves both, and a pty has neither, so that nobody could try it without hardware.

Of the first and the last nobody can know what is on the port: opening it asks nothing. It waits, though, since opening raises DTR and RTS,
which resets many Arduinos; what a box says then is passed over. One that goes on talking, or speaks unasked later, is no trigger box.

Facts from: stimulators notes, sections 2.2 to 2.4 and 4; cedrus.com/support/xid/commands.htm (a command that is not whole within 100 ms is
thrown away) and cedrus.com/stimtracker/specs.htm (0.1 ms); Cedrus' own pyxid2 (BSD-3-Clause; "_c1", "_d2", "_d4" and their answers).
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
import time
from typing import TYPE_CHECKING, NamedTuple

from drivers.base import AckTimeoutError, DeviceMismatchError, LimitError, PortLostError, PulseTrain, ShortWriteError, StimulatorLimits
from drivers.stimulators.serial_device import (
    ANSWER_TIMEOUT_S,
    DISARM_TIMEOUT_S,
    IDENTIFY_TIMEOUT_S,
    N_TRIES,
    READ_BYTES,
    Line,
    SerialDevice,
    best_effort,
    check_in_steps,
    check_train,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from drivers.base import DeviceEvent


# --- codec ------------------------------------------------------------------------------------------------------------------------
class Kind(NamedTuple):
    """What one of the names means."""

    model: str
    line: Line
    n_lines: int
    latency_ms: float


NOT_STATED = float("nan")
KINDS = {
    "ttl-byte": Kind("TTL-byte", Line(115_200), 8, NOT_STATED),
    "ttl-cedrus": Kind("TTL-cedrus", Line(115_200), 8, 0.1),
    "ttl-line": Kind("TTL-line", Line(9600), 1, NOT_STATED),
}
CEDRUS_PULSE_MS = 5  # seen by any stimulator, and over long before the next pulse, which comes 10 ms later at the earliest
CEDRUS_TIMEOUT_S = 0.1  # then what is not whole is thrown away
CEDRUS_PRODUCTS = {b"4": "c-pod", b"S": "StimTracker"}


def encode_pulse(kind: str, channel: int) -> bytes:
    """Raise one line. Raises `LimitError`."""
    check_in_steps("channel", channel, 1, KINDS[kind].n_lines, 1)
    mask = 1 << channel - 1
    return {"ttl-byte": bytes((mask,)), "ttl-cedrus": encode_cedrus_lines(mask), "ttl-line": b"\0"}[kind]


def encode_stop(kind: str) -> bytes:
    """Lower all lines; of a bare line nothing."""
    return {"ttl-byte": b"\0", "ttl-cedrus": encode_cedrus_lines(0), "ttl-line": b""}[kind]


def encode_cedrus_lines(mask: int) -> bytes:
    """Raise the lines of `mask` (16 bits), lower all others. Raises `LimitError`."""
    check_in_steps("mask", mask, 0, 0xFFFF, 1)
    return b"mh" + mask.to_bytes(2, "little")


def encode_cedrus_duration(pulse_ms: int) -> bytes:
    """How long a line stays up; 0 would be for good. Raises `LimitError`."""
    check_in_steps("pulse_ms", pulse_ms, 1, 0xFFFF_FFFF, 1)
    return b"mp" + pulse_ms.to_bytes(4, "little")


class Deframer:
    """Bytes in, the one answer that is due out, whole; never raises, keeps less than an answer between calls.

    Attributes
    ----------
    n_due : int
        Bytes of the answer to what was asked last; 0 = nobody has asked.
    n_bad_frames : int
        Runs of bytes that nobody had asked for.
    fault : str
        What the last of them was.
    """

    def __init__(self) -> None:
        self._answer = b""
        self.n_due = 0
        self.n_bad_frames = 0
        self.fault = ""

    def expect(self, n_bytes: int) -> None:
        """A question of so long an answer was asked; what was missing of an earlier one will not come any more."""
        self._answer = b""
        self.n_due = n_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Take what the port gave; return the answer if it is now complete."""
        missing = self.n_due - len(self._answer)
        self._answer += data[:missing]
        if data[missing:]:
            self.n_bad_frames += 1
            self.fault = f"{data[missing : missing + 8].hex(' ')}, for which nobody had asked"
        if not self.n_due or len(self._answer) < self.n_due:
            return []
        answer = self._answer
        self.expect(0)
        return [answer]


# --- device -----------------------------------------------------------------------------------------------------------------------
BOOT_S = 2.0  # an Arduino's boot loader, with room
QUIET_S = 0.05


class Ttl(SerialDevice[bytes]):
    """Lines that trigger a stimulator set by hand, pulse by pulse; a `drivers.base.Stimulator`.

    Parameters
    ----------
    port : str
        Name of the serial port.
    model : str
        "ttl-byte", "ttl-cedrus" or "ttl-line".
    write : callable
        As `os.write`; every byte goes through it.
    dial_current_ua, dial_phase_width_us, dial_interphase_gap_us : int
        What the stimulator behind is set to; nothing else can be asked for.
    """

    def __init__(
        self,
        port: str,
        model: str,
        write: Callable[[int, bytes], int] = os.write,
        *,
        dial_current_ua: int,
        dial_phase_width_us: int,
        dial_interphase_gap_us: int,
    ) -> None:
        for name, value, lowest in (
            ("dial_current_ua", dial_current_ua, 1),
            ("dial_phase_width_us", dial_phase_width_us, 1),
            ("dial_interphase_gap_us", dial_interphase_gap_us, 0),
        ):
            if value < lowest:
                raise LimitError(f"{name} = {value} cannot be what the stimulator is set to: at least {lowest}")
        kind = KINDS[model]
        limits = StimulatorLimits(
            model=kind.model,
            n_channels=kind.n_lines,
            max_current_ua=dial_current_ua,
            current_step_ua=dial_current_ua,
            min_phase_width_us=dial_phase_width_us,
            max_phase_width_us=dial_phase_width_us,
            phase_width_step_us=1,
            max_pulse_rate_hz=100.0,
            vendor_latency_ms=kind.latency_ms,
            latency_spread_ms=0.1,
            answers_pulses=False,
            answers_stop=False,
            ramps=False,
        )
        super().__init__(port, model, limits, write)
        self.LINE = kind.line
        self._may_drop = model != "ttl-cedrus"
        self._gap_us = dial_interphase_gap_us

    def _new_deframer(self) -> Deframer:
        self._answers = Deframer()
        return self._answers

    def _identify(self) -> dict[str, object]:
        """What can be known: of Cedrus' boxes who they are."""
        dials = f"{self._limits.max_current_ua} uA, {self._limits.min_phase_width_us} us, gap {self._gap_us} us"
        facts: dict[str, object] = {"n_bytes_at_opening": self._wait_for_boot(), "stimulator_behind": f"set by hand to {dials}"}
        if self.model == "ttl-cedrus":
            product, firmware = self._ask_cedrus(N_TRIES, ANSWER_TIMEOUT_S)
            return facts | {"found": product, "firmware": firmware}
        return facts | {"found": "nobody can know what is on this port"}

    def _who_is_there(self) -> str:
        if self.model == "ttl-cedrus":
            product, firmware = self._ask_cedrus(1, IDENTIFY_TIMEOUT_S)
            return f"{product} - {firmware}"
        return f"{self._limits.model} - -"

    def _switch_on(self) -> None:
        """Lower all lines; Cedrus' boxes are asked whether they are there, and told how long a pulse is."""
        if self.model == "ttl-cedrus":
            self._ask_cedrus(1, ANSWER_TIMEOUT_S)
            self._send(encode_cedrus_duration(CEDRUS_PULSE_MS))
        if stop := encode_stop(self.model):
            self._send(stop, is_stop=True)

    def _stop_frame(self) -> bytes:
        # What follows a torn command would be its mask. The box throws it away by itself, as it lowers its lines by itself.
        return b"" if self._torn else encode_stop(self.model)

    def _switch_off(self) -> None:
        """Stop; the answer to a question behind it shows that a Cedrus box has read it."""
        self.stop()
        if self.model == "ttl-cedrus":
            self._stop_answered = False
            self._ask_cedrus(1, DISARM_TIMEOUT_S)
            self._stop_answered = True

    def _take_frame(self, frame: bytes) -> DeviceEvent | None:
        return None  # a late answer; what was not due is told as a bad frame

    def _encode(self, train: PulseTrain) -> dict[int, tuple[bytes, ...]]:
        """One frame at the one current there is."""
        current_ua = check_train(train, self._limits, 0, range(self._gap_us, self._gap_us + 1))
        return {current_ua: (encode_pulse(self.model, train.channel),)}

    def _pulse_frame(self, train: int, current_ua: int, number: int) -> bytes:
        """Nothing confirms a pulse, so the kernel is asked whether the last has left. Raises `ShortWriteError` where it has not.

        What has reached the USB chip it cannot see, and a pty has no such queue.
        """
        n_waiting = int.from_bytes(fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        if n_waiting:
            self._armed = False
            raise ShortWriteError(f"{self.port} still holds {n_waiting} byte(s) of the last pulse")
        return super()._pulse_frame(train, current_ua, number)

    # --- who is there ---------------------------------------------------------------------------------------------------------
    def _wait_for_boot(self) -> int:
        """Wait while a board that DTR has reset starts, and pass over what it says; returns the number of bytes.

        A port without such lines has reset nothing. Raises `DeviceMismatchError` for what does not fall silent, `PortLostError`.
        """
        has_lines = best_effort(lambda: fcntl.ioctl(self._fd, termios.TIOCMGET, bytes(4)))
        begin_s = time.monotonic()
        silent_s = begin_s + (BOOT_S if has_lines else QUIET_S)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        n_bytes = 0
        while (now_s := time.monotonic()) < silent_s:
            if now_s > begin_s + 2 * BOOT_S:
                raise DeviceMismatchError(f"{self.port}: something talks on and on: no {self._limits.model}, which says nothing unasked")
            if poll.poll((silent_s - now_s) * 1e3):
                try:
                    data = os.read(self._fd, READ_BYTES)
                except OSError as error:
                    raise PortLostError(f"{self.port}: {error}") from error
                if not data:
                    raise PortLostError(f"{self.port}: hung up")
                n_bytes += len(data)
                silent_s = max(silent_s, time.monotonic() + QUIET_S)
        return n_bytes

    def _ask_cedrus(self, n_tries: int, timeout_s: float) -> tuple[str, str]:
        """Product and firmware, asked again if need be. Raises `DeviceMismatchError`, `AckTimeoutError`."""
        if self._torn:
            time.sleep(1.5 * CEDRUS_TIMEOUT_S)
            self._torn = None
        n_read_before = self._n_read_bytes
        for n_tries_left in reversed(range(n_tries)):
            try:
                mode, product, firmware = (self._ask(*question, timeout_s) for question in ((b"_c1", 5), (b"_d2", 1), (b"_d4", 1)))
            except AckTimeoutError:
                if n_tries_left:
                    continue
                if self._n_read_bytes > n_read_before:
                    raise DeviceMismatchError(f"{self.port}: something answers, but not as a Cedrus box") from None
                raise
            if mode != b"_xid0":
                raise DeviceMismatchError(f"{self.port}: not a Cedrus box in XID mode: _c1 is answered {mode.hex(' ')}")
            if product not in CEDRUS_PRODUCTS or not firmware.isdigit():
                raise DeviceMismatchError(f"{self.port}: a Cedrus box, but neither c-pod nor StimTracker: _d2 is answered {product.hex()}")
            return CEDRUS_PRODUCTS[product], firmware.decode()
        raise AssertionError("unreachable")

    def _ask(self, question: bytes, n_bytes: int, timeout_s: float) -> bytes:
        self._answers.expect(n_bytes)
        self._send(question)
        return self._await(lambda it: len(it) == n_bytes, question.decode(), timeout_s)
