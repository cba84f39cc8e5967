"""When a spasm begins: `SpasmDetector.update(chunk, hold_until_s) -> detections`, one per rule of the settings.

The EMG rule is Page's CUSUM on the log-likelihood ratio of a noise and a spasm model, the channels of one muscle pooled: of all rules
with the same rate of false alarms it has the least mean delay (Page 1954; Moustakides 1986; Lorden 1971). Force is threshold and rate
above a running baseline. State lives in plain arrays; the arithmetic in `kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

import numpy as np
from scipy.signal import butter

from controller import kernels as k

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.settings import EmgRule, ForceRule, Settings
    from drivers.base import Chunk

BLOCK_S = 0.05  # noise is learnt in blocks of this length
LEARN_S = 2.0  # and nothing is decided before this much quiet was seen
ENVELOPE_S = 0.02  # time constant of the envelope that ends a spasm
OFF_S = 0.1  # and how long it must stay low
ADOPT_S = 60.0  # activity that lasts this long is the new rest
BAD_S = 0.05  # after a gap or a bad sample the filters need this long
GAP_S = 0.05  # a hole in the stamps longer than this starts the filters over
FORCE_SMOOTH_S = 0.005
FORCE_RATE_SPAN_S = 0.02
FORCE_LEARN_S = 1.0
QUALITIES = ("ok", "learning", "held", "bad")


@dataclass(frozen=True, slots=True)
class Detection:
    """What one rule sees now.

    Attributes
    ----------
    rule : str
    active : bool
        A spasm is on.
    onset_s : float
        When it began, back-dated; NaN before the first.
    decided_s : float
        Stamp of the sample at which the rule was sure; NaN before the first.
    statistic, threshold : float
        EMG: nats. Force: the settings' unit above the baseline.
    envelope : float
        EMG: pooled root mean square in µV. Force: the settings' unit per s.
    quality : str
        One of `QUALITIES`.
    """

    rule: str
    active: bool
    onset_s: float
    decided_s: float
    statistic: float
    threshold: float
    envelope: float
    quality: str


class EmgDetector:
    """State of one EMG rule."""

    def __init__(self, rule: EmgRule, channels: tuple[str, ...], sample_rate_hz: float) -> None:
        self.rule = rule
        self.columns = np.array([channels.index(name) for name in rule.channels])
        n = len(self.columns)
        self.sos: NDArray[np.float64] = np.ascontiguousarray(butter(4, rule.high_pass_hz, "highpass", fs=sample_rate_hz, output="sos"))
        self.z = np.zeros((self.sos.shape[0], n, 2))
        self.block_samples = max(1, round(BLOCK_S * sample_rate_hz))
        self.noise_blocks = np.zeros((max(2, round(rule.noise_time_s / BLOCK_S)), n))
        self.block_sum = np.zeros(n)
        self.noise_var = np.zeros(n)
        ratios = [1.0 + 10.0 ** (snr_db / 10.0) for snr_db in rule.design_snr_db]
        self.gain = np.array([0.5 * (1.0 - 1.0 / ratio) for ratio in ratios])
        self.bias = np.array([0.5 * log(ratio) for ratio in ratios])
        self.cusum = np.zeros(len(ratios))
        self.cusum_start_s = np.zeros(len(ratios))
        self.floats = np.full(k.N_EMG_FLOATS, np.nan)
        self.floats[[k.F_ENVELOPE, k.F_LAST_S]] = 0.0
        self.ints = np.zeros(k.N_EMG_INTS, np.int64)
        self.ints[k.I_QUALITY] = k.QUALITY_LEARNING
        self.min_blocks = min(round(LEARN_S / BLOCK_S), self.noise_blocks.shape[0])
        self.envelope_step = 1.0 - np.exp(-1.0 / (ENVELOPE_S * sample_rate_hz))
        self.off_samples = round(OFF_S * sample_rate_hz)
        self.adopt_samples = round(ADOPT_S * sample_rate_hz)
        self.bad_samples = round(BAD_S * sample_rate_hz)
        self.gap_s = max(GAP_S, 10.0 / sample_rate_hz)

    def update(self, emg_uv: NDArray[np.float64], t_s: NDArray[np.float64], hold_until_s: float) -> Detection:
        """Take (n_samples, n_emg) float64 µV with their stamps; samples up to `hold_until_s` carry stimulation."""
        if len(t_s):
            k.emg_update(
                np.ascontiguousarray(emg_uv[:, self.columns]),
                t_s,
                hold_until_s,
                self.sos,
                self.z,
                self.noise_blocks,
                self.block_sum,
                self.noise_var,
                self.gain,
                self.bias,
                self.cusum,
                self.cusum_start_s,
                self.floats,
                self.ints,
                self.block_samples,
                self.min_blocks,
                self.rule.threshold,
                self.rule.floor_uv**2,
                self.envelope_step,
                self.rule.off_ratio**2,
                self.off_samples,
                self.adopt_samples,
                self.bad_samples,
                self.gap_s,
            )
        noise_var = max(float(self.noise_var.mean()), self.rule.floor_uv**2)
        return Detection(
            rule=self.rule.name,
            active=bool(self.ints[k.I_ACTIVE]),
            onset_s=float(self.floats[k.F_ONSET_S]),
            decided_s=float(self.floats[k.F_DECIDED_S]),
            statistic=float(self.cusum.max()),
            threshold=self.rule.threshold,
            envelope=float(np.sqrt(self.floats[k.F_ENVELOPE] * noise_var)),
            quality=QUALITIES[self.ints[k.I_QUALITY]],
        )


class ForceDetector:
    """State of one force rule."""

    def __init__(self, rule: ForceRule, channels: tuple[str, ...], sample_rate_hz: float) -> None:
        self.rule = rule
        self.column = channels.index(rule.channel)
        self.sample_rate_hz = sample_rate_hz
        self.history = np.zeros(max(1, round(FORCE_RATE_SPAN_S * sample_rate_hz)))
        self.floats = np.full(k.N_FORCE_FLOATS, np.nan)
        self.floats[[k.G_BASELINE, k.G_SMOOTH, k.G_RATE, k.G_LAST_S]] = 0.0
        self.ints = np.zeros(k.N_FORCE_INTS, np.int64)
        self.ints[k.J_QUALITY] = k.QUALITY_LEARNING
        self.smooth_step = 1.0 - np.exp(-1.0 / (FORCE_SMOOTH_S * sample_rate_hz))
        self.baseline_step = 1.0 - np.exp(-1.0 / (rule.baseline_time_s * sample_rate_hz))
        self.learn_samples = round(FORCE_LEARN_S * sample_rate_hz)
        self.off_samples = round(OFF_S * sample_rate_hz)
        self.gap_s = max(GAP_S, 10.0 / sample_rate_hz)

    def update(self, force: NDArray[np.float64], t_s: NDArray[np.float64], hold_until_s: float) -> Detection:
        """Take (n_samples, n_force) float64 in the settings' unit with their stamps."""
        if len(t_s):
            k.force_update(
                np.ascontiguousarray(force[:, self.column]),
                t_s,
                hold_until_s,
                self.history,
                self.floats,
                self.ints,
                self.smooth_step,
                self.baseline_step,
                self.learn_samples,
                self.rule.threshold,
                self.rule.rate_per_s,
                self.sample_rate_hz,
                self.off_samples,
                self.gap_s,
            )
        return Detection(
            rule=self.rule.name,
            active=bool(self.ints[k.J_ACTIVE]),
            onset_s=float(self.floats[k.G_ONSET_S]),
            decided_s=float(self.floats[k.G_DECIDED_S]),
            statistic=float(self.floats[k.G_SMOOTH] - self.floats[k.G_BASELINE]),
            threshold=self.rule.threshold,
            envelope=float(self.floats[k.G_RATE]),
            quality=QUALITIES[self.ints[k.J_QUALITY]],
        )


class SpasmDetector:
    """All rules of one bed: EMG rules first, in the order of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.emg = [EmgDetector(rule, settings.emg.channels, settings.emg.sample_rate_hz) for rule in settings.emg_rules if settings.emg]
        self.force = [
            ForceDetector(rule, settings.force.channels, settings.force.sample_rate_hz) for rule in settings.force_rules if settings.force
        ]

    def update(self, chunk: Chunk, hold_until_s: float) -> tuple[Detection, ...]:
        """Take one chunk; zero samples leave every rule where it was."""
        return (
            *(rule.update(chunk.emg_uv, chunk.emg_t_s, hold_until_s) for rule in self.emg),
            *(rule.update(chunk.force, chunk.force_t_s, hold_until_s) for rule in self.force),
        )
