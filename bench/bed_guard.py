"""The bench's guard: `controller.guard` on the fast clinic's clock, whose stimulator may be a named pipe. Started by `bench.bed`."""

from __future__ import annotations

import sys

from bench import fast_clinic
from controller import guard
from drivers import stimulators

if __name__ == "__main__":
    fast_clinic.hurry_guard()
    stimulators.STIMULATORS["rehamove3"] = ("bench.pipe_stimulator", "stimulator")
    sys.exit(guard.main())
