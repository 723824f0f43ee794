"""The README's shell and Python blocks, executed in their order in an empty folder, against small real artefacts.

Ports are replaced by free ones, and a block that serves goes on in the background until the test ends; nothing else is
changed. The folder holds what the README says the reader brings: data files, an ONNX file, checkpoints. The quick walk
brings a bundle in their place and leaves out the quantizing and the plan over its candidates.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

README = Path(__file__).parents[2] / "README.md"
PORTS = ("8700", "8701", "8702", "8703")
SIZES = {"tuning": 200, "gate": 700, "certify": 700, "test": 200}
_BLOCK = re.compile(
    r"^(?:<!-- not run: ?(?P<reason>.*?) ?-->\n)?```(?P<kind>bash|python)\n(?P<code>.*?)^```", re.M | re.S
)


class Block(NamedTuple):
    """A fenced block; `reason` says why it is not run."""

    kind: str
    code: str
    reason: str | None


def blocks() -> list[Block]:
    found = _BLOCK.finditer(README.read_text(encoding="utf-8"))
    return [Block(block["kind"], block["code"], block["reason"]) for block in found]


def test_few_blocks_are_not_run_and_each_says_why():
    kept = [block for block in blocks() if block.reason is not None]
    assert len(kept) <= 3
    assert all(len(block.reason.split()) >= 3 for block in kept)
    assert not [block for block in kept if "edgewise" in block.code and "pip install" not in block.code]


def test_every_fenced_block_is_of_a_kind_that_is_run():
    fences = re.findall(r"^```(\w*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert [fence for fence in fences if fence] == [block.kind for block in blocks()]


@pytest.fixture
def reader(tmp_path, tiny_models, tiny_text_onnx, tiny_generator_bundle) -> Path:
    """What every reader brings: an ONNX file with its tokenizer and labels, and a language model's bundle."""
    shutil.copytree(tiny_generator_bundle, tmp_path / "writer/bundle")
    shutil.copyfile(tiny_text_onnx, tmp_path / "model.onnx")
    (tmp_path / "tokenizer.json").write_bytes(tiny_models.tokenizer_json())
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in tiny_models.LABELS))
    return tmp_path


@pytest.fixture
def walk(reader, start_service, tmp_path) -> Callable[..., list[str]]:
    """Execute the README; returns what its blocks print."""
    commands = tmp_path / ".bin"
    commands.mkdir()
    script = commands / "edgewise"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgewise.cli "$@"\n')
    script.chmod(0o755)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONIOENCODING": "utf-8"}

    def run(*, leave_out: tuple[str, ...] = ()) -> list[str]:
        printed = []
        for block in blocks():
            if block.reason is not None or any(command in block.code for command in leave_out):
                continue
            code = re.sub(r"\b870[0-3]\b", lambda port: ports[port[0]], block.code)
            served = re.fullmatch(r"edgewise ((?:edge|cloud) serve .*)\n", code)
            if served:
                start_service(*served[1].split())
                continue
            interpreter = ["bash", "-euo", "pipefail", "-c"] if block.kind == "bash" else [sys.executable, "-c"]
            done = subprocess.run(
                [*interpreter, code], cwd=reader, env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{block.code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            printed.append(done.stdout)
        return printed

    return run


def free_ports(count: int) -> Iterator[str]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [str(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return iter(found)


def write_parts(folder: Path, items: list[tuple[str, str]]) -> None:
    """The four parts of the data, one after the other."""
    start = 0
    for name, size in SIZES.items():
        rows = items[start : start + size]
        assert len(rows) == size
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
        start += size


def check_results(folder: Path, printed: list[str]) -> None:
    """The walk has done what the README says, not only ended without an error."""
    certificate = json.loads((folder / "run/bundle.certificate.json").read_text())
    assert certificate["bound"]["n"] == SIZES["certify"]
    summary = json.loads((folder / "results/summary.json").read_text())
    assert summary["n_test"] == SIZES["test"]
    assert summary["local_share"] > 0
    assert (folder / "results/operating_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "state.db").is_file()
    everything = "\n".join(printed)
    assert "answer locally iff score > " in everything
    assert re.search(r"\b(final|provisional) (edge|cloud|cache) \w+", everything)


def test_the_readme_works_from_a_bundle(walk, reader, monkeypatch, tiny_models, tiny_text_bundle):
    monkeypatch.chdir(reader)
    for place in ("run/bundle", "checkpoints/cloud"):
        shutil.copytree(tiny_text_bundle, reader / place)
    draw = random.Random(0)
    items = []
    for _ in range(sum(SIZES.values())):
        label = draw.choice(tiny_models.LABELS)
        words = [*draw.sample(tiny_models.WORDS[label], 2), *draw.sample(tiny_models.NEUTRAL, draw.randint(0, 3))]
        items.append((" ".join(words), label))
    write_parts(reader, items)
    check_results(reader, walk(leave_out=("edgewise quantize", "edgewise plan")))


@pytest.mark.slow
def test_the_readme_works_from_checkpoints(walk, reader, monkeypatch):
    monkeypatch.chdir(reader)
    items = sure_items(reader / "checkpoints/edge", sum(SIZES.values()))
    shutil.copytree(reader / "checkpoints/edge", reader / "checkpoints/cloud")
    write_parts(reader, items)
    check_results(reader, walk())
    assert json.loads((reader / "run/report.json").read_text())["verdict"] == "met"
    assert (reader / "planned/bundle.certificate.json").is_file()


def sure_items(folder: Path, count: int) -> list[tuple[str, str]]:
    """Write a random checkpoint; texts with its own answers as labels, the quarter it is surest of, in random order."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u")]
    words += ["wheat", "harvest", "rose", "vessel", "in", "port", "strike", "tariff", "deficit", "fell"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    names = dict(enumerate(("grain", "ship", "trade")))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words) + 5,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=40,
        initializer_range=0.3,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    draw = random.Random(0)
    texts = [" ".join(draw.sample(words, draw.randint(3, 8))) for _ in range(4 * count)]
    with torch.inference_mode():
        tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        logits = model(**tokens).logits
    top = logits.topk(2, dim=1)
    surest = (top.values[:, 0] - top.values[:, 1]).argsort(descending=True)[:count].tolist()
    draw.shuffle(surest)
    return [(texts[place], names[int(top.indices[place, 0])]) for place in surest]
