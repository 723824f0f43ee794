"""What every policy is made from: its settings, what it may use, and the kind that names it. Values only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edgewise.contracts import Clock, Policy, Spending


@dataclass(frozen=True)
class PolicySettings:
    """Which policy routes, and its options.

    Attributes:
        use: Its name in `POLICIES`.
        local_share: Of `random`: probability that a request is answered locally, in [0, 1].
        calls_per_day: Of `budgeted`: escalations a day, UTC; this or `money_per_day`.
        money_per_day: Of `budgeted`: what escalations may cost a day, in any currency.
        price_per_call: Of `budgeted`: what one costs, in the same currency.
    """

    use: str = "threshold"
    local_share: float = 0.5
    calls_per_day: float | None = None
    money_per_day: float | None = None
    price_per_call: float | None = None


class PolicyPlugs(NamedTuple):
    """What a policy may use beside its settings.

    Attributes:
        certified: The policy of the certificate in force.
        clock: Time.
        uniform: Numbers in [0, 1).
        spending: What was spent by day, or None where nothing keeps it.
    """

    certified: Policy
    clock: Clock
    uniform: Callable[[], float]
    spending: Spending | None


class PolicyKind(NamedTuple):
    """A policy as settings name it.

    Attributes:
        name: Its name in settings.
        build: Makes it; raises ConfigError where a setting that it needs is missing or out of range.
        certified: Whether it answers locally, as final, only what the certificate covers. The requests of one that does
            not are not audited, since there is no promise to test.
        rationed: Whether cloud calls are scarce, so that audits may not become more frequent after an alarm.
    """

    name: str
    build: Callable[[PolicySettings, PolicyPlugs], Policy]
    certified: bool
    rationed: bool = False
