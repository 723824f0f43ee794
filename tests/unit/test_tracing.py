import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from edgewise import tracing

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.start("gateway", exporter)
    yield exporter
    tracing.stop()


def one(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (found,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return found


def test_off_is_one_shared_object_that_does_nothing() -> None:
    assert not tracing.on()
    with tracing.span("a") as first, tracing.span("b", kind="client", parent=CALLER) as second:
        first.set("edgewise.reason", "confident")
        assert tracing.traceparent() is None
    assert first is second


def test_children_have_their_parents_over_tasks_and_threads_of_asyncio(spans) -> None:
    async def child() -> None:
        await asyncio.sleep(0)
        with tracing.span("child", attributes={"edgewise.backend": "main"}):
            await asyncio.to_thread(in_thread)

    def in_thread() -> None:
        with tracing.span("grandchild"):
            pass

    async def request() -> None:
        with tracing.span("request", kind="server", parent=CALLER) as span:
            await asyncio.create_task(child())
            span.set("edgewise.reason", "confident")

    asyncio.run(request())
    request_span, child_span, grandchild = (one(spans, name) for name in ("request", "child", "grandchild"))
    assert f"{request_span.context.trace_id:032x}" == CALLER.split("-")[1]
    assert request_span.parent is not None
    assert f"{request_span.parent.span_id:016x}" == CALLER.split("-")[2]
    assert request_span.parent.is_remote
    assert request_span.kind is SpanKind.SERVER
    assert dict(request_span.attributes) == {"edgewise.reason": "confident"}
    assert child_span.parent == request_span.context
    assert dict(child_span.attributes) == {"edgewise.backend": "main"}
    assert grandchild.parent == child_span.context
    assert request_span.resource.attributes["service.name"] == "edgewise-gateway"


def test_what_goes_out_names_the_current_span(spans) -> None:
    assert tracing.traceparent() is None
    with tracing.span("call", kind="client"):
        sent = tracing.traceparent()
    assert tracing.traceparent() is None
    call = one(spans, "call")
    assert sent == f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-01"
    # OpenTelemetry's own reader takes it.
    read = trace.get_current_span(extract({"traceparent": sent})).get_span_context()
    assert (read.trace_id, read.span_id) == (call.context.trace_id, call.context.span_id)


def test_a_caller_that_is_not_sampled_is_not_recorded_and_says_so_further_on(spans) -> None:
    with tracing.span("request", parent=CALLER[:-1] + "0"):
        sent = tracing.traceparent()
    assert sent is not None
    assert sent.split("-")[1] == CALLER.split("-")[1]
    assert sent.endswith("-00")
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize("wrong", ["", "no", CALLER[:-1], CALLER.upper(), f"{CALLER}-more", f"ff{CALLER[2:]}"])
def test_a_traceparent_that_is_not_valid_is_ignored(spans, wrong) -> None:
    with tracing.span("request", parent=wrong.encode()):
        pass
    assert one(spans, "request").parent is None


@given(st.one_of(st.binary(max_size=80), st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")))
def test_a_traceparent_is_read_as_opentelemetry_reads_it(value) -> None:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    found = tracing.parse_traceparent(value)
    theirs = trace.get_current_span(extract({"traceparent": text})).get_span_context()
    if found is None:
        # Theirs takes white space around it, and upper case.
        assert not theirs.is_valid or text != text.strip().lower()
    else:
        assert (found.trace_id, found.span_id) == (theirs.trace_id, theirs.span_id)


def test_an_error_is_named_by_its_type_alone(spans) -> None:
    with pytest.raises(ValueError, match="secret"), tracing.span("step"):
        raise ValueError("the secret payload")
    step = one(spans, "step")
    assert step.status.status_code is StatusCode.ERROR
    assert step.attributes["error.type"] == "ValueError"
    assert "secret" not in step.to_json()


async def test_a_cancelled_step_is_no_error(spans) -> None:
    async def step() -> None:
        with tracing.span("step"):
            await asyncio.Event().wait()

    task = asyncio.create_task(step())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert one(spans, "step").status.status_code is StatusCode.UNSET
    assert one(spans, "step").attributes["error.type"] == "CancelledError"


async def test_a_stream_that_another_task_closes_ends_its_span_without_a_word(spans, caplog) -> None:
    async def stream() -> AsyncIterator[int]:
        with tracing.span("stream"):
            yield 1
            yield 2

    steps = stream()
    await asyncio.create_task(anext(steps))
    await asyncio.create_task(steps.aclose())
    assert one(spans, "stream").parent is None
    assert tracing.traceparent() is None
    assert caplog.records == []


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "false"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "console, otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_the_standard_variables_switch(environment, wanted) -> None:
    assert tracing._is_wanted(environment) is wanted


def test_a_missing_extra_is_one_warning_and_no_failure(monkeypatch, caplog) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name in ("opentelemetry", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level(logging.WARNING):
        tracing.start("cloud")
    assert not tracing.on()
    (record,) = caplog.records
    assert "pip install 'edgewise[traces]'" in record.getMessage()
    assert record.exc_info is None


def test_a_variable_that_opentelemetry_cannot_read_is_one_warning(monkeypatch, caplog) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with caplog.at_level(logging.WARNING, logger="edgewise"):
        tracing.start("cloud")
    tracing.stop()
    assert len([record for record in caplog.records if record.name == "edgewise.tracing"]) <= 1


class Stuck(SpanExporter):
    """An exporter whose end hangs, as one whose collector never answers."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def export(self, spans) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.released.wait()


def test_a_collector_that_hangs_keeps_no_process_alive() -> None:
    stuck = Stuck()
    tracing.start("gateway", stuck)
    tracing.stop(timeout_s=0.01)
    assert not tracing.on()
    stuck.released.set()


def test_a_protocol_that_is_not_spoken_is_one_warning(monkeypatch, caplog) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    tracing.start("gateway")
    assert not tracing.on()
    (record,) = caplog.records
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in record.getMessage()


def test_a_name_of_the_environment_wins(monkeypatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-7")
    exporter = InMemorySpanExporter()
    tracing.start("cloud", exporter)
    with tracing.span("request"):
        pass
    tracing.stop()
    assert one(exporter, "request").resource.attributes["service.name"] == "shop-7"


def test_off_loads_nothing_of_opentelemetry() -> None:
    code = (
        "import sys; from edgewise import tracing; tracing.start('gateway')\n"
        "with tracing.span('a'): pass\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": ""})
