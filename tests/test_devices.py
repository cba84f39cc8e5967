"""`calmloop devices`: listing touches nothing, asking sends no pulse; judged by the bytes that reach the box and by the kernel."""

import ast
import ctypes
import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import threading
import tty
from contextlib import contextmanager
from types import SimpleNamespace

import pylsl
import pytest

from controller import devices
from drivers.simulated.virtual_sciencemode import Line, unwrap
from drivers.sources import lsl
from drivers.stimulators import STIMULATORS
from tests.test_commands import ROOT, calmloop
from tests.test_virtual_sciencemode import running_twin

LL_INIT, LL_CONFIG = 0, 2  # high voltage on; a pulse
BOXES = ("rehamove3", "p24")
IN_OPEN = 0x20  # linux/inotify.h


@contextmanager
def tapped(port):
    """A pty in front of a twin's; yields it and every byte that goes to the twin."""
    ours, front = os.openpty()
    tty.setraw(front)
    box = os.open(port, os.O_RDWR | os.O_NOCTTY)
    sent, (halt, bell) = bytearray(), os.pipe()

    def relay():
        while True:
            ready, _, _ = select.select([ours, box, halt], [], [])
            if halt in ready:
                return
            if ours in ready:
                data = os.read(ours, 4096)
                sent.extend(data)
                os.write(box, data)
            if box in ready:
                os.write(ours, os.read(box, 4096))

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        yield SimpleNamespace(port=os.ttyname(front), sent=sent)
    finally:
        os.write(bell, b"!")
        thread.join()
        for fd in (ours, front, box, halt, bell):
            os.close(fd)


def commands_of(sent):
    """The commands in what went to a RehaMove3 or P24, by the twin's own decoder."""
    pieces = Line().receive(bytes(sent), 0)
    assert not any(fault for _, _, fault in pieces)
    return [unwrap(piece)[1] for _, piece, _ in pieces]


