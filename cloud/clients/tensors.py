"""What a model behind the Open Inference Protocol takes and gives, in its own tensors. Pure.

Our own models take "text", "image" or "pixels" and give "label" or "embedding", and need no settings. A model of
somebody else's, behind Triton or KServe, has names and shapes of its own, and may give numbers instead of labels.
Bytes are `wire.oip`'s.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import msgspec

from edgewise.contracts import FINAL_PROVISIONALS, CloudReply, Output, Reference, Request, Status
from edgewise.errors import CloudRefusedError, CloudResponseError, ConfigError, InputError
from edgewise.wire import oip
from edgewise.wire.oip_messages import InferBody

_NUMBERS = ("FP16", "FP32", "FP64", "BF16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")


@dataclass(frozen=True)
class Tensors:
    """Names, shape and labels of a model's tensors.

    Attributes:
        input: Name of the input tensor; None takes ours, by what the item is.
        input_shape: Its shape, of one item: [1], or [1, 1] where the model wants a batch of rows.
        output: Name of the output tensor; None takes ours.
        labels: What the positions of a numeric output stand for: the largest number's is the answer.

    Raises:
        ConfigError: A shape holds other than one item, or there is one label.
    """

    input: str | None = None
    input_shape: tuple[int, ...] = ()
    output: str | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if math.prod(self.input_shape) != 1 or len(self.input_shape) > 8:
            raise ConfigError(f"input_shape is {list(self.input_shape)}.", "Give the shape of one text: [1] or [1, 1].")
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"The labels {list(self.labels)} do not tell answers apart.", "Give one a position.")

    def encoded(
        self, request: Request, left_ms: float, *, wanted_ms: float | None = None, binary: bool = False
    ) -> oip.Framed:
        """An infer request of one item.

        Args:
            request: The request.
            left_ms: For how long an answer is waited for, in milliseconds.
            wanted_ms: When it is wanted, where that is sooner.
            binary: Whether the server takes an item's bytes as they are; texts are sent as JSON all the same.

        Raises:
            CloudRefusedError: The item cannot be written in this protocol.
        """
        is_sooner = wanted_ms is not None and wanted_ms < left_ms
        budget_ms, patience_ms = (wanted_ms, left_ms) if is_sooner else (left_ms, None)
        try:
            if binary and not isinstance(request.inputs, str):
                framed = oip.encode_binary_infer_request(request, budget_ms=budget_ms, patience_ms=patience_ms)
            else:
                framed = oip.Framed(oip.encode_infer_request(request, budget_ms=budget_ms, patience_ms=patience_ms))
        except InputError as error:
            raise CloudRefusedError(error.problem, error.remedy) from error
        except UnicodeEncodeError as error:
            raise CloudRefusedError(
                f"The text cannot be sent as UTF-8: {error.reason}.", "Send valid Unicode."
            ) from error
        return self._renamed(framed, left_ms)

    def _renamed(self, framed: oip.Framed, left_ms: float) -> oip.Framed:
        """The request in the model's own tensor; another maker's server is told the time as its queue's time-out."""
        if self.input is None and not self.input_shape:
            return framed
        body = msgspec.json.decode(framed.body[: framed.json_bytes], type=InferBody)
        (tensor,) = body.inputs
        tensor = msgspec.structs.replace(
            tensor, name=self.input or tensor.name, shape=list(self.input_shape) or tensor.shape
        )
        timeout_us = max(1, int(left_ms * 1000))
        text = msgspec.json.encode(msgspec.structs.replace(body, inputs=[tensor], parameters={"timeout": timeout_us}))
        if framed.json_bytes is None:
            return oip.Framed(text)
        return oip.Framed(text + framed.body[framed.json_bytes :], len(text))

    def reference(self, name: str, version: str) -> Reference:
        """Who answers: labels of ours are part of the version, since another order is another answer."""
        if not self.labels:
            return Reference(name, version)
        digest = hashlib.sha256(msgspec.json.encode((self.output, self.labels))).hexdigest()
        return Reference(name, f"{version}, labels {digest[:16]}")

    def cloud_reply(self, body: bytes, json_bytes: int | None = None) -> CloudReply:
        """The final answer in an infer response.

        Args:
            body: The response.
            json_bytes: Length of its JSON, where tensors follow it as bytes.

        Raises:
            CloudRefusedError: A gateway answered provisionally, and no update will follow.
            CloudResponseError: It is no final answer of a named version.
        """
        reply = oip.decode_infer_response(body, json_bytes)
        if not reply.model_version:
            raise CloudResponseError(
                f"The model {reply.model_name} does not say which version answered.",
                "Serve it with a version; a certificate speaks of one version only.",
            )
        if reply.status() is not Status.FINAL and _is_last_word(reply):
            raise CloudRefusedError(
                f"The model {reply.model_name} answered provisionally: its cloud refuses this item, or is not asked.",
                "Change the item, or the policy of the service behind that gateway.",
            )
        if reply.status() is not Status.FINAL:
            raise CloudResponseError(
                f"The model {reply.model_name} answered provisionally: its own cloud did not answer.",
                "Check the service behind that gateway.",
            )
        return CloudReply(self._output(reply), self.reference(reply.model_name, reply.model_version))

    def _output(self, reply: oip.InferReply) -> Output:
        if self.output is None and not self.labels:
            return reply.output()
        tensor = reply.tensor(self.output or "label")
        if tensor.datatype == "BYTES" and len(tensor.data) == 1 and isinstance(tensor.data[0], str):
            return str(tensor.data[0])
        if tensor.datatype not in _NUMBERS or not _are_numbers(tensor.data):
            raise CloudResponseError(
                f"The model {reply.model_name} sent in '{tensor.name}' neither one text nor finite numbers."
            )
        if not self.labels:
            return tuple(float(number) for number in tensor.data)
        if len(tensor.data) != len(self.labels):
            raise CloudResponseError(
                f"The model {reply.model_name} sent {len(tensor.data)} numbers in '{tensor.name}' for "
                f"{len(self.labels)} labels.",
                "List the labels in the order of the model's output.",
            )
        return self.labels[tensor.data.index(max(tensor.data))]


def _are_numbers(data: list[object]) -> bool:
    return bool(data) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) for number in data
    )


def _is_last_word(reply: oip.InferReply) -> bool:
    """Whether a gateway gives as its reason that no final answer will follow its provisional one."""
    reasons = [tensor.data for tensor in reply.outputs if tensor.name == "reason"]
    return any([reason] in reasons for reason in FINAL_PROVISIONALS)
