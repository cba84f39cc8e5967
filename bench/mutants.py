"""`python -m bench.mutants`: one small fault at a time in the supervisor and in the limits, and whether a test notices it.

mutmut puts them into the bodies of functions: other operators, numbers one higher, other words, arguments left out. What it does not do is
done here: statements left out, conditions forced or with an operand less, numbers one lower, and all that is no such body (constants,
defaults, the table, what is decorated). Judged by tests without chance alone: hypothesis may find more, but nothing may need it.

A mutant that no test can tell from the original stands in `equivalent_mutants.toml` with the reason, by hand.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import functools
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import CodeType

ROOT = Path(__file__).resolve().parents[1]
BUDGET = Path(__file__).with_name("budget.toml")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
MODULES = ("limits", "supervisor")
TESTS = [f"tests/test_{name}.py" for name in ("supervisor_edges", "arming", "button", "dose", "limits", "supervisor")]
PYTEST = ["-m", "not hypothesis", "-p", "no:cacheprovider", "--noconftest", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
QUICK = 30  # of each kind
CPU_S = 30  # of one mutant's tests; they take two, so whoever needs more runs for ever


class Mutant(NamedTuple):
    """A fault: the function (or "module.name" of what is none), its lines before and after, and which of those that read alike."""

    where: str
    was: str
    now: str
    nth: int = 1


def numbered(mutants: Sequence[Mutant]) -> list[Mutant]:
    """Those that read alike get numbers."""
    seen: Counter[Mutant] = Counter()
    result = []
    for mutant in mutants:
        seen[mutant] += 1
        result.append(mutant._replace(nth=seen[mutant]))
    return result


# --- what mutmut leaves out -------------------------------------------------------------------------------------------------------
_SIMPLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Raise, ast.Continue, ast.Break)
_OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.USub: ast.UAdd,
}


class Place(NamedTuple):
    """Where a node stands: its name and statement, in a function or not, in a body that mutmut turns itself or not."""

    where: str
    statement: ast.AST
    in_function: bool = False
    in_body: bool = False

    def entered(self, node: ast.AST) -> Place:
        """The place of what stands in this node."""
        if not isinstance(node, ast.stmt):
            return self
        place = self._replace(statement=node)
        match node:
            case _ if self.in_function:
                return place
            case ast.FunctionDef():
                return place._replace(where=f"{self.where}.{node.name}", in_function=True, in_body=not node.decorator_list)
            case ast.ClassDef():
                return place._replace(where=f"{self.where}.{node.name}")
            case ast.Assign(targets=[target]) | ast.AnnAssign(target=target):
                return place._replace(where=f"{self.where}.{ast.unparse(target)}")
        return place

    def text(self, node: ast.AST) -> str:
        """How it reads: the statement, of a compound one the head, of a long one only the node."""
        text = ast.unparse(self.statement)
        if getattr(self.statement, "body", None):
            return next(line for line in text.split("\n") if line[0] != "@" or isinstance(node, ast.Constant))
        return ast.unparse(node) if len(text) > 1000 else text


def slots(holder: ast.AST) -> Iterator[tuple[Callable[[ast.AST], None], ast.AST, str]]:
    """Each child that may be replaced, how, and the field that it stands in."""
    if isinstance(holder, ast.Import | ast.ImportFrom):
        return
    for name, value in ast.iter_fields(holder):
        if name in ("annotation", "returns", "ctx", "format_spec"):
            continue
        for i, node in enumerate(value if isinstance(value, list) else [value]):
            documentation = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            literal = isinstance(holder, ast.JoinedStr) and isinstance(node, ast.Constant)
            if isinstance(node, ast.AST) and not documentation and not literal:
                put = functools.partial(value.__setitem__, i) if isinstance(value, list) else functools.partial(setattr, holder, name)
                yield put, node, name


def others(node: ast.AST, field: str, place: Place) -> list[ast.AST]:
    """What may stand in the place of a node."""
    forced: list[ast.AST] = [ast.Constant(True), ast.Constant(False)] if field == "test" else []
    match node:
        case ast.AnnAssign(value=None):  # a field without a default
            return []
        case ast.Constant(value=bool()):
            return [] if place.in_body else [ast.Constant(not node.value)]
        case ast.Constant(value=int()):
            return [ast.Constant(node.value - 1), *([] if place.in_body else [ast.Constant(node.value + 1)])]
        case ast.Constant(value=str()) if not place.in_body:
            words = node.value.split() if field == "values" else [node.value]  # a row of the table has a word for each state
            return [ast.Constant(" ".join([*words[:i], "tell", *words[i + 1 :]])) for i in range(len(words)) if words[i] != "tell"]
        case ast.BoolOp(values=values):
            few = [[value for value in values if value is not left_out] for left_out in values]
            return forced + [rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest) for rest in few]
    if place.in_function and isinstance(node, _SIMPLE):
        return [ast.Pass()]
    if not place.in_body and type(node) in _OTHER:
        return [_OTHER[type(node)]()]
    return forced


def faults(holder: ast.AST, place: Place) -> Iterator[Mutant]:
    """Put one fault after the other into the tree; each stays until the next is asked for."""
    for put, node, field in slots(holder):
        inside = place.entered(node)
        for other in others(node, field, place):
            was = inside.text(node)
            put(ast.fix_missing_locations(ast.copy_location(other, node)))
            now = ast.unparse(other) if node is inside.statement else inside.text(other)
            yield Mutant(inside.where, was, now)
            put(node)
        yield from faults(node, inside)


def put(module: str, code: CodeType) -> None:
    """Make it the module that everybody imports from now on."""
    import controller

    spec = importlib.util.find_spec(f"controller.{module}")
    assert spec
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    setattr(controller, module, made)
    exec(code, made.__dict__)


def tests_of(module: str, code: CodeType) -> int:
    """Run the tests on it, in a child of our own and silently: exit code, or minus the signal that ended it."""
    import pytest

    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code_of_exit = 3
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        put(module, code)
        for some in (TESTS[:1], TESTS[1:]):  # most die of the first
            code_of_exit = int(pytest.main(["-x", "-q", "--tb=no", *PYTEST, *some]))
            if code_of_exit:
                break
    finally:
        os._exit(code_of_exit)


class Own:
    """The mutants that are made here; the folder is the working directory."""

    def __init__(self) -> None:
        import hypothesis  # noqa: F401  # once, not in each child

        self.trees = {module: ast.parse(Path("controller", f"{module}.py").read_text()) for module in MODULES}
        self.mutants = numbered([mutant for module, tree in self.trees.items() for mutant in faults(tree, Place(module, tree))])

    def run(self, chosen: set[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """The fate of each one chosen."""
        mutants = iter(self.mutants)
        for module, tree in self.trees.items():
            if tests_of(module, compile(tree, f"controller/{module}.py", "exec")):
                raise SystemExit("the tests fail without any fault")
            for _ in faults(tree, Place(module, tree)):
                mutant = next(mutants)
                if mutant in chosen:
                    code = tests_of(module, compile(tree, f"controller/{module}.py", "exec"))
                    yield mutant, "survived" if code == 0 else "endless" if code == -signal.SIGXCPU else "killed"


# --- what mutmut does -------------------------------------------------------------------------------------------------------------
SETTINGS = f"""
[tool.mutmut]
source_paths = ["controller"]
only_mutate = {[f"controller/{module}.py" for module in MODULES]}
also_copy = ["drivers", "config"]
pytest_add_cli_args = {PYTEST}
pytest_add_cli_args_test_selection = {TESTS}
"""
FATES = {0: "survived", 1: "killed", 3: "killed", 2: "killed", -24: "endless", 24: "endless", 36: "endless", 152: "endless", 255: "endless"}


class Mutmut:
    """mutmut in the working directory, one child at a time."""

    def __init__(self) -> None:
        self.call("controller.limits.x_tightest__mutmut_1")  # so that it makes all and remembers which tests concern which
        self.names: dict[Mutant, str] = {}
        mutants, names = [], []
        for module in MODULES:
            text = Path("mutants", "controller", f"{module}.py").read_text()
            lines = text.split("\n")
            spans = {f.name: lines[f.lineno : f.end_lineno] for f in ast.walk(ast.parse(text)) if isinstance(f, ast.FunctionDef)}
            for name in self.codes(module):
                short = name.rpartition(".")[2]
                function = short.partition("__mutmut_")[0]
                where = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
                mutants.append(Mutant(f"{module}.{where}", *difference(spans[function + "__mutmut_orig"], spans[short])))
                names.append(name)
        self.mutants = numbered(mutants)
        self.names = dict(zip(self.mutants, names, strict=True))

    @staticmethod
    def call(*names: str) -> None:
        """Run the tests on these, or on all."""
        command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "1", *names]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"mutmut failed:\n{done.stdout[-4000:]}")

    @staticmethod
    def codes(module: str) -> dict[str, int | None]:
        """Exit code of the tests on each of a module's mutants, by mutmut's name."""
        return dict(json.loads(Path("mutants", "controller", f"{module}.py.meta").read_text())["exit_code_by_key"])

    def run(self, chosen: set[Mutant]) -> Iterator[tuple[Mutant, str]]:
        """The fate of each one chosen."""
        if chosen:
            self.call(*(() if len(chosen) == len(self.mutants) else (self.names[mutant] for mutant in chosen)))
        codes = {name: code for module in MODULES for name, code in self.codes(module).items()}
        for mutant in chosen:
            code = codes[self.names[mutant]]
            yield mutant, "no test" if code in (None, 5, 33) else FATES.get(code, f"exit code {code}")


def difference(before: list[str], after: list[str]) -> tuple[str, str]:
    """The lines that differ, without indentation, comments and what is alike before and behind."""
    first = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    before, after = before[first:], after[first:]
    last = next((i for i, (a, b) in enumerate(zip(before[::-1], after[::-1], strict=False)) if a != b), min(len(before), len(after)))
    was, now = (" ".join(line.split("  # ")[0].strip() for line in lines[: len(lines) - last]) for lines in (before, after))
    return was, now


# --- the verdict ------------------------------------------------------------------------------------------------------------------
def listed() -> dict[Mutant, str]:
    """The equivalent mutants, each with its reason."""
    rows = tomllib.loads(EQUIVALENT.read_text())["equivalent"]
    result: dict[Mutant, str] = {}
    for row in rows:
        for was, now, *nth in row["mutants"]:
            result[Mutant(row["where"], was, now, *nth)] = row["why"]
    return result


def judged(fates: dict[Mutant, str], everything: Sequence[Mutant]) -> dict[str, list[Mutant]]:
    """What is wrong: who survived and is not listed, who is listed and was killed or exists no longer."""
    equivalent, known = listed(), set(everything)
    return {
        "unlisted": [mutant for mutant, fate in fates.items() if fate not in ("killed", "endless") and mutant not in equivalent],
        "listed_but_killed": [mutant for mutant, fate in fates.items() if fate in ("killed", "endless") and mutant in equivalent],
        "listed_but_gone": [mutant for mutant in equivalent if mutant not in known],
    }


def workshop(folder: Path) -> None:
    """A copy of all that is needed: nobody's edits disturb a run, and nothing is left behind."""
    for name in ("controller", "drivers", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for name in ("tests/__init__.py", "tests/bed.py", *TESTS):
        shutil.copy(ROOT / name, folder / name)
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + SETTINGS)


