"""Rules that ask together, against their definition in words and in the whole loop with a guard that is played."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controller import joins, kernels, policy, recording, replay, settings
from controller.detector import SpasmDetector
from controller.kernels import ACTIVE, DECIDED_S, LEVEL, QUALITY
from controller.loop import Loop
from controller.recording import CYCLE
from drivers.base import FEEDBACK_ENDED, FEEDBACK_PULSE, Chunk
from tests.test_detector import emg_noise
from tests.test_recording import Wire

DEMO = (Path(__file__).resolve().parents[1] / "config" / "demo.toml").read_text()
EMG, FORCE, JOIN = range(3)  # rows of what is seen
START_S, WITHIN_S = 100.0, 0.2


def config(how, rules='"soleus EMG", "plantarflexion torque"'):
    return settings.parse(f'{DEMO}\n[[joins]]\nname = "both"\nrules = [{rules}]\nhow = "{how}"\nwithin_ms = {WITHIN_S * 1000:.0f}\n')


# --- the definition -----------------------------------------------------------------------------------------------------------------
def told(how, emg, force, now):
    """(active, decided_s) at `now`, from all spans in which the rules were active: the definition, without any state."""
    spans = [next(((a, b) for a, b in own if a <= now < b), None) for own in (emg, force)]
    begun = [span[0] for span in spans if span]
    if how == "emg_then_force":
        followed = [a for a, _ in force if a <= now and spans[0] and 0.0 <= a - spans[0][0] <= WITHIN_S]
        return (True, min(followed)) if followed else (False, None)
    if how == "all":
        return (True, max(begun)) if len(begun) == 2 else (False, None)
    return (True, min(begun)) if begun else (False, None)


@st.composite
def spans(draw):
    """A rule's activity, in ms: as kernels make it, at least 100 ms on."""
    gaps = draw(st.lists(st.tuples(st.integers(10, 600), st.integers(100, 700)), max_size=6))
    out, at = [], 0
    for off, on in gaps:
        out.append(((at + off) / 1000, (at + off + on) / 1000))
        at += off + on
    return out


@pytest.mark.parametrize("how", joins.HOWS)
@hypothesis_settings(max_examples=150, deadline=None)
@given(emg=spans(), force=spans(), cuts=st.lists(st.integers(1, 900), min_size=1, max_size=40))
def test_what_a_join_says_is_its_definition_whatever_the_blocks(how, emg, force, cuts):
    rows, (joint, members) = (np.zeros(1, kernels.EMG_RULE), np.zeros(1, kernels.FORCE_RULE)), joins.state(config(how))
    for row in rows:
        row["decided_s"] = row["onset_s"] = np.nan
    before = -1.0
    for now in np.cumsum(cuts) / 1000:
        for row, own in zip(rows, (emg, force), strict=True):
            for begin, _ in own:
                if before < begin <= now:
                    row[0]["decided_s"] = row[0]["onset_s"] = begin
                    if own is force:
                        joins.crossed(joint, members, rows[0], 1, begin)
            row[0]["active"] = any(begin <= now < end for begin, end in own)
        joins.judge(joint[0], members[0], *rows)
        active, decided_s = told(how, emg, force, now)
        assert joint[0]["active"] == active
        assert joint[0]["decided_s"] == decided_s if active else np.isnan(joint[0]["decided_s"])
        before = now


# --- signals ------------------------------------------------------------------------------------------------------------------------
def signals(seconds, emg_spans, force_spans, seed=1):
    """(n, 4) EMG at 2 kHz, loud in some spans, and (m, 1) torque at 1 kHz, 10 N m higher in others, rising within 50 ms."""
    rng = np.random.default_rng(seed)
    x, t = emg_noise(rng, seconds, 8.0), np.arange(round(seconds * 1000)) / 1000
    for begin, end in emg_spans:
        x[round(begin * 2000) : round(end * 2000)] *= 12.0
    f = 20.0 + 0.05 * rng.standard_normal(len(t))
    for begin, end in force_spans:
        f += 10.0 * np.clip((t - begin) / 0.05, 0.0, 1.0) * np.clip((end - t) / 0.05, 0.0, 1.0)
    return x, f[:, None]


