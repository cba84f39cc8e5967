"""What our own pulses put into the EMG: held, learnt and taken away, so that the detector can listen between the pulses of a train.

For `hold_ms` from each pulse on, the raw signal stands still before it meets the filters: sampling does not keep step with the artefact,
whose size therefore differs from pulse to pulse, so that no template removes it (detection notes, section 5). What follows, tail and
M-wave, is the same after each pulse: its mean, relative to the value at the pulse, is subtracted. Where that mean is so large that a
tenth of it would look like a muscle, the signal stands still too. This needs pulses that are alike: of one current, and `MIN_PERIOD_S` or
more apart. With all others, and with the first ones of a train, nothing is listened to for the whole dead time.

`@njit` functions on the state of `OwnState`, a fixed amount of work a sample, and `find_pulses` for recordings that do not say when they
were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from drivers.base import FEEDBACK_PULSE

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLEAR, BETWEEN, HELD = range(3)  # what `clean` says of a sample: nothing of ours in it, taken away, or the signal stands still

MAX_UV = 1e6  # 1 V is no EMG: such a sample is as bad as NaN, and would fill the filters for good
MAX_PULSES = 64  # of which word has come before their samples have
MIN_PERIOD_S = 0.019  # of pulses whose M-waves do not overlap; nearer ones leave too little between them (bench.detection)
MAX_PERIOD_S = 0.25  # pulses further apart are of two trains
TEMPLATE_S = 0.05  # M-wave and H-reflex are over: the latter comes after some 38 ms in soleus (detection notes, section 2)
LEARN_PULSES = 5  # before these nothing is taken away: the mean of five adds a fifth to the power of what is left
STEP = 0.1  # of the exponential mean (detection notes, section 5)
TRUST = 0.1  # of the template, how far a response may differ from it
ANY = -1  # as a request's number: pulses of a recording, all alike
# of `find_pulses`: second differences so many times their median, quiet for so long before, as far apart as most are to within so much
FIND_RATIO, FIND_QUIET_S, FIND_JITTER_S, FIND_BEFORE_S = 30.0, 0.005, 0.002, 0.0005

_SETTINGS = ("hold_samples", "template_samples", "min_period", "max_period")
OWN_RULE = np.dtype([(name, np.int64) for name in (*_SETTINGS, "taken", "since", "alike", "period", "code")], align=True)


class OwnState(NamedTuple):
    """Our pulses as the rules of one bed see them. Axes: rule, then sample or channel.

    Attributes
    ----------
    heard : (1,) int64
        Pulses of which word has come.
    pulses : (MAX_PULSES, 2) float64
        The last of them: when, and 1 where its current is that of the pulses around it.
    rule : (n_emg_rules,) OWN_RULE
        `taken` of the pulses heard have had their samples; `since` the last, in samples; `alike` in a row.
    template : (n_emg_rules, w, c) float64, µV
        Mean response.
    at_pulse : (n_emg_rules, c) float64, µV
        Value just before the pulse.
    clean : (n_emg_rules, 1, n_emg) float64, µV
        The present sample without what is ours.
    """

    heard: NDArray[np.int64]
    pulses: NDArray[np.float64]
    rule: NDArray[np.void]
    template: NDArray[np.float64]
    at_pulse: NDArray[np.float64]
    clean: NDArray[np.float64]


def state(n_rules: int, n_pooled: int, n_emg: int, sample_rate_hz: float, hold_ms: float) -> OwnState:
    """Nothing heard yet; with a hold of 0 ms nothing is ever taken away."""
    w = max(1, round(TEMPLATE_S * sample_rate_hz)) if hold_ms else 1
    rule = np.zeros(n_rules, OWN_RULE)
    rule["hold_samples"], rule["template_samples"] = np.ceil(hold_ms / 1000 * sample_rate_hz), w
    rule["min_period"], rule["max_period"] = int(MIN_PERIOD_S * sample_rate_hz), round(MAX_PERIOD_S * sample_rate_hz)
    rule["since"] = rule["max_period"]
    arrays = (np.zeros((n_rules, w, n_pooled)), np.zeros((n_rules, n_pooled)), np.zeros((n_rules, 1, n_emg)))
    return OwnState(np.zeros(1, np.int64), np.zeros((MAX_PULSES, 2)), rule, *arrays)


@njit(cache=True, nogil=True)
def hear(own, feedback, number, alike_from_s, alike_until_s):
    """Take guard's words, (k, 3): code, time in s, request; between the two times the pulses of request `number` are of one current."""
    for k in range(feedback.shape[0]):
        code, t_s, of = feedback[k, 0], feedback[k, 1], feedback[k, 2]
        if code == FEEDBACK_PULSE:
            at = own.heard[0] % MAX_PULSES
            own.pulses[at, 0] = t_s
            own.pulses[at, 1] = min(of, number) == ANY or (of == number and alike_from_s <= t_s <= alike_until_s)
            own.heard[0] += 1


