"""Which safety requirements hold here, with which figure, who set it, and which test proves it: `calmloop safety`.

`REQUIREMENTS` is data; a figure in a rule is taken from the code by its name, so words and code cannot drift apart. A limit may be set by
three layers, each of which can only tighten: the code (`limits.HARD` and the named constants of the supervisor), the stimulator as its
maker states it, and the settings that a clinician signs. The tightest is in force; of equal ones the more basic one is named.

Tests name the requirements that they prove: `@pytest.mark.safety("A1", ...)`. Only a source checkout has tests.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from controller import guard, limits, messages, people, supervisor

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from drivers.base import StimulatorLimits

PROPOSED = "proposed, needs a clinician's signature"
HARD, DEVICE, PRESCRIPTION = "hard limit", "device", "prescription"
NO_TESTS = "the tests are in the source checkout, which this is not"
CHECKOUT = Path(__file__).resolve().parents[1]


class Limit(NamedTuple):
    """A figure that is in force.

    Attributes
    ----------
    what : str
        In words.
    name : str
        In `limits.HARD`, or a constant of `limits`, `supervisor`, `guard`, `messages`, `people`. "min_..." is a least value, the others are
        at most.
    prescribed : str
        Where the settings' guard view has it; "trains.KEY" stands for that figure of the trains. Empty = no setting tightens it.
    device : str
        The field of `StimulatorLimits`; empty = none.
    """

    what: str
    name: str
    prescribed: str = ""
    device: str = ""


class Requirement(NamedTuple):
    """One safety requirement. `{name}` in the rule stands for a figure of the code."""

    number: str
    hazard: str
    rule: str
    limits: tuple[Limit, ...] = ()


def _same(what: str, name: str) -> Limit:
    """A limit that the settings know by the code's own name."""
    return Limit(what, name, name)


