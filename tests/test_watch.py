"""`calmloop status --watch` on a terminal of the test's own, and what it draws of a bed."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from controller import watch
from controller.alarms import alarms
from tests.rig import GuardRig
from tests.test_architecture import modules_after

ROOT = Path(__file__).resolve().parents[1]
STATUS = {
    "state": "ARMED",
    "reason": "armed by Ada",
    "automatic": True,
    "data_ok": True,
    "sample_age_ms": 2.0,
    "loop": "alive",
    "rules": {"soleus": {"active": False, "veto": "", "quality": "ok"}},
    "trains": 3,
    "pulses": 75,
    "requests": 4,
    "refusals": 1,
    "dose": {"session": {"on_time_s": 90.0, "pulses": 75, "charge_mc": 0.5}},
    "latency": {"ack": {"n": 3, "p99_ms": 1.5, "max_ms": 2.0}},
    "last_trigger": {"sum_ms": 3.25},
    "recording_bytes": 2_000_000,
    "disk_free_bytes": 5_000_000_000,
    "up_s": 61.0,
    "late": "",
    "records_lost": 0,
}
GUARD = {"state": "ARMED", "automatic": True, "reason": "x", "dose": {"session": {"max_on_ns": 900 * 10**9}}, "stop_confirmed": True}


class Terminal:
    """A screen of `columns` x `rows` that knows of ANSI what `watch` may use, and fails at anything else."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.cells = [[" "] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.colours = set()
        self.held = ""  # the beginning of a code whose end has not come yet

    def take(self, text):
        text, self.held = self.held + text, ""
        while text:
            if re.fullmatch(r"\x1b(\[[\d;]*)?", text):
                self.held = text
                return
            if code := re.match(r"\x1b\[([\d;]*)([HJKm])", text):
                self.obey(*code.groups())
                text = text[code.end() :]
                continue
            char, text = text[0], text[1:]
            if char == "\r":
                self.column = 0
            elif char == "\n":
                self.row += 1
                assert self.row < self.rows, "it scrolled"
            else:
                assert char.isprintable(), repr(char)
                assert self.column < self.columns, "a line wrapped"
                self.cells[self.row][self.column] = char
                self.column += 1

    def obey(self, numbers, what):
        if what == "H":
            self.row = self.column = 0
        elif what == "m":
            self.colours.add(numbers)
        else:
            self.cells[self.row][self.column :] = [" "] * (self.columns - self.column)
            if what == "J":
                below = range(self.row + 1, self.rows) if numbers != "2" else range(self.rows)
                for row in below:
                    self.cells[row] = [" "] * self.columns

    def lines(self):
        return ["".join(row).rstrip() for row in self.cells]


def drawn(status=STATUS, guard=GUARD, columns=100, rows=30, colour=True, n=1):
    terminal = Terminal(columns, rows)
    beds = [watch.Bed(f"ward-{i}", status, guard) for i in range(n)]
    for _ in range(2):  # what stood there before must be gone
        terminal.take(watch.screen(beds, colour, columns, rows))
    return terminal


def first_words(terminal):
    return next((line for line in terminal.lines() if line), "").split()


def test_the_state_comes_first_then_alarms_then_the_rest():
    terminal = drawn()
    assert first_words(terminal)[:2] == ["ARMED", "automatic"]
    text = "\n".join(terminal.lines())
    for words in (
        "armed by Ada",
        "90.0 s (10 % of what is allowed)",
        "75 pulses",
        "3.25 ms",
        "ack 1.50 / 2.00 ms (p99 / max)",
        "2.0 MB",
        "soleus at rest",
    ):
        assert words in text
    assert not re.search("HIGH|MEDIUM|LOW", text)
    worse = drawn(STATUS | {"state": "FAULT", "automatic": False, "late": "late by 80 ms", "reason": "the box is gone"})
    lines = [line.strip() for line in worse.lines() if line]
    assert lines[0].startswith("FAULT")
    assert [line.split()[0] for line in lines[1:3]] == ["HIGH", "LOW"]
    assert watch.STATE_COLOURS["FAULT"] in worse.colours - terminal.colours


def test_who_may_stimulate_stands_beside_the_state_and_no_data_is_no_rest():
    deaf = {"automatic": False, "data_ok": False, "rules": {}, "requests_by": {"soleus": 0}, "loop": "starting"}
    text = "\n".join(drawn(STATUS | deaf).lines())
    assert text.split()[:3] == ["ARMED", "button", "only"]
    assert "MEDIUM the loop is still starting" in text
    for by, words in (("trigger", "by a person"), ("request", "automatic")):
        assert f"STIMULATING {words}" in "\n".join(drawn(STATUS | {"state": "STIMULATING", "train_by": by}).lines())
    text = "\n".join(drawn(STATUS | {"data_ok": False, "reason": "emg: train peroneal"}).lines())
    assert "soleus unknown" in text and "at rest" not in text
    assert "a spasm in the EMG: train peroneal" in text
    manual = "\n".join(drawn().lines()), "\n".join(drawn(STATUS | {"last_trigger": {"pulled_ms": 1.0, "sum_ms": 3.25}}).lines())
    assert "press to pulse 3.25 ms" in manual[0] and "sample to pulse 3.25 ms" in manual[1]


