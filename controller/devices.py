"""`calmloop devices`: serial ports with their USB identity, LSL streams, buttons; and, where a person names a port, who answers there.

Listing opens nothing: to open a port raises DTR and RTS, which resets an Arduino, and to a trigger box a byte IS a pulse. A port is opened
and asked only by name, and only in the protocols that the person names: which box is behind a USB chip, its identity does not say.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import messages, wire
from drivers.base import DeviceNotFoundError, DriverError
from drivers.stimulators import STIMULATORS, ask

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

#: what is known of a stimulator's USB chip: vendor, product (None = any of the vendor's), the drivers it may mean. No chip is a proof.
USB = (
    (0x0483, 0x5740, ("p24",)),  # STMicroelectronics' virtual COM port; science-mode-4, utils/serial_port_connection.py
    (0x2341, 0x003E, ("pulsepal",)),  # native port of an Arduino Due, which a Pulse Pal 2 is (sanworks/PulsePal); Arduino, sam/boards.txt
    (0x2A03, 0x003E, ("pulsepal",)),  # the same of arduino.org; the same file
    (0x0403, None, ("rehamove3", "sciencemode2", "sciencemode1")),  # FTDI: the three HASOMED documents name it, without a product
)
#: their questions would be output: every byte, or a line that moves, is a pulse
NEVER_ASKED = ("ttl-byte", "ttl-cedrus", "ttl-line")
ASKED = tuple(sorted(set(STIMULATORS) - set(NEVER_ASKED)))
MAX_SECONDS = 60.0
SERIAL_LINKS, INPUT_LINKS = Path("/dev/serial/by-id"), Path("/dev/input/by-id")
INPUT_DEVICES, LOCKS = Path("/proc/bus/input/devices"), Path("/proc/locks")
EV_KEY, EV_SW = 1 << 1, 1 << 5  # linux/input-event-codes.h
BUSES = {3: "USB", 5: "Bluetooth", 0x11: "built in"}  # linux/input.h
BUS_HOST = 0x19  # the machine's own power button and lid


# --- serial ports -----------------------------------------------------------------------------------------------------------------
def suggested(vendor: int | None, product: int | None) -> tuple[str, ...]:
    """Drivers that a USB identity may mean; none = nothing is known of it."""
    return next((drivers for v, p, drivers in USB if v == vendor and p in (None, product)), ())


def identities(driver: str) -> str:
    """USB identities that the driver's box shows, as far as they are known, in words; empty = none is."""
    return " or ".join(f"{v:04x}:{'*' if p is None else f'{p:04x}'}" for v, p, drivers in USB if driver in drivers)


def links(folder: Path) -> dict[str, str]:
    """Where the lasting names of a folder lead, by the device's own name."""
    return {os.path.realpath(link): str(link) for link in sorted(folder.glob("*"))}


def ports(found: Iterable[Any] | None = None) -> list[dict[str, Any]]:
    """Every serial port, not opened; `found` stands in for what pyserial's list_ports sees."""
    if found is None:
        from serial.tools import list_ports

        found = list_ports.comports()
    by_id, beds = links(SERIAL_LINKS), beds_at()
    return [
        {
            "device": port.device,
            "by_id": by_id.get(os.path.realpath(port.device), ""),
            "usb": "" if port.vid is None else f"{port.vid:04x}:{port.pid:04x}",
            "manufacturer": port.manufacturer or "",
            "product": port.product or "",
            "serial": port.serial_number or "",
            "location": port.location or "",
            "perhaps": list(suggested(port.vid, port.pid)),
            "held_by": held_by(port.device, beds),
        }
        for port in sorted(found, key=lambda port: str(port.device))
    ]


def beds_at() -> dict[str, str]:
    """Which running bed holds which port, by the port's own name."""
    answers, _ = messages.ask_all(messages.beds(), {"do": "status"})
    held = {bed: answer["stimulator"] for bed, answer in answers.items()}
    return {os.path.realpath(box["port"]): bed for bed, box in held.items() if isinstance(box, dict)}


def held_by(port: str, beds: dict[str, str]) -> str:
    """Who has a port, in words; empty = nobody who says so. Seen by the locks that programs take on it, without opening it."""
    real = os.path.realpath(port)
    if real in beds:
        return f"the running bed {beds[real]!r}"
    try:
        status, rows = Path(real).stat(), LOCKS.read_text().splitlines()
    except OSError:
        return ""
    where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for row in rows:  # 1: FLOCK  ADVISORY  WRITE 812 00:06:1143 0 EOF; one that waits for a lock has "->" in its second place
        words = row.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == where and _has_open(words[4], real):
            try:
                name = Path(f"/proc/{words[4]}/comm").read_text().strip()
            except OSError:
                name = "of another user"
            return f"process {words[4]} ({name})"
    return ""


