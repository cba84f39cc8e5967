"""MotiMove 8: driver, virtual box and wire check before bytes in the order of the one program that is known, and before each other.

No box, no capture, no maker's vector was at hand: what is judged here is that three readings of one source agree, and what happens when the
box does not do as expected.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import settings as prescriptions
from controller.wire import Pulse, for_driver
from controller.wire import motimove as wire
from drivers.base import AckTimeoutError, DeviceMismatchError, LimitError, NotArmedError, ProtocolError, PulseTrain, WireError
from drivers.base import DeviceEventKind as Say
from drivers.simulated import virtual_motimove as virtual
from drivers.simulated.twin import Judge, RefusedError
from drivers.stimulators.motimove import (
    N_ANSWER_BYTES,
    STOP,
    SWITCH_ON,
    Deframer,
    MotiMove,
    Voltage,
    decode_pulse,
    encode_pulse,
    encode_voltage,
)
from tests.test_sciencemode34 import events_within
from tests.test_virtual_sciencemode import running_twin

MS = 1_000_000
TRAIN = PulseTrain(1, 20.0, 500, 10, 50.0, 500, 50, 100)
PULSE = encode_pulse(3, 20_000, 250, 20)
pulses_strategy = st.tuples(st.integers(1, 8), st.integers(1, 170), st.integers(1, 100).map(lambda n: 10 * n), st.integers(10, 254))

# made by hand, in the order of MM_Message_Builder.getMessage: its frame to see who is there, and its demonstration of channels 1 and 5
CONNECTS = "ff 22 08 00 0a 00  00 00 00 00 00 00 00 00  0a 0a 0a 0a 0a 0a 0a 0a  01 01 01 01 01 01 01 01  00 00 00 00  0c"
STIMULATES = "ff 22 08 00 28 64  14 00 00 00 14 00 00 00  32 32 32 32 32 32 32 32  01 01 01 01 01 01 01 01  00 00 00 01  77"
TRAINS = "ff 03 02 05", "ff 03 03 06"


def message(currents_ma, widths_us, period_ms, percent, voltage, delay=0, prescalers=(1,) * 8, doublets=0, interval=0, sensor=0):
    """A message by that program's rules, lawful or not."""
    data = [
        0x22,
        8,
        delay,
        period_ms,
        percent,
        *currents_ma,
        *(us // 10 for us in widths_us),
        *prescalers,
        doublets,
        interval,
        sensor,
        voltage,
    ]
    return bytes((0xFF, *data, sum(data) & 0x7F))


def one_pulse(channel=3, current_ma=20, width_us=250, period_ms=20, percent=100, voltage=2, **more):
    """A message with one channel; by default the bytes of PULSE."""
    one = [i == channel for i in range(1, 9)]
    return message([current_ma * it for it in one], [width_us * it for it in one], period_ms, percent, voltage, **more)


class Bench:
    """A box without a process: its clock is ours."""

    def __init__(self, fault=("", 0), on=True, latency_ns=None):
        self.sent, self.lines, self.records = [], [], []
        self.judge = Judge()
        self.box = virtual.Box("motimove", latency_ns, self.judge, self.sent.append, self.lines.append, self.records.append, fault)
        self.now_ns = 10**12
        if on:
            assert len(self.give(SWITCH_ON)) == N_ANSWER_BYTES

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
def test_same_bytes_as_the_programs_order_gives():
    dice = random.Random(20261125)
    for _ in range(1200):
        channel, current_ma, tens_us, period_ms = dice.randint(1, 8), dice.randint(1, 170), dice.randint(1, 100), dice.randint(10, 254)
        assert encode_pulse(channel, current_ma * 1000, tens_us * 10, period_ms) == one_pulse(channel, current_ma, tens_us * 10, period_ms)
    for voltage in (Voltage.OFF, Voltage.ON):
        assert encode_voltage(voltage) == message([0] * 8, [0] * 8, 254, 0, voltage)
    assert bytes.fromhex(CONNECTS) == message([0] * 8, [100] * 8, 10, 0, 0)
    assert bytes.fromhex(STIMULATES) == message([20, 0, 0, 0, 20, 0, 0, 0], [500] * 8, 40, 100, 1)


@given(pulses_strategy)
def test_a_pulse_is_read_alike_by_all_three(values):
    channel, current_ma, width_us, period_ms = values
    frame = encode_pulse(channel, current_ma * 1000, width_us, period_ms)
    assert decode_pulse(frame) == (channel, current_ma * 1000, width_us, period_ms)
    assert virtual.read_frame(frame) == ([(channel, width_us, current_ma * 1000)], 100, 2)
    assert wire.decode(frame) == Pulse(channel, current_ma * 1000, width_us, 10)
    assert frame.count(0xFF) == 1


def test_what_has_no_output_is_read_alike_by_all_three():
    for frame, voltage in ((STOP, 0), (SWITCH_ON, 1)):
        assert wire.decode(frame) is None
        assert virtual.read_frame(frame) == ([], 0, voltage)
        with pytest.raises(ProtocolError):
            decode_pulse(frame)


@pytest.mark.parametrize("place", range(35))
def test_a_wrong_frame_of_ours_is_noticed(place):
    with pytest.raises(ProtocolError):
        decode_pulse(PULSE[:place] + bytes((PULSE[place] ^ 2,)) + PULSE[place + 1 :])


@pytest.mark.safety("A12")
@pytest.mark.parametrize(
    "values",
    [
        (0, 20_000, 250, 20),
        (9, 20_000, 250, 20),
        (1, 0, 250, 20),
        (1, 171_000, 250, 20),
        (1, 20_500, 250, 20),
        (1, 20_000, 0, 20),
        (1, 20_000, 1010, 20),
        (1, 20_000, 255, 20),
        (1, 20_000, 250, 9),
        (1, 20_000, 250, 255),
    ],
)
def test_what_the_box_cannot_do_is_not_encoded(values):
    with pytest.raises(LimitError, match="nearest"):
        encode_pulse(*values)


@given(st.binary(max_size=200), st.binary(min_size=16, max_size=16), st.data())
def test_deframer_takes_any_bytes_in_any_cuts_and_the_answer_after_a_restart(noise, answer, data):
    whole, cut = Deframer(), Deframer()
    place = data.draw(st.integers(0, len(noise)))
    assert cut.feed(noise[:place]) + cut.feed(noise[place:]) == whole.feed(noise)
    for deframer in (whole, cut):
        assert len(deframer._buffer) == len(noise) % N_ANSWER_BYTES
        deframer.restart()
        assert deframer.n_bad_frames == bool(len(noise) % N_ANSWER_BYTES)
        assert [it for byte in answer for it in deframer.feed(bytes((byte,)))] == [answer]


# --- wire check -------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A13")
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytearray(PULSE), "not bytes"),
        (b"", "not one whole frame"),
        (PULSE[:-1], "not one whole frame"),
        (PULSE + STOP, "not one whole frame"),
        (PULSE[:-1] + bytes((PULSE[-1] ^ 1,)), "checksum"),
        (one_pulse(delay=0xAB), "at the same time"),
        (one_pulse(period_ms=9), "period"),
        (one_pulse(period_ms=255), "period"),
        (one_pulse(percent=99), "99 %"),
        (one_pulse(percent=0), "0 %"),
        (one_pulse(voltage=1), "switches the high voltage: 1"),
        (one_pulse(voltage=0), "switches the high voltage: 0"),
        (one_pulse(voltage=3), "switches the high voltage: 3"),
        (one_pulse(current_ma=171), "cannot do"),
        (one_pulse(current_ma=0), "cannot do"),
        (one_pulse(width_us=1010), "cannot do"),
        (one_pulse(width_us=0), "cannot do"),
        (one_pulse(prescalers=(1, 1, 2, 1, 1, 1, 1, 1)), "prescalers"),
        (one_pulse(doublets=4), "doublets"),
        (one_pulse(interval=27), "doublets"),
        (one_pulse(sensor=1), "sensor"),
        (message([20, 20, *[0] * 6], [250, 250, *[0] * 6], 20, 100, 2), r"channels \[1, 2\]"),
        (message([20, *[0] * 7], [0, 250, *[0] * 6], 20, 100, 2), r"channels \[1, 2\]"),
        (message([0] * 8, [0] * 8, 20, 100, 2), r"channels \[\]"),
        (message([0] * 8, [0] * 8, 20, 100, 1), "switches"),
        (bytes.fromhex(CONNECTS), "switches"),
        (bytes.fromhex(STIMULATES), "switches"),
        *((bytes.fromhex(data), "not one whole frame") for data in TRAINS),
    ],
)
def test_what_is_not_on_the_list_stays(data, why):
    with pytest.raises(WireError, match=why):
        wire.decode(data)