REQUIREMENTS = (
    # --- A: what may leave at all
    Requirement(
        "A1",
        "burn, pain",
        "a pulse's current is above 0 and at most {max_current_ua}, less where device, prescription or train say so",
        (Limit("current", "max_current_ua", "max_current_ua", "max_current_ua"),),
    ),
    Requirement(
        "A2",
        "burn, pain",
        "a phase lasts {min_phase_width_us} to {max_phase_width_us}, and exactly what its train prescribes",
        (
            Limit("phase", "min_phase_width_us", "trains.phase_width_us", "min_phase_width_us"),
            Limit("phase", "max_phase_width_us", "trains.phase_width_us", "max_phase_width_us"),
        ),
    ),
    Requirement(
        "A3",
        "tetanus, too much charge",
        "{min_pulse_rate_mhz} to {max_pulse_rate_mhz}; at the electrode never two pulses within {min_pulse_spacing_ns}, whoever asked",
        (
            Limit("rate", "min_pulse_rate_mhz", "trains.pulse_rate_mhz"),
            Limit("rate", "max_pulse_rate_mhz", "trains.pulse_rate_mhz", "max_pulse_rate_hz"),
            Limit("spacing", "min_pulse_spacing_ns"),
        ),
    ),
    Requirement(
        "A4",
        "damaged tissue",
        "current times phase width, the charge of a phase, is at most {max_charge_nc}",
        (_same("charge", "max_charge_nc"),),
    ),
    Requirement(
        "A5",
        "burn",
        "rms current density on the smaller electrode is at most {max_rms_density_ua_per_mm2}; its area must be stated",
        (Limit("rms density", "max_rms_density_ua_per_mm2"),),
    ),
    Requirement(
        "A6",
        "burn",
        "into 500 ohm, power density stays below {max_power_density_w_per_m2}, a pulse's energy at most {max_pulse_energy_uj}",
        (Limit("power density", "max_power_density_w_per_m2"), Limit("energy", "max_pulse_energy_uj")),
    ),
    Requirement(
        "A7",
        "injury by direct current",
        "a pulse is two equal phases of opposite sign, without a device step of difference, as decoded again from its bytes",
    ),
    Requirement(
        "A8",
        "fatigue, pain",
        "a train ends by guard's own clock after at most {max_train_us}; what is missed of it is not made up for",
        (Limit("train", "max_train_us", "trains.duration_us"),),
    ),
    Requirement(
        "A9",
        "trains that pile up",
        "rest after each event, a look after each train; stimulation and events are counted in sliding windows, a person's too",
        (
            Limit("rest", "min_refractory_ns", "refractory_ns"),
            Limit("blind part of a look", "min_look_dead_ns", "look_dead_ns"),
            Limit("look", "min_look_ns", "look_ns"),
            _same("one event", "max_event_ns"),
            _same("in 60 s", "max_on_time_60s_ns"),
            _same("in 5 min", "max_duty_5min_ns"),
            _same("events in 10 min", "max_events_10min"),
            _same("automatic in 1 h", "max_auto_events_1h"),
        ),
    ),
    Requirement(
        "A10",
        "overdose",
        "stimulation, pulses and charge of a session and of 24 h, kept over every restart; at a limit: LOCKOUT, with its name",
        (
            _same("in a session", "max_on_time_session_ns"),
            _same("in a session", "max_charge_session_nc"),
            _same("pulses in a session", "max_pulses_session"),
            _same("in 24 h", "max_on_time_24h_ns"),
            _same("in 24 h", "max_charge_24h_nc"),
            _same("pulses in 24 h", "max_pulses_24h"),
        ),
    ),
    Requirement(
        "A11",
        "startle",
        "after arming a train starts at one device step and rises by {max_rise_percent_per_s} of its current; from train to train at "
        "most the smaller of {max_step_ua} and {max_step_percent} more",
        (
            Limit("rise", "max_rise_percent_per_s"),
            Limit("train to train", "max_step_ua"),
            Limit("train to train", "max_step_percent"),
        ),
    ),
    Requirement(
        "A12",
        "wrong number",
        "NaN, infinity, a fraction, text, true, too large, missing: the whole command or file is refused, nothing is cut to size",
    ),
    Requirement(
        "A13",
        "a way around the guard",
        "guard alone holds the port; each frame is decoded again by a second decoder and must be what was approved; other kinds of frames "
        "than the listed ones never leave",
    ),
    Requirement(
        "A14",
        "rules that loosen",
        "code, then device, then prescription: a layer can only tighten; a refusal names requirement and layer",
    ),
    # --- B: states
    Requirement("B1", "output unasked for", "start, restart, reconnecting and new settings lead to OFF or IDLE, never to ARMED"),
    Requirement(
        "B2",
        "output unasked for",
        "pulses in STIMULATING alone, reached from ARMED alone; one table says what each event does in each state",
    ),
    Requirement(
        "B3",
        "armed by mistake, or by the wrong person",
        "two steps within {OFFER_NS}: what is offered, then its number, with prescription named, electrodes looked at, self-test "
        "passed, and who it is proved within {PRESENCE_NS}",
        (Limit("between the steps", "OFFER_NS"), Limit("since identity", "PRESENCE_NS")),
    ),
    Requirement(
        "B4",
        "forgotten while armed",
        "without an act of a person arming ends after {max_arming_expires_ns}; a warning at {WARN_PERCENT} of it",
        (Limit("armed", "max_arming_expires_ns", "arming_expires_ns"), Limit("warning", "WARN_PERCENT")),
    ),
    Requirement(
        "B5",
        "a fault that heals by itself",
        "FAULT stays until a person clears it, with words; a fault of guard itself until guard is started again",
    ),
    Requirement(
        "B6",
        "fault, clear, fault, clear",
        "{FAULTS} faults within {FAULTS_NS}: only a new start of guard clears the last",
        (Limit("faults", "FAULTS"), Limit("within", "FAULTS_NS")),
    ),
    Requirement(
        "B7", "two causes at once", "of what comes at once the most severe is taken up first; the order is fixed and has every kind"
    ),
    Requirement(
        "B8",
        "nobody knows the state",
        "status, log and wire agree; a report older than {STATUS_STALE_NS} is shown as unknown",
        (Limit("report", "STATUS_STALE_NS"),),
    ),
    # --- C: button and stop
    Requirement(
        "C1",
        "cannot be stopped",
        "stop from anybody, in every state, heard before all else that waits; the last pulse within 50 ms of it (bench.faults measures); "
        "no answer of the device within {STOP_ANSWER_NS}: FAULT, switch it off by hand",
        (Limit("stop confirmed", "STOP_ANSWER_NS"),),
    ),
    Requirement(
        "C2", "a start that overtakes a stop", "what was asked for before a stop is void after it; the id of a command counts once"
    ),
    Requirement(
        "C3",
        "button stuck or bouncing",
        "contact bounce of {BOUNCE_NS} is one press; closed for {STUCK_NS} is one train and said to be stuck; closed at arming: not armed",
        (Limit("bounce", "BOUNCE_NS"), Limit("stuck", "STUCK_NS")),
    ),
    Requirement(
        "C4",
        "button lost",
        "a button that says nothing for {BUTTON_LOST_NS} is lost: said, and automatic mode is disarmed",
        (Limit("silent", "BUTTON_LOST_NS"),),
    ),
    Requirement("C5", "a press around the limits", "a press goes through the same checks as the loop and counts in the same dose"),
    Requirement("C6", "person against loop", "a press during a train changes nothing; during the rest it is refused, said and recorded"),
    Requirement(
        "C7",
        "action too late",
        "what was decided, pressed or measured more than {MAX_TRIGGER_AGE_NS} ago does nothing; settings may ask for less",
        (
            Limit("press", "MAX_TRIGGER_AGE_NS"),
            Limit("sample", "MAX_TRIGGER_AGE_NS", "max_sample_age_ns"),
            Limit("request", "MAX_TRIGGER_AGE_NS", "max_lateness_ns"),
        ),
    ),
    # --- D: signals
    Requirement(
        "D1",
        "a blind loop",
        "no sample for 50 ms, or for ten periods, is no data: nothing is asked for on it, a train in progress ends, and it is said",
    ),
    Requirement("D2", "a wrong rate", "the rate is measured by the stamps, over 2 s; off by more than 5 %, nothing is asked for"),
    Requirement(
        "D3", "garbage", "a sample that is no number, or no voltage of a muscle, makes its rule blind until the filters are clean again"
    ),
    Requirement("D4", "a stuck channel", "a channel unchanged for 20 ms is flat: its rule says so and decides nothing"),
    Requirement("D5", "saturation", "an amplifier at its end decides nothing; what our own pulses put into the signal is no spasm"),
    Requirement(
        "D6",
        "doubled or reordered samples",
        "a stamp twice, a step back beyond jitter, or more than 1 s forward: not believed for 1 s; the third within a minute ends the "
        "loop, and a person must arm automatic mode again",
    ),
    Requirement("D7", "a clock that jumps", "all times are of the clock that cannot be set; stamps that leave it are stale, old or new"),
    Requirement(
        "D8",
        "another stream under the name",
        "name, source, channels, unit, rate and kind are compared at the start, two that fit are refused; a stream that ends is never "
        "replaced by another: the loop ends, and a person must arm automatic mode again",
    ),
    Requirement(
        "D10",
        "a flood of samples",
        "what waits is bounded, the oldest is dropped and seen as a gap; a rate that is not the stated one is D2",
    ),
    # --- E: the stimulator
    Requirement(
        "E1",
        "output not known",
        "no answer within {ACK_TIMEOUT_NS}: stop, said {MORE_STOPS} times more, FAULT, and what was sent counts as delivered",
        (Limit("answer", "ACK_TIMEOUT_NS"), Limit("more stops", "MORE_STOPS")),
    ),
    Requirement("E2", "given twice", "no pulse and no train is ever sent again; nothing but a stop is repeated"),
    Requirement("E3", "electrode open or shorted", "the device's electrode error is a FAULT at once, before the next pulse"),
    Requirement(
        "E4",
        "output without a living loop",
        "automatic output ends {LEASE_NS} after the loop's last sign of life; a frame is one pulse, so without guard there is none",
        (Limit("lease", "LEASE_NS"),),
    ),
    Requirement("E5", "stale commands in a queue", "one pulse on its way at most; a stop drops what the port has not taken"),
    Requirement("E6", "another box", "model, serial number and firmware are asked for again at each arming; another box is a FAULT"),
    # --- F: processes, time, power
    Requirement(
        "F1",
        "loop hangs",
        "the loop's own step gives a sign of life, {BEAT_DUE_NS} apart at most when all is well; after {LEASE_NS} without one "
        "automatic output ends, and that is said",
        (Limit("sign of life due", "BEAT_DUE_NS"), Limit("lease", "LEASE_NS")),
    ),
    Requirement(
        "F2",
        "a process dies",
        "whichever it is and whenever: output ends within {LEASE_NS}, and nothing is armed until a person arms",
        (Limit("lease", "LEASE_NS"),),
    ),
    Requirement(
        "F3",
        "loop slow",
        "signs of life more than {LATE_NS} late are counted; one {VERY_LATE_NS} late, or more than {MAX_LATE} in {LATE_WINDOW_NS}: "
        "automatic mode pauses until none was late for {PUNCTUAL_NS}; {PAUSES} pauses in {PAUSES_NS}: off. "
        "Real-time priority is asked for, a refusal shown",
        (
            Limit("late, counted", "LATE_NS"),
            Limit("late, pause", "VERY_LATE_NS"),
            Limit("times late", "MAX_LATE"),
            Limit("within", "LATE_WINDOW_NS"),
            Limit("punctual after", "PUNCTUAL_NS"),
            Limit("pauses, then off", "PAUSES"),
            Limit("pauses within", "PAUSES_NS"),
        ),
    ),
    Requirement(
        "F5",
        "disk full",
        "no arming while less than 2 GB, or than two hours of recording, are free; what is not on the disk is not stimulated",
    ),
    Requirement(
        "F6",
        "a recording is lost",
        "what was written outlasts a kill at any byte, and a power cut when it is older than 250 ms; a torn end is cut, nothing else "
        "is lost",
    ),
    Requirement("F7", "a lying record", "every gap is counted: samples in = samples on disk + gaps, which `calmloop verify` proves"),
    Requirement("F8", "power fails and comes back", "not armed; dose and lockout come back from the journal, never less than was given"),
    Requirement("F9", "wrong settings", "one wrong, unknown or missing figure: nothing starts, every mistake is named with its line"),
    Requirement(
        "F10", "wrong build", "the modules that decide about output are hashed at the start, shown and recorded; `calmloop version --sbom`"
    ),
    # --- G: people, and what is on record
    Requirement(
        "G1",
        "an intruder",
        "the page is served to this machine alone, but where an interface and a certificate are named; whoever has not paired can read how "
        "things are, and stop, nothing else",
    ),
    Requirement(
        "G2",
        "the wrong role",
        "guard's own table says which role may say what, and what is not in it nobody may; a token is looked up each time",
    ),
    Requirement(
        "G3", "another site in the browser", "Host and Origin must be the page's own, for websockets too; nothing changes by reading"
    ),
    Requirement(
        "G4",
        "guessing",
        "a code of {CODE_DIGITS} digits, shown at the bedside alone, pairs once, within {CODE_NS}; {CODE_TRIES} wrong ones end it",
        (Limit("code's life", "CODE_NS"), Limit("wrong codes", "CODE_TRIES"), Limit("digits", "CODE_DIGITS")),
    ),
    Requirement(
        "G5",
        "a crowd at the door",
        "the page's process holds no stimulator and no loop and changes no file; connections, messages and waiting are bounded; at most "
        "{MAX_PEOPLE} pair",
        (Limit("people", "MAX_PEOPLE"),),
    ),
    Requirement(
        "G6",
        "two clinicians",
        "one holds control; to take it over is a word of its own, on record; whoever ends output needs none; a change of a "
        "prescription that is not in force any more is refused",
    ),
    Requirement(
        "G7",
        "deeds denied",
        "arming is on the disk before it takes effect, within {AUDIT_NS} or not at all; no train begins while guard's rows wait longer "
        "than {RECORD_LAG_NS}, or more than {MORE_TRAINS} train is not there yet",
        (Limit("arming", "AUDIT_NS"), Limit("rows", "RECORD_LAG_NS"), Limit("trains not there", "MORE_TRAINS")),
    ),
    Requirement(
        "G8",
        "records altered",
        "each row carries a keyed hash of all before it, their head is in the recording; `calmloop audit verify` names the first bad row",
    ),
    Requirement(
        "G11", "what is nobody's business gets out", "no token is kept or written down, only its hash; recordings are the user's alone"
    ),
)
NUMBERS = tuple(requirement.number for requirement in REQUIREMENTS)

