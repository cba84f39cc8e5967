"""The bedside process: starts guard and loop, watches over them, records what they do, tells people.

Nothing here is in the way of a sample or a pulse: loop and guard write into rings in shared memory, this process reads them when it gets
to it. When it dies, guard stops all output and ends (nothing is recorded, so nothing is stimulated), and the loop ends with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from controller import alarms, audit, button, describe, dose, messages, prescribing, realtime, recording, settings, streams
from controller.detector import QUALITIES, VETOES
from controller.journal import ADOPTED, ASSUMED_TRAINS, OUTPUT_STATES, Journal, JournalError, default_path, distrust
from controller.loop import RING_BYTES
from controller.markers import Markers
from controller.notify import Notifier
from controller.ring import RingReader, create
from controller.telemetry import QUANTITIES, Telemetry
from controller.web.feed import Feed
from drivers.sources import bridge

if TYPE_CHECKING:
    from collections.abc import Callable

    from controller.settings import Settings

GUARD_RING_BYTES = 8 << 20
LINK_BYTES = 1 << 20  # the dose of a day goes to guard as one message
TURN_S = 0.01
STATUS_S = 0.25
MARK_S = 1.0
SLOW_DISK_S = 1.0  # what is older than this is not on the disk yet: people are told
LATENCY_S = 60.0
END_S = 3.0  # what guard and loop get to end by themselves
MAX_RESTARTS_A_MINUTE = 5
RESTART_S = 0.5
LOOP_AGAIN_S = 10.0  # where a loop has ended more often
MAX_LATENESS_MS = 50.0
LATENCY = "latency.json"  # beside the recording
PAGE_END_S = 1.0
LONG_START_S = 10.0  # of a loop: then people are told what it does
ANSWERED_S = 0.2  # whoever prescribed has guard's answer by then, before page and guard end
ROOM_AGAIN = 1.05  # of what is needed, before arming is allowed again
RATE_S, ROOM_S = 10.0, 2 * 3600.0  # F5: after so long the rate of recording is known, and there must be room for so much more
MAX_PROBLEMS = 20  # of a prescription, that are told
HELPER_AGAIN_S = 2.0  # after it was started: before it is started again


@dataclass(slots=True)
class Process:
    """What several sessions of one process share: its word to the service manager, and whether it was told to end."""

    notify: Notifier
    told_to_end: bool = False


class StartError(Exception):
    """The session cannot be recorded: nothing was started. The message says where and why."""


class Child:
    """Guard or loop: the process and the ring it writes."""

    def __init__(self, name: str, number: int, module: str, ring_bytes: int, fd: int, fd_option: str, *more: str) -> None:
        self.name, self.number = name, number
        ring_fd = create(f"calmloop-{name}", ring_bytes)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, fd_option, str(fd), "--ring", str(ring_fd), *more],
            pass_fds=(fd, ring_fd),
            stdin=subprocess.DEVNULL,
        )
        self.ring = RingReader(ring_fd)
        os.close(ring_fd)

    def how_it_ended(self) -> str | None:
        """None while it runs; else how it ended, in words."""
        code = self.process.poll()
        if code is None:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def close(self) -> None:
        """End it, by force if need be, and let its ring go."""
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class PageProcess:
    """The process that serves the page; a bed goes on without it."""

    def __init__(self, bed: str, port: int, feed: Feed, *more: str) -> None:
        door = messages.page_path(messages.control_path(bed))
        command = [sys.executable, "-m", "controller.web.server", "--feed", str(feed.fd), "--door", str(door), "--port", str(port), *more]
        self.process = subprocess.Popen(command, pass_fds=(feed.fd,), stdin=subprocess.DEVNULL)

    def close(self) -> None:
        """End it."""
        end_process(self.process)


class Helper:
    """A process that listens to a device: the patient's button, or a source of signals that speaks no LSL.

    While there is none, guard hears nothing of a button and acts by C4, and the loop hears no samples.
    """

    def __init__(self, name: str, module: str, *words: str) -> None:
        self.name = name
        self.again_s = time.monotonic() + HELPER_AGAIN_S
        self.module, self.words = module, words
        self.process = subprocess.Popen([sys.executable, "-m", module, *words], stdin=subprocess.DEVNULL)

    def again(self) -> Helper:
        """Start it anew."""
        return Helper(self.name, self.module, *self.words)

    def close(self) -> None:
        """End it."""
        end_process(self.process)


def helpers(bed: str, config: Settings) -> list[Helper]:
    """Start what these settings need."""
    found = []
    if config.button:
        # below the loop's priority: a button that babbles must not hold it up
        words = button.arguments(bed, **config.button.model_dump(), priority=max(0, config.realtime.loop_priority - 1))
        found.append(Helper("button", "controller.button", *words))
    for kind, signal_settings in (("EMG", config.emg), ("Force", config.force)):
        if signal_settings and (s := signal_settings).device:
            about = bridge.arguments(s.device, s.stream_name, kind, s.channels, s.unit, s.sample_rate_hz, s.scale)
            found.append(Helper(kind, "drivers.sources.bridge", *about))
    return found


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process that holds nothing of ours, by force if need be."""
    process.terminate()
    try:
        process.wait(PAGE_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Daemon:
    """One bed, one session.

    Parameters
    ----------
    config : Settings
    bed : str
        Name of the control socket.
    tell : Speaker
        Takes one line of text for people.
    lifeline : bool
        End when standard input does: whoever started us is gone.
    journal : Path or None
        The dose journal; None = the bed's own.
    path : Path or None
        The settings' own file, where a change of the prescription is kept; None = nothing can be prescribed.
    people : dict or None
        Who had paired, as the guard before handed them on.
    process : Process or None
        What outlives a session; None = there is no other.

    Attributes
    ----------
    next : tuple of Settings and dict, or None
        After `run`: a new prescription is in force, and a session with it is to begin, with these people.

    Raises
    ------
    JournalError, AuditError, StartError
        The dose journal, the audit's key or the session's folder cannot be used: nothing was started.
    """

    GUARD_MODULE, LOOP_MODULE = "controller.guard", "controller.loop"  # the children's programs; a bench starts its own

    def __init__(
        self,
        config: Settings,
        bed: str,
        tell: Speaker,
        lifeline: bool = False,
        journal: Path | None = None,
        path: Path | None = None,
        people: dict[str, Any] | None = None,
        process: Process | None = None,
    ) -> None:
        os.umask(0o077)  # what is recorded of a person is nobody else's business
        self.path, self.people, self.why_not_arm = path and path.resolve(), people, ""
        self.next: tuple[Settings, dict[str, Any]] | None = None
        self.config, self.bed, self.tell, self.lifeline = config, bed, tell, lifeline
        self.view = settings.guard_view(config)
        key = audit.key(make=True)
        self.journal = Journal(journal or default_path(bed))
        if not self.journal.rows and (session := earlier_session(Path(config.session.folder), self.journal.path)):
            self.journal.close()
            raise distrust(self.journal.path, f"it is gone, though {session} wrote to it within 24 h")
        try:
            self.folder = recording.new_folder(Path(config.session.folder), bed)
            (self.folder / recording.SETTINGS).write_text(config.to_toml())
            self.recorder = recording.Recorder(self.folder, config)
            self.audit = audit.Audit(self.folder / recording.AUDIT, key)
        except (OSError, sqlite3.Error) as error:  # no such folder, not ours, full disk
            self.journal.close()
            raise StartError(f"no session can be recorded in [session] folder {config.session.folder}: {error}") from None
        self.anchored = audit.Head(0, "")
        self.guard: Child | None = None
        self.loop: Child | None = None
        self.link: socket.socket | None = None
        self.feed = Feed(config, VETOES) if config.page.port else None
        self.unfed = ""  # why the page is shown nothing any more
        self.page: PageProcess | None = None
        self.helpers: list[Helper] = []
        self.markers: Markers | None = None
        self.deaths: deque[float] = deque(maxlen=MAX_RESTARTS_A_MINUTE)
        self.loop_deaths: deque[float] = deque(maxlen=MAX_RESTARTS_A_MINUTE)
        self.loop_due_s = 0.0  # when a loop that ended is started again; 0 = none ended
        self.was_armed = False
        self.page_deaths: deque[float] = deque(maxlen=MAX_RESTARTS_A_MINUTE)
        self.guards = self.loops = 0
        self.guard_answers = False  # the first has passed its own test and serves
        self.exit_code = 0
        self.status_problem = ""  # what was told of it last
        self.slow_disk = False
        self.drained = True  # every row of guard that was read is on the disk
        self.ending = ""
        self.started = time.monotonic()
        # the default stands in for settings that do not name a lateness
        self.telemetry = Telemetry(config.realtime.max_sample_age_ms, getattr(config.realtime, "max_lateness_ms", MAX_LATENESS_MS))
        self.status: dict[str, Any] = {
            "state": "OFF",
            "reason": "starting",
            "automatic": False,
            "train_by": "",  # the event that began the last train: trigger = a person, request = the loop
            "cycles": 0,
            "requests": 0,
            "trains": 0,
            "pulses": 0,
            "refusals": 0,
            "records_lost": 0,
            "loop": "starting",
            "data_ok": False,
            "streams": {},
            "sample_age_ms": None,
            "last_trigger": None,
            "latency": {},
            "late": "",
            "realtime": {},
            "rules": {},
            "requests_by": {row.name: 0 for row in config.rows},
            "spasms": {rule.name: {"n": 0, **dict.fromkeys(describe.KINDS, 0), "last": None} for rule in config.rules},
            "dose": {},
        }
        self.spasms = describe.Spasms(config)
        self.heard: list[tuple[tuple[float, float], Any]] = []  # what the rules said since they were last described, and the newest stamps
        self.newest_s = (0.0, 0.0)  # of EMG and force, as last described
        self.last_line, self.repeats = "", 0
        self.slow_start_s = float("inf")  # from when on a loop that is still starting takes long
        self.process = process or Process(Notifier())
        self.notify = self.process.notify

    # --- life ----------------------------------------------------------------------------------------------------------------
    def run(self) -> int:
        """Serve until SIGINT or SIGTERM; returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        try:
            if self.process.told_to_end:
                self.ending = "told to end before it began"
            self.begin()
            mark_s = status_s = line_s = latency_s = time.monotonic()
            while not self.ending:
                self.drain()
                self.hear_guard()
                self.look_after_children()
                now_s = time.monotonic()
                self.notify.turn(now_s, ready=self.guard_answers, status=f"{self.status['state']}: {self.status['reason']}")
                if now_s - mark_s >= MARK_S:
                    mark_s = now_s
                    self.mark()
                if now_s - status_s >= STATUS_S:
                    status_s = now_s
                    self.see_latency()
                    self.see_spasms()
                    self.see_long_start(now_s)
                    self.write_status()
                if now_s - latency_s >= LATENCY_S:
                    latency_s = now_s
                    self.write_latency()
                if now_s - line_s >= STATUS_S and sys.stderr.isatty():
                    line_s = now_s
                    self.status_line()
                if self.lifeline and select.select([sys.stdin], [], [], 0)[0] and not sys.stdin.readline():
                    self.ending = "whoever started us is gone"
                time.sleep(TURN_S)
        except (OSError, sqlite3.Error, JournalError) as error:  # disk full, disk gone: what cannot be recorded is not done
            self.exit_code, self.ending, self.drained = 1, f"recording failed: {error}", False
            self.tell(self.ending)
        self.end()
        return self.exit_code

    def begin(self) -> None:
        """The session's first notes, then guard and loop."""
        messages.status_path(self.bed).unlink(missing_ok=True)  # what a daemon that was killed said last is not ours
        if self.journal.adopted:
            self.tell(ADOPTED.format(self.journal.adopted))
            self.note("dose journal adopted", rows=self.journal.adopted)
        if self.journal.begin(self.folder.name, dose.worst_train(self.view)):
            self.tell(f"the last session of this bed had no clean end: {ASSUMED_TRAINS} trains are added to its dose, which goes on")
        digest = hashlib.sha256((self.folder / recording.SETTINGS).read_bytes()).hexdigest()
        config, where = self.config.model_dump(mode="json"), {"journal": str(self.journal.path.resolve())}
        self.note("session", config=config, settings_sha256=digest, bed=self.bed, pid=os.getpid(), **where, dose=self.see_dose())
        self.start_markers()
        self.start_guard()
        self.helpers = helpers(self.bed, self.config)
        self.start_loop()
        self.start_page()

    def see_disk(self, free_bytes: int) -> None:
        """Arming needs room for what will be recorded: guard is told when there is too little, and when there is again (F5)."""
        recorded_s = time.monotonic() - self.started
        per_s = (self.folder / recording.SIGNALS).stat().st_size / recorded_s if recorded_s > RATE_S else 0.0
        needed = max(alarms.DISK_LOW_BYTES, int(per_s * ROOM_S))
        why = f"{free_bytes / 1e9:.1f} GB are free, arming needs {needed / 1e9:.1f} GB: {ROOM_S / 3600:g} h of recording [F5]"
        why = why if free_bytes < needed * (ROOM_AGAIN if self.why_not_arm else 1.0) else ""
        if bool(why) != bool(self.why_not_arm) and self.link:
            self.why_not_arm = why
            self.tell_guard(why_not_arm=why)
            self.note("disk", why_not_arm=why)

    def mark(self) -> None:
        """Once a second: where the audit ends, a boundary to resynchronise at, whether the disk keeps up."""
        if self.audit.head != self.anchored:
            self.anchored = self.audit.head
            self.recorder.note(monotonic_ns() * 1e-9, {"what": recording.ANCHOR, **self.anchored._asdict()})
        self.recorder.mark()
        self.see_slow_disk(self.recorder.behind_s)
        self.see_dose()

    def see_slow_disk(self, behind_s: float) -> None:
        """Say when the disk begins to take too long, and when it keeps up again; the bed goes on."""
        if (slow := behind_s > SLOW_DISK_S) == self.slow_disk:
            return
        self.slow_disk = slow
        self.tell(f"the disk is {behind_s:.1f} s behind: a power cut now would cost that much" if slow else "the disk keeps up again")
        # not into the audit, which would wait for that disk
        self.recorder.note(monotonic_ns() * 1e-9, {"what": "slow disk", "behind_s": round(behind_s, 3)})

    def _on_signal(self, number: int, _: object) -> None:
        self.process.told_to_end = True  # also where a new session was about to begin
        self.ending = self.ending or f"{signal.Signals(number).name} received"

    def end(self) -> None:
        """Stop output, end the children, close the files."""
        if self.next and not self.process.told_to_end:
            self.notify.alive()  # what is left to do gets a whole watchdog time
            self.status["renewing"] = True  # whoever looks knows that what comes now was planned
            with contextlib.suppress(OSError):
                self.write_status()
            time.sleep(ANSWERED_S)
        else:
            self.notify.stopping(self.ending)
        if self.link:
            try:
                self.link.send(b"end")
            except OSError:
                pass
        for child in (self.page, *self.helpers, self.guard, self.loop):
            if child:
                child.close()
        try:
            self.drain()
            if self.markers:
                self.note("markers", dropped=self.markers.dropped)
                self.markers.close()
            self.note_triggers()
            self.see_spasms(finish=True)
            self.write_latency()
            why = {"why": self.ending, "records_lost": self.status["records_lost"], "latency": self.telemetry.summary()}
            why["spasms"] = self.status["spasms"]
            self.audit.add(monotonic_ns(), recording.END, **why, dose=self.see_dose())
            self.recorder.note(monotonic_ns() * 1e-9, {"what": recording.END, **why, **self.audit.head._asdict()})
            self.recorder.close()
            if self.drained and not self.may_hide_trains():
                self.journal.end()
        except (OSError, sqlite3.Error, JournalError) as error:
            self.tell(f"the end of the recording could not be written: {error}")
        for file in (self.audit, self.journal):
            try:
                file.close()
            except sqlite3.Error:
                pass  # said already
        if self.feed:
            self.feed.close()
        messages.status_path(self.bed).unlink(missing_ok=True)
        self.tell(f"{self.ending}: output stopped; session in {self.folder}")
        self.tell.finish()

    # --- children ------------------------------------------------------------------------------------------------------------
    def start_guard(self) -> None:
        """Start a guard; it comes up with nothing armed."""
        self.guards += 1
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.guard = Child("guard", self.guards, self.GUARD_MODULE, GUARD_RING_BYTES, theirs.fileno(), "--link", "--bed", self.bed)
        self.link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINK_BYTES)
        more = {"history": self.journal.history()} | ({"people": self.people} if self.people else {})
        self.link.send(json.dumps(self.view | more).encode())
        self.people = None  # a guard that dies takes them with it
        self.why_not_arm = ""  # it has not been told yet

    def start_loop(self) -> None:
        """Start a loop, if there is anything to hear, and introduce it to guard."""
        if not self.config.automatic:
            self.status["loop"] = "not wanted: no rules, the button alone"
            return
        assert self.link
        self.see_spasms(finish=True)  # what a loop did not see the end of, the next knows nothing of
        self.loops, self.loop_due_s = self.loops + 1, 0.0
        self.telemetry.loop_started()
        self.recorder.loop_number = self.loops
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            path = self.folder / recording.SETTINGS
            self.loop = Child("loop", self.loops, self.LOOP_MODULE, RING_BYTES, ours.fileno(), "--guard", "--settings", str(path))
            socket.send_fds(self.link, [b"loop"], [theirs.fileno()])
        self.status |= {"loop": "starting", "data_ok": False, "streams": {}}
        self.slow_start_s = time.monotonic() + LONG_START_S

    def see_long_start(self, now_s: float) -> None:
        """Say once of each loop that it takes long to start: until then nothing is heard."""
        if self.status["loop"] == "starting" and now_s > self.slow_start_s:
            self.slow_start_s = float("inf")
            self.tell(f"{alarms.STARTING}: no automatic stimulation; the button works")

    def start_page(self) -> None:
        """Start the page's process, if there is to be a page."""
        if self.feed:
            kept = ["--versions", str(prescribing.versions_folder(self.path))] if self.path else []
            page = self.config.page
            beyond = ["--interface", page.interface, "--host-name", page.host_name, "--certificate", page.certificate, "--key", page.key]
            files = ["--settings", str(self.folder / recording.SETTINGS), "--sessions", str(self.folder.parent), *kept]
            self.page = PageProcess(self.bed, page.port, self.feed, *files, *(beyond if page.interface else []))
            where = f"https://127.0.0.1:{page.port}, and on {page.interface}" if page.interface else f"http://127.0.0.1:{page.port}"
            self.tell(f"page: {where}")

    def look_after_page(self) -> None:
        """Start a page's process that ended again, but not for ever: the bed needs none."""
        if self.page is None or self.page.process.poll() is None:
            return
        code, self.page, now_s = self.page.process.returncode, None, time.monotonic()
        self.note("page ended", exit_code=code)
        if code == 2 or (len(self.page_deaths) == MAX_RESTARTS_A_MINUTE and now_s - self.page_deaths[0] < 60):
            self.tell(f"the page cannot be served at port {self.config.page.port} (exit code {code}); the bed goes on without it")
            return
        self.page_deaths.append(now_s)
        self.start_page()

    def look_after_helpers(self) -> None:
        """Start a helper that ended again, once in a while; guard and loop have noticed by themselves that they hear nothing of it."""
        for helper in list(self.helpers):
            if helper.process.poll() is None or time.monotonic() < helper.again_s:
                continue
            code = helper.process.returncode
            self.helpers.remove(helper)
            self.note(f"{helper.name} ended", exit_code=code)
            self.tell(f"the process of {helper.name} ended (exit code {code}){'' if code == 2 else ' and is started again'}")
            if code != 2:  # it said what is wrong; trying again would say the same
                self.helpers.append(helper.again())

    def start_markers(self) -> None:
        """Tell LSL, if that is wanted; a bed goes on without it."""
        if self.config.lsl.markers:
            self.markers = Markers(self.bed, self.config)

    def look_after_markers(self) -> None:
        """Note that the markers' process ended; it is not started again, as a recorder would miss what came between and not know."""
        if self.markers and self.markers.process.poll() is not None:
            self.note("markers ended", exit_code=self.markers.process.returncode, dropped=self.markers.dropped)
            self.tell("the LSL markers have ended; the bed goes on without them")
            self.markers.close()
            self.markers = None

    def look_after_children(self) -> None:
        """Say how a child ended and start it again; automatic mode then waits for a person."""
        self.look_after_page()
        self.look_after_helpers()
        self.look_after_markers()
        for child in (self.guard, self.loop):
            how = child.how_it_ended() if child else None
            if child is None or how is None:
                continue
            self.drain()
            text = f"{child.name} {how}"
            self.tell(f"{text}; output has stopped or stops within the lease; a person must arm automatic mode again")
            self.note("child ended", name=child.name, how=how, number=child.number)
            if child is self.guard:
                self.see_guard_dead(text)
            # it said what is wrong, and trying again would say the same; but a bed that is in use has its button, which needs no loop
            if child.process.returncode == 2 and child.number == 1 and not (child is self.loop and self.was_armed):
                self.exit_code, self.ending = 2, f"{child.name} could not start"
                return
            if child is self.loop:
                self.loop_ended(child)
                continue
            now_s = time.monotonic()
            if len(self.deaths) == MAX_RESTARTS_A_MINUTE and now_s - self.deaths[0] < 60:
                self.exit_code, self.ending = 1, f"{text} for the {MAX_RESTARTS_A_MINUTE + 1}th time within a minute"
                return
            self.deaths.append(now_s)
            time.sleep(RESTART_S)
            if self.loop:
                self.loop.process.kill()  # it belongs to the old guard
                self.loop.close()
                self.drain()
            self.start_guard()
            self.start_loop()
            return
        if self.loop_due_s and time.monotonic() >= self.loop_due_s:
            self.start_loop()

    def loop_ended(self, loop: Child) -> None:
        """Start a loop again soon, or less soon where it keeps ending; it never ends the bed, whose button needs none."""
        loop.close()
        now_s = time.monotonic()
        often = len(self.loop_deaths) == MAX_RESTARTS_A_MINUTE and now_s - self.loop_deaths[0] < 60
        self.loop_deaths.append(now_s)
        self.loop, self.loop_due_s = None, now_s + (LOOP_AGAIN_S if often else RESTART_S)
        self.status |= {"loop": "ended, and is started again", "data_ok": False, "streams": {}}

    # --- the prescription ----------------------------------------------------------------------------------------------------
    def hear_guard(self) -> None:
        """What guard passes on of people: a new prescription, which it has let pass."""
        if not self.link or not select.select([self.link], [], [], 0)[0]:
            return
        try:
            data = self.link.recv(LINK_BYTES)
        except OSError:
            data = b""
        if not data:  # it is gone, which is seen elsewhere
            return
        try:
            said = json.loads(data)
            reasons = self.prescribe(said["prescribe"], said["people"])
        except (OSError, sqlite3.Error):  # what cannot be recorded ends the session, as everywhere
            raise
        except Exception as error:  # whatever comes from a page, the bed goes on
            reasons = [f"this cannot be a change: {type(error).__name__}: {str(error)[:200]}"]
        self.tell_guard(ok=self.next is not None, reasons=reasons)

    def tell_guard(self, **words: Any) -> None:
        """Say something to guard; one that is gone is seen elsewhere."""
        assert self.link
        try:
            self.link.send(json.dumps(words).encode())
        except OSError:
            pass

    def prescribe(self, said: dict[str, Any], people: dict[str, Any]) -> list[str]:
        """Keep a change of the prescription and end this session for one with it; or say why not."""
        from controller import fits  # and with it the drivers

        rx, path = self.config.prescription, self.path
        if self.next or path is None:
            return ["a change is under way [G6]" if self.next else "these settings have no file of their own: nothing can be kept"]
        if said["based_on"] != rx.version:
            return [f"version {rx.version} of {rx.author} is in force, this changes version {said['based_on']}: look at it first [G6]"]
        more = {"version": rx.version + 1, "author": said["who"], "reason": said["reason"]}
        try:
            text = path.read_text(encoding="utf-8-sig")
            if settings.parse(text, path.name) != self.config:
                return [f"{path.name} was changed by hand since this session began: end the session and start it again [G6]"]
            new, config = prescribing.changed(text, said["changes"], more, path.name)
            fits.together(config, path.name)
            if not (different := prescribing.differences(self.config, config)):
                return ["nothing is different"]
            prescribing.keep(path, text, new, config.prescription.version)
        except settings.SettingsError as error:
            return list(error.problems[:MAX_PROBLEMS])
        except (OSError, UnicodeDecodeError) as error:
            return [f"{path.name} cannot be changed: {error}"]
        self.note("prescribed", **more, changes=different)
        self.next = (config, people)
        self.ending = f"version {more['version']} of the prescription is in force: a new session begins with it"
        return [f"version {more['version']} is in force", *different]

    # --- recording -----------------------------------------------------------------------------------------------------------
    def drain(self) -> None:
        """Everything that loop and guard have put into their rings, into the files."""
        now_ns = monotonic_ns()
        cycles = []
        if self.loop:
            for kind, payload in self.loop.ring.records():
                if kind == messages.RING_CYCLE:
                    cycles.append(recording.unpack_cycle(payload))
                else:
                    note = json.loads(payload)
                    self.see_realtime("loop", note["realtime"])
                    self.note("loop ready", **note)
            if cycles:
                self.recorder.cycles(cycles)
                self.see_cycles(cycles)
                if self.markers:
                    self.markers.see_cycles(cycles)
                if self.feed:
                    self.show(self.feed.see, cycles)
        self.telemetry.see_cycles(cycles, now_ns)
        self.note_triggers()
        if self.guard:
            self.drain_guard(self.guard)
        if self.loop:
            self.see_lost(self.loop)

    def drain_guard(self, guard: Child) -> None:
        """Guard's events: recorded, audited, told, and their dose put down; then guard may know that they are on the disk."""
        rows = [json.loads(payload) | {"guard": guard.number} for _, payload in guard.ring.records()]
        state = self.status["state"]
        with self.audit.together():
            self.recorder.guard(rows)
            self.telemetry.see_guard(rows, monotonic_ns())
            for row in rows:
                self.see_guard(row)
        dosed = self.journal.take(rows)
        if guard.ring.lost:
            dosed = self.journal.assume("rows of guard were lost") > 0
            self.see_lost(guard)
        if self.drained:
            guard.ring.durable = guard.ring.number
        if dosed:
            self.see_dose()
        if self.status["state"] != state:  # who looks sees the state within 250 ms (B8)
            self.write_status()

    def show(self, put: Callable[..., None], *facts: Any) -> None:
        """Feed the page. A picture that cannot be made ends no bed: it is said once, and the page, which hears no more, says so itself."""
        if self.unfed:
            return
        try:
            put(*facts)
        except Exception as error:
            self.unfed = f"{type(error).__name__}: {error}"
            self.tell(f"the page is shown nothing any more: {self.unfed}")
            self.note("page not fed", why=self.unfed)

    def see_lost(self, child: Child) -> None:
        """Count the records that went while we did not read, and say so."""
        if child.ring.lost:
            self.status["records_lost"] += child.ring.lost
            self.tell(f"{child.ring.lost} records of {child.name} were lost: the recording did not keep up")
            self.note(recording.LOST, name=child.name, number=child.ring.lost)
            child.ring.lost = 0

    def see_guard_dead(self, how: str) -> None:
        """Guard is gone, its rows are drained. Where it may have given a pulse that no row tells of, two trains are added to the dose."""
        if self.may_hide_trains():
            n = self.journal.assume(how)
            self.tell(f"{how} while armed: {n} trains are added to the dose")
            self.note("dose assumed", why=how, dose=self.see_dose())
        self.status.update(state="OFF", automatic=False, reason=how)
        self.write_status()

    def may_hide_trains(self) -> bool:
        """Whether a guard that is gone may have given what no row tells of.

        Armed or stimulating in its last row: a train that was on has no row yet, and a first pulse may have left before its row was put.
        In every other state nothing can be missing, since guard arms only after the row that says so is on the disk.
        """
        return self.guard is not None and (self.status["state"] in OUTPUT_STATES or self.guard.ring.behind > 0)

    def see_dose(self) -> dict[str, Any]:
        """What the journal holds goes into the status."""
        self.status["dose"] = summary = self.journal.summary()
        return summary

    def see_cycles(self, cycles: list[recording.RecordedCycle]) -> None:
        """Take over what people want to know of the loop."""
        last = cycles[-1]
        s = self.status
        s["cycles"] += len(cycles)
        s["loop"] = "alive"
        s["data_ok"] = bool(last.numbers["data_ok"])
        s["streams"] = {name: streams.STATES[last.numbers[f"{name}_state"]] for name in ("emg", "force") if getattr(self.config, name)}
        s["sample_age_ms"] = round((last.numbers["decided_ns"] * 1e-9 - last.sample_s) * 1e3, 2)
        names = [row.name for row in self.config.rows]
        s["rules"] = {
            name: {
                "active": bool(row[0]),
                "statistic": row[3],
                "threshold": row[4],
                "quality": QUALITIES[int(row[6])],
                "veto": VETOES[int(row[8])],
            }
            for name, row in zip(names, last.detections, strict=True)
        }
        for cycle in cycles:
            if cycle.numbers["request"]:
                s["requests"] += 1
                s["requests_by"][names[cycle.numbers["rule"]]] += 1
            emg_s, force_s = self.heard[-1][0] if self.heard else self.newest_s
            emg_t_s, force_t_s = cycle.chunk.emg_t_s, cycle.chunk.force_t_s
            newest_s = (float(emg_t_s[-1]) if len(emg_t_s) else emg_s, float(force_t_s[-1]) if len(force_t_s) else force_s)
            self.heard.append((newest_s, cycle.detections))

    def see_spasms(self, finish: bool = False) -> None:
        """Describe the spasms that are over, well after they were answered."""
        done = []
        if self.heard:
            newest_s, rows = zip(*self.heard, strict=True)
            self.newest_s, self.heard = newest_s[-1], []
            done = self.spasms.take(np.array(newest_s), np.array(rows))
        if finish:
            done += self.spasms.finish()
            self.spasms, self.newest_s = describe.Spasms(self.config), (0.0, 0.0)
        for rule, spasm in done:
            facts = spasm.facts()
            counts = self.status["spasms"][rule]
            counts["n"] += 1
            counts[spasm.kind] += 1
            counts["last"] = facts
            self.recorder.note(monotonic_ns() * 1e-9, {"what": "spasm", "rule": rule, **facts})

    def see_guard(self, row: dict[str, Any]) -> None:
        """Take over guard's verdict; what matters goes into the audit and to the people."""
        s = self.status
        if "start_ns" in row:
            self.guard_answers = True
            self.see_realtime("guard", row["realtime"])
            self.audit.add(row["start_ns"], "guard started", **{k: v for k, v in row.items() if k != "start_ns"})
            return
        event, verdict = row["event"], row["verdict"]
        s["state"], s["automatic"] = verdict["state"], verdict["automatic"]
        self.was_armed = self.was_armed or s["state"] in OUTPUT_STATES
        if self.markers:
            self.markers.see_guard(row)
        if self.feed and row.get("written_ns"):
            self.show(self.feed.mark, row["written_ns"] * 1e-9, "pulse")
        if self.feed and verdict["reasons"] and event["kind"] not in ("heartbeat", "ack"):
            what = "refused" if verdict["refused"] else event["kind"]
            self.show(self.feed.mark, event["now_ns"] * 1e-9, what, "; ".join(verdict["reasons"]))
        if row.get("written_ns"):
            s["pulses"] += 1
            if event["kind"] in ("request", "trigger"):
                s["trains"] += 1
                s["train_by"] = event["kind"]
        s["refusals"] += bool(verdict["refused"])
        if verdict["reasons"]:
            s["reason"] = verdict["reasons"][-1]
            self.audit.add(event["now_ns"], event["kind"], event=event, verdict=verdict)
            at_s = event["now_ns"] * 1e-9 - self.started
            line = f"{verdict['state']:<11}  {'; '.join(verdict['reasons'])}"
            self.repeats = self.repeats + 1 if line == self.last_line else 0
            self.last_line = line
            if self.repeats < 3:  # a spasm in an unarmed bed is refused twice a second: said three times, counted in the status
                self.tell(f"{at_s:8.2f} s  {line}{' (and so on)' if self.repeats == 2 else ''}")

    def see_realtime(self, name: str, got: dict[str, str]) -> None:
        """A refusal is shown and not fatal: the loop is then late now and then, and says so."""
        self.status["realtime"][name] = got
        for what, answer in realtime.refusals(got).items():
            self.tell(f"{name}: {what} {answer} (see calmloop doctor)")

    def note_triggers(self) -> None:
        """Write down the stages of every trigger, with the stamps they were worked out from."""
        for trigger in self.telemetry.finished_triggers():
            stages_ms = self.status["last_trigger"] = trigger.stages_ms()
            detail = {"request": trigger.request, "guard": self.guards, "loop": self.loops}
            self.recorder.note(monotonic_ns() * 1e-9, {"what": "trigger", **detail, "stamps_ns": trigger.stamps_ns, "stages_ms": stages_ms})

    def see_latency(self) -> None:
        """How long things take goes into the status; being late is told when it begins and when it is over."""
        s = self.status
        s["latency"] = self.telemetry.summary()
        late = self.telemetry.late(monotonic_ns())
        if bool(late) != bool(s["late"]):
            self.tell(f"{time.monotonic() - self.started:8.2f} s  {late or 'in time again for a second; was ' + s['late']}")
        s["late"] = late

    def write_latency(self) -> None:
        """Replace `latency.json`: what was measured, of whom, against which budget."""
        t = self.telemetry
        measured = t.summary()
        facts = {
            "up_s": round(time.monotonic() - self.started, 1),
            "budget": {"max_sample_age_ms": t.max_sample_age_ms, "max_lateness_ms": t.max_lateness_ms},
            "quantities": {name: {"of": whose, "what": what, **measured[name]} for name, (whose, what) in QUANTITIES.items()},
        }
        partial = (self.folder / LATENCY).with_suffix(".partial")
        partial.write_text(json.dumps(facts, indent=1))
        partial.replace(self.folder / LATENCY)

    def note(self, what: str, **detail: Any) -> None:
        """Write down something the daemon did or saw, in both files."""
        now_ns = monotonic_ns()
        self.audit.add(now_ns, what, **detail)
        self.recorder.note(now_ns * 1e-9, {"what": what, **detail})

    # --- telling -------------------------------------------------------------------------------------------------------------
    def write_status(self) -> None:
        """Replace the status file, which `calmloop status` reads."""
        free_bytes = shutil.disk_usage(self.folder).free
        self.see_disk(free_bytes)
        facts = self.status | {
            "written_ns": monotonic_ns(),
            "pid": os.getpid(),
            "children": {child.name: child.process.pid for child in (self.guard, self.loop) if child},
            "bed": self.bed,
            "session": str(self.folder),
            "journal": str(self.journal.path),
            "recorded": self.recorder.samples,
            "recording_bytes": (self.folder / recording.SIGNALS).stat().st_size,
            "disk_free_bytes": free_bytes,
            "up_s": round(time.monotonic() - self.started, 1),
        }
        if self.feed:
            self.show(self.feed.status, facts)
        try:
            path = messages.status_path(self.bed)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(facts))
            partial.replace(path)
        except (OSError, messages.NoBedError) as error:  # it goes stale, which is seen; the bed goes on
            if str(error) != self.status_problem:
                self.tell(f"the report for `calmloop status` cannot be written: {error}")
            self.status_problem = str(error)
        else:
            self.status_problem = ""

    def status_line(self) -> None:
        """One line that is drawn over, on a terminal."""
        s = self.status
        last = s["last_trigger"] or {}
        parts = [
            f"{time.monotonic() - self.started:6.1f} s",
            f"{s['state']} {alarms.mode(s)}".strip(),
            f"loop {s['loop']}",
            "data ok" if s["data_ok"] else "NO DATA",
            s["late"],
            f"trains {s['trains']}  pulses {s['pulses']}  refused {s['refusals']}",
            f"sample to answer {last['sum_ms']:.1f} ms" if "pulled_ms" in last else "",
            f"recorded {sum(self.recorder.samples.values())}",
        ]
        width = shutil.get_terminal_size().columns - 1
        self.tell("  ".join(part for part in parts if part)[:width], end="")