@pytest.mark.safety("A13")
@given(pulses_strategy, st.integers(1, 33), st.integers(0, 255))
def test_what_leaves_is_what_the_box_reads(values, place, byte):
    """Any byte of a lawful pulse made any other, and the checksum right again: it stays, or the box plays what the check read."""
    channel, current_ma, width_us, period_ms = values
    frame = bytearray(one_pulse(channel, current_ma, width_us, period_ms))
    frame[place] = byte
    frame[34] = sum(frame[1:34]) & 0x7F
    try:
        pulse = wire.decode(bytes(frame))
    except WireError:
        return
    bench = Bench()
    bench.give(bytes(frame), 10)
    assert [Pulse(p["channel"], p["current_ua"], p["phase_width_us"], p["interphase_gap_us"]) for p in bench.pulses()] == [pulse]


def test_stop_leaves_and_a_pulse_only_when_due():
    read_fd, write_fd = os.pipe()
    try:
        check = for_driver("motimove")
        check.write(write_fd, STOP)
        with pytest.raises(WireError, match="no pulse is due"):
            check.write(write_fd, PULSE)
        check.due = (3, 20_000, 250, 10)
        check.write(write_fd, PULSE)
        assert os.read(read_fd, 99) == STOP + PULSE
    finally:
        os.close(read_fd)
        os.close(write_fd)


