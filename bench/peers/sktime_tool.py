"""What sktime makes of events and alarms: cases as JSON on standard input, its figures on standard output.

Started in an environment of its own: `python -m bench.peers install sktime`. Times are whole milliseconds, and rows of the time series
that sktime wants are 1 ms apart.
"""

from __future__ import annotations

import json
import sys

import pandas as pd
import sktime
from sktime.performance_metrics.detection import EventTPR, FalseAlarmRate, MeanDetectionOffset


def main() -> None:
    """The job."""
    answers = []
    for case in json.load(sys.stdin):
        # pandas cuts a mean of times down to their unit, so the unit is fine
        rows = pd.date_range("2026-01-01", periods=case["recorded_ms"] + 1, freq="ms", unit="ns")
        window = {"min_offset": pd.Timedelta(0), "max_offset": pd.Timedelta(case["within_ms"], unit="ms")}
        events, alarms = (pd.DataFrame({"ilocs": case[name]}, dtype="int64") for name in ("onsets_ms", "decided_ms"))
        metrics = (EventTPR(**window), FalseAlarmRate(**window), MeanDetectionOffset(**window))
        answers.append([float(metric(events, alarms, pd.DataFrame({"x": 0}, index=rows))) for metric in metrics])
    names = ("sensitivity", "false_alarms_per_hour", "latency_mean_s")
    found = [{name: value if value == value else None for name, value in zip(names, answer, strict=True)} for answer in answers]
    print(json.dumps({"sktime": sktime.__version__, "found": found}))


if __name__ == "__main__":
    main()
