"""A session out and back, by readers that are not ours: edfio, MNE where it is installed, the standard's own list of fields."""

import csv
import importlib.util
import json
import subprocess
from datetime import UTC, date, datetime

import numpy as np
import pytest

from bench import peers
from controller import __main__ as cli
from controller import bids, export, recording, settings
from controller.export import holes, labels, places, record_s, to_file
from controller.recording import CYCLE_FIELDS, DETECTION_FIELDS
from drivers.base import FileFormatError
from tests.rig import ROOT

RATE_HZ, FORCE_HZ, START_S = 2000, 1000, 5000.0
LOST = (4000, 137)  # the first sample that is lost, and how many
SPASM_S = (3.0, 4.5)
PULSES_S = 3.1 + 0.02 * np.arange(25)
WHO = "Ada Lovelace"
NO_NUMBER = (9000, 9003)


def record(folder, seed=1, seconds=6.3):
    """A session written sample by sample: what its file must hold is known without our code."""
    folder.mkdir(parents=True)
    config = settings.load(ROOT / "config" / "demo.toml")
    (folder / "settings.toml").write_text(config.to_toml())
    recorder, rng = recording.Recorder(folder, config), np.random.default_rng(seed)
    recorder.note(START_S - 2.0, {"what": "session", "config": {"who": WHO}})
    n = round(seconds * RATE_HZ)
    emg = rng.normal(0.0, 20.0, (n, 4)) + np.array([0.0, 0.0, 300.0, -12_345.6])  # with an electrode's offset
    emg[slice(*NO_NUMBER), 1] = np.nan
    t_s, force_s = START_S + np.arange(n) / RATE_HZ, START_S + 0.01 + np.arange(round(seconds * FORCE_HZ) - 10) / FORCE_HZ
    force = np.sin(force_s)[:, None] * 5.0
    kept = np.delete(np.arange(n), slice(LOST[0], sum(LOST)))
    put = recorder.writer.samples
    put(recorder.index["EMG"], t_s[kept], emg[kept])
    put(recorder.index["force"], force_s, force)
    cycle_s, size = START_S + np.arange(0.0, seconds, 0.01), len(config.rows)
    rows = np.zeros((len(cycle_s), size, len(DETECTION_FIELDS)))
    rows[:, :, [1, 2]] = np.nan
    seen_s, last = np.searchsorted(t_s[kept], cycle_s), DETECTION_FIELDS.index
    on = (cycle_s >= START_S + SPASM_S[0] + 0.02) & (cycle_s < START_S + SPASM_S[1])
    rows[on, 0, last("active")], rows[on | (cycle_s > START_S + SPASM_S[1]), 0, last("onset")] = 1.0, START_S + SPASM_S[0]
    rows[on | (cycle_s > START_S + SPASM_S[1]), 0, last("decided")] = START_S + SPASM_S[0] + 0.02
    rows[:, 0, last("envelope")] = np.where(on, 60.0, 6.0)
    numbers = np.zeros((len(cycle_s), 1 + len(CYCLE_FIELDS)), np.int64)
    numbers[:, 0], numbers[:, 1 + CYCLE_FIELDS.index("n_emg")] = 1, np.diff(seen_s, prepend=0)
    put(recorder.index["cycles"], cycle_s, numbers)
    put(recorder.index["detections"], cycle_s, np.column_stack([np.zeros((len(cycle_s), 3)), rows.reshape(len(cycle_s), -1)]))
    recorder.guard(guard_rows())
    recorder.close()
    return emg, t_s, force, force_s