# --- virtual box ------------------------------------------------------------------------------------------------------------------
def test_pulse_and_its_answer():
    bench = Bench()
    bench.wait(100)
    began_ns = bench.now_ns
    assert bench.give(PULSE, 4) == b"" and bench.pulses() == [] and len(bench.records) == 1
    assert len(bench.wait(5)) == N_ANSWER_BYTES
    [pulse] = bench.pulses()
    assert pulse["pulse_ns"] == began_ns + round(35 * 10e9 / 115_200) + MS
    assert (pulse["channel"], pulse["current_ua"], pulse["phase_width_us"], pulse["waveform"]) == (3, 20_000, 250, "assumed")


@pytest.mark.safety("B1", "C1")
def test_without_high_voltage_nothing_comes_and_a_pulse_does_not_switch_it_on():
    bench = Bench(on=False, latency_ns=10 * MS)  # slower than the wire, or a stop always comes after the pulse
    assert len(bench.give(PULSE, 50)) == N_ANSWER_BYTES and bench.pulses() == []
    bench.give(SWITCH_ON)
    bench.give(PULSE, 50)
    assert len(bench.pulses()) == 1
    bench.give(PULSE)
    assert len(bench.give(STOP, 50)) == N_ANSWER_BYTES
    bench.give(PULSE, 50)
    assert len(bench.pulses()) == 1 and bench.judge.pulses_dropped == 1


