"""From detections to what to ask guard for: trains, looks between them, rest after an event.

Pure: time comes in with the chunk, guard's answers too. It asks; guard alone decides. A train that stops while its trigger persists
relatches (physiology notes 3.2), so after each train the policy looks, and asks again within the same event while the rule is active.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from drivers.base import FEEDBACK_ENDED, FEEDBACK_PULSE, FEEDBACK_REFUSED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from controller.detector import Detection
    from controller.settings import Settings

CAUSE_EMG, CAUSE_FORCE = 1, 2  # as supervisor.Cause; the policy does not import the supervisor
RETRY_S = 0.5  # after a refusal
ANSWER_S = 0.3  # beyond the train's own length without a word from guard: give up waiting
ARTEFACT_S = 0.005  # beyond the dead time: jitter of the pulses around their slots
MARGIN_S = 0.002  # guard measures the look with its own clock reading, a little later than ours


@dataclass(frozen=True, slots=True)
class StimRequest:
    """One train asked for. `decided_ns` is stamped by whoever sends it."""

    number: int
    event_id: int
    train: int
    current_ua: int
    duration_us: int
    cause: int
    onset_s: float


class Phase(Enum):
    """Where the policy is within an event."""

    WATCH = "watch"
    TRAIN = "train"
    LOOK = "look"
    REST = "rest"


class Policy:
    """One bed's policy: one event at a time, opened by the first rule that is active."""

    def __init__(self, settings: Settings) -> None:
        names = list(settings.trains)
        self.trains = [names.index(rule.train) for rule in settings.rules]
        self.causes = [CAUSE_EMG] * len(settings.emg_rules) + [CAUSE_FORCE] * len(settings.force_rules)
        self.current_ua = [round(train.current_ma * 1000) for train in settings.trains.values()]
        self.duration_us = [train.duration_ms * 1000 for train in settings.trains.values()]
        rx = settings.prescription
        self.dead_s, self.look_s = rx.look_dead_ms / 1000, rx.look_ms / 1000
        self.refractory_s, self.max_event_s = rx.refractory_s, rx.max_event_s
        self.phase = Phase.WATCH
        self.number = 0
        self.event_id = 0
        self.rule = 0  # that opened the event
        self.event_on_s = 0.0
        self.until_s = 0.0  # of the present phase
        self.hold_until_s = 0.0  # samples up to here carry stimulation

    def hear(self, feedback: NDArray[np.float64]) -> None:
        """Take guard's answers, (k, 3): code, time in s, request number."""
        for code, t_s, number in feedback:
            if code == FEEDBACK_PULSE:
                self.hold_until_s = max(self.hold_until_s, t_s + self.dead_s + ARTEFACT_S)
            elif number == self.number and self.phase is Phase.TRAIN:
                if code == FEEDBACK_ENDED:
                    self.phase, self.until_s = Phase.LOOK, t_s + self.dead_s + self.look_s + MARGIN_S
                elif code == FEEDBACK_REFUSED:
                    self.phase, self.until_s = Phase.REST, t_s + RETRY_S

    def ask(self, now_s: float, detections: tuple[Detection, ...]) -> StimRequest | None:
        """What to ask for now."""
        if self.phase is Phase.TRAIN and now_s >= self.until_s:
            self._rest(now_s)
        elif self.phase is Phase.LOOK and now_s >= self.until_s:
            duration_s = self.duration_us[self.trains[self.rule]] * 1e-6
            if detections[self.rule].active and self.event_on_s + duration_s <= self.max_event_s:
                return self._request(now_s, detections)
            self._rest(now_s)
        elif self.phase is Phase.REST and now_s >= self.until_s:
            self.phase = Phase.WATCH
        if self.phase is Phase.WATCH:
            for rule, detection in enumerate(detections):
                if detection.active:
                    self.rule = rule
                    self.event_id += 1
                    self.event_on_s = 0.0
                    return self._request(now_s, detections)
        return None

    def _request(self, now_s: float, detections: tuple[Detection, ...]) -> StimRequest:
        train = self.trains[self.rule]
        duration_s = self.duration_us[train] * 1e-6
        self.number += 1
        self.event_on_s += duration_s
        self.phase, self.until_s = Phase.TRAIN, now_s + duration_s + ANSWER_S
        # the first pulse may reach the electrode before guard's word of it reaches us
        self.hold_until_s = max(self.hold_until_s, now_s + self.dead_s + ARTEFACT_S)
        return StimRequest(
            number=self.number,
            event_id=self.event_id,
            train=train,
            current_ua=self.current_ua[train],
            duration_us=self.duration_us[train],
            cause=self.causes[self.rule],
            onset_s=detections[self.rule].onset_s,
        )

    def _rest(self, now_s: float) -> None:
        self.phase, self.until_s = Phase.REST, now_s + self.refractory_s
