"""Answers become the tensors of an infer response; and what a server and its models say of themselves.

Owns which output tensors stand for what (documented in `edgewise.wire.oip`) and does no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from edgewise import __version__
from edgewise.contracts import Answer, Output, ServiceInfo, Status
from edgewise.wire import oip_binary
from edgewise.wire.oip_binary import Framed
from edgewise.wire.oip_messages import InferCall, InferReply, ModelMetadata, OutputTensor, Parameter, TensorMetadata

_EMBEDDING_TASK = "feature-extraction"

_encoder = msgspec.json.Encoder()


def encode_infer_response(info: ServiceInfo, call: InferCall, answers: Sequence[Answer]) -> Framed:
    """Write the answers to the items of `call`, in its order."""
    columns = [_column(name, answers) for name in call.outputs]
    chunks = [_packed(column) if column.name in call.binary else None for column in columns]
    reply = InferReply(
        model_name=info.name,
        model_version=_version(info, answers),
        id=call.id,
        parameters=_facts(answers),
        outputs=[_announced(column, chunk) for column, chunk in zip(columns, chunks, strict=True)],
    )
    text = _encoder.encode(reply)
    if not call.binary:
        return Framed(text)
    return Framed(b"".join([text, *(chunk for chunk in chunks if chunk is not None)]), len(text))


def _version(info: ServiceInfo, answers: Sequence[Answer]) -> str:
    """The version that computed the answers: a cloud's model may be swapped while a request is on its way to it."""
    computed = {answer.model_digest for answer in answers}
    return computed.pop() if info.role == "cloud" and len(computed) == 1 else info.version


def _column(name: str, answers: Sequence[Answer]) -> OutputTensor:
    count = len(answers)
    if name == "score":
        return OutputTensor(name, "FP64", [count], [_finite(answer.decision.score) for answer in answers])
    if name == "embedding":
        vectors = [answer.output for answer in answers]
        flat = [number for vector in vectors for number in vector]
        return OutputTensor(name, "FP32", [count, len(vectors[0])], flat)
    return OutputTensor(name, "BYTES", [count], [_WORDS[name](answer) for answer in answers])


_WORDS: dict[str, Callable[[Answer], Output]] = {
    "label": lambda answer: answer.output,
    "status": lambda answer: answer.status.value,
    "source": lambda answer: answer.source.value,
    "reason": lambda answer: answer.decision.reason.value,
}


def _packed(column: OutputTensor) -> bytes:
    if column.datatype == "BYTES":
        return oip_binary.joined(str(word).encode() for word in column.data)
    return oip_binary.packed(
        np.array([math.nan if number is None else number for number in column.data]), column.datatype
    )


def _announced(column: OutputTensor, chunk: bytes | None) -> OutputTensor:
    if chunk is None:
        return column
    return OutputTensor(column.name, column.datatype, column.shape, parameters={oip_binary.SIZE: len(chunk)})


def _facts(answers: Sequence[Answer]) -> dict[str, Parameter]:
    facts: dict[str, Parameter] = {
        "provisional": sum(answer.status is Status.PROVISIONAL for answer in answers),
        "total_ms": max(answer.timings_ms["total"] for answer in answers),
    }
    shared: dict[str, set[str | None]] = {
        "model_digest": {answer.model_digest for answer in answers},
        "policy": {answer.decision.policy for answer in answers},
        "certificate_id": {answer.decision.certificate_id for answer in answers},
    }
    facts.update({name: values.pop() for name, values in shared.items() if len(values) == 1 and None not in values})
    return facts


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def encode_error(message: str) -> bytes:
    """Write an error in the protocol's shape, `{"error": message}`."""
    return _encoder.encode({"error": message})


def encode_server_metadata() -> bytes:
    """Write the body of `GET /v2`."""
    return _encoder.encode({"name": "edgewise", "version": __version__, "extensions": [oip_binary.EXTENSION]})


def encode_model_metadata(info: ServiceInfo) -> bytes:
    """Write the body of `GET /v2/models/{name}`; `parameters` carry the task, the labels and the role."""
    metadata = ModelMetadata(
        name=info.name,
        versions=[info.version],
        platform="edgewise",
        inputs=_input_metadata(info),
        outputs=_output_metadata(info),
        parameters={"task": info.task, "labels": list(info.labels), "role": info.role},
    )
    return _encoder.encode(metadata)


def _input_metadata(info: ServiceInfo) -> list[TensorMetadata]:
    if info.input == "text":
        return [TensorMetadata("text", "BYTES", [-1])]
    return [TensorMetadata("image", "BYTES", [-1]), TensorMetadata("pixels", "UINT8", [-1, -1, -1, -1])]


def output_names(info: ServiceInfo) -> tuple[str, ...]:
    """The outputs that a model offers, in order."""
    return tuple(tensor.name for tensor in _output_metadata(info))


def _output_metadata(info: ServiceInfo) -> list[TensorMetadata]:
    first = (
        TensorMetadata("embedding", "FP32", [-1, -1])
        if info.task == _EMBEDDING_TASK
        else TensorMetadata("label", "BYTES", [-1])
    )
    words = [TensorMetadata(name, "BYTES", [-1]) for name in ("status", "source", "reason")]
    return [first, *words, TensorMetadata("score", "FP64", [-1])]
