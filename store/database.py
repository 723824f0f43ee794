"""One SQLite file: opening it safely, its schema, and running statements so that what was acknowledged is durable.

Owns the connection and the schema's version. What rows mean is the business of `outbox`, `answers`, `hooks`, `audits`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise.errors import StoreError
from edgewise.store.records import decode_request

SCHEMA_VERSION = 4

_APPLICATION_ID = 0x65646777  # "edgw": tells our file from somebody else's
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
"""The head of every SQLite file; its numbers stand at the places that "Database File Format", section 1.3, gives."""

_LOCK_WAIT_S = 2.0
"""How long to wait for another process to let go of the file: a predecessor may still be draining."""

_MAX_JOURNAL_BYTES = 4 * 1024 * 1024

_PAGES_RECLAIMED_AT_ONCE = 64
"""Also how many must be free before any is given back: a page that the next row needs is not worth a write."""

_SCHEMA = """
CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    created REAL NOT NULL,
    request BLOB NOT NULL,
    session TEXT,
    UNIQUE (tenant, id)
);
CREATE TABLE answers (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    final INTEGER NOT NULL,
    stored REAL NOT NULL,
    answer BLOB NOT NULL,
    item BLOB,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX answers_by_age ON answers (stored);
CREATE TABLE audits (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL,
    epoch TEXT NOT NULL,
    created REAL NOT NULL,
    violation INTEGER,
    missing INTEGER NOT NULL DEFAULT 0,
    score REAL,
    differs INTEGER
);
CREATE TABLE audit_totals (
    epoch TEXT PRIMARY KEY,
    drawn INTEGER NOT NULL,
    violations INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    open INTEGER NOT NULL
);
"""

_SINCE_VERSION_3 = """
CREATE TABLE audit_states (
    epoch TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    state BLOB NOT NULL
);
CREATE TABLE kept (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL
);
CREATE TABLE spending (
    day TEXT PRIMARY KEY,
    amount REAL NOT NULL
);
"""

_SINCE_VERSION_4 = """
CREATE TABLE hooks (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    target TEXT NOT NULL,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    created REAL NOT NULL,
    due REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    answer BLOB NOT NULL,
    UNIQUE (target, tenant, id)
);
CREATE INDEX hooks_by_due ON hooks (due);
"""

_FROM_VERSION_1 = """
DROP INDEX audits_by_certificate;
CREATE TABLE audit_totals (
    certificate_id TEXT PRIMARY KEY,
    drawn INTEGER NOT NULL,
    violations INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    open INTEGER NOT NULL
);
INSERT INTO audit_totals
SELECT certificate_id, count(*), coalesce(sum(violation), 0), sum(missing), count(*) - count(violation)
FROM audits GROUP BY certificate_id;
"""
"""Version 1 counted the rows of `audits` each time, so it could not forget any."""

_FROM_VERSION_2 = """
ALTER TABLE audits RENAME COLUMN certificate_id TO epoch;
ALTER TABLE audits ADD COLUMN score REAL;
ALTER TABLE audits ADD COLUMN differs INTEGER;
ALTER TABLE audit_totals RENAME COLUMN certificate_id TO epoch;
"""
"""Version 2 knew no state of an audit, so that an alarm ended with the process. A certificate was one epoch."""

_FROM_VERSION_3 = """
ALTER TABLE outbox ADD COLUMN session TEXT;
UPDATE outbox SET session = session_of(request);
ALTER TABLE answers ADD COLUMN item BLOB;
"""
"""Version 3 knew the session of an owed request only from its content, and of an answer not what it answers."""

_TO_3 = _FROM_VERSION_2 + _SINCE_VERSION_3
_TO_4 = _FROM_VERSION_3 + _SINCE_VERSION_4
_UPGRADES = {
    0: _SCHEMA + _SINCE_VERSION_3 + _SINCE_VERSION_4,
    1: _FROM_VERSION_1 + _TO_3 + _TO_4,
    2: _TO_3 + _TO_4,
    3: _TO_4,
}
"""What brings a file of each older version, 0 being a new one, to the present one; each runs as one transaction."""


def connect(name: str) -> sqlite3.Connection:
    """A connection for any thread that begins and ends no transaction by itself."""
    return sqlite3.connect(name, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False)


class Database:
    """A connection that may be used from any thread; one process owns the file at a time.

    Args:
        path: The file, made if it is not there, or ":memory:".

    Raises:
        StoreError: The file is damaged, not ours, of a newer version, in use, or cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self._name = str(path)
        self._lock = threading.RLock()
        if self._name != ":memory:":
            self._make_folder(Path(self._name).parent)
            self._check_header(Path(self._name))
        with self._translated():
            self._connection = connect(self._name)
        try:
            with self._translated():
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of one statement.

        Raises:
            StoreError: The file cannot be read.
        """
        with self._lock, self._translated():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for writing; when the block has ended, all of it is on disk, or none of it.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite rolls back by itself after some errors, for instance when the disk is full.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def reclaim(self) -> None:
        """Give some room of deleted rows back to the file system, where there is enough of it.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._lock, self._translated():
            if self._connection.execute("PRAGMA freelist_count").fetchone()[0] < _PAGES_RECLAIMED_AT_ONCE:
                return
            # Not execute: it takes one step, and this statement frees one page a step.
            self._connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_RECLAIMED_AT_ONCE})")

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            self._connection.close()

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The folder {folder} cannot be made: {error.strerror}.", "Name another path.") from error

    def _check_header(self, path: Path) -> None:
        """Refuse a file that is not ours before SQLite opens it: even a reader may write back another's journal."""
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
        except OSError:  # not there yet, or not to be read: SQLite says which
            return
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC) or header[18] not in (1, 2):
            return  # empty, or not a database: SQLite finds out without writing
        version, owner = (int.from_bytes(header[start : start + 4], "big") for start in (60, 68))
        # Ours has its mark from its first commit on, and is put into write-ahead mode (2) only then.
        is_blank = version == 0 and owner == 0 and header[18] != 2
        if not is_blank:
            self._check_owner(version, owner)

    def _check_owner(self, version: int, owner: int) -> None:
        if owner != _APPLICATION_ID:
            raise StoreError(f"{self._name} is a database of another program.", "Name another path.")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self._name} has schema version {version}; this edgewise reads up to {SCHEMA_VERSION}.",
                "Upgrade edgewise, or name another path.",
            )

    def _open(self) -> None:
        """Look first, and write only to a file that is known to be ours."""
        run = self._connection.execute
        # Exclusive: a draw left open by a dead process can be told from one that a living process still works on.
        run("PRAGMA locking_mode = EXCLUSIVE")
        version, owner = run("PRAGMA user_version").fetchone()[0], run("PRAGMA application_id").fetchone()[0]
        is_new = version == 0 and owner == 0 and run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not is_new:
            self._check_owner(version, owner)
            if (verdict := run("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise StoreError(f"{self._name} is damaged: {verdict}.", _DAMAGED)
        run("PRAGMA auto_vacuum = INCREMENTAL")
        run("PRAGMA synchronous = FULL")
        if version < SCHEMA_VERSION:
            self._apply(_UPGRADES[version])
        run("PRAGMA journal_mode = WAL")
        run(f"PRAGMA journal_size_limit = {_MAX_JOURNAL_BYTES}")

    def _apply(self, statements: str) -> None:
        self._connection.create_function("session_of", 1, _session_of)
        with self.transaction() as connection:
            for statement in statements.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            problem, remedy = _explain(error)
            raise StoreError(f"{self._name}: {problem} ({error}).", remedy) from error


def _session_of(stored: bytes) -> str | None:
    """The session of a stored request; None also where it cannot be read, which its delivery will tell of."""
    try:
        return decode_request(stored).session
    except StoreError:
        return None


_DAMAGED = "Restore it from a backup, or move it away to start empty."

_EXPLANATIONS = {
    sqlite3.SQLITE_NOTADB: ("not a database, or damaged", _DAMAGED),
    sqlite3.SQLITE_CORRUPT: ("damaged", _DAMAGED),
    sqlite3.SQLITE_BUSY: ("in use by another process", "Stop that process, or name another path."),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "Name a file in a folder that can be written."),
    sqlite3.SQLITE_READONLY: ("cannot be written", "Give write permission, or name another path."),
    sqlite3.SQLITE_FULL: ("the disk is full", "Free some room."),
    sqlite3.SQLITE_IOERR: ("the disk failed", "Check the disk."),
}


def _explain(error: sqlite3.Error) -> tuple[str, str]:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    return _EXPLANATIONS.get(code, ("the store cannot be used", "Open it again."))
