"""Numeric kernels of the detector: arrays in, arrays filled in place, one sample at a time, so that the block size can never matter.

`@njit` functions and the state they work on. They allocate nothing (but a sorted copy of the noise once a block) and never look at a clock.
All rules of a bed share one `DetectorState`, whatever their number, so that there is one signature to compile: rules lie along the first
axis, shorter ones leave the end of theirs unused. Scalars of a rule are a record (`rule.envelope`), read and written by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from controller import joins, noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUALITY_OK, QUALITY_LEARNING, QUALITY_HELD, QUALITY_BAD = range(4)

# What a rule says after each step, a row of `DetectorState.seen`. LEVEL is how strong its muscle was in the look after the last train:
# EMG: pooled root mean square in µV, high-passed; force: mean height above the baseline; NaN until the whole look was seen. VETO is why it
# says nothing although there is evidence, or why there can be none.
ACTIVE, ONSET_S, DECIDED_S, STATISTIC, THRESHOLD, ENVELOPE, QUALITY, LEVEL, VETO = range(9)
N_SEEN = 9
NO_VETO, VETO_GAP, VETO_VALUE, VETO_FLAT, VETO_MOTION, VETO_ECG, VETO_MAINS, VETO_BRIEF, VETO_SLOW, VETO_INTENT, VETO_UNREST = range(11)
RISE_UNKNOWN, RISE_ABRUPT, RISE_SLOW = range(3)

CAP_NATS = 6.0  # one sample of one channel adds at most this (detection notes, section 7)
MAX_UV = 1e6  # 1 V is no EMG: such a sample is as bad as NaN, and would fill the filters for good
LAGS = 13  # of the autoregressive models, the present one with it: order 12 (detection notes, section 7)
MAX_DESIGNS = 4
N_STATISTICS = 2 * MAX_DESIGNS
# A share of the samples above 1.7 sigma: a tenth of rest's, a third and more of a spasm's. Their log ratios; a spike has too few of them.
LOUD, LOUD_NATS, SOFT_NATS, LOUD_CAP = 1.25, 1.25, -0.325, 1.4
LF_RATIO = 6.0  # slow swings beyond this many times rest, and stronger than the EMG, are motion or a heart
REST_POWER, UNREST = 1.5, 2.0  # an envelope below this, in rest's power, is rest; what counts before that, in `off_power`
MAINS_RATIO = 0.5  # what is left of mains after the period before is taken away, of twice its power; of EMG all is left

# of both kinds of rules: samples of a look; how many were seen, their sum, the stamp that they must be above
_LOOK = [("look_samples", np.int64), ("looked", np.int64), ("look_sum", np.float64), ("look_from_s", np.float64)]
EMG_RULE = np.dtype(
    [
        # settings
        *((name, np.int64) for name in ("n_channels", "n_blocks", "n_designs", "block_samples", "min_blocks", "frozen", "intent_column")),
        *((name, np.int64) for name in ("off_samples", "adopt_samples", "bad_samples", "flat_samples", "sure_samples", "motion_samples")),
        *((name, np.int64) for name in ("mains_samples", "rise_samples", "intent_samples")),
        *((name, np.float64) for name in ("threshold", "floor_var", "envelope_step", "off_power", "gap_s", "lf_step", "slow_step")),
        *((name, np.float64) for name in ("mains_step", "fast_step", "rise_low", "rise_high", "intent_uv")),
        # state
        *((name, np.int64) for name in ("active", "below", "in_block", "block", "blocks", "held", "active_samples", "quality", "bad")),
        *((name, np.int64) for name in ("modelled", "shapes", "since_model", "at", "loud_run", "motion", "beats", "mains_at", "veto")),
        *((name, np.int64) for name in ("rising", "rise", "fallen", "unrest", "rested", "intent", "why_bad", "since_swing", "swing_gap")),
        *((name, np.float64) for name in ("envelope", "onset_s", "decided_s", "offset_s", "last_s", "loud", "fast")),
        *((name, np.float64) for name in ("mains_left", "mains_all", "sure", "peak")),
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
    sos : (n_emg_rules, k, 6) float64; z, zi : (n_emg_rules, k, c, 2), (n_emg_rules, k, 2) float64
        High-pass sections, their memory, and what it is after a constant 1.
    slow : (n_emg_rules, c, 3) float64
        Averages of the raw signal with 1 s, and with 10 ms twice.
    raw : (n_emg_rules, c, 2) float64
        The last raw sample and for how many samples it has not changed.
    mains : (n_emg_rules, w, c) float64
        One period of the mains.
    noise_blocks : (n_emg_rules, m, c) float64; block_sum, noise_var : (n_emg_rules, c) float64, µV²
        Mean squares of the last blocks, the one being filled, rest's variance. scale : (n_emg_rules, c) float64, 1 / its root

    lag_sum, lag, spasm_lag : (n_emg_rules, LAGS) float64
        Autocovariance of the components: of the block, of rest; and that of a spasm of variance 1.
    cross_sum, cross, mix : (n_emg_rules, c, c) float64
        Covariance of the components, of the block and of rest; what makes components of channels divided by their rest.
    past : (n_emg_rules, c, 2 LAGS) float64
        The last samples of each component, twice, so that they stand in a row somewhere.
    ar : (n_emg_rules, c, LAGS, r + 1); precision, bias : (n_emg_rules, c, r + 1) float64
        Of each component the predictors of rest and of each design, 1 / (2 variance) of the residual, and half the log of that variance.
    ratio, gain, loss : (n_emg_rules, r) float64
        Design ratios D, in power; of rest that is louder by 1 + D: 1 - 1 / (1 + D), and 0.5 ln(1 + D). scratch : (n_emg_rules, 5, w)
    cusum, cusum_start_s : (n_emg_rules, N_STATISTICS) float64
        Page's statistic and when it last left zero (the estimate of the onset).
    force : (n_force_rules,) FORCE_RULE; history : (n_force_rules, h) float64
        The last 20 ms of force, smoothed.
    joins : (n_joins,) joins.JOIN; members : (n_joins, m) int64
        Rules that ask together, and their rows in `seen`.
    seen : (n_rules + n_joins, N_SEEN) float64
        What each rule sees now, and each join.
    """

    emg: NDArray[np.void]
    columns: NDArray[np.int64]
    sos: NDArray[np.float64]
    z: NDArray[np.float64]
    zi: NDArray[np.float64]
    slow: NDArray[np.float64]
    raw: NDArray[np.float64]
    mains: NDArray[np.float64]
    noise_blocks: NDArray[np.float64]
    block_sum: NDArray[np.float64]
    scale: NDArray[np.float64]
    noise_var: NDArray[np.float64]
    lag_sum: NDArray[np.float64]
    lag: NDArray[np.float64]
    spasm_lag: NDArray[np.float64]
    cross_sum: NDArray[np.float64]
    cross: NDArray[np.float64]
    mix: NDArray[np.float64]
    past: NDArray[np.float64]
    ar: NDArray[np.float64]
    precision: NDArray[np.float64]
    bias: NDArray[np.float64]
    ratio: NDArray[np.float64]
    gain: NDArray[np.float64]
    loss: NDArray[np.float64]
    scratch: NDArray[np.float64]
    cusum: NDArray[np.float64]
    cusum_start_s: NDArray[np.float64]
    force: NDArray[np.void]
    history: NDArray[np.float64]
    joins: NDArray[np.void]
    members: NDArray[np.int64]
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
        seen[STATISTIC], seen[THRESHOLD] = np.max(s.cusum[i]), rule.threshold
        seen[ENVELOPE], seen[LEVEL], seen[VETO] = np.sqrt(rule.envelope * noise_var), np.sqrt(_level(rule)), rule.veto
    for i in range(s.force.shape[0]):
        rule, seen = s.force[i], s.seen[n_emg_rules + i]
        _look_from(rule, look_from_s)
        _force_update(s, i, force, force_t_s, hold_until_s)
        seen[ACTIVE], seen[ONSET_S], seen[DECIDED_S], seen[QUALITY] = rule.active, rule.onset_s, rule.decided_s, rule.quality
        seen[STATISTIC], seen[THRESHOLD], seen[ENVELOPE] = rule.smooth - rule.baseline, rule.threshold, rule.rate
        seen[LEVEL], seen[VETO] = _level(rule), NO_VETO
    n_rules = n_emg_rules + s.force.shape[0]
    for i in range(s.joins.shape[0]):
        join, seen, first = s.joins[i], s.seen[n_rules + i], s.seen[s.members[i, 0]]
        joins.judge(join, s.members[i], s.emg, s.force)
        seen[ACTIVE], seen[ONSET_S], seen[DECIDED_S], seen[QUALITY] = join.active, join.onset_s, join.decided_s, join.quality
        seen[STATISTIC], seen[THRESHOLD] = join.n_active, join.needed
        # one muscle's through the whole of an event, or two looks could not be compared
        seen[ENVELOPE], seen[LEVEL], seen[VETO] = first[ENVELOPE], first[LEVEL], first[VETO]


