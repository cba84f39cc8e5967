"""Pulse Pal: codec against captures and pypulsepal, device against the virtual box whose log is the judge, wire check against both."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypulsepal import PulsePal as Peer
from pypulsepal.definitions import PARAM_CODES, PARAM_DTYPE_MODEL_2

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
from drivers.simulated import twin, virtual_pulsepal
from drivers.stimulators import load
from drivers.stimulators.pulsepal import (
    ABORT,
    HANDSHAKE,
    Deframer,
    Parameter,
    PulsePal,
    encode_name,
    encode_program,
    encode_trigger,
    rest_of_torn,
    volts_code,
)
from tests.test_sciencemode34 import TRAIN, events_within
from tests.test_virtual_sciencemode import running_twin

OPTIONS = {"ua_per_volt": 2500}
MS = 1_000_000
TRAINS = [TRAIN, replace(TRAIN, phase_width_us=250, interphase_gap_us=0), replace(TRAIN, channel=3, current_ma=10.0)]
SHAPES = [(it.channel, it.phase_width_us, it.interphase_gap_us) for it in TRAINS]


def pulse_of(train, current_ua):
    channel, width_us, gap_us = SHAPES[train]
    return (channel, current_ua, width_us, gap_us)


# --- codec ------------------------------------------------------------------------------------------------------------------------
VECTORS = [  # captures, stimulators notes 2.1
    (HANDSHAKE, "d5 48"),
    (encode_name("PYTHON"), "d5 59 50 59 54 48 4f 4e"),
    (encode_program(Parameter.PHASE1_VOLTS, 1, volts_code(5000, 1000)), "d5 4a 02 01 00 c0"),
    (encode_program(Parameter.PHASE1_CYCLES, 1, 4), "d5 4a 04 01 04 00 00 00"),
    (encode_program(Parameter.INTERPULSE_CYCLES, 1, 390), "d5 4a 07 01 86 01 00 00"),
    (encode_program(Parameter.TRAIN_CYCLES, 1, 10_000), "d5 4a 0a 01 10 27 00 00"),
    (encode_trigger(1), "d5 4d 01"),
    (ABORT, "d5 50"),
]


@pytest.mark.parametrize(("ours", "theirs"), VECTORS)
def test_captured_vectors(ours, theirs):
    assert ours == bytes.fromhex(theirs)


class Tap:
    """In place of pypulsepal's port: keeps what it writes, answers as the box would."""

    def __init__(self):
        self.written = b""
        self.serial_object = self

    def write_array(self, data):
        self.written += data

    write = write_array

    def inWaiting(self):  # noqa: N802 (pyserial's name)
        return 0

    def read(self, _):
        return b""

    def read_uint8(self):
        return 1

    def read_uint32(self):
        return 21

    def read_char(self):
        return "K"

    def isOpen(self):  # noqa: N802
        return False

    def close(self):
        pass

    def taken(self):
        data, self.written = self.written, b""
        return data


def test_same_bytes_as_pypulsepal():
    peer, tap, dice = Peer(), Tap(), random.Random(20261125)
    peer._arcom = tap
    assert peer._pulsepal_handshake() and tap.taken() == HANDSHAKE + encode_name("PYTHON")
    n_compared = {code: 0 for code in PARAM_CODES if code != 128}
    for _ in range(2000):
        parameter, channel = Parameter(dice.choice(list(n_compared))), dice.randint(1, 4)
        name = PARAM_CODES[parameter]
        if parameter in (2, 3, 17):
            millivolts = dice.randint(-10_000, 10_000)
            value, theirs = volts_code(millivolts, 1000), millivolts / 1000
        elif PARAM_DTYPE_MODEL_2[name] == "uint32":
            value = dice.choice((dice.randrange(100), dice.randrange(2**32)))
            theirs = (value + 0.5) / 20_000  # it cuts off what is no whole cycle: half of one keeps rounding out of the way
        else:
            value = theirs = dice.randint(0, 1)
        peer._update_param = lambda **_: None  # its own copy allows fewer values than its wire
        assert peer.program_one_param(channel - 1, name, theirs)
        assert encode_program(parameter, channel, value) == tap.taken(), (name, value)
        n_compared[parameter] += 1
    assert min(n_compared.values()) > 80
    for mask in range(16):
        on = [mask >> i & 1 for i in range(4)]
        peer.trigger_selected_channels(*map(bool, on))
        assert encode_trigger(*(i + 1 for i in range(4) if on[i])) == tap.taken()
    peer.stop_all_outputs()
    assert tap.taken() == ABORT


