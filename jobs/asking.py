"""A service's answers to many items: asked for, a few calls at a time in order of the items, or read from a file.

The first failure ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from edgewise.contracts import CloudClient, CloudReply, Example, Output, Progress, Reference, Request
from edgewise.errors import CertificateError, CloudError, CloudRefusedError, DataError

_T = TypeVar("_T")
_R = TypeVar("_R")


_POLL_S = 0.2


async def until_ready(check: Callable[[], Awaitable[_R]], *, wait_s: float) -> _R:
    """The first result of `check` that is no CloudError, retried for up to `wait_s` seconds.

    Raises:
        CloudError: The last one, when time is up.
    """
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        try:
            return await check()
        except CloudError:
            if asyncio.get_running_loop().time() >= deadline:
                raise
        await asyncio.sleep(_POLL_S)


async def reference_of(cloud: CloudClient, *, timeout_s: float, wait_s: float) -> Reference:
    """The model and version that answer, waiting for a cloud that is still starting.

    Raises:
        CloudError: It did not answer until time was up.
    """
    return await until_ready(lambda: cloud.describe(timeout_s=timeout_s), wait_s=wait_s)


async def ask_all(
    items: Sequence[_T], ask: Callable[[_T], Awaitable[_R]], *, concurrency: int, progress: Progress
) -> list[_R]:
    """Results of `ask` for every item, in their order.

    Args:
        items: What to ask about.
        ask: One call.
        concurrency: Calls at the same time.
        progress: Advanced by one an answer.

    Raises:
        Exception: Whatever the first failing call raised; the others are cancelled.
    """
    results: dict[int, _R] = {}
    waiting = iter(enumerate(items))

    async def work() -> None:
        for index, item in waiting:
            results[index] = await ask(item)
            progress.advance()

    workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[index] for index in range(len(items))]


async def answers_of(
    cloud: CloudClient,
    examples: Sequence[Example],
    reference: Reference,
    *,
    timeout_s: float,
    concurrency: int,
    progress: Progress,
    place: Callable[[int], str],
) -> list[Output]:
    """The cloud's answers to `examples`, all of them by `reference`.

    Args:
        cloud: The cloud.
        examples: What it is asked about.
        reference: Who has to answer.
        timeout_s: Seconds that one answer may take.
        concurrency: Calls at the same time.
        progress: Advanced by one an answer.
        place: Where the example at a position comes from, for messages.

    Raises:
        CertificateError: The cloud changed while it was asked.
        CloudRefusedError: It refuses an example; says which.
        CloudError: It did not answer.
    """

    async def ask(numbered: tuple[int, Example]) -> CloudReply:
        at, example = numbered
        try:
            reply = await cloud.predict(Request(inputs=example.input), timeout_s=timeout_s)
        except CloudRefusedError as error:
            raise CloudRefusedError(f"{place(at)}: the cloud refuses it: {error.problem}", error.remedy) from error
        check_constant(reference, reply.reference)
        return reply

    replies = await ask_all(list(enumerate(examples)), ask, concurrency=concurrency, progress=progress)
    return [reply.output for reply in replies]


def check_constant(reference: Reference, answered: Reference) -> None:
    """Hold an answer to the model and version that a certificate will name.

    Raises:
        CertificateError: Another one answered.
    """
    if answered != reference:
        raise CertificateError(
            f"The cloud changed from {reference.name} {reference.version} to {answered.name} {answered.version} "
            "meanwhile.",
            "Certify again against one version.",
        )


class _RecordedLine(msgspec.Struct):
    output: str
    model: str
    model_version: str


def read_recorded(path: Path) -> tuple[list[Output], Reference]:
    """A cloud's answers from a JSONL file: {"output", "model", "model_version"} a line, of one model and version.

    Raises:
        DataError: It cannot be read, or not as said above.
    """
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"The predictions {path} cannot be read: {error.strerror}.", "Check the path.") from error
    rows = [_recorded_line(path, number, line) for number, line in enumerate(lines, start=1)]
    references = {Reference(row.model, row.model_version) for row in rows}
    if len(references) != 1:
        raise DataError(f"{path} names {len(references)} references.", "Give answers of exactly one model and version.")
    return [row.output for row in rows], references.pop()


def _recorded_line(path: Path, number: int, line: bytes) -> _RecordedLine:
    try:
        return msgspec.json.decode(line, type=_RecordedLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}, line {number}: {error}.", 'Write lines like {"output": …, "model": …, "model_version": …}.'
        ) from error
