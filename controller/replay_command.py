"""`calmloop replay`: sessions are compared, files are listened to, and other settings are tried on what was recorded."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controller import describe, many, reading, recording, replay, settings, what_if
from drivers.base import DeviceNotFoundError, DriverError, FileFormatError

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = tuple[int, dict[str, Any], list[str]]  # exit code, facts, lines for people


def command(args: argparse.Namespace) -> int:
    """`calmloop replay FILE...`; 0 = all sessions identical and all files read, 1 = a difference, 2 = something cannot be read."""
    if args.realtime and (args.jobs > 1 or args.speed):
        print(
            "--realtime is one live daemon at its own pace: trains, rests and limits are in real time; no --jobs, no --speed",
            file=sys.stderr,
        )
        return 2
    given = argparse.Namespace(**{name: value for name, value in vars(args).items() if name != "run"})  # for processes of their own
    progress = many.Progress([_size(Path(name)) for name in args.files])
    code, found = 0, []
    for name, answer in zip(
        args.files, many.each(_one, [(name, given) for name in args.files], args.jobs, args.speed, progress), strict=True
    ):
        killed = f"{name}: the process that replayed it was killed: out of memory?"
        its_code, facts, lines = answer or (2, {"file": name, "error": killed}, [killed])
        progress.clear()
        if not args.json or its_code == 2:
            print("\n".join(lines), file=sys.stderr if its_code == 2 else sys.stdout, flush=True)
        code = max(code, its_code)
        found.append(facts)
    progress.clear()
    if args.json:
        print(json.dumps(found[0] if len(found) == 1 else found))
    return code


def _size(path: Path) -> int:
    """Bytes of a recording; 1 where it cannot be read, which is soon said."""
    try:
        return max(1, (path / recording.SIGNALS if path.is_dir() else path).stat().st_size)
    except OSError:
        return 1


def _one(item: tuple[str, argparse.Namespace], tick: Callable[[float, float], None]) -> Answer:
    """One recording, whatever it is; an error of it must not lose the others."""
    name, args = item
    try:
        return _replayed(Path(name), args, tick)
    except (DriverError, settings.SettingsError) as error:
        return 2, {"file": name, "error": str(error)}, [str(error)]
    except Exception as error:
        text = f"{name}: {type(error).__name__}: {error}; this is a defect of calmloop"
        return 2, {"file": name, "error": text}, [traceback.format_exc(), text]


def _replayed(path: Path, args: argparse.Namespace, tick: Callable[[float, float], None]) -> Answer:
    if path.is_dir() or path.name == recording.SIGNALS:
        folder = path if path.is_dir() else path.parent
        if args.realtime:
            raise FileFormatError(f"{path}: --realtime is for files; a session of ours is replayed as fast as it goes, or with --speed")
        if args.pulses:
            raise FileFormatError(f"{path}: --pulses is for files; a session of ours knows its pulses")
        if args.floor is not None or reading.options_of(args):
            raise FileFormatError(f"{path}: how it is heard stands in its own settings; other settings are tried with --what-if OTHER.toml")
        return _what_if(folder, args, tick) if args.what_if else _session(folder, tick)
    if args.what_if:
        raise FileFormatError(f"{path}: --what-if is for sessions of ours; how a file is heard is said by the options")
    if args.realtime and args.pulses:
        raise FileFormatError(f"{path}: --pulses and --realtime do not go together: nobody would tell the loop of them in time")
    return _play(path, args) if args.realtime else _file(path, args, tick)


def _rate(seconds: float, began_s: float) -> dict[str, float]:
    took_s = time.monotonic() - began_s
    return {"took_s": round(took_s, 3), "times_real_time": round(seconds / took_s, 1)}


def _pace(seconds: float, rate: dict[str, float]) -> str:
    return f"{seconds:.1f} s in {rate['took_s']:.1f} s ({rate['times_real_time']:.0f} x real time)"


def _session(folder: Path, tick: Callable[[float, float], None]) -> Answer:
    began_s = time.monotonic()
    result = replay.replay_session(folder, tick)
    rate = _rate(result.seconds, began_s)
    lines = [
        f"{folder}: {result.cycles} cycles, {result.requests} requests, {result.guard_events} guard events, {result.pulses} pulses; "
        + _pace(result.seconds, rate)
    ]
    if result.identical is not None:
        lines.append("  identical decisions" if result.identical else f"  FIRST DIFFERENCE: {json.dumps(result.first_difference)}")
    lines += ["  " + note for note in result.notes]
    lines += [f"  {rule} {i:3d}  {describe.words(spasm)}" for rule, spasms in result.spasms.items() for i, spasm in enumerate(spasms, 1)]
    return int(result.identical is not True), asdict(result) | rate, lines


def _what_if(folder: Path, args: argparse.Namespace, tick: Callable[[float, float], None]) -> Answer:
    began_s = time.monotonic()
    session, config = replay.load_session(folder), settings.load(args.what_if)
    what_if.fits(session.config, config, args.what_if)
    facts = what_if.compare(session, config, tick)
    rate = _rate(facts["seconds"], began_s)
    lines = [f"{folder} with {args.what_if}: {facts['cycles']} cycles; {_pace(facts['seconds'], rate)}"]
    return int(facts["differs"]), facts | {"what_if": args.what_if} | rate, lines + ["  " + line for line in what_if.words(facts)]


def _file(path: Path, args: argparse.Namespace, tick: Callable[[float, float], None]) -> Answer:
    began_s = time.monotonic()
    rec, config, options = replay.load_file(path, args)
    pulses_s = replay.pulses_in(rec, args.pulses, options) if args.pulses else np.zeros(0)
    spasms = replay.detect(rec, config, pulses_s, tick)
    rule = config.emg_rules[0].model_dump(mode="json")
    seconds = len(rec.emg) / rec.sample_rate_hz
    active_s = sum(spasm["offset_s"] - spasm["onset_s"] for spasm in spasms)
    notes = [*rec.notes, *replay.doubts(rec, active_s, args.floor is not None, rule["floor_uv"])]
    rate = _rate(seconds, began_s)
    lines = [f"{path}: {len(rec.channels)} channels ({rec.unit}), {rec.sample_rate_hz:g} Hz; {_pace(seconds, rate)}"]
    if args.pulses:
        held = f"{replay.HOLD_MS:g} ms from each on are held"
        lines.append(f"  {len(pulses_s)} pulses from {pulses_s[0]:.3f} to {pulses_s[-1]:.3f} s; {held}")
    lines += ["  note: " + note for note in notes]
    lines.append("  settings: " + ", ".join(f"{key} {value}" for key, value in rule.items() if key not in ("name", "train")))
    lines += [f"  {i:3d}  {describe.words(spasm)}" for i, spasm in enumerate(spasms, 1)]
    lines.append(f"  {len(spasms)} detections")
    facts = {"file": str(path), "seconds": seconds, "settings": rule, "notes": notes, "unit": rec.unit, "pulses": len(pulses_s)}
    return 0, facts | {"detections": spasms} | rate, lines


def _play(path: Path, args: argparse.Namespace) -> Answer:
    """Play a file into a live daemon with the virtual stimulator; the daemon's session can then be replayed."""
    from controller import demo

    rec, config, options = replay.load_file(path, args)
    bed = f"replay-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="calmloop-replay-") as work_name:
        work = Path(work_name)
        source = ["drivers.simulated.player", str(path), "--options", json.dumps(options), "--source-id", f"calmloop-{bed}"]
        try:
            bench = demo.Bench(work, source, "the player")
        except demo.DemoError as error:
            raise DeviceNotFoundError(str(error)) from None
        daemon = demo.LiveDaemon(demo.pointed_at(config, bench.port, f"calmloop-{bed}"), bed, work)
        try:
            daemon.wait_until_listening()
            bench.source.send("go")
            bench.source.line("began")
            armed, end = False, time.monotonic() + len(rec.emg) / rec.sample_rate_hz
            while time.monotonic() < end and bench.source.popen.poll() is None:
                daemon.check()
                status = daemon.status()
                if not armed and status and status["data_ok"]:
                    daemon.arm()
                    armed = True
                time.sleep(0.1)
            last = daemon.status() or {}
        except demo.DemoError as error:
            raise DeviceNotFoundError(str(error)) from None
        finally:
            daemon.end()
            bench.close()
        log = [json.loads(line) for line in (work / "stimulator.jsonl").read_text().splitlines()]
    facts = {
        "file": str(path),
        "armed": armed,
        "session": last.get("session"),
        "trains": last.get("trains"),
        "stimulator": {key: log[-1]["summary"][key] for key in ("pulses", "max_current_ma", "outside_limits", "frames_refused")},
    }
    return 0, facts, [f"{key}: {value}" for key, value in facts.items()]
