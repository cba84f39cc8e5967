"""Trigger boxes and the bare line: codec against the makers' bytes, device against the virtual boxes whose log is the judge."""

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.wire import Pulse, for_driver
from drivers.base import (
    AckTimeoutError,
    DeviceEventKind,
    DeviceMismatchError,
    DeviceNotFoundError,
    DriverError,
    LimitError,
    NotArmedError,
    PortLostError,
    ShortWriteError,
    WireError,
)
from drivers.simulated import twin, virtual_ttl
from drivers.stimulators import load, ttl
from drivers.stimulators.ttl import Deframer, encode_cedrus_duration, encode_cedrus_lines, encode_pulse, encode_stop
from tests.test_sciencemode34 import TRAIN, events_within
from tests.test_virtual_sciencemode import running_twin

OPTIONS = {"dial_current_ua": 20_000, "dial_phase_width_us": 500, "dial_interphase_gap_us": 100}
KINDS = ["ttl-byte", "ttl-cedrus", "ttl-line"]
N_LINES = {"ttl-byte": 8, "ttl-cedrus": 8, "ttl-line": 1}
MS = 1_000_000

# stimulators notes 2.3: BioSemi 1 byte = 8 lines; Cedrus "mp" + u32 little-endian, "mh" + 2 mask bytes
VECTORS = [
    (encode_pulse("ttl-byte", 1), "01"),
    (encode_pulse("ttl-byte", 8), "80"),
    (encode_stop("ttl-byte"), "00"),
    (encode_pulse("ttl-line", 1), "00"),
    (encode_stop("ttl-line"), ""),
    (encode_pulse("ttl-cedrus", 1), "6d 68 01 00"),
    (encode_pulse("ttl-cedrus", 8), "6d 68 80 00"),
    (encode_stop("ttl-cedrus"), "6d 68 00 00"),
    (encode_cedrus_duration(5), "6d 70 05 00 00 00"),
    (encode_cedrus_duration(300), "6d 70 2c 01 00 00"),
]


def device_of(kind, port="/nowhere", write=os.write, **options):
    return load(kind, port, write, OPTIONS | options)


# --- codec ------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("ours", "theirs"), VECTORS)
def test_makers_vectors(ours, theirs):
    assert ours == bytes.fromhex(theirs)


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda: encode_pulse("ttl-byte", 9), "channel = 9 .* nearest is 8"),
        (lambda: encode_pulse("ttl-line", 2), "channel = 2 .* nearest is 1"),
        (lambda: encode_cedrus_lines(65_536), "mask = 65536 .* nearest is 65535"),
        (lambda: encode_cedrus_duration(0), "pulse_ms = 0 .* nearest is 1"),
        (lambda: encode_cedrus_duration(2**32), "nearest is 4294967295"),
    ],
)
def test_what_does_not_fit_is_not_encoded(encode, words):
    with pytest.raises(LimitError, match=words):
        encode()


@given(st.binary(max_size=40), st.integers(0, 6), st.data())
def test_deframer_takes_any_bytes_however_cut(data, n_due, draws):
    whole, cut = Deframer(), Deframer()
    whole.expect(n_due)
    cut.expect(n_due)
    place = draws.draw(st.integers(0, len(data)))
    answers = whole.feed(data)
    assert answers == cut.feed(data[:place]) + cut.feed(data[place:])
    assert answers == ([data[:n_due]] if 0 < n_due <= len(data) else [])
    assert whole.n_bad_frames == (len(data) > n_due) and len(whole._answer) < max(n_due, 1)
    whole.expect(2)
    assert whole.feed(b"ok") == [b"ok"]  # whatever came before


# --- device without a port --------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A12")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("channel", 0, "1"),
        ("channel", 9, ""),
        ("current_ma", 10.0, "20000"),
        ("current_ma", 20.5, "20000"),
        ("current_ma", float("nan"), "20000"),
        ("phase_width_us", 499, "500"),
        ("phase_width_us", 501, "500"),
        ("interphase_gap_us", 0, "100"),
        ("interphase_gap_us", 101, "100"),
        ("pulse_rate_hz", 101.0, "100"),
    ],
)
def test_what_the_dials_do_not_show_is_refused(kind, field, value, nearest):
    name = "current_ua" if field == "current_ma" else field
    with pytest.raises(LimitError, match=rf"^{name}.*nearest.*{nearest}|^{name}.*{nearest}, which is the nearest"):
        device_of(kind).prepare([replace(TRAIN, **{field: value})])


