"""From a trained checkpoint to a measured bundle, with real exporters, recipes and processes."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgewise.bundle import Bundle
from edgewise.dataset import digest_examples, digest_items, load_examples
from edgewise.edge import EdgeModel
from edgewise.errors import CheckpointError
from edgewise.quantize import QuantizeJob, quantize, read_report
from edgewise.quantize.run_folder import fresh_folder

pytestmark = pytest.mark.slow

LABELS = ("grain", "ship", "trade")


@pytest.fixture(scope="module")
def text_job(newsroom, tmp_path_factory) -> QuantizeJob:
    folder = tmp_path_factory.mktemp("quantize")
    return QuantizeJob(
        checkpoint=newsroom.checkpoint,
        data=newsroom.write(folder / "tuning.jsonl", newsroom.sentences(90, seed=2)),
        gate=newsroom.write(folder / "gate.jsonl", newsroom.sentences(400, seed=3)),
        out=folder / "run",
        prefer="size",
    )


class Steps:
    """Records what a run tells."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.steps: list[int] = []

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append((name, total))
        self.steps.append(0)

    def advance(self, steps: int = 1) -> None:
        self.steps[-1] += steps

    def note(self, text: str) -> None:
        raise AssertionError(f"unexpected: {text}")


@pytest.fixture(scope="module")
def told() -> Steps:
    return Steps()


@pytest.fixture(scope="module")
def result(text_job, told):
    return quantize(text_job, told)


def test_every_candidate_is_built_and_smaller_than_the_baseline(result):
    report = result.report
    assert [candidate.id for candidate in report.candidates] == ["fp32", "int8_dynamic", "int4_matmul", "int8_embed4"]
    assert {candidate.state for candidate in report.candidates} == {"measured"}
    sizes = {candidate.id: candidate.performance.size_bytes for candidate in report.candidates}
    assert max(size for name, size in sizes.items() if name != "fp32") < 0.6 * sizes["fp32"]
    assert sizes["int4_matmul"] == min(sizes.values())
    for candidate in report.candidates:
        bundle = Bundle.open(result.out / "candidates" / candidate.id)
        assert bundle.model_digest == candidate.model_digest
        assert bundle.size_bytes == candidate.performance.size_bytes
        assert candidate.skipped == ()


def test_quality_is_counted_from_the_predictions_that_are_kept(result, text_job):
    truth = [LABELS.index(example.label) for example in load_examples(text_job.data)]
    answers = {
        candidate.id: np.load(result.out / "predictions" / f"{candidate.id}.npz")["logits"].argmax(axis=1)
        for candidate in result.report.candidates
    }
    for candidate in result.report.candidates:
        assert candidate.quality.accuracy == pytest.approx((answers[candidate.id] == truth).mean())
        assert candidate.quality.flips == pytest.approx((answers[candidate.id] != answers["fp32"]).mean())
        assert candidate.performance.latency.calls >= 90
    assert result.report.candidates[0].quality.accuracy > 0.95


def test_the_winner_is_whole_and_answers_with_its_measured_logits(result, text_job):
    assert result.report.winner == "int4_matmul"
    model = EdgeModel.load(result.bundle)
    model.check_golden()
    texts = [example.input for example in load_examples(text_job.data)][:20]
    kept = np.load(result.out / "predictions" / f"{result.report.winner}.npz")["logits"][:20]
    np.testing.assert_array_equal([answer.logits for answer in model.predict(texts)], kept)
    core = model.bundle.core
    assert (core.name, core.labels, core.licences, core.recipe.name) == (
        "newsroom",
        LABELS,
        ("apache-2.0",),
        "int4_matmul",
    )
    assert len(model.bundle.golden()) == 4


def test_what_was_measured_is_attested(result, text_job):
    attested = {found.kind: found.payload for found in Bundle.open(result.bundle).attestations()}
    assert set(attested) == {"measurement", "gate"}
    measured = attested["measurement"]
    assert measured["quality"]["n"] == 90
    assert measured["performance"]["peak_rss_bytes"] > 1 << 20
    assert measured["checkpoint_bytes"] == (text_job.checkpoint / "model.safetensors").stat().st_size
    assert attested["gate"]["gate"]["quality"]["n"] == 400
    assert attested["gate"]["gate"]["bound"] == pytest.approx(result.report.gate.bound)


def test_the_gate_decides_the_verdict(result):
    gate = result.report.gate
    assert gate.verdict == result.verdict == ("met" if gate.bound <= 0.01 else "missed")
    assert result.goal_met == (result.verdict == "met")
    assert gate.sentence in result.report.headline


def test_the_export_agrees_with_the_checkpoint(result):
    export = result.report.export
    assert (export.exporter, export.samples) == ("optimum", 16)
    assert export.largest_difference < 1e-4 < export.allowed_difference


def test_the_report_is_on_disk_and_nothing_else_is_left(result):
    assert read_report(result.out) == result.report
    kept = {"bundle", "candidates", "predictions", "logs", "report.json", "report.html", "run.json"}
    assert {path.name for path in result.out.iterdir()} == kept
    assert [path.name for path in result.out.parent.glob(".run.*")] == []


