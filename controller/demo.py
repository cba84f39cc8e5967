"""`calmloop demo` and `calmloop simulate`: the real daemon against a simulated body and a virtual stimulator, judged from outside.

The daemon runs as for a patient; only its settings point at the body's streams and the virtual stimulator's port. The figures of the
summary come from the body's truth and the stimulator's own log, never from what the loop says of itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from controller import messages, settings

if TYPE_CHECKING:
    import argparse

    from controller.settings import Settings

STIMULATOR = "rehamove3"
#: what the demo's settings say of another stimulator: [stimulator], and of its train what that one cannot do as prescribed
_DIAL = {"dial_current_ma": 20.0, "dial_phase_width_us": 500, "dial_interphase_gap_us": 100}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "p24": ({}, {}),
    "sciencemode2": ({}, {"pulse_rate_hz": 30.0}),  # the box's own latency varies by 14 ms
    "sciencemode1": ({}, {}),
    "pulsepal": ({"ma_per_volt": 2.5}, {}),
    **dict.fromkeys(("ttl-byte", "ttl-cedrus", "ttl-line"), (_DIAL, {"ramp_up_ms": 0, "taper_ms": 0})),  # no current can be set
    "motimove": ({"experimental": True}, {"interphase_gap_us": 10}),  # its program has none; settings can say no less
}

SOFT_START_S = 5.5  # the supervisor: 20 % a second
READY_S = 180.0  # the first run compiles the kernels
END_S = 15.0


class DemoError(Exception):
    """Something that the demo needs ended or never came up."""


def say(text: str) -> None:
    """Progress goes to standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


