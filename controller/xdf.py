"""XDF 1.0 files: an append-only writer that survives a kill at any byte, and a reader that gives back exactly what was written.

Format: https://github.com/sccn/xdf/wiki/Specifications. A file is "XDF:" and chunks, each [NumLengthBytes][Length][uint16 tag][content],
little-endian. Nobody keeps a Python writer, and the format is small, so it is here. What it wrote is read by `xdf_own`, all else by pyxdf,
which the tests of the round trip hold beside it as an independent reader.

What makes it safe: all headers are on the disk before the first sample; a chunk is one `write`, never buffered in this process; every
sample carries its own time stamp; a footer, which may be torn, is never needed. A reader first trims the file to its last whole chunk
(`whole_chunks`), as pyxdf may refuse a whole recording for a torn tail.

May be imported by anything in controller. No threads and no policy (when to sync, what to record) may ever be here.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from xml.etree import ElementTree

import numpy as np

from drivers.base import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

MAGIC = b"XDF:"
FILE_HEADER, STREAM_HEADER, SAMPLES, CLOCK_OFFSET, BOUNDARY, STREAM_FOOTER = range(1, 7)
BOUNDARY_UUID = bytes.fromhex("43A546DCCBF5410FB30ED5467383CBE4")  # fixed by the specification

_DTYPES = {"double64": "<f8", "float32": "<f4", "int64": "<i8"}
_LENGTH_CODES = {1: "<B", 4: "<I", 8: "<Q"}
_SAMPLES_HEAD = struct.Struct("<BIHIBI")  # 4 length bytes, length, tag, stream number, 4 length bytes, number of samples
_TEXT_HEAD = struct.Struct("<BdBI")  # 8 stamp bytes, stamp, 4 length bytes, length


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """What a stream is, as its header says.

    Attributes
    ----------
    name : str
    type : str
        What is in it, in LSL's words: "EMG", "Force", "Markers".
    channels : tuple of (label, unit)
    sample_rate_hz : float
        Nominal; 0 = irregular.
    channel_format : str
        The writer takes "double64", "float32", "int64" and "string" (one channel); files of others may say "int8", "int16", "int32".
    source_id : str
        The device, so that it can be known again.
    """

    name: str
    type: str
    channels: tuple[tuple[str, str], ...]
    sample_rate_hz: float
    channel_format: str
    source_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A stream as it stands in a file: no clock correction, no smoothing of stamps.

    Attributes
    ----------
    spec : StreamSpec
    stamps_s : (n_samples,) float64, s
    values : (n_samples, n_channels) array, or list of str
        In the file's own number format. Text is a list, one string a sample (several text channels, which only files of others have:
        an object array).
    clock_offsets_s : (n_offsets, 2) float64, s
        When measured, and the offset to add to this stream's stamps.
    """

    spec: StreamSpec
    stamps_s: NDArray[np.float64]
    values: NDArray[Any] | list[str]
    clock_offsets_s: NDArray[np.float64]


