"""The cloud service on a real Ray cluster of one node: over HTTP, in batches, over a replica's death and a swap."""

import asyncio
import gc
import socket
import time
from collections import Counter

import httpx
import pytest

from edgewise import wiring
from edgewise.cloud import rayserve
from edgewise.cloud.clients.oip import OipClient
from edgewise.config import Config, ServerSection
from edgewise.contracts import Reference, Request
from edgewise.errors import CheckpointError, CloudError
from edgewise.wire.serve import BackgroundServer
from edgewise.wiring.rayserve import app

# Ray's own pydantic models warn.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

WAIT_S = 60
TEXTS = {"wheat corn": "grain", "vessel port": "ship", "tariff quota": "trade"}


def until(condition, what):
    ends = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < ends, f"never came: {what}"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def cluster():
    """A cluster with more cores than the machine need have: Ray counts them, and gives nobody any."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init("local", num_cpus=6, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
        rayserve.connect()
        yield
        rayserve.disconnect()


@pytest.fixture(scope="module")
def url(cluster, tiny_text_bundle):
    """The front door as the ingress of an application, behind Ray's own proxy."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = {"models": {"news": str(tiny_text_bundle)}, "min_replicas": 2, "max_replicas": 2, "max_batch": 8}
    serve.run(app(arguments), name="edgewise")
    return f"http://127.0.0.1:{port}"


def replicas(deployment):
    """Actors of a deployment's replicas, by name."""
    import ray

    return {
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if f"#{deployment}#" in actor["name"]
    }


async def ask(url, count):
    """Ask for many items at once; the replies, in order."""
    client = OipClient(url)
    try:
        return await asyncio.gather(
            *(client.predict(Request(inputs=text), timeout_s=WAIT_S) for text in list(TEXTS) * count),
            return_exceptions=True,
        )
    finally:
        await client.aclose()


def test_requests_over_http_are_answered_in_batches(url):
    assert httpx.get(f"{url}/readyz", timeout=WAIT_S).status_code == 200
    replies = asyncio.run(ask(url, 20))
    assert [reply.output for reply in replies] == list(TEXTS.values()) * 20
    (reference,) = {reply.reference for reply in replies}
    assert reference.name == "news"
    assert reference.version.startswith("sha256:")

    async def timings():
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_S) as client:
            asked = [client.post("/v1/predict", json={"inputs": text}) for text in list(TEXTS) * 20]
            return [reply.json()["timings_ms"]["engine"] for reply in await asyncio.gather(*asked)]

    # Items of one batch have the very same time in the engine.
    sizes = Counter(asyncio.run(timings())).values()
    assert max(sizes) > 1
    assert max(sizes) <= 8


def test_a_replica_that_is_killed_is_replaced_and_callers_notice_nothing(url):
    import ray

    before = replicas("engine-news")
    assert len(before) == 2
    victim = min(before)
    ray.kill(ray.get_actor(victim, namespace="serve"), no_restart=True)
    fresh = set()
    deadline = time.monotonic() + WAIT_S
    while not fresh:
        assert time.monotonic() < deadline, "no replica came in place of the one that was killed"
        replies = asyncio.run(ask(url, 4))
        assert [getattr(reply, "output", reply) for reply in replies] == list(TEXTS.values()) * 4
        fresh = replicas("engine-news") - before
    until(lambda: httpx.get(f"{url}/readyz", timeout=WAIT_S).status_code == 200, "ready again")


def test_a_door_of_our_own_hands_batches_to_the_cluster_and_swaps_models(cluster, tiny_models, tmp_path):
    versions = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        versions.append(tiny_models.pack_text(tmp_path / name, name=name))
    link = tmp_path / "current"
    link.symlink_to(versions[0])
    settings = wiring.CloudSettings(
        models=wiring.cloud_models([f"news={link}"]), engine="ray", replicas=1, allow_load=True
    )
    service = wiring.build_cloud(settings, Config(server=ServerSection(port=0)))
    with BackgroundServer(service.app) as server:
        old = [reply.reference for reply in asyncio.run(ask(server.url, 1))]
        link.unlink()
        link.symlink_to(versions[1])
        assert httpx.post(f"{server.url}/v2/repository/models/news/load", timeout=WAIT_S).status_code == 200
        new = [reply.reference for reply in asyncio.run(ask(server.url, 1))]
        assert len({*old}) == len({*new}) == 1
        assert {*old}.isdisjoint(new)
        assert isinstance(old[0], Reference)


async def test_workers_that_are_closed_leave_nothing_that_goes_on_telling_the_cluster(cluster, tiny_text_bundle):
    from ray.serve._private.metrics_utils import MetricsPusher

    from edgewise.cloud.messages import EngineSpec

    def telling():
        pushers = [found for found in gc.get_objects() if isinstance(found, MetricsPusher)]
        return [task for pusher in pushers for task in pusher._async_tasks.values() if not task.done()]

    workers = rayserve.RayWorkers(EngineSpec(path=str(tiny_text_bundle), name="brief", threads=1), max_replicas=1)
    await workers.start()
    assert telling()
    await workers.aclose()
    assert not telling()


async def test_a_model_that_the_cluster_cannot_load_is_refused_in_our_words(cluster, tmp_path):
    from edgewise.cloud.messages import EngineSpec

    workers = rayserve.RayWorkers(EngineSpec(path=str(tmp_path / "nothing"), name="news", threads=1), max_replicas=1)
    with pytest.raises((CheckpointError, CloudError), match="is no folder"):
        await workers.start()
    assert workers.ready() is not None
