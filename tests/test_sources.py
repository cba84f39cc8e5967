"""Devices that speak no LSL: lines of numbers on a pty, BrainFlow's synthetic board where it is installed, and the bridge."""

import os
import pty
import subprocess
import sys
import threading
import time
import tty
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import daemon, settings
from drivers import sources
from drivers.base import DeviceMismatchError, DeviceNotFoundError, PortLostError
from drivers.sources import bridge, lsl
from drivers.sources.serial_lines import SerialLines, baud_of, numbers_in

DEMO = (Path(__file__).resolve().parents[1] / "config" / "demo.toml").read_text()


@pytest.fixture
def port():
    """A pty: what is written to `far` is what the device prints; (far, name)."""
    far, near = pty.openpty()
    tty.setraw(near)
    name = os.ttyname(near)
    ends = [far, near]
    yield ends, name
    for end in ends:
        os.close(end)


def read_all(source, n, timeout_s=2.0):
    blocks, end_s = [], time.monotonic() + timeout_s
    while sum(len(block.values) for block in blocks) < n and time.monotonic() < end_s:
        block = source.read(0.1)
        if block is not None:
            blocks.append(block)
    return blocks


@pytest.mark.parametrize(
    ("line", "n", "values"),
    [
        (b"12.5\r", 1, [12.5]),
        (b"1,2;3\t4", 4, [1, 2, 3, 4]),
        (b" -1e-3  +7 ", 2, [-0.001, 7]),
        (b"force:12.3,angle: -4", 2, [12.3, -4]),
        (b"1,2", 1, None),
        (b"HX711 ready", 1, None),
        (b"", 1, None),
        (b"\xff\xfe", 1, None),
    ],
)
def test_what_a_line_says(line, n, values):
    assert numbers_in(line, n) == values


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8), st.sampled_from([",", ";", "\t", "  ", ", "]))
def test_every_number_comes_back(values, mark):
    assert numbers_in(mark.join(map(repr, values)).encode(), len(values)) == values


@given(st.binary(max_size=60), st.integers(1, 4))
def test_no_line_raises(line, n):
    values = numbers_in(line, n)
    assert values is None or len(values) == n


def test_samples_come_whole_in_order_and_stamped_when_they_came(port):
    (far, _), name = port
    source = SerialLines(name, 2)
    source.open()
    text = b"3 4 half a line\n" + b"".join(b"%d, %d\r\n" % (i, -i) for i in range(300)) + b"999"
    for part in (text[:7], text[7:1000], text[1000:]):
        os.write(far, part)
        time.sleep(0.01)
    before_s = time.monotonic()
    blocks = read_all(source, 300)
    assert np.array_equal(np.concatenate([block.values for block in blocks]), [(i, -i) for i in range(300)])
    assert all(before_s - 0.1 < block.newest_s < time.monotonic() for block in blocks)
    source.close()


def test_a_bad_line_is_counted_and_eleven_are_no_source(port):
    (far, _), name = port
    source = SerialLines(name, 1)
    source.open()
    os.write(far, b"x\n1\nnoise\n2\nnan\n3\n")
    blocks = read_all(source, 4)
    assert np.array_equal(np.concatenate([block.values for block in blocks])[:, 0], [1, 2, np.nan, 3], equal_nan=True)
    assert source.bad_lines == 2
    os.write(far, b"1 2\n" * 11)
    with pytest.raises(DeviceMismatchError, match=r"11 lines running are not 1 number, the last was b'1 2'"):
        read_all(source, 1)
    source.close()


def test_bytes_that_are_no_text_are_refused_and_do_not_pile_up(port):
    (far, _), name = port
    source = SerialLines(name, 1)
    source.open()
    threading.Thread(target=os.write, args=(far, b"\x80" * 9000), daemon=True).start()
    with pytest.raises(DeviceMismatchError, match=r"without an end of line: lines of numbers\? 115200 baud\?"):
        read_all(source, 1)
    source.close()


def test_a_port_that_goes_away_is_lost(port):
    ends, name = port
    source = SerialLines(name, 1)
    source.open()
    os.close(ends.pop(0))
    with pytest.raises(PortLostError, match=name):
        source.read(1.0)
    source.close()
    source.close()


