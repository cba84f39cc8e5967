"""Numeric kernels of the detector: arrays in, arrays filled in place, one sample at a time, so that the block size can never matter.

`@njit` functions and the state they work on. They allocate nothing (but a sorted copy of the noise once a block) and never look at a clock.
All rules of a bed share one `DetectorState`, whatever their number, so that there is one signature to compile: rules lie along the first
axis, shorter ones leave the end of theirs unused. Scalars of a rule are a record (`rule.envelope`), read and written by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from controller import artefact, classical, joins, noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUALITY_OK, QUALITY_LEARNING, QUALITY_HELD, QUALITY_BAD = range(4)

# What a rule says after each step, a row of `DetectorState.seen`. LEVEL is how strong its muscle was in the look after the last train:
# EMG: pooled root mean square in µV, high-passed; force: mean height above the baseline; NaN until the whole look was seen. VETO is why it
# says nothing although there is evidence, or why there can be none.
ACTIVE, ONSET_S, DECIDED_S, STATISTIC, THRESHOLD, ENVELOPE, QUALITY, LEVEL, VETO = range(9)
N_SEEN = 9
(
    NO_VETO,
    VETO_GAP,
    VETO_VALUE,
    VETO_FLAT,
    VETO_MOTION,
    VETO_ECG,
    VETO_MAINS,
    VETO_BRIEF,
    VETO_SLOW,
    VETO_INTENT,
    VETO_UNREST,
    VETO_LOUDER,
) = range(12)
RISE_UNKNOWN, RISE_ABRUPT, RISE_SLOW = range(3)

JOLT = 3.0  # a raw signal that has moved by so many times rest within some milliseconds may be a step or a spike
OVER_NATS = 1.0  # above its threshold a statistic goes no further: a spike would be evidence for long after
CAP_NATS = 6.0  # one sample of one channel adds at most this (detection notes, section 7)
MAX_UV = artefact.MAX_UV
MAX_FORCE = 1e5  # N or N m: no person's
# a converter at its ends: so many samples in a row have one of two values that are this many times rest apart; known before it looks long
RAIL_SAMPLES, RAIL_RATIO = 3, 20.0
HELD_LONG, HELD_SHORTLY = 1, 2  # a rule's `held`: all begins anew; or filters alone do, since a pulse of ours was left out
LAGS = 13  # of the autoregressive models, the present one with it: order 12 (detection notes, section 7)
MAX_DESIGNS = 4
# Beside the statistics of the designs: whether a spasm (above 0) or rest that is merely louder explains better what is heard; and one of
# much louder rest, since a spasm need not look as it was thought to.
LOUDER, MUCH_LOUDER = MAX_DESIGNS, MAX_DESIGNS + 1
N_STATISTICS = MAX_DESIGNS + 2
LOUDER_LEAST, LOUDER_MOST = -6.0, 3.0  # nats: how sure of the one or the other it may become
MUCH_POWER = 6.0  # in rest's power: what is stronger is no amplifier's drift, whatever its spectrum
# A share of the samples above 1.7 sigma: a tenth of rest's, a third and more of a spasm's. Their log ratios; a spike has too few of them.
LOUD, LOUD_NATS, SOFT_NATS, LOUD_CAP = 1.25, 1.25, -0.325, 1.4
LOUD_SHARE = 1 / 6  # of the loudest just before: what the high-pass makes of a single sample is below that from the third one on
LF_RATIO = 6.0  # slow swings beyond this many times rest, and stronger than the EMG, are motion or a heart
REST_POWER, UNREST = 1.5, 2.0  # an envelope below this, in rest's power, is rest; what counts before that, in `off_power`
MAINS_RATIO = 0.5  # what is left of mains after the period before is taken away, of twice its power; of EMG all is left

# of both kinds of rules: samples of a look; how many were seen, their sum, the stamp that they must be above
_LOOK = [("look_samples", np.int64), ("looked", np.int64), ("look_sum", np.float64), ("look_from_s", np.float64)]
EMG_RULE = np.dtype(
    [
        # settings
        *((name, np.int64) for name in ("n_channels", "n_blocks", "block_samples", "min_blocks", "frozen", "intent_column")),
        *((name, np.int64) for name in ("off_samples", "adopt_samples", "bad_samples", "flat_samples", "sure_samples", "motion_samples")),
        *((name, np.int64) for name in ("mains_samples", "intent_samples", "jolt_samples", "jolt_run")),
        *((name, np.float64) for name in ("threshold", "floor_var", "envelope_step", "off_power", "gap_s", "lf_step", "slow_step")),
        *((name, np.float64) for name in ("mains_step", "fast_step", "rise_s", "rise_high", "intent_uv")),
        # state
        *((name, np.int64) for name in ("active", "below", "in_block", "block", "blocks", "held", "busy_samples", "quality", "bad")),
        *(
            (name, np.int64)
            for name in ("modelled", "shapes", "since_model", "at", "loud_run", "sure_run", "motion", "beats", "mains_at", "veto")
        ),
        *(
            (name, np.int64)
            for name in ("rise", "unrest", "rested", "intent", "why_bad", "since_swing", "swing_gap", "jolt", "warm", "n_innovations")
        ),
        *((name, np.float64) for name in ("envelope", "onset_s", "decided_s", "offset_s", "last_s", "loud", "fast")),
        *(
            (name, np.float64)
            for name in (
                "mains_left",
                "mains_all",
                "sure",
                "long",
                "short",
                "peak",
                "rest_s",
                "level",
                "innovations",
                "residual",
                "loudest",
                "loudest_keep",
            )
        ),
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
    raw : (n_emg_rules, c, 3) float64
        The last raw sample, for how many samples it has not changed (but between two far values), and the value before it.
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
    ratio : (n_emg_rules, r) float64
        Design ratios D, in power.
    gain, loss : (n_emg_rules, 2) float64
        Of rest that is louder by 1 + D: 1 - 1 / (1 + D), and 0.5 ln(1 + D); D of the first design, and of `MUCH_LOUDER_DB`.
    scratch : (n_emg_rules, 5, w) float64
    cusum, cusum_start_s : (n_emg_rules, N_STATISTICS) float64
        Page's statistic and when it last left zero (the estimate of the onset).
    classical : (n_emg_rules,) classical.RULE; marks : (n_emg_rules, w) float64
        Of the classical methods: their records, and what each of the last samples adds to the statistic.
    force : (n_force_rules,) FORCE_RULE; history : (n_force_rules, h) float64
        The last 20 ms of force, smoothed.
    joins : (n_joins,) joins.JOIN; members : (n_joins, m) int64
        Rules that ask together, and their rows in `seen`.
    seen : (n_rules + n_joins, N_SEEN) float64
        What each rule sees now, and each join.
    own : artefact.OwnState
        Our own pulses in the EMG.
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
    classical: NDArray[np.void]
    marks: NDArray[np.float64]
    force: NDArray[np.void]
    history: NDArray[np.float64]
    joins: NDArray[np.void]
    members: NDArray[np.int64]
    seen: NDArray[np.float64]
    own: artefact.OwnState


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
    """What is ours is taken away; this costs nothing while there is none."""
    own = s.own
    rule, out = own.rule[i], own.clean[i]
    if rule.taken == own.heard[0] and rule.since >= rule.max_period:
        _listen(s, i, x_uv, t_s, hold_until_s, artefact.CLEAR)
        return
    for k in range(x_uv.shape[0]):
        code = artefact.clean(own, i, s.emg[i].n_channels, s.columns[i], s.scale[i], s.raw[i], x_uv[k], t_s[k])
        _listen(s, i, x_uv[k : k + 1] if code == artefact.CLEAR else out, t_s[k : k + 1], hold_until_s, code)


@njit(cache=True, nogil=True)
def _listen(s, i, x_uv, t_s, hold_until_s, code):
    """Page's CUSUM on the log-likelihood ratio of rest and rest with a spasm, over all channels of one muscle."""
    # parts of the state by themselves: to hand on all of it at each sample would cost more than the work
    # (records by themselves: in one tuple with arrays numba has given other results from run to run)
    rule = s.emg[i]
    classic = s.classical[i]
    c = rule.n_channels
    columns, scale, cusum, start_s, marks = s.columns[i], s.scale[i], s.cusum[i], s.cusum_start_s[i], s.marks[i]
    sos, z, zi, raw, slow, block_sum = s.sos[i], s.z[i], s.zi[i], s.raw[i], s.slow[i], s.block_sum[i]
    mix, past, mains, lag_sum, cross_sum = s.mix[i], s.past[i], s.mains[i], s.lag_sum[i], s.cross_sum[i]
    ar, precision, bias, gain, loss, u, e = s.ar[i], s.precision[i], s.bias[i], s.gain[i], s.loss[i], s.scratch[i, 2], s.scratch[i, 3]
    told, loud = rule.block // noise.MODEL_BLOCKS % c, 1.0 + LOUD * np.sqrt(2.0 / c)  # divisions that every sample would pay for
    for k in range(x_uv.shape[0]):
        now, x = t_s[k], x_uv[k]
        rule.bad = max(0, rule.bad - 1)  # counted in samples, not by the stamps, which may be what is wrong
        if not (abs(now - rule.last_s) <= rule.gap_s or rule.last_s == 0.0):  # no number is a gap
            rule.bad, rule.why_bad = rule.bad_samples, VETO_GAP
        rule.last_s = now
        swing = _raw(rule, c, columns, scale, raw, slow, x)
        if rule.bad > 0 or (now <= hold_until_s and code == artefact.CLEAR):
            rule.held = HELD_LONG
            rule.quality = QUALITY_BAD if rule.bad > 0 else QUALITY_HELD
            rule.veto = rule.why_bad if rule.bad > 0 else NO_VETO
            _hold(s, i, now)
            continue
        if code == artefact.HELD:
            rule.held, rule.quality, rule.warm = rule.held or HELD_SHORTLY, QUALITY_HELD, LAGS
            rule.jolt = rule.jolt_samples  # what is left of our own pulse is brief
            _pause(s, i)
            continue
        power = _high_pass(rule.held, rule.warm, c, columns, scale, sos, z, zi, block_sum, x, u)
        if rule.held:
            rule.held = 0
            continue
        if code == artefact.CLEAR:
            _look(rule, now, power / c)
        energy = _components(rule, c, told, classic.method, mix, past, mains, lag_sum, cross_sum, u)
        rule.envelope += rule.envelope_step * (energy - rule.envelope)
        _swings(rule, swing)
        if rule.warm > 0:  # predictors have not yet enough to predict from
            rule.warm -= 1
            continue
        if rule.in_block >= rule.block_samples:
            # blocks of a spasm, or of what the person does, teach nothing about rest, unless it lasts so long that it must be the new rest
            if rule.busy_samples == 0 or rule.below >= rule.block_samples or rule.busy_samples > rule.adopt_samples:
                noise.learn(s, i)
                if classic.method != classical.CUSUM and rule.since_model == 0:
                    classical.set_threshold(s, i)
            _new_block(s, i)
            told = rule.block // noise.MODEL_BLOCKS % c
        if rule.blocks < rule.min_blocks:
            rule.quality = QUALITY_LEARNING
            start_s[:] = now
            continue
        rule.quality = QUALITY_OK

        hit, spasm_nats = -1, 1.0
        if classic.method != classical.CUSUM:
            newest = rule.at + LAGS - 1
            if classical.hear(classic, c, rule.threshold, now, newest, energy, past, marks, cusum, start_s):
                hit = 0
            rule.rest_s = start_s[0]
        else:
            rule.innovations += _evidence(c, rule.at, past, ar, precision, bias, gain, loss, e)
            rule.n_innovations += 1
            hit = _cusum(rule.threshold, rule.envelope < MUCH_POWER, now, e, cusum, start_s)
            if np.max(cusum[:MAX_DESIGNS]) == 0.0:
                rule.rest_s = now
            spasm_nats = cusum[LOUDER]
        rule.veto = _veto(rule, now, hit, energy, loud, spasm_nats)
        busy = rule.active or rule.intent > 0 or (rule.rise_s > 0.0 and rule.rise == RISE_SLOW)
        rule.busy_samples = rule.busy_samples + 1 if busy else 0
        if not rule.active:
            if hit >= 0 and rule.veto == NO_VETO:
                rule.active = 1
                rule.below = 0
                rule.onset_s = start_s[hit]
                rule.decided_s = now
        else:
            rule.below = rule.below + 1 if rule.envelope < rule.off_power else 0
            if rule.below >= rule.off_samples:
                rule.active = 0
                rule.unrest = 1
                rule.offset_s = now
                cusum[:] = 0.0
                start_s[:] = now
                rule.loud = 0.0


