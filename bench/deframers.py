"""`python -m bench.deframers`: garbage into every deframer we have: drivers', virtual stimulators', and the wire checks' decoders.

An input is garbage in random chunks: random bytes; good frames with bits turned, cut, doubled, spliced, wrongly stuffed, with heads that
lie, or with spoilt content under a right checksum; often after a lawful beginning. Each goes into a fresh deframer. Then good frames
follow: what the driver's encoder and the twin gave in a session over a pty. Four promises, for each input:

- nothing is raised (a wire check: nothing but `WireError`; and it lets nothing out but a `Pulse` or None);
- it ends: a watchdog of `HANG_S`; the slowest input is reported;
- good frames come out again: all that begin `lie_bytes` or more after the garbage. A protocol whose length field cannot be believed before
  its checksum has come may swallow as much as that field can say, and not one byte more; most have 0, see `PROTOCOLS`;
- what it keeps is bounded, whatever it was fed: `held_bytes`, and tracemalloc over a long run of one and the same object.

Drivers come from the registries; one whose modules are not there is named, and an error under --gate. Planted faults must be found.
Where atheris is installed (`python -m bench.peers install atheris`), it steers inputs of its own by coverage; the promises are the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import tracemalloc
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import boxes, peers
from controller.wire import DECODERS, Pulse
from drivers import stimulators
from drivers.base import DriverError, WireError
from drivers.simulated.twin import TWINS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench.boxes import Session

BUDGET = Path(__file__).with_name("budget.toml")
ROOT = Path(__file__).resolve().parents[1]
INPUTS, QUICK_INPUTS = 1_000_000, 20_000
ATHERIS_RUNS, QUICK_ATHERIS_RUNS = 20_000, 500  # for each deframer
HANG_S = 20.0  # far more than any load of the machine takes from a few kB
GROWTH_BYTES = 65_536  # of one object over a long run, as tracemalloc counts
WAITS_NS = (0, 100_000, 100_000, 20_000_000, 700_000_000)  # before a chunk: what a twin times, it must time here too
SETTLE_NS = 1_000_000_000  # until what a long input brought has been played
KINDS = ("driver", "twin", "wire")
_LEAVES = frozenset((int, float, str, bool, type(None), FunctionType, MethodType, BuiltinFunctionType))


class Promise(NamedTuple):
    """What a deframer of a protocol may do at worst.

    Attributes
    ----------
    lie_bytes : int
        Good frames that begin this many bytes after garbage, or more, all come out.
    held_bytes : int
        What it keeps between calls at most, bytes and list items alike: a frame, and small change.
    """

    lie_bytes: int = 0
    held_bytes: int = 2048


#: Those that promise less than `Promise()`; in all others a frame's begin or end is marked, so that a length that lies shows at once.
PROTOCOLS: dict[tuple[str, str], Promise] = {
    ("pulsepal", "driver"): Promise(4),  # "K" is followed by four bytes of any value
    # operations 75 and 76 say how many pulses follow, 5000 at most, six bytes each; two such trains are kept
    ("pulsepal", "twin"): Promise(6 + 6 * 5000, 6 + 6 * 5000 + 2 * 5000 + 2048),
    ("ttl-cedrus", "twin"): Promise(4),  # "mp" is followed by four bytes of any value
}

#: Answers that say nothing of what they answer are heard where one is due alone: how the driver says that it has asked for this one.
ASKS: dict[str, Callable[[Any, bytes], None]] = {
    "pulsepal": lambda answers, frame: setattr(
        answers, it := "n_hellos_due" if frame[:1] == b"K" else "n_acks_due", getattr(answers, it) + 1
    ),
    "ttl-cedrus": lambda answers, frame: answers.expect(len(frame)),
    "motimove": lambda answers, _: answers.restart(),
}


class BrokenError(Exception):
    """A promise was broken."""


class HangError(BaseException):
    """The watchdog; nothing that catches `Exception` swallows it."""


# --- what is fed ------------------------------------------------------------------------------------------------------------------
class DriverEar:
    """A driver's deframer, and what the driver makes of its frames."""

    def __init__(self, name: str) -> None:
        self.device: Any = stimulators.load(name, "/nowhere", options=boxes.options(name))
        self.name = name

    def ask(self, frame: bytes) -> None:
        """Say that this answer is due."""
        if self.name in ASKS:
            ASKS[self.name](self.device._answers, frame)

    def feed(self, data: bytes, wait_ns: int = 0) -> list[Any]:
        """Frames; each is also taken as guard takes it."""
        frames: list[Any] = self.device._deframer.feed(data)
        self.device._take(frames)
        self.device.read_events()
        return frames

    def keeps(self) -> int:
        """Bytes and items."""
        return held(self.device)


