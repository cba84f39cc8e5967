"""Timeflux: a graph at 4 kHz with Receive (LSL), IIRFilter, and a small node for the rest.

Chosen: 4 kHz. Its scheduler looks at a fixed rate whether there are samples; at one sample a chunk p50 was 1.4 ms at 1 kHz, 1.1 ms at
2 kHz and 1.0 ms at 4 kHz, where a turn with data takes longer than a period. The graph is run by Timeflux's own worker and scheduler
within this process (its manager would put the one graph into a child process, which changes nothing but who gets the signals).
"""

from __future__ import annotations

import sys

import common
import numpy as np
from scipy.signal import lfilter
from timeflux.core.node import Node
from timeflux.core.scheduler import Scheduler
from timeflux.core.worker import Worker

RATE_HZ = 4000


class Decide(Node):
    """Rectify, smooth, a byte at each rising crossing of the channels' mean."""

    def __init__(self, pipe: str) -> None:
        self.trigger = common.Trigger(pipe)
        self.state = np.zeros(1)

    def update(self) -> None:
        """One turn of the graph."""
        if not self.i.ready():
            return
        alpha = 1 - np.exp(-1 / (common.TIME_CONSTANT_S * self.i.meta["rate"]))
        envelope, self.state = lfilter([alpha], [1.0, alpha - 1.0], np.abs(self.i.data.values).mean(axis=1), zi=self.state)
        self.trigger.feed(envelope)


def graph(source_id: str, pipe: str) -> dict:
    """As an application's YAML file would say it."""
    return {
        "id": "bench",
        "rate": RATE_HZ,
        "nodes": [
            {"id": "receive", "module": "timeflux.nodes.lsl", "class": "Receive", "params": {"prop": "source_id", "value": source_id}},
            {
                "id": "filter",
                "module": "timeflux_dsp.nodes.filters",
                "class": "IIRFilter",
                "params": {"order": common.ORDER, "frequencies": list(common.BAND_HZ)},
            },
            {"id": "decide", "module": "timeflux_contender", "class": "Decide", "params": {"pipe": pipe}},
        ],
        "edges": [{"source": "receive", "target": "filter"}, {"source": "filter", "target": "decide"}],
    }


def main() -> None:
    """Run until SIGTERM."""
    args = common.arguments()
    common.become_real_time()
    path, nodes = Worker(graph(args.source_id, args.pipe)).load()
    Scheduler(path, nodes, RATE_HZ).run()


if __name__ == "__main__":
    sys.exit(main())