OTHERS = Requirement(  # figures to be signed that no number of the requirements stands for
    "-",
    "stimulation makes the spasm worse (paradox)",
    "a muscle that shows {RISE_PERCENT} more in {RISES} looks running: refused, and the rule is locked out until a person arms",
    (
        Limit("more than in the look before", "RISE_PERCENT"),
        Limit("looks running", "RISES"),
        Limit("after a look, still the same event", "CONTINUE_NS"),
    ),
)


# --- figures ----------------------------------------------------------------------------------------------------------------------
def figure(name: str) -> int | None:
    """Value of a hard limit or named constant; None where this build has none of that name."""
    for place in (limits.HARD, limits, supervisor, guard, messages, people):
        value = getattr(place, name, None)
        if type(value) is int:
            return value
    return None


def say(name: str, value: int | None) -> str:
    """A figure for people; the unit is in its name."""
    if value is None:
        return f"(no {name} in this build)"
    parts = name.lower()
    for ending, divisor, unit in (
        ("ua_per_mm2", 10, "mA/cm2"),
        ("w_per_m2", 10_000, "W/cm2"),
        ("percent_per_s", 1, "% a second"),
        ("percent", 1, "%"),
        ("uj", 1000, "mJ"),
        ("ua", 1000, "mA"),
        ("mhz", 1000, "Hz"),
        ("mm2", 100, "cm2"),
    ):
        if parts.endswith(ending):
            return f"{value / divisor:g} {unit}"
    if parts.endswith("nc"):
        return f"{value / 1000:g} uC" if value < 10**6 else f"{value / 10**6:g} mC"
    if parts.endswith("phase_width_us"):
        return f"{value} us"
    if parts.endswith(("_ns", "_us")):
        return _time(value if parts.endswith("_ns") else value * 1000)
    return str(value)


