"""The cloud service as a process: its workers die, its models are swapped, it is killed; callers notice nothing."""

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from edgewise.cloud.clients.oip import OipClient
from edgewise.contracts import Request

WAIT_S = 60


def until(condition, what):
    """Wait for something that other processes bring about."""
    ends = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < ends, f"never came: {what}"
        time.sleep(0.01)
    return found


def children(pid):
    return {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Callers:
    """Clients that ask without a pause until the block ends; every reply is kept."""

    def __init__(self, url, count=8, model="news"):
        self.url = f"{url}/v2/models/{model}/infer"
        self.replies = [[] for _ in range(count)]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(replies,)) for replies in self.replies]

    def _ask(self, replies):
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["wheat corn"]}]}
        with httpx.Client(timeout=WAIT_S) as client:
            while not self._stop.is_set():
                reply = client.post(self.url, json=body)
                replies.append((reply.status_code, reply.json()))

    def asked(self):
        """Whether every caller has had replies since this was called."""
        before = [len(replies) for replies in self.replies]
        return lambda: all(len(replies) > count + 2 for replies, count in zip(self.replies, before, strict=True))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def bundles(tiny_models, tmp_path_factory):
    """Two versions of one model."""
    found = []
    for name in ("first", "second"):
        folder = tmp_path_factory.mktemp(name)
        found.append(tiny_models.pack_text(folder, name=name))
    return found


@pytest.fixture
def link(bundles, tmp_path):
    """A link to the first version; `point` moves it to another one as one step."""
    path = tmp_path / "current"
    path.symlink_to(bundles[0])
    return path


def point(link, target):
    fresh = link.with_name("fresh")
    fresh.symlink_to(target)
    fresh.replace(link)


def test_a_worker_that_is_killed_under_load_costs_nobody_an_answer(start_service, bundles):
    service = start_service("cloud", "serve", f"news={bundles[0]}", "--replicas", 2, "--port", 0)
    workers = children(service.process.pid)
    assert len(workers) == 2
    with Callers(service.url) as callers:
        until(callers.asked(), "replies before")
        os.kill(min(workers), signal.SIGKILL)
        until(lambda: len(children(service.process.pid) - workers) == 1, "another worker")
        until(callers.asked(), "replies after")
    assert {status for replies in callers.replies for status, _ in replies} == {200}
    assert 'edgewise_worker_deaths_total{model="news"} 1' in httpx.get(f"{service.url}/metrics", timeout=WAIT_S).text
    workers = children(service.process.pid)
    assert service.stop() == 0
    assert not any(alive(pid) for pid in workers)
    assert "ended by SIGKILL" in "".join(service.stderr)
    assert "Traceback" not in "".join(service.stderr)


def test_a_service_without_a_worker_is_not_ready_and_says_why(start_service, bundles):
    service = start_service("cloud", "serve", f"news={bundles[0]}", "--replicas", 1, "--port", 0)
    assert httpx.get(f"{service.url}/readyz", timeout=WAIT_S).status_code == 200
    (worker,) = children(service.process.pid)
    os.kill(worker, signal.SIGKILL)
    refused = until(
        lambda: (reply := httpx.get(f"{service.url}/readyz", timeout=WAIT_S)).status_code == 503 and reply, "not ready"
    )
    assert "ended by SIGKILL" in refused.json()["error"]["message"]
    assert httpx.get(f"{service.url}/healthz", timeout=WAIT_S).status_code == 200
    until(lambda: httpx.get(f"{service.url}/readyz", timeout=WAIT_S).status_code == 200, "ready again")
    assert (
        httpx.post(f"{service.url}/v1/predict", timeout=WAIT_S, json={"inputs": "wheat corn"}).json()["output"]
        == "grain"
    )


def test_no_worker_outlives_its_service(start_service, bundles):
    service = start_service("cloud", "serve", bundles[0], "--replicas", 2, "--port", 0)
    workers = children(service.process.pid)
    assert len(workers) == 2
    # Stopped, it cannot notice that its parent has gone.
    os.kill(min(workers), signal.SIGSTOP)
    service.stop(signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in workers), "the end of the workers")


