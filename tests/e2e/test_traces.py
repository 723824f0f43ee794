"""One trace from the client to the engine, over real processes and a collector that speaks OTLP."""

import asyncio
import http.server
import json
import shutil
import subprocess
import sys
import threading

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from websockets.asyncio.client import connect

TRACE, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PATIENCE_S = 60
UNSURE = "wheat port secretword"
CONFIG = """
[edge]
bundle = "{bundle}"
[cloud.backends.news]
url = "{cloud}"
[server]
port = 0
"""


class Collector(http.server.ThreadingHTTPServer):
    """Takes spans over OTLP/HTTP, as any collector does."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.changed = threading.Condition()
        self.spans = []
        self.bodies = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, body):
        read = ExportTraceServiceRequest.FromString(body)
        with self.changed:
            self.bodies.append(body)
            for group in read.resource_spans:
                service = {pair.key: pair.value.string_value for pair in group.resource.attributes}["service.name"]
                self.spans += [Seen(service, span) for scope in group.scope_spans for span in scope.spans]
            self.changed.notify_all()

    def wait_for(self, trace, names):
        """The spans of a trace by name, once all those named have come."""

        def found():
            return {seen.name: seen for seen in self.spans if seen.trace == trace}

        with self.changed:
            assert self.changed.wait_for(lambda: names <= set(found()), PATIENCE_S), (names, set(found()))
            return found()


class CollectorHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        assert self.path == "/v1/traces"
        self.server.take(self.rfile.read(int(self.headers["content-length"])))
        reply = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


class Seen:
    """A span as it came; its name is told with its service's, for both have a "request"."""

    def __init__(self, service, span):
        self.name = f"{service}: {span.name}"
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.start, self.end, self.kind = span.start_time_unix_nano, span.end_time_unix_nano, span.kind
        self.attributes = {pair.key: pair.value.string_value for pair in span.attributes if pair.value.string_value}


@pytest.fixture
def collector():
    with Collector() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def certified(tiny_text_bundle, tmp_path_factory):
    """A bundle with a certificate that makes it escalate what it is unsure of."""
    folder = tmp_path_factory.mktemp("certified")
    bundle, data, answers = folder / "bundle", folder / "data.jsonl", folder / "answers.jsonl"
    shutil.copytree(tiny_text_bundle, bundle)
    sure = [("wheat corn", "grain"), ("vessel port", "ship"), ("tariff quota", "trade")]
    items = [*sure * 120, *[("wheat port", "trade")] * 40]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in items))
    reference = {"model": "reference", "model_version": "1"}
    answers.write_text("".join(json.dumps({"output": label, **reference}) + "\n" for _, label in items))
    command = [sys.executable, "-m", "edgewise.cli", "certify", bundle, "--predictions", answers, "--data", data]
    subprocess.run(command, check=True, capture_output=True)
    return bundle


@pytest.fixture
def gateway(collector, start_service, certified, tiny_text_bundle, tmp_path):
    """A gateway before a cloud service; both export what they record soon."""
    wanted = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    cloud = start_service("cloud", "serve", tiny_text_bundle, "--port", 0, "--engine", "onnx", **wanted)
    config = tmp_path / "edgewise.toml"
    config.write_text(CONFIG.format(bundle=certified, cloud=cloud.url))
    return start_service("edge", "serve", "--config", config, **wanted)


PARENTS = {
    "edgewise-gateway: request": None,
    "edgewise-gateway: route": "edgewise-gateway: request",
    "edgewise-gateway: edge.predict": "edgewise-gateway: route",
    "edgewise-gateway: cloud.call": "edgewise-gateway: route",
    "edgewise-cloud: request": "edgewise-gateway: cloud.call",
    "edgewise-cloud: cloud.queue": "edgewise-cloud: request",
    "edgewise-cloud: engine.predict": "edgewise-cloud: request",
}
SERVER, CLIENT = 2, 3


