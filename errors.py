"""Every error edgewise raises on purpose. Each names what was wrong, the value, and the remedy.

    EdgewiseError
    ├── InputError              what the caller gave cannot be used          (exit code 2)
    │   ├── DataError           a data file, with its line where there is one
    │   ├── CheckpointError     a checkpoint folder or an unsupported task
    │   ├── OutputExistsError   an output path that is already taken
    │   ├── ConfigError         a setting
    │   ├── MissingExtraError   an optional dependency is not installed
    │   ├── BundleError         a bundle that cannot be read
    │   │   ├── BundleCorruptError   its bytes are not what its manifest promises
    │   │   └── BundleVersionError   written by a newer edgewise
    │   ├── BeyondModelError    a good prompt that this language model cannot take; another may
    │   │   └── PromptTooLongError   more tokens than it reads
    │   ├── CertificateError    a certificate that cannot be issued or does not apply
    │   │   └── TooFewItemsError     with the number of items needed
    │   └── RequestError        one request over the wire                    (HTTP 400)
    ├── CloudError              the cloud service did not do its part        (exit code 2)
    │   ├── CloudUnreachableError
    │   ├── CloudTimeoutError
    │   │   └── CloudGivenUpError
    │   └── CloudResponseError
    │       ├── CloudRefusedError     it will refuse this very request every time
    │       ├── CloudThrottledError   it is asked too much, with the seconds to wait where it says so
    │       └── CloudCredentialsError it does not take these credentials, or not any more
    ├── OutboxFullError         no room to owe one more answer          (exit code 2)
    ├── DiskFullError           no room for a file that is being written      (exit code 2)
    ├── StoreError              the durable store cannot be read or written (exit code 2)
    └── GoalMissedError         the work is done, its goal is not reached    (exit code 1)

Raising is the job of every room; printing and exiting is the command line's alone.
"""

from __future__ import annotations

import errno
import traceback


class EdgewiseError(Exception):
    """Base of all errors raised on purpose.

    Args:
        problem: What was wrong, with the offending value.
        remedy: What the reader can do about it; may be empty where nothing helps.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


class InputError(EdgewiseError):
    """What the caller gave cannot be used."""


class DataError(InputError):
    """A data file cannot be used; the problem names the file, and the line where there is one."""


class CheckpointError(InputError):
    """A checkpoint folder is incomplete, or its task is not supported."""


class OutputExistsError(InputError):
    """An output path is already taken."""


class ConfigError(InputError):
    """A setting is unknown or out of its range."""


class MissingExtraError(InputError):
    """An optional dependency is not installed.

    Args:
        feature: What was asked for.
        extra: The extra of the `edgewise` distribution that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}'.", f"Install it: pip install 'edgewise[{extra}]'")
        self.extra = extra


class BundleError(InputError):
    """A bundle cannot be read."""


class BundleCorruptError(BundleError):
    """A bundle's bytes are not what its manifest promises."""


class BundleVersionError(BundleError):
    """A bundle was written by a newer format than this edgewise reads."""


class DiskFullError(EdgewiseError):
    """There is no room for a file; what was written of it is gone."""

    @classmethod
    def caused_by(cls, error: OSError) -> DiskFullError | None:
        """The error for a system error that means a full disk, a quota or a size limit; None for any other."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return None
        where = f" for {error.filename}" if error.filename else ""
        return cls(f"There is no room{where}: {error.strerror}.", "Free some space, or choose another disk.")


class BeyondModelError(InputError):
    """A prompt makes sense and is beyond this very model; another may answer it."""


class PromptTooLongError(BeyondModelError):
    """A prompt has more tokens than the model reads with its answer."""


class CertificateError(InputError):
    """A certificate cannot be issued, or does not apply to this model or cloud."""


class TooFewItemsError(CertificateError):
    """Too few items to certify anything.

    Args:
        given: Items given.
        needed: The smallest number of items that could certify.
        alpha: Bound on the risk.
        delta: Allowed probability that the bound fails.
        of: What the items are.
    """

    def __init__(self, given: int, needed: int, alpha: float, delta: float, *, of: str = "certifying items") -> None:
        super().__init__(
            f"{given} {of} cannot support alpha={alpha:g} at delta={delta:g}: {needed} are needed.",
            f"Give {needed} or more items, or a larger alpha or delta.",
        )
        self.given = given
        self.needed = needed


class RequestError(InputError):
    """A request over the wire is malformed.

    Args:
        field: The field at fault, in the protocol's own spelling.
        problem: What was wrong, with the value.
        remedy: What the client can do.
        code: The word for programs, where a protocol has one of its own.
    """

    def __init__(self, field: str, problem: str, remedy: str = "", *, code: str = "invalid_request") -> None:
        super().__init__(problem, remedy)
        self.field = field
        self.code = code


class CloudError(EdgewiseError):
    """The cloud service did not do its part. What it said of a request may quote it: a log takes `outline` alone.

    Attributes:
        status: The HTTP status that it answered with, where it did.
    """

    status: int | None = None


class CloudUnreachableError(CloudError):
    """No connection to the cloud service."""


class CloudTimeoutError(CloudError):
    """The cloud service did not answer in time."""


class CloudGivenUpError(CloudTimeoutError):
    """A call that hung since the cloud was away was given up when it came back: ask anew."""


class CloudResponseError(CloudError):
    """The cloud service answered with an error or with something that is not an answer."""


class CloudRefusedError(CloudResponseError):
    """The cloud service is well and refuses this very request; asking again would give the same."""


class CloudThrottledError(CloudResponseError):
    """The cloud service is asked more than it takes; a later moment mends it.

    Args:
        problem: What was wrong, with the offending value.
        remedy: What the reader can do about it.
        retry_after_s: Seconds after which it may be asked again, where it says so.
    """

    def __init__(self, problem: str, remedy: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(problem, remedy)
        self.retry_after_s = retry_after_s


class CloudCredentialsError(CloudResponseError):
    """The cloud service does not take these credentials, or there are none; somebody has to renew them."""


class OutboxFullError(EdgewiseError):
    """The outbox has no room to owe one more answer."""


class StoreError(EdgewiseError):
    """The durable store cannot be opened, read or written."""


class GoalMissedError(EdgewiseError):
    """The work is done and saved, its goal is not reached."""

    exit_code = 1


def outline(error: BaseException) -> str:
    """The kind of an error, and the status of a cloud that answered: what a log may say of a request that failed.

    The message may quote what a client sent: a server that refuses says what it refuses.
    """
    status = error.status if isinstance(error, CloudError) else None
    return type(error).__name__ if status is None else f"{type(error).__name__}, status {status}"


def frames(error: BaseException) -> str:
    """Type and place of an error; its message may quote what a client sent, and stays out of the log."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
