"""The directions of the design, read from the source: one hand on the output, a pure core, a guard without numbers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTPUT_METHODS = {"trigger", "stop", "arm", "disarm"}


def calls(path):
    """(attribute, name of the object it is called on, enclosing function, line) of each method call in a file."""
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else "?"
                yield node.func.attr, name, function.name, node.lineno


@pytest.mark.safety("A13")
def test_output_methods_have_one_call_site_each():
    found = {method: [] for method in OUTPUT_METHODS}
    for path in sorted((ROOT / "controller").rglob("*.py")):
        for method, owner, function, line in calls(path):
            if method in OUTPUT_METHODS and owner not in ("daemon",):  # LiveDaemon.arm asks over the socket, as a person does
                found[method].append((path.name, function, line))
    assert {method: [(p, f) for p, f, _ in sites] for method, sites in found.items()} == {m: [("guard.py", "obey")] for m in OUTPUT_METHODS}


@pytest.mark.safety("A13")
def test_only_guard_makes_a_stimulator():
    harmless = {
        "STIMULATORS",
        "limits_of",
        "refusals",
        "ask",
        "line_facts",
    }  # names, what the makers state, and facts of a box that gets no pulse
    for path in sorted((ROOT / "controller").rglob("*.py")):
        if path.name == "guard.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any("stimulators" in alias.name for alias in node.names), path
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("drivers.stimulators"):
                assert node.module == "drivers.stimulators" and {alias.name for alias in node.names} <= harmless, path
            elif isinstance(node, ast.ImportFrom) and node.module == "drivers":
                assert "stimulators" not in {alias.name for alias in node.names}, path


def test_the_core_never_looks_at_a_clock():
    for name in ("supervisor", "detector", "kernels", "policy"):
        imported = set()
        for node in ast.walk(ast.parse((ROOT / "controller" / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
        assert not imported & {"time", "datetime", "socket", "os", "random", "threading"}, name


def modules_after(code):
    """Top-level modules loaded in a fresh interpreter after running `code`."""
    script = f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_guard_and_people_commands_stay_light():
    heavy = {"numba", "scipy", "pylsl", "numpy", "pydantic", "pyxdf", "h5py"}
    assert not modules_after("import controller.guard; from drivers import stimulators; stimulators.load('rehamove3', 'x')") & heavy
    code = "import controller.__main__ as m\nfor c in ('stop', 'status', 'trigger', 'arm', 'disarm'): m.main([c])"
    assert not modules_after(code) & heavy


def test_nobody_imports_a_package_named_config():
    for folder in ("controller", "drivers", "tests", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                assert not any(name.split(".")[0] == "config" for name in names), path


def test_no_path_of_this_machine_in_any_file():
    for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n"):
        if path and (ROOT / path).is_file() and path != "LICENSE":
            assert str(ROOT.parent) + "/" not in (ROOT / path).read_text(errors="replace"), path
