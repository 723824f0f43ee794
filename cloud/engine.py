"""What computes the answers of a cloud service, and which kind of engine a folder needs.

Owns the `Engine` Protocol, the engine over a bundle, and which of them a folder needs. The choice between the runtimes
of a checkpoint is `choosing`'s, which is imported only for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from edgewise.contracts import Input, LocalModel, Prediction, ServiceInfo
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CheckpointError, ConfigError

Runtime: TypeAlias = Literal["auto", "torch", "onnx"]
RUNTIMES: tuple[Runtime, ...] = ("auto", "torch", "onnx")
"""What may compute a checkpoint, the default first."""


def check_runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        ConfigError: There is none.
    """
    for runtime in RUNTIMES:
        if name == runtime:
            return runtime
    raise ConfigError(f"There is no engine {name!r}.", f"Choose one of: {', '.join(RUNTIMES)}.")


class Engine(Protocol):
    """A model behind a service."""

    @property
    def info(self) -> ServiceInfo:
        """Name, version, task and labels."""
        ...

    @property
    def slots(self) -> int:
        """Threads that may call `predict` at the same time."""
        ...

    def predict(self, inputs: Sequence[Input]) -> list[Prediction]:
        """Predict items, in order; it may compute them together.

        Raises:
            InputError: An item the model cannot read.
        """
        ...


class BundleEngine:
    """A bundle through the edge runtime, with more threads: item by item, because dynamic int8 scales see the batch.

    Args:
        model: The loaded bundle.
        name: Model name.
    """

    def __init__(self, model: LocalModel, name: str) -> None:
        self._model = model
        self._info = ServiceInfo(
            name=name,
            version=model.digest,
            task=model.task,
            labels=model.labels,
            input="image" if model.task.startswith("image") else "text",
            role="cloud",
        )

    @classmethod
    def load(cls, bundle: Path, *, threads: int = 1, name: str | None = None) -> BundleEngine:
        """Verify and load a bundle, and have it answer its golden items, if it has any.

        Raises:
            BundleError: It cannot be read, or is not what its manifest promises.
            CertificateError: A golden item comes out differently on this machine.
        """
        model = EdgeModel.load(bundle, threads=threads)
        if model.bundle.golden():
            model.check_golden()
        return cls(model, name or model.bundle.core.name)

    @property
    def info(self) -> ServiceInfo:
        """Name, version, task and labels."""
        return self._info

    @property
    def slots(self) -> int:
        """One call at a time."""
        return 1

    def predict(self, inputs: Sequence[Input]) -> list[Prediction]:
        """Predict items one by one, in order.

        Raises:
            InputError: An item the model cannot read.
        """
        return self._model.predict(inputs)


def load_engine(
    path: Path,
    *,
    threads: int | None = None,
    task: str | None = None,
    name: str | None = None,
    engine: str = "auto",
    max_slots: int | None = None,
) -> Engine:
    """Load whatever model a folder holds: a bundle (manifest.json) or a Hugging Face checkpoint (config.json).

    Args:
        path: The folder.
        threads: Threads it computes with; None takes every core this process may use.
        task: The task it must be for; None takes any.
        name: Model name; None takes the bundle's own, or the checkpoint folder's.
        engine: What computes a checkpoint: "torch", "onnx", or "auto" for the faster one on this machine, measured now.
            A bundle is ONNX already.
        max_slots: Most calls at the same time that the caller will make; None sets no limit.

    Raises:
        CheckpointError: There is no model, a broken one, or one for another task.
        BundleError: A bundle that cannot be read, or is not what its manifest promises.
        MissingExtraError: A checkpoint, and torch or transformers is not installed.
        ConfigError: `threads` or `max_slots` is below 1, `engine` is unknown, or a bundle was to be run by torch.
    """
    for option, value in (("threads", threads), ("max_slots", max_slots)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is {value}.", "Give 1 or more.")
    loaded = _load(path, threads or probe().cores, name, check_runtime(engine), max_slots)
    if task is not None and task != loaded.info.task:
        raise CheckpointError(f"{path} is for {loaded.info.task}, not for {task}.", f"Give a model for {task}.")
    return loaded


def _load(path: Path, threads: int, name: str | None, runtime: Runtime, max_slots: int | None) -> Engine:
    if (path / "manifest.json").is_file():
        if runtime == "torch":
            raise ConfigError(f"{path} is a bundle, which torch cannot run.", "Leave out the engine.")
        return BundleEngine.load(path, threads=threads, name=name)
    if (path / "config.json").is_file():
        from edgewise.cloud.choosing import checkpoint_engine

        return checkpoint_engine(path, threads=threads, name=name, runtime=runtime, max_slots=max_slots)
    what = "holds neither manifest.json nor config.json" if path.is_dir() else "is no folder"
    raise CheckpointError(f"{path} {what}.", "Give a bundle's folder, or a checkpoint's written by `save_pretrained`.")
