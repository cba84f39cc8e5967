"""Whether a session holds all that went in (`calmloop verify`), and the repair of one that was torn (`calmloop recover`).

The proof: samples in = samples on disk + counted gaps (F7). Each cycle of the loop says how many samples it was given, cycles are numbered
without a hole, what the daemon could not keep is counted in its end note, each append has a CRC32 beside it (see `xdf`), and a hole in the
stamps shows what never reached the loop. What is found wrong is a problem; what nobody can say, such as whether anything followed in a
session without an end, is called unknown: neither is "whole".

Reads sessions, and repairs with one cut; never anything of the live path.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import sys
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from controller import audit, recording
from controller.xdf import CRC, crc_path
from drivers.base import FileFormatError
from drivers.sources.xdf_chunks import BOUNDARY, SAMPLES, STREAM_HEADER, places

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from numpy.typing import NDArray

TORN = "signals.torn"  # what `recover` cut off, beside the signals
NEAR_S = 0.1  # a late block whose samples are all there is made good within this; a hole is not
SHOWN = 5  # of a list, in words; --json has all
_ROWS = {"EMG": "n_emg", "force": "n_force", "feedback": "n_feedback"}  # streams that cycles count the samples of


class BusyError(Exception):
    """A daemon is still writing the session."""


@dataclass
class Found:
    """What is known of one session.

    Attributes
    ----------
    problems : list of str
        Lost or damaged; empty = none.
    unknown : list of str
        What cannot be told here.
    notes : list of str
        Worth knowing, nothing wrong.
    facts : dict
        The figures, as `--json` prints them.
    """

    session: str
    problems: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool | None:
        """Whether all is there; None = cannot be told."""
        return False if self.problems else None if self.unknown else True


def verify(folder: Path) -> Found:
    """Compare a session with what it says of itself.

    Raises
    ------
    FileFormatError
        It is no session, or its settings cannot be read.
    """
    found = Found(str(folder))
    _bytes(folder, found)
    try:
        session = recording.load(folder)
    except FileFormatError as error:
        if not (folder / recording.SETTINGS).is_file() or "damaged" not in str(error):
            raise
        found.problems.append(str(error))
        return found
    for part in (_cycles, _samples, _rows_match, _gaps, _end, _settings, _audit):
        try:
            part(session, found)
        except (FileFormatError, KeyError, TypeError, ValueError) as error:  # one altered byte must not hide what else there is to say
            text = str(error) if isinstance(error, FileFormatError) else f"damaged: {part.__name__[1:]}: {type(error).__name__}: {error}"
            found.problems += [text] if text not in found.problems else []
    return found


def recover(folder: Path) -> Found:
    """Cut a torn session back to its last whole chunk; what is cut off goes into `signals.torn`. Done twice it does nothing more.

    Returns
    -------
    Found
        Of the signals' bytes alone: damage that a cut does not mend.

    Raises
    ------
    BusyError
        Its daemon lives.
    FileFormatError
        It is no session, or was torn before there was anything to read; nothing was changed.
    """
    path = folder / recording.SIGNALS
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileFormatError(f"{folder}: is not a session: {recording.SIGNALS} is missing") from None
    except OSError as error:
        raise FileFormatError(f"{path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{folder}: a daemon is still writing it: end that session first") from None
        with _mapped(path) as data:
            whole, readable = 0, False
            for place in places(data):
                whole, readable = place.end, readable or place.tag == STREAM_HEADER
            if not readable:
                raise FileFormatError(f"{path}: torn or damaged before its first stream header: there is nothing to recover, left as it is")
            torn = bytes(data[whole:])
        if torn:
            status = os.fstat(fd)
            _keep(folder, torn)
            os.ftruncate(fd, whole)
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))  # when it was recorded, not when it was mended
            os.fsync(fd)
    finally:
        os.close(fd)
    found = Found(str(folder))
    _bytes(folder, found)
    found.facts["cut_now_bytes"] = len(torn)
    return found


def _keep(folder: Path, torn: bytes) -> None:
    """Put what will be cut off on the disk, under a name that nothing else has; once, also where the cut was interrupted."""
    path, number = folder / TORN, 1
    while path.is_symlink() or (path.exists() and not (path.is_file() and path.read_bytes() == torn)):
        number += 1
        path = folder / f"{TORN}.{number}"
    partial = folder / f"{TORN}.partial"
    partial.unlink(missing_ok=True)  # of a recovery that was interrupted
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(torn)
        file.flush()
        os.fsync(fd)
    partial.replace(path)
    above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(above)
    finally:
        os.close(above)


# --- bytes ------------------------------------------------------------------------------------------------------------------------
@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # which mmap refuses
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _bytes(folder: Path, found: Found) -> None:
    """Walk the chunks and hold them against their CRCs."""
    path = folder / recording.SIGNALS
    if not path.is_file():
        raise FileFormatError(f"{folder}: is not a session: {recording.SIGNALS} is missing")
    if being_written(path):
        found.unknown.append("a daemon is still writing it: this is how far it has come")
    crc = crc_path(path).read_bytes() if crc_path(path).is_file() else b""
    with _mapped(path) as data:
        chunks = n_boundaries = 0
        end, skipped, names = 4, [], {}
        for place in places(data):
            if place.start > end:
                skipped.append({"offset": end, "bytes": place.start - end})
            if place.tag == STREAM_HEADER:
                names[place.stream] = _name(data[place.start : place.end], place.stream)
            chunks += 1
            n_boundaries += place.tag == BOUNDARY
            end = place.end
        facts = _crcs(data, crc, names)
        found.facts |= {"bytes": len(data), "chunks": chunks, "boundaries": n_boundaries, "torn_bytes": len(data) - end}
    unchecked = max(0, end - facts["checked_bytes"] - sum(one["bytes"] for one in facts["damaged"]))
    found.facts |= {"skipped": skipped, "crc": facts | {"unchecked_bytes": unchecked}}
    found.facts["cut_bytes"] = sum(one.stat().st_size for one in folder.glob(f"{TORN}*") if not one.name.endswith(".partial"))
    found.problems += _listed(
        [f"chunk of {one['stream']} at byte {one['offset']} ({one['bytes']} bytes) is not as it was written" for one in facts["damaged"]]
    )
    found.problems += _listed([f"damage at byte {one['offset']}: {one['bytes']} bytes up to the next boundary" for one in skipped])
    if found.facts["torn_bytes"] and not found.unknown:
        found.problems.append(f"the last {found.facts['torn_bytes']} bytes are a torn chunk: `calmloop recover` puts them aside")
    if facts["beyond_chunks"] and not found.unknown:
        found.problems.append(f"{facts['beyond_chunks']} chunks ({facts['beyond_bytes']} bytes) that were written are not there any more")
    if found.facts["cut_bytes"]:
        found.notes.append(f"{found.facts['cut_bytes']} bytes of a torn chunk were put aside by `calmloop recover`, in {TORN}")
    if not crc:
        found.unknown.append("it has no CRCs beside it (of an earlier calmloop, or deleted): changed values would not show")
    elif unchecked:
        found.unknown.append(f"{unchecked} bytes have no CRC: changed values would not show there")


def _crcs(data: mmap.mmap | bytes, crc: bytes, names: dict[int, str]) -> dict[str, Any]:
    """Each record of the side-car against the bytes that it tells of; ends where the records make no sense any more."""
    damaged, checked_bytes, n, beyond_chunks, beyond_bytes, before = [], 0, 0, 0, 0, 0
    for end, length, value in CRC.iter_unpack(crc[: len(crc) // CRC.size * CRC.size]):
        start = end - length
        if length == 0 or start < before:  # torn, or zeros where the disk had not got to it
            break
        n, before = n + 1, end
        if end > len(data):
            beyond_chunks, beyond_bytes = beyond_chunks + 1, beyond_bytes + end - max(start, len(data))
        elif zlib.crc32(data[start:end]) == value:
            checked_bytes += length
        else:
            damaged.append({"offset": start, "bytes": length, "stream": _whose(data[start:end], names)})
    return {
        "records": n,
        "checked_bytes": checked_bytes,
        "damaged": damaged,
        "beyond_chunks": beyond_chunks,
        "beyond_bytes": beyond_bytes,
    }


def _whose(chunk: bytes, names: dict[int, str]) -> str:
    """The stream of a damaged chunk, as far as its head can be believed; all of ours have lengths of 4 bytes."""
    number = int.from_bytes(chunk[7:11], "little")
    return names.get(number, "an unknown stream") if int.from_bytes(chunk[5:7], "little") == SAMPLES else "no stream, or an unknown one"


def _name(header: bytes, number: int) -> str:
    try:
        return ElementTree.fromstring(header[header.find(b"<?xml") :]).findtext("name") or f"stream {number}"
    except (ElementTree.ParseError, LookupError, ValueError):  # a flipped bit may name an encoding that is none
        return f"stream {number}"


def being_written(path: Path) -> bool:
    """Whether a writer holds the file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


