"""The daemon's bookkeeping, with guard's rows made here: what is durable when, and what counts for the dose."""

import json
import os
import re
import select
import shutil
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from controller import __main__ as cli
from controller import audit, daemon, messages, recording, settings
from controller.daemon import Daemon
from controller.journal import Journal, JournalError
from controller.loop import Loop
from controller.ring import RingReader, RingWriter, create
from tests.test_joins import blocks, signals
from tests.test_recording import Wire

ROOT = Path(__file__).resolve().parents[1]


class FakeGuard:
    """A ring, and the process that would write it."""

    name, number = "guard", 1

    def __init__(self):
        fd = create("guard", 1 << 20)
        self.writer, self.ring = RingWriter(fd), RingReader(fd)
        os.close(fd)
        self.process = SimpleNamespace(pid=1, returncode=None)
        self.how = None

    def put(self, state, *reasons, kind="tick", **more):
        now_ns = time.monotonic_ns()
        verdict = {"state": state, "automatic": False, "reasons": reasons, "refused": 0, "ended": 0, "wake_ns": 0}
        row = {"event": {"kind": kind, "now_ns": now_ns}, "verdict": verdict, **more}
        self.writer.put(messages.RING_GUARD, json.dumps(row).encode())

    def put_train(self, state="ARMED", on_ns=500_000_000):
        end_ns = time.monotonic_ns()
        train = {"start_ns": end_ns - on_ns, "end_ns": end_ns, "pulses": 25, "charge_nc": 250_000}
        self.put(state, train=train | {"event_id": 1, "cause": 1, "new_event": True, "automatic": True})

    def how_it_ended(self):
        return self.how

    def close(self):
        pass


def make(tmp_path, journal=None, path=None):
    """A daemon with its files and no children yet."""
    config = settings.load(ROOT / "config" / "demo.toml")
    config = config.model_copy(update={"session": config.session.model_copy(update={"folder": str(tmp_path / "sessions")})})
    d = Daemon(config, "test", said_by(lines := []), journal=journal or tmp_path / "dose.sqlite", path=path)
    d.lines = lines
    d.link = None
    d.start_guard = lambda: setattr(d, "guard", FakeGuard())
    d.start_loop = lambda: None
    d.begin()
    return d


def said_by(lines):
    def tell(line, end="\n"):
        lines.append(line)

    tell.finish = lambda: None
    return tell


@pytest.fixture
def bed(tmp_path):
    d = make(tmp_path)
    yield d
    if d.guard:
        d.end()


def dose_of(path):
    journal = Journal(path)
    try:
        return journal.history()
    finally:
        journal.close()


@pytest.mark.safety("A10", "G7")
def test_rows_are_durable_when_audit_journal_and_recording_have_them(bed):
    g = bed.guard
    g.put("IDLE", "not armed: virtual found")
    g.put_train()
    assert g.writer.durable == 0
    bed.drain()
    assert g.writer.durable == g.writer.count == 2
    assert bed.status["dose"]["day"]["pulses"] == 25
    # what another process finds there at this very moment
    with sqlite3.connect(f"file:{bed.journal.path}?mode=ro", uri=True) as db:
        assert db.execute("SELECT count(*) FROM dose WHERE kind = 'train'").fetchone() == (1,)
    db.close()
    with sqlite3.connect(f"file:{bed.folder / recording.AUDIT}?mode=ro", uri=True) as db:
        assert db.execute("SELECT count(*) FROM audit WHERE detail LIKE '%virtual found%'").fetchone() == (1,)
    db.close()


@pytest.mark.safety("A10", "F8")
def test_a_journal_that_went_with_its_lock_is_missed_by_the_sessions_that_wrote_to_it(tmp_path):
    d = make(tmp_path)
    d.guard.put("OFF", "session ended")
    d.end()
    path = d.journal.path
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    with pytest.raises(JournalError, match=f"it is gone, though {d.folder} wrote to it within 24 h.*--reset"):
        make(tmp_path)
    signals = d.folder / recording.SIGNALS
    day_before = time.time() - 86_401
    os.utime(signals, (day_before, day_before))
    again = make(tmp_path)
    again.guard.put("OFF", "session ended")
    again.end()
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    assert cli.main(["dose", "--journal", str(path), "--reset", "nobody was stimulated"]) == 0  # the way out
    last = make(tmp_path)
    last.guard.put("OFF", "session ended")
    last.end()


