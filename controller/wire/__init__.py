"""What leaves the port is what was approved: each frame is read again, by a decoder of our own, before its bytes may go.

Guard builds its stimulator with `WireCheck.write` for `os.write`, so no byte of the driver goes another way. Each decoder (a module of
this package) is written from the maker's byte tables, apart from the driver's encoder and apart from the virtual stimulator: an encoder's
error in bits, units, channels or stuffing becomes a `WireError`, not a current. It knows a list of frames without output and one form of
pulse; all else stays here.

Standard library and `drivers.base` alone. Never here: an encoder, a device, a limit (those are the supervisor's, whose words `due` brings).
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from drivers.base import DeviceNotFoundError, WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: by the driver's name: the module with `decoder(name, **options)`, which returns a function that reads one frame
DECODERS = {
    "rehamove3": "controller.wire.sciencemode34",
    "p24": "controller.wire.sciencemode34",
    "sciencemode2": "controller.wire.sciencemode2",
    "sciencemode1": "controller.wire.sciencemode1",
    "pulsepal": "controller.wire.pulsepal",
    "ttl-byte": "controller.wire.ttl",
    "ttl-cedrus": "controller.wire.ttl",
    "ttl-line": "controller.wire.ttl",
    "motimove": "controller.wire.motimove",
}


class Pulse(NamedTuple):
    """A biphasic, balanced pulse, positive phase first; an interphase gap of 0 is none."""

    channel: int
    current_ua: int
    phase_width_us: int
    interphase_gap_us: int


class WireCheck:
    """The last look at every byte; `decode` reads one frame: its `Pulse`, or None where it has no output. Raises `WireError`.

    Attributes
    ----------
    due : tuple of (channel, current_ua, phase_width_us, interphase_gap_us), or None
        The one pulse that may leave with the next write, in the supervisor's words. Any write spends it, whatever comes of it.
    n_frames : int
        How many frames were let out so far.
    """

    __slots__ = ("_decode", "_learnt", "_stateless", "due", "n_frames")

    def __init__(self, decode: Callable[[bytes], Pulse | None], stateless: bool = True) -> None:
        self.due: tuple[int, int, int, int] | None = None
        self.n_frames = 0
        self._decode = decode
        self._stateless = stateless
        self._learnt: dict[bytes, Pulse | None] = {}

    def learn(self, frames: Iterable[bytes]) -> None:
        """Decode beforehand what the driver prepared, in place of what was learnt before. Raises `WireError` if one is unlawful.

        Where a frame means something only after what left before it (a box that keeps the pulse), there is nothing to learn.
        """
        if not self._stateless:
            return
        shapes: dict[Pulse | None, Pulse | None] = {}  # 64 frames, one for each packet number, share a pulse
        learnt = {}
        for frame in frames:
            pulse = self._decode(frame)
            learnt[frame] = shapes.setdefault(pulse, pulse)
        self._learnt = learnt

    def write(self, fd: int, data: bytes) -> int:
        """As `os.write`, called once, if `data` is one frame that may leave now. Raises `WireError`: no byte left."""
        due, self.due = self.due, None
        try:
            pulse = self._learnt[data]
        except (KeyError, TypeError, ValueError):  # not learnt; or no bytes, which could still change after the check: `_decode` says so
            pulse = self._decode(data)
        if pulse is not None and pulse != due:
            raise WireError(_difference(pulse, due))
        self.n_frames += 1
        return os.write(fd, data)


def for_driver(name: str, options: Mapping[str, int] | None = None) -> WireCheck:
    """The wire check of the driver called `name` with its options. Raises `DeviceNotFoundError`: without one, no driver is used."""
    try:
        module = import_module(DECODERS[name])
    except KeyError:
        raise DeviceNotFoundError(f"no wire check for a driver called {name!r}; there are: {', '.join(sorted(DECODERS))}") from None
    return WireCheck(module.decoder(name, **(options or {})), module.STATELESS)


def _difference(pulse: Pulse, due: tuple[int, int, int, int] | None) -> str:
    """Name what differs."""
    if due is None:
        return f"no pulse is due, but a frame was to leave: {pulse}"
    fields = zip(Pulse._fields, pulse, due, strict=True)
    return "the frame is not the pulse that is due: " + ", ".join(
        f"{name} is {ours}, due {theirs}" for name, ours, theirs in fields if ours != theirs
    )
