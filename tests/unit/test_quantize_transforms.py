"""Transforms on graphs made by hand: what they promise is read off the graph and the tokenizer they write."""

import json
import re

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgewise.errors import DataError
from edgewise.quantize.build import BuildJob, build_here
from edgewise.quantize.calibration import read_feeds, write_feeds
from edgewise.quantize.items import Item
from edgewise.quantize.recipes import RECIPES, Aids, parse_choices
from edgewise.quantize.transforms import TRANSFORMS, vocabulary

TEXTS = [
    "wheat harvest rose",
    "vessel in port strike",
    "tariff deficit fell",
    "wheat export rose",
    "corn crop fell",
] * 4


def run(path, feeds, names=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(names, feeds)


def build(folder, source, text, aids=None):
    (choice,) = parse_choices(RECIPES, [text])
    out = folder / "out.onnx"
    job = BuildJob(
        choice.recipe.name, choice.plain_options(), str(source), str(out), 0, aids or Aids(), choice.transforms
    )
    return out, build_here(job)


@pytest.fixture
def text_aids(tmp_path, tiny_models):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(tiny_models.tokenizer_json())
    items = tmp_path / "items.json"
    items.write_bytes(msgspec.json.encode([Item(text=text) for text in TEXTS]))
    feeds = [encode(tokenizer, text) for text in TEXTS[:5]]
    write_feeds(feeds, tmp_path / "feeds.npz")
    return Aids(calibration=str(tmp_path / "feeds.npz"), tokenizer=str(tokenizer), items=str(items))


def encode(tokenizer, text):
    from tokenizers import Tokenizer

    ids = np.array([Tokenizer.from_file(str(tokenizer)).encode(text).ids])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


# margin


@pytest.mark.parametrize("recipe", ["fp32", "int4_matmul"])
def test_the_margin_is_the_difference_of_the_two_largest_shares(tmp_path, tiny_models, tiny_text_onnx, recipe):
    out, outcome = build(tmp_path, tiny_text_onnx, f"margin+{recipe}")
    feeds = {"input_ids": np.array([[2, 3, 14], [7, 9, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
    logits, margin = run(out, feeds, ["logits", "margin"])
    assert margin.shape == (2,)
    assert margin.dtype == np.float32
    np.testing.assert_allclose(margin, tiny_models.margin(logits), atol=1e-6)
    assert outcome.facts[-1] == "the graph gives logits, margin"


def test_a_graph_that_has_no_logits_has_no_margin(tmp_path, tiny_models):
    model = tiny_models.text_model()
    model.graph.output[0].name = "answer"
    model.graph.node[-1].output[0] = "answer"
    onnx.save(model, tmp_path / "in.onnx")
    out, outcome = build(tmp_path, tmp_path / "in.onnx", "margin+fp32")
    assert "no logits" in outcome.inapplicable
    assert not out.exists()
    assert not list(tmp_path.glob("out.*"))


# embedding


@pytest.mark.parametrize("recipe", ["fp32", "int8_dynamic", "fp16"])
def test_what_the_last_layer_reads_becomes_the_prediction_s_embedding(tmp_path, tiny_models, tiny_text_onnx, recipe):
    out, outcome = build(tmp_path, tiny_text_onnx, f"embedding+{recipe}")
    assert outcome.facts[0] == "the graph gives an embedding of 32 numbers"
    packed = tmp_path / "bundle"
    tiny_models.pack_bundle(tiny_models.text_source(out), packed)
    text = tiny_models.TEXTS[0]
    (prediction,) = tiny_models.EdgeModel.load(packed).predict([text])
    assert prediction.embedding.dtype == np.float32
    direction = prediction.embedding / np.linalg.norm(prediction.embedding)
    np.testing.assert_allclose(direction, tiny_models.expected_embedding(text), atol=0.02)
    np.testing.assert_allclose(prediction.logits, tiny_models.expected_logits(text), atol=0.1)


def test_the_embedding_is_found_behind_a_bias_under_any_name(tmp_path, tiny_models):
    onnx.save(tiny_models.image_model(), tmp_path / "in.onnx")
    out, _ = build(tmp_path, tmp_path / "in.onnx", "margin+embedding+fp32")
    pixels = np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32)
    embedding, margin = run(out, {"pixel_values": pixels}, ["sentence_embedding", "margin"])
    np.testing.assert_array_equal(embedding, pixels.reshape(2, 64))
    assert margin.shape == (2,)


def other_end(model):
    model.graph.node.append(helper.make_node("Tanh", ["score"], ["logits"]))
    model.graph.node[-2].output[0] = "score"
    return model


def name_taken(model):
    model.graph.node.append(helper.make_node("Identity", ["total"], ["sentence_embedding"]))
    for node in model.graph.node[:-1]:
        for names in (node.input, node.output):
            names[:] = ["features" if name == "sentence_embedding" else name for name in names]
    return model


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda models: models.tagger_model(), r"\(batch, classes\), these have 3 axes"),
        (lambda models: models.embedder_model(), "gives no logits"),
        (lambda models: models.text_model(with_embedding=True), "already"),
        (lambda models: other_end(models.text_model()), "come from Tanh"),
        (lambda models: name_taken(models.text_model()), "another tensor"),
    ],
)
def test_a_graph_without_such_a_layer_keeps_its_outputs(tmp_path, tiny_models, made, told):
    onnx.save(made(tiny_models), tmp_path / "in.onnx")
    _, outcome = build(tmp_path, tmp_path / "in.onnx", "embedding+fp32")
    assert re.search(told, outcome.inapplicable)
    assert not list(tmp_path.glob("out.*"))


# trim


def test_trimming_keeps_the_answers_of_texts_whose_pieces_it_keeps(tmp_path, tiny_text_onnx, text_aids):
    out, outcome = build(tmp_path, tiny_text_onnx, "trim+fp32", text_aids)
    for text in TEXTS[:5]:
        np.testing.assert_allclose(
            run(out, encode(outcome.tokenizer, text), ["logits"])[0],
            run(tiny_text_onnx, encode(text_aids.tokenizer, text), ["logits"])[0],
            atol=1e-6,
        )
    rows = next(tensor.dims[0] for tensor in onnx.load(out).graph.initializer if tensor.name == "embedding.weight")
    # 12 of the 18 words, and [UNK]; the table's other 620 rows had no word.
    assert rows == len({word for text in TEXTS for word in text.split()} - {"in"}) + 1
    assert outcome.facts[0] == f"{rows} of 640 pieces of the vocabulary kept"
    assert 0 <= outcome.max_unknown_share <= 1


def test_what_is_dropped_becomes_the_unknown_token(tmp_path, tiny_text_onnx, text_aids):
    _, outcome = build(tmp_path, tiny_text_onnx, "trim+fp32", text_aids)
    new = json.loads((tmp_path / "out.trim.tokenizer.json").read_text())["model"]
    assert outcome.tokenizer == str(tmp_path / "out.trim.tokenizer.json")
    assert encode(outcome.tokenizer, "quota zebra")["input_ids"].tolist() == [[new["vocab"]["[UNK]"]] * 2]


def test_calibration_data_follows_the_new_ids(tmp_path, tiny_text_onnx, text_aids):
    kind = TRANSFORMS["trim"]
    changed = kind.apply(tiny_text_onnx, tmp_path / "out.onnx", aids=text_aids)
    for text, feed in zip(TEXTS, read_feeds(changed.aids.calibration), strict=False):
        assert feed["input_ids"].tolist() == encode(changed.outcome.tokenizer, text)["input_ids"].tolist()


def test_a_graph_that_computes_with_ids_keeps_its_vocabulary(tmp_path, tiny_models, text_aids):
    model = tiny_models.text_model()
    model.graph.node.insert(0, helper.make_node("Equal", ["input_ids", "pad"], ["is_pad"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "pad"))
    onnx.save(model, tmp_path / "in.onnx")
    _, outcome = build(tmp_path, tmp_path / "in.onnx", "trim+fp32", text_aids)
    assert "computes with token ids (Equal)" in outcome.inapplicable


def test_a_tokenizer_that_merges_by_id_keeps_its_vocabulary():
    assert "'BPE'" in vocabulary.why_not({"model": {"type": "BPE", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}})
    assert "no token for unknown" in vocabulary.why_not({"model": {"type": "WordPiece", "vocab": {"a": 0}}})


def word_piece():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "gra", "##in", "##ed", "g", "##r", "##a", "ship", "##s", "corn"]
    tokenizer = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@given(st.lists(st.sampled_from(["grain", "grained", "ship", "ships", "corn", "zebra"]), min_size=1, max_size=4))
def test_a_cut_word_piece_spells_as_before_and_says_unknown_for_the_rest(words):
    from tokenizers import Tokenizer

    whole = word_piece()
    data = json.loads(whole.to_str())
    usage = vocabulary.use_of(whole.to_str().encode(), ["ships corn", "corn"])
    numbers = vocabulary.renumber(vocabulary.always_kept(data) | usage.pieces)
    cut = Tokenizer.from_buffer(vocabulary.cut(data, numbers))
    text = " ".join(words)
    assert cut.encode(text).ids == [numbers.get(old, numbers[1]) for old in whole.encode(text).ids]


def test_held_out_texts_show_unknown_tokens():
    whole = word_piece()
    data = json.loads(whole.to_str())
    usage = vocabulary.use_of(whole.to_str().encode(), ["corn", "ship", "corn zebra", "corn"])
    assert vocabulary.unknown_shares(data, usage, folds=4) == [(0, 1), (1, 1), (1, 2), (0, 1)]


# fuse


def gelu_model(path):
    """MatMul, bias, exact GELU, MatMul: what BiasGelu fuses."""
    weights = {
        "first": np.random.default_rng(0).normal(0, 0.3, (64, 64)),
        "bias": np.random.default_rng(1).normal(0, 0.3, 64),
        "second": np.random.default_rng(2).normal(0, 0.3, (64, 64)),
        "root": np.sqrt(2),
        "one": 1.0,
        "half": 0.5,
    }
    nodes = [
        helper.make_node("MatMul", ["features", "first"], ["product"], "m1"),
        helper.make_node("Add", ["bias", "product"], ["x"], "a1"),
        helper.make_node("Div", ["x", "root"], ["scaled"], "d1"),
        helper.make_node("Erf", ["scaled"], ["erf"], "e1"),
        helper.make_node("Add", ["erf", "one"], ["shifted"], "a2"),
        helper.make_node("Mul", ["x", "shifted"], ["twice"], "u1"),
        helper.make_node("Mul", ["twice", "half"], ["gelu"], "u2"),
        helper.make_node("MatMul", ["gelu", "second"], ["logits"], "m2"),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    sizes = ["batch", "length", 64]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)],
        tensors,
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    feeds = [{"features": np.random.default_rng(at).normal(size=(1, 3, 64)).astype(np.float32)} for at in range(4)]
    write_feeds(feeds, path.with_suffix(".npz"))
    return feeds[0], Aids(calibration=str(path.with_suffix(".npz")))