@njit(cache=True, nogil=True)
def _emg_update(s, i, x_uv, t_s, hold_until_s):
    """Page's CUSUM on the log-likelihood ratio of rest and rest with a spasm, over all channels of one muscle."""
    # parts of the state by themselves: to hand on all of it at each sample would cost more than the work
    rule, columns, scale, cusum, start_s = s.emg[i], s.columns[i], s.scale[i], s.cusum[i], s.cusum_start_s[i]
    sos, z, zi, raw, slow, block_sum = s.sos[i], s.z[i], s.zi[i], s.raw[i], s.slow[i], s.block_sum[i]
    mix, past, mains, lag_sum, cross_sum = s.mix[i], s.past[i], s.mains[i], s.lag_sum[i], s.cross_sum[i]
    ar, precision, bias, gain, loss, u, e = s.ar[i], s.precision[i], s.bias[i], s.gain[i], s.loss[i], s.scratch[i, 2], s.scratch[i, 3]
    c = rule.n_channels
    for k in range(x_uv.shape[0]):
        now, x = t_s[k], x_uv[k]
        rule.bad = max(0, rule.bad - 1)  # counted in samples, not by the stamps, which may be what is wrong
        if abs(now - rule.last_s) > rule.gap_s and rule.last_s > 0.0:
            rule.bad, rule.why_bad = rule.bad_samples, VETO_GAP
        rule.last_s = now
        swing = _raw(rule, c, columns, scale, raw, slow, x)
        if rule.bad > 0 or now <= hold_until_s:
            rule.held = 1
            rule.quality = QUALITY_BAD if rule.bad > 0 else QUALITY_HELD
            rule.veto = rule.why_bad if rule.bad > 0 else NO_VETO
            _hold(s, i, now)
            continue
        power = _high_pass(rule.held, c, columns, scale, sos, z, zi, block_sum, x, u)
        if rule.held:
            rule.held = 0
            continue
        _look(rule, now, power / c)
        energy = _components(rule, c, mix, past, mains, lag_sum, cross_sum, u)
        rule.envelope += rule.envelope_step * (energy - rule.envelope)
        _swings(rule, swing)
        if rule.in_block >= rule.block_samples:
            # blocks of a spasm teach nothing about the noise, unless it lasts so long that it must be the new rest
            if not rule.active or rule.active_samples > rule.adopt_samples:
                noise.learn(s, i)
            _new_block(s, i)
        if rule.blocks < rule.min_blocks:
            rule.quality = QUALITY_LEARNING
            continue
        rule.quality = QUALITY_OK

        _evidence(c, rule.at, past, ar, precision, bias, gain, loss, e)
        hit = -1
        for r in range(N_STATISTICS):
            cusum[r] = min(cusum[r] + e[r], 2.0 * rule.threshold)
            if cusum[r] <= 0.0:
                cusum[r] = 0.0
                start_s[r] = now
            elif cusum[r] >= rule.threshold and hit < 0:
                hit = r
        rule.veto = _veto(rule, hit >= 0, energy)
        if not rule.active:
            if hit >= 0 and rule.veto == NO_VETO:
                rule.active = 1
                rule.below = 0
                rule.active_samples = 0
                rule.onset_s = start_s[hit]
                rule.decided_s = now
        else:
            rule.active_samples += 1
            rule.below = rule.below + 1 if rule.envelope < rule.off_power else 0
            if rule.below >= rule.off_samples:
                rule.active = 0
                rule.unrest = 1
                rule.offset_s = now
                cusum[:] = 0.0
                start_s[:] = now
                rule.loud = 0.0


