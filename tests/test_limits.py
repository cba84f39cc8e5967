"""What may leave at all, judged by figures worked out here."""

import itertools
from dataclasses import asdict, fields, replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import limits
from controller.limits import (
    HARD,
    MINUTE,
    MS,
    HardLimits,
    S,
    Train,
    bounds,
    charge_nc,
    check_prescription,
    highest_step,
    layer,
    n_pulses,
    prescription_from,
    pulse_current,
    pulse_reasons,
    soft_start,
    tightest,
)
from tests.bed import DEVICE, RX, TRAIN


def with_train(rx=RX, **changes):
    return replace(rx, trains=(replace(TRAIN, **changes),))


# --- the figures that a clinician signs -------------------------------------------------------------------------------------------
@pytest.mark.safety("A1", "A2", "A3", "A4", "A5", "A6", "A8", "A9", "A10", "A11", "B4")
def test_the_hard_limits_are_those_of_the_table_that_is_to_be_signed():
    """Written out a second time, so that no figure changes by accident (design table "Hard limits" and safety notes A1 to A11)."""
    assert asdict(HARD) == {
        "max_current_ua": 60_000,
        "min_phase_width_us": 20,
        "max_phase_width_us": 1_000,
        "min_pulse_rate_mhz": 1_000,
        "max_pulse_rate_mhz": 100_000,
        "min_pulse_spacing_ns": 10_000_000,
        "max_charge_nc": 30_000,
        "max_rms_density_ua_per_mm2": 20,
        "max_power_density_w_per_m2": 2_500,
        "max_pulse_energy_uj": 300_000,
        "max_train_us": 2_000_000,
        "min_look_dead_ns": 20_000_000,
        "min_look_ns": 100_000_000,
        "max_event_ns": 10_000_000_000,
        "min_refractory_ns": 1_000_000_000,
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
        "max_arming_expires_ns": 1_800_000_000_000,
        "max_rise_percent_per_s": 20,
        "max_step_ua": 2_000,
        "max_step_percent": 10,
    }
    assert (limits.LOAD_OHM, limits.MAX_TRIGGER_AGE_NS) == (500, 250_000_000)
    with pytest.raises(AttributeError):
        HARD.max_current_ua = 70_000


def test_nothing_of_the_limits_can_be_set_from_outside():
    assert HardLimits() == HARD
    assert {f.name for f in fields(HardLimits)} == set(asdict(HARD))


# --- the prescription against the layers below it ---------------------------------------------------------------------------------
EDGES = {
    "electrode_area_mm2": (1, 100_000),
    "max_current_ua": (0, 60_000),
    "max_charge_nc": (0, 30_000),
    "look_dead_ns": (20 * MS, S),
    "look_ns": (100 * MS, S),
    "max_event_ns": (0, 10 * S),
    "refractory_ns": (S, 24 * 3600 * S),
    "max_on_time_60s_ns": (0, 20 * S),
    "max_duty_5min_ns": (0, 75 * S),
    "max_on_time_session_ns": (0, 30 * MINUTE),
    "max_on_time_24h_ns": (0, 60 * MINUTE),
    "max_pulses_session": (0, 180_000),
    "max_pulses_24h": (0, 360_000),
    "max_charge_session_nc": (0, 3_600_000_000),
    "max_charge_24h_nc": (0, 7_200_000_000),
    "max_events_10min": (0, 30),
    "max_auto_events_1h": (0, 60),
    "arming_expires_ns": (S, 30 * MINUTE),
    "max_sample_age_ns": (MS, 250 * MS),
    "max_lateness_ns": (MS, 250 * MS),
}


@pytest.mark.safety("A1", "A4", "A9", "A10", "A12", "A14")
@pytest.mark.parametrize("name", EDGES)
def test_a_figure_of_the_prescription_is_refused_one_step_beyond_its_bounds_and_for_every_other_type(name):
    low, high = EDGES[name]
    assert bounds()[name] == (low, high)

    def named(value):
        return [reason for reason in check_prescription(replace(RX, **{name: value})) if reason.startswith(f"{name} = ")]

    assert named(low) == named(high) == []
    for value in (
        low - 1,
        high + 1,
        -1,
        True,
        False,
        None,
        1.0,
        float(high),
        float("nan"),
        float("inf"),
        str(low),
        1e-400,
        10**400,
        [low],
        {},
    ):
        (reason,) = named(value)
        assert reason == f"{name} = {value!r} must be a whole number from {low} to {high} [A14, hard limit]"