@pytest.mark.parametrize("replicas", [0, 2])
def test_a_swap_under_load_fails_nobody_and_each_answer_names_its_version(start_service, bundles, link, replicas):
    options = ("--replicas", replicas, "--allow-load", "--port", 0)
    service = start_service("cloud", "serve", f"news={link}", *options)
    with Callers(service.url) as callers:
        until(callers.asked(), "replies before")
        point(link, bundles[1])
        with httpx.Client(base_url=service.url, timeout=WAIT_S) as client:
            assert client.post("/v2/repository/models/news/load", json={}).status_code == 200
            (line,) = client.post("/v2/repository/index").json()
        until(callers.asked(), "replies after")
    versions = set()
    for replies in callers.replies:
        assert {status for status, _ in replies} == {200}
        told = [body["model_version"] for _, body in replies]
        assert told == [body["parameters"]["model_digest"] for _, body in replies]
        assert sum(before != after for before, after in itertools.pairwise(told)) == 1
        versions.add((told[0], told[-1]))
    ((before, after),) = versions
    assert before != after == line["version"]
    until(lambda: len(children(service.process.pid)) == replicas, "the end of the old version's workers")


def test_a_load_that_fails_leaves_the_old_version_and_a_signal_loads_all(start_service, bundles, link, tmp_path):
    service = start_service("cloud", "serve", f"news={link}", "--replicas", 1, "--allow-load", "--port", 0)

    async def reference():
        client = OipClient(service.url)
        try:
            return (await client.predict(Request(inputs="wheat corn"), timeout_s=WAIT_S)).reference
        finally:
            await client.aclose()

    old = asyncio.run(reference())
    broken = tmp_path / "broken"
    shutil.copytree(bundles[1], broken)
    min(path for path in (broken / "blobs").rglob("*") if path.is_file()).write_bytes(b"")
    point(link, broken)
    refused = httpx.post(f"{service.url}/v2/repository/models/news/load", timeout=WAIT_S)
    assert refused.status_code == 400
    assert "corrupt" in refused.json()["error"]
    assert asyncio.run(reference()) == old
    point(link, bundles[1])
    service.process.send_signal(signal.SIGHUP)
    fresh = until(lambda: (found := asyncio.run(reference())) != old and found, "the new version")
    assert (old.name, fresh.name) == ("news", "news")


def test_tritons_own_client_loads_and_unloads(start_service, bundles):
    triton = pytest.importorskip("tritonclient.http")
    options = ("--replicas", 0, "--allow-load", "--port", 0)
    service = start_service("cloud", "serve", f"news={bundles[0]}", f"other={bundles[1]}", *options)
    client = triton.InferenceServerClient(service.url.removeprefix("http://"))
    with contextlib.closing(client):
        client.load_model("news")
        client.unload_model("other")
        states = {line["name"]: line["state"] for line in client.get_model_repository_index()}
        assert states == {"news": "READY", "other": "UNAVAILABLE"}
        assert client.is_model_ready("news")
        assert not client.is_model_ready("other")
        client.load_model("other")
        assert client.is_model_ready("other")
        with pytest.raises(triton.InferenceServerException, match="never taken from a request"):
            client.load_model("news", config="{}")


def test_several_models_are_served_and_the_first_is_the_default(start_service, bundles, tiny_image_bundle):
    service = start_service(
        "cloud", "serve", bundles[0], f"pictures={tiny_image_bundle}", "--name", "words", "--port", 0
    )
    with httpx.Client(base_url=service.url, timeout=WAIT_S) as client:
        assert [model["name"] for model in client.get("/").json()["models"]] == ["words", "pictures"]
        assert client.post("/v1/predict", json={"inputs": "wheat corn"}).json()["output"] == "grain"
        pixels = {"inputs": {"pixels": [[240] * 8] * 8}, "model": "pictures"}
        assert client.post("/v1/predict", json=pixels).status_code == 200
        for name, kind in (("words", "text"), ("pictures", "image")):
            assert client.get(f"/v2/models/{name}").json()["inputs"][0]["name"] == kind
            assert client.get(f"/v2/models/{name}/ready").status_code == 200
        refused = client.post("/v2/repository/models/pictures/load")
        assert (refused.status_code, "--allow-load" in refused.json()["error"]) == (403, True)


@pytest.mark.parametrize("replicas", [0, 2])
def test_a_model_that_cannot_be_loaded_is_said_in_two_lines(edgewise, tmp_path, replicas):
    done = edgewise("cloud", "serve", tmp_path / "nothing", "--replicas", replicas, "--port", 0, ok=False)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == f"error: {tmp_path / 'nothing'} is no folder."
    assert second.strip().startswith("Give a bundle's folder")