def test_every_millivolt_and_every_step_of_current():
    """Each current has a code of its own, which the wire check reads back, and no current is asked for that 10 V cannot make."""
    for ua_per_volt in (50, 333, 1000, 2500, 100_000):
        highest_ua = 10 * ua_per_volt // 500 * 500
        read = for_driver("pulsepal", {"ua_per_volt": ua_per_volt})._decode.__self__._current_ua
        for current_ua in range(-highest_ua, highest_ua + 1, 500):
            assert read(volts_code(current_ua, ua_per_volt)) == current_ua
    with pytest.raises(LimitError, match="current_ua = 10001"):
        volts_code(10_001, 1000)


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda: encode_program(Parameter.IS_BIPHASIC, 5, 1), "channel = 5 .* nearest is 4"),
        (lambda: encode_program(Parameter.IS_BIPHASIC, 1, 256), "IS_BIPHASIC = 256 .* nearest is 255"),
        (lambda: encode_program(Parameter.PHASE1_CYCLES, 1, -1), "PHASE1_CYCLES = -1 .* nearest is 0"),
        (lambda: encode_trigger(0), "channel = 0 .* nearest is 1"),
        (lambda: encode_name("calmloop"), "six printable"),
    ],
)
def test_what_does_not_fit_is_not_encoded(encode, words):
    with pytest.raises(LimitError, match=words):
        encode()


@given(st.binary(max_size=300), st.integers(0, 5), st.integers(0, 2), st.data())
def test_deframer_takes_any_bytes_however_cut(data, n_acks, n_hellos, draws):
    def fed(*pieces):
        it = Deframer()
        it.n_acks_due, it.n_hellos_due = n_acks, n_hellos
        return [answer for piece in pieces for answer in it.feed(piece)], it

    place = draws.draw(st.integers(0, len(data)))
    (answers, whole), (cut_answers, cut) = fed(data), fed(data[:place], data[place:])
    assert answers == cut_answers and (whole.n_bad_frames, whole.fault) == (cut.n_bad_frames, cut.fault)
    assert len(whole._hello) < 5
    assert sum(map(len, answers)) + len(whole._hello) + whole.n_bad_frames == len(data)
    assert answers.count(b"\x01") <= n_acks and sum(len(it) == 5 for it in answers) <= n_hellos


def test_deframer_counts_acknowledgements():
    deframer = Deframer()
    deframer.n_acks_due = 2
    assert deframer.feed(b"\x01\x01") == [b"\x01"] * 2 and not deframer.n_bad_frames
    assert deframer.feed(b"\x01") == [] and (deframer.n_bad_frames, deframer.fault) == (1, "an acknowledgement too many")
    deframer.n_acks_due, deframer.n_hellos_due = 3, 1
    assert deframer.feed(b"\x01K\x15\x00\x00\x00") == [b"\x01", b"K\x15\0\0\0"] and deframer.n_acks_due == 0
    assert deframer.feed(b"K") == [] and deframer.n_bad_frames == 2 and "4b" in deframer.fault


# --- device without a port --------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A12")
@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("channel", 0, "1"),
        ("channel", 5, "4"),
        ("current_ma", 25.5, "25000"),
        ("current_ma", 20.3, "20500"),
        ("current_ma", 0.0, "500"),
        ("current_ma", float("nan"), "500"),
        ("phase_width_us", 49, "50"),
        ("phase_width_us", 230, "250"),
        ("phase_width_us", 1_000_001, "1000000"),
        ("interphase_gap_us", 120, "100"),
        ("interphase_gap_us", -1, "0"),
        ("pulse_rate_hz", 0.0, "100"),
        ("pulse_rate_hz", 100.1, "100"),
    ],
)
def test_limits_are_refused_by_name(field, value, nearest):
    name = "current_ua" if field == "current_ma" else field
    with pytest.raises(LimitError, match=rf"^{name}.*\b{nearest}\b"):
        load("pulsepal", "/nowhere", options=OPTIONS).prepare([replace(TRAIN, **{field: value})])


def test_gain_decides_the_highest_current():
    assert load("pulsepal", "/nowhere", options={"ua_per_volt": 1060}).limits.max_current_ua == 10_500
    with pytest.raises(LimitError, match="ua_per_volt = 49 is below 50"):
        PulsePal("/nowhere", ua_per_volt=49)


def test_closed_device_refuses_and_stays_quiet():
    device = load("pulsepal", "/nowhere", options=OPTIONS)
    device.prepare(TRAINS)
    device.stop()
    device.disarm()
    device.close()
    assert device.read_events() == []
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)
    with pytest.raises(PortLostError):
        device.arm()
    with pytest.raises(DeviceNotFoundError):
        device.open()


# --- device against the virtual box -----------------------------------------------------------------------------------------------
class Port:
    """The driver's way out: the wire check in front, then the port; remembers what left, and can fail."""

    def __init__(self):
        self.check = for_driver("pulsepal", OPTIONS)
        self.left = []
        self.outcome = None  # instead of writing: bytes to take of it, or an error

    def write(self, fd, data):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is not None:
            self.check._decode(data)
            return os.write(fd, data[: self.outcome]) if self.outcome else 0
        n_written = self.check.write(fd, data)
        self.left.append(data)
        return n_written


@pytest.fixture
def connect(tmp_path):
    """`connect(*twin_arguments) -> (device, twin, port)`: opened, prepared and armed, with the wire check in between."""
    contexts, devices = [], []

    def connect(*arguments):
        context = running_twin(tmp_path, "pulsepal", *arguments)
        twin = context.__enter__()
        contexts.append(context)
        port = Port()
        device = load("pulsepal", twin.port, port.write, OPTIONS)
        devices.append(device)
        device.open()
        device.prepare(TRAINS)
        device.arm()
        twin.lines = lambda: [json.loads(it) for it in (tmp_path / "pulses.jsonl").read_text().splitlines()]
        return device, twin, port

    yield connect
    for device in devices:
        device.close()
    for context in contexts:
        context.__exit__(None, None, None)


