"""Familiar rules beside the CUSUM, for comparison and for those who know them: the statistic of each, and its threshold.

All are of the high-passed channels divided by rest, averaged over the channels of a muscle, at each sample over the last `WINDOW_S`:

- `hodges_bui`: mean of the rectified signal, above the threshold for `HODGES_BUI_S` (Hodges & Bui 1996, Electroencephalogr Clin
  Neurophysiol 101:511, middle one of their windows; the moving mean is the low-pass as well);
- `bonato`: of the whitened power of pairs of samples, so many above a first threshold (Bonato et al. 1998, IEEE TBME 45:287);
- `tkeo`: mean of the Teager-Kaiser energy x[n]^2 - x[n-1] x[n+1] (Solnik et al. 2010, Eur J Appl Physiol 110:489);
- `rms_mad`: root mean square against median + k median absolute deviations of the blocks of rest.

No k is chosen: each threshold follows from how many false alarms Gaussian rest may have, with the autocovariance and the correlation
between channels that `noise` has learnt. The mean of a window is a gamma variable, shifted to have its first three cumulants (Hall 1983,
Buckley & Eagleson 1988; those of a quadratic form are traces, so sums over lags). Near a high level z it is a random walk that falls away
to both sides, so one excursion begins at a sample with probability density(z) z / window (Aldous 1989, Poisson clumping), times exp(-0.583
step) for what is between two independent samples (Siegmund 1985). Bonato's is binomial: the window gets its m-th at this pair.

`@njit` functions on a `DetectorState`; the models of `noise` are not used, only what it learnt. Nothing is allocated but when thresholds
are made, every half second.
"""

from __future__ import annotations

from math import exp, lgamma, log, sqrt

import numpy as np
from numba import njit

from controller import noise

CUSUM, HODGES_BUI, BONATO, TKEO, RMS_MAD = range(5)
METHODS = ("cusum", "hodges_bui", "bonato", "tkeo", "rms_mad")

WINDOW_S = 0.025
HODGES_BUI_S = 0.002
BONATO_SHARE = 0.4  # of the pairs of a window: m of n
ALIKE = 0.6  # as much as the powers of pairs is whether they exceed a level: simulated, 6 to 600 an hour, 1 and 4 channels
RECTIFIED_MEAN, RECTIFIED_VAR, RECTIFIED_SKEW = sqrt(2.0 / np.pi), 1.0 - 2.0 / np.pi, 0.9952717  # of |x|, x of variance 1
MAD_TO_STD = 1.4826  # of a Gaussian

RULE = np.dtype(
    [
        *((name, np.int64) for name in ("method", "window", "needed")),
        *((name, np.float64) for name in ("per_sample", "unit")),
        # set when thresholds are made: where rest is on average; of Bonato the first threshold and 1 / variance of the residual
        *((name, np.float64) for name in ("level", "cut", "precision", "tap_1", "tap_2")),
        *((name, np.int64) for name in ("at", "run", "second")),
        *((name, np.float64) for name in ("total", "fresh", "pair")),
    ],
    align=True,
)


def set_rule(r: np.void, method: str, false_alarms_per_h: float, sample_rate_hz: float) -> int:
    """Fill a `RULE`; returns how many marks its window has."""
    window = max(4, round(WINDOW_S * sample_rate_hz))
    r["method"], r["per_sample"] = METHODS.index(method), false_alarms_per_h / (3600.0 * sample_rate_hz)
    r["window"] = window // 2 if method == "bonato" else window
    r["unit"] = 1.0 if method == "bonato" else 1.0 / window
    r["needed"] = max(1, round(HODGES_BUI_S * sample_rate_hz)) if method == "hodges_bui" else 1
    return window


# --- at each sample ---------------------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True, forceinline=True)
def hear(r, c, threshold, now, newest, energy, past, marks, cusum, start_s):
    """Take the newest sample; returns whether the rule says spasm. The statistic is left in `cusum[0]`, when it left rest in `start_s[0]`.

    Parameters
    ----------
    newest : int
        Where the newest sample stands in `past`, (c, k).
    energy : float
        Mean of its squares.
    """
    mark = 0.0
    if r.method == RMS_MAD:
        mark = energy
    elif r.method == HODGES_BUI:
        for ch in range(c):
            mark += abs(past[ch, newest])
        mark /= c
    elif r.method == TKEO:
        for ch in range(c):
            mark += past[ch, newest - 1] * past[ch, newest - 1] - past[ch, newest] * past[ch, newest - 2]
        mark /= c
    else:
        for ch in range(c):
            y = past[ch, newest] - r.tap_1 * past[ch, newest - 1] - r.tap_2 * past[ch, newest - 2]
            mark += y * y
        r.pair += mark * r.precision / c
        r.second = 1 - r.second
        if r.second:
            return r.run >= r.needed
        mark = 1.0 if r.pair > r.cut else 0.0
        r.pair = 0.0
    r.total += mark - marks[r.at]
    r.fresh += mark
    marks[r.at] = mark
    r.at += 1
    if r.at == r.window:  # what was rounded away is forgotten once a window
        r.at, r.total, r.fresh = 0, r.fresh, 0.0
    cusum[0] = r.total * r.unit
    if cusum[0] <= r.level:
        start_s[0] = now
    r.run = r.run + 1 if cusum[0] >= threshold else 0
    return r.run >= r.needed


