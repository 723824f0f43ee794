"""16-bit floats: half the bytes, inputs and outputs in float32.

CPUs without 16-bit kernels compute in float32 all the same, and convert on the way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgewise.errors import CheckpointError
from edgewise.quantize.recipes.base import Aids, Outcome, Recipe
from edgewise.quantize.surgery import copy_of, sort_nodes

LARGEST = 65504.0
"""The largest float16."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It has none."""


def apply(source: Path, out: Path, options: Options, *, seed: int, aids: Aids) -> Outcome:  # nothing is drawn
    """Convert values and weights.

    Raises:
        CheckpointError: A weight that float16 cannot hold.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    before = onnx.load(source)
    names = _float_weights(before)
    if not names:
        return Outcome(inapplicable="the graph has no float32 weights")
    _require_small(before)
    model = convert_float_to_float16(copy_of(before), keep_io_types=True, disable_shape_infer=False)
    # The tool appends the casts of inputs at the end.
    sort_nodes(model)
    onnx.save(model, out)
    left = _float_weights(onnx.load(out)) & names
    fact = f"{len(names) - len(left)} of {len(names)} float weights in float16; inputs and outputs in float32"
    return Outcome((fact,), tuple(sorted(left)))


def _float_weights(model: Any) -> set[str]:
    """Names of the float32 weights of more than one value: scalars are settings."""
    from onnx import TensorProto

    return {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims)}


def _require_small(model: Any) -> None:
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or not len(tensor.dims):
            continue
        largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
        # Single huge values are masks, which may saturate; a large weight may not.
        if largest > LARGEST and np.prod(tensor.dims) > 1:
            raise CheckpointError(
                f"The weight {tensor.name!r} holds {largest:g}, and the largest float16 is {LARGEST:g}.",
                "Use another recipe.",
            )


RECIPE = Recipe("fp16", "weights and arithmetic in 16-bit floats", Options, apply)
"""Listed in the registry."""
