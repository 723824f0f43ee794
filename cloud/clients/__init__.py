"""The cloud backends a router can escalate to, by the name the configuration gives them.

A new backend is one file with a class that fulfils `contracts.CloudClient`, one line here, and one entry in its
contract tests. Importing this package loads none of what a single backend needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgewise.cloud.clients.bedrock import BedrockClient
from edgewise.cloud.clients.connections import Network
from edgewise.cloud.clients.failover import FailOverClient
from edgewise.cloud.clients.oip import OipClient
from edgewise.cloud.clients.openai import OpenAIClient
from edgewise.cloud.clients.sagemaker import SageMakerClient
from edgewise.cloud.clients.tensors import Tensors
from edgewise.contracts import CloudClient

CLIENTS: Final[dict[str, Callable[..., CloudClient]]] = {
    "oip": OipClient,
    "openai": OpenAIClient,
    "sagemaker": SageMakerClient,
    "bedrock": BedrockClient,
}
"""Factories by kind."""

PROMPT_KINDS: Final = ("openai", "bedrock")
"""Kinds that carry a whole `dialogue.Prompt`, which is what a language model is asked."""

__all__ = [
    "CLIENTS",
    "PROMPT_KINDS",
    "BedrockClient",
    "FailOverClient",
    "Network",
    "OipClient",
    "OpenAIClient",
    "SageMakerClient",
    "Tensors",
]
