"""A session's samples through the loop with other settings: what would have been decided otherwise.

What can be compared honestly? The recorded stimulation changed the patient. Up to the first request that differs, the samples are what the
other settings would have met too, and everything said of that time holds. After it they are not: a train that was not given then, or was
given 50 ms earlier, would have left another spasm. What is found from there on says how these settings hear these samples, no more.

Guard is not asked again: its answers and pulses come as they were recorded, to the request that takes the place of the recorded one. A
request without such a place gets no answer, as from a guard that says nothing. What the other settings prescribe beyond the loop (limits,
doses) changes nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from controller import replay
from controller.loop import Loop
from controller.many import untold
from controller.recording import DETECTION_FIELDS
from controller.settings import SettingsError
from drivers.base import FEEDBACK_PULSE, FEEDBACK_REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from controller.policy import StimRequest
    from controller.recording import Session
    from controller.settings import Settings

LISTENED = {"emg": ("channels", "sample_rate_hz"), "force": ("channels", "sample_rate_hz", "unit")}  # EMG is recorded in µV whatever it was
NOBODYS = 0.0  # number of a request that there never is
PULSES, REFUSED, NOTHING = "pulses", "refused", "nothing"  # guard's answers


def fits(recorded: Settings, other: Settings, name: str) -> None:
    """Raise `SettingsError` with every field in which `other`, of the file `name`, cannot listen to what was recorded."""
    problems = []
    for table, fields in LISTENED.items():
        had, has = getattr(recorded, table), getattr(other, table)
        if (had is None) != (has is None):
            problems.append(
                f"{name}: [{table}] is {'missing' if had else 'there'}, and the session was recorded {'with' if had else 'without'}"
            )
        elif had:
            for field in fields:
                was, now = getattr(had, field), getattr(has, field)
                if was != now:
                    problems.append(f"{name}: [{table}] {field} is {_plain(now)}, the session's is {_plain(was)}: must be the same")
    if not other.automatic:
        problems.append(f"{name}: has no rule: nothing would be decided")
    if problems:
        raise SettingsError(problems)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def changes(recorded: Settings, other: Settings) -> list[str]:
    """Every setting that differs and that the loop listens to, a line each."""
    lines: list[str] = []
    for table in ("emg", "emg_rules", "force_rules", "joins", "trains", "prescription"):
        was, now = (_named(getattr(config, table)) for config in (recorded, other))
        for name in sorted(was.keys() | now.keys()):
            had, has = was.get(name, {}), now.get(name, {})
            if not had or not has:
                lines.append(f"{table} {name}: {'is gone' if had else 'is new'}")
                continue
            where = f"{table} {name}".strip()
            lines += [f"{where}: {key} {had[key]} -> {has[key]}" for key in had if had[key] != has[key] and key not in _NOT_HEARD]
    return lines


_NOT_HEARD = ("stream_name", "source_id", "stream_type", "author", "version", "reason", "montage")


def _named(table: Any) -> dict[str, dict[str, Any]]:
    """Tables by their names; a table that there is once has none."""
    if isinstance(table, tuple):
        return {one.name: one.model_dump(mode="json") for one in table}
    if hasattr(table, "items"):
        return {name: one.model_dump(mode="json") for name, one in table.items()}
    return {"": table.model_dump(mode="json")} if table else {}


# --- running ----------------------------------------------------------------------------------------------------------------------
@dataclass
class Asked:
    """One request, and where it stands."""

    request: StimRequest
    loop: int
    cycle: int
    rule: str
    train: dict[str, Any]  # with its name
    answer: str = NOTHING  # guard's, as recorded

    @property
    def span_s(self) -> tuple[float, float]:
        """When its train would be given."""
        return self.request.evidence_s, self.request.evidence_s + self.request.duration_us * 1e-6

    @property
    def stimulation(self) -> tuple[dict[str, Any], int, int]:
        """What it would do to the patient."""
        return self.train, self.request.current_ua, self.request.duration_us

    def facts(self, origin_s: float) -> dict[str, Any]:
        """For JSON, times from `origin_s` on."""
        r = self.request
        facts = {"loop": self.loop, "cycle": self.cycle, "rule": self.rule, "event": r.event_id, "train": self.train["name"]}
        facts |= {"current_ma": r.current_ua / 1000, "duration_ms": r.duration_us / 1000, "level": r.level / 1000}
        return facts | {"onset_s": r.onset_s - origin_s, "decided_s": r.evidence_s - origin_s, "answer": self.answer}


class _Asking:
    """Requests of one side, and which of them guard's words are for."""

    def __init__(self, config: Settings) -> None:
        self.trains = [{"name": name} | train.model_dump(mode="json") for name, train in config.trains.items()]
        self.rules = [row.name for row in config.rows]
        self.asked: list[Asked] = []

    def take(self, request: StimRequest | None, loop: int, cycle: int) -> None:
        if request:
            self.asked.append(Asked(request, loop, cycle, self.rules[request.rule], self.trains[request.train]))

    def numbered(self, loop: int, number: float) -> Asked | None:
        """The request of this number, among the last ones of a loop."""
        return next((one for one in reversed(self.asked[-8:]) if one.loop == loop and one.request.number == number), None)


