import copy
import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from annotated_types import Ge, Le
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from controller import fits, limits
from controller import settings as module
from controller.settings import SettingsError, Train, check, figures, guard_view, load, parse, summary
from controller.wire import DECODERS
from drivers.simulated.twin import TWINS
from drivers.stimulators import STIMULATORS
from tests.bed import DEVICE

CONFIG = Path(__file__).parent.parent / "config"
DEMO = (CONFIG / "demo.toml").read_text(encoding="utf-8")
JOINS = """
[[joins]]
name = "both"
rules = ["soleus EMG", "plantarflexion torque"]
how = "emg_then_force"
within_ms = 200
"""
PAGE = """
[page]
port = 8137
"""
BUTTON = """
[button]
device = "lsl:pedal"
invert = true
"""
LSL = """
[lsl]
markers = true
"""
WHOLE = DEMO + JOINS + PAGE + BUTTON + LSL  # every table that there is

# The design's table once more, written by hand: (table, key, least, most, step). What a row needs elsewhere to be allowed stands in ALSO.
BOUNDS = [
    ("emg", "sample_rate_hz", 200.0, 10000.0, 0.5),
    ("emg", "hold_ms", 0.0, 20.0, 0.5),
    ("force", "sample_rate_hz", 10.0, 5000.0, 0.5),
    ("emg_rules", "high_pass_hz", 10.0, 500.0, 0.1),
    ("emg_rules", "false_alarms_per_h", 0.0001, 3600.0, 0.1),
    ("emg_rules", "floor_uv", 0.0, 5000.0, 0.1),
    ("emg_rules", "noise_time_s", 0.5, 600.0, 0.1),
    ("emg_rules", "off_ratio", 1.1, 20.0, 0.01),
    ("emg_rules", "mains_hz", 0.0, 400.0, 0.1),
    ("emg_rules", "rise_ms", 0.0, 500.0, 0.1),
    ("emg_rules", "rise_ratio", 1.5, 30.0, 0.01),
    ("emg_rules", "intent_uv", 1.0, 5000.0, 0.1),
    ("force_rules", "threshold", 0.01, 5000.0, 0.001),
    ("force_rules", "rate_per_s", 0.01, 100000.0, 0.001),
    ("force_rules", "baseline_time_s", 0.5, 600.0, 0.1),
    ("joins", "within_ms", 10, 1000, 1),
    ("trains", "channel", 1, 8, 1),
    ("trains", "current_ma", 0.5, 60.0, 0.5),
    ("trains", "phase_width_us", 20, 1000, 1),
    ("trains", "interphase_gap_us", 0, 1000, 1),
    ("trains", "pulse_rate_hz", 1.0, 100.0, 0.001),
    ("trains", "duration_ms", 1, 2000, 1),
    ("trains", "ramp_up_ms", 0, 2000, 1),
    ("trains", "taper_ms", 0, 2000, 1),
    ("prescription", "electrode_area_cm2", 1.0, 200.0, 0.01),
    ("prescription", "max_current_ma", 0.5, 60.0, 0.001),
    ("prescription", "max_charge_per_phase_uc", 0.01, 30.0, 0.001),
    ("prescription", "look_dead_ms", 20, 1000, 1),
    ("prescription", "look_ms", 100, 1000, 1),
    ("prescription", "max_event_s", 0.1, 10.0, 0.001),
    ("prescription", "refractory_s", 1.0, 600.0, 0.001),
    ("prescription", "max_on_time_s_in_60_s", 0.1, 20.0, 0.001),
    ("prescription", "max_duty_percent_in_5_min", 0.1, 25.0, 0.001),
    ("prescription", "max_on_time_min_in_session", 0.1, 30.0, 0.001),
    ("prescription", "max_on_time_min_in_24_h", 0.1, 60.0, 0.001),
    ("prescription", "max_pulses_in_session", 1, 180_000, 1),
    ("prescription", "max_pulses_in_24_h", 1, 360_000, 1),
    ("prescription", "max_charge_mc_in_session", 0.001, 3600.0, 0.0001),
    ("prescription", "max_charge_mc_in_24_h", 0.001, 7200.0, 0.0001),
    ("prescription", "version", 1, 1_000_000, 1),
    ("prescription", "max_events_in_10_min", 1, 30, 1),
    ("prescription", "max_automatic_events_in_1_h", 1, 60, 1),
    ("prescription", "arming_expires_min", 1.0, 30.0, 0.001),
    ("realtime", "loop_priority", 0, 97, 1),
    ("realtime", "guard_priority", 0, 98, 1),
    ("realtime", "max_sample_age_ms", 10.0, 250.0, 0.001),
    ("realtime", "max_lateness_ms", 5.0, 250.0, 0.001),
    ("page", "port", 0, 65535, 1),
]
DIAL = {"dial_current_ma": 20.0, "dial_phase_width_us": 500, "dial_interphase_gap_us": 100}
WEAK = {("trains", "current_ma"): 0.5, ("trains", "ramp_up_ms"): 0, ("trains", "taper_ms"): 0, ("trains", "duration_ms"): 50}
STRONG = {("prescription", "max_current_ma"): 60.0, ("prescription", "max_charge_per_phase_uc"): 30.0}
ALSO = {
    "sample_rate_hz": {("emg_rules", "high_pass_hz"): 10.0},
    "high_pass_hz": {("emg", "sample_rate_hz"): 2000.0},
    "channel": {("stimulator", "driver"): "p24"},
    "current_ma": STRONG | {("trains", "phase_width_us"): 500},
    "ramp_up_ms": WEAK | {("trains", "duration_ms"): 2000},
    "taper_ms": WEAK | {("trains", "duration_ms"): 2000},
    "max_current_ma": WEAK,
    "max_charge_per_phase_uc": WEAK | {("trains", "phase_width_us"): 20},
    "max_on_time_min_in_24_h": WEAK | {("prescription", "max_on_time_min_in_session"): 0.1},
    "max_pulses_in_session": WEAK | {("trains", "duration_ms"): 20},
    "max_pulses_in_24_h": WEAK | {("trains", "duration_ms"): 20, ("prescription", "max_pulses_in_session"): 1},
    "max_charge_mc_in_24_h": WEAK | {("prescription", "max_charge_mc_in_session"): 0.001},
    "loop_priority": {("realtime", "guard_priority"): 98},
    "guard_priority": {("realtime", "loop_priority"): 0},
}


def demo(changes=None):
    """Return the demo's raw tables, changed: {(table, key): value}; of several tables the first."""
    raw = copy.deepcopy(tomllib.loads(DEMO))
    for (table, key), value in (changes or {}).items():
        raw = tomllib.loads(JOINS) | raw if table == "joins" else raw
        one = raw.setdefault(table, {})
        one = one["peroneal"] if table == "trains" else one[0] if isinstance(one, list) else one
        one[key] = value
    return raw


