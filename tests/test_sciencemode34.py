"""RehaMove3/P24 driver: codec against the makers' vectors and a peer, device against the virtual box, whose log is the judge."""

import asyncio
import errno
import os
import random
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import tty
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from controller.wire import for_driver
from drivers.base import (
    AckTimeoutError,
    DeviceEventKind,
    DeviceMismatchError,
    DeviceNotFoundError,
    DriverError,
    LimitError,
    NotArmedError,
    PortLostError,
    ProtocolError,
    PulseTrain,
    ShortWriteError,
    WireError,
)
from drivers.simulated import twin
from drivers.simulated import virtual_sciencemode as judge
from drivers.stimulators import STIMULATORS, load
from drivers.stimulators.sciencemode34 import (
    MAX_FRAME_BYTES,
    Command,
    Deframer,
    Frame,
    MlState,
    MlTrain,
    ScienceMode34,
    decode_battery_status,
    decode_ll_channel_config,
    decode_ml_get_current_data,
    encode_frame,
    encode_ll_channel_config,
    encode_ll_init,
    encode_ll_stop,
    encode_ml_get_current_data,
    encode_ml_init,
    encode_ml_stop,
    encode_ml_update,
    event_of,
    pulse_points,
)
from drivers.stimulators.serial_device import word
from tests.test_virtual_sciencemode import Bench, running_twin

TRAIN = PulseTrain(
    channel=1,
    current_ma=20.0,
    phase_width_us=500,
    interphase_gap_us=100,
    pulse_rate_hz=50.0,
    duration_ms=500,
    ramp_up_ms=50,
    taper_ms=100,
)

VECTORS = [  # RehaMove3 protocol 2018-04-21 section 7, all seven; then all eleven captures of science-mode-4 0.0.23
    (encode_ll_init(0), "F0 81 55 81 58 81 55 81 55 00 00 00 0F"),
    (
        encode_ll_channel_config(1, 1, pulse_points(20_000, 250, 100)),
        "F0 81 55 81 4E 81 D3 81 AF 04 02 82 81 5A A5 50 00 06 44 B0 00 81 5A A4 10 00 0F",
    ),
    (encode_ll_stop(2), "F0 81 55 81 59 81 9C 81 78 08 04 0F"),
    (encode_ml_init(0), "F0 81 55 81 58 81 75 81 29 00 1E 00 0F"),
    (
        encode_ml_update(1, {1: MlTrain(20_000, 3, pulse_points(20_000, 200, 100)), 2: MlTrain(10_000, 3, pulse_points(10_000, 100, 100))}),
        "F0 81 55 81 7E 81 5D 81 42 04 20 03 23 00 50 0C 85 50 00 06 44 B0 00 0C 84 10 00 23 00 28 06 45 00 00 06 44 B0 00 06 44 60 00 0F",
    ),
    (encode_ml_get_current_data(2, 2), "F0 81 55 81 58 81 16 81 94 08 24 02 0F"),
    (encode_ml_stop(3), "F0 81 55 81 59 81 14 81 18 0C 22 0F"),
    (encode_frame(1, Command.GET_STIM_STATUS), "f0 81 55 81 59 81 4e 81 0c 04 3e 0f"),
    (encode_frame(2, Command.GET_DEVICE_ID), "f0 81 55 81 59 81 aa 81 2b 08 34 0f"),
    (encode_frame(3, Command.GET_EXTENDED_VERSION), "f0 81 55 81 59 81 18 81 78 0c 44 0f"),
    (encode_ll_init(4), "f0 81 55 81 58 81 16 81 36 10 00 00 0f"),
    (
        encode_ll_channel_config(5, 1, pulse_points(25_000, 200, 100)),
        "f0 81 55 81 4c 81 19 81 b5 14 02 82 0c 85 78 00 06 44 b0 00 0c 83 e8 00 0f",
    ),
    (
        encode_ll_channel_config(6, 5, pulse_points(25_000, 250, 0)),
        "f0 81 55 81 42 81 13 81 1c 18 02 91 81 5a a5 78 00 81 5a a3 e8 00 0f",
    ),
    (encode_ll_stop(7), "f0 81 55 81 59 81 53 81 cf 1c 04 0f"),
    (encode_ml_init(8, stop_all_on_error=True), "f0 81 55 81 58 81 e3 81 ce 20 1e 01 0f"),
    (
        encode_ml_update(9, {1: MlTrain(20_000, 3, pulse_points(25_000, 200, 100))}),
        "f0 81 55 81 49 81 a6 81 22 24 20 01 23 00 50 0c 85 78 00 06 44 b0 00 0c 83 e8 00 0f",
    ),
    (encode_ml_get_current_data(10, 4), "f0 81 55 81 58 81 f0 81 94 28 24 04 0f"),
    (encode_ml_stop(11), "f0 81 55 81 59 81 12 81 fe 2c 22 0f"),
]

frames_strategy = st.builds(Frame, st.integers(0, 63), st.integers(0, 1023), st.binary(max_size=60))
wire_like_strategy = st.lists(st.sampled_from(b"\xf0\x0f\x81\x55\x58\x59\xa5\x00"), max_size=400).map(bytes)


# --- codec ------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("ours", "theirs"), VECTORS)
def test_makers_and_captured_vectors(ours, theirs):
    assert ours == bytes.fromhex(theirs)
    deframer = Deframer()
    assert deframer.feed(ours) == [judge.unwrap(ours)] and deframer.n_bad_frames == 0
    bed = Bench(model="p24")  # and a box takes it, in the state that it needs
    number, command, _ = judge.unwrap(ours)
    if command in (2, 4, 32, 34, 36):
        bed.init(0 if command < 30 else 30)
    bed.give(ours, 50)
    [(answered, answer, data)] = bed.answers()
    assert (answered, answer, data[0]) == (number, command + 1, 0)


