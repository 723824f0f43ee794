"""A model behind an Amazon SageMaker endpoint, asked by InvokeEndpoint and its response stream.

Owns which calls are made and what counts as a reference answer. Calls are `aws`'s; bytes are `invocations`' for Hugging
Face's containers, and `tensors`' for ours and Triton's.

An endpoint answers out of an endpoint configuration, which never changes under one name, and a reply tells the variant
of it that was invoked. So the version is both, and digests of the task and of the endpoint's images where AWS tells
them. Replies do not name the configuration: DescribeEndpoint does, which is believed for a minute and then asked again,
beside a request. While an endpoint is being updated nobody can say which configuration answers, so nobody is the
reference then.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from edgewise.cloud.clients import invocations
from edgewise.cloud.clients.aws import Aws, checked_keyless
from edgewise.cloud.clients.connections import Network, paced
from edgewise.cloud.clients.http import decoded
from edgewise.cloud.clients.lasting import Lasting
from edgewise.cloud.clients.prompting import CLASSIFICATION, GENERATION, TASKS, text_of
from edgewise.cloud.clients.tensors import Tensors
from edgewise.contracts import CloudReply, Output, Reference, Request, Token
from edgewise.errors import CloudResponseError, ConfigError

T = TypeVar("T")

CONTAINERS: Final = ("huggingface", "oip")

_RUNTIME, _CONTROL = "sagemaker-runtime", "sagemaker"
_SERVING = ("InService", "SystemUpdating")
_KEEP_S = 60.0
_MAX_TOKENS = 256


@dataclass(frozen=True)
class _Endpoint:
    """What DescribeEndpoint says: the configuration, its variants, and a digest of their images."""

    configuration: str
    variants: tuple[str, ...]
    images: str


class SageMakerClient:
    """One endpoint.

    Args:
        url: Address of the runtime, such as a VPC endpoint's; None leaves it to the region.
        model: The endpoint's name.
        api_key: Must be None: credentials come from the standard chain.
        region: Region; None leaves it to the standard chain.
        control_url: Address of the control plane, which describes the endpoint.
        container: What it speaks: "huggingface", or "oip", the Open Inference Protocol, as our own container does.
        task: Of "huggingface": "text-classification" unless given, "text-generation" or "feature-extraction".
        max_tokens: Of "text-generation": longest answer, 256 unless given.
        tensors: Of "oip": what the model calls its tensors.
        network: How to connect.

    Raises:
        ConfigError: A key is given, or the endpoint, the container, the task or an address cannot be used, or a
            setting is the other container's.
        MissingExtraError: boto3 is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        api_key: str | None = None,
        region: str | None = None,
        control_url: str | None = None,
        container: str = "huggingface",
        task: str | None = None,
        max_tokens: int | None = None,
        tensors: Tensors | None = None,
        network: Network | None = None,
    ) -> None:
        checked_keyless(api_key)
        if not model:
            raise ConfigError("No endpoint is named.", "Name it: model = the endpoint's name.")
        if container not in CONTAINERS:
            raise ConfigError(f"The container is {container!r}.", f"Choose one of: {', '.join(CONTAINERS)}.")
        if task is not None and task not in TASKS:
            raise ConfigError(f"The task is {task!r}.", f"Choose one of: {', '.join(TASKS)}.")
        _check_settings(container, task, max_tokens, tensors)
        self._name = model
        self._task = task or CLASSIFICATION
        self._max_tokens = _MAX_TOKENS if max_tokens is None else max_tokens
        self._tensors = None if container == "huggingface" else tensors or Tensors()
        self._aws = Aws({_RUNTIME: url, _CONTROL: control_url}, region=region, network=network)
        self._endpoint = Lasting(self._ask_endpoint, time.monotonic)

    async def describe(self, *, timeout_s: float) -> Reference:
        """Ask which configuration serves, and which one variant of it.

        Raises:
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`.
            CloudCredentialsError: The credentials are missing, expired, or may not ask this.
            CloudResponseError: There is no such endpoint, it is being updated, or several variants share its requests.
        """
        async with self._aws.within(_CONTROL, timeout_s):
            endpoint = await self._endpoint.renewed()
        if len(endpoint.variants) != 1:
            raise CloudResponseError(
                f"The endpoint {self._name} serves the variants {', '.join(endpoint.variants) or 'none'}; "
                "a certificate needs exactly one.",
                "Send every request to one variant.",
            )
        return self._reference(endpoint, endpoint.variants[0])

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Ask for the final answer to one request; cancelling closes the connection.

        Raises:
            CloudRefusedError: The item cannot be sent, or the container refuses it.
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`.
            CloudThrottledError: It is asked more than it takes.
            CloudCredentialsError: The credentials are missing, expired, or may not ask this.
            CloudResponseError: An error, or something that is not an answer of a named variant.
        """
        parameters = self._parameters(request, timeout_s, stream=False)

        async def invoke() -> tuple[str, bytes]:
            return await self._aws.call(_RUNTIME, "invoke_endpoint", parameters, _invoked, timeout_s=timeout_s)

        async with self._aws.within(_RUNTIME, timeout_s):
            (variant, body), endpoint = await self._endpoint.beside(invoke)
        return CloudReply(self._read(body, self._output), self._reference(endpoint, variant))

    async def stream(self, request: Request, *, timeout_s: float) -> AsyncIterator[Token | CloudReply]:
        """Ask for the final answer in pieces; the whole reply comes last. Closing the iterator cancels the call.

        What is not generated comes whole.

        Raises:
            CloudError: As `predict`; also where the stream is not whole within `timeout_s`, or breaks off.
        """
        if self._tensors is not None or self._task != GENERATION:
            yield await self.predict(request, timeout_s=timeout_s)
            return
        told = self._told(request, timeout_s)
        async with aclosing(paced(told, timeout_s, self._aws.whom(_RUNTIME))) as pieces:
            async for piece in pieces:
                yield piece

    async def aclose(self) -> None:
        """Close its connections."""
        await self._aws.aclose()

    async def _told(self, request: Request, timeout_s: float) -> AsyncGenerator[Token | CloudReply]:
        parameters = self._parameters(request, timeout_s, stream=True)
        endpoint = await self._endpoint.get()
        tokens = invocations.TokenStream()
        variant = ""
        streamed = self._aws.events(
            _RUNTIME, "invoke_endpoint_with_response_stream", parameters, "Body", timeout_s=timeout_s
        )
        async with aclosing(streamed) as events:
            async for event in events:
                variant = event.get("InvokedProductionVariant") or variant
                part = (event.get("PayloadPart") or {}).get("Bytes") or b""
                for text, logprob in self._read(part, tokens.add):
                    yield Token(id=request.id, text=text, logprob=logprob)
        whole = self._read(b"", lambda _: tokens.whole())
        yield CloudReply(whole, self._reference(endpoint, variant))

    async def _ask_endpoint(self) -> _Endpoint:
        return await self._aws.call(
            _CONTROL, "describe_endpoint", {"EndpointName": self._name}, _endpoint_of, timeout_s=_KEEP_S
        )

    def _parameters(self, request: Request, timeout_s: float, *, stream: bool) -> dict[str, Any]:
        if self._tensors is not None:
            body = self._tensors.encoded(request, timeout_s * 1e3).body
        else:
            body = invocations.encode(text_of(request.inputs), self._task, self._max_tokens, stream=stream)
        json = "application/json"
        return {"EndpointName": self._name, "Body": body, "ContentType": json, "Accept": json}

    def _output(self, body: bytes) -> Output:
        if self._tensors is not None:
            return self._tensors.cloud_reply(body).output
        return invocations.decode(body, self._task)

    def _read(self, body: bytes, read: Callable[[bytes], T]) -> T:
        return decoded(f"The endpoint {self._name}", body, read)

    def _reference(self, endpoint: _Endpoint, variant: str) -> Reference:
        if not variant:
            raise CloudResponseError(
                f"The endpoint {self._name} does not say which variant answered.",
                "A certificate speaks of one; check that this is SageMaker.",
            )
        decoding = (self._task, self._max_tokens, self._tensors)
        digest = hashlib.sha256(msgspec.json.encode((decoding, endpoint.images), order="sorted")).hexdigest()
        return Reference(self._name, f"{endpoint.configuration}/{variant}, {digest[:16]}")


def _check_settings(container: str, task: str | None, max_tokens: int | None, tensors: Tensors | None) -> None:
    """Refuse what would go unheeded.

    Raises:
        ConfigError: A setting is the other container's, or of another task, or out of its range.
    """
    if container == "oip" and (task is not None or max_tokens is not None):
        unheeded = "`task`" if task is not None else "`max_tokens`"
        raise ConfigError(f"{unheeded} says nothing to the container oip.", f"Drop {unheeded}, or take huggingface.")
    if container != "oip" and tensors is not None:
        raise ConfigError(
            "`input`, `input_shape`, `output` and `labels` say nothing to the container huggingface.",
            'Drop them, or set container = "oip".',
        )
    if max_tokens is not None and task != GENERATION:
        raise ConfigError(f"`max_tokens` says nothing to the task {task or CLASSIFICATION}.", "Drop `max_tokens`.")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}.", "Give a number above 0.")


def _endpoint_of(answer: Mapping[str, Any]) -> _Endpoint:
    """What DescribeEndpoint says.

    Raises:
        CloudResponseError: The endpoint does not serve, is being updated, or its configuration is not named.
    """
    status, configuration = answer.get("EndpointStatus"), answer.get("EndpointConfigName")
    if status not in _SERVING or not configuration:
        raise CloudResponseError(
            f"The endpoint {answer.get('EndpointName')} is {status} with the configuration {configuration}.",
            f"Wait until it is {_SERVING[0]}.",
        )
    variants: Sequence[Mapping[str, Any]] = answer.get("ProductionVariants") or ()
    names = tuple(sorted(variant["VariantName"] for variant in variants if variant.get("CurrentWeight", 1) > 0))
    images = sorted(
        image.get("ResolvedImage") or "" for variant in variants for image in variant.get("DeployedImages") or ()
    )
    return _Endpoint(configuration, names, hashlib.sha256("\n".join(images).encode()).hexdigest())


def _invoked(answer: Mapping[str, Any]) -> tuple[str, bytes]:
    return answer.get("InvokedProductionVariant") or "", answer["Body"].read()