def build(raw):
    return module.of_tables(raw, "x.toml", {})


def problems(raw):
    with pytest.raises(SettingsError) as caught:
        build(raw)
    return caught.value.problems


@pytest.mark.safety("A1", "A2", "A3", "A4", "A8", "A9", "A12", "B4", "F9")
@pytest.mark.parametrize(("table", "key", "least", "most", "step"), BOUNDS)
def test_bounds(table, key, least, most, step):
    also = ALSO.get(key, WEAK)
    for value in (least, most):
        build(demo({**also, (table, key): value}))
    for value in (least - step, most + step, float("nan"), float("inf"), -float("inf")):
        if isinstance(least, int) and isinstance(value, float):
            continue
        found = problems(demo({**also, (table, key): value}))
        assert any(f" {key} = " in line and f"at least {least:g} and at most {most:g}" in line for line in found), found
        assert all(line.startswith("x.toml: [") for line in found)


def test_every_bound_is_in_the_table():
    bounded = {
        (table, key): tuple(limit.ge if isinstance(limit, Ge) else limit.le for limit in field.metadata if isinstance(limit, Ge | Le))
        for table, model in module.TABLES.items()
        for key, field in model.model_fields.items()
        if field.annotation in (int, float) and table != "stimulator" and key != "scale"  # figures that belong to a driver, or to a device
    }
    assert bounded == {(table, key): (least, most) for table, key, least, most, _ in BOUNDS}


def stimulator(driver, **options):
    flat = {("trains", "ramp_up_ms"): 0, ("trains", "taper_ms"): 0} if driver.startswith("ttl") else {}
    return demo(flat | {("stimulator", key): value for key, value in {"driver": driver, **options}.items()})


def test_every_driver_has_its_row():
    assert set(get_args(module.Driver)) == set(module.DEVICES) == set(module.OPTIONS) == set(STIMULATORS) == set(DECODERS) == set(TWINS)


@pytest.mark.parametrize(
    ("driver", "options"),
    [("rehamove3", {}), ("pulsepal", {"ma_per_volt": 2.5}), *((f"ttl-{kind}", DIAL) for kind in ("byte", "cedrus", "line"))],
)
@pytest.mark.safety("A12")
def test_what_a_stimulator_that_cannot_be_asked_must_be_told(driver, options):
    settings = build(stimulator(driver, **options))
    words = {"ma_per_volt": ("ua_per_volt", 1000), "dial_current_ma": ("dial_current_ua", 1000)}
    named = {key: words.get(key, (key, 1)) for key in options}
    assert settings.stimulator.options == {name: options[key] * factor for key, (name, factor) in named.items()}
    assert parse(settings.to_toml()) == settings
    for key in options:
        if key != "dial_interphase_gap_us":  # none is possible
            (found,) = problems(stimulator(driver, **{k: v for k, v in options.items() if k != key}))
            assert f"[stimulator] {key} is missing: {driver} cannot be asked what" in found
        for wrong in (-1.0, 1e6, float("nan"), "2", True):
            assert any(f"[stimulator] {key}" in one for one in problems(stimulator(driver, **options | {key: wrong})))
    for key, value in ({"ma_per_volt": 2.5} | DIAL).items():
        if key not in options:
            assert (
                f"[stimulator] {key} = {value} means nothing to {driver}: leave it out"
                in problems(stimulator(driver, **options, **{key: value}))[0]
            )


@pytest.mark.parametrize(
    ("driver", "options", "changes", "words"),
    [
        (
            "sciencemode2",
            {},
            {},
            "[trains.peroneal]: a RehaStim2 cannot give this train: pulse_rate_hz = 50.0 is not above 0 and at most 33",
        ),
        ("sciencemode2", {}, {"pulse_rate_hz": 30.0, "interphase_gap_us": 50}, "interphase_gap_us = 50"),
        ("sciencemode2", {}, {"pulse_rate_hz": 30.0, "phase_width_us": 505, "current_ma": 18.0}, "phase_width_us = 505"),
        ("pulsepal", {"ma_per_volt": 1.0}, {}, "current_ma = 20.0 must be at most 10 on pulsepal with ma_per_volt = 1"),
        ("pulsepal", {"ma_per_volt": 0.001}, {}, "[stimulator]: ua_per_volt = 1 is below"),
        ("rehamove3", {}, {"interphase_gap_us": 5}, "interphase_gap_us = 5"),
    ],
)
@pytest.mark.safety("A12", "F9")
def test_what_this_stimulator_cannot_give_is_said_where_a_person_is_at_the_file(driver, options, changes, words):
    raw = stimulator(driver, **options)
    raw["trains"]["peroneal"] |= changes
    settings = build(raw)
    assert words in " ".join(fits.problems(settings))
    with pytest.raises(SettingsError, match="of x"):
        fits.together(settings, "of x")
    demo_settings = build(demo())
    assert fits.together(demo_settings) is demo_settings


@pytest.mark.safety("A7")
def test_who_uses_what_nobody_has_tried_says_that_it_was_measured():
    gap = {("trains", "interphase_gap_us"): 10}
    motimove = {("stimulator", "driver"): "motimove"} | gap
    (found,) = problems(demo(motimove))
    assert "[stimulator] driver" in found and "must be measured first" in found and "experimental = true" in found
    settings = build(demo(motimove | {("stimulator", "experimental"): True}))
    assert parse(settings.to_toml()) == settings
    assert "motimove is experimental" in " ".join(summary(settings)["notes"])
    (found,) = problems(demo({("stimulator", "experimental"): True}))
    assert "experimental = true means nothing to rehamove3" in found


@pytest.mark.parametrize(("key", "other"), [("current_ma", 10.0), ("phase_width_us", 400), ("interphase_gap_us", 50)])
@pytest.mark.safety("A12")
def test_where_a_dial_sets_the_pulse_the_trains_are_the_dials(key, other):
    raw = stimulator("ttl-byte", **DIAL)
    raw["trains"]["peroneal"][key] = other
    (found,) = problems(raw)
    assert f"{key} = {other} must be {DIAL[f'dial_{key}']}: on ttl-byte the dial sets it ([stimulator] dial_{key})" in found
    raw = stimulator("ttl-byte", **DIAL)
    raw["trains"]["peroneal"] |= {"ramp_up_ms": 50, "taper_ms": 100}
    assert all(f"{ramp} must be 0: on ttl-byte a dial" in one for ramp, one in zip(("50", "100"), problems(raw), strict=True))


def test_what_a_dial_cannot_keep_is_said():
    notes = " ".join(summary(build(stimulator("ttl-byte", **DIAL)))["notes"])
    assert "cannot set a current" in notes and "A11 is not kept" in notes and "look at them" in notes
    assert "electrode" not in " ".join(summary(build(stimulator("rehamove3")))["notes"])