def random_points(dice):
    if dice.random() < 0.3:
        return pulse_points(dice.randint(1, 260) * 500, dice.randint(10, 4095), dice.choice((0, dice.randint(10, 4095))))
    return tuple((dice.randint(10, 4095), dice.randint(-260, 260) * 500) for _ in range(dice.randint(1, 16)))


def random_trains(dice):
    """Whole milliseconds, since science-mode-4 knows no others; slow enough that the channels have room beside each other."""
    channels = dice.sample(range(1, 9), dice.choice((0, 1, 1, 2, 3, 8)))
    trains = {}
    for channel in channels:
        points = random_points(dice)
        fastest_ms = -(-len(channels) * (sum(us for us, _ in points) + 60) // 999)
        trains[channel] = MlTrain(dice.choice((fastest_ms, dice.randint(fastest_ms, 16_383))) * 1000, dice.randint(0, 15), points)
    return trains


def random_command(dice):
    """The call of science-mode-4, its arguments in our words, and our frame for its packet number."""
    kinds = ["pulse"] * 12 + ["trains"] * 6 + ["ll_init", "ll_stop", "ml_init", "ml_stop", "ml_data", "id", "version", "status", "reset"]
    match dice.choice(kinds):
        case "pulse":
            channel, points = dice.randint(1, 8), random_points(dice)
            return "pulse", (channel, points), lambda number: encode_ll_channel_config(number, channel, points)
        case "trains":
            trains = random_trains(dice)
            return "trains", (trains,), lambda number: encode_ml_update(number, trains)
        case "ml_init":
            stop_all = dice.random() < 0.5
            return "ml_init", (stop_all,), lambda number: encode_ml_init(number, stop_all)
        case kind:
            questions = {"id": Command.GET_DEVICE_ID, "version": Command.GET_EXTENDED_VERSION, "status": Command.GET_STIM_STATUS}
            ours = {
                "ll_init": encode_ll_init,
                "ll_stop": encode_ll_stop,
                "ml_stop": encode_ml_stop,
                "ml_data": lambda number: encode_ml_get_current_data(number, 4),
                "reset": lambda number: encode_frame(number, Command.RESET),
            }
            return kind, (), ours.get(kind) or (lambda number: encode_frame(number, questions[kind]))


async def play_with_science_mode_4(port, commands):
    """Each command by its public method; all but a pulse wait for their answer."""
    from science_mode_4.device_p24 import DeviceP24
    from science_mode_4.low_level.low_level_types import LowLevelHighVoltageSource, LowLevelMode
    from science_mode_4.mid_level.mid_level_types import MidLevelChannelConfiguration
    from science_mode_4.protocol.channel_point import ChannelPoint
    from science_mode_4.protocol.types import Channel, Connector
    from science_mode_4.utils.serial_port_connection import SerialPortConnection

    def theirs(points):
        return [ChannelPoint(duration_us, current_ua / 1000) for duration_us, current_ua in points]

    connection = SerialPortConnection(port, write_timeout_ins_s=10)
    connection.open()
    try:
        device = DeviceP24(connection)
        general, low, mid = device.get_layer_general(), device.get_layer_low_level(), device.get_layer_mid_level()
        calls = {
            "ll_init": lambda: low.init(LowLevelMode.NO_MEASUREMENT, LowLevelHighVoltageSource.STANDARD),
            "ll_stop": low.stop,
            "ml_init": mid.init,
            "ml_stop": mid.stop,
            "ml_data": mid.get_current_data,
            "id": general.get_device_id,
            "version": general.get_version,
            "status": general.get_stim_status,
            "reset": general.reset,
            "trains": lambda trains: mid.update(
                [
                    MidLevelChannelConfiguration(True, it.ramp, it.period_us // 1000, theirs(it.points)) if it else None
                    for it in map(trains.get, range(1, 9))
                ]
            ),
        }
        for kind, arguments, _ in commands:
            if kind == "pulse":
                channel, points = arguments
                low.send_channel_config(True, Channel((channel - 1) % 4), Connector((channel - 1) // 4), theirs(points))
            else:
                await calls[kind](*arguments)
    finally:
        connection.close()


def test_same_bytes_as_science_mode_4():
    """Its own classes write to a pty, in a thread of their own; here, at the other end, its waiting calls are answered."""
    dice = random.Random(20261123)
    commands = [random_command(dice) for _ in range(1400)]
    assert {kind for kind, _, _ in commands} >= {"pulse", "trains", "ml_init", "ml_stop", "ml_data", "reset"}
    # what it reads out of an answer: state of the mid level; identity, status, version; else a result alone
    answers = {36: bytes((0, 4, 0, 0, 0, 0, 0)), 52: b"\0CALMTWIN08", 62: b"\0\0\1", 68: bytes((0, 1, 0, 0, 4, 0, 0, 0, 0, 0, 0, 1, 1))}
    master_fd, slave_fd = os.openpty()
    heard, deframer = [], Deframer()
    try:
        tty.setraw(slave_fd)
        with ThreadPoolExecutor(1) as executor:
            session = play_with_science_mode_4(os.ttyname(slave_fd), commands)
            client = executor.submit(asyncio.run, asyncio.wait_for(session, 120))
            while not client.done() or select.select([master_fd], [], [], 0)[0]:
                if not select.select([master_fd], [], [], 0.05)[0]:
                    continue
                heard.append(os.read(master_fd, 65536))
                for number, command, _ in deframer.feed(heard[-1]):
                    if command != Command.LL_CHANNEL_CONFIG:
                        os.write(master_fd, encode_frame(number, command + 1, answers.get(command, b"\0")))
            client.result()
    finally:
        os.close(master_fd)
        os.close(slave_fd)
    theirs = b"".join(heard)
    for i, (kind, arguments, encode) in enumerate(commands, 1):  # its packet numbers begin with 1
        ours = encode(i % 64)
        assert theirs[: len(ours)] == ours, (i, kind, arguments)
        theirs = theirs[len(ours) :]
    assert not theirs and deframer.n_bad_frames == 0


points_strategy = st.lists(st.tuples(st.integers(10, 4095), st.integers(-260, 260).map(lambda n: n * 500)), min_size=1, max_size=16).map(
    tuple
)
trains_strategy = st.dictionaries(
    st.integers(1, 8),
    st.builds(
        MlTrain,
        st.one_of(st.integers(300, 32_766).map(lambda n: n * 500), st.integers(600, 32_766).map(lambda n: n * 250)),
        st.integers(0, 15),
        points_strategy,
    ),
)


@given(st.integers(0, 63), trains_strategy)
def test_box_reads_the_trains_that_were_meant(number, trains):
    busy_ms = sum((sum(us for us, _ in points) + 60) * 1000 / period_us for period_us, _, points in trains.values())
    assume(busy_ms < 998)
    got_number, command, data = judge.unwrap(encode_ml_update(number, trains, fine_period=True))
    assert (got_number, command) == (number, 32)
    read = Bench(model="p24").box._read_update(number, data, 0, 0)
    expected = {it: (train.period_us * 1000, train.ramp, [(us, ua // 500) for us, ua in train.points]) for it, train in trains.items()}
    assert {it: (train.period_ns, train.ramp, train.points) for it, train in read.items()} == expected


def test_quarters_of_a_millisecond_set_the_flag():
    """20.25 ms are 81 quarters; the flag is bit 0 of the word (`double_period_accuracy`). Halves never set it, so all boxes read them."""
    data = judge.unwrap(encode_ml_update(0, {1: MlTrain(20_250, 0, ((200, 500),))}, fine_period=True))[2]
    assert data[:4] == bytes((1, 0, 0, 81 << 1 | 1))
    halves = {1: MlTrain(20_500, 0, ((200, 500),))}
    assert encode_ml_update(0, halves, fine_period=True) == encode_ml_update(0, halves)


ML_POINTS = pulse_points(20_000, 250, 100)


@pytest.mark.parametrize(
    ("channel", "train", "fine_period", "words"),
    [
        (0, MlTrain(20_000, 0, ML_POINTS), True, "channel = 0 .* nearest is 1"),
        (9, MlTrain(20_000, 0, ML_POINTS), True, "channel = 9 .* nearest is 8"),
        (1, MlTrain(20_000, 16, ML_POINTS), True, "ramp = 16 .* nearest is 15"),
        (1, MlTrain(20_000, -1, ML_POINTS), True, "ramp = -1 .* nearest is 0"),
        (1, MlTrain(20_250, 0, ML_POINTS), False, "period_us = 20250 .* nearest is 20000"),
        (1, MlTrain(20_300, 0, ML_POINTS), False, "period_us = 20300 .* nearest is 20500"),
        (1, MlTrain(20_300, 0, ML_POINTS), True, "period_us = 20300 .* nearest is 20250"),
        (1, MlTrain(16_383_500, 0, ML_POINTS), False, "period_us = 16383500 .* nearest is 16383000"),
        (1, MlTrain(20_000_000, 0, ML_POINTS), True, "period_us = 20000000 .* nearest is 16383000"),
        (1, MlTrain(8_191_750, 0, ML_POINTS), True, "period_us = 8191750 .* nearest is 8192000"),
        (1, MlTrain(0, 0, ML_POINTS), False, "period_us = 0 .* nearest is 500"),
        (1, MlTrain(0, 0, ML_POINTS), True, "period_us = 0 .* nearest is 250"),
        (1, MlTrain(20_000, 0, ()), True, "points = 0 .* nearest is 1"),
        (1, MlTrain(20_000, 0, ML_POINTS * 6), True, "points = 18 .* nearest is 16"),
        (1, MlTrain(20_000, 0, ((9, 500),)), True, "duration_us = 9 .* nearest is 10"),
        (1, MlTrain(20_000, 0, ((4096, 500),)), True, "duration_us = 4096 .* nearest is 4095"),
        (1, MlTrain(20_000, 0, ((200, 20_300),)), True, "current_ua = 20300 .* nearest is 20500"),
        (1, MlTrain(20_000, 0, ((200, 131_000),)), True, "current_ua = 131000 .* nearest is 130000"),
        (1, MlTrain(500, 0, ML_POINTS), True, "1320.0 ms of each second, at most 999: periods 1.322 times"),
    ],
)
def test_illegal_trains_are_not_encoded(channel, train, fine_period, words):
    with pytest.raises(LimitError, match=words):
        encode_ml_update(0, {channel: train}, fine_period)


def test_channels_together_must_leave_room():
    """The library's own sum: points and 60 µs over the period, rounded up, under 1000 ms in a second."""
    half = MlTrain(1000, 0, ((439, 500),))  # 499 ms
    assert encode_ml_update(0, {1: half, 2: half})
    with pytest.raises(LimitError, match=r"1000\.0 ms"):
        encode_ml_update(0, {1: half, 2: half._replace(points=((441, 500),))})


@pytest.mark.parametrize("selection", [1, 3, 5])
def test_other_selections_are_not_asked_for(selection):
    with pytest.raises(LimitError, match="selection"):
        encode_ml_get_current_data(0, selection)


@pytest.mark.parametrize(
    ("data", "state"),
    [
        ("00 02 00", MlState(False, None, {})),
        ("00 02 1a", MlState(True, None, {2: "electrode error", 4: "electrode error"})),
        ("00 04 00 00000000", MlState(False, frozenset(), {})),
        ("00 04 81 10003200", MlState(True, frozenset({1, 8}), {2: "electrode error", 5: "pulse timeout", 6: "pulse current too low"})),
        ("00 04 02 0f000000", MlState(True, frozenset({2}), {1: "unknown state 15"})),
    ],
)
def test_state_of_the_mid_level(data, state):
    assert decode_ml_get_current_data(bytes.fromhex(data)) == state


@pytest.mark.parametrize("data", ["", "07 04 00 00000000", "00", "00 02", "00 02 00 00", "00 04 00 000000", "00 03 00 00"])
def test_what_is_no_state_of_the_mid_level(data):
    with pytest.raises(ProtocolError, match="no state of the mid level"):
        decode_ml_get_current_data(bytes.fromhex(data))


@pytest.mark.parametrize("stop_all", [False, True])
def test_state_as_the_box_tells_it(stop_all):
    bed = Bench(fault=("electrode-error", 2), model="p24")
    bed.init(30, judge.unwrap(encode_ml_init(0, stop_all))[2])
    bed.give(encode_ml_update(1, dict.fromkeys((2, 3, 7), MlTrain(20_000, 0, ML_POINTS))), 100)
    bed.answers()
    assert decode_ml_get_current_data(bed.state()) == MlState(
        not stop_all, frozenset() if stop_all else frozenset((2, 3)), {7: "electrode error"}
    )


def test_battery():
    assert decode_battery_status(bytes.fromhex("00 50 0f3c")) == (80, 3900)
    for data in ("", "00", "00 50 0f", "00 50 0f3c 00", "0b 50 0f3c"):
        with pytest.raises(ProtocolError, match="battery"):
            decode_battery_status(bytes.fromhex(data))


@given(frames_strategy)
def test_frame_survives_the_wire(frame):
    raw = encode_frame(*frame)
    assert Deframer().feed(raw) == [frame]
    assert judge.unwrap(raw) == frame and judge.wrap(*frame) == raw


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=3000), wire_like_strategy), frames_strategy)
def test_deframer_takes_any_bytes_and_finds_the_next_frame(noise, frame):
    deframer = Deframer()
    deframer.feed(noise)
    assert len(deframer._buffer) < MAX_FRAME_BYTES
    assert frame in deframer.feed(encode_frame(*frame))
    assert deframer.n_bad_frames <= len(noise)


@settings(deadline=None)
@given(st.lists(st.one_of(frames_strategy.map(lambda it: encode_frame(*it)), wire_like_strategy), max_size=6), st.data())
def test_deframer_does_not_care_how_bytes_are_cut(pieces, data):
    stream = b"".join(pieces)
    whole, cut = Deframer(), Deframer()
    expected = whole.feed(stream)
    place = data.draw(st.integers(0, len(stream)))
    assert cut.feed(stream[:place]) + cut.feed(stream[place:]) == expected
    single = Deframer()
    assert [frame for byte in stream for frame in single.feed(bytes((byte,)))] == expected
    assert cut.n_bad_frames == single.n_bad_frames == whole.n_bad_frames


@given(frames_strategy, st.data())
def test_damaged_byte_is_never_taken_for_another_frame(frame, data):
    raw = bytearray(encode_frame(*frame))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    deframer = Deframer()
    after = Frame(5, 3, b"\0")
    assert deframer.feed(bytes(raw) + encode_frame(*after)) == [after]
    assert deframer.n_bad_frames >= 1


def test_deframer_counts_each_bad_frame():
    good, bad = encode_ll_stop(1), encode_ll_stop(1).replace(b"\x04\x0f", b"\x05\x0f")
    deframer = Deframer()
    frames = deframer.feed(bad + good + b"noise" + good[:7] + good + bad + bad)
    assert len(frames) == 2
    assert deframer.n_bad_frames == 5 and deframer.fault == "checksum"


@pytest.mark.safety("A12")
@pytest.mark.parametrize("points", [(), ((500, 500),) * 17, ((9, 500),), ((4096, 500),), ((20, 130_500),), ((20, 501),)])
def test_illegal_points_are_not_encoded(points):
    with pytest.raises(LimitError):
        encode_ll_channel_config(0, 1, points)


@pytest.mark.parametrize(("number", "command", "data"), [(64, 0, b""), (-1, 0, b""), (0, 1024, b""), (0, 0, bytes(1190))])
def test_what_does_not_fit_is_not_encoded(number, command, data):
    with pytest.raises(ValueError, match=r"fit|longer"):
        encode_frame(number, command, data)


@pytest.mark.parametrize(
    ("frame", "kind", "code", "text"),
    [
        (Frame(9, 3, b"\0\0"), DeviceEventKind.ACK, 0, "pulse done"),
        (Frame(9, 3, b"\x0a\x02"), DeviceEventKind.ELECTRODE_ERROR, 10, "electrode error on channel 3"),
        (Frame(9, 3, b"\x0a\x11\x00"), DeviceEventKind.ELECTRODE_ERROR, 10, "electrode error on channel 6"),
        (Frame(9, 3, b"\x07\0"), DeviceEventKind.DEVICE_ERROR, 7, "LL_CHANNEL_CONFIG: not initialised (7)"),
        (Frame(9, 3, b"\xc8"), DeviceEventKind.DEVICE_ERROR, 200, "LL_CHANNEL_CONFIG: unknown result (200)"),
        (Frame(9, 3, b""), DeviceEventKind.PROTOCOL_ERROR, -1, "unexpected frame: command 3, 0 bytes"),
        (Frame(9, 33, b"\x02"), DeviceEventKind.DEVICE_ERROR, 2, "ML_UPDATE: parameter error (2)"),
        (Frame(9, 31, b"\x07"), DeviceEventKind.DEVICE_ERROR, 7, "ML_INIT: not initialised (7)"),
        (Frame(9, 66, b"\x08"), DeviceEventKind.DEVICE_ERROR, 8, "box reports: high voltage error (8)"),
        (Frame(9, 67, b"\x0b"), DeviceEventKind.DEVICE_ERROR, 11, "box reports: invalid command (11)"),
        (Frame(9, 500, b"\0"), DeviceEventKind.PROTOCOL_ERROR, 0, "unexpected frame: command 500, 1 bytes"),
    ],
)
def test_what_a_frame_means(frame, kind, code, text):
    event = event_of(frame)
    assert (event.kind, event.number, event.code, event.text) == (kind, 9, code, text)


@pytest.mark.parametrize(
    "frame",
    [Frame(1, 5, b"\0"), Frame(1, 5, b"\x07"), Frame(1, 63, b"\0\1\6"), Frame(1, 1, b"\0"), Frame(1, 33, b"\0"), Frame(1, 35, b"\7")],
)
def test_mere_confirmations_are_no_events(frame):
    assert event_of(frame) is None


# --- device without a port --------------------------------------------------------------------------------------------------------
def test_registry():
    assert {"p24", "rehamove3"} <= set(STIMULATORS)
    assert load("rehamove3", "/nowhere").limits.model == "RehaMove3"
    assert load("p24", "/nowhere").limits.n_channels == 8
    with pytest.raises(DeviceNotFoundError, match="rehamove3"):
        load("toaster", "/nowhere")


def test_small_process_stays_small():
    code = (
        "import sys; from drivers.stimulators import load; load('rehamove3', '/nowhere');"
        "print(sorted({'numpy', 'scipy', 'numba', 'pylsl', 'serial'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.safety("A12")
@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("channel", 0, "1"),
        ("channel", 5, "4"),
        ("current_ma", 130.5, "130000"),
        ("current_ma", 20.3, "20500"),
        ("current_ma", 0.0, "500"),
        ("current_ma", -5.0, "500"),
        ("current_ma", float("nan"), "500"),
        ("current_ma", float("inf"), "130000"),
        ("phase_width_us", 9, "10"),
        ("phase_width_us", 4096, "4095"),
        ("phase_width_us", 200.5, "200"),
        ("interphase_gap_us", 9, "10"),
        ("interphase_gap_us", -1, "10"),
        ("interphase_gap_us", 4096, "4095"),
        ("pulse_rate_hz", 0.0, "500"),
        ("pulse_rate_hz", 500.1, "500"),
        ("pulse_rate_hz", float("nan"), "500"),
    ],
)
def test_limits_are_refused_by_name(field, value, nearest):
    name = "current_ua" if field == "current_ma" else field
    with pytest.raises(LimitError, match=rf"^{name}.*{nearest}"):
        ScienceMode34("/nowhere").prepare([replace(TRAIN, **{field: value})])


def test_pulses_must_fit_between_pulses():
    with pytest.raises(LimitError, match="pulse_rate_hz"):
        ScienceMode34("/nowhere").prepare([replace(TRAIN, phase_width_us=4095, pulse_rate_hz=122.0)])


def test_failed_prepare_keeps_what_was_prepared():
    device = ScienceMode34("/nowhere")
    assert len(device.prepare([TRAIN])) == 40 * 64
    with pytest.raises(LimitError):
        device.prepare([TRAIN, replace(TRAIN, current_ma=200.0)])
    assert device.status()["n_prepared_frames"] == 40 * 64


@pytest.mark.safety("A7", "A13")
@pytest.mark.parametrize("gap_us", [0, 10, 100])
def test_every_prepared_frame_before_an_independent_judge(gap_us):
    device = ScienceMode34("/nowhere", "p24")
    device.prepare([replace(TRAIN, channel=channel, current_ma=60.0, interphase_gap_us=gap_us) for channel in (1, 8)])
    for index, channel in ((0, 1), (1, 8)):
        assert sorted(device._frames[index]) == list(range(500, 60_001, 500))
        box = judge.Box("p24", 0, twin.Judge(), bytes, dict, bytes)
        for current_ua, frames in device._frames[index].items():
            for number, frame in enumerate(frames):
                got_number, command, data = judge.unwrap(frame)
                got_channel, points, result = box._read_config(data)
                assert (got_number, command, got_channel, result) == (number, 2, channel, 0)
            shape = twin.shape_of(points)
            assert (shape.current_ua, shape.phase_width_us, shape.interphase_gap_us) == (current_ua, 500, gap_us)
            assert shape.balanced and points[0][1] > 0
            assert decode_ll_channel_config(data) == (channel, pulse_points(current_ua, 500, gap_us))


def test_closed_device_refuses_and_stays_quiet():
    device = ScienceMode34("/nowhere")
    device.prepare([TRAIN])
    device.stop()
    device.disarm()
    device.close()
    assert device.read_events() == []
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)
    with pytest.raises(PortLostError):
        device.arm()
    with pytest.raises(PortLostError):
        device.fileno()
    with pytest.raises(DeviceNotFoundError):
        device.open()


def test_file_is_not_a_port(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceMismatchError):
        ScienceMode34(str(tmp_path / "file")).open()


# --- device against the virtual box -----------------------------------------------------------------------------------------------
@pytest.fixture
def connect(tmp_path):
    """`connect(*twin_arguments) -> (device, twin)`: opened, prepared and armed."""
    contexts, devices = [], []

    def connect(*arguments, model="rehamove3", write=os.write):
        context = running_twin(tmp_path, model, *arguments)
        twin = context.__enter__()
        contexts.append(context)
        device = ScienceMode34(twin.port, model, write)
        devices.append(device)
        device.open()
        device.prepare([TRAIN, replace(TRAIN, channel=3, phase_width_us=250, interphase_gap_us=0)])
        device.arm()
        return device, twin

    yield connect
    for device in devices:
        device.close()
    for context in contexts:
        context.__exit__(None, None, None)


def events_within(device, seconds, n=1):
    """Events until there are `n` or time is up."""
    events, deadline_s = [], time.monotonic() + seconds
    while len(events) < n and time.monotonic() < deadline_s:
        events += device.read_events()
        time.sleep(0.002)
    return events


@pytest.mark.safety("A7")
@pytest.mark.parametrize("model", ["rehamove3", "p24"])
def test_fifty_pulses_at_50_hz(connect, model):
    device, twin = connect(model=model)
    asked, events = [], []
    next_s = time.monotonic()
    for i in range(50):
        train, current_ua = i % 5 == 4, 500 * (1 + i % 40)
        asked.append((device.trigger(train, current_ua), current_ua, 3 if train else 1, 250 if train else 500, 0 if train else 100))
        next_s += 0.02
        while (left_s := next_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.005))
            events += device.read_events()
    events += events_within(device, 0.5, 50 - len(events))
    assert [(it.kind, it.number, it.code) for it in events] == [(DeviceEventKind.ACK, it[0], 0) for it in asked]
    status = device.status()
    assert status["armed"] and status["n_bad_frames"] == 0 and status["firmware"] == ("1.0.0" if model == "p24" else "3.2.0")
    device.close()
    assert device.status()["stop_answered"]
    pulses, refused, summary = twin.end()
    fields = ("number", "current_ua", "channel", "phase_width_us", "interphase_gap_us")
    assert [tuple(it[field] for field in fields) for it in pulses] == asked
    assert all(it["balanced"] and it["hv"] for it in pulses)
    assert refused == [] and summary["pulses"] == 50 and summary["unbalanced"] == 0


@pytest.mark.safety("B1")
def test_nothing_leaves_before_arm_or_after_stop(connect):
    device, twin = connect()
    device.stop()
    device.stop()
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)
    device.arm()
    device.disarm()
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)
    device.arm()
    for train, current_ua in ((0, 20_500), (0, 0), (0, 499), (2, 500), (-1, 500)):
        with pytest.raises(LimitError):
            device.trigger(train, current_ua)
    device.close()
    device.close()
    assert twin.end()[2]["pulses"] == 0