def test_every_figure_of_the_prescription_has_its_bounds():
    others = {"trains", "manual_train", "device"}
    assert set(bounds()) == set(EDGES) == {f.name for f in fields(RX)} - others
    assert check_prescription(RX) == []


@pytest.mark.safety("A1", "A2", "A3", "A7", "A8", "A11", "A12")
@pytest.mark.parametrize(
    ("name", "low", "high", "why"),
    [
        ("channel", 1, 4, "A12, device"),
        ("current_ua", 500, 20_000, "A1, prescription"),
        ("phase_width_us", 20, 1_000, "A2, hard limit"),
        ("interphase_gap_us", 0, 1_000, "A7, hard limit"),
        ("pulse_rate_mhz", 1_000, 100_000, "A3, hard limit"),
        ("duration_us", 1, 2_000_000, "A8, hard limit"),
        ("ramp_up_us", 0, 2_000_000, "A11, hard limit"),
        ("taper_us", 0, 2_000_000, "A11, hard limit"),
    ],
)
def test_a_figure_of_a_train_is_refused_one_step_beyond_its_bounds_and_for_every_other_type(name, low, high, why):
    def named(value):
        return [
            reason for reason in check_prescription(with_train(**{name: value})) if f": {name} = " in reason and "multiple" not in reason
        ]

    assert named(low) == named(high) == []
    for value in (low - 1, high + 1, True, None, 1.0, float("nan"), str(low), 10**400):
        assert named(value) == [f"train peroneal: {name} = {value!r} must be a whole number from {low} to {high} [{why}]"]


@pytest.mark.safety("A1", "A2", "A3", "A12", "A14")
def test_the_device_is_a_layer_of_its_own():
    def wrong(**device):
        return check_prescription(replace(RX, device=DEVICE._replace(**device)))

    assert wrong() == []
    assert wrong(max_current_ua=20_000) == []
    assert wrong(max_current_ua=19_500) == ["train peroneal: current_ua = 20000 must be a whole number from 500 to 19500 [A1, device]"]
    assert wrong(max_phase_width_us=499) == ["train peroneal: phase_width_us = 500 must be a whole number from 20 to 499 [A2, device]"]
    assert wrong(min_phase_width_us=501) == [
        "train peroneal: phase_width_us = 500 must be a whole number from 501 to 1000 [A2, hard limit]"
    ]
    assert wrong(max_pulse_rate_mhz=49_999) == [
        "train peroneal: pulse_rate_mhz = 50000 must be a whole number from 1000 to 49999 [A3, device]"
    ]
    assert wrong(n_channels=0) == ["train peroneal: channel = 1 must be a whole number from 1 to 0 [A12, device]"]
    assert wrong(current_step_ua=300) == ["train peroneal: current_ua = 20000 is no multiple of the step of 300 uA [A12, device]"]
    for value in (0, 60_001, True, None, 0.5):
        words = f"device.current_step_ua = {value!r} must be a whole number from 1 to 60000 [A12, device]"
        assert wrong(current_step_ua=value) == [words]
    for value in (0, 10**9 + 1, False, 1.0):
        words = f"device.max_current_ua = {value!r} must be a whole number from 1 to 1000000000 [A12, device]"
        assert wrong(max_current_ua=value) == [words]
    assert wrong(current_step_ua=1, max_current_ua=10**9) == []
    assert wrong(latency_spread_ns=0) == wrong(latency_spread_ns=10**9) == []
    for value in (-1, 10**9 + 1, 0.5):
        words = f"device.latency_spread_ns = {value!r} must be a whole number from 0 to 1000000000 [A12, device]"
        assert wrong(latency_spread_ns=value) == [words]
    assert (DEVICE.latency_spread_ns, RX.min_spacing_ns) == (0, 10 * MS)
    assert replace(RX, device=DEVICE._replace(latency_spread_ns=14 * MS)).min_spacing_ns == 24 * MS


def test_all_that_is_wrong_is_named_at_once():
    assert len(check_prescription(replace(RX, look_ns=0, refractory_ns=0, device=DEVICE._replace(current_step_ua=0)))) == 3
    wrong = check_prescription(replace(RX, trains=(replace(TRAIN, channel=0, duration_us=0), replace(TRAIN, name="b", current_ua=1))))
    assert [reason.split(" = ")[0] for reason in wrong] == ["train peroneal: channel", "train peroneal: duration_us", "train b: current_ua"]


def test_ramp_and_taper_lie_within_the_train():
    assert check_prescription(with_train(ramp_up_us=400_000)) == []
    assert check_prescription(with_train(ramp_up_us=400_001)) == ["train peroneal: ramp and taper are longer than the train [A12]"]


