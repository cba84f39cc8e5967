"""What is asked of the system: every item answers, a refusal is words and not an error. Tried in children, which keep it to themselves."""

import json
import subprocess
import sys

import pytest

ITEMS = {"scheduler", "memory", "stack", "malloc", "thread stacks", "timer slack", "processors", "cpus"}


def child(code):
    answer = subprocess.run([sys.executable, "-c", f"import json\n{code}"], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


@pytest.mark.safety("F3")
def test_every_item_is_got_or_refused():
    got = child("from controller import realtime\nprint(json.dumps([realtime.ask(70), realtime.freeze()]))")
    assert set(got[0]) == ITEMS
    assert set(got[1]) == {"garbage collector"}
    for answer in (got[0] | got[1]).values():
        assert answer.startswith(("got ", "refused: ")), answer


def test_priority_0_asks_for_nothing_but_the_cpus():
    code = """
import os
from controller import realtime
cpu = min(os.sched_getaffinity(0))
print(json.dumps([realtime.ask(0), realtime.ask(0, [cpu]), cpu, sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0)]))"""
    free, pinned, cpu, now, scheduler = child(code)
    assert set(free) == set(pinned) == {"cpus"}
    assert pinned["cpus"] == f"got [{cpu}]"
    assert (now, scheduler) == ([cpu], 0)


def test_the_stack_is_there_before_it_is_wanted():
    code = """
from controller import realtime
def stack_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmStk"))
before = stack_kib()
realtime._touch_stack()
print(json.dumps([before, stack_kib(), realtime.STACK_BYTES >> 10]))"""
    before, after, wanted = child(code)
    assert after >= wanted
    assert after > before


@pytest.mark.safety("F3")
def test_what_the_system_refuses_is_said_and_nothing_is_raised():
    code = """
import ctypes, os
from controller import realtime
class Libc:  # one that has nothing, as musl has no mallopt
    def __getattr__(self, name):
        raise AttributeError(f"undefined symbol: {name}")
    def mlockall(self, flags):
        ctypes.set_errno(1)
        return -1
    def getpid(self, block):
        return 1
    def prctl(self, *args):
        ctypes.set_errno(1)
        return -1
def no(*args):
    raise PermissionError(1, "Operation not permitted")
realtime._libc = Libc
os.sched_setscheduler = no
print(json.dumps([realtime.ask(70, [4000]), realtime.refusals({"a": "got b", "c": "refused: d"})]))"""
    got, refusals = child(code)
    assert got["scheduler"] == "refused: SCHED_FIFO 70: Operation not permitted"
    assert got["malloc"] == "refused: no mallopt in this C library"
    assert got["memory"] == "refused: mlockall: Operation not permitted"
    assert got["cpus"].startswith("refused: [4000]")
    assert got["thread stacks"].startswith("refused: Python's threads alone")
    assert got["timer slack"].startswith("refused: prctl")
    assert got["stack"].startswith("got")
    assert refusals == {"c": "refused: d"}
