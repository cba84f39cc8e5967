"""Figures put into a settings file as it stands: the lines of those figures change, and nothing else; comments stay."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import settings
from controller.calibrate.signals import UseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controller.calibrate.figures import Change
    from controller.settings import Settings

_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")
_VALUE = re.compile(r"^(\s*([\w-]+)\s*=\s*)([^#\r]*?)(\s*)(#.*)?(\r?)$")  # a number or a list of numbers: no # within


def written(value: Any) -> str:
    """A figure as TOML."""
    return f"[{', '.join(map(repr, value))}]" if isinstance(value, tuple) else repr(value)


def snippet(changes: Sequence[Change], config: Settings) -> str:
    """The figures alone, rule by rule, to copy into a settings file."""
    lines: list[str] = []
    for table, rules in (("emg_rules", config.emg_rules), ("force_rules", config.force_rules)):
        for rule in rules:
            mine = [one for one in changes if one.rule == rule.name]
            if mine:
                name = settings._toml(rule.name)
                lines += [*([""] if lines else []), f"# in the [[{table}]] with name = {name}"]
                lines += [f"{one.key} = {written(one.after)}" for one in mine]
    return "\n".join(lines)


def replaced(text: str, changes: Sequence[Change], before: Settings, after: Settings) -> str:
    """The text of a settings file with other figures. Raises `UseError` where the lines of a figure cannot be told.

    Parameters
    ----------
    before, after : Settings
        What `text` means now, and must mean then: the result is read back and compared.
    """
    places = {
        (table, i): {one.key: written(one.after) for one in changes if one.rule == rule.name}
        for table in ("emg_rules", "force_rules")
        for i, rule in enumerate(getattr(before, table))
    }
    lines, count = text.split("\n"), Counter[str]()
    place: tuple[str, int] = ("", 0)
    ends: dict[tuple[str, int], int] = {}  # the last line of a table that holds a key
    for number, line in enumerate(lines):
        if header := _HEADER.match(line):
            place = (header[2], count[header[2]])
            count[header[2]] += header[1] == "[["
            ends[place] = number
        elif found := _VALUE.match(line):
            ends[place] = number
            value = places.get(place, {}).pop(found[2], None)
            if value is not None:
                lines[number] = _with_value(found, value)
    for place, end in sorted(ends.items(), key=lambda item: -item[1]):
        new = [f"{key} = {value}" for key, value in places.get(place, {}).items()]
        lines[end + 1 : end + 1] = [f"{line}\r" for line in new] if lines[end].endswith("\r") else new
    out = "\n".join(lines)
    try:
        same = settings.parse(out) == after
    except settings.SettingsError:
        same = False
    if not same:
        raise UseError("the figures cannot be put into this file line by line (is a rule or a list written over several lines?): copy them")
    return out


def _with_value(found: re.Match[str], value: str) -> str:
    """One line with another value; a comment stays in its column where there is room."""
    begin, _, was, space, comment, end = (part or "" for part in found.groups())
    room = len(was) + len(space) - len(value) if comment else 0
    return f"{begin}{value}{' ' * max(2 if comment else 0, room)}{comment}{end}"


def write(path: Path, text: str, overwrite: bool) -> None:
    """Write a file whole or not at all, and over no other unless told to. Raises `UseError`."""
    try:
        if path.exists() and not overwrite:
            raise UseError(f"{path}: exists already, and nothing was written; choose another name, or say --overwrite")
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new = Path(name)
            new.chmod(0o644)
            if overwrite:
                new.replace(path)
            else:
                os.link(name, path)  # fails where somebody was quicker
        finally:
            Path(name).unlink(missing_ok=True)
    except FileExistsError:
        raise UseError(f"{path}: exists already, and nothing was written; choose another name, or say --overwrite") from None
    except OSError as error:
        raise UseError(f"{path}: cannot be written: {error.strerror}") from None
