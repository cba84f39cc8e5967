"""The process that publishes a device's samples as an LSL stream on this machine; the daemon starts one for each `device` of the settings.

A device that is lost is looked for again each second; until it is found nothing is published, and the loop says "no samples". Values are
multiplied by `scale` and otherwise untouched.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time

import numpy as np

from drivers import sources
from drivers.base import DriverError
from drivers.sources import lsl

AGAIN_S = 1.0
WAIT_S = 0.5


def arguments(device: str, name: str, kind: str, channels: tuple[str, ...], unit: str, rate_hz: float, scale: float) -> list[str]:
    """What `main` is started with."""
    words = ["--parent", str(os.getpid()), "--device", device, "--name", name, "--type", kind, "--channels", json.dumps(channels)]
    return [*words, "--unit", unit, "--rate", repr(rate_hz), "--scale", repr(scale)]


def tell(text: str) -> None:
    """For people, if standard error takes it: a terminal that is held must not hold us."""
    if select.select([], [sys.stderr], [], 0)[1]:
        print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Publish until we are ended, or our parent is."""
    parser = argparse.ArgumentParser(prog="drivers.sources.bridge")
    for word in ("device", "name", "type", "unit"):
        parser.add_argument(f"--{word}", required=True)
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parser.add_argument("--channels", type=json.loads, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's ^C goes to everybody; the daemon decides what it means
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        source = sources.load(args.device, len(args.channels), args.rate)
    except DriverError as error:
        tell(f"{args.name}: {error}")
        return 2
    stream = lsl.outlet(args.name, args.type, tuple(args.channels), args.unit, args.rate, args.device)
    told = ""
    while os.getppid() == args.parent:
        try:
            source.open()
            told = ""
            tell(f"{args.name}: {args.device} is open")
            while os.getppid() == args.parent:
                block = source.read(WAIT_S)
                if block is not None:
                    # LSL counts the other samples' stamps back from the newest by the nominal rate
                    stream.push_chunk(np.ascontiguousarray(block.values * args.scale), block.newest_s)
        except DriverError as error:
            if str(error) != told:
                told = str(error)
                tell(f"{args.name}: {told}")
        finally:
            source.close()
        time.sleep(AGAIN_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
