"""What a real-time process asks of the system, in one place; each answer is reported, a refusal is shown and not fatal."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def ask(priority: int, cpus: Sequence[int] = ()) -> dict[str, str]:
    """Ask for SCHED_FIFO, locked memory and CPUs; call it before threads are made, so that they inherit it.

    Parameters
    ----------
    priority : int
        SCHED_FIFO priority 1-99; 0 asks for nothing but the CPUs.
    cpus : sequence of int
        CPUs to run on; empty = all.

    Returns
    -------
    dict of str to str
        For each thing asked for: "got ..." or "refused: why".
    """
    got: dict[str, str] = {}
    if priority:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
            got["scheduler"] = f"got SCHED_FIFO {priority}"
        except OSError as error:
            got["scheduler"] = f"refused: SCHED_FIFO {priority}: {error.strerror}"
        libc = ctypes.CDLL(None, use_errno=True)
        # locked as touched: locking all at once would pin the whole of every mapped library
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
            got["memory"] = "got mlockall"
        else:
            got["memory"] = f"refused: mlockall: {os.strerror(ctypes.get_errno())}"
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
            got["cpus"] = f"got {list(cpus)}"
        except OSError as error:
            got["cpus"] = f"refused: {list(cpus)}: {error.strerror}"
    return got


def die_with_parent() -> None:
    """End this process when the one that started it ends, however it ended (`prctl(PR_SET_PDEATHSIG)`)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def freeze() -> None:
    """Take the garbage collector out of the loop, after everything lasting was made."""
    gc.collect()
    gc.freeze()
    gc.disable()