class TwinEar:
    """A virtual stimulator; a 1 for each frame that it accepts, or refuses for a reason of its own though it has read it right."""

    def __init__(self, name: str, known: frozenset[bytes] = frozenset()) -> None:
        self.known = known
        self.n_read = 0
        self.now_ns = 10**12
        self.twin = boxes.box(name, lambda _: None, self._log)
        self.twin.start(self.now_ns)

    def _log(self, line: dict[str, object]) -> None:
        self.n_read += "refused" in line and bytes.fromhex(str(line["bytes"])) in self.known

    def ask(self, frame: bytes) -> None:
        """Nothing: whoever has a box asks."""

    def feed(self, data: bytes, wait_ns: int = 0) -> list[Any]:
        """Let time pass, then take the bytes."""
        self.n_read = -self.twin._judge.frames_accepted
        self.now_ns += wait_ns
        self.twin.run_due(self.now_ns)
        self.twin.receive(data, self.now_ns)
        return [1] * (self.n_read + self.twin._judge.frames_accepted)

    def keeps(self) -> int:
        """Bytes and items, without the calendar: what arrives at once is played one after the other."""
        return held(self.twin) - len(self.twin._due)


class WireEar:
    """A wire check's decoder: one call, one frame."""

    def __init__(self, name: str) -> None:
        self.decode: Callable[[bytes], Pulse | None] = import_module(DECODERS[name]).decoder(name, **boxes.options(name))

    def ask(self, frame: bytes) -> None:
        """Nothing: it hears the driver."""

    def feed(self, data: bytes, wait_ns: int = 0) -> list[Any]:
        """What may leave as what; nothing where it may not."""
        try:
            pulse = self.decode(data)
        except WireError:
            return []
        if pulse is not None and type(pulse) is not Pulse:
            raise BrokenError(f"decoded as {pulse!r}, which is neither a Pulse nor None")
        return [pulse]

    def keeps(self) -> int:
        """Bytes and items of whatever remembers."""
        return held(getattr(self.decode, "__self__", None))


EARS = {"driver": DriverEar, "twin": TwinEar, "wire": WireEar}


@dataclass(frozen=True)
class Target:
    """One deframer: how to make a fresh one, what is good for it, what it promises."""

    name: str
    kind: str
    new: Callable[[], Any]
    good: dict[bytes, list[Any]]  # frames and what comes out: of a wire check a whole session, else what is heard in any state
    seeds: tuple[bytes, ...]  # what is spoilt: all good frames and those that need a state
    promise: Promise
    rewrap: Callable[[bytes, random.Random], bytes] | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.kind}"


def target(session: Session, kind: str) -> Target:
    """The deframer of one kind, with the frames of a session."""
    name = session.name
    promise = PROTOCOLS.get((name, kind), Promise())
    seeds = tuple(session.heard) if kind == "driver" else tuple(dict.fromkeys((*session.said, *session.prepared)))
    new = partial(EARS[kind], name, frozenset(seeds)) if kind == "twin" else partial(EARS[kind], name)
    good = in_order(new(), session.said) if kind == "wire" else heard_anyway(new, seeds)
    return Target(name, kind, new, good, seeds, promise, rewrapper(name))


def modules(name: str) -> tuple[str, str, str]:
    """Driver, twin and wire check."""
    return stimulators.STIMULATORS[name][0], TWINS[name][0], DECODERS[name]


def in_order(ear: Any, frames: Sequence[bytes]) -> dict[bytes, list[Any]]:
    """What comes out of each frame of a session."""
    out = {}
    for frame in frames:
        ear.ask(frame)
        out[frame] = ear.feed(frame, WAITS_NS[-1])
    return out


def heard_anyway(new: Callable[[], Any], frames: Sequence[bytes]) -> dict[bytes, list[Any]]:
    """The frames that come out the same way of a fresh deframer and of one that has heard all of them."""
    used = new()
    in_order(used, frames)
    again = in_order(used, frames)
    return {frame: out for frame in frames if (out := in_order(new(), (frame,))[frame]) and again[frame] == out}


