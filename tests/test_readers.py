"""XDF, EDF and BDF, WFDB, Spike2: the real files, files of other writers, bytes laid out by hand, then cut and damaged copies of all."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from controller.xdf import StreamSpec, XdfWriter
from drivers.base import FileFormatError
from drivers.sources.files import load

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RNG = np.random.default_rng(8)


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path


# --- XDF ------------------------------------------------------------------------------------------------------------------------------
EMG = StreamSpec("amplifier", "EMG", (("SOL", "mV"), ("TA", "mV")), 1000.0, "float32", "amp-7")
FORCE = StreamSpec("cell", "Force", (("ankle", "N m"),), 100.0, "double64", "cell-1")
NOTES = StreamSpec("notes", "Markers", (("note", ""),), 0.0, "string", "")
CYCLES = StreamSpec("cycles", "Decisions", (("step", ""),), 0.0, "int64", "")
EMG_MV = RNG.standard_normal((3000, 2)).astype(np.float32)
FORCE_NM = np.arange(300.0)[:, None]


def xdf(path: Path, emg_hz: float = 1000.0, force_start_s: float = 50.0, skip: int = 0, force: StreamSpec = FORCE) -> Path:
    """EMG from 50 s on, in chunks of 100; from sample 1500 on, `skip` samples did not come."""
    with XdfWriter(path, (EMG, force, NOTES, CYCLES)) as writer:
        for at in range(0, 3000, 100):
            place = np.arange(at, at + 100)
            writer.samples(0, 50.0 + (place + skip * (place >= 1500)) / emg_hz, EMG_MV[at : at + 100])
            writer.samples(1, force_start_s + np.arange(at // 10, at // 10 + 10) / 100, FORCE_NM[at // 10 : at // 10 + 10])
            writer.samples(2, [50.0 + at], ["a"])
            writer.samples(3, [50.0 + at], [[at]])
            writer.boundary()
    return path


def test_xdf_streams_are_told_by_their_type(tmp_path: Path) -> None:
    recording = load(xdf(tmp_path / "a.xdf"))
    assert np.array_equal(recording.emg, EMG_MV.astype(np.float64) * 1e3)
    assert (recording.sample_rate_hz, recording.channels, recording.unit) == (1000.0, ("SOL", "TA"), "uV")
    assert recording.force is not None
    assert np.array_equal(recording.force, FORCE_NM)
    assert (recording.force_sample_rate_hz, recording.force_channels, recording.force_unit) == (100.0, ("ankle",), "N m")
    listed = r"amplifier \(3000, 2\) float32 1000 Hz mV.*notes text.*cycles irregular"
    with pytest.raises(FileFormatError, match=rf"a\.xdf: variable 'cycles' cannot be used.*{listed}"):
        load(tmp_path / "a.xdf", variable="cycles")


def test_xdf_stamps_give_the_rate_and_the_common_start(tmp_path: Path) -> None:
    recording = load(xdf(tmp_path / "a.xdf", emg_hz=990.0, force_start_s=50.5))
    assert recording.sample_rate_hz == pytest.approx(990.0, rel=1e-6)
    assert any("990 Hz by its stamps, its header says 1000 Hz" in note for note in recording.notes)
    assert recording.force is not None
    assert np.array_equal(recording.force, FORCE_NM)
    assert recording.emg[0].tolist() == (EMG_MV[495].astype(np.float64) * 1e3).tolist(), "0.5 s of EMG before the force began are cut"
    earlier = load(xdf(tmp_path / "b.xdf", force_start_s=49.0))
    assert earlier.force is not None
    assert earlier.force[0, 0] == 100.0
    assert len(earlier.emg) == 3000


def test_xdf_gap_is_named(tmp_path: Path) -> None:
    recording = load(xdf(tmp_path / "a.xdf", skip=700))
    assert recording.sample_rate_hz == 1000.0
    assert any("GAP: 1 in amplifier, the first of 0.701 s after sample 1500" in note for note in recording.notes)
    assert not any("GAP" in note for note in load(xdf(tmp_path / "b.xdf")).notes)


def test_xdf_force_that_cannot_be_used_does_not_cost_the_emg(tmp_path: Path) -> None:
    path = tmp_path / "a.xdf"
    with XdfWriter(path, (EMG, FORCE)) as writer:
        writer.samples(0, 50.0 + np.arange(3000) / 1000, EMG_MV)
        writer.samples(1, 50.0 + np.arange(300) / 100, np.full((300, 1), np.nan))
    recording = load(path)
    assert recording.force is None
    assert any("force left out" in note and "not finite" in note for note in recording.notes)


def test_xdf_two_streams_of_one_name(tmp_path: Path) -> None:
    path = xdf(tmp_path / "a.xdf", force=StreamSpec("amplifieR", "EMG", (("TA", "uV"),), 100.0, "double64", "amp-8"))
    path.write_bytes(path.read_bytes().replace(b"amplifieR", b"amplifier"))
    with pytest.raises(FileFormatError, match=r"several arrays could be the EMG.*amplifier#1 \(3000, 2\).*amplifier#2 \(300, 1\)"):
        load(path)
    recording = load(path, variable="amplifier#2")
    assert np.array_equal(recording.emg, FORCE_NM)
    assert any("amplifier#2 is that of source_id 'amp-8'" in note for note in recording.notes)


def test_torn_xdf_is_read_to_its_last_whole_chunk(tmp_path: Path) -> None:
    content = xdf(tmp_path / "a.xdf").read_bytes()
    path = tmp_path / "torn.xdf"
    head = b"\x04" + (6 + 5 + 100 * (9 + 8)).to_bytes(4, "little") + b"\x03\x00\x01\x00\x00\x00\x04"
    assert content.count(head + b"\x64\x00\x00\x00") == 30
    path.write_bytes(content.replace(head + b"\x64\x00\x00\x00", head + b"\x64\x00\x00\xff", 1))
    recording = load(path)
    assert np.array_equal(recording.emg, EMG_MV[100:].astype(np.float64) * 1e3), "a count of 4 thousand million costs its chunk alone"
    assert any("DAMAGED" in note for note in recording.notes)
    path.write_bytes(content[: len(content) // 2])
    recording = load(path)
    n = len(recording.emg)
    assert 1300 <= n <= 1600
    assert np.array_equal(recording.emg, EMG_MV[:n].astype(np.float64) * 1e3)
    assert any("TORN: read up to its last whole chunk" in note for note in recording.notes)
    path.write_bytes(content[:30])
    with pytest.raises(FileFormatError, match=r"torn\.xdf: torn before its first stream header \(30 bytes\)"):
        load(path)


def test_xdf_minimal() -> None:
    """Values of the table in the examples' README."""
    recording = load(real("xdf_examples/minimal.xdf"))
    assert recording.emg[:2].tolist() == [[192, 255, 238], [12, 22, 32]]
    assert (recording.emg.shape, recording.sample_rate_hz, recording.unit) == ((9, 3), 10.0, "raw")


