"""One SQLite file: opening it safely, its schema, and running statements so that what was acknowledged is durable.

Owns the connection and the schema's version. Which rows mean what is the business of `outbox`, `answers` and `audits`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise.errors import StoreError

SCHEMA_VERSION = 1

_APPLICATION_ID = 0x65646777  # "edgw": tells our file from somebody else's
_LOCK_WAIT_S = 2.0
"""How long to wait for another process to let go of the file: a predecessor may still be draining."""

_MAX_JOURNAL_BYTES = 16 * 1024 * 1024

_PAGES_RECLAIMED_AT_ONCE = 64

_SCHEMA = """
CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    created REAL NOT NULL,
    request BLOB NOT NULL,
    UNIQUE (tenant, id)
);
CREATE TABLE answers (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    final INTEGER NOT NULL,
    stored REAL NOT NULL,
    answer BLOB NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX answers_by_age ON answers (stored);
CREATE TABLE audits (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL,
    certificate_id TEXT NOT NULL,
    created REAL NOT NULL,
    violation INTEGER,
    missing INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX audits_by_certificate ON audits (certificate_id);
"""


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
        with self._translated():
            self._connection = sqlite3.connect(
                self._name, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False
            )
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
        """Give some room of deleted rows back to the file system.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._lock, self._translated():
            self._connection.execute(f"PRAGMA incremental_vacuum({_PAGES_RECLAIMED_AT_ONCE})").fetchall()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            self._connection.close()

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The folder {folder} cannot be made: {error.strerror}.", "Name another path.") from error

    def _open(self) -> None:
        run = self._connection.execute
        # Exclusive: a draw left open by a dead process can be told from one that a living process still works on.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA auto_vacuum = INCREMENTAL")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA journal_size_limit = {_MAX_JOURNAL_BYTES}")
        version, owner = run("PRAGMA user_version").fetchone()[0], run("PRAGMA application_id").fetchone()[0]
        if version == 0 and owner == 0 and run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            self._create()
        elif owner != _APPLICATION_ID:
            raise StoreError(f"{self._name} is a database of another program.", "Name another path.")
        elif version > SCHEMA_VERSION:
            raise StoreError(
                f"{self._name} has schema version {version}; this edgewise reads up to {SCHEMA_VERSION}.",
                "Upgrade edgewise, or name another path.",
            )
        elif (verdict := run("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise StoreError(f"{self._name} is damaged: {verdict}.", _DAMAGED)

    def _create(self) -> None:
        with self.transaction() as connection:
            for statement in _SCHEMA.split(";"):
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
