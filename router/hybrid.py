"""The one flow: every request of HTTP, streams and the Python API is answered here and nowhere else.

    audit drawn? → exact cache → policy → edge model → score → certificate, breaker, budget
        ├ local: final
        ├ saved: provisional, and nobody is asked
        └ escalated: the cloud within the remaining budget, else provisional now and the cloud's answer later

Owns the order of these steps and the tasks they start. What is promised is `promise`'s, what an answer is worth is
`judgement`'s, where it is answered is the policies'; models, clouds and stores are plugged in through the Protocols of
`contracts`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec

from edgewise import contracts
from edgewise.contracts import (
    FINAL_PROVISIONALS,
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
    Prediction,
    Reference,
    Request,
    Revised,
    Status,
)
from edgewise.errors import ConfigError, InputError, RequestError
from edgewise.router import certificate as certificates
from edgewise.router.background import Background, LoopThread
from edgewise.router.breaker import Breaker
from edgewise.router.delivery import Deliveries
from edgewise.router.escalation import Escalation
from edgewise.router.guard import Guard
from edgewise.router.instruments import Instruments, ShownSpending
from edgewise.router.judgement import Judgement
from edgewise.router.policies import PolicyPlugs, policy_for, policy_named
from edgewise.router.promise import Promise
from edgewise.router.recall import Recall
from edgewise.router.settings import Plugs, RouterSettings
from edgewise.router.turn import Turn
from edgewise.router.verdicts import audits_of

if TYPE_CHECKING:
    from edgewise.router.fitted import Fitted

_log = logging.getLogger("edgewise.router")
_FIRST_CHECK_S = 1.0


class Router:
    """Answers each request at the edge where the certificate covers it, and through the cloud where not.

    Args:
        edge: The local model.
        cloud: The reference cloud; None only where the settings' mode is `edge_only`.
        certificate: Certificate of this edge model; None escalates every routed request.
        fitted: What was fitted for the certificate, the very one that it names; None where it names none.
        settings: Behaviour where a request does not say.
        plugs: Cache, stores, metrics, clock and randomness.

    Raises:
        CertificateError: The certificate was issued for another model, or for something fitted that is not given.
        ConfigError: There is no cloud and requests are routed, the certificate's signal is unknown, or a setting of
            the policy is missing or out of its range.
    """

    def __init__(
        self,
        edge: LocalModel,
        cloud: CloudClient | None,
        certificate: Certificate | None,
        *,
        fitted: Fitted | None = None,
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
            given = certificate.fitted_digest if fitted is not None else None
            certificates.check_model(certificate, edge.digest, given)
        kind = policy_named(self._settings.policy.use)
        self._is_certified = kind.certified
        promised = certificate if kind.certified else None
        self._edge = edge
        self._instruments = Instruments(self._plugs.metrics)
        self._judgement = Judgement(promised, fitted, self._instruments)
        self._promise = self._promised(promised, fitted, rationed=kind.rationed)
        self._routed = kind.build(self._settings.policy, self._policy_plugs())
        self._background = Background()
        self._cloud = None if cloud is None else self._escalation(cloud)
        self._deliveries = None if self._cloud is None else self._owing(self._cloud)
        self._verdicts = audits_of(self._settings, self._plugs, self._instruments, self._promise, self._cloud)
        self._reference = promised.reference if promised else None
        self._cache = Recall(self._plugs.cache, edge.digest)
        self._executor = ThreadPoolExecutor(self._settings.inference_threads, thread_name_prefix="edgewise-edge")
        self._home: asyncio.AbstractEventLoop | None = None
        self._loop_thread = LoopThread()

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
        await self._verdicts.aclose()
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
            every_s, retry_s = self._settings.reference_check_s, self._settings.cool_down_s
            self._background.start(self._cloud.watch(confirmed, every_s=every_s, retry_s=retry_s))
            # A cloud that is up is checked before the first answer; one that is not holds nobody up for long.
            with suppress(TimeoutError):
                await asyncio.wait_for(confirmed.wait(), _FIRST_CHECK_S)
            self._deliveries.tend()
        try:
            yield
        finally:
            await self.aclose()

    def _begin(self, request: Request) -> Turn:
        if request.task and request.task != self._edge.task:
            raise RequestError("task", f"This gateway does {self._edge.task}, not {request.task}.", "Leave task out.")
        mode, budget_ms = self._settings.promise(request)
        if self._cloud is None and mode is not Mode.EDGE_ONLY and request.data_policy is not DataPolicy.LOCAL_ONLY:
            raise RequestError("mode", f"mode is {mode.value!r} and this gateway has no cloud.", "Ask for edge_only.")
        self._promise.look()
        policy = policy_for(request, mode, self._routed)
        clock = self._plugs.clock
        started = clock.monotonic()
        deadline = math.inf if budget_ms is None else started + budget_ms / 1000
        draw = self._verdicts.draw(request) if policy is self._routed else None
        return Turn(request, mode, policy, started, deadline, draw, clock)

    async def _answer(self, turn: Turn) -> AsyncGenerator[Event, None]:
        decision, prediction = await (self._decide(turn) if turn.draw is None else self._decide_drawn(turn))
        if prediction is None or decision.action is Action.ESCALATE:
            async with aclosing(self._escalate(turn, prediction, decision)) as steps:
                async for event in steps:
                    yield event
            return
        yield Answered(self._answer_here(turn, prediction, decision))
        yield Done(turn.request.id)

    async def _decide_drawn(self, turn: Turn) -> tuple[Decision, Prediction | None]:
        """The same for an audited request, which is settled whatever becomes of it and of who asked."""
        deciding = asyncio.ensure_future(self._decide(turn))
        try:
            await asyncio.wait({deciding})
        except BaseException:
            self._verdicts.given_up(turn, deciding)
            raise
        try:
            return deciding.result()
        except RequestError:
            turn.unreadable()
            raise
        except BaseException:
            turn.failed()
            raise

    async def _decide(self, turn: Turn) -> tuple[Decision, Prediction | None]:
        """The policy's decision, and the edge model's prediction unless it is not needed."""
        decision = turn.policy.before(turn.request)
        if decision is not None and decision.action is Action.ESCALATE:
            return decision, None
        prediction = await self._predict(turn)
        return decision or self._judgement.decide(turn.policy, turn.request, prediction), prediction

    def _answer_here(self, turn: Turn, prediction: Prediction, decision: Decision) -> Answer:
        """The edge answer that nobody else is asked about: final, or provisional to save a call."""
        if decision.action is Action.PROVISIONAL:
            self._verdicts.answered_provisionally(turn, prediction, decision, None)
            self._instruments.provisional.inc("saved")
            return turn.by_edge(prediction, decision, Status.PROVISIONAL, self._edge.digest)
        final = turn.by_edge(prediction, decision, Status.FINAL, self._edge.digest)
        if turn.draw is None:
            # Whoever waited for an audited decision may come back to another promise than it was made under.
            self._keep(turn.request, turn.mode, final, self._reference)
        self._verdicts.answered_here(turn, final)
        return final

    async def _escalate(
        self, turn: Turn, prediction: Prediction | None, decision: Decision
    ) -> AsyncGenerator[Event, None]:
        call = self._start_call(turn.request)
        try:
            reply = await turn.wait_for(call)
            if isinstance(reply, CloudReply):
                self._verdicts.answered_by_cloud(turn, prediction, decision, reply)
                final = turn.by_cloud(reply, decision)
                self._keep(turn.request, turn.mode, final, reply.reference)
                yield Answered(final)
                yield Done(turn.request.id)
                return
            self._verdicts.answered_provisionally(turn, prediction, decision, call)
            prediction = prediction or await self._predict(turn)
            stopgap = msgspec.structs.replace(decision, reason=reply, certificate_id=None)
            provisional = turn.by_edge(prediction, stopgap, Status.PROVISIONAL, self._edge.digest)
            owing = self._deliveries if reply not in FINAL_PROVISIONALS else None
            update = owing.owe(turn.request, provisional, call) if owing else None
            call = None
        finally:
            if call is not None:
                # Whoever gives up waiting was not answered here either.
                turn.not_answered_here(decision)
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

    async def _predict(self, turn: Turn) -> Prediction:
        """The edge model's prediction, off the event loop.

        Raises:
            RequestError: The model cannot read the item.
        """
        began = self._plugs.clock.monotonic()
        loop = asyncio.get_running_loop()
        try:
            (prediction,) = await loop.run_in_executor(self._executor, self._edge.predict, [turn.request.inputs])
        except InputError as error:
            raise RequestError("inputs", error.problem, error.remedy) from error
        turn.timings_ms["edge"] = 1000 * (self._plugs.clock.monotonic() - began)
        return prediction

    def _recall(self, turn: Turn) -> Answer | None:
        """The cached answer to the same request; audited requests do not ask."""
        if turn.draw is not None:
            return None
        scope = self._promise.scope(turn.request)
        found = self._cache.find(turn.request, turn.mode, scope, self._reference)
        return None if found is None else msgspec.structs.replace(found, timings_ms=turn.timings())

    def _keep(self, request: Request, mode: Mode, final: Answer, reference: Reference | None) -> None:
        self._cache.keep(request, mode, self._promise.scope(request), reference, final)

    def _keep_late(self, request: Request, final: Answer, reference: Reference) -> None:
        with suppress(RequestError):  # an owed request of an earlier run may name a profile that is gone
            self._keep(request, self._settings.promise(request)[0], final, reference)

    def _promised(self, certificate: Certificate | None, fitted: Fitted | None, *, rationed: bool) -> Promise:
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

    def _policy_plugs(self) -> PolicyPlugs:
        spending = self._plugs.spending
        shown = None if spending is None else ShownSpending(spending, self._instruments.spent_today)
        return PolicyPlugs(self._promise, self._plugs.clock, self._plugs.uniform, shown)

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
        self._reference = reference
        self._promise.heard(reference)
