"""Recordings of others: every format and flag on files made here, then the real ones, then cut and damaged copies of all."""

from __future__ import annotations

import random
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from drivers.base import FileFormatError
from drivers.sources.files import Recording, load

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = (
    "tscs_sci_verma/SingleCh_StimOFF.mat",
    "ecg_emggo/ECG Contaminated.mat",
    "semgdetection/12_1.mat",
    "semgdetection/ecg.mat",
    "biosignalsnotebooks/emg_fatigue.h5",
    "biosignalsnotebooks/emg_1000_hz_16_bits_solo.h5",
    "openhdemg/otb_testfile.mat",
    "locotool_mouse/17465_data_ctl.mat",
    "hreflex_recruit/example-waveforms.csv",
)
RNG = np.random.default_rng(5)
EMG = RNG.standard_normal((500, 3))
FORCE = RNG.standard_normal(50)


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path


def npz(folder: Path, **arrays: object) -> Path:
    path = folder / "rec.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def text(folder: Path, content: str, name: str = "rec.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(content.encode(encoding))
    return path


def csv_of(columns: dict[str, np.ndarray], mark: str = ",") -> str:
    rows = [mark.join(columns)] + [mark.join(repr(float(value)) for value in row) for row in zip(*columns.values(), strict=True)]
    return "\n".join(rows) + "\n"


def matlab73(path: Path, fill: object) -> Path:
    """A v7.3 file: 512 bytes of MATLAB's header, then HDF5."""
    with h5py.File(path, "w", userblock_size=512) as file:
        fill(file)  # type: ignore[operator]
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return path


def put73(group: h5py.Group, name: str, value: object) -> h5py.Dataset:
    if isinstance(value, str):
        node = group.create_dataset(name, data=np.frombuffer(value.encode("utf-16-le"), np.uint16)[:, None])
        node.attrs["MATLAB_class"] = np.bytes_("char")
    else:
        node = group.create_dataset(name, data=np.atleast_2d(value).T)
        node.attrs["MATLAB_class"] = np.bytes_("double")
    return node


# --- the real files -------------------------------------------------------------------------------------------------------------------
def test_verma() -> None:
    path = real("tscs_sci_verma/SingleCh_StimOFF.mat")
    recording = load(path)
    assert recording.emg.shape == (312_644, 1)
    assert recording.sample_rate_hz == 4000.0
    assert recording.duration_s == pytest.approx(78.2, abs=0.05)
    assert recording.unit == "raw"
    assert recording.channels == ("raw_off",)
    assert recording.emg[0, 0] == 76467.2890625
    assert any("raw_off" in note for note in recording.notes)
    assert any("Fs = 4000" in note for note in recording.notes)


def test_emggo() -> None:
    recording = load(real("ecg_emggo/ECG Contaminated.mat"), variable="EMG.channelData", names=list("abcdefgh"), unit="mV")
    assert recording.emg.shape == (40_801, 8)
    assert recording.sample_rate_hz == 2048.0
    assert recording.channels == tuple("abcdefgh")
    assert recording.unit == "uV"


def test_semgdetection() -> None:
    path = real("semgdetection/12_1.mat")
    with pytest.raises(FileFormatError, match=r"several arrays.*'variable'.*en_g_list \(98781,\) float64; semg \(99080,\) float64"):
        load(path)
    with pytest.raises(FileFormatError, match="rate_hz"):
        load(path, variable="semg")
    recording = load(path, variable="semg", rate_hz=2000, unit="mV")
    assert recording.duration_s == pytest.approx(49.5, abs=0.05)
    raw = scipy.io.loadmat(path)["semg"].ravel()
    assert np.array_equal(recording.emg[:, 0], raw * 1e3)


@pytest.mark.parametrize(("name", "channel", "n"), [("emg_fatigue", "CH2", 126_900), ("emg_1000_hz_16_bits_solo", "PORT1_CHN1", 87_600)])
def test_opensignals(name: str, channel: str, n: int) -> None:
    recording = load(real(f"biosignalsnotebooks/{name}.h5"))
    assert recording.emg.shape == (n, 1)
    assert recording.sample_rate_hz == 1000.0
    assert recording.channels == (channel,)
    assert recording.unit == "raw"


