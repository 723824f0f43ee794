"""The door on real sockets: drain, signals, ports, rude clients."""

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from edgewise.contracts import Answered, Done, Request, Status
from edgewise.errors import ConfigError, InputError
from edgewise.store import SqliteStore
from edgewise.telemetry import Metrics
from edgewise.wire import native, oip, protocol
from edgewise.wire.door import Limits, front_door
from edgewise.wire.serve import BackgroundServer, bind, serve

INFER = "/v2/models/newswire/infer"
FAKES = Path(__file__).parents[1] / "unit" / "fake_service.py"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(FAKES)


class ThreadedService:
    """Answers at once, or when it is released; tells the test's thread what happens to its requests."""

    def __init__(self, *, held: bool = False) -> None:
        self.held = held
        self.asked = 0
        self.entered = threading.Event()
        self.cancelled = threading.Event()

    async def events(self, request):
        self.asked += 1
        self._loop, self._go = asyncio.get_running_loop(), asyncio.Event()
        self.entered.set()
        try:
            if self.held:
                await self._go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        yield Answered(fakes.make_answer(request.id))
        yield Done(request.id)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._go.set)


class AtOnce(fakes.FakeService):
    """Answers at once."""

    def respond(self, request):
        self.requests.append(request)
        return fakes.make_answer(request.id)


def wait_until_closed(url: str) -> None:
    """Return once new connections are refused."""
    with contextlib.suppress(httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
        while True:
            httpx.get(f"{url}/healthz")


def door(service: ThreadedService | None = None, **options: object):
    options = {"answers": None, "metrics": Metrics(), **options}
    return front_door(fakes.served(service or ThreadedService()), **options)


def gone(metrics: Metrics) -> int:
    """How many clients left before their answer."""
    found = [line for line in metrics.render().decode().splitlines() if 'code="client_gone"' in line]
    return int(float(found[0].rsplit(" ", 1)[1])) if found else 0


@pytest.fixture
def server() -> Iterator[BackgroundServer]:
    with BackgroundServer(door(limits=Limits(max_body_bytes=100_000))) as running:
        yield running


def raw(server: BackgroundServer, data: bytes) -> bytes:
    """Everything the server says to these bytes until it closes or the client's patience ends."""
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        heard = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while piece := connection.recv(65536):
                heard += piece
    return heard


def test_both_protocols_over_one_connection(server: BackgroundServer) -> None:
    with httpx.Client(base_url=server.url) as client:
        answer = native.decode_answer(client.post("/v1/predict", json={"inputs": "x", "id": "7"}).content)
        assert answer == fakes.make_answer("7")
        body = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]}
        reply = oip.decode_infer_response(client.post("/v2/models/newswire/infer", json=body).content)
        assert reply.output(1) == "earn"
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.head("/healthz").status_code == 200
        assert "edgewise_requests_total" in client.get("/metrics").text