class XdfWriter:
    """Writes one XDF file, chunk by chunk.

    When a method returns, the kernel holds the whole chunk: a kill of this process cannot lose it. `sync` makes it outlast power loss.
    When a method raises `OSError` (disk full), the file has been cut back to its last whole chunk and the writer may be used again.

    Parameters
    ----------
    path : path
        Must not exist; made readable for its owner alone, since it holds a patient's data.
    streams : sequence of StreamSpec
        Fixed from here on: headers are on the disk before the first sample. Methods name a stream by its place in here, from 0.

    Raises
    ------
    FileExistsError, OSError
    ValueError
        Streams that no reader could tell apart or read.
    """

    def __init__(self, path: str | os.PathLike[str], streams: Sequence[StreamSpec]) -> None:
        self._path = Path(path)
        self.streams = tuple(streams)
        if not self.streams or len({spec.name for spec in self.streams}) < len(self.streams):
            raise ValueError("an XDF file needs streams, each with a name of its own")
        headers = [_chunk(FILE_HEADER, None, _xml({"version": "1.0", "datetime": datetime.now(UTC).isoformat(timespec="seconds")}))]
        headers += [_chunk(STREAM_HEADER, i, _stream_header(spec)) for i, spec in enumerate(self.streams)]
        self._records = [_record(spec) for spec in self.streams]
        self._counts = [0] * len(self.streams)
        self._first_s = [0.0] * len(self.streams)
        self._last_s = [0.0] * len(self.streams)
        self._end = 0  # bytes up to the end of the last whole chunk
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._append(MAGIC + b"".join(headers))
            os.fsync(self._fd)
            _sync_folder(self._path.parent)
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink(missing_ok=True)  # a file without its headers is of no use and would block the name
            raise

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples written so far, of each stream."""
        return tuple(self._counts)

    def samples(self, i: int, stamps_s: ArrayLike, values: ArrayLike | list[str]) -> None:
        """Append samples to stream `i`; none at all writes nothing.

        Parameters
        ----------
        i : int
        stamps_s : (n_samples,) float64, s
        values : (n_samples, n_channels) array, or list of n_samples str
            Numbers must fit the stream's format without a change of kind. A lone surrogate in a text is written as its escape.

        Raises
        ------
        ValueError
            Shape or kind is not the stream's; nothing was written.
        OSError
            Not written; the file ends at its last whole chunk.
        """
        t_s = np.asarray(stamps_s, np.float64)
        n = len(t_s)
        record = self._records[i]
        chunk: bytes | bytearray
        if record is None:
            chunk = self._text_chunk(i, t_s, values)
        else:
            v = np.asarray(values)
            if t_s.shape != (n,) or v.shape != (n, len(self.streams[i].channels)):
                raise ValueError(f"{self.streams[i].name}: stamps {t_s.shape} and values {v.shape} do not fit")
            if not np.can_cast(v.dtype, record["values"].base, "same_kind"):
                raise ValueError(f"{self.streams[i].name}: {v.dtype} cannot become {record['values'].base}")
            chunk = bytearray(_SAMPLES_HEAD.size + n * record.itemsize)
            _SAMPLES_HEAD.pack_into(chunk, 0, 4, len(chunk) - 5, SAMPLES, i + 1, 4, n)
            rows = np.frombuffer(chunk, record, n, _SAMPLES_HEAD.size)
            rows["stamp_bytes"], rows["stamp_s"], rows["values"] = 8, t_s, v
        if n == 0:
            return
        self._append(chunk)
        if self._counts[i] == 0:
            self._first_s[i] = float(t_s[0])
        self._last_s[i] = float(t_s[-1])
        self._counts[i] += n

    def boundary(self) -> None:
        """Append a boundary: where readers take up again after damage."""
        self._append(_chunk(BOUNDARY, None, BOUNDARY_UUID))

    def clock_offset(self, i: int, t_s: float, offset_s: float) -> None:
        """Append a measured clock offset of stream `i`: at `t_s`, `offset_s` had to be added to its stamps."""
        self._append(_chunk(CLOCK_OFFSET, i, struct.pack("<dd", t_s, offset_s)))

    def sync(self) -> None:
        """Wait until the disk holds everything written so far."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Append the footers, sync, release the file. May be called twice; releases the file also where the footers fail."""
        if self._fd < 0:
            return
        try:
            for i, count in enumerate(self._counts):
                first, last = repr(self._first_s[i]), repr(self._last_s[i])
                footer = _xml({"first_timestamp": first, "last_timestamp": last, "sample_count": str(count)})
                self._append(_chunk(STREAM_FOOTER, i, footer))
            os.fsync(self._fd)
        finally:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text_chunk(self, i: int, t_s: NDArray[np.float64], values: object) -> bytes:
        if not isinstance(values, list) or t_s.shape != (len(values),):
            raise ValueError(f"{self.streams[i].name}: text goes in as a list of str, one for each stamp")
        texts = [text.encode("utf-8", "backslashreplace") for text in values]
        rows = b"".join(_TEXT_HEAD.pack(8, t, 4, len(text)) + text for t, text in zip(t_s.tolist(), texts, strict=True))
        return _SAMPLES_HEAD.pack(4, _SAMPLES_HEAD.size - 5 + len(rows), SAMPLES, i + 1, 4, len(values)) + rows

    def _append(self, chunk: bytes | bytearray) -> None:
        """Write all of it, or leave the file as it was."""
        if self._fd < 0:
            raise ValueError(f"{self._path}: closed")
        try:
            written = os.write(self._fd, chunk)
            while written < len(chunk):  # a disk that fills up takes a part first and only then says why
                written += os.write(self._fd, memoryview(chunk)[written:])
        except BaseException as error:
            os.ftruncate(self._fd, self._end)
            if isinstance(error, OSError):
                raise OSError(error.errno, f"not recorded, {os.strerror(error.errno or 0)}", str(self._path)) from error
            raise
        self._end += written


