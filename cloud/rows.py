"""An answer in the batch of a language model: its tokens so far, and what a step brought of it. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from edgewise.cloud.prompts import Reading
from edgewise.cloud.tokens import Chooser
from edgewise.cloud.transcript import Transcript
from edgewise.dialogue import Finish, Piece, Written
from edgewise.errors import EdgewiseError


class Told(NamedTuple):
    """What a step brought to one answer.

    Attributes:
        key: Whose it is.
        pieces: What was written.
        written: How the answer came about, where it is over.
        error: Why it cannot go on.
    """

    key: str
    pieces: list[Piece]
    written: Written | None = None
    error: EdgewiseError | None = None


@dataclass(eq=False)
class Row:
    """An answer in a batch, and how far it has come.

    Attributes:
        key: Whose it is.
        reading: What is answered.
        chooser: Chooses its tokens.
        transcript: Makes text of them.
        texts: Tokens of the prompt and of the answer so far.
        computed: How many of them are in memory.
        left: Tokens that it may have still.
        told: What the step brought.
        finish: Why it is over, where it came to an end.
        error: Why it cannot go on.
    """

    key: str
    reading: Reading
    chooser: Chooser
    transcript: Transcript
    texts: list[int]
    computed: int = 0
    left: int = 0
    told: list[Piece] = field(default_factory=list)
    finish: Finish | None = None
    error: EdgewiseError | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.finish is not None or self.error is not None

    @property
    def outcome(self) -> Told:
        """What the step brought, and how it ended where it did."""
        written = None if self.finish is None else self.transcript.written(self.finish)
        return Told(self.key, self.told, written, self.error)

    @property
    def unread(self) -> int:
        """Tokens to compute before another can be written: of its prompt, and of what it wrote before it was set back.

        The last token that was written is computed by the step that writes the next.
        """
        return max(len(self.reading.ids), len(self.texts) - 1) - self.computed

    @property
    def is_writing(self) -> bool:
        """Whether the next step writes a token of it."""
        return self.unread <= 0
