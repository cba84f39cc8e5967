"""`calmloop button learn`: "press the button now", and the lines that the settings need.

Input devices are listened to, not taken: whoever ends this with ^C must be heard. Serial ports are opened only by name, since that moves
DTR and RTS, which is a pulse to a trigger box.
"""

from __future__ import annotations

import json
import os
import select
import sys
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from controller import devices
from drivers.base import DriverError
from drivers.buttons import hid, serial_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

MAX_SECONDS = 600.0
LOOK_S = 0.002  # at serial lines


class Found(NamedTuple):
    """Which button was pressed, as `[button]` of the settings names it."""

    device: str
    key: str = ""
    line: str = ""
    invert: bool = False

    def toml(self) -> str:
        """The table, with what is not said by default."""
        lines = ["[button]", f"device = {json.dumps(self.device, ensure_ascii=False)}"]
        lines += [f'key = "{self.key}"'] if self.key else []
        lines += [f'line = "{self.line}"'] if self.line else []
        return "\n".join([*lines, *(["invert = true"] if self.invert else [])])


def learn(inputs: Sequence[str], ports: Sequence[str], seconds: float) -> tuple[Found | None, list[str]]:
    """Wait for the first press of anything.

    Parameters
    ----------
    inputs, ports : sequence of str
        Input devices, serial ports.
    seconds : float
        At most so long.

    Returns
    -------
    found : Found or None
    problems : list of str
        What could not be listened to.
    """
    keys: dict[int, str] = {}
    lines: dict[int, tuple[str, set[str]]] = {}
    problems = []
    try:
        for path in inputs:
            try:
                keys[hid.open_input(path)[0]] = path
            except DriverError as error:
                problems.append(str(error))
        for port in ports:
            try:
                fd = serial_line.open_lines(port)
                lines[fd] = port, serial_line.active(serial_line.read_lines(fd, port))
            except DriverError as error:
                problems.append(str(error))
        end_s = monotonic() + seconds
        while (keys or lines) and (left_s := end_s - monotonic()) > 0:
            for fd in select.select(list(keys), [], [], min(left_s, LOOK_S) if lines else left_s)[0]:
                try:
                    events = hid.read_events(fd, keys[fd])
                except DriverError as error:
                    problems.append(str(error))
                    os.close(fd)
                    del keys[fd]
                    continue
                # a release is that of the Enter which started us
                if pressed := [event.code for event in events if event.type == hid.KEY and event.value == hid.PRESSED]:
                    return Found(f"hid:{keys[fd]}", key=hid.name_of(pressed[0])), problems
            for fd, (port, at_rest) in lines.items():
                if changed := sorted(serial_line.active(serial_line.read_lines(fd, port)) ^ at_rest):
                    return Found(f"serial:{port}", line=changed[0], invert=changed[0] in at_rest), problems
        return None, problems
    except DriverError as error:  # a port that was pulled out while we looked
        return None, [*problems, str(error)]
    finally:
        for fd in (*keys, *lines):
            os.close(fd)


def command(args: argparse.Namespace) -> int:
    """`calmloop button learn`; 0 = a press was seen, 1 = none was, 2 = wrong use."""
    wrong = ""
    if not 0.0 < args.seconds <= MAX_SECONDS:
        wrong = f"--seconds {args.seconds:g} must be above 0 and at most {MAX_SECONDS:g}"
    beds = devices.beds_at() if args.port else {}
    for port in args.port:
        if holder := devices.held_by(port, beds):
            wrong = f"{port} is held by {holder}"
    try:
        rows = devices.inputs(devices.INPUT_DEVICES.read_text())
        inputs = [row["by_id"] or row["device"] for row in rows]
    except OSError:
        inputs = sorted(str(path) for path in devices.INPUT_LINKS.glob("*event*"))
    if not wrong and not inputs and not args.port:
        wrong = "there is no input device here; a contact at a serial port is found with --port PORT"
    if wrong:
        print(json.dumps({"ok": False, "error": wrong}) if args.json else wrong, file=sys.stdout if args.json else sys.stderr)
        return 2
    print(f"press the button now ({args.seconds:g} s; listening to {', '.join([*inputs, *args.port])})", file=sys.stderr, flush=True)
    found, problems = learn(inputs, args.port, args.seconds)
    for problem in problems:
        print(problem, file=sys.stderr)
    if args.json:
        print(json.dumps({"ok": found is not None, "button": found and found._asdict(), "problems": problems}))
    else:
        print(found.toml() if found else "nothing was pressed", file=sys.stdout if found else sys.stderr)
    return 0 if found else 1
