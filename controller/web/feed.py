"""What the page gets to see, from the daemon to the page's process, over a ring that never waits: traces, marks, the state.

A trace is the least and the greatest value in each hundredth of a second, which is all that a screen can show of it. The daemon makes
them of the cycles that it records anyway.
"""

from __future__ import annotations

import json
import math
import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from controller.ring import RingWriter, create

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from controller.recording import RecordedCycle
    from controller.settings import Prescription, Settings

STATUS, COLUMNS, MARK, SCENE = 1, 2, 3, 4  # kinds of records
RING_BYTES = 4 << 20
COLUMN_HZ = 100
GAP_COLUMNS = 10 * COLUMN_HZ  # a picture is no longer than this, and a clock that goes back further was set anew
FAR_S = 1e12  # no clock that counts seconds gets here
HELD_BACK_S = 1.0  # so often at most a rule's veto is shown
EMG, FORCE, EVIDENCE = range(3)  # what a record of columns is of
HEAD = struct.Struct("<IIII")  # of such a record: which, first column, number of columns, number of traces; then float32 least, greatest


class Columns:
    """Least and greatest of each column of one signal, as samples come.

    Samples whose stamps are none, or go back, are left out of the picture; where they go back by more than a picture's length the clock was
    set anew, and so is the picture. Of the column that is not whole yet the least and the greatest are held, however many samples it gets.
    """

    def __init__(self, what: int, n_traces: int) -> None:
        self.what, self.n_traces = what, n_traces
        self.at = np.zeros(0, np.int64)
        self.x = np.zeros((0, n_traces))

    def take(self, t_s: NDArray[np.float64], x: NDArray[np.float64]) -> bytes:
        """Take samples (n,), (n, n_traces); returns a record of the columns that are whole now, empty = none is."""
        good = np.abs(t_s) < FAR_S  # and NaN is not
        at = np.concatenate([self.at, np.floor(t_s[good] * COLUMN_HZ).astype(np.int64)])
        x = np.concatenate([self.x, x[good]])
        anew = np.flatnonzero(np.maximum.accumulate(at) - at > GAP_COLUMNS)
        if len(anew):
            at, x = at[anew[-1] :], x[anew[-1] :]
        forward = at == np.maximum.accumulate(at)
        at, x = at[forward], x[forward]
        if not len(at):
            return b""
        starts = np.flatnonzero(np.diff(at, prepend=at[0] - 1))
        least, most = np.fmin.reduceat(x, starts), np.fmax.reduceat(x, starts)
        columns = at[starts[:-1]]
        self.at, self.x = np.repeat(at[-1:], 2), np.stack([least[-1], most[-1]])
        # a gap: what is not there is not drawn
        if not len(columns) or columns[-1] - columns[0] >= GAP_COLUMNS:
            return b""
        first, n = int(columns[0]), int(columns[-1] - columns[0] + 1)
        out = np.full((n, self.n_traces, 2), np.nan, np.float32)
        with np.errstate(over="ignore"):  # no signal is as large as that
            out[columns - first] = np.stack([least[:-1], most[:-1]], axis=-1)
        return HEAD.pack(self.what, first % 2**32, n, self.n_traces) + out.tobytes()


def limits(rx: Prescription) -> dict[str, dict[str, float]]:
    """The prescription's limits of the dose, in the units of `dose.summary`."""
    return {
        "session": {
            "on_time_s": rx.max_on_time_min_in_session * 60,
            "pulses": rx.max_pulses_in_session,
            "charge_mc": rx.max_charge_mc_in_session,
        },
        "day": {"on_time_s": rx.max_on_time_min_in_24_h * 60, "pulses": rx.max_pulses_in_24_h, "charge_mc": rx.max_charge_mc_in_24_h},
    }


class Feed:
    """The daemon's end.

    Parameters
    ----------
    config : Settings
    vetoes : sequence of str
        Their names, as the detections number them.
    """

    def __init__(self, config: Settings, vetoes: Sequence[str] = ()) -> None:
        self.fd = create("calmloop-page", RING_BYTES)
        self.ring = RingWriter(self.fd)
        emg, force = (config.emg.channels if config.emg else ()), (config.force.channels if config.force else ())
        self.rules = [row.name for row in config.rows]
        self.columns = (Columns(EMG, len(emg)), Columns(FORCE, len(force)), Columns(EVIDENCE, len(self.rules)))
        self.vetoes = vetoes
        self.active = [False] * len(self.rules)
        self.held_back_s = [-HELD_BACK_S] * len(self.rules)
        self.scene = {
            "emg": list(emg),
            "force": list(force),
            "force_unit": config.force.unit if config.force else "",
            "rules": self.rules,
            "column_hz": COLUMN_HZ,
            "limits": limits(config.prescription),
            "refractory_s": config.prescription.refractory_s,
        }

    def see(self, cycles: Sequence[RecordedCycle]) -> None:
        """Take over what the loop heard and what its rules made of it."""
        if not cycles:
            return
        emg, force, evidence = self.columns
        self._put(emg, np.concatenate([c.chunk.emg_t_s for c in cycles]), [c.chunk.emg_uv for c in cycles])
        self._put(force, np.concatenate([c.chunk.force_t_s for c in cycles]), [c.chunk.force for c in cycles])
        if self.rules:
            seen = np.stack([c.detections for c in cycles])  # active, onset, decided, statistic, threshold, envelope, quality, level, veto
            # several cycles may end with one sample
            at_s = np.array([c.sample_s for c in cycles])
            with np.errstate(divide="ignore", invalid="ignore"):
                self._put(evidence, at_s, [seen[:, :, 3] / seen[:, :, 4]])
            for i, name in enumerate(self.rules):
                for k in np.flatnonzero(np.diff(seen[:, i, 0], prepend=float(self.active[i]))):
                    self.active[i] = bool(seen[k, i, 0])
                    self.mark(float(seen[k, i, 2] if self.active[i] else at_s[k]), "spasm" if self.active[i] else "over", name)
                for k in np.flatnonzero(
                    (seen[:, i, 8] > 0) & (seen[:, i, 6] == 0)
                ):  # quality ok: what speaks against a spasm, not against the signal
                    if at_s[k] - self.held_back_s[i] >= HELD_BACK_S and int(seen[k, i, 8]) < len(self.vetoes):
                        self.held_back_s[i] = float(at_s[k])
                        self.mark(float(at_s[k]), "held back", f"{name}: {self.vetoes[int(seen[k, i, 8])]}")

    def _put(self, columns: Columns, t_s: NDArray[np.float64], parts: list[NDArray[np.float64]]) -> None:
        if columns.n_traces and len(t_s):
            record = columns.take(t_s, np.concatenate(parts))
            if record:
                self.ring.put(COLUMNS, record)

    def close(self) -> None:
        """Let the ring go."""
        self.ring.close()
        os.close(self.fd)

    def mark(self, at_s: float, what: str, text: str = "") -> None:
        """Something happened at a time: spasm, over, held back, pulse, refused, or an event of guard."""
        if not math.isfinite(at_s):  # no place in the picture, and no JSON
            return
        self.ring.put(MARK, json.dumps({"at": at_s * COLUMN_HZ, "what": what, "text": text}).encode())

    def status(self, facts: dict[str, Any]) -> None:
        """Take the daemon's report; the scene goes with it, so that a page's process that was started again knows it."""
        self.ring.put(STATUS, json.dumps({"scene": self.scene, **facts}).encode())