def _time(ns: int) -> str:
    if ns >= 120 * 10**9 and ns % (60 * 10**9) == 0:
        return f"{ns // (60 * 10**9)} min"
    return f"{ns / 10**9:g} s" if ns >= 10**9 else f"{ns / 10**6:g} ms"


def rule(requirement: Requirement) -> str:
    """The rule with its figures filled in."""
    return re.sub(r"\{(\w+)\}", lambda found: say(found[1], figure(found[1])), requirement.rule)


class InForce(NamedTuple):
    """A limit as it is in force: value, the layer that set it, and what each layer says."""

    limit: Limit
    value: int | None
    layer: str
    layers: dict[str, int]

    @property
    def text(self) -> str:
        """In words."""
        bound = {"min": "at least ", "max": "at most "}.get(self.limit.name.lower()[:3], "")
        if self.limit.name == "max_power_density_w_per_m2":
            bound = "below "  # as the guidance has it, and `pulse_reasons`
        return f"{self.limit.what} {bound}{say(self.limit.name, self.value)}"


def in_force(limit: Limit, view: dict[str, Any] | None = None, device: StimulatorLimits | None = None) -> InForce:
    """Ask each layer, most basic first; the tightest is in force.

    Parameters
    ----------
    view : dict, optional
        The settings as guard gets them.
    device : StimulatorLimits, optional
        What the stimulator can do.
    """
    least = limit.name.startswith("min_")
    hard = figure(limit.name)
    layers = {} if hard is None else {HARD: hard}
    if device and limit.device:
        layers[DEVICE] = int(getattr(device, limit.device) * (1000 if limit.device.endswith("_hz") else 1))  # rates are in mHz
    if view and limit.prescribed:
        prescribed = _prescribed(view, limit.prescribed, least)
        if prescribed is not None:
            layers[PRESCRIPTION] = prescribed
    if not layers:
        return InForce(limit, None, HARD, layers)
    layer = (max if least else min)(layers, key=layers.__getitem__)  # of equal ones the first, which is the more basic one
    return InForce(limit, layers[layer], layer, layers)


