"""In which order owed answers are asked for, and how many at a time. Pure: time is passed in.

Requests of one session are asked for one after the other, in the order in which they were owed; others side by side,
the oldest first, those that failed behind those that did not. So one that can never be answered holds up nobody but its
own session, and that no longer than its age allows.

Owns the order. The debts themselves are the outbox's, asking is `delivery`'s.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias

from edgewise.contracts import Debt

Key: TypeAlias = tuple[str, str]
"""Tenant and request id."""

_LONGEST_PAUSE_S = 600.0


def key_of(debt: Debt) -> Key:
    """The tenant and the id of an owed request."""
    return debt.tenant, debt.id


@dataclass
class _Item:
    debt: Debt
    number: int
    busy: bool = False
    attempts: int = 0
    queued: int = 0
    """The only entry of the queues that counts is the one with this number."""


class Backlog:
    """What is owed, in order.

    Args:
        retry_s: Half the seconds until the second attempt at an item that failed; doubled at every further one.
    """

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self._items: OrderedDict[Key, _Item] = OrderedDict()
        self._sessions: dict[tuple[str, str], OrderedDict[Key, None]] = {}
        self._ready: list[tuple[int, int, int, Key]] = []
        self._pausing: list[tuple[float, int, Key]] = []
        self._held_until = -math.inf
        self._busy = 0
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    @property
    def waiting(self) -> int:
        """How many nobody asks for at the moment."""
        return len(self._items) - self._busy

    def add(self, debt: Debt, *, busy: bool = False) -> None:
        """Owe one more.

        Args:
            debt: What is owed.
            busy: Whether somebody asks for it already.

        Raises:
            ValueError: It is owed already.
        """
        if key_of(debt) in self._items:
            raise ValueError(f"The answer to {debt.id} of {debt.tenant} is owed already.")
        item = self._items[key_of(debt)] = _Item(debt, self._number(), busy)
        self._busy += busy
        if debt.session is not None:
            self._sessions.setdefault((debt.tenant, debt.session), OrderedDict())[key_of(debt)] = None
        self._queue(item)

    def take(self, now: float) -> Debt | None:
        """The next one to ask for, which is busy from now on; None where none may be asked for now."""
        if now < self._held_until:
            return None
        while self._pausing and self._pausing[0][0] <= now:
            _, number, key = heapq.heappop(self._pausing)
            if (item := self._items.get(key)) is not None and item.queued == number:
                self._queue(item)
        while self._ready:
            *_, number, key = heapq.heappop(self._ready)
            if (item := self._items.get(key)) is not None and item.queued == number:
                item.busy, item.queued = True, 0
                self._busy += 1
                return item.debt
        return None

    def failed(self, key: Key, now: float) -> None:
        """Asking brought nothing: it pauses, longer and longer."""
        item = self._items.get(key)
        if item is not None:
            item.attempts += 1
            self._pause(item, now + min(self._retry_s * 2.0 ** min(item.attempts, 64), _LONGEST_PAUSE_S))

    def put_back(self, key: Key, now: float) -> None:
        """Asking brought nothing, likely not for the item: it pauses for the shortest time, and lets others pass."""
        item = self._items.get(key)
        if item is not None:
            item.number = self._number()
            self._pause(item, now + self._retry_s)

    def hold(self, seconds: float, now: float) -> None:
        """Let nobody be asked for so long, at most ten minutes: the cloud said so, whichever item it was about."""
        self._held_until = max(self._held_until, now + min(seconds, _LONGEST_PAUSE_S))

    def idle(self, key: Key) -> None:
        """Whoever asked for it does so no more, and brought nothing."""
        item = self._items.get(key)
        if item is not None:
            self._rest(item)
            self._queue(item)

    def settled(self, key: Key) -> None:
        """It is owed no more; the next of its session may be asked for."""
        item = self._items.pop(key, None)
        if item is None:
            return
        self._rest(item)
        line = self._line(item.debt)
        if line is None:
            return
        was_first = next(iter(line)) == key
        del line[key]
        if line and was_first:
            self._queue(self._items[next(iter(line))])
        elif not line:
            del self._sessions[item.debt.tenant, item.debt.session or ""]

    def seconds_to_next(self, now: float) -> float | None:
        """Seconds until one that pauses may be asked for, or all may again; None where none pauses."""
        if now < self._held_until:
            return self._held_until - now
        return max(0.0, self._pausing[0][0] - now) if self._pausing else None

    def owed_before(self, moment_s: float) -> list[Debt]:
        """What was owed before a moment, in seconds since the epoch, oldest first, up to the first that was not.

        What somebody asks for is left out: its answer may be about to come.
        """
        found = []
        for item in self._items.values():
            if item.debt.created_s >= moment_s:
                break
            if not item.busy:
                found.append(item.debt)
        return found

    def _queue(self, item: _Item) -> None:
        """Let it be asked for as soon as it is due, if nobody does and it is the first of its session."""
        line = self._line(item.debt)
        if item.busy or (line is not None and next(iter(line)) != key_of(item.debt)):
            return
        item.queued = self._number()
        heapq.heappush(self._ready, (item.attempts, item.number, item.queued, key_of(item.debt)))

    def _pause(self, item: _Item, due: float) -> None:
        self._rest(item)
        item.queued = self._number()
        heapq.heappush(self._pausing, (due, item.queued, key_of(item.debt)))

    def _rest(self, item: _Item) -> None:
        self._busy -= item.busy
        item.busy = False

    def _line(self, debt: Debt) -> OrderedDict[Key, None] | None:
        return None if debt.session is None else self._sessions[debt.tenant, debt.session]

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


class Ramp:
    """How many are asked for at the same time: one after the cloud came back, one more with every answer.

    That doubles it with every round trip, as TCP's slow start does (Jacobson 1988); a failure starts it anew.

    Args:
        most: The most at the same time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = 1

    def succeeded(self) -> None:
        """One was answered."""
        self.limit = min(self.limit + 1, self._most)

    def failed(self) -> None:
        """One was not."""
        self.limit = 1