def compare(session: Session, config: Settings, tick: Callable[[float, float], None] = untold) -> dict[str, Any]:
    """Put a session's samples through the loop with other settings; see the module. `fits` must have been asked before.

    Returns
    -------
    dict
        Times in s from the session's first sample; differences as new minus recorded, in ms. See `words`.
    """
    own, other, loop_number, first_ns, last_ns, cycles = Loop(session.config), Loop(config), 0, 0, 0, 0
    was, now = _Asking(session.config), _Asking(config)
    heard_was: list[list[replay.Activation]] = [[] for _ in was.rules]
    heard_now: list[list[replay.Activation]] = [[] for _ in now.rules]
    common = [(was.rules.index(name), now.rules.index(name)) for name in now.rules if name in was.rules]
    origin_s = replay.origin_s(session)
    difference, unlike = None, None
    for number, recorded in replay.told(session, tick):
        if number != loop_number:
            own, other, loop_number = Loop(session.config), Loop(config), number
        cycles += 1
        index, last_ns = recorded.numbers["index"], recorded.chunk.received_ns
        first_ns = first_ns or last_ns
        own.step(recorded.chunk)
        for code, _, of in recorded.chunk.feedback:
            if (one := was.numbered(number, of)) and code in (FEEDBACK_PULSE, FEEDBACK_REFUSED) and one.answer == NOTHING:
                one.answer = PULSES if code == FEEDBACK_PULSE else REFUSED
        cycle = other.step(replace(recorded.chunk, feedback=_readdressed(recorded.chunk.feedback, number, was, now)))
        was.take(recorded.request, number, index)
        now.take(cycle.request, number, index)
        rows, own_rows = other.detector.state.seen, own.detector.state.seen
        replay.take(heard_was, recorded.detections, [recorded.sample_s] * len(was.rules))
        replay.take(heard_now, rows, [recorded.sample_s] * len(now.rules))
        if unlike is None and replay.first_unlike(recorded.detections, own_rows):
            unlike = {"loop": number, "cycle": index}
        if difference is None:
            difference = _first_difference(common, recorded.detections, rows, was.rules, number, index)
    requests = _paired(was.asked, now.asked, lambda one: one.span_s)
    first = _first_parting(was.asked, now.asked)
    rules = {}
    for name in dict.fromkeys([*was.rules, *now.rules]):
        before = heard_was[was.rules.index(name)] if name in was.rules else []
        after = heard_now[now.rules.index(name)] if name in now.rules else []
        rules[name] = _sides(_paired(before, after, _span_s), _decision, origin_s)
    facts: dict[str, Any] = {
        "session": str(session.folder),
        "seconds": (last_ns - first_ns) * 1e-9,
        "cycles": cycles,
        "changes": changes(session.config, config),
        "first_difference": difference,
        "certain_until_s": first.request.evidence_s - origin_s if first else None,
        "first_request_that_differs": first.facts(origin_s) if first else None,
        "rules": rules,
        "requests": _sides(requests, Asked.facts, origin_s),
        "notes": [],
    }
    if unlike:
        facts["notes"].append(
            f"this calmloop decides otherwise than the recorded one even by the session's own settings, from loop {unlike['loop']} cycle "
            f"{unlike['cycle']} on: what differs is of both"
        )
    if not len(session.streams["pulses"].values):
        facts["notes"].append("nothing was stimulated in this session")
    parts = [*rules.values(), facts["requests"]]
    facts["differs"] = any(part["only_recorded"] or part["only_new"] or any(_moved(pair) for pair in part["both"]) for part in parts)
    return facts


