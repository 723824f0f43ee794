"""The one flow: every request of HTTP, streams and the Python API is answered here and nowhere else.

    audit drawn? → what is known at once, in the caller's own thread → what has to be waited for, on one event loop

At once comes an answer from the cache, and a local one where the model was measured to take less than a hop to another
thread. Owns the faces that callers see, the life of a router, and what is checked of a request before anything else;
the steps that follow are `flow`'s. Models, clouds and stores are plugged in through the Protocols of `contracts`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from edgewise import tracing
from edgewise.contracts import (
    Answer,
    Answered,
    Certificate,
    CloudClient,
    DataPolicy,
    Done,
    Event,
    LocalGenerator,
    LocalModel,
    Mode,
    Reference,
    Request,
    Revised,
    Status,
)
from edgewise.errors import ConfigError, RequestError
from edgewise.router import certificate as certificates
from edgewise.router.agreeing import Agreement
from edgewise.router.answering import Answering, Given
from edgewise.router.background import Background, LoopThread
from edgewise.router.deciding import Decided, Deciding
from edgewise.router.flow import Flow
from edgewise.router.inference import Inference
from edgewise.router.instruments import Instruments
from edgewise.router.judgement import SIGNAL_OF_LOGITS, SIGNAL_OF_TEXTS, Judgement
from edgewise.router.parts import Parts
from edgewise.router.policies import policy_for, policy_named
from edgewise.router.recall import Recall
from edgewise.router.settings import Plugs, RouterSettings
from edgewise.router.turn import Turn
from edgewise.router.verdicts import audits_of

if TYPE_CHECKING:
    from edgewise.router.fitted import Fitted
    from edgewise.router.textflow import TextFlow

_FIRST_CHECK_S = 1.0


class Router:
    """Answers each request at the edge where the certificate covers it, and through the cloud where not.

    Args:
        edge: The local model; one that writes texts answers prompts, and its events are told as it writes.
        cloud: The reference cloud; None only where the settings' mode is `edge_only`.
        certificate: Certificate of this edge model; None escalates every routed request.
        fitted: What was fitted for the certificate, the very one that it names; None where it names none.
        settings: Behaviour where a request does not say.
        plugs: Caches, stores, metrics, clock and randomness.

    Raises:
        CertificateError: The certificate was issued for another model, or for something fitted that is not given.
        ConfigError: There is no cloud and requests are routed, the certificate's signal is unknown, or a setting of
            the policy is missing or out of its range.
    """

    def __init__(
        self,
        edge: LocalModel | LocalGenerator,
        cloud: CloudClient | None,
        certificate: Certificate | None,
        *,
        fitted: Fitted | None = None,
        settings: RouterSettings | None = None,
        plugs: Plugs | None = None,
    ) -> None:
        self._settings = settings or RouterSettings()
        plugs = plugs or Plugs()
        if cloud is None and self._settings.mode is not Mode.EDGE_ONLY:
            raise ConfigError(
                f"The mode is {self._settings.mode.value!r} and there is no cloud.", "Give a cloud, or mode edge_only."
            )
        if certificate is not None:
            given = certificate.fitted_digest if fitted is not None else None
            certificates.check_model(certificate, edge.digest, given)
        kind = policy_named(self._settings.policy.use)
        self._is_certified = kind.certified
        promised = certificate if kind.certified else None
        self._task = edge.task
        self._clock = plugs.clock
        instruments = Instruments(plugs.metrics)
        parts = Parts(self._settings, plugs, instruments)
        agree = Agreement(plugs.judge or _judge_of(promised))
        unnamed = SIGNAL_OF_TEXTS if isinstance(edge, LocalGenerator) else SIGNAL_OF_LOGITS
        self._judgement = Judgement(promised, fitted, instruments, unnamed=unnamed)
        self._promise = parts.promise(promised, fitted, rationed=kind.rationed)
        self._routed = parts.policy(kind, self._promise)
        self._background = Background()
        self._recall = Recall(
            plugs.cache,
            plugs.shared_cache,
            model_digest=edge.digest,
            scope=self._promise.scope,
            reference=promised.reference if promised else None,
            beside=self._beside,
        )
        self._cloud = None if cloud is None else parts.escalation(cloud, self._check_reference, self._tend)
        self._deliveries = (
            None if self._cloud is None else parts.deliveries(self._cloud, self._background, self._keep_late, agree)
        )
        self._verdicts = audits_of(self._settings, plugs, instruments, self._promise, self._cloud, agree)
        deciding = Deciding(self._judgement, self._promise, self._recall)
        answering = Answering(
            deliveries=self._deliveries,
            verdicts=self._verdicts,
            recall=self._recall,
            instruments=instruments,
            model_digest=edge.digest,
        )
        self._flow: Flow | TextFlow
        if isinstance(edge, LocalGenerator):
            self._flow = self._text_flow(edge, promised, deciding, answering, instruments)
        else:
            self._flow = self._one_flow(edge, deciding, answering)
        self._is_coverable = self._flow.is_coverable
        self._home: asyncio.AbstractEventLoop | None = None
        self._loop_thread = LoopThread()
        self._closed = False

    @property
    def certificate(self) -> Certificate | None:
        """The certificate in force; None where none was given, or it is void, expired, or broken by an audit."""
        return self._promise.certificate

    @property
    def newest_certificate(self) -> Certificate | None:
        """The one given, or one that audits earned since, in force or not; None where the policy follows none."""
        return self._promise.newest

    def report(self) -> dict[str, Any]:
        """What the promise is worth now, for people and dashboards: values that JSON has."""
        uncertified = {} if self._is_certified else {"state": "uncertified"}
        return {
            "policy": self._routed.name,
            **self._promise.report(),
            **uncertified,
            "score_drift": self._judgement.drift_index,
        }

    def respond(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        """The first whole answer where it is known without waiting, else the work that brings it.

        Call it on the event loop. Cancelling the work takes its prediction out of the queue and ends its cloud call,
        unless an identical request shares them.

        Raises:
            RequestError: The request cannot be answered as asked.
            OutboxFullError: A provisional answer's update could not be owed.
            RuntimeError: It was closed; where there is work, also that it is awaited on another event loop than before.
        """
        if tracing.on():
            return self._traced(request)
        turn = self._begin(request)
        found = self._flow.at_once(turn, blocking=False)
        return found if isinstance(found, Answer) else self._later(turn, found)

    async def answer(self, request: Request) -> Answer:
        """The first whole answer to a request, final or provisional.

        Raises:
            RequestError: The request cannot be answered as asked.
            OutboxFullError: A provisional answer's update could not be owed.
            RuntimeError: It is asked from another event loop than before, or was closed.
        """
        found = self.respond(request)
        return found if isinstance(found, Answer) else await found

    async def events(self, request: Request) -> AsyncIterator[Event]:
        """Answer one request as a stream that ends with `Done`; see `contracts.AnswerService`.

        A text comes in tokens as it is written, and then as the answer; closing the stream before that stops both edge
        and cloud within a token. Its budget is the time to its first token, or where it is wanted whole to its answer.

        Raises:
            RequestError: The request cannot be answered as asked.
            CloudError: The cloud broke off in the middle of a text, and again when asked to go on. Never before any of
                it was told: then a failed cloud gives a provisional answer.
            OutboxFullError: A provisional answer's update could not be owed.
            RuntimeError: It is asked from another event loop than before, or was closed.
        """
        if not isinstance(self._flow, Flow):
            async with aclosing(self._told(self._flow, request)) as told:
                async for event in told:
                    yield event
            return
        given = await self._give(request)
        yield Answered(given.answer)
        settled = None if given.update is None else await asyncio.shield(given.update)
        if settled is not None and settled.status is Status.FINAL:
            yield Revised(settled)
        yield Done(request.id, pending=given.owed and settled is None)

    def answer_blocking(self, request: Request) -> Answer:
        """`answer` for callers without an event loop, from any number of threads at once.

        What needs no waiting is done in the caller's own thread, the edge model included. What waits, and what goes on
        later, runs on an event loop in a thread of the router's own.

        Use one face per router: the cloud's connections belong to the loop that opened them.

        Raises:
            RequestError: The request cannot be answered as asked.
            OutboxFullError: A provisional answer's update could not be owed.
            RuntimeError: It was closed, before or meanwhile.
        """
        if not tracing.on():
            return self._block(request)
        with tracing.span("route") as span:
            found = self._block(request)
            _describe(span, found)
            return found

    def close(self) -> None:
        """End the blocking face: its background work is cancelled, its thread ended."""
        self._closed = True
        if self._loop_thread.started:
            self._loop_thread.run(self.aclose())
        self._loop_thread.stop()
        self._flow.close()

    async def aclose(self) -> None:
        """End background work and close the connections of cloud and shared cache. What is owed stays in the outbox.

        Audit verdicts that are under way get a few seconds: one that does not come counts as a violation.
        """
        self._closed = True
        await self._verdicts.aclose()
        await self._background.close()
        if self._cloud is not None:
            await self._cloud.aclose()
        await self._recall.aclose()
        self._flow.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve until the block ends: checks the reference cloud, and delivers what an earlier run still owes."""
        self._stay_home()
        if (measuring := self._flow.measuring()) is not None:
            self._background.start(measuring)
        if self._cloud is not None and self._deliveries is not None:
            confirmed = asyncio.Event()
            every_s, retry_s = self._settings.reference_check_s, self._settings.cool_down_s
            self._background.start(self._cloud.watch(confirmed, every_s=every_s, retry_s=retry_s))
            # A cloud that is up is checked before the first answer; one that is not holds nobody up for long.
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_CHECK_S):
                    await confirmed.wait()
            self._deliveries.tend()
        try:
            yield
        finally:
            await self.aclose()

    async def _told(self, flow: TextFlow, request: Request) -> AsyncGenerator[Event]:
        """The events of a text, all of it up to its first whole answer as one span."""
        self._stay_home()
        with tracing.span("route") as span:
            async with aclosing(flow.events(self._begin(request))) as events:
                async for event in events:
                    if isinstance(event, Answered):
                        _describe(span, event.answer)
                    yield event

    async def _give(self, request: Request) -> Given:
        """All of one request as one span, up to its first answer."""
        self._stay_home()
        with tracing.span("route") as span:
            turn = self._begin(request)
            found = self._flow.at_once(turn, blocking=False)
            given = Given(found) if isinstance(found, Answer) else await self._flow.work(turn, found)
            _describe(span, given.answer)
            return given

    def _block(self, request: Request) -> Answer:
        turn = self._begin(request)
        found = self._flow.at_once(turn, blocking=True)
        return found if isinstance(found, Answer) else self._loop_thread.run(self._later(turn, found))

    async def _traced(self, request: Request) -> Answer:
        return (await self._give(request)).answer

    async def _later(self, turn: Turn, decided: Decided | None) -> Answer:
        self._stay_home()
        return (await self._flow.work(turn, decided)).answer

    def _begin(self, request: Request) -> Turn:
        """What is known of a request before anything is computed; the coin of its audit included."""
        if self._closed:
            raise RuntimeError("The router is closed.")
        if request.task and request.task != self._task:
            raise RequestError("task", f"This gateway does {self._task}, not {request.task}.", "Leave task out.")
        mode, budget_ms = self._settings.promise(request)
        if self._cloud is None and mode is not Mode.EDGE_ONLY and request.data_policy is not DataPolicy.LOCAL_ONLY:
            raise RequestError("mode", f"mode is {mode.value!r} and this gateway has no cloud.", "Ask for edge_only.")
        policy = policy_for(request, mode, self._routed)
        now = self._clock.monotonic()
        started = now if request.arrived_s is None else min(request.arrived_s, now)
        deadline = math.inf if budget_ms is None else started + budget_ms / 1000
        self._promise.look()
        audited = policy is self._routed and self._is_coverable(request.inputs) and self._verdicts.draws()
        return Turn(request, mode, policy, started, deadline, audited, self._clock)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what no answer waits for, unless the router is closing."""
        if self._background.closed:
            work.close()
        else:
            self._background.start(work)

    def _one_flow(self, edge: LocalModel, deciding: Deciding, answering: Answering) -> Flow:
        return Flow(
            deciding=deciding,
            answering=answering,
            inference=Inference(edge, self._settings.inference_threads, self._clock),
            cloud=self._cloud,
            verdicts=self._verdicts,
            recall=self._recall,
            background=self._background,
        )

    def _text_flow(
        self,
        edge: LocalGenerator,
        promised: Certificate | None,
        deciding: Deciding,
        answering: Answering,
        instruments: Instruments,
    ) -> TextFlow:
        # Here, since a gateway of a classifier shall load nothing of texts.
        from edgewise.router.gate import gate_of
        from edgewise.router.textflow import TextFlow
        from edgewise.router.writing import Writers

        settings = self._settings.text
        return TextFlow(
            gate=gate_of(promised, settings.gate_ms),
            settings=settings,
            deciding=deciding,
            answering=answering,
            writers=Writers(edge, settings.threads, self._clock, instruments),
            cloud=self._cloud,
            deliveries=self._deliveries,
            verdicts=self._verdicts,
            recall=self._recall,
            background=self._background,
            instruments=instruments,
        )

    def _keep_late(self, request: Request, final: Answer, reference: Reference) -> None:
        with suppress(RequestError):  # an owed request of an earlier run may name a profile that is gone
            self._recall.keep_cloud(request, self._settings.promise(request)[0], final, reference)

    def _tend(self) -> None:
        if self._deliveries is not None:
            self._deliveries.tend()

    def _stay_home(self) -> None:
        """Refuse a second event loop: connections and tasks belong to the first."""
        loop = asyncio.get_running_loop()
        if self._home is None:
            self._home = loop
        elif self._home is not loop:
            raise RuntimeError("This router belongs to another event loop; make one a loop, or use answer_blocking.")

    def _check_reference(self, reference: Reference) -> None:
        self._recall.reference = reference
        self._promise.heard(reference)


def _judge_of(certificate: Certificate | None) -> Callable[[str, str], bool] | None:
    """The judge that a certificate names, where it needs nothing but its name."""
    if certificate is None or not certificate.judge:
        return None
    from edgewise.router.agreement import judge_of

    return judge_of(certificate.judge)


def _describe(span: tracing.Span, answer: Answer) -> None:
    """What became of a request, in its span; never what was asked or answered."""
    decision = answer.decision
    span.set("edgewise.reason", decision.reason.value)
    span.set("edgewise.action", decision.action.value)
    span.set("edgewise.policy", decision.policy)
    span.set("edgewise.source", answer.source.value)
    span.set("edgewise.status", answer.status.value)