@njit(cache=True, nogil=True)
def _raw(rule, c, columns, scale, raw, slow, x):
    """Look at the samples as they come: no number, beyond all EMG, unchanged for too long; returns the slow swing, in sigma of rest."""
    swing = 0.0
    for ch in range(c):
        y = x[columns[ch]]
        if not abs(y) < MAX_UV:  # NaN too
            rule.bad, rule.why_bad = rule.bad_samples, VETO_VALUE
            continue
        raw[ch, 1] = raw[ch, 1] + 1.0 if y == raw[ch, 0] else 0.0
        raw[ch, 0] = y
        if raw[ch, 1] >= rule.flat_samples:
            rule.bad, rule.why_bad = rule.bad_samples, VETO_FLAT
        if rule.held:
            slow[ch] = y  # what comes after starts from where it is
            continue
        slow[ch, 0] += rule.slow_step * (y - slow[ch, 0])
        slow[ch, 1] += rule.lf_step * (y - slow[ch, 1])
        slow[ch, 2] += rule.lf_step * (slow[ch, 1] - slow[ch, 2])
        swing = max(swing, abs(slow[ch, 2] - slow[ch, 0]) * scale[ch])
    if rule.intent_column >= 0:
        rule.intent = rule.intent_samples if abs(x[rule.intent_column]) >= rule.intent_uv else max(0, rule.intent - 1)
    return swing


