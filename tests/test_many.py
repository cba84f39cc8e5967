"""Many recordings at once: order, errors, kills, ^C. The work here is play: its children start fast, since they load nothing compiled."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from controller import many

ROOT = Path(__file__).resolve().parents[1]


def play(item, tick):
    """Sleeps, dies, or says what it is."""
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(item)
    tick(1.0, 10.0 * item)
    return item, os.getpid()


def test_results_come_in_the_order_of_the_items_from_processes_of_their_own():
    progress = many.Progress([1] * 4)
    found = list(many.each(play, [0.4, 0.0, 0.1, 0.0], 2, None, progress))
    assert [item for item, _ in found] == [0.4, 0.0, 0.1, 0.0]
    assert os.getpid() not in {pid for _, pid in found}
    assert len({pid for _, pid in found}) <= 2
    assert list(progress.slots) == [1.0, 4.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]


def test_one_that_is_killed_does_not_lose_the_others():
    found = list(many.each(play, [0.0, "die", 0.3, 0.0], 2, None, many.Progress([1] * 4)))
    assert [answer and answer[0] for answer in found] == [0.0, None, 0.3, 0.0]


def test_one_at_a_time_is_here():
    assert list(many.each(play, [0.0, 0.0], 1, None, many.Progress([1, 1]))) == [(0.0, os.getpid())] * 2


def test_held_back_to_a_speed():
    tick = many.meter([0.0, 0.0], 0, 10.0, lambda: None)
    began_s = time.monotonic()
    tick(0.5, 1.0)
    tick(1.0, 2.0)
    assert time.monotonic() - began_s >= 0.2


def test_how_far_it_is(capsys, monkeypatch):
    progress = many.Progress([300, 100])
    progress.slots[:] = [0.5, 40.0, 0.0, 0.0]
    assert progress.words(2.0) == " 38 %  20 x real time  3 s left"
    progress.show()
    assert capsys.readouterr().err == ""  # no terminal, no line
    monkeypatch.setattr(progress, "terminal", True)
    progress.show()
    progress.show()
    assert capsys.readouterr().err.count("38 %") == 1  # not all the time
    progress.clear()
    assert capsys.readouterr().err == "\r\033[K"


@pytest.mark.parametrize("how", ["group", "parent", "killed"])
def test_the_end_of_one_is_the_end_of_all(how, tmp_path):
    """A terminal sends ^C to the group, `kill -INT` to the parent alone; and a parent may be killed."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys, time
        from pathlib import Path
        from controller import many

        def sleep(item, tick):
            (Path(sys.argv[1]) / str(os.getpid())).touch()
            time.sleep(60)

        if __name__ == "__main__":
            try:
                list(many.each(sleep, [1, 2, 3], 2, None, many.Progress([1, 1, 1])))
            except KeyboardInterrupt:
                sys.exit(7)
        """)
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    command = [sys.executable, str(script), str(pids)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        until(lambda: len(list(pids.iterdir())) == 2)
        children = [int(path.name) for path in pids.iterdir()]
        if how == "group":
            os.killpg(parent.pid, signal.SIGINT)
        else:
            parent.send_signal(signal.SIGINT if how == "parent" else signal.SIGKILL)
        said = parent.communicate(timeout=10)[1]
        assert parent.returncode == (-signal.SIGKILL if how == "killed" else 7)
        assert "Traceback" not in said
        until(lambda: not any(alive(pid) for pid in children))
    finally:
        parent.kill()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition):
    end = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
