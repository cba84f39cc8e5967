"""A slice of `bench.deframers`: every deframer keeps its promises, and hypothesis finds no way to break them; planted faults are found."""

import json
import random
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import boxes, deframers, peers

EVERY = [(name, kind) for name in boxes.names() for kind in deframers.KINDS]
session = cache(boxes.record)


@cache
def target(name, kind):
    return deframers.target(session(name), kind)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_deframer_keeps_its_promises(name, kind):
    one = target(name, kind)
    result = deframers.fuzz(one, 300, seed=7)
    assert result.broken == []
    assert result.n_inputs == 300 and result.swallowed_bytes <= one.promise.lie_bytes


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_hypothesis_finds_nothing_shorter(name, kind):
    one = target(name, kind)
    piece = st.binary(max_size=80) | st.tuples(st.sampled_from(one.seeds or (b"",)), st.integers(0, 60), st.integers(0, 60)).map(
        lambda it: it[0][: it[1]] + it[0][it[2] :]
    )

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(piece, max_size=6).map(b"".join), st.integers(0, 1000))
    def search(data, seed):
        assert deframers.verdict(one, data, seed) == ""

    search()


@pytest.mark.parametrize("name", deframers.PLANTED)
def test_a_planted_fault_is_found_and_made_short(name):
    found = deframers.planted(name, session("rehamove3"), 2000, seed=3)
    [broken] = found.broken
    words = {
        "keeps its buffer": "keeps ",
        "keeps it out of sight": "has grown by",
        "raises": "IndexError",
        "loses the frame after garbage": "is lost",
        "believes a length that lies": "is lost",
        "hangs": "did not end within",
    }
    assert words[name] in broken["what"]
    if name in ("raises", "loses the frame after garbage", "believes a length that lies"):
        data = bytes.fromhex(broken["input"])
        assert len(data) <= 60
        assert deframers.verdict(target("rehamove3", "driver"), data, broken["seed"]) == ""  # the shipped one has no fault there


def test_what_a_lying_length_swallows_is_measured_and_bounded():
    """A deframer that waits for the 1200 bytes of a length field: what it swallows is measured, and a byte less is a broken promise."""
    honest = target("rehamove3", "driver")
    believing = replace(honest, new=deframers.Believes, promise=deframers.Promise(20_000))
    lie = bytes.fromhex("f0 81 51 81 e5 81")  # 1200 bytes
    swallowed = [deframers.check(believing, lie, seed) for seed in range(20)]
    assert min(swallowed) > 1100  # and more where the next head that it believes is the checksum of a good frame
    for seed, it in enumerate(swallowed):
        assert deframers.check(replace(believing, promise=deframers.Promise(it)), lie, seed) == it
        with pytest.raises(deframers.BrokenError, match="is lost"):
            deframers.check(replace(believing, promise=deframers.Promise(it - 1)), lie, seed)
    assert deframers.check(honest, lie, 1) == 0


def test_a_wire_check_may_raise_nothing_but_its_own_error_and_lets_out_nothing_but_pulses():
    one = target("rehamove3", "wire")

    class Leaky(deframers.WireEar):
        def __init__(self):
            super().__init__("rehamove3")
            decode = self.decode
            self.decode = lambda data: (1, 2, 3, 4) if data == b"leak" else int(data) if data == b"raise" else decode(data)

    leaky = replace(one, new=Leaky)
    assert deframers.verdict(leaky, b"\x00", 1) == ""
    assert "neither a Pulse nor None" in deframers.verdict(leaky, b"leak", 1)
    assert "ValueError" in deframers.verdict(leaky, b"raise", 1)


def test_inputs_are_of_every_kind_and_the_same_for_the_same_seed():
    one = target("rehamove3", "twin")

    def inputs(seed):
        dice = random.Random(seed)
        return [deframers.garbage(one, dice) for _ in range(500)]

    got = inputs(5)
    assert got == inputs(5) != inputs(6)
    assert max(map(len, got)) > 500 and min(map(len, got)) <= 3
    for data in got[:50]:
        pieces = list(deframers.chunks(data, random.Random(1)))
        assert b"".join(pieces) == data and b"" not in pieces
    # spoilt content under a right checksum reaches what lies behind the checksum
    rewrapped = [one.rewrap(frame, random.Random(i)) for i, frame in enumerate(one.seeds)]
    assert all(len(deframers.TwinEar("rehamove3").feed(frame)) == 1 for frame in rewrapped)
    assert len(set(rewrapped) - set(one.seeds)) > 10


def test_what_an_object_keeps_is_counted_wherever_it_is():
    device = deframers.DriverEar("rehamove3").device
    before = deframers.held(device)
    device._deframer.feed(b"\xf0\x81" * 4)
    device.somewhere = {"else": [bytearray(100)]}
    assert deframers.held(device) == before + 8 + 1 + 1 + 100


def test_the_command_writes_what_it_did_and_names_what_it_could_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)  # no atheris there
    path = tmp_path / "deframers.json"
    assert deframers.main(["--inputs", "60", "--only", "rehamove3", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert (result["inputs"], result["broken"], result["planted_missed"]) == (60, 0, 0)
    assert "bench.peers install atheris" in result["skipped"]["atheris"]
    assert {row["target"] for row in result["results"]} == {"rehamove3 driver", "rehamove3 twin", "rehamove3 wire"}
    assert result["environment"]["python"]
    assert "planted: hangs" in capsys.readouterr().out


def test_a_driver_that_is_not_there_misses_the_gate(monkeypatch, capsys):
    monkeypatch.setattr(
        boxes, "TWINS", {name: it for name, it in boxes.TWINS.items() if name != "p24"} | {"nobody": ("drivers.nobody", "Box")}
    )
    monkeypatch.setattr(deframers, "PLANTED", {})
    assert boxes.missing("p24") == ["no twin of that name"]
    assert deframers.main(["--inputs", "3", "--only", "rehamove3", "--no-atheris", "--gate"]) == 1
    said = capsys.readouterr()
    assert "missed: not_covered" in said.err
    assert "skipped: nobody: not there: no driver of that name, drivers.nobody, no wire check of that name" in said.out
