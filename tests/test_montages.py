"""Montages: what ships can be used, the drawing shows it, and a bad file is told what is wrong with it."""

import json
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from controller import __main__, limits, montages
from tests.bed import DEVICE, RX

FILE = Path(__file__).resolve().parents[1] / "config" / "montages.toml"
BOOK = montages.load(FILE)
NAMES = list(BOOK.montages)
SVG = "{http://www.w3.org/2000/svg}"


def inside(x, y, corners):
    """Whether a point is in a polygon: even-odd rule."""
    crossings = 0
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay):
            crossings += 1
    return crossings % 2 == 1


def test_the_spasms_that_the_issue_names_are_there():
    muscles = " ".join(m.muscle for m in BOOK.montages.values())
    for muscle in (
        "soleus",
        "gastrocnemius",
        "quadriceps",
        "hamstrings",
        "hip adductors",
        "biceps brachii",
        "finger flexors",
        "wrist flexors",
    ):
        assert muscle in muscles


@pytest.mark.parametrize("name", NAMES)
def test_a_starting_train_is_inside_the_hard_limits_on_its_own_smaller_pad(name):
    raw = tomllib.loads(FILE.read_text())["montages"][name]  # read here a second time: figures as they stand in the file
    t = raw["train"]
    area_cm2 = min(pad["width_cm"] * pad["height_cm"] for pad in raw["pads"] if pad["kind"] != "emg")
    train = limits.Train(
        name,
        t["channel"],
        int(t["current_ma"] * 1000),
        t["phase_width_us"],
        t["interphase_gap_us"],
        int(t["pulse_rate_hz"] * 1000),
        t["duration_ms"] * 1000,
        t["ramp_up_ms"] * 1000,
        t["taper_ms"] * 1000,
    )
    rx = replace(RX, trains=(train,), manual_train=0, device=DEVICE, electrode_area_mm2=int(area_cm2 * 100))
    assert limits.check_prescription(rx) == []
    assert limits.pulse_reasons(train, train.current_ua, rx) == []
    assert train.current_ua <= 10_000  # a value to start the search from lies well below what moves a limb


@pytest.mark.parametrize("name", NAMES)
def test_muscle_antagonist_evidence_and_sources(name):
    m = BOOK.montages[name]
    assert m.muscle != m.antagonist
    assert m.evidence in ("studied", "by analogy", "unknown")
    assert m.sources and m.cautions and all(one.claim and one.source for one in m.sources)
    found = [
        one.source for one in m.sources if "http" in one.source or "doi" in one.source or "PubMed" in one.source or " 20" in one.source
    ]
    assert found, "a source that can be looked up"
    if m.evidence == "studied":
        assert "unknown" in m.evidence_words  # whether it ends spasms
    else:
        assert "found no" in m.evidence_words or "not shown" in m.evidence_words or "found nothing" in m.evidence_words


@pytest.mark.parametrize("name", NAMES)
def test_pads_lie_on_the_body_and_apart(name):
    m, body = BOOK.montages[name], montages.outline()
    for pad in m.pads:
        assert inside(pad.x_cm, pad.y_cm, body), pad.name
    cathode, anode = (next(pad for pad in m.pads if pad.kind == kind) for kind in ("cathode", "anode"))
    if cathode.view == anode.view:
        gap = max(
            abs(cathode.x_cm - anode.x_cm) - (cathode.width_cm + anode.width_cm) / 2,
            abs(cathode.y_cm - anode.y_cm) - (cathode.height_cm + anode.height_cm) / 2,
        )
        assert gap >= 1.0, "pads that touch would short the current through the gel"


@pytest.mark.parametrize(
    ("name", "x_cm", "y_cm"),
    [
        ("calf", 13.2, 45.0),  # neck of the fibula: just below the knee, outer side
        ("tibialis-anterior", 8.6, 49.5),  # hollow of the knee
        ("hamstrings", 9.0, 88.5),  # groin, outside of the pulse at 7
        ("biceps", 22.0, 128.5),  # back of the arm, below the armpit at 132.6
        ("wrist-flexors", 28.5, 118.0),  # outer side of the arm, above the elbow at 112
        ("wrist-extensors", 25.0, 114.0),  # inner side of the tendon of biceps at 27
    ],
)
def test_cathodes_lie_over_their_nerve(name, x_cm, y_cm):
    pad = next(pad for pad in BOOK.montages[name].pads if pad.kind == "cathode")
    assert abs(pad.x_cm - x_cm) <= pad.width_cm / 2 and abs(pad.y_cm - y_cm) <= pad.height_cm / 2


# --- drawing ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_the_drawing_is_xml_and_shows_each_pad_on_the_page(name, side):
    m = BOOK.montages[name]
    root = ET.fromstring(montages.svg(name, m, side))
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert montages.NOTICE in words
    assert any(m.muscle in line for line in words) and any(side in line for line in words)
    for pad in m.pads:
        assert pad.label in words
    width, height = float(root.get("width")), float(root.get("height"))
    placed = [g.get("transform") for g in root.iter(f"{SVG}g") if g.get("transform")]
    assert len(placed) == 2 * len(m.pads)  # small and large
    for transform in placed:
        x, y = map(float, transform.removeprefix("translate(").split(")")[0].split())
        assert 0 < x < width and 0 < y < height