@pytest.mark.parametrize("kind", KINDS)
def test_one_current_alone_and_one_frame(kind):
    device = device_of(kind)
    assert device.prepare([replace(TRAIN, channel=N_LINES[kind])]) == (encode_pulse(kind, N_LINES[kind]),)
    limits = device.limits
    assert (limits.current_step_ua, limits.max_current_ua, limits.n_channels) == (20_000, 20_000, N_LINES[kind])
    assert not limits.ramps and not limits.answers_pulses and not limits.answers_stop
    assert str(device.LINE) == ("9600 8N1" if kind == "ttl-line" else "115200 8N1")


@pytest.mark.parametrize(
    ("option", "value"), [("dial_current_ua", 0), ("dial_phase_width_us", 0), ("dial_interphase_gap_us", -1), ("dial_current_ua", -5)]
)
def test_dials_that_cannot_be(option, value):
    with pytest.raises(LimitError, match=f"{option} = {value} cannot be"):
        device_of("ttl-byte", **{option: value})


@pytest.mark.parametrize("kind", KINDS)
def test_closed_device_refuses_and_stays_quiet(kind):
    device = device_of(kind)
    device.prepare([TRAIN])
    device.stop()
    device.disarm()
    device.close()
    assert device.read_events() == []
    with pytest.raises(NotArmedError):
        device.trigger(0, 20_000)
    with pytest.raises(PortLostError):
        device.fileno()
    with pytest.raises(DeviceNotFoundError):
        device.open()


# --- device against the virtual boxes ---------------------------------------------------------------------------------------------
class Port:
    """The driver's way out: the wire check in front, then the port; remembers what left, and can fail."""

    def __init__(self, kind):
        self.check = for_driver(kind, OPTIONS)
        self.left = []
        self.outcome = None  # instead of writing: bytes to take of it, or an error

    def write(self, fd, data):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is not None:
            return os.write(fd, data[: self.outcome]) if self.outcome else 0
        n_written = self.check.write(fd, data)
        self.left.append(data)
        return n_written


@pytest.fixture
def connect(tmp_path):
    """`connect(kind, *twin_arguments) -> (device, twin, port)`: opened, prepared and armed, with the wire check in between."""
    contexts, devices = [], []

    def connect(kind, *arguments):
        context = running_twin(tmp_path, kind, *arguments)
        twin = context.__enter__()
        contexts.append(context)
        port = Port(kind)
        device = device_of(kind, twin.port, port.write)
        devices.append(device)
        device.open()
        port.check.learn(device.prepare([replace(TRAIN, channel=channel) for channel in (1, N_LINES[kind])]))
        device.arm()
        twin.lines = lambda: [json.loads(it) for it in (tmp_path / "pulses.jsonl").read_text().splitlines()]
        return device, twin, port

    yield connect
    for device in devices:
        device.close()
    for context in contexts:
        context.__exit__(None, None, None)


def trigger(device, port, channel=1, wait_s=0.015):
    """One pulse as guard asks for it, and time to play it and to lower the line."""
    port.check.due = (channel, 20_000, 500, 100)
    device.trigger(0 if channel == 1 else 1, 20_000)
    time.sleep(wait_s)


@pytest.mark.safety("E5")
@pytest.mark.parametrize("kind", KINDS)
def test_no_pulse_joins_one_that_still_waits_in_the_port(connect, kind, monkeypatch):
    """As a stalled USB chip's driver would say it; a pty has no such queue."""
    device, twin, port = connect(kind)
    trigger(device, port)
    ioctl = fcntl.ioctl
    monkeypatch.setattr(
        fcntl, "ioctl", lambda fd, what, *more: (1).to_bytes(4, sys.byteorder) if what == termios.TIOCOUTQ else ioctl(fd, what, *more)
    )
    n_left = len(port.left)
    with pytest.raises(ShortWriteError, match="still holds 1 byte"):
        trigger(device, port)
    with pytest.raises(NotArmedError):
        trigger(device, port)
    assert len(port.left) == n_left
    monkeypatch.undo()
    device.close()
    assert len(twin.end()[0]) == 1