def test_openhdemg() -> None:
    path = real("openhdemg/otb_testfile.mat")
    with pytest.raises(FileFormatError, match=r"several units: uV \(64\), a.u \(10\), %\(MVC\) \(1\)"):
        load(path)
    recording = load(path, channels="1-64", force_channels="acquired data")
    assert recording.emg.shape == (66_560, 64)
    assert recording.unit == "uV"
    assert recording.sample_rate_hz == 2048.0
    assert recording.force is not None
    assert recording.force.shape == (66_560, 1)
    assert recording.force_sample_rate_hz == 2048.0
    assert recording.force_unit == "%(MVC)"
    assert 20 < recording.force.max() < 30


def test_locotool() -> None:
    path = real("locotool_mouse/17465_data_ctl.mat")
    with pytest.raises(FileFormatError, match=r"flexor\.values"):
        load(path)
    recording = load(path, variable=["flexor.values", "extensor.values"], names=["flexor", "extensor"])
    assert recording.emg.shape == (175_518, 2)
    assert recording.sample_rate_hz == 12_500.0
    assert recording.unit == "uV"
    assert recording.emg[0, 0] == pytest.approx(28.23967, rel=1e-5)


def test_hreflex_needs_a_rate() -> None:
    path = real("hreflex_recruit/example-waveforms.csv")
    with pytest.raises(FileFormatError, match="rate_hz"):
        load(path)
    assert load(path, rate_hz=3200.0, variable="5").emg.shape == (194, 1)


@pytest.mark.parametrize("name", REAL)
def test_cut_copies_of_real_files(name: str, tmp_path: Path) -> None:
    content = real(name).read_bytes()
    path = tmp_path / Path(name).name
    cuts = [
        0,
        1,
        4,
        100,
        128,
        200,
        511,
        513,
        2000,
        *(int(len(content) * part) for part in (0.1, 0.5, 0.9)),
        len(content) - 8,
        len(content) - 1,
    ]
    for cut in cuts:
        path.write_bytes(content[:cut])
        try:
            recording = load(path)
        except FileFormatError as error:
            assert path.name in str(error)
            assert len(str(error)) > len(str(path)) + 5
        else:
            assert path.suffix == ".csv", f"cut at {cut}: loaded as {recording.emg.shape}"


# --- NPZ and what is common to all ----------------------------------------------------------------------------------------------------
def test_npz_plain(tmp_path: Path) -> None:
    recording = load(npz(tmp_path, emg=EMG, fs=1000.0))
    assert isinstance(recording, Recording)
    assert np.array_equal(recording.emg, EMG)
    assert recording.emg.flags.c_contiguous
    assert recording.emg.dtype == np.float64
    assert (recording.sample_rate_hz, recording.channels, recording.unit) == (1000.0, ("1", "2", "3"), "raw")
    assert recording.force is None
    assert recording.force_channels == ()
    assert recording.path == tmp_path / "rec.npz"
    assert any("fs = 1000" in note for note in recording.notes)


def test_npz_labels_and_unit_from_the_file(tmp_path: Path) -> None:
    recording = load(npz(tmp_path, emg=EMG, sample_rate_hz=1000, unit="mV", labels=["ta", "sol", "gm"]))
    assert recording.channels == ("ta", "sol", "gm")
    assert recording.unit == "uV"
    assert np.array_equal(recording.emg, EMG * 1e3)


@pytest.mark.parametrize(("unit", "scale"), [("V", 1e6), ("mV", 1e3), ("uV", 1.0), ("µV", 1.0), ("raw", 1.0)])
def test_units(tmp_path: Path, unit: str, scale: float) -> None:
    recording = load(npz(tmp_path, emg=EMG, fs=1000), unit=unit)
    assert np.array_equal(recording.emg, EMG * scale)
    assert recording.unit == ("raw" if unit == "raw" else "uV")


def test_unit_at_the_end_of_the_name(tmp_path: Path) -> None:
    recording = load(npz(tmp_path, emg_uv=EMG, force_n=FORCE, fs=1000), variable="emg_uv", force_variable="force_n", force_rate_hz=100)
    assert (recording.unit, recording.force_unit) == ("uV", "N")


