"""What rest looks like, and how a spasm would differ: the models that the likelihood ratio of `kernels` is made of.

Rest is Gaussian, with a spectrum (common to the channels of a muscle) and with power that channels may share. Blocks of `BLOCK_S` are its
memory. Its scale is the mean of those blocks that are no stronger than `QUIET_RATIO` times a low quantile of all: a spasm or a slow rise
does not get in, a louder amplifier does as soon as its blocks are the most. Its spectrum and what channels share are exponential means over
such blocks. Channels are turned into independent components of variance 1, so that noise which several hear counts once; and for each
component there are autoregressive models, one of rest and one for each design ratio of a spasm on top (Levinson 1947, Durbin 1960).

`@njit` functions that fill arrays of a `DetectorState` in place; run every `MODEL_BLOCKS` blocks.
"""

from __future__ import annotations

import numpy as np
from numba import njit

MODEL_BLOCKS = 10  # blocks between two makings of the models: 0.5 s
NOISE_QUANTILE = 0.3
RESIDUAL_STEP, RESIDUAL_SHARE = 0.05, 0.9  # a second of blocks; the measured figure has an error of some per cent
RECENT_BLOCKS = 40  # 2 s: rest that became louder is believed sooner than rest that became quieter
QUIET_RATIO = 2.0  # a block of 50 ms and 400 Hz has 40 degrees of freedom: twice its mean is four and a half standard deviations
SPARSE = 4  # one sample in so many tells what channels share: its neighbours say the same
FLOOR = 1e-3  # white noise that is added to each spectrum, of its power: rest has no line so pure that it could be predicted away
LEAST_VAR = 1e-12  # µV²
NO_SHARE = 0.1  # correlation that is not told from none: channels which share less are left as they are


@njit(cache=True, nogil=True)
def learn(s, i):
    """Take the block that has just ended into the memory of rule `i`."""
    rule, c = s.emg[i], s.emg[i].n_channels
    n, n_sparse = rule.block_samples, (rule.block_samples + SPARSE - 1) // SPARSE
    for ch in range(c):
        s.noise_blocks[i, rule.block, ch] = s.block_sum[i, ch] / n
    quiet = rule.modelled > 0
    for ch in range(c):
        quiet = quiet and s.noise_blocks[i, rule.block, ch] <= QUIET_RATIO * s.noise_var[i, ch]
    if quiet:
        rule.shapes = min(rule.shapes + 1, rule.n_blocks)
        step = 1.0 / rule.shapes
        for j in range(s.lag.shape[1]):
            s.lag[i, j] += step * (s.lag_sum[i, j] / n - s.lag[i, j])
        level = 0.0
        for ch in range(c):
            level += s.noise_blocks[i, rule.block, ch] * s.scale[i, ch] ** 2
        rule.level += step * (level / c - rule.level)
        if rule.n_innovations > 0:
            rule.residual += max(step, RESIDUAL_STEP) * (rule.innovations / rule.n_innovations - rule.residual)
        for a in range(c):
            for b in range(c):
                s.cross[i, a, b] += step * (s.cross_sum[i, max(a, b), min(a, b)] / n_sparse - s.cross[i, a, b])
    rule.block = (rule.block + 1) % rule.n_blocks
    rule.blocks = min(rule.blocks + 1, rule.n_blocks)
    rule.since_model += 1
    # the scale after half of the first learning, so that the other half learns the shape in its units
    if rule.since_model >= MODEL_BLOCKS or rule.blocks == rule.min_blocks // 2 or rule.blocks == rule.min_blocks:
        rule.since_model = 0
        model(s, i)


@njit(cache=True, nogil=True)
def model(s, i):
    """Scale, components and autoregressive models of rule `i` from what was learnt."""
    rule, c = s.emg[i], s.emg[i].n_channels
    recent = np.empty(min(RECENT_BLOCKS, rule.blocks))
    if not rule.frozen:
        for ch in range(c):
            blocks = s.noise_blocks[i, : rule.blocks, ch]
            for b in range(recent.size):
                recent[b] = blocks[(rule.block - 1 - b) % rule.blocks]
            s.noise_var[i, ch] = max(_rest_var(blocks), _rest_var(recent), rule.floor_var, LEAST_VAR)
            s.scale[i, ch] = 1.0 / np.sqrt(s.noise_var[i, ch])
    if rule.modelled == 0:  # what is past has no scale yet
        s.past[i, :] = 0.0
    rule.modelled += 1
    if s.classical[i].method:
        return
    if rule.shapes > 0 and c > 1:
        _separate(s, i)
    for m in range(c):
        share = 0.0
        for ch in range(c):
            share += s.mix[i, m, ch] ** 2
        err = _autoregress(s, i, m, -1, 0.0, 1.0)
        # seams leave lags that no spectrum has: what was really left unpredicted tells when rest is less well known than it seems
        worse = max(1.0, RESIDUAL_SHARE * rule.residual / err)
        if worse > 1.0:
            _autoregress(s, i, m, -1, 0.0, worse)
        for r in range(s.ratio.shape[1]):
            _autoregress(s, i, m, r, s.ratio[i, r] * share, worse)


