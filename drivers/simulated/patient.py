"""The simulated patient: spasms, electrodes, a nerve that feels pulses, and the truth about all of it.

Documented fidelity. Modelled: a soleus pool whose spasms are set off by a short excitatory drive, carried on by persistent inward currents
(PICs) and ended by the PICs' slow inactivation; reciprocal inhibition from the antagonist nerve onto the dendrites; surface EMG of soleus
(SOL1, SOL2) and tibialis anterior (TA1, TA2) with noise, mains, artefacts and M-waves; ankle torque. Nothing looks at a pulse and shortens
a spasm: only the model's PICs turning off end one. Not modelled: reflex loops and clonus, fatigue, movement and its artefacts, the torque
of the tibialis, facilitation instead of inhibition, amplifier saturation, voluntary effort.

Time here is the model's: sample 0 is 0 s. The truth is for scoring only; nothing of it is visible in the signals.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drivers.simulated.motoneurons import (
    N_CHANNELS,
    SAMPLE_MS,
    TICK_MS,
    TICKS,
    conduct,
    contract,
    discharge,
    electrode_noise,
    resting_cells,
    soleus_pool,
)

CHANNELS = ("SOL1", "SOL2", "TA1", "TA2")
SAMPLE_RATE_HZ = 2000.0
TORQUE_RATE_HZ = 1000.0
GAMMA = 0.6  # "spastic": units hold on at 11 to 15 Hz (physiology notes 5.2)

# --- the nerve --------------------------------------------------------------------------------------------------------------------
MOTOR_THRESHOLD_MA = 18.0  # at 500 µs, a plausible surface value at the fibular head (ours)
CHRONAXIE_US = 200.0  # motor axons through the skin (ours, textbook order of magnitude)
RI_FROM_MT, RI_FULL_MT = 0.6, 1.1  # reciprocal inhibition starts at 0.6 x MT (Crone 1987), full at 1.0 to 1.2 (ours)
RI_DELAY_TICKS = round(12.0 / TICK_MS)  # 12 ms: 0.66 m at 55 to 66 m/s, and the interneuron
RI_PEAK = 1.4  # added dendritic conductance a pulse, fraction of the input conductance: 50 Hz gives 0.84 on average (ours)

# --- electrodes -------------------------------------------------------------------------------------------------------------------
TORQUE_NOISE_NM = 0.05
MAINS_UV, MAINS_HZ = 1.0, 50
ARTEFACT_UV_PER_MA = (40.0, 45.0, 150.0, 130.0)  # mV scale at 20 mA, largest beside the stimulated nerve (ours)
M_WAVE_UV = (60.0, 50.0, 3000.0, 2600.0)  # all motor axons; recruited from 1 to 2 x MT (ours)
M_WAVE_LATENCY_MS, M_WAVE_LAMBDA_MS = 4.0, 2.0
ELECTROMECHANICAL_DELAY_MS = 12.0  # evoked contraction 11 to 17 ms (10.1371/journal.pone.0053159)
# Weights of the noise sources: one of each electrode pair, one common to all, one of the tibialis' background activity.
NOISE_MIX_UV = np.vstack([np.diag([5.0, 5.0, 5.0, 5.0]), [2.0, 2.0, 2.0, 2.0], [0.3, 0.3, 2.5, 2.5]])

# --- spasms: ranges of the draws (ours) -------------------------------------------------------------------------------------------
FIRST_S, GAP_S = (2.0, 4.0), (6.5, 9.5)  # from the go to the first, and from one to the next
RISE_MS, DRIVE_MS, DRIVE_STRENGTH, PIC_TAU_MS = (15.0, 50.0), (250.0, 400.0), (0.23, 0.30), (1400.0, 2600.0)  # see `Drive`
LAST_SPASM_S = 3.0  # no spasm starts in that last part of a run

MAX_BLOCK = 100  # samples stepped at once; longer calls are cut
AHEAD_MS = 64  # the latest effect of a pulse or spike: axon 18 + MUAP 13, or axon 18 + delay 12, or M-wave 4 + 12


def motor_threshold_ma(phase_width_us: float) -> float:
    """Motor threshold at that phase width: Weiss' strength-duration law through `MOTOR_THRESHOLD_MA` at 500 µs."""
    return MOTOR_THRESHOLD_MA * (1.0 + CHRONAXIE_US / phase_width_us) / (1.0 + CHRONAXIE_US / 500.0)