def test_a_fault_claims_that_output_is_off_only_where_the_stop_was_confirmed():
    fault = STATUS | {"state": "FAULT", "reason": "x"}
    for confirmed in (True, None, False):
        words = {a.name: a.words for a in alarms(fault, GUARD | {"stop_confirmed": confirmed}, asked=True)}
        assert ("output is off" in words["fault"]) == (confirmed is True)
        last = words["stop_unconfirmed" if confirmed is False else "fault"]
        assert last.endswith("a clinician clears it, with a reason")


def test_a_bed_without_rules_needs_no_data():
    manual = STATUS | {"rules": {}, "requests_by": {}, "data_ok": False, "loop": "not wanted: no rules, the button alone"}
    assert alarms(manual) == []


def test_an_old_report_is_unknown_and_shows_no_figure():
    for guard in (None, GUARD):
        text = "\n".join(drawn(None, guard).lines())
        assert text.split()[0] == "unknown"
        assert "HIGH   nothing is known of the bed" in text
        assert "pulses" not in text
        assert ("guard does not answer" in text) == (guard is None)
        assert ("guard says" in text) == (guard is not None)


@pytest.mark.parametrize(("columns", "rows"), [(200, 60), (80, 24), (40, 12), (12, 5), (1, 2)])
def test_it_fits_whatever_the_window_and_whatever_the_words(columns, rows):
    for words in ("x" * 500, "\x1b[2J\r\n\x07evil\x9b1A", "é" * 99):
        drawn(STATUS | {"reason": words, "late": words, "state": "FAULT"}, columns=columns, rows=rows, n=3)
    drawn(None, None, columns, rows, n=9)


def test_the_bed_that_needs_somebody_is_on_top():
    states = {"a": STATUS, "b": STATUS | {"late": "late"}, "c": STATUS | {"state": "LOCKOUT"}, "d": STATUS, "e": None}
    terminal = Terminal(100, 99)
    terminal.take(watch.screen([watch.Bed(name, status, GUARD) for name, status in states.items()], True, 100, 99))
    assert re.findall(r"bed (\w)\b", "\n".join(terminal.lines())) == ["e", "c", "b", "a", "d"]


def test_a_narrow_window_cuts_no_alarm_off():
    reason = " ".join(f"word{i}" for i in range(30))
    lines = drawn(STATUS | {"state": "FAULT", "reason": reason}, columns=40).lines()
    end = next(i for i, line in enumerate(lines) if line.startswith("  why"))
    assert f"fault, output is off: {reason}" in " ".join(" ".join(lines[:end]).split())


def test_without_colour_there_is_none():
    terminal = drawn(colour=False)
    assert not terminal.colours
    assert "ARMED automatic" in terminal.lines()[0]


def test_it_starts_without_anything_heavy():
    code = "import controller.__main__ as m; from controller import watch; watch.look({'no-bed'}); m.parser()"
    assert not modules_after(code) & {"numba", "scipy", "pylsl", "numpy", "pydantic", "pyxdf", "h5py", "starlette", "asyncio", "curses"}


@pytest.fixture
def rig(tmp_path):
    rig = GuardRig(tmp_path)
    yield rig
    rig.close()


def test_on_a_terminal_it_follows_a_bed_and_ends_by_ctrl_c_with_0(rig):
    path = Path(os.environ["CALMLOOP_RUNTIME_DIR"]) / f"{rig.bed}.status.json"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    command = [sys.executable, "-m", "controller", "status", "--watch", "--bed", rig.bed]
    env = os.environ | {"TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)
    terminal = Terminal(100, 30)

    def until(word, report):
        end = time.monotonic() + 5.0
        while first_words(terminal)[:1] != [word]:
            assert time.monotonic() < end, terminal.lines()
            if report:
                path.write_text(json.dumps(STATUS | {"state": report, "automatic": False, "written_ns": time.monotonic_ns()}))
            if select.select([ours], [], [], 0.1)[0]:
                terminal.take(os.read(ours, 65536).decode())

    try:
        until("unknown", None)
        until("ARMED", "ARMED")
        until("FAULT", "FAULT")
        said = time.monotonic()
        until("unknown", None)
        assert time.monotonic() - said < 3.0
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(5) == 0
        left = b""
        try:
            left = os.read(ours, 65536)
        except OSError:
            pass  # nothing more
        assert b"interrupted" not in left
        assert b"Traceback" not in left
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        path.unlink(missing_ok=True)


def test_into_a_pipe_it_writes_plain_lines_and_json(rig):
    for more in ((), ("--json",)):
        command = [sys.executable, "-m", "controller", "status", "--watch", "--bed", rig.bed, *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=5)
        assert process.returncode == 0
        assert "\x1b" not in first + rest
        if more:
            assert json.loads(first)[rig.bed]["guard"]["state"] == "IDLE"
        else:
            assert "unknown" in first
