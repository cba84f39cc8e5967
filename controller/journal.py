"""The dose journal of a bed, on the disk: kept across restarts, kill -9 and power cuts (A10, F8). What its rows mean is `dose`'s.

One SQLite file per bed, WAL with synchronous=FULL, moved into the file at each commit, so that a lost WAL costs one commit at most. Guard
begins a train only while at most one earlier train is not on the disk yet; what an unclean end can hide is therefore two trains, and as
much is assumed at the next start. A file that cannot be trusted, or is gone, is no dose of zero: nothing starts. Daemon only.

Each row carries a digest of itself. That none was cut off, at either end, says the head: number of the first row, how many there are, and
an HMAC over all their digests with the audit's key, written in the same transaction as the rows. The file beside the journal, which is
its lock, remembers that the journal is in use and has a head.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller import audit, dose
from controller.dose import Clock, Dose, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KEEP_NS = dose.DAY + 60 * dose.MINUTE
ASSUMED_TRAINS = 2  # that an unclean end can hide
LOCK_S = 1.0  # `calmloop dose` looks at the lock for a moment, too
OUTPUT_STATES = ("ARMED", "STIMULATING")
_COLUMNS = "id, boot, monotonic_ns, utc_ns, kind, detail, digest"
_TABLE = """CREATE TABLE IF NOT EXISTS dose (
    id INTEGER PRIMARY KEY, boot TEXT NOT NULL, monotonic_ns INTEGER NOT NULL, utc_ns INTEGER NOT NULL,
    kind TEXT NOT NULL, detail TEXT NOT NULL, digest TEXT NOT NULL)"""
_HEAD_TABLE = """CREATE TABLE IF NOT EXISTS head (
    id INTEGER PRIMARY KEY CHECK (id = 1), first INTEGER NOT NULL, rows INTEGER NOT NULL, key TEXT NOT NULL, hmac TEXT NOT NULL)"""
ADOPTED = "the dose journal is from before it had a head: its {} rows are taken as they stand, this once"
IN_USE = b"in use, with a head\n"  # what the lock says of the journal beside it; "in use" alone: from before there were heads


class JournalError(Exception):
    """The dose is not known, cannot be written, or somebody else writes it; the message names the file and what to do."""


class UntrustedError(JournalError):
    """What is in the file is not what was written, or it is gone: a person who knows the dose may begin anew."""


def clock_now() -> Clock:
    """Tell the time."""
    return Clock(Path("/proc/sys/kernel/random/boot_id").read_text().strip(), time.monotonic_ns(), time.time_ns())


def default_path(bed: str) -> Path:
    """Where a bed's journal is, unless somebody says otherwise. Raises `JournalError` where there is no place for it."""
    try:
        folder = audit.state_folder() / "dose"
        folder.mkdir(mode=0o700, exist_ok=True)
    except audit.AuditError as error:
        raise JournalError(str(error)) from None
    except OSError as error:
        raise JournalError(f"{folder}: cannot be made: {error.strerror}") from None
    return folder / f"{bed}.sqlite"


