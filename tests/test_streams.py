"""Faults of a stream by name: on stamps alone, and with real outlets that are killed, doubled, too fast, too slow, or on another clock.

Each outlet plays a spasm while its fault is on; the same spasm without the fault is asked about, so silence means something.
"""

import socket
import threading
import time
from pathlib import Path

import numpy as np
import pylsl
import pytest

from controller import compiled_ring, loop, messages, ring, settings, streams
from controller.detector import SpasmDetector
from drivers.base import DeviceMismatchError
from drivers.sources import lsl

CONFIG = settings.load(Path(__file__).resolve().parents[1] / "config" / "demo.toml")
RATE_HZ, BLOCK = 2000, 20
QUIET_S, SPASM_S = 3.0, 0.4


# --- stamps ---------------------------------------------------------------------------------------------------------------------------
class Watched:
    """A stream whose blocks come as they end."""

    def __init__(self, rate_hz=RATE_HZ):
        self.stream, self.now_s = streams.stream(rate_hz), 100.0

    def take(self, t_s, now_s=None):
        t_s = np.asarray(t_s, float)
        self.now_s = (t_s[-1] if len(t_s) else self.now_s) + 0.001 if now_s is None else now_s
        streams.watch(self.stream[0], t_s, self.now_s)
        return streams.STATES[self.stream[0]["state"]]

    def play(self, seconds, from_s=100.0, rate_hz=RATE_HZ, block=BLOCK):
        t_s = from_s + np.arange(round(seconds * rate_hz)) / rate_hz
        return [self.take(part) for part in np.split(t_s, range(block, len(t_s), block))]


@pytest.mark.safety("D1")
def test_a_stream_that_stops_is_silent_after_50_ms_and_fine_with_its_next_sample():
    watched = Watched()
    assert watched.take([], 100.0) == "no samples [D1]"
    assert set(watched.play(1.0)) == {"fine"}
    last_s = watched.stream[0]["newest_s"]
    assert watched.take([], last_s + 0.049) == "fine"
    assert watched.take([], last_s + 0.051) == "no samples [D1]"
    assert watched.take([last_s + 0.06]) == "fine"


@pytest.mark.safety("D1")
def test_a_slow_signal_may_be_ten_periods_late():
    watched = Watched(50)
    watched.take([100.0, 100.02])
    assert watched.take([], 100.2) == "fine"
    assert watched.take([], 100.23) == "no samples [D1]"


