"""Schemathesis attacks both doors by their OpenAPI documents, over real sockets.

What no schema can tell is allowed to be refused: which profiles are configured, whether a text holds anything, whether
as many elements come as a shape says. All else that the document allows has to be accepted, and all that it forbids
refused with the status, the body and the headers that it tells.
"""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from edgewise.config import parse_config
from edgewise.telemetry import Metrics
from edgewise.wire.door import front_door
from edgewise.wire.serve import BackgroundServer
from edgewise.wiring import build_gateway
from edgewise.wiring.cloud import CloudSettings, build_cloud, cloud_models

pytestmark = pytest.mark.slow


def _load(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"edgewise_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


writers = _load("fake_writer")

KEY = "a-key-of-the-test"

SETTINGS = """
[generation]
allow-extra-parameters = false

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]

[[operations]]
include-name = ["POST /v1/predict", "POST /v1/embeddings", "POST /v2/models/{model}/infer",
                "POST /v1/chat/completions", "POST /v1/completions",
                "POST /v2/models/{model}/versions/{version}/infer"]

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "404", "429", "503", "504"]
"""


AUTH = """
[auth.openapi.key]
api_key = "{key}"
"""


def attack(url: str, folder: Path, *options: str, key: str | None = None) -> None:
    """Run schemathesis; what it finds is the message of the failure."""
    document = folder / "openapi.json"
    headers = {} if key is None else {"x-api-key": key}
    document.write_bytes(httpx.get(f"{url}/openapi.json", headers=headers).raise_for_status().content)
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS + ("" if key is None else AUTH.format(key=key)), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run", str(document), "--url", url),
        *("--max-examples", "8", "--seed", "1", "--no-color", "--no-shrink", "--continue-on-failure"),
        *(
            "--phases",
            "examples,coverage,fuzzing",
            "--request-timeout",
            "10",
            "--workers",
            "1",
            "--warnings",
            "off",
            *options,
        ),
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=folder)
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2_000:]
    generated, passed = re.search(r"(\d+) generated, (\d+) passed", found.stdout).groups()
    assert generated == passed
    assert int(passed) > 500


@pytest.fixture(scope="module")
def cloud(tiny_text_bundle: Path, tiny_embedder_bundle: Path) -> Iterator[BackgroundServer]:
    """A cloud service over a classifier and an embedder; anybody may load and unload models."""
    models = cloud_models([f"news={tiny_text_bundle}", f"minilm={tiny_embedder_bundle}"])
    settings = CloudSettings(models=models, threads=1, allow_load=True)
    with BackgroundServer(build_cloud(settings, parse_config({})).app) as running:
        yield running


def test_the_cloud_service_keeps_its_document(cloud: BackgroundServer, tmp_path: Path) -> None:
    # Models that come and go while they are attacked are another test's.
    attack(cloud.url, tmp_path, "--exclude-path-regex", "/v2/repository/models/.*")


def test_the_gateway_keeps_its_document(
    cloud: BackgroundServer, tiny_embedder_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_KEYS", f"acme:{KEY}")
    tables = {
        "edge": {"bundle": str(tiny_embedder_bundle), "mode": "edge_only"},
        "cloud": {"backends": {"main": {"url": cloud.url, "model": "minilm"}}},
        "server": {"api_keys_env": "GATEWAY_KEYS"},
    }
    with ExitStack() as resources:
        gateway = build_gateway(parse_config(tables), resources)
        with BackgroundServer(gateway.app) as server:
            attack(server.url, tmp_path, key=KEY)


def test_a_door_with_a_model_that_writes_keeps_its_document(tmp_path: Path) -> None:
    with BackgroundServer(front_door(writers.served(writers.Writer()), answers=None, metrics=Metrics())) as server:
        attack(server.url, tmp_path, "--include-path-regex", "completions")
