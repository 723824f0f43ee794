"""What a router is set to and what is plugged into it. Values only."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edgewise.contracts import (
    Answer,
    AnswerStore,
    AuditLog,
    Clock,
    Mode,
    Outbox,
    Request,
    ResponseCache,
    SharedCache,
    Spending,
)
from edgewise.errors import RequestError
from edgewise.router.policies import PolicySettings
from edgewise.router.stages import GuardSettings
from edgewise.telemetry import Metrics


@dataclass(frozen=True)
class Profile:
    """The latency promise of a use case; requests name it in place of a budget.

    Attributes:
        budget_ms: Budget of its requests.
        mode: Mode of its requests; None takes the router's.
    """

    budget_ms: float
    mode: Mode | None = None


@dataclass(frozen=True)
class TextSettings:
    """How a router answers where its edge model writes texts.

    Attributes:
        threads: Texts that are written at the same time.
        gate_ms: Milliseconds from a request's arrival by which the tokens that its score needs must be there; None
            waits for them.
        watch_window: Tokens over which a text is watched after its gate.
        watch_floor: Mean log-probability of those, in nats, below which confidence has collapsed; None watches nothing.
    """

    threads: int = max(1, (os.cpu_count() or 1) // 2)
    gate_ms: float | None = None
    watch_window: int = 16
    watch_floor: float | None = None


@dataclass(frozen=True)
class RouterSettings:
    """How a router behaves where a request does not say.

    Attributes:
        mode: Mode of requests that name none.
        budget_ms: Budget of requests that name none; None waits for the cloud up to its time-out.
        cloud_timeout_s: Longest a cloud call may take, also in the background.
        policy: What routes guarded and speculative requests.
        audit_share: Probability with which a request is audited.
        audit_verdict_deadline_s: Seconds for which an audited local answer may wait for a cloud that is away.
        guard: What an audit alarm leads to.
        slow_s: Seconds after which a cloud call counts as failed; None goes by what calls usually take.
        attempts: Cloud calls for one request at most, where a connection fails or the cloud is asked too much.
        hedge_share: Second calls beside slow ones, by calls, at most.
        failures_to_open: Failures, half of the latest calls, that open the breaker.
        cool_down_s: Seconds between probes of a cloud that fails.
        max_cool_down_s: The most that this grows to while the cloud fails again soon after each good probe.
        owed_s: Seconds after which a final answer is owed no more.
        drop_oldest: Whether the oldest owed requests make room where the outbox is full; else one more is refused.
        reference_check_s: Seconds between checks that the cloud still is the certified one, while `running`.
        inference_threads: Edge predictions that run at the same time, but for those that are quicker than a thread is
            woken.
        profiles: Named latency promises.
        text: What else holds for texts.
    """

    mode: Mode = Mode.GUARDED
    budget_ms: float | None = None
    cloud_timeout_s: float = 30.0
    policy: PolicySettings = field(default_factory=PolicySettings)
    audit_share: float = 0.01
    audit_verdict_deadline_s: float = 900.0
    guard: GuardSettings = field(default_factory=GuardSettings)
    slow_s: float | None = None
    attempts: int = 3
    hedge_share: float = 0.02
    failures_to_open: int = 3
    cool_down_s: float = 5.0
    max_cool_down_s: float = 60.0
    owed_s: float = 604_800.0
    drop_oldest: bool = False
    reference_check_s: float = 60.0
    inference_threads: int = os.cpu_count() or 1
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    text: TextSettings = TextSettings()

    def guard_of(self, *, rationed: bool) -> GuardSettings:
        """The answer to an alarm; where calls are rationed it audits no more requests than before the alarm."""
        if not rationed:
            return self.guard
        return replace(self.guard, recertify_share=min(self.guard.recertify_share, self.audit_share))

    def promise(self, request: Request) -> tuple[Mode, float | None]:
        """Mode and budget of a request: its own, else its profile's, else the router's.

        A gateway that asks this one wants a final answer, and has told its own caller something by then: its patience
        is the budget here.

        Raises:
            RequestError: It names a profile that does not exist.
        """
        profile = None
        if request.profile is not None and (profile := self.profiles.get(request.profile)) is None:
            known = ", ".join(sorted(self.profiles)) or "none is configured"
            raise RequestError("profile", f"There is no profile {request.profile!r}.", f"Known profiles: {known}.")
        mode = request.mode or (profile.mode if profile else None) or self.mode
        own_ms = request.patience_ms or request.budget_ms
        if own_ms is not None:
            return mode, own_ms
        return mode, profile.budget_ms if profile else self.budget_ms


@dataclass(frozen=True)
class Plugs:
    """What a router may be given beside its models.

    Attributes:
        cache: Exact cache of final answers, in this process.
        shared_cache: The same for several processes, asked where the first has nothing; closed with the router.
        outbox: Durable list of requests owed a final answer.
        answers: Where provisional answers and their updates are kept for pick-up.
        audits: Where audit draws and verdicts are kept; without it nothing is audited.
        hooks: Told of each settled answer that follows a provisional one, with its tenant, before its debt is
            forgotten: what it does has to be durable.
        spending: Where the budgeted policy keeps what it spent.
        judge: Whether the edge's text and the cloud's say the same, as the certificate's judge has it; None takes that
            one where it needs nothing.
        metrics: Where the router counts.
        clock: Time; the standard library's module satisfies the Protocol.
        uniform: Numbers in [0, 1), private to this process: they decide which requests are audited.
    """

    cache: ResponseCache | None = None
    shared_cache: SharedCache | None = None
    outbox: Outbox | None = None
    answers: AnswerStore | None = None
    audits: AuditLog | None = None
    hooks: Callable[[str, Answer], None] | None = None
    spending: Spending | None = None
    judge: Callable[[str, str], bool] | None = None
    metrics: Metrics = field(default_factory=Metrics)
    clock: Clock = time
    uniform: Callable[[], float] = random.SystemRandom().random
