"""Which engine a folder gets, and the engine over a bundle."""

import subprocess
import sys

import numpy as np
import pytest

from edgewise.cloud.engine import BundleEngine, load_engine
from edgewise.edge import EdgeModel
from edgewise.errors import BundleError, CheckpointError, ConfigError, InputError, MissingExtraError


def test_a_bundle_is_served_through_the_edge_runtime(tiny_text_bundle):
    engine = load_engine(tiny_text_bundle, threads=2, task="text-classification")
    model = EdgeModel.load(tiny_text_bundle)
    assert isinstance(engine, BundleEngine)
    assert engine.info.version == model.digest
    assert (engine.info.name, engine.info.input, engine.info.role) == ("tiny-text", "text", "cloud")
    assert engine.info.labels == model.labels
    texts = ["wheat harvest rose", "vessel in port"]
    for got, expected in zip(engine.predict(texts), model.predict(texts), strict=True):
        assert got.output == expected.output
        np.testing.assert_array_equal(got.logits, expected.logits)


def test_a_bundle_of_an_image_model_reads_images(tiny_image_bundle):
    engine = load_engine(tiny_image_bundle, name="digits")
    assert (engine.info.name, engine.info.input) == ("digits", "image")
    with pytest.raises(InputError):
        engine.predict(["a text"])


def test_a_model_for_another_task_is_refused(tiny_text_bundle):
    with pytest.raises(CheckpointError, match="not for image-classification"):
        load_engine(tiny_text_bundle, task="image-classification")


def test_a_broken_bundle_is_refused_as_a_bundle(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        load_engine(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_a_path_without_a_model_is_refused(tmp_path, there):
    path = tmp_path if there else tmp_path / "nowhere"
    with pytest.raises(CheckpointError, match="neither" if there else "no folder") as caught:
        load_engine(path)
    assert caught.value.remedy


def test_no_threads_are_refused(tiny_text_bundle):
    with pytest.raises(ConfigError, match="threads is 0"):
        load_engine(tiny_text_bundle, threads=0)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"edgewise\[cloud\]"):
        load_engine(tmp_path)


def test_the_clients_load_nothing_heavy():
    code = """
import sys, edgewise.cloud.clients, edgewise.cloud.service
heavy = {"torch", "transformers", "optimum", "onnx", "boto3", "pydantic", "pandas", "matplotlib"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
