"""kill -9 of gateway, cloud service and its workers while clients send and poll: nothing acknowledged is lost.

A client here does what a careful one does: it sends again, under the same id, what it got no reply to, and polls for
what was provisional. Moments of death are stratified by what the clients just did, and drawn from a seed.
"""

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from edgewise.store import SqliteStore

WORDS = ("wheat", "vessel", "tariff", "corn", "cargo", "export")
MOMENTS = ("sent", "provisional", "final", "started")
"""A request is on its way, its provisional answer came, its final answer came, the victim has only just started."""
VICTIMS = ("gateway", "worker", "cloud", "worker")
BATCH = 12
PATIENCE_S = 60
CONFIG = """
[edge]
bundle = "{bundle}"
inference_threads = 1
[policy]
use = "random"
local_share = 0.0
[cloud]
timeout_s = 5.0
cool_down_s = 0.05
[cloud.backends.news]
url = "{cloud}"
[cache]
max_bytes = 0
[state]
path = "{state}"
[server]
port = 0
"""


class Ledger:
    """What clients did and were told."""

    def __init__(self):
        self._changed = threading.Condition()
        self.seen = Counter()
        self.promised = set()
        self.finals = defaultdict(set)
        self.stored = defaultdict(set)

    def note(self, moment):
        with self._changed:
            self.seen[moment] += 1
            self._changed.notify_all()

    def note_answer(self, answer, *, polled):
        with self._changed:
            if answer["status"] == "provisional":
                self.promised.add(answer["id"])
            else:
                self.finals[answer["id"]].add((answer["output"], answer["source"], answer["model_digest"]))
            if polled and answer["status"] == "final":
                self.stored[answer["id"]].add(str(answer))
        self.note(answer["status"])

    def wait_for(self, moment, count):
        """Block until a moment came so often; the batch that brings it is under way."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.seen[moment] >= count, PATIENCE_S), (moment, self.seen)


class House:
    """A cloud service and a gateway as processes; the proxy between them stays where it is when either dies."""

    def __init__(self, start_service, proxy, bundle, folder):
        self._start_service = start_service
        self._proxy = proxy
        self._bundle = bundle
        self.state = folder / "state.db"
        self._config = folder / "edgewise.toml"
        self._config.write_text(CONFIG.format(bundle=bundle, cloud=proxy.url, state=self.state))
        self._up = threading.Event()
        self.processes = {}
        self.start("cloud")
        self.start("gateway")

    def start(self, victim):
        if victim == "cloud":
            options = ("--engine", "onnx", "--replicas", 2, "--threads", 1)
            service = self._start_service("cloud", "serve", self._bundle, "--port", 0, *options)
            self._proxy.lead_to("127.0.0.1", httpx.URL(service.url).port)
        else:
            service = self._start_service("edge", "serve", "--config", self._config)
        self.processes[victim] = service
        if victim == "gateway":
            self._up.set()

    def kill(self, victim):
        """Kill one, and start it again; a worker is started again by its service."""
        if victim == "worker":
            os.kill(self._worker(), signal.SIGKILL)
            return
        if victim == "gateway":
            self._up.clear()
        assert self.processes[victim].stop(signal.SIGKILL) == -signal.SIGKILL
        self.start(victim)

    def _worker(self):
        """A worker of the cloud service; waits while all are dead."""
        parent = self.processes["cloud"].process.pid
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
                if found := tasks.read_text().split():
                    return int(found[0])
        raise AssertionError("no worker is started again")

    def url(self):
        """Where the gateway answers; waits while there is none."""
        assert self._up.wait(PATIENCE_S)
        return self.processes["gateway"].url


def send(house, ledger, body):
    """Send until there is a reply; the answer, or None where the id's earlier answer is to be polled for."""
    for _ in range(20):
        url = house.url()
        try:
            ledger.note("sent")
            reply = httpx.post(f"{url}/v1/predict", json=body, timeout=PATIENCE_S)
        except httpx.TransportError:
            continue
        if reply.status_code == 400 and reply.json()["error"]["field"] == "id":
            return None
        assert reply.status_code == 200, reply.text
        return reply.json()
    raise AssertionError(f"nobody answers {body['id']}")


def poll(house, ledger, request_id):
    """Poll until the answer is final."""
    for _ in range(200):
        url = house.url()
        try:
            reply = httpx.get(f"{url}/v1/answers/{request_id}", params={"wait_ms": 2000}, timeout=PATIENCE_S)
        except httpx.TransportError:
            continue
        assert reply.status_code == 200, f"{request_id} is lost: {reply.text}"
        ledger.note_answer(reply.json(), polled=True)
        if reply.json()["status"] == "final":
            return
    raise AssertionError(f"{request_id} stays provisional")


def be_a_client(house, ledger, number):
    request_id = f"request-{number}"
    promise = ({"mode": "speculative"}, {"budget_ms": 3}, {"budget_ms": 20_000})[number % 3]
    answer = send(house, ledger, {"inputs": f"{WORDS[number % len(WORDS)]} rose", "id": request_id, **promise})
    if answer is not None:
        ledger.note_answer(answer, polled=False)
    if answer is None or answer["status"] == "provisional":
        poll(house, ledger, request_id)


def kill_and_restart(house, ledger, clients, victim, moment, count, numbers):
    """One death at one moment of a batch of requests; returns when every one of them is settled."""
    seen = ledger.seen[moment]
    if moment == "started":
        house.kill(victim)
    batch = [clients.submit(be_a_client, house, ledger, number) for number in numbers]
    if moment != "started":
        ledger.wait_for(moment, seen + count)
    house.kill(victim)
    for client in batch:
        client.result()


def assert_nothing_lost(house, ledger):
    url = house.url()
    for request_id in sorted(ledger.promised):
        answer = httpx.get(f"{url}/v1/answers/{request_id}", timeout=PATIENCE_S).json()
        assert (answer["id"], answer["status"], answer["source"]) == (request_id, "final", "cloud")
        ledger.note_answer(answer, polled=True)
    for told in (ledger.finals, ledger.stored):
        twice = {request_id: answers for request_id, answers in told.items() if len(answers) > 1}
        assert twice == {}
    house.processes["gateway"].stop()
    with closing(sqlite3.connect(house.state)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with SqliteStore(house.state) as store:
        assert len(store.outbox) == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found through /proc")
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(1, 25))], ids=lambda seed: f"{seed}"
)
def test_twenty_kills_lose_nothing_and_answer_nothing_twice(start_service, faults, tiny_text_bundle, tmp_path, seed):
    draw = random.Random(seed)
    deaths = [(VICTIMS[turn % len(VICTIMS)], MOMENTS[turn // len(VICTIMS) % len(MOMENTS)]) for turn in range(20)]
    ledger = Ledger()
    with faults.FaultProxy("127.0.0.1", 9) as proxy, ThreadPoolExecutor(4) as clients:
        house = House(start_service, proxy, tiny_text_bundle, tmp_path)
        for turn, (victim, moment) in enumerate(deaths):
            numbers = range(BATCH * turn, BATCH * (turn + 1))
            kill_and_restart(house, ledger, clients, victim, moment, draw.randint(1, BATCH // 3), numbers)
        assert len(ledger.finals) == len(deaths) * BATCH
        assert len(ledger.promised) >= len(deaths) * BATCH // 3
        assert_nothing_lost(house, ledger)
