"""Prepares an ONNX file for packing: read, check, strip what varies, take the large weights out.

Owns everything that needs the `onnx` package (extra "quantize"), imported only when something is packed. Knows nothing
of manifests and folders. Whatever could differ between two exports of the same model without changing what it computes
is stripped: doc strings, metadata, producer, training information; they also hold paths of the exporting machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgewise.bundle.manifest import TensorSpec
from edgewise.errors import InputError, MissingExtraError

LARGE_WEIGHT_BYTES = 64 << 10
_REMEDY = "Export the model again, and check it with onnx.checker."


@dataclass(frozen=True)
class GraphFacts:
    """What an ONNX file says of itself.

    Attributes:
        inputs: Its inputs, initializers left out.
        outputs: Its outputs.
        opset: Its ai.onnx opset.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int


def load_onnx() -> ModuleType:
    """The `onnx` package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnx
        import onnx.external_data_helper
        import onnx.numpy_helper
    except ImportError as e:
        raise MissingExtraError("Packing a bundle", "quantize") from e
    return onnx  # type: ignore[no-any-return]  # onnx ships no types


def read_model(path: Path) -> Any:
    """Read an ONNX file with its external data, checked and stripped of what does not matter.

    Returns:
        A ModelProto that holds all its weights.

    Raises:
        InputError: Not an ONNX model, a weight file is missing, or a weight is not a number.
        MissingExtraError: `onnx` is not installed.
    """
    onnx = load_onnx()
    _require_file(path)
    model = _parse(onnx, path)
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(str(path))
    except Exception as e:  # onnx raises protobuf's, its checker's and the system's errors
        raise InputError(f"{path} is not a readable ONNX model: {_first_line(e)}.", _REMEDY) from e
    return _cleaned(onnx, model, path)


def open_model(path: Path) -> Any:
    """As `read_model`, but weights in files beside the graph stay there: `stored_weights` brings them one by one.

    Nor does onnx's checker see it: it refuses the operators that onnxruntime keeps in the standard domain.

    Raises:
        InputError: Not an ONNX model, or a weight in the graph is not a number.
        MissingExtraError: `onnx` is not installed.
    """
    onnx = load_onnx()
    _require_file(path)
    return _cleaned(onnx, _parse(onnx, path), path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"There is no ONNX file at {path}.", "Give the path of a .onnx file.")


def _parse(onnx: ModuleType, path: Path) -> Any:
    try:
        return onnx.load_model(path, load_external_data=False)
    except Exception as e:  # onnx raises protobuf's and the system's errors
        raise InputError(f"{path} is not a readable ONNX model: {_first_line(e)}.", _REMEDY) from e


def _cleaned(onnx: ModuleType, model: Any, path: Path) -> Any:
    if not model.graph.node:
        raise InputError(f"The ONNX file {path} holds an empty graph.", _REMEDY)
    _strip(model)
    _check_weights(onnx, model, path)
    return model


def graph_facts(model: Any) -> GraphFacts:
    """Inputs, outputs and opset of a ModelProto.

    Raises:
        InputError: It has no ai.onnx opset, or an input or output that is not a tensor.
    """
    onnx = load_onnx()
    weights = {tensor.name for tensor in model.graph.initializer}
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None:
        raise InputError("The ONNX model imports no ai.onnx opset.", _REMEDY)
    inputs = tuple(_spec(onnx, value) for value in model.graph.input if value.name not in weights)
    return GraphFacts(inputs, tuple(_spec(onnx, value) for value in model.graph.output), opset)


def read_facts(path: Path) -> GraphFacts:
    """Inputs, outputs and opset of an ONNX file, without its weights.

    Raises:
        InputError: Not an ONNX model.
        MissingExtraError: `onnx` is not installed.
    """
    return graph_facts(_parse(load_onnx(), path))


def weight_files(path: Path) -> tuple[Path, ...]:
    """Files beside an ONNX file that hold its external data, sorted.

    Raises:
        InputError: Not an ONNX model, a file is missing, or it lies outside the folder.
        MissingExtraError: `onnx` is not installed.
    """
    model = _parse(load_onnx(), path)
    places = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    files = tuple(path.parent / place for place in sorted(places))
    for file in files:
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise InputError(f"The weights of {path} lie outside its folder, in {file}.", "Save it with its weights.")
        if not file.is_file():
            raise InputError(f"{path} lacks its weights {file.name}.", "Put the file beside it.")
    return files


def large_weights(model: Any) -> Iterator[tuple[Any, bytes]]:
    """Each initializer of 64 KiB and more, with its raw little-endian bytes."""
    onnx = load_onnx()
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING:
            continue
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
        if len(tensor.raw_data) >= LARGE_WEIGHT_BYTES:
            yield tensor, tensor.raw_data


def stored_weights(model: Any, folder: Path) -> Iterator[tuple[Any, bytes]]:
    """Each initializer of 64 KiB and more of an opened model, with its raw little-endian bytes, one at a time.

    The bytes never enter the model: protobuf would keep them until the whole model is freed. Smaller initializers do.

    Args:
        model: What `open_model` gave.
        folder: Where the files lie that it names.

    Raises:
        InputError: A file is missing or too short, lies elsewhere, or a weight holds NaN or infinity.
    """
    onnx = load_onnx()
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            if len(tensor.raw_data) >= LARGE_WEIGHT_BYTES:
                yield tensor, tensor.raw_data
            continue
        data = _stored(onnx, tensor, folder)
        _check_finite(onnx, tensor, data)
        if len(data) >= LARGE_WEIGHT_BYTES:
            yield tensor, data
        else:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = data


def _stored(onnx: ModuleType, tensor: Any, folder: Path) -> bytes:
    where = onnx.external_data_helper.ExternalDataInfo(tensor)
    path = folder / where.location
    if not where.location or Path(where.location).name != where.location or path.is_symlink():
        raise InputError(f"The weight {tensor.name!r} names the file {where.location!r}.", "Keep it beside the graph.")
    try:
        with path.open("rb") as stream:
            stream.seek(where.offset or 0)
            data: bytes = stream.read(where.length if where.length is not None else -1)
    except OSError as e:
        raise InputError(f"The weight {tensor.name!r} cannot be read: {e.strerror or e}.", _REMEDY) from e
    width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    promised = where.length if where.length is not None else math.prod(tensor.dims) * width
    if len(data) != promised:
        raise InputError(f"The weight {tensor.name!r} has {len(data)} of {promised} bytes in {path.name}.", _REMEDY)
    return data


def _check_finite(onnx: ModuleType, tensor: Any, data: bytes) -> None:
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if dtype.kind == "f":
        values = np.frombuffer(data, dtype)
        if np.isnan(values).any() or (values.size > 1 and not np.isfinite(values).all()):
            raise InputError(f"The weight {tensor.name!r} holds NaN or infinity.", "Check the checkpoint.")


def move_out(tensor: Any, location: str, size: int) -> None:
    """Make a tensor refer to a file beside the graph instead of holding its bytes, or to another file than it did."""
    onnx = load_onnx()
    if not tensor.HasField("raw_data"):
        tensor.raw_data = b""  # the helper asks for the field, not for what is in it
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=size)
    tensor.ClearField("raw_data")


def _spec(onnx: ModuleType, value: Any) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        raise InputError(f"The graph's {value.name!r} is not a tensor.", "edgewise runs graphs of tensors only.")
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return TensorSpec(value.name, dtype, tuple(_dimension(dim) for dim in tensor.shape.dim))


def _dimension(dim: Any) -> int | str:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or "?"


def _strip(model: Any) -> None:
    """Clear what does not change the computation, in every message of the model."""
    for field in ("producer_name", "producer_version", "domain", "model_version", "training_info"):
        model.ClearField(field)
    for message in _messages(model):
        for field in ("doc_string", "metadata_props"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
        if message.DESCRIPTOR.name == "TensorProto" and not message.external_data:
            message.ClearField("data_location")  # loading external data leaves the default spelled out


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(child)


def _check_weights(onnx: ModuleType, model: Any, path: Path) -> None:
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    for tensor in (message for message in _messages(model) if message.DESCRIPTOR.name == "TensorProto"):
        if tensor.data_type not in floats or tensor.external_data:
            continue
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32, copy=False)
        # Exporters write an attention mask's fill value as a single infinity; in a real weight it is damage.
        damaged = np.isnan(values).any() or (values.size > 1 and not np.isfinite(values).all())
        if damaged:
            raise InputError(f"The weight {tensor.name!r} of {path} holds NaN or infinity.", "Check the checkpoint.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
