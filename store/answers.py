"""Answers kept for later pick-up, and the tasks that wait for one to become final."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from edgewise.contracts import Answer, Clock, Kept, Status
from edgewise.store.database import Database
from edgewise.store.records import decode_answer, encode_answer

Key: TypeAlias = tuple[str, str]
Waiter: TypeAlias = tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]

_PRUNED_AT_ONCE = 100
"""Rows that one put removes at most, so that none of them pays for a great clean-up."""


class Waiters:
    """Tasks of any event loop, woken from any thread, by key."""

    def __init__(self) -> None:
        self._by_key: dict[Key, set[Waiter]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def waiting(self, key: Key) -> Iterator[asyncio.Future[None]]:
        """Give a future of the running loop that `wake` resolves."""
        loop = asyncio.get_running_loop()
        waiter: Waiter = (loop, loop.create_future())
        with self._lock:
            self._by_key.setdefault(key, set()).add(waiter)
        try:
            yield waiter[1]
        finally:
            with self._lock:
                waiting = self._by_key.get(key)
                if waiting is not None:
                    waiting.discard(waiter)
                    if not waiting:
                        del self._by_key[key]

    def wake(self, key: Key) -> None:
        """Resolve every future that waits for `key`."""
        with self._lock:
            waiting = self._by_key.pop(key, set())
        for loop, future in waiting:
            # A loop that was closed under its waiter has nobody left to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, future)

    def __len__(self) -> int:
        return len(self._by_key)


def _write(
    connection: sqlite3.Connection, key: Key, final: bool, now: float, data: bytes, item: bytes | None
) -> tuple[int, int]:
    """Store an answer unless a final one is there; gives the rows and bytes that there are more by now."""
    found = connection.execute("SELECT final, length(answer) FROM answers WHERE tenant = ? AND id = ?", key).fetchone()
    if found is not None and found[0]:
        return 0, 0
    connection.execute(
        "INSERT INTO answers (tenant, id, final, stored, answer, item) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (tenant, id) DO UPDATE SET final = excluded.final, stored = excluded.stored,"
        " answer = excluded.answer, item = coalesce(excluded.item, item)",
        (*key, final, now, data, item),
    )
    return (1, len(data)) if found is None else (0, len(data) - found[1])


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class SqliteAnswers:
    """The answers in a database; implements `contracts.AnswerStore`.

    Args:
        database: The file.
        clock: The time.
        max_answers: The most answers kept; the oldest are forgotten first.
        max_bytes: The most bytes of answers kept, but for one that is larger.
        max_age_s: Seconds an answer is kept.
    """

    def __init__(self, database: Database, clock: Clock, *, max_answers: int, max_bytes: int, max_age_s: float) -> None:
        self._database = database
        self._clock = clock
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        # Counted here because counting rows on every put would read the whole table; nobody else writes the file.
        self._count: int
        self._bytes: int
        ((self._count, self._bytes),) = database.query("SELECT count(*), coalesce(sum(length(answer)), 0) FROM answers")
        self._lock = threading.Lock()
        self._waiters = Waiters()

    def put(self, tenant: str, answer: Answer, *, item: bytes | None = None) -> None:
        """Store an answer, durable when it returns, and wake who waits for it; a final one is never replaced.

        Args:
            tenant: Whose it is.
            answer: The answer.
            item: Digest of the task and the item that it answers; None leaves what is known.

        Raises:
            StoreError: The file cannot be written.
        """
        data, now, key = encode_answer(answer), self._clock.time(), (tenant, answer.id)
        with self._lock:
            with self._database.transaction() as connection:
                rows, size = _write(connection, key, answer.status is Status.FINAL, now, data, item)
                count, size = self._count + rows, self._bytes + size
                gone, freed = self._prune(connection, count, size, now, key)
            self._count, self._bytes = count - gone, size - freed
        if gone:
            self._database.reclaim()
        if answer.is_settled:
            self._waiters.wake(key)

    def _prune(self, connection: sqlite3.Connection, count: int, size: int, now: float, kept: Key) -> tuple[int, int]:
        """Forget what is too old, and the oldest until the limits hold; gives rows and bytes."""
        aged = connection.execute(
            "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers WHERE stored < ? LIMIT ?)"
            " RETURNING length(answer)",
            (now - self._max_age_s, _PRUNED_AT_ONCE),
        ).fetchall()
        gone, freed = len(aged), sum(length for (length,) in aged)
        if count - gone <= self._max_answers and size - freed <= self._max_bytes:
            return gone, freed
        # The clock may have been set back, so the answer just stored need not be the newest by its date.
        oldest = connection.execute(
            "SELECT rowid, length(answer) FROM answers WHERE NOT (tenant = ? AND id = ?) ORDER BY stored LIMIT ?",
            (*kept, _PRUNED_AT_ONCE),
        ).fetchall()
        for row, length in oldest:
            if count - gone <= self._max_answers and size - freed <= self._max_bytes:
                break
            connection.execute("DELETE FROM answers WHERE rowid = ?", (row,))
            gone, freed = gone + 1, freed + length
        return gone, freed

    def get(self, tenant: str, request_id: str) -> Answer | None:
        """The newest answer, or None.

        Raises:
            StoreError: The file cannot be read.
        """
        kept = self.find(tenant, request_id)
        return None if kept is None else kept.answer

    def find(self, tenant: str, request_id: str) -> Kept | None:
        """The newest answer and what it answers, or None.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query(
            "SELECT answer, item FROM answers WHERE tenant = ? AND id = ?", (tenant, request_id)
        )
        return Kept(decode_answer(rows[0][0]), rows[0][1]) if rows else None

    async def wait_final(self, tenant: str, request_id: str, *, timeout_s: float) -> Answer | None:
        """Wait until the answer is settled or time is up; then the newest answer, or None.

        Settled is a final answer, and a provisional one whose reason says that no update will follow.

        Raises:
            StoreError: The file cannot be read.
        """
        # Waiting starts before looking, so that an answer stored in between still wakes us.
        with self._waiters.waiting((tenant, request_id)) as future:
            answer = self.get(tenant, request_id)
            if (answer is not None and answer.is_settled) or timeout_s <= 0:
                return answer
            await asyncio.wait([future], timeout=timeout_s)
        return self.get(tenant, request_id)

    def __len__(self) -> int:
        return self._count
