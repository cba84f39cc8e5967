"""What stimulators have in common whose protocol has neither packet numbers nor a question who they are: order tells answers apart.

`sciencemode1.py` and `motimove.py` stand on it. Standard library only. Never here: a protocol.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from typing import ClassVar

from drivers.base import AckTimeoutError, DeviceMismatchError, ProtocolError
from drivers.stimulators.serial_device import ANSWER_TIMEOUT_S, DISARM_TIMEOUT_S, IDENTIFY_TIMEOUT_S, N_TRIES, FrameT, SerialDevice

N_NUMBERS = 256
MAX_WAITING = 64
QUIET_S = 0.02  # for so long whoever answered who it is must have nothing to add
A_STOP = -1


class UnnumberedDevice(SerialDevice[FrameT]):
    """Numbers pulses for the box, and asks who is there with a stop: the one frame that is harmless to any box of its kind.

    Attributes
    ----------
    N_ANSWER_BYTES : int
        How long each answer is.
    """

    N_ANSWER_BYTES: ClassVar[int]

    def trigger(self, train: int, current_ua: int) -> int:
        """One pulse; its number is ours, and answers are given theirs in order."""
        number = super().trigger(train, current_ua)
        self._waiting.append(number)
        return number

    def stop(self) -> None:
        """As `SerialDevice.stop`."""
        super().stop()
        self._waiting.append(A_STOP)

    @abstractmethod
    def _ask_stop(self, timeout_s: float) -> None:
        """Send a stop and wait for its answer; sets `_stop_answered`. Raises `AckTimeoutError`, `ProtocolError`."""

    def _pulse_frame(self, train: int, current_ua: int, number: int) -> bytes:
        return self._frames[train][current_ua][0]  # the same under each number

    def _begin_link(self) -> None:
        super()._begin_link()
        self._n_numbers = N_NUMBERS
        self._waiting: deque[int] = deque(maxlen=MAX_WAITING)  # what was sent and not answered yet: numbers of pulses, and stops

    def _identify(self) -> dict[str, object]:
        for n_tries_left in reversed(range(N_TRIES)):
            try:
                self._ask_who(ANSWER_TIMEOUT_S)
                break
            except AckTimeoutError:
                if not n_tries_left:
                    raise
        told = f"answers a stop as a {self._limits.model} does; no question is known that says more"
        return {"device_id": "-", "firmware": "-", "identity": told}

    def _who_is_there(self) -> str:
        self._ask_who(IDENTIFY_TIMEOUT_S)
        return f"{self._limits.model} - -"

    def _switch_off(self) -> None:
        self._ask_stop(DISARM_TIMEOUT_S)

    def _ask_who(self, timeout_s: float) -> None:
        """Send a stop; one answer must come, and nothing after it. Raises `AckTimeoutError`, `DeviceMismatchError`."""
        self._take(self._receive())
        n_read_before = self._n_read_bytes
        stranger = f"{self.port}: something answers, but not as a {self._limits.model}"
        try:
            self._ask_stop(timeout_s)
            time.sleep(QUIET_S)
            self._take(self._receive())
        except AckTimeoutError:
            if self._n_read_bytes > n_read_before:
                raise DeviceMismatchError(stranger) from None
            raise
        except ProtocolError as error:
            raise DeviceMismatchError(f"{stranger}: {error}") from error
        n_bytes = self._n_read_bytes - n_read_before
        if n_bytes != self.N_ANSWER_BYTES:
            raise DeviceMismatchError(f"{stranger}: a stop is answered with {n_bytes} bytes, not {self.N_ANSWER_BYTES}")
