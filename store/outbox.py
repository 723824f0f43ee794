"""Requests owed a final answer, oldest first."""

from __future__ import annotations

import threading

from edgewise.contracts import Clock, Debt, Request
from edgewise.errors import OutboxFullError
from edgewise.store.database import Database
from edgewise.store.records import decode_request, encode_request


class SqliteOutbox:
    """The outbox in a database; implements `contracts.Outbox`.

    Args:
        database: The file.
        clock: The time.
        max_pending: The most requests owed at once.
        max_bytes: The most bytes of requests owed at once.
    """

    def __init__(self, database: Database, clock: Clock, max_pending: int, max_bytes: int) -> None:
        self._database = database
        self._clock = clock
        self._max_pending = max_pending
        self._max_bytes = max_bytes
        # Counted here because counting rows on every put would read the whole table; nobody else writes the file.
        self._count: int
        self._bytes: int
        ((self._count, self._bytes),) = database.query("SELECT count(*), coalesce(sum(length(request)), 0) FROM outbox")
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of the owed requests."""
        return self._bytes

    def put(self, request: Request) -> bool:
        """Owe an answer; durable when it returns. False, and nothing changes, where (tenant, id) is owed already.

        Raises:
            OutboxFullError: One of its limits is reached.
            InputError: The request's item cannot be kept.
            StoreError: The file cannot be written.
        """
        data = encode_request(request)
        row = (request.tenant, request.id, self._clock.time(), data, request.session)
        with self._lock:
            if self._excess(len(data)) != (0, 0) and not self._has(request.tenant, request.id):
                self._check_size(len(data))
                raise OutboxFullError(
                    f"{self._count} requests of {self._bytes} bytes already wait for the cloud.",
                    "Try again when the cloud is back.",
                )
            with self._database.transaction() as connection:
                added = connection.execute(
                    "INSERT INTO outbox (tenant, id, created, request, session) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT DO NOTHING",
                    row,
                ).rowcount
            self._count += added
            self._bytes += added * len(data)
        return added == 1

    def in_the_way(self, request: Request) -> list[Debt]:
        """The oldest owed requests that have to go before this one fits; none where it fits.

        Raises:
            OutboxFullError: It would not fit into an empty outbox.
            InputError: The request's item cannot be kept.
            StoreError: The file cannot be read.
        """
        size = len(encode_request(request))
        self._check_size(size)
        with self._lock:
            rows, room = self._excess(size)
            found = []
            for *debt, length in self._database.query(_DEBTS_WITH_LENGTH, (max(rows, room),)):
                if rows <= 0 and room <= 0:
                    break
                found.append(Debt(*debt))
                rows, room = rows - 1, room - length
        return found

    def pending(self, limit: int) -> list[Request]:
        """The oldest owed requests, at most `limit`.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query("SELECT request FROM outbox ORDER BY position LIMIT ?", (limit,))
        return [decode_request(data) for (data,) in rows]

    def debts(self) -> list[Debt]:
        """Everything that is owed, oldest first, without the content.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query("SELECT tenant, id, session, created FROM outbox ORDER BY position")
        return [Debt(*row) for row in rows]

    def request(self, tenant: str, request_id: str) -> Request | None:
        """One owed request, or None.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query("SELECT request FROM outbox WHERE tenant = ? AND id = ?", (tenant, request_id))
        return decode_request(rows[0][0]) if rows else None

    def done(self, tenant: str, request_id: str) -> None:
        """Forget a request whose answer is stored; durable when it returns.

        Raises:
            StoreError: The file cannot be written.
        """
        with self._lock:
            with self._database.transaction() as connection:
                removed = connection.execute(
                    "DELETE FROM outbox WHERE tenant = ? AND id = ? RETURNING length(request)", (tenant, request_id)
                ).fetchall()
            self._count -= len(removed)
            self._bytes -= sum(length for (length,) in removed)
        if removed:
            self._database.reclaim()

    def __len__(self) -> int:
        return self._count

    def _excess(self, size: int) -> tuple[int, int]:
        """Rows and bytes that have to go before one more of `size` bytes fits."""
        return max(0, self._count + 1 - self._max_pending), max(0, self._bytes + size - self._max_bytes)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise OutboxFullError(
                f"The request takes {size} bytes; {self._max_bytes} may wait for the cloud.",
                "Send a smaller item, or allow more.",
            )

    def _has(self, tenant: str, request_id: str) -> bool:
        return bool(self._database.query("SELECT 1 FROM outbox WHERE tenant = ? AND id = ?", (tenant, request_id)))


_DEBTS_WITH_LENGTH = "SELECT tenant, id, session, created, length(request) FROM outbox ORDER BY position LIMIT ?"
