"""Whether stimulator and button of the settings fit: what their drivers, and then guard, would refuse, told before anything starts.

Apart from `settings.py`, since the loop reads settings and must not even know that there are stimulators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller import prescribing
from controller.guard import device_of
from controller.limits import prescription_from
from controller.settings import SettingsError, guard_view
from drivers import buttons
from drivers.base import DriverError, LimitError, PulseTrain
from drivers.stimulators import limits_of, refusals

if TYPE_CHECKING:
    from controller.settings import Settings


def together(settings: Settings, name: str = "settings") -> Settings:
    """The same settings, if stimulator and trains fit. Raises `SettingsError` naming all that does not."""
    if found := problems(settings):
        raise SettingsError(f"{name}: {one}" for one in found)
    return settings


def problems(settings: Settings) -> list[str]:
    """What does not fit, a line each; empty = all does."""
    box = settings.stimulator
    trains = [PulseTrain(**{key: getattr(train, key) for key in PulseTrain.__dataclass_fields__}) for train in settings.trains.values()]
    try:
        can = limits_of(box.driver, box.options)
    except LimitError as error:
        return [f"[stimulator]: {error}", *button_problems(settings)]
    found = []
    for name, train, why in zip(settings.trains, trains, refusals(box.driver, box.options, trains), strict=True):
        if train.current_ma * 1000 > can.max_current_ua:
            told = f" with ma_per_volt = {box.ma_per_volt:g}" if box.ma_per_volt else ""
            found.append(
                f"[trains.{name}] current_ma = {train.current_ma} must be at most {can.max_current_ua / 1000:g} on {box.driver}{told}"
            )
        if why:
            found.append(f"[trains.{name}]: a {can.model} cannot give this train: {why}")
    if not found:
        try:
            prescription_from(guard_view(settings), device_of(can))
        except ValueError as error:
            found.append(f"[stimulator]: with a {can.model} guard would not start: {error}")
    if (montage := settings.prescription.montage) not in ("", *(known := prescribing.known_montages())):
        found.append(f"[prescription] montage = {montage!r} is none of those that there are: {', '.join(known)}")
    return found + button_problems(settings)


def button_problems(settings: Settings) -> list[str]:
    """What the button's driver would refuse, without looking at the device."""
    if settings.button:
        try:
            buttons.load(**settings.button.model_dump())
        except DriverError as error:
            return [f"[button]: {error}"]
    return []
