"""`python -m bench.faults`: every process killed or stopped in every phase, every fault of the stimulator; what came out afterwards.

Real beds (`bench.ward`) are brought into a phase, then one process gets SIGKILL or SIGSTOP, a person says stop, or the stimulator fails.
While a process stands still, and after whatever died is back, a spasm is played and the button pressed without a new arming, so that an
output that should not be has every reason to come. The judge is the virtual stimulator's own log and `bench.pulses`, nothing that
calmloop says of itself; its recording is only looked at for requests that were granted twice and trains that no row tells of.

Results: a table, and with `--json` every case with its raw figures. Promises live in `budget.toml` under [[faults]].
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import signal
import sys
import tempfile
import threading
import time
import tomllib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from bench import pulses
from bench.environment import environment
from bench.ward import UnusableError, Ward, arm
from controller import demo, messages, recording
from drivers.base import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BUDGET = Path(__file__).with_name("budget.toml")
PROCESSES = ("loop", "guard", "daemon", "source", "stimulator")
PHASES = ("idle", "armed", "mid-train", "look", "arming", "refractory")
STALLS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
FAULTS = ("lost-ack", "late-ack", "duplicate-ack", "electrode-error", "crc-error", "reset", "hang", "hangup")
AFTERWARDS = ("hang", "hangup")  # these strike after so many pulses, the others hit the one that follows
HARMLESS = ("duplicate-ack",)  # the only one after which a train may go on
MS, S = 1_000_000, 1_000_000_000
PERIOD_NS = 20 * MS  # of the bed's train
LEASE_NS = 200 * MS
WATCH_S = 0.45  # longer than the lease and a pulse: what comes later is a resumption
F3_S = 0.25  # a loop that stood still for longer must be armed again: 100 ms beyond its beat, and some
DEVICE_STALL_S = 0.15  # a stimulator that stood still for longer has missed its acknowledgement for certain
HIDDEN_S = 3.0  # before an unclean end: how far back unrecorded trains are looked for
BATCH, QUICK_BATCH = 12, 4  # cases of one bed: fewer events than ten minutes allow
MAX_EVENTS, MAX_FAULTS, MAX_DEATHS = 24, 2, 4  # after these a bed is replaced: dose, latched faults, the daemon's patience


@dataclass(frozen=True)
class Case:
    """One fault."""

    process: str
    kind: str  # kill, stop, stall, STOP of a person, or a fault of the device
    phase: str
    automatic: bool
    seconds: float = 0.0  # it stands still
    after: int = 0  # device: how many pulses are given before it fails

    def __str__(self) -> str:
        words = f"{self.process} {self.kind}" + (f" {self.seconds * 1000:.0f} ms" if self.seconds else "")
        return f"{words}, {self.phase}" + (f" at pulse {self.after}" if self.process == "device" else "")


# --- what is tried ----------------------------------------------------------------------------------------------------------------
def plan(seed: int, repeats: int) -> list[Case]:
    """Every process in every phase killed and stopped so many times; stalls, stops and failures of the stimulator besides."""
    rng = random.Random(seed)

    def bed(process: str, phase: str) -> bool:
        return process in ("loop", "source") or phase == "look" or rng.random() < 0.3

    cases = [
        Case(process, kind, phase, bed(process, phase), round(rng.uniform(1.0, 2.0), 2) if kind == "stop" else 0.0)
        for _ in range(repeats)
        for process in PROCESSES
        for phase in PHASES
        for kind in ("kill", "stop")
    ]
    cases += [Case(p, "stall", phase, bed(p, phase), s) for p in PROCESSES for phase in ("armed", "mid-train") for s in STALLS_S]
    cases += [Case("stimulator", "stall", "last pulse", automatic, 0.08) for automatic in (True, True, False) for _ in range(repeats)]
    cases += [Case("person", "STOP", phase, bed("", phase)) for _ in range(repeats) for phase in PHASES]
    cases += [Case("device", name, "mid-train", False, after=n) for name in FAULTS for n in (int(name in AFTERWARDS), 3, 12, 20)]
    cases += [Case("device", name, "mid-train", True, after=12) for name in FAULTS]
    rng.shuffle(cases)
    return cases


def quick() -> list[Case]:
    """A slice of the same: each process killed and stopped in the middle of a train, each phase, each kind."""
    own = ("loop", "source")  # these need a loop
    cases = [Case(p, "kill", "mid-train", p in own) for p in PROCESSES]
    cases += [Case(p, "stop", "mid-train", p in own, 1.2) for p in PROCESSES]
    cases += [Case("daemon", "kill", "refractory", False), Case("guard", "kill", "arming", False)]
    cases += [Case("guard", "stall", "armed", False, 0.5), Case("loop", "stall", "armed", True, 0.5)]
    cases += [Case("loop", "kill", "look", True), Case("stimulator", "stop", "idle", False, 1.0)]
    cases += [Case("person", "STOP", "mid-train", False), Case("person", "STOP", "look", True)]
    failures = ("lost-ack", "duplicate-ack", "electrode-error", "hangup")
    return cases + [Case("device", name, "mid-train", False, after=5) for name in failures]


def batches(cases: Sequence[Case], size: int) -> list[list[Case]]:
    """Cases that can share a bed; the stimulator's own faults need a bed each. Long ones first."""
    shared = {automatic: [c for c in cases if c.process != "device" and c.automatic is automatic] for automatic in (True, False)}
    parts = [some[i : i + size] for some in shared.values() for i in range(0, len(some), size)]
    return parts + [[case] for case in cases if case.process == "device"]