def test_the_parts_behind_the_choice_are_attested_so_that_certifying_refuses_them(result, text_job):
    attested = {found.kind: found.payload for found in Bundle.open(result.bundle).attestations()}
    for kind, path in (("measurement", text_job.data), ("gate", text_job.gate)):
        examples = load_examples(path)
        assert attested[kind]["data_digest"] == digest_examples(examples)
        assert attested[kind]["items_digest"] == digest_items(examples)
    assert result.report.gate_overlap == 0


def test_golden_items_need_not_be_data(text_job, tmp_path):
    found = quantize(replace(text_job, golden="synthetic", recipes=("int8_dynamic",), gate=None, out=tmp_path / "run"))
    for candidate in ("fp32", "int8_dynamic"):
        model = EdgeModel.load(found.out / "candidates" / candidate)
        assert tuple(item.input for item in model.bundle.golden()) == LABELS
        model.check_golden()
    packed = b"".join(path.read_bytes() for path in found.bundle.rglob("*") if path.is_file())
    assert not any(example.input.encode() in packed for example in load_examples(text_job.data))


def test_progress_reaches_every_total(result, told):
    assert [name for name, _ in told.stages] == ["export", "build", "measure", "gate"]
    assert told.steps == [total for _, total in told.stages]


def test_the_same_job_again_is_left_unchanged_and_a_damaged_one_is_built_anew(result, text_job, tmp_path):
    again = replace(text_job, reuse=True)
    marker = (result.out / "run.json").stat().st_mtime_ns
    repeated = quantize(again)
    assert repeated.unchanged
    assert repeated.report == result.report
    assert (result.out / "run.json").stat().st_mtime_ns == marker

    copy = tmp_path / "run"
    shutil.copytree(result.out, copy)
    blob = max((copy / "bundle" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x00\x01")
    rebuilt = quantize(replace(again, out=copy, recipes=("int4_matmul",), gate=None))
    assert not rebuilt.unchanged
    # The core is reproducible: another run on the same machine gives the same model.
    assert rebuilt.report.candidate("int4_matmul").model_digest == result.report.candidate("int4_matmul").model_digest
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_without_its_head_is_refused(text_job, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "headless"
    shutil.copytree(text_job.checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "classifier" not in name}, folder / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"lacks 2 weights, such as 'classifier\.bias'"):
        quantize(replace(text_job, checkpoint=folder, out=tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["headless"]


@pytest.mark.parametrize("exporter", ["torch"])
def test_the_second_exporter_gives_the_same_answers(text_job, result, tmp_path, exporter):
    found = quantize(
        replace(text_job, exporter=exporter, recipes=("int8_dynamic",), gate=None, prefer="speed", out=tmp_path / "run")
    )
    assert found.verdict == "untested"
    kept = np.load(result.out / "predictions" / "fp32.npz")["logits"]
    np.testing.assert_allclose(np.load(tmp_path / "run" / "predictions" / "fp32.npz")["logits"], kept, atol=1e-4)
    assert found.report.candidate("int8_dynamic").quality.flips < 0.1


def test_images_take_the_same_way(tmp_path):
    import torch
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=16,
        patch_size=4,
        num_channels=1,
        id2label={0: "dark", 1: "bright"},
        label2id={"dark": 0, "bright": 1},
    )
    ViTForImageClassification(config).eval().save_pretrained(tmp_path / "checkpoint")
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(tmp_path / "checkpoint")
    draw = np.random.default_rng(0)
    for label, low in (("dark", 0), ("bright", 128)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(low, low + 128, (20, 24, 3)).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, format="PNG" if number % 2 else "JPEG")
            suffix = "png" if number % 2 else "jpg"
            (tmp_path / "images" / label / f"{number}.{suffix}").write_bytes(stream.getvalue())
    found = quantize(QuantizeJob(tmp_path / "checkpoint", tmp_path / "images", tmp_path / "run", max_drop=0.9))
    states = {candidate.id: candidate.state for candidate in found.report.candidates}
    assert states == dict.fromkeys(("fp32", "int8_dynamic", "int8_static", "int4_matmul"), "measured")
    EdgeModel.load(found.bundle).check_golden()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_kill_in_the_middle_leaves_no_run_and_no_process(text_job, tmp_path):
    out = tmp_path / "run"
    code = (
        "from pathlib import Path; from edgewise.quantize import QuantizeJob, quantize; "
        f"quantize(QuantizeJob(Path({str(text_job.checkpoint)!r}), Path({str(text_job.data)!r}), Path({str(out)!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(lambda: any(tmp_path.glob(".run.*/logs/int8_dynamic.log")) or process.poll() is not None)
        assert process.poll() is None
        workers: list[int] = []
        wait_for(lambda: workers.extend(children(process.pid)) or workers)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
    assert not out.exists()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    # All that it left lies in one folder, which the next run removes.
    (left,) = tmp_path.iterdir()
    with fresh_folder(out):
        assert not left.exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_at_all(text_job, tmp_path, sign, code):
    job = ["quantize", text_job.checkpoint, "--data", text_job.data, "--out", tmp_path / "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgewise.cli", *map(str, job)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: any(tmp_path.glob(".run.*/logs/export.log")) or process.poll() is not None)
        process.send_signal(sign)
        assert process.wait(timeout=60) == code
    finally:
        process.kill()
    assert list(tmp_path.iterdir()) == []


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, "it did not happen within two minutes"
        time.sleep(0.02)
