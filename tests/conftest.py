"""Fixtures that tests of several rooms share: tiny models and the bundles made of them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

# What services keep for the next start stays in this folder, and not in the home of whoever tests.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / "build" / "tests" / "cache")

# How long an example takes on a busy machine says nothing about the rule under test.
hypothesis.settings.register_profile("edgewise", deadline=None)
hypothesis.settings.load_profile("edgewise")


@pytest.fixture(scope="session")
def tiny_models() -> ModuleType:
    """The module tests/unit/tiny_models.py, which pytest's importlib mode lets no test import by name."""
    return _neighbour("tiny_models")


@pytest.fixture(scope="session")
def tiny_generator() -> ModuleType:
    """The module tests/unit/tiny_generator.py: a language model of one table."""
    return _neighbour("tiny_generator")


@pytest.fixture(scope="session")
def tiny_checkpoints() -> ModuleType:
    """The module tests/unit/tiny_checkpoints.py: folders that transformers writes."""
    return _neighbour("tiny_checkpoints")


def _neighbour(name: str) -> ModuleType:
    path = Path(__file__).parent / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"edgewise_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_text_onnx(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file: input_ids and attention_mask in, logits over grain, ship and trade out."""
    import onnx

    path = tmp_path_factory.mktemp("tiny-onnx") / "model.onnx"
    onnx.save_model(tiny_models.text_model(), path)
    return path


@pytest.fixture(scope="session")
def tiny_text_bundle(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny text model with golden items. Shared: copy it before changing it."""
    return tiny_models.pack_text(tmp_path_factory.mktemp("tiny-text"))


@pytest.fixture(scope="session")
def tiny_image_bundle(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny image model (8 x 8, grey) with golden items. Shared: copy it before changing it."""
    return tiny_models.pack_image(tmp_path_factory.mktemp("tiny-image"))


@pytest.fixture(scope="session")
def tiny_tagger_bundle(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny tagger with golden items. Shared: copy it before changing it."""
    return tiny_models.pack_tagger(tmp_path_factory.mktemp("tiny-tagger"))


@pytest.fixture(scope="session")
def tiny_embedder_bundle(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny embedder with golden items. Shared: copy it before changing it."""
    return tiny_models.pack_embedder(tmp_path_factory.mktemp("tiny-embedder"))


@pytest.fixture(scope="session")
def tiny_generator_bundle(tiny_generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny language model with golden items. Shared: copy it before changing it."""
    return tiny_generator.pack(tmp_path_factory.mktemp("tiny-generator"))