@pytest.mark.safety("D2")
@pytest.mark.parametrize(("factor", "wrong"), [(0.1, True), (0.94, True), (0.96, False), (1.04, False), (1.06, True), (10.0, True)])
def test_the_rate_is_measured(factor, wrong):
    watched = Watched()
    said = watched.play(2.2, rate_hz=RATE_HZ * factor)
    assert said[-1] == ("wrong rate [D2]" if wrong else "fine")
    assert watched.stream[0]["measured_hz"] == pytest.approx(RATE_HZ * factor, rel=1e-6)
    assert set(said[: len(said) * 8 // 10]) == {"fine"}  # 2 s are needed to know


@pytest.mark.safety("D2")
def test_a_rate_that_is_right_again_is_fine_again():
    watched = Watched()
    watched.play(2.2, rate_hz=RATE_HZ / 2)
    said = watched.play(4.2, from_s=102.2)
    assert said[0] == "wrong rate [D2]"
    assert said[-1] == "fine"


@pytest.mark.safety("D2")
@pytest.mark.parametrize(("factor", "state"), [(1.0, "fine"), (0.5, "wrong rate [D2]"), (2.0, "wrong rate [D2]")])
def test_gaps_are_no_wrong_rate_and_hide_none(factor, state):
    watched = Watched()
    for k in range(5):
        said = watched.play(0.8, from_s=100.0 + 0.9 * k, rate_hz=RATE_HZ * factor)
    assert said[-1] == state
    assert watched.stream[0]["measured_hz"] == pytest.approx(RATE_HZ * factor, rel=1e-6)


@pytest.mark.safety("D6")
@pytest.mark.parametrize(
    ("step_s", "state"),
    [
        (0.0, "stamps run backwards or are doubled [D6]"),
        (-0.06, "stamps run backwards or are doubled [D6]"),
        (np.nan, "stamps run backwards or are doubled [D6]"),
        (1.1, "stamps jumped [D6]"),
        (0.9, "fine"),  # a gap, and the detector's
        (-0.004, "fine"),  # a block that came early
    ],
)
def test_stamps_that_cannot_be(step_s, state):
    watched = Watched()
    watched.play(1.0)
    at_s = watched.stream[0]["newest_s"]
    now_s = watched.now_s
    assert watched.take([at_s + step_s], max(now_s, at_s + step_s + 0.001) if step_s == step_s else now_s) in (state, "no samples [D1]")
    assert streams.STATES[watched.stream[0]["wrong"]] == (state if state != "fine" else "")


@pytest.mark.safety("D6")
def test_after_a_second_of_good_stamps_a_stream_is_believed_again():
    watched = Watched()
    watched.play(1.0)
    watched.take([watched.stream[0]["newest_s"]])
    at_s, said = watched.stream[0]["newest_s"], []
    said = watched.play(1.2, from_s=at_s + 1 / RATE_HZ)
    assert 0.95 <= said.index("fine") * BLOCK / RATE_HZ <= 1.05
    assert watched.stream[0]["faults"] == 1


@pytest.mark.safety("D6")
@pytest.mark.parametrize(
    ("at_s", "believed"), [((101, 103, 105), False), ((101, 141, 181), True), ((101, 158, 161.5, 164), False), ((101, 102), True)]
)
def test_three_faults_within_any_minute_are_too_many(at_s, believed):
    watched = Watched()
    t_s = np.arange(100.0, 190.0, 0.5)
    for stamp_s in np.sort(np.concatenate([t_s, at_s])):
        watched.take([stamp_s, stamp_s] if stamp_s in at_s else [stamp_s])
    assert bool(watched.stream[0]["lost"]) is not believed


def test_an_absent_signal_is_nothing():
    watched = Watched(0.0)
    assert watched.take([1.0, 1.0, 0.5]) == ""


# --- outlets --------------------------------------------------------------------------------------------------------------------------
class Bed:
    """The live loop in a thread, on one EMG stream; this process plays amplifier and guard."""

    def __init__(self, name, rate_hz=RATE_HZ):
        changes = {"emg": CONFIG.emg.model_copy(update={"stream_name": name}), "force": None, "force_rules": (), "joins": ()}
        self.config = settings.parse(CONFIG.model_copy(update=changes).to_toml(), "torture")
        self.outlet = lsl.outlet(name, "EMG", CONFIG.emg.channels, "uV", RATE_HZ, "amplifier")
        self.source = lsl.LslSource(self.config.emg, None)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.memory_fd = ring.create("torture", loop.RING_BYTES)
        loop.warm_up(self.config)
        self.state = loop.bed_state(self.config, SpasmDetector(self.config))
        writer = compiled_ring.compiled(ring.RingWriter(self.memory_fd))
        self.ended = None
        arguments = (self.state, self.source.emg, lsl.NO_INLET, self.theirs.fileno(), writer, loop.scratch(), loop.FOREVER)
        self.thread = threading.Thread(target=lambda: setattr(self, "ended", loop.run(*arguments)), daemon=True)
        self.thread.start()
        self.rng, self.to_guard, self.states = np.random.default_rng(3), [], set()

    def play(self, seconds, uv, rate_hz=RATE_HZ, outlet=None, step_s=0.0, times=1, spaced=True):
        """Blocks of 10 ms in real time, of noise so loud; stamps `step_s` off the clock, or all of a block's alike; each block so often."""
        outlet, block, start_s = outlet or self.outlet, rate_hz // 100, pylsl.local_clock()
        for k in range(round(seconds * 100)):
            stamps_s = start_s + np.arange(k * block, (k + 1) * block) / rate_hz
            time.sleep(max(0.0, stamps_s[-1] - pylsl.local_clock()))
            stamps_s = stamps_s if spaced else np.full(block, stamps_s[-1])
            for _ in range(times):
                outlet.push_chunk(uv * self.rng.standard_normal((block, len(CONFIG.emg.channels))), stamps_s + step_s)
            self.hear()

    def hear(self):
        while True:
            try:
                self.to_guard.append(messages.unpack_to_guard(self.ours.recv(1024, socket.MSG_DONTWAIT)))
            except BlockingIOError:
                break
        self.states.add(streams.STATES[self.state.emg[0]["state"]])

    @property
    def requests(self):
        return [m for m in self.to_guard if m.kind == messages.REQUEST]

    @property
    def last_ok(self):
        return bool([m for m in self.to_guard if m.kind == messages.HEARTBEAT][-1].ok)

    def close(self):
        self.ours.close()
        self.thread.join(5)
        self.theirs.close()


@pytest.fixture
def bed(request):
    made = Bed(f"torture {request.node.name}")
    yield made
    made.close()


def test_a_spasm_on_a_good_stream_is_asked_about(bed):
    bed.play(QUIET_S, 5.0)
    assert bed.last_ok
    bed.play(SPASM_S, 100.0)
    assert len(bed.requests) == 1
    assert bed.states <= {"fine", "no samples [D1]"}


@pytest.mark.safety("D8")
def test_an_outlet_that_is_killed_and_comes_back_is_not_switched_to(bed):
    bed.play(QUIET_S, 5.0)
    name = bed.config.emg.stream_name
    bed.outlet = None
    again = lsl.outlet(name, "EMG", CONFIG.emg.channels, "uV", RATE_HZ, "amplifier")
    bed.play(1.0, 100.0, outlet=again)
    bed.thread.join(5)
    assert bed.ended == loop.STREAM_LOST
    assert not bed.requests


@pytest.mark.safety("D8")
def test_a_second_stream_of_the_name_is_not_heard_and_named_at_the_next_start(bed):
    bed.play(QUIET_S, 5.0)
    impostor = lsl.outlet(bed.config.emg.stream_name, "EMG", CONFIG.emg.channels, "uV", RATE_HZ, "impostor")
    playing = threading.Thread(target=bed.play, args=(1.0, 5.0))
    playing.start()
    for _ in range(50):
        impostor.push_chunk(100.0 * np.random.default_rng(1).standard_normal((40, len(CONFIG.emg.channels))))
        time.sleep(0.02)
    playing.join()
    assert not bed.requests
    assert bed.last_ok
    with pytest.raises(DeviceMismatchError, match="say which with source_id"):
        for _ in range(10):
            lsl.LslSource(bed.config.emg, None)


@pytest.mark.safety("D2", "D10")
@pytest.mark.parametrize("factor", [0.1, 10])
def test_a_rate_that_is_not_the_stated_one_is_named_and_asks_for_nothing(bed, factor):
    bed.play(QUIET_S, 5.0)
    bed.play(2.5, 5.0, rate_hz=round(RATE_HZ * factor))
    assert not bed.last_ok
    bed.play(SPASM_S, 100.0, rate_hz=round(RATE_HZ * factor))
    assert "wrong rate [D2]" in bed.states
    assert not bed.requests


@pytest.mark.safety("D6", "D7")
@pytest.mark.parametrize(("step_s", "state"), [(2.0, "stamps jumped [D6]"), (-2.0, "stamps run backwards or are doubled [D6]")])
def test_a_clock_that_steps_is_named_and_asks_for_nothing(bed, step_s, state):
    bed.play(QUIET_S, 5.0)
    bed.play(SPASM_S, 100.0, step_s=step_s)
    assert streams.STATES[bed.state.emg[0]["wrong"]] == state
    assert not bed.last_ok
    assert not bed.requests


@pytest.mark.safety("D6")
def test_blocks_that_come_twice_are_a_wrong_rate(bed):
    bed.play(QUIET_S, 5.0)
    bed.play(2.5, 5.0, times=2)
    assert not bed.last_ok
    bed.play(SPASM_S, 100.0, times=2)
    assert "wrong rate [D2]" in bed.states
    assert not bed.requests


@pytest.mark.safety("D6")
def test_blocks_with_one_stamp_end_the_loop(bed):
    bed.play(QUIET_S, 5.0)
    bed.play(4.0, 100.0, spaced=False)
    bed.thread.join(5)
    assert bed.ended == loop.STREAM_FAULT
    assert not bed.requests


@pytest.mark.safety("D8")
@pytest.mark.parametrize("n", [1, 500])
def test_one_and_five_hundred_channels(n, request):
    name = f"torture {request.node.name}"
    labels = tuple(f"c{i}" for i in range(n))
    made = lsl.outlet(name, "EMG", labels, "uV", RATE_HZ, "wide")
    with pytest.raises(DeviceMismatchError, match=r"it has no channel SOL1, SOL2, TA1, TA2; its channels are c0"):
        lsl.LslSource(CONFIG.emg.model_copy(update={"stream_name": name}), None)
    source = lsl.LslSource(CONFIG.emg.model_copy(update={"stream_name": name, "channels": labels[-1:]}), None)
    assert made.wait_for_consumers(5)
    made.push_chunk(np.tile(np.arange(n, dtype=float), (3, 1)), pylsl.local_clock() + np.arange(3) / RATE_HZ)
    got = 0
    while got < 3:
        k = lsl.pull(source.emg, 2.0)
        assert k
        assert (source.emg.values[:k] == n - 1).all()
        got += k


@pytest.mark.safety("D8")
def test_text_instead_of_numbers(request):
    name = f"torture {request.node.name}"
    made = pylsl.StreamOutlet(pylsl.StreamInfo(name, "EMG", 4, RATE_HZ, pylsl.cf_string, "text"))
    with pytest.raises(DeviceMismatchError, match="its samples are text, not numbers"):
        lsl.LslSource(CONFIG.emg.model_copy(update={"stream_name": name}), None)
    del made
