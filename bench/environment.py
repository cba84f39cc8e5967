"""Where a figure was measured."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any


def environment() -> dict[str, Any]:
    """Everything that a reader needs to know about the place."""
    return {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in ("numpy", "numba", "pylsl")},
        "load_average": os.getloadavg(),
    }