@pytest.mark.safety("A7")
@pytest.mark.parametrize("kind", KINDS)
def test_pulses_on_the_lines_that_were_asked_for(connect, kind):
    device, twin, port = connect(kind)
    dice = random.Random(1)
    asked = [dice.choice((1, N_LINES[kind])) for _ in range(40)]
    for channel in asked:
        n_left = len(port.left)
        trigger(device, port, channel)
        assert port.left[n_left:] == [encode_pulse(kind, channel)] and device.read_events() == []
    device.close()
    assert device.status()["stop_answered"]
    pulses, refused, summary = twin.end()
    assert [it["channel"] for it in pulses] == asked and refused == [] and summary["unbalanced"] == 0
    assert not [it for it in twin.lines() if "ignored" in it]


@pytest.mark.safety("B1")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaves_before_arm_or_after_stop(connect, kind):
    device, twin, port = connect(kind)
    for off in (device.stop, device.disarm):
        off()
        off()
        with pytest.raises(NotArmedError):
            device.trigger(0, 20_000)
        device.arm()
    for train, current_ua in ((0, 500), (0, 0), (0, 20_001), (2, 20_000), (-1, 20_000)):
        with pytest.raises(LimitError):
            device.trigger(train, current_ua)
    device.close()
    device.close()
    assert twin.end()[2]["pulses"] == 0
    assert {it for it in port.left if len(it) < 5} <= {encode_stop(kind), b"_c1", b"_d2", b"_d4"}


@pytest.mark.safety("C1")
def test_bare_line_has_no_byte_for_a_stop(connect):
    """Any byte would be a pulse, so stop, disarm, arm and close write nothing at all."""
    device, twin, port = connect("ttl-line")
    trigger(device, port)
    for off in (device.stop, device.stop, device.disarm, device.arm, device.close):
        off()
        assert device.status()["stop_answered"]
    assert port.left == [b"\0"]
    assert len(twin.end()[0]) == 1


@pytest.mark.safety("C1")
@pytest.mark.parametrize("kind", ["ttl-byte", "ttl-cedrus"])
def test_stop_lowers_the_lines(connect, kind):
    device, twin, port = connect(kind)
    trigger(device, port)
    port.left.clear()
    device.stop()
    assert port.left == [encode_stop(kind)] and device.status()["stop_answered"]
    time.sleep(0.02)
    assert sum("stop_ns" in it for it in twin.lines()) == 2  # arm lowers them too


@pytest.mark.safety("C2", "E5")
@pytest.mark.parametrize("kind", ["ttl-byte", "ttl-cedrus"])
def test_stalled_box_plays_one_pulse_at_most_of_what_waited(connect, kind):
    """A pty cannot take back what its reader's side has; the line is up until the stop, so there is one edge. Nothing stops a bare line."""
    device, twin, port = connect(kind)
    os.kill(twin.process.pid, signal.SIGSTOP)
    for _ in range(5):
        trigger(device, port, wait_s=0)
    device.stop()
    os.kill(twin.process.pid, signal.SIGCONT)
    time.sleep(0.05)
    device.close()
    assert twin.end()[2]["pulses"] <= 1


@pytest.mark.safety("C1", "E2")
@pytest.mark.parametrize("n_taken", [1, 2, 3])
def test_torn_cedrus_command_makes_no_pulse(connect, n_taken):
    """A stop right behind it would be its mask, and raise lines: nothing is said until the box has thrown it away."""
    device, twin, port = connect("ttl-cedrus")
    port.outcome = n_taken
    with pytest.raises(ShortWriteError, match=f"{n_taken} of 4"):
        device.trigger(0, 20_000)
    port.outcome = None
    port.left.clear()
    time.sleep(0.02)  # the box has read it
    device.stop()
    device.stop()
    assert port.left == []
    device.arm()
    trigger(device, port)
    device.close()
    pulses, refused, _ = twin.end()
    assert [it["channel"] for it in pulses] == [1]
    assert [(it["refused"], it["bytes"]) for it in refused] == [("not whole within 100 ms", b"mh\1"[:n_taken].hex(" "))]


