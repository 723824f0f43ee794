"""What a job is refused for before any work starts, and when a finished run still stands."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgewise.errors import CheckpointError, ConfigError, DataError, OutputExistsError
from edgewise.quantize import QuantizeJob, quantize
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
        ({"threads": 0}, ConfigError, "0 threads"),
        ({"prefer": "cheap"}, ConfigError, "'cheap'"),
        ({"exporter": "keras"}, ConfigError, "'keras'"),
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


def test_a_label_that_the_model_does_not_know_is_refused(job):
    write(job.gate, [("x", "neg"), ("y", "neutral")])
    with pytest.raises(DataError, match=r"Item 2 of .*gate\.jsonl has the label 'neutral'"):
        make_plan(job)


def test_the_inputs_digest_follows_whatever_shapes_the_result(job):
    digest = make_plan(job).inputs_digest
    assert make_plan(replace(job, out=job.out / "elsewhere", reuse=True)).inputs_digest == digest
    for change in ({"max_drop": 0.02}, {"prefer": "size"}, {"gate": None}, {"recipes": ("int8_dynamic",)}, {"seed": 1}):
        assert make_plan(replace(job, **change)).inputs_digest != digest
    write(job.data, [("good", "pos"), ("bad", "neg"), ("fine", "neg")])
    changed = make_plan(job).inputs_digest
    assert changed != digest
    (job.checkpoint / "tokenizer.json").write_text("{ }")
    assert make_plan(job).inputs_digest not in (digest, changed)


def test_an_existing_output_is_refused_and_kept(job):
    job.out.mkdir()
    (job.out / "mine.txt").write_text("keep")
    for attempt in (job, replace(job, reuse=True)):
        with pytest.raises(OutputExistsError):
            quantize(attempt)
    assert (job.out / "mine.txt").read_text() == "keep"
