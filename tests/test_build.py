"""Which build is this: every module that can reach the stimulator is hashed, and the bill of materials is lawful CycloneDX 1.5."""

import hashlib
import json
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from controller import build

ROOT = Path(__file__).resolve().parents[1]
DRIVER = "drivers.stimulators.sciencemode34"
OF_REHAMOVE3 = (DRIVER, "drivers.stimulators.serial_device", "controller.wire.sciencemode34")


def source(name):
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.safety("F10")
def test_each_hash_is_that_of_the_file():
    found = build.hashes(DRIVER)
    assert set(found) == {*build.MODULES, DRIVER}
    for name, value in found.items():
        assert value == hashlib.sha256(source(name).read_bytes()).hexdigest(), name


@pytest.mark.safety("F10")
def test_a_changed_module_has_another_hash(tmp_path, monkeypatch):
    before = build.hashes()
    changed = tmp_path / "supervisor.py"
    changed.write_bytes(source("controller.supervisor").read_bytes() + b"#")
    find = build.find_spec

    def elsewhere(name):
        spec = find(name)
        if name == "controller.supervisor":
            spec.origin = str(changed)
        return spec

    monkeypatch.setattr(build, "find_spec", elsewhere)
    after = build.hashes()
    assert [name for name in before if before[name] != after[name]] == ["controller.supervisor"]
    assert build.total(before) != build.total(after)
    assert build.total(before) == build.total(dict(reversed(before.items())))


@pytest.mark.safety("F10")
def test_what_guard_loads_is_hashed():
    code = (
        "import sys, controller.guard; from controller import wire; from drivers import stimulators;"
        "wire.for_driver('rehamove3'); stimulators.load('rehamove3', 'x');"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('controller', 'drivers')))"
    )
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert loaded - {"drivers"} <= {*build.MODULES, *OF_REHAMOVE3}
    assert source("drivers").read_bytes() == b"", "an empty file needs no hash"


def test_hashing_loads_next_to_nothing():
    code = "import sys; from controller import build; build.hashes(); print(*(n for n in sys.modules if n.split('.')[0] != 'encodings'))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"importlib.metadata", "email", "json", "uuid", "controller.guard", "controller.supervisor", DRIVER}


def test_all_drivers_are_known():
    assert {*OF_REHAMOVE3} < {*build.driver_modules()}
    assert all(build.hashes(name)[name] != build.ABSENT for name in build.driver_modules())


# --- bill of materials: what the standard's schema demands of the parts that we use -------------------------------------------------
COMPONENT_KEYS = {"type", "bom-ref", "name", "version", "purl", "licenses", "hashes", "components"}
TYPES = {"application", "library", "platform", "file"}  # of those the standard has


def check_component(one):
    assert set(one) <= COMPONENT_KEYS and {"type", "name"} <= set(one), one
    assert one["type"] in TYPES
    assert all(isinstance(one[key], str) and one[key] for key in ("name", "bom-ref", "version", "purl") if key in one)
    if "purl" in one:
        assert re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[A-Za-z0-9.%-]+", one["purl"])
    licenses = one.get("licenses", [{"license": {"name": "x"}}])
    assert licenses
    if "expression" in licenses[0]:
        assert len(licenses) == 1 and set(licenses[0]) == {"expression"}
    else:
        assert all(set(entry) == {"license"} and set(entry["license"]) == {"name"} and entry["license"]["name"] for entry in licenses)
    for entry in one.get("hashes", ()):
        assert set(entry) == {"alg", "content"} and entry["alg"] == "SHA-256" and re.fullmatch("[0-9a-f]{64}", entry["content"])
    for inner in one.get("components", ()):
        check_component(inner)


@pytest.mark.safety("F10")
def test_bill_of_materials_is_cyclonedx():
    bom = json.loads(json.dumps(build.sbom()))
    assert set(bom) == {"bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies"}
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.5", 1)
    assert re.fullmatch("urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bom["serialNumber"])
    assert set(bom["metadata"]) == {"component"}
    product = bom["metadata"]["component"]
    every = [product, *product["components"], *bom["components"]]
    for one in (product, *bom["components"]):
        check_component(one)
    refs = [one["bom-ref"] for one in every]
    assert len(set(refs)) == len(refs)
    for edge in bom["dependencies"]:
        assert set(edge) == {"ref", "dependsOn"}
        assert {edge["ref"], *edge["dependsOn"]} <= set(refs)
        assert len(set(edge["dependsOn"])) == len(edge["dependsOn"])
    assert bom == json.loads(json.dumps(build.sbom()))  # equal builds, equal text


@pytest.mark.safety("F10")
def test_bill_of_materials_has_the_whole_closure_and_no_tool():
    packaging = pytest.importorskip("packaging.requirements")
    bom = build.sbom()
    found = {one["name"]: one["version"] for one in bom["components"] if one["type"] == "library"}
    waiting, want = ["calmloop"], {}
    while waiting:  # another way to the same closure
        for text in distribution(waiting.pop()).requires or ():
            needs = packaging.Requirement(text)
            name = re.sub(r"[-_.]+", "-", needs.name).lower()
            if (needs.marker is None or needs.marker.evaluate({"extra": ""})) and name not in want:
                want[name] = distribution(name).version
                waiting.append(name)
    assert found == want
    assert {"numpy", "pyserial", "pydantic-core", "llvmlite"} <= set(found)
    assert not {"pytest", "ruff", "calmloop"} & set(found)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("numpy>=2.0", "numpy"),
        ("Typing_Extensions >=4; python_version < '3.13'", "typing-extensions"),
        ("llvmlite<0.51,>=0.50.0dev0", "llvmlite"),
        ("coverage[toml]", "coverage"),
        ("a.b~=1", "a-b"),
        ("ruff>=0.9; extra == 'dev'", ""),
        ('x ; python_version > "3" and extra=="dev"', ""),
    ],
)
def test_names_in_requirements(text, name):
    assert build._required(text) == name


@pytest.mark.safety("F10")
def test_command(capsys):
    from controller.__main__ import main

    assert main(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["version"] == distribution("calmloop").version
    assert facts["modules"] == build.hashes(*build.driver_modules()) and facts["total"] == build.total(facts["modules"])
    assert main(["version"]) == 0
    text = capsys.readouterr().out
    assert all(value in text for value in (*facts["modules"].values(), facts["total"], facts["version"]))
    assert main(["version", "--sbom"]) == 0
    assert json.loads(capsys.readouterr().out) == build.sbom()
