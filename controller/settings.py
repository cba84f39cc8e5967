"""Settings: a TOML file in, frozen and checked `Settings` out, or every mistake in it at once.

What a clinician prescribes is a setting; what nobody may exceed is a constant below. A setting can only be tighter than its hard limit,
and nothing is ever clipped: a file with one wrong figure does not start. guard's supervisor holds a second copy of the hard limits of its
own, in another process, so that one wrong edit cannot loosen both.

May import pydantic and `drivers.base`; anything of the controller may import this module. Sources of the numbers: the table "Hard limits
and default train" of our design ("design"), our safety requirements by number ("A4"), IEC 60601-2-10, the FDA's guidance on powered
muscle stimulators, and HASOMED's ScienceMode documents ("device").
"""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections import Counter
from difflib import get_close_matches
from importlib.resources import files
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from drivers.base import PulseTrain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo
else:
    from collections.abc import Mapping  # pydantic reads the annotation when it builds the class

# --- hard limits (proposed; a clinician must sign them) ---------------------------------------------------------------------------
MAX_CURRENT_MA = 60.0  # design; surface nerve stimulation needs no more, the devices would give 130
MIN_PHASE_WIDTH_US = 20  # design
MAX_PHASE_WIDTH_US = 1000  # design; long phases favour Ia afferents over motor axons
MIN_PULSE_RATE_HZ = 1.0  # design
MAX_PULSE_RATE_HZ = 100.0  # design; 50-100 Hz inhibits, more only tires
MAX_CHARGE_PER_PHASE_UC = 30.0  # design, A4
DEFAULT_CHARGE_PER_PHASE_UC = 20.0  # design: unless a prescription says otherwise
MAX_RMS_DENSITY_MA_PER_CM2 = 2.0  # IEC 60601-2-10: electrodes above this must be flagged
MAX_POWER_DENSITY_W_PER_CM2 = 0.25  # FDA guidance 1999: stay below
MAX_ENERGY_PER_PULSE_MJ = 300.0  # IEC 60601-2-10, into 500 ohm
LOAD_OHM = 500.0  # the load at which both standards state their figures
MAX_TRAIN_MS = 2000  # design: never longer without a look
MIN_LOOK_DEAD_MS = 20  # design; the amplifier recovers from the last pulse (Front. PMC4182789)
MIN_LOOK_MS = 100  # design; a train that stops while the trigger persists relatches
MAX_EVENT_S = 10.0  # design
MIN_REFRACTORY_S = 1.0  # design, A9
MAX_ON_TIME_S_IN_60_S = 20.0  # design, A9
MAX_DUTY_PERCENT_IN_5_MIN = 25.0  # design
MAX_EVENTS_IN_10_MIN = 30  # design, A9
MAX_AUTOMATIC_EVENTS_IN_1_H = 60  # design; then a person re-arms
MAX_ON_TIME_MIN_IN_SESSION = 30.0  # A10, this and the five that follow: half an hour of stimulation, an hour in a day
MAX_ON_TIME_MIN_IN_24_H = 60.0
MAX_PULSES_IN_SESSION = 180_000  # the same time at 100 Hz
MAX_PULSES_IN_24_H = 360_000
MAX_CHARGE_MC_IN_SESSION = 3_600.0  # the same pulses at 20 uC a phase
MAX_CHARGE_MC_IN_24_H = 7_200.0
MAX_ARMING_MIN = 30.0  # design, B4
MAX_SAMPLE_AGE_MS = 250.0  # C7: what is older than this is dropped

MAX_HIGH_PASS_OF_SAMPLE_RATE = 0.4  # nearer to half the sample rate nothing of the EMG is left to hear


MAX_FILE_BYTES = 1_000_000  # of a settings file


class Device(NamedTuple):
    """What a stimulator's maker states, as far as settings must respect it."""

    n_channels: int
    current_step_ma: float
    pulse_margin_us: int  # that the device needs between two pulses
    electrode_check_ma: float  # below this current the device does not notice a loose electrode


NOT_KNOWN = float("inf")
DEVICES = {
    "rehamove3": Device(4, 0.5, 60, 15.0),  # ScienceMode3 protocol, 2018; C library of ScienceMode4
    "p24": Device(8, 0.5, 60, 15.0),  # P24 instructions for use 1.1, 2023
    # protocol 1.24 has fields of 1 mA, the README steps of 2 mA: what both can do
    "sciencemode2": Device(8, 2.0, 1500, NOT_KNOWN),
    "sciencemode1": Device(8, 2.0, 0, NOT_KNOWN),
    "pulsepal": Device(4, 0.5, 100, NOT_KNOWN),
    "ttl-byte": Device(8, 0.0, 0, NOT_KNOWN),  # step 0: a dial sets the current
    "ttl-cedrus": Device(8, 0.0, 0, NOT_KNOWN),
    "ttl-line": Device(1, 0.0, 0, NOT_KNOWN),
    "motimove": Device(8, 1.0, 0, NOT_KNOWN),
}
Driver = Literal[
    "rehamove3", "p24", "sciencemode2", "sciencemode1", "pulsepal", "ttl-byte", "ttl-cedrus", "ttl-line", "motimove"
]  # a test compares it with DEVICES
_DIAL = {
    "dial_current_ma": ("dial_current_ua", 1000),
    "dial_phase_width_us": ("dial_phase_width_us", 1),
    "dial_interphase_gap_us": ("dial_interphase_gap_us", 1),
}
#: what a driver must be told beside its port: settings' key, the driver's own word and the factor between them
OPTIONS: dict[str, dict[str, tuple[str, int]]] = {driver: {} for driver in DEVICES} | {
    "pulsepal": {"ma_per_volt": ("ua_per_volt", 1000)},
    **dict.fromkeys(("ttl-byte", "ttl-cedrus", "ttl-line"), _DIAL),
}
_MAY_BE_NOUGHT = ("dial_interphase_gap_us",)
DIAL_WORDS = (
    "{driver} cannot set a current: the dial of the stimulator behind it does, so the first pulse after arming has all of it (A11 is not"
    " kept), and whether its pulse is biphasic and balanced is set there too: turn it up by hand, from zero"
)

#: drivers that nobody has tried on a box, and why that matters
EXPERIMENTAL = {
    "motimove": "motimove is experimental: known from one third-party program alone, which calls its pulses monophasic; measure waveform,"
    " charge balance and current before a person is connected to it",
}


