"""`calmloop doctor`: what is missing on this machine, each thing with what mends it."""

from __future__ import annotations

import json
import os
import platform
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import install, messages

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from controller.settings import Button, EmgStream, ForceStream, Page

ONLINE = Path("/sys/devices/system/cpu/online")
SETTLE_S, LISTEN_S = 2.0, 5.0  # a device that opening its port has reset says who it is first (Arduino: within 2 s)


def checks(config_path: str | None) -> list[dict[str, Any]]:
    """Look at everything; a row each: what, ok, fact, what mends it. `needed` rows decide the exit code."""
    rows: list[dict[str, Any]] = []

    def row(what: str, ok: bool, fact: str, mend: str = "", needed: bool = True) -> None:
        rows.append({"what": what, "ok": ok, "fact": fact, "mend": "" if ok else mend, "needed": needed})

    version = sys.version_info[:3]
    row("Python", (3, 11) <= version[:2] < (3, 15), platform.python_version(), "install Python 3.11 to 3.14")
    row("Linux", sys.platform == "linux", platform.platform(), "calmloop runs on Linux alone", needed=True)
    for name in ("numpy", "scipy", "numba", "pydantic", "pyxdf", "h5py", "serial", "starlette", "uvicorn", "websockets"):
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
    compiles = _compiled_code(row)
    _state_folder(row)
    _realtime(row)
    cpus = os.cpu_count() or 1
    row("CPUs", cpus >= 2, str(cpus), "loop and guard want two", needed=False)
    rows += install.missing(messages.user(), config=config_path or "CONFIG")
    if config_path:
        _bed(row, config_path, compiles)
    return rows


def _compiled_code(row: Any) -> bool:
    """Where the loop's compiled code is kept: without such a place there is no loop."""
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    good = os.access(nearest, os.W_OK)
    mend = "name a folder that this user may write to: CALMLOOP_CACHE_DIR=FOLDER"
    row(f"compiled code in {folder.parent}", good, "writable" if good else f"{nearest} may not be written by this user", mend)
    return good


def _realtime(row: Any) -> None:
    """Try in a child what loop and guard will ask for, so that this process keeps its own scheduling."""
    import subprocess

    from controller import realtime

    code = "import json; from controller import realtime; print(json.dumps(realtime.ask(70) | realtime.freeze()))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    got = json.loads(answer.stdout) if answer.returncode == 0 else {"scheduler": "refused: " + answer.stderr[-200:]}
    limits = "give the user rtprio and memlock in /etc/security/limits.d (e.g. `@calmloop - rtprio 95`, `@calmloop - memlock unlimited`)"
    awake = f"let the user write to {realtime.WAKE_UP_FILE} (a udev rule); without it each pulse is some 50 to 100 us later"
    mends = {"scheduler": limits, "memory": limits, "processors": awake}
    for what, text in got.items():
        mend = mends.get(what, "none is needed: pulses may be a little later now and then")
        row("real-time " + what, text.startswith("got"), text, mend, needed=False)


def _state_folder(row: Any) -> None:
    """Where the audit's key and the dose journals are: without it no bed starts."""
    from controller import audit

    what, mend = "state folder (dose journals, the audit's key)", "name one that this user may write to: CALMLOOP_STATE_DIR=FOLDER"
    try:
        folder = audit.state_folder()
        good = os.access(folder, os.W_OK)
        row(what, good, f"{folder}{'' if good else ' may not be written by this user'}", mend)
    except (audit.AuditError, OSError) as error:
        row(what, False, str(error), mend)


def _bed(row: Any, config_path: str, compiles: bool) -> None:
    from controller import fits, settings

    try:
        config = fits.together(settings.load(config_path), str(config_path))
    except settings.SettingsError as error:
        row(config_path, False, str(error), f"see: calmloop check {config_path}")
        return
    row(config_path, True, "sound")
    if config.realtime.cpus:
        _cpus(row, config.realtime.cpus)
    _port(row, config.stimulator.driver, config.stimulator.port)
    if config.button:
        _button(row, config.button)
    if config.page.interface:
        _page(row, config.page)
    folder = Path(config.session.folder)
    nearest = folder if folder.is_dir() else folder.absolute().parent
    row(
        f"session folder {folder}",
        os.access(nearest, os.W_OK),
        "writable" if os.access(nearest, os.W_OK) else "not writable",
        "choose another",
    )
    if not compiles:
        row("[emg] and [force] streams", False, "cannot be looked for without a place for compiled code", "see above")
        return
    from drivers.base import DriverError
    from drivers.sources import lsl

    for name in ("emg", "force"):
        wanted = getattr(config, name)
        if wanted is None:
            continue
        if wanted.device:
            _signal_device(row, name, wanted)
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


def _signal_device(row: Any, name: str, wanted: EmgStream | ForceStream) -> None:
    """A device that the daemon publishes: there, and it says samples at about the rate that the settings state."""
    from controller.streams import RATE_TOLERANCE
    from drivers import sources
    from drivers.base import DriverError

    try:
        source = sources.load(wanted.device, len(wanted.channels), wanted.sample_rate_hz)
        source.open()
        try:
            n, start_s = 0, time.monotonic()
            while time.monotonic() < start_s + LISTEN_S:
                block = source.read(0.2)
                if block is not None and time.monotonic() > start_s + SETTLE_S:
                    n += len(block.values)
        finally:
            source.close()
    except DriverError as error:
        row(f"[{name}] device {wanted.device}", False, str(error), "plug it in, end what holds it, or correct the settings")
        return
    rate_hz = n / (LISTEN_S - SETTLE_S)
    right = abs(rate_hz / wanted.sample_rate_hz - 1.0) < RATE_TOLERANCE
    fact = f"{rate_hz:.4g} samples a second, the settings say {wanted.sample_rate_hz:g}"
    row(f"[{name}] device {wanted.device}", right, fact, "sample_rate_hz must be what the device does")


