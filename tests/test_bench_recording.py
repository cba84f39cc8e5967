"""The bench of recordings: that its judge finds what is wrong, and a short slice of its cases. No timing is judged here."""

import json
import random
import shutil
import subprocess
import sys

import pytest

from bench import recording
from drivers.sources import xdf_chunks
from tests.rig import ROOT


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    writer = recording.Writer(folder / "session", "--fast", "--seconds", "1", environment={"CALMLOOP_STATE_DIR": str(folder / "state")})
    code, text = writer.end()
    assert code == 0, text
    return folder / "session", writer.acks[-1]


def judged(session, folder, change):
    path, (_, size, _, emg, force) = session
    shutil.copytree(path, folder / "copy")
    data = bytearray((path / "signals.xdf").read_bytes())
    (folder / "copy" / "signals.xdf").write_bytes(change(data))
    return recording.judged_file(folder / "copy", size, emg, force)


def test_the_judge_finds_nothing_in_a_whole_file(session, tmp_path):
    row = judged(session, tmp_path, lambda data: data)
    assert row.pop("opens") == 1 and not any(row.values()), row
    assert session[1][3:] == (2000, 500)


def test_the_judge_finds_what_is_lost(session, tmp_path):
    row = judged(session, tmp_path, lambda data: data[: len(data) // 2])
    assert row["lost_bytes"] > 50_000 and row["lost_samples"] > 1000 and row["wrong_samples"] == 0


def test_the_judge_finds_a_value_that_is_another(session, tmp_path):
    def change(data):
        place = [one for one in xdf_chunks.places(bytes(data)) if (one.tag, one.stream) == (xdf_chunks.SAMPLES, 1)][20]
        data[place.end - 3] ^= 1
        return data

    row = judged(session, tmp_path, change)
    assert (row["wrong_samples"], row["crc_damaged"], row["lost_samples"]) == (1, 1, 0)


def test_a_slice_of_it_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CALMLOOP_STATE_DIR", str(tmp_path / "state"))
    rng = random.Random(1)
    rows = recording.kills(tmp_path, 1, rng)
    assert all(row["code"] == -9 and row["acks"] > 1 for row in rows)
    rows += recording.truncations(tmp_path, 20, rng)
    total = recording.add_up(rows)
    assert total == {**dict.fromkeys(total, 0), "n": 21}, total


def test_a_part_of_the_bench_as_a_command(tmp_path):
    path = tmp_path / "recording.json"
    command = [sys.executable, "-m", "bench.recording", "--quick", "--only", "endurance", "--seconds", "1", "--json", str(path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    long = json.loads(path.read_text())["endurance"]
    assert (long["lost_samples"], long["wrong_samples"], long["verify"]["ok"]) == (0, 0, True), answer.stdout
