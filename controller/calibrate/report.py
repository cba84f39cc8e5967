"""What `calmloop calibrate` found, in words for people, and all of it as plain JSON."""

from __future__ import annotations

from math import isfinite
from textwrap import wrap
from typing import Any

import numpy as np

from controller import settings
from controller.calibrate import toml
from controller.settings import EmgRule, ForceRule, Settings

WIDTH = 110
WHY_NOT = {
    "gap": "there is a gap in the signal",
    "no number": "its samples are no numbers",
    "flat": "the signal stands still: is a lead off?",
    "motion": "it comes with a slow swing, as of a cable that moves, and does not outlast it",
    "ecg": "it comes at the pace of a heart",
    "mains": "it repeats with the mains",
    "too brief": "it is too short: a spike, not a muscle",
    "louder rest": "it is like the rest, only louder",
    "rises slowly": "it rises more slowly than a spasm may (rise_ms, rise_ratio)",
    "intended": "the intent channel was active: it is taken for a movement on purpose",
    "not at rest again": "the muscle was not at rest again after the activity before",
    "learning": "the detector was still learning what rest is: leave 3 s of rest before it",
    "bad": "the signal was not fit to be heard",
}


def text(facts: dict[str, Any]) -> str:
    """The whole report."""
    lines = [f"{facts['signal']}: {facts['seconds']:.1f} s; " + ", ".join(f"{n} {a:.1f}-{b:.1f} s" for n, (a, b) in facts["parts"].items())]
    lines += _wrapped([f"Note: {note}" for note in facts["notes"]], "")
    if facts["refused"]:
        lines += ["", "REFUSED: nothing can be derived from this signal."]
        remedies = {one.remedy: [each for each in facts["refused"] if each.remedy == one.remedy] for one in facts["refused"]}
        for remedy, findings in remedies.items():
            lines += _wrapped([f"{one.place}: {one.text}." for one in findings], "  ", "- ")
            lines += _wrapped([remedy], "    ")
        return "\n".join(lines)
    for rule in facts["rules"]:
        if rule.name in facts["strengths"]:
            lines += _of_rule(rule, facts)
    lines += ["", "What this cannot say: one quiet period, one contraction and at most one spasm were looked at. Another posture, a harder"]
    lines += ["movement, another day are other signals. Nothing was stimulated; a clinician decides which of these figures to use."]
    if facts["falls_short"]:
        lines += ["", f"FALLS SHORT: {'; '.join(facts['falls_short'])}. These figures are not fit for a bed; nothing was written."]
    lines += ["", "Settings", *(f"  {line}".rstrip() for line in toml.snippet(facts["changes"], facts["proposed"]).split("\n"))]
    if facts.get("written"):
        lines += [
            "",
            f"Written: {facts['written']}, which is {facts['config']} with these figures. Next: calmloop check {facts['written']}",
        ]
    return "\n".join(lines)


def _wrapped(paragraphs: list[str], indent: str, mark: str = "") -> list[str]:
    hanging = indent + " " * len(mark)
    return [line for one in paragraphs for line in wrap(one, WIDTH, initial_indent=indent + mark, subsequent_indent=hanging or "  ")]


def _of_rule(rule: EmgRule | ForceRule, facts: dict[str, Any]) -> list[str]:
    strengths, proposed = facts["strengths"][rule.name], facts["proposed"]
    of = " + ".join(rule.channels) if isinstance(rule, EmgRule) else rule.channel
    lines = ["", f"Rule {rule.name!r} ({of})"]
    lines += _wrapped([_strength(rule, strengths, proposed)], "  ")
    lines += ["", "  Proposed"]
    changes = [one for one in facts["changes"] if one.rule == rule.name]
    for one in changes:
        was = "as it was" if one.before == one.after else f"was {settings.toml(one.before)}"
        lines.append(f"    {one.key} = {settings.toml(one.after)}   ({was})")
        lines += _wrapped([one.why], "      ")
    lines += ["", "  What the detector did with these figures, on this very signal"]
    rows = [row for row in facts["happened"] if row["rule"] == rule.name]
    lines += _wrapped([sentence for row in rows if (sentence := happened(row, rule, proposed))], "    ", "- ")
    lines += ["", "  What to expect"]
    lines += _wrapped(_expectations(rule, facts), "    ", "- ")
    return lines


def _strength(rule: EmgRule | ForceRule, s: dict[str, Any], config: Settings) -> str:
    parts = [part for part in ("contraction", "spasm") if f"{part}_uv" in s or f"{part}_above_baseline" in s]
    if isinstance(rule, ForceRule):
        unit = config.force.unit if config.force else ""
        words = [f"rest moves by up to {s['quiet_above_baseline']:.2g} {unit}"]
        words += [f"the {p} reaches {s[f'{p}_above_baseline']:.3g} {unit}, rising by {s[f'{p}_rate_per_s']:.3g} {unit}/s" for p in parts]
        return f"Signal good: {'; '.join(words)}."
    words = ["rest " + ", ".join(f"{name} {value:.3g}" for name, value in s["rest_uv"].items()) + " uV"]
    words += [f"{p} {s[f'{p}_uv']:.3g} uV, {s[f'{p}_over_rest']:.3g} times rest ({s[f'{p}_over_rest_db']:.0f} dB)" for p in parts]
    return f"Signal good. Strength above {rule.high_pass_hz:g} Hz: {'; '.join(words)}."


