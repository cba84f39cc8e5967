"""One session = one folder: every input of the loop and of guard, and what they made of it, so that replay gives the same decisions.

`signals.xdf` (see `xdf`), `audit.sqlite` (see `audit`), `settings.toml` (what was in force). This module knows which streams a session
has, how a cycle travels from loop to daemon, and how to read a session back. Stamps are on this host's clock already (liblsl corrects
those of other hosts as the loop pulls them), so the file holds no clock offsets: a reader that would apply them has nothing to do.

Writing is done by the daemon, syncing by a thread of its own: a `write` ends in the kernel's memory; an `fdatasync` waits for the disk,
seconds where it is slow, and lets go of the interpreter meanwhile. So on a slow disk the signals do not keep the daemon from its
children. A process of its own would bring nothing more: the daemon must wait for the disk all the same before guard may go on (audit and
dose journal, which are small), every sample would be copied once more, and there would be one more to start, watch and bury. A recorder
that fails ends the session either way: what cannot be recorded is not stimulated.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controller import settings
from controller.audit import Head
from controller.policy import REQUEST_FIELDS, StimRequest, request_of
from controller.xdf import StreamSpec, XdfWriter, read
from drivers.base import Chunk, FileFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from controller.settings import Settings
    from controller.xdf import Stream

SIGNALS, SETTINGS, AUDIT = "signals.xdf", "settings.toml", "audit.sqlite"
ANCHOR, END = "audit head", "end"  # notes that say where the audit ends
LOST = "records lost"  # notes that say what the daemon did not read in time
SYNC_S = 0.2  # between syncs: what is 250 ms old outlasts a power cut (F6) on a disk that needs up to 50 ms for one

CYCLE_FIELDS = (
    *("index", "received_ns", "decided_ns", "n_emg", "n_force", "n_feedback", "n_rules", "data_ok", "emg_state", "force_state"),
    *REQUEST_FIELDS,
)
# A cycle on its way from loop to daemon: this, then emg_t_s, emg_uv, force_t_s, force, feedback and what the rules see.
CYCLE = np.dtype(
    [
        *((name, np.int64) for name in (*CYCLE_FIELDS, "n_emg_channels", "n_force_channels")),
        # newest sample of the signal that is furthest behind; of the request: onset, and the sample that decided
        *((name, np.float64) for name in ("sample_s", "onset_s", "evidence_s")),
    ],
    align=True,
)
TIME_FIELDS = ("sample_s", "onset_s", "evidence_s")
DETECTION_FIELDS = ("active", "onset", "decided", "statistic", "threshold", "envelope", "quality", "level", "veto")  # as in kernels
FEEDBACK_FIELDS = ("code", "time", "request")


@dataclass(frozen=True, slots=True, eq=False)
class RecordedCycle:
    """A cycle as it was recorded: its input and the decisions in the form they are compared in.

    Attributes
    ----------
    numbers : dict of CYCLE_FIELDS to int
    sample_s : float
        Newest sample of the signal that is furthest behind.
    onset_s, evidence_s : float
        Of the request; see `StimRequest`.
    detections : (n_rules, len(DETECTION_FIELDS)) float64
        Of each rule and then of each join: as many rows as asks can come from.
    """

    chunk: Chunk
    numbers: dict[str, int]
    sample_s: float
    onset_s: float
    evidence_s: float
    detections: NDArray[np.float64]

    @property
    def request(self) -> StimRequest | None:
        """What the loop asked for."""
        return request_of(self.numbers | {"onset_s": self.onset_s, "evidence_s": self.evidence_s})


_INTS = len(CYCLE_FIELDS) + 2
_HEAD = struct.Struct(f"<{_INTS}q{len(TIME_FIELDS)}d")
assert _HEAD.size == CYCLE.itemsize


def unpack_cycle(data: bytes) -> RecordedCycle:
    """A cycle as `loop.record` put it into the ring."""
    head = _HEAD.unpack_from(data)
    numbers = dict(zip(CYCLE_FIELDS, head, strict=False))
    n_emg_channels, n_force_channels = head[len(CYCLE_FIELDS) : _INTS]
    n_emg, n_force, at = numbers["n_emg"], numbers["n_force"], 0
    values = np.frombuffer(data, np.float64, offset=_HEAD.size)

    def take(*shape: int) -> NDArray[np.float64]:
        nonlocal at
        start, at = at, at + prod(shape)
        return values[start:at].reshape(shape)

    emg_t_s, emg_uv = take(n_emg), take(n_emg, n_emg_channels)
    force_t_s, force = take(n_force), take(n_force, n_force_channels)
    feedback = take(numbers["n_feedback"], len(FEEDBACK_FIELDS))
    detections = take(numbers["n_rules"], len(DETECTION_FIELDS))
    chunk = Chunk(emg_uv, emg_t_s, force, force_t_s, feedback, numbers["received_ns"])
    sample_s, onset_s, evidence_s = head[_INTS:]
    return RecordedCycle(chunk, numbers, sample_s, onset_s, evidence_s, detections)


# --- writing ----------------------------------------------------------------------------------------------------------------------
def new_folder(parent: Path, bed: str) -> Path:
    """Make the folder of a new session, named by date and bed."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 100):
        folder = parent / (f"{stamp}_{bed}" if attempt == 1 else f"{stamp}_{bed}_{attempt}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"cannot make a new session folder in {parent}")


def cycle_labels() -> list[str]:
    """Columns of the stream of cycles."""
    return ["loop", *CYCLE_FIELDS]


def detection_channels(config: Settings) -> tuple[tuple[str, str], ...]:
    """Columns of the stream of detections, with their units."""
    times = (("sample", "s"), ("request onset", "s"), ("request evidence", "s"))
    return (*times, *((f"{row.name}: {field}", "") for row in config.rows for field in DETECTION_FIELDS))


class Recorder:
    """Writes one session's signals. Chunks of many cycles are gathered and written together; a thread puts them on the disk.

    Attributes
    ----------
    kept_bytes : int
        Of the signals: what the disk holds for certain.
    """

    def __init__(self, folder: Path, config: Settings) -> None:
        self.config, self.folder = config, folder
        emg_channels = tuple((name, "uV") for name in config.emg.channels) if config.emg else ()
        force_channels = tuple((name, config.force.unit) for name in config.force.channels) if config.force else ()
        specs = []
        if config.emg:
            specs.append(StreamSpec("EMG", "EMG", emg_channels, config.emg.sample_rate_hz, "double64", config.emg.stream_name))
        if config.force:
            specs.append(StreamSpec("force", "Force", force_channels, config.force.sample_rate_hz, "double64", config.force.stream_name))
        specs += [
            StreamSpec("cycles", "Decisions", tuple((label, "") for label in cycle_labels()), 0, "int64", "calmloop loop"),
            StreamSpec(
                "detections",
                "Decisions",
                detection_channels(config),
                0,
                "double64",
                "calmloop loop",
            ),
            StreamSpec("feedback", "Feedback", tuple((f, "") for f in FEEDBACK_FIELDS), 0, "double64", "calmloop guard"),
            StreamSpec(
                "pulses",
                "Stimulation",
                (("current", "uA"), ("phase width", "us"), ("interphase gap", "us"), ("channel", ""), ("request", "")),
                0,
                "int64",
                "calmloop guard",
            ),
            StreamSpec("guard", "Markers", (("event and verdict", "JSON"),), 0, "string", "calmloop guard"),
            StreamSpec("notes", "Markers", (("note", "JSON"),), 0, "string", "calmloop daemon"),
        ]
        self.index = {spec.name: i for i, spec in enumerate(specs)}
        self.writer = XdfWriter(folder / SIGNALS, specs)
        self.loop_number = 0
        self.trains = list(config.trains.values())
        self.samples = {"emg": 0, "force": 0}
        self.first_s: dict[str, float] = {}
        self.last_s: dict[str, float] = {}
        self.kept_bytes, self._kept_s = 0, time.monotonic()
        self._failed: OSError | None = None
        self._over = threading.Event()
        self._syncing = threading.Thread(target=self._sync, name="recorder's sync", daemon=True)
        self._syncing.start()

    @property
    def behind_s(self) -> float:
        """How old what the disk does not hold yet may be."""
        return time.monotonic() - self._kept_s

    def _sync(self) -> None:
        """The thread: everything on the disk, again and again; ends at its first error, which `mark` and `close` raise."""
        due_s = time.monotonic()
        while not self._over.wait(max(0.0, due_s - time.monotonic())):
            began_s, size = time.monotonic(), self.writer.size
            due_s = began_s + SYNC_S
            if size > self.kept_bytes:
                try:
                    self.writer.sync()
                except OSError as error:
                    self._failed = error
                    return
            self.kept_bytes, self._kept_s = size, began_s

    def _check(self) -> None:
        if self._failed:
            raise OSError(self._failed.errno, f"not on the disk, {self._failed.strerror}", str(self.folder / SIGNALS))

    def cycles(self, cycles: list[RecordedCycle]) -> None:
        """Append cycles with their samples."""
        if not cycles:
            return
        for name, stream in (("emg", "EMG"), ("force", "force")):
            t_s = np.concatenate([getattr(c.chunk, f"{name}_t_s") for c in cycles])
            if stream in self.index and len(t_s):
                self._put(stream, t_s, np.concatenate([c.chunk.emg_uv if name == "emg" else c.chunk.force for c in cycles]))
                self.samples[name] += len(t_s)
                self.first_s.setdefault(name, float(t_s[0]))
                self.last_s[name] = float(t_s[-1])
        feedback = np.concatenate([c.chunk.feedback for c in cycles])
        self._put("feedback", feedback[:, 1], feedback)
        stamps = np.array([c.chunk.received_ns for c in cycles]) * 1e-9
        self._put("cycles", stamps, np.array([[self.loop_number, *c.numbers.values()] for c in cycles], np.int64))
        self._put("detections", stamps, np.array([[c.sample_s, c.onset_s, c.evidence_s, *c.detections.ravel()] for c in cycles]))

    def guard(self, rows: list[dict[str, Any]]) -> None:
        """Append guard's events with their verdicts, and the pulses among them."""
        if not rows:
            return
        stamps = [row["event"]["now_ns"] * 1e-9 if "event" in row else row["start_ns"] * 1e-9 for row in rows]
        self._put("guard", stamps, [json.dumps(row, separators=(",", ":")) for row in rows])
        pulses = [row for row in rows if row.get("written_ns")]
        values = []
        for row in pulses:
            train = self.trains[row["verdict"]["train"]]
            values.append((row["verdict"]["current_ua"], train.phase_width_us, train.interphase_gap_us, train.channel, row["request"]))
        if values:
            self._put("pulses", [row["written_ns"] * 1e-9 for row in pulses], np.array(values, np.int64))

    def note(self, t_s: float, note: dict[str, Any]) -> None:
        """Append what the daemon has to say: starts, deaths, ends."""
        self._put("notes", [t_s], [json.dumps(note)])

    def mark(self) -> None:
        """Once a second: a boundary to resynchronise at. Raises `OSError` where a sync has failed."""
        self._check()
        self.writer.boundary()

    def close(self) -> None:
        """Write footers and close. May be called twice."""
        self._over.set()
        self._syncing.join()
        self.writer.close()
        self._check()  # the kernel tells an error once: the sync that heard of it was another's

    def _put(self, stream: str, stamps: Any, values: Any) -> None:
        if len(stamps):
            self.writer.samples(self.index[stream], np.asarray(stamps, np.float64), values)


# --- reading ----------------------------------------------------------------------------------------------------------------------
class RowError(FileFormatError):
    """A row of what was said is damaged; the message names it."""


@dataclass(frozen=True, slots=True)
class Session:
    """A session read back.

    Attributes
    ----------
    older : tuple of str
        What an earlier calmloop did not record yet, and reads as 0; empty = nothing.
    """

    folder: Path
    config: Settings
    streams: dict[str, Any]
    older: tuple[str, ...] = ()

    def cycles(self) -> Iterator[tuple[int, RecordedCycle]]:
        """All cycles in order, with the number of the loop process that made them."""
        numbers = self.streams["cycles"].values
        decisions = self.streams["detections"].values
        n_rules = len(self.config.rows)
        at = {"emg": 0, "force": 0, "feedback": 0}
        # a recording that was torn lacks the samples or the decisions of its last cycles: those cannot be compared
        for row, decided in zip(numbers, decisions, strict=False):
            n = dict(zip(CYCLE_FIELDS, (int(value) for value in row[1:]), strict=True))
            emg, emg_t_s = self._slice("EMG", at, "emg", n["n_emg"])
            force, force_t_s = self._slice("force", at, "force", n["n_force"])
            feedback, _ = self._slice("feedback", at, "feedback", n["n_feedback"])
            chunk = Chunk(emg, emg_t_s, force, force_t_s, feedback, n["received_ns"])
            sample_s, onset_s, evidence_s = (float(t_s) for t_s in decided[: len(TIME_FIELDS)])
            detections = decided[len(TIME_FIELDS) :].reshape(n_rules, len(DETECTION_FIELDS))
            yield int(row[0]), RecordedCycle(chunk, n, sample_s, onset_s, evidence_s, detections)

    def _slice(self, stream: str, at: dict[str, int], name: str, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if stream not in self.streams:
            return np.zeros((0, 0)), np.zeros(0)
        start = at[name]
        at[name] += n
        s = self.streams[stream]
        return np.ascontiguousarray(s.values[start : start + n]), s.stamps_s[start : start + n]

    def notes(self) -> list[dict[str, Any]]:
        """What the daemon had to say."""
        return list(self._objects("notes", "what"))

    @property
    def end(self) -> dict[str, Any] | None:
        """The daemon's last note; None where the recording was cut before it."""
        notes = self.notes()
        return notes[-1] if notes and notes[-1]["what"] == END else None

    def anchors(self) -> list[Head]:
        """Where the audit ended, second by second."""
        notes = self.notes()
        for n, note in enumerate(notes, 1):
            if note["what"] in (ANCHOR, END) and not (isinstance(note.get("rows"), int) and isinstance(note.get("hmac"), str)):
                raise RowError(f"{self.folder.name}: {SIGNALS}: row {n} of notes is damaged: it says no rows and hmac")
        return [Head(note["rows"], note["hmac"]) for note in notes if note["what"] in (ANCHOR, END)]

    def guard(self) -> Iterator[dict[str, Any]]:
        """Guard's rows in order."""
        return self._objects("guard")

    def _objects(self, stream: str, name: str = "") -> Iterator[dict[str, Any]]:
        """Rows of JSON of a stream, each with this name. Raises `RowError`."""
        for n, text in enumerate(self.streams[stream].values, 1):
            try:
                row = json.loads(text)
                if not isinstance(row, dict) or (name and name not in row):
                    raise ValueError(f"no JSON object{f' with {name}' if name else ''}")
            except (ValueError, RecursionError) as error:
                raise RowError(f"{self.folder.name}: {SIGNALS}: row {n} of {stream} is damaged: {error}") from None
            yield row


def load(folder: Path) -> Session:
    """Read a session.

    Raises
    ------
    FileFormatError
        The folder is not a session, or its files cannot be read; says which.
    """
    for name in (SIGNALS, SETTINGS):
        if not (folder / name).is_file():
            raise FileFormatError(f"{folder}: is not a session: {name} is missing")
    try:
        config = settings.load(folder / SETTINGS)
    except settings.SettingsError as error:
        raise FileFormatError(str(error)) from None
    streams: dict[str, Any] = dict(read(folder / SIGNALS))
    older: list[str] = []
    for name, labels in (("cycles", cycle_labels()), ("detections", [label for label, _ in detection_channels(config)])):
        if name in streams:
            streams[name], missing = _as_now(streams[name], labels)
            older += missing
    return Session(folder, config, streams, tuple(older))


def _as_now(stream: Stream, labels: list[str]) -> tuple[Stream, list[str]]:
    """Put the columns of a stream where this version has them, and 0 where it had none; returns those that are missing too."""
    had = [label for label, _ in stream.spec.channels]
    if had == labels:
        return stream, []
    was = np.asarray(stream.values)
    values = np.zeros((len(was), len(labels)), was.dtype)
    for j, label in enumerate(labels):
        if label in had:
            values[:, j] = was[:, had.index(label)]
    return replace(stream, values=values), [label for label in labels if label not in had]