def test_many_clients_at_once(server: BackgroundServer) -> None:
    def ask(index: int) -> str:
        response = httpx.post(f"{server.url}/v1/predict", json={"inputs": "x", "id": f"{index}"})
        return response.json()["id"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(32))) == [f"{index}" for index in range(32)]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * 100_001, 413),
        (b"x" * 5_000_000, 413),
        (b"x" * 50_000_000, 413),
        (b'{"inputs":' + b"[" * 90_000, 400),
        (b'{"inputs":{"pixels":' + b"[" * 90_000, 400),
        (b'{"inputs":"x","attributes":' + b'{"a":' * 15_000, 400),
        (b'{"inputs":"\xff\xfe"}', 400),
        (b'{"inputs":"\\ud800"}', 400),
        (b'{"inputs":"x","budget_ms":-1}', 400),
        (b'{"inputs":"x","budget_ms":1e300}', 400),
        (b'{"inputs":"x","budget_ms":1e999}', 400),
        (b'{"inputs":"x","budget_ms":NaN}', 400),
        (b'{"inputs":"x","budget_ms":' + b"9" * 5000 + b"}", 400),
        (b'{"inputs":"x","mode":"fast"}', 400),
        (b'{"inputs":"x","model":"nobody"}', 404),
        (b"", 400),
    ],
)
def test_rude_bodies_get_an_answer_and_leave_the_server_well(
    server: BackgroundServer, body: bytes, status: int
) -> None:
    with httpx.Client(base_url=server.url) as client:
        response = client.post("/v1/predict", content=body)
        assert response.status_code == status
        assert response.json()["error"]["message"]
        infer = client.post(INFER, content=body)
        assert infer.status_code in (400, 413)
        assert list(infer.json()) == ["error"]
        assert client.post("/v1/predict", json={"inputs": "x"}).status_code == 200


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ('{"budget_ms":-1}', INFER),
        ('{"budget_ms":1e308}', INFER),
        ('{"mode":"fast"}', INFER),
        ('{"attributes":"[]"}', INFER),
        ("{}", INFER.replace("newswire", "nobody")),
        ("{}", INFER.replace("infer", "versions/7/infer")),
    ],
)
def test_what_an_infer_request_may_not_say_is_refused_in_its_protocols_shape(
    server: BackgroundServer, parameters: str, path: str
) -> None:
    body = f'{{"parameters":{parameters},"inputs":[{{"name":"text","shape":[1],"datatype":"BYTES","data":["x"]}}]}}'
    response = httpx.post(f"{server.url}{path}", content=body)
    assert response.status_code in (400, 404)
    assert oip.decode_error(response.content)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_tensors_that_are_cut_are_refused_over_the_socket(server: BackgroundServer, cut: int) -> None:
    sent = oip.encode_binary_infer_request(Request(id="c", inputs="hello" * 10), budget_ms=None)
    headers = {"inference-header-content-length": str(sent.json_bytes)}
    response = httpx.post(f"{server.url}{INFER}", content=sent.body[:-cut], headers=headers)
    assert response.status_code == 400
    assert "'text'" in (oip.decode_error(response.content) or "")
    whole = httpx.post(f"{server.url}{INFER}", content=sent.body, headers=headers)
    length = int(whole.headers["inference-header-content-length"])
    assert oip.decode_infer_response(whole.content, length).output() == "earn"


def test_a_chunked_body_over_the_limit_is_refused(server: BackgroundServer) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 1000

    with httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/predict", content=endless()).status_code == 413
        assert client.get("/healthz").status_code == 200


def endless_header() -> Iterator[bytes]:
    yield b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: "
    while True:
        yield b"a" * 10_000


def endless_headers() -> Iterator[bytes]:
    yield b"POST /v1/predict HTTP/1.1\r\nhost: x\r\n"
    while True:
        yield b"x-one: " + b"a" * 1000 + b"\r\n"


def endless_path() -> Iterator[bytes]:
    yield b"GET /"
    while True:
        yield b"a" * 10_000


def endless_trailers() -> Iterator[bytes]:
    yield b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    while True:
        yield b"x-one: " + b"a" * 1000 + b"\r\n"


@pytest.mark.parametrize("pieces", [endless_header, endless_headers, endless_path, endless_trailers])
def test_a_head_without_end_is_refused_early(server: BackgroundServer, pieces: Callable[[], Iterator[bytes]]) -> None:
    sent = 0
    with (
        socket.create_connection((server.host, server.port), timeout=30) as connection,
        contextlib.suppress(ConnectionError),
    ):
        for piece in pieces():
            connection.sendall(piece)
            sent += len(piece)
            if sent > 20_000_000:  # far more than the sockets hold between them
                break
    assert sent < 20_000_000
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/predict", json={"inputs": "x"}).status_code == 200


def test_a_head_that_is_too_large_never_reaches_the_service() -> None:
    service = ThreadedService()
    with BackgroundServer(door(service)) as server:
        body = b'{"inputs":"x"}'
        head = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(body)
        many = b"".join(b"x-%d: %s\r\n" % (index, b"a" * 1000) for index in range(70))
        heard = raw(server, head + many + b"\r\n" + body)
        assert heard.startswith(b"HTTP/1.1 431 ")
        assert not service.entered.is_set()
        assert raw(server, head + many[:50_000] + b"\r\n\r\n" + body).startswith(b"HTTP/1.1 200 ")


def test_a_head_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.wire.protocol.HEAD_TIMEOUT_S", 0.05)
    request = b'POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n{"inputs":"x"}'
    with BackgroundServer(door()) as server:
        for start in (b"", b"GET /healthz HTTP/1.1\r\nhost:", request + b"GET /healthz HT"):
            with socket.create_connection((server.host, server.port), timeout=30) as connection:
                connection.sendall(start)
                heard = b""
                while piece := connection.recv(65536):  # ends because the server closes
                    heard += piece
            assert heard.startswith(b"HTTP/1.1 200 ") == start.startswith(request)
            assert heard.count(b"HTTP/1.1") == start.startswith(request)


