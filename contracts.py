"""The values that cross rooms and the Protocols that rooms plug into.

Owns shapes and meanings only: no I/O, no rule, no default behaviour beyond folding a stream of events into its answer.
Values are frozen `msgspec` structs. Times carry their unit in the name.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.dialogue import Piece, Prompt, TokenChoice, Written

Input: TypeAlias = str | bytes | NDArray[Any] | Prompt
"""A text, an encoded image file (PNG, JPEG, …), raw pixels, (height, width) or (height, width, channels), or what a
language model is asked."""

Output: TypeAlias = str | tuple[float, ...]
"""One answer: a label or generated text, or a vector (an embedding)."""

FloatArray: TypeAlias = NDArray[np.floating[Any]]


def new_id() -> str:
    """A fresh random id for a request whose caller brought none."""
    return os.urandom(16).hex()


class Mode(StrEnum):
    """How a request trades waiting against certainty."""

    GUARDED = "guarded"
    """Wait for the cloud while the budget allows, then answer provisionally."""
    SPECULATIVE = "speculative"
    """Send the edge answer at once as provisional; the cloud's follows."""
    EDGE_ONLY = "edge_only"
    """Never ask the cloud; answers are final and uncertified."""
    CLOUD_ONLY = "cloud_only"
    """Always ask the cloud; the edge answers only provisionally, when the cloud fails."""


class DataPolicy(StrEnum):
    """Where the data of a request may go."""

    ANY = "any"
    LOCAL_ONLY = "local_only"
    """Never leaves the process that received it: no cloud, no outbox, no shared cache."""


class Action(StrEnum):
    """What the router decided to do."""

    LOCAL = "local"
    ESCALATE = "escalate"
    PROVISIONAL = "provisional"
    """Answer here, not as final, and ask nobody: a policy that saves calls wants it so."""


class Reason(StrEnum):
    """Why; the same word stands in the answer, the trace and the metrics."""

    CONFIDENT = "confident"
    BELOW_THRESHOLD = "below_threshold"
    UNLISTED_GROUP = "unlisted_group"
    """The certificate lists groups, and the request is of none of them."""
    OUT_OF_DISTRIBUTION = "out_of_distribution"
    """The input is none that the edge model was made for; no score counts then."""
    TOO_COMPLEX = "too_complex"
    """The input looks so hard that the edge model was not asked."""
    RANDOM = "random"
    """A coin decided: the baseline that every router has to beat."""
    SAVED = "saved"
    """Not confident, and what may be spent today is kept for less confident requests: no update will follow."""
    THRESHOLD_RAISED = "threshold_raised"
    """Confident by a threshold that was raised after an audit alarm; uncertified until it is certified again."""
    LOCAL_ONLY = "local_only"
    EDGE_ONLY = "edge_only"
    CLOUD_ONLY = "cloud_only"
    SPECULATIVE = "speculative"
    BREAKER_OPEN = "breaker_open"
    BUDGET_SPENT = "budget_spent"
    CLOUD_FAILED = "cloud_failed"
    CLOUD_REFUSED = "cloud_refused"
    """The cloud is well and refuses this very item: no update will follow."""
    CERTIFICATE_VOID = "certificate_void"
    CERTIFICATE_EXPIRED = "certificate_expired"
    """The certificate's stated life is over, or the clock is too wrong to tell."""
    AUDIT_ALARM = "audit_alarm"
    """Audits showed that the promise is not kept: everything is escalated until it is certified again."""
    CACHE_HIT = "cache_hit"
    EXPIRED = "expired"
    """The final answer is owed no more: it stayed away too long, or newer requests needed the room."""
    NO_ROUTER = "no_router"
    """Answered by a service that has only one model behind it."""
    GATE_LATE = "gate_late"
    """The first tokens did not come in time to be judged; what was written by then is not what was certified."""
    CONFIDENCE_COLLAPSED = "confidence_collapsed"
    """The beginning was confident, and what followed was not."""
    BEYOND_EDGE = "beyond_edge"
    """The edge model cannot take this prompt: it is too long for it, or it knows no tools, or not that schema."""
    INVALID_TOOL_CALL = "invalid_tool_call"
    """The edge model calls a tool that does not exist, or with arguments that its schema refuses."""
    SAMPLED = "sampled"
    """Confident, and drawn at random as the request wants it: uncertified, since certificates speak of greedy
    decoding."""
    UNLIKE_CERTIFIED = "unlike_certified"
    """Confident, and asked for in a way that no certificate speaks of: with a schema, a call that must come, an answer
    that has begun, or fewer tokens than are judged."""
    FAIL_OVER = "fail_over"
    """The reference did not answer, and another backend stood in for it: final, and not the reference's word."""


