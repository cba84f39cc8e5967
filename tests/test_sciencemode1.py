"""RehaStim1: driver, virtual box and wire check before the maker's bytes, another program's, and each other."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.wire import Pulse, for_driver
from controller.wire import sciencemode1 as wire
from drivers.base import AckTimeoutError, DeviceMismatchError, LimitError, NotArmedError, ProtocolError, PulseTrain, WireError
from drivers.base import DeviceEventKind as Say
from drivers.simulated import virtual_sciencemode1 as virtual
from drivers.simulated.twin import Judge, RefusedError
from drivers.stimulators.sciencemode1 import (
    STOP,
    Answer,
    Deframer,
    ListPulse,
    ScienceMode1,
    decode_single_pulse,
    encode_init,
    encode_single_pulse,
    encode_update,
)
from tests.test_sciencemode34 import events_within
from tests.test_virtual_sciencemode import running_twin

MS = 1_000_000
TRAIN = PulseTrain(1, 20.0, 500, 100, 50.0, 500, 50, 100)
PULSE = encode_single_pulse(3, 200, 120_000)
ANSWERS = b"\x00\x01\x40\x41\x80\x81\xc0\xc1"  # the eight that there are

SINGLES = [  # the maker's document, section 5.8: channel, µs, mA
    ((3, 200, 120), "E2 21 48 78"),
    ((6, 221, 55), "F9 51 5D 37"),
]
INITS = [  # the same section's two examples; their parameters were read out of the bytes by hand
    (([1, 2, 5], [5], 1, 5.0, 50.0), "94 44 62 00 70 62"),
    (([2, 3, 6, 8], [2, 3], 2, 6.0, 16.5), "99 29 40 61 10 1F"),
]
singles_strategy = st.tuples(st.integers(1, 8), st.integers(20, 500), st.integers(1, 126))
list_pulses_strategy = st.builds(ListPulse, st.integers(1, 3), st.one_of(st.just(0), st.integers(10, 500)), st.integers(0, 127))


class Bench:
    """A box without a process: its clock is ours."""

    def __init__(self, fault=("", 0)):
        self.sent, self.lines, self.records = [], [], []
        self.judge = Judge()
        self.box = virtual.Box("sciencemode1", None, self.judge, self.sent.append, self.lines.append, self.records.append, fault)
        self.now_ns = 10**12

    def give(self, data, wait_ms=0.0):
        """Bytes in; what is answered within the time."""
        self.box.receive(data, self.now_ns)
        return self.wait(wait_ms)

    def wait(self, wait_ms):
        self.now_ns += round(wait_ms * MS)
        self.box.run_due(self.now_ns)
        answers = b"".join(self.sent)
        self.sent.clear()
        return answers

    def pulses(self):
        return [line for line in self.lines if "pulse_ns" in line]

    def refused(self):
        return [line["refused"] for line in self.lines if "refused" in line]


# --- codec ------------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A13")
@pytest.mark.parametrize(("values", "data"), SINGLES)
def test_makers_single_pulses(values, data):
    channel, width_us, current_ma = values
    data = bytes.fromhex(data)
    assert encode_single_pulse(channel, width_us, current_ma * 1000) == data
    assert decode_single_pulse(data) == (channel, width_us, current_ma * 1000)
    assert virtual.read_single(data) == values


@pytest.mark.parametrize(("values", "data"), INITS)
def test_makers_lists(values, data):
    data = bytes.fromhex(data)
    channels, low, n_factor, group_ms, main_ms = values
    assert encode_init(*values) == data
    assert virtual.read_init(data) == (n_factor, channels, low, group_ms * 1000, main_ms * 1000)


def test_stop_is_one_byte():
    assert bytes.fromhex("C0") == STOP


def test_same_bytes_as_another_program():
    """The digest is of the bytes that lara-unb/hasomed_rehastim_stimulator's packet builder made of these 2000 commands (2026-11-25)."""
    dice = random.Random(20261125)
    ours = b""
    for _ in range(1200):
        channel, width_us, current_ma = dice.randint(1, 8), dice.randint(20, 500), dice.randint(1, 126)
        ours += encode_single_pulse(channel, width_us, current_ma * 1000)
    for _ in range(400):
        channels = sorted(dice.sample(range(1, 9), dice.randint(1, 8)))
        low = sorted(dice.sample(channels, dice.randint(0, len(channels))))
        ours += encode_init(channels, low, dice.randint(0, 7), dice.randint(3, 34) / 2, dice.randint(6, 2047) / 2)
    for _ in range(400):
        pulses = [(dice.randint(1, 3), dice.randint(20, 500), dice.randint(0, 127)) for _ in range(dice.randint(1, 8))]
        ours += encode_update([ListPulse(*pulse) for pulse in pulses])
    assert hashlib.sha256(ours).hexdigest() == "40116f21c00676008ad527527ea50dd1dd4ebe269dbb19a200f162b6dc5ddeca"


