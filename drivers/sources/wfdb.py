"""WFDB records of one segment, formats 16, 24, 32, 80 and 212: each signal is a variable.

Formats: https://physionet.org/physiotools/wag/header-5.htm and signal-5.htm. Read here, since the wfdb package brings 300 MB. What a
header says to check its samples by (number, initial value, checksum) is checked.

May be imported by anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from drivers.sources.held import MAX_NAME_CHARS, told_apart

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from drivers.sources.held import Held

_DEFAULT_RATE_HZ = 250.0  # by header(5), as the unit
_DEFAULT_UNIT = "mV"
_MISSING = {16: -(1 << 15), 24: -(1 << 23), 32: -(1 << 31), 80: -(1 << 7), 212: -(1 << 11)}  # what stands for "no sample", by format
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RECORD = re.compile(
    rf"(?P<name>[^\s/]+)(?:/(?P<segments>\d+))?\s+(?P<signals>\d+)"
    rf"(?:\s+(?P<rate>{_NUMBER})\S*(?:\s+(?P<samples>\d+).*)?)?"  # after the rate may stand a counter's, after the number date and time
)
_SIGNAL = re.compile(
    r"(?P<file>\S+)\s+(?P<format>\d+)(?:x(?P<per_frame>\d+))?(?::(?P<skew>\d+))?(?:\+(?P<offset>\d+))?(?:\s+(?P<rest>.*))?"
)
_GAIN = re.compile(rf"(?P<gain>{_NUMBER})(?:\((?P<baseline>[-+]?\d+)\))?(?:/(?P<unit>\S+))?")


@dataclass(frozen=True, slots=True)
class _Signal:
    """One line of a header."""

    line: int
    file: str
    format: int
    per_frame: int
    offset: int  # bytes in the file before the samples
    gain: float  # of the converter, counts in one unit; 0 = not calibrated
    baseline: int
    unit: str
    initial: int | None
    checksum: int | None
    label: str


def read_into(held: Held) -> None:
    """Put down every signal of the record, whether its header or its signal file was named."""
    hea = held.path if held.path.suffix.lower() == ".hea" else held.path.with_suffix(".hea")
    rate_hz, n_frames, signals = _header(held, hea)
    names = iter(told_apart([signal.label for signal in signals]))
    words = {}
    for file_name, group in groupby(signals, lambda signal: signal.file):
        together = list(group)
        frames = _frames(held, hea.with_name(file_name), together, n_frames)
        column = 0
        for signal in together:
            counts = frames[:, column : column + signal.per_frame].ravel()
            column += signal.per_frame
            _check(held, hea, signal, counts)
            name = next(names)
            values = counts - float(signal.baseline)
            values[counts == _MISSING[signal.format]] = np.nan
            held.put_signal(name, values / signal.gain if signal.gain else values, rate_hz * signal.per_frame, signal.unit)
            words[name] = name
    held.choose_emg(words)


def _header(held: Held, hea: Path) -> tuple[float, int | None, list[_Signal]]:
    """Frame rate, number of frames where it is said, signals."""
    try:
        numbered = [(k, line.strip()) for k, line in enumerate(hea.read_text("utf-8").splitlines(), 1)]
    except (OSError, UnicodeDecodeError) as error:
        raise held.error(f"its header {hea.name}: {error}") from error
    lines = [(k, line) for k, line in numbered if line and not line.startswith("#")]
    record = _RECORD.fullmatch(lines[0][1]) if lines else None
    if record is None:
        raise held.error(f"{hea.name} begins with no record line: name, number of signals, rate, number of samples")
    if record["segments"] is not None:
        raise held.error(f"{hea.name}: a record of several segments ({record['segments']}): read its segments one by one")
    if not int(record["signals"]) or int(record["signals"]) > len(lines) - 1:
        raise held.error(f"{hea.name}: {record['signals']} signals are named, {len(lines) - 1} are described")
    rate_hz = float(record["rate"] or _DEFAULT_RATE_HZ)
    if not 0 < rate_hz < float("inf"):
        raise held.error(f"{hea.name}, line {lines[0][0]}: a rate of {record['rate']} Hz")
    signals = [_signal(held, hea, k, line) for k, line in lines[1 : int(record["signals"]) + 1]]
    return rate_hz, int(record["samples"] or 0) or None, signals


def _signal(held: Held, hea: Path, k: int, line: str) -> _Signal:
    place = f"{hea.name}, line {k}"
    match = _SIGNAL.fullmatch(line)
    if match is None:
        raise held.error(f"{place}: not a signal: file, format, gain, ...: {line[:60]!r}")
    if int(match["format"]) not in _MISSING:
        raise held.error(f"{place}: format {match['format']} is not read; read are {', '.join(map(str, _MISSING))}")
    if int(match["skew"] or 0):
        raise held.error(f"{place}: a skew of {match['skew']} samples between signals is not read")
    if "/" in match["file"] or "\\" in match["file"] or match["file"].startswith("."):
        raise held.error(f"{place}: its signals are in another folder: {match['file']!r}")
    # gain, converter's bits and zero, initial value, checksum, block size, description: each may be left out with all that follow
    fields = (match["rest"] or "").split(None, 6)
    gain = _GAIN.fullmatch(fields[0]) if fields and len(fields[0]) <= MAX_NAME_CHARS else None
    if fields and gain is None:
        raise held.error(f"{place}: a gain of {fields[0][:60]!r}")
    try:
        zero, initial, checksum = (int(fields[at]) if len(fields) > at else None for at in (2, 3, 4))
    except ValueError:
        raise held.error(f"{place}: zero, initial value and checksum are whole numbers, not {fields[2:5]}") from None
    calibrated = bool(gain and float(gain["gain"]))
    return _Signal(
        line=k,
        file=match["file"],
        format=int(match["format"]),
        per_frame=int(match["per_frame"] or 1) or 1,
        offset=int(match["offset"] or 0),
        gain=float(gain["gain"]) if gain and calibrated else 0.0,
        baseline=int(gain["baseline"]) if gain and gain["baseline"] else zero or 0,
        unit=(gain["unit"] or _DEFAULT_UNIT) if gain and calibrated else "raw",
        initial=initial,
        checksum=checksum,
        label=fields[6] if len(fields) > 6 else "",
    )


def _frames(held: Held, path: Path, signals: list[_Signal], n_frames: int | None) -> NDArray[np.int64]:
    """Samples of one file as (n_frames, samples in a frame); a frame holds what its signals have in one period of the record's rate."""
    first, width = signals[0], sum(signal.per_frame for signal in signals)
    if len({signal.format for signal in signals}) > 1:
        raise held.error(f"{path.name} is said to have several formats")
    try:
        content = np.fromfile(path, np.uint8, offset=first.offset)
    except OSError as error:
        raise held.error(f"its signal file {path.name}: {error.strerror}") from error
    samples = _samples(content, first.format)
    n_held = len(samples) // width
    if n_frames is None:
        n_frames = n_held
    if n_held < n_frames:
        raise held.error(f"{path.name} is cut: the header promises {n_frames} samples, it ends in sample {n_held + 1}")
    if n_held > n_frames:
        held.notes.append(f"{path.name} holds {n_held - n_frames} more samples than its header says: left out")
    return samples[: n_frames * width].reshape(n_frames, width)


