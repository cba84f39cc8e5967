"""What a real-time process asks of the system, in one place; each answer is reported, a refusal is shown and not fatal.

Loop and guard call `ask` before they make a thread (what is made later inherits most of it) and `freeze` before they serve; both give
"got ..." or "refused: why" by item, for `status` and `doctor`. Standard library alone (guard uses it).
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 1 << 20  # what the heap grows by at once
STACK_BYTES = 256 << 10  # touched in advance, on top of the 132 KiB that a process begins with
THREAD_STACK_BYTES = 1 << 20  # instead of 8 MiB, all of which would count as locked
WAKE_UP_FILE = "/dev/cpu_dma_latency"  # what is written there holds while the file is open (kernel: Documentation/power/pm_qos_interface)


def ask(priority: int, cpus: Sequence[int] = (), awake: bool = True) -> dict[str, str]:
    """Ask for everything that keeps a process on time; call it before threads are made, so that they inherit it.

    Parameters
    ----------
    priority : int
        SCHED_FIFO priority 1-99; 0 asks for nothing but the CPUs.
    cpus : sequence of int
        CPUs to run on; empty = all.
    awake : bool
        Whether to keep all processors of the machine from deep sleep while the process lives.

    Returns
    -------
    dict of str to str
        For each thing asked for: "got ..." or "refused: why".
    """
    wanted: dict[str, Callable[[], str]] = {"cpus": lambda: _cpus(cpus)}
    if priority:
        wanted |= {
            "scheduler": lambda: _scheduler(priority),
            "memory": _lock_memory,
            "stack": _touch_stack,
            "malloc": _keep_heap,
            "thread stacks": _small_thread_stacks,
            "timer slack": _no_timer_slack,
        } | ({"processors": _stay_awake} if awake else {})
    return {name: _answer(item) for name, item in wanted.items()}


def freeze() -> dict[str, str]:
    """Take the garbage collector out of the loop, after everything lasting was made; the answer belongs beside those of `ask`."""
    gc.collect()
    gc.freeze()
    gc.disable()
    return {"garbage collector": f"got frozen with {gc.get_freeze_count()} objects, and off"}


def die_with_parent() -> None:
    """End this process when the one that started it ends, however it ended (`prctl(PR_SET_PDEATHSIG)`)."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def refusals(got: dict[str, str]) -> dict[str, str]:
    """Those that were refused."""
    return {name: answer for name, answer in got.items() if not answer.startswith("got")}


# --- the items: each returns what was got, or raises OSError ----------------------------------------------------------------------
def _answer(item: Callable[[], str]) -> str:
    try:
        return f"got {item()}"
    except OSError as error:
        return f"refused: {error.strerror or error}"


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _cpus(cpus: Sequence[int]) -> str:
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            raise OSError(f"{list(cpus)}: {error.strerror}") from None
    return f"{sorted(os.sched_getaffinity(0))}{'' if cpus else ', all there are'}"


def _scheduler(priority: int) -> str:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        raise OSError(f"SCHED_FIFO {priority}: {error.strerror}") from None
    return f"SCHED_FIFO {priority}"


def _lock_memory() -> str:
    # locked as touched: locking all at once would pin the whole of every mapped library, and 8 MiB for each thread's stack
    if _libc().mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        raise OSError(f"mlockall: {os.strerror(ctypes.get_errno())}")
    return "mlockall, as touched"


def _keep_heap() -> str:
    # memory that was given back to the kernel costs a page fault when it is wanted again
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:
        raise OSError("no mallopt in this C library")
    for name, option, value in (
        ("M_MMAP_MAX", _M_MMAP_MAX, 0),
        ("M_TRIM_THRESHOLD", _M_TRIM_THRESHOLD, -1),
        ("M_TOP_PAD", _M_TOP_PAD, TOP_PAD_BYTES),
    ):
        if not mallopt(option, value):
            raise OSError(f"mallopt {name}")
    return "no trimming, no mmap"


class _Block(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_byte * STACK_BYTES),)


def _touch_stack() -> str:
    # an argument passed by value is copied onto the stack; a C function that takes none leaves it alone, and the caller clears up
    _libc().getpid(_Block())
    return f"{STACK_BYTES >> 10} KiB touched"


def _small_thread_stacks() -> str:
    threading.stack_size(THREAD_STACK_BYTES)  # of Python's threads
    libc = _libc()
    attribute = (ctypes.c_long * 32)()  # pthread_attr_t: 56 to 64 bytes
    try:
        wrong = (
            libc.pthread_attr_init(attribute)
            or libc.pthread_attr_setstacksize(attribute, ctypes.c_size_t(THREAD_STACK_BYTES))
            or libc.pthread_setattr_default_np(attribute)  # of everybody's, such as liblsl's
        )
    except AttributeError as error:
        raise OSError(f"Python's threads alone: {error}") from None
    if wrong:
        raise OSError(f"Python's threads alone: {os.strerror(wrong)}")
    return f"{THREAD_STACK_BYTES >> 10} KiB a thread"


def _no_timer_slack() -> str:
    # SCHED_FIFO has none anyway; where that was refused, a sleep is 50 us longer than asked for
    if _libc().prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0):
        raise OSError(f"prctl: {os.strerror(ctypes.get_errno())}")
    return "1 ns"


def _stay_awake() -> str:
    wake_up_file()  # never closed: the process's end does that
    return "kept awake"


def wake_up_file() -> int:
    """Descriptor that keeps all processors from deep sleep while it is open; OSError where that is not allowed.

    One that sleeps deeply takes tens of microseconds to wake, and finds its caches empty.
    """
    fd = os.open(WAKE_UP_FILE, os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, (0).to_bytes(4, sys.byteorder))
    return fd
