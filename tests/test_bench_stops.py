"""The bench of STOPs: what it makes of stamps, and one small run under load with real beds."""

import json
import subprocess
import sys

import pytest

from bench import stops
from bench.pulses import MS, S
from tests.rig import ROOT


def around(pulse_ns, receipts_ns, **changes):
    row = {"begun_ns": S, "sent_ns": S + 100 * MS, "answered_ns": S + 102 * MS, "until_ns": S + 200 * MS} | changes
    return stops.around(row, pulse_ns, receipts_ns, [S + 101 * MS + 200_000])


def test_a_stop_is_measured_from_its_receipt_to_the_last_pulse():
    slots = [S + i * 20 * MS for i in range(6)]
    got = around(slots, [S + 101 * MS])
    assert (got["counts"], got["receipt_to_last_ms"], got["pulses_after_receipt"], got["sent_to_receipt_ms"]) == (True, 0.0, 0, 1.0)
    got = around([*slots, S + 120 * MS], [S + 101 * MS])
    assert (got["receipt_to_last_ms"], got["sent_to_last_ms"], got["late_pulses"]) == (19.0, 20.0, 0)
    assert got["receipt_to_stop_ms"] == 0.2
    assert around([*slots, S + 160 * MS], [S + 101 * MS])["late_pulses"] == 1


def test_a_stop_without_a_train_or_without_guards_row_counts_for_nothing():
    assert not around([S], [S + 101 * MS])["counts"]
    assert not around([], [S + 101 * MS])["counts"]
    got = around([S + 90 * MS], [S + 5 * S])
    assert (got["counts"], got["receipt_to_last_ms"]) == (False, None)


@pytest.mark.safety("C1")
def test_stops_under_load_end_every_train(tmp_path):
    path = tmp_path / "stops.json"
    command = [sys.executable, "-m", "bench.stops", "--quick", "--json", str(path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    result = json.loads(path.read_text())
    counted = [row for row in result["stops"] if row["counts"]]
    assert len(counted) >= stops.QUICK_STOPS, answer.stderr
    assert result["wrong"] == []
    for row in counted:
        late_ms = max(0.0, row["receipt_to_last_ms"] - max(timer["max"] for timer in result["timers"]))
        assert late_ms <= 50, row  # the promise, beside what this machine itself took
