"""One text on its way to its caller: what of it was told, and what is held back. Owns no decision and no call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgewise.contracts import Prediction, Source, Token
from edgewise.dialogue import Piece, Prompt
from edgewise.router.instruments import Instruments
from edgewise.router.turn import Turn
from edgewise.router.writing import Draft


class Telling:
    """One text on its way.

    Args:
        turn: Its request.
        prompt: What is asked.
        say: Tells the caller the next pieces; None where it wants the whole answer only.
        is_held: Whether nothing of the edge's text may be told before it is over, however its caller reads it.
        instruments: Where the first token is timed.

    Attributes:
        turn: The request.
        prompt: What is asked.
        draft: What the edge model writes, where it does.
        passed: Pieces of the draft that were told, or held back where the text is.
        lent: Whether somebody else sees to the draft's end.
        may_be_final: Whether the edge's text may still become the final answer.
        has_left: Whether nobody listens any more, though the text goes on.
    """

    def __init__(
        self,
        turn: Turn,
        prompt: Prompt,
        say: Callable[[Sequence[Token]], None] | None,
        *,
        is_held: bool,
        instruments: Instruments,
    ) -> None:
        self.turn = turn
        self.prompt = prompt
        self.draft: Draft | None = None
        self.passed = 0
        self.lent = False
        self.may_be_final = True
        self.has_left = False
        self._say = say
        self._is_whole = say is None or turn.request.whole
        self._is_held = is_held or turn.request.whole
        self._held: list[Token] = []
        self._texts: list[str] = []
        self._count = 0
        self._instruments = instruments

    @property
    def is_whole(self) -> bool:
        """Whether the caller hears of nothing but the whole answer."""
        return self._is_whole

    @property
    def has_spoken(self) -> bool:
        """Whether some of a text was told, which the rest has to go with."""
        return bool(self._texts)

    @property
    def text(self) -> str:
        """What was told."""
        return "".join(self._texts)

    @property
    def count(self) -> int:
        """How many tokens were told; about, where some came in pieces of which nobody said how many they are."""
        return self._count

    def pieces(self, pieces: Sequence[Piece]) -> None:
        """Tell, or hold back, the next pieces of the draft."""
        self.passed += len(pieces)
        if self._say is None:
            return
        tokens = [
            Token(id=self.turn.request.id, text=text, logprob=logprob, source=Source.EDGE, top=top)
            for text, _, logprob, _, top in pieces
        ]
        if self._is_held:
            self._held += tokens
        else:
            self._tell(tokens)

    def release(self, prediction: Prediction) -> None:
        """Tell what was held back of the edge's text, and what its pieces lack: a call that is none after all.

        Args:
            prediction: All of the text.
        """
        self._is_held = False
        held, self._held = self._held, []
        self._tell(held)
        output, told = prediction.output, self.text
        if isinstance(output, str) and output.startswith(told) and output != told:
            self._tell([Token(id=self.turn.request.id, text=output[len(told) :], source=Source.EDGE)])

    def tokens(self, tokens: Sequence[Token]) -> None:
        """Tell what the cloud has written; nothing of the edge's is held back for later any more."""
        self._held.clear()
        self._tell([self._of_cloud(token) for token in tokens])

    def leave(self) -> None:
        """The caller has left: what comes is noted as before, and told to nobody."""
        self.has_left = True
        if self._say is not None:
            self._say = _to_nobody

    def end(self) -> None:
        """Nobody waits for the draft any longer."""
        if self.draft is not None and not self.lent:
            self.draft.stop()

    def _tell(self, tokens: Sequence[Token]) -> None:
        if self._say is None or not tokens:
            return
        if not self._texts and not self._is_whole:
            turn = self.turn
            turn.spoke = turn.clock.monotonic()
            self._instruments.first_token.observe(turn.spoke - turn.started, str(tokens[0].source))
        self._texts += [token.text for token in tokens]
        self._count += sum(map(_tokens_in, tokens))
        self._say(tokens)

    def _of_cloud(self, token: Token) -> Token:
        source = token.source or Source.CLOUD
        return Token(id=self.turn.request.id, text=token.text, logprob=token.logprob, source=source, top=token.top)


def _tokens_in(piece: Token) -> int:
    """One, where it has a log-probability; else as many as texts have on average: one for four bytes."""
    return 1 if piece.logprob is not None else max(1, math.ceil(len(piece.text.encode("utf-8", "replace")) / 4))


def _to_nobody(tokens: Sequence[Token]) -> None:
    """What is told where nobody listens."""
