"""What happens at a bed as LSL markers, so that LabRecorder has it beside the amplifier's own data: `[lsl] markers = true`.

One stream: name `calmloop BED`, type Markers, source_id `calmloop-markers-BED` (the same after a restart, so that a recorder finds it
again), irregular rate, one channel of strings. A marker is a few stable words, as EEGLAB and MNE make an event's type of the whole string
and a JSON object would make every event a type of its own. Its stamp is that of the event itself on the LSL clock, the one in our own
recording; it is sent when the daemon gets to it, which is each 10 ms on a bed that is not busy.

=========================  ==========================================================  ==================================
marker                     what                                                        stamp
=========================  ==========================================================  ==================================
``spasm RULE``             a rule has decided that there is a spasm                    newest sample behind the decision
``quiet RULE``             it is over for the rule                                     newest sample
``request N RULE``         the loop asks for a train; N counts from 1 in each loop     when it was decided
``train N MA mA``          a train begins, with the prescribed current; N = manual     its first pulse
                           for a press or a command
``pulse``                  one pulse                                                   its command was written
``end N``                  the train is over                                           when guard ended it
``refused N CODES``        a request was refused; CODES are safety requirements,       guard's verdict
                           such as C7 or A9+B2 (none where it has no number)
``button``                 a person asks for a train                                   guard took it up
=========================  ==========================================================  ==================================

Off unless it is asked for: LSL has no passwords and calls out into the whole network, and what is done to a patient is nobody's business
there. To keep it on this machine set `ResolveScope = machine` under `[multicast]` in lsl_api.cfg. No marker names a person.

It has a process of its own, as page and button have: whatever liblsl does, the daemon goes on, and guard knows nothing of it. The daemon
writes lines into a pipe that never blocks; what the pipe does not take is dropped and counted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from controller.recording import DETECTION_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controller.recording import RecordedCycle
    from controller.settings import Settings

ACTIVE, DECIDED_S = (DETECTION_FIELDS.index(name) for name in ("active", "decided"))
MAX_WORDS = 200  # a line must fit into what a pipe takes at once, 4096 bytes
END_S = 0.5  # what the last markers get to leave


def name(number: int) -> str:
    """A request's number in a marker; guard counts a person's as -1."""
    return str(number) if number > 0 else "manual"


def of_guard(row: dict[str, Any], current_ma: dict[int, float]) -> Iterable[tuple[float, str]]:
    """Markers of one row of guard: (stamp in s, words).

    Parameters
    ----------
    row : dict
        As recorded.
    current_ma : dict of int to float
        Prescribed current of each train.
    """
    event, verdict = row["event"], row["verdict"]
    at_s, kind = event["now_ns"] * 1e-9, event["kind"]
    asked = kind in ("request", "trigger") or (kind == "button" and (verdict["refused"] or row.get("written_ns")))
    if asked and kind != "request":
        yield at_s, "button"
    if asked and verdict["refused"]:
        codes = re.findall(r"\[([A-Z]\d+)", " ".join(verdict["reasons"]))
        yield at_s, f"refused {name(event.get('number', 0) if kind == 'request' else 0)} {'+'.join(dict.fromkeys(codes))}".strip()
    if written_ns := row.get("written_ns"):
        if asked:
            yield written_ns * 1e-9, f"train {name(row['request'])} {current_ma[verdict['train']]:g} mA"
        yield written_ns * 1e-9, "pulse"
    if verdict["ended"]:
        yield at_s, f"end {name(verdict['ended'])}"


class Markers:
    """The daemon's side: says markers, never waits, never raises.

    Attributes
    ----------
    dropped : int
        Markers that were not taken.
    """

    def __init__(self, bed: str, config: Settings) -> None:
        self.rules = [rule.name for rule in config.rules]
        self.rows = [row.name for row in config.rows]
        self.current_ma = {i: train.current_ma for i, train in enumerate(config.trains.values())}
        self.active = [False] * len(self.rules)
        self.decided_s = [0.0] * len(self.rules)
        self.dropped = 0
        command = [sys.executable, "-m", "controller.markers", bed]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self.process.stdin
        self.fd = self.process.stdin.fileno()
        os.set_blocking(self.fd, False)

    def say(self, at_s: float, words: str) -> None:
        """Say one marker."""
        try:
            os.write(self.fd, f"{at_s!r}\t{' '.join(words.split())[:MAX_WORDS]}\n".encode())
        except OSError:  # full, or its process is gone, which is seen elsewhere
            self.dropped += 1

    def see_cycles(self, cycles: list[RecordedCycle]) -> None:
        """What the rules and the loop decided."""
        for cycle in cycles:
            for i, rule in enumerate(self.rules):
                row = cycle.detections[i]
                decided_s, active = float(row[DECIDED_S]), bool(row[ACTIVE])
                if decided_s == decided_s and decided_s != self.decided_s[i]:  # so that one which ends within a cycle is not lost
                    self.decided_s[i], self.active[i] = decided_s, True
                    self.say(decided_s, f"spasm {rule}")
                if self.active[i] and not active:
                    self.active[i] = False
                    self.say(cycle.sample_s, f"quiet {rule}")
            if number := cycle.numbers["request"]:
                self.say(cycle.numbers["decided_ns"] * 1e-9, f"request {number} {self.rows[cycle.numbers['rule']]}")

    def see_guard(self, row: dict[str, Any]) -> None:
        """What guard did."""
        for at_s, words in of_guard(row, self.current_ma):
            self.say(at_s, words)

    def close(self) -> None:
        """Let the last markers leave, and end the process."""
        assert self.process.stdin
        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            self.process.wait(2 * END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main(bed: str) -> int:
    """The outlet's process: lines of stamp and words from standard input, until it ends."""
    import signal
    import time

    for number in (signal.SIGINT, signal.SIGTERM):  # ^C goes to all; the daemon says when it is over
        signal.signal(number, signal.SIG_IGN)
    import pylsl

    info = pylsl.StreamInfo(f"calmloop {bed}", "Markers", 1, pylsl.IRREGULAR_RATE, pylsl.cf_string, f"calmloop-markers-{bed}")
    channel = info.desc().append_child("channels").append_child("channel")
    for key, text in (("label", "marker"), ("type", "Markers")):
        channel.append_child_value(key, text)
    info.desc().append_child_value("manufacturer", "calmloop")
    outlet = pylsl.StreamOutlet(info)
    for line in sys.stdin:
        at_s, tab, words = line.rstrip("\n").partition("\t")
        if tab:
            outlet.push_sample([words], float(at_s))
    if outlet.have_consumers():
        time.sleep(END_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
