"""`python -m bench.recording_writer FOLDER ...`: records a made-up session with the shipped recorder and tells each thing it is sure of.

After each call that returned, an acknowledgement goes to standard output, in one write: whoever reads it knows what must be in the file
from then on, whatever happens to this process. Each value is given by the number of its sample, so that a judge needs nothing but the file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import signal
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.job import ROOT
from controller import audit, recording, settings
from drivers.base import Chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.settings import Settings

ACK = struct.Struct("<dQQQQ")  # monotonic s, bytes written, bytes on the disk for certain, EMG samples, force samples
START_S = 1000.0  # of the stamps
PERIOD = 4001  # of the signal, samples: prime, so that no chunk repeats
BLOCK_S = 0.002
CYCLES = 5  # of one turn of the daemon, 10 ms
FORCE_DIVIDER = 4  # EMG samples to one of force


def config_of(n_channels: int, sample_rate_hz: float) -> Settings:
    """The demo's settings with more channels."""
    demo = settings.load(ROOT / "config" / "demo.toml")
    assert demo.emg and demo.force
    names = (*demo.emg.channels, *(f"EMG{i}" for i in range(len(demo.emg.channels), n_channels)))[: max(n_channels, len(demo.emg.channels))]
    emg = demo.emg.model_copy(update={"channels": names, "sample_rate_hz": sample_rate_hz})
    force = demo.force.model_copy(update={"sample_rate_hz": sample_rate_hz / FORCE_DIVIDER})
    return demo.model_copy(update={"emg": emg, "force": force})


def periods(n_channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One period of the signals, (PERIOD, n_channels) and (PERIOD, 1) float64."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((PERIOD, n_channels)) * 20.0, rng.standard_normal((PERIOD, 1))


def main() -> int:
    """0 = as long as was asked for, 3 = the recording failed and said so."""
    parser = argparse.ArgumentParser(prog="bench.recording_writer")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of signal")
    parser.add_argument("--fast", action="store_true", help="as fast as it goes, not at the rate of the samples")
    parser.add_argument("--limit", type=int, help="of the size of a file, bytes: a write takes what fits, then fails")
    args = parser.parse_args()
    if args.limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (args.limit, resource.RLIM_INFINITY))
    config = config_of(args.channels, args.rate)
    assert config.emg
    n_channels, n_block = len(config.emg.channels), round(BLOCK_S * args.rate)
    n_force = n_block // FORCE_DIVIDER
    emg_period, force_period = periods(n_channels)
    detections, feedback = np.zeros((len(config.rows), len(recording.DETECTION_FIELDS))), np.zeros((0, len(recording.FEEDBACK_FIELDS)))
    nothing = dict.fromkeys(recording.CYCLE_FIELDS, 0)

    def cycle(i: int) -> recording.RecordedCycle:
        at, force_at = np.arange(i * n_block, (i + 1) * n_block), np.arange(i * n_force, (i + 1) * n_force)
        stamps_s, force_s = START_S + at / args.rate, START_S + force_at * FORCE_DIVIDER / args.rate
        received_ns = round(stamps_s[-1] * 1e9)
        chunk = Chunk(emg_period[at % PERIOD], stamps_s, force_period[force_at % PERIOD], force_s, feedback, received_ns)
        numbers = nothing | {"index": i + 1, "received_ns": received_ns, "n_emg": n_block, "n_force": n_force, "n_rules": len(config.rows)}
        return recording.RecordedCycle(chunk, numbers, float(stamps_s[-1]), 0.0, 0.0, detections)

    (args.folder / recording.SETTINGS).write_text(config.to_toml())
    recorder, rows = recording.Recorder(args.folder, config), audit.Audit(args.folder / recording.AUDIT, audit.key(make=True))
    rows.add(time.monotonic_ns(), "session", settings_sha256=hashlib.sha256((args.folder / recording.SETTINGS).read_bytes()).hexdigest())
    recorder.loop_number = 1

    def acknowledge() -> None:
        n = recorder.samples
        os.write(1, ACK.pack(time.monotonic(), recorder.writer.size, recorder.kept_bytes, n["emg"], n["force"]))

    acknowledge()
    began_s, turns, turn_s = time.monotonic(), round(args.seconds / (BLOCK_S * CYCLES)), BLOCK_S * CYCLES
    try:
        for turn in range(turns):
            recorder.cycles([cycle(turn * CYCLES + i) for i in range(CYCLES)])
            acknowledge()
            if turn % 100 == 99:  # as often as the daemon
                recorder.note(time.monotonic(), {"what": recording.ANCHOR, **rows.head._asdict()})
                recorder.mark()
                acknowledge()
            if not args.fast:
                time.sleep(max(0.0, began_s + (turn + 1) * turn_s - time.monotonic()))
        rows.add(time.monotonic_ns(), recording.END)
        recorder.note(time.monotonic(), {"what": recording.END, "records_lost": 0, **rows.head._asdict()})
        recorder.close()
        acknowledge()
    except OSError as error:
        print(f"recording failed: {error}", file=sys.stderr)
        try:  # as the daemon does
            recorder.note(time.monotonic(), {"what": "failed"})
            recorder.close()
        except OSError as again:
            print(f"the end could not be written: {again}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
