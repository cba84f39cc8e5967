"""`calmloop status --watch`: the beds on a terminal, drawn anew twice a second until ^C. Standard library alone, plain ANSI."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from controller import messages
from controller.alarms import HIGH, LOW, MEDIUM, alarms, mode, plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

EVERY_S = 0.5
GUARD_S = 0.4  # until a guard that does not answer is called silent
UNKNOWN = "unknown"
RESET = "\x1b[0m"
#: how a state looks: white on red, black on yellow ... (ECMA-48, 8.3.117)
STATE_COLOURS = {
    UNKNOWN: "1;97;41",
    "FAULT": "1;97;41",
    "LOCKOUT": "1;30;43",
    "STIMULATING": "1;97;44",
    "ARMED": "1;30;42",
    "IDLE": "1;30;47",
    "OFF": "1;97;100",
}
ALARM_COLOURS = {HIGH: "1;31", MEDIUM: "33", LOW: "36"}  # red, yellow, cyan: IEC 60601-1-8
WORD = 26  # columns that the state's word stands in


class Bed(NamedTuple):
    """What is known of a bed now."""

    name: str
    status: dict[str, Any] | None  # the daemon's report; None = there is none, or it is old
    guard: dict[str, Any] | None


def look(names: set[str]) -> list[Bed]:
    """Ask all of them."""
    answers, _ = messages.ask_all(sorted(names), {"do": "status"}, GUARD_S)
    return [Bed(name, messages.daemon_status(name), answers.get(name)) for name in sorted(names)]


def urgency(bed: Bed) -> tuple[int, str]:
    """Order of beds: what is cut off below must be what matters least."""
    levels = [alarm.level for alarm in alarms(bed.status, bed.guard, asked=True)]
    return (HIGH, MEDIUM, LOW).index(levels[0]) if levels else 3, bed.name


def lines_of(bed: Bed, colour: bool, columns: int = 1000) -> list[str]:
    """One bed as lines: its state first, then alarms, which are not cut off at the right, then the rest."""
    s = bed.status or {}
    state = s.get("state", UNKNOWN)
    head = f"  {f'{state} {mode(s)}':<{WORD}}bed {bed.name}  "
    if colour:
        lines = [_in(STATE_COLOURS.get(state, STATE_COLOURS[UNKNOWN]), _plain(line)) for line in (" " * len(head), head, " " * len(head))]
    else:
        lines = [f"==={head}==="]
    for alarm in alarms(bed.status, bed.guard, asked=True):
        text = textwrap.wrap(_plain(f"{alarm.level.upper():<6} {alarm.words}"), max(20, columns), subsequent_indent=" " * 7)
        lines += [_in(ALARM_COLOURS[alarm.level], line) if colour else line for line in text]
    return [*lines, *(f"  {name:<14}{text}" for name, text in facts(s, bed.guard or {}) if text)]


def facts(s: Mapping[str, Any], guard: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What there is to know besides, as (name, text); what is not known is not there."""
    if not s:
        return [("guard says", f"{guard['state']}{' automatic' if guard['automatic'] else ''} ({guard['reason']})")] if guard else []
    dose, measured = s.get("dose", {}), s.get("latency", {})
    allowed = guard.get("dose", {})
    last = s.get("last_trigger") or {}
    return [
        ("why", plain(s["reason"])),
        ("signals", f"{'ok' if s['data_ok'] else _wrong(s)}, newest sample {_ms(s['sample_age_ms'])}, loop {s['loop']}"),
        ("rules", "; ".join(_rule(name, rule, s["data_ok"]) for name, rule in s["rules"].items())),
        ("given", f"{s['trains']} trains, {s['pulses']} pulses; {s['requests']} asked for by the rules, {s['refusals']} refused"),
        ("session", _dose(dose.get("session"), allowed.get("session"))),
        ("last 24 h", _dose(dose.get("day"), allowed.get("24h"))),
        ("latency", _latency(measured)),
        ("last trigger", f"{'sample' if 'pulled_ms' in last else 'press'} to pulse {_ms(last.get('sum_ms'))}" if last else "none yet"),
        ("recording", f"{s['recording_bytes'] / 1e6:.1f} MB, {s['disk_free_bytes'] / 1e9:.0f} GB free, for {s['up_s']:.0f} s"),
    ]


