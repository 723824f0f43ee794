"""Settled answers owed to webhooks, oldest first."""

from __future__ import annotations

import logging
import sqlite3
import threading

from edgewise.contracts import Answer, Clock, Hook
from edgewise.store.database import Database
from edgewise.store.records import decode_answer, encode_answer

_log = logging.getLogger("edgewise.store")
_DROPPED_AT_ONCE = 100
"""Rows that one put removes at most, so that none of them pays for a great clean-up."""


class SqliteHooks:
    """The queue of webhooks in a database; implements `contracts.HookQueue`.

    A full queue forgets the oldest: the answers themselves are kept, and a target that is away must not keep requests
    from being answered.

    Args:
        database: The file.
        clock: The time.
        max_hooks: The most deliveries owed at once.
        max_bytes: The most bytes of answers owed at once.
    """

    def __init__(self, database: Database, clock: Clock, max_hooks: int, max_bytes: int) -> None:
        self._database = database
        self._clock = clock
        self._max_hooks = max_hooks
        self._max_bytes = max_bytes
        self._count: int
        self._bytes: int
        ((self._count, self._bytes),) = database.query("SELECT count(*), coalesce(sum(length(answer)), 0) FROM hooks")
        self._dropped = 0
        self._lock = threading.Lock()

    @property
    def dropped(self) -> int:
        """Deliveries that were forgotten for want of room since this process opened the file."""
        return self._dropped

    def put(self, target: str, tenant: str, answer: Answer) -> None:
        """Owe a settled answer to a webhook, durable when it returns.

        A second time under the same (target, tenant, id) changes nothing while the first is owed.

        Raises:
            StoreError: The file cannot be written.
        """
        data, now = encode_answer(answer), self._clock.time()
        with self._lock:
            with self._database.transaction() as connection:
                added = connection.execute(
                    "INSERT INTO hooks (target, tenant, id, created, due, answer) VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT DO NOTHING",
                    (target, tenant, answer.id, now, now, data),
                ).rowcount
                count, size = self._count + added, self._bytes + added * len(data)
                gone, room = self._drop(connection, count, size)
            self._count, self._bytes = count - gone, size - room
            self._tell(gone)
        if gone:
            self._database.reclaim()

    def due(self, now_s: float, limit: int) -> list[Hook]:
        """The oldest that may be delivered now, at most `limit`.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query(
            "SELECT position, target, tenant, answer, created, attempts FROM hooks"
            " WHERE due <= ? ORDER BY position LIMIT ?",
            (now_s, limit),
        )
        return [
            Hook(
                position=position,
                target=target,
                tenant=tenant,
                answer=decode_answer(data),
                created_s=created,
                attempts=attempts,
            )
            for position, target, tenant, data, created, attempts in rows
        ]

    def retry(self, position: int, due_s: float) -> None:
        """A delivery failed; not again before `due_s`, seconds since the epoch.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE hooks SET due = ?, attempts = attempts + 1 WHERE position = ?", (due_s, position)
            )

    def done(self, position: int) -> None:
        """Delivered, or given up: forget it.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._lock:
            with self._database.transaction() as connection:
                removed = connection.execute(
                    "DELETE FROM hooks WHERE position = ? RETURNING length(answer)", (position,)
                ).fetchall()
            self._count -= len(removed)
            self._bytes -= sum(length for (length,) in removed)
        if removed:
            self._database.reclaim()

    def __len__(self) -> int:
        return self._count

    def _drop(self, connection: sqlite3.Connection, count: int, size: int) -> tuple[int, int]:
        """Forget the oldest, but never the newest, until the limits hold; gives rows and bytes."""
        rows, room = count - self._max_hooks, size - self._max_bytes
        if count < 2 or (rows <= 0 and room <= 0):
            return 0, 0
        gone = freed = 0
        oldest = connection.execute(
            "SELECT position, length(answer) FROM hooks ORDER BY position LIMIT ?", (min(count - 1, _DROPPED_AT_ONCE),)
        ).fetchall()
        for position, length in oldest:
            if gone >= rows and freed >= room:
                break
            connection.execute("DELETE FROM hooks WHERE position = ?", (position,))
            gone, freed = gone + 1, freed + length
        return gone, freed

    def _tell(self, gone: int) -> None:
        if gone and not self._dropped:
            _log.error("The queue of webhooks is full: the oldest deliveries are forgotten. Their answers are kept.")
        self._dropped += gone
