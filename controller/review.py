"""A session looked at afterwards: what happened when, spasm by spasm, and any part of its signals from near.

Figures before, during and after a spasm say what was measured, not that stimulation did it: that takes a comparison with stimulation
withheld. The page asks a process of its own, this module's `main`, so that reading an hour of signals holds nobody up; it keeps the last
session that it read.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controller import audit, recording
from controller.settings import EmgRule, ForceRule
from controller.web.feed import EMG, EVIDENCE, FORCE, HEAD
from drivers.base import FileFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.recording import Session

MAX_BYTES = 2 << 30  # of a recording that is read into memory as a whole
MAX_COLUMNS = 4000  # more than a wall has
MAX_EVENTS = 2000
BEFORE_S, AFTER_S, AFTER_GAP_S = 1.0, 1.0, 0.1  # windows around a spasm; the gap lets the last pulse's own picture pass
TRAIN_GAP_S = 0.25  # pulses that are further apart than this are two trains: longer than a period of 5 Hz
_NAMED = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ_(.+)")
_AGAIN = re.compile(r"_([2-9]|[1-9][0-9])$")  # more than one session within a second
ANSWER = struct.Struct("<?Q")  # good or not, and how long the answer is


def sessions(folder: Path, bed: str = "*") -> list[dict[str, Any]]:
    """Sessions of a bed in a folder, newest first: name and size in bytes. Folders are named as by `recording.new_folder`.

    ``..._BED_2`` is the second session of BED within a second, or the first of a bed that is named BED_2: there the session's audit says
    whose it is, and one that does not say is nobody's. What a link leads to is not listed.
    """
    found = []
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        named, signals = _NAMED.fullmatch(path.name), path / recording.SIGNALS
        if not named or any(one.is_symlink() for one in (path, signals, path / recording.AUDIT)) or not signals.is_file():
            continue
        whole, less = named[1], _AGAIN.sub("", named[1])
        if bed == "*" or (whole == bed == less) or (bed in (whole, less) and _is_of(path, bed)):
            found.append({"name": path.name, "bytes": signals.stat().st_size})
    return found


def _is_of(folder: Path, bed: str) -> bool:
    """Whether a session says that it is this bed's."""
    try:
        return _bed(folder) == bed
    except (audit.AuditError, LookupError):
        return False


@lru_cache(maxsize=4096)  # what it said never changes
def _bed(folder: Path) -> str:
    """Whose session it is by its own word. Raises `AuditError`, LookupError: it says nothing, yet."""
    return str(audit.details(folder / recording.AUDIT, "session")[0]["bed"])


@lru_cache(maxsize=1)
def _load(folder: Path, n_bytes: int) -> Session:
    """Read a session; one that grows is read anew."""
    if n_bytes > MAX_BYTES:
        raise FileFormatError(f"{folder.name}: {n_bytes / 1e9:.1f} GB are too much to be looked at here; at most {MAX_BYTES / 1e9:.1f} GB")
    return recording.load(folder)


def load(folder: Path) -> Session:
    """Read a session, or give the one that was read last. Raises `FileFormatError`, OSError."""
    return _load(folder, (folder / recording.SIGNALS).stat().st_size)


def origin_s(session: Session) -> float:
    """The session's first word: times of a review count from there."""
    return float(session.streams["notes"].stamps_s[0])


def length_s(session: Session) -> float:
    """From its first word to the last thing that is in it."""
    return max(float(s.stamps_s[-1]) for s in session.streams.values() if len(s.stamps_s)) - origin_s(session)