# --- the pulse: charge, density, power, energy ------------------------------------------------------------------------------------
@pytest.mark.safety("A5")
def test_rms_density_figure():
    # 60 mA, 500 us, 50 Hz: 0.54 mA/cm² on 25 cm², 2.68 on 5 cm² (safety requirement A5)
    strong = replace(with_train(current_ua=60_000), max_current_ua=60_000, max_charge_nc=30_000)
    assert check_prescription(strong) == []
    assert check_prescription(replace(strong, electrode_area_mm2=500)) == [
        "train peroneal: rms density is above 2.0 mA/cm2 on 5.0 cm2 [A5, hard limit]"
    ]


def free(t, area_mm2, current_ua=10**9):
    """A prescription in which nothing but the hard limits binds."""
    device = DEVICE._replace(max_current_ua=10**9)
    return replace(RX, trains=(t,), electrode_area_mm2=area_mm2, max_current_ua=current_ua, max_charge_nc=10**9, device=device)


@pytest.mark.safety("A1", "A4", "A5", "A6")
@settings(max_examples=500, deadline=None)
@given(
    st.integers(1, 200_000),
    st.integers(1, 70_000),
    st.integers(1, 500_000),
    st.integers(1, 10_000),
)
def test_a_pulse_is_refused_for_exactly_what_exact_arithmetic_says(current_ua, width_us, rate_mhz, area_mm2):
    t = Train("t", 1, 200_000, width_us, 0, rate_mhz, 1_000_000, 0, 0)
    ampere, width_s, rate_hz, area_m2 = (
        Fraction(current_ua, 10**6),
        Fraction(width_us, 10**6),
        Fraction(rate_mhz, 1000),
        Fraction(area_mm2, 10**6),
    )
    square = ampere**2 * 2 * width_s * rate_hz  # rms current, squared
    expected = []
    if current_ua > 60_000:
        expected.append("A1")
    if ampere * width_s > Fraction(30, 10**6):
        expected.append("A4")
    if square / area_m2**2 > 20**2:  # 2 mA/cm² = 20 A/m²
        expected.append("A5")
    if square * 500 / area_m2 >= 2500:
        expected.append("A6")
    if ampere**2 * 500 * 2 * width_s > Fraction(3, 10):
        expected.append("A6")
    reasons = pulse_reasons(t, current_ua, free(t, area_mm2))
    assert [reason.split("[")[1][:2] for reason in reasons] == expected


@pytest.mark.safety("A1", "A4", "A6")
def test_the_words_and_edges_of_a_refused_pulse():
    t = replace(TRAIN, current_ua=200_000)
    assert pulse_reasons(t, 60_000, free(t, 10_000)) == []
    assert pulse_reasons(t, 60_001, free(t, 10_000)) == [
        "current 60001 uA is not above 0 and at most 60000 uA [A1, hard limit]",
        "charge 30000 nC per phase is above 30000 nC [A4, hard limit]",
    ]
    for current_ua in (0, -1, -60_000):
        assert pulse_reasons(TRAIN, current_ua, RX)[0] == f"current {current_ua} uA is not above 0 and at most 20000 uA [A1, prescription]"
    assert pulse_reasons(TRAIN, 1, RX) == []
    assert "at most 10000 uA [A1, prescription]" in pulse_reasons(replace(TRAIN, current_ua=10_000), 10_500, RX)[0]
    assert "at most 10000 uA [A1, prescription]" in pulse_reasons(TRAIN, 10_500, replace(RX, max_current_ua=10_000))[0]
    assert "at most 10000 uA [A1, device]" in pulse_reasons(TRAIN, 10_500, replace(RX, device=DEVICE._replace(max_current_ua=10_000)))[0]
    assert pulse_reasons(TRAIN, 20_000, RX) == []
    assert pulse_reasons(TRAIN, 20_000, replace(RX, max_charge_nc=9_999)) == [
        "charge 10000 nC per phase is above 9999 nC [A4, prescription]"
    ]
    slow = replace(TRAIN, phase_width_us=50_000, pulse_rate_mhz=1, current_ua=60_000)
    assert pulse_reasons(slow, 60_000, free(slow, 100_000))[1:] == []
    strong = Train("t", 1, 10**6, 1_000, 0, 1_000, 10**6, 0, 0)
    assert pulse_reasons(strong, 547_722, free(strong, 100_000))[2:] == []  # 0.29999... J into 500 ohm
    assert pulse_reasons(strong, 547_723, free(strong, 100_000))[2:] == ["energy of a pulse is above 300 mJ [A6, hard limit]"]
    # I² 2 w f R / A: 1 A, 1 ms, 1 Hz, 500 ohm: 1 W; on 4 cm² just 0.25 W/cm², which is not below it
    assert "power density is not below 0.25 W/cm2 [A6, hard limit]" in pulse_reasons(strong, 10**6, free(strong, 400))
    assert "power density is not below 0.25 W/cm2 [A6, hard limit]" not in pulse_reasons(strong, 10**6, free(strong, 401))