def happened(row: dict[str, Any], rule: EmgRule | ForceRule, config: Settings) -> str:
    """What the detector did in one part; empty where there is nothing to say."""
    part, triggers = row["part"], row["triggers_s"]
    at = ", ".join(f"{t_s:.2f} s" for t_s in triggers[:5]) + (" ..." if len(triggers) > 5 else "")
    if part == "elsewhere":
        again = "if the person was at rest then, choose a quiet part with these moments in it"
        return f"outside the parts you named: {_times(len(triggers))}, at {at}; {again}" if triggers else ""
    if part == "quiet":
        deaf = f", of which it could not decide in {row['deaf_s']:.1f} s (it learns what rest is)" if row["deaf_s"] > 0.05 else ""
        on = "; IT WAS ON ALREADY WHEN THE PART BEGAN" if row["on_before"] else ""
        return f"rest: {_times(len(triggers))} in {row['seconds']:.1f} s{deaf}{f', at {at}' if triggers else ''}{on}"
    began = "" if row["began_s"] is None else f" (it began at about {row['began_s']:.2f} s)"
    if row["on_before"]:
        return f"{part}: it was on already when the {part} began{began}, so nothing can be said: leave more rest before it"
    if row["latency_ms"] is not None:
        more = f"; {_times(len(triggers))} in all" if len(triggers) > 1 else ""
        move = ". A movement on purpose like this one WILL be answered" if part == "contraction" else ""
        return f"{part}: TRIGGERS {row['latency_ms']:.0f} ms after it began{began}{more}{move}"
    if triggers:
        return f"{part}: triggers at {at}, before it began{began}"
    return f"{part}: does not trigger{began}: {_why_not(row, rule, config)}"


def _why_not(row: dict[str, Any], rule: EmgRule | ForceRule, config: Settings) -> str:
    if row["why_not"] != "weak":
        return WHY_NOT[row["why_not"]]
    if isinstance(rule, ForceRule):
        now = next(one for one in config.force_rules if one.name == rule.name)
        unit = config.force.unit if config.force else ""
        words = f"above {now.threshold:g} {unit} it never rises by {now.rate_per_s:g} {unit}/s"
        return f"{words} (it reaches {row['most']:.3g} {unit}, and at any height {row['most_rate']:.3g} {unit}/s)"
    floor = next(one for one in config.emg_rules if one.name == rule.name).floor_uv
    share = 100.0 * row["most"] / row["threshold"]
    return f"it is too weak: at most {share:.0f} % of the evidence that is asked for (floor_uv is {floor:g})"


def _times(n: int) -> str:
    return f"{n} trigger{'' if n == 1 else 's'}"


def _expectations(rule: EmgRule | ForceRule, facts: dict[str, Any]) -> list[str]:
    out = []
    if rule.name in facts["expected"]:
        e = facts["expected"][rule.name]
        who = "a spasm as strong as this one" if e["of"] == "spasm" else "a spasm as strong as this contraction"
        if e["below_table"]:
            out.append(f"{who} is too weak to be counted on: fewer than {100 * e['found']:.0f} of 100 such spasms were found")
        else:
            found = "all" if e["found"] >= 0.9995 else f"{100 * e['found']:.0f} of 100"
            # a strength beyond what was measured is not extrapolated
            out.append(
                f"{who}: half of such spasms are decided within {e['median_ms']:.0f} ms, 95 of 100 within {e['p95_ms']:.0f} ms;"
                f" {found} were found within a quarter of a second"
            )
        gate = ", with rise_ms = 40 and rise_ratio = 2.7" if e["gated"] else ""
        out.append(f"that is no promise: {e['source']}{gate}; not people")
    if isinstance(rule, EmgRule):
        now = next(one for one in facts["proposed"].emg_rules if one.name == rule.name)
        if now.rise_ms:
            uv = now.rise_ratio * max(facts["strengths"][rule.name]["rest_pooled_uv"], now.floor_uv)
            slow = (
                f"a spasm that stays below {now.rise_ratio:g} times rest ({uv:.3g} uV), or needs more than {now.rise_ms:g} ms to get there,"
            )
            out.append(f"{slow} is NOT answered: that is the price of leaving slower movements alone")
        n = rule.false_alarms_per_h
        quiet = facts["parts"]["quiet"]
        out.append(
            f"false alarms: {n:g} in an hour of quiet are asked for (false_alarms_per_h, about one in {1 / n:.3g} h);"
            f" {quiet[1] - quiet[0]:.0f} s of rest can neither show nor deny that"
        )
    else:
        out.append("false alarms: a force rule has no figure for them, and this short quiet period shows none")
    return out


def plain(facts: dict[str, Any]) -> dict[str, Any]:
    """All figures, as JSON: NaN becomes null."""
    out = {key: facts[key] for key in facts if key not in ("rules", "proposed", "refused", "changes")}
    out["rules"] = [rule.name for rule in facts["rules"]]
    out["refused"] = [one._asdict() for one in facts["refused"]]
    if "changes" in facts:
        out["changes"] = [one._asdict() for one in facts["changes"]]
        out["toml"] = toml.snippet(facts["changes"], facts["proposed"])
    return dict(_finite(out))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not isfinite(value) else value