@njit(cache=True, nogil=True, forceinline=True)
def _raw(rule, c, columns, scale, raw, slow, x):
    """Look at the samples as they come: no number, beyond all EMG, unchanged for too long; returns the slow swing, in sigma of rest."""
    swing, jolt, longest, held, slow_step, lf_step = 0.0, 0.0, 0.0, rule.held, rule.slow_step, rule.lf_step
    for ch in range(c):
        y = x[columns[ch]]
        if not abs(y) < MAX_UV:  # NaN too
            rule.bad, rule.why_bad = rule.bad_samples, VETO_VALUE
            continue
        last = raw[ch, 0]
        far = rule.modelled > 0 and abs(last - raw[ch, 2]) * scale[ch] > RAIL_RATIO
        unchanged = raw[ch, 1] + 1.0 if y == last or (far and y == raw[ch, 2]) else 0.0
        if y != last:
            raw[ch, 2] = last
        raw[ch, 0], raw[ch, 1] = y, unchanged
        longest = max(longest, unchanged)
        if far and unchanged >= RAIL_SAMPLES:
            longest = rule.flat_samples
        if held == HELD_LONG:
            slow[ch] = y  # what comes after starts from where it is
            continue
        slow[ch, 0] += slow_step * (y - slow[ch, 0])
        slow[ch, 1] += lf_step * (y - slow[ch, 1])
        slow[ch, 2] += lf_step * (slow[ch, 1] - slow[ch, 2])
        swing = max(swing, abs(slow[ch, 2] - slow[ch, 0]) * scale[ch])
        jolt = max(jolt, abs(slow[ch, 1] - slow[ch, 0]) * scale[ch])
    if jolt > JOLT:
        if rule.jolt == 0:
            rule.sure_run = 0  # what was before it says nothing about it
        rule.jolt = rule.jolt_samples
    elif rule.jolt > 0:
        rule.jolt -= 1
    if longest >= rule.flat_samples:
        rule.bad, rule.why_bad = rule.bad_samples, VETO_FLAT
    if rule.intent_column >= 0:
        rule.intent = rule.intent_samples if abs(x[rule.intent_column]) >= rule.intent_uv else max(0, rule.intent - 1)
    return swing


