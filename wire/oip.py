"""The Open Inference Protocol v2 over HTTP, both halves, as pure functions between bytes and values.

Gathers `oip_server` with `oip_inputs` and `oip_outputs`, `oip_client`, `oip_binary` and `oip_messages`, which do no
I/O. Specification: Open Inference Protocol, `inference_rest.md`, with the binary tensor data extension.

Input, N items in one of: "text" BYTES [N]; "image" BYTES [N], encoded files as base64; "pixels" UINT8 or FP32,
[N, height, width] or [N, height, width, channels]. [N, 1] is taken for [N]. Data may be flat or nested. As bytes
behind the JSON, texts are UTF-8, image files are themselves, and pixels are little-endian.
Request parameters: `budget_ms`, `mode`, `profile`, `data_policy`, `session`, `attributes` (the text of a JSON object,
for a parameter is one text, number or truth value); others are ignored, as the protocol says.

Output: "label" BYTES [N] (or "embedding" FP32 [N, width]), "status", "source" and "reason" BYTES [N], "score" FP64 [N].
A score that is not a finite number is null, as bytes NaN. Response parameters: `provisional`, the number of items whose
answer may still change; `total_ms`, of the slowest item; and, where all items agree on it, `model_digest`, `policy` and
`certificate_id`. Item i of a request `id` is answered under "id" if N is 1 and under "id-i" otherwise.
"""

from edgewise.wire.oip_binary import CONTENT_TYPE, EXTENSION, HEADER, Framed
from edgewise.wire.oip_client import (
    decode_error,
    decode_infer_response,
    decode_model_metadata,
    encode_binary_infer_request,
    encode_infer_request,
)
from edgewise.wire.oip_messages import InferCall, InferReply, ModelMetadata, OutputTensor, TensorMetadata
from edgewise.wire.oip_outputs import (
    encode_error,
    encode_infer_response,
    encode_model_metadata,
    encode_server_metadata,
)
from edgewise.wire.oip_server import DEFAULT_MAX_ITEMS, decode_infer_request, item_ids

__all__ = [
    "CONTENT_TYPE",
    "DEFAULT_MAX_ITEMS",
    "EXTENSION",
    "HEADER",
    "Framed",
    "InferCall",
    "InferReply",
    "ModelMetadata",
    "OutputTensor",
    "TensorMetadata",
    "decode_error",
    "decode_infer_request",
    "decode_infer_response",
    "decode_model_metadata",
    "encode_binary_infer_request",
    "encode_error",
    "encode_infer_request",
    "encode_infer_response",
    "encode_model_metadata",
    "encode_server_metadata",
    "item_ids",
]