class SettingsError(ValueError):
    """The settings cannot be used. `str` gives every problem, one a line; `problems` holds the same lines."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


# --- kinds of values; a title says in words what is allowed -----------------------------------------------------------------------
_Item = TypeVar("_Item")


def _different(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
    if len(set(items)) < len(items):
        raise ValueError
    return items


_PRINTABLE = r"^[^\p{C}\p{Zl}\p{Zp}]+$"  # names stand in logs, on screens and in TOML: no control characters, no line breaks
Text = Annotated[str, Field(max_length=200, pattern=_PRINTABLE, title="a text of 1 to 200 printable characters")]
TextOrNone = Annotated[str, Field(max_length=200, pattern=_PRINTABLE.replace("+", "*"), title="a text of at most 200 printable characters")]
ButtonDevice = Annotated[
    str,
    Field(
        max_length=200,
        pattern=r"^(hid|serial|byte|lsl):[^\p{C}\p{Zl}\p{Zp}]+$",
        title='"hid:/dev/input/by-id/...", "serial:/dev/serial/by-id/...", "byte:/dev/serial/by-id/..." or "lsl:STREAM"',
    ),
]
SignalDevice = Annotated[
    str,
    Field(
        max_length=200,
        pattern=r"^((serial|brainflow):[^\p{C}\p{Zl}\p{Zp}]+|)$",
        title='"serial:/dev/serial/by-id/...@115200" or "brainflow:BOARD@PORT"; empty = the stream is there already',
    ),
]
Key = Annotated[
    str,
    Field(pattern=r"^((KEY|BTN)_[A-Z0-9]{1,20}|[0-9]{1,4}|)$", title='a key\'s name or number, such as "KEY_SPACE" or "57"; empty = none'),
]
InterfaceName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_.:@-]{0,15}$", title='an interface\'s name as `ip link` gives it, such as "enp3s0"; empty = none')
]
HostName = Annotated[
    str, Field(pattern=r"^[a-z0-9.-]{0,253}$", title='a host\'s name in small letters, such as "bed-3.ward.example"; empty = none')
]
TrainName = Annotated[str, Field(max_length=50, pattern=r"^[A-Za-z0-9_-]+$")]
_TRAIN_NAME_WORDS = "must be 1 to 50 of the characters A-Z, a-z, 0-9, _ and -"
# strict=False belongs to the list alone: TOML has lists, frozen settings have tuples; the items stay strict.
Channels = Annotated[
    tuple[Text, ...],
    AfterValidator(_different),
    Field(strict=False, min_length=1, max_length=64, title="a list of 1 to 64 different names of channels"),
]
RuleNames = Annotated[
    tuple[Text, ...],
    AfterValidator(_different),
    Field(strict=False, min_length=2, max_length=64, title="a list of 2 to 64 different names of rules"),
]
Ratios = Annotated[
    tuple[Annotated[float, Field(ge=0.0, le=40.0)], ...],
    AfterValidator(_different),
    Field(strict=False, min_length=1, max_length=4, title="a list of 1 to 4 different numbers, at least 0 and at most 40 dB"),
]
Noise = Annotated[
    tuple[Annotated[float, Field(ge=0.01, le=5000.0)], ...],
    Field(strict=False, max_length=64, title="a list of numbers, at least 0.01 and at most 5000 uV, one for each channel; empty = learnt"),
]
Cpus = Annotated[
    tuple[Annotated[int, Field(ge=0, le=1023)], ...],
    AfterValidator(_different),
    Field(strict=False, max_length=1024, title="a list of different whole numbers, at least 0 and at most 1023; empty = all"),
]


class Table(BaseModel):
    """A table of the file: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


# --- the tables -------------------------------------------------------------------------------------------------------------------
class Session(Table):
    """`[session]`: where recordings go."""

    folder: Text = Field(default="sessions", description="one sub-folder for each session is made in it")


class Stream(Table):
    """What `[emg]` and `[force]` share: an LSL stream, found by its name (and, where given, source id and type).

    With `device` it is the daemon that makes the stream, of what the device says.
    """

    stream_name: Text = Field(description="the LSL stream's name, as `calmloop doctor` lists it")
    source_id: TextOrNone = Field(default="", description="the LSL source id, where two streams could have the same name; empty = any")
    stream_type: TextOrNone = Field(default="", description="the LSL type, such as EMG; empty = any")
    channels: Channels = Field(description="the stream's channels in its order")
    device: SignalDevice = Field(default="", description="what speaks no LSL itself, and is published under stream_name")
    scale: float = Field(
        default=1.0, ge=-1e9, le=1e9, description="device: what its numbers are multiplied by to be in `unit`, such as N for a count"
    )


class EmgStream(Stream):
    """`[emg]`: the surface EMG that is listened to."""

    sample_rate_hz: float = Field(ge=200.0, le=10000.0, description="the stream's nominal rate; 1-4 kHz is usual for surface EMG")
    unit: Literal["uV", "mV", "V"] = Field(description="the unit of the stream's samples")
    # 2-5 ms: detection notes, section 5; more for stimulators that take their time from command to pulse
    hold_ms: float = Field(
        default=0.0,
        ge=0.0,
        le=20.0,
        description="from a pulse's command on not listened to, then between pulses; 0 = not for the whole look_dead_ms",
    )


class ForceStream(Stream):
    """`[force]`: force or torque."""

    sample_rate_hz: float = Field(ge=10.0, le=5000.0, description="the stream's nominal rate; 50-2000 Hz is usual for force")
    unit: Literal["N", "N m"] = Field(description="the unit of the stream's samples, and of the force rules")


class EmgRule(Table):
    """One of `[[emg_rules]]`: the channels of one muscle, pooled, and the train that answers its spasm.

    The bounds keep out figures that can only be slips; what is right for a person is found by `calmloop calibrate`.
    """

    name: Text = Field(description="what the screen and the audit call this rule")
    channels: Channels = Field(description="channels of [emg] over one muscle; they are pooled")
    train: Text = Field(description="the train of [trains] that answers")
    method: Literal["cusum", "hodges_bui", "bonato", "tkeo", "rms_mad"] = Field(
        default="cusum", description="how a spasm is told from rest: likelihoods, or a familiar rule"
    )
    high_pass_hz: float = Field(ge=10.0, le=500.0, description="keeps ECG and movement out; 80 Hz removes nearly all ECG")
    false_alarms_per_h: float = Field(ge=0.0001, le=3600.0, description="in an hour of quiet, at most; fewer = later")
    floor_uv: float = Field(ge=0.0, le=5000.0, description="smaller activity is never a spasm; surface EMG ends at about 5 mV")
    noise_time_s: float = Field(ge=0.5, le=600.0, description="memory of the adaptive noise model")
    off_ratio: float = Field(ge=1.1, le=20.0, description="active until the envelope falls below this many times the noise")
    design_snr_db: Ratios = Field(default=(2.0, 6.0, 11.0, 17.0), description="spasm-to-noise ratios that the CUSUM is designed for")
    noise_uv: Noise = Field(default=(), description="root mean square of rest above the high-pass, per channel; empty = learnt as it goes")
    mains_hz: float = Field(
        default=50.0, ge=0.0, le=400.0, description="frequency of the power line, told from a spasm; 0 = not looked for"
    )
    rise_ms: float = Field(default=0.0, ge=0.0, le=500.0, description="a spasm rises to rise_ratio within this; 0 = however it rises")
    rise_ratio: float = Field(default=2.7, ge=1.5, le=30.0, description="root mean square that an abrupt rise reaches, in rest's")
    intent_channel: TextOrNone = Field(
        default="", description="channel of [emg] that is active when the person moves on purpose; empty = none"
    )
    intent_uv: float = Field(default=50.0, ge=1.0, le=5000.0, description="a sample of intent_channel beyond this is on purpose, for 0.5 s")


class ForceRule(Table):
    """One of `[[force_rules]]`: a rise above the running baseline, in the unit of `[force]`."""

    name: Text = Field(description="what the screen and the audit call this rule")
    channel: Text = Field(description="a channel of [force]")
    train: Text = Field(description="the train of [trains] that answers")
    threshold: float = Field(ge=0.01, le=5000.0, description="above the running baseline, in the unit of [force]")
    rate_per_s: float = Field(ge=0.01, le=100000.0, description="and rising at least this fast, in the unit of [force] per second")
    baseline_time_s: float = Field(ge=0.5, le=600.0, description="memory of the running baseline")


class Join(Table):
    """One of `[[joins]]`: rules that ask together, for one train, which all of them name. A rule that is in none asks by itself."""

    name: Text = Field(description="what the screen and the audit call these rules together")
    rules: RuleNames = Field(description="names of rules; they ask through this join alone")
    how: Literal["any", "all", "emg_then_force"] = Field(
        default="any", description="how many of the rules must be active, or first the EMG rule and then the force rule"
    )
    within_ms: int = Field(default=200, ge=10, le=1000, description="emg_then_force: so soon after the EMG rule decided force must cross")