def _samples(content: NDArray[np.uint8], form: int) -> NDArray[np.int64]:
    """All whole samples of a file, in its order."""
    if form in (16, 32):
        size = form // 8
        return content[: len(content) // size * size].view(f"<i{size}").astype(np.int64)
    wide = content.astype(np.int64)
    if form == 80:
        return wide - 128
    if form == 24:
        low, middle, high = wide[: len(wide) // 3 * 3].reshape(-1, 3).T
        return _signed(low | middle << 8 | high << 16, 24)
    # 212: two samples in three bytes; the middle one holds the high bits of both; a last sample alone has two bytes
    pairs = np.append(wide, np.zeros(-len(wide) % 3, np.int64)).reshape(-1, 3)
    both = np.column_stack((pairs[:, 0] | (pairs[:, 1] & 0x0F) << 8, pairs[:, 2] | (pairs[:, 1] & 0xF0) << 4))
    return _signed(both.ravel()[: len(wide) * 2 // 3], 12)


def _signed(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    return values - ((values >> (bits - 1)) << bits)


def _check(held: Held, hea: Path, signal: _Signal, counts: NDArray[np.int64]) -> None:
    """Compare with what the header says of the samples; a checksum is their sum in 16 bits."""
    place = f"{signal.file} differs from {hea.name}, line {signal.line}"
    if signal.initial is not None and len(counts) and counts[0] != signal.initial:
        raise held.error(f"{place}: its first sample is {counts[0]}, not {signal.initial}")
    total = int(counts.sum())
    if signal.checksum is not None and (total - signal.checksum) % (1 << 16):
        raise held.error(f"{place}: its checksum is {(total + (1 << 15)) % (1 << 16) - (1 << 15)}, not {signal.checksum}")