@pytest.mark.safety("E2")
def test_trigger_is_one_write(connect):
    written = []

    def write(fd, data):
        written.append((fd, data))
        return os.write(fd, data)

    device, _ = connect(write=write)
    written.clear()
    numbers = []
    for i in range(70):
        numbers.append(device.trigger(0, 20_000))
        assert len(written) == i + 1 and written[-1][0] == device.fileno()
        assert events_within(device, 1)[0].number == numbers[-1]
    assert numbers == [(numbers[0] + i) % 64 for i in range(70)]
    written.clear()
    device.stop()
    assert len(written) == 1


@pytest.mark.safety("E2")
@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (12, ShortWriteError),
        (BlockingIOError(), ShortWriteError),
        (OSError(errno.EIO, "gone"), PortLostError),
        (WireError("no"), WireError),
    ],
    ids=["short", "full", "lost", "refused"],
)
def test_doubtful_write_disarms_and_is_not_repeated(connect, outcome, error):
    real, written = True, []

    def write(fd, data):
        if real:
            return os.write(fd, data)
        written.append(data)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    device, _ = connect(write=write)
    real = False
    with pytest.raises(error):
        device.trigger(0, 500)
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)
    assert len(written) == 1
    device.stop()
    device.disarm()
    real = True


@pytest.mark.safety("C1")
def test_torn_frame_does_not_hide_the_stop(connect):
    device, twin = connect()
    os.write(device.fileno(), encode_ll_channel_config(9, 1, pulse_points(500, 500, 100))[:12])
    device.disarm()
    assert device.status()["stop_answered"]
    _, refused, summary = twin.end()
    assert len(refused) == 1 and summary["pulses"] == 0


