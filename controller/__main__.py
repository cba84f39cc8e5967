"""The command `calmloop`. Everything heavy is imported inside the subcommand that needs it: `stop` and `status` must start at once."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import messages

if TYPE_CHECKING:
    from collections.abc import Sequence

BOX_S = 0.8  # guard waits half a second for a stimulator to confirm a stop
GOOD, SHORT, WRONG = 0, 1, 2  # exit codes: good, a result that falls short, wrong use or settings
DEFAULT_BED = "bed"
READ = "XDF, EDF, BDF, WFDB .hea, Spike2, OpenSignals .h5, .mat, NPZ, CSV"
NOTHING_KNOWN = "the recording knows of no row: rows cut off at the end would not show"
BED_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,40}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except messages.NoBedError as error:
        if args.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        else:
            print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return SHORT
    except BrokenPipeError:
        return GOOD
    return code


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    p = argparse.ArgumentParser(
        prog="calmloop",
        description="Closed-loop controller for involuntary muscle spasms. Research software, not a certified medical device.",
        epilog="Exit codes: 0 good, 1 a result that falls short, 2 wrong use or settings.",
    )
    commands = p.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.set_defaults(run=run)
        return sub

    demo = add("demo", run_demo, "closed loop on the simulated body, with a summary at the end")
    demo.add_argument("--seconds", type=float, default=60.0, help="how long spasms are drawn (default 60)")
    demo.add_argument("--seed", type=int, default=1, help="which spasms (default 1)")
    demo.add_argument("--headless", action="store_true", help="no page; print the summary alone")
    demo.add_argument("--port", type=port, default=8137, help="of the page on this machine (default 8137, or another that is free)")
    demo.add_argument("--stimulator", metavar="NAME", help="another virtual stimulator than the settings' (default: rehamove3)")
    demo.add_argument("--config", default=None, help="settings (default: the demo's own)")
    demo.add_argument("--sessions", default=None, help="folder for the session (default: as the settings say)")
    demo.add_argument("--bed", type=bed_name, default=None, help="name of the control socket (default demo-PID)")

    run = add("run", run_run, "bedside daemon: listens, guards, records")
    run.add_argument("config", help="settings file")
    run.add_argument("--bed", type=bed_name, default=DEFAULT_BED, help="name of the control socket (default bed)")
    run.add_argument("--journal", type=Path, default=None, help="file of the dose journal (default: the bed's own, in the state folder)")
    run.add_argument("--lifeline", action="store_true", help="end when standard input ends, for programs that start a daemon")

    check = add("check", run_check, "say what a settings file means, or everything that is wrong with it")
    check.add_argument("config", help="settings file")

    simulate = add("simulate", run_simulate, "the simulated body and a virtual stimulator alone, for other tools")
    simulate.add_argument("--seed", type=int, default=1)
    simulate.add_argument("--seconds", type=float, default=None, help="end after this long (default: at ^C)")
    simulate.add_argument("--source-id", default="calmloop-body", help="so that two bodies can be told apart (default calmloop-body)")
    simulate.add_argument("--stimulator", metavar="NAME", default="rehamove3", help="whose protocol (default rehamove3)")
    simulate.add_argument("--fault", metavar="NAME@N", help="what goes wrong with the stimulator after N pulses, for example hang@10")
    simulate.add_argument("--output", default="simulated", help="folder for the truth and the stimulator's log")

    for name, text in (
        ("stop", "stop all output now and disarm; with several beds running, all of them"),
        ("status", "what is going on"),
        ("trigger", "give the one train prescribed for the button"),
        ("arm", "allow output, after looking at patient and electrodes"),
        ("disarm", "high voltage off"),
        ("clear", "clear a fault after its cause is gone"),
    ):
        sub = add(name, run_person, text)
        sub.set_defaults(do=name)
        sub.add_argument("--bed", type=bed_name, default=None, help="which bed, where several are running")
        if name == "status":
            sub.add_argument("--watch", action="store_true", help="show it anew twice a second, until ^C")
        if name == "arm":
            sub.add_argument("--button-only", action="store_true", help="no automatic stimulation")
            sub.add_argument(
                "--electrodes-checked", action="store_true", help="you have looked at patient, skin and pads (else you are asked)"
            )
        if name == "clear":
            sub.add_argument("reason", help="why it is safe to go on, in words")

    text = "show a one-use code with which somebody at the page becomes patient, viewer, clinician or admin"
    invite = add("invite", run_invite, text)
    invite.add_argument("role", choices=("patient", "viewer", "clinician", "admin"))
    invite.add_argument("name", help="whose acts will stand in the audit under this name")
    invite.add_argument("--bed", type=bed_name, default=None, help="which bed, where several are running")

    dose = add("dose", run_dose, "what the bed's patient was given, in this session and in 24 h")
    dose.add_argument("--bed", type=bed_name, help="whose journal (default: of the one bed that is running; where none is, bed)")
    dose.add_argument("--journal", type=Path, default=None, help="another file of a dose journal")
    dose.add_argument("--reset", metavar="REASON", help="count anew: a new patient is in the bed; only while no daemon holds the journal")

    audit = commands.add_parser("audit", help="look for the first row that was changed, deleted, cut off or rewritten")
    audits = audit.add_subparsers(required=True, metavar="COMMAND")
    verify = audits.add_parser(
        "verify", help="exit code 0: whole, 1: not, 2: cannot be told (no end, or not here)", description=audit.description
    )
    verify.add_argument("session", type=Path, help="folder of the session")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=run_audit_verify)

    text = "prove that a session holds all that went in: samples, cycles, gaps, CRCs, audit (exit code 0: whole, 1: not, 2: cannot be told)"
    verify_session = add("verify", run_keeping, text)
    verify_session.set_defaults(recover=False)
    text = "cut a session that was torn back to its last whole chunk, which any reader opens; what is cut off is put aside"
    recover = add("recover", run_keeping, text)
    recover.set_defaults(recover=True)
    for one in (verify_session, recover):
        one.add_argument("sessions", nargs="+", type=Path, metavar="SESSION", help="folder of a session")

    replay = add("replay", run_replay, "recorded inputs through the very same steps: sessions are compared, other files give detections")
    replay.add_argument("files", nargs="+", metavar="FILE", help=f"session folders or recordings ({READ})")
    add_file_options(replay)
    replay.add_argument(
        "--realtime", action="store_true", help="play a file as an LSL stream into a live daemon with the virtual stimulator"
    )

    replay.add_argument(
        "--pulses",
        metavar="FILE|CHANNEL|find",
        help="when the recording was stimulated: times in s a line, a channel that rises, or 'find' by the artefacts",
    )
    replay.add_argument("--jobs", type=count, default=1, metavar="N", help="so many recordings at a time, each in a process (default 1)")
    replay.add_argument("--speed", type=times, metavar="N", help="no faster than N times real time, to leave the processor to others")
    replay.add_argument(
        "--what-if", metavar="OTHER.toml", help="of a session: what the loop would have decided by other settings, and in what that differs"
    )

    play = add("play", run_play, "publish a recording as LSL streams at its own pace, EMG and, where it has one, force; ends at its end")
    play.add_argument("file", metavar="FILE", help=f"recording ({READ})")
    add_reading_options(play)
    play.add_argument("--name", help="name of the EMG stream; force is NAME force (default calmloop and the file's name)")
    play.add_argument("--source-id", help="so that two players can be told apart; -emg and -force are added (default: the name)")
    play.add_argument("--loop", action="store_true", help="begin again at the end, until ^C")
    play.add_argument("--speed", type=times, default=1.0, metavar="N", help="N times as fast, with N times the rate stated (default 1)")

    score = add("score", run_score, "events against labels: hits, latencies, false alarms per hour of quiet time")
    score.add_argument("files", nargs="+", metavar="FILE", help="session folders or recordings, as `calmloop replay` takes them")
    score.add_argument(
        "--labels",
        action="append",
        required=True,
        help="CSV or TSV: onset_s, offset_s; or onset, duration (BIDS); once for each FILE in their order, or one with a column file",
    )
    score.add_argument("--within", type=seconds, default=0.25, help="a hit is decided at most this long after the onset, s (default 0.25)")
    score.add_argument("--margin", type=seconds, default=0.3, help="decisions this long after an event are neutral, s (default 0.3)")
    score.add_argument("--min-sensitivity", type=float, metavar="SHARE", help="exit 1 where a rule hits a smaller share of the events")
    score.add_argument(
        "--max-false-alarms-per-hour", type=float, metavar="N", help="exit 1 where a rule's observed rate, not its bound, is higher"
    )
    add_file_options(score)

    text = (
        "figures of the rules from rest, a contraction and a spasm: of a recording, or, without FILE, live at the bed; stimulates nothing"
    )
    calibrate = add("calibrate", run_calibrate, text)
    calibrate.add_argument(
        "file", nargs="?", metavar="FILE", help=f"recording ({READ}) or session folder (default: the streams of the settings, live)"
    )
    calibrate.add_argument("--config", required=True, metavar="BED.toml", help="the bed's settings")
    calibrate.add_argument("--quiet", type=part_s, metavar="A-B", help="of the file: the person is at rest, s from its beginning")
    calibrate.add_argument("--contraction", type=part_s, metavar="A-B", help="a comfortable contraction on purpose, with rest before it")
    calibrate.add_argument("--spasm", type=part_s, metavar="A-B", help="a provoked spasm, with rest before it, if there is one")
    calibrate.add_argument("--rule", action="append", metavar="NAME", help="this rule alone, and not all (may be said again)")
    calibrate.add_argument("--freeze", action="store_true", help="keep rest as it is now (noise_uv) instead of learning it as it goes")
    calibrate.add_argument("--write", type=Path, metavar="OUT.toml", help="write the bed's file with these figures replaced, comments kept")
    calibrate.add_argument("--overwrite", action="store_true", help="even where OUT.toml exists")
    calibrate.add_argument("--yes", action="store_true", help="live: go from step to step by itself, ask nobody")
    calibrate.add_argument("--provoke", action="store_true", help="live, with --yes: with the step in which a spasm is provoked")
    add_reading_options(calibrate)

    export = add("export", run_export, "sessions as a BIDS-EMG dataset with BDF+ files, or as CSV")
    export.add_argument("sessions", nargs="+", metavar="SESSION", type=Path, help="folders of sessions")
    export.add_argument("--bids", type=Path, metavar="DIR", help="a new dataset, or one that the sessions are added to; needs edfio")
    export.add_argument(
        "--csv", type=Path, metavar="DIR", help="emg.csv, force.csv and events.csv; of several sessions in DIR/01, DIR/02 ..."
    )
    export.add_argument("--subject", default="01", help="BIDS label of the person, no name (default 01)")
    export.add_argument("--task", default="spasms", help="BIDS label of what was done (default spasms)")
    export.add_argument("--session", metavar="LABEL", help="BIDS label of the session (default: the next number)")
    export.add_argument("--power-line", type=float, metavar="HZ", help="of this place (default: what the EMG rules say)")
    export.add_argument("--emg-json", type=Path, metavar="FILE", help="JSON with more fields for *_emg.json: the amplifier, the electrodes")
    export.add_argument("--keep-date", action="store_true", help="say when it was (default: no date; dates can tell who somebody is)")
    export.add_argument("--force", action="store_true", help="write over what is there")

    doctor = add("doctor", run_doctor, "what is missing on this machine, named, before anything starts")
    doctor.add_argument("config", nargs="?", help="settings file, to look for its streams and port too")

    certificate = add("certificate", run_certificate, "a certificate for the page on a network interface, for [page]")
    certificate.add_argument("interface", help="as `ip link` names it, such as enp3s0")
    certificate.add_argument("--host-name", default="", help="by which browsers find this machine, beside its address")
    certificate.add_argument("--folder", type=Path, default=Path("certificates"), help="where the files go (default certificates)")

    install = add("install", run_install, "make a bed a service of systemd: its unit, udev rules and limits; runs no command")
    scope = install.add_mutually_exclusive_group(required=True)
    scope.add_argument("--system", dest="scope", action="store_const", const="system", help="of the machine, from its start")
    scope.add_argument("--user", dest="scope", action="store_const", const="user", help="of this user")
    install.add_argument("config", help="settings file")
    install.add_argument("--bed", type=bed_name, default=DEFAULT_BED, help="name of the bed and of its unit (default bed)")
    install.add_argument(
        "--as", dest="run_as", metavar="USER", type=bed_name, help="who it runs as (default: calmloop, or with --user you)"
    )
    install.add_argument("--root", type=Path, metavar="DIR", help="write below this folder, for images and tries")
    install.add_argument("--dry-run", action="store_true", help="print every file with its path, write nothing")
    install.add_argument("--overwrite", action="store_true", help="even where another file stands")

    devices = add("devices", run_devices, "serial ports, LSL streams and buttons that are there; nothing is opened unless you name it")
    devices.add_argument("--seconds", type=float, default=1.0, help="how long LSL streams are looked for (default 1)")
    devices.add_argument("--ask", metavar="PORT", help="open this port and ask who is there; to a trigger box each byte is a pulse")
    devices.add_argument(
        "--as", dest="names", nargs="+", metavar="NAME", default=[], help="in the protocol of these drivers, until one is answered"
    )

    button = commands.add_parser("button", help="look for the patient's button")
    buttons = button.add_subparsers(required=True, metavar="COMMAND")
    text = "press the button when asked: prints the lines that the settings need for it"
    learn = buttons.add_parser("learn", help=text, description=text)
    learn.add_argument("--seconds", type=float, default=20.0, help="how long a press is waited for (default 20)")
    learn.add_argument(
        "--port",
        action="append",
        default=[],
        help="listen to the lines of this serial port too; opening it moves DTR and RTS (may be said again)",
    )
    learn.add_argument("--json", action="store_true", help="print one JSON object")
    learn.set_defaults(run=run_button_learn)

    stimulator = commands.add_parser("stimulator", help="look at one stimulator")
    stimulators = stimulator.add_subparsers(required=True, metavar="COMMAND")
    text = "who the box is and how it is; with --pulse one weak pulse of what is prescribed, after your yes"
    test = stimulators.add_parser("test", help=text, description=text)
    test.add_argument("port", help="its serial port")
    test.add_argument("--driver", metavar="NAME", help="what it is (default: as the settings say)")
    test.add_argument("--config", help="settings file with the prescription")
    test.add_argument("--pulse", action="store_true", help="give one pulse of the button's train: the smallest step of the box's current")
    test.add_argument("--electrodes-checked", action="store_true", help="you have looked at patient, skin and pads (else you are asked)")
    test.add_argument("--bed", type=bed_name, default=DEFAULT_BED, help="in whose dose journal the pulse counts (default bed)")
    test.add_argument("--journal", type=Path, default=None, help="another file of a dose journal")
    test.add_argument("--json", action="store_true", help="print one JSON object")
    test.set_defaults(run=run_stimulator_test)

    montage = add("montage", run_montage, "where pads and EMG electrodes go for the spasm of a muscle, what to start from, what is known")
    montage.add_argument("name", nargs="?", help="which muscle; without it all are listed")
    montage.add_argument("--svg", metavar="FILE", help="write the drawing")
    montage.add_argument("--side", choices=("right", "left"), default="right", help="side of the person that is drawn (default right)")

    safety = add("safety", run_safety, "the safety requirements: rule, limit in force, who set it, the tests that prove it")
    safety.add_argument("config", nargs="?", help="settings file; without it the hard limits alone")
    which = safety.add_mutually_exclusive_group()
    which.add_argument("--table", action="store_true", help="all requirements (the default)")
    which.add_argument("--limits", action="store_true", help="the figures that a clinician must sign")

    version = add("version", run_version, "which build this is: hashes of the modules that decide about output")
    version.add_argument("--sbom", action="store_true", help="the installed software this stands on, as CycloneDX 1.5 JSON")

    bench = commands.add_parser("bench", help="measure; the benches live in the source checkout")
    bench.add_argument("name", help="which: latency ...")
    bench.add_argument("options", nargs=argparse.REMAINDER, help="the bench's own options; see `calmloop bench NAME --help`")
    bench.set_defaults(run=run_bench, json=False)
    return p


def add_reading_options(sub: argparse.ArgumentParser) -> None:
    """How a recording is read."""
    sub.add_argument("--variable", help="name of the EMG in the file (dots go into structures)")
    sub.add_argument("--rate", type=float, dest="rate_hz", help="sample rate in Hz, where the file does not say")
    sub.add_argument("--channels", help="names of the channels, separated by commas")
    sub.add_argument("--unit", choices=("uV", "mV", "V", "raw"), help="unit of the samples, where the file does not say")


def add_file_options(sub: argparse.ArgumentParser) -> None:
    """How a recording is read and heard; a session says both of itself."""
    add_reading_options(sub)
    sub.add_argument(
        "--floor", type=float, default=None, help="smaller activity than this is no spasm, in the file's unit after conversion"
    )
    sub.add_argument("--false-alarms-per-h", type=float, default=0.04, help="in an hour of quiet (default 0.04: one a day)")
    sub.add_argument("--noise-time", type=float, default=30.0, help="memory of the noise model, s (default 30)")
    sub.add_argument("--high-pass", type=float, default=80.0, help="Hz (default 80)")
    sub.add_argument("--off-ratio", type=float, default=1.5, help="active until the envelope is below this many times the noise")


def seconds(text: str) -> float:
    """A finite time that is not negative."""
    try:
        value_s = float(text)
    except ValueError:
        value_s = -1.0
    if not 0.0 <= value_s < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a time in s, 0 or more")
    return value_s


def count(text: str) -> int:
    """A number of processes."""
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a number from 1 to 256")
    return int(text)


def times(text: str) -> float:
    """A speed in times real time."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a speed in times real time, such as 2 or 0.5")
    return value