def test_every_field_says_what_it_means():
    assert set(module.TABLES) == set(module.Settings.model_fields)
    for model in (module.Settings, *module.TABLES.values()):
        assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize("name", ["demo", "bedside", "bench"])
def test_shipped_files(name):
    settings = load(CONFIG / f"{name}.toml")
    assert settings.automatic
    assert parse(settings.to_toml()) == settings
    json.dumps(summary(settings), allow_nan=False)
    text = check(CONFIG / f"{name}.toml")
    assert "IEC 60601-2-10" in text
    assert all(train in text for train in settings.trains)


def test_the_dose_and_the_device_in_words(tmp_path):
    text = check(CONFIG / "bedside.toml")
    assert "in a session at most 15 min of stimulation, 45000 pulses, 450 mC" in text
    assert "in 24 h at most 30 min, 90000 pulses, 900 mC" in text
    assert "Stimulator rehamove3, whichever answers, port " in text
    (tmp_path / "bed.toml").write_text(DEMO.replace('serial = ""', 'serial = "RM3-0042"'), encoding="utf-8")
    assert guard_view(load(tmp_path / "bed.toml"))["serial"] == "RM3-0042"
    assert "the one with serial number RM3-0042" in check(tmp_path / "bed.toml")


@pytest.mark.parametrize("charge_mc", [0.001, 0.0015, 449.999999, 450.0, 3600.0])
def test_guard_gets_the_same_charge_in_whole_nanocoulombs(charge_mc):
    view = guard_view(build(demo({**WEAK, ("prescription", "max_charge_mc_in_session"): charge_mc})))
    assert view["max_charge_session_nc"] == round(charge_mc * 1e6)


def test_check_tells_a_loose_electrode_is_not_noticed():
    assert "loose electrode" in check(CONFIG / "bedside.toml")
    assert "loose electrode" not in check(CONFIG / "demo.toml")


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        parse(DEMO).prescription.max_current_ma = 50.0


def test_defaults():
    raw = demo()
    del raw["session"], raw["realtime"], raw["prescription"]["max_charge_per_phase_uc"]
    settings = build(raw)
    assert settings.session.folder == "sessions"
    assert settings.realtime == parse(DEMO).realtime.model_copy(update={"cpus": ()})  # the demo's choice needs two processors
    assert settings.prescription.max_charge_per_phase_uc == 20.0
    assert settings.emg_rules[0].design_snr_db == (2.0, 6.0, 11.0, 17.0)


@pytest.mark.safety("A12", "F9")
@pytest.mark.parametrize(
    ("table", "key", "value", "words"),
    [
        ("trains", "current_ma", "20", '"20" must be a number, at least 0.5 and at most 60 mA'),
        ("trains", "current_ma", True, "true must be a number"),
        ("trains", "channel", True, "true must be a whole number"),
        ("trains", "phase_width_us", 500.0, "500.0 must be a whole number, at least 20 and at most 1000 us"),
        pytest.param("trains", "phase_width_us", 16**5000, "0x1000", id="huge int"),
        pytest.param("trains", "current_ma", 16**5000, "0x1000", id="huge float"),
        ("trains", "pulse_rate_hz", [50.0], "[50.0] must be a number"),
        ("stimulator", "driver", "rehastim2", 'must be "rehamove3" or "p24"'),
        ("stimulator", "port", 3, "3 must be a text"),
        ("stimulator", "port", "", "must be a text of 1 to 200"),
        ("stimulator", "port", "a\nb", "must be a text of 1 to 200 printable"),
        ("emg", "unit", "uv", 'must be "uV" or "mV" or "V"'),
        ("emg", "channels", "SOL1", "must be a list of 1 to 64"),
        ("emg", "channels", [], "must be a list of 1 to 64"),
        ("emg", "channels", ["SOL1", "SOL1"], "different names"),
        ("emg", "channels", [f"C{i}" for i in range(65)], "must be a list of 1 to 64"),
        ("emg", "channels", ["SOL1", 2], "item 2 = 2: channels must be a list"),
        ("emg_rules", "channels", ["SOL1", "SOL1"], "different names"),
        ("emg_rules", "design_snr_db", [4.0, 41.0], "at least 0 and at most 40 dB"),
        ("realtime", "cpus", [0, 0], "different whole numbers"),
        ("realtime", "cpus", [-1], "item 1 = -1"),
    ],
)
def test_wrong_values(table, key, value, words):
    [line] = [line for line in problems(demo({(table, key): value})) if words in line]
    assert f" {key}" in line


def test_whole_numbers_where_fractions_may_stand():
    assert build(demo({("trains", "current_ma"): 20, ("emg", "sample_rate_hz"): 2000})) == parse(DEMO)


@pytest.mark.safety("F9")
def test_unknown_keys():
    assert any(
        "pulse_rate = 50 is not a known key; did you mean pulse_rate_hz?" in line for line in problems(demo({("trains", "pulse_rate"): 50}))
    )
    assert "known keys: driver, port, serial" in problems(demo({("stimulator", "zzz"): 1}))[0]
    assert "[sesion] is not a known table; did you mean session?" in problems(demo() | {"sesion": {}})[0]


def test_a_misspelt_key_is_one_problem():
    raw = demo({("prescription", "refractory"): 3.0})
    del raw["prescription"]["refractory_s"]
    [line] = problems(raw)
    assert "did you mean refractory_s?" in line


@pytest.mark.safety("A5", "A12", "F9")
def test_missing():
    raw = demo()
    del raw["prescription"]["electrode_area_cm2"], raw["stimulator"], raw["emg"]["channels"]
    found = "\n".join(problems(raw))
    assert "[prescription] electrode_area_cm2 is missing: conducting area of the smaller electrode" in found
    assert "at least 1 and at most 200 cm2" in found
    assert "[stimulator] is missing: the stimulator and its port" in found
    assert "[emg] channels is missing: the stream's channels" in found


@pytest.mark.parametrize("table", module.TABLES)
@pytest.mark.parametrize("value", [3, "x", [1], None, [[]]])
def test_a_table_that_is_none(table, value):
    if not (value is None and table in ("emg", "force", "button")):
        assert any(line.startswith(f"x.toml: [{table}]") or f"[[{table}]]" in line for line in problems(demo() | {table: value}))