def test_xdf_empty_streams() -> None:
    path = real("xdf_examples/empty_streams.xdf")
    recording = load(path)
    assert recording.emg[:, 0].tolist() == list(range(10))
    assert (recording.sample_rate_hz, recording.channels) == (1.0, ("ch:00",))
    with pytest.raises(FileFormatError, match="Empty data stream: test stream 0 counter empty"):
        load(path, variable="x")


def test_xdf_clock_resets() -> None:
    """The README's last stamps, of the longer part, are 10.791 ms apart; the header says 100 Hz; the clock was set back once."""
    recording = load(real("xdf_examples/clock_resets.xdf"))
    assert recording.emg.shape == (27_815, 8)
    assert recording.sample_rate_hz == pytest.approx(4 / (262.018644 - 261.975481), rel=1e-4)
    assert any("GAP: 1 in BioSemi" in note for note in recording.notes)


# --- EDF, BDF -------------------------------------------------------------------------------------------------------------------------
def edf(path: Path, **more: object) -> Path:
    """TA and SOL at 1000 Hz in mV, torque at 100 Hz, and an ECG; physical ranges that the numbers fit exactly."""
    edfio = pytest.importorskip("edfio", reason="edfio, of the extra `io`, is not here")
    of_biosemi = path.suffix == ".bdf"
    signal, container = (edfio.BdfSignal, edfio.Bdf) if of_biosemi else (edfio.EdfSignal, edfio.Edf)
    ramp = np.arange(3000) - 1500.0
    wide = {"digital_range": (-32_000, 32_000), "physical_range": (-32.0, 32.0)}
    container(
        [
            signal(ramp / 1000, 1000, label="EMG TA", physical_dimension="mV", **wide),
            signal(-ramp / 1000, 1000, label="EMG SOL", physical_dimension="mV", **wide),
            signal(np.arange(300.0) / 1000, 100, label="torque", physical_dimension="Nm", **wide),
            signal(ramp / 1000, 1000, label="ECG", physical_dimension="mV", **wide),
        ],
        **more,
    ).write(path)
    return path


