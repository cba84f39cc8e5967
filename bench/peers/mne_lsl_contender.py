"""mne-lsl: StreamLSL with its own filter, the decision in `add_callback`, which runs right after the filter in the thread that pulled.

StreamLSL never waits for a sample, it looks whether there is one, so its pause bounds its latency. As it comes, a thread acquires each
millisecond. `--polled` is the fastest that was found: acquisition by hand, again 0.1 ms after each, for about half a processor; that thread
with a delay of 0.2 ms spends the pause spinning, and its tail was 20 ms. `bufsize` is short: the buffer is rolled at each acquisition.
"""

from __future__ import annotations

import signal
import time

import common
import numpy as np
from mne_lsl.stream import StreamLSL
from scipy.signal import lfilter

DELAY_S = 0.001  # of StreamLSL's own thread: its default
PAUSE_S = 0.0001


def main() -> None:
    """Run until SIGTERM."""
    args = common.arguments()
    common.become_real_time()
    trigger = common.Trigger(args.pipe)
    stream = StreamLSL(0.2, name=args.stream, source_id=args.source_id).connect(
        acquisition_delay=None if args.polled else DELAY_S, timeout=10
    )
    stream.filter(*common.BAND_HZ, iir_params={"order": common.ORDER, "ftype": "butter", "output": "sos"}, verbose="ERROR")
    alpha = 1 - np.exp(-1 / (common.TIME_CONSTANT_S * stream.info["sfreq"]))
    state = np.zeros(1)

    def decide(data, stamps, info):
        nonlocal state
        envelope, state = lfilter([alpha], [1.0, alpha - 1.0], np.abs(data).mean(axis=1), zi=state)
        trigger.feed(envelope)
        return data, stamps

    stream.add_callback(decide)
    while args.polled:
        stream.acquire()
        time.sleep(PAUSE_S)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
