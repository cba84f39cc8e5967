"""Other people's real-time frameworks doing the bench's job, each in an environment of its own under `.bench/`.

`python -m bench.peers install [NAME...]` makes the environments from the pinned files beside this one, `python -m bench.peers list` says
which there are. Nothing of them is installed with calmloop: a bench skips by name what is not there.

A contender is started as `PYTHON SCRIPT --stream NAME --source-id ID --pipe PATH`. It says `ready` on standard output when samples flow and
all is warm, then writes one byte into the named pipe at each rising crossing, and ends on SIGTERM.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".bench"
NAMES = ("ezmsg", "mne_lsl", "timeflux")
TOOLS = ("atheris", "sktime", "emg")  # that a bench starts in environments of their own too


class InstallError(Exception):
    """An environment could not be made."""


def requirements(name: str) -> Path:
    """The pinned packages of a contender."""
    return HERE / f"{name}.txt"


def script(name: str) -> Path:
    """The contender itself."""
    return HERE / f"{name}_{'tool' if name in TOOLS else 'contender'}.py"


def interpreter(name: str) -> Path | None:
    """The Python of a contender's environment; None where it is not installed as its pinned file says."""
    folder = ENVIRONMENTS / name
    stamp, python = folder / "installed.txt", folder / "bin" / "python"
    if name not in NAMES + TOOLS or not stamp.is_file() or not python.is_file():
        return None
    return python if stamp.read_text() == requirements(name).read_text() else None


def command(name: str, stream: str, source_id: str, pipe: Path) -> list[str] | None:
    """What to start; None where the contender is not installed."""
    python = interpreter(name)
    return [str(python), str(script(name)), "--stream", stream, "--source-id", source_id, "--pipe", str(pipe)] if python else None


def install(name: str) -> Path:
    """Make an environment anew and return its Python.

    Raises
    ------
    InstallError
        There is no such contender, or its packages cannot be had for this Python.
    """
    if name not in NAMES + TOOLS:
        raise InstallError(f"{name!r} is none of {', '.join(NAMES + TOOLS)}")
    folder = ENVIRONMENTS / name
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--only-binary", ":all:"]
    if subprocess.run([*pip, "--requirement", str(requirements(name))]).returncode:
        raise InstallError(f"{name}: pip could not install {requirements(name).name} for Python {sys.version.split()[0]}")
    if name == "timeflux":
        lend_liblsl(folder)
    (folder / "installed.txt").write_text(requirements(name).read_text())
    return python


def lend_liblsl(folder: Path) -> None:
    """Link our own liblsl to where pylsl 1.16.2 looks first: Timeflux needs that version, and its wheel has no library."""
    import pylsl

    ours = Path(pylsl.__file__).parent / "lib" / "liblsl.so"
    if not ours.is_file():
        raise InstallError(f"our own pylsl has no {ours.name} that could be lent")
    for package in folder.glob("lib/python*/site-packages/pylsl"):
        (package / "lib").mkdir(exist_ok=True)
        (package / "lib" / "liblsl.so").symlink_to(ours.resolve())