def guard_rows():
    """A press, its train, and a request that is refused since somebody with a name has disarmed."""

    def row(at_s, kind, reasons=(), refused=0, event=(), **more):
        verdict = {"state": "ARMED", "reasons": list(reasons), "train": 0, "current_ua": 8000, "refused": refused, "ended": 0}
        return {"event": {"kind": kind, "now_ns": round((START_S + at_s) * 1e9), **dict(event)}, "verdict": verdict, **more}

    ns = [round((START_S + t) * 1e9) for t in PULSES_S]
    yield_rows = [row(2.0, "disarm", [f"disarmed by {WHO}"], event={"text": WHO})]
    yield_rows += [row(3.05, "button", event={"ok": True}), row(3.06, "button", event={"ok": True})]
    yield_rows += [row(t, "tick", written_ns=at, request=-1) for t, at in zip(PULSES_S, ns, strict=True)]
    train = {"start_ns": ns[0], "end_ns": ns[0] + 500_000_000, "pulses": 25, "charge_nc": 100}
    yield_rows += [row(3.6, "tick", train=train), row(3.7, "button")]
    why = [f"not armed: IDLE, disarmed by {WHO} [B2]", "request is 60.0 ms late (at most 50) [C7]"]
    return [*yield_rows, row(5.0, "request", why, refused=3, event={"number": 3})]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions") / "2026-01-02T03-04-05Z_ward7"
    return folder, record(folder)


@pytest.fixture
def edfio():
    return pytest.importorskip("edfio", reason="edfio is not installed (extra io)")


