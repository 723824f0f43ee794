"""What drafting over a network costs and brings, as measured, and what follows from it. Pure.

Owns the running averages and the two choices made by them: how many tokens to draft a round, and whether to draft at
all. The formulas are `acceptance`'s; times are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgewise.cloud.acceptance import Costs, best_k

FIRST_K = 4
"""Drafted tokens a round before anything was measured."""

MOST_K = 16
"""Beyond this a round brings next to nothing more, at any rate of acceptance seen with real pairs of models."""

TRIALS = 4
"""So many answers go both ways in turn before anything is chosen: the first ones pay for much that is cold."""

REVIEW = 16
"""Of so many answers one goes the way that seems slower, to measure it again; so many stream after a refusal."""

MOST_REVIEW = 1024
"""Each further refusal in a row makes it twice as many, up to this: a server may never rule on drafts."""

_KEEP = 0.95
"""How much of what was known counts after another round: half is forgotten after some 14."""


@dataclass(frozen=True)
class Line:
    """A straight line through points, by least squares, in which older points count less."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def through(self, x: float, y: float) -> Line:
        """The line that has seen one point more."""
        return Line(
            _KEEP * self.weight + 1,
            _KEEP * self.x + x,
            _KEEP * self.y + y,
            _KEEP * self.xx + x * x,
            _KEEP * self.xy + x * y,
        )

    def fit(self) -> tuple[float, float]:
        """Its height at 0 and its slope, neither below 0; without a slope where all points share one x."""
        if not self.weight:
            return 0.0, 0.0
        spread = self.weight * self.xx - self.x**2
        slope = (self.weight * self.xy - self.x * self.y) / spread if spread > 1e-9 * self.weight**2 else 0.0
        slope = min(max(slope, 0.0), self.y / self.x if self.x else 0.0)
        return (self.y - slope * self.x) / self.weight, slope


@dataclass(frozen=True)
class Round:
    """One round of drafting, measured.

    Attributes:
        drafted: Tokens that were drafted.
        accepted: Those that stood.
        draft_ms: What drafting took.
        compute_ms: What the target took, by its own word.
        wall_ms: From sending the draft to having the reply.
    """

    drafted: int
    accepted: int
    draft_ms: float
    compute_ms: float
    wall_ms: float


@dataclass(frozen=True)
class Pace:
    """What was measured so far. All counts and times are sums in which older rounds count less.

    Attributes:
        trials: Drafted tokens that the target looked at: those behind a wrong one are not.
        stood: Those that it accepted.
        drafted: Drafted tokens.
        draft_ms: Milliseconds that they took.
        rounds: Rounds.
        network_ms: Milliseconds of them that are neither drafting nor computing.
        compute: Milliseconds of the target by drafted tokens.
        drafted_tokens: Tokens of answers that rounds brought.
        drafted_ms: Milliseconds that they took.
        plain_tokens: Tokens of plain streams.
        plain_ms: Milliseconds that they took, behind the first one of each.
        answers: How many answers there were, of both kinds.
        refusals: How often in a row the server did not rule on drafts.
        waits: Answers that stream before it is asked again.
    """

    trials: float = 0.0
    stood: float = 0.0
    drafted: float = 0.0
    draft_ms: float = 0.0
    rounds: float = 0.0
    network_ms: float = 0.0
    compute: Line = Line()
    drafted_tokens: float = 0.0
    drafted_ms: float = 0.0
    plain_tokens: float = 0.0
    plain_ms: float = 0.0
    answers: int = 0
    refusals: int = 0
    waits: int = 0

    def after_round(self, seen: Round) -> Pace:
        """What is known after another round."""
        return replace(
            self,
            trials=_KEEP * self.trials + min(seen.drafted, seen.accepted + 1),
            stood=_KEEP * self.stood + seen.accepted,
            drafted=_KEEP * self.drafted + seen.drafted,
            draft_ms=_KEEP * self.draft_ms + seen.draft_ms,
            rounds=_KEEP * self.rounds + 1,
            network_ms=_KEEP * self.network_ms + max(0.0, seen.wall_ms - seen.compute_ms),
            compute=self.compute.through(seen.drafted, seen.compute_ms),
            drafted_tokens=_KEEP * self.drafted_tokens + seen.accepted + 1,
            drafted_ms=_KEEP * self.drafted_ms + seen.draft_ms + seen.wall_ms,
        )

    def after_plain(self, tokens: int, ms: float) -> Pace:
        """What is known after a plain stream of `tokens` behind its first one, which took `ms`."""
        if tokens < 1:
            return self
        kept = _KEEP**4  # an answer says as much as a few rounds
        return replace(self, plain_tokens=kept * self.plain_tokens + tokens, plain_ms=kept * self.plain_ms + ms)

    def after_answer(self) -> Pace:
        """What is known after another answer, of either kind."""
        return replace(self, answers=self.answers + 1, waits=max(0, self.waits - 1))

    def after_refusal(self) -> Pace:
        """What is known after the server did not rule on drafts."""
        return replace(self, refusals=self.refusals + 1, waits=min(REVIEW << min(self.refusals, 16), MOST_REVIEW))

    def after_ruling(self) -> Pace:
        """What is known after it did."""
        return replace(self, refusals=0, waits=0)

    @property
    def acceptance(self) -> float | None:
        """Probability that a drafted token stands, given that those before it do; None before any was looked at."""
        return self.stood / self.trials if self.trials else None

    @property
    def costs(self) -> Costs | None:
        """What a round takes; None before there was one."""
        if not self.rounds:
            return None
        base, slope = self.compute.fit()
        return Costs(
            draft_ms=self.draft_ms / self.drafted if self.drafted else 0.0,
            verify_ms=base,
            verify_token_ms=slope,
            rtt_ms=self.network_ms / self.rounds,
        )

    @property
    def drafted_token_ms(self) -> float | None:
        """A token of an answer that was drafted; None before there was one."""
        return self.drafted_ms / self.drafted_tokens if self.drafted_tokens else None

    @property
    def plain_token_ms(self) -> float | None:
        """A token of a plain stream; before there was one what the target takes for one, None before that is known."""
        if self.plain_tokens:
            return self.plain_ms / self.plain_tokens
        return self.costs.verify_ms if self.costs else None

    def k(self, most: int = MOST_K) -> int:
        """How many tokens to draft a round."""
        if self.acceptance is None or self.costs is None:
            return min(FIRST_K, most)
        return best_k(self.acceptance, self.costs, most)

    @property
    def drafts(self) -> bool:
        """Whether the next answer is drafted: the faster way, and now and then the other one, to measure it."""
        if self.waits:
            return False
        drafted, plain = self.drafted_token_ms, self.plain_token_ms
        if self.answers < TRIALS or drafted is None or plain is None:
            return self.answers % 2 == 0
        return (drafted <= plain) is (self.answers % REVIEW != REVIEW - 1)