def first_pad_x(m, side):
    """Where the first small pad stands, and the middle of the small body."""
    transform = next(g.get("transform") for g in ET.fromstring(montages.svg("n", m, side)).iter(f"{SVG}g") if g.get("transform"))
    return float(transform.removeprefix("translate(").split()[0])


@pytest.mark.parametrize(("name", "view"), [("hip-adductors", "front"), ("biceps", "front")])
def test_the_persons_right_is_the_readers_left_from_the_front(name, view):
    m = BOOK.montages[name]
    assert any(pad.view == view for pad in m.pads)
    assert first_pad_x(m, "right") < first_pad_x(m, "left")


def test_the_persons_right_is_the_readers_right_from_the_back():
    m = BOOK.montages["quadriceps"]
    from_behind = m.model_copy(update={"pads": tuple(pad for pad in m.pads if pad.view == "back")})
    assert first_pad_x(from_behind, "right") > first_pad_x(from_behind, "left")


# --- bad files --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            '\nevidence = "studied"',
            '\nevidence = "proven"',
            "[montages.calf] evidence = 'proven': Input should be 'studied', 'by analogy' or 'unknown'",
        ),
        ('muscle = "soleus and gastrocnemius"', 'muscel = "soleus"', "[montages.calf] muscel = 'soleus': Extra inputs are not permitted"),
        ('muscle = "soleus and gastrocnemius"\n', "", "[montages.calf] muscle: Field required"),
        ("current_ma = 5.0", "current_ma = 61.0", "[montages.calf] train current_ma = 61.0: Input should be less than or equal to 60"),
        ("current_ma = 5.0", 'current_ma = "5"', "[montages.calf] train current_ma = '5': Input should be a valid number"),
        (
            "current_ma = 5.0, phase_width_us = 500",
            "current_ma = 60.0, phase_width_us = 1000",
            "[montages.calf]: train start: charge 60000 nC",
        ),
        ("current_ma = 5.0", "current_ma = 5.2", "[montages.calf]: train start: current_ua = 5200 is no multiple"),
        ("x_cm = 13.0", "x_cm = 130.0", "[montages.calf] pads 1 x_cm = 130.0: Input should be less than or equal to 45"),
        ('kind = "anode"', 'kind = "cathode"', "[montages.calf]: pads must be one cathode, one anode and at least one emg"),
        (
            'antagonist = "tibialis anterior, which lifts the foot"',
            'antagonist = "soleus and gastrocnemius"',
            "muscle and antagonist are the same",
        ),
        ("[montages.calf]", "[montages.calf", "cannot be read"),
    ],
)
def test_a_bad_file_names_table_and_key(tmp_path, old, new, says):
    text = FILE.read_text()
    assert old in text
    bad = tmp_path / "montages.toml"
    bad.write_text(text.replace(old, new, 1))
    with pytest.raises(montages.MontageError) as error:
        montages.load(bad)
    assert says in str(error.value) and str(bad) in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(montages.MontageError, match=r"nowhere\.toml: cannot be read"):
        montages.load(tmp_path / "nowhere.toml")


# --- command ----------------------------------------------------------------------------------------------------------------------
def test_the_list_and_one_in_words(capsys):
    assert __main__.main(["montage"]) == 0
    listed = capsys.readouterr().out
    for name, m in BOOK.montages.items():
        line = next(line for line in listed.splitlines() if line.startswith(name + " "))
        assert m.muscle in line and m.nerve in line and line.endswith(m.evidence)
    for name, m in BOOK.montages.items():
        assert __main__.main(["montage", name]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert montages.NOTICE in told
        for fact in (m.muscle, m.nerve, m.sign, m.evidence.upper(), *m.cautions, *BOOK.common.cautions, *(one.source for one in m.sources)):
            assert fact in told, fact
        assert all(f"{pad.label}, " in told and pad.where in told for pad in m.pads)


def test_json_holds_what_the_file_holds(capsys):
    raw = tomllib.loads(FILE.read_text())
    assert __main__.main(["montage", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] and set(facts["montages"]) == set(raw["montages"])
    assert __main__.main(["montage", "calf", "--json"]) == 0
    calf = json.loads(capsys.readouterr().out)["montages"]["calf"]
    assert calf["train"] == raw["montages"]["calf"]["train"]
    assert calf["electrode_area_cm2"] == 16.0
    assert [pad["where"] for pad in calf["pads"]] == [pad["where"] for pad in raw["montages"]["calf"]["pads"]]


def test_the_drawing_is_written(tmp_path, capsys):
    file = tmp_path / "calf.svg"
    assert __main__.main(["montage", "calf", "--svg", str(file), "--side", "left"]) == 0
    assert str(file) in capsys.readouterr().out
    assert file.read_text(encoding="utf-8") == montages.svg("calf", BOOK.montages["calf"], "left")
    assert __main__.main(["montage", "calf", "--svg", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_unknown_name_is_an_error_with_the_nearest_first(capsys):
    assert __main__.main(["montage", "hamstring"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "there is no montage 'hamstring'; there are: hamstrings, " in err and all(name in err for name in NAMES)
    assert __main__.main(["montage", "hamstring", "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and "hamstrings" in answer["error"]
    assert __main__.main(["montage", "--svg", "x.svg"]) == 2
    assert "needs the name" in capsys.readouterr().err


def test_status_starts_without_montages():
    code = "import sys, controller.__main__ as m; m.parser(); sys.exit('pydantic' in sys.modules or 'controller.montages' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
