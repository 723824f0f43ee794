"""The one flow: every request of HTTP, streams and the Python API is answered here and nowhere else.

    audit drawn? → exact cache → policy → edge model → score → certificate, breaker, budget
        ├ local: final
        └ escalated: the cloud within the remaining budget, else provisional now and the cloud's answer later

Owns the order of these steps and the tasks they start. Rules live in `policy`, `certificate` and `breaker`; models,
clouds and stores are plugged in through the Protocols of `contracts`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec

from edgewise import contracts
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    Certificate,
    CloudClient,
    CloudReply,
    DataPolicy,
    Decision,
    Done,
    Event,
    LocalModel,
    Mode,
    Policy,
    Prediction,
    Reason,
    Reference,
    Request,
    Revised,
    Source,
    Status,
)
from edgewise.errors import CloudError, ConfigError, InputError, RequestError
from edgewise.router import certificate as certificates
from edgewise.router.audit import Auditor, Draw
from edgewise.router.background import Background, LoopThread
from edgewise.router.breaker import Breaker
from edgewise.router.cachekey import cache_key
from edgewise.router.delivery import Deliveries
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments
from edgewise.router.policy import CertifiedThreshold, policy_for
from edgewise.router.settings import Plugs, RouterSettings
from edgewise.router.signals import signal_named

_log = logging.getLogger("edgewise.router")


@dataclass(frozen=True)
class _Turn:
    """One request on its way through the flow; `started` and `deadline` are monotonic seconds."""

    request: Request
    mode: Mode
    policy: Policy
    started: float
    deadline: float
    draw: Draw | None
    timings_ms: dict[str, float]


class Router:
    """Answers each request at the edge where the certificate covers it, and through the cloud where not.

    Args:
        edge: The local model.
        cloud: The reference cloud; None only where the settings' mode is `edge_only`.
        certificate: Certificate of this edge model; None escalates every routed request.
        settings: Behaviour where a request does not say.
        plugs: Cache, stores, metrics, clock and randomness.

    Raises:
        CertificateError: The certificate was issued for another model.
        ConfigError: There is no cloud and requests are routed, or the certificate's signal is unknown.
    """

    def __init__(
        self,
        edge: LocalModel,
        cloud: CloudClient | None,
        certificate: Certificate | None,
        *,
        settings: RouterSettings | None = None,
        plugs: Plugs | None = None,
    ) -> None:
        self._settings = settings or RouterSettings()
        self._plugs = plugs or Plugs()
        if cloud is None and self._settings.mode is not Mode.EDGE_ONLY:
            raise ConfigError(
                f"The mode is {self._settings.mode.value!r} and there is no cloud.", "Give a cloud, or mode edge_only."
            )
        if certificate is not None:
            certificates.check_model(certificate, edge.digest)
        self._edge = edge
        self._certificate = certificate
        self._score = signal_named(certificate.signal if certificate else "margin")
        self._routed = CertifiedThreshold(certificate)
        self._instruments = Instruments(self._plugs.metrics)
        self._instruments.certificate_valid.set(float(certificate is not None))
        self._background = Background()
        self._cloud = None if cloud is None else self._escalation(cloud)
        self._deliveries = None if self._cloud is None else self._owing(self._cloud)
        self._reference = certificate.reference if certificate else None
        self._auditor = self._make_auditor()
        self._executor = ThreadPoolExecutor(self._settings.inference_threads, thread_name_prefix="edgewise-edge")
        self._loop_thread = LoopThread()

    @property
    def certificate(self) -> Certificate | None:
        """The certificate in force; None where none was given or it was voided."""
        return self._certificate

    async def events(self, request: Request) -> AsyncIterator[Event]:
        """Answer one request as a stream that ends with `Done`; see `contracts.AnswerService`.

        Raises:
            RequestError: The request cannot be answered as asked.
            CloudError: Never alone: a failed cloud gives a provisional answer.
            OutboxFullError: A provisional answer's update could not be owed.
        """
        turn = self._begin(request)
        cached = self._recall(turn)
        if cached is not None:
            yield Answered(cached)
            yield Done(request.id)
            return
        async with aclosing(self._answer(turn)) as steps:
            async for event in steps:
                yield event

    async def answer(self, request: Request) -> Answer:
        """The first whole answer to a request, final or provisional.

        Raises:
            RequestError: The request cannot be answered as asked.
            OutboxFullError: A provisional answer's update could not be owed.
        """
        return await contracts.answer(self, request)

    def answer_blocking(self, request: Request) -> Answer:
        """`answer` for callers without an event loop; late cloud answers go on in a thread of the router's own.

        Use one face per router: the cloud's connections belong to the loop that opened them.

        Raises:
            RequestError: The request cannot be answered as asked.
            OutboxFullError: A provisional answer's update could not be owed.
        """
        return self._loop_thread.run(self.answer(request))

    def close(self) -> None:
        """End the blocking face: its background work is cancelled, its thread ended."""
        if self._loop_thread.started:
            self._loop_thread.run(self.aclose())
        self._loop_thread.stop()

    async def aclose(self) -> None:
        """Cancel background work and close the cloud's connections. What is owed stays in the outbox."""
        await self._background.cancel()
        if self._cloud is not None:
            await self._cloud.aclose()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve until the block ends: checks the reference cloud, and delivers what an earlier run still owes."""
        if self._cloud is not None and self._deliveries is not None:
            self._background.start(self._cloud.probe())
            self._deliveries.tend()
        try:
            yield
        finally:
            await self.aclose()

    def _begin(self, request: Request) -> _Turn:
        mode, budget_ms = self._settings.promise(request)
        if self._cloud is None and mode is not Mode.EDGE_ONLY and request.data_policy is not DataPolicy.LOCAL_ONLY:
            raise RequestError("mode", f"mode is {mode.value!r} and this gateway has no cloud.", "Ask for edge_only.")
        policy = policy_for(request, mode, self._routed)
        started = self._plugs.clock.monotonic()
        deadline = math.inf if budget_ms is None else started + budget_ms / 1000
        return _Turn(request, mode, policy, started, deadline, self._draw(request, policy), {})

    async def _answer(self, turn: _Turn) -> AsyncGenerator[Event, None]:
        decision = turn.policy.before(turn.request)
        prediction = None
        if decision is None or decision.action is Action.LOCAL:
            prediction = await self._predict(turn)
            decision = decision or turn.policy.after(turn.request, self._score_of(prediction))
        if prediction is not None and decision.action is Action.LOCAL:
            final = self._edge_answer(turn, prediction, decision, Status.FINAL)
            self._remember(turn.request, turn.mode, final)
            self._audit(turn, final)
            yield Answered(final)
            yield Done(turn.request.id)
            return
        self._audit(turn, None)
        async with aclosing(self._escalate(turn, prediction, decision)) as steps:
            async for event in steps:
                yield event

    async def _escalate(
        self, turn: _Turn, prediction: Prediction | None, decision: Decision
    ) -> AsyncGenerator[Event, None]:
        call = self._start_call(turn.request)
        try:
            reply = await self._reply_in_time(turn, call)
            if isinstance(reply, CloudReply):
                final = self._cloud_answer(turn, reply, decision)
                self._remember(turn.request, turn.mode, final)
                yield Answered(final)
                yield Done(turn.request.id)
                return
            prediction = prediction or await self._predict(turn)
            decision = msgspec.structs.replace(decision, reason=reply, certificate_id=None)
            provisional = self._edge_answer(turn, prediction, decision, Status.PROVISIONAL)
            update = self._deliveries.owe(turn.request, provisional, call) if self._deliveries else None
            call = None
        finally:
            if call is not None:
                call.cancel()
        yield Answered(provisional)
        final_or_none = await asyncio.shield(update) if update is not None else None
        if final_or_none is not None:
            yield Revised(final_or_none)
        yield Done(turn.request.id, pending=final_or_none is None and self._owes_durably)

    def _start_call(self, request: Request) -> asyncio.Task[CloudReply] | None:
        """The cloud call of an escalated request, or None behind an open breaker."""
        if self._cloud is None or self._cloud.is_open:
            return None
        return self._background.start(self._cloud.ask(request))

    async def _reply_in_time(self, turn: _Turn, call: asyncio.Task[CloudReply] | None) -> CloudReply | Reason:
        """The cloud's reply, or the reason why this request does not wait for it any longer."""
        if call is None:
            return Reason.BREAKER_OPEN
        if turn.mode is Mode.SPECULATIVE:
            return Reason.SPECULATIVE
        asked = self._plugs.clock.monotonic()
        remaining = turn.deadline - asked
        await asyncio.wait({call}, timeout=max(0.0, remaining) if math.isfinite(remaining) else None)
        turn.timings_ms["cloud"] = 1000 * (self._plugs.clock.monotonic() - asked)
        if not call.done():
            return Reason.BUDGET_SPENT
        try:
            return call.result()
        except CloudError as error:
            _log.warning("Request %s: %s", turn.request.id, error)
            return Reason.CLOUD_FAILED

    async def _predict(self, turn: _Turn) -> Prediction:
        """The edge model's prediction, off the event loop.

        Raises:
            RequestError: The model cannot read the item.
        """
        began = self._plugs.clock.monotonic()
        loop = asyncio.get_running_loop()
        try:
            (prediction,) = await loop.run_in_executor(self._executor, self._edge.predict, [turn.request.inputs])
        except InputError as error:
            self._audit_missed(turn)
            raise RequestError("inputs", error.problem, error.remedy) from error
        except BaseException:
            self._audit_missed(turn)
            raise
        turn.timings_ms["edge"] = 1000 * (self._plugs.clock.monotonic() - began)
        return prediction

    def _score_of(self, prediction: Prediction) -> float:
        if prediction.logits is None:
            return math.nan
        return float(self._score(prediction.logits[None, :])[0])

    def _edge_answer(self, turn: _Turn, prediction: Prediction, decision: Decision, status: Status) -> Answer:
        return Answer(
            id=turn.request.id,
            output=prediction.output,
            status=status,
            source=Source.EDGE,
            decision=decision,
            timings_ms=self._timings(turn),
            model_digest=self._edge.digest,
        )

    def _cloud_answer(self, turn: _Turn, reply: CloudReply, decision: Decision) -> Answer:
        return Answer(
            id=turn.request.id,
            output=reply.output,
            status=Status.FINAL,
            source=Source.CLOUD,
            decision=msgspec.structs.replace(decision, certificate_id=None),
            timings_ms=self._timings(turn),
            model_digest=reply.reference.version,
        )

    def _timings(self, turn: _Turn) -> dict[str, float]:
        return {**turn.timings_ms, "total": 1000 * (self._plugs.clock.monotonic() - turn.started)}

    def _recall(self, turn: _Turn) -> Answer | None:
        """The cached answer to the same request, in this request's name; audited requests do not ask."""
        if self._plugs.cache is None or turn.draw is not None or not _may_be_cached(turn.request):
            return None
        cached = self._plugs.cache.get(self._cache_key(turn.request, turn.mode))
        if cached is None:
            return None
        return msgspec.structs.replace(
            cached,
            id=turn.request.id,
            source=Source.CACHE,
            decision=msgspec.structs.replace(cached.decision, reason=Reason.CACHE_HIT),
            timings_ms=self._timings(turn),
        )

    def _remember(self, request: Request, mode: Mode, final: Answer) -> None:
        if self._plugs.cache is not None and _may_be_cached(request):
            self._plugs.cache.put(self._cache_key(request, mode), final)

    def _remember_late(self, request: Request, final: Answer) -> None:
        with suppress(RequestError):  # an owed request of an earlier run may name a profile that is gone
            self._remember(request, self._settings.promise(request)[0], final)

    def _cache_key(self, request: Request, mode: Mode) -> bytes:
        return cache_key(
            msgspec.structs.replace(request, mode=mode),
            certificate_id=self._certificate.id if self._certificate else None,
            model_digest=self._edge.digest,
            cloud_version=self._reference.version if self._reference else None,
        )

    def _make_auditor(self) -> Auditor | None:
        if self._plugs.audits is None:
            return None
        return Auditor(self._plugs.audits, self._settings.audit_share, self._plugs.uniform, self._instruments)

    def _draw(self, request: Request, policy: Policy) -> Draw | None:
        """Draw among the requests the certificate covers; what is skipped depends only on what is known by now."""
        covered = policy is self._routed and self._certificate is not None
        reachable = self._cloud is not None and not self._cloud.is_open
        if self._auditor is None or self._certificate is None or not (covered and reachable):
            return None
        return self._auditor.draw(request.id, self._certificate.id)

    def _audit(self, turn: _Turn, final: Answer | None) -> None:
        """Settle a drawn request: nothing local is nothing lost, a local answer is compared with the cloud's."""
        if turn.draw is None or self._cloud is None:
            return
        if final is None:
            turn.draw.settle(violation=False)
        else:
            self._background.start(self._verdict(self._cloud, turn.request, turn.draw, final))

    def _audit_missed(self, turn: _Turn) -> None:
        """What ends a drawn request before its answer counts against the promise, unless it was settled."""
        if turn.draw is not None:
            turn.draw.missed()

    async def _verdict(self, cloud: Escalation, request: Request, draw: Draw, final: Answer) -> None:
        try:
            reply = await cloud.ask(request)
            draw.settle(violation=reply.output != final.output)
        except CloudError as error:
            _log.warning("The audit of request %s has no verdict: %s", request.id, error)
        finally:
            draw.missed()

    def _escalation(self, cloud: CloudClient) -> Escalation:
        breaker = Breaker(failures_to_open=self._settings.failures_to_open, cool_down_s=self._settings.cool_down_s)
        return Escalation(
            cloud,
            breaker,
            self._plugs.clock,
            self._instruments,
            timeout_s=self._settings.cloud_timeout_s,
            on_reference=self._check_reference,
        )

    def _owing(self, cloud: Escalation) -> Deliveries:
        return Deliveries(
            cloud,
            self._plugs.outbox,
            self._plugs.answers,
            self._background,
            self._instruments,
            retry_s=self._settings.cool_down_s,
            on_final=self._remember_late,
        )

    @property
    def _owes_durably(self) -> bool:
        return self._deliveries is not None and self._deliveries.durable

    def _check_reference(self, reference: Reference) -> None:
        """Void the certificate, for good and loudly, when another cloud than the certified one answers."""
        self._reference = reference
        if self._certificate is None or reference == self._certificate.reference:
            return
        _log.error(
            "Certificate %s is void: it was issued against %s %s, and %s %s answers now. Everything is escalated until "
            "this edge model is certified again: edgewise certify.",
            self._certificate.id,
            self._certificate.reference.name,
            self._certificate.reference.version,
            reference.name,
            reference.version,
        )
        self._certificate = None
        self._routed = CertifiedThreshold(None)
        self._instruments.certificate_valid.set(0.0)


def _may_be_cached(request: Request) -> bool:
    return request.data_policy is not DataPolicy.LOCAL_ONLY
