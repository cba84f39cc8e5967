"""`calmloop stimulator test PORT`: who the box is and how it is; with `--pulse`, one prescribed pulse through a whole daemon and its guard.

Guard alone may hold a stimulator's output, here as at a bed: this command only asks guard, as `calmloop arm` and `calmloop trigger` do. So
limits, soft start, dose journal, audit and recording are those of a bed, and a killed command leaves a box that is silent.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import devices, fits, messages, settings
from controller.journal import JournalError, default_path
from drivers.base import DriverError, FileFormatError
from drivers.stimulators import STIMULATORS, limits_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from controller import demo
    from controller.settings import Settings

    LookedAt = Callable[[argparse.Namespace, list[str]], int]  # shows lines and asks for a yes: 0 where it was given, else an exit code

READY_S = 10.0  # guard looks for the box once a second
OVER_S = 0.5  # beyond the train: an answer that guard misses is a fault after 100 ms
STOPPED_S = 2.0  # guard gives the box half a second to confirm a stop
TURN_S = 0.02


class NoPulseError(Exception):
    """The pulse could not be given; the message says why."""


def command(args: argparse.Namespace, looked_at: LookedAt) -> int:
    """`calmloop stimulator test`; 0 = all that was asked for is well, 1 = something is not, 2 = wrong use."""
    try:
        config = fits.together(settings.load(args.config), args.config) if args.config else None
        one = one_pulse(config, args.port) if args.pulse and config else None
    except settings.SettingsError as error:
        return refuse(args, str(error))
    driver = args.driver or (config.stimulator.driver if config else "")
    if wrong := wrong_use(args, driver, config):
        return refuse(args, wrong)
    facts: dict[str, Any] = {"ok": True, "port": args.port, "driver": driver, "identity": "", "facts": {}, "why": "", "pulse": None}
    if driver in devices.NEVER_ASKED:
        facts["why"] = f"{driver} is not asked who it is: whatever reaches such a box is a pulse, and it has no answer"
    else:
        try:
            facts["facts"] = devices.ask_one(args.port, driver, config.stimulator.options if config else None)
            facts["identity"] = facts["facts"]["identity"]
        except DriverError as error:
            facts |= {"ok": False, "why": str(error)}
    if one and facts["ok"]:
        try:
            pulse = through_guard(args, one, looked_at)
            if isinstance(pulse, int):
                return pulse
            facts |= {"pulse": pulse, "ok": pulse["ok"]}
        except (NoPulseError, messages.NoBedError, JournalError) as error:
            facts |= {"ok": False, "why": f"no pulse: {error}"}
    print(json.dumps(facts) if args.json else "\n".join(words(facts)))
    return 0 if facts["ok"] else 1


def refuse(args: argparse.Namespace, why: str) -> int:
    """Wrong use, in words or JSON."""
    print(json.dumps({"ok": False, "error": why}) if args.json else why, file=sys.stdout if args.json else sys.stderr)
    return 2


def wrong_use(args: argparse.Namespace, driver: str, config: Settings | None) -> str:
    """What is wrong with the command; empty = nothing is."""
    if not driver:
        return f"say with --driver what the box is, one of {', '.join(sorted(STIMULATORS))}; or name settings with --config"
    if driver not in STIMULATORS:
        return f"--driver {driver!r} is none of {', '.join(sorted(STIMULATORS))}"
    if config and driver != config.stimulator.driver:
        return f"--driver {driver} is not what {args.config} says: {config.stimulator.driver}"
    if args.pulse and not config:
        return "--pulse needs --config: a pulse is one of a train that somebody has prescribed"
    if driver in devices.NEVER_ASKED and not args.pulse:
        return f"{driver} cannot be tested without a pulse: whatever reaches such a box is one. See --pulse"
    if holder := devices.held_by(args.port, devices.beds_at()):
        return f"{args.port} is held by {holder}: end that first"
    if args.pulse and is_running(args.bed):
        return f"bed {args.bed!r} is running: end it first, the pulse counts in its dose (or name another with --bed)"
    return ""


def is_running(bed: str) -> bool:
    """Whether a guard answers."""
    try:
        messages.ask(bed, {"do": "status"})
    except messages.NoBedError:
        return False
    return True


# --- one pulse --------------------------------------------------------------------------------------------------------------------
def one_pulse(config: Settings, port: str) -> Settings:
    """The same prescription, at this port, for a train that is one pulse long, by the button alone. Raises `SettingsError`."""
    name = config.prescription.manual_train
    train = config.trains[name]
    changes = {
        "emg": None,
        "force": None,
        "emg_rules": (),
        "force_rules": (),
        "trains": {name: train.model_copy(update={"duration_ms": int(1000 / train.pulse_rate_hz), "ramp_up_ms": 0, "taper_ms": 0})},
        "stimulator": config.stimulator.model_copy(update={"port": port}),
    }
    return settings.parse(config.model_copy(update=changes).to_toml(), "settings for one pulse")


def through_guard(args: argparse.Namespace, one: Settings, looked_at: LookedAt) -> dict[str, Any] | int:
    """A daemon of its own with the bed's journal: wait, show, ask, press once, stop, end, and read what was recorded.

    Returns what came of it, or the exit code where nobody said yes. Raises `NoPulseError`, `NoBedError`.
    """
    from controller import demo

    bed, who = f"test-{os.getpid()}", f"calmloop stimulator test ({messages.user()})"
    folder, journal = Path(one.session.folder), args.journal or default_path(args.bed)
    before = set(folder.glob(f"*_{bed}*"))
    with tempfile.TemporaryDirectory(prefix="calmloop-test-") as work_name, tempfile.TemporaryFile("w+") as said:
        daemon = demo.LiveDaemon(one, bed, Path(work_name), said, journal)
        try:
            offer = wait_for_offer(daemon, bed, who)
            if code := looked_at(args, offer_words(one, offer)):
                return code
            require(messages.confirm(bed, offer, False, who))
            require(messages.ask(bed, messages.press(who)))
            time.sleep(next(iter(one.trains.values())).duration_ms / 1000 + OVER_S)
            messages.ask(bed, {"do": "stop", "who": who})
            wait_until_stopped(bed)
        except demo.DemoError as error:
            said.seek(0)
            raise NoPulseError("; ".join([str(error), *said.read().splitlines()])) from None
        finally:
            ended = daemon.end()
    session = next(iter(set(folder.glob(f"*_{bed}*")) - before))
    result = outcome(one, session)
    if ended:
        result["troubles"].append(f"the daemon ended with exit code {ended}")
    return {"ok": result["given"] == 1 and not result["troubles"], **result, "session": str(session), "journal": str(journal)}


def wait_for_offer(daemon: demo.LiveDaemon, bed: str, who: str) -> dict[str, Any]:
    """Wait for guard to find the box, then take the first step of arming. Raises `NoPulseError`, `DemoError`."""
    end, why = time.monotonic() + READY_S, "guard did not start"
    while time.monotonic() < end:
        daemon.check()
        try:
            status = messages.ask(bed, {"do": "status"})
            if status["state"] != "OFF":
                return require(messages.ask(bed, {"do": "offer", "who": who}))
            why = status["reason"]
        except messages.NoBedError:
            pass  # guard is not there yet
        time.sleep(TURN_S)
    raise NoPulseError(why)


def require(answer: dict[str, Any]) -> dict[str, Any]:
    """Guard's answer, if it was yes. Raises `NoPulseError`."""
    if not answer["ok"]:
        raise NoPulseError("; ".join(answer["reasons"]))
    return answer