@pytest.mark.parametrize("broken", ["audit", "journal", "recorder"])
@pytest.mark.safety("A10", "G7")
def test_a_disk_that_does_not_take_the_rows_makes_nothing_durable_and_ends_the_session_unclean(bed, broken, monkeypatch):
    def fail(*_, **__):
        raise {"audit": sqlite3.OperationalError("disk full"), "journal": JournalError("disk full"), "recorder": OSError("disk full")}[
            broken
        ]

    bed.drain()
    bed.guard.put("ARMED", "armed", kind="armed")
    bed.guard.put_train()
    method = {"audit": "add", "journal": "take", "recorder": "guard"}[broken]
    monkeypatch.setattr(getattr(bed, broken), method, fail)
    monkeypatch.setattr(bed, "begin", lambda: None)
    assert bed.run() == 1
    assert "recording failed: disk full" in bed.lines
    assert bed.guard.writer.durable == 0
    bed.guard = None
    journal = Journal(bed.journal.path)
    assert journal.begin("next", (1, 1, 1)) == 2
    journal.close()


@pytest.mark.safety("B8")
def test_a_new_state_is_in_the_status_file_at_once(bed):
    for state in ("IDLE", "ARMED", "STIMULATING", "ARMED", "LOCKOUT", "FAULT"):
        bed.guard.put(state, "because")
        bed.drain()
        assert messages.daemon_status("test")["state"] == state
    before = messages.daemon_status("test")["written_ns"]
    bed.guard.put("FAULT")
    bed.drain()
    assert messages.daemon_status("test")["written_ns"] == before


@pytest.mark.safety("B8")
def test_a_report_that_cannot_be_written_is_told_once_and_ends_nothing(bed, monkeypatch):
    folder = messages.runtime_folder()
    folder.chmod(0o777)
    for state in ("ARMED", "IDLE"):
        bed.guard.put(state)
        bed.drain()
    assert sum("cannot be written" in line for line in bed.lines) == 1
    folder.chmod(0o700)
    bed.guard.put("FAULT")
    bed.drain()
    assert messages.daemon_status("test")["state"] == "FAULT"


@pytest.mark.safety("B8")
def test_what_a_daemon_that_was_killed_said_last_is_gone_when_its_successor_begins(bed, tmp_path):
    bed.guard.put("ARMED")
    bed.drain()
    assert messages.daemon_status("test")["state"] == "ARMED"
    bed.guard = None
    bed.journal.close()  # as its death would
    make(tmp_path / "next", bed.journal.path)
    assert messages.daemon_status("test") is None


@pytest.mark.parametrize(("state", "n"), [("IDLE", 0), ("LOCKOUT", 0), ("FAULT", 0), ("ARMED", 2), ("STIMULATING", 2)])
@pytest.mark.safety("A10", "F2")
def test_a_guard_that_dies_where_a_train_may_be_hidden_costs_two(bed, monkeypatch, state, n):
    monkeypatch.setattr(daemon, "RESTART_S", 0)
    bed.guard.put_train("ARMED")
    bed.guard.put(state, "a reason")
    bed.guard.how = "was killed by SIGKILL"
    bed.look_after_children()
    assert len(bed.journal.history()["trains"]) == 1 + n
    assert len(bed.deaths) == 1
    status = messages.daemon_status("test")
    assert (status["state"], status["automatic"]) == ("OFF", False)
    bed.end()
    bed.guard = None
    assert len(dose_of(bed.journal.path)["trains"]) == 1 + n  # and the session's end is a clean one: nothing is added twice
    journal = Journal(bed.journal.path)
    assert journal.begin("next", (1, 1, 1)) == 0
    journal.close()


