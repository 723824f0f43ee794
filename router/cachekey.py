"""The key of the exact cache: two requests share one iff one's final answer is the other's. Pure."""

from __future__ import annotations

import hashlib

from edgewise.contracts import Input, Reference, Request

_KEY_BYTES = 32
_LENGTH_BYTES = 8


def cache_key(request: Request, *, scope: str | None, model_digest: str, reference: Reference | None) -> bytes:
    """Digest of everything that may change the answer, and of whose it is; budget, session and id may not.

    Each field is preceded by its length, so that no two different requests concatenate to the same bytes.

    Args:
        request: The request, its mode filled in.
        scope: What local answers to the request rest on, such as the certificate in force and its group; or None.
        model_digest: The edge bundle.
        reference: The cloud that answers escalations, or None.

    Returns:
        32 bytes, BLAKE2b.
    """
    digest = hashlib.blake2b(digest_size=_KEY_BYTES, person=b"edgewise.cache.1")
    words = (
        request.tenant,
        request.data_policy.value,
        request.task,
        None if request.mode is None else request.mode.value,
        scope,
        model_digest,
        None if reference is None else reference.name,
        None if reference is None else reference.version,
    )
    for word in words:
        _add(digest, None if word is None else word.encode("utf-8", "surrogatepass"))
    for part in _canonical(request.inputs):
        _add(digest, part)
    return digest.digest()


def _add(digest: hashlib.blake2b, part: bytes | None) -> None:
    if part is None:
        digest.update(b"\0")
    else:
        digest.update(b"\1" + len(part).to_bytes(_LENGTH_BYTES, "big"))
        digest.update(part)


def _canonical(item: Input) -> tuple[bytes, ...]:
    if isinstance(item, str):
        return b"text", item.encode("utf-8", "surrogatepass")
    if isinstance(item, bytes):
        return b"file", item
    return b"array", item.dtype.str.encode(), repr(item.shape).encode(), item.tobytes()
