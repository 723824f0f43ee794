"""The routes that are not hot, on Starlette: answers for later pick-up, health, metrics and metadata.

Owns their paths and replies; keys, limits and the hot routes are the door's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from edgewise import __version__
from edgewise.contracts import Answer, AnswerStore, Served
from edgewise.telemetry import CONTENT_TYPE
from edgewise.wire import native, oip, openai
from edgewise.wire.accesslog import TENANT
from edgewise.wire.admission import Drain, Places
from edgewise.wire.catalog import Catalog
from edgewise.wire.events import EventStreams, has_seen_all
from edgewise.wire.facts import answer_headers
from edgewise.wire.faults import Fault, fault_of
from edgewise.wire.http import AsgiApp, ClientGoneError, Headers, Receive, Scope, Send, unless_client_leaves
from edgewise.wire.operations import FrontPage

_ENDPOINTS = (
    "/v1/predict",
    "/v1/answers/{id}",
    "/v1/answers/{id}/events",
    "/v1/stream",
    "/v1/embeddings",
    "/v1/models",
    "/v2",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
)

_TEXT_ENDPOINTS = (openai.CHAT, openai.COMPLETIONS)
"""Listed where a model writes texts."""

_encoder = msgspec.json.Encoder()


class Pages:
    """Builds the Starlette application behind the door.

    Args:
        catalog: The models that are served now.
        answers: Answers for later pick-up, or None where none are kept.
        render_metrics: Gives the metrics as text.
        max_wait_ms: The longest poll, in milliseconds.
        polls: Places for polls that wait.
        on_fault: Told of each fault before it is sent.
        report: Gives what the service promises now, or None.
        drain: Tells that service ends.
        events: Tells answers as server-sent events.
        streams: Places for streams of events.
        document: Gives the OpenAPI document of what is served now.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        answers: AnswerStore | None,
        render_metrics: Callable[[], bytes],
        max_wait_ms: float,
        polls: Places,
        on_fault: Callable[[Fault], None],
        report: Callable[[], Mapping[str, Any]] | None = None,
        drain: Drain,
        events: EventStreams,
        streams: Places,
        document: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._catalog = catalog
        self._answers = answers
        self._render_metrics = render_metrics
        self._max_wait_ms = max_wait_ms
        self._polls = polls
        self._on_fault = on_fault
        self._report = report
        self._drain = drain
        self._events = events
        self._streams = streams
        self._document = document

    def app(self) -> Starlette:
        """The application."""
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        routes = [
            Route("/", self._describe),
            Route("/v1/answers/{id}", self._answer),
            Route("/v1/answers/{id}/events", self._answer_events),
            Route(openai.MODELS, self._openai_models),
            Route(f"{openai.MODELS}/{{id}}", self._openai_model),
            Route("/openapi.json", self._openapi),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
            Route("/v2", self._server_metadata),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._server_ready),
            *(Route(path, self._model_metadata) for path in (model, version)),
            *(Route(f"{path}/ready", self._model_ready) for path in (model, version)),
        ]
        handlers = {HTTPException: self._fault, Fault: self._fault, Exception: self._fault}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    async def _describe(self, request: HttpRequest) -> Response:
        models = [served.info for served in self._catalog.models().values()]
        page = FrontPage(
            name="edgewise",
            version=__version__,
            service=self._catalog.default().info,
            models=models,
            endpoints=(*_ENDPOINTS, *(_TEXT_ENDPOINTS if any(map(openai.writes, models)) else ())),
            promise=None if self._report is None else self._report(),
        )
        return _json(page)

    async def _openapi(self, request: HttpRequest) -> Response:
        return _json(self._document())

    async def _answer(self, request: HttpRequest) -> Response:
        wait_ms = self._wait_ms(request, 0.0)
        answer, store = self._kept(request)
        if wait_ms > 0:
            with self._polls:
                work = store.wait_final(request.scope[TENANT], answer.id, timeout_s=wait_ms / 1000)
                newer = await unless_client_leaves(request.receive, self._drain.race(work))
            answer = newer or answer
        headers = {name.decode(): value.decode() for name, value in answer_headers(answer)}
        return Response(native.encode_answer(answer), media_type="application/json", headers=headers)

    async def _answer_events(self, request: HttpRequest) -> Response:
        headers = Headers(request.scope)
        if has_seen_all(headers, request.path_params["id"]):
            return Response(status_code=204)  # tells an EventSource to stop coming back
        wait_ms = self._wait_ms(request, self._max_wait_ms)
        answer, _ = self._kept(request)
        self._streams.check()

        async def tell(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                with self._streams:
                    tenant = scope[TENANT]
                    await self._events.kept(answer, tenant, headers, self._drain, wait_ms / 1000, receive, send)
            except ClientGoneError as gone:
                self._on_fault(gone)

        return _Telling(tell)

    def _kept(self, request: HttpRequest) -> tuple[Answer, AnswerStore]:
        """The answer that a path names, and the store that has it.

        Raises:
            Fault: There is none.
        """
        if self._answers is None:
            raise Fault(
                404, "not_found", "This service keeps no answers.", remedy="Use the answer to the request itself."
            )
        answer = self._answers.get(request.scope[TENANT], request.path_params["id"])
        if answer is None:
            raise Fault(
                404,
                "not_found",
                "No answer is kept under that id.",
                field="id",
                remedy="Ask with the API key that sent the request; answers are kept for a limited time only.",
            )
        return answer, self._answers

    def _wait_ms(self, request: HttpRequest, default: float) -> float:
        text = request.query_params.get("wait_ms", str(default))
        try:
            wait_ms = float(text)
        except ValueError:
            wait_ms = -1.0
        if not 0 <= wait_ms <= self._max_wait_ms:
            raise Fault(
                400,
                "invalid_request",
                "wait_ms: not a number of milliseconds within the limit.",
                field="wait_ms",
                remedy=f"Send 0 to {self._max_wait_ms:.10g}.",
            )
        return wait_ms

    async def _openai_models(self, request: HttpRequest) -> Response:
        return Response(openai.encode_models(self._catalog.models().values()), media_type="application/json")

    async def _openai_model(self, request: HttpRequest) -> Response:
        served = self._catalog.named(request.path_params["id"], field="model")
        return Response(openai.encode_model(served.info), media_type="application/json")

    async def _readyz(self, request: HttpRequest) -> Response:
        self._check_ready()
        return _json({"status": "ready"})

    async def _server_ready(self, request: HttpRequest) -> Response:
        self._check_ready()
        return _json({"ready": True})

    async def _model_ready(self, request: HttpRequest) -> Response:
        served = self._model(request)
        _check_ready(served.ready())
        return _json({"name": served.info.name, "ready": True})

    def _check_ready(self) -> None:
        _check_ready("it is shutting down." if self._drain.has_begun else self._catalog.not_ready())

    async def _live(self, request: HttpRequest) -> Response:
        return _json({"live": True})

    async def _metrics(self, request: HttpRequest) -> Response:
        return Response(self._render_metrics(), headers={"content-type": CONTENT_TYPE})

    async def _server_metadata(self, request: HttpRequest) -> Response:
        return Response(oip.encode_server_metadata(), media_type="application/json")

    async def _model_metadata(self, request: HttpRequest) -> Response:
        return Response(oip.encode_model_metadata(self._model(request).info), media_type="application/json")

    def _model(self, request: HttpRequest) -> Served:
        return self._catalog.named(request.path_params["model"], request.path_params.get("version"))

    async def _fault(self, request: HttpRequest, error: Exception) -> Response:
        fault = _http_fault(error) if isinstance(error, HTTPException) else fault_of(error)
        self._on_fault(fault)
        body = fault.body(request.url.path)
        return Response(body, status_code=fault.status, media_type="application/json", headers=fault.headers)


class _Telling(Response):
    """A response that is told piece by piece."""

    def __init__(self, app: AsgiApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell it."""
        await self._app(scope, receive, send)


def _check_ready(reason: str | None) -> None:
    if reason is not None:
        raise Fault(503, "not_ready", f"Not ready: {reason}", remedy="Wait until it is.")


def _http_fault(error: HTTPException) -> Fault:
    if error.status_code == 405:
        return Fault(405, "method_not_allowed", "The method does not fit the path.", headers=error.headers)
    if error.status_code == 404:
        return Fault(404, "not_found", "There is nothing at this path.", remedy="GET / lists the endpoints.")
    return Fault(error.status_code, "invalid_request", error.detail)


def _json(value: object) -> Response:
    return Response(_encoder.encode(value), media_type="application/json")
