"""The policy against a guard that answers promptly."""

from pathlib import Path

import numpy as np
import pytest

from controller import kernels, policy, settings
from controller.recording import CYCLE
from drivers.base import FEEDBACK_ENDED, FEEDBACK_PULSE, FEEDBACK_REFUSED

CONFIG = settings.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")
STEP_S = 0.002


def seen(now, emg, force=False, levels=(1.0, 1.0)):
    rows = np.zeros((2, kernels.N_SEEN))
    rows[:, kernels.LEVEL] = levels
    rows[:, kernels.ACTIVE] = emg, force
    rows[:, kernels.ONSET_S], rows[:, kernels.DECIDED_S] = now - 0.02, now - 0.001
    return rows


class Play:
    """Steps of 2 ms; guard grants (or refuses) at once and ends each train on time."""

    def __init__(self, refuse=False, deaf=False):
        self.policy, self.now, self.refuse, self.deaf = policy.state(CONFIG), 100.0, refuse, deaf
        self.cycle = np.zeros(1, CYCLE)
        self.requests, self.ends, self.pending = [], [], []
        self.levels = (1.0, 1.0)

    def run(self, seconds, active):
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            due = [row for row in self.pending if row[1] <= self.now]
            self.pending = [row for row in self.pending if row[1] > self.now]
            policy.hear(self.policy, np.array(due, np.float64).reshape(-1, 3))
            rows = seen(self.now, *(active, False) if isinstance(active, bool) else active, self.levels)
            policy.ask(self.policy, self.now, np.full(2, self.now), rows, True, self.cycle[0])
            request = policy.request_of(self.cycle[0])
            if request is None:
                continue
            self.requests.append((self.now, request))
            if self.deaf:
                continue
            if self.refuse:
                self.pending.append((FEEDBACK_REFUSED, self.now, request.number))
            else:
                self.pending += [(FEEDBACK_PULSE, self.now + k * 0.02, request.number) for k in range(25)]
                self.pending.append((FEEDBACK_ENDED, self.now + 0.5, request.number))
        return self


def test_one_spasm_one_train():
    play = Play().run(0.1, True).run(10.0, False)
    assert len(play.requests) == 1
    _, request = play.requests[0]
    assert (request.number, request.event_id, request.train, request.current_ua, request.duration_us, request.cause) == (
        1,
        1,
        0,
        20_000,
        500_000,
        1,
    )


def test_a_spasm_that_persists_gets_trains_with_looks_between_up_to_the_limit():
    play = Play().run(14.0, True)
    first_event = [t for t, r in play.requests if r.event_id == 1]
    assert len(first_event) == 20  # of 0.5 s each: 10 s of stimulation
    assert min(np.diff(first_event)) >= 0.5 + 0.12
    assert max(np.diff(first_event)) <= 0.5 + 0.13
    second = [t for t, r in play.requests if r.event_id == 2]
    assert second == [] or second[0] - (first_event[-1] + 0.5) >= CONFIG.prescription.refractory_s


def test_force_alone_opens_an_event_with_its_own_cause():
    play = Play().run(0.1, (False, True)).run(1.0, False)
    assert [r.cause for _, r in play.requests] == [2]


def test_after_an_event_it_rests():
    play = Play().run(0.1, True).run(1.0, False).run(4.0, True)
    (first, _), (second, _) = play.requests[:2]
    assert second - (first + 0.5 + 0.12) >= CONFIG.prescription.refractory_s


@pytest.mark.parametrize("how", ["refuse", "deaf"])
def test_refusals_are_not_hammered(how):
    play = Play(**{how: True}).run(10.0, True)
    assert 2 <= len(play.requests) <= 21
    assert min(np.diff([t for t, _ in play.requests])) >= 0.5
    assert len({r.number for _, r in play.requests}) == len(play.requests)


def test_samples_near_a_pulse_are_held():
    play = Play().run(0.3, True)
    now = play.policy.policy[0]
    assert now["phase"] == policy.TRAIN
    assert play.now + 0.005 <= now["hold_until_s"] <= play.now + 0.026
    play.run(0.4, False)
    assert now["hold_until_s"] < play.now


def test_answers_to_others_change_nothing():
    play = Play().run(0.1, True)
    before = play.policy.policy.copy()
    policy.hear(play.policy, np.array([[FEEDBACK_ENDED, play.now, 99.0], [FEEDBACK_REFUSED, play.now, -1.0]]))
    assert play.policy.policy == before