# --- samples ----------------------------------------------------------------------------------------------------------------------
def _column(session: recording.Session, name: str) -> NDArray[np.int64]:
    cycles = session.streams.get("cycles")
    return np.zeros(0, np.int64) if cycles is None else np.asarray(cycles.values)[:, recording.cycle_labels().index(name)]


def _cycles(session: recording.Session, found: Found) -> None:
    """Cycles are numbered from 1 in each loop: a hole is what the daemon did not read in time."""
    loops, indices = _column(session, "loop"), _column(session, "index")
    holes = []
    if len(loops) and (absent := sorted(set(range(1, int(loops.max()) + 1)) - set(loops.tolist()))):
        found.notes.append(f"of loop {', '.join(map(str, absent))} there is no cycle: it ended before its first sample, or they are gone")
    for loop in np.unique(loops):
        mine = np.concatenate([[0], indices[loops == loop]])
        holes += [{"loop": int(loop), "after": int(a), "cycles": int(b - a - 1)} for a, b in pairwise(mine) if b != a + 1]
    missing = sum(hole["cycles"] for hole in holes)
    counted = sum(note["number"] for note in session.notes() if note["what"] == recording.LOST and note["name"] == "loop")
    found.facts |= {"cycles": len(indices), "loops": len(np.unique(loops)), "missing_cycles": missing, "holes": holes, "counted": counted}
    words = _listed([f"loop {h['loop']}: {h['cycles']} cycles are missing after cycle {h['after']}" for h in holes])
    found.problems += words
    if missing > counted:
        found.problems.append(f"{missing - counted} of the missing cycles were not counted when they went")