def _has_open(process: str, port: str) -> bool:
    """Whether that process has the port open, as far as we may look: a pty that is gone leaves its number to the next one."""
    try:
        return any(os.path.realpath(fd) == port for fd in Path(f"/proc/{process}/fd").iterdir())
    except PermissionError:
        return True
    except OSError:
        return False


# --- streams and buttons ----------------------------------------------------------------------------------------------------------
def streams(seconds: float) -> list[dict[str, Any]]:
    """Every LSL stream that is heard of within so long."""
    import pylsl

    found = [
        {
            "name": info.name(),
            "type": info.type(),
            "channels": info.channel_count(),
            "rate_hz": info.nominal_srate(),
            "host": info.hostname(),
            "source_id": info.source_id(),
        }
        for info in pylsl.resolve_streams(seconds)
    ]
    return sorted(found, key=lambda stream: (stream["name"], stream["source_id"], stream["host"]))


def inputs(text: str) -> list[dict[str, Any]]:
    """Input devices with keys or switches, of what `/proc/bus/input/devices` says; not the machine's own power button and lid."""
    by_id, found = links(INPUT_LINKS), []
    for block in text.split("\n\n"):
        rows = {line[:1]: line[3:] for line in block.splitlines() if line[1:2] == ":" and line[:1] != "B"}
        bits = dict(line[3:].split("=", 1) for line in block.splitlines() if line.startswith("B: ") and "=" in line)
        who = dict(word.split("=", 1) for word in rows.get("I", "").split() if "=" in word)
        handlers = rows.get("H", "").removeprefix("Handlers=").split()
        event = next((f"/dev/input/{word}" for word in handlers if word.startswith("event")), "")
        bus = int(who.get("Bus", "0"), 16)
        if not event or bus == BUS_HOST or not int(bits.get("EV", "0"), 16) & (EV_KEY | EV_SW):
            continue
        kinds = (("kbd", "keyboard"), ("mouse", "mouse"), ("js", "joystick"))
        found.append(
            {
                "name": rows.get("N", "").removeprefix("Name=").strip('"'),
                "kind": next((kind for start, kind in kinds if any(word.startswith(start) for word in handlers)), "switch"),
                "device": event,
                "by_id": by_id.get(os.path.realpath(event), ""),
                "bus": BUSES.get(bus, f"bus {bus:02x}"),
                "usb": f"{who.get('Vendor', '?')}:{who.get('Product', '?')}",
                "readable": os.access(event, os.R_OK),
            }
        )
    return found


# --- asking -----------------------------------------------------------------------------------------------------------------------
def placeholders(driver: str) -> dict[str, int]:
    """The driver's options, one unit each: it cannot be made without, and who only asks prepares no pulse that they could change."""
    from controller import settings

    return dict(settings.OPTIONS[driver].values())


def ask_one(port: str, driver: str, options: dict[str, int] | None = None) -> dict[str, Any]:
    """Who answers at a port in one driver's protocol. No pulse is due, but to a trigger box each byte is one. Raises `DriverError`."""
    options = placeholders(driver) if options is None else options
    return ask(driver, port, wire.for_driver(driver, options).write, options)


def ask_port(port: str, drivers: list[str]) -> list[dict[str, Any]]:
    """Ask in each driver's protocol until somebody answers: a row for each that was tried."""
    rows: list[dict[str, Any]] = []
    for driver in drivers:
        try:
            rows.append({"as": driver, "answers": True, "facts": ask_one(port, driver)})
            break
        except DriverError as error:
            rows.append({"as": driver, "answers": False, "why": str(error)})
            if isinstance(error, DeviceNotFoundError):  # no port, or not ours: so for every driver
                break
    return rows


def refusal(port: str, drivers: list[str]) -> str:
    """Why this port is not asked in these protocols; empty = it may be."""
    if not drivers:
        known = {os.path.realpath(row["device"]): row["perhaps"] for row in ports()}.get(os.path.realpath(port), [])
        hint = f" (its USB identity is that of: {', '.join(known)}, and of other things)" if known else ""
        return f"say with --as what {port} may be{hint}, one or more of {', '.join(ASKED)}: to another device our question may be a command"
    for driver in drivers:
        if driver in NEVER_ASKED:
            return f"{driver} is never asked: whatever reaches such a box is a pulse, and it has no answer"
        if driver not in ASKED:
            return f"--as {driver!r} is none of {', '.join(ASKED)}"
    if holder := held_by(port, beds_at()):
        return f"{port} is held by {holder}"
    return ""