class Journal:
    """One bed's journal, held by one daemon. Every writing method raises `JournalError` where the disk does not take it.

    Parameters
    ----------
    clock : callable
        Tells the time.
    replace_broken : bool
        Put a file that cannot be trusted aside and begin anew: only a person who knows the dose may say so.

    Attributes
    ----------
    adopted : int
        How many rows were taken as they stood, since the journal is from before there were heads; once in its life.

    Raises
    ------
    JournalError
        Another daemon holds it, it cannot be trusted, or the audit's key cannot be had.
    """

    def __init__(self, path: Path, clock: Callable[[], Clock] = clock_now, replace_broken: bool = False) -> None:
        self.path, self._clock = path, clock
        self.put_aside: Path | None = None
        self.adopted = 0
        self._key = _key(path, make=True)
        self._lock = _lock(path)
        try:
            try:
                self._open()
            except UntrustedError:
                if not replace_broken:
                    raise
                self._put_aside()
                self._open(anew=True)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, anew: bool = False) -> None:
        said = b"" if anew else os.pread(self._lock, len(IN_USE), 0)
        self._marked = said == IN_USE
        if said and not self.path.exists():
            raise distrust(self.path, "it is gone, though it was in use")
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            try:
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=1"):
                    self._db.execute(f"PRAGMA {pragma}")
                self.path.chmod(0o600)
                self._db.execute(_TABLE)
                self._db.execute(_HEAD_TABLE)
                self._first, self.rows, self._seal, headed = _read(self.path, self._db, self._key, said)
                self.lockout = dose.lockout_of(self.rows)
                if self.rows and not headed:
                    self._write_head(self._first, len(self.rows), self._seal)
                    self._mark()
                    self.adopted = len(self.rows)
            except BaseException:
                self._db.close()
                raise
        except (sqlite3.Error, OSError, UnicodeError) as error:
            raise _unread(self.path, error) from None

    def _put_aside(self) -> None:
        stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        self.put_aside = self.path.with_name(f"{self.path.name}.broken-{stamp}")
        try:
            for ending in ("", "-wal", "-shm"):
                if (was := Path(f"{self.path}{ending}")).exists():
                    was.rename(f"{self.put_aside}{ending}")
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be put aside: {error.strerror}") from None

    def _mark(self) -> None:
        """From now on an empty or missing file, or one without a head, is a loss."""
        os.pwrite(self._lock, IN_USE, 0)
        os.fsync(self._lock)
        self._marked = True

    def _write_head(self, first: int, n: int, seal: hmac.HMAC) -> None:
        self._db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?, ?)", (first, n, audit.key_name(self._key), seal.hexdigest()))

    def begin(self, session: str, worst: Dose) -> int:
        """A session begins; returns how many trains were assumed, since the last one had no clean end."""
        assumed = self._assumed("unclean end") if dose.is_open(self.rows) else []
        begun = {"name": session, "new": not assumed, "worst": list(worst), "lockout": self.lockout}
        self._write([*assumed, ("session", begun)])
        return len(assumed)

    def take(self, rows: Iterable[dict[str, Any]]) -> bool:
        """Guard's rows: trains that are over, and lockouts; returns whether there was any."""
        new: list[tuple[str, dict[str, Any]]] = []
        lockout = self.lockout
        for row in rows:
            if "train" in row:
                new.append(("train", dose.train_of(row["train"])))
            verdict = row.get("verdict", {"state": ""})  # guard's first row has none
            if verdict["state"] == "LOCKOUT" and not lockout:
                lockout = (verdict["reasons"] or ["locked out"])[-1]
                new.append(("lockout", {"lockout": lockout}))
            elif verdict["state"] in OUTPUT_STATES and lockout:  # only a person who arms ends it
                lockout = ""
                new.append(("lockout", {"lockout": lockout}))
        self._write(new)
        return bool(new)

    def assume(self, why: str) -> int:
        """Guard ended, or its rows were lost, while a train may have been on: as much as can be hidden is added."""
        assumed = self._assumed(why)
        self._write(assumed)
        return len(assumed)

    def end(self) -> None:
        """Clean end: every train of this session is in the journal."""
        self._write([("end", {})])

    def reset(self, reason: str, who: str) -> None:
        """Another patient, or a dose that a person knows: history counts from here."""
        self._write([("reset", {"reason": reason, "who": who, "lockout": ""})])

    def history(self) -> dict[str, Any]:
        """What guard must know of earlier; see `dose.history`."""
        return dose.history(self.rows, self._clock())

    def summary(self) -> dict[str, Any]:
        """The dose for people."""
        return dose.summary(self.rows, self._clock())

    def close(self) -> None:
        """Let the file go. Without `end` before, the end is an unclean one."""
        try:
            self._db.close()
        finally:
            os.close(self._lock)

    def _assumed(self, why: str) -> list[tuple[str, dict[str, Any]]]:
        """Two of the worst trains of the session, the last ending now, as far as there was time since the last train that is known."""
        now = self._clock()
        worst = Dose(*next(row.detail["worst"] for row in reversed(self.rows) if row.kind == "session"))
        known_ns = max((train.end_ns for train in dose.given(self.rows, now)), default=now.monotonic_ns - dose.DAY)
        assumed = []
        for n in reversed(range(ASSUMED_TRAINS)):
            start_ns, end_ns = (max(known_ns, now.monotonic_ns - k * worst.on_ns) for k in (n + 1, n))
            train = {"start_ns": start_ns, "end_ns": end_ns, **worst._asdict(), "event_id": 0, "cause": 0}
            assumed.append(("train", train | {"new_event": True, "automatic": True, "assumed": why}))
        return assumed

    def _write(self, new: list[tuple[str, dict[str, Any]]]) -> None:
        """Append rows in one transaction; when a session begins, those that are too old to count go."""
        if not new:
            return
        now = self._clock()
        rows = [Row(now, kind, detail) for kind, detail in new]
        kept, old = [*self.rows, *rows], 0
        if new[-1][0] == "session":
            young_ns = now.monotonic_ns - KEEP_NS
            young = (i for i, shift in enumerate(dose.shifts(kept, now)) if kept[i].at.monotonic_ns + shift >= young_ns)
            old = min(next(young), dose.session_start(kept))
        first, seal = self._first + old, self._seal.copy()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for number, row in enumerate(rows, self._first + len(self.rows)):
                values = (number, *row.at, row.kind, json.dumps(row.detail))
                digest = _digest(values)
                seal.update(digest.encode())
                self._db.execute("INSERT INTO dose VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, digest))
            if old:
                self._db.execute("DELETE FROM dose WHERE id < ?", (first,))
                seal = _seal(self._key, first, _digests(self._db))
            self._write_head(first, len(kept) - old, seal)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise JournalError(f"{self.path}: the dose journal cannot be written: {error}") from None
        self._first, self.rows, self._seal = first, kept[old:], seal
        self.lockout = next((row.detail["lockout"] for row in reversed(rows) if "lockout" in row.detail), self.lockout)
        if not self._marked:
            self._mark()


def _key(path: Path, make: bool = False) -> bytes:
    try:
        return audit.key(make)
    except audit.AuditError as error:
        raise JournalError(f"{path}: nobody can say whether it is whole: {error}") from None


def look(path: Path) -> tuple[list[Row], bool]:
    """The rows of a journal that a daemon may hold, and whether one does.

    Raises
    ------
    JournalError
        There is none, or it cannot be trusted.
    """
    if not path.exists():
        raise JournalError(f"{path}: there is no dose journal")
    key = _key(path)
    try:
        os.close(_lock(path, 0.0))
        held = False
    except JournalError:
        held = True
    try:
        said = Path(f"{path}.lock").read_bytes()
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            db.execute("BEGIN")  # head and rows of one moment
            return _read(path, db, key, said)[1], held
        finally:
            db.close()
    except (sqlite3.Error, OSError, UnicodeError) as error:
        raise _unread(path, error) from None


def _lock(path: Path, patience_s: float = LOCK_S) -> int:
    """Take the file beside the journal; SQLite's own locks would go with any second opening in one process."""
    end = time.monotonic() + patience_s
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise JournalError(f"{path}.lock: {error.strerror}") from None
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= end:
                os.close(fd)
                raise JournalError(f"{path}: another daemon holds this dose journal: end it, or name another bed or --journal") from None
            time.sleep(0.05)


def _read(path: Path, db: sqlite3.Connection, key: bytes, said: bytes) -> tuple[int, list[Row], hmac.HMAC, bool]:
    """Number of the first row, all rows, what the head must hold of them, and whether there is one; each checked.

    `said` is what the lock says of the journal: one that was never in use may be empty, one from before there were heads may lack it.
    """
    checked = [str(row[0]) for row in db.execute("PRAGMA quick_check")]
    if checked != ["ok"]:
        raise distrust(path, checked[0].splitlines()[-1])
    rows: list[Row] = []
    digests: list[str] = []
    first = 1
    for number, *values, digest in db.execute(f"SELECT {_COLUMNS} FROM dose ORDER BY id"):
        first = first if rows else number
        if number != first + len(rows) or _digest((number, *values)) != digest:
            raise distrust(path, f"row {number} is not what was written, or rows before it are missing")
        boot, monotonic, utc, kind, detail = values
        rows.append(Row(Clock(boot, monotonic, utc), kind, json.loads(detail)))
        digests.append(digest)
    seal = _seal(key, first, digests)
    has_table = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'head'").fetchone()
    head = db.execute("SELECT first, rows, key, hmac FROM head").fetchone() if has_table else None
    if head and (why := _unlike(head, first, len(rows), key, seal)):
        raise distrust(path, why)
    if said and not rows:
        raise distrust(path, "it is empty, though it was in use")
    if not head and (said == IN_USE or (rows and not said)):
        raise distrust(path, "its head is missing, which says how many rows there are")
    return first, rows, seal, head is not None


def _unlike(head: tuple[Any, ...], first: int, n: int, key: bytes, seal: hmac.HMAC) -> str:
    """How the head differs from the rows; empty = they belong together."""
    was_first, was_n, made_with, mac = head
    if made_with != audit.key_name(key):
        return f"it was written with the key {made_with}, the key here is {audit.key_name(key)}"
    if n and first != was_first:
        return f"it begins with row {first}, it was written from row {was_first} on"
    if n != was_n:
        return f"{was_n} rows were written, {n} are there"
    return "" if hmac.compare_digest(str(mac), seal.hexdigest()) else "its rows are not those that were written"


def _digests(db: sqlite3.Connection) -> list[str]:
    return [str(digest) for (digest,) in db.execute("SELECT digest FROM dose ORDER BY id")]


def _seal(key: bytes, first: int, digests: Iterable[str]) -> hmac.HMAC:
    """What the head holds, to be gone on with as rows come."""
    return hmac.new(key, "".join((f"dose journal from row {first}:", *digests)).encode(), hashlib.sha256)


def _digest(values: tuple[object, ...]) -> str:
    return hashlib.blake2b(json.dumps(values, default=repr).encode(), digest_size=12).hexdigest()


def _unread(path: Path, error: Exception) -> JournalError:
    """A disk that is full or away says nothing against the file."""
    disk = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    if isinstance(error, OSError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in disk:
        return JournalError(f"{path}: the dose journal cannot be opened: {error}. Nothing starts without it: is the disk full, or away?")
    return distrust(path, str(error))


def distrust(path: Path, why: str) -> UntrustedError:
    """What to raise where a journal's dose is not to be believed, with the way out."""
    return UntrustedError(
        f"{path}: the dose of the last 24 h is not known: {why}. Nothing starts with it. When it is known that nobody was stimulated "
        f"meanwhile, or for another patient: calmloop dose --journal '{path}' --reset 'REASON' (what is left of the file is kept beside it)"
    )
