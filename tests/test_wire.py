"""The wire check: what leaves is what was approved. Judged by what comes out of a pipe, by the makers' bytes, by the virtual
stimulator's own codec and by science-mode-4."""

import ast
import json
import os
import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench import wire as bench
from controller.wire import DECODERS, Pulse, WireCheck, WireError, for_driver
from controller.wire import sciencemode34 as wire
from drivers.base import DeviceNotFoundError, NotArmedError
from drivers.simulated.twin import RefusedError, shape_of
from drivers.simulated.virtual_sciencemode import unwrap, wrap
from drivers.stimulators import STIMULATORS, load, sciencemode34
from drivers.stimulators.sciencemode34 import ScienceMode34
from tests.test_sciencemode34 import TRAIN, events_within
from tests.test_virtual_sciencemode import running_twin

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("p24", "rehamove3")
PULSE = Pulse(1, 20_000, 250, 100)
CHANNELS = {"rehamove3": 4, "p24": 8}
QUESTIONS = {"rehamove3": {50, 52, 54, 62}, "p24": {52, 62, 68}}
STOPS = {4, 34}  # of the low level and of the mid level

pulses_strategy = st.builds(
    Pulse,
    st.integers(1, 8),
    st.integers(1, 260).map(lambda n: n * 500),
    st.integers(10, 4095),
    st.one_of(st.just(0), st.integers(10, 4095)),
)
numbers_strategy = st.integers(0, 63)


# --- a pipe for a port, and frames made by hand -----------------------------------------------------------------------------------
READ_FD, WRITE_FD = os.pipe()
os.set_blocking(READ_FD, False)


def left():
    """All bytes that came out of the pipe since the last look."""
    try:
        return os.read(READ_FD, 65536)
    except BlockingIOError:
        return b""


def leaves(check, data, due=None):
    """Write, and say whether these bytes came out; a refusal lets nothing out, and whatever happens, nothing is due afterwards."""
    check.due = due
    try:
        n_written = check.write(WRITE_FD, data)
    except WireError:
        assert left() == b"" and check.due is None
        return False
    assert n_written == len(data) and left() == data and check.due is None
    return True


def refusal(check, data, due=None):
    """Why it does not leave."""
    check.due = due
    with pytest.raises(WireError) as error:
        check.write(WRITE_FD, data)
    assert left() == b"" and check.due is None
    return str(error.value)


def phases(pulse):
    """Points of a lawful pulse."""
    _, current_ua, width_us, gap_us = pulse
    return [(width_us, current_ua), *([(gap_us, 0)] if gap_us else []), (width_us, -current_ua)]


