"""How the vectors of a text's tokens become one vector: what a checkpoint says of it, and the nodes that do it.

Owns the poolings that are supported, after sentence-transformers (Reimers & Gurevych 2019). Needs `onnx` only where it
changes a graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from edgewise.contracts import FloatArray
from edgewise.errors import CheckpointError

OUTPUT = "embedding"
"""Name of the pooled output."""

Mode: TypeAlias = Literal["mean", "cls", "max", "mean_sqrt_len"]

_MODES: Mapping[str, Mode] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "mean_sqrt_len": "mean_sqrt_len",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}
# Flags of the file's first form; one may be set.
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SUPPORTED = "Supported: one transformer, then mean, cls, max or mean_sqrt_len pooling, then Normalize or nothing more."
_FEWEST = 1e-9
_SHORTEST = 1e-12


class Pooling(msgspec.Struct, frozen=True):
    """How token vectors become one.

    Attributes:
        mode: The mean, the first token's ("cls"), the largest value of each column, or the sum over the square root of
            the number of tokens.
        normalize: Whether the vector is brought to length 1.
        assumed: Whether the checkpoint says nothing of it.
    """

    mode: Mode
    normalize: bool
    assumed: bool = False

    def __str__(self) -> str:
        """A few words for reports."""
        text = f"{self.mode} pooling{', length 1' if self.normalize else ''}"
        return f"{text}; assumed, since the checkpoint names none" if self.assumed else text


DEFAULT = Pooling("mean", normalize=True, assumed=True)
"""Of a plain encoder, which names no pooling."""


def read_pooling(folder: Path) -> Pooling:
    """Pooling of a checkpoint, as sentence-transformers wrote it down; the default where it did not.

    Raises:
        CheckpointError: It asks for more than is supported; the module is named.
    """
    if not (folder / "modules.json").is_file():
        return DEFAULT
    modules = _read(folder / "modules.json", list)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        odd = next((kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")), " → ".join(kinds))
        raise CheckpointError(
            f"The sentence encoder {folder} has the module {odd}, which is not supported.", _SUPPORTED
        )
    _refuse_changed_texts(folder)
    return Pooling(_mode(folder / str(modules[1].get("path", "")) / "config.json"), normalize=len(kinds) > 2)


def max_length_of(folder: Path) -> object:
    """The length limit that sentence-transformers goes by, or None; it may be below that of the tokenizer."""
    path = folder / "sentence_bert_config.json"
    return _read(path, dict).get("max_seq_length") if path.is_file() else None


def pooled(tokens: FloatArray, pooling: Pooling) -> FloatArray:
    """One vector, shape (width,), of the vectors of a text's tokens, shape (tokens, width), none of them padding."""
    vector: FloatArray = np.asarray(_POOLED[pooling.mode](tokens))
    return vector / max(float(np.linalg.norm(vector)), _SHORTEST) if pooling.normalize else vector


_POOLED = {
    "mean": lambda tokens: tokens.mean(axis=0),
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(axis=0),
    "mean_sqrt_len": lambda tokens: tokens.sum(axis=0) / np.sqrt(len(tokens)),
}


def append_pooling(path: Path, pooling: Pooling) -> None:
    """Let the graph at `path` give one vector a text, shape (batch, width), in place of one a token.

    Its first output, shape (batch, tokens, width), is pooled over the tokens that attention_mask marks, and becomes
    "embedding", its only output. Weights in files beside it stay there, untouched.

    Raises:
        CheckpointError: The graph gives no such output, or takes no attention_mask.
    """
    import onnx

    model = onnx.load_model(path, load_external_data=False)
    graph = model.graph
    hidden = graph.output[0]
    sides = hidden.type.tensor_type.shape.dim
    if len(sides) != 3 or "attention_mask" not in {value.name for value in graph.input}:
        raise CheckpointError(
            f"The output {hidden.name!r} of the graph cannot be pooled: it needs [batch, tokens, width] and an input "
            "attention_mask.",
            "Export the encoder's last_hidden_state, or its pooled embedding.",
        )
    _free_name(graph, OUTPUT)
    nodes = _Nodes(graph, next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))
    vector = nodes.pool(graph.output[0].name, pooling.mode)
    nodes.add("Identity", [nodes.normalize(vector) if pooling.normalize else vector], OUTPUT)
    shape = [sides[0].dim_param or sides[0].dim_value or "batch_size", sides[2].dim_value or sides[2].dim_param]
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape))
    _drop_unread(graph)
    onnx.save_model(model, path)


