"""Webhooks over real sockets: a receiver that verifies signatures with the standard's own library, and misbehaves."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import standardwebhooks

from edgewise.config import parse_config
from edgewise.contracts import Action, Answer, Decision, Reason, Source, Status
from edgewise.store import SqliteStore
from edgewise.telemetry import WEBHOOKS, Metrics
from edgewise.wire import webhooks as rules
from edgewise.wire.serve import BackgroundServer, bind
from edgewise.wiring import build_gateway
from edgewise.wiring.cloud import CloudSettings, build_cloud, cloud_models
from edgewise.wiring.webhooks import webhooks_of

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


class Receiver:
    """A web server that verifies what it gets, and answers with the statuses it is told, then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: list[tuple[str, dict]] = []
        self.changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                verified = standardwebhooks.Webhook(SECRET).verify(body, dict(self.headers.items()))
                with receiver.changed:
                    receiver.got.append((self.headers["webhook-id"], verified))
                    status = receiver.statuses.pop(0) if receiver.statuses else 200
                    receiver.changed.notify_all()
                self.send_response(status)
                if status == 302:
                    self.send_header("location", f"{receiver.url}/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.setattr(rules, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("edgewise.wire.webhook_sender._LOOK_EVERY_S", 0.01)


def make_answer(request_id: str, output: str = "earn") -> Answer:
    return Answer(
        id=request_id,
        output=output,
        status=Status.FINAL,
        source=Source.CLOUD,
        decision=Decision(action=Action.ESCALATE, reason=Reason.BREAKER_OPEN, policy="certified"),
        timings_ms={"total": 1.5},
        model_digest="sha256:1",
    )


class House:
    """A sender over a store on disk."""

    def __init__(self, url: str, state: Path) -> None:
        tables = {"webhooks": {"crm": {"url": url, "secret_env": "HOOK_SECRET", "tenants": ["acme"], "timeout_s": 5}}}
        self.metrics = Metrics()
        self.store = SqliteStore(str(state))
        self.sender = webhooks_of(parse_config(tables), self.store.hooks, self.metrics)

    async def run_until(self, condition: Callable[[], bool]) -> None:
        running = asyncio.create_task(self.sender.run())
        try:
            async with asyncio.timeout(30):
                while not condition():  # noqa: ASYNC110  what is awaited sets no event
                    await asyncio.sleep(0.005)
        finally:
            running.cancel()
            await asyncio.wait({running})
            self.store.close()

    def count(self, fate: rules.Fate) -> float:
        return self.metrics.counter(*WEBHOOKS).value(fate.value)


async def test_answers_arrive_verified_each_under_an_id_of_its_own(receiver: Receiver, tmp_path: Path) -> None:
    house = House(f"{receiver.url}/hook", tmp_path / "state.db")
    for index in range(20):
        house.sender.owe("acme", make_answer(f"{index}", "a\n\u2028 é"))
    house.sender.owe("other", make_answer("not for crm"))
    await house.run_until(lambda: house.count(rules.Fate.DELIVERED) == 20)
    assert {message["data"]["id"] for _, message in receiver.got} == {f"{index}" for index in range(20)}
    assert len({webhook_id for webhook_id, _ in receiver.got}) == 20
    assert {(message["type"], message["data"]["output"]) for _, message in receiver.got} == {
        ("answer.revised", "a\n\u2028 é")
    }


async def test_failures_and_redirects_are_sent_again_under_the_same_id(receiver: Receiver, tmp_path: Path) -> None:
    receiver.statuses = [500, 302, 401, 503]
    house = House(f"{receiver.url}/hook", tmp_path / "state.db")
    house.sender.owe("acme", make_answer("7"))
    await house.run_until(lambda: house.count(rules.Fate.DELIVERED) == 1)
    assert len(receiver.got) == 5
    assert len({webhook_id for webhook_id, _ in receiver.got}) == 1
    assert len({json.dumps(message) for _, message in receiver.got}) == 1
    assert house.count(rules.Fate.RETRIED) == 4


async def test_what_is_owed_survives_a_restart(receiver: Receiver, tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    nowhere = House("http://127.0.0.1:9/hook", state)
    nowhere.sender.owe("acme", make_answer("7"))
    await nowhere.run_until(lambda: nowhere.count(rules.Fate.RETRIED) > 0)
    assert receiver.got == []
    again = House(f"{receiver.url}/hook", state)
    await again.run_until(lambda: again.count(rules.Fate.DELIVERED) == 1)
    ((_, message),) = receiver.got
    assert message["data"]["id"] == "7"


async def test_a_target_that_is_gone_gets_no_more(receiver: Receiver, tmp_path: Path) -> None:
    receiver.statuses = [410]
    house = House(f"{receiver.url}/hook", tmp_path / "state.db")
    house.sender.owe("acme", make_answer("7"))
    await house.run_until(lambda: house.count(rules.Fate.GONE) == 1)
    assert len(receiver.got) == 1


def test_a_provisional_answer_reaches_the_webhook_once_the_cloud_is_back(
    receiver: Receiver, tiny_text_bundle: Path, tmp_path: Path
) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    tables = {
        "edge": {"bundle": str(tiny_text_bundle), "mode": "cloud_only"},
        "cloud": {"backends": {"main": {"url": f"http://127.0.0.1:{port}"}}, "cool_down_s": 0.05},
        "state": {"path": str(tmp_path / "state.db")},
        "webhooks": {"crm": {"url": f"{receiver.url}/hook", "secret_env": "HOOK_SECRET"}},
    }
    models = cloud_models([f"tiny-text={tiny_text_bundle}"])
    with ExitStack() as resources:
        app = build_gateway(parse_config(tables), resources).app
        gateway = resources.enter_context(BackgroundServer(app))
        body = {"inputs": "grain wheat", "id": "7"}
        answer = httpx.post(f"{gateway.url}/v1/predict", json=body, timeout=30).json()
        assert answer["status"] == "provisional"
        cloud = build_cloud(CloudSettings(models=models, threads=1), parse_config({})).app
        resources.enter_context(BackgroundServer(cloud, port=port))
        with receiver.changed:
            assert receiver.changed.wait_for(lambda: receiver.got, 60)
        stored = httpx.get(f"{gateway.url}/v1/answers/7", timeout=30).json()
    ((_, message),) = receiver.got
    assert message["type"] == "answer.revised"
    assert message["data"] == stored
    assert (stored["id"], stored["status"], stored["source"]) == ("7", "final", "cloud")
