"""Which runtime a checkpoint gets: measured, proved to answer alike, and kept for the next start."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgewise.cloud import choosing, onnx_engine
from edgewise.cloud.checkpoint import Checkpoint
from edgewise.cloud.checkpoint_engine import CheckpointEngine
from edgewise.cloud.choosing import checkpoint_engine, require_agreement, throughputs
from edgewise.cloud.engine import RUNTIMES, check_runtime, load_engine
from edgewise.cloud.readers import TextReader
from edgewise.edge.pooling import Pooling
from edgewise.errors import CheckpointError, ConfigError, EdgewiseError

LABELS = ("corn", "gold", "ship")
BATCHES = [["a b", "a b c"], ["a", "a b c d e f"]]


class Tokenizer:
    """One token a word, its number the word's length."""

    pad_token_id, pad_token_type_id = 0, 0

    def __call__(self, texts, **_):
        ids = [[len(word) for word in text.split()] for text in texts]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


def found(**more):
    fields = {"task": "text-classification", "labels": LABELS, "safetensors": True, "version": "sha256:1", **more}
    return Checkpoint(path=Path("news"), **fields)


def engine(forward, *, runtime="torch", slots=1, checkpoint=None):
    reader = TextReader(Tokenizer(), None, frozenset({"input_ids", "attention_mask"}))
    return CheckpointEngine(forward, reader, checkpoint or found(), runtime=runtime, slots=slots)


def sums(feeds):
    total = feeds["input_ids"].sum(axis=1, dtype=np.float32)
    return np.stack([total, total / 2, -total], axis=1)


def test_items_are_told_apart_whatever_else_is_in_their_batch():
    texts = ["a", "bb ccc", "a b c d e f g h i", "dddd"]
    together = engine(sums).predict(texts)
    assert [float(one.logits[0]) for one in together] == [1, 5, 9, 4]
    assert {one.output for one in together} == {"corn"}


def test_padding_is_no_part_of_an_embedding():
    encoder = found(task="feature-extraction", labels=(), pooling=Pooling("mean", normalize=False))
    tokens = engine(lambda feeds: np.repeat(feeds["input_ids"][:, :, None], 2, axis=2) + 1.0, checkpoint=encoder)
    short, long = tokens.predict(["aaa aaa aaa", "a b c d"])
    assert (short.output, long.output) == ((4.0, 4.0), (2.0, 2.0))


def test_runtimes_that_agree_may_replace_each_other():
    assert require_agreement(engine(sums), engine(lambda feeds: sums(feeds) + 1e-6), BATCHES) < 1e-5


@pytest.mark.parametrize(
    "other", [lambda feeds: sums(feeds) * 1.01, lambda feeds: sums(feeds) * np.nan, lambda feeds: sums(feeds)[:, ::-1]]
)
def test_runtimes_that_answer_otherwise_are_told_apart(other):
    with pytest.raises(EdgewiseError, match="differs from torch"):
        require_agreement(engine(sums), engine(other), BATCHES)


def test_the_faster_engine_is_measured_in_turns():
    now, calls = [0.0], []

    def taking(name, seconds):
        def forward(feeds):
            calls.append(name)
            now[0] += seconds
            return sums(feeds)

        return engine(forward)

    slow, fast = throughputs([taking("slow", 0.02), taking("fast", 0.01)], BATCHES, lambda: now[0])
    assert fast == pytest.approx(2 * slow)
    per_round = len(calls) // (choosing._ROUNDS + 1) // 2
    assert calls[: 2 * per_round] == ["slow"] * per_round + ["fast"] * per_round


def test_measuring_a_slow_model_ends():
    now = [0.0]

    def forward(feeds):
        now[0] += 10.0
        return sums(feeds)

    assert throughputs([engine(forward)], BATCHES, lambda: now[0])[0] > 0
    assert now[0] <= 10.0 * sum(map(len, BATCHES))


