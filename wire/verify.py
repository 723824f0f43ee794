"""`POST /v1/verify`: drafted tokens go to the target model, and what it makes of them comes back.

Owns the bytes and the route; who rules on a draft is passed in. A drafter sends the tokens that its session gained, and
a draft behind them::

    {"session", "tokenizer", "position", "prompt" or "tokens", "draft", "draft_probs",
     "temperature", "top_p", "top_k", "seed", "model"}

and hears how much of the draft stands, and the target's own token behind it::

    {"accepted", "token", "logprobs", "ended", "position", "reference": {"name", "version"}, "compute_ms", "prompt"}

An answer begins with its `prompt`: messages, or a text. The target reads it, by its own chat template, and tells the
ids; so what is drafted is the answer to what the target would have read. `position` counts the tokens of the session
that stand: those behind it are taken back, `tokens` are put in their place, and the reply's `position` is the session's
new length. So a request whose reply was lost can be sent again. Errors are those of the native protocol; 409 means that
the two sides are not of one mind, and `code` says how: `session_lost` (send the session again from position 0),
`other_tokenizer`, or `context_full` (draft less; where nothing is drafted, the answer is over).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec

from edgewise.dialogue import Message
from edgewise.errors import CloudResponseError, RequestError
from edgewise.wire.faults import Fault
from edgewise.wire.http import Headers, Receive, Send, reply, unless_client_leaves
from edgewise.wire.parsing import checked_id, decode_json

VERIFY = "/v1/verify"

MAX_DRAFT = 32
"""Drafted tokens of one request at most; the best number is far below it on any network."""

MAX_DRAWN = 256
"""Ids that a drafted token was drawn from at most."""

SESSION_LOST = "session_lost"
OTHER_TOKENIZER = "other_tokenizer"
CONTEXT_FULL = "context_full"

_SUM_TOLERANCE = 1e-3

TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class DraftProbabilities(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one drafted token was drawn from; ids that are not named had probability 0.

    Attributes:
        ids: Distinct ids, the drafted one among them.
        probs: Their probabilities, each above 0; they are taken relative to their sum, which is 1 but for rounding.
    """

    ids: Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1, max_length=MAX_DRAWN)]
    probs: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=MAX_DRAWN)]


class VerifyPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What is answered; see `dialogue.Prompt`.

    Attributes:
        messages: A conversation, oldest first.
        text: A text to continue as it is, without a chat template; messages or this.
        begun: What the answer begins with already.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    begun: str = ""


class VerifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The body of a request.

    Attributes:
        session: Made by the client; its tokens and what was computed of them are kept between requests.
        tokenizer: `tokenizer_digest` of the client's tokenizer: ids must mean the same on both sides.
        position: Tokens of the session that stand.
        prompt: Begins the session anew with what the target reads there; at position 0, without `tokens`.
        tokens: The ids behind them that are not drafted: of a lost session, or what a user adds.
        draft: Ids that may stand behind those.
        draft_probs: What each of them was drawn from; None where they were not drawn, but are the likeliest.
        model: The model; None takes the default.
        temperature: Of the target; 0 takes the likeliest token each time.
        top_p: The target draws among the likeliest tokens that hold this much probability together.
        top_k: The target draws among this many likeliest tokens; 0 sets no limit.
        seed: The same seed, session and draft draw the same tokens on the same machine; None draws afresh.
    """

    session: str
    tokenizer: str
    prompt: VerifyPrompt | None = None
    tokens: tuple[TokenId, ...] = ()
    position: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
    draft: Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=MAX_DRAFT)] = ()
    draft_probs: tuple[DraftProbabilities, ...] | None = None
    model: str | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the target takes its likeliest token each time."""
        return self.temperature == 0 or self.top_k == 1


class VerifyReference(msgspec.Struct, frozen=True):
    """The target: its name, and the digest of all that shapes its answers."""

    name: str
    version: str


class VerifyReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a reply.

    Attributes:
        accepted: How many tokens of the draft stand, from the first one on.
        token: The target's own token behind them.
        logprobs: Natural log-probability of each accepted token and of that one, under the model as it is.
        ended: Whether that token ends the answer.
        position: The session's length with all of them.
        reference: The target.
        compute_ms: Milliseconds of the forward pass, and of ruling on the draft.
        prompt: The ids of the prompt, where one was sent.
    """

    accepted: int
    token: int
    logprobs: list[float]
    ended: bool
    position: int
    reference: VerifyReference
    compute_ms: float
    prompt: tuple[TokenId, ...] | None = None


class Verifying(Protocol):
    """A target model that looks at drafts."""

    async def verify(self, tenant: str, asked: VerifyRequest) -> VerifyReply:
        """Rule on a draft."""
        ...


_decoder = msgspec.json.Decoder(VerifyRequest)
_reply_decoder = msgspec.json.Decoder(VerifyReply)
_error_decoder = msgspec.json.Decoder(dict[str, dict[str, Any]])
_encoder = msgspec.json.Encoder()
_KNOWN = tuple(field.name for field in msgspec.structs.fields(VerifyRequest))


def decode_request(body: bytes) -> VerifyRequest:
    """Read a request.

    Raises:
        RequestError: It is none, or contradicts itself; the field at fault is named.
    """
    asked = decode_json(body, _decoder, _KNOWN)
    checked_id(asked.session, "session")
    if asked.prompt is not None and (asked.position or asked.tokens):
        name = "tokens" if asked.tokens else "position"
        raise RequestError(name, f"{name}: a prompt begins the session anew.", "Send it at position 0, without tokens.")
    if asked.draft_probs is not None:
        _check_drawn(asked.draft, asked.draft_probs)
    return asked


def _check_drawn(draft: tuple[int, ...], drawn: tuple[DraftProbabilities, ...]) -> None:
    if len(drawn) != len(draft):
        problem = f"draft_probs: {len(drawn)} entries for {len(draft)} drafted tokens."
        raise RequestError("draft_probs", problem, "Send one a drafted token, or null for none of them.")
    for at, (token, one) in enumerate(zip(draft, drawn, strict=True)):
        wrong = _drawn_problem(token, one)
        if wrong:
            raise RequestError(f"draft_probs[{at}]", f"draft_probs[{at}]: {wrong}.", _DRAWN_REMEDY)


_DRAWN_REMEDY = "Send the distinct ids and the probabilities above 0 that the token was drawn from."


def _drawn_problem(token: int, drawn: DraftProbabilities) -> str | None:
    if len(drawn.ids) != len(drawn.probs):
        return f"{len(drawn.ids)} ids and {len(drawn.probs)} probabilities"
    if len(set(drawn.ids)) != len(drawn.ids):
        return "an id stands in it twice"
    if token not in drawn.ids:
        return f"the drafted token {token} is not in it"
    if not all(probability > 0 for probability in drawn.probs):
        return "a probability is not above 0"
    total = math.fsum(drawn.probs)
    return None if abs(total - 1) <= _SUM_TOLERANCE else f"the probabilities sum to {total:g}"


def encode_request(asked: VerifyRequest) -> bytes:
    """Write a request."""
    return _encoder.encode(asked)


def encode_reply(found: VerifyReply) -> bytes:
    """Write a reply."""
    return _encoder.encode(found)


def decode_reply(body: bytes, *, drafted: int) -> VerifyReply:
    """Read a reply to a request that drafted so many tokens.

    Raises:
        CloudResponseError: It is none, or accepts more than there was.
    """
    try:
        found = _reply_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CloudResponseError(f"This is no reply to a draft: {error}.", "See the service's log.") from error
    told = len(found.logprobs) == found.accepted + 1 and all(map(math.isfinite, found.logprobs))
    if not (0 <= found.accepted <= drafted and found.token >= 0 and found.position > 0 and told):
        problem = (
            f"The reply accepts {found.accepted} of {drafted} tokens with {len(found.logprobs)} log-probabilities."
        )
        raise CloudResponseError(problem, "See the service's log.")
    return found


def error_code(body: bytes) -> str:
    """The code of a native error; empty where the body is none."""
    try:
        return str(_error_decoder.decode(body)["error"].get("code", ""))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return ""


def tokenizer_digest(tokenizer: str | bytes) -> str:
    """Names what the ids of a tokenizer mean, and which ids a text becomes, whoever saved it.

    Args:
        tokenizer: `tokenizer.json`, or what the tokenizers library writes of one that is loaded.

    Returns:
        "sha256:" and a digest of the vocabulary, the merges, the added tokens, the normalizer, the pre-tokenizer and
        the decoder. What padding and truncation it was saved with is not in it, nor what is put around a whole text:
        the target reads prompts itself.
    """
    told = msgspec.json.decode(tokenizer)
    model, added = told["model"], told.get("added_tokens") or ()
    meaning = {
        "vocabulary": sorted(model["vocab"].items()) if isinstance(model["vocab"], dict) else model["vocab"],
        "merges": [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or ()],
        "added": sorted((one["id"], one["content"], one.get("special", False)) for one in added),
        "normalizer": told.get("normalizer"),
        "pre_tokenizer": told.get("pre_tokenizer"),
        "decoder": told.get("decoder"),
    }
    return f"sha256:{hashlib.sha256(msgspec.json.encode(meaning, order='sorted')).hexdigest()}"


def common(held: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens two sessions begin with alike."""
    pairs = zip(held, tokens, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(held), len(tokens)))


Route: TypeAlias = Callable[[bytes, str, Headers, Receive, Send], Awaitable[None]]


def verify_routes(find: Callable[[str | None], Verifying]) -> Mapping[str, Route]:
    """The route, for `front_door(posts=…)`.

    Args:
        find: Gives the target of a name, or the default for None; raises a `Fault` where there is none.
    """

    async def handle(body: bytes, tenant: str, headers: Headers, receive: Receive, send: Send) -> None:
        asked = decode_request(body)
        found = await unless_client_leaves(receive, find(asked.model).verify(tenant, asked))
        await reply(send, 200, encode_reply(found))

    return {VERIFY: handle}


def session_lost(session: str) -> Fault:
    """The reply where a session is not here any more."""
    return Fault(
        409,
        "session_lost",
        f"The session {session!r} is not here: it was idle for long, or the service started anew.",
        remedy="Send its tokens again, from position 0.",
    )


def other_tokenizer(sent: str, own: str) -> Fault:
    """The reply where ids would mean something else on either side."""
    return Fault(
        409,
        "other_tokenizer",
        f"The tokenizer {sent[:80]!r} is not the target's: ids would mean something else.",
        remedy=f"Draft with a model whose tokenizer is {own}, or ask for the text without drafting.",
    )


def context_full(tokens: int, context: int) -> Fault:
    """The reply where an answer has no more room."""
    return Fault(
        409,
        "context_full",
        f"The session would have {tokens} tokens; the target reads {context}.",
        remedy="Draft less; without a draft, the answer is over.",
    )