@given(singles_strategy)
def test_a_pulse_is_read_alike_by_all_three(values):
    channel, width_us, current_ma = values
    frame = encode_single_pulse(channel, width_us, current_ma * 1000)
    assert virtual.read_single(frame) == values
    assert frame[0] >= 128 > max(frame[1:])
    if current_ma % 2:
        with pytest.raises(WireError, match="cannot do"):
            wire.decode(frame)
    else:
        assert wire.decode(frame) == Pulse(channel, current_ma * 1000, width_us, 100)


@given(st.sets(st.integers(1, 8), min_size=1), st.data())
def test_a_list_is_read_as_it_was_written(channels, data):
    channels = sorted(channels)
    low = data.draw(st.lists(st.sampled_from(channels), unique=True).map(sorted))
    n_factor, group, main = data.draw(st.tuples(st.integers(0, 7), st.integers(3, 34), st.one_of(st.just(0), st.integers(6, 2047))))
    made = encode_init(channels, low, n_factor, group / 2, main / 2)
    assert virtual.read_init(made) == (n_factor, channels, low, group * 500, main * 500)
    pulses = data.draw(st.lists(list_pulses_strategy, min_size=len(channels), max_size=len(channels)))
    update = encode_update(pulses)
    assert virtual.read_update(update) == pulses
    for frame in (made, update):
        assert frame[0] >= 128 > max(frame[1:])
        with pytest.raises(WireError):
            wire.decode(frame)


@pytest.mark.safety("A12")
@pytest.mark.parametrize(
    "make",
    [
        lambda: encode_single_pulse(0, 200, 2000),
        lambda: encode_single_pulse(9, 200, 2000),
        lambda: encode_single_pulse(1, 19, 2000),
        lambda: encode_single_pulse(1, 501, 2000),
        lambda: encode_single_pulse(1, 200, 128_000),
        lambda: encode_single_pulse(1, 200, 2500),
        lambda: encode_single_pulse(1, 200, 0),
        lambda: encode_init([9], [], 0, 5, 50),
        lambda: encode_init([1], [], 8, 5, 50),
        lambda: encode_init([1], [], 0, 17.5, 50),
        lambda: encode_init([1], [], 0, 5, 2.5),
        lambda: encode_init([1], [], 0, 5, 1024),
        lambda: encode_init([1], [], 0, 5, 50.2),
        lambda: encode_update([ListPulse(4, 200, 20)]),
        lambda: encode_update([ListPulse(1, 200, 128)]),
    ],
)
def test_what_the_box_cannot_do_is_not_encoded(make):
    with pytest.raises(LimitError, match="nearest"):
        make()


def test_a_wrong_frame_of_ours_is_noticed():
    for place in range(4):
        for bit in range(8):
            frame = PULSE[:place] + bytes((PULSE[place] ^ 1 << bit,)) + PULSE[place + 1 :]
            try:
                assert decode_single_pulse(frame) != (3, 200, 120_000)
            except ProtocolError:
                pass


@given(st.binary(max_size=300), st.sampled_from(ANSWERS), st.data())
def test_deframer_takes_any_bytes_in_any_cuts_and_finds_the_next_answer(noise, good, data):
    stream = noise + bytes((good,))
    whole, cut = Deframer(), Deframer()
    answers = whole.feed(stream)
    assert answers[-1] == Answer(good >> 6, bool(good & 1))
    assert len(answers) == sum(byte in ANSWERS for byte in stream)
    place = data.draw(st.integers(0, len(stream)))
    assert cut.feed(stream[:place]) + cut.feed(stream[place:]) == answers
    assert cut.n_bad_frames == whole.n_bad_frames <= len(noise)
    assert (whole.n_bad_frames > 0) == any(byte not in ANSWERS for byte in noise)


