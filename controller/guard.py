"""The process that alone holds the stimulator: waits, asks the supervisor, obeys its verdict.

Imports neither numba nor scipy, pylsl or numpy. It trusts nobody: whatever the loop, the daemon or a person sends becomes an event for
`Supervisor.step`, and `Guard.obey` is the only place in the project where a stimulator's output methods are called. It never waits on
disk, network or a lock: records go to a ring in shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import select
import signal
import socket
import struct
import sys
import threading
from collections import deque
from copy import copy
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from controller import build, messages, realtime, wire
from controller.limits import MINUTE, Device, prescription_from
from controller.people import NotAllowedError, People
from controller.ring import RingWriter
from controller.self_test import self_test
from controller.supervisor import FAULTS, FAULTS_NS, PRESENCE_NS, Cause, Event, Kind, Output, SafetyState, Supervisor, Verdict
from drivers import stimulators
from drivers.base import (
    FEEDBACK_ENDED,
    FEEDBACK_PULSE,
    FEEDBACK_REFUSED,
    DeviceEventKind,
    DeviceMismatchError,
    DriverError,
    PulseTrain,
    Stimulator,
    StimulatorLimits,
)

if TYPE_CHECKING:
    from pathlib import Path

REHEARSE_S = 0.001  # halves guard's part of the latency where blocks are long (bench.latency at chunk 10), for 2 % of a processor
REOPEN_S = 1.0  # how often a missing stimulator is looked for while OFF
STOP_ANSWER_NS = 500_000_000  # a stimulator that does not confirm a stop within this time is a fault
STOP_AGAIN_NS, MORE_STOPS = 20_000_000, 2  # after a fault the stop is said three times (E1); nothing else is ever said twice
RECORD_LAG_NS = 1_000_000_000  # what guard says is on the disk by then, or nothing new is stimulated (G7)
MORE_TRAINS = 1  # may begin before the one before is in the dose journal: so many, and the running one, can be lost with the power
LOOK_S = 0.005  # how often guard looks whether the disk has what it waits for
FULL, ROOM = 0.5, 0.25  # of the ring: above, nothing new is stimulated; below, it is again
MAX_CLIENTS = 16
MAX_MESSAGE_BYTES = 256  # of the loop; what is longer is wrong anyway
MAX_VIEW_BYTES = 1 << 20
MAX_ANSWER_BYTES = 1 << 15  # of the daemon, about a prescription
MAX_REASON = 200
VERBS = (
    *("stop", "trigger", "button", "offer", "arm", "disarm", "clear", "prescribe", "status", "read"),
    *("invite", "pair", "take", "leave"),
)
encode = json.JSONEncoder(separators=(",", ":")).encode


class Guard:
    """One bed's guard. `link` leads to the daemon, `control` is the listening socket for people's commands, `page` that for the page's."""

    def __init__(
        self,
        stimulator: Stimulator,
        check: wire.WireCheck,
        view: dict[str, Any],
        link: socket.socket,
        control: socket.socket,
        ring: RingWriter,
        page: socket.socket | None = None,
    ) -> None:
        self.stimulator, self.check = stimulator, check
        self.trains, self.serial, self.options = view["trains"], view["serial"], view.get("options", {})
        self.supervisor = Supervisor(prescription_from(view, device_of(stimulator.limits)))
        self.supervisor.remember(view["history"])
        self.link, self.doors, self.ring = link, [control], ring
        # whoever comes by this door is a stranger until a token says who it is, whatever user the kernel says it has
        self.page_door, self.strangers, self.people = page, set[socket.socket](), People()
        if people := view.get("people"):
            self.people.take_over(people)
        self.why_not_arm = ""  # as the daemon says: the disk is nearly full (F5)
        # a new prescription is with the daemon; and whoever waits for its word, unless they have gone
        self.prescribing = False
        self.prescriber: socket.socket | None = None
        if page:
            self.doors.append(page)
        self.loop: socket.socket | None = None
        self.clients: list[socket.socket] = []
        self.device_open = False
        self.next_open_ns = 0
        self.waits_for_person = False  # before a port where something was asked, and not answered as it should, is asked again
        self.wake_ns = 0
        # stops that are to be said again, and the answer that is waited for
        self.stop = Verdict(False, SafetyState.FAULT, False, (), Output.STOP, 0, 0, 0, 0, 0)
        self.stops_left = self.stop_again_ns = self.stop_check_ns = 0
        self.stop_confirmed: bool | None = True  # what the stimulator said to the last stop; None = nothing yet
        self.last_packet = -1
        # a stimulator that takes silence for the end of the session hears something by then; 0 = it does not mind
        self.keep_alive_ns = round(stimulator.limits.keep_alive_s * 1e9)
        self.silent_ns = 0
        # what must be on the disk before something else may happen, by the numbers of its rows
        self.arm_row = 0
        self.arm_client: socket.socket | None = None
        self.train_rows: deque[int] = deque(maxlen=MORE_TRAINS + 2)
        self.mark = (0, 0)  # number of a row, and when it was put
        self.recorded: Verdict | None = None
        self.recorded_json = ""
        self.recorder_ok = True
        self.opener: threading.Thread | None = None
        self.opener_done, self.opener_bell = socket.socketpair()
        self.open_problem: str | None = None
        self.identity = ""
        self.done = False
        self.got: dict[str, str] = {}
        self.build: dict[str, str] = {}

    # --- the page to read first ----------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Serve until the daemon is gone or says so."""
        while not self.done:
            ready = self.wait()
            if ready == [self.loop]:  # mostly: the way of a request
                self.hear_loop()
            elif ready:
                self.hear_all(ready)
            else:
                self.rehearse()
            now = monotonic_ns()
            if self.wake_ns and now >= self.wake_ns:
                self.take(Event(Kind.TICK, now))
            self.look_at_disk(now)
            if self.stops_left and now >= self.stop_again_ns:
                self.stop_again(now)
            if self.stop_check_ns and now >= self.stop_check_ns:
                self.check_stop(now)
            if self.silent_ns and now >= self.silent_ns:
                self.keep_alive(now)
            if self.may_look and now >= self.next_open_ns and not self.done:
                self.open_device()
        if self.opener:
            self.opener.join()

    def hear_all(self, ready: list[Any]) -> None:
        """Everybody who has something to say at once, the most severe first: a stop beats every start (C2, B7)."""
        newcomers = [client for door in self.doors if door in ready for client in self.accept(door)]
        said = [(client, self.read(client)) for client in [*(c for c in ready if c in self.clients), *newcomers]]
        for client, command in said:
            if command and command.get("do") == "stop":
                self.answer(client, command)
        if self.link in ready:
            self.hear_daemon()
        if self.device_open and self.stimulator in ready:
            self.hear_device()
        for client, command in said:
            if command and command.get("do") != "stop":
                self.answer(client, command)
        if self.opener_done in ready:
            self.device_opened()
        if self.loop is not None and self.loop in ready:
            self.hear_loop()
        while len(self.clients) > MAX_CLIENTS:  # whoever connects and says nothing makes room
            self.part(self.clients[0])

    def wait(self) -> list[Any]:
        """Block until something can be read or the supervisor's or the reopening deadline is due."""
        sources: list[Any] = [*self.doors, self.link, self.opener_done, *self.clients]
        if self.loop is not None:
            sources.append(self.loop)
        if self.device_open:
            sources.append(self.stimulator)
        deadlines = [self.wake_ns, self.stop_check_ns, self.stop_again_ns if self.stops_left else 0, self.silent_ns]
        if self.may_look:
            deadlines.append(self.next_open_ns)
        deadline_ns = min((ns for ns in deadlines if ns), default=0)
        timeout_s = max(0.0, (deadline_ns - monotonic_ns()) * 1e-9) if deadline_ns else None
        often_s = REHEARSE_S if self.waits_for_a_spasm else LOOK_S if self.waits_for_the_disk else None
        if often_s:
            timeout_s = often_s if timeout_s is None else min(timeout_s, often_s)
        return select.select(sources, [], [], timeout_s)[0]

    def take(self, event: Event) -> Verdict:
        """One event through the supervisor: verdict, deed, feedback, record."""
        verdict = self.supervisor.step(event)
        written_ns, problem = self.obey(verdict)
        self.wake_ns = verdict.wake_ns
        self.report(verdict, written_ns)
        self.record(event, verdict, written_ns)
        if problem:
            self.take(Event(Kind.DEVICE_FAULT, monotonic_ns(), text=problem))
        elif verdict.output is Output.ARM:
            self.take(Event(Kind.ARMED, monotonic_ns()))
        elif written_ns and not self.stimulator.limits.answers_pulses:  # the box says nothing: written counts as done
            self.take(Event(Kind.ACK, written_ns, number=self.last_packet))
        return verdict

    def obey(self, verdict: Verdict) -> tuple[int, str]:
        """Do what the verdict says, and nothing else. The one call site of the stimulator's output methods.

        Returns
        -------
        written_ns : int
            When a pulse had left; 0 = none did.
        problem : str
            What went wrong; empty = nothing.
        """
        try:
            match verdict.output:
                case Output.PULSE:
                    t = self.supervisor.prescription.trains[verdict.train]
                    self.check.due = (t.channel, verdict.current_ua, t.phase_width_us, t.interphase_gap_us)
                    self.last_packet = self.stimulator.trigger(verdict.train, verdict.current_ua)
                    return monotonic_ns(), ""
                case Output.STOP:
                    self.check.due = None
                    self.stimulator.stop()
                    if self.device_open:
                        self.stop_confirmed = None
                    now = monotonic_ns()
                    self.stops_left, self.stop_again_ns = MORE_STOPS if verdict.state is SafetyState.FAULT else 0, now + STOP_AGAIN_NS
                    self.stop_check_ns = now + STOP_ANSWER_NS if self.device_open else 0
                case Output.ARM:
                    self.stop_check_ns = 0
                    if self.supervisor.state is not SafetyState.ARMED:  # once its voltage is on, a box is not asked any more
                        who = self.stimulator.identify()
                        if who != self.supervisor.identity:
                            raise DeviceMismatchError(f"another stimulator: {who}, before {self.supervisor.identity} [E6]")
                    self.stimulator.arm()
                case Output.DISARM:
                    self.stimulator.disarm()
                    if self.device_open:
                        self.stop_confirmed = None
                    self.stop_check_ns = monotonic_ns()
        except DriverError as error:
            self.check.due = None
            return 0, f"{type(error).__name__}: {error}"
        return 0, ""

    # --- telling -------------------------------------------------------------------------------------------------------------
    def report(self, verdict: Verdict, written_ns: int) -> None:
        """Tell the loop about pulses, refusals and ends; a loop that does not read is not waited for."""
        if self.loop is None:
            return
        try:
            if written_ns:
                self.loop.send(messages.FEEDBACK.pack(FEEDBACK_PULSE, written_ns, self.supervisor.request))
            if verdict.refused:
                self.loop.send(messages.FEEDBACK.pack(FEEDBACK_REFUSED, monotonic_ns(), verdict.refused))
            if verdict.ended:
                self.loop.send(messages.FEEDBACK.pack(FEEDBACK_ENDED, monotonic_ns(), verdict.ended))
        except OSError:
            pass  # full or gone; the lease and end of file look after the rest

    def record(self, event: Event, verdict: Verdict, written_ns: int) -> None:
        """Put event and verdict into the ring: together they replay this supervisor. The ACK with the pulse's packet number follows.

        A train that is over goes with it, for the dose journal.
        """
        if verdict != self.recorded:  # the verdicts on heartbeats, 100 a second, are mostly one and the same
            self.recorded, self.recorded_json = verdict, encode(verdict._asdict())
        pulse = ""
        if written_ns:
            pulse = f',"written_ns":{written_ns},"request":{self.supervisor.request},"packet":{self.last_packet}'
        if verdict.ended:
            pulse += f',"train":{encode(self.supervisor.last_train._asdict())}'
            self.train_rows.append(self.ring.count + 1)
        row = f'{{"event":{encode(event_to_dict(event))},"verdict":{self.recorded_json}{pulse}}}'
        self.ring.put(messages.RING_GUARD, row.encode())

    # --- the disk, and the stop ----------------------------------------------------------------------------------------------
    def look_at_disk(self, now: int) -> None:
        """Whether what guard said is on the disk: an arming waits for that, and so does the next train."""
        durable = self.ring.durable
        if self.arm_row and durable >= self.arm_row:
            self.arm_row = 0
            self.take(Event(Kind.AUDITED, now))
        if self.arm_client and not self.supervisor.arming_ns:
            self.arm_row, client, self.arm_client = 0, self.arm_client, None
            ok = self.supervisor.state is SafetyState.ARMED and self.supervisor.automatic is self.supervisor.want_automatic
            self.tell(client, {"ok": ok, "reasons": [self.supervisor.reason]})
        while self.train_rows and self.train_rows[0] <= durable:
            self.train_rows.popleft()
        if durable >= self.mark[0]:
            self.mark = (self.ring.count, now)
        full = self.ring.fill >= (FULL if self.recorder_ok else ROOM)
        ok = not full and len(self.train_rows) <= MORE_TRAINS and now - self.mark[1] <= RECORD_LAG_NS
        if ok is not self.recorder_ok:
            self.recorder_ok = ok
            self.take(Event(Kind.RECORDER, now, ok=ok))

    @property
    def waits_for_the_disk(self) -> bool:
        """Something is to happen as soon as the disk has what guard said."""
        return bool(self.arm_row or self.train_rows or not self.recorder_ok)

    def stop_again(self, now: int) -> None:
        """After a fault the stop is said three times."""
        left, check_ns = self.stops_left - 1, self.stop_check_ns
        self.obey(self.stop)
        self.stops_left, self.stop_again_ns, self.stop_check_ns = left, now + STOP_AGAIN_NS, check_ns

    def check_stop(self, now: int) -> None:
        """A stop that was not confirmed is a fault that a person must look at; the port of a stimulator in fault is let go."""
        self.stop_check_ns = 0
        if not self.device_open:
            return
        answered = self.stop_confirmed = bool(self.stimulator.status()["stop_answered"])
        if self.supervisor.state is SafetyState.FAULT:
            self.let_go()
        if not answered:
            self.take(Event(Kind.DEVICE_FAULT, now, text="the stimulator did not confirm the stop: switch it off by hand"))

    def keep_alive(self, now: int) -> None:
        """Say a word to a stimulator that would take silence for the end of the session; a pulse was one too.

        From its opening on, armed or not, and whether the loop lives or not: no output goes on by it, since nothing plays on by itself,
        and what a silent loop may still get is the lease's matter. A guard that hangs or dies says nothing, and the stimulator falls back.
        """
        said_ns = self.supervisor.last_pulse_ns
        if now - said_ns >= self.keep_alive_ns:
            said_ns = now
            try:
                self.stimulator.keep_alive()
            except DriverError as error:
                self.take(Event(Kind.DEVICE_FAULT, now, text=f"{type(error).__name__}: {error}"))
        self.silent_ns = said_ns + self.keep_alive_ns if self.device_open else 0

    def let_go(self) -> None:
        """Close the port; whatever waits in it is dropped."""
        if self.stop_confirmed is None:
            self.stop_confirmed = bool(self.stimulator.status()["stop_answered"])
        self.device_open = False
        self.stops_left = self.stop_check_ns = self.silent_ns = 0
        self.stimulator.close()

    # --- hearing -------------------------------------------------------------------------------------------------------------
    def open_device(self) -> None:
        """Look for the stimulator in a thread: a box that does not answer takes seconds, and people must be heard meanwhile.

        Only in OFF, where nothing else touches the stimulator; `device_opened` hears of the result.
        """
        self.next_open_ns = monotonic_ns() + int(REOPEN_S * 1e9)
        if self.device_open:
            self.let_go()

        n_frames = self.check.n_frames

        def look() -> None:
            try:
                self.stimulator.open()
                self.check.learn(self.stimulator.prepare([pulse_train(train) for train in self.trains.values()]))
                self.identity = self.stimulator.identify()
                if why := another_box(self.identity, self.serial):
                    raise DeviceMismatchError(why)
                self.open_problem = None
            except DriverError as error:
                self.stimulator.close()
                self.open_problem = f"no stimulator: {error}"
                if self.check.n_frames > n_frames:  # to a trigger box each byte was a pulse
                    self.waits_for_person = True
                    self.open_problem += '; it is not asked again before `calmloop clear "why"`'
            self.opener_bell.send(b"!")

        self.opener = threading.Thread(target=look, name="look for the stimulator")
        self.opener.start()

    @property
    def may_look(self) -> bool:
        """Nothing is open, nobody is looking, and no person is waited for."""
        return self.supervisor.state is SafetyState.OFF and not self.opener and not self.waits_for_person

    def device_opened(self) -> None:
        """READY when the stimulator answered; otherwise say why not, once, and look again later."""
        self.opener_done.recv(1)
        assert self.opener
        self.opener.join()
        self.opener = None
        now = monotonic_ns()
        self.next_open_ns = now + int(REOPEN_S * 1e9)
        self.device_open = self.open_problem is None
        if self.device_open:
            self.stop_confirmed = True  # it is asked anew
            self.silent_ns = now + self.keep_alive_ns if self.keep_alive_ns else 0
            self.take(Event(Kind.READY, now, ok=True, text=self.identity))
        elif self.open_problem != self.supervisor.reason:
            self.take(Event(Kind.READY, now, text=self.open_problem or ""))

    def hear_device(self) -> None:
        """Acknowledgements and troubles of the stimulator."""
        for said in self.stimulator.read_events():
            now = monotonic_ns()
            if said.kind is not DeviceEventKind.ACK:
                self.take(Event(Kind.DEVICE_FAULT, now, number=said.number, text=f"{said.kind.value}: {said.text}"))
            elif said.number == self.last_packet:
                self.take(Event(Kind.ACK, now, number=said.number))
            else:  # an old or doubled answer proves nothing about the last pulse
                self.take(Event(Kind.BAD_INPUT, now, number=said.number, text=f"answer to pulse {said.number}, not to {self.last_packet}"))
            if said.kind is DeviceEventKind.PORT_LOST:
                self.let_go()

    def hear_loop(self) -> None:
        """One heartbeat or request; anything else is refused and counted against it. Then people and due pulses come first again."""
        assert self.loop is not None
        try:
            data = self.loop.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = monotonic_ns()
        if not data:
            self.loop.close()
            self.loop = None
            self.take(Event(Kind.LOOP_LOST, now))
            return
        try:
            m = messages.unpack_to_guard(data)
        except struct.error:
            self.take(Event(Kind.BAD_INPUT, now, text=f"message of {len(data)} bytes from the loop"))
            return
        if m.kind == messages.REQUEST:
            self.take(request(m, now))
        elif m.kind == messages.HEARTBEAT:
            self.take(Event(Kind.HEARTBEAT, now, m.issued_ns, m.sample_ns, ok=m.ok == 1))
        else:
            self.take(Event(Kind.BAD_INPUT, now, text=f"message of unknown kind {m.kind} from the loop"))

    def rehearse(self) -> None:
        """Let a copy of the supervisor grant a request, and forget both: the real request, which is rare, then finds warm caches.

        While automatic mode waits for a spasm, a thousand times a second. `step` is pure: whatever a copy of it says, nothing happens.
        """
        s, now = self.supervisor, monotonic_ns()
        if self.waits_for_a_spasm:
            t = s.prescription.trains[0]
            number = (s.last_number + 1) % (1 << 63)  # a loop that is wrong may have used up all that a message can hold
            data = messages.ToGuard(messages.REQUEST, now, now, number, number, 0, t.current_ua, t.duration_us, Cause.EMG).pack()
            copy(s).step(request(messages.unpack_to_guard(data), now))

    @property
    def waits_for_a_spasm(self) -> bool:
        """Armed, automatic, and no train on."""
        return self.supervisor.automatic and self.supervisor.state is SafetyState.ARMED

    def hear_daemon(self) -> None:
        """A new loop's socket, the wish to end, or the daemon's end."""
        try:
            data, fds, _, _ = socket.recv_fds(self.link, MAX_ANSWER_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        now = monotonic_ns()
        if data == b"loop" and fds:
            if self.loop is not None:
                self.loop.close()
                self.take(Event(Kind.LOOP_LOST, now))
            self.loop = socket.socket(fileno=fds[0])
            self.loop.setblocking(False)
            self.take(Event(Kind.LOOP_JOINED, now))
        elif data[:1] == b"{":
            self.hear_of_prescription(data)
        elif data == b"end":
            self.take(Event(Kind.DAEMON_LOST, now, text="session ended"))
            self.done = True
        elif not data:
            self.take(Event(Kind.DAEMON_LOST, now))
            self.done = True
            say(f"the daemon is gone: output stopped, not armed; {self.supervisor.pulses_total} pulses were given")

    def hear_of_prescription(self, data: bytes) -> None:
        """The daemon's word about a new prescription, or why nobody may arm."""
        try:
            said = json.loads(data)
        except (ValueError, RecursionError):
            said = {"ok": False, "reasons": ["the daemon's answer cannot be read"]}
        if "why_not_arm" in said:
            self.why_not_arm = said["why_not_arm"]
            return
        self.prescribing = said["ok"] is True  # then it ends this guard, and until then nothing is armed
        client, self.prescriber = self.prescriber, None
        if client:
            self.tell(client, said)

    def accept(self, door: socket.socket) -> list[socket.socket]:
        """Let people's commands in, if they come from this user or root."""
        newcomers: list[socket.socket] = []
        while True:
            try:
                client, _ = door.accept()
            except OSError:
                return newcomers
            client.setblocking(False)
            _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (0, os.getuid()):
                client.close()
                continue
            self.clients.append(client)
            newcomers.append(client)
            if door is self.page_door:
                self.strangers.add(client)

    def read(self, client: socket.socket) -> dict[str, Any]:
        """One command of a person; empty = there is none, or it was answered with what is wrong with it."""
        try:
            data = client.recv(messages.MAX_COMMAND_BYTES)
        except BlockingIOError:
            return {}
        except OSError:
            data = b""
        if not data:
            self.part(client)
            return {}
        try:
            command = json.loads(data)
            if not isinstance(command, dict) or not command:
                raise ValueError("a command is a JSON object")
            if client in self.strangers:
                self.admit(command)
        except NotAllowedError as error:
            self.not_allowed(client, str(error))
            return {}
        except Exception as error:  # whatever a stranger sends, guard goes on
            if client in self.strangers and not self.people.writes_down(monotonic_ns()):
                self.tell(client, {"ok": False, "reasons": ["not a command"]})
            else:
                self.answer_wrong(client, error)
            return {}
        return command

    def part(self, client: socket.socket) -> None:
        """Let a client go."""
        self.clients.remove(client)
        self.strangers.discard(client)
        if client is self.prescriber:
            self.prescriber = None
        client.close()

    def admit(self, command: dict[str, Any]) -> None:
        """Let a command of the page pass, in the name of whose token it carries. Raises NotAllowedError: nothing was done (G2)."""
        now = monotonic_ns()
        person = self.people.check(command.get("do"), command.get("token"), now)
        # the page's word for who it is and when they proved it counts for nothing
        command["who"] = str(person) if person else "somebody at the page"
        command["authenticated_ns"] = person.proved_ns if person else 0
        command["you"] = {"name": person.name, "role": person.role} if person else None
        command["holds"] = person is not None and self.people.holds(command.get("token"))

    def not_allowed(self, client: socket.socket, why: str) -> None:
        """Refuse, and write it down, but not every one of a flood."""
        now = monotonic_ns()
        if self.people.writes_down(now):
            self.take(Event(Kind.BAD_INPUT, now, text=printable(f"page: {why}"[:200])))
        self.tell(client, {"ok": False, "reasons": [why]})

    def answer(self, client: socket.socket, command: dict[str, Any]) -> None:
        """Carry out one command, with one answer; that to an arming comes when it is on the disk and the stimulator has confirmed."""
        try:
            answer = self.command(client, command)
        except NotAllowedError as error:
            self.not_allowed(client, str(error))
        except Exception as error:
            self.answer_wrong(client, error)
        else:
            if answer is not None:
                self.tell(client, answer)

    def answer_wrong(self, client: socket.socket, error: Exception) -> None:
        """A command that cannot be read is refused with what would be right."""
        verdict = self.take(Event(Kind.BAD_INPUT, monotonic_ns(), text=printable(f"command: {error}"[:200])))
        self.tell(client, {"ok": False, "reasons": list(verdict.reasons)})

    def tell(self, client: socket.socket, answer: dict[str, Any]) -> None:
        """Answer, if the client still listens."""
        try:
            client.send(json.dumps(answer | self.facts()).encode())
        except OSError:
            pass

    def command(self, client: socket.socket, command: dict[str, Any]) -> dict[str, Any] | None:
        """Carry out a person's command. Raises ValueError naming what would be right."""
        now = monotonic_ns()
        do, who = command.get("do"), printable(str(command.get("who", "a person"))[:80])
        if do == "stop":
            verdict = self.take(Event(Kind.STOP, now, text=who))
            return {"ok": True, "reasons": list(verdict.reasons)}
        if do == "status":
            stale = [self.supervisor.stale] if self.supervisor.stale else []
            return {"ok": True, "reasons": stale, "you": command.get("you"), "holds": command.get("holds")}
        if do == "read":  # the page asks whether it may show it
            return {"ok": True, "reasons": []}
        if do == "offer":
            return self.offer(now, who)
        if do == "arm":
            return self.confirm(client, command, now, who)
        if do == "disarm":
            verdict = self.take(Event(Kind.DISARM, now, text=who))
            return {"ok": self.supervisor.state is not SafetyState.ARMED, "reasons": list(verdict.reasons)}
        if do in ("clear", "offer") and self.waits_for_person and self.supervisor.state is SafetyState.OFF:
            self.waits_for_person, self.next_open_ns = False, now
            if do == "clear":
                return {"ok": True, "reasons": ["the stimulator is asked again who it is"]}
        if do == "clear":
            verdict = self.take(Event(Kind.CLEAR, now, text=printable(str(command.get("reason", "")))))
            return {"ok": not verdict.refused, "reasons": list(verdict.reasons)}
        if do == "button":
            closed = command.get("closed")
            if type(closed) is not bool:
                raise ValueError("button needs closed, true or false")
            number, issued_ns = whole(command, "id"), whole(command, "issued_ns")
            verdict = self.take(Event(Kind.BUTTON, now, issued_ns, number=number, cause=Cause.MANUAL, ok=closed, text=who))
            return {"ok": not verdict.refused, "reasons": list(verdict.reasons)}
        if do == "trigger":
            number, issued_ns = whole(command, "id"), whole(command, "issued_ns")
            p = self.supervisor.prescription
            t = p.trains[p.manual_train]
            fields = (now, issued_ns, 0, number, 0, p.manual_train, t.current_ua, t.duration_us, Cause.MANUAL, False, who)
            verdict = self.take(Event(Kind.TRIGGER, *fields))
            return {"ok": not verdict.refused, "reasons": list(verdict.reasons)}
        if do in ("invite", "pair", "take", "leave"):
            return self.of_people(do, command, now, who)
        if do == "prescribe":
            return self.prescribe(client, command, now, who)
        raise ValueError(f"{do!r} is none of {', '.join(VERBS)}")

    def prescribe(self, client: socket.socket, command: dict[str, Any], now: int, who: str) -> dict[str, Any] | None:
        """Pass a change of the prescription to the daemon, which checks it as a file is, keeps it, and begins a new session with it.

        Only where that ends nothing: a new guard comes up with nothing armed (B1), and no fault or lock-out may be left that way (B5).
        """
        if self.supervisor.state not in (SafetyState.OFF, SafetyState.IDLE):
            return {"ok": False, "reasons": [f"a prescription is changed at IDLE or OFF, not at {self.supervisor.state.value} [B1]"]}
        if self.prescribing:
            return {"ok": False, "reasons": ["another change is being made [G6]"]}
        if self.waits_for_person or any(now - fault_ns <= FAULTS_NS for fault_ns in self.supervisor.faults):
            words = "a fault of the last 10 min is not forgotten by a new guard, and what waits for a person does not go on without one"
            return {"ok": False, "reasons": [f"{words}: later, or end the session and start it again [B5, B6]"]}
        proved_ns = whole(command, "authenticated_ns") if "authenticated_ns" in command else now
        if now - proved_ns > PRESENCE_NS:
            return {
                "ok": False,
                "reasons": ["whoever prescribes must have proved who they are within 5 min: pair again [B3]"],
            }
        reason = printable(str(command.get("reason", "")).strip())[:MAX_REASON]
        if not reason:
            raise ValueError("prescribe needs a reason, in words [G7]")
        given = {"based_on": whole(command, "based_on"), "changes": command.get("changes"), "reason": reason, "who": who}
        self.take(Event(Kind.NOTE, now, text=f"{who} prescribes: {reason}"))
        self.link.send(encode({"prescribe": given, "people": self.people.handed_on()}).encode())
        self.prescribing, self.prescriber = True, client
        return None

    def of_people(self, do: str, command: dict[str, Any], now: int, who: str) -> dict[str, Any]:
        """Who may come over the page. Raises NotAllowedError."""
        more: dict[str, Any] = {}
        if do == "invite":
            role, name = str(command.get("role", "")), str(command.get("name", ""))
            more["code"] = self.people.invite(role, name, now)
            said = f"{who} shows a code for {name.strip()} as {role}"
        elif do == "pair":
            more["token"], person = self.people.pair(command.get("code"), now, command.get("token"))
            more |= {"name": person.name, "role": person.role}
            said = f"{person} has paired"
        elif do == "take":
            before = self.people.take(command.get("token"), now)
            said = f"{who} holds control{f', before {before}' if before else ''} [G6]"
        else:
            self.people.leave(command.get("token"), now)
            said = f"{who} has left"
        self.take(Event(Kind.NOTE, now, text=printable(said)))
        return {"ok": True, "reasons": [said], **more}

    def offer(self, now: int, who: str) -> dict[str, Any]:
        """First step of arming: what a person is to look at before the second."""
        number = secrets.randbits(52) | 1
        verdict = self.take(Event(Kind.OFFER, now, number=number, text=who))
        p = self.supervisor.prescription
        return {
            "ok": not verdict.refused,
            "reasons": list(verdict.reasons),
            "offer": number,
            "prescription_id": f"{p.number:012x}",
            "prescription": [
                f"train {t.name}: channel {t.channel}, {t.current_ua / 1000:g} mA, {t.phase_width_us} us, {t.pulse_rate_mhz / 1000:g} Hz, "
                f"{t.duration_us / 1000:g} ms, {t.current_ua * t.phase_width_us / 1e6:g} uC per phase"
                for t in p.trains
            ]
            + [f"told of the stimulator, which cannot be asked: {name} = {value}" for name, value in self.options.items()],
            "button_train": p.trains[p.manual_train].name,
            "stimulator_identity": self.supervisor.identity,
        }

    def confirm(self, client: socket.socket, command: dict[str, Any], now: int, who: str) -> dict[str, Any] | None:
        """Second step: what was offered is named, the electrodes were looked at, and it is on the disk before it takes effect."""
        if self.prescribing:
            return {"ok": False, "reasons": ["a new prescription is being put into force: arm when it is [B1]"]}
        if self.why_not_arm:
            self.take(Event(Kind.NOTE, now, text=f"{who} may not arm: {self.why_not_arm}"))
            return {"ok": False, "reasons": [self.why_not_arm]}
        if command.get("electrodes_checked") is not True:
            raise ValueError('arm needs "electrodes_checked": true from whoever has looked at patient, skin and pads [B3]')
        try:
            prescription = int(str(command.get("prescription_id")), 16)
        except ValueError:
            raise ValueError("arm needs the prescription_id of the offer [B3]") from None
        automatic = command.get("automatic", True)
        if type(automatic) is not bool:
            raise ValueError("automatic must be true or false")
        # the kernel says at every connection who it is; a page that asks for a password says when
        proved_ns = whole(command, "authenticated_ns") if "authenticated_ns" in command else now
        offer = whole(command, "offer")
        verdict = self.take(Event(Kind.ARM, now, proved_ns, number=offer, event_id=prescription, ok=automatic, text=who))
        if verdict.refused:
            return {"ok": False, "reasons": list(verdict.reasons)}
        self.arm_row, self.arm_client = self.ring.count, client
        return None

    def facts(self) -> dict[str, Any]:
        """What `calmloop status` shows of guard."""
        s = self.supervisor
        now = monotonic_ns()
        p = s.prescription
        stimulator = self.stimulator.status() if self.device_open else None
        confirmed = self.stop_confirmed
        if confirmed is None and stimulator and stimulator["stop_answered"]:
            confirmed = True
        return {
            "stop_confirmed": confirmed,
            "confirms_stops": self.stimulator.limits.answers_stop,
            "state": s.state.value,
            "reason": s.reason,
            "automatic": s.automatic,
            "loop": "alive" if s.loop_joined and now - s.heartbeat_ns < 10**9 else "silent" if s.loop_joined else "absent",
            "data_ok": s.data_ok,
            "recorder_ok": s.recorder_ok,
            "pulses": s.pulses_total,
            "pulses_withheld_late": s.withheld_total,
            "charge_uc": s.charge_total_nc / 1000,
            "on_time_s": s.on_time_total_ns / 1e9,
            "events_last_hour": sum(start > now - 60 * MINUTE for start in s.events),
            "late_heartbeats": s.late_total,
            "dose": {
                "session": {**s.session._asdict(), "max_on_ns": p.max_on_time_session_ns},
                "24h": {**s.day._asdict(), "max_on_ns": p.max_on_time_24h_ns},
            },
            "faults": f"{len(s.faults)} of {FAULTS}{', guard must be started again' if s.permanent else ''}",
            "button": "none" if not s.button_ns else "stuck" if s.button_stuck else "closed" if s.button_closed else "open",
            "stimulator": stimulator or "absent",
            "build": self.build,
            "realtime": self.got,
            "pid": os.getpid(),
            **self.people.facts(),
        }


def request(m: messages.ToGuard, now: int) -> Event:
    """The loop's request as the supervisor hears it: the same fields in the same order, but for `ok`."""
    return Event(Kind.REQUEST, now, *m[1:9], False, "", m.rule, m.level)


def printable(text: str) -> str:
    """What strangers write stands on screens and in logs: nothing that moves a cursor, breaks a line or cannot be encoded."""
    return "".join(c if c.isprintable() else "?" for c in text)


def another_box(identity: str, serial: str) -> str:
    """Why "model serial firmware" is not the box that the settings name, or not known to be; empty = it is, or any will do."""
    number = identity.split()[-2]
    if serial in ("", number):
        return ""
    if number == "-":
        return f"{identity.split()[0]} says no number: it may be {serial} or not; leave [stimulator] serial empty, and look at the box [E6]"
    return f"{identity} is there, the settings want the one with the number {serial} [E6]"


def whole(command: dict[str, Any], name: str) -> int:
    """A whole number of a person's command; ValueError says what would be right (A12)."""
    value = command.get(name)
    if type(value) is not int or abs(value) >= 1 << 63:
        raise ValueError(f"{command.get('do')} needs {name}, a whole number; it has {value!r:.40} [A12]")
    return value


def device_of(limits: StimulatorLimits) -> Device:
    """What a driver states of its device, in integers."""
    return Device(
        limits.model,
        limits.n_channels,
        limits.max_current_ua,
        limits.current_step_ua,
        limits.min_phase_width_us,
        limits.max_phase_width_us,
        round(limits.max_pulse_rate_hz * 1000),
        round(limits.latency_spread_ms * 1e6),
    )


def event_to_dict(event: Event) -> dict[str, Any]:
    """Kind, time, and what is not 0 or empty: most fields of most events are."""
    more = {name: value for name, value in zip(Event._fields[2:], event[2:], strict=True) if value}
    return {"kind": event.kind, "now_ns": event.now_ns, **more}


def event_from_dict(row: dict[str, Any]) -> Event:
    """Inverse of `event_to_dict`."""
    return Event(**(row | {"kind": Kind(row["kind"])}))


def pulse_train(train: dict[str, int]) -> PulseTrain:
    """A prescribed train in the driver's words."""
    return PulseTrain(
        channel=train["channel"],
        current_ma=train["current_ua"] / 1000,
        phase_width_us=train["phase_width_us"],
        interphase_gap_us=train["interphase_gap_us"],
        pulse_rate_hz=train["pulse_rate_mhz"] / 1000,
        duration_ms=train["duration_us"] // 1000,
        ramp_up_ms=train["ramp_up_us"] // 1000,
        taper_ms=train["taper_us"] // 1000,
    )


def listen(path: Path) -> socket.socket:
    """Take the bed's control socket.

    Raises
    ------
    SystemExit
        Another guard serves this bed.
    """
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()
            except OSError as error:
                say(f"cannot tell whether {path} is in use: {error}")
                sys.exit(2)
            else:
                say(f"another guard serves this bed already ({path})")
                sys.exit(2)
    control.bind(os.fspath(path))
    path.chmod(0o600)
    control.listen(MAX_CLIENTS)
    return control


def back_door(path: Path) -> list[socket.socket]:
    """Listen at the bed's second address, which needs no folder: a stop gets in when the first is deleted or cannot be found."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        door.bind(messages.second_address(path))
        door.listen(MAX_CLIENTS)
    except OSError as error:  # too long, or taken by a stranger: the first address is what counts
        say(f"no second address for stops: {error}")
        door.close()
        return []
    return [door]


def say(text: str) -> None:
    """Last words and start-up troubles go to standard error, never the hot path's."""
    print(f"guard: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Guard's process: started by the daemon with its link and its ring as inherited file descriptors."""
    parser = argparse.ArgumentParser(prog="controller.guard")
    parser.add_argument("--link", type=int, required=True)
    parser.add_argument("--ring", type=int, required=True)
    parser.add_argument("--bed", required=True)
    args = parser.parse_args()
    # the terminal's ^C goes to everybody; the daemon decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link = socket.socket(fileno=args.link)
    view = json.loads(link.recv(MAX_VIEW_BYTES))
    link.setblocking(False)
    path = messages.control_path(args.bed)
    control, page = listen(path), listen(messages.page_path(path)) if view.get("page") else None
    got = realtime.ask(view["priority"], view["cpus"])
    check = wire.for_driver(view["driver"], view["options"])
    stimulator = stimulators.load(view["driver"], view["port"], check.write, view["options"])
    try:
        wrong = self_test()
        if wrong:
            raise ValueError("guard's test of itself failed: " + "; ".join(wrong))
        guard = Guard(stimulator, check, view, link, control, RingWriter(args.ring), page)
    except ValueError as error:
        say(f"not started: {error}")
        path.unlink()
        messages.page_path(path).unlink(missing_ok=True)
        return 2
    guard.doors += back_door(path)
    view.pop("people", None)  # they are no setting
    got |= realtime.freeze()
    guard.got = got
    of_driver = sorted(name for name in sys.modules if name.startswith(("drivers.stimulators.", "controller.wire.")))
    guard.build = build.hashes(*of_driver, "controller.self_test")
    start = {
        "start_ns": monotonic_ns(),
        "view": view,
        "device": guard.supervisor.prescription.device._asdict(),
        "prescription_id": f"{guard.supervisor.prescription.number:012x}",
        "build": guard.build,
        "pid": os.getpid(),
        "realtime": got,
    }
    guard.ring.put(messages.RING_GUARD, json.dumps(start).encode())
    try:
        guard.run()
    finally:
        path.unlink(missing_ok=True)
        messages.page_path(path).unlink(missing_ok=True)
        stimulator.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