def trigger(device, port, train, current_ua, wait_s=0.015):
    """One pulse as guard asks for it, and time to play it."""
    port.check.due = pulse_of(train, current_ua)
    number = device.trigger(train, current_ua)
    time.sleep(wait_s)
    return number


def played(pulses):
    return [tuple(it[key] for key in ("channel", "current_ua", "phase_width_us", "interphase_gap_us")) for it in pulses]


@pytest.mark.safety("A7")
def test_pulses_of_all_trains_and_currents_in_any_order(connect):
    device, twin, port = connect()
    dice = random.Random(1)
    asked = []
    for _ in range(100):
        train = dice.choice((0, 0, 0, 1, 2))
        current_ua = dice.choice((500, 10_000, 500 * dice.randint(1, 40 if train < 2 else 20)))
        trigger(device, port, train, current_ua)
        asked.append(pulse_of(train, current_ua))
        assert [it.kind for it in device.read_events()] == [DeviceEventKind.ACK]
    sizes = [len(it) for it in port.left if b"\xd5\x4d" in it]
    assert len(sizes) == 100 and set(sizes) == {8, 20, 52}
    assert device.status()["armed"] and device.status()["firmware"] == 21
    device.close()
    assert device.status()["stop_answered"]
    pulses, refused, summary = twin.end()
    assert played(pulses) == asked and all(it["balanced"] for it in pulses)
    assert refused == [] and summary["unbalanced"] == 0 and not [it for it in twin.lines() if "ignored" in it or "direct_ua" in it]


@pytest.mark.safety("B1", "E2")
def test_a_pulse_is_one_write_and_no_other_operation_ever_leaves(connect):
    device, twin, port = connect()
    port.left.clear()
    for i, current_ua in enumerate((500, 500, 20_000)):
        trigger(device, port, 0, current_ua)
        assert len(port.left) == i + 1
        events_within(device, 0.02)
    pulse = b"\xd5\x4d\x01\xd5\x4a\x0c\x01\x00"
    assert port.left[:2] == [pulse] * 2 and port.left[2].endswith(pulse) and len(port.left[2]) == 20
    port.left.clear()
    device.stop()
    assert port.left == [b"\xd5\x50"]
    device.arm()
    device.close()
    assert {it[1] for it in port.left} == {72, 74, 80}
    assert len(twin.end()[0]) == 3


@pytest.mark.safety("B1")
def test_nothing_leaves_before_arm_or_after_stop(connect):
    device, twin, port = connect()
    for off in (device.stop, device.disarm, lambda: device.prepare(TRAINS)):
        off()
        off()
        with pytest.raises(NotArmedError):
            trigger(device, port, 0, 500)
        device.arm()
    for train, current_ua in ((0, 20_500), (0, 0), (0, 499), (3, 500), (-1, 500)):
        with pytest.raises(LimitError):
            device.trigger(train, current_ua)
    device.close()
    device.close()
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)
    assert twin.end()[2]["pulses"] == 0


@pytest.mark.safety("C1")
def test_after_a_stop_everything_is_programmed_anew(connect):
    device, twin, port = connect()
    trigger(device, port, 0, 20_000)
    device.stop()
    port.left.clear()
    device.arm()
    assert sum(it[1] == 74 for it in port.left) == 2 * 17 and {it[3] for it in port.left if it[1] == 74} == {1, 3}
    port.left.clear()
    trigger(device, port, 0, 500)
    assert port.left == [b"\xd5\x4d\x01\xd5\x4a\x0c\x01\x00"]
    device.close()
    assert played(twin.end()[0]) == [pulse_of(0, 20_000), pulse_of(0, 500)]


@pytest.mark.safety("C1", "E2")
@pytest.mark.parametrize("train", [0, 1], ids=["other current", "other train"])
def test_write_torn_at_any_byte_makes_no_other_pulse_and_does_not_hide_the_stop(connect, train):
    """A bare D5 50 after D5 4D would be the mask of channels 1 and 3: the stop first completes what was torn.

    Torn behind its trigger, in the receipt, a pulse may have been played; guard counts it as given.
    """
    device, twin, port = connect()
    size = 20 if train == 0 else 52
    for n_taken in range(1, size):
        port.outcome, port.check.due = n_taken, pulse_of(train, 20_000)
        with pytest.raises(ShortWriteError, match=f"{n_taken} of {size}"):
            device.trigger(train, 20_000)
        with pytest.raises(NotArmedError):
            device.trigger(train, 20_000)
        port.outcome = None
        device.stop()
        assert device.status()["stop_answered"]
        device.arm()
    assert device.read_events() == []
    trigger(device, port, 1, 500)
    device.close()
    pulses, refused, _ = twin.end()
    *torn, last = played(pulses)
    assert set(torn) <= {pulse_of(train, 20_000)} and len(torn) <= 5 and last == pulse_of(1, 500) and refused == []
    lines = twin.lines()
    assert not [it for it in lines if "ignored" in it or "direct_ua" in it]
    assert sum("stop_ns" in it for it in lines) == 2 + 2 * (size - 1) + 2  # open, arm; each tear and arm; close


