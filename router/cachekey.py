"""The key of the exact cache: two requests share one iff one's final answer is the other's. Pure.

Owns also what makes two requests the same one where they come under the same id.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import msgspec

from edgewise.contracts import Input, Mode, Reference, Request
from edgewise.dialogue import Prompt

_KEY_BYTES = 32
_LENGTH_BYTES = 8
_STEMS = 256
_ITEM = b"edgewise.item.1"


def cache_key(
    request: Request, *, scope: str | None, model_digest: str, reference: Reference | None, mode: Mode | None = None
) -> bytes:
    """Digest of everything that may change the answer, and of whose it is; budget, session and id may not.

    Each field is preceded by its length, so that no two different requests concatenate to the same bytes.

    Args:
        request: The request.
        scope: What local answers to the request rest on, such as the certificate in force and its group; or None.
        model_digest: The edge bundle.
        reference: The cloud that answers escalations, or None.
        mode: The mode that the request falls under; None takes its own.

    Returns:
        32 bytes, BLAKE2b.
    """
    stem = _stem(
        request.tenant,
        request.data_policy,
        request.task,
        request.mode if mode is None else mode,
        scope,
        model_digest,
        None if reference is None else reference.name,
        None if reference is None else reference.version,
    )
    digest = stem.copy()
    digest.update(_framed(*_canonical(request.inputs)))
    if request.attributes:  # a gateway upstream hears of them, and may answer by them
        for label in sorted(request.attributes.items()):
            digest.update(_framed(*(word.encode("utf-8", "surrogatepass") for word in label)))
    return digest.digest()


def item_digest(request: Request) -> bytes:
    """Digest of what is asked, however and by whom: 32 bytes, BLAKE2b, of the task and the item."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES, person=_ITEM)
    digest.update(_framed(request.task.encode("utf-8", "surrogatepass"), *_canonical(request.inputs)))
    return digest.digest()


@lru_cache(maxsize=_STEMS)
def _stem(*words: str | None) -> hashlib.blake2b:
    """The digest of all but the item, which is the same for most requests."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES, person=b"edgewise.cache.1")
    digest.update(_framed(*(None if word is None else word.encode("utf-8", "surrogatepass") for word in words)))
    return digest


def _framed(*parts: bytes | None) -> bytes:
    """Each part after its length; absent ones differ from empty ones."""
    return b"".join(
        [b"\0" if part is None else b"\1%b%b" % (len(part).to_bytes(_LENGTH_BYTES, "big"), part) for part in parts]
    )


def _canonical(item: Input) -> tuple[bytes, ...]:
    if isinstance(item, str):
        return b"text", item.encode("utf-8", "surrogatepass")
    if isinstance(item, bytes):
        return b"file", item
    if isinstance(item, Prompt):
        return b"prompt", msgspec.msgpack.encode(item)
    return b"array", item.dtype.str.encode(), repr(item.shape).encode(), item.tobytes()