def test_the_head_of_a_pipelined_request_does_not_cut_off_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.wire.protocol.HEAD_TIMEOUT_S", 0.05)
    service = ThreadedService(held=True)
    request = b'POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n{"inputs":"x"}'
    with (
        BackgroundServer(door(service)) as server,
        socket.create_connection((server.host, server.port), timeout=0.3) as connection,
    ):
        connection.sendall(request + b"GET /healthz HT")
        assert service.entered.wait(30)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        service.release()
        connection.settimeout(30)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("together", [True, False])
def test_a_client_that_leaves_pipelined_requests_ends_the_first_and_begins_no_other(
    together: bool, caplog: pytest.LogCaptureFixture
) -> None:
    service, metrics = ThreadedService(held=True), Metrics()
    request = b'POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n{"inputs":"x"}'
    with BackgroundServer(door(service, metrics=metrics)) as server:
        with socket.create_connection((server.host, server.port), timeout=30) as connection:
            connection.sendall(request * (3 if together else 1))
            assert service.entered.wait(30)
            if not together:
                connection.sendall(request * 2)
        assert service.cancelled.wait(30)
        service.entered.clear()
        service.held = False
        assert httpx.post(f"{server.url}/v1/predict", json={"inputs": "x"}).status_code == 200
        assert service.asked == 2
    assert gone(metrics) == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_pipelined_requests_are_answered_in_order_however_many_wait() -> None:
    service = ThreadedService(held=True)
    body = b'{"inputs":"x","id":"%d"}'
    count = 4 * protocol.MAX_PIPELINED
    requests = [
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body % n), body % n)
        for n in range(count)
    ]
    with (
        BackgroundServer(door(service)) as server,
        socket.create_connection((server.host, server.port), timeout=30) as connection,
    ):
        connection.sendall(requests[0])
        assert service.entered.wait(30)
        for one in requests[1:]:
            connection.sendall(one)
        service.held = False
        service.release()
        heard = b""
        while heard.count(b"x-edgewise-id") < count:
            heard += connection.recv(65536)
    assert [line for line in heard.split(b"\r\n") if line.startswith(b"x-edgewise-id")] == [
        b"x-edgewise-id: %d" % n for n in range(count)
    ]


def test_a_body_that_does_not_come_is_given_up() -> None:
    with (
        BackgroundServer(door(limits=Limits(body_timeout_s=0.05))) as server,
        socket.create_connection((server.host, server.port), timeout=30) as connection,
    ):
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        heard = b""
        while piece := connection.recv(65536):
            heard += piece
    assert heard.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in heard


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\nGET",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 5, 5\r\n\r\nhello",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\nhello",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloX0\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length : 5\r\n\r\nhello",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\ncontent-length: 5\r\n\r\nhello",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{",
    ],
)
def test_what_is_not_http_never_reaches_the_service(data: bytes) -> None:
    service = ThreadedService()
    with BackgroundServer(door(service)) as server:
        heard = raw(server, data)
        assert heard == b"" or heard.startswith(b"HTTP/1.1 4")
        assert not service.entered.is_set()
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_reply_at_once_keeps_pipelined_requests_in_order() -> None:
    body = b'{"inputs":"x","id":"%d"}'
    requests = b"".join(
        b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body % n), body % n)
        for n in range(5)
    )
    with BackgroundServer(front_door(fakes.served(AtOnce()), answers=None, metrics=Metrics())) as server:
        heard = raw(server, requests)
    assert [line for line in heard.split(b"\r\n") if line.startswith(b"x-edgewise-id")] == [
        b"x-edgewise-id: %d" % n for n in range(5)
    ]