# --- wire check -------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A13")
@given(st.one_of(st.binary(max_size=6), singles_strategy.map(lambda it: encode_single_pulse(it[0], it[1], it[2] * 1000))), st.data())
def test_what_leaves_is_what_the_box_reads(frame, data):
    """Whatever the wire check lets through, the virtual box takes as that very pulse; one flipped bit and it is that no longer."""
    if frame and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(frame) - 1))
        frame = frame[:place] + bytes((frame[place] ^ 1 << data.draw(st.integers(0, 7)),)) + frame[place + 1 :]
    try:
        pulse = wire.decode(frame)
    except WireError:
        return
    bench = Bench()
    assert bench.give(frame, 10) in (b"\xc1", b"\x81")
    played = [Pulse(p["channel"], p["current_ua"], p["phase_width_us"], p["interphase_gap_us"]) for p in bench.pulses()]
    assert played == ([] if pulse is None else [pulse])


@pytest.mark.safety("A13")
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytearray(PULSE), "not bytes"),
        (b"", "neither"),
        (STOP * 2, "neither"),
        (b"\xc1", "neither"),
        (PULSE + STOP, "neither"),
        (PULSE[:3], "neither"),
        (bytes((PULSE[0] ^ 1, *PULSE[1:])), "check"),
        (bytes((PULSE[0], PULSE[1] | 8, *PULSE[2:])), "neither"),
        (bytes((*PULSE[:3], PULSE[3] | 128)), "neither"),
        (encode_init([1], [], 0, 5, 50), "neither"),
        (encode_update([ListPulse(1, 200, 20)]), "neither"),
        (bytes((0xE0 | 19 + 20, 0, 19, 20)), "width"),
        (bytes((0xE0 | (501 + 20) % 32, 3, 117, 20)), "width"),
        (bytes((0xE0 | 200 % 32, 1, 72, 0)), "current"),
        (bytes((0xE0 | (200 + 21) % 32, 1, 72, 21)), "current"),
    ],
)
def test_what_is_not_on_the_list_stays(data, why):
    with pytest.raises(WireError, match=why):
        wire.decode(data)


def test_stop_leaves_and_a_pulse_only_when_due():
    read_fd, write_fd = os.pipe()
    try:
        check = for_driver("sciencemode1")
        check.write(write_fd, STOP)
        with pytest.raises(WireError, match="no pulse is due"):
            check.write(write_fd, PULSE)
        check.due = (3, 120_000, 200, 100)
        check.write(write_fd, PULSE)
        assert os.read(read_fd, 99) == STOP + PULSE
    finally:
        os.close(read_fd)
        os.close(write_fd)


# --- virtual box ------------------------------------------------------------------------------------------------------------------
def test_pulse_comes_2_ms_after_its_last_byte_and_is_answered():
    bench = Bench()
    assert bench.give(PULSE, 2) == b"" and bench.pulses() == [] and len(bench.records) == 1
    assert bench.wait(2) == b"\xc1"
    [pulse] = bench.pulses()
    assert pulse["pulse_ns"] == 10**12 + round(4 * 11e9 / 115_200) + 2 * MS
    assert (pulse["channel"], pulse["current_ua"], pulse["phase_width_us"], pulse["charge_nc"]) == (3, 120_000, 200, 24_000)


@pytest.mark.safety("C1")
def test_stop_drops_what_has_not_begun():
    bench = Bench()
    bench.give(PULSE)
    assert bench.give(STOP, 10) == b"\x81"
    assert bench.pulses() == [] and bench.judge.pulses_dropped == 1
    assert bench.give(PULSE, 10) == b"\xc1" and len(bench.pulses()) == 1


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("bit", range(7))
def test_any_flipped_bit_is_refused(place, bit):
    """The check is a sum modulo 32: it misses what is a multiple of 32, which are the upper bits of width and current."""
    frame = PULSE[:place] + bytes((PULSE[place] ^ 1 << bit,)) + PULSE[place + 1 :]
    bench = Bench()
    unseen = (place, bit) in {(1, 0), (1, 1), (2, 5), (2, 6), (3, 5), (3, 6)}
    bench.give(frame, 10)
    assert bool(bench.pulses()) == unseen
    assert bool(bench.refused()) != unseen


