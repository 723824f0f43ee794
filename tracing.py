"""Spans: which step of a request took how long, in one trace from the client to the engine.

Owns the switch, the current span and W3C trace context in and out. Off unless OpenTelemetry's standard environment
variables name a collector, and free while it is off: a span is then one shared object that does nothing. The names of
spans stand where the steps are; what OTLP looks like, sampling and batching are OpenTelemetry's, which is imported only
once it is wanted. No input, no output and no key is ever an attribute.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from edgewise import __version__
from edgewise.errors import MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as SdkSpan
    from opentelemetry.trace import Tracer

_log = logging.getLogger("edgewise.tracing")

Kind: TypeAlias = Literal["internal", "server", "client"]
Value: TypeAlias = str | bool | int | float

STOP_S = 3.0
"""What a stopping process waits for its last spans to be exported."""

_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?",
    re.ASCII,
)


class Parent(NamedTuple):
    """A caller's span, as `traceparent` names it."""

    trace_id: int
    span_id: int
    flags: int


def parse_traceparent(value: bytes | str | None) -> Parent | None:
    """A caller's span by the W3C Trace Context recommendation (2021), section 3.2; None where it is not valid."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    match = _TRACEPARENT.fullmatch(text) if text else None
    # Version 00 ends with its flags; a later one may bring more that we do not know.
    if match is None or (match["version"] == "00" and match["more"] is not None):
        return None
    return Parent(int(match["trace"], 16), int(match["span"], 16), int(match["flags"], 16))


class Span:
    """One step of a request while a `with` block runs. This one records nothing."""

    __slots__ = ()

    def set(self, name: str, value: Value) -> None:
        """Set an attribute; a later value replaces an earlier one."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


_NOTHING = Span()
_tracing: _Tracing | None = None


def on() -> bool:
    """Whether spans are recorded."""
    return _tracing is not None


def span(
    name: str,
    *,
    kind: Kind = "internal",
    parent: bytes | str | None = None,
    attributes: Mapping[str, Value] | None = None,
) -> Span:
    """A span to enter around a step; spans that are begun inside it become its children, also in tasks begun there.

    Args:
        name: Name of the step.
        kind: "server" for a request taken, "client" for a call made, else "internal".
        parent: The caller's `traceparent`. None, or one that is not valid, takes the current span.
        attributes: What is known at once.
    """
    if _tracing is None:
        return _NOTHING
    return _tracing.span(name, kind, parent, attributes)


def traceparent() -> str | None:
    """The current span as a `traceparent` header for a call that goes out; None where there is none."""
    return None if _tracing is None else _tracing.traceparent()


def start(role: str, exporter: SpanExporter | None = None) -> None:
    """Record spans from now on where the environment asks for it; nothing happens where it does not.

    It asks by OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, unless OTEL_SDK_DISABLED is true or
    OTEL_TRACES_EXPORTER names no otlp. What cannot be done is one warning in the log: a service does not fail for want
    of its traces.

    Args:
        role: "gateway" or "cloud"; names the service where OTEL_SERVICE_NAME does not.
        exporter: Takes the spans in place of a collector, whatever the environment says; they come at once.
    """
    global _tracing
    if _tracing is not None or (exporter is None and not _is_wanted(os.environ)):
        return
    if exporter is None and _protocol(os.environ) == "grpc":
        _log.warning("Traces are off: OTLP over gRPC is not spoken. Set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf.")
        return
    try:
        _tracing = _Tracing(role, exporter)
    except ModuleNotFoundError:
        missing = MissingExtraError("Exporting traces", "traces")
        _log.warning("Traces are off. %s %s", missing.problem, missing.remedy)
    except Exception as error:  # whatever the standard variables hold: OpenTelemetry reads them
        _log.warning("Traces are off: OpenTelemetry cannot start (%s: %s).", type(error).__name__, error)


