"""`calmloop play`: what a listener with the printed settings hears is the recording, at its pace."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pylsl
import pytest

from controller import __main__ as cli
from controller import settings
from drivers.sources import lsl

ROOT = Path(__file__).resolve().parents[1]
EMG_UV = np.arange(300.0)[:, None] * [1.0, -1.0]
FORCE_N = np.arange(30.0)[:, None] + 1000.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rec.npz"
    np.savez(path, emg_uv=EMG_UV, force_n=FORCE_N, fs=1000, force_fs=100, labels=["TA", 'SOL "deep"'])
    (tmp_path / "rec.npz.toml").write_text('variable = "emg_uv"\nforce_variable = "force_n"\n')
    return path


def calmloop(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controller", "play", *args]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def hear(wanted: SimpleNamespace, n: int) -> tuple[np.ndarray, np.ndarray]:
    found, _ = lsl.find(wanted)
    inlet = pylsl.StreamInlet(found)
    values, stamps_s = [], []
    while len(values) < n:
        more, at_s = inlet.pull_chunk(timeout=2.0, max_samples=n)
        assert more
        values += more
        stamps_s += at_s
    return np.array(values), np.array(stamps_s)


def test_a_listener_with_the_printed_settings_hears_the_recording(file: Path) -> None:
    player = calmloop(str(file), "--loop", "--speed", "2", "--json", "--name", f"player {file.parent.name}")
    try:
        assert player.stdout
        facts = json.loads(player.stdout.readline())
        tables = tomllib.loads(facts["settings"])
        for name, table, n in (("emg", settings.EmgStream, 1500), ("force", settings.ForceStream, 150)):
            read = table.model_validate(tables[name])
            whole = {"emg": EMG_UV, "force": FORCE_N}[name]
            values, stamps_s = hear(SimpleNamespace(**{"stream_type": "", **read.model_dump()}), n)
            first = int(np.flatnonzero((whole == values[0]).all(axis=1))[0])
            assert np.array_equal(values, whole[(first + np.arange(len(values))) % len(whole)]), "round and round, no sample lost"
            assert np.diff(stamps_s) == pytest.approx(1 / read.sample_rate_hz, abs=1e-6)
            assert abs(stamps_s[-1] - pylsl.local_clock()) < 0.5
        assert [stream["sample_rate_hz"] for stream in facts["streams"]] == [2000.0, 200.0]
        player.send_signal(signal.SIGINT)
        assert player.wait(5) == 0
        assert player.stderr
        assert player.stderr.read() == ""
    finally:
        player.kill()
        player.communicate()


def test_it_ends_with_the_recording(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["play", str(file)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "rec.npz: 0.3 s" in said.out
    assert tomllib.loads(said.out[said.out.index("[emg]") :])["force"]["channels"] == ["force_n"]


def test_what_cannot_be_read_is_wrong_use(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["play", str(file), "--variable", "no"]) == 2
    said = capsys.readouterr()
    assert "variable 'no' is not there" in said.err
    assert said.out == ""
