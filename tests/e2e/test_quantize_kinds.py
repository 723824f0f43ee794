"""The whole of `quantize` for every kind of model and source, on a target of its own, and where things go wrong."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewise.bundle import Bundle
from edgewise.edge import EdgeModel
from edgewise.quantize import QuantizeJob, quantize, read_report
from edgewise.quantize.select import SAME

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "alice", "met", "bob", "in", "paris", "new", "york", "today")
TAGS = ("O", "B-PER", "B-LOC")
OF = {"alice": "B-PER", "bob": "B-PER", "paris": "B-LOC", "york": "B-LOC"}


def sentences(count: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [draw.choices(WORDS[4:], k=draw.randint(3, 9)) for _ in range(count)]


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_encoder(folder: Path, architecture: str) -> Path:
    """A small encoder with random weights, wide enough to be quantized, as transformers saves it."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=16,
        id2label=dict(enumerate(TAGS)),
        label2id={tag: i for i, tag in enumerate(TAGS)},
    )
    getattr(transformers, architecture)(config).save_pretrained(folder)
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_sentence_encoder_is_judged_by_its_cosines(tmp_path):
    data = write_lines(tmp_path / "texts.jsonl", [{"text": " ".join(words)} for words in sentences(30, 1)])
    gate = write_lines(tmp_path / "gate.jsonl", [{"text": " ".join(words)} for words in sentences(60, 2)])
    found = quantize(
        QuantizeJob(
            save_encoder(tmp_path / "encoder", "BertModel"),
            data,
            tmp_path / "run",
            gate=gate,
            recipes=("int4_matmul",),
            max_drop=0.5,
            prefer="size",
        )
    )
    quality = found.report.candidate("int4_matmul").quality
    assert 0.9 < quality.cosine_min <= quality.cosine_mean < 1
    assert quality.drop == pytest.approx(1 - quality.cosine_mean, abs=1e-6)
    assert "mean cosine" in found.report.headline
    assert found.report.gate.quality.n == 60
    assert found.report.gate.bound > found.report.gate.quality.drop
    model = EdgeModel.load(found.bundle)
    vector = np.array(model.predict(["alice met bob"])[0].output)
    assert vector.shape == (64,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    kept = np.load(tmp_path / "run" / "predictions" / "fp32.npz")["embedding"]
    assert kept.shape == (30, 64)


@pytest.mark.slow
def test_a_tagger_is_judged_word_by_word(tmp_path):
    rows = [{"tokens": words, "tags": [OF.get(word, "O") for word in words]} for words in sentences(30, 3)]
    found = quantize(
        QuantizeJob(
            save_encoder(tmp_path / "tagger", "BertForTokenClassification"),
            write_lines(tmp_path / "tags.jsonl", rows),
            tmp_path / "run",
            test=write_lines(tmp_path / "test.jsonl", [
                {"tokens": words, "tags": [OF.get(word, "O") for word in words]} for words in sentences(20, 4)
            ]),
            recipes=("int8_dynamic",),
            max_drop=0.9,
        )
    )  # fmt: skip
    answers = np.load(tmp_path / "run" / "predictions" / "fp32.npz")
    assert answers["logits"].shape == (sum(len(row["tokens"]) for row in rows), len(TAGS))
    truth = np.array([TAGS.index(tag) for row in rows for tag in row["tags"]])
    right = np.split(answers["logits"].argmax(axis=1) == truth, np.cumsum(answers["words"])[:-1])
    expected = np.mean([part.mean() for part in right])
    assert found.report.candidates[0].quality.accuracy == pytest.approx(expected)
    assert found.report.test.n == 20
    assert Bundle.open(found.bundle).core.kind == "tagger"


@pytest.fixture
def onnx_job(tmp_path, tiny_models, tiny_text_onnx) -> list[str]:
    """Arguments that quantize the tiny text model, an ONNX file whose answers are known."""
    tokenizer, labels = tmp_path / "tokenizer.json", tmp_path / "labels.txt"
    tokenizer.write_bytes(tiny_models.tokenizer_json())
    labels.write_text("\n".join(tiny_models.LABELS))
    draw = random.Random(5)
    rows = []
    for number in range(40):
        label = tiny_models.LABELS[number % 3]
        rows.append({"text": " ".join(draw.choices(tiny_models.WORDS[label], k=3)), "label": label})
    data = write_lines(tmp_path / "tuning.jsonl", rows)
    given = {"--labels": labels, "--tokenizer": tokenizer, "--data": data, "--out": tmp_path / "run"}
    arguments = ["quantize", str(tiny_text_onnx), "--recipes", "int8_dynamic"]
    return arguments + [str(part) for pair in given.items() for part in pair]


def test_an_onnx_file_needs_no_torch(onnx_job, tmp_path):
    """torch, transformers and optimum cannot even be imported, in any of the processes."""
    for name in ("torch", "transformers", "optimum"):
        (tmp_path / "blocked" / name).mkdir(parents=True)
        (tmp_path / "blocked" / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked')")
    done = subprocess.run(
        [sys.executable, "-m", "edgewise.cli", *onnx_job, "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "blocked")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = read_report(tmp_path / "run")
    assert report.export.exporter == "none"
    assert [candidate.state for candidate in report.candidates] == ["measured", "measured"]
    assert report.candidates[0].quality.accuracy == 1
    EdgeModel.load(tmp_path / "run" / "bundle").check_golden()
    assert (tmp_path / "run" / "report.html").is_file()


def test_every_candidate_is_measured_on_the_target_by_its_command(onnx_job, tmp_path, edgewise):
    """The target is this machine, reached through a command that leaves a trace."""
    trace = tmp_path / "calls"
    over_there = tmp_path / "over-there"
    over_there.write_text(
        f'#!/bin/sh\necho "$@" >> {shlex.quote(str(trace))}\n'
        f'exec {sys.executable} -m edgewise.cli profile --json "$@"\n'
    )
    over_there.chmod(0o755)
    edgewise(*onnx_job, "--profile-cmd", f"{over_there} {{bundle}} --threads 2")
    report = read_report(tmp_path / "run")
    assert len(trace.read_text().splitlines()) == 2
    assert report.built_on is not None
    assert {candidate.state for candidate in report.candidates} == {"measured"}
    assert all(candidate.performance.latency.calls >= 20 for candidate in report.candidates)


def test_a_target_that_cannot_be_reached_ends_the_run_and_leaves_nothing(onnx_job, tmp_path, edgewise):
    done = edgewise(*onnx_job, "--profile-cmd", "false {bundle}", ok=False)
    assert done.returncode == 2
    assert "false" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    assert [path.name for path in tmp_path.glob(".run.*")] == []


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of so many kilobytes; one that root alone may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kilobytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder]
        done = subprocess.run(command, capture_output=True)
        if done.returncode != 0:
            pytest.skip("a small file system cannot be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
@pytest.mark.parametrize("kilobytes", [60, 150, 250, 350, 450])
def test_a_full_disk_is_told_and_nothing_is_left(onnx_job, small_disk, edgewise, kilobytes):
    """The disk fills up at export, while a candidate is prepared, built or packed, or when the run is saved."""
    disk = small_disk(kilobytes)
    arguments = [*onnx_job[:-1], str(disk / "run")]
    assert onnx_job[-2] == "--out"
    done = edgewise(*arguments, ok=False)
    assert done.returncode == 2, done.stderr
    assert "There is no room" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(disk.iterdir()) == []


def test_a_missed_goal_saves_every_candidate_and_says_what_was_missed(onnx_job, tmp_path, edgewise):
    rows = [json.loads(line) for line in (tmp_path / "tuning.jsonl").read_text().splitlines()]
    gate = write_lines(tmp_path / "gate.jsonl", [{**row, "text": f"{row['text']} today"} for row in rows])
    done = edgewise(*onnx_job, "--gate", gate, "--prefer", "size", ok=False)
    assert done.returncode == 1
    assert "Missed" in done.stdout
    assert "321 items would be needed" in done.stdout
    for name in ("fp32", "int8_dynamic"):
        Bundle.open(tmp_path / "run" / "candidates" / name)


def test_a_quantized_file_that_is_slower_or_not_smaller_is_told_in_the_first_line(onnx_job, tmp_path, edgewise):
    edgewise(*onnx_job, "--prefer", "size")
    report = read_report(tmp_path / "run")
    baseline, winner = report.candidates[0].performance, report.candidate(report.winner).performance
    slower = winner.latency.p50_ms / baseline.latency.p50_ms > SAME
    larger = winner.size_bytes >= baseline.size_bytes
    assert report.headline.startswith("Beware:") == (slower or larger)


def test_what_cannot_be_used_is_refused_in_words(onnx_job, tmp_path, edgewise):
    model = Path(onnx_job[1])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:-100])
    tuning = tmp_path / "tuning.jsonl"
    other = write_lines(tmp_path / "other.jsonl", [{"text": "wheat", "label": "weather"}])
    for change, words in (
        ({model: broken}, "not a readable ONNX model"),
        ({tuning: other}, "'weather'"),
        ({"int8_dynamic": "int8_dynamic,int8_dynamic"}, "named twice"),
        ({"int8_dynamic": "int9"}, "no recipe 'int9'"),
    ):
        arguments = [str({str(key): value for key, value in change.items()}.get(part, part)) for part in onnx_job]
        done = edgewise(*arguments, ok=False)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()


def test_nan_in_the_weights_is_named(tmp_path, tiny_models, onnx_job, edgewise):
    import onnx
    from onnx import numpy_helper

    model = onnx.load(onnx_job[1])
    tensor = next(found for found in model.graph.initializer if found.name == "head.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[3, 1] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")
    done = edgewise(*[str(tmp_path / "nan.onnx") if part == onnx_job[1] else part for part in onnx_job], ok=False)
    assert done.returncode == 2
    assert "'head.weight'" in done.stderr
    assert "NaN" in done.stderr
