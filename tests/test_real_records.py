"""The detector on recordings of others, each with stated settings; skipped by name where a file is absent.

No public recording of spasms with labels was found, so these are contractions, which must be found, and what is about them, which must not.
Labels are of two kinds: read off a picture by eye, to a few tenths of a second; or made by an envelope that sees the future (`offline`).
Floors were chosen for these very records, so that nothing here says how well a floor for another person is guessed.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt

from controller import artefact, replay, settings
from controller.loop import Loop
from drivers.base import Chunk
from drivers.sources import files

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def larger_blocks(monkeypatch):
    """Of no importance to the detector, but to the time that these tests take."""
    monkeypatch.setattr(replay, "BLOCK_S", 0.02)


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path


def decisions(rec, config, pulses_s=None):
    """Every activation of the one rule, none joined, as (decided, offset) in s from the start."""
    (found,) = replay.activations(Loop(config), replay.chunks(rec, pulses_s))
    return [(one.decided_s - replay.START_S, one.offset_s - replay.START_S) for one in found]


def offline(x, rate_hz, level, high_pass_hz):
    """Onsets by a centred root mean square over 0.1 s of zero-phase filtered EMG beyond `level`; gaps of less than 0.3 s do not count."""
    high = sosfiltfilt(butter(2, high_pass_hz, "highpass", fs=rate_hz, output="sos"), x)
    n = round(0.1 * rate_hz)
    on = np.convolve(high**2, np.ones(n) / n, "same") > level**2
    edges = np.flatnonzero(np.diff(np.r_[False, on, False].astype(int))).reshape(-1, 2) / rate_hz
    return edges[np.r_[True, edges[1:, 0] - edges[:-1, 1] > 0.3], 0]


# --- cervical spinal cord injury, 1 channel, 4 kHz (Verma) ----------------------------------------------------------------------------
# In amplifier units; rest has 16 to 33, tonic firing at rest peaks between 3 and 37 s. The floor is above that firing.
VERMA = {"floor_uv": 60.0, "false_alarms_per_h": 0.04, "noise_time_s": 30.0, "high_pass_hz": 80.0, "off_ratio": 1.5}


def test_the_five_contractions_and_nothing_else():
    rec = files.load(real("tscs_sci_verma/SingleCh_StimOFF.mat"))
    found = replay.detect(rec, replay.settings_for(rec, **VERMA))
    assert len(found) == 5
    assert np.allclose([spasm["onset_s"] for spasm in found], [27.0, 39.6, 50.5, 63.6, 73.5], atol=0.5)
    assert all(2.0 < spasm["offset_s"] - spasm["onset_s"] < 4.5 for spasm in found)


def stimulated():
    """The record with stimulation at 30 Hz from 18.6 s on, and its pulses, found in it.

    Labels by eye, from a picture made so: each pulse found, samples from 0.5 ms before to 2 ms after it replaced by the value before, then
    30-450 Hz. Two contractions stand out by ten times: 80.4-83.8 and 91.3-94.6 s. Between 35.8 and 56 s, while the current is set, activity
    waxes and wanes without clear bounds: nothing is judged there. Short bursts at 2-3, 4-8 and 17.3 s come before the current is on.
    """
    rec = files.load(real("tscs_sci_verma/SingleCh_StimON_first98s.mat"))
    return rec, artefact.find_pulses(rec.emg, rec.sample_rate_hz)


def test_the_pulses_of_a_real_record_are_found():
    _, pulses_s = stimulated()
    gap_s = np.diff(pulses_s)
    assert pulses_s[0] == pytest.approx(18.63, abs=0.01) and pulses_s[-1] == pytest.approx(97.97, abs=0.03)
    assert (np.abs(gap_s - 1 / 30) < 0.001).mean() > 0.99
    assert len(pulses_s) == pytest.approx((97.97 - 18.63) * 30, abs=5)


def test_contractions_under_real_stimulation_and_no_trigger_by_a_pulse():
    rec, pulses_s = stimulated()
    config = replay.settings_for(rec, **VERMA, hold_ms=replay.HOLD_MS)
    found = decisions(rec, config, pulses_s)
    judged = [(on, off) for on, off in found if on > 56.0]
    assert len(judged) == 2
    for (on_s, off_s), (from_s, to_s) in zip(judged, ((80.4, 83.8), (91.3, 94.6)), strict=True):
        assert from_s < on_s < from_s + 0.4  # they rise in about 0.2 s
        assert abs(off_s - to_s) < 0.5
    # two thousand pulses, a rising current among them
    assert [on for on, _ in found if 18.4 < on < 35.8] == []
    assert len(found) < 20


# --- ECG and movement (emgGO), 8 channels of one muscle, 2048 Hz -----------------------------------------------------------------------
def test_bursts_but_neither_heart_nor_motion():
    """Ten bursts by eye (80 Hz high-pass): the first is over before anything has been learnt, the others rise for some 0.5 s.

    A heart beats every 0.6 s at 5 times the rest's size; motion artefacts of 1-2 mV on the first channel are at 13.4 and 15.2 s, within
    bursts: that they bring no decision of their own is all that can be said. The floor is what rest is between bursts.
    """
    rec = files.load(real("ecg_emggo/ECG Contaminated.mat"), unit="mV")
    config = replay.settings_for(rec, floor_uv=20.0, false_alarms_per_h=0.04, noise_time_s=10.0, high_pass_hz=80.0, off_ratio=1.5)
    found = decisions(rec, config)
    bursts = [(3.7, 5.0), (5.6, 6.7), (7.2, 8.2), (9.0, 10.2), (10.9, 12.1), (12.7, 13.9), (14.4, 15.6), (16.4, 17.3), (18.4, 19.5)]
    assert all(any(a < on < b for a, b in bursts) for on, _ in found)
    assert all(any(a < on < b for on, _ in found) for a, b in bursts)
    assert len(found) <= 12


# --- bursts of OpenSignals (biosignalsnotebooks), 1 channel, 1 kHz, raw counts ----------------------------------------------------------
def test_short_bursts_of_a_quiet_muscle():
    """21 bursts by eye; the floor is two to ten times what rest has."""
    rec = files.load(real("biosignalsnotebooks/emg_1000_hz_16_bits_solo.h5"))
    config = replay.settings_for(rec, floor_uv=800.0, false_alarms_per_h=0.04, noise_time_s=10.0, high_pass_hz=80.0, off_ratio=1.5)
    labels = [2.6, 6.7, 12.0, 15.8, 19.3, 23.4, 26.6, 29.7, 35.1, 40.0, 43.6]
    labels += [50.0, 53.5, 57.4, 60.4, 62.3, 65.6, 68.8, 72.0, 77.8, 79.8]
    assert [on for on, _ in decisions(rec, config)] == pytest.approx(labels, abs=0.15)


def test_a_muscle_that_works_most_of_the_time_is_heard_each_time():
    """Contractions for 70 % of the time, so that no memory of rest may be a mean; the first one is on while the detector learns."""
    rec = files.load(real("biosignalsnotebooks/emg_fatigue.h5"))
    config = replay.settings_for(rec, floor_uv=60.0, false_alarms_per_h=0.04, noise_time_s=10.0, high_pass_hz=80.0, off_ratio=2.0)
    labels = offline(rec.emg[:, 0], rec.sample_rate_hz, 100.0, 80.0)
    labels = labels[labels > 2.0]
    on_s = np.array([on for on, _ in decisions(rec, config) if on > 2.1])
    assert len(labels) == pytest.approx(30, abs=1)
    nearest = np.abs(on_s[:, None] - labels)
    assert nearest.min(0).max() < 0.2
    assert (nearest.min(1) > 0.2).sum() <= 1  # the contraction of 85.4 s has a last burst of its own at 88.3 s


# --- knee torque and two channels of EMG (spike2py) -------------------------------------------------------------------------------------
def smr(path, title):
    """One waveform channel of a Spike2 file (32 bit): values, samples per s; after CED's description of the format."""
    data = path.read_bytes()
    (n_channels,) = struct.unpack_from("<h", data, 30)
    for at in range(512, 512 + 140 * n_channels, 140):
        name = data[at + 109 : at + 109 + data[at + 108]].decode("latin-1")
        if name != title:
            continue
        block, blocks = struct.unpack_from("<i4xh", data, at + 6)
        rate_hz, scale, offset = struct.unpack_from("<f2xff", data, at + 118)
        parts = []
        for _ in range(blocks):
            _, next_block, _, _, _, items = struct.unpack_from("<iiiihH", data, block)
            parts.append(np.frombuffer(data, "<i2", items, block + 20))
            block = next_block
        return np.concatenate(parts) * (scale / 6553.6) + offset, float(rate_hz)
    raise AssertionError(f"{path.name} has no channel {title}")


