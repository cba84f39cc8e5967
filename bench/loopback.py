"""`calmloop bench loopback SESSION --channel NAME`: the last stage on real hardware, from guard's write to the stimulator's output.

The stimulator's sync output is wired to a channel of the amplifier, and that channel named in `[emg] channels` of the settings (in no
rule). Any session that was recorded so then says, for each pulse that guard wrote, when the channel rose: wire, device and amplifier
together, on the amplifier's clock as LSL brings it to ours. What the amplifier's own delay is has to be subtracted by whoever knows it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import judge
from controller import recording
from drivers.base import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

WITHIN_S = 0.2  # a rise later than this after a pulse is not its own


def rises(t_s: ArrayLike, x: ArrayLike, threshold: float) -> NDArray[np.float64]:
    """Stamps at which a signal goes from below a threshold to it or above, (n,) float64, s."""
    above = np.asarray(x) >= threshold
    return np.asarray(t_s, np.float64)[1:][above[1:] & ~above[:-1]]


def delays_us(pulse_s: ArrayLike, rise_s: ArrayLike) -> list[float | None]:
    """From each pulse to the first rise after it and before the next pulse, µs; None = there was none within `WITHIN_S`."""
    pulses = np.asarray(pulse_s, np.float64)
    matched = judge.match(np.round(pulses * 1e9).astype(np.int64), np.round(np.asarray(rise_s) * 1e9).astype(np.int64))
    return [None if us is None or us > WITHIN_S * 1e6 else us for us in matched.latency_us]


def measure(session: recording.Session, channel: str, threshold: float) -> dict[str, Any]:
    """Delays of one session.

    Raises
    ------
    FileFormatError
        The session has no such channel, or no pulse.
    """
    channels = session.config.emg.channels if session.config.emg else ()
    if channel not in channels:
        raise FileFormatError(f"{session.folder}: has no EMG channel {channel!r}; there are: {', '.join(channels) or 'none'}")
    pulse_s = session.streams["pulses"].stamps_s
    if not len(pulse_s):
        raise FileFormatError(f"{session.folder}: no pulse was given in it")
    emg = session.streams["EMG"]
    delays = delays_us(pulse_s, rises(emg.stamps_s, emg.values[:, channels.index(channel)], threshold))
    step_us = 1e6 / session.config.emg.sample_rate_hz if session.config.emg else 0.0
    figures = judge.figures([us for us in delays if us is not None])
    return {
        "session": str(session.folder),
        "pulses": len(delays),
        "not_seen": delays.count(None),
        "sample_period_us": step_us,
        "figures_us": figures,
        "delay_us": delays,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0 = every pulse was seen, 1 = some were not, 2 = wrong use."""
    p = argparse.ArgumentParser(prog="bench.loopback", description=(__doc__ or "").split("\n")[0])
    p.add_argument("session", type=Path)
    p.add_argument("--channel", required=True, help="EMG channel that the sync output is wired to")
    p.add_argument("--threshold-uv", type=float, default=1000.0, help="a rise through this is the output (default 1000)")
    p.add_argument("--json", action="store_true")
    args = p.parse_args(argv)
    try:
        result = measure(recording.load(args.session), args.channel, args.threshold_uv)
    except FileFormatError as error:
        print(error, file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(result))
    else:
        figures = "  ".join(f"{name} {us / 1000:.2f} ms" for name, us in result["figures_us"].items())
        print(f"{result['pulses']} pulses, {result['not_seen']} not seen on {args.channel}; guard's write to output: {figures}")
        print(f"resolution: one sample of the amplifier, {result['sample_period_us'] / 1000:.2f} ms")
    return 1 if result["not_seen"] else 0


if __name__ == "__main__":
    sys.exit(main())
