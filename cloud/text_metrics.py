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
        drafted_passes: Those passes that checked guesses.
        drafted_tokens: Tokens that they wrote.
        break_even_s: See `worth.Worth.break_even_s`, of batches like the last one.
    """

    passes: int = 0
    tokens: int = 0
    guessed: int = 0
    accepted: int = 0
    drafts: bool = False
    plain_rate: float | None = None
    drafted_rate: float | None = None
    drafted_passes: int = 0
    drafted_tokens: int = 0
    break_even_s: float | None = None

    @property
    def acceptance(self) -> float | None:
        """Share of the guessed tokens that stood."""
        return self.accepted / self.guessed if self.guessed else None

    @property
    def tokens_per_round(self) -> float | None:
        """Tokens that a pass over guesses brought to an answer."""
        return self.drafted_tokens / self.drafted_passes if self.drafted_passes else None


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
        self._acceptance = metrics.gauge(*telemetry.DRAFT_ACCEPTANCE)
        self._tokens_per_round = metrics.gauge(*telemetry.DRAFT_TOKENS_PER_ROUND)
        self._break_even = metrics.gauge(*telemetry.DRAFT_BREAK_EVEN)

    def observe(self, name: str, seen: Stats, now: Stats) -> None:
        accepted = now.accepted - seen.accepted
        self._passes.inc(name, by=now.passes - seen.passes)
        self._guesses.inc(name, "accepted", by=accepted)
        self._guesses.inc(name, "refused", by=now.guessed - seen.guessed - accepted)
        self._drafts.set(float(now.drafts), name)
        self._rates.show(now.plain_rate, name, "plain")
        self._rates.show(now.drafted_rate, name, "drafted")
        self._acceptance.show(now.acceptance, name)
        self._tokens_per_round.show(now.tokens_per_round, name)
        self._break_even.show(now.break_even_s, name)
