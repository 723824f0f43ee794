"""The target's side of speculative decoding over a network: sessions, and one forward pass a draft.

Owns the sessions, who waits for whom, and how a target is asked. The rule on drafts is `acceptance`'s, the bytes are
`wire.verify`'s.

A session is the tokens that client and server agree on, and what the target has computed of them (its key-value cache).
Sessions are kept by tenant and by name, the least recently used go first, and idle ones are freed. None is worth more
than time: a client whose session is gone sends its tokens again.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise import telemetry
from edgewise.cloud.acceptance import Drawn, Probabilities, Verdict, accept_greedy, accept_sampled, target_distribution
from edgewise.contracts import Clock
from edgewise.dialogue import Sampling
from edgewise.errors import CloudUnreachableError, InputError, RequestError
from edgewise.telemetry import Metrics
from edgewise.wire import verify
from edgewise.wire.faults import Fault
from edgewise.wire.verify import VerifyPrompt, VerifyReference, VerifyReply, VerifyRequest

Logits: TypeAlias = NDArray[np.float32]

# Tokens are drawn by another stream of the seed than whatever a client draws with it.
_STREAM = 0x5EC


class Target(Protocol):
    """A language model with a cache of its own making."""

    @property
    def context(self) -> int:
        """Tokens that it reads at most."""
        ...

    @property
    def vocabulary(self) -> int:
        """Ids that it knows: those below."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...

    def begin(self) -> Any:
        """A cache that holds nothing."""
        ...

    def forward(self, cache: Any, ids: Sequence[int], last: int) -> Logits:
        """Compute tokens behind those in the cache, which holds them afterwards; the logits after the `last` ones."""
        ...

    def crop(self, cache: Any, length: int) -> None:
        """Keep the first `length` tokens of a cache."""
        ...


class TorchTarget:
    """A causal language model of transformers. One call at a time.

    Args:
        model: In evaluation mode.
        context: Tokens that it reads at most.
        vocabulary: Ids that stand for something; it may have more logits, which count for nothing.
        ends: Ids that end an answer.
    """

    def __init__(self, model: Any, *, context: int, vocabulary: int, ends: frozenset[int]) -> None:
        self._model = model
        self.context = context
        self.vocabulary = vocabulary
        self.ends = ends
        # Logits of a whole prompt would be its length times the vocabulary.
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def begin(self) -> Any:
        """A cache that holds nothing; it keeps every token also of models that look back a limited way: see `crop`."""
        from transformers import DynamicCache

        return DynamicCache()

    def forward(self, cache: Any, ids: Sequence[int], last: int) -> Logits:
        """See `Target`."""
        import torch

        kept = {"logits_to_keep": last} if self._keeps else {}
        with torch.inference_mode():
            given = torch.tensor([list(ids)], dtype=torch.long)
            logits = self._model(input_ids=given, past_key_values=cache, use_cache=True, **kept).logits
        return np.asarray(logits[0, -last:, : self.vocabulary].float().numpy())

    def crop(self, cache: Any, length: int) -> None:
        """See `Target`."""
        cache.crop(length)


@dataclass(frozen=True)
class VerifierLimits:
    """What sessions may take.

    Attributes:
        sessions: Sessions kept at most.
        tokens: Tokens of all sessions together; a cache takes tens of kilobytes a token. One session may have as many
            as the target reads, whatever this says.
        idle_s: Seconds after which a session that nobody uses is freed.
        waiting: Requests that wait or compute at most; one more is told to come back.
    """

    sessions: int = 64
    tokens: int = 32_768
    idle_s: float = 300.0
    waiting: int = 64


@dataclass
class _Session:
    """What is agreed on, and how much of it the cache holds."""

    cache: Any
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    used_s: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class VerifyMetrics:
    """Counts what became of drafts.

    Args:
        metrics: Where it is counted.
        name: The target.
    """

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._name = name
        self._tokens = metrics.counter(*telemetry.VERIFIED_TOKENS)
        self._seconds = metrics.histogram(*telemetry.VERIFY_SECONDS)

    def observe(self, asked: VerifyRequest, found: VerifyReply) -> None:
        """Count a ruling."""
        self._tokens.inc(self._name, "accepted", by=found.accepted)
        self._tokens.inc(self._name, "refused", by=len(asked.draft) - found.accepted)
        self._seconds.observe(found.compute_ms / 1000, self._name)


class _NobodyWaitsError(Exception):
    """The caller left before its turn came: nothing was computed."""


@dataclass
class _Caller:
    """Whether somebody still waits for the reply."""

    gone: bool = False


