"""The writing end of `ring` for compiled code: the same memory, the same records."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from controller.ring import HEADER_BYTES, HEADER_WORDS
from drivers import native

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controller.ring import RingWriter

RECORD = np.dtype([("n_bytes", np.uint32), ("kind", np.uint32), ("number", np.uint64)], align=True)  # as ring._RECORD


class CompiledRing(NamedTuple):
    """A ring as arrays.

    Attributes
    ----------
    header : (HEADER_WORDS,) uint64
        Bytes ever written, bytes taken by the reader, records ever written, the last that is on the disk.
    data : (capacity,) uint8
    record : (1,) RECORD
        Scratch.
    """

    header: NDArray[np.uint64]
    data: NDArray[np.uint8]
    record: NDArray[np.void]


def compiled(ring: RingWriter) -> CompiledRing:
    """The same ring for compiled code; use one or the other, in turns."""
    memory = np.frombuffer(ring.memory, np.uint8)
    return CompiledRing(memory[: 8 * HEADER_WORDS].view(np.uint64), memory[HEADER_BYTES:], np.zeros(1, RECORD))


@njit(cache=True, nogil=True)
def begin(ring, kind, n_bytes):
    """Write the head of a record of `n_bytes`; returns where its payload goes."""
    r = ring.record[0]
    r.n_bytes, r.kind, r.number = n_bytes, kind, ring.header[2] + np.uint64(1)
    return append(ring, np.int64(ring.header[0]), ring.record)


@njit(cache=True, nogil=True)
def append(ring, at, part):
    """Copy an array's bytes to `at`, around the end if need be; returns where the next part goes."""
    n_bytes, capacity = part.size * part.itemsize, ring.data.size
    start = at % capacity
    first = min(n_bytes, capacity - start)
    native.copy(ring.data, start, part, 0, first)
    native.copy(ring.data, 0, part, first, n_bytes - first)
    return at + n_bytes


@njit(cache=True, nogil=True)
def publish(ring, at):
    """The record that ends at `at` may be read."""
    native.release_fence()
    ring.header[2] += np.uint64(1)
    ring.header[0] = np.uint64(at)
