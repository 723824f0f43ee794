"""A cloud that speaks OpenAI's protocol: vLLM, our own front door's embeddings, OpenAI, or another.

Owns which calls are made and what counts as a reference answer. Bytes are `chat`'s, prompts `prompting`'s, connections
`http`'s.

The protocol has no word for a version. A reference is therefore the model's name as replies give it, and a digest of
all that shapes an answer: what the server says of its model (`system_fingerprint` in replies, `owned_by` and `root` in
its list of models, where given), the prompt and the decoding. Replies do not carry what the list says, so that is
believed for a minute and then asked for again, beside a request.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeAlias

import httpx

from edgewise.cloud.clients import chat
from edgewise.cloud.clients.connections import Network, paced
from edgewise.cloud.clients.http import HttpBackend, authorization, decoded
from edgewise.cloud.clients.lasting import Lasting
from edgewise.cloud.clients.prompting import EMBEDDING, GENERATION, Prompt, prompt_of, text_of
from edgewise.contracts import CloudReply, Output, Reference, Request, Token
from edgewise.errors import CloudResponseError, ConfigError

_Speaker: TypeAlias = tuple[str, str | None]
"""What a reply says of the model behind it: its name, and the server's fingerprint."""


class OpenAIClient:
    """One model behind one server.

    Args:
        url: The server's base URL, with or without /v1 at its end.
        model: The model's name there.
        api_key: Sent as a bearer token.
        task: "text-classification", "text-generation" or "feature-extraction"; None: the first where there are labels,
            else the second.
        instruction: The system prompt.
        labels: Allowed answers of a classification.
        max_tokens: Longest answer.
        seed: Sent with every request.
        constrained: Have vLLM (0.12 or later) write nothing but a label.
        network: How to connect.
        transport: Replaces the network, for tests.

    Raises:
        ConfigError: The URL, the key, the model or the prompt cannot be used.
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
        max_tokens: int = 256,
        seed: int = 0,
        constrained: bool = False,
        network: Network | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not model:
            raise ConfigError("No model is named.", "Name the model as the server's /v1/models does.")
        self._model = model
        self._prompt = prompt_of(
            task=task,
            instruction=instruction,
            labels=tuple(labels),
            max_tokens=max_tokens,
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
            CloudResponseError: It knows no such model, or a reply does not say which model wrote it.
        """
        async with self._http.within(timeout_s):
            card = await self._card.renewed()
            spoken = self._spoken or _speaker(await self._said("hello", replace(self._prompt, max_tokens=1)))
        return self._reference(spoken, card)

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Ask for the final answer to one text; cancelling closes the connection, which the server notices.

        Raises:
            CloudRefusedError: The item is no text, the server refuses it as it is, or no label is its answer.
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`.
            CloudResponseError: An error, or something that is not an answer of a named model.
        """
        text = text_of(request.inputs)
        async with self._http.within(timeout_s):
            said, card = await self._card.beside(lambda: self._said(text, self._prompt))
        return CloudReply(self._output(said), self._reference(_speaker(said), card))

    async def stream(self, request: Request, *, timeout_s: float) -> AsyncIterator[Token | CloudReply]:
        """Ask for the final answer in pieces; the whole reply comes last. Closing the iterator cancels the call.

        Embeddings and labels come whole.

        Raises:
            CloudError: As `predict`; also where the stream is not whole within `timeout_s`, or breaks off.
        """
        if self._prompt.task != GENERATION:
            yield await self.predict(request, timeout_s=timeout_s)
            return
        told = self._told(request.id, text_of(request.inputs))
        async with aclosing(paced(told, timeout_s, self._http.base)) as pieces:
            async for piece in pieces:
                yield piece

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _said(self, text: str, prompt: Prompt) -> chat.Said | chat.Embedded:
        """One exchange; what names the model is remembered for `describe`."""
        said: chat.Said | chat.Embedded
        if prompt.task == EMBEDDING:
            response = await self._http.exchange(
                "POST", self._path("embeddings"), chat.encode_embedding(self._model, text)
            )
            said = self._http.decoded(response, chat.decode_embedding)
        else:
            content = chat.encode_chat(prompt, self._model, text, stream=False)
            response = await self._http.exchange("POST", self._path("chat/completions"), content)
            said = self._http.decoded(response, chat.decode_chat)
        self._spoken = _speaker(said)
        return said

    async def _told(self, request_id: str, text: str) -> AsyncGenerator[Token | CloudReply]:
        card = await self._card.get()
        content = chat.encode_chat(self._prompt, self._model, text, stream=True)
        path = self._path("chat/completions")
        told = chat.ChatStream()
        async with self._http.stream(path, content, {"accept": "text/event-stream"}) as pieces:
            async for data in _events(pieces):
                if data == chat.DONE:
                    break
                for piece, logprob in decoded(self._http.base + path, data.encode(), told.add, self._key):
                    yield Token(id=request_id, text=piece, logprob=logprob)
            else:
                raise CloudResponseError(
                    f"{self._http.base + path} ended its stream before [DONE].", "See the service's log."
                )
        said = decoded(self._http.base + path, b"", lambda _: told.whole(), self._key)
        self._spoken = _speaker(said)
        yield CloudReply(self._output(said), self._reference(self._spoken, card))

    async def _ask_card(self) -> chat.Card:
        response = await self._http.exchange("GET", self._path("models"))
        cards = self._http.decoded(response, chat.decode_cards)
        for card in cards:
            if card.id == self._model:
                return card
        known = self._http.excerpt(", ".join(card.id for card in cards)) or "none"
        raise CloudResponseError(f"{response.url} lists no model {self._model!r}.", f"Its models: {known}.")

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _output(self, said: chat.Said | chat.Embedded) -> Output:
        return said.vector if isinstance(said, chat.Embedded) else self._prompt.output(said.text)

    def _reference(self, spoken: _Speaker, card: chat.Card) -> Reference:
        name, fingerprint = spoken
        identity = {"name": name, "fingerprint": fingerprint, "owned_by": card.owned_by, "root": card.root}
        return Reference(name, self._prompt.version(identity))


def _speaker(said: chat.Said | chat.Embedded) -> _Speaker:
    return said.model, said.fingerprint if isinstance(said, chat.Said) else None


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each server-sent event."""
    lines = chat.SseLines()
    async for piece in pieces:
        for data in lines.add(piece):
            yield data
