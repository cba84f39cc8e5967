"""Spike2 of CED: .smr by neo, .smrx by neo on CED's own sonpy (extra `spike2`); each waveform channel is a variable.

May be imported by anything.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from drivers.sources.held import told_apart

if TYPE_CHECKING:
    from drivers.sources.held import Held


def read_into(held: Held) -> None:
    """Put down every waveform channel; a recording with pauses is refused, since its parts would be joined."""
    wide = held.path.suffix.lower() == ".smrx"
    needs = "pip install neo" + (" sonpy" if wide else "")
    try:
        from neo import rawio
    except ModuleNotFoundError:
        raise held.error(f"Spike2 files are read by neo, which is not installed: {needs}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of neo, about its own future
        reader: Any = (rawio.CedRawIO if wide else rawio.Spike2RawIO)(filename=str(held.path))
        try:
            reader.parse_header()
        except (ModuleNotFoundError, ImportError) as error:
            raise held.error(f"{error}: {needs}") from None
        n_parts = reader.segment_count(0)
        if n_parts != 1:
            raise held.error(f"was paused: {n_parts} parts, which would be joined; export the part that is meant")
        streams, channels = reader.header["signal_streams"], reader.header["signal_channels"]
        names = told_apart([str(channel["name"]) for channel in channels])
        for at, stream in enumerate(streams):
            own = [k for k, channel in enumerate(channels) if channel["stream_id"] == stream["id"]]
            raw = reader.get_analogsignal_chunk(block_index=0, seg_index=0, stream_index=at)
            values = reader.rescale_signal_raw_to_float(raw, dtype="float64", stream_index=at)
            start_s = float(reader.get_signal_t_start(0, 0, at))
            for column, k in enumerate(own):
                unit = str(channels[k]["units"]).strip()
                held.put_signal(names[k], values[:, column], float(channels[k]["sampling_rate"]), unit, start_s)
    held.choose_emg({name: name for name in names})