def assert_one_trace(spans, reason):
    for name, parent in PARENTS.items():
        assert spans[name].parent == (CLIENT_SPAN if parent is None else spans[parent].id), name
        if parent is not None:
            assert spans[parent].start <= spans[name].start <= spans[name].end, name
    assert {spans["edgewise-gateway: request"].kind, spans["edgewise-cloud: request"].kind} == {SERVER}
    assert spans["edgewise-gateway: cloud.call"].kind == CLIENT
    assert spans["edgewise-gateway: request"].attributes["edgewise.reason"] == reason
    assert spans["edgewise-gateway: route"].attributes["edgewise.reason"] == reason
    assert spans["edgewise-cloud: request"].attributes["edgewise.reason"] == "no_router"


def traceparent(trace):
    return f"00-{trace}-{CLIENT_SPAN}-01"


def test_a_request_over_http_is_one_trace_from_the_client_to_the_engine(gateway, collector):
    reply = httpx.post(
        f"{gateway.url}/v1/predict",
        json={"inputs": UNSURE, "budget_ms": 30_000},
        headers={"traceparent": traceparent(TRACE)},
    )
    assert reply.json()["source"] == "cloud"
    assert reply.headers["traceparent"].split("-")[1] == TRACE
    spans = collector.wait_for(TRACE, set(PARENTS))
    assert_one_trace(spans, reply.json()["reason"])
    everything = b"".join(collector.bodies)
    assert b"secretword" not in everything
    # The words of other requests' paths are there, so the search above could have found something.
    assert b"/v1/predict" in everything


def test_a_message_over_a_websocket_is_one_trace_too(gateway, collector):
    async def ask():
        async with connect(gateway.url.replace("http", "ws") + "/v1/stream") as socket:
            message = {"type": "predict", "inputs": UNSURE, "budget_ms": 30_000, "traceparent": traceparent(TRACE)}
            await socket.send(json.dumps(message))
            return json.loads(await socket.recv())

    answer = asyncio.run(ask())
    assert answer["source"] == "cloud"
    assert_one_trace(collector.wait_for(TRACE, set(PARENTS)), answer["reason"])


def test_what_is_recorded_reaches_the_collector_before_the_process_ends(collector, start_service, tiny_text_bundle):
    service = start_service(
        *("edge", "serve", tiny_text_bundle, "--mode", "edge_only", "--port", 0),
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/v1/traces",
        OTEL_BSP_SCHEDULE_DELAY="3600000",
        OTEL_SERVICE_NAME="shop",
    )
    httpx.post(f"{service.url}/v1/predict", json={"inputs": "wheat"}, headers={"traceparent": traceparent(TRACE)})
    assert service.stop() == 0
    spans = collector.wait_for(TRACE, {"shop: request"})
    assert spans["shop: request"].attributes["edgewise.source"] == "edge"


def test_a_collector_that_is_away_costs_answers_nothing(start_service, tiny_text_bundle, free_ports):
    service = start_service(
        *("edge", "serve", tiny_text_bundle, "--mode", "edge_only", "--port", 0),
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_ports[0]}",
        OTEL_BSP_SCHEDULE_DELAY="10",
        OTEL_EXPORTER_OTLP_TIMEOUT="0.2",
    )
    for text in ("wheat", "vessel", "tariff"):
        assert httpx.post(f"{service.url}/v1/predict", json={"inputs": text}).json()["source"] == "edge"
    assert service.stop() == 0
    assert "Traceback" not in "".join(service.stderr)


def test_off_the_gateway_imports_nothing_of_opentelemetry(start_service, tiny_text_bundle):
    service = start_service(
        *("edge", "serve", tiny_text_bundle, "--mode", "edge_only", "--port", 0), python_options=("-X", "importtime")
    )
    headers = {"traceparent": traceparent(TRACE)}
    assert httpx.post(f"{service.url}/v1/predict", json={"inputs": "wheat"}, headers=headers).status_code == 200
    service.stop()
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in service.stderr if line.startswith("import time")}
    assert "onnxruntime" in loaded
    assert "opentelemetry" not in loaded
