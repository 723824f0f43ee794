"""Who rules on drafts in a cloud service: a verifier beside each language model that is served, on the same weights."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from edgewise.contracts import Answer, Event, Request, Served, ServiceInfo
from edgewise.dialogue import Prompt
from edgewise.telemetry import Metrics
from edgewise.wire import verify
from edgewise.wire.faults import Fault

if TYPE_CHECKING:
    from edgewise.cloud.repository import ModelService
    from edgewise.cloud.text_engine import TextEngine
    from edgewise.cloud.verifier import Verifier


class RulingService:
    """A language model that answers prompts and rules on drafts with the same weights; both have one life.

    Args:
        service: Answers prompts.
        verifier: Rules on drafts.
    """

    def __init__(self, service: ModelService, verifier: Verifier) -> None:
        self._service = service
        self.verifier = verifier

    @property
    def info(self) -> ServiceInfo:
        """What it answers to."""
        return self._service.info

    def ready(self) -> str | None:
        """None while requests are answered, else why they are not."""
        return self._service.ready()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Answers and rules inside the block."""
        try:
            async with self._service.lifespan():
                yield
        finally:
            self.verifier.close()

    def events(self, request: Request) -> AsyncGenerator[Event]:
        """Answer one request as a stream."""
        return self._service.events(request)

    async def respond(self, request: Request) -> Answer:
        """The first whole answer to one request."""
        return await self._service.respond(request)


def ruling(service: ModelService, engine: TextEngine, metrics: Metrics) -> RulingService:
    """A service that also rules on drafts.

    Args:
        service: Answers from the engine.
        engine: Its model is ruled with.
        metrics: Where rulings are counted.
    """
    from edgewise.cloud.prompts import PromptReader
    from edgewise.cloud.verifier import TorchTarget, Verifier

    info, (model, tokenizer, facts) = engine.info, engine.loaded
    reader = PromptReader(tokenizer, facts, context=engine.context, name=info.name)
    verifier = Verifier(
        TorchTarget(model, context=engine.context, vocabulary=len(tokenizer), ends=facts.ends),
        reference=verify.VerifyReference(info.name, info.version),
        tokenizer=verify.tokenizer_digest(tokenizer.backend_tokenizer.to_str()),
        read=lambda prompt: reader.read(Prompt(messages=prompt.messages, text=prompt.text, begun=prompt.begun)).ids,
        clock=time,
        metrics=metrics,
    )
    return RulingService(service, verifier)


def ruling_routes(models: Callable[[], Mapping[str, Served]]) -> Mapping[str, verify.Route]:
    """The route of whoever rules, for `front_door(posts=…)`.

    Args:
        models: Gives what a `ModelRepository` serves now; the first is the default.
    """

    def find(name: str | None) -> verify.Verifying:
        served = models()
        known = name if name is not None else next(iter(served), "")
        if known not in served:
            raise _not_found("The model is unknown.", "Ask for one that GET / lists.")
        return _Ruled(known, served[known].service)

    return verify.verify_routes(find)


class _Ruled:
    """The version that answers when it is asked rules, and is not closed before it has."""

    def __init__(self, name: str, generation: object) -> None:
        self._name = name
        self._generation = generation

    async def verify(self, tenant: str, asked: verify.VerifyRequest) -> verify.VerifyReply:
        from edgewise.cloud.repository import Generation

        if isinstance(self._generation, Generation):
            with self._generation.lent() as service:
                if isinstance(service, RulingService):
                    return await service.verifier.verify(tenant, asked)
        raise _not_found(f"The model {self._name} takes no drafts.", "Draft for a language model of a checkpoint.")


def _not_found(message: str, remedy: str) -> Fault:
    return Fault(404, "not_found", message, field="model", remedy=remedy)
