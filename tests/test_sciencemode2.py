"""RehaStim2: driver, wire check and virtual box, against the makers' and captured bytes, PyPI pysciencemode, and each other."""

import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import tty
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import demo
from controller import settings as calm_settings
from controller.wire import Pulse, WireError, for_driver
from drivers.base import (
    AckTimeoutError,
    DeviceEventKind,
    DeviceMismatchError,
    LimitError,
    NotArmedError,
    PortLostError,
    ProtocolError,
    PulseTrain,
    ShortWriteError,
)
from drivers.simulated import virtual_sciencemode2 as box
from drivers.simulated.twin import PULSE_RECORD, Judge, RefusedError, shape_of
from drivers.simulated.virtual_sciencemode2 import Box, Line, unwrap, wrap
from drivers.stimulators.sciencemode2 import (
    LIMITS,
    N_NUMBERS,
    Command,
    Deframer,
    Frame,
    ScienceMode2,
    crc8,
    encode_frame,
    encode_single_pulse,
    event_of,
)
from tests.rig import GuardRig
from tests.test_virtual_sciencemode import running_twin

MS = 1_000_000
NAME = "sciencemode2"
TRAIN = PulseTrain(
    channel=1,
    current_ma=20.0,
    phase_width_us=500,
    interphase_gap_us=100,
    pulse_rate_hz=30.0,
    duration_ms=500,
    ramp_up_ms=50,
    taper_ms=100,
)

VECTORS = [  # stimulators notes 1.5: captures of pysciencemode 1.1.5, pyRehaStim docs/ComandosRehaMove.txt, last what was derived
    (7, 2, "00", "f0 81 69 81 56 07 02 00 0f"),
    (0, 4, "", "f0 81 49 81 57 00 04 0f"),
    (0, 30, "00 01 00 01 00 26 00", "f0 81 7f 81 5c 00 1e 00 01 00 01 00 26 00 0f"),
    (1, 32, "00 00 c8 19", "f0 81 12 81 53 01 20 00 00 c8 19 0f"),
    (2, 32, "00 00 f0 0f", "f0 81 5f 81 5d 02 20 00 00 81 a5 81 5a 0f"),
    (5, 34, "", "f0 81 fa 81 57 05 22 0f"),
    (0, 2, "00", "f0 81 7f 81 56 00 02 00 0f"),
    (1, 10, "", "f0 81 76 81 57 01 0a 0f"),
    (2, 30, "00 01 00 00 00 40 01", "f0 81 17 81 5c 02 1e 00 01 00 00 00 40 01 0f"),
    (3, 32, "00 01 5e 05", "f0 81 e0 81 53 03 20 00 01 5e 05 0f"),
    (4, 4, "", "f0 81 1d 81 57 04 04 0f"),
    (1, 36, "00 00 c8 19", "f0 81 9d 81 53 01 24 00 00 c8 19 0f"),
    (7, 1, "01", "f0 81 51 81 56 07 01 01 0f"),
    (1, 33, "00", "f0 81 85 81 56 01 21 00 0f"),
    (5, 38, "fe", "f0 81 b1 81 56 05 26 fe 0f"),
]

frames_strategy = st.builds(Frame, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=60))
wire_like_strategy = st.lists(st.sampled_from(b"\xf0\x0f\x81\x55\x56\x57\xa5\x5a\xd4\x00"), max_size=400).map(bytes)
pulses_strategy = st.builds(Pulse, st.integers(1, 8), st.integers(1, 63).map(lambda n: n * 2000), st.integers(20, 500), st.just(100))


# --- codec ------------------------------------------------------------------------------------------------------------------------
def test_crc_check_value():
    assert crc8(b"123456789") == box.crc8(b"123456789") == 0xF4  # CRC-8, polynomial 07


@pytest.mark.parametrize(("number", "command", "data", "theirs"), VECTORS)
def test_makers_and_captured_vectors(number, command, data, theirs):
    raw, frame = bytes.fromhex(theirs), (number, command, bytes.fromhex(data))
    assert encode_frame(*frame) == wrap(*frame) == raw
    assert Deframer().feed(raw) == [frame] and unwrap(raw) == frame


def test_same_bytes_as_pysciencemode():
    """Apart from its defects: it stuffs 0A and 55 too, and loses the 81 of a packet number or command that needs it."""
    from pysciencemode.utils import packet_construction

    dice = random.Random(20261123)
    n_compared = 0
    while n_compared < 2000:
        number = dice.randrange(256)
        pulse = dice.randint(1, 8), dice.randint(20, 500), dice.randint(1, 63) * 2000
        data = [pulse[0] - 1, pulse[1] // 256, pulse[1] % 256, pulse[2] // 1000]
        if number in (0xF0, 0x0F, 0x81, 0x55, 0x0A) or {0x55, 0x0A} & {*data}:
            continue
        assert encode_single_pulse(number, *pulse) == packet_construction(number, "SinglePulse", data)
        assert encode_frame(number, Command.INIT_ACK, b"\0") == packet_construction(number, "InitAck", [0])
        assert encode_frame(number, Command.WATCHDOG) == packet_construction(number, "Watchdog")
        assert encode_frame(number, Command.STOP_CHANNEL_LIST_MODE) == packet_construction(number, "StopChannelListMode")
        n_compared += 1


@given(frames_strategy)
def test_frame_survives_the_wire(frame):
    raw = encode_frame(*frame)
    assert Deframer().feed(raw) == [frame]
    assert unwrap(raw) == frame and wrap(*frame) == raw
    assert [(piece, fault) for _, piece, fault in Line().receive(raw, 0)] == [(raw, "")]


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=3000), wire_like_strategy), frames_strategy)
def test_deframer_takes_any_bytes_and_finds_the_next_frame(noise, frame):
    deframer = Deframer()
    deframer.feed(noise)
    assert len(deframer._buffer) <= 5 + 255
    assert frame in deframer.feed(encode_frame(*frame))
    assert deframer.n_bad_frames <= len(noise)


@settings(deadline=None)
@given(st.lists(st.one_of(frames_strategy.map(lambda it: encode_frame(*it)), wire_like_strategy), max_size=6), st.data())
def test_deframer_does_not_care_how_bytes_are_cut(pieces, data):
    stream = b"".join(pieces)
    whole, cut, single = Deframer(), Deframer(), Deframer()
    expected = whole.feed(stream)
    place = data.draw(st.integers(0, len(stream)))
    assert cut.feed(stream[:place]) + cut.feed(stream[place:]) == expected
    assert [frame for byte in stream for frame in single.feed(bytes((byte,)))] == expected
    assert cut.n_bad_frames == single.n_bad_frames == whole.n_bad_frames


