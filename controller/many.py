"""Many recordings, one after the other or in processes of their own; on a terminal, one line that says how far it is.

A process for each of N recordings at a time: every one loads the compiled code once (some seconds) and then takes one after the other.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from controller import realtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")

SHOW_S = 0.2
_slots: Any = None  # of a process of ours: where it says how far it is


def untold(share: float, seconds: float) -> None:
    """For those whom nobody asks how far they are."""


class Progress:
    """Line on the terminal's stderr with rate and time left; nothing where that is no terminal.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each recording: their shares of the work.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes, self.began_s, self.shown_s = sizes, time.monotonic(), 0.0
        self.terminal = sys.stderr.isatty()
        self.slots: Any = [0.0] * (2 * len(sizes))  # of each recording: the share that is done, and s of it

    def show(self) -> None:
        """Say how far it is, but not all the time."""
        now_s = time.monotonic()
        if self.terminal and now_s - self.shown_s >= SHOW_S:
            self.shown_s = now_s
            print(f"\r\033[K{self.words(now_s - self.began_s)}", end="", file=sys.stderr, flush=True)

    def words(self, took_s: float) -> str:
        """How far it is after so long."""
        share = sum(size * done for size, done in zip(self.sizes, self.slots[::2], strict=True)) / max(1, sum(self.sizes))
        left = f"{took_s * (1.0 / share - 1.0):.0f} s left" if share > 0.0 else "beginning"
        return f"{100 * share:3.0f} %  {sum(self.slots[1::2]) / took_s if took_s else 0.0:.0f} x real time  {left}"

    def clear(self) -> None:
        """Make room for a result."""
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self.shown_s = 0.0


def meter(slots: Any, i: int, speed: float | None, show: Callable[[], None]) -> Callable[[float, float], None]:
    """What the work on recording `i` calls as it goes; holds it back to `speed` times real time."""
    began_s = time.monotonic()

    def tick(share: float, seconds: float) -> None:
        slots[2 * i], slots[2 * i + 1] = share, seconds
        show()
        if speed:
            time.sleep(max(0.0, began_s + seconds / speed - time.monotonic()))

    return tick


def each(
    work: Callable[[Item, Callable[[float, float], None]], Result],
    items: Sequence[Item],
    jobs: int,
    speed: float | None,
    progress: Progress,
) -> Iterator[Result | None]:
    """Results in the order of the items; None for one whose process was killed.

    Parameters
    ----------
    work : function of a module
        Takes an item and `tick`; gives back its errors as results.
    jobs : int
        Recordings at a time, each in a process; 1 = here.
    """
    if min(jobs, len(items)) <= 1:
        for i, item in enumerate(items):
            yield work(item, meter(progress.slots, i, speed, progress.show))
        return
    progress.slots = multiprocessing.get_context("spawn").RawArray("d", 2 * len(items))
    with _pool(min(jobs, len(items)), progress) as pool:
        futures = [pool.submit(_do, work, item, i, speed) for i, item in enumerate(items)]
        for i, future in enumerate(futures):
            try:
                yield _result(future, progress)
            except BrokenProcessPool:  # one that is killed takes the others' results with it: each that was lost is done again, alone
                with _pool(1, progress) as alone:
                    try:
                        yield _result(alone.submit(_do, work, items[i], i, speed), progress)
                    except BrokenProcessPool:
                        yield None


@contextmanager
def _pool(jobs: int, progress: Progress) -> Iterator[ProcessPoolExecutor]:
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (progress.slots,))
    try:
        yield pool
    except BaseException:  # ^C ends all of them, and at once
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[Result], progress: Progress) -> Result:
    while not wait([future], SHOW_S).done:
        progress.show()
    return future.result()


def _begin(slots: Any) -> None:
    global _slots
    _slots = slots
    realtime.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the terminal's ^C goes to everybody, and one of us says so


def _do(work: Callable[[Any, Callable[[float, float], None]], Result], item: Any, i: int, speed: float | None) -> Result:
    return work(item, meter(_slots, i, speed, lambda: None))
