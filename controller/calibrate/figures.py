"""Figures of the rules from what was recorded, each with its reason. The signal has passed `fit.problems`.

Where a figure can only be found by trying (how high a floor keeps rest silent, whether a gate tells contraction from spasm), the real
detector tries it (`heard.listen`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, floor, inf, isfinite, log10
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from controller import kernels, settings
from controller.calibrate import checks
from controller.calibrate.checks import mains, usual_power
from controller.calibrate.heard import COARSE_S, FINE_S, listen, onsets, within
from controller.calibrate.signals import Muscle
from controller.replay import DEFAULT_FLOOR
from controller.settings import EmgRule, ForceRule

if TYPE_CHECKING:
    from controller.calibrate.heard import Heard
    from controller.calibrate.signals import Floats, Signals, Span
    from controller.settings import Settings

FLOOR_STEP = 10.0 ** (1.0 / 20.0)  # 1 dB
FLOOR_MOST = 0.5  # of an activity's root mean square: 6 dB below it
MOSTLY = 0.5  # active for more of the time than this: rest cannot be learnt as it goes (`noise` takes the quietest third for rest)
ACTIVE_POWER = 4.0
OFF_LEAST, OFF_MOST = 1.5, 2.0  # rest's envelope reaches 1.4 for moments; what is more than twice rest is no end of a spasm
RISE_RATIOS = (2.7, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0)  # least: the settings' default
RISE_OF_SPASM = 0.6  # of a spasm's strength: what the gate asks for, at most (detection notes, section 4)
USUAL_RISE_MS = 40.0  # what bench.detection measures the gate with (detection notes, section 4)
RISE_ROOM = 1.25  # the gate is slower than the spasm by this, and faster than the contraction
RISE_LOW = 2.0  # in power: 3 dB above rest is where a rise begins (detection notes, section 4)
RATE_APART = 1.5  # of force: by so much must the spasm rise faster
WINDOW_S = 0.25  # half of the time that one sample of intent counts for
UNTOUCHED = {"threshold": 5000.0, "rate_per_s": 1e5}  # a force rule that sees all and decides nothing


class Change(NamedTuple):
    """One figure of a rule: what the settings said, what is proposed, and why."""

    rule: str
    key: str
    before: Any
    after: Any
    why: str


@dataclass
class Derived:
    """What `derive` found.

    Attributes
    ----------
    config : Settings
        The given ones with the proposed figures.
    changes : list of Change
    strengths : dict of rule's name to its figures, µV and ratios
    notes : list of str
    """

    config: Settings
    changes: list[Change] = field(default_factory=list)
    strengths: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def set(self, rule: EmgRule | ForceRule, why: str, **values: Any) -> None:
        """Put figures of a rule into the proposal."""
        for key, value in values.items():
            self.changes = [one for one in self.changes if (one.rule, one.key) != (rule.name, key)]
            self.changes.append(Change(rule.name, key, getattr(rule, key), value, why))
        self.config = with_figures(self.config, {rule.name: values})


def with_figures(config: Settings, figures: dict[str, dict[str, Any]]) -> Settings:
    """The same settings with other figures of some rules. Raises `SettingsError` where one is out of range."""
    rules = {
        table: tuple(rule.model_copy(update=figures.get(rule.name, {})) for rule in getattr(config, table))
        for table in ("emg_rules", "force_rules")
    }
    return settings.parse(config.model_copy(update=rules).to_toml(), "the proposed settings")


def derive(
    config: Settings, rules: tuple[EmgRule | ForceRule, ...], signals: Signals, parts: dict[str, Span], freeze: bool = False
) -> Derived:
    """Find figures for the chosen rules; the signal has passed `problems`."""
    out = Derived(config)
    for rule in rules:
        if isinstance(rule, EmgRule):
            _derive_emg(out, rule, signals, parts, freeze)
    laws = [rule for rule in rules if isinstance(rule, ForceRule)]
    if laws and signals.force_t_s.size:
        heard = listen(with_figures(config, {law.name: UNTOUCHED for law in laws}), signals, parts)
        for law in laws:
            _derive_force(out, law, heard, signals, parts)
    return out


def _two_digits(value: float, up: bool = False) -> float:
    """Two figures, or three above 100: what a person would write."""
    step = 10.0 ** (floor(log10(value)) - 1) if value < 100.0 else 1.0
    return round((ceil(value / step - 1e-9) if up else round(value / step)) * step, 6)


def _derive_emg(out: Derived, rule: EmgRule, signals: Signals, parts: dict[str, Span], freeze: bool) -> None:
    emg = out.config.emg
    assert emg
    rate_hz = emg.sample_rate_hz
    muscle = Muscle.of(rule, emg.channels, rate_hz, signals, parts)
    rest_uv = float(np.sqrt(np.mean(muscle.rest_uv**2)))
    strong = {part: checks.strength(muscle.power(part), rate_hz) for part in parts if part != "quiet"}
    out.strengths[rule.name] = {
        "rest_uv": dict(zip(rule.channels, muscle.rest_uv.tolist(), strict=True)),
        "rest_pooled_uv": rest_uv,
        **{f"{part}_uv": ratio * rest_uv for part, ratio in strong.items()},
        **{f"{part}_over_rest": ratio for part, ratio in strong.items()},
        **{f"{part}_over_rest_db": 20.0 * log10(ratio) for part, ratio in strong.items()},
    }
    _derive_mains(out, rule, signals, muscle)
    active = float(np.mean(usual_power(muscle.power(), rate_hz, COARSE_S) > ACTIVE_POWER))
    out.strengths[rule.name]["active_share"] = active
    if freeze or active > MOSTLY:
        why = "asked for with --freeze" if freeze else f"the muscle is active for {100 * active:.0f} % of this recording"
        noise_uv = tuple(_two_digits(value) for value in muscle.rest_uv)
        out.set(rule, f"{why}: rest is kept as it was in the quiet part, and no longer learnt", noise_uv=noise_uv)
    elif rule.noise_uv:
        out.set(rule, "rest is learnt as it goes (--freeze would keep it as it is now)", noise_uv=())
    _derive_floor(out, rule, signals, parts, muscle, rest_uv * min(strong.values()))
    _derive_intent(out, rule, emg.channels, rate_hz, signals, parts)
    heard = listen(out.config, signals, parts)
    number = out.config.emg_rules.index(next(one for one in out.config.emg_rules if one.name == rule.name))
    _derive_off(out, rule, heard, number, signals, parts, onsets(rule, out.config, signals, parts))
    _derive_rise(out, rule, heard, number, signals, parts, strong)


def _derive_mains(out: Derived, rule: EmgRule, signals: Signals, muscle: Muscle) -> None:
    assert out.config.emg
    seen = {
        name: mains(signals.emg_uv[muscle.mine["quiet"], out.config.emg.channels.index(name)], out.config.emg.sample_rate_hz)
        for name in rule.channels
    }
    out.strengths[rule.name]["mains_hz"] = {name: line_hz for name, (line_hz, _) in seen.items()}
    out.strengths[rule.name]["mains_over_all_else"] = {name: ratio for name, (_, ratio) in seen.items()}
    line_hz, ratio = max(seen.values(), key=lambda one: one[1])
    if line_hz:
        out.set(rule, f"the mains is seen in the spectrum, {ratio:.2g} times as strong as all else", mains_hz=line_hz)


def _derive_floor(out: Derived, rule: EmgRule, signals: Signals, parts: dict[str, Span], muscle: Muscle, weakest_uv: float) -> None:
    """The level of rest, or what any surface EMG is above; raised until the detector itself is silent in the quiet part."""
    number = [one.name for one in out.config.emg_rules].index(rule.name)
    most_uv = FLOOR_MOST * weakest_uv
    least_uv = float(muscle.rest_uv.min())
    floor_uv = _two_digits(max(least_uv, min(DEFAULT_FLOOR, most_uv)), up=True)
    why = f"rest has {least_uv:.3g} uV"
    if least_uv < floor_uv / 1.2:
        why += f", and less than {floor_uv:g} uV is no spasm in any surface EMG"
    quiet = {"quiet": parts["quiet"]}
    while True:
        out.set(rule, why, floor_uv=floor_uv)
        heard = listen(out.config, signals, quiet)
        triggers = within(heard.triggers[number], signals, parts["quiet"])
        higher_uv = _two_digits(floor_uv * FLOOR_STEP, up=True)
        if not triggers or higher_uv > most_uv:
            return
        floor_uv = higher_uv
        why = f"rest has {least_uv:.3g} uV and moments that are louder: raised until rest gives no trigger"


def _derive_intent(
    out: Derived, rule: EmgRule, channels: tuple[str, ...], rate_hz: float, signals: Signals, parts: dict[str, Span]
) -> None:
    """Between the loudest sample of rest and what intended activity shows again and again; the detector looks at raw samples."""
    if not rule.intent_channel:
        return
    x = np.abs(signals.emg_uv[:, channels.index(rule.intent_channel)])
    n = max(1, round(WINDOW_S * rate_hz))
    peaks = {
        part: np.array([x[i : i + n].max() for i in np.flatnonzero(signals.of(span, signals.emg_t_s))[::n]]) for part, span in parts.items()
    }
    rest_uv = float(peaks["quiet"].max())
    loud = peaks["contraction"][peaks["contraction"] > 2.0 * rest_uv]
    if not loud.size:
        out.notes.append(
            f"{rule.name}: {rule.intent_channel} is not active in the contraction (at most {peaks['contraction'].max():.3g} uV, rest has"
            f" up to {rest_uv:.3g}): it cannot tell what is intended, and intent_uv stays as it is"
        )
        return
    moves_uv = float(np.median(loud))
    intent_uv = _two_digits(float(np.sqrt(rest_uv * moves_uv)))
    why = f"rest of {rule.intent_channel} has peaks of up to {rest_uv:.3g} uV, the contraction of {moves_uv:.3g} uV: between the two"
    out.set(rule, why, intent_uv=min(max(intent_uv, 1.0), 5000.0))


def _derive_off(
    out: Derived, rule: EmgRule, heard: Heard, number: int, signals: Signals, parts: dict[str, Span], begin: dict[str, float]
) -> None:
    """Half-way, in dB, between what rest's envelope reaches and what the activity's seldom falls below."""
    quiet = signals.of(parts["quiet"], heard.t_s) & (heard.seen[:, number, kernels.QUALITY] == kernels.QUALITY_OK)
    part = "spasm" if "spasm" in parts else "contraction"
    power = heard.envelope[signals.of(parts[part], heard.t_s) & (heard.t_s > begin[part]), number]
    loud = power[power > ACTIVE_POWER]
    rest = float(np.sqrt(np.percentile(heard.envelope[quiet, number], 99.9))) if quiet.any() else 1.0
    active = float(np.sqrt(np.percentile(loud, 10))) if loud.size else OFF_LEAST
    off = round(min(max(float(np.sqrt(rest * active)), OFF_LEAST), OFF_MOST), 1)
    why = f"rest reaches {rest:.2g} times its usual level for moments, the {part} seldom falls below {active:.3g} times"
    out.set(rule, why, off_ratio=off)


def _derive_rise(
    out: Derived, rule: EmgRule, heard: Heard, number: int, signals: Signals, parts: dict[str, Span], strong: dict[str, float]
) -> None:
    """A gate between the rise of the spasm and that of the contraction, where the contraction would trigger.

    The least ratio for which one can be found, since a weaker spasm does not reach a higher one. The detector must agree, with room on
    both sides.
    """
    if "spasm" not in parts:
        return
    if rule.rise_ms and not within(heard.triggers[number], signals, parts["spasm"]):
        out.set(rule, f"with rise_ms = {rule.rise_ms:g} this spasm was not answered", rise_ms=0.0)
        heard = listen(out.config, signals, parts)
    if not within(heard.triggers[number], signals, parts["contraction"]):
        return
    fast = {part: heard.fast[signals.of(parts[part], heard.t_s), number] for part in ("contraction", "spasm")}

    def triggers(part: str, rise_ms: float, ratio: float) -> bool:
        tried = with_figures(out.config, {rule.name: {"rise_ms": min(rise_ms, 500.0), "rise_ratio": ratio}})
        return bool(within(listen(tried, signals, parts).triggers[number], signals, parts[part]))

    for ratio in RISE_RATIOS:
        if ratio > max(RISE_OF_SPASM * strong["spasm"], RISE_RATIOS[0]):
            break
        spasm_ms, contraction_ms = (1000.0 * _rise_s(fast[part], ratio) for part in ("spasm", "contraction"))
        if contraction_ms < RISE_ROOM**2 * spasm_ms or not isfinite(spasm_ms):
            continue
        rise_ms = min(max(USUAL_RISE_MS, RISE_ROOM * spasm_ms), contraction_ms / RISE_ROOM, 400.0)
        rise_ms = float(round(rise_ms))
        if triggers("contraction", rise_ms * RISE_ROOM, ratio) or not triggers("spasm", rise_ms / RISE_ROOM, ratio):
            continue
        slower = f"takes {contraction_ms:.0f} ms" if isfinite(contraction_ms) else "never gets there"
        why = f"the spasm takes {spasm_ms:.0f} ms to {ratio:g} times rest, the contraction {slower}"
        out.set(rule, f"{why}: what reaches rise_ratio within rise_ms is a spasm", rise_ms=rise_ms, rise_ratio=ratio)
        out.strengths[rule.name] |= {"spasm_rise_ms": spasm_ms, "contraction_rise_ms": contraction_ms}
        return
    words = "the contraction rises about as fast as the spasm, so no rise_ms tells them apart: a movement like it will be answered"
    out.notes.append(f"{rule.name}: {words}")


def _rise_s(fast: Floats, ratio: float) -> float:
    """From where the fast envelope leaves rest to where it reaches a ratio, as the gate counts it; infinite where it never does.

    Short dips below the lower mark are noise: only one as long as the gate ends a rise.
    """
    high = np.flatnonzero(fast >= ratio**2)
    if not high.size:
        return inf
    low = fast[: high[0] + 1] < RISE_LOW
    n = round(USUAL_RISE_MS / 1000.0 / FINE_S)
    long = np.flatnonzero(np.convolve(low, np.ones(n), "valid") >= n)
    begin = int(long[-1]) + n if long.size else 0
    return max(1, int(high[0]) - begin + 1) * FINE_S


def _derive_force(out: Derived, law: ForceRule, heard: Heard, signals: Signals, parts: dict[str, Span]) -> None:
    """Threshold between rest and the activity, rate between contraction and spasm, each half-way in ratio."""
    number = [rule.name for rule in out.config.rules].index(law.name)
    above, rate, good = (heard.seen[:, number, column] for column in (kernels.STATISTIC, kernels.ENVELOPE, kernels.QUALITY))
    mine = {part: signals.of(span, heard.t_s) & (good == kernels.QUALITY_OK) for part, span in parts.items()}
    peak = {part: float(above[where].max(initial=0.0)) for part, where in mine.items()}
    weakest = min(peak[part] for part in parts if part != "quiet")
    rest = max(peak["quiet"], 0.005)
    threshold = min(max(float(np.sqrt(rest * weakest)), 2.0 * rest), 0.5 * weakest)
    fastest = {part: float(rate[where & (above > threshold)].max(initial=0.0)) for part, where in mine.items()}
    rest_rate = float(rate[mine["quiet"]].max(initial=0.0))
    unit = out.config.force.unit if out.config.force else ""
    out.strengths[law.name] = {
        **{f"{part}_above_baseline": value for part, value in peak.items()},
        "quiet_rate_per_s": rest_rate,
        **{f"{part}_rate_per_s": value for part, value in fastest.items() if part != "quiet"},
    }
    if "spasm" not in parts:
        rate_per_s = RATE_APART * fastest["contraction"]
        why = f"this contraction rises by {fastest['contraction']:.3g} {unit}/s; half as fast again is no spasm seen, but no such movement"
    elif fastest["spasm"] > RATE_APART * fastest["contraction"]:
        rate_per_s = float(np.sqrt(fastest["spasm"] * max(fastest["contraction"], rest_rate, 0.01)))
        why = f"the contraction rises by {fastest['contraction']:.3g} {unit}/s, the spasm by {fastest['spasm']:.3g}: between the two"
    else:
        rate_per_s = 0.5 * fastest["spasm"]
        why = f"half of the spasm's {fastest['spasm']:.3g} {unit}/s"
        out.notes.append(f"{law.name}: the contraction rises about as fast as the spasm, so force cannot tell them apart")
    weaker = "weaker of the two" if "spasm" in parts else "contraction"
    words = f"rest reaches {peak['quiet']:.2g} {unit} above its baseline, the {weaker} {weakest:.3g}"
    out.set(law, words, threshold=max(_two_digits(threshold), 0.01))
    out.set(law, why, rate_per_s=max(_two_digits(rate_per_s), 0.01))
