"""Quantization recipes by name: one file a technique, its options declared beside it.

A recipe reads the prepared graph, writes a quantized one, and says what became of the weights. To add one, write a file
like `int8_dynamic.py` and list it here. Importing this loads neither onnx nor onnxruntime.
"""

from __future__ import annotations

from edgewise.quantize.recipes import (
    fp16,
    fp32,
    int4_matmul,
    int8_dynamic,
    int8_embed4,
    int8_matmul,
    int8_static,
    mixed,
)
from edgewise.quantize.recipes.base import Aids, Choice, Outcome, Recipe, parse_choices

RECIPES: dict[str, Recipe] = {
    module.RECIPE.name: module.RECIPE
    for module in (fp32, int8_dynamic, int4_matmul, int8_embed4, int8_static, int8_matmul, fp16, mixed)
}
"""Every recipe by its name."""

BASELINE = fp32.RECIPE.name
"""The recipe that every other is compared with."""

DEFAULT_RECIPES = ("int8_dynamic", "int4_matmul", "int8_embed4")
"""What is built where nobody asks for anything else: no calibration, and a good answer on every front."""

DEFAULT_IMAGE_RECIPES = ("int8_dynamic", "int8_static", "int4_matmul")
"""The same for images: convolutions are quantized statically, and there is no table of embeddings."""

__all__ = [
    "BASELINE",
    "DEFAULT_IMAGE_RECIPES",
    "DEFAULT_RECIPES",
    "RECIPES",
    "Aids",
    "Choice",
    "Outcome",
    "Recipe",
    "parse_choices",
]
