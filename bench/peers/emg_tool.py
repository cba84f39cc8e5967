"""Onset detectors of BioSPPy and NeuroKit2 on our signals: `PYTHON emg_tool.py SIGNALS.npz`; JSON on standard output.

Runs in an environment of its own: numpy and the two. All of them are offline: each gets a whole recording in µV, and those that ask for
it the known rest at its beginning. Parameters beside the threshold are our choice; the threshold of each is the
smallest of a row with at most `FALSE_PER_MIN` on noise recordings of their own, as the detection notes, section 4, did. `solnik` and
`silva` depend on the unit of the signal, which the row of thresholds makes up for.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import warnings

import neurokit2 as nk
import numpy as np
from biosppy.signals import emg

FALSE_PER_MIN = 0.2
ROW = [float(x) for x in np.round(np.geomspace(1.0, 1000.0, 46), 3)]  # a sixth more each


def rising(x_uv, at, reach):
    """Those changes that have more energy after than before: BioSPPy answers onsets and offsets in one row, and not always in turn."""
    power = np.concatenate([[0.0], np.cumsum(np.square(x_uv))])
    n = len(x_uv)
    after, before = np.minimum(at + reach, n), np.maximum(at - reach, 0)
    return at[power[after] - power[at] > power[at] - power[before]]


def biosppy(detect, **fixed):
    """One of BioSPPy's."""

    def run(x_uv, rest_uv, rate_hz, threshold):
        rest = {} if detect is emg.silva_onset_detector else {"rest": rest_uv}
        answer = detect(signal=x_uv, sampling_rate=rate_hz, threshold=threshold, **rest, **fixed)["onsets"]
        return rising(x_uv, np.clip(np.asarray(answer, int), 0, len(x_uv)), round(0.05 * rate_hz))

    return run


def neurokit(method, scale):
    """One of NeuroKit2's, on its own amplitude (rectified, smoothed forwards and backwards); `scale` x threshold is what it is given."""

    def run(x_uv, rest_uv, rate_hz, threshold):
        amplitude = nk.emg_amplitude(nk.emg_clean(x_uv, sampling_rate=rate_hz))
        given = scale(threshold, amplitude[: len(rest_uv)])
        _, info = nk.emg_activation(emg_amplitude=amplitude, sampling_rate=rate_hz, method=method, threshold=given)
        return np.asarray(info["EMG_Onsets"], float)

    return run


# Name: detector, thresholds to try, how many recordings a cell it gets (some take 8 to 30 s for one)
DETECTORS = {
    "biosppy hodges": (biosppy(emg.hodges_bui_onset_detector, size=100), ROW, 20),
    "biosppy bonato": (biosppy(emg.bonato_onset_detector, active_state_duration=50, samples_above_fail=5, fail_size=20), ROW, 2),
    "biosppy lidierth": (biosppy(emg.lidierth_onset_detector, size=50, active_state_duration=40, fail_size=10), ROW, 2),
    "biosppy silva": (biosppy(emg.silva_onset_detector, size=40, threshold_size=2000), [x / 10 for x in ROW], 20),
    "biosppy londral": (biosppy(emg.londral_onset_detector, size=50, active_state_duration=40), ROW, 1),
    "biosppy solnik": (biosppy(emg.solnik_onset_detector, active_state_duration=20), ROW, 2),
    "neurokit threshold": (neurokit("threshold", lambda k, rest: float(rest.mean() + k * rest.std())), ROW[:32], 1),
    "neurokit mixture": (neurokit("mixture", lambda k, rest: 1.0 - 0.67 / k), ROW[::4], 1),  # a probability, 0.33 by default
}


def onsets_s(run, x_uv, rest_uv, rate_hz, threshold):
    """What it finds, in s; nothing where it finds nothing to say (several raise on an empty answer)."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return np.sort(run(x_uv, rest_uv, rate_hz, threshold)) / rate_hz
    except (IndexError, ValueError, TypeError):
        return np.zeros(0)


def main() -> int:
    """Choose each threshold, then run all."""
    warnings.simplefilter("ignore")
    data = np.load(sys.argv[1])
    only = sys.argv[2].split(",") if len(sys.argv) > 2 else list(DETECTORS)
    rate_hz, rest_s = float(data["rate_hz"]), float(data["rest_s"])
    rest = round(rate_hz * rest_s)
    names = [key for key in data.files if "/" in key]  # CELL/number
    noise = [data[key] for key in names if key.startswith("calibration/")]
    minutes = sum(len(x) - rest for x in noise) / rate_hz / 60
    out = {}
    for name in only:
        run, row, most = DETECTORS[name]
        began = time.perf_counter()
        low, high = 0, len(row) - 1  # the rate falls with the threshold
        while low < high:
            middle = (low + high) // 2
            found = [onsets_s(run, x, x[:rest], rate_hz, row[middle]) for x in noise]
            n_false = sum(int((at >= rest_s).sum()) for at in found)
            low, high = (low, middle) if n_false <= FALSE_PER_MIN * minutes else (middle + 1, high)
        cells = {}
        for key in names:
            cell, number = key.rsplit("/", 1)
            if cell != "calibration" and int(number) < most:
                x = data[key]
                cells.setdefault(cell, []).append(onsets_s(run, x, x[:rest], rate_hz, row[low]).tolist())
        out[name] = {"threshold": row[low], "cells": cells, "took_s": round(time.perf_counter() - began, 1)}
        print(f"{name}: threshold {row[low]:g}, {out[name]['took_s']} s", file=sys.stderr, flush=True)
    print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
