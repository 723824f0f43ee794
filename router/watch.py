"""Watching a text after its gate: confidence that collapses later. Pure.

The promise holds with it or without it: a watch turns answers that would have been local and final into escalated ones,
and never the reverse, so that at most as many final local answers differ from the cloud's as without.
"""

from __future__ import annotations

from collections import deque


class Watch:
    """Says when the mean log-probability of the latest tokens falls below a floor; from then on it stays said.

    Args:
        window: Tokens that the mean is taken over; before there are so many nothing is said.
        floor: In nats, below 0.
    """

    def __init__(self, window: int, floor: float) -> None:
        self._window = window
        self._floor = floor
        self._latest: deque[float] = deque()
        self._sum = 0.0
        self._is_collapsed = False

    def saw(self, logprob: float) -> bool:
        """Take the next token's natural log-probability; whether confidence has collapsed. NaN is none."""
        self._latest.append(logprob)
        self._sum += logprob
        if len(self._latest) > self._window:
            self._sum -= self._latest.popleft()
        if len(self._latest) == self._window and not self._sum >= self._floor * self._window:
            self._is_collapsed = True
        return self._is_collapsed