@pytest.mark.safety("A14")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_tighter_layer_never_lets_more_through(data):
    """Whatever figure of whatever layer is lowered: what it allows, the looser one had allowed."""
    t = replace(TRAIN, current_ua=data.draw(st.integers(1, 130) | st.just(40)) * 500, phase_width_us=data.draw(st.integers(20, 1000)))
    loose = replace(
        RX,
        trains=(t,),
        electrode_area_mm2=data.draw(st.integers(1, 5_000)),
        max_current_ua=data.draw(st.integers(0, 60_000)),
        max_charge_nc=data.draw(st.integers(0, 30_000)),
        device=DEVICE._replace(max_current_ua=data.draw(st.integers(1, 130_000))),
    )
    tight = replace(
        loose,
        electrode_area_mm2=data.draw(st.integers(1, loose.electrode_area_mm2)),
        max_current_ua=data.draw(st.integers(0, loose.max_current_ua)),
        max_charge_nc=data.draw(st.integers(0, loose.max_charge_nc)),
        device=DEVICE._replace(max_current_ua=data.draw(st.integers(1, loose.device.max_current_ua))),
    )
    current_ua = data.draw(st.integers(-1, 70_000))
    assert pulse_reasons(t, current_ua, loose) == [] or pulse_reasons(t, current_ua, tight) != []
    assert check_prescription(loose) == [] or check_prescription(tight) != []


@pytest.mark.safety("A14")
def test_the_tightest_layer_is_named_and_of_equals_the_most_basic():
    for values in itertools.product((1, 2, 3), repeat=3):
        value, by = tightest((values[0], "hard limit"), (values[1], "device"), (values[2], "prescription"))
        assert value == min(values)
        assert by == ("hard limit", "device", "prescription")[values.index(min(values))]
    assert layer(RX, "max_event_ns") == "hard limit"
    assert layer(replace(RX, max_event_ns=5 * S), "max_event_ns") == "prescription"
    assert layer(replace(RX, refractory_ns=S), "refractory_ns") == "hard limit"
    assert layer(RX, "refractory_ns") == "prescription"


# --- from the daemon's view -------------------------------------------------------------------------------------------------------
def view_of(rx=RX):
    train = {f.name: getattr(rx.trains[0], f.name) for f in fields(Train) if f.name != "name"}
    return {"trains": {"peroneal": train}, "manual_train": "peroneal", "driver": "x"} | {name: getattr(rx, name) for name in EDGES}


def test_a_view_becomes_the_prescription():
    assert prescription_from(view_of(), DEVICE) == RX
    two = view_of()
    two["trains"] = {"a": two["trains"]["peroneal"], "b": two["trains"]["peroneal"]}
    two["manual_train"] = "b"
    made = prescription_from(two, DEVICE)
    assert ([t.name for t in made.trains], made.manual_train) == (["a", "b"], 1)


@pytest.mark.safety("A12", "F9")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trains": None}, r"trains must be a table with at least one train \[A12\]"),
        ({"trains": {}}, r"trains must be a table with at least one train \[A12\]"),
        ({"trains": [1]}, r"trains must be a table with at least one train \[A12\]"),
        (
            {"trains": {"peroneal": 5}},
            r"train 'peroneal' must have exactly the figures channel, current_ua, duration_us, interphase_gap_us",
        ),
        ({"trains": {"peroneal": {"channel": 1}}}, "train 'peroneal' must have exactly"),
        ({"trains": {"peroneal": view_of()["trains"]["peroneal"] | {"extra": 1}}}, "train 'peroneal' must have exactly"),
        ({"manual_train": "other"}, r"manual_train 'other' is none of \['peroneal'\] \[A12\]"),
        ({"manual_train": None}, "manual_train None is none of"),
        ({"look_ns": None, "max_event_ns": 1.5}, r"look_ns = None .*; max_event_ns = 1.5 "),
    ],
)
def test_a_view_that_is_not_whole_makes_no_prescription(changes, words):
    with pytest.raises(ValueError, match=words):
        prescription_from(view_of() | changes, DEVICE)


