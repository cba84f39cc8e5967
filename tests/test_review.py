"""A session looked at afterwards: what is shown against what was put in, and against the samples themselves."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from controller import audit, recording, replay, review, settings
from controller.loop import Loop
from controller.web.feed import EMG, EVIDENCE, FORCE, HEAD
from drivers.base import FileFormatError
from tests.rig import ROOT
from tests.test_joins import START_S, blocks, signals
from tests.test_recording import Wire

SPASMS, ZERO_S = [(3.0, 4.0), (6.0, 8.0)], START_S - 0.5
TRAIN = (3.2, 25)  # its first pulse, and how many, at 50 Hz


def record(parent):
    """Nine seconds: 8 uV of rest, two spasms 12 times as loud, one train in the first of them; cut at its end, as by a power loss."""
    folder = parent / "2026-01-01T00-00-00Z_test"
    folder.mkdir()
    config = settings.load(ROOT / "config" / "demo.toml")
    loop, wire = Loop(config), Wire()
    (folder / "settings.toml").write_text(config.to_toml())
    recorder = recording.Recorder(folder, config)
    recorder.note(ZERO_S, {"what": "session"})
    emg, force = signals(9.0, SPASMS, [])
    for chunk in blocks(emg, force):
        loop.step(chunk)
        recorder.cycles([wire.carry(loop, chunk)])
    for k in range(TRAIN[1]):
        at_ns = round((START_S + TRAIN[0] + k / 50) * 1e9)
        verdict = {"state": "STIMULATING", "reasons": ["granted"] if k == 0 else [], "train": 0, "current_ua": 20_000, "refused": 0}
        recorder.guard([{"event": {"kind": "tick", "now_ns": at_ns}, "verdict": verdict, "written_ns": at_ns, "request": 1}])
    for onset_s, offset_s in SPASMS:
        times = {name: START_S + t_s for name, t_s in (("onset_s", onset_s), ("decided_s", onset_s + 0.01), ("offset_s", offset_s))}
        facts = {"parts": 1, "kind": "tonic", "clonus_hz": None, "area": 1.0, "peak": 2.0, "seen": 1.0, "on": False}
        recorder.note(START_S + offset_s, {"what": "spasm", "rule": "soleus EMG", **times, **facts})
    recorder.mark()
    recorder.close()
    return folder, emg


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return record(tmp_path_factory.mktemp("sessions"))


def test_what_happened_is_what_was_put_in(session):
    folder, _ = session
    told = review.overview(review.load(folder))
    json.dumps(told)
    assert told["length_s"] == pytest.approx(9.5, abs=0.01) and told["end"] == ""
    assert told["given"] == {"pulses": 25, "charge_mc": pytest.approx(25 * 20e-3 * 500e-6 * 1e3)}
    assert told["trains"] == [{"at_s": pytest.approx(3.7), "length_s": pytest.approx(24 / 50), "pulses": 25}]
    assert [event["words"] for event in told["events"]] == ["granted"]
    first, second = told["spasms"]
    assert (first["onset_s"], first["offset_s"], first["pulses"]) == (pytest.approx(3.5), pytest.approx(4.5), 25)
    assert (second["onset_s"], second["pulses"]) == (pytest.approx(6.5), 0)
    assert (told["n_spasms"], first["n_rules"], first["unit"]) == (2, 1, "µV")
    for spasm in told["spasms"]:  # the noise is 8 uV, the spasm 12 times that
        assert spasm["rms"]["before"] == pytest.approx(8.0, rel=0.15)
        assert spasm["rms"]["during"] == pytest.approx(96.0, rel=0.15)
        assert spasm["rms"]["after"] == pytest.approx(8.0, rel=0.15)


def test_a_spasm_that_two_rules_hear_is_one():
    times = [("a", 1.0, 2.0), ("b", 1.5, 2.5), ("a", 2.4, 2.6), ("a", 4.0, 5.0), ("a", 5.0, 6.0)]
    spasms = [{"rule": rule, "onset_s": onset_s, "offset_s": offset_s} for rule, onset_s, offset_s in times]
    assert review._together(spasms) == 3
    assert [spasm["n_rules"] for spasm in spasms] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(("from_s", "to_s", "n"), [(0.0, 9.5, 100), (3.4, 3.6, 40), (8.0, 20.0, 12), (3.5001, 3.5002, 3)])
def test_columns_are_least_and_greatest_of_the_samples(session, from_s, to_s, n):
    folder, emg = session
    data, at = review.columns(review.load(folder), from_s, to_s, n), 0
    seen = {}
    while at < len(data):
        what, _, count, width = HEAD.unpack_from(data, at)
        seen[what] = np.frombuffer(data, np.float32, 2 * count * width, at + HEAD.size).reshape(count, width, 2)
        at += HEAD.size + 8 * count * width
    assert set(seen) == {EMG, FORCE, EVIDENCE} and seen[EMG].shape == (n, emg.shape[1], 2)
    t_s = START_S + np.arange(len(emg)) / 2000 - ZERO_S
    edges = np.linspace(from_s, to_s, n + 1)
    for k in range(n):
        inside = emg[(t_s >= edges[k] - 1e-9) & (t_s < edges[k + 1] - 1e-9)]
        if len(inside):
            assert np.array_equal(seen[EMG][k], np.stack([inside.min(axis=0), inside.max(axis=0)], axis=-1).astype(np.float32))
        else:
            assert np.isnan(seen[EMG][k]).all()


@pytest.mark.parametrize(
    ("from_s", "to_s", "n"), [(-1.0, 2.0, 10), (2.0, 1.0, 10), (0.0, 1.0, 0), (0.0, 1.0, 10**9), (float("nan"), 1.0, 10)]
)
def test_a_part_that_is_none_is_refused(session, from_s, to_s, n):
    with pytest.raises(ValueError, match="columns are"):
        review.columns(review.load(session[0]), from_s, to_s, n)


def test_the_process_answers_one_question_after_the_other_and_what_cannot_be_read(session, tmp_path):
    folder, _ = session
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "signals.xdf").write_bytes(b"XDF:")
    questions = [
        {"folder": str(folder)},
        {"folder": str(tmp_path / "none")},
        {"folder": str(tmp_path / "bad")},
        {"folder": str(folder), "from_s": 0.0, "to_s": 1.0, "n": 10},
        {},
    ]
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    said = subprocess.run(
        [sys.executable, "-m", "controller.review"], input=lines.encode(), capture_output=True, check=True, cwd=ROOT
    ).stdout
    answers = []
    while said:
        good, n = review.ANSWER.unpack_from(said)
        answers.append((good, said[review.ANSWER.size : review.ANSWER.size + n]))
        said = said[review.ANSWER.size + n :]
    assert [good for good, _ in answers] == [True, False, False, True, False]
    assert json.loads(answers[0][1])["given"]["pulses"] == 25
    assert b"settings.toml is missing" in answers[2][1]


def test_a_recording_too_large_for_memory_is_refused_by_its_size(session, monkeypatch):
    monkeypatch.setattr(review, "MAX_BYTES", 1000)
    review._load.cache_clear()
    with pytest.raises(FileFormatError, match="too much"):
        review.load(session[0])


def test_sessions_are_listed_newest_first_and_nothing_else(session, tmp_path):
    folder, _ = session
    (folder.parent / "no session").mkdir(exist_ok=True)
    (folder.parent / "2026-01-01T00-00-00Z_other").mkdir(exist_ok=True)
    (folder.parent / "2026-01-01T00-00-00Z_other" / "signals.xdf").touch()
    assert [row["name"] for row in review.sessions(folder.parent, "test")] == [folder.name]
    assert review.sessions(tmp_path / "nowhere") == []


@pytest.mark.safety("G1", "G3")
def test_sessions_of_beds_with_names_alike_stay_apart(tmp_path):
    at = "2026-01-01T00-00-00Z_"

    def made(name, bed=""):
        (tmp_path / name).mkdir()
        (tmp_path / name / "signals.xdf").touch()
        if bed:
            kept = audit.Audit(tmp_path / name / recording.AUDIT, bytes(32))
            kept.add(1, "session", bed=bed)
            kept.close()

    def of(bed):
        return {row["name"].removeprefix("2026-01-01T00-00-") for row in review.sessions(tmp_path, bed)}

    made(f"{at}BED", "BED")
    made(f"{at}BED_2", "BED")
    made("2026-01-01T00-00-01Z_BED_2", "BED_2")
    made("2026-01-01T00-00-02Z_BED_1", "BED_1")
    made("2026-01-01T00-00-02Z_BED_1_12", "BED_1")
    made("2026-01-01T00-00-03Z_BED_3")  # does not say whose it is
    made("2026-01-01T00-00-04Z_xZ_BED", "xZ_BED")
    (tmp_path / "2026-01-01T00-00-05Z_BED").symlink_to(tmp_path / "2026-01-01T00-00-02Z_BED_1")
    made("2026-01-01T00-00-06Z_BED", "BED")
    (tmp_path / "2026-01-01T00-00-06Z_BED" / "signals.xdf").unlink()
    (tmp_path / "2026-01-01T00-00-06Z_BED" / "signals.xdf").symlink_to(tmp_path / f"{at}BED" / "signals.xdf")
    assert of("BED") == {"00Z_BED", "00Z_BED_2"}
    assert of("BED_1") == {"02Z_BED_1", "02Z_BED_1_12"}
    assert of("BED_2") == {"01Z_BED_2"}
    assert of("BED_3") == of("B*") == of("[A-Z]*") == set()
    assert of("xZ_BED") == {"04Z_xZ_BED"}


def test_a_session_of_an_earlier_version_is_reviewed_and_not_replayed(tmp_path, monkeypatch):
    """What that version did not know yet reads as 0; the rest is in its place."""
    with monkeypatch.context() as earlier:
        channels, cycles = recording.detection_channels, recording.Recorder.cycles
        earlier.setattr(recording, "detection_channels", lambda config: tuple(row for row in channels(config) if ": veto" not in row[0]))

        def less(self, new):
            cycles(self, [replace(c, detections=c.detections[:, :-1]) for c in new])

        earlier.setattr(recording.Recorder, "cycles", less)
        folder, _ = record(tmp_path)
    session = review.load(folder)
    assert session.older == ("soleus EMG: veto", "plantarflexion torque: veto")
    told = review.overview(session)
    assert told["given"]["pulses"] == 25 and len(told["spasms"]) == 2
    for _, cycle in session.cycles():
        assert cycle.detections.shape[1] == len(recording.DETECTION_FIELDS) and not cycle.detections[:, -1].any()
    assert max(cycle.detections[0, 0] for _, cycle in session.cycles()) == 1.0
    with pytest.raises(FileFormatError, match="recorded by an earlier calmloop"):
        replay.replay_session(folder)
