"""A gateway serves taggers and embedders too, over both protocols."""

from __future__ import annotations

import json
from contextlib import ExitStack

import httpx
import msgspec
import pytest

from edgewise.config import Config
from edgewise.contracts import Mode
from edgewise.errors import CertificateError
from edgewise.wiring import build_gateway

TEXT = "the wheat tariff port"


def config_for(bundle, mode):
    config = Config()
    return msgspec.structs.replace(config, edge=msgspec.structs.replace(config.edge, bundle=str(bundle), mode=mode))


async def answers(bundle):
    """What a gateway of this bundle alone answers natively and over OIP."""
    with ExitStack() as resources:
        gateway = build_gateway(config_for(bundle, Mode.EDGE_ONLY), resources)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://localhost") as client:
            native = await client.post("/v1/predict", json={"inputs": TEXT})
            tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
            oip = await client.post(f"/v2/models/{gateway.info.name}/infer", json={"inputs": [tensor]})
        await gateway.router.aclose()
    assert (native.status_code, oip.status_code) == (200, 200), (native.text, oip.text)
    return native.json(), oip.json()["outputs"][0]


async def test_a_tagger_answers_with_entities(tiny_tagger_bundle):
    native, oip = await answers(tiny_tagger_bundle)
    assert [entity["text"] for entity in json.loads(native["output"])] == ["wheat tariff", "port"]
    assert (oip["name"], oip["data"]) == ("label", [native["output"]])


async def test_an_embedder_answers_with_its_vector(tiny_embedder_bundle):
    native, oip = await answers(tiny_embedder_bundle)
    assert len(native["output"]) == 32
    assert native["decision"]["score"] is None
    assert (oip["name"], oip["shape"], oip["datatype"]) == ("embedding", [1, 32], "FP32")
    assert oip["data"] == pytest.approx(native["output"])


def test_without_a_certificate_an_embedder_is_not_routed(tiny_embedder_bundle):
    with ExitStack() as resources, pytest.raises(CertificateError, match="There is no certificate"):
        build_gateway(config_for(tiny_embedder_bundle, Mode.GUARDED), resources)
