"""Transforms by name: changes of the graph that go with any recipe, spelled before it as in "trim+int8_embed4".

To add one, write a file like `margin.py` and list it here. Importing this loads neither onnx nor onnxruntime.
"""

from __future__ import annotations

from edgewise.quantize.transforms.base import Changed, TransformKind
from edgewise.quantize.transforms.embedding import KIND as EMBEDDING
from edgewise.quantize.transforms.fuse import KIND as FUSE
from edgewise.quantize.transforms.margin import KIND as MARGIN
from edgewise.quantize.transforms.trim import KIND as TRIM

TRANSFORMS: dict[str, TransformKind] = {kind.name: kind for kind in (FUSE, TRIM, EMBEDDING, MARGIN)}
"""Every transform by its name, in the order in which they are applied."""

__all__ = ["TRANSFORMS", "Changed", "TransformKind"]