@njit(cache=True, nogil=True)
def forget(s, i):
    """Begin anew."""
    r = s.classical[i]
    s.marks[i, :] = 0.0
    r.at = r.run = r.second = 0
    r.total = r.fresh = r.pair = 0.0


# --- every half second ------------------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def set_threshold(s, i):
    """Threshold of rule `i` from what was learnt of rest."""
    r, rule, c = s.classical[i], s.emg[i], s.emg[i].n_channels
    rho = np.zeros(s.lag.shape[1] + 2)
    rho[0] = 1.0
    if s.lag[i, 0] > 0.0:
        rho[:-2] = s.lag[i] / s.lag[i, 0]
    two, three = _shared(s.cross[i], c)
    if r.method == BONATO:
        r.tap_1, r.tap_2 = _whiten(rho)
        g = _residual(rho, (1.0, -r.tap_1, -r.tap_2))
        # the two samples of a pair are still a little alike, and so are pairs: so many of a window stand for one
        of_pair = 1.0 + (g[1] / g[0]) ** 2
        of_window = 1.0 + ALIKE * max(_squares(g) / g[0] ** 2 / of_pair - 1.0, 0.0)
        shape = 1.0 / (two * of_pair)  # of two samples and one channel 1: the exponential distribution of the paper
        rule.threshold = max(1.0, np.ceil(BONATO_SHARE * r.window))
        share = share_of_pairs(2.0 * r.per_sample * of_window, rule.threshold / of_window, r.window / of_window)
        r.precision, r.level = 1.0 / g[0], r.window * share
        r.cut = 2.0 / shape * gamma_quantile(shape, share)
        return
    g = _teager(rho) if r.method == TKEO else rho
    mean, square, cube = g[0], 2.0 * _squares(g) * two, 8.0 * _cubes(g) * three
    spread = _squares(g) / g[0] ** 2  # samples that tell as much as one
    if r.method == HODGES_BUI:
        marks = square / 2.0  # as many marks stand for one independent, to 6 % the same of |x| as of its square
        mean, square, cube = RECTIFIED_MEAN, RECTIFIED_VAR * marks, RECTIFIED_SKEW * RECTIFIED_VAR**1.5 * marks**2
    elif r.method == RMS_MAD and not rule.frozen and rule.blocks > 1:
        mean, wider = _blocks(s, i, square)
        square, cube = square * wider * mean**2, cube * wider**2 * mean**3
    std, skew = sqrt(square / r.window), cube / (square**1.5 * sqrt(r.window))
    r.level = mean
    rule.threshold = mean + std * height(r.per_sample, skew, r.window, spread)


@njit(cache=True, nogil=True)
def height(per_sample, skew, window, spread):
    """How many standard deviations above its mean a moving mean begins an excursion so often.

    Parameters
    ----------
    per_sample : float
        Excursions.
    skew : float
        Third cumulant over the standard deviation cubed.
    window : int
        Samples.
    spread : float
        Samples that tell as much as one would, were they independent.
    """
    shape = 4.0 / skew**2
    target, step, base = log(per_sample * window), 0.583 * sqrt(2.0 * spread / window), 0.5 * log(shape) - lgamma(shape)
    low, high = 0.5, 200.0
    for _ in range(40):
        z = 0.5 * (low + high)
        g = shape + z * sqrt(shape)
        if base + (shape - 1.0) * log(g) - g + log(z) - step * z > target:
            low = z
        else:
            high = z
    return high


@njit(cache=True, nogil=True)
def share_of_pairs(per_pair, m, n):
    """Share of pairs above the first threshold with which a window of n gets its m-th so often, what leaves it being none."""
    ways, target = lgamma(n) - lgamma(m) - lgamma(n - m + 1.0), log(per_pair)
    low, high = 1e-12, m / (n + 1.0)
    for _ in range(60):
        p = sqrt(low * high)
        if ways + m * log(p) + (n - m + 1.0) * log(1.0 - p) > target:
            high = p
        else:
            low = p
    return low