def test_rows_that_were_overwritten_cost_two_trains(bed):
    for _ in range(20_000):
        bed.guard.put("ARMED")
    bed.drain()
    assert bed.guard.writer.durable == 0  # what was not read is not on the disk
    bed.guard.put("ARMED")  # its number tells how many went
    bed.drain()
    assert bed.status["records_lost"] == 20_000
    assert bed.guard.writer.durable == 20_001
    assert len(bed.journal.history()["trains"]) == 2
    bed.guard.put("OFF", "session ended")


def test_rows_that_nobody_ever_read_cost_two_trains(bed, monkeypatch):
    monkeypatch.setattr(daemon, "RESTART_S", 0)
    bed.guard.put("IDLE", "found")
    bed.drain()
    for _ in range(20_000):
        bed.guard.put("ARMED")
    bed.guard.how = "was killed by SIGKILL"
    bed.look_after_children()
    assert len(bed.journal.history()["trains"]) == 2


def test_an_end_while_armed_is_no_clean_end(tmp_path):
    d = make(tmp_path)
    d.guard.put("ARMED", "armed")  # its last word: it hung and was killed
    d.end()
    d = make(tmp_path)
    assert d.journal.summary()["assumed_trains"] == 2
    assert [line for line in d.lines if "no clean end" in line]
    d.end()
    d = make(tmp_path)
    assert d.journal.summary()["assumed_trains"] == 2  # no more of them
    assert d.journal.summary()["session"]["pulses"] == 0
    d.end()


def test_a_full_day_of_dose_fits_into_the_message_to_guard(tmp_path):
    bed = make(tmp_path)
    now_ns = time.monotonic_ns()
    starts_ns = [now_ns - i * 60_000_000_000 for i in range(6, 24 * 60)]  # a train in each minute
    starts_ns += [now_ns - i * 120_000_000 for i in range(1, 2500)]  # and then as many in 5 min as their rests allow
    train = {"pulses": 100_000, "charge_nc": 10**9, "event_id": 1, "cause": 1, "new_event": False, "automatic": True}
    verdict = {"state": "ARMED", "reasons": []}
    bed.journal.take([{"verdict": verdict, "train": train | {"start_ns": t, "end_ns": t + 30_000_000}} for t in sorted(starts_ns)])
    bed.end()
    theirs = None

    def child(name, number, module, ring_bytes, fd, *_):
        nonlocal theirs
        theirs = socket.socket(fileno=os.dup(fd))
        return FakeGuard()

    bed = Daemon(bed.config, "test", said_by([]), journal=tmp_path / "dose.sqlite")
    bed.journal.begin("next", (1, 1, 1))
    daemon_child, daemon.Child = daemon.Child, child
    try:
        bed.start_guard()
        data = theirs.recv(1 << 20)
    finally:
        daemon.Child = daemon_child
        theirs.close()
        bed.link.close()
    view = json.loads(data)
    assert len(data) > 100_000
    assert len(view["history"]["minutes"]) >= 1435
    assert {k: v for k, v in view.items() if k != "history"} == settings.guard_view(bed.config)
    bed.end()