class Train(Table):
    """`[trains.NAME]`: a train of biphasic, balanced pulses."""

    channel: int = Field(ge=1, le=8, description="the stimulator's output, counted from 1 as on its housing")
    current_ma: float = Field(ge=0.5, le=MAX_CURRENT_MA, description="current of each phase; hard limit for surface nerve stimulation")
    phase_width_us: int = Field(ge=MIN_PHASE_WIDTH_US, le=MAX_PHASE_WIDTH_US, description="length of each of the two phases; hard limit")
    interphase_gap_us: int = Field(ge=0, le=1000, description="pause between the phases; 0 = none")
    pulse_rate_hz: float = Field(ge=MIN_PULSE_RATE_HZ, le=MAX_PULSE_RATE_HZ, description="pulses a second; hard limit; 50-100 Hz inhibits")
    duration_ms: int = Field(ge=1, le=MAX_TRAIN_MS, description="the whole train; hard limit without a look")
    ramp_up_ms: int = Field(ge=0, le=MAX_TRAIN_MS, description="rise of the current at the start, within the duration")
    taper_ms: int = Field(ge=0, le=MAX_TRAIN_MS, description="fall of the current at the end, within the duration")

    def pulse_train(self) -> PulseTrain:
        """Return the train in the drivers' words."""
        return PulseTrain(**self.model_dump())


class Prescription(Table):
    """`[prescription]`: what a clinician signs. Each figure may be tighter than its hard limit, never looser."""

    author: Text = Field(description="who answers for these figures")
    version: int = Field(default=1, ge=1, le=1_000_000, description="counted up with each change on the page")
    reason: TextOrNone = Field(default="", description="why this version")
    montage: TextOrNone = Field(default="", description="which of `calmloop montage` the pads follow, drawn beside the form; empty = none")
    side: Literal["right", "left"] = Field(default="right", description="of the person, for that drawing")
    manual_train: Text = Field(description="the train that a press of the button or `calmloop trigger` gives")
    electrode_area_cm2: float = Field(
        ge=1.0, le=200.0, description="conducting area of the smaller electrode of the pair; no default, density depends on it (A5)"
    )
    max_current_ma: float = Field(ge=0.5, le=MAX_CURRENT_MA, description="no train may be stronger; hard limit")
    max_charge_per_phase_uc: float = Field(
        default=DEFAULT_CHARGE_PER_PHASE_UC, ge=0.01, le=MAX_CHARGE_PER_PHASE_UC, description="current x phase width; hard limit (A4)"
    )
    look_dead_ms: int = Field(ge=MIN_LOOK_DEAD_MS, le=1000, description="after a train the amplifier recovers; design's minimum")
    look_ms: int = Field(ge=MIN_LOOK_MS, le=1000, description="then we look whether the spasm goes on; design's minimum")
    max_event_s: float = Field(ge=0.1, le=MAX_EVENT_S, description="stimulation for one spasm; hard limit")
    refractory_s: float = Field(ge=MIN_REFRACTORY_S, le=600.0, description="rest after each event; hard limit (A9)")
    max_on_time_s_in_60_s: float = Field(ge=0.1, le=MAX_ON_TIME_S_IN_60_S, description="stimulation in any minute; hard limit (A9)")
    max_duty_percent_in_5_min: float = Field(ge=0.1, le=MAX_DUTY_PERCENT_IN_5_MIN, description="stimulation in any 5 minutes; hard limit")
    max_events_in_10_min: int = Field(ge=1, le=MAX_EVENTS_IN_10_MIN, description="events of any cause; hard limit (A9)")
    max_automatic_events_in_1_h: int = Field(ge=1, le=MAX_AUTOMATIC_EVENTS_IN_1_H, description="then a person re-arms; hard limit")
    max_on_time_min_in_session: float = Field(
        ge=0.1, le=MAX_ON_TIME_MIN_IN_SESSION, description="stimulation from the start of a session to its end; hard limit (A10)"
    )
    max_on_time_min_in_24_h: float = Field(
        ge=0.1, le=MAX_ON_TIME_MIN_IN_24_H, description="stimulation in any 24 hours, over sessions and restarts; hard limit (A10)"
    )
    max_pulses_in_session: int = Field(ge=1, le=MAX_PULSES_IN_SESSION, description="pulses of all trains; hard limit (A10)")
    max_pulses_in_24_h: int = Field(ge=1, le=MAX_PULSES_IN_24_H, description="pulses in any 24 hours; hard limit (A10)")
    max_charge_mc_in_session: float = Field(
        ge=0.001, le=MAX_CHARGE_MC_IN_SESSION, description="charge of the first phases of all pulses; hard limit (A10)"
    )
    max_charge_mc_in_24_h: float = Field(
        ge=0.001, le=MAX_CHARGE_MC_IN_24_H, description="charge of the first phases in any 24 hours; hard limit (A10)"
    )
    arming_expires_min: float = Field(ge=1.0, le=MAX_ARMING_MIN, description="without a person automatic mode ends; hard limit (B4)")


class Stimulator(Table):
    """`[stimulator]`."""

    driver: Driver = Field(description="the kind of stimulator")
    port: Text = Field(description="its serial port, /dev/serial/by-id/... by preference")
    serial: TextOrNone = Field(default="", description="the number of this very device, which must answer at the port; empty = any")
    # what a person must say of a stimulator that cannot be asked; 0 = not said
    ma_per_volt: float = Field(
        default=0.0, ge=0.0, le=100.0, description="pulsepal: current of the isolated stimulator behind it for one volt"
    )
    dial_current_ma: float = Field(
        default=0.0, ge=0.0, le=MAX_CURRENT_MA, description="ttl-*: what the stimulator behind is set to by hand"
    )
    dial_phase_width_us: int = Field(default=0, ge=0, le=MAX_PHASE_WIDTH_US, description="ttl-*: one phase, as set by hand")
    dial_interphase_gap_us: int = Field(default=0, ge=0, le=MAX_PHASE_WIDTH_US, description="ttl-*: between the phases, as set by hand")

    experimental: bool = Field(default=False, description="of a driver that nobody has tried: its waveform was measured, here")

    @property
    def options(self) -> dict[str, int]:
        """What the driver takes beside its port, in integers (µA, µs)."""
        return {name: _whole(getattr(self, key) * factor) for key, (name, factor) in OPTIONS[self.driver].items()}


class Realtime(Table):
    """`[realtime]`: what we ask of the operating system."""

    loop_priority: int = Field(default=70, ge=0, le=97, description="SCHED_FIFO of the loop; 0 = do not ask; guard's must be above it")
    guard_priority: int = Field(default=80, ge=0, le=98, description="SCHED_FIFO of guard; 0 = do not ask; 99 is the kernel's")
    cpus: Cpus = Field(default=(), description="processors to stay on")
    max_sample_age_ms: float = Field(default=100.0, ge=10.0, le=MAX_SAMPLE_AGE_MS, description="older samples never stimulate (C7)")
    max_lateness_ms: float = Field(
        default=50.0,
        ge=5.0,
        le=MAX_SAMPLE_AGE_MS,
        description="a request that reaches guard later than this after it was decided is refused",
    )


class Page(Table):
    """`[page]`: the page in a browser of this machine, and of a network only where all four of the rest are given (G1)."""

    port: int = Field(default=0, ge=0, le=65535, description="where it is served, http://127.0.0.1:PORT; 0 = no page")
    interface: InterfaceName = Field(default="", description="network interface that it is served on too, over TLS; empty = none")
    host_name: HostName = Field(default="", description="name by which browsers find this machine there; empty = its address")
    certificate: TextOrNone = Field(default="", description="file of the page's certificate; `calmloop certificate` makes it")
    key: TextOrNone = Field(default="", description="file of its key")


class Lsl(Table):
    """`[lsl]`: what the bed tells others of itself."""

    # off: LSL has no passwords and calls out into the whole network
    markers: bool = Field(default=False, description="decisions, trains and pulses as an LSL stream of markers, for LabRecorder")


