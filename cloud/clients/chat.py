"""OpenAI's completions, embeddings and model list as bytes in and values out, whoever serves them. No I/O.

Owns how a text is asked and how every answer is read; `completions` writes whole prompts. Reads what vLLM, OpenAI,
our own service and others send with suspicion: what is amiss is a CloudResponseError, never a wrong answer. Tokens that
nobody counted are told as 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from edgewise.cloud.clients.logprobs import Logprobs, Told, tokens_of
from edgewise.cloud.clients.prompting import CLASSIFICATION, Prompt
from edgewise.cloud.clients.toolcalls import ToolCalls
from edgewise.contracts import FINAL_PROVISIONALS, Status
from edgewise.dialogue import Finish, ToolCall, Written
from edgewise.errors import CloudRefusedError, CloudResponseError, CloudThrottledError

T = TypeVar("T")

DONE = "[DONE]"
"""What ends a stream that is whole."""

_LONGEST_LINE = 1 << 20
_FILTERED = "content_filter"
_ENDINGS = ("stop", "length")
_CALLED = "tool_calls"
_REFUSALS = {"400", "413", "422", "BadRequestError", "invalid_request_error", "context_length_exceeded"}
_THROTTLED = {"429", "RateLimitError", "rate_limit_error", "rate_limit_exceeded"}
"""Codes and types of errors in mid-stream: vLLM's are statuses and names, OpenAI's and ours words."""


class Said(msgspec.Struct, frozen=True):
    """What a model wrote.

    Attributes:
        model: Its name in the server's words; never empty.
        fingerprint: The server's word for the model's whole configuration, where it has one.
        text: The text.
        version: Digest of the model, which our own service tells.
        written: How it came about.
    """

    model: str
    fingerprint: str | None
    text: str
    version: str | None = None
    written: Written | None = None


class Embedded(msgspec.Struct, frozen=True):
    """What an embedding model computed: its name, and a vector of finite numbers."""

    model: str
    vector: tuple[float, ...]


class Card(msgspec.Struct, frozen=True):
    """A model in the server's list.

    Attributes:
        id: The name that requests use.
        owned_by: Whose it is; vLLM says "vllm".
        root: What stands behind the name; vLLM says which checkpoint.
    """

    id: str
    owned_by: str | None = None
    root: str | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None


class _Ours(msgspec.Struct):
    """What our own service says of an answer."""

    model_digest: str | None = None
    status: str = Status.FINAL
    reason: str = ""


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str = ""
    system_fingerprint: str | None = None
    usage: _Usage | None = None
    edgewise: _Ours | None = None


class _Delta(msgspec.Struct):
    delta: _Message = msgspec.field(default_factory=_Message)
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Delta] | None = None
    model: str = ""
    system_fingerprint: str | None = None
    usage: _Usage | None = None
    edgewise: _Ours | None = None
    error: Any = None
    object: str | None = None
    message: Any = None
    code: Any = None
    type: Any = None


class _Vector(msgspec.Struct):
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Vector]
    model: str = ""


class _Cards(msgspec.Struct):
    data: list[Card]


def encode_chat(prompt: Prompt, model: str, text: str, *, stream: bool) -> bytes:
    """A chat completion of one text; the item is the user's message and nothing else is."""
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    body: dict[str, Any] = {
        "model": model,
        "messages": [*system, {"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": prompt.max_tokens,
        "seed": prompt.seed,
        "n": 1,
        "stream": stream,
    }
    if prompt.constrained and prompt.task == CLASSIFICATION:
        body["structured_outputs"] = {"choice": prompt.labels}
    return msgspec.json.encode(body)


def encode_embedding(model: str, text: str) -> bytes:
    """An embedding of one text."""
    return msgspec.json.encode({"model": model, "input": text, "encoding_format": "float"})


def decode_chat(body: bytes, *, tools: bool = False) -> Said:
    """Read a whole completion, of a chat or of a text.

    Args:
        body: The response.
        tools: Whether the answer may call tools; calls are not read where it may not.

    Raises:
        CloudRefusedError: The server's filter keeps the answer back.
        CloudResponseError: It is no completion, or does not say which model wrote it, or our own service did not
            answer for good.
    """
    completion = _decoded(body, _Completion, "chat completion")
    if len(completion.choices) != 1:
        raise CloudResponseError(f"The server sent {len(completion.choices)} choices and was asked for one.")
    choice = completion.choices[0]
    if choice.message is None and choice.text is None:
        raise CloudResponseError("The server sent a choice without a message.")
    message = choice.message or _Message(content=choice.text)
    if message.refusal:
        raise CloudRefusedError("The model refuses to answer this item.", "Change the item or the instruction.")
    calls = ToolCalls()
    for number, call in enumerate((message.tool_calls or ()) if tools else ()):
        calls.add(number, call.id, call.function.name, call.function.arguments)
    written = _written(choice.finish_reason, calls.whole(), completion.usage)
    version = _version(completion.edgewise)
    return Said(_named(completion.model), completion.system_fingerprint, message.content or "", version, written)


def decode_embedding(body: bytes) -> Embedded:
    """Read an embedding.

    Raises:
        CloudResponseError: It is none, or does not say which model computed it.
    """
    embeddings = _decoded(body, _Embeddings, "embedding")
    if len(embeddings.data) != 1 or not embeddings.data[0].embedding:
        raise CloudResponseError("The server sent no embedding, or more than the one asked for.")
    vector = embeddings.data[0].embedding
    if not all(map(math.isfinite, vector)):
        raise CloudResponseError("The server sent an embedding with numbers that are not finite.")
    return Embedded(_named(embeddings.model), tuple(vector))


def decode_cards(body: bytes) -> list[Card]:
    """Read the list of models.

    Raises:
        CloudResponseError: It is none.
    """
    return _decoded(body, _Cards, "list of models").data


class ChatStream:
    """A completion that comes in chunks, of a chat or of a text.

    Args:
        tools: Whether the answer may call tools; calls are not read where it may not.
        top: How many of the likeliest tokens were asked for.
    """

    def __init__(self, *, tools: bool = False, top: int = 0) -> None:
        self._tools = tools
        self._top = top
        self._model = ""
        self._fingerprint: str | None = None
        self._text: list[str] = []
        self._calls = ToolCalls()
        self._refused = False
        self._ending: str | None = None
        self._usage: _Usage | None = None
        self._ours: _Ours | None = None

    def add(self, data: bytes) -> list[Told]:
        """Take one chunk; gives its pieces, one a token where log-probabilities tell the tokens apart.

        Raises:
            CloudRefusedError: The server says that it is the request that is at fault.
            CloudThrottledError: It is asked too much.
            CloudResponseError: It is another error or no chunk, or names another model than the chunks before.
        """
        chunk = _decoded(data, _Chunk, "chunk of a chat completion")
        _check_error(chunk)
        if chunk.model and self._model and chunk.model != self._model:
            raise CloudResponseError(f"The stream began as {self._model!r} and went on as {chunk.model!r}.")
        self._model = self._model or chunk.model
        self._fingerprint = chunk.system_fingerprint or self._fingerprint
        self._usage = chunk.usage or self._usage
        self._ours = chunk.edgewise or self._ours
        pieces = [piece for choice in chunk.choices or () for piece in self._told(choice)]
        self._text += [piece.text for piece in pieces]
        return pieces

    def whole(self) -> Said:
        """What was said, once the stream is done.

        Raises:
            CloudRefusedError: The server's filter keeps the answer back, or the model refuses.
            CloudResponseError: It ended without an ending, or does not say which model wrote it, or our own service did
                not answer for good.
        """
        if self._refused:
            raise CloudRefusedError("The model refuses to answer this item.", "Change the item or the instruction.")
        written = _written(self._ending, self._calls.whole(), self._usage)
        return Said(_named(self._model), self._fingerprint, "".join(self._text), _version(self._ours), written)

    def _told(self, choice: _Delta) -> list[Told]:
        self._ending = choice.finish_reason or self._ending
        self._refused = self._refused or bool(choice.delta.refusal)
        for call in (choice.delta.tool_calls or ()) if self._tools else ():
            self._calls.add(call.index, call.id, call.function.name, call.function.arguments)
        text = choice.delta.content or choice.text or ""
        return tokens_of(text, choice.logprobs, self._top, is_last=choice.finish_reason is not None)


class SseLines:
    """Server-sent events (WHATWG HTML, section 9.2) from pieces of bytes: the data of each event."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def add(self, piece: bytes) -> Iterator[str]:
        """Take the next bytes; yields the data of every event that they complete.

        Raises:
            CloudResponseError: They are not UTF-8, or a line is endless.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise CloudResponseError(f"The server streams a line of more than {_LONGEST_LINE} bytes.")
        for line in lines:
            text = _utf8(line).removesuffix("\r")
            if not text and self._data:
                yield "\n".join(self._data)
                self._data = []
            name, _, value = text.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))


