"""The structure of an XDF file, chunk by chunk: what finds the end of a torn file and takes up again after damage.

Format: https://github.com/sccn/xdf/wiki/Specifications. Our writer, readers and checks stand on it. Standard library alone; no samples are
read here.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"XDF:"
FILE_HEADER, STREAM_HEADER, SAMPLES, CLOCK_OFFSET, BOUNDARY, STREAM_FOOTER = range(1, 7)
BOUNDARY_UUID = bytes.fromhex("43A546DCCBF5410FB30ED5467383CBE4")  # fixed by the specification

_LENGTH_CODES = {1: "<B", 4: "<I", 8: "<Q"}


class Place(NamedTuple):
    """Where a chunk lies in a file: its bytes, its tag, and its stream's number there (from 1; 0 = of no stream)."""

    start: int
    end: int
    tag: int
    stream: int


def places(data: bytes | mmap.mmap) -> Iterator[Place]:
    """Find every whole chunk of an XDF file, in order; none where it is no XDF file.

    Walks the structure alone. Where the walk meets damage it takes up again at the next boundary, as pyxdf does, so that one bad page does
    not cost what follows; the place after damage is then that of the boundary's UUID. Never raises on torn or damaged data.
    """
    if data[: len(MAGIC)] != MAGIC:
        return
    at = len(MAGIC)
    while True:
        place = _chunk_at(data, at)
        if place is None:
            found = data.find(BOUNDARY_UUID, at)
            if found < 0:
                return
            place = Place(found, found + len(BOUNDARY_UUID), BOUNDARY, 0)
        yield place
        at = place.end


def whole_chunks(data: bytes | mmap.mmap | str | os.PathLike[str]) -> int:
    """Count the bytes up to the end of the last whole chunk (see `places`): 0 where it is no XDF file."""
    if isinstance(data, (str, os.PathLike)):
        with Path(data).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # which mmap refuses
                return 0
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return whole_chunks(view)
    end = len(MAGIC) if data[: len(MAGIC)] == MAGIC else 0
    for place in places(data):
        end = place.end
    return end


def _chunk_at(data: bytes | mmap.mmap, at: int) -> Place | None:
    """The chunk at `at`; None where there is no whole one."""
    code = _LENGTH_CODES.get(data[at]) if at < len(data) else None
    if code is None or at + 1 + struct.calcsize(code) + 2 > len(data):
        return None
    length, tag = struct.unpack_from(code + "H", data, at + 1)
    content = at + 1 + struct.calcsize(code) + 2
    end = content - 2 + length
    of_stream = tag in (STREAM_HEADER, SAMPLES, CLOCK_OFFSET, STREAM_FOOTER)
    if not FILE_HEADER <= tag <= STREAM_FOOTER or length < (6 if of_stream else 2) or end > len(data):
        return None
    if tag == SAMPLES:  # readers make room for as many samples as it claims; each takes two bytes at least
        count = content + 4
        count_code = _LENGTH_CODES.get(data[count]) if count < end else None
        if count_code is None or count + 1 + struct.calcsize(count_code) > end:
            return None
        if 2 * struct.unpack_from(count_code, data, count + 1)[0] > end - count:
            return None
    return Place(at, end, tag, struct.unpack_from("<I", data, content)[0] if of_stream else 0)
