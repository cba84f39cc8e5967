"""The latency bench: what it makes of figures, and one small run of it with the real daemon. No figure of this machine is judged."""

import json
import math
import random
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bench import judge, latency, picture
from bench.contenders import CONTENDERS
from controller import recording
from tests.rig import ROOT


def test_each_event_has_the_first_answer_before_the_next():
    t0 = [1_000_000, 2_000_000, 3_000_000, 4_000_000]
    stamps = [500_000, 1_100_000, 1_200_000, 3_050_500, 4_999_000]
    got = judge.match(t0, stamps)
    assert got.latency_us == [100.0, None, 50.5, 999.0]
    assert got.misses == 1
    assert got.extras == 2  # one before everything, one second answer


def test_the_first_events_do_not_count_and_neither_do_their_answers():
    got = judge.match([1000, 2000, 3000], [1500, 1600, 2500, 3500], drop=2)
    assert got == judge.Matched([0.5], 0)
    assert judge.match([], []) == judge.Matched([], 0)
    assert judge.match([1000], []).misses == 1


def test_answers_that_come_an_interval_too_late_are_not_taken_for_quick_ones():
    t0 = np.arange(1, 101) * 25_000_000
    for lag_ms, behind in ((0.3, False), (3.0, False), (12.0, True), (60.0, True)):
        stamps = t0 + round(lag_ms * 1e6)
        assert judge.behind(judge.match(t0, stamps), t0, stamps) is behind, lag_ms
    assert judge.behind(judge.match(t0, []), t0, [])
    assert not judge.behind(judge.match([], []), [], [])


def test_a_missed_event_is_later_than_any_other():
    got = judge.figures([10.0] * 98 + [None, None])
    assert got["p50"] == got["p95"] == 10.0
    assert got["p99"] == got["max"] == math.inf
    assert math.isnan(judge.figures([])["p50"])
    assert judge.figures(range(1, 101))["p50"] == 51


def test_ratios_are_paired_in_their_round():
    slow_minute = [[200.0] * 9, [2000.0] * 9, [220.0] * 9]
    reference = [[100.0] * 9, [1000.0] * 9, [100.0] * 9]
    assert judge.ratio("p50", slow_minute, reference) == 2.0
    assert judge.ratio("p99", [[1.0, 8.0]], [[2.0, 2.0]]) == 4.0


def cell(contender, chunk, number, latency_us, load=""):
    return {"contender": contender, "chunk": chunk, "round": number, "load": load, "latency_us": latency_us}


def gate(cells, **row):
    (judged,) = judge.judge([{"of": "calmloop", "against": "all C", "metric": "p50", "chunk": 1, "limit": 1.5} | row], cells)
    return judged


def test_a_promise_is_met_missed_or_not_measured():
    cells = [cell(name, 1, i, [us] * 50) for i in range(5) for name, us in (("calmloop", 140.0), ("all C", 100.0))]
    assert gate(cells).verdict == "met"
    assert gate(cells).value == 1.4
    assert gate(cells, limit=1.3).verdict == "missed"
    assert gate(cells, chunk=10).verdict == "not measured"
    skipped = [{"contender": "ezmsg", "chunk": 1, "round": 0, "load": "", "skipped": "no environment for ezmsg"}]
    judged = gate(cells + skipped, against="ezmsg")
    assert judged.verdict == "not measured"
    assert "no environment for ezmsg" in judged.words
    assert gate(cells, load="cpu").why == "calmloop under cpu was not run"


def test_tails_need_many_events_and_misses_never_pass():
    few = [cell(name, 1, 0, [100.0] * 1999) for name in ("calmloop", "all C")]
    assert gate(few, metric="p99").verdict == "not measured"
    many = [cell(name, 1, i, [100.0] * 1000) for i in range(2) for name in ("calmloop", "all C")]
    assert gate(many, metric="p99").verdict == "met"
    lossy = [cell("calmloop", 1, 0, [100.0] * 900 + [None] * 1100), cell("all C", 1, 0, [100.0] * 2000)]
    assert gate(lossy).verdict == gate(lossy, metric="p99").verdict == "missed"
    broken = [cell("calmloop", 1, 0, [100.0] * 2000), cell("all C", 1, 0, [None] * 2000)]  # a yardstick that does not work
    assert gate(broken).verdict == gate(broken, metric="p99").verdict == "not measured"
    mostly = [*lossy[1:], cell("all C", 1, 1, [100.0] * 2000), cell("all C", 1, 2, [None] * 2000)]
    mostly += [cell("calmloop", 1, i, [100.0] * 2000) for i in range(3)]
    assert gate(mostly).value == 1.0