def test_what_cannot_be_is_named():
    with pytest.raises(DeviceNotFoundError, match="no rate of a serial port: 9600"):
        baud_of("12345")
    with pytest.raises(DeviceNotFoundError, match="it begins with serial:, brainflow:"):
        sources.load("usb:x", 1, 100.0)
    with pytest.raises(DeviceNotFoundError, match="/dev/none"):
        sources.load("serial:/dev/none@9600", 1, 100.0).open()


# --- the bridge -----------------------------------------------------------------------------------------------------------------------
def bed_with(name, device, rate_hz=500.0, scale=0.5):
    table = f'[force]\nstream_name = "{name}"\nsample_rate_hz = {rate_hz}\nchannels = ["ankle"]\nunit = "N m"\n'
    more = f'device = "{device}"\nscale = {scale}\n'
    start = DEMO.index("[force]")
    return settings.parse(DEMO[:start] + table + more + DEMO[DEMO.index("[[emg_rules]]") :])


def test_the_daemon_publishes_a_device_and_finds_it_again(port, tmp_path):
    (far, _), name = port
    link = tmp_path / "load cell"  # as a USB port: the name goes and comes again
    config = bed_with("bridged load cell", f"serial:{link}@57600")
    (helper,) = daemon.helpers("test", config)
    try:
        source = lsl.LslSource(None, config.force, 10.0)
        assert lsl.pull(source.force, 1.2) == 0  # the device is not there yet
        link.symlink_to(name)
        for i in range(200):
            os.write(far, b"%d\n" % i)
            time.sleep(0.02 if i < 100 else 0.002)
        got = []
        while sum(map(len, got)) < 50 and (n := lsl.pull(source.force, 2.0)):
            got.append(np.column_stack([source.force.t_s[:n], source.force.values[:n, 0]]).copy())
        rows = np.concatenate(got)
        assert np.array_equal(rows[:, 1], rows[0, 1] + 0.5 * np.arange(len(rows)))
        assert abs(rows[-1, 0] - time.monotonic()) < 5.0
    finally:
        helper.close()
    assert helper.process.returncode == 0


def test_it_ends_with_its_parent_and_says_what_it_cannot_use():
    words = bridge.arguments("serial:/dev/x@17", "x", "Force", ("a",), "N", 100.0, 1.0)
    wrong = subprocess.run([sys.executable, "-m", "drivers.sources.bridge", *words], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "'17' is no rate" in wrong.stderr
    script = """if True:
        import subprocess, sys
        from drivers.sources import bridge
        words = bridge.arguments("serial:/dev/none", "x", "Force", ("a",), "N", 100.0, 1.0)
        print(subprocess.Popen([sys.executable, "-m", "drivers.sources.bridge", *words], stdout=subprocess.DEVNULL).pid)
    """
    pid = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout)
    end_s = time.monotonic() + 30
    while (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end_s
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("device", "scale", "words"),
    [
        ("", 2.0, r"\[force\] scale = 2 means nothing without device"),
        ("serial:/dev/x", 0.0, r"\[force\] scale = 0 makes every sample 0"),
        ("usb:/dev/x", 1.0, r"\[force\] device"),
    ],
)
def test_settings_that_mean_nothing(device, scale, words):
    with pytest.raises(settings.SettingsError, match=words):
        bed_with("x", device, scale=scale)


def test_a_device_at_the_stimulators_port_is_refused():
    with pytest.raises(settings.SettingsError, match="is the stimulator's port"):
        bed_with("x", f"serial:{settings.parse(DEMO).stimulator.port}@9600")


def test_brainflows_synthetic_board():
    pytest.importorskip("brainflow", reason="brainflow is an extra of 146 MB")
    board = sources.load("brainflow:SYNTHETIC_BOARD", 4, 250.0)
    with pytest.raises(DeviceMismatchError, match="samples at 250 Hz, the settings say 2000 Hz"):
        sources.load("brainflow:SYNTHETIC_BOARD", 4, 2000.0).open()
    with pytest.raises(DeviceNotFoundError, match="knows no board 'NO_SUCH'"):
        sources.load("brainflow:NO_SUCH", 4, 250.0).open()
    board.open()
    blocks = read_all(board, 250, 5.0)
    board.close()
    values = np.concatenate([block.values for block in blocks])
    assert values.shape[1] == 4
    assert values.std(0).min() > 0