def test_sideways_arrays_are_turned(tmp_path: Path) -> None:
    recording = load(npz(tmp_path, emg=EMG.T, fs=1000))
    assert np.array_equal(recording.emg, EMG)
    assert any("turned" in note for note in recording.notes)


def test_force_of_another_rate(tmp_path: Path) -> None:
    path = npz(tmp_path, emg=EMG, force=FORCE, fs=1000)
    with pytest.raises(FileFormatError, match="several arrays"):
        load(path)
    with pytest.raises(FileFormatError, match="force_rate_hz"):  # `fs` is the EMG's
        load(path, force_variable="force")
    recording = load(path, force_variable="force", force_rate_hz=100, force_unit="Nm")
    assert recording.force is not None
    assert np.array_equal(recording.force[:, 0], FORCE)
    assert (recording.force_sample_rate_hz, recording.force_channels, recording.force_unit) == (100.0, ("force",), "N m")
    recording = load(npz(tmp_path, emg=EMG, force=FORCE, fs=1000, force_fs=100), force_variable="force")
    assert (recording.sample_rate_hz, recording.force_sample_rate_hz) == (1000.0, 100.0)


def test_force_of_the_same_length_takes_the_emg_rate(tmp_path: Path) -> None:
    recording = load(npz(tmp_path, emg=EMG, force=np.zeros(500), fs=1000), force_variable="force")
    assert recording.force_sample_rate_hz == 1000.0
    assert any("force" in note and "1000" in note for note in recording.notes)


def test_channels_by_name_number_and_range(tmp_path: Path) -> None:
    path = npz(tmp_path, emg=EMG, fs=1000, labels=["ta", "sol", "gm"])
    assert np.array_equal(load(path, channels=["gm", 1]).emg, EMG[:, [2, 0]])
    assert load(path, channels="2-3").channels == ("sol", "gm")
    assert load(path, channels=2).channels == ("sol",)
    for wrong in (0, 4, "xx", "2-9", ["ta", 1]):
        with pytest.raises(FileFormatError, match="channel"):
            load(path, channels=wrong)
    with pytest.raises(FileFormatError, match="2 names for 3"):
        load(path, names=["a", "b"])


def test_columns_taken_as_force_leave_the_emg(tmp_path: Path) -> None:
    recording = load(npz(tmp_path, data=EMG, fs=1000), force_channels=3)
    assert recording.channels == ("1", "2")
    assert recording.force_channels == ("3",)
    with pytest.raises(FileFormatError, match="every column"):
        load(npz(tmp_path, data=EMG, fs=1000), force_channels="1-3")


def test_several_variables_become_columns(tmp_path: Path) -> None:
    path = npz(tmp_path, a=EMG[:, 0], b=EMG[:, 1], c=FORCE, fs=1000)
    recording = load(path, variable=["a", "b"])
    assert np.array_equal(recording.emg, EMG[:, :2])
    assert recording.channels == ("a", "b")
    with pytest.raises(FileFormatError, match="500 and 50 samples"):
        load(path, variable=["a", "c"])


