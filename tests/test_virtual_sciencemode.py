"""The virtual RehaMove3/P24: its decoder on its own, its states, and an independent client (PyPI science-mode-4) over its pty."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import pytest

from drivers.simulated.twin import PULSE_RECORD, Judge, RefusedError, shape_of
from drivers.simulated.virtual_sciencemode import Box, Line, crc16, unwrap, wrap

MS = 1_000_000


@contextmanager
def running_twin(folder, *arguments):
    """A twin process; yields its port, process and `end() -> (pulses, refused, summary)`."""
    log = folder / "pulses.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "drivers.simulated.twin", "--log", str(log), "--lifeline", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )

    def end():
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(5)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return [it for it in lines if "pulse_ns" in it], [it for it in lines if "refused" in it], lines[-1]["summary"]

    try:
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] and ready["pid"] == process.pid
        yield SimpleNamespace(port=ready["port"], process=process, end=end, log=log)
    finally:
        process.kill()
        process.wait(5)
        process.stdin.close()
        process.stdout.close()


class Bench:
    """A box without a process: its clock is ours."""

    def __init__(self, fault=("", 0), model="rehamove3"):
        self.sent, self.lines, self.records = [], [], []
        self.judge = Judge()
        self.box = Box(model, MS, self.judge, self.sent.append, self.lines.append, self.records.append, fault)
        self.now_ns = 10**12

    def give(self, data, wait_ms=0.0):
        self.box.receive(data, self.now_ns)
        self.wait(wait_ms)

    def wait(self, wait_ms):
        self.now_ns += round(wait_ms * MS)
        self.box.run_due(self.now_ns)

    def answers(self):
        answers = [unwrap(it) for it in self.sent]
        self.sent.clear()
        return answers

    def init(self, command=0, data=b"\0"):
        self.give(wrap(0, command, data), 50)
        assert self.answers() == [(0, command + 1, b"\0")]

    def pulses(self):
        """(ms since the first, channel, mA) of each so far."""
        pulses = [it for it in self.lines if "pulse_ns" in it]
        return [((it["pulse_ns"] - pulses[0]["pulse_ns"]) / MS, it["channel"], it["current_ua"] / 1000) for it in pulses]

    def state(self, selection=4):
        """Data of the answer to Ml_get_current_data."""
        self.give(wrap(9, 36, bytes((selection,))))
        [(number, command, data)] = self.answers()
        assert (number, command) == (9, 37)
        return data


PULSE = ((250, 40), (100, 0), (250, -40))


def words(points):
    return b"".join((us << 20 | half_ma + 300 << 10).to_bytes(4, "big") for us, half_ma in points)


def config(channel_code=0, points=PULSE, execute=1):
    return bytes((execute << 7 | channel_code << 5 | len(points) - 1,)) + words(points)


def train(half_ms, ramp=0, points=PULSE, is_fine=0):
    return bytes((len(points) - 1 << 4 | ramp,)) + (half_ms << 1 | is_fine).to_bytes(2, "big") + words(points)


def update(trains, number=1):
    """Ml_update, its trains by channel."""
    return wrap(number, 32, bytes((sum(1 << it - 1 for it in trains),)) + b"".join(trains[it] for it in sorted(trains)))


# --- decoder ----------------------------------------------------------------------------------------------------------------------
def test_crc_check_value():
    assert crc16(b"123456789") == 0x31C3  # CRC-16/XMODEM


def test_reads_the_makers_own_frame():
    raw = bytes.fromhex("F0 81 55 81 4E 81 D3 81 AF 04 02 82 81 5A A5 50 00 06 44 B0 00 81 5A A4 10 00 0F")
    number, command, data = unwrap(raw)
    assert (number, command) == (1, 2)
    assert data == config()
    assert wrap(number, command, data) == raw


@pytest.mark.parametrize("place", range(27))
def test_refuses_any_damaged_byte(place):
    raw = bytearray(wrap(1, 2, config()))
    raw[place] ^= 0x10
    pieces = Line().receive(bytes(raw) + wrap(2, 4, b""), 0)
    good = []
    for _, piece, fault in pieces:
        try:
            good += [] if fault else [unwrap(piece)]
        except RefusedError:
            pass
    assert good == [(2, 4, b"")]


def test_line_takes_its_time():
    line, frame = Line(), wrap(1, 4, b"")
    [(first_ns, _, _)] = line.receive(frame, 1000)
    [(second_ns, _, _)] = line.receive(frame, 1000)
    assert first_ns == round(1000 + len(frame) * 11e9 / 3e6)
    assert second_ns - first_ns == pytest.approx(len(frame) * 11e9 / 3e6, abs=2)


def test_line_never_keeps_more_than_a_frame():
    line = Line()
    noise = random.Random(1).randbytes(50_000)
    line.receive(noise, 0)
    assert len(line._frame) <= 1200


def test_shape():
    shape = shape_of([(500, 40), (100, 0), (500, -40)])
    assert (shape.current_ua, shape.phase_width_us, shape.interphase_gap_us, shape.duration_us) == (20_000, 500, 100, 1100)
    assert shape.charge_nc == 10_000 and shape.balanced
    assert not shape_of([(500, 40), (100, 0), (499, -40)]).balanced
    assert not shape_of([(500, 40)]).balanced
    assert shape_of([(200, 40), (300, 20), (500, -28)]).phase_width_us == 500
    assert shape_of([(500, 40), (0, 0), (500, -40)]).interphase_gap_us == 10


# --- box --------------------------------------------------------------------------------------------------------------------------
def test_pulse_runs_after_latency_and_is_answered_when_over():
    bench = Bench()
    bench.init()
    frame = wrap(1, 2, config())
    bench.give(frame)
    wire_ns = bench.now_ns + round(len(frame) * 11e9 / 3e6)
    assert bench.records == [PULSE_RECORD.pack(bench.now_ns, wire_ns + MS, 20_000, 250, 1, 1)] and not bench.lines
    bench.wait(1.2)
    assert [it["pulse_ns"] for it in bench.lines] == [wire_ns + MS] and not bench.sent
    bench.wait(1)
    assert bench.answers() == [(1, 3, b"\0\0")]


def test_nothing_before_init_or_after_stop():
    bench = Bench()
    bench.give(wrap(1, 2, config()), 10)
    assert bench.answers() == [(1, 3, b"\x07\0")]
    bench.init()
    for number in range(5):
        bench.give(wrap(number, 2, config()))
    bench.give(wrap(9, 4, b""), 50)
    assert bench.answers() == [(9, 5, b"\0")]
    bench.give(wrap(10, 2, config()), 10)
    assert bench.answers() == [(10, 3, b"\x07\0")]
    assert [list(line) for line in bench.lines] == [["stop_ns", "number"]] and bench.judge.pulses_dropped == 5


def test_init_takes_40_ms():
    bench = Bench()
    bench.give(wrap(0, 0, b"\0"), 39)
    bench.give(wrap(1, 2, config()), 0)
    assert bench.answers() == [(1, 3, b"\x07\0")]
    bench.wait(2)
    assert bench.answers() == [(0, 1, b"\0")]


def test_queue_of_ten():
    bench = Bench()
    bench.init()
    for number in range(11):
        bench.give(wrap(number, 2, config()))
    assert bench.answers() == [(10, 3, b"\x15\0")]
    bench.wait(20)
    assert [it[0] for it in bench.answers()] == list(range(10))
    starts_ns = [it["pulse_ns"] for it in bench.lines]
    assert all(later - earlier == 600_000 for earlier, later in pairwise(starts_ns))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        config()[:-1],
        config() + b"\0",
        config(points=((250, 261), (250, -261))),
        bytes((config()[0] | 0x10,)) + config()[1:],
        config()[:-1] + b"\1",
    ],
    ids=["empty", "short", "long", "over 130 mA", "connector of a P24", "reserved bits"],
)
def test_bad_parameters(data):
    bench = Bench()
    bench.init()
    bench.give(wrap(3, 2, data), 10)
    assert bench.answers() == [(3, 3, b"\x02\0")] and not bench.lines


def test_damaged_frame_is_a_transfer_error():
    bench = Bench()
    bench.init()
    raw = bytearray(wrap(3, 2, config()))
    raw[-3] ^= 1
    bench.give(bytes(raw), 10)
    assert bench.answers() == [(3, 3, b"\x01\0")]
    assert bench.judge.frames_refused == 1 and bench.lines[0]["refused"] == "checksum" and bench.lines[0]["bytes"] == raw.hex(" ")


def test_questions():
    rehamove, p24 = Bench(), Bench(model="p24")
    for bench in (rehamove, p24):
        for command in (50, 52, 54, 62, 68, 77):
            bench.give(wrap(command % 64, command, b""))
    assert [it[1] for it in rehamove.answers()] == [51, 53, 55, 63, 67, 67]
    assert [it[1] for it in p24.answers()] == [67, 53, 67, 63, 69, 67]


def test_judge_has_its_own_limits():
    bench = Bench()
    bench.init()
    legal = ((500, 120), (500, -120))
    for points, wait_ms in (
        (legal, 20),
        (legal, 5),
        (((500, 121), (500, -121)), 20),
        (((1001, 20), (1001, -20)), 20),
        (((19, 20), (19, -20)), 20),
        (((1000, 61), (1000, -61)), 20),
        (((500, 20), (498, -20)), 20),
        (legal, 20),
    ):
        bench.give(wrap(0, 2, config(points=points)), wait_ms)
    assert [it["outside"] for it in bench.lines] == [
        [],
        [],
        ["current", "charge", "rate"],
        ["phase"],
        ["phase"],
        ["charge"],
        ["balance"],
        [],
    ]
    summary = bench.judge.summary()
    assert (summary["pulses"], summary["outside_limits"], summary["unbalanced"]) == (8, 5, 1)
    assert summary["max_current_ma"] == 60.5 and summary["max_rate_hz"] == pytest.approx(200, rel=1e-3)


# --- box, mid level ---------------------------------------------------------------------------------------------------------------
def test_train_plays_by_itself_with_its_ramp():
    bench = Bench()
    bench.init(30)
    frame = update({1: train(40, ramp=3), 3: train(25, points=((200, 20), (200, -20)))}, number=5)
    bench.give(frame)
    wire_ns = bench.now_ns + round(len(frame) * 11e9 / 3e6)
    bench.wait(100)
    assert bench.answers() == [(5, 33, b"\0")] and bench.lines[0]["pulse_ns"] == wire_ns + MS
    first = [(ms, ma) for ms, channel, ma in bench.pulses() if channel == 1]
    assert first == [(0, 5), (20, 10), (40, 15), (60, 20), (80, 20)]
    third = [(ms, ma) for ms, channel, ma in bench.pulses() if channel == 3]
    assert third == [(0.66, 10)] + [(12.5 * i, 10) for i in range(1, 8)]  # after the first channel's 600 and 60 µs
    assert all(it["number"] == 5 and it["level"] == "mid" and it["balanced"] and it["hv"] for it in bench.lines)
    assert len(bench.records) == len(bench.lines) == bench.judge.pulses == 13


def test_makers_own_update():
    bench = Bench()
    bench.init(30)
    raw = "F0 81 55 81 7E 81 5D 81 42 04 20 03 23 00 50 0C 85 50 00 06 44 B0 00 0C 84 10 00 23 00 28 06 45 00 00 06 44 B0 00 06 44 60 00 0F"
    bench.give(bytes.fromhex(raw), 85)
    assert [it[1:] for it in bench.pulses() if it[0] >= 60] == [(1, 20), (2, 10), (2, 10), (1, 20), (2, 10)]  # red 20 mA, blue 10 mA
    assert {it["phase_width_us"] for it in bench.lines if it["channel"] == 2} == {100}


def test_no_sign_of_life_pauses_and_an_update_starts_anew():
    bench = Bench()
    bench.init(30)
    frame = update({1: train(200, ramp=1)})
    bench.give(frame)
    end_ns = bench.now_ns + round(len(frame) * 11e9 / 3e6) + 2000 * MS
    bench.wait(5000)
    pulses = bench.pulses()
    assert len(pulses) == 20 and pulses[-1][0] == 1900  # the next would have been decided just when the two seconds are over
    assert {"watchdog_ns": end_ns} in bench.lines
    bench.answers()
    assert bench.state(2) == b"\0\2\0"  # the level stays on, and a question alone starts nothing
    bench.wait(1000)
    assert len(bench.pulses()) == 20
    bench.give(frame, 150)
    assert [ma for _, _, ma in bench.pulses()[20:]] == [10, 20]


@pytest.mark.parametrize("question", [True, False])
def test_signs_of_life_keep_it_going(question):
    bench = Bench()
    bench.init(30)
    bench.give(update({2: train(400)}))
    for _ in range(6):
        bench.wait(1500)
        bench.give(wrap(2, 36, b"\2") if question else update({2: train(400)}))
    assert [ms for ms, _, _ in bench.pulses()] == [200 * i for i in range(45)]


def test_update_of_what_runs():
    """No second ramp and no break in the rhythm; a channel that is left out ends."""
    bench = Bench()
    bench.init(30)
    bench.give(update({1: train(40, ramp=1), 4: train(40)}), 50)
    bench.give(update({1: train(100, ramp=15, points=((250, 60), (250, -60)))}), 200)
    assert [it for it in bench.pulses() if it[1] == 1] == [
        (0, 1, 10),
        (20, 1, 20),
        (40, 1, 20),
        (90, 1, 30),
        (140, 1, 30),
        (190, 1, 30),
        (240, 1, 30),
    ]
    assert [ms for ms, channel, _ in bench.pulses() if channel == 4] == [0.66, 20.66, 40.66]
    bench.give(update({}), 100)
    assert len(bench.pulses()) == 10 and bench.answers()[-1] == (1, 33, b"\0")


def test_update_that_is_still_on_the_wire_changes_nothing():
    bench = Bench()
    bench.init(30)
    bench.give(update({1: train(40)}), 19.8)
    long = tuple((10, half_ma) for half_ma in (40, -40) * 8)
    bench.give(update({1: train(40), **{channel: train(32766, points=long) for channel in (2, 3, 4)}}), 40)  # for 0.9 ms
    assert [ms for ms, channel, _ in bench.pulses() if channel == 1] == [0, 20, 40]


def test_update_that_comes_after_its_pulse_would_have():
    bench = Bench()
    bench.init(30)
    bench.give(update({1: train(2000)}), 500)
    bench.give(update({1: train(20)}), 25)
    assert [ms for ms, _, _ in bench.pulses()] == pytest.approx([0, 500, 510, 520], abs=0.01)  # the frames differ by a stuffed byte


def test_stop_of_the_mid_level():
    bench = Bench()
    bench.init(30)
    bench.give(update({1: train(10)}), 50)
    bench.give(wrap(7, 34, b""), 500)
    assert bench.answers() == [(1, 33, b"\0"), (7, 35, b"\0")]
    assert len(bench.pulses()) == 10 and [it["number"] for it in bench.lines if "stop_ns" in it] == [7]
    bench.give(update({1: train(10)}), 50)
    assert bench.answers() == [(1, 33, b"\7")] and len(bench.pulses()) == 10
    assert bench.state(2)[0] == 7
    bench.give(wrap(8, 34, b""), 50)
    assert bench.answers() == [(8, 35, b"\0")]  # stopped already


@pytest.mark.parametrize(("mine", "others"), [((0, 4, 1), (30, 34)), ((30, 34, 2), (0, 4))])
def test_levels_exclude_each_other(mine, others):
    init, stop, level = mine
    bench = Bench(model="p24")
    bench.give(wrap(1, init, b"\0"))
    for number, wait_ms in ((2, 0), (3, 50)):  # while it still switches, and after
        bench.wait(wait_ms)
        bench.give(wrap(number, others[0], b"\0"))
        bench.give(wrap(number, others[1], b""))
    refused = [[(number, command + 1, b"\7") for command in others] for number in (2, 3)]
    assert bench.answers() == [*refused[0], (1, init + 1, b"\0"), *refused[1]]
    bench.give(update({1: train(40)}) if level == 1 else wrap(4, 2, config()), 10)
    assert bench.answers()[0][2][0] == 7 and not bench.pulses()
    bench.give(wrap(5, 62, b""))
    assert bench.answers() == [(5, 63, bytes((0, level, 6)))]
    bench.give(wrap(6, stop, b""), 50)
    assert bench.answers() == [(6, stop + 1, b"\0")]
    bench.init(others[0])


def test_stim_status_tells_the_level():
    bench = Bench()

    def status():
        bench.give(wrap(1, 62, b""))
        return list(bench.answers()[-1][2])

    assert status() == [0, 0, 1]
    bench.init(30)
    assert status() == [0, 2, 6]
    bench.give(update({1: train(40)}))
    assert status() == [0, 3, 6]
    bench.wait(3000)
    assert status() == [0, 2, 6]
    bench.give(wrap(1, 34, b""), 50)
    assert status() == [0, 0, 1]


BAD_UPDATES = {
    "empty": b"",
    "no train": b"\1",
    "short": b"\1" + train(40)[:-1],
    "long": b"\1" + train(40) + b"\0",
    "one train of two": b"\3" + train(40),
    "fifth channel": b"\x10" + train(40),
    "period 0": b"\1" + train(0),
    "period 16383.5 ms": b"\1" + train(32767),
    "quarters": b"\1" + train(40, is_fine=1),
    "over 130 mA": b"\1" + train(40, points=((250, 261), (250, -261))),
    "reserved bits": b"\1" + train(40)[:-1] + b"\1",
    "too busy": b"\1" + train(1, points=((200, 40), (240, -40))),
    "too busy together": b"\3" + 2 * train(2, points=((220, 40), (220, -40))),
}


@pytest.mark.parametrize("data", BAD_UPDATES.values(), ids=BAD_UPDATES)
def test_bad_updates(data):
    bench = Bench()
    bench.init(30)
    bench.give(wrap(3, 32, data), 10)
    assert bench.answers() == [(3, 33, b"\2")] and not bench.lines


def test_quarters_of_a_millisecond_and_eight_channels_on_a_p24():
    bench = Bench(model="p24")
    bench.init(30)
    bench.give(update({8: train(81, is_fine=1)}), 100)
    assert bench.pulses() == [(20.25 * i, 8, 20) for i in range(5)]


def test_channels_that_leave_no_room():
    bench = Bench(model="p24")
    bench.init(30, b"\0")
    long = ((4095, 2), (4095, -2)) * 8
    bench.give(update({1: train(2, points=((100, 40), (100, -40))), 2: train(200, points=long)}), 150)
    bench.answers()
    assert bench.state() == bytes((0, 4, 0b10, 0x02, 0, 0, 0))  # its period of 1 ms cannot be kept
    assert [channel for _, channel, _ in bench.pulses()] == [1, 2, 2]
    starts = [(it["pulse_ns"], it["pulse_ns"] + (200 if it["channel"] == 1 else 65_520) * 1000) for it in bench.lines]
    assert all(earlier[1] < later[0] for earlier, later in pairwise(starts))


@pytest.mark.parametrize("stop_all", [0, 1])
def test_electrode_error_on_the_mid_level(stop_all):
    bench = Bench(fault=("electrode-error", 3), model="p24")
    bench.init(30, bytes((stop_all,)))
    trains = {channel: train(40) for channel in (1, 6)}
    bench.give(update(trains), 100)
    bench.answers()
    assert [channel for _, channel, _ in bench.pulses()] == ([1, 6, 1, 6] if stop_all else [1, 6, 1, 6, 1, 1, 1])
    assert [it["result"] for it in bench.lines].count(10) == 1 and bench.lines[3]["result"] == 10
    running = 0 if stop_all else 1
    assert bench.state(4) == bytes((0, 4, running, 0, 0, 0x10, 0))
    assert bench.state(3) == bytes((0, 3, running << 4, 0b10))
    assert bench.state(2) == bytes((0, 2, running << 4))
    bench.give(update(trains), 100)
    bench.answers()
    assert bench.state(4) == bytes((0, 4, 0b100001, 0, 0, 0, 0))


def test_electrode_error_of_a_rehamove3():
    bench = Bench(fault=("electrode-error", 1))
    bench.init(30)
    bench.give(update({3: train(40), 4: train(40)}), 100)
    bench.answers()
    assert bench.state(2) == bytes((0, 2, 0b1_1000))
    assert bench.state(4) == b"\2"


@pytest.mark.parametrize(("model", "answers"), [("p24", [(3, 59, b"\0")]), ("rehamove3", [])])
@pytest.mark.parametrize("on", [0, 30])
def test_reset_ends_all(model, answers, on):
    bench = Bench(model=model)
    bench.init(on)
    bench.give(update({1: train(40)}) if on else wrap(1, 2, config()), 30)
    n_pulses = len(bench.pulses())
    bench.answers()
    bench.give(wrap(3, 58, b""), 100)
    assert bench.answers() == answers and len(bench.pulses()) == n_pulses > 0
    bench.give(wrap(4, 62, b""))
    assert bench.answers() == [(4, 63, b"\0\0\1")]
    bench.init(30 - on)


@pytest.mark.parametrize(("fault", "level"), [("reset", 0), ("hang", 2), ("hangup", 2)])
def test_faults_in_a_train(fault, level):
    bench = Bench(fault=(fault, 3))
    bench.init(30)
    bench.give(update({1: train(40)}), 500)
    assert len(bench.pulses()) == 3
    assert bench.box.dead == ("" if fault == "reset" else fault) and bench.box.level == level


def test_damaged_mid_level_frame_is_a_transfer_error():
    bench = Bench()
    bench.init(30)
    raw = bytearray(update({1: train(40)}, number=3))
    raw[-3] ^= 1
    bench.give(bytes(raw), 100)
    assert bench.answers() == [(3, 33, b"\1")] and not bench.pulses()


@pytest.mark.parametrize(("mode", "first", "second"), [(1, 2000, 500), (2, 2000, 500), (3, 15_000, 15_000)])
def test_measurement_of_a_p24(mode, first, second):
    bench = Bench(model="p24")
    bench.init(0, bytes((mode << 4,)))
    bench.give(wrap(1, 2, config(points=((250, 40), (100, 0), (1000, -10)))), 5)
    [(_, _, data)] = bench.answers()
    step_us, *samples = (int.from_bytes(data[i : i + 2], "big") for i in range(3, len(data), 2))
    assert data[:3] == bytes((0, 0, mode)) and step_us == 11 and len(samples) == 128
    assert samples[0] == samples[22] == first and samples[32] == samples[122] == second and not any(samples[123:])
    assert (samples[25] == 0) == (mode < 3)


# --- process ----------------------------------------------------------------------------------------------------------------------
def test_independent_client_over_the_pty(tmp_path):
    """All that science-mode-4 can ask of a P24, by its public methods; what came out is judged by the twin's log."""
    from science_mode_4.device_p24 import DeviceP24
    from science_mode_4.low_level.low_level_types import LowLevelHighVoltageSource, LowLevelMode
    from science_mode_4.mid_level.mid_level_types import MidLevelChannelConfiguration
    from science_mode_4.protocol.channel_point import ChannelPoint
    from science_mode_4.protocol.types import Channel, Connector, ResultAndError, StimStatus
    from science_mode_4.utils.serial_port_connection import SerialPortConnection

    def points(ma):
        return [ChannelPoint(250, ma), ChannelPoint(100, 0), ChannelPoint(250, -ma)]

    async def next_answer(layer):
        while (answer := layer.packet_buffer.get_packet_from_buffer()) is None:
            await asyncio.sleep(0.005)
        return answer

    async def low_level(device):
        low = device.get_layer_low_level()
        for mode in LowLevelMode:
            await low.init(mode, LowLevelHighVoltageSource.STANDARD)
            low.send_channel_config(True, Channel.RED, Connector.YELLOW, points(2.0))
            answer = await next_answer(low)
            assert (answer.result, answer.mode) == (ResultAndError.NO_ERROR, mode)
            if mode == LowLevelMode.STIM_CURRENT:
                assert answer.sampling_time_in_microseconds == 5 and answer.measurement_samples[0] == 2.0
        await low.init(LowLevelMode.NO_MEASUREMENT, LowLevelHighVoltageSource.STANDARD)
        assert await device.get_layer_general().get_stim_status() == (StimStatus.LOW_LEVEL_INITIALIZED, True)
        for i in range(6):
            low.send_channel_config(True, Channel(i % 4), Connector(i % 2), points(5.0 + i))
            answer = await next_answer(low)
            assert (answer.result, answer.connector, answer.channel) == (ResultAndError.NO_ERROR, i % 2, i % 4)
        low.send_stop()
        assert (await next_answer(low)).result_error == ResultAndError.NO_ERROR
        low.send_init(LowLevelMode.NO_MEASUREMENT, LowLevelHighVoltageSource.OFF)
        assert (await next_answer(low)).result_error == ResultAndError.NO_ERROR
        await low.stop()

    async def mid_level(device):
        mid = device.get_layer_mid_level()
        for stop_all in (True, False):
            await mid.init(stop_all)
            assert await device.get_layer_general().get_stim_status() == (StimStatus.MID_LEVEL_INITIALIZED, True)
            both = [
                MidLevelChannelConfiguration(True, 3, 20, points(20.0)),
                *[None] * 5,
                MidLevelChannelConfiguration(True, 0, 33, points(10.0)),
            ]
            await mid.update(both)
            await asyncio.sleep(0.25)
            data = await mid.get_current_data()
            assert data.is_stimulation_active_per_channel == [channel in (1, 7) for channel in range(1, 9)]
            assert data.channel_error == [ResultAndError.NO_ERROR] * 8
            await mid.update([MidLevelChannelConfiguration(True, 0, 50, points(7.5))])
            assert await device.get_layer_general().get_stim_status() == (StimStatus.MID_LEVEL_RUNNING, True)
            await asyncio.sleep(0.2)
            await mid.stop()

    async def session(port):
        connection = SerialPortConnection(port)
        connection.open()
        try:
            device = DeviceP24(connection)
            general = device.get_layer_general()
            await device.initialize()
            assert (general.device_id, general.firmware_version, general.science_mode_version) == ("CALMTWIN08", "1.0.0", "4.0.0")
            await low_level(device)
            await mid_level(device)
            assert await general.get_device_id() == "CALMTWIN08" and (await general.get_version()).is_valid_hash
            for init in (device.get_layer_low_level().init(*[LowLevelMode.NO_MEASUREMENT] * 2), device.get_layer_mid_level().init(True)):
                await init
                await device.initialize()  # stops whatever it finds
                assert await general.get_stim_status() == (StimStatus.NO_LEVEL_INITIALIZED, False)
            await general.reset()
        finally:
            connection.close()

    with running_twin(tmp_path, "p24") as twin:
        asyncio.run(asyncio.wait_for(session(twin.port), 60))
        pulses, refused, summary = twin.end()
    assert refused == [] and summary["outside_limits"] == summary["unbalanced"] == summary["answers_lost"] == 0
    low = [(it["current_ua"], it["channel"]) for it in pulses if "level" not in it]
    assert low == [(2000, 1)] * 4 + [(5000 + 1000 * i, i % 2 * 4 + i % 4 + 1) for i in range(6)]
    mid = [it for it in pulses if "level" in it]
    updates = {it["wire_ns"]: [] for it in mid}
    for it in mid:
        updates[it["wire_ns"]].append(it)
    assert len(updates) == 4
    for i, played in enumerate(updates.values()):
        first = [it for it in played if it["channel"] == 1]
        if i % 2 == 0:
            assert [it["current_ua"] for it in first] == [5000, 10_000, 15_000, *[20_000] * (len(first) - 3)] and len(first) > 10
            assert {it["current_ua"] for it in played if it["channel"] == 7} == {10_000}
        else:
            assert {(it["current_ua"], it["channel"]) for it in played} == {(7500, 1)} and len(first) >= 3
        assert {later["pulse_ns"] - earlier["pulse_ns"] for earlier, later in pairwise(first)} == {(50 if i % 2 else 20) * MS}
        assert {it["channel"] for it in played} == ({1} if i % 2 else {1, 7})