@contextmanager
def silent_port():
    """A port at which nobody is; yields its name and `heard()`: what was sent to it."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    os.set_blocking(ours, False)

    def heard():
        try:
            return os.read(ours, 4096)
        except BlockingIOError:
            return b""

    try:
        yield SimpleNamespace(port=os.ttyname(theirs), heard=heard)
    finally:
        os.close(ours)
        os.close(theirs)


def seen_by_pyserial(device, vid=None, pid=None, **more):
    return SimpleNamespace(
        device=str(device), vid=vid, pid=pid, **({"manufacturer": None, "product": None, "serial_number": None, "location": None} | more)
    )


# --- the list ---------------------------------------------------------------------------------------------------------------------
def test_listing_opens_no_port(tmp_path):
    port = tmp_path / "ttyUSB7"
    port.touch()
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0 and libc.inotify_add_watch(watch, os.fsencode(port), IN_OPEN) >= 0
    try:
        assert [row["device"] for row in devices.ports([seen_by_pyserial(port)])] == [str(port)]
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        port.read_bytes()  # the watch does see an opening
        assert os.read(watch, 4096)
    finally:
        os.close(watch)


def test_ports_with_what_their_chip_may_mean(tmp_path, monkeypatch):
    (tmp_path / "usb-FTDI_box").symlink_to(tmp_path / "ttyUSB0")
    monkeypatch.setattr(devices, "SERIAL_LINKS", tmp_path)
    ftdi = {"manufacturer": "FTDI", "product": "FT232R", "serial_number": "A1", "location": "1-1.2"}
    found = [
        seen_by_pyserial(tmp_path / "ttyUSB0", 0x0403, 0x6001, **ftdi),
        seen_by_pyserial("/dev/ttyACM0", 0x0483, 0x5740),
        seen_by_pyserial("/dev/ttyACM1", 0x2341, 0x003E),
        seen_by_pyserial("/dev/ttyACM2", 0x2341, 0x003D),  # the Due's other port, behind which no Pulse Pal listens
        seen_by_pyserial("/dev/ttyS9"),
    ]
    rows = {row["device"].rpartition("/")[2]: row for row in devices.ports(found)}
    assert rows["ttyUSB0"] | {"held_by": ""} == {
        "device": str(tmp_path / "ttyUSB0"),
        "by_id": str(tmp_path / "usb-FTDI_box"),
        "usb": "0403:6001",
        "manufacturer": "FTDI",
        "product": "FT232R",
        "serial": "A1",
        "location": "1-1.2",
        "perhaps": ["rehamove3", "sciencemode2", "sciencemode1"],
        "held_by": "",
    }
    assert [rows[name]["perhaps"] for name in ("ttyACM0", "ttyACM1", "ttyACM2", "ttyS9")] == [["p24"], ["pulsepal"], [], []]
    text = "\n".join(devices.seen_words({"ports": list(rows.values()), "streams": [], "inputs": [], "problems": []}))
    assert "perhaps rehamove3 or sciencemode2 or sciencemode1" in text and "usb-FTDI_box" in text and "no USB device" in text


def test_no_chip_suggests_a_box_that_is_never_asked():
    named = {driver for _, _, drivers in devices.USB for driver in drivers}
    assert named <= set(devices.ASKED)
    assert set(devices.ASKED) | set(devices.NEVER_ASKED) == set(STIMULATORS)
    assert {name for name in STIMULATORS if name.startswith("ttl")} <= set(devices.NEVER_ASKED)


def test_who_holds_a_port_is_seen_without_opening_it():
    with silent_port() as silent:
        assert devices.held_by(silent.port, {}) == ""
        holder = subprocess.Popen(
            [sys.executable, "-c", f"import fcntl; f = open({silent.port!r}); fcntl.flock(f, 2); print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        holder.stdout.readline()
        try:
            assert f"process {holder.pid} (" in devices.held_by(silent.port, {})
            answer = calmloop("devices", "--ask", silent.port, "--as", "p24")
            assert answer.returncode == 2 and str(holder.pid) in answer.stderr
            assert silent.heard() == b""
        finally:
            holder.communicate(b"\n")
        assert devices.held_by(silent.port, {}) == ""


def test_a_running_bed_is_named_as_the_holder_of_its_port(guard):
    answer = calmloop("devices", "--ask", guard.twin.port, "--as", "rehamove3", "--json")
    assert answer.returncode == 2
    assert "the running bed 'test'" in json.loads(answer.stdout)["error"]
    assert guard.ask("status")["state"] == "IDLE"


def test_streams_with_name_type_channels_rate_host_and_source():
    source = f"test-devices-{os.getpid()}"
    outlet = lsl.outlet("a bed's EMG", "EMG", ("a", "b", "c"), "uV", 1234.0, source)
    answer = calmloop("devices", "--json", "--seconds", "2")
    del outlet
    assert answer.returncode == 0, answer.stderr
    ours = [stream for stream in json.loads(answer.stdout)["streams"] if stream["source_id"] == source]
    assert len(ours) == 1 and ours[0].pop("host")
    assert ours == [{"name": "a bed's EMG", "type": "EMG", "channels": 3, "rate_hz": 1234.0, "source_id": source}]


def test_what_cannot_be_looked_at_is_said_and_the_rest_is_shown(monkeypatch, tmp_path):
    def broken(_):
        raise RuntimeError("liblsl is not there")

    monkeypatch.setattr(pylsl, "resolve_streams", broken)
    monkeypatch.setattr(devices, "INPUT_DEVICES", tmp_path / "none")
    facts = devices.seen(0.1)
    assert not facts["ok"] and len(facts["problems"]) == 2
    assert "liblsl is not there" in facts["problems"][0]
    assert facts["problems"][1] in devices.seen_words(facts)


INPUT_TEXT = """\
I: Bus=0019 Vendor=0000 Product=0001 Version=0000
N: Name="Power Button"
P: Phys=LNXPWRBN/button/input0
S: Sysfs=/devices/LNXSYSTM:00/LNXPWRBN:00/input/input0
U: Uniq=
H: Handlers=kbd event0
B: PROP=0
B: EV=3
B: KEY=10000000000000 0

I: Bus=0003 Vendor=0c45 Product=7403 Version=0111
N: Name="RDing FootSwitch1F1."
P: Phys=usb-0000:00:14.0-2/input0
S: Sysfs=/devices/pci0000:00/usb1/1-2/input/input7
U: Uniq=
H: Handlers=sysrq kbd leds event7
B: PROP=0
B: EV=120013
B: KEY=1000000000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe

I: Bus=0005 Vendor=046d Product=b025 Version=0014
N: Name="a "clicker" = with signs"
H: Handlers=mouse2 event8
B: EV=17