def test_what_the_one_program_sends():
    bench = Bench(on=False)
    assert len(bench.give(bytes.fromhex(CONNECTS))) == N_ANSWER_BYTES
    answer = bench.give(bytes.fromhex(STIMULATES), 20)
    assert len(answer) == N_ANSWER_BYTES and answer[14] == 100
    assert [(p["channel"], p["current_ua"], p["phase_width_us"]) for p in bench.pulses()] == [(1, 20_000, 500), (5, 20_000, 500)]
    bench.give(message([40] + [0] * 7, [500] * 8, 40, 50, 1), 20)
    assert bench.pulses()[-1]["current_ua"] == 20_000  # 50 % of it
    for data in TRAINS:
        assert bench.give(bytes.fromhex(data), 500) == b""
    assert bench.refused() == ["train start: not here", "train stop: not here"] and len(bench.pulses()) == 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PULSE[:-1] + bytes((PULSE[-1] ^ 1,)), "checksum"),
        (PULSE[:20], "cut short by a new frame"),
        (PULSE[1:], "outside a frame"),
        (b"\xff\x21", "states 33 bytes"),
        (b"\xff\x03\x08\x0b", "unknown command: not here"),
        (one_pulse(delay=1), "delay"),
        (one_pulse(period_ms=9), "period"),
        (one_pulse(percent=101), "intensity"),
        (one_pulse(current_ma=171), "current"),
        (one_pulse(current_ma=101, delay=0xAB), "current"),
        (one_pulse(width_us=1010), "width"),
        (one_pulse(prescalers=(0,) * 8), "prescaler"),
        (one_pulse(doublets=1), "doublets"),
        (one_pulse(sensor=3, voltage=3), "sensor and voltage"),
    ],
)
def test_what_the_box_does_not_take(data, reason):
    bench = Bench()
    assert bench.give(data, 10) == b"" and bench.pulses() == []
    assert len(bench.give(STOP)) == N_ANSWER_BYTES
    assert bench.refused() == [reason]


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=80), st.sampled_from([PULSE, STOP, SWITCH_ON, b"\xff", b"\xff\x22"])), max_size=8), st.data())
def test_box_takes_any_bytes_in_any_cuts_and_the_next_frame(pieces, data):
    stream = b"".join(pieces)
    whole, cut = Bench(), Bench()
    place = data.draw(st.integers(0, len(stream)))
    assert whole.give(stream) == cut.give(stream[:place]) + cut.give(stream[place:])
    for bench in (whole, cut):
        assert len(bench.box._frame) < virtual.MAX_STRAY_BYTES
        assert len(bench.give(SWITCH_ON)) == N_ANSWER_BYTES
        bench.wait(200)  # all that the wire still holds
        n_pulses = len(bench.pulses())
        assert len(bench.give(PULSE, 10)) == N_ANSWER_BYTES and len(bench.pulses()) == n_pulses + 1


@pytest.mark.parametrize(
    ("fault", "n_answer_bytes", "n_pulses"),
    [
        ("lost-ack", [16, 0, 16], 3),
        ("late-ack", [16, 0, 16], 3),
        ("duplicate-ack", [16, 32, 16], 3),
        ("crc-error", [16, 15, 16], 3),
        ("reset", [16, 0, 16], 1),
        ("hang", [16, 0, 0], 1),
    ],
)
def test_faults_of_the_box(fault, n_answer_bytes, n_pulses):
    bench = Bench((fault, 1))
    said = [0 if bench.box.dead else len(bench.give(PULSE, 20)) for _ in range(3)]
    assert said == n_answer_bytes and len(bench.pulses()) == n_pulses
    assert len(bench.wait(200)) == (16 if fault == "late-ack" else 0)


def test_read_frame_names_all_that_is_wrong():
    with pytest.raises(RefusedError, match="delay and period and intensity"):
        virtual.read_frame(one_pulse(delay=7, period_ms=3, percent=200))


# --- device against the virtual box -----------------------------------------------------------------------------------------------
@pytest.fixture
def connect(tmp_path):
    """`connect(*twin_arguments) -> (device, twin)`: opened, prepared and armed, every byte through the wire check."""
    contexts, devices = [], []

    def connect(*arguments):
        context = running_twin(tmp_path, "motimove", *arguments)
        contexts.append(context)
        twin = context.__enter__()
        check = for_driver("motimove")

        def write(fd, data):
            check.due = check._decode(data)
            return check.write(fd, data)

        device = MotiMove(twin.port, write=write)
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
        train, current_ua = i % 5 == 4, 1000 * (1 + i % 20)
        number = device.trigger(train, current_ua)
        asked.append((3 if train else 1, current_ua, 250 if train else 500))
        assert [(it.kind, it.number) for it in events_within(device, 1)] == [(Say.ACK, number)]
        time.sleep(0.01)
    device.close()
    assert device.status()["stop_answered"] and device.status()["n_bad_frames"] == 0
    pulses, refused, summary = twin.end()
    assert [(p["channel"], p["current_ua"], p["phase_width_us"]) for p in pulses] == asked
    assert refused == [] and summary["outside_limits"] == 0