def test_the_budget_names_contenders_and_metrics_that_exist():
    rows = judge.budget()
    assert {row["chunk"] for row in rows} == {1, 10}
    for row in rows:
        assert {row["of"], row["against"]} <= set(CONTENDERS)
        assert row["metric"] in judge.PERCENTILES
        assert row.get("load", "cpu") in latency.LOADS
        assert row["limit"] > 0


def test_the_picture_is_well_formed_whatever_is_missing():
    rng = np.random.default_rng(1)
    everyone = [cell(name, chunk, 0, [*rng.lognormal(5, 0.5, 500), None]) for name in CONTENDERS for chunk in (1, 10)]
    place = {"utc": "2026-01-01", "cpu": "<&>", "cpus": 2}
    for cells in (everyone, everyone[:1], [cell("timer", 0, 0, [30.0] * 5)], []):
        drawn = ET.fromstring(picture.draw({"cells": cells, "environment": place, "rounds": 5}))
        paths = drawn.findall("{http://www.w3.org/2000/svg}path")
        assert len(paths) == len({(c["contender"], c["chunk"]) for c in cells if c["chunk"]})


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "controller", "bench", "latency", "--only", "calmloop,loop", "--chunks", "10"]
    command += ["--rounds", "1", "--events", "40", "--seed", "3", "--json", folder / "out.json", "--keep", folder / "kept"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    return json.loads((folder / "out.json").read_text()), answer.stdout, folder


def test_a_run_gives_everything_that_a_reader_needs(small_run):
    result, printed, folder = small_run
    assert result["seed"] == 3
    assert {"cpu", "kernel", "python", "packages", "load_average", "commit", "liblsl"} <= set(result["environment"])
    cells = {c["contender"]: c for c in result["cells"]}
    assert set(cells) == {"calmloop", "loop", "timer", "pipe"}
    for name in ("calmloop", "loop"):
        assert len(cells[name]["latency_us"]) == 40
        assert cells[name]["misses"] < 20, cells[name]
        assert cells[name]["scheduling"][name if name == "loop" else "guard"]["threads"]
    assert {row["contender"] for row in result["figures_us"]} == set(cells)
    assert all(goal["verdict"] in ("met", "missed", "not measured") for goal in result["goals"])
    assert "every check of guard is on" in printed
    ET.fromstring((folder / "out.svg").read_text())


def test_every_answer_was_a_pulse_that_guard_let_through_and_the_session_holds(small_run):
    result, _, folder = small_run
    (row,) = [c for c in result["cells"] if c["contender"] == "calmloop"]
    session = recording.load(folder / "kept" / "sessions" / row["facts"]["session"].rsplit("/", 1)[-1])
    guard = list(session.guard())
    pulses = [r for r in guard if r.get("written_ns")]
    assert len(pulses) == row["facts"]["guard_pulses"] >= row["answers"] >= 40 - row["misses"]
    assert row["facts"]["records_lost"] == 0
    assert len(session.streams["EMG"].values) > 1000
    view = guard[0]["view"]
    assert view["max_auto_events_1h"] == 60  # the limits are the prescription's own; the clock is faster
    assert (folder / "kept" / "sessions" / session.folder.name / "audit.sqlite").stat().st_size > 0


def test_what_is_compared_closely_is_measured_next_to_each_other_in_an_order_of_chance():
    from bench import latency

    cells = latency.plan(latency.FULL, (1, 10), siege=True)
    orders = [latency.shuffled(cells, random.Random(seed)) for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    for order in orders:
        assert sorted(order) == sorted(cells)
        for chunk in (1, 10):
            at = [order.index(latency.Cell(name, chunk)) for name in latency.QUICK]
            assert max(at) - min(at) == len(latency.QUICK) - 1
    ours = [latency.Cell(name, 1) for name in latency.QUICK]
    assert {next(cell for cell in order if cell in ours) for order in orders} == set(ours)  # each comes first now and then
