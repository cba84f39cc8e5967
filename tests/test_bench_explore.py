"""A slice of `bench.explore`: the supervisor keeps the witness's rules in the first states of every model, planted faults are found."""

import json

import pytest

from bench import explore
from controller import supervisor
from controller.supervisor import SafetyState


@pytest.mark.safety("B2", "B1", "B5", "B6", "A9", "C2", "E4", "E5")
@pytest.mark.parametrize("model", explore.MODELS, ids=lambda model: model.name)
def test_nothing_is_broken_in_the_first_states_of_each_model(model):
    found = explore.explore(model, 1_500)
    assert found.violation == "", found.path
    assert found.states >= 1_500
    assert found.transitions > found.states
    assert found.checked > 0
    assert {SafetyState.IDLE, SafetyState.ARMED} & set(found.reached)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dose window a tick short", "of stimulation in 400 ms"),
        ("train goes on without the loop", "without a sign of life"),
        ("no rest between events", "two pulses at once"),
        ("faults can always be cleared", "was cleared"),
        ("pulses without answers", "before the last was answered"),
    ],
)
def test_a_planted_fault_is_found_with_the_way_there(name, words):
    found = explore.planted(name, 20_000)
    assert words in found.violation
    assert 1 <= len(found.path) <= 20
    # the shipped supervisor goes the same way and breaks nothing
    model = next(m for m in explore.MODELS if m.name == explore.PLANTED[name][0])
    with explore.scaled(**model.constants):
        s, w, now = explore.begin(model, supervisor.Supervisor)
        for step in found.path:
            s, w, now, wrong = explore.move(s, w, now, step, model)
            assert wrong == ""


def test_the_timers_are_put_back():
    before = {name: getattr(supervisor, name) for name in explore.SCALED}
    with explore.scaled(MINUTE=5):
        assert supervisor.MINUTE == 5
    assert {name: getattr(supervisor, name) for name in explore.SCALED} == before
    assert supervisor.MINUTE == 60 * 10**9


def test_the_command_writes_what_it_found_and_a_planted_fault_fails(tmp_path, capsys):
    path = tmp_path / "explore.json"
    assert explore.main(["--model", "people", "--most", "500", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert (result["violations"], result["incomplete"], result["states"] >= 500) == (0, 1, True)
    assert explore.main(["--model", "people", "--most", "500", "--gate"]) == 1  # too few states for the promise
    assert explore.main(["--plant", "pulses without answers", "--quick"]) == 1
    assert "VIOLATION: a pulse before the last was answered" in capsys.readouterr().out