def _utf8(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise CloudResponseError(f"The server streams what is not UTF-8: {error.reason}.") from error


def _check_error(chunk: _Chunk) -> None:
    """That a chunk is no error: {"error": …} of OpenAI and vLLM, {"object": "error", …} of vLLM before 0.10.1."""
    told = chunk.error
    if told is None and chunk.object != "error":
        return
    code, kind = (told.get("code"), told.get("type")) if isinstance(told, dict) else (chunk.code, chunk.type)
    words = {str(code), str(kind)}
    said = str(chunk.message if told is None else told)[:200]
    problem = f"The server failed in mid-stream: {said}"
    if words & _THROTTLED:
        raise CloudThrottledError(problem, "It has more work than it takes; try again later.")
    raise (CloudRefusedError if words & _REFUSALS else CloudResponseError)(problem, "See its log.")


def _written(ending: str | None, calls: tuple[ToolCall, ...], usage: _Usage | None) -> Written:
    counted = usage or _Usage()
    cached = counted.prompt_tokens_details or _Cached()
    return Written(
        finish=_finish(ending, calls),
        prompt_tokens=counted.prompt_tokens or 0,
        completion_tokens=counted.completion_tokens or 0,
        cached_tokens=cached.cached_tokens or 0,
        tool_calls=calls,
    )


def _finish(ending: str | None, calls: tuple[ToolCall, ...]) -> Finish:
    """Why it ended. A named tool's call ends with "stop" in OpenAI's protocol, and is a call all the same."""
    if ending == _FILTERED:
        raise CloudRefusedError("The server's content filter keeps the answer back.", "Change the item.")
    if calls and ending in ("stop", _CALLED):
        return Finish.TOOL_CALLS
    if ending not in _ENDINGS:
        raise CloudResponseError(
            f"The answer ended with {ending!r}; {' or '.join(_ENDINGS)} end an answer.", "Offer the model no tools."
        )
    return Finish(ending)


def _version(ours: _Ours | None) -> str | None:
    if ours is not None and ours.status != Status.FINAL:
        kind = CloudRefusedError if ours.reason in FINAL_PROVISIONALS else CloudResponseError
        raise kind(f"The gateway answered provisionally: {ours.reason}.", "Check the service behind that gateway.")
    return ours.model_digest if ours is not None else None


def _named(model: str) -> str:
    if not model:
        raise CloudResponseError("The server does not say which model answered.", "A certificate speaks of one model.")
    return model


def _decoded(body: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CloudResponseError(
            f"The server sent no {what}: {error}.", "Check that the address speaks OpenAI's protocol."
        ) from error