@given(frames_strategy, st.data())
def test_damaged_byte_is_never_taken_for_another_frame(frame, data):
    raw = bytearray(encode_frame(*frame))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    deframer, after = Deframer(), Frame(5, 37, b"\0")
    assert deframer.feed(bytes(raw) + encode_frame(*after)) == [after]
    assert deframer.n_bad_frames >= 1


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=600), wire_like_strategy), frames_strategy)
def test_box_and_driver_read_the_same_frames(noise, frame):
    """Two deframers, written apart: each frame that one takes, the other takes."""
    theirs = []
    for _, piece, fault in Line().receive(noise + encode_frame(*frame), 0):
        try:
            theirs += [] if fault else [unwrap(piece)]
        except RefusedError:
            pass
    assert Deframer().feed(noise + encode_frame(*frame)) == theirs


def test_deframer_counts_each_bad_frame():
    good, bad = encode_frame(1, 35, b"\0"), encode_frame(1, 35, b"\0").replace(b"\x00\x0f", b"\x01\x0f")
    deframer = Deframer()
    frames = deframer.feed(bad + good + b"noise" + good[:4] + good + bad + bad)
    assert len(frames) == 2
    assert deframer.n_bad_frames == 5 and deframer.fault == "checksum"


@pytest.mark.safety("A12")
@pytest.mark.parametrize("pulse", [(0, 200, 2000), (9, 200, 2000), (1, 19, 2000), (1, 501, 2000), (1, 200, 1000), (1, 200, 128_000)])
def test_illegal_pulses_are_not_encoded(pulse):
    with pytest.raises(LimitError, match="nearest"):
        encode_single_pulse(0, *pulse)


@pytest.mark.parametrize(("number", "command", "data"), [(256, 0, b""), (-1, 0, b""), (0, 256, b""), (0, 0, bytes(254))])
def test_what_does_not_fit_is_not_encoded(number, command, data):
    with pytest.raises(ValueError, match=r"range\(0, 256\)|longer"):
        encode_frame(number, command, data)


@pytest.mark.safety("E3")
@pytest.mark.parametrize(
    ("frame", "kind", "number", "code", "text"),
    [
        (Frame(9, 37, b"\0"), "ACK", 9, 0, "pulse taken"),
        (Frame(9, 37, b"\xff"), "DEVICE_ERROR", 9, -1, "SINGLE_PULSE: transfer error (-1)"),
        (Frame(9, 37, b"\xfe"), "DEVICE_ERROR", 9, -2, "SINGLE_PULSE: parameter error (-2)"),
        (Frame(9, 37, b"\xfd"), "DEVICE_ERROR", 9, -3, "SINGLE_PULSE: wrong mode (-3)"),
        (Frame(9, 37, b"\xf8"), "DEVICE_ERROR", 9, -8, "SINGLE_PULSE: busy (-8)"),
        (Frame(9, 37, b"\x64"), "DEVICE_ERROR", 9, 100, "SINGLE_PULSE: unknown result (100)"),
        (Frame(9, 37, b""), "PROTOCOL_ERROR", 9, 1, "unexpected frame: command 37, 0 bytes"),
        (Frame(9, 38, b"\xff"), "EMERGENCY_STOP", -1, -1, "the emergency stop was pressed, or is not connected"),
        (Frame(9, 38, b"\xfe"), "ELECTRODE_ERROR", -1, -2, "electrode error"),
        (Frame(9, 38, b"\xfd"), "DEVICE_ERROR", -1, -3, "error of the stimulation module"),
        (Frame(9, 38, b"\x05"), "DEVICE_ERROR", -1, 5, "unknown stimulation error (5)"),
        (Frame(9, 1, b"\x01"), "DEVICE_RESET", -1, 1, "the box began anew: it was reset, or heard nothing for 1.2 s"),
        (Frame(9, 3, b"\x24"), "DEVICE_ERROR", 9, 36, "the box does not know command 36"),
        (Frame(9, 35, b"\xff"), "DEVICE_ERROR", 9, -1, "STOP_CHANNEL_LIST_MODE: transfer error (-1)"),
        (Frame(9, 60, b"\0\0\0"), "PROTOCOL_ERROR", 9, 0, "unexpected frame: command 60, 3 bytes: a MOTOmed is connected"),
        (Frame(9, 33, b"\0"), "PROTOCOL_ERROR", 9, 0, "unexpected frame: command 33, 1 bytes"),
    ],
)
def test_what_a_frame_means(frame, kind, number, code, text):
    event = event_of(frame)
    assert (event.kind, event.number, event.code, event.text) == (DeviceEventKind[kind], number, code, text)


@pytest.mark.parametrize("frame", [Frame(1, 35, b"\0"), Frame(1, 35, b"\xfd"), Frame(1, 11, b"\0\0")])
def test_mere_confirmations_are_no_events(frame):
    assert event_of(frame) is None


# --- device without a port --------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A12")
@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("channel", 9, "8"),
        ("current_ma", 128.0, "126000"),
        ("current_ma", 130.0, "126000"),
        ("current_ma", 3.0, "(2|4)000"),
        ("current_ma", 0.5, "2000"),
        ("phase_width_us", 19, "20"),
        ("phase_width_us", 501, "500"),
        ("interphase_gap_us", 0, "100"),
        ("interphase_gap_us", 99, "100"),
        ("interphase_gap_us", 101, "100"),
        ("pulse_rate_hz", 33.1, "33"),
        ("pulse_rate_hz", 50.0, "33"),
    ],
)
def test_limits_are_refused_by_name(field, value, nearest):
    name = "current_ua" if field == "current_ma" else field
    with pytest.raises(LimitError, match=rf"^{name}.*{nearest}"):
        ScienceMode2("/nowhere").prepare([replace(TRAIN, **{field: value})])


@pytest.mark.safety("A3")
def test_pulses_are_apart_whenever_the_answer_comes():
    """Guard's rule (`Supervisor._due`) and the box's latency: the next pulse is 10 ms later at least, and the rate can be reached."""
    longest_ms = (2 * LIMITS.max_phase_width_us + 100) / 1000
    for width_us in (20, 500):
        pulse_ms = (2 * width_us + 100) / 1000
        command_after_answer_ms = 10 + LIMITS.latency_spread_ms - pulse_ms
        earliest_next_ms = command_after_answer_ms + LIMITS.vendor_latency_ms  # after an answer that comes with the command itself
        assert earliest_next_ms - 24.0 >= 10.0 - 1e-9
    assert 1000 / LIMITS.max_pulse_rate_hz > 10 + LIMITS.latency_spread_ms - longest_ms + box.ANSWER_NS / MS


