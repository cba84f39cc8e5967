"""A bed in played time for `bench.hostile`: the shipped guard, supervisor, driver, wire check and journal, around the virtual box.

One process, one thread, no waiting: `Guard.run` itself goes round, but what `select` would have said comes from a script, and the clock
is set by it. People, loop, daemon and box are at the other ends of guard's real sockets; what they say is bytes.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import time
from collections import Counter, deque
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from bench.hostile_judge import MINUTE, MS, Judge, S, prescription_faults
from controller import dose, wire
from controller import guard as guard_module
from controller.journal import OUTPUT_STATES, Journal
from controller.messages import HEARTBEAT, REQUEST, ToGuard
from controller.ring import RingReader, RingWriter, create
from drivers import stimulators
from drivers.base import DeviceNotFoundError
from drivers.simulated.twin import PULSE_RECORD, RefusedError
from drivers.simulated.twin import Judge as BoxJudge
from drivers.simulated.virtual_sciencemode import LL_CONFIG, LL_INIT, LL_STOP, Box, unwrap, wrap
from drivers.stimulators import sciencemode34, serial_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from drivers.base import PulseTrain

BEAT_NS = 28 * MS
RING_BYTES = 1 << 18
START_NS = 1000 * S
RESTART_NS, REBOOT_NS = 300 * MS, 6 * S
MAX_IDLE_TURNS = 200  # of guard at one and the same time: it would spin
NUMBERS = re.compile(rb"\[([A-G]\d{1,2})(?:, ([A-G]\d{1,2}))?[\],]")
STATE = re.compile(rb'"state":"([A-Z]+)"')
INT64 = 1 << 63
PEOPLE = ("nurse", "patient", "stranger")


class Killed(BaseException):
    """kill -9; nothing catches it."""


class PlayedBox(Box):
    """The virtual box, whose judge is told what it was commanded."""

    told: Judge

    def _command(self, number: int, command: int, data: bytes, received_ns: int, wire_ns: int) -> None:
        if command == LL_INIT:
            self.told.box_starts()
        elif command == LL_STOP:
            self.told.box_stops()
        super()._command(number, command, data, received_ns, wire_ns)


class PlayedRing(RingWriter):
    """Guard's ring, where every row is counted."""

    bed: Bed

    def put(self, kind: int, payload: bytes) -> None:
        """As it is, unless guard dies just before."""
        self.bed.row(payload)
        super().put(kind, payload)


class PlayedGuard(guard_module.Guard):
    """The shipped guard: only what there is to hear is played, and the judge hears it too."""

    bed: Bed

    def wait(self) -> list[Any]:
        """What `select` says."""
        return self.bed.turn()

    def answer(self, client: socket.socket, command: dict[str, Any]) -> None:
        """One person's command."""
        self.bed.judge.hears_person(self.bed.heard[client])
        super().answer(client, command)
        self.bed.judge.ask = None

    def hear_loop(self) -> None:
        """One message of the loop."""
        if self.bed.from_loop:
            self.bed.judge.hears_loop(self.bed.from_loop.popleft())
        super().hear_loop()
        self.bed.judge.ask = None
        if self.loop is None:
            self.bed.loop_lost()

    def hear_device(self) -> None:
        """What the box has said."""
        waited = self.supervisor.outstanding
        super().hear_device()
        if waited and not self.supervisor.outstanding:  # whatever else a box says, no rest begins with it
            self.bed.judge.box_heard_ns = self.bed.now_ns

    def hear_daemon(self) -> None:
        """One message of the daemon."""
        said = self.bed.from_daemon.popleft() if self.bed.from_daemon else b""
        if said == b"loop":
            self.bed.loop_taken()
        super().hear_daemon()


