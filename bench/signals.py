"""Labelled synthetic EMG for `bench.detection`: where a spasm begins is known to the sample, since it was put there.

Everything is Gaussian noise shaped by Butterworth bands, with envelopes and contaminants of closed form; the same seed gives the same
signal. No recorded spasm with labels could be found (detection notes, section 2), so this stands for one. Assumptions, in one place:

- noise is that of an amplifier with a 10-500 Hz band, root mean square `NOISE_UV`; of several channels, half of its power is common to all;
- a spasm is 30-300 Hz noise under an envelope; **its activity is independent between channels**, as of electrodes over different fibres:
  electrodes that hear the same fibres gain less from pooling than the figures here say;
- signal-to-noise ratio = root mean square of the fully risen spasm over that of the noise, whole band (detection notes, section 7);
- sizes of the contaminants are those of the detection notes, section 4, in multiples of the noise's root mean square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cholesky, solve_triangular, toeplitz
from scipy.signal import butter, sosfilt, sosfreqz

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RATE_HZ = 2000.0
NOISE_UV = 5.0
NOISE_BAND_HZ, SPASM_BAND_HZ = (10.0, 500.0), (30.0, 300.0)
ORDER = 4  # of each band's low-pass prototype
SHARED = 0.5  # of the noise power, between channels
REST_S = 7.0  # known rest at the beginning: peers are told of it, and nobody is scored in it
LENGTH_S, N_SPASMS = 240.0, 24
SPASM_S, RISE_S, SLOW_RISE_S, FALL_S = (0.6, 3.0), (0.015, 0.05), (0.1, 0.3), 0.1
CLONUS_HZ, CLONIC = (5.0, 7.0), 3  # every third spasm is clonic: beats on for half of the period, with a tenth of the amplitude between
TAIL_S = 2.8  # the end of each spasm's slot is quiet: contaminants that come in episodes have room there
STEP_S = 0.5  # how long a step of variance lasts


@dataclass(frozen=True)
class Recipe:
    """What a signal consists of.

    Attributes
    ----------
    snr_db : float or None
        Of the spasms; None = there are none.
    n_channels : int
    contaminant : str
        One of `CONTAMINANTS`, or "".
    slow : bool
        Spasms rise in `SLOW_RISE_S` instead of `RISE_S`.
    white : bool
        Not EMG: white noise whose variance steps up by 1 + SNR within one sample, for `STEP_S` at a time.
    length_s : float
    """

    snr_db: float | None = None
    n_channels: int = 1
    contaminant: str = ""
    slow: bool = False
    white: bool = False
    length_s: float = LENGTH_S


@dataclass(frozen=True)
class Signal:
    """A signal and the truth about it.

    Attributes
    ----------
    emg_uv : (n_samples, n_channels) float64, µV
    rate_hz : float
    spasms_s : (n_spasms, 2) float64, s
        Onset: the first sample with a share of the spasm; offset: the first without.
    episodes_s : (n_episodes, 2) float64, s
        Spans in which a decision is the contaminant's fault: each beat, artefact, change, train, contraction.
    pulses_s : (n_pulses,) float64, s
        When our own stimulator gave a pulse: what guard would report.
    """

    emg_uv: Floats
    rate_hz: float
    spasms_s: Floats
    episodes_s: Floats
    pulses_s: Floats

    @property
    def t_s(self) -> Floats:
        """Stamp of each sample."""
        return np.arange(len(self.emg_uv)) / self.rate_hz


def make(recipe: Recipe, seed: int) -> Signal:
    """Make the signal of a recipe; each part has a stream of random numbers of its own, so that one does not change with another."""
    layout, of_noise, of_spasms, of_contaminant = (np.random.default_rng([seed, part]) for part in range(4))
    n = round(recipe.length_s * RATE_HZ)
    snr = 0.0 if recipe.snr_db is None else 10.0 ** (recipe.snr_db / 10.0)
    spasms_s = _places(recipe, layout)
    if recipe.white:
        std_uv = np.full((n, 1), NOISE_UV)
        for start, stop in _samples(spasms_s):
            std_uv[start:stop] *= np.sqrt(1.0 + snr)
        nothing = np.zeros((0, 2))
        return Signal(std_uv * of_noise.standard_normal((n, recipe.n_channels)), RATE_HZ, spasms_s, nothing, nothing[:, 0])
    noise_uv = noise(n, recipe.n_channels, of_noise)
    spasm_uv = np.zeros((n, recipe.n_channels))
    for i, (start, stop) in enumerate(_samples(spasms_s)):
        gain = envelope(stop - start, i % CLONIC == CLONIC - 1, SLOW_RISE_S if recipe.slow else RISE_S, layout)
        spasm_uv[start:stop] = gain[:, None] * muscle(stop - start, recipe.n_channels, of_spasms)
    spasm_uv *= NOISE_UV * np.sqrt(snr)
    pulses_s, episodes_s = np.zeros(0), np.zeros((0, 2))
    if recipe.contaminant:
        draft = Draft(noise_uv, spasm_uv, _tails(recipe), of_contaminant)
        CONTAMINANTS[recipe.contaminant](draft)
        noise_uv, spasm_uv, pulses_s = draft.noise_uv, draft.spasm_uv, np.array(draft.pulses_s)
        episodes_s = np.array(draft.episodes_s).reshape(-1, 2)
        episodes_s = episodes_s[episodes_s[:, 0] >= REST_S]
        emg_uv = draft.last(noise_uv + spasm_uv + draft.added_uv)
    else:
        emg_uv = noise_uv + spasm_uv
    return Signal(emg_uv, RATE_HZ, spasms_s, episodes_s, pulses_s)


# --- noise and muscle -------------------------------------------------------------------------------------------------------------
def band(band_hz: tuple[float, float]) -> Floats:
    """Sections of a band whose white input of variance 1 gives an output of variance 1."""
    sos = butter(ORDER, band_hz, "bandpass", fs=RATE_HZ, output="sos")
    sos[0, :3] /= np.sqrt(np.mean(spectrum(sos)))
    return np.asarray(sos)


def spectrum(sos: Floats, n: int = 8192) -> Floats:
    """Squared magnitude at n frequencies from 0 to half of the sample rate."""
    return np.asarray(np.abs(sosfreqz(sos, (np.arange(n) + 0.5) * np.pi / n)[1]) ** 2)


def noise(n: int, n_channels: int, dice: Generator) -> Floats:
    """Amplifier noise in µV, (n, n_channels)."""
    common = np.sqrt(SHARED) if n_channels > 1 else 0.0
    sos = band(NOISE_BAND_HZ)
    out = sosfilt(sos, dice.standard_normal((n, n_channels)), axis=0)
    out *= NOISE_UV * np.sqrt(1.0 - common**2)
    if common:
        out += NOISE_UV * common * sosfilt(sos, dice.standard_normal((n, 1)), axis=0)
    return np.asarray(out)


def muscle(n: int, n_channels: int, dice: Generator) -> Floats:
    """Interference EMG of variance 1, (n, n_channels), independent between channels; already swung in."""
    lead = round(0.2 * RATE_HZ)
    return np.asarray(sosfilt(band(SPASM_BAND_HZ), dice.standard_normal((lead + n, n_channels)), axis=0)[lead:])


def envelope(n: int, clonic: bool, rise_s: tuple[float, float], dice: Generator) -> Floats:
    """Amplitude of one spasm over its n samples: raised-cosine flanks, fully risen = 1."""
    rise, beat_hz = dice.uniform(*rise_s), dice.uniform(*CLONUS_HZ)
    t_s = (np.arange(n) + 1) / RATE_HZ
    gain = _flank(t_s / rise) * _flank((n / RATE_HZ + 1 / RATE_HZ - t_s) / FALL_S)
    if clonic:
        half_s = 0.5 / beat_hz
        phase_s = t_s % (2.0 * half_s)
        flank_s = min(rise, half_s / 3)
        # the first beat rises with the spasm itself
        up = np.where(t_s < half_s, 1.0, _flank(phase_s / flank_s))
        gain *= 0.1 + 0.9 * up * _flank((half_s - phase_s) / flank_s)
    return np.asarray(gain)


def _flank(x: Floats) -> Floats:
    """Raised cosine from 0 at 0 to 1 at 1."""
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.clip(x, 0.0, 1.0)))


def _places(recipe: Recipe, dice: Generator) -> Floats:
    """Onsets and offsets on the grid of samples, one in each slot."""
    if recipe.snr_db is None:
        return np.zeros((0, 2))
    if recipe.white:
        starts = np.arange(REST_S + 3.0, recipe.length_s - 2.0, 2.5)
        onset_s = starts + dice.uniform(0.0, 1.0, len(starts))
        offset_s = onset_s + STEP_S
    else:
        starts, slot_s = _slots(recipe)
        onset_s = starts + dice.uniform(0.3, slot_s - SPASM_S[1] - TAIL_S, len(starts))
        offset_s = onset_s + dice.uniform(*SPASM_S, len(starts))
    return np.asarray(np.round(np.stack([onset_s, offset_s], axis=1) * RATE_HZ) / RATE_HZ)


def _slots(recipe: Recipe) -> tuple[Floats, float]:
    n = max(1, round(N_SPASMS * recipe.length_s / LENGTH_S))
    slot_s = (recipe.length_s - REST_S - 1.0) / n
    return REST_S + 1.0 + slot_s * np.arange(n), slot_s


def _tails(recipe: Recipe) -> Floats:
    """Begin of each quiet tail, 0.3 s and more after the spasm before it."""
    starts, slot_s = _slots(recipe)
    return np.asarray(np.round((starts + slot_s - TAIL_S + 0.3) * RATE_HZ) / RATE_HZ)


def _samples(spans_s: Floats) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in np.round(spans_s * RATE_HZ)]


# --- contaminants -----------------------------------------------------------------------------------------------------------------
class Draft:
    """A signal in the making, for contaminants to change."""

    def __init__(self, noise_uv: Floats, spasm_uv: Floats, tails_s: Floats, dice: Generator) -> None:
        self.noise_uv, self.spasm_uv, self.tails_s, self.dice = noise_uv, spasm_uv, tails_s, dice
        self.added_uv = np.zeros_like(noise_uv)
        self.episodes_s: list[tuple[float, float]] = []
        self.pulses_s: list[float] = []
        self.last: Callable[[Floats], Floats] = lambda emg_uv: emg_uv  # what the amplifier makes of it all
        self.t_s = np.arange(len(noise_uv)) / RATE_HZ
        self.length_s = len(noise_uv) / RATE_HZ

    def gains(self) -> Floats:
        """How strongly each channel hears a thing that all hear."""
        return np.asarray(self.dice.uniform(0.8, 1.2, self.noise_uv.shape[1])) if self.noise_uv.shape[1] > 1 else np.ones(1)

    def add(self, at_s: float, shape_uv: Floats, gains: Floats) -> None:
        """Add a shape on all channels."""
        start = round(at_s * RATE_HZ)
        stop = min(start + len(shape_uv), len(self.added_uv))
        self.added_uv[start:stop] += shape_uv[: stop - start, None] * gains


def mains(d: Draft) -> None:
    """50 Hz and harmonics, 3 x noise; amplitude and frequency drift; in each quiet tail it doubles or halves within one sample."""
    size = 1.0 + 0.3 * np.sin(2 * np.pi * d.t_s / 37.0 + d.dice.uniform(0, 6))
    for i, at_s in enumerate(d.tails_s):
        size[round((at_s + 0.5) * RATE_HZ) :] *= 2.0 if i % 2 == 0 else 0.5
        d.episodes_s.append((at_s + 0.5, at_s + 1.5))
    turns = 50.0 * d.t_s + 0.03 * 60.0 / (2 * np.pi) * np.sin(2 * np.pi * d.t_s / 60.0)  # 49.97 to 50.03 Hz
    parts = {1: 1.0, 2: 0.1, 3: 0.4, 5: 0.2, 7: 0.1}  # odd harmonics, as rectifiers make them
    wave = sum(a * np.sin(2 * np.pi * k * turns + d.dice.uniform(0, 6)) for k, a in parts.items())
    rms = np.sqrt(sum(a * a for a in parts.values()) / 2)
    d.added_uv += (3.0 * NOISE_UV / rms * size * wave)[:, None] * d.gains()


def ecg(d: Draft) -> None:
    """70 beats a minute, peak 8 x noise: P, QRS and T as Gaussian bumps."""
    bumps = ((-0.16, 0.02, 0.1), (-0.022, 0.007, -0.15), (0.0, 0.008, 1.0), (0.024, 0.008, -0.25), (0.22, 0.045, 0.3))  # s, s, peak
    t_s = np.arange(-0.3, 0.5, 1 / RATE_HZ)
    beat = 8.0 * NOISE_UV * sum(peak * np.exp(-0.5 * ((t_s - at) / width) ** 2) for at, width, peak in bumps)
    gains, at_s = d.gains(), 0.5
    while at_s < d.length_s - 0.5:
        d.add(at_s - 0.3, beat, gains)
        d.episodes_s.append((at_s - 0.1, at_s + 0.4))
        at_s += 60.0 / 70.0 * (1.0 + 0.04 * d.dice.standard_normal())


def motion(d: Draft) -> None:
    """Every 12 s a swing of 60 x noise, 1-4 Hz, or a pulled cable: a step of 25 x noise within 3 ms that the amplifier's 10 Hz lets go."""
    gains = d.gains()
    for i, at_s in enumerate(np.arange(REST_S + 5.0, d.length_s - 2.0, 12.0)):
        sign = d.dice.choice((-1.0, 1.0))
        if i % 2 == 0:
            hz = d.dice.uniform(1.0, 4.0)
            t_s = np.arange(0.0, 1.5 / hz, 1 / RATE_HZ)  # one and a half swings, rising and falling gently
            shape = 60.0 * np.sin(2 * np.pi * hz * t_s) * np.sin(np.pi * t_s * hz / 1.5)
        else:
            t_s = np.arange(0.0, 1.0, 1 / RATE_HZ)
            shape = 25.0 * _flank(t_s / 0.003) * np.exp(-t_s * 2 * np.pi * NOISE_BAND_HZ[0] / 4)
        d.add(at_s, sign * NOISE_UV * shape, gains)
        d.episodes_s.append((at_s, at_s + len(t_s) / RATE_HZ + 0.3))


