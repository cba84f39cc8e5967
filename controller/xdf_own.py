"""XDF files as `xdf.XdfWriter` writes them, read in one go: an hour is read in seconds, where pyxdf takes each sample by itself.

Whatever is not written like ours, or is damaged, is left to pyxdf: then `raw_streams` returns None. Imported by `xdf.read` alone.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from controller import xdf

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COUNT = struct.Struct("<IBI")  # stream number, 4 length bytes, number of samples
_STAMPED = 8  # a sample carries its own stamp, of so many bytes


def raw_streams(content: memoryview) -> list[dict[str, Any]] | None:
    """Every stream of a whole file in the form in which pyxdf gives it, in the order of their headers; None where pyxdf must read it."""
    try:
        return _streams(content)
    except (ValueError, LookupError, TypeError, struct.error, ElementTree.ParseError):
        return None


def _streams(content: memoryview) -> list[dict[str, Any]]:
    infos: dict[int, dict[str, Any]] = {}
    parts: dict[int, list[tuple[int, memoryview]]] = {}
    offsets: dict[int, list[tuple[float, float]]] = {}
    at = len(xdf.MAGIC)
    while at < len(content):
        code = xdf._LENGTH_CODES[content[at]]
        length, tag = struct.unpack_from(code + "H", content, at + 1)
        begin = at + 1 + struct.calcsize(code) + 2
        at = begin - 2 + length
        if at > len(content) or not xdf.FILE_HEADER <= tag <= xdf.STREAM_FOOTER:
            raise ValueError
        if tag == xdf.STREAM_HEADER:
            (number,) = struct.unpack_from("<I", content, begin)
            if number in infos:
                raise ValueError
            infos[number], parts[number], offsets[number] = _nested(ElementTree.fromstring(bytes(content[begin + 4 : at]))), [], []
        elif tag == xdf.SAMPLES:
            number, four, n = _COUNT.unpack_from(content, begin)
            if four != 4:
                raise ValueError
            parts[number].append((n, content[begin + _COUNT.size : at]))
        elif tag == xdf.CLOCK_OFFSET:
            number, *offset = struct.unpack_from("<Idd", content, begin)
            offsets[number].append((offset[0], offset[1]))
    return [_stream(infos[number], parts[number], offsets[number]) for number in infos]


def _stream(info: dict[str, Any], parts: list[tuple[int, memoryview]], offsets: list[tuple[float, float]]) -> dict[str, Any]:
    stamps_s: NDArray[np.float64] | list[float]
    values: Any
    n_channels = int(info["channel_count"][0])
    if info["channel_format"][0] == "string":
        if n_channels != 1:
            raise ValueError
        rows = [row for n, part in parts for row in _texts(n, part)]
        stamps_s, values = [stamp_s for stamp_s, _ in rows], [[text] for _, text in rows]
    else:
        record = xdf.record(xdf._DTYPES[info["channel_format"][0]], n_channels)
        if any(len(part) != n * record.itemsize for n, part in parts):
            raise ValueError
        table = np.frombuffer(b"".join(part for _, part in parts), record)
        if (table["stamp_bytes"] != _STAMPED).any():
            raise ValueError
        stamps_s, values = np.ascontiguousarray(table["stamp_s"]), np.ascontiguousarray(table["values"])
    times, values_s = [t_s for t_s, _ in offsets], [offset_s for _, offset_s in offsets]
    return {"info": info, "time_stamps": stamps_s, "time_series": values, "clock_times": times, "clock_values": values_s}


def _texts(n: int, part: memoryview) -> list[tuple[float, str]]:
    rows, at = [], 0
    for _ in range(n):
        stamped, stamp_s, four, length = xdf._TEXT_HEAD.unpack_from(part, at)
        begin = at + xdf._TEXT_HEAD.size
        at = begin + length
        if stamped != _STAMPED or four != 4 or at > len(part):
            raise ValueError
        rows.append((stamp_s, bytes(part[begin:at]).decode(errors="replace")))
    if at != len(part):
        raise ValueError
    return rows


def _nested(element: ElementTree.Element) -> Any:
    """A header as pyxdf gives it: each tag a list of what stands under it."""
    if not len(element):
        return element.text
    found: dict[str, list[Any]] = {}
    for child in element:
        found.setdefault(child.tag, []).append(_nested(child))
    return found
