"""Signals from the Lab Streaming Layer: found by name, compared with the settings before the start, pulled without waiting for blocks.

May be imported by whoever composes a live loop; never by guard. One inlet blocks (EMG where there is EMG), the other is drained, so a
step runs as soon as the first sample of a block is here (latency notes: `min_samples=1`; waiting for a full chunk costs 260-300 ms).
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pylsl

from drivers.base import Chunk, DeviceMismatchError, DeviceNotFoundError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESOLVE_S = 5.0
TWIN_S = 1.0
MAX_SAMPLES = 4096  # of one pull
BUFFER_S = 5  # what LSL keeps for us: bounds staleness; what falls out is a gap in the stamps
TO_UV = {"uv": 1.0, "µv": 1.0, "microvolts": 1.0, "microvolt": 1.0, "mv": 1e3, "millivolts": 1e3, "v": 1e6, "volts": 1e6}
_OWN_CONFIG = (os.environ.get("LSLAPICFG"), "lsl_api.cfg", "~/lsl_api/lsl_api.cfg", "/etc/lsl_api/lsl_api.cfg")
if not any(path and Path(path).expanduser().is_file() for path in _OWN_CONFIG):
    pylsl.set_config_content("[log]\nlevel = -1\n")  # warnings and worse; whoever has a configuration keeps it
NO_FEEDBACK = np.zeros((0, 3))


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
    except (pylsl.LostError, pylsl.util.TimeoutError) as error:
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


class _Inlet:
    def __init__(self, wanted: Wanted, timeout_s: float) -> None:
        found, info = find(wanted, timeout_s)
        labels = [label for label, _ in channel_words(info)]
        self.columns = [labels.index(name) if any(labels) else i for i, name in enumerate(wanted.channels)]
        self.all_columns = self.columns == list(range(info.channel_count()))
        self.scale = TO_UV.get(wanted.unit.strip().lower(), 1.0)
        # stamps of another host are on its clock; on one host there is nothing to correct
        flags = pylsl.proc_none if info.hostname() == socket.gethostname() else pylsl.proc_clocksync
        self.inlet = pylsl.StreamInlet(found, max_buflen=BUFFER_S, recover=True, processing_flags=flags, as_numpy=True)
        try:
            self.inlet.open_stream(timeout_s)
        except (pylsl.LostError, pylsl.util.TimeoutError) as error:
            raise DeviceNotFoundError(f"LSL stream {wanted.stream_name!r} cannot be opened: {error}") from None

    def pull(self, timeout_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values, stamps_s = self.inlet.pull_chunk(timeout_s, MAX_SAMPLES, min_samples=1 if timeout_s else None)
        if not self.all_columns:
            values = values[:, self.columns]
        values = np.ascontiguousarray(values, np.float64)
        if self.scale != 1.0:
            values *= self.scale
        return values, stamps_s


class LslSource:
    """EMG and force from LSL as chunks.

    Parameters
    ----------
    emg, force : Wanted or None
        What the settings say; None = there is no such signal.

    Raises
    ------
    DeviceNotFoundError, DeviceMismatchError
        Every stream that is missing or wrong, in one message, before anything starts.
    """

    def __init__(self, emg: Wanted | None, force: Wanted | None, timeout_s: float = RESOLVE_S) -> None:
        self.emg: _Inlet | None = None
        self.force: _Inlet | None = None
        self.n_emg = len(emg.channels) if emg else 0
        self.n_force = len(force.channels) if force else 0
        wrong = []
        for name, wanted in (("emg", emg), ("force", force)):
            if wanted is None:
                continue
            try:
                setattr(self, name, _Inlet(wanted, timeout_s))
            except (DeviceNotFoundError, DeviceMismatchError) as error:
                wrong.append(f"[{name}] {error}")
        if wrong:
            raise DeviceMismatchError("\n".join(wrong))

    def read(self, timeout_s: float, feedback: NDArray[np.float64] = NO_FEEDBACK) -> Chunk:
        """Wait at most `timeout_s` for the first sample, then take all there is; no sample = an empty chunk."""
        emg, emg_t_s = np.zeros((0, self.n_emg)), np.zeros(0)
        force, force_t_s = np.zeros((0, self.n_force)), np.zeros(0)
        if self.emg:
            emg, emg_t_s = self.emg.pull(timeout_s)
        if self.force:
            force, force_t_s = self.force.pull(0.0 if self.emg else timeout_s)
        return Chunk(emg, emg_t_s, force, force_t_s, feedback, time.monotonic_ns())