def drift(d: Draft) -> None:
    """Noise alone drifts by 3 dB up and down in 60 s, and half-way is 1.6 x from one sample to the next."""
    at_s = d.tails_s[len(d.tails_s) // 2] + 0.5
    gain = 10.0 ** (3.0 / 20.0 * np.sin(2 * np.pi * d.t_s / 60.0 + d.dice.uniform(0, 6)))
    gain[round(at_s * RATE_HZ) :] *= 1.6
    d.noise_uv *= gain[:, None]
    d.episodes_s.append((at_s, at_s + 2.0))


def lead_off(d: Draft) -> None:
    """In every third quiet tail the first channel is flat for 0.8 s, at the rail of 5 mV for 0.4 s, and back."""
    spans = [(round((at_s + 0.3) * RATE_HZ), at_s) for at_s in d.tails_s[::3]]
    flat, rail = round(0.8 * RATE_HZ), round(0.4 * RATE_HZ)
    d.episodes_s += [(at_s + 0.3, at_s + 2.3) for _, at_s in spans]

    def loose(emg_uv: Floats) -> Floats:
        for start, _ in spans:
            emg_uv[start : start + flat, 0] = 0.0
            emg_uv[start + flat : start + flat + rail, 0] = 5000.0
        return emg_uv

    d.last = loose


def stimulation(d: Draft) -> None:
    """In each quiet tail our own train of 0.5 s, 30-100 Hz: artefact of 200 x noise over 1.25 ms, M-wave of 40 x noise from 3 ms on."""
    gains = d.gains()
    for at_s in d.tails_s:
        pulse_rate_hz = d.dice.uniform(30.0, 100.0)
        for pulse_s in at_s + 0.5 + np.arange(0.0, 0.5, 1.0 / pulse_rate_hz):
            _pulse(d, pulse_s, gains)
        d.episodes_s.append((at_s + 0.5, at_s + 1.5))


def throughout(d: Draft) -> None:
    """The same pulses at 30 Hz from 1 s on to the end, spasms or not, as spinal stimulation is given; no episodes, it never ends."""
    gains = d.gains()
    for pulse_s in np.arange(1.0, d.length_s - 0.1, 1.0 / 30.0):
        _pulse(d, pulse_s, gains)


def _pulse(d: Draft, pulse_s: float, gains: Floats) -> None:
    t_s = np.arange(0.0, 0.03, 1 / RATE_HZ)
    artefact = np.where(t_s < 0.00125, 1.0, -0.15 * np.exp(-(t_s - 0.00125) / 0.002))
    late_s = t_s - 0.003
    m_wave = np.where(late_s > 0, np.sin(2 * np.pi * late_s / 0.009) * np.exp(-(((late_s - 0.0045) / 0.004) ** 2)), 0.0)
    size = d.dice.uniform(0.8, 1.2)  # 1.25 ms on a grid of 0.5 ms: the size differs from pulse to pulse
    pulse_s = round(pulse_s * RATE_HZ) / RATE_HZ
    d.add(pulse_s, NOISE_UV * (200.0 * size * artefact + 40.0 * m_wave), gains)
    d.pulses_s.append(pulse_s)


def voluntary(d: Draft) -> None:
    """In each quiet tail a contraction of 10 dB that rises in 0.4-1.2 s: the person does it, and it is no spasm."""
    for at_s in d.tails_s:
        rise_s = d.dice.uniform(0.4, 1.2)
        n = round(2.0 * RATE_HZ)
        t_s = np.arange(n) / RATE_HZ
        gain = np.clip(t_s / rise_s, 0.0, 1.0) * np.clip((2.0 - t_s) / 0.3, 0.0, 1.0)
        start = round(at_s * RATE_HZ)
        shape = NOISE_UV * np.sqrt(10.0) * gain[:, None] * muscle(n, d.noise_uv.shape[1], d.dice)
        d.added_uv[start : start + n] += shape[: len(d.added_uv) - start]
        d.episodes_s.append((at_s, at_s + 2.2))


def tonic(d: Draft) -> None:
    """Three units fire on and off for half minutes at 6-12 a second: long-lasting firing at rest (McKay 2010), peaks of 3 x noise."""
    t_s = np.arange(-0.01, 0.01, 1 / RATE_HZ)
    for hz in d.dice.uniform(6.0, 12.0, 3):
        width_s = d.dice.uniform(0.0015, 0.0025)
        shape = 3.0 * NOISE_UV * (1 - (t_s / width_s) ** 2) * np.exp(-0.5 * (t_s / width_s) ** 2)
        gains, shift_s, at_s = d.dice.uniform(0.5, 1.0, d.noise_uv.shape[1]), d.dice.uniform(0.0, 60.0), 0.1
        while at_s < d.length_s - 0.1:
            if (at_s + shift_s) % 60.0 < 30.0:
                d.add(at_s - 0.01, shape, gains)
            at_s += max(0.03, (1.0 + 0.2 * d.dice.standard_normal()) / hz)


CONTAMINANTS: dict[str, Callable[[Draft], None]] = {
    "mains": mains,
    "ECG": ecg,
    "motion": motion,
    "drift": drift,
    "lead-off": lead_off,
    "stimulation": stimulation,
    "stimulation throughout": throughout,
    "voluntary": voluntary,
    "tonic": tonic,
}


# --- the bound --------------------------------------------------------------------------------------------------------------------
def kl_of_step(ratio: Floats | float) -> Floats:
    """Nats per sample that tell white Gaussian noise whose variance is `ratio` times as large from what it was."""
    return np.asarray(0.5 * (ratio - 1.0 - np.log(ratio)))


def kl_rate(recipe: Recipe) -> float:
    """Nats per s that tell the fully risen spasm from the noise: half the integral over frequency (both signs) of R - 1 - ln R.

    R is the ratio of the two spectra; of several channels, one for each eigenvalue of what they share (Gaussian stationary processes,
    Pinsker 1964). The envelope's rise comes on top, so that no detector gets near this with a spasm that rises.
    """
    assert recipe.snr_db is not None
    snr = 10.0 ** (recipe.snr_db / 10.0)
    if recipe.white:
        return float(recipe.n_channels * RATE_HZ * kl_of_step(1.0 + snr))
    per_hz = spectrum(band(SPASM_BAND_HZ)) / spectrum(band(NOISE_BAND_HZ))
    n = recipe.n_channels
    eigenvalues = [1.0 + SHARED * (n - 1), *[1.0 - SHARED] * (n - 1)] if n > 1 else [1.0]
    nats = [kl_of_step(1.0 + snr * per_hz / eigenvalue) for eigenvalue in eigenvalues]
    return float(RATE_HZ * sum(np.mean(one) for one in nats))


def bound_ms(recipe: Recipe, false_alarms_per_hour: float) -> float:
    """Least mean delay at this rate of false alarms, from below: ln(ARL) / KL (Lorden 1971); ARL in samples between false alarms."""
    return float(1000.0 * np.log(3600.0 * RATE_HZ / false_alarms_per_hour) / kl_rate(recipe))


def informed_ms(recipe: Recipe, false_alarms_per_hour: float, n_rises: int = 15) -> Floats:
    """When one who knows the spectra and how this spasm rises, but not when, has evidence enough on average: (n_rises,), ms from the onset.

    The bound's ln(ARL) against what the samples since the onset tell, the divergence of two Gaussian vectors: the rise is in it, unlike in
    `bound_ms`. Rises are those of `RISE_S`, evenly, so median and percentiles compare with a cell's. Of one channel, and tonic spasms.
    """
    assert recipe.snr_db is not None and recipe.n_channels == 1 and not recipe.white
    nats, snr = np.log(3600.0 * RATE_HZ / false_alarms_per_hour), 10.0 ** (recipe.snr_db / 10.0)
    past, n = 60, 400  # samples of rest before, which predict; and in all
    angles = (np.arange(8192) + 0.5) * np.pi / 8192
    waves = np.cos(np.outer(np.arange(n), angles))
    rest, muscle_cov = (toeplitz(waves @ spectrum(band(band_hz)) / 8192) for band_hz in (NOISE_BAND_HZ, SPASM_BAND_HZ))
    rest += 1e-3 * np.eye(n)  # no amplifier is silent beyond its band
    root = cholesky(rest, lower=True)
    t_s = (np.arange(n) - past + 1) / RATE_HZ
    out = []
    for rise_s in np.linspace(*(SLOW_RISE_S if recipe.slow else RISE_S), n_rises):
        gain = _flank(t_s / rise_s)
        both = rest + snr * muscle_cov * np.outer(gain, gain)
        whitened = solve_triangular(root, solve_triangular(root, both, lower=True).T, lower=True)
        # leading blocks of the factors are those of the first samples, so that sums say it for each number of samples
        ratio = np.log(np.diag(cholesky(both, lower=True)) / np.diag(root))
        known = np.cumsum(0.5 * (np.diag(whitened) - 1.0) - ratio)
        enough = np.flatnonzero(known >= nats)
        out.append(1000.0 * (enough[0] - past + 1) / RATE_HZ if enough.size else np.nan)
    return np.array(out)