@pytest.mark.safety("A12")
@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("channel", 9, "8"),
        ("current_ma", 20.5, "20000"),
        ("current_ma", 171.0, "170000"),
        ("phase_width_us", 5, "10"),
        ("phase_width_us", 255, "260"),
        ("phase_width_us", 1010, "1000"),
        ("interphase_gap_us", 0, "10"),
        ("interphase_gap_us", 100, "10"),
        ("pulse_rate_hz", 100.5, "100"),
        ("pulse_rate_hz", 3.9, "3.93701"),
    ],
)
def test_limits_are_refused_by_name(field, value, nearest):
    name = "current_ua" if field == "current_ma" else field
    with pytest.raises(LimitError, match=rf"^{name}.*nearest is {nearest}|^{name}.*{nearest}, which is the nearest"):
        MotiMove("/nowhere").prepare([replace(TRAIN, **{field: value})])


@pytest.mark.safety("A13")
@pytest.mark.parametrize(("rate_hz", "period_ms"), [(100.0, 10), (50.0, 20), (30.0, 33), (4.0, 250), (3.94, 253)])
def test_every_prepared_frame_before_the_wire_check(rate_hz, period_ms):
    device = MotiMove("/nowhere")
    trains = [replace(TRAIN, channel=channel, current_ma=60.0, pulse_rate_hz=rate_hz) for channel in (1, 8)]
    device.prepare(trains)
    for index, train in enumerate(trains):
        assert sorted(device._frames[index]) == list(range(1000, 60_001, 1000))
        for current_ua, [frame] in device._frames[index].items():
            assert wire.decode(frame) == Pulse(train.channel, current_ua, 500, 10)
            assert frame[4] == period_ms <= 1000 / rate_hz  # it never states a longer period than the train's


@pytest.mark.safety("E3")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("lost-ack@2", []),
        ("duplicate-ack@2", [(Say.ACK, True), (Say.ACK, False)]),
        ("crc-error@2", []),
        ("reset@2", []),
    ],
)
def test_fault_becomes_its_event(connect, fault, said):
    device, twin = connect("--fault", fault)
    for _ in range(2):
        number = device.trigger(0, 1000)
        assert [(it.kind, it.number) for it in events_within(device, 1)] == [(Say.ACK, number)]
    number = device.trigger(0, 1000)
    events = events_within(device, 0.15, 3)
    assert [(it.kind, it.number == number) for it in events] == said
    device.disarm()
    assert device.status()["stop_answered"]
    device.arm()
    number = device.trigger(0, 1000)  # and what went before does not touch it
    assert [(it.kind, it.number) for it in events_within(device, 1)] == [(Say.ACK, number)]
    assert len(twin.end()[0]) == (3 if fault.startswith("reset") else 4)


@pytest.mark.safety("E3")
def test_late_answer_is_nobodys(connect):
    device, _ = connect("--fault", "late-ack@0")
    number = device.trigger(0, 1000)
    device.disarm()
    # on a machine that stood still in between it was not late
    assert [(it.kind, it.number) for it in events_within(device, 0.5)] in ([(Say.ACK, -1)], [(Say.ACK, number)])


@pytest.mark.safety("E3")
def test_stray_bytes_are_a_fault_of_the_next_pulse(connect):
    device, _ = connect()
    device._take(device._deframer.feed(b"\1\2\3"))
    number = device.trigger(0, 1000)
    events = events_within(device, 1, 2)
    assert [(it.kind, it.number) for it in events] == [(Say.PROTOCOL_ERROR, -1), (Say.ACK, number)]
    assert "3 bytes are no answer" in events[0].text


