"""The hot routes as values: a body becomes requests, and their answers become a reply.

Owns `/v1/predict`, `/v1/embeddings` and `/v2/models/…/infer` between the bytes of a body and those of a reply; does no
I/O. Keys, limits and connections are the door's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeAlias

from edgewise.contracts import Answer, Request, Served
from edgewise.wire import native, oip, openai
from edgewise.wire.asking import Asking, Work
from edgewise.wire.catalog import Catalog, infer_path
from edgewise.wire.facts import answer_headers
from edgewise.wire.http import Headers, Reply, trace_headers

Replies: TypeAlias = Reply | Coroutine[Any, Any, Reply]
"""A reply where the answer is known at once, else the work that brings it."""

Hot: TypeAlias = Callable[[bytes, str, Headers], Replies]
"""Answers a hot route: body, tenant, headers."""

PREDICT = "/v1/predict"


class Inference:
    """Decodes, asks and encodes.

    Args:
        catalog: The models served now.
        asking: Asks them.
        new_id: Makes the id of a request that brings none.
        max_items: The most items in one infer request.
        max_budget_ms: The largest budget, in milliseconds.
    """

    def __init__(
        self, catalog: Catalog, asking: Asking, new_id: Callable[[], str], *, max_items: int, max_budget_ms: float
    ) -> None:
        self._catalog = catalog
        self._asking = asking
        self._new_id = new_id
        self._max_items = max_items
        self._max_budget_ms = max_budget_ms

    def at(self, path: str) -> Hot | None:
        """What answers at `path`; None where it is no hot route."""
        if path == PREDICT:
            return self.predict
        if path == openai.EMBEDDINGS:
            return self._embed
        model = infer_path(path)
        return None if model is None else partial(self._infer, *model)

    def request(self, body: bytes, tenant: str, headers: Headers) -> tuple[Served, Request]:
        """The request in a body of `/v1/predict`, and the model it is for.

        Raises:
            RequestError: It is none.
            Fault: The model is not served here.
        """
        request, model = native.decode_request(
            body,
            tenant=tenant,
            new_id=self._new_id,
            max_budget_ms=self._max_budget_ms,
            arrived_s=headers.arrived_s,
        )
        served = self._catalog.default() if model is None else self._catalog.named(model, field="model")
        openai.check_not_generator(served.info)
        return served, request

    def predict(self, body: bytes, tenant: str, headers: Headers) -> Replies:
        """Answer `/v1/predict`. Raises as `request`, and what the service raises."""
        served, request = self.request(body, tenant, headers)
        found = self._asking.one(served, request)
        return _answered(found, headers) if isinstance(found, Answer) else _awaited(found, headers)

    def _embed(self, body: bytes, tenant: str, headers: Headers) -> Replies:
        call = openai.decode_embeddings(
            body,
            headers,
            tenant=tenant,
            new_id=self._new_id,
            max_items=self._max_items,
            max_budget_ms=self._max_budget_ms,
            arrived_s=headers.arrived_s,
        )
        served = self._catalog.named(call.model, field="model")
        openai.check_embedder(served.info)
        found = self._asking.all(served, call.requests, "input")
        encode = partial(_embedded, served, call, headers)
        return encode(found) if isinstance(found, list) else _encoded(found, encode)

    def _infer(self, name: str, version: str | None, body: bytes, tenant: str, headers: Headers) -> Replies:
        served = self._catalog.named(name, version)
        openai.check_not_generator(served.info)
        call = oip.decode_infer_request(
            body,
            served.info,
            tenant=tenant,
            new_id=self._new_id,
            max_items=self._max_items,
            max_budget_ms=self._max_budget_ms,
            json_length=headers.get(oip.HEADER),
            arrived_s=headers.arrived_s,
        )
        found = self._asking.all(served, call.requests, "inputs[0].data")
        encode = partial(_inferred, served, call, headers)
        return encode(found) if isinstance(found, list) else _encoded(found, encode)


def _answered(found: Answer, headers: Headers) -> Reply:
    return Reply(200, native.encode_answer(found), (*answer_headers(found), *trace_headers(headers)))


async def _awaited(work: Work, headers: Headers) -> Reply:
    return _answered(await work, headers)


def _inferred(served: Served, call: oip.InferCall, headers: Headers, found: Sequence[Answer]) -> Reply:
    facts = answer_headers(found[0]) if len(found) == 1 else ()
    body, json_bytes = oip.encode_infer_response(served.info, call, found)
    if json_bytes is None:
        return Reply(200, body, (*facts, *trace_headers(headers)))
    frame = (oip.HEADER, b"%d" % json_bytes)
    return Reply(200, body, (frame, *facts, *trace_headers(headers)), oip.CONTENT_TYPE)


def _embedded(served: Served, call: openai.EmbeddingsCall, headers: Headers, found: Sequence[Answer]) -> Reply:
    facts = answer_headers(found[0]) if len(found) == 1 else ()
    return Reply(200, openai.encode_embeddings(served.info, call, found), (*facts, *trace_headers(headers)))


async def _encoded(work: Coroutine[Any, Any, list[Answer]], encode: Callable[[Sequence[Answer]], Reply]) -> Reply:
    return encode(await work)
