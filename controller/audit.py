"""`audit.sqlite`: what people and machines did, one row each, chained so that an edit, a deletion, a cut or a rewrite shows.

SQLite in WAL mode with synchronous=FULL: a row that was reported as written survives a power cut (safety notes 4.3). Each row's HMAC
covers the row and the HMAC before it, with a key that is not in the session (G8). A chain alone does not show that its end was cut off or
that all of it was written anew with the key, so its head (number of rows, last HMAC) is anchored in the recording each second. Written by
the daemon alone, never by loop or guard.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KEY_BYTES = 32
_TABLE = """CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY, utc TEXT NOT NULL, monotonic_ns INTEGER NOT NULL,
    what TEXT NOT NULL, detail TEXT NOT NULL, hmac TEXT NOT NULL)"""
BEGUN = "audit begun"  # the first row: names the key


class AuditError(Exception):
    """The audit cannot be read; the message says why."""


class KeyMissingError(AuditError):
    """The key is missing, not private, or another one: nothing is known of the audit."""


class Head(NamedTuple):
    """Where a chain ends: what is anchored elsewhere."""

    rows: int
    hmac: str


def state_folder() -> Path:
    """Where this user's key and dose journals are, private to the user and outside of every session.

    Raises
    ------
    AuditError
        It cannot be made.
    """
    given = os.environ.get("CALMLOOP_STATE_DIR")
    base = os.environ.get("XDG_STATE_HOME")
    folder = Path(given) if given else (Path(base) if base else Path.home() / ".local" / "state") / "calmloop"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuditError(f"the state folder {folder} cannot be made: {error.strerror}") from None
    return folder


def key(make: bool = False) -> bytes:
    """The key of this user's audits.

    Parameters
    ----------
    make : bool
        Make one where there is none yet.

    Raises
    ------
    KeyMissingError
        There is none, it cannot be made, or it can be read by others.
    AuditError
        There is no folder for it.
    """
    path = state_folder() / "audit.key"
    try:
        if make and not path.exists():
            _make_key(path)
        if path.stat().st_mode & 0o077:
            raise KeyMissingError(f"{path} can be read by others: chmod 600 it, and look at who may have read it")
        data = path.read_bytes()
    except OSError as error:
        raise KeyMissingError(f"the audit's key {path}: {error.strerror}") from None
    if len(data) != KEY_BYTES:
        raise KeyMissingError(f"{path} must hold {KEY_BYTES} bytes, it holds {len(data)}")
    return data


def _make_key(path: Path) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            os.write(fd, secrets.token_bytes(KEY_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(partial, path)  # whoever comes first has made it
        except FileExistsError:
            pass
    finally:
        partial.unlink()


def key_name(key: bytes) -> str:
    """What may be said of a key: enough to tell two apart."""
    return hashlib.sha256(b"calmloop audit key" + key).hexdigest()[:16]


def _hmac(key: bytes, before: str, *fields: object) -> str:
    return hmac.new(key, json.dumps([before, *fields], default=repr).encode(), hashlib.sha256).hexdigest()


class Audit:
    """The audit of one session. Every method raises `sqlite3.Error` where the disk does not take it."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._key = key
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(_TABLE)
        path.chmod(0o600)
        last = self._db.execute("SELECT id, hmac FROM audit ORDER BY id DESC LIMIT 1").fetchone()
        self.head = Head(*last) if last else Head(0, "")
        if not last:
            self.add(0, BEGUN, key=key_name(key))

    def add(self, monotonic_ns: int, what: str, **detail: Any) -> None:
        """Append one row; it is on the disk when this, or `together` around it, returns."""
        utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = json.dumps(detail, default=str)
        number = self.head.rows + 1
        mac = _hmac(self._key, self.head.hmac, number, utc, monotonic_ns, what, text)
        self._db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?)", (number, utc, monotonic_ns, what, text, mac))
        self.head = Head(number, mac)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Rows added within are written as one: a flood of refusals must not cost a disk access each."""
        before = self.head
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            try:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("COMMIT")
                else:
                    self.head = before
            except sqlite3.Error:
                self.head = before
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _made_with(what: str, detail: str) -> str:
    """The key that the first row names; empty where it names none, and then the row's HMAC says the rest."""
    try:
        return str(json.loads(detail)["key"]) if what == BEGUN else ""
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


class BadRow(NamedTuple):
    """The first row that is wrong or missing."""

    row: int
    why: str


def _rows(path: Path) -> list[tuple[Any, ...]]:
    """Everything as it stands there. Raises `AuditError`."""
    db = None
    try:
        # without a write-ahead log nobody writes, and then nothing need be left beside a session that is only read
        alone = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{alone}", uri=True)
        db.text_factory = lambda data: data.decode(errors="replace")  # broken text is a row that does not fit, not an unreadable file
        return db.execute("SELECT id, utc, monotonic_ns, what, detail, hmac FROM audit ORDER BY id").fetchall()
    except (sqlite3.Error, UnicodeError) as error:  # UnicodeError: a schema that is no text
        raise AuditError(f"{path} cannot be read as an audit: {error}") from None
    finally:
        if db:
            db.close()


def ends_with(path: Path) -> str:
    """What the last row tells of; empty = there is none. Raises `AuditError`."""
    return next((str(row[3]) for row in reversed(_rows(path))), "")


def details(path: Path, what: str) -> list[dict[str, Any]]:
    """What the rows of one kind say, unverified. Raises `AuditError`."""
    try:
        return [dict(json.loads(row[4])) for row in _rows(path) if row[3] == what]
    except (ValueError, TypeError, RecursionError) as error:
        raise AuditError(f"{path} cannot be read as an audit: {error}") from None


def verify(path: Path, key: bytes, anchors: Iterable[Head] = ()) -> tuple[Head, BadRow | None]:
    """Look for the first row that was edited, deleted, inserted, cut off or rewritten.

    Parameters
    ----------
    anchors : iterable of Head
        The heads that were written elsewhere while the audit grew.

    Returns
    -------
    head : Head
        Number of rows, and the last one's HMAC as it stands there.
    bad : BadRow or None
        None = the chain holds and ends no earlier than its last anchor.

    Raises
    ------
    AuditError
        The file is no audit; KeyMissingError: it was made with another key.
    """
    rows = _rows(path)
    head = Head(len(rows), str(rows[-1][-1]) if rows else "")
    anchored = {anchor.rows: anchor.hmac for anchor in anchors}
    before = ""
    for n, (number, utc, monotonic_ns, what, detail, mac) in enumerate(rows, 1):
        if number != n:
            return head, BadRow(n, "missing")
        if n == 1 and (made_with := _made_with(what, detail)) not in ("", key_name(key)):
            raise KeyMissingError(f"{path} was made with the key {made_with}, the key here is {key_name(key)}: verify it where it was made")
        if _hmac(key, before, number, utc, monotonic_ns, what, detail) != mac:  # nothing to guess at: no need to hide how long this takes
            return head, BadRow(n, "does not fit the chain: it or the row before was changed")
        if anchored.get(n, mac) != mac:
            return head, BadRow(n, "is not the row that the recording anchored: the audit was written anew")
        before = mac
    last = max(anchored, default=0)
    return head, BadRow(len(rows) + 1, f"missing: the recording anchored {last} rows") if last > len(rows) else None