def config(points, channel=1, execute=1, n_points=None, reserved=0):
    """Data of Ll_channel_config, for points that need not be lawful."""
    connector, colour = divmod(channel - 1, 4)
    head = execute << 7 | colour << 5 | connector << 4 | (len(points) if n_points is None else n_points) - 1
    words = [duration_us << 20 | current_ua // 500 + 300 << 10 | reserved for duration_us, current_ua in points]
    return bytes((head,)) + b"".join(struct.pack(">I", word) for word in words)


def frame_of(pulse, number=0):
    """The lawful frame of a pulse, by the virtual stimulator's codec."""
    return wrap(number, 2, config(phases(pulse), pulse.channel))


def wrapped(payload):
    """A payload that need not be lawful, with the right length and checksum."""
    rest = int.from_bytes(payload, "big") << 16
    for place in range(8 * len(payload) - 1, -1, -1):
        rest ^= (0x11021 << place) * (rest >> place + 16 & 1)
    head = b"".join(bytes((0x81, byte ^ 0x55)) for byte in struct.pack(">HH", len(payload) + 10, rest))
    return b"\xf0" + head + payload + b"\x0f"


# --- the makers' bytes and other people's -----------------------------------------------------------------------------------------
MAKERS_PULSES = [
    (Pulse(1, 20_000, 250, 100), "F0 81 55 81 4E 81 D3 81 AF 04 02 82 81 5A A5 50 00 06 44 B0 00 81 5A A4 10 00 0F"),
    (Pulse(1, 25_000, 200, 100), "f0 81 55 81 4c 81 19 81 b5 14 02 82 0c 85 78 00 06 44 b0 00 0c 83 e8 00 0f"),
    (Pulse(5, 25_000, 250, 0), "f0 81 55 81 42 81 13 81 1c 18 02 91 81 5a a5 78 00 81 5a a3 e8 00 0f"),
]
MAKERS_SILENT = [  # init, stop, mid level stop, status, identity, extended version
    "F0 81 55 81 58 81 55 81 55 00 00 00 0F",
    "f0 81 55 81 58 81 16 81 36 10 00 00 0f",
    "F0 81 55 81 59 81 9C 81 78 08 04 0F",
    "f0 81 55 81 59 81 53 81 cf 1c 04 0f",
    "F0 81 55 81 59 81 14 81 18 0C 22 0F",
    "f0 81 55 81 59 81 12 81 fe 2c 22 0f",
    "f0 81 55 81 59 81 4e 81 0c 04 3e 0f",
    "f0 81 55 81 59 81 aa 81 2b 08 34 0f",
    "f0 81 55 81 59 81 18 81 78 0c 44 0f",
]
MAKERS_OTHERS = [  # mid level: init, update, current data; then frames of ScienceMode2, which are framed otherwise
    "F0 81 55 81 58 81 75 81 29 00 1E 00 0F",
    "f0 81 55 81 58 81 e3 81 ce 20 1e 01 0f",
    "F0 81 55 81 7E 81 5D 81 42 04 20 03 23 00 50 0C 85 50 00 06 44 B0 00 0C 84 10 00 23 00 28 06 45 00 00 06 44 B0 00 06 44 60 00 0F",
    "f0 81 55 81 49 81 a6 81 22 24 20 01 23 00 50 0c 85 78 00 06 44 b0 00 0c 83 e8 00 0f",
    "F0 81 55 81 58 81 16 81 94 08 24 02 0F",
    "f0 81 55 81 58 81 f0 81 94 28 24 04 0f",
    "f0 81 69 81 56 07 02 00 0f",
    "f0 81 12 81 53 01 20 00 00 c8 19 0f",
    "f0 81 9d 81 53 01 24 00 00 c8 19 0f",
]


@pytest.mark.safety("A13")
@pytest.mark.parametrize(("pulse", "data"), MAKERS_PULSES)
def test_makers_pulses_leave_when_due_and_not_else(pulse, data):
    check, data = for_driver("p24"), bytes.fromhex(data)
    assert leaves(check, data, pulse) and not leaves(check, data)
    assert leaves(for_driver("rehamove3"), data, pulse) == (pulse.channel <= 4)


@pytest.mark.parametrize("data", MAKERS_SILENT)
def test_frames_without_output_leave_as_often_as_they_like(data):
    check = for_driver("p24")
    assert leaves(check, bytes.fromhex(data)) and leaves(check, bytes.fromhex(data), PULSE)


@pytest.mark.safety("A13")
@pytest.mark.parametrize("data", MAKERS_OTHERS)
def test_mid_level_and_other_protocols_stay(data):
    assert all(not leaves(for_driver(name), bytes.fromhex(data), PULSE) for name in MODELS)


def test_checksum_by_its_published_check_value():
    assert wire._remainder(b"123456789" + b"\x31\xc3") == 0  # CRC-16/XMODEM
    assert wire._remainder(b"123456789" + b"\x31\xc2") == 1


@pytest.mark.safety("A7", "A13")
def test_science_mode_4_frames_are_read_as_they_were_meant():
    from science_mode_4.low_level.low_level_channel_config import PacketLowLevelChannelConfig
    from science_mode_4.protocol.channel_point import ChannelPoint
    from science_mode_4.protocol.protocol import Protocol
    from science_mode_4.protocol.types import Channel, Connector

    dice = random.Random(20261125)
    check = for_driver("p24")
    n_left = 0
    for _ in range(600):
        pulse = Pulse(dice.randint(1, 8), dice.randint(1, 260) * 500, dice.randint(10, 4095), dice.choice((0, dice.randint(10, 4095))))
        points, lawful = phases(pulse), True
        if dice.random() < 0.5:
            lawful = False
            places = range(len(points))
            match dice.randrange(4):
                case 0:
                    points = points[: dice.randint(1, len(points) - 1)]
                case 1:
                    points += [(dice.randint(10, 4095), dice.choice((-500, 0, 500)))]
                case 2:
                    at = dice.choice(places)
                    points[at] = (points[at][0], points[at][1] + (500 if points[at][1] < 130_000 else -500))
                case 3:
                    at = dice.choice((0, -1))
                    points[at] = (points[at][0] + (1 if points[at][0] < 4095 else -1), points[at][1])
        packet = PacketLowLevelChannelConfig()
        packet.number = dice.randrange(64)
        packet.execute_stimulation = True
        packet.connector, packet.channel = Connector((pulse.channel - 1) // 4), Channel((pulse.channel - 1) % 4)
        packet.points = [ChannelPoint(duration_us, current_ua / 1000) for duration_us, current_ua in points]
        assert leaves(check, Protocol.packet_to_bytes(packet), pulse) == lawful
        n_left += lawful
    assert 200 < n_left < 400


# --- our own driver ---------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A7", "A13")
@settings(deadline=None, max_examples=60)
@given(pulses_strategy.filter(lambda it: it.current_ua <= 8000), st.sampled_from(MODELS))
@example(Pulse(4, 130_000, 4095, 4095), "rehamove3")
@example(Pulse(8, 60_000, 10, 0), "p24")
def test_what_the_driver_encodes_is_what_was_asked(pulse, name):
    channel = min(pulse.channel, CHANNELS[name])
    device, check = ScienceMode34("/nowhere", name), for_driver(name)
    train = replace(TRAIN, channel=channel, current_ma=pulse.current_ua / 1000, phase_width_us=pulse.phase_width_us)
    prepared = device.prepare([replace(train, interphase_gap_us=pulse.interphase_gap_us, pulse_rate_hz=1.0)])
    assert len(set(prepared)) == len(prepared) == 64 * pulse.current_ua // 500
    slow = for_driver(name)
    check.learn(prepared)
    for current_ua, frames in device._frames[0].items():
        due = Pulse(channel, current_ua, *pulse[2:])
        dice = random.Random(current_ua)
        for frame in dice.sample(frames, 3):
            assert leaves(check, frame, tuple(due)) and not leaves(check, frame)
            assert leaves(slow, frame, due) and not leaves(slow, frame, due._replace(current_ua=current_ua + 500))
        assert all(check._learnt[frame] == due for frame in frames)


def spoil_points(change):
    """The driver's `pulse_points`, with a fault. Its own look at its frames finds nothing: what it meant is what it encoded."""
    right = sciencemode34.pulse_points

    def spoilt(*arguments):
        return tuple(change(list(right(*arguments))))

    return "pulse_points", spoilt


def spoil_channel(number, channel, points, right=sciencemode34.encode_ll_channel_config):
    return right(number, channel % 4 + 1, points)


FAULTS = {
    "a step more": spoil_points(lambda p: [(p[0][0], p[0][1] + 500), p[1], (p[2][0], p[2][1] - 500)]),
    "ten times": spoil_points(lambda p: [(us, min(ua * 10, 130_000) if ua > 0 else max(ua * 10, -130_000)) for us, ua in p]),
    "a microsecond more": spoil_points(lambda p: [(p[0][0] + 1, p[0][1]), p[1], (p[2][0] + 1, p[2][1])]),
    "another gap": spoil_points(lambda p: [p[0], (p[1][0] + 1, 0), p[2]]),
    "unbalanced": spoil_points(lambda p: [(p[0][0], p[0][1] + 500), *p[1:]]),
    "monophasic": spoil_points(lambda p: p[:2]),
    "turned round": spoil_points(lambda p: [(us, -ua) for us, ua in p]),
    "twice in a frame": spoil_points(lambda p: p + p),
    "another channel": ("encode_ll_channel_config", spoil_channel),
}


def encode_without_a_look(self, train):
    """As the driver's, but for its own comparison: the fault must be the wire check's to find."""
    encode, points = sciencemode34.encode_ll_channel_config, sciencemode34.pulse_points
    shape = (train.phase_width_us, train.interphase_gap_us)
    levels = range(500, round(train.current_ma * 1000) + 1, 500)
    return {ua: tuple(encode(number, train.channel, points(ua, *shape)) for number in range(64)) for ua in levels}


@pytest.mark.safety("A7", "A13")
@pytest.mark.parametrize("fault", [*FAULTS, None])
def test_planted_encoder_fault_sends_no_byte(tmp_path, monkeypatch, fault):
    """The judge is the virtual stimulator's log; without a fault the very same steps give their pulses."""
    with running_twin(tmp_path) as twin:
        check = for_driver("rehamove3")
        device = load("rehamove3", twin.port, check.write)
        device.open()
        if fault:
            monkeypatch.setattr(sciencemode34, *FAULTS[fault])
        monkeypatch.setattr(ScienceMode34, "_encode", encode_without_a_look)
        prepared = device.prepare([TRAIN])
        if fault in ("unbalanced", "monophasic", "turned round", "twice in a frame"):  # found before anybody can arm; we go on all the same
            with pytest.raises(WireError):
                check.learn(prepared)
        else:
            check.learn(prepared)
        for _ in range(3):
            device.arm()
            check.due = (1, 20_000, 500, 100)
            if fault:
                with pytest.raises(WireError):
                    device.trigger(0, 20_000)
                with pytest.raises(NotArmedError):
                    device.trigger(0, 20_000)
            else:
                device.trigger(0, 20_000)
                assert [it.text for it in events_within(device, 1)] == ["pulse done"]
        device.close()
        pulses, refused, summary = twin.end()
        assert len(pulses) == (0 if fault else 3) and refused == [] and summary["outside_limits"] == 0
        assert summary["frames_accepted"] == 3 + 3 + len(pulses) + 2  # who are you; arm; pulse; stop


def test_driver_has_one_way_out():
    """Every byte goes through the `write` that the driver was given: `os.write` stands in its files as a default value alone."""
    for path in sorted((ROOT / "drivers" / "stimulators").glob("*.py")):
        tree = ast.parse(path.read_text())
        defaults = {id(it) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for it in node.args.defaults}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("os", "termios", "fcntl", "self._port"):
                ways = ("write", "writev", "pwrite", "pwritev", "sendfile", "splice", "fdopen", "dup", "TIOCSTI", "tcsendbreak", "popen")
                assert node.attr not in ways or id(node) in defaults, f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Name):
                assert node.id != "open", f"{path.name}:{node.lineno}"


def test_stop_never_raises_and_a_refused_pulse_disarms():
    def write(fd, data):
        raise WireError("refused")

    device = ScienceMode34("/nowhere", write=write)
    device.prepare([TRAIN])
    device._fd, device._armed = os.dup(WRITE_FD), True
    with pytest.raises(WireError):
        device.trigger(0, 500)
    with pytest.raises(NotArmedError):
        device.trigger(0, 500)
    device.stop()
    device.disarm()
    device.close()
    assert left() == b""


# --- one frame, whole, once -------------------------------------------------------------------------------------------------------
SAMPLES = [frame_of(PULSE, 1), frame_of(Pulse(3, 7500, 500, 0), 60), wrap(0, 0, b"\0"), wrap(33, 4, b""), wrap(60, 52, b"")]


@pytest.mark.safety("A13")
@pytest.mark.parametrize("frame", SAMPLES, ids=lambda it: it.hex())
def test_any_one_byte_changed_or_cut_or_added_stays(frame):
    check = for_driver("p24")
    due = PULSE if frame == SAMPLES[0] else Pulse(3, 7500, 500, 0)
    assert leaves(check, frame, due)
    check.learn([frame])
    for at in range(len(frame)):
        for byte in {*range(256)} - {frame[at]}:
            assert not leaves(check, frame[:at] + bytes((byte,)) + frame[at + 1 :], due)
    for at in range(len(frame)):
        assert not leaves(check, frame[:at], due) and not leaves(check, frame[at + 1 :], due)
        assert not leaves(check, frame[:at] + frame[at + 1 :], due)
    for at in range(len(frame) + 1):
        for byte in (0x00, 0x0A, 0x0F, 0x55, 0x81, 0xF0, 0xFF):
            assert not leaves(check, frame[:at] + bytes((byte,)) + frame[at:], due)


@pytest.mark.safety("A13")
@given(st.lists(st.sampled_from(SAMPLES), min_size=2, max_size=4), pulses_strategy)
def test_two_frames_in_one_write_stay(frames, due):
    check = for_driver("p24")
    check.learn(SAMPLES)
    assert not leaves(check, b"".join(frames), due) and not leaves(check, b"".join(frames), PULSE)


@pytest.mark.safety("A13", "E2")
@pytest.mark.parametrize("learnt", [False, True])
def test_one_due_is_one_write(learnt):
    check = for_driver("rehamove3")
    frames = [frame_of(PULSE, number) for number in range(64)]
    if learnt:
        check.learn(frames)
    stop, wrong = wrap(0, 4, b""), frame_of(PULSE._replace(channel=2))
    check.due = PULSE
    assert check.write(WRITE_FD, frames[0]) == len(left())
    assert not leaves(check, frames[0]) and not leaves(check, frames[1])  # neither twice, nor under the next number
    check.due = PULSE
    check.write(WRITE_FD, stop)  # a stop between permission and pulse takes the permission away
    left()
    assert "no pulse is due" in refusal(check, frames[0])
    check.due = PULSE
    with pytest.raises(WireError):
        check.write(WRITE_FD, wrong)
    assert not leaves(check, frames[0], check.due)


@pytest.mark.safety("A13")
@given(pulses_strategy, pulses_strategy, numbers_strategy)
def test_only_the_pulse_that_is_due_leaves(pulse, other, number):
    check = for_driver("p24")
    assert leaves(check, frame_of(pulse, number), tuple(pulse))
    for due in [other, *(pulse._replace(**{name: getattr(other, name)}) for name in Pulse._fields)]:
        assert leaves(check, frame_of(pulse, number), tuple(due)) == (due == pulse)


def test_refusal_says_what_differs():
    check = for_driver("rehamove3")
    words = refusal(check, frame_of(PULSE), (1, 20_500, 250, 99))
    assert words == "the frame is not the pulse that is due: current_ua is 20000, due 20500, interphase_gap_us is 100, due 99"
    assert refusal(check, frame_of(PULSE)).startswith("no pulse is due, but a frame was to leave: Pulse(channel=1, current_ua=20000")
    assert len(refusal(check, b"\xf0" * 100_000)) < 300


@settings(deadline=None, max_examples=500)
@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(b"\xf0\x0f\x81\x55\x58\x59\x00\x04"), max_size=40).map(bytes)))
def test_noise_stays_unless_another_decoder_reads_it_too(noise):
    assert not leaves(for_driver("p24"), noise, PULSE) or unwrap(noise)[1] in {0} | STOPS | QUESTIONS["p24"]