def test_an_unknown_engine_is_refused():
    assert [check_runtime(name) for name in RUNTIMES] == list(RUNTIMES)
    with pytest.raises(ConfigError, match="tensorrt"):
        check_runtime("tensorrt")


def test_a_bundle_is_not_run_by_torch(tiny_text_bundle):
    with pytest.raises(ConfigError, match="bundle"):
        load_engine(tiny_text_bundle, engine="torch")
    assert load_engine(tiny_text_bundle, engine="onnx").slots == 1


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert onnx_engine.default_cache() == tmp_path / "edgewise" / "onnx"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert onnx_engine.default_cache() == Path.home() / ".cache" / "edgewise" / "onnx"


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tiny_checkpoints):
    return tiny_checkpoints.text_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-bert")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
def test_an_export_answers_as_torch_does_and_is_kept(bert, cache, monkeypatch):
    torch = load_engine(bert, threads=2, engine="torch")
    onnx = checkpoint_engine(bert, threads=2, runtime="onnx", cache=cache)
    assert (torch.runtime, onnx.runtime) == ("torch", "onnx")
    assert torch.info == onnx.info
    assert sorted(file.name for file in bert.iterdir()) == sorted(
        ["config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    )
    texts = ["corn", "the price of gold rose to the ship", "gold fell"] * 3
    for one, other in zip(torch.predict(texts), onnx.predict(texts), strict=True):
        assert one.output == other.output
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=1e-4)
    monkeypatch.setattr(onnx_engine, "_export", lambda *_: pytest.fail("it was exported again"))
    again = checkpoint_engine(bert, threads=1, max_slots=1, runtime="auto", cache=cache)
    assert again.slots == 1


@pytest.mark.slow
def test_a_damaged_export_is_made_anew(bert, cache):
    checkpoint_engine(bert, threads=1, runtime="onnx", cache=cache)
    (graph,) = cache.glob("*/model.onnx")
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-100])
    checkpoint_engine(bert, threads=1, runtime="onnx", cache=cache)
    assert len(graph.read_bytes()) == len(whole)
    assert [path for path in cache.iterdir() if path.name.startswith((".", "tmp"))] == []


@pytest.mark.slow
def test_where_the_export_fails_torch_serves_and_the_log_says_why(bert, tmp_path, monkeypatch, caplog):
    import torch

    def fails(*_, **__):
        raise RuntimeError("Unsupported: aten::xyzzy\nand a page more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with caplog.at_level(logging.WARNING):
        assert checkpoint_engine(bert, threads=1, cache=tmp_path).runtime == "torch"
    assert "is served by torch" in caplog.text
    assert "aten::xyzzy" in caplog.text
    with pytest.raises(CheckpointError, match="aten::xyzzy") as caught:
        checkpoint_engine(bert, threads=1, runtime="onnx", cache=tmp_path)
    assert "--engine torch" in caught.value.remedy
    assert list(tmp_path.glob("*/")) == []


@pytest.mark.slow
def test_where_the_cache_cannot_be_written_torch_serves(bert, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert checkpoint_engine(bert, threads=1, cache=blocked).runtime == "torch"
    assert "cannot be kept" in caplog.text


@pytest.mark.slow
def test_a_graph_of_another_model_is_found_out(bert, cache, tmp_path, tiny_checkpoints, caplog):
    checkpoint_engine(bert, threads=1, runtime="onnx", cache=cache)
    other = Path(shutil.copytree(bert, tmp_path / "other"))
    tiny_checkpoints.rewrite_weights(other, seed=7)
    (kept,) = cache.glob("*/model.onnx")
    wrong = tmp_path / "cache" / onnx_engine._key(Checkpoint.open(other))
    shutil.copytree(kept.parent, wrong)
    assert checkpoint_engine(other, threads=1, cache=tmp_path / "cache").runtime == "torch"
    assert "differs from torch" in caplog.text