def wait_until_stopped(bed: str) -> None:
    """Wait until the box has confirmed the stop, or guard has let it go; that it did not confirm is in guard's record."""
    end = time.monotonic() + STOPPED_S
    while time.monotonic() < end:
        box = messages.ask(bed, {"do": "status"})["stimulator"]
        if not isinstance(box, dict) or box["stop_answered"]:
            return
        time.sleep(TURN_S)


def outcome(one: Settings, session: Path) -> dict[str, Any]:
    """What guard did, by its record: the pulse, the box's answer to it, and whatever went wrong. Raises `NoPulseError`."""
    from controller import recording

    try:
        rows = [row for row in recording.load(session).guard() if "event" in row]
    except FileFormatError as error:
        raise NoPulseError(f"what was given cannot be read: {error}") from None
    name, train = next(iter(one.trains.items()))
    pulses = [row for row in rows if row.get("written_ns")]
    answers = [row["event"]["now_ns"] for row in rows if row["event"]["kind"] == "ack"]
    bad = (row for row in rows if row["verdict"]["state"] in ("FAULT", "LOCKOUT") and row["event"]["kind"] not in ("stop", "daemon lost"))
    said = (reason.removeprefix("fault: ") for row in bad for reason in row["verdict"]["reasons"])
    troubles = [reason for reason in dict.fromkeys(said) if reason != "fault"]
    current_ma = pulses[0]["verdict"]["current_ua"] / 1000 if pulses else 0.0
    says = limits_of(one.stimulator.driver, one.stimulator.options).answers_pulses
    return {
        "given": len(pulses),
        "train": name,
        "channel": train.channel,
        "current_ma": current_ma,
        "phase_width_us": train.phase_width_us,
        "interphase_gap_us": train.interphase_gap_us,
        "answers": says,
        "answered_ms": round((answers[0] - pulses[0]["written_ns"]) / 1e6, 2) if says and answers and pulses else None,
        "electrodes": electrodes(one.stimulator.driver, current_ma, troubles),
        "troubles": troubles,
    }


