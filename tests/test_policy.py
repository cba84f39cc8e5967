"""The policy against a guard that answers promptly."""

from pathlib import Path

import numpy as np
import pytest

from controller import settings
from controller.detector import Detection
from controller.policy import Phase, Policy
from drivers.base import FEEDBACK_ENDED, FEEDBACK_PULSE, FEEDBACK_REFUSED

CONFIG = settings.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")
STEP_S = 0.002


def detections(emg, force=False):
    return tuple(Detection(name, active, 1.0, 1.0, 0.0, 0.0, 0.0, "ok") for name, active in (("emg", emg), ("force", force)))


class Play:
    """Steps of 2 ms; guard grants (or refuses) at once and ends each train on time."""

    def __init__(self, refuse=False, deaf=False):
        self.policy, self.now, self.refuse, self.deaf = Policy(CONFIG), 100.0, refuse, deaf
        self.requests, self.ends, self.pending = [], [], []

    def run(self, seconds, active):
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            due = [row for row in self.pending if row[1] <= self.now]
            self.pending = [row for row in self.pending if row[1] > self.now]
            self.policy.hear(np.array(due).reshape(-1, 3))
            request = self.policy.ask(self.now, detections(*([active] if isinstance(active, bool) else active)))
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
    assert play.policy.phase is Phase.TRAIN
    assert play.now + 0.005 <= play.policy.hold_until_s <= play.now + 0.026
    play.run(0.4, False)
    assert play.policy.hold_until_s < play.now


def test_answers_to_others_change_nothing():
    play = Play().run(0.1, True)
    before = play.policy.phase, play.policy.until_s
    play.policy.hear(np.array([[FEEDBACK_ENDED, play.now, 99.0], [FEEDBACK_REFUSED, play.now, -1.0]]))
    assert (play.policy.phase, play.policy.until_s) == before
