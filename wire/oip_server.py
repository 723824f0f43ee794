"""The server's half of an infer request: its body becomes requests of the flow.

Owns ids, parameters and the choice of outputs; items are `oip_inputs`'s. Does no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edgewise.contracts import DataPolicy, Mode, Request, ServiceInfo
from edgewise.errors import RequestError
from edgewise.wire import oip_binary
from edgewise.wire.oip_binary import FrameError
from edgewise.wire.oip_inputs import decode_items
from edgewise.wire.oip_messages import InferBody, InferCall, RequestedOutput
from edgewise.wire.oip_outputs import output_names
from edgewise.wire.parsing import (
    DEFAULT_MAX_BUDGET_MS,
    checked_attributes,
    checked_budget,
    checked_choice,
    checked_id,
    checked_text,
    decode_json,
    shown,
)

DEFAULT_MAX_ITEMS = 64

_REQUEST_FIELDS = ("id", "parameters", "inputs", "outputs")
_HEADER = oip_binary.HEADER.decode()

_request_decoder = msgspec.json.Decoder(InferBody)
_attributes_decoder = msgspec.json.Decoder(dict[str, str])


def decode_infer_request(
    body: bytes,
    info: ServiceInfo,
    *,
    tenant: str,
    new_id: Callable[[], str],
    json_length: bytes | None = None,
    max_items: int = DEFAULT_MAX_ITEMS,
    max_budget_ms: float = DEFAULT_MAX_BUDGET_MS,
    arrived_s: float | None = None,
) -> InferCall:
    """Read an infer request as N requests of the flow.

    Args:
        body: What the client sent: JSON, and the bytes of tensors behind it.
        info: The service that will answer; says which inputs and outputs exist.
        tenant: Whose it is.
        new_id: Makes an id where the client gave none.
        json_length: The header `Inference-Header-Content-Length`; None where there is none, and all of it is JSON.
        max_items: The largest N taken.
        max_budget_ms: The largest budget taken, in milliseconds.
        arrived_s: When its head was here, in monotonic seconds.

    Raises:
        RequestError: It is not an infer request for this service; names the field.
    """
    try:
        text, chunks = oip_binary.split(body, _checked_length(json_length))
    except FrameError as error:
        raise RequestError(_HEADER, f"{_HEADER}: {error}", "Send the length of the JSON in bytes.") from error
    sent = decode_json(text, _request_decoder, _REQUEST_FIELDS)
    items = decode_items(sent.inputs, chunks, info, max_items)
    call_id = checked_id(sent.id) if sent.id else new_id()
    options = _decode_options(sent.parameters, max_budget_ms)
    requests = tuple(
        Request(id=item_id, inputs=item, tenant=tenant, arrived_s=arrived_s, **options)
        for item_id, item in zip(item_ids(call_id, len(items)), items, strict=True)
    )
    outputs = _checked_outputs(sent.outputs, info)
    return InferCall(call_id, requests, outputs, _binary_outputs(sent, outputs))


def item_ids(call_id: str, count: int) -> list[str]:
    """The request ids of the items of one infer request."""
    return [call_id] if count == 1 else [f"{call_id}-{index}" for index in range(count)]


def _checked_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise RequestError(
            _HEADER,
            f"{_HEADER}: {shown(value.decode('latin-1'))} is no length.",
            "Send the length of the JSON in bytes.",
        )
    return int(value)


def _decode_options(parameters: Mapping[str, Any], max_budget_ms: float) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parameters.items():
        field = f"parameters.{name}"
        if value is None:
            continue
        if name in ("budget_ms", "patience_ms"):
            options[name] = checked_budget(_checked_number(value, field), field, max_budget_ms)
        elif name == "mode":
            options[name] = checked_choice(value, Mode, field)
        elif name == "data_policy":
            options[name] = checked_choice(value, DataPolicy, field)
        elif name == "profile":
            options[name] = checked_text(value, field)
        elif name == "session":
            options[name] = checked_id(checked_text(value, field), field)
        elif name == "attributes":
            options[name] = _decode_attributes(value, field)
    if options.get("patience_ms", math.inf) < options.get("budget_ms", 0.0):
        raise RequestError(
            "parameters.patience_ms",
            f"parameters.patience_ms: {options['patience_ms']:g} is less than budget_ms, {options['budget_ms']:g}.",
            "Send as much as budget_ms or more, or leave it out.",
        )
    return options


def _decode_attributes(value: object, field: str) -> dict[str, str]:
    """Labels as the text of a JSON object: a parameter of this protocol is one text, number or truth value."""
    remedy = 'Send the text of a JSON object of texts, such as "{\\"country\\": \\"nl\\"}".'
    if not isinstance(value, str):
        raise RequestError(field, f"{field}: {shown(value)} is not a text.", remedy)
    try:
        return checked_attributes(_attributes_decoder.decode(value), field)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(field, f"{field}: not a JSON object of texts ({error}).", remedy) from error


def _checked_number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(field, f"{field}: {shown(value)} is not a number.", "Send a number of milliseconds.")
    try:
        return float(value)
    except OverflowError:  # a whole number beyond any float; out of range like any other too large
        return math.inf if value > 0 else -math.inf


def _checked_outputs(requested: Sequence[RequestedOutput], info: ServiceInfo) -> tuple[str, ...]:
    offered = output_names(info)
    for index, output in enumerate(requested):
        if output.name not in offered:
            field = f"outputs[{index}].name"
            raise RequestError(
                field, f"{field}: {shown(output.name)} is not an output.", f"Choose from: {', '.join(offered)}."
            )
    return tuple(dict.fromkeys(output.name for output in requested)) or offered


def _binary_outputs(sent: InferBody, outputs: Sequence[str]) -> frozenset[str]:
    """The outputs that the client wants as bytes: each says so, or the request says it for all that do not."""
    default = _checked_flag(sent.parameters.get("binary_data_output"), "parameters.binary_data_output", False)
    wanted = dict.fromkeys(outputs, default)
    for index, output in enumerate(sent.outputs):
        field = f"outputs[{index}].parameters.binary_data"
        wanted[output.name] = _checked_flag(output.parameters.get("binary_data"), field, default)
    return frozenset(name for name, is_wanted in wanted.items() if is_wanted)


def _checked_flag(value: object, field: str, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(field, f"{field}: {shown(value)} is neither true nor false.", "Send true or false.")
    return value
