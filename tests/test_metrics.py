"""What Prometheus would read of a bed, by a reader of its text format written here."""

import contextlib
import json
import math
import re
import time
from pathlib import Path

import httpx
import pytest

from controller.alarms import LEVELS, alarms
from controller.settings import load
from controller.supervisor import SafetyState
from controller.telemetry import QUANTITIES
from controller.web import metrics
from controller.web.feed import limits
from tests.test_daemon import make
from tests.test_web import report, web  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
STALE_S = 1.0


def read(text):
    """{name: {labels: value}}, {name: type}; raises AssertionError where a line is not of the format."""
    families, types, current = {}, {}, ""
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# "):
            _, what, name, rest = line.split(" ", 3)
            assert NAME.fullmatch(name)
            if what == "TYPE":
                assert name not in types, "a family is told once"
                assert rest in ("counter", "gauge")
                types[name] = rest
                families[name] = {}
            else:
                assert what == "HELP"
                assert rest.strip()
                current = name
            continue
        name = NAME.match(line)[0]
        assert name == current
        assert name in types
        labels, rest = labels_of(line[len(name) :])
        assert labels not in families[name], "a series is told once"
        families[name][labels] = float(rest)
    assert all(families.values())
    return families, types


def labels_of(text):
    """Labels as a tuple of pairs, and the value's text."""
    labels = []
    if text[0] == "{":
        text = text[1:]
        while text[0] != "}":
            key, text = text.split("=", 1)
            assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", key)
            assert text[0] == '"'
            value, i = "", 1
            while text[i] != '"':
                if text[i] == "\\":
                    i += 1
                    value += {"\\": "\\", '"': '"', "n": "\n"}[text[i]]
                else:
                    value += text[i]
                i += 1
            labels.append((key, value))
            text = text[i + 1 :].removeprefix(",")
        text = text[1:]
    assert text[0] == " "
    return tuple(labels), text[1:]


@pytest.fixture
def status(tmp_path):
    """As a daemon makes it, with figures in it."""
    bed = make(tmp_path)
    facts = bed.status | {"bed": "ward 3", "session": "/home/x/sessions/Jane-Doe", "journal": "/home/x/Jane-Doe.sqlite", "up_s": 12.5}
    facts |= {"state": "ARMED", "reason": "armed by Jane Doe", "automatic": True, "data_ok": True, "sample_age_ms": 2.5}
    facts |= {
        "disk_free_bytes": 12_345_678_901_234,
        "recording_bytes": 17,
        "trains": 3,
        "pulses": 75,
        "refusals": 1,
        "cycles": 900,
        "requests": 4,
    }
    facts["rules"] = {"Jane Doe's soleus": {"active": False}}
    bed.telemetry.histograms["ack"].add(1_500_000)
    facts["latency"] = bed.telemetry.summary()
    facts["dose"] = {
        "session": {"on_time_s": 1.5, "pulses": 75, "charge_mc": 0.75},
        "day": {"on_time_s": 2.5, "pulses": 125, "charge_mc": 1.25},
    }
    facts["scene"] = {"limits": limits(bed.config.prescription)}
    bed.end()
    return facts


def test_every_figure_is_told_under_its_name_with_its_unit(status):
    families, types = read(metrics.text(status, 0.2, STALE_S))
    get = lambda name, **labels: families[f"calmloop_{name}"][tuple(labels.items())]  # noqa: E731
    assert {name for name in families if name.endswith("_total")} == {name for name, kind in types.items() if kind == "counter"}
    assert {dict(labels)["state"] for labels, value in families["calmloop_state"].items() if value} == {"ARMED"}
    assert {dict(labels)["state"] for labels in families["calmloop_state"]} == {"unknown", *SafetyState}
    assert get("bed_info", bed="ward 3") == get("automatic") == get("data_ok") == get("up") == 1
    assert get("sample_age_seconds") == pytest.approx(0.0025)
    assert get("report_age_seconds") == pytest.approx(0.2)
    assert get("disk_free_bytes") == 12_345_678_901_234
    assert [get(f"{name}_total") for name in ("trains", "pulses", "refusals", "cycles", "requests", "records_lost")] == [
        3,
        75,
        1,
        900,
        4,
        0,
    ]
    for statistic in ("p50", "p99", "max"):
        assert get("latency_seconds", quantity="ack", statistic=statistic) == pytest.approx(0.0015, rel=0.03)
    assert {dict(labels)["quantity"] for labels in families["calmloop_latency_observations_total"]} == set(QUANTITIES)
    assert {dict(labels)["quantity"] for labels in families["calmloop_latency_seconds"]} == {"ack"}  # nothing was measured of the others
    rx = load(ROOT / "config" / "demo.toml").prescription
    assert get("dose_on_time_seconds", window="day") == 2.5
    assert get("dose_charge_coulombs", window="session") == pytest.approx(0.00075)
    assert get("dose_limit_on_time_seconds", window="day") == rx.max_on_time_min_in_24_h * 60
    assert get("dose_limit_pulses", window="session") == rx.max_pulses_in_session
    assert get("dose_limit_charge_coulombs", window="session") == pytest.approx(rx.max_charge_mc_in_session / 1000)
    assert not any(families["calmloop_alarm"].values())


