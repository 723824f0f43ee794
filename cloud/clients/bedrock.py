"""A language model on Amazon Bedrock, asked through Converse and ConverseStream.

Owns which calls are made and what counts as a reference answer. What is asked of a text is `prompting`'s, the shape of
questions and answers `converse`'s, calls `aws`'s.

Bedrock's replies name no version: the id of a foundation model is one (`…-20240620-v1:0`), and AWS does not change the
model behind it. So the reference is that id, and a digest of it, the prompt and the decoding. Ids behind which the
model may change unseen, such as prompt routers and provisioned throughput, are refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from edgewise import dialogue
from edgewise.cloud.clients.aws import Aws, checked_keyless
from edgewise.cloud.clients.completions import offers_tools
from edgewise.cloud.clients.connections import Network
from edgewise.cloud.clients.converse import ConverseStream, Said, prompt_parameters, said_in, text_parameters
from edgewise.cloud.clients.http import NotServedError
from edgewise.cloud.clients.prompting import EMBEDDING, GENERATION, prompt_of, text_of
from edgewise.contracts import CloudReply, Input, Reference, Request, Source, Token
from edgewise.errors import CloudRefusedError, CloudResponseError, ConfigError

_RUNTIME, _CONTROL = "bedrock-runtime", "bedrock"
_MOVING = ("prompt-router/", "default-prompt-router/", "provisioned-model/", "prompt/", "endpoint/")
_MAX_TOKENS = 256


class BedrockClient:
    """One model on Bedrock.

    Args:
        url: Address of the runtime, such as a VPC endpoint's; None leaves it to the region.
        model: Id or ARN of a foundation model, or of an inference profile.
        api_key: Must be None: credentials come from the standard chain.
        region: Region; None leaves it to the standard chain.
        control_url: Address of the control plane, which says whether there is such a model.
        task: "text-classification" or "text-generation"; None: the first where there are labels, else the second.
        instruction: The system prompt.
        labels: Allowed answers of a classification.
        max_tokens: Longest answer to a text, 256 unless given; also to a prompt that sets no limit itself, which is
            else the model's.
        network: How to connect.

    Raises:
        ConfigError: A key is given, or the model, an address or the prompt cannot be used.
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
        task: str | None = None,
        instruction: str | None = None,
        labels: Sequence[str] = (),
        max_tokens: int | None = None,
        network: Network | None = None,
    ) -> None:
        checked_keyless(api_key)
        self._model = _fixed(model)
        if task == EMBEDDING:
            raise ConfigError("The task is feature-extraction, and Converse gives texts.", "Choose another task.")
        self._max_tokens = max_tokens
        self._prompt = prompt_of(
            task=task,
            instruction=instruction,
            labels=tuple(labels),
            max_tokens=_MAX_TOKENS if max_tokens is None else max_tokens,
        )
        self._aws = Aws({_RUNTIME: url, _CONTROL: control_url}, region=region, network=network)

    async def describe(self, *, timeout_s: float) -> Reference:
        """Ask whether there is such a model; it is not asked itself, which would cost.

        Raises:
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`.
            CloudCredentialsError: The credentials are missing, expired, or may not ask this.
            CloudResponseError: There is no such model.
        """
        async with self._aws.within(_CONTROL, timeout_s):
            try:
                await self._exists("get_foundation_model", {"modelIdentifier": self._model}, timeout_s)
            except (NotServedError, CloudRefusedError) as error:
                try:
                    profile = {"inferenceProfileIdentifier": self._model}
                    await self._exists("get_inference_profile", profile, timeout_s)
                except CloudRefusedError:
                    # What is refused here is the model's id, and no item.
                    raise NotServedError(error.problem, "Check the model's id and the region.") from error
        return self._reference(None)

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Ask for the final answer to one text or prompt; cancelling closes the connection.

        The output of a prompt that is begun is what comes after `begun`.

        Raises:
            CloudRefusedError: The item is neither, Bedrock refuses it or has no place for it, or no label is its
                answer.
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`, or the model itself took too long.
            CloudThrottledError: It is asked more than the quota.
            CloudCredentialsError: The credentials are missing, expired, or may not ask this.
            CloudResponseError: An error, or something that is not an answer.
        """
        item = request.inputs
        read = partial(said_in, tools=_offers_tools(item))
        said = await self._aws.call(_RUNTIME, "converse", self._parameters(item), read, timeout_s=timeout_s)
        return self._reply(item, said)

    async def stream(self, request: Request, *, timeout_s: float) -> AsyncIterator[Token | CloudReply]:
        """Ask for the final answer in pieces; the whole reply comes last. Closing the iterator cancels the call.

        Labels come whole, and so do tool calls, in the reply. Bedrock tells no log-probabilities.

        Raises:
            CloudError: As `predict`; also where the stream is not whole within `timeout_s`, or breaks off.
        """
        item = request.inputs
        if self._prompt.task != GENERATION:
            yield await self.predict(request, timeout_s=timeout_s)
            return
        parameters = self._parameters(item)
        told = ConverseStream(tools=_offers_tools(item))
        source = Source.CLOUD if isinstance(item, dialogue.Prompt) else None
        streamed = self._aws.events(_RUNTIME, "converse_stream", parameters, "stream", timeout_s=timeout_s)
        async with aclosing(streamed) as events:
            async for event in events:
                text = told.add(event)
                if text:
                    yield Token(id=request.id, text=text, source=source)
        yield self._reply(item, told.whole())

    async def aclose(self) -> None:
        """Close its connections."""
        await self._aws.aclose()

    async def _exists(self, operation: str, parameters: Mapping[str, Any], timeout_s: float) -> None:
        await self._aws.call(_CONTROL, operation, parameters, _checked_model, timeout_s=timeout_s)

    def _parameters(self, item: Input) -> dict[str, Any]:
        if isinstance(item, dialogue.Prompt):
            self._prompt.check_takes(item)
            return {"modelId": self._model, **prompt_parameters(item, self._max_tokens)}
        return {"modelId": self._model, **text_parameters(self._prompt, text_of(item))}

    def _reply(self, item: Input, said: Said) -> CloudReply:
        reference = self._reference(said.invoked)
        if isinstance(item, dialogue.Prompt):
            return CloudReply(said.text, reference, written=said.written)
        return CloudReply(self._prompt.output(said.text), reference)

    def _reference(self, invoked: str | None) -> Reference:
        """Who answered: the model, unless a reply tells that another one was invoked in its place."""
        name = invoked or self._model
        return Reference(name, self._prompt.version({"name": name}))


def _fixed(model: str | None) -> str:
    if not model:
        raise ConfigError("No model is named.", "Name the model's id, such as amazon.nova-lite-v1:0.")
    if model.startswith("arn:") and model.split(":", 5)[-1].startswith(_MOVING):
        raise ConfigError(
            f"Behind {model!r} the model may change unseen, and a certificate speaks of one.",
            "Name a foundation model or an inference profile.",
        )
    return model


def _checked_model(answer: Mapping[str, Any]) -> None:
    """That the answer describes a model or a profile.

    Raises:
        CloudResponseError: It describes neither.
    """
    if not (answer.get("modelDetails") or {}).get("modelId") and not answer.get("inferenceProfileId"):
        raise CloudResponseError("Bedrock described no model.", "Check the address.")


def _offers_tools(item: Input) -> bool:
    return isinstance(item, dialogue.Prompt) and offers_tools(item)