class Process:
    """A child that says on standard output, as one JSON line, that it is ready; its standard input is its lifeline."""

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        # a group of its own: the terminal's ^C is for the demo, which then ends its parts in order
        self.popen = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )

    def line(self, what: str) -> dict[str, Any]:
        """Wait for the next JSON line. Raises `DemoError` where the process ends first."""
        assert self.popen.stdout
        text = self.popen.stdout.readline()
        if not text:
            raise DemoError(f"{self.name} ended before it {what} ({self.how_it_ended()})")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def send(self, text: str) -> None:
        """Write one line to its standard input."""
        assert self.popen.stdin
        try:
            self.popen.stdin.write(text + "\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            raise DemoError(f"{self.name} {self.how_it_ended()}") from None

    def how_it_ended(self) -> str:
        """In words."""
        try:
            code = self.popen.wait(2.0)
        except subprocess.TimeoutExpired:
            return "is still running"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def end(self, with_signal: int | None = None) -> None:
        """Let go of its lifeline, or send a signal; wait; by force if need be."""
        assert self.popen.stdin and self.popen.stdout
        if with_signal and self.popen.poll() is None:
            self.popen.send_signal(with_signal)
        try:
            self.popen.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.popen.stdout.close()


class Bench:
    """The virtual stimulator and whoever publishes the signals, wired together in one folder."""

    def __init__(self, folder: Path, source: list[str], source_name: str, stimulator: str = STIMULATOR, *fault: str) -> None:
        self.folder = folder
        self.stimulator = Process(
            "the virtual stimulator",
            *("drivers.simulated.twin", stimulator),
            *("--log", str(folder / "stimulator.jsonl"), "--pulses-to", str(folder / "pulses.sock"), "--lifeline", *fault),
        )
        try:
            self.port: str = self.stimulator.line("was ready")["port"]
            self.source = Process(source_name, *source)
            self.source.line("was ready")
        except DemoError:
            self.stimulator.end()
            raise

    def check(self) -> None:
        """Raise `DemoError` where one of the two has ended."""
        for process in (self.stimulator, self.source):
            if process.popen.poll() is not None:
                raise DemoError(f"{process.name} {process.how_it_ended()}")

    def close(self) -> None:
        """End both; the source first, so that its truth covers all the stimulator did."""
        self.source.end()
        self.stimulator.end(signal.SIGTERM)


def body(folder: Path, seed: int, source_id: str, *more: str, stimulator: str = STIMULATOR, fault: str | None = None) -> Bench:
    """A bench with the simulated body. Raises `DemoError` where it does not come up."""
    return Bench(
        folder,
        [
            "drivers.simulated.body",
            *("--seed", str(seed), "--truth", str(folder), "--pulses", str(folder / "pulses.sock"), "--source-id", source_id),
            *more,
        ],
        "the simulated body",
        stimulator,
        *(("--fault", fault) if fault else ()),
    )


class LiveDaemon:
    """`calmloop run` as a child, spoken to as anybody would: by its control socket and its status file.

    Its dose journal is in `folder` unless another is named: a demo counts for no patient.
    """

    def __init__(self, config: Settings, bed: str, folder: Path, errors: IO[str] | None = None, journal: Path | None = None) -> None:
        path = folder / "settings.toml"
        journal = journal or folder / "dose.sqlite"
        path.write_text(config.to_toml())
        self.bed = bed
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "controller", "run", str(path), "--bed", bed, "--journal", str(journal), "--lifeline"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,
            stderr=errors,
        )

    def check(self) -> None:
        """Raise `DemoError` where it has ended."""
        code = self.popen.poll()
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise DemoError(f"the daemon {how}")

    def status(self) -> dict[str, Any] | None:
        """What it last reported, None when that is old or another daemon's."""
        status = messages.daemon_status(self.bed)
        return status if status and status["pid"] == self.popen.pid else None

    def wait_until_quiet(self, bench: Bench) -> dict[str, Any]:
        """Wait until the loop hears everything and knows the noise."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            self.check()
            bench.check()
            status = self.status()
            if status and status["data_ok"] and status["rules"] and all(r["quality"] == "ok" for r in status["rules"].values()):
                return status
            time.sleep(0.1)
        raise DemoError(f"the loop did not get ready within {READY_S:g} s; last status: {self.status()}")

    def wait_until_listening(self) -> None:
        """Wait until the loop has found its streams, whether or not samples flow yet."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            self.check()
            status = self.status()
            if status and status["cycles"]:
                return
            time.sleep(0.1)
        raise DemoError(f"the loop did not find its streams within {READY_S:g} s")

    def arm(self) -> None:
        """Arm automatic mode, as a person would."""
        answer = messages.allow(self.bed, True, "demo")
        if not answer["automatic"]:
            raise DemoError(f"arming was refused: {answer['reason']}")

    def try_train(self) -> None:
        """Press the button once, as a clinician would after arming: from a train's first pulse on its current rises by a fifth a second."""
        answer = messages.ask(self.bed, messages.press("demo"))
        if not answer["ok"]:
            raise DemoError(f"the train to try out was refused: {'; '.join(answer['reasons'])}")
        end = time.monotonic() + SOFT_START_S
        while time.monotonic() < end:
            self.check()
            time.sleep(0.1)

    def end(self) -> int:
        """SIGTERM and wait."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(END_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()
        finally:
            assert self.popen.stdin
            self.popen.stdin.close()


def run(seconds: float, seed: int, config: Settings, bed: str) -> dict[str, Any]:
    """One closed loop from start to summary.

    Raises
    ------
    DemoError
        A part of it ended or never came up; the message says which and how.
    """
    source_id = f"calmloop-{bed}-{seed}"
    with tempfile.TemporaryDirectory(prefix="calmloop-demo-") as work_name:
        work = Path(work_name)
        say("starting the simulated body and the virtual stimulator (the first run compiles the kernels: up to a minute)")
        bench = body(work, seed, source_id, "--wait", stimulator=config.stimulator.driver)
        daemon = None
        session = None
        try:
            config = pointed_at(config, bench.port, source_id)
            daemon = LiveDaemon(config, bed, work)
            say("waiting for the loop to hear the body and to learn its noise")
            session = Path(daemon.wait_until_quiet(bench)["session"])
            daemon.arm()
            say(f"armed; one train is tried out; where the current can be set it begins softly, and is whole after {SOFT_START_S:g} s")
            daemon.try_train()
            bench.source.send(f"go {seconds:g}")
            bench.source.line("began")
            watch(seconds, daemon, bench)
        except DemoError as error:
            raise DemoError(f"{error}{f'; session in {session}' if session else ''}") from None
        finally:
            code = daemon.end() if daemon else 0
            bench.close()
        if code:
            raise DemoError(f"the daemon ended with exit code {code}; session in {session}")
        truth = session / "truth"
        truth.mkdir()
        for name in ("truth.json", "truth.npz", "stimulator.jsonl"):
            shutil.copy(work / name, truth / name)
    say("working out what the same spasms would have been without stimulation")
    from controller import demo_summary

    result = demo_summary.summary(session, seconds, seed)
    (session / "summary.json").write_text(json.dumps(result, indent=1))
    return result


def watch(seconds: float, daemon: LiveDaemon, bench: Bench) -> None:
    """Wait for the end, saying how far it is; raise `DemoError` when a part ends before."""
    end = time.monotonic() + seconds
    told = 0.0
    while (left := end - time.monotonic()) > 0:
        daemon.check()
        bench.check()
        if not sys.stderr.isatty() and time.monotonic() - told > 10:
            told = time.monotonic()
            status = daemon.status()
            if status:
                say(f"{seconds - left:5.0f} of {seconds:.0f} s  {status['state']}  {status['trains']} trains, {status['pulses']} pulses")
        time.sleep(min(0.1, left))


def unknown(stimulator: str) -> str:
    """What is wrong with the name of a stimulator; empty = nothing."""
    names = sorted({STIMULATOR, *OTHERS})
    return "" if stimulator in names else f"--stimulator {stimulator!r} is none of {', '.join(names)}"


def with_stimulator(config: Settings, name: str) -> Settings:
    """The same settings for another stimulator, and trains as that one can give them."""
    if name == config.stimulator.driver:
        return config
    told, train = OTHERS.get(name, ({}, {}))
    stimulator = settings.Stimulator(driver=name, port=config.stimulator.port, **told)  # type: ignore[arg-type]
    trains = {key: one.model_copy(update=train) for key, one in config.trains.items()}
    return settings.parse(config.model_copy(update={"stimulator": stimulator, "trains": trains}).to_toml(), f"demo with {name}")


def with_page(config: Settings, port: int) -> Settings:
    """The same settings with a page at this port, or, where that is taken, at one that is free."""
    if port:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    return config.model_copy(update={"page": config.page.model_copy(update={"port": port})})


def pointed_at(config: Settings, port: str, source_id: str) -> Settings:
    """Settings whose stimulator is at `port` and whose streams are those of the source called `source_id`."""
    copy = config.model_copy(
        update={
            "stimulator": config.stimulator.model_copy(update={"port": port}),
            "emg": config.emg.model_copy(update={"source_id": source_id + "-emg"}) if config.emg else None,
            "force": config.force.model_copy(update={"source_id": source_id + "-force"}) if config.force else None,
        }
    )
    return settings.parse(copy.to_toml(), "demo")


def command(args: argparse.Namespace) -> int:
    """`calmloop demo`."""
    if not 1 <= args.seconds <= 86400:
        say(f"--seconds {args.seconds:g} must be at least 1 and at most 86400")
        return 2
    if args.stimulator and (wrong := unknown(args.stimulator)):
        say(wrong)
        return 2
    try:
        config = settings.load(args.config or settings.default_config("demo.toml"))
        if args.sessions:
            folder = config.session.model_copy(update={"folder": args.sessions})
            config = settings.parse(config.model_copy(update={"session": folder}).to_toml(), "demo")
        if args.stimulator:
            config = with_stimulator(config, args.stimulator)
        config = with_page(config, 0 if args.headless else args.port)
    except settings.SettingsError as error:
        say(str(error))
        return 2
    try:
        result = run(args.seconds, args.seed, config, args.bed or f"demo-{os.getpid()}")
    except DemoError as error:
        say(f"demo: {error}")
        return 1
    from controller import demo_summary

    print(json.dumps(result) if args.json else demo_summary.in_words(result))
    short = demo_summary.falls_short(result)
    for reason in short:
        say(f"falls short: {reason}")
    return 1 if short else 0


def simulate_command(args: argparse.Namespace) -> int:
    """`calmloop simulate`: body and virtual stimulator until ^C or the given time."""
    if wrong := unknown(args.stimulator):
        say(wrong)
        return 2
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pulses.sock").unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        bench = body(folder, args.seed, args.source_id, "--wait", stimulator=args.stimulator, fault=args.fault)
    except DemoError as error:
        say(str(error))
        return 1
    sources = [f"{args.source_id}-emg", f"{args.source_id}-force"]
    facts = {
        "stimulator": args.stimulator,
        "port": bench.port,
        "streams": ["calmloop body EMG", "calmloop body torque"],
        "source_ids": sources,
        "folder": str(folder),
    }
    text = (
        f"virtual {args.stimulator} at {bench.port}; "
        f"LSL streams 'calmloop body EMG' and 'calmloop body torque' (source_id {' and '.join(sources)}); "
        f"truth and pulse log in {folder} at the end (^C)"
    )
    print(json.dumps(facts) if args.json else text, flush=True)
    bench.source.send(f"go {args.seconds:g}" if args.seconds else "go")
    end = time.monotonic() + (args.seconds or float("inf"))
    try:
        while time.monotonic() < end:
            bench.check()
            time.sleep(0.1)
    except KeyboardInterrupt:
        pass
    except DemoError as error:
        say(str(error))
        return 1
    finally:
        bench.close()
    return 0
