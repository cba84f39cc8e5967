"""The buttons we can listen to, by the word before the colon in the settings' `device`. A module is imported only when it is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivers.base import DeviceNotFoundError

if TYPE_CHECKING:
    from drivers.base import Button

KINDS = ("hid", "serial", "byte", "lsl")


def load(device: str, key: str = "", line: str = "", invert: bool = False) -> Button:
    """Construct the button at `device`; no input or output yet. Raises `DeviceNotFoundError` for a kind or key that we do not know.

    Parameters
    ----------
    device : str
        "hid:PATH", "serial:PORT", "byte:PORT" or "lsl:STREAM".
    key : str
        hid: name or number of the key; byte: which bits are the button, as a number, empty = all.
    line : str
        serial: "cts", "dsr", "ri" or "cd".
    invert : bool
        The contact is open while it is pressed.
    """
    kind, _, where = device.partition(":")
    if kind == "hid":
        from drivers.buttons import hid

        return hid.Hid(where, hid.code_of(key), invert)
    if kind == "serial":
        from drivers.buttons import serial_line

        return serial_line.SerialLine(where, line, invert)
    if kind == "byte":
        from drivers.buttons import ttl_byte

        return ttl_byte.TtlByte(where, ttl_byte.mask_of(key), invert)
    if kind == "lsl":
        from drivers.buttons import lsl_marker

        return lsl_marker.LslMarker(where, invert)
    raise DeviceNotFoundError(f"no button is called {device!r}; it begins with {', '.join(f'{name}:' for name in KINDS)}")
