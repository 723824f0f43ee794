"""Encoders and taggers become graphs that answer as their checkpoints do, by either exporter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgewise.bundle import BundleSource, Recipe, Target, TextSource, pack_bundle, read_facts
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CheckpointError
from edgewise.quantize import export
from edgewise.quantize.checkpoint import inspect_checkpoint
from edgewise.quantize.export import ExportJob, export_here, require_agreement
from edgewise.quantize.items import items_of

pytestmark = pytest.mark.slow

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "alice", "met", "bob", "in", "par", "##is", "new", "york")
TEXTS = ["Alice met Bob in Paris", "in New York", "zebra Paris " * 12]
TAGS = ("O", "B-PER", "B-LOC", "I-LOC")


def save_checkpoint(folder: Path, architecture: str) -> Path:
    """A tiny encoder with random weights, as transformers saves it."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        id2label=dict(enumerate(TAGS)),
        label2id={tag: i for i, tag in enumerate(TAGS)},
    )
    getattr(transformers, architecture)(config).save_pretrained(folder)
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def job_of(folder: Path, out: Path, exporter: str) -> ExportJob:
    found = inspect_checkpoint(folder)
    return ExportJob(
        checkpoint=str(folder),
        task=found.task,
        architecture=found.architecture,
        exporter=exporter,
        max_length=found.max_length,
        out=str(out),
        samples=items_of(TEXTS),
        pooling=found.pooling,
        labels=found.labels,
    )


def loaded(exported, job: ExportJob, folder: Path) -> EdgeModel:
    source = BundleSource(
        name="tiny",
        task=job.task,
        onnx_path=Path(exported.onnx),
        preprocessing=TextSource(Path(exported.tokenizer).read_bytes(), job.max_length),
        labels=job.labels,
        recipe=Recipe("none"),
        target=Target((probe().isa,), "1.23", read_facts(Path(exported.onnx)).opset),
    )
    pack_bundle(source, folder / "bundle")
    return EdgeModel.load(folder / "bundle")


def test_a_sentence_encoder_by_optimum_pools_inside_the_graph(tmp_path):
    folder = save_checkpoint(tmp_path / "encoder", "BertModel")
    modules = [{"path": path, "type": f"m.{kind}"} for path, kind in (("", "Transformer"), ("1_Pooling", "Pooling"))]
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "2", "type": "m.Normalize"}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    job = job_of(folder, tmp_path, "auto")
    exported = export_here(job)
    assert (exported.exporter, exported.refusals) == ("optimum", ())
    model = loaded(exported, job, tmp_path)
    found = [prediction.output for prediction in model.predict(TEXTS)]
    assert require_agreement(exported.answers, found, job.architecture, exported.exporter) < 1e-5
    assert len(found[0]) == 32


def test_what_optimum_refuses_torch_exports_and_both_refusals_are_told(tmp_path, monkeypatch):
    def refuse(job, reference, out):
        raise ValueError("no such layer\nand more")

    job = job_of(save_checkpoint(tmp_path / "tagger", "BertForTokenClassification"), tmp_path, "auto")
    monkeypatch.setitem(export._EXPORT, "optimum", refuse)
    exported = export_here(job)
    assert exported.exporter == "torch"
    assert exported.refusals == ("optimum cannot export BertForTokenClassification: no such layer.",)
    model = loaded(exported, job, tmp_path)
    tagged = [model.tag(text) for text in TEXTS]
    assert [len(rows) for rows in tagged] == [5, 3, 24]
    rows = [logits.ravel() for logits in tagged]
    assert require_agreement(exported.answers, rows, job.architecture, exported.exporter) < 1e-4
    monkeypatch.setitem(export._EXPORT, "torch", refuse)
    with pytest.raises(CheckpointError, match=r"optimum cannot export BertFor.*torch cannot export BertFor") as caught:
        export_here(job)
    assert ".onnx" in caught.value.remedy


def test_an_architecture_that_is_not_known_is_named_with_the_exporters(tmp_path):
    folder = save_checkpoint(tmp_path / "foo", "BertForSequenceClassification")
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "model_type": "foo", "architectures": ["FooForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=r"`foo`.*\(optimum, torch\).*FooForSequenceClassification") as caught:
        export_here(job_of(folder, tmp_path, "auto"))
    assert "ONNX file" in caught.value.remedy
