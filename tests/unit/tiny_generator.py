"""A tiny language model whose answers can be computed by hand: what follows a byte depends on that byte alone.

Reached through the fixtures of tests/conftest.py: under pytest's importlib mode a test cannot import its neighbours.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgewise.bundle import GeneratorSource, Recipe, Target, pack_generator
from edgewise.edge import EdgeGenerator, probe

OPSET = 17
HEAD = 4
CONTEXT = 512
SPECIALS = ("<s>", "</s>")
PROMPTS = ("a", "once upon")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('the system speaks first') }}{% endif %}"
    "{{ message['role'][0] + ':' + message['content'] + ('' if loop.last else ';') }}{% endfor %}"
)
"""What is said is continued where the last message ends, so that the table answers it."""


def tokenizer():
    """A byte-level BPE without merges: one token a byte, after <s> (0) and </s> (1)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate([*SPECIALS, *letters])}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return built


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text).ids


def table() -> np.ndarray:
    """Shape (vocabulary, vocabulary): logits by the token before. The alphabet runs on to z, then the text ends; an "é"
    follows a digit, and after it comes a blank."""
    size = tokenizer().get_vocab_size()
    logits = np.random.default_rng(0).normal(0, 1, (size, size)).astype(np.float32)
    chains = ["abcdefghijklmnopqrstuvwxyz", "0é a"]
    for chain in chains:
        ids = ids_of(chain)
        for before, after in pairwise(ids):
            logits[before, after] += 12.0
    logits[ids_of("z")[0], 1] += 12.0
    return logits


def expected_logprobs(ids: list[int]) -> np.ndarray:
    """Shape (len(ids) - 1, vocabulary): log-softmax of the row of each token but the last."""
    rows = table()[ids[:-1]].astype(np.float64)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def memory() -> tuple[np.ndarray, np.ndarray]:
    """Shapes (vocabulary, HEAD) and (HEAD, vocabulary): what a token leaves in the cache, and what that adds."""
    size = tokenizer().get_vocab_size()
    draw = np.random.default_rng(1)
    return draw.normal(0, 1, (size, HEAD)).astype(np.float32), draw.normal(0, 1, (HEAD, size)).astype(np.float32)


def remembered_logits(ids: list[int]) -> np.ndarray:
    """Shape (len(ids), vocabulary): what the graph that remembers gives."""
    left, added = memory()
    return table()[ids] + np.cumsum(left[ids], axis=0) @ added


def graph(*, remembers: bool = False) -> onnx.ModelProto:
    """Gather for the logits, and a cache that grows, since the runtime wants to keep one.

    The cache holds zeros, or the logits also depend on the sum of what all tokens left in it.
    """
    size = tokenizer().get_vocab_size()
    initializers = [
        numpy_helper.from_array(table(), "table"),
        numpy_helper.from_array(np.zeros((1, 1, 1, HEAD), np.float32), "nothing"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([HEAD], np.int64), "head"),
    ]
    looked_up = "looked_up" if remembers else "logits"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], [looked_up]),
        helper.make_node("Shape", ["input_ids"], ["rows"], start=0, end=1),
        helper.make_node("Shape", ["input_ids"], ["new"], start=1, end=2),
        helper.make_node("Concat", ["rows", "one", "new", "head"], ["shape"], axis=0),
        helper.make_node("Expand", ["nothing", "shape"], ["step"]),
    ]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "all"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", size])]
    if remembers:
        left, added = memory()
        initializers += [
            numpy_helper.from_array(left, "left"),
            numpy_helper.from_array(added, "added"),
            numpy_helper.from_array(np.array(2, np.int64), "time"),
            numpy_helper.from_array(np.array([1], np.int64), "heads"),
            numpy_helper.from_array(np.array([2], np.int64), "axis"),
            numpy_helper.from_array(np.array([1 << 40], np.int64), "end"),
        ]
        nodes += [
            helper.make_node("Gather", ["left", "input_ids"], ["leaves"]),
            helper.make_node("Unsqueeze", ["leaves", "heads"], ["kept"]),
            helper.make_node("CumSum", ["present.0.value", "time"], ["sums"]),
            helper.make_node("Neg", ["new"], ["start"]),
            helper.make_node("Slice", ["sums", "start", "end", "axis"], ["recent"]),
            helper.make_node("Squeeze", ["recent", "heads"], ["rows_of_sums"]),
            helper.make_node("MatMul", ["rows_of_sums", "added"], ["more"]),
            helper.make_node("Add", ["looked_up", "more"], ["logits"]),
        ]
    for kind in ("key", "value"):
        past, present = f"past_key_values.0.{kind}", f"present.0.{kind}"
        step = "kept" if remembers and kind == "value" else "step"
        nodes.append(helper.make_node("Concat", [past, step], [present], axis=2))
        inputs.append(helper.make_tensor_value_info(past, TensorProto.FLOAT, ["batch", 1, "past", HEAD]))
        outputs.append(helper.make_tensor_value_info(present, TensorProto.FLOAT, ["batch", 1, "all", HEAD]))
    # In the order in which they can be computed.
    nodes.sort(key=lambda node: node.op_type in ("CumSum", "Neg", "Slice", "MatMul", "Add") or "recent" in node.input)
    built = helper.make_graph(nodes, "tiny_generator", inputs, outputs, initializers)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10
    return model


def config() -> dict:
    """As the builder writes it."""
    return {
        "model": {
            "bos_token_id": 0,
            "context_length": CONTEXT,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": HEAD,
                "hidden_size": HEAD,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": 1,
                "num_hidden_layers": 1,
                "num_key_value_heads": 1,
            },
            "eos_token_id": 1,
            "pad_token_id": 1,
            "type": "llama",
            "vocab_size": tokenizer().get_vocab_size(),
        },
        "search": {"do_sample": True, "max_length": CONTEXT, "past_present_share_buffer": False, "top_k": 50},
    }


def write_folder(folder: Path, *, remembers: bool = False) -> Path:
    """What the builder would leave, weights beside the graph; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        graph(remembers=remembers),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
        convert_attribute=False,
    )
    (folder / "genai_config.json").write_text(json.dumps(config(), indent=4))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "GPT2Tokenizer",
                "name_or_path": str(folder),
                "eos_token": "</s>",
                "chat_template": CHAT_TEMPLATE,
            }
        )
    )
    (folder / "vocab.json").write_text("{}")
    return folder


def source(folder: Path, **changes: object) -> GeneratorSource:
    """What the tiny bundle is packed from; keyword arguments replace its fields."""
    fields: dict[str, object] = {
        "name": "tiny-generator",
        "folder": folder,
        "recipe": Recipe("none"),
        "target": Target((probe().isa,), "1.20", OPSET),
        "max_length": CONTEXT,
        "licences": ("Apache-2.0",),
    }
    return GeneratorSource(**{**fields, **changes})


def pack(folder: Path, *, remembers: bool = False) -> Path:
    """Pack the tiny model with golden items; returns the bundle."""
    built = write_folder(folder / "built", remembers=remembers)
    pack_generator(source(built), folder / "draft")
    with EdgeGenerator.load(folder / "draft") as draft:
        golden = draft.golden_items(PROMPTS)
    pack_generator(source(built, golden=golden), folder / "bundle")
    return folder / "bundle"
