"""Signals from the Lab Streaming Layer: found by name, compared with the settings before the start, pulled without waiting for blocks.

May be imported by whoever composes a live loop; never by guard. Finding and comparing is Python; `pull`, which the loop calls for every
block, is compiled and goes to liblsl's C functions directly. It waits for one sample and takes what else is there, so a step runs as soon
as the first sample of a block is here (latency notes: waiting for a full chunk costs 260-300 ms).
"""

from __future__ import annotations

import ctypes
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pylsl
from numba import njit, types
from pylsl.lib import lib as liblsl

from drivers import native
from drivers.base import DeviceMismatchError, DeviceNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RESOLVE_S = 5.0
TWIN_S = 1.0
MAX_SAMPLES = 4096  # of one pull
BUFFER_S = 5  # what LSL keeps for us: bounds staleness; what falls out is a gap in the stamps
TO_UV = {"uv": 1.0, "µv": 1.0, "microvolts": 1.0, "microvolt": 1.0, "mv": 1e3, "millivolts": 1e3, "v": 1e6, "volts": 1e6}
_OWN_CONFIG = (os.environ.get("LSLAPICFG"), "lsl_api.cfg", "~/lsl_api/lsl_api.cfg", "/etc/lsl_api/lsl_api.cfg")
if not any(path and Path(path).expanduser().is_file() for path in _OWN_CONFIG):
    pylsl.set_config_content("[log]\nlevel = -1\n")  # warnings and worse; whoever has a configuration keeps it

native.load_library(liblsl._name)
_pull_chunk: Any = types.ExternalFunction(
    "lsl_pull_chunk_d",
    types.uintp(types.uintp, types.uintp, types.uintp, types.uintp, types.uintp, types.float64, types.uintp),
)


