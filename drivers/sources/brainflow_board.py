"""An amplifier that BrainFlow knows (optional: `pip install brainflow 'setuptools<82'`): its EMG channels, in µV, as they come.

BrainFlow hands over what came since the last call; many boards stamp a whole USB transfer alike (brainflow issue 298), so a block's newest
sample is taken to be as old as its arrival and the others are counted back by the board's rate. 2 ms between calls bound what that adds.
Boards of 250 Hz are too slow for surface EMG; the settings' rate must be the board's own.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from drivers.base import DeviceMismatchError, DeviceNotFoundError, PortLostError, SignalBlock

LOOK_S = 0.002
ROOM = 45_000  # samples that BrainFlow may keep for us


class BrainFlowBoard:
    """A board; a `drivers.base.SignalSource`.

    Parameters
    ----------
    board : str
        Name or number of BrainFlow's `BoardIds`, such as "GFORCE_PRO_BOARD" or "-1".
    port : str
        Serial port where the board needs one; "" = it needs none.
    n_channels : int
        The first so many of its EMG channels.
    sample_rate_hz : float
        Must be the board's.
    """

    def __init__(self, board: str, port: str, n_channels: int, sample_rate_hz: float) -> None:
        self.board, self.port, self.n_channels, self.sample_rate_hz = board, port, n_channels, sample_rate_hz
        self._shim: Any = None
        self._rows: list[int] = []

    def open(self) -> None:
        """Find the board and let it stream. Raises `DeviceNotFoundError`, `DeviceMismatchError`."""
        self.close()
        try:
            from brainflow.board_shim import BoardIds, BoardShim, BrainFlowInputParams
            from brainflow.exit_codes import BrainFlowError
        except ImportError as error:  # brainflow needs pkg_resources, which setuptools 82 has no more
            raise DeviceNotFoundError(f'BrainFlow cannot be used: {error}; pip install brainflow "setuptools<82"') from error
        try:
            number = int(self.board) if self.board.lstrip("-").isdecimal() else BoardIds[self.board].value
            rate_hz, self._rows = BoardShim.get_sampling_rate(number), BoardShim.get_emg_channels(number)[: self.n_channels]
        except (KeyError, BrainFlowError) as error:
            raise DeviceNotFoundError(f"BrainFlow knows no board {self.board!r} with EMG: {error}") from error
        if rate_hz != self.sample_rate_hz:
            raise DeviceMismatchError(f"{self.board} samples at {rate_hz} Hz, the settings say {self.sample_rate_hz:g} Hz")
        if len(self._rows) < self.n_channels:
            raise DeviceMismatchError(f"{self.board} has {len(self._rows)} EMG channels, the settings name {self.n_channels}")
        parameters = BrainFlowInputParams()
        parameters.serial_port = self.port
        BoardShim.disable_board_logger()
        self._shim = BoardShim(number, parameters)
        try:
            self._shim.prepare_session()
            self._shim.start_stream(ROOM)
        except BrainFlowError as error:
            self._shim = None
            raise DeviceNotFoundError(f"{self.board} does not start: {error}") from error

    def read(self, timeout_s: float) -> SignalBlock | None:
        """What came, within so long. Raises `PortLostError`."""
        from brainflow.exit_codes import BrainFlowError

        end_s = time.monotonic() + timeout_s
        while True:
            try:
                data = self._shim.get_board_data()
            except BrainFlowError as error:
                raise PortLostError(f"{self.board}: {error}") from error
            now_s = time.monotonic()
            if data.shape[1]:
                return SignalBlock(np.ascontiguousarray(data[self._rows].T), now_s)
            if now_s >= end_s:
                return None
            time.sleep(LOOK_S)

    def close(self) -> None:
        """Let the board go."""
        shim, self._shim = self._shim, None
        if shim is not None and shim.is_prepared():
            shim.release_session()
