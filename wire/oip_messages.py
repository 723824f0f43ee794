"""The messages of the Open Inference Protocol as values; owns their shapes, and no rule about what they mean."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from edgewise.contracts import Output, Request, Status
from edgewise.errors import CloudResponseError
from edgewise.wire.parsing import shown

Parameter: TypeAlias = str | int | float | bool | None


class InputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}  # msgspec copies an empty default


class RequestedOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output that the client asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The body of `POST /v2/models/{name}/infer`."""

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] = []


class InferCall(msgspec.Struct, frozen=True):
    """One decoded infer request.

    Attributes:
        id: The client's id, or a new one; the response carries it.
        requests: One request an item, in order.
        outputs: Names of the outputs to send, in order.
        binary: Those of them to send as bytes.
    """

    id: str
    requests: tuple[Request, ...]
    outputs: tuple[str, ...]
    binary: frozenset[str] = frozenset()


class OutputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output of a response; `data` is flat, row-major, and left out of the JSON where bytes behind it have it."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] = []
    parameters: dict[str, Any] = {}


class InferReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of an infer response, as a server writes it and as a client reads it.

    Attributes:
        model_name: The model that answered.
        model_version: Its version; empty where the server does not say.
        id: The request's id; empty where the server does not echo it.
        parameters: Facts about the whole response.
        outputs: The tensors.
    """

    model_name: str
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Parameter] = {}
    outputs: list[OutputTensor]

    def tensor(self, name: str) -> OutputTensor:
        """The output of that name.

        Raises:
            CloudResponseError: There is none.
        """
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        names = ", ".join(tensor.name for tensor in self.outputs) or "nothing"
        raise CloudResponseError(
            f"The model {self.model_name} sent no output '{name}' but {names}.", "Point at a model that sends it."
        )

    def output(self, index: int = 0) -> Output:
        """The label of item `index`, or its vector where the model sends "embedding".

        Raises:
            CloudResponseError: There is neither, or not for that item.
        """
        if any(tensor.name == "embedding" for tensor in self.outputs):
            return _row_of(self.tensor("embedding"), index)
        return self._text("label", index)

    def status(self, index: int = 0) -> Status:
        """Whether item `index` may still change; a server that does not say gives final answers.

        Raises:
            CloudResponseError: The server says something else.
        """
        if all(tensor.name != "status" for tensor in self.outputs):
            return Status.FINAL
        text = self._text("status", index)
        try:
            return Status(text)
        except ValueError as error:
            raise CloudResponseError(f"The model {self.model_name} sent the status {shown(text)}.") from error

    def _text(self, name: str, index: int) -> str:
        data = self.tensor(name).data
        if index >= len(data) or not isinstance(data[index], str):
            raise CloudResponseError(f"The model {self.model_name} sent no text in '{name}' for item {index}.")
        text: str = data[index]
        return text


class TensorMetadata(msgspec.Struct, frozen=True):
    """One input or output in a model's metadata; -1 in a shape is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `GET /v2/models/{name}`."""

    name: str
    versions: list[str] = []
    platform: str = ""
    inputs: list[TensorMetadata] = []
    outputs: list[TensorMetadata] = []
    parameters: dict[str, Any] = {}


def _row_of(tensor: OutputTensor, index: int) -> tuple[float, ...]:
    width = tensor.shape[-1] if len(tensor.shape) == 2 else 0
    row = tensor.data[index * width : (index + 1) * width]
    if not row or not all(isinstance(number, int | float) for number in row):
        raise CloudResponseError(f"The server sent no vector in '{tensor.name}' for item {index}.")
    try:
        return tuple(float(number) for number in row)
    except OverflowError as error:  # a whole number beyond any float
        raise CloudResponseError(f"The server sent a number beyond any float in '{tensor.name}'.") from error