def test_rates(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no sampling rate.*'rate_hz' or 'rate_variable'"):
        load(npz(tmp_path, emg=EMG))
    path = npz(tmp_path, emg=EMG, fs=1000, rate=2000, odd=512)
    with pytest.raises(FileFormatError, match="several sampling rates: fs, rate"):
        load(path)
    assert load(path, rate_variable="odd").sample_rate_hz == 512.0
    assert load(path, rate_hz=256).sample_rate_hz == 256.0
    for wrong in (0, -1, float("nan"), "fast", True):
        with pytest.raises(FileFormatError, match="rate_hz"):
            load(path, rate_hz=wrong)  # type: ignore[arg-type]
    with pytest.raises(FileFormatError, match="'emg' is not one number"):
        load(path, variable="emg", rate_variable="emg")
    with pytest.raises(FileFormatError, match="not a sampling rate"):
        load(npz(tmp_path, emg=EMG, fs=0))
    assert load(npz(tmp_path, emg=EMG, time=np.arange(500) / 1024)).sample_rate_hz == 1024.0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (EMG + 1j, "not real numbers"),
        (np.array(["a", "b"]), "is text"),
        (np.zeros((0, 3)), "empty"),
        (np.zeros(1), "a single sample"),
        (np.zeros((5, 5, 5)), "more than two axes"),
        (np.zeros(9, bool), "not real numbers"),
        (np.array([{}, 1], object), "cannot be used.*never loaded"),
        (np.array([0, 1, np.nan, np.inf]), r"2 of 4 values are not finite, the first \(nan\) in row 3, column 1"),
        (np.array([[0.0, 1], [2, -np.inf], [0, 0]]), r"1 of 6 .*\(-inf\) in row 2, column 2"),
    ],
)
def test_arrays_that_are_no_signal(tmp_path: Path, value: np.ndarray, says: str) -> None:
    path = npz(tmp_path, x=value, fs=1000)
    with pytest.raises(FileFormatError, match=rf"rec\.npz: variable 'x'.*{says}"):
        load(path, variable="x")
    with pytest.raises(FileFormatError, match=r"x"):
        load(path)


def test_missing_variable_lists_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"'y' is not there; it holds emg \(500, 3\) float64; fs \(\) int64"):
        load(npz(tmp_path, emg=EMG, fs=1000), variable="y")


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", EMG)
    assert load(tmp_path / "a.npy", rate_hz=1000).emg.shape == (500, 3)


def test_pickles_are_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(tmp_path / "sprung").touch, ())  # type: ignore[return-value]

    with pytest.raises(FileFormatError):
        load(npz(tmp_path, x=np.array([Trap()], object)))
    np.save(tmp_path / "a.npy", np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(FileFormatError):
        load(tmp_path / "a.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["none.npz", "folder"])
def test_what_cannot_be_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileFormatError, match=name):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npz", "a.mat", "a.h5", "a.csv", "a.edf", "a"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 600, b"\x89HDF\r\n\x1a\n" + b"\x00" * 600, b"PK\x03\x04 no", b"\x93NUMPY\x01", b"\xff\xfe"]
)
def test_what_is_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=name):
        load(tmp_path / name)


# --- side-car -------------------------------------------------------------------------------------------------------------------------
def test_side_car_and_flags_over_it(tmp_path: Path) -> None:
    path = npz(tmp_path, emg=EMG, other=EMG, fs=1000)
    beside = tmp_path / "rec.npz.toml"
    beside.write_text('variable = "emg"\nchannels = [1, "3"]\nnames = ["ta", "gm"]\nunit = "mV"\nrate_hz = 2000\n')
    recording = load(path)
    assert (recording.channels, recording.unit, recording.sample_rate_hz) == (("ta", "gm"), "uV", 2000.0)
    assert np.array_equal(recording.emg, EMG[:, [0, 2]] * 1e3)
    assert load(path, rate_hz=500.0, unit="raw").sample_rate_hz == 500.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("gain = 3", "unknown key 'gain'; known: variable"),
        ("rate_hz = 'fast'", "rate_hz"),
        ("rate_hz = true", "rate_hz"),
        ("unit = 'bananas'", "none of V, mV"),
        ("variable = 3", "variable"),
        ("channels = []", "channels"),
        ("rate_hz = \nunit = 'raw'", "line 1"),
    ],
)
def test_wrong_side_cars_are_named(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "rec.npz.toml").write_text(content)
    with pytest.raises(FileFormatError, match=rf"rec\.npz\.toml: .*{says}"):
        load(npz(tmp_path, emg=EMG, fs=1000))


# --- CSV ------------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mark", "name"), [(",", "a.csv"), (";", "a.csv"), ("\t", "a.tsv"), (" ", "a.txt")])
def test_csv_with_times_and_names(tmp_path: Path, mark: str, name: str) -> None:
    content = csv_of({"time": np.arange(500) / 2000, "ta": EMG[:, 0], "sol": EMG[:, 1]}, mark)
    recording = load(text(tmp_path, content, name))
    assert np.array_equal(recording.emg, EMG[:, :2])
    assert (recording.channels, recording.sample_rate_hz) == (("ta", "sol"), 2000.0)


