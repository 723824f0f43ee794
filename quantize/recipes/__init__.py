"""Quantization recipes by name: one file a technique, its options declared beside it.

A recipe reads the prepared graph, writes a quantized one, and says what became of the weights. To add one, write a file
like `int8_dynamic.py` and list it here. Importing this loads neither onnx nor onnxruntime.
"""

from __future__ import annotations

from edgewise.quantize.recipes import fp32, int4_matmul, int8_dynamic, int8_embed4
from edgewise.quantize.recipes.base import Aids, Choice, Outcome, Recipe, parse_choices

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (fp32.RECIPE, int8_dynamic.RECIPE, int4_matmul.RECIPE, int8_embed4.RECIPE)
}
"""Every recipe by its name."""

BASELINE = fp32.RECIPE.name
"""The recipe that every other is compared with."""

__all__ = ["BASELINE", "RECIPES", "Aids", "Choice", "Outcome", "Recipe", "parse_choices"]
