"""Audit draws and their verdicts, in draw order, and the state that is folded from them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from edgewise.contracts import AuditTotals, AuditVerdict, Clock
from edgewise.store.database import Database

_PRUNED_AT_ONCE = 100
"""Rows that one draw removes at most, so that none of them pays for a great clean-up."""


class SqliteAudits:
    """The audit log in a database; implements `contracts.AuditLog`.

    The counts of an epoch stand in a row of their own, so that they stay exact when old draws are forgotten. Draws that
    a former process left open can no longer get their verdict: opening the log settles them as missing.

    A draw is forgotten once it is settled and `max_audits` newer ones are there; of the epoch that is drawn for now
    only after it was folded, since the proof must not lose it. So a recertification, which reads folded draws too,
    takes at most `max_audits` of them.

    Args:
        database: The file.
        clock: The time.
        max_audits: The draws kept; older ones are forgotten, and stay counted.

    Raises:
        StoreError: The file cannot be written.
    """

    def __init__(self, database: Database, clock: Clock, max_audits: int) -> None:
        self._database = database
        self._clock = clock
        self._max_audits = max_audits
        with database.transaction() as connection:
            connection.execute("UPDATE audits SET violation = 1, missing = 1 WHERE violation IS NULL")
            connection.execute(
                "UPDATE audit_totals SET violations = violations + open, missing = missing + open, open = 0"
                " WHERE open > 0"
            )

    def drawn(self, request_id: str, epoch: str) -> int:
        """Record a draw before its request is answered; returns its position, durable when it returns.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._database.transaction() as connection:
            position = connection.execute(
                "INSERT INTO audits (request_id, epoch, created) VALUES (?, ?, ?)",
                (request_id, epoch, self._clock.time()),
            ).lastrowid
            if position is None:
                raise RuntimeError("SQLite gave an inserted row no position.")
            connection.execute(
                "INSERT INTO audit_totals (epoch, drawn, violations, missing, open) VALUES (?, 1, 0, 0, 1)"
                " ON CONFLICT (epoch) DO UPDATE SET drawn = drawn + 1, open = open + 1",
                (epoch,),
            )
            self._prune(connection, position, epoch)
        return position

    def _prune(self, connection: sqlite3.Connection, newest: int, epoch: str) -> None:
        connection.execute(
            "DELETE FROM audits WHERE position IN (SELECT position FROM audits"
            " WHERE position <= ? AND violation IS NOT NULL"
            " AND (epoch <> ? OR position <= (SELECT position FROM audit_states WHERE epoch = ?))"
            " ORDER BY position LIMIT ?)",
            (newest - self._max_audits, epoch, epoch, _PRUNED_AT_ONCE),
        )

    def verdict(self, position: int, verdict: AuditVerdict) -> None:
        """Settle a draw; missing counts as a violation. The first verdict of a draw stands.

        A score of NaN is kept as None.

        Raises:
            ValueError: Nothing was drawn at that position.
            StoreError: The file cannot be written.
        """
        violation = verdict.violation or verdict.missing
        with self._database.transaction() as connection:
            settled = connection.execute(
                "UPDATE audits SET violation = ?, missing = ?, score = ?, differs = ?"
                " WHERE position = ? AND violation IS NULL RETURNING epoch",
                (violation, verdict.missing, verdict.score, verdict.differs, position),
            ).fetchall()
            for (epoch,) in settled:
                connection.execute(
                    "UPDATE audit_totals SET violations = violations + ?, missing = missing + ?, open = open - 1"
                    " WHERE epoch = ?",
                    (violation, verdict.missing, epoch),
                )
        if not settled and not self._was_drawn(position):
            raise ValueError(f"No audit was drawn at position {position}.")

    def _was_drawn(self, position: int) -> bool:
        newest = self._database.query("SELECT seq FROM sqlite_sequence WHERE name = 'audits'")
        return bool(newest) and 0 < position <= newest[0][0]

    def advance(self, epoch: str, fold: Callable[[bytes | None, Sequence[AuditVerdict]], bytes]) -> bytes:
        """Fold the verdicts that settled since last time into the epoch's state, in draw order, as one write.

        Args:
            epoch: The epoch.
            fold: Given the state so far, None at first, and the verdicts behind it, up to the first draw that is still
                open; returns the new state. Runs inside the write, so it must not use the store.

        Returns:
            The state, durable when it returns.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._database.transaction() as connection:
            found = connection.execute("SELECT position, state FROM audit_states WHERE epoch = ?", (epoch,)).fetchone()
            last, state = found or (0, None)
            settled = list(_until_open(connection.execute(_SELECT, (epoch, last))))
            if state is not None and not settled:
                return bytes(state)
            new: bytes = fold(state, [verdict for _, verdict in settled])
            connection.execute(
                "INSERT INTO audit_states (epoch, position, state) VALUES (?, ?, ?)"
                " ON CONFLICT (epoch) DO UPDATE SET position = excluded.position, state = excluded.state",
                (epoch, settled[-1][0] if settled else last, new),
            )
        return new

    def verdicts(self, epoch: str, limit: int) -> list[AuditVerdict]:
        """The first settled verdicts of an epoch that are kept, in draw order, up to the first draw still open.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query(_SELECT + " LIMIT ?", (epoch, 0, limit))
        return [verdict for _, verdict in _until_open(rows)]

    def totals(self, epoch: str) -> AuditTotals:
        """Counts under one epoch.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query(
            "SELECT drawn, violations, missing, open FROM audit_totals WHERE epoch = ?", (epoch,)
        )
        if not rows:
            return AuditTotals()
        drawn, violations, missing, still_open = rows[0]
        return AuditTotals(drawn=drawn, violations=violations, missing=missing, open=still_open)

    def remember(self, key: str, value: bytes) -> None:
        """Keep a value under a key, durable when it returns.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO kept (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

    def recall(self, key: str) -> bytes | None:
        """The value kept under a key, or None.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query("SELECT value FROM kept WHERE key = ?", (key,))
        return bytes(rows[0][0]) if rows else None


_SELECT = (
    "SELECT position, violation, missing, score, differs FROM audits WHERE epoch = ? AND position > ? ORDER BY position"
)


def _until_open(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, AuditVerdict]]:
    """Positions and verdicts in front of the first row that has none."""
    for position, violation, missing, score, differs in rows:
        if violation is None:
            return
        yield (
            position,
            AuditVerdict(
                violation=bool(violation),
                missing=bool(missing),
                score=score,
                differs=None if differs is None else bool(differs),
            ),
        )