def _cpus(row: Any, wanted: Sequence[int]) -> None:
    """The kernel quietly leaves out those of a list that are not there, and refuses a list of none."""
    here = _listed(ONLINE.read_text())
    missing = [cpu for cpu in wanted if cpu not in here]
    fact = f"{missing} of {list(wanted)} are not there; this machine has {sorted(here)}" if missing else f"{list(wanted)} are there"
    row("[realtime] cpus", not missing, fact, "name processors that this machine has, or none for all")


def _listed(text: str) -> set[int]:
    """The numbers of a kernel's list such as "0-3,8"."""
    ends = [part.split("-") for part in text.strip().split(",")]
    return {cpu for first, *last in ends for cpu in range(int(first), int(last[0] if last else first) + 1)}


def _port(row: Any, driver: str, port: str) -> None:
    """The stimulator's port: there, ours, free, of the right kind. What is behind it is not asked: `calmloop stimulator test` does that."""
    from controller import devices
    from drivers.base import DriverError
    from drivers.stimulators import line_facts

    what = f"stimulator port {port}"
    if port == "virtual":
        row(what, False, "filled in by `calmloop demo`", "else: start `calmloop simulate` and write the port it prints", False)
        return
    if not Path(port).exists():
        row(what, False, "no such port", "plug the stimulator in and switch it on; `calmloop devices` lists what is there")
        return
    usable = os.access(port, os.R_OK | os.W_OK)
    mend = f"add the user to the group {_group(port)} (usermod -aG) and log in anew"
    row(what, usable, "usable" if usable else "may not be opened by this user", mend)
    holder = devices.held_by(port, devices.beds_at())
    row(f"{what} is free", not holder, holder or "nobody holds it", "end that first", needed=not holder.startswith("the running bed"))
    wanted = devices.identities(driver)
    seen = next((one for one in devices.ports() if os.path.realpath(one["device"]) == os.path.realpath(port)), None)
    fact = f"{seen['usb']} {seen['manufacturer']} {seen['product']}".rstrip() if seen and seen["usb"] else "no USB device"
    if wanted:
        fits = seen is not None and driver in seen["perhaps"]
        row(f"{what}, USB identity", fits, f"{fact}; {driver} has {wanted}", "is it the right port? see `calmloop devices`", needed=False)
    if not usable or holder or driver in devices.NEVER_ASKED:  # where a line that moves is a pulse, nothing is opened
        return
    try:
        link = line_facts(driver, port)
    except DriverError as error:
        row(f"{what}, line", False, str(error), "is it the right port? see `calmloop devices`")
        return
    fact = f"exclusive: {devices.value_words(link['exclusive'])}, low latency: {devices.value_words(link['low_latency'])}"
    mend = "neither is a must: others must leave the port alone, and an FTDI chip may hand over answers 16 ms late"
    row(f"{what}, line", bool(link["exclusive"] and link["low_latency"]), fact, mend, needed=False)


def _button(row: Any, button: Button) -> None:
    """The patient's button: there, ours, and open while nobody presses it."""
    from drivers import buttons
    from drivers.base import DriverError

    device = buttons.load(**button.model_dump())
    try:
        closed = device.open()
    except DriverError as error:
        mend = "plug it in, end what holds it, let this user read it (usermod -aG input); `calmloop button learn` finds its name"
        row(f"button {button.device}", False, str(error), mend)
        return
    finally:
        device.close()
    fact = "there, and closed: guard will not arm" if closed else "there, and open"
    row(f"button {button.device}", not closed, fact, "let it go; where nobody holds it, invert is wrong in [button]")


def _page(row: Any, page: Page) -> None:
    """The page beyond loopback: the interface is there, and its certificate is good for a while."""
    from controller import network

    what = f"[page] interface {page.interface}"
    try:
        row(what, True, str(network.of(page.interface).ip))
    except OSError as error:
        row(what, False, str(error.strerror), "`ip -4 -brief address` lists interfaces that have an address")
    what, mend = f"[page] certificate {page.certificate}", f"make it anew: calmloop certificate {page.interface}"
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(page.certificate, page.key)
        text = subprocess.run(
            ["openssl", "x509", "-noout", "-enddate", "-in", page.certificate], capture_output=True, text=True, check=True
        ).stdout
        days = (ssl.cert_time_to_seconds(text.strip().removeprefix("notAfter=")) - time.time()) / 86400
        row(what, days > 0, f"good for {days:.0f} days" if days > 0 else "is too old", mend)
    except (OSError, ssl.SSLError, subprocess.CalledProcessError) as error:
        row(what, False, str(error), mend)


def _group(port: str) -> str:
    """Who may open a port besides its owner; Debian's name where the number has none."""
    try:
        return Path(port).group()
    except (KeyError, OSError):
        return "dialout"


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
