"""When a spasm begins: `SpasmDetector.update(chunk, hold_until_s) -> detections`, one per rule of the settings.

The EMG rule is Page's CUSUM on the log-likelihood ratio of a noise and a spasm model, the channels of one muscle pooled: of all rules
with the same rate of false alarms it has the least mean delay (Page 1954; Moustakides 1986; Lorden 1971). Force is threshold and rate
above a running baseline. This module turns settings into the state; the arithmetic is in `kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

import numpy as np
from scipy.signal import butter

from controller import kernels as k

if TYPE_CHECKING:
    from controller.settings import EmgRule, ForceRule, Settings
    from drivers.base import Chunk

BLOCK_S = 0.05  # noise is learnt in blocks of this length
LEARN_S = 2.0  # and nothing is decided before this much quiet was seen
ENVELOPE_S = 0.02  # time constant of the envelope that ends a spasm
OFF_S = 0.1  # and how long it must stay low
ADOPT_S = 60.0  # activity that lasts this long is the new rest
BAD_S = 0.05  # after a gap or a bad sample the filters need this long
GAP_S = 0.05  # a hole in the stamps longer than this starts the filters over
HIGH_PASS_ORDER = 4
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
    level : float
        What the look after the last train showed, EMG: pooled root mean square in µV, force: mean height above the baseline, in the
        settings' unit; NaN until the whole look was seen.
    """

    rule: str
    active: bool
    onset_s: float
    decided_s: float
    statistic: float
    threshold: float
    envelope: float
    quality: str
    level: float


