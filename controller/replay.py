"""Recorded inputs through the very same `Loop.step` and `Supervisor.step`.

A session of ours gives back its own decisions, compared field by field; the first cycle that differs is named. Any other recording is
cut into blocks and gives detections. The command is in `replay_command`, other settings for a session are in `what_if`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controller import artefact, audit, describe, kernels, reading, recording, settings
from controller.detector import SpasmDetector
from controller.guard import event_from_dict
from controller.limits import Device, prescription_from
from controller.loop import Loop
from controller.many import untold
from controller.recording import DETECTION_FIELDS
from controller.supervisor import Supervisor
from drivers.base import FEEDBACK_PULSE, Chunk, FileFormatError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from controller.settings import Settings
    from drivers.sources.files import Recording

BLOCK_S = 0.002  # a file is cut into blocks of this length
HOLD_MS = 2.0  # from each pulse of a recording on nothing is heard: best beside a template, of an artefact of 1.25 ms (notes, section 5)
START_S = 1000.0  # stamps of a file begin here: 0 means "nothing yet" in the loop
MIN_RATE_HZ, MAX_RATE_HZ, MAX_CHANNELS = 200.0, 10000.0, 64  # what the settings allow for EMG
DEFAULT_FLOOR = 5.0  # µV: activity below this is no spasm in any surface EMG
NO_FORCE = np.zeros((0, 0))
TELL_CYCLES = 100  # so often a replay says how far it is


@dataclass
class Result:
    """What a replay of a session found."""

    session: str
    seconds: float = 0.0  # of the recording, by the loop's clock
    cycles: int = 0
    requests: int = 0
    guard_events: int = 0
    pulses: int = 0
    identical: bool | None = True  # None: there was nothing to compare
    first_difference: dict[str, Any] | None = None
    spasms: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of each rule, s from the first sample
    notes: list[str] = field(default_factory=list)

    def differs(self, **where: Any) -> None:
        """Keep the first difference."""
        self.identical = False
        self.first_difference = self.first_difference or where


def load_session(folder: Path) -> recording.Session:
    """Read a session of this version. Raises `FileFormatError` where it cannot be read, or is of an earlier one."""
    session = recording.load(folder)
    if session.older:
        raise FileFormatError(
            f"{folder}: was recorded by an earlier calmloop, which decided by other rules (it knew no {', '.join(session.older[:3])}): its "
            "decisions are not this version's; its signals and what happened can be read (review, score)"
        )
    return session


def replay_session(folder: Path, tick: Callable[[float, float], None] = untold) -> Result:
    """Replay one session. Raises `FileFormatError` where it cannot be read.

    Parameters
    ----------
    tick : function
        Told now and then which share of the recording is done, and how many s of it.
    """
    session = load_session(folder)
    result = Result(str(folder))
    replay_loop(session, result, tick)
    _replay_guard(session, result)
    _check_frame(session, result)
    result.spasms = spasms_of(session)
    if not result.cycles and session.config.automatic:
        result.notes.append("the recording holds no cycle of the loop: nothing was compared")
        result.identical = result.identical and None
    return result


def spasms_of(session: recording.Session) -> dict[str, list[dict[str, Any]]]:
    """What each rule of a session saw, described; s from the recording's first sample."""
    found: dict[str, list[dict[str, Any]]] = {rule.name: [] for rule in session.config.rules}
    for name, spasm in describe.of_session(session):
        found[name].append(spasm.facts(origin_s(session)))
    return found


def origin_s(session: recording.Session) -> float:
    """Stamp of a session's first sample; 0 where it has none."""
    stamps = (session.streams[name].stamps_s for name in ("EMG", "force") if name in session.streams)
    return min((float(stamps_s[0]) for stamps_s in stamps if len(stamps_s)), default=0.0)


def told(session: recording.Session, tick: Callable[[float, float], None]) -> Iterator[tuple[int, recording.RecordedCycle]]:
    """All cycles of a session; `tick` is told how far they are, and at the end that they are done."""
    total, first_ns, seconds = len(session.streams["cycles"].values), 0, 0.0
    for i, (number, recorded) in enumerate(session.cycles()):
        first_ns = first_ns or recorded.chunk.received_ns
        seconds = (recorded.chunk.received_ns - first_ns) * 1e-9
        if i % TELL_CYCLES == 0:
            tick(i / total, seconds)
        yield number, recorded
    tick(1.0, seconds)