@njit(cache=True, nogil=True)
def _high_pass(held, c, columns, scale, sos, z, zi, block_sum, x, u):
    """High-passed channels, divided by rest, into `u`; returns the sum of their squares in µV². After a hold it starts from rest."""
    power = 0.0
    for ch in range(c):
        y = x[columns[ch]]
        for q in range(sos.shape[0]):
            if held:
                z[q, ch, 0], z[q, ch, 1] = zi[q, 0] * y, zi[q, 1] * y
            w = y
            y = sos[q, 0] * w + z[q, ch, 0]
            z[q, ch, 0] = sos[q, 1] * w - sos[q, 4] * y + z[q, ch, 1]
            z[q, ch, 1] = sos[q, 2] * w - sos[q, 5] * y
        power += y * y
        block_sum[ch] += y * y
        u[ch] = y * scale[ch]
    return power


@njit(cache=True, nogil=True)
def _components(rule, c, mix, past, mains, lag_sum, cross_sum, u):
    """Independent components into `past`, their sums for the block, what repeats with the mains; returns the mean square of `u`."""
    at, w, energy, left, whole = rule.at, rule.mains_at, 0.0, 0.0, 0.0
    newest = at + LAGS
    for m in range(c):
        v = 0.0
        for ch in range(c):
            v += mix[m, ch] * u[ch]
        past[m, at] = past[m, newest] = v
        before, now = mains[w, m], u[m]
        energy += now * now
        left += (now - before) * (now - before)
        whole += now * now + before * before
        mains[w, m] = now
    m = rule.block % c  # one component a block tells of the spectrum that all share; all its samples, or no model could be made of it
    for j in range(LAGS):
        lag_sum[j] += past[m, newest] * past[m, newest - j]
    if rule.in_block % noise.SPARSE == 0:
        for m in range(c):
            for k in range(c):
                cross_sum[m, k] += past[m, newest] * past[k, newest]
    rule.in_block += 1
    rule.at = at + 1 if at + 1 < LAGS else 0
    rule.mains_at = w + 1 if w + 1 < rule.mains_samples else 0
    rule.mains_left += rule.mains_step * (left - rule.mains_left)
    rule.mains_all += rule.mains_step * (whole - rule.mains_all)
    return energy / c


@njit(cache=True, nogil=True)
def _evidence(c, first, past, ar, precision, bias, gain, loss, e):
    """Log-likelihood ratio of the newest sample under each design, into `e`; `first` is where the oldest of the last `LAGS` stands.

    Four designs with the spasm's spectrum, and four with rest's own, only louder: a spasm need not look as it was thought to. All by
    name, so that they lie in registers.
    """
    e0 = e1 = e2 = e3 = e4 = e5 = e6 = e7 = 0.0
    for m in range(c):
        y = a = b = d = f = g = 0.0
        for j in range(LAGS):
            y = past[m, first + j]
            a += ar[m, j, 0] * y
            b += ar[m, j, 1] * y
            d += ar[m, j, 2] * y
            f += ar[m, j, 3] * y
            g += ar[m, j, 4] * y
        louder = a * a * precision[m, 0]
        rest = louder + bias[m, 0]
        e0 += min(rest - b * b * precision[m, 1] - bias[m, 1], CAP_NATS)
        e1 += min(rest - d * d * precision[m, 2] - bias[m, 2], CAP_NATS)
        e2 += min(rest - f * f * precision[m, 3] - bias[m, 3], CAP_NATS)
        e3 += min(rest - g * g * precision[m, 4] - bias[m, 4], CAP_NATS)
        e4 += min(louder * gain[0] - loss[0], CAP_NATS)
        e5 += min(louder * gain[1] - loss[1], CAP_NATS)
        e6 += min(louder * gain[2] - loss[2], CAP_NATS)
        e7 += min(louder * gain[3] - loss[3], CAP_NATS)
    e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7] = e0, e1, e2, e3, e4, e5, e6, e7