# By eye: contractions at 3.0-5.2 and 28.2-30.9 s; in between and after, the joint is moved slowly and torque drifts by a tenth of theirs.
CONTRACTIONS_S = (3.1, 28.3)


def test_emg_of_two_channels_and_nothing_while_the_joint_is_moved():
    path = real("spike2py_GPL/biomech0deg.smr")
    (prox, rate_hz), (dist, _) = smr(path, "prox_EMG"), smr(path, "dist_EMG")
    assert rate_hz == pytest.approx(5000.0) and len(prox) == 562_321
    n = min(len(prox), len(dist))
    emg_uv = 1e6 * np.column_stack([prox[:n], dist[:n]])
    rec = files.Recording(emg_uv, "uV", rate_hz, ("prox", "dist"), None, None, (), "", path, [])
    config = replay.settings_for(rec, floor_uv=5.0, false_alarms_per_h=0.04, noise_time_s=10.0, high_pass_hz=80.0, off_ratio=2.0)
    assert [spasm["onset_s"] for spasm in replay.detect(rec, config)] == pytest.approx(CONTRACTIONS_S, abs=0.2)


def test_torque_triggers_once_for_each_contraction():
    """Torque of flexion is negative in the file and turned round here. Its unit is a volt of the sensor: called N m, of no importance."""
    torque, rate_hz = smr(real("spike2py_GPL/biomech0deg.smr"), "k_torque")
    assert rate_hz == pytest.approx(200.0) and torque.min() == pytest.approx(-3.079376, abs=1e-5)
    config = settings.parse(
        f"""
[force]
stream_name = "torque"
sample_rate_hz = {rate_hz!r}
channels = ["knee"]
unit = "N m"
[[force_rules]]
name = "knee"
channel = "knee"
train = "replay"
threshold = 0.2
rate_per_s = 1.0
baseline_time_s = 5.0
{replay._NO_STIMULATION}"""
    )
    loop, nothing = Loop(config), np.zeros((0, 0))
    force = np.ascontiguousarray(-torque[:, None])
    t_s = replay.START_S + np.arange(len(force)) / rate_hz

    def parts():
        for at in range(0, len(force), 4):
            now = t_s[at : at + 4]
            yield Chunk(nothing, np.zeros(0), force[at : at + 4], now, np.zeros((0, 3)), round(now[-1] * 1e9))

    (found,) = replay.activations(loop, parts())
    assert [one.onset_s - replay.START_S for one in found] == pytest.approx(CONTRACTIONS_S, abs=0.25)