def part_s(text: str) -> tuple[float, float]:
    """A part of a recording, as 15-20, in s."""
    begin, dash, end = text.partition("-")
    if dash and (begin_s := seconds(begin)) < (end_s := seconds(end)):
        return begin_s, end_s
    raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a part such as 15-20: two times in s, the second later")


def port(text: str) -> int:
    """A TCP port, or 0."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a port, 0 to 65535")
    return int(text)


def bed_name(text: str) -> str:
    """A bed's name as it was given: it becomes the name of a socket, of a journal and of a part of each session's folder."""
    if not BED_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} must be 1 to 40 letters (a to z), digits, '.', '_' or '-', not beginning with '.'")
    return text


def show(args: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    """Print a result: JSON where asked for, words otherwise."""
    print(json.dumps(facts) if args.json else text)


# --- people's commands: standard library alone ------------------------------------------------------------------------------------
BY_HAND = "SWITCH ITS STIMULATOR OFF BY HAND"


def run_person(args: argparse.Namespace) -> int:
    """stop, status, trigger, arm, disarm, clear: ask guard."""
    if args.do == "status" and args.watch:
        from controller import watch

        return watch.command(args)
    names = [args.bed] if args.bed else messages.beds()
    if not names:
        by_hand = "; if a stimulator is on, SWITCH IT OFF BY HAND" if args.do == "stop" else ""
        start = "start one with `calmloop run CONFIG`, or try `calmloop demo`"
        raise messages.NoBedError(f"no bed is running that can be found from here, {messages.runtime_folder()} ({start}){by_hand}")
    if args.do not in ("stop", "status") and len(names) > 1:
        names = [name for name in names if answers_status(name)]
        if len(names) != 1:
            raise messages.NoBedError(f"{len(names)} beds are running ({', '.join(names)}): say which with --bed")
    who = f"calmloop {args.do} ({messages.user()})"
    if args.do == "arm":
        return run_arm(args, names[0], who)
    command: dict[str, Any] = messages.press(who) if args.do == "trigger" else {"do": args.do, "who": who}
    if args.do == "clear":
        command["reason"] = args.reason
    answers, gone = stop(names, command) if args.do == "stop" else messages.ask_all(names, command)
    if args.do in ("stop", "disarm"):
        wait_for_the_box(answers)
    if args.do == "status":
        answers = {name: answer | {"daemon": messages.daemon_status(name)} for name, answer in answers.items()}
    # a socket that was left over stands for nobody; a guard that does not answer may still be at work
    hung = [bed for bed, why in gone.items() if "DID NOT ANSWER" in why]
    unconfirmed = [bed for bed, answer in answers.items() if answer["stop_confirmed"] is False]
    result = {"ok": bool(answers) and not hung and all(a["ok"] for a in answers.values()), "beds": answers, "gone": gone}
    if args.do in ("stop", "disarm"):
        result["ok"] = result["ok"] and not unconfirmed
    lines = [f"{gone[bed]}{f': {BY_HAND}' if args.do == 'stop' else ''}" for bed in hung]
    lines += [f"{name}: {describe(answer)}" for name, answer in answers.items()]
    if args.do == "stop":
        lines += [
            f"{name}: the stop was sent; a {answer['stimulator']['model']} cannot confirm it: look at it"
            for name, answer in answers.items()
            if not answer["confirms_stops"] and answer["stimulator"] != "absent"
        ]
    lines += [f"{why}{f'; if it is on, {BY_HAND}' if args.do == 'stop' else ''}" for bed, why in gone.items() if bed not in hung]
    show(args, result, "\n".join(lines))
    if not answers or hung:
        return WRONG
    return GOOD if result["ok"] else SHORT


def stop(names: list[str], command: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Say it to all; whoever does not answer within half a second is named at once, and hears it again."""
    answers, gone = messages.ask_all(names, command, 0.5)
    hung = [bed for bed, why in gone.items() if "DID NOT ANSWER" in why]
    if hung:
        print(f"no answer yet from {', '.join(hung)}: {BY_HAND}; still trying", file=sys.stderr, flush=True)
        more, still = messages.ask_all(hung, command, 1.5)
        answers |= more
        gone = {bed: why for bed, why in gone.items() if bed not in hung} | still
    return answers, gone