# --- into a phase -----------------------------------------------------------------------------------------------------------------
def calm(ward: Ward) -> None:
    """Wait until no spasm is on, and the refractory time of the last train is over."""
    ends_ns = [cause.end_ns for cause in ward.asked if not cause.by_person] + [p["pulse_ns"] + 1050 * MS for p in ward.log.read()]
    time.sleep(max(0, max(ends_ns, default=0) - monotonic_ns()) / S)


def begin(ward: Ward, n: int, spasm_s: float, tries: int = 3) -> None:
    """Start a train, as a spasm or by the button, and wait until it has so many pulses. Raises `UnusableError`.

    A machine that stalls can cost a train, or the arming: then a person arms again.
    """
    while True:
        enough = len(ward.log.read()) + n
        tries -= 1
        try:
            if ward.automatic:
                ward.burst(spasm_s)
            else:
                ward.wait_for(lambda: ward.press() or time.sleep(0.1), 2.0, "train by the button")
            ward.wait_for(lambda enough=enough: len(ward.log.read()) >= enough, 1.5, f"{n} pulses")
            return
        except UnusableError:
            if not tries:
                raise
        calm(ward)
        ward.arm()


def into(ward: Ward, phase: str, rng: random.Random) -> threading.Thread | None:
    """Bring a bed into a phase; returns the person who is still arming."""
    calm(ward)
    if phase in ("idle", "arming"):
        if ward.status().get("state") == "FAULT":
            ward.clear()
        ward.wait_until_ready(30.0)
        ward.disarm()
        if phase == "idle":
            return None
        person = threading.Thread(target=arm_once, args=(ward,))
        person.start()
        time.sleep(rng.uniform(0.0, 0.08))
        return person
    ward.arm()
    if phase == "armed":
        time.sleep(rng.uniform(0.0, 0.05))
    elif phase == "mid-train":
        begin(ward, rng.randint(2, 20), 1.2)
    elif phase == "last pulse":  # it waits in a box that stands still, and comes when the train is over for everybody else
        begin(ward, 24, 1.6)
    elif phase == "look":
        begin(ward, 23, 1.6)
        ward.wait_for(lambda: monotonic_ns() - ward.log.read()[-1]["pulse_ns"] > 35 * MS, 2.0, "end of the train")
        time.sleep(rng.uniform(0.0, 0.07))
    else:
        begin(ward, 2, 0.1)
        ward.wait_for(lambda: monotonic_ns() - ward.log.read()[-1]["pulse_ns"] > 250 * MS, 5.0, "end of the event")
        time.sleep(rng.uniform(0.0, 0.6))
    return None


