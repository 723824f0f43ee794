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

_PATIENCE = 16
_MOST_PATIENCE = 1024
"""Predictions in the pool after which a model that was too slow is tried again: at first, and after many times."""

_FADING = 0.95


class Pace:
    """Whether a prediction takes less than handing it to another thread would.

    Nothing is known at first, and predictions go to the pool. One that was fast there is followed by some on the event
    loop itself, which show what they cost without a second thread; where most of them cost more than a hop, or later
    more than two, the next go to the pool again, more of them each time in a row.
    """

    def __init__(self) -> None:
        self.is_quick = False
        self.hop_s: float | None = None
        self._is_tried = False
        self._patience = 1
        self._next_patience = _PATIENCE
        self._seen = 0
        self._slow = 0

    def hop_takes(self, seconds: float) -> None:
        """To another thread and back takes so long."""
        self.hop_s = seconds

    def took_in_pool(self, seconds: float) -> None:
        """A prediction in a thread of the pool took so long, its wait in the queue left out."""
        if self.hop_s is None or self.is_quick:
            return
        self._patience -= 1
        if self._patience <= 0 and seconds < _TRY_BELOW_HOPS * self.hop_s:
            self._seen = self._slow = 0
            self.is_quick = self._is_tried = True

    def took_here(self, seconds: float) -> None:
        """A prediction took so long in the thread that wanted it, and none ran in the pool."""
        if not self.is_quick or self.hop_s is None:
            return
        self._seen += 1
        self._slow += seconds >= self.hop_s * (1.0 if self._is_tried else _LEAVE_ABOVE_HOPS)
        if self._slow >= _SLOW_IN_WINDOW:
            self._patience = self._next_patience
            self._next_patience = min(2 * self._next_patience, _MOST_PATIENCE)
            self.is_quick = False
        elif self._seen == _WINDOW:
            self._is_tried = False
            self._seen = self._slow = 0
            self._next_patience = _PATIENCE


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
