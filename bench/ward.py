"""A bed for the safety benches: the real `calmloop run`, a virtual stimulator and, where wanted, a source, each a process of its own.

Whatever people and patients do here is done as anybody would, and written down as what may cause a train (`pulses.Asked`); how long each
bed lives, and what is killed in it, is up to `bench.faults`. `python -m bench.ward SOURCE_ID` is the source: an LSL outlet of noise that
plays a burst of so many seconds for each number on its standard input.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from bench import pulses
from bench.job import ROOT
from controller import demo, messages, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from controller.settings import Settings

STREAM, CHANNELS, RATE_HZ, CHUNK = "calmloop bench EMG", ("EMG1", "EMG2"), 1000.0, 10
NOISE_UV, BURST_UV, FLOOR_UV = 5.0, 500.0, 50.0
TRAIN = {"duration_ms": 500, "ramp_up_ms": 50, "taper_ms": 100, "pulse_rate_hz": 50.0}  # long enough to be hit in the middle
REFRACTORY_S = 1.0  # the least there is
READY_S = 120.0  # the first run compiles the kernels
ARM_S = 4.0
PRESS_NS = 300_000_000  # a press that is older than 250 ms never stimulates; 50 ms for the stimulator to hear of it
SPASM_NS = 1_200_000_000  # after its last sample: a train that is on, a look, and what the detector still holds


class UnusableError(Exception):
    """The bed cannot do what is to be tried; the message says what it answered."""


# --- what people do ---------------------------------------------------------------------------------------------------------------
def arm(bed: str, automatic: bool) -> dict[str, Any]:
    """Arm, as a person: look at what is offered, then confirm it. The one place where the benches of safety arm."""
    offer = messages.ask(bed, {"do": "offer", "who": "bench"})
    named = {name: offer[name] for name in ("offer", "prescription_id") if name in offer}
    return messages.ask(bed, {"do": "arm", **named, "electrodes_checked": True, "automatic": automatic, "who": "bench"}, ARM_S)


def press_command() -> dict[str, Any]:
    """One press of the button. The one place where the benches of safety trigger."""
    return {"do": "trigger", "id": secrets.randbits(52) | 1, "issued_ns": monotonic_ns(), "who": "bench"}


# --- the bed ----------------------------------------------------------------------------------------------------------------------
def settings_of(automatic: bool, port: str, source_id: str, folder: Path, cpu: int) -> Settings:
    """Settings of the bench's bed with a train of half a second and the least refractory time; without rules it is the button alone."""
    base = settings.load(ROOT / "config" / "bench.toml")
    assert base.emg
    changes: dict[str, Any] = {
        "session": base.session.model_copy(update={"folder": str(folder)}),
        "stimulator": base.stimulator.model_copy(update={"port": port}),
        "trains": {name: train.model_copy(update=TRAIN) for name, train in base.trains.items()},
        "prescription": base.prescription.model_copy(update={"refractory_s": REFRACTORY_S}),
        "realtime": base.realtime.model_copy(update={"cpus": (cpu,)}),
        "emg": None,
        "emg_rules": (),
    }
    if automatic:
        changes["emg"] = base.emg.model_copy(update={"channels": CHANNELS, "sample_rate_hz": RATE_HZ, "source_id": source_id})
        changes["emg_rules"] = tuple(rule.model_copy(update={"channels": CHANNELS, "floor_uv": FLOOR_UV}) for rule in base.emg_rules)
    return settings.parse(base.model_copy(update=changes).to_toml(), "bench.ward")


