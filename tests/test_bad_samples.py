"""Whatever a stream holds: no exception, no decision from bad samples, and a spasm 1 s after the last of them is found."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller import kernels
from controller import settings as config
from controller.detector import QUALITIES, SpasmDetector
from drivers.base import Chunk
from tests.test_detector import RATE_HZ, emg_noise

CONFIG = config.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")
FORCE_HZ = 1000
FIRST_S, LAST_S = 4.0, 6.0  # bad samples are between
AFTER_S, LENGTH_S = 1.0, 1.0  # and then comes the spasm
RAIL_UV = 5000.0

VALUES = ("nan", "inf", "-inf", "volt", "rail", "-rail", "flat", "zero", "alternating", "square")
STAMPS = ("forward", "backward", "nan stamp", "future", "past")


def fault(x, kind, channels, start, n):
    """Put samples of one kind into `x`, (n_samples, n_channels), in place."""
    rows = np.arange(n)[:, None]
    fill = {
        "nan": np.nan,
        "inf": np.inf,
        "-inf": -np.inf,
        "volt": 1e6,
        "rail": RAIL_UV,
        "-rail": -RAIL_UV,
        "flat": x[start - 1, channels],
        "zero": 0.0,
        "alternating": RAIL_UV * (-1.0) ** rows,
        "square": RAIL_UV * (-1.0) ** (rows // 7),
    }[kind]
    x[start : start + n, channels] = fill


def stamps_with(t_s, kind, start, n, size_s):
    """Stamps that are wrong from a sample on, or for n samples; `forward`: what came in between is lost."""
    t_s = t_s.copy()
    if kind == "forward":
        t_s[start:] += size_s
    elif kind == "backward":
        t_s[start:] -= size_s
    else:
        t_s[start : start + n] = {"nan stamp": np.nan, "future": 1e9, "past": 1e-3}[kind]
    return t_s


def play(emg, t_s, force, force_t_s, edges):
    """Indices of the samples that decided, for both rules; what the detector saw last; and the worst quality of each rule."""
    detector, decided, last = SpasmDetector(CONFIG), ([], []), [np.nan, np.nan]
    nothing, worst, seen = np.zeros((0, 3)), [0, 0], None
    for p, q in pairwise(edges):
        r, s = p * FORCE_HZ // RATE_HZ, q * FORCE_HZ // RATE_HZ
        seen = detector.update(
            Chunk(np.ascontiguousarray(emg[p:q]), t_s[p:q], np.ascontiguousarray(force[r:s]), force_t_s[r:s], nothing, 0), 0.0
        )
        for i, (one, stamps, begin) in enumerate(zip(seen, (t_s[p:q], force_t_s[r:s]), (p, r), strict=True)):
            worst[i] = max(worst[i], QUALITIES.index(one.quality))
            if one.decided_s == one.decided_s and one.decided_s != last[i]:
                last[i] = one.decided_s
                decided[i].append(begin + int(np.flatnonzero(stamps == one.decided_s)[-1]))
    return decided, seen, worst


def quiet(seed, seconds):
    rng = np.random.default_rng(seed)
    emg = emg_noise(rng, seconds, 8.0) + rng.uniform(500.0, 2000.0, 4) * rng.choice((-1.0, 1.0), 4)  # electrodes have offsets
    n = round(seconds * FORCE_HZ)
    return rng, emg, 20.0 + 0.05 * rng.standard_normal((n, 1))


def with_spasm(rng, emg, force, at):
    """15 dB in EMG, rising in 30 ms, and 10 N, rising in 0.2 s, from sample `at` of the EMG on."""
    n, uv = round(LENGTH_S * RATE_HZ), 8.0 * 10 ** (15 / 20)
    emg[at : at + n] += emg_noise(rng, LENGTH_S + 1.0, uv, 30, 300)[RATE_HZ:] * np.minimum(1.0, np.arange(n) / (0.03 * RATE_HZ))[:, None]
    k = at * FORCE_HZ // RATE_HZ
    force[k : k + round(LENGTH_S * FORCE_HZ), 0] += 10.0 * np.clip(np.arange(round(LENGTH_S * FORCE_HZ)) / 200.0, 0.0, 1.0)


def cut(n, blocks):
    return np.unique(np.minimum(np.cumsum([0, *blocks, *[blocks[-1]] * (n // blocks[-1] + 1)]), n)).tolist()


faults = st.lists(
    st.tuples(
        st.sampled_from(VALUES),
        st.sampled_from(([0], [1], [0, 1], [0, 1, 2, 3])),
        st.integers(round(FIRST_S * RATE_HZ), round(LAST_S * RATE_HZ) - 1),
        st.integers(5, 1200),
    ),
    min_size=1,
    max_size=5,
)
blocks = st.lists(st.sampled_from([1, 3, 8, 20, 64, 333, 2000]), min_size=1, max_size=8).filter(lambda many: many[-1] >= 20)


def judge(decided, seen, at, emg_ms=60.0, force_ms=150.0):
    """Nothing before the spasm at sample `at`, which is found by both rules; and both hear well again."""
    for mine, rate_hz, most_ms in zip(decided, (RATE_HZ, FORCE_HZ), (emg_ms, force_ms), strict=True):
        begin = at * rate_hz // RATE_HZ
        assert mine
        assert 0.0 < 1000.0 * (mine[0] - begin) / rate_hz < most_ms
    assert [one.quality for one in seen] == ["ok", "ok"]
    assert all(np.isfinite(one.statistic) and np.isfinite(one.envelope) for one in seen)


@pytest.mark.safety("D3", "D4", "D5")
@settings(max_examples=60, deadline=None)
@given(faults, blocks, st.integers(0, 3))
@example([("alternating", [0], 9000, 400)], [20], 0)
@example([("alternating", [0, 1, 2, 3], 9000, 1200)], [1, 64], 1)
@example([("square", [0, 1], 9000, 1200)], [20], 2)
@example([("flat", [0], 8000 + 45 * k, 38) for k in range(5)], [20], 0)
def test_bad_values_in_emg(bad, cuts, seed):
    last = max(start + n for _, _, start, n in bad)
    at = last + round(AFTER_S * RATE_HZ)
    rng, emg, force = quiet(seed, at / RATE_HZ + LENGTH_S)
    with_spasm(rng, emg, force, at)
    for kind, channels, start, n in bad:
        fault(emg, kind, channels, start, n)
    t_s, force_t_s = 100.0 + np.arange(len(emg)) / RATE_HZ, 100.0 + np.arange(len(force)) / FORCE_HZ
    decided, seen, _ = play(emg, t_s, force, force_t_s, cut(len(emg), cuts))
    judge(decided, seen, at)


@pytest.mark.safety("D6", "D7")
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(STAMPS), st.integers(8000, 11_999), st.integers(1, 40), st.floats(1e-4, 1e4)), min_size=1, max_size=4
    ),
    blocks,
    st.booleans(),
)
@example([("nan stamp", 9000, 40, 1.0)], [20], True)
@example([("nan stamp", 9000, 1, 1.0)], [1, 20], False)
def test_bad_stamps(bad, cuts, of_force):
    at = max(start + n for _, start, n, _ in bad) + round(AFTER_S * RATE_HZ)
    rng, emg, force = quiet(1, at / RATE_HZ + LENGTH_S)
    with_spasm(rng, emg, force, at)
    t_s, force_t_s = 100_000.0 + np.arange(len(emg)) / RATE_HZ, 100_000.0 + np.arange(len(force)) / FORCE_HZ
    for kind, start, n, size_s in bad:
        if of_force:
            force_t_s = stamps_with(force_t_s, kind, start * FORCE_HZ // RATE_HZ, n, size_s)
        else:
            t_s = stamps_with(t_s, kind, start, n, size_s)
    decided, seen, _ = play(emg, t_s, force, force_t_s, cut(len(emg), cuts))
    judge(decided, seen, at)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(("nan", "inf", "-inf", "volt", "flat")), st.integers(4000, 5999), st.integers(1, 600)),
        min_size=1,
        max_size=4,
    ),
    blocks,
)
def test_bad_values_in_force(bad, cuts):
    """A rail is not among them: of a sensor whose range nobody has told, it is a force."""
    at = 2 * max(start + n for _, start, n in bad) + round(AFTER_S * RATE_HZ)
    rng, emg, force = quiet(2, at / RATE_HZ + LENGTH_S)
    with_spasm(rng, emg, force, at)
    for kind, start, n in bad:
        fault(force, kind, [0], start, n)
    t_s, force_t_s = 100.0 + np.arange(len(emg)) / RATE_HZ, 100.0 + np.arange(len(force)) / FORCE_HZ
    decided, seen, _ = play(emg, t_s, force, force_t_s, cut(len(emg), cuts))
    judge(decided, seen, at)


@settings(max_examples=10, deadline=None)
@given(faults, st.integers(0, 3))
def test_a_bad_stretch_is_as_if_it_had_been_held(bad, seed):
    """What is learnt of rest, and so each later decision, does not depend on what the bad samples were."""
    last = max(start + n for _, _, start, n in bad)
    at = last + round(AFTER_S * RATE_HZ)
    decisions = []
    for with_faults in (True, False):
        rng, emg, force = quiet(seed, at / RATE_HZ + LENGTH_S)
        with_spasm(rng, emg, force, at)
        for kind, channels, start, n in bad:
            fault(emg, kind if with_faults else "nan", channels, start, n)
        t_s, force_t_s = 100.0 + np.arange(len(emg)) / RATE_HZ, 100.0 + np.arange(len(force)) / FORCE_HZ
        decided, _, _ = play(emg, t_s, force, force_t_s, cut(len(emg), [50]))
        decisions.append(decided[0][0])
    assert abs(decisions[0] - decisions[1]) <= 0.01 * RATE_HZ


@pytest.mark.safety("D3", "D4")
@pytest.mark.parametrize("kind", VALUES)
def test_a_long_bad_stretch_is_called_bad(kind):
    _, emg, force = quiet(5, 6.0)
    fault(emg, kind, [1], 8000, 400)
    t_s, force_t_s = 100.0 + np.arange(len(emg)) / RATE_HZ, 100.0 + np.arange(len(force)) / FORCE_HZ
    decided, seen, worst = play(emg, t_s, force, force_t_s, cut(len(emg), [10]))
    assert worst[0] == kernels.QUALITY_BAD and seen[0].quality == "ok" and decided == ([], [])


@pytest.mark.parametrize("step_uv", [16.0, 40.0])
def test_a_coarse_converter_is_not_at_its_rails(step_uv):
    """Of 2 and 5 times rest's root mean square: most samples have one of two values."""
    rng, emg, force = quiet(6, 12.0)
    with_spasm(rng, emg, force, 20_000)
    emg = step_uv * np.floor((emg - emg.mean(0)) / step_uv)
    t_s, force_t_s = 100.0 + np.arange(len(emg)) / RATE_HZ, 100.0 + np.arange(len(force)) / FORCE_HZ
    decided, _, worst = play(emg, t_s, force, force_t_s, cut(len(emg), [10]))
    assert worst[0] < kernels.QUALITY_HELD
    assert 0 < decided[0][0] - 20_000 < 120


def test_a_spike_to_the_rail_is_no_spasm():
    _, emg, force = quiet(1, 6.0)
    emg[9000, 0] += RAIL_UV
    t_s, force_t_s = 100.0 + np.arange(len(emg)) / RATE_HZ, 100.0 + np.arange(len(force)) / FORCE_HZ
    assert play(emg, t_s, force, force_t_s, cut(len(emg), [20]))[0] == ([], [])