@pytest.mark.safety("C2", "E5")
def test_stop_drops_what_a_stalled_box_has_not_read(connect):
    device, twin = connect()
    os.kill(twin.process.pid, signal.SIGSTOP)
    for _ in range(5):
        device.trigger(0, 500)
    device.stop()
    os.kill(twin.process.pid, signal.SIGCONT)
    wait_for_stop(device)
    assert twin.end()[2]["pulses"] == 0


@pytest.mark.safety("E1", "E5")
def test_repeated_stop_does_not_take_back_the_stop_before_it(connect, monkeypatch):
    device, twin = connect()
    flushed, flush = [], termios.tcflush
    monkeypatch.setattr(termios, "tcflush", lambda fd, queue: (flushed.append(queue), flush(fd, queue)))
    os.kill(twin.process.pid, signal.SIGSTOP)
    device.trigger(0, 500)
    for _ in range(3):
        device.stop()
    assert flushed == [termios.TCOFLUSH]
    os.kill(twin.process.pid, signal.SIGCONT)
    wait_for_stop(device)
    device.arm()
    device.stop()
    assert flushed == [termios.TCOFLUSH] * 2
    wait_for_stop(device)
    _, refused, summary = twin.end()
    assert summary["pulses"] == 0 and refused == []
    assert summary["frames_accepted"] - summary["pulses_dropped"] == 3 + 1 + 3 + 1 + 1  # who are you, arm, stop, arm, stop


