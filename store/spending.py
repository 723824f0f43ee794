"""What was spent on cloud calls, by day."""

from __future__ import annotations

import math

from edgewise.store.database import Database


class SqliteSpending:
    """Spending in a database; implements `contracts.Spending`.

    Args:
        database: The file.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def spent(self, day: str) -> float:
        """Calls or money spent on a day, ISO 8601 date, UTC.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query("SELECT amount FROM spending WHERE day = ?", (day,))
        return float(rows[0][0]) if rows else 0.0

    def spend(self, day: str, amount: float) -> float:
        """Add to a day's spending; returns the day's total, durable when it returns.

        Raises:
            ValueError: The amount is negative or not a finite number.
            StoreError: The file cannot be written.
        """
        if not (math.isfinite(amount) and amount >= 0):
            raise ValueError(f"{amount!r} cannot be spent; an amount is a finite number, 0 or more.")
        with self._database.transaction() as connection:
            ((total,),) = connection.execute(
                "INSERT INTO spending (day, amount) VALUES (?, ?)"
                " ON CONFLICT (day) DO UPDATE SET amount = amount + excluded.amount RETURNING amount",
                (day, amount),
            ).fetchall()
        return float(total)