def overview(session: Session) -> dict[str, Any]:
    """Say what happened.

    Returns
    -------
    dict
        Plain JSON: ``length_s``; ``end`` (why, empty = it was cut or goes on); ``emg``, ``force``, ``force_unit``, ``rules``;
        ``prescription`` (version, author, reason); ``given`` (pulses, charge in mC); ``spasms`` (as `describe.Spasm.facts`, times from
        the session's start, with rule, how many rules heard the same one, number of pulses, and root mean square before, during and
        after with its unit); ``n_spasms`` (one that several rules heard counts once); ``trains`` (start, length,
        pulses); ``events`` (guard's verdicts that have reasons; what is
        said several times running is one, with how often and until when).
    """
    config, zero_s = session.config, origin_s(session)
    pulses_s = session.streams["pulses"].stamps_s
    firsts = np.flatnonzero(np.diff(pulses_s, prepend=-np.inf) > TRAIN_GAP_S)
    ends = np.append(firsts[1:], len(pulses_s))[: len(firsts)].astype(int)
    notes = session.notes()
    events: list[dict[str, Any]] = []
    for row in session.guard():
        if "event" in row and row["verdict"]["reasons"] and row["event"]["kind"] not in ("heartbeat", "ack"):
            at_s = row["event"]["now_ns"] * 1e-9 - zero_s
            said = {"state": row["verdict"]["state"], "words": "; ".join(row["verdict"]["reasons"])}
            if events and said.items() <= events[-1].items():  # a spasm in an unarmed bed is refused twice a second
                events[-1] |= {"n": events[-1]["n"] + 1, "until_s": at_s}
            else:
                events.append({"at_s": at_s, "until_s": at_s, "n": 1, **said})
    spasms = [_spasm(session, note, zero_s) for note in notes if note["what"] == "spasm"]
    rx, last = config.prescription, session.end or {}
    given = np.asarray(session.streams["pulses"].values, np.int64).reshape(-1, 5)  # current uA, phase width us, gap, channel, request
    return {
        "name": session.folder.name,
        "length_s": length_s(session),
        "end": last.get("why", ""),
        "emg": list(config.emg.channels) if config.emg else [],
        "force": list(config.force.channels) if config.force else [],
        "force_unit": config.force.unit if config.force else "",
        "rules": [row.name for row in config.rows],
        "given": {"pulses": len(given), "charge_mc": float((given[:, 0] * given[:, 1]).sum()) * 1e-9},
        "prescription": {"version": rx.version, "author": rx.author, "reason": rx.reason},
        "n_spasms": _together(spasms),
        "spasms": spasms,
        "trains": [
            {"at_s": float(pulses_s[a]) - zero_s, "length_s": float(pulses_s[b - 1] - pulses_s[a]), "pulses": int(b - a)}
            for a, b in zip(firsts, ends, strict=True)
        ],
        "events": events[-MAX_EVENTS:],
        "more_events": max(0, len(events) - MAX_EVENTS),
    }


def _together(spasms: list[dict[str, Any]]) -> int:
    """Count spasms that overlap as one, and write into each how many rules heard it."""
    groups: list[list[dict[str, Any]]] = []
    for spasm in sorted(spasms, key=lambda one: one["onset_s"]):
        if groups and spasm["onset_s"] < max(one["offset_s"] for one in groups[-1]):
            groups[-1].append(spasm)
        else:
            groups.append([spasm])
    for group in groups:
        for spasm in group:
            spasm["n_rules"] = len({one["rule"] for one in group})
    return len(groups)


def _spasm(session: Session, note: dict[str, Any], zero_s: float) -> dict[str, Any]:
    """One spasm, with how loud its muscle was before, during and after."""
    rule = next((rule for rule in session.config.rules if rule.name == note["rule"]), None)
    onset_s, offset_s = note["onset_s"], note["offset_s"]
    pulses_s = session.streams["pulses"].stamps_s
    mine_s = pulses_s[(pulses_s >= onset_s) & (pulses_s <= offset_s + AFTER_S)]
    # while stimulation is on the EMG holds its pictures: only what came before the first pulse is the spasm alone
    until_s = float(mine_s[0]) if len(mine_s) else offset_s
    over_s = max(offset_s, float(mine_s[-1]) + AFTER_GAP_S if len(mine_s) else offset_s)
    loud = {
        "before": _rms(session, rule, onset_s - BEFORE_S, onset_s),
        "during": _rms(session, rule, onset_s, until_s),
        "after": _rms(session, rule, over_s, over_s + AFTER_S),
    }
    facts = {name: value for name, value in note.items() if name != "what"}
    unit = session.config.force.unit if isinstance(rule, ForceRule) and session.config.force else "µV"
    times = {name: note[name] - zero_s for name in ("onset_s", "decided_s", "offset_s")}
    return facts | times | {"pulses": len(mine_s), "rms": loud, "unit": unit}


