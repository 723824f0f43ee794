"""Fuses the graph before quantization: attention, GELU and layer normalization become one node each.

The runtime fuses a float graph when it loads it, and misses the same patterns in a quantized one. Attention is fused
behind its matrices, so that they stay matrices that every recipe knows.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import DataError
from edgewise.quantize.calibration import read_feeds
from edgewise.quantize.surgery import import_domain, sort_nodes
from edgewise.quantize.technique import Aids, Outcome
from edgewise.quantize.transforms.base import Changed, TransformKind

TOLERANCE = 1e-4
"""Largest difference of an output, as a share of its largest value, that fusing may make."""

_CHECKED = 8


def apply(source: Path, out: Path, *, aids: Aids) -> Changed:
    """Fuse, and compare the outputs on calibration data.

    Raises:
        DataError: The fused graph answers differently, or there is no calibration data to tell.
    """
    import onnx

    before = onnx.load(source)
    fused = _fuse(before)
    found = _fused(before, fused)
    if not found:
        return Changed(Outcome(inapplicable="the graph has nothing to fuse"), aids)
    onnx.save(fused, out)
    difference = _difference(source, out, aids.calibration)
    if not difference <= TOLERANCE:
        raise DataError(
            f"The fused graph answers differently: by {difference:.2g} of the largest value.",
            "Leave the transform fuse out.",
        )
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(_fused(before, onnx.load(out)).items()))
    return Changed(Outcome((f"fused into {kinds}; outputs differ by at most {difference:.1g}",)), aids)


def _fuse(model: Any) -> Any:
    import onnx
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.use_multi_head_attention = True
    # It takes the tables and their sum into one node, whose tables no recipe quantizes.
    options.enable_embed_layer_norm = False
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    fused = optimize_model(copy, "bert", optimization_options=options, opt_level=0).model
    sort_nodes(fused)
    for domain in sorted({node.domain for node in fused.graph.node if node.domain}):
        import_domain(fused, domain)
    return onnx.shape_inference.infer_shapes(fused, data_prop=True)


def _fused(before: Any, after: Any) -> Counter[str]:
    """Kinds of nodes that are new, with their number."""
    kinds = Counter(node.op_type for node in after.graph.node)
    kinds.subtract(node.op_type for node in before.graph.node)
    compound = {node.op_type for node in after.graph.node if node.domain} | {"LayerNormalization", "Gelu"}
    return Counter({kind: count for kind, count in kinds.items() if count > 0 and kind in compound})


def _difference(first: Path, second: Path, calibration: str) -> float:
    """Largest difference of an output over its largest value."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in (first, second)
    ]
    wanted = {value.name for value in sessions[0].get_inputs()}
    worst = 0.0
    for feed in read_feeds(calibration)[:_CHECKED]:
        given = {name: value for name, value in feed.items() if name in wanted}
        exact, found = (session.run(None, given) for session in sessions)
        for right, value in zip(exact, found, strict=True):
            scale = max(1.0, float(np.abs(right).max(initial=0)))
            worst = max(worst, float(np.abs(right - value).max(initial=0)) / scale)
    return worst


KIND = TransformKind(
    "fuse", "attention, GELU and layer normalization in one node each", apply, needs=frozenset({"calibration"})
)
"""Listed in the registry."""
