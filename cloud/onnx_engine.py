"""A checkpoint through onnxruntime: its export to a graph, kept for the next start, and its forward pass.

Owns the export, the folder that keeps it, and sessions over it. Whether it is used at all is decided in `choosing`,
which also proves that it answers as torch does.

The graph is float32 and gives the model's own output, so that everything around it is the same code for both runtimes.
It is kept in a folder of the user's, by what shapes it: the checkpoint's version and the versions of the exporter.
The checkpoint itself stays as it was given.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.cloud.checkpoint import Checkpoint
from edgewise.cloud.checkpoint_engine import CheckpointEngine
from edgewise.cloud.readers import TextReader
from edgewise.cloud.torch_engine import TorchModel
from edgewise.contracts import FloatArray
from edgewise.edge.session import Session
from edgewise.errors import CheckpointError, MissingExtraError, OutputExistsError
from edgewise.files import sha256_bytes, sha256_file, staged_directory

_log = logging.getLogger(__name__)

_LAYOUT = "1"
"""Of the folder and the graph; another one exports anew."""

_GRAPH, _DIGEST = "model.onnx", "sha256"


class OnnxForward:
    """A graph's forward pass; may be called from several threads at once.

    Args:
        graph: The exported graph.
        output: Name of its output.
        threads: Threads of one call.

    Raises:
        EdgewiseError: onnxruntime cannot open the graph.
    """

    def __init__(self, graph: Path, output: str, threads: int) -> None:
        self._session = Session(graph, threads=threads)
        self._outputs = [output]

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> FloatArray:
        """Compute a batch; see `Forward`."""
        (answers,) = self._session.run(feeds, self._outputs)
        return answers


def onnx_engine(loaded: TorchModel, graph: Path, *, threads: int, slots: int, name: str | None) -> CheckpointEngine:
    """An engine over an exported graph: `slots` calls at a time, `threads` threads each.

    Raises:
        EdgewiseError: onnxruntime cannot open the graph.
    """
    forward = OnnxForward(graph, loaded.output, threads)
    return CheckpointEngine(
        forward, loaded.reader, loaded.found, name=name, runtime="onnx", slots=slots, max_group=loaded.max_group
    )


def exported(loaded: TorchModel, *, cache: Path | None = None) -> Path:
    """The checkpoint's graph: the one kept from another start where it is whole, else a fresh one.

    Args:
        loaded: The checkpoint.
        cache: Where graphs are kept; None takes the user's cache folder.

    Raises:
        CheckpointError: The exporter cannot export it, or the folder cannot be written.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    if any(find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise MissingExtraError("Serving a checkpoint through onnxruntime", "cloud")
    folder = (cache or default_cache()) / _key(loaded.found)
    try:
        with _alone(folder):
            if not _is_whole(folder):
                _export_into(folder, loaded)
    except OSError as error:
        raise CheckpointError(
            f"The exported graph cannot be kept in {folder}: {error.strerror}.", "Set XDG_CACHE_HOME to another folder."
        ) from error
    return folder / _GRAPH


def default_cache() -> Path:
    """The folder of this user that keeps exported graphs (XDG Base Directory Specification 0.8)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "edgewise" / "onnx"


def _key(found: Checkpoint) -> str:
    tools = [f"{name} {version(name)}" for name in ("torch", "transformers", "onnx", "onnxscript")]
    return sha256_bytes("\0".join([_LAYOUT, found.version, found.task, *tools]).encode())


def _is_whole(folder: Path) -> bool:
    """Whether the folder holds a graph whose bytes are those that were exported."""
    try:
        return (folder / _DIGEST).read_text(encoding="ascii") == _digest(folder)
    except (OSError, ValueError):
        return False


def _digest(folder: Path) -> str:
    """Of the graph, and of the file of its weights where it is too large to hold them."""
    parts = [f"{file.name} {sha256_file(file)}" for file in sorted(folder.glob(f"{_GRAPH}*"))]
    return sha256_bytes("\n".join(parts).encode())


def _export_into(folder: Path, loaded: TorchModel) -> None:
    """Replace the folder by a fresh export; it appears whole, or not at all."""
    if folder.exists():
        # Broken: moved out of the way at once, so that nobody takes it for whole.
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            folder.rename(Path(aside) / "broken")
    try:
        with staged_directory(folder) as staged:
            _export(loaded, staged / _GRAPH)
            (staged / _DIGEST).write_text(_digest(staged), encoding="ascii")
    except OutputExistsError:
        _log.debug("Another process exported %s meanwhile.", loaded.found.path)


def _export(loaded: TorchModel, graph: Path) -> None:
    import torch

    names = loaded.inputs
    output = loaded.output

    class Answers(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        """Takes inputs by position and gives the answers alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = loaded.model

        def forward(self, *inputs: Any) -> Any:
            return getattr(self.model(**dict(zip(names, inputs, strict=True))), output)

    example, sizes = _example(loaded)
    with _quiet_export(), _translated(loaded.found):
        program = torch.onnx.export(
            Answers().eval(),
            tuple(torch.from_numpy(example[name]) for name in names),
            dynamo=True,
            input_names=names,
            output_names=[output],
            dynamic_shapes=(tuple(sizes for _ in names),),
            verbose=False,
        )
        program.save(graph)


def _example(loaded: TorchModel) -> tuple[Mapping[str, NDArray[Any]], Mapping[int, Any]]:
    """What the model is traced with, and the sizes that may change: items, and of texts their tokens."""
    import torch

    reader = loaded.reader
    items = torch.export.Dim("items")
    if not isinstance(reader, TextReader):
        # Sizes 0 and 1 would be burnt into the graph, hence two items.
        image = np.zeros((64, 64), dtype=np.uint8)
        return reader.stack(reader.read([image, image])), {0: items}
    longest = reader.max_length or _LONGEST
    shape = (2, min(16, longest))
    example = {name: np.zeros(shape, dtype=np.int64) for name in loaded.inputs}
    for name in ("input_ids", "attention_mask"):
        example[name] = np.ones(shape, dtype=np.int64)
    return example, {0: items, 1: torch.export.Dim("tokens", max=longest)}


_LONGEST = 8192
"""Tokens of a text where neither tokenizer nor model names a limit."""


@contextmanager
def _translated(found: Checkpoint) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # exporters raise whatever a layer raises
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{found.path} cannot be exported to ONNX: {first}", "Serve it through torch: --engine torch."
        ) from error


@contextmanager
def _quiet_export() -> Iterator[None]:
    """The exporter warns of names it changes and logs what it skips: none of it is the user's to act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time export into a folder: several that start together wait for the first.

    Raises:
        OSError: The lock cannot be kept there.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
