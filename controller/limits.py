"""What may leave at all: hard limits, the stimulator's limits, the prescription, and whether a pulse is inside all three.

Pure, on the standard library alone, integers only (ns, µA, µs, nC, mm²). Layers only ever tighten: the code (`HARD`), then the device,
then the prescription. A prescription that is looser than a layer below it is refused, never cut to size. Refusals end with the number of
the safety requirement they stand for and the layer that set the figure.

Every figure of `HARD` and every named constant here is proposed and needs a clinician's signature.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

MS = 1_000_000
S = 1_000_000_000
MINUTE = 60 * S


@dataclass(frozen=True, slots=True)
class HardLimits:
    """What no setting can raise (design table "Hard limits"; proposed, needs a clinician's signature)."""

    max_current_ua: int = 60_000
    min_phase_width_us: int = 20
    max_phase_width_us: int = 1_000
    min_pulse_rate_mhz: int = 1_000
    max_pulse_rate_mhz: int = 100_000
    min_pulse_spacing_ns: int = 10 * MS  # of pulses at the electrode, whatever happened in between
    max_charge_nc: int = 30_000
    max_rms_density_ua_per_mm2: int = 20  # 2 mA/cm²: the flag of IEC 60601-2-10
    max_power_density_w_per_m2: int = 2_500  # 0.25 W/cm²: FDA guidance on powered muscle stimulators, 1999
    max_pulse_energy_uj: int = 300_000  # 300 mJ into 500 ohm: IEC 60601-2-10
    max_train_us: int = 2_000_000  # without a look
    min_look_dead_ns: int = 20 * MS
    min_look_ns: int = 100 * MS
    max_event_ns: int = 10 * S
    min_refractory_ns: int = 1 * S
    max_on_time_60s_ns: int = 20 * S
    max_duty_5min_ns: int = 75 * S  # 25 %
    max_on_time_session_ns: int = 30 * MINUTE
    max_on_time_24h_ns: int = 60 * MINUTE
    max_pulses_session: int = 180_000
    max_pulses_24h: int = 360_000
    max_charge_session_nc: int = 3_600_000_000
    max_charge_24h_nc: int = 7_200_000_000
    max_events_10min: int = 30
    max_auto_events_1h: int = 60
    max_arming_expires_ns: int = 30 * MINUTE
    max_rise_percent_per_s: int = 20  # of a train's current, from its first pulse after arming on (A11)
    max_step_ua: int = 2_000  # that a train may be stronger than the one before, and no more than the next (A11)
    max_step_percent: int = 10


HARD = HardLimits()
LOAD_OHM = 500  # the load of the standards' figures
MAX_TRIGGER_AGE_NS = 250 * MS  # an older trigger is dropped (C7)
HARD_LAYER, DEVICE_LAYER, PRESCRIPTION_LAYER = "hard limit", "device", "prescription"


class Device(NamedTuple):
    """What the stimulator can do, in integers."""

    model: str
    n_channels: int
    max_current_ua: int
    current_step_ua: int
    min_phase_width_us: int
    max_phase_width_us: int
    max_pulse_rate_mhz: int
    latency_spread_ns: int = 0  # by how much the time from command to pulse varies


@dataclass(frozen=True)
class Train:
    """A prescribed train in integers."""

    name: str
    channel: int
    current_ua: int
    phase_width_us: int
    interphase_gap_us: int
    pulse_rate_mhz: int
    duration_us: int
    ramp_up_us: int
    taper_us: int

    @cached_property
    def period_ns(self) -> int:
        """From pulse to pulse."""
        return 10**12 // self.pulse_rate_mhz

    @cached_property
    def pulse_ns(self) -> int:
        """From the start of the first phase to the end of the second."""
        return (2 * self.phase_width_us + self.interphase_gap_us) * 1000


@dataclass(frozen=True, slots=True)
class Prescription:
    """What the clinician allows and the device can do, as guard received it. `check_prescription` compares it with `HARD`."""

    trains: tuple[Train, ...]
    manual_train: int
    device: Device
    electrode_area_mm2: int
    max_current_ua: int
    max_charge_nc: int
    look_dead_ns: int
    look_ns: int
    max_event_ns: int
    refractory_ns: int
    max_on_time_60s_ns: int
    max_duty_5min_ns: int
    max_on_time_session_ns: int
    max_on_time_24h_ns: int
    max_pulses_session: int
    max_pulses_24h: int
    max_charge_session_nc: int
    max_charge_24h_nc: int
    max_events_10min: int
    max_auto_events_1h: int
    arming_expires_ns: int
    max_sample_age_ns: int
    max_lateness_ns: int

    @property
    def min_spacing_ns(self) -> int:
        """Between a pulse that is done and the next command, so that the pulses themselves are never nearer than the hard limit."""
        return HARD.min_pulse_spacing_ns + self.device.latency_spread_ns

    @property
    def number(self) -> int:
        """What a person names who arms it: 48 bits of the SHA-256 of all of it."""
        return int(hashlib.sha256(repr(self).encode()).hexdigest()[:12], 16)


def bounds() -> dict[str, tuple[int, int]]:
    """Lowest and highest value of each figure of a prescription, by its name, both included."""
    return {
        "electrode_area_mm2": (1, 100_000),
        "max_current_ua": (0, HARD.max_current_ua),
        "max_charge_nc": (0, HARD.max_charge_nc),
        "look_dead_ns": (HARD.min_look_dead_ns, S),
        "look_ns": (HARD.min_look_ns, S),
        "max_event_ns": (0, HARD.max_event_ns),
        "refractory_ns": (HARD.min_refractory_ns, 24 * 60 * MINUTE),
        "max_on_time_60s_ns": (0, HARD.max_on_time_60s_ns),
        "max_duty_5min_ns": (0, HARD.max_duty_5min_ns),
        "max_on_time_session_ns": (0, HARD.max_on_time_session_ns),
        "max_on_time_24h_ns": (0, HARD.max_on_time_24h_ns),
        "max_pulses_session": (0, HARD.max_pulses_session),
        "max_pulses_24h": (0, HARD.max_pulses_24h),
        "max_charge_session_nc": (0, HARD.max_charge_session_nc),
        "max_charge_24h_nc": (0, HARD.max_charge_24h_nc),
        "max_events_10min": (0, HARD.max_events_10min),
        "max_auto_events_1h": (0, HARD.max_auto_events_1h),
        "arming_expires_ns": (S, HARD.max_arming_expires_ns),
        "max_sample_age_ns": (MS, MAX_TRIGGER_AGE_NS),
        "max_lateness_ns": (MS, MAX_TRIGGER_AGE_NS),
    }


def tightest(*layers: tuple[int, str]) -> tuple[int, str]:
    """The lowest of several upper limits and who set it; of equal ones the first, so the most basic layer is named first."""
    return min(layers, key=lambda limit: limit[0])


def layer(p: Prescription, name: str) -> str:
    """Which layer set a figure of the prescription: the code, where the prescription has just what the code allows."""
    return HARD_LAYER if getattr(p, name) in bounds()[name] else PRESCRIPTION_LAYER


def prescription_from(view: dict[str, Any], device: Device) -> Prescription:
    """Build a prescription from the daemon's plain dictionary and check it; a wrong one never reaches the supervisor.

    Raises
    ------
    ValueError
        Names every value that is missing, of the wrong type or outside `HARD` or the device.
    """
    trains = view.get("trains")
    if not isinstance(trains, dict) or not trains:
        raise ValueError("trains must be a table with at least one train [A12]")
    want = {f.name for f in fields(Train)} - {"name"}
    for name, values in trains.items():
        if not isinstance(values, dict) or set(values) != want:
            raise ValueError(f"train {name!r} must have exactly the figures {', '.join(sorted(want))} [A12]")
    names = list(trains)
    if view.get("manual_train") not in names:
        raise ValueError(f"manual_train {view.get('manual_train')!r} is none of {names} [A12]")
    figures: dict[str, Any] = {name: view.get(name) for name in bounds()}
    made = tuple(Train(name, **values) for name, values in trains.items())
    prescription = Prescription(made, names.index(view["manual_train"]), device, **figures)
    wrong = check_prescription(prescription)
    if wrong:
        raise ValueError("; ".join(wrong))
    return prescription


def check_prescription(p: Prescription) -> list[str]:
    """Compare a prescription with the hard limits and the device, on guard's own account; returns what is wrong."""
    wrong: list[str] = []

    def within(name: str, value: object, low: int, high: int, why: str) -> None:
        if type(value) is not int or not low <= value <= high:
            wrong.append(f"{name} = {value!r} must be a whole number from {low} to {high} [{why}]")

    d = p.device
    within("device.current_step_ua", d.current_step_ua, 1, HARD.max_current_ua, "A12, device")
    within("device.max_current_ua", d.max_current_ua, 1, 10**9, "A12, device")
    within("device.latency_spread_ns", d.latency_spread_ns, 0, S, "A12, device")
    for name, (low, high) in bounds().items():
        within(name, getattr(p, name), low, high, "A14, hard limit")
    if wrong:
        return wrong
    strongest, by = tightest((d.max_current_ua, DEVICE_LAYER), (p.max_current_ua, PRESCRIPTION_LAYER))
    shortest = max(HARD.min_phase_width_us, d.min_phase_width_us)
    longest, width_by = tightest((HARD.max_phase_width_us, HARD_LAYER), (d.max_phase_width_us, DEVICE_LAYER))
    fastest, rate_by = tightest((HARD.max_pulse_rate_mhz, HARD_LAYER), (d.max_pulse_rate_mhz, DEVICE_LAYER))
    for t in p.trains:
        where = f"train {t.name}: "
        before = len(wrong)
        within(where + "channel", t.channel, 1, d.n_channels, "A12, device")
        within(where + "current_ua", t.current_ua, d.current_step_ua, strongest, "A1, " + by)
        within(where + "phase_width_us", t.phase_width_us, shortest, longest, "A2, " + width_by)
        within(where + "interphase_gap_us", t.interphase_gap_us, 0, HARD.max_phase_width_us, "A7, hard limit")
        within(where + "pulse_rate_mhz", t.pulse_rate_mhz, HARD.min_pulse_rate_mhz, fastest, "A3, " + rate_by)
        within(where + "duration_us", t.duration_us, 1, HARD.max_train_us, "A8, hard limit")
        within(where + "ramp_up_us", t.ramp_up_us, 0, HARD.max_train_us, "A11, hard limit")
        within(where + "taper_us", t.taper_us, 0, HARD.max_train_us, "A11, hard limit")
        if len(wrong) > before:
            continue
        if t.current_ua % d.current_step_ua:
            wrong.append(f"{where}current_ua = {t.current_ua} is no multiple of the step of {d.current_step_ua} uA [A12, device]")
        if t.ramp_up_us + t.taper_us > t.duration_us:
            wrong.append(f"{where}ramp and taper are longer than the train [A12]")
        wrong += [where + reason for reason in pulse_reasons(t, t.current_ua, p)]
    return wrong


def pulse_reasons(t: Train, current_ua: int, p: Prescription) -> list[str]:
    """Why a pulse of this train at this current may not leave; empty = it may.

    Charge Q = I w; rms density sqrt(2 w f) I / A; power density I_rms² R / A; energy 2 I² R w (physiology notes, section 4: IEC
    60601-2-10 and FDA 1999), all in integers by comparing squares.
    """
    reasons = []
    most_ua, by = tightest(
        (HARD.max_current_ua, HARD_LAYER),
        (p.device.max_current_ua, DEVICE_LAYER),
        (p.max_current_ua, PRESCRIPTION_LAYER),
        (t.current_ua, PRESCRIPTION_LAYER),
    )
    if not 0 < current_ua <= most_ua:
        reasons.append(f"current {current_ua} uA is not above 0 and at most {most_ua} uA [A1, {by}]")
    most_nc, by = tightest((HARD.max_charge_nc, HARD_LAYER), (p.max_charge_nc, PRESCRIPTION_LAYER))
    if current_ua * t.phase_width_us > most_nc * 1000:
        reasons.append(f"charge {current_ua * t.phase_width_us // 1000} nC per phase is above {most_nc} nC [A4, {by}]")
    # I_rms² in uA² times 10^9: w in us, f in mHz
    square = current_ua**2 * 2 * t.phase_width_us * t.pulse_rate_mhz
    if square > (HARD.max_rms_density_ua_per_mm2 * p.electrode_area_mm2) ** 2 * 10**9:
        density = f"{HARD.max_rms_density_ua_per_mm2 / 10} mA/cm2 on {p.electrode_area_mm2 / 100} cm2"
        reasons.append(f"rms density is above {density} [A5, hard limit]")
    # I_rms² R / A in W/m²: 10^-12 A² per uA², 10^-6 m² per mm²
    if square * LOAD_OHM >= HARD.max_power_density_w_per_m2 * p.electrode_area_mm2 * 10**15:
        reasons.append(f"power density is not below {HARD.max_power_density_w_per_m2 / 10_000} W/cm2 [A6, hard limit]")
    if current_ua**2 * LOAD_OHM * 2 * t.phase_width_us > HARD.max_pulse_energy_uj * 10**12:
        reasons.append(f"energy of a pulse is above {HARD.max_pulse_energy_uj // 1000} mJ [A6, hard limit]")
    return reasons


def charge_nc(t: Train, current_ua: int) -> int:
    """Charge of one phase, nC; rounded up, so that the dose is never counted too low."""
    return -(-current_ua * t.phase_width_us // 1000)


def n_pulses(t: Train, duration_us: int) -> int:
    """How many pulses a train of this duration has."""
    return max(1, -(-duration_us // (t.period_ns // 1000)))


def pulse_current(t: Train, k: int, current_ua: int, duration_us: int, step_ua: int) -> int:
    """Current of pulse k of a train, µA: linear ramp, plateau, linear taper, rounded down to the stimulator's step.

    The first pulse of a ramp has a period's worth of it, the last of a taper too; none is below one step.
    """
    period_us = t.period_ns // 1000
    start_us = k * period_us
    part = current_ua
    if t.ramp_up_us:
        part = min(part, current_ua * (start_us + period_us) // t.ramp_up_us)
    if t.taper_us:
        part = min(part, current_ua * (duration_us - start_us) // t.taper_us)
    return max(step_ua, part // step_ua * step_ua)


def soft_start(t: Train, since_ns: int, step_ua: int) -> int:
    """Most current of a train so long after its first pulse since arming, µA: from one step of the stimulator up, 20 % a second (A11)."""
    part = t.current_ua * HARD.max_rise_percent_per_s * since_ns // (100 * S)
    return max(step_ua, part // step_ua * step_ua)


def highest_step(last_ua: int, step_ua: int) -> int:
    """How much stronger than the last a train of the same name may be, µA (A11); at least a step of the stimulator."""
    return max(step_ua, min(HARD.max_step_ua, last_ua * HARD.max_step_percent // 100))
