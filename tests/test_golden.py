"""Sessions that were recorded once replay to the same decisions, bit for bit, until somebody changes a decision on purpose.

How to make them anew: `tests.golden`.

Is it exact on another processor? No kernel is compiled with `fastmath`, so LLVM neither reorders nor fuses; what is left are numpy's and
the C library's functions, in the design of filters above all. Tried on these sessions: numpy without AVX-512, and glibc without AVX and FMA
(`NPY_DISABLE_CPU_FEATURES`, `GLIBC_TUNABLES`), change no bit; numpy without AVX2 and FMA3 changes the last bit of a filter, and with it of
a statistic. So it is exact on every x86-64 with AVX2 and FMA3 (made since 2013), and asked for there alone.
"""

import json
import math
from pathlib import Path

import pytest

from controller import __main__ as cli
from controller import detector, recording, replay, settings, what_if
from tests import golden

NAMES = sorted(play.__name__ for play in golden.SESSIONS)
RULE = {"soleus": "soleus EMG", "torque": "plantarflexion torque"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    return {name: golden.unpack(name, folder) for name in NAMES}


FLAGS = set(Path("/proc/cpuinfo").read_text().split())
exact = pytest.mark.skipif(not {"avx2", "fma"} <= FLAGS, reason="no x86-64 with AVX2 and FMA3: filters differ in their last bit")


@exact
@pytest.mark.parametrize("name", NAMES)
def test_a_golden_session_replays_identically(name, folders):
    result = replay.replay_session(folders[name])
    assert result.identical, result.first_difference
    assert result.notes == ["there is no audit beside the recording"]
    assert min(result.cycles // 500, result.requests, result.guard_events // 100, result.pulses) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_session_is_small_and_tells_of_nobody(name, folders):
    folder = golden.FOLDER / name
    assert {path.name for path in folder.iterdir()} == {"settings.toml", golden.PACKED}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    for path in folders[name].iterdir():
        content = path.read_bytes()
        for word in (b"/home", b"/tmp", b"/work", b"/dev", b"/run", b"/root", b'"pid"'):
            assert word not in content, (path.name, word)


def test_a_planted_change_of_the_detector_is_named_by_its_first_cycle(folders, monkeypatch):
    """The envelope a little slower: the first figure that tells of it is an envelope."""
    monkeypatch.setattr(detector, "ENVELOPE_S", detector.ENVELOPE_S * 1.01)
    difference = replay.replay_session(folders["soleus"]).first_difference
    assert difference["field"] == "soleus EMG: envelope"
    cycles = [recorded for _, recorded in recording.load(folders["soleus"]).cycles()]
    first = next(c for c in cycles if c.numbers["n_emg"])  # the first sample that there is
    assert (difference["loop"], difference["cycle"]) == (1, first.numbers["index"])


# --- what if ------------------------------------------------------------------------------------------------------------------------
def other(folder, tmp_path, was, now):
    path = tmp_path / "other.toml"
    text = (folder / "settings.toml").read_text()
    assert was in text
    path.write_text(text.replace(was, now))
    return str(path)


@exact
@pytest.mark.parametrize("name", NAMES)
def test_what_if_nothing_changes(name, folders, capsys):
    path = str(folders[name] / "settings.toml")
    assert cli.main(["replay", str(folders[name]), "--what-if", path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["differs"], facts["first_difference"], facts["certain_until_s"], facts["notes"]) == (False, None, None, [])
    parts = [*facts["rules"].values(), facts["requests"]]
    assert not any(part["only_recorded"] or part["only_new"] for part in parts)
    assert all(
        pair["recorded"].items() - {("answer", pair["recorded"].get("answer"))} <= pair["new"].items() for p in parts for pair in p["both"]
    )
    recorded = [c.request for _, c in recording.load(folders[name]).cycles() if c.request]
    assert len(facts["requests"]["both"]) == len(recorded) >= 1
    assert len(facts["rules"][RULE[name]]["both"]) >= 1


def test_what_if_fewer_false_alarms_were_asked_for(folders, tmp_path, capsys):
    """The threshold differs by the logarithm of the two rates from the first cycle on: that is named, and what it changed."""
    folder = folders["soleus"]
    path = other(folder, tmp_path, "false_alarms_per_h = 0.04", "false_alarms_per_h = 0.001")
    cli.main(["replay", str(folder), "--what-if", path, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["changes"] == ["emg_rules soleus EMG: false_alarms_per_h 0.04 -> 0.001"]
    first = facts["first_difference"]
    assert (first["loop"], first["cycle"], first["field"]) == (1, 1, "soleus EMG: threshold")
    assert first["new"] - first["recorded"] == pytest.approx(math.log(40))
    assert all(pair["later"]["decided_ms"] >= 0 for pair in facts["rules"]["soleus EMG"]["both"])
    cli.main(["replay", str(folder), "--what-if", path])
    assert "first cycle that differs: loop 1 cycle 1, soleus EMG: threshold" in capsys.readouterr().out


def test_what_if_less_torque_were_enough(folders, tmp_path, capsys):
    """Torque that rises meets the lower threshold earlier: from then on the patient would have been another."""
    folder = folders["torque"]
    path = other(folder, tmp_path, "\nthreshold = 3.0", "\nthreshold = 2.5")
    assert cli.main(["replay", str(folder), "--what-if", path, "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    first, asked = facts["rules"][RULE["torque"]]["both"][0], facts["requests"]["both"][0]
    assert first["later"]["decided_ms"] < 0
    assert first["new"]["decided_s"] - first["recorded"]["decided_s"] == pytest.approx(first["later"]["decided_ms"] / 1000, abs=1e-6)
    assert asked["recorded"]["answer"] == "pulses"
    assert facts["certain_until_s"] == asked["new"]["decided_s"] == first["new"]["decided_s"]
    assert asked["later"]["decided_ms"] == first["later"]["decided_ms"]
    assert cli.main(["replay", str(folder), "--what-if", path]) == 1
    said = capsys.readouterr().out
    assert f"THE FIRST REQUEST THAT DIFFERS IS AT {facts['certain_until_s']:.3f} s" in said
    assert f"decided {first['later']['decided_ms']:+.1f} ms" in said


def test_what_if_nothing_were_a_spasm(folders, tmp_path):
    folder = folders["soleus"]
    session, config = recording.load(folder), settings.load(other(folder, tmp_path, "floor_uv = 6.0", "floor_uv = 5000.0"))
    facts = what_if.compare(session, config)
    rule, requests = facts["rules"]["soleus EMG"], facts["requests"]
    assert rule["only_recorded"] and requests["only_recorded"]
    assert not (rule["both"] or rule["only_new"] or requests["both"] or requests["only_new"])
    assert facts["certain_until_s"] == requests["only_recorded"][0]["decided_s"]
    assert "  ?" not in next(line for line in what_if.words(facts) if "only recorded  " in line)


def test_what_if_the_rule_were_new(folders, tmp_path):
    """The same rule by another name: all of the one is gone, all of the other is new, at the same times; not one train differs."""
    folder = folders["torque"]
    config = settings.load(other(folder, tmp_path, 'name = "plantarflexion torque"', 'name = "ankle"'))
    facts = what_if.compare(recording.load(folder), config)
    assert facts["rules"]["plantarflexion torque"]["only_recorded"] == facts["rules"]["ankle"]["only_new"] != []
    assert {pair["new"]["rule"] for pair in facts["requests"]["both"]} == {"ankle"}
    assert facts["certain_until_s"] is None
    assert facts["differs"]


def test_what_if_the_train_were_weaker(folders, tmp_path):
    """Heard is the same, asked at the same time, and from the first train on the patient would have been another."""
    folder = folders["torque"]
    facts = what_if.compare(
        recording.load(folder), settings.load(other(folder, tmp_path, "current_ma = 20.0\nphase", "current_ma = 15.0\nphase"))
    )
    pair = facts["requests"]["both"][0]
    assert (pair["recorded"]["current_ma"], pair["new"]["current_ma"], pair["later"]["decided_ms"]) == (20.0, 15.0, 0.0)
    assert facts["certain_until_s"] == pair["recorded"]["decided_s"]
    assert facts["first_difference"] is None


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("sample_rate_hz = 2000.0", "sample_rate_hz = 1000.0", "[emg] sample_rate_hz is 1000.0, the session's is 2000.0"),
        ('["SOL1", "SOL2"]', '["SOL2", "SOL1"]', "[emg] channels is ['SOL2', 'SOL1'], the session's is ['SOL1', 'SOL2']"),
    ],
)
def test_other_signals_are_refused_by_the_name_of_the_field(was, now, said, folders, tmp_path, capsys):
    path = other(folders["soleus"], tmp_path, was, now)
    assert cli.main(["replay", str(folders["soleus"]), "--what-if", path]) == 2
    assert f"{path}: {said}" in capsys.readouterr().err


def test_other_signals_altogether_are_refused(folders, capsys):
    path = str(folders["torque"] / "settings.toml")
    assert cli.main(["replay", str(folders["soleus"]), "--what-if", path]) == 2
    said = capsys.readouterr().err
    assert "[emg] is missing, and the session was recorded with" in said
    assert "[force] is there, and the session was recorded without" in said


def test_pairs_are_of_those_that_overlap():
    spans = lambda *pairs: [replay.Activation(a, a, b) for a, b in pairs]  # noqa: E731
    was, now = spans((1, 2), (4, 5), (8, 9)), spans((1.5, 3), (4, 4.2), (4.5, 5), (6, 7))
    pairs = what_if._paired(was, now, what_if._span_s)
    assert [(was.index(a) if a else None, now.index(b) if b else None) for a, b in pairs] == [
        (0, 0),
        (1, 1),
        (None, 2),
        (None, 3),
        (2, None),
    ]


# --- the command, many files --------------------------------------------------------------------------------------------------------
@exact
def test_many_sessions_and_one_that_is_none(folders, tmp_path, capsys):
    (tmp_path / "torn").mkdir()
    arguments = [str(folders["torque"]), str(tmp_path / "torn"), str(folders["soleus"])]
    assert cli.main(["replay", *arguments, "--speed", "1e6", "--json"]) == 2
    out, err = capsys.readouterr()
    torque, torn, soleus = json.loads(out)
    assert torque["identical"] and soleus["identical"]
    assert (torque["session"], soleus["session"]) == (arguments[0], arguments[2])
    assert "signals.xdf is missing" in torn["error"]
    assert err == torn["error"] + "\n"
    assert torque["times_real_time"] > 0 and torque["seconds"] > 3
    assert cli.main(["replay", str(folders["torque"]), "--jobs", "2"]) == 0  # one file is one process
    assert "x real time)" in capsys.readouterr().out


@pytest.mark.parametrize("more", [["--jobs", "2"], ["--speed", "2"]])
def test_real_time_is_real_time(more, capsys):
    assert cli.main(["replay", "a.npz", "--realtime", *more]) == 2
    assert "in real time" in capsys.readouterr().err
