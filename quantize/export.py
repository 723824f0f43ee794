"""Turns a checkpoint into an ONNX graph, and proves that the two agree.

Owns both exporters and the comparison. `export_here` runs in a worker process: it alone loads torch, and its output
goes to a log. The same checkpoint gives the same graph each time.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from edgewise.contracts import FloatArray, Input
from edgewise.errors import CheckpointError, ConfigError
from edgewise.quantize.items import Item, inputs_of

EXPORTERS = ("optimum", "torch")
"""Known exporters, the default first."""

TOLERANCE = 1e-3
"""Largest difference of a logit between checkpoint and graph, relative to the largest logit where that exceeds 1.

Float32 graphs that are right agree to about 1e-5; a wrong mask, tokenizer or normalisation shows above 1e-2.
"""

Exporter: TypeAlias = Literal["optimum", "torch"]


class ExportJob(msgspec.Struct, frozen=True, kw_only=True):
    """Export a checkpoint and let it answer a few items itself.

    Attributes:
        checkpoint: Its folder.
        task: "text-classification" or "image-classification".
        architecture: Name of its class, for messages.
        exporter: Which exporter.
        max_length: Tokens a text is cut to; 0 for an image model.
        out: Folder for `model.onnx` and `tokenizer.json`; exists.
        samples: Items that the checkpoint answers.
    """

    checkpoint: str
    task: str
    architecture: str
    exporter: Exporter
    max_length: int
    out: str
    samples: tuple[Item, ...]


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        onnx: The graph.
        tokenizer: The `tokenizer.json`, empty for an image model.
        logits: The checkpoint's logits for each sample.
        seconds: Wall time of loading, exporting and answering, imports left out.
    """

    onnx: str
    tokenizer: str
    logits: tuple[tuple[float, ...], ...]
    seconds: float


def check_exporter(name: str) -> Exporter:
    """The exporter of that name.

    Raises:
        ConfigError: There is none.
    """
    if name == "optimum":
        return "optimum"
    if name == "torch":
        return "torch"
    raise ConfigError(f"There is no exporter {name!r}.", f"Choose one of: {', '.join(EXPORTERS)}.")


def largest_difference(expected: FloatArray, found: FloatArray) -> tuple[float, float]:
    """Largest absolute difference between logits, shape (n, classes), and the largest that is allowed."""
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(expected - found).max()), TOLERANCE * scale


def require_agreement(expected: FloatArray, found: FloatArray, architecture: str, exporter: str) -> float:
    """The largest difference between the logits of the checkpoint and of the exported graph.

    Args:
        expected: The checkpoint's, shape (n, classes).
        found: The graph's through the edge runtime, same shape.
        architecture: For the message.
        exporter: For the message.

    Raises:
        CheckpointError: It is larger than allowed, or a logit is no number.
    """
    if not np.isfinite(expected).all():
        raise CheckpointError("The checkpoint answers real items with NaN or infinity.", "Check its weights.")
    difference, allowed = largest_difference(expected, found)
    # Written so that a NaN counts as a difference.
    if not difference <= allowed:
        item = int(np.abs(expected - found).max(axis=1).argmax()) + 1
        other = next(name for name in EXPORTERS if name != exporter)
        raise CheckpointError(
            f"The graph that {exporter} exported of {architecture} differs from the checkpoint: on item {item} of "
            f"{len(expected)} by {difference:.4g} in a logit, {allowed:.4g} is allowed.",
            f"Try the other exporter: --exporter {other}.",
        )
    return difference


def export_here(job: ExportJob) -> Exported:
    """Export in this process.

    Raises:
        CheckpointError: The checkpoint cannot be loaded or exported.
    """
    _quieten()
    started = time.perf_counter()
    model = _load(job)
    out = Path(job.out)
    tokenizer = _save_tokenizer(job, out) if job.task == "text-classification" else ""
    logits = _answer(job, model)
    try:
        _EXPORT[job.exporter](job, model, out)
    except Exception as e:  # exporters raise whatever a layer raises
        other = next(name for name in EXPORTERS if name != job.exporter)
        raise CheckpointError(
            f"{job.exporter} cannot export {job.architecture}: {_line(e)}.", f"Try --exporter {other}."
        ) from e
    return Exported(
        onnx=str(out / "model.onnx"), tokenizer=tokenizer, logits=logits, seconds=time.perf_counter() - started
    )


