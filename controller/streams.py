"""Whether a signal arrives as it should: each fault of a stream has a name, and while one is on nothing is asked for.

What the numbers in the samples say (no number, flat, saturated, loud) is the detector's to judge; this is about stamps alone: D1, D2 and
D6 of the safety notes. D6 asks for stamps that strictly increase. An amplifier's program that hands LSL blocks without stamps cannot keep
that: LSL stamps a block's last sample when it comes and counts back from there, so blocks that come early overlap by some milliseconds.
Steps back that are shorter than a gap are such jitter. Two samples running of one stamp are none: a block that was stamped once. A block
that is sent twice looks like jitter; where all are, the rate is twice what it should be.

Compiled, O(1) a sample, part of `loop.step`, so that a replay finds the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

STALE_S = 0.05  # no sample for this long, or for ten periods, is "no samples" (D1)
RATE_WINDOW_S, RATE_TOLERANCE = 2.0, 0.05  # D2
GAP_S = 0.05  # a hole in the stamps longer than this, and than ten periods, starts filters and measurements over
JUMP_S = 1.0  # forward by more than this is a jump of a clock (D6)
CLEAN_S = 1.0  # after the last bad stamp
FAULTS, FAULTS_S = 3, 60.0  # three within so long: the stream is not believed any more (D6)

ABSENT, FINE, SILENT, DISORDERED, JUMPED, WRONG_RATE = range(6)
STATES = ("", "fine", "no samples [D1]", "stamps run backwards or are doubled [D6]", "stamps jumped [D6]", "wrong rate [D2]")

STREAM = np.dtype(
    [
        *((name, np.int64) for name in ("state", "wrong", "off_rate", "n", "faults", "lost")),
        # nominal, and of the last whole window; newest stamp; the age at which it is too old, and the step that is a gap
        *((name, np.float64) for name in ("rate_hz", "measured_hz", "newest_s", "stale_s", "gap_s")),
        # what was measured so far, without gaps; until when it is wrong, and when its last two faults were (host)
        *((name, np.float64) for name in ("span_s", "until_s", "fault_s", "fault_before_s")),
    ],
    align=True,
)


def stream(rate_hz: float) -> NDArray[np.void]:
    """Make the state of one stream, (1,) STREAM; 0 Hz: there is no such signal."""
    s = np.zeros(1, STREAM)
    if rate_hz:
        s["state"], s["rate_hz"], s["gap_s"], s["stale_s"] = SILENT, rate_hz, max(GAP_S, 10.0 / rate_hz), max(STALE_S, 10.0 / rate_hz)
    return s


@njit(cache=True, nogil=True)
def watch(s, t_s, now_s):
    """Take what arrived, or that nothing did.

    Parameters
    ----------
    s : STREAM
        Its `state` becomes one of the codes above.
    t_s : (n_samples,) float64
        Stamps, s.
    now_s : float
        Host's clock, s.
    """
    if s.rate_hz == 0.0:
        return
    for k in range(t_s.size):
        now, step = t_s[k], t_s[k] - s.newest_s
        begun = s.newest_s != 0.0
        s.newest_s = now
        if begun and not (-s.gap_s < step <= JUMP_S and step != 0.0):  # no number is neither
            _fault(s, JUMPED if step > JUMP_S else DISORDERED, now_s)
        if begun and abs(step) <= s.gap_s:  # a gap is left out of the measurement, and does not end it
            s.span_s += step
            s.n += 1
            if s.span_s >= RATE_WINDOW_S:
                s.measured_hz = s.n / s.span_s
                s.off_rate = abs(s.measured_hz / s.rate_hz - 1.0) > RATE_TOLERANCE
                s.span_s, s.n = 0.0, 0
    if not abs(now_s - s.newest_s) < s.stale_s:
        s.state = SILENT
    elif now_s < s.until_s:
        s.state = s.wrong
    else:
        s.state = WRONG_RATE if s.off_rate else FINE


@njit(cache=True, nogil=True)
def _fault(s, wrong, now_s):
    """Count one fault; what comes within its second of distrust is the same one."""
    if now_s < s.until_s:
        return
    s.wrong, s.until_s = wrong, now_s + CLEAN_S
    s.faults += 1
    if s.faults >= FAULTS and now_s - s.fault_before_s <= FAULTS_S:
        s.lost = 1
    s.fault_before_s, s.fault_s = s.fault_s, now_s
