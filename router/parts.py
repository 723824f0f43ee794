"""What a router is made of, put together from its settings and plugs.

Owns which part gets which setting. What the parts do together is `hybrid`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgewise.contracts import Answer, Certificate, CloudClient, Policy, Reference, Request
from edgewise.router.agreeing import Agreement
from edgewise.router.background import Background
from edgewise.router.breaker import Breaker
from edgewise.router.delivery import Deliveries
from edgewise.router.escalation import Escalation
from edgewise.router.guard import Guard
from edgewise.router.instruments import Instruments, ShownSpending
from edgewise.router.policies import PolicyKind, PolicyPlugs
from edgewise.router.promise import Promise
from edgewise.router.settings import Plugs, RouterSettings

if TYPE_CHECKING:
    from edgewise.router.fitted import Fitted


class Parts:
    """Makes parts of a router that is set and plugged so.

    Args:
        settings: The router's settings.
        plugs: What it was given.
        instruments: Where its parts count.
    """

    def __init__(self, settings: RouterSettings, plugs: Plugs, instruments: Instruments) -> None:
        self._settings = settings
        self._plugs = plugs
        self._instruments = instruments

    def promise(self, certificate: Certificate | None, fitted: Fitted | None, *, rationed: bool) -> Promise:
        """The promise of a certificate, guarded where audits are kept."""
        guard = None
        if certificate is not None and self._plugs.audits is not None:
            settings = self._settings.guard_of(rationed=rationed)
            guard = Guard(certificate, self._plugs.audits, settings, self._plugs.clock)
        return Promise(
            certificate,
            clock=self._plugs.clock,
            instruments=self._instruments,
            guard=guard,
            complexity=fitted.complexity if fitted is not None and certificate is not None else None,
        )

    def policy(self, kind: PolicyKind, promise: Promise) -> Policy:
        """The policy that routes.

        Raises:
            ConfigError: One of its settings is missing or out of range.
        """
        spending = self._plugs.spending
        shown = None if spending is None else ShownSpending(spending, self._instruments.spent_today)
        plugs = PolicyPlugs(promise, self._plugs.clock, self._plugs.uniform, shown)
        return kind.build(self._settings.policy, plugs)

    def escalation(
        self, cloud: CloudClient, on_reference: Callable[[Reference], None], on_change: Callable[[], None]
    ) -> Escalation:
        """The way to the cloud, behind a breaker."""
        breaker = Breaker(
            failures_to_open=self._settings.failures_to_open,
            cool_down_s=self._settings.cool_down_s,
            max_cool_down_s=self._settings.max_cool_down_s,
        )
        return Escalation(
            cloud,
            breaker,
            self._plugs.clock,
            self._instruments,
            timeout_s=self._settings.cloud_timeout_s,
            on_reference=on_reference,
            on_change=on_change,
            slow_s=self._settings.slow_s,
            attempts=self._settings.attempts,
            hedge_share=self._settings.hedge_share,
        )

    def deliveries(
        self,
        cloud: Escalation,
        background: Background,
        on_final: Callable[[Request, Answer, Reference], None],
        agree: Agreement,
    ) -> Deliveries:
        """What is owed, and who brings it."""
        return Deliveries(
            cloud,
            self._plugs.outbox,
            self._plugs.answers,
            background,
            self._instruments,
            clock=self._plugs.clock,
            retry_s=self._settings.cool_down_s,
            on_final=on_final,
            hooks=self._plugs.hooks,
            max_age_s=self._settings.owed_s,
            drop_oldest=self._settings.drop_oldest,
            agree=agree,
        )
