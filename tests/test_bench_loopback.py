"""The real loopback's arithmetic, on a signal whose delays are known, and on a session of ours."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from bench import loopback
from tests.test_recording import record


def test_each_pulse_finds_its_own_rise_and_no_other():
    t_s = 100 + np.arange(4000) / 2000
    pulse_s = np.array([100.2, 100.5, 101.0, 101.5])
    x = np.zeros(len(t_s))
    for start_s in (100.2035, 100.507, 101.4):  # 3.5 ms and 7 ms late; the third is too late for any pulse; the fourth has none
        x[(t_s >= start_s) & (t_s < start_s + 0.001)] = 5000.0
    delays = loopback.delays_us(pulse_s, loopback.rises(t_s, x, 1000.0))
    assert delays == [pytest.approx(3500, abs=500), pytest.approx(7000, abs=500), None, None]


def test_a_signal_that_begins_high_has_not_risen():
    assert len(loopback.rises([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], 1.0)) == 0


def test_a_session_without_pulses_or_channel_is_said_so(tmp_path, capsys):
    record(tmp_path)
    assert loopback.main([str(tmp_path), "--channel", "SYNC"]) == 2
    assert "has no EMG channel 'SYNC'; there are: SOL1, SOL2, TA1, TA2" in capsys.readouterr().err
    assert loopback.main([str(tmp_path), "--channel", "TA2"]) == 2
    assert "no pulse was given" in capsys.readouterr().err
    shutil.rmtree(tmp_path)
    assert loopback.main([str(tmp_path), "--channel", "TA2"]) == 2


def test_pulses_and_their_output_in_one_session(tmp_path, capsys, monkeypatch):
    record(tmp_path)
    session = loopback.recording.load(tmp_path)
    emg, pulses = session.streams["EMG"], session.streams["pulses"]
    pulse_s = emg.stamps_s[0] + np.array([0.5, 1.5, 2.5])
    emg.values[:, 3] = 0.0
    for at_s in pulse_s[:2] + 0.002:
        emg.values[(emg.stamps_s >= at_s) & (emg.stamps_s < at_s + 0.002), 3] = 3000.0
    session.streams["pulses"] = replace(pulses, stamps_s=pulse_s)
    monkeypatch.setattr(loopback.recording, "load", lambda folder: session)
    assert loopback.main([str(tmp_path), "--channel", "TA2", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["pulses"], result["not_seen"]) == (3, 1)
    assert result["delay_us"][:2] == [pytest.approx(2000, abs=500)] * 2
