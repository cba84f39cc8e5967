"""Where signals come from, by the word before the colon in the settings' `device`; without one, from an LSL stream that is there already.

The loop hears LSL alone: what speaks something else is a `drivers.base.SignalSource`, which `bridge` publishes as LSL on this machine, in a
process of its own. So there is one way in, one recording and one set of checks, and a driver that hangs holds nobody up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivers.base import DeviceNotFoundError

if TYPE_CHECKING:
    from drivers.base import SignalSource

KINDS = ("serial", "brainflow")


def load(device: str, n_channels: int, sample_rate_hz: float) -> SignalSource:
    """Construct the source at `device`; no input or output yet. Raises `DeviceNotFoundError` for a kind that we do not know.

    Parameters
    ----------
    device : str
        "serial:PORT" or "serial:PORT@BAUD": lines of numbers; "brainflow:BOARD" or "brainflow:BOARD@PORT".
    n_channels : int
        What each sample must hold.
    sample_rate_hz : float
        What the settings say; compared where the device can be asked.
    """
    kind, _, where = device.partition(":")
    if kind == "serial":
        from drivers.sources import serial_lines

        port, _, baud = where.partition("@")
        return serial_lines.SerialLines(port, n_channels, serial_lines.baud_of(baud))
    if kind == "brainflow":
        from drivers.sources import brainflow_board

        board, _, port = where.partition("@")
        return brainflow_board.BrainFlowBoard(board, port, n_channels, sample_rate_hz)
    raise DeviceNotFoundError(f"no source of signals is called {device!r}; it begins with {', '.join(f'{name}:' for name in KINDS)}")
