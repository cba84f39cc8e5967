"""ezmsg: LSLInletUnit -> ButterworthFilter -> Abs -> EWMA -> a writer, all units in one process.

Chosen: the ready-made units joined as their documents show, in one process (messages are then handed over by reference; a process for
each unit adds shared memory and sockets on two cores). `use_lsl_clock` and no processing of stamps, since nobody here needs them: the
inlet's dejittering and conversion of clocks are left out. The inlet waits in liblsl (`min_samples=1`), which is the default and the best.
Filter, Abs and EWMA in one composite unit were 8 % faster at one sample a chunk and no faster at ten: left as people would join them.
"""

from __future__ import annotations

import signal
import socket
from itertools import pairwise

import common
import ezmsg.core as ez
import pylsl
from ezmsg.lsl.inlet import LSLInfo, LSLInletSettings, LSLInletUnit
from ezmsg.sigproc.butterworthfilter import ButterworthFilter, ButterworthFilterSettings
from ezmsg.sigproc.ewma import EWMASettings, EWMAUnit
from ezmsg.sigproc.math.abs import Abs
from ezmsg.util.messages.axisarray import AxisArray


class WriterSettings(ez.Settings):
    """Where the bytes go."""

    pipe: str


class Writer(ez.Unit):
    """A byte at each rising crossing of the channels' mean."""

    SETTINGS = WriterSettings
    INPUT_SIGNAL = ez.InputStream(AxisArray)

    async def initialize(self) -> None:
        """Open the pipe."""
        self.trigger = common.Trigger(self.SETTINGS.pipe)

    @ez.subscriber(INPUT_SIGNAL)
    async def on_signal(self, message: AxisArray) -> None:
        """One message."""
        self.trigger.feed(message.data.mean(axis=1))


def free_port() -> int:
    """A port of this machine that nobody has: on the common one, two runs would share their topics."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def main() -> None:
    """Run until SIGTERM."""
    args = common.arguments()
    common.become_real_time()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ezmsg takes for a wish to end in order
    low_hz, high_hz = common.BAND_HZ
    units = {
        "INLET": LSLInletUnit(
            LSLInletSettings(info=LSLInfo(name=args.stream, nominal_srate=2000.0), use_lsl_clock=True, processing_flags=pylsl.proc_none)
        ),
        "FILTER": ButterworthFilter(ButterworthFilterSettings(order=common.ORDER, cuton=low_hz, cutoff=high_hz, coef_type="sos")),
        "ABS": Abs(),
        "EWMA": EWMAUnit(EWMASettings(time_constant=common.TIME_CONSTANT_S)),
        "WRITER": Writer(WriterSettings(pipe=args.pipe)),
    }
    chain = list(units.values())
    ez.run(
        components=units,
        connections=tuple((first.OUTPUT_SIGNAL, then.INPUT_SIGNAL) for first, then in pairwise(chain)),
        force_single_process=True,
        graph_address=("127.0.0.1", free_port()),
        auto_start=True,
    )


if __name__ == "__main__":
    main()
