"""How a language model in the cloud is asked, and what of its text is an answer. Pure.

Owns the prompt around a text, the match of a reply against the allowed labels, and the digest that stands for model and
decoding in a certificate. Knows no protocol. A `dialogue.Prompt` brings its own messages and sampling: it is sent as it
is, and the digest knows nothing of it, so that a certificate speaks of the server and not of one request.

Decoding is greedy (temperature 0): a certificate compares with one answer, not with a draw. What else shapes an answer
is part of the version, so that changing it voids certificates: the task, the instruction, the labels and their order,
the longest answer, the seed, and whatever the server says of the model behind its name.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from edgewise import dialogue
from edgewise.contracts import Input, Output
from edgewise.errors import CloudRefusedError, CloudResponseError, ConfigError

CLASSIFICATION, GENERATION, EMBEDDING = "text-classification", "text-generation", "feature-extraction"
TASKS = (CLASSIFICATION, GENERATION, EMBEDDING)


@dataclass(frozen=True)
class Prompt:
    """What is asked of each text.

    Attributes:
        task: One of `TASKS`.
        instruction: The system prompt; None asks for a label where there are labels, and says nothing where not.
        labels: Allowed answers of a classification.
        max_tokens: Longest answer.
        seed: Sent where the protocol has a place for it.
        constrained: Whether the server is told to write nothing but a label.

    Raises:
        ConfigError: The task is unknown, or labels are missing, alike, empty, or given where they mean nothing.
    """

    task: str
    instruction: str | None = None
    labels: tuple[str, ...] = ()
    max_tokens: int = 256
    seed: int = 0
    constrained: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"The task is {self.task!r}.", f"Choose one of: {', '.join(TASKS)}.")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}.", "Give a number above 0.")
        if self.task == CLASSIFICATION:
            _check_labels(self.labels)
        elif self.labels or self.constrained:
            raise ConfigError(
                f"Labels are given, and the task is {self.task}.", f'Drop them, or say task = "{CLASSIFICATION}".'
            )
        if self.task == EMBEDDING and self.instruction is not None:
            raise ConfigError("An instruction is given, and embeddings take none.", "Drop it.")

    @property
    def system(self) -> str | None:
        """The system prompt, or None."""
        if self.instruction is None and self.labels:
            return f"Answer with one of these labels and nothing else: {', '.join(self.labels)}."
        return self.instruction

    def output(self, text: str) -> Output:
        """What the model's text means: the label that it is, or the text itself.

        A label is told apart from case, outer punctuation and spacing, and from nothing more.

        Raises:
            CloudRefusedError: It is none of the labels, and would be none again, as decoding is greedy: an item that
                talks a model out of its task must not count against the backend.
            CloudResponseError: There is no text.
        """
        if not text.strip():
            raise CloudResponseError("The model wrote nothing.", "Check the instruction, and max_tokens.")
        if not self.labels:
            return text
        plain = _plain(text)
        for label in self.labels:
            if _plain(label) == plain:
                return label
        raise CloudRefusedError(
            f"The model answered none of its labels but {text[:80]!r}.", "Name the labels in the instruction."
        )

    def check_takes(self, prompt: dialogue.Prompt) -> None:
        """That a whole prompt can be asked here, beside texts.

        Raises:
            CloudRefusedError: This backend is there for another task, or the prompt holds half of a character.
        """
        if self.task != GENERATION:
            raise CloudRefusedError(
                f"This cloud does {self.task} and takes no prompt for a language model.",
                f'Ask a backend with task = "{GENERATION}".',
            )
        try:
            msgspec.json.encode(prompt)
        except UnicodeEncodeError as error:
            raise _not_unicode(error) from error

    def version(self, identity: Mapping[str, str | None]) -> str:
        """Digest of the decoding and of what the server says of its model.

        Args:
            identity: Facts by name; None says nothing.
        """
        facts = {**asdict(self), "instruction": self.system, "temperature": 0, "identity": dict(identity)}
        return f"sha256:{hashlib.sha256(msgspec.json.encode(facts, order='sorted')).hexdigest()}"


def prompt_of(
    *,
    task: str | None,
    instruction: str | None,
    labels: tuple[str, ...],
    max_tokens: int,
    seed: int = 0,
    constrained: bool = False,
) -> Prompt:
    """The prompt of a configuration; no task means classification where there are labels, and generation where not.

    Raises:
        ConfigError: As `Prompt`.
    """
    named = task or (CLASSIFICATION if labels else GENERATION)
    return Prompt(named, instruction, tuple(labels), max_tokens, seed, constrained)


def text_of(item: Input) -> str:
    """The item, where it is a text that can be sent.

    Raises:
        CloudRefusedError: It is none, or holds half of a character.
    """
    if not isinstance(item, str):
        told = "This cloud reads texts only."
        if isinstance(item, dialogue.Prompt):
            told = "This cloud takes no prompt for a language model."
        raise CloudRefusedError(told, "Give it texts, or choose another backend.")
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise _not_unicode(error) from error
    return item


def json_begun() -> CloudRefusedError:
    """That JSON by a schema would be written anew, and not gone on with."""
    return CloudRefusedError(
        "This cloud cannot go on with JSON that is begun: it would begin it again.",
        "Ask without `begun`, or without a schema.",
    )


def json_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object out of its text.

    Args:
        text: The text.
        what: What it is, for the message.

    Raises:
        CloudRefusedError: It is none.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CloudRefusedError(f"The {what} is no JSON object: {error}.", "Send valid JSON.") from error


def _not_unicode(error: UnicodeEncodeError) -> CloudRefusedError:
    return CloudRefusedError(f"The text cannot be sent as UTF-8: {error.reason}.", "Send valid Unicode.")


def _check_labels(labels: tuple[str, ...]) -> None:
    if len(labels) < 2:
        raise ConfigError(
            f"{CLASSIFICATION} with {len(labels)} labels.", 'Give the allowed answers: labels = ["a", "b"].'
        )
    seen: dict[str, str] = {}
    for label in labels:
        plain = _plain(label)
        if not plain:
            raise ConfigError(f"The label {label!r} has no letter and no digit.", "Give words.")
        if plain in seen:
            raise ConfigError(
                f"The labels {seen[plain]!r} and {label!r} differ in case or punctuation only.", "Drop one of them."
            )
        seen[plain] = label


def _plain(text: str) -> str:
    """Without case, outer punctuation and doubled spaces."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    joined = " ".join(words)
    first = next((at for at, sign in enumerate(joined) if sign.isalnum()), len(joined))
    last = next((at for at, sign in enumerate(reversed(joined)) if sign.isalnum()), 0)
    return joined[first : len(joined) - last]
