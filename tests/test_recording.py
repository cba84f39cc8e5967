"""What travels from loop to daemon to disk and back must be the same, bit for bit."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from controller import compiled_ring, loop, messages, recording, replay, ring, settings
from controller.loop import Loop
from drivers.base import FEEDBACK_ENDED, FEEDBACK_PULSE, Chunk, FileFormatError

CONFIG = settings.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")


def chunks(seconds=6.0, seed=1, spasm_s=4.0):
    """Chunks of a live loop: 2 ms blocks, some empty, a spasm, some feedback."""
    rng = np.random.default_rng(seed)
    for i in range(round(seconds / 0.002)):
        t = 1000 + i * 0.002
        loud = 12.0 if i * 0.002 > spasm_s else 1.0
        if i % 97 == 0:
            yield Chunk(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 1)), np.zeros(0), np.zeros((0, 3)), round((t + 0.003) * 1e9))
            continue
        feedback = np.array([[1.0, t, 1.0]]) if i % 500 == 499 else np.zeros((0, 3))
        yield Chunk(
            rng.standard_normal((4, 4)) * 6 * loud,
            t + np.arange(4) / 2000,
            rng.standard_normal((2, 1)),
            t + np.arange(2) / 1000,
            feedback,
            round((t + 0.003) * 1e9),
        )


class Wire:
    """A loop's ring and its reader: what the daemon gets of a step."""

    def __init__(self):
        fd = ring.create("test", 1 << 16)
        self.writer, self.reader = ring.RingWriter(fd), ring.RingReader(fd)
        os.close(fd)
        self.compiled = compiled_ring.compiled(self.writer)

    def carry(self, bed, chunk):
        loop.record(
            *(self.compiled, bed.cycle, chunk.emg_uv, chunk.emg_t_s, chunk.force, chunk.force_t_s, chunk.feedback),
            bed.detector.state.seen,
        )
        ((kind, payload),) = self.reader.records()
        assert kind == messages.RING_CYCLE
        return recording.unpack_cycle(payload)


def record(folder, config=CONFIG):
    bed, wire = Loop(config), Wire()
    (folder / "settings.toml").write_text(config.to_toml())
    recorder = recording.Recorder(folder, config)
    recorder.loop_number = 1
    batch = []
    for chunk in chunks():
        bed.step(chunk)
        batch.append(wire.carry(bed, chunk))
        if len(batch) == 10:
            recorder.cycles(batch)
            batch = []
    recorder.cycles(batch)
    recorder.close()


def test_a_cycle_survives_the_ring():
    bed, wire = Loop(CONFIG), Wire()
    requests = 0
    for chunk in chunks():
        cycle = bed.step(chunk)
        back = wire.carry(bed, chunk)
        for name in ("emg_uv", "emg_t_s", "force", "force_t_s", "feedback"):
            assert np.array_equal(getattr(back.chunk, name), getattr(chunk, name)), name
        assert back.request == cycle.request
        assert back.sample_s == cycle.sample_s
        assert np.array_equal(back.detections, bed.detector.state.seen, equal_nan=True)
        assert bool(back.numbers["data_ok"]) == cycle.data_ok
        requests += cycle.request is not None
    assert requests >= 1


def test_a_session_replays_and_a_torn_one_replays_its_whole_part(tmp_path):
    record(tmp_path)
    result = replay.replay_session(tmp_path)
    assert result.identical, result.first_difference
    assert (result.cycles, result.requests >= 1) == (3000, True)
    data = (tmp_path / "signals.xdf").read_bytes()
    for cut in np.random.default_rng(2).integers(len(data) // 3, len(data), 12):
        (tmp_path / "signals.xdf").write_bytes(data[:cut])
        torn = replay.replay_session(tmp_path)
        assert torn.identical, torn.first_difference
        assert 500 < torn.cycles <= 3000


def test_one_changed_sample_is_named_by_its_cycle(tmp_path):
    record(tmp_path)
    session = recording.load(tmp_path)
    session.streams["EMG"].values[5000, 0] += 50.0
    result = replay.Result("x")
    replay.replay_loop(session, result)
    assert not result.identical
    cycles = [c.numbers["n_emg"] for _, c in recording.load(tmp_path).cycles()]
    assert result.first_difference["cycle"] == int(np.searchsorted(np.cumsum(cycles), 5000, side="right")) + 1


def treat(folder, growth, seconds=7.0, spasm_s=4.0):
    """Record a session in which a spasm grows by `growth` with each train that a played guard grants; returns the requests."""
    bed, wire, recorder = Loop(CONFIG), Wire(), recording.Recorder(folder, CONFIG)
    (folder / "settings.toml").write_text(CONFIG.to_toml())
    recorder.loop_number = 1
    rng, pending, requests = np.random.default_rng(3), [], []
    for i in range(round(seconds / 0.002)):
        t = 1000 + i * 0.002
        loud = 12.0 * growth ** max(0, len(requests) - 1) if i * 0.002 > spasm_s else 1.0
        due, pending = [row for row in pending if row[1] <= t], [row for row in pending if row[1] > t]
        emg, t_s = rng.standard_normal((4, 4)) * 6 * loud, t + np.arange(4) / 2000
        force, force_s = rng.standard_normal((2, 1)) * 0.1, t + np.arange(2) / 1000
        chunk = Chunk(emg, t_s, force, force_s, np.array(due, float).reshape(-1, 3), round((t + 0.003) * 1e9))
        request = bed.step(chunk).request
        recorder.cycles([wire.carry(bed, chunk)])
        if request:
            requests.append(request)
            pending += [(FEEDBACK_PULSE, t + 0.003 + k * 0.02, request.number) for k in range(25)]
            pending.append((FEEDBACK_ENDED, t + 0.503, request.number))
    recorder.close()
    return requests


def test_the_levels_of_the_looks_are_recorded_and_replay(tmp_path):
    requests = treat(tmp_path, 1.6)
    assert len(requests) >= 4
    assert {r.event_id for r in requests} == {1}
    levels = [r.level for r in requests]
    assert levels[0] == 0
    assert levels[1] == pytest.approx(72_000 * 0.96, rel=0.15)  # white noise of 72 uV, of which the filter takes 8 % of the power
    assert all(after > 1.25 * before for before, after in pairwise(levels[1:]))
    assert [c.request for _, c in recording.load(tmp_path).cycles() if c.request] == requests
    result = replay.replay_session(tmp_path)
    assert result.identical, result.first_difference
    session = recording.load(tmp_path)
    at = recording.CYCLE_FIELDS.index("level") + 1
    session.streams["cycles"].values[session.streams["cycles"].values[:, at] > 0, at] += 1
    changed = replay.Result("x")
    replay.replay_loop(session, changed)
    assert changed.first_difference["field"] == "request"


def test_a_spasm_that_does_not_change_shows_no_rise(tmp_path):
    levels = [r.level for r in treat(tmp_path, 1.0)][1:]
    assert len(levels) >= 3
    assert max(levels) < 1.25 * min(levels)


@pytest.mark.parametrize("missing", ["signals.xdf", "settings.toml"])
def test_what_is_no_session_is_said_to_be_none(tmp_path, missing):
    record(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileFormatError, match=missing):
        recording.load(tmp_path)


def test_session_folders_never_collide(tmp_path):
    folders = {recording.new_folder(tmp_path, "bed") for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)
