"""A language model on Amazon Bedrock, asked through Converse and ConverseStream.

Owns which calls are made and what counts as a reference answer. Prompts are `prompting`'s, calls `aws`'s.

Bedrock's replies name no version: the id of a foundation model is one (`…-20240620-v1:0`), and AWS does not change the
model behind it. So the reference is that id, and a digest of it, the prompt and the decoding. Ids behind which the
model may change unseen, such as prompt routers and provisioned throughput, are refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from edgewise.cloud.clients.aws import Aws, checked_keyless
from edgewise.cloud.clients.connections import Network
from edgewise.cloud.clients.http import NotServedError
from edgewise.cloud.clients.prompting import EMBEDDING, GENERATION, prompt_of, text_of
from edgewise.contracts import CloudReply, Reference, Request, Token
from edgewise.errors import CloudRefusedError, CloudResponseError, ConfigError

_RUNTIME, _CONTROL = "bedrock-runtime", "bedrock"
_MOVING = ("prompt-router/", "default-prompt-router/", "provisioned-model/", "prompt/", "endpoint/")
_KEPT_BACK = ("guardrail_intervened", "content_filtered")
_ENDINGS = ("end_turn", "stop_sequence", "max_tokens")


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
        max_tokens: Longest answer.
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
        max_tokens: int = 256,
        network: Network | None = None,
    ) -> None:
        checked_keyless(api_key)
        self._model = _fixed(model)
        if task == EMBEDDING:
            raise ConfigError("The task is feature-extraction, and Converse gives texts.", "Choose another task.")
        self._prompt = prompt_of(task=task, instruction=instruction, labels=tuple(labels), max_tokens=max_tokens)
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
        """Ask for the final answer to one text; cancelling closes the connection.

        Raises:
            CloudRefusedError: The item is no text, Bedrock refuses it, or no label is its answer.
            CloudUnreachableError: There is no connection.
            CloudTimeoutError: No answer within `timeout_s`, or the model itself took too long.
            CloudThrottledError: It is asked more than the quota.
            CloudCredentialsError: The credentials are missing, expired, or may not ask this.
            CloudResponseError: An error, or something that is not an answer.
        """
        parameters = self._parameters(text_of(request.inputs))
        text, invoked = await self._aws.call(_RUNTIME, "converse", parameters, _converse, timeout_s=timeout_s)
        return CloudReply(self._prompt.output(text), self._reference(invoked))

    async def stream(self, request: Request, *, timeout_s: float) -> AsyncIterator[Token | CloudReply]:
        """Ask for the final answer in pieces; the whole reply comes last. Closing the iterator cancels the call.

        Labels come whole.

        Raises:
            CloudError: As `predict`; also where the stream is not whole within `timeout_s`, or breaks off.
        """
        if self._prompt.task != GENERATION:
            yield await self.predict(request, timeout_s=timeout_s)
            return
        parameters = self._parameters(text_of(request.inputs))
        texts: list[str] = []
        ending, invoked = None, None
        streamed = self._aws.events(_RUNTIME, "converse_stream", parameters, "stream", timeout_s=timeout_s)
        async with aclosing(streamed) as events:
            async for event in events:
                text = (event.get("contentBlockDelta") or {}).get("delta", {}).get("text")
                if text:
                    texts.append(text)
                    yield Token(id=request.id, text=text)
                ending = (event.get("messageStop") or {}).get("stopReason", ending)
                invoked = _invoked(event.get("metadata") or {}) or invoked
        _check_ending(ending)
        yield CloudReply(self._prompt.output("".join(texts)), self._reference(invoked))

    async def aclose(self) -> None:
        """Close its connections."""
        await self._aws.aclose()

    async def _exists(self, operation: str, parameters: Mapping[str, Any], timeout_s: float) -> None:
        await self._aws.call(_CONTROL, operation, parameters, _checked_model, timeout_s=timeout_s)

    def _parameters(self, text: str) -> dict[str, Any]:
        system = {"system": [{"text": self._prompt.system}]} if self._prompt.system else {}
        return {
            "modelId": self._model,
            "messages": [{"role": "user", "content": [{"text": text}]}],
            "inferenceConfig": {"maxTokens": self._prompt.max_tokens, "temperature": 0.0},
            **system,
        }

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


def _converse(answer: Mapping[str, Any]) -> tuple[str, str | None]:
    """The text of a reply, and the model that was invoked where the reply says so."""
    _check_ending(answer.get("stopReason"))
    blocks = ((answer.get("output") or {}).get("message") or {}).get("content") or []
    return "".join(block.get("text", "") for block in blocks), _invoked(answer)


def _invoked(answer: Mapping[str, Any]) -> str | None:
    model = ((answer.get("trace") or {}).get("promptRouter") or {}).get("invokedModelId")
    return str(model) if model else None


def _check_ending(ending: str | None) -> None:
    if ending in _KEPT_BACK:
        raise CloudRefusedError(f"Bedrock keeps the answer back: {ending}.", "Change the item, or the guardrail.")
    if ending not in _ENDINGS:
        raise CloudResponseError(
            f"Bedrock's answer ended with {ending!r}.", "Its endings: " + ", ".join(_ENDINGS) + "."
        )
