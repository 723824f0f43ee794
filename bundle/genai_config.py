"""The `genai_config.json` of a language model: the fields that a bundle carries, and no others.

onnxruntime-genai's own format also names libraries to load and files to open. A bundle comes from whoever made it, so
whatever is not listed here is refused, when it is packed and again before the runtime sees it.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from edgewise.bundle.manifest import END, canonical
from edgewise.errors import InputError

GRAPH_NAME = "model.onnx"
"""What the graph is called in a packed configuration; whoever loads it names the blob instead."""

Word: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^[A-Za-z0-9_.-]+{END}", max_length=128)]
# The runtime puts the number of a layer into these with C's printf, so they hold exactly one %d and no other %.
LayerName: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^[A-Za-z0-9_.-]*%d[A-Za-z0-9_.-]*{END}", max_length=128)]
# The runtime takes memory by these before it looks at the graph.
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Length: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class SessionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the builder writes for processors; a packed configuration has none, the device chooses its own."""

    log_id: Word = "onnxruntime-genai"
    provider_options: tuple[()] = ()


class Inputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Names of the graph's inputs."""

    input_ids: Word
    attention_mask: Word | None = None
    position_ids: Word | None = None
    past_key_names: LayerName | None = None
    past_value_names: LayerName | None = None


class Outputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Names of the graph's outputs."""

    logits: Word
    present_key_names: LayerName | None = None
    present_value_names: LayerName | None = None


class Decoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The graph's sizes and the names of its inputs and outputs."""

    filename: Word
    head_size: Count
    hidden_size: Count
    num_attention_heads: Count
    num_hidden_layers: Count
    num_key_value_heads: Count
    inputs: Inputs
    outputs: Outputs
    session_options: SessionOptions = SessionOptions()


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The model.

    Attributes:
        type: Its family in the runtime's words, such as "llama".
        vocab_size: Tokens that the graph tells apart.
        context_length: Positions that it can tell apart.
        decoder: The graph.
        bos_token_id: First token of a text, where the tokenizer puts one.
        eos_token_id: The token, or tokens, that end an answer.
        pad_token_id: Fills a batch up.
    """

    type: Word
    vocab_size: Length
    context_length: Length
    decoder: Decoder
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | tuple[TokenId, ...] | None = None
    pad_token_id: TokenId | None = None


class GenaiConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        model: The model.
        search: How an answer is drawn, where the caller does not say.
    """

    model: Model
    search: dict[Word, bool | int | float]


def read_config(data: bytes) -> GenaiConfig:
    """Read a configuration.

    Raises:
        InputError: It is none, or it holds something that a bundle does not carry.
    """
    try:
        return msgspec.json.decode(data, type=GenaiConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise InputError(
            f"This genai_config.json cannot be carried in a bundle: {e}.",
            "Build a model of text alone for the CPU with onnxruntime-genai's builder.",
        ) from e


def normal_config(data: bytes) -> bytes:
    """The same configuration for any machine: sorted, without session options and file names.

    Raises:
        InputError: As `read_config`.
    """
    config = read_config(data)
    decoder = msgspec.structs.replace(config.model.decoder, filename=GRAPH_NAME, session_options=SessionOptions())
    return canonical(msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, decoder=decoder)))