@pytest.mark.safety("F9")
def test_all_errors_at_once_with_their_lines():
    text = DEMO
    for old, new in [
        ("sample_rate_hz = 2000.0", 'sample_rate_hz = "2000"'),
        ("rate_per_s = 15.0", "rate_per_s = nan"),
        ("pulse_rate_hz = 50.0", "pulse_rate_hz = 150.0"),
        ("max_current_ma = 20.0", "max_curent_ma = 20.0"),
        ('driver = "rehamove3"', 'driver = "rehamove"'),
        ("guard_priority = 80", "guard_priority = 60"),
    ]:
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(SettingsError) as caught:
        parse(text, "bed.toml")
    lines = str(caught.value).split("\n")
    assert lines == list(caught.value.problems)
    assert len(lines) == 6
    source = text.split("\n")
    for line, parts in zip(
        lines,
        [
            ("[emg] sample_rate_hz", '"2000"', "at least 200 and at most 10000 Hz"),
            ("[[force_rules]] 1 rate_per_s", "nan", "at least 0.01 and at most 100000 per s"),
            ("[trains.peroneal] pulse_rate_hz", "150.0", "at least 1 and at most 100 Hz"),
            ("[prescription] max_curent_ma", "20.0", "did you mean max_current_ma?"),
            ("[stimulator] driver", '"rehamove"', 'must be "rehamove3" or "p24"'),
            ("[realtime] guard_priority", "60", "above loop_priority, 70"),
        ],
        strict=True,
    ):
        assert all(part in line for part in parts), line
        number = int(line.removeprefix("bed.toml, line ").split(":")[0])
        assert source[number - 1].startswith(parts[0].split()[-1])


def test_mistakes_in_two_rules_are_told_apart():
    second = '\n[[emg_rules]]\nname = "b"\nchannels = ["TA1"]\ntrain = "peroneal"\nhigh_pass_hz = 5.0\n'
    with pytest.raises(SettingsError) as caught:
        parse(DEMO + second)
    assert all("[[emg_rules]] 2 " in line for line in caught.value.problems)
    assert f"line {len((DEMO + second).splitlines())}: " in str(caught.value)


@pytest.mark.safety("F9")
def test_joins_that_contradict_each_other():
    second = JOINS.replace('"both"', '"again"').replace("emg_then_force", "all")
    with pytest.raises(SettingsError) as caught:
        parse(WHOLE + second)
    assert [line.partition(": [[")[2] for line in caught.value.problems] == [
        f"joins]] 2 rules: {rule} is in another join too; a rule must be in at most one"
        for rule in ('"soleus EMG"', '"plantarflexion torque"')
    ]
    with pytest.raises(SettingsError, match=r"\[\[joins\]\] 1 rules: emg_then_force must have two rules"):
        parse(WHOLE.replace('rules = ["soleus EMG", ', 'rules = ["soleus EMG", "another", ') + SECOND_FORCE)
    [line] = problems(
        demo({("joins", "name"): "x", ("force_rules", "train"): "y"})
        | {"trains": {x: demo()["trains"]["peroneal"] for x in ("peroneal", "y")}}
    )
    assert 'must name one train; "soleus EMG" names "peroneal", "plantarflexion torque" names "y"' in line


SECOND_FORCE = """
[[force_rules]]
name = "another"
channel = "ankle"
train = "peroneal"
threshold = 3.0
rate_per_s = 15.0
baseline_time_s = 5.0
"""


def test_what_asks_is_said_in_words():
    words = module.sentences(parse(WHOLE), "x")
    assert words.count('it counts in "both"') == 2
    assert 'both: when soleus EMG is active and plantarflexion torque follows within 200 ms, the answer is "peroneal"' in words
    assert 'when all of these are active: soleus EMG, plantarflexion torque, the answer is "peroneal"' in module.sentences(
        parse(WHOLE.replace("emg_then_force", "all")), "x"
    )


@pytest.mark.safety("A1", "A4", "A5", "A12", "F9")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({("emg_rules", "intent_channel"): "TA9"}, '"TA9" is not in [emg] channels; did you mean "TA'),
        ({("emg_rules", "intent_channel"): "SOL1"}, 'intent_channel = "SOL1" must be none of the rule\'s own channels'),
        ({("emg_rules", "noise_uv"): [3.0]}, "noise_uv has 1 values and must have 2, one for each of channels"),
        ({("emg_rules", "channels"): ["SOL9"]}, '"SOL9" is not in [emg] channels; did you mean "SOL'),
        ({("force_rules", "channel"): "knee"}, '"knee" is not in [force] channels; it must be one of: ankle'),
        ({("emg_rules", "train"): "peronal"}, 'did you mean "peroneal"?'),
        ({("force_rules", "train"): "x"}, "[[force_rules]] 1 train"),
        ({("prescription", "manual_train"): "x"}, "[prescription] manual_train"),
        ({("force_rules", "name"): "soleus EMG"}, "[[force_rules]] 1 name"),
        ({("prescription", "max_current_ma"): 19.9}, "gives a current of 20 mA, which must be at most 19.9 mA"),
        ({("prescription", "max_charge_per_phase_uc"): 9.999}, "charge per phase of 10 uC, which must be at most 9.999 uC"),
        ({("prescription", "electrode_area_cm2"): 2.2}, "rms current density of 2.033 mA/cm2, which must be at most 2 mA/cm2 (IEC 60601"),
        ({("trains", "ramp_up_ms"): 401}, "501 ms of ramp_up_ms and taper_ms must be at most duration_ms, 500 ms"),
        ({("prescription", "max_event_s"): 0.499}, "must be at most 499 ms, [prescription] max_event_s"),
        ({("prescription", "max_on_time_s_in_60_s"): 0.4}, "must be at most 400 ms"),
        ({("prescription", "max_pulses_in_session"): 24}, "gives 25 pulses, above 24, [prescription] max_pulses_in_session: guard would"),
        ({("prescription", "max_charge_mc_in_session"): 0.2499}, "gives 0.25 mC, above 0.2499, [prescription] max_charge_mc_in_session"),
        ({("prescription", "max_on_time_min_in_24_h"): 29.0}, "max_on_time_min_in_session = 30.0 must be at most max_on_time_min_in_24_h"),
        ({("prescription", "max_pulses_in_24_h"): 179_999}, "max_pulses_in_session = 180000 must be at most max_pulses_in_24_h, 179999"),
        ({("joins", "rules"): ["soleus emg", "plantarflexion torque"]}, 'did you mean "soleus EMG"? it must be one of'),
        ({("joins", "rules"): ["soleus EMG"]}, "must be a list of 2 to 64 different names of rules"),
        ({("joins", "rules"): ["soleus EMG", "soleus EMG"]}, "must be a list of 2 to 64 different names of rules"),
        (
            {("joins", "rules"): ["plantarflexion torque", "soleus EMG"]},
            "emg_then_force must have two rules, first one of [[emg_rules]], then",
        ),
        ({("joins", "how"): "both"}, 'must be "any" or "all" or "emg_then_force"'),
        ({("joins", "name"): "soleus EMG"}, "[[joins]] 1 name"),
        (
            {("prescription", "max_charge_mc_in_24_h"): 3599.9},
            "= 3600.0 must be at most max_charge_mc_in_24_h, 3599.9: a session",
        ),
        ({("trains", "current_ma"): 19.3}, "multiple of 0.5 mA on rehamove3: the nearest are 19.0 and 19.5 mA"),
        ({("trains", "channel"): 5}, "at least 1 and at most 4 on rehamove3"),
        ({("emg", "sample_rate_hz"): 200.0}, "[[emg_rules]] 1 high_pass_hz = 80.0 must be below 80 Hz"),
        ({("realtime", "guard_priority"): 70}, "must be above loop_priority, 70"),
    ],
)
def test_between_tables(changes, words):
    [line] = problems(demo(changes))
    assert words in line