@pytest.mark.parametrize(
    ("data", "answers", "reason"),
    [
        (PULSE[:2] + PULSE, b"\xc1", "cut short by a new command"),
        (b"\x01\x02" + PULSE, b"\xc1", "outside a command"),
        (PULSE + b"\x01" + STOP, b"\x81", "outside a command"),
        (b"\xc7", b"\x80", "stop: check"),
        (encode_update([ListPulse(1, 200, 20)])[:1] + STOP, b"\x40\x81", "update: no list"),
        (bytes((0xE0 | 9 + 20, 0, 9, 20)), b"\xc0", "single pulse: value"),
        (bytes((0xE0 | (501 + 20) % 32, 3, 117, 20)), b"\xc0", "single pulse: value"),
        (b"\x88\x04\x00\x00\x00\x00", b"\x00", "init: check"),
        (encode_init([1], [], 0, 5, 50) + PULSE, b"\x01\xc0", "single pulse: a list is ready or runs"),
        (encode_init([1, 2], [], 0, 5, 50) + encode_update([ListPulse(1, 9, 20)] * 2), b"\x01\x40", "update: value"),
    ],
)
def test_what_the_box_does_not_take(data, answers, reason):
    bench = Bench()
    assert bench.give(data, 10) == answers
    assert bench.refused() == [reason]


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([PULSE, STOP, encode_init([1, 5], [5], 1, 5, 50)])), max_size=8), st.data()
)
def test_box_takes_any_bytes_in_any_cuts_and_the_next_command(pieces, data):
    stream = b"".join(pieces)
    whole, cut = Bench(), Bench()
    place = data.draw(st.integers(0, len(stream)))
    assert whole.give(stream) == cut.give(stream[:place]) + cut.give(stream[place:])
    for bench in (whole, cut):
        assert len(bench.box._frame) < virtual.MAX_STRAY_BYTES
        assert bench.give(STOP).endswith(b"\x81")
        bench.wait(200)  # all that the wire still holds
        n_pulses = len(bench.pulses())
        assert bench.give(PULSE, 10) == b"\xc1" and len(bench.pulses()) == n_pulses + 1


def test_list_runs_until_its_stop_and_no_watchdog_ends_it():
    bench = Bench()
    assert bench.give(encode_init([2, 4], [4], 1, 5, 20)) == b"\x01"
    assert bench.wait(100) == b"" and bench.pulses() == []
    assert bench.give(encode_update([ListPulse(2, 250, 20), ListPulse(1, 300, 10)])) == b"\x41"
    for _ in range(1000):  # ten seconds without a word
        bench.wait(10)
    second = [p["pulse_ns"] for p in bench.pulses() if p["channel"] == 2]
    fourth = [p["pulse_ns"] for p in bench.pulses() if p["channel"] == 4]
    assert {later - earlier for earlier, later in pairwise(second)} == {5 * MS, 15 * MS}
    assert {later - earlier for earlier, later in pairwise(fourth)} == {40 * MS}
    assert len(second) == 1000 and len(fourth) == 250 and fourth[0] - second[0] == 1.5 * MS
    assert bench.give(encode_update([ListPulse(1, 0, 20), ListPulse(1, 300, 12)]), 100) == b"\x41"
    assert {p["channel"] for p in bench.pulses()[-2:]} == {4} and bench.pulses()[-1]["current_ua"] == 12_000
    assert bench.give(STOP) == b"\x81"
    n_pulses = len(bench.pulses())
    bench.wait(200)
    assert len(bench.pulses()) == n_pulses
    assert bench.give(encode_update([ListPulse(1, 200, 20)] * 2)[:1]) == b"\x40"


