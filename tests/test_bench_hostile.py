"""The bench of hostile events: it runs, the product holds, and the judge finds what is planted."""

import json
import os
from dataclasses import replace

import pytest
from hypothesis import Phase

from bench import hostile
from bench.hostile_bed import Bed, PlayedGuard, encoded
from bench.hostile_judge import MINUTE, MS, Judge, S, electrode_faults, prescription_faults
from controller import guard as guard_module
from controller import limits, supervisor, wire
from controller.supervisor import Kind, Supervisor
from drivers.stimulators import sciencemode34

TRAIN = {
    "channel": 1,
    "current_ua": 5_000,
    "phase_width_us": 200,
    "interphase_gap_us": 100,
    "pulse_rate_mhz": 20_000,
    "duration_us": 500_000,
    "ramp_up_us": 0,
    "taper_us": 0,
}
VIEW = {
    "trains": {"a": TRAIN},
    "manual_train": "a",
    "electrode_area_mm2": 2_500,
    "max_current_ua": 5_000,
    "max_charge_nc": 1_000,
    "look_dead_ns": 20 * MS,
    "look_ns": 100 * MS,
    "max_event_ns": S,
    "refractory_ns": S,
    "max_on_time_60s_ns": S,
    "max_duty_5min_ns": 75 * S,
    "max_on_time_session_ns": 30 * MINUTE,
    "max_on_time_24h_ns": 60 * MINUTE,
    "max_pulses_session": 180_000,
    "max_pulses_24h": 360_000,
    "max_charge_session_nc": 10**9,
    "max_charge_24h_nc": 10**9,
    "max_events_10min": 3,
    "max_auto_events_1h": 2,
    "arming_expires_ns": MINUTE,
    "max_sample_age_ns": 100 * MS,
    "max_lateness_ns": 50 * MS,
    "driver": "rehamove3",
    "serial": "",
}
PRESS = ("train", "person", 1, ("trigger", ()), 100)
REQUEST = ("train", "loop", 1, (0, 100, ()), 100)
SHORT = ("train", "loop", 1, (0, 10, ()), 100)


def play(*steps, view=VIEW, latency_ns=MS):
    return Bed(view, latency_ns, hostile.script(steps)).play()


