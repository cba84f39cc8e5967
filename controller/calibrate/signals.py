"""What is calibrated on, as arrays in the order and the units of the settings: from a recording or a session of ours.

The recording at the bed is `calibrate_live`'s. No figure is derived here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from controller import reading, recording
from controller.calibrate.checks import high_passed, rms
from controller.replay import START_S
from controller.settings import EmgRule, ForceRule

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from numpy.typing import NDArray

    from controller.settings import Settings

    Floats = NDArray[np.float64]

Span = tuple[float, float]


class UseError(ValueError):
    """What was asked for cannot be done with this file or these settings: exit code 2."""


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """What was recorded, in the order and the units of the settings.

    Attributes
    ----------
    emg_uv : (n, channels of [emg]) float64, µV; emg_t_s : (n,) float64, s
        A channel that no rule uses may be missing: zeros.
    force : (m, channels of [force]) float64; force_t_s : (m,) float64, s
    pulses_s : (k,) float64, s
        When our own stimulator gave a pulse.
    """

    name: str
    emg_uv: Floats
    emg_t_s: Floats
    force: Floats
    force_t_s: Floats
    pulses_s: Floats
    notes: list[str]

    @property
    def begin_s(self) -> float:
        """Stamp from which parts are counted."""
        return min(float(t_s[0]) for t_s in (self.emg_t_s, self.force_t_s) if t_s.size)

    @property
    def length_s(self) -> float:
        """To the last sample."""
        return max(float(t_s[-1]) for t_s in (self.emg_t_s, self.force_t_s) if t_s.size) - self.begin_s

    def of(self, span: Span, t_s: Floats) -> NDArray[np.bool_]:
        """Which samples are of a part."""
        return (t_s >= self.begin_s + span[0] - 1e-9) & (t_s < self.begin_s + span[1] - 1e-9)


def chosen(config: Settings, names: list[str] | None) -> tuple[EmgRule | ForceRule, ...]:
    """The rules to calibrate. Raises `UseError` where one is not there."""
    known = [rule.name for rule in config.rules]
    if unknown := [name for name in names or () if name not in known]:
        raise UseError(f"there is no rule {unknown[0]!r} in the settings; there are: {', '.join(known) or 'none'}")
    if not known:
        raise UseError("the settings have no rule: there is nothing to calibrate")
    return tuple(rule for rule in config.rules if not names or rule.name in names)


def needed(rules: tuple[EmgRule | ForceRule, ...]) -> list[str]:
    """Channels of EMG that these rules listen to."""
    emg = [rule for rule in rules if isinstance(rule, EmgRule)]
    return list(dict.fromkeys(name for rule in emg for name in (*rule.channels, rule.intent_channel) if name))


def read(path: Path, config: Settings, rules: tuple[EmgRule | ForceRule, ...], args: argparse.Namespace) -> Signals:
    """Read a recording or a session. Raises `FileFormatError` or `UseError`."""
    if path.is_dir() or path.name == recording.SIGNALS:
        return _of_session(path if path.is_dir() else path.parent, config, rules)
    return _of_file(path, config, rules, args)


def _of_session(folder: Path, config: Settings, rules: tuple[EmgRule | ForceRule, ...]) -> Signals:
    session = recording.load(folder)
    out: dict[str, tuple[Floats, Floats]] = {}
    for table, stream in (("emg", "EMG"), ("force", "force")):
        wanted, was = getattr(config, table), getattr(session.config, table)
        out[table] = np.zeros((0, len(wanted.channels) if wanted else 1)), np.zeros(0)
        used = needed(rules) if table == "emg" else [rule.channel for rule in rules if isinstance(rule, ForceRule)]
        if not used:
            continue
        if stream not in session.streams:
            raise UseError(f"{folder}: has no {stream}, which the settings' rules listen to")
        _same(folder, table, wanted.sample_rate_hz, was.sample_rate_hz)
        if table == "force" and was.unit != wanted.unit:
            raise UseError(f"{folder}: its force is in {was.unit}, [force] unit in the settings is {wanted.unit}")
        heard = session.streams[stream]
        out[table] = _columns(folder, table, used, wanted.channels, was.channels, np.asarray(heard.values), []), heard.stamps_s
    if not any(t_s.size for _, t_s in out.values()):
        raise UseError(f"{folder}: holds no sample")
    return Signals(str(folder), *out["emg"], *out["force"], session.streams["pulses"].stamps_s, [])


def _of_file(path: Path, config: Settings, rules: tuple[EmgRule | ForceRule, ...], args: argparse.Namespace) -> Signals:
    from drivers.sources import files

    rec = files.load(path, **reading.options_of(args))
    notes = list(rec.notes)
    emg, emg_t_s = np.zeros((0, len(config.emg.channels) if config.emg else 1)), np.zeros(0)
    if used := needed(rules):
        assert config.emg
        if rec.unit == "raw" and args.unit != "raw":
            raise UseError(f"{path}: the unit of its samples is not known, and settings are in uV: give --unit")
        if rec.unit == "raw":
            notes.append("the unit is raw: whatever is called uV is in the file's own counts, and fits a stream of such counts alone")
        _same(path, "emg", config.emg.sample_rate_hz, rec.sample_rate_hz)
        emg = _columns(path, "emg", used, config.emg.channels, rec.channels, rec.emg, notes)
        emg_t_s = START_S + np.arange(len(emg)) / rec.sample_rate_hz
    force, force_t_s = np.zeros((0, len(config.force.channels) if config.force else 1)), np.zeros(0)
    if used := [rule.channel for rule in rules if isinstance(rule, ForceRule)]:
        if rec.force is None:
            notes.append("the file has no force (name it in a side-car, force_channels): the force rules stay as they are")
        else:
            assert config.force
            assert rec.force_sample_rate_hz
            _same(path, "force", config.force.sample_rate_hz, rec.force_sample_rate_hz)
            if rec.force_unit not in (config.force.unit, "raw"):
                raise UseError(f"{path}: its force is in {rec.force_unit}, [force] unit in the settings is {config.force.unit}")
            force = _columns(path, "force", used, config.force.channels, rec.force_channels, rec.force, notes)
            force_t_s = START_S + np.arange(len(force)) / rec.force_sample_rate_hz
    if not emg_t_s.size and not force_t_s.size:
        raise UseError(f"{path}: has nothing that the chosen rules listen to")
    return Signals(str(path), emg, emg_t_s, force, force_t_s, np.zeros(0), notes)


def _same(path: Path, table: str, wanted_hz: float, is_hz: float) -> None:
    if abs(wanted_hz - is_hz) > 1e-3 * wanted_hz:
        raise UseError(
            f"{path}: has {is_hz:g} Hz, [{table}] sample_rate_hz in the settings is {wanted_hz:g}: they must be of one amplifier"
        )


def _columns(
    path: Path, table: str, used: list[str], wanted: tuple[str, ...], there: tuple[str, ...], values: Floats, notes: list[str]
) -> Floats:
    """Columns as the settings name them; by their order where no name fits and the number does."""
    if set(used) <= set(there):
        out = np.zeros((len(values), len(wanted)))
        for name in used:
            out[:, wanted.index(name)] = values[:, there.index(name)]
        return out
    if len(there) == len(wanted) and not set(there) & set(wanted):
        notes.append(f"the file's channels {', '.join(there)} were taken for {', '.join(wanted)}, in this order")
        return np.ascontiguousarray(values, np.float64)
    missing = ", ".join(name for name in used if name not in there)
    raise UseError(f"{path}: has no channel {missing} ([{table}] of the settings); its channels are {', '.join(there)}")


def fits(parts: dict[str, Span], signals: Signals) -> None:
    """Refuse parts that are not in the recording, or overlap. Raises `UseError`."""
    for name, (begin_s, end_s) in parts.items():
        if end_s > signals.length_s + 0.1:
            raise UseError(f"--{name} {begin_s:g}-{end_s:g}: {signals.name} has {signals.length_s:.2f} s")
    in_order = sorted(parts.items(), key=lambda part: part[1])
    for (one, (_, end_s)), (other, (begin_s, _)) in pairwise(in_order):
        if begin_s < end_s - 1e-9:
            raise UseError(f"--{one} and --{other} overlap from {begin_s:g} to {end_s:g} s: each part must be one thing alone")


@dataclass(frozen=True, slots=True, eq=False)
class Muscle:
    """The channels of one EMG rule above its high-pass, and what rest is.

    Attributes
    ----------
    heard_uv : (n, c) float64, µV
    mine : dict of part to (n,) bool
    rest_uv : (c,) float64, µV
        Root mean square of the quiet part.
    """

    heard_uv: Floats
    mine: dict[str, NDArray[np.bool_]]
    rest_uv: Floats

    @classmethod
    def of(cls, rule: EmgRule, channels: tuple[str, ...], rate_hz: float, signals: Signals, parts: dict[str, Span]) -> Muscle:
        """Filter a rule's channels as the detector does."""
        raw = signals.emg_uv[:, [channels.index(name) for name in rule.channels]]
        heard_uv = high_passed(raw, rule.high_pass_hz, rate_hz)
        mine = {name: signals.of(span, signals.emg_t_s) for name, span in parts.items()}
        return cls(heard_uv, mine, np.array([rms(y) for y in heard_uv[mine["quiet"]].T]))

    def power(self, part: str | None = None) -> Floats:
        """Of all channels together, in rest's; of a part, or of the whole."""
        y = self.heard_uv if part is None else self.heard_uv[self.mine[part]]
        return np.asarray(np.mean(np.square(y / self.rest_uv), axis=1))
