"""Whether a recording is fit to be calibrated on, part by part, channel by channel, rule by rule: all that is wrong at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from controller.calibrate import checks
from controller.calibrate.checks import Finding
from controller.calibrate.signals import Muscle, needed
from controller.settings import EmgRule, ForceRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controller.calibrate.signals import Signals, Span
    from controller.settings import Settings


def problems(config: Settings, rules: tuple[EmgRule | ForceRule, ...], signals: Signals, parts: dict[str, Span]) -> list[Finding]:
    """All that speaks against deriving anything from this signal."""
    found = [one for name, (begin_s, end_s) in parts.items() for one in checks.short(name, end_s - begin_s)]
    if found:
        return found
    for name, span in parts.items():
        near_s = signals.begin_s + max(0.0, span[0] - 1.0), signals.begin_s + span[1]
        if pulses := int(np.count_nonzero((signals.pulses_s >= near_s[0]) & (signals.pulses_s < near_s[1]))):
            text = f"{pulses} pulses of our own stimulator are in it, or within the second before"
            found.append(Finding("stimulated", "all channels", name, float(pulses), text, "Choose a part without."))
    if emg_rules := [rule for rule in rules if isinstance(rule, EmgRule)]:
        assert config.emg
        found += _emg_problems(config.emg.channels, config.emg.sample_rate_hz, emg_rules, signals, parts)
    if signals.force_t_s.size and config.force:
        for law in [rule for rule in rules if isinstance(rule, ForceRule)]:
            found += _force_problems(law, config.force.channels, config.force.sample_rate_hz, signals, parts)
    return found


def remarks(found: list[Finding]) -> list[str]:
    """What does not refuse the signal and is worth a word, once for all channels that it is true of, with the largest figure."""
    kinds = {
        (one.what, one.part): [each for each in found if not each.refuses and each.what == one.what] for one in found if not one.refuses
    }
    out = []
    for (_, part), alike in kinds.items():
        names = ", ".join(one.channel for one in alike)
        out.append(f"{names}, {part} part: {max(alike, key=lambda one: one.figure).text}")
    return out


def _emg_problems(
    channels: tuple[str, ...], rate_hz: float, rules: list[EmgRule], signals: Signals, parts: dict[str, Span]
) -> Iterator[Finding]:
    used = needed(tuple(rules))
    broken: set[str] = set()
    holes = False
    for part, span in parts.items():
        mine = signals.of(span, signals.emg_t_s)
        gaps = list(checks.stamps("EMG", part, signals.emg_t_s[mine], rate_hz, span[1] - span[0]))
        holes = holes or bool(gaps)
        yield from gaps
        for name in used:
            for one in checks.samples(name, part, signals.emg_uv[mine, channels.index(name)], rate_hz):
                broken.add(name)
                yield one
    if holes:
        return
    judged: set[str] = set()
    for rule in rules:
        if broken & set(rule.channels):
            continue
        muscle = Muscle.of(rule, channels, rate_hz, signals, parts)
        for i, name in enumerate(rule.channels):
            if name not in judged:
                raw = signals.emg_uv[muscle.mine["quiet"], channels.index(name)]
                doubts = list(checks.quiet(name, raw, muscle.heard_uv[muscle.mine["quiet"], i], rate_hz, parts["quiet"][0]))
                broken |= {name} if any(one.refuses for one in doubts) else set()
                yield from doubts
            judged.add(name)
        if broken & set(rule.channels):
            continue
        everywhere = np.any(list(muscle.mine.values()), axis=0)
        yield from checks.copies(rule.channels, muscle.heard_uv[everywhere])
        for part in parts:
            if part != "quiet":
                yield from checks.activity(f"rule {rule.name!r}", part, muscle.power(part), muscle.power("quiet"), rate_hz)


def _force_problems(
    law: ForceRule, channels: tuple[str, ...], rate_hz: float, signals: Signals, parts: dict[str, Span]
) -> Iterator[Finding]:
    x = signals.force[:, channels.index(law.channel)]
    swings: dict[str, float] = {}
    for part, span in parts.items():
        mine = signals.of(span, signals.force_t_s)
        gaps = list(checks.stamps("force", part, signals.force_t_s[mine], rate_hz, span[1] - span[0]))
        yield from gaps
        if bad := int(np.count_nonzero(~np.isfinite(x[mine]))):
            text = f"{bad} of {mine.sum()} samples are no numbers"
            yield Finding("no number", law.channel, part, float(bad), text, "Look at the sensor and its program.")
        elif not gaps:
            swings[part] = float(np.ptp(x[mine]))
    if len(swings) < len(parts):
        return
    if not any(swings.values()):
        text = "flat, the force never changes"
        yield Finding("flat", law.channel, "whole", 0.0, text, "Is the sensor plugged in and switched on?")
        return
    for part, swing in swings.items():
        if part != "quiet" and swing < 2.0 * checks.STRONGER * swings["quiet"]:
            text = f"not stronger than rest: it changes by {swing:.3g}, and in the quiet part by {swings['quiet']:.3g}"
            remedy = "Is the limb fastened to the sensor, and was it this muscle? Name the EMG rule alone with --rule where it cannot be."
            yield Finding("not stronger than rest", law.channel, part, swing, text, remedy)