@pytest.mark.safety("E2")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("outcome", "error"),
    [(0, ShortWriteError), (BlockingIOError(), ShortWriteError), (OSError(errno.EIO, "gone"), PortLostError), (WireError("no"), WireError)],
    ids=["nothing taken", "full", "lost", "refused"],
)
def test_doubtful_write_disarms_and_is_not_repeated(connect, kind, outcome, error):
    device, twin, port = connect(kind)
    port.outcome = outcome
    with pytest.raises(error):
        device.trigger(0, 20_000)
    port.outcome = None
    with pytest.raises(NotArmedError):
        device.trigger(0, 20_000)
    device.stop()
    device.arm()
    trigger(device, port)
    device.close()
    assert len(twin.end()[0]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_hung_box(connect, kind):
    device, twin, port = connect(kind, "--fault", "hang@1")
    trigger(device, port)
    with pytest.raises(ShortWriteError):  # nothing else can tell
        for _ in range(200_000):
            trigger(device, port, wait_s=0)
    device.stop()
    device.disarm()
    if kind == "ttl-cedrus":
        assert not device.status()["stop_answered"]
        with pytest.raises((AckTimeoutError, ShortWriteError)):
            device.arm()
    assert twin.end()[2]["pulses"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_lost_port_is_told_once(connect, kind):
    device, _, port = connect(kind, "--fault", "hangup@1")
    trigger(device, port)
    assert [it.kind for it in events_within(device, 1)] == [DeviceEventKind.PORT_LOST] and device.read_events() == []
    with pytest.raises((NotArmedError, PortLostError)):
        trigger(device, port)
    device.stop()
    device.disarm()
    device.close()


@pytest.mark.safety("A13")
@pytest.mark.parametrize("kind", KINDS)
def test_port_belongs_to_one(connect, kind):
    device, _, _ = connect(kind)
    with pytest.raises(DeviceNotFoundError, match="another program"):
        device_of(kind, device.port).open()


@pytest.mark.safety("E6")
@pytest.mark.parametrize(("kind", "line"), [("ttl-byte", "TTL-byte - -"), ("ttl-cedrus", "c-pod - 2"), ("ttl-line", "TTL-line - -")])
def test_who_is_there(connect, kind, line):
    device, twin, _ = connect(kind)
    with pytest.raises(DriverError, match="armed"):
        device.identify()
    device.disarm()
    assert device.identify() == device.identify() == line
    assert device.status()["found"] == ("c-pod" if kind == "ttl-cedrus" else "nobody can know what is on this port")
    assert "20000 uA, 500 us, gap 100 us" in device.status()["stimulator_behind"]
    device.close()
    assert twin.end()[2]["pulses"] == 0


# --- who else may be on the port --------------------------------------------------------------------------------------------------
@contextmanager
def somebody(code):
    """A pty's far end, played by a few lines of Python on descriptor 0."""
    master_fd, slave_fd = os.openpty()
    child = subprocess.Popen([sys.executable, "-c", f"import os, time\n{code}"], stdin=master_fd, stdout=subprocess.PIPE)
    try:
        yield os.ttyname(slave_fd), child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        os.close(master_fd)
        os.close(slave_fd)


ANSWERS = "said = {}\nwhile True:\n  asked = os.read(0, 99)\n  os.write(0, said.get(asked, b''))"


@pytest.mark.safety("E6")
@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({b"_c1": b"_xid0", b"_d2": b"S", b"_d4": b"1"}, None, "StimTracker - 1"),
        ({b"_c1": b"_xid1", b"_d2": b"S", b"_d4": b"1"}, DeviceMismatchError, "XID mode"),
        ({b"_c1": b"_xid0", b"_d2": b"2", b"_d4": b"2"}, DeviceMismatchError, "neither c-pod nor StimTracker"),
        ({b"_c1": b"_xid0", b"_d2": b"4", b"_d4": b"\xff"}, DeviceMismatchError, "neither"),
        ({b"_c1": b"K\x15"}, DeviceMismatchError, "something answers"),
        ({b"_c1": b"_xid0", b"_d2": b"4"}, DeviceMismatchError, "something answers"),
        ({}, AckTimeoutError, "_c1"),
    ],
)
def test_who_answers_for_a_cedrus_box(said, error, words):
    with somebody(ANSWERS.format(said)) as (port, _):
        device = device_of("ttl-cedrus", port)
        if error is None:
            device.open()
            assert device.identify() == words
            device._release()
        else:
            with pytest.raises(error, match=words):
                device.open()


