"""Tiny ONNX models whose answers can be computed by hand, for every test that needs a real one.

Reached through the fixtures of tests/conftest.py: under pytest's importlib mode a test cannot import its neighbours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgewise.bundle import (
    BundleSource,
    ImagePreprocessing,
    Recipe,
    Target,
    TextSource,
    pack_bundle,
)
from edgewise.edge import EdgeModel, golden_items, probe

OPSET = 17
LABELS = ("grain", "ship", "trade")
WORDS = {
    "grain": ("wheat", "corn", "harvest", "crop"),
    "ship": ("vessel", "port", "cargo", "strike"),
    "trade": ("tariff", "deficit", "export", "quota"),
}
NEUTRAL = ("the", "a", "of", "rose", "fell", "today")
TEXTS = ("wheat harvest rose", "vessel in port strike", "tariff deficit fell today")
WIDTH = 32
ROWS = 640  # 640 * 32 * 4 bytes = 80 KiB: large enough to become a blob of its own
IMAGE_LABELS = ("dark", "bright")
TAGS = ("O", "B-GRAIN", "I-GRAIN", "SHIP")
TAGGED = ("wheat tariff fell", "the vessel port rose", "corn crop export of cargo")


def vocabulary() -> dict[str, int]:
    """Ids of all words: [PAD] 0, [UNK] 1, then the words of each label, then the neutral ones."""
    words = ["[PAD]", "[UNK]", *(word for label in LABELS for word in WORDS[label]), *NEUTRAL]
    return {word: number for number, word in enumerate(words)}


def tokenizer_json() -> bytes:
    """A real tokenizer: lower case, split at white space, one id a word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


def embedding() -> np.ndarray:
    """Shape (ROWS, WIDTH): a word of label i has 1 in column i, plus a little fixed noise; [PAD] is zero."""
    table = np.random.default_rng(0).normal(0, 0.05, (ROWS, WIDTH)).astype(np.float32)
    for i, label in enumerate(LABELS):
        for word in WORDS[label]:
            table[vocabulary()[word], i] += 1.0
    table[0] = 0.0
    return table


def expected_logits(text: str) -> np.ndarray:
    """What the tiny text model answers, by numpy: the mean of the word vectors, times 4 on the label columns."""
    ids = [vocabulary().get(word, 1) for word in text.lower().split()]
    return embedding()[ids].mean(axis=0)[: len(LABELS)] * 4.0


def expected_tags(text: str) -> np.ndarray:
    """What the tiny tagger answers, by numpy, shape (words, 4)."""
    ids = [vocabulary().get(word, 1) for word in text.lower().split()]
    return embedding()[ids] @ _tag_head() + np.array([2.0, 0.0, 0.0, 0.0], dtype=np.float32)


def expected_embedding(text: str) -> np.ndarray:
    """What the tiny embedder answers, by numpy: the mean of the word vectors at length 1."""
    ids = [vocabulary().get(word, 1) for word in text.lower().split()]
    mean = embedding()[ids].mean(axis=0)
    return mean / np.linalg.norm(mean)


def _tag_head() -> np.ndarray:
    """Words of grain open a GRAIN, words of trade go on with it, words of ship are a SHIP; others are outside."""
    head = np.zeros((WIDTH, len(TAGS)), dtype=np.float32)
    for column, tag in enumerate(("B-GRAIN", "SHIP", "I-GRAIN")):
        head[column, TAGS.index(tag)] = 4.0
    return head


def text_model(
    *,
    ids_type: int = TensorProto.INT64,
    with_embedding: bool = False,
    with_margin: bool = False,
    doc: str = "",
) -> onnx.ModelProto:
    """Gather, masked mean, MatMul: inputs input_ids and attention_mask, output logits (batch, 3)."""
    weight = np.zeros((WIDTH, len(LABELS)), dtype=np.float32)
    weight[: len(LABELS)] = np.eye(len(LABELS), dtype=np.float32) * 4.0
    initializers = [
        numpy_helper.from_array(embedding(), "embedding.weight"),
        numpy_helper.from_array(weight, "head.weight"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens_axis"),
    ]
    nodes = [
        helper.make_node("Gather", ["embedding.weight", "input_ids"], ["vectors"], doc_string=doc),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["vectors", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens_axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "tokens_axis"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["sentence_embedding"]),
        helper.make_node("MatMul", ["sentence_embedding", "head.weight"], ["logits"]),
    ]
    inputs = _token_inputs(ids_type)
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])]
    if with_embedding:
        outputs.append(helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", WIDTH]))
    if with_margin:
        initializers += [numpy_helper.from_array(np.array(value, dtype=np.int64), f"m{value}") for value in ([2], [1])]
        nodes += [
            helper.make_node("Softmax", ["logits"], ["shares"]),
            helper.make_node("TopK", ["shares", "m[2]"], ["top", "places"]),
            helper.make_node("Split", ["top"], ["first", "second"], axis=1),
            helper.make_node("Sub", ["first", "second"], ["gap"]),
            helper.make_node("Squeeze", ["gap", "m[1]"], ["margin"]),
        ]
        outputs.append(helper.make_tensor_value_info("margin", TensorProto.FLOAT, ["batch"]))
    graph = helper.make_graph(nodes, "tiny_text", inputs, outputs, initializers, doc_string=doc)
    return _model(graph, doc)


def tagger_model() -> onnx.ModelProto:
    """Gather, MatMul, Add: inputs input_ids and attention_mask, output logits (batch, tokens, 4)."""
    initializers = [
        numpy_helper.from_array(embedding(), "embedding.weight"),
        numpy_helper.from_array(_tag_head(), "head.weight"),
        numpy_helper.from_array(np.array([2.0, 0.0, 0.0, 0.0], dtype=np.float32), "head.bias"),
    ]
    nodes = [
        helper.make_node("Gather", ["embedding.weight", "input_ids"], ["vectors"]),
        helper.make_node("MatMul", ["vectors", "head.weight"], ["product"]),
        helper.make_node("Add", ["product", "head.bias"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", len(TAGS)])]
    return _model(helper.make_graph(nodes, "tiny_tagger", _token_inputs(), outputs, initializers), "")


def embedder_model() -> onnx.ModelProto:
    """The tiny text model's masked mean at length 1: output embedding (batch, 32)."""
    model = text_model()
    del model.graph.node[-1], model.graph.output[:]
    model.graph.node.append(helper.make_node("LpNormalization", ["sentence_embedding"], ["embedding"], axis=1, p=2))
    model.graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH]))
    return _model(model.graph, "")


def _token_inputs(ids_type: int = TensorProto.INT64) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, ids_type, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")
    ]


