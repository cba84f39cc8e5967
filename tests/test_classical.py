"""The familiar rules: each statistic against numpy on the same signal, thresholds against scipy and against simulated rest."""

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import solve_toeplitz
from scipy.signal import butter, sosfilt, sosfilt_zi

from controller import classical, settings
from controller.detector import SpasmDetector
from controller.kernels import STATISTIC, THRESHOLD
from drivers.base import Chunk

CONFIG = settings.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")
RATE_HZ = 2000
FAMILIAR = classical.METHODS[1:]
NOISE_UV = 8.0
HIGH_PASS = butter(2, 80.0, "highpass", fs=RATE_HZ, output="sos")


def rest(rng, seconds, n_channels=4, rms_uv=NOISE_UV):
    """Noise of 10-500 Hz, (n, c), of which half is common to all channels."""
    sos = butter(4, (10, 500), "bandpass", fs=RATE_HZ, output="sos")
    n = round(seconds * RATE_HZ) + 1000
    x = sosfilt(sos, rng.standard_normal((n, n_channels)) + rng.standard_normal((n, 1)), axis=0)[1000:]
    return x * rms_uv / x.std()


def rule_with(method, **fields):
    rule = CONFIG.emg_rules[0].model_copy(update={"method": method} | fields)
    return CONFIG.model_copy(update={"emg_rules": (rule,)})


def feed(detector, emg_uv, edges, start_s=100.0):
    """What the first rule sees after each chunk."""
    for p, q in itertools.pairwise(edges):
        t_s = start_s + np.arange(p, q) / RATE_HZ
        chunk = Chunk(np.ascontiguousarray(emg_uv[p:q]), t_s, np.zeros((0, 1)), np.zeros(0), np.zeros((0, 3)), 0)
        yield detector.update(chunk, 0.0)[0]


def moving_mean(marks, n):
    total = np.concatenate([[0.0], np.cumsum(marks)])
    return (total[n:] - total[:-n]) / n  # of marks[i : i + n]


def marks_of(method, u):
    """What each sample adds, by numpy; the Teager-Kaiser energy belongs to the sample before."""
    if method == "hodges_bui":
        return np.abs(u).mean(axis=1)
    if method == "rms_mad":
        return (u**2).mean(axis=1)
    return np.concatenate([np.zeros(2), (u[1:-1] ** 2 - u[:-2] * u[2:]).mean(axis=1)])


def test_the_settings_know_the_methods():
    field = settings.EmgRule.model_fields["method"]
    assert get_args(field.annotation) == classical.METHODS
    assert field.default == "cusum" == CONFIG.emg_rules[0].method


@pytest.mark.parametrize("method", ["hodges_bui", "tkeo", "rms_mad"])
def test_a_moving_mean_is_what_numpy_makes_of_the_same_signal(method):
    x = rest(np.random.default_rng(1), 6)
    x[9000:] *= 5.0  # to the end: a rule that is over forgets its statistic
    x += 500.0
    detector = SpasmDetector(rule_with(method, noise_uv=(NOISE_UV, 0.5 * NOISE_UV), floor_uv=0.1))
    edges = [0, 8800, *range(8801, 9601)]
    seen = [(detector.state.seen[0, STATISTIC], d.active) for d in feed(detector, x, edges)][1:]
    high, _ = sosfilt(HIGH_PASS, x[:, :2], axis=0, zi=sosfilt_zi(HIGH_PASS)[:, :, None] * x[0, :2])
    marks = marks_of(method, high / [NOISE_UV, 0.5 * NOISE_UV])
    expected = moving_mean(marks, 50)[8800 - 49 : 9600 - 49]
    np.testing.assert_allclose([value for value, _ in seen], expected, rtol=1e-9, atol=1e-9)
    assert max(active for _, active in seen)


