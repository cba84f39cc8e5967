"""Whether a session is whole, and the repair of a torn one: judged by what was done to it, by pyxdf and by bytes put together again."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import pyxdf

from bench import recording_writer
from controller import __main__ as cli
from controller import audit, keeping, recording, xdf
from drivers.base import Chunk, FileFormatError
from drivers.sources import xdf_chunks
from tests.rig import ROOT

CONFIG = recording_writer.config_of(4, 2000.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole session of 1.2 s with its key: 2400 EMG samples, 600 of force, 600 cycles."""
    folder = tmp_path_factory.mktemp("made")
    state = {"CALMLOOP_STATE_DIR": str(folder / "state")}
    command = [sys.executable, "-m", "bench.recording_writer", str(folder / "session"), "--channels", "4", "--fast", "--seconds", "1.2"]
    (folder / "session").mkdir()
    subprocess.run(command, cwd=ROOT, env=os.environ | state, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return folder


@pytest.fixture
def session(made, tmp_path, monkeypatch):
    shutil.copytree(made / "session", tmp_path / "session")
    monkeypatch.setenv("CALMLOOP_STATE_DIR", str(made / "state"))
    return tmp_path / "session"


def signals(session):
    return session / "signals.xdf"


def test_a_whole_session_is_whole(session, capsys):
    found = keeping.verify(session)
    assert (found.ok, found.problems, found.unknown, found.notes) == (True, [], [], [])
    by_pyxdf = {s["info"]["name"][0]: len(s["time_stamps"]) for s in pyxdf.load_xdf(signals(session))[0]}
    for name in ("EMG", "force"):
        assert found.facts["samples"][name] == {"given": by_pyxdf[name], "on_disk": by_pyxdf[name], "gap_samples": 0}
    assert by_pyxdf["EMG"] == 2400 and found.facts["cycles"] == 600
    crc = found.facts["crc"]
    assert crc["checked_bytes"] == found.facts["bytes"] and crc["unchecked_bytes"] == 0
    before = sorted(session.iterdir())
    assert cli.main(["verify", str(session)]) == 0
    assert "WHOLE" in capsys.readouterr().out
    assert sorted(session.iterdir()) == before  # it reads, and leaves nothing


def test_the_side_car_is_what_zlib_says_of_the_bytes(session):
    data, crc, at = signals(session).read_bytes(), (session / "signals.crc").read_bytes(), 0
    assert (session / "signals.crc").stat().st_mode & 0o077 == 0
    for i in range(0, len(crc), 16):
        end, length, value = (int.from_bytes(crc[i + a : i + b], "little") for a, b in ((0, 8), (8, 12), (12, 16)))
        assert end - length == at and zlib.crc32(data[at:end]) == value
        at = end
    assert at == len(data)


@pytest.mark.safety("F7")
def test_a_flipped_bit_which_pyxdf_reads_over_is_named(session, capsys):
    data = bytearray(signals(session).read_bytes())
    emg = pyxdf.load_xdf(signals(session))[0][0]["time_series"]
    at = data.find(emg[1000].astype("<f8").tobytes())
    data[at + 5] ^= 4
    signals(session).write_bytes(data)
    assert not np.array_equal(pyxdf.load_xdf(signals(session))[0][0]["time_series"], emg)
    found = keeping.verify(session)
    [damaged] = found.facts["crc"]["damaged"]
    assert found.ok is False and damaged["stream"] == "EMG"
    assert damaged["offset"] < at < damaged["offset"] + damaged["bytes"]
    assert cli.main(["verify", "--json", str(session)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and answer["sessions"][0]["problems"] == found.problems
    assert cli.main(["recover", str(session)]) == 1
    assert f"chunk of EMG at byte {damaged['offset']}" in capsys.readouterr().out


def test_a_page_of_zeros_is_found_and_what_it_costs_is_counted(session):
    data = bytearray(signals(session).read_bytes())
    place = [place for place in xdf_chunks.places(bytes(data)) if place.tag == xdf_chunks.SAMPLES][200]
    data[place.start : place.start + 4096] = bytes(4096)
    signals(session).write_bytes(data)
    found = keeping.verify(session)
    assert found.facts["skipped"][0]["offset"] == place.start
    assert found.facts["crc"]["damaged"][0]["offset"] == place.start
    emg, facts = found.facts["samples"]["EMG"], found.facts
    assert emg["on_disk"] + emg["gap_samples"] == 2400
    assert facts["missing_cycles"] > 0 and facts["cycles"] + facts["missing_cycles"] == 600


@pytest.mark.parametrize("change", [lambda crc: b"", lambda crc: crc[:-7], lambda crc: crc[:1600] + bytes(160), None])
def test_a_side_car_that_is_missing_or_torn_is_no_error_of_the_signals(session, change):
    path = session / "signals.crc"
    if change:
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    found = keeping.verify(session)
    assert found.ok is None and not found.problems  # the samples are there; whether they are as they were nobody can say
    assert "CRC" in found.unknown[0]


@pytest.mark.safety("F7")
def test_what_is_beside_the_samples_is_compared_too(session):
    with (session / "settings.toml").open("a") as file:
        file.write("# a remark\n")
    assert any("settings.toml is not what was in force" in text for text in keeping.verify(session).problems)


@pytest.mark.safety("F7")
def test_rows_that_were_taken_out_with_their_crcs_are_missed(session, stream="detections"):
    data = signals(session).read_bytes()
    numbers = {xml["info"]["name"][0]: xml["info"]["stream_id"] for xml in pyxdf.load_xdf(signals(session))[0]}
    out = next(p for p in xdf_chunks.places(data) if p.tag == xdf_chunks.SAMPLES and p.stream == numbers[stream])
    kept = data[: out.start] + data[out.end :]
    signals(session).write_bytes(kept)
    at, crc = 4, xdf.CRC.pack(4, 4, zlib.crc32(kept[:4]))
    for place in xdf_chunks.places(kept):
        crc += xdf.CRC.pack(place.end, place.end - at, zlib.crc32(kept[at : place.end]))
        at = place.end
    (session / "signals.crc").write_bytes(crc)
    assert any(text.startswith(f"{stream}: ") for text in keeping.verify(session).problems)


@pytest.mark.safety("F7")
def test_no_altered_byte_ends_in_anything_but_words(session, capsys):
    whole, rng = signals(session).read_bytes(), random.Random(7)
    notes = [at for word in (b'"what"', b'"rows"', b'"hmac"', b"utf-8", b'"records_lost"') for at in [whole.find(word)] if at > 0]
    for at in [at + rng.randrange(6) for at in notes for _ in range(3)] + [rng.randrange(len(whole)) for _ in range(40)]:
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        signals(session).write_bytes(data)
        assert cli.main(["verify", "--json", str(session)]) == 1
        assert json.loads(capsys.readouterr().out)["sessions"][0]["problems"]
        assert cli.main(["recover", "--json", str(session)]) in (0, 1)
        capsys.readouterr()
        for extra in session.glob("signals.torn*"):
            extra.unlink()


@pytest.mark.safety("F6")
def test_torn_sessions_are_cut_and_nothing_is_thrown_away(session, capsys):
    whole = signals(session).read_bytes()
    headers = next(place.start for place in xdf_chunks.places(whole) if place.tag == xdf_chunks.SAMPLES)
    rng = random.Random(4)
    for _ in range(25):
        data = whole[: rng.randrange(headers, len(whole))]
        signals(session).write_bytes(data)
        os.utime(signals(session), (1e9, 1e9))
        (session / keeping.TORN).unlink(missing_ok=True)
        end = xdf_chunks.whole_chunks(data)
        assert (keeping.verify(session).facts["torn_bytes"] > 0) is (end < len(data))
        for _ in range(2):
            keeping.recover(session)
            aside = session / keeping.TORN
            assert signals(session).read_bytes() + (aside.read_bytes() if aside.exists() else b"") == data
            assert signals(session).stat().st_size == end
        assert signals(session).stat().st_mtime == 1e9
        pyxdf.load_xdf(signals(session))
        assert not list(session.glob("*.partial"))
    found = keeping.verify(session)
    assert not any("torn" in text for text in found.problems)
    # what its CRCs tell of is gone: this was no kill, which cannot lose what was written
    assert found.ok is False and "not there any more" in found.problems[0]
    (session / "signals.crc").unlink()
    assert cli.main(["verify", str(session)]) == (1 if keeping.verify(session).problems else 2)
    assert "no end" in capsys.readouterr().out


def test_a_second_torn_tail_does_not_replace_the_first(session):
    whole = signals(session).read_bytes()
    for cut in (50_001, 40_001):
        signals(session).write_bytes(whole[:cut])
        keeping.recover(session)
    tails = [(session / name).read_bytes() for name in ("signals.torn", "signals.torn.2")]
    assert whole[:50_001].endswith(tails[0]) and whole[:40_001].endswith(tails[1])


@pytest.mark.parametrize("content", [b"", b"XDF:", b"EDF: and so on", b"XDF:" + bytes(200)])
def test_what_has_nothing_to_recover_is_left_as_it_is(session, content, capsys):
    signals(session).write_bytes(content)
    with pytest.raises(FileFormatError, match="left as it is"):
        keeping.recover(session)
    assert signals(session).read_bytes() == content and not (session / keeping.TORN).exists()
    assert cli.main(["recover", str(session)]) == 2
    assert "signals.xdf" in capsys.readouterr().err


def test_a_session_that_is_being_written_is_refused(tmp_path, capsys):
    (tmp_path / "settings.toml").write_text(CONFIG.to_toml())
    recorder = recording.Recorder(tmp_path, CONFIG)
    before = signals(tmp_path).read_bytes()
    assert cli.main(["recover", str(tmp_path)]) == 2
    assert "still writing" in capsys.readouterr().err
    assert "still writing" in keeping.verify(tmp_path).unknown[0]
    assert signals(tmp_path).read_bytes() == before
    recorder.close()
    assert cli.main(["recover", str(tmp_path)]) == 0


def test_not_a_session(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path), str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("is not a session") == 2


# --- what cycles say --------------------------------------------------------------------------------------------------------------
def cycle(i, n_emg=4):
    t_s = 1000.0 + (i * 4 + np.arange(n_emg)) / 2000.0
    chunk = Chunk(np.zeros((n_emg, 4)), t_s, np.zeros((0, 1)), np.zeros(0), np.zeros((0, 3)), round(t_s[0] * 1e9))
    numbers = dict.fromkeys(recording.CYCLE_FIELDS, 0) | {"index": i + 1, "n_emg": n_emg, "n_rules": len(CONFIG.rows)}
    detections = np.zeros((len(CONFIG.rows), len(recording.DETECTION_FIELDS)))
    return recording.RecordedCycle(chunk, numbers, t_s[0], 0.0, 0.0, detections)


def recorded(folder, batches, *notes):
    """A session of these batches of cycles, one loop each, with an audit and an end."""
    (folder / "settings.toml").write_text(CONFIG.to_toml())
    recorder, rows = recording.Recorder(folder, CONFIG), audit.Audit(folder / "audit.sqlite", audit.key(make=True))
    for number, batch in enumerate(batches, 1):
        recorder.loop_number = number
        recorder.cycles(batch)
    for note in notes:
        recorder.note(1.0, note)
    recorder.note(2.0, {"what": recording.END, "records_lost": sum(note["number"] for note in notes), **rows.head._asdict()})
    recorder.close()
    rows.close()
    return keeping.verify(folder)


@pytest.fixture
def key(tmp_path, monkeypatch):
    monkeypatch.setenv("CALMLOOP_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "session").mkdir()
    return tmp_path / "session"


def test_loops_that_follow_each_other_are_whole(key):
    found = recorded(key, [[cycle(i) for i in range(50)], [replace(cycle(i + 50), numbers=cycle(i).numbers) for i in range(30)]])
    assert found.ok is True and (found.facts["loops"], found.facts["cycles"]) == (2, 80)


@pytest.mark.safety("F7")
@pytest.mark.parametrize("counted", [True, False])
def test_cycles_that_are_missing_are_placed_and_their_samples_are_a_gap(key, counted):
    notes = [{"what": recording.LOST, "name": "loop", "number": 5}] if counted else []
    found = recorded(key, [[cycle(i) for i in range(60) if not 20 <= i < 25]], *notes)
    assert found.facts["holes"] == [{"loop": 1, "after": 20, "cycles": 5}]
    assert found.facts["samples"]["EMG"]["gap_samples"] == 20
    assert found.ok is False
    assert any("not counted" in text for text in found.problems) is not counted


def test_cycles_missing_at_the_beginning_are_missing_too(key):
    assert recorded(key, [[cycle(i) for i in range(3, 20)]]).facts["holes"] == [{"loop": 1, "after": 0, "cycles": 3}]


@pytest.mark.safety("F7")
def test_samples_that_are_not_there_are_counted(key):
    short = [cycle(i) for i in range(40)]
    short[10].numbers["n_emg"] += 7
    assert "EMG: 7 of 167 samples are lost" in recorded(key, [short]).problems


def test_without_the_key_nobody_can_tell(session, monkeypatch, tmp_path):
    monkeypatch.setenv("CALMLOOP_STATE_DIR", str(tmp_path / "elsewhere"))
    assert keeping.verify(session).ok is None
    (session / "audit.sqlite").unlink()
    assert keeping.verify(session).ok is False


# --- gaps -------------------------------------------------------------------------------------------------------------------------
def test_gaps_are_what_was_taken_out():
    rng = np.random.default_rng(5)
    for rate_hz in (100.0, 2000.0, 4000.0):
        t_s = 5e4 + np.arange(20_000) / rate_hz
        holes = {int(at): int(n) for at, n in zip(range(1000, 19_000, 1500), rng.integers(1, 300, 12), strict=True)}
        keep = np.ones(len(t_s), bool)
        for at, n in holes.items():
            keep[at : at + n] = False
        found = keeping.gaps(t_s[keep], rate_hz)
        assert [round((hole["at_s"] - 5e4) * rate_hz) + 1 for hole in found] == list(holes)
        assert [hole["samples"] for hole in found] == list(holes.values())
        assert found[0]["length_ms"] == pytest.approx((holes[1000] + 1) / rate_hz * 1e3)


def test_blocks_that_come_late_and_a_clock_that_drifts_are_no_gaps():
    rng = np.random.default_rng(6)
    t_s = np.arange(20_000) / 2000.0 * (1 + 2e-4)
    late_s = np.repeat(np.where(rng.random(1000) < 0.1, rng.uniform(0.001, 0.03, 1000), 0.0), 20)
    assert keeping.gaps(t_s + late_s, 2000.0) == []
    kept = np.delete(np.arange(20_000), range(8000, 8100))
    assert sum(hole["samples"] for hole in keeping.gaps((t_s + late_s)[kept], 2000.0)) == pytest.approx(100, abs=2)
    assert keeping.gaps(np.zeros(0), 2000.0) == keeping.gaps(t_s[:1], 2000.0) == []


# --- the recorder's sync ----------------------------------------------------------------------------------------------------------
def test_a_slow_disk_holds_up_nobody(tmp_path, monkeypatch):
    real = os.fdatasync

    def slow(fd):
        time.sleep(0.4)
        real(fd)

    monkeypatch.setattr(xdf.os, "fdatasync", slow)
    recorder = recording.Recorder(tmp_path, CONFIG)
    longest_s, began_s = 0.0, time.monotonic()
    for i in range(60):
        start_s = time.monotonic()
        recorder.cycles([cycle(i)])
        recorder.mark()
        longest_s = max(longest_s, time.monotonic() - start_s)
        time.sleep(0.01)
    assert time.monotonic() - began_s > 0.6 and longest_s < 0.3
    assert recorder.behind_s > 0.35
    recorder.close()
    assert len(xdf.read(signals(tmp_path))["cycles"].stamps_s) == 60


def test_a_sync_that_fails_is_told_by_mark_and_by_close(tmp_path, monkeypatch):
    def fails(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(xdf.os, "fdatasync", fails)
    recorder = recording.Recorder(tmp_path, CONFIG)
    recorder.cycles([cycle(0)])
    recorder._syncing.join(5.0)
    with pytest.raises(OSError, match="not on the disk, Input/output error"):
        recorder.mark()
    with pytest.raises(OSError, match="not on the disk"):
        recorder.close()
    assert recorder.kept_bytes == 0


@pytest.mark.safety("F6")
def test_what_is_written_is_on_the_disk_soon_without_being_asked(tmp_path):
    recorder = recording.Recorder(tmp_path, CONFIG)
    recorder.cycles([cycle(0)])
    until_s = time.monotonic() + 10.0
    while recorder.kept_bytes < recorder.writer.size and time.monotonic() < until_s:
        time.sleep(0.01)
    assert recorder.kept_bytes == signals(tmp_path).stat().st_size
    recorder.close()


@pytest.mark.safety("F6")
def test_a_torn_chunk_that_could_not_be_cut_back_is_cut_before_the_next(tmp_path, monkeypatch):
    writer = xdf.XdfWriter(tmp_path / "a.xdf", [xdf.StreamSpec("x", "", (("x", ""),), 0, "double64", "")])
    writer.samples(0, [1.0], [[1.0]])
    real_write, real_cut, left = os.write, os.ftruncate, [1]

    def short(fd, data):
        if not left[0]:
            return real_write(fd, data)
        if left[0] == 2:
            left[0] = 0
            raise OSError(5, "Input/output error")
        left[0] = 2
        return real_write(fd, bytes(data)[:10])

    def no_cut(fd, size):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(xdf.os, "write", short)
    monkeypatch.setattr(xdf.os, "ftruncate", no_cut)
    with pytest.raises(OSError, match="not recorded"):
        writer.samples(0, [2.0], [[2.0]])
    assert (tmp_path / "a.xdf").stat().st_size == writer.size + 10
    with pytest.raises(OSError, match="not recorded"):
        writer.samples(0, [3.0], [[3.0]])
    monkeypatch.setattr(xdf.os, "ftruncate", real_cut)
    writer.samples(0, [4.0], [[4.0]])
    writer.close()
    assert xdf.read(tmp_path / "a.xdf")["x"].stamps_s.tolist() == [1.0, 4.0]
