"""The bench's loop: `controller.loop` in the fast clinic. Started by `bench.bed`, or alone with a sink for a guard."""

from __future__ import annotations

import os
import sys
import time

from bench import fast_clinic
from controller import loop


def plant(ms: float) -> None:
    """Make every step of the loop slower by a sleep: shows that the gate sees it."""
    step = loop.Loop.step

    def slow(self: loop.Loop, chunk: object) -> object:
        time.sleep(ms / 1000)
        return step(self, chunk)

    loop.Loop.step = slow


if __name__ == "__main__":
    fast_clinic.hurry_loop()
    plant_ms = float(os.environ.get(fast_clinic.PLANT_MS, "0"))
    if plant_ms:
        plant(plant_ms)
    sys.exit(loop.main())
