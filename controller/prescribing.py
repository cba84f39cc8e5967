"""The prescription on the page: its fields with their limits and who sets each, a change of it, and the versions before.

A change is a change of the settings file: the lines that differ are written anew, comments stay, and the whole is checked as every file is
before anything is kept. What was in force before stays beside it, by number (G6: whoever changed an older version than the one in force is
refused). Nothing here decides who may: guard does.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Le

from controller import montages, settings, toml_lines
from controller.settings import DEVICES, Prescription, Settings, SettingsError, Train

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pydantic.fields import FieldInfo

#: table ("prescription", "trains.NAME") -> key -> value
Changes = dict[str, dict[str, Any]]

KEPT_BY_US = ("version", "author", "reason")  # of each change, not figures of it
MAX_WHOLE = 10**15  # of a browser's numbers; larger ones no field takes
MAX_VERSIONS = 50  # that are shown
FOLDER = ".versions"  # beside the settings file, named after it


class Limit(NamedTuple):
    """What one layer lets a field be."""

    least: float | None
    most: float | None
    layer: str


# --- the form ---------------------------------------------------------------------------------------------------------------------
def form(config: Settings) -> dict[str, Any]:
    """Return what a page needs to draw the form and to say what follows from it, as plain JSON.

    Returns
    -------
    dict
        ``version``, ``author``, ``reason``; ``fields``: a row each with table, key, kind, value, unit, what it is about and its limits;
        ``figures``: per train, value beside limit and who sets that.
    """
    rx = config.prescription
    rows = [_row(config, "prescription", Prescription, rx, key) for key in Prescription.model_fields if key not in KEPT_BY_US]
    for name, train in config.trains.items():
        rows += [_row(config, f"trains.{name}", Train, train, key) for key in Train.model_fields]
    given = settings.summary(config)
    return {
        "version": rx.version,
        "author": rx.author,
        "reason": rx.reason,
        "fields": rows,
        "trains": given["trains"],
        "notes": given["notes"],
        "montage": rx.montage,
        "side": rx.side,
    }


def _row(config: Settings, table: str, model: type[settings.Table], values: settings.Table, key: str) -> dict[str, Any]:
    field = model.model_fields[key]
    choices: tuple[str, ...] = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if key == "manual_train":
        choices = tuple(config.trains)
    elif key == "montage":
        choices = ("", *known_montages())
    return {
        "table": table,
        "key": key,
        "kind": "choice" if choices else "whole" if field.annotation is int else "number" if field.annotation is float else "text",
        "choices": list(choices),
        "value": getattr(values, key),
        "unit": settings.unit(key),
        "about": field.description or "",
        "step": DEVICES[config.stimulator.driver].current_step_ma or None if key == "current_ma" else None,
        "limits": [limit._asdict() for limit in _limits(config, values, key, field)],
    }


def _limits(config: Settings, values: settings.Table, key: str, field: FieldInfo) -> Iterator[Limit]:
    """Who bounds this field: the code's hard limits, the stimulator, and the prescription over its trains."""
    least = next((float(str(limit.ge)) for limit in field.metadata if isinstance(limit, Ge)), None)
    most = next((float(str(limit.le)) for limit in field.metadata if isinstance(limit, Le)), None)
    if least is not None or most is not None:
        yield Limit(least, most, "hard limit" if "hard limit" in (field.description or "") else "settings")
    if not isinstance(values, Train):
        return
    rx, device = config.prescription, DEVICES[config.stimulator.driver]
    if key == "channel":
        yield Limit(None, float(device.n_channels), f"stimulator {config.stimulator.driver}")
    elif key == "current_ma":
        yield Limit(None, rx.max_current_ma, "prescription, max_current_ma")
        yield Limit(None, round(rx.max_charge_per_phase_uc * 1e3 / values.phase_width_us, 3), "prescription, max_charge_per_phase_uc")
    elif key == "phase_width_us":
        yield Limit(None, float(int(rx.max_charge_per_phase_uc * 1e3 / values.current_ma)), "prescription, max_charge_per_phase_uc")
    elif key == "duration_ms":
        yield Limit(None, min(rx.max_event_s, rx.max_on_time_s_in_60_s) * 1e3, "prescription, max_event_s and max_on_time_s_in_60_s")


def as_written(config: Settings, changes: Changes) -> dict[str, Any]:
    """Figures of the trains as changes would have them, sound or not: what is out of range is shown as such; no number, no figures."""

    def with_changes(table: settings.Table, name: str) -> dict[str, Any]:
        rows = changes.get(name) if isinstance(changes, dict) else None
        return table.model_dump() | {
            key: value for key, value in (rows if isinstance(rows, dict) else {}).items() if key in type(table).model_fields
        }

    told = {}
    for name, train in config.trains.items():
        values, limits = with_changes(train, f"trains.{name}"), with_changes(config.prescription, "prescription")
        numbers = [*values.values(), limits["electrode_area_cm2"], limits["max_current_ma"], limits["max_charge_per_phase_uc"]]
        if all(type(value) in (int, float) and 0 <= value < MAX_WHOLE for value in numbers):
            with suppress(ArithmeticError, ValueError):  # nothing can be said of such a train
                told[name] = settings.train_figures(Train.model_construct(**values), Prescription.model_construct(**limits))
    return told


