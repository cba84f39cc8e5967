"""From detections to what to ask guard for: trains, looks between them, rest after an event.

Pure: time comes in with the chunk, guard's answers too. It asks; guard alone decides. A train that stops while its trigger persists
relatches (physiology notes 3.2), so after each train the policy looks, and asks again within the same event while the rule is active.
With each request but the first of an event goes the level of the muscle in the look just before: guard ends a treatment that makes the
spasm stronger (facilitation, withdrawal reflex: physiology notes 1.5, 3.4) and locks its rule out. Nothing of that is decided here, where
the same mistake could make both the request and the excuse; what is refused is asked again after RETRY_S at the earliest, as ever.

How much is a rise? A root mean square over T s of EMG that is B Hz wide has a standard error of 1 / (2 sqrt(B T)): 11 % for a look of
100 ms and 200 Hz on one channel, 8 % on two that hear different fibres. Of a spasm that does not change, two looks then differ by more
than 25 % upwards once in 13 (one channel; simulated, see tests/test_policy.py), two such rises run only once in 2900; two channels: once
in 45, and twice in a million. A spasm that grows by half from look to look is known by two rises in 76 % (two channels: 90 %), one that
doubles in 99.7 %. So 25 % twice running means the muscle and not the measure. Why the muscle grows cannot be seen: a spasm that is still
building up looks the same, and is given up too.

Samples within the dead time after each of our pulses are held. Where the settings let the detector listen between pulses (`hold_ms`), it
does so while they are of one current, between ramp and taper of a train that was asked for here; that is off by default, since a rule that
ends or begins within a train changes what is asked for after it.

`@njit` functions on records, since they run between a sample's arrival and the request's leaving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit

from controller.kernels import ACTIVE, DECIDED_S, LEVEL, ONSET_S
from drivers.base import FEEDBACK_ENDED, FEEDBACK_PULSE, FEEDBACK_REFUSED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.settings import Settings

CAUSE_EMG, CAUSE_FORCE = 1, 2  # as supervisor.Cause; the policy does not import the supervisor
RETRY_S = 0.5  # after a refusal
ANSWER_S = 0.3  # beyond the train's own length without a word from guard, or beyond a look without its samples: give up waiting
ARTEFACT_S = 0.005  # beyond the dead time: jitter of the pulses around their slots
MARGIN_S = 0.002  # guard measures the look with its own clock reading, a little later than ours
REQUEST_FIELDS = ("request", "event_id", "train", "current_ua", "duration_us", "cause", "rule", "level")
MAX_LEVEL = 1e15  # no muscle's: what an integer surely holds

WATCH, TRAIN, LOOK, REST = range(4)  # where the policy is within an event

POLICY = np.dtype(
    [
        *((name, np.float64) for name in ("dead_s", "look_s", "refractory_s", "retry_s", "max_event_s")),
        *((name, np.int64) for name in ("phase", "number", "event_id", "rule")),  # `rule` opened the event
        *((name, np.float64) for name in ("event_on_s", "until_s")),  # `until_s` of the present phase
        ("hold_until_s", np.float64),  # samples up to here carry stimulation
        ("look_from_s", np.float64),  # and the look is of samples later than this
        *((name, np.float64) for name in ("alike_from_s", "alike_until_s")),  # between ramp and taper pulses of our train are alike
    ],
    align=True,
)
RULE = np.dtype(
    [(name, np.int64) for name in ("asks", "cause", "train", "current_ua", "duration_us", "ramp_up_us", "taper_us", "was_active")],
    align=True,
)


@dataclass(frozen=True, slots=True)
class StimRequest:
    """One train asked for, as the fields of `recording.CYCLE` say it. When it was decided is stamped by whoever sends it.

    Attributes
    ----------
    number : int
        Strictly increasing.
    event_id : int
        The spasm it belongs to.
    rule : int
        That asks, in the order of the detections: rules, then joins.
    level : int
        What this rule's muscle (a join's: its first rule's) showed in the look just before, in 1/1000 µV, N or N m, at least 1; 0 for the
        first request of an event.
    onset_s : float
        Of the spasm, as estimated.
    evidence_s : float
        Stamp of the sample that decided: old when a backlog was worked off, and then guard refuses it by its age.
    """

    number: int
    event_id: int
    train: int
    current_ua: int
    duration_us: int
    cause: int
    rule: int
    level: int
    onset_s: float
    evidence_s: float


def request_of(cycle: Any) -> StimRequest | None:
    """What a `recording.CYCLE` record, or a dictionary of its fields, asks for."""
    if not cycle["request"]:
        return None
    number, event_id, train, current_ua, duration_us, cause, rule, level = (int(cycle[name]) for name in REQUEST_FIELDS)
    onset_s, evidence_s = float(cycle["onset_s"]), float(cycle["evidence_s"])
    return StimRequest(number, event_id, train, current_ua, duration_us, cause, rule, level, onset_s, evidence_s)


class PolicyState(NamedTuple):
    """One bed's policy: one event at a time, opened by the first rule that is active.

    Attributes
    ----------
    policy : (1,) POLICY
    rules : (n_rules + n_joins,) RULE
        What each rule and each join asks for, in the order of the detections; a rule that is joined asks through its join alone.
    """

    policy: NDArray[np.void]
    rules: NDArray[np.void]


def state(settings: Settings) -> PolicyState:
    """A policy at rest for these settings."""
    policy, rules = np.zeros(1, POLICY), np.zeros(len(settings.rows), RULE)
    rx, p = settings.prescription, policy[0]
    p["dead_s"], p["look_s"] = rx.look_dead_ms / 1000, rx.look_ms / 1000
    p["refractory_s"], p["retry_s"], p["max_event_s"] = rx.refractory_s, RETRY_S, rx.max_event_s
    names = list(settings.trains)
    joined = {name for join in settings.joins for name in join.rules}
    for i, rule in enumerate(settings.rules):
        train = settings.trains[rule.train]
        cause = CAUSE_EMG if i < len(settings.emg_rules) else CAUSE_FORCE
        times_us = (1000 * ms for ms in (train.duration_ms, train.ramp_up_ms, train.taper_ms))
        rules[i] = (rule.name not in joined, cause, names.index(rule.train), round(train.current_ma * 1000), *times_us, 0)
    rows = [rule.name for rule in settings.rules]
    for i, join in enumerate(settings.joins, len(rows)):
        rules[i] = rules[min(rows.index(name) for name in join.rules)]  # whose level it sends too
        rules[i]["asks"] = 1
    return PolicyState(policy, rules)


@njit(cache=True, nogil=True)
def hear(s, feedback):
    """Take guard's answers, (k, 3): code, time in s, request number."""
    p = s.policy[0]
    for k in range(feedback.shape[0]):
        code, t_s, number = feedback[k, 0], feedback[k, 1], feedback[k, 2]
        if code == FEEDBACK_PULSE:
            p.hold_until_s = max(p.hold_until_s, t_s + p.dead_s + ARTEFACT_S)
            if number == p.number and np.isinf(p.alike_from_s):
                rule = s.rules[p.rule]
                p.alike_from_s = t_s + 1e-6 * rule.ramp_up_us
                p.alike_until_s = t_s + 1e-6 * (rule.duration_us - rule.taper_us)
        elif number == p.number and p.phase == TRAIN:
            if code == FEEDBACK_ENDED:
                p.phase, p.until_s = LOOK, t_s + p.dead_s + p.look_s + MARGIN_S
                p.look_from_s = t_s + p.dead_s
            elif code == FEEDBACK_REFUSED:
                p.phase, p.until_s = REST, t_s + p.retry_s