def replay_loop(session: recording.Session, result: Result, tick: Callable[[float, float], None] = untold) -> None:
    """Compare the decisions of the loop alone."""
    loop, number, first_ns = Loop(session.config), 0, 0
    for loop_number, recorded in told(session, tick):
        if loop_number != number:
            loop, number = Loop(session.config), loop_number
        cycle = loop.step(recorded.chunk)
        first_ns = first_ns or recorded.chunk.received_ns
        result.seconds = (recorded.chunk.received_ns - first_ns) * 1e-9
        result.cycles += 1
        result.requests += recorded.request is not None
        if cycle.index != recorded.numbers["index"]:
            result.differs(loop=number, cycle=cycle.index, field="index", recorded=recorded.numbers["index"], replayed=cycle.index)
            return  # cycles are missing: nothing after this can be compared
        rows = loop.detector.state.seen
        if at := first_unlike(recorded.detections, rows):
            rule, column = at
            result.differs(
                loop=number,
                cycle=cycle.index,
                field=f"{cycle.detections[rule].rule}: {DETECTION_FIELDS[column]}",
                recorded=float(recorded.detections[rule, column]),
                replayed=float(rows[rule, column]),
            )
        for name, was, now in (
            ("request", recorded.request, cycle.request),
            ("newest sample", recorded.sample_s, cycle.sample_s),
            ("data ok", bool(recorded.numbers["data_ok"]), cycle.data_ok),
        ):
            if was != now:
                result.differs(loop=number, cycle=cycle.index, field=name, recorded=repr(was), replayed=repr(now))


def first_unlike(recorded: NDArray[np.float64], rows: NDArray[np.float64]) -> tuple[int, int] | None:
    """Row and column of the first figure of two tables that is not the same; None = there is none."""
    if np.array_equal(rows, recorded, equal_nan=True):
        return None
    row, column = np.argwhere(~((rows == recorded) | (np.isnan(rows) & np.isnan(recorded))))[0].tolist()
    return row, column


def _replay_guard(session: recording.Session, result: Result) -> None:
    supervisor: Supervisor | None = None
    view = settings.guard_view(session.config)
    pulses: list[list[int]] = []  # what must be in the stream of pulses
    for i, row in enumerate(session.guard()):
        if "start_ns" in row:
            supervisor = Supervisor(prescription_from(row["view"], Device(**row["device"])))
            supervisor.remember(row["view"]["history"])
            given = {name: value for name, value in row["view"].items() if name != "history"}  # what came before is no setting
            if given != view:
                result.differs(guard_event=i, field="prescription", recorded=given, replayed=view)
            continue
        if supervisor is None:
            result.differs(guard_event=i, field="start", recorded="an event before guard's start", replayed="")
            return
        verdict = supervisor.step(event_from_dict(row["event"]))._asdict()
        verdict["reasons"] = list(verdict["reasons"])
        result.guard_events += 1
        result.pulses += verdict["delivered"]
        for name in verdict | row["verdict"]:
            was, now = row["verdict"].get(name, "nothing"), verdict.get(name, "nothing")
            if was != now:
                result.differs(guard_event=i, event=row["event"], field=name, recorded=was, replayed=now)
        if row.get("written_ns"):
            t = list(session.config.trains.values())[verdict["train"]]
            pulses.append([verdict["current_ua"], t.phase_width_us, t.interphase_gap_us, t.channel, row["request"]])
    recorded = session.streams["pulses"].values.tolist()
    # of a torn recording the last chunk may hold guard's rows and not yet the pulses among them
    if recorded != pulses[: len(recorded)] or (session.end and len(recorded) < len(pulses)):
        result.differs(field="pulses", recorded=len(recorded), replayed=len(pulses))


def _check_frame(session: recording.Session, result: Result) -> None:
    """What surrounds the decisions: whether the recording has its end, lost anything, and whether the audit is whole."""
    if session.end is None:
        result.notes.append("the recording has no end: it was cut, or its daemon was killed")
    elif session.end.get("records_lost"):
        result.notes.append(f"{session.end['records_lost']} records were lost while recording")
    path = session.folder / recording.AUDIT
    if not path.is_file():
        result.notes.append("there is no audit beside the recording")
        return
    try:
        _, bad = audit.verify(path, audit.key(), session.anchors())
    except audit.KeyMissingError as error:
        result.notes.append(f"the audit cannot be verified here: {error}")
    except audit.AuditError as error:
        result.differs(field="audit", recorded=str(error), replayed="")
    else:
        if bad:
            result.differs(field="audit", recorded=f"row {bad.row} {bad.why}", replayed="")


