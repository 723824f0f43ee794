"""A cloud's text on its way to whoever asked: asked for, told as it comes, and gone on with where a text broke off.

Owns the asking for the rest of a text and what it comes to as a whole. When the cloud is asked, and what is told in its
place, is the flow's.
"""

from __future__ import annotations

import msgspec

from edgewise.contracts import CloudReply, Decision, Token
from edgewise.dialogue import Finish, Prompt, Written
from edgewise.errors import CloudError
from edgewise.router.answering import Answering, Given
from edgewise.router.background import Background
from edgewise.router.dictation import Asking, Dictation
from edgewise.router.escalation import Escalation
from edgewise.router.gate import continued
from edgewise.router.recall import Recall
from edgewise.router.telling import Telling
from edgewise.router.writing import Draft


class Relaying:
    """Asks the cloud for texts, and tells them.

    Args:
        cloud: The cloud; None where nothing is ever escalated.
        background: Where its calls run.
        answering: Makes answers.
        recall: Knows which cloud answered last.
    """

    def __init__(self, cloud: Escalation | None, background: Background, answering: Answering, recall: Recall) -> None:
        self._cloud = cloud
        self._background = background
        self._answering = answering
        self._recall = recall

    def asking(self, telling: Telling, prompt: Prompt) -> Asking:
        """A call of the cloud for what a caller asked, or for the rest of it; none behind an open breaker."""
        asked = telling.turn.as_asked()
        if prompt is not telling.prompt:
            asked = msgspec.structs.replace(asked, inputs=prompt)

        def start() -> Dictation | None:
            cloud = self._cloud
            if cloud is None or cloud.is_open:
                return None
            return Dictation(self._background.start, lambda hear: cloud.ask(asked, on_token=hear))

        return Asking(start)

    async def relay(self, telling: Telling, dictation: Dictation) -> CloudReply:
        """Tell the cloud's text as it comes; the whole reply.

        Raises:
            CloudError: It broke off.
        """
        dictation.follow(telling.tokens)
        try:
            await dictation.reach()
        finally:
            dictation.unfollow()
        reply = dictation.call.result()
        if not dictation.items and isinstance(reply.output, str) and reply.output:
            telling.tokens([Token(id="", text=reply.output)])  # of a client that does not stream
        return reply

    async def go_on(self, telling: Telling, decision: Decision, draft: Draft | None, *, tries: int) -> Given | None:
        """The cloud goes on from what was told; None where it does not, and the edge still can.

        Args:
            telling: Who hears it.
            decision: Why the cloud is asked.
            draft: What was told, where all of it is the edge's, which can go on; None where it cannot, or the cloud
                said some of it.
            tries: Times that the cloud is asked.

        Raises:
            CloudError: Nobody goes on.
        """
        turn = telling.turn
        for _ in range(tries):
            told, count = telling.text, telling.count
            rest = continued(telling.prompt, told, count)
            if rest is None:
                return self._cut_off(telling, decision)
            asking = self.asking(telling, rest)
            try:
                reason = await asking.heard(turn, whole=False, patient=True)
                if reason is not None or asking.dictation is None:
                    break
                if draft is not None:
                    draft.stop()
                reply = await self.relay(telling, asking.dictation)
            except CloudError:
                draft = None  # from here on what was told is not the edge's
                continue
            finally:
                asking.leave()
            turn.not_answered_here(decision)
            return Given(self._answering.told(turn, turn.by_cloud(_joined(told, count, reply), decision)))
        if draft is None:
            raise CloudError("The cloud broke off in the middle of its answer.", "Ask again.")
        return None

    def _cut_off(self, telling: Telling, decision: Decision) -> Given:
        """What was told, where the cloud broke off after the last token that it was asked for.

        Raises:
            CloudError: Nobody knows which cloud that was.
        """
        reference = self._recall.reference
        if reference is None:
            raise CloudError("The cloud broke off in the middle of its answer.", "Ask again.")
        telling.turn.not_answered_here(decision)
        read = None if telling.draft is None else telling.draft.prediction().written
        written = Written(
            finish=Finish.LENGTH,
            prompt_tokens=0 if read is None else read.prompt_tokens,
            completion_tokens=telling.count,
        )
        reply = CloudReply(telling.text, reference, written=written)
        return Given(self._answering.told(telling.turn, telling.turn.by_cloud(reply, decision)))


def _joined(told: str, tokens: int, reply: CloudReply) -> CloudReply:
    """A reply that continues what was told, as the whole answer; what was told was completed, and is no prompt."""
    written = reply.written
    if written is not None:
        prompt_tokens = max(0, written.prompt_tokens - tokens)
        written = msgspec.structs.replace(
            written,
            prompt_tokens=prompt_tokens,
            cached_tokens=min(written.cached_tokens, prompt_tokens),
            completion_tokens=tokens + written.completion_tokens,
        )
    return msgspec.structs.replace(reply, output=f"{told}{reply.output}", written=written)
