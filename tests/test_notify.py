"""What the daemon tells systemd, heard by a socket that plays systemd."""

import os
import socket
import time
from types import SimpleNamespace

import pytest

from controller import daemon
from controller.notify import Notifier
from tests.test_daemon import make


class Systemd:
    """Listens at a path or, with a leading @, in the abstract namespace."""

    def __init__(self, address):
        self.address = str(address)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self.socket.setblocking(False)

    def heard(self):
        lines = []
        while True:
            try:
                lines += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return lines


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    manager = Systemd(tmp_path / "notify" if request.param == "path" else f"@calmloop-test-{os.getpid()}")
    yield manager
    manager.socket.close()


def environ(systemd, **more):
    return {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/", **more}


def test_each_thing_is_said_once_and_the_watchdog_at_half_its_time(systemd):
    env = environ(systemd)
    n = Notifier(env)
    assert env == {"HOME": "/"}, "a child must not inherit them"
    n.turn(100.0, False, "OFF: starting")
    assert systemd.heard() == ["STATUS=OFF: starting", "WATCHDOG=1"]
    n.turn(100.1, False, "OFF: starting")
    assert systemd.heard() == []
    n.turn(100.2, True, "IDLE: two\nREADY=0 lines")  # a line break must not become an assignment
    assert systemd.heard() == ["READY=1", "STATUS=IDLE: two READY=0 lines"]
    for i in range(300):  # three seconds of turns
        n.turn(100.5 + i / 100, True, "IDLE: two READY=0 lines")
    assert systemd.heard() == ["WATCHDOG=1"] * 6
    n.stopping("SIGTERM received")
    assert systemd.heard() == ["STOPPING=1", "STATUS=SIGTERM received", "WATCHDOG=1"]


def test_a_watchdog_of_another_process_or_none_is_not_served(systemd):
    for more in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "x"}):
        n = Notifier(environ(systemd, **more))
        n.turn(0.0, True, "IDLE")
        n.stopping("end")
        assert systemd.heard() == ["READY=1", "STATUS=IDLE", "STOPPING=1", "STATUS=end"]


def test_without_systemd_there_is_no_socket(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was made"))
    n = Notifier({"WATCHDOG_USEC": "1000000"})
    n.turn(0.0, True, "IDLE")
    n.stopping("end")
    assert not n.say("READY=1")


def test_nothing_waits_for_a_systemd_that_is_full_or_gone(systemd):
    n = Notifier(environ(systemd))
    while n.say("STATUS=x"):
        pass
    begun = time.monotonic()
    n.turn(0.0, True, "IDLE")
    assert time.monotonic() - begun < 1.0  # a blocking send would wait for ever
    systemd.heard()
    n.turn(0.1, True, "IDLE")  # what did not get through is said again
    assert systemd.heard() == ["READY=1", "STATUS=IDLE", "WATCHDOG=1"]
    systemd.socket.close()
    assert not n.say("WATCHDOG=1")
    n.stopping("end")


def test_the_daemon_is_ready_when_guard_serves_and_speaks_from_its_own_turn(tmp_path, monkeypatch):
    systemd = Systemd(tmp_path / "notify")
    for name, value in environ(systemd, WATCHDOG_USEC="200000").items():
        monkeypatch.setenv(name, value)
    bed = make(tmp_path)
    assert "NOTIFY_SOCKET" not in os.environ
    monkeypatch.setattr(bed, "begin", lambda: None)
    monkeypatch.setattr(daemon.signal, "signal", lambda *_: None)
    turns, said = [], []

    def turn():
        turns.append(time.monotonic())
        said.extend(systemd.heard())
        if len(turns) == 5:
            assert "READY=1" not in said
            bed.see_guard({"start_ns": time.monotonic_ns(), "realtime": {}, "view": {}, "pid": 1})
        if len(turns) == 60:
            bed.ending = "SIGTERM received"

    monkeypatch.setattr(bed, "look_after_children", turn)
    monkeypatch.setattr(bed, "drain", lambda: None)
    bed.tell.finish = lambda: None
    bed.guard = SimpleNamespace(ring=SimpleNamespace(behind=0, lost=0), close=lambda: None, process=SimpleNamespace(pid=1), name="guard")
    assert bed.run() == 0
    said += systemd.heard()
    assert said.count("READY=1") == 1
    assert said.index("READY=1") < said.index("STOPPING=1")
    assert f"STATUS={bed.status['state']}: {bed.status['reason']}" in said
    # one each 0.1 s of the 0.55 s and more that the turns took, and one with the end; none from a thread once the turns are over
    assert 4 <= said.count("WATCHDOG=1") <= (turns[-1] - turns[0]) / 0.1 + 3
    time.sleep(0.25)
    assert systemd.heard() == []
    systemd.socket.close()
