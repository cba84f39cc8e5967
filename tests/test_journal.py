"""The dose journal: whatever ends how and whenever, what it remembers is never less than what was given (A10, F8)."""

import hashlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controller import __main__ as cli
from controller import audit, dose, settings
from controller.dose import DAY, MINUTE, Clock, Dose, S
from controller.journal import IN_USE, Journal, JournalError, default_path

ROOT = Path(__file__).resolve().parents[1]
WORST = Dose(2 * S, 400_000, 100)
HOUR = 60 * MINUTE


class World:
    """Time as it really passes, and what this machine's clocks make of it."""

    def __init__(self):
        self.now_ns, self.wall_ns, self.boot, self.booted_ns = 10**15, 10**18, 1, 10**15 - 100 * S

    def clock(self):
        return Clock(f"boot {self.boot}", self.now_ns - self.booted_ns, self.now_ns + self.wall_ns)

    def reboot(self, off_ns, wall_step_ns=0):
        self.now_ns += off_ns
        self.wall_ns += wall_step_ns
        self.boot, self.booted_ns = self.boot + 1, self.now_ns - 3 * S  # up for 3 s already

    def mono(self, ns):
        return ns - self.booted_ns


def told(world, start_ns, end_ns, pulses=25, charge_nc=200_000, new_event=True, automatic=True, state="ARMED", reasons=()):
    """The row with which guard tells of a train that is over."""
    train = {"start_ns": world.mono(start_ns), "end_ns": world.mono(end_ns), "pulses": pulses, "charge_nc": charge_nc}
    train |= {"event_id": 7, "cause": 1, "new_event": new_event, "automatic": automatic}
    return {"event": {"kind": "tick"}, "verdict": {"state": state, "reasons": list(reasons)}, "train": train}


def state(name, *reasons):
    return {"event": {"kind": "tick"}, "verdict": {"state": name, "reasons": list(reasons)}}


@pytest.fixture
def world():
    return World()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bed.sqlite"


def opened(path, world):
    journal = Journal(path, world.clock)
    journal.begin("session", WORST)
    return journal