class Wanted(Protocol):
    """What the settings say of one stream."""

    @property
    def stream_name(self) -> str: ...  # noqa: D102
    @property
    def source_id(self) -> str: ...  # noqa: D102
    @property
    def stream_type(self) -> str: ...  # noqa: D102
    @property
    def sample_rate_hz(self) -> float: ...  # noqa: D102
    @property
    def channels(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102


def channel_words(info: pylsl.StreamInfo) -> list[tuple[str, str]]:
    """(label, unit) of each channel as far as the stream describes them; missing ones are empty."""
    words = []
    channel = info.desc().child("channels").child("channel")
    for _ in range(info.channel_count()):
        words.append((channel.child_value("label"), channel.child_value("unit")))
        channel = channel.next_sibling("channel")
    return words


def streams_seen(wait_s: float = 1.0) -> list[str]:
    """One line for each stream on the network, for people."""
    return sorted(
        f"{info.name()!r} ({info.type()}, {info.channel_count()} ch, {info.nominal_srate():g} Hz, on {info.hostname()})"
        for info in pylsl.resolve_streams(wait_s)
    )


def problems(wanted: Wanted, info: pylsl.StreamInfo) -> list[str]:
    """How a stream differs from what the settings say."""
    wrong = []
    if info.channel_format() == pylsl.cf_string:
        wrong.append("its samples are text, not numbers")
    if info.nominal_srate() != wanted.sample_rate_hz:
        wrong.append(f"its rate is {info.nominal_srate():g} Hz, the settings say {wanted.sample_rate_hz:g} Hz")
    words = channel_words(info)
    labels = [label for label, _ in words]
    if not any(labels):  # no labels given: only the count can be compared
        if info.channel_count() != len(wanted.channels):
            wrong.append(f"it has {info.channel_count()} channels without labels, the settings name {len(wanted.channels)}")
    else:
        missing = [name for name in wanted.channels if name not in labels]
        if missing:
            wrong.append(f"it has no channel {', '.join(missing)}; its channels are {', '.join(labels)}")
    for label, unit in words:
        if label in wanted.channels and unit and _unit(unit) != _unit(wanted.unit):
            wrong.append(f"its channel {label} is in {unit}, the settings say {wanted.unit}")
    return wrong


def _unit(text: str) -> object:
    return TO_UV.get(text.strip().lower(), text.replace(" ", "").replace("·", "").replace("*", "").lower())


def find(wanted: Wanted, timeout_s: float = RESOLVE_S) -> tuple[pylsl.StreamInfo, pylsl.StreamInfo]:
    """Find the one stream that fits.

    Returns
    -------
    found : pylsl.StreamInfo
        As resolved: where it is, what an inlet needs.
    info : pylsl.StreamInfo
        Its full description.

    Raises
    ------
    DeviceNotFoundError
        No stream of that name; says which streams there are.
    DeviceMismatchError
        There is one, but rate, channels or unit differ, or there are two of that name.
    """
    # quotes cannot be escaped in liblsl's queries: a name with one is looked for among all streams
    conditions = {"name": wanted.stream_name, "source_id": wanted.source_id, "type": wanted.stream_type}
    asked = [f"{key}='{value}'" for key, value in conditions.items() if value and "'" not in value]
    query = " and ".join(asked) or "true()"
    found = pylsl.resolve_bypred(query, 1, timeout_s)
    if found:  # the first answer comes at once; a second stream that fits needs a moment more to be heard
        found = pylsl.resolve_bypred(query, 2, TWIN_S) or found
    found = [info for info in found if all(value in ("", getattr(info, key)()) for key, value in conditions.items())]
    if not found:
        seen = streams_seen()
        raise DeviceNotFoundError(
            f"no LSL stream named {wanted.stream_name!r}"
            + (f" with source_id {wanted.source_id!r}" if wanted.source_id else "")
            + f" within {timeout_s:g} s; streams seen: {'; '.join(seen) if seen else 'none'}"
        )
    if len({info.uid() for info in found}) > 1:
        twins = ", ".join(sorted(f"source_id {info.source_id()!r} on {info.hostname()}" for info in found))
        raise DeviceMismatchError(f"{len(found)} LSL streams are named {wanted.stream_name!r}: say which with source_id ({twins})")
    inlet = pylsl.StreamInlet(found[0], max_buflen=1, recover=False)  # the full description travels with the inlet only
    try:
        info = inlet.info(timeout_s)
    except (pylsl.util.LostError, pylsl.util.TimeoutError) as error:
        raise DeviceNotFoundError(f"LSL stream {wanted.stream_name!r} was announced but does not answer: {error}") from None
    finally:
        inlet.close_stream()
    wrong = problems(wanted, info)
    if wrong:
        raise DeviceMismatchError(f"LSL stream {wanted.stream_name!r}: " + "; ".join(wrong))
    return found[0], info


def outlet(name: str, kind: str, channels: tuple[str, ...], unit: str, rate_hz: float, source_id: str) -> pylsl.StreamOutlet:
    """An LSL outlet with labels and units."""
    info = pylsl.StreamInfo(name, kind, len(channels), rate_hz, pylsl.cf_double64, source_id)
    described = info.desc().append_child("channels")
    for label in channels:
        channel = described.append_child("channel")
        channel.append_child_value("label", label)
        channel.append_child_value("unit", unit)
        channel.append_child_value("type", kind)
    return pylsl.StreamOutlet(info)


class Inlet(NamedTuple):
    """An open LSL inlet and the room for what one pull brings, for compiled code.

    Attributes
    ----------
    handle : int
        liblsl's own; 0 = there is no such signal.
    columns : (n_channels,) int64
        Which of the stream's channels the settings name, in their order.
    scale : float
        From the stream's unit to the settings'.
    raw : (MAX_SAMPLES, channels of the stream) float64
    values : (MAX_SAMPLES, n_channels) float64; t_s : (MAX_SAMPLES,) float64
    error : (1,) int32
        liblsl's code of the last pull; below 0 = the stream is lost for good.
    """

    handle: int
    columns: NDArray[np.int64]
    scale: float
    raw: NDArray[np.float64]
    values: NDArray[np.float64]
    t_s: NDArray[np.float64]
    error: NDArray[np.int32]


def inlet(handle: int, columns: Sequence[int], scale: float, n_raw: int) -> Inlet:
    """Make the room for one inlet's pulls."""
    n = len(columns)
    room = np.zeros((MAX_SAMPLES, n_raw)), np.zeros((MAX_SAMPLES, n)), np.zeros(MAX_SAMPLES)
    return Inlet(handle, np.array(columns, np.int64).reshape(n), scale, *room, np.zeros(1, np.int32))


NO_INLET = inlet(0, (), 1.0, 0)


@njit(cache=True, nogil=True)
def pull(inlet, timeout_s):
    """Wait at most `timeout_s` for the first sample, then take all there is, into `values` and `t_s`; returns the number of samples."""
    n_raw = inlet.raw.shape[1]
    if inlet.handle == 0:
        return 0
    raw, t_s, error = inlet.raw.ctypes.data, inlet.t_s.ctypes.data, inlet.error.ctypes.data
    n = 0
    if timeout_s > 0.0:
        n = np.int64(_pull_chunk(inlet.handle, raw, t_s, n_raw, 1, timeout_s, error)) // n_raw
        if n == 0:
            return 0
    room = inlet.t_s.size - n
    n += np.int64(_pull_chunk(inlet.handle, raw + 8 * n * n_raw, t_s + 8 * n, room * n_raw, room, 0.0, error)) // n_raw
    for k in range(n):
        for ch in range(inlet.columns.size):
            inlet.values[k, ch] = inlet.raw[k, inlet.columns[ch]] * inlet.scale
    return n


def _open(wanted: Wanted, timeout_s: float) -> tuple[pylsl.StreamInlet, Inlet]:
    found, info = find(wanted, timeout_s)
    labels = [label for label, _ in channel_words(info)]
    columns = [labels.index(name) if any(labels) else i for i, name in enumerate(wanted.channels)]
    # stamps of another host are on its clock; on one host there is nothing to correct
    flags = pylsl.proc_none if info.hostname() == socket.gethostname() else pylsl.proc_clocksync
    stream = pylsl.StreamInlet(found, max_buflen=BUFFER_S, recover=False, processing_flags=flags)
    try:
        stream.open_stream(timeout_s)
    except (pylsl.util.LostError, pylsl.util.TimeoutError) as error:
        raise DeviceNotFoundError(f"LSL stream {wanted.stream_name!r} cannot be opened: {error}") from None
    handle = ctypes.cast(stream.obj, ctypes.c_void_p).value or 0
    return stream, inlet(handle, columns, TO_UV.get(wanted.unit.strip().lower(), 1.0), info.channel_count())


class LslSource:
    """The inlets of EMG and force; they live as long as this does.

    Parameters
    ----------
    emg, force : Wanted or None
        What the settings say; None = there is no such signal.

    Attributes
    ----------
    emg, force : Inlet
        `NO_INLET` where there is no such signal.

    Raises
    ------
    DeviceNotFoundError, DeviceMismatchError
        Every stream that is missing or wrong, in one message, before anything starts.
    """

    def __init__(self, emg: Wanted | None, force: Wanted | None, timeout_s: float = RESOLVE_S) -> None:
        opened = {"emg": (None, NO_INLET), "force": (None, NO_INLET)}
        wrong = []
        with ThreadPoolExecutor(2) as pool:  # each looks for a second or more
            looking = {name: pool.submit(_open, wanted, timeout_s) for name, wanted in (("emg", emg), ("force", force)) if wanted}
        for name, result in looking.items():
            try:
                opened[name] = result.result()
            except (DeviceNotFoundError, DeviceMismatchError) as error:
                wrong.append(f"[{name}] {error}")
        if wrong:
            raise DeviceMismatchError("\n".join(wrong))
        self._streams = [stream for stream, _ in opened.values()]
        self.emg, self.force = opened["emg"][1], opened["force"][1]