def _prescribed(view: dict[str, Any], key: str, least: bool) -> Any:
    """A figure of the settings; of all trains the one that comes nearest to the limit from inside."""
    table, _, name = key.rpartition(".")
    if table:
        of_trains = [train[name] for train in view[table].values()]
        return (min if least else max)(of_trains)
    return view.get(name)


# --- tests ------------------------------------------------------------------------------------------------------------------------
class Mark(NamedTuple):
    """One test that names a requirement."""

    file: str
    test: str
    number: str


def marks(folder: Path) -> Iterator[Mark]:
    """Read `@pytest.mark.safety(...)` of every test in `folder`, without running anything.

    Marks of a class or a module (`pytestmark`) count for each test in it. Raises `ValueError` for a mark on something that is no test.
    """
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        of_module = [
            number
            for node in tree.body
            if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)
            for number in _numbers(node.value)
        ]
        yield from _marked(path.name, "", tree.body, of_module)


def _marked(file: str, prefix: str, body: list[ast.stmt], inherited: list[str]) -> Iterator[Mark]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        numbers = [number for decorator in node.decorator_list for number in _numbers(decorator)]
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _marked(file, f"{prefix}{node.name}::", node.body, inherited + numbers)
        elif not isinstance(node, ast.ClassDef) and node.name.startswith("test"):
            for number in dict.fromkeys(inherited + numbers):
                yield Mark(file, prefix + node.name, number)
        elif numbers:
            raise ValueError(f"{file}: {prefix}{node.name} carries a safety mark and is no test")