@pytest.mark.parametrize("kind", ["edf", "bdf"])
def test_edf_and_bdf(tmp_path: Path, kind: str) -> None:
    path = edf(tmp_path / f"a.{kind}")
    recording = load(path, force_variable="torque")
    assert recording.emg[:, 0] == pytest.approx(np.arange(3000) - 1500.0, abs=1e-6)
    assert recording.emg[:, 1] == pytest.approx(1500.0 - np.arange(3000), abs=1e-6)
    assert (recording.sample_rate_hz, recording.channels, recording.unit) == (1000.0, ("EMG TA", "EMG SOL"), "uV")
    assert recording.force is not None
    assert recording.force[:, 0] == pytest.approx(np.arange(300) / 1000, abs=1e-6)
    assert (recording.force_sample_rate_hz, recording.force_unit) == (100.0, "N m")
    assert load(path, channels="ECG").channels == ("ECG",)
    with pytest.raises(FileFormatError, match=r"'EMG TA' and 'torque' have 3000 and 300 samples"):
        load(path, variable=["EMG TA", "torque"])


def test_edf_plus_without_its_annotations(tmp_path: Path) -> None:
    edfio = pytest.importorskip("edfio", reason="edfio, of the extra `io`, is not here")
    path = edf(tmp_path / "a.edf", annotations=[edfio.EdfAnnotation(1.0, None, "spasm")])
    assert b"EDF+C" in path.read_bytes()[:256]
    assert load(path).emg.shape == (3000, 2)
    with pytest.raises(FileFormatError) as error:
        load(path, variable="x")
    assert "Annotations" not in str(error.value)


def test_edf_that_may_have_gaps_is_refused(tmp_path: Path) -> None:
    path = edf(tmp_path / "a.edf", annotations=[])
    path.write_bytes(path.read_bytes().replace(b"EDF+C", b"EDF+D", 1))
    with pytest.raises(FileFormatError, match=r"a\.edf: EDF\+D: its records may have gaps"):
        load(path)


def test_edf_cut_or_not_finished(tmp_path: Path) -> None:
    path = edf(tmp_path / "a.edf", data_record_duration=1.0)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(FileFormatError, match=r"a\.edf: cut: its header promises 3 records, it ends in record 3"):
        load(path)
    path.write_bytes(content[:236] + b"-1      " + content[244:-10])
    recording = load(path)
    assert recording.emg.shape == (2000, 2)
    assert any("2 whole records" in note for note in recording.notes)


def test_edf_signals_of_one_label_are_told_apart(tmp_path: Path) -> None:
    path = edf(tmp_path / "a.edf")
    path.write_bytes(path.read_bytes().replace(b"EMG SOL", b"EMG TA ", 1))
    assert load(path).channels == ("EMG TA#1", "EMG TA#2")


def test_edf_without_edfio_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.edf"
    path.write_bytes(b"0       ".ljust(256))
    monkeypatch.setitem(sys.modules, "edfio", None)
    with pytest.raises(FileFormatError, match=r"a\.edf: .*pip install edfio"):
        load(path)


# --- WFDB -----------------------------------------------------------------------------------------------------------------------------
def wfdb(folder: Path, lines: str, **signal_files: bytes) -> Path:
    for name, content in signal_files.items():
        (folder / f"{name}.dat").write_bytes(content)
    path = folder / "rec.hea"
    path.write_text(lines)
    return path


def checksum(values: list[int]) -> int:
    return (sum(values) + 32768) % 65536 - 32768


# by hand from signal(5); 212: low bytes of two samples around the byte that holds the high bits of both
LAYOUTS = {
    16: ([1, -2, 300, -32767], "0100 feff 2c01 0180"),
    24: ([1, -2, 70_000, -8_388_607], "010000 feffff 701101 010080"),
    32: ([1, -2, 16_909_060, -2_147_483_647], "01000000 feffffff 04030201 01000080"),
    80: ([1, -2, 127, -127], "81 7e ff 01"),
    212: ([1, -2, 2047, -2047], "01f0fe ff8701"),
}