@pytest.mark.safety("C1", "E2")
@pytest.mark.parametrize("then", ["stop", "disarm", "identify", "arm"])
def test_torn_stop_and_torn_programming_are_mended_before_anything_else(connect, then):
    device, twin, port = connect()
    device.disarm()
    for data in (ABORT, HANDSHAKE, encode_program(Parameter.RESTING_VOLTS, 1, 0x8000)):
        for n_taken in range(1, len(data)):
            port.check._decode(data)
            device._torn = (data, os.write(device.fileno(), data[:n_taken]))
            getattr(device, then)()
            device.arm()
            device.disarm()
    device.arm()
    trigger(device, port, 0, 500)
    device.close()
    assert played(twin.end()[0]) == [pulse_of(0, 500)]
    assert not [it for it in twin.lines() if "ignored" in it or "direct_ua" in it or "refused" in it]


@pytest.mark.safety("C1", "E2")
def test_torn_write_that_cannot_be_mended_lets_no_question_out(connect):
    device, twin, port = connect()
    port.outcome, port.check.due = 2, pulse_of(0, 500)
    with pytest.raises(ShortWriteError):
        device.trigger(0, 500)
    port.outcome = 0
    device.stop()
    assert not device.status()["stop_answered"]
    for ask in (device.identify, device.arm):
        with pytest.raises(ShortWriteError, match="not the rest"):
            ask()
    port.outcome = None
    device.stop()
    assert device.status()["stop_answered"] and port.left[-1] == rest_of_torn(b"\xd5\x4d\x01", 2) + ABORT
    device.arm()
    trigger(device, port, 0, 1000)
    device.close()
    assert played(twin.end()[0]) == [pulse_of(0, 1000)]


@pytest.mark.safety("E2")
@pytest.mark.parametrize(
    ("outcome", "error"),
    [(0, ShortWriteError), (BlockingIOError(), ShortWriteError), (OSError(errno.EIO, "gone"), PortLostError), (WireError("no"), WireError)],
    ids=["nothing taken", "full", "lost", "refused"],
)
def test_doubtful_write_disarms_and_everything_is_programmed_anew(connect, outcome, error):
    device, twin, port = connect()
    port.outcome = outcome
    with pytest.raises(error):
        device.trigger(0, 20_000)
    port.outcome = None
    with pytest.raises(NotArmedError):
        device.trigger(0, 20_000)
    device.stop()
    device.arm()
    trigger(device, port, 0, 20_000)
    assert len(port.left[-1]) == 20
    device.close()
    assert played(twin.end()[0]) == [pulse_of(0, 20_000)]


@pytest.mark.safety("C2", "E5")
def test_what_waited_in_a_stalled_port_is_aborted_before_it_plays(connect, monkeypatch):
    """Nothing is dropped: of a command that is half dropped, the other half would be the stop. The stop is read right behind it."""
    device, twin, port = connect()
    flushed = []
    monkeypatch.setattr(termios, "tcflush", lambda fd, queue: flushed.append(queue))
    os.kill(twin.process.pid, signal.SIGSTOP)
    time.sleep(0.02)
    for _ in range(5):
        trigger(device, port, 0, 500)
    device.stop()
    time.sleep(0.02)  # until it waits with the rest
    os.kill(twin.process.pid, signal.SIGCONT)
    device.arm()
    assert flushed == []
    device.close()
    assert twin.end()[2]["pulses"] == 0


@pytest.mark.safety("E3", "E5")
def test_each_pulse_has_its_answer_whatever_had_to_be_programmed_before_it(connect):
    device, twin, port = connect()
    numbers = []
    for train, current_ua in ((0, 500), (0, 500), (0, 1000), (1, 500), (1, 500), (0, 1000)):
        numbers.append(trigger(device, port, train, current_ua))
        [event] = events_within(device, 1)
        assert (event.kind, event.number) == (DeviceEventKind.ACK, numbers[-1])
    assert len(set(numbers)) == 6
    device.close()
    assert len(twin.end()[0]) == 6


@pytest.mark.safety("E3")
@pytest.mark.parametrize("fault", ["lost-ack@2", "hang@1"])
def test_a_pulse_without_its_answer_has_none(connect, fault):
    """Guard then gives no other, and takes it for a fault after 100 ms."""
    device, _, port = connect("--fault", fault)
    trigger(device, port, 0, 500)
    assert [it.kind for it in events_within(device, 1)] == [DeviceEventKind.ACK]
    trigger(device, port, 0, 1000)
    assert events_within(device, 0.2) == []
    device.stop()
    device.disarm()
    assert device.status()["stop_answered"] is fault.startswith("lost")


@pytest.mark.safety("E3")
def test_an_answer_that_comes_after_the_next_arming_is_nobodys(connect):
    device, _, port = connect("--fault", "late-ack@1")
    trigger(device, port, 0, 500)
    device.stop()
    device.arm()
    assert DeviceEventKind.ACK not in [it.kind for it in events_within(device, 0.3)]


