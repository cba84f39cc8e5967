"""The stimulators we can drive, by the name that the settings use.

A driver's module is imported only when it is chosen, so one that lacks its library never breaks another. The composition root imports
this. Only guard calls `load`: for people who want to know who is at a port there is `ask`, which hands out facts and never a stimulator.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, cast

from drivers.base import DeviceNotFoundError, DriverError, LimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from drivers.base import PulseTrain, Stimulator, StimulatorLimits

STIMULATORS: dict[str, tuple[str, str]] = {
    "rehamove3": ("drivers.stimulators.sciencemode34", "ScienceMode34"),
    "p24": ("drivers.stimulators.sciencemode34", "ScienceMode34"),
    "sciencemode2": ("drivers.stimulators.sciencemode2", "ScienceMode2"),
    "sciencemode1": ("drivers.stimulators.sciencemode1", "ScienceMode1"),
    "pulsepal": ("drivers.stimulators.pulsepal", "PulsePal"),
    "ttl-byte": ("drivers.stimulators.ttl", "Ttl"),
    "ttl-cedrus": ("drivers.stimulators.ttl", "Ttl"),
    "ttl-line": ("drivers.stimulators.ttl", "Ttl"),
    "motimove": ("drivers.stimulators.motimove", "MotiMove"),
}


def load(name: str, port: str, write: Callable[[int, bytes], int] = os.write, options: Mapping[str, int] | None = None) -> Stimulator:
    """Construct the driver called `name` for `port`; no input or output yet. Raises `DeviceNotFoundError` for a name we do not know.

    Every byte that the driver ever sends goes through `write`. `options` are what a person must say of a stimulator that cannot be asked.
    """
    try:
        module, class_name = STIMULATORS[name]
    except KeyError:
        raise DeviceNotFoundError(f"no stimulator driver is called {name!r}; there are: {', '.join(sorted(STIMULATORS))}") from None
    return cast("Stimulator", getattr(import_module(module), class_name)(port, name, write, **(options or {})))


def refusals(name: str, options: Mapping[str, int] | None, trains: Sequence[PulseTrain]) -> list[str]:
    """Why the driver called `name` cannot give each of these trains, apart from its current; empty = it can. Sends nothing."""
    driver, found = load(name, "", options=options), []
    for train in trains:
        try:
            driver.prepare([replace(train, current_ma=driver.limits.current_step_ua / 1000)])
        except LimitError as error:
            found.append(str(error))
        else:
            found.append("")
    return found


def limits_of(name: str, options: Mapping[str, int] | None = None) -> StimulatorLimits:
    """What the stimulator called `name` can do, for those who may ask and not drive. Raises `DeviceNotFoundError`."""
    return load(name, "", options=options).limits


def ask(name: str, port: str, write: Callable[[int, bytes], int], options: Mapping[str, int] | None = None) -> dict[str, object]:
    """Open `port` as the driver called `name` does, ask who is there, close it; nothing is prepared or armed, so no pulse can leave.

    Whoever asks hands over the wire check's `write` with nothing due. Raises `DriverError`: nobody answers, or somebody else does.
    """
    device = load(name, port, write, options)
    try:
        device.open()
        facts = device.status() | {"identity": device.identify()}
        if questions := getattr(device, "questions", None):  # what this box can say besides, such as its battery
            try:
                facts |= questions()
            except DriverError as error:
                facts["questions"] = f"not answered: {error}"
        return facts
    finally:
        device.close()


def line_facts(name: str, port: str) -> dict[str, object]:
    """Open `port` with the line settings of the driver called `name`, send nothing, close it: `exclusive`, `low_latency`.

    Raises `DriverError`. Opening raises DTR and RTS, which is a pulse for a box that listens to lines: never for `ttl-*`.
    """
    module, class_name = STIMULATORS[name]
    from drivers.stimulators.serial_device import open_port

    fd, facts = open_port(port, getattr(import_module(module), class_name).LINE)
    os.close(fd)
    return facts
