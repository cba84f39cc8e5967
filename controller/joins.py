"""Rules that ask together: `any` of them, `all` of them, or EMG and then force. A join is one more row of what is seen, after the rules.

It has no threshold of its own and looks at no sample: its rows follow from those of its members and their stamps, so that the block size
can never matter. Torque follows EMG by 12 to 50 ms and more (physiology notes, 3.1), so a spasm shows in this order; what pulls at the
limb from outside, or an amplifier that goes wrong, shows in one of them alone, or in force first.

`@njit` functions on records; they allocate nothing and know neither columns of `seen` nor clocks. `kernels` calls them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.settings import Settings

HOWS = ("any", "all", "emg_then_force")
ANY, ALL, EMG_THEN_FORCE = range(3)

JOIN = np.dtype(
    [
        # settings; of `within_s` after the EMG's decision force must cross
        *((name, np.int64) for name in ("how", "n_members", "needed")),
        ("within_s", np.float64),
        # which decision of the EMG rule force has followed in time, and when it did
        *((name, np.float64) for name in ("followed_s", "crossed_s")),
        # what it says, as a rule does
        *((name, np.int64) for name in ("active", "n_active", "quality")),
        *((name, np.float64) for name in ("onset_s", "decided_s", "newest_s", "first_s", "last_s")),
    ],
    align=True,
)


def state(settings: Settings) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """All joins of a bed, that have seen nothing yet.

    Returns
    -------
    joins : (n_joins,) JOIN
    members : (n_joins, m) int64
        Rows of their rules in `seen`, EMG first; shorter ones leave the end unused.
    """
    names = [rule.name for rule in settings.rules]
    joins = np.zeros(len(settings.joins), JOIN)
    members = np.zeros((len(joins), max((len(join.rules) for join in settings.joins), default=1)), np.int64)
    for i, join in enumerate(settings.joins):
        members[i, : len(join.rules)] = sorted(names.index(name) for name in join.rules)
        joins[i]["how"], joins[i]["n_members"], joins[i]["within_s"] = HOWS.index(join.how), len(join.rules), join.within_ms / 1000
        joins[i]["needed"] = 1 if join.how == "any" else len(join.rules)
    for name in ("followed_s", "crossed_s", "onset_s", "decided_s"):
        joins[name] = np.nan
    return joins, members


@njit(cache=True, nogil=True)
def crossed(joins, members, emg, row, now):
    """Force of the rule in `row` has crossed its threshold."""
    for j in range(joins.shape[0]):
        if joins[j].how == EMG_THEN_FORCE and members[j, 1] == row:
            _follow(joins[j], emg[members[j, 0]], now)


@njit(cache=True, nogil=True)
def _follow(join, rule, now):
    if join.followed_s != rule.decided_s and 0.0 <= now - rule.decided_s <= join.within_s:  # not with NaN
        join.followed_s, join.crossed_s = rule.decided_s, now


@njit(cache=True, nogil=True)
def judge(join, members, emg, force):
    """Say in `join` what its members, rows of `emg` and then of `force`, say together.

    While it is active: onset of the member that began first; decided with the first member (`any`), with the last (`all`), at the force's
    crossing. Else both are NaN, since a stamp that is told must be that of a decision. `newest_s` is of the member that is furthest behind.
    Once force has followed, the EMG alone says how long it lasts: torque lags, and the antagonist that is stimulated turns it.
    """
    n_emg = emg.shape[0]
    join.n_active = join.quality = 0
    join.onset_s, join.first_s, join.last_s, join.newest_s = np.inf, np.inf, -np.inf, np.inf
    for k in range(join.n_members):
        row = members[k]
        if row < n_emg:
            _take(join, emg[row])
        else:
            _take(join, force[row - n_emg])
    if join.how == EMG_THEN_FORCE:
        rule = emg[members[0]]
        _follow(join, rule, force[members[1] - n_emg].decided_s)  # force may arrive before the EMG of the same time
        join.active = rule.active and join.followed_s == rule.decided_s
        join.n_active = rule.active + join.active
        join.onset_s, join.decided_s = rule.onset_s, join.crossed_s
    else:
        join.active = join.n_active >= join.needed
        join.decided_s = join.last_s if join.how == ALL else join.first_s
    if not join.active:
        join.onset_s = join.decided_s = np.nan


@njit(cache=True, nogil=True)
def _take(join, rule):
    join.quality = max(join.quality, rule.quality)
    join.newest_s = min(join.newest_s, rule.last_s)
    if rule.active:
        join.n_active += 1
        join.onset_s = min(join.onset_s, rule.onset_s)
        join.first_s, join.last_s = min(join.first_s, rule.decided_s), max(join.last_s, rule.decided_s)
