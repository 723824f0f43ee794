"""The durable store: one SQLite file with outbox, answers, webhooks' queue, audit log and spending."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

import msgspec

from edgewise.contracts import Clock
from edgewise.store.answers import SqliteAnswers
from edgewise.store.audits import SqliteAudits
from edgewise.store.database import Database
from edgewise.store.hooks import SqliteHooks
from edgewise.store.outbox import SqliteOutbox
from edgewise.store.spending import SqliteSpending


class StoreLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept.

    Attributes:
        max_pending: Requests owed a final answer; one more is refused.
        max_answers: Answers; the oldest are forgotten first.
        max_hooks: Deliveries owed to webhooks; the oldest are forgotten first.
        max_bytes: Bytes of owed requests, of answers, and of answers owed to webhooks: each of the three.
        max_answer_age_s: Seconds an answer is kept.
        max_audits: Audit draws; older ones are forgotten once they are settled and weighed, and stay counted. At least
            as many as a recertification takes.

    Raises:
        ValueError: A limit is not above 0.
    """

    max_pending: int = 10_000
    max_answers: int = 100_000
    max_hooks: int = 100_000
    max_bytes: int = 256 << 20
    max_answer_age_s: float = 7 * 24 * 3600.0
    max_audits: int = 100_000

    def __post_init__(self) -> None:
        if not all(limit > 0 for limit in msgspec.structs.astuple(self)):
            raise ValueError(f"Every limit of a store is above 0, not {self}.")


class SqliteStore:
    """Opens the file and owns it until `close`; usable from any thread and as a context manager.

    Writes reach the disk before they return (write-ahead log, synchronous = FULL).

    Args:
        path: The file, made with its folder if it is not there, or ":memory:" for a store that forgets.
        limits: How much is kept.
        clock: The time.

    Attributes:
        outbox: Requests owed a final answer.
        answers: Answers for later pick-up.
        hooks: Settled answers owed to webhooks.
        audits: Draws and verdicts.
        spending: What was spent on cloud calls.

    Raises:
        StoreError: The file is damaged, not ours, of a newer version, in use by another process, or cannot be written.
    """

    def __init__(self, path: Path | str, *, limits: StoreLimits | None = None, clock: Clock = time) -> None:
        limits = limits or StoreLimits()
        self._database = Database(path)
        try:
            self.outbox = SqliteOutbox(self._database, clock, limits.max_pending, limits.max_bytes)
            self.answers = SqliteAnswers(
                self._database,
                clock,
                max_answers=limits.max_answers,
                max_bytes=limits.max_bytes,
                max_age_s=limits.max_answer_age_s,
            )
            self.hooks = SqliteHooks(self._database, clock, limits.max_hooks, limits.max_bytes)
            self.audits = SqliteAudits(self._database, clock, limits.max_audits)
            self.spending = SqliteSpending(self._database)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Let go of the file; a second time does nothing."""
        self._database.close()

    def __enter__(self) -> SqliteStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
