"""From an edge prediction to a decision: veto, score, policy. Owns no threshold and no certificate."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import msgspec

from edgewise.contracts import Certificate, Decision, Policy, Prediction, Reason, Request
from edgewise.router.drift import ScoreDrift
from edgewise.router.instruments import Instruments
from edgewise.router.signals import is_foreign, scorer

if TYPE_CHECKING:
    from edgewise.router.fitted import Fitted

_log = logging.getLogger("edgewise.router")
SIGNAL_OF_LOGITS = "margin"
SIGNAL_OF_TEXTS = "mean_logprob:first=16"
"""What classifiers and texts are scored by where no certificate names a signal."""

_SHOW_EVERY = 100


class Judgement:
    """Scores predictions the way the certificate's items were scored, and asks the policy.

    Args:
        certificate: Names the signal and what live scores are compared with; None takes the margin.
        fitted: What was fitted on the tuning part; its neighbours veto.
        instruments: Where scores are counted and their drift is shown.
        unnamed: The signal where no certificate names one.

    Raises:
        ConfigError: There is no such signal, or it was not fitted.
    """

    def __init__(
        self,
        certificate: Certificate | None,
        fitted: Fitted | None,
        instruments: Instruments,
        *,
        unnamed: str = SIGNAL_OF_LOGITS,
    ) -> None:
        self._score = scorer(certificate.signal if certificate else unnamed, fitted)
        self._fitted = fitted
        self._instruments = instruments
        self._drift = Drift(certificate, instruments)

    def decide(self, policy: Policy, request: Request, prediction: Prediction) -> Decision:
        """The policy's decision on a prediction; an input that is out of distribution is called so."""
        score = self._score(prediction)
        foreign = math.isnan(score) and is_foreign(prediction, self._fitted)
        decision = policy.after(request, prediction, score)
        self._drift.watch(score)
        if foreign and decision.reason is Reason.BELOW_THRESHOLD:
            return msgspec.structs.replace(decision, reason=Reason.OUT_OF_DISTRIBUTION)
        return decision

    @property
    def drift_index(self) -> float | None:
        """How far live scores are from the certifying ones; None where nothing tells."""
        return self._drift.index


class Drift:
    """A hint that the traffic is not what was certified; it changes no decision and proves nothing.

    Args:
        certificate: Whose scores live ones are compared with; without deciles nothing is compared.
        instruments: Where scores are counted and their drift is shown.
    """

    def __init__(self, certificate: Certificate | None, instruments: Instruments) -> None:
        self._drift = (
            ScoreDrift(certificate.score_deciles, certificate.out_of_distribution_share)
            if certificate is not None and certificate.score_deciles
            else None
        )
        self._instruments = instruments
        self._seen = 0
        self._warned = False

    @property
    def index(self) -> float | None:
        """The population stability index; None where nothing is compared, or too little was seen."""
        return None if self._drift is None or not self._drift.is_full else self._drift.index

    def watch(self, score: float) -> None:
        """Take the score of one routed request; NaN is out of distribution."""
        self._instruments.scores.inc("none" if math.isnan(score) else "scored")
        if self._drift is None:
            return
        self._drift.update(score)
        self._seen += 1
        if self._seen % _SHOW_EVERY == 0 and self._drift.is_full:
            self._show(self._drift)

    def _show(self, drift: ScoreDrift) -> None:
        self._instruments.score_drift.set(drift.index)
        if drift.hint and not self._warned:
            _log.warning(
                "Live scores are distributed differently from the certifying ones (population stability index %.2f): "
                "the certificate may not speak of this traffic. Only the audits tell whether its promise is kept.",
                drift.index,
            )
            self._warned = True