class Button(Table):
    """`[button]`: the patient's button; `calmloop button learn` prints these lines."""

    device: ButtonDevice = Field(description="the input device, serial port or LSL stream of markers")
    key: Key = Field(
        default="", description="hid: the key that the button sends; byte: the bits that are the button, as a number, empty = all"
    )
    line: Literal["", "cts", "dsr", "ri", "cd"] = Field(default="", description="serial: the line that the contact joins to DTR or RTS")
    invert: bool = Field(default=False, description="the contact is open while the button is pressed")


class Settings(Table):
    """The whole file. Made by `load` or `parse` alone: they also check what tables mean to each other."""

    session: Session = Field(default=Session(), description="where recordings go")
    emg: EmgStream | None = Field(default=None, description="the EMG stream")
    force: ForceStream | None = Field(default=None, description="the force stream")
    emg_rules: tuple[EmgRule, ...] = Field(default=(), strict=False, description="rules that hear a spasm in EMG")
    force_rules: tuple[ForceRule, ...] = Field(default=(), strict=False, description="rules that hear a spasm in force")
    joins: tuple[Join, ...] = Field(default=(), strict=False, description="rules that ask together")
    trains: Mapping[TrainName, Train] = Field(description="the trains of pulses, each in a table [trains.NAME]")
    prescription: Prescription = Field(description="what the clinician signs")
    stimulator: Stimulator = Field(description="the stimulator and its port")
    realtime: Realtime = Field(default=Realtime(), description="what we ask of the operating system")
    page: Page = Field(default=Page(), description="the page in a browser")
    button: Button | None = Field(default=None, description="the patient's button")
    lsl: Lsl = Field(default=Lsl(), description="what the bed tells others over LSL")

    @property
    def rules(self) -> tuple[EmgRule | ForceRule, ...]:
        """All rules, EMG first: the order of detections everywhere."""
        return (*self.emg_rules, *self.force_rules)

    @property
    def rows(self) -> tuple[EmgRule | ForceRule | Join, ...]:
        """What is seen and recorded, one row each: all rules, then all joins."""
        return (*self.rules, *self.joins)

    @property
    def automatic(self) -> bool:
        """Whether there is a rule at all; without one only the button (and `calmloop trigger`) stimulates."""
        return bool(self.emg_rules or self.force_rules)

    def with_port(self, port: str) -> Settings:
        """Return the same settings with the stimulator at another port."""
        stimulator = self.stimulator.model_copy(update={"port": port})
        return parse(self.model_copy(update={"stimulator": stimulator}).to_toml(), "settings with another port")

    def to_toml(self) -> str:
        """Return complete TOML, defaults written out; `parse` makes equal settings of it."""
        lines: list[str] = []
        for name, value in self:
            if isinstance(value, tuple):
                tables = [(f"[[{name}]]", table) for table in value]
            elif isinstance(value, Table):
                tables = [(f"[{name}]", value)]
            else:
                tables = [(f"[{name}.{key}]", table) for key, table in (value or {}).items()]
            for header, table in tables:
                lines += [header, *(f"{key} = {toml(item)}" for key, item in table), ""]
        return "\n".join(lines)


# --- reading ----------------------------------------------------------------------------------------------------------------------
def default_config(name: str) -> Path:
    """A file of `config/`: of the checkout, or of the installed package."""
    checkout = Path(__file__).resolve().parents[1] / "config" / name
    return checkout if checkout.is_file() else Path(str(files("controller") / "_config" / name))


def load(path: str | Path) -> Settings:
    """Read a settings file.

    Raises
    ------
    SettingsError
        It cannot be read, is not TOML, or holds mistakes; all of them are named.
    """
    path = Path(path)
    try:
        data = _bytes(path)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise SettingsError([f"{path}: there is no such file"]) from None
    except IsADirectoryError:
        raise SettingsError([f"{path}: is a folder, not a settings file"]) from None
    except PermissionError:
        raise SettingsError([f"{path}: may not be read by this user"]) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError([f"{path}, line {line}: is not UTF-8 text; save the file as UTF-8"]) from None
    except SettingsError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise SettingsError([f"{path}: cannot be read: {error}"]) from None
    return parse(text, str(path))


def _bytes(path: Path) -> bytes:
    """What a file or a pipe holds; nothing else is even opened: a serial port would move its lines, /dev/zero has no end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)):  # a folder says so itself
        raise SettingsError([f"{path}: is no regular file"])
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError([f"{path}: is larger than {MAX_FILE_BYTES} bytes, so it is no settings file"])
    return data


def parse(text: str, name: str = "settings") -> Settings:
    """Make settings from TOML text; `name` is what its mistakes are reported under. Raises `SettingsError`."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number of 5000 digits
        place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", str(error))
        line, column = place.groups() if place else (None, None)
        where = f", line {line}, column {column}" if line else ""
        words = str(error)[: place.start() if place else None]
        hint = "; a key or a table stands twice: give it once" if re.match(r"Cannot (overwrite|declare)", words) else ""
        raise SettingsError([f"{name}{where}: is not valid TOML: {words}{hint}"]) from None
    return of_tables(raw, name, line_numbers(text))


class _Problem(NamedTuple):
    place: tuple[str | int, ...]  # as pydantic gives it: ("emg_rules", 1, "threshold")
    words: str  # what follows the key: ' = 150.0 must be ...'


def of_tables(raw: dict[str, Any], name: str, lines: Mapping[tuple[str | int, ...], int] | None = None) -> Settings:
    """Make settings from tables as `tomllib` gives them; `lines` says where each key stands, for people. Raises `SettingsError`."""
    lines = lines or {}
    settings, problems = None, []
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        problems = _field_problems(error)
    problems += _cross_problems(raw)
    if settings is None or problems:
        in_order = sorted(problems, key=lambda problem: _line(problem.place, lines))
        raise SettingsError(_sentence(problem, name, lines) for problem in in_order)
    return settings


def line_numbers(text: str) -> dict[tuple[str | int, ...], int]:
    """Find the line of each table header and key, for people; a header inside a multi-line string would be taken for one."""
    found: dict[tuple[str | int, ...], int] = {}
    table: tuple[str | int, ...] = ()
    count: Counter[str] = Counter()
    for number, line in enumerate(text.split("\n"), 1):
        if header := re.match(r"\s*(\[\[?)\s*([\w.-]+)\s*\]", line):
            table = tuple(header[2].split("."))
            if header[1] == "[[":
                table += (count[header[2]],)
                count[header[2]] += 1
            found[table] = number
        elif key := re.match(r"\s*([\w-]+)\s*=", line):
            found[(*table, key[1])] = number
    return found


def _line(place: tuple[str | int, ...], lines: Mapping[tuple[str | int, ...], int]) -> int:
    """Line of a key, or else of its table; 0 where it has none."""
    return next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), 0)


def _sentence(problem: _Problem, name: str, lines: Mapping[tuple[str | int, ...], int]) -> str:
    place = problem.place
    number = _line(place, lines)
    line = f", line {number}" if number else ""
    # a key may be any text: one with a line break must not make two lines of one problem
    place = tuple(part if isinstance(part, int) or part.isprintable() else repr(part) for part in place)
    head, rest = f"[{place[0]}]", place[1:]
    if rest and place[0] == "trains":
        head, rest = f"[trains.{rest[0]}]", rest[1:]
    elif rest and isinstance(rest[0], int):
        head, rest = f"[[{place[0]}]] {rest[0] + 1}", rest[1:]
    key = "".join(f", item {part + 1}" if isinstance(part, int) else f" {part}" for part in rest)
    return f"{name}{line}: {head}{key}{problem.words}"


# --- mistakes in one value: pydantic finds them, we say them in words -------------------------------------------------------------
TABLES: dict[str, type[Table]] = {
    "session": Session,
    "emg": EmgStream,
    "force": ForceStream,
    "emg_rules": EmgRule,
    "force_rules": ForceRule,
    "joins": Join,
    "trains": Train,
    "prescription": Prescription,
    "stimulator": Stimulator,
    "realtime": Realtime,
    "page": Page,
    "button": Button,
    "lsl": Lsl,
}
_MANY = ("trains", "emg_rules", "force_rules", "joins")  # the tables of which there can be several
_UNITS = {
    "_per_s": "per s",
    "_ma": "mA",
    "_us": "us",
    "_ms": "ms",
    "_s": "s",
    "_min": "min",
    "_hz": "Hz",
    "_uv": "uV",
    "_uc": "uC",
    "_mc": "mC",
    "_pulses": "pulses",
    "_cm2": "cm2",
    "_db": "dB",
    "_percent": "%",
}