def test_csv_without_header(tmp_path: Path) -> None:
    content = csv_of({"a": EMG[:, 0], "b": EMG[:, 1]}).partition("\n")[2]
    with pytest.raises(FileFormatError, match="rate_hz"):
        load(text(tmp_path, content))
    recording = load(text(tmp_path, content), rate_hz=1000)
    assert np.array_equal(recording.emg, EMG[:, :2])
    assert recording.channels == ("1", "2")


def test_csv_units_force_and_milliseconds(tmp_path: Path) -> None:
    columns = {"Time [ms]": np.arange(500) * 0.5, "TA (mV)": EMG[:, 0], "SOL [mV]": EMG[:, 1], "ankle (Nm)": EMG[:, 2]}
    recording = load(text(tmp_path, csv_of(columns)), force_variable="ankle")
    assert (recording.channels, recording.unit, recording.sample_rate_hz) == (("TA", "SOL"), "uV", 2000.0)
    assert np.array_equal(recording.emg, EMG[:, :2] * 1e3)
    assert recording.force is not None
    assert np.array_equal(recording.force[:, 0], EMG[:, 2])
    assert (recording.force_unit, recording.force_sample_rate_hz) == ("N m", 2000.0)
    picked = load(text(tmp_path, csv_of(columns)), channels="SOL", force_channels="ankle")
    assert picked.channels == ("SOL",)


def test_csv_from_a_european_spreadsheet(tmp_path: Path) -> None:
    content = "t_s;soleus (µV)\r\n" + "".join(f"{k / 1000:.3f};{k * 0.25}\r\n".replace(".", ",") for k in range(100))
    recording = load(text(tmp_path, content, encoding="latin-1"))
    assert (recording.unit, recording.sample_rate_hz, recording.channels) == ("uV", 1000.0, ("soleus",))
    assert recording.emg[3, 0] == 0.75
    assert any("decimal" in note for note in recording.notes)


def test_csv_with_comments_text_columns_and_quotes(tmp_path: Path) -> None:
    content = '# made by hand\n"time","emg, left","what"\n' + "".join(f'{k / 100},"{k}.5",rest\n' for k in range(50)) + "\n"
    recording = load(text(tmp_path, content))
    assert recording.channels == ("emg, left",)
    assert recording.emg[7, 0] == 7.5


def test_csv_rounded_times_still_give_the_rate(tmp_path: Path) -> None:
    content = "time,emg\n" + "".join(f"{k / 2048:.4f},{k}\n" for k in range(1001))
    assert load(text(tmp_path, content)).sample_rate_hz == 2048.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("t,emg\n0,1\n0.001,2\n0.002,x\n0.003,4\n", "line 4, column 'emg': 'x' is not a number"),
        ("t,emg\n0,1\n0.001,2\n0.002,\n", "line 4, column 'emg': '' is not a number"),
        ("t,emg\n0,1\n0.001\n0.002,2\n", "line 3: 1 fields instead of 2"),
        ("t,emg\n0,1\n0.001,2,3\n0.002,2\n", "line 3: 3 fields instead of 2"),
        ("t,emg,why\n0,1,a\n0.001,2,b,c\n0.002,2,d\n", "line 3: 4 fields instead of 3"),
        ("t,emg\n0,1\n0.001,nan\n0.002,2\n", "'emg': 1 of 3 .* row 2"),
        ("t,emg\n0,1\n0.001,1\n0.002,1\n0.004,1\n0.005,1\n", r"not evenly spaced, first at row 4 \(0.002 -> 0.004 s"),
        ("t,emg\n0,1\n0,1\n0,1\n", "times do not rise"),
        ("time [h],emg\n0,1\n1,1\n2,1\n", "times in 'h'"),
        ("a,a\n0,1\n0,1\n", "two columns have one name"),
        ("a,b\nc,d\n", "line 2, column 'a': 'c' is not a number"),
        ("a,b\n", "no line of data"),
        ("\n# nothing\n", "no line of data"),
    ],
)
def test_csv_errors_name_the_line(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(FileFormatError, match=rf"rec\.csv: .*{says}"):
        load(text(tmp_path, content))


def test_csv_that_may_be_cut_says_so(tmp_path: Path) -> None:
    recording = load(text(tmp_path, "t,emg\n0,1\n0.001,2\n0.002,3"))
    assert any("may be cut" in note for note in recording.notes)


# --- MATLAB ---------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("compressed", [True, False])
def test_matlab5_structures_and_cells(tmp_path: Path, compressed: bool) -> None:
    cell = np.empty(2, object)
    cell[0], cell[1] = EMG, EMG[:, :2] * 2
    labels = np.array(["ta", "sol", "gm"], object)
    inner = {"data": EMG, "fs": 2000.0, "labels": labels, "units": "mV"}
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"rec": {"emg": inner}, "trials": cell, "about": "text"}, do_compression=compressed)
    recording = load(path, variable="rec.emg.data")
    assert (recording.channels, recording.sample_rate_hz, recording.unit) == (("ta", "sol", "gm"), 2000.0, "uV")
    assert np.array_equal(recording.emg, EMG * 1e3)
    assert np.array_equal(load(path, variable="trials.2").emg, EMG[:, :2] * 2), "its rate is the only one in the file"
    with pytest.raises(FileFormatError, match=r"several arrays.*trials\.1 \(500, 3\)"):
        load(path)


