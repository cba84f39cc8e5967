"""Makes `tests/sessions` anew: small sessions of the demo's own parts, stripped of all that tells of the machine they were made on.

`python -m tests.golden [NAME...]`, on a machine with two processors to spare. Only for when the detector, the policy or the supervisor were
changed on purpose: what stands in the folder then is what the change has to answer for, so look at `calmloop replay tests/sessions/...`
first. Each is the demo (simulated body, virtual stimulator, daemon with loop and guard as processes) with fewer channels.
"""

import getpass
import json
import lzma
import re
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

from controller import demo, messages, recording, replay, settings
from controller.xdf import XdfWriter

FOLDER = Path(__file__).parent / "sessions"
PACKED = recording.SIGNALS + ".xz"


def soleus(bed):
    """A spasm in EMG, answered by trains until it is over."""
    bed.daemon.arm()
    bed.go()
    bed.wait_for_trains(2)
    time.sleep(0.5)


def torque(bed):
    """A spasm in torque, then a press of the button, and stop within its train."""
    bed.daemon.arm()
    bed.go()
    bed.wait_for_trains(1)
    end = time.monotonic() + 20.0
    while not messages.ask(bed.daemon.bed, messages.press("golden"))["ok"] and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.2)
    messages.ask(bed.daemon.bed, {"do": "stop"})
    time.sleep(0.2)


DEMO = settings.load(settings.default_config("demo.toml"))
EMG = {"emg": DEMO.emg.model_copy(update={"channels": ("SOL1", "SOL2")})}
SESSIONS = {
    soleus: EMG | {"force": None, "force_rules": ()},
    torque: {"emg": None, "emg_rules": ()},
}


class Bed:
    """The demo's parts around one daemon."""

    def __init__(self, folder, config, seed):
        self.folder = folder
        self.bench = demo.body(folder, seed, "calmloop-golden", "--wait")
        config = demo.pointed_at(config, self.bench.port, "calmloop-golden")
        session = config.session.model_copy(update={"folder": str(folder / "sessions")})
        self.daemon = demo.LiveDaemon(config.model_copy(update={"session": session}), "golden", folder)
        try:
            self.session = Path(self.daemon.wait_until_quiet(self.bench)["session"])
        except demo.DemoError:
            self.close()
            raise

    def go(self):
        self.bench.source.send("go 60")
        self.bench.source.line("began")

    def wait_for_trains(self, n):
        end = time.monotonic() + 30.0
        while (self.daemon.status() or {"trains": 0})["trains"] < n:
            assert time.monotonic() < end, "no spasm came"
            time.sleep(0.02)

    def close(self):
        self.daemon.end()
        self.bench.close()


def strip(session, config, folder):
    """Write what replay needs, and nothing else: signals, decisions, guard's events; no audit, and of the notes the end alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / recording.SETTINGS).write_text(config.to_toml())
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / recording.SIGNALS
        streams = session.streams
        with XdfWriter(path, [stream.spec for stream in streams.values()]) as writer:
            for i, (name, stream) in enumerate(streams.items()):
                if name == "notes":
                    end = {"what": recording.END, "rows": 0, "hmac": ""}
                    writer.samples(i, stream.stamps_s[-1:], [json.dumps(end)])
                elif name == "guard":
                    port = session.config.stimulator.port  # which its rows know
                    rows = [json.loads(row.replace(port, config.stimulator.port)) for row in stream.values]
                    for row in rows:
                        row.pop("pid", None), row.pop("realtime", None)
                    writer.samples(i, stream.stamps_s, [json.dumps(row, separators=(",", ":")) for row in rows])
                else:
                    writer.samples(i, stream.stamps_s, stream.values)
        (folder / PACKED).write_bytes(lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME))


def unpack(name, folder):
    """A golden session as a session: its folder."""
    session = folder / name
    session.mkdir()
    (session / recording.SETTINGS).write_bytes((FOLDER / name / recording.SETTINGS).read_bytes())
    (session / recording.SIGNALS).write_bytes(lzma.decompress((FOLDER / name / PACKED).read_bytes()))
    return session


def tells_of_nobody(name):
    """Neither this machine nor whoever made it is named."""
    with tempfile.TemporaryDirectory() as work:
        session = recording.load(unpack(name, Path(work)))
    said = session.config.to_toml() + "\n".join([*session.streams["guard"].values, *session.streams["notes"].values])
    for word in (socket.gethostname(), getpass.getuser()):
        assert not re.search(rf"\b{re.escape(word)}\b", said), word


def main(names):
    for play, changes in SESSIONS.items():
        name = play.__name__
        if names and name not in names:
            continue
        config = settings.parse(DEMO.model_copy(update=changes).to_toml(), name)
        with tempfile.TemporaryDirectory() as work:
            bed = Bed(Path(work), config, seed=5)
            try:
                play(bed)
            finally:
                bed.close()
            strip(recording.load(bed.session), config, FOLDER / name)
        with tempfile.TemporaryDirectory() as work:
            result = replay.replay_session(unpack(name, Path(work)))
        size = (FOLDER / name / PACKED).stat().st_size
        print(f"{name}: {size} bytes, {result.seconds:.1f} s, {result.cycles} cycles, {result.requests} requests, {result.pulses} pulses")
        assert result.identical, result.first_difference
        tells_of_nobody(name)


if __name__ == "__main__":
    main(sys.argv[1:])
