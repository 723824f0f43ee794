"""Who rules on drafts in a cloud service: a verifier beside each language model that is served, on the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgewise.contracts import Served, ServiceInfo
from edgewise.dialogue import Prompt
from edgewise.telemetry import Metrics
from edgewise.wire import verify
from edgewise.wire.faults import Fault

if TYPE_CHECKING:
    from edgewise.cloud.verifier import Verifier


class Verifiers:
    """Verifiers by the name and the version of their model.

    Args:
        models: Gives what is served now; the first is the default.
        metrics: Where rulings are counted.
    """

    def __init__(self, models: Callable[[], Mapping[str, Served]], metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._made: dict[tuple[str, str], Verifier] = {}

    def routes(self, *, writes: bool) -> Mapping[str, verify.Route]:
        """The route, for `front_door(posts=…)`; none where no language model is served."""
        return verify.verify_routes(self.find) if writes else {}

    def put(self, info: ServiceInfo, model: Any, tokenizer: Any, facts: Any, *, context: int) -> None:
        """A model is loaded and will be served: rule on drafts with it then, and until then with the one before.

        Args:
            info: What it is served as.
            model: Of transformers, in evaluation mode.
            tokenizer: Of transformers.
            facts: `cloud.causal.CausalFacts`.
            context: Tokens of prompt and answer together.
        """
        from edgewise.cloud.prompts import PromptReader
        from edgewise.cloud.verifier import TorchTarget, Verifier

        reader = PromptReader(tokenizer, facts, context=context, name=info.name)
        target = TorchTarget(model, context=context, vocabulary=len(tokenizer), ends=facts.ends)
        fresh = Verifier(
            target,
            reference=verify.VerifyReference(info.name, info.version),
            tokenizer=verify.tokenizer_digest(tokenizer.backend_tokenizer.to_str()),
            read=lambda prompt: reader.read(Prompt(messages=prompt.messages, text=prompt.text, begun=prompt.begun)).ids,
            clock=time,
            metrics=self._metrics,
        )
        served = self._models().get(info.name)
        current = None if served is None else served.info.version
        for name, version in [key for key in self._made if key[0] == info.name and key[1] != current]:
            self._made.pop((name, version)).close()
        again = self._made.pop((info.name, info.version), None)
        if again is not None:
            again.close()
        self._made[info.name, info.version] = fresh

    def find(self, name: str | None) -> verify.Verifying:
        """The verifier of the model of that name, or of the default.

        Raises:
            Fault: There is no such model, or it takes no drafts.
        """
        models = self._models()
        known = name if name is not None else next(iter(models), "")
        served = models.get(known)
        if served is None:
            raise _not_found("The model is unknown.", "Ask for one that GET / lists.")
        found = self._made.get((known, served.info.version))
        if found is None:
            raise _not_found(f"The model {known} takes no drafts.", "Draft for a language model of a checkpoint.")
        return found


def _not_found(message: str, remedy: str) -> Fault:
    return Fault(404, "not_found", message, field="model", remedy=remedy)
