"""When a spasm begins: `SpasmDetector.update(chunk, hold_until_s) -> detections`, one per rule of the settings.

The EMG rule is Page's CUSUM on the log-likelihood ratio of two models, rest and rest with a spasm on top, the channels of one muscle
pooled: of all rules with the same rate of false alarms it has the least mean delay (Page 1954; Moustakides 1986; Lorden 1971). Both models
are Gaussian with a spectrum (autoregressive, order 12: detection notes, section 7), rest's is learnt as it goes (`noise`). Its threshold
follows from how many false alarms an hour of quiet may have. What looks like a spasm and is none is vetoed by name. Familiar rules stand
beside it (`classical`). Force is threshold and rate above a running baseline. This module turns settings into the state; the arithmetic is
in `kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

import numpy as np
from scipy.signal import butter, sosfilt_zi, sosfreqz

from controller import artefact, classical, joins
from controller import kernels as k
from controller.streams import GAP_S

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
HIGH_PASS_ORDER = 2  # four poles wait 2 to 4 ms longer, and the whitening removes what two leave
SPASM_BAND_HZ = (30.0, 300.0)  # of surface EMG, as the design assumes it (detection notes, section 7)
# False alarms per sample are about this times exp(-threshold): measured, with the noise learnt as it goes (bench.detection)
ALARM_RATE = 0.008
FLAT_S = 0.02  # unchanged for so long: a lead is off, or an amplifier at its end; a coarse converter repeats itself for less
LOUD_S = 0.005  # so much of a muscle is loud
SURE_S, SURE_RUN_S = 0.002, 0.002  # so much of a spasm is loud beside its loudest, and for so long; a spike rings lower and lower
LOUDEST_TIME_S = 0.005  # how long a loud sample sets the measure
JOLT_S, JOLT_RUN_S = 0.02, 0.008  # for so long after a jolt, so much must be loud
MUCH_LOUDER_DB = 17.0  # a spasm of any spectrum shows it: some 6 dB and more
MOTION_S = 0.05  # while the raw signal swings slowly, a spasm must be loud for this long (detection notes, section 4)
LF_TIME_S, SLOW_TIME_S = 0.005, 1.0  # what swings slowly: 1 s against twice 5 ms, about 0.2 to 20 Hz: known 5 ms after a step
MAINS_TIME_S = 0.02
FAST_S = 0.008  # envelope of the rise-time gate
INTENT_S = 0.5  # a spasm is not looked for until so long after the last intended activity
FORCE_SMOOTH_S = 0.005
FORCE_RATE_SPAN_S = 0.02
FORCE_LEARN_S = 1.0
QUALITIES = ("ok", "learning", "held", "bad")
VETOES = (
    "",
    "gap",
    "no number",
    "flat",
    "motion",
    "ecg",
    "mains",
    "too brief",
    "rises slowly",
    "intended",
    "not at rest again",
    "louder rest",
)


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
        EMG: nats; of the classical methods what `classical` says, in rest's units. Force: the settings' unit above the baseline.
        Joins: how many of the rules are active, and must be.
    envelope : float
        EMG: pooled root mean square in µV. Force: the settings' unit per s. Joins, here and below: the first rule's.
    quality : str
        One of `QUALITIES`.
    level : float
        What the look after the last train showed, EMG: pooled root mean square in µV, force: mean height above the baseline, in the
        settings' unit; NaN until the whole look was seen.
    veto : str
        One of `VETOES`: why what looks like a spasm is not taken for one; empty = nothing speaks against it.
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
    veto: str


class SpasmDetector:
    """All rules of one bed: EMG rules first, in the order of the settings, then the joins, which show like rules."""

    def __init__(self, settings: Settings) -> None:
        self.rules = tuple(row.name for row in settings.rows)
        self.state = _state(settings)

    def update(self, chunk: Chunk, hold_until_s: float, look_from_s: float = 0.0) -> tuple[Detection, ...]:
        """Take one chunk; zero samples leave every rule where it was. Pulses in its feedback count as alike, whoever gave them."""
        artefact.hear(self.state.own, chunk.feedback, artefact.ANY, -np.inf, np.inf)
        k.update(self.state, chunk.emg_uv, chunk.emg_t_s, chunk.force, chunk.force_t_s, hold_until_s, look_from_s)
        return self.detections()

    def detections(self) -> tuple[Detection, ...]:
        """What the rules see now, for people."""
        return tuple(
            Detection(
                rule, bool(active), onset_s, decided_s, statistic, threshold, envelope, QUALITIES[int(quality)], level, VETOES[int(veto)]
            )
            for rule, (active, onset_s, decided_s, statistic, threshold, envelope, quality, level, veto) in zip(
                self.rules, self.state.seen.tolist(), strict=True
            )
        )


def _state(settings: Settings) -> k.DetectorState:
    emg, emg_rules, force_rules = settings.emg, settings.emg_rules, settings.force_rules
    # a bed without a signal still has its place in the arrays: 1 x 1 of it
    n, c = len(emg_rules), max((len(rule.channels) for rule in emg_rules), default=1)
    m = max((_noise_blocks(rule) for rule in emg_rules), default=1)
    r = k.MAX_DESIGNS
    h = _history(settings.force.sample_rate_hz) if settings.force else 1
    sections, look_s = HIGH_PASS_ORDER // 2, settings.prescription.look_ms / 1000
    lags, w = k.LAGS, max((_mains_samples(rule, emg.sample_rate_hz) for rule in emg_rules if emg), default=1)
    joint, members = joins.state(settings)
    s = k.DetectorState(
        emg=np.zeros(n, k.EMG_RULE),
        columns=np.zeros((n, c), np.int64),
        sos=np.zeros((n, sections, 6)),
        z=np.zeros((n, sections, c, 2)),
        zi=np.zeros((n, sections, 2)),
        slow=np.zeros((n, c, 3)),
        raw=np.zeros((n, c, 3)),
        mains=np.zeros((n, w, c)),
        noise_blocks=np.zeros((n, m, c)),
        block_sum=np.zeros((n, c)),
        scale=np.ones((n, c)),
        noise_var=np.zeros((n, c)),
        lag_sum=np.zeros((n, lags)),
        lag=np.zeros((n, lags)),
        spasm_lag=np.zeros((n, lags)),
        cross_sum=np.zeros((n, c, c)),
        cross=np.zeros((n, c, c)),
        mix=np.zeros((n, c, c)),
        past=np.zeros((n, c, 2 * lags)),
        ar=np.zeros((n, c, lags, r + 1)),
        precision=np.zeros((n, c, r + 1)),
        bias=np.zeros((n, c, r + 1)),
        ratio=np.zeros((n, r)),
        gain=np.zeros((n, 2)),
        loss=np.zeros((n, 2)),
        scratch=np.zeros((n, 5, max(lags, c, k.N_STATISTICS))),
        cusum=np.zeros((n, k.N_STATISTICS)),
        cusum_start_s=np.zeros((n, k.N_STATISTICS)),
        classical=np.zeros(n, classical.RULE),
        marks=np.zeros((n, max(4, round(classical.WINDOW_S * settings.emg.sample_rate_hz)) if settings.emg else 1)),
        force=np.zeros(len(force_rules), k.FORCE_RULE),
        history=np.zeros((len(force_rules), h)),
        joins=joint,
        members=members,
        seen=np.full((len(settings.rows), k.N_SEEN), np.nan),
        own=artefact.state(n, c, *((len(emg.channels), emg.sample_rate_hz, emg.hold_ms) if emg else (1, 1.0, 0.0))),
    )
    for i, rule in enumerate(emg_rules):
        assert emg
        _set_emg_rule(s, i, rule, emg.channels, emg.sample_rate_hz, look_s)
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


def threshold_nats(false_alarms_per_h: float, sample_rate_hz: float) -> float:
    """Evidence to ask for so that quiet noise gives no more than so many false alarms an hour.

    A CUSUM on a likelihood ratio has at most exp(-threshold) of them per sample (Lorden 1971); `ALARM_RATE` is the share that is left.
    """
    return max(1.0, log(ALARM_RATE * sample_rate_hz * 3600.0 / false_alarms_per_h))


def _mains_samples(rule: EmgRule, sample_rate_hz: float) -> int:
    return max(1, round(sample_rate_hz / rule.mains_hz)) if rule.mains_hz else 1


def _spasm_autocovariance(high_pass: NDArray[np.float64], sample_rate_hz: float) -> NDArray[np.float64]:
    """Of noise in `SPASM_BAND_HZ` behind the high-pass filter, (LAGS,), of variance 1."""
    band_hz = np.minimum(SPASM_BAND_HZ, 0.45 * sample_rate_hz)
    band = butter(4, band_hz, "bandpass", fs=sample_rate_hz, output="sos")
    _, h = sosfreqz(np.vstack([band, high_pass]), np.fft.rfftfreq(4096) * 2.0 * np.pi)
    lag: NDArray[np.float64] = np.fft.irfft(np.abs(h) ** 2)[: k.LAGS]
    return np.asarray(lag / lag[0])


def _step(time_s: float, sample_rate_hz: float) -> float:
    """Share of the new sample in an exponential average with this time constant."""
    return float(1.0 - np.exp(-1.0 / (time_s * sample_rate_hz)))


def _set_emg_rule(s: k.DetectorState, i: int, rule: EmgRule, channels: tuple[str, ...], sample_rate_hz: float, look_s: float) -> None:
    s.columns[i, : len(rule.channels)] = [channels.index(name) for name in rule.channels]
    s.sos[i] = butter(HIGH_PASS_ORDER, rule.high_pass_hz, "highpass", fs=sample_rate_hz, output="sos")
    s.zi[i] = sosfilt_zi(s.sos[i])
    s.spasm_lag[i] = _spasm_autocovariance(s.sos[i], sample_rate_hz)
    s.lag[i, 0] = 1.0
    s.mix[i] = s.cross[i] = np.eye(s.mix.shape[1])
    s.ratio[i, : len(rule.design_snr_db)] = [10.0 ** (snr_db / 10.0) for snr_db in rule.design_snr_db]
    louder = 1.0 + 10.0 ** (np.array([rule.design_snr_db[0], MUCH_LOUDER_DB]) / 10.0)
    s.gain[i], s.loss[i] = 1.0 - 1.0 / louder, 0.5 * np.log(louder)
    e = s.emg[i]
    e["n_channels"], e["n_blocks"] = len(rule.channels), _noise_blocks(rule)
    e["block_samples"] = max(1, round(BLOCK_S * sample_rate_hz))
    e["min_blocks"] = min(round(LEARN_S / BLOCK_S), _noise_blocks(rule))
    e["off_samples"], e["adopt_samples"], e["bad_samples"] = (round(t_s * sample_rate_hz) for t_s in (OFF_S, ADOPT_S, BAD_S))
    e["flat_samples"], e["motion_samples"] = max(4, round(FLAT_S * sample_rate_hz)), round(MOTION_S * sample_rate_hz)
    e["jolt_run"] = round(JOLT_RUN_S * sample_rate_hz)
    e["jolt_samples"] = round(JOLT_S * sample_rate_hz)
    e["sure_samples"] = max(1, round(SURE_RUN_S * sample_rate_hz))
    e["mains_samples"] = _mains_samples(rule, sample_rate_hz)
    e["intent_column"] = channels.index(rule.intent_channel) if rule.intent_channel else -1
    e["intent_samples"], e["intent_uv"] = round(INTENT_S * sample_rate_hz), rule.intent_uv
    e["threshold"], e["floor_var"], e["off_power"] = (
        threshold_nats(rule.false_alarms_per_h, sample_rate_hz),
        rule.floor_uv**2,
        rule.off_ratio**2,
    )
    e["envelope_step"], e["gap_s"] = _step(ENVELOPE_S, sample_rate_hz), max(GAP_S, 10.0 / sample_rate_hz)
    e["lf_step"], e["slow_step"], e["fast_step"] = (_step(t_s, sample_rate_hz) for t_s in (LF_TIME_S, SLOW_TIME_S, FAST_S))
    e["mains_step"] = _step(MAINS_TIME_S, sample_rate_hz) if rule.mains_hz else 0.0
    e["rise_s"], e["rise_high"] = rule.rise_ms / 1000, rule.rise_ratio**2
    e["loudest_keep"] = 1.0 - _step(LOUDEST_TIME_S, sample_rate_hz)
    e["long"], e["short"] = (k.LOUD_NATS * t_s * sample_rate_hz for t_s in (LOUD_S, SURE_S))
    if rule.noise_uv:
        e["frozen"] = 1
        s.noise_var[i, : len(rule.noise_uv)] = np.maximum(np.square(rule.noise_uv), rule.floor_uv**2)
        s.scale[i, : len(rule.noise_uv)] = s.noise_var[i, : len(rule.noise_uv)] ** -0.5
    classical.set_rule(s.classical[i], rule.method, rule.false_alarms_per_h, sample_rate_hz)
    if rule.method != "cusum":
        classical.set_threshold(s, i)
    e["held"] = k.HELD_LONG  # filters start from the first sample, whatever its offset
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