def arm_once(ward: Ward) -> None:
    """A person arms, and leaves it at that."""
    with suppress(messages.NoBedError):
        arm(ward.bed, ward.automatic)


def in_phase(phase: str, struck_ns: int, pulse_ns: Sequence[int]) -> bool:
    """Whether the log bears out that the fault came in its phase; where it says nothing of a phase, it did."""
    ago_ms = (struck_ns - max((at_ns for at_ns in pulse_ns if at_ns <= struck_ns), default=0)) / MS
    least, most = {"mid-train": (0.0, 45.0), "look": (20.0, 150.0), "refractory": (45.0, 1000.0)}.get(phase, (0.0, float("inf")))
    return least <= ago_ms <= most


# --- the faults -------------------------------------------------------------------------------------------------------------------
def provoke(ward: Ward, press: bool) -> None:
    """Give it every reason to stimulate: a spasm and, unless the button is allowed, a press. Nothing may come."""
    if ward.automatic:
        ward.burst(0.3)
    if press:
        ward.press()
    time.sleep(0.6)


def kill(ward: Ward, case: Case, row: dict[str, Any]) -> None:
    """SIGKILL; then whatever the bed or a person does to bring it back, short of arming."""
    children = {name: ward.pid(name) for name in (("guard", "loop") if ward.automatic else ("guard",))}

    def replaced(name: str) -> bool:
        return (ward.report() or {}).get("children", {}).get(name) not in (None, children[name])

    row["struck_ns"] = ward.signal(children.get(case.process) or ward.pid(case.process), signal.SIGKILL)
    time.sleep(WATCH_S)
    row["settled_ns"] = monotonic_ns()
    assert ward.daemon
    if case.process in children:
        ward.deaths_s.append(time.monotonic())
        gone = list(children) if case.process == "guard" else ["loop"]  # a new guard gets a new loop
        ward.wait_for(lambda: all(map(replaced, gone)), 30.0, f"new {' and '.join(gone)}")
    elif case.process == "daemon":
        ward.daemon.popen.wait()
        ward.wait_for(lambda: not any(map(alive, children.values())), 5.0, "end of the children")
        ward.daemon.end()
        ward.start_daemon()
    elif case.process == "source":
        assert ward.source
        ward.source.end()
        ward.start_source()
    else:
        ward.stimulator.end()
        ward.start_stimulator()
        ward.wait_for(lambda: ward.status().get("state") in ("FAULT", "OFF"), 5.0, "fault")
        provoke(ward, press=True)
        ward.clear()
    ward.wait_until_ready(60.0)
    provoke(ward, press=case.process not in ("loop", "source"))  # these two leave the button armed


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stop(ward: Ward, case: Case, row: dict[str, Any]) -> None:
    """SIGSTOP, and SIGCONT after a while, with something to be late for in between."""
    pid = ward.pid(case.process)
    row["struck_ns"] = ward.signal(pid, signal.SIGSTOP)
    until_s = time.monotonic() + case.seconds
    if case.process == "loop":
        ward.burst(min(0.3, case.seconds / 2))  # over when it goes on: then nothing may come of it
    elif case.process == "guard":
        ward.press(timeout_s=0.01, times=2)  # waits at the door, twice, and is too old after 250 ms
    while case.process == "daemon" and time.monotonic() < until_s - 0.4:
        ward.press()
        time.sleep(0.35)
    time.sleep(max(0.0, until_s - time.monotonic()))
    row["settled_ns"] = ward.signal(pid, signal.SIGCONT)
    time.sleep(0.7)
    if case.process == "loop" and case.seconds >= F3_S:
        provoke(ward, press=False)
    elif case.process == "stimulator" and case.seconds >= DEVICE_STALL_S and ward.status().get("state") == "FAULT":
        provoke(ward, press=True)