@pytest.mark.safety("E6")
@pytest.mark.parametrize("kind", KINDS)
def test_what_talks_on_and_on_is_no_trigger_box(kind, monkeypatch):
    monkeypatch.setattr(ttl, "BOOT_S", 0.2)
    with somebody("while True:\n  os.write(0, b'EMG 17\\n')\n  time.sleep(0.01)") as (port, _):
        assert os.read(os.open(port, os.O_RDONLY), 1)
        with pytest.raises(DeviceMismatchError, match="talks on and on"):
            device_of(kind, port).open()


def test_board_that_starts_anew_is_waited_for(monkeypatch):
    """As with an Arduino behind DTR, which a pty has not: so the wait is switched on by hand."""
    monkeypatch.setattr(ttl, "best_effort", lambda _: True)
    monkeypatch.setattr(ttl, "BOOT_S", 0.5)
    with somebody("os.write(1, b'!')\ntime.sleep(0.3)\nos.write(0, b'ready\\n')\nos.read(0, 9)\ntime.sleep(9)") as (port, child):
        child.stdout.read(1)
        device = device_of("ttl-byte", port)
        device.open()
        assert device.status()["n_bytes_at_opening"] == len("ready\n") and device.read_events() == []
        device._release()


@pytest.mark.safety("E6")
@pytest.mark.parametrize("kind", KINDS)
def test_box_that_speaks_unasked_is_a_protocol_error(kind, connect, monkeypatch):
    device, _, _ = connect(kind)
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, n: b"booting" if fd == device._fd else read(fd, n))
    [event] = device.read_events()
    monkeypatch.undo()
    assert event.kind is DeviceEventKind.PROTOCOL_ERROR and "nobody had asked" in event.text


def test_line_settings_reach_the_port(connect):
    device, _, _ = connect("ttl-line")
    attributes = termios.tcgetattr(device.fileno())
    assert attributes[4] == attributes[5] == termios.B9600 and not attributes[2] & (termios.CRTSCTS | termios.CSTOPB)


# --- the wire check ---------------------------------------------------------------------------------------------------------------
def decode_of(kind):
    return for_driver(kind, OPTIONS)._decode


@pytest.mark.safety("A7", "A13")
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_driver_encodes_is_what_was_asked(kind):
    for channel in range(1, N_LINES[kind] + 1):
        device = device_of(kind)
        [frame] = device.prepare([replace(TRAIN, channel=channel)])
        assert decode_of(kind)(frame) == Pulse(channel, 20_000, 500, 100)


@pytest.mark.safety("A13")
def test_every_byte():
    lines = {1 << i: i + 1 for i in range(8)}
    for byte in range(256):
        raw = bytes((byte,))
        for kind, pulse in (("ttl-byte", lines.get(byte)), ("ttl-line", 1 if byte == 0 else None)):
            if pulse:
                assert decode_of(kind)(raw).channel == pulse
            elif kind == "ttl-byte" and byte == 0:
                assert decode_of(kind)(raw) is None
            else:
                with pytest.raises(WireError):
                    decode_of(kind)(raw)


@pytest.mark.safety("A13")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0\0", b"\1\1", b"\1\2", b"_c0", b"c10", b"mz", b"mh", b"mh\1", b"mh\3\0", b"mh\0\1", b"mh\1\1", b"mh\1\0\0"),
        *(b"mh\1\0mh\1\0", b"ah\1\0", b"mp\0\0\0\0", b"mp\6\0\0\0", b"mp\5\0\0", b"mp\5\0\0\1", b"mp\5\0\0\0\0"),
        *(bytearray(b"\1"), "\1", None),
    ],
)
def test_nothing_else_leaves(kind, data):
    with pytest.raises(WireError):
        decode_of(kind)(data)


@pytest.mark.safety("A13")
@given(st.binary(min_size=1, max_size=6))
def test_cedrus_bytes_leave_only_if_the_virtual_box_plays_what_is_due(data):
    for tail in (data, b"mh" + data[:2], b"mh" + data[:1] + b"\0"):
        try:
            pulse = decode_of("ttl-cedrus")(tail)
        except WireError:
            continue
        bench = Bench("ttl-cedrus")
        bench.give(b"mp\5\0\0\0", wait_ms=1)
        bench.give(tail, wait_ms=10)
        assert [it["channel"] for it in bench.pulses] == ([pulse.channel] if pulse else [])