@pytest.mark.parametrize("recipe", ["fp32", "int8_dynamic", "int4_matmul", "fp16", "int8_static"])
def test_a_fused_graph_quantizes_and_answers_alike(tmp_path, recipe):
    feed, aids = gelu_model(tmp_path / "in.onnx")
    out, outcome = build(tmp_path, tmp_path / "in.onnx", f"fuse+{recipe}", aids)
    assert outcome.facts[0].startswith("fused into 1 BiasGelu")
    assert "BiasGelu" in {node.op_type for node in onnx.load(out).graph.node}
    assert outcome.skipped == ()
    exact, found = run(tmp_path / "in.onnx", feed)[0].ravel(), run(out, feed)[0].ravel()
    assert exact @ found / np.linalg.norm(exact) / np.linalg.norm(found) > 0.98


def test_nothing_to_fuse_is_no_candidate(tmp_path, tiny_text_onnx, text_aids):
    out, outcome = build(tmp_path, tiny_text_onnx, "fuse+fp32", text_aids)
    assert outcome.inapplicable == "the graph has nothing to fuse"
    assert not out.exists()


def test_fusing_without_data_to_compare_on_is_refused(tmp_path):
    gelu_model(tmp_path / "in.onnx")
    with pytest.raises(DataError, match="calibration data"):
        build(tmp_path, tmp_path / "in.onnx", "fuse+fp32")
    assert not list(tmp_path.glob("out.*"))


def test_transforms_go_together_in_one_order(tmp_path, tiny_text_onnx, text_aids):
    out, outcome = build(tmp_path, tiny_text_onnx, "margin+trim+fp32", text_aids)
    assert outcome.facts[0].endswith("pieces of the vocabulary kept")
    assert outcome.facts[-1] == "the graph gives logits, margin"
    assert outcome.tokenizer
    assert [value.name for value in onnx.load(out).graph.output] == ["logits", "margin"]
