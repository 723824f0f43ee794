"""kserve's inference client against a gateway over real sockets.

It needs other versions of our dependencies than we test with, so it lives in an environment of its own, which
`make test` sets up.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from edgewise.config import parse_config
from edgewise.wire.serve import BackgroundServer
from edgewise.wiring import build_gateway

PYTHON = Path(__file__).parents[2] / ".venv-kserve" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="kserve's client is not installed: make .venv-kserve"),
]

CLIENT = """
import asyncio, json, sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

url, model, items = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])


def request(name="text", parameters=None, binary=False):
    tensor = InferInput(name=name, shape=[len(items)], datatype="BYTES")
    tensor.set_data_from_numpy(np.array(items, dtype=object), binary_data=binary)
    return InferRequest(model_name=model, request_id="call", infer_inputs=[tensor], parameters=parameters)


async def refused(client, **options):
    try:
        await client.infer(url, request(**options), model_name=options.pop("model_name", model))
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, str(error)]


async def main():
    found = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=30)) as client:
        found["live"] = await client.is_server_live(url)
        found["ready"] = await client.is_server_ready(url)
        found["model_ready"] = await client.is_model_ready(url, model)
        for name, binary in (("json", False), ("binary", True)):
            reply = await client.infer(url, request(binary=binary), model_name=model)
            label, = [output for output in reply.outputs if output.name == "label"]
            words = [word.decode() if isinstance(word, bytes) else word for word in label.as_numpy().tolist()]
            found[name] = {"id": reply.id, "labels": words, "model": reply.model_name}
        found["bad_tensor"] = await refused(client, name="tokens")
        found["bad_budget"] = await refused(client, parameters={"budget_ms": -1})
    print(json.dumps(found))


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def gateway(tiny_text_bundle: Path) -> Iterator[BackgroundServer]:
    tables = {"edge": {"bundle": str(tiny_text_bundle), "mode": "edge_only"}}
    with ExitStack() as resources, BackgroundServer(build_gateway(parse_config(tables), resources).app) as server:
        yield server


def test_kserves_client_is_answered(gateway: BackgroundServer, tiny_models: ModuleType) -> None:
    items = list(tiny_models.TEXTS[:3])
    command = [PYTHON, "-c", CLIENT, gateway.url, "tiny-text", json.dumps(items)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["live"] is found["ready"] is found["model_ready"] is True
    labels = [tiny_models.LABELS[tiny_models.expected_logits(item).argmax()] for item in items]
    assert found["json"] == found["binary"] == {"id": "call", "labels": labels, "model": "tiny-text"}
    status, said = found["bad_tensor"]
    assert status == 400
    assert "'tokens'" in said
    assert found["bad_budget"][0] == 400
    assert "budget_ms" in found["bad_budget"][1]