def run(capsys, *words):
    """The command's exit code and its JSON."""
    code = cli.main(["export", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def bdf_of(root):
    (path,) = root.glob("sub-*/ses-*/emg/*_emg.bdf")
    return path


def test_samples_come_back_in_their_places_within_a_step(session, tmp_path, capsys, edfio):
    folder, (emg, _, force, _) = session
    code, told = run(capsys, folder, "--bids", tmp_path)
    assert code == 0
    bdf = edfio.read_bdf(bdf_of(tmp_path))
    assert bdf.labels == ("SOL1", "SOL2", "TA1", "TA2", "ankle")
    assert [s.sampling_frequency for s in bdf.signals] == [RATE_HZ] * 4 + [FORCE_HZ]
    assert [s.physical_dimension for s in bdf.signals] == ["uV"] * 4 + ["N m"]
    steps = [channel["step"] for channel in told["written"][0]["channels"]]
    true = np.nan_to_num(emg)
    true[LOST[0] : sum(LOST)] = 0.0
    for j in range(4):
        got = bdf.signals[j].data
        assert len(got) == 7 * RATE_HZ  # whole seconds
        assert np.abs(got[: len(true)] - true[:, j]).max() <= 0.51 * steps[j]
        assert not got[len(true) :].any()
    assert steps[3] < 0.002  # uV, under 12 mV of offset
    got = bdf.signals[4].data
    assert not got[:10].any()  # force began 10 samples later
    assert np.abs(got[10 : 10 + len(force)] - force[:, 0]).max() <= 0.51 * steps[4]
    assert told["written"][0]["filled"] == {"gap": LOST[1], "end": 1400, "nan": 3, "force": 10 + 700}


def test_annotations_stand_where_their_samples_are(session, tmp_path, capsys, edfio):
    folder, _ = session
    assert run(capsys, folder, "--bids", tmp_path)[0] == 0
    found = {}
    for at_s, length_s, words in edfio.read_bdf(bdf_of(tmp_path)).annotations:
        found.setdefault(words.split()[0], []).append((at_s, length_s, words))
    (spasm,) = found["spasm"]
    assert spasm[0] == pytest.approx(SPASM_S[0], abs=1e-4) and spasm[1] == pytest.approx(1.4, abs=0.05)
    assert spasm[2] == "spasm soleus EMG tonic"
    assert np.allclose([p[0] for p in found["pulse"]], PULSES_S, atol=1e-5)
    assert found["pulse"][0][2] == "pulse 8 mA"
    (train,) = found["train"]
    assert train == (pytest.approx(PULSES_S[0], abs=1e-5), pytest.approx(0.5, abs=1e-5), "train 25 pulses, at most 8 mA")
    assert [press[0] for press in found["button"]] == [pytest.approx(3.05, abs=1e-5)]
    assert found["refused"] == [(pytest.approx(5.0, abs=1e-5), None, "refused not armed [B2]; request is 60.0 ms late (at most 50) [C7]")]
    gaps = [(round(at * RATE_HZ), round(length * RATE_HZ), words) for at, length, words in found["BAD_gap"] if "force" not in words]
    assert gaps == [(*LOST, "BAD_gap 137 samples"), (12_600, 1400, "BAD_gap 1400 samples at the end")]
    assert found["BAD_nan"] == [(NO_NUMBER[0] / RATE_HZ, 3 / RATE_HZ, "BAD_nan 3 samples of SOL2")]


BY_MNE = """
import json, sys, mne
raw = mne.io.read_raw_bdf(sys.argv[1], verbose="error")
first = (raw.get_data(picks=["SOL1"])[0, :4000] * 1e6).tolist()
print(json.dumps([raw.info["sfreq"], raw.ch_names, first, list(raw.annotations.description)]))
"""


@pytest.mark.skipif(peers.interpreter("mne_lsl") is None, reason="MNE comes with it: python -m bench.peers install mne_lsl")
def test_mne_reads_it(session, tmp_path, capsys, edfio):
    folder, (emg, *_) = session
    assert run(capsys, folder, "--bids", tmp_path)[0] == 0
    python = str(peers.interpreter("mne_lsl"))
    said = subprocess.run([python, "-c", BY_MNE, bdf_of(tmp_path)], capture_output=True, text=True, check=True).stdout
    rate_hz, names, first_uv, words = json.loads(said)
    assert (rate_hz, names) == (RATE_HZ, ["SOL1", "SOL2", "TA1", "TA2", "ankle"])
    assert np.abs(np.array(first_uv) - emg[:4000, 0]).max() < 1e-4
    assert words.count("pulse 8 mA") == 25


def test_required_fields_and_tables(session, tmp_path, capsys, edfio):
    folder, _ = session
    more = tmp_path / "more.json"
    more.write_text('{"Manufacturer": "TMSi", "EMGGround": "patella"}')
    root = tmp_path / "set"
    assert run(capsys, folder, "--bids", root, "--subject", "P1", "--task", "rest", "--emg-json", more, "--power-line", "60")[0] == 0
    emg = json.loads(next(root.rglob("*_emg.json")).read_text())
    assert {"EMGPlacementScheme", "EMGReference", "SamplingFrequency", "PowerLineFrequency", "SoftwareFilters", "TaskName"} <= set(emg)
    assert emg["EMGPlacementScheme"] in ("ChannelSpecific", "Measured", "Other")
    assert (emg["SamplingFrequency"], emg["PowerLineFrequency"], emg["TaskName"], emg["EMGChannelCount"]) == (2000, 60, "rest", 4)
    assert (emg["Manufacturer"], emg["EMGGround"], emg["EMGReference"]) == ("TMSi", "patella", "n/a")
    channels = bids.read_table(next(root.rglob("*_channels.tsv")))
    assert [(row["name"], row["type"], row["units"], row["sampling_frequency"]) for row in channels] == [
        *((name, "EMG", "uV", "2000") for name in ("SOL1", "SOL2", "TA1", "TA2")),
        ("ankle", "MISC", "N.m", "1000"),
    ]
    assert list(channels[0])[:3] == ["name", "type", "units"]  # in this order, says the standard
    rows = bids.read_table(next(root.rglob("*_events.tsv")))
    assert list(rows[0])[:2] == ["onset", "duration"]
    levels = json.loads(next(root.rglob("*_events.json")).read_text())["trial_type"]["Levels"]
    assert {row["trial_type"] for row in rows} == {"spasm", "train", "pulse", "refused", "button", "BAD_gap", "BAD_nan"} == set(levels)
    description = json.loads((root / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion"} <= set(description)
    assert bids.read_table(root / "participants.tsv")[0]["participant_id"] == "sub-P1"
    assert (root / "README").stat().st_size > 150
    assert not list(root.rglob("*.BDF"))


def test_no_name_no_path_and_no_date_go_out_unless_they_are_wanted(session, tmp_path, capsys, edfio):
    folder, _ = session
    for name, dated in (("without", ()), ("with", ("--keep-date",))):
        root = tmp_path / name
        assert run(capsys, folder, "--bids", root, "--csv", root / "csv", *dated)[0] == 0
        texts = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
        for secret in (WHO, "Ada", "ward7", str(ROOT), str(tmp_path), folder.name):
            assert secret.encode() not in texts, secret
        bdf, today = edfio.read_bdf(bdf_of(root)), datetime.now(UTC)
        (scan,) = bids.read_table(next(root.rglob("*_scans.tsv")))
        if dated:
            assert bdf.startdate in (today.date(), date.fromordinal(today.toordinal() - 1))
            assert abs((datetime.fromisoformat(scan["acq_time"]) - today).total_seconds()) < 60
        else:
            assert scan["acq_time"] == "n/a" and bdf.recording._to_str().startswith("Startdate X ")
            assert f"{today.year}-".encode() not in texts and f"{today:%d.%m.%y}".encode() not in texts


def test_a_second_session_is_added_and_what_people_wrote_stays(session, tmp_path, capsys, edfio):
    folder, _ = session
    root, other = tmp_path / "set", tmp_path / "other"
    record(other, seed=2, seconds=5.0)
    assert run(capsys, folder, "--bids", root)[1]["written"][0]["bids_session"] == "01"
    (root / "participants.tsv").write_text("participant_id\tage\tlesion\nsub-01\t44\tC6\n")
    (root / "README").write_text("ours")
    first = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert run(capsys, other, "--bids", root)[1]["written"][0]["bids_session"] == "02"
    assert run(capsys, other, "--bids", root, "--subject", "02")[1]["written"][0]["bids_session"] == "01"
    for path, content in first.items():
        assert path.read_bytes() == content or path.name == "participants.tsv", path
    rows = bids.read_table(root / "participants.tsv")
    assert rows == [{"participant_id": "sub-01", "age": "44", "lesion": "C6"}, {"participant_id": "sub-02", "age": "n/a", "lesion": "n/a"}]
    code, told = run(capsys, other, "--bids", root)
    assert code == 2 and "holds this recording already" in told["error"]
    assert run(capsys, folder, "--bids", root, "--session", "02")[0] == 2  # another recording's
    assert run(capsys, other, "--bids", root, "--force")[1]["written"][0]["bids_session"] == "02"
    assert len(bids.read_table(root / "sub-01" / "ses-02" / "sub-01_ses-02_scans.tsv")) == 1


def test_csv_is_what_was_recorded(session, tmp_path, capsys):
    folder, (emg, t_s, _, _) = session
    assert run(capsys, folder, "--csv", tmp_path)[0] == 0
    kept = np.delete(np.arange(len(emg)), slice(LOST[0], sum(LOST)))
    got = np.genfromtxt(tmp_path / "emg.csv", delimiter=",", skip_header=1)
    assert np.allclose(got[:, 0], t_s[kept] - START_S, atol=1e-6) and np.allclose(got[:, 1:], emg[kept], rtol=1e-8, equal_nan=True)
    assert np.loadtxt(tmp_path / "force.csv", delimiter=",", skiprows=1)[0, 0] == pytest.approx(0.01)
    with (tmp_path / "events.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["event"] == "pulse" for row in rows) == 25
    assert float(next(row for row in rows if row["event"] == "spasm")["onset_s"]) == pytest.approx(SPASM_S[0], abs=1e-4)
    code, told = run(capsys, folder, "--csv", tmp_path)
    assert code == 2 and "--force" in told["error"]


def test_wrong_use_is_said_and_writes_nothing(session, tmp_path, capsys, monkeypatch):
    folder, _ = session
    root = tmp_path / "set"
    bad = tmp_path / "bad.json"
    bad.write_text('{"SamplingFrequency": 1}')
    there = importlib.util.find_spec("edfio") is not None
    cases = [
        ((folder,), "--bids DIR"),
        ((tmp_path, "--csv", root), "not a session"),
        ((folder, folder, "--csv", root, "--session", "1"), "--session"),
    ]
    if there:
        cases += [
            ((folder, "--bids", root, "--subject", "Ada L"), "letters"),
            ((folder, "--bids", root, "--session", "../x"), "letters"),
            ((folder, "--bids", root, "--emg-json", bad), "SamplingFrequency"),
        ]
    for words, said in cases:
        code, told = run(capsys, *words)
        assert (code, told["ok"]) == (2, False) and said in told["error"], told
        assert not root.exists()
    monkeypatch.setitem(__import__("sys").modules, "edfio", None)
    code, told = run(capsys, folder, "--bids", root)
    assert code == 2 and "pip install edfio" in told["error"] and not root.exists()


# --- stamps -------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ppm", [-300, 0, 300])
def test_a_clock_that_runs_off_is_no_gap_and_events_stay_at_their_sample(ppm):
    n = 600 * RATE_HZ
    t_s = START_S + np.arange(n) / RATE_HZ * (1 + ppm * 1e-6)
    place, gaps = places(t_s, RATE_HZ)
    assert not gaps
    at = np.array([10, n // 2, n - 1])
    assert np.allclose(to_file(t_s[at], t_s, place, RATE_HZ), at / RATE_HZ, atol=1e-6)


def test_lost_samples_are_counted_and_late_ones_are_not_lost():
    t_s = START_S + np.arange(20_000) / RATE_HZ
    lost = [(3000, 1), (3100, 40), (9000, 5000), (14_500, 2)]
    kept = np.delete(np.arange(len(t_s)), np.concatenate([np.arange(a, a + n) for a, n in lost]))
    place, gaps = places(t_s[kept], RATE_HZ)
    assert gaps == [(a, n) for a, n in lost if n > 1] or gaps == lost
    assert np.abs(place - kept).max() <= 1
    late = t_s + np.where((np.arange(len(t_s)) >= 5000) & (np.arange(len(t_s)) < 5060), 0.03, 0.0)  # a burst 30 ms late that catches up
    assert holes(late, RATE_HZ) == []


def test_scattered_stamps_hide_small_gaps_alone():
    rng = np.random.default_rng(3)
    t_s = START_S + np.arange(40_000) / RATE_HZ + np.repeat(rng.uniform(-0.004, 0.004, 2000), 20)  # chunks of 20
    assert holes(t_s, RATE_HZ) == []
    kept = np.delete(np.arange(len(t_s)), slice(20_000, 20_400))
    ((at, n),) = places(t_s[kept], RATE_HZ)[1]
    assert at == pytest.approx(20_000, abs=8) and n == pytest.approx(400, abs=8)


def test_labels_and_records_that_bdf_can_hold():
    got = labels(["Wadenmuskel links oben", "Wadenmuskel links unten", "µV", "µV", ""])
    assert len(set(got)) == 5 and all(0 < len(name) <= 16 and name.isascii() for name in got)
    assert record_s([2000.0, 1000.0]) == 1
    assert record_s([58_000 / 27]) == 27  # Delsys: 2148.148 Hz
    for rates in ([2000.123456], [58_000 / 27, 1000 / 31]):
        with pytest.raises(FileFormatError, match="no place"):
            record_s(rates)


def test_what_is_too_large_for_the_header_is_refused_and_not_clipped(tmp_path):
    folder = tmp_path / "s"
    record(folder)
    session = recording.load(folder)
    session.streams["EMG"].values[50, 2] = 2e7
    with pytest.raises(FileFormatError, match=r"channel TA1.*wrong unit"):
        export.prepare(session)