I: Bus=0003 Vendor=1234 Product=5678 Version=0110
N: Name="thermometer"
H: Handlers=event9
B: EV=9
"""


def test_input_devices_that_could_be_a_button():
    rows = devices.inputs(INPUT_TEXT)
    assert [(row["name"], row["kind"], row["device"], row["bus"], row["usb"]) for row in rows] == [
        ("RDing FootSwitch1F1.", "keyboard", "/dev/input/event7", "USB", "0c45:7403"),
        ('a "clicker" = with signs', "mouse", "/dev/input/event8", "Bluetooth", "046d:b025"),
    ]
    assert devices.inputs("") == []


# --- asking -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A13")
@pytest.mark.parametrize("box", BOXES)
def test_who_answers_is_told_and_neither_a_pulse_nor_high_voltage_was_sent(tmp_path, box):
    with running_twin(tmp_path, box) as twin:
        with tapped(twin.port) as tap:
            answer = calmloop("devices", "--ask", tap.port, "--as", *BOXES, "--json")
        pulses, refused, summary = twin.end()
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    assert facts["ok"] and facts["asked"][-1]["as"] == box
    assert facts["asked"][-1]["facts"]["identity"].split()[1] == ("CALMTWIN04" if box == "rehamove3" else "CALMTWIN08")
    assert all(row["why"] for row in facts["asked"][:-1])
    assert pulses == [] and refused == [] and summary["pulses"] == 0
    commands = commands_of(tap.sent)
    assert commands and not {LL_INIT, LL_CONFIG} & set(commands)


def test_the_wrong_box_is_named_and_falls_short(tmp_path):
    with running_twin(tmp_path, "p24") as twin:
        answer = calmloop("devices", "--ask", twin.port, "--as", "rehamove3")
        pulses, _, _ = twin.end()
    assert answer.returncode == 1 and "not a RehaMove3" in answer.stdout
    assert pulses == []


def test_nobody_there_falls_short():
    with silent_port() as silent:
        answer = calmloop("devices", "--ask", silent.port, "--as", "p24", "--json")
        assert not {LL_INIT, LL_CONFIG} & set(commands_of(silent.heard()))
    assert answer.returncode == 1
    assert "did not answer" in json.loads(answer.stdout)["asked"][0]["why"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "say with --as"),
        (["ttl-byte"], "never asked"),
        (["ttl-cedrus"], "never asked"),
        (["ttl-line"], "never asked"),
        (["p24", "ttl-byte"], "never asked"),
        (["p24", "P24"], "none of"),
    ],
)
@pytest.mark.safety("A13")
def test_no_byte_leaves_for_a_question_that_must_not_be_asked(names, words):
    with silent_port() as silent:
        answer = calmloop("devices", "--ask", silent.port, *(["--as", *names] if names else []))
        assert answer.returncode == 2 and words in answer.stderr
        assert silent.heard() == b""


def test_wrong_use():
    for more, words in (
        (["--as", "p24"], "--as needs --ask"),
        (["--seconds", "0"], "--seconds"),
        (["--seconds", "nan"], "--seconds"),
        (["--seconds", "1e9"], "--seconds"),
    ):
        answer = calmloop("devices", *more)
        assert answer.returncode == 2 and words in answer.stderr, more
    answer = calmloop("devices", "--ask", "/dev/there-is-no-such-port", "--as", *BOXES, "--json")
    assert answer.returncode == 1 and "No such file" in answer.stdout
    assert len(json.loads(answer.stdout)["asked"]) == 1  # for the next driver the port would be missing too


@pytest.mark.safety("A13")
def test_whoever_asks_calls_no_output_method():
    tree = ast.parse((ROOT / "drivers" / "stimulators" / "__init__.py").read_text())
    called = {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    assert {"open", "identify", "close"} <= called
    assert not called & {"arm", "trigger"}


# --- doctor -----------------------------------------------------------------------------------------------------------------------
def doctor_rows(folder, port, driver="p24"):
    text = (ROOT / "config" / "demo.toml").read_text().replace('port = "virtual"', f'port = "{port}"').replace('"rehamove3"', f'"{driver}"')
    (folder / "bed.toml").write_text(text)
    rows = json.loads(calmloop("doctor", str(folder / "bed.toml"), "--json").stdout)["checks"]
    return {
        row["what"].removeprefix(f"stimulator port {port}").strip(" ,"): row for row in rows if row["what"].startswith("stimulator port")
    }


def test_doctor_looks_at_the_port_and_sends_nothing(tmp_path):
    with silent_port() as silent:
        rows = doctor_rows(tmp_path, silent.port)
        assert set(rows) == {"", "is free", "USB identity", "line"}
        assert rows[""]["ok"] and rows["is free"]["ok"]
        assert not rows["USB identity"]["ok"] and not rows["USB identity"]["needed"] and "0483:5740" in rows["USB identity"]["fact"]
        assert "exclusive" in rows["line"]["fact"]
        with open(silent.port, "rb", buffering=0) as held:  # noqa: PTH123
            fcntl.flock(held, fcntl.LOCK_EX)
            rows = doctor_rows(tmp_path, silent.port)
            assert not rows["is free"]["ok"] and rows["is free"]["needed"] and str(os.getpid()) in rows["is free"]["fact"]
            assert "line" not in rows
        assert silent.heard() == b""


def test_doctor_says_what_mends_a_port_that_is_missing_or_none(tmp_path):
    rows = doctor_rows(tmp_path, tmp_path / "nothing")
    assert set(rows) == {""} and not rows[""]["ok"] and "plug" in rows[""]["mend"]
    (tmp_path / "file").touch()
    rows = doctor_rows(tmp_path, tmp_path / "file")
    assert not rows["line"]["ok"] and rows["line"]["needed"] and "not a serial port" in rows["line"]["fact"]
