"""The process that listens to the patient's button and tells guard: each edge at once, the level twice a second.

It decides nothing. What is a press, a bounce or a stuck button, and whether a train may begin, is guard's supervisor's matter (C3, C5, C6).
A device that is lost is told by silence: guard then says so and disarms automatic mode (C4), also where this process is what died. Neither
device nor guard is waited for: both are looked for again each second, and an answer of guard is nothing that anything here waits for.

Standard library and `drivers.buttons` alone.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import select
import signal
import socket
import sys
from time import monotonic, sleep
from typing import TYPE_CHECKING

from controller import messages, realtime
from drivers import buttons
from drivers.base import DriverError, Edge

if TYPE_CHECKING:
    from drivers.base import Button

LEVEL_S = 0.5  # guard misses a button after BUTTON_LOST_NS, 2 s (C4): three may be late
AGAIN_S = 1.0  # how often a device that is gone is looked for
PEEK_S = 0.02  # how often we look whether guard has answered, while it has not
WHO = "the patient's button"
NEVER_NS = 0  # when a contact closed that was closed already when we came: too long ago to be a press (C7)


class Watch:
    """One button and its guard.

    Parameters
    ----------
    device : Button
    bed : str
        Whose guard.
    """

    def __init__(self, device: Button, bed: str) -> None:
        self.device, self.to_guard = device, ToGuard(bed)
        self.told = ""

    def run(self) -> None:
        """Find the device, watch it, and look for it again when it is lost; for ever."""
        while True:
            try:
                closed = self.device.open()
                self.tell("listening")
                self.watch(closed)
            except DriverError as error:
                self.tell(f"none: {error}")
            finally:
                self.device.close()
            sleep(AGAIN_S)

    def watch(self, closed: bool) -> None:
        """Tell guard what the contact does. Raises `DriverError` when the device is gone."""
        self.to_guard.say(Edge(closed, NEVER_NS))
        level_s = monotonic() + LEVEL_S
        while True:
            wait_s = max(0.0, level_s - monotonic())
            edge = self.device.wait(min(wait_s, PEEK_S) if self.to_guard.unanswered else wait_s)
            if edge:
                self.to_guard.say(edge)
            elif monotonic() >= level_s:
                self.to_guard.say_again()
            else:
                self.to_guard.hear()
                continue
            level_s = monotonic() + LEVEL_S

    def tell(self, text: str) -> None:
        """Say how it is to people, when it changes, and if standard error takes it: a terminal that is held must not hold us."""
        if text != self.told and select.select([], [sys.stderr], [], 0)[1]:
            print(f"button: {text}", file=sys.stderr, flush=True)
            self.told = text


class ToGuard:
    """What guard was told last, and the connection to it; nothing here blocks.

    An edge keeps its id and its time however often it is said: guard counts it once, and takes it for a press only while it is young.
    """

    def __init__(self, bed: str) -> None:
        self.bed = bed
        self.socket: socket.socket | None = None
        self.message = b""
        self.unanswered = False

    def say(self, edge: Edge) -> None:
        """Tell a new edge."""
        number = secrets.randbits(52) | 1
        command = {"do": "button", "id": number, "issued_ns": edge.time_ns, "closed": edge.closed, "who": WHO}
        self.message = json.dumps(command).encode()
        self.say_again()

    def say_again(self) -> None:
        """Tell the last edge once more, as a sign of life, by a new connection where the old one has ended."""
        self.drain()
        for _ in range(2):
            if self.socket is None and not self.connect():
                return
            assert self.socket
            try:
                self.socket.send(self.message)
                self.unanswered = True
                return
            except BlockingIOError:  # guard does not read: it has enough to read when it does
                return
            except OSError:
                self.part()

    def hear(self) -> None:
        """Take guard's answers; where it has parted before it answered (a crowd at its door), say it again."""
        self.drain()
        if self.socket is None and self.unanswered:
            self.unanswered = False
            self.say_again()

    def drain(self) -> None:
        """Read what guard has said; what it was does not matter here, guard tells it to people itself."""
        try:
            while self.socket:
                if not self.socket.recv(1 << 16):
                    self.part()
                    return
                self.unanswered = False
        except BlockingIOError:
            pass
        except OSError:
            self.part()

    def connect(self) -> bool:
        """Go to guard's door; False = there is none now, or a queue."""
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            line.connect(os.fspath(messages.control_path(self.bed)))
        except (OSError, messages.NoBedError):
            line.close()
            self.unanswered = False
            return False
        self.socket = line
        return True

    def part(self) -> None:
        """Drop the connection."""
        if self.socket:
            self.socket.close()
            self.socket = None


def arguments(bed: str, device: str, key: str, line: str, invert: bool, priority: int) -> list[str]:
    """What `main` is started with."""
    words = ["--bed", bed, "--device", device, "--key", key, "--line", line, "--priority", str(priority)]
    return [*words, *(["--invert"] if invert else [])]


def main() -> int:
    """Watch one button until the daemon ends us or ends."""
    parser = argparse.ArgumentParser(prog="controller.button")
    parser.add_argument("--bed", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--line", default="")
    parser.add_argument("--invert", action="store_true")
    parser.add_argument("--priority", type=int, default=0)
    args = parser.parse_args()
    realtime.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's ^C goes to everybody; the daemon decides what it means
    try:
        device = buttons.load(args.device, args.key, args.line, args.invert)
    except DriverError as error:
        print(f"button: {error}", file=sys.stderr, flush=True)
        return 2
    got = realtime.ask(args.priority, awake=False) | realtime.freeze()
    watch = Watch(device, args.bed)
    for what, answer in realtime.refusals(got).items():
        watch.tell(f"{what} {answer} (see calmloop doctor)")
    watch.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