@pytest.mark.safety("A5")
def test_exactly_at_the_limits_between_tables():
    build(demo({("trains", "ramp_up_ms"): 400}))
    build(demo({("prescription", "max_event_s"): 0.5, ("prescription", "max_on_time_s_in_60_s"): 0.5}))
    build(demo({("emg", "sample_rate_hz"): 200.5}))
    build(demo({("prescription", "max_pulses_in_session"): 25, ("prescription", "max_charge_mc_in_session"): 0.25}))
    build(demo({("prescription", "max_on_time_min_in_24_h"): 30.0, ("prescription", "max_pulses_in_24_h"): 180_000}))
    build(demo({("trains", "channel"): 8, ("stimulator", "driver"): "p24"}))
    least_area_cm2 = math.ceil(20.0 * math.sqrt(2 * 500e-6 * 50.0) / 2.0 * 100) / 100
    build(demo({("prescription", "electrode_area_cm2"): least_area_cm2}))
    problems(demo({("prescription", "electrode_area_cm2"): round(least_area_cm2 - 0.01, 2)}))


def test_pulse_must_fit_its_period(monkeypatch):
    # the hard limits leave room for every pulse of today's devices; the check is for slower ones
    raw = demo({("trains", "pulse_rate_hz"): 100.0, **WEAK})
    pulse_us = 2 * 500 + 100
    device = module.DEVICES["rehamove3"]
    monkeypatch.setitem(module.DEVICES, "rehamove3", device._replace(pulse_margin_us=10000 - pulse_us))
    build(raw)
    monkeypatch.setitem(module.DEVICES, "rehamove3", device._replace(pulse_margin_us=10001 - pulse_us))
    [line] = problems(raw)
    assert "pulse_rate_hz = 100.0 must be at most 99.99 Hz: a pulse takes 10001 us" in line


def test_rules_need_their_stream():
    raw = demo()
    del raw["emg"], raw["force"]
    assert [line.split(": ", 1)[1] for line in problems(raw)] == [
        f"[{table}_rules] need the table [{table}], which says what stream they listen to" for table in ("emg", "force")
    ]


def test_button_alone(tmp_path):
    raw = demo()
    for table in ("emg", "force", "emg_rules", "force_rules"):
        del raw[table]
    settings = build(raw)
    assert not settings.automatic
    assert parse(settings.to_toml()) == settings
    (tmp_path / "button.toml").write_text(settings.to_toml(), encoding="utf-8")
    assert "automatic mode is impossible" in check(tmp_path / "button.toml")


def test_no_train():
    found = problems(demo() | {"trains": {}})
    assert any("manual_train" in line and "(there are none)" in line for line in found)


@pytest.mark.parametrize("name", ["a b", "", "é", "a.b", "x" * 51, "a\n"])
def test_train_names(name):
    raw = demo()
    raw["trains"][name] = raw["trains"]["peroneal"]
    assert any("the train's name must be" in line for line in problems(raw))


@pytest.mark.safety("A5", "A6")
def test_figures():
    settings = parse(DEMO)
    values = {one.name: one.value for one in figures(settings.trains["peroneal"], settings.prescription)}
    assert values["charge per phase"] == 10.0  # 20 mA x 500 us
    assert values["rms current density"] == pytest.approx(0.1789, abs=1e-4)  # 20 sqrt(0.05) / 25
    assert values["power density"] == pytest.approx(0.0004)  # 20 mA2 x 500 ohm / 25 cm2
    assert values["energy per pulse"] == pytest.approx(0.2)  # (20 mA)^2 x 500 ohm x 1 ms
    # safety.md A5: 60 mA, 500 us, 50 Hz is 0.54 on 25 cm2 and 2.68 on 5 cm2
    strong = Train.model_validate({**tomllib.loads(DEMO)["trains"]["peroneal"], "current_ma": 60.0})
    for area_cm2, density, exceeded in ((25.0, 0.54, False), (5.0, 2.68, True)):
        rx = settings.prescription.model_copy(update={"electrode_area_cm2": area_cm2})
        one = figures(strong, rx)[2]
        assert (round(one.value, 2), one.exceeded) == (density, exceeded)


@pytest.mark.safety("A6")
def test_a_figure_at_its_limit():
    assert not module.Figure("a", 2.0, "", 2.0, "").exceeded
    assert module.Figure("a", 2.0, "", 2.0, "", False).exceeded
    assert module.Figure("a", 2.1, "", 2.0, "").exceeded
    assert module.Figure("a", 0.1, "W/cm2", 0.25, "", False).bound == "below 0.25 W/cm2"


def test_guard_view():
    view = guard_view(parse(DEMO).with_port("/dev/ttyX"))
    assert json.loads(json.dumps(view)) == view
    assert view == {
        "trains": {
            "peroneal": {
                "channel": 1,
                "current_ua": 20_000,
                "phase_width_us": 500,
                "interphase_gap_us": 100,
                "pulse_rate_mhz": 50_000,
                "duration_us": 500_000,
                "ramp_up_us": 50_000,
                "taper_us": 100_000,
            }
        },
        "manual_train": "peroneal",
        "electrode_area_mm2": 2500,
        "max_current_ua": 20_000,
        "max_charge_nc": 10_000,
        "look_dead_ns": 20_000_000,
        "look_ns": 100_000_000,
        "max_event_ns": 10_000_000_000,
        "refractory_ns": 3_000_000_000,
        "max_on_time_60s_ns": 20_000_000_000,
        "max_duty_5min_ns": 75_000_000_000,
        "max_on_time_session_ns": 1_800_000_000_000,
        "max_on_time_24h_ns": 3_600_000_000_000,
        "max_pulses_session": 180_000,
        "max_pulses_24h": 360_000,
        "max_charge_session_nc": 3_600_000_000,
        "max_charge_24h_nc": 7_200_000_000,
        "max_events_10min": 30,
        "max_auto_events_1h": 60,
        "arming_expires_ns": 30 * 60 * 1_000_000_000,
        "max_sample_age_ns": 100_000_000,
        "max_lateness_ns": 50_000_000,
        "driver": "rehamove3",
        "port": "/dev/ttyX",
        "serial": "",
        "options": {},
        "priority": 80,
        "cpus": [1],
        "page": False,
    }


@given(st.integers(10, 30_000))
def test_guard_and_settings_agree_on_a_charge(charge_nc):
    view = guard_view(build(demo(WEAK | {("trains", "phase_width_us"): 20, ("prescription", "max_charge_per_phase_uc"): charge_nc / 1000})))
    assert view["max_charge_nc"] == charge_nc