@pytest.mark.safety("E5")
@pytest.mark.parametrize(("end", "most"), [("closed", 0), ("killed", 1)])
def test_what_waited_in_a_stalled_port_and_reopening(connect, end, most):
    """One pulse waits, as guard allows; then our end goes with its leave, or without, as the kernel closes for a killed process.

    A pty gives nothing back, so after a kill that one pulse may play. It counts as delivered; nothing else ever comes out.
    """
    device, twin = connect()
    os.kill(twin.process.pid, signal.SIGSTOP)
    waiting = device.trigger(0, 500)
    if end == "closed":
        device.close()
    else:
        os.close(device._fd)
        device._fd = -1
    with pytest.raises(AckTimeoutError):  # still stalled
        device.open()
    os.kill(twin.process.pid, signal.SIGCONT)
    device.open()
    device.arm()
    device.read_events()
    number = device.trigger(0, 500)
    assert [(it.kind, it.number) for it in events_within(device, 1)] == [(DeviceEventKind.ACK, number)]
    device.close()
    *old, new = [it["number"] for it in twin.end()[0]]
    assert new == number and old in ([], [waiting]) and len(old) <= most


@pytest.mark.safety("E1")
def test_close_does_not_wait_for_a_port_that_does_not_drain(connect, monkeypatch):
    """Else this test never ends: the kernel's close returns only when ours has."""
    device, _ = connect()
    fd, drained, closed, close = device.fileno(), threading.Event(), threading.Event(), os.close

    def slow_close(it):
        if it == fd:
            drained.wait()
            closed.set()
        close(it)

    monkeypatch.setattr(os, "close", slow_close)
    device.close()
    assert not device.status()["open"]
    drained.set()
    closed.wait()


