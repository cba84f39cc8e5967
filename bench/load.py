"""Loads that share the cores with what is measured: `with load.cpu(): ...`, or `python -m bench.load cpu --seconds 10`.

- `cpu`: two busy processes a core, at ordinary priority.
- `disk`: processes that write and fsync without a pause.
- `browser`: headless Chromium that draws a canvas with many moving lines as fast as it can.

(The flood, ten times the samples that a source declares, is an option of the bench's source and no load of the machine.) Every process of a
load ends with its context, and with the process that made it, however that ended.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRITERS = 4
BLOCK_BYTES = 256 * 1024
FILE_BYTES = 64 << 20
BROWSER_S = 30.0  # until it draws
END_S = 5.0
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PAGE = """<!doctype html><title>load</title><canvas id=c width=1600 height=900></canvas><script>
const c = document.getElementById("c").getContext("2d");
let frames = 0;
function draw(ms) {
  c.clearRect(0, 0, 1600, 900);
  for (let line = 0; line < 64; line++) {
    c.beginPath();
    for (let x = 0; x < 1600; x += 2) c.lineTo(x, 14 * line + 20 * Math.sin(x / (9 + line) + ms / 90));
    c.stroke();
  }
  frames++;
  requestAnimationFrame(draw);
}
requestAnimationFrame(draw);
setInterval(() => fetch("/frames", {method: "POST", body: String(frames)}), 200);
</script>"""


class Unavailable(Exception):  # noqa: N818  (it is not always an error)
    """A load cannot be made on this machine; the message says what is missing."""


def cpu() -> contextlib.AbstractContextManager[Load]:
    """Two busy processes for each core."""
    return _running([sys.executable, "-c", "while True: pass"], 2 * (os.cpu_count() or 1))


@contextmanager
def disk(folder: Path | None = None) -> Iterator[Load]:
    """Processes that write and fsync into `folder` (a temporary one where None)."""
    with (
        tempfile.TemporaryDirectory(prefix="calmloop-load-", dir=folder) as work,
        _running([sys.executable, "-m", "bench.load", "_write", work], WRITERS) as load,
    ):
        yield load


@contextmanager
def browser() -> Iterator[Load]:
    """A browser that draws; entered once it has drawn. `frames()` of what is yielded counts what it drew.

    Raises
    ------
    Unavailable
        No Chromium is installed, or it does not draw.
    """
    chromium = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if chromium is None:
        raise Unavailable("chromium is not installed")
    frames = [0]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(frames))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    profile = tempfile.mkdtemp(prefix="calmloop-browser-")
    command = [chromium, *CHROMIUM_FLAGS, f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/"]
    try:
        with _running(command, 1) as load:
            load.frames = lambda: frames[0]
            end = time.monotonic() + BROWSER_S
            while frames[0] < 10:
                if time.monotonic() > end or load.processes[0].poll() is not None:
                    raise Unavailable(f"{chromium} does not draw")
                time.sleep(0.1)
            yield load
    finally:
        server.shutdown()
        server.server_close()
        shutil.rmtree(profile, ignore_errors=True)


LOADS: dict[str, Callable[[], contextlib.AbstractContextManager[Load]]] = {"cpu": cpu, "disk": disk, "browser": browser}


class Load:
    """The processes of a load."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self.processes = processes
        self.frames: Callable[[], int] = lambda: 0

    def check(self) -> None:
        """Raise `Unavailable` where one of them has ended: then there is no such load."""
        for process in self.processes:
            if process.poll() is not None:
                raise Unavailable(f"a process of the load ended with exit code {process.returncode}")


@contextmanager
def _running(command: list[str], number: int) -> Iterator[Load]:
    """`number` times `command`, each under a keeper in a session of its own that takes everything it started with it."""
    keeper = [sys.executable, "-m", "bench.load", "_keep", str(os.getpid()), *command]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += [
            subprocess.Popen(
                keeper,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd=Path(__file__).resolve().parents[1],
            )
            for _ in range(number)
        ]
        yield Load(processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def keep(parent: int, command: list[str]) -> int:
    """Run `command` until SIGTERM or until the parent is gone; then end it and whatever it left behind.

    A browser's helpers are no children of ours: as a subreaper this process inherits those whose parent dies, so none can get away.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        return 1
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # whoever made us may be a real-time process
    child = subprocess.Popen(command, preexec_fn=lambda: libc.prctl(1, signal.SIGKILL, 0, 0, 0))
    while child.poll() is None and not ending.wait(0.05):
        pass
    while _kill_children():
        time.sleep(0.01)
    return child.returncode or 0


def _kill_children() -> bool:
    """SIGKILL to all children of this process, and reap; whether there were any."""
    for pid in _children(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def write_forever(folder: Path) -> None:
    """Write and fsync, again and again, never more than `FILE_BYTES`."""
    block = os.urandom(BLOCK_BYTES)
    fd = os.open(folder / f"{os.getpid()}", os.O_CREAT | os.O_WRONLY, 0o600)
    at = 0
    while True:
        os.pwrite(fd, block, at)
        os.fsync(fd)
        at = (at + BLOCK_BYTES) % FILE_BYTES


def _handler(frames: list[int]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(PAGE.encode())

        def do_POST(self) -> None:
            frames[0] = int(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(b"")

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def main() -> int:
    """A load for some seconds, by hand."""
    if sys.argv[1:2] == ["_keep"]:
        return keep(int(sys.argv[2]), sys.argv[3:])
    if sys.argv[1:2] == ["_write"]:
        write_forever(Path(sys.argv[2]))
    parser = argparse.ArgumentParser(prog="bench.load", description="Put a load on this machine.")
    parser.add_argument("load", choices=LOADS)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LOADS[args.load]() as load:
            end = time.monotonic() + args.seconds
            while time.monotonic() < end:
                load.check()
                time.sleep(0.1)
            if load.frames():
                print(f"{load.frames()} frames drawn")
    except Unavailable as error:
        print(f"bench.load: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