def wait_for_the_box(answers: dict[str, Any]) -> None:
    """Until each stimulator has confirmed its stop, or has not for as long as guard waits for that."""
    end = time.monotonic() + BOX_S
    while waiting := [bed for bed, answer in answers.items() if answer["stop_confirmed"] is None]:
        time.sleep(0.02)
        now, _ = messages.ask_all(waiting, {"do": "status"}, 0.5)
        for bed in waiting:
            said = now.get(bed, {})
            answers[bed] |= {key: said[key] for key in ("state", "automatic", "reason", "stop_confirmed") if key in said}
            if answers[bed]["stop_confirmed"] is None and time.monotonic() > end:
                answers[bed]["stop_confirmed"] = False


def run_arm(args: argparse.Namespace, bed: str, who: str) -> int:
    """Two steps: what would be armed is shown, and a person who has looked says yes."""
    offer = messages.ask(bed, {"do": "offer", "who": who})
    if not offer["ok"]:
        show(args, {"ok": False, "beds": {bed: offer}, "gone": {}}, f"{bed}: {describe(offer)}")
        return SHORT
    if code := looked_at(args, [f"{bed}: {offer['stimulator_identity']}, prescription {offer['prescription_id']}", *offer["prescription"]]):
        return code
    answer = messages.confirm(bed, offer, not args.button_only, who)
    show(args, {"ok": answer["ok"], "beds": {bed: answer}, "gone": {}}, f"{bed}: {describe(answer)}")
    return GOOD if answer["ok"] else SHORT