def test_a_journal_that_cannot_be_trusted_stops_the_daemon_before_it_makes_a_session(tmp_path):
    (tmp_path / "dose.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(JournalError, match="is not known"):
        make(tmp_path)
    assert not (tmp_path / "sessions").exists()


@pytest.mark.safety("G8")
def test_what_the_recording_anchors_is_where_the_audit_ends(bed):
    bed.mark()
    bed.guard.put("IDLE", "found")
    bed.drain()
    bed.mark()
    bed.mark()  # nothing new: no second anchor
    bed.guard.put("OFF", "session ended")
    bed.end()
    bed.guard = None
    session = recording.load(bed.folder)
    rows = [anchor.rows for anchor in session.anchors()]
    assert rows == sorted(set(rows))
    assert len(rows) == 3
    assert audit.verify(bed.folder / recording.AUDIT, audit.key(), session.anchors()) == (session.anchors()[-1], None)
    assert session.end["why"] == ""


def test_what_the_page_cannot_be_shown_ends_no_bed_and_is_said_once(bed):
    def wrong(*_):
        raise IndexError("a stamp that goes back")

    if bed.feed:
        bed.feed.close()
    bed.feed = SimpleNamespace(see=wrong, mark=wrong, status=wrong, close=lambda: None)
    bed.guard.put("IDLE", "found")
    bed.drain()
    bed.write_status()
    bed.write_status()
    assert [line for line in bed.lines if "a stamp that goes back" in line] == [
        "the page is shown nothing any more: IndexError: a stamp that goes back"
    ]
    bed.end()
    bed.guard = None
    notes = recording.load(bed.folder).notes()
    assert [note["why"] for note in notes if note["what"] == "page not fed"] == ["IndexError: a stamp that goes back"]


# --- calmloop audit verify --------------------------------------------------------------------------------------------------------
@pytest.fixture
def session(tmp_path):
    """A session with a dozen audited rows, anchored three times."""
    d = make(tmp_path)
    for i in range(3):
        for n in range(4):
            d.guard.put("IDLE", f"reason {4 * i + n}")
        d.drain()
        d.mark()
    d.guard.put("OFF", "session ended")
    d.end()
    return d.folder


def edit(path):
    _sql(path, "UPDATE audit SET detail = replace(detail, 'reason 5', 'reason 6') WHERE id = 8")


def delete(path):
    _sql(path, "DELETE FROM audit WHERE id = 8")


def truncate(path):
    _sql(path, "DELETE FROM audit WHERE id >= 8")


def rewrite(path):
    """With the key, and all of it consistent."""
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT monotonic_ns, what, detail FROM audit ORDER BY id").fetchall()
    db.close()
    path.unlink()
    new = audit.Audit(path, audit.key())
    for number, (monotonic_ns, what, detail) in enumerate(rows[1:], 2):
        if number == 8:
            detail = detail.replace("reason 5", "reason 6")
        new.add(monotonic_ns, what, **json.loads(detail))
    new.close()


def insert(path):
    _sql(path, "UPDATE audit SET id = id + 1000 WHERE id >= 8")
    _sql(path, "UPDATE audit SET id = id - 999 WHERE id >= 1000")
    _sql(path, "INSERT INTO audit VALUES (8, 'now', 1, 'armed', '{}', 'abc')")


def _sql(path, statement):
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()


@pytest.mark.safety("G8")
@pytest.mark.parametrize("text", ['{"what": "x', "[" * 100_000, "[]", '"x"', '{"no": 1}', '{"what": "audit head"}'])
def test_a_damaged_row_of_the_recording_is_named(bed, capsys, text):
    before = recording.ANCHOR
    bed.recorder._put("notes", [1.0], [text.replace("audit head", before)])
    bed.end()
    bed.guard = None
    assert cli.main(["audit", "verify", str(bed.folder)]) == 1
    assert re.match(r"NOT WHOLE: .*: signals.xdf: row \d+ of notes is damaged: ", capsys.readouterr().out)


@pytest.mark.safety("G8")
def test_a_whole_audit_verifies(session, capsys):
    assert cli.main(["audit", "verify", str(session)]) == 0
    assert capsys.readouterr().out.startswith("whole: ")
    assert cli.main(["audit", "verify", str(session), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"]
    assert facts["rows"] == facts["anchored_rows"]
    assert facts["hmac"] == recording.load(session).anchors()[-1].hmac


@pytest.mark.parametrize(
    ("harm", "why", "row"),
    [
        (edit, "does not fit", 8),
        (delete, "missing", 8),
        (truncate, "missing", 8),
        (insert, "does not fit", 8),
        # a rewrite has new stamps of time, so the chain differs from the first row on: the first anchor (6 rows) shows it
        (rewrite, "written anew", 6),
    ],
)
@pytest.mark.safety("G8")
def test_each_change_of_an_audit_is_named(session, capsys, harm, why, row):
    harm(session / recording.AUDIT)
    assert cli.main(["audit", "verify", str(session), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["first_bad_row"]["row"] == row
    assert why in facts["first_bad_row"]["why"]
    assert cli.main(["audit", "verify", str(session)]) == 1
    assert f"NOT WHOLE: row {row} " in capsys.readouterr().out


def shorten(signals):
    signals.write_bytes(signals.read_bytes()[:-400])


@pytest.mark.parametrize("audit_too", [False, True])
@pytest.mark.safety("G8")
def test_a_session_that_was_cut_off_is_not_called_whole(session, capsys, audit_too):
    """Recording and audit cut to the same length fit each other; only that there is no end can be seen."""
    signals, path = session / recording.SIGNALS, session / recording.AUDIT
    while recording.load(session).end:
        shorten(signals)
    if audit_too:
        last = recording.load(session).anchors()[-1].rows
        _sql(path, f"DELETE FROM audit WHERE id > {last}")
    assert cli.main(["audit", "verify", str(session)]) == 2
    said = capsys.readouterr().out
    assert said.startswith("whole as far as it goes (")
    assert "but without an end: killed, still running, or cut off; the recording knows of rows 1 to " in said
    assert cli.main(["audit", "verify", str(session), "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert not facts["ok"] and not facts["ended"] and facts["first_bad_row"] is None


@pytest.mark.safety("G8")
def test_a_recording_of_which_nothing_is_left_vouches_for_nothing(session, capsys):
    signals = session / recording.SIGNALS
    while recording.load(session).anchors():
        shorten(signals)
    _sql(session / recording.AUDIT, "DELETE FROM audit WHERE id > 4")
    assert cli.main(["audit", "verify", str(session)]) == 2
    assert "the recording knows of no row" in capsys.readouterr().out


@pytest.mark.safety("G8")
def test_an_end_that_only_the_recording_has_is_none(session, capsys, monkeypatch):
    """Who can write recordings, and has no key, gives a cut audit an end in the recording alone."""
    _sql(session / recording.AUDIT, "DELETE FROM audit WHERE id > 4")
    with closing(sqlite3.connect(session / recording.AUDIT)) as db:
        [last] = db.execute("SELECT hmac FROM audit WHERE id = 4").fetchone()
    end = {"what": recording.END, "rows": 4, "hmac": last}
    monkeypatch.setattr(recording.Session, "notes", lambda _: [end])
    assert cli.main(["audit", "verify", str(session)]) == 2
    assert "but without an end" in capsys.readouterr().out


@pytest.mark.safety("G8")
def test_a_session_that_is_still_running_has_no_end_yet(bed, capsys):
    bed.mark()
    assert cli.main(["audit", "verify", str(bed.folder)]) == 2
    assert "still running" in capsys.readouterr().out


@pytest.mark.safety("G8")
def test_an_audit_that_cannot_be_verified_here_is_no_verdict(session, tmp_path, capsys, monkeypatch):
    assert cli.main(["audit", "verify", str(tmp_path)]) == 2
    assert "is not a session" in capsys.readouterr().out
    monkeypatch.setenv("CALMLOOP_STATE_DIR", str(tmp_path / "elsewhere"))
    assert cli.main(["audit", "verify", str(session), "--json"]) == 2
    assert "audit.key" in json.loads(capsys.readouterr().out)["error"]
    audit.key(make=True)
    assert cli.main(["audit", "verify", str(session)]) == 2
    assert "verify it where it was made" in capsys.readouterr().out
    copy = tmp_path / "copy"
    shutil.copytree(session, copy)
    (copy / recording.AUDIT).write_bytes(b"nonsense")
    assert cli.main(["audit", "verify", str(copy)]) == 2
    assert "cannot be read as an audit" in capsys.readouterr().out


def test_status_and_the_sessions_end_tell_what_the_rules_saw_and_who_asked(bed):
    loop, wire, cycles = Loop(bed.config), Wire(), []
    for chunk in blocks(*signals(9.0, [(3.0, 3.2), (6.0, 8.0)], [])):
        loop.step(chunk)
        cycles.append(wire.carry(loop, chunk))
    for at in range(0, len(cycles), 5):  # as they come out of the ring
        bed.see_cycles(cycles[at : at + 5])
        if at % 125 == 0:
            bed.see_spasms()
    bed.see_spasms()
    assert bed.heard == []
    spasms = bed.status["spasms"]["soleus EMG"]
    assert (spasms["n"], spasms["burst"], spasms["last"]["kind"]) == (1, 1, "burst")  # the second may still go on
    bed.end()
    bed.guard = None
    assert (spasms["n"], spasms["tonic"]) == (2, 1)
    assert spasms["last"]["onset_s"] == pytest.approx(106.0, abs=0.02)
    assert bed.status["requests_by"] == {"soleus EMG": bed.status["requests"], "plantarflexion torque": 0}
    assert bed.status["requests"] >= 2
    assert cli.spasm_words(bed.status["spasms"]) == "spasms: soleus EMG: 1 tonic, 1 burst"
    assert cli.asked_words(bed.status["requests_by"]) == f"requests: soleus EMG {bed.status['requests']}"
    notes = recording.load(bed.folder).notes()
    told = [note for note in notes if note["what"] == "spasm"]
    assert [note["kind"] for note in told] == ["burst", "tonic"]
    assert told[1].items() >= spasms["last"].items()
    assert notes[-1]["what"] == recording.END and notes[-1]["spasms"] == bed.status["spasms"]
    (end,) = audit.details(bed.folder / recording.AUDIT, recording.END)
    assert end["spasms"] == bed.status["spasms"]


# --- a new prescription ---------------------------------------------------------------------------------------------------------------
PEOPLE = {"people": [], "holder": ""}


@pytest.fixture
def prescribed(tmp_path):
    """A bed whose settings have a file of their own."""
    path = tmp_path / "bed.toml"
    text = (ROOT / "config" / "demo.toml").read_text().replace('folder = "sessions"', f'folder = "{tmp_path / "sessions"}"')
    path.write_text(text)
    d = make(tmp_path, path=path)
    yield d, path
    d.end()


def change(d, based_on=1, reason="less is enough", **fields):
    said = {"based_on": based_on, "changes": {"prescription": fields}, "reason": reason, "who": "Ada (clinician, page)"}
    return d.prescribe(said, PEOPLE)


@pytest.mark.safety("G6", "G7", "F9")
def test_a_change_is_kept_audited_and_ends_the_session_for_one_with_it(prescribed):
    d, path = prescribed
    before = d.config.prescription
    assert change(d, look_ms=120)[0] == "version 2 is in force"
    config, people = d.next
    assert people == PEOPLE and d.ending
    assert settings.load(path) == config
    rx = config.prescription
    assert (rx.version, rx.author, rx.reason, rx.look_ms) == (2, "Ada (clinician, page)", "less is enough", 120)
    assert before.look_ms == 100
    row = audit.details(d.folder / "audit.sqlite", "prescribed")[0]
    assert (row["version"], row["author"], row["changes"]) == (2, rx.author, ["prescription: look_ms 100 → 120 ms"])
    assert "under way" in change(d, based_on=2, look_ms=130)[0]


@pytest.mark.safety("G6", "F9")
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"based_on": 2, "look_ms": 120}, "version 1 of demo is in force"),
        ({"based_on": 0, "look_ms": 120}, "version 1 of demo is in force"),
        ({"look_ms": 99}, "at least 100"),
        ({"max_current_ma": 61}, "at most 60 mA"),
        ({"montage": "knee"}, "montage"),
        ({}, "nothing is different"),
        ({"look_ms": 100}, "nothing is different"),
    ],
)
def test_what_may_not_be_in_force_changes_nothing(prescribed, fields, words):
    d, path = prescribed
    text = path.read_text()
    assert words in " ".join(change(d, **fields))
    assert path.read_text() == text and d.next is None and not d.ending


@pytest.mark.safety("G6")
def test_a_file_that_somebody_changed_by_hand_meanwhile_is_left_alone(prescribed):
    d, path = prescribed
    text = path.read_text().replace("look_ms = 100", "look_ms = 150")
    path.write_text(text)
    assert "changed by hand" in change(d, look_ms=120)[0]
    assert path.read_text() == text and d.next is None


def test_settings_without_a_file_are_not_prescribed(bed):
    assert "no file of their own" in change(bed, look_ms=120)[0]


@pytest.mark.safety("F5", "F9")
def test_a_disk_that_does_not_take_the_change_keeps_the_old_one(prescribed, monkeypatch):
    d, path = prescribed
    text = path.read_text()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("controller.toml_lines.os.fsync", full)
    assert "No space left" in change(d, look_ms=120)[0]
    assert path.read_text() == text and d.next is None


@pytest.mark.safety("G5")
@pytest.mark.parametrize("changes", [{"peroneal": {"current_ma": 5}}, [[]], "x", {"prescription": {"look_ms": 10**400}}, "deep"])
def test_nothing_that_a_page_can_send_ends_the_bed(prescribed, changes):
    d, path = prescribed
    text = path.read_text()
    deep = json.loads('{"prescription": {"author": ' + "[" * 800 + "]" * 800 + "}}")
    said = {"based_on": 1, "changes": deep if changes == "deep" else changes, "reason": "x", "who": "Eve"}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        d.link = ours
        for data in (json.dumps({"prescribe": said, "people": PEOPLE}), "{", "[]", '{"prescribe": {}}'):
            theirs.send(data.encode())
            d.hear_guard()
            answer = json.loads(theirs.recv(1 << 16))
            assert answer["ok"] is False and answer["reasons"]
        d.link = None
    assert path.read_text() == text and d.next is None and not d.ending


@pytest.mark.safety("F5")
def test_guard_is_told_when_there_is_too_little_room_and_when_there_is_again(bed, monkeypatch):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    bed.link = ours
    said = []
    for free in (3e9, 1.9e9, 1.8e9, 2.05e9, 1.9e9, 2.2e9):
        bed.see_disk(int(free))
        while select.select([theirs], [], [], 0)[0]:
            said.append(json.loads(theirs.recv(4096))["why_not_arm"])
    assert len(said) == 2 and "1.9 GB are free" in said[0] and said[1] == ""
    bed.started -= 100.0  # a recording of 100 s and 100 MB needs 7.2 GB for two hours
    with (bed.folder / "signals.xdf").open("r+b") as file:
        file.truncate(100_000_000)
    bed.see_disk(int(7e9))
    assert "arming needs 7.2 GB" in json.loads(theirs.recv(4096))["why_not_arm"]
    ours.close()
    theirs.close()
    bed.link = None


@pytest.mark.safety("F5")
def test_a_disk_that_is_behind_is_told_once_and_the_bed_goes_on(bed, monkeypatch):
    for behind_s in (0.1, 2.5, 3.5, 0.2, 0.1):
        monkeypatch.setattr(recording.Recorder, "behind_s", behind_s)
        bed.mark()
    assert [line for line in bed.lines if "disk" in line] == [
        "the disk is 2.5 s behind: a power cut now would cost that much",
        "the disk keeps up again",
    ]
    notes = [note["behind_s"] for note in recording.load(bed.folder).notes() if note["what"] == "slow disk"]
    assert notes == [2.5, 0.2] and not bed.ending


def test_a_loop_that_takes_long_to_start_is_told_of_once(bed):
    bed.slow_start_s = 10.0
    for loop, now_s in (("starting", 9.0), ("alive", 11.0), ("starting", 12.0), ("starting", 13.0)):
        bed.status["loop"] = loop
        bed.see_long_start(now_s)
        assert sum("still starting" in line for line in bed.lines) == (now_s >= 12.0)