# guard's own copy, by its names, from ours; what settings know nothing of is None
COPY = {
    "max_current_ua": module.MAX_CURRENT_MA * 1000,
    "min_phase_width_us": module.MIN_PHASE_WIDTH_US,
    "max_phase_width_us": module.MAX_PHASE_WIDTH_US,
    "min_pulse_rate_mhz": module.MIN_PULSE_RATE_HZ * 1000,
    "max_pulse_rate_mhz": module.MAX_PULSE_RATE_HZ * 1000,
    "min_pulse_spacing_ns": 10**9 / module.MAX_PULSE_RATE_HZ,
    "max_charge_nc": module.MAX_CHARGE_PER_PHASE_UC * 1000,
    "max_rms_density_ua_per_mm2": module.MAX_RMS_DENSITY_MA_PER_CM2 * 10,
    "max_power_density_w_per_m2": module.MAX_POWER_DENSITY_W_PER_CM2 * 10_000,
    "max_pulse_energy_uj": module.MAX_ENERGY_PER_PULSE_MJ * 1000,
    "max_train_us": module.MAX_TRAIN_MS * 1000,
    "min_look_dead_ns": module.MIN_LOOK_DEAD_MS * 10**6,
    "min_look_ns": module.MIN_LOOK_MS * 10**6,
    "max_event_ns": module.MAX_EVENT_S * 10**9,
    "min_refractory_ns": module.MIN_REFRACTORY_S * 10**9,
    "max_on_time_60s_ns": module.MAX_ON_TIME_S_IN_60_S * 10**9,
    "max_duty_5min_ns": module.MAX_DUTY_PERCENT_IN_5_MIN * 3 * 10**9,
    "max_on_time_session_ns": module.MAX_ON_TIME_MIN_IN_SESSION * 60 * 10**9,
    "max_on_time_24h_ns": module.MAX_ON_TIME_MIN_IN_24_H * 60 * 10**9,
    "max_pulses_session": module.MAX_PULSES_IN_SESSION,
    "max_pulses_24h": module.MAX_PULSES_IN_24_H,
    "max_charge_session_nc": module.MAX_CHARGE_MC_IN_SESSION * 10**6,
    "max_charge_24h_nc": module.MAX_CHARGE_MC_IN_24_H * 10**6,
    "max_events_10min": module.MAX_EVENTS_IN_10_MIN,
    "max_auto_events_1h": module.MAX_AUTOMATIC_EVENTS_IN_1_H,
    "max_arming_expires_ns": module.MAX_ARMING_MIN * 60 * 10**9,
    "max_rise_percent_per_s": None,
    "max_step_ua": None,
    "max_step_percent": None,
}


@pytest.mark.safety("A14")
def test_both_copies_of_the_hard_limits_agree():
    hard = dataclasses.asdict(limits.HARD)
    assert set(hard) == set(COPY)
    assert {name: value for name, value in hard.items() if COPY[name] is not None} == {n: v for n, v in COPY.items() if v is not None}
    assert limits.LOAD_OHM == module.LOAD_OHM
    assert limits.MAX_TRIGGER_AGE_NS == module.MAX_SAMPLE_AGE_MS * 10**6


@pytest.mark.safety("A14")
@pytest.mark.parametrize("name", ["demo", "bedside", "bench"])
def test_a_prescription_never_widens_a_hard_limit(name):
    view = guard_view(load(CONFIG / f"{name}.toml"))
    for figure, (low, high) in limits.bounds().items():
        assert low <= view[figure] <= high, figure


@pytest.mark.safety("A14", "A12")
@pytest.mark.parametrize("name", limits.bounds())
def test_guard_reads_every_figure_of_the_view_for_itself(name):
    view = guard_view(parse(DEMO))
    limits.prescription_from(view, DEVICE)
    low, high = limits.bounds()[name]
    for value in (low - 1, high + 1, True, str(view[name]), float(view[name]), None):
        with pytest.raises(ValueError, match=name):
            limits.prescription_from(view | {name: value}, DEVICE)
    del view[name]
    with pytest.raises(ValueError, match=name):
        limits.prescription_from(view, DEVICE)


@pytest.mark.safety("A4", "A5", "A6", "A14")
@hypothesis_settings(max_examples=500, deadline=None)
@given(st.data())
def test_guard_takes_every_dose_that_settings_take_and_no_other(data):
    """Two implementations (floats here, integers there) judge the same train beside the same prescription."""
    rows = [
        row
        for row in BOUNDS
        if row[1] in ("current_ma", "phase_width_us", "pulse_rate_hz", "electrode_area_cm2", "max_charge_per_phase_uc")
    ]
    fine = {(table, key): data.draw(st.integers(round(least / step), round(most / step))) * step for table, key, least, most, step in rows}
    fine = {(table, key): round(value, 3) if isinstance(value, float) else value for (table, key), value in fine.items()}
    fine["prescription", "electrode_area_cm2"] = data.draw(st.floats(1.0, 15.0))
    raw = demo({("prescription", "max_current_ma"): 60.0, **fine})
    try:
        settings = build(raw)
    except SettingsError:
        # the tables are each sound by themselves, so guard can be asked about them
        view = guard_view(module.Settings.model_validate(raw))
        with pytest.raises(ValueError, match="train peroneal"):
            limits.prescription_from(view, DEVICE)
    else:
        limits.prescription_from(guard_view(settings), DEVICE)


@pytest.mark.parametrize("name", ["demo", "bedside", "bench"])
def test_guard_takes_the_shipped_files(name):
    limits.prescription_from(guard_view(load(CONFIG / f"{name}.toml")), DEVICE)


def test_with_port():
    settings = parse(DEMO).with_port('/dev/pts/"7"')
    assert settings.stimulator.port == '/dev/pts/"7"'
    assert parse(settings.to_toml()) == settings
    assert settings.with_port("virtual") == parse(DEMO)
    with pytest.raises(SettingsError, match="port"):
        settings.with_port("")


# --- files that cannot be read ------------------------------------------------------------------------------------------------------
def test_unreadable(tmp_path):
    cases = {"nothing.toml": "no such file", ".": "is a folder", "nul\0": "cannot be read"}
    for name, words in cases.items():
        with pytest.raises(SettingsError, match=words):
            load(tmp_path / name)
    (tmp_path / "latin.toml").write_bytes(DEMO.encode() + "\n# µ".encode("latin-1"))
    with pytest.raises(SettingsError, match=f"latin.toml, line {DEMO.count(chr(10)) + 2}: is not UTF-8"):
        load(tmp_path / "latin.toml")


def test_not_permitted(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError  # the tests may run as root, whom chmod does not stop

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SettingsError, match="may not be read"):
        load(tmp_path)


def test_byte_order_mark_and_windows_lines(tmp_path):
    (tmp_path / "windows.toml").write_bytes(b"\xef\xbb\xbf" + DEMO.replace("\n", "\r\n").encode())
    assert load(tmp_path / "windows.toml") == parse(DEMO)