def rewrapper(name: str) -> Callable[[bytes, random.Random], bytes] | None:
    """Spoil a frame's content under a right length and checksum, where the driver's module has a general `encode_frame`."""
    module: Any = import_module(stimulators.STIMULATORS[name][0])
    if name == "motimove":
        return lambda frame, dice: summed(spoilt(frame, dice, b"\xff\x22\x08\x00"))
    if not hasattr(module, "encode_frame"):
        return None

    def rewrap(frame: bytes, dice: random.Random) -> bytes:
        frames = module.Deframer().feed(frame)
        if len(frames) != 1:
            return frame
        number, command, data = frames[0]
        match dice.randrange(4):
            case 0:
                command = dice.choice((command + 1, command ^ 1, dice.randrange(128)))
            case 1:
                data = data[: dice.randint(0, len(data))]
            case 2:
                data += dice.randbytes(dice.choice((1, 2, 4, 40)))
            case _:
                data = spoilt(data, dice, b"\xf0\x0f\x81\xff\x00") if data else dice.randbytes(1)
        return bytes(module.encode_frame(number, command, data))

    return rewrap


def summed(frame: bytes) -> bytes:
    """MotiMove's checksum put right."""
    return frame[:-1] + bytes((sum(frame[1:-1]) & 0x7F,))


# --- garbage ----------------------------------------------------------------------------------------------------------------------
def spoilt(frame: bytes, dice: random.Random, special: bytes) -> bytes:
    """Bits turned, bytes replaced, lost, put in between, a piece doubled, an end cut off, a head that lies."""
    data = bytearray(frame)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        at, byte = dice.randrange(len(data)), dice.choice((dice.choice(special), dice.randrange(256)))
        match dice.randrange(8):
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                data[at] = byte
            case 2:
                del data[at : at + dice.choice((1, 1, 3))]
            case 3:
                data.insert(at, byte)
            case 4:
                data[at:at] = data[at : at + dice.randint(1, 12)]
            case 5:
                del data[at:]
            case 6:
                del data[:at]
            case _:
                data[dice.randrange(min(10, len(data)))] = byte
    return bytes(data)


def garbage(one: Target, dice: random.Random) -> bytes:
    """Something that nobody should send; sometimes after what they should."""
    seeds = one.seeds
    special = bytes({byte for seed in seeds[:8] for byte in seed[:4]}) or b"\x00\xff"
    pieces: list[bytes] = list(seeds[: dice.randint(0, min(12, len(seeds)))]) if seeds and not dice.randrange(3) else []
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        kind = dice.randrange(12)
        if kind == 0 or not seeds:
            pieces.append(dice.randbytes(dice.choice((1, 3, 12, 40, dice.randrange(200), dice.randrange(2000) if not kind else 5))))
        elif kind == 1:
            pieces.append(bytes(dice.choices(special, k=dice.choice((1, 2, 5, 20, 200)))))
        elif kind == 2:
            first, second = dice.choice(seeds), dice.choice(seeds)
            pieces.append(first[: dice.randint(0, len(first))] + second[dice.randint(0, len(second)) :])
        elif kind == 3:
            pieces.append(dice.choice(seeds))
        elif kind < 7 and one.rewrap:
            pieces.append(one.rewrap(dice.choice(seeds), dice))
        else:
            pieces.append(spoilt(dice.choice(seeds), dice, special))
    return b"".join(pieces)


def chunks(data: bytes, dice: random.Random) -> Iterator[bytes]:
    """Cut as reads may cut it: whole, byte by byte, anyhow."""
    most = dice.choice((len(data) or 1, 1, 3, 16, 64))
    at = 0
    while at < len(data):
        n_bytes = most if most in (1, len(data)) else dice.randint(1, most)
        yield data[at : at + n_bytes]
        at += n_bytes