@pytest.mark.parametrize("form", LAYOUTS)
def test_wfdb_formats(tmp_path: Path, form: int) -> None:
    values, content = LAYOUTS[form]
    line = f"sig.dat {form} 2(10)/uV 16 0 {values[0]} {checksum(values)} 0 EMG\n"
    recording = load(wfdb(tmp_path, f"# about\nrec 1 500 {len(values)}\n{line}", sig=bytes.fromhex(content)))
    assert recording.emg[:, 0].tolist() == [(value - 10) / 2 for value in values]
    assert (recording.sample_rate_hz, recording.channels, recording.unit) == (500.0, ("EMG",), "uV")


def test_wfdb_212_with_an_odd_number_of_samples(tmp_path: Path) -> None:
    recording = load(wfdb(tmp_path, "rec 1 500 3\nsig.dat 212 1/uV 12 0 1 2046 0 EMG\n", sig=bytes.fromhex("01f0fe ff07")))
    assert recording.emg[:, 0].tolist() == [1, -2, 2047]


def test_wfdb_signals_of_several_rates_and_files(tmp_path: Path) -> None:
    frames = np.array([[10, 11, 500], [12, 13, 501], [14, 15, 502]], "<i2")
    header = "rec 3 100 3\nab.dat 16x2 1/mV 16 0 10 75 0 EMG TA\nab.dat 16 10/N 16 0 500 1503 0 pedal\nc.dat 80+1 0 8 0 1 6 0\n"
    path = wfdb(tmp_path, header, ab=frames.tobytes(), c=bytes([99, 129, 130, 131]))
    recording = load(path, force_variable="pedal")
    assert recording.emg[:, 0].tolist() == [10e3, 11e3, 12e3, 13e3, 14e3, 15e3]
    assert recording.sample_rate_hz == 200.0
    assert recording.force is not None
    assert recording.force[:, 0].tolist() == [50.0, 50.1, 50.2]
    assert (recording.force_sample_rate_hz, recording.force_unit) == (100.0, "N")
    counts = load(path, variable="unnamed")
    assert (counts.emg[:, 0].tolist(), counts.unit) == ([1.0, 2.0, 3.0], "raw")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("rec/2 1 500 4\na 2\nb 2\n", r"rec\.hea: a record of several segments \(2\)"),
        ("rec 1 500 4\nsig.dat 310 1/uV\n", r"rec\.hea, line 2: format 310 is not read; read are 16, 24, 32, 80, 212"),
        ("rec 1 500 4\nsig.dat 16:3 1/uV\n", "line 2: a skew of 3"),
        ("rec 1 500 4\nsig.dat 16 1/uV 16 0 2\n", r"sig\.dat differs from rec\.hea, line 2: its first sample is 1, not 2"),
        ("rec 1 500 4\nsig.dat 16 1/uV 16 0 1 7\n", "line 2: its checksum is -32468, not 7"),
        ("rec 1 500 5\nsig.dat 16 1/uV\n", r"sig\.dat is cut: the header promises 5 samples, it ends in sample 5"),
        ("rec 2 500 4\nsig.dat 16 1/uV\n", "2 signals are named, 1 are described"),
        ("rec 1 500 4\n../sig.dat 16 1/uV\n", "line 2: its signals are in another folder"),
        ("rec 1 500 4\nother.dat 16 1/uV\n", r"its signal file other\.dat: No such file"),
        ("rec 1 500 4\nsig.dat 16 x/uV\n", "line 2: a gain of 'x/uV'"),
        ("rec 1 0 4\nsig.dat 16 1/uV\n", "line 1: a rate of 0 Hz"),
        ("# nothing\n", "begins with no record line"),
    ],
)
def test_wfdb_errors_name_the_line(tmp_path: Path, header: str, says: str) -> None:
    with pytest.raises(FileFormatError, match=rf"rec\.hea: .*{says}"):
        load(wfdb(tmp_path, header, sig=bytes.fromhex(LAYOUTS[16][1])))


@pytest.mark.parametrize("end", ["hea", "dat"])
def test_wfdb_of_physionet(end: str) -> None:
    """Figures by the wfdb package, which reads in mV (`rdrecord`, physical)."""
    recording = load(real(f"physionet_emgdb/emg_healthy.{end}"))
    assert recording.emg.shape == (50_860, 1)
    assert (recording.sample_rate_hz, recording.channels, recording.unit) == (4000.0, ("EMG",), "uV")
    assert recording.emg[[0, 1000, 50_859], 0] == pytest.approx(np.array(WFDB_MV) * 1e3, abs=1e-9)
    assert recording.emg.sum() == pytest.approx(WFDB_SUM_MV * 1e3, abs=1e-3)


