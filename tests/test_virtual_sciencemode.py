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

    def init(self):
        self.give(wrap(0, 0, b"\0"), 50)
        assert self.answers() == [(0, 1, b"\0")]


def config(channel_code=0, points=((250, 40), (100, 0), (250, -40)), execute=1):
    head = execute << 7 | channel_code << 5 | len(points) - 1
    return bytes((head,)) + b"".join((us << 20 | half_ma + 300 << 10).to_bytes(4, "big") for us, half_ma in points)


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


# --- process ----------------------------------------------------------------------------------------------------------------------
def test_independent_client_over_the_pty(tmp_path):
    """science-mode-4 opens, identifies, initialises, pulses and stops; junk-free acks with data avoid its known defects."""
    from science_mode_4.device_p24 import DeviceP24
    from science_mode_4.low_level.low_level_types import LowLevelHighVoltageSource, LowLevelMode
    from science_mode_4.protocol.channel_point import ChannelPoint
    from science_mode_4.protocol.types import Channel, Connector, ResultAndError
    from science_mode_4.utils.serial_port_connection import SerialPortConnection

    async def session(port):
        connection = SerialPortConnection(port)
        connection.open()
        try:
            device = DeviceP24(connection)
            await device.initialize()
            assert device.get_layer_general().device_id == "CALMTWIN08"
            low = device.get_layer_low_level()
            await low.init(LowLevelMode.NO_MEASUREMENT, LowLevelHighVoltageSource.STANDARD)
            for i in range(6):
                points = [ChannelPoint(250, 5.0 + i), ChannelPoint(100, 0), ChannelPoint(250, -5.0 - i)]
                low.send_channel_config(True, Channel(i % 4), Connector(i % 2), points)
                await asyncio.sleep(0.03)
                assert low.packet_buffer.get_packet_from_buffer().result == ResultAndError.NO_ERROR
            await low.stop()
        finally:
            connection.close()

    with running_twin(tmp_path, "p24") as twin:
        asyncio.run(session(twin.port))
        pulses, refused, summary = twin.end()
    assert [(it["current_ua"], it["channel"]) for it in pulses] == [(5000 + 1000 * i, i % 2 * 4 + i % 4 + 1) for i in range(6)]
    assert refused == [] and summary["outside_limits"] == 0 and summary["frames_accepted"] == 11


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
