"""What a job is refused for before any work starts, and when a finished run still stands."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from edgewise.errors import CheckpointError, ConfigError, DataError, OutputExistsError
from edgewise.quantize import NullProgress, QuantizeJob, plan, quantize
from edgewise.quantize.plan import make_plan


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "neg", "1": "pos"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"w": np.zeros(2, np.float32)}, folder / "model.safetensors")
    write(tmp_path / "tuning.jsonl", [("good", "pos"), ("bad", "neg"), ("fine", "pos")])
    write(tmp_path / "gate.jsonl", [("great", "pos"), ("awful", "neg")])
    return QuantizeJob(folder, tmp_path / "tuning.jsonl", tmp_path / "run", gate=tmp_path / "gate.jsonl")


def write(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


def test_a_plan_reads_every_part(job):
    plan = make_plan(job)
    assert plan.tuning.inputs == ("good", "bad", "fine")
    assert plan.tuning.truth.tolist() == [1, 0, 1]
    assert plan.gate.truth.tolist() == [1, 0]
    assert plan.choices[0].id == "fp32"
    assert {"edgewise", "torch", "onnxruntime"} <= set(plan.tools)


def test_inputs_are_spread_evenly(job):
    part = make_plan(job).tuning
    assert part.spread(2) == ("good", "bad")
    assert part.spread(9) == part.inputs


def test_the_baseline_named_as_a_recipe_is_built_once(job):
    plan = make_plan(replace(job, recipes=("int8_dynamic", "fp32")))
    assert [choice.id for choice in plan.choices] == ["fp32", "int8_dynamic"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"max_drop": 0.0}, ConfigError, "accuracy drop of 0"),
        ({"confidence": 1.0}, ConfigError, "no confidence"),
        ({"threads": (0,)}, ConfigError, "0 threads"),
        ({"prefer": "cheap"}, ConfigError, "'cheap'"),
        ({"exporter": "keras"}, ConfigError, "'keras'"),
        ({"golden": "mine"}, ConfigError, "'mine'"),
        ({"checkpoint": Path("bert-base-uncased")}, CheckpointError, "no checkpoint at bert-base-uncased"),
        ({"recipes": ("int3",)}, ConfigError, "'int3'"),
        ({"task": "image-classification"}, CheckpointError, "does text-classification"),
        ({"max_length": 0}, CheckpointError, "0 tokens"),
        ({"text_field": "body"}, DataError, "'body'"),
        ({"label_field": "class"}, DataError, "have no label"),
    ],
)
def test_a_wrong_job_is_refused_and_writes_nothing(job, change, error, match):
    with pytest.raises(error, match=match):
        quantize(replace(job, **change))
    assert not job.out.exists()
    assert sorted(path.name for path in job.out.parent.iterdir()) == ["checkpoint", "gate.jsonl", "tuning.jsonl"]


def test_a_gate_that_is_the_tuning_part_is_refused(job):
    with pytest.raises(DataError, match="same items"):
        make_plan(replace(job, gate=job.data))


def test_a_gate_that_is_the_tuning_part_in_another_order_is_refused(job):
    write(job.gate, [("fine", "pos"), ("good", "pos"), ("bad", "neg")])
    with pytest.raises(DataError, match="same items"):
        make_plan(job)


def test_gate_items_that_tuning_has_seen_are_counted(job):
    assert make_plan(job).gate_overlap == 0
    write(job.gate, [("great", "pos"), ("good", "neg"), ("bad", "neg"), ("bad", "neg"), ("awful", "neg")])
    assert make_plan(job).gate_overlap == 3
    assert make_plan(replace(job, gate=None)).gate_overlap == 0


class Notes(NullProgress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_an_overlap_is_told_before_the_work_starts(job, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgewise.quantize.pipeline._Run.execute", stop)
    for texts, expected in ((["great", "awful"], []), (["great", "good"], ["1 of 2 gate items occur in the tuning"])):
        write(job.gate, [(text, "pos") for text in texts])
        progress = Notes()
        with pytest.raises(KeyboardInterrupt):
            quantize(job, progress)
        assert [note[: len(text)] for note, text in zip(progress.notes, expected, strict=True)] == expected


def test_a_label_that_the_model_does_not_know_is_refused(job):
    write(job.gate, [("x", "neg"), ("y", "neutral")])
    with pytest.raises(DataError, match=r"Item 2 of .*gate\.jsonl has the label 'neutral'"):
        make_plan(job)


def test_the_inputs_digest_follows_whatever_shapes_the_result(job):
    digest = make_plan(job).inputs_digest
    assert make_plan(replace(job, out=job.out / "elsewhere", reuse=True)).inputs_digest == digest
    for change in ({"max_drop": 0.02}, {"prefer": "size"}, {"gate": None}, {"recipes": ("int8_dynamic",)}, {"seed": 1},
                   {"golden": "synthetic"}):  # fmt: skip
        assert make_plan(replace(job, **change)).inputs_digest != digest
    write(job.data, [("good", "pos"), ("bad", "neg"), ("fine", "neg")])
    changed = make_plan(job).inputs_digest
    assert changed != digest
    (job.checkpoint / "tokenizer.json").write_text("{ }")
    assert make_plan(job).inputs_digest not in (digest, changed)


@pytest.mark.parametrize("fact", ["isa", "numpy", "safetensors", "onnx-ir", "onnxscript", "code"])
def test_the_inputs_digest_follows_machine_libraries_and_our_own_code(job, monkeypatch, fact):
    digest = make_plan(job).inputs_digest
    if fact == "isa":
        other = msgspec.structs.replace(plan.probe(), isa="aarch64-sve")
        monkeypatch.setattr(plan, "probe", lambda: other)
    elif fact == "code":
        monkeypatch.setattr(plan, "code_digest", lambda: "0" * 64)
    else:
        tools = plan.tool_versions()
        assert fact in tools
        monkeypatch.setattr(plan, "tool_versions", lambda **_: tools | {fact: "999"})
    assert make_plan(job).inputs_digest != digest


def test_the_code_digest_follows_every_source_that_shapes_a_run(tmp_path):
    root = Path(plan.__file__).parents[1]
    for name in ("bundle", "edge", "quantize"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "router").mkdir()
    for name in (*plan._ROUTER, "contracts.py", "dataset.py", "files.py"):
        shutil.copyfile(root / name, tmp_path / name)
    assert plan.code_digest(tmp_path) == plan.code_digest()
    changed = {plan.code_digest()}
    for name in ("bundle/writer.py", "edge/image.py", "quantize/recipes/int8_dynamic.py", "router/signals.py"):
        with (tmp_path / name).open("a") as stream:
            stream.write("# changed\n")
        changed.add(plan.code_digest(tmp_path))
    assert len(changed) == 5


def test_an_existing_output_is_refused_and_kept(job):
    job.out.mkdir()
    (job.out / "mine.txt").write_text("keep")
    for attempt in (job, replace(job, reuse=True)):
        with pytest.raises(OutputExistsError):
            quantize(attempt)
    assert (job.out / "mine.txt").read_text() == "keep"