@njit(cache=True, nogil=True, forceinline=True)
def _high_pass(held, warm, c, columns, scale, sos, z, zi, block_sum, x, u):
    """High-passed channels, divided by rest, into `u`; returns the sum of their squares in µV². After a hold it starts from rest."""
    for ch in range(c):
        u[ch] = x[columns[ch]]
    for q in range(sos.shape[0]):
        b0, b1, b2, a1, a2 = sos[q, 0], sos[q, 1], sos[q, 2], sos[q, 4], sos[q, 5]
        for ch in range(c):
            w = u[ch]
            if held:
                z[q, ch, 0], z[q, ch, 1] = zi[q, 0] * w, zi[q, 1] * w
            y = b0 * w + z[q, ch, 0]
            z[q, ch, 0] = b1 * w - a1 * y + z[q, ch, 1]
            z[q, ch, 1] = b2 * w - a2 * y
            u[ch] = y
    power = 0.0
    for ch in range(c):
        y = u[ch]
        power += y * y
        if warm == 0:
            block_sum[ch] += y * y
        u[ch] = y * scale[ch]
    return power


@njit(cache=True, nogil=True, forceinline=True)
def _components(rule, c, told, method, mix, past, mains, lag_sum, cross_sum, u):
    """Independent components into `past`, their sums for the block, what repeats with the mains; returns the mean square of `u`."""
    at, w, energy, left, whole = rule.at, rule.mains_at, 0.0, 0.0, 0.0
    newest = at + LAGS
    for m in range(c):
        v = u[m]
        if method == classical.CUSUM:
            v = 0.0
            for ch in range(c):
                v += mix[m, ch] * u[ch]
        past[m, at] = past[m, newest] = v
        before, now = mains[w, m], u[m]
        energy += now * now
        left += (now - before) * (now - before)
        whole += now * now + before * before
        mains[w, m] = now
    rule.at = at + 1 if at + 1 < LAGS else 0
    rule.mains_at = w + 1 if w + 1 < rule.mains_samples else 0
    rule.mains_left += rule.mains_step * (left - rule.mains_left)
    rule.mains_all += rule.mains_step * (whole - rule.mains_all)
    if rule.warm > 0:  # there is no past yet to compare with
        return energy / c
    for j in range(LAGS):
        lag_sum[j] += past[told, newest] * past[told, newest - j]
    if rule.in_block % noise.SPARSE == 0:
        for m in range(c):
            for k in range(m + 1):
                cross_sum[m, k] += past[m, newest] * past[k, newest]
    rule.in_block += 1
    return energy / c


