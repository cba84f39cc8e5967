"""The bench of faults: what its judge finds in logs made by hand, and one small campaign on real beds. No timing is judged here."""

import json
import subprocess
import sys

import pytest

from bench import faults, pulses
from bench.pulses import MS, S
from tests.rig import ROOT

LIMITS = pulses.Limits(20_000, 500, 10_000, 25.0, 20 * MS, 500 * MS, 120 * MS, 1 * S, 10 * S, 20 * S, 75 * S, 30)


def pulse(at_ns, **changes):
    return {"pulse_ns": at_ns, "current_ua": 20_000, "phase_width_us": 500, "charge_nc": 10_000.0, "balanced": True, **changes}


def slots(n, start_ns=0):
    return [start_ns + i * 20 * MS for i in range(n)]


def names(wrong):
    return [one.what for one in wrong]


def test_a_prescribed_train_is_right():
    found = pulses.trains(slots(25), LIMITS)
    assert [len(train.pulse_ns) for train in found] == [25]
    assert pulses.wrong_pulses([pulse(at) for at in slots(25)], LIMITS) == []
    assert pulses.wrong_trains(found, LIMITS) == pulses.wrong_dose(found, LIMITS) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"current_ua": 20_500}, "current"),
        ({"current_ua": 0}, "current"),
        ({"phase_width_us": 501}, "width"),
        ({"phase_width_us": 19}, "width"),
        ({"charge_nc": 10_000.5}, "charge"),
        ({"balanced": False}, "balance"),
    ],
)
def test_each_pulse_outside_a_limit_is_named(changes, name):
    assert names(pulses.wrong_pulses([pulse(0), pulse(20 * MS, **changes)], LIMITS)) == [name]


def test_pulses_that_follow_too_soon_or_heat_too_much_are_named():
    assert names(pulses.wrong_pulses([pulse(0), pulse(10 * MS - 1)], LIMITS)) == ["spacing"]
    assert pulses.wrong_pulses([pulse(0), pulse(10 * MS)], LIMITS) == []
    small = pulses.Limits(60_000, 500, 30_000, 5.0, 20 * MS, 500 * MS, 120 * MS, 1 * S, 10 * S, 20 * S, 75 * S, 30)
    assert "rms density" in names(pulses.wrong_pulses([pulse(0), pulse(20 * MS, current_ua=60_000, charge_nc=30_000.0)], small))
    assert "energy" in names(pulses.wrong_pulses([pulse(0, current_ua=900_000)], LIMITS))


def test_a_train_that_goes_on_too_long_or_makes_up_for_what_it_missed_is_named():
    assert names(pulses.wrong_trains(pulses.trains(slots(26), LIMITS), LIMITS)) == ["train length"]
    assert pulses.wrong_trains(pulses.trains([*slots(24), 560 * MS], LIMITS), LIMITS) == []  # a box that was slow with the last one
    assert names(pulses.wrong_trains(pulses.trains([*slots(24), 560 * MS, 600 * MS], LIMITS), LIMITS)) == ["train length"]
    stalled = slots(5) + slots(10, 300 * MS)  # the rest in its own slots
    assert pulses.wrong_trains(pulses.trains(stalled, LIMITS), LIMITS) == []
    assert len(pulses.trains(stalled, LIMITS)) == 1
    hurried = slots(5) + [300 * MS + i * 10 * MS for i in range(19)]
    assert names(pulses.wrong_trains(pulses.trains(hurried, LIMITS), LIMITS)) == ["made up"]
    one_late = [0, 39 * MS, *slots(10, 40 * MS)[1:]]  # a pulse at the end of its slot, the next in its own
    assert pulses.wrong_trains(pulses.trains(one_late, LIMITS), LIMITS) == []


