"""What a language model's steps bring, and how it is counted. Loads no model."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise import telemetry
from edgewise.contracts import Source
from edgewise.telemetry import Metrics


@dataclass
class Stats:
    """What steps brought so far.

    Attributes:
        passes: Forward passes of the target that wrote tokens, counted once for each answer in them.
        tokens: Tokens that they wrote.
        guessed: Tokens that the draft guessed.
        accepted: Those of them that stood.
        drafts: Whether the next step of a batch like the last one is drafted.
        plain_rate: Tokens a second without the draft, of batches like the last one; None before it was measured.
        drafted_rate: The same with it.
    """

    passes: int = 0
    tokens: int = 0
    guessed: int = 0
    accepted: int = 0
    drafts: bool = False
    plain_rate: float | None = None
    drafted_rate: float | None = None


class TextMetrics:
    """Counts what an engine did since the last time.

    Args:
        metrics: Where it is counted.
        name: The model.
        has_draft: Whether a draft guesses for it.
    """

    def __init__(self, metrics: Metrics, name: str, *, has_draft: bool) -> None:
        self._name = name
        self._seen = Stats()
        self._tokens = metrics.counter(*telemetry.TOKENS)
        self._first = metrics.histogram(*telemetry.FIRST_TOKEN_SECONDS)
        self._drafting = _Drafting(metrics) if has_draft else None

    def first_token(self, seconds: float) -> None:
        """A first token came after so many seconds."""
        self._first.observe(seconds, Source.CLOUD)

    def observe(self, now: Stats) -> None:
        """Count what the engine did."""
        seen, self._seen = self._seen, now
        self._tokens.inc(Source.CLOUD, by=now.tokens - seen.tokens)
        if self._drafting is not None:
            self._drafting.observe(self._name, seen, now)


class _Drafting:
    def __init__(self, metrics: Metrics) -> None:
        self._passes = metrics.counter(*telemetry.TARGET_PASSES)
        self._guesses = metrics.counter(*telemetry.DRAFTED_TOKENS)
        self._rates = metrics.gauge(*telemetry.DECODE_RATE)
        self._drafts = metrics.gauge(*telemetry.DRAFTING)

    def observe(self, name: str, seen: Stats, now: Stats) -> None:
        accepted = now.accepted - seen.accepted
        self._passes.inc(name, by=now.passes - seen.passes)
        self._guesses.inc(name, "accepted", by=accepted)
        self._guesses.inc(name, "refused", by=now.guessed - seen.guessed - accepted)
        self._drafts.set(float(now.drafts), name)
        for decoding, rate in (("plain", now.plain_rate), ("drafted", now.drafted_rate)):
            if rate is not None:
                self._rates.set(rate, name, decoding)