@njit(cache=True, nogil=True)
def _rest_var(blocks):
    """Mean of the quiet ones."""
    most = QUIET_RATIO * np.sort(blocks)[int(NOISE_QUANTILE * (blocks.size - 1))]
    total, n = 0.0, 0
    for value in blocks:
        if value <= most:
            total += value
            n += 1
    return total / n


@njit(cache=True, nogil=True)
def _separate(s, i):
    """Turn the components until none shares power with another: one sweep of Jacobi rotations, then each gets variance 1 again.

    What is to be turned is nearly diagonal, since the components are those of the last time.
    """
    c, cross, mix, past = s.emg[i].n_channels, s.cross[i], s.mix[i], s.past[i]
    for a in range(c):
        for b in range(a + 1, c):
            ab = cross[a, b]
            if abs(ab) <= NO_SHARE * np.sqrt(cross[a, a] * cross[b, b]):
                continue
            angle = 0.5 * np.arctan2(2.0 * ab, cross[a, a] - cross[b, b])
            cos, sin = np.cos(angle), np.sin(angle)
            _rotate(cross, a, b, cos, sin)
            _rotate(cross.T, a, b, cos, sin)
            _rotate(mix, a, b, cos, sin)
            _rotate(past, a, b, cos, sin)
    mean = s.emg[i].level  # of the channels in the same blocks: what all have in common is no component's
    for m in range(c):
        scale = np.sqrt(mean / cross[m, m]) if cross[m, m] > 0.0 else 1.0
        for k in range(c):
            mix[m, k] *= scale
            cross[m, k] *= scale
        for k in range(c):
            cross[k, m] *= scale
        for k in range(past.shape[1]):
            past[m, k] *= scale


@njit(cache=True, nogil=True)
def _rotate(x, a, b, cos, sin):
    """Rows a and b of `x`, turned into each other."""
    for k in range(x.shape[1]):
        p, q = x[a, k], x[b, k]
        x[a, k] = cos * p + sin * q
        x[b, k] = cos * q - sin * p


@njit(cache=True, nogil=True)
def _autoregress(s, i, m, design, gain, worse):
    """Predictor and residual's variance of component `m` with a spasm of `gain` times rest's power on top, by the Levinson recursion.

    The residual is taken for `worse` times as large as the recursion says; returned is what it says.
    """
    lag, spasm = s.lag[i], s.spasm_lag[i]
    order = lag.size - 1
    taps, spare = s.scratch[i, 0], s.scratch[i, 1]
    at = design + 1
    rest = 1.0 / lag[0] if lag[0] > 0.0 else 1.0
    err = 1.0 + gain
    least = FLOOR * err
    err += least
    taps[:] = 0.0
    for k in range(1, order + 1):
        acc = lag[k] * rest + gain * spasm[k]
        for j in range(1, k):
            acc -= taps[j] * (lag[k - j] * rest + gain * spasm[k - j])
        ref = acc / err
        if abs(ref) >= 1.0 or err * (1.0 - ref * ref) <= least:  # no spectrum has these lags: what is surely known is what came before
            break
        for j in range(1, k):
            spare[j] = taps[j] - ref * taps[k - j]
        for j in range(1, k):
            taps[j] = spare[j]
        taps[k] = ref
        err *= 1.0 - ref * ref
    # the newest sample stands last in `past`
    s.ar[i, m, order, at] = 1.0
    for k in range(1, order + 1):
        s.ar[i, m, order - k, at] = -taps[k]
    s.precision[i, m, at] = 0.5 / (worse * err)
    s.bias[i, m, at] = 0.5 * np.log(worse * err)
    return err
