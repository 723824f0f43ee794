"""Checkpoints for drafting: one that is never right, and a pair in which the draft always is. Both cost what they cost.

No trained sibling of SmolLM2-135M is small enough to draft for it, so two bounds stand for what a draft may be.

    wrong   the first and the last layer of the model: a fifteenth of its layers, and none of its guesses stands
    right   the same two layers, for a target of as many layers as the model, in which those between add nothing: every
            guess stands, at the cost of a real target and a real draft. What they write makes no sense
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilm import rebuild

from edgewise.files import sha256_file, sha256_tree

KEPT = (0, -1)
"""Layers of the draft."""


@dataclass(frozen=True)
class Cuts:
    """Folders of checkpoints: `draft` guesses for `target`, which writes what the draft would."""

    draft: Path
    target: Path


def prepare_cuts(checkpoint: Path, work: Path) -> Cuts:
    """Make them, where they do not stand there already."""
    made_from = {"checkpoint": sha256_tree(checkpoint), "recipe": sha256_file(Path(__file__))}
    found = Cuts(work / "cut", work / "hollow")
    rebuild(found.draft, made_from, lambda stage: _cut(checkpoint, stage))
    rebuild(found.target, made_from, lambda stage: _hollowed(checkpoint, stage))
    return found


def _cut(checkpoint: Path, stage: Path) -> None:
    import torch

    model = _loaded(checkpoint)
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList([layers[at] for at in KEPT])
    model.config.num_hidden_layers = len(KEPT)
    _saved(model, checkpoint, stage)


def _hollowed(checkpoint: Path, stage: Path) -> None:
    """Every layer computes; those between the kept ones add zeros."""
    import torch

    model = _loaded(checkpoint)
    layers = model.model.layers
    kept = {at % len(layers) for at in KEPT}
    with torch.no_grad():
        for at, layer in enumerate(layers):
            if at not in kept:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
    _saved(model, checkpoint, stage)


def _loaded(checkpoint: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def _saved(model: Any, checkpoint: Path, stage: Path) -> None:
    from transformers import AutoTokenizer

    model.save_pretrained(stage)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(stage)