def campaign(sample: int, seed: int, only: str) -> dict[str, Any]:
    """Run all, or so many of each kind, whose place matches."""
    dice, began_s = random.Random(seed), time.monotonic()
    fates: dict[Mutant, str] = {}
    everything: list[Mutant] = []
    counts: dict[str, dict[str, int]] = {}
    for make in (Mutmut, Own):
        maker = make()
        chosen = [mutant for mutant in maker.mutants if fnmatch.fnmatch(mutant.where, only)]
        if sample and len(chosen) > sample:
            chosen = dice.sample(chosen, sample)
        got = dict(maker.run(set(chosen)))
        counts[make.__name__.lower()] = {"made": len(maker.mutants), **Counter(got.values())}
        fates |= got
        everything += maker.mutants
    wrong = judged(fates, everything)
    return {
        "made": len(everything),
        "run": len(fates),
        "killed": sum(fate in ("killed", "endless") for fate in fates.values()),
        "by": counts,
        "equivalent": Counter(listed()[mutant] for mutant, fate in fates.items() if fate == "survived" and mutant in listed()),
        **{name: len(mutants) for name, mutants in wrong.items()},
        "seconds": round(time.monotonic() - began_s, 1),
        "wrong": {name: [mutant._asdict() for mutant in mutants] for name, mutants in wrong.items()},
    }


