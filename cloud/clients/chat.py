"""OpenAI's chat completions, embeddings and model list as bytes in and values out, whoever serves them. No I/O.

Reads what vLLM, OpenAI and others send with suspicion: what is amiss is a CloudResponseError, never a wrong answer.
Log-probabilities are read where they are sent; usage is not read at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from edgewise.cloud.clients.prompting import CLASSIFICATION, Prompt
from edgewise.errors import CloudRefusedError, CloudResponseError

T = TypeVar("T")

DONE = "[DONE]"
"""What ends a stream that is whole."""

_LONGEST_LINE = 1 << 20
_FILTERED = "content_filter"
_ENDINGS = ("stop", "length")


class Said(msgspec.Struct, frozen=True):
    """What a model wrote.

    Attributes:
        model: Its name in the server's words; never empty.
        fingerprint: The server's word for the model's whole configuration, where it has one.
        text: The text.
    """

    model: str
    fingerprint: str | None
    text: str


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


class _Logprob(msgspec.Struct):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str = ""
    system_fingerprint: str | None = None


class _Delta(msgspec.Struct):
    delta: _Message = msgspec.field(default_factory=_Message)
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Delta] | None = None
    model: str = ""
    system_fingerprint: str | None = None
    error: Any = None


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


def decode_chat(body: bytes) -> Said:
    """Read a chat completion.

    Raises:
        CloudRefusedError: The server's filter keeps the answer back.
        CloudResponseError: It is no chat completion, or does not say which model wrote it.
    """
    completion = _decoded(body, _Completion, "chat completion")
    if len(completion.choices) != 1:
        raise CloudResponseError(f"The server sent {len(completion.choices)} choices and was asked for one.")
    choice = completion.choices[0]
    if choice.message.refusal:
        raise CloudRefusedError("The model refuses to answer this item.", "Change the item or the instruction.")
    _check_ending(choice.finish_reason)
    return Said(_named(completion.model), completion.system_fingerprint, choice.message.content or "")


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
    """A chat completion that comes in chunks."""

    def __init__(self) -> None:
        self._model = ""
        self._fingerprint: str | None = None
        self._text: list[str] = []
        self._ending: str | None = None

    def add(self, data: bytes) -> list[tuple[str, float | None]]:
        """Take one chunk; gives its texts, each with the log-probability of its token where it is one token.

        Raises:
            CloudRefusedError: The server's filter keeps the answer back.
            CloudResponseError: It is an error or no chunk, or names another model than the chunks before.
        """
        chunk = _decoded(data, _Chunk, "chunk of a chat completion")
        if chunk.error is not None:
            raise CloudResponseError(f"The server failed in mid-stream: {str(chunk.error)[:200]}", "See its log.")
        if chunk.model and self._model and chunk.model != self._model:
            raise CloudResponseError(f"The stream began as {self._model!r} and went on as {chunk.model!r}.")
        self._model = self._model or chunk.model
        self._fingerprint = chunk.system_fingerprint or self._fingerprint
        pieces = []
        for choice in chunk.choices or ():
            self._ending = choice.finish_reason or self._ending
            if choice.delta.content:
                logprobs = (choice.logprobs and choice.logprobs.content) or []
                pieces.append((choice.delta.content, logprobs[0].logprob if len(logprobs) == 1 else None))
        self._text += [text for text, _ in pieces]
        return pieces

    def whole(self) -> Said:
        """What was said, once the stream is done.

        Raises:
            CloudRefusedError: The server's filter keeps the answer back.
            CloudResponseError: It ended without an ending, or does not say which model wrote it.
        """
        _check_ending(self._ending)
        return Said(_named(self._model), self._fingerprint, "".join(self._text))


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


def _check_ending(ending: str | None) -> None:
    if ending == _FILTERED:
        raise CloudRefusedError("The server's content filter keeps the answer back.", "Change the item.")
    if ending not in _ENDINGS:
        raise CloudResponseError(
            f"The answer ended with {ending!r}; {' or '.join(_ENDINGS)} end an answer.", "Offer the model no tools."
        )


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