def test_one_shot_list_plays_once_an_update():
    bench = Bench()
    bench.give(encode_init([1], [], 0, 5, 0))
    for n_pulses in (1, 2):
        assert bench.give(encode_update([ListPulse(1, 250, 20)]), 100) == b"\x41"
        assert len(bench.pulses()) == n_pulses


@pytest.mark.parametrize(
    ("fault", "answers", "n_pulses"),
    [
        ("lost-ack", [b"\xc1", b"", b"\xc1"], 3),
        ("late-ack", [b"\xc1", b"", b"\xc1"], 3),
        ("duplicate-ack", [b"\xc1", b"\xc1\xc1", b"\xc1"], 3),
        ("crc-error", [b"\xc1", b"\xc0", b"\xc1"], 2),
        ("e-stop", [b"\xc1", b"\xc1", b"\xc1"], 1),
        ("reset", [b"\xc1", b"", b"\xc1"], 2),
        ("hang", [b"\xc1", b"", b""], 1),
    ],
)
def test_faults_of_the_box(fault, answers, n_pulses):
    bench = Bench((fault, 1))
    said = [b"" if bench.box.dead else bench.give(PULSE, 20) for _ in range(3)]
    assert said == answers and len(bench.pulses()) == n_pulses
    assert bench.wait(200) == (b"\xc1" if fault == "late-ack" else b"")


# --- device against the virtual box -----------------------------------------------------------------------------------------------
@pytest.fixture
def connect(tmp_path):
    """`connect(*twin_arguments) -> (device, twin)`: opened, prepared and armed, every byte through the wire check."""
    contexts, devices = [], []

    def connect(*arguments):
        context = running_twin(tmp_path, "sciencemode1", *arguments)
        contexts.append(context)
        twin = context.__enter__()
        check = for_driver("sciencemode1")

        def write(fd, data):
            pulse = check._decode(data)
            check.due = pulse
            return check.write(fd, data)

        device = ScienceMode1(twin.port, write=write)
        devices.append(device)
        device.open()
        device.prepare([TRAIN, replace(TRAIN, channel=3, phase_width_us=250)])
        device.arm()
        return device, twin

    yield connect
    for device in devices:
        device.close()
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.mark.safety("A7")
def test_fifty_pulses(connect):
    device, twin = connect()
    asked = []
    for i in range(50):
        train, current_ua = i % 5 == 4, 2000 * (1 + i % 10)
        number = device.trigger(train, current_ua)
        asked.append((3 if train else 1, current_ua, 250 if train else 500))
        assert number == (device._number - 1) % 256
        assert [(it.kind, it.number, it.code) for it in events_within(device, 1)] == [(Say.ACK, number, 1)]
        time.sleep(0.01)
    device.close()
    assert device.status()["stop_answered"]
    pulses, refused, summary = twin.end()
    assert [(p["channel"], p["current_ua"], p["phase_width_us"]) for p in pulses] == asked
    assert refused == [] and summary["outside_limits"] == summary["unbalanced"] == 0


@pytest.mark.safety("A12")
@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("channel", 9, "8"),
        ("current_ma", 21.0, "20000"),
        ("current_ma", 128.0, "126000"),
        ("phase_width_us", 19, "20"),
        ("phase_width_us", 501, "500"),
        ("interphase_gap_us", 0, "100"),
        ("interphase_gap_us", 99, "100"),
        ("pulse_rate_hz", 100.5, "100"),
    ],
)
def test_limits_are_refused_by_name(field, value, nearest):
    name = "current_ua" if field == "current_ma" else field
    with pytest.raises(LimitError, match=rf"^{name}.*nearest is {nearest}|^{name}.*{nearest}, which is the nearest"):
        ScienceMode1("/nowhere").prepare([replace(TRAIN, **{field: value})])


@pytest.mark.safety("A13")
def test_every_prepared_frame_before_the_wire_check():
    device = ScienceMode1("/nowhere")
    trains = [
        replace(TRAIN, channel=channel, current_ma=60.0, phase_width_us=width_us) for channel in range(1, 9) for width_us in (20, 333, 500)
    ]
    device.prepare(trains)
    for index, train in enumerate(trains):
        assert sorted(device._frames[index]) == list(range(2000, 60_001, 2000))
        for current_ua, frames in device._frames[index].items():
            assert [wire.decode(frame) for frame in frames] == [Pulse(train.channel, current_ua, train.phase_width_us, 100)]
    assert device.status()["n_prepared_frames"] == 24 * 30


