"""Markers of a bed, as an inlet of pylsl hears them: the words, and the stamps of our own recording."""

import time

import pylsl
import pytest

from controller import markers, recording
from tests.test_daemon import make

MS = 1_000_000


@pytest.fixture
def bed(tmp_path, monkeypatch):
    from controller import settings

    whole = settings.load
    monkeypatch.setattr(settings, "load", lambda path: whole(path).model_copy(update={"lsl": settings.Lsl(markers=True)}))
    d = make(tmp_path)
    yield d
    d.end()


def inlet_of(bed):
    name = f"calmloop {bed.bed}"
    (info,) = pylsl.resolve_byprop("name", name, timeout=10)
    assert (info.type(), info.channel_count(), info.nominal_srate(), info.channel_format()) == ("Markers", 1, 0.0, pylsl.cf_string)
    assert info.source_id() == "calmloop-markers-test"
    inlet = pylsl.StreamInlet(info)
    inlet.open_stream(timeout=10)
    return inlet


def heard(inlet, n, within_s=5.0):
    got, end_s = [], time.monotonic() + within_s
    while len(got) < n and time.monotonic() < end_s:
        sample, at_s = inlet.pull_sample(timeout=0.2)
        if sample:
            got.append((at_s, sample[0]))
    return got


def put(guard, kind, at_ns, refused=0, ended=0, reasons=(), event=(), **more):
    import json

    from controller import messages

    verdict = {"state": "STIMULATING", "automatic": True, "reasons": list(reasons), "refused": refused, "ended": ended, "wake_ns": 0}
    verdict |= {"train": 0, "current_ua": 8000}
    row = {"event": {"kind": kind, "now_ns": at_ns, **dict(event)}, "verdict": verdict, **more}
    guard.writer.put(messages.RING_GUARD, json.dumps(row).encode())


def test_an_inlet_hears_what_the_recording_holds_at_the_same_stamps(bed):
    inlet, t = inlet_of(bed), time.monotonic_ns()
    put(bed.guard, "request", t, event={"number": 12}, written_ns=t + 100_000, request=12, packet=1)
    for k in (1, 2):
        put(bed.guard, "tick", t + 20 * k * MS, written_ns=t + 20 * k * MS + 7777, request=12, packet=1 + k)
    put(bed.guard, "tick", t + 60 * MS, ended=12)
    why = ["not armed: IDLE, disarmed by Ada [B2]", "refractory: 1 of 3 ms [A9, prescription]", "again [B2]"]
    put(bed.guard, "request", t + 70 * MS, refused=13, reasons=why, event={"number": 13})
    put(bed.guard, "button", t + 80 * MS, event={"ok": True}, written_ns=t + 81 * MS, request=-1, packet=4)
    bed.drain()
    said = ["train 12 20 mA", "pulse", "pulse", "pulse", "end 12", "refused 13 B2+A9", "button", "train manual 20 mA", "pulse"]
    got = heard(inlet, len(said))
    assert [words for _, words in got] == said
    bed.recorder.mark()
    pulses_s = recording.load(bed.folder).streams["pulses"].stamps_s
    assert [at_s for at_s, words in got if words == "pulse"] == pulses_s.tolist()  # bit for bit
    stamps_s = recording.load(bed.folder).streams["guard"].stamps_s
    assert {at_s for at_s, words in got if words.split()[0] in ("end", "refused", "button")} == set(stamps_s[3:])


def test_decisions_of_the_rules(bed):
    from controller.loop import Loop
    from tests.test_joins import blocks, signals
    from tests.test_recording import Wire

    inlet, loop, wire, cycles = inlet_of(bed), Loop(bed.config), Wire(), []
    for chunk in blocks(*signals(6.0, [(3.0, 4.0)], [])):
        loop.step(chunk)
        cycles.append(wire.carry(loop, chunk))
    bed.markers.see_cycles(cycles)
    got = heard(inlet, 3, 2.0)
    (decided_s,) = {float(c.detections[0][markers.DECIDED_S]) for c in cycles if c.detections[0][markers.DECIDED_S] > 0}
    asked = [c for c in cycles if c.numbers["request"]]
    assert (decided_s, "spasm soleus EMG") in got
    assert (asked[0].numbers["decided_ns"] * 1e-9, "request 1 soleus EMG") in got
    quiet = [at_s for at_s, words in got if words == "quiet soleus EMG"]
    assert len(quiet) <= 1 and all(decided_s < at_s for at_s in quiet)


def test_a_marker_process_that_dies_or_hangs_holds_nothing_up_and_is_noted(bed):
    import signal

    bed.markers.process.send_signal(signal.SIGSTOP)
    begin_s = time.monotonic()
    for _ in range(20_000):
        bed.markers.say(1.0, "pulse")
    assert time.monotonic() - begin_s < 2.0
    assert bed.markers.dropped > 0
    bed.markers.process.kill()
    bed.markers.process.wait()
    bed.look_after_markers()
    assert bed.markers is None
    bed.recorder.mark()
    assert [note["exit_code"] for note in recording.load(bed.folder).notes() if note["what"] == "markers ended"] == [-9]
    assert any("go on" in line or "goes on" in line for line in bed.lines)
    bed.guard.put("IDLE", "still here")
    bed.drain()
    assert bed.guard.writer.durable == bed.guard.writer.count


def test_off_by_default_and_guard_knows_nothing_of_it(tmp_path):
    d = make(tmp_path)
    assert d.markers is None
    d.end()
    assert "markers" not in str(d.view)
