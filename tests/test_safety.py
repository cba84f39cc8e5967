"""The table of safety requirements: complete, with figures from the code, and a test behind each number."""

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from controller import limits, safety, settings, supervisor
from controller.__main__ import main
from controller.__main__ import parser as build_parser
from drivers.stimulators import limits_of

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = (
    *(f"A{n}" for n in range(1, 15)),
    *(f"B{n}" for n in range(1, 9)),
    *(f"C{n}" for n in range(1, 8)),
    *(f"D{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 10)),
    *(f"E{n}" for n in range(1, 7)),
    *("F1", "F2", "F3", "F5", "F6", "F7", "F8", "F9", "F10"),
    *(f"G{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 11)),
)
VIEW = settings.guard_view(settings.load(ROOT / "config" / "bedside.toml"))
REHAMOVE3 = limits_of("rehamove3")


def test_every_requirement_is_in_the_table():
    assert safety.NUMBERS == NUMBERS


def test_every_requirement_has_a_test():
    proofs = safety.proofs()
    missing = [number for number in NUMBERS if not proofs[number]]
    assert not missing, f"no test carries the mark of {', '.join(missing)}"


def test_no_mark_names_an_unknown_number():
    unknown = [mark for mark in safety.marks(ROOT / "tests") if mark.number not in NUMBERS]
    assert not unknown


def test_every_figure_is_in_this_build():
    limits = [limit for requirement in (*safety.REQUIREMENTS, safety.OTHERS) for limit in requirement.limits]
    absent = sorted({limit.name for limit in limits if safety.figure(limit.name) is None})
    assert not absent, f"the supervisor has no {', '.join(absent)}"
    for requirement in safety.REQUIREMENTS:
        assert "{" not in safety.rule(requirement) and "in this build" not in safety.rule(requirement), requirement.number


def test_every_hard_limit_and_constant_is_to_be_signed():
    signed = {row["name"] for row in safety.limits_table()}
    hard = {field.name for field in fields(limits.HARD)}
    units_and_sizes = {"MS", "S", "MINUTE", "DAY", "LOAD_OHM", "MAX_REASON_CHARS", "MAX_STARTS", "MAX_IDS"}
    every = vars(limits) | vars(supervisor)
    constants = {name for name, value in every.items() if name.isupper() and type(value) is int} - units_and_sizes
    assert hard | constants <= signed, sorted((hard | constants) - signed)
    assert all(row["status"] == "proposed, needs a clinician's signature" for row in safety.limits_table())


# --- layers -----------------------------------------------------------------------------------------------------------------------
CURRENT = safety.Limit("current", "max_current_ua", "max_current_ua", "max_current_ua")


@pytest.mark.safety("A14")
def test_the_tightest_layer_is_in_force_and_named():
    assert safety.in_force(CURRENT)[1:3] == (60_000, "hard limit")
    assert safety.in_force(CURRENT, None, REHAMOVE3)[1:3] == (60_000, "hard limit")
    one = safety.in_force(CURRENT, VIEW, REHAMOVE3)
    assert one[1:3] == (20_000, "prescription")
    assert one.layers == {"hard limit": 60_000, "device": 130_000, "prescription": 20_000}
    weak = type(REHAMOVE3)("weak", 1, 15_000, 500, 10, 4095, 1, 500.0, 1.0)
    assert safety.in_force(CURRENT, VIEW, weak)[1:3] == (15_000, "device")


@pytest.mark.safety("A14")
@pytest.mark.parametrize(("prescribed", "layer"), [(59_999, "prescription"), (60_000, "hard limit"), (60_001, "hard limit")])
def test_of_equal_ones_the_more_basic_layer_is_named(prescribed, layer):
    assert safety.in_force(CURRENT, VIEW | {"max_current_ua": prescribed}).layer == layer


@pytest.mark.safety("A14")
def test_no_layer_ever_loosens():
    for requirement in safety.REQUIREMENTS:
        for limit in requirement.limits:
            in_order = [safety.in_force(limit, *layers).value for layers in ((), (None, REHAMOVE3), (VIEW, REHAMOVE3))]
            assert in_order == sorted(in_order, reverse=not limit.name.startswith("min_")), limit


def test_a_rest_is_a_least_time_and_trains_stand_for_their_own_figures():
    rest = safety.Limit("rest", "min_refractory_ns", "refractory_ns")
    assert safety.in_force(rest, VIEW)[1:3] == (5_000_000_000, "prescription")
    train = VIEW["trains"]["peroneal"]
    view = VIEW | {"trains": {"a": train, "b": train | {"phase_width_us": 200}}}
    assert [safety.in_force(limit, view, REHAMOVE3).value for limit in safety.REQUIREMENTS[1].limits] == [200, 500]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_current_ua", 20_500, "20.5 mA"),
        ("max_phase_width_us", 1000, "1000 us"),
        ("max_train_us", 500_000, "500 ms"),
        ("max_pulse_rate_mhz", 99_500, "99.5 Hz"),
        ("max_charge_nc", 30_000, "30 uC"),
        ("max_charge_24h_nc", 7_200_000_000, "7200 mC"),
        ("max_rms_density_ua_per_mm2", 20, "2 mA/cm2"),
        ("max_power_density_w_per_m2", 2500, "0.25 W/cm2"),
        ("max_pulse_energy_uj", 300_000, "300 mJ"),
        ("max_on_time_60s_ns", 20 * 10**9, "20 s"),
        ("max_arming_expires_ns", 1800 * 10**9, "30 min"),
        ("LEASE_NS", 200 * 10**6, "200 ms"),
        ("WARN_PERCENT", 90, "90 %"),
        ("max_rise_percent_per_s", 20, "20 % a second"),
        ("FAULTS", 3, "3"),
    ],
)
def test_figures_for_people(name, value, words):
    assert safety.say(name, value) == words


