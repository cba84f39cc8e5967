"""A recording played out as an LSL stream at its own pace, for live daemons that should not know the difference.

`python -m drivers.simulated.player FILE --options JSON --source-id ID` prints one JSON line when it is ready, begins at a line on its
standard input and ends with the file or with its standard input.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time

import numpy as np

from drivers.base import FileFormatError
from drivers.sources import files, lsl

BLOCK_S = 0.002


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
    emg = np.ascontiguousarray(rec.emg)
    stream = lsl.outlet(args.name, "EMG", rec.channels, "uV", rec.sample_rate_hz, args.source_id + "-emg")
    print(json.dumps({"ready": True, "emg": args.name, "seconds": rec.duration_s}), flush=True)
    sys.stdin.readline()
    print(json.dumps({"began": True}), flush=True)
    block = max(1, round(BLOCK_S * rec.sample_rate_hz))
    start_s = time.monotonic()
    for at in range(0, len(emg), block):
        part = emg[at : at + block]
        stamps_s = start_s + np.arange(at, at + len(part)) / rec.sample_rate_hz
        time.sleep(max(0.0, stamps_s[-1] + 1.0 / rec.sample_rate_hz - time.monotonic()))
        stream.push_chunk(part, stamps_s)
        if at % (block * 50) == 0 and select.select([sys.stdin], [], [], 0)[0] and not sys.stdin.readline():
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