@pytest.mark.safety("F9")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = \n", "x.toml, line 1, column 5: is not valid TOML"),
        ("[emg]\nunit = 1\nunit = 2\n", "x.toml, line 3"),
        ("[emg]\n[emg]\n", "x.toml, line 2"),
        ("a = [1,\n", "x.toml: is not valid TOML"),
        ("a = " + "9" * 5000, "x.toml: is not valid TOML"),
        ("a = " + "[" * 5000, "x.toml: is not valid TOML"),
        ("yes: no", "x.toml, line 1"),
    ],
)
def test_not_toml(text, words):
    with pytest.raises(SettingsError) as caught:
        parse(text, "x.toml")
    assert str(caught.value).startswith(words)


# --- F9, A12: one wrong word in the file of a bed -----------------------------------------------------------------------------------
def lines_of(text):
    """Line number of each (table, key) of a file like the demo's; of several tables the first."""
    found, table = {}, ""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].strip()
        if words.startswith("["):
            table = words.strip("[]").split(".")[0]
        elif "=" in words:
            found.setdefault((table, words.split("=")[0].strip()), number)
    return found


def refused(text, tmp_path):
    """The mistakes of a file, as whoever starts a bed with it gets to read them."""
    path = tmp_path / "bed.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load(path)
    lines = [line.removeprefix(f"{path}") for line in str(caught.value).split("\n")]
    assert all(len(line) < len(str(path)) + 500 for line in lines)
    return lines


def with_line(number, line):
    """The demo's file, and a join, with another line in that place; None takes it out."""
    lines = WHOLE.splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    return "\n".join(lines)


NO_NUMBERS = {
    **{f"{name} for a number": text for name, text in (("a text", '"1"'), ("true", "true"), ("false", "false"), ("a date", "1979-05-27"))},
    **{f"{name} for a number": text for name, text in (("a list", "[1]"), ("a table", "{ a = 1 }"), ("no text", '""'))},
    **{name: name for name in ("nan", "-nan", "inf", "-inf", "+inf", "1e400", "-1e400", "1e308", "-1", "-1.0", "-1e-400")},
    "a huge whole number": "9" * 400,
    "a huge hexadecimal": "0x" + "f" * 400,
    "a whole number beyond 64 bits": "18446744073709551616",
    "so small that it is 0": "1e-400",
}
MAY_BE_0 = {("emg", "hold_ms"), ("emg_rules", "floor_uv"), ("emg_rules", "mains_hz"), ("emg_rules", "rise_ms")}


@pytest.mark.safety("A12", "F9")
@pytest.mark.parametrize("wrong", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_is_no_sound_number_is_refused_wherever_a_number_belongs(wrong, tmp_path):
    where = lines_of(WHOLE)
    for table, key, least, most, _ in BOUNDS:
        if wrong in ("1e-400", "-1e-400") and (table, key) in MAY_BE_0:
            continue
        number = where[table, key]
        [line] = [one for one in refused(with_line(number, f"{key} = {wrong}"), tmp_path) if f" {key} = " in one]
        assert line.startswith(f", line {number}: ["), line
        kind = "a whole number" if isinstance(least, int) else "a number"
        assert f"at least {least:g} and at most {most:g}" in line, line
        if wrong[0] in '"tf[{':
            assert f"must be {kind}, " in line, line


@pytest.mark.safety("A12", "F9")
@pytest.mark.parametrize("wrong", ["true", "1", "2.5", "nan", "1979-05-27", "[]", "{}"])
def test_what_is_no_text_is_refused_wherever_a_text_belongs(wrong, tmp_path):
    where = lines_of(WHOLE)
    texts = [
        (table, key)
        for table, model in module.TABLES.items()
        for key, field in model.model_fields.items()
        if field.annotation not in (int, float, bool) and (table, key) in where and key not in ("channels", "cpus")
    ]
    assert len(texts) >= 14
    for table, key in texts:
        number = where[table, key]
        [line] = [one for one in refused(with_line(number, f"{key} = {wrong}"), tmp_path) if f" {key} = " in one]
        assert line.startswith(f", line {number}: ["), line
        assert "must be" in line


def test_only_three_settings_are_booleans():
    """So `true` and `false` (and YAML's yes and no, which TOML does not know) are wrong wherever else they stand."""
    fields = {key: field for model in module.TABLES.values() for key, field in model.model_fields.items()}
    assert [key for key, field in fields.items() if field.annotation is bool] == ["experimental", "invert", "markers"]
    assert "experimental = 1 must be true or false" in problems(demo({("stimulator", "experimental"): 1}))[0]


@pytest.mark.safety("F9")
def test_each_key_may_be_missing_only_where_a_default_stands_for_it(tmp_path):
    by_default = {("session", "folder"), ("prescription", "max_charge_per_phase_uc"), ("stimulator", "serial"), ("page", "port")}
    by_default |= {("emg", "hold_ms")} | {
        ("emg_rules", key) for key in ("method", "mains_hz", "rise_ms", "rise_ratio", "intent_channel", "intent_uv")
    }
    by_default |= {("joins", key) for key in ("how", "within_ms")} | {("button", "invert"), ("prescription", "version"), ("lsl", "markers")}
    by_default |= {("realtime", key) for key in module.Realtime.model_fields}
    for (table, key), number in lines_of(WHOLE).items():
        text = with_line(number, None)
        if (table, key) in by_default:
            parse(text)
            continue
        [line] = [one for one in refused(text, tmp_path) if f" {key} is missing" in one]
        assert line.startswith(", line "), line
        assert f"{key} is missing: {module.TABLES[table].model_fields[key].description}; must be" in line


@pytest.mark.safety("F9")
@pytest.mark.parametrize("word", ["yes", "on", "zzz", "'what ever'"])
def test_a_key_that_nobody_knows_is_refused_in_every_table(word, tmp_path):
    tables = {}
    for (table, _), number in lines_of(WHOLE).items():
        tables[table] = number
    assert set(tables) == set(module.TABLES)
    for number in tables.values():
        lines = WHOLE.splitlines()
        lines.insert(number, f"{word} = 1")
        [line] = refused("\n".join(lines), tmp_path)
        assert f"{word.strip(chr(39))} = 1 is not a known key; known keys: " in line
        assert line.startswith(f", line {number + 1}: [") or word[0] == "'"  # of a quoted key the table's line is named


@pytest.mark.safety("F9", "A12")
@pytest.mark.parametrize(
    ("table", "key", "line", "words"),
    [
        ("trains", "current_ma", "current_ma = 0.02", "at least 0.5 and at most 60 mA"),  # amperes
        ("trains", "current_ma", "current_ma = 20000", "at least 0.5 and at most 60 mA"),  # microamperes
        ("trains", "current_ma", "current_ua = 20000", "current_ua = 20000 is not a known key; did you mean current_ma?"),
        ("trains", "phase_width_us", "phase_width_us = 0.5", "must be a whole number, at least 20 and at most 1000 us"),  # ms
        ("trains", "phase_width_us", "phase_width_ms = 0.5", "did you mean phase_width_us?"),
        ("trains", "duration_ms", "duration_s = 0.5", "did you mean duration_ms?"),
        ("trains", "pulse_rate_hz", "pulse_rate_hz = 50000", "at least 1 and at most 100 Hz"),  # millihertz
        ("trains", "pulse_rate_hz", "pulse_period_ms = 20", "pulse_rate_hz is missing"),
        ("prescription", "electrode_area_cm2", "electrode_area_cm2 = 2500", "at least 1 and at most 200 cm2"),  # mm2
        ("prescription", "max_on_time_s_in_60_s", "max_on_time_s_in_60_s = 20000", "at least 0.1 and at most 20 s"),  # ms
        ("prescription", "max_on_time_min_in_session", "max_on_time_min_in_session = 1800", "at least 0.1 and at most 30 min"),  # s
        ("prescription", "max_on_time_min_in_24_h", "max_on_time_s_in_24_h = 3600", "did you mean max_on_time_min_in_24_h?"),
        ("prescription", "max_charge_mc_in_session", "max_charge_mc_in_session = 3600000", "at least 0.001 and at most 3600 mC"),  # uC
        ("prescription", "max_charge_mc_in_24_h", "max_charge_uc_in_24_h = 7200", "did you mean max_charge_mc_in_24_h?"),
        ("prescription", "max_pulses_in_24_h", "max_pulses_in_24_h = 3.6e5", "a whole number, at least 1 and at most 360000 pulses"),
        ("emg", "unit", 'unit = "mv"', 'must be "uV" or "mV" or "V"'),
        ("force", "unit", 'unit = "kg"', 'must be "N" or "N m"'),
        ("emg", "sample_rate_hz", "sample_rate_hz = 2.0", "at least 200 and at most 10000 Hz"),  # kHz
        ("realtime", "max_sample_age_ms", "max_sample_age_ms = 0.1", "at least 10 and at most 250 ms"),  # s
    ],
)
def test_a_figure_in_the_wrong_unit(table, key, line, words, tmp_path):
    number = lines_of(WHOLE)[table, key]
    assert any(words in one for one in refused(with_line(number, line), tmp_path))
    assert any(one.startswith(f", line {number}: [") for one in refused(with_line(number, line), tmp_path))


@pytest.mark.safety("F9")
def test_a_key_that_stands_twice_is_refused_even_with_the_same_value(tmp_path):
    lines = WHOLE.splitlines()
    for number in lines_of(WHOLE).values():
        [line] = refused("\n".join([*lines[:number], *lines[number - 1 :], ""]), tmp_path)
        assert line.startswith(f", line {number + 1}, column ")
        assert "a key or a table stands twice: give it once" in line
    [line] = refused(DEMO + "\n[prescription]\n", tmp_path)
    assert "stands twice" in line


@pytest.mark.safety("A1", "A14", "F9")
def test_a_figure_beyond_its_ceiling_is_refused_and_not_clipped(tmp_path):
    where = lines_of(WHOLE)
    for table, key, _, most, _ in BOUNDS:
        value = most + 1 if isinstance(most, int) else math.nextafter(most, math.inf)
        [line] = [one for one in refused(with_line(where[table, key], f"{key} = {value!r}"), tmp_path) if f" {key} = {value}" in one]
        assert f"at most {most:g}" in line


@pytest.mark.safety("F9")
@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "[session]\n"])
def test_an_empty_file_says_what_belongs_in_it(text, tmp_path):
    lines = refused(text, tmp_path)
    for table in ("trains", "prescription", "stimulator"):
        assert any(f"[{table}] is missing: {module.Settings.model_fields[table].description}" in line for line in lines)
    assert len(lines) == 3