# --- the command ------------------------------------------------------------------------------------------------------------------
def command(args: argparse.Namespace) -> int:
    """`calmloop devices`; 0 = seen, or somebody answers; 1 = something could not be looked at, or nobody answers; 2 = wrong use."""
    wrong = ""
    if args.ask is not None:
        wrong = refusal(args.ask, args.names)
    elif args.names:
        wrong = "--as needs --ask PORT: no port is asked that nobody has named"
    elif not 0.0 < args.seconds <= MAX_SECONDS:
        wrong = f"--seconds {args.seconds:g} must be above 0 and at most {MAX_SECONDS:g}"
    if wrong:
        print(json.dumps({"ok": False, "error": wrong}) if args.json else wrong, file=sys.stdout if args.json else sys.stderr)
        return 2
    facts = asked(args.ask, args.names) if args.ask is not None else seen(args.seconds)
    print(json.dumps(facts) if args.json else "\n".join(asked_words(facts) if args.ask is not None else seen_words(facts)))
    return 0 if facts["ok"] else 1


def asked(port: str, drivers: list[str]) -> dict[str, Any]:
    """Who answers at one port."""
    rows = ask_port(port, drivers)
    return {"ok": rows[-1]["answers"], "port": port, "asked": rows}


def asked_words(facts: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = []
    for row in facts["asked"]:
        if row["answers"]:
            lines += [f"{facts['port']} answers as {row['as']}: {row['facts']['identity']}", *fact_words(row["facts"])]
        else:
            lines.append(f"{facts['port']} does not answer as {row['as']}: {row['why']}")
    return lines


def fact_words(facts: dict[str, Any]) -> list[str]:
    """What a stimulator said, a line each; not what only matters while it is prepared or armed."""
    left_out = ("identity", "model", "port", "open", "armed", "stop_answered", "prepare_ms", "n_prepared_frames")
    return [f"  {name.replace('_', ' ')}: {value_words(value)}" for name, value in facts.items() if name not in left_out]


def value_words(value: object) -> str:
    """True and false are yes and no."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def seen(seconds: float) -> dict[str, Any]:
    """All there is, without touching it."""
    facts: dict[str, Any] = {"ports": ports(), "streams": [], "inputs": [], "problems": []}
    try:
        facts["streams"] = streams(seconds)
    except Exception as error:  # whatever keeps liblsl from loading is a finding here, as in doctor
        facts["problems"].append(f"no LSL streams can be looked for: {error}")
    try:
        facts["inputs"] = inputs(INPUT_DEVICES.read_text())
    except OSError as error:
        facts["problems"].append(f"input devices cannot be read: {error}")
    return {"ok": not facts["problems"], **facts}


def seen_words(facts: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = ["serial ports (none was opened; `calmloop devices --ask PORT --as NAME` asks one who it is)"]
    for port in facts["ports"]:
        usb = f"{port['usb']} {' '.join(filter(None, (port['manufacturer'], port['product'])))}" if port["usb"] else "no USB device"
        words = [usb, port["serial"] and f"serial {port['serial']}", port["location"] and f"at {port['location']}"]
        words += [port["perhaps"] and f"perhaps {' or '.join(port['perhaps'])}", port["held_by"] and f"HELD by {port['held_by']}"]
        lines.append(f"  {port['by_id'] or port['device']}{' = ' + port['device'] if port['by_id'] else ''}")
        lines.append(f"    {', '.join(filter(None, words))}")
    lines += [] if facts["ports"] else ["  none"]
    lines.append("LSL streams")
    for stream in facts["streams"]:
        rate = f"{stream['rate_hz']:g} Hz" if stream["rate_hz"] else "irregular"
        about = f"{stream['type'] or 'no type'}, {stream['channels']} ch, {rate}, on {stream['host']}, source_id {stream['source_id']!r}"
        lines.append(f"  {stream['name']!r}: {about}")
    lines += [] if facts["streams"] else ["  none"]
    lines.append("input devices that could be a button (`calmloop button learn` says which one is pressed)")
    for device in facts["inputs"]:
        may = "" if device["readable"] else "; may not be read by this user (group input)"
        where = device["by_id"] or device["device"]
        lines.append(f"  {where}: {device['name']!r}, {device['kind']}, {device['bus']} {device['usb']}{may}")
    lines += [] if facts["inputs"] else ["  none"]
    return [*lines, *facts["problems"]]