@njit(cache=True, nogil=True)
def _evidence(c, first, past, ar, precision, bias, gain, loss, e):
    """Log-likelihood ratios of the newest sample, into `e`; `first` is where the oldest of the last `LAGS` stands.

    All by name, so that they lie in registers.
    """
    e0 = e1 = e2 = e3 = e4 = e5 = innovations = 0.0
    for m in range(c):
        y = a = b = d = f = g = 0.0
        for j in range(LAGS):
            y = past[m, first + j]
            a += ar[m, j, 0] * y
            b += ar[m, j, 1] * y
            d += ar[m, j, 2] * y
            f += ar[m, j, 3] * y
            g += ar[m, j, 4] * y
        innovations += a * a
        louder = a * a * precision[m, 0]
        rest = louder + bias[m, 0]
        spasm = rest - b * b * precision[m, 1] - bias[m, 1]
        e0 += min(spasm, CAP_NATS)
        e1 += min(rest - d * d * precision[m, 2] - bias[m, 2], CAP_NATS)
        e2 += min(rest - f * f * precision[m, 3] - bias[m, 3], CAP_NATS)
        e3 += min(rest - g * g * precision[m, 4] - bias[m, 4], CAP_NATS)
        e4 += min(max(spasm - louder * gain[0] + loss[0], -CAP_NATS), CAP_NATS)
        e5 += min(louder * gain[1] - loss[1], CAP_NATS)
    e[0], e[1], e[2], e[3], e[4], e[5] = e0, e1, e2, e3, e4, e5
    return innovations / c