def _field_problems(error: ValidationError) -> list[_Problem]:
    problems: list[_Problem] = []
    meant: set[tuple[str | int, ...]] = set()
    errors = sorted(error.errors(include_url=False, include_context=False), key=lambda one: one["type"] == "missing")
    for one in errors:  # the missing last: a key that was only misspelt needs no second line
        place, kind, value = one["loc"], one["type"], one["input"]
        if place[-1] == "[key]":
            problems.append(_Problem(place[:-1], f": the train's name {_TRAIN_NAME_WORDS}"))
            continue
        depth = 2 if place[0] in _MANY else 1
        known = Settings.model_fields if len(place) <= depth else TABLES[str(place[0])].model_fields
        key = str(place[depth] if len(place) > depth else place[0])
        if kind == "extra_forbidden":
            near = get_close_matches(key, known, 1)
            meant.update((*place[:-1], word) for word in near)
            what = "table" if len(place) == 1 else "key"
            hint = f"did you mean {near[0]}?" if near else f"known {what}s: {', '.join(known)}"
            given = "" if isinstance(value, dict | list) else f" = {_short(value)}"
            problems.append(_Problem(place, f"{given} is not a known {what}; {hint}"))
        elif kind == "missing":
            if place not in meant:
                allowed = "" if len(place) <= depth else f"; {_allowed(key, known[key], with_kind=True)}"
                problems.append(_Problem(place, f" is missing: {known[key].description}{allowed}"))
        elif len(place) <= depth:
            several = len(place) == 1 and place[0] in _MANY[1:]
            problems.append(_Problem(place, f" = {_short(value)} must be {f'a list of tables, [[{place[0]}]]' if several else 'a table'}"))
        else:
            in_kind = kind in ("greater_than_equal", "less_than_equal") and len(place) == depth + 1
            allowed = _allowed(key, known[key], with_kind=not in_kind)
            whole = "" if len(place) == depth + 1 else f": {key}"  # one item is wrong, the words are about the list
            problems.append(_Problem(place, f" = {_short(value)}{whole} {allowed} ({known[key].description})"))
    return problems


def _allowed(key: str, field: FieldInfo, with_kind: bool) -> str:
    """Say which values a field takes, in words."""
    if get_origin(field.annotation) is Literal:
        return f"must be {' or '.join(toml(choice) for choice in get_args(field.annotation))}"
    if field.title:
        return f"must be {field.title}"
    if field.annotation is bool:
        return "must be true or false"
    low = next(limit.ge for limit in field.metadata if isinstance(limit, Ge))
    high = next(limit.le for limit in field.metadata if isinstance(limit, Le))
    kind = ("a whole number, " if field.annotation is int else "a number, ") if with_kind else ""
    return f"must be {kind}at least {low:g} and at most {high:g} {unit(key)}".rstrip()


def unit(key: str) -> str:
    """In which unit a key is, as its name says; empty = none."""
    return next((unit for ending, unit in _UNITS.items() if key.partition("_in_")[0].endswith(ending)), "")


def toml(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else hex(value)  # str() refuses thousands of digits, hex() does not
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(item) for item in value)}]"
    return "a table" if isinstance(value, dict) else str(value)


def _short(value: object) -> str:
    words = toml(value)
    return words if len(words) <= 60 else f"{words[:57]}..."


# --- mistakes between values ------------------------------------------------------------------------------------------------------
_AnyTable = TypeVar("_AnyTable", bound=Table)


def _sound(table: type[_AnyTable], raw: object) -> _AnyTable | None:
    try:
        return table.model_validate(raw)
    except ValidationError:
        return None


def _emg_rule_problems(place: tuple[str | int, ...], rule: EmgRule, stream: Stream) -> Iterator[_Problem]:
    if rule.noise_uv and len(rule.noise_uv) != len(rule.channels):
        yield _Problem(
            (*place, "noise_uv"), f" has {len(rule.noise_uv)} values and must have {len(rule.channels)}, one for each of channels"
        )
    if rule.intent_channel and rule.intent_channel not in stream.channels:
        yield _unknown((*place, "intent_channel"), rule.intent_channel, "[emg] channels", stream.channels)
    elif rule.intent_channel in rule.channels:
        yield _Problem((*place, "intent_channel"), f" = {toml(rule.intent_channel)} must be none of the rule's own channels")


def _cross_problems(raw: dict[str, Any]) -> Iterator[_Problem]:
    """Check what tables mean to each other, as far as each is sound by itself: so one run names mistakes of both kinds."""
    raw_trains = raw["trains"] if isinstance(raw.get("trains"), dict) else {}
    trains = {name: train for name, one in raw_trains.items() if (train := _sound(Train, one))}
    prescription = _sound(Prescription, raw.get("prescription"))
    stimulator = _sound(Stimulator, raw.get("stimulator"))

    for table, model in (("emg", EmgStream), ("force", ForceStream)):
        yield from _rule_problems(raw, table, _sound(model, raw.get(table)), raw_trains)
    names: Counter[str] = Counter()
    for place, rule in _rules(raw):
        names[rule.name] += 1
        if names[rule.name] == 2:
            yield _Problem((*place, "name"), f" = {_short(rule.name)} is the name of another rule; each rule must have a name of its own")
    yield from _join_problems(raw)

    for name, train in trains.items():
        yield from _train_problems(name, train, prescription)
        if stimulator:
            yield from _device_problems(name, train, stimulator)
    if stimulator:
        yield from _option_problems(stimulator)
    if prescription and prescription.manual_train not in raw_trains:
        yield _unknown(("prescription", "manual_train"), prescription.manual_train, "[trains]", raw_trains)

    if prescription:
        for key in ("max_on_time_min", "max_pulses", "max_charge_mc"):
            session, day = (getattr(prescription, f"{key}_{window}") for window in ("in_session", "in_24_h"))
            if session > day:
                words = f"must be at most {key}_in_24_h, {day:g}: a session is a part of a day"
                yield _Problem(("prescription", f"{key}_in_session"), f" = {session} {words}")

    for table, signal in (("emg", _sound(EmgStream, raw.get("emg"))), ("force", _sound(ForceStream, raw.get("force")))):
        if signal:
            yield from _signal_device_problems(table, signal, stimulator)
    if page := _sound(Page, raw.get("page", {})):
        yield from _page_problems(page)
    if button := _sound(Button, raw.get("button")):
        yield from _button_problems(button, stimulator)

    realtime = _sound(Realtime, raw.get("realtime", {}))
    if realtime and realtime.loop_priority and realtime.guard_priority <= realtime.loop_priority:
        yield _Problem(
            ("realtime", "guard_priority"),
            f" = {realtime.guard_priority} must be above loop_priority, {realtime.loop_priority}: a loop that hangs must not hold up guard",
        )


def _rules(raw: dict[str, Any], tables: Sequence[str] = ("emg", "force")) -> Iterator[tuple[tuple[str, int], EmgRule | ForceRule]]:
    for table in tables:
        rules = raw.get(f"{table}_rules")
        for number, one in enumerate(rules if isinstance(rules, list) else []):
            rule: EmgRule | ForceRule | None = _sound(EmgRule, one) if table == "emg" else _sound(ForceRule, one)
            if rule:
                yield (f"{table}_rules", number), rule


