"""Causal language models: from a checkpoint to the folder that a bundle of kind "generator" is packed from.

Owns building with onnxruntime-genai, the tokenizer's round trip, the comparison with the checkpoint, and scoring. The
steps around it, and the choice among candidates, are those of every other task.
"""

from edgewise.quantize.generation.recipes import GENERATION_RECIPES

__all__ = ["GENERATION_RECIPES"]
