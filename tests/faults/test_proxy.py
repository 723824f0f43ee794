"""The fault proxy itself, over real sockets against a real upstream."""

import importlib.util
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("edgewise_fault_proxy", Path(__file__).parent / "proxy.py")
faults = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = faults  # dataclasses look their module up
SPEC.loader.exec_module(faults)


class Shout(socketserver.StreamRequestHandler):
    """Answers each line in capitals, and tells when its client is gone."""

    def handle(self):
        for line in self.rfile:
            self.server.lines.append(line)
            self.wfile.write(line.upper())
        self.server.gone.set()


@pytest.fixture
def upstream():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Shout) as server:
        server.daemon_threads = True
        server.lines, server.gone = [], threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(upstream):
    with faults.FaultProxy(*upstream.server_address) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy):
    opened = []

    def connect(timeout_s=10.0):
        opened.append(socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def ask(connection, line=b"hello\n"):
    connection.sendall(line)
    return read(connection, len(line))


def read(connection, size):
    got = b""
    while len(got) < size and (chunk := connection.recv(size - len(got))):
        got += chunk
    return got


def test_bytes_pass_in_both_directions(connect):
    connection = connect()
    assert ask(connection) == b"HELLO\n"
    assert ask(connection, b"x" * 300_000 + b"\n") == b"X" * 300_000 + b"\n"


def test_a_client_that_leaves_is_noticed_upstream(proxy, upstream, connect):
    connection = connect()
    ask(connection)
    connection.close()
    assert upstream.gone.wait(10)
    proxy.wait_until(lambda proxy: proxy.open == 0)


def test_an_end_of_the_stream_is_passed_on(connect):
    connection = connect()
    ask(connection)
    connection.shutdown(socket.SHUT_WR)
    assert read(connection, 1) == b""


def test_latency_is_at_least_what_was_asked(proxy, connect):
    connection = connect()
    proxy.set(faults.latency(0.05, jitter_s=0.01))
    started = time.monotonic()
    assert ask(connection) == b"HELLO\n"
    # Once for the request, once for the response.
    assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize("when", ["before the connection", "on an open connection"])
def test_a_blackhole_accepts_and_never_answers(proxy, upstream, connect, when):
    if when == "on an open connection":
        connection = connect(0.2)
        ask(connection)
        proxy.set(faults.BLACKHOLE)
    else:
        proxy.set(faults.BLACKHOLE)
        connection = connect(0.2)
    lines = len(upstream.lines)
    with pytest.raises(TimeoutError):
        ask(connection, b"anyone?\n")
    assert len(upstream.lines) == lines
    connection.close()
    proxy.wait_until(lambda proxy: proxy.open == 0)


def test_after_a_blackhole_new_connections_pass(proxy, connect):
    proxy.set(faults.BLACKHOLE)
    connect()
    proxy.wait_until(lambda proxy: proxy.accepted == 1)
    proxy.set(faults.PASS)
    assert ask(connect()) == b"HELLO\n"


def test_a_drip_delivers_everything_byte_by_byte(proxy, connect):
    connection = connect()
    proxy.set(faults.drip(0.01))
    started = time.monotonic()
    assert ask(connection) == b"HELLO\n"
    assert time.monotonic() - started >= 0.05


def test_a_change_of_fault_ends_a_wait_and_a_drip_at_once(proxy, connect):
    connection = connect()
    proxy.set(faults.drip(3600))
    connection.sendall(b"hello\n")
    assert read(connection, 1) == b"H"
    proxy.set(faults.latency(3600))
    assert read(connection, 5) == b"ELLO\n"
    connection.sendall(b"again\n")
    assert_unanswered(connection)
    proxy.set(faults.PASS)
    connection.settimeout(10)
    assert read(connection, 6) == b"AGAIN\n"


def assert_unanswered(connection):
    connection.settimeout(0.2)
    with pytest.raises(TimeoutError):
        connection.recv(1)


def test_jitter_is_the_seeds(upstream):
    def drawn(seed):
        proxy = faults.FaultProxy(*upstream.server_address, seed=seed)
        return [proxy._jitter.random() for _ in range(5)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_connection_that_lost_bytes_to_a_blackhole_never_forwards_what_follows(proxy, upstream, connect):
    connection = connect()
    ask(connection)
    proxy.set(faults.BLACKHOLE)
    connection.sendall(b"lost ")
    assert_unanswered(connection)
    proxy.set(faults.PASS)
    connection.sendall(b"half\n")
    assert_unanswered(connection)
    assert upstream.lines == [b"hello\n"]
    assert ask(connect(), b"new\n") == b"NEW\n"


def test_a_response_stalls_and_its_connection_stays_open(proxy, upstream, connect):
    connection = connect()
    proxy.set(faults.stall(2))
    connection.sendall(b"hello\n")
    assert read(connection, 2) == b"HE"
    assert_unanswered(connection)
    assert proxy.open == 1
    connection.close()
    proxy.wait_until(lambda proxy: proxy.open == 0)


def test_connections_to_come_may_lead_elsewhere(proxy, upstream, connect):
    with socket.create_server(("127.0.0.1", 0)) as other:
        proxy.lead_to(*other.getsockname())
        connect().sendall(b"hello\n")
        taken, _ = other.accept()
        assert read(taken, 6) == b"hello\n"
        taken.close()
    assert upstream.lines == []


@pytest.mark.parametrize("after_bytes", [0, 3])
def test_a_reset_comes_after_so_many_bytes(proxy, connect, after_bytes):
    connection = connect()
    proxy.set(faults.reset(after_bytes))
    connection.sendall(b"hello\n")
    # A reset may overtake what came before it, and can never let more through.
    with pytest.raises(ConnectionResetError):
        read(connection, after_bytes + 1)


def test_a_half_close_ends_the_response_and_still_reads_the_request(proxy, upstream, connect):
    connection = connect()
    proxy.set(faults.half_close(2))
    connection.sendall(b"hello\n")
    assert read(connection, 6) == b"HE"
    connection.sendall(b"more\n")
    connection.close()
    assert upstream.gone.wait(10)
    assert upstream.lines == [b"hello\n", b"more\n"]


def test_refusing_resets_open_connections_and_listens_again_on_the_same_port(proxy, connect):
    connection, port = connect(), proxy.port
    ask(connection)
    proxy.set(faults.REFUSE)
    with pytest.raises(ConnectionError):
        ask(connection)
    with pytest.raises(ConnectionRefusedError):
        connect()
    proxy.set(faults.PASS)
    assert proxy.port == port
    assert ask(connect()) == b"HELLO\n"


def test_an_upstream_that_is_down_resets(connect, proxy):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy._upstream = taken.getsockname()
        # The reset may come while the client is still connecting.
        with pytest.raises(ConnectionResetError):
            connect().recv(1)


def test_leaving_the_block_ends_everything(upstream):
    before = threading.active_count()
    with faults.FaultProxy(*upstream.server_address, fault=faults.BLACKHOLE) as proxy:
        connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
        proxy.wait_until(lambda proxy: proxy.open == 1)
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port))
    assert threading.active_count() == before