def _rule_problems(raw: dict[str, Any], table: str, stream: Stream | None, trains: Iterable[str]) -> Iterator[_Problem]:
    if raw.get(f"{table}_rules") and raw.get(table) is None:
        yield _Problem((f"{table}_rules",), f" need the table [{table}], which says what stream they listen to")
    for place, rule in _rules(raw, [table]):
        if rule.train not in trains:
            yield _unknown((*place, "train"), rule.train, "[trains]", trains)
        if stream:
            key, channels = ("channels", rule.channels) if isinstance(rule, EmgRule) else ("channel", (rule.channel,))
            for channel in channels:
                if channel not in stream.channels:
                    yield _unknown((*place, key), channel, f"[{table}] channels", stream.channels)
            if isinstance(rule, EmgRule):
                yield from _emg_rule_problems(place, rule, stream)
        if isinstance(rule, EmgRule) and isinstance(stream, EmgStream):
            highest_hz = MAX_HIGH_PASS_OF_SAMPLE_RATE * stream.sample_rate_hz
            if rule.high_pass_hz >= highest_hz:
                words = f"must be below {highest_hz:g} Hz, {MAX_HIGH_PASS_OF_SAMPLE_RATE:g} of [emg] sample_rate_hz"
                yield _Problem((*place, "high_pass_hz"), f" = {rule.high_pass_hz} {words}")


def _join_problems(raw: dict[str, Any]) -> Iterator[_Problem]:
    kinds = {one["name"]: table for table, one in _named(raw, ("emg_rules", "force_rules"))}
    trains = {one["name"]: _short(one.get("train")) for _, one in _named(raw, ("emg_rules", "force_rules"))}
    names, joined = Counter(list(kinds)), Counter[str]()
    raw_joins = raw.get("joins")
    for number, one in enumerate(raw_joins if isinstance(raw_joins, list) else []):
        if not (join := _sound(Join, one)):
            continue
        place = ("joins", number)
        names[join.name] += 1
        if names[join.name] > 1:
            yield _Problem(
                (*place, "name"), f" = {_short(join.name)} is the name of a rule or of another join; it must have a name of its own"
            )
        for rule in join.rules:
            joined[rule] += 1
            if rule not in kinds:
                yield _unknown((*place, "rules"), rule, "the names of [[emg_rules]] and [[force_rules]]", kinds)
            elif joined[rule] == 2:
                yield _Problem((*place, "rules"), f": {_short(rule)} is in another join too; a rule must be in at most one")
        known = [rule for rule in join.rules if rule in kinds]
        if len({trains[rule] for rule in known}) > 1:
            words = ", ".join(f"{_short(rule)} names {trains[rule]}" for rule in known)
            yield _Problem((*place, "rules"), f": rules that ask together must name one train; {words}")
        tables = [kinds[rule] for rule in known]
        if join.how == "emg_then_force" and len(known) == len(join.rules) and tables != ["emg_rules", "force_rules"]:
            words = ", ".join(f"{_short(rule)} is one of [[{kinds[rule]}]]" for rule in known)
            yield _Problem(
                (*place, "rules"), f": emg_then_force must have two rules, first one of [[emg_rules]], then one of [[force_rules]]; {words}"
            )


