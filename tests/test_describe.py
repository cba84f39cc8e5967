"""Spasms whose answer is known: rectangles, ramps and rhythms, as envelopes and as EMG through the loop."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from controller import describe, recording, replay
from controller.describe import BIN_S, DECIDED_S, ENVELOPE, LONGEST_S, ONSET_S, QUALITY, STATISTIC, Describer, rhythm_hz
from controller.detector import ENVELOPE_S, OFF_S, QUALITIES
from controller.loop import Loop
from drivers.sources import files
from tests.test_detector import CONFIG, emg_noise
from tests.test_joins import SPASM, Bed, blocks, signals
from tests.test_recording import treat

RATE_HZ, REST_UV = 2000, 8.0


# --- envelopes ----------------------------------------------------------------------------------------------------------------------
def said(t_s, events_s, envelope=0.0, statistic=0.0, held_s=()):
    """What a rule says that is right: it decides 20 ms after the onset and is off `OFF_S` after the offset."""
    rows = np.zeros((len(t_s), len(recording.DETECTION_FIELDS)))
    rows[:, ONSET_S] = rows[:, DECIDED_S] = np.nan
    rows[:, ENVELOPE], rows[:, STATISTIC] = envelope, statistic
    for begin, end in events_s:
        rows[t_s >= begin + 0.02, ONSET_S], rows[t_s >= begin + 0.02, DECIDED_S] = begin, begin + 0.02
        rows[(t_s >= begin + 0.02) & (t_s < end + OFF_S), describe.ACTIVE] = 1.0
    for begin, end in held_s:
        rows[(t_s >= begin) & (t_s < end), QUALITY] = QUALITIES.index("held")
        rows[(t_s >= begin) & (t_s < end), ENVELOPE] = 0.0
    return rows


def told(t_s, rows, of_force=False, size=1000):
    rule = Describer(of_force)
    found = [spasm for at in range(0, len(t_s), size) for spasm in rule.take(t_s[at : at + size], rows[at : at + size])]
    return found + rule.finish()


def times(seconds, step_s=0.002):
    return 500.0 + np.arange(round(seconds / step_s)) * step_s


def test_the_area_of_a_rectangle_is_its_height_above_rest_times_its_length():
    t_s = times(8.0)
    envelope = np.where((t_s >= 503.0) & (t_s < 505.0), 50.0, 10.0)
    (spasm,) = told(t_s, said(t_s, [(503.0, 505.0)], envelope))
    assert (spasm.onset_s, spasm.decided_s) == (503.0, 503.02)
    assert spasm.offset_s == pytest.approx(505.0, abs=0.003)
    assert spasm.area == pytest.approx((50.0 - 10.0) * 2.0, rel=0.005)
    assert (spasm.peak, spasm.kind, spasm.clonus_hz, spasm.parts, spasm.seen, spasm.on) == (50.0, "tonic", None, 1, 1.0, False)


@pytest.mark.parametrize(("held_s", "seen"), [(0.002, 1.0), (0.008, 1.0), (0.025, 0.0)])
def test_between_pulses_that_are_left_out_shortly_a_spasm_is_seen(held_s, seen):
    """At 30 Hz. A hold of 25 ms starts the envelope anew, and after it nothing is seen for 60 ms."""
    t_s = times(8.0)
    rows = said(t_s, [(503.0, 505.0)], np.where((t_s >= 503.0) & (t_s < 505.0), 50.0, 10.0))
    rows[(t_s * 30.0) % 1.0 < 30.0 * held_s, QUALITY] = QUALITIES.index("held")
    (spasm,) = told(t_s, rows)
    assert spasm.seen == pytest.approx(seen, abs=0.02)
    if seen:
        assert (spasm.kind, spasm.area) == ("tonic", pytest.approx(80.0, rel=0.02))


@pytest.mark.parametrize("hz", [4.0, 5.0, 6.0, 7.0, 8.0])
@pytest.mark.parametrize("seconds", [1.0, 3.0, 30.0])
def test_the_frequency_of_a_rhythm(hz, seconds):
    t_s = np.arange(round(seconds / BIN_S)) * BIN_S
    assert rhythm_hz(30.0 + 20.0 * np.sin(2 * np.pi * hz * t_s)) == pytest.approx(hz, abs=0.1)
    assert rhythm_hz(30.0 * ((t_s * hz) % 1.0 < 0.3)) == pytest.approx(hz, abs=0.1)


@pytest.mark.parametrize(("hz", "is_one"), [(3.0, False), (4.0, True), (8.0, True), (9.0, False), (12.0, False)])
def test_only_4_to_8_hz_are_clonus(hz, is_one):
    t_s = times(8.0)
    envelope = np.where((t_s >= 503.0) & (t_s < 505.5), 30.0 + 25.0 * np.sin(2 * np.pi * hz * t_s), 5.0)
    (spasm,) = told(t_s, said(t_s, [(503.0, 505.5)], envelope))
    assert spasm.kind == ("clonus" if is_one else "tonic")
    assert spasm.clonus_hz == (pytest.approx(hz, abs=0.1) if is_one else None)


def test_a_rise_a_fall_and_a_shallow_swing_are_no_rhythm():
    t = np.arange(0.0, 2.0, BIN_S)
    for envelope in (np.full(400, 20.0), 20.0 * t, 20.0 * np.sin(np.pi * t / 2), 20.0 * np.exp(-t), 20.0 + 5.0 * np.sin(2 * np.pi * 6 * t)):
        assert rhythm_hz(envelope) is None
    assert rhythm_hz(np.zeros(400)) is None
    assert rhythm_hz(np.full(400, np.nan)) is None


def test_half_a_second_decides_between_burst_and_tonic_and_one_second_what_is_one_spasm():
    for length, gap, answer in [
        (0.2, 0.5, [("burst", 2)]),
        (0.2, 1.5, [("burst", 1)] * 2),
        (0.8, 0.5, [("tonic", 2)]),
        (0.8, 1.5, [("tonic", 1)] * 2),
        (0.45, 3.0, [("burst", 1)] * 2),
        (0.55, 3.0, [("tonic", 1)] * 2),
        (0.8, 0.97, [("tonic", 2)]),
        (0.8, 1.03, [("tonic", 1)] * 2),
    ]:
        t_s, events_s = times(12.0), [(503.0, 503.0 + length), (503.0 + length + gap, 503.0 + 2 * length + gap)]
        on = np.zeros(len(t_s), bool)
        for begin, end in events_s:
            on |= (t_s >= begin) & (t_s < end)
        found = told(t_s, said(t_s, events_s, np.where(on, 50.0, 10.0)))
        assert [(spasm.kind, spasm.parts) for spasm in found] == answer, (length, gap)
        assert sum(spasm.area for spasm in found) == pytest.approx(2 * 40.0 * length, rel=0.03)
        assert found[0].onset_s == 503.0


def test_what_was_not_seen_is_crossed_in_a_straight_line_and_told():
    t_s = times(9.0)
    envelope = np.where((t_s >= 503.0) & (t_s < 506.0), 50.0, 10.0)
    (spasm,) = told(t_s, said(t_s, [(503.0, 506.0)], envelope, held_s=[(504.0, 504.5)]))
    assert spasm.area == pytest.approx(40.0 * 3.0, rel=0.01)  # and not less, though the rule has an envelope of 0 then
    assert spasm.seen == pytest.approx(1.0 - (0.5 + 3 * ENVELOPE_S) / 3.0, abs=0.01)
    assert spasm.kind == "tonic"  # 1 s was seen before
    (spasm,) = told(t_s, said(t_s, [(503.0, 506.0)], envelope, held_s=[(503.1, 503.9), (504.1, 504.9), (505.1, 506.1)]))
    assert (spasm.kind, spasm.clonus_hz) == ("not seen", None)
    (spasm,) = told(t_s, said(t_s, [(503.0, 506.0)], envelope, held_s=[(503.03, 503.055)]))
    assert spasm.seen == 1.0  # the hole that a refused request leaves


def test_force_is_back_dated_to_where_it_rose():
    rng, t_s = np.random.default_rng(1), times(8.0)
    for slope, noise in ((20.0, 0.0), (20.0, 0.1), (100.0, 0.05)):
        height = np.clip((t_s - 503.0) * slope, 0.0, 10.0) * (t_s < 505.0) + noise * rng.standard_normal(len(t_s))
        decided_s = 503.0 + 3.0 / slope
        rows = said(t_s, [(decided_s - 0.02, 505.0)], statistic=height)
        rows[:, ONSET_S] = rows[:, DECIDED_S]  # as the force rule has it
        (spasm,) = told(t_s, rows, of_force=True)
        assert spasm.onset_s == pytest.approx(503.0, abs=BIN_S + 3 * noise / slope)
        assert spasm.decided_s == pytest.approx(decided_s)
        assert spasm.area == pytest.approx(10.0 * 2.0 - 0.5 * 10.0 * 10.0 / slope, rel=0.02)
        assert spasm.peak == pytest.approx(10.0, abs=4 * noise + 1e-9)


@st.composite
def sessions(draw):
    events_s, at = [], 502.0
    for gap_ms, length_ms in draw(st.lists(st.tuples(st.integers(130, 2500), st.integers(100, 2000)), max_size=6)):
        events_s.append((at + gap_ms / 1000, at + (gap_ms + length_ms) / 1000))
        at = events_s[-1][1]
    held_s = [
        (a / 1000, (a + b) / 1000) for a, b in draw(st.lists(st.tuples(st.integers(500_000, 520_000), st.integers(20, 800)), max_size=3))
    ]
    return events_s, held_s


@hypothesis_settings(max_examples=40, deadline=None)
@given(sessions(), st.integers(1, 400), st.integers(0, 9), st.booleans())
def test_how_much_comes_at_once_never_matters(session, size, seed, of_force):
    events_s, held_s = session
    t_s = times(events_s[-1][1] - 498.0 if events_s else 5.0, 0.005)
    values = np.abs(np.random.default_rng(seed).standard_normal(len(t_s))) * 20.0
    rows = said(t_s, events_s, values, values, held_s)
    assert told(t_s, rows, of_force, size) == told(t_s, rows, of_force, 4000)
    found = told(t_s, rows, of_force)
    assert sum(spasm.parts for spasm in found) == len(events_s)
    assert all(one.offset_s + describe.MERGE_S <= other.onset_s + 1e-9 for one, other in pairwise(found))
    assert all(spasm.onset_s <= spasm.decided_s <= spasm.offset_s and 0.0 <= spasm.seen <= 1.0 and spasm.area >= 0.0 for spasm in found)


def test_a_spasm_without_end_is_told_in_pieces_and_takes_no_memory():
    rule, found = Describer(), []
    held = rule.sums.nbytes + rule.counts.nbytes
    for part in range(40):
        t_s = 500.0 + part * 10.0 + np.arange(1000) * 0.01
        found += rule.take(t_s, said(t_s, [(505.0, 5000.0)], np.where(t_s >= 505.0, 50.0, 10.0)))
        assert rule.open is None or len(rule.open.events_s) == 1
    assert rule.sums.nbytes + rule.counts.nbytes == held < 1e6
    found += rule.finish()
    assert [spasm.on for spasm in found] == [True] * 4
    assert [round(spasm.onset_s) for spasm in found] == [505, 625, 745, 865]
    assert [round(spasm.area / 40.0) for spasm in found] == [LONGEST_S] * 3 + [35]
    assert {spasm.decided_s for spasm in found} == {505.02}


@pytest.mark.parametrize("bad_s", [np.nan, np.inf, -1.0, 0.0, 1e300, 1e9, 3.0])
def test_a_stamp_that_jumps_is_survived(bad_s):
    t_s = times(14.0)
    rows = said(t_s, [(510.0, 511.0)], np.where((t_s >= 510.0) & (t_s < 511.0), 50.0, 10.0))
    t_s[1000:1003] = bad_s
    (spasm,) = told(t_s, rows, size=100)
    assert (spasm.onset_s, spasm.kind) == (510.0, "tonic")
    assert spasm.area == pytest.approx(40.0, rel=0.01)


# --- EMG, through the loop ----------------------------------------------------------------------------------------------------------
def bursts(t, spans, hz=None):
    """How loud a muscle is: on in some spans, or beating in them."""
    on = np.zeros(len(t))
    for begin, end in spans:
        on[(t >= begin) & (t < end)] = 1.0
    return on * (np.maximum(0.0, np.sin(2 * np.pi * hz * t)) if hz else 1.0)


def found_in(spans, hz=None, seconds=9.0, seed=1, snr_db=10.0):
    """Spasms of a file with two channels of EMG-shaped noise, and a spasm on top that has such a power where it is loud."""
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    loud_uv = REST_UV * 10.0 ** (snr_db / 20.0)
    x = emg_noise(rng, seconds, REST_UV) + emg_noise(rng, seconds, loud_uv, 30, 300) * bursts(t, spans, hz)[:, None]
    rec = files.Recording(x[:, :2], "uV", RATE_HZ, ("a", "b"), None, None, (), "", Path("x"), [])
    return replay.detect(rec, replay.settings_for(rec, 5.0, 1.0, 10.0, 80.0, 2.0))


@pytest.mark.parametrize("hz", [4.0, 5.0, 6.0, 7.0, 8.0])
def test_clonus_at_10_db_is_named_with_its_frequency(hz):
    (spasm,) = found_in([(4.0, 6.0)], hz)
    assert spasm["kind"] == "clonus"
    assert spasm["clonus_hz"] == pytest.approx(hz, abs=0.2)
    assert spasm["onset_s"] == pytest.approx(4.0, abs=0.05)
    assert spasm["offset_s"] == pytest.approx(6.0, abs=0.15)  # the last beat begins up to 1 / 4 s earlier


@pytest.mark.parametrize(
    ("spans", "answer"),
    [
        ([(4.0, 5.0)], [("tonic", 1)]),
        ([(4.0, 4.2)], [("burst", 1)]),
        ([(4.0, 4.6), (5.1, 5.7)], [("tonic", 2)]),
        ([(4.0, 4.6), (6.1, 6.7)], [("tonic", 1)] * 2),
    ],
)
def test_bursts_at_10_db(spans, answer):
    found = found_in(spans)
    assert [(spasm["kind"], spasm["parts"]) for spasm in found] == answer
    assert found[0]["onset_s"] == pytest.approx(4.0, abs=0.02)
    assert 0.0 < found[0]["decided_s"] - 4.0 < 0.06
    assert found[-1]["offset_s"] == pytest.approx(spans[-1][1], abs=0.06)
    seconds, whole_uv = sum(end - begin for begin, end in spans), REST_UV * np.sqrt(11.0)
    # behind the high-pass of 80 Hz less is left, of rest and spasm alike; that there is an area at all, and of what size
    assert 0.5 < sum(spasm["area"] for spasm in found) / ((whole_uv - REST_UV) * seconds) < 1.1
    assert 0.6 * whole_uv < found[0]["peak"] < 2.0 * whole_uv


def test_the_decision_is_that_which_is_scored():
    rng = np.random.default_rng(3)
    x = emg_noise(rng, 12.0, REST_UV) * (1.0 + 5.0 * bursts(np.arange(24_000) / RATE_HZ, [(4.0, 5.0), (8.0, 8.3)]))[:, None]
    rec = files.Recording(x, "uV", RATE_HZ, ("a", "b", "c", "d"), None, None, (), "", Path("x"), [])
    config = replay.settings_for(rec, 5.0, 1.0, 10.0, 80.0, 2.0)
    (decided,) = replay.activations(Loop(config), replay.chunks(rec))
    found = replay.detect(rec, config)
    assert [spasm["decided_s"] for spasm in found] == [one.decided_s - replay.START_S for one in decided]
    assert all(spasm["onset_s"] < spasm["decided_s"] for spasm in found)


def test_how_often_chance_makes_tonic_emg_of_one_channel_clonus():
    """The figure behind RHYTHM and DEPTH, for the worst: one channel and 0.7 s. An envelope of 20 ms, as the kernel makes it."""
    rng, step = np.random.default_rng(4), 1.0 - np.exp(-1.0 / (ENVELOPE_S * RATE_HZ))
    clonus = 0
    for _ in range(200):
        x = emg_noise(rng, 1.2, 30.0)[1000:, 0]
        envelope = np.sqrt(lfilter([step], [1.0, step - 1.0], x**2)).reshape(-1, 10).mean(1)[-140:]
        clonus += rhythm_hz(envelope) is not None
    assert clonus <= 2


# --- live, and stimulated -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length_s", [0.1, 0.3, 0.48])
def test_an_event_that_stimulates_ends_in_the_look_when_its_muscle_is_quiet_in_it(length_s):
    bed = Bed(CONFIG, *signals(5.0, [(3.0, 3.0 + length_s)], []))
    ((asked_s, _, _),) = bed.requests  # no second train
    off = np.flatnonzero(np.diff(bed.seen[:, 0, 0]) < 0) * 0.002
    assert asked_s + 0.5 < off[-1] < asked_s + 0.5 + 0.125  # dead time and look, with the last pulse's hold
    assert len(off) == 1


def test_a_stimulated_spasm_is_told_as_far_as_it_was_seen():
    emg, force = signals(8.0, SPASM, [])
    bed, spasms = Bed(CONFIG, emg, force), describe.Spasms(CONFIG)
    newest_s = np.array([(chunk.emg_t_s[-1], chunk.force_t_s[-1]) for chunk in blocks(emg, force)])
    ((rule, spasm),) = spasms.take(newest_s, bed.seen) + spasms.finish()
    assert (rule, spasm.kind, spasm.parts, spasm.on) == ("soleus EMG", "not seen", 1, False)
    assert spasm.seen < 0.3
    assert spasm.onset_s == pytest.approx(103.0, abs=0.01)
    assert bed.requests[0][0] + 100.0 + 0.5 < spasm.offset_s < bed.requests[0][0] + 100.0 + 0.6


def test_a_session_tells_its_spasms(tmp_path):
    requests = treat(tmp_path, 1.0, seconds=9.0)
    result = replay.replay_session(tmp_path)
    assert result.identical, result.first_difference
    (spasm,) = result.spasms["soleus EMG"]
    assert spasm["onset_s"] == pytest.approx(4.0, abs=0.01)
    assert spasm["decided_s"] == pytest.approx(requests[0].evidence_s - 1000.0, abs=1e-6)
    assert spasm["on"]
    assert result.spasms["plantarflexion torque"] == []
    assert f"{spasm['onset_s']:9.3f} s" in describe.words(spasm)


def test_words():
    spasm = describe.Spasm(1.0, 1.02, 3.0, 2, "clonus", 6.04, 12.345, 80.0, 0.5, False)
    words = " ".join(describe.words(spasm.facts(0.5)).split())
    assert words == "onset 0.500 s decided 0.520 s offset 2.500 s clonus 6.0 Hz area 12.35 peak 80.0 (2 parts) 50 % seen"