@pytest.mark.safety("E3")
def test_acknowledgement_too_many_is_a_protocol_error(connect):
    device, _, port = connect("--fault", "duplicate-ack@1")
    trigger(device, port, 0, 500)
    trigger(device, port, 0, 1000)
    events = events_within(device, 1, 3)
    assert [it.kind for it in events if it.kind is not DeviceEventKind.ACK] == [DeviceEventKind.PROTOCOL_ERROR]
    assert "acknowledgement too many" in events[-1].text
    assert device.status()["n_bad_frames"] == 1


def test_lost_port_is_told_once(connect):
    device, _, port = connect("--fault", "hangup@1")
    trigger(device, port, 0, 500)
    events = events_within(device, 1)
    assert [it.kind for it in events] == [DeviceEventKind.PORT_LOST] and device.read_events() == []
    with pytest.raises((NotArmedError, PortLostError)):
        trigger(device, port, 0, 500)
    device.stop()
    device.disarm()
    device.close()


@pytest.mark.safety("A13")
def test_port_belongs_to_one(connect):
    device, twin, port = connect()
    with pytest.raises(DeviceNotFoundError, match="another program"):
        load("pulsepal", device.port, options=OPTIONS).open()
    trigger(device, port, 0, 500)
    device.close()
    assert len(twin.end()[0]) == 1


@pytest.mark.safety("E6")
def test_box_says_again_who_it_is(connect):
    device, _, _ = connect()
    with pytest.raises(DriverError, match="armed"):
        device.identify()
    device.disarm()
    assert device.identify() == device.identify() == "PulsePal - 21"
    device.close()
    with pytest.raises(PortLostError):
        device.identify()


@pytest.mark.safety("E6")
@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"K\x14\0\0\0", None, ""),
        (b"K\x12\0\0\0", DeviceMismatchError, "firmware 18"),
        (b"K\x16\0\0\0", DeviceMismatchError, "firmware 22"),
        (b"hello", DeviceMismatchError, "something answers"),
        (b"\x01", DeviceMismatchError, "something answers"),
        (b"K\x14", DeviceMismatchError, "something answers"),
        (b"", AckTimeoutError, "HANDSHAKE"),
    ],
)
def test_who_answers(answer, error, words):
    master_fd, slave_fd = os.openpty()
    code = f"import os\nwhile os.read(0, 99): os.write(0, {answer!r})" if answer else "import time\ntime.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=master_fd)
    device = load("pulsepal", os.ttyname(slave_fd), options=OPTIONS)
    try:
        if error is None:
            device.open()
            assert device.identify() == "PulsePal - 20"
        else:
            with pytest.raises(error, match=words):
                device.open()
    finally:
        device.close()
        child.kill()
        child.wait()
        os.close(master_fd)
        os.close(slave_fd)


@pytest.mark.safety("E6")
def test_another_stimulator_is_no_pulse_pal(tmp_path):
    with running_twin(tmp_path, "rehamove3") as other, pytest.raises((AckTimeoutError, DeviceMismatchError)):
        load("pulsepal", other.port, options=OPTIONS).open()


@pytest.mark.safety("B1", "F2")
def test_box_left_playing_by_another_program_is_stopped_by_open(tmp_path):
    with running_twin(tmp_path, "pulsepal") as box:
        peer = Peer(box.port)
        assert peer.set_continuous(0, 1)
        peer._arcom.close()  # not its close(), which says goodbye
        peer._arcom = None
        device = load("pulsepal", box.port, options=OPTIONS)
        device.open()
        n_played = len((tmp_path / "pulses.jsonl").read_text().splitlines())
        time.sleep(0.1)
        device.close()
        lines = [json.loads(it) for it in (tmp_path / "pulses.jsonl").read_text().splitlines()]
        assert n_played and max(it["pulse_ns"] for it in lines if "pulse_ns" in it) < min(it["stop_ns"] for it in lines if "stop_ns" in it)


# --- the wire check ---------------------------------------------------------------------------------------------------------------
def programming(channel=1, width_us=500, gap_us=100, current_ua=500):
    """All 17 parameters, by hand."""
    codes = {1: 1, 2: volts_code(current_ua, 2500), 3: volts_code(-current_ua, 2500), 4: width_us // 50, 5: gap_us // 50, 6: width_us // 50}
    codes |= {7: 20_000, 10: (2 * width_us + gap_us) // 50, 17: 0x8000} | dict.fromkeys((8, 9, 11, 12, 13, 14, 15, 16), 0)
    return [encode_program(Parameter(it), channel, value) for it, value in sorted(codes.items())]


def decoded(*frames, ua_per_volt=2500):
    decode = for_driver("pulsepal", {"ua_per_volt": ua_per_volt})._decode
    return [decode(it) for it in frames][-1]


@pytest.mark.safety("A7", "A13")
@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 400), st.integers(1, 2000), st.integers(0, 2000), st.sampled_from((1000, 2500, 10_000, 100_000)))
def test_what_the_driver_encodes_is_what_was_asked(channel, step, width, gap, ua_per_volt):
    current_ua = min(500 * step, 10 * ua_per_volt)
    train = replace(
        TRAIN, channel=channel, current_ma=current_ua / 1e3, phase_width_us=50 * width, interphase_gap_us=50 * gap, pulse_rate_hz=1.0
    )
    device = PulsePal("/nowhere", ua_per_volt=ua_per_volt)
    prepared = device.prepare([train])
    assert len(set(prepared)) == 1 + 2 * current_ua // 500
    for level_ua, (again, other_current, other_train) in device._frames[0].items():
        due = Pulse(channel, level_ua, 50 * width, 50 * gap)
        first = programming(channel, 250, 0)
        assert decoded(*first, other_train, ua_per_volt=ua_per_volt) == due
        assert decoded(*first, other_train, again, ua_per_volt=ua_per_volt) == due
        assert decoded(*programming(channel, 50 * width, 50 * gap), other_current, ua_per_volt=ua_per_volt) == due