def test_the_evidence_of_a_request_is_the_sample_that_decided_and_later_the_newest():
    play = Play().run(1.3, True)
    evidence = [(t, r.evidence_s) for t, r in play.requests]
    assert evidence[0][1] == pytest.approx(evidence[0][0] - 0.001)
    assert len(evidence) >= 2
    assert all(e == t for t, e in evidence[1:])  # the rule was active before: it still is, by the newest sample


# --- what the muscle did in the looks -----------------------------------------------------------------------------------------------
def test_requests_carry_the_rule_and_the_level_of_the_look_just_before():
    play = Play()
    play.levels = (50.0, 2.0)
    play.run(0.3, True)
    play.levels = (61.2344, 2.0)
    play.run(0.5, True)
    play.levels = (75.0, 2.0)
    play.run(0.7, True)
    assert [(r.event_id, r.rule, r.level) for _, r in play.requests] == [(1, 0, 0), (1, 0, 61_234), (1, 0, 75_000)]


def test_a_force_rule_sends_its_own_level():
    play = Play()
    play.levels = (50.0, 3.25)
    play.run(0.7, (False, True))
    assert [(r.cause, r.rule, r.level) for _, r in play.requests] == [(2, 1, 0), (2, 1, 3250)]


@pytest.mark.parametrize(("level", "sent"), [(0.0, 1), (-4.0, 1), (0.0004, 1), (np.inf, 10**15), (1e300, 10**15)])
def test_a_level_that_was_seen_is_never_0(level, sent):
    play = Play()
    play.levels = (level, 0.0)
    play.run(0.7, True)
    assert [r.level for _, r in play.requests] == [0, sent]


def test_the_look_is_over_when_its_samples_were_seen():
    play = Play()
    play.levels = (np.nan, 1.0)
    play.run(0.8, True)
    assert len(play.requests) == 1  # 0.62 s would be the time
    play.levels = (40.0, 1.0)
    play.run(0.01, True)
    assert [r.level for _, r in play.requests] == [0, 40_000]


def test_a_look_that_is_never_seen_ends_the_event():
    play = Play()
    play.levels = (np.nan, 1.0)
    play.run(4.5, True)
    (first, one), (second, another) = play.requests
    assert (one.event_id, another.event_id, another.level) == (1, 2, 0)
    assert second - (first + 0.5 + 0.12) >= CONFIG.prescription.refractory_s


@pytest.mark.safety("A9")
def test_refused_for_what_the_looks_showed_it_opens_no_event_before_its_time():
    """As guard does when the muscle grew in two looks running, and from then on."""
    play = Play().run(1.2, True)
    play.refuse = True
    play.run(5.0, True)
    refused = play.requests[2:]
    assert refused[0][1].event_id == 1
    assert [r.level for _, r in refused[1:]] == [0] * (len(refused) - 1)
    assert min(np.diff([t for t, _ in refused])) >= policy.RETRY_S
    assert len(refused) <= 11


@pytest.mark.parametrize(("channels", "error", "once", "twice"), [(1, 0.110, 0.0775, 3.5e-4), (2, 0.078, 0.0220, 2e-6)])
def test_how_often_chance_makes_a_rise_of_a_quarter(channels, error, once, twice):
    """The figures of the module's docstring: looks of 100 ms at muscles whose EMG is 200 Hz wide and does not change."""
    rng, samples, looks = np.random.default_rng(7), 200, 1000
    hz = np.fft.rfftfreq(samples * looks, 1 / 2000)
    level = []
    for _ in range(100):
        white = np.fft.rfft(rng.standard_normal((channels, samples * looks)))
        emg = np.fft.irfft(np.where((hz >= 80) & (hz < 280), white, 0), samples * looks)
        level.append(np.sqrt((emg.reshape(channels, looks, samples) ** 2).mean((0, 2))))
    level = rng.permutation(np.concatenate(level))  # looks of one event are half a second apart, so not correlated
    rise = level[1:] > 1.25 * level[:-1]
    assert level.std() / level.mean() == pytest.approx(error, abs=0.002)
    assert np.mean(rise) == pytest.approx(once, abs=0.004)
    assert np.mean(rise[1:] & rise[:-1]) == pytest.approx(twice, abs=3e-4)
    for growth, least in ((1.5, 0.74), (2.0, 0.99)):
        a, b, c = level[: len(level) // 3 * 3].reshape(-1, 3).T * np.array([[1.0], [growth], [growth**2]])
        assert np.mean((b > 1.25 * a) & (c > 1.25 * b)) > least
