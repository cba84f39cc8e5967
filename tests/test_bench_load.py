"""The bench's loads, its contenders' environments and its cost bench, as a person would start them. No timing is judged."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import load, peers

ROOT = Path(__file__).resolve().parents[1]


def processes(**environment):
    """Pids of all processes that inherited these variables; a browser's helpers cannot hide, whoever is their parent."""
    wanted = {f"{name}={value}".encode() for name, value in environment.items()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until(condition):
    end = time.monotonic() + 15
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def mark(monkeypatch, tmp_path):
    """A variable that marks all that a test starts."""
    monkeypatch.setenv("CALMLOOP_TEST_MARK", str(tmp_path))
    return {"CALMLOOP_TEST_MARK": str(tmp_path)}


def cpu_ticks(pids):
    ticks = 0
    for pid in pids:
        try:
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
        except OSError:
            continue
    return ticks


@pytest.mark.parametrize("name", ["cpu", "disk"])
def test_load_works_and_leaves_nothing(name, mark, tmp_path):
    n_workers = {"cpu": 2 * os.cpu_count(), "disk": load.WRITERS}[name]
    with load.LOADS[name]() if name == "cpu" else load.disk(tmp_path) as running:
        assert wait_until(lambda: len(processes(**mark)) == 2 * n_workers)  # each with its keeper
        pids = processes(**mark)
        begun = cpu_ticks(pids)
        assert wait_until(lambda: cpu_ticks(pids) > begun + 20)
        if name == "disk":
            assert wait_until(lambda: sum(f.stat().st_size > 0 for f in tmp_path.rglob("*") if f.is_file()) == n_workers)
        running.check()
    assert processes(**mark) == []
    assert list(tmp_path.iterdir()) == []


def test_load_ends_though_its_body_fails(mark):
    with pytest.raises(ZeroDivisionError), load.cpu():
        assert wait_until(lambda: processes(**mark))
        raise ZeroDivisionError
    assert processes(**mark) == []


def test_a_load_that_ended_by_itself_is_told(mark):
    with load.cpu() as running:
        assert wait_until(lambda: len(processes(**mark)) == 4 * os.cpu_count())
        running.processes[0].kill()
        running.processes[0].wait()
        with pytest.raises(load.Unavailable, match="ended"):
            running.check()
    assert wait_until(lambda: processes(**mark) == [])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_load_dies_with_its_parent(how, mark):
    parent = subprocess.Popen([sys.executable, "-m", "bench.load", "cpu", "--seconds", "60"], cwd=ROOT)
    assert wait_until(lambda: len(processes(**mark)) == 1 + 4 * os.cpu_count())
    parent.send_signal(how)
    parent.wait(15)
    assert wait_until(lambda: processes(**mark) == [])


def test_missing_browser_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(load.Unavailable, match="chromium is not installed"), load.browser():
        pass


def test_command_names_what_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", "browser"], cwd=ROOT, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "bench.load: chromium is not installed\n")


def test_browser_that_does_not_draw_is_no_load(monkeypatch, tmp_path, mark):
    fake = tmp_path / "bin" / "chromium"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(load.Unavailable, match="does not draw"), load.browser():
        pass
    assert processes(**mark) == []


def test_browser_draws_and_leaves_nothing(mark):
    try:
        with load.browser() as running:
            drawn = running.frames()
            assert wait_until(lambda: running.frames() > drawn)
            assert len(processes(**mark)) > 3  # keeper, browser, and helpers of its own
    except load.Unavailable as why:
        pytest.skip(str(why))
    assert processes(**mark) == []


def test_unknown_environment_is_none():
    assert peers.interpreter("nobody") is None
    assert peers.command("nobody", "stream", "id", Path("pipe")) is None


def test_environment_counts_only_as_its_pinned_file_says(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    assert peers.interpreter("ezmsg") is None
    python = tmp_path / "ezmsg" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert peers.interpreter("ezmsg") is None  # an installation that was cut short
    stamp = tmp_path / "ezmsg" / "installed.txt"
    stamp.write_text(peers.requirements("ezmsg").read_text())
    assert peers.interpreter("ezmsg") == python
    stamp.write_text("ezmsg==0.1\n")
    assert peers.interpreter("ezmsg") is None


def test_installing_an_unknown_contender_is_refused():
    done = subprocess.run([sys.executable, "-m", "bench.peers", "install", "nobody"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "'nobody' is none of ezmsg, mne_lsl, timeflux, atheris" in done.stderr


@pytest.mark.parametrize("name", peers.NAMES + peers.TOOLS)
def test_contender_has_a_script_and_pinned_packages(name):
    assert peers.script(name).is_file()
    lines = peers.requirements(name).read_text().split()
    assert lines
    assert all(line.count("==") == 1 and "/" not in line for line in lines)


def test_cost_has_every_process(mark, tmp_path):
    path = tmp_path / "cost.json"
    command = [sys.executable, "-m", "bench.cost", "--quick", "--seconds", "1", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["environment"]["kernel"]
    (cell,) = result["cells"]
    assert (cell["channels"], cell["rate_hz"], cell["chunk"]) == (8, 2000.0, 1)
    assert cell["recorded"][-1] > cell["recorded"][0]  # samples did flow
    assert cell["start_s"] > 0
    assert set(cell["processes"]) == {"daemon", "guard", "loop"}
    for process in cell["processes"].values():
        assert process["pss_kib"] > 0
        assert process["rss_kib"] > 0
        assert process["threads"] >= 1
        first, last = process["readings"][0], process["readings"][-1]
        assert last["at_s"] > first["at_s"]
        assert last["voluntary"] > first["voluntary"]
    assert [goal["unit"] for goal in result["goals"]] == ["cores"]
    assert all(name in done.stdout for name in ("daemon", "guard", "loop", "8 ch x 2 kHz"))
    assert processes(**mark) == []


def test_cost_refuses_senseless_seconds():
    done = subprocess.run([sys.executable, "-m", "bench.cost", "--seconds", "0.1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--seconds 0.1 must be at least 1" in done.stderr