def test_bonato_counts_the_pairs_that_numpy_counts():
    x = rest(np.random.default_rng(3), 6)
    x[9450:] *= 4.0
    detector = SpasmDetector(rule_with("bonato", noise_uv=(NOISE_UV, NOISE_UV)))
    s, r = detector.state, detector.state.classical[0]
    values, models = [], []
    for _ in feed(detector, x, [0, 8800, *range(8801, 9601)]):
        values.append(s.seen[0, STATISTIC])
        models.append((r["tap_1"], r["tap_2"], r["precision"], r["cut"]))
    start = max((i for i in range(1, 700) if models[i] != models[i - 1]), default=0) + 60  # a window after the models were made last
    assert len(set(models[start - 55 :])) == 1
    rho = s.lag[0] / s.lag[0, 0]
    assert np.allclose(models[-1][:2], solve_toeplitz([1.001, rho[1]], rho[1:3]), atol=0.03)  # more was learnt since
    tap_1, tap_2, precision, cut = models[-1]
    u = sosfilt(HIGH_PASS, x[:, :2], axis=0)[8700:] / NOISE_UV
    power = np.concatenate([[0.0, 0.0], ((u[2:] - tap_1 * u[1:-1] - tap_2 * u[:-2]) ** 2).mean(axis=1)])
    got = np.array(values[start + 1 : 801])
    matches = []
    for phase in (0, 1):
        loud = power[phase::2][: len(power[1 + phase :: 2])] + power[1 + phase :: 2] > cut / precision
        counts = np.round(25 * moving_mean(loud, 25)).astype(int)  # counts[i] after the pair that ends at 2 (i + 24) + 1 + phase
        at = np.arange(start, start + len(got)) + 100
        matches.append(np.array_equal(got, counts[(at - 1 - phase) // 2 - 24]))
    assert sorted(matches) == [False, True]
    assert got.max() >= 10


@pytest.mark.parametrize(("shape", "above"), [(0.8, 0.2), (1.0, 1e-3), (4.0, 0.05), (16.0, 1e-6)])
def test_quantiles_are_those_of_scipy(shape, above):
    assert classical.gamma_quantile(shape, above) == pytest.approx(stats.gamma.isf(above, shape), rel=1e-4)


@pytest.mark.parametrize(("per_pair", "m", "n"), [(1e-3, 10.0, 25.0), (1e-8, 10.0, 25.0), (1e-5, 3.0, 5.0)])
def test_a_window_gets_its_mth_as_often_as_the_binomial_says(per_pair, m, n):
    p = classical.share_of_pairs(per_pair, m, n)
    assert p * stats.binom.pmf(m - 1, n - 1, p) * (1 - p) == pytest.approx(per_pair, rel=1e-3)
    assert p < m / n


def test_a_height_follows_the_tail_of_the_window():
    """A hundred times fewer alarms: as much less likely is the tail of a chi-squared variable, but for its slopes."""
    skew = np.sqrt(8.0 / 50)  # of the mean of 50 squares
    one, fewer = (classical.height(rate, skew, 50, 1.0) for rate in (1e-5, 1e-7))
    tails = [stats.chi2.sf(50 + z * np.sqrt(100), 50) for z in (one, fewer)]
    assert 60 < tails[0] / tails[1] < 170


@pytest.mark.parametrize("method", FAMILIAR)
def test_rest_gives_about_as_many_excursions_as_are_allowed(method):
    """Counted by numpy, at a rate so loose that 7 minutes are enough; the product's vetoes leave fewer."""
    per_h, minutes = 3600.0, 7
    x = rest(np.random.default_rng(5), 60 * minutes)
    detector = SpasmDetector(rule_with(method, false_alarms_per_h=per_h, floor_uv=0.1))
    decided = {d.decided_s for d in feed(detector, x, range(0, len(x) + 1, 200))}
    high = sosfilt(HIGH_PASS, x[:, :2], axis=0)
    u = high / high.std(axis=0)
    threshold = detector.state.seen[0, THRESHOLD]
    if method == "bonato":
        r = detector.state.classical[0]
        power = ((u[2:] - r["tap_1"] * u[1:-1] - r["tap_2"] * u[:-2]) ** 2).mean(axis=1) * r["precision"]
        pairs = power[: len(power) // 2 * 2].reshape(-1, 2).sum(axis=1) > r["cut"]
        above, apart = np.flatnonzero(25 * moving_mean(pairs, 25) > threshold - 0.5), 100
    else:
        above, apart = np.flatnonzero(moving_mean(marks_of(method, u), 50) >= threshold), 200
    excursions = 1 + np.count_nonzero(np.diff(above) > apart)
    assert 1 / 3 < excursions / (per_h * minutes / 60) < 3
    assert len(decided) - 1 < 1.5 * excursions  # NaN before the first


@pytest.mark.parametrize("method", FAMILIAR)
def test_a_threshold_rises_as_alarms_become_fewer_and_channels_too(method):
    def height(channels=("SOL1", "SOL2"), per_h=1.0):
        state = SpasmDetector(rule_with(method, false_alarms_per_h=per_h, channels=channels)).state
        return state.classical[0]["cut"] if method == "bonato" else state.seen[0, THRESHOLD]

    assert height(per_h=0.01) > height() > height(per_h=100.0)
    assert height(("SOL1",)) > height()


@pytest.mark.parametrize("method", FAMILIAR)
def test_a_burst_of_15_db_is_found_once_and_nothing_else(method):
    rng = np.random.default_rng(6)
    x = rest(rng, 24)
    onsets_s = [5.0, 9.3, 13.1, 17.7, 21.4]
    burst = sosfilt(butter(2, (30, 300), "bandpass", fs=RATE_HZ, output="sos"), rng.standard_normal((2 * RATE_HZ, 4)), axis=0)[RATE_HZ:]
    burst *= NOISE_UV * 10**0.75 / burst.std() * np.minimum(1.0, np.arange(RATE_HZ) / (0.03 * RATE_HZ))[:, None]
    for onset_s in onsets_s:
        x[round(onset_s * RATE_HZ) :][:RATE_HZ] += burst
    detections = list(feed(SpasmDetector(rule_with(method)), x, range(0, len(x) + 1, 20)))
    decided_s = sorted({d.decided_s for d in detections if d.active})
    late_ms = 1000 * (np.array(decided_s) - 100.0 - onsets_s)
    assert np.all((late_ms > 5) & (late_ms < 50))
    begun_ms = 1000 * (np.array(sorted({d.onset_s for d in detections if d.active})) - 100.0 - onsets_s)
    assert np.all((begun_ms > -50) & (begun_ms < 15))


@pytest.mark.parametrize("method", FAMILIAR)
def test_a_gap_and_no_number_are_called_by_their_names_and_never_trigger(method):
    x = rest(np.random.default_rng(7), 8)
    detector = SpasmDetector(rule_with(method))
    before = list(feed(detector, x[:8000], [0, 8000]))
    after = list(feed(detector, x[8000:12000] + 3000.0, [0, 20, 4000], start_s=300.0))
    x[12_100:12_110, 0] = np.nan
    last = list(feed(detector, x[12000:], [0, 120, 4000], start_s=302.0))
    assert [d.veto for d in before + after + last] == ["", "gap", "", "no number", ""]
    assert not any(np.isfinite(d.decided_s) for d in before + after + last)
    assert last[-1].quality == "ok" and 0.0 <= detector.state.seen[0, STATISTIC] < detector.state.seen[0, THRESHOLD]


@pytest.mark.parametrize("method", FAMILIAR)
def test_a_spike_is_too_brief(method):
    x = rest(np.random.default_rng(9), 8)
    x[12_000, :2] += 150.0
    assert not any(d.active for d in feed(SpasmDetector(rule_with(method)), x, range(0, len(x) + 1, 10)))


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=20), st.sampled_from(FAMILIAR), st.integers(0, 3))
def test_the_block_size_never_matters(blocks, method, seed):
    x = rest(np.random.default_rng(seed), 4)
    x[6000:] *= 4.0
    x[7000:7010] = np.nan
    edges = np.unique(np.minimum(np.cumsum([0, *blocks, *[901] * 10]), len(x)))
    one, many = SpasmDetector(rule_with(method)), SpasmDetector(rule_with(method))
    for detector, cuts in ((one, [0, len(x)]), (many, edges.tolist())):
        for _ in feed(detector, x, cuts):
            pass
    for name, value in one.state._asdict().items():
        if name != "own":  # there were no pulses
            assert value.tobytes() == getattr(many.state, name).tobytes(), name