def wait_for_stop(device):
    deadline_s = time.monotonic() + 5
    while not device.status()["stop_answered"] and time.monotonic() < deadline_s:
        assert device.read_events() == []
        time.sleep(0.005)
    assert device.status()["stop_answered"]


@pytest.mark.safety("B1", "F2")
def test_box_left_on_is_switched_off_by_the_next_open(connect):
    device, twin = connect()
    os.close(device._fd)
    device._fd = -1  # as if killed
    device.open()
    assert device.status()["found_state"] == "low level on" and device.status()["stop_answered"]
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)
    device.close()
    assert twin.end()[2]["pulses"] == 0


@pytest.mark.safety("B1", "F2")
@pytest.mark.parametrize(("running", "found"), [(False, "mid level on"), (True, "mid level running")])
@pytest.mark.parametrize("model", ["rehamove3", "p24"])
def test_box_left_on_mid_level_is_stopped_by_the_next_open(tmp_path, model, running, found):
    """Through the wire check, as guard opens it; afterwards low level can be had."""
    with running_twin(tmp_path, model) as twin:
        fd = os.open(twin.port, os.O_RDWR | os.O_NOCTTY)
        os.write(fd, encode_ml_init(0))
        deframer = Deframer()
        assert until_answer(fd, deframer) == (0, 31, b"\0")
        if running:
            os.write(fd, encode_ml_update(1, {1: MlTrain(20_000, 0, ML_POINTS)}))
            assert until_answer(fd, deframer) == (1, 33, b"\0")
        os.close(fd)
        check = for_driver(model)
        device = load(model, twin.port, check.write)
        device.open()
        assert device.status()["found_state"] == found
        check.learn(device.prepare([TRAIN]))
        device.arm()
        check.due = (1, 20_000, 500, 100)
        device.trigger(0, 20_000)
        assert [it.text for it in events_within(device, 1)] == ["pulse done"]
        device.close()
        pulses, refused, _ = twin.end()
    assert refused == [] and [it["current_ua"] for it in pulses if "level" not in it] == [20_000] and "level" not in pulses[-1]


