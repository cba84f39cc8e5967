"""Our own pulses in the EMG: what is held, what is taken away, what is heard between them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench import detection, signals
from bench.signals import NOISE_UV, RATE_HZ, Recipe, Signal
from controller import artefact, policy, replay, settings
from controller.detector import SpasmDetector
from drivers.base import FEEDBACK_PULSE, Chunk, FileFormatError
from drivers.sources import files

CONFIG = settings.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")
LENGTH_S, FIRST_S = 24.0, 8.0


def stimulated(pulse_rate_hz, seed, on_grid=False, until_s=LENGTH_S - 1.0, first_s=FIRST_S):
    """Noise with pulses; each response is made for its own place between two samples: artefact 200 x noise, M-wave 40 x noise."""
    rng = np.random.default_rng(seed)
    x = signals.noise(round(LENGTH_S * RATE_HZ), 1, rng)[:, 0]
    pulses_s = np.arange(first_s, until_s, 1.0 / pulse_rate_hz) + (0.0 if on_grid else 1e-4)
    for pulse_s in pulses_s:
        at = int(np.ceil(pulse_s * RATE_HZ))
        t_ms = 1000.0 * (np.arange(at, at + 50) / RATE_HZ - pulse_s)
        spike = np.where(t_ms < 1.25, rng.uniform(0.8, 1.2), 0.0)
        m_wave = np.where(t_ms > 3.0, np.sin(2 * np.pi * (t_ms - 3.0) / 9.0) * np.exp(-(((t_ms - 7.5) / 4.0) ** 2)), 0.0)
        x[at : at + 50] += NOISE_UV * (200.0 * spike + 40.0 * m_wave)
    return x[:, None], pulses_s


def add_spasm(x, from_s, to_s, snr_db=10.0, seed=9):
    rng, part = np.random.default_rng(seed), slice(round(from_s * RATE_HZ), round(to_s * RATE_HZ))
    n = part.stop - part.start
    gain = signals.envelope(n, clonic=False, rise_s=(0.02, 0.03), dice=rng)
    x[part] += NOISE_UV * 10 ** (snr_db / 20) * gain[:, None] * signals.muscle(n, 1, rng)


def heard(x, pulses_s, hold_ms, block=8, told=True, dead_s=0.025):
    """Stamps at which the rule becomes active, and at which it is quiet again; and the detector."""
    detector, hold_s, was = SpasmDetector(detection.settings_with(1, hold_ms)), -1.0, False
    on_s, off_s, nothing = [], [], np.zeros((0, 1))
    at = np.ceil(pulses_s * RATE_HZ)
    for start in range(0, len(x), block):
        part, t_s = x[start : start + block], np.arange(start, min(start + block, len(x))) / RATE_HZ
        now = pulses_s[(at >= start) & (at < start + block)]
        if len(now):
            hold_s = now[-1] + dead_s
        word = np.array([[FEEDBACK_PULSE, pulse_s, 3.0] for pulse_s in now]) if told and len(now) else np.zeros((0, 3))
        (seen,) = detector.update(Chunk(np.ascontiguousarray(part), t_s, nothing, nothing[:, 0], word, 0), hold_s)
        if seen.active != was:
            (on_s if seen.active else off_s).append(seen.decided_s if seen.active else t_s[-1])
        was = seen.active
    return on_s, off_s, detector


@pytest.mark.parametrize("pulse_rate_hz", [20.0, 30.0, 39.0, 50.0, 70.0, 100.0])
def test_no_train_is_a_spasm(pulse_rate_hz):
    x, pulses_s = stimulated(pulse_rate_hz, 1)
    assert heard(x, pulses_s, 2.0)[0] == []


def test_without_the_subtraction_each_train_would_be_one():
    x, pulses_s = stimulated(30.0, 1)
    signal = Signal(x, RATE_HZ, np.zeros((0, 2)), np.zeros((0, 2)), pulses_s)
    assert len(detection.listen(detection.settings_with(1), signal, dead_s=0.0)[0])


@pytest.mark.parametrize(("pulse_rate_hz", "on_ms", "off_ms"), [(20.0, 60, 200), (30.0, 80, 300), (35.0, 120, 350)])
def test_a_spasm_is_heard_between_pulses_and_so_is_its_end(pulse_rate_hz, on_ms, off_ms):
    x, pulses_s = stimulated(pulse_rate_hz, 2)
    for at_s in (12.0, 16.0, 20.0):
        add_spasm(x, at_s, at_s + 1.0)
    on_s, off_s, _ = heard(x, pulses_s, 2.0)
    assert len(on_s) == len(off_s) == 3
    assert all(0.0 < 1000 * (on - at) < on_ms for on, at in zip(on_s, (12.0, 16.0, 20.0), strict=True))
    assert all(0.0 < 1000 * (off - at) < off_ms for off, at in zip(off_s, (13.0, 17.0, 21.0), strict=True))


def test_by_default_word_of_a_pulse_changes_nothing():
    x, pulses_s = stimulated(30.0, 3, until_s=16.0)
    add_spasm(x, 10.0, 12.0)
    add_spasm(x, 18.0, 19.0)
    (*said, told), (*times, silent) = heard(x, pulses_s, 0.0), heard(x, pulses_s, 0.0, told=False)
    assert said == times
    assert round(times[0][-1]) == 18  # of each 33 ms 8 are heard, of which predictors need most
    for name, one, other in zip(told.state._fields[:-1], told.state, silent.state, strict=False):
        assert one.tobytes() == other.tobytes(), name


def test_the_template_is_the_mean_response_and_the_block_size_does_not_matter():
    x, pulses_s = stimulated(30.0, 4, on_grid=True)
    states = [heard(x, pulses_s, 2.0, block, dead_s=-np.inf)[2].state for block in (1, 7, 66)]
    at = np.ceil(pulses_s * RATE_HZ).astype(int)[1:-1]  # (the last response is not over)
    response = np.array([x[a : a + 66, 0] - x[a - 1, 0] for a in at])
    got = states[0].own.template[0, 10:60, 0]
    assert np.abs(got - response[:, 10:60].mean(0)).max() < 3.0 * NOISE_UV  # an exponential mean of the last twenty or so
    assert np.abs(got).max() > 25.0 * NOISE_UV
    for one, other in pairwise(states):
        assert all(p.tobytes() == q.tobytes() for p, q in zip(one.own, other.own, strict=True))
        assert all(p.tobytes() == q.tobytes() for p, q in zip(one[:-1], other[:-1], strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e300])
def test_a_bad_sample_in_a_response_is_bad_and_teaches_nothing(bad):
    x, pulses_s = stimulated(30.0, 5)
    x[round(15.0 * RATE_HZ) : round(15.1 * RATE_HZ)] = bad
    add_spasm(x, 17.0, 18.0)
    on_s, _, detector = heard(x, pulses_s, 2.0)
    assert len(on_s) == 1 and 17.0 < on_s[0] < 17.1
    assert np.isfinite(detector.state.own.template).all()


def test_pulses_of_ramp_and_taper_and_of_others_are_not_alike():
    s, own = policy.state(CONFIG), artefact.state(1, 1, 1, 2000.0, 2.0)
    train = next(iter(CONFIG.trains.values()))
    p = s.policy[0]
    p["number"], p["phase"], p["alike_from_s"] = 7, policy.TRAIN, np.inf  # as after a request
    times_s = 100.0 + np.arange(0.0, train.duration_ms / 1000, 0.025)
    for pulse_s in times_s:
        word = np.array([[FEEDBACK_PULSE, pulse_s, 7.0]])
        policy.hear(s, word)
        artefact.hear(own, word, p["number"], p["alike_from_s"], p["alike_until_s"])
    alike = own.pulses[: len(times_s), 1].astype(bool)
    steady = (times_s >= 100.0 + train.ramp_up_ms / 1000) & (times_s <= 100.0 + (train.duration_ms - train.taper_ms) / 1000)
    assert alike.tolist() == steady.tolist()
    assert 0 < steady.sum() < len(steady)
    artefact.hear(own, np.array([[FEEDBACK_PULSE, 100.2, 0.0]]), p["number"], p["alike_from_s"], p["alike_until_s"])  # the button's
    assert own.pulses[len(times_s), 1] == 0.0


# --- recordings that do not say when they were stimulated -----------------------------------------------------------------------------
def test_pulses_are_found_by_their_artefacts():
    x, pulses_s = stimulated(30.0, 6)
    add_spasm(x, 12.0, 14.0, snr_db=20.0)
    found_s = artefact.find_pulses(x, RATE_HZ)
    assert len(found_s) == len(pulses_s)
    assert np.abs(found_s - pulses_s).max() < 0.002
    assert len(artefact.find_pulses(signals.make(Recipe(10.0, length_s=30.0), 1).emg_uv, RATE_HZ)) == 0
    assert len(artefact.find_pulses(np.zeros((2, 1)), RATE_HZ)) == 0


def test_pulses_come_from_a_file_a_channel_or_the_artefacts(tmp_path):
    x, pulses_s = stimulated(30.0, 7, on_grid=True)
    add_spasm(x, 14.0, 15.0)
    trigger = np.zeros(len(x))
    trigger[np.round(pulses_s * RATE_HZ).astype(int)] = 5.0
    path, times = tmp_path / "x.csv", tmp_path / "pulses.txt"
    np.savetxt(path, np.column_stack([x, trigger]), delimiter=",", header="EMG1,trigger", comments="")
    np.savetxt(times, pulses_s)
    rec = files.load(path, channels="EMG1", rate_hz=RATE_HZ, unit="uV")
    config = replay.settings_for(rec, 1.0, 0.04, 10.0, 80.0, 2.0, replay.HOLD_MS)
    for where in ("find", "trigger", str(times)):
        found_s = replay.pulses_in(rec, where, {"rate_hz": RATE_HZ, "unit": "uV"})
        assert np.abs(found_s - pulses_s).max() < 0.002, where
        (spasm,) = replay.detect(rec, config, found_s)
        assert spasm["onset_s"] == pytest.approx(14.0, abs=0.05), where
        assert 14.9 < spasm["offset_s"] < 15.3, where


def test_pulses_that_cannot_be_had_are_an_error_that_says_what_would_be_right(tmp_path):
    path, times = tmp_path / "x.csv", tmp_path / "pulses.txt"
    np.savetxt(path, np.random.default_rng(1).standard_normal((4000, 1)), header="EMG1", comments="")
    times.write_text("0.5\nsoon\n")
    rec = files.load(path, rate_hz=RATE_HZ, unit="uV")
    for where, words in (("find", "no pulses"), (str(times), "one time in s a line"), ("trigger", "nor a channel")):
        with pytest.raises(FileFormatError, match=words):
            replay.pulses_in(rec, where, {"rate_hz": RATE_HZ, "unit": "uV"})