WFDB_MV = (-0.0333, 0.175, 0.0083)
WFDB_SUM_MV = 10.1634


# --- Spike2 ---------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "channels", "n", "volt_sum", "force", "force_unit", "force_hz", "force_sum"),
    [
        ("biomech0deg", ("prox_EMG", "dist_EMG"), 562_321, 1.225881297930755, "k_angle", "deg", 200.0, 781093.9108543396),
        ("tremor_postural", ("Flex", "Ext"), 306_579, 0.8068968134830357 + 7.056253874856283e-05, "Accel", "raw", 500.0, 58237.3371887207),
    ],
)
def test_spike2(
    name: str, channels: tuple[str, ...], n: int, volt_sum: float, force: str, force_unit: str, force_hz: float, force_sum: float
) -> None:
    """Figures by neo's own objects (`Spike2IO.read_block`), which group and scale by themselves, in float32."""
    pytest.importorskip("neo", reason="neo, of the extra `spike2`, is not here")
    recording = load(real(f"spike2py_GPL/{name}.smr"), force_variable=force)
    assert (recording.channels, recording.emg.shape, recording.sample_rate_hz, recording.unit) == (channels, (n, 2), 5000.0, "uV")
    assert recording.emg.sum() == pytest.approx(volt_sum * 1e6, rel=1e-6)
    assert recording.force is not None
    assert (recording.force_sample_rate_hz, recording.force_unit) == (force_hz, force_unit)
    assert recording.force.sum() == pytest.approx(force_sum, rel=1e-6)


def test_spike2_without_neo_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neo", None)
    for name, needs in (("a.smr", r"pip install neo$"), ("a.smrx", r"pip install neo sonpy$")):
        (tmp_path / name).write_bytes(b"\x03\x00(C) CED 87")
        with pytest.raises(FileFormatError, match=needs):
            load(tmp_path / name)


# --- damage ---------------------------------------------------------------------------------------------------------------------------
CUTS = (0, 1, 4, 100, 257, 511, 2000)


@pytest.mark.parametrize("name", ["xdf_examples/minimal.xdf", "physionet_emgdb/emg_healthy.dat", "spike2py_GPL/tremor_postural.smr"])
def test_cut_copies_of_real_files(name: str, tmp_path: Path) -> None:
    if name.endswith(".smr"):
        pytest.importorskip("neo", reason="neo, of the extra `spike2`, is not here")
    content = real(name).read_bytes()
    path = tmp_path / Path(name).name
    if path.suffix == ".dat":
        shutil.copy(real(name).with_suffix(".hea"), path.with_suffix(".hea"))
    for cut in (*(cut for cut in CUTS if cut < len(content)), *(int(len(content) * part) for part in (0.1, 0.5, 0.9)), len(content) - 1):
        path.write_bytes(content[:cut])
        try:
            recording = load(path)
        except FileFormatError as error:
            assert path.name in str(error)
            assert len(str(error)) > len(str(path)) + 5
        else:
            # a byte less may only cost the empty rest of Spike2's last block
            same = path.suffix == ".smr" and np.array_equal(recording.emg, load(real(name)).emg)
            assert same or any("TORN" in note for note in recording.notes), f"cut at {cut}: loaded as {recording.emg.shape}"


@pytest.mark.parametrize("kind", ["xdf", "edf", "bdf", "hea", "dat"])
def test_random_damage_gives_data_or_a_named_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rec.{kind}"
    if kind == "xdf":
        xdf(path)
    elif kind in ("edf", "bdf"):
        edf(path)
    else:
        header = "rec 2 500 200\nrec.dat 212 200(0)/mV 12 0 1 0 0 EMG TA\nrec.dat 212 200(0)/mV 12 0 1 0 0 EMG SOL\n"
        wfdb(tmp_path, header.replace(" 0 1 0 0", " 0"), rec=RNG.bytes(600))
    content = path.read_bytes()
    rng = random.Random(2)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 3))):
            # the first bytes say how to read the rest
            damaged[rng.randrange(rng.choice((len(content), min(len(content), 1500))))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice((len(content), rng.randrange(len(content))))])
        try:
            load(path)
        except FileFormatError as error:
            assert path.name in str(error)
