"""The bench's loop: `controller.loop` in the fast clinic. Started by `bench.bed`, or alone with a sink for a guard."""

from __future__ import annotations

import os
import sys

from numba import njit, types

from bench import fast_clinic
from controller import loop


def plant(ms: float) -> None:
    """Make every step of the loop slower by a sleep: shows that the gate sees it. Compiled anew, so that nothing of it is kept."""
    usleep, step, us = types.ExternalFunction("usleep", types.int32(types.uint32)), loop.step, round(ms * 1000)

    @njit(nogil=True)
    def slow_step(s, emg_uv, emg_t_s, force, force_t_s, feedback, received_ns, cycle):
        usleep(us)
        step(s, emg_uv, emg_t_s, force, force_t_s, feedback, received_ns, cycle)

    loop.step = slow_step
    loop.run = njit(nogil=True)(loop.run.py_func)


if __name__ == "__main__":
    fast_clinic.hurry_loop()
    plant_ms = float(os.environ.get(fast_clinic.PLANT_MS, "0"))
    if plant_ms:
        plant(plant_ms)
    sys.exit(loop.main())