def stop(timeout_s: float = STOP_S) -> None:
    """Export what was recorded, for `timeout_s` at most, and record nothing more."""
    global _tracing
    ended, _tracing = _tracing, None
    if ended is not None:
        ended.shut_down(timeout_s)


def _is_wanted(environment: Mapping[str, str]) -> bool:
    if _first_of(environment, "OTEL_SDK_DISABLED").lower() == "true":
        return False
    exporters = [name.strip() for name in (_first_of(environment, "OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    endpoint = _first_of(environment, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return bool(endpoint) and "otlp" in exporters


def _protocol(environment: Mapping[str, str]) -> str:
    return _first_of(environment, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL").lower()


def _first_of(environment: Mapping[str, str], *names: str) -> str:
    """The first variable that is set to something; an empty one counts as not set, as OpenTelemetry has it."""
    return next((found for name in names if (found := environment.get(name, "").strip())), "")


class _Tracing:
    """OpenTelemetry, started: a provider of our own, so that an application's own one stays its own."""

    def __init__(self, role: str, exporter: SpanExporter | None) -> None:
        from opentelemetry import context, trace

        self._context = context
        self._trace = trace
        self._kinds = {kind: getattr(trace.SpanKind, kind.upper()) for kind in ("internal", "server", "client")}
        self._provider = _provider(role, exporter)
        self._tracer: Tracer = self._provider.get_tracer("edgewise", __version__)

    def span(self, name: str, kind: Kind, parent: bytes | str | None, attributes: Mapping[str, Value] | None) -> Span:
        found = self._tracer.start_span(
            name, context=self._inside(parent), kind=self._kinds[kind], attributes=attributes
        )
        return _RecordedSpan(self, found)

    def enter(self, span: SdkSpan) -> Context:
        """Make a span the current one; returns what was current."""
        outside = self._context.get_current()
        self._context.attach(self._trace.set_span_in_context(span, outside))
        return outside

    def leave(self, span: SdkSpan, outside: Context, error: BaseException | None) -> None:
        """End a span; of an error its type is told, for its message may quote what a client sent."""
        # Put back by value: a stream that another task closes cannot be detached by its token.
        self._context.attach(outside)
        if error is not None:
            span.set_attribute("error.type", type(error).__name__)
            if isinstance(error, Exception):
                span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
        span.end()

    def traceparent(self) -> str | None:
        current = self._trace.get_current_span().get_span_context()
        if not current.is_valid:
            return None
        return f"00-{current.trace_id:032x}-{current.span_id:016x}-{int(current.trace_flags) & 1:02x}"

    def shut_down(self, timeout_s: float) -> None:
        # OpenTelemetry bounds this wait by half a minute, and some of its versions not at all.
        ending = threading.Thread(target=self._provider.shutdown, name="edgewise-traces-end", daemon=True)
        ending.start()
        ending.join(timeout_s)

    def _inside(self, parent: bytes | str | None) -> Context | None:
        caller = parse_traceparent(parent)
        if caller is None:
            return None
        trace = self._trace
        flags = trace.TraceFlags(caller.flags & 1)
        remote = trace.SpanContext(caller.trace_id, caller.span_id, is_remote=True, trace_flags=flags)
        inside: Context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        return inside


class _RecordedSpan(Span):
    """A span of OpenTelemetry's."""

    __slots__ = ("_outside", "_span", "_tracing")

    def __init__(self, tracing: _Tracing, span: SdkSpan) -> None:
        self._tracing = tracing
        self._span = span

    def set(self, name: str, value: Value) -> None:
        self._span.set_attribute(name, value)

    def __enter__(self) -> Span:
        self._outside = self._tracing.enter(self._span)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracing.leave(self._span, self._outside, error)


def _provider(role: str, exporter: SpanExporter | None) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    named: dict[str, Any] = {SERVICE_NAME: f"edgewise-{role}", **OTELResourceDetector().detect().attributes}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    processor = SimpleSpanProcessor(exporter) if exporter is not None else BatchSpanProcessor(OTLPSpanExporter())
    provider.add_span_processor(processor)
    return provider
