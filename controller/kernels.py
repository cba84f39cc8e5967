"""Numeric kernels of the detector: arrays in, arrays filled in place, one sample at a time, so that the block size can never matter.

`@njit` functions and the state they work on. They allocate nothing (but a sorted copy of the noise once a block) and never look at a clock.
All rules of a bed share one `DetectorState`, whatever their number, so that there is one signature to compile: rules lie along the first
axis, shorter ones leave the end of theirs unused. Scalars of a rule are a record (`rule.envelope`), read and written by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUALITY_OK, QUALITY_LEARNING, QUALITY_HELD, QUALITY_BAD = range(4)

# What a rule says after each step, a row of `DetectorState.seen`. LEVEL is how strong its muscle was in the look after the last train:
# EMG: pooled root mean square in µV, high-passed; force: mean height above the baseline; NaN until the whole look was seen.
ACTIVE, ONSET_S, DECIDED_S, STATISTIC, THRESHOLD, ENVELOPE, QUALITY, LEVEL = range(8)
N_SEEN = 8

# lower quantile of the block energies, and what it falls short of the mean by for Gaussian noise of about 80 degrees of freedom a block
NOISE_QUANTILE = 0.3
NOISE_CORRECTION = 1.09
CAP_NATS = 6.0  # one sample adds at most this (detection notes, section 7); a large outlier still rings through the filter for several
MAX_UV = 1e6  # 1 V is no EMG: such a sample is as bad as NaN, and would fill the filters for good

# of both kinds of rules: samples of a look; how many were seen, their sum, the stamp that they must be above
_LOOK = [("look_samples", np.int64), ("looked", np.int64), ("look_sum", np.float64), ("look_from_s", np.float64)]
EMG_RULE = np.dtype(
    [
        # settings
        *((name, np.int64) for name in ("n_channels", "n_blocks", "n_designs", "block_samples", "min_blocks")),
        *((name, np.int64) for name in ("off_samples", "adopt_samples", "bad_samples")),
        *((name, np.float64) for name in ("threshold", "floor_var", "envelope_step", "off_power", "gap_s")),
        # state
        *((name, np.int64) for name in ("active", "below", "in_block", "block", "blocks", "held", "active_samples", "quality", "bad")),
        *((name, np.float64) for name in ("envelope", "onset_s", "decided_s", "offset_s", "last_s")),
        *_LOOK,
    ],
    align=True,
)
FORCE_RULE = np.dtype(
    [
        *((name, np.int64) for name in ("column", "n_history", "learn_samples", "off_samples")),
        *((name, np.float64) for name in ("smooth_step", "baseline_step", "threshold", "rate_per_s", "sample_rate_hz", "gap_s")),
        *((name, np.int64) for name in ("active", "below", "at", "seen", "quality")),
        *((name, np.float64) for name in ("baseline", "smooth", "rate", "onset_s", "decided_s", "offset_s", "last_s")),
        *_LOOK,
    ],
    align=True,
)


class DetectorState(NamedTuple):
    """All rules of one bed; EMG rules first in `seen`. Axes: rule, then block, section, channel or design.

    Attributes
    ----------
    emg : (n_emg_rules,) EMG_RULE
    columns : (n_emg_rules, c) int64
        Which channels of the stream a rule pools.
    sos : (n_emg_rules, k, 6) float64; z : (n_emg_rules, k, c, 2) float64
        High-pass sections and their memory.
    noise_blocks : (n_emg_rules, m, c) float64; block_sum, noise_var : (n_emg_rules, c) float64, µV²
        Mean squares of the last blocks, the one being filled, the noise model.
    gain, bias : (n_emg_rules, r) float64
        Per design ratio R: 0.5 (1 - 1/R) and 0.5 ln R, so that a sample's ratio is gain x²/σ² - bias.
    cusum, cusum_start_s : (n_emg_rules, r) float64
        Page's statistic and when it last left zero (the estimate of the onset).
    force : (n_force_rules,) FORCE_RULE; history : (n_force_rules, h) float64
        The last 20 ms of force, smoothed.
    seen : (n_rules, N_SEEN) float64
        What each rule sees now.
    """

    emg: NDArray[np.void]
    columns: NDArray[np.int64]
    sos: NDArray[np.float64]
    z: NDArray[np.float64]
    noise_blocks: NDArray[np.float64]
    block_sum: NDArray[np.float64]
    noise_var: NDArray[np.float64]
    gain: NDArray[np.float64]
    bias: NDArray[np.float64]
    cusum: NDArray[np.float64]
    cusum_start_s: NDArray[np.float64]
    force: NDArray[np.void]
    history: NDArray[np.float64]
    seen: NDArray[np.float64]


@njit(cache=True, nogil=True)
def update(s, emg_uv, emg_t_s, force, force_t_s, hold_until_s, look_from_s):
    """Take one chunk into `s`, a `DetectorState`; samples up to `hold_until_s` carry stimulation, later than `look_from_s` is the look.

    Parameters
    ----------
    emg_uv : (n_emg_samples, n_emg) float64, µV; emg_t_s : (n_emg_samples,) float64, s
    force : (n_force_samples, n_force) float64, in the settings' unit; force_t_s : (n_force_samples,) float64, s
    """
    n_emg_rules = s.emg.shape[0]
    for i in range(n_emg_rules):
        rule, seen = s.emg[i], s.seen[i]
        _look_from(rule, look_from_s)
        _emg_update(s, i, emg_uv, emg_t_s, hold_until_s)
        noise_var = max(np.mean(s.noise_var[i, : rule.n_channels]), rule.floor_var)
        seen[ACTIVE], seen[ONSET_S], seen[DECIDED_S], seen[QUALITY] = rule.active, rule.onset_s, rule.decided_s, rule.quality
        seen[STATISTIC], seen[THRESHOLD] = np.max(s.cusum[i, : rule.n_designs]), rule.threshold
        seen[ENVELOPE], seen[LEVEL] = np.sqrt(rule.envelope * noise_var), np.sqrt(_level(rule))
    for i in range(s.force.shape[0]):
        rule, seen = s.force[i], s.seen[n_emg_rules + i]
        _look_from(rule, look_from_s)
        _force_update(s, i, force, force_t_s, hold_until_s)
        seen[ACTIVE], seen[ONSET_S], seen[DECIDED_S], seen[QUALITY] = rule.active, rule.onset_s, rule.decided_s, rule.quality
        seen[STATISTIC], seen[THRESHOLD], seen[ENVELOPE] = rule.smooth - rule.baseline, rule.threshold, rule.rate
        seen[LEVEL] = _level(rule)


@njit(cache=True, nogil=True)
def _emg_update(s, i, x_uv, t_s, hold_until_s):
    """Pooled CUSUM on the energy log-likelihood ratio of the channels of one muscle."""
    rule, columns, sos, z = s.emg[i], s.columns[i], s.sos[i], s.z[i]
    block_sum, noise_var = s.block_sum[i], s.noise_var[i]
    gain, bias, cusum, cusum_start_s = s.gain[i], s.bias[i], s.cusum[i], s.cusum_start_s[i]
    n_channels, n_designs = rule.n_channels, rule.n_designs
    for k in range(x_uv.shape[0]):
        now = t_s[k]
        # counted in samples, not by the stamps, which may be what is wrong
        rule.bad = max(0, rule.bad - 1)
        if abs(now - rule.last_s) > rule.gap_s and rule.last_s > 0.0:
            rule.bad = rule.bad_samples
        rule.last_s = now
        learnt = rule.blocks >= rule.min_blocks
        energy = power = 0.0
        for ch in range(n_channels):
            y = x_uv[k, columns[ch]]
            if not abs(y) < MAX_UV:  # NaN too
                y = 0.0
                rule.bad = rule.bad_samples
            for q in range(sos.shape[0]):
                w = y
                y = sos[q, 0] * w + z[q, ch, 0]
                z[q, ch, 0] = sos[q, 1] * w - sos[q, 4] * y + z[q, ch, 1]
                z[q, ch, 1] = sos[q, 2] * w - sos[q, 5] * y
            power += y * y
            block_sum[ch] += y * y
            u = y * y / max(noise_var[ch], rule.floor_var)
            energy += u
            if learnt:
                for r in range(n_designs):
                    cusum[r] += min(gain[r] * u - bias[r], CAP_NATS)
        rule.in_block += 1

        bad = rule.bad > 0
        if bad or now <= hold_until_s:
            rule.held = 1
            rule.quality = QUALITY_BAD if bad else QUALITY_HELD
            _forget(rule, cusum, cusum_start_s, block_sum, now)
            continue
        if rule.held:
            rule.held = 0
            _forget(rule, cusum, cusum_start_s, block_sum, now)
            continue
        rule.envelope += rule.envelope_step * (energy / n_channels - rule.envelope)
        _look(rule, now, power / n_channels)

        if rule.in_block >= rule.block_samples:
            # blocks of a spasm teach nothing about the noise, unless it lasts so long that it must be the new rest
            if not rule.active or rule.active_samples > rule.adopt_samples:
                _learn(rule, s.noise_blocks[i], block_sum, noise_var)
            block_sum[:] = 0.0
            rule.in_block = 0
        if rule.blocks < rule.min_blocks:
            rule.quality = QUALITY_LEARNING
            continue
        rule.quality = QUALITY_OK

        hit = -1
        for r in range(n_designs):
            if cusum[r] <= 0.0:
                cusum[r] = 0.0
                cusum_start_s[r] = now
            elif cusum[r] >= rule.threshold and hit < 0:
                hit = r
        if not rule.active:
            if hit >= 0:
                rule.active = 1
                rule.below = 0
                rule.active_samples = 0
                rule.onset_s = cusum_start_s[hit]
                rule.decided_s = now
        else:
            rule.active_samples += 1
            rule.below = rule.below + 1 if rule.envelope < rule.off_power else 0
            if rule.below >= rule.off_samples:
                rule.active = 0
                rule.offset_s = now
                cusum[:] = 0.0
                cusum_start_s[:] = now
        for r in range(n_designs):
            cusum[r] = min(cusum[r], 2.0 * rule.threshold)


@njit(cache=True, nogil=True)
def _forget(rule, cusum, cusum_start_s, block_sum, now):
    cusum[:] = 0.0
    cusum_start_s[:] = now
    block_sum[:] = 0.0
    rule.in_block = 0
    rule.below = 0
    rule.envelope = 0.0
    _look_anew(rule)


@njit(cache=True, nogil=True)
def _look_anew(rule):
    rule.looked = 0
    rule.look_sum = 0.0


@njit(cache=True, nogil=True)
def _look_from(rule, t_s):
    if t_s != rule.look_from_s:
        rule.look_from_s = t_s
        _look_anew(rule)


@njit(cache=True, nogil=True)
def _look(rule, now, value):
    """Take a clean sample, if it is of the look: of the first `look_samples` after `look_from_s`, so that all looks are of one length."""
    if now > rule.look_from_s and rule.looked < rule.look_samples:
        rule.looked += 1
        rule.look_sum += value


@njit(cache=True, nogil=True)
def _level(rule):
    return rule.look_sum / rule.looked if rule.looked == rule.look_samples else np.nan


@njit(cache=True, nogil=True)
def _learn(rule, noise_blocks, block_sum, noise_var):
    for ch in range(rule.n_channels):
        noise_blocks[rule.block, ch] = block_sum[ch] / rule.block_samples
    rule.block = (rule.block + 1) % rule.n_blocks
    rule.blocks = min(rule.blocks + 1, rule.n_blocks)
    for ch in range(rule.n_channels):
        ordered = np.sort(noise_blocks[: rule.blocks, ch])
        noise_var[ch] = ordered[int(NOISE_QUANTILE * (rule.blocks - 1))] * NOISE_CORRECTION


@njit(cache=True, nogil=True)
def _force_update(s, i, force, t_s, hold_until_s):
    """Force above its running baseline and rising fast."""
    rule, history = s.force[i], s.history[i]
    for k in range(force.shape[0]):
        now, y = t_s[k], force[k, rule.column]
        if not np.isfinite(y) or (abs(now - rule.last_s) > rule.gap_s and rule.last_s > 0.0):
            rule.seen = 0  # start over: the baseline is unknown again
        rule.last_s = now
        if not np.isfinite(y):
            rule.quality = QUALITY_BAD
            continue
        if rule.seen == 0:
            rule.smooth = rule.baseline = y
            history[:] = y
            rule.active = 0
            _look_anew(rule)
        rule.seen += 1
        rule.smooth += rule.smooth_step * (y - rule.smooth)
        rule.rate = (rule.smooth - history[rule.at]) * rule.sample_rate_hz / rule.n_history
        history[rule.at] = rule.smooth
        rule.at = (rule.at + 1) % rule.n_history
        held = now <= hold_until_s
        if rule.seen < rule.learn_samples:
            rule.baseline += (y - rule.baseline) / rule.seen
            rule.quality = QUALITY_LEARNING
            continue
        rule.quality = QUALITY_HELD if held else QUALITY_OK
        if held:
            _look_anew(rule)
        else:
            _look(rule, now, y - rule.baseline)
        above = rule.smooth - rule.baseline
        if not rule.active:
            if not held:
                rule.baseline += rule.baseline_step * (y - rule.baseline)
                if above > rule.threshold and rule.rate > rule.rate_per_s:
                    rule.active = 1
                    rule.below = 0
                    rule.onset_s = rule.decided_s = now
        else:
            rule.below = rule.below + 1 if above < 0.5 * rule.threshold else 0
            if rule.below >= rule.off_samples:
                rule.active = 0
                rule.offset_s = now
