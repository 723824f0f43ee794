"""A cloud that speaks OpenAI's protocol: vLLM, our own service, OpenAI, or another.

Owns which calls are made and what counts as a reference answer. Bytes are `chat`'s and `completions`', what is asked of
a text `prompting`'s, connections `http`'s.

The protocol has no word for a version. A reference is therefore the model's name as replies give it, and a digest of
all that shapes an answer: what the server says of its model (`system_fingerprint` in replies, `owned_by` and `root` in
its list of models, where given), the prompt and the decoding. Replies do not carry what the list says, so that is
believed for a minute and then asked for again, beside a request. Our own service does name a version, the digest of its
model: it stands in front then.

A request may bring a whole `dialogue.Prompt`. Its reference is the same as that of a text: the server's model and what
is configured here, and nothing of the request's own sampling, since a certificate speaks of a server.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple

import httpx

from edgewise import dialogue
from edgewise.cloud.clients import chat, completions
from edgewise.cloud.clients.connections import Network, paced
from edgewise.cloud.clients.http import HttpBackend, authorization, decoded
from edgewise.cloud.clients.lasting import Lasting
from edgewise.cloud.clients.prompting import EMBEDDING, GENERATION, Prompt, prompt_of, text_of
from edgewise.contracts import CloudReply, Input, Output, Reference, Request, Source, Token
from edgewise.errors import CloudResponseError, ConfigError

_MAX_TOKENS = 256


class _Speaker(NamedTuple):
    """What a reply says of the model behind it: its name, the server's fingerprint, and its digest."""

    name: str
    fingerprint: str | None
    version: str | None


@dataclass(frozen=True)
class _Question:
    """What is sent, where to, and how its answer is read."""

    path: str
    content: bytes
    prompt: dialogue.Prompt | None = None

    @property
    def tools(self) -> bool:
        return self.prompt is not None and completions.offers_tools(self.prompt)

    @property
    def top(self) -> int:
        return 0 if self.prompt is None else self.prompt.sampling.top_logprobs

    def decode(self, body: bytes) -> chat.Said:
        return chat.decode_chat(body, tools=self.tools)