def test_nobodys_name_and_no_path_is_told(status):
    text = metrics.text(status, 0.2, STALE_S)
    assert "Jane" not in text
    assert "/" not in "".join(line for line in text.splitlines() if not line.startswith("#"))


def test_an_old_report_tells_nothing_but_that(status):
    for facts, age_s in ((status, 1.0), (status, 300.0), ({}, None)):
        families, _ = read(metrics.text(facts, age_s, STALE_S))
        assert set(families) <= {f"calmloop_{name}" for name in ("up", "report_age_seconds", "state", "alarm")}
        assert families["calmloop_up"] == {(): 0.0}
        assert families["calmloop_state"][("state", "unknown"),] == 1
        assert sum(families["calmloop_state"].values()) == 1
        assert families["calmloop_alarm"][("alarm", "unknown"), ("level", "high")] == 1


@pytest.mark.parametrize("name", ['q"uote', "back\\slash", "two\nlines", "}{,=", "é"])
def test_odd_labels_come_back_as_they_were(status, name):
    families, _ = read(metrics.text(status | {"bed": name}, 0.0, STALE_S))
    assert families["calmloop_bed_info"] == {(("bed", name),): 1.0}


def test_what_is_no_number_is_left_out(status):
    for odd in (None, "7", math.nan, math.inf, [], {}):
        facts = status | {"sample_age_ms": odd, "trains": odd, "latency": {"ack": {"n": odd, "p50_ms": odd}}}
        families, _ = read(metrics.text(facts, 0.0, STALE_S))
        assert not {"calmloop_sample_age_seconds", "calmloop_trains_total", "calmloop_latency_seconds"} & set(families)
        assert "calmloop_pulses_total" in families


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"state": "FAULT"}, "fault"),
        ({"state": "LOCKOUT"}, "lockout"),
        ({"state": "OFF"}, "no_stimulator"),
        ({"data_ok": False}, "no_data"),
        ({"records_lost": 2}, "records_lost"),
        ({"disk_free_bytes": 1_999_999_999}, "disk_low"),
        ({"late": "late by 80 ms"}, "late"),
    ],
)
def test_each_alarm_is_told_alone(status, changes, name):
    families, _ = read(metrics.text(status | changes, 0.0, STALE_S))
    on = {dict(labels)["alarm"]: dict(labels)["level"] for labels, value in families["calmloop_alarm"].items() if value}
    assert on == {name: LEVELS[name]}


def test_alarms_that_guard_tells_come_before_milder_ones(status):
    facts = status | {"data_ok": False, "late": "late"}
    told = [(a.name, a.level) for a in alarms(facts, {"stop_confirmed": False, "recorder_ok": False}, asked=True)]
    assert told == [("stop_unconfirmed", "high"), ("no_data", "medium"), ("not_recorded", "medium"), ("late", "low")]
    assert [a.name for a in alarms(status, None, asked=True)] == ["guard_silent"]
    assert alarms(status | {"disk_free_bytes": 2_000_000_000}) == []
    assert alarms(status, {"stop_confirmed": None, "recorder_ok": True}, asked=True) == []
    order = ["high", "medium", "low"]
    assert sorted(LEVELS.values(), key=order.index) == list(LEVELS.values())


def test_the_dashboard_asks_for_what_is_told_alone(status):
    families, _ = read(metrics.text(status, 0.2, STALE_S))
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    assert all("calmloop_" in text for text in asked)
    named = set(re.findall(r"calmloop_\w+", " ".join(asked)))
    assert named <= set(families)
    for what in (
        "state",
        "dose_on_time_seconds",
        "dose_limit_on_time_seconds",
        "latency_seconds",
        "data_ok",
        "sample_age_seconds",
        "alarm",
    ):
        assert f"calmloop_{what}" in named
    used = set(re.findall(r'statistic="(\w+)"', " ".join(asked)))
    assert used <= {dict(labels)["statistic"] for labels in families["calmloop_latency_seconds"]}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.safety("G3")
def test_the_page_serves_it_to_this_machine_and_to_readers_alone(web, status):  # noqa: F811
    assert read(httpx.get(f"{web.url}/metrics").text)[0]["calmloop_up"] == {(): 0.0}
    report(web, **{key: value for key, value in status.items() if key not in ("written_ns", "state", "reason", "automatic", "scene")})
    end = time.monotonic() + 0.9
    while True:
        answer = httpx.get(f"{web.url}/metrics")
        families, _ = read(answer.text)
        if families["calmloop_up"][()]:
            break
        assert time.monotonic() < end
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert families["calmloop_dose_limit_pulses"][("window", "day"),] == web.rig.config.prescription.max_pulses_in_24_h
    for host in ("evil.example", f"evil.example:{web.port}", "127.0.0.1"):
        assert httpx.get(f"{web.url}/metrics", headers={"Host": host}).status_code == 403
    with contextlib.suppress(httpx.TransportError):
        assert httpx.post(f"{web.url}/metrics", headers={"Origin": web.url}).status_code == 405