FINAL_PROVISIONALS = frozenset({Reason.CLOUD_REFUSED, Reason.SAVED, Reason.EXPIRED})
"""Reasons of provisional answers that no update follows."""


class Status(StrEnum):
    """Whether an answer may still change."""

    FINAL = "final"
    PROVISIONAL = "provisional"
    """Not covered by a certificate. The cloud's answer follows under the same id, unless the reason rules it out."""


class Source(StrEnum):
    """Where an answer was computed."""

    EDGE = "edge"
    CLOUD = "cloud"
    CACHE = "cache"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One item to answer.

    Attributes:
        inputs: The item.
        id: Unique within the tenant; the answer and every later update carry it.
        tenant: Whose request it is; comes from the API key, never from the body.
        task: Task the client expects, or empty for the model's own.
        budget_ms: Milliseconds until the caller needs an answer, queueing included; None sets no limit.
        patience_ms: Milliseconds for which an answer is of use to a caller that owes it to somebody when the budget is
            spent; None means no longer than the budget.
        mode: How to trade waiting against certainty; None takes the gateway's default.
        profile: Named latency profile, or None.
        data_policy: Where the data may go.
        session: Requests of one session keep their order, or None.
        attributes: Free labels for slices and groups.
        arrived_s: When it reached this process, in monotonic seconds; its budget runs from there. None: when the
            service hears of it. Never sent or stored.
        revisable: Whether its caller can take back text that it was told already. Never sent or stored.
        whole: Whether its caller reads a stream of tokens only once all of it is there, so that its budget is the time
            to the whole answer. Never sent or stored.
    """

    inputs: Input
    id: str = msgspec.field(default_factory=new_id)
    tenant: str = "public"
    task: str = ""
    budget_ms: float | None = None
    patience_ms: float | None = None
    mode: Mode | None = None
    profile: str | None = None
    data_policy: DataPolicy = DataPolicy.ANY
    session: str | None = None
    attributes: Mapping[str, str] = msgspec.field(default_factory=dict)
    arrived_s: float | None = None
    revisable: bool = False
    whole: bool = False


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a local model says of one item; the router, not the model, turns it into a score.

    Attributes:
        output: The label of the largest logit; the entities of a tagger, as JSON; an embedder's vector; the text.
        logits: Shape (classes,), float32, of a tagger those of its least certain token; None for an embedder or a
            generator.
        token_logprobs: Log-probability of each generated token, or None for a classifier.
        embedding: Shape (width,), float32, where the graph declares one.
        margin: The largest softmax probability minus the second, where the graph itself computes it; of a generator
            that of its first token.
        out_of_distribution: Whether the input is none that the model was made for, such as a text of unknown words.
        written: How a generated text came about; None where it is none, or not over yet.
    """

    output: Output
    logits: FloatArray | None = None
    token_logprobs: FloatArray | None = None
    embedding: FloatArray | None = None
    margin: float | None = None
    out_of_distribution: bool = False
    written: Written | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the router decided and on what grounds.

    Attributes:
        action: Answer here or escalate.
        reason: Why.
        policy: Name of the policy that decided.
        score: Confidence of the edge prediction, or None where it was not needed.
        threshold: Local iff score > threshold; None where no threshold was applied.
        certificate_id: The certificate that covers this answer; None means uncertified.
    """

    action: Action
    reason: Reason
    policy: str
    score: float | None = None
    threshold: float | None = None
    certificate_id: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, final or provisional.

    Attributes:
        id: The request's id.
        output: Label, text or vector.
        status: Final, or provisional with an update to come, unless its reason is one of `FINAL_PROVISIONALS`.
        source: Where it was computed.
        decision: The router's decision.
        timings_ms: Milliseconds by stage; "total" is always there.
        model_digest: Digest of the model that computed it: the edge bundle's, or the cloud's version.
        written: How a generated text came about; None where it is none.
    """

    id: str
    output: Output
    status: Status
    source: Source
    decision: Decision
    timings_ms: Mapping[str, float]
    model_digest: str
    written: Written | None = None

    @property
    def is_settled(self) -> bool:
        """Whether no update will follow."""
        return self.status is Status.FINAL or self.decision.reason in FINAL_PROVISIONALS