def _numbers(node: ast.expr) -> list[str]:
    """Numbers of the safety marks in an expression: a decorator, or what `pytestmark` is set to."""
    return [
        argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ast.unparse(argument)
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.safety"
        for argument in call.args
    ]


def proofs() -> dict[str, list[str]] | None:
    """Tests by requirement, as pytest names them; None where there is no source checkout."""
    folder = CHECKOUT / "tests"
    if not (CHECKOUT / "pyproject.toml").is_file() or not folder.is_dir():
        return None
    found: dict[str, list[str]] = {number: [] for number in NUMBERS}
    for mark in marks(folder):
        found.setdefault(mark.number, []).append(f"tests/{mark.file}::{mark.test}")
    return found


# --- the command ------------------------------------------------------------------------------------------------------------------
def table(view: dict[str, Any] | None = None, device: StimulatorLimits | None = None) -> dict[str, Any]:
    """Every requirement with its rule, limits in force and tests, as plain JSON; arguments as for `in_force`."""
    tests = proofs()
    rows = []
    absent: set[str] = set()
    for requirement in REQUIREMENTS:
        limits = [in_force(limit, view, device) for limit in requirement.limits]
        absent |= {one.limit.name for one in limits if one.value is None}
        rows.append(
            {
                "number": requirement.number,
                "hazard": requirement.hazard,
                "rule": rule(requirement),
                "limits": [
                    {"text": one.text, "name": one.limit.name, "value": one.value, "set_by": one.layer, "layers": one.layers}
                    for one in limits
                ],
                "tests": None if tests is None else tests[requirement.number],
            }
        )
    unproved = [] if tests is None else [number for number in NUMBERS if not tests[number]]
    return {
        "ok": not unproved and not absent,
        "device": device.model if device else None,
        "requirements": rows,
        "unproved": unproved,
        "note": NO_TESTS if tests is None else "",
    }


