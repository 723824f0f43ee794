"""What AWS's errors mean: a refusal of one item, too much asked, credentials, time, or a fault. Pure.

Error codes are those of the services' own models in botocore; event streams spell them with a small first letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise.cloud.clients.http import NotServedError, excerpt, seconds_to_wait
from edgewise.errors import (
    CloudCredentialsError,
    CloudError,
    CloudRefusedError,
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    CloudUnreachableError,
)

_THROTTLED = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "ServiceQuotaExceededException",
        "ModelNotReadyException",
        "SlowDown",
    }
)
_EXPIRED = frozenset({"ExpiredTokenException", "ExpiredToken", "RequestExpired"})
_NOT_ALLOWED = frozenset({"AccessDeniedException", "AccessDenied", "NotAuthorized", "UnauthorizedOperation"})
_NOT_KNOWN = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "InvalidAccessKeyId",
    }
)
_LATE = frozenset({"ModelTimeoutException", "RequestTimeout", "RequestTimeoutException"})
_INVALID = frozenset({"ValidationException", "ValidationError"})
_ABOUT_THE_MODEL = ("model identifier", "on-demand throughput", "endpoint ", "inference profile")
"""What a validation error speaks of where it is the configuration that is at fault, and no item."""

_NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "NoAuthTokenError",
        "ProfileNotFound",
        "SSOError",
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
        "InvalidConfigError",
        "RefreshWithMFAUnsupportedError",
        "LoginRefreshRequired",
    }
)
_RENEW = "Renew the credentials of the standard chain: AWS_PROFILE, a role, or aws sso login."


def translated(error: Exception, whom: str, secrets: tuple[str, ...]) -> CloudError:
    """The error to raise for whatever botocore raised.

    Args:
        error: What it raised; told apart by name, so that botocore need not be imported to read this.
        whom: Who was asked.
        secrets: What the message must not show.
    """
    response = getattr(error, "response", None)
    if isinstance(response, Mapping) and "Error" in response:
        found = _of_service(response, whom, secrets)
        found.status = _status_of(response)
        return found
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = excerpt(str(error), *secrets)
    if "ValueError" in kinds and said.startswith("Invalid endpoint"):
        return CloudUnreachableError(f"No connection to {whom}: it is no address.", "Check the address.")
    if kinds & _NO_CREDENTIALS:
        return CloudCredentialsError(f"No credentials to ask {whom} with: {said}", _RENEW)
    if "NoRegionError" in kinds:
        return CloudCredentialsError(f"No region to ask {whom} in.", "Set `region` of the backend, or AWS_REGION.")
    if "ParamValidationError" in kinds:
        return CloudRefusedError(f"{whom} cannot be asked this: {said}", "Change the item.")
    return CloudResponseError(f"{whom} sent no answer: {type(error).__name__}: {said}", "Check the address.")


def _of_service(response: Mapping[str, Any], whom: str, secrets: tuple[str, ...]) -> CloudError:
    told = response.get("Error") or {}
    code = str(told.get("Code") or "Unknown")
    code = code[:1].upper() + code[1:]
    message = str(told.get("Message") or response.get("OriginalMessage") or "nothing more")
    about = response.get("ResponseMetadata") or {}
    status = _status_of(response)
    where = "in mid-stream" if status is None else f"with status {status}"
    problem = f"{whom} answered {where}: {excerpt(f'{code}: {message}', *secrets)}"
    if code in _EXPIRED:
        return CloudCredentialsError(problem, _RENEW)
    if code in _NOT_ALLOWED or status == 403:
        return CloudCredentialsError(problem, "Allow this action to the role, or ask for access to the model.")
    if code in _NOT_KNOWN or status == 401:
        return CloudCredentialsError(problem, f"Check the clock. {_RENEW}")
    if code in _THROTTLED or status == 429:
        wait = seconds_to_wait({name.lower(): value for name, value in (about.get("HTTPHeaders") or {}).items()})
        return CloudThrottledError(
            problem, "It has more work than it takes; try again later, or raise the quota.", retry_after_s=wait
        )
    if code in _LATE:
        return CloudTimeoutError(problem, "Ask for less, or of a faster model.")
    if code == "ResourceNotFoundException" or status == 404 or _is_about_the_model(code, message):
        return NotServedError(problem, "Check the model's name and the region.")
    if _is_about_the_item(code, status or 0, response):
        return CloudRefusedError(problem, "Change the item.")
    return CloudResponseError(problem, "See the service's log.")


def _status_of(response: Mapping[str, Any]) -> int | None:
    """The status of an answer that is an error; None of one that began well."""
    status = int((response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0)
    return status if status >= 300 else None


def _is_about_the_model(code: str, message: str) -> bool:
    return code in _INVALID and any(words in message.lower() for words in _ABOUT_THE_MODEL)


def _is_about_the_item(code: str, status: int, response: Mapping[str, Any]) -> bool:
    """Whether the service, or the container behind it, is well and refuses what was sent."""
    inner = int(response.get("OriginalStatusCode") or response.get("originalStatusCode") or 0)
    return code in _INVALID or status in (413, 415, 422) or (code == "ModelError" and inner in (400, 413, 415, 422))