def _named(raw: dict[str, Any], tables: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tables that have a name, sound or not."""
    for table in tables:
        rules = raw.get(table)
        for one in rules if isinstance(rules, list) else []:
            if isinstance(one, dict) and isinstance(one.get("name"), str):
                yield table, one


def _unknown(place: tuple[str | int, ...], name: str, where: str, names: Iterable[str]) -> _Problem:
    near = get_close_matches(name, names, 1, 0.5)
    hint = f"did you mean {toml(near[0])}? " if near else ""
    return _Problem(place, f" = {_short(name)} is not in {where}; {hint}it must be one of: {', '.join(names) or '(there are none)'}")


def _train_problems(name: str, train: Train, prescription: Prescription | None) -> Iterator[_Problem]:
    place = ("trains", name)
    ramps_ms = train.ramp_up_ms + train.taper_ms
    if ramps_ms > train.duration_ms:
        words = f"{ramps_ms} ms of ramp_up_ms and taper_ms must be at most duration_ms, {train.duration_ms} ms"
        yield _Problem((*place, "ramp_up_ms"), f" = {train.ramp_up_ms}: together {words}")
    if prescription:
        for figure in figures(train, prescription):
            if figure.exceeded:
                words = f"gives a {figure.name} of {figure.value:.4g} {figure.unit}, which must be {figure.bound} ({figure.source})"
                yield _Problem((*place, "current_ma"), f" = {train.current_ma} {words}")
        for key in ("max_event_s", "max_on_time_s_in_60_s"):
            most_ms = getattr(prescription, key) * 1e3
            if train.duration_ms > most_ms:
                words = f"must be at most {most_ms:g} ms, [prescription] {key}: guard would refuse every such train"
                yield _Problem((*place, "duration_ms"), f" = {train.duration_ms} {words}")
        pulses = _n_pulses(train)
        charge_mc = pulses * train.current_ma * train.phase_width_us * 1e-6
        for key, value, unit in (("max_pulses", pulses, "pulses"), ("max_charge_mc", charge_mc, "mC")):
            for window in ("in_session", "in_24_h"):
                most = getattr(prescription, f"{key}_{window}")
                if value > most:
                    words = f"gives {value:.6g} {unit}, above {most:g}, [prescription] {key}_{window}: guard would refuse every such train"
                    yield _Problem((*place, "duration_ms"), f" = {train.duration_ms} {words}")


def _option_problems(stimulator: Stimulator) -> Iterator[_Problem]:
    """What this driver must be told, and what it must not."""
    wanted = OPTIONS[stimulator.driver]
    for key in ("ma_per_volt", *_DIAL):
        value = getattr(stimulator, key)
        if key in wanted and not value and key not in _MAY_BE_NOUGHT:
            words = {"ma_per_volt": "the isolated stimulator behind it gives for one volt"}.get(
                key, "the stimulator behind it is set to by hand"
            )
            yield _Problem(("stimulator", key), f" is missing: {stimulator.driver} cannot be asked what {words}")
        elif value and key not in wanted:
            yield _Problem(("stimulator", key), f" = {value} means nothing to {stimulator.driver}: leave it out")
    if stimulator.driver in EXPERIMENTAL and not stimulator.experimental:
        words = f"then write experimental = true; {EXPERIMENTAL[stimulator.driver]}"
        yield _Problem(("stimulator", "driver"), f" = {_short(stimulator.driver)} must be measured first, into a load, {words}")
    elif stimulator.experimental and stimulator.driver not in EXPERIMENTAL:
        yield _Problem(("stimulator", "experimental"), f" = true means nothing to {stimulator.driver}: leave it out")


def _page_problems(page: Page) -> Iterator[_Problem]:
    """Beyond loopback there is no page without a certificate (G1), and none by accident."""
    if page.interface:
        for key in ("certificate", "key"):
            if not getattr(page, key):
                yield _Problem(("page", key), f" is missing: a page on {page.interface} needs one; `calmloop certificate` makes it")
        if not page.port:
            yield _Problem(("page", "port"), " = 0 means no page, and none on an interface: give a port, or leave interface out")
    else:
        for key in ("host_name", "certificate", "key"):
            if value := getattr(page, key):
                yield _Problem(("page", key), f" = {_short(value)} means nothing without interface: a page on loopback alone has no TLS")


def _signal_device_problems(table: str, signal: Stream, stimulator: Stimulator | None) -> Iterator[_Problem]:
    """What a device that we publish must be told, and what means nothing without one."""
    if not signal.device:
        if signal.scale != 1.0:
            yield _Problem((table, "scale"), f" = {signal.scale:g} means nothing without device: a stream's samples are taken as they are")
        return
    if not signal.scale:
        yield _Problem((table, "scale"), " = 0 makes every sample 0")
    if stimulator and stimulator.port and signal.device.partition(":")[2].partition("@")[0] == stimulator.port:
        yield _Problem((table, "device"), f" = {_short(signal.device)} is the stimulator's port: the signal must have one of its own")


def _button_problems(button: Button, stimulator: Stimulator | None) -> Iterator[_Problem]:
    """What this kind of button must be told, and what it must not."""
    kind, _, where = button.device.partition(":")
    for key, owner, example in (("key", "hid", "KEY_SPACE"), ("line", "serial", "cts")):
        value = getattr(button, key)
        if kind == "byte" and key == "key":
            continue
        if kind == owner and not value:
            yield _Problem(
                ("button", key), f' is missing: a {kind} button must be told, such as "{example}"; `calmloop button learn` finds it'
            )
        elif value and kind != owner:
            yield _Problem(("button", key), f" = {_short(value)} means nothing to a {kind} button: leave it out")
    if kind in ("serial", "byte") and stimulator and where == stimulator.port:
        yield _Problem(("button", "device"), f" = {_short(button.device)} is the stimulator's port: the button must have one of its own")


def _device_problems(name: str, train: Train, stimulator: Stimulator) -> Iterator[_Problem]:
    driver = stimulator.driver
    device = DEVICES[driver]
    if train.channel > device.n_channels:
        yield _Problem(("trains", name, "channel"), f" = {train.channel} must be at least 1 and at most {device.n_channels} on {driver}")
    if not device.current_step_ma:
        for key in ("current_ma", "phase_width_us", "interphase_gap_us"):
            dial = getattr(stimulator, f"dial_{key}")
            if (dial or key in _MAY_BE_NOUGHT) and getattr(train, key) != dial:
                words = f"must be {dial}: on {driver} the dial sets it ([stimulator] dial_{key})"
                yield _Problem(("trains", name, key), f" = {getattr(train, key)} {words}")
        for key in ("ramp_up_ms", "taper_ms"):
            if getattr(train, key):
                yield _Problem(("trains", name, key), f" = {getattr(train, key)} must be 0: on {driver} a dial sets the current")
    elif (steps := train.current_ma / device.current_step_ma) != floor(steps):
        low_ma, high_ma = floor(steps) * device.current_step_ma, (floor(steps) + 1) * device.current_step_ma
        words = f"must be a multiple of {device.current_step_ma} mA on {driver}: the nearest are {low_ma} and {high_ma} mA"
        yield _Problem(("trains", name, "current_ma"), f" = {train.current_ma} {words}")
    pulse_us = 2 * train.phase_width_us + train.interphase_gap_us + device.pulse_margin_us
    if pulse_us * train.pulse_rate_hz > 1e6:  # hard limits and ScienceMode leave room; a slower device may not
        words = f"must be at most {1e6 / pulse_us:.4g} Hz: a pulse takes {pulse_us} us, of which {device.pulse_margin_us} us for {driver}"
        yield _Problem(("trains", name, "pulse_rate_hz"), f" = {train.pulse_rate_hz} {words}")


# --- dose -------------------------------------------------------------------------------------------------------------------------
class Figure(NamedTuple):
    """A figure of a train beside its limit."""

    name: str
    value: float
    unit: str
    limit: float
    source: str
    limit_allowed: bool = True

    @property
    def exceeded(self) -> bool:
        """Whether the value is beyond its limit."""
        return self.value > self.limit or (self.value == self.limit and not self.limit_allowed)

    @property
    def bound(self) -> str:
        """The limit in words."""
        return f"{'at most' if self.limit_allowed else 'below'} {self.limit:g} {self.unit}"


def figures(train: Train, prescription: Prescription) -> tuple[Figure, ...]:
    """Return what a train puts into the skin, at full current, beside the limits.

    Both phases count: I_rms = I sqrt(2 w f); J = I_rms / area; P = I_rms^2 R / area; E = I^2 R 2 w (R = 500 ohm, the load of IEC
    60601-2-10 and of the FDA's guidance). Within the other hard limits, power density stays below 0.03 W/cm2 and energy below 2 mJ.
    """
    pulses = train.pulse_train()
    area_cm2 = _whole(prescription.electrode_area_cm2 * 1e2) / 1e2  # in whole mm2, as guard counts it
    rms_ma = pulses.current_rms_ma
    energy_mj = (train.current_ma * 1e-3) ** 2 * LOAD_OHM * 2 * train.phase_width_us * 1e-3
    return (
        Figure("current", train.current_ma, "mA", prescription.max_current_ma, "prescription"),
        Figure("charge per phase", pulses.charge_per_phase_nc / 1e3, "uC", prescription.max_charge_per_phase_uc, "prescription"),
        Figure("rms current density", rms_ma / area_cm2, "mA/cm2", MAX_RMS_DENSITY_MA_PER_CM2, "IEC 60601-2-10 flag"),
        Figure("power density", (rms_ma * 1e-3) ** 2 * LOAD_OHM / area_cm2, "W/cm2", MAX_POWER_DENSITY_W_PER_CM2, "FDA guidance", False),
        Figure("energy per pulse", energy_mj, "mJ", MAX_ENERGY_PER_PULSE_MJ, "IEC 60601-2-10"),
    )


def _whole(value: float) -> int:
    """Round a limit down, but for float noise: 8.2 uC is 8200 nC, not 8199."""
    return floor(round(value, 6))


# --- for guard --------------------------------------------------------------------------------------------------------------------
def guard_view(settings: Settings) -> dict[str, Any]:
    """Return what guard needs, as plain JSON with whole numbers (it imports no pydantic, and compares integers)."""
    prescription = settings.prescription
    return {
        "trains": {
            name: {
                "channel": train.channel,
                "current_ua": _whole(train.current_ma * 1e3),
                "phase_width_us": train.phase_width_us,
                "interphase_gap_us": train.interphase_gap_us,
                "pulse_rate_mhz": _whole(train.pulse_rate_hz * 1e3),  # millihertz
                "duration_us": train.duration_ms * 1000,
                "ramp_up_us": train.ramp_up_ms * 1000,
                "taper_us": train.taper_ms * 1000,
            }
            for name, train in settings.trains.items()
        },
        "manual_train": prescription.manual_train,
        "electrode_area_mm2": _whole(prescription.electrode_area_cm2 * 1e2),
        "max_current_ua": _whole(prescription.max_current_ma * 1e3),
        "max_charge_nc": _whole(prescription.max_charge_per_phase_uc * 1e3),
        "look_dead_ns": prescription.look_dead_ms * 1_000_000,
        "look_ns": prescription.look_ms * 1_000_000,
        "max_event_ns": _whole(prescription.max_event_s * 1e9),
        "refractory_ns": _whole(prescription.refractory_s * 1e9),
        "max_on_time_60s_ns": _whole(prescription.max_on_time_s_in_60_s * 1e9),
        "max_duty_5min_ns": _whole(prescription.max_duty_percent_in_5_min * 300e9 / 100),
        "max_on_time_session_ns": _whole(prescription.max_on_time_min_in_session * 60e9),
        "max_on_time_24h_ns": _whole(prescription.max_on_time_min_in_24_h * 60e9),
        "max_pulses_session": prescription.max_pulses_in_session,
        "max_pulses_24h": prescription.max_pulses_in_24_h,
        "max_charge_session_nc": _whole(prescription.max_charge_mc_in_session * 1e6),
        "max_charge_24h_nc": _whole(prescription.max_charge_mc_in_24_h * 1e6),
        "max_events_10min": prescription.max_events_in_10_min,
        "max_auto_events_1h": prescription.max_automatic_events_in_1_h,
        "arming_expires_ns": _whole(prescription.arming_expires_min * 60e9),
        "max_sample_age_ns": _whole(settings.realtime.max_sample_age_ms * 1e6),
        "max_lateness_ns": _whole(settings.realtime.max_lateness_ms * 1e6),
        "driver": settings.stimulator.driver,
        "port": settings.stimulator.port,
        "serial": settings.stimulator.serial,
        "options": settings.stimulator.options,
        "priority": settings.realtime.guard_priority,
        "cpus": list(settings.realtime.cpus),
        "page": settings.page.port > 0,
    }


# --- for people -------------------------------------------------------------------------------------------------------------------
def summary(settings: Settings) -> dict[str, Any]:
    """Return the settings and what follows from them, as plain JSON: `calmloop check --json`."""
    return {
        "settings": settings.model_dump(mode="json"),
        "automatic": settings.automatic,
        "notes": _notes(settings),
        "trains": {name: train_figures(train, settings.prescription) for name, train in settings.trains.items()},
    }


def train_figures(train: Train, prescription: Prescription) -> dict[str, Any]:
    """Return how many pulses a train has, and its figures beside their limits, as plain JSON."""
    rows = [
        {"name": one.name, "value": one.value, "unit": one.unit, "limit": one.limit, "source": one.source}
        for one in figures(train, prescription)
    ]
    return {"pulses": _n_pulses(train), "figures": rows}


def check(path: str | Path) -> str:
    """Load a file and say in sentences what it would do. Raises `SettingsError`."""
    return sentences(load(path), path)


def sentences(settings: Settings, path: str | Path) -> str:
    """Say what settings would do: `calmloop check CONFIG`."""
    rx = settings.prescription
    box = f"the one with serial number {settings.stimulator.serial}" if settings.stimulator.serial else "whichever answers"
    lines = [f"{path}: good", "", "Listens to"]
    for kind, stream in (("EMG", settings.emg), ("force", settings.force)):
        if stream:
            names = ", ".join(stream.channels)
            of = f", of {stream.device}, times {stream.scale:g}" if stream.device else ""
            lines += [f'  {kind} "{stream.stream_name}" at {stream.sample_rate_hz:g} Hz, in {stream.unit}{of}', f"    channels: {names}"]
    if not (settings.emg or settings.force):
        lines.append("  nothing")
    lines += ["", "Rules"]
    joined = {name: join.name for join in settings.joins for name in join.rules}

    def answer(rule: EmgRule | ForceRule) -> str:
        return f'it counts in "{joined[rule.name]}"' if rule.name in joined else f'the answer is "{rule.train}"'

    for rule in settings.emg_rules:
        lines += [
            f"  {rule.name}: when {' + '.join(rule.channels)}, above {rule.high_pass_hz:g} Hz, look like a spasm to a rule",
            f"    ({rule.method}) that gives at most {rule.false_alarms_per_h:g} false alarms in an hour of quiet",
            f"    and exceed {rule.floor_uv:g} uV, {answer(rule)}; the spasm is over when the envelope",
            f"    falls below {rule.off_ratio:g} x the noise (memory {rule.noise_time_s:g} s)",
        ]
    for law in settings.force_rules:
        unit = settings.force.unit if settings.force else ""
        lines += [
            f"  {law.name}: when {law.channel} is {law.threshold:g} {unit} above its baseline (memory {law.baseline_time_s:g} s)",
            f"    and rises by {law.rate_per_s:g} {unit}/s or faster, {answer(law)}",
        ]
    trains = {rule.name: rule.train for rule in settings.rules}
    for join in settings.joins:
        all_of = ", ".join(join.rules)
        when = {
            "any": f"when any of these is active: {all_of}",
            "all": f"when all of these are active: {all_of}",
            "emg_then_force": f"when {join.rules[0]} is active and {join.rules[1]} follows within {join.within_ms} ms",
        }[join.how]
        lines.append(f'  {join.name}: {when}, the answer is "{trains[join.rules[0]]}"')
    if not settings.automatic:
        lines.append("  none: the button alone stimulates, automatic mode is impossible")
    lines += ["", "Trains"]
    for name, train in settings.trains.items():
        lines += [
            f"  {name}: output {train.channel}, {train.current_ma:g} mA, {train.phase_width_us} us a phase,"
            f" gap {train.interphase_gap_us} us,",
            f"    {train.pulse_rate_hz:g} Hz for {train.duration_ms} ms = {_n_pulses(train)} pulses;"
            f" {train.ramp_up_ms} ms up, {train.taper_ms} ms down",
        ]
        lines += [
            f"    {one.name:<20} {one.value:>8.3g} {one.unit:<7} {100 * one.value / one.limit:>5.1f} % of {one.limit:g} ({one.source})"
            for one in figures(train, rx)
        ]
    lines += [
        "",
        f"Prescription (author: {rx.author})",
        f'  the button gives "{rx.manual_train}"; the smaller electrode has {rx.electrode_area_cm2:g} cm2',
        f"  at most {rx.max_current_ma:g} mA (hard limit {MAX_CURRENT_MA:g})",
        f"  at most {rx.max_charge_per_phase_uc:g} uC a phase (hard limit {MAX_CHARGE_PER_PHASE_UC:g})",
        f"  after each train {rx.look_dead_ms} ms of dead time and a look of {rx.look_ms} ms",
        f"  at most {rx.max_event_s:g} s of stimulation for an event, then {rx.refractory_s:g} s of rest",
        f"  at most {rx.max_on_time_s_in_60_s:g} s in 60 s, and {rx.max_duty_percent_in_5_min:g} % in 5 min",
        f"  at most {rx.max_events_in_10_min} events in 10 min, and {rx.max_automatic_events_in_1_h} automatic ones in 1 h",
        f"  in a session at most {rx.max_on_time_min_in_session:g} min of stimulation, {rx.max_pulses_in_session} pulses,"
        f" {rx.max_charge_mc_in_session:g} mC",
        f"  in 24 h at most {rx.max_on_time_min_in_24_h:g} min, {rx.max_pulses_in_24_h} pulses, {rx.max_charge_mc_in_24_h:g} mC",
        f"  arming ends after {rx.arming_expires_min:g} min without a person",
        "",
        *(
            [f"The patient's button is {settings.button.device} {settings.button.key or settings.button.line}".rstrip()]
            if settings.button
            else []
        ),
        f"Stimulator {settings.stimulator.driver}, {box}, port {settings.stimulator.port};"
        f" sessions go to the folder {settings.session.folder}",
        *(f"Note: {note}" for note in _notes(settings)),
    ]
    return "\n".join(lines)


def _n_pulses(train: Train) -> int:
    """Count the pulses at 0, 1/f, 2/f... before the end."""
    return -floor(-round(train.duration_ms * train.pulse_rate_hz / 1e3, 6))


def _notes(settings: Settings) -> list[str]:
    """Say what is allowed, and yet worth a word."""
    driver = settings.stimulator.driver
    least_ma = DEVICES[driver].electrode_check_ma
    fast = [
        f"{name} asks for {train.pulse_rate_hz:g} Hz; above about 85 Hz the spacing that guard keeps sets the rate, not the prescription"
        for name, train in settings.trains.items()
        if train.pulse_rate_hz > 85
    ]
    unsigned = ["the prescription is not signed by anybody"] if settings.prescription.author.startswith("not signed") else []
    return (
        unsigned
        + fast
        + [
            f"{name} has {train.current_ma:g} mA; below {least_ma:g} mA the {driver} does not notice a loose electrode"
            for name, train in settings.trains.items()
            if train.current_ma < least_ma < NOT_KNOWN
        ]
        + ([f"it is not known whether {driver} notices a loose electrode: look at them"] if least_ma == NOT_KNOWN else [])
        + ([DIAL_WORDS.format(driver=driver)] if not DEVICES[driver].current_step_ma else [])
        + [
            f"{name}: {train.current_ma / settings.stimulator.ma_per_volt:g} V, if the stimulator behind makes"
            f" {settings.stimulator.ma_per_volt:g} mA of a volt as you say: measure it"
            for name, train in settings.trains.items()
            if settings.stimulator.ma_per_volt
        ]
        + ([EXPERIMENTAL[driver]] if driver in EXPERIMENTAL else [])
    )