def electrodes(driver: str, current_ma: float, troubles: list[str]) -> str:
    """What one pulse of this current told of the electrodes."""
    said = next((trouble for trouble in troubles if "electrode error" in trouble), "")
    return said or unchecked(driver, current_ma) or ("not known" if troubles else "checked: the box found nothing wrong")


def unchecked(driver: str, current_ma: float) -> str:
    """Why a pulse of this current proves nothing of the electrodes; empty = it does."""
    least_ma = settings.DEVICES[driver].electrode_check_ma
    if least_ma == settings.NOT_KNOWN:
        return f"not checked: it is not known whether {driver} notices a loose electrode"
    return f"not checked: {driver} does that from {least_ma:g} mA on, this is {current_ma:g} mA" if current_ma < least_ma else ""


# --- for people -------------------------------------------------------------------------------------------------------------------
def offer_words(one: Settings, offer: dict[str, Any]) -> list[str]:
    """What is about to be given."""
    name, train = next(iter(one.trains.items()))
    driver = one.stimulator.driver
    limits = limits_of(driver, one.stimulator.options)
    current_ma = limits.current_step_ua / 1000
    how = f"one step of the box, since after arming currents begin softly [A11]; the train {name} has {train.current_ma:g} mA"
    return [
        f"{offer['stimulator_identity']}, prescription {offer['prescription_id']} of {one.prescription.author}",
        f"ONE pulse on channel {train.channel}: {current_ma:g} mA, {train.phase_width_us} us a phase, gap {train.interphase_gap_us} us",
        f"  {how if limits.ramps else settings.DIAL_WORDS.format(driver=driver)}",
        f"  electrodes: {unchecked(driver, current_ma) or 'the box checks them'}",
    ]


def words(facts: dict[str, Any]) -> list[str]:
    """The result."""
    lines = [f"{facts['port']}, {facts['driver']}: {facts['identity'] or 'not identified'}", *devices.fact_words(facts["facts"])]
    lines += [facts["why"]] if facts["why"] else []
    if not (pulse := facts["pulse"]):
        return [*lines, "no pulse was asked for; if that is a trigger box, each byte was one"]
    lines.append(f"pulses given: {pulse['given']}")
    if pulse["given"]:
        shape = f"{pulse['current_ma']:g} mA, {pulse['phase_width_us']} us a phase, gap {pulse['interphase_gap_us']} us"
        lines.append(f"  channel {pulse['channel']}, {shape}, of the train {pulse['train']}")
        answer = f"after {pulse['answered_ms']} ms" if pulse["answered_ms"] is not None else "no"
        lines.append(f"  acknowledged: {answer if pulse['answers'] else 'this box never does; what was written counts as given'}")
    lines.append(f"  electrodes: {pulse['electrodes']}")
    lines += [f"  trouble: {trouble}" for trouble in pulse["troubles"]]
    return [*lines, f"session {pulse['session']}; it counts in the dose journal {pulse['journal']}"]