# --- the virtual boxes ------------------------------------------------------------------------------------------------------------
class Bench:
    """A box without a process: its clock is ours."""

    def __init__(self, kind):
        self.sent, self.lines, self.records = b"", [], []
        self.judge = twin.Judge()
        self.box = virtual_ttl.Box(kind, None, self.judge, self.take, self.lines.append, self.records.append)
        self.now_ns = 10**12

    def take(self, answer):
        self.sent += answer

    def give(self, data, wait_ms=0.0):
        self.box.receive(data, self.now_ns)
        self.now_ns += round(wait_ms * MS)
        self.box.run_due(self.now_ns)

    @property
    def pulses(self):
        return [it for it in self.lines if "pulse_ns" in it]


@pytest.mark.parametrize(("kind", "wire_ns"), [("ttl-byte", 86_806), ("ttl-cedrus", 347_222), ("ttl-line", 1_041_667)])
def test_box_plays_what_the_dials_show(kind, wire_ns):
    bench = Bench(kind)
    bench.give(encode_pulse(kind, 1), wait_ms=10)
    [pulse] = bench.pulses
    assert (pulse["current_ua"], pulse["phase_width_us"], pulse["interphase_gap_us"], pulse["channel"]) == (20_000, 500, 100, 1)
    assert pulse["pulse_ns"] - 10**12 == wire_ns + 100_000 and pulse["outside"] == [] and pulse["balanced"]


def test_line_that_is_up_gives_no_edge():
    bench = Bench("ttl-byte")
    for wait_ms in (5, 5, 9, 9):  # BioSemi lowers it after 8 ms, counted from the last byte
        bench.give(b"\1", wait_ms=wait_ms)
    assert len(bench.pulses) == 2 and [it["ignored"] for it in bench.lines if "ignored" in it] == ["line 1 is up already"] * 2
    bench.give(b"\1", wait_ms=1)
    bench.give(b"\2", wait_ms=1)  # which lowers the first
    bench.give(b"\1", wait_ms=1)
    assert [it["channel"] for it in bench.pulses[2:]] == [1, 2, 1]
    bench.give(b"\x81", wait_ms=20)
    assert [it["channel"] for it in bench.pulses[5:]] == [8]


def test_cedrus_line_stays_up_as_long_as_it_was_told():
    bench = Bench("ttl-cedrus")
    bench.give(b"mh\1\0", wait_ms=1000)
    bench.give(b"mh\1\0", wait_ms=1000)
    assert len(bench.pulses) == 1  # for good
    bench.give(b"mh\0\0", wait_ms=1)
    bench.give(b"mp\x64\0\0\0", wait_ms=1)
    for wait_ms in (99, 102, 1):
        bench.give(b"mh\1\0", wait_ms=wait_ms)
    assert len(bench.pulses) == 3
    assert bench.judge.frames_accepted == 7 and not bench.judge.frames_refused


def test_cedrus_box_answers_who_it_is_and_throws_away_what_is_not_whole():
    bench = Bench("ttl-cedrus")
    for question, answer in ((b"_c1", b"_xid0"), (b"_d2", b"4"), (b"_d3", b"0"), (b"_d4", b"2")):
        bench.give(question)
        assert bench.sent == answer
        bench.sent = b""
    bench.give(b"mh\1", wait_ms=99)
    bench.give(b"\0", wait_ms=10)
    assert len(bench.pulses) == 1
    bench.give(b"mh\1", wait_ms=101)
    bench.give(b"\0", wait_ms=10)
    assert len(bench.pulses) == 1 and [it["refused"] for it in bench.lines if "refused" in it] == [
        "not whole within 100 ms",
        "not a command",
    ]


def test_bare_line_takes_noughts_alone():
    bench = Bench("ttl-line")
    bench.give(b"\x55\xff\x01", wait_ms=10)
    assert not bench.pulses and bench.judge.frames_refused == 3
    bench.give(b"\0", wait_ms=10)
    assert len(bench.pulses) == 1