def _rule(name: str, rule: Mapping[str, Any], data_ok: bool) -> str:
    veto, quality = rule.get("veto", ""), rule.get("quality", "ok")
    words = [
        "unknown" if not data_ok else "SPASM" if rule["active"] else "at rest",
        f"held back: {veto}" if veto else "",
        quality if quality != "ok" else "",
    ]
    return f"{name} {', '.join(filter(None, words))}"


def _dose(given: Mapping[str, Any] | None, allowed: Mapping[str, Any] | None) -> str:
    if not given:
        return ""
    share = f" ({100e9 * given['on_time_s'] / allowed['max_on_ns']:.0f} % of what is allowed)" if allowed else ""
    return f"{given['on_time_s']:.1f} s{share}, {given['pulses']} pulses, {given['charge_mc']:.2f} mC"


def _latency(measured: Mapping[str, Mapping[str, Any]]) -> str:
    shown = [(name, measured[name]) for name in ("sample_age", "request_transit", "ack") if measured.get(name, {}).get("n")]
    words = [f"{name.replace('_', ' ')} {q['p99_ms']:.2f} / {q['max_ms']:.2f}" for name, q in shown]
    return f"{', '.join(words)} ms (p99 / max)" if words else ""


def _wrong(s: Mapping[str, Any]) -> str:
    faults = [f"{name} {what}" for name, what in s.get("streams", {}).items() if what != "fine"]
    return f"NO DATA ({', '.join(faults)})" if faults else "NO DATA"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f} ms"


def _in(codes: str, text: str) -> str:
    return f"\x1b[{codes}m{text}{RESET}"


def _plain(text: str) -> str:
    """What others wrote moves no cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def screen(beds: list[Bed], colour: bool, columns: int, rows: int) -> str:
    """Everything that fits, over what stood there before.

    Parameters
    ----------
    beds : list of Bed
    colour : bool
        Whether the terminal has colours.
    columns, rows : int
        Its size, in characters.
    """
    lines = [line for bed in sorted(beds, key=urgency) for line in [*lines_of(bed, colour, columns), ""]] or [
        "no bed is running that can be found from here",
        "",
    ]
    lines.append(f"{time.strftime('%H:%M:%S')}  ^C ends this and no bed")
    shown = [_cut(line, columns) for line in lines]
    if len(shown) > rows > 1:
        shown = [*shown[: rows - 1], _cut(f"... {len(shown) - rows + 1} more lines: a taller window, or --bed", columns)]
    return "\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in shown) + "\x1b[J"


def _cut(line: str, columns: int) -> str:
    """A line that does not wrap; colour codes have no width, and stand at both ends of a line alone."""
    if line.startswith("\x1b["):
        code, text = line.split("m", 1)
        return f"{code}m{_plain(text.removesuffix(RESET))[:columns]}{RESET}"
    return _plain(line)[:columns]


def has_colour() -> bool:
    """Whether the terminal shows colours, and nobody said no (https://no-color.org)."""
    return os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")


def command(args: argparse.Namespace) -> int:
    """`calmloop status --watch`; 0 at ^C."""
    names: set[str] = {args.bed} if args.bed else set()
    drawn = sys.stdout.isatty() and not args.json
    try:
        if drawn:
            print("\x1b[2J", end="")
        while True:
            begun = time.monotonic()
            if not args.bed:
                names |= set(messages.beds())  # one that has gone stays, as unknown: that it is gone must be seen
            beds = look(names)
            if args.json:
                print(json.dumps({bed.name: {"daemon": bed.status, "guard": bed.guard} for bed in beds}), flush=True)
            elif drawn:
                size = shutil.get_terminal_size()
                print(screen(beds, has_colour(), size.columns, size.lines), end="", flush=True)
            else:
                print("\n".join(_plain(line) for bed in beds for line in lines_of(bed, colour=False)), end="\n\n", flush=True)
            time.sleep(max(0.05, EVERY_S - (time.monotonic() - begun)))
    except KeyboardInterrupt:
        if drawn:
            print(RESET)
        return 0