# --- marks ------------------------------------------------------------------------------------------------------------------------
def test_marks_of_functions_classes_and_modules(tmp_path):
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        "pytestmark = [pytest.mark.slow, pytest.mark.safety('A1')]\n"
        "@pytest.mark.safety('B2', 'A1')\n@pytest.mark.parametrize('x', [1])\ndef test_one(x): ...\n"
        "@pytest.mark.safety('C3')\nclass TestMany:\n"
        "    @pytest.mark.safety('D4')\n    def test_two(self): ...\n"
        "    def helper(self): ...\n"
        "def helper(): ...\n"
    )
    (tmp_path / "helper.py").write_text("import pytest\n@pytest.mark.safety('E5')\ndef test_unseen(): ...\n")
    assert list(safety.marks(tmp_path)) == [
        ("test_a.py", "test_one", "A1"),
        ("test_a.py", "test_one", "B2"),
        ("test_a.py", "TestMany::test_two", "A1"),
        ("test_a.py", "TestMany::test_two", "C3"),
        ("test_a.py", "TestMany::test_two", "D4"),
    ]


def test_a_mark_on_what_is_no_test_is_refused(tmp_path):
    (tmp_path / "test_a.py").write_text("import pytest\n@pytest.mark.safety('A1')\ndef check(): ...\n")
    with pytest.raises(ValueError, match="check carries a safety mark and is no test"):
        list(safety.marks(tmp_path))


def test_every_mark_in_the_tests_was_found():
    """Counted another way: each string in a call of `safety` that stands before a test."""
    seen = sum(len(proofs) for proofs in safety.proofs().values())
    written = 0
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                written += sum(
                    len({argument.value for argument in call.args})
                    for call in node.decorator_list
                    if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".safety")
                )
    assert seen >= written > 0


def test_without_a_checkout_it_says_where_the_tests_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(safety, "CHECKOUT", tmp_path)
    assert safety.proofs() is None
    (tmp_path / "tests").mkdir()
    assert safety.proofs() is None  # somebody else's
    assert main(["safety"]) in (0, 1)
    text = capsys.readouterr().out
    assert "source checkout" in text and "NO TEST" not in text


# --- the command ------------------------------------------------------------------------------------------------------------------
def test_table(capsys):
    code = main(["safety", "--table", str(ROOT / "config" / "bedside.toml"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == (0 if facts["ok"] else 1) and not (facts["ok"] and facts["unproved"])
    assert [row["number"] for row in facts["requirements"]] == list(NUMBERS)
    assert facts["device"] == "RehaMove3"
    current = facts["requirements"][0]["limits"][0]
    assert (current["value"], current["set_by"], current["text"]) == (20_000, "prescription", "current at most 20 mA")
    for row in facts["requirements"]:
        for test in row["tests"]:
            path, _, name = test.partition("::")
            assert f"def {name.rpartition('::')[2]}(" in (ROOT / path).read_text()


def test_text_fits_a_terminal_and_has_every_number(capsys):
    main(["safety", "--table", str(ROOT / "config" / "demo.toml")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines if line[:1] in set("ABCDEFG") and line.split()[0] in NUMBERS] == list(NUMBERS)


def test_limits(capsys):
    assert main(["safety", "--limits"]) == 0
    text = capsys.readouterr().out
    assert "proposed, needs a clinician's signature" in text
    assert all(field.name in text for field in fields(limits.HARD))
    assert "LEASE_NS                        200 ms          E4 F1 F2" in text
    assert main(["safety", "--limits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "proposed, needs a clinician's signature"


def test_wrong_settings_are_named(tmp_path, capsys):
    (tmp_path / "bad.toml").write_text("x = 1")
    assert main(["safety", str(tmp_path / "bad.toml")]) == 2
    assert "not a known table" in capsys.readouterr().err
    assert main(["safety", str(tmp_path / "bad.toml"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False


# --- the hazard file ----------------------------------------------------------------------------------------------------------------
def test_every_requirement_is_in_the_hazard_file():
    text = (ROOT / "docs" / "hazards.md").read_text()
    rows = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    absent = [number for number in NUMBERS if number not in rows]
    assert not absent, f"docs/hazards.md has no row for {', '.join(absent)}"


def test_the_hazard_file_names_what_exists():
    text = (ROOT / "docs" / "hazards.md").read_text()
    for bench in set(re.findall(r"`bench\.(\w+)", text)):
        assert (ROOT / "bench" / f"{bench}.py").is_file(), bench
    commands = set(re.findall(r"`calmloop (\w+)", text))
    known = build_parser()._subparsers._group_actions[0].choices
    assert commands <= set(known), commands - set(known)


@pytest.mark.parametrize("number", NUMBERS)
def test_each_row_has_hazard_control_and_what_remains(number):
    [line] = [line for line in (ROOT / "docs" / "hazards.md").read_text().splitlines() if line.startswith(f"| {number} |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == 5 and all(cells)
    assert set(cells[3].split()) <= {"T", "F", "X", "I"} and "T" in cells[3]