@lru_cache(maxsize=1)
def known_montages() -> Mapping[str, montages.Montage]:
    """All montages by name."""
    return montages.load(settings.default_config("montages.toml")).montages


# --- a change ---------------------------------------------------------------------------------------------------------------------
def changed(text: str, changes: Changes, more: Mapping[str, Any], name: str) -> tuple[str, Settings]:
    """Change a settings file.

    Parameters
    ----------
    text : str
        The file; it is sound.
    changes : dict of table to dict of key to value
        Of fields of `form` alone.
    more : dict of key to value
        Of ``[prescription]``: version, author, reason.
    name : str
        What mistakes are reported under.

    Returns
    -------
    text : str
        The new file.
    settings : Settings
        What is in it, checked.

    Raises
    ------
    SettingsError
        A field that is not in the form, a value that a file may not have, a line that cannot be changed by itself.
    """
    before = settings.parse(text, name)
    wanted: dict[tuple[str | int, ...], Any] = {("prescription", key): value for key, value in more.items()}
    raw = before.model_dump(mode="json", exclude_none=True)
    for table, rows in changes.items() if isinstance(changes, dict) else [("changes", None)]:
        named = table.startswith("trains.") and table.removeprefix("trains.") in before.trains
        model = Prescription if table == "prescription" else Train if named else None
        if model is None or not isinstance(rows, dict):
            raise SettingsError([f"{name}: {table!r:.60} is no table of the prescription; it has prescription and trains.NAME"])
        for key, value in rows.items():
            if key not in model.model_fields or (model is Prescription and key in KEPT_BY_US):
                raise SettingsError([f"{name}: [{table}] {key!r:.60} is no field of the form"])
            # JSON of a browser writes 18 for 18.0
            number = model.model_fields[key].annotation is float and type(value) is int and abs(value) < MAX_WHOLE
            wanted[*table.split(".", 1), key] = float(value) if number else value
    for place, value in wanted.items():
        into = raw["prescription"] if place[0] == "prescription" else raw["trains"][place[1]]
        into[place[-1]] = value
    expected = settings.of_tables(raw, name)
    differs = {place: value for place, value in wanted.items() if _value(before, place) != value}
    try:
        return toml_lines.edited(text, differs, expected), expected
    except toml_lines.LinesError as error:
        raise SettingsError([f"{name}: {error}: change it by hand"]) from None


def _value(config: Settings, place: tuple[str | int, ...]) -> Any:
    table = config.prescription if place[0] == "prescription" else config.trains[str(place[1])]
    return getattr(table, str(place[-1]))


# --- keeping ----------------------------------------------------------------------------------------------------------------------
def versions_folder(path: Path) -> Path:
    """Where the versions of a settings file are kept."""
    return path.with_name(path.name + FOLDER)


def keep(path: Path, before: str, after: str, version: int) -> None:
    """Put a change into force: both versions are kept, then the file is replaced, whole or not at all. Raises OSError."""
    folder = versions_folder(path)
    folder.mkdir(mode=0o700, exist_ok=True)
    mode = path.stat().st_mode & 0o777
    for to, text in ((folder / _name(version - 1), before), (folder / _name(version), after), (path, after)):
        toml_lines.write(to, text, mode)


def _name(version: int) -> str:
    return f"{version:06}.toml"


def versions(folder: Path) -> list[dict[str, Any]]:
    """Return what was prescribed before, newest first: version, author, reason, when it was kept, and what differs from the one before."""
    rows: list[dict[str, Any]] = []
    last: Settings | None = None
    for path in sorted(folder.glob("[0-9]*.toml"))[-MAX_VERSIONS:]:
        try:
            config = settings.load(path)
        except SettingsError as error:
            rows.append({"version": path.stem, "author": "", "reason": "", "kept": "", "changes": [f"cannot be read: {error.problems[0]}"]})
            continue
        rx = config.prescription
        kept = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        rows.append({"version": rx.version, "author": rx.author, "reason": rx.reason, "kept": kept, "changes": differences(last, config)})
        last = config
    return rows[::-1]


def differences(before: Settings | None, after: Settings) -> list[str]:
    """What differs between two prescriptions, a line each."""
    if before is None:
        return []
    pairs: list[tuple[str, settings.Table, settings.Table]] = [("prescription", before.prescription, after.prescription)]
    pairs += [(name, before.trains[name], train) for name, train in after.trains.items() if name in before.trains]
    lines = [f"train {name} is new" for name in after.trains if name not in before.trains]
    lines += [f"train {name} is gone" for name in before.trains if name not in after.trains]
    for name, old, new in pairs:
        for key, value in new:
            if key not in KEPT_BY_US and (was := getattr(old, key)) != value:
                unit = settings.unit(key)
                lines.append(f"{name}: {key} {settings.toml(was)} → {settings.toml(value)}{f' {unit}' if unit else ''}")
    return lines
