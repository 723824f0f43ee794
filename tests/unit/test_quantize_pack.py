"""An ONNX file of one's own becomes a bundle, without torch."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgewise.bundle import Bundle
from edgewise.edge import EdgeModel
from edgewise.edge.pooling import DEFAULT
from edgewise.errors import InputError, OutputExistsError
from edgewise.quantize import pack_onnx
from edgewise.quantize.onnx_source import inspect_onnx, read_labels


@pytest.fixture
def tokenizer(tmp_path, tiny_models):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tiny_models.tokenizer_json())
    return path


@pytest.fixture
def image_onnx(tmp_path):
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    made = helper.make_model(
        helper.make_graph(nodes, "g", [given], [logits]), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 8
    onnx.save(made, tmp_path / "colours.onnx")
    return tmp_path / "colours.onnx"


PROCESSOR = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}


def test_a_text_model_is_packed_with_golden_items_and_answers(tmp_path, tiny_text_onnx, tokenizer, tiny_models):
    out = tmp_path / "bundle"
    digest = pack_onnx(tiny_text_onnx, out, labels=tiny_models.LABELS, tokenizer=tokenizer, name="news", max_length=32)
    bundle = Bundle.open(out)
    assert (bundle.model_digest, bundle.core.name, bundle.core.recipe.name) == (digest, "news", "none")
    assert bundle.core.preprocessing.max_length == 32
    model = EdgeModel.load(out)
    model.check_golden()
    assert [answer.output for answer in model.predict(tiny_models.TEXTS)] == list(tiny_models.LABELS)
    assert (
        pack_onnx(
            tiny_text_onnx,
            tmp_path / "again",
            labels=tiny_models.LABELS,
            tokenizer=tokenizer.parent,
            name="news",
            max_length=32,
        )
        == digest
    )


def test_an_image_model_is_packed(tmp_path, image_onnx):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    pack_onnx(image_onnx, tmp_path / "bundle", labels=tmp_path / "labels.txt", preprocessor=tmp_path)
    model = EdgeModel.load(tmp_path / "bundle")
    model.check_golden()
    assert model.labels == ("red", "green", "blue")
    assert model.bundle.core.preprocessing.channels == 3


def test_the_models_own_config_names_the_family_and_the_size(tmp_path, image_onnx):
    # Without a class of its own, the file means what the family's processor does.
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "do_resize": False}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer", "image_size": 8}))
    pack_onnx(image_onnx, tmp_path / "bundle", labels=["r", "g", "b"], preprocessor=tmp_path)
    preprocessing = Bundle.open(tmp_path / "bundle").core.preprocessing
    assert (preprocessing.height, preprocessing.width) == (8, 8)
    assert preprocessing.std == pytest.approx((0.229, 0.224, 0.225)), "Segformer's own, not ViT's"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xyzzy"}))
    refused("'xyzzy'", image_onnx, tmp_path / "again", labels=["r", "g", "b"], preprocessor=tmp_path)


def test_the_size_that_a_graph_declares_is_that_of_pictures_left_as_they_are(tmp_path, image_onnx):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"do_resize": False, "size": 99}))
    pack_onnx(image_onnx, tmp_path / "bundle", labels=["r", "g", "b"], preprocessor=tmp_path)
    preprocessing = Bundle.open(tmp_path / "bundle").core.preprocessing
    assert (preprocessing.height, preprocessing.width) == (8, 8)


@pytest.mark.parametrize(
    "text",
    [
        "a\nb\n\nc\n",
        '["a", "b", "c"]',
        '{"1": "b", "0": "a", "2": "c"}',
        '{"id2label": {"0": "a", "1": "b", "2": "c"}}',
    ],
)
def test_labels_come_in_several_forms(tmp_path, text):
    (tmp_path / "labels").write_text(text)
    assert read_labels(tmp_path / "labels") == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["", "\n \n", '["a"', '{"a": "b"}'])
def test_a_file_without_labels_is_refused(tmp_path, text):
    (tmp_path / "labels").write_text(text)
    with pytest.raises(InputError):
        read_labels(tmp_path / "labels")


def refused(match, onnx_path, tmp_path, **options):
    with pytest.raises(InputError, match=match) as caught:
        pack_onnx(onnx_path, tmp_path / "bundle", **options)
    assert caught.value.remedy
    assert not (tmp_path / "bundle").exists()


def test_labels_must_be_as_many_as_logits(tmp_path, tiny_text_onnx, tokenizer):
    refused(r"2 labels need \[batch, 2\]", tiny_text_onnx, tmp_path, labels=["a", "b"], tokenizer=tokenizer)


def test_preprocessing_must_be_given(tmp_path, tiny_text_onnx, image_onnx):
    refused("no tokenizer is given", tiny_text_onnx, tmp_path, labels=["a", "b", "c"])
    refused("no preprocessing is given", image_onnx, tmp_path, labels=["a", "b", "c"])


def test_unknown_inputs_are_named_with_the_known_ones(tmp_path, tiny_text_onnx, tokenizer):
    model = onnx.load(tiny_text_onnx)
    for node in model.graph.node:
        node.input[:] = ["tokens" if name == "input_ids" else name for name in node.input]
    next(value for value in model.graph.input if value.name == "input_ids").name = "tokens"
    onnx.save(model, tmp_path / "odd.onnx")
    refused("takes .*tokens", tmp_path / "odd.onnx", tmp_path, labels=["a", "b", "c"], tokenizer=tokenizer)


def test_what_is_no_onnx_file_is_refused(tmp_path, tokenizer):
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    refused("not a readable ONNX model", tmp_path / "x.onnx", tmp_path, labels=["a", "b"], tokenizer=tokenizer)


def test_an_output_that_exists_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OutputExistsError):
        pack_onnx(tmp_path / "nowhere.onnx", tmp_path / "bundle", labels=["a", "b"])


def test_a_file_that_is_cut_short_is_refused_before_anything_is_written(tmp_path, tiny_text_onnx, tokenizer):
    whole = tiny_text_onnx.read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    labels = ["a", "b", "c"]
    refused("not a readable ONNX model", tmp_path / "half.onnx", tmp_path, labels=labels, tokenizer=tokenizer)


def test_a_tagger_is_packed_and_an_encoder_too(tmp_path, tiny_models, tokenizer):
    onnx.save(tiny_models.tagger_model(), tmp_path / "tagger.onnx")
    pack_onnx(tmp_path / "tagger.onnx", tmp_path / "tagger", labels=tiny_models.TAGS, tokenizer=tokenizer)
    tagger = EdgeModel.load(tmp_path / "tagger")
    tagger.check_golden()
    assert tagger.task == "token-classification"
    onnx.save(tiny_models.embedder_model(), tmp_path / "encoder.onnx")
    pack_onnx(tmp_path / "encoder.onnx", tmp_path / "encoder", tokenizer=tokenizer)
    encoder = EdgeModel.load(tmp_path / "encoder")
    encoder.check_golden()
    assert len(encoder.bundle.golden()) == 4
    np.testing.assert_allclose(
        encoder.predict_one("wheat port").output, tiny_models.expected_embedding("wheat port"), rtol=1e-5, atol=1e-7
    )


def token_vectors(tiny_models, path, *, pooled=False):
    """An encoder that gives a vector a token, and beside it the mean that sentence-transformers exports, if asked."""
    model = tiny_models.text_model(with_embedding=True)
    outputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", "tokens", tiny_models.WIDTH])]
    outputs += [value for value in model.graph.output if pooled and value.name == "sentence_embedding"]
    kept = [type(value).FromString(value.SerializeToString()) for value in outputs]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_vectors_of_tokens_are_pooled_and_the_weights_beside_the_graph_come_along(tmp_path, tiny_models, tokenizer):
    (tmp_path / "in").mkdir()
    source = token_vectors(tiny_models, tmp_path / "in" / "encoder.onnx")
    found = inspect_onnx(source, tokenizer=tokenizer)
    assert (found.pooling, found.labels, found.name) == (DEFAULT, (), "encoder")
    assert [file.name for file in found.weights] == ["encoder.onnx", "weights.bin"]
    assert found.size_bytes == sum(file.stat().st_size for file in found.weights)
    pack_onnx(source, tmp_path / "bundle", tokenizer=tokenizer)
    expected = tiny_models.expected_embedding("wheat port")
    output = EdgeModel.load(tmp_path / "bundle").predict_one("wheat port").output
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-7)
    (tmp_path / "in" / "weights.bin").unlink()
    refused("lacks its weights weights.bin", source, tmp_path / "again", tokenizer=tokenizer)


def test_an_embedding_beside_the_vectors_is_taken_as_it_is(tmp_path, tiny_models, tokenizer):
    source = token_vectors(tiny_models, tmp_path / "encoder.onnx", pooled=True)
    assert inspect_onnx(source, tokenizer=tokenizer).pooling is None
    pack_onnx(source, tmp_path / "bundle", tokenizer=tokenizer)
    model = EdgeModel.load(tmp_path / "bundle")
    assert [spec.name for spec in model.bundle.core.outputs] == ["sentence_embedding"]
    np.testing.assert_allclose(model.predict_one("wheat").output, tiny_models.embedding()[2], rtol=1e-5)


def test_weights_outside_the_folder_are_not_followed(tmp_path, tiny_models, tokenizer):
    (tmp_path / "in").mkdir()
    source = token_vectors(tiny_models, tmp_path / "in" / "encoder.onnx")
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../weights.bin"
    source.write_bytes(model.SerializeToString())
    (tmp_path / "in" / "weights.bin").rename(tmp_path / "weights.bin")
    with pytest.raises(InputError, match="outside its folder"):
        inspect_onnx(source, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": "token-classification", "labels": ["a", "b", "c"]}, "does text-classification, not token"),
        ({"task": "summarization", "labels": ["a", "b", "c"]}, "'summarization' is not supported"),
        ({"labels": ["a", "b", "c"], "max_length": 0}, "leaves nothing"),
    ],
)
def test_what_does_not_go_with_a_graph_is_refused(tiny_text_onnx, tokenizer, options, match):
    with pytest.raises(InputError, match=match) as caught:
        inspect_onnx(tiny_text_onnx, tokenizer=tokenizer, **options)
    assert caught.value.remedy


def test_the_identity_of_a_file_is_all_that_was_given_with_it(tmp_path, tiny_text_onnx, tokenizer):
    def digest(**changes):
        return inspect_onnx(tiny_text_onnx, **{"labels": ["a", "b", "c"], "tokenizer": tokenizer, **changes}).digest()

    first = digest()
    assert digest() == first
    assert digest(labels=["a", "c", "b"]) != first
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    assert digest() != first


def test_an_onnx_file_is_packed_without_torch(tmp_path, tiny_text_onnx, tokenizer):
    """Importing loads not even onnx; packing loads that and no more."""
    code = f"""
import sys
from pathlib import Path
from edgewise.quantize import pack_onnx
heavy = {{"torch", "transformers", "optimum"}}
assert not ({{"onnx"}} | heavy) & set(sys.modules), "at import"
pack_onnx(Path({str(tiny_text_onnx)!r}), Path({str(tmp_path / "out")!r}), labels=["a", "b", "c"],
          tokenizer=Path({str(tokenizer)!r}))
assert not heavy & set(sys.modules), "when packing"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
