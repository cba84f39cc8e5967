"""A ring of records in shared memory: one process writes, another reads, and the writer never waits.

The writer of a stalled reader goes on and overwrites; the reader notices and counts what it lost. The memory outlives a writer that is
killed, so its last words can still be read. Standard library alone (guard uses it); compiled code writes with `compiled_ring`.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER_BYTES = 64
HEADER_WORDS = 4  # of 8 bytes: written, taken, records, durable
_RECORD = struct.Struct("<IIQ")  # payload length, kind, sequence number


def create(name: str, capacity_bytes: int) -> int:
    """Make the memory; returns its file descriptor, which children may inherit."""
    fd = os.memfd_create(name)
    os.ftruncate(fd, HEADER_BYTES + capacity_bytes)
    return fd


class _Ring:
    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)  # no page is touched for the first time later
        self.memory = memoryview(self._map)
        self._head = self.memory[:8].cast("Q")  # bytes ever written; one aligned store publishes a record
        self._tail = self.memory[8:16].cast("Q")  # bytes that the reader has taken
        self._count = self.memory[16:24].cast("Q")  # records ever written
        self._durable = self.memory[24:32].cast("Q")  # number of the last record that the reader has put on the disk
        self._data = self.memory[HEADER_BYTES:]
        self.capacity_bytes = size - HEADER_BYTES

    def close(self) -> None:
        """Let the memory go."""
        for view in (self._head, self._tail, self._count, self._durable, self._data, self.memory):
            view.release()
        self._map.close()


class RingWriter(_Ring):
    """The writing end. `put` copies and publishes; it never blocks."""

    def put(self, kind: int, payload: bytes) -> None:
        """Append a record.

        Raises
        ------
        ValueError
            The record is larger than a quarter of the ring.
        """
        if len(payload) * 4 > self.capacity_bytes:
            raise ValueError(f"a record of {len(payload)} bytes is too large for a ring of {self.capacity_bytes} bytes")
        self._count[0] += 1
        at = self._copy(self._head[0], _RECORD.pack(len(payload), kind, self._count[0]))
        self._head[0] = self._copy(at, payload)

    @property
    def count(self) -> int:
        """How many records were ever put; also the number of the last one."""
        return self._count[0]

    @property
    def durable(self) -> int:
        """Number of the last record that the reader said is on the disk: a power cut takes none up to it."""
        return self._durable[0]

    @property
    def fill(self) -> float:
        """Share of the ring that waits to be read; above 1 something was lost."""
        return (self._head[0] - self._tail[0]) / self.capacity_bytes

    def _copy(self, at: int, data: bytes) -> int:
        start = at % self.capacity_bytes
        first = min(len(data), self.capacity_bytes - start)
        self._data[start : start + first] = data[:first]
        if first < len(data):
            self._data[: len(data) - first] = data[first:]
        return at + len(data)


class RingReader(_Ring):
    """The reading end. `lost` counts the records that were overwritten before they were read."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._at = 0
        self._number = 0
        self.lost = 0

    def records(self) -> Iterator[tuple[int, bytes]]:
        """All records that are there now, as (kind, payload)."""
        while True:
            head = self._head[0]
            if self._at == head:
                self._tail[0] = self._at
                return
            if head - self._at > self.capacity_bytes:
                self._resync()
                continue
            length, kind, number = _RECORD.unpack(self._read(self._at, _RECORD.size))
            payload = self._read(self._at + _RECORD.size, length) if length * 4 <= self.capacity_bytes else b""
            # the writer may have lapped us while we copied; leave it room for one record in flight
            if self._head[0] - self._at > self.capacity_bytes * 3 // 4:
                self._resync()
                continue
            self._at += _RECORD.size + length
            self.lost += number - self._number - 1
            self._number = number
            yield kind, payload

    @property
    def number(self) -> int:
        """Number of the last record that was read."""
        return self._number

    @property
    def behind(self) -> int:
        """How many records were put and not read, or were overwritten unseen; exact once the writer is gone."""
        return self._count[0] - self._number

    @property
    def durable(self) -> int:
        """Number of the last record that is on the disk; whoever puts it there sets this, and only then."""
        return self._durable[0]

    @durable.setter
    def durable(self, number: int) -> None:
        self._durable[0] = number

    def _resync(self) -> None:
        # record boundaries behind the head are unknown: start over at the head; the next number tells how many went
        self._at = self._head[0]

    def _read(self, at: int, n: int) -> bytes:
        start = at % self.capacity_bytes
        first = min(n, self.capacity_bytes - start)
        return bytes(self._data[start : start + first]) + bytes(self._data[: n - first])