def run_invite(args: argparse.Namespace) -> int:
    """A code for the page: whoever sits here says who may come."""
    bed = args.bed or the_bed()
    answer = messages.ask(bed, {"do": "invite", "role": args.role, "name": args.name, "who": f"calmloop invite ({messages.user()})"})
    if not answer["ok"]:
        show(args, answer, "; ".join(answer["reasons"]))
        return SHORT
    show(args, answer, f"{answer['code']}   once, within 2 minutes, for {args.name} as {args.role}; a new code ends this one")
    return GOOD


def looked_at(args: argparse.Namespace, lines: list[str]) -> int:
    """Show what would be armed and wait for a yes, unless it was given with the command; 0 = it was, else the exit code."""
    if args.electrodes_checked:
        return GOOD
    print("\n".join(lines), file=sys.stderr)
    if not sys.stdin.isatty():
        print("arming needs --electrodes-checked where nobody can be asked", file=sys.stderr)
        return WRONG
    print("Patient, skin and electrodes looked at? Type yes to arm: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() != "yes":
        print("not armed", file=sys.stderr)
        return SHORT
    return GOOD


def the_bed() -> str:
    """The one bed that is running; where none is, the name that a bed has by default."""
    answers, gone = messages.ask_all(messages.beds(), {"do": "status"})
    names = sorted([*answers, *(bed for bed, why in gone.items() if "DID NOT ANSWER" in why)])
    if len(names) > 1:
        raise messages.NoBedError(f"{len(names)} beds are running ({', '.join(names)}): say which with --bed")
    return names[0] if names else DEFAULT_BED


def answers_status(bed: str) -> bool:
    """Whether somebody serves this bed."""
    try:
        messages.ask(bed, {"do": "status"})
    except messages.NoBedError:
        return False
    return True


def describe(answer: dict[str, Any]) -> str:
    """One bed in words."""
    state = answer["state"] + (" automatic" if answer["automatic"] else "")
    words = [f"{state} ({answer['reason']})"]
    words += [reason for reason in answer["reasons"] if reason != answer["reason"]]
    if answer.get("stop_confirmed") is False:
        words.append(f"the stimulator did not confirm the stop: {BY_HAND}")
    if "daemon" in answer:
        words.append(f"loop {answer['loop']}, {'data ok' if answer['data_ok'] else 'NO DATA'}")
        given = answer["dose"]["session"]  # from the journal, so it goes on over a guard that was started again
        words.append(
            f"this session: {given['on_ns'] / 1e9:.1f} s of stimulation, {given['pulses']} pulses, {given['charge_nc'] / 1e6:.2f} mC"
        )
        daemon = answer["daemon"]
        if daemon is None:
            words.append("daemon: unknown (its report is older than 1 s)")
        else:
            words.append(f"session {daemon['session']}, {daemon['recording_bytes'] / 1e6:.1f} MB")
            refused = [
                f"{who} {what} {got}" for who, all_got in daemon["realtime"].items() for what, got in all_got.items() if "refused" in got
            ]
            words += refused
            words += [line for line in (asked_words(daemon.get("requests_by", {})), spasm_words(daemon.get("spasms", {}))) if line]
            words += filter(None, [daemon["late"], latency_words(daemon["latency"]), trigger_words(daemon["last_trigger"])])
    return "\n  ".join(words)


def asked_words(requests_by: dict[str, int]) -> str:
    """Which rules, and rules joined, have asked."""
    asked = [f"{name} {n}" for name, n in requests_by.items() if n]
    return f"requests: {', '.join(asked)}" if asked else ""


def spasm_words(spasms: dict[str, dict[str, Any]]) -> str:
    """What the rules have seen, in one line; --json has the last of each."""
    lines = []
    for rule, counts in spasms.items():
        kinds = [f"{n} {kind}" for kind, n in counts.items() if kind not in ("n", "last") and n]
        if counts["n"]:
            hz = counts["last"]["clonus_hz"]
            lines.append(f"{rule}: {', '.join(kinds)}" + (f" (last {hz:.1f} Hz)" if hz else ""))
    return f"spasms: {'; '.join(lines)}" if lines else ""


def latency_words(latency: dict[str, dict[str, Any]]) -> str:
    """What was measured of loop and guard, in one line; --json has all of it."""
    shown = {"loop": ("sample_age", "compute"), "guard": ("request_transit", "pulse_late", "ack")}
    whose = []
    for who, names in shown.items():
        measured = [(name, latency[name]) for name in names if latency.get(name, {}).get("n")]
        words = [f"{name.replace('_', ' ')} p50 {q['p50_ms']:.2f} ms, p99 {q['p99_ms']:.2f}, max {q['max_ms']:.2f}" for name, q in measured]
        whose += [f"{who}: {', '.join(words)}"] if words else []
    return "; ".join(whose)


def trigger_words(stages_ms: dict[str, float] | None) -> str:
    """The stages of the last trigger, in order."""
    if not stages_ms:
        return ""
    words = [f"{name.removesuffix('_ms')} +{ms:.2f}" for name, ms in stages_ms.items() if name != "sum_ms"]
    start = "sample" if "pulled_ms" in stages_ms else "request"
    return f"last trigger: {start}, {', '.join(words)} = {stages_ms['sum_ms']:.2f} ms"


# --- the rest ---------------------------------------------------------------------------------------------------------------------
def run_demo(args: argparse.Namespace) -> int:
    """The closed loop on the simulated body."""
    from controller import demo

    return demo.command(args)


def run_run(args: argparse.Namespace) -> int:
    """The bedside daemon."""
    if answers_status(args.bed):
        print(f"bed {args.bed!r} is running already: choose another name with --bed, or end that one", file=sys.stderr)
        return WRONG
    from controller import daemon, fits, settings
    from controller.audit import AuditError
    from controller.journal import JournalError
    from controller.notify import Notifier

    path, people, tell, process = Path(args.config), None, daemon.Speaker(), daemon.Process(Notifier())
    try:
        config = fits.together(settings.load(path), args.config)
        while True:  # a new prescription begins a new session
            own = path if path.is_file() else None
            bedside = daemon.Daemon(config, args.bed, tell, args.lifeline, args.journal, own, people, process)
            code = bedside.run()
            if not bedside.next or process.told_to_end:
                return code
            config, people = bedside.next
    except (settings.SettingsError, AuditError, JournalError, daemon.StartError) as error:
        print(error, file=sys.stderr)
        return WRONG


def run_check(args: argparse.Namespace) -> int:
    """Explain settings."""
    from controller import fits, settings

    try:
        config = fits.together(settings.load(args.config), args.config)
    except settings.SettingsError as error:
        if args.json:
            print(json.dumps({"ok": False, "problems": error.problems}))
        else:
            print(error, file=sys.stderr)
        return WRONG
    show(args, {"ok": True, **settings.summary(config)}, settings.sentences(config, args.config))
    return GOOD


def run_simulate(args: argparse.Namespace) -> int:
    """Body and virtual stimulator alone."""
    from controller import demo

    return demo.simulate_command(args)


def run_dose(args: argparse.Namespace) -> int:
    """The dose journal, to read or to reset."""
    from controller import dose
    from controller.journal import ADOPTED, Journal, JournalError, clock_now, default_path, look

    bed = args.bed or the_bed()
    running = messages.daemon_status(bed)
    done = []
    try:
        path = args.journal or (Path(running["journal"]) if running else default_path(bed))
        if args.reset is not None:
            if not args.reset.strip():
                raise JournalError("--reset needs a reason in words")
            with closing(Journal(path, replace_broken=True)) as journal:
                journal.reset(args.reset, messages.user())
            done += [f"the file that could not be trusted is now {journal.put_aside}"] if journal.put_aside else []
            done += [ADOPTED.format(journal.adopted)] if journal.adopted else []
        rows, held = look(path)
    except JournalError as error:
        show(args, {"ok": False, "error": str(error)}, str(error))
        return WRONG
    facts = dose.summary(rows, clock_now()) | {"journal": str(path), "daemon": held, "unclean_end": dose.is_open(rows) and not held}
    show(args, {"ok": True, **facts}, "\n".join([*done, *dose_words(facts)]))
    return GOOD


def dose_words(facts: dict[str, Any]) -> list[str]:
    """The dose in words."""
    lines = [
        f"{words}: {given['on_time_s']:.1f} s of stimulation, {given['pulses']} pulses, {given['charge_mc']:.2f} mC"
        for words, given in (("this session", facts["session"]), ("last 24 h", facts["day"]))
    ]
    ago_s = facts["last_train_ended_s_ago"]
    lines.append(
        "no train" if ago_s is None else f"last train: {ago_s / 60:.0f} min ago" if ago_s > 120 else f"last train: {ago_s:.0f} s ago"
    )
    if facts["assumed_trains"]:
        lines.append(f"of these {facts['assumed_trains']} trains are assumed: sessions or guards ended without saying what they did last")
    if facts["lockout"]:
        lines.append(f"LOCKED OUT: {facts['lockout']}")
    if facts["unclean_end"]:
        lines.append("the last session had no clean end: the next start adds two trains")
    return lines


def run_audit_verify(args: argparse.Namespace) -> int:
    """Whether a session's audit is whole, by its own chain and by what the recording anchored of it."""
    from controller import audit, recording
    from drivers.base import FileFormatError

    path = args.session / recording.AUDIT
    try:
        session = recording.load(args.session)
        anchors = session.anchors()
        head, bad = audit.verify(path, audit.key(), anchors)
        ended = session.end is not None and audit.ends_with(path) == recording.END
    except recording.RowError as error:
        show(args, {"ok": False, "error": str(error)}, f"NOT WHOLE: {error}")
        return SHORT
    except (FileFormatError, audit.AuditError) as error:
        show(args, {"ok": False, "error": str(error)}, f"cannot be verified here: {error}")
        return WRONG
    last = anchors[-1].rows if anchors else 0
    facts = {"ok": ended and not bad, "ended": ended, **head._asdict(), "anchored_rows": last, "first_bad_row": bad and bad._asdict()}
    if bad:
        text = f"NOT WHOLE: row {bad.row} {bad.why} ({head.rows} rows are there)"
    elif ended:
        text = f"whole: {head.rows} rows, head {head.hmac}; audit and recording both have their end, and the recording names the last row"
    else:
        knows = f"the recording knows of rows 1 to {last}: rows cut off after them would not show" if last else NOTHING_KNOWN
        text = f"whole as far as it goes ({head.rows} rows), but without an end: killed, still running, or cut off; {knows}"
    show(args, facts, text)
    # without an end nothing was found wrong, and nobody can say that nothing is missing: neither 0 nor 1 would be true
    return SHORT if bad else GOOD if ended else WRONG


def run_keeping(args: argparse.Namespace) -> int:
    """Whether sessions are whole, and the repair of torn ones."""
    from controller import keeping

    return keeping.command(args)


def run_replay(args: argparse.Namespace) -> int:
    """Sessions are compared, other files give detections."""
    from controller import replay_command

    return replay_command.command(args)


def run_play(args: argparse.Namespace) -> int:
    """A recording as streams."""
    from controller import play

    return play.command(args)


def run_score(args: argparse.Namespace) -> int:
    """Decisions against labels."""
    from controller import score

    return score.command(args)


def run_calibrate(args: argparse.Namespace) -> int:
    """Figures of the rules from a signal."""
    from controller import calibrate

    return calibrate.command(args)


def run_export(args: argparse.Namespace) -> int:
    """Sessions for other programs."""
    from controller import export

    return export.command(args)


def run_doctor(args: argparse.Namespace) -> int:
    """Name what is missing."""
    from controller import doctor

    return doctor.command(args)


def run_certificate(args: argparse.Namespace) -> int:
    """The page beyond loopback."""
    from controller import certificate

    return certificate.command(args)


def run_install(args: argparse.Namespace) -> int:
    """A bed's service."""
    from controller import install

    return install.command(args)


def run_devices(args: argparse.Namespace) -> int:
    """What is plugged in, streams and listens."""
    from controller import devices

    return devices.command(args)


def run_button_learn(args: argparse.Namespace) -> int:
    """Which button is pressed."""
    from controller import learn_button

    return learn_button.command(args)


def run_stimulator_test(args: argparse.Namespace) -> int:
    """One stimulator, with or without one pulse."""
    from controller import stimulator

    return stimulator.command(args, looked_at)


def run_montage(args: argparse.Namespace) -> int:
    """Places of pads, with their sources."""
    from controller import montages

    return montages.command(args)


def run_safety(args: argparse.Namespace) -> int:
    """Requirements, limits in force, proofs."""
    from controller import safety

    return safety.command(args)


def run_version(args: argparse.Namespace) -> int:
    """Which build this is."""
    from controller import build

    return build.command(args)


def run_bench(args: argparse.Namespace) -> int:
    """One of `bench/`, which no wheel carries: `python -m bench.NAME` of the checkout that this package lives in."""
    from importlib import import_module
    from pathlib import Path

    folder = Path(__file__).resolve().parents[1] / "bench"
    names = sorted(path.stem for path in folder.glob("*.py") if "def main(argv" in path.read_text())
    if args.name not in names:
        where = f"the benches here: {', '.join(names)}" if names else "the benches live in the source checkout, not in an installed package"
        print(f"usage: calmloop bench NAME [OPTION...]; {where}", file=sys.stderr)
        return WRONG
    sys.path.insert(0, str(folder.parent))
    code: int = import_module(f"bench.{args.name}").main(args.options)
    return code


if __name__ == "__main__":
    sys.exit(main())