# --- the command ------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Goal:
    """A line of `budget.toml`, and whether it was kept."""

    goal: str
    value: float
    most: float
    met: bool


def main(argv: Sequence[str] | None = None) -> int:
    """0 = done, 1 = a goal was missed and --gate given."""
    parser = argparse.ArgumentParser(prog="bench.mutants", description="does a test notice each small fault in supervisor and limits?")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} of each kind, drawn anew each time")
    parser.add_argument("--seed", type=int, default=None, help="of the draw")
    parser.add_argument("--only", default="*", metavar="WHERE", help="such as 'supervisor.Supervisor._due*'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures and environment")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a goal of budget.toml is missed")
    args = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory() as folder:
        workshop(Path(folder))
        back = Path.cwd()
        os.chdir(folder)
        try:
            result = campaign(QUICK if args.quick else 0, seed, args.only)
        finally:
            os.chdir(back)
    goals = [
        Goal(row["metric"], result[row["metric"]], row["most"], result[row["metric"]] <= row["most"])
        for row in tomllib.loads(BUDGET.read_text())["mutants"]
    ]
    survived = sum(result["equivalent"].values())
    print(
        f"{result['run']:,} of {result['made']:,} mutants in {result['seconds']:.0f} s{f' (seed {seed})' if args.quick else ''}: ", end=""
    )
    print(f"{result['killed']:,} killed, {survived} equivalent, {result['unlisted']} survived and are not listed")
    for why, n in result["equivalent"].items():
        print(f"  {n:3} equivalent: {why}")
    for name, mutants in result["wrong"].items():
        for mutant in mutants:
            print(f"{name}: {mutant['where']}, number {mutant['nth']}\n  - {mutant['was']}\n  + {mutant['now']}")
    for goal in goals:
        print(f"{'met   ' if goal.met else 'MISSED'} {goal.goal} = {goal.value} (most {goal.most})")
    if args.json:
        from bench import environment

        whole = result | {"seed": seed, "goals": [asdict(goal) for goal in goals], "environment": environment.environment()}
        args.json.write_text(json.dumps(whole, indent=1))
    missed = [goal.goal for goal in goals if not goal.met]
    for name in missed if args.gate else ():
        print(f"missed: {name}", file=sys.stderr)
    return 1 if args.gate and missed else 0


if __name__ == "__main__":
    sys.exit(main())
