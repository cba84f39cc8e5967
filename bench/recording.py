"""`python -m bench.recording`: what a recording keeps when its process, its disk or the power goes.

`bench.recording_writer` records with the shipped recorder and acknowledges each thing that it is sure of; it is killed at random times, the
disk is full or fails (a shim before libc), the power is cut, the file is cut at random bytes. Judged from outside: by byte counts, by
pyxdf, and by the value that each sample must have by its number. "Lost" is what was acknowledged and is not there.

A power cut: the writer's folder is an ext4 in an image file; the image is copied while it writes, and the copy mounted, which replays its
journal. A copy counts where a second one is the same to the byte: then it is how the disk stood at one instant. It shows what the file
system had sent to the disk, not what a real disk still holds in a cache that it lies about.

Needs root for the mounts, in a mount namespace of its own, and a C compiler for the shim; what cannot be done here is named, and its
promises are not measured. Promises live in `budget.toml` under [[recording]].
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyxdf

from bench import recording_writer
from bench.environment import clean, environment
from bench.job import ROOT
from bench.recording_writer import ACK, FORCE_DIVIDER, PERIOD, START_S
from controller import keeping, recording
from controller.xdf import whole_chunks
from drivers.base import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUDGET = Path(__file__).with_name("budget.toml")
RATE_HZ, BIG_RATE_HZ, BIG_CHANNELS = 2000.0, 4000.0, 64
IMAGE_BYTES = 24 << 20
CUTS_AN_IMAGE = 10
TRIES = 200  # of two copies of an image that are the same
PROMISED_S = 0.25  # F6: what is older outlasts a power cut
CLONE_NEWNS = 0x00020000
COUNTS = {"kills": 200, "power_cuts": 50, "truncations": 2000, "full_disks": 20, "failures": 40}
QUICK = {"kills": 12, "power_cuts": 8, "truncations": 150, "full_disks": 3, "failures": 10}


class CannotError(Exception):
    """The machine does not let us; says what."""


class Writer:
    """A writer process, and what it has acknowledged."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.data = folder, b""
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        command = [sys.executable, "-m", "bench.recording_writer", str(folder), *options]
        whole = os.environ | (environment or {})
        self.process = subprocess.Popen(command, cwd=ROOT, env=whole, stdout=subprocess.PIPE, stderr=self.stderr)

    def hear(self, until_s: float, enough: int | None = None) -> None:
        """Take acknowledgements until a time, the end, or until there are enough."""
        assert self.process.stdout
        pipe = self.process.stdout.fileno()
        while (left_s := until_s - time.monotonic()) > 0 and (enough is None or len(self.data) < enough * ACK.size):
            if select.select([pipe], [], [], left_s)[0]:
                more = os.read(pipe, 1 << 16)
                if not more:
                    return
                self.data += more

    def end(self, kill: bool = False) -> tuple[int, str]:
        """Kill it or let it end; returns exit code and what it said. All that it acknowledged is then known."""
        if kill:
            self.process.kill()
        self.hear(time.monotonic() + 60.0)
        self.process.kill()
        assert self.process.stdout
        self.process.stdout.close()
        code = self.process.wait()
        self.stderr.seek(0)
        text = self.stderr.read()
        self.stderr.close()
        return code, text

    @property
    def acks(self) -> list[tuple[float, int, int, int, int]]:
        """Every acknowledgement so far: see `recording_writer.ACK`."""
        return list(ACK.iter_unpack(self.data[: len(self.data) // ACK.size * ACK.size]))


def started(folder: Path, *options: str, **more: Any) -> Writer:
    """A writer that has begun to write. Raises `RuntimeError` where it does not."""
    writer = Writer(folder, *options, **more)
    writer.hear(time.monotonic() + 60.0, 2)
    if len(writer.acks) < 2:
        raise RuntimeError(f"the writer did not begin: {writer.end(kill=True)}")
    return writer


# --- the judge --------------------------------------------------------------------------------------------------------------------
def judged_file(folder: Path, acked_bytes: int, acked_emg: int = 0, acked_force: int = 0) -> dict[str, Any]:
    """What of the acknowledged is in a session's file, before and after `recover`, by pyxdf alone."""
    path = folder / recording.SIGNALS
    before = path.read_bytes()
    row: dict[str, Any] = {"lost_bytes": max(0, acked_bytes - whole_chunks(before)), "torn_bytes": len(before) - whole_chunks(before)}
    try:
        found = keeping.recover(folder)
        aside = folder / keeping.TORN
        kept = path.read_bytes() + (aside.read_bytes() if aside.exists() else b"")
        row["thrown_away"] = int(kept != before)
        row["crc_damaged"] = len(found.facts["crc"]["damaged"]) + len(found.facts["skipped"])
        again = keeping.recover(folder)
        row["not_idempotent"] = int(bool(again.facts["cut_now_bytes"]) or again.facts["bytes"] != found.facts["bytes"])
        streams = {s["info"]["name"][0]: s for s in pyxdf.load_xdf(path, dejitter_timestamps=False, synchronize_clocks=False)[0]}
    except Exception as error:  # pyxdf meets damage with whatever comes up; here all of it is a failure
        return row | {"opens": 0, "why": f"{type(error).__name__}: {error}", "lost_samples": acked_emg + acked_force, "wrong_samples": 0}
    emg, force = streams["EMG"], streams["force"]
    emg_period, force_period = recording_writer.periods(int(emg["info"]["channel_count"][0]))
    rate_hz = float(emg["info"]["nominal_srate"][0])
    lost = max(0, acked_emg - len(emg["time_stamps"])) + max(0, acked_force - len(force["time_stamps"]))
    wrong = wrong_samples(emg["time_series"], emg["time_stamps"], emg_period, rate_hz, 1)
    wrong += wrong_samples(force["time_series"], force["time_stamps"], force_period, rate_hz, FORCE_DIVIDER)
    return row | {"opens": 1, "lost_samples": lost, "wrong_samples": wrong}


def wrong_samples(values: np.ndarray, stamps_s: np.ndarray, period: np.ndarray, rate_hz: float, divider: int) -> int:
    """Samples that are not what the writer's formula gives for their number."""
    wrong = int((stamps_s != START_S + np.arange(len(stamps_s)) * divider / rate_hz).sum())
    for start in range(0, len(values), PERIOD):
        mine = np.asarray(values[start : start + PERIOD])
        wrong += int((mine != period[: len(mine)]).any(axis=1).sum())
    return wrong


def add_up(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over cases."""
    names = ("lost_bytes", "lost_samples", "wrong_samples", "thrown_away", "not_idempotent", "crc_damaged")
    return {
        "n": len(rows),
        **{name: sum(row.get(name, 0) for row in rows) for name in names},
        "not_opened": sum(not r["opens"] for r in rows),
    }


# --- the cases --------------------------------------------------------------------------------------------------------------------
def kills(folder: Path, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """SIGKILL at random times, at full speed."""
    rows = []
    for k in range(n):
        writer = started(folder / f"kill{k}", "--fast", "--seconds", "600")
        writer.hear(time.monotonic() + rng.uniform(0.0, 0.3))
        code, _ = writer.end(kill=True)
        last = writer.acks[-1]
        rows.append({"code": code, "acks": len(writer.acks)} | judged_file(writer.folder, last[1], last[3], last[4]))
        shutil.rmtree(writer.folder)
    return rows


def truncations(folder: Path, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """One recording cut at random bytes; one cut within its headers has nothing to give back, and must be refused and left as it is."""
    writer = Writer(folder / "whole", "--fast", "--seconds", "1.2")
    code, text = writer.end()
    if code:
        raise RuntimeError(text)
    content, crc = ((writer.folder / name).read_bytes() for name in ("signals.xdf", "signals.crc"))
    acks, cut_folder = writer.acks, folder / "cut"
    cut_folder.mkdir()
    shutil.copy(writer.folder / recording.SETTINGS, cut_folder)
    rows = []
    for _ in range(n):
        cut = rng.randrange(len(content))
        (cut_folder / "signals.xdf").write_bytes(content[:cut])
        (cut_folder / "signals.crc").write_bytes(crc[: rng.randrange(len(crc))])  # its end is never an error of the signals
        (cut_folder / keeping.TORN).unlink(missing_ok=True)
        last = max((ack for ack in acks if ack[1] <= cut), default=None)
        if last is None:
            rows.append(judged_headers(cut_folder, content[:cut]))
        else:
            rows.append(judged_file(cut_folder, last[1], last[3], last[4]))
        rows[-1]["cut"] = cut
    return rows


def judged_headers(folder: Path, content: bytes) -> dict[str, Any]:
    """A file that ends within its headers: what is left opens, or it is refused with words and not a byte of it changes."""
    try:
        keeping.recover(folder)
        pyxdf.load_xdf(folder / recording.SIGNALS)
    except FileFormatError:
        return {"opens": int((folder / recording.SIGNALS).read_bytes() == content), "headers": 1}
    except Exception as error:
        return {"opens": 0, "why": f"{type(error).__name__}: {error}", "headers": 1}
    return {"opens": 1, "headers": 1}


def full_disks(folder: Path, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """A tmpfs that fills up."""
    rows = []
    for k in range(n):
        place = folder / f"full{k}"
        place.mkdir()
        with mounted(place, "-t", "tmpfs", "-o", f"size={rng.randrange(300, 3000)}k", "none"):
            writer = Writer(place / "session", "--fast", "--seconds", "600")
            code, text = writer.end()
            last = writer.acks[-1] if writer.acks else (0.0, 0, 0, 0, 0)
            shutil.copytree(place / "session", folder / f"copy{k}")
        row = {"code": code, "untold": int(code != 3 or "No space left" not in text)}
        rows.append(row | judged_file(folder / f"copy{k}", last[1], last[3], last[4]))
    return rows


FAILURES = (  # call, file, errno, times, short
    ("write", "signals.xdf", errno.EIO, 1, 0),
    ("write", "signals.xdf", errno.ENOSPC, 1000000, 1),
    ("write", "signals.xdf", errno.EDQUOT, 1, 1),
    ("write", "signals.xdf", errno.EIO, 1000000, 1),
    ("fdatasync", "signals.xdf", errno.EIO, 1, 0),
    ("fdatasync", "signals.xdf", errno.EIO, 1000000, 0),
    ("fdatasync", "signals.xdf", 0, 3, 0),  # slow
    ("ftruncate", "signals.xdf", errno.EIO, 1, 0),  # and with it a write that fails: see below
    ("write", "signals.crc", errno.EIO, 3, 1),
    ("write", "signals.crc", errno.ENOSPC, 1000000, 1),
)


def failures(folder: Path, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """Calls on the disk that fail or take long, by the shim. Of the signals: must be told; of the side-car: the signals go on."""
    shim = folder / "shim.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise CannotError("no C compiler for the shim before libc")
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(ROOT / "bench" / "recording_shim.c"), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise CannotError(f"the shim cannot be compiled: {made.stderr[-300:]}")
    rows = []
    for k in range(n):
        call, file, number, times, short = FAILURES[k % len(FAILURES)]
        words = {"LD_PRELOAD": str(shim), "SHIM_FILE": file, "SHIM_CALL": call, "SHIM_ERRNO": str(number), "SHIM_SHORT": str(short)}
        words |= {"SHIM_AFTER": str(rng.randrange(5, 200) if call == "write" else rng.randrange(2)), "SHIM_TIMES": str(times)}
        options = ["--seconds", "2.5"]
        limit_bytes = rng.randrange(100_000, 500_000)
        if call == "ftruncate":  # needs a write that is short, which a limit of the file's size gives
            words |= {"SHIM_AFTER": "0"}
            options += ["--limit", str(limit_bytes)]
        writer = started(folder / f"failure{k}", *options, environment=words)
        code, text = writer.end()
        acks = writer.acks
        struck, told = text.count("SHIM "), "recording failed" in text
        must_tell = file == "signals.xdf" and number != 0
        row = {"call": call, "file": file, "errno": number, "struck": struck, "code": code}
        row["untold"] = int(struck > 0 and told != must_tell) + int(code != (3 if struck and must_tell else 0))
        row["not_struck"] = int(struck == 0)
        row["longest_wait_ms"] = 1e3 * float(np.diff([ack[0] for ack in acks]).max(initial=0.0))
        row |= judged_file(writer.folder, acks[-1][1], acks[-1][3], acks[-1][4])
        rows.append(row)
        shutil.rmtree(writer.folder)
    return rows


def power_cuts(folder: Path, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """Images of a disk as it stood at one instant, mounted."""
    if not shutil.which("mkfs.ext4"):
        raise CannotError("mkfs.ext4 is not here")
    rows: list[dict[str, Any]] = []
    while len(rows) < n:
        number = len(rows)
        image, place = folder / f"disk{number}", folder / f"mount{number}"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
        place.mkdir()
        with mounted(place, "-o", "loop", str(image)):
            writer = started(place / "session", "--seconds", "600")
            try:
                for k in range(min(CUTS_AN_IMAGE, n - number)):
                    writer.hear(time.monotonic() + rng.uniform(0.2, 0.7))
                    content, at_s, tries = instant(image, rng)
                    writer.hear(time.monotonic() + 0.01)
                    rows.append({"tries": tries} | after_power_cut(folder / f"cut{number + k}", content, at_s, writer.acks))
            finally:
                writer.end(kill=True)
        image.unlink()
    return rows


def instant(image: Path, rng: random.Random) -> tuple[bytes, float, int]:
    """The image as it stood at one instant, when that was, and how many tries it took."""
    for tries in range(1, TRIES + 1):
        content = image.read_bytes()
        at_s = time.monotonic()
        if image.read_bytes() == content:
            return content, at_s, tries
        time.sleep(rng.uniform(0.0, 0.01))
    raise CannotError(f"the image never stood still for two copies, in {TRIES} tries")


def after_power_cut(folder: Path, content: bytes, at_s: float, acks: list[tuple[float, int, int, int, int]]) -> dict[str, Any]:
    """Mount a copy of the disk and judge: lost is what was promised, by its age or as known to be on the disk."""
    place, image = folder / "mount", folder / "image"
    place.mkdir(parents=True)
    image.write_bytes(content)
    with mounted(place, "-o", "loop", str(image)):
        shutil.copytree(place / "session", folder / "session")
    image.unlink()
    old = max((ack for ack in acks if ack[0] <= at_s - PROMISED_S), key=lambda ack: ack[1], default=(0.0, 0, 0, 0, 0))
    kept_bytes = max((ack[2] for ack in acks if ack[0] <= at_s), default=0)
    there = whole_chunks(folder / "session" / recording.SIGNALS)
    first_lost_s = min((ack[0] for ack in acks if ack[1] > there and ack[0] <= at_s), default=at_s)
    row = judged_file(folder / "session", old[1], old[3], old[4])
    row |= {"lost_though_synced": max(0, kept_bytes - there), "lost_back_to_ms": 1e3 * (at_s - first_lost_s)}
    shutil.rmtree(folder)
    return row


def endurance(folder: Path, seconds: float) -> dict[str, Any]:
    """64 channels at 4 kHz and force, at the rate of the samples; what it costs, and whether all of it is there."""
    options = ["--channels", str(BIG_CHANNELS), "--rate", str(BIG_RATE_HZ), "--seconds", str(seconds)]
    writer = started(folder / "long", *options)
    pid, ticks, page = writer.process.pid, os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    usage: list[tuple[float, float, float]] = []
    while writer.process.poll() is None:
        writer.hear(time.monotonic() + 1.0)
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        except (OSError, IndexError, ValueError):
            break
        if words[0] != "Z":
            usage.append((time.monotonic(), (int(words[11]) + int(words[12])) / ticks, resident / 1e6))
    code, text = writer.end()
    if code:
        raise RuntimeError(text)
    acks, at = writer.acks, np.array(usage)
    given = round(seconds * BIG_RATE_HZ)
    size = (writer.folder / recording.SIGNALS).stat().st_size
    row = judged_file(writer.folder, acks[-1][1], given, given // FORCE_DIVIDER)
    found = keeping.verify(writer.folder)
    later = at[len(at) // 3 :]  # the first third: buffers find their size
    slope = float(np.polyfit(later[:, 0], later[:, 2], 1)[0] * 3600.0) if len(later) > 2 else None
    gaps_ms = 1e3 * np.diff([ack[0] for ack in acks])
    shutil.rmtree(writer.folder)
    return row | {
        "seconds": seconds,
        "samples": given * BIG_CHANNELS + given // FORCE_DIVIDER,
        "bytes": size,
        "cores": float((at[-1, 1] - at[0, 1]) / (at[-1, 0] - at[0, 0])) if len(at) > 1 else None,
        "resident_mb": float(at[-1, 2]) if len(at) else None,
        "slope_mb_per_h": slope,
        "behind_ms_max": 1e3 * (acks[-1][0] - acks[1][0] - seconds),
        "ack_interval_ms": {"p50": float(np.median(gaps_ms)), "p99": float(np.percentile(gaps_ms, 99)), "max": float(gaps_ms.max())},
        "verify": {"ok": found.ok, "problems": found.problems, "unknown": found.unknown},
    }


# --- mounts -----------------------------------------------------------------------------------------------------------------------
def own_mounts() -> None:
    """Mounts from here on are seen by this process and its children alone, and go with them. Raises `CannotError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise CannotError(f"no mount namespace of our own ({os.strerror(ctypes.get_errno())}): needs root")
    _mount("--make-rprivate", "/")


def _mount(*words: str) -> None:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotError(f"mount: {error.strerror}") from None
    if done.returncode:
        raise CannotError(f"mount {' '.join(words[:3])}: {done.stderr.strip()[:200]}")


@contextmanager
def mounted(place: Path, *words: str) -> Iterator[None]:
    """Something mounted at a place."""
    _mount(*words, str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], capture_output=True, check=False)


# --- what it comes to -------------------------------------------------------------------------------------------------------------
def measured(result: dict[str, Any]) -> dict[str, float | None]:
    """The figures that promises are made of; None = this run did not measure it."""
    rows = {name: result["rows"].get(name) for name in COUNTS}
    everything = [row for some in rows.values() for row in some or []]
    long = result.get("endurance")
    judged_all = everything + ([long] if long else [])

    powered = [row for name, some in rows.items() if name != "power_cuts" for row in some or []] + ([long] if long else [])

    def total(name: str, of: Sequence[dict[str, Any]] = judged_all) -> float | None:
        return float(sum(row.get(name, 0) for row in of)) if of else None

    def worst(name: str, key: str) -> float | None:
        return max((row[key] for row in rows[name] or []), default=None)

    slow = [row for row in rows["failures"] or [] if row["call"] == "fdatasync" and row["errno"] == 0]
    values = {
        "acknowledged bytes lost": total("lost_bytes", powered),
        "acknowledged samples lost": total("lost_samples", powered),
        "samples with another value or stamp": total("wrong_samples"),
        "files that pyxdf does not open after recover": float(sum(not row["opens"] for row in judged_all)) if judged_all else None,
        "recoveries that threw bytes away": total("thrown_away"),
        "recoveries that did more the second time": total("not_idempotent"),
        "chunks called damaged that are not": total("crc_damaged"),
        "failures of the disk that nobody was told of, or that struck nothing": (
            float(sum(r["untold"] + r.get("not_struck", 0) for name in ("failures", "full_disks") for r in rows[name] or []))
            if rows["failures"] and rows["full_disks"]
            else None
        ),
        "longest wait of the writer while a sync took 600 ms, ms": max((row["longest_wait_ms"] for row in slow), default=None),
        "power cut: bytes lost that were known to be on the disk": worst("power_cuts", "lost_though_synced"),
        "power cut: how far back anything was lost, ms": worst("power_cuts", "lost_back_to_ms"),
        "endurance: cores": long and long["cores"],
        "endurance: memory, MB/h": long["slope_mb_per_h"] if long and not result["quick"] else None,
        "endurance: sessions that verify does not call whole": float(long["verify"]["ok"] is not True) if long else None,
    }
    counts = {name.replace("_", " "): None if result["quick"] or rows[name] is None else float(len(rows[name] or [])) for name in COUNTS}
    return values | counts | {"endurance: s": long["seconds"] if long and not result["quick"] else None}


def judged(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each promise of `budget.toml` and what became of it; `met` is None where this run did not measure it."""
    values, goals = measured(result), []
    for goal in tomllib.loads(BUDGET.read_text())["recording"]:
        value, least = values[goal["what"]], goal.get("least")
        limit = goal["most"] if least is None else least
        met = None if value is None else value >= limit if least is not None else value <= limit
        goals.append({"goal": goal["what"], "value": value, "limit": limit, "at_least": least is not None, "met": met})
    return goals


def in_words(result: dict[str, Any]) -> str:
    """A table, the endurance, the promises."""
    lines = [f"{'':<14}{'cases':>6}{'bytes lost':>12}{'samples lost':>14}{'wrong':>7}{'torn tails':>12}{'not opened':>12}"]
    for name, rows in result["rows"].items():
        s = add_up(rows)
        torn = sum(row.get("torn_bytes", 0) > 0 for row in rows)
        figures = f"{s['n']:>6}{s['lost_bytes']:>12}{s['lost_samples']:>14}{s['wrong_samples']:>7}{torn:>12}{s['not_opened']:>12}"
        lines.append(f"{name.replace('_', ' '):<14}{figures}")
        lines += [f"  {why}" for why in sorted({row["why"] for row in rows if "why" in row})[:5]]
    if cuts := result["rows"].get("power_cuts"):
        back_ms = [row["lost_back_to_ms"] for row in cuts]
        lines.append(f"a power cut cost what was written in the last {np.median(back_ms):.0f} ms (median), {max(back_ms):.0f} ms (most)")
    lines += [f"not done here: {name.replace('_', ' ')}: {why}" for name, why in result["cannot"].items()]
    if long := result.get("endurance"):
        wait = long["ack_interval_ms"]
        lines += [
            f"endurance: {BIG_CHANNELS} ch x {BIG_RATE_HZ:g} Hz and force, {long['seconds']:g} s: {long['samples']:,} values, "
            f"{long['bytes'] / 1e6:.0f} MB; lost {long['lost_samples']}, wrong {long['wrong_samples']}; "
            f"writer with its source {long['cores'] or 0:.3f} cores, "
            f"{long['resident_mb'] or 0:.0f} MB resident",
            f"  a turn each 10 ms: p99 {wait['p99']:.1f} ms, longest {wait['max']:.1f} ms; "
            f"memory {long['slope_mb_per_h'] or 0:+.2f} MB/h over the last two thirds",
        ]
        lines += [f"  verify: {text}" for text in long["verify"]["problems"] + long["verify"]["unknown"]]
    for goal in result["goals"]:
        verdict = "not measured" if goal["met"] is None else "met" if goal["met"] else "MISSED"
        value = "" if goal["value"] is None else f"{goal['value']:g} "
        lines.append(f"{verdict:<13}{goal['goal']}: {value}({'at least' if goal['at_least'] else 'at most'} {goal['limit']:g})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.recording", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few of each, ten seconds of 64 channels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="of 64 channels (default 600; quick 10)")
    parser.add_argument("--only", choices=(*COUNTS, "endurance"), action="append", help="this alone (may be said again)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder); 600 s need 1.5 GB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every case with its raw figures")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a promise of budget.toml is missed, naming each")
    args = parser.parse_args(argv)
    seconds = args.seconds or (10.0 if args.quick else 600.0)
    if not 1.0 <= seconds <= 86400.0:
        parser.error("--seconds is 1 to 86400")
    wanted = args.only or (*COUNTS, "endurance")
    result: dict[str, Any] = {"bench": "recording", "quick": args.quick, "seed": args.seed, "environment": environment()}
    result |= {"rows": {}, "cannot": {}, "endurance": None}
    began_s = time.monotonic()
    try:
        own_mounts()
        no_mounts = ""
    except CannotError as error:
        no_mounts = str(error)
    with tempfile.TemporaryDirectory(prefix="calmloop-recording-", dir=args.folder) as temporary:
        os.environ["CALMLOOP_STATE_DIR"] = str(Path(temporary) / "state")  # an audit key of its own
        for name, run in (
            ("kills", kills),
            ("power_cuts", power_cuts),
            ("truncations", truncations),
            ("full_disks", full_disks),
            ("failures", failures),
        ):
            if name not in wanted:
                continue
            folder = Path(temporary) / name
            folder.mkdir()
            print(f"{name.replace('_', ' ')} ...", file=sys.stderr, flush=True)
            try:
                if no_mounts and name in ("power_cuts", "full_disks"):
                    raise CannotError(no_mounts)
                n = (QUICK if args.quick else COUNTS)[name]
                result["rows"][name] = run(folder, n, random.Random(f"{args.seed}/{name}"))
            except CannotError as error:
                result["cannot"][name] = str(error)
        if "endurance" in wanted:
            print("endurance ...", file=sys.stderr, flush=True)
            result["endurance"] = endurance(Path(temporary), seconds)
    result["seconds"] = round(time.monotonic() - began_s, 1)
    result["goals"] = judged(result)
    if args.json:
        args.json.write_text(json.dumps(clean(result), indent=1))
    print(in_words(result))
    missed = [goal["goal"] for goal in result["goals"] if goal["met"] is False]
    for name in missed if args.gate else ():
        print(f"missed: {name}", file=sys.stderr)
    return 1 if args.gate and missed else 0


if __name__ == "__main__":
    sys.exit(main())
