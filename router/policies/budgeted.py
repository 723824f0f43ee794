"""A daily allowance for escalations, spent on the least confident requests first. Pure but for `contracts.Spending`.

What the certificate covers is answered locally, as ever. Of the rest, as many as the day's allowance is expected to pay
for are escalated, the lowest scores first; the others get the edge answer, provisional and uncertified, with no update
to follow. Owns how the allowance is spread over the day; what was spent is kept by whoever implements `Spending`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from datetime import UTC, datetime, timedelta

import msgspec

from edgewise.contracts import Action, Clock, Decision, Policy, Prediction, Reason, Request, Spending
from edgewise.errors import ConfigError
from edgewise.router.policies.base import PolicyKind, PolicyPlugs, PolicySettings

_DAY_S = 86_400
_WINDOW = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROUNDING = 1e-9


class Budgeted:
    """Escalates what the certificate does not cover while the allowance lasts, the least confident first.

    Args:
        certified: Decides what is answered locally.
        ration: Decides what may be escalated.
    """

    name = "budgeted"

    def __init__(self, certified: Policy, ration: Ration) -> None:
        self._certified = certified
        self._ration = ration

    def before(self, request: Request) -> Decision | None:
        """What is escalated unseen has no score, and is rationed like the least confident."""
        decision = self._certified.before(request)
        return None if decision is None else self._rationed(decision, math.nan)

    def after(self, request: Request, prediction: Prediction, score: float) -> Decision:
        """Local where the certificate covers it; else escalated or saved, as the ration says."""
        return self._rationed(self._certified.after(request, prediction, score), score)

    def _rationed(self, decision: Decision, score: float) -> Decision:
        if decision.action is Action.LOCAL:
            return decision
        if self._ration.grants(score):
            return msgspec.structs.replace(decision, policy=self.name)
        # The score that was ranked: NaN says of what was saved unseen that no threshold would have answered it here.
        return Decision(
            action=Action.PROVISIONAL,
            reason=Reason.SAVED,
            policy=self.name,
            score=score,
            threshold=decision.threshold,
        )


class Ration:
    """Spreads a day's allowance over the requests that want to be escalated.

    It is spent on the lowest share of scores that it is expected to pay for until the day ends, in UTC:

        afford = (allowance left / price) / (requests still expected today, at the rate of the latest ones)

    A request is granted its escalation where its rank among the latest 1000 scores lies below `afford`. Among equal
    scores every so many-th is granted, so that the share comes out as well where all scores are the same. NaN, which no
    score is, ranks lowest. Spending is recorded before the call, so the allowance is never exceeded.

    Args:
        allowance: What may be spent a day, in calls or money, above 0.
        price: What one escalation costs, in the same unit, above 0.
        spending: What was spent by day.
        clock: Time.
    """

    def __init__(self, allowance: float, price: float, spending: Spending, clock: Clock) -> None:
        self._allowance = allowance
        self._price = price
        self._spending = spending
        self._clock = clock
        self._latest: deque[tuple[float, float]] = deque()
        self._ranked: list[float] = []
        self._started = clock.monotonic()
        self._credit = 0.0
        self._open_day(int(clock.time() // _DAY_S), self._started)

    def grants(self, score: float) -> bool:
        """Whether a request of this score is escalated; what that costs is spent when it returns True."""
        now, time_s = self._clock.monotonic(), self._clock.time()
        self._follow_day(int(time_s // _DAY_S), now)
        rank = -math.inf if math.isnan(score) else score
        self._remember(rank, now)
        if not self._can_pay():
            return False
        self._credit += self._share_granted(rank, self._afford(now, _DAY_S - time_s % _DAY_S))
        if self._credit < 1 - _ROUNDING:
            return False
        self._credit -= 1
        self._spent = self._spending.spend(self._name_of_day, self._price)
        return True

    def _open_day(self, day: int, now: float) -> None:
        self._day, self._day_opened = day, now
        self._name_of_day = (_EPOCH + timedelta(days=day)).date().isoformat()
        self._spent = self._spending.spent(self._name_of_day)

    def _follow_day(self, day: int, now: float) -> None:
        """A new day brings a new allowance; a clock that was set back brings none, for a day at the longest."""
        if day > self._day or (day < self._day and now - self._day_opened >= _DAY_S):
            self._open_day(day, now)

    def _remember(self, rank: float, now: float) -> None:
        self._latest.append((now, rank))
        insort(self._ranked, rank)
        if len(self._latest) > _WINDOW:
            _, oldest = self._latest.popleft()
            del self._ranked[bisect_left(self._ranked, oldest)]

    def _can_pay(self) -> bool:
        return self._spent + self._price <= self._allowance * (1 + _ROUNDING)

    def _afford(self, now: float, left_s: float) -> float:
        """Share of the requests from this one to the end of the day that the allowance left pays for."""
        since = self._latest[0][0] if len(self._latest) == _WINDOW else self._started
        seen_s = max(now - since, _ROUNDING)
        expected = 1 + left_s * len(self._latest) / seen_s
        return (self._allowance - self._spent) / self._price / expected

    def _share_granted(self, rank: float, afford: float) -> float:
        """Share of the requests of this rank that lie in the lowest `afford` of all."""
        n = len(self._ranked)
        lowest, highest = bisect_left(self._ranked, rank) / n, bisect_right(self._ranked, rank) / n
        return min(1.0, max(0.0, (afford - lowest) / (highest - lowest)))


def _build(settings: PolicySettings, plugs: PolicyPlugs) -> Policy:
    if plugs.spending is None:
        raise ConfigError("The policy 'budgeted' has nowhere to keep what was spent.", "Give the router a spending.")
    allowance, price = _allowance(settings)
    return Budgeted(plugs.certified, Ration(allowance, price, plugs.spending, plugs.clock))


def _allowance(settings: PolicySettings) -> tuple[float, float]:
    """What may be spent a day, and what one escalation costs."""
    calls, money = settings.calls_per_day, settings.money_per_day
    if (calls is None) == (money is None):
        raise ConfigError(
            f"policy.calls_per_day is {calls!r} and policy.money_per_day is {money!r}.",
            "The policy 'budgeted' takes one of the two.",
        )
    if calls is not None:
        return _positive("calls_per_day", calls), 1.0
    return _positive("money_per_day", money), _positive("price_per_call", settings.price_per_call)


def _positive(name: str, value: float | None) -> float:
    if value is None or not 0 < value < math.inf:
        raise ConfigError(f"policy.{name} is {value!r}.", "Give a number above 0.")
    return value


KIND = PolicyKind("budgeted", _build, certified=True, rationed=True)