def person_stops(ward: Ward, case: Case, row: dict[str, Any]) -> None:
    """A person says stop."""
    row["struck_ns"] = monotonic_ns()
    messages.ask(ward.bed, {"do": "stop", "who": "bench"})
    row["settled_ns"] = monotonic_ns()  # answered: from here on there is nothing
    time.sleep(WATCH_S)
    provoke(ward, press=True)


def device(ward: Ward, case: Case, row: dict[str, Any]) -> None:
    """The stimulator fails by itself after so many pulses."""
    with suppress(UnusableError):
        begin(ward, max(case.after, 1), 1.2, tries=1)
    time.sleep(0.7)
    times = [p["pulse_ns"] for p in ward.log.read()]
    row["state"] = ward.status().get("state")
    if len(times) <= case.after and row["state"] not in ("FAULT", "OFF"):
        raise UnusableError(f"only {len(times)} pulses: the fault did not strike")
    # the last pulse that may be there; after a reset the box does not play the one that follows
    struck = min(case.after - (case.kind in (*AFTERWARDS, "reset")), len(times) - 1)
    row["struck_ns"] = times[struck] if struck >= 0 else row["begun_ns"]
    row["settled_ns"] = monotonic_ns()
    row["n_after"] = len(times) - 1 - struck
    provoke(ward, press=case.kind not in HARMLESS)


KINDS: dict[str, Callable[[Ward, Case, dict[str, Any]], None]] = {"kill": kill, "stop": stop, "stall": stop, "STOP": person_stops}


# --- one case ---------------------------------------------------------------------------------------------------------------------
def carry_out(ward: Ward, case: Case, rng: random.Random) -> dict[str, Any]:
    """Bring about, strike, provoke, judge. Raises `UnusableError` where it does not get as far as the fault."""
    row: dict[str, Any] = asdict(case) | {"bed": ward.bed, "begun_ns": monotonic_ns()}
    person = None
    if case.process == "device":
        ward.arm()
    else:
        person = into(ward, case.phase, rng)
    row["arming"] = person is not None and person.is_alive()
    try:
        KINDS.get(case.kind, device)(ward, case, row)
    except (UnusableError, messages.NoBedError, demo.DemoError) as error:
        if "struck_ns" not in row:
            raise UnusableError(str(error)) from None
        # judged all the same; that guard must be started again after three faults is a rule (B6)
        row["latched" if "guard must be started again" in str(error) else "stuck"] = str(error)
        row.setdefault("settled_ns", monotonic_ns())
    if person:
        person.join()
    row["faults"] = ward.faults + (ward.status().get("state") == "FAULT")
    row["end_ns"] = monotonic_ns()
    return row | judged_case(case, row, ward)


def output_limit_ns(case: Case) -> int | None:
    """How long after the fault a pulse may still come; None: as long as the train that is on is prescribed."""
    if case.process in ("loop", "source") or (case.process, case.kind) == ("daemon", "kill"):
        return LEASE_NS + PERIOD_NS
    if case.kind == "STOP":
        return 50 * MS
    if case.process == "device" or (case.process, case.kind) == ("stimulator", "kill"):
        return 0
    return PERIOD_NS if case.process == "guard" else None


