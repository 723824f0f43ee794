"""What a client is told when a request fails: the one place where errors become status codes.

Owns codes and words; writes neither payloads nor tracebacks to clients or logs.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping

from edgewise.errors import (
    CloudError,
    CloudRefusedError,
    CloudTimeoutError,
    EdgewiseError,
    InputError,
    OutboxFullError,
    PromptTooLongError,
    RequestError,
    StoreError,
    frames,
)
from edgewise.wire import native, oip, openai

_log = logging.getLogger("edgewise.wire")

RETRY_AFTER_S = 1
"""Seconds after which a client told to come back may do so."""


class Fault(Exception):  # noqa: N818  not every fault is an error of ours
    """A reply that is not an answer.

    Args:
        status: The HTTP status code.
        code: The word for programs and metrics.
        message: What was wrong.
        field: The field at fault, where there is one.
        remedy: What the client can do.
        headers: Further headers of the reply.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str = "",
        remedy: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.remedy = remedy
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("retry-after", str(RETRY_AFTER_S))

    def body(self, path: str) -> bytes:
        """The fault in the shape of the protocol that `path` belongs to."""
        if path.startswith("/v2"):
            return oip.encode_error(f"{self.message} {self.remedy}".strip())
        if openai.is_ours(path):
            message = f"{self.message} {self.remedy}".strip()
            field = _PROMPTS.get(path, "") if not self.field and self.code == TOO_LONG else self.field
            return openai.encode_error(self.status, self.code, message, field=field)
        return native.encode_error(self.code, self.message, field=self.field, remedy=self.remedy)


SHUTTING_DOWN = Fault(503, "shutting_down", "The service is shutting down.", remedy="Ask another instance.")


def fault_of(error: Exception) -> Fault:
    """The reply to an error; what nobody raised on purpose is logged and shown as an opaque id."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, RequestError):
        return Fault(400, error.code, error.problem, field=error.field, remedy=error.remedy)
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return Fault(status, code, error.problem, remedy=error.remedy)
    return _unexpected(error)


TOO_LONG = "context_length_exceeded"
_PROMPTS = {openai.CHAT: "messages", openai.COMPLETIONS: "prompt"}
"""What the prompt is called at each path."""
_KINDS: tuple[tuple[type[EdgewiseError], int, str], ...] = (
    (PromptTooLongError, 400, TOO_LONG),
    (InputError, 400, "invalid_request"),
    (CloudRefusedError, 422, "cloud_refused"),
    (CloudTimeoutError, 504, "cloud_timeout"),
    (CloudError, 503, "cloud_unavailable"),
    (OutboxFullError, 503, "outbox_full"),
    (StoreError, 503, "store_unavailable"),
)


def _unexpected(error: Exception) -> Fault:
    incident = secrets.token_hex(8)
    _log.error("Request failed, incident %s: %s", incident, frames(error))
    return Fault(
        500,
        "internal",
        f"The service failed (incident {incident}).",
        remedy="Try again; if it stays, give the operator the incident's id.",
    )
