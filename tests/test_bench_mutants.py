"""The faults that are put into supervisor and limits: that they are taken back, what is made of their fates, and a sample for real."""

import ast
import json
import subprocess
import sys

import pytest

from bench import mutants
from bench.mutants import Mutant, Place, difference, faults, judged, numbered

SOURCE = '''
"""What it is."""
from somewhere import Thing
LIMIT_NS: int = 20 * 3
ROWS = {"a": "stop tell"}


@wrapped(frozen=True)
class Box(Thing):
    """A box."""

    size: int
    full: bool = False

    @property
    def half(self) -> int:
        return self.size // 2

    def may(self, n: int) -> bool:
        """Whether it may."""
        if n > 3 and self.full or not n:
            raise ValueError(f"{n} is {self.half + 1}")
        self.size += 1
        return True
'''


def test_the_faults_of_a_module_and_that_each_is_taken_back():
    tree = ast.parse(SOURCE)
    before = ast.dump(tree)
    made = list(faults(tree, Place("m", tree)))
    assert ast.dump(tree) == before
    assert made == [
        Mutant("m.LIMIT_NS", "LIMIT_NS: int = 20 * 3", "LIMIT_NS: int = 19 * 3"),
        Mutant("m.LIMIT_NS", "LIMIT_NS: int = 20 * 3", "LIMIT_NS: int = 21 * 3"),
        Mutant("m.LIMIT_NS", "LIMIT_NS: int = 20 * 3", "LIMIT_NS: int = 20 // 3"),
        Mutant("m.LIMIT_NS", "LIMIT_NS: int = 20 * 3", "LIMIT_NS: int = 20 * 2"),
        Mutant("m.LIMIT_NS", "LIMIT_NS: int = 20 * 3", "LIMIT_NS: int = 20 * 4"),
        Mutant("m.ROWS", "ROWS = {'a': 'stop tell'}", "ROWS = {'tell': 'stop tell'}"),
        Mutant("m.ROWS", "ROWS = {'a': 'stop tell'}", "ROWS = {'a': 'tell tell'}"),
        Mutant("m.Box.full", "full: bool = False", "full: bool = True"),
        Mutant("m.Box.half", "return self.size // 2", "pass"),
        Mutant("m.Box.half", "return self.size // 2", "return self.size * 2"),
        Mutant("m.Box.half", "return self.size // 2", "return self.size // 1"),
        Mutant("m.Box.half", "return self.size // 2", "return self.size // 3"),
        Mutant("m.Box.may", "if n > 3 and self.full or not n:", "if True:"),
        Mutant("m.Box.may", "if n > 3 and self.full or not n:", "if False:"),
        Mutant("m.Box.may", "if n > 3 and self.full or not n:", "if not n:"),
        Mutant("m.Box.may", "if n > 3 and self.full or not n:", "if n > 3 and self.full:"),
        Mutant("m.Box.may", "if n > 3 and self.full or not n:", "if self.full or not n:"),
        Mutant("m.Box.may", "if n > 3 and self.full or not n:", "if n > 3 or not n:"),
        Mutant("m.Box.may", "if n > 3 and self.full or not n:", "if n > 2 and self.full or not n:"),
        Mutant("m.Box.may", "raise ValueError(f'{n} is {self.half + 1}')", "pass"),
        Mutant("m.Box.may", "raise ValueError(f'{n} is {self.half + 1}')", "raise ValueError(f'{n} is {self.half + 0}')"),
        Mutant("m.Box.may", "self.size += 1", "pass"),
        Mutant("m.Box.may", "self.size += 1", "self.size += 0"),
        Mutant("m.Box.may", "return True", "pass"),
        Mutant("m.Box", "@wrapped(frozen=True)", "@wrapped(frozen=False)"),
    ]


def test_faults_that_read_alike_are_numbered():
    one = Mutant("m.f", "return", "pass")
    assert numbered([one, one._replace(now="x"), one]) == [one, one._replace(now="x"), one._replace(nth=2)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["a = 1", "b = 2"], ["a = 1", "b = 3"], ("b = 2", "b = 3")),
        (["f(", "    a,  # why", "    b)"], ["f(", "    b)"], ("a,", "")),
        (["x"], ["x"], ("", "")),
        (["x", "x"], ["x"], ("x", "")),
    ],
)
def test_what_differs(before, after, expected):
    assert difference(before, after) == expected


def test_a_survivor_is_listed_and_a_listed_one_survives(tmp_path, monkeypatch):
    path = tmp_path / "equivalent.toml"
    path.write_text(
        '[[equivalent]]\nwhere = "m.f"\nwhy = "no state differs"\nmutants = [["a", "b"], ["a", "c", 2]]\n'
        '[[equivalent]]\nwhere = "m.g"\nwhy = "x"\nmutants = [["a", "b"]]\n'
    )
    monkeypatch.setattr(mutants, "EQUIVALENT", path)
    first, second, third = Mutant("m.f", "a", "b"), Mutant("m.f", "a", "c", 2), Mutant("m.f", "a", "c")
    assert mutants.listed() == {first: "no state differs", second: "no state differs", Mutant("m.g", "a", "b"): "x"}
    fates = {first: "survived", second: "killed", third: "survived", Mutant("m.h", "", ""): "endless"}
    assert judged(fates, list(fates)) == {
        "unlisted": [third],
        "listed_but_killed": [second],
        "listed_but_gone": [Mutant("m.g", "a", "b")],
    }


def test_what_is_listed_as_equivalent_has_its_reason():
    assert all(len(why) > 20 for why in mutants.listed().values())


def test_a_sample_of_all_faults_is_noticed(tmp_path):
    report = tmp_path / "mutants.json"
    command = [sys.executable, "-m", "bench.mutants", "--quick", "--gate", "--json", str(report)]
    done = subprocess.run(command, cwd=mutants.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(report.read_text())
    assert result["run"] == 2 * mutants.QUICK
    assert result["made"] > 3000