@pytest.mark.parametrize("name", [*EDGES, "trains", "manual_train"])
def test_a_view_in_which_something_is_missing_makes_no_prescription(name):
    view = view_of()
    del view[name]
    with pytest.raises(ValueError, match=name):
        prescription_from(view, DEVICE)


@pytest.mark.safety("B3")
def test_two_prescriptions_differ_in_their_numbers_if_they_differ_in_anything():
    numbers = {RX.number, replace(RX, device=DEVICE._replace(model="other")).number}
    for name in EDGES:
        numbers.add(replace(RX, **{name: getattr(RX, name) - 1}).number)
    for f in fields(Train):
        value = getattr(TRAIN, f.name)
        numbers.add(with_train(**{f.name: value + ("x" if f.name == "name" else 1)}).number)
    assert len(numbers) == 2 + len(EDGES) + len(fields(Train))
    assert all(0 < number < 1 << 48 for number in numbers)
    assert replace(RX).number == RX.number


# --- the shape of a train ---------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A10")
@pytest.mark.parametrize(
    ("current_ua", "width_us", "nc"), [(20_000, 500, 10_000), (500, 1, 1), (500, 2, 1), (500, 3, 2), (1_500, 333, 500), (0, 500, 0)]
)
def test_charge_is_rounded_up(current_ua, width_us, nc):
    assert charge_nc(replace(TRAIN, phase_width_us=width_us), current_ua) == nc


def test_period_and_pulse():
    assert (TRAIN.period_ns, TRAIN.pulse_ns) == (20 * MS, 1_100_000)
    assert (replace(TRAIN, pulse_rate_mhz=30_000).period_ns, replace(TRAIN, interphase_gap_us=0).pulse_ns) == (33_333_333, MS)


@pytest.mark.parametrize(("duration_us", "n"), [(1, 1), (20_000, 1), (20_001, 2), (40_000, 2), (40_001, 3), (500_000, 25), (0, 1)])
def test_number_of_pulses(duration_us, n):
    assert n_pulses(TRAIN, duration_us) == n


@pytest.mark.safety("A11")
def test_ramp_and_taper():
    assert [pulse_current(TRAIN, k, 20_000, 500_000, 500) for k in range(25)] == [
        8000,
        16000,
        *[20000] * 18,
        20000,
        16000,
        12000,
        8000,
        4000,
    ]
    assert [pulse_current(TRAIN, k, 1_000, 500_000, 500) for k in (0, 1, 2, 24)] == [500, 500, 1000, 500]
    flat = replace(TRAIN, ramp_up_us=0, taper_us=0)
    assert {pulse_current(flat, k, 20_000, 500_000, 500) for k in range(25)} == {20_000}
    exact = replace(TRAIN, ramp_up_us=40_000, taper_us=40_000)
    assert [pulse_current(exact, k, 20_000, 500_000, 500) for k in (0, 1, 22, 23, 24)] == [10_000, 20_000, 20_000, 20_000, 10_000]
    both = replace(TRAIN, ramp_up_us=60_000, taper_us=60_000, duration_us=60_000)
    assert [pulse_current(both, k, 21_000, 60_000, 500) for k in range(3)] == [7_000, 14_000, 7_000]
    for current in range(500, 20_001, 500):
        currents = [pulse_current(TRAIN, k, current, 500_000, 500) for k in range(25)]
        assert all(500 <= c <= current and c % 500 == 0 for c in currents)


@pytest.mark.safety("A11")
def test_the_soft_start_rises_by_a_fifth_of_the_current_in_a_second():
    assert [soft_start(TRAIN, ns, 500) for ns in (0, 125 * MS - 1, 125 * MS, 250 * MS, S, 5 * S, 6 * S)] == [
        500,
        500,
        500,
        1000,
        4000,
        20_000,
        24_000,
    ]
    assert soft_start(TRAIN, S - 1, 500) == 3_500
    assert soft_start(TRAIN, S, 300) == 3_900
    assert soft_start(TRAIN, -S, 500) == 500


@pytest.mark.safety("A11")
@pytest.mark.parametrize(
    ("last_ua", "step"), [(500, 500), (5_000, 500), (9_999, 999), (10_000, 1_000), (20_000, 2_000), (25_000, 2_000), (60_000, 2_000)]
)
def test_the_next_train_may_be_this_much_stronger(last_ua, step):
    assert highest_step(last_ua, 500) == step
