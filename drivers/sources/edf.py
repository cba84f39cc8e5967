"""EDF, EDF+, BDF and BDF+: each signal is a variable, with its own rate and unit; samples are read by edfio (extra `io`).

Format: https://www.edfplus.info/specs/edf.html and edfplus.html; BDF: https://www.biosemi.com/faq/file_format.htm. What is read of the
header here is what edfio does not judge: whether the file is whole, and whether its records follow each other without a gap.

May be imported by anything.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from drivers.sources.held import told_apart

if TYPE_CHECKING:
    from drivers.sources.held import Held

_BDF = b"\xffBIOSEMI"
MAGICS = (b"0       ", _BDF)
_SAMPLES_IN_RECORD = 16 + 80 + 5 * 8 + 80  # bytes of a signal's header that stand before it


def read_into(held: Held) -> None:
    """Put down every signal but the annotations."""
    try:
        import edfio
    except ModuleNotFoundError:
        raise held.error("EDF and BDF are read by edfio, which is not installed: pip install edfio") from None
    _refuse_what_is_not_whole(held)
    with held.path.open("rb") as file:
        of_biosemi = file.read(8) == _BDF
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        content: Any = (edfio.read_bdf if of_biosemi else edfio.read_edf)(held.path)
        signals = content.signals
        names = told_apart([signal.label for signal in signals])
        for name, signal in zip(names, signals, strict=True):
            held.put_signal(name, np.asarray(signal.data), float(signal.sampling_frequency), signal.physical_dimension.strip())
    held.notes += dict.fromkeys(str(warning.message) for warning in said)
    held.choose_emg({name: f"{name} {signal.transducer_type}" for name, signal in zip(names, signals, strict=True)})


def _refuse_what_is_not_whole(held: Held) -> None:
    with held.path.open("rb") as file:
        head = file.read(256)
        n_signals = _number(held, head, 252, 256, "number of signals")
        signal_heads = file.read(256 * max(n_signals, 0))
        size = file.seek(0, 2)
    if n_signals < 1 or len(signal_heads) < 256 * n_signals:
        raise held.error(f"cut in its header: {n_signals} signals, {size} bytes")
    if head[192:197] in (b"EDF+D", b"BDF+D"):
        raise held.error(f"{head[192:197].decode()}: its records may have gaps between them, and would be joined; save it as continuous")
    first = _SAMPLES_IN_RECORD * n_signals
    n_samples = [
        _number(held, signal_heads, first + 8 * k, first + 8 * k + 8, f"samples in a record of signal {k + 1}") for k in range(n_signals)
    ]
    record = (3 if head[:8] == _BDF else 2) * sum(n_samples)
    n_promised, n_bytes = _number(held, head, 236, 244, "number of records"), size - 256 * (n_signals + 1)
    if min(n_samples) < 1 or n_bytes < record:
        raise held.error(f"holds no whole record: {max(n_bytes, 0)} bytes of data, a record has {record}")
    if n_promised == -1:
        held.notes.append(f"the recorder did not finish the file: the {n_bytes // record} whole records that are there were taken")
    elif n_promised * record > n_bytes:
        raise held.error(f"cut: its header promises {n_promised} records, it ends in record {n_bytes // record + 1}")


def _number(held: Held, head: bytes, begin: int, end: int, what: str) -> int:
    text = head[begin:end].decode("latin-1")
    try:
        return int(text)
    except ValueError:
        raise held.error(f"header, {what}: {text!r} is not a whole number") from None