@njit(cache=True, nogil=True)
def ask(s, now_s, newest_s, seen, may, cycle):
    """Fill the fields of a request in `cycle`, a `recording.CYCLE` record, with what to ask for now; request 0 = nothing.

    Parameters
    ----------
    newest_s : (n_rules + n_joins,) float64
        Stamp of the newest sample that each rule has seen.
    seen : (n_rules + n_joins, N_SEEN) float64
        `DetectorState.seen`.
    may : bool
        Whether the samples are to be believed; a train that would be due is waited with, and an event that waits too long is over.
    """
    p = s.policy[0]
    cycle.request = cycle.event_id = cycle.train = cycle.current_ua = cycle.duration_us = cycle.cause = cycle.rule = cycle.level = 0
    cycle.onset_s = cycle.evidence_s = 0.0
    if p.phase == TRAIN and now_s >= p.until_s:
        _rest(p, now_s)
    elif p.phase == LOOK and now_s >= p.until_s:
        rule, what = s.rules[p.rule], seen[p.rule]
        if not what[ACTIVE] or p.event_on_s + rule.duration_us * 1e-6 > p.max_event_s or now_s >= p.until_s + ANSWER_S:
            _rest(p, now_s)
        elif may and not np.isnan(what[LEVEL]):  # samples come later than time passes: the look is over when it was seen
            _request(p, rule, now_s, newest_s[p.rule], what, cycle)
            cycle.level = np.int64(min(max(1000.0 * what[LEVEL] + 0.5, 1.0), MAX_LEVEL))
    elif p.phase == REST and now_s >= p.until_s:
        p.phase = WATCH
    if p.phase == WATCH and may:
        for i in range(s.rules.shape[0]):
            if s.rules[i].asks and seen[i, ACTIVE]:
                p.rule = i
                p.event_id += 1
                p.event_on_s = 0.0
                _request(p, s.rules[i], now_s, newest_s[i], seen[i], cycle)
                break
    for i in range(s.rules.shape[0]):
        s.rules[i].was_active = seen[i, ACTIVE] != 0.0


@njit(cache=True, nogil=True)
def _request(p, rule, now_s, newest_s, seen, cycle):
    duration_s = rule.duration_us * 1e-6
    p.number += 1
    p.event_on_s += duration_s
    p.phase, p.until_s = TRAIN, now_s + duration_s + ANSWER_S
    # the first pulse may reach the electrode before guard's word of it reaches us
    p.hold_until_s = max(p.hold_until_s, now_s + p.dead_s + ARTEFACT_S)
    p.alike_from_s = np.inf  # until its first pulse
    cycle.request, cycle.event_id, cycle.cause, cycle.rule = p.number, p.event_id, rule.cause, p.rule
    cycle.train, cycle.current_ua, cycle.duration_us = rule.train, rule.current_ua, rule.duration_us
    cycle.onset_s = seen[ONSET_S]
    # a rule that was active before is active by the newest sample; one that has just become so, by the sample that made it sure
    cycle.evidence_s = newest_s if rule.was_active else seen[DECIDED_S]


@njit(cache=True, nogil=True)
def _rest(p, now_s):
    p.phase, p.until_s = REST, now_s + p.refractory_s