class SpasmDetector:
    """All rules of one bed: EMG rules first, in the order of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.rules = tuple(rule.name for rule in settings.rules)
        self.state = _state(settings)

    def update(self, chunk: Chunk, hold_until_s: float, look_from_s: float = 0.0) -> tuple[Detection, ...]:
        """Take one chunk; zero samples leave every rule where it was."""
        k.update(self.state, chunk.emg_uv, chunk.emg_t_s, chunk.force, chunk.force_t_s, hold_until_s, look_from_s)
        return self.detections()

    def detections(self) -> tuple[Detection, ...]:
        """What the rules see now, for people."""
        return tuple(
            Detection(rule, bool(active), onset_s, decided_s, statistic, threshold, envelope, QUALITIES[int(quality)], level)
            for rule, (active, onset_s, decided_s, statistic, threshold, envelope, quality, level) in zip(
                self.rules, self.state.seen.tolist(), strict=True
            )
        )


def _state(settings: Settings) -> k.DetectorState:
    emg_rules, force_rules = settings.emg_rules, settings.force_rules
    # a bed without a signal still has its place in the arrays: 1 x 1 of it
    n, c = len(emg_rules), max((len(rule.channels) for rule in emg_rules), default=1)
    m = max((_noise_blocks(rule) for rule in emg_rules), default=1)
    r = max((len(rule.design_snr_db) for rule in emg_rules), default=1)
    h = _history(settings.force.sample_rate_hz) if settings.force else 1
    sections, look_s = HIGH_PASS_ORDER // 2, settings.prescription.look_ms / 1000
    s = k.DetectorState(
        emg=np.zeros(n, k.EMG_RULE),
        columns=np.zeros((n, c), np.int64),
        sos=np.zeros((n, sections, 6)),
        z=np.zeros((n, sections, c, 2)),
        noise_blocks=np.zeros((n, m, c)),
        block_sum=np.zeros((n, c)),
        noise_var=np.zeros((n, c)),
        gain=np.zeros((n, r)),
        bias=np.zeros((n, r)),
        cusum=np.zeros((n, r)),
        cusum_start_s=np.zeros((n, r)),
        force=np.zeros(len(force_rules), k.FORCE_RULE),
        history=np.zeros((len(force_rules), h)),
        seen=np.full((n + len(force_rules), k.N_SEEN), np.nan),
    )
    for i, rule in enumerate(emg_rules):
        assert settings.emg
        _set_emg_rule(s, i, rule, settings.emg.channels, settings.emg.sample_rate_hz, look_s)
    for i, force_rule in enumerate(force_rules):
        assert settings.force
        _set_force_rule(s.force[i], force_rule, settings.force.channels, settings.force.sample_rate_hz, look_s)
    nothing = np.zeros((0, 1))
    k.update(s, nothing, nothing[:, 0], nothing, nothing[:, 0], 0.0, 0.0)  # fills `seen`
    return s


def _noise_blocks(rule: EmgRule) -> int:
    return max(2, round(rule.noise_time_s / BLOCK_S))


def _history(sample_rate_hz: float) -> int:
    return max(1, round(FORCE_RATE_SPAN_S * sample_rate_hz))


def _look_samples(look_s: float, sample_rate_hz: float) -> int:
    return max(1, round(look_s * sample_rate_hz))


def _step(time_s: float, sample_rate_hz: float) -> float:
    """Share of the new sample in an exponential average with this time constant."""
    return float(1.0 - np.exp(-1.0 / (time_s * sample_rate_hz)))


def _set_emg_rule(s: k.DetectorState, i: int, rule: EmgRule, channels: tuple[str, ...], sample_rate_hz: float, look_s: float) -> None:
    s.columns[i, : len(rule.channels)] = [channels.index(name) for name in rule.channels]
    s.sos[i] = butter(HIGH_PASS_ORDER, rule.high_pass_hz, "highpass", fs=sample_rate_hz, output="sos")
    ratios = [1.0 + 10.0 ** (snr_db / 10.0) for snr_db in rule.design_snr_db]
    s.gain[i, : len(ratios)] = [0.5 * (1.0 - 1.0 / ratio) for ratio in ratios]
    s.bias[i, : len(ratios)] = [0.5 * log(ratio) for ratio in ratios]
    e = s.emg[i]
    e["n_channels"], e["n_blocks"], e["n_designs"] = len(rule.channels), _noise_blocks(rule), len(ratios)
    e["block_samples"] = max(1, round(BLOCK_S * sample_rate_hz))
    e["min_blocks"] = min(round(LEARN_S / BLOCK_S), _noise_blocks(rule))
    e["off_samples"], e["adopt_samples"], e["bad_samples"] = (round(t_s * sample_rate_hz) for t_s in (OFF_S, ADOPT_S, BAD_S))
    e["threshold"], e["floor_var"], e["off_power"] = rule.threshold, rule.floor_uv**2, rule.off_ratio**2
    e["envelope_step"], e["gap_s"] = _step(ENVELOPE_S, sample_rate_hz), max(GAP_S, 10.0 / sample_rate_hz)
    e["look_samples"] = _look_samples(look_s, sample_rate_hz)
    e["quality"] = k.QUALITY_LEARNING
    e["onset_s"] = e["decided_s"] = e["offset_s"] = np.nan


def _set_force_rule(f: np.void, rule: ForceRule, channels: tuple[str, ...], sample_rate_hz: float, look_s: float) -> None:
    f["column"], f["n_history"] = channels.index(rule.channel), _history(sample_rate_hz)
    f["learn_samples"], f["off_samples"] = round(FORCE_LEARN_S * sample_rate_hz), round(OFF_S * sample_rate_hz)
    f["smooth_step"], f["baseline_step"] = _step(FORCE_SMOOTH_S, sample_rate_hz), _step(rule.baseline_time_s, sample_rate_hz)
    f["threshold"], f["rate_per_s"], f["sample_rate_hz"] = rule.threshold, rule.rate_per_s, sample_rate_hz
    f["gap_s"] = max(GAP_S, 10.0 / sample_rate_hz)
    f["look_samples"] = _look_samples(look_s, sample_rate_hz)
    f["quality"] = k.QUALITY_LEARNING
    f["onset_s"] = f["decided_s"] = f["offset_s"] = np.nan
