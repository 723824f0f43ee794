"""The key of the exact cache. Pure: two requests share a key iff one's final answer is the other's."""

from __future__ import annotations

import hashlib

from edgewise.contracts import Input, Mode, Request


def cache_key(request: Request, *, mode: Mode, model_digest: str, certificate_id: str, cloud_version: str) -> bytes:
    """Digest, 32 bytes, of everything an answer depends on and of whose it is.

    Args:
        request: The request; its tenant, task, data policy and inputs count, its id, budget and session do not.
        mode: Its mode, the default filled in.
        model_digest: The edge model.
        certificate_id: The certificate in force, or empty.
        cloud_version: Version of the cloud that escalations ask, or empty.
    """
    digest = hashlib.blake2b(digest_size=32)
    named = (request.tenant, request.task, request.data_policy, mode, model_digest, certificate_id, cloud_version)
    for part in (*(text.encode() for text in named), *_input_parts(request.inputs)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _input_parts(item: Input) -> tuple[bytes, ...]:
    if isinstance(item, str):
        return (b"text", item.encode("utf-8", "surrogatepass"))
    if isinstance(item, bytes):
        return (b"file", item)
    return (b"pixels", str(item.dtype).encode(), repr(item.shape).encode(), item.tobytes())