@njit(cache=True, nogil=True, forceinline=True)
def _cusum(threshold, weak, now, e, cusum, start_s):
    """Page's statistics (1954); returns the first that has passed the threshold, or -1."""
    hit = -1
    cusum[LOUDER] = min(max(cusum[LOUDER] + e[LOUDER], LOUDER_LEAST), LOUDER_MOST) if weak else LOUDER_MOST
    most = threshold + OVER_NATS if cusum[LOUDER] > 0.0 else 0.5 * threshold
    for r in range(N_STATISTICS):
        if r == LOUDER:
            continue
        cusum[r] = min(cusum[r] + e[r], most if r < LOUDER else threshold + OVER_NATS)
        if cusum[r] <= 0.0:
            cusum[r] = 0.0
            start_s[r] = now
        elif cusum[r] >= threshold and (hit < 0 or (hit < LOUDER and cusum[LOUDER] <= 0.0)):
            hit = r
    return hit


@njit(cache=True, nogil=True, forceinline=True)
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


@njit(cache=True, nogil=True, forceinline=True)
def _veto(rule, now, hit, energy, loud, spasm_nats):
    """Why what statistic `hit` found is not taken for a spasm (yet); `energy` of the newest sample, in rest's, is loud above `loud`."""
    rule.loud = min(max(rule.loud + (LOUD_NATS if energy > loud else SOFT_NATS), 0.0), LOUD_CAP * rule.long)
    rule.loud_run = rule.loud_run + 1 if rule.loud >= rule.long else 0
    # a spike rings lower and lower, a muscle does not
    rule.loudest = max(energy, rule.loudest * rule.loudest_keep)
    lasts = energy > max(loud, rule.loudest * LOUD_SHARE)
    rule.sure = min(max(rule.sure + (LOUD_NATS if lasts else SOFT_NATS), 0.0), LOUD_CAP * rule.short)
    rule.sure_run = rule.sure_run + 1 if rule.sure >= rule.short else 0
    rule.fast += rule.fast_step * (energy - rule.fast)
    if rule.rest_s == now:  # no design has any evidence
        rule.rise = RISE_UNKNOWN
    elif rule.rise == RISE_UNKNOWN:
        if now - rule.rest_s > rule.rise_s:
            rule.rise = RISE_SLOW
        elif rule.fast >= rule.rise_high:
            rule.rise = RISE_ABRUPT
    # what is over and yet no rest may be a louder amplifier: until it is learnt, only what would not be over counts
    rule.rested = rule.rested + 1 if rule.envelope < REST_POWER else 0
    if rule.rested >= rule.off_samples:
        rule.unrest = 0
    if hit < 0:
        return NO_VETO
    if rule.unrest and rule.envelope < UNREST * rule.off_power:
        return VETO_UNREST
    if rule.intent > 0:
        return VETO_INTENT
    if rule.motion > 0 and rule.loud_run < rule.motion_samples:
        return VETO_ECG if rule.beats >= 2 else VETO_MOTION
    if rule.mains_left < MAINS_RATIO * rule.mains_all:
        return VETO_MAINS
    if spasm_nats <= 0.0 if hit < LOUDER else rule.fast < MUCH_POWER:
        return VETO_LOUDER
    if rule.sure_run < (rule.jolt_run if rule.jolt > 0 or hit == MUCH_LOUDER else rule.sure_samples):
        return VETO_BRIEF
    if rule.rise_s > 0.0 and rule.rise != RISE_ABRUPT:
        return VETO_SLOW
    return NO_VETO