def whole_chunks(data: bytes | mmap.mmap | str | os.PathLike[str]) -> int:
    """Count the bytes up to the end of the last whole chunk: 0 where it is no XDF file.

    Walks the structure alone. Where the walk meets damage it takes up again after the next boundary, as pyxdf does, so that one bad
    page does not cost what follows. Never raises on torn or damaged data.
    """
    if isinstance(data, (str, os.PathLike)):
        with Path(data).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # which mmap refuses
                return 0
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return whole_chunks(view)
    if data[:4] != MAGIC:
        return 0
    end = at = len(MAGIC)
    while True:
        following = _next_chunk(data, at)
        if following is not None:
            end = at = following
            continue
        found = data.find(BOUNDARY_UUID, at)
        if found < 0:
            return end
        end = at = found + len(BOUNDARY_UUID)


def read(path: str | os.PathLike[str]) -> dict[str, Stream]:
    """Read every whole chunk of an XDF file, values and stamps bit for bit as they were written.

    Raises
    ------
    FileFormatError
        Not an XDF file, torn before its first stream header, or damaged beyond what boundaries can mend.
    """
    import pyxdf  # here, since the recording process only writes

    from controller import xdf_own

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path}: {error.strerror}") from error
    if content[:4] != MAGIC:
        raise FileFormatError(f"{path}: {'not an XDF file' if content else 'empty'}")
    whole = whole_chunks(content)
    try:
        streams = xdf_own.raw_streams(memoryview(content)[:whole])
        if streams is None:
            with np.errstate(all="ignore"):  # pyxdf divides by the duration, which may be 0
                streams, _ = pyxdf.load_xdf(
                    io.BytesIO(memoryview(content)[:whole]), synchronize_clocks=False, handle_clock_resets=False, dejitter_timestamps=False
                )
        found = [_stream(raw) for raw in streams]
    except Exception as error:  # pyxdf meets damage with whatever error comes up
        raise FileFormatError(f"{path}: damaged within its first {whole} bytes: {type(error).__name__}: {error}") from error
    if not found:
        raise FileFormatError(f"{path}: torn before its first stream header ({len(content)} bytes)")
    names = [stream.spec.name for stream in found]
    if len(set(names)) < len(names):
        raise FileFormatError(f"{path}: several streams have one name: {', '.join(sorted(names))}")
    return dict(zip(names, found, strict=True))


# --- chunks ---------------------------------------------------------------------------------------------------------------------------
def _chunk(tag: int, i: int | None, content: bytes) -> bytes:
    stream = b"" if i is None else struct.pack("<I", i + 1)  # streams are numbered from 1, as LabRecorder does
    return struct.pack("<BIH", 4, 2 + len(stream) + len(content), tag) + stream + content


def _next_chunk(data: bytes | mmap.mmap, at: int) -> int | None:
    """Where the chunk at `at` ends; None where there is no whole one."""
    code = _LENGTH_CODES.get(data[at]) if at < len(data) else None
    if code is None or at + 1 + struct.calcsize(code) + 2 > len(data):
        return None
    length, tag = struct.unpack_from(code + "H", data, at + 1)
    end: int = at + 1 + struct.calcsize(code) + length
    smallest = 6 if tag in (STREAM_HEADER, SAMPLES, CLOCK_OFFSET, STREAM_FOOTER) else 2
    return end if FILE_HEADER <= tag <= STREAM_FOOTER and length >= smallest and end <= len(data) else None


