"""The precisions of a language model: options, and how onnxruntime-genai's builder is asked for each.

A recipe here reads a checkpoint folder and writes a folder (`model.onnx` with its weights, `genai_config.json`, the
tokenizer's files), where those of `quantize/recipes` read and write one graph; the registry has the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgewise.quantize.generation import builder
from edgewise.quantize.recipes.base import Recipe
from edgewise.quantize.technique import Aids, Outcome


class Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It has no options."""


class Int8(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        block_size: Values that share a scale; smaller is more accurate and larger on disk.
        accuracy_level: 4 multiplies in int8, 0 in float32.
    """

    block_size: Literal[16, 32, 64, 128] = 32
    accuracy_level: Literal[0, 4] = 4


class Int4(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        block_size: Values that share a scale; smaller is more accurate and larger on disk.
        accuracy_level: 4 multiplies in int8, 0 in float32.
        method: "rtn" rounds to nearest; "k_quant" searches each block's scale and takes minutes for a larger model.
    """

    block_size: Literal[16, 32, 64, 128] = 32
    accuracy_level: Literal[0, 4] = 4
    method: Literal["rtn", "k_quant"] = "rtn"


class Mixed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options.

    Attributes:
        block_size: Values that share a scale; smaller is more accurate and larger on disk.
        accuracy_level: 4 multiplies in int8, 0 in float32.
    """

    block_size: Literal[16, 32, 64, 128] = 32
    accuracy_level: Literal[0, 4] = 4


def _fp32(source: Path, out: Path, options: Plain, *, seed: int, aids: Aids) -> Outcome:
    return builder.build(source, out, builder.Order("fp32", {}, bits=32))


def _int8(source: Path, out: Path, options: Int8, *, seed: int, aids: Aids) -> Outcome:
    return builder.build(source, out, builder.Order("int8", _blocks(options), bits=8))


def _int4(source: Path, out: Path, options: Int4, *, seed: int, aids: Aids) -> Outcome:
    # The builder calls its own rounding "default"; its "rtn" is another tool's.
    algorithm = {"rtn": "default", "k_quant": "k_quant"}[options.method]
    return builder.build(source, out, builder.Order("int4", {**_blocks(options), "algo_config": algorithm}, bits=4))


def _mixed(source: Path, out: Path, options: Mixed, *, seed: int, aids: Aids) -> Outcome:
    extra = {**_blocks(options), "algo_config": "k_quant_mixed"}
    return builder.build(source, out, builder.Order("int4", extra, bits=8, lowest=4))


def _blocks(options: Any) -> dict[str, str]:
    return {"block_size": str(options.block_size), "accuracy_level": str(options.accuracy_level)}


_ALL = (
    Recipe("fp32", "float32, as the checkpoint is read", Plain, _fp32, prepared=False),
    Recipe("int8", "8-bit weights in blocks of 32, embedding and head included", Int8, _int8, prepared=False),
    Recipe("int4", "4-bit weights in blocks of 32, embedding and head included", Int4, _int4, prepared=False),
    Recipe("mixed", "4-bit weights, the sensitive layers, embedding and head in 8 bits", Mixed, _mixed, prepared=False),
)
GENERATION_RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
"""Every recipe for language models by its name, the baseline first."""
