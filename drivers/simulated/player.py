"""A recording played out as LSL streams at its own pace, for live daemons that should not know the difference.

`python -m drivers.simulated.player FILE --options JSON --source-id ID` prints one JSON line when it is ready, begins at a line on its
standard input and ends with the file or with its standard input. For people there is `calmloop play`.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from drivers.base import FileFormatError
from drivers.sources import files, lsl

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from drivers.sources.files import Recording

BLOCK_S = 0.002
LOOK_S = 0.1  # how often it is asked whether to go on


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One LSL stream to be published.

    Attributes
    ----------
    name, kind, source_id : str
        As LSL has them; kind is its type, "EMG" or "Force".
    channels : tuple of str
    unit : str
        "" where the recording does not know it.
    sample_rate_hz : float
        As the stream states it and as the samples come.
    values : (n_samples, n_channels) float64, C-contiguous
    """

    name: str
    kind: str
    source_id: str
    channels: tuple[str, ...]
    unit: str
    sample_rate_hz: float
    values: NDArray[np.float64]


def streams_of(rec: Recording, name: str, source_id: str, speed: float = 1.0) -> list[Stream]:
    """EMG and, if the recording has one, force; at `speed` times the pace the stated rates are as many times higher."""

    def stated(unit: str) -> str:
        return "" if unit == "raw" else unit

    streams = [Stream(name, "EMG", source_id + "-emg", rec.channels, stated(rec.unit), rec.sample_rate_hz * speed, rec.emg)]
    if rec.force is not None and rec.force_sample_rate_hz is not None:
        rate_hz = rec.force_sample_rate_hz * speed
        streams.append(
            Stream(name + " force", "Force", source_id + "-force", rec.force_channels, stated(rec.force_unit), rate_hz, rec.force)
        )
    return streams


class Player:
    """Publishes streams from its making on; their samples come when it runs."""

    def __init__(self, streams: list[Stream]) -> None:
        self._streams = streams
        self._outlets: list[Any] = [
            lsl.outlet(s.name, s.kind, s.channels, s.unit, s.sample_rate_hz, s.source_id)  # as long as this object lives
            for s in streams
        ]

    def run(self, loop: bool = False, ended: Callable[[], bool] = lambda: False) -> None:
        """Push every sample when its time has come, stamped with that time, until the last one, or until `ended` says so.

        Parameters
        ----------
        loop : bool
            Begin again at the end of the shortest stream, without a gap in the stamps.
        ended : callable
            Asked every 0.1 s.
        """
        lengths = [len(s.values) for s in self._streams]
        if loop:
            common_s = min(len(s.values) / s.sample_rate_hz for s in self._streams)
            lengths = [max(1, min(n, round(common_s * s.sample_rate_hz))) for n, s in zip(lengths, self._streams, strict=True)]
        sent = [0] * len(lengths)
        begin_s, block = time.monotonic(), 0
        while loop or any(n < length for n, length in zip(sent, lengths, strict=True)):
            block += 1
            due_s = block * BLOCK_S
            time.sleep(max(0.0, begin_s + due_s - time.monotonic()))
            for k, stream in enumerate(self._streams):
                until = int(due_s * stream.sample_rate_hz + 1e-6)  # a sample is sent when its period is over, as an amplifier's block is
                if not loop:
                    until = min(until, lengths[k])
                if until > sent[k]:
                    places = np.arange(sent[k], until)
                    self._outlets[k].push_chunk(stream.values[places % lengths[k]], begin_s + places / stream.sample_rate_hz)
                    sent[k] = until
            if block % round(LOOK_S / BLOCK_S) == 0 and ended():
                return


def main() -> int:
    """Play one file."""
    parser = argparse.ArgumentParser(prog="drivers.simulated.player")
    parser.add_argument("file")
    parser.add_argument("--options", default="{}", help="options of drivers.sources.files.load as JSON")
    parser.add_argument("--name", default="calmloop replay")
    parser.add_argument("--source-id", required=True)
    args = parser.parse_args()
    try:
        rec = files.load(args.file, **json.loads(args.options))
    except FileFormatError as error:
        print(f"player: {error}", file=sys.stderr)
        return 2
    player = Player(streams_of(rec, args.name, args.source_id))
    print(json.dumps({"ready": True, "emg": args.name, "seconds": rec.duration_s}), flush=True)
    sys.stdin.readline()
    print(json.dumps({"began": True}), flush=True)
    player.run(ended=lambda: bool(select.select([sys.stdin], [], [], 0)[0]) and not sys.stdin.readline())
    return 0


if __name__ == "__main__":
    sys.exit(main())