# --- the promises -----------------------------------------------------------------------------------------------------------------
def held(root: object, depth: int = 4) -> int:
    """Bytes and items that an object of ours keeps, and what it is made of."""
    kind = type(root)
    if kind in _LEAVES:
        return 0
    if isinstance(root, (bytes, bytearray)):
        return len(root)
    if isinstance(root, (list, deque, set, dict, tuple)):
        inside: Iterable[object] = root.values() if isinstance(root, dict) else root
        return (0 if isinstance(root, tuple) else len(root)) + (sum(held(item, depth - 1) for item in inside) if depth else 0)
    if not depth or not kind.__module__.startswith(("drivers.", "controller.", "bench.", "tests.", "__main__")):
        return 0
    values = [getattr(root, slot) for base in kind.__mro__ for slot in base.__dict__.get("__slots__", ()) if hasattr(root, slot)]
    return sum(held(value, depth - 1) for value in (*values, *getattr(root, "__dict__", {}).values()))


def check(one: Target, data: bytes, seed: int, ear: Any = None) -> int:
    """One input, cut and followed as `seed` says; bytes within which a good frame was lost. Raises `BrokenError`."""
    dice = random.Random(seed)
    ear = ear or one.new()

    def weigh() -> None:
        if (kept := ear.keeps()) > one.promise.held_bytes:
            raise BrokenError(f"keeps {kept}, more than {one.promise.held_bytes}")

    def feed(piece: bytes, wait_ns: int) -> list[Any]:
        out: list[Any] = ear.feed(piece, wait_ns)
        if not dice.randrange(16):
            weigh()
        return out

    try:
        for piece in (data,) if one.kind == "wire" else chunks(data, dice):
            if one.good and not dice.randrange(4):
                ear.ask(dice.choice(tuple(one.good)))
            feed(piece, dice.choice(WAITS_NS))
        weigh()
        swallowed = back_in_step(one, ear.ask, feed, dice)
        weigh()
        return swallowed
    except BrokenError:
        raise
    except Exception as error:
        raise BrokenError(f"{type(error).__name__}: {error}") from error


def back_in_step(one: Target, ask: Callable[[bytes], None], feed: Callable[[bytes, int], list[Any]], dice: random.Random) -> int:
    """Good frames, some at a time (a wire check: a session), until all come out; no long wait within one.

    Returns
    -------
    int
        Bytes after the garbage within which a good frame began that was lost.
    """
    fed = swallowed = 0
    while one.good:
        frames = tuple(one.good) if one.kind == "wire" else dice.choices(tuple(one.good), k=3)
        out = feed(b"", dice.choice(WAITS_NS)) if one.kind == "twin" else []
        if one.kind == "driver" and one.name in ASKS:  # one answer after the other, each asked for
            for frame in frames:
                ask(frame)
                out += [item for piece in chunks(frame, dice) for item in feed(piece, 0)]
        else:
            for piece in frames if one.kind == "wire" else chunks(b"".join(frames), dice):
                out += feed(piece, 0)
        lost = 0
        while out[len(out) - len(due := [item for frame in frames[lost:] for item in one.good[frame]]) :] != due:
            lost += 1
        if not lost:
            break
        begins = fed + sum(map(len, frames[: lost - 1]))  # where the last one begins that did not come out
        if begins >= one.promise.lie_bytes:
            hexes = " | ".join(frame.hex(" ") for frame in frames)
            raise BrokenError(f"of good frames that follow, number {lost} is lost, {begins} bytes after the garbage: {hexes}")
        swallowed = begins + 1
        fed += sum(map(len, frames))
    return swallowed


