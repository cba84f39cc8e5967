"""XDF, of LabRecorder or any other recorder, and of our own sessions: a stream is a variable.

Format: https://github.com/sccn/xdf/wiki/Specifications; the samples are read by pyxdf.

May be imported by anything.
"""

from __future__ import annotations

import io
import itertools
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from drivers.sources.held import told_apart
from drivers.sources.xdf_chunks import MAGIC, STREAM_HEADER, places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from drivers.sources.held import Held

GAP_S = 0.1  # a step between samples that is off by more is no jitter of LSL's stamps: a gap
DRIFT_S = 0.01  # the header's rate stands where the stamps differ from it by less than this over the whole stream


class _Heard(logging.Handler):
    """What pyxdf says of damage, for the notes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.words: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "clock-segments differ" not in record.getMessage():  # always so where stamps are not smoothed
            self.words.append(f"pyxdf: {record.getMessage()}")


# --- streams as variables -------------------------------------------------------------------------------------------------------------
def read_into(held: Held) -> None:
    """Put down every stream with a rate; text and irregular streams are named only. Stamps are brought to the recorder's clock."""
    import pyxdf

    content = held.path.read_bytes()
    chunks, whole = [], len(MAGIC)
    for place in places(content):  # what follows damage is but the mark of a boundary, and nothing to be read
        chunks.append((place.start if place.start == whole else place.end, place.end))
        whole = place.end
    headers = [place.stream for place in places(content) if place.tag == STREAM_HEADER]
    if len(set(headers)) < len(headers):
        raise held.error("damaged: a stream has two headers")
    breaks = [(end, begin) for (_, end), (begin, _) in itertools.pairwise([(0, len(MAGIC)), *chunks]) if begin > end]
    if breaks:
        lost = sum(begin - end for end, begin in breaks)
        held.notes.append(f"DAMAGED: {lost} bytes are left out, the first at byte {breaks[0][0]}")
    data = MAGIC + b"".join(content[begin:end] for begin, end in chunks) if breaks else memoryview(content)[:whole]
    log, heard = logging.getLogger(pyxdf.__name__), _Heard()
    log.addHandler(heard)
    log.propagate = False
    try:
        with np.errstate(all="ignore"):  # pyxdf divides by the duration, which may be 0
            streams, _ = pyxdf.load_xdf(io.BytesIO(data), dejitter_timestamps=False)
    finally:
        log.propagate = True
        log.removeHandler(heard)
    if unread := [words for words in heard.words if "Error" in words]:
        raise held.error(f"damaged: {unread[0]}")
    held.notes += dict.fromkeys(heard.words)
    if not streams:
        raise held.error(f"torn before its first stream header ({len(content)} bytes)")
    if whole < len(content):
        held.notes.append(f"TORN: read up to its last whole chunk, {whole} of {len(content)} bytes")
    names = told_apart([_text(stream["info"], "name") for stream in streams])
    for name, stream in zip(names, streams, strict=True):
        if name != _text(stream["info"], "name").strip():
            held.notes.append(f"stream {name} is that of source_id {_text(stream['info'], 'source_id')!r}")
        _put_stream(held, name, stream)

    kinds = {name: _text(stream["info"], "type") for name, stream in zip(names, streams, strict=True) if name in held.arrays}
    # by their type; where no stream has that, by name; two of them are never one signal
    for found in ([n for n, kind in kinds.items() if kind.upper() == "EMG"], [n for n in kinds if "EMG" in n.upper()]):
        if found:
            held.default = tuple(found) if len(found) == 1 else ()
            break
    force = [name for name, kind in kinds.items() if kind.lower() == "force"]
    held.default_force = force[0] if len(force) == 1 else None


def _put_stream(held: Held, name: str, stream: dict[str, Any]) -> None:
    info, values, t_s = stream["info"], stream["time_series"], np.asarray(stream["time_stamps"], np.float64)
    nominal_hz = float(_text(info, "nominal_srate") or 0)
    what = f"({len(t_s)} samples of type {_text(info, 'type')!r})"
    if len(t_s) < 2:
        held.others[name] = f"nearly empty {what}" if len(t_s) else f"empty {what}"
    elif _text(info, "channel_format") == "string":
        held.others[name] = f"text {what}"
    elif not nominal_hz > 0 or not np.isfinite(nominal_hz):
        held.others[name] = f"irregular {what}"
    elif not np.isfinite(t_s).all():
        held.others[name] = f"without stamps {what}"
    else:
        measured_hz, held.remarks[name] = _rate_hz(name, t_s, nominal_hz)
        held.put_signal(name, np.asarray(values), measured_hz, "", float(t_s[0]))
        channels = _channels(info)
        if len(channels) == held.arrays[name].shape[1]:
            held.columns[name] = [(label or (name if len(channels) == 1 else f"{k}"), unit) for k, (label, unit) in enumerate(channels, 1)]


def _rate_hz(name: str, t_s: NDArray[np.float64], nominal_hz: float) -> tuple[float, list[str]]:
    """Rate of the longest part without a gap, by least squares over its stamps; the header's where the two tell the same time.

    Returns
    -------
    rate_hz : float
    remarks : list of str
    """
    steps_s = np.diff(t_s)
    gaps = np.flatnonzero(np.abs(steps_s - 1 / nominal_hz) > max(GAP_S, 1.5 / nominal_hz))
    remarks = []
    if gaps.size:
        k = int(gaps[0])
        remarks.append(
            f"GAP: {gaps.size} in {name}, the first of {steps_s[k]:.3f} s after sample {k + 1} ({(k + 1) / nominal_hz:.3f} s): the samples "
            "on either side stand side by side"
        )
    edges = np.concatenate(([0], gaps + 1, [len(t_s)]))
    longest = int(np.argmax(np.diff(edges)))
    part_s = t_s[edges[longest] : edges[longest + 1]]
    place = np.arange(len(part_s)) - (len(part_s) - 1) / 2
    step_s = float(place @ (part_s - part_s[0])) / float(place @ place) if len(part_s) > 1 else 0.0
    if not step_s > 0:
        return nominal_hz, [*remarks, f"{name}: its stamps do not rise: {nominal_hz:g} Hz taken, as its header says"]
    if abs(step_s - 1 / nominal_hz) * len(part_s) <= DRIFT_S:
        return nominal_hz, [*remarks, f"{name}: {nominal_hz:g} Hz, as its header says and its stamps confirm"]
    return 1 / step_s, [*remarks, f"{name}: {1 / step_s:.6g} Hz by its stamps, its header says {nominal_hz:g} Hz"]


def _channels(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and unit of each channel; recorders may leave the description out or empty, at any level."""
    desc = (info.get("desc") or [None])[0] or {}
    listed = ((desc.get("channels") or [None])[0] or {}).get("channel", [])
    return [(_text(channel, "label"), _text(channel, "unit")) for channel in listed if channel]


def _text(parent: dict[str, Any], key: str) -> str:
    return str((parent.get(key) or [None])[0] or "")