def test_a_client_that_waits_for_leave_to_send_its_body_gets_it() -> None:
    with (
        BackgroundServer(front_door(fakes.served(AtOnce()), answers=None, metrics=Metrics())) as server,
        socket.create_connection((server.host, server.port), timeout=30) as connection,
    ):
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 14\r\n"
            b"connection: close\r\n\r\n"
        )
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'{"inputs":"x"}')
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_request_in_pieces_is_answered_as_one_in_one_piece(size: int) -> None:
    body = b'{"inputs":"%s","id":"7"}' % (b"x" * 100_000 if size == 4096 else b"x")
    data = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body
    service = AtOnce()
    with (
        BackgroundServer(front_door(fakes.served(service), answers=None, metrics=Metrics())) as server,
        socket.create_connection((server.host, server.port), timeout=30) as connection,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])
        heard = b""
        while piece := connection.recv(65536):
            heard += piece
    assert heard.startswith(b"HTTP/1.1 200 ")
    assert len(service.requests) == 1


def test_a_body_that_is_not_waited_for_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.wire.protocol.HEAD_TIMEOUT_S", 0.05)
    with (
        BackgroundServer(door()) as server,
        socket.create_connection((server.host, server.port), timeout=30) as connection,
    ):
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{")
        heard = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                heard += piece
                connection.sendall(b" ")  # a byte now and then must not keep the connection
    assert heard.startswith(b"HTTP/1.1 404 ")


def test_another_hosts_name_is_refused() -> None:
    with BackgroundServer(door(limits=Limits(hosts=("localhost", "127.0.0.1")))) as server:
        assert httpx.post(f"{server.url}/v1/predict", json={"inputs": "x"}).status_code == 200
        rebound = httpx.post(f"{server.url}{INFER}", content=b"{}", headers={"host": "evil.example"})
    assert rebound.status_code == 421
    assert oip.decode_error(rebound.content)


def test_a_client_that_hangs_up_cancels_its_work() -> None:
    service = ThreadedService(held=True)
    with BackgroundServer(door(service)) as server:
        body = json.dumps({"inputs": "x"}).encode()
        with socket.create_connection((server.host, server.port)) as connection:
            head = f"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            assert service.entered.wait(30)
        assert service.cancelled.wait(30)


def test_a_long_poll_gets_an_answer_stored_by_another_thread() -> None:
    with SqliteStore(":memory:") as store:
        store.answers.put("public", fakes.make_answer("7", status=Status.PROVISIONAL))
        app = door(answers=store.answers)
        with BackgroundServer(app) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
            polling = pool.submit(httpx.get, f"{server.url}/v1/answers/7?wait_ms=30000", timeout=40)
            while not len(store.answers._waiters):  # nothing outside tells that a poll has begun to wait
                time.sleep(0.005)
            store.answers.put("public", fakes.make_answer("7", "acq"))
            assert polling.result(30).json()["output"] == "acq"


def test_garbage_writes_nothing_to_the_log_and_an_error_does(caplog) -> None:
    async def broken(scope, receive, send):
        if scope["type"] == "http":
            raise ValueError("broken")
        await inner(scope, receive, send)

    inner = door()
    with BackgroundServer(broken) as server:
        assert raw(server, b"garbage\r\n\r\n").startswith(b"HTTP/1.1 400")
        upgrade = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n"
        assert not caplog.records
        assert raw(server, upgrade).startswith(b"HTTP/1.1 500")
    assert [record.levelname for record in caplog.records] == ["ERROR"]


class Verbose(fakes.FakeService):
    """Answers at once, and more than a socket takes."""

    def respond(self, request):
        return fakes.make_answer(request.id, tuple(index + 0.123 for index in range(400_000)))


def send_unread(server: BackgroundServer, body: bytes) -> socket.socket:
    """Send requests whose replies the client does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((server.host, server.port))
    head = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    connection.sendall((head + body) * 2)
    return connection


def test_a_client_that_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(protocol, "SEND_TIMEOUT_S", 0.2)
    with BackgroundServer(door(Verbose())) as server, send_unread(server, b'{"inputs":"x"}'):
        connections = server._server.server_state.connections  # no word of it reaches a client that does not read
        deadline_s = time.monotonic() + 30
        while not connections and time.monotonic() < deadline_s:
            time.sleep(0.005)
        while connections and time.monotonic() < deadline_s:
            time.sleep(0.005)
        assert not connections
    assert not caplog.records


def test_a_client_that_does_not_read_does_not_hold_the_end_up(caplog) -> None:
    with BackgroundServer(door(Verbose()), drain_s=0.1) as server:
        connection = send_unread(server, b'{"inputs":"x"}')
        while not any(one.cycle and one.flow.write_paused for one in server._server.server_state.connections):
            time.sleep(0.005)
    connection.close()
    assert not [record for record in caplog.records if record.exc_info]


# Starting and stopping


def test_requests_in_flight_finish_while_the_server_drains() -> None:
    service = ThreadedService(held=True)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with BackgroundServer(door(service)) as server:
            asking = pool.submit(httpx.post, f"{server.url}/v1/predict", json={"inputs": "x"}, timeout=30)
            assert service.entered.wait(30)
            closed = pool.submit(wait_until_closed, server.url)
            closed.add_done_callback(lambda _: service.release())
        assert asking.result(30).status_code == 200
        assert closed.result(30) is None


def test_what_does_not_finish_in_time_is_cancelled_with_a_reply(caplog) -> None:
    service = ThreadedService(held=True)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with BackgroundServer(door(service), drain_s=0.1) as server:
            asking = pool.submit(httpx.post, f"{server.url}/v1/predict", json={"inputs": "x"}, timeout=30)
            assert service.entered.wait(30)
        response = asking.result(30)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "shutting_down"
    assert service.cancelled.is_set()
    assert not [record for record in caplog.records if record.exc_info]


UPGRADE = (
    "Host: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
RUDE = f"GET /v1/stream HTTP/1.1\r\n{UPGRADE}Content-Length: 5\r\n\r\nhello"
LONG = "x" * 9000
MANY = "a: b\r\n" * 130


@pytest.mark.parametrize(
    ("request_line", "more", "status"),
    [
        ("GET /v1/stream", "Content-Length: 5\r\n\r\nhello", 400),
        ("GET /v1/stream", f"Content-Length: {'0' * 5000}\r\n\r\n", 400),
        ("POST /v1/predict", "Content-Length: 5\r\n\r\nhello", 400),
        ("GET /v1/stream", "Transfer-Encoding: chunked\r\n\r\n", 400),
        ("GET /v1/stream", f"Authorization: Bearer {LONG}\r\n\r\n", 431),
        ("GET /v1/stream", f"{MANY}\r\n", 431),
        (f"GET /v1/stream?{LONG}", "\r\n", 414),
    ],
    ids=["body", "zeros", "post", "chunked", "long header", "many headers", "long path"],
)
def test_a_handshake_that_cannot_be_read_is_refused(
    server: BackgroundServer, request_line: str, more: str, status: int
) -> None:
    told = raw(server, f"{request_line} HTTP/1.1\r\n{UPGRADE}{more}".encode())
    assert told.startswith(b"HTTP/1.1 %d " % status)


def test_a_handshake_that_was_refused_does_not_disturb_the_end_of_service(caplog) -> None:
    service = ThreadedService(held=True)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with BackgroundServer(door(service)) as server:
            rude = socket.create_connection((server.host, server.port))
            rude.sendall(RUDE.encode())
            asking = pool.submit(httpx.post, f"{server.url}/v1/predict", json={"inputs": "x"}, timeout=30)
            assert service.entered.wait(30)
            closed = pool.submit(wait_until_closed, server.url)
            closed.add_done_callback(lambda _: service.release())
        assert asking.result(30).status_code == 200
    rude.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("hosts", ["", "Host: a\r\nHost: 127.0.0.1\r\n"], ids=["none", "two"])
def test_a_request_names_one_host(server: BackgroundServer, hosts: str) -> None:
    request = f"GET /healthz HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n"
    assert raw(server, request.encode()).startswith(b"HTTP/1.1 400 ")


def test_a_length_of_thousands_of_digits_is_refused(server: BackgroundServer) -> None:
    head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {'0' * 5000}14\r\n\r\n"
    told = raw(server, head.encode() + b'{"inputs":"x"}')
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"content-length" in told.partition(b"\r\n\r\n")[2]


_SERVING = """
import asyncio, contextlib, importlib.util, sys
from edgewise.telemetry import Metrics
from edgewise.wire.door import front_door
from edgewise.wire.http2 import serve_http2
from edgewise.wire.serve import serve

spec = importlib.util.spec_from_file_location("fakes", sys.argv[1])
fakes = importlib.util.module_from_spec(spec)
sys.modules["fakes"] = fakes
spec.loader.exec_module(fakes)

class Slow(fakes.FakeService):
    async def events(self, request):
        if request.inputs == "slow":
            print("entered", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        async for event in super().events(request):
            yield event

@contextlib.asynccontextmanager
async def life():
    print("started", flush=True)
    yield
    print("stopped", flush=True)

app = front_door(fakes.served(Slow()), answers=None, metrics=Metrics(), lifespan=life)
run = serve_http2 if sys.argv[2] == "granian" else serve
run(app, port=0, on_bound=lambda host, port: print(host, port, flush=True), linger_s=float(sys.argv[3]))
print("returned", flush=True)
"""


@contextlib.contextmanager
def serving(http: str = "uvicorn", linger_s: float = 0.0) -> Iterator[tuple[subprocess.Popen, str]]:
    """A serving process and its URL."""
    command = [sys.executable, "-c", _SERVING, str(FAKES), http, str(linger_s)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout.readline() == "started\n"
        host, port = running.stdout.readline().split()
        yield running, f"http://{host}:{port}"
        running.kill()


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen, str]]:
    with serving() as found:
        yield found


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_process_ends_well(process: tuple[subprocess.Popen, str], sign: signal.Signals) -> None:
    running, url = process
    with concurrent.futures.ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url) as idle:
        assert idle.get("/healthz").status_code == 200
        asking = pool.submit(httpx.post, f"{url}/v1/predict", json={"inputs": "slow"}, timeout=30)
        assert running.stdout.readline() == "entered\n"
        running.send_signal(sign)
        wait_until_closed(url)
        running.stdin.write("go on\n")
        running.stdin.flush()
        assert asking.result(30).status_code == 200
    out, err = running.communicate(timeout=30)
    assert out == "stopped\nreturned\n"
    assert err == ""
    assert running.returncode == 0


def test_a_server_that_lingers_says_that_it_is_not_ready_and_answers() -> None:
    with serving(linger_s=1.0) as (running, url), httpx.Client(base_url=url) as client:
        assert client.get("/readyz").status_code == 200
        running.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/readyz").status_code == 200:
            pass
        assert "shutting down" in httpx.get(f"{url}/readyz").text
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.post(f"{url}/v1/predict", json={"inputs": "x"}).status_code == 200
        out, err = running.communicate(timeout=30)
    assert (out, err, running.returncode) == ("stopped\nreturned\n", "", 0)


@pytest.mark.slow
def test_granian_serves_http2_and_drains() -> None:
    pytest.importorskip("granian")
    with serving("granian") as (running, url), httpx.Client(http1=False, http2=True, base_url=url) as client:
        answer = client.post("/v1/predict", json={"inputs": "x", "id": "7"})
        assert (answer.http_version, answer.json()["id"]) == ("HTTP/2", "7")
        assert httpx.get(f"{url}/readyz").http_version == "HTTP/1.1"
        refused = client.post(INFER, content=b"{}", headers={"content-encoding": "gzip"})
        assert (refused.status_code, list(refused.json())) == (415, ["error"])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asking = pool.submit(httpx.post, f"{url}/v1/predict", json={"inputs": "slow"}, timeout=30)
            assert running.stdout.readline() == "entered\n"
            running.send_signal(signal.SIGTERM)
            running.stdin.write("go on\n")
            running.stdin.flush()
            assert asking.result(30).status_code == 200
        out, _ = running.communicate(timeout=30)
    assert (out, running.returncode) == ("stopped\nreturned\n", 0)


def test_a_port_in_use_is_a_setting_to_change() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} on 127.0.0.1 is in use") as caught:
            serve(door(), port=port)
    assert "another port" in caught.value.remedy


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("203.0.113.1", 0), ("127.0.0.1", 70_000)])
def test_an_address_that_cannot_be_bound_is_a_setting_to_change(host: str, port: int) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(host, port)
    assert caught.value.remedy


@pytest.mark.parametrize("run", [lambda app: serve(app, port=0), lambda app: BackgroundServer(app).__enter__()])
def test_what_the_lifespan_raises_at_the_start_is_raised(run) -> None:
    @contextlib.asynccontextmanager
    async def life() -> AsyncIterator[None]:
        raise InputError("The model cannot be read.")
        yield

    with pytest.raises(InputError, match="cannot be read"):
        run(door(lifespan=life))


def test_what_the_lifespan_raises_at_the_end_is_raised() -> None:
    @contextlib.asynccontextmanager
    async def life() -> AsyncIterator[None]:
        yield
        raise InputError("The store cannot be closed.")

    with pytest.raises(InputError, match="cannot be closed"), BackgroundServer(door(lifespan=life)):
        pass
