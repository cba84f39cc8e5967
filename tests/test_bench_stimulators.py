"""The bench of `trigger()`: the same bytes arrive by every way, every sample is kept, what is missing is named. No figure is judged."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from bench import boxes, stimulators
from drivers.stimulators import STIMULATORS
from tests.rig import ROOT


@pytest.mark.parametrize("name", STIMULATORS)
def test_every_way_brings_the_same_bytes(name):
    with ExitStack() as stack:
        bench = stimulators.Bench(name, 0, stack)
        assert {"trigger", "checked", "os.write", "pipe", "pyserial", "pyserial no wait"} <= bench.ways.keys()
        assert ("science-mode-4" in bench.ways) == (name == "p24")
        assert len(bench.frames) == bench.device._n_numbers
        for way in bench.ways:
            call_ns, read_ns = bench.block(way, 3)  # raises where other bytes arrive
            assert len(call_ns) == len(read_ns) == 3
            assert min(call_ns) > 0 and min(read_ns) > 0


def test_other_bytes_than_are_due_are_an_error():
    with ExitStack() as stack:
        bench = stimulators.Bench("rehamove3", 0, stack)
        bench.peer.expect(bench.frames[:2])
        os.write(bench.device.fileno(), bench.frames[0])
        assert bench.peer.stamp_ns() > 0
        os.write(bench.device.fileno(), bench.frames[0])
        with pytest.raises(stimulators.PeerError, match="other bytes"):
            bench.peer.stamp_ns()


def test_a_driver_that_writes_twice_for_a_pulse_is_not_measured(monkeypatch):
    from drivers.stimulators.sciencemode34 import ScienceMode34

    trigger = ScienceMode34.trigger

    def twice(self, train, current_ua):
        trigger(self, train, current_ua)
        return trigger(self, train, current_ua)

    with ExitStack() as stack:
        bench = stimulators.Bench("rehamove3", 0, stack)
        monkeypatch.setattr(ScienceMode34, "trigger", twice)
        with pytest.raises(stimulators.PeerError, match="64 pulses were 128 writes"):
            bench._frames()


def test_goals_are_judged_by_the_worst_driver_and_what_was_not_measured_is_not_met(monkeypatch, tmp_path):
    def samples(us):
        return {"call_us": [[us] * 3] * 2, "read_us": [[us] * 3] * 2}

    monkeypatch.setattr(stimulators, "BUDGET", tmp_path / "budget.toml")
    row = '[[stimulators]]\nof = "trigger"\nagainst = "{}"\nwhat = "call_us"\nmetric = "p50"\nlimit = 1.5\n'
    stimulators.BUDGET.write_text(row.format("os.write") + row.format("nobody"))
    drivers = {
        "good": {"samples": {"trigger": samples(1.0), "os.write": samples(1.0)}},
        "slow": {"samples": {"trigger": samples(2.0), "os.write": samples(1.0)}},
    }
    worst, unmeasured = stimulators.judged(drivers)
    assert (worst["value"], worst["met"], "slow" in worst["goal"]) == (2.0, False, True)
    assert (unmeasured["value"], unmeasured["met"]) == (None, False)
    assert stimulators.judged({"good": drivers["good"]})[0]["met"]


def test_the_command_keeps_every_sample(tmp_path):
    path = tmp_path / "stimulators.json"
    command = [sys.executable, "-m", "bench.stimulators", "--rounds", "2", "--only", "p24", "--ordinary", "--json", str(path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    result = json.loads(path.read_text())
    assert result["seed"] == 1 and result["environment"]["kernel"]
    for way, got in result["drivers"]["p24"]["samples"].items():
        n = stimulators.AWAITED_BLOCK if way == "science-mode-4" else stimulators.BLOCK
        for rounds in got.values():
            assert [len(one) for one in rounds] == [n, n]
            assert min(map(min, rounds)) > 0
    assert all(goal["value"] is not None for goal in result["goals"])
    assert "science-mode-4" in answer.stdout


def test_a_driver_whose_module_is_not_there_is_named_and_misses_the_gate(monkeypatch, capsys):
    monkeypatch.setitem(STIMULATORS, "nobody", ("drivers.stimulators.nobody", "Nobody"))
    assert boxes.missing("nobody")[0] == "drivers.stimulators.nobody"
    monkeypatch.setattr(stimulators, "measure", lambda *_: {"n_bytes": 1, "samples": {}})
    assert stimulators.main(["--ordinary", "--gate"]) == 1
    assert "missed: nobody: not there: drivers.stimulators.nobody" in capsys.readouterr().err