class PlayedJournal(Journal):
    """The journal without its file: its rows and all that it makes of them."""

    def __init__(self, clock: Callable[[], dose.Clock]) -> None:
        self._clock = clock
        self.rows: list[dose.Row] = []
        self.lockout = ""
        self._lock = os.memfd_create("lock")

    def _write(self, new: list[tuple[str, dict[str, Any]]]) -> None:
        now = self._clock()
        self.rows += [dose.Row(now, kind, detail) for kind, detail in new]
        self.lockout = next((detail["lockout"] for _, detail in reversed(new) if "lockout" in detail), self.lockout)

    def close(self) -> None:
        """Let go."""
        os.close(self._lock)


class Bed:
    """Everything around one guard after another, until the script is over.

    Parameters
    ----------
    view : dict
        Guard's settings, without history.
    latency_ns : int
        Of the box.
    steps : callable
        Makes the script, given the bed.
    """

    def __init__(self, view: dict[str, Any], latency_ns: int, steps: Callable[[Bed], Iterator[None]]) -> None:
        self.view = view
        self.model = view["driver"]
        self.n_channels = 8 if self.model == "p24" else 4
        self.next_view: dict[str, Any] | None = None  # what somebody has written into the settings
        self.memory = SimpleNamespace(number=0, event_id=0, press=0, sent={}, people=[], loop=[])  # of those who talk to guard
        self.judge = judge = Judge()
        judge.now_ns = START_NS
        self.boot, self.utc_ns = 1, 1_800_000_000 * S
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        # the box
        self.box = PlayedBox(self.model, latency_ns, BoxJudge(1_000_000, 10**6, 1000.0), self.from_box, self.box_log, self.box_pulse)
        self.box.told = judge
        self.box_fd = -1
        self.absent = 0  # openings of the port that fail
        self.twists: deque[str] = deque()  # of the box's next answers
        self.mail: list[tuple[int, bytes]] = []  # answers under way
        self.device_spoke = False
        # the daemon
        self.journal = PlayedJournal(lambda: dose.Clock(str(self.boot), self.mono_ns, judge.now_ns + self.utc_ns))
        self.disk_lag_ns = 0
        self.disk_due_ns = 0
        self.last_state = ""
        self.daemon_alive = False
        # what waits in guard's sockets
        self.from_people: dict[socket.socket, deque[bytes]] = {}
        self.heard: dict[socket.socket, bytes] = {}
        self.from_loop: deque[bytes] = deque()
        self.from_daemon: deque[bytes] = deque()
        self.loop: socket.socket | None = None
        self.next_loop: socket.socket | None = None
        self.beating = True
        self.next_beat_ns = 0
        self.answers: dict[str, dict[str, Any]] = {}
        self.offer: dict[str, Any] = {}
        self.kill, self.kill_in = False, -1  # now; before guard's row after so many
        self.ending = self.finished = False
        self.script = steps(self)

    # --- time ------------------------------------------------------------------------------------------------------------------
    @property
    def now_ns(self) -> int:
        """The clock that nothing sets back."""
        return self.judge.now_ns

    @property
    def mono_ns(self) -> int:
        """CLOCK_MONOTONIC of this boot."""
        return self.judge.now_ns - self.judge.shift_ns

    def dues(self) -> list[int]:
        """When something happens around guard."""
        dues = [due for due, _ in self.mail]
        if self.box.next_due_ns is not None:
            dues.append(self.box.next_due_ns)
        if self.beating and self.loop:
            dues.append(self.next_beat_ns)
        if self.disk_due_ns:
            dues.append(self.disk_due_ns)
        return dues

    def guard_dues(self) -> list[int]:
        """When guard itself wants to wake up."""
        g = self.guard
        dues = [g.wake_ns, g.stop_check_ns, g.stop_again_ns if g.stops_left else 0]
        if g.may_look:
            dues.append(g.next_open_ns)
        if g.waits_for_the_disk:
            dues.append(self.mono_ns + 5 * MS)
        return [due + self.judge.shift_ns for due in dues if due]

    def to(self, end_ns: int) -> None:
        """Let the world go on until then, without guard."""
        while True:
            self.judge.now_ns = max(self.now_ns, min([end_ns, *self.dues()]))
            self.happen()
            if self.now_ns >= end_ns:
                return

    def happen(self) -> None:
        """Whatever is due."""
        now = self.now_ns
        self.box.run_due(now)
        for letter in [it for it in self.mail if it[0] <= now]:
            self.mail.remove(letter)
            self.to_driver(letter[1])
        if self.beating and self.loop and now >= self.next_beat_ns:
            self.next_beat_ns = now + BEAT_NS
            self.say_loop(ToGuard(HEARTBEAT, self.mono_ns, self.mono_ns - MS, ok=1).pack())
        if self.disk_due_ns and now >= self.disk_due_ns:
            self.disk_due_ns = 0
            self.put_down()

    def live(self, ns: int) -> Iterator[None]:
        """Guard goes round as it does in life."""
        end, idle = self.now_ns + ns, 0
        while True:
            due = max(self.now_ns, min([end, *self.dues(), *self.guard_dues()]))
            idle = 0 if due > self.now_ns else idle + 1
            if idle > MAX_IDLE_TURNS:
                self.judge.say("guard spins")
                return
            self.to(due)
            yield
            if self.now_ns >= end and not self.waiting():
                return

    def jump(self, ns: int) -> Iterator[None]:
        """Guard stands still, and the loop too if it is long."""
        was, self.beating = self.beating, self.beating and ns <= 300 * MS
        self.to(self.now_ns + ns)
        self.beating, self.next_beat_ns = was, self.now_ns
        yield

    # --- what guard hears ------------------------------------------------------------------------------------------------------
    def turn(self) -> list[Any]:
        """One turn of the script; who has something to say."""
        g, judge = self.guard, self.judge
        judge.stop_waits = False
        if g.opener:
            g.opener.join()
            return [g.opener_done]
        self.after_turn()
        try:
            next(self.script)
        except StopIteration:
            self.finished = g.done = True
            return []
        if self.kill:
            raise Killed
        ready: list[Any] = []
        for client, waiting in self.from_people.items():
            if waiting:
                self.heard[client] = raw = waiting.popleft()
                judge.stop_waits |= b"stop" in raw and _says_stop(raw)
                if client in g.clients:
                    ready.append(client)
        if self.from_daemon:
            ready.append(g.link)
        if self.device_spoke:
            self.device_spoke = False
            ready.append(g.stimulator)
        if self.from_loop and g.loop is not None:
            ready.append(g.loop)
        return ready

    def waiting(self) -> bool:
        """Whether somebody was not heard yet."""
        return bool(any(self.from_people.values()) or self.from_loop or self.from_daemon or self.device_spoke)

    def after_turn(self) -> None:
        """Read answers, put rows on the disk."""
        for who, (ours, theirs) in list(self.people.items()):
            if theirs in self.heard:
                self.read_answers(who, ours)
        self.heard.clear()
        if not self.disk_lag_ns:
            self.put_down()
        elif not self.disk_due_ns:
            self.disk_due_ns = self.now_ns + self.disk_lag_ns

    def read_answers(self, who: str, ours: socket.socket) -> None:
        """Of one person; an offer is what a person must see before arming."""
        while True:
            try:
                data = ours.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.seat(who)
                return
            self.answers[who] = answer = json.loads(data)
            if answer["ok"] and "offer" in answer:
                self.offer = answer
                self.judge.offered(answer["offer"], answer["prescription_id"])

    def seat(self, who: str) -> None:
        """A connection of a person's."""
        if who in self.people:
            ours, theirs = self.people.pop(who)
            ours.close()
            self.from_people.pop(theirs, None)
            if theirs in self.guard.clients:
                self.guard.clients.remove(theirs)
                theirs.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        self.people[who] = (ours, theirs)
        self.from_people[theirs] = deque()
        self.guard.clients.append(theirs)

    def say_person(self, who: str, data: bytes) -> None:
        """Somebody says that to guard."""
        ours, theirs = self.people[who]
        try:
            ours.send(data)
        except BlockingIOError:
            return
        except OSError:
            self.seat(who)
            return
        self.from_people[theirs].append(data)

    def say_loop(self, data: bytes) -> None:
        """The loop says that."""
        if self.loop is None:
            return
        try:
            self.loop.send(data)
        except OSError:
            return  # it waits in vain, or nobody is there
        self.from_loop.append(data)
        if not data:
            self.loop.close()
            self.loop = None

    def say_daemon(self, data: bytes) -> None:
        """The daemon says that; a new loop's socket goes with the word."""
        if data == b"loop":
            self.next_loop, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.next_loop.setblocking(False)
            socket.send_fds(self.link, [data], [theirs.fileno()])
            theirs.close()
        elif data:
            self.link.send(data)
        else:
            self.link.close()
            self.daemon_alive = False
        self.from_daemon.append(data)

    def loop_taken(self) -> None:
        """Guard takes up a new loop; whatever the old one had said is gone."""
        if self.loop:
            self.loop.close()
        self.loop, self.next_loop = self.next_loop, None
        self.from_loop.clear()
        self.next_beat_ns = self.now_ns
        self.judge.loop_joined()

    def loop_lost(self) -> None:
        """Guard let the loop go."""
        self.from_loop.clear()
        if self.loop:
            self.loop.close()
            self.loop = None

    def ask(self, **command: Any) -> Iterator[None]:
        """The nurse says something lawful; `answers["nurse"]` has what came back."""
        self.answers.pop("nurse", None)
        self.say_person("nurse", json.dumps(command | {"who": "nurse"}).encode())
        yield

    # --- what guard says -------------------------------------------------------------------------------------------------------
    def row(self, payload: bytes) -> None:
        """Guard is about to put a row."""
        if self.kill_in >= 0:
            self.kill_in -= 1
            if self.kill_in < 0:
                raise Killed
        self.counts["events"] += 1
        self.judge.rows += 1
        if b'"reasons":[]' not in payload:
            for numbers in NUMBERS.findall(payload):
                self.reasons.update(number.decode() for number in numbers if number)
            self.counts["refused"] += b'"refused":0' not in payload
        if b'"train":{' in payload:
            self.judge.over(json.loads(payload)["train"])

    def put_down(self) -> None:
        """The daemon puts on the disk what guard said."""
        if not self.daemon_alive:
            return
        rows = []
        for _, payload in self.ring.records():
            state = STATE.search(payload)
            self.last_state = state[1].decode() if state else self.last_state
            if b'"train":{' in payload or self.last_state == "LOCKOUT" or (self.journal.lockout and self.last_state in OUTPUT_STATES):
                rows.append(json.loads(payload))
        if rows:
            self.journal.take(rows)
        if self.ring.lost:
            self.journal.assume("rows of guard were lost")
            self.ring.lost = 0
        self.ring.durable = self.ring.number
        self.judge.on_disk(self.ring.number)

    # --- the box ---------------------------------------------------------------------------------------------------------------
    def plug(self, port: str, _: object = None) -> tuple[int, dict[str, object]]:
        """Open the port; in place of the driver's own."""
        if self.absent:
            self.absent -= 1
            raise DeviceNotFoundError(f"{port}: nothing is there")
        self.unplug()
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self.box_fd = ours.detach()
        self.device_spoke = False
        return theirs.detach(), {}

    def unplug(self) -> None:
        """Pull the plug; the box itself runs on."""
        if self.box_fd >= 0:
            os.close(self.box_fd)
            self.box_fd, self.device_spoke = -1, True

    def write(self, fd: int, data: bytes) -> int:
        """Where the driver writes: the shipped wire check, and at once the box."""
        n = self.check.write(fd, data)
        try:
            self.box.receive(os.read(self.box_fd, 65536), self.now_ns)
        except BlockingIOError:
            pass
        return n

    def box_pulse(self, record: bytes) -> None:
        """The box took a pulse."""
        _, _, current_ua, width_us, channel, number = PULSE_RECORD.unpack(record)
        self.judge.pulse(number, channel, current_ua, width_us)

    def box_log(self, row: dict[str, Any]) -> None:
        """What the box writes down."""
        if "pulse_ns" in row:
            self.judge.played(row)
        elif "refused" in row:
            self.judge.say(f"the box got bytes that are no frame: {row['refused']}")

    def from_box(self, data: bytes) -> None:
        """An answer of the box leaves, perhaps not as it should."""
        twist = self.twists.popleft() if self.twists else ""
        if twist:
            self.counts["hostile"] += 1
        match twist:
            case "lost":
                return
            case "doubled":
                self.to_driver(data)
            case "late" | "very late":
                self.mail.append((self.now_ns + (150 if twist == "very late" else 90) * MS, data))
                return
            case "wrong number" | "electrode" | "not initialised" | "other command":
                number, command, payload = unwrap(data)
                if twist == "wrong number":
                    number = (number + 1) % 64
                elif twist == "other command":
                    command = (command + 2) % 1024
                else:
                    payload = bytes((10 if twist == "electrode" else 7,)) + payload[1:]
                data = wrap(number, command, payload)
            case "flipped":
                data = data[:-4] + bytes((data[-4] ^ 4,)) + data[-3:]
            case "cut":
                data = data[:-3]
        self.to_driver(data)

    def to_driver(self, data: bytes) -> None:
        """Bytes arrive at the port."""
        if self.box_fd < 0 or not data:
            return
        try:
            number, command, payload = unwrap(data)
            if command == LL_CONFIG + 1 and payload:
                if payload[0]:
                    self.judge.box_fails()
                else:
                    self.judge.box_answers(number)
        except RefusedError:
            pass
        try:
            os.write(self.box_fd, data)
        except OSError:
            return
        self.device_spoke = True

    # --- from one guard to the next --------------------------------------------------------------------------------------------
    def play(self) -> Bed:
        """The whole script."""
        with played(self), closing(self.journal):
            self.start()
            while True:
                killed = False
                try:
                    self.guard.run()
                except Killed:
                    killed = True
                    self.counts["kills"] += 1
                finally:
                    self.drop(killed)
                if self.finished:
                    break
                self.counts["restarts"] += 1
                self.to(self.now_ns + RESTART_NS)
                self.start()
        self.box.run_due(self.now_ns + MINUTE)
        return self

    def start(self) -> None:
        """A guard, in a new session where no daemon lives; with other settings, if somebody has changed them and guard takes them."""
        view, self.next_view = self.next_view, None
        lawful = view is not None and not prescription_faults(view, self.n_channels)
        if lawful and self.daemon_alive:
            view = None  # settings are read when a session begins
        if not self.daemon_alive:
            self.daemon_alive = True
            worst = [dose.worst_train(it) for it in (self.view, view if lawful else None) if it]
            if not self.journal.begin("session", dose.Dose(*map(max, zip(*worst, strict=True)))):
                self.judge.session_from = len(self.judge.given)
        if view:
            try:
                self.start_guard(view)
                self.view = view
                return
            except Exception as error:  # guard's process ends here, whatever it was
                self.counts["refused prescriptions"] += 1
                self.reasons.update(number.decode() for found in NUMBERS.findall(str(error).encode()) for number in found if number)
        self.start_guard(self.view)

    def start_guard(self, view: dict[str, Any]) -> None:
        """A guard begins, with what the journal knows. Raises where it does not take the settings."""
        self.link, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.setblocking(False)
        control, self.door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fd = create("hostile", RING_BYTES)
        ring, self.ring = PlayedRing(fd), RingReader(fd)
        os.close(fd)
        ring.bed = self
        self.check = wire_check(self.model)
        stimulator = stimulators.load(self.model, "/bed", self.write)
        seen = json.loads(json.dumps(view | {"history": self.journal.history()}))
        self.judge.power_on()
        try:
            self.guard = PlayedGuard(stimulator, self.check, seen, link, control, ring)
        except Exception:
            for end in (self.link, link, control, self.door):
                end.close()
            ring.close()
            self.ring.close()
            raise
        self.guard.bed = self
        self.judge.in_force(view, self.n_channels)
        self.people: dict[str, tuple[socket.socket, socket.socket]] = {}
        self.from_people, self.heard = {}, {}
        for who in PEOPLE:
            self.seat(who)
        self.from_daemon.clear()
        self.from_loop.clear()
        self.offer, self.kill, self.kill_in, self.last_state = {}, False, -1, ""
        self.disk_lag_ns = self.disk_due_ns = 0

    def drop(self, killed: bool) -> None:
        """Guard's process ends; the daemon, if it lives, reads its last words."""
        g = self.guard
        self.judge.cut()
        if not killed:
            g.stimulator.close()
        elif g.stimulator._fd >= 0:
            os.close(g.stimulator._fd)
        if self.daemon_alive:
            self.put_down()
            if self.ending:
                self.end_session(clean=True, reboot=False, back=False)
            elif self.last_state in OUTPUT_STATES or self.ring.behind > 0:
                self.journal.assume("guard ended")
        for pair in self.people.values():
            for end in pair:
                end.close()
        ends = (self.link, g.link, *g.doors, self.door, g.opener_done, g.opener_bell, g.loop, self.loop, self.next_loop)
        for end in ends:
            if end:
                end.close()
        self.loop = self.next_loop = None
        self.disk_due_ns = 0
        self.unplug()
        g.ring.close()
        self.ring.close()

    def end_session(self, clean: bool, reboot: bool, back: bool) -> None:
        """The daemon ends; after a reboot the clock begins anew, and UTC may have been set back."""
        if clean and self.last_state not in OUTPUT_STATES:
            self.journal.end()
        self.daemon_alive = self.ending = False
        if reboot:
            self.to(self.now_ns + REBOOT_NS)
            self.boot += 1
            self.judge.shift_ns = self.now_ns - REBOOT_NS
            self.utc_ns -= 3600 * S * back


