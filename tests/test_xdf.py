"""XDF: bit-exact round trips, by our reader and by pyxdf itself; survival of cuts, kills, damage and full disks."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import pyxdf

from controller.xdf import StreamSpec, XdfWriter, read
from drivers.base import FileFormatError
from drivers.sources.xdf_chunks import BOUNDARY_UUID, whole_chunks

REPO = Path(__file__).resolve().parents[1]
EXAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data" / "xdf_examples"

EMG = StreamSpec("emg", "EMG", (("tibialis <anterior> & co", "µV"), ("soleus", "µV")), 2048.0, "double64", "amp-7")
FORCE = StreamSpec("force", "Force", (("ankle", "N m"),), 1000.5, "float32", "")
CYCLES = StreamSpec("cycles", "Cycles", (("step", ""), ("kind", ""), ("ns", "ns")), 0.0, "int64", "loop")
EVENTS = StreamSpec("events", "Markers", (("event", ""),), 0.0, "string", "guard")
SPECS = (EMG, FORCE, CYCLES, EVENTS)
TEXTS = ["plain", "", "Krämpfe µV ≥ 3", "脊髄 🦵", "a\x00b\nc", '{"verdict": "refused"}', "x" * 70_000]


def pyxdf_streams(path: Path) -> dict[str, dict]:
    streams, _ = pyxdf.load_xdf(path, synchronize_clocks=False, dejitter_timestamps=False)
    return {stream["info"]["name"][0]: stream for stream in streams}


def write_some(
    path: Path, n_chunks: int, seed: int = 0, close: bool = True
) -> tuple[dict[str, tuple[list, list]], list[tuple[int, str, int]]]:
    """Write chunks of all streams; return what went in, and (file size, stream, samples so far) after headers and chunks."""
    rng = np.random.default_rng(0)
    put: dict[str, tuple[list, list]] = {spec.name: ([], []) for spec in SPECS}
    writer = XdfWriter(path, SPECS)
    sizes = [(path.stat().st_size, "", 0)]
    for k in range(n_chunks):
        i = int(rng.integers(4))
        n = int(rng.integers(1, 30))
        stamps_s = 1e5 + rng.random(n) * 1e-3 + k
        if i == 0:
            values = rng.standard_normal((n, 2)) * 10.0 ** rng.integers(-300, 300)
        elif i == 1:
            values = rng.standard_normal((n, 1)).astype(np.float32)
        elif i == 2:
            values = rng.integers(-(2**63), 2**63 - 1, (n, 3), dtype=np.int64)
        else:
            values = [str(rng.choice(TEXTS[:-1])) for _ in range(n)]
        writer.samples(i, stamps_s, values)
        sizes.append((path.stat().st_size, SPECS[i].name, writer.counts[i]))
        if k % 5 == 0:
            writer.boundary()
        if k % 7 == 0:
            writer.clock_offset(i, float(k), 1e-4 * k)
        put[SPECS[i].name][0].extend(stamps_s.tolist())
        put[SPECS[i].name][1].extend(values)
    writer.close()
    return put, sizes


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


# --- round trip -----------------------------------------------------------------------------------------------------------------------
def test_round_trip_is_bit_exact_by_both_readers(tmp_path: Path) -> None:
    path = tmp_path / "a.xdf"
    nan_with_payload = np.array([0x7FF8000000001234], np.uint64).view(np.float64)[0]
    emg = np.array([[0.1, -0.0], [np.inf, nan_with_payload], [5e-324, 1.7976931348623157e308]])
    emg_s = np.array([1e9 + 0.1, 1e9 + 0.1, 3.0])  # equal and falling stamps are data too
    force = np.array([[1.1], [np.float32(3.4e38)]], np.float32)
    cycles = np.array([[2**63 - 1, -(2**63), 2**53 + 1]])
    with XdfWriter(path, SPECS) as writer:
        writer.samples(0, emg_s, emg)
        writer.samples(1, [1.0, 2.0], force)
        writer.samples(2, [3.0], cycles)
        writer.samples(3, np.arange(len(TEXTS), dtype=float), TEXTS)
        writer.clock_offset(0, 12.25, -0.125)
        assert writer.counts == (3, 2, 1, len(TEXTS))
    got, raw = read(path), pyxdf_streams(path)
    assert [stream.spec for stream in got.values()] == list(SPECS)
    for name, stamps_s, values in (("emg", emg_s, emg), ("force", np.array([1.0, 2.0]), force), ("cycles", np.array([3.0]), cycles)):
        assert same_bits(got[name].stamps_s, stamps_s)
        assert same_bits(got[name].values, values)
        assert same_bits(raw[name]["time_stamps"], stamps_s)
        assert same_bits(raw[name]["time_series"], values)
    assert got["events"].values == TEXTS
    assert [row[0] for row in raw["events"]["time_series"]] == TEXTS
    assert got["emg"].clock_offsets_s.tolist() == [[12.25, -0.125]]
    assert raw["emg"]["footer"]["info"]["sample_count"] == ["3"]
    assert float(raw["emg"]["footer"]["info"]["first_timestamp"][0]) == emg_s[0]
    assert float(raw["emg"]["footer"]["info"]["last_timestamp"][0]) == emg_s[-1]


def test_many_random_chunks(tmp_path: Path) -> None:
    put, _ = write_some(tmp_path / "a.xdf", 200)
    got = read(tmp_path / "a.xdf")
    for name, (stamps_s, values) in put.items():
        assert got[name].stamps_s.tolist() == stamps_s
        if name == "events":
            assert got[name].values == values
        else:
            assert same_bits(got[name].values, np.array(values))


def test_empty_streams_keep_shape_and_format(tmp_path: Path) -> None:
    path = tmp_path / "a.xdf"
    with XdfWriter(path, SPECS) as writer:
        size = path.stat().st_size
        writer.samples(0, [], np.zeros((0, 2)))
        writer.samples(3, [], [])
        assert path.stat().st_size == size, "no samples must write nothing"
    got = read(path)
    assert got["emg"].values.shape == (0, 2)
    assert got["cycles"].values.dtype == np.int64
    assert got["force"].values.dtype == np.float32
    assert got["events"].values == []
    assert got["emg"].clock_offsets_s.shape == (0, 2)
    assert set(pyxdf_streams(path)) == {"emg", "force", "cycles", "events"}


def test_labels_and_units_are_where_pyxdf_users_look(tmp_path: Path) -> None:
    path = tmp_path / "a.xdf"
    XdfWriter(path, SPECS).close()
    info = pyxdf_streams(path)["emg"]["info"]
    channels = info["desc"][0]["channels"][0]["channel"]
    assert [channel["label"][0] for channel in channels] == ["tibialis <anterior> & co", "soleus"]
    assert [channel["unit"][0] for channel in channels] == ["µV", "µV"]
    assert [channel["type"][0] for channel in channels] == ["EMG", "EMG"]
    assert float(pyxdf_streams(path)["force"]["info"]["nominal_srate"][0]) == 1000.5
    assert info["source_id"] == ["amp-7"]


def test_default_pyxdf_settings_work_too(tmp_path: Path) -> None:
    path = tmp_path / "a.xdf"
    with XdfWriter(path, [EMG]) as writer:
        for k in range(20):
            writer.samples(0, (np.arange(100) + 100 * k) / 2048, np.zeros((100, 2)))
    (stream,), header = pyxdf.load_xdf(path)
    assert stream["info"]["effective_srate"] == pytest.approx(2048)
    assert header["info"]["version"] == ["1.0"]


def test_lone_surrogate_is_written_as_its_escape(tmp_path: Path) -> None:
    with XdfWriter(tmp_path / "a.xdf", [EVENTS]) as writer:
        writer.samples(0, [1.0], ["port \udcff"])
    assert read(tmp_path / "a.xdf")["events"].values == ["port \\udcff"]


# --- refusals -------------------------------------------------------------------------------------------------------------------------
def test_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.xdf"
    XdfWriter(path, SPECS).close()
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        XdfWriter(path, SPECS)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "specs",
    [
        (),
        (EMG, EMG),
        (StreamSpec("a", "", (("x", ""), ("y", "")), 0.0, "string", ""),),
        (StreamSpec("a", "", (), 0.0, "float32", ""),),
        (StreamSpec("a", "", (("x", ""),), 0.0, "int16", ""),),
        (StreamSpec("a", "", (("x", ""),), float("nan"), "int64", ""),),
        (StreamSpec("a\x00", "", (("x", ""),), 0.0, "int64", ""),),
    ],
)
def test_streams_that_nobody_could_read_are_refused(tmp_path: Path, specs: tuple[StreamSpec, ...]) -> None:
    with pytest.raises(ValueError):
        XdfWriter(tmp_path / "a.xdf", specs)
    assert not list(tmp_path.iterdir())


def test_wrong_shapes_and_kinds_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.xdf"
    with XdfWriter(path, SPECS) as writer:
        size = path.stat().st_size
        for i, stamps_s, values in (
            (0, [1.0], np.zeros((1, 3))),
            (0, [1.0, 2.0], np.zeros((1, 2))),
            (0, [[1.0]], np.zeros((1, 2))),
            (0, [1.0], np.zeros(2)),
            (2, [1.0], np.zeros((1, 3))),
            (3, [1.0], np.zeros((1, 1))),
            (3, [1.0], ["a", "b"]),
            (3, [1.0], "a"),
        ):
            with pytest.raises(ValueError):
                writer.samples(i, stamps_s, values)
        assert path.stat().st_size == size
        assert writer.counts == (0, 0, 0, 0)


def test_close_twice_then_no_more(tmp_path: Path) -> None:
    writer = XdfWriter(tmp_path / "a.xdf", SPECS)
    writer.sync()
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.boundary()


@pytest.mark.parametrize("content", [b"", b"X", b"XDF", b"XDF:", b"EDF:" + bytes(100), b"XDF:" + bytes(100), b"\x93\x01\x04" * 300])
def test_what_is_no_xdf_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.xdf"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"odd\.xdf"):
        read(path)
    assert whole_chunks(path) == whole_chunks(content) <= 4


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="No such file"):
        read(tmp_path / "none.xdf")


# --- cuts, kills, damage --------------------------------------------------------------------------------------------------------------
def test_400_random_cuts_give_exactly_the_whole_chunks(tmp_path: Path) -> None:
    put, sizes = write_some(tmp_path / "whole.xdf", 60)
    content = (tmp_path / "whole.xdf").read_bytes()
    headers_end = sizes[0][0]
    cut_path = tmp_path / "cut.xdf"
    rng = random.Random(7)
    cuts = [rng.randrange(len(content) + 1) for _ in range(400)] + [size + d for size, _, _ in sizes for d in (-1, 0, 1)]
    opened = 0
    for cut in cuts:
        cut_path.write_bytes(content[:cut])
        whole = whole_chunks(cut_path)
        assert whole <= cut
        try:
            got = read(cut_path)
        except FileFormatError:
            assert cut < headers_end
            continue
        opened += 1
        for name, (stamps_s, values) in put.items():
            n = max((count for size, stream, count in sizes if size <= cut and stream == name), default=0)
            if name not in got:
                assert cut < headers_end
                continue
            assert len(got[name].stamps_s) == n
            assert got[name].stamps_s.tolist() == stamps_s[:n]
            if name == "events":
                assert got[name].values == values[:n]
            elif n:
                assert same_bits(got[name].values, np.array(values[:n]))
    assert opened > 300


def test_whole_chunks_at_every_byte_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "a.xdf"
    ends = [4]
    writer = XdfWriter(path, [FORCE])
    ends.append(path.stat().st_size)
    for k in range(3):
        writer.samples(0, [float(k)], [[np.float32(k)]])
        ends.append(path.stat().st_size)
        writer.boundary()
        ends.append(path.stat().st_size)
    writer.close()
    content = path.read_bytes()
    first_header = 5 + struct.unpack_from("<I", content, 5)[0] + 4
    ends.append(first_header)
    for cut in range(4, ends[-2] + 1):
        assert whole_chunks(content[:cut]) == max(end for end in ends if end <= cut)


def test_zeroed_page_costs_only_up_to_the_next_boundary(tmp_path: Path) -> None:
    path = tmp_path / "a.xdf"
    with XdfWriter(path, [EMG]) as writer:
        for k in range(400):
            writer.samples(0, (np.arange(20) + 20 * k) / 2048, np.full((20, 2), float(k)))
            if k % 50 == 49:
                writer.boundary()
    content = bytearray(path.read_bytes())
    content[40960:45056] = bytes(4096)
    path.write_bytes(content)
    values = read(path)["emg"].values[:, 0]
    assert values[-1] == 399.0
    assert len(values) > 400 * 20 - 2 * 50 * 20


def test_random_damage_gives_data_or_a_named_error(tmp_path: Path) -> None:
    write_some(tmp_path / "a.xdf", 40)
    content = (tmp_path / "a.xdf").read_bytes()
    path = tmp_path / "damaged.xdf"
    rng = random.Random(3)
    for _ in range(200):
        damaged = bytearray(content)
        at = rng.randrange(4, len(content))
        damaged[at : at + rng.choice((1, 1, 4, 100))] = rng.randbytes(1)
        path.write_bytes(damaged)
        assert 4 <= whole_chunks(path) <= len(damaged)
        try:
            read(path)
        except FileFormatError as error:
            assert "damaged.xdf" in str(error)


def test_kill_at_full_speed_loses_nothing_acknowledged(tmp_path: Path) -> None:
    child = textwrap.dedent("""
        import os, sys
        import numpy as np
        from controller.xdf import StreamSpec, XdfWriter
        emg = StreamSpec("emg", "EMG", tuple((f"c{i}", "uV") for i in range(8)), 2000.0, "double64", "")
        events = StreamSpec("events", "Markers", (("event", ""),), 0.0, "string", "")
        writer = XdfWriter(sys.argv[1], [emg, events])
        k = 0
        while True:
            writer.samples(0, np.arange(20.0) + 20 * k, np.full((20, 8), float(k)))
            writer.samples(1, [float(k)], [f"event {k}"])
            if k % 50 == 0:
                writer.boundary()
            k += 1
            os.write(1, k.to_bytes(8, "little"))
    """)
    rng = random.Random(11)
    for run in range(10):
        path = tmp_path / f"{run}.xdf"
        with subprocess.Popen([sys.executable, "-c", child, str(path)], stdout=subprocess.PIPE, cwd=REPO) as process:
            assert process.stdout is not None
            acked = process.stdout.read(8)
            time.sleep(0.001 + rng.random() * 0.01)
            process.kill()
            acked += process.stdout.read()
        n_acked = int.from_bytes(acked[len(acked) // 8 * 8 - 8 : len(acked) // 8 * 8], "little")
        got = read(path)
        n = len(got["emg"].stamps_s)
        assert n % 20 == 0
        assert n_acked * 20 <= n <= (n_acked + 1) * 20
        assert np.array_equal(got["emg"].stamps_s, np.arange(float(n)))
        assert np.array_equal(got["emg"].values, np.repeat(np.arange(n // 20), 20)[:, None] * np.ones(8))
        assert len(got["events"].values) >= n_acked


def test_full_disk_leaves_a_file_that_opens(tmp_path: Path) -> None:
    """The size limit of a process stands in for a full disk: a part is taken first, then an error comes."""
    child = textwrap.dedent("""
        import resource, signal, sys
        import numpy as np
        from controller.xdf import StreamSpec, XdfWriter, whole_chunks
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        path = sys.argv[1]
        writer = XdfWriter(path, [StreamSpec("emg", "EMG", (("c", "uV"),), 2000.0, "double64", "")])
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        errors = 0
        for k in range(20):
            try:
                writer.samples(0, np.arange(20.0) + 20 * k, np.full((20, 1), float(k)))
            except OSError as error:
                errors += 1
                assert path in str(error) and "not recorded" in str(error), error
                assert len(open(path, "rb").read()) == whole_chunks(path)
        assert errors
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.samples(0, [1e6], [[-1.0]])  # room again: goes on
        print(*writer.counts)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        writer.samples(0, [1e6 + 1], [[-2.0]])
        try:
            for _ in range(100):
                writer.boundary()
        except OSError:
            pass
        try:
            writer.close()
        except OSError:
            print("close says so")
        writer.close()
    """)
    path = tmp_path / "a.xdf"
    done = subprocess.run([sys.executable, "-c", child, str(path)], capture_output=True, text=True, cwd=REPO, timeout=60)
    assert done.returncode == 0, done.stderr
    count, said = done.stdout.split("\n")[:2]
    assert said == "close says so"
    values = read(path)["emg"].values[:, 0]
    n = int(count)
    assert len(values) == n + 1
    assert values[n - 1] == -1.0
    assert len(pyxdf_streams(path)["emg"]["time_stamps"]) == n + 1
    assert whole_chunks(path) == path.stat().st_size


def test_full_tmpfs_leaves_a_file_that_opens(tmp_path: Path) -> None:
    child = textwrap.dedent("""
        import os, sys
        import numpy as np
        from controller.xdf import StreamSpec, XdfWriter, read, whole_chunks
        path = sys.argv[1]
        writer = XdfWriter(path, [StreamSpec("emg", "EMG", (("c", "uV"),), 2000.0, "double64", "")])
        try:
            for k in range(10_000):
                writer.samples(0, np.arange(100.0) + 100 * k, np.zeros((100, 1)))
        except OSError as error:
            print(error)
        assert whole_chunks(path) == os.stat(path).st_size
        assert len(read(path)["emg"].stamps_s) == writer.counts[0] > 1000
    """)
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=128k none "$0" || exit 77; exec "$@"', str(tmp_path)]
    try:
        done = subprocess.run(
            [*mounted, sys.executable, "-c", child, str(tmp_path / "a.xdf")], capture_output=True, text=True, cwd=REPO, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("unshare is not here")
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    assert done.returncode == 0, done.stderr
    assert "not recorded, No space left on device" in done.stdout


def test_no_room_for_headers_leaves_no_file(tmp_path: Path) -> None:
    child = textwrap.dedent("""
        import resource, signal, sys
        from controller.xdf import StreamSpec, XdfWriter
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        try:
            XdfWriter(sys.argv[1], [StreamSpec("emg", "EMG", (("c", "uV"),), 2000.0, "double64", "")])
        except OSError as error:
            print(error)
    """)
    path = tmp_path / "a.xdf"
    done = subprocess.run([sys.executable, "-B", "-c", child, str(path)], capture_output=True, text=True, cwd=REPO, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "not recorded" in done.stdout
    assert not path.exists()


# --- files of others ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["minimal.xdf", "empty_streams.xdf", "clock_resets.xdf"])
def test_files_of_others_and_their_cuts(name: str, tmp_path: Path) -> None:
    path = EXAMPLES / name
    if not path.exists():
        pytest.skip(f"xdf_examples/{name} is not here")
    content = path.read_bytes()
    assert whole_chunks(path) == whole_chunks(content) == len(content)
    raw, got = pyxdf_streams(path), read(path)
    assert set(got) == set(raw)
    for key, stream in got.items():
        assert stream.stamps_s.tolist() == np.asarray(raw[key]["time_stamps"]).tolist()
        assert len(stream.values) == len(stream.stamps_s)
    cut_path = tmp_path / "cut.xdf"
    for cut in random.Random(1).sample(range(len(content)), 10):
        cut_path.write_bytes(content[:cut])
        try:
            read(cut_path)
        except FileFormatError as error:
            assert "cut.xdf" in str(error)


def test_one_byte_lengths_of_other_recorders(tmp_path: Path) -> None:
    """LabRecorder writes short chunks with a 1-byte length."""
    path = tmp_path / "a.xdf"
    XdfWriter(path, [FORCE]).close()
    content = path.read_bytes()
    boundary = b"\x01\x12\x05\x00" + BOUNDARY_UUID
    sample = b"\x01" + bytes([2 + 4 + 2 + 1 + 8 + 4]) + struct.pack("<HIBBBdf", 3, 1, 1, 1, 8, 4.5, 2.5)
    path.write_bytes(content + boundary + sample + sample[:-1])
    assert whole_chunks(path) == len(content) + len(boundary) + len(sample)
    stream = read(path)["force"]
    assert stream.stamps_s.tolist() == [4.5]
    assert stream.values.tolist() == [[2.5]]


def test_chunk_of_20_by_8_is_fast(tmp_path: Path) -> None:
    eight = StreamSpec("emg", "EMG", tuple((f"c{i}", "uV") for i in range(8)), 2000.0, "double64", "")
    values, stamps_s = np.zeros((20, 8)), np.arange(20.0)
    with XdfWriter(tmp_path / "a.xdf", [eight]) as writer:
        took_s = []
        for _ in range(2000):
            start = time.perf_counter()
            writer.samples(0, stamps_s, values)
            took_s.append(time.perf_counter() - start)
    assert np.median(took_s) < 100e-6, "30 µs is the goal; 3 times that for a busy machine"
