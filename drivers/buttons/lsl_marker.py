"""A button of another program: an LSL stream of the markers "press" and "release".

A stream that falls silent looks like one whose button is not pressed, so the program must say its level again at least each second;
one that does not is lost (C4). LSL knows no passwords: whoever is in this network can send such a stream.
"""

from __future__ import annotations

from time import monotonic, monotonic_ns
from typing import Any

from drivers.base import DeviceMismatchError, DeviceNotFoundError, DriverError, Edge, PortLostError

LOOK_S = 1.0
SILENCE_S = 1.5  # it says its level each second, with room
LEVELS = {"press": True, "release": False}


class LslMarker:
    """A stream of markers; a `drivers.base.Button`.

    Parameters
    ----------
    name : str
        The stream's name.
    invert : bool
        "release" is a press.
    """

    def __init__(self, name: str, invert: bool = False) -> None:
        self.name, self.invert = name, invert
        self._inlet: Any = None
        self._closed = False
        self._heard_s = 0.0  # 0 = not yet

    def open(self) -> bool:
        """Find the stream and hear its level."""
        import pylsl

        self.close()
        self._heard_s = 0.0
        found = pylsl.resolve_byprop("name", self.name, timeout=LOOK_S)
        if len(found) != 1:
            raise DeviceNotFoundError(f"{len(found)} LSL streams are called {self.name!r}, and it must be one")
        if found[0].channel_format() != pylsl.cf_string or found[0].channel_count() != 1:
            raise DeviceMismatchError(f"the LSL stream {self.name!r} is none of markers: one channel of strings")
        self._inlet = pylsl.StreamInlet(found[0], max_buflen=1, recover=False)
        try:
            # whatever it says now is its level, not a press
            self._closed = self._hear(SILENCE_S)
        except DriverError:
            self.close()
            raise
        return self._closed

    def wait(self, timeout_s: float) -> Edge | None:
        """The next edge, within so long."""
        end_s = monotonic() + timeout_s
        while (left_s := end_s - monotonic()) > 0:
            closed = self._hear(left_s)
            if closed is not self._closed:
                self._closed = closed
                return Edge(closed, monotonic_ns())
        return None

    def close(self) -> None:
        """Let the stream go."""
        if self._inlet is not None:
            self._inlet.close_stream()
            self._inlet = None

    def _hear(self, timeout_s: float) -> bool:
        """The next level that is said, within so long, or the last one. Raises `PortLostError`, `DeviceMismatchError`."""
        from pylsl.util import LostError

        try:
            sample, _ = self._inlet.pull_sample(timeout=timeout_s)
        except LostError as error:
            raise PortLostError(f"the LSL stream {self.name!r} is gone") from error
        except UnicodeDecodeError:
            raise DeviceMismatchError(f"the LSL stream {self.name!r} says bytes that are no text, neither press nor release") from None
        if sample is None:
            if monotonic() - self._heard_s > SILENCE_S:
                raise PortLostError(f"the LSL stream {self.name!r} has not said press or release for {SILENCE_S} s")
            return self._closed
        if sample[0] not in LEVELS:
            raise DeviceMismatchError(f"the LSL stream {self.name!r} says {sample[0]!r:.40}, neither press nor release")
        self._heard_s = monotonic()
        return LEVELS[sample[0]] != self.invert