@pytest.mark.safety("A7", "A13")
@pytest.mark.parametrize("channel", [1, 8])
def test_every_prepared_frame_before_two_independent_judges(channel):
    device, check = ScienceMode2("/nowhere"), for_driver(NAME)
    frames = device.prepare([replace(TRAIN, channel=channel, current_ma=126.0, phase_width_us=240)])
    assert len(frames) == 63 * N_NUMBERS == len({*frames})
    assert sorted(device._frames[0]) == list(range(2000, 126_001, 2000))
    check.learn(frames)
    for current_ua, levels in device._frames[0].items():
        for number, frame in enumerate(levels):
            assert unwrap(frame) == (number, 36, bytes((channel - 1, 0, 240, current_ua // 1000)))
            assert check._learnt[frame] == Pulse(channel, current_ua, 240, 100)


def test_failed_prepare_keeps_what_was_prepared():
    device = ScienceMode2("/nowhere")
    assert len(device.prepare([TRAIN])) == 10 * N_NUMBERS
    with pytest.raises(LimitError):
        device.prepare([TRAIN, replace(TRAIN, interphase_gap_us=0)])
    assert device.status()["n_prepared_frames"] == 10 * N_NUMBERS


# --- wire check -------------------------------------------------------------------------------------------------------------------
READ_FD, WRITE_FD = os.pipe()
os.set_blocking(READ_FD, False)


def leaves(data, due=None):
    """Whether these bytes, and no others, come out of a pipe."""
    check = for_driver(NAME)
    check.due = due
    try:
        n_written = check.write(WRITE_FD, data)
    except WireError:
        with pytest.raises(BlockingIOError):
            os.read(READ_FD, 65536)
        return False
    assert n_written == len(data) and os.read(READ_FD, 65536) == data
    return True


def frame_of(pulse, number=0):
    return wrap(number, 36, bytes((pulse.channel - 1, pulse.phase_width_us // 256, pulse.phase_width_us % 256, pulse.current_ua // 1000)))


@pytest.mark.safety("A13")
def test_white_list_is_all_that_leaves():
    allowed = {(2, b"\0"), (2, b"\xfb"), (4, b""), (10, b""), (34, b"")}
    for command in range(256):
        for data in (b"", b"\0", b"\1", b"\xfb", b"\0\0", bytes(4), bytes((0, 1, 0, 1, 0, 38, 0)), bytes((0, 0, 200, 20))):
            due = Pulse(1, 20_000, 200, 100)
            expected = (command, data) in allowed or (command, data) == (36, bytes((0, 0, 200, 20)))
            assert leaves(wrap(command, command, data), due) == expected, (command, data)


@pytest.mark.safety("A7", "A13")
@settings(deadline=None)
@given(pulses_strategy, pulses_strategy, st.integers(0, 255))
def test_only_the_pulse_that_is_due_leaves(pulse, other, number):
    assert leaves(frame_of(pulse, number), pulse)
    assert not leaves(frame_of(pulse, number))
    assert leaves(frame_of(pulse, number), other) == (pulse == other)


@pytest.mark.safety("A7", "A13")
@settings(deadline=None)
@given(pulses_strategy, st.integers(0, 255), st.data())
def test_wrong_content_under_a_right_checksum_stays(pulse, number, data):
    _, command, content = unwrap(frame_of(pulse, number))
    payload = bytearray((command, *content))
    for at in data.draw(st.sets(st.integers(0, 8 * len(payload) - 1), min_size=1, max_size=6)):
        payload[at // 8] ^= 1 << at % 8
    assert leaves(wrap(number, payload[0], bytes(payload[1:])), pulse) == ((payload[0], payload[1:]) in [(2, b"\0"), (34, b"")])
    size = data.draw(st.integers(0, 3))
    assert not leaves(wrap(number, command, content[:size]), pulse) and not leaves(wrap(number, command, content + b"\0"), pulse)


@pytest.mark.safety("A13")
@settings(deadline=None)
@given(pulses_strategy, st.integers(0, 255), st.data())
def test_damaged_or_doubled_frame_stays(pulse, number, data):
    raw = frame_of(pulse, number)
    for wrong in (raw + raw, raw[:-1], raw + b"\0", raw[1:], b"\0" + raw, raw + wrap(1, 4), bytearray(raw)):
        assert not leaves(wrong, pulse)
    damaged = bytearray(raw)
    damaged[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert not leaves(bytes(damaged), pulse)


@pytest.mark.safety("A13")
@given(st.integers(0, 7), st.integers(0, 255), st.integers(0, 3), st.integers(0, 255))
def test_what_the_box_would_change_or_refuse_stays(channel, low, high, current_ma):
    width_us = high * 256 + low
    due = Pulse(channel + 1, current_ma * 1000, width_us, 100)
    lawful = 20 <= width_us <= 500 and 2 <= current_ma <= 126 and current_ma % 2 == 0
    assert leaves(wrap(7, 36, bytes((channel, high, low, current_ma))), due) == lawful
    assert not leaves(wrap(7, 36, bytes((channel + 8, high, low, current_ma))), due._replace(channel=channel + 9))


# --- the virtual box, its clock ours ----------------------------------------------------------------------------------------------
class Bench:
    """A box without a process."""

    def __init__(self, fault=("", 0), latency_ns=10 * MS):
        self.sent, self.lines, self.records = [], [], []
        self.judge = Judge(max_rate_hz=200.0)
        self.box = Box(NAME, latency_ns, self.judge, self.sent.append, self.lines.append, self.records.append, fault)
        self.now_ns = 10**12
        self.box.start(self.now_ns)

    def give(self, number, command, data=b"", wait_ms=0.0):
        self.give_raw(wrap(number, command, bytes(data)), wait_ms)

    def give_raw(self, raw, wait_ms=0.0):
        self.box.receive(raw, self.now_ns)
        self.wait(wait_ms)

    def wait(self, wait_ms):
        self.now_ns += round(wait_ms * MS)
        self.box.run_due(self.now_ns)

    def answers(self):
        answers = [unwrap(it) for it in self.sent]
        self.sent.clear()
        return answers

    def connect(self):
        [(number, command, data)] = self.answers()
        assert (command, data) == (1, b"\1")
        self.give(number, 2, b"\0")
        return self

    def ask(self, number, command, data=b""):
        """The one answer to one command, some ms later."""
        self.give(number, command, data, 5)
        [(answered, command_back, said)] = self.answers()
        assert (answered, command_back) == (number, command + 1)
        return said

    def pulses(self, *fields):
        return [tuple(it[field] for field in fields) for it in self.lines if "pulse_ns" in it]


SINGLE = bytes((0, 0, 200, 20))
LIST_20_MS = bytes((0, 0b101, 0, 15, 0, 38, 0))  # channels 1 and 3, t2 9 ms, t1 20 ms
TWO_VALUES = bytes((0, 0, 200, 20, 0, 1, 44, 30))  # 200 us 20 mA; 300 us 30 mA


def test_init_each_half_second_until_it_is_answered():
    bench = Bench()
    bench.wait(1600)
    assert bench.answers() == [(number, 1, b"\1") for number in range(4)]
    bench.give(3, 2, b"\xfb")  # version not supported
    bench.give(2, 2, b"\0")  # an old one
    bench.give(9, 36, SINGLE, 30)
    assert bench.answers() == [] and not bench.box.connected and bench.judge.frames_refused == 1
    bench.wait(400)
    [(number, command, _)] = bench.answers()
    assert (number, command) == (4, 1)
    bench.give(number, 2, b"\0", 1100)
    assert bench.answers() == [] and bench.box.connected


def test_watchdog_counts_from_the_last_good_frame():
    bench = Bench().connect()
    for number in range(5):
        bench.wait(1199)
        bench.give(number, 4)
    bench.give_raw(b"\xf0\x81\x00\x81\x57\x00\x04\x0f")  # a wrong checksum is no sign of life
    assert bench.answers() == [] and bench.box.connected
    bench.wait(1201)
    assert bench.answers() == [(1, 1, b"\1")] and not bench.box.connected
    bench.give(9, 36, SINGLE, 30)
    assert bench.answers() == [] and bench.pulses("number") == []
    bench.wait(500)
    bench.connect()
    assert bench.ask(1, 10) == b"\0\0"


def test_single_pulse_10_to_24_ms_later_and_none_overtakes_another():
    bench = Bench(latency_ns=None).connect()
    for number in range(200):
        bench.give(number, 36, SINGLE, 2 if number % 2 else 40)
        bench.wait(0.01)
    bench.wait(50)
    assert [number for number, *_ in bench.answers()] == list(range(200))
    pulses = bench.pulses("number", "wire_ns", "pulse_ns", "channel", "current_ua", "phase_width_us", "interphase_gap_us")
    assert [it[0] for it in pulses] == list(range(200)) and {it[3:] for it in pulses} == {(1, 20_000, 200, 100)}
    starts_ns = [it[2] for it in pulses]
    assert all(later - earlier >= 500_000 for earlier, later in pairwise(starts_ns))
    waits_ms = [(pulse_ns - wire_ns) / MS for number, wire_ns, pulse_ns, *_ in pulses if number % 2]
    assert 10 <= min(waits_ms) < 12 and 22 < max(waits_ms) <= 24
    again = Bench(latency_ns=None).connect()
    again.give(0, 36, SINGLE, 40)
    assert again.pulses("pulse_ns") == bench.pulses("pulse_ns")[:1]  # seeded


def test_a_pulse_that_was_taken_is_played_and_a_stop_says_ok():
    bench = Bench().connect()
    bench.give(1, 36, SINGLE)
    assert PULSE_RECORD.unpack(bench.records[0])[2:] == (20_000, 200, 1, 1)
    assert [it[:2] for it in (bench.answers(), bench.give(2, 34, b"", 30), bench.answers())[2]] == [(1, 37), (2, 35)]
    assert bench.pulses("number") == [(1,)] and [it for it in bench.lines if "stop_ns" in it]


@pytest.mark.parametrize(
    ("command", "data", "code"),
    [
        (36, b"", b"\xfe"),
        (36, SINGLE + b"\0", b"\xfe"),
        (36, bytes((8, 0, 200, 20)), b"\xfe"),
        (36, bytes((0, 1, 245, 20)), b"\xfe"),
        (36, bytes((0, 0, 200, 131)), b"\xfe"),
        (32, TWO_VALUES, b"\xfd"),
        (34, b"\0", b"\xfe"),
        (10, b"\0", b"\xfe"),
        (30, LIST_20_MS[:-1], b"\xfe"),
        (30, bytes((8, 1, 0, 15, 0, 38, 0)), b"\xfe"),
        (30, bytes((0, 0, 0, 15, 0, 38, 0)), b"\xfe"),
        (30, bytes((0, 1, 2, 15, 0, 38, 0)), b"\xfe"),
        (30, bytes((0, 1, 0, 15, 0, 13, 0)), b"\xfe"),
        (30, bytes((0, 1, 0, 15, 8, 1, 0)), b"\xfe"),
        (30, bytes((0, 1, 0, 15, 0, 38, 2)), b"\xfe"),
        (50, b"\0", b"\xfc"),
    ],
)
def test_what_the_box_refuses(command, data, code):
    bench = Bench().connect()
    assert bench.ask(3, command, data) == code
    bench.wait(50)
    assert bench.pulses("number") == []


def test_unknown_command_and_damaged_frame():
    bench = Bench().connect()
    bench.give(3, 99, b"", 5)
    assert bench.answers() == [(3, 3, b"\x63")]
    raw = bytearray(wrap(3, 36, SINGLE))
    raw[-2] ^= 1
    bench.give_raw(bytes(raw), 30)
    assert bench.answers() == [(3, 37, b"\xff")] and bench.pulses("number") == []
    assert bench.judge.frames_refused == 1


def test_modes():
    bench = Bench().connect()
    assert bench.ask(1, 10) == b"\0\0"
    assert bench.ask(2, 30, LIST_20_MS) == b"\0" and bench.ask(3, 10) == b"\0\1"
    assert bench.ask(4, 30, LIST_20_MS) == b"\xfd" and bench.ask(5, 36, SINGLE) == b"\xfd"
    assert bench.ask(6, 32, TWO_VALUES) == b"\0" and bench.ask(7, 10) == b"\0\2"
    assert bench.ask(8, 30, LIST_20_MS) == b"\xfd" and bench.ask(9, 36, SINGLE) == b"\xfd"
    assert bench.ask(10, 32, TWO_VALUES[:4]) == b"\xfe" and bench.ask(11, 10) == b"\0\2"
    assert bench.ask(12, 34) == b"\0" and bench.ask(13, 10) == b"\0\0"
    assert bench.ask(14, 32, TWO_VALUES) == b"\xfd"


def test_a_list_plays_on_until_it_is_stopped():
    bench = Bench().connect()
    assert bench.ask(1, 30, LIST_20_MS) == b"\0"
    begin_ns = bench.now_ns + round(len(wrap(2, 32, TWO_VALUES)) * box.BYTE_NS) + 10 * MS
    assert bench.ask(2, 32, TWO_VALUES) == b"\0"
    bench.wait(195)
    expected = [(begin_ns + t, *it) for t in range(0, 200 * MS, 20 * MS) for it in ((1, 20_000, 200), (3, 30_000, 300))]
    expected[1::2] = [(pulse_ns + 1_500_000, *it) for pulse_ns, *it in expected[1::2]]
    assert bench.pulses("pulse_ns", "channel", "current_ua", "phase_width_us") == expected[: len(bench.pulses("number"))]
    assert len(bench.pulses("number")) == 2 * 10
    bench.give(3, 32, bytes((0, 0, 10, 10, 0, 0, 200, 0)), 21)  # an update: a width that is lengthened, and a current of nothing
    assert bench.pulses("channel", "current_ua", "phase_width_us")[20:] == [(1, 10_000, 20)]
    bench.give(4, 34)
    n_pulses = len(bench.pulses("number"))
    bench.wait(100)
    assert len(bench.pulses("number")) == n_pulses
    assert all(it["balanced"] for it in bench.lines if "pulse_ns" in it)


@pytest.mark.safety("B1")
def test_a_list_plays_on_until_the_watchdog_ends_it():
    """Why the driver never uses one: the host is dead, and the box goes on for 1.2 s."""
    bench = Bench().connect()
    bench.ask(1, 30, LIST_20_MS)
    bench.give(2, 32, TWO_VALUES)
    heard_ns = bench.box._heard_ns
    bench.wait(3000)
    last_ns = max(it["pulse_ns"] for it in bench.lines if "pulse_ns" in it)
    assert 1170 * MS < last_ns - heard_ns < 1200 * MS
    assert [command for _, command, _ in bench.answers()] == [33, 1, 1, 1, 1]


def test_doublets_and_triplets_and_their_rules():
    bench = Bench().connect()
    bench.ask(1, 30, bytes((0, 0b11, 0, 15, 0, 58, 0)))  # t2 9 ms, t1 30 ms
    bench.give(2, 32, bytes((1, 0, 200, 20, 2, 0, 200, 10)), 45)
    starts_ms = [(pulse_ns - 10**12) / MS for pulse_ns, _ in sorted(bench.pulses("pulse_ns", "channel"))]
    channels = [channel for _, channel in sorted(bench.pulses("pulse_ns", "channel"))]
    assert channels[:5] == [1, 2, 1, 2, 2]
    assert [round(t - starts_ms[0], 3) for t in starts_ms[:7]] == [0, 1.5, 9, 10.5, 19.5, 30, 31.5]
    for made, mode, code in (
        ((0, 1, 0, 1, 0, 58, 0), 1, b"\xfe"),
        ((0, 1, 0, 15, 0, 38, 0), 2, b"\xfe"),
        ((0, 1, 0, 15, 0, 38, 0), 1, b"\0"),
    ):
        again = Bench().connect()
        assert again.ask(1, 30, made) == b"\0" and again.ask(2, 32, bytes((mode, 0, 200, 20))) == code
    assert again.ask(3, 32, bytes((3, 0, 200, 20))) == b"\xfe"


def test_channels_of_low_frequency():
    bench = Bench().connect()
    bench.ask(1, 30, bytes((2, 0b11, 0b10, 15, 0, 38, 0)))
    bench.give(2, 32, bytes((0, 0, 200, 20, 0, 0, 200, 20)), 125)
    assert [channel for (channel,) in bench.pulses("channel")] == [1, 2, 1, 1, 1, 2, 1, 1]


def test_one_shot_list_plays_once_for_each_start():
    bench = Bench().connect()
    bench.ask(1, 30, bytes((0, 1, 0, 15, 0, 0, 0)))
    for number in (2, 3):
        bench.give(number, 32, bytes((0, 0, 200, 20)), 1000)
        assert len(bench.pulses("number")) == number - 1


@pytest.mark.parametrize(
    ("fault", "answers", "n_pulses"),
    [
        ("e-stop", [(1, 37, b"\0"), (1, 38, b"\xff")], 0),
        ("electrode-error", [(1, 37, b"\0"), (1, 38, b"\xfe")], 1),
        ("module-error", [(1, 37, b"\0"), (1, 38, b"\xfd")], 0),
        ("reset", [(1, 1, b"\1")], 0),
        ("lost-ack", [], 1),
        ("duplicate-ack", [(1, 37, b"\0"), (1, 37, b"\0")], 1),
        ("late-ack", [(1, 37, b"\0")], 1),
    ],
)
def test_faults_of_the_box(fault, answers, n_pulses):
    bench = Bench((fault, 1)).connect()
    assert bench.ask(0, 36, SINGLE) == b"\0"
    bench.wait(30)
    bench.give(1, 36, SINGLE, 200)
    assert bench.answers() == answers
    assert len(bench.pulses("number")) == 1 + n_pulses


def test_emergency_stop_stays_pressed():
    bench = Bench(("e-stop", 0)).connect()
    for number in range(3):
        bench.give(number, 36, SINGLE, 50)
    assert [command for _, command, _ in bench.answers()] == [37, 38] * 3 and bench.pulses("number") == []


def test_shape_is_biphasic_and_balanced():
    shape = shape_of([(500, 40), (100, 0), (500, -40)])
    bench = Bench().connect()
    bench.give(1, 36, bytes((7, 1, 244, 20)), 30)
    [line] = [it for it in bench.lines if "pulse_ns" in it]
    assert (line["current_ua"], line["phase_width_us"], line["charge_nc"], line["balanced"], line["channel"]) == (
        shape.current_ua,
        shape.phase_width_us,
        shape.charge_nc,
        True,
        8,
    )


def test_a_twin_refuses_a_fault_that_its_box_cannot_have(tmp_path):
    for name, fault in (("rehamove3", "e-stop@0"), (NAME, "toothache@0"), (NAME, "e-stop")):
        command = [sys.executable, "-m", "drivers.simulated.twin", name, "--log", str(tmp_path / "log"), "--fault", fault]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "--fault" in done.stderr and not (tmp_path / "log").exists()


# --- device against the virtual box -----------------------------------------------------------------------------------------------
@pytest.fixture
def connect(tmp_path):
    """`connect(*twin_arguments) -> (device, twin)`: opened, prepared and armed."""
    contexts, devices = [], []

    def connect(*arguments, write=os.write, arm=True):
        context = running_twin(tmp_path, NAME, *arguments)
        twin = context.__enter__()
        contexts.append(context)
        device = ScienceMode2(twin.port, NAME, write)
        devices.append(device)
        device.open()
        device.prepare([TRAIN, replace(TRAIN, channel=3, phase_width_us=240)])
        if arm:
            device.arm()
        return device, twin

    yield connect
    for device in devices:
        device.close()
    for context in contexts:
        context.__exit__(None, None, None)


def ended(twin):
    """The log, when the last pulse that the box took is out: 24 ms after its answer at the latest."""
    time.sleep(0.1)
    return twin.end()


def events_within(device, seconds, n=1):
    """Events until there are `n` or time is up."""
    events, deadline_s = [], time.monotonic() + seconds
    while len(events) < n and time.monotonic() < deadline_s:
        events += device.read_events()
        time.sleep(0.002)
    return events


def one_pulse(device, train=0, current_ua=2000):
    number = device.trigger(train, current_ua)
    assert [(it.kind, it.number) for it in events_within(device, 1)] == [(DeviceEventKind.ACK, number)]
    return number


@pytest.mark.safety("A7")
def test_pulses_round_the_packet_numbers(connect):
    device, twin = connect("--latency-ms", "0.1")
    asked = []
    for i in range(300):
        train, current_ua = i % 5 == 4, 2000 * (1 + i % 10)
        asked.append((one_pulse(device, train, current_ua), current_ua, 3 if train else 1, 240 if train else 500))
    status = device.status()
    assert status["armed"] and status["n_bad_frames"] == 0
    device.close()
    assert device.status()["stop_answered"]
    pulses, refused, summary = ended(twin)
    assert [tuple(it[field] for field in ("number", "current_ua", "channel", "phase_width_us")) for it in pulses] == asked
    assert {it[0] for it in asked} == set(range(256))
    assert refused == [] and summary["unbalanced"] == 0


def test_status_says_what_the_port_did_not_keep(connect):
    device, _ = connect(arm=False)
    status = device.status()
    assert status["line"] == "460800 8E1" and status["line_kept"] is False  # a pty drops the parity
    flags = termios.tcgetattr(device.fileno())
    assert not flags[2] & (termios.PARENB | termios.CRTSCTS | termios.CSTOPB) and flags[4] == termios.B460800
    assert status["protocol"] == 1
    json.dumps(status)


@pytest.mark.safety("E6")
def test_opened_again_it_is_greeted_anew(connect):
    """Closed, the box takes our silence for the end: the next Init says that it is the same protocol."""
    device, twin = connect()
    one_pulse(device)
    for _ in range(2):
        device.close()
        device.open()
        assert device.identify() == "RehaStim2 - 1"
    with pytest.raises(NotArmedError):
        device.trigger(0, 2000)
    assert device.read_events() == []
    device.arm()
    one_pulse(device)
    device.close()
    assert len(ended(twin)[0]) == 2


@contextmanager
def kept_awake(port):
    """Another program, which asks for no lock, greets the box and says a word each 0.1 s; yields its `say(command, data)`."""
    fd = os.open(port, os.O_RDWR | os.O_NOCTTY)
    done = threading.Event()

    def say(command, data=b""):
        os.write(fd, wrap(200, command, data))

    def talk():
        while not done.wait(0.1):
            say(4)

    deframer, inits = Deframer(), []
    while not inits:
        inits = [frame for frame in deframer.feed(os.read(fd, 99)) if frame.command == 1]
    os.write(fd, wrap(inits[-1].number, 2, b"\0"))
    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield say
    finally:
        done.set()
        thread.join()
        os.close(fd)


@pytest.mark.safety("B1", "E6")
@pytest.mark.parametrize("mode", ["start", "list initialised", "list started"])
def test_a_box_that_was_left_initialised_is_found_and_one_that_is_in_use_is_not_disturbed(tmp_path, mode):
    sent = []
    with running_twin(tmp_path, NAME) as twin:
        device = ScienceMode2(twin.port, write=lambda fd, data: sent.append(data) or os.write(fd, data))
        with kept_awake(twin.port) as say:
            if mode != "start":
                say(30, LIST_20_MS)
            if mode == "list started":
                say(32, TWO_VALUES)
            time.sleep(0.1)  # until the box has it: opening a port empties it
            with pytest.raises((AckTimeoutError, DeviceMismatchError), match="Init"):
                device.open()
            assert sent == []
        device.open()  # its watchdog has ended the list
        n_pulses = len(twin_pulses(twin))
        assert bool(n_pulses) == (mode == "list started")
        assert device.identify() == "RehaStim2 - 1"
        device.prepare([TRAIN])
        device.arm()
        one_pulse(device)
        device.close()
        assert len(ended(twin)[0]) == n_pulses + 1


@pytest.mark.safety("E6")
def test_nothing_is_said_to_what_does_not_speak_first(tmp_path):
    """A trigger box would make a pulse of each byte."""
    sent = []
    with running_twin(tmp_path, "rehamove3") as twin, pytest.raises(AckTimeoutError, match="did not answer with its Init"):
        ScienceMode2(twin.port, write=lambda fd, data: sent.append(data) or len(data)).open()
    assert sent == []


def twin_pulses(twin):
    time.sleep(0.1)
    return [line for line in map(json.loads, twin.log.read_text().splitlines()) if "pulse_ns" in line]


@pytest.mark.safety("A13")
def test_it_does_not_arm_while_a_list_is_there(connect):
    device, _ = connect(arm=False)
    os.write(device.fileno(), wrap(9, 30, LIST_20_MS))
    with pytest.raises(ProtocolError, match="its mode is list initialised, not start"):
        device.arm()
    with pytest.raises(NotArmedError):
        device.trigger(0, 2000)
    device.disarm()
    assert [it.text for it in device.read_events()] == ["unexpected frame: command 31, 1 bytes"]  # the list was not ours
    device.arm()
    one_pulse(device)


@pytest.mark.safety("C1")
@pytest.mark.parametrize("mode", ["start", "list initialised", "list started"])
def test_stop_in_every_mode(connect, mode):
    device, twin = connect()
    os.write(device.fileno(), b"" if mode == "start" else wrap(9, 30, LIST_20_MS))
    os.write(device.fileno(), wrap(9, 32, TWO_VALUES) if mode == "list started" else b"")
    for _ in range(3):
        device.stop()
    deadline_s = time.monotonic() + 5
    while not device.status()["stop_answered"] and time.monotonic() < deadline_s:
        device.read_events()  # with the answers to the list's commands, which nobody asked for
        time.sleep(0.005)
    assert device.status()["stop_answered"]
    device.arm()
    device.read_events()
    n_pulses = len(twin_pulses(twin))
    one_pulse(device)
    device.close()
    assert len(ended(twin)[0]) == n_pulses + 1


@pytest.mark.safety("B1")
def test_nothing_leaves_before_arm_or_after_stop(connect):
    device, twin = connect(arm=False)
    with pytest.raises(NotArmedError):
        device.trigger(0, 2000)
    device.arm()
    device.disarm()
    with pytest.raises(NotArmedError):
        device.trigger(0, 2000)
    device.arm()
    for train, current_ua in ((0, 22_000), (0, 0), (0, 1000), (2, 2000), (-1, 2000)):
        with pytest.raises(LimitError):
            device.trigger(train, current_ua)
    device.stop()
    with pytest.raises(NotArmedError):
        device.trigger(0, 2000)
    device.close()
    assert ended(twin)[2]["pulses"] == 0


@pytest.mark.safety("C1")
def test_torn_frame_does_not_hide_the_stop(connect):
    device, twin = connect()
    os.write(device.fileno(), encode_single_pulse(9, 1, 500, 2000)[:7])
    device.disarm()
    assert device.status()["stop_answered"]
    _, refused, summary = ended(twin)
    assert len(refused) == 1 and summary["pulses"] == 0


@pytest.mark.safety("C2", "E5")
def test_a_stalled_box_gets_one_pulse_at_most_and_the_stop(connect):
    """A pty gives nothing back, and a RehaStim2 plays what it has taken: the one pulse that may be out. Nothing else ever comes."""
    device, twin = connect()
    os.kill(twin.process.pid, signal.SIGSTOP)
    number = device.trigger(0, 2000)
    for _ in range(3):
        device.keep_alive()
        device.stop()
    os.kill(twin.process.pid, signal.SIGCONT)
    wait_for_stop(device)
    device.arm()
    new = one_pulse(device)
    device.close()
    *old, last = [it["number"] for it in ended(twin)[0]]
    assert last == new and old in ([], [number])


def wait_for_stop(device):
    deadline_s = time.monotonic() + 5
    while not device.status()["stop_answered"] and time.monotonic() < deadline_s:
        assert not [it for it in device.read_events() if it.kind is not DeviceEventKind.ACK]
        time.sleep(0.005)
    assert device.status()["stop_answered"]


def test_keep_alive_keeps_it_alive_and_silence_is_told(connect):
    device, twin = connect()
    for _ in range(6):
        time.sleep(0.4)
        device.keep_alive()
    assert device.read_events() == []
    one_pulse(device)
    events = events_within(device, 3)
    assert [it.kind for it in events] == [DeviceEventKind.DEVICE_RESET]
    device.stop()
    with pytest.raises(AckTimeoutError):
        device.identify()
    device.close()
    device.open()
    device.arm()
    one_pulse(device)
    device.close()
    pulses, refused, _ = ended(twin)
    assert len(pulses) == 2 and {it["refused"] for it in refused} <= {"before InitAck"}


@pytest.mark.safety("E3")
@pytest.mark.parametrize(
    ("fault", "kinds", "code"),
    [
        ("lost-ack@3", [], 0),
        ("duplicate-ack@3", ["ACK", "ACK"], 0),
        ("late-ack@3", ["ACK"], 0),
        ("electrode-error@3", ["ACK", "ELECTRODE_ERROR"], -2),
        ("e-stop@3", ["ACK", "EMERGENCY_STOP"], -1),
        ("module-error@3", ["ACK", "DEVICE_ERROR"], -3),
        ("crc-error@3", ["PROTOCOL_ERROR"], -1),
        ("reset@3", ["DEVICE_RESET"], 1),
    ],
)
def test_fault_becomes_its_event(connect, fault, kinds, code):
    device, _ = connect("--fault", fault)
    for _ in range(3):
        one_pulse(device)
    number = device.trigger(0, 2000)
    events = events_within(device, 0.4, len(kinds) + 1)
    assert [it.kind for it in events] == [DeviceEventKind[kind] for kind in kinds]
    assert all(it.number == number for it in events if it.kind is DeviceEventKind.ACK)
    assert not events or events[-1].code == code


def test_hung_box_ends_in_a_short_write(connect):
    device, _ = connect("--fault", "hang@2")
    for _ in range(2):
        one_pulse(device)
    time.sleep(0.05)
    with pytest.raises(ShortWriteError):
        for _ in range(10_000):
            device.trigger(0, 2000)
    device.stop()
    device.disarm()
    with pytest.raises(AckTimeoutError):
        device.arm()


@pytest.mark.safety("E4")
def test_lost_port_is_told_once(connect):
    device, _ = connect("--fault", "hangup@1")
    one_pulse(device)
    assert [it.kind for it in events_within(device, 2)] == [DeviceEventKind.PORT_LOST]
    assert device.read_events() == []
    with pytest.raises((NotArmedError, PortLostError)):
        device.trigger(0, 2000)
    with pytest.raises(PortLostError):
        device.keep_alive()
    for quiet in (device.stop, device.disarm, device.close):
        quiet()


def test_silent_box(tmp_path):
    with running_twin(tmp_path, NAME, "--fault", "hang@0") as twin, pytest.raises(AckTimeoutError):
        ScienceMode2(twin.port).open()


# --- device against a hand that plays the box -------------------------------------------------------------------------------------
@contextmanager
def played(hand):
    """A pty whose far end `hand(fd, heard)` plays: called with each frame that arrives, and with None in between."""
    master_fd, slave_fd = pty.openpty()
    tty.setraw(slave_fd)
    done = threading.Event()
    heard = []

    def play():
        deframer = Deframer()
        while not done.is_set():
            hand(master_fd, None)
            ready, _, _ = select.select([master_fd], [], [], 0.02)
            for frame in deframer.feed(os.read(master_fd, 999)) if ready else ():
                heard.append(frame)
                hand(master_fd, frame)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield os.ttyname(slave_fd), heard
    finally:
        done.set()
        thread.join()
        os.close(slave_fd)
        os.close(master_fd)


@pytest.mark.safety("E6")
@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_told_so_and_refused(version):
    def hand(fd, frame):
        if frame is None:
            os.write(fd, wrap(77, 1, bytes((version,))))

    with played(hand) as (port, heard):
        device = ScienceMode2(port)
        with pytest.raises(DeviceMismatchError, match=f"version {version} of its protocol, not 1"):
            device.open()
        assert not device.status()["open"]
        time.sleep(0.1)
        assert heard == [(77, 2, b"\xfb")]


@pytest.mark.safety("E6")
@pytest.mark.parametrize(
    ("command", "data", "says"),
    [
        (11, b"\xff\0", r"does not say its mode: transfer error \(-1\)"),
        (11, b"\0", "does not say its mode"),
        (3, b"\x0a", "did not answer GET_STIMULATION_MODE"),
    ],
)
def test_a_box_that_answers_something_else(command, data, says):
    def hand(fd, frame):
        if frame is None:
            os.write(fd, wrap(7, 1, b"\1"))
        elif frame.command == 10:
            os.write(fd, wrap(frame.number, command, data))

    with played(hand) as (port, _), pytest.raises((AckTimeoutError, ProtocolError), match=says):
        ScienceMode2(port).open()


@pytest.mark.safety("E6")
@pytest.mark.parametrize("noise", [b"hello", wrap(7, 1, b""), wrap(7, 60, b"\0\0\0"), b"\xf0\x81"])
def test_a_box_that_says_something_else(noise):
    def hand(fd, frame):
        os.write(fd, noise)

    with played(hand) as (port, heard):
        with pytest.raises(DeviceMismatchError, match="not the Init of a RehaStim2 at 460800 8E1"):
            ScienceMode2(port).open()
        assert heard == []


@pytest.mark.safety("E6")
def test_half_an_init_before_the_first_whole_one_is_no_event():
    def hand(fd, frame):
        if frame is None and not heard_of:
            os.write(fd, wrap(7, 1, b"\1")[4:] + wrap(8, 1, b"\1") + wrap(9, 1, b"\1"))
        elif frame is not None:
            heard_of.append(frame)
            if frame.command == 10:
                os.write(fd, wrap(frame.number, 11, b"\0\0"))

    heard_of = []
    with played(hand) as (port, _):
        device = ScienceMode2(port)
        device.open()
        assert device.read_events() == [] and device.identify() == "RehaStim2 - 1"
        device.close()
    assert heard_of[0] == (8, 2, b"\0")


@pytest.mark.safety("E1")
def test_a_stop_in_the_wrong_mode_counts_as_answered():
    def hand(fd, frame):
        if frame is None and not greeted:
            os.write(fd, wrap(7, 1, b"\1"))
        elif frame is not None:
            greeted.append(frame)
            answers = {10: b"\0\0", 34: b"\xfd"}
            if frame.command in answers:
                os.write(fd, wrap(frame.number, frame.command + 1, answers[frame.command]))

    greeted = []
    with played(hand) as (port, _):
        device = ScienceMode2(port)
        device.open()
        device.arm()
        device.disarm()
        assert device.status()["stop_answered"] and device.read_events() == []
        device.close()


@pytest.mark.safety("E4", "E6")
@pytest.mark.parametrize("n_bytes", range(11))
def test_unplugged_at_any_byte_of_an_answer(n_bytes):
    """The port goes away while the box answers: a typed error from `open`, and nothing hangs."""
    master_fd, slave_fd = pty.openpty()
    tty.setraw(slave_fd)
    port = os.ttyname(slave_fd)

    def play():
        fd = master_fd
        deframer = Deframer()
        while True:
            for frame in deframer.feed(os.read(fd, 999)):
                if frame.command == 10:
                    os.write(fd, wrap(frame.number, 11, b"\0\0")[:n_bytes])
                    os.close(slave_fd)
                    os.close(fd)
                    return

    device = ScienceMode2(port)
    real_open = os.open

    def open_and_speak(path, *flags):
        fd = real_open(path, *flags)
        if path == port:
            threading.Timer(0.05, os.write, (master_fd, wrap(7, 1, b"\1"))).start()
        return fd

    thread = threading.Thread(target=play)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_and_speak)
        try:
            device.open()
        except (PortLostError, AckTimeoutError, DeviceMismatchError):
            assert not device.status()["open"]
        else:
            assert n_bytes == len(wrap(0, 11, b"\0\0"))
            assert [it.kind for it in events_within(device, 2)] == [DeviceEventKind.PORT_LOST]
    thread.join()
    device.close()


# --- guard ------------------------------------------------------------------------------------------------------------------------
@contextmanager
def guarded(folder, *twin_options):
    config = demo.with_stimulator(calm_settings.load(calm_settings.default_config("demo.toml")), NAME)
    rig = GuardRig(folder, NAME, *twin_options, config=config)
    try:
        yield rig
    finally:
        rig.close()


def test_a_quiet_session_stays_alive_and_guard_small(tmp_path):
    """Longer than the box's watchdog in IDLE, then armed, then a train, then idle again."""
    with guarded(tmp_path) as rig:
        time.sleep(2.5)
        assert rig.ask("status")["state"] == "IDLE"
        assert rig.arm()["state"] == "ARMED"
        time.sleep(2.5)
        assert rig.ask("status")["state"] == "ARMED"
        assert rig.trigger()["ok"]
        rig.wait_for(lambda s: s["state"] == "ARMED" and s["pulses"])
        time.sleep(2.5)
        status = rig.ask("status")
        assert status["state"] == "ARMED" and status["stimulator"]["n_prepared_frames"] == 10 * N_NUMBERS
        pulses = rig.twin.pulses()
        assert len(pulses) == status["pulses"] >= 1 and all(it["outside"] == [] and it["balanced"] for it in pulses)
        assert not [row for row in rig.twin.rows() if "watchdog_ns" in row or "refused" in row]
        high_water_kb = int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{rig.process.pid}/status").read_text())[1])
        assert high_water_kb < 40_000


@pytest.mark.safety("E3")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("e-stop@1", "emergency stop"),
        ("reset@1", "device reset"),
        ("module-error@1", "device error"),
        ("electrode-error@1", "electrode error"),
    ],
)
def test_what_the_box_reports_is_a_fault(tmp_path, fault, words):
    with guarded(tmp_path, "--fault", fault) as rig:
        rig.arm()
        assert rig.trigger()["ok"]
        status = rig.wait_for(lambda s: s["state"] == "FAULT")
        assert words in status["reason"]
        assert len(rig.twin.pulses()) <= 3


# --- an independent client of the virtual box -------------------------------------------------------------------------------------
CLIENT = """
import sys, time
from pysciencemode import Channel, Device, Modes
from pysciencemode.rehastim2_interface import Rehastim2

box = Rehastim2(port=sys.argv[1], show_log=True)
def channels(ma):
    return [
        Channel(mode=Modes.SINGLE, no_channel=1, amplitude=ma, pulse_width=200, device_type=Device.Rehastim2),
        Channel(mode=Modes.DOUBLET, no_channel=3, amplitude=ma + 1, pulse_width=300, device_type=Device.Rehastim2),
    ]
box.init_channel(stimulation_interval=50, list_channels=channels(20), inter_pulse_interval=9)
box.start_stimulation(stimulation_duration=0.4, upd_list_channels=channels(20))
box.start_stimulation(stimulation_duration=0.4, upd_list_channels=channels(30))
box.end_stimulation()
box.init_channel(stimulation_interval=40, list_channels=channels(12)[:1])
box.start_stimulation(stimulation_duration=0.3)
box.end_stimulation()
assert not box.error_occured
box.disconnect()
box.close_port()
print("client done")
"""


def test_pysciencemode_drives_the_virtual_box(tmp_path):
    """It waits for answers without an end, so it runs in a process of its own, with one; and no longer than 1.2 s in silence."""
    with running_twin(tmp_path, NAME) as twin:
        done = subprocess.run([sys.executable, "-c", CLIENT, twin.port], capture_output=True, text=True, timeout=60)
        pulses, refused, summary = ended(twin)
    assert done.stderr == "" and done.stdout.endswith("client done\n"), done
    assert "Error" not in done.stdout.replace("StimulationError", "Error")
    assert {(it["refused"], it["bytes"][-8:]) for it in refused} == {
        ("before InitAck", "00 04 0f")
    }  # its watchdog speaks before it is asked
    assert summary["unbalanced"] == 0
    given = [(it["channel"], it["current_ua"], it["phase_width_us"], it["number"]) for it in pulses]
    kinds = {it[:3] for it in given}
    assert kinds == {(1, 20_000, 200), (3, 21_000, 300), (1, 30_000, 200), (3, 31_000, 300), (1, 12_000, 200)}
    assert sum(it[0] == 3 for it in given) > sum(it[:2] in ((1, 20_000), (1, 30_000)) for it in given)  # doublets