@pytest.mark.safety("E3")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("lost-ack@2", []),
        ("duplicate-ack@2", [(Say.ACK, True), (Say.ACK, False)]),
        ("crc-error@2", [(Say.DEVICE_ERROR, True)]),
        ("reset@2", []),
        ("e-stop@2", [(Say.ACK, True)]),
    ],
)
def test_fault_becomes_its_event(connect, fault, said):
    device, twin = connect("--fault", fault)
    for _ in range(2):
        number = device.trigger(0, 2000)
        assert [(it.kind, it.number) for it in events_within(device, 1)] == [(Say.ACK, number)]
    number = device.trigger(0, 2000)
    events = events_within(device, 0.15, 3)
    assert [(it.kind, it.number == number) for it in events] == said
    assert all(it.text for it in events)
    device.disarm()
    assert device.status()["stop_answered"]
    assert len(twin.end()[0]) == (3 if fault.startswith(("lost", "duplicate")) else 2)


@pytest.mark.safety("E3")
@pytest.mark.parametrize("fault", ["lost-ack@0", "late-ack@0"])
def test_an_answer_that_never_came_is_not_taken_from_the_next_pulse(connect, fault):
    device, _ = connect("--fault", fault)
    device.trigger(0, 2000)
    time.sleep(0.05)
    device.stop()
    device.disarm()
    time.sleep(0.2)
    assert [(it.kind, it.number) for it in device.read_events()] == ([(Say.ACK, -1)] if fault.startswith("late") else [])
    device.arm()
    number = device.trigger(0, 2000)
    assert [(it.kind, it.number) for it in events_within(device, 1)] == [(Say.ACK, number)]


@pytest.mark.safety("B1")
def test_answers_of_many_stops_do_not_touch_the_pulse_after_them(connect):
    device, _ = connect()
    for _ in range(5):
        device.stop()
    device.arm()
    number = device.trigger(0, 2000)
    assert [(it.kind, it.number) for it in events_within(device, 1)] == [(Say.ACK, number)]


@pytest.mark.safety("B1", "F2")
def test_a_list_left_running_is_stopped_by_the_next_open(tmp_path):
    with running_twin(tmp_path, "sciencemode1") as twin:
        fd = os.open(twin.port, os.O_RDWR | os.O_NOCTTY)
        os.write(fd, encode_init([1], [], 0, 5, 20) + encode_update([ListPulse(1, 250, 20)]))
        time.sleep(0.2)
        os.close(fd)  # its program is gone, and it plays on
        device = ScienceMode1(twin.port)
        device.open()
        began_ns = time.monotonic_ns()
        time.sleep(0.2)
        device.close()
        pulses, refused, _ = twin.end()
    assert len(pulses) > 3 and refused == []
    assert all(p["pulse_ns"] < began_ns for p in pulses)


def test_another_program_as_client_of_the_virtual_box(tmp_path):
    """As the EMA project's program does it: a command, then one byte read. The bytes are the maker's."""
    with running_twin(tmp_path, "sciencemode1", "--max-current-ma", "130") as twin:
        fd = os.open(twin.port, os.O_RDWR | os.O_NOCTTY)
        answers = b""
        for data in (*(data for _, data in SINGLES), "C0", *(data for _, data in INITS), "C0"):
            os.write(fd, bytes.fromhex(data))
            answers += os.read(fd, 1)
        os.close(fd)
        pulses, refused, summary = twin.end()
    assert answers == b"\xc1\xc1\x81\x01\x01\x81" and refused == [] and summary["outside_limits"] == 0
    assert [(p["channel"], p["phase_width_us"], p["current_ua"]) for p in pulses] == [(3, 200, 120_000), (6, 221, 55_000)]


@pytest.mark.safety("E6")
def test_it_says_no_more_than_it_knows(connect):
    device, _ = connect()
    device.disarm()
    assert device.identify() == "RehaStim1 - -"
    assert "no question is known that says more" in device.status()["identity"]