class OpenAIClient:
    """One model behind one server.

    Args:
        url: The server's base URL, with or without /v1 at its end.
        model: The model's name there; None takes the only one in its list of models, whatever it is called then.
        api_key: Sent as a bearer token.
        task: "text-classification", "text-generation" or "feature-extraction"; None: the first where there are labels,
            else the second.
        instruction: The system prompt.
        labels: Allowed answers of a classification.
        max_tokens: Longest answer to a text, 256 unless given; also to a prompt that sets no limit itself, which is
            else the model's context.
        seed: Sent with every text.
        constrained: Have vLLM (0.12 or later) write nothing but a label.
        dialect: "vllm", as our own service speaks it too, or "openai", whose fields for prompts are fewer: no `top_k`,
            and no answer that is begun.
        network: How to connect.
        transport: Replaces the network, for tests.

    Raises:
        ConfigError: The URL, the key or the prompt cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        task: str | None = None,
        instruction: str | None = None,
        labels: Sequence[str] = (),
        max_tokens: int | None = None,
        seed: int = 0,
        constrained: bool = False,
        dialect: str = completions.VLLM,
        network: Network | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if dialect not in completions.DIALECTS:
            raise ConfigError(f"The dialect is {dialect!r}.", f"Choose one of: {', '.join(completions.DIALECTS)}.")
        self._model = model or None
        self._dialect = dialect
        self._max_tokens = max_tokens
        self._prompt = prompt_of(
            task=task,
            instruction=instruction,
            labels=tuple(labels),
            max_tokens=_MAX_TOKENS if max_tokens is None else max_tokens,
            seed=seed,
            constrained=constrained,
        )
        self._key = api_key
        self._http = HttpBackend(
            url, headers=authorization(api_key), secret=api_key, network=network, transport=transport
        )
        self._prefix = "" if self._http.base.endswith("/v1") else "/v1"
        self._card = Lasting(self._ask_card, time.monotonic)
        self._spoken: _Speaker | None = None

    async def describe(self, *, timeout_s: float) -> Reference:
        """Ask which model answers there; the first time also by the shortest of answers, as replies alone name it.

        Raises:
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`.
            CloudResponseError: It knows no such model, or serves several and none is named, or a reply does not say
                which model wrote it.
        """
        async with self._http.within(timeout_s):
            card = await self._card.renewed()
            spoken = self._spoken or _speaker(await self._said("hello", replace(self._prompt, max_tokens=1)))
        return self._reference(spoken, card)

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Ask for the final answer to one text or prompt; cancelling closes the connection, which the server notices.

        The output of a prompt that is begun is what comes after `begun`.

        Raises:
            CloudRefusedError: The item is neither, the server refuses it as it is or has no word for it, or no label
                is its answer.
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`.
            CloudResponseError: An error, or something that is not an answer of a named model.
        """
        item = request.inputs
        if isinstance(item, dialogue.Prompt):
            async with self._http.within(timeout_s):
                question = await self._question(item, stream=False)
                answered, card = await self._card.beside(lambda: self._answered(question))
            return self._reply(question, answered, card)
        text = text_of(item)
        async with self._http.within(timeout_s):
            said, card = await self._card.beside(lambda: self._said(text, self._prompt))
        return CloudReply(self._output(said), self._reference(_speaker(said), card))

    async def stream(self, request: Request, *, timeout_s: float) -> AsyncIterator[Token | CloudReply]:
        """Ask for the final answer in pieces; the whole reply comes last. Closing the iterator cancels the call.

        Embeddings and labels come whole, and so do tool calls, in the reply.

        Raises:
            CloudError: As `predict`; also where the stream is not whole within `timeout_s`, or breaks off.
        """
        if self._prompt.task != GENERATION:
            yield await self.predict(request, timeout_s=timeout_s)
            return
        told = self._told(request)
        async with aclosing(paced(told, timeout_s, self._http.base)) as pieces:
            async for piece in pieces:
                yield piece

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _name(self) -> str:
        """The model that is asked for."""
        return self._model or (await self._card.get()).id

    async def _question(self, item: Input, *, stream: bool) -> _Question:
        model = await self._name()
        if not isinstance(item, dialogue.Prompt):
            content = chat.encode_chat(self._prompt, model, text_of(item), stream=stream)
            return _Question(completions.CHAT, content)
        self._prompt.check_takes(item)
        if item.begun and item.sampling.schema is not None:
            completions.check_continues_json(item, (await self._card.get()).owned_by)
        content = completions.encode_prompt(
            item,
            model,
            dialect=self._dialect,
            max_tokens=self._max_tokens,
            longest_text=_MAX_TOKENS,
            stream=stream,
        )
        return _Question(completions.path_of(item), content, item)

    async def _said(self, text: str, prompt: Prompt) -> chat.Said | chat.Embedded:
        """One exchange about a text."""
        model = await self._name()
        if prompt.task != EMBEDDING:
            content = chat.encode_chat(prompt, model, text, stream=False)
            return await self._answered(_Question(completions.CHAT, content))
        response = await self._http.exchange("POST", self._path("embeddings"), chat.encode_embedding(model, text))
        said = self._http.decoded(response, chat.decode_embedding)
        self._spoken = _speaker(said)
        return said

    async def _answered(self, question: _Question) -> chat.Said:
        """One exchange; what names the model is remembered for `describe`."""
        response = await self._http.exchange("POST", self._path(question.path), question.content)
        said = self._http.decoded(response, question.decode)
        self._spoken = _speaker(said)
        return said

    async def _told(self, request: Request) -> AsyncGenerator[Token | CloudReply]:
        question = await self._question(request.inputs, stream=True)
        card = await self._card.get()
        path = self._path(question.path)
        told = chat.ChatStream(tools=question.tools, top=question.top)
        source = None if question.prompt is None else Source.CLOUD
        async with self._http.stream(path, question.content, {"accept": "text/event-stream"}) as pieces:
            async for data in _events(pieces):
                if data == chat.DONE:
                    break
                for piece in decoded(self._http.base + path, data.encode(), told.add, self._key):
                    yield Token(id=request.id, text=piece.text, logprob=piece.logprob, source=source, top=piece.top)
            else:
                raise CloudResponseError(
                    f"{self._http.base + path} ended its stream before [DONE].", "See the service's log."
                )
        said = decoded(self._http.base + path, b"", lambda _: told.whole(), self._key)
        self._spoken = _speaker(said)
        yield self._reply(question, said, card)

    async def _ask_card(self) -> chat.Card:
        response = await self._http.exchange("GET", self._path("models"))
        cards = self._http.decoded(response, chat.decode_cards)
        for card in cards:
            if card.id == self._model or (self._model is None and len(cards) == 1):
                return card
        known = self._http.excerpt(", ".join(card.id for card in cards)) or "none"
        if self._model is None:
            raise CloudResponseError(
                f"{response.url} lists {len(cards)} models, and none is named.", f"Name one of its models: {known}."
            )
        raise CloudResponseError(f"{response.url} lists no model {self._model!r}.", f"Its models: {known}.")

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _reply(self, question: _Question, said: chat.Said, card: chat.Card) -> CloudReply:
        reference = self._reference(_speaker(said), card)
        if question.prompt is None:
            return CloudReply(self._output(said), reference)
        return CloudReply(said.text, reference, written=said.written)

    def _output(self, said: chat.Said | chat.Embedded) -> Output:
        return said.vector if isinstance(said, chat.Embedded) else self._prompt.output(said.text)

    def _reference(self, spoken: _Speaker, card: chat.Card) -> Reference:
        """Who answered. It depends on the server and on this backend's settings, never on the request."""
        name, fingerprint, version = spoken
        if version:
            asked = self._prompt.version({}).removeprefix("sha256:")
            return Reference(name, f"{version}, asked {asked[:16]}")
        identity = {"name": name, "fingerprint": fingerprint, "owned_by": card.owned_by, "root": card.root}
        return Reference(name, self._prompt.version(identity))


def _speaker(said: chat.Said | chat.Embedded) -> _Speaker:
    if isinstance(said, chat.Embedded):
        return _Speaker(said.model, None, None)
    return _Speaker(said.model, said.fingerprint, said.version)


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each server-sent event."""
    lines = chat.SseLines()
    async for piece in pieces:
        for data in lines.add(piece):
            yield data
