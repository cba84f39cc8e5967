"""The detection bench from outside: labels against the energy that is there, scoring by hand, the bound against closed forms, the gate."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import toeplitz
from scipy.signal import sosfreqz

from bench import detection, detection_picture, signals
from bench.signals import NOISE_UV, RATE_HZ, REST_S, Recipe, Signal

EVERY = [
    *(Recipe(10.0, length_s=30.0), Recipe(6.0, 4, length_s=30.0), Recipe(None, length_s=30.0), Recipe(3.0, white=True, length_s=30.0)),
    *(Recipe(10.0, 2, name, length_s=30.0) for name in signals.CONTAMINANTS),
]


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def samples(spans_s):
    return [slice(*np.round(span * RATE_HZ).astype(int)) for span in spans_s]


@pytest.mark.parametrize("recipe", EVERY, ids=str)
def test_the_same_seed_gives_the_same_signal_and_another_seed_another(recipe):
    one, same, other = (signals.make(recipe, seed) for seed in (3, 3, 4))
    for name in ("emg_uv", "spasms_s", "episodes_s", "pulses_s"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert one.emg_uv.shape == (round(recipe.length_s * RATE_HZ), recipe.n_channels)
    assert np.isfinite(one.emg_uv).all() and not np.array_equal(one.emg_uv, other.emg_uv)


@pytest.mark.parametrize("n_channels", [1, 4])
@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_energy_is_within_the_labels_and_of_the_stated_ratio(n_channels, snr_db):
    got = signals.make(Recipe(snr_db, n_channels), 5)
    rest = signals.make(Recipe(None, n_channels), 5)
    spasm = got.emg_uv - rest.emg_uv  # the same noise: what is left is the spasm, to the sample
    inside = np.zeros(len(spasm), bool)
    steady = []
    assert len(got.spasms_s) == 24
    for i, part in enumerate(samples(got.spasms_s)):
        inside[part] = True
        assert np.all(spasm[part.start] != 0) and np.all(spasm[part.stop - 1] != 0)
        assert 0.6 <= (part.stop - part.start) / RATE_HZ <= 3.0
        if i % 3 != 2:  # a clonic one rises and falls
            steady.append(spasm[part.start + 100 : part.stop - 200])
    assert not spasm[~inside].any()
    assert rms(rest.emg_uv) == pytest.approx(NOISE_UV, rel=0.02)
    assert 20 * np.log10(rms(np.concatenate(steady)) / NOISE_UV) == pytest.approx(snr_db, abs=0.3)
    if n_channels > 1:
        assert np.corrcoef(rest.emg_uv.T)[0, 1:] == pytest.approx(0.5, abs=0.03)
        assert np.corrcoef(np.concatenate(steady).T)[0, 1:] == pytest.approx(0.0, abs=0.06)


def test_bands_are_those_of_the_notes():
    n = 400_000
    for x, (low_hz, high_hz) in (
        (signals.noise(n, 1, np.random.default_rng(1)), (10, 500)),
        (signals.muscle(n, 1, np.random.default_rng(1)), (30, 300)),
    ):
        power = np.abs(np.fft.rfft(x[:, 0])) ** 2
        hz = np.fft.rfftfreq(n, 1 / RATE_HZ)
        assert power[(hz > low_hz) & (hz < high_hz)].sum() / power.sum() > 0.9  # a Butterworth band has skirts
        assert power[(hz < low_hz / 2) | (hz > 1.3 * high_hz)].sum() / power.sum() < 0.01


def test_clonic_spasms_beat_five_to_seven_times_a_second():
    for seed in range(5):
        gain = signals.envelope(6000, True, signals.RISE_S, np.random.default_rng(seed))
        ups = np.flatnonzero((gain[1:] > 0.55) & (gain[:-1] <= 0.55)) / RATE_HZ
        assert 5.0 <= 1 / np.median(np.diff(ups)) <= 7.0


def test_a_spasm_rises_in_15_to_50_ms_and_a_slow_one_in_100_to_300():
    for bounds_s in (signals.RISE_S, signals.SLOW_RISE_S):
        for seed in range(20):
            gain = signals.envelope(4000, False, bounds_s, np.random.default_rng(seed))
            assert bounds_s[0] <= (np.argmax(gain > 0.9999) + 5) / RATE_HZ <= bounds_s[1] + 0.005


@pytest.mark.parametrize(
    ("name", "peak", "episodes"),
    [("ECG", 8, 272), ("motion", 60, 19), ("stimulation", 200, 24), ("lead-off", 1000, 8), ("voluntary", 14, 24)],
)
def test_contaminants_have_their_size_and_labels(name, peak, episodes):
    alone, rest = (signals.make(Recipe(None, 1, c), 2) for c in (name, ""))
    added = (alone.emg_uv - rest.emg_uv)[:, 0]
    assert np.abs(added).max() / NOISE_UV == pytest.approx(peak, rel=0.25)
    assert len(alone.episodes_s) == pytest.approx(episodes, rel=0.05)
    inside = np.zeros(len(added), bool)
    for part in samples(alone.episodes_s):
        inside[part] = True
    inside[: round(REST_S * RATE_HZ)] = True
    assert rms(added[~inside]) < 0.35 * NOISE_UV  # of ECG: P and T waves between the beats' spans


def test_mains_is_three_times_the_noise_and_doubles_at_the_label():
    alone, rest = (signals.make(Recipe(None, 1, c), 2) for c in ("mains", ""))
    added = (alone.emg_uv - rest.emg_uv)[:, 0]
    assert rms(added[: round(15 * RATE_HZ)]) / NOISE_UV == pytest.approx(3.0, rel=0.35)
    for i, at_s in enumerate(alone.episodes_s[:, 0]):
        at, span = round(at_s * RATE_HZ), round(0.4 * RATE_HZ)
        assert rms(added[at : at + span]) / rms(added[at - span : at]) == pytest.approx(2.0 if i % 2 == 0 else 0.5, rel=0.1)


def test_drift_spans_six_decibels_and_a_step():
    alone, rest = (signals.make(Recipe(None, 1, c), 2) for c in ("drift", ""))
    gain = alone.emg_uv / rest.emg_uv
    assert 20 * np.log10(gain.max() / gain.min()) == pytest.approx(6.0 + 20 * np.log10(1.6), abs=0.2)
    at = round(alone.episodes_s[0, 0] * RATE_HZ)
    assert gain[at, 0] / gain[at - 1, 0] == pytest.approx(1.6, rel=1e-3)


def test_pulses_are_where_the_artefact_is():
    alone, rest = (signals.make(Recipe(None, 1, c), 2) for c in ("stimulation", ""))
    added = (alone.emg_uv - rest.emg_uv)[:, 0]
    assert np.abs(added[np.round(alone.pulses_s * RATE_HZ).astype(int)]).min() > 100 * NOISE_UV
    pause_s = np.diff(alone.pulses_s)
    assert pause_s[pause_s < 1.0].min() >= 0.0095 and np.median(pause_s) <= 1 / 30


# --- scoring ----------------------------------------------------------------------------------------------------------------------
SPASMS_S, EPISODES_S = np.array([[10.0, 11.0], [20.0, 22.0], [30.0, 31.0]]), np.array([[14.0, 15.0], [16.0, 17.0]])


def scored(decided_s, on=(), early_s=0.0):
    signal = Signal(np.zeros((round(40 * RATE_HZ), 1)), RATE_HZ, SPASMS_S, EPISODES_S, np.zeros(0))
    return detection.score(np.array(decided_s, float), signal, np.isin(range(3), on), early_s)


@pytest.mark.parametrize(
    ("decided_s", "on", "early_s", "latency_ms", "false_s", "triggered"),
    [
        ([], [], 0.0, [None, None, None], [], 0),
        ([10.0, 20.25, 30.04], [], 0.0, [0.0, 250.0, 40.0], [], 0),
        ([10.2505], [], 0.0, [None, None, None], [], 0),  # too late is a miss, and no false alarm
        ([9.999, 10.02], [], 0.0, [20.0, None, None], [9.999], 0),
        ([9.999], [0], 0.0, [None, None, None], [9.999], 0),
        ([9.9, 10.1], [0], 0.0, [None, None, None], [9.9], 0),  # on already, off and on again: a miss
        ([10.02, 10.5, 11.29, 11.31], [], 0.0, [20.0, None, None], [11.31], 0),
        ([9.9, 10.02], [], 0.15, [-100.0, None, None], [], 0),  # peers
        ([9.84], [], 0.15, [None, None, None], [9.84], 0),
        ([14.0, 14.5, 15.01], [], 0.0, [None, None, None], [14.0, 14.5, 15.01], 1),
        ([1.0, 6.9], [], 0.0, [None, None, None], [], 0),  # nobody is scored in the rest at the beginning
    ],
)
def test_scoring_by_hand(decided_s, on, early_s, latency_ms, false_s, triggered):
    got = scored(decided_s, on, early_s)
    np.testing.assert_allclose(got.latency_ms, [np.nan if ms is None else ms for ms in latency_ms], atol=1e-6)
    np.testing.assert_allclose(got.false_alarms_s, false_s)
    assert (got.n_episodes, got.n_triggered) == (2, triggered)
    assert got.quiet_s == pytest.approx(40 - REST_S - 1.3 - 2.3 - 1.3)


def test_figures_count_misses_beside_the_delays():
    one = detection.figures(detection.together([scored([10.01, 20.03]), scored([10.02, 5.0, 25.0], on=[1])]))
    assert (one["spasms"], one["sensitivity"], one["median_ms"], one["max_ms"]) == (6, 0.5, pytest.approx(20.0), pytest.approx(30.0))
    assert one["mean_ms"] == np.inf  # one that was missed has no end
    assert one["false_alarms"] == 1 and one["hours"] == pytest.approx(2 * 28.1 / 3600)


def test_the_poisson_bound_of_nothing_is_three_over_the_time():
    assert detection.upper_per_hour(0, 24.0) == pytest.approx(-np.log(0.05) / 24.0)
    assert detection.upper_per_hour(2, 1.0) == pytest.approx(6.2958, abs=1e-3)  # tables of the Poisson distribution


# --- the bound --------------------------------------------------------------------------------------------------------------------
def test_the_rate_of_white_noise_is_the_closed_form_and_what_a_likelihood_gathers():
    recipe = Recipe(3.0, white=True)
    ratio = 1 + 10**0.3
    assert signals.kl_rate(recipe) == pytest.approx(RATE_HZ * 0.5 * (ratio - 1 - np.log(ratio)))
    x = np.sqrt(ratio) * np.random.default_rng(0).standard_normal(400_000)
    gathered = np.mean(0.5 * x**2 * (1 - 1 / ratio) - 0.5 * np.log(ratio))
    assert gathered * RATE_HZ == pytest.approx(signals.kl_rate(recipe), rel=0.02)
    assert signals.bound_ms(recipe, 3600.0) == pytest.approx(1000 * np.log(RATE_HZ) / signals.kl_rate(recipe))


@pytest.mark.parametrize("n_channels", [1, 2])
def test_the_rate_of_coloured_noise_is_that_of_the_covariance_matrices(n_channels):
    n, snr = 300, 10**0.3  # samples: far longer than either correlation
    covariance = []
    for band_hz in (signals.NOISE_BAND_HZ, signals.SPASM_BAND_HZ):
        power = signals.spectrum(signals.band(band_hz), 1 << 14)
        lags = np.cos(np.outer(np.arange(n), (np.arange(len(power)) + 0.5) * np.pi / len(power))) @ power / len(power)
        covariance.append(lags[np.abs(np.subtract.outer(np.arange(n), np.arange(n)))])
    noise, spasm = covariance
    between = np.full((n_channels, n_channels), 0.5) + 0.5 * np.eye(n_channels) if n_channels > 1 else np.eye(1)
    floor = 1e-4 * np.eye(n * n_channels)  # out of band there is nearly nothing of either
    before = np.kron(between, noise) + floor
    after = before + snr * np.kron(np.eye(n_channels), spasm)
    nats = 0.5 * (np.trace(np.linalg.solve(before, after)) - len(before) - np.linalg.slogdet(after)[1] + np.linalg.slogdet(before)[1])
    assert nats / n * RATE_HZ == pytest.approx(signals.kl_rate(Recipe(3.0, n_channels)), rel=0.05)


# --- listening --------------------------------------------------------------------------------------------------------------------
class Deaf:
    """Notes what it was given; on from 9.95 s to 10.02 s and again from 20.003 s."""

    def __init__(self, settings):
        self.chunks = []
        Deaf.last = self

    def update(self, chunk, hold_until_s):
        first, last = chunk.emg_t_s[0], chunk.emg_t_s[-1]
        self.chunks.append((first, last, hold_until_s))
        decided_s = np.nan if last < 9.95 else 9.95 if last < 20.003 else 20.003
        return (SimpleNamespace(active=9.95 <= last < 10.02 or last >= 20.003, decided_s=decided_s),)


def test_chunks_are_cut_at_pulses_and_onsets_and_every_decision_is_heard(monkeypatch):
    monkeypatch.setattr(detection, "SpasmDetector", Deaf)
    pulses_s = np.array([14.0105, 14.0305])
    signal = Signal(np.zeros((round(40 * RATE_HZ), 1)), RATE_HZ, SPASMS_S + 0.0015, EPISODES_S, pulses_s)
    settings = detection.settings_with(1)
    decided_s, was_on = detection.listen(settings, signal, dead_s=0.02)
    assert decided_s.tolist() == [9.95, 20.003] and was_on.tolist() == [True, False, True]
    chunks = Deaf.last.chunks
    assert sum(round((last - first) * RATE_HZ) + 1 for first, last, _ in chunks) == len(signal.emg_uv)
    assert max(last - first for first, last, _ in chunks) < 0.1
    held = {first: hold_s for first, _, hold_s in chunks}
    assert max(hold_s for first, _, hold_s in chunks if first < pulses_s[0]) < 0.0
    assert held[pulses_s[0]] == pytest.approx(14.0355) and held[pulses_s[1]] == pytest.approx(14.0555)
    detection.listen(settings, signal)  # the prescription's dead time
    assert Deaf.last.chunks[-1][2] == pytest.approx(pulses_s[1] + settings.prescription.look_dead_ms / 1000 + 0.005)


# --- the bench --------------------------------------------------------------------------------------------------------------------
def test_goals_name_what_is_missed_and_what_was_not_measured():
    rows = [{"cell": "a", "method": "calmloop", "x": 2.0, "y": np.nan, "swept": False, "peer": False}]
    goals = [
        {"cell": "a", "metric": "x", "most": 2.0},
        {"cell": "a", "metric": "x", "least": 2.1},
        {"cell": "a", "metric": "y", "most": 9.0},
        {"cell": "a", "of": "energy", "metric": "x", "most": 9.0},
        {"cell": "a", "metric": "x", "most": 0.0, "full": True},
    ]
    assert [goal["verdict"] for goal in detection.judged(goals, rows, quick=False)] == ["met", "missed", "missed", "not measured", "missed"]
    assert len(detection.judged(goals, rows, quick=True)) == 4


def test_every_goal_is_of_a_cell_that_there_is():
    cells, metrics = {*detection.CELLS, detection.SPEED}, {*detection.figures(scored([])), "of_bound"}
    for goal in detection.budget():
        assert goal["cell"] in cells and ("least" in goal) != ("most" in goal)
        assert goal["cell"] == detection.SPEED or goal["metric"] in metrics


def test_the_gate_fails_and_names_the_goal(tmp_path, monkeypatch, capsys):
    goals = [{"cell": "1 ch 20 dB", "metric": "median_ms", "most": most} for most in (100.0, 0.1)]
    monkeypatch.setattr(detection, "budget", lambda: goals)
    monkeypatch.setattr(detection, "measure_peers", lambda *_: ([], "not asked"))
    options = ["--quick", "--only", "1 ch 20 dB", "--json", str(tmp_path / "a.json"), "--svg", str(tmp_path / "a.svg")]
    assert detection.main(options) == 0
    assert detection.main([*options, "--gate"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "missed: 1 ch 20 dB / calmloop: median_ms <= 0.1"
    result = json.loads((tmp_path / "a.json").read_text())
    assert not result["ok"] and len(result["rows"][0]["latency_ms"]) == 24
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_wrong_use_is_said_with_what_would_be_right(capsys):
    with pytest.raises(SystemExit) as error:
        detection.main(["--only", "11 dB"])
    assert error.value.code == 2
    assert "'11 dB'; there are: 1 ch 0 dB" in capsys.readouterr().err


def test_the_picture_has_a_point_for_each_setting_and_peer():
    rows = [
        {"cell": cell, "method": name, "setting": {"k": k}, "swept": not peer, "peer": peer, "median_ms": 20.0 + k}
        | {"false_alarms": k, "false_alarms_per_hour": float(k), "upper_per_hour": 3.0}
        for name, peer, ks in (("ours", False, (0, 1, 2)), ("theirs", True, (5,)))
        for k in ks
        for cell in ("1 ch 10 dB", "quiet")
    ]
    svg = detection_picture.draw({"environment": {"utc": "2026-01-01"}, "rows": rows})
    assert svg.count("<circle") == 4 and svg.count('class="hollow"') == 1 and "theirs" in svg


def test_who_knows_the_rise_has_enough_when_the_divergence_says_so():
    recipe, nats = Recipe(10.0), np.log(3600.0 * RATE_HZ)
    found_ms = signals.informed_ms(recipe, 1.0, 2)
    assert found_ms[0] < found_ms[1]  # a slower rise tells later
    assert np.all(found_ms < signals.informed_ms(Recipe(3.0), 1.0, 2))
    angles = np.linspace(0.0, np.pi, 20_001)
    lags = [
        np.array([np.trapezoid(np.abs(sosfreqz(signals.band(b), angles)[1]) ** 2 * np.cos(k * angles), angles) / np.pi for k in range(160)])
        for b in (signals.NOISE_BAND_HZ, signals.SPASM_BAND_HZ)
    ]
    rest, muscle = toeplitz(lags[0]) + 1e-3 * np.eye(160), toeplitz(lags[1])
    gain = np.zeros(160)
    gain[60:] = 0.5 - 0.5 * np.cos(np.pi * np.minimum(np.arange(1, 101) / (0.015 * RATE_HZ), 1.0))
    both = rest + 10.0 * muscle * np.outer(gain, gain)

    def told(n):
        n += 60
        a, b = rest[:n, :n], both[:n, :n]
        return 0.5 * (np.trace(np.linalg.solve(a, b)) - n + np.linalg.slogdet(a)[1] - np.linalg.slogdet(b)[1])

    n = round(found_ms[0] * RATE_HZ / 1000.0)
    assert told(n - 1) < nats <= told(n)