def _samples(session: recording.Session, found: Found) -> None:
    """What cycles were given, against what the streams hold."""
    found.facts["samples"] = {}
    for name, column in _ROWS.items():
        given, on_disk = int(_column(session, column).sum()), len(session.streams[name].stamps_s) if name in session.streams else 0
        found.facts["samples"][name] = {"given": given, "on_disk": on_disk}
        if on_disk < given:
            found.problems.append(f"{name}: {given - on_disk} of {given} samples are lost")
        elif on_disk > given and session.end:
            found.problems.append(f"{name}: {on_disk - given} samples on disk belong to no cycle: cycles are lost")
        elif on_disk > given:
            found.notes.append(f"{name}: the last {on_disk - given} samples are there, their cycles are not: it was cut between the two")


def _rows_match(session: recording.Session, found: Found) -> None:
    """What is told twice must be told alike: a row of detections for each cycle, a pulse for each that guard says it wrote."""
    written = sum(bool(row.get("written_ns")) for row in session.guard())
    for what, name, wanted in (("detections", "detections", len(_column(session, "loop"))), ("pulses", "pulses", written)):
        n = len(session.streams[name].stamps_s) if name in session.streams else 0
        if n != wanted and session.end:
            found.problems.append(f"{what}: {n} rows on disk, there should be {wanted}")
    for name in ("EMG", "force"):
        stream = session.streams.get(name)
        if stream is not None and (n := int(np.count_nonzero(np.diff(stream.stamps_s) == 0))):
            found.notes.append(f"{name}: {n} samples have the stamp of the one before: doubled, at the source or here")


def _settings(session: recording.Session, found: Found) -> None:
    """The settings beside the recording must be those that were in force, as the audit says."""
    path = session.folder / recording.AUDIT
    if not path.is_file():
        return
    said = {row.get("settings_sha256") for row in audit.details(path, "session")} - {None}
    digest = hashlib.sha256((session.folder / recording.SETTINGS).read_bytes()).hexdigest()
    if said and digest not in said:
        found.problems.append(f"{recording.SETTINGS} is not what was in force: it was changed after the session began")


def _gaps(session: recording.Session, found: Found) -> None:
    """Holes in the stamps: samples that the source made, or should have, and that never reached the loop."""
    found.facts["gaps"] = []
    for name in ("EMG", "force"):
        stream = session.streams.get(name)
        if stream is None or stream.spec.sample_rate_hz <= 0:
            continue
        holes = gaps(stream.stamps_s, stream.spec.sample_rate_hz)
        found.facts["gaps"] += [{"stream": name, **hole} for hole in holes]
        found.facts["samples"][name]["gap_samples"] = sum(hole["samples"] for hole in holes)
        words = [
            f"{name}: at {hole['from_start_s']:.3f} s nothing for {hole['length_ms']:.1f} ms: {hole['samples']} samples never came"
            for hole in holes
        ]
        found.notes += _listed(words)