@njit(cache=True, nogil=True)
def clean(own, i, c, columns, scale, raw, x, now):
    """Take what is ours from the sample `x` into `own.clean[i]`; returns CLEAR (nothing was to be taken), BETWEEN or HELD.

    `scale` is 1 / root mean square of rest, of each of the c channels of rule `i`; `raw` its last samples.
    """
    rule, heard, pulses, template, at_pulse, out = own.rule[i], own.heard[0], own.pulses, own.template[i], own.at_pulse[i], own.clean[i, 0]
    rule.taken = max(rule.taken, heard - MAX_PULSES)
    at = rule.taken % MAX_PULSES
    if rule.taken < heard and pulses[at, 0] <= now:
        near = rule.since < rule.max_period
        rule.alike = 0 if pulses[at, 1] == 0.0 else rule.alike + 1 if near and rule.since >= rule.min_period else 1
        rule.period = rule.since
        rule.taken += 1
        rule.since = 0
        for ch in range(c):
            at_pulse[ch] = raw[ch, 0]
    w = min(rule.template_samples, rule.period)
    since, rule.since = rule.since, min(rule.since + 1, rule.max_period)
    before, rule.code = rule.code, CLEAR
    if rule.alike == 0 or rule.hold_samples == 0 or since >= w:
        # what was taken away until now leaves a step behind: the filters begin anew
        if before == BETWEEN:
            out[:] = x
            return HELD
        return CLEAR
    rule.code = BETWEEN if since >= rule.hold_samples else HELD
    step = max(1.0 / rule.alike, STEP)
    for ch in range(c):
        if abs(template[since, ch]) * scale[ch] * TRUST > 1.0:
            rule.code = HELD
    out[:] = x
    for ch in range(c):
        y = x[columns[ch]]
        if not abs(y) < MAX_UV:
            continue  # a bad sample teaches nothing, and is seen as what it is
        out[columns[ch]] = raw[ch, 0] if rule.code == HELD else y - template[since, ch]
        template[since, ch] += step * (y - at_pulse[ch] - template[since, ch])
    if rule.alike <= LEARN_PULSES:
        rule.code = CLEAR
    return rule.code


def find_pulses(emg_uv: NDArray[np.float64], sample_rate_hz: float) -> NDArray[np.float64]:
    """When a recording was stimulated, from its artefacts; for recordings of which nobody wrote it down.

    Parameters
    ----------
    emg_uv : (n_samples, n_channels) float64, µV

    Returns
    -------
    pulses_s : (n_pulses,) float64, s from the start
        `FIND_BEFORE_S` before each artefact; none where no regular ones are.
    """
    if len(emg_uv) < 3:
        return np.zeros(0)
    jerk = np.abs(np.diff(emg_uv, 2, axis=0))
    level = np.median(jerk, axis=0)
    sharp = np.flatnonzero((jerk > FIND_RATIO * np.maximum(level, np.finfo(float).tiny)).any(axis=1))
    if len(sharp) < 3:
        return np.zeros(0)
    at_s = sharp[np.r_[True, np.diff(sharp) > FIND_QUIET_S * sample_rate_hz]] / sample_rate_hz
    gap_s = np.diff(at_s)
    regular = np.abs(gap_s - np.median(gap_s)) < FIND_JITTER_S
    return np.asarray(np.maximum(at_s[np.r_[regular, False] | np.r_[False, regular]] - FIND_BEFORE_S, 0.0))
