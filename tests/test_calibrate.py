"""`calmloop calibrate` on signals whose figures are known: what was put in must come out, and what is poor must be refused by name."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from controller import calibrate, settings
from controller.__main__ import main
from controller.calibrate import checks, figures, heard, live, signals, toml
from controller.calibrate.signals import Signals
from controller.recording import Recorder
from drivers.base import Chunk
from drivers.sources import lsl
from tests.test_files import real

BEDSIDE = Path(__file__).resolve().parents[1] / "config" / "bedside.toml"
BED = settings.load(BEDSIDE)
DEMO = settings.load(BEDSIDE.with_name("demo.toml"))
RATE_HZ = 2000
N = 20 * RATE_HZ
T_S = np.arange(N) / RATE_HZ
PARTS = {"quiet": (0.0, 8.0), "contraction": (8.5, 13.0), "spasm": (14.5, 17.0)}
SPANS = ("--quiet", "0-8", "--contraction", "8.5-13", "--spasm", "14.5-17")


def noise(seed, rms_uv, n=N, n_channels=4, band_hz=(20, 450)):
    """(n, 4) EMG-shaped noise; its root mean square above 80 Hz is `heard_share` of that."""
    white = np.random.default_rng(seed).standard_normal((n + 1000, n_channels))
    x = sosfilt(butter(2, band_hz, "bandpass", fs=RATE_HZ, output="sos"), white, axis=0)[1000:]
    return x * rms_uv / x.std()


def burst(at_s, length_s, rise_s, uv, seed):
    """An activity of 80-300 Hz that rises in a straight line, so that the high-pass leaves it as it is."""
    envelope = np.clip((T_S - at_s) / rise_s, 0, 1) * np.clip((at_s + length_s - T_S) / 0.2, 0, 1)
    return envelope[:, None] * noise(seed, uv, band_hz=(120, 300))


def body(seed=1, rest_uv=8.0, contraction=(9.5, 2.5, 0.6, 70.0), spasm=(15.5, 1.0, 0.03, 120.0)):
    x = noise(seed, rest_uv)
    for one in (contraction, spasm):
        x = x + (burst(*one, seed + 100) if one else 0.0)
    return x


def recorded(x, force=None, pulses_s=(), t_s=None):
    t_s = 1000.0 + np.arange(len(x)) / RATE_HZ if t_s is None else t_s
    f = np.zeros((0, 1)) if force is None else force
    return Signals("test", x, t_s, f, 1000.0 + np.arange(len(f)) / 1000, np.array(pulses_s, float), [])


def calibrated(x, parts=PARTS, config=BED, **more):
    freeze = more.pop("freeze", False)
    return calibrate.calibrated(config, config.rules, recorded(x, **more), parts, freeze)


def changes(facts, rule="soleus EMG"):
    return {one.key: one.after for one in facts["changes"] if one.rule == rule}


def rows(facts, rule="soleus EMG"):
    return {row["part"]: row for row in facts["happened"] if row["rule"] == rule}


# --- figures --------------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def usual():
    return calibrated(body())


def test_rest_and_floor_are_what_was_put_in(usual):
    above_80 = body()[: 8 * RATE_HZ, :2]
    spectrum = np.abs(np.fft.rfft(above_80, axis=0)) ** 2
    f_hz = np.fft.rfftfreq(len(above_80), 1 / RATE_HZ)
    gain = 1.0 / (1.0 + (80.0 / f_hz[1:]) ** 4)  # Butterworth, two poles, by its formula
    expected = np.sqrt(2.0 * (spectrum[1:] * gain[:, None]).sum(0)) / len(above_80)
    rest = usual["strengths"]["soleus EMG"]["rest_uv"]
    assert list(rest.values()) == pytest.approx(expected, rel=0.03)
    assert min(expected) * 0.98 <= changes(usual)["floor_uv"] <= min(expected) * 1.05


def test_strengths_are_what_was_put_in(usual):
    s = usual["strengths"]["soleus EMG"]
    assert s["spasm_uv"] == pytest.approx(120.0, rel=0.12)
    assert s["contraction_uv"] == pytest.approx(70.0, rel=0.12)
    assert s["spasm_over_rest_db"] == pytest.approx(20 * np.log10(s["spasm_uv"] / s["rest_pooled_uv"]))


def test_the_contraction_is_told_from_the_spasm_by_its_rise_and_the_detector_says_so(usual):
    assert usual["ok"]
    got = changes(usual)
    assert got["rise_ms"] == 40.0
    assert got["rise_ratio"] == 2.7
    assert rows(usual)["quiet"]["triggers_s"] == []
    assert rows(usual)["quiet"]["deaf_s"] == pytest.approx(2.0, abs=0.1)  # detector.LEARN_S
    assert rows(usual)["contraction"]["why_not"] == "rises slowly"
    assert rows(usual)["spasm"]["began_s"] == pytest.approx(15.5, abs=0.012)
    assert 5.0 < rows(usual)["spasm"]["latency_ms"] < 40.0
    # as replay itself hears it with these settings
    from controller.loop import Loop
    from controller.replay import activations

    x = body()
    chunks = (
        Chunk(x[i : i + 20], 1000.0 + np.arange(i, i + 20) / RATE_HZ, np.zeros((0, 1)), np.zeros(0), np.zeros((0, 3)), 0)
        for i in range(0, N, 20)
    )
    (found,) = activations(Loop(usual["proposed"]), chunks)
    assert [one.decided_s - 1000.0 for one in found] == pytest.approx(rows(usual)["spasm"]["triggers_s"], abs=1e-9)


def test_a_contraction_alone_gives_no_gate_and_is_said_to_trigger():
    facts = calibrated(body(spasm=None), {name: PARTS[name] for name in ("quiet", "contraction")})
    assert facts["ok"]
    assert "rise_ms" not in changes(facts)
    assert rows(facts)["contraction"]["latency_ms"] > 0.0
    assert "WILL be answered" in calibrate.report.text(facts)


def test_a_contraction_as_abrupt_as_the_spasm_is_said_not_to_be_told_apart():
    facts = calibrated(body(contraction=(9.5, 2.5, 0.03, 120.0)))
    assert "rise_ms" not in changes(facts)
    assert any("no rise_ms tells them apart" in note for note in facts["notes"])
    assert rows(facts)["contraction"]["latency_ms"] is not None


@pytest.mark.parametrize(("line_hz", "amplitude"), [(50.0, 5.0), (60.0, 8.0)])
def test_the_mains_is_found_with_its_ratio(line_hz, amplitude):
    x = noise(2, 8.0)[:, 0] + amplitude * np.sin(2 * np.pi * line_hz * T_S)
    found_hz, ratio = checks.mains(x, RATE_HZ)
    assert found_hz == line_hz
    assert ratio == pytest.approx(amplitude / np.sqrt(2) / 8.0, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_mains_and_no_heart(seed):
    x = noise(seed, 8.0, 10 * RATE_HZ)[:, 0]
    assert checks.mains(x, RATE_HZ)[0] == 0.0
    assert checks.beats(x, RATE_HZ).size == 0


def test_the_mains_of_the_house_replaces_that_of_the_file():
    facts = calibrated(body() + 5.0 * np.sin(2 * np.pi * 60.0 * T_S)[:, None])
    assert changes(facts)["mains_hz"] == 60.0


def test_rest_is_kept_where_asked_for_and_where_the_muscle_is_mostly_active(usual):
    facts = calibrated(body(), freeze=True)
    assert changes(facts)["noise_uv"] == pytest.approx(list(facts["strengths"]["soleus EMG"]["rest_uv"].values()), rel=0.05)
    assert "noise_uv" not in changes(usual)
    x = noise(1, 8.0) + burst(6.0, 13.0, 0.4, 70.0, 7)
    facts = calibrated(x, {"quiet": (0.0, 5.5), "contraction": (5.5, 8.0)})
    assert facts["strengths"]["soleus EMG"]["active_share"] == pytest.approx(0.64, abs=0.03)
    assert changes(facts)["noise_uv"]


def test_a_rest_with_louder_moments_raises_the_floor_until_it_is_silent(usual):
    x = body()
    for at_s in (4.0, 5.5, 7.0):
        x += burst(at_s, 0.5, 0.02, 14.0, 3)
    facts = calibrated(x)
    assert changes(facts)["floor_uv"] > 1.15 * changes(usual)["floor_uv"]
    assert rows(facts)["quiet"]["triggers_s"] == []


def test_off_ratio_lies_between_rest_and_activity(usual):
    assert changes(usual)["off_ratio"] == 2.0
    weak = calibrated(body(spasm=(15.5, 1.0, 0.03, 15.0), contraction=(9.5, 2.5, 0.6, 25.0)))
    assert 1.5 <= changes(weak)["off_ratio"] < 2.0


def test_intent_lies_between_the_peaks_of_rest_and_of_the_contraction():
    config = figures.with_figures(BED, {"soleus EMG": {"intent_channel": "TA1"}})
    x = body()
    x[:, 2] = noise(9, 8.0)[:, 0] + burst(9.5, 2.5, 0.3, 200.0, 8)[:, 0]
    facts = calibrated(x, config=config)
    rest_uv, moves_uv = np.abs(x[: 8 * RATE_HZ, 2]).max(), np.abs(x[10 * RATE_HZ : 12 * RATE_HZ, 2]).max()
    assert 1.5 * rest_uv < changes(facts)["intent_uv"] < moves_uv / 1.5
    x[:, 2] = noise(9, 8.0)[:, 0]
    facts = calibrated(x, config=config)
    assert "intent_uv" not in changes(facts)
    assert any("TA1 is not active in the contraction" in note for note in facts["notes"])


def test_force_lies_between_rest_contraction_and_spasm():
    t_s = np.arange(20_000) / 1000
    force = 5.0 + 0.05 * np.sin(2 * np.pi * 1.3 * t_s)
    force += 6.0 * np.clip((t_s - 9.5) / 1.0, 0, 1) * (t_s < 12.0)  # 6 N m/s
    force += 12.0 * np.clip((t_s - 15.5) / 0.2, 0, 1) * (t_s < 16.5)  # 60 N m/s
    facts = calibrated(body(), config=DEMO, force=force[:, None])
    got, s = changes(facts, "plantarflexion torque"), facts["strengths"]["plantarflexion torque"]
    assert s["spasm_rate_per_s"] == pytest.approx(60.0, rel=0.05)
    assert s["contraction_rate_per_s"] == pytest.approx(6.0, rel=0.1)
    assert got["rate_per_s"] == pytest.approx(np.sqrt(6.0 * 60.0), rel=0.1)
    assert 0.1 < got["threshold"] < 3.0
    happened = rows(facts, "plantarflexion torque")
    assert happened["contraction"]["why_not"] == "weak"
    assert happened["spasm"]["began_s"] == pytest.approx(15.5, abs=0.01)
    assert 0.0 < happened["spasm"]["latency_ms"] < 60.0
    assert "rises by" in calibrate.report.text(facts)


def test_expected_latency_is_interpolated_and_never_promised_beyond_what_was_measured():
    def at(own_db, rise_ms=0.0):
        config = figures.with_figures(BED, {"soleus EMG": {"floor_uv": 5.0, "rise_ms": rise_ms}})
        strengths = {"soleus EMG": {"rest_pooled_uv": 5.0, "spasm_uv": 5.0 * np.sqrt(1.0 + 10.0 ** (own_db / 10.0))}}
        return heard.expectations(config, config.rules, strengths)["soleus EMG"]

    assert at(10.0)["median_ms"] == pytest.approx(26.5)
    assert at(8.0)["median_ms"] == pytest.approx((26.5 + 36.5) / 2)
    assert at(40.0)["median_ms"] == pytest.approx(16.0)
    assert at(-3.0)["below_table"]
    assert at(6.0, 40.0)["found"] == pytest.approx(0.519)


# --- refusals -------------------------------------------------------------------------------------------------------------------------
def ecg():
    """A heart of 72 a minute whose beats reach far above the high-pass."""
    x = np.zeros(N)
    for at_s in np.arange(0.4, 19.9, 60.0 / 72.0):
        x += 400.0 * np.exp(-0.5 * ((T_S - at_s) / 0.004) ** 2)
    return x[:, None]


def lead_off(x):
    x[4000:6000, 0] = x[4000, 0]
    return x


def no_number(x):
    x[3000:3010, 1] = np.nan
    return x


def copies(x):
    x[:, 1] = -0.5 * x[:, 0]
    return x


def moved(x):
    x[:, 0] += 500.0 * np.sin(2 * np.pi * 2.0 * T_S) * ((T_S > 3.0) & (T_S < 4.0))
    return x


POOR = {
    "flat": (lead_off, "SOL1", "quiet", 1.0, 0.02),
    "no number": (no_number, "SOL2", "quiet", 10, 0),
    "clipped": (lambda x: np.clip(x, -60.0, 60.0), "SOL1", "contraction", None, 0),
    "mains": (lambda x: x + 60.0 * np.sin(2 * np.pi * 50.0 * T_S)[:, None], "SOL1", "quiet", 60.0 / np.sqrt(2) / 8.0, 0.1),
    "motion": (moved, "SOL1", "quiet", None, 0),
    "not quiet": (lambda x: x * np.where(T_S < 4.0, 1.0, 2.2)[:, None], "SOL1", "quiet", 2.2, 0.1),
    "bursts": (lambda x: x + burst(3.0, 0.6, 0.02, 60.0, 5), "SOL1", "quiet", None, 0),
    "heartbeat": (lambda x: x + ecg(), "SOL1", "quiet", None, 0),
    "unit": (lambda x: x * 1e-6, "SOL1", "quiet", 7.4e-6, 0.05),
    "copies": (copies, "SOL1 and SOL2", "whole", -1.0, 0.001),
}


@pytest.mark.parametrize("what", POOR)
def test_poor_signal_is_refused_by_name(what):
    spoil, channel, part, figure, tolerance = POOR[what]
    facts = calibrated(spoil(body()))
    found = {one.what: one for one in reversed(facts["refused"])}
    assert not facts["ok"]
    assert set(found) == {what}  # and nothing that only follows from it
    assert (found[what].channel, found[what].part) == (channel, part)
    if figure is not None:
        assert found[what].figure == pytest.approx(figure, rel=tolerance)
    text = calibrate.report.text(facts)
    assert "REFUSED" in text
    assert found[what].text[:30] in text


def test_volts_taken_for_microvolts_the_other_way_round():
    (one, *_) = calibrated(body() * 2e3)["refused"]
    assert one.what == "unit"
    assert one.figure == pytest.approx(2e3 * 7.4, rel=0.05)


def test_a_gap_is_refused_and_so_is_a_rate_that_is_not_the_settings():
    x, t_s = body(), 1000.0 + T_S
    t_s = np.where(T_S > 9.0, t_s + 0.3, t_s)
    found = calibrate.calibrated(BED, BED.rules, recorded(x, t_s=t_s), PARTS)["refused"]
    assert [(one.what, one.part) for one in found] == [("gap", "contraction")]
    assert found[0].figure == pytest.approx(0.3, abs=0.001)
    found = calibrate.calibrated(BED, BED.rules, recorded(x, t_s=1000.0 + T_S * 2.0), PARTS)["refused"]
    assert {one.what for one in found} == {"samples missing"}


def test_a_contraction_that_is_rest_or_began_before_is_refused():
    (one,) = calibrated(body(contraction=None))["refused"]
    assert (one.what, one.part) == ("not stronger than rest", "contraction")
    assert 0.9 < one.figure < 1.4
    (one,) = calibrated(body(), PARTS | {"contraction": (10.5, 13.0)})["refused"]
    assert (one.what, one.part) == ("began before", "contraction")


@pytest.mark.parametrize(("part", "span"), [("quiet", (0.0, 4.9)), ("contraction", (9.0, 9.9)), ("spasm", (15.0, 15.2))])
def test_a_part_too_short_is_refused(part, span):
    (one,) = calibrated(body(), PARTS | {part: span})["refused"]
    assert (one.what, one.part) == ("too short", part)
    assert one.figure == pytest.approx(span[1] - span[0])


def test_a_part_with_our_own_pulses_is_refused():
    (one,) = calibrated(body(), pulses_s=[1015.0, 1015.02])["refused"]
    assert (one.what, one.part, one.figure) == ("stimulated", "spasm", 2.0)


def test_small_swings_and_a_heart_below_the_high_pass_are_remarked_and_not_refused():
    x = body()
    x[:, 0] += 120.0 * np.sin(2 * np.pi * 2.0 * T_S) * ((T_S > 3.0) & (T_S < 4.0))
    facts = calibrated(x)
    assert facts["ok"]
    assert any("motion" in note for note in facts["notes"])
    slow = sum(60.0 * np.exp(-0.5 * ((T_S - at_s) / 0.012) ** 2) for at_s in np.arange(0.4, 19.9, 60.0 / 72.0))
    facts = calibrated(body() + slow[:, None])
    assert facts["ok"]
    assert any("SOL1, SOL2, quiet part: the heartbeat (72 a minute)" in note for note in facts["notes"])


def test_a_spasm_that_the_proposal_misses_falls_short():
    config = figures.with_figures(BED, {"soleus EMG": {"intent_channel": "TA1"}})
    x = body()
    x[:, 2] += burst(9.5, 2.5, 0.3, 200.0, 8)[:, 0] + burst(15.45, 1.0, 0.01, 200.0, 8)[:, 0]  # the antagonist spasms too
    facts = calibrated(x, config=config)
    assert not facts["ok"]
    assert facts["falls_short"] == ["soleus EMG: the spasm does not trigger"]
    assert rows(facts)["spasm"]["why_not"] == "intended"
    assert "FALLS SHORT" in calibrate.report.text(facts)
    assert "taken for a movement on purpose" in " ".join(calibrate.report.text(facts).split())


def test_a_gate_that_hides_the_spasm_is_taken_away():
    config = figures.with_figures(BED, {"soleus EMG": {"rise_ms": 20.0, "rise_ratio": 10.0}})
    facts = calibrated(body(contraction=(9.5, 2.5, 0.6, 30.0), spasm=(15.5, 1.0, 0.03, 40.0)), config=config)
    assert facts["ok"]
    assert changes(facts)["rise_ms"] == 0.0 or changes(facts)["rise_ratio"] < 10.0
    assert rows(facts)["spasm"]["latency_ms"] < 60.0


# --- the command ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def calf(tmp_path_factory):
    path = tmp_path_factory.mktemp("calf") / "calf.npz"
    np.savez(path, emg_uv=body(), fs=RATE_HZ)
    path.with_name("calf.npz.toml").write_text('names = ["SOL1", "SOL2", "TA1", "TA2"]\n')
    return path


def test_the_written_file_differs_in_those_figures_alone(calf, tmp_path, capsys):
    out = tmp_path / "out.toml"
    assert main(["calibrate", str(calf), "--config", str(BEDSIDE), *SPANS, "--freeze", "--write", str(out)]) == 0
    report = capsys.readouterr().out
    assert f"Written: {out}" in report
    before, after = BEDSIDE.read_text().split("\n"), out.read_text().split("\n")
    added = [line for line in after if line.startswith("noise_uv")]
    assert len(added) == 1
    after.remove(added[0])
    differs = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {old.split(" ")[0] for old, _ in differs} == {"floor_uv", "rise_ms"}
    assert all(old.partition("#")[2] == new.partition("#")[2] for old, new in differs)
    assert all(old.index("#") == new.index("#") for old, new in differs)
    rule, was = settings.load(out).emg_rules[0], BED.emg_rules[0]
    changed = {key for key, value in rule if value != getattr(was, key)}
    assert changed == {"floor_uv", "rise_ms", "noise_uv"}
    assert main(["calibrate", str(calf), "--config", str(BEDSIDE), *SPANS, "--write", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_file_with_windows_lines_and_two_rules_keeps_both():
    text = BEDSIDE.read_text().replace("\n", "\r\n")
    second = text[text.index("[[emg_rules]]") : text.index("# [[force_rules]]")].replace("soleus EMG", "other")
    text = text.replace("# [[force_rules]]", second + "# [[force_rules]]", 1)
    before = settings.parse(text)
    made = [figures.Change("other", "floor_uv", 10.0, 3.3, ""), figures.Change("other", "noise_uv", (), (1.0, 2.0), "")]
    after = figures.with_figures(before, {"other": {"floor_uv": 3.3, "noise_uv": (1.0, 2.0)}})
    out = toml.replaced(text, made, before, after)
    assert settings.parse(out) == after
    assert out.count("\n") == out.count("\r\n") == text.count("\r\n") + 1


def test_a_file_that_cannot_be_changed_line_by_line_is_left_alone():
    text = BEDSIDE.read_text().replace("floor_uv = 10.0 ", '"floor_uv" = 10.0 ')
    before = settings.parse(text)
    after = figures.with_figures(before, {"soleus EMG": {"floor_uv": 3.3}})
    with pytest.raises(signals.UseError, match="line by line"):
        toml.replaced(text, [figures.Change("soleus EMG", "floor_uv", 10.0, 3.3, "")], before, after)


def test_json_has_all_figures(calf, capsys):
    assert main(["calibrate", str(calf), "--config", str(BEDSIDE), *SPANS, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["ok"]
    assert {one["key"] for one in got["changes"]} >= {"floor_uv", "off_ratio", "rise_ms", "rise_ratio"}
    assert got["expected"]["soleus EMG"]["source"].startswith("measured by bench.detection")
    assert "floor_uv = " in got["toml"]


def test_a_refusal_exits_1_and_writes_nothing(tmp_path, capsys):
    path, out = tmp_path / "off.npz", tmp_path / "out.toml"
    np.savez(path, emg_uv=lead_off(body()), fs=RATE_HZ)
    path.with_name("off.npz.toml").write_text('names = ["SOL1", "SOL2", "TA1", "TA2"]\n')
    assert main(["calibrate", str(path), "--config", str(BEDSIDE), *SPANS, "--write", str(out)]) == 1
    assert "SOL1, quiet part: flat" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quiet", "0-8"), "--contraction missing"),
        (("--quiet", "0-8", "--contraction", "7-13"), "overlap from 7 to 8 s"),
        (("--quiet", "0-8", "--contraction", "9-99"), "has 20.00 s"),
        ((*SPANS, "--rule", "knee"), "there is no rule 'knee' in the settings; there are: soleus EMG"),
        ((*SPANS, "--yes"), "are for the bed"),
        ((*SPANS, "--rate", "1000"), "has 1000 Hz, \\[emg\\] sample_rate_hz in the settings is 2000"),
        ((*SPANS, "--channels", "3,4"), "2 channels|4 names for 2"),
    ],
)
def test_wrong_use_exits_2(options, words, calf, capsys):
    assert main(["calibrate", str(calf), "--config", str(BEDSIDE), *options]) == 2
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(capsys.readouterr().err)


@pytest.mark.parametrize("part", ["8", "8-8", "9-8", "a-b", "-1-3", "1-inf"])
def test_a_part_is_two_times(part, capsys):
    with pytest.raises(SystemExit) as error:
        main(["calibrate", "x.npz", "--config", "x.toml", f"--quiet={part}"])
    assert error.value.code == 2
    assert "argument --quiet" in capsys.readouterr().err


def test_a_unit_that_is_not_known_is_asked_for(tmp_path, capsys):
    path = tmp_path / "raw.npz"
    np.savez(path, data=body(), fs=RATE_HZ)
    assert main(["calibrate", str(path), "--config", str(BEDSIDE), *SPANS]) == 2
    assert "give --unit" in capsys.readouterr().err


def test_a_session_of_ours_is_read_with_its_stamps(tmp_path, capsys):
    folder = tmp_path / "session"
    folder.mkdir()
    (folder / "settings.toml").write_text(BED.to_toml())
    recorder = Recorder(folder, BED)
    x, t_s = body(), 500.0 + T_S
    t_s = np.where(T_S > 16.0, t_s + 0.2, t_s)
    for i in range(0, N, 4000):
        recorder._put("EMG", t_s[i : i + 4000], x[i : i + 4000])
    recorder.close()
    assert main(["calibrate", str(folder), "--config", str(BEDSIDE), *SPANS]) == 1
    assert "EMG, spasm part: 1 gap in the signal, the longest 0.20" in capsys.readouterr().out
    assert main(["calibrate", str(folder), "--config", str(BEDSIDE), *SPANS[:4]]) == 0
    assert "TRIGGERS" in capsys.readouterr().out


# --- at the bed -----------------------------------------------------------------------------------------------------------------------
def test_live_steps_are_guided_and_give_what_the_file_gives(monkeypatch):
    """A real stream, ten times as fast as at a bed: steps are as long as the stamps say, whatever the clock on the wall."""
    config = BED.model_copy(update={"emg": BED.emg.model_copy(update={"stream_name": "calibrate live", "stream_type": ""})})
    stream = lsl.outlet("calibrate live", "EMG", BED.emg.channels, "uV", RATE_HZ, "calibrate-live")
    source = lsl.LslSource(config.emg, None)
    assert stream.wait_for_consumers(5)
    x = body()
    at, ended = [0], threading.Event()

    def play():
        while at[0] < N and not ended.is_set():
            stream.push_chunk(x[at[0] : at[0] + 40], 5000.0 + np.arange(at[0], at[0] + 40) / RATE_HZ)
            at[0] += 40
            time.sleep(0.002)

    monkeypatch.setattr(live, "PAUSE_S", 0.1)
    said = []
    steps = (
        live.Step("quiet", "rest", (live.Cue(7.0, "Lie still"),)),
        live.Step("contraction", "contract", (live.Cue(2.0, "Stay relaxed"), live.Cue(3.0, "NOW"))),
        live.Step("spasm", "spasm", (live.Cue(4.5, "NOW provoke"),)),
    )
    player = threading.Thread(target=play)
    player.start()
    recorder = live.Recorder(source)
    try:
        parts = live.guided(recorder, steps, True, None, said.append)
    finally:
        recorder.close()
        ended.set()
        player.join()
    got = recorder.signals(config, "live")
    assert np.array_equal(got.emg_uv, x[: len(got.emg_uv)])  # no sample lost, none twice
    spans = {name: (begin - got.begin_s, end - got.begin_s) for name, (begin, end) in parts.items()}
    assert [round(end - begin, 3) for begin, end in spans.values()] == [7.0, 5.0, 4.5]
    assert [line.strip() for line in said if "N" in line or "Lie" in line] == ["Lie still", "NOW", "NOW provoke"]
    assert [line.strip() for line in said[said.index("  Lie still") + 1 :][:6]] == ["6", "5", "4", "3", "2", "1"]
    if spans["contraction"][0] < 9.0 and spans["spasm"][0] > 12.5:  # the machine was not held up
        assert calibrate.calibrated(config, config.rules, got, spans)["ok"]


def test_a_stream_that_falls_silent_is_named(monkeypatch):
    monkeypatch.setattr(live, "SILENT_S", 0.2)
    emg = BED.emg.model_copy(update={"stream_name": "calibrate silent", "stream_type": ""})
    stream = lsl.outlet("calibrate silent", "EMG", BED.emg.channels, "uV", RATE_HZ, "calibrate-silent")
    recorder = live.Recorder(lsl.LslSource(emg, None))
    try:
        with pytest.raises(live.DeviceNotFoundError, match="has sent nothing for"):
            live.guided(recorder, live.STEPS, False, None, lambda _: None)
    finally:
        recorder.close()
    del stream


def test_nobody_to_ask_is_wrong_use(monkeypatch, capsys):
    with Path("/dev/null").open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert main(["calibrate", "--config", str(BEDSIDE)]) == 2
    assert "or --yes" in capsys.readouterr().err


def test_leaving_the_spasm_out():
    class Instant:
        newest_s = 1.0

        def wait_until(self, stamp_s, tell):
            self.newest_s = max(self.newest_s, stamp_s)

    asked = []

    def no(words):
        asked.append(words)
        return False

    assert list(live.guided(Instant(), live.STEPS, False, no, lambda _: None)) == ["quiet", "contraction"]
    assert len(asked) == 3
    assert list(live.guided(Instant(), live.STEPS, True, None, lambda _: None)) == ["quiet", "contraction", "spasm"]


# --- real recordings ------------------------------------------------------------------------------------------------------------------
def bed_of(tmp_path, channel, rate_hz):
    path = tmp_path / "bed.toml"
    text = BEDSIDE.read_text().replace('"SOL1", "SOL2", "TA1", "TA2"', f'"{channel}"').replace('"SOL1", "SOL2"', f'"{channel}"')
    path.write_text(text.replace("sample_rate_hz = 2000.0", f"sample_rate_hz = {rate_hz}"))
    return str(path)


def test_a_spinal_cord_injury_whose_rest_fires_gets_a_floor_that_silences_it(tmp_path, capsys):
    path = real("tscs_sci_verma/SingleCh_StimOFF.mat")
    spans = ["--quiet", "0-24", "--contraction", "38-41", "--unit", "raw", "--json"]
    assert main(["calibrate", str(path), "--config", bed_of(tmp_path, "raw_off", 4000.0), *spans]) == 0
    got = json.loads(capsys.readouterr().out)
    happened = {row["part"]: row for row in got["happened"]}
    (floor_uv,) = [one["after"] for one in got["changes"] if one["key"] == "floor_uv"]
    assert 1.2 * got["strengths"]["soleus EMG"]["rest_uv"]["raw_off"] < floor_uv < 70.0  # a person found 60 to 70 (detection notes, 4)
    assert happened["quiet"]["triggers_s"] == []
    assert any(39.0 < at_s < 40.5 for at_s in happened["contraction"]["triggers_s"])
    assert [one["after"] for one in got["changes"] if one["key"] == "mains_hz"] == [60.0]


def test_a_real_converter_at_its_end_is_seen(tmp_path, capsys):
    path = real("biosignalsnotebooks/emg_fatigue.h5")
    spans = ["--quiet", "121-126.8", "--contraction", "112-116", "--unit", "raw"]
    assert main(["calibrate", str(path), "--config", bed_of(tmp_path, "CH2", 1000.0), *spans]) == 1
    assert "clipped" in capsys.readouterr().out


def test_real_bursts_are_calibrated_on(tmp_path, capsys):
    path = real("biosignalsnotebooks/emg_1000_hz_16_bits_solo.h5")
    bed = bed_of(tmp_path, "PORT1_CHN1", 1000.0)
    assert main(["calibrate", str(path), "--config", bed, "--quiet", "80.5-87", "--contraction", "78.2-80.4", "--unit", "raw"]) == 0
    assert "contraction: TRIGGERS" in capsys.readouterr().out
    assert main(["calibrate", str(path), "--config", bed, "--quiet", "12.5-17.5", "--contraction", "78.2-80.4", "--unit", "raw"]) == 1
    assert "bursts" in capsys.readouterr().out