def until_answer(fd, deframer):
    """The next frame from the box."""
    while not (frames := deframer.feed(os.read(fd, 4096))):
        pass
    return frames[0]


@pytest.mark.safety("A13")
def test_port_belongs_to_one(connect):
    device, twin = connect()
    with pytest.raises(DeviceNotFoundError, match="another program"):
        ScienceMode34(device.port).open()
    number = device.trigger(0, 500)  # and the first is not disturbed
    assert [(it.kind, it.number) for it in events_within(device, 1)] == [(DeviceEventKind.ACK, number)]
    device.close()
    second = ScienceMode34(device.port)
    second.open()
    second.close()
    assert len(twin.end()[0]) == 1


@pytest.mark.safety("E6")
@pytest.mark.parametrize(("model", "line"), [("rehamove3", "RehaMove3 CALMTWIN04 3.2.0"), ("p24", "P24 CALMTWIN08 1.0.0")])
def test_box_says_again_who_it_is(connect, model, line):
    device, twin = connect(model=model)
    with pytest.raises(DriverError, match="armed"):
        device.identify()
    assert device.status()["armed"]
    device.disarm()
    assert device.identify() == device.identify() == line
    assert line.split()[1] == device.status()["device_id"]
    device.close()
    with pytest.raises(PortLostError):
        device.identify()
    pulses, refused, summary = twin.end()
    assert pulses == refused == [] and summary["frames_accepted"] == 3 + 1 + 1 + 2 * 2 + 2