class Token(msgspec.Struct, frozen=True, tag="token", kw_only=True):
    """A piece of generated text.

    Attributes:
        id: The request's id.
        text: The text; pieces of one answer concatenate to it.
        logprob: Natural log-probability of its token; None where it is not one token, or nobody says.
        source: Who wrote it; None takes the answer's word.
        top: The likeliest tokens in its place, where they were asked for.
    """

    id: str
    text: str
    logprob: float | None = None
    source: Source | None = None
    top: tuple[TokenChoice, ...] = ()


class Answered(msgspec.Struct, frozen=True, tag="answer"):
    """The first whole answer."""

    answer: Answer


class Revised(msgspec.Struct, frozen=True, tag="revise"):
    """A final answer that follows a provisional one, under the same id."""

    answer: Answer


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Nothing more will come on this stream. `pending` tells that an update will still be stored for later pick-up."""

    id: str
    pending: bool = False


Event: TypeAlias = Token | Answered | Revised | Done


class Reference(msgspec.Struct, frozen=True):
    """A cloud backend and the exact version that answers; certificates are issued against one.

    Attributes:
        name: Model name in the cloud's own words.
        version: Digest or version of its weights and decoding.
    """

    name: str
    version: str


class CloudReply(msgspec.Struct, frozen=True):
    """What the cloud answered, and which version of it answered.

    Attributes:
        output: The final answer.
        reference: Who gave it.
        fail_over: Given by a backend that stands in for the one that was meant: never the certified reference.
        written: How a generated text came about, where the cloud says so.
    """

    output: Output
    reference: Reference
    fail_over: bool = False
    written: Written | None = None


class Bound(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a calibration set proves: with probability at least 1-delta, the risk at `threshold` is at most alpha.

    Attributes:
        threshold: Answer locally iff score > threshold. `inf` answers nothing locally, `-inf` everything with a score.
        local_share: Fraction of the calibration items above the threshold.
        n: Calibration items.
        k: Of agreement: allowed disagreements, the largest k with BinomCDF(k; n, alpha) <= delta. Of accuracy and
            selective risk: items above the threshold that count against the edge.
        alpha: Bound on the risk, in (0, 1).
        delta: Probability that the bound fails, in (0, 1).
        local_share_interval: Where the share of all such requests above the threshold lies with 95 % confidence,
            whatever threshold was chosen (Dvoretzky, Kiefer & Wolfowitz 1956, with Massart's constant, 1990).
    """

    threshold: float
    local_share: float
    n: int
    k: int
    alpha: float
    delta: float
    local_share_interval: tuple[float, float] = (0.0, 1.0)


