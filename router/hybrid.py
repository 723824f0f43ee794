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
from edgewise.errors import CloudError, CloudRefusedError, ConfigError, InputError, RequestError
from edgewise.router import certificate as certificates
from edgewise.router.audit import Auditor, Draw
from edgewise.router.background import Background, LoopThread
from edgewise.router.breaker import Breaker
from edgewise.router.delivery import Deliveries
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments
from edgewise.router.policy import CertifiedThreshold, policy_for
from edgewise.router.recall import Recall
from edgewise.router.settings import Plugs, RouterSettings
from edgewise.router.signals import score_of, signal_named

_log = logging.getLogger("edgewise.router")
_FIRST_CHECK_S = 1.0
_VERDICT_S = 5.0


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
        self._signal = certificate.signal if certificate else "margin"
        signal_named(self._signal)
        self._routed = CertifiedThreshold(certificate)
        self._instruments = Instruments(self._plugs.metrics)
        self._instruments.certificate_valid.set(float(certificate is not None))
        self._background = Background()
        self._cloud = None if cloud is None else self._escalation(cloud)
        self._deliveries = None if self._cloud is None else self._owing(self._cloud)
        self._reference = certificate.reference if certificate else None
        self._cache = Recall(self._plugs.cache, edge.digest)
        self._auditor = self._make_auditor()
        self._executor = ThreadPoolExecutor(self._settings.inference_threads, thread_name_prefix="edgewise-edge")
        self._verdicts = Background()
        self._home: asyncio.AbstractEventLoop | None = None
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
            RuntimeError: It is asked from another event loop than before, or was closed.
        """
        self._stay_home()
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
        """End background work and close the cloud's connections. What is owed stays in the outbox.

        Audit verdicts that are under way get a few seconds: one that does not come counts as a violation.
        """
        await self._verdicts.close(finish_s=_VERDICT_S)
        await self._background.close()
        if self._cloud is not None:
            await self._cloud.aclose()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve until the block ends: checks the reference cloud, and delivers what an earlier run still owes."""
        self._stay_home()
        if self._cloud is not None and self._deliveries is not None:
            confirmed = asyncio.Event()
            self._background.start(self._watch(self._cloud, confirmed))
            # A cloud that is up is checked before the first answer; one that is not holds nobody up for long.
            with suppress(TimeoutError):
                await asyncio.wait_for(confirmed.wait(), _FIRST_CHECK_S)
            self._deliveries.tend()
        try:
            yield
        finally:
            await self.aclose()

    def _begin(self, request: Request) -> _Turn:
        if request.task and request.task != self._edge.task:
            raise RequestError("task", f"This gateway does {self._edge.task}, not {request.task}.", "Leave task out.")
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
            decision = decision or self._judge(turn, prediction)
        if prediction is not None and decision.action is Action.LOCAL:
            final = self._edge_answer(turn, prediction, decision, Status.FINAL)
            self._keep(turn.request, turn.mode, final, self._reference)
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
                self._keep(turn.request, turn.mode, final, reply.reference)
                yield Answered(final)
                yield Done(turn.request.id)
                return
            prediction = prediction or await self._predict(turn)
            decision = msgspec.structs.replace(decision, reason=reply, certificate_id=None)
            provisional = self._edge_answer(turn, prediction, decision, Status.PROVISIONAL)
            owing = self._deliveries if reply is not Reason.CLOUD_REFUSED else None
            update = owing.owe(turn.request, provisional, call) if owing else None
            call = None
        finally:
            if call is not None:
                call.cancel()
        yield Answered(provisional)
        settled = await asyncio.shield(update) if update is not None else None
        if settled is not None and settled.status is Status.FINAL:
            yield Revised(settled)
        yield Done(turn.request.id, pending=settled is None and owing is not None and owing.durable)

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
        except CloudRefusedError as error:
            _log.error("Request %s: %s", turn.request.id, error)
            return Reason.CLOUD_REFUSED
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

    def _judge(self, turn: _Turn, prediction: Prediction) -> Decision:
        """Decide by the policy of now: the certificate may have been voided while the edge computed."""
        policy = policy_for(turn.request, turn.mode, self._routed)
        decision = policy.after(turn.request, score_of(prediction, self._signal))
        if prediction.out_of_distribution and decision.reason is Reason.BELOW_THRESHOLD:
            return msgspec.structs.replace(decision, reason=Reason.OUT_OF_DISTRIBUTION)
        return decision

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
        """The cached answer to the same request; audited requests do not ask."""
        if turn.draw is not None:
            return None
        found = self._cache.find(turn.request, turn.mode, self._certificate, self._reference)
        return None if found is None else msgspec.structs.replace(found, timings_ms=self._timings(turn))

    def _keep(self, request: Request, mode: Mode, final: Answer, reference: Reference | None) -> None:
        self._cache.keep(request, mode, self._certificate, reference, final)

    def _keep_late(self, request: Request, final: Answer, reference: Reference) -> None:
        with suppress(RequestError):  # an owed request of an earlier run may name a profile that is gone
            self._keep(request, self._settings.promise(request)[0], final, reference)

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
        return self._auditor.draw(request.id, self._certificate)

    def _audit(self, turn: _Turn, final: Answer | None) -> None:
        """Settle a drawn request: nothing local is nothing lost, a local answer is compared with the cloud's."""
        if turn.draw is None or self._cloud is None:
            return
        if final is None:
            turn.draw.settle(violation=False)
        else:
            self._verdicts.start(turn.draw.judge(self._cloud, turn.request, final))

    def _audit_missed(self, turn: _Turn) -> None:
        """What ends a drawn request before its answer counts against the promise, unless it was settled."""
        if turn.draw is not None:
            turn.draw.missed()

    def _escalation(self, cloud: CloudClient) -> Escalation:
        breaker = Breaker(failures_to_open=self._settings.failures_to_open, cool_down_s=self._settings.cool_down_s)
        return Escalation(
            cloud,
            breaker,
            self._plugs.clock,
            self._instruments,
            timeout_s=self._settings.cloud_timeout_s,
            on_reference=self._check_reference,
            on_open=self._tend,
        )

    def _tend(self) -> None:
        if self._deliveries is not None:
            self._deliveries.tend()

    async def _watch(self, cloud: Escalation, confirmed: asyncio.Event) -> None:
        """Check again and again that the cloud still is the certified one; sooner while it does not answer."""
        while True:
            answered = await cloud.probe()
            confirmed.set()
            await asyncio.sleep(self._settings.reference_check_s if answered else self._settings.cool_down_s)

    def _stay_home(self) -> None:
        """Refuse a second event loop: connections and tasks belong to the first."""
        loop = asyncio.get_running_loop()
        if self._home is None:
            self._home = loop
        elif self._home is not loop:
            raise RuntimeError("This router belongs to another event loop; make one a loop, or use answer_blocking.")

    def _owing(self, cloud: Escalation) -> Deliveries:
        return Deliveries(
            cloud,
            self._plugs.outbox,
            self._plugs.answers,
            self._background,
            self._instruments,
            clock=self._plugs.clock,
            retry_s=self._settings.cool_down_s,
            on_final=self._keep_late,
        )

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