def test_matlab4(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"emg": EMG, "Fs": 1000.0}, format="4")
    assert load(tmp_path / "a.mat").emg.shape == (500, 3)


def test_matlab73(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        rec = file.create_group("rec")
        put73(rec, "data", EMG)
        put73(rec, "srate", 1500.0)
        put73(rec, "unit", "mV")
        empty = rec.create_dataset("none", data=np.zeros(2, np.uint64))
        empty.attrs["MATLAB_empty"] = np.uint8(1)
        cells = file.create_group("#refs#")
        for name, scope, items in (("labels", rec, ["ta", "sol", "gm"]), ("trials", file, [EMG, EMG * 2])):
            references = [put73(cells, f"{name}{k}", item).ref for k, item in enumerate(items)]
            scope.create_dataset(name, data=np.array(references, h5py.ref_dtype)[:, None], dtype=h5py.ref_dtype)

    path = matlab73(tmp_path / "a.mat", fill)
    recording = load(path, variable="rec.data")
    assert np.array_equal(recording.emg, EMG * 1e3)
    assert (recording.channels, recording.sample_rate_hz) == (("ta", "sol", "gm"), 1500.0)
    assert np.array_equal(load(path, variable="trials.2", rate_hz=9).emg, EMG * 2)


# --- HDF5 -----------------------------------------------------------------------------------------------------------------------------
def test_opensignals_takes_the_emg_of_several_sensors(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        device = file.create_group("00:07:80")
        device.attrs["sampling rate"] = 1000
        for k, sensor in enumerate(("EMG", "ECG", "EMG", "FORCE"), 1):
            channel = device.create_dataset(f"raw/channel_{k}", data=np.arange(100, dtype="u2")[:, None] * k)
            channel.attrs["label"], channel.attrs["sensor"] = f"CH{k}", sensor
    recording = load(path, force_variable="CH4")
    assert recording.channels == ("CH1", "CH3")
    assert recording.emg[10].tolist() == [10.0, 30.0]
    assert recording.force_channels == ("CH4",)
    assert recording.force_sample_rate_hz == 1000.0
    assert any("CH1, CH3" in note for note in recording.notes)


def test_plain_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["session/emg"] = EMG
        file["session/fs"] = 1000
    assert np.array_equal(load(path, variable="session.emg").emg, EMG)


# --- damage ---------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["npz", "csv", "mat"])
def test_random_damage_gives_data_or_a_named_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez_compressed(path, emg=EMG, fs=1000)
    elif kind == "csv":
        path.write_text(csv_of({"time": np.arange(500) / 2000, "ta": EMG[:, 0]}))
    else:
        scipy.io.savemat(path, {"rec": {"emg": EMG, "fs": 1000.0}}, do_compression=True)
    content = path.read_bytes()
    rng = random.Random(2)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 3))):
            damaged[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice((len(content), rng.randrange(len(content))))])
        try:
            load(path)
        except FileFormatError as error:
            assert path.name in str(error)