def _rms(session: Session, rule: EmgRule | ForceRule | None, from_s: float, to_s: float) -> float | None:
    """Root mean square about the mean of a rule's channels in a part of the session; None = nothing is there."""
    config = session.config
    if isinstance(rule, EmgRule) and config.emg:
        stream, channels, names = "EMG", config.emg.channels, rule.channels
    elif isinstance(rule, ForceRule) and config.force:
        stream, channels, names = "force", config.force.channels, (rule.channel,)
    else:
        return None
    s = session.streams[stream]
    a, b = np.searchsorted(s.stamps_s, (from_s, to_s))
    x = np.asarray(s.values)[a:b, [channels.index(name) for name in names]]
    x = x[np.isfinite(x).all(axis=1)]
    return float(np.sqrt(np.mean(np.var(x, axis=0)))) if len(x) > 1 else None


def columns(session: Session, from_s: float, to_s: float, n: int) -> bytes:
    """Least and greatest of each of n equal parts of a time, of EMG, force and evidence: records as of `feed.Columns`.

    Raises ValueError where there is no such part.
    """
    if not (0.0 <= from_s < to_s and 1 <= n <= MAX_COLUMNS):
        raise ValueError(f"columns are from 0 s on, forward, and at most {MAX_COLUMNS}")
    zero_s, n_rules = origin_s(session), len(session.config.rows)
    parts: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []
    for what, name in ((EMG, "EMG"), (FORCE, "force")):
        if name in session.streams:
            parts.append((what, session.streams[name].stamps_s, np.asarray(session.streams[name].values)))
    seen = np.asarray(session.streams["detections"].values)
    if n_rules and len(seen):
        rows = seen[:, 3:].reshape(len(seen), n_rules, len(recording.DETECTION_FIELDS))
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append((EVIDENCE, seen[:, 0], rows[:, :, 3] / rows[:, :, 4]))
    out = b""
    for what, t_s, x in parts:
        edges = np.searchsorted(t_s, zero_s + np.linspace(from_s, to_s, n + 1))
        picture = np.full((n, x.shape[1], 2), np.nan, np.float32)
        some = np.flatnonzero(np.diff(edges))  # reduceat goes on to the next edge, so the empty ones are left out
        if len(some):
            inside, starts = x[: edges[-1]], edges[:-1][some]
            picture[some, :, 0] = np.fmin.reduceat(inside, starts)
            picture[some, :, 1] = np.fmax.reduceat(inside, starts)
        out += HEAD.pack(what, 0, n, x.shape[1]) + picture.tobytes()
    return out


def answer(question: dict[str, Any]) -> bytes:
    """One question of the page: {"folder": ..., "from_s": ..., "to_s": ..., "n": ...}, or without a time for the overview."""
    session = load(Path(question["folder"]))
    if "n" in question:
        return columns(session, question["from_s"], question["to_s"], question["n"])
    return json.dumps(overview(session)).encode()


def main() -> int:
    """Answer questions, a line of JSON each, until nobody asks any more; beside a bed at work, everything else comes first."""
    os.nice(10)
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this ends first
    for line in sys.stdin:
        try:
            good, said = True, answer(json.loads(line))
        except (FileFormatError, OSError, ValueError, KeyError, IndexError) as error:
            good, said = False, f"{error}".encode()
        sys.stdout.buffer.write(ANSWER.pack(good, len(said)) + said)
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
