"""Policies: where a request is answered. Pure, but for what `Spending` keeps.

A policy sees the request before the edge model runs, and the prediction and its score after it. Owns no breaker, no
latency budget and no cloud: those can only turn an escalation into a provisional answer, never into a final local one.

Adding one is a file with a `KIND`, and its line in `POLICIES`.
"""

from __future__ import annotations

from edgewise.contracts import DataPolicy, Mode, Policy, Request
from edgewise.errors import ConfigError, RequestError
from edgewise.router.policies import budgeted, random_share, threshold
from edgewise.router.policies.always import CLOUD_ONLY, EDGE_ONLY, LOCAL_ONLY, Always
from edgewise.router.policies.base import PolicyKind, PolicyPlugs, PolicySettings
from edgewise.router.policies.budgeted import Budgeted, Ration
from edgewise.router.policies.random_share import RandomShare
from edgewise.router.policies.threshold import CertifiedThreshold, RaisedThreshold, Uncovered

__all__ = [
    "CLOUD_ONLY",
    "EDGE_ONLY",
    "LOCAL_ONLY",
    "POLICIES",
    "Always",
    "Budgeted",
    "CertifiedThreshold",
    "PolicyKind",
    "PolicyPlugs",
    "PolicySettings",
    "RaisedThreshold",
    "RandomShare",
    "Ration",
    "Uncovered",
    "policy_for",
    "policy_named",
]

POLICIES: dict[str, PolicyKind] = {
    threshold.KIND.name: threshold.KIND,
    random_share.KIND.name: random_share.KIND,
    budgeted.KIND.name: budgeted.KIND,
}
"""Policies of guarded and speculative requests, by the name that settings use."""


def policy_named(name: str) -> PolicyKind:
    """The kind of policy called `name`.

    Raises:
        ConfigError: There is none.
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise ConfigError(f"There is no policy {name!r}.", f"Choose one of: {', '.join(sorted(POLICIES))}.") from None


def policy_for(request: Request, mode: Mode, routed: Policy) -> Policy:
    """The policy a request falls under: its data policy first, then its mode, then the gateway's own.

    Args:
        request: The request.
        mode: Its mode, the gateway's default filled in.
        routed: The policy of guarded and speculative requests.

    Raises:
        RequestError: It must stay local and asks for the cloud only.
    """
    if request.data_policy is DataPolicy.LOCAL_ONLY:
        if mode is Mode.CLOUD_ONLY:
            raise RequestError(
                "mode",
                "mode is 'cloud_only' and data_policy is 'local_only': no place is left to answer.",
                "Drop one of the two.",
            )
        return LOCAL_ONLY
    if mode is Mode.EDGE_ONLY:
        return EDGE_ONLY
    if mode is Mode.CLOUD_ONLY:
        return CLOUD_ONLY
    return routed
