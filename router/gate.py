"""The gate before a text: its first tokens are judged before any of it is told. Pure.

    "mean_logprob:first=16": 16 tokens there, or the text over → score → policy → tell what is held, or escalate

Owns how much of a text a score needs, for how long that is waited for, and what becomes of a decision that the text
itself, or how it was asked for, takes the certificate from. A score that reads the whole text holds all of it back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from edgewise.contracts import Action, Certificate, Decision, Prediction, Reason
from edgewise.dialogue import AUTO, NO_TOOL, Piece, Prompt, Written
from edgewise.router.judgement import SIGNAL_OF_TEXTS
from edgewise.router.policies.threshold import BY_LABEL
from edgewise.router.signals import tokens_read


class Gate(NamedTuple):
    """What has to be there before a text is judged.

    Attributes:
        tokens: Tokens of it, or all where it has fewer; None: the whole text.
        within_ms: Milliseconds from the request's arrival by which they must be there; None waits for them.
    """

    tokens: int | None
    within_ms: float | None = None

    def late(self, policy: str) -> Decision:
        """They are not there in time. A score over fewer tokens is not what was certified, so there is none."""
        return Decision(action=Action.ESCALATE, reason=Reason.GATE_LATE, policy=policy)


def gate_of(certificate: Certificate | None, within_ms: float | None = None) -> Gate:
    """The gate that a certificate's signal allows; one with groups by label needs the label, which is the whole text.

    Raises:
        ConfigError: There is no such signal.
    """
    by_label = certificate is not None and certificate.groups is not None and certificate.groups.by == BY_LABEL
    signal = SIGNAL_OF_TEXTS if certificate is None else certificate.signal
    return Gate(None if by_label else tokens_read(signal), within_ms)


def prediction_of(pieces: Sequence[Piece], written: Written | None = None) -> Prediction:
    """What is known of a text by its tokens, the first of them or all.

    Args:
        pieces: In order, from the first on.
        written: How it came about; None where it is not over yet.
    """
    return Prediction(
        output="".join([piece.text for piece in pieces]),
        token_logprobs=np.array([piece.logprob for piece in pieces], dtype=np.float64),
        margin=pieces[0].margin if pieces else None,
        written=written,
    )


def as_asked(decision: Decision, prompt: Prompt, gate: Gate) -> Decision:
    """The decision without its certificate where that does not speak of what is asked in this way."""
    reason = uncovered(prompt, gate)
    if decision.action is not Action.LOCAL or reason is None:
        return decision
    return msgspec.structs.replace(decision, reason=reason, certificate_id=None)


def uncovered(prompt: Prompt, gate: Gate) -> Reason | None:
    """Why no certificate speaks of a prompt, by how it is asked alone; None where one may.

    Certificates speak of greedy decoding, and of texts that the model writes from the beginning and as it likes. What
    is said besides, such as a limit of tokens, is part of the prompts that were certified with.
    """
    sampling = prompt.sampling
    if not sampling.is_greedy:
        return Reason.SAMPLED
    must_call = bool(prompt.tools) and prompt.tool_choice not in (AUTO, NO_TOOL)
    most = math.inf if sampling.max_tokens is None else sampling.max_tokens
    is_short = most < (gate.tokens or 0)
    if prompt.begun or sampling.schema is not None or must_call or is_short:
        return Reason.UNLIKE_CERTIFIED
    return None


def withdrawn(decision: Decision, reason: Reason) -> Decision:
    """A decision to answer here that the text itself has taken back; its score stays on record."""
    return msgspec.structs.replace(decision, action=Action.ESCALATE, reason=reason, certificate_id=None)


def continued(prompt: Prompt, text: str, tokens: int) -> Prompt | None:
    """The prompt that has the rest written of an answer of which `text`, so many tokens, was told already.

    None where no more may be written.
    """
    sampling = prompt.sampling
    if sampling.max_tokens is not None:
        if tokens >= sampling.max_tokens:
            return None
        sampling = msgspec.structs.replace(sampling, max_tokens=sampling.max_tokens - tokens)
    return msgspec.structs.replace(prompt, begun=prompt.begun + text, sampling=sampling)