def blocks(emg, force, block=4):
    for at in range(0, len(emg), block):
        part, f = np.ascontiguousarray(emg[at : at + block]), np.ascontiguousarray(force[at // 2 : (at + block) // 2])
        t_s, f_s = START_S + np.arange(at, at + len(part)) / 2000, START_S + np.arange(at // 2, at // 2 + len(f)) / 1000
        yield Chunk(part, t_s, f, f_s, np.zeros((0, 3)), round((t_s[-1] + 0.001) * 1e9))


class Bed:
    """The loop with a guard that grants at once and ends each train on time; what was seen and asked after each block."""

    def __init__(self, how, emg, force, grant=True, recorder=None):
        bed, wire, pending = Loop(how if isinstance(how, settings.Settings) else config(how)), Wire(), []
        self.requests, seen = [], []
        for chunk in blocks(emg, force):
            now = chunk.received_ns * 1e-9
            due, pending = [row for row in pending if row[1] <= now], [row for row in pending if row[1] > now]
            chunk = replace(chunk, feedback=np.array(due, float).reshape(-1, 3))
            request = bed.step(chunk).request
            seen.append(bed.detector.state.seen.copy())
            if recorder:
                recorder.cycles([wire.carry(bed, chunk)])
            if request:
                self.requests.append((now - START_S, request, seen[-1]))
                if grant:
                    pending += [(FEEDBACK_PULSE, now + k * 0.02, request.number) for k in range(25)]
                    pending.append((FEEDBACK_ENDED, now + 0.5, request.number))
        self.seen = np.array(seen)


SPASM = [(3.0, 3.4)]  # shorter than a train, so that the muscle is quiet in the look


def test_both_are_asked_for_and_at_the_crossing_of_force():
    emg, force = signals(5.0, SPASM, [(3.05, 3.4)])
    decided = {}
    for how in joins.HOWS:
        bed = Bed(how, emg, force)
        (at, request, seen) = bed.requests[0]
        assert (request.rule, request.cause, request.level) == (JOIN, policy.CAUSE_EMG, 0)
        assert request.evidence_s == seen[JOIN, DECIDED_S]
        decided[how] = request.evidence_s - START_S
        assert at - decided[how] < 0.005
        assert len(bed.requests) == 1  # quiet in the look: the event is over
    assert 3.0 < decided["any"] < 3.03
    assert 3.06 < decided["all"] == decided["emg_then_force"] < 3.09


def test_emg_without_force_and_force_without_emg():
    for emg_spans, force_spans in ((SPASM, []), ([], [(3.05, 3.4)])):
        emg, force = signals(5.0, emg_spans, force_spans)
        asked = {how: [r.rule for _, r, _ in Bed(how, emg, force).requests] for how in joins.HOWS}
        assert asked == {"any": [JOIN], "all": [], "emg_then_force": []}


def test_force_first_or_too_late_is_no_spasm_in_that_order():
    emg, force = signals(6.0, [(3.0, 4.0)], [(2.8, 4.0)])  # a limb that is moved, and the reflex to it
    assert not Bed("emg_then_force", emg, force).requests
    assert Bed("all", emg, force).requests
    emg, force = signals(6.0, [(3.0, 4.0)], [(3.5, 4.0)])
    assert not Bed("emg_then_force", emg, force).requests
    assert Bed("all", emg, force).requests


def test_a_spasm_that_persists_is_asked_for_again_with_the_levels_of_its_emg_and_no_longer():
    emg, force = signals(9.0, [(3.0, 5.0)], [(3.05, 5.0)])
    for how in joins.HOWS:
        bed = Bed(how, emg, force)
        assert [r.event_id for _, r, _ in bed.requests] == [1] * len(bed.requests)
        assert 3 <= len(bed.requests) <= 4
        assert bed.requests[-1][0] < 5.0 + 0.1
        for at, request, seen in bed.requests[1:]:
            assert request.evidence_s == pytest.approx(START_S + at - 0.0015, abs=1e-6)  # force's newest sample, which is the older one
            assert request.level == round(1000.0 * seen[EMG, LEVEL]) != round(1000.0 * seen[FORCE, LEVEL])


def test_what_is_not_joined_asks_as_before():
    third = '\n[[emg_rules]]\nname = "tibialis"\nchannels = ["TA1", "TA2"]\ntrain = "peroneal"\nhigh_pass_hz = 80.0\n'
    third += "false_alarms_per_h = 0.04\nfloor_uv = 6.0\nnoise_time_s = 10.0\noff_ratio = 2.0\n"
    both = settings.parse(config("all").to_toml() + third)
    emg, force = signals(5.0, SPASM, [])
    emg[:, :2] = emg_noise(np.random.default_rng(2), 5.0, 8.0)[:, :2]
    assert [(r.rule, r.cause) for _, r, _ in Bed(both, emg, force).requests] == [(1, policy.CAUSE_EMG)]
    assert [row.name for row in both.rows] == ["soleus EMG", "tibialis", "plantarflexion torque", "both"]


@hypothesis_settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(joins.HOWS),
    st.lists(st.tuples(*[st.integers(2100, 4400)] * 2), max_size=3),
    st.lists(st.integers(2100, 4400), max_size=3),
)
def test_a_join_is_active_and_asks_only_where_a_rule_of_it_is(how, emg_ms, force_ms):
    emg_spans = [(min(a, b) / 1000, max(a, b) / 1000) for a, b in emg_ms]
    bed = Bed(how, *signals(5.0, emg_spans, [(at / 1000, at / 1000 + 0.3) for at in force_ms]))
    emg, force, joint = bed.seen[:, EMG, ACTIVE] > 0, bed.seen[:, FORCE, ACTIVE] > 0, bed.seen[:, JOIN, ACTIVE] > 0
    assert not (joint & ~(emg | force)).any()
    if how == "any":
        assert (joint == (emg | force)).all()
    if how == "all":
        assert (joint == (emg & force)).all()
    if how == "emg_then_force":
        assert not (joint & ~emg).any()
    for _, request, seen in bed.requests:
        assert request.rule == JOIN
        assert seen[JOIN, ACTIVE] and (seen[EMG, ACTIVE] or seen[FORCE, ACTIVE])


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.sampled_from([policy.WATCH, policy.TRAIN, policy.LOOK, policy.REST]), st.floats(99.0, 101.0), st.floats(0.0, 12.0), st.booleans())
def test_where_one_that_is_harder_to_please_asks_any_would(phase, until_s, event_on_s, active):
    """From the same state of the policy, a join that is active only when `any` is can ask only when `any` does."""
    asks = []
    for joint in (active, True):
        s, cycle = policy.state(config("all")), np.zeros(1, CYCLE)
        p = s.policy[0]
        p["phase"], p["until_s"], p["event_on_s"], p["rule"], p["number"] = phase, until_s, event_on_s, JOIN, 5
        rows = np.zeros((3, kernels.N_SEEN))
        rows[:, ACTIVE] = True, True, joint  # the rules themselves must not ask
        policy.ask(s, 100.0, np.full(3, 100.0), rows, True, cycle[0])
        asks.append(cycle[0]["request"] > 0)
    assert asks[1] or not asks[0]
    assert active or not asks[0]


def test_all_asks_while_any_rests():
    """What the README admits: the rest after an event that only `any` had."""
    emg, force = signals(7.0, [(3.0, 3.1), (5.0, 5.3)], [(5.05, 5.3)])
    asked = {how: [round(at) for at, _, _ in Bed(how, emg, force).requests] for how in joins.HOWS}
    assert asked == {"any": [3], "all": [5], "emg_then_force": [5]}


@hypothesis_settings(max_examples=10, deadline=None)
@example("emg_then_force", [100], 3000, 3050)  # force crosses twice in the large block
@given(
    st.sampled_from(joins.HOWS), st.lists(st.integers(1, 400), min_size=1, max_size=20), st.integers(3000, 3300), st.integers(2900, 3500)
)
def test_the_block_size_never_matters(how, cuts, emg_ms, force_ms):
    emg, force = signals(4.0, [(emg_ms / 1000, 4.0)], [(force_ms / 1000, force_ms / 1000 + 0.15), (force_ms / 1000 + 0.35, 4.2)])
    rows = []
    for sizes in ([len(emg)], cuts):
        detector, at = SpasmDetector(config(how)), 0
        for size in (*sizes, *[401] * 40):
            part, f = emg[at : at + 2 * size], force[at // 2 : at // 2 + size]
            t_s, f_s = START_S + np.arange(at, at + len(part)) / 2000, START_S + np.arange(at // 2, at // 2 + len(f)) / 1000
            if len(part):
                detector.update(Chunk(np.ascontiguousarray(part), t_s, np.ascontiguousarray(f), f_s, np.zeros((0, 3)), 0), 0.0)
            at += 2 * size
        rows.append(detector.state.seen.tobytes())
    assert rows[0] == rows[1]


def test_a_bad_signal_of_one_is_bad_for_both():
    emg, force = signals(4.0, [], [])
    force[3900:] = np.nan
    bed = Bed("any", emg, force)
    assert bed.seen[-1, JOIN, QUALITY] == bed.seen[-1, FORCE, QUALITY] == kernels.QUALITY_BAD
    assert bed.seen[-1, EMG, QUALITY] == kernels.QUALITY_OK


@pytest.mark.parametrize("how", joins.HOWS)
def test_a_session_says_who_asked_and_replays(how, tmp_path):
    both = config(how)
    (tmp_path / "settings.toml").write_text(both.to_toml())
    recorder = recording.Recorder(tmp_path, both)
    recorder.loop_number = 1
    bed = Bed(how, *signals(6.0, [(3.0, 4.0)], [(3.05, 4.0)]), recorder=recorder)
    recorder.close()
    result = replay.replay_session(tmp_path)
    assert result.identical, result.first_difference
    assert result.requests == len(bed.requests) > 1
    session = recording.load(tmp_path)
    assert {session.config.rows[c.request.rule].name for _, c in session.cycles() if c.request} == {"both"}
    assert any(c.detections[JOIN, ACTIVE] for _, c in session.cycles())
