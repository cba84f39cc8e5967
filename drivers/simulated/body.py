"""The simulated patient as a process: publishes EMG and torque over LSL in real time, and feels the virtual stimulator.

`python -m drivers.simulated.body --seed S --truth FOLDER --pulses SOCKET` publishes 2-ms blocks on absolute deadlines: the block that
covers [t, t + 2 ms) leaves at t + 2 ms, each sample stamped with its own time. Pulses come as unix datagrams (struct `PULSE_RECORD`), each
applied at its own time. The truth (onsets, PIC activation, what each pulse did) goes to FOLDER at the end, for scoring alone: nothing of
it is in the signals.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from drivers.simulated.patient import CHANNELS, SAMPLE_RATE_HZ, TORQUE_RATE_HZ, Growing, Patient, Pulse
from drivers.sources import lsl

PULSE_RECORD = struct.Struct("<qqiiii")  # received_ns, pulse_ns, current_ua, phase_width_us, channel, number
BLOCK = 4  # EMG samples
BLOCK_NS = round(BLOCK / SAMPLE_RATE_HZ * 1e9)
LATE_NS = 20_000_000
FIRST_SPASM_AFTER_S = 5.0  # without --wait
PRIORITY = 60  # below loop and guard: the patient's own computer is not the one that must be on time


class Body:
    """A patient, its two outlets and its ear for the stimulator."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.patient = Patient(args.seed)
        self.ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        Path(args.pulses).unlink(missing_ok=True)
        self.ear.bind(args.pulses)
        self.emg = lsl.outlet(args.emg_name, "EMG", CHANNELS, "uV", SAMPLE_RATE_HZ, args.source_id + "-emg")
        self.torque = lsl.outlet(args.force_name, "Force", ("ankle",), "N m", TORQUE_RATE_HZ, args.source_id + "-force")
        self.pushed_ns = Growing((), np.int64)
        self.felt: list[dict[str, Any]] = []
        self.late_blocks = self.late_pulses = 0
        self.ending = False
        self.flat: set[int] = set()  # electrodes that are off
        self.start_ns = 0
        self.t0_s = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.end)

    def run(self) -> None:
        """Live until told to end."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self.start_ns = time.monotonic_ns()
        self.t0_s = self.start_ns * 1e-9
        if not self.args.wait:
            left_s = self.args.seconds and self.args.seconds - FIRST_SPASM_AFTER_S
            self.patient.go(round(FIRST_SPASM_AFTER_S * SAMPLE_RATE_HZ), left_s)
        block = 0
        end_block = round(self.args.seconds * 1e9 / BLOCK_NS) if self.args.seconds else None
        while not self.ending and (end_block is None or block < end_block):
            due_ns = self.start_ns + (block + 1) * BLOCK_NS
            wait_ns = due_ns - time.monotonic_ns()
            if wait_ns > 0:
                time.sleep(wait_ns * 1e-9)
            elif -wait_ns > LATE_NS:
                self.late_blocks += 1
            if self.args.wait and block % 10 == 0:
                self.listen(block * BLOCK)
            self.live(block * BLOCK)
            block += 1

    def end(self, *_: object) -> None:
        """Finish the present block, then write the truth."""
        self.ending = True

    def live(self, first: int) -> None:
        """One block: feel, live, publish."""
        pulses = self.feel(first)
        emg_uv, torque_nm = self.patient.advance(BLOCK, pulses)
        emg_uv[:, list(self.flat)] = 0.0
        self.emg.push_chunk(emg_uv, self.t0_s + np.arange(first, first + BLOCK) / SAMPLE_RATE_HZ)
        self.torque.push_chunk(torque_nm, self.t0_s + np.arange(first, first + BLOCK, 2) / SAMPLE_RATE_HZ)
        self.pushed_ns.extend(np.array([time.monotonic_ns()]))

    def feel(self, first: int) -> list[Pulse]:
        """Pulses that were announced since the last block."""
        pulses: list[Pulse] = []
        while True:
            try:
                data = self.ear.recv(PULSE_RECORD.size)
            except BlockingIOError:
                return pulses
            received_ns, pulse_ns, current_ua, phase_width_us, _, _ = PULSE_RECORD.unpack(data)
            t_s = (pulse_ns - self.start_ns) * 1e-9
            self.late_pulses += t_s < first / SAMPLE_RATE_HZ
            pulses.append(Pulse(t_s, current_ua, phase_width_us))
            self.felt.append({"received_ns": received_ns, "pulse_ns": pulse_ns})

    def listen(self, sample: int) -> None:
        """A line on standard input: "go [SECONDS]" lets spasms come, "flat CHANNEL" takes an electrode off, "mend" puts all on again.

        Its end ends everything.
        """
        if not select.select([sys.stdin], [], [], 0)[0]:
            return
        line = sys.stdin.readline()
        words = line.split()
        if not line:
            self.ending = True
        elif words[:1] == ["flat"] and words[1] in CHANNELS:
            self.flat.add(CHANNELS.index(words[1]))
        elif words == ["mend"]:
            self.flat.clear()
        elif words[:1] == ["go"] and self.patient.rests(sample):
            self.patient.go(sample, float(words[1]) if len(words) > 1 else None)
            tell(go_sample=sample, go_s=self.t0_s + sample / SAMPLE_RATE_HZ)

    def write_truth(self) -> None:
        """Times of the model become times of the LSL clock."""
        truth = self.patient.truth()
        for spasm in truth["spasms"]:
            for key in ("drive_s", "onset_s", "offset_s", "half_pic_s"):
                spasm[key] = None if spasm[key] is None else spasm[key] + self.t0_s
        for pulse, felt in zip(truth["pulses_felt"], self.felt, strict=True):
            pulse |= felt
            for key in ("applied_s", "reached_pool_s"):
                pulse[key] = None if pulse[key] is None else pulse[key] + self.t0_s
        arrays = {key: truth.pop(key) for key in [k for k, value in truth.items() if isinstance(value, np.ndarray)]}
        folder = Path(self.args.truth)
        np.savez(folder / "truth.npz", block_pushed_ns=self.pushed_ns.array, **arrays)
        go_s = None if truth["go_sample"] is None else self.t0_s + truth["go_sample"] / SAMPLE_RATE_HZ
        facts = {
            "t0_s": self.t0_s,
            "go_s": go_s,
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "late_blocks": self.late_blocks,
            "late_pulses": self.late_pulses,
        }
        (folder / "truth.json").write_text(json.dumps(truth | facts))


def tell(**facts: object) -> None:
    """One JSON line for whoever started us."""
    print(json.dumps(facts), flush=True)


def main() -> int:
    """Run one body."""
    parser = argparse.ArgumentParser(prog="drivers.simulated.body")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--truth", required=True, help="folder for the truth")
    parser.add_argument("--pulses", required=True, help="unix datagram socket to make, on which pulses are announced")
    parser.add_argument("--seconds", type=float, default=None, help="end after this long")
    parser.add_argument("--wait", action="store_true", help='no spasms before a line "go [SECONDS]" on standard input; end with it')
    parser.add_argument("--emg-name", default="calmloop body EMG")
    parser.add_argument("--force-name", default="calmloop body torque")
    parser.add_argument("--source-id", default="calmloop-body")
    args = parser.parse_args()
    Path(args.truth).mkdir(parents=True, exist_ok=True)
    Patient(args.seed, go_sample=0).advance(20, [Pulse(0.001, 20_000, 500)])  # compiles or loads the kernels
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))  # before the outlets, so that LSL's threads inherit it
    except OSError as error:
        print(f"body: SCHED_FIFO {PRIORITY} refused: {error.strerror}", file=sys.stderr)
    body = Body(args)
    tell(ready=True, pid=os.getpid(), emg=args.emg_name, force=args.force_name)
    body.run()
    body.write_truth()
    Path(args.pulses).unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