# --- the product --------------------------------------------------------------------------------------------------------------------
@pytest.mark.safety("A1", "A9", "B1", "C2", "E4")
def test_the_product_holds(tmp_path, capsys):
    file = tmp_path / "hostile.json"
    assert hostile.main(["--quick", "--gate", "--seed", "3", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["broken"] == 0 and result["events"] >= 20_000 and result["hostile"] > 1_000
    assert result["pulses"] > 100 and result["restarts"] > 10 and result["kills"] > 5
    assert {"A1", "A9", "A12", "B2", "C7", "E4"} <= set(result["reasons"])
    out = capsys.readouterr().out
    assert "rules broken: 0" in out and "met    broken" in out


@pytest.mark.safety("A10")
def test_charge_is_counted_in_full():
    faint = {"trains": {"a": TRAIN | {"current_ua": 500, "phase_width_us": 21}}, "max_charge_session_nc": 300, "max_on_time_60s_ns": 2 * S}
    bed = play(PRESS, PRESS, PRESS, view=VIEW | faint)
    assert not bed.judge.broken and len(bed.judge.given) == 2  # 105 nC each


def test_the_same_seed_plays_the_same():
    runs = [hostile.Campaign([VIEW], 5, 6) for _ in range(2)]
    for run in runs:
        run.batch()
    assert runs[0].counts == runs[1].counts and runs[0].reasons == runs[1].reasons and not runs[0].broken


def test_a_bed_plays_what_is_lawful():
    bed = play(PRESS, REQUEST)
    assert not bed.judge.broken
    assert [(t.ask.automatic, t.pulses, t.end_ns - t.start_ns) for t in bed.judge.given] == [(False, 10, 500 * MS), (True, 10, 500 * MS)]
    assert bed.judge.pulses == bed.box._judge.pulses == 20


@pytest.mark.parametrize("how", ["guard", "row1", "row20", "link", "end", "power", "power, clock back"])
@pytest.mark.safety("A10", "B1", "F8")
def test_dose_and_rest_hold_over_every_restart(how):
    steps = [PRESS, ("restart", how, ()), PRESS, ("edge", "refractory", False, False, 0, "person"), ("restart", how, ()), PRESS, PRESS]
    bed = play(*steps)
    assert not bed.judge.broken and 1 <= bed.counts["restarts"] <= 2
    assert bed.reasons["A9"] > 0  # two in a minute are prescribed, and what a kill can hide counts too
    later = play(*steps, ("wait", "still", 11 * MINUTE), PRESS)
    assert not later.judge.broken and len(later.judge.given) == len(bed.judge.given) + 1


def test_goals(monkeypatch, capsys):
    row = {"hostile": 10, "pulses": 60_000, "never_refused": ["A1"], "broken": 0}
    assert {goal["goal"]: goal["met"] for goal in hostile.judged(row, quick=False)} == {
        "hostile": False,
        "pulses": True,
        "never_refused": False,
        "broken": True,
    }
    assert [goal["goal"] for goal in hostile.judged(row, quick=True)] == ["broken"]
    monkeypatch.setattr(hostile.Campaign, "batch", lambda run: run.broken.append("planted"))
    assert hostile.main(["--quick"]) == 0 and hostile.main(["--quick", "--gate"]) == 1
    captured = capsys.readouterr()
    assert "missed: broken" in captured.err and "  planted" in captured.out


# --- what is planted, and must be found -----------------------------------------------------------------------------------------------
def loosen(monkeypatch, **changes):
    """Guard works with a prescription that is looser than the one that it was given."""
    real = guard_module.prescription_from

    def prescription_from(view, device):
        p = real(view, device)
        return replace(p, **{name: change(getattr(p, name)) for name, change in changes.items()})

    monkeypatch.setattr(guard_module, "prescription_from", prescription_from)


def replace_in_table(monkeypatch, kind, name, new):
    real = getattr(Supervisor, name)
    for state, deed in supervisor.TABLE[kind].items():
        if deed is real:
            monkeypatch.setitem(supervisor.TABLE[kind], state, new(real))


def short_refractory(monkeypatch):
    loosen(monkeypatch, refractory_ns=lambda ns: ns - MS)


def short_look(monkeypatch):
    loosen(monkeypatch, look_ns=lambda ns: ns - MS)


def window_of_59_s(monkeypatch):
    real = Supervisor._on_time
    monkeypatch.setattr(Supervisor, "_on_time", lambda s, since_ns: real(s, since_ns + S))


def one_event_more(monkeypatch):
    loosen(monkeypatch, max_events_10min=lambda n: n + 1)


def one_automatic_event_more(monkeypatch):
    loosen(monkeypatch, max_auto_events_1h=lambda n: n + 1)


def one_step_more(monkeypatch):
    """Supervisor and driver agree on half a milliampere too much."""
    real = guard_module.pulse_train
    monkeypatch.setattr(guard_module, "pulse_train", lambda t: real(t | {"current_ua": t["current_ua"] + 500}))
    louder = {"max_current_ua": lambda ua: ua + 500, "max_charge_nc": lambda nc: nc * 2}
    loosen(monkeypatch, **louder, trains=lambda trains: tuple(replace(t, current_ua=t.current_ua + 500) for t in trains))


def no_wire_check(monkeypatch):
    monkeypatch.setattr(wire.WireCheck, "write", lambda _, fd, data: os.write(fd, data))
    monkeypatch.setattr(wire.WireCheck, "learn", lambda *_: None)


def wrong_encoder(monkeypatch):
    monkeypatch.setattr(sciencemode34, "_CURRENT_ZERO", 301)  # of the encoder, and of its own look back


def forgetful(monkeypatch):
    real = Supervisor.remember
    nothing = {"trains": [], "minutes": [], "session": [0, 0, 0], "events": [], "auto_events": []}
    monkeypatch.setattr(Supervisor, "remember", lambda s, history: real(s, history | nothing))


def long_arming(monkeypatch):
    loosen(monkeypatch, arming_expires_ns=lambda ns: ns + S)


def one_step_arming(monkeypatch):
    def new(real):
        def _arm(s, event):
            s.offer, s.offer_ns = event.number, event.now_ns
            return real(s, event)

        return _arm

    replace_in_table(monkeypatch, Kind.ARM, "_arm", new)


def wish_survives_stop(monkeypatch):
    def new(real):
        def _stop(s, event):
            output = real(s, event)
            s.stop_ns = 0
            return output

        return _stop

    replace_in_table(monkeypatch, Kind.STOP, "_stop", new)


def no_audit(monkeypatch):
    real = PlayedGuard.look_at_disk

    def look_at_disk(g, now):
        g.arm_row = min(g.arm_row, 1)
        real(g, now)

    monkeypatch.setattr(PlayedGuard, "look_at_disk", look_at_disk)


def impatient(monkeypatch):
    """The next pulse does not wait for the answer to the last."""
    real = Supervisor._due

    def _due(s, now):
        s.outstanding = False
        return real(s, now)

    monkeypatch.setattr(Supervisor, "_due", _due)


def patient_with_the_box(monkeypatch):
    monkeypatch.setattr(supervisor, "ACK_TIMEOUT_NS", 250 * MS)


def deaf_to_errors(monkeypatch):
    replace_in_table(monkeypatch, Kind.DEVICE_FAULT, "_trouble", lambda _: Supervisor._ack)


def long_lease(monkeypatch):
    monkeypatch.setattr(supervisor, "LEASE_NS", 230 * MS)


def harder_start(monkeypatch):
    steeper = replace(limits.HARD, max_rise_percent_per_s=21)
    monkeypatch.setattr(limits, "HARD", steeper)


def all_prescriptions(monkeypatch):
    monkeypatch.setattr(limits, "check_prescription", lambda _: [])


ONE_AND_ON = (("volley", [(0, "command", "patient", "trigger", ())]), ("wait", "live", S))
FOUND = [  # what is planted; a sequence that is nearly lawful; what is said of it
    (short_refractory, [PRESS, ("edge", "refractory", False, False, -MS, "person")], "after the last train"),
    (short_look, [REQUEST, ("edge", "look", False, False, -MS, "loop")], "after the last train"),
    (window_of_59_s, [PRESS, PRESS, ("edge", MINUTE, False, False, -MS, "person")], "of stimulation in 60 s"),
    (one_event_more, [PRESS, PRESS, ("wait", "live", 61 * S), PRESS, PRESS], "too many events in 10 min"),
    (one_automatic_event_more, [SHORT, SHORT, SHORT], "too many automatic events"),
    (one_step_more, [PRESS, ("wait", "live", 6 * S), PRESS], "are allowed"),
    (forgetful, [PRESS, PRESS, ("restart", "guard", ()), PRESS], "of stimulation in 60 s"),
    (long_arming, [("ready", False), ("wait", "still", MINUTE + 1), ("volley", [(0, "command", "patient", "trigger", ())])], "had expired"),
    (wish_survives_stop, [("stale", "person", "stop")], "before the last stop"),
    (no_audit, [PRESS], "armed before that was on the disk"),
    (
        impatient,
        [("ready", False), ("device", ["lost"] * 3), *ONE_AND_ON],
        "answered",
    ),
    (patient_with_the_box, [("ready", False), ("device", ["very late"]), *ONE_AND_ON], "answered"),
    (deaf_to_errors, [("ready", False), ("device", ["electrode"]), *ONE_AND_ON], "reported an error"),
    (long_lease, [("ready", True), ("volley", [(0, "request", 0, 100, False, ())]), ("wait", "silent", 300 * MS)], "last proof of life"),
    (harder_start, [PRESS, PRESS], "are allowed"),
    (all_prescriptions, [("restart", "guard", ("refractory_ns", "set", S - 1))], "outside the hard limits"),
]


@pytest.mark.parametrize(("plant", "steps", "words"), FOUND, ids=lambda it: getattr(it, "__name__", ""))
def test_the_judge_finds_what_is_planted(plant, steps, words, monkeypatch):
    sound = play(*steps)
    assert not sound.judge.broken
    plant(monkeypatch)
    assert any(words in what for what in play(*steps).judge.broken)


def test_a_wrong_encoder_is_found_by_the_wire_check_and_without_it_by_the_judge(monkeypatch):
    wrong_encoder(monkeypatch)
    encoded.cache_clear()
    try:
        bed = play(PRESS)
        assert not bed.judge.broken and bed.judge.pulses == 0  # not one byte of it left
        no_wire_check(monkeypatch)
        bed = play(PRESS)
        assert bed.judge.pulses and any("an unbalanced pulse" in what for what in bed.judge.broken)
    finally:
        encoded.cache_clear()


@pytest.mark.parametrize(("plant", "n_events"), [(no_audit, 3_000), (harder_start, 20_000), (one_step_arming, 60_000)])
def test_the_campaign_finds_what_is_planted(plant, n_events, monkeypatch):
    plant(monkeypatch)
    monkeypatch.setattr(hostile, "PHASES", (Phase.generate,))
    run = hostile.Campaign([VIEW], 1, 12).run(n_events)
    assert run.broken and run.shortest


def test_what_is_found_is_made_short(monkeypatch):
    no_audit(monkeypatch)
    run = hostile.Campaign([VIEW], 1, 12).run(3_000)
    assert len(run.shortest) == 3 and "armed before that was on the disk" in run.broken[0]


# --- the judge --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [it for it in hostile.CHANGES if it[1] == "set" and it[2] != 200], ids=str)
def test_settings_outside_the_hard_limits(change):
    assert prescription_faults(hostile.changed(VIEW, change), 4)
    bed = play(("restart", "guard", change))
    assert not bed.judge.broken and bed.counts["refused prescriptions"] == 1


def test_electrodes():
    assert electrode_faults(60_000, 500, 50_000, 2_500) == []  # 0.54 mA/cm2
    assert electrode_faults(60_000, 500, 50_000, 500) == ["rms density"]  # 2.68
    assert "energy" in electrode_faults(600_000, 1_000, 1_000, 100_000)
    assert not prescription_faults(VIEW, 4)


def test_a_pulse_out_of_nothing_is_named():
    judge = Judge()
    judge.view, judge.trains_by_index = VIEW, [TRAIN]
    judge.pulse(0, 1, 5_000, 200)
    assert "without arming" in judge.broken[0] and "nobody asked for" in judge.broken[1]
