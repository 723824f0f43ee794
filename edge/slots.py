"""What was computed of earlier turns, kept so that it need not be computed again.

Owns which sequence of tokens a turn goes on with, and who may ever see it: a slot belongs to one session of one tenant,
or to nobody, and then it holds no more than a prompt that was computed beforehand. Knows no text.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise.edge.genai import CHUNK, Engine, TokenSequence
from edgewise.errors import BundleError

Ids: TypeAlias = NDArray[np.int32]
Owner: TypeAlias = tuple[str, str]
"""Tenant and session."""

NO_IDS: Ids = np.empty(0, np.int32)


class Slot:
    """Room for one text and what was computed of it; for one thread at a time.

    Args:
        engine: The model.
        length: Tokens that it has room for, to begin with.
        kept: Whether it outlives the turn.

    Attributes:
        owner: Whose text it holds; None: nobody's.
    """

    def __init__(self, engine: Engine, length: int, *, kept: bool) -> None:
        self.owner: Owner | None = None
        self.kept = kept
        self.busy = True
        self.used = 0
        self._engine = engine
        self._length = self._limit = length
        self._sequence: TokenSequence | None = None
        self._ids = NO_IDS
        self._count = 0

    @property
    def ids(self) -> Ids:
        """The tokens that were computed."""
        return self._ids[: self._count]

    @property
    def grown(self) -> bool:
        """Whether it takes more memory than it was made for."""
        return self._sequence is not None and self._sequence.length > self._length

    def begin(self, ids: Ids, limit: int) -> int:
        """Make ready for a prompt: forget what does not begin it, and take the memory.

        Args:
            ids: Its tokens; the last one is always computed anew, since the logits after it are wanted.
            limit: Tokens that the text will ever have, more than the prompt.

        Returns:
            How many of the tokens need not be computed.

        Raises:
            BundleError: The runtime cannot.
        """
        self._limit = limit
        if self._sequence is None or ids.size >= self._sequence.length or not self.rewind(ids[:-1]):
            self.free()
            self._make_room(int(ids.size) + 1)
        return self._count

    def rewind(self, ids: Ids) -> bool:
        """Forget what does not begin these tokens; whether the runtime can, else nothing is known of the slot."""
        left = common(self.ids, ids)
        if self._sequence is not None and left < self._count:
            try:
                self._sequence.rewind(left)
            except BundleError:
                return False
        self._count = left
        return True

    def ahead(self, ids: Ids) -> Iterator[Ids]:
        """What `extend` has to be given, part by part, to go on by some tokens.

        The runtime cannot make a sequence longer: where there is no room, everything before them comes once more.

        Raises:
            BundleError: The runtime cannot.
        """
        end = self._count + int(ids.size)
        if end > self._text.length:
            ids = np.concatenate([self.ids, ids])
            self.free()
            self._make_room(end)
        return chunks(ids)

    def extend(self, ids: Ids) -> None:
        """Compute further tokens, at most `CHUNK` of them, for which there is room.

        Raises:
            BundleError: The runtime cannot.
        """
        end = self._count + int(ids.size)
        self._text.append(ids)
        self._ids[self._count : end] = ids
        self._count = end

    def logits(self) -> NDArray[np.float32]:
        """What the graph gives after the last token that was computed, shape (vocabulary,)."""
        return self._text.logits()

    def free(self) -> None:
        """Give the memory back, and forget everything."""
        if self._sequence is not None:
            self._sequence.close()
        self._sequence, self._ids, self._count = None, NO_IDS, 0

    @property
    def _text(self) -> TokenSequence:
        if self._sequence is None:
            raise RuntimeError("A slot was used before begin().")
        return self._sequence

    def _make_room(self, needed: int) -> None:
        if needed <= self._length:
            length = self._length if self.kept else min(self._limit, self._length)
        else:
            # Doubled, so that computing again costs no more than the text once more; never less than is needed.
            length = max(needed, min(self._limit, 2 * needed))
        self._sequence = self._engine.sequence(length)
        self._ids = np.empty(length, np.int32)


class Slots:
    """A bounded number of slots. Any thread may use it.

    Args:
        engine: The model.
        sessions: Sessions that are kept at most; 0 keeps none.
        length: Tokens that a slot has room for. A longer text is answered all the same, and nothing of it kept.
        prefixes: Beginnings of prompts to keep ready, each in a slot of its own beside those.
    """

    def __init__(self, engine: Engine, sessions: int, length: int, prefixes: Sequence[Ids] = ()) -> None:
        self._engine = engine
        self._length = length
        self._prefixes = [prefix for prefix in prefixes if 0 < prefix.size < length]
        self._sessions = sessions
        self._room = sessions + len(self._prefixes)
        self._slots: list[Slot] = []
        self._clock = count()
        self._lock = threading.Lock()
        self._closed = False
        self._refilling: threading.Thread | None = None

    @contextmanager
    def lease(self, ids: Ids, owner: Owner | None) -> Iterator[Slot]:
        """A slot for one turn.

        A session gets the idle slot of its own, or nobody's, whose text has most in common with its prompt, else the
        one that was least recently used. Where all are busy there is one that lives for this turn alone.

        Args:
            ids: The tokens of the prompt.
            owner: The session; None gets nobody's slot, and leaves nothing behind.
        """
        slot = self._take(ids, owner if self._sessions else None)
        try:
            yield slot
        except BundleError:
            slot.kept = False  # its state is not known any more
            raise
        finally:
            self._give_back(slot)

    def refill(self) -> None:
        """Compute the prefixes that no slot holds, as at the start and after a session went on with one.

        Raises:
            BundleError: The runtime cannot.
        """
        while (prefix := self._missing()) is not None:
            with self.lease(prefix, None) as slot:
                if not slot.kept:
                    return
                for part in chunks(prefix[slot.begin(prefix, self._length) :]):
                    if self._closed:
                        return
                    slot.extend(part)

    def close(self) -> None:
        """Free what is idle now, and what is busy when it is given back."""
        with self._lock:
            self._closed = True
            for slot in [slot for slot in self._slots if not slot.busy]:
                self._drop(slot)
        if self._refilling is not None:
            self._refilling.join()

    def _take(self, ids: Ids, owner: Owner | None) -> Slot:
        with self._lock:
            slot = None if self._closed else self._fitting(ids, owner)
            if slot is None:
                # Session-less turns leave nothing behind, so no session makes room for them.
                return Slot(self._engine, self._length, kept=False)
            slot.owner, slot.busy = owner, True
            return slot

    def _fitting(self, ids: Ids, owner: Owner | None) -> Slot | None:
        """A slot that is kept; None: there is no room for one."""
        idle = [slot for slot in self._slots if not slot.busy]
        own = [slot for slot in idle if slot.owner is not None and slot.owner == owner]
        # Nobody's slot is either empty or a prefix; one that begins otherwise stays for those who begin with it.
        nobodys = [slot for slot in idle if slot.owner is None and begins(slot.ids, ids)]
        best = max([*own, *nobodys], key=lambda slot: common(slot.ids, ids), default=None)
        if best is not None:
            return best
        if len(self._slots) < self._room:
            return self._new()
        # A turn without a session leaves nothing behind, so no session loses its slot for it.
        wanted = owner is not None or any(np.array_equal(ids, prefix) for prefix in self._prefixes)
        oldest = min((slot for slot in idle if slot.owner is not None), key=lambda slot: slot.used, default=None)
        if oldest is None or not wanted:
            return None
        oldest.owner = None
        if self._forget(oldest):
            return oldest
        self._drop(oldest)
        return self._new()

    def _new(self) -> Slot:
        slot = Slot(self._engine, self._length, kept=True)
        self._slots.append(slot)
        return slot

    def _give_back(self, slot: Slot) -> None:
        with self._lock:
            if not slot.kept or slot.grown or self._closed or not self._forget(slot):
                self._drop(slot)
                return
            for other in self._slots:  # two turns of one session at once: the later one is what goes on
                if slot.owner is not None and other.owner == slot.owner and not other.busy:
                    self._empty(other)
            slot.busy, slot.used = False, next(self._clock)
            quiet = not any(other.busy for other in self._slots)
        if quiet and self._missing() is not None:
            self._refill_beside()

    def _forget(self, slot: Slot) -> bool:
        """Leave in nobody's slot what is everybody's; whether the runtime can."""
        if slot.owner is not None:
            return True
        held = [prefix for prefix in self._prefixes if begins(prefix, slot.ids)]
        return slot.rewind(max(held, key=len, default=NO_IDS))

    def _empty(self, slot: Slot) -> None:
        slot.owner = None
        if not self._forget(slot):
            self._drop(slot)

    def _drop(self, slot: Slot) -> None:
        if slot in self._slots:
            self._slots.remove(slot)
        slot.free()

    def _missing(self) -> Ids | None:
        with self._lock:
            held = [slot.ids for slot in self._slots if slot.owner is None]
            return next((prefix for prefix in self._prefixes if not any(begins(prefix, ids) for ids in held)), None)

    def _refill_beside(self) -> None:
        """In a thread of its own: whoever gave the slot back waits for nothing."""
        with self._lock:
            if self._closed or (self._refilling is not None and self._refilling.is_alive()):
                return
            self._refilling = threading.Thread(target=self._refill_quietly, name="edgewise-prefill")
            self._refilling.start()

    def _refill_quietly(self) -> None:
        try:
            self.refill()
        except BundleError:
            return  # whoever needs the prefix computes it, and hears of the error


@contextmanager
def alone(engine: Engine, length: int) -> Iterator[Slot]:
    """A slot for one text of this many tokens, which begins with nothing and leaves nothing behind."""
    slot = Slot(engine, length, kept=False)
    try:
        yield slot
    finally:
        slot.free()


def chunks(ids: Ids) -> Iterator[Ids]:
    """The tokens, `CHUNK` at a time."""
    return (ids[start : start + CHUNK] for start in range(0, ids.size, CHUNK))


def common(first: Ids, second: Ids) -> int:
    """How many tokens two texts begin with alike."""
    size = min(first.size, second.size)
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if different.size else size


def begins(prefix: Ids, ids: Ids) -> bool:
    """Whether a text begins with these tokens."""
    return common(prefix, ids) == prefix.size
