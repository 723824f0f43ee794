"""Packing: the same source gives the same bytes, and a source that cannot be used leaves nothing behind."""

from __future__ import annotations

import builtins
import math
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgewise.bundle.writer as writer
from edgewise.bundle import Bundle, GoldenItem, Target, TextSource, pack_bundle, read_facts
from edgewise.bundle.graph import external_locations
from edgewise.edge import EdgeModel
from edgewise.errors import DiskFullError, InputError, MissingExtraError, OutputExistsError


@pytest.fixture
def save(tmp_path):
    """Save a model under a name of its own; returns the path."""

    def write(model, name="model", **options):
        path = tmp_path / name / "model.onnx"
        path.parent.mkdir()
        onnx.save_model(model, path, **options)
        return path

    return write


def tree(path: Path) -> dict[str, bytes]:
    return {item.relative_to(path).as_posix(): item.read_bytes() for item in path.rglob("*") if item.is_file()}


def refused(source, out: Path, error=InputError, match=None):
    """The pack fails with `error`, and neither `out` nor anything beside it appears."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(error, match=match):
        pack_bundle(source, out)
    assert sorted(out.parent.rglob("*")) == before


def test_two_packs_are_the_same_bytes(tiny_models, save, tmp_path):
    path = save(tiny_models.text_model())
    digests = [pack_bundle(tiny_models.text_source(path), tmp_path / name) for name in "ab"]
    assert digests[0] == digests[1] == Bundle.open(tmp_path / "a").model_digest
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_what_only_describes_the_export_does_not_change_the_model(tiny_models, save, tmp_path):
    plain = save(tiny_models.text_model(), "plain")
    described = save(tiny_models.text_model(doc="exported by me from /home/me/checkpoint"), "described")
    digests = {
        pack_bundle(tiny_models.text_source(path), tmp_path / path.parent.name / "out") for path in (plain, described)
    }
    assert len(digests) == 1
    assert not any(b"/home/me" in content for content in tree(tmp_path / "described" / "out").values())


def test_external_data_is_taken_along_whatever_file_it_came_in(tiny_models, save, tmp_path):
    inside = save(tiny_models.text_model(), "inside")
    beside = save(
        tiny_models.text_model(), "beside", save_as_external_data=True, location="weights.bin", size_threshold=16
    )
    assert external_locations(beside.read_bytes()) == {"weights.bin"}
    digests = {pack_bundle(tiny_models.text_source(path), path.parent / "out") for path in (inside, beside)}
    assert len(digests) == 1


def test_weights_kept_as_typed_numbers_give_the_same_bundle(tiny_models, save):
    typed = tiny_models.text_model()
    table = typed.graph.initializer[0]
    table.ClearField("raw_data")
    table.float_data.extend(tiny_models.embedding().ravel().tolist())
    digests = {
        pack_bundle(tiny_models.text_source(path), path.parent / "out")
        for path in (save(tiny_models.text_model(), "raw"), save(typed, "typed"))
    }
    assert len(digests) == 1


def test_only_a_changed_weight_is_a_new_blob(tiny_models, save):
    def blobs(path):
        pack_bundle(tiny_models.text_source(path), path.parent / "out")
        return set(tree(path.parent / "out" / "blobs"))

    changed = tiny_models.text_model()
    head = next(tensor for tensor in changed.graph.initializer if tensor.name == "head.weight")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * 2, head.name))
    before, after = blobs(save(tiny_models.text_model(), "before")), blobs(save(changed, "after"))
    assert len(before - after) == 1, "the graph holds the small head; the large embedding stays the same blob"


def test_the_large_weight_is_a_blob_and_the_small_ones_stay_in_the_graph(tiny_text_bundle, tiny_models):
    bundle = Bundle.open(tiny_text_bundle)
    (weight,) = bundle.core.weights
    assert bundle.read(weight.blob) == tiny_models.embedding().tobytes()
    assert external_locations(bundle.graph_path.read_bytes()) == {weight.blob.hex}


@pytest.mark.parametrize("dtype", [TensorProto.INT4, TensorProto.UINT4, TensorProto.BFLOAT16, TensorProto.FLOAT16])
def test_narrow_weights_survive(tiny_models, save, dtype):
    """4-bit tables are what quantizing makes; they pack two values a byte."""
    table = onnx.helper.make_tensor("embedding.weight", dtype, [8192, 32], np.zeros((8192, 32), np.float32), raw=False)
    graph = tiny_models.text_model().graph
    cast = helper.make_node("Cast", ["narrow"], ["embedding.weight"], to=TensorProto.FLOAT)
    table.name = "narrow"
    model = helper.make_model(
        helper.make_graph([cast, *graph.node], "narrow", graph.input, graph.output, [table, *graph.initializer[1:]]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    path = save(model)
    pack_bundle(tiny_models.text_source(path, target=Target((), "1.20", 21)), path.parent / "out")
    bundle = Bundle.open(path.parent / "out")
    bits = 4 if dtype in (TensorProto.INT4, TensorProto.UINT4) else 16
    assert bundle.core.weights[0].blob.size == 8192 * 32 * bits // 8
    assert EdgeModel.from_bundle(bundle).predict(["wheat"])[0].logits.tolist() == [0.0, 0.0, 0.0]


def test_facts_of_a_graph(tiny_text_onnx):
    facts = read_facts(tiny_text_onnx)
    assert facts.opset == 17
    assert [(spec.name, spec.dtype, spec.shape) for spec in facts.inputs] == [
        ("input_ids", "int64", ("batch", "tokens")),
        ("attention_mask", "int64", ("batch", "tokens")),
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in facts.outputs] == [("logits", "float32", ("batch", 3))]


def test_taken_output_is_refused_before_any_work(tiny_models, tiny_text_onnx, tmp_path):
    (tmp_path / "out").mkdir()
    refused(tiny_models.text_source(tiny_text_onnx), tmp_path / "out", OutputExistsError, "exists already")


@pytest.mark.parametrize("content", [b"", b"not protobuf \xff\xff", b"\x3a\x05ab"])
def test_corrupt_onnx(tiny_models, tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    refused(tiny_models.text_source(tmp_path / "model.onnx"), tmp_path / "out", match="ONNX")


def test_truncated_onnx(tiny_models, tiny_text_onnx, tmp_path):
    (tmp_path / "model.onnx").write_bytes(tiny_text_onnx.read_bytes()[:-1000])
    refused(tiny_models.text_source(tmp_path / "model.onnx"), tmp_path / "out", match="not a readable ONNX model")


def test_missing_onnx_and_a_folder_in_its_place(tiny_models, tmp_path):
    refused(tiny_models.text_source(tmp_path / "none.onnx"), tmp_path / "out", match="no ONNX file")
    refused(tiny_models.text_source(tmp_path), tmp_path / "out", match="no ONNX file")
    with pytest.raises(InputError, match="not a readable ONNX model"):
        read_facts(tmp_path / "none.onnx")


def test_missing_external_data(tiny_models, save):
    path = save(tiny_models.text_model(), save_as_external_data=True, location="weights.bin", size_threshold=16)
    (path.parent / "weights.bin").unlink()
    refused(tiny_models.text_source(path), path.parent / "out", match="not a readable ONNX model")


def test_external_data_that_leaves_its_folder(tiny_models, save, tmp_path):
    (tmp_path / "secret").write_bytes(b"\0" * 640 * 32 * 4)
    path = save(tiny_models.text_model(), save_as_external_data=True, location="weights.bin", size_threshold=16)
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../../secret"[:11]))
    refused(tiny_models.text_source(path), path.parent / "out", match="not a readable ONNX model")


def test_graph_that_breaks_the_standard(tiny_models, save):
    model = tiny_models.text_model()
    model.graph.node[-1].input[0] = "nowhere"
    path = save(model)
    refused(tiny_models.text_source(path), path.parent / "out", match="nowhere")


def test_graph_without_a_node(tiny_models, save):
    model = tiny_models.text_model()
    passed_through = model.graph.input[0]
    empty = helper.make_graph([], "empty", [passed_through], [passed_through])
    path = save(helper.make_model(empty, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    refused(tiny_models.text_source(path), path.parent / "out", match="empty graph")


def test_input_that_is_not_a_tensor(tmp_path, tiny_models):
    model = tiny_models.text_model()
    sequence = helper.make_tensor_sequence_value_info("input_ids", TensorProto.INT64, None)
    model.graph.input[0].CopyFrom(sequence)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="'input_ids' is not a tensor"):
        read_facts(tmp_path / "model.onnx")


def test_model_that_names_no_opset(tmp_path, tiny_models):
    model = tiny_models.text_model()
    del model.opset_import[:]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"no ai\.onnx opset"):
        read_facts(tmp_path / "model.onnx")


def test_tensors_of_strings_stay_in_the_graph(tiny_models, save):
    model = tiny_models.text_model()
    model.graph.initializer.append(helper.make_tensor("names", TensorProto.STRING, [2], [b"a", b"b" * 100_000]))
    path = save(model)
    pack_bundle(tiny_models.text_source(path), path.parent / "out")
    assert [weight.name for weight in Bundle.open(path.parent / "out").core.weights] == ["embedding.weight"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weight", ["embedding.weight", "head.weight"])
def test_weight_that_is_not_a_number(tiny_models, save, weight, value):
    model = tiny_models.text_model()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    damaged = numpy_helper.to_array(tensor).copy()
    damaged[1, 1] = value
    tensor.CopyFrom(numpy_helper.from_array(damaged, weight))
    path = save(model)
    refused(tiny_models.text_source(path), path.parent / "out", match=f"'{weight}'.*NaN or infinity")


def test_single_infinity_is_how_masks_are_filled_and_passes(tiny_models, save):
    model = tiny_models.text_model()
    model.graph.initializer.append(numpy_helper.from_array(np.array(-np.inf, dtype=np.float32), "fill"))
    path = save(model)
    pack_bundle(tiny_models.text_source(path), path.parent / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("a", "b")}, "3 logits for 2 labels"),
        ({"labels": ("a", "b", "b")}, "'b' occurs twice"),
        ({"name": "../escape"}, "name"),
        ({"name": "x\n"}, "name"),
        ({"task": "token-classification"}, r"a tagger gives \['batch', 'tokens', 'classes'\]"),
        ({"task": "feature-extraction"}, "embedder has no labels"),
        ({"task": "summarization"}, "task"),
        ({"task": "image-classification"}, "does not go with"),
        ({"target": Target((), "1.20", 9)}, "opset 9"),
        ({"target": Target((), "new", 17)}, "min_onnxruntime"),
        ({"preprocessing": TextSource(b"{}", 16)}, "tokenizer"),
        ({"preprocessing": TextSource(b"\xff", 16)}, "tokenizer"),
        ({"golden": (GoldenItem("a", "grain", math.nan, (1.0, 0.0, 0.0)),)}, "NaN"),
        ({"golden": (GoldenItem("a", "other", 0.5, (1.0, 0.0, 0.0)),)}, "'other'"),
        ({"golden": (GoldenItem("a", "grain", 0.5, (1.0,)),)}, "1 logits"),
    ],
)
def test_source_that_contradicts_itself(tiny_models, tiny_text_onnx, tmp_path, changes, message):
    refused(tiny_models.text_source(tiny_text_onnx, **changes), tmp_path / "out", match=message)


def test_zero_length_is_refused(tiny_models, tiny_text_onnx, tmp_path):
    source = tiny_models.text_source(tiny_text_onnx, preprocessing=TextSource(tiny_models.tokenizer_json(), 0))
    refused(source, tmp_path / "out", match="max_length")


@pytest.mark.parametrize("survives", range(5))
def test_failing_disk_leaves_nothing(tiny_models, tiny_text_onnx, tmp_path, monkeypatch, survives):
    """The disk fills up after `survives` files."""
    written = []
    real = Path.write_bytes

    def write(path, data):
        if len(written) == survives:
            real(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        written.append(path)
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    refused(tiny_models.text_source(tiny_text_onnx), tmp_path / "out", DiskFullError, "No space left")
    assert len(written) == survives


def test_interrupt_leaves_nothing(tiny_models, tiny_text_onnx, tmp_path, monkeypatch):
    def interrupted(core):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "encode_manifest", interrupted)
    refused(tiny_models.text_source(tiny_text_onnx), tmp_path / "out", KeyboardInterrupt)


def test_without_the_extra_the_error_names_the_command(tiny_models, tiny_text_onnx, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_onnx(name, *args, **kwargs):
        if name.split(".")[0] == "onnx":
            raise ImportError("No module named 'onnx'")
        return real(name, *args, **kwargs)

    source = tiny_models.text_source(tiny_text_onnx)
    monkeypatch.setattr(builtins, "__import__", without_onnx)
    refused(source, tmp_path / "out", MissingExtraError, r"pip install 'edgewise\[quantize\]'")


def test_source_is_a_frozen_value(tiny_models, tiny_text_onnx):
    source = tiny_models.text_source(tiny_text_onnx)
    assert msgspec.structs.replace(source, name="other").name == "other"
    with pytest.raises(AttributeError):
        source.name = "other"
