"""Edit, delete, truncate, rewrite (G8): each is found and the first bad row named."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controller import audit

KEY = bytes(range(32))
N = 20


@pytest.fixture
def made(tmp_path):
    return make(tmp_path / "audit.sqlite")


def make(path, n=N, key=KEY, text="x"):
    """An audit of n rows after its first, with an anchor at every fifth row."""
    a, anchors = audit.Audit(path, key), []
    for i in range(n):
        a.add(1000 + i, "stop", by="a person", text=f"{text}{i}")
        if i % 5 == 4:
            anchors.append(a.head)
    a.close()
    return path, anchors


def change(path, *statement):
    db = sqlite3.connect(path)
    with db:
        db.execute(*statement)
    db.close()


def test_an_untouched_audit_holds_and_goes_on_after_a_restart(made):
    path, anchors = made
    head, bad = audit.verify(path, KEY, anchors)
    assert (head.rows, bad) == (N + 1, None)
    a = audit.Audit(path, KEY)
    a.add(5000, "armed")
    a.close()
    assert audit.verify(path, KEY, [*anchors, a.head]) == (a.head, None)
    assert a.head.rows == N + 2


@pytest.mark.parametrize("column", ["utc", "monotonic_ns", "what", "detail", "hmac"])
@pytest.mark.parametrize("row", [1, 7, N + 1])
def test_an_edit_is_named(made, column, row):
    path, anchors = made
    change(path, f"UPDATE audit SET {column} = 77 WHERE id = ?", (row,))
    assert audit.verify(path, KEY, anchors)[1].row == row


@pytest.mark.parametrize("row", [2, 11, N])
def test_a_deletion_is_named(made, row):
    path, anchors = made
    change(path, "DELETE FROM audit WHERE id = ?", (row,))
    assert audit.verify(path, KEY, anchors)[1] == audit.BadRow(row, "missing")


def test_closing_the_gap_does_not_hide_it(made):
    path, anchors = made
    change(path, "DELETE FROM audit WHERE id = 8")
    change(path, "UPDATE audit SET id = id - 1 WHERE id > 8")
    assert audit.verify(path, KEY, anchors)[1].row == 8


def test_a_cut_end_is_seen_by_the_anchor(made):
    path, anchors = made
    change(path, "DELETE FROM audit WHERE id > 10")
    assert audit.verify(path, KEY)[1] is None  # the chain alone cannot know
    assert audit.verify(path, KEY, anchors)[1].row == 11


def test_a_rewrite_with_the_key_is_seen_by_the_anchor(made, tmp_path):
    path, anchors = made
    path.unlink()
    make(path, text="y")
    assert audit.verify(path, KEY)[1] is None
    assert audit.verify(path, KEY, anchors)[1].row == 6


def test_a_rewrite_without_the_key_is_another_key(made):
    path, anchors = made
    path.unlink()
    make(path, key=bytes(32))
    with pytest.raises(audit.KeyMissingError, match="made with the key"):
        audit.verify(path, KEY, anchors)


def test_inserted_rows_are_named(made):
    path, anchors = made
    change(path, "UPDATE audit SET id = id + 100 WHERE id >= 5")
    change(path, "UPDATE audit SET id = id - 99 WHERE id >= 105")
    change(path, "INSERT INTO audit VALUES (5, 'x', 1, 'armed', '{}', 'abc')")
    assert audit.verify(path, KEY, anchors)[1].row == 5


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_is_changed_in_the_file_nothing_passes_as_whole(tmp_path_factory, data):
    path, anchors = make(tmp_path_factory.mktemp("audit") / "audit.sqlite")
    was = rows(path)
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        head, bad = audit.verify(path, KEY, anchors)
    except audit.AuditError:
        return
    assert bad is not None or (head.rows == N + 1 and rows(path) == was)  # a byte that carries no row may change


def rows(path):
    db = sqlite3.connect(path)
    try:
        return db.execute("SELECT * FROM audit ORDER BY id").fetchall()
    finally:
        db.close()


def test_rows_that_the_disk_did_not_take_are_not_in_the_chain(tmp_path):
    a = audit.Audit(tmp_path / "audit.sqlite", KEY)
    a.add(1, "stop")
    pages = a._db.execute("PRAGMA page_count").fetchone()[0]
    a._db.execute(f"PRAGMA max_page_count = {pages}")  # a full disk
    with pytest.raises(sqlite3.Error, match="full"), a.together():
        for i in range(1000):
            a.add(i, "too much", text="x" * 100)
    a._db.execute(f"PRAGMA max_page_count = {pages + 100}")
    a.add(2, "end")
    a.close()
    assert audit.verify(tmp_path / "audit.sqlite", KEY, [a.head]) == (a.head, None)


def test_no_audit_is_no_traceback(tmp_path):
    for content in (b"", b"not a database" * 100):
        path = tmp_path / "x.sqlite"
        path.write_bytes(content)
        with pytest.raises(audit.AuditError, match="cannot be read as an audit"):
            audit.verify(path, KEY)


def test_the_key_is_made_once_and_kept_private():
    with pytest.raises(audit.KeyMissingError, match=r"audit\.key"):
        audit.key()
    first = audit.key(make=True)
    assert audit.key() == audit.key(make=True) == first
    path = audit.state_folder() / "audit.key"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(audit.AuditError, match="can be read by others"):
        audit.key()