@njit(cache=True, nogil=True)
def _hold(s, i, now):
    """Nothing was seen; what an active rule waits for begins anew."""
    rule = s.emg[i]
    if rule.active or rule.bad > 0:
        s.cusum[i, :] = 0.0
        s.cusum_start_s[i, :] = now
        rule.loud = rule.sure = rule.loudest = 0.0
        rule.loud_run = rule.sure_run = 0
        rule.envelope = 0.0
        classical.forget(s, i)
    rule.below = 0
    rule.warm = LAGS
    s.past[i, :] = 0.0
    _new_block(s, i)
    _look_anew(rule)


@njit(cache=True, nogil=True)
def _pause(s, i):
    """A pulse of ours is left out: nothing begins anew but filters, predictors and the look."""
    rule = s.emg[i]
    s.past[i, :] = 0.0
    rule.mains_at = rule.mains_at + 1 if rule.mains_at + 1 < rule.mains_samples else 0  # the mains go on
    _look_anew(rule)


@njit(cache=True, nogil=True)
def _new_block(s, i):
    s.block_sum[i, :] = 0.0
    s.lag_sum[i, :] = 0.0
    s.cross_sum[i, :] = 0.0
    s.emg[i].in_block = s.emg[i].n_innovations = 0
    s.emg[i].innovations = 0.0


@njit(cache=True, nogil=True)
def _look_anew(rule):
    rule.looked = 0
    rule.look_sum = 0.0


@njit(cache=True, nogil=True)
def _look_from(rule, t_s):
    if t_s != rule.look_from_s:
        rule.look_from_s = t_s
        _look_anew(rule)


@njit(cache=True, nogil=True, forceinline=True)
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
        bad = not (abs(y) < MAX_FORCE and np.isfinite(now))
        if bad or not (abs(now - rule.last_s) <= rule.gap_s or rule.last_s == 0.0):
            rule.seen = 0  # start over: the baseline is unknown again
        rule.last_s = now
        if bad:
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