def _readdressed(feedback: NDArray[np.float64], loop: int, was: _Asking, now: _Asking) -> NDArray[np.float64]:
    """Guard's words as for the request that takes the place of the recorded one: whose train overlaps its train."""
    if not len(feedback):
        return feedback
    words = feedback.copy()
    for row in words:
        if row[2] > 0 and (meant := was.numbered(loop, row[2])):
            mine = [one for one in now.asked[-8:] if one.loop == loop and _overlap(one.span_s, meant.span_s)]
            row[2] = mine[-1].request.number if mine else NOBODYS
    return words


def _first_parting(was: list[Asked], now: list[Asked]) -> Asked | None:
    """The first request after which the patient would have been another, None = none.

    A recorded one that guard did not grant changed nothing; a new one might have been granted.
    """
    before, after = ({(one.loop, one.cycle): one for one in side} for side in (was, now))
    for at in sorted(before.keys() | after.keys()):
        a, b = before.get(at), after.get(at)
        if b and not (a and a.stimulation == b.stimulation):
            return b
        if a and not b and a.answer == PULSES:
            return a
    return None


def _first_difference(
    common: list[tuple[int, int]], recorded: NDArray[np.float64], rows: NDArray[np.float64], names: list[str], loop: int, index: int
) -> dict[str, Any] | None:
    """In which figure of a rule that both have the two differ, None = in none."""
    before, after = recorded[[i for i, _ in common]], rows[[j for _, j in common]]
    if not (at := replay.first_unlike(before, after)):
        return None
    row, column = at
    field = f"{names[common[row][0]]}: {DETECTION_FIELDS[column]}"
    return {"loop": loop, "cycle": index, "field": field, "recorded": float(before[row, column]), "new": float(after[row, column])}


# --- pairing ----------------------------------------------------------------------------------------------------------------------
def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _span_s(one: replay.Activation) -> tuple[float, float]:
    onset_s = one.onset_s if one.onset_s == one.onset_s else one.decided_s
    return min(onset_s, one.decided_s), max(one.decided_s, one.offset_s)


def _paired(was: list[Any], now: list[Any], span_s: Callable[[Any], tuple[float, float]]) -> list[tuple[Any, Any]]:
    """Those that overlap, one to one in order of time; None stands for the missing side. Of a spasm cut in two the first part is paired."""
    pairs: list[tuple[Any, Any]] = []
    i = j = 0
    while i < len(was) or j < len(now):
        if i < len(was) and j < len(now) and _overlap(span_s(was[i]), span_s(now[j])):
            pairs.append((was[i], now[j]))
            i, j = i + 1, j + 1
        elif j == len(now) or (i < len(was) and span_s(was[i])[1] < span_s(now[j])[0]):
            pairs.append((was[i], None))
            i += 1
        else:
            pairs.append((None, now[j]))
            j += 1
    return pairs


def _decision(one: replay.Activation, origin_s: float) -> dict[str, Any]:
    times = {"onset_s": one.onset_s, "decided_s": one.decided_s, "offset_s": one.offset_s}
    return {name: t_s - origin_s if t_s == t_s else None for name, t_s in times.items()}