def judged_case(case: Case, row: dict[str, Any], ward: Ward) -> dict[str, Any]:
    """What the stimulator's log says of one case."""
    log, limits = ward.log.read(), ward.limits
    struck_ns, settled_ns, end_ns = row["struck_ns"], row["settled_ns"], row["end_ns"]
    times = [p["pulse_ns"] for p in log]
    found = pulses.trains(times, limits)
    wrong = pulses.wrong_pulses(log, limits) + pulses.wrong_trains(found, limits)
    wrong += pulses.wrong_causes(found, ward.asked, limits) + pulses.wrong_dose(found, limits)
    within = [at_ns for at_ns in times if struck_ns < at_ns <= settled_ns]
    later = [at_ns for at_ns in times if settled_ns < at_ns <= end_ns]
    limit_ns = output_limit_ns(case)
    judged_ms = limit_ns is not None and (not case.seconds or case.seconds * S > limit_ns) and case.kind not in HARMLESS
    # what may go on by rule: a train that outlasts a stall, within its own time; of a stimulator that froze, what was on its way
    least_s = {"loop": F3_S, "stimulator": DEVICE_STALL_S}.get(case.process, float("inf"))
    if case.process == "source" or case.kind in HARMLESS or (case.kind in ("stop", "stall") and case.seconds < least_s):
        free = len(later)
    else:
        free = int(case.process == "stimulator" and case.kind != "kill")
    mine = [asdict(one) for one in wrong if row["begun_ns"] <= one.at_ns <= end_ns]
    # a detector that was deaf for a while may still hold what it heard before, and answer that when samples come again
    held = [one for one in mine if case.process == "source" and one["what"] in ("unasked", "too soon") and one["at_ns"] > settled_ns]
    return {
        "in_phase": in_phase(case.phase, struck_ns, times) and (case.phase != "arming" or row["arming"]),
        "after_ms": round((within[-1] - struck_ns) / MS, 2) if within else 0.0,
        "limit_ms": limit_ns / MS if judged_ms and limit_ns is not None else None,
        "pulses_before": sum(row["begun_ns"] <= at_ns <= struck_ns for at_ns in times),
        "pulses_within": len(within),
        "pulses_later": len(later),
        "resumed": max(0, len(later) - free),
        "trains_begun": sum(struck_ns < train.start_ns <= settled_ns for train in found),
        "wrong": [one for one in mine if one not in held],
        "pulse_ns": [at_ns for at_ns in times if row["begun_ns"] <= at_ns <= end_ns],
        "held_over": held,
        "events": pulses.n_events(found, limits, 0),
    }


# --- the campaign -----------------------------------------------------------------------------------------------------------------
def spent(ward: Ward, row: dict[str, Any]) -> bool:
    """Whether the next case needs a fresh bed."""
    recent = sum(time.monotonic() - at_s < 60.0 for at_s in ward.deaths_s)
    return "stuck" in row or "latched" in row or row["events"] >= MAX_EVENTS or row["faults"] >= MAX_FAULTS or recent >= MAX_DEATHS


def granted_twice(rows: Sequence[dict[str, Any]]) -> int:
    """Requests and presses that guard's own rows show as granted more than once."""
    seen: set[tuple[object, ...]] = set()
    loops = twice = 0
    for row in rows:
        event = row.get("event", {})
        loops += event.get("kind") == "loop joined"
        if row.get("written_ns") and event.get("kind") in ("request", "trigger") and event.get("number"):
            key = (row["guard"], loops if event["kind"] == "request" else "person", event["number"])
            twice += key in seen
            seen.add(key)
    return twice


