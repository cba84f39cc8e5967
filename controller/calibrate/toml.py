"""Figures for the rules of a settings file: to copy, or put into the file as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller import settings, toml_lines
from controller.calibrate.signals import UseError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from controller.calibrate.figures import Change
    from controller.settings import Settings


def snippet(changes: Sequence[Change], config: Settings) -> str:
    """The figures alone, rule by rule, to copy into a settings file."""
    lines: list[str] = []
    for table, rules in (("emg_rules", config.emg_rules), ("force_rules", config.force_rules)):
        for rule in rules:
            mine = [one for one in changes if one.rule == rule.name]
            if mine:
                name = settings.toml(rule.name)
                lines += [*([""] if lines else []), f"# in the [[{table}]] with name = {name}"]
                lines += [f"{one.key} = {settings.toml(one.after)}" for one in mine]
    return "\n".join(lines)


def replaced(text: str, changes: Sequence[Change], before: Settings, after: Settings) -> str:
    """The text of a settings file with other figures. Raises `UseError` where the lines of a figure cannot be told.

    Parameters
    ----------
    before, after : Settings
        What `text` means now, and must mean then: the result is read back and compared.
    """
    places: dict[tuple[str | int, ...], object] = {
        (table, i, one.key): one.after
        for table in ("emg_rules", "force_rules")
        for i, rule in enumerate(getattr(before, table))
        for one in changes
        if one.rule == rule.name
    }
    try:
        return toml_lines.edited(text, places, after)
    except toml_lines.LinesError as error:
        raise UseError(f"{error}: copy them") from None


def write(path: Path, text: str, overwrite: bool) -> None:
    """Write a file whole or not at all, and over no other unless told to. Raises `UseError`."""
    there = UseError(f"{path}: exists already, and nothing was written; choose another name, or say --overwrite")
    try:
        if path.exists() and not overwrite:
            raise there
        toml_lines.write(path, text, replace=overwrite)
    except FileExistsError:
        raise there from None
    except OSError as error:
        raise UseError(f"{path}: cannot be written: {error.strerror}") from None