@pytest.mark.safety("A13")
def test_a_trigger_needs_all_that_was_said_before_it():
    frames, fire = programming(), encode_trigger(1)
    assert decoded(*frames, fire) == Pulse(1, 500, 500, 100)
    for missing in range(len(frames)):
        with pytest.raises(WireError, match="not known"):
            decoded(*frames[:missing], *frames[missing + 1 :], fire)
    with pytest.raises(WireError, match="not known"):
        decoded(*frames, ABORT, fire)
    with pytest.raises(WireError, match="channel 2"):
        decoded(*frames, encode_trigger(2))


@pytest.mark.safety("A7", "A13")
@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        (1, 0, "parameter 1"),
        (2, 0x8000, "unbalanced, empty"),
        (2, volts_code(1000, 2500), "unbalanced"),
        (2, volts_code(500, 2500) + 1, "multiple"),
        (2, volts_code(500, 2500) - 1, "multiple"),
        (3, volts_code(500, 2500), "unbalanced"),
        (4, 11, "unbalanced: 11"),
        (4, 0, "unbalanced: 0"),
        (5, 3, "not one pulse"),
        (6, 9, "unbalanced"),
        (7, 21, "not one pulse"),
        (8, 1, "parameter 8"),
        (9, 1, "parameter 9"),
        (10, 21, "not one pulse"),
        (10, 23, "not one pulse"),
        (10, 20_022, "not one pulse"),
        (11, 1, "parameter 11"),
        (12, 1, "parameter 12"),
        (13, 1, "parameter 13"),
        (14, 1, "parameter 14"),
        (15, 1, "parameter 15"),
        (16, 1, "parameter 16"),
        (17, 0x8001, "parameter 17"),
    ],
)
def test_one_wrong_parameter_stays_or_its_trigger_does(parameter, value, words):
    with pytest.raises(WireError, match=words):
        decoded(*programming(), encode_program(Parameter(parameter), 1, value), encode_trigger(1))


@pytest.mark.safety("A13")
def test_white_list_is_all_that_leaves():
    decode = for_driver("pulsepal", OPTIONS)._decode
    for frame in programming():
        decode(frame)
    allowed = {72: b"", 80: b"", 89: b"CLMLP "}
    for operation in range(256):
        for data in (b"", b"\0", b"\1", b"\0\0", b"\1\1", b"\1\0\x80", b"\0\0\0\0", b"CLMLP ", bytes(178), b"\1\1\1"):
            frame = bytes((0xD5, operation)) + data
            if allowed.get(operation) == data:
                assert decode(frame) is None
            elif frame not in (b"\xd5\x4a\1\1\1", b"\xd5\x4d\1"):
                with pytest.raises(WireError):
                    decode(frame)
    for frame in (b"", b"\x50", b"\0" + ABORT, ABORT * 2, HANDSHAKE + ABORT, encode_trigger(1) * 2, encode_trigger(1, 2), encode_trigger()):
        with pytest.raises(WireError):
            decode(frame)
    for no_bytes in (bytearray(ABORT), memoryview(ABORT), "\xd5P", None):
        with pytest.raises(WireError, match="not bytes"):
            decode(no_bytes)
    with pytest.raises(WireError):
        decode(encode_trigger(1) + encode_program(Parameter.IS_BIPHASIC, 1, 1))


@pytest.mark.safety("A13")
def test_only_the_rest_of_the_last_write_may_stand_before_a_stop():
    def after(*frames):
        decode = for_driver("pulsepal", OPTIONS)._decode
        for frame in frames:
            decode(frame)
        return decode

    volts, fire = encode_program(Parameter.PHASE1_VOLTS, 1, 0xC0D5), encode_trigger(1)
    for n in range(1, 6):
        assert after(volts)(rest_of_torn(volts, n) + ABORT) is None
    for n in (1, 2):
        assert after(*programming(), fire)(rest_of_torn(fire, n) + ABORT) is None
    for stop in (b"\x01" + ABORT, b"\x4d\x01" + ABORT, volts + ABORT, fire + ABORT, volts[2:] + b"\0" + ABORT):
        with pytest.raises(WireError):
            after(*programming(), fire)(stop)
    with pytest.raises(WireError):
        after(volts, HANDSHAKE)(volts[3:] + ABORT)


