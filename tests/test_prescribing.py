"""The prescription on the page: what the form says against the settings' own refusals, changes of real files, and the versions kept."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import montages, settings
from controller.prescribing import changed, differences, form, keep, versions, versions_folder
from controller.settings import SettingsError
from tests.rig import ROOT

BEDSIDE = (ROOT / "config" / "bedside.toml").read_text()
BED = settings.parse(BEDSIDE)
MORE = {"version": 2, "author": "Ada (clinician, page)", "reason": "less is enough"}
FIELDS = {(row["table"], row["key"]): row for row in form(BED)["fields"]}


def change(**fields):
    return changed(BEDSIDE, {"trains.peroneal": fields}, MORE, "bed.toml")


def test_only_the_lines_of_the_change_differ_and_comments_stay():
    text, config = changed(BEDSIDE, {"prescription": {"max_current_ma": 18}, "trains.peroneal": {"current_ma": 9.5}}, MORE, "bed.toml")
    before, after = BEDSIDE.split("\n"), text.split("\n")
    added = [line for line in after if line.split(" ")[0] in ("version", "reason")]
    assert added == ["version = 2", 'reason = "less is enough"']
    after = [line for line in after if line not in added]
    differs = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {old.split(" ")[0] for old, _ in differs} == {"max_current_ma", "current_ma", "author"}
    assert all(old.partition("#")[2] == new.partition("#")[2] for old, new in differs)
    assert settings.parse(text) == config
    assert (config.prescription.max_current_ma, config.trains["peroneal"].current_ma) == (18.0, 9.5)


@given(st.text(max_size=60), st.text(alphabet="\"\\#'=[]\n\r\t§", max_size=20))
def test_whatever_is_written_as_a_reason_is_read_back_or_refused(author, reason):
    try:
        text, config = changed(BEDSIDE, {}, MORE | {"author": author, "reason": reason}, "bed.toml")
    except SettingsError as error:
        assert "printable" in str(error)
        return
    assert settings.parse(text) == config
    assert (config.prescription.author, config.prescription.reason) == (author, reason)


@pytest.mark.safety("A12", "A14")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trains.peroneal": {"current_ma": 60.5}}, "at most 60 mA"),
        ({"trains.peroneal": {"current_ma": 20.5}}, "must be at most 20 mA (prescription)"),
        ({"trains.peroneal": {"current_ma": 10.25}}, "multiple of 0.5 mA"),
        ({"trains.peroneal": {"current_ma": "10"}}, "must be a number"),
        ({"trains.peroneal": {"current_ma": None}}, "must be a number"),
        ({"trains.peroneal": {"current_ma": True}}, "must be a number"),
        ({"trains.peroneal": {"phase_width_us": 500.5}}, "whole number"),
        ({"trains.peroneal": {"nonsense": 1}}, "no field of the form"),
        ({"trains.other": {"current_ma": 1.0}}, "no table of the prescription"),
        ({"trains": {"peroneal": {}}}, "no table of the prescription"),
        ({"stimulator": {"port": "/dev/null"}}, "no table of the prescription"),
        ({"peroneal": {"current_ma": 5.0}}, "no table of the prescription"),
        ({"trains.peroneal": {"current_ma": 10**400}}, "must be a number"),
        ({"trains.peroneal": {"current_ma": 1e400}}, "must be a number"),
        ({"prescription": {"version": 7}}, "no field of the form"),
        ({"prescription": {"author": "Eve"}}, "no field of the form"),
        ({"prescription": {"max_current_ma": 70}}, "at most 60 mA"),
        ({"prescription": {"manual_train": "no such"}}, "is not in [trains]"),
        ({"prescription": []}, "no table of the prescription"),
        ([], "no table of the prescription"),
        (None, "no table of the prescription"),
    ],
)
def test_a_change_that_a_file_may_not_have_is_refused_with_its_reason(changes, words):
    with pytest.raises(SettingsError, match=words.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[").replace("]", r"\]")):
        changed(BEDSIDE, changes, MORE, "bed.toml")


def test_a_file_that_cannot_be_changed_line_by_line_says_so():
    odd = BEDSIDE.replace("current_ma = 10.0 ", '"current_ma" = 10.0 ', 1)
    with pytest.raises(SettingsError, match="change it by hand"):
        changed(odd, {"trains.peroneal": {"current_ma": 9.5}}, MORE, "bed.toml")


def test_the_form_has_every_field_of_the_prescription_and_its_trains():
    wanted = {("prescription", key) for key in settings.Prescription.model_fields} - {
        ("prescription", key) for key in ("version", "author", "reason")
    }
    wanted |= {("trains.peroneal", key) for key in settings.Train.model_fields}
    assert set(FIELDS) == wanted
    assert all(row["about"] for row in FIELDS.values())
    json.dumps(form(BED))


@pytest.mark.safety("A14")
@pytest.mark.parametrize("place", sorted(place for place, row in FIELDS.items() if row["kind"] in ("number", "whole")))
def test_what_the_form_calls_too_much_or_too_little_is_refused_and_its_bounds_name_their_layer(place):
    """The tightest limit that the form shows is where the settings begin to refuse; the layers are those of the refusal."""
    table, key = place
    row = FIELDS[place]
    step = row["step"] or (1 if row["kind"] == "whole" else 0.01)
    assert row["limits"] and all(limit["layer"] for limit in row["limits"])
    for end, sign in (("most", 1), ("least", -1)):
        bounds = [limit[end] for limit in row["limits"] if limit[end] is not None]
        if not bounds:
            continue
        bound = (min if sign > 0 else max)(bounds)
        beyond = bound + sign * step
        with pytest.raises(SettingsError) as refused:
            changed(BEDSIDE, {table: {key: int(beyond) if row["kind"] == "whole" else round(beyond, 6)}}, MORE, "bed.toml")
        assert f"[{table}] " in str(refused.value)


def test_figures_are_those_of_the_train_at_its_full_current():
    """By hand: 10 mA x 500 us = 5 uC; 10 mA sqrt(2 x 500 us x 50 Hz) = 2.236 mA rms on 25 cm2 = 0.0894 mA/cm2; 500 ohm: 0.1 mW/cm2."""
    rows = {row["name"]: row for row in form(BED)["trains"]["peroneal"]["figures"]}
    assert rows["charge per phase"]["value"] == pytest.approx(5.0)
    assert rows["rms current density"]["value"] == pytest.approx(0.08944, rel=1e-3)
    assert rows["power density"]["value"] == pytest.approx(1e-4, rel=1e-3)
    assert rows["energy per pulse"]["value"] == pytest.approx(0.05, rel=1e-3)


def test_versions_are_kept_whole_and_say_what_differs(tmp_path):
    path = tmp_path / "bed.toml"
    path.write_text(BEDSIDE)
    path.chmod(0o640)
    text, _ = change(current_ma=9.5)
    keep(path, BEDSIDE, text, 2)
    again, _ = changed(text, {"prescription": {"look_ms": 120}}, MORE | {"version": 3, "reason": "a longer look"}, "bed.toml")
    keep(path, text, again, 3)
    assert path.read_text() == again and path.stat().st_mode & 0o777 == 0o640
    rows = versions(versions_folder(path))
    assert [row["version"] for row in rows] == [3, 2, 1]
    assert rows[0]["changes"] == ["prescription: look_ms 100 → 120 ms"]
    assert rows[1]["changes"] == ["peroneal: current_ma 10.0 → 9.5 mA"]
    assert rows[1]["reason"] == "less is enough" and rows[1]["author"].startswith("Ada")
    assert (versions_folder(path) / "000001.toml").read_text() == BEDSIDE
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and one.suffix != ".toml"]
    (versions_folder(path) / "000004.toml").write_text("broken")
    assert "cannot be read" in versions(versions_folder(path))[0]["changes"][0]


def test_a_new_train_and_one_that_is_gone_are_named():
    other = settings.parse(
        BEDSIDE + "\n" + BEDSIDE[BEDSIDE.index("[trains.peroneal]") : BEDSIDE.index("# --- what may not")].replace("peroneal", "tibial")
    )
    assert differences(BED, other) == ["train tibial is new"]
    assert differences(other, BED) == ["train tibial is gone"]


def test_every_montage_can_be_named_and_no_other():
    from controller import fits

    for name in montages.load(ROOT / "config" / "montages.toml").montages:
        config = settings.parse(BEDSIDE.replace('montage = ""', f'montage = "{name}"'))
        assert not fits.problems(config)
    assert "montage" in fits.problems(settings.parse(BEDSIDE.replace('montage = ""', 'montage = "knee"')))[0]