def earlier_session(folder: Path, journal: Path) -> Path | None:
    """A session that put its dose into this journal less than a day ago, as its audit says."""
    for path in folder.glob(f"*/{recording.AUDIT}"):
        try:
            young = time.time() - (path.parent / recording.SIGNALS).stat().st_mtime < dose.DAY / 1e9  # written each second
            if young and any(row.get("journal") == str(journal.resolve()) for row in audit.details(path, "session")):
                return path.parent
        except (OSError, audit.AuditError):
            continue  # tells nothing
    return None


class Speaker:
    """Lines for people on standard error, over a status line where there is one.

    Written from a thread: a terminal that does not take them must not hold up the recording. What is too much is dropped and counted.
    """

    def __init__(self, limit: int = 1000) -> None:
        self.lines: queue.Queue[str] = queue.Queue(limit)
        self.dropped = 0
        threading.Thread(target=self._speak, name="speaker", daemon=True).start()

    def __call__(self, line: str, end: str = "\n") -> None:
        """Say one line, when the terminal takes it."""
        try:
            self.lines.put_nowait(("\r\x1b[K" if sys.stderr.isatty() else "") + line + end)
        except queue.Full:
            self.dropped += 1

    def _speak(self) -> None:
        while True:
            text = self.lines.get()
            if self.dropped:
                text += f"({self.dropped} lines dropped)\n"
                self.dropped = 0
            print(text, end="", file=sys.stderr, flush=True)
            self.lines.task_done()

    def finish(self, timeout_s: float = 1.0) -> None:
        """Wait a little for the last lines."""
        end = time.monotonic() + timeout_s
        while self.lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)
