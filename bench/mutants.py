"""`python -m bench.mutants`: one small fault at a time in the supervisor and in the limits; does a test notice each?

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
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult},
    **{ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd},
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


def forked(do: Callable[[], int]) -> int:
    """Exit code of a child that does it, silently; negative = it was ended by that signal."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 3
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        code = do()
    finally:
        os._exit(code)


def own(chosen: Callable[[list[Mutant]], set[Mutant]]) -> tuple[list[Mutant], dict[Mutant, int]]:
    """All mutants that are made here, and the exit code of the tests on those chosen."""
    import hypothesis  # noqa: F401  # once, not in each child
    import pytest

    def tests() -> int:
        return int(pytest.main(["-x", "-q", "--tb=no", *PYTEST, *TESTS]))

    def mutated(module: str, code: CodeType) -> int:
        put(module, code)
        return tests()

    if forked(tests):
        raise SystemExit("the tests fail without any fault")
    trees = {module: ast.parse((ROOT / "controller" / f"{module}.py").read_text()) for module in MODULES}
    everything = numbered([mutant for module, tree in trees.items() for mutant in faults(tree, Place(module, tree))])
    wanted, codes = chosen(everything), {}
    names = iter(everything)
    for module, tree in trees.items():
        for _ in faults(tree, Place(module, tree)):
            mutant = next(names)
            if mutant in wanted:
                code = compile(tree, f"controller/{module}.py", "exec")
                codes[mutant] = forked(lambda module=module, code=code: mutated(module, code))
    return everything, codes
