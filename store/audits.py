"""Audit draws and their verdicts, in draw order."""

from __future__ import annotations

import sqlite3

from edgewise.contracts import AuditTotals, Clock
from edgewise.store.database import Database

_PRUNED_AT_ONCE = 100
"""Rows that one draw removes at most, so that none of them pays for a great clean-up."""


class SqliteAudits:
    """The audit log in a database; implements `contracts.AuditLog`.

    The counts of a certificate stand in a row of their own, so that they stay exact when old draws are forgotten. Draws
    that a former process left open can no longer get their verdict: opening the log settles them as missing.

    Args:
        database: The file.
        clock: The time.
        max_audits: The draws kept; older ones are forgotten once they are settled, and stay counted.

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

    def drawn(self, request_id: str, certificate_id: str) -> int:
        """Record a draw before its request is answered; returns its position, durable when it returns.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._database.transaction() as connection:
            position = connection.execute(
                "INSERT INTO audits (request_id, certificate_id, created) VALUES (?, ?, ?)",
                (request_id, certificate_id, self._clock.time()),
            ).lastrowid
            if position is None:
                raise RuntimeError("SQLite gave an inserted row no position.")
            connection.execute(
                "INSERT INTO audit_totals (certificate_id, drawn, violations, missing, open) VALUES (?, 1, 0, 0, 1)"
                " ON CONFLICT (certificate_id) DO UPDATE SET drawn = drawn + 1, open = open + 1",
                (certificate_id,),
            )
            self._prune(connection, position)
        return position

    def _prune(self, connection: sqlite3.Connection, newest: int) -> None:
        connection.execute(
            "DELETE FROM audits WHERE position IN (SELECT position FROM audits"
            " WHERE position <= ? AND violation IS NOT NULL ORDER BY position LIMIT ?)",
            (newest - self._max_audits, _PRUNED_AT_ONCE),
        )

    def verdict(self, position: int, *, violation: bool, missing: bool = False) -> None:
        """Settle a draw; missing counts as a violation. The first verdict of a draw stands.

        Raises:
            ValueError: Nothing was drawn at that position.
            StoreError: The file cannot be written.
        """
        violation = violation or missing
        with self._database.transaction() as connection:
            settled = connection.execute(
                "UPDATE audits SET violation = ?, missing = ? WHERE position = ? AND violation IS NULL"
                " RETURNING certificate_id",
                (violation, missing, position),
            ).fetchall()
            for (certificate_id,) in settled:
                connection.execute(
                    "UPDATE audit_totals SET violations = violations + ?, missing = missing + ?, open = open - 1"
                    " WHERE certificate_id = ?",
                    (violation, missing, certificate_id),
                )
        if not settled and not self._was_drawn(position):
            raise ValueError(f"No audit was drawn at position {position}.")

    def _was_drawn(self, position: int) -> bool:
        newest = self._database.query("SELECT seq FROM sqlite_sequence WHERE name = 'audits'")
        return bool(newest) and 0 < position <= newest[0][0]

    def totals(self, certificate_id: str) -> AuditTotals:
        """Counts under one certificate.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query(
            "SELECT drawn, violations, missing, open FROM audit_totals WHERE certificate_id = ?", (certificate_id,)
        )
        if not rows:
            return AuditTotals()
        drawn, violations, missing, still_open = rows[0]
        return AuditTotals(drawn=drawn, violations=violations, missing=missing, open=still_open)
