"""What predictions and waits take, as measured: whether to run a prediction here, and how much time to set aside.

Pure: seconds are passed in. Owns the rules alone; who measures and who runs what is `inference`'s and the flow's.
"""

from __future__ import annotations

_TRY_BELOW_HOPS = 3.0
"""A prediction that took so many hops in a thread of the pool, where it may have waited for the interpreter, is tried
on the event loop: at worst it holds that up a few times for as long."""

_LEAVE_ABOVE_HOPS = 2.0
"""What was found to be quick goes to the pool again only once it takes twice as long as a hop did: machines have slow
moments, in which a hop is slow too."""

_WINDOW = 8
_SLOW_IN_WINDOW = 5
"""Most of a window: a few slow predictions are the doing of a busy machine."""

_MOST_LATE = 20.0
"""What the slow ones of a window may take together, in the time that one may take: a single one that is very slow, or
some that are rather slow, end it at once."""

_LIKE = 2
"""How many times as large as the largest that was fast in the pool an item may be to run on the event loop."""

_PATIENCE = 16
_MOST_PATIENCE = 1024
"""Predictions in the pool after which a model that was too slow is tried again: at first, and after many times."""

_FADING = 0.95


class Pace:
    """Whether a prediction takes less than handing it to another thread would.

    Nothing is known at first, and predictions go to the pool. One that was fast there is followed by some on the event
    loop itself, which show what they cost without a second thread; where most of them cost more than a hop, or later
    more than two, the next go to the pool again, more of them each time in a row. Whatever is much larger than what was
    fast in the pool goes there anyway.
    """

    def __init__(self) -> None:
        self.is_quick = False
        self.hop_s: float | None = None
        self._largest = 0
        self._is_tried = False
        self._patience = 1
        self._next_patience = _PATIENCE
        self._seen = 0
        self._slow = 0
        self._late = 0.0

    def is_quick_for(self, size: int) -> bool:
        """Whether an item of that size takes less than a hop."""
        return self.is_quick and size <= self._largest

    def hop_takes(self, seconds: float) -> None:
        """To another thread and back takes so long."""
        self.hop_s = seconds

    def took_in_pool(self, seconds: float, size: int) -> None:
        """A prediction of an item of that size took so long in a thread of the pool, its wait in the queue left out."""
        if self.hop_s is None:
            return
        is_fast = seconds < _TRY_BELOW_HOPS * self.hop_s
        if is_fast:
            self._largest = max(self._largest, _LIKE * size)
        if self.is_quick:
            return
        self._patience -= 1
        if self._patience <= 0 and is_fast:
            self._begin_window()
            self.is_quick = self._is_tried = True

    def took_here(self, seconds: float) -> None:
        """A prediction took so long in the thread that wanted it, and none ran in the pool."""
        if not self.is_quick or self.hop_s is None:
            return
        self._seen += 1
        limit_s = self.hop_s * (1.0 if self._is_tried else _LEAVE_ABOVE_HOPS)
        if seconds >= limit_s:
            self._slow += 1
            self._late += seconds / limit_s
        if self._slow >= _SLOW_IN_WINDOW or self._late >= _MOST_LATE:
            self._patience = self._next_patience
            self._next_patience = min(2 * self._next_patience, _MOST_PATIENCE)
            self.is_quick = False
        elif self._seen == _WINDOW:
            self._is_tried = False
            self._begin_window()
            self._next_patience = _PATIENCE

    def _begin_window(self) -> None:
        self._seen = self._slow = 0
        self._late = 0.0


class Recent:
    """The longest of recent durations: what to set aside so that the next one is over in time.

    Args:
        seconds: What is set aside before anything was seen.
    """

    def __init__(self, seconds: float) -> None:
        self._first = seconds
        self._longest: float | None = None

    @property
    def seconds(self) -> float:
        """The longest; one seen long ago counts less and less."""
        return self._first if self._longest is None else self._longest

    def took(self, seconds: float) -> None:
        """Another one took so long."""
        self._longest = seconds if self._longest is None else max(seconds, _FADING * self._longest)