@njit(cache=True, nogil=True)
def _swings(rule, swing):
    """Count down a motion; one that comes at the pace of a heart, three times, is one."""
    rule.since_swing += 1
    if swing > LF_RATIO and swing * swing > rule.fast:
        if rule.motion == 0:
            gap = rule.since_swing
            regular = abs(gap - rule.swing_gap) < 0.15 * rule.swing_gap
            rule.beats = rule.beats + 1 if regular else 0
            rule.swing_gap, rule.since_swing, rule.peak = gap, 0, 0.0
        rule.motion = 2 * rule.motion_samples
        rule.peak = max(rule.peak, swing * swing)
    elif rule.motion > 0:
        rule.motion = 0 if rule.fast > rule.peak else rule.motion - 1  # a muscle that drowns the swing was its cause


@njit(cache=True, nogil=True)
def _veto(rule, hit, energy):
    """Why what was found is not taken for a spasm (yet); `energy` of the newest sample, in rest's."""
    rule.loud = min(
        max(rule.loud + (LOUD_NATS if energy > 1.0 + LOUD * np.sqrt(2.0 / rule.n_channels) else SOFT_NATS), 0.0), LOUD_CAP * rule.sure
    )
    rule.loud_run = rule.loud_run + 1 if rule.loud >= rule.sure else 0
    rule.fast += rule.fast_step * (energy - rule.fast)
    rule.fallen = rule.fallen + 1 if rule.fast < rule.rise_low else 0
    if rule.rise == RISE_UNKNOWN and rule.rising == 0 and rule.fallen > 0:
        pass  # at rest
    elif rule.fallen > rule.rise_samples:
        rule.rising, rule.rise = 0, RISE_UNKNOWN
    else:
        rule.rising += 1
        if rule.rise == RISE_UNKNOWN and rule.fast >= rule.rise_high:
            rule.rise = RISE_ABRUPT
        elif rule.rise == RISE_UNKNOWN and rule.rising >= rule.rise_samples:
            rule.rise = RISE_SLOW
    # what is over and yet no rest may be a louder amplifier: until it is learnt, only what would not be over counts
    rule.rested = rule.rested + 1 if rule.envelope < REST_POWER else 0
    if rule.rested >= rule.off_samples:
        rule.unrest = 0
    if not hit:
        return NO_VETO
    if rule.unrest and rule.envelope < UNREST * rule.off_power:
        return VETO_UNREST
    if rule.intent > 0:
        return VETO_INTENT
    if rule.motion > 0 and rule.loud_run < rule.motion_samples:
        return VETO_ECG if rule.beats >= 2 else VETO_MOTION
    if rule.mains_left < MAINS_RATIO * rule.mains_all:
        return VETO_MAINS
    if rule.loud_run < rule.sure_samples:
        return VETO_BRIEF
    if rule.rise_samples > 0 and rule.rise != RISE_ABRUPT:
        return VETO_SLOW
    return NO_VETO


@njit(cache=True, nogil=True)
def _hold(s, i, now):
    """Nothing was seen; what an active rule waits for begins anew."""
    rule = s.emg[i]
    if rule.active or rule.bad > 0:
        s.cusum[i, :] = 0.0
        s.cusum_start_s[i, :] = now
        rule.loud = 0.0
        rule.loud_run = 0
        rule.envelope = 0.0
    rule.below = 0
    s.past[i, :] = 0.0
    _new_block(s, i)
    _look_anew(rule)


@njit(cache=True, nogil=True)
def _new_block(s, i):
    s.block_sum[i, :] = 0.0
    s.lag_sum[i, :] = 0.0
    s.cross_sum[i, :] = 0.0
    s.emg[i].in_block = 0


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
                    joins.crossed(s.joins, s.members, s.emg, s.emg.shape[0] + i, now)
        else:
            rule.below = rule.below + 1 if above < 0.5 * rule.threshold else 0
            if rule.below >= rule.off_samples:
                rule.active = 0
                rule.offset_s = now