class Ward:
    """One bed, up and not armed once `wait_until_ready` returns.

    Parameters
    ----------
    folder : Path
        Its own: sessions, logs, settings.
    automatic : bool
        With a source and a loop; else the button alone.
    fault : str
        Of the virtual stimulator, as its `--fault` takes it.
    """

    def __init__(self, folder: Path, automatic: bool, cpu: int = 0, fault: str = "") -> None:
        self.folder, self.bed, self.automatic = folder, folder.name, automatic
        folder.mkdir(parents=True)
        self.asked: list[pulses.Asked] = []
        self.deaths_s: list[float] = []
        self.faults = 0
        self.stopped: set[int] = set()
        self.source_id = f"{os.getpid()}-{self.bed}"
        self.source: demo.Process | None = None
        self.daemon: demo.LiveDaemon | None = None
        self.log = pulses.Log(folder / "stimulator.jsonl")
        self.config = settings_of(automatic, str(folder / "port"), self.source_id, folder / "sessions", cpu)
        self.errors = (folder / "daemon.log").open("a+")
        self.start_stimulator(fault)
        try:
            if automatic:
                self.start_source()
            self.start_daemon()
            self.limits = pulses.limits_of(folder / "settings.toml")
        except BaseException:
            self.close()
            raise

    # --- its parts ----------------------------------------------------------------------------------------------------------------
    def start_stimulator(self, fault: str = "") -> None:
        """A stimulator at the bed's port; those that follow write into the same log."""
        files = ("--log", str(self.log.path), "--link", str(self.folder / "port"))
        more = ("--fault", fault) if fault else ()
        self.stimulator = demo.Process("the virtual stimulator", "drivers.simulated.twin", *files, "--lifeline", *more)
        self.stimulator.line("was ready")

    def start_source(self) -> None:
        """An amplifier of two channels; one that follows has the same name and id."""
        self.source = demo.Process("the source", "bench.ward", self.source_id)
        self.source.line("was ready")

    def start_daemon(self) -> None:
        """`calmloop run` for this bed."""
        self.daemon = demo.LiveDaemon(self.config, self.bed, self.folder, self.errors)

    def pid(self, process: str) -> int:
        """Of loop, guard, daemon, source or stimulator, as it is now."""
        assert self.daemon
        if process == "daemon":
            return self.daemon.popen.pid
        if process in ("source", "stimulator"):
            part = self.source if process == "source" else self.stimulator
            assert part
            return part.popen.pid
        pid = int(self.wait_for(lambda: (self.report() or {}).get("children", {}).get(process), 10.0, f"a process id of {process}"))
        parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        if parent != self.daemon.popen.pid:  # never a stranger's
            raise UnusableError(f"process {pid} is not this bed's {process}")
        return pid

    def report(self) -> dict[str, Any] | None:
        """The daemon's status file, None where it is old or another daemon's."""
        assert self.daemon
        report = self.daemon.status()
        return report if report and report["pid"] == self.daemon.popen.pid else None

    def status(self) -> dict[str, Any]:
        """Guard's answer; empty = it gives none."""
        try:
            return messages.ask(self.bed, {"do": "status"}, 1.0)
        except messages.NoBedError:
            return {}

    def signal(self, pid: int, number: int) -> int:
        """Send a signal to one of the bed's processes; returns when that was done."""
        os.kill(pid, number)
        at_ns = monotonic_ns()
        if number == signal.SIGSTOP:
            self.stopped.add(pid)
        elif number == signal.SIGCONT:
            self.stopped.discard(pid)
        return at_ns

    # --- waiting ------------------------------------------------------------------------------------------------------------------
    def wait_for(self, condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """Poll; returns what is true in the end. Raises `UnusableError`."""
        end_s = time.monotonic() + timeout_s
        while not (got := condition()):
            if time.monotonic() > end_s:
                raise UnusableError(f"{self.bed}: no {what} within {timeout_s:g} s; guard says {self.status()}; {self.last_words()}")
            time.sleep(0.002)
        return got

    def wait_until_ready(self, timeout_s: float = READY_S) -> None:
        """Until guard serves a stimulator and, where there is one, the loop has learnt the noise of whatever process it is now."""

        def ready() -> bool:
            time.sleep(0.02)
            assert self.daemon
            if self.daemon.popen.poll() is not None:
                raise UnusableError(f"{self.bed}: the daemon ended: {self.last_words()}")
            status = self.status()
            if status.get("state") == "OFF" and "not asked again" in status["reason"]:
                messages.ask(self.bed, {"do": "clear", "reason": "bench: it is switched on", "who": "bench"})
            if status.get("state") not in ("IDLE", "ARMED"):
                return False
            report = self.report()
            if not self.automatic:
                return report is not None
            rules = report["rules"] if report else {}
            learnt = bool(rules) and all(rule["quality"] in ("ok", "held") for rule in rules.values())
            return bool(learnt and report and report["loop"] == "alive" and report["data_ok"])

        self.wait_for(ready, timeout_s, "bed that is ready")

    def last_words(self) -> str:
        """The end of what the daemon has said."""
        return (self.folder / "daemon.log").read_text(errors="replace")[-600:]

    # --- what people and patients do ----------------------------------------------------------------------------------------------
    def arm(self, timeout_s: float = 10.0) -> None:
        """Whatever it takes a person to have it armed. Raises `UnusableError`."""
        end_s = time.monotonic() + timeout_s
        answer: dict[str, Any] = {}
        while time.monotonic() < end_s:
            state = self.status().get("state")
            with suppress(messages.NoBedError):
                if state == "FAULT":
                    answer = self.clear()
                elif state == "OFF":
                    messages.ask(self.bed, {"do": "clear", "reason": "bench: it is switched on", "who": "bench"})
                elif state in ("IDLE", "LOCKOUT", "ARMED"):
                    answer = arm(self.bed, self.automatic)
                    if answer["state"] == "ARMED" and answer["automatic"] == self.automatic:
                        return
            time.sleep(0.05)
        raise UnusableError(f"{self.bed}: not armed within {timeout_s:g} s: {answer.get('reasons')}; {self.last_words()}")

    def clear(self) -> dict[str, Any]:
        """Clear a fault; three within ten minutes are too many (B6)."""
        self.faults += 1
        return messages.ask(self.bed, {"do": "clear", "reason": "bench: cause removed", "who": "bench"})

    def disarm(self) -> None:
        """Disarm."""
        messages.ask(self.bed, {"do": "disarm", "who": "bench"})

    def press(self, timeout_s: float = 1.0, times: int = 1) -> bool:
        """Press the button; the same press is said so many times, as a clumsy client would. True where one was granted."""
        command = press_command()
        self.asked.append(pulses.Asked(command["issued_ns"], command["issued_ns"] + PRESS_NS, True))
        granted = False
        for _ in range(times):
            with suppress(messages.NoBedError):
                granted |= messages.ask(self.bed, command, timeout_s)["ok"]
        return granted

    def burst(self, seconds: float) -> None:
        """A spasm of so long begins now."""
        assert self.source
        now_ns = monotonic_ns()
        self.asked.append(pulses.Asked(now_ns, now_ns + round(seconds * 1e9) + SPASM_NS, False))
        self.source.send(f"{seconds:g}")

    # --- the end ------------------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """End everything, also what stands still."""
        for pid in self.stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.daemon:
            self.daemon.end()
        if self.source:
            self.source.end()
        self.stimulator.end(signal.SIGTERM)
        self.errors.close()

    @property
    def sessions(self) -> list[Path]:
        """What its daemons have recorded, one after the other."""
        return sorted((self.folder / "sessions").glob("*"))


# --- the source, a process of its own ---------------------------------------------------------------------------------------------
def source(source_id: str) -> None:
    """Push noise on absolute deadlines until standard input ends; a number there is a burst of so many seconds."""
    import numpy as np

    from controller import realtime
    from drivers.sources import lsl

    realtime.ask(60)  # below the loop
    outlet = lsl.outlet(STREAM, "EMG", CHANNELS, "uV", RATE_HZ, source_id)
    noise = np.random.default_rng(0).standard_normal((CHUNK * 997, len(CHANNELS)))
    blocks = noise.reshape(-1, CHUNK, len(CHANNELS))
    print(json.dumps({"ready": True}), flush=True)
    due_s, burst_end_s, i, heard = time.monotonic(), 0.0, 0, b""
    while True:
        if select.select([0], [], [], 0)[0]:
            data = os.read(0, 4096)
            if not data:
                return
            *lines, heard = (heard + data).split(b"\n")
            for line in lines:
                burst_end_s = due_s + float(line)
        due_s = max(due_s + CHUNK / RATE_HZ, time.monotonic() - 0.05)  # arrears beyond this are not made up for
        time.sleep(max(0.0, due_s - time.monotonic()))
        outlet.push_chunk(np.ascontiguousarray(blocks[i] * (BURST_UV if due_s <= burst_end_s else NOISE_UV)))
        i = (i + 1) % len(blocks)


if __name__ == "__main__":
    source(sys.argv[1])
