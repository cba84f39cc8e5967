"""Streams that are not what the settings say are named before anything starts; real outlets, on this machine."""

from pathlib import Path

import numpy as np
import pylsl
import pytest

from controller import settings
from drivers.base import DeviceMismatchError
from drivers.sources import lsl

CONFIG = settings.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")


def wanted(name, **changes):
    return CONFIG.emg.model_copy(update={"stream_name": name, **changes})


@pytest.mark.parametrize(
    ("outlet", "words"),
    [
        ({"rate_hz": 1000.0}, "its rate is 1000 Hz, the settings say 2000 Hz"),
        ({"channels": ("SOL1", "SOL2", "TA1", "TA9")}, "it has no channel TA2; its channels are SOL1, SOL2, TA1, TA9"),
        ({"unit": "mV"}, "its channel SOL1 is in mV, the settings say uV"),
        ({"channels": ("", "", "")}, "it has 3 channels without labels, the settings name 4"),
    ],
)
def test_what_differs_is_named(outlet, words, request):
    name = f"test {request.node.name} {id(request)}"
    given = {"channels": ("SOL1", "SOL2", "TA1", "TA2"), "unit": "uV", "rate_hz": 2000.0} | outlet
    stream = lsl.outlet(name, "EMG", given["channels"], given["unit"], given["rate_hz"], "test")
    with pytest.raises(DeviceMismatchError, match=words):
        lsl.LslSource(wanted(name), None)
    del stream


def test_a_renamed_stream_is_missing_and_what_is_there_is_listed():
    stream = lsl.outlet("renamed EMG", "EMG", ("a",), "uV", 100.0, "renamed")
    with pytest.raises(DeviceMismatchError, match=r"no LSL stream named 'never there'.*'renamed EMG'"):
        lsl.LslSource(wanted("never there"), None, 1.0)
    del stream


def test_two_streams_of_one_name_are_not_guessed_between():
    streams = [lsl.outlet("twins EMG", "EMG", CONFIG.emg.channels, "uV", 2000.0, f"twin-{i}") for i in range(2)]
    with pytest.raises(DeviceMismatchError, match="source_id"):
        for _ in range(20):  # discovery may at first see one of them only
            lsl.LslSource(wanted("twins EMG"), None)
    lsl.LslSource(wanted("twins EMG", source_id="twin-1"), None)
    del streams


def test_samples_come_in_the_settings_order_in_microvolts_with_their_stamps():
    stream = lsl.outlet("mixed EMG", "EMG", ("TA1", "x", "SOL1"), "mV", 2000.0, "mixed")
    source = lsl.LslSource(wanted("mixed EMG", channels=("SOL1", "TA1"), unit="mV"), None)
    assert stream.wait_for_consumers(5)
    stamps_s = pylsl.local_clock() + np.arange(4) / 2000
    stream.push_chunk(np.array([[1.0, 0.0, 2.0]] * 4), stamps_s)
    values, t_s = [], []
    while sum(map(len, t_s)) < 4:
        n = lsl.pull(source.emg, 2.0)
        values.append(source.emg.values[:n].copy())
        t_s.append(source.emg.t_s[:n].copy())
    assert np.array_equal(np.concatenate(values), [[2000.0, 1000.0]] * 4)
    assert np.array_equal(np.concatenate(t_s), stamps_s)
    assert lsl.pull(source.emg, 0.01) == 0
    assert lsl.pull(source.force, 0.01) == 0


def test_a_backlog_larger_than_one_pull_comes_in_order_and_whole():
    stream = lsl.outlet("backlog EMG", "EMG", ("a",), "uV", 2000.0, "backlog")
    source = lsl.LslSource(wanted("backlog EMG", channels=("a",)), None)
    assert stream.wait_for_consumers(5)
    n = lsl.MAX_SAMPLES * 2 + 100
    stream.push_chunk(np.arange(n, dtype=float).reshape(-1, 1), pylsl.local_clock() + np.arange(n) / 2000)
    got = []
    while sum(map(len, got)) < n and (pulled := lsl.pull(source.emg, 2.0)):
        assert pulled <= lsl.MAX_SAMPLES
        got.append(source.emg.values[:pulled, 0].copy())
    assert np.array_equal(np.concatenate(got), np.arange(n))
