"""Which build is this: hashes of the modules that decide about output, version, and a list of everything installed that we stand on.

Guard imports it, so at the top there is the standard library's least. Hashes are of the source files as they are on the disk when asked;
guard asks at its start, when it has just loaded them. They tell one build from another and a changed file from an unchanged one. They do
not stop whoever can change the files: such a person can change this one too.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from importlib.metadata import Distribution

# everything of ours that guard's process loads, but for the driver in use (a test compares this with what it does load)
MODULES = (
    "controller",
    "controller.build",
    "controller.guard",
    "controller.limits",
    "controller.messages",
    "controller.people",
    "controller.realtime",
    "controller.ring",
    "controller.self_test",
    "controller.supervisor",
    "controller.wire",
    "drivers.base",
    "drivers.stimulators",
)
ABSENT = "absent"
NAME = "calmloop"


def hashes(*drivers: str) -> dict[str, str]:
    """SHA-256 of the source of each module that decides about output; imports none of them.

    Parameters
    ----------
    drivers : str
        Modules of stimulator drivers to add: guard gives `type(stimulator).__module__`.
    """
    return {name: _hash(name) for name in (*MODULES, *drivers)}


def total(of: dict[str, str]) -> str:
    """One SHA-256 for all of `hashes`, for people who compare two beds."""
    return hashlib.sha256("".join(f"{name} {value}\n" for name, value in sorted(of.items())).encode()).hexdigest()


def _hash(name: str) -> str:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return ABSENT
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def version() -> str:
    """Version of the installed distribution. Costs an import of `importlib.metadata`, so guard leaves it to the daemon."""
    from importlib import metadata

    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "not installed"


def driver_modules() -> tuple[str, ...]:
    """Modules of all stimulator drivers, and of what reads their bytes again."""
    from controller.wire import DECODERS
    from drivers.stimulators import STIMULATORS

    return tuple(sorted({"drivers.stimulators.serial_device", *DECODERS.values(), *(module for module, _ in STIMULATORS.values())}))


# --- software bill of materials ---------------------------------------------------------------------------------------------------
def closure(name: str) -> dict[str, tuple[Distribution, list[str]]]:
    """Each installed distribution that `name` needs, itself first, with the names of those it needs in turn.

    An edge is drawn where a requirement without an extra names something that is installed; other conditions are not evaluated.
    """
    from importlib import metadata

    found: dict[str, tuple[Distribution, list[str]]] = {}
    waiting = [_normal(name)]
    while waiting:
        one = waiting.pop(0)
        if one in found:
            continue
        try:
            distribution = metadata.distribution(one)
        except metadata.PackageNotFoundError:
            continue
        wants = sorted({_required(text) for text in distribution.requires or ()} - {""})
        found[one] = (distribution, wants)
        waiting += wants
    return {one: (distribution, [want for want in wants if want in found]) for one, (distribution, wants) in found.items()}


def _required(text: str) -> str:
    """Name in a requirement such as `scipy>=1.14; python_version < "4"`; empty where it belongs to an extra."""
    import re

    needs, _, condition = text.partition(";")
    return "" if re.search(r"\bextra\s*==", condition) else _normal(re.split(r"[\s\[(<>=!~]", needs.strip(), maxsplit=1)[0])


def _normal(name: str) -> str:
    """The one way to write a name that pip takes for the same (PEP 503)."""
    import re

    return re.sub(r"[-_.]+", "-", name).lower()


def _purl(name: str, its_version: str) -> str:
    from urllib.parse import quote

    return f"pkg:pypi/{name}@{quote(its_version, safe='.-')}"


def _licenses(distribution: Distribution) -> list[dict[str, Any]]:
    """What the distribution says of its licence: an SPDX expression, or a name, or nothing."""
    facts = distribution.metadata.json
    if "license_expression" in facts:
        return [{"expression": facts["license_expression"]}]
    plain = str(facts.get("license", "")).strip()
    if plain and "\n" not in plain and len(plain) <= 60:
        return [{"license": {"name": plain}}]
    words = [line.rpartition(" :: ")[2] for line in facts.get("classifier", ()) if line.startswith("License :: ")]
    return [{"license": {"name": word}} for word in words]


def sbom() -> dict[str, Any]:
    """CycloneDX 1.5: this build with its hashes, Python, and every installed distribution that it needs. Equal builds give equal text."""
    import json
    import platform
    from uuid import NAMESPACE_URL, uuid5

    packages = closure(NAME)
    components: list[dict[str, Any]] = []
    for name, (distribution, _) in packages.items():
        one = {"type": "library", "bom-ref": name, "name": name, "version": distribution.version, "purl": _purl(name, distribution.version)}
        licenses = _licenses(distribution)
        components.append(one | ({"licenses": licenses} if licenses else {}))
    product = components.pop(0) if NAME in packages else {"bom-ref": NAME, "name": NAME, "version": version()}
    files = [
        {"type": "file", "bom-ref": f"module:{name}", "name": name, "hashes": [{"alg": "SHA-256", "content": value}]}
        for name, value in hashes(*driver_modules()).items()
        if value != ABSENT
    ]
    python = platform.python_implementation()
    components.append({"type": "platform", "bom-ref": "python", "name": python, "version": platform.python_version()})
    edges = [{"ref": name, "dependsOn": [*wants, *(["python"] if name == NAME else [])]} for name, (_, wants) in packages.items()]
    bom: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**product, "type": "application", "components": files}},
        "components": components,
        "dependencies": edges,
    }
    return {"serialNumber": uuid5(NAMESPACE_URL, json.dumps(bom, sort_keys=True)).urn, **bom}


# --- the command ------------------------------------------------------------------------------------------------------------------
def command(args: argparse.Namespace) -> int:
    """`calmloop version [--sbom] [--json]`."""
    import json

    if args.sbom:
        print(json.dumps(sbom(), indent=None if args.json else 2))
        return 0
    of = hashes(*driver_modules())
    facts = {"version": version(), "python": sys.version.split()[0], "total": total(of), "modules": of}
    if args.json:
        print(json.dumps(facts))
        return 0
    width = max(map(len, of))
    print(f"{NAME} {facts['version']}, Python {facts['python']}")
    print("SHA-256 of the modules that decide about output:")
    for name, value in {**of, "all of them": facts["total"]}.items():
        print(f"  {name:<{width}}  {value}")
    return 0
