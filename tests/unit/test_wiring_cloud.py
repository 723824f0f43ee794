"""What a cloud service is made of: names, engines, who may load; and what is refused before a model is loaded."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import sys
import types

import pytest

from edgewise import wiring
from edgewise.cloud import rayserve
from edgewise.config import Config, ServerSection
from edgewise.errors import CheckpointError, ConfigError, MissingExtraError
from edgewise.wiring import CloudSettings, cloud_models
from edgewise.wiring.cloud import _running
from edgewise.wiring.rayserve import Door, ray_arguments


def config(**server):
    return Config(server=ServerSection(port=0, **server))


def settings(path, **changes):
    return CloudSettings(models=cloud_models([str(path)]), **changes)


def test_models_are_named_by_themselves_or_by_whoever_asks(tiny_text_bundle, tmp_path):
    folder = tmp_path / "a=b"
    folder.mkdir()
    found = cloud_models([str(tiny_text_bundle), "second=/models/x", f"third={folder}"], name="first")
    assert [model.name for model in found] == ["first", "second", "third"]
    assert [model.path for model in found] == [tiny_text_bundle, *map(type(tmp_path), ("/models/x", folder))]
    assert cloud_models([str(tiny_text_bundle)])[0].name == "tiny-text"
    assert cloud_models([str(tmp_path / "checkpoint")])[0].name == "checkpoint"
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "checkpoint")
    assert cloud_models([str(link)])[0].name == "checkpoint"
    # An existing folder is one, whatever its name looks like.
    with pytest.raises(ConfigError, match="'a=b' cannot stand in a URL"):
        cloud_models([str(folder)])


@pytest.mark.parametrize(
    ("given", "name", "told"),
    [
        ([], None, "No model is given"),
        (["a=/x", "a=/y"], None, "Two models are named a"),
        (["/models/a", "a=/y"], None, "Two models are named a"),
        (["a=/x"], "b", "named twice"),
        (["/x"], "no/name", "cannot stand in a URL"),
    ],
)
def test_names_that_cannot_be_are_refused(given, name, told):
    with pytest.raises(ConfigError, match=told):
        cloud_models(given, name)


@pytest.mark.parametrize(
    ("changes", "server", "told"),
    [
        ({"engine": "abacus"}, {}, "no engine 'abacus'"),
        ({"replicas": -1}, {}, "replicas is -1"),
        ({"allow_load": True}, {"host": "0.0.0.0"}, "let everybody who reaches 0.0.0.0"),
        ({"allow_load": True}, {"api_keys_env": "EDGEWISE_TEST_KEYS"}, "without API keys"),
        ({"admins": frozenset({"ops"})}, {}, "no API keys are configured"),
        ({"admins": frozenset({"ops", "who"})}, {"api_keys_env": "EDGEWISE_TEST_KEYS"}, "names who"),
        ({"max_batch": 0, "replicas": 0}, {}, "max_batch is 0"),
    ],
)
async def test_settings_that_contradict_each_other_are_refused(tiny_text_bundle, monkeypatch, changes, server, told):
    monkeypatch.setenv("EDGEWISE_TEST_KEYS", "ops:k1,shop:k2")
    with pytest.raises(ConfigError, match=told):
        async with wiring.build_cloud(settings(tiny_text_bundle, **changes), config(**server)).repository.lifespan():
            pass


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = ServerSection(port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="in use"):
            wiring.serve_cloud(settings(tmp_path / "nothing"), Config(server=server), lambda *_: None)


def test_a_model_in_this_process_is_loaded_before_the_server_starts(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder"):
        wiring.build_cloud(settings(tmp_path / "nothing", replicas=0), config())


async def test_a_bundle_that_answers_its_golden_items_otherwise_is_not_served(tiny_models, tmp_path, monkeypatch):
    from edgewise.edge import EdgeModel
    from edgewise.errors import CertificateError

    bundle = tiny_models.pack_text(tmp_path)
    honest = EdgeModel.predict
    monkeypatch.setattr(EdgeModel, "predict", lambda self, items: honest(self, ["vessel port" for _ in items]))
    with pytest.raises(CertificateError, match="comes out differently"):
        wiring.build_cloud(settings(bundle, replicas=0), config())


async def test_a_hangup_while_models_load_is_heard_once_they_are_loaded():
    seen, reloaded = [], asyncio.Semaphore(0)

    class Slow:
        @contextlib.asynccontextmanager
        async def lifespan(self):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.01)
            seen.append("loaded")
            yield

        async def reload(self):
            seen.append("reload")
            reloaded.release()
            if seen.count("reload") == 1:
                raise OSError("not loaded")

    async with _running(Slow()):
        await asyncio.wait_for(reloaded.acquire(), 20)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(reloaded.acquire(), 20)
    assert seen == ["loaded", "reload", "reload"]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


async def test_a_door_on_ray_counts_where_its_metrics_are_told(monkeypatch):
    serve = types.SimpleNamespace(get_replica_context=lambda: types.SimpleNamespace(app_name="app"))
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(serve=serve))
    monkeypatch.setattr("edgewise.wiring.rayserve.front_door", lambda models, **told: told)
    monkeypatch.setattr("edgewise.cloud.repository.ModelRepository", lambda openers: Shelf(openers))
    monkeypatch.setattr("edgewise.cloud.service.EngineService", lambda workers, **given: given)

    class Shelf:
        lifespan = models = None

        def __init__(self, openers):
            opened.update(openers)

    opened = {}
    told = Door({"m": None}, {"models": {"m": "/m"}}).__serve_build_asgi_app__()
    assert (await opened["m"]())["metrics"] is told["metrics"]


def test_ray_that_is_not_installed_is_named_with_its_command(tiny_text_bundle, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(rayserve, "find_spec", lambda name: None if name == "ray" else find(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'edgewise\[ray\]'"):
        wiring.serve_cloud(settings(tiny_text_bundle, engine="ray"), config(), lambda *_: None)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({}, "missing required field `models`"),
        ({"models": {}}, "No model is given"),
        ({"models": {"a": "/x"}, "replicas": 3}, "unknown field `replicas`"),
        ({"models": {"a/b": "/x"}}, "cannot stand in a URL"),
        ({"models": {"a": "/x"}, "min_replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"models": {"a": "/x"}, "threads": 0}, "below 1"),
    ],
)
def test_arguments_of_a_ray_application_are_checked(args, told):
    with pytest.raises(ConfigError, match=told):
        ray_arguments(args)


async def test_a_language_model_is_served_beside_a_classifier(tiny_text_bundle, tiny_checkpoints, tmp_path):
    writer = tiny_checkpoints.causal_checkpoint(tmp_path / "writer")
    models = cloud_models([str(writer), str(tiny_text_bundle)])
    service = wiring.build_cloud(CloudSettings(models=models, replicas=0, threads=1, max_batch=3), config())
    async with service.repository.lifespan():
        assert [info.task for info in service.infos()] == ["text-generation", "text-classification"]
        assert all(served.ready() is None for served in service.repository.models().values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"engine": "onnx"}, "the engine onnx cannot run"),
        ({"engine": "ray"}, "the engine ray cannot run"),
        ({"max_batch": 0}, "max_batch is 0"),
    ],
)
def test_what_a_language_model_cannot_be_served_by_is_refused(tiny_checkpoints, tmp_path, changes, told):
    writer = tiny_checkpoints.causal_checkpoint(tmp_path / "writer")
    with pytest.raises(ConfigError, match=told):
        wiring.build_cloud(settings(writer, **changes), config())


async def test_drafts_are_for_language_models_with_the_same_tokenizer(tiny_text_bundle, tiny_checkpoints, tmp_path):
    writer = tiny_checkpoints.causal_checkpoint(tmp_path / "writer")
    other = tiny_checkpoints.causal_checkpoint(tmp_path / "other", extra=("ab",))
    with pytest.raises(ConfigError, match="--draft guesses for a language model"):
        wiring.build_cloud(settings(tiny_text_bundle, draft=writer), config())
    with pytest.raises(CheckpointError, match="another tokenizer"):
        async with wiring.build_cloud(settings(writer, draft=other), config()).repository.lifespan():
            pass
