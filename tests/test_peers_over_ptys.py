"""Independent implementations at the other end of a real pty: a thousand random lawful commands each, and our encoder has the same bytes.

Of what they get wrong (stimulators notes, 1.6) nothing is asked. science-mode-4 is in `test_sciencemode34.py`.
"""

import json
import os
import pty
import random
import re
import select
import subprocess
import sys
import threading
import time
import tty
from contextlib import contextmanager

from pypulsepal import PulsePal as PulsePalPeer
from pypulsepal.definitions import PARAM_CODES, PARAM_DTYPE_MODEL_2

from drivers.simulated.virtual_sciencemode2 import wrap
from drivers.stimulators import pulsepal, sciencemode2

N = 1000
MANGLED = (0x0A, 0x0F, 0x55, 0x81, 0xF0)  # pysciencemode 1.1.5 stuffs two bytes too many, and forgets the 81 before a number


@contextmanager
def answered(answer):
    """A pty whose far end answers what it has read with `answer(bytes) -> bytes`; yields its name and the list of what was read."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    done, read = threading.Event(), []

    def play():
        while not done.is_set():
            if select.select([master], [], [], 0.02)[0]:
                read.append(os.read(master, 4096))
            if reply := answer(b"".join(read)):
                os.write(master, reply)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield os.ttyname(slave), read
    finally:
        done.set()
        thread.join()
        os.close(slave)
        os.close(master)


# what it writes is all that counts here: it is not made to wait for answers, which it does without an end (`test_sciencemode2.py` does)
SCIENCEMODE2 = """
import json, os, sys, time
from pysciencemode import Channel, Device, Modes
from pysciencemode.rehastim2_interface import Rehastim2

def channel(mode, number, ma, us):
    return Channel(mode=getattr(Modes, mode), no_channel=number, amplitude=ma, pulse_width=us, device_type=Device.Rehastim2)

box = Rehastim2(port=sys.argv[1])
for them in json.loads(sys.stdin.read()):
    box.set_stimulation_signal([channel(*c) for c in them])
    box._send_packet("StartChannelListMode")
box._send_packet("StopChannelListMode")
box.port.flush()
os._exit(0)
"""


def test_pysciencemode_writes_what_we_encode():
    dice = random.Random(20261125)

    def lawful(low, high):
        return dice.choice([value for value in range(low, high) if value % 256 not in MANGLED])

    asked = [[(dice.choice(("SINGLE", "DOUBLET", "TRIPLET")), n, lawful(0, 131), lawful(20, 501)) for n in (2, 5)] for _ in range(N)]

    def answer(data):
        return b"" if data else wrap(7, 1, b"\1")  # its Init, until somebody says something

    with answered(answer) as (port, read):
        done = subprocess.run(
            [sys.executable, "-c", SCIENCEMODE2, port], input=json.dumps(asked), capture_output=True, text=True, timeout=200, check=False
        )
    assert done.returncode == 0 and done.stderr == "", done
    raw = b"".join(read)
    written = re.findall(rb"\xf0\x81.\x81.[^\xf0\x0f]*\x0f", raw, re.DOTALL)
    frames = sciencemode2.Deframer().feed(raw)
    assert len(written) == len(frames)
    unmangled = {byte ^ 0x55: byte for byte in MANGLED}
    equal = [ours == theirs for ours, theirs in ((sciencemode2.encode_frame(*it), raw) for it, raw in zip(frames, written, strict=True))]
    wrong = [it for it, same in zip(frames, equal, strict=True) if not same]
    assert all(it.number in unmangled for it in wrong) and sum(equal) >= 0.95 * N, wrong[:5]
    groups = {"SINGLE": 0, "DOUBLET": 1, "TRIPLET": 2}
    expected = [b"".join(bytes((groups[mode], us // 256, us % 256, ma)) for mode, _, ma, us in them) for them in asked]
    assert [it.data for it in frames if it.command == 32] == expected


def test_pypulsepal_writes_what_we_encode():
    dice, ours = random.Random(20261125), []
    n_taken: list[int] = []  # none: it is still introducing itself, with a text for the display too

    def answer(data):
        """As the box: "K" and firmware to a handshake, 01 to a parameter."""
        if not n_taken:
            return b"K\x15\0\0\0" if data == pulsepal.HANDSHAKE else b""
        replies = b""
        while len(data) > n_taken[0] + 2 and len(data) >= n_taken[0] + pulsepal._size_of(data, n_taken[0]):
            n_taken[0] += pulsepal._size_of(data, n_taken[0])
            replies += b"\1"
        return replies

    with answered(answer) as (port, read):
        peer = PulsePalPeer(port)
        time.sleep(0.2)
        n_first = len(b"".join(read))
        n_taken.append(n_first)
        peer._update_param = lambda **_: None  # its own copy allows fewer values than its wire
        for _ in range(N):
            parameter = pulsepal.Parameter(dice.choice([code for code in PARAM_CODES if code != 128]))
            name, channel = PARAM_CODES[parameter], dice.randint(1, 4)
            if parameter in (2, 3, 17):
                millivolts = dice.randint(-10_000, 10_000)
                value, theirs = pulsepal.volts_code(millivolts, 1000), millivolts / 1000
            elif PARAM_DTYPE_MODEL_2[name] == "uint32":
                value = dice.randrange(2**32)
                theirs = (value + 0.5) / 20_000  # it cuts off what is no whole cycle: half of one keeps rounding out of the way
            else:
                value = theirs = dice.randint(0, 1)
            assert peer.program_one_param(channel - 1, name, theirs)
            ours.append(pulsepal.encode_program(parameter, channel, value))
        written = b"".join(read)
    assert written[n_first:] == b"".join(ours)
    assert written.startswith(pulsepal.HANDSHAKE)