def limits_table() -> list[dict[str, Any]]:
    """Every figure that a clinician must sign, once, with what it is for."""
    rows: dict[str, dict[str, Any]] = {}
    for requirement in (*REQUIREMENTS, OTHERS):
        for limit in requirement.limits:
            value = figure(limit.name)
            row = rows.setdefault(
                limit.name,
                {"name": limit.name, "value": value, "text": say(limit.name, value), "numbers": [], "for": [], "status": PROPOSED},
            )
            row["numbers"] += [requirement.number] if requirement.number not in row["numbers"] else []
            row["for"].append(f"{requirement.hazard}: {limit.what}")
    return list(rows.values())


WIDTHS = (4, 62, 36, 12)
GAP = "  "  # 120 columns in all


def render(facts: dict[str, Any], config: str | None) -> str:
    """The table for people, at most 120 columns wide."""
    where = f"{config} on a {facts['device']}" if config else "hard limits alone, no settings were named"
    head = textwrap.wrap(f"In force: {where}. Each hard limit is {PROPOSED}.", 120, break_long_words=False, break_on_hyphens=False)
    lines = [*head, "", _line(("", "rule", "limit in force", "set by"))]
    for row in facts["requirements"]:
        words = textwrap.wrap(row["rule"], WIDTHS[1])
        limits: list[tuple[str, str]] = []
        for one in row["limits"]:
            first, *more = textwrap.wrap(one["text"], WIDTHS[2])
            limits += [(first, one["set_by"]), *((part, "") for part in more)]
        numbers = [row["number"]]
        for number, word, limit in zip_longest(numbers, words, limits):
            lines.append(_line((number or "", word or "", *(limit or ("", "")))))
        if row["tests"] is not None:
            lines += _wrapped(_tests(row["tests"]))
    lines += ["", *_wrapped(f"without a test: {', '.join(facts['unproved'])}")] if facts["unproved"] else []
    lines += ["", facts["note"]] if facts["note"] else []
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent=" " * 6, subsequent_indent=" " * 8, break_on_hyphens=False)


def _tests(names: list[str]) -> str:
    """Tests by file, in one line."""
    if not names:
        return "NO TEST"
    by_file: dict[str, list[str]] = {}
    for name in names:
        file, _, test = name.removeprefix("tests/").partition("::")
        by_file.setdefault(file, []).append(test)
    return "; ".join(f"{file}: {', '.join(tests)}" for file, tests in by_file.items())


def command(args: argparse.Namespace) -> int:
    """`calmloop safety [--table | --limits] [CONFIG] [--json]`."""
    if args.limits:
        rows = limits_table()
        if args.json:
            print(json.dumps({"status": PROPOSED, "limits": rows}))
        else:
            print(f"Each figure is {PROPOSED}.\n")
            for row in rows:
                print(f"{row['name']:<30}  {row['text']:<14}  {' '.join(row['numbers']):<8}  {'; '.join(row['for'])}")
        return 0
    view = device = None
    if args.config:
        from controller import settings
        from drivers.stimulators import limits_of

        try:
            view = settings.guard_view(settings.load(args.config))
        except settings.SettingsError as error:
            print(json.dumps({"ok": False, "problems": error.problems}) if args.json else error, file=None if args.json else sys.stderr)
            return 2
        device = limits_of(view["driver"], view["options"])
    facts = table(view, device)
    print(json.dumps(facts | {"config": args.config}) if args.json else render(facts, args.config))
    return 0 if facts["ok"] else 1
