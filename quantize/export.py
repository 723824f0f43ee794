"""Turns a checkpoint into an ONNX graph, and proves that the two agree.

Owns both exporters and the comparison. `export_here` runs in a worker process: it alone loads torch, and its output
goes to a log. The same checkpoint gives the same graph each time. What the checkpoint itself answers is computed in
`reference.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from edgewise.bundle import Task
from edgewise.edge.pooling import Pooling
from edgewise.errors import CheckpointError, ConfigError
from edgewise.quantize.items import Item
from edgewise.quantize.pooling import append_pooling
from edgewise.quantize.reference import Reference

EXPORTERS = ("auto", "optimum", "torch")
"""What may be asked for, the default first: "auto" tries one exporter after the other."""

TOLERANCE = 1e-3
"""Largest difference of a number between checkpoint and graph, relative to the largest one where that exceeds 1.

Float32 graphs that are right agree to about 1e-5; a wrong mask, tokenizer or normalisation shows above 1e-2.
"""

Exporter: TypeAlias = Literal["auto", "optimum", "torch"]
Rows: TypeAlias = Sequence[Sequence[float]]
"""The answer to each item as a row of numbers; rows of a tagger differ in length."""


class ExportJob(msgspec.Struct, frozen=True, kw_only=True):
    """Export a checkpoint and let it answer a few items itself.

    Attributes:
        checkpoint: Its folder.
        task: What it does; any but "text-generation".
        architecture: Name of its class, for messages.
        exporter: Which exporter.
        max_length: Tokens a text is cut to; 0 for an image model.
        out: Folder for `model.onnx` and `tokenizer.json`; exists.
        samples: Items that the checkpoint answers.
        pooling: Of an encoder, how the vectors of a text's tokens become one.
        labels: Of a tagger, its labels.
    """

    checkpoint: str
    task: Task
    architecture: str
    exporter: Exporter
    max_length: int
    out: str
    samples: tuple[Item, ...]
    pooling: Pooling | None = None
    labels: tuple[str, ...] = ()


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        onnx: The graph.
        tokenizer: The `tokenizer.json`, empty for an image model.
        answers: What the checkpoint answers to each sample: logits, an embedding, or a tagger's logits of each word one
            after the other. None where there is no checkpoint to compare with.
        seconds: Wall time of loading, exporting and answering, imports left out.
        exporter: Which one made the graph: "optimum", "torch", or "none" for an ONNX file that was there.
        refusals: Why the exporters tried before it failed, one sentence each.
    """

    onnx: str
    tokenizer: str
    answers: tuple[tuple[float, ...], ...]
    seconds: float
    exporter: str
    refusals: tuple[str, ...] = ()


def check_exporter(name: str) -> Exporter:
    """The exporter of that name.

    Raises:
        ConfigError: There is none.
    """
    if name == "auto":
        return "auto"
    if name == "optimum":
        return "optimum"
    if name == "torch":
        return "torch"
    raise ConfigError(f"There is no exporter {name!r}.", f"Choose one of: {', '.join(EXPORTERS)}.")


def largest_difference(expected: Rows, found: Rows) -> tuple[float, float]:
    """Largest absolute difference between two lists of rows, and the largest that is allowed.

    A row that is longer or shorter than its counterpart differs by infinity.
    """
    scale = max([1.0, *(float(np.abs(row).max()) for row in expected if len(row))])
    # numpy's, since Python's max takes a NaN only where it comes first.
    return float(np.max(_differences(expected, found), initial=0.0)), TOLERANCE * scale


def require_agreement(expected: Rows, found: Rows, architecture: str, exporter: str) -> float:
    """The largest difference between the answers of the checkpoint and of the exported graph.

    Args:
        expected: The checkpoint's (`Exported.answers`): logits, embeddings, or a tagger's logits word by word.
        found: The graph's through the edge runtime, in the same form.
        architecture: For the message.
        exporter: For the message.

    Raises:
        CheckpointError: It is larger than allowed, or a number is none.
    """
    if not all(np.isfinite(row).all() for row in expected):
        raise CheckpointError("The checkpoint answers real items with NaN or infinity.", "Check its weights.")
    difference, allowed = largest_difference(expected, found)
    # Written so that a NaN counts as a difference.
    if not difference <= allowed:
        item = int(np.argmax(_differences(expected, found))) + 1
        others = [name for name in _EXPORT if name != exporter]
        raise CheckpointError(
            f"The graph that {exporter} exported of {architecture} differs from the checkpoint: on item {item} of "
            f"{len(expected)} by {difference:.4g}, {allowed:.4g} is allowed.",
            f"Try the other exporter: --exporter {others[0]}.",
        )
    return difference


