"""Answers kept for later pick-up, and the tasks that wait for one to become final."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from edgewise.contracts import FINAL_PROVISIONALS, Answer, Clock, Status
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


def _is_settled(answer: Answer) -> bool:
    return answer.status is Status.FINAL or answer.decision.reason in FINAL_PROVISIONALS


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class SqliteAnswers:
    """The answers in a database; implements `contracts.AnswerStore`.

    Args:
        database: The file.
        clock: The time.
        max_answers: The most answers kept; the oldest are forgotten first.
        max_age_s: Seconds an answer is kept.
    """

    def __init__(self, database: Database, clock: Clock, max_answers: int, max_age_s: float) -> None:
        self._database = database
        self._clock = clock
        self._max_answers = max_answers
        self._max_age_s = max_age_s
        # Counted here because counting rows on every put would read the whole table; nobody else writes the file.
        self._count: int = database.query("SELECT count(*) FROM answers")[0][0]
        self._lock = threading.Lock()
        self._waiters = Waiters()

    def put(self, tenant: str, answer: Answer) -> None:
        """Store an answer, durable when it returns, and wake who waits for it; a final one is never replaced.

        Raises:
            StoreError: The file cannot be written.
        """
        final = answer.status is Status.FINAL
        now = self._clock.time()
        key = (tenant, answer.id)
        with self._lock:
            with self._database.transaction() as connection:
                new = connection.execute("SELECT 1 FROM answers WHERE tenant = ? AND id = ?", key).fetchone() is None
                connection.execute(
                    "INSERT INTO answers (tenant, id, final, stored, answer) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (tenant, id) DO UPDATE SET"
                    " final = excluded.final, stored = excluded.stored, answer = excluded.answer"
                    " WHERE answers.final = 0",
                    (*key, final, now, encode_answer(answer)),
                )
                count = self._count + new
                removed = self._prune(connection, count, now, key)
            self._count = count - removed
        if removed:
            self._database.reclaim()
        if _is_settled(answer):
            self._waiters.wake(key)

    def _prune(self, connection: sqlite3.Connection, count: int, now: float, kept: Key) -> int:
        removed = connection.execute(
            "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers WHERE stored < ? LIMIT ?)",
            (now - self._max_age_s, _PRUNED_AT_ONCE),
        ).rowcount
        excess = min(count - removed - self._max_answers, _PRUNED_AT_ONCE)
        if excess > 0:
            # The clock may have been set back, so the answer just stored need not be the newest by its date.
            removed += connection.execute(
                "DELETE FROM answers WHERE rowid IN (SELECT rowid FROM answers"
                " WHERE NOT (tenant = ? AND id = ?) ORDER BY stored LIMIT ?)",
                (*kept, excess),
            ).rowcount
        return removed

    def get(self, tenant: str, request_id: str) -> Answer | None:
        """The newest answer, or None.

        Raises:
            StoreError: The file cannot be read.
        """
        rows = self._database.query("SELECT answer FROM answers WHERE tenant = ? AND id = ?", (tenant, request_id))
        return decode_answer(rows[0][0]) if rows else None

    async def wait_final(self, tenant: str, request_id: str, *, timeout_s: float) -> Answer | None:
        """Wait until the answer is settled or time is up; then the newest answer, or None.

        Settled is a final answer, and a provisional one whose reason says that no update will follow.

        Raises:
            StoreError: The file cannot be read.
        """
        # Waiting starts before looking, so that an answer stored in between still wakes us.
        with self._waiters.waiting((tenant, request_id)) as future:
            answer = self.get(tenant, request_id)
            if (answer is not None and _is_settled(answer)) or timeout_s <= 0:
                return answer
            await asyncio.wait([future], timeout=timeout_s)
        return self.get(tenant, request_id)

    def __len__(self) -> int:
        return self._count