@pytest.mark.safety("B1")
def test_answers_of_many_stops_do_not_touch_the_pulse_after_them(connect):
    device, _ = connect()
    for _ in range(5):
        device.stop()
    device.arm()
    number = device.trigger(0, 1000)
    assert [(it.kind, it.number) for it in events_within(device, 1)] == [(Say.ACK, number)]


@pytest.mark.safety("B1", "F2")
def test_high_voltage_left_on_is_switched_off_by_the_next_open(connect):
    device, twin = connect()
    os.close(device._fd)
    device._fd = -1  # as if killed
    device.open()
    device._write(device.fileno(), PULSE)
    time.sleep(0.1)
    device.close()
    assert twin.end()[2]["pulses"] == 0


@pytest.mark.safety("E6")
def test_it_says_no_more_than_it_knows(connect):
    device, _ = connect()
    device.disarm()
    assert device.identify() == "MotiMove8 - -"
    assert "waveform" in device.status()["experimental"] and "waveform" in MotiMove("/nowhere").status()["experimental"]


def test_a_prescription_for_it_says_that_it_is_experimental():
    from controller import demo

    config = demo.with_stimulator(prescriptions.load(prescriptions.default_config("demo.toml")), "motimove")
    assert sum("experimental" in note for note in prescriptions.summary(config)["notes"]) == 1
    other = demo.with_stimulator(prescriptions.load(prescriptions.default_config("demo.toml")), "p24")
    assert not any("experimental" in note for note in prescriptions.summary(other)["notes"])


@pytest.mark.safety("E6")
@pytest.mark.parametrize(
    ("says", "error", "why"),
    [
        (b"\x81", DeviceMismatchError, "something answers"),
        (bytes(15), DeviceMismatchError, "something answers"),
        (bytes(17), DeviceMismatchError, "17 bytes, not 16"),
        (bytes(32), DeviceMismatchError, "32 bytes, not 16"),
        (b"", AckTimeoutError, "did not answer"),
    ],
)
def test_whoever_answers_otherwise_is_refused(says, error, why):
    master_fd, slave_fd = os.openpty()
    script = f"import os\nwhile os.read(0, 99): os.write(0, {says!r})"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=master_fd)
    try:
        with pytest.raises(error, match=why):
            MotiMove(os.ttyname(slave_fd)).open()
    finally:
        child.kill()
        child.wait()
        os.close(master_fd)
        os.close(slave_fd)


@pytest.mark.safety("C1", "E1")
def test_hung_box(connect):
    device, twin = connect("--fault", "hang@1")
    device.trigger(0, 1000)
    assert events_within(device, 1)
    device.trigger(0, 1000)
    assert events_within(device, 0.15) == []
    device.stop()
    device.disarm()
    assert not device.status()["stop_answered"]
    with pytest.raises(AckTimeoutError):
        device.arm()
    with pytest.raises(NotArmedError):
        device.trigger(0, 1000)
    assert len(twin.end()[0]) == 1


@pytest.mark.safety("C2", "E5")
def test_after_a_stall_the_pulse_that_waited_plays_at_most_and_then_nothing(connect):
    """A pty gives back nothing of what its reader's side took in, and the stop takes 3 ms on the wire: longer than the pulse needs."""
    device, twin = connect()
    os.kill(twin.process.pid, signal.SIGSTOP)
    device.trigger(0, 1000)
    device.stop()
    os.kill(twin.process.pid, signal.SIGCONT)
    device.disarm()
    assert device.status()["stop_answered"]
    device._write(device.fileno(), PULSE)
    time.sleep(0.1)
    assert twin.end()[2]["pulses"] <= 1


@pytest.mark.safety("C1")
@pytest.mark.parametrize("n_bytes", [1, 2, 3, 20, 34])
def test_torn_pulse_does_not_hide_the_stop(connect, n_bytes):
    device, twin = connect()
    os.write(device.fileno(), PULSE[:n_bytes])
    device.disarm()
    assert device.status()["stop_answered"]
    _, refused, summary = twin.end()
    assert len(refused) == 1 and summary["pulses"] == 0
