"""Where a figure was measured: machine, kernel, versions, load, what scheduling processes really had."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

from bench.job import ROOT

PACKAGES = ("numpy", "scipy", "numba", "pylsl")
PEERS = re.compile(r"^(atheris|biosppy|ezmsg|ezmsg-lsl|ezmsg-sigproc|mne[-_]lsl|neurokit2|timeflux|pylsl)==(\S+)", re.MULTILINE)


def environment() -> dict[str, Any]:
    """Everything that a reader needs to know about the place."""
    import pylsl

    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.*)", cpuinfo)
    return {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "hypervisor": "hypervisor" in cpuinfo,
        "kernel": platform.platform(),
        "preemption": _preemption(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": sys.version.split()[0],
        "liblsl": pylsl.library_version() / 100,
        "packages": {name: got for name in PACKAGES if (got := _version(name))},
        "peers": peers(),
        "load_average": os.getloadavg(),
        "commit": commit(),
    }


def peers() -> dict[str, dict[str, str]]:
    """Versions that the contenders' environments are pinned to."""
    return {path.stem: dict(PEERS.findall(path.read_text())) for path in sorted((ROOT / "bench" / "peers").glob("*.txt"))}


def alone() -> bool:
    """Whether no other bench runs on this machine; from now on others are told that we do."""
    lock = os.open(Path(tempfile.gettempdir()) / "calmloop-bench.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    return True  # held until this process ends


def stolen_ms() -> float:
    """What the hypervisor has taken from all CPUs since the machine started."""
    ticks = int(Path("/proc/stat").read_text().split()[8])
    return 1000.0 * ticks / os.sysconf("SC_CLK_TCK")


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown: no git"
    return answer.stdout.strip() or "unknown"


def scheduling(pid: int) -> dict[str, Any]:
    """What a process has got: policies and priorities of its threads, locked memory."""
    threads: dict[str, int] = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            policy, priority = os.sched_getscheduler(int(task.name)), os.sched_getparam(int(task.name)).sched_priority
        except OSError:
            continue
        name = {os.SCHED_FIFO: f"FIFO {priority}", os.SCHED_RR: f"RR {priority}", os.SCHED_OTHER: "OTHER"}.get(policy, str(policy))
        threads[name] = threads.get(name, 0) + 1
    try:
        locked = re.search(r"VmLck:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        locked = None
    return {"threads": threads, "locked_kb": int(locked[1]) if locked else 0}


def _preemption() -> str:
    found = re.search(r"PREEMPT\w*", platform.version())
    return found[0] if found else "none"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def clean(value: Any) -> Any:
    """JSON has neither NaN nor infinity: what was never answered is null."""
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