def _says_stop(raw: bytes) -> bool:
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("do") == "stop"


_encode = sciencemode34.ScienceMode34._encode


@cache
def encoded(model: str, train: PulseTrain) -> dict[int, tuple[bytes, ...]]:
    """What the shipped driver prepares, once for hundreds of guards."""
    return _encode(sciencemode34.ScienceMode34("/bed", model), train)


@cache
def decoded(driver: str) -> Callable[[bytes], wire.Pulse | None]:
    """The shipped decoder, which remembers what it has read: hundreds of guards learn the same frames."""
    return cache(wire.for_driver(driver)._decode)


def wire_check(driver: str) -> wire.WireCheck:
    """As guard has it."""
    return wire.WireCheck(decoded(driver))


class Poll:
    """`select.poll` of one port, in played time."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed

    def register(self, fd: int, _: int) -> None:
        """As it says."""
        self.fd = fd

    def poll(self, ms: float) -> None:
        """Until there is something to read, or so long."""
        bed = self.bed
        end = bed.now_ns + max(1000, round(ms * MS))
        while not select.select([self.fd], [], [], 0)[0] and bed.now_ns < end:
            bed.to(min([end, *(max(due, bed.now_ns + 1) for due in bed.dues())]))


@contextmanager
def played(bed: Bed) -> Iterator[None]:
    """Time, and the port, are the bed's."""
    clock = SimpleNamespace(monotonic=lambda: bed.mono_ns / 1e9, perf_counter_ns=time.perf_counter_ns)
    poll = SimpleNamespace(poll=lambda: Poll(bed), POLLIN=select.POLLIN)
    with ExitStack() as stack:
        for where, name, what in (
            (guard_module, "monotonic_ns", lambda: bed.mono_ns),
            (guard_module, "say", lambda _: None),
            (serial_device, "time", clock),
            (serial_device, "select", poll),
            (serial_device, "open_port", bed.plug),
            (sciencemode34.ScienceMode34, "_encode", lambda driver, train: encoded(driver.model, train)),
        ):
            stack.enter_context(patch.object(where, name, what))
        yield


def request(**fields: int) -> bytes:
    """A request's bytes, with whatever in it fits 64 bits."""
    return ToGuard(REQUEST, **{name: max(-INT64, min(INT64 - 1, value)) for name, value in fields.items()}).pack()
