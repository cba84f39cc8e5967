"""The words that cross between drivers and controller.

Data types, Protocols and errors, on the standard library alone (numpy only for type checkers). Everything may import this module; it
imports nothing of ours. No input or output may ever live here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


# --- errors: by what the caller can do about them ---------------------------------------------------------------------------------
class DriverError(Exception):
    """Root of everything a driver raises."""


class DeviceNotFoundError(DriverError):
    """Nothing answers at that name: a missing port, an LSL stream that is not there."""


class DeviceMismatchError(DriverError):
    """Something answers, but it is not what the settings say: wrong device, rate, channels or unit."""


class LimitError(DriverError):
    """The device cannot do what was asked (range or step); no byte was sent."""


class NotArmedError(DriverError):
    """An output was asked for before `arm`; no byte was sent."""


class WireError(DriverError):
    """What was about to leave is not what was approved; no byte was sent."""


class ProtocolError(DriverError):
    """The device answered something that its protocol does not allow."""


class AckTimeoutError(DriverError, TimeoutError):
    """The device did not answer in time. What was sent counts as delivered."""


class ShortWriteError(DriverError):
    """The port took a part of a frame: the link is in doubt."""


class PortLostError(DriverError):
    """The port is gone (unplugged, hung up)."""


class FileFormatError(DriverError):
    """A recording cannot be read as what it claims to be; the message names file and place."""


# --- signals ----------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """What arrived since the last step: the whole of the loop's input.

    EMG and force come from amplifiers with clocks and rates of their own, so each has its own time axis. Zero samples in both = a read
    that timed out, which is data too.

    Attributes
    ----------
    emg_uv : (n_emg_samples, n_emg) float64, µV
    emg_t_s : (n_emg_samples,) float64, s on the LSL clock (CLOCK_MONOTONIC on one Linux host)
    force : (n_force_samples, n_force) float64, in the unit that the settings declare (N or N m)
    force_t_s : (n_force_samples,) float64, s
    feedback : (k, 3) float64
        What guard reported since the last step, a row each: `FEEDBACK_*` code, time in s, request number.
    received_ns : int
        Host monotonic clock when the pull returned.
    """

    emg_uv: NDArray[np.float64]
    emg_t_s: NDArray[np.float64]
    force: NDArray[np.float64]
    force_t_s: NDArray[np.float64]
    feedback: NDArray[np.float64]
    received_ns: int


class SignalBlock(NamedTuple):
    """Samples that a device handed over together.

    Attributes
    ----------
    values : (n_samples, n_channels) float64, n_samples > 0
        As the device gives them.
    newest_s : float
        Stamp of the last sample, s on the host's monotonic clock.
    """

    values: NDArray[np.float64]
    newest_s: float


class SignalSource(Protocol):
    """An amplifier or load cell that does not speak LSL itself; `sources.bridge` publishes what it reads.

    Life: constructed (no input or output) -> `open` -> `read`... -> `close`, and `open` again.
    """

    def open(self) -> None:
        """Open the device for us alone. Raises `DeviceNotFoundError`, `DeviceMismatchError`."""
        ...

    def read(self, timeout_s: float) -> SignalBlock | None:
        """What came, within so long; None = nothing did. Raises `PortLostError`, `DeviceMismatchError`."""
        ...

    def close(self) -> None:
        """Let the device go. May be called twice."""
        ...


FEEDBACK_PULSE = 1.0  # a pulse left the port at that time
FEEDBACK_REFUSED = 2.0  # guard refused that request
FEEDBACK_ENDED = 3.0  # the train of that request is over (finished or cut)


# --- stimulation ------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class PulseTrain:
    """A train of biphasic, charge-balanced rectangular pulses on one channel.

    Attributes
    ----------
    channel : int
        The stimulator's output, counted from 1 as on its housing.
    current_ma, phase_width_us, interphase_gap_us, pulse_rate_hz, duration_ms, ramp_up_ms, taper_ms
        Units are in the names. Ramp and taper lie within the duration.
    """

    channel: int
    current_ma: float
    phase_width_us: int
    interphase_gap_us: int
    pulse_rate_hz: float
    duration_ms: int
    ramp_up_ms: int
    taper_ms: int

    @property
    def charge_per_phase_nc(self) -> float:
        """Charge of one phase (mA x µs = nC)."""
        return self.current_ma * self.phase_width_us

    @property
    def current_rms_ma(self) -> float:
        """Root mean square over a period of the train at full current: I sqrt(2 w f)."""
        return self.current_ma * sqrt(2.0 * self.phase_width_us * 1e-6 * self.pulse_rate_hz)


@dataclass(frozen=True, slots=True)
class StimulatorLimits:
    """What a stimulator can do, as its maker states it.

    Attributes
    ----------
    latency_spread_ms : float
        By how much the time from command to pulse varies: two commands that are further apart than this keep their order and a part of
        their distance.
    answers_pulses, answers_stop : bool
        Whether the device confirms each pulse, and a stop. Where it does not, what was written counts as done.
    ramps : bool
        Whether the current of a pulse can be chosen at all; where it cannot, a dial sets it and the step is the whole current.
    keep_alive_s : float
        How long the device may be left without a word before `Stimulator.keep_alive` is due; 0 = it needs none.
    """

    model: str
    n_channels: int
    max_current_ua: int
    current_step_ua: int
    min_phase_width_us: int
    max_phase_width_us: int
    phase_width_step_us: int
    max_pulse_rate_hz: float
    vendor_latency_ms: float
    latency_spread_ms: float = 0.0
    answers_pulses: bool = True
    answers_stop: bool = True
    ramps: bool = True
    keep_alive_s: float = 0.0


class DeviceEventKind(Enum):
    """What a stimulator can tell us, unasked or as an answer."""

    ACK = "ack"
    ELECTRODE_ERROR = "electrode error"
    DEVICE_ERROR = "device error"
    PROTOCOL_ERROR = "protocol error"
    EMERGENCY_STOP = "emergency stop"  # the box's own
    DEVICE_RESET = "device reset"
    PORT_LOST = "port lost"


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """One thing that a stimulator said.

    Attributes
    ----------
    kind : DeviceEventKind
    number : int
        Packet number it answers, -1 where it answers none.
    code : int
        The device's own result code.
    text : str
        For people.
    """

    kind: DeviceEventKind
    number: int
    code: int
    text: str


class Stimulator(Protocol):
    """A stimulator on a port. Only guard holds one, and only guard's single call site may call the output methods.

    Constructed with its port, its model and `write`: called as `os.write`, once for each frame, the one way out for every byte.

    Life: constructed (no input or output) -> `open` -> `prepare` -> `arm` -> `trigger`... -> `disarm` -> `close`. `stop` is allowed in
    every state and never raises.
    """

    @property
    def limits(self) -> StimulatorLimits:
        """What the device can do."""
        ...

    def open(self) -> None:
        """Open the port and identify the device. Raises `DeviceNotFoundError`, `DeviceMismatchError`, `AckTimeoutError`."""
        ...

    def fileno(self) -> int:
        """File descriptor to poll for `read_events`."""
        ...

    def identify(self) -> str:
        """Ask the device again who it is: "model serial firmware", one word each. No output; only while not armed. Raises as `open`."""
        ...

    def questions(self) -> dict[str, object]:
        """What else it says of itself, without output: a battery, say, None where it has none. Only while not armed. Raises as `open`."""
        ...

    def prepare(self, trains: Sequence[PulseTrain]) -> Sequence[bytes]:
        """Check each train against `limits`; encode every frame that `trigger` may need, return them, send nothing. Raises `LimitError`."""
        ...

    def arm(self) -> None:
        """Make the output ready (high voltage on). Waits for the device's answer. Raises `AckTimeoutError`, `ProtocolError`."""
        ...

    def trigger(self, train: int, current_ua: int) -> int:
        """Send one pulse of the prepared train number `train` at `current_ua`: one non-blocking write. Returns the packet number.

        Raises `NotArmedError`, `LimitError`, `WireError` (nothing sent); `ShortWriteError`, `PortLostError` (link in doubt).
        """
        ...

    def keep_alive(self) -> None:
        """Say a word without output to a device that takes silence for the end of the session. Raises as `trigger`."""
        ...

    def stop(self) -> None:
        """Stop all output at once. Any state, any number of times, never raises."""
        ...

    def disarm(self) -> None:
        """High voltage off, waiting shortly for the answer. Never raises."""
        ...

    def read_events(self) -> list[DeviceEvent]:
        """What the device has said since the last call; never blocks, never raises."""
        ...

    def status(self) -> dict[str, object]:
        """Model, firmware, port and link facts, for people."""
        ...

    def close(self) -> None:
        """Stop, disarm, release the port. May be called twice."""
        ...


# --- buttons ----------------------------------------------------------------------------------------------------------------------
class Edge(NamedTuple):
    """A contact that closed or opened.

    Attributes
    ----------
    closed : bool
    time_ns : int
        When, on the host's monotonic clock: as the kernel stamped it where it does, else when it was seen.
    """

    closed: bool
    time_ns: int


class Button(Protocol):
    """A contact that a person closes. It tells edges as they are, bounces and all: guard's supervisor makes presses of them (C3).

    Life: constructed (no input or output) -> `open` -> `wait`... -> `close`, and `open` again.
    """

    def open(self) -> bool:
        """Open the device for us alone; returns whether the contact is closed. Raises `DeviceNotFoundError`, `DeviceMismatchError`."""
        ...

    def wait(self, timeout_s: float) -> Edge | None:
        """Block until the next edge, at most so long; None = there was none. Raises `PortLostError`."""
        ...

    def close(self) -> None:
        """Let the device go. May be called twice."""
        ...