@pytest.mark.safety("E6")
@pytest.mark.parametrize(
    ("says", "error", "why"),
    [
        (b"\x81\x00", DeviceMismatchError, "2 bytes, not 1"),
        (b"\x80", DeviceMismatchError, "refuses a stop"),
        (b"\xc1", DeviceMismatchError, "something answers"),
        (b"\xc0", DeviceMismatchError, "something answers"),  # an echo
        (b"\xf0\x81\x51\x81\x56\x07\x01\x01\x0f", DeviceMismatchError, "9 bytes"),  # a RehaStim2 that introduces itself
        (b"hello\r\n", DeviceMismatchError, "something answers"),
        (b"", AckTimeoutError, "did not answer"),
    ],
)
def test_whoever_answers_otherwise_is_refused(says, error, why):
    master_fd, slave_fd = os.openpty()
    script = f"import os\nwhile os.read(0, 99): os.write(0, {says!r})"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=master_fd)
    try:
        with pytest.raises(error, match=why):
            ScienceMode1(os.ttyname(slave_fd)).open()
    finally:
        child.kill()
        child.wait()
        os.close(master_fd)
        os.close(slave_fd)


def test_a_box_that_refuses_its_stop_is_not_armed(connect, monkeypatch):
    device, _ = connect()
    device.disarm()
    monkeypatch.setattr(device, "_await", lambda *_: Answer(2, False))
    with pytest.raises(ProtocolError, match="refuses a stop"):
        device.arm()
    with pytest.raises(NotArmedError):
        device.trigger(0, 2000)


@pytest.mark.parametrize(
    ("byte", "kind", "text"),
    [
        (b"\x01", Say.PROTOCOL_ERROR, "answer to a list, which was not sent: INIT"),
        (b"\x40", Say.PROTOCOL_ERROR, "answer to a list, which was not sent: UPDATE"),
        (b"\x80", Say.DEVICE_ERROR, "it refuses a stop"),
        (b"\xc0", Say.DEVICE_ERROR, "box refuses a pulse: transfer or value"),
        (b"\xc1", Say.ACK, "an answer to no pulse of ours"),
    ],
)
def test_what_is_said_unasked(byte, kind, text):
    device = ScienceMode1("/nowhere")
    device._take(device._deframer.feed(byte))
    [event] = device.read_events()
    assert (event.kind, event.number, event.text) == (kind, -1, text)


@pytest.mark.safety("C1", "E1")
def test_hung_box(connect):
    device, twin = connect("--fault", "hang@1")
    device.trigger(0, 2000)
    assert events_within(device, 1)
    device.trigger(0, 2000)
    assert events_within(device, 0.15) == []
    device.stop()
    device.disarm()
    assert not device.status()["stop_answered"]
    with pytest.raises(AckTimeoutError):
        device.arm()
    assert len(twin.end()[0]) == 1


@pytest.mark.safety("C2", "E5")
def test_stop_drops_what_a_stalled_box_has_not_read(connect):
    device, twin = connect()
    os.kill(twin.process.pid, signal.SIGSTOP)
    for _ in range(5):
        device.trigger(0, 2000)
    device.stop()
    os.kill(twin.process.pid, signal.SIGCONT)
    deadline_s = time.monotonic() + 5
    while not device.status()["stop_answered"] and time.monotonic() < deadline_s:
        assert device.read_events() == []
        time.sleep(0.005)
    assert device.status()["stop_answered"] and twin.end()[2]["pulses"] == 0


@pytest.mark.safety("C1")
@pytest.mark.parametrize("n_bytes", range(1, 4))
def test_torn_pulse_does_not_hide_the_stop(connect, n_bytes):
    device, twin = connect()
    os.write(device.fileno(), PULSE[:n_bytes])
    device.disarm()
    assert device.status()["stop_answered"]
    _, refused, summary = twin.end()
    assert len(refused) == 1 and summary["pulses"] == 0


def test_unpack_refuses_nothing_by_accident():
    with pytest.raises(RefusedError, match="check"):
        virtual.read_single(bytes((PULSE[0] ^ 4, *PULSE[1:])))