def _load(job: ExportJob) -> Any:
    """The checkpoint as a float32 model in evaluation mode, all its weights found."""
    import torch
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    text = job.task == "text-classification"
    classes = AutoModelForSequenceClassification if text else AutoModelForImageClassification
    try:
        model, report = classes.from_pretrained(
            job.checkpoint, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as e:  # transformers, safetensors and pickle each raise their own
        raise CheckpointError(f"The checkpoint {job.checkpoint} cannot be loaded: {_line(e)}.", "Check it.") from e
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise CheckpointError(
            f"The checkpoint {job.checkpoint} lacks {len(missing)} weights, such as {missing[0]!r}.",
            "Fine-tune it for the task first, or download all of it.",
        )
    return model.eval()


def _save_tokenizer(job: ExportJob, out: Path) -> str:
    """Write the tokenizer as transformers sets it up, which differs from a `tokenizer.json` that lies in the folder."""
    from tokenizers import Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

    fast = _tokenizer(job)
    tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    path = out / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return str(path)


def _tokenizer(job: ExportJob) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(job.checkpoint, use_fast=True, local_files_only=True)
    except Exception as e:  # a slow tokenizer that needs another package raises nearly anything
        raise CheckpointError(
            f"The tokenizer of {job.checkpoint} cannot be loaded: {_line(e)}.", "Save it as a fast tokenizer."
        ) from e
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"The tokenizer of {job.checkpoint} ({type(tokenizer).__name__}) has no fast version.",
            "A bundle needs a tokenizer.json; convert it first.",
        )
    return tokenizer


def _answer(job: ExportJob, model: Any) -> tuple[tuple[float, ...], ...]:
    """The checkpoint's own logits of the samples, batch of one, through its own preprocessing."""
    import torch

    encode = _text_encoder(job, model) if job.task == "text-classification" else _image_encoder(job, model)
    with torch.inference_mode():
        rows = [model(**encode(item)).logits[0].tolist() for item in inputs_of(job.samples)]
    return tuple(tuple(float(value) for value in row) for row in rows)


def _text_encoder(job: ExportJob, model: Any) -> Any:
    tokenizer = _tokenizer(job)
    accepted = _text_inputs(tokenizer, model)

    def encode(text: Input) -> Mapping[str, Any]:
        encoded = tokenizer(text, truncation=True, max_length=job.max_length, return_tensors="pt")
        return {name: encoded[name] for name in accepted}

    return encode


def _text_inputs(tokenizer: Any, model: Any) -> list[str]:
    """What the tokenizer gives and the model takes: some tokenizers give token types to models without them."""
    accepted = inspect.signature(model.forward).parameters
    return [name for name in tokenizer.model_input_names if name in accepted]


def _image_encoder(job: ExportJob, model: Any) -> Any:
    from transformers import AutoImageProcessor

    from edgewise.edge import decode

    # The slow processor resizes with Pillow, as the edge does; the fast one needs torchvision and differs by a little.
    processor = AutoImageProcessor.from_pretrained(job.checkpoint, use_fast=False, local_files_only=True)
    mode = "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB"

    def encode(data: Input) -> Mapping[str, Any]:
        pixels = np.asarray(decode(bytes(data)).convert(mode))  # type: ignore[arg-type]  # image items are bytes
        planes = pixels[:, :, np.newaxis] if mode == "L" else pixels
        return {"pixel_values": processor(planes, return_tensors="pt", input_data_format="channels_last").pixel_values}

    return encode


def _export_optimum(job: ExportJob, model: Any, out: Path) -> None:
    from optimum.exporters.onnx import onnx_export_from_model

    onnx_export_from_model(model, out, task=job.task, do_validation=False, no_post_process=True)


def _export_torch(job: ExportJob, model: Any, out: Path) -> None:
    import torch

    names, arguments, shapes = _torch_text(job, model) if job.max_length else _torch_image(job, model)

    class Logits(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        """Takes inputs by position and gives the logits alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(names, inputs, strict=True))).logits

    program = torch.onnx.export(
        Logits().eval(),
        arguments,
        dynamo=True,
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=(shapes,),
    )
    program.save(out / "model.onnx")


def _torch_text(job: ExportJob, model: Any) -> tuple[list[str], tuple[Any, ...], Sequence[Any]]:
    import torch

    names = _text_inputs(_tokenizer(job), model)
    # Sizes 0 and 1 would be burnt into the graph, hence two rows.
    shape = (2, min(16, job.max_length))
    makers = {"input_ids": torch.ones, "attention_mask": torch.ones}
    arguments = tuple(makers.get(name, torch.zeros)(shape, dtype=torch.long) for name in names)
    sizes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length", max=job.max_length)}
    return names, arguments, tuple(sizes for _ in names)


def _torch_image(job: ExportJob, model: Any) -> tuple[list[str], tuple[Any, ...], Sequence[Any]]:
    """The size is the image processor's: a model without a size of its own is traced at the one it will be given."""
    import torch

    pixels = _image_encoder(job, model)(next(iter(inputs_of(job.samples))))["pixel_values"]
    arguments = (torch.zeros((2, *pixels.shape[1:])),)
    return ["pixel_values"], arguments, ({0: torch.export.Dim("batch_size")},)


_EXPORT = {"optimum": _export_optimum, "torch": _export_torch}


def _quieten() -> None:
    """Progress bars have no place in a log."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
