"""The float32 graphs that everything starts from: the exported one as a single file, and fused ones."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import onnxruntime
from minilm import rebuild

from edgewise.bundle import Bundle
from edgewise.files import sha256_file

HEADS, HIDDEN = 12, 384
"""MiniLM-L6's; fusing attention needs both."""

FUSIONS = {"fused": (None, True), "fused, level 2": (2, True), "fused, no skip": (None, False)}
"""Level of onnxruntime's own optimization before, and whether Add and LayerNormalization are joined.

Joined, they were seen to run slower than apart (onnxruntime 1.31, x86): the float32 graph gets every chance.
"""


def inline_model(bundle: Path, checkpoint: Path, out: Path) -> Path:
    """The fp32 graph of a bundle as one ONNX file, with the checkpoint's configuration and tokenizer beside it.

    So a rival quantizes the very weights that our candidates come from.

    Returns:
        The ONNX file in `out`.
    """
    graph = Bundle.open(bundle).graph_path

    def build(stage: Path) -> None:
        import onnx

        with tempfile.TemporaryDirectory(dir=stage) as copy:
            # onnx refuses weights that have a second hard link, as a run's winner has.
            shutil.copytree(graph.parent, copy, dirs_exist_ok=True)
            # The graph names each weight by its content, so its own digest stands for all of them.
            onnx.save(onnx.load(Path(copy) / graph.name), stage / "model.onnx")
        for file in checkpoint.iterdir():
            if file.suffix in (".json", ".txt"):
                shutil.copy(file, stage)

    rebuild(out, {"graph": sha256_file(graph)}, build)
    return out / "model.onnx"


def fused_graphs(source: Path, out: Path) -> dict[str, Path]:
    """Float32 graphs that onnxruntime's own tools fuse from `source`, by name."""

    def build(stage: Path) -> None:
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions

        for number, (level, skip) in enumerate(FUSIONS.values()):
            options = FusionOptions("bert")
            options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = skip
            found = optimizer.optimize_model(
                str(source),
                model_type="bert",
                num_heads=HEADS,
                hidden_size=HIDDEN,
                optimization_options=options,
                opt_level=level,
            )
            found.save_model_to_file(str(stage / f"{number}.onnx"))
            (stage / f"{number}.json").write_text(json.dumps(found.get_fused_operator_statistics()))

    inputs = {"source": sha256_file(source), "fusions": repr(FUSIONS), "onnxruntime": onnxruntime.__version__}
    rebuild(out, inputs, build)
    return {name: out / f"{number}.onnx" for number, name in enumerate(FUSIONS)}
