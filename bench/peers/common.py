"""What every contender shares: arguments, real-time scheduling, the job's figures, and the byte at a crossing.

Imported by the scripts beside it in environments of their own: the standard library and numpy alone.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import sys

import numpy as np

BAND_HZ = (20.0, 450.0)
ORDER = 2  # of the low-pass prototype: a band-pass of two second-order sections
TIME_CONSTANT_S = 0.002
THRESHOLD_UV = 200.0  # noise is 5 µV, bursts are 2000 µV
PRIORITY = 70
WARM_SAMPLES = 4000


def arguments() -> argparse.Namespace:
    """The command line of a contender."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stream", required=True, help="name of the LSL stream")
    parser.add_argument("--source-id", required=True, help="its source_id")
    parser.add_argument("--pipe", required=True, help="named pipe that gets a byte at each rising crossing")
    parser.add_argument("--polled", action="store_true", help="mne-lsl: ask by hand, again and again")
    return parser.parse_args()


def become_real_time() -> None:
    """SCHED_FIFO and locked memory, as our own loop asks for them; before LSL makes threads, so that they inherit it.

    A refusal is said and not fatal. From here on whatever a framework prints goes to standard error: standard output is for `ready`.
    """
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # die with whoever started us
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError as error:
        print(f"refused: SCHED_FIFO {PRIORITY}: {error.strerror}", file=sys.stderr, flush=True)
    if libc.mlockall(1 | 2 | 4):  # current, future, as touched
        print(f"refused: mlockall: {os.strerror(ctypes.get_errno())}", file=sys.stderr, flush=True)


class Trigger:
    """Writes one byte at each rising crossing, and says `ready` once enough samples came through."""

    def __init__(self, pipe: str) -> None:
        self.fd = os.open(pipe, os.O_WRONLY)  # waits for the reader
        self.above = False
        self.warming = WARM_SAMPLES

    def feed(self, envelope_uv: np.ndarray) -> None:
        """Take the next values of the envelope, one for each sample."""
        above = envelope_uv > THRESHOLD_UV
        if above.any():
            rising = np.count_nonzero(above[1:] & ~above[:-1]) + (bool(above[0]) and not self.above)
            if rising:
                os.write(self.fd, b"x" * rising)
        self.above = bool(above[-1])
        if self.warming > 0:
            self.warming -= len(above)
            if self.warming <= 0:
                gc.collect()
                gc.freeze()
                gc.disable()
                print("ready", flush=True)