def _record(spec: StreamSpec) -> Any:
    """One sample as it lies in the file, None for text."""
    if spec.channel_format == "string":
        return None
    return record(_DTYPES[spec.channel_format], len(spec.channels))


def record(number_format: str, n_channels: int) -> Any:
    """One sample of numbers as it lies in our files: it carries its own stamp, of 8 bytes."""
    return np.dtype([("stamp_bytes", "u1"), ("stamp_s", "<f8"), ("values", number_format, (n_channels,))])


# --- headers --------------------------------------------------------------------------------------------------------------------------
def _xml(fields: Iterable[tuple[str, str]] | dict[str, str], desc: ElementTree.Element | None = None) -> bytes:
    info = ElementTree.Element("info")
    for key, text in dict(fields).items():
        ElementTree.SubElement(info, key).text = text
    if desc is not None:
        info.append(desc)
    xml: str = ElementTree.tostring(info, "unicode")
    return b'<?xml version="1.0" encoding="utf-8"?>' + xml.encode()


def _stream_header(spec: StreamSpec) -> bytes:
    """Header with labels and units where LSL's users look for them: info/desc/channels/channel/{label, unit, type}."""
    n_channels = len(spec.channels)
    if spec.channel_format not in (*_DTYPES, "string") or n_channels < 1 or (spec.channel_format == "string" and n_channels > 1):
        raise ValueError(f"{spec.name}: {n_channels} channels of {spec.channel_format!r} cannot be written")
    if not (np.isfinite(spec.sample_rate_hz) and spec.sample_rate_hz >= 0):
        raise ValueError(f"{spec.name}: a sample rate of {spec.sample_rate_hz} Hz")
    desc = ElementTree.Element("desc")
    channels = ElementTree.SubElement(desc, "channels")
    for label, unit in spec.channels:
        channel = ElementTree.SubElement(channels, "channel")
        for key, text in (("label", label), ("unit", unit), ("type", spec.type)):
            ElementTree.SubElement(channel, key).text = text
    fields = {
        "name": spec.name,
        "type": spec.type,
        "channel_count": str(n_channels),
        "nominal_srate": repr(float(spec.sample_rate_hz)),
        "channel_format": spec.channel_format,
        "source_id": spec.source_id,
    }
    header = _xml(fields, desc)
    try:
        ElementTree.fromstring(header)  # a control character in a name would make the whole file unreadable
    except ElementTree.ParseError as error:
        raise ValueError(f"{spec.name!r}: a name, label or unit that XML cannot hold") from error
    return header


def _stream(raw: dict[str, Any]) -> Stream:
    """From pyxdf's nested lists to ours."""
    info = raw["info"]

    def text(parent: dict[str, Any], key: str) -> str:
        return str((parent.get(key) or [None])[0] or "")

    n_channels = int(text(info, "channel_count"))
    desc = (info.get("desc") or [None])[0] or {}  # other recorders may leave it out or empty, at any level
    listed = ((desc.get("channels") or [None])[0] or {}).get("channel", [])
    channels = tuple((text(channel, "label"), text(channel, "unit")) for channel in listed if channel)
    if len(channels) != n_channels:
        channels = tuple((f"{i + 1}", "") for i in range(n_channels))
    spec = StreamSpec(
        name=text(info, "name"),
        type=text(info, "type"),
        channels=channels,
        sample_rate_hz=float(text(info, "nominal_srate")),
        channel_format=text(info, "channel_format"),
        source_id=text(info, "source_id"),
    )
    series = raw["time_series"]
    values: NDArray[Any] | list[str]
    if spec.channel_format != "string":
        values = series if len(series) else np.zeros((0, n_channels), _DTYPES.get(spec.channel_format, spec.channel_format))
    elif n_channels == 1:
        values = [row[0] for row in series]
    else:
        values = np.array(series, object).reshape(-1, n_channels)
    offsets_s = np.array([raw["clock_times"], raw["clock_values"]], np.float64).T
    return Stream(spec, np.asarray(raw["time_stamps"], np.float64), values, offsets_s)


def _sync_folder(folder: Path) -> None:
    """Put the new name itself on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