def give(journal, world, on_ns=S // 2, **more):
    start_ns = world.now_ns
    world.now_ns += on_ns
    journal.take([told(world, start_ns, world.now_ns, **more)])
    world.now_ns += S


def day(history):
    return dose.total(Dose(*minute[1:]) for minute in history["minutes"])


# --- what is remembered -----------------------------------------------------------------------------------------------------------
def test_trains_come_back_in_the_form_that_guard_reads(path, world):
    journal = opened(path, world)
    began = world.clock().monotonic_ns
    give(journal, world)
    give(journal, world, automatic=False)
    give(journal, world, new_event=False)
    h = journal.history()
    assert h["trains"] == [[began + i * 3 * S // 2, began + i * 3 * S // 2 + S // 2] for i in range(3)]
    assert h["session"] == [3 * S // 2, 600_000, 75] == [*day(h)]
    assert h["events"] == [began, began + 3 * S // 2]
    assert h["auto_events"] == [began]
    assert h["lockout"] == ""
    assert json.loads(json.dumps(h)) == h


def test_rows_without_a_train_give_nothing(path, world):
    journal = opened(path, world)
    assert not journal.take([{"start_ns": 5, "view": {}}, state("IDLE"), state("ARMED"), state("STIMULATING")])
    assert journal.history()["session"] == [0, 0, 0]


@pytest.mark.parametrize("change", [{"pulses": 1.5}, {"charge_nc": True}, {"end_ns": -(10**18)}, {"start_ns": None}])
def test_a_train_that_is_none_stops_everything(path, world, change):
    journal = opened(path, world)
    row = told(world, world.now_ns, world.now_ns + S)
    with pytest.raises(ValueError, match="none"):
        journal.take([row | {"train": row["train"] | change}])


@pytest.mark.safety("A10", "F8")
def test_a_clean_end_closes_the_session_and_keeps_the_day(path, world):
    journal = opened(path, world)
    give(journal, world)
    journal.end()
    journal.close()
    world.now_ns += MINUTE
    journal = opened(path, world)
    h = journal.history()
    assert h["session"] == [0, 0, 0]
    assert day(h) == Dose(S // 2, 200_000, 25)
    assert len(h["trains"]) == len(h["events"]) == 1


@pytest.mark.safety("A10", "F8")
def test_an_unclean_end_goes_on_with_two_trains_more(path, world):
    journal = opened(path, world)
    give(journal, world)
    journal.close()  # no end before: as after kill -9
    world.now_ns += MINUTE
    journal = Journal(path, world.clock)
    assert journal.begin("next", WORST) == 2
    h = journal.history()
    now = world.clock().monotonic_ns
    assert h["session"] == [S // 2 + 2 * WORST.on_ns, 200_000 + 2 * WORST.charge_nc, 25 + 2 * WORST.pulses] == [*day(h)]
    assert h["trains"][1:] == [[now - 4 * S, now - 2 * S], [now - 2 * S, now]]
    assert len(h["events"]) == len(h["auto_events"]) == 3
    assert journal.summary()["assumed_trains"] == 2


def test_assumed_trains_end_now_and_begin_after_what_is_known(path, world):
    journal = opened(path, world)
    give(journal, world)  # over 1 s ago
    assert journal.assume("guard was killed by SIGKILL") == 2
    h = journal.history()
    now = world.clock().monotonic_ns
    assert h["trains"][1:] == [[now - S, now - S], [now - S, now]]  # there was no time for more
    assert h["session"][0] == S // 2 + 2 * WORST.on_ns  # the dose is whole all the same


@pytest.mark.safety("A10", "F8")
def test_a_lockout_outlives_everything_but_a_person_who_arms(path, world):
    journal = opened(path, world)
    journal.take([state("ARMED", "armed"), state("LOCKOUT", "refused: dose: 5 min", "dose: 5 min"), state("LOCKOUT", "refused: not armed")])
    assert journal.history()["lockout"] == "dose: 5 min"
    journal.end()
    journal.close()
    world.reboot(3 * DAY)
    journal = opened(path, world)
    journal.take([state("OFF", "no stimulator yet"), state("LOCKOUT", "dose: 5 min"), state("IDLE", "stopped: a person")])
    assert journal.history()["lockout"] == "dose: 5 min"
    journal.close()
    journal = opened(path, world)
    assert journal.history()["lockout"] == "dose: 5 min"
    journal.take([state("ARMED", "armed")])
    assert journal.history()["lockout"] == ""
    journal.close()
    assert opened(path, world).history()["lockout"] == ""


def test_what_is_older_than_a_day_goes_and_the_session_stays_whole(path, world):
    journal = opened(path, world)
    for _ in range(60):
        give(journal, world)
        world.now_ns += HOUR
    h = journal.history()
    assert h["session"] == [30 * S, 60 * 200_000, 60 * 25]
    assert len(h["minutes"]) == 23
    journal.end()
    journal.close()
    journal = opened(path, world)
    assert 23 <= sum(row.kind == "train" for row in journal.rows) <= 26
    journal.end()
    journal.close()
    assert day(opened(path, world).history()).pulses == 23 * 25  # and the shorter file is a whole one


@pytest.mark.parametrize("lead_ns", [0, 1, S, 59 * S])
@pytest.mark.safety("A10")
def test_a_train_counts_until_all_of_it_is_older_than_the_window(path, world, lead_ns):
    journal = opened(path, world)
    world.now_ns += MINUTE - world.clock().monotonic_ns % MINUTE - S + lead_ns  # the train straddles a minute's edge, or begins at one
    end_ns = world.now_ns + 2 * S
    give(journal, world, 2 * S)
    world.now_ns = end_ns + 5 * MINUTE - 1
    assert journal.history()["trains"]
    world.now_ns += 1
    assert not journal.history()["trains"]
    world.now_ns = end_ns + DAY - 1
    assert journal.summary()["day"]["pulses"] == day(journal.history()).pulses == 25
    journal.end()
    journal.close()
    assert day(opened(path, world).history()).pulses == 25  # nor was it let go by the new session
    world.now_ns += 2 * MINUTE
    assert day(journal.history()).pulses == 0


def test_a_session_of_two_days_keeps_its_dose_over_an_unclean_end(path, world):
    journal = opened(path, world)
    give(journal, world)
    world.now_ns += 2 * DAY
    journal.close()
    journal = opened(path, world)
    assert journal.history()["session"][2] == 25 + 2 * WORST.pulses
    journal.close()
    world.now_ns += 2 * DAY
    assert opened(path, world).history()["session"][2] == 25 + 4 * WORST.pulses


def test_the_worst_train_is_the_longest_and_strongest_of_all():
    view = settings.guard_view(settings.load(ROOT / "config" / "demo.toml"))
    assert dose.worst_train(view) == Dose(500_000_000, 25 * 10_000, 25)
    peroneal = view["trains"]["peroneal"]
    long = peroneal | {"duration_us": 1_900_001, "current_ua": 5_000, "pulse_rate_mhz": 1_000}
    assert dose.worst_train({"trains": {"a": peroneal, "b": long}}) == Dose(1_900_001_000, 250_000, 25)


# --- clocks -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("step_ns", [HOUR, -HOUR, 365 * DAY, -365 * DAY])
@pytest.mark.safety("A10", "F8")
def test_a_wall_clock_that_is_set_while_a_session_runs_changes_nothing(path, world, step_ns):
    journal = opened(path, world)
    give(journal, world)
    world.wall_ns += step_ns
    h = journal.history()
    assert h["trains"]
    journal.end()  # the row from which the next boot counts
    journal.close()
    world.reboot(MINUTE)
    h = opened(path, world).history()
    assert day(h).pulses == 25
    assert h["trains"][0][1] == world.clock().monotonic_ns - MINUTE - S


@pytest.mark.parametrize(("off_ns", "step_ns", "ago_ns"), [(HOUR, 0, HOUR), (HOUR, -HOUR // 2, HOUR // 2), (HOUR, -2 * HOUR, 4 * S)])
@pytest.mark.safety("A10", "F8")
def test_across_boots_utc_counts_and_never_backwards(path, world, off_ns, step_ns, ago_ns):
    journal = opened(path, world)
    give(journal, world)
    ended = world.now_ns - S
    journal.end()
    journal.close()
    assert ended < world.now_ns
    world.reboot(off_ns, step_ns)
    h = opened(path, world).history()
    assert h["events"] == ([world.clock().monotonic_ns - ago_ns - 3 * S // 2] if ago_ns < HOUR else [])
    assert day(h).pulses == 25


def test_after_a_night_off_the_dose_of_yesterday_is_over(path, world):
    for _ in range(3):
        journal = opened(path, world)
        give(journal, world)
        journal.end()
        journal.close()
        world.reboot(25 * HOUR)
    assert day(opened(path, world).history()) == Dose(0, 0, 0)


def test_a_machine_set_back_to_a_snapshot_has_its_dose_in_the_past(path, world):
    journal = opened(path, world)
    world.now_ns += HOUR
    give(journal, world)
    journal.end()
    journal.close()
    world.booted_ns += HOUR  # the monotonic clock of the same boot is an hour back
    h = opened(path, world).history()
    assert h["trains"][0][1] <= world.clock().monotonic_ns
    assert day(h).pulses == 25


# --- any sequence -----------------------------------------------------------------------------------------------------------------
times = st.one_of(st.integers(0, 5 * S), st.integers(0, 10 * MINUTE), st.integers(0, 30 * HOUR))
steps = st.tuples(st.sampled_from([1, -1]), times).map(lambda pair: pair[0] * pair[1])
operations = st.one_of(
    st.tuples(st.just("train"), st.integers(1, WORST.on_ns), st.integers(0, WORST.charge_nc), st.integers(1, WORST.pulses), st.booleans()),
    st.tuples(st.just("train"), st.integers(1, WORST.on_ns), st.integers(0, WORST.charge_nc), st.integers(1, WORST.pulses), st.booleans()),
    st.tuples(st.just("train"), st.integers(1, WORST.on_ns), st.integers(0, WORST.charge_nc), st.integers(1, WORST.pulses), st.booleans()),
    st.tuples(st.just("drain")),
    st.tuples(st.just("wait"), times),
    st.tuples(st.just("set the clock"), steps),
    st.tuples(st.just("clean end"), times),
    st.tuples(st.just("kill"), st.integers(0, 10 * S)),
    st.tuples(st.just("guard dies"), st.integers(0, WORST.on_ns), st.integers(0, S // 100)),
    st.tuples(st.just("power loss"), times, times),
    st.tuples(st.just("night"), times, times),
)


class Bed:
    """Guard and daemon as far as the journal sees them, and the truth beside it."""

    def __init__(self, path):
        self.path, self.world = path, World()
        self.truth, self.session, self.waiting = [], 0, []  # trains; of these the session's first; rows that are not on the disk
        self.journal, self.wall_at_row = None, 0
        self.start()

    def start(self):
        self.journal = Journal(self.path, self.world.clock)
        self.journal.begin("session", WORST)
        self.wall_at_row = self.world.wall_ns

    def drain(self):
        if self.journal.take(self.waiting):
            self.wall_at_row = self.world.wall_ns
        self.waiting = []

    def train(self, on_ns, charge_nc, pulses, new_event):
        if len(self.waiting) > 1:  # guard begins none while more than one is not on the disk
            self.drain()
        w = self.world
        start_ns = w.now_ns
        w.now_ns += on_ns
        self.truth.append((start_ns, w.now_ns, Dose(on_ns, charge_nc, pulses), new_event))
        self.waiting.append(told(w, start_ns, w.now_ns, pulses, charge_nc, new_event))
        w.now_ns += S // 8

    def clean_end(self, off_ns):
        self.drain()
        self.journal.end()
        self.journal.close()
        self.session, self.wall_at_row = len(self.truth), self.world.wall_ns
        self.world.now_ns += off_ns
        self.start()

    def kill(self, off_ns):
        self.journal.close()
        self.waiting = []
        self.world.now_ns += off_ns
        self.start()

    def guard_dies(self, on_ns, later_ns):
        self.drain()
        start_ns = self.world.now_ns
        self.world.now_ns += on_ns
        self.truth.append((start_ns, self.world.now_ns, Dose(on_ns, WORST.charge_nc, WORST.pulses), True))
        self.world.now_ns += later_ns
        self.journal.assume("guard died")
        self.wall_at_row = self.world.wall_ns

    def power_loss(self, off_ns, back_ns):
        self.journal.close()
        self.waiting = []
        # put forward after the last row, and lost with the power: what the module says that nothing can tell
        self.world.wall_ns = min(self.world.wall_ns, self.wall_at_row)
        self.world.reboot(5 * S + off_ns, -back_ns)
        self.start()

    def night(self, off_ns, back_ns):
        self.drain()
        self.journal.end()
        self.journal.close()
        self.session = len(self.truth)
        self.world.reboot(5 * S + off_ns, -back_ns)
        self.start()

    def do(self, name, *how):
        if name == "wait":
            self.world.now_ns += how[0]
        elif name == "set the clock":
            self.world.wall_ns += how[0]
        else:
            getattr(self, name.replace(" ", "_"))(*how)

    def check(self):
        """Nothing that a guard which starts now is told is less than the truth, nor will be as time goes by."""
        h, now = self.journal.history(), self.world.now_ns
        mono = self.world.mono
        assert at_least(Dose(*h["session"]), dose.total(train[2] for train in self.truth[self.session :]))
        assert all(b[0] >= a[1] for a, b in zip(h["trains"], h["trains"][1:], strict=False))
        assert all(a[0] <= a[1] <= mono(now) for a in h["trains"])
        for since_ns in [now - DAY, *(train[1] - 1 for train in self.truth if train[1] > now - DAY)]:
            remembered = dose.total(Dose(*minute[1:]) for minute in h["minutes"] if minute[0] > mono(since_ns) - MINUTE)
            assert at_least(remembered, dose.total(train[2] for train in self.truth if train[1] > since_ns))
        recent = [train for train in self.truth if train[1] > now - 5 * MINUTE]
        for since_ns in [now - 5 * MINUTE, *(train[0] for train in recent)]:
            remembered_ns = sum(end - max(start, mono(since_ns)) for start, end in h["trains"] if end > mono(since_ns))
            assert remembered_ns >= sum(end - max(start, since_ns) for start, end, *_ in recent if end > since_ns)
        starts = [train[0] for train in self.truth if train[3] and train[0] > now - HOUR]
        for since_ns in [now - HOUR, *(start - 1 for start in starts)]:
            for name in ("events", "auto_events"):
                assert sum(start > mono(since_ns) for start in h[name]) >= sum(start > since_ns for start in starts)
        if recent:
            assert h["trains"][-1][1] >= mono(recent[-1][1])


def at_least(remembered, true):
    return all(a >= b for a, b in zip(remembered, true, strict=True))


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.lists(operations, min_size=5, max_size=40))
@pytest.mark.safety("A10", "F8")
def test_the_history_is_never_less_than_the_truth(tmp_path_factory, ops):
    bed = Bed(tmp_path_factory.mktemp("bed") / "bed.sqlite")
    for name, *how in ops:
        bed.do(name, *how)
        if not bed.waiting:
            bed.check()
    bed.kill(0)
    bed.check()
    bed.journal.close()


# --- broken files -----------------------------------------------------------------------------------------------------------------
def used(path, world, n=30, clean=True):
    """A journal with n trains."""
    journal = opened(path, world)
    for _ in range(n):
        give(journal, world)
    if clean:
        journal.end()
    journal.close()


def test_two_daemons_never_share_a_journal(path, world):
    journal = opened(path, world)
    with pytest.raises(JournalError, match="another daemon holds"):
        Journal(path, world.clock)
    journal.close()
    opened(path, world).close()
    assert path.stat().st_mode & 0o777 == 0o600


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def edit(path):
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE dose SET detail = replace(detail, '\"pulses\": 25', '\"pulses\": 24') WHERE id = 9")
    db.close()


def sql(path, *statements):
    db = sqlite3.connect(path)
    with db:
        for statement in statements:
            db.execute(statement)
    db.close()


def delete(path):
    sql(path, "DELETE FROM dose WHERE id = 9")


def cut_first(path):
    sql(path, "DELETE FROM dose WHERE id = 1")


def cut_head(path):
    sql(path, "DELETE FROM dose WHERE id < 32")  # only the row that says that the session had a clean end is left


def cut_last(path):
    sql(path, "DELETE FROM dose WHERE id = 32")


def cut_tail(path):
    sql(path, "DELETE FROM dose WHERE id > 2")


def cut_tail_and_count_anew(path):
    sql(path, "DELETE FROM dose WHERE id > 2", "UPDATE head SET rows = 2")


def cut_first_and_count_anew(path):
    sql(path, "DELETE FROM dose WHERE id < 20", "UPDATE head SET first = 20, rows = 13")


def edit_and_digest_anew(path):
    """As somebody does who has read the code, but not the key."""
    db = sqlite3.connect(path)
    with db:
        values = list(db.execute("SELECT id, boot, monotonic_ns, utc_ns, kind, detail FROM dose WHERE id = 9").fetchone())
        values[-1] = values[-1].replace('"pulses": 25', '"pulses": 24')
        digest = hashlib.blake2b(json.dumps(tuple(values)).encode(), digest_size=12).hexdigest()
        db.execute("UPDATE dose SET detail = ?, digest = ? WHERE id = 9", (values[-1], digest))
    db.close()


def behead(path):
    sql(path, "DELETE FROM dose WHERE id > 2", "DELETE FROM head")


def behead_and_unlock(path):
    sql(path, "DELETE FROM dose WHERE id < 32", "DROP TABLE head")
    Path(f"{path}.lock").unlink()


def forget_the_key(path):
    (audit.state_folder() / "audit.key").unlink()
    audit.key(make=True)


def empty(path):
    path.write_bytes(b"")


def other(path):
    path.write_bytes(b"what is this? " * 1000)


def drop(path):
    db = sqlite3.connect(path)
    with db:
        db.execute("DELETE FROM dose")
    db.close()


HARMS = [cut, edit, delete, empty, other, drop, Path.unlink, cut_first, cut_head, cut_last, cut_tail, cut_tail_and_count_anew]
HARMS += [cut_first_and_count_anew, edit_and_digest_anew, behead, behead_and_unlock, forget_the_key]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.safety("A10", "F8")
def test_a_journal_that_cannot_be_trusted_is_no_dose_of_zero(path, world, harm, capsys):
    used(path, world)
    harm(path)
    with pytest.raises(JournalError, match="is not known") as caught:
        Journal(path, world.clock)
    assert str(path) in str(caught.value)
    assert "--reset" in str(caught.value)
    left = path.read_bytes() if path.exists() else None
    assert cli.main(["dose", "--journal", str(path)]) == 2  # nor is it shown as one
    capsys.readouterr()
    # and the way out that the message names
    assert cli.main(["dose", "--journal", str(path), "--reset", "another patient", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["day"]["pulses"] == 0
    aside = [one for one in path.parent.glob("*.broken-*") if not one.name.endswith(("-wal", "-shm"))]
    assert [one.read_bytes() for one in aside] == ([left] if left is not None else [])
    Journal(path, world.clock).close()


def old(path):
    """As a version left it that knew no head."""
    sql(path, "DROP TABLE head")
    Path(f"{path}.lock").write_bytes(b"in use\n")


@pytest.mark.safety("A10", "F8")
def test_a_journal_from_before_there_were_heads_is_adopted_once(path, world, capsys):
    used(path, world)
    old(path)
    journal = Journal(path, world.clock)
    assert journal.adopted == 32
    assert day(journal.history()).pulses == 30 * 25
    journal.close()
    journal = Journal(path, world.clock)
    assert journal.adopted == 0
    journal.close()
    sql(path, "DROP TABLE head")
    with pytest.raises(JournalError, match="its head is missing"):
        Journal(path, world.clock)
    Path(f"{path}.lock").write_bytes(b"in use\n")
    assert cli.main(["dose", "--journal", str(path), "--reset", "a new patient"]) == 0
    assert "its 32 rows are taken as they stand" in capsys.readouterr().out


@pytest.mark.safety("A10", "F8")
def test_old_rows_that_go_take_nothing_from_what_the_head_says(path, world):
    for _ in range(3):
        used(path, world, 5)
        world.now_ns += 20 * HOUR
    journal = opened(path, world)
    assert journal.rows[0].kind == "session"
    assert journal._first > 1
    journal.close()
    Journal(path, world.clock).close()
    cut_first_row = f"DELETE FROM dose WHERE id = {journal._first}"
    sql(path, cut_first_row)
    with pytest.raises(JournalError, match=f"it begins with row {journal._first + 1}, it was written from row {journal._first} on"):
        Journal(path, world.clock)


@pytest.mark.safety("A10")
def test_a_key_that_others_can_read_starts_nothing_and_leaves_the_journal_alone(path, world):
    used(path, world)
    (audit.state_folder() / "audit.key").chmod(0o644)
    was = path.read_bytes()
    for replace in (False, True):
        with pytest.raises(JournalError, match="can be read by others"):
            Journal(path, world.clock, replace)
    assert path.read_bytes() == was


@pytest.fixture
def whole_files(tmp_path_factory):
    """A journal whose session had a clean end, and one whose had none; and the time."""
    files = []
    for clean in (True, False):
        path, world = tmp_path_factory.mktemp("whole") / "bed.sqlite", World()
        used(path, world, clean=clean)
        files.append(path.read_bytes())
    return files, world


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.safety("A10", "F8")
def test_a_flipped_byte_never_makes_the_dose_less(tmp_path_factory, whole_files, data):
    (files, world), path = whole_files, tmp_path_factory.mktemp("flip") / "bed.sqlite"
    Path(f"{path}.lock").write_bytes(data.draw(st.sampled_from([b"in use\n", IN_USE])))
    raw = bytearray(data.draw(st.sampled_from(files)))
    flip = data.draw(st.integers(0, 255))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= flip
    path.write_bytes(raw)
    try:
        journal = opened(path, world)
    except JournalError:
        assert flip
        return
    assert day(journal.history()).pulses >= 30 * 25
    journal.close()


def test_a_full_disk_is_an_error_and_the_dose_so_far_stays(path, world):
    journal = opened(path, world)
    give(journal, world)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="cannot be written: database or disk is full"):
        for _ in range(1000):
            give(journal, world)
    n = sum(row.kind == "train" for row in journal.rows)
    journal.close()
    journal = opened(path, world)
    assert sum(row.kind == "train" and "assumed" not in row.detail for row in journal.rows) == n
    assert journal.summary()["assumed_trains"] == 2


def test_a_reset_that_the_disk_does_not_take_leaves_the_journal_as_it_was(path, world, monkeypatch):
    """A full disk says nothing against the file: it must not be put aside for it, or the next start would find no dose."""
    used(path, world)
    was = path.read_bytes()

    def full(*_, **__):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(JournalError, match=r"cannot be opened: database or disk is full.*is the disk full, or away\?"):
        Journal(path, world.clock, replace_broken=True)
    monkeypatch.undo()
    assert path.read_bytes() == was
    assert list(path.parent.glob("*.broken-*")) == []


@pytest.mark.safety("A10")
def test_a_reset_that_fails_half_way_is_no_dose_of_zero(path, world, monkeypatch):
    used(path, world)
    empty(path)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "reset", lambda *_: (_ for _ in ()).throw(JournalError("disk full")))
        assert cli.main(["dose", "--journal", str(path), "--reset", "a new patient"]) == 2
    with pytest.raises(JournalError, match="is not known"):
        Journal(path, world.clock)


def test_a_folder_that_is_none_is_said_in_words(tmp_path, world):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="lock"):
        Journal(tmp_path / "file" / "bed.sqlite", world.clock)


# --- kill -9 ----------------------------------------------------------------------------------------------------------------------
WRITER = """
import sys
from pathlib import Path
from controller.dose import Dose
from controller.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.begin("kill", Dose(10**9, 10**6, 50))
n = sum(row.kind == "train" and "assumed" not in row.detail for row in journal.rows)
while True:
    rows = []
    for i in range(n, n + 1 + n % 2):
        train = dict(start_ns=i, end_ns=i + 1, pulses=1, charge_nc=1, event_id=i, cause=1, new_event=True, automatic=True)
        rows.append({"verdict": {"state": "ARMED", "reasons": []}, "train": train})
    journal.take(rows)
    n += len(rows)
    print(n, flush=True)
"""


@pytest.mark.safety("A10", "F8")
def test_killed_in_the_middle_of_a_commit_nothing_that_was_acknowledged_is_missing(tmp_path):
    path, rng = tmp_path / "bed.sqlite", random.Random(1)
    acknowledged = 0
    for kill in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        first = writer.stdout.readline() if kill % 5 else ""  # each fifth is killed while it starts
        time.sleep(rng.random() * 0.1)
        writer.send_signal(signal.SIGKILL)
        said = [first, *writer.stdout.read().splitlines()]
        writer.wait()
        writer.stdout.close()
        acknowledged = max(acknowledged, *(int(line) for line in said if line.strip()), 0)
        if kill % 3 == 2:
            Path(f"{path}-wal").unlink(missing_ok=True)  # a lost WAL costs one commit at most
        journal = Journal(path)
        known = [row.detail["event_id"] for row in journal.rows if row.kind == "train" and "assumed" not in row.detail]
        assert known == list(range(len(known)))
        assert acknowledged - (2 if kill % 3 == 2 else 0) <= len(known) <= acknowledged + 2
        acknowledged = len(known)  # what has been read back once is never missing later
        if acknowledged:
            assert dose.is_open(journal.rows)  # two trains are going to be assumed
        journal.close()
    assert acknowledged > 100


# --- calmloop dose ----------------------------------------------------------------------------------------------------------------
def test_the_dose_is_shown_while_a_daemon_holds_it_and_reset_only_when_none_does(capsys):
    path = default_path("bed-1")
    assert cli.main(["dose", "--bed", "bed-1"]) == 2
    assert "there is no dose journal" in capsys.readouterr().out
    journal = Journal(path)
    journal.begin("session", WORST)
    now = time.monotonic_ns()
    world = World()
    world.booted_ns = 0
    journal.take([told(world, now - 2 * S, now - S), state("LOCKOUT", "dose: too much")])
    assert cli.main(["dose", "--bed", "bed-1"]) == 0
    words = capsys.readouterr().out
    assert "this session: 1.0 s of stimulation, 25 pulses, 0.20 mC" in words
    assert "LOCKED OUT: dose: too much" in words
    assert "last train: " in words
    assert cli.main(["dose", "--bed", "bed-1", "--reset", "a new patient"]) == 2
    assert "another daemon holds" in capsys.readouterr().out
    journal.close()
    assert cli.main(["dose", "--bed", "bed-1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["unclean_end"]
    assert not facts["daemon"]
    assert facts["session"] == facts["day"] == {"on_time_s": 1.0, "pulses": 25, "charge_mc": 0.2}
    assert cli.main(["dose", "--bed", "bed-1", "--reset", " "]) == 2
    capsys.readouterr()
    assert cli.main(["dose", "--bed", "bed-1", "--reset", "a new patient", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["day"]["pulses"] == facts["session"]["pulses"] == 0
    assert (facts["lockout"], facts["last_train_ended_s_ago"], facts["unclean_end"]) == ("", None, False)
    journal = Journal(path)
    assert journal.begin("next", WORST) == 0
    assert [row.kind for row in journal.rows] == ["session", "train", "lockout", "reset", "session"]  # the old rows are there still
    assert journal.rows[3].detail["reason"] == "a new patient"
    assert journal.rows[3].detail["who"]
    journal.close()
