"""The policy against a guard that answers promptly."""

from pathlib import Path

import numpy as np
import pytest

from controller import kernels, policy, settings
from controller.recording import CYCLE
from drivers.base import FEEDBACK_ENDED, FEEDBACK_PULSE, FEEDBACK_REFUSED

CONFIG = settings.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")
STEP_S = 0.002


def seen(now, emg, force=False):
    rows = np.zeros((2, kernels.N_SEEN))
    rows[:, kernels.ACTIVE] = emg, force
    rows[:, kernels.ONSET_S], rows[:, kernels.DECIDED_S] = now - 0.02, now - 0.001
    return rows


class Play:
    """Steps of 2 ms; guard grants (or refuses) at once and ends each train on time."""

    def __init__(self, refuse=False, deaf=False):
        self.policy, self.now, self.refuse, self.deaf = policy.state(CONFIG), 100.0, refuse, deaf
        self.cycle = np.zeros(1, CYCLE)
        self.requests, self.ends, self.pending = [], [], []

    def run(self, seconds, active):
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            due = [row for row in self.pending if row[1] <= self.now]
            self.pending = [row for row in self.pending if row[1] > self.now]
            policy.hear(self.policy, np.array(due, np.float64).reshape(-1, 3))
            rows = seen(self.now, *([active] if isinstance(active, bool) else active))
            policy.ask(self.policy, self.now, np.full(2, self.now), rows, self.cycle[0])
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
