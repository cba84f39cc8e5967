"""Values put into a settings file as it stands: their lines change, and nothing else; comments stay, in their column where there is room.

The result is read back and compared with what is meant: a value that is written over several lines, or in a table without a header of its
own, cannot be changed like this.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controller.settings import Settings

#: key and sign, a value on one line, room, a comment, the line's end
_LINE = re.compile(r"""^(\s*[\w-]+\s*=\s*)("(?:[^"\\]|\\.)*"|'[^']*'|\[[^\]#"']*\]|[^\s\#"'\[{](?:[^\#\r]*[^\s\#])?)(\s*?)(\#.*?)?(\r?)$""")


class LinesError(ValueError):
    """The file is not written in such a way; the message says so."""


def edited(text: str, wanted: Mapping[tuple[str | int, ...], Any], meant: Settings) -> str:
    """Write values anew.

    Parameters
    ----------
    text : str
        A settings file.
    wanted : dict of place to value
        A place as `settings.line_numbers` gives it: ("prescription", "max_current_ma"), ("emg_rules", 0, "floor_uv").

    meant : Settings
        What the file must mean then.

    Returns
    -------
    str
        The file with them; a key that it did not have stands after the last one of its table.

    Raises
    ------
    LinesError
        It cannot be done line by line.
    """
    lines, numbers = text.split("\n"), settings.line_numbers(text)
    for place, value in wanted.items():
        if place in numbers and (line := _LINE.match(lines[numbers[place] - 1])):
            lines[numbers[place] - 1] = _with_value(line, settings.toml(value))
    ends: dict[tuple[str | int, ...], int] = {}  # the last line of a table that holds its header or a key
    for place, number in numbers.items():
        table = place if place[:-1] not in numbers else place[:-1]
        ends[table] = max(ends.get(table, 0), number)
    for table, end in sorted(ends.items(), key=lambda item: -item[1]):
        new = [f"{place[-1]} = {settings.toml(value)}" for place, value in wanted.items() if place[:-1] == table and place not in numbers]
        lines[end:end] = [f"{line}\r" for line in new] if lines[end - 1].endswith("\r") else new
    out = "\n".join(lines)
    try:
        same = settings.parse(out) == meant
    except settings.SettingsError:
        same = False
    if not same:
        raise LinesError("these values cannot be put in line by line (is one written over several lines, or in a table within a line?)")
    return out


def _with_value(line: re.Match[str], value: str) -> str:
    begin, was, space, comment, end = (part or "" for part in line.groups())
    room = len(was) + len(space) - len(value) if comment else 0
    return f"{begin}{value}{' ' * max(2 if comment else 0, room)}{comment}{end}"


def write(path: Path, text: str, mode: int = 0o644, replace: bool = True) -> None:
    """Write a file whole or not at all. Raises OSError; FileExistsError where it must not be replaced, and is there."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    new = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.chmod(mode)
        if replace:
            new.replace(path)
        else:
            os.link(name, path)  # fails where somebody was quicker
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # a power cut must not bring the old one back
        finally:
            os.close(folder)
    finally:
        new.unlink(missing_ok=True)