# --- other recordings -------------------------------------------------------------------------------------------------------------
def settings_for(
    rec: Recording,
    floor_uv: float,
    false_alarms_per_h: float,
    noise_time_s: float,
    high_pass_hz: float,
    off_ratio: float,
    hold_ms: float = 0.0,
) -> Settings:
    """Settings that listen to every EMG channel of a recording as one muscle, and between pulses where `hold_ms` is not 0.

    Raises
    ------
    SettingsError
        A figure is out of range.
    """
    channels = settings.toml(rec.channels)  # a name may hold quotes
    return settings.parse(
        f"""
[emg]
stream_name = "calmloop replay"
sample_rate_hz = {rec.sample_rate_hz!r}
channels = {channels}
unit = "uV"
hold_ms = {hold_ms!r}
[[emg_rules]]
name = "all channels"
channels = {channels}
train = "replay"
high_pass_hz = {high_pass_hz!r}
false_alarms_per_h = {false_alarms_per_h!r}
floor_uv = {floor_uv!r}
noise_time_s = {noise_time_s!r}
off_ratio = {off_ratio!r}
{_NO_STIMULATION}""",
        "replay",
    )


_NO_STIMULATION = """
[trains.replay]
channel = 1
current_ma = 1.0
phase_width_us = 100
interphase_gap_us = 100
pulse_rate_hz = 50.0
duration_ms = 500
ramp_up_ms = 0
taper_ms = 0
[prescription]
author = "replay: nothing is stimulated"
manual_train = "replay"
electrode_area_cm2 = 25.0
max_current_ma = 1.0
max_charge_per_phase_uc = 1.0
look_dead_ms = 20
look_ms = 100
max_event_s = 10.0
refractory_s = 3.0
max_on_time_s_in_60_s = 20.0
max_duty_percent_in_5_min = 25.0
max_on_time_min_in_session = 30.0
max_on_time_min_in_24_h = 60.0
max_pulses_in_session = 180000
max_pulses_in_24_h = 360000
max_charge_mc_in_session = 3600.0
max_charge_mc_in_24_h = 7200.0
max_events_in_10_min = 30
max_automatic_events_in_1_h = 60
arming_expires_min = 30.0
[stimulator]
driver = "rehamove3"
port = "none"
"""


def chunks(rec: Recording, pulses_s: NDArray[np.float64] | None = None) -> Iterator[Chunk]:
    """A recording as the chunks of a live loop; of pulses, (n_pulses,) s from its start, word comes with the chunk they are in."""
    n, step = len(rec.emg), max(1, round(BLOCK_S * rec.sample_rate_hz))
    at_s = np.sort(np.zeros(0) if pulses_s is None else pulses_s)
    heard = np.column_stack([np.full(len(at_s), FEEDBACK_PULSE), START_S + at_s, np.full(len(at_s), float(artefact.ANY))])
    for start in range(0, n, step):
        stop = min(n, start + step)
        t_s = START_S + np.arange(start, stop) / rec.sample_rate_hz
        word = heard[slice(*np.searchsorted(at_s, (start / rec.sample_rate_hz, stop / rec.sample_rate_hz)))]
        yield Chunk(np.ascontiguousarray(rec.emg[start:stop]), t_s, NO_FORCE, np.zeros(0), word, round((t_s[-1] + 0.001) * 1e9))


@dataclass
class Activation:
    """One decision of a rule until the rule was quiet again; stamps of the chunks.

    Attributes
    ----------
    offset_s : float
        Newest sample of the last chunk in which the rule was on.
    on : bool
        It still was when the chunks ended.
    """

    onset_s: float
    decided_s: float
    offset_s: float
    on: bool = True


def activations(loop: Loop, chunks: Iterable[Chunk]) -> list[list[Activation]]:
    """All that each rule and each join decides, in the order of the detections; nothing is merged."""
    found: list[list[Activation]] = [[] for _ in loop.detector.rules]
    for chunk in chunks:
        loop.step(chunk)
        take(found, loop.detector.state.seen, loop.state.newest_s.tolist())
    return found


def take(found: list[list[Activation]], rows: NDArray[np.float64], newest_s: list[float]) -> None:
    """Add to the activations of each rule what it says now; `newest_s` is the newest sample that it has seen."""
    decisions = rows[:, : kernels.STATISTIC].tolist()  # active, onset, decided
    for mine, (active, onset_s, decided_s), now_s in zip(found, decisions, newest_s, strict=True):
        # told by its stamp, so that one which begins and ends within a chunk is not lost
        if decided_s == decided_s and (not mine or decided_s != mine[-1].decided_s):
            mine.append(Activation(onset_s, decided_s, now_s))
        if mine:
            mine[-1].on = bool(active)
            if active:
                mine[-1].offset_s = now_s