def keep_output(path: Path, name: str) -> None:
    """Drop all other outputs of the graph at `path`, and what only they needed."""
    import onnx

    model = onnx.load_model(path, load_external_data=False)
    if [value.name for value in model.graph.output] == [name]:
        return
    kept = [type(value).FromString(value.SerializeToString()) for value in model.graph.output if value.name == name]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    _drop_unread(model.graph)
    onnx.save_model(model, path)


class _Nodes:
    """Appends nodes whose values are named after the pooling."""

    def __init__(self, graph: Any, opset: int) -> None:
        self._graph = graph
        self._opset = opset
        self._count = 0

    def add(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        import onnx

        self._count += 1
        name = f"pooling_{self._count}_{op}"
        self._graph.node.append(onnx.helper.make_node(op, inputs, [output or name], name, **attributes))
        return output or name

    def pool(self, hidden: str, mode: Mode) -> str:
        """Shape (batch, width) of shape (batch, tokens, width)."""
        import onnx

        if mode == "cls":
            return self.add("Gather", [hidden, self._constant(0)], axis=1)
        mask = self.add("Cast", ["attention_mask"], to=onnx.TensorProto.FLOAT)
        column = self.add("Unsqueeze", [mask, self._constant([2])])
        if mode == "max":
            there = self.add("Cast", [column], to=onnx.TensorProto.BOOL)
            return self._largest(self.add("Where", [there, hidden, self._constant(-1e9)]))
        total = self.add("ReduceSum", [self.add("Mul", [hidden, column]), self._constant([1])], keepdims=0)
        count = self.add("ReduceSum", [mask, self._constant([1])], keepdims=1)
        if mode == "mean_sqrt_len":
            count = self.add("Sqrt", [count])
        return self.add("Div", [total, self.add("Max", [count, self._constant(_FEWEST)])])

    def normalize(self, vector: str) -> str:
        """The vector at length 1."""
        squares = self.add("ReduceSum", [self.add("Mul", [vector, vector]), self._constant([1])], keepdims=1)
        length = self.add("Max", [self.add("Sqrt", [squares]), self._constant(_SHORTEST)])
        return self.add("Div", [vector, length])

    def _largest(self, values: str) -> str:
        # ReduceMax takes its axes as an input from opset 18 on, and as an attribute before.
        if self._opset < 18:
            return self.add("ReduceMax", [values], axes=[1], keepdims=0)
        return self.add("ReduceMax", [values, self._constant([1])], keepdims=0)

    def _constant(self, value: float | list[int]) -> str:
        from onnx import numpy_helper

        dtype = np.float32 if isinstance(value, float) else np.int64
        name = f"pooling_constant_{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name


def _free_name(graph: Any, name: str) -> None:
    """Give an inner value of this name another one: an exporter may call the embedding table's rows so."""
    other = f"{name}_inner"
    for node in graph.node:
        node.input[:] = [other if value == name else value for value in node.input]
        node.output[:] = [other if value == name else value for value in node.output]
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        if value.name == name:
            value.name = other


def _drop_unread(graph: Any) -> None:
    """Drop nodes and weights that lead to no output, such as the head that only a dropped output needed."""
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return  # a subgraph may read an outer value
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(type(node).FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def _mode(path: Path) -> Mode:
    config = _read(path, dict)
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named
    if not isinstance(modes, list):
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise CheckpointError(f"{path} asks for the pooling {' + '.join(map(str, modes)) or 'none'}.", _SUPPORTED)
    return _MODES[modes[0]]


def _refuse_changed_texts(folder: Path) -> None:
    """Refuse what sentence-transformers would do to a text before the tokenizer, and a bundle does not."""
    lower = folder / "sentence_bert_config.json"
    if lower.is_file() and _read(lower, dict).get("do_lower_case"):
        raise CheckpointError(f"{lower} asks for do_lower_case.", "Let the tokenizer do it, and set this to false.")
    prompts = folder / "config_sentence_transformers.json"
    prompt = _read(prompts, dict).get("default_prompt_name") if prompts.is_file() else None
    if prompt:
        raise CheckpointError(
            f"{prompts} puts the prompt {prompt!r} before every text.",
            "A bundle takes texts as they come: put it there yourself, and set default_prompt_name to null.",
        )


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} cannot be read: {e}.", "Download the checkpoint again.") from e
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} holds no JSON {kind.__name__}.", "Download the checkpoint again.")
    return value