class Groups(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that hold in each group of requests on its own, each at delta divided by the number of groups.

    Attributes:
        by: The request attribute that names the group; "label" for the label that the edge model predicts.
        bounds: A bound by group; a request of no listed group is escalated.
    """

    by: str
    bounds: Mapping[str, Bound]


class Certificate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A bound plus the identity of everything it was proved for. It speaks of nothing else.

    Attributes:
        id: Digest of all other fields, those left out that have their default.
        bound: The bound; with groups, the one of the group with the fewest local answers, for display only.
        target: What was bounded: "agreement" with the reference, "accuracy" lost to it, or "selective" risk: wrong
            among the local answers.
        model_digest: The edge bundle.
        signal: Name of the score.
        data_digest: The certifying items.
        reference: The cloud that was agreed with.
        created: ISO 8601, UTC.
        runtime: Version of the runtime that computed the scores.
        isa: Instruction-set class of the machine that computed the scores.
        expires: ISO 8601, UTC: the end of its stated life; None states none.
        fitted_digest: Digest of what was fitted on the tuning part and decides with the signal, or None.
        groups: Bounds by group; None where one threshold holds for all.
        score_deciles: The nine inner deciles of the certifying items' scores, to compare live traffic with.
        out_of_distribution_share: Share of the certifying items that have no score.
        recertification: 0 where calibration items were asked for it; j where it is the j-th earned from live audits.
        judge: Name of the function by which two texts agree; empty where outputs agree that are the same.
    """

    id: str
    bound: Bound
    target: str
    model_digest: str
    signal: str
    data_digest: str
    reference: Reference
    created: str
    runtime: str
    isa: str
    expires: str | None = None
    fitted_digest: str | None = None
    groups: Groups | None = None
    score_deciles: tuple[float, ...] = ()
    out_of_distribution_share: float = 0.0
    recertification: int = 0
    judge: str = ""


class ServiceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a front door says of the service behind it.

    Attributes:
        name: Model name in URLs.
        version: Model digest or version.
        task: For instance "text-classification" or "image-classification".
        labels: The labels, in the order of the logits; empty where there are none.
        input: "text" or "image".
        role: "gateway" or "cloud".
    """

    name: str
    version: str
    task: str
    labels: tuple[str, ...]
    input: str
    role: str


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A model behind a front door.

    Attributes:
        info: What is said of it.
        service: Answers its requests.
        ready: Gives None while it answers, else the reason why not.
    """

    info: ServiceInfo
    service: Any
    """An `AnswerService`; msgspec knows no Protocols."""
    ready: Callable[[], str | None]


class Example(msgspec.Struct, frozen=True):
    """One item of a data file; label None where the file has none."""

    input: Input
    label: str | None = None


class Clock(Protocol):
    """Time, passed in so that rules can be tested."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        ...

    def time(self) -> float:
        """Seconds since the epoch."""
        ...


class Progress(Protocol):
    """Where long work says how far it is; the command line draws it."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins, of `total` steps where that is known."""
        ...

    def advance(self, steps: int = 1) -> None:
        """Steps of the current stage are done."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


@runtime_checkable
class LocalModel(Protocol):
    """A model that answers in this process."""

    @property
    def digest(self) -> str:
        """Digest of its bundle."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the order of the logits."""
        ...

    @property
    def task(self) -> str:
        """Its task."""
        ...

    def predict(self, inputs: Sequence[Input]) -> list[Prediction]:
        """Predict each item on its own, as serving does (batch of one), in order.

        Raises:
            InputError: An item the model cannot read.
        """
        ...


class Writing(Protocol):
    """An answer that a language model writes: an iterator of its pieces, for one thread at a time."""

    def __iter__(self) -> Iterator[Piece]:
        """Itself."""
        ...

    def __next__(self) -> Piece:
        """The next piece; computed when it is asked for."""
        ...

    def stop(self) -> None:
        """End before the next token; any thread may call it, any number of times."""
        ...

    def close(self) -> None:
        """End now and give back what it holds; for the thread that iterates.

        What was computed is kept for the session.
        """
        ...

    @property
    def written(self) -> Written:
        """How it came about, once it has ended; until then what is known, as interrupted."""
        ...


@runtime_checkable
class LocalGenerator(Protocol):
    """A language model that writes in this process."""

    @property
    def digest(self) -> str:
        """Digest of its bundle."""
        ...

    @property
    def task(self) -> str:
        """Its task."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    def write(self, prompt: Prompt, *, tenant: str = "", session: str | None = None) -> Writing:
        """Begin to answer; blocks, as reading the first piece does, while the prompt is computed.

        Args:
            prompt: What is asked.
            tenant: Whose session it is.
            session: What was computed for earlier turns of this session need not be again; None has no earlier turns.

        Raises:
            InputError: The prompt cannot be answered: too long, refused by the chat template, a schema that is none, …
        """
        ...


@runtime_checkable
class CloudClient(Protocol):
    """One cloud backend."""

    async def describe(self, *, timeout_s: float) -> Reference:
        """Ask which model and version answers there.

        Raises:
            CloudError: It cannot be reached, is not ready, or does not say.
        """
        ...

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Ask for the final answer to one request; cancelling cancels the call.

        Raises:
            CloudRefusedError: It will refuse this very request every time.
            CloudError: No answer within `timeout_s`, or not an answer.
        """
        ...

    async def aclose(self) -> None:
        """Close its connections."""
        ...


@runtime_checkable
class StreamingCloudClient(CloudClient, Protocol):
    """A backend that also sends its answer piece by piece."""

    def stream(self, request: Request, *, timeout_s: float) -> AsyncIterator[Token | CloudReply]:
        """Ask for the final answer in pieces; the whole reply is the last element, whatever came before it.

        Closing the iterator cancels the call.

        Raises:
            CloudRefusedError: It will refuse this very request every time.
            CloudError: The stream was not whole within `timeout_s`, broke off, or is not an answer.
        """
        ...


@runtime_checkable
class AnswerService(Protocol):
    """Anything a front door can stand before."""

    def events(self, request: Request) -> AsyncIterator[Event]:
        """Answer one request as a stream that ends with `Done`.

        Closing the stream before its first answer cancels the work; closing it after a provisional answer does not
        cancel the update.

        Raises:
            RequestError: The request cannot be answered as asked.
            CloudError: There is no answer, not even a provisional one.
        """
        ...


@runtime_checkable
class PromptService(AnswerService, Protocol):
    """A service that has some answers at once; nobody needs to make a task or a stream for those."""

    def respond(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        """The first whole answer where it is known without waiting, else the work that brings it.

        Cancelling the work cancels everything behind it. The work must be awaited or closed.

        Raises:
            RequestError: The request cannot be answered as asked; also raised by the work.
        """
        ...


async def answer(service: AnswerService, request: Request) -> Answer:
    """Fold the stream of a request into its first whole answer.

    Raises:
        RequestError: The request cannot be answered as asked.
        CloudError: There is no answer, not even a provisional one.
    """
    events = service.events(request)
    try:
        async for event in events:
            if isinstance(event, Answered):
                return event.answer
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
    raise RuntimeError(f"{type(service).__name__} ended the stream of request {request.id} without an answer.")


class Policy(Protocol):
    """Decides where a request is answered: before the edge model runs, or after it."""

    @property
    def name(self) -> str:
        """Name in decisions and metrics."""
        ...

    def before(self, request: Request) -> Decision | None:
        """Decide without a prediction, or None to run the edge model first."""
        ...

    def after(self, request: Request, prediction: Prediction, score: float) -> Decision:
        """Decide with the edge prediction and its score; NaN escalates."""
        ...


class Signal(Protocol):
    """Turns logits into a confidence score: larger is more confident."""

    def __call__(self, logits: FloatArray) -> FloatArray:
        """Score logits of shape (…, classes) as shape (…)."""
        ...


class ResponseCache(Protocol):
    """Final answers by key, in this process; never provisional ones."""

    def get(self, key: bytes) -> Answer | None:
        """The answer stored under `key`, or None."""
        ...

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep a final answer."""
        ...


class SharedCache(Protocol):
    """Final answers by key that several processes share; a cache that is away is an empty one."""

    async def get(self, key: bytes) -> Answer | None:
        """The answer stored under `key`, or None, also where the cache does not answer in time."""
        ...

    async def put(self, key: bytes, answer: Answer) -> None:
        """Keep a final answer; does nothing where the cache does not answer in time."""
        ...

    async def aclose(self) -> None:
        """Close its connections."""
        ...


class Debt(msgspec.Struct, frozen=True):
    """A request owed a final answer, without its content.

    Attributes:
        tenant: Whose it is.
        id: The request.
        session: Requests of one session keep their order, or None.
        created_s: When it was owed, seconds since the epoch.
    """

    tenant: str
    id: str
    session: str | None
    created_s: float


class Outbox(Protocol):
    """Requests owed a final answer, durable once `put` returned."""

    def put(self, request: Request) -> bool:
        """Owe an answer; False, and nothing changes, where one is owed under the same (tenant, id) already.

        Raises:
            OutboxFullError: One of its limits is reached.
        """
        ...

    def pending(self, limit: int) -> list[Request]:
        """The oldest owed requests."""
        ...

    def debts(self) -> list[Debt]:
        """Everything that is owed, oldest first, without the content."""
        ...

    def request(self, tenant: str, request_id: str) -> Request | None:
        """One owed request, or None."""
        ...

    def in_the_way(self, request: Request) -> list[Debt]:
        """The oldest owed requests that have to go before this one fits; none where it fits.

        Raises:
            OutboxFullError: It would not fit into an empty outbox.
        """
        ...

    def __len__(self) -> int:
        """How many answers are owed."""
        ...

    def done(self, tenant: str, request_id: str) -> None:
        """The answer is stored; forget the request."""
        ...


class Kept(msgspec.Struct, frozen=True):
    """An answer that is kept, and what it answers.

    Attributes:
        answer: The newest answer.
        item: Digest of the task and the item that it answers; None where that is not known.
    """

    answer: Answer
    item: bytes | None


class AnswerStore(Protocol):
    """Answers kept for later pick-up, by tenant and request id."""

    def put(self, tenant: str, answer: Answer, *, item: bytes | None = None) -> None:
        """Store an answer; a final one is never replaced.

        Args:
            tenant: Whose it is.
            answer: The answer.
            item: Digest of the task and the item that it answers; None leaves what is known.
        """
        ...

    def find(self, tenant: str, request_id: str) -> Kept | None:
        """The newest answer and what it answers, or None."""
        ...

    def get(self, tenant: str, request_id: str) -> Answer | None:
        """The newest answer, or None."""
        ...

    async def wait_final(self, tenant: str, request_id: str, *, timeout_s: float) -> Answer | None:
        """Wait until the answer is final, or no update will follow, or time is up; then the newest answer, or None."""
        ...


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """A settled answer that is owed to a webhook.

    Attributes:
        position: Its place in the queue.
        target: Name of the webhook in the configuration.
        tenant: Whose answer it is.
        answer: The answer.
        created_s: When it was queued, seconds since the epoch.
        attempts: Deliveries that failed.
    """

    position: int
    target: str
    tenant: str
    answer: Answer
    created_s: float
    attempts: int = 0


class HookQueue(Protocol):
    """Answers owed to webhooks, durable once `put` returned."""

    def put(self, target: str, tenant: str, answer: Answer) -> None:
        """Owe a settled answer to a webhook; a second time under the same (target, tenant, id) changes nothing."""
        ...

    def due(self, now_s: float, limit: int) -> list[Hook]:
        """The oldest that may be delivered now, at most `limit`."""
        ...

    def retry(self, position: int, due_s: float) -> None:
        """A delivery failed; not again before `due_s`, seconds since the epoch."""
        ...

    def done(self, position: int) -> None:
        """Delivered, or given up: forget it."""
        ...

    def __len__(self) -> int:
        """How many are owed."""
        ...


class AuditLog(Protocol):
    """Audit draws and their verdicts, in draw order, by epoch: a certificate, or a stage of one after an alarm."""

    def drawn(self, request_id: str, epoch: str) -> int:
        """Record a draw before its request is answered; returns its position."""
        ...

    def verdict(self, position: int, verdict: AuditVerdict) -> None:
        """Settle a draw; the first verdict stands. A draw never settled counts as missing."""
        ...

    def advance(self, epoch: str, fold: Callable[[bytes | None, Sequence[AuditVerdict]], bytes]) -> bytes:
        """Fold the verdicts that settled since last time into the epoch's state, in draw order, as one write.

        Only verdicts in front of the first draw that is still open are handed over, each exactly once, whatever dies
        in between. Returns the state; `fold` is called also where there is nothing new and no state yet.
        """
        ...

    def verdicts(self, epoch: str, limit: int) -> list[AuditVerdict]:
        """The first settled verdicts of an epoch, in draw order, up to the first draw that is still open."""
        ...

    def totals(self, epoch: str) -> AuditTotals:
        """Counts under one epoch."""
        ...

    def remember(self, key: str, value: bytes) -> None:
        """Keep a value under a key, durable when it returns."""
        ...

    def recall(self, key: str) -> bytes | None:
        """The value kept under a key, or None."""
        ...


class Spending(Protocol):
    """What was spent on cloud calls, by day; durable, so that a restart does not spend a day's budget twice."""

    def spent(self, day: str) -> float:
        """Calls or money spent on a day, ISO 8601 date, UTC."""
        ...

    def spend(self, day: str, amount: float) -> float:
        """Add to a day's spending before the call is made; returns the day's total."""
        ...


class AuditVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit of one request found.

    Attributes:
        violation: Answered locally as final and differing from the reference, or so counted because no verdict came.
        missing: No verdict came.
        score: The edge prediction's score; None where the edge was not asked or there is none.
        differs: Whether edge and reference differ, answered locally or not; None where one of them was not asked.
    """

    violation: bool
    missing: bool = False
    score: float | None = None
    differs: bool | None = None


class AuditTotals(msgspec.Struct, frozen=True):
    """Audits under one epoch.

    Attributes:
        drawn: Requests drawn.
        violations: Answered locally as final and differing from the reference, missing verdicts included.
        missing: Draws whose verdict never came; each also counts as a violation.
        open: Draws still waiting for their verdict.
    """

    drawn: int = 0
    violations: int = 0
    missing: int = 0
    open: int = 0
