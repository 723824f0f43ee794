"""Requests owed a final answer, oldest first."""

from __future__ import annotations

import threading

from edgewise.contracts import Clock, Request
from edgewise.errors import OutboxFullError
from edgewise.store.database import Database
from edgewise.store.records import decode_request, encode_request


class SqliteOutbox:
    """The outbox in a database; implements `contracts.Outbox`.

    Args:
        database: The file.
        clock: The time.
        max_pending: The most requests owed at once.
    """

    def __init__(self, database: Database, clock: Clock, max_pending: int) -> None:
        self._database = database
        self._clock = clock
        self._max_pending = max_pending
        # Counted here because counting rows on every put would read the whole table; nobody else writes the file.
        self._count: int = database.query("SELECT count(*) FROM outbox")[0][0]
        self._lock = threading.Lock()

    def put(self, request: Request) -> bool:
        """Owe an answer; durable when it returns. False, and nothing changes, where (tenant, id) is owed already.

        Raises:
            OutboxFullError: Its limit is reached.
            InputError: The request's item cannot be kept.
            StoreError: The file cannot be written.
        """
        row = (request.tenant, request.id, self._clock.time(), encode_request(request))
        with self._lock:
            if self._count >= self._max_pending and not self._has(request.tenant, request.id):
                raise OutboxFullError(
                    f"{self._count} requests already wait for the cloud.", "Try again when the cloud is back."
                )
            with self._database.transaction() as connection:
                added = connection.execute(
                    "INSERT INTO outbox (tenant, id, created, request) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", row
                ).rowcount
            self._count += added
        return added == 1

    def pending(self, limit: int) -> list[Request]:
        """The oldest owed requests, at most `limit`.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query("SELECT request FROM outbox ORDER BY position LIMIT ?", (limit,))
        return [decode_request(data) for (data,) in rows]

    def done(self, tenant: str, request_id: str) -> None:
        """Forget a request whose answer is stored; durable when it returns.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._lock:
            with self._database.transaction() as connection:
                removed = connection.execute(
                    "DELETE FROM outbox WHERE tenant = ? AND id = ?", (tenant, request_id)
                ).rowcount
            self._count -= removed

    def __len__(self) -> int:
        return self._count

    def _has(self, tenant: str, request_id: str) -> bool:
        return bool(self._database.query("SELECT 1 FROM outbox WHERE tenant = ? AND id = ?", (tenant, request_id)))