@contextmanager
def watchdog(limit_s: float) -> Iterator[None]:
    """`HangError` in whatever takes longer."""

    def bark(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def verdict(one: Target, data: bytes, seed: int, limit_s: float = HANG_S) -> str:
    """What is broken, "" = nothing."""
    try:
        with watchdog(limit_s):
            check(one, data, seed)
    except BrokenError as broken:
        return str(broken)
    except HangError:
        return f"did not end within {limit_s:g} s"
    return ""


def reduced(one: Target, data: bytes, seed: int, limit_s: float = HANG_S, n_tries: int = 400) -> bytes:
    """A shorter input that still breaks a promise: pieces are left out as long as it does."""
    size = len(data) // 2
    while size and n_tries > 0:
        at = 0
        while at < len(data) and n_tries > 0:
            shorter = data[:at] + data[at + size :]
            n_tries -= 1
            if verdict(one, shorter, seed, min(limit_s, 1.0)):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def growth(one: Target, seed: int, n_inputs: int) -> int:
    """What one object that hears them all has more at the end than when it was warm, as tracemalloc counts."""
    ear, dice = one.new(), random.Random(seed)
    inputs = [garbage(one, dice) for _ in range(n_inputs)]
    tracemalloc.start()

    def in_use() -> int:
        ear.feed(b"", SETTLE_NS)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    try:
        for index, data in enumerate(inputs):
            check(one, data, index, ear)
            if index == n_inputs // 4:
                warm = in_use()
        return in_use() - warm
    finally:
        tracemalloc.stop()


@dataclass
class Result:
    """What became of one deframer."""

    target: str
    n_inputs: int = 0
    n_bytes: int = 0
    slowest_ms: float = 0.0
    slowest_bytes: int = 0
    swallowed_bytes: int = 0
    lie_bytes: int = 0
    grown_bytes: int = 0
    atheris_runs: int = 0
    broken: list[dict[str, Any]] = field(default_factory=list)


def fuzz(one: Target, n_inputs: int, seed: int, limit_s: float = HANG_S, most_broken: int = 3) -> Result:
    """Input after input, each in a fresh deframer; the last of it in one that has heard them all."""
    result, dice = Result(str(one), lie_bytes=one.promise.lie_bytes), random.Random(f"{seed} {one}")
    if one.seeds and not one.good:
        result.broken.append({"what": "not one frame that is heard in any state: nothing to come back to", "seed": seed})
    for index in range(n_inputs):
        data = garbage(one, dice)
        began_ns = time.process_time_ns()
        what = ""
        try:
            with watchdog(limit_s):
                result.swallowed_bytes = max(result.swallowed_bytes, check(one, data, seed + index))
        except BrokenError as broken:
            what = str(broken)
        except HangError:
            what = f"did not end within {limit_s:g} s"
        took_ms = (time.process_time_ns() - began_ns) / 1e6
        result.n_inputs += 1
        result.n_bytes += len(data)
        if took_ms > result.slowest_ms:
            result.slowest_ms, result.slowest_bytes = round(took_ms, 3), len(data)
        if what:
            short = reduced(one, data, seed + index, limit_s)
            result.broken.append(
                {"what": verdict(one, short, seed + index, limit_s) or what, "input": short.hex(" "), "seed": seed + index}
            )
            if len(result.broken) >= most_broken:
                return result
    try:
        with watchdog(10 * limit_s):
            result.grown_bytes = growth(one, seed, max(40, min(2000, n_inputs // 10)))
        if result.grown_bytes > GROWTH_BYTES:
            result.broken.append({"what": f"has grown by {result.grown_bytes} bytes", "seed": seed})
    except (BrokenError, HangError) as broken:
        result.broken.append({"what": f"in a long run: {broken or 'did not end'}", "seed": seed})
    return result


# --- planted faults ---------------------------------------------------------------------------------------------------------------
class _Planted(DriverEar):
    """A RehaMove3's driver whose deframer has one fault more."""

    def __init__(self) -> None:
        super().__init__("rehamove3")

    def feed(self, data: bytes, wait_ns: int = 0) -> list[Any]:
        """What the fault leaves."""
        return self._faulty(data)

    def _sound(self, data: bytes) -> list[Any]:
        return super().feed(data)

    def _faulty(self, data: bytes) -> list[Any]:
        raise NotImplementedError


class Keeps(_Planted):
    """Keeps all that it ever heard."""

    def __init__(self) -> None:
        super().__init__()
        self.device.all_of_it = bytearray()

    def _faulty(self, data: bytes) -> list[Any]:
        self.device.all_of_it += data
        return self._sound(data)


class Hides(_Planted):
    """Keeps all that it ever heard, where no attribute shows it."""

    def __init__(self) -> None:
        super().__init__()
        heard: dict[int, bytes] = {}
        self.keep = lambda data: heard.setdefault(len(heard), data + b"\0" * 256)

    def _faulty(self, data: bytes) -> list[Any]:
        self.keep(data)
        return self._sound(data)


class Raises(_Planted):
    """Trusts a length field as an index."""

    def _faulty(self, data: bytes) -> list[Any]:
        kept = self.device._deframer._buffer + data
        if len(kept) > 4 and kept[0] == 0xF0 and kept[1] == kept[3] == 0x81:
            bytes(1200)[(kept[2] ^ 0x55) << 8 | kept[4] ^ 0x55]
        return self._sound(data)


class LosesNext(_Planted):
    """Loses the frame that follows a bad one."""

    def _faulty(self, data: bytes) -> list[Any]:
        bad_before = self.device._deframer.n_bad_frames
        frames = self._sound(data)
        return frames[1:] if self.device._deframer.n_bad_frames > bad_before else frames


class Believes(_Planted):
    """Waits for as many bytes as a length field says."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = b""

    def _faulty(self, data: bytes) -> list[Any]:
        self.buffer += data
        frames: list[Any] = []
        while (start := self.buffer.find(0xF0)) >= 0 and len(self.buffer) > start + 5:
            n_bytes = min(1200, max(12, (self.buffer[start + 2] ^ 0x55) << 8 | self.buffer[start + 4] ^ 0x55))
            if len(self.buffer) < start + n_bytes:
                break
            frames += self._sound(self.buffer[start : start + n_bytes])
            self.buffer = self.buffer[start + n_bytes :]
        return frames


class Hangs(_Planted):
    """Never comes back from a broken frame."""

    def _faulty(self, data: bytes) -> list[Any]:
        frames = self._sound(data)
        while self.device._deframer.fault == "checksum":
            pass
        return frames


PLANTED: dict[str, type[_Planted]] = {
    "keeps its buffer": Keeps,
    "keeps it out of sight": Hides,
    "raises": Raises,
    "loses the frame after garbage": LosesNext,
    "believes a length that lies": Believes,
    "hangs": Hangs,
}


def planted_target(name: str, session: Session) -> Target:
    """A RehaMove3's driver with a fault."""
    sound = target(session, "driver")
    return replace(sound, name="rehamove3", kind=name, new=PLANTED[name])


def planted(name: str, session: Session, n_inputs: int, seed: int) -> Result:
    """Fuzz a RehaMove3's driver with a fault; `broken` must not be empty."""
    return fuzz(planted_target(name, session), n_inputs, seed, limit_s=0.5, most_broken=1)


# --- atheris ----------------------------------------------------------------------------------------------------------------------
def steered(one: Target, session: Session, runs: int, seed: int, result: Result) -> None:
    """Let atheris choose inputs in a process and environment of its own; raises nothing, notes what was found."""
    python = peers.interpreter("atheris")
    if python is None:
        return
    with tempfile.TemporaryDirectory(prefix="calmloop-atheris-") as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for index, frame in enumerate(one.seeds):
            (corpus / str(index)).write_bytes(frame)
        path = Path(folder) / "session.json"
        path.write_text(json.dumps({key: [frame.hex() for frame in getattr(session, key)] for key in ("said", "heard", "prepared")}))
        command = [str(python), str(peers.script("atheris")), str(path), session.name, one.kind]
        flags = [f"-runs={runs}", f"-seed={seed % 2**31 or 1}", f"-timeout={HANG_S:g}", "-max_len=2048", f"-artifact_prefix={folder}/"]
        done = subprocess.run([*command, str(corpus), *flags], cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
        words = [line for line in (done.stdout + done.stderr).splitlines() if "BrokenError" in line or "ERROR" in line]
        if done.returncode:
            crashed = [path.read_bytes().hex(" ") for path in Path(folder).glob("*-*") if path.is_file()]
            what = f"atheris: exit {done.returncode}: {words[0] if words else done.stderr[-300:]}"
            result.broken.append({"what": what, "input": (crashed or ["?"])[0], "seed": seed})
        else:
            result.atheris_runs = runs


# --- the command ------------------------------------------------------------------------------------------------------------------
def judged(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal of `budget.toml` and what became of it."""
    goals = []
    for row in tomllib.loads(BUDGET.read_text())["deframers"]:
        if row.get("full") and result["quick"]:
            continue
        value, least = result[row["metric"]], row.get("least")
        met = value <= row["most"] if least is None else value >= least
        goals.append({"goal": row["metric"], "value": value, "limit": row["most"] if least is None else least, "met": met})
    return goals


def in_words(result: dict[str, Any]) -> Iterator[str]:
    """A table, what is broken, what is missing."""
    yield f"{'deframer':<22}{'inputs':>9}{'MB':>7}{'slowest ms':>12}{'(bytes)':>9}{'swallowed':>11}{'may':>7}{'grown':>8}{'atheris':>9}"
    for row in result["results"]:
        yield (
            f"{row['target']:<22}{row['n_inputs']:>9,}{row['n_bytes'] / 1e6:>7.1f}{row['slowest_ms']:>12.1f}{row['slowest_bytes']:>9}"
            f"{row['swallowed_bytes']:>11}{row['lie_bytes']:>7}{row['grown_bytes']:>8}{row['atheris_runs']:>9,}"
        )
        yield from (f"  BROKEN {it['what']}; seed {it['seed']}; input {it.get('input', '-')}" for it in row["broken"])
    for name, found in result["planted"].items():
        yield f"planted: {name:<32}" + (f"found after {found['n_inputs'] or 'some'} inputs: {found['what']}" if found["what"] else "MISSED")
    for name, why in result["skipped"].items():
        yield f"skipped: {name}: {why}"
    for goal in result["goals"]:
        yield f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']} = {goal['value']:,} (limit {goal['limit']:,})"


def run(n_inputs: int, seed: int, quick: bool, only: str = "", atheris_runs: int = 0) -> dict[str, Any]:
    """All of it."""
    skipped = {name: f"not there: {', '.join(gone)}" for name in boxes.names() if (gone := boxes.missing(name))}
    sessions: dict[str, Session] = {}
    for name in (name for name in boxes.all_there() if only in ("", name)):
        try:
            sessions[name] = boxes.record(name)
        except DriverError as error:
            skipped[name] = f"no session with its twin: {type(error).__name__}: {error}"
    targets = [(session, target(session, kind)) for session in sessions.values() for kind in KINDS]
    not_covered = len(skipped)
    if atheris_runs and peers.interpreter("atheris") is None:
        skipped["atheris"] = "not installed as its pinned file says: python -m bench.peers install atheris"
    results = []
    for session, one in targets:
        results.append(fuzz(one, -(-n_inputs // len(targets)), seed))
        if atheris_runs:
            steered(one, session, atheris_runs, seed, results[-1])
        print(f"{one}: {results[-1].n_inputs:,} inputs, {len(results[-1].broken)} broken", file=sys.stderr, flush=True)
    plain = sessions.get("rehamove3") or boxes.record("rehamove3")
    faults = {name: planted(name, plain, 2000, seed) for name in PLANTED}
    if atheris_runs and "atheris" not in skipped:
        faults["raises, atheris"] = Result("planted")
        steered(planted_target("raises", plain), plain, atheris_runs, seed, faults["raises, atheris"])
    found = {name: {"n_inputs": it.n_inputs, "what": it.broken[0]["what"] if it.broken else ""} for name, it in faults.items()}
    return {
        "bench": "deframers",
        "seed": seed,
        "quick": quick,
        "results": [asdict(result) for result in results],
        "planted": found,
        "skipped": skipped,
        "inputs": sum(result.n_inputs for result in results),
        "broken": sum(len(result.broken) for result in results),
        "planted_missed": sum(not it["what"] for it in found.values()),
        "not_covered": not_covered,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0 = done, 1 = a promise is broken, or a goal was missed and --gate given."""
    parser = argparse.ArgumentParser(prog="bench.deframers", description="garbage into every deframer")
    parser.add_argument("--inputs", type=int, metavar="N", help=f"in all (default {INPUTS:,})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_INPUTS:,} inputs")
    parser.add_argument("--only", default="", metavar="NAME", help="one driver")
    parser.add_argument("--no-atheris", action="store_true", help="our own inputs alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures and environment")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a goal of budget.toml is missed")
    args = parser.parse_args(argv)
    if args.only and args.only not in tuple(boxes.all_there()):
        parser.error(f"there is no {args.only!r}; there are: {', '.join(boxes.all_there())}")
    n_inputs = args.inputs or (QUICK_INPUTS if args.quick else INPUTS)
    runs = 0 if args.no_atheris else QUICK_ATHERIS_RUNS if args.quick else ATHERIS_RUNS
    quick = args.quick or bool(args.inputs) or bool(args.only)
    result = run(n_inputs, args.seed, quick, args.only, runs)
    result["goals"] = judged(result)
    print("\n".join(in_words(result)))
    if args.json:
        from bench.environment import environment

        args.json.write_text(json.dumps(result | {"environment": environment()}, indent=1))
    missed = [goal["goal"] for goal in result["goals"] if not goal["met"]]
    for name in missed if args.gate else ():
        print(f"missed: {name}", file=sys.stderr)
    return 1 if result["broken"] or (args.gate and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
