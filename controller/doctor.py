"""`calmloop doctor`: what is missing on this machine, each thing with what mends it."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse


def checks(config_path: str | None) -> list[dict[str, Any]]:
    """Look at everything; a row each: what, ok, fact, what mends it. `needed` rows decide the exit code."""
    rows: list[dict[str, Any]] = []

    def row(what: str, ok: bool, fact: str, mend: str = "", needed: bool = True) -> None:
        rows.append({"what": what, "ok": ok, "fact": fact, "mend": "" if ok else mend, "needed": needed})

    version = sys.version_info[:3]
    row("Python", (3, 11) <= version[:2] < (3, 15), platform.python_version(), "install Python 3.11 to 3.14")
    row("Linux", sys.platform == "linux", platform.platform(), "calmloop runs on Linux alone", needed=True)
    for name in ("numpy", "scipy", "numba", "pydantic", "pyxdf", "h5py", "serial"):
        try:
            module = __import__(name)
            row(name, True, str(getattr(module, "__version__", "present")))
        except Exception as error:  # whatever stops an import is a finding here
            row(name, False, f"{type(error).__name__}: {error}", "run: make setup")
    try:
        import pylsl

        row("liblsl", True, f"{pylsl.library_version() / 100:.2f}")
    except Exception as error:
        mend = "no liblsl in this platform's pylsl wheel: install liblsl and set PYLSL_LIB to its path"
        row("liblsl", False, f"{type(error).__name__}: {error}", mend)
    _realtime(row)
    cpus = os.cpu_count() or 1
    row("CPUs", cpus >= 2, str(cpus), "loop and guard want two", needed=False)
    if config_path:
        _bed(row, config_path)
    return rows


def _realtime(row: Any) -> None:
    """Try in a child what loop and guard will ask for, so that this process keeps its own scheduling."""
    import subprocess

    code = "import json; from controller import realtime; print(json.dumps(realtime.ask(70) | realtime.freeze()))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    got = json.loads(answer.stdout) if answer.returncode == 0 else {"scheduler": "refused: " + answer.stderr[-200:]}
    limits = "give the user rtprio and memlock in /etc/security/limits.d (e.g. `@calmloop - rtprio 95`, `@calmloop - memlock unlimited`)"
    for what, text in got.items():
        mend = limits if what in ("scheduler", "memory") else "none is needed: pulses may be a little later now and then"
        row("real-time " + what, text.startswith("got"), text, mend, needed=False)


def _bed(row: Any, config_path: str) -> None:
    from controller import settings

    try:
        config = settings.load(config_path)
    except settings.SettingsError as error:
        row(config_path, False, str(error), f"see: calmloop check {config_path}")
        return
    row(config_path, True, "sound")
    port = config.stimulator.port
    if port == "virtual":
        row(
            "stimulator port virtual",
            False,
            "filled in by `calmloop demo`",
            "else: start `calmloop simulate` and write the port it prints",
            False,
        )
        port = os.devnull
    usable = os.access(port, os.R_OK | os.W_OK)
    why = "usable" if usable else "no such port" if not Path(port).exists() else "may not be opened by this user"
    row(f"stimulator port {port}", usable, why, "plug the stimulator in; add the user to the group dialout; see /dev/serial/by-id")
    folder = Path(config.session.folder)
    nearest = folder if folder.is_dir() else folder.absolute().parent
    row(
        f"session folder {folder}",
        os.access(nearest, os.W_OK),
        "writable" if os.access(nearest, os.W_OK) else "not writable",
        "choose another",
    )
    from drivers.base import DriverError
    from drivers.sources import lsl

    for name in ("emg", "force"):
        wanted = getattr(config, name)
        if wanted is None:
            continue
        try:
            _, info = lsl.find(wanted, 2.0)
            row(
                f"[{name}] stream {wanted.stream_name!r}",
                True,
                f"{info.channel_count()} ch, {info.nominal_srate():g} Hz, on {info.hostname()}",
            )
        except DriverError as error:
            row(f"[{name}] stream {wanted.stream_name!r}", False, str(error), "start the amplifier's LSL stream, or correct the settings")


def command(args: argparse.Namespace) -> int:
    """`calmloop doctor [CONFIG]`; 0 = nothing needed is missing, 1 = something is."""
    rows = checks(args.config)
    good = all(row["ok"] for row in rows if row["needed"])
    if args.json:
        print(json.dumps({"ok": good, "checks": rows}))
    else:
        for row in rows:
            mark = "ok     " if row["ok"] else "MISSING" if row["needed"] else "note   "
            print(f"{mark}  {row['what']}: {row['fact']}" + (f"\n         -> {row['mend']}" if row["mend"] else ""))
    return 0 if good else 1