def detect(
    rec: Recording, config: Settings, pulses_s: NDArray[np.float64] | None = None, tick: Callable[[float, float], None] = untold
) -> list[dict[str, Any]]:
    """Spasms of a recording by the first rule, in s from its start; see `describe.Spasm`.

    The loop decides, and holds what it hears after each request; nothing is stimulated in a file, so a detector that is never held says how
    strong the muscle was.
    """
    loop, heard, spasms = Loop(config), SpasmDetector(config), describe.Spasms(config)
    newest_s, rows, found = [], [], []
    for chunk in chunks(rec, pulses_s):
        loop.step(chunk)
        heard.update(chunk, 0.0)
        row = heard.state.seen.copy()
        row[:, : kernels.STATISTIC] = loop.detector.state.seen[:, : kernels.STATISTIC]  # active, onset, decided
        newest_s.append((chunk.emg_t_s[-1], 0.0))
        rows.append(row)
        if len(rows) == describe.ROWS:
            found += spasms.take(np.array(newest_s), np.array(rows))
            newest_s, rows = [], []
            done_s = chunk.emg_t_s[-1] - START_S
            tick(done_s / rec.duration_s, done_s)
    if rows:
        found += spasms.take(np.array(newest_s), np.array(rows))
    return [spasm.facts(START_S) for name, spasm in found + spasms.finish() if name == config.rules[0].name]


def pulses_in(rec: Recording, where: str, options: dict[str, Any]) -> NDArray[np.float64]:
    """When a recording was stimulated, (n_pulses,) s from its start.

    Parameters
    ----------
    where : str
        "find": by the artefacts in its EMG; the name of a channel: where that rises; or a text file with one time a line.

    Raises
    ------
    FileFormatError
        There is no such channel or file, or it holds no times; or no artefacts are found.
    """
    from drivers.sources import files

    if where == "find":
        found = artefact.find_pulses(rec.emg, rec.sample_rate_hz)
    elif Path(where).is_file():
        try:
            found = np.loadtxt(where, ndmin=1)
        except ValueError as error:
            raise FileFormatError(f"{where}: must hold one time in s a line: {error}") from None
        if found.ndim != 1 or not np.isfinite(found).all():
            raise FileFormatError(f"{where}: must hold one time in s a line, from the start of the recording, and nothing else")
    else:
        try:
            level = files.load(rec.path, **(options | {"channels": where})).emg[:, 0]
        except FileFormatError as error:
            raise FileFormatError(f"--pulses {where}: is no file, nor a channel ({error}), nor 'find'") from None
        high = level > 0.5 * (level.min() + level.max())
        found = np.flatnonzero(high[1:] & ~high[:-1]) / rec.sample_rate_hz
    if not len(found):
        raise FileFormatError(f"{rec.path}: no pulses by --pulses {where}")
    return np.asarray(found)


def load_file(path: Path, args: argparse.Namespace) -> tuple[Recording, Settings, dict[str, Any]]:
    """A recording as the command's options say, the settings that listen to it, and the options."""
    from drivers.sources import files

    options = reading.options_of(args)
    rec = files.load(path, **options)
    if len(rec.channels) > MAX_CHANNELS:
        raise FileFormatError(f"{path}: {len(rec.channels)} EMG channels: name at most {MAX_CHANNELS} with --channels, such as 1-8")
    if not MIN_RATE_HZ <= rec.sample_rate_hz <= MAX_RATE_HZ:
        words = f"{rec.sample_rate_hz:g} Hz; spasms are looked for in EMG of {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz"
        raise FileFormatError(f"{path}: {', '.join(rec.channels)[:60]} has {words}: choose other --channels, or resample it")
    floor = DEFAULT_FLOOR if args.floor is None else args.floor
    hold_ms = HOLD_MS if getattr(args, "pulses", None) else 0.0
    return rec, settings_for(rec, floor, args.false_alarms_per_h, args.noise_time, args.high_pass, args.off_ratio, hold_ms), options


def doubts(rec: Recording, active_s: float, floor_given: bool, floor: float) -> list[str]:
    """What makes the result of a file doubtful; said beside it. `active_s` is how long there was a spasm, in all."""
    notes = []
    if rec.unit == "raw" and not floor_given:
        notes.append(f"the unit is not known, so the floor of {floor:g} is in raw counts: give --unit or --floor")
    rms = float(np.sqrt(np.mean((rec.emg - rec.emg.mean(0)) ** 2)))
    if not active_s and rms < floor:
        notes.append(f"the whole recording has {rms:.3g} rms, less than the floor of {floor:g}: wrong --unit or --floor?")
    if rms > 2e4 and rec.unit != "raw":
        notes.append(f"{rms:.3g} uV rms is no surface EMG: wrong --unit?")
    if active_s > 0.8 * rec.duration_s:
        notes.append(
            f"active for {100 * active_s / rec.duration_s:.0f} % of the time: --floor too low, or stimulation in the signal (--pulses)?"
        )
    return notes