def _differences(expected: Rows, found: Rows) -> list[float]:
    """Largest difference of each item; NaN where a number is none."""
    return [_difference(row, other) for row, other in zip(expected, found, strict=True)]


def _difference(expected: Sequence[float], found: Sequence[float]) -> float:
    if len(expected) != len(found):
        return float("inf")
    return float(np.abs(np.subtract(expected, found)).max()) if len(expected) else 0.0


def export_here(job: ExportJob) -> Exported:
    """Export in this process.

    Raises:
        CheckpointError: The checkpoint cannot be loaded, or none of the exporters asked for can export it.
    """
    _quieten()
    started = time.perf_counter()
    reference = _reference(job)
    out = Path(job.out)
    answers = tuple(tuple(map(float, reference.answer(item))) for item in job.samples)
    exporter, refusals = _export(job, reference, out / "model.onnx")
    if job.pooling is not None:
        append_pooling(out / "model.onnx", job.pooling)
    # Last: optimum writes one of its own beside the graph.
    tokenizer = reference.save_tokenizer(out / "tokenizer.json") if reference.reads_text else ""
    return Exported(
        onnx=str(out / "model.onnx"),
        tokenizer=tokenizer,
        answers=answers,
        seconds=time.perf_counter() - started,
        exporter=exporter,
        refusals=refusals,
    )


def _reference(job: ExportJob) -> Reference:
    try:
        return Reference.load(job.checkpoint, job.task, job.max_length, job.pooling, job.labels)
    except CheckpointError as e:
        raise CheckpointError(
            f"{e.problem} No exporter ({', '.join(_wanted(job))}) could be given its {job.architecture}.",
            f"{e.remedy} An architecture that transformers does not know can be given as an ONNX file.",
        ) from e


def _wanted(job: ExportJob) -> tuple[str, ...]:
    """The exporters to try, in their order."""
    return tuple(_EXPORT) if job.exporter == "auto" else (job.exporter,)


def _export(job: ExportJob, reference: Reference, out: Path) -> tuple[str, tuple[str, ...]]:
    """Write the graph with the first exporter that can; its name, and why those before it could not."""
    refusals: list[str] = []
    for name in _wanted(job):
        try:
            _EXPORT[name](job, reference, out)
        except Exception as e:  # exporters raise whatever a layer raises
            refusals.append(f"{name} cannot export {job.architecture}: {_line(e)}.")
            cause = e
        else:
            return name, tuple(refusals)
    others = [name for name in _EXPORT if name != job.exporter]
    remedy = (
        "Export it to ONNX yourself, and give the .onnx file."
        if job.exporter == "auto"
        else f"Try --exporter {others[0]}, or --exporter auto."
    )
    raise CheckpointError(" ".join(refusals), remedy) from cause


def _export_optimum(job: ExportJob, reference: Reference, out: Path) -> None:
    from optimum.exporters.onnx import onnx_export_from_model

    onnx_export_from_model(reference.model, out.parent, task=job.task, do_validation=False, no_post_process=True)


def _export_torch(job: ExportJob, reference: Reference, out: Path) -> None:
    import torch

    names, arguments, shapes = _torch_text(job, reference) if reference.reads_text else _torch_image(job, reference)

    class Answers(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        """Takes inputs by position and gives the answers alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = reference.model

        def forward(self, *inputs: Any) -> Any:
            return getattr(self.model(**dict(zip(names, inputs, strict=True))), reference.output)

    program = torch.onnx.export(
        Answers().eval(),
        arguments,
        dynamo=True,
        input_names=names,
        output_names=[reference.output],
        dynamic_shapes=(shapes,),
    )
    program.save(out)


def _torch_text(job: ExportJob, reference: Reference) -> tuple[list[str], tuple[Any, ...], Sequence[Any]]:
    import torch

    names = reference.text_inputs()
    # Sizes 0 and 1 would be burnt into the graph, hence two rows.
    shape = (2, min(16, job.max_length))
    makers = {"input_ids": torch.ones, "attention_mask": torch.ones}
    arguments = tuple(makers.get(name, torch.zeros)(shape, dtype=torch.long) for name in names)
    sizes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length", max=job.max_length)}
    return names, arguments, tuple(sizes for _ in names)


def _torch_image(job: ExportJob, reference: Reference) -> tuple[list[str], tuple[Any, ...], Sequence[Any]]:
    """The size is the image processor's: a model without a size of its own is traced at the one it will be given."""
    import torch

    pixels = reference.encode(job.samples[0])["pixel_values"]
    arguments = (torch.zeros((2, *pixels.shape[1:])),)
    return ["pixel_values"], arguments, ({0: torch.export.Dim("batch_size")},)


_EXPORT = {"optimum": _export_optimum, "torch": _export_torch}


def _quieten() -> None:
    """Progress bars have no place in a log."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
