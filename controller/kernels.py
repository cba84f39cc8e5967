"""Numeric kernels: arrays in, arrays filled in place, one sample at a time, so that the block size can never matter.

`@njit` functions only. They allocate nothing and never look at a clock. Each must be called once before arming (compiling takes seconds,
the first call of a cached one 20-40 ms: `SpasmDetector.warm_up`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

# --- EMG: indices into the state vectors ------------------------------------------------------------------------------------------
F_ENVELOPE, F_ONSET_S, F_DECIDED_S, F_OFFSET_S, F_LAST_S = range(5)
N_EMG_FLOATS = 5
I_ACTIVE, I_BELOW, I_IN_BLOCK, I_BLOCK, I_BLOCKS, I_HELD, I_ACTIVE_SAMPLES, I_QUALITY, I_BAD = range(9)
N_EMG_INTS = 9

QUALITY_OK, QUALITY_LEARNING, QUALITY_HELD, QUALITY_BAD = range(4)

# lower quantile of the block energies, and what it falls short of the mean by for Gaussian noise of about 80 degrees of freedom a block
NOISE_QUANTILE = 0.3
NOISE_CORRECTION = 1.09
CAP_NATS = 6.0  # one sample adds at most this (detection notes, section 7); a large outlier still rings through the filter for several
MAX_UV = 1e6  # 1 V is no EMG: such a sample is as bad as NaN, and would fill the filters for good


@njit(cache=True, nogil=True)
def emg_update(
    x_uv,
    t_s,
    hold_until_s,
    sos,
    z,
    noise_blocks,
    block_sum,
    noise_var,
    gain,
    bias,
    cusum,
    cusum_start_s,
    floats,
    ints,
    block_samples,
    min_blocks,
    threshold,
    floor_var,
    envelope_step,
    off_power,
    off_samples,
    adopt_samples,
    bad_samples,
    gap_s,
):
    """Pooled CUSUM on the energy log-likelihood ratio of the channels of one muscle.

    Allocates nothing but a sorted copy of the noise blocks once a block; filled in place: everything from `z` to `ints`.

    Parameters
    ----------
    x_uv : (n, c) float64, µV
    t_s : (n,) float64, s
    hold_until_s : float
        Samples up to this time carry stimulation: filters run, everything else is frozen.
    sos : (k, 6) float64, z : (k, c, 2) float64
        High-pass sections and their memory.
    noise_blocks : (m, c) float64, block_sum : (c,), noise_var : (c,) float64, µV²
        Mean squares of the last blocks, the one being filled, the noise model.
    gain, bias : (r,) float64
        Per design ratio R: 0.5 (1 - 1/R) and 0.5 ln R, so that a sample's ratio is gain x²/σ² - bias.
    cusum, cusum_start_s : (r,) float64
        Page's statistic and when it last left zero (the estimate of the onset).
    """
    n, c = x_uv.shape
    for k in range(n):
        now = t_s[k]
        # counted in samples, not by the stamps, which may be what is wrong
        ints[I_BAD] = max(0, ints[I_BAD] - 1)
        if abs(now - floats[F_LAST_S]) > gap_s and floats[F_LAST_S] > 0.0:
            ints[I_BAD] = bad_samples
        floats[F_LAST_S] = now
        energy = 0.0
        for ch in range(c):
            y = x_uv[k, ch]
            if not abs(y) < MAX_UV:  # NaN too
                y = 0.0
                ints[I_BAD] = bad_samples
            for s in range(sos.shape[0]):
                w = y
                y = sos[s, 0] * w + z[s, ch, 0]
                z[s, ch, 0] = sos[s, 1] * w - sos[s, 4] * y + z[s, ch, 1]
                z[s, ch, 1] = sos[s, 2] * w - sos[s, 5] * y
            block_sum[ch] += y * y
            u = y * y / max(noise_var[ch], floor_var)
            energy += u
            if ints[I_BLOCKS] >= min_blocks:
                for r in range(gain.shape[0]):
                    cusum[r] += min(gain[r] * u - bias[r], CAP_NATS)
        ints[I_IN_BLOCK] += 1

        bad = ints[I_BAD] > 0
        if bad or now <= hold_until_s:
            ints[I_HELD] = 1
            ints[I_QUALITY] = QUALITY_BAD if bad else QUALITY_HELD
            _forget(cusum, cusum_start_s, block_sum, floats, ints, now)
            continue
        if ints[I_HELD]:
            ints[I_HELD] = 0
            _forget(cusum, cusum_start_s, block_sum, floats, ints, now)
            continue
        floats[F_ENVELOPE] += envelope_step * (energy / c - floats[F_ENVELOPE])

        if ints[I_IN_BLOCK] >= block_samples:
            # blocks of a spasm teach nothing about the noise, unless it lasts so long that it must be the new rest
            if not ints[I_ACTIVE] or ints[I_ACTIVE_SAMPLES] > adopt_samples:
                _learn(noise_blocks, block_sum, noise_var, ints, block_samples)
            block_sum[:] = 0.0
            ints[I_IN_BLOCK] = 0
        if ints[I_BLOCKS] < min_blocks:
            ints[I_QUALITY] = QUALITY_LEARNING
            continue
        ints[I_QUALITY] = QUALITY_OK

        hit = -1
        for r in range(gain.shape[0]):
            if cusum[r] <= 0.0:
                cusum[r] = 0.0
                cusum_start_s[r] = now
            elif cusum[r] >= threshold and hit < 0:
                hit = r
        if not ints[I_ACTIVE]:
            if hit >= 0:
                ints[I_ACTIVE] = 1
                ints[I_BELOW] = 0
                ints[I_ACTIVE_SAMPLES] = 0
                floats[F_ONSET_S] = cusum_start_s[hit]
                floats[F_DECIDED_S] = now
        else:
            ints[I_ACTIVE_SAMPLES] += 1
            ints[I_BELOW] = ints[I_BELOW] + 1 if floats[F_ENVELOPE] < off_power else 0
            if ints[I_BELOW] >= off_samples:
                ints[I_ACTIVE] = 0
                floats[F_OFFSET_S] = now
                cusum[:] = 0.0
                cusum_start_s[:] = now
        for r in range(gain.shape[0]):
            cusum[r] = min(cusum[r], 2.0 * threshold)


@njit(cache=True, nogil=True)
def _forget(cusum, cusum_start_s, block_sum, floats, ints, now):
    cusum[:] = 0.0
    cusum_start_s[:] = now
    block_sum[:] = 0.0
    ints[I_IN_BLOCK] = 0
    ints[I_BELOW] = 0
    floats[F_ENVELOPE] = 0.0


@njit(cache=True, nogil=True)
def _learn(noise_blocks, block_sum, noise_var, ints, block_samples):
    m = noise_blocks.shape[0]
    at = ints[I_BLOCK]
    for ch in range(block_sum.shape[0]):
        noise_blocks[at, ch] = block_sum[ch] / block_samples
    ints[I_BLOCK] = (at + 1) % m
    ints[I_BLOCKS] = min(ints[I_BLOCKS] + 1, m)
    filled = ints[I_BLOCKS]
    for ch in range(block_sum.shape[0]):
        ordered = np.sort(noise_blocks[:filled, ch])
        noise_var[ch] = ordered[int(NOISE_QUANTILE * (filled - 1))] * NOISE_CORRECTION


# --- force ------------------------------------------------------------------------------------------------------------------------
G_BASELINE, G_SMOOTH, G_RATE, G_ONSET_S, G_DECIDED_S, G_OFFSET_S, G_LAST_S = range(7)
N_FORCE_FLOATS = 7
J_ACTIVE, J_BELOW, J_AT, J_SEEN, J_QUALITY = range(5)
N_FORCE_INTS = 5


@njit(cache=True, nogil=True)
def force_update(
    f,
    t_s,
    hold_until_s,
    history,
    floats,
    ints,
    smooth_step,
    baseline_step,
    learn_samples,
    threshold,
    rate,
    sample_rate_hz,
    off_samples,
    gap_s,
):
    """Force above its running baseline and rising fast.

    Allocates nothing; filled in place: `history` (the last 20 ms, smoothed), `floats`, `ints`.

    Parameters
    ----------
    f : (n,) float64, in the settings' unit
    t_s : (n,) float64, s
    """
    span = history.shape[0]
    for k in range(f.shape[0]):
        now, y = t_s[k], f[k]
        if not np.isfinite(y) or (abs(now - floats[G_LAST_S]) > gap_s and floats[G_LAST_S] > 0.0):
            ints[J_SEEN] = 0  # start over: the baseline is unknown again
        floats[G_LAST_S] = now
        if not np.isfinite(y):
            ints[J_QUALITY] = QUALITY_BAD
            continue
        if ints[J_SEEN] == 0:
            floats[G_SMOOTH] = floats[G_BASELINE] = y
            history[:] = y
            ints[J_ACTIVE] = 0
        ints[J_SEEN] += 1
        floats[G_SMOOTH] += smooth_step * (y - floats[G_SMOOTH])
        smooth = floats[G_SMOOTH]
        floats[G_RATE] = (smooth - history[ints[J_AT]]) * sample_rate_hz / span
        history[ints[J_AT]] = smooth
        ints[J_AT] = (ints[J_AT] + 1) % span
        held = now <= hold_until_s
        if ints[J_SEEN] < learn_samples:
            floats[G_BASELINE] += (y - floats[G_BASELINE]) / ints[J_SEEN]
            ints[J_QUALITY] = QUALITY_LEARNING
            continue
        ints[J_QUALITY] = QUALITY_HELD if held else QUALITY_OK
        above = smooth - floats[G_BASELINE]
        if not ints[J_ACTIVE]:
            if not held:
                floats[G_BASELINE] += baseline_step * (y - floats[G_BASELINE])
                if above > threshold and floats[G_RATE] > rate:
                    ints[J_ACTIVE] = 1
                    ints[J_BELOW] = 0
                    floats[G_ONSET_S] = floats[G_DECIDED_S] = now
        else:
            ints[J_BELOW] = ints[J_BELOW] + 1 if above < 0.5 * threshold else 0
            if ints[J_BELOW] >= off_samples:
                ints[J_ACTIVE] = 0
                floats[G_OFFSET_S] = now
