"""Audit draws and their verdicts, in draw order."""

from __future__ import annotations

from edgewise.contracts import AuditTotals, Clock
from edgewise.store.database import Database


class SqliteAudits:
    """The audit log in a database; implements `contracts.AuditLog`.

    Draws that a former process left open can no longer get their verdict: opening the log settles them as missing.

    Args:
        database: The file.
        clock: The time.

    Raises:
        StoreError: The file cannot be written.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        with database.transaction() as connection:
            connection.execute("UPDATE audits SET violation = 1, missing = 1 WHERE violation IS NULL")

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
        return position

    def verdict(self, position: int, *, violation: bool, missing: bool = False) -> None:
        """Settle a draw; missing counts as a violation. The first verdict of a draw stands.

        Raises:
            ValueError: Nothing was drawn at that position.
            StoreError: The file cannot be written.
        """
        with self._database.transaction() as connection:
            settled = connection.execute(
                "UPDATE audits SET violation = coalesce(violation, ?), missing = iif(violation IS NULL, ?, missing)"
                " WHERE position = ?",
                (violation or missing, missing, position),
            ).rowcount
        if not settled:
            raise ValueError(f"No audit was drawn at position {position}.")

    def totals(self, certificate_id: str) -> AuditTotals:
        """Counts under one certificate.

        Raises:
            StoreError: The file cannot be read.
        """
        row = self._database.query(
            "SELECT count(*), coalesce(sum(violation), 0), coalesce(sum(missing), 0), count(*) - count(violation)"
            " FROM audits WHERE certificate_id = ?",
            (certificate_id,),
        )[0]
        return AuditTotals(drawn=row[0], violations=row[1], missing=row[2], open=row[3])