@njit(cache=True, nogil=True)
def gamma_quantile(shape, above):
    """Of a gamma variable of scale 1, what is exceeded with probability `above`."""
    low, high = 0.0, shape + 10.0 * sqrt(shape) - 2.0 * log(above) + 10.0
    for _ in range(50):
        x = 0.5 * (low + high)
        if _gamma_above(shape, x) > above:
            low = x
        else:
            high = x
    return high


@njit(cache=True, nogil=True)
def _gamma_above(shape, x):
    """Probability that a gamma variable exceeds x: 1 - its series (Abramowitz & Stegun 6.5.29)."""
    term = total = 1.0 / shape
    k = shape
    while term > 1e-17 * total:
        k += 1.0
        term *= x / k
        total += term
    return 1.0 - total * exp(shape * log(x) - x - lgamma(shape)) if x > 0.0 else 1.0


@njit(cache=True, nogil=True)
def _teager(rho):
    """Autocovariance of a Gaussian whose square has the cumulants of the Teager-Kaiser energy, over windows longer than the lags.

    That energy's symbol is 1 - cos(2 w), so its spectrum is weighed by that: isserlis' theorem gives the same, lag by lag.
    """
    g = rho.copy()
    n = rho.size
    for k in range(n):
        g[k] -= 0.5 * (rho[abs(k - 2)] + (rho[k + 2] if k + 2 < n else 0.0))
    return g


@njit(cache=True, nogil=True)
def _squares(g):
    """Sum over all lags, both ways."""
    return 2.0 * np.sum(g * g) - g[0] ** 2


@njit(cache=True, nogil=True)
def _cubes(g):
    """Sum over all pairs of lags of g(a) g(b) g(a - b)."""
    n, total = g.size, 0.0
    for a in range(1 - n, n):
        for b in range(1 - n, n):
            if abs(a - b) < n:
                total += g[abs(a)] * g[abs(b)] * g[abs(a - b)]
    return total


@njit(cache=True, nogil=True)
def _shared(cross, c):
    """Traces of the square and the cube of the correlation of c channels, over c^2 and c^3: 1 / c and 1 / c^2 of independent ones."""
    rho = np.eye(c)
    for a in range(c):
        for b in range(c):
            if a != b and cross[a, a] > 0.0 and cross[b, b] > 0.0:
                rho[a, b] = cross[a, b] / sqrt(cross[a, a] * cross[b, b])
    two = three = 0.0
    for a in range(c):
        for b in range(c):
            two += rho[a, b] * rho[a, b]
            for d in range(c):
                three += rho[a, b] * rho[b, d] * rho[d, a]
    return two / c**2, three / c**3


@njit(cache=True, nogil=True)
def _whiten(rho):
    """Predictor of order 2 (Yule 1927, Walker 1931); of a higher it would amplify what an amplifier's low-pass has left of rest."""
    one, two = rho[1] / (1.0 + noise.FLOOR), rho[2] / (1.0 + noise.FLOOR)
    left = 1.0 - one * one
    return one * (1.0 - two) / left, (two - one * one) / left


@njit(cache=True, nogil=True)
def _residual(rho, filter_taps):
    """Autocovariance behind a filter."""
    g = np.zeros(rho.size)
    for k in range(rho.size):
        for a in range(3):
            for b in range(3):
                lag = abs(k + a - b)
                if lag < rho.size:
                    g[k] += filter_taps[a] * filter_taps[b] * rho[lag]
    return g


@njit(cache=True, nogil=True)
def _blocks(s, i, square):
    """Of the blocks of rest, robustly: mean of the power, and how many times its variance is Gaussian rest's, at least 1.

    Two hundred blocks know their spread to a tenth, which would be too little for a rate once a day: so what is less than Gaussian is not
    believed. Nor is a mean below 1, which is the floor's.
    """
    rule, c = s.emg[i], s.emg[i].n_channels
    rms = np.zeros(rule.blocks)
    for ch in range(c):
        rms += s.noise_blocks[i, : rule.blocks, ch] * (s.scale[i, ch] ** 2 / c)
    rms = np.sqrt(rms)
    median = np.median(rms)
    std = MAD_TO_STD * np.median(np.abs(rms - median)) / max(median, 1e-12)
    gaussian = square / rule.block_samples
    return max(median**2 * (1.0 + gaussian / 3.0), 1.0), max(4.0 * std**2 / gaussian, 1.0)
