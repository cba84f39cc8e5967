"""The detector on signals whose truth is known."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.signal import butter, sosfilt

from controller import replay, settings
from controller.detector import ALARM_RATE, SpasmDetector, threshold_nats
from drivers.base import Chunk
from drivers.sources import files

CONFIG = settings.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")
RATE_HZ = 2000


def emg_noise(rng, seconds, rms_uv, low_hz=20, high_hz=450):
    """(n, 4) EMG-shaped noise."""
    x = sosfilt(
        butter(2, (low_hz, high_hz), "bandpass", fs=RATE_HZ, output="sos"), rng.standard_normal((round(seconds * RATE_HZ), 4)), axis=0
    )
    return x * rms_uv / x[1000:].std()


def run(emg_uv, block=4, hold_until_s=0.0, config=CONFIG, start_s=100.0, detector=None):
    """Feed a detector; returns [(decided_s, onset_s)] of each activation, both from the start of the signal."""
    detector = detector or SpasmDetector(config)
    out, was = [], False
    for at in range(0, len(emg_uv), block):
        part = np.ascontiguousarray(emg_uv[at : at + block])
        t_s = start_s + np.arange(at, at + len(part)) / RATE_HZ
        d = detector.update(Chunk(part, t_s, np.zeros((0, 1)), np.zeros(0), np.zeros((0, 3)), 0), hold_until_s)[0]
        if d.active and not was:
            out.append((d.decided_s - start_s, d.onset_s - start_s))
        was = d.active
    return out


def with_spasms(rng, seconds, onsets_s, noise_uv=8.0, spasm_uv=60.0, length_s=1.0):
    x = emg_noise(rng, seconds, noise_uv)
    burst = emg_noise(rng, length_s + 1, spasm_uv, 30, 300)[RATE_HZ:]
    rise = np.minimum(1.0, np.arange(len(burst)) / (0.03 * RATE_HZ))[:, None]
    for onset_s in onsets_s:
        at = round(onset_s * RATE_HZ)
        x[at : at + len(burst)] += burst * rise
    return x


def test_spasms_are_found_once_each_and_soon():
    rng = np.random.default_rng(1)
    onsets_s = np.arange(5.0, 58.0, 4.0)
    found = run(with_spasms(rng, 60, onsets_s))
    assert len(found) == len(onsets_s)
    delays_ms = [(decided - onset) * 1e3 for (decided, _), onset in zip(found, onsets_s, strict=True)]
    assert 0 < np.median(delays_ms) < 25
    assert max(delays_ms) < 40
    back_dated_ms = [abs(estimate - onset) * 1e3 for (_, estimate), onset in zip(found, onsets_s, strict=True)]
    assert np.median(back_dated_ms) < 15


def test_quiet_noise_gives_no_alarm():
    for seed in range(3):
        assert run(emg_noise(np.random.default_rng(seed), 120, 8.0), block=200) == []


def test_noise_that_grows_slowly_is_still_noise():
    x = emg_noise(np.random.default_rng(3), 120, 8.0)
    assert run(x * np.linspace(1.0, 3.0, len(x))[:, None], block=200) == []


def test_activity_while_learning_does_not_blind_the_detector():
    rng = np.random.default_rng(4)
    found = run(with_spasms(rng, 20, [0.5, 10.0]), block=20)
    assert any(10.0 < decided < 10.04 for decided, _ in found)


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=30), st.integers(0, 3))
def test_the_block_size_never_matters(blocks, seed):
    rng = np.random.default_rng(seed)
    x = with_spasms(rng, 6, [3.5], noise_uv=8.0, spasm_uv=40.0)
    f = np.cumsum(rng.standard_normal((3000, 1)), axis=0) * 0.2
    a, b = SpasmDetector(CONFIG), SpasmDetector(CONFIG)

    def feed(detector, cuts, f_cuts):
        seen = None
        for (p, q), (r, s) in zip(cuts, f_cuts, strict=True):
            t, ft = 50 + np.arange(p, q) / RATE_HZ, 50 + np.arange(r, s) / 1000
            chunk = Chunk(np.ascontiguousarray(x[p:q]), t, np.ascontiguousarray(f[r:s]), ft, np.zeros((0, 3)), 0)
            seen = detector.update(chunk, 50.3, 51.5)  # the look lies within both signals
        return seen

    edges = np.unique(np.minimum(np.cumsum([0, *blocks, *[701] * 40]), len(x)))
    one = feed(a, [(0, len(x))], [(0, len(f))])
    many = feed(b, list(itertools.pairwise(edges)), [(e // 4, g // 4) for e, g in itertools.pairwise(edges)])
    assert repr(one) == repr(many)  # repr: NaN equals NaN
    assert one[0].level > 0.0
    assert np.isfinite(one[1].level)
    for name, one_part, other in zip(a.state._fields, a.state, b.state, strict=True):
        parts = zip(one_part, other, strict=True) if name == "own" else [(one_part, other)]
        assert all(p.tobytes() == q.tobytes() for p, q in parts), name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, -1.1e6])
def test_bad_samples_never_trigger_and_are_forgotten(bad):
    rng = np.random.default_rng(5)
    x = with_spasms(rng, 20, [15.0])
    x[10_000:10_020, 0] = bad
    x[12_000, :] = bad
    assert [round(decided) for decided, _ in run(x, block=7)] == [15]


def test_a_gap_does_not_trigger():
    rng = np.random.default_rng(6)
    detector = SpasmDetector(CONFIG)
    assert run(emg_noise(rng, 5, 8.0) + 3000.0, detector=detector) == []
    assert run(emg_noise(rng, 5, 8.0) - 3000.0, detector=detector, start_s=200.0) == []


def test_a_stamp_from_the_future_does_not_blind_it():
    rng = np.random.default_rng(10)
    x = with_spasms(rng, 16, [12.0])
    detector = SpasmDetector(CONFIG)
    assert run(x[:8000], detector=detector) == []
    assert run(x[8000:8004], detector=detector, start_s=1e9) == []
    assert [round(decided + 4.002) for decided, _ in run(x[8004:], detector=detector, start_s=104.002)] == [12]


def test_held_samples_are_not_evidence():
    rng = np.random.default_rng(7)
    x = emg_noise(rng, 10, 8.0)
    x[8000:9000] += emg_noise(rng, 2, 60.0, 30, 300)[1000:2000]  # what our own train makes of the signal, from 4.0 to 4.5 s
    detector = SpasmDetector(CONFIG)
    assert run(x[:8000], detector=detector) == []
    found = run(x[8000:9100], detector=detector, start_s=104.0, hold_until_s=104.525)
    assert found == []
    assert run(x[9100:], detector=detector, start_s=104.55) == []
    assert run(x)  # and without the hold they would have been


def test_smaller_activity_than_the_floor_is_no_spasm():
    rng = np.random.default_rng(8)
    x = with_spasms(rng, 20, [10.0], noise_uv=1.0, spasm_uv=5.0)
    assert run(x) == []
    low = replace_floor(CONFIG, 0.5)
    assert len(run(x, config=low)) == 1


def replace_floor(config, floor_uv):
    rule = config.emg_rules[0].model_copy(update={"floor_uv": floor_uv})
    return config.model_copy(update={"emg_rules": (rule,)})


# --- vetoes -------------------------------------------------------------------------------------------------------------------------
def rule_with(**fields):
    rule = CONFIG.emg_rules[0].model_copy(update=fields)
    return CONFIG.model_copy(update={"emg_rules": (rule,)})


def vetoes(emg_uv, from_s, to_s, config=CONFIG):
    """What the first rule was told between these times, sample by sample."""
    detector, out = SpasmDetector(config), set()
    edges = [0, *range(round(from_s * RATE_HZ), round(to_s * RATE_HZ)), len(emg_uv)]
    for p, q in itertools.pairwise(edges):
        t_s = 100.0 + np.arange(p, q) / RATE_HZ
        d = detector.update(Chunk(np.ascontiguousarray(emg_uv[p:q]), t_s, np.zeros((0, 1)), np.zeros(0), np.zeros((0, 3)), 0), 0.0)[0]
        if q < len(emg_uv):
            out.add(d.veto)
    return out - {""}


def test_cable_steps_are_motion():
    x = emg_noise(np.random.default_rng(20), 30, 8.0)
    for k in range(5, 29, 2):
        x[k * RATE_HZ :] += 200.0 * (-1) ** k  # 25 times the noise
    assert run(x, block=50) == []
    assert "motion" in vetoes(x, 7.0, 7.1)


def test_a_heart_is_no_spasm_and_is_called_by_its_name():
    x = emg_noise(np.random.default_rng(21), 30, 8.0)
    t = np.arange(len(x)) / RATE_HZ
    beat = (t + 0.4) % 0.857 - 0.4  # 70 a minute
    x += (64.0 * (np.exp(-((beat / 0.012) ** 2)) - 0.35 * np.exp(-(((beat - 0.025) / 0.012) ** 2))))[:, None]
    assert run(x, block=50) == []
    assert vetoes(x, 20.0, 25.0) <= {"ecg"}


def test_mains_that_doubles_is_no_spasm():
    x = emg_noise(np.random.default_rng(22), 30, 8.0)
    t = np.arange(len(x)) / RATE_HZ
    hum = sum(np.sin(2 * np.pi * 50 * k * t + k) / k for k in (1, 2, 3, 5))
    x += (29.0 * hum * np.where(t < 15, 1, 2))[:, None]
    assert run(x, block=50) == []
    assert vetoes(x, 15.0, 15.2) == {"mains"}
    assert "mains" not in vetoes(x, 15.0, 15.2, rule_with(mains_hz=0.0))


@pytest.mark.parametrize("rail_uv", [0.0, 5000.0, 330_000.0])
def test_a_lead_that_is_off_is_no_spasm_and_the_next_one_is_found_within_a_second(rail_uv):
    x = with_spasms(np.random.default_rng(23), 20, [11.3])
    x[20_000:20_600, 0] = rail_uv  # from 10.0 to 10.3 s
    assert [round(decided, 1) for decided, _ in run(x, block=50)] == [11.3]
    assert vetoes(x, 10.1, 10.2) == {"flat"}


def test_a_spike_is_too_brief():
    x = emg_noise(np.random.default_rng(24), 12, 8.0)
    x[20_000, :2] += 150.0
    assert run(x, block=50) == []
    assert vetoes(x, 9.99, 10.1) == {"too brief"}


def test_an_amplifier_that_becomes_louder_alarms_once_and_is_learnt():
    x = emg_noise(np.random.default_rng(29), 90, 8.0)
    x[30 * RATE_HZ :] *= 1.6
    onsets_s = [33.0, 60.0, 70.0]
    for onset_s in onsets_s:
        x[round(onset_s * RATE_HZ) :][: 2 * RATE_HZ] += with_spasms(np.random.default_rng(30), 2, [0.0], noise_uv=1e-9)[: 2 * RATE_HZ]
    found = [round(decided, 1) for decided, _ in run(x, block=50)]
    assert set(onsets_s) <= set(found)
    assert len(found) <= len(onsets_s) + 2


def test_movement_on_purpose_keeps_the_rule_quiet():
    x = with_spasms(np.random.default_rng(25), 20, [6.0, 12.0])
    x[round(5.8 * RATE_HZ) : round(7.0 * RATE_HZ), 2] *= 20.0
    config = rule_with(intent_channel=CONFIG.emg.channels[2], intent_uv=100.0)
    assert [round(decided) for decided, _ in run(x, config=config)] == [12]


def test_the_gate_lets_abrupt_spasms_pass_and_slow_ramps_not():
    rng = np.random.default_rng(26)
    x = with_spasms(rng, 40, [6.0, 12.0, 18.0], noise_uv=8.0, spasm_uv=40.0)
    ramp = emg_noise(rng, 3, 40.0, 30, 300)[RATE_HZ:] * np.linspace(0, 1, 2 * RATE_HZ)[:, None]
    for at_s in (24, 29, 34):
        x[at_s * RATE_HZ : (at_s + 2) * RATE_HZ] += ramp
    gated = rule_with(rise_ms=40.0)
    assert [round(decided) for decided, _ in run(x, config=gated)] == [6, 12, 18]
    assert len(run(x)) >= 6
    assert {"rises slowly"} <= vetoes(x, 24.0, 26.0, gated) <= {"rises slowly", "louder rest", "too brief"}


def test_noise_that_channels_share_counts_once():
    rng = np.random.default_rng(27)
    x = emg_noise(rng, 90, 6.0)
    x[:, :2] += emg_noise(rng, 90, 20.0)[:, :1]  # ten times as much in common
    detector = SpasmDetector(CONFIG)
    assert run(x, block=200, detector=detector) == []
    s = detector.state
    rest = emg_noise(rng, 90, 6.0)
    rest[:, :2] += emg_noise(rng, 90, 20.0)[:, :1]
    high = sosfilt(butter(2, 80.0, "highpass", fs=RATE_HZ, output="sos"), rest[:, :2], axis=0)[1000:]
    components = (high * s.scale[0, :2]) @ s.mix[0, :2, :2].T
    assert np.allclose(np.cov(components.T), np.eye(2) * np.var(components), atol=0.25)


def test_the_threshold_follows_from_the_false_alarms_that_are_allowed():
    one, fewer = threshold_nats(1.0, 2000.0), threshold_nats(0.01, 2000.0)
    assert fewer - one == pytest.approx(np.log(100))
    assert np.exp(-one) * ALARM_RATE * 2000 * 3600 == pytest.approx(1.0)


def test_a_frozen_noise_is_not_learnt():
    x = emg_noise(np.random.default_rng(28), 60, 8.0)
    x *= np.linspace(1, 2, len(x))[:, None]
    assert run(x, block=200) == []
    assert run(x, block=200, config=rule_with(noise_uv=(7.5, 7.5)))


def test_force_that_rises_fast_triggers_and_drift_does_not():
    rng = np.random.default_rng(9)
    t = np.arange(0, 30, 0.001)
    f = 20 + 0.3 * t + 0.05 * rng.standard_normal(len(t))
    f += 10 * np.clip((t - 15) / 0.2, 0, 1) * (t < 18)
    detector = SpasmDetector(CONFIG)
    decided = []
    for at in range(0, len(f), 10):
        chunk = Chunk(np.zeros((0, 4)), np.zeros(0), f[at : at + 10, None].copy(), 50 + t[at : at + 10], np.zeros((0, 3)), 0)
        d = detector.update(chunk, 0.0)[1]
        if d.active:
            decided.append(d.decided_s - 50)
    assert 15.02 < decided[0] < 15.12
    assert set(decided) == {decided[0]}


def test_recorded_and_replayed_settings_are_the_ones_stated():
    rec = files.Recording(np.zeros((10, 2)), "raw", 1000.0, ("a", "b"), None, None, (), "", Path("x"), [])
    config = replay.settings_for(rec, 12.5, 21.0, 5.0, 70.0, 2.0)
    rule = config.emg_rules[0]
    assert (rule.floor_uv, rule.false_alarms_per_h, rule.noise_time_s, rule.high_pass_hz, rule.off_ratio) == (12.5, 21.0, 5.0, 70.0, 2.0)
    with pytest.raises(settings.SettingsError, match="high_pass_hz"):
        replay.settings_for(replace(rec), 12.5, 21.0, 5.0, 450.0, 2.0)


# --- the look between trains --------------------------------------------------------------------------------------------------------
LOOK_FROM_S = 106.02


def look(emg_uv, force=None, block=7, hold_until_s=106.005, look_from_s=LOOK_FROM_S):
    """Levels of both rules after a signal that starts at 100 s, with what was known then; the hold and the look are known from 106 s on."""
    detector, levels = SpasmDetector(CONFIG), []
    force = np.zeros((len(emg_uv) // 2, 1)) if force is None else force
    for at in range(0, len(emg_uv), 2 * block):
        part, f = emg_uv[at : at + 2 * block], force[at // 2 : at // 2 + block]
        t_s, f_s = 100.0 + np.arange(at, at + len(part)) / RATE_HZ, 100.0 + np.arange(at // 2, at // 2 + len(f)) / 1000
        until = (hold_until_s, look_from_s) if t_s[0] >= 106.0 else (0.0, 0.0)
        chunk = Chunk(np.ascontiguousarray(part), t_s, np.ascontiguousarray(f), f_s, np.zeros((0, 3)), 0)
        levels.append((t_s[-1], *(d.level for d in detector.update(chunk, *until))))
    return np.array(levels)


@pytest.mark.parametrize("block", [1, 7, 400])
def test_the_level_of_emg_is_what_numpy_makes_of_the_same_window(block):
    x = with_spasms(np.random.default_rng(11), 7, [5.5]) + 300.0
    t_s = 100.0 + np.arange(len(x)) / RATE_HZ
    high = sosfilt(butter(2, 80.0, "highpass", fs=RATE_HZ, output="sos"), x[:, :2], axis=0)  # the rule's two channels
    window = high[t_s > LOOK_FROM_S][:200]
    level = look(x, block=block)[-1, 1]
    assert level == pytest.approx(np.sqrt(np.mean(window**2)), rel=1e-3)  # the filters began anew after the hold
    assert 30.0 < level < 90.0  # the spasm's 60 uV, not the offset


def test_the_level_of_force_is_its_mean_height_above_the_baseline():
    t = np.arange(7000) / 1000
    f = 20.0 + 12.0 * np.clip((t - 5.5) / 0.2, 0.0, 1.0) + 0.1 * np.sin(t)
    level = look(np.zeros((14_000, 4)), f[:, None])[-1, 2]
    window = f[100.0 + t > LOOK_FROM_S][:100]
    assert level == pytest.approx(np.mean(window) - 20.0, abs=0.1)


def test_the_level_is_not_known_before_the_whole_look_was_seen_and_stays_then():
    levels = look(with_spasms(np.random.default_rng(12), 8, [5.5]))
    t_s = levels[:, 0]
    for column in (1, 2):
        known = np.isfinite(levels[:, column])
        assert not known[(t_s > 106.01) & (t_s < LOOK_FROM_S + 0.1)].any()
        assert known[t_s > LOOK_FROM_S + 0.11].all()
        assert len(set(levels[t_s > LOOK_FROM_S + 0.11, column])) == 1


def test_a_look_with_a_bad_sample_starts_anew():
    x = with_spasms(np.random.default_rng(13), 8, [5.5])
    x[round(6.06 * RATE_HZ), 1] = np.nan
    levels = look(x)
    known = levels[np.isfinite(levels[:, 1]) & (levels[:, 0] > 106.01), 0]
    assert 106.06 + 0.15 < known[0] < 106.06 + 0.16  # 50 ms for the filters, then a whole look


def test_a_pulse_in_the_look_starts_it_anew():
    levels = look(with_spasms(np.random.default_rng(14), 8, [5.5]), hold_until_s=106.3)
    for column in (1, 2):
        known = levels[np.isfinite(levels[:, column]) & (levels[:, 0] > 106.01), 0]
        assert 106.4 <= known[0] < 106.41


def test_the_level_rises_with_the_muscle():
    spasms = [with_spasms(np.random.default_rng(15), 7, [5.5], spasm_uv=spasm_uv) for spasm_uv in (30.0, 45.0, 67.0, 100.0)]
    levels = [look(emg_uv)[-1, 1] for emg_uv in spasms]
    assert all(after > 1.25 * before for before, after in itertools.pairwise(levels))
