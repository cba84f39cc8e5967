"""The process that alone holds the stimulator: waits, asks the supervisor, obeys its verdict.

Imports neither numba nor scipy, pylsl or numpy. It trusts nobody: whatever the loop, the daemon or a person sends becomes an event for
`Supervisor.step`, and `Guard.obey` is the only place in the project where a stimulator's output methods are called. It never waits on
disk, network or a lock: records go to a ring in shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from copy import copy
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from controller import messages, realtime
from controller.ring import RingWriter
from controller.supervisor import MINUTE, Cause, Event, Kind, Output, SafetyState, Supervisor, Verdict, prescription_from
from drivers import stimulators
from drivers.base import FEEDBACK_ENDED, FEEDBACK_PULSE, FEEDBACK_REFUSED, DeviceEventKind, DriverError, PulseTrain, Stimulator

if TYPE_CHECKING:
    from pathlib import Path

REHEARSE_S = 0.001  # halves guard's part of the latency where blocks are long (bench.latency at chunk 10), for 2 % of a processor
REOPEN_S = 1.0  # how often a missing stimulator is looked for while OFF
STOP_ANSWER_NS = 500_000_000  # a stimulator that does not confirm a stop within this time is a fault
FULL, ROOM = 0.5, 0.25  # of the ring: above, nothing new is stimulated; below, it is again
MAX_CLIENTS = 16
MAX_MESSAGE_BYTES = 256  # of the loop; what is longer is wrong anyway
encode = json.JSONEncoder(separators=(",", ":")).encode


class Guard:
    """One bed's guard. `link` leads to the daemon, `control` is the listening socket for people's commands."""

    def __init__(self, stimulator: Stimulator, view: dict[str, Any], link: socket.socket, control: socket.socket, ring: RingWriter) -> None:
        self.stimulator = stimulator
        self.trains = view["trains"]
        self.supervisor = Supervisor(prescription_from(view, stimulator.limits.current_step_ua))
        self.link, self.control, self.ring = link, control, ring
        self.loop: socket.socket | None = None
        self.clients: list[socket.socket] = []
        self.device_open = False
        self.next_open_ns = 0
        self.wake_ns = 0
        self.stop_check_ns = 0
        self.last_packet = -1
        self.recorded: Verdict | None = None
        self.recorded_json = ""
        self.recorder_ok = True
        self.opener: threading.Thread | None = None
        self.opener_done, self.opener_bell = socket.socketpair()
        self.open_problem: str | None = None
        self.done = False
        self.got: dict[str, str] = {}

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
            if self.stop_check_ns and now >= self.stop_check_ns:
                self.check_stop(now)
            if self.recorder_ok != (self.ring.fill < (FULL if self.recorder_ok else ROOM)):
                self.recorder_ok = not self.recorder_ok
                self.take(Event(Kind.RECORDER, now, ok=self.recorder_ok))
            if self.supervisor.state is SafetyState.OFF and not self.opener and now >= self.next_open_ns and not self.done:
                self.open_device()
        if self.opener:
            self.opener.join()

    def hear_all(self, ready: list[Any]) -> None:
        """Everybody who has something to say, people first."""
        if self.control in ready:
            self.accept()
        for client in [c for c in ready if c in self.clients]:
            self.hear_person(client)
        if self.link in ready:
            self.hear_daemon()
        if self.device_open and self.stimulator in ready:
            self.hear_device()
        if self.opener_done in ready:
            self.device_opened()
        if self.loop is not None and self.loop in ready:
            self.hear_loop()

    def wait(self) -> list[Any]:
        """Block until something can be read or the supervisor's or the reopening deadline is due."""
        sources: list[Any] = [self.control, self.link, self.opener_done, *self.clients]
        if self.loop is not None:
            sources.append(self.loop)
        if self.device_open:
            sources.append(self.stimulator)
        deadlines = [self.wake_ns, self.stop_check_ns]
        if self.supervisor.state is SafetyState.OFF and not self.opener:
            deadlines.append(self.next_open_ns)
        deadline_ns = min((ns for ns in deadlines if ns), default=0)
        timeout_s = max(0.0, (deadline_ns - monotonic_ns()) * 1e-9) if deadline_ns else None
        if self.waits_for_a_spasm:
            timeout_s = REHEARSE_S if timeout_s is None else min(timeout_s, REHEARSE_S)
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
                    self.last_packet = self.stimulator.trigger(verdict.train, verdict.current_ua)
                    return monotonic_ns(), ""
                case Output.STOP:
                    self.stimulator.stop()
                    self.stop_check_ns = monotonic_ns() + STOP_ANSWER_NS if self.device_open else 0
                case Output.ARM:
                    self.stop_check_ns = 0
                    self.stimulator.arm()
                case Output.DISARM:
                    self.stimulator.disarm()
                    self.stop_check_ns = monotonic_ns()
        except DriverError as error:
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
        """Put event and verdict into the ring: together they replay this supervisor. The ACK with the pulse's packet number follows."""
        if verdict != self.recorded:  # the verdicts on heartbeats, 100 a second, are mostly one and the same
            self.recorded, self.recorded_json = verdict, encode(verdict._asdict())
        pulse = ""
        if written_ns:
            pulse = f',"written_ns":{written_ns},"request":{self.supervisor.request},"packet":{self.last_packet}'
        row = f'{{"event":{encode(event_to_dict(event))},"verdict":{self.recorded_json}{pulse}}}'
        self.ring.put(messages.RING_GUARD, row.encode())

    # --- hearing -------------------------------------------------------------------------------------------------------------
    def check_stop(self, now: int) -> None:
        """A stop that was not confirmed is sent once more, as a fault that a person must look at."""
        self.stop_check_ns = 0
        if self.device_open and not self.stimulator.status()["stop_answered"] and self.supervisor.state is not SafetyState.FAULT:
            self.take(Event(Kind.DEVICE_FAULT, now, text="the stimulator did not confirm the stop: switch it off by hand"))

    def open_device(self) -> None:
        """Look for the stimulator in a thread: a box that does not answer takes seconds, and people must be heard meanwhile.

        Only in OFF, where nothing else touches the stimulator; `device_opened` hears of the result.
        """
        self.next_open_ns = monotonic_ns() + int(REOPEN_S * 1e9)
        if self.device_open:
            self.stimulator.close()
            self.device_open = False

        def look() -> None:
            try:
                self.stimulator.open()
                self.stimulator.prepare([pulse_train(train) for train in self.trains.values()])
                self.open_problem = None
            except DriverError as error:
                self.stimulator.close()
                self.open_problem = f"no stimulator: {error}"
            self.opener_bell.send(b"!")

        self.opener = threading.Thread(target=look, name="look for the stimulator")
        self.opener.start()

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
            self.take(Event(Kind.READY, now, ok=True, text=f"{self.stimulator.limits.model} found"))
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
                self.device_open = False
                self.stimulator.close()

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
            self.take(Event(Kind.REQUEST, now, *m[1:9]))  # the same fields in the same order, but for `ok`
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
            number = s.last_number + 1
            copy(s).step(Event(Kind.REQUEST, now, now, now, number, number, 0, t.current_ua, t.duration_us, Cause.EMG))

    @property
    def waits_for_a_spasm(self) -> bool:
        """Armed, automatic, and no train on."""
        return self.supervisor.automatic and self.supervisor.state is SafetyState.ARMED

    def hear_daemon(self) -> None:
        """A new loop's socket, the wish to end, or the daemon's end."""
        try:
            data, fds, _, _ = socket.recv_fds(self.link, 4096, 1)
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
        elif data == b"end":
            self.take(Event(Kind.DAEMON_LOST, now, text="session ended"))
            self.done = True
        elif not data:
            self.take(Event(Kind.DAEMON_LOST, now))
            self.done = True
            say(f"the daemon is gone: output stopped, not armed; {self.supervisor.pulses_total} pulses were given")

    def accept(self) -> None:
        """Let people's commands in, if they come from this user or root; what they say already is heard at once."""
        while True:
            try:
                client, _ = self.control.accept()
            except OSError:
                return
            client.setblocking(False)
            _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (0, os.getuid()):
                client.close()
                continue
            self.clients.append(client)
            self.hear_person(client)
            if len(self.clients) > MAX_CLIENTS:  # whoever connects and says nothing makes room
                self.clients.pop(0).close()

    def hear_person(self, client: socket.socket) -> None:
        """One command, one answer. A command that cannot be read is refused with what would be right."""
        try:
            data = client.recv(messages.MAX_COMMAND_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.clients.remove(client)
            client.close()
            return
        try:
            command = json.loads(data)
            if not isinstance(command, dict):
                raise ValueError("a command is a JSON object")
            answer = self.command(command)
        except Exception as error:  # whatever a stranger sends, guard goes on
            verdict = self.take(Event(Kind.BAD_INPUT, monotonic_ns(), text=f"command: {error}"[:200]))
            answer = {"ok": False, "reasons": list(verdict.reasons)}
        try:
            client.send(json.dumps(answer | self.facts()).encode())
        except OSError:
            pass

    def command(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out a person's command. Raises ValueError naming what would be right."""
        now = monotonic_ns()
        do, who = command.get("do"), str(command.get("who", "a person"))[:80]
        if do == "status":
            return {"ok": True, "reasons": [self.supervisor.stale] if self.supervisor.stale else []}
        if do == "stop":
            verdict = self.take(Event(Kind.STOP, now, text=who))
            return {"ok": True, "reasons": list(verdict.reasons)}
        if do == "arm":
            self.take(Event(Kind.ARM, now, ok=command.get("automatic", True) is True, text=who))
            granted = self.supervisor.automatic or not command.get("automatic", True)
            return {"ok": self.supervisor.state is SafetyState.ARMED and granted, "reasons": [self.supervisor.reason]}
        if do == "disarm":
            verdict = self.take(Event(Kind.DISARM, now, text=who))
            return {"ok": self.supervisor.state is not SafetyState.ARMED, "reasons": list(verdict.reasons)}
        if do == "clear":
            faulty = self.supervisor.state is SafetyState.FAULT
            verdict = self.take(Event(Kind.CLEAR, now, text=str(command.get("reason", ""))))
            return {"ok": faulty and self.supervisor.state is not SafetyState.FAULT, "reasons": list(verdict.reasons)}
        if do == "trigger":
            issued_ns = command.get("issued_ns")
            if type(issued_ns) is not int:
                raise ValueError("trigger needs issued_ns, the host's monotonic clock when it was pressed")
            p = self.supervisor.prescription
            t = p.trains[p.manual_train]
            verdict = self.take(
                Event(
                    Kind.TRIGGER,
                    now,
                    issued_ns=issued_ns,
                    train=p.manual_train,
                    current_ua=t.current_ua,
                    duration_us=t.duration_us,
                    cause=Cause.MANUAL,
                    text=who,
                )
            )
            return {"ok": not verdict.refused, "reasons": list(verdict.reasons)}
        raise ValueError(f"{do!r} is none of stop, trigger, arm, disarm, clear, status")

    def facts(self) -> dict[str, Any]:
        """What `calmloop status` shows of guard."""
        s = self.supervisor
        now = monotonic_ns()
        return {
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
            "stimulator": self.stimulator.status() if self.device_open else "absent",
            "realtime": self.got,
            "pid": os.getpid(),
        }


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
    view = json.loads(link.recv(65536))
    link.setblocking(False)
    path = messages.control_path(args.bed)
    control = listen(path)
    got = realtime.ask(view["priority"], view["cpus"])
    stimulator = stimulators.load(view["driver"], view["port"])
    try:
        guard = Guard(stimulator, view, link, control, RingWriter(args.ring))
    except ValueError as error:
        say(f"the prescription is refused: {error}")
        path.unlink()
        return 2
    got |= realtime.freeze()
    guard.got = got
    start = {
        "start_ns": monotonic_ns(),
        "view": view,
        "current_step_ua": stimulator.limits.current_step_ua,
        "pid": os.getpid(),
        "realtime": got,
    }
    guard.ring.put(messages.RING_GUARD, json.dumps(start).encode())
    try:
        guard.run()
    finally:
        path.unlink(missing_ok=True)
        stimulator.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