def inhibition_recruited(times_mt: float) -> float:
    """Share of the reciprocal inhibition that a pulse of so many motor thresholds calls up."""
    return min(max((times_mt - RI_FROM_MT) / (RI_FULL_MT - RI_FROM_MT), 0.0), 1.0)


class Growing:
    """Rows that keep coming; the memory doubles, so that adding costs the same at any length.

    Parameters
    ----------
    row_shape : tuple of int
    dtype : numpy dtype
    """

    def __init__(self, row_shape: tuple[int, ...], dtype: type) -> None:
        self._rows: NDArray[Any] = np.empty((4096, *row_shape), dtype)
        self._n = 0

    def extend(self, rows: NDArray[Any]) -> None:
        """Add rows at the end."""
        n = self._n + len(rows)
        if n > len(self._rows):
            grown = np.empty((2 * n, *self._rows.shape[1:]), self._rows.dtype)
            grown[: self._n] = self._rows[: self._n]
            self._rows = grown
        self._rows[self._n : n] = rows
        self._n = n

    @property
    def array(self) -> NDArray[Any]:
        """All rows so far; a view."""
        return self._rows[: self._n]


class Pulse(NamedTuple):
    """A pulse on the antagonist nerve: time in the model, current, width of a phase."""

    t_s: float
    current_ua: int
    phase_width_us: int


@dataclass(frozen=True, slots=True)
class Drive:
    """The excitation that sets off one spasm.

    Attributes
    ----------
    start : int
        EMG sample.
    rise_ms, duration_ms : float
        Raised-cosine rise; time from start to the beginning of an equal fall.
    strength : float
        Dendritic excitation, fraction of the input conductance.
    pic_tau_ms : float
        The PIC's slow inactivation until the next spasm: what decides how long this one would last.
    """

    start: int
    rise_ms: float
    duration_ms: float
    strength: float
    pic_tau_ms: float

    def at(self, n: NDArray[np.int64]) -> NDArray[np.float64]:
        """Excitation at the samples `n`."""
        t_ms = (n - self.start) * SAMPLE_MS
        ramp = np.clip(np.minimum(t_ms, self.duration_ms + self.rise_ms - t_ms) / self.rise_ms, 0.0, 1.0)
        shape: NDArray[np.float64] = ramp * ramp * (3.0 - 2.0 * ramp)
        return self.strength * shape