def _sides(pairs: list[tuple[Any, Any]], facts: Callable[[Any, float], dict[str, Any]], origin_s: float) -> dict[str, list[dict[str, Any]]]:
    sides: dict[str, list[dict[str, Any]]] = {"both": [], "only_recorded": [], "only_new": []}
    for before, after in pairs:
        if before and after:
            a, b = facts(before, origin_s), facts(after, origin_s)
            late = {f"{name}_ms": _later_ms(a[f"{name}_s"], b[f"{name}_s"]) for name in ("onset", "decided", "offset") if f"{name}_s" in a}
            sides["both"].append({"recorded": a, "new": b, "later": late})
        else:
            sides["only_recorded" if before else "only_new"].append(facts(before or after, origin_s))
    return sides


def _later_ms(was_s: float | None, now_s: float | None) -> float | None:
    return None if was_s is None or now_s is None else round(1000 * (now_s - was_s), 3)


def _moved(pair: dict[str, Any]) -> bool:
    return any(pair["recorded"][name] != pair["new"][name] for name in pair["new"] if name not in ("answer", "event"))  # guard's, a count


# --- words ------------------------------------------------------------------------------------------------------------------------
def words(facts: dict[str, Any]) -> Iterable[str]:
    """Lines for people."""
    yield from (f"changed: {line}" for line in facts["changes"] or ["nothing that the loop listens to"])
    yield from (f"note: {note}" for note in facts["notes"])
    until_s = facts["certain_until_s"]
    for name, part in [*facts["rules"].items(), ("REQUESTS", facts["requests"])]:
        both, gone, new = part["both"], part["only_recorded"], part["only_new"]
        moved = [pair for pair in both if _moved(pair)]
        yield f"{name}: {len(both)} in both ({len(moved)} otherwise), {len(gone)} only recorded, {len(new)} only new"
        rows = [(min(pair["recorded"]["decided_s"], pair["new"]["decided_s"]), "both", _moves(pair)) for pair in moved]
        rows += [(one["decided_s"], "only recorded", _one(one)) for one in gone] + [
            (one["decided_s"], "only new", _one(one)) for one in new
        ]
        for decided_s, side, text in sorted(rows):
            doubt = "" if until_s is None or decided_s <= until_s else "  ?"
            yield f"  {decided_s:9.3f} s  {side:<13}  {text}{doubt}"
    if facts["first_difference"]:
        d = facts["first_difference"]
        yield f"first cycle that differs: loop {d['loop']} cycle {d['cycle']}, {d['field']}: recorded {d['recorded']:g}, new {d['new']:g}"
    if until_s is None:
        yield "no request that could have changed the patient differs: all of this holds as far as the loop goes"
    else:
        yield (
            f"THE FIRST REQUEST THAT DIFFERS IS AT {until_s:.3f} s. From there on the patient would have been stimulated otherwise, and "
            "these samples are not what would have come: what is marked ? says how these settings hear them, not what would have happened."
        )
    yield "guard was not asked again: its answers and pulses are as recorded; limits and doses of these settings are not in this"


_NOT_MOVES = ("answer", "event", "cycle")  # said by the times, or the recording's alone


def _moves(pair: dict[str, Any]) -> str:
    moved = [f"{name[:-3]} {late_ms:+.1f} ms" for name, late_ms in pair["later"].items() if late_ms]
    fields = [name for name in pair["new"] if pair["recorded"][name] != pair["new"][name] and not name.endswith("_s")]
    return ", ".join(moved + [f"{name} {pair['recorded'][name]} -> {pair['new'][name]}" for name in fields if name not in _NOT_MOVES])


def _one(one: dict[str, Any]) -> str:
    if "train" in one:
        return f"{one['rule']}: {one['train']} {one['current_ma']:g} mA {one['duration_ms']:g} ms" + (
            f", guard's answer: {one['answer']}" if one["answer"] != NOTHING else ""
        )
    onset = "" if one["onset_s"] is None else f"onset {one['onset_s']:.3f} s, "
    return f"{onset}offset {one['offset_s']:.3f} s"