def gaps(stamps_s: NDArray[np.float64], sample_rate_hz: float) -> list[dict[str, Any]]:
    """Holes in the stamps of a stream, against its nominal rate.

    A block that comes late has a hole before it, and stamps soon are where they would have been. So a hole counts for as much as the least
    late stamp within `NEAR_S` after it is behind the least late one within `NEAR_S` before it, or since the hole before.

    Parameters
    ----------
    stamps_s : (n_samples,) float64, s
    sample_rate_hz : float

    Returns
    -------
    list of dict
        `at_s`: the last stamp before; `from_start_s`; `length_ms`: between the stamps on both sides; `samples` that are missing.
    """
    behind_s = stamps_s - np.arange(len(stamps_s)) / sample_rate_hz
    near = max(1, round(NEAR_S * sample_rate_hz))
    found, since = [], 0
    for k in np.flatnonzero(np.diff(stamps_s) > 1.5 / sample_rate_hz) + 1:
        step_s = behind_s[k : k + near].min() - behind_s[max(since, k - near) : k].min()
        if (samples := round(step_s * sample_rate_hz)) > 0:
            at_s, since = float(stamps_s[k - 1]), int(k)
            length_ms = round(float(stamps_s[k] - at_s) * 1e3, 3)
            found.append({"at_s": at_s, "from_start_s": round(at_s - float(stamps_s[0]), 6), "length_ms": length_ms, "samples": samples})
    return found


# --- what surrounds them ----------------------------------------------------------------------------------------------------------
def _end(session: recording.Session, found: Found) -> None:
    end = session.end
    found.facts |= {"ended": end is not None, "records_lost": end and end["records_lost"]}
    if end is None:
        found.unknown.append("it has no end: killed, cut off, or still running; nobody can say what would have followed")
    elif end["records_lost"]:
        found.problems.append(f"{end['records_lost']} records were lost while recording, as the end says")


def _audit(session: recording.Session, found: Found) -> None:
    path = session.folder / recording.AUDIT
    if not path.is_file():
        found.facts["audit"] = "none"
        found.problems.append("there is no audit beside the recording")
        return
    try:
        head, bad = audit.verify(path, audit.key(), session.anchors())
    except audit.KeyMissingError as error:
        found.facts["audit"] = "not here"
        found.unknown.append(f"the audit cannot be verified here: {error}")
    except audit.AuditError as error:
        found.facts["audit"] = "unreadable"
        found.problems.append(str(error))
    else:
        found.facts |= {"audit": "not whole" if bad else "whole", "audit_rows": head.rows}
        if bad:
            found.problems.append(f"audit: row {bad.row} {bad.why}")


# --- words ------------------------------------------------------------------------------------------------------------------------
def _listed(words: list[str]) -> list[str]:
    return words if len(words) <= SHOWN else [*words[:SHOWN], f"and {len(words) - SHOWN} more like the last (--json has all)"]


def in_words(found: Found) -> list[str]:
    """One session, for people."""
    facts = found.facts
    lines = [
        f"{found.session}: {facts['bytes']:,} bytes, {facts['chunks']:,} chunks, {facts['crc']['checked_bytes']:,} bytes as their CRCs say"
    ]
    for name, n in facts.get("samples", {}).items():
        if n["given"] or n["on_disk"]:
            gap = f", {n['gap_samples']:,} in gaps of the source" if n.get("gap_samples") else ""
            lines.append(f"  {name}: {n['given']:,} samples in, {n['on_disk']:,} on disk{gap}")
    if "cycles" in facts:
        lines.append(f"  {facts['cycles']:,} cycles of {facts['loops']} loops, {facts['missing_cycles']:,} missing")
    lines += [f"  PROBLEM: {text}" for text in found.problems]
    lines += [f"  cannot be told: {text}" for text in found.unknown]
    return lines + [f"  {text}" for text in found.notes]


def command(args: argparse.Namespace) -> int:
    """`calmloop verify` and `calmloop recover`: 0 = whole, 1 = lost or damaged, 2 = cannot be told, refused, or no session."""
    results: list[dict[str, Any]] = []
    for folder in args.sessions:
        try:
            found = recover(folder) if args.recover else verify(folder)
        except (BusyError, FileFormatError) as error:
            results.append({"session": str(folder), "ok": None, "error": str(error)})
            if not args.json:
                print(error, file=sys.stderr)
            continue
        if args.recover:
            found.unknown.clear()
        results.append({"ok": found.ok, **asdict(found)})
        if args.json:
            continue
        lines = in_words(found)
        if args.recover:
            cut = found.facts["cut_now_bytes"]
            lines.insert(1, f"  {cut} torn bytes are now in {TORN}" if cut else "  nothing to cut off: it ends with a whole chunk")
        elif found.ok:
            lines.append("  WHOLE: samples in = samples on disk, cycles without a hole, CRCs and audit hold")
        print("\n".join(lines))
    ok = False if any(one["ok"] is False for one in results) else None if any(one["ok"] is None for one in results) else True
    if args.json:
        print(json.dumps({"ok": ok, "sessions": results}))
    return {True: 0, False: 1, None: 2}[ok]