@pytest.mark.safety("A7", "A13")
@settings(deadline=None, max_examples=1000)
@given(pulses_strategy, numbers_strategy, st.data())
def test_wrong_content_under_a_right_checksum_stays(pulse, number, data):
    """Any bits of command and data turned over, wrapped anew: it leaves only if the virtual stimulator too reads the due pulse."""
    payload = bytearray(config(phases(pulse), pulse.channel))
    for at in data.draw(st.sets(st.integers(0, 8 * len(payload) - 1), min_size=1, max_size=6)):
        payload[at // 8] ^= 1 << at % 8
    assert not leaves(for_driver("p24"), wrap(number, 2, bytes(payload)), pulse)
    size = data.draw(st.integers(0, len(payload)))
    assert not leaves(for_driver("p24"), wrap(number, 2, bytes(payload[:size])), pulse)


@pytest.mark.safety("A13")
@pytest.mark.parametrize("name", MODELS)
def test_white_list_is_all_that_leaves(name):
    check = for_driver(name)
    allowed = {(0, b"\0"), *((command, b"") for command in STOPS | QUESTIONS[name])}
    for command in range(1024):
        for data in (b"", b"\0", b"\1", b"\0\0"):
            assert leaves(check, wrap(command % 64, command, data), PULSE) == ((command, data) in allowed), (command, data)
    for byte in range(256):  # other voltages, measurements
        assert leaves(check, wrap(5, 0, bytes((byte,))), PULSE) == (byte == 0)


@pytest.mark.safety("A13")
@given(numbers_strategy, st.integers(0, 1023), st.binary(max_size=20))
def test_reads_what_another_codec_writes(number, command, data):
    assert wire._unwrap(wrap(number, command, data)) == (command, data)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 1023), st.binary(max_size=12), st.data())
