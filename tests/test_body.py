"""The simulated patient: the same whatever the block, causal in what stimulation does, and plausible where it must be."""

import numpy as np
import pytest

from drivers.simulated.patient import Patient, Pulse, inhibition_recruited, motor_threshold_ma, simulate

RATE_HZ = 2000
GO = 2000


def train(start_s, rate_hz=50.0, current_ua=20_000, phase_width_us=500, seconds=0.5):
    return [Pulse(start_s + k / rate_hz, current_ua, phase_width_us) for k in range(round(seconds * rate_hz))]


@pytest.fixture(scope="module")
def untreated():
    return {seed: simulate(seed, 30 * RATE_HZ, GO, (), 28.0) for seed in (1, 2, 3)}


def answer(seed, untreated, **how):
    """Truth of the same spasms with one train 45 ms after each onset."""
    onsets_s = [s["onset_s"] for s in untreated[seed][2]["spasms"]]
    return simulate(seed, 30 * RATE_HZ, GO, [p for onset_s in onsets_s for p in train(onset_s + 0.045, **how)], 28.0)[2]


def area(truth):
    return sum(s["area_nms"] for s in truth["spasms"])


@pytest.mark.parametrize("blocks", [(1,), (4,), (3, 1, 250, 7)])
def test_the_block_size_never_matters(blocks):
    pulses = [*train(2.5), Pulse(2.51, 8_000, 300)]
    whole_emg, whole_torque, _ = simulate(5, 8000, 1000, pulses, 10.0)
    patient = Patient(5, go_sample=1000, until_s=10.0)
    emg, torque, i, fed = [], [], 0, 0
    while patient.n_samples < 8000:
        n = min(blocks[i % len(blocks)], 8000 - patient.n_samples)
        end_s = (patient.n_samples + n) / RATE_HZ
        due = [p for p in sorted(pulses)[fed:] if p.t_s < end_s]  # as in a live run: each just before its own block
        a, b = patient.advance(n, due)
        fed += len(due)
        emg.append(a)
        torque.append(b)
        i += 1
    assert np.array_equal(np.concatenate(emg), whole_emg)
    assert np.array_equal(np.concatenate(torque), whole_torque)


def test_the_seed_decides():
    one, again, other = (simulate(seed, 4000, 0)[0] for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_nothing_fires_at_rest():
    patient = Patient(4)
    emg_uv, torque_nm = patient.advance(20 * RATE_HZ)
    assert patient.truth()["spike_s"].size == 0
    assert np.all(emg_uv[1000:].std(0) < 8)
    assert abs(torque_nm.mean()) < 0.01


def test_spasms_come_often_enough_and_end_by_themselves(untreated):
    for seed in (1, 2, 3):
        spasms = simulate(seed, 62 * RATE_HZ, GO, (), 60.0)[2]["spasms"]
        assert len(spasms) >= 5
        durations_s = [s["offset_s"] - s["onset_s"] for s in spasms]
        assert 1.0 < np.median(durations_s) < 5.0
        assert max(durations_s) < 6.5
        assert all(0.01 < s["onset_s"] - s["drive_s"] < 0.12 for s in spasms)


def test_the_pic_takes_longer_than_the_reflex(untreated):
    # a PIC needs more than 100 ms to switch on (physiology notes, section 2)
    halves_s = [s["half_pic_s"] - s["drive_s"] for _, _, truth in untreated.values() for s in truth["spasms"]]
    assert np.mean(halves_s) > 0.1


def test_units_hold_on_at_human_rates(untreated):
    _, _, truth = untreated[1]
    begin = truth["spasms"][0]["onset_s"] + 0.6
    own = truth["spike_unit"][(truth["spike_s"] > begin) & (truth["spike_s"] < begin + 1.0)]
    rates_hz = np.bincount(own)
    assert 5.0 < np.median(rates_hz[rates_hz > 0]) < 16.0


def test_stimulation_shortens_spasms_and_only_as_the_physiology_says(untreated):
    for seed in (1, 2, 3):
        before = area(untreated[seed][2])
        assert area(answer(seed, untreated)) < 0.5 * before
        assert area(answer(seed, untreated, rate_hz=10.0)) > 0.8 * before  # 10 Hz does not inhibit enough
        weak = answer(seed, untreated, current_ua=8_000)  # below 0.6 x motor threshold
        assert area(weak) == before
        assert all(p["reached_pool_s"] is None for p in weak["pulses_felt"])


def test_a_pulse_acts_on_the_pool_after_its_conduction_time_and_never_before():
    _, _, truth = simulate(1, 4 * RATE_HZ, 0, (), 10.0)
    at_s = truth["spasms"][0]["onset_s"] + 0.2
    _, _, treated = simulate(1, 4 * RATE_HZ, 0, train(at_s), 10.0)
    reached_s = treated["pulses_felt"][0]["reached_pool_s"]
    assert reached_s - at_s == pytest.approx(0.012, abs=2e-4)
    same = truth["spike_s"] < reached_s
    assert np.array_equal(truth["spike_s"][same], treated["spike_s"][treated["spike_s"] < reached_s])
    assert not np.array_equal(truth["spike_s"], treated["spike_s"])


def test_a_pulse_shows_as_artefact_within_its_own_samples():
    quiet, _, _ = simulate(3, 2000, 10**9)
    struck, _, _ = simulate(3, 2000, 10**9, [Pulse(0.5, 20_000, 500)])
    difference = np.abs(struck - quiet).max(axis=1)
    assert np.all(difference[:1000] == 0)
    assert difference[1000:1010].max() > 1000.0
    assert np.all(difference[1060:] < 1.0)


def test_recruitment_of_inhibition():
    assert motor_threshold_ma(500) == pytest.approx(18.0)
    assert motor_threshold_ma(200) > motor_threshold_ma(500) > motor_threshold_ma(1000)
    assert inhibition_recruited(0.6) == 0.0
    assert inhibition_recruited(1.1) == inhibition_recruited(2.0) == 1.0


def test_spasms_come_in_episodes_and_between_them_none():
    patient = Patient(3)
    assert patient.rests(0)
    patient.go(2000, 14.0)  # from 1 s to 15 s, none begins after 12 s
    patient.advance(20 * RATE_HZ)
    assert patient.rests(patient.n_samples)
    patient.go(patient.n_samples, 14.0)  # from 20 s to 34 s
    assert not patient.rests(patient.n_samples)
    patient.advance(20 * RATE_HZ)
    truth = patient.truth()
    starts_s = np.array([spasm["drive_s"] for spasm in truth["spasms"]])
    assert truth["go_sample"] == 2000
    assert ((starts_s > 1.0) & (starts_s <= 12.0)).sum() >= 1 and ((starts_s > 20.0) & (starts_s <= 31.0)).sum() >= 1
    assert not ((starts_s > 12.0) & (starts_s < 20.0)).any() and not (starts_s > 31.0).any()
    quiet_s = truth["spike_s"][(truth["spike_s"] > 16.0) & (truth["spike_s"] < 20.0)]
    assert quiet_s.size == 0
