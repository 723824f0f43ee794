"""What drafting brought to a client so far, counted, timed and shown among the metrics of its process."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgewise import telemetry
from edgewise.cloud.acceptance import break_even_rtt_ms
from edgewise.cloud.clients.pacing import Pace, Round
from edgewise.telemetry import Metrics


@dataclass(frozen=True)
class DraftFigures:
    """What drafting brought so far.

    Attributes:
        answers: Answers that were drafted.
        plain_answers: Answers that were streamed plainly.
        rounds: Round trips that verified a draft, with or without tokens in it.
        drafted: Tokens that were drafted.
        accepted: Those of them that stood.
        tokens: Tokens of the answers that were drafted.
        seconds: What those answers took.
        k: Tokens that the next round drafts.
        drafts: Whether the next answer is drafted.
        drafted_token_ms: A token of an answer by drafting, of late.
        plain_token_ms: A token of an answer by plain streaming; what the target computes for one before one was tried.
        plain_tokens_per_s: Tokens a second of plain streams behind the first one of each, of late; None before one was.
        rtt_ms: A round trip without computing, of late.
        break_even_rtt_ms: The round trip at which both ways are as fast, where both were measured.
    """

    answers: int = 0
    plain_answers: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    seconds: float = 0.0
    k: int = 0
    drafts: bool = True
    drafted_token_ms: float | None = None
    plain_token_ms: float | None = None
    plain_tokens_per_s: float | None = None
    rtt_ms: float | None = None
    break_even_rtt_ms: float | None = None

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that stood."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def tokens_per_round(self) -> float | None:
        """Tokens of answers that a round trip brought."""
        return self.tokens / self.rounds if self.rounds else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second of the answers that were drafted, waiting for the first included."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def drafted_tokens_per_s(self) -> float | None:
        """Tokens a second by drafting behind the first of each answer, of late."""
        return 1000 / self.drafted_token_ms if self.drafted_token_ms else None

    @property
    def speed_up(self) -> float | None:
        """Throughput against plain decoding, of late; None before both ways were measured."""
        drafted, plain = self.drafted_tokens_per_s, self.plain_tokens_per_s
        return drafted / plain if drafted and plain else None


@dataclass
class Meter:
    """Counts, and the running averages that the next choice goes by; fields as in `DraftFigures`."""

    answers: int = 0
    plain_answers: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    seconds: float = 0.0
    pace: Pace = field(default_factory=Pace)

    def after_round(self, seen: Round) -> None:
        """Note a round whose time says something: not the first one, which reads the prompt."""
        self.pace = self.pace.after_round(seen)

    def after_refusal(self) -> None:
        """Note that the server did not rule on drafts."""
        self.pace = self.pace.after_refusal()

    def after_ruling(self) -> None:
        """Note that it did, for a whole answer."""
        self.pace = self.pace.after_ruling()

    def after_drafted(self, tokens: int, seconds: float) -> None:
        """Note an answer that was drafted."""
        self.answers += 1
        self.tokens += tokens
        self.seconds += seconds
        self.pace = self.pace.after_answer()

    def after_plain(self, tokens: int, seconds: float) -> None:
        """Note an answer that was streamed: its tokens behind the first one, and what those took."""
        self.plain_answers += 1
        self.pace = self.pace.after_plain(tokens, 1000 * seconds).after_answer()

    def figures(self, k: int, *, drafts: bool) -> DraftFigures:
        """All of it, with what comes next."""
        pace, costs, even = self.pace, self.pace.costs, None
        if costs is not None and pace.acceptance is not None and pace.plain_tokens and pace.plain_token_ms:
            even = break_even_rtt_ms(pace.acceptance, k, costs, pace.plain_token_ms)
        return DraftFigures(
            answers=self.answers,
            plain_answers=self.plain_answers,
            rounds=self.rounds,
            drafted=self.drafted,
            accepted=self.accepted,
            tokens=self.tokens,
            seconds=self.seconds,
            k=k,
            drafts=drafts,
            drafted_token_ms=pace.drafted_token_ms,
            plain_token_ms=pace.plain_token_ms,
            plain_tokens_per_s=1000 * pace.plain_tokens / pace.plain_ms if pace.plain_ms else None,
            rtt_ms=costs.rtt_ms if costs else None,
            break_even_rtt_ms=even,
        )


class DraftMetrics:
    """Shows what drafting brought, once an answer; nothing is registered where nothing is drafted.

    Args:
        metrics: Where it is shown.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._seen = DraftFigures()
        self._rounds = metrics.counter(*telemetry.TARGET_PASSES)
        self._guesses = metrics.counter(*telemetry.DRAFTED_TOKENS)
        self._answers = metrics.counter(*telemetry.DRAFT_ANSWERS)
        self._drafts = metrics.gauge(*telemetry.DRAFTING)
        self._rates = metrics.gauge(*telemetry.DECODE_RATE)
        self._acceptance = metrics.gauge(*telemetry.DRAFT_ACCEPTANCE)
        self._tokens_per_round = metrics.gauge(*telemetry.DRAFT_TOKENS_PER_ROUND)
        self._round_trip = metrics.gauge(*telemetry.DRAFT_ROUND_TRIP)
        self._break_even = metrics.gauge(*telemetry.DRAFT_BREAK_EVEN)

    def observe(self, name: str, now: DraftFigures) -> None:
        """Show the figures of a target."""
        seen, self._seen = self._seen, now
        accepted = now.accepted - seen.accepted
        self._rounds.inc(name, by=now.rounds - seen.rounds)
        self._guesses.inc(name, "accepted", by=accepted)
        self._guesses.inc(name, "refused", by=now.drafted - seen.drafted - accepted)
        self._answers.inc(name, "drafted", by=now.answers - seen.answers)
        self._answers.inc(name, "plain", by=now.plain_answers - seen.plain_answers)
        self._drafts.set(float(now.drafts), name)
        self._rates.show(now.plain_tokens_per_s, name, "plain")
        self._rates.show(now.drafted_tokens_per_s, name, "drafted")
        self._acceptance.show(now.acceptance, name)
        self._tokens_per_round.show(now.tokens_per_round, name)
        self._round_trip.show(_seconds(now.rtt_ms), name)
        self._break_even.show(_seconds(now.break_even_rtt_ms), name)


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
