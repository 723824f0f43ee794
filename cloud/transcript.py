"""From chosen tokens back to text: what may be told at once, where an answer ends, and which tools it calls.

Owns one answer's text while it grows. Nothing that may still become a stop text or a call is told; nothing behind a
stop text is. Chooses no token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgewise.cloud.prompts import Reading
from edgewise.cloud.tokens import Choice
from edgewise.dialogue import Finish, Piece, TokenChoice, ToolCall, Written
from edgewise.edge.decoding import TextStream
from edgewise.edge.stops import Held, begun
from edgewise.edge.toolcalls import BEGIN, END, parse


class Transcript:
    """One answer's text.

    Args:
        tokenizer: The tokenizer, of the tokenizers library.
        reading: What is answered.
        new_id: Makes the id of a call.
    """

    def __init__(self, tokenizer: Any, reading: Reading, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._stream = TextStream(tokenizer, reading.ids if reading.prompt.is_continued else ())
        self._prompt_tokens = len(reading.ids)
        self._stops = reading.prompt.sampling.stop
        self._marks = (*self._stops, BEGIN) if reading.calls else self._stops
        self._held = Held()
        self._tokens = 0
        self._calls: list[ToolCall] = []
        # Text of a call that is being written; None outside of one.
        self._call: str | None = None
        self._after = False  # a call has just ended, and only blanks came since
        self.is_over = False

    def push(self, choice: Choice) -> list[Piece]:
        """Take a token in; returns what may be told now."""
        self._tokens += 1
        text, texts = self._stream.choose(choice.token, [token for token, _ in choice.top])
        top = tuple(TokenChoice(said, logprob) for said, (_, logprob) in zip(texts, choice.top, strict=True))
        return self._take(Piece(text, choice.token, choice.logprob, choice.margin, top))

    def close(self) -> list[Piece]:
        """The answer ends here; returns what was held back."""
        if self._call is not None:
            self._end_call(self._call)
        return self._held.rest()

    def written(self, finish: Finish) -> Written:
        """How the answer came about."""
        return Written(
            finish=Finish.TOOL_CALLS if self._calls and finish is Finish.STOP else finish,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._tokens,
            tool_calls=tuple(self._calls),
        )

    def _take(self, piece: Piece) -> list[Piece]:
        if self._call is not None:
            self._call += piece.text
            body, closed, rest = self._call.partition(END)
            if not closed:
                return []
            self._end_call(body)
            piece = piece._replace(text=rest)
        if self._after:
            piece = piece._replace(text=piece.text.lstrip())
            if not piece.text:
                return []
            self._after = False
        self._held.push(piece)
        return self._told()

    def _told(self) -> list[Piece]:
        """What of the held pieces may be told: what lies before the first mark, complete or begun."""
        text = self._held.text
        found = min(((at, mark) for mark in self._marks if (at := text.find(mark)) >= 0), default=None)
        if found is None:
            return self._held.before(len(text) - begun(text, self._marks))
        at, mark = found
        told = self._held.cut(at)
        if mark in self._stops:
            self.is_over = True
            return told
        self._call = ""
        rest = text[at + len(mark) :]
        return [*told, *self._take(Piece(rest, -1, 0.0))] if rest else told

    def _end_call(self, body: str) -> None:
        self._call, self._after = None, True
        found = parse(body.strip())
        self._calls += [ToolCall(id=self._new_id(), name=name, arguments=arguments) for name, arguments in found]