class Patient:
    """One person in one session; everything follows from the seed, the go and the pulses.

    Parameters
    ----------
    seed : int
    gamma : float
        PIC strength, the spasticity knob: 0 healthy, 0.3 mild, 0.5 to 0.7 spastic.
    go_sample : int or None
        Spasms come from here on; None: not before `go` is called.
    until_s : float or None
        Length of the run after the go; no spasm starts in its last 3 s.
    """

    def __init__(self, seed: int, gamma: float = GAMMA, go_sample: int | None = None, until_s: float | None = None) -> None:
        # One generator a source of chance: each is drawn in sequence, so no block size and no other source can shift it.
        anatomy, self._synaptic, self._electrode, self._sensor, self._chance = (
            np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)
        )
        self.seed, self.gamma = seed, gamma
        self.pool = soleus_pool(anatomy)
        n_units = self.pool.g_ca.size
        self._cells = resting_cells(n_units)
        self.n_samples = 0
        self.go_sample: int | None = None
        self._episodes: list[tuple[int, float]] = []  # from which sample on spasms come, and after which none begins
        self._drives: list[Drive] = []
        self._pending: list[tuple[int, int, int, int]] = []  # tick, number, current_ua, phase_width_us
        self._felt: list[tuple[int, int, int]] = []  # tick, current_ua, phase_width_us of every pulse, in the order given

        # What is still to come, row 0 = next sample (tick, ms).
        ahead = round(AHEAD_MS / SAMPLE_MS)
        self._muaps = np.zeros((MAX_BLOCK + ahead, N_CHANNELS))
        self._evoked = np.zeros((MAX_BLOCK + ahead, N_CHANNELS))
        self._twitches = np.zeros((MAX_BLOCK // 2 + AHEAD_MS, n_units))
        self._inhibition = np.zeros((MAX_BLOCK + ahead) * TICKS)

        self._low, self._slow = np.zeros(len(NOISE_MIX_UV)), np.zeros(len(NOISE_MIX_UV))
        n = np.arange(int(SAMPLE_RATE_HZ) // MAINS_HZ)
        self._mains = MAINS_UV * np.sin(2.0 * pi * n / n.size)
        self._white_units = np.empty((MAX_BLOCK, n_units))
        self._white_electrodes = np.empty((MAX_BLOCK, len(NOISE_MIX_UV)))
        self._spike_tick = np.empty(n_units * (MAX_BLOCK // 10 + 2), dtype=np.int64)
        self._spike_unit = np.empty_like(self._spike_tick)

        self._spikes = Growing((2,), np.int64)
        self._pic = Growing((), np.float64)
        self._torque = Growing((), np.float64)
        if go_sample is not None:
            self.go(go_sample, until_s)

    def go(self, sample: int, until_s: float | None = None) -> None:
        """Let spasms come from that EMG sample on: the first after 2 to 4 s, then one every 6.5 to 9.5 s (ours).

        May be called again when that is over (`rests`).
        """
        if self.go_sample is None:
            self.go_sample = sample
        self._episodes.append((sample, np.inf if until_s is None else sample + (until_s - LAST_SPASM_S) * SAMPLE_RATE_HZ))
        self._drives = [*filter(self._acts, self._drives), self._next_drive(sample, FIRST_S)]

    def rests(self, sample: int) -> bool:
        """Whether no spasm comes or is on: the last has had its gap."""
        return not self._episodes or sample > self._episodes[-1][1] + LAST_SPASM_S * SAMPLE_RATE_HZ

    def _acts(self, drive: Drive) -> bool:
        return any(first <= drive.start <= last for first, last in self._episodes)

    def _next_drive(self, after: int, gap_s: tuple[float, float]) -> Drive:
        drawn = (self._chance.uniform(*bounds) for bounds in (RISE_MS, DRIVE_MS, DRIVE_STRENGTH, PIC_TAU_MS))
        return Drive(after + round(self._chance.uniform(*gap_s) * SAMPLE_RATE_HZ), *drawn)

    def advance(self, n_samples: int, pulses: Sequence[Pulse] = ()) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Live on for `n_samples` of EMG and give what the electrodes and the torque sensor show.

        Parameters
        ----------
        n_samples : int
        pulses : sequence of Pulse
            Felt at their times, future ones too; one whose time has passed is felt at once.

        Returns
        -------
        emg_uv : (n_samples, 4) float64, µV, 2 kHz
        torque_nm : (n_torque, 1) float64, N m, 1 kHz
            The torque samples that fall on the even EMG samples of the block.
        """
        now = self.n_samples * TICKS
        for pulse in pulses:
            tick = max(now, round(pulse.t_s * 1e3 / TICK_MS))
            insort(self._pending, (tick, len(self._felt), pulse.current_ua, pulse.phase_width_us))
            self._felt.append((tick, pulse.current_ua, pulse.phase_width_us))
        end = self.n_samples + n_samples
        emg_uv = np.empty((n_samples, N_CHANNELS))
        torque_nm = np.empty(((end + 1) // 2 - (self.n_samples + 1) // 2, 1))
        i, j = 0, 0
        while self.n_samples < end:
            n = min(MAX_BLOCK, end - self.n_samples)
            n_torque = (self.n_samples + n + 1) // 2 - (self.n_samples + 1) // 2
            self._step(n, emg_uv[i : i + n], torque_nm[j : j + n_torque, 0])
            i, j = i + n, j + n_torque
        return emg_uv, torque_nm

    def _step(self, n: int, emg_uv: NDArray[np.float64], torque_nm: NDArray[np.float64]) -> None:
        first, pool, cells = self.n_samples, self.pool, self._cells
        self._feel(first + n)
        excitation, pic_tau_ms = self._drive(first, n)
        white = self._synaptic.standard_normal(out=self._white_units[:n])
        pic = np.empty(torque_nm.size)
        n_spikes = discharge(
            pool, cells, self.gamma, first, excitation, pic_tau_ms, self._inhibition, white, self._spike_tick, self._spike_unit, pic
        )
        conduct(pool, n_spikes, self._spike_tick, self._spike_unit, first, ELECTROMECHANICAL_DELAY_MS, self._muaps, self._twitches)
        contract(pool, cells, self._twitches, torque_nm)

        self._spikes.extend(np.column_stack((self._spike_tick[:n_spikes], self._spike_unit[:n_spikes])))
        self._pic.extend(pic)
        self._torque.extend(torque_nm)

        emg_uv[:] = self._muaps[:n] + self._evoked[:n]
        emg_uv += self._mains[np.arange(first, first + n) % self._mains.size, None]
        electrode_noise(self._electrode.standard_normal(out=self._white_electrodes[:n]), self._low, self._slow, NOISE_MIX_UV, emg_uv)
        torque_nm += TORQUE_NOISE_NM * self._sensor.standard_normal(torque_nm.size)

        for ahead, rows in ((self._muaps, n), (self._evoked, n), (self._twitches, torque_nm.size), (self._inhibition, n * TICKS)):
            if rows:
                ahead[:-rows] = ahead[rows:]
                ahead[-rows:] = 0.0
        self.n_samples += n

    def _drive(self, first: int, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Excitation and PIC time constant over a block; the next spasm is drawn when one begins."""
        excitation, pic_tau_ms = np.zeros(n), np.full(n, 2000.0)
        samples = np.arange(first, first + n)
        if self._drives and self._drives[-1].start < first + n:
            self._drives.append(self._next_drive(self._drives[-1].start, GAP_S))
        for drive in self._drives[-2:]:  # gaps are longer than drives: one acts at a time
            if drive.start < first + n and self._acts(drive):
                since = slice(max(0, drive.start - first), n)
                excitation[since] = drive.at(samples[since])
                pic_tau_ms[since] = drive.pic_tau_ms
        return excitation, pic_tau_ms

    def _feel(self, before: int) -> None:
        """Write ahead what the pulses of this block will do: artefact, M-wave, inhibition of the soleus pool."""
        while self._pending and self._pending[0][0] < before * TICKS:
            tick, _, current_ua, phase_width_us = self._pending.pop(0)
            times_mt = 1e-3 * current_ua / motor_threshold_ma(phase_width_us)
            t_ms = np.arange(-(-tick // TICKS), tick // TICKS + 56) * SAMPLE_MS - tick * TICK_MS
            artefact = 1e-3 * current_ua * np.exp(-t_ms / 0.45) * np.cos(pi * t_ms / 0.8)  # over in 3 ms
            x = (t_ms - M_WAVE_LATENCY_MS - 3.0 * M_WAVE_LAMBDA_MS) / M_WAVE_LAMBDA_MS
            m_wave = min(max(times_mt - 1.0, 0.0), 1.0) * 1.19 * x * np.exp(-x * x)  # Hermite-Rodriguez, as a MUAP
            row = -(-tick // TICKS) - self.n_samples
            self._evoked[row : row + t_ms.size] += np.outer(artefact, ARTEFACT_UV_PER_MA) + np.outer(m_wave, M_WAVE_UV)
            self._inhibition[tick - self.n_samples * TICKS + RI_DELAY_TICKS] += RI_PEAK * inhibition_recruited(times_mt)

    def truth(self) -> dict[str, Any]:
        """What happened so far.

        Returns
        -------
        truth : dict
            seed, go_sample, n_samples, n_torque_samples; `spasms`, a dict each: drive_s, onset_s and offset_s (first and last arrival of a
            MUAP at the muscle), area_nms (torque without noise, from the drive to the next), peak_pic, half_pic_s (when the mean PIC
            passes half its own peak), n_spikes; `pulses_felt`, in the order given: applied_s, reached_pool_s (None: felt, but below the
            threshold of inhibition), current_ma, phase_width_us; arrays `pic_mean` and `torque_clean_nm` (1 kHz), `spike_s` (at the soma),
            `spike_unit`.
        """
        spikes, pic, torque = self._spikes.array, self._pic.array, self._torque.array
        arrival_s = 1e-3 * (spikes[:, 0] * TICK_MS + self.pool.axon_delay_ms[spikes[:, 1]])
        starts = [d.start for d in self._drives if d.start < self.n_samples and self._acts(d)]
        spasms = []
        for start, end in zip(starts, [*starts[1:], self.n_samples], strict=False):
            own = arrival_s[(spikes[:, 0] >= start * TICKS) & (spikes[:, 0] < end * TICKS)]
            ms = slice((start + 1) // 2, (end + 1) // 2)
            peak = float(pic[ms].max(initial=0.0))
            spasms.append(
                {
                    "drive_s": start / SAMPLE_RATE_HZ,
                    "onset_s": float(own.min()) if own.size else None,
                    "offset_s": float(own.max()) if own.size else None,
                    "area_nms": float(torque[ms].sum() / TORQUE_RATE_HZ),
                    "peak_pic": peak,
                    "half_pic_s": float(ms.start + np.argmax(pic[ms] >= 0.5 * peak)) / TORQUE_RATE_HZ if peak else None,
                    "n_spikes": int(own.size),
                }
            )
        return {
            "seed": self.seed,
            "go_sample": self.go_sample,
            "n_samples": self.n_samples,
            "n_torque_samples": int(torque.size),
            "spasms": spasms,
            "pulses_felt": [
                {
                    "applied_s": tick * TICK_MS / 1e3,
                    "reached_pool_s": (tick + RI_DELAY_TICKS) * TICK_MS / 1e3
                    if inhibition_recruited(1e-3 * current_ua / motor_threshold_ma(phase_width_us))
                    else None,
                    "current_ma": 1e-3 * current_ua,
                    "phase_width_us": phase_width_us,
                }
                for tick, current_ua, phase_width_us in self._felt
            ],
            "pic_mean": pic,
            "torque_clean_nm": torque,
            "spike_s": spikes[:, 0] * (1e-3 * TICK_MS),
            "spike_unit": spikes[:, 1],
        }


def simulate(
    seed: int,
    n_samples: int,
    go_sample: int,
    pulses: Sequence[Pulse] = (),
    until_s: float | None = None,
    gamma: float = GAMMA,
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """Live one whole run off-line: the same seed, go and pulses as a live run give the same signals, bit for bit.

    Parameters
    ----------
    seed, gamma, go_sample, until_s
        As of `Patient`.
    n_samples : int
        EMG samples.
    pulses : sequence of Pulse
        Empty: the spasms as they would have been, left alone.

    Returns
    -------
    emg_uv : (n_samples, 4) float64, µV
    torque_nm : (n_torque, 1) float64, N m
    truth : dict
        `Patient.truth`.
    """
    patient = Patient(seed, gamma, go_sample, until_s)
    emg_uv, torque_nm = patient.advance(n_samples, pulses)
    return emg_uv, torque_nm, patient.truth()
