"""Where calmloop's time goes, event by event, from its own session: the stages sum to the latency that the sink saw."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controller import recording

NAMES = ("pulled", "decided", "guard heard", "at the port")


def refusals(session: recording.Session) -> dict[str, int]:
    """What guard refused, and how often: after each the policy rests for half a second, in which events go unanswered."""
    return dict(Counter("; ".join(row["verdict"]["reasons"]) for row in session.guard() if row.get("verdict", {}).get("refused")))


def stages(session: recording.Session, t0_ns: Sequence[int], answers_ns: Sequence[int]) -> dict[str, list[float]]:
    """For each event that a first pulse answered, µs from one moment to the next.

    The moments: source pushed, loop's pull returned, loop decided, guard took the request up, sink read the pulse.
    """
    pulled_ns = {cycle.numbers["request"]: cycle.numbers["received_ns"] for _, cycle in session.cycles() if cycle.numbers["request"]}
    events = [row["event"] for row in session.guard() if row.get("written_ns") and row["event"]["kind"] == "request"]
    heard_ns = np.array([event["now_ns"] for event in events], np.int64)
    t0, answers = np.asarray(t0_ns, np.int64), np.asarray(answers_ns, np.int64)
    out: dict[str, list[float]] = {name: [] for name in NAMES}
    for at, until in zip(t0, np.append(t0[1:], np.iinfo(np.int64).max), strict=True):
        answer = answers[np.searchsorted(answers, at) :][:1]
        i = int(np.searchsorted(heard_ns, at))
        if not len(answer) or answer[0] >= until or i == len(events) or heard_ns[i] >= answer[0]:
            continue
        event = events[i]
        moments = np.array([at, pulled_ns.get(event["number"], at), event["issued_ns"], event["now_ns"], answer[0]], np.int64)
        for name, us in zip(NAMES, np.diff(moments) / 1000, strict=True):
            out[name].append(round(float(us), 1))
    return out
