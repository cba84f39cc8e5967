"""`calmloop calibrate`: from rest, a voluntary contraction and (if any) a spasm, figures of the rules, and what the detector made of them.

`signals` reads, or `live` records at the bed; `fit` refuses a signal that nothing should be derived from (by `checks`); `figures` derives;
`heard` runs the real detector with the result over the same signal, so that what the report says of triggers happened; `report` puts it
into words and `toml` into the settings. Nothing here stimulates, talks to guard or needs one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import settings
from controller.calibrate import figures, fit, heard, report, signals, toml
from controller.calibrate.signals import UseError
from drivers.base import DriverError

if TYPE_CHECKING:
    import argparse

    from controller.calibrate.signals import Signals, Span
    from controller.settings import EmgRule, ForceRule, Settings

PARTS = ("quiet", "contraction", "spasm")


def command(args: argparse.Namespace) -> int:
    """`calmloop calibrate [FILE] --config BED.toml ...`; 0 = settings are proposed, 1 = refused or they fall short, 2 = wrong use."""
    try:
        config = settings.load(args.config)
        rules = signals.chosen(config, args.rule)
        recorded, parts = _recorded(args, config, rules)
        facts = calibrated(config, rules, recorded, parts, args.freeze)
        facts |= {"config": args.config, "written": None}
        if args.write and facts["ok"]:
            text = Path(args.config).read_bytes().decode("utf-8-sig")
            toml.write(args.write, toml.replaced(text, facts["changes"], config, facts["proposed"]), args.overwrite)
            facts["written"] = str(args.write)
    except (UseError, DriverError, settings.SettingsError) as error:
        print(json.dumps({"ok": False, "error": str(error)}) if args.json else error, file=sys.stdout if args.json else sys.stderr)
        return 2
    print(json.dumps(report.plain(facts)) if args.json else report.text(facts))
    return 0 if facts["ok"] else 1


def _recorded(args: argparse.Namespace, config: Settings, rules: tuple[EmgRule | ForceRule, ...]) -> tuple[Signals, dict[str, Span]]:
    given = {name: getattr(args, name) for name in PARTS if getattr(args, name) is not None}
    if args.write and args.write.exists() and not args.overwrite:  # said before anybody contracts a muscle for it
        raise UseError(f"{args.write}: exists already; choose another name, or say --overwrite")
    if args.file is None:
        if given:
            raise UseError(f"--{next(iter(given))} is a part of a recording: name the file")
        from controller.calibrate import live

        return live.recorded(config, rules, args.provoke, args.yes)
    if args.yes or args.provoke:
        raise UseError("--yes and --provoke are for the bed: with a file name its parts, --quiet, --contraction and --spasm")
    if missing := [f"--{name}" for name in PARTS[:2] if name not in given]:
        raise UseError(f"{' and '.join(missing)} missing: say where in {args.file} that is, for example {missing[0]} 0-10 (s)")
    recorded = signals.read(Path(args.file), config, rules, args)
    signals.fits(given, recorded)
    return recorded, given


def calibrated(
    config: Settings, rules: tuple[EmgRule | ForceRule, ...], recorded: Signals, parts: dict[str, Span], freeze: bool = False
) -> dict[str, Any]:
    """All that was found, as `report` takes it; `ok` is False where the signal was refused or the proposal falls short."""
    facts: dict[str, Any] = {
        "ok": False,
        "signal": recorded.name,
        "parts": parts,
        "seconds": recorded.length_s,
        "notes": list(recorded.notes),
        "rules": rules,
    }
    found = fit.problems(config, rules, recorded, parts)
    facts["refused"] = [one for one in found if one.refuses]
    facts["notes"] += fit.remarks(found)
    if facts["refused"]:
        return facts
    derived = figures.derive(config, rules, recorded, parts, freeze)
    happened = heard.judge(derived.config, rules, recorded, parts)
    short = heard.falls_short(happened)
    return facts | {
        "ok": not short,
        "falls_short": short,
        "notes": facts["notes"] + derived.notes,
        "strengths": derived.strengths,
        "changes": derived.changes,
        "proposed": derived.config,
        "happened": happened,
        "expected": heard.expectations(derived.config, rules, derived.strengths),
    }