def aftermath(ward: Ward, struck: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the recordings of a bed say, once it is closed: grants, and trains before each death of the daemon that no row tells of."""
    written, twice, torn = [], 0, []
    for folder in ward.sessions:
        try:
            rows = list(recording.load(folder).guard())
        except FileFormatError as error:
            torn.append(str(error))
            continue
        twice += granted_twice(rows)
        written += [row["written_ns"] for row in rows if row.get("written_ns")]
    written.sort()
    hidden = []
    for row in struck:
        if (row["process"], row["kind"]) == ("daemon", "kill"):
            from_ns = row["struck_ns"] - round(HIDDEN_S * S)
            near = [p for p in ward.log.pulses if from_ns <= p["received_ns"] <= row["settled_ns"]]
            unknown = {p["pulse_ns"] for p in near if not any(-5 * MS < p["received_ns"] - at_ns < 30 * MS for at_ns in written)}
            hidden.append(sum(bool(unknown & set(t.pulse_ns)) for t in pulses.trains([p["pulse_ns"] for p in near], ward.limits)))
    refused = [frame for frame in ward.log.refused if not ward_cut(frame)]
    return {"bed": ward.bed, "granted_twice": twice, "hidden_trains": hidden, "torn": torn, "frames_refused": len(refused)}


def ward_cut(frame: dict[str, Any]) -> bool:
    """A frame whose beginning or end was lost with a process is no fault of the encoder."""
    return frame["refused"].startswith(("cut short", "outside a frame", "states"))


class Campaign:
    """Batches of cases on some beds at once."""

    def __init__(self, folder: Path, seed: int, beds: int) -> None:
        self.folder, self.seed, self.beds = folder, seed, beds
        self.waiting: queue.SimpleQueue[list[Case]] = queue.SimpleQueue()
        self.rows: list[dict[str, Any]] = []
        self.closed: list[dict[str, Any]] = []
        self.dropped: list[dict[str, Any]] = []
        self.number = 0
        self.lock = threading.Lock()
        self.over = threading.Event()

    def run(self, cases: Sequence[Case], size: int) -> None:
        """All of it."""
        for batch in batches(cases, size):
            self.waiting.put(batch)
        workers = [threading.Thread(target=self.work, args=(i,)) for i in range(self.beds)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.2)
        finally:
            self.over.set()  # ^C: each ends its bed after the case it is at
            for worker in workers:
                worker.join()

    def work(self, worker: int) -> None:
        """Batch after batch on beds on one processor."""
        while not self.over.is_set():
            try:
                batch = self.waiting.get_nowait()
            except queue.Empty:
                return
            left = [(case, 2) for case in batch]
            while left and not self.over.is_set():
                left = self.on_one_bed(left, worker % (os.cpu_count() or 1))

    def on_one_bed(self, left: list[tuple[Case, int]], cpu: int) -> list[tuple[Case, int]]:
        """As many cases as one bed is good for; returns those that need another. A case that fails before its fault is tried twice."""
        with self.lock:
            self.number += 1
            number = self.number
        first = left[0][0]
        fault = f"{first.kind}@{first.after}" if first.process == "device" else ""
        rng = random.Random(f"{self.seed}/{first}/{number}")
        ward, rows = None, []
        case, tries = left[0]
        try:
            ward = Ward(self.folder / f"bed{number}", first.automatic, cpu, fault)
            ward.wait_until_ready()
            while left and not self.over.is_set():
                case, tries = left[0]
                row = carry_out(ward, case, rng)
                rows.append(row)
                left = left[1:]
                self.tell(case, row)
                if spent(ward, row):
                    break
        except (UnusableError, messages.NoBedError, demo.DemoError) as error:
            left = [(case, tries - 1), *left[1:]] if tries > 1 else left[1:]
            if tries == 1:
                self.dropped.append(asdict(case) | {"why": str(error)})
            say(f"{case}: not carried out: {error}"[:600])
        finally:
            if ward:
                ward.close()
        if ward:
            self.closed.append(aftermath(ward, rows))
        with self.lock:
            self.rows += rows
        return left

    def tell(self, case: Case, row: dict[str, Any]) -> None:
        """One case in words."""
        after = f"last pulse {row['after_ms']:.1f} ms after" if row["pulses_within"] else "no pulse after"
        more = [f"RESUMED {row['resumed']}"] if row["resumed"] else []
        more += [f"WRONG {one['what']}: {one['text']}" for one in row["wrong"]] + ([f"STUCK {row['stuck']}"] if "stuck" in row else [])
        say(f"{row['bed']:>7} {case}: {after}{'' if row['in_phase'] else ' (not in phase)'}{'; ' if more else ''}{'; '.join(more)}"[:700])


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


# --- what it comes to -------------------------------------------------------------------------------------------------------------
OUTSIDE = ("current", "width", "charge", "spacing", "balance", "rms density", "power density", "energy")
DOSE = ("on-time in 60 s", "duty in 5 min", "events in 10 min", "event length")
DOUBLED = ("train length", "made up", "twice", "too soon")


def measured(result: dict[str, Any]) -> dict[str, float | None]:
    """The figures that promises are made of; None = this run did not measure it."""
    rows, beds = result["cases"], result["beds"]

    def worst(chosen: list[dict[str, Any]], key: str) -> float | None:
        return max((row[key] for row in chosen), default=None)

    def after(process: str) -> float | None:
        return worst([r for r in rows if r["process"] == process and r["limit_ms"] is not None], "after_ms")

    def count(*names: str) -> int:
        return sum(one["what"] in names for row in rows for one in row["wrong"])

    signals = [r for r in rows if r["kind"] in ("kill", "stop", "stall")]
    device = [r for r in rows if r["process"] == "device" and r["kind"] not in HARMLESS]
    stalled = [r for r in rows if r["process"] == "stimulator" and r["kind"] != "kill" and r["seconds"] >= DEVICE_STALL_S]
    waited = [r for r in signals if r["process"] == "daemon" and r["seconds"]]
    hidden = [n for bed in beds for n in bed["hidden_trains"]]
    return {
        "kills and SIGSTOPs": float(len(signals)) if not result["quick"] else None,
        "cases that could not be carried out": float(len(result["dropped"])),
        "last pulse after loop kill or stop, ms": after("loop"),
        "last pulse after source kill or stop, ms": after("source"),
        "last pulse after guard kill or stop, ms": after("guard"),
        "last pulse after daemon kill, ms": after("daemon"),
        "last pulse after STOP, ms": after("person"),
        "pulses after STOP was answered": float(sum(r["resumed"] for r in rows if r["kind"] == "STOP")),
        "pulses of a stimulator that goes on": worst(stalled, "pulses_later"),
        "pulses after a failure of the stimulator": worst(device, "n_after"),
        "failures of the stimulator that did not end in FAULT": float(sum(r["state"] not in ("FAULT", "OFF") for r in device)),
        "trains begun while the daemon stood still": worst(waited, "trains_begun"),
        "pulses that came back without a person": float(sum(r["resumed"] for r in rows)),
        "doubled trains": float(count(*DOUBLED) + sum(bed["granted_twice"] for bed in beds)),
        "trains nobody asked for": float(count("unasked")),
        "pulses outside limits": float(count(*OUTSIDE)),
        "dose outside limits": float(count(*DOSE)),
        "trains hidden by the daemon's death": float(max(hidden)) if hidden else None,
        "frames the stimulator refused": float(sum(bed["frames_refused"] for bed in beds)),
        "beds that did not come back": float(sum("stuck" in row for row in rows)),
    }


def judged(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each promise of `budget.toml` and what became of it; `met` is None where this run did not measure it."""
    values = measured(result)
    goals = []
    for goal in tomllib.loads(BUDGET.read_text())["faults"]:
        value = values[goal["what"]]
        least = goal.get("least")
        limit = least if least is not None else goal["most"]
        met = None if value is None else value >= limit if least is not None else value <= limit
        goals.append(
            {"goal": goal["what"], "value": value, "limit": limit, "at_least": least is not None, "met": met, "aim": goal.get("aim")}
        )
    return goals


def in_words(result: dict[str, Any]) -> str:
    """A table, the promises, and everything that was wrong."""
    lines = [f"{'':<28}{'cases':>6}{'in phase':>9}{'after, ms: p50':>16}{'max':>9}{'limit':>8}{'back':>6}{'wrong':>6}"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["cases"]:
        groups.setdefault((row["process"], row["kind"]), []).append(row)
    for (process, kind), rows in sorted(groups.items()):
        judged_rows = [r for r in rows if r["limit_ms"] is not None]
        after_ms = [r["after_ms"] for r in judged_rows or rows]
        limit = f"{max(r['limit_ms'] for r in judged_rows):.0f}" if judged_rows else "train"
        counts = f"{sum(r['resumed'] for r in rows):>6}{sum(len(r['wrong']) for r in rows):>6}"
        named = f"{process + ' ' + kind:<28}{len(rows):>6}{sum(r['in_phase'] for r in rows):>9}"
        lines.append(f"{named}{median(after_ms):>16.1f}{max(after_ms):>9.1f}{limit:>8}{counts}")
    went_on = sum(r["pulses_later"] > 0 for r in result["cases"] if (r["process"], r["kind"]) == ("source", "kill"))
    lines += [
        "",
        f"after a source was killed and back, a bed still armed answered the next spasm: {went_on} times (no promise is made of it)",
    ]
    held = sum(len(r["held_over"]) for r in result["cases"])
    lines += [f"trains for what was heard before the source fell silent: {held} seen by the judge (no promise is made of it)", ""]
    for case in result["dropped"]:
        lines.append(f"not carried out: {case}")
    for row in result["cases"]:
        words = [f"{one['what']}: {one['text']}" for one in row["wrong"]] + ([row["stuck"]] if "stuck" in row else [])
        lines += [f"{row['bed']} {row['process']} {row['kind']} {row['seconds'] or ''} {row['phase']}: {word}" for word in words]
    for goal in result["goals"]:
        verdict = "not measured" if goal["met"] is None else "met" if goal["met"] else "MISSED"
        value = "" if goal["value"] is None else f"{goal['value']:g} "
        aim = "" if goal["aim"] is None else f", aim {goal['aim']:g}"
        lines.append(f"{verdict:<13}{goal['goal']}: {value}({'at least' if goal['at_least'] else 'at most'} {goal['limit']:g}{aim})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="some twenty cases: each process, each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="of each process, phase and signal (default 5: 300 kills and stops)")
    parser.add_argument("--beds", type=int, help="at once (default 3; quick 4)")
    parser.add_argument("--only", help="cases whose words contain this: 'guard stop'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every case with its raw figures")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a promise of budget.toml is missed, naming each")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep sessions and logs there (default: a temporary folder)")
    args = parser.parse_args(argv)
    if not 1 <= args.repeats <= 1000 or not 1 <= (args.beds or 1) <= 16:
        parser.error("repeats are 1 to 1000, beds 1 to 16")
    cases = [case for case in (quick() if args.quick else plan(args.seed, args.repeats)) if not args.only or args.only in str(case)]
    if args.quick:
        random.Random(args.seed).shuffle(cases)
    result: dict[str, Any] = {"bench": "faults", "quick": args.quick or bool(args.only), "seed": args.seed, "environment": environment()}
    began_s = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="calmloop-faults-") as temporary:
        folder = args.keep or Path(temporary)
        os.environ["CALMLOOP_RUNTIME_DIR"] = temporary  # of this process and its children: no real bed is ever touched
        campaign = Campaign(folder.resolve(), args.seed, args.beds or (4 if args.quick else 3))
        try:
            campaign.run(cases, QUICK_BATCH if args.quick else BATCH)
        except KeyboardInterrupt:
            say("interrupted")
            return 1
    result |= {"cases": campaign.rows, "beds": campaign.closed, "dropped": campaign.dropped}
    result["seconds"] = round(time.monotonic() - began_s, 1)
    result["goals"] = judged(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    print(in_words(result))
    missed = [goal["goal"] for goal in result["goals"] if goal["met"] is False]
    for name in missed if args.gate else ():
        say(f"missed: {name}")
    return 1 if args.gate and missed else 0


if __name__ == "__main__":
    sys.exit(main())