@pytest.mark.safety("F9", "A12")
def test_ten_mistakes_are_ten_lines_in_the_order_of_the_file(tmp_path):
    where = lines_of(WHOLE)
    wrong = {
        ("emg", "sample_rate_hz"): "true",
        ("emg_rules", "false_alarms_per_h"): "nan",
        ("force_rules", "rate_per_s"): '"15"',
        ("trains", "current_ma"): "61.0",
        ("trains", "duration_ms"): "500.0",
        ("prescription", "max_current_ma"): "-20",
        ("prescription", "max_pulses_in_session"): "180001",
        ("prescription", "max_charge_mc_in_24_h"): "inf",
        ("stimulator", "serial"): "42",
        ("realtime", "cpus"): "[true]",
    }
    lines = DEMO.splitlines()
    for place, value in wrong.items():
        lines[where[place] - 1] = f"{place[1]} = {value}"
    found = refused("\n".join(lines), tmp_path)
    assert len(found) == 10
    assert [int(line.removeprefix(", line ").split(":")[0]) for line in found] == [where[place] for place in wrong]
    assert all(key in line and "must be" in line for line, (_, key) in zip(found, wrong, strict=True))


# --- whatever stands in the file: settings or SettingsError, never anything else ----------------------------------------------------
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["SOL1", "peroneal", 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.sampled_from(["name", "channel"]), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACES = [(table, key) for table, model in module.TABLES.items() for key in (*model.model_fields, "unheard_of")]


def survives(make):
    try:
        settings = make()
    except SettingsError as error:
        assert error.problems
        assert all(problem and "\n" not in problem for problem in error.problems)
    else:
        assert parse(settings.to_toml()) == settings
        json.dumps(guard_view(settings), allow_nan=False)
        json.dumps(summary(settings), allow_nan=False)


@pytest.mark.safety("A12", "F9")
@hypothesis_settings(max_examples=600, deadline=None)
@given(st.dictionaries(st.sampled_from(PLACES), VALUES, min_size=1, max_size=3))
def test_any_value_in_any_key(changes):
    survives(lambda: build(demo(changes)))


@pytest.mark.safety("F9")
@hypothesis_settings(max_examples=200, deadline=None)
@given(st.sampled_from([*module.TABLES, "other"]), VALUES | st.lists(st.dictionaries(st.text(max_size=3), VALUES), max_size=2))
def test_any_value_as_table(table, value):
    survives(lambda: build(demo() | {table: value}))


@pytest.mark.safety("F9")
@hypothesis_settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_text_in_the_file(data):
    at = data.draw(st.integers(0, len(DEMO)))
    until = data.draw(st.integers(at, min(at + 20, len(DEMO))))
    survives(lambda: parse(DEMO[:at] + data.draw(st.text(max_size=8)) + DEMO[until:]))


@given(st.text(min_size=1, max_size=50))
def test_round_trip_of_any_name(name):
    survives(lambda: build(demo({("prescription", "author"): name, ("emg", "stream_name"): name})))