class Verifier:
    """Rules on drafts by one target.

    Args:
        target: The model.
        reference: Who it is.
        tokenizer: `wire.verify.tokenizer_digest` of its tokenizer.
        read: Gives the ids of a prompt as the target itself reads it, one at a time; raises an InputError for one that
            it does not read.
        clock: Time.
        limits: What sessions may take.
        entropy: Gives fresh seeds for draws that name none.
        metrics: Where rulings are counted, from the first one on.
    """

    def __init__(
        self,
        target: Target,
        *,
        reference: VerifyReference,
        tokenizer: str,
        read: Callable[[VerifyPrompt], Sequence[int]],
        clock: Clock,
        limits: VerifierLimits | None = None,
        entropy: Callable[[], int] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._target = target
        self._reference = reference
        self._tokenizer = tokenizer
        self._read = read
        self._clock = clock
        self._limits = limits or VerifierLimits()
        self._entropy = entropy or (lambda: int(np.random.SeedSequence().generate_state(1, np.uint64)[0]))
        self._sessions: OrderedDict[tuple[str, str], _Session] = OrderedDict()
        # One thread: the target spreads each pass over the cores already.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edgewise-verify")
        self._metrics = metrics or Metrics()
        self._waiting = 0
        self._is_closed = False
        self._freeing: asyncio.TimerHandle | None = None

    @property
    def sessions(self) -> int:
        """Sessions that are kept now."""
        return len(self._sessions)

    async def verify(self, tenant: str, asked: VerifyRequest) -> VerifyReply:
        """Rule on a draft; a session answers one request at a time. Cancelling leaves the session whole.

        Raises:
            InputError: A prompt that the target does not read, an id, a position or a length that cannot be.
            Fault: The session is not here any more, the tokenizers differ, or too many wait.
            CloudUnreachableError: It is closed.
        """
        if self._is_closed:
            raise CloudUnreachableError(f"The model {self._reference.name} was replaced or unloaded.", "Ask again.")
        self._check(asked)
        if self._waiting >= self._limits.waiting:
            raise Fault(429, "too_many_requests", f"{self._waiting} drafts wait already.", remedy="Come back later.")
        self._waiting += 1
        caller = _Caller()
        work = asyncio.create_task(self._turn(tenant, asked, caller), name="edgewise-verify")
        work.add_done_callback(self._left)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # What computes goes on to its end, so that tokens and cache of the session stay of one mind.
            caller.gone = True
            raise

    def close(self) -> None:
        """Take no more drafts. Those that are here are ruled on; then every session is forgotten."""
        self._is_closed = True
        if not self._waiting:
            self._end()

    def _end(self) -> None:
        if self._freeing is not None:
            self._freeing.cancel()
        self._sessions.clear()
        self._thread.shutdown(wait=False)

    def _left(self, work: asyncio.Task[VerifyReply]) -> None:
        self._waiting -= 1
        if self._is_closed and not self._waiting:
            self._end()
        if not work.cancelled():
            work.exception()  # its caller has heard of it, or is gone

    def _check(self, asked: VerifyRequest) -> None:
        if asked.tokenizer != self._tokenizer:
            raise verify.other_tokenizer(asked.tokenizer, self._tokenizer)
        _check_ids("draft", asked.draft, self._target.vocabulary)
        for at, drawn in enumerate(asked.draft_probs or ()):
            _check_ids(f"draft_probs[{at}].ids", drawn.ids, self._target.vocabulary)
        if asked.prompt is None:
            self._check_tokens(asked)

    def _check_tokens(self, asked: VerifyRequest) -> None:
        _check_ids("tokens", asked.tokens, self._target.vocabulary)
        if not asked.position + len(asked.tokens):
            raise RequestError("tokens", "tokens: the session holds no token.", "Send a prompt, or ids at position 0.")
        standing, context = asked.position + len(asked.tokens), self._target.context
        wanted = standing + len(asked.draft) + 1
        if wanted <= context:
            return
        if asked.position and not asked.tokens:
            raise verify.context_full(wanted, context)
        name = "draft" if standing < context else "tokens"
        problem = f"{name}: the session would have {wanted} tokens; the target reads {context}."
        raise RequestError(name, problem, "Send a shorter draft, or a shorter prompt.")

    async def _turn(self, tenant: str, asked: VerifyRequest, caller: _Caller) -> VerifyReply:
        key = (tenant, asked.session)
        session = self._session(key, asked)
        async with session.lock:
            if asked.position > len(session.tokens):
                raise RequestError(
                    "position",
                    f"position: {asked.position} is beyond the {len(session.tokens)} tokens of the session.",
                    "Send the length that the last reply told, or the session from position 0.",
                )
            session.used_s = self._clock.monotonic()
            try:
                compute = asyncio.get_running_loop().run_in_executor(self._thread, self._rule, session, asked, caller)
                found = await compute
            except (_NobodyWaitsError, InputError):
                raise  # nothing was computed
            except BaseException:
                self._sessions.pop(key, None)  # nobody knows what its cache holds
                raise
            finally:
                self._free()
        self._rulings.observe(asked, found)
        return found

    @cached_property
    def _rulings(self) -> VerifyMetrics:
        return VerifyMetrics(self._metrics, self._reference.name)

    def _session(self, key: tuple[str, str], asked: VerifyRequest) -> _Session:
        session = self._sessions.get(key)
        if session is None:
            if asked.position:
                raise verify.session_lost(asked.session)
            session = self._sessions[key] = _Session(self._target.begin())
        session.used_s = self._clock.monotonic()
        self._sessions.move_to_end(key)
        return session

    def _free(self) -> None:
        """Let go of what is idle or too much, and look again when the next one may be idle."""
        now, limits = self._clock.monotonic(), self._limits
        kept = sum(len(session.tokens) for session in self._sessions.values())
        while self._sessions:
            key, oldest = next(iter(self._sessions.items()))
            over = len(self._sessions) > limits.sessions or (kept > limits.tokens and len(self._sessions) > 1)
            if oldest.lock.locked() and not over:
                break
            if not over and now - oldest.used_s < limits.idle_s:
                break
            kept -= len(oldest.tokens)
            del self._sessions[key]
        if self._freeing is not None:
            self._freeing.cancel()
        self._freeing = asyncio.get_running_loop().call_later(limits.idle_s, self._free) if self._sessions else None

    def _rule(self, session: _Session, asked: VerifyRequest, caller: _Caller) -> VerifyReply:
        """One forward pass, and the ruling on it. In the thread."""
        if caller.gone:
            raise _NobodyWaitsError
        started = self._clock.monotonic()
        prompt = None if asked.prompt is None else tuple(self._read(asked.prompt))
        if prompt is not None:
            asked = msgspec.structs.replace(asked, prompt=None, tokens=prompt)
            self._check_tokens(asked)
        tokens = [*session.tokens[: asked.position], *asked.tokens]
        # The last token is computed again where all of them are: its logits are what the draft is held against.
        standing = min(verify.common(session.tokens[: session.computed], tokens), len(tokens) - 1)
        self._target.crop(session.cache, standing)
        draft, count = asked.draft, len(asked.draft)
        logits = self._target.forward(session.cache, [*tokens[standing:], *draft], count + 1)
        verdict = self._verdict(asked, logits, len(tokens))
        accepted, token = _to_the_end([*draft[: verdict.accepted], verdict.token], self._target.ends)
        written = [*draft[:accepted], token]
        session.tokens = [*tokens, *written]
        session.computed = len(tokens) + accepted
        self._target.crop(session.cache, session.computed)
        return VerifyReply(
            accepted=accepted,
            token=token,
            logprobs=[_logprob(logits[at], one) for at, one in enumerate(written)],
            ended=token in self._target.ends,
            position=len(session.tokens),
            reference=self._reference,
            compute_ms=1000 * (self._clock.monotonic() - started),
            prompt=prompt,
        )

    def _verdict(self, asked: VerifyRequest, logits: Logits, position: int) -> Verdict:
        if asked.is_greedy:
            return accept_greedy(asked.draft, logits.argmax(axis=1).tolist())
        seed = self._entropy() if asked.seed is None else asked.seed
        uniforms = np.random.default_rng([_STREAM, seed, position]).random(len(asked.draft) + 1)
        how = Sampling(temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k)

        def target(at: int) -> Probabilities:
            return target_distribution(logits[at], how)

        return accept_sampled(asked.draft, _drawn(asked), target, uniforms.tolist())


def _drawn(asked: VerifyRequest) -> list[Drawn | None]:
    if asked.draft_probs is None:
        return [None] * len(asked.draft)
    return [Drawn(np.array(one.ids), np.array(one.probs, np.float64)) for one in asked.draft_probs]


def _check_ids(name: str, ids: Sequence[int], vocabulary: int) -> None:
    wrong = next((token for token in ids if token >= vocabulary), None)
    if wrong is not None:
        raise RequestError(name, f"{name}: the target knows no id {wrong}.", f"Send ids below {vocabulary}.")


def _to_the_end(written: Sequence[int], ends: frozenset[int]) -> Verdict:
    """What is written, up to the first token that ends it."""
    at = next((at for at, token in enumerate(written) if token in ends), len(written) - 1)
    return Verdict(at, written[at])


def _logprob(row: Logits, token: int) -> float:
    """Log-softmax at one id, in double precision."""
    wide = row.astype(np.float64)
    wide -= wide.max()
    return float(wide[token] - np.log(np.exp(wide).sum()))