def test_records_link_and_lifeline(tmp_path):
    path, link = str(tmp_path / "pulses"), tmp_path / "port"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(2)
        with running_twin(tmp_path, "--pulses-to", path, "--link", str(link)) as twin:
            assert str(link.readlink()) == twin.port
            fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
            os.write(fd, wrap(0, 0, b"\0"))
            time.sleep(0.1)
            os.write(fd, wrap(1, 2, config(2)))
            received_ns, pulse_ns, *rest = PULSE_RECORD.unpack(listener.recv(64))
            now_ns = time.monotonic_ns()
            os.close(fd)
            time.sleep(0.05)
            fd = os.open(link, os.O_RDWR | os.O_NOCTTY)  # a client that left without Ll_stop: the box stays as it was
            os.write(fd, wrap(2, 2, config(2)))
            listener.recv(64)
            os.close(fd)
            time.sleep(0.05)
            twin.process.stdin.close()
            assert twin.process.wait(5) == 0
            pulses, _, summary = twin.end()
    assert rest == [20_000, 250, 3, 1]
    assert received_ns < now_ns and 1.0 < (pulse_ns - received_ns) / MS < 1.2
    assert pulses[0]["pulse_ns"] == pulse_ns
    assert summary["pulses"] == 2 and not link.is_symlink()