def test_stuffing_that_is_not_called_for_stays(command, data, draws):
    """A pair for a byte that needs none, or a bare byte that needs one: the box might read it otherwise than we do."""
    payload = struct.pack(">H", command) + data
    at = draws.draw(st.integers(0, len(payload) - 1))
    bare = payload[at] in (0xF0, 0x0F, 0x81)
    stuffed = b"".join(
        bytes((byte,)) if (byte not in (0xF0, 0x0F, 0x81)) != (i == at) else bytes((0x81, byte ^ 0x55)) for i, byte in enumerate(payload)
    )
    frame = wrapped(stuffed)
    with pytest.raises(WireError):
        wire._unwrap(frame)
    if not bare:
        with pytest.raises(RefusedError):
            unwrap(frame)


def test_shortest_and_longest_frame():
    assert wire._unwrap(wrapped(b"\x04\x04")) == (4, b"")
    for payload in (b"", b"\x04", b"\x81\xa5"):
        with pytest.raises(WireError, match=r"no command|not one whole"):
            wire._unwrap(wrapped(payload))
    assert wire._unwrap(wrap(0, 9, bytes(1188))) == (9, bytes(1188))
    with pytest.raises(WireError, match="1201 bytes"):
        wire._unwrap(wrap(0, 9, bytes(1189)))


