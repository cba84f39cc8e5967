"""`audit.sqlite`: what people and machines did, one row each, chained by hash so that an edit or a deletion shows.

SQLite in WAL mode with synchronous=FULL: a row that was reported as written survives a power cut (safety notes 4.3). Written by the
daemon alone, never by loop or guard.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TABLE = """CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY, utc TEXT NOT NULL, monotonic_ns INTEGER NOT NULL,
    what TEXT NOT NULL, detail TEXT NOT NULL, hash TEXT NOT NULL)"""


def _hash(before: str, *fields: object) -> str:
    return hashlib.sha256(json.dumps([before, *fields]).encode()).hexdigest()


class Audit:
    """The audit of one session."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(_TABLE)
        path.chmod(0o600)
        row = self._db.execute("SELECT hash FROM audit ORDER BY id DESC LIMIT 1").fetchone()
        self._last: str = row[0] if row else ""
        self._rows: int = self._db.execute("SELECT count(*) FROM audit").fetchone()[0]

    def add(self, monotonic_ns: int, what: str, **detail: Any) -> None:
        """Append one row; it is on the disk when this, or `together` around it, returns."""
        utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = json.dumps(detail, default=str)
        self._last = _hash(self._last, utc, monotonic_ns, what, text)
        self._rows += 1
        self._db.execute(
            "INSERT INTO audit (utc, monotonic_ns, what, detail, hash) VALUES (?, ?, ?, ?, ?)", (utc, monotonic_ns, what, text, self._last)
        )

    @property
    def head(self) -> dict[str, Any]:
        """Number of rows and last hash, to be anchored elsewhere: a chain alone does not show that its end was cut off."""
        return {"audit_rows": self._rows, "audit_hash": self._last}

    @contextmanager
    def together(self) -> Iterator[None]:
        """Rows added within are written as one: a flood of refusals must not cost a disk access each."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def first_bad_row(path: Path, head: dict[str, Any] | None = None) -> int | None:
    """Id of the first row that is wrong or missing; None = the chain holds.

    Parameters
    ----------
    head : dict or None
        `Audit.head` as it was anchored: the row that it names must be there as it was.
    """
    before, n = "", 0
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        for n, (i, utc, ns, what, detail, digest) in enumerate(
            db.execute("SELECT id, utc, monotonic_ns, what, detail, hash FROM audit ORDER BY id"), 1
        ):
            if _hash(before, utc, ns, what, detail) != digest:
                return int(i)
            if head and n == head["audit_rows"] and digest != head["audit_hash"]:
                return int(i)
            before = digest
        return n + 1 if head and n < head["audit_rows"] else None
    finally:
        db.close()