@pytest.mark.parametrize(("model", "says"), [("rehamove3", (80, 3900)), ("p24", (None, None))])
def test_questions_have_no_output(connect, model, says):
    check = for_driver(model)
    device, twin = connect(model=model, write=check.write)
    with pytest.raises(DriverError, match="armed"):
        device.questions()
    assert device.status()["armed"]
    device.disarm()
    assert tuple(device.questions().values()) == says and set(device.questions()) == {"battery_percent", "battery_mv"}
    device.close()
    if model == "rehamove3":
        with pytest.raises(PortLostError):
            device.questions()
    pulses, refused, summary = twin.end()
    assert pulses == refused == [] and summary["frames_accepted"] == 3 + 1 + 1 + 2 * (model == "rehamove3") + 2


@pytest.mark.safety("E6")
def test_box_that_turned_into_another(connect):
    device, twin = connect()
    device.disarm()
    device.model = "p24"  # who speaks the other protocol does not know this question
    with pytest.raises(DeviceMismatchError, match="GET_EXTENDED_VERSION"):
        device.identify()
    os.kill(twin.process.pid, signal.SIGSTOP)
    with pytest.raises(AckTimeoutError):
        device.identify()


@pytest.mark.parametrize(
    ("said", "says"), [(b"0123456789", "0123456789"), (b"A 7\xff\n\0\0\0\0\0", "A?7??"), (bytes(10), "-"), (b"    ", "-")]
)
def test_what_a_box_says_is_one_word(said, says):
    assert word(said) == says


@pytest.mark.safety("E6")
def test_other_model_is_refused(tmp_path):
    with running_twin(tmp_path, "p24") as twin, pytest.raises(DeviceMismatchError, match="not a RehaMove3"):
        ScienceMode34(twin.port, "rehamove3").open()


def test_silent_box(tmp_path):
    with running_twin(tmp_path, "--fault", "hang@0") as twin, pytest.raises(AckTimeoutError):
        ScienceMode34(twin.port).open()


@pytest.mark.safety("E6")
def test_something_else_answers():
    master_fd, slave_fd = os.openpty()
    child = subprocess.Popen([sys.executable, "-c", "import os\nwhile os.read(0, 99): os.write(0, b'hello')"], stdin=master_fd)
    try:
        with pytest.raises(DeviceMismatchError, match="something answers"):
            ScienceMode34(os.ttyname(slave_fd)).open()
    finally:
        child.kill()
        child.wait()
        os.close(master_fd)
        os.close(slave_fd)


@pytest.mark.safety("E3")
@pytest.mark.parametrize(
    ("fault", "kinds", "code"),
    [
        ("lost-ack@3", [], 0),
        ("duplicate-ack@3", [DeviceEventKind.ACK, DeviceEventKind.ACK], 0),
        ("electrode-error@3", [DeviceEventKind.ELECTRODE_ERROR], 10),
        ("crc-error@3", [DeviceEventKind.PROTOCOL_ERROR], -1),
        ("reset@3", [DeviceEventKind.DEVICE_ERROR], 7),
    ],
)
def test_fault_becomes_its_event(connect, fault, kinds, code):
    device, _ = connect("--fault", fault)
    for _ in range(3):
        number = device.trigger(0, 500)
        assert [(it.kind, it.number) for it in events_within(device, 1)] == [(DeviceEventKind.ACK, number)]
    number = device.trigger(0, 500)
    events = events_within(device, 0.15, 3)
    assert [(it.kind, it.code) for it in events] == [(kind, code) for kind in kinds]
    assert all(it.number == (-1 if it.kind is DeviceEventKind.PROTOCOL_ERROR else number) for it in events)


def test_late_ack(connect):
    device, _ = connect("--fault", "late-ack@0")
    number, sent_s = device.trigger(0, 500), time.monotonic()
    [event] = events_within(device, 1)
    assert (event.kind, event.number) == (DeviceEventKind.ACK, number)
    assert 0.14 < time.monotonic() - sent_s < 0.5


def test_hung_box_ends_in_a_short_write(connect):
    device, _ = connect("--fault", "hang@2")
    for _ in range(2):
        device.trigger(0, 500)
        assert events_within(device, 1)
    with pytest.raises(ShortWriteError):
        for _ in range(10_000):
            device.trigger(0, 500)
    assert device.read_events() == []
    device.stop()
    began_s = time.monotonic()
    device.disarm()
    assert time.monotonic() - began_s < 0.4
    with pytest.raises(AckTimeoutError):
        device.arm()
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)


def test_lost_port_is_told_once(connect):
    device, _ = connect("--fault", "hangup@2")
    for _ in range(2):
        device.trigger(0, 500)
        time.sleep(0.02)
    events = events_within(device, 1, 3)
    assert [it.kind for it in events][-1:] == [DeviceEventKind.PORT_LOST]
    assert sum(it.kind is DeviceEventKind.PORT_LOST for it in events) == 1
    assert device.read_events() == []
    with pytest.raises((NotArmedError, PortLostError)):
        device.trigger(0, 500)
    device.stop()
    device.disarm()
    device.close()


def test_box_that_refuses_to_arm(connect, monkeypatch):
    device, _ = connect()
    device.disarm()
    monkeypatch.setattr(device, "_ask", lambda *_, **__: (1, b"\x08"))
    with pytest.raises(ProtocolError, match="high voltage error"):
        device.arm()
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)