def in_process(frames):
    """What the virtual box makes of these bytes: its pulses, and everything else it had to say."""
    lines = []
    box = virtual_pulsepal.Box("pulsepal", None, twin.Judge(), lambda _: None, lines.append, lambda _: None)
    for i, frame in enumerate(frames):
        box.receive(frame, (i + 1) * 10**8)
    box.run_due(10**12)
    return played(it for it in lines if "pulse_ns" in it), [it for it in lines if "pulse_ns" not in it and "stop_ns" not in it]


@pytest.mark.safety("A13")
@settings(deadline=None, max_examples=1500)
@given(st.integers(0, 17), st.sets(st.integers(0, 63), min_size=1, max_size=4), st.booleans())
def test_bits_turned_over_leave_only_if_the_virtual_box_plays_what_is_due(at, bits, is_ours):
    """Any frame between programming and trigger, damaged: either something is refused, or the box gives exactly the pulse that is due."""
    frames = [*programming(), encode_program(Parameter.PHASE1_VOLTS, 1, volts_code(500, 2500)) + encode_trigger(1)]
    damaged = bytearray(frames[at])
    for bit in bits:
        damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
    sent = [*frames[:at], bytes(damaged), *(frames[at:] if is_ours else frames[at + 1 :])]
    try:
        pulses = [it for it in map(for_driver("pulsepal", OPTIONS)._decode, sent) if it is not None]
    except WireError:
        return
    got, said = in_process(sent)
    assert got == [tuple(it) for it in pulses] and said == []


# --- the virtual box, and pypulsepal as its client ----------------------------------------------------------------------------------
class Bench:
    """A box without a process: its clock is ours."""

    def __init__(self, fault=("", 0)):
        self.sent, self.lines, self.records = b"", [], []
        self.judge = twin.Judge()
        self.box = virtual_pulsepal.Box("pulsepal", None, self.judge, self.take, self.lines.append, self.records.append, fault)
        self.now_ns = 10**12

    def take(self, answer):
        self.sent += answer

    def give(self, *frames, wait_ms=0.0):
        for frame in frames:
            self.box.receive(frame, self.now_ns)
        self.now_ns += round(wait_ms * MS)
        self.box.run_due(self.now_ns)

    def set(self, **parameters):
        self.give(*(encode_program(Parameter[name], 1, value) for name, value in parameters.items()))

    @property
    def pulses(self):
        return [it for it in self.lines if "pulse_ns" in it]


def test_box_plays_in_the_next_cycle_and_says_so_before():
    bench = Bench()
    bench.give(*programming(), encode_trigger(1))
    assert bench.sent == b"\x01" * 17 and len(bench.records) == 1 and not bench.pulses
    received_ns, pulse_ns, *rest = twin.PULSE_RECORD.unpack(bench.records[0])
    assert pulse_ns == bench.now_ns + round(sum(map(len, programming())) * 10e9 / 12e6 + 3 * 10e9 / 12e6) + 50_000
    assert rest == [500, 500, 1, 0] and received_ns == bench.now_ns
    bench.give(wait_ms=5000)
    assert [it["pulse_ns"] for it in bench.pulses] == [pulse_ns] and not bench.box._due


def test_box_as_it_is_switched_on_plays_a_second_of_monophasic_pulses():
    bench = Bench()
    bench.give(encode_trigger(4), wait_ms=5000)
    assert len(bench.pulses) == 91 and {it["channel"] for it in bench.pulses} == {4}  # 1 ms, 10 ms apart, within 1 s
    assert {later["pulse_ns"] - earlier["pulse_ns"] for earlier, later in pairwise(bench.pulses)} == {11 * MS}
    assert not bench.pulses[0]["balanced"] and bench.pulses[0]["current_ua"] == 12_500 and bench.judge.unbalanced == 91


def test_box_keeps_bursts_delay_and_the_end_of_a_train():
    bench = Bench()
    bench.give(*programming(), encode_program(Parameter.INTERPULSE_CYCLES, 1, 178))  # 10 ms apart
    bench.set(BURST_CYCLES=500, INTERBURST_CYCLES=1500, TRAIN_CYCLES=4010, DELAY_CYCLES=100)
    bench.give(encode_trigger(1), wait_ms=1000)
    starts_ms = [(it["pulse_ns"] - bench.pulses[0]["pulse_ns"]) / MS for it in bench.pulses]
    assert starts_ms == [0, 10, 20, 100, 110, 120, 200]
    assert not bench.pulses[-1]["balanced"] and all(it["balanced"] for it in bench.pulses[:-1])  # the train ended in its first phase


def test_abort_ends_trains_and_loops():
    bench = Bench()
    bench.give(*programming(), encode_program(Parameter.INTERPULSE_CYCLES, 1, 178), b"\xd5\x52\x01\x01", wait_ms=3001)
    assert len(bench.pulses) == 301
    bench.give(ABORT, wait_ms=3000)
    assert len(bench.pulses) == 301
    bench.give(encode_trigger(1), wait_ms=3000)
    assert len(bench.pulses) == 302  # the loop is over, the parameters are kept