def image_model(*, size: int = 8, channels: int = 1) -> onnx.ModelProto:
    """Flatten and MatMul: "bright" gets 4 times the mean pixel, "dark" 4 times one minus it."""
    pixels = size * size * channels
    weight = np.full((pixels, 2), 4.0 / pixels, dtype=np.float32) * np.array([-1.0, 1.0], dtype=np.float32)
    initializers = [
        numpy_helper.from_array(weight, "head.weight"),
        numpy_helper.from_array(np.array([4.0, 0.0], dtype=np.float32), "head.bias"),
    ]
    nodes = [
        helper.make_node("Flatten", ["pixel_values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head.weight"], ["product"]),
        helper.make_node("Add", ["product", "head.bias"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", channels, size, size])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    return _model(helper.make_graph(nodes, "tiny_image", inputs, outputs, initializers), "")


def text_source(onnx_path: Path, **changes: object) -> BundleSource:
    """What the tiny text bundle is packed from; keyword arguments replace its fields."""
    fields: dict[str, object] = {
        "name": "tiny-text",
        "task": "text-classification",
        "onnx_path": onnx_path,
        "preprocessing": TextSource(tokenizer_json(), max_length=16),
        "labels": LABELS,
        "recipe": Recipe("none", {"note": "by hand"}, 0, {"onnx": onnx.__version__}),
        "target": Target((probe().isa,), "1.20", OPSET),
        "licences": ("Apache-2.0",),
    }
    return BundleSource(**{**fields, **changes})


def image_source(onnx_path: Path, *, size: int = 8, channels: int = 1, **changes: object) -> BundleSource:
    """What the tiny image bundle is packed from; keyword arguments replace its fields."""
    fields: dict[str, object] = {
        "name": "tiny-image",
        "task": "image-classification",
        "onnx_path": onnx_path,
        "preprocessing": ImagePreprocessing(
            height=size, width=size, channels=channels, rescale=1 / 255, mean=(0.0,) * channels, std=(1.0,) * channels
        ),
        "labels": IMAGE_LABELS,
        "recipe": Recipe("none"),
        "target": Target((probe().isa,), "1.20", OPSET),
    }
    return BundleSource(**{**fields, **changes})


def margin(logits: np.ndarray) -> np.ndarray:
    """Softmax top 1 minus top 2, as router.signals has it; here so that these models need no other room."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    top = np.sort(shares / shares.sum(axis=1, keepdims=True), axis=1)
    return top[:, -1] - top[:, -2]


def pack_text(folder: Path, **changes: object) -> Path:
    """Pack the tiny text model with golden items; returns the bundle."""
    path = folder / "tiny-text.onnx"
    onnx.save_model(text_model(), path)
    return _pack_with_golden(text_source(path, **changes), list(TEXTS), folder)


def pack_image(folder: Path, **changes: object) -> Path:
    """Pack the tiny image model with golden items; returns the bundle."""
    path = folder / "tiny-image.onnx"
    onnx.save_model(image_model(), path)
    images = [np.full((8, 8), value, dtype=np.uint8) for value in (10, 240)]
    return _pack_with_golden(image_source(path, **changes), images, folder)


def pack_tagger(folder: Path, **changes: object) -> Path:
    """Pack the tiny tagger with golden items; returns the bundle."""
    path = folder / "tiny-tagger.onnx"
    onnx.save_model(tagger_model(), path)
    fields = {"name": "tiny-tagger", "task": "token-classification", "labels": TAGS}
    return _pack_with_golden(text_source(path, **{**fields, **changes}), list(TAGGED), folder)


def pack_embedder(folder: Path, **changes: object) -> Path:
    """Pack the tiny embedder with golden items; returns the bundle."""
    path = folder / "tiny-embedder.onnx"
    onnx.save_model(embedder_model(), path)
    fields = {"name": "tiny-embedder", "task": "feature-extraction", "labels": ()}
    return _pack_with_golden(text_source(path, **{**fields, **changes}), list(TEXTS), folder)


def _pack_with_golden(source: BundleSource, inputs: list, folder: Path) -> Path:
    import msgspec

    draft = folder / "draft"
    pack_bundle(source, draft)
    golden = golden_items(EdgeModel.load(draft), inputs, margin)
    pack_bundle(msgspec.structs.replace(source, golden=golden), folder / "bundle")
    return folder / "bundle"


def _model(graph: onnx.GraphProto, doc: str) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], doc_string=doc)
    model.ir_version = 10
    if doc:
        model.producer_name = doc
        helper.set_model_props(model, {"exported_from": doc})
    onnx.checker.check_model(model)
    return model