def test_trains_without_a_cause_doubled_or_too_close_are_named():
    press, spasm = pulses.Asked(0, 300 * MS, True), pulses.Asked(10 * S, 13 * S, False)

    def wrong(*starts_ns):
        found = pulses.trains([at for start in starts_ns for at in slots(25, start)], LIMITS)
        return names(pulses.wrong_causes(found, [press, spasm], LIMITS))

    assert wrong(10 * MS) == []
    assert wrong(10 * MS, 5 * S) == ["unasked"]
    assert wrong(10 * S, 10 * S + 620 * MS, 10 * S + 1240 * MS) == []  # one spasm, with looks
    assert wrong(10 * S, 10 * S + 2 * S + 500 * MS) == []
    close = pulses.trains(slots(10) + slots(25, 310 * MS), LIMITS)
    assert names(pulses.wrong_causes(close, [pulses.Asked(0, 1 * S, True)], LIMITS)) == ["twice", "too soon"]


def test_too_much_in_a_window_is_named_also_across_its_edge():
    starts = [i * 1_500 * MS for i in range(31)]
    found = pulses.trains([at for start in starts for at in slots(25, start)], LIMITS)
    assert set(names(pulses.wrong_dose(found, LIMITS))) == {"events in 10 min"}
    assert pulses.wrong_dose(found[:30], LIMITS) == []
    less = pulses.Limits(20_000, 500, 10_000, 25.0, 20 * MS, 500 * MS, 120 * MS, 1 * S, 10 * S, 2 * S, 75 * S, 100)
    assert pulses.wrong_dose(found[:4], less) == []
    assert names(pulses.wrong_dose(found[:5], less)) == ["on-time in 60 s"]


def test_limits_come_from_the_settings_and_never_above_the_hard_ones(tmp_path):
    text = (ROOT / "config" / "demo.toml").read_text()
    path = tmp_path / "settings.toml"
    path.write_text(text)
    got = pulses.limits_of(path)
    assert (got.current_ua, got.phase_us, got.charge_nc, got.train_ns, got.refractory_ns) == (20_000, 500, 10_000, 500 * MS, 3 * S)
    path.write_text(text.replace("current_ma = 20.0", "current_ma = 99.0").replace("refractory_s = 3.0", "refractory_s = 0.1"))
    got = pulses.limits_of(path)
    assert (got.current_ua, got.refractory_ns) == (60_000, 1 * S)


def test_a_plan_has_every_process_in_every_phase_killed_and_stopped():
    cases = faults.plan(1, 5)
    signals = [case for case in cases if case.kind in ("kill", "stop", "stall")]
    assert len([case for case in signals if case.kind != "stall"]) >= 300
    tried = {(case.process, case.phase, case.kind) for case in signals}
    assert tried >= {(p, phase, kind) for p in faults.PROCESSES for phase in faults.PHASES for kind in ("kill", "stop")}
    assert {case.kind for case in cases if case.process == "device"} == set(faults.FAULTS)
    assert faults.plan(1, 5) == cases != faults.plan(2, 5)


def test_a_grant_that_is_given_twice_is_found():
    def row(kind, number, guard=1):
        return {"guard": guard, "written_ns": 1, "event": {"kind": kind, "number": number}}

    joined = {"guard": 1, "event": {"kind": "loop joined"}}
    assert faults.granted_twice([row("request", 1), row("request", 2), joined, row("request", 1)]) == 0
    assert faults.granted_twice([row("request", 1), row("request", 1)]) == 1
    assert faults.granted_twice([row("trigger", 7), joined, row("trigger", 7)]) == 1


@pytest.mark.safety("E1", "E2", "E4", "E5", "F1", "F2", "F3", "B1", "C7")
def test_after_faults_nothing_comes_that_should_not(tmp_path):
    path = tmp_path / "faults.json"
    command = [sys.executable, "-m", "bench.faults", "--quick", "--json", str(path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    result = json.loads(path.read_text())
    rows = result["cases"]
    assert {(row["process"], row["kind"]) for row in rows} == {(case.process, case.kind) for case in faults.quick()}
    goals = {goal["goal"]: goal for goal in result["goals"]}
    for name in (
        "pulses that came back without a person",
        "pulses after STOP was answered",
        "pulses of a stimulator that goes on",
        "pulses after a failure of the stimulator",
        "failures of the stimulator that did not end in FAULT",
        "trains begun while the daemon stood still",
        "doubled trains",
        "trains nobody asked for",
        "pulses outside limits",
        "dose outside limits",
        "trains hidden by the daemon's death",
        "frames the stimulator refused",
    ):
        assert goals[name]["met"], (name, answer.stdout)
