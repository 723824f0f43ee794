"""Whether a draft model pays: a pure rule over the measured speed of steps with it and without.

Knows no clock and no model. Both ways are tried in turn at first; then the faster one is taken, and the other one tried
again now and then, since what drafts are worth depends on what is asked.
"""

from __future__ import annotations

from collections import deque

TRIAL_STEPS = 8
"""Steps in a row by which a way is judged; the first of them is not counted, it pays for the change."""

REVIEW_STEPS = 400
"""Steps until the slower way is tried again: at half the speed that costs under 2 % of the time."""

MARGIN = 1.05
"""Drafting has to be so many times as fast as plain decoding: a gain that small is noise."""


class Worth:
    """Which way the next step goes, for batches of one size."""

    def __init__(self) -> None:
        self._seen: dict[bool, deque[tuple[int, float]]] = {way: deque(maxlen=TRIAL_STEPS - 1) for way in (False, True)}
        self._way = False
        self._steps = 0
        self._last = TRIAL_STEPS

    @property
    def drafts(self) -> bool:
        """Whether the next step is drafted."""
        return self._way

    def rate(self, *, drafted: bool) -> float | None:
        """Tokens a second of the last steps of a way; None before it was tried."""
        seen = self._seen[drafted]
        seconds = sum(taken for _, taken in seen)
        return sum(tokens for tokens, _ in seen) / seconds if seconds > 0 else None

    @property
    def break_even_s(self) -> float | None:
        """Seconds that a drafted step could take more and be as fast as plain decoding; None before both were tried.

        E t - c of Leviathan et al. 2023, theorem 3.8, as measured: what the tokens of a drafted step take plainly, less
        what the step takes. Below 0 drafting loses.
        """
        plain, drafted = self.rate(drafted=False), self._seen[True]
        seconds = sum(taken for _, taken in drafted)
        if not plain or seconds <= 0:
            return None
        return (sum(tokens for tokens, _ in drafted) / plain - seconds) / len(drafted)

    def observe(self, tokens: int, seconds: float) -> None:
        """Note a step of the way that `drafts` told.

        Args:
            tokens: Tokens of answers that it brought.
            seconds: What it took, drafting included.
        """
        self._steps += 1
        if self._steps > 1:
            self._seen[self._way].append((tokens, seconds))
        if self._steps >= self._last:
            self._turn()

    def _turn(self) -> None:
        plain, drafted = self.rate(drafted=False), self.rate(drafted=True)
        was_trial = self._last == TRIAL_STEPS
        if plain is None or drafted is None or not was_trial:
            # The other way has not been seen, or not for long.
            self._begin(not self._way, TRIAL_STEPS)
        else:
            self._begin(drafted > plain * MARGIN, REVIEW_STEPS)

    def _begin(self, way: bool, steps: int) -> None:
        self._steps = 0 if way is not self._way else 1
        self._way, self._last = way, steps