def test_trigger_of_a_channel_that_plays_is_ignored():
    bench = Bench()
    bench.give(*programming(), encode_trigger(1), encode_trigger(1), wait_ms=10)
    assert len(bench.pulses) == 1 and [it["ignored"] for it in bench.lines if "ignored" in it] == ["channel 1 plays"]
    bench.give(encode_trigger(1), wait_ms=10)
    assert len(bench.pulses) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00",
        b"\x50",
        b"\xd5\x00",
        b"\xd5\x56",
        b"\xd5\x4a\x12\x01\x00",
        b"\xd5\x4a\x01\x00\x01",
        b"\xd5\x4a\x01\x05\x01",
        b"\xd5\x4a\x01\x01\x02",
        b"\xd5\x4a\x80\x03\x00",
        b"\xd5\x4a\x80\x01\x03",
        b"\xd5\x52\x05\x01",
        b"\xd5\x52\x01\x02",
        b"\xd5\x4f\x00\0\0",
    ],
)
def test_box_refuses(raw):
    bench = Bench()
    bench.give(raw, HANDSHAKE)
    assert bench.judge.frames_refused == 1 and bench.lines[0]["bytes"] == raw.hex(" ") and bench.sent == b"K\x15\0\0\0"


def test_cut_operation_takes_what_follows():
    bench = Bench()
    bench.give(*programming(), b"\xd5\x4d", ABORT, wait_ms=10)  # why a stop completes what was torn
    assert {it["channel"] for it in bench.pulses} == {1, 3}


def test_direct_voltage_is_outside_limits():
    bench = Bench()
    bench.give(bytes.fromhex("d5 4f 02 cd 8c"))  # captured: 1 V on channel 2
    assert bench.lines == [{"direct_ua": 2500, "channel": 2, "wire_ns": bench.lines[0]["wire_ns"]}] and bench.judge.outside_limits == 1
    bench.give(encode_program(Parameter.RESTING_VOLTS, 1, 0x8000))
    assert bench.judge.outside_limits == 1 and bench.sent == b"\x01\x01"


def test_captured_custom_train_is_played():
    bench = Bench()
    bench.give(bytes.fromhex("d5 4b 02 00 00 00 00 00 00 00 c8 00 00 00 00 c0 00 c0"))
    bench.set(CUSTOM_TRAIN=1, CUSTOM_TARGET=0)
    bench.give(encode_trigger(1), wait_ms=1000)
    assert bench.sent == b"\x01" * 3
    assert [it["current_ua"] for it in bench.pulses] == [12_500] * 2
    assert bench.pulses[1]["pulse_ns"] - bench.pulses[0]["pulse_ns"] == 10 * MS


def test_pypulsepal_drives_the_virtual_box(tmp_path):
    with running_twin(tmp_path, "pulsepal", "--max-rate-hz", "1000") as box:
        with Peer(box.port) as peer:
            assert (peer.firmware_version, peer.model) == (21, 2)
            peer.sync_all_params()
            peer.upload_all()
            for name, value in {
                "isBiphasic": True,
                "phase1Voltage": 4.0,
                "phase2Voltage": -4.0,
                "phase1Duration": 0.0005,
                "interPhaseInterval": 0.0001,
                "phase2Duration": 0.0005,
                "interPulseInterval": 0.0189,
                "pulseTrainDuration": 0.1,
            }.items():
                assert peer.program_one_param(1, name, value)
            assert peer.program_trigger_channel(0, "toggle") and peer.set_resting_voltage(1, 0.0) and peer.set_fixed_voltage(2, 0.0)
            settings = peer.read_sd_params()
            assert settings["phase1Duration"][:2] == [0.001, 0.0005] and settings["isBiphasic"] == [0, 1, 0, 0]
            assert settings["phase1Voltage"][1] == pytest.approx(4, abs=1e-3) and settings["triggerMode"] == [1, 0]
            peer.trigger_selected_channels(channel_2=True)
            time.sleep(0.15)
            assert peer.upload_custom_pulse_train(0, [0.0, 0.01, 0.03], [1.0, 2.0, 3.0])
            assert peer.program_one_param(3, "customTrainID", 1)
            peer.trigger_selected_channels(channel_4=True)
            time.sleep(0.1)
            assert peer.set_continuous(1, 1)
            time.sleep(0.2)
            peer.stop_all_outputs()
            peer.save_to_sd()
            assert peer._arcom.bytes_available() == 0
        pulses, refused, summary = box.end()
    assert refused == [] and summary["answers_lost"] == 0 and not [it for it in pulses if it["channel"] not in (2, 4)]
    second = [it for it in pulses if it["channel"] == 2]
    assert len(second) > 5 and {(it["current_ua"], it["phase_width_us"], it["interphase_gap_us"], it["balanced"]) for it in second} == {
        (10_000, 500, 100, True)
    }
    assert {later["pulse_ns"] - earlier["pulse_ns"] for earlier, later in pairwise(second[:5])} == {20 * MS}
    fourth = [it for it in pulses if it["channel"] == 4]
    assert [it["current_ua"] for it in fourth] == [2500, 5000, 7500]
    assert [later["pulse_ns"] - earlier["pulse_ns"] for earlier, later in pairwise(fourth)] == [10 * MS, 20 * MS]