@pytest.mark.parametrize("data", [bytearray(SAMPLES[3]), memoryview(bytearray(SAMPLES[3])), "stop", None, 4, [0xF0]])
def test_only_bytes_leave(data):
    check = for_driver("rehamove3")
    check.learn([SAMPLES[3]])
    assert "not bytes but" in refusal(check, data)


# --- A7 ---------------------------------------------------------------------------------------------------------------------------
W, G, I = 250, 100, 20_000  # noqa: E741
UNLAWFUL = {
    "no point": ("biphasic|points", wrap(0, 2, b"\x80")),
    "nothing at all": ("execute", wrap(0, 2, b"")),
    "one phase": ("biphasic", wrap(0, 2, config([(W, I)]))),
    "one phase and a gap": ("monophasic", wrap(0, 2, config([(W, I), (G, 0)]))),
    "gap before one phase": ("monophasic", wrap(0, 2, config([(G, 0), (W, -I)]))),
    "same sign twice": ("monophasic", wrap(0, 2, config([(W, I), (G, 0), (W, I)]))),
    "negative sign twice": ("monophasic", wrap(0, 2, config([(W, -I), (G, 0), (W, -I)]))),
    "turned round": ("turned round", wrap(0, 2, config([(W, -I), (G, 0), (W, I)]))),
    "no current": ("empty", wrap(0, 2, config([(W, 0), (G, 0), (W, 0)]))),
    "a step less back": ("unbalanced", wrap(0, 2, config([(W, I), (G, 0), (W, 500 - I)]))),
    "a step more back": ("unbalanced", wrap(0, 2, config([(W, I), (W, -I - 500)]))),
    "a microsecond more back": ("unbalanced", wrap(0, 2, config([(W, I), (G, 0), (W + 1, -I)]))),
    "balanced, but slow and low": ("unbalanced", wrap(0, 2, config([(W, I), (G, 0), (2 * W, -I // 2)]))),
    "current in the gap": ("in the interphase gap", wrap(0, 2, config([(W, I), (G, 500), (W, -I)]))),
    "balanced in three": ("in the interphase gap", wrap(0, 2, config([(W, I), (W, -2 * I), (W, I)]))),
    "a second gap": ("4 points", wrap(0, 2, config([(W, I), (G, 0), (W, -I), (G, 0)]))),
    "twice": ("4 points", wrap(0, 2, config([(W, I), (W, -I)] * 2))),
    "sixteen points": ("16 points", wrap(0, 2, config([(W, I), (W, -I)] * 8))),
    "not executed": ("execute", wrap(0, 2, config(phases(PULSE), execute=0))),
    "reserved bits": ("reserved", wrap(0, 2, config(phases(PULSE), reserved=1))),
    "interpolation": ("reserved", wrap(0, 2, config(phases(PULSE), reserved=0x20))),
    "high reserved bit": ("reserved", wrap(0, 2, config(phases(PULSE), reserved=0x200))),
    "phase under 10 us": ("would change", wrap(0, 2, config([(9, I), (G, 0), (9, -I)]))),
    "gap under 10 us": ("would change", wrap(0, 2, config([(W, I), (9, 0), (W, -I)]))),
    "gap of nothing": ("would change", wrap(0, 2, config([(W, I), (0, 0), (W, -I)]))),
    "more than 130 mA": ("would change", wrap(0, 2, config([(W, 130_500), (G, 0), (W, -130_500)]))),
    "fewer points than stated": ("states 3 points, has 2", wrap(0, 2, config([(W, I), (W, -I)], n_points=3))),
    "more points than stated": ("states 2 points, has 3", wrap(0, 2, config(phases(PULSE), n_points=2))),
    "a point cut short": ("cut short", wrap(0, 2, config(phases(PULSE))[:-1])),
    "a byte more": ("cut short", wrap(0, 2, config(phases(PULSE)) + b"\0")),
}


@pytest.mark.safety("A7")
@pytest.mark.parametrize("name", UNLAWFUL)
def test_no_other_form_of_pulse_leaves(name):
    words, frame = UNLAWFUL[name]
    check = for_driver("p24")
    with pytest.raises(WireError, match=words):
        check.learn([frame_of(PULSE), frame])
    for due in (None, PULSE, PULSE._replace(interphase_gap_us=0), PULSE._replace(phase_width_us=9)):
        with pytest.raises(WireError, match=words):
            check.due = due
            check.write(WRITE_FD, frame)
    assert left() == b""


@pytest.mark.safety("A7")
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(-260, 260).map(lambda n: n * 500)), min_size=1, max_size=16), st.integers(1, 8))
def test_whatever_leaves_is_biphasic_and_balanced_before_the_virtual_stimulator(points, channel):
    frame = wrap(9, 2, config(points, channel))
    shape = shape_of([(us, ua // 500) for us, ua in points])
    due = Pulse(channel, shape.current_ua, shape.phase_width_us, shape.interphase_gap_us)
    assert not leaves(for_driver("p24"), frame, due) or (shape.balanced and points[0][1] == -points[-1][1])


@given(pulses_strategy, numbers_strategy)
def test_channels_that_the_box_does_not_have(pulse, number):
    assert leaves(for_driver("p24"), frame_of(pulse, number), pulse)
    assert leaves(for_driver("rehamove3"), frame_of(pulse, number), pulse) == (pulse.channel <= 4)


# --- learning ---------------------------------------------------------------------------------------------------------------------
def test_learnt_frame_is_no_permission():
    check = for_driver("rehamove3")
    check.learn([frame_of(PULSE)])
    assert not leaves(check, frame_of(PULSE)) and not leaves(check, frame_of(PULSE), PULSE._replace(channel=2))


def test_learning_anew_replaces_and_a_bad_frame_leaves_the_old():
    check = for_driver("rehamove3")
    check.learn(frame_of(PULSE, number) for number in range(64))
    with pytest.raises(WireError):
        check.learn([SAMPLES[3], frame_of(PULSE)[:-1]])
    assert len(check._learnt) == 64
    check.learn([SAMPLES[3], frame_of(PULSE)])
    assert check._learnt == {SAMPLES[3]: None, frame_of(PULSE): PULSE}


def test_nothing_is_kept_of_what_is_written():
    check = for_driver("rehamove3")
    check.learn([frame_of(PULSE)])
    for number in range(64):
        assert leaves(check, frame_of(PULSE, number), PULSE) and not leaves(check, frame_of(PULSE, number)[:-1])
    assert len(check._learnt) == 1


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("outcome", [7, BlockingIOError(), OSError(5, "gone")], ids=["short", "full", "lost"])
def test_one_call_of_os_write_and_its_outcome_is_handed_on(monkeypatch, learnt, outcome):
    calls = []

    def write(fd, data):
        calls.append((fd, data))
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    check, frame = for_driver("rehamove3"), frame_of(PULSE)
    if learnt:
        check.learn([frame])
    monkeypatch.setattr(os, "write", write)
    check.due = PULSE
    if isinstance(outcome, OSError):
        with pytest.raises(OSError) as error:
            check.write(42, frame)
        assert error.value is outcome
    else:
        assert check.write(42, frame) == outcome
    assert calls == [(42, frame)] and check.due is None  # what may have left counts as left


# --- the bench --------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A7", "A13")
def test_hostile_frames():
    counts = bench.attack(20_000, 20261125, for_driver("p24"))
    assert counts["wrong"] == 0 and counts["pulse"] > 500 and counts["silent"] > 50
    assert sum(counts[name] for name in ("refused", "pulse", "silent", "wrong")) == 20_000


def test_attack_finds_a_planted_fault():
    """A check that looks at the current alone; one that lets a second frame through behind the first; one that is not there."""

    class Lax(WireCheck):
        def write(self, fd, data):
            pulse = self._decode(data)
            self.due = pulse if pulse and pulse.current_ua == self.due.current_ua else self.due
            return super().write(fd, data)

    class Half(WireCheck):
        def write(self, fd, data):
            super().write(fd, data[: data.find(b"\x0f", 9) + 1])
            return os.write(fd, data[data.find(b"\x0f", 9) + 1 :])

    class Absent(WireCheck):
        def write(self, fd, data):
            return os.write(fd, data)

    for fault in (Lax, Half, Absent):
        found = bench.attack(5000, 1, fault(for_driver("p24")._decode))
        assert found["wrong"] > 0 and len(found["examples"]) == min(10, found["wrong"]), fault


def test_bench_prints_writes_and_gates(tmp_path, capsys, monkeypatch):
    file = tmp_path / "wire.json"
    assert bench.main(["--quick", "--frames", "100000", "--json", str(file)]) == 0
    assert "0 wrong ones left" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["attack"]["frames"] == 1000 and written["cost"]["learnt"] == 120 * 64 and len(written["goals"]) == 2
    monkeypatch.setattr(bench, "attack", lambda *_: written["attack"] | {"wrong": 1, "examples": ["due this, left that"]})
    assert bench.main(["--quick"]) == 0 and bench.main(["--quick", "--gate"]) == 1
    captured = capsys.readouterr()
    assert "missed: attack: wrong" in captured.err and "left that" in captured.out


def test_every_driver_has_its_wire_check():
    assert set(DECODERS) == set(STIMULATORS)  # each is tried in test_stimulator_contract.py
    with pytest.raises(DeviceNotFoundError, match=r"'toaster'; there are: motimove, p24, "):
        for_driver("toaster")
