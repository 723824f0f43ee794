"""The exact cache in this process.

Owns bytes and ages; whether a request may be answered from a cache at all is decided by the flow.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from edgewise.contracts import Answer, Clock, Status
from edgewise.store.records import encode_answer

_OVERHEAD_BYTES = 512
"""What an answer costs in Python objects beside its content."""


class _Entry(NamedTuple):
    answer: Answer
    size: int
    expires: float


class MemoryCache:
    """Final answers, the least recently used forgotten first; may be used from any thread.

    Args:
        max_bytes: Room for answers, in bytes; an answer larger than that is not kept.
        ttl_s: Seconds after which an answer is forgotten; reading does not prolong it.
        clock: The time.

    Raises:
        ValueError: `max_bytes` or `ttl_s` is not above 0.
    """

    def __init__(self, max_bytes: int, ttl_s: float, clock: Clock) -> None:
        if not (max_bytes > 0 and ttl_s > 0):
            raise ValueError(f"A cache of {max_bytes} bytes and {ttl_s} seconds keeps nothing.")
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes kept now."""
        return self._size

    def get(self, key: bytes) -> Answer | None:
        """The answer stored under `key`, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry.expires <= self._clock.monotonic():
                self._remove(key)
                return None
            self._entries.move_to_end(key)
            return entry.answer

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep a final answer.

        Raises:
            ValueError: The answer is provisional; a cache of those would break the certificate.
        """
        if answer.status is not Status.FINAL:
            raise ValueError(f"The answer to {answer.id} is {answer.status.value}; only final answers are cached.")
        size = len(key) + len(encode_answer(answer)) + _OVERHEAD_BYTES
        with self._lock:
            if key in self._entries:
                self._remove(key)
            if size > self._max_bytes:
                return
            self._entries[key] = _Entry(answer, size, self._clock.monotonic() + self._ttl_s)
            self._size += size
            while self._size > self._max_bytes:
                self._remove(next(iter(self._entries)))

    def _remove(self, key: bytes) -> None:
        self._size -= self._entries.pop(key).size
