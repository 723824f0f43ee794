"""A language model from a bundle: it answers prompts, continues texts, and tells how likely a text is.

Owns how a bundle becomes a model that is ready, and how a prompt becomes the tokens that it continues. The calls into
onnxruntime-genai (extra "generate", imported when a model is loaded) are `genai.py`'s, the loop over tokens
`writing.py`'s.

Texts go through the tokenizers library, as the checkpoint's do. onnxruntime-genai has a tokenizer of its own that goes
by the class in `tokenizer_config.json`: where that is wrong a newline becomes -1, and even where it is right it splits
some digits differently.

    from edgewise.dialogue import Message, Prompt, Role
    from edgewise.edge import EdgeGenerator

    model = EdgeGenerator.load("bundle")
    prompt = Prompt(messages=(Message(role=Role.USER, content="What is the capital of France?"),))
    for piece in model.write(prompt, session="kitchen"):
        piece.text
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed

from edgewise.bundle import Bundle, GenaiConfig, GoldenItem
from edgewise.bundle.generator import CONFIG
from edgewise.dialogue import AUTO, NO_TOOL, Message, Prompt, Role, Sampling
from edgewise.edge.constrained import Constraint, Grammars, grammar_of
from edgewise.edge.device import probe
from edgewise.edge.genai import Engine, Runtime, TokenSequence
from edgewise.edge.model import check_runtime
from edgewise.edge.packed import config_of, ends_of, files_of, overlay_of, preprocessing_of, tokenizer_of
from edgewise.edge.prompts import check, check_limits
from edgewise.edge.slots import NO_IDS, Ids, Slots, alone, chunks, common
from edgewise.edge.templates import ChatTemplate
from edgewise.edge.text import first_ids, ids_of
from edgewise.edge.writing import EdgeWriting, Task
from edgewise.errors import BeyondModelError, CertificateError, InputError, PromptTooLongError

GOLDEN_TOKENS = 16
"""Tokens of a golden answer at most."""

LOGPROB_TOLERANCE = 0.02
"""Largest difference of a golden log-probability on the instruction-set class that computed it, in nats.

Threads and versions change the order of float32 sums, which moves a logit by about 1e-4 of its size; wrong weights or a
wrong tokenizer move it by whole nats.
"""

SLOTS, SLOT_TOKENS = 4, 2048
"""Sessions whose computed tokens are kept, and how many tokens of each.

The runtime takes the memory for a whole slot at once. A token of SmolLM2-135M takes 46 kB: 94 MB a slot, about as much
as its 4-bit weights, where its whole context of 8,192 tokens would take 377 MB.
"""

# Beginnings of a user's message: what their prompts have in common does not depend on what a user says.
_PROBES = ("A", "?", "\n")


@dataclass(frozen=True)
class TokenScores:
    """How likely each token of a text is, given those before it; the first token has none before it and no score.

    Attributes:
        nll: Negative natural log-probability of the token, shape (t,), float32.
        top: The id that the model holds likeliest in its place, shape (t,), int32.
        logprobs: Natural log-probabilities of the whole vocabulary, shape (k, vocabulary), float32, of the first k
            scored tokens, as many as were asked for.
    """

    nll: NDArray[np.float32]
    top: NDArray[np.int32]
    logprobs: NDArray[np.float32]


class EdgeGenerator:
    """A language model from a bundle. Several threads may write at once, each its own answer.

    Build it with `EdgeGenerator.load(path)`. Close it, or use it in a `with` block, to free its memory early.
    """

    def __init__(self, bundle: Bundle, files: Mapping[str, bytes], config: GenaiConfig, engine: Engine) -> None:
        self._bundle = bundle
        self._files = files
        self._engine = engine
        self._tokenizer = tokenizer_of(files)
        self._ends = ends_of(config)
        self._max_length = preprocessing_of(bundle).max_length
        self._grammars = Grammars(files["tokenizer.json"], config.model.vocab_size, sorted(self._ends))
        self._slots = Slots(engine, 0, 2)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        threads: int = 1,
        slots: int = SLOTS,
        slot_tokens: int | None = None,
        prefill: Sequence[Prompt] = (),
    ) -> EdgeGenerator:
        """Verify the bundle at `path` and get it ready to generate. Nothing is written into it.

        Args:
            path: A bundle's folder.
            threads: Threads of one operator.
            slots: Sessions whose computed tokens are kept for their next turn; 0 keeps none.
            slot_tokens: Tokens of each that are kept; a longer conversation is answered, and computed anew each turn.
                None: 2,048, or what the model reads where that is less.
            prefill: Prompts that others will begin like: their messages, such as a system prompt, or their text, is
                computed now and kept ready, in a slot each beside the others.

        Raises:
            BundleError: Not a bundle of a language model, damaged, too new, or this runtime cannot run it.
            InputError: `threads`, `slots` or `slot_tokens` is out of range, or a prompt of `prefill` is refused.
            MissingExtraError: onnxruntime-genai is not installed.
        """
        if threads < 1:
            raise InputError(f"A model needs one thread or more, not {threads}.", "Give threads=1.")
        bundle = Bundle.open(path)
        files = files_of(bundle)
        check_runtime(bundle.core.target.min_onnxruntime)
        config = config_of(files)
        engine = Engine(Runtime(), bundle.core.name, files[CONFIG], lambda folder: overlay_of(bundle, folder, threads))
        model = cls(bundle, files, config, engine)
        model.keep(slots, slot_tokens, prefill)
        return model

    def keep(self, slots: int, slot_tokens: int | None = None, prefill: Sequence[Prompt] = ()) -> None:
        """Make the slots anew, as `load` says; what was kept is forgotten.

        Raises:
            InputError: As `load` says.
            BundleError: The runtime cannot compute the prompts.
        """
        tokens = min(self._max_length, SLOT_TOKENS) if slot_tokens is None else slot_tokens
        if slots < 0:
            raise InputError(f"slots must be 0 or more, not {slots}.", "Give 0 to keep no session.")
        if not 2 <= tokens <= self._max_length:
            problem = f"slot_tokens {tokens} does not fit the model, which reads {self._max_length} tokens."
            raise InputError(problem, f"Give 2 to {self._max_length}.")
        self._slots.close()
        self._slots = Slots(self._engine, slots, tokens, [self._prefix(prompt) for prompt in prefill])
        self._slots.refill()

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self._bundle

    @property
    def digest(self) -> str:
        """The model digest of the bundle."""
        return self._bundle.model_digest

    @property
    def task(self) -> str:
        """The task of the bundle, "text-generation"."""
        return self._bundle.core.task

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self._max_length

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._ends

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._tokenizer

    def sequence(self, length: int) -> TokenSequence:
        """An empty sequence of at most `length` tokens, to compute tokens one's own way; close it.

        Raises:
            BundleError: The runtime cannot.
        """
        return self._engine.sequence(length)

    def tokenize(self, text: str, *, special: bool = True) -> NDArray[np.int32]:
        """The ids of a text, shape (n,).

        Args:
            text: The text; names of special tokens in it become those tokens.
            special: Whether the tokenizer puts around it what it puts around a whole text. A chat template writes that
                itself.

        Raises:
            InputError: Not a text that the tokenizer can read.
        """
        if not isinstance(text, str):
            raise InputError(f"A language model takes a text (str), given {type(text).__name__}.", "Give a str.")
        try:
            return np.asarray(ids_of(self._tokenizer, text, special=special), dtype=np.int32)
        except TypeError as e:  # the Rust library's word for a lone surrogate
            raise InputError(f"This text cannot be tokenized: {e}.", "Give valid Unicode.") from e

    def detokenize(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of ids; special tokens have none."""
        return str(self._tokenizer.decode([int(token) for token in ids]))

    def prompt_ids(self, prompt: Prompt) -> NDArray[np.int32]:
        """The tokens that the answer to a prompt continues, shape (n,); of one that is too long not all of them.

        Raises:
            InputError: The chat template refuses the messages, or they are not valid Unicode.
            MissingExtraError: jinja2 is not installed.
        """
        if prompt.text is not None:
            return self._ids(prompt.text + prompt.begun, special=True)
        return self._ids(self._template.render(prompt) + prompt.begun, special=False)

    def write(self, prompt: Prompt, *, tenant: str = "", session: str | None = None) -> EdgeWriting:
        """Begin to answer a prompt. Nothing is computed before the first piece is asked for.

        Args:
            prompt: What is asked.
            tenant: Whose session it is.
            session: What was computed for earlier turns of this session of this tenant need not be again; None has no
                earlier turns, and leaves nothing for later ones.

        Returns:
            The answer, piece by piece. The token with which the model itself ends is not among the pieces.

        Raises:
            PromptTooLongError: The prompt leaves no room for an answer.
            InputError: The prompt cannot be answered.
            MissingExtraError: A package that it needs is not installed.
        """
        check(prompt)
        # A call that is forced is written by its schema, whatever the template says of tools.
        if prompt.tools and prompt.text is None and prompt.tool_choice == AUTO and not self._template.takes_tools:
            problem = f"tools: the chat template of {self._bundle.core.name} has no place for tools."
            raise BeyondModelError(problem, 'Leave them out, or send tool_choice "required" or the name of one.')
        ids = self.prompt_ids(prompt)
        limit = self._limit(ids, prompt.sampling.max_tokens)
        calls_tools = bool(prompt.tools) and prompt.tool_choice != NO_TOOL
        task = Task(ids, limit, self._ends, prompt.sampling, self._constraint(prompt), calls_tools, prompt.is_continued)
        owner = None if session is None else (tenant, session)
        return EdgeWriting(task, partial(self._slots.lease, ids, owner), self._tokenizer)

    def generate(
        self, prompt: str, *, max_tokens: int, stop: Sequence[str] = (), past_end: bool = False
    ) -> EdgeWriting:
        """Continue a text greedily: each token is the likeliest one.

        Args:
            prompt: The text.
            max_tokens: Tokens to generate at most; fewer where prompt and answer would exceed `max_length`.
            stop: Texts that end the answer and do not belong to it.
            past_end: Go on where the model itself would end: for measuring, not for reading.

        Returns:
            The pieces as they are generated. The token with which the model itself ends is not among them, unless it
            goes on past it.

        Raises:
            PromptTooLongError: The prompt leaves no room for an answer.
            InputError: The prompt is empty or no text, or the limits make no sense.
        """
        ids = self._ids(prompt, special=True)
        check_limits(max_tokens, stop)
        limit = self._limit(ids, max_tokens)
        task = Task(ids, limit, frozenset() if past_end else self._ends, Sampling(stop=tuple(stop)))
        return EdgeWriting(task, partial(alone, self._engine, limit), self._tokenizer)

    def score(self, text: str, *, sample: int = 0) -> TokenScores:
        """How likely each token of a text is, given those before it.

        Args:
            text: The text; beyond `max_length` tokens it is cut off.
            sample: Scored tokens whose whole distribution is wanted.

        Raises:
            InputError: No text that the tokenizer can read.
        """
        ids = self.tokenize(text)[: self._max_length]
        nll, top, kept = [np.empty(0, np.float32)], [np.empty(0, np.int32)], []
        scored = 0
        for logits in self._forced(ids[:-1]):
            rows = _log_softmax(logits)
            targets = ids[scored + 1 : scored + 1 + len(rows)]
            nll.append(-rows[np.arange(len(rows)), targets])
            top.append(rows.argmax(axis=1).astype(np.int32))
            if scored < sample:
                kept.append(rows[: sample - scored].copy())
            scored += len(rows)
        logprobs = np.concatenate(kept) if kept else np.empty((0, 0), np.float32)
        return TokenScores(np.concatenate(nll), np.concatenate(top), logprobs)

    def logits(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """What the graph gives after each of some tokens, shape (n, vocabulary); `score` needs far less memory.

        Args:
            ids: One or more tokens, at most `max_length`.
        """
        return np.concatenate(list(self._forced(ids)))

    def check_golden(self) -> None:
        """Generate the golden answers of the bundle again and compare.

        The text must agree. On the instruction-set class that computed it, each log-probability must also lie within
        0.02 of the golden one.

        Raises:
            CertificateError: One comes out differently here, or there is none; certificates do not hold then.
        """
        items = self._bundle.golden()
        if not items:
            raise CertificateError(
                "The bundle has no golden items, so it cannot be checked here.", "Pack it with some."
            )
        same_isa = probe().isa in self._bundle.core.target.isa
        for number, item in enumerate(items, start=1):
            # Items of earlier versions lack the end's log-probability: as many tokens are compared as an item has.
            found = self._answer(str(item.input), max(1, len(item.logits)))
            problem = _difference(item, found, same_isa=same_isa)
            if problem:
                raise CertificateError(
                    f"Golden item {number} of {len(items)} comes out differently on this machine: {problem}.",
                    "Certificates of this bundle do not hold here; certify it on this machine.",
                )

    def golden_items(self, prompts: Sequence[str]) -> tuple[GoldenItem, ...]:
        """Answers to a few prompts, for packing beside the model.

        The end of an answer counts as one of its tokens, so that a prompt which is answered with nothing tells as much.

        Raises:
            InputError: A prompt is empty, too long or no text.
        """
        return tuple(self._answer(prompt, GOLDEN_TOKENS) for prompt in prompts)

    def close(self) -> None:
        """Free the model. It answers nothing afterwards; answers that are still being written end first."""
        if not isinstance(self._slots, Slots):
            return
        self._slots.close()
        runtime = self._engine.runtime
        self._tokenizer = self._engine = self._slots = _Closed()  # type: ignore[assignment]
        runtime.trim()

    def __enter__(self) -> EdgeGenerator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, prompt: str, tokens: int) -> GoldenItem:
        """An answer of at most so many tokens, the one that ends it among them."""
        pieces = []
        with closing(self.generate(prompt, max_tokens=tokens, past_end=True)) as writing:
            for piece in writing:
                pieces.append(piece)
                if piece.token in self._ends:
                    break
        logprobs = tuple(piece.logprob for piece in pieces)
        return GoldenItem(prompt, "".join(piece.text for piece in pieces), float(np.mean(logprobs)), logprobs)

    def _ids(self, text: str, *, special: bool) -> Ids:
        if not isinstance(text, str) or len(text) <= self._max_length:
            return self.tokenize(text, special=special)
        try:
            return np.asarray(first_ids(self._tokenizer, text, self._max_length, special=special), dtype=np.int32)
        except TypeError as e:  # as in `tokenize`
            raise InputError(f"This text cannot be tokenized: {e}.", "Give valid Unicode.") from e

    def _limit(self, ids: Ids, max_tokens: int | None) -> int:
        """Tokens of prompt and answer together."""
        if not ids.size:
            raise InputError("The prompt holds no token.", "Give a longer text.")
        if ids.size >= self._max_length:
            raise PromptTooLongError(
                f"The prompt has {ids.size} tokens or more, the model reads {self._max_length} with its answer.",
                "Give a shorter prompt.",
            )
        return self._max_length if max_tokens is None else min(int(ids.size) + max_tokens, self._max_length)

    def _constraint(self, prompt: Prompt) -> Constraint | None:
        grammar = grammar_of(prompt)
        return None if grammar is None else self._grammars.constraint(grammar, prompt.begun)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._files)

    def _prefix(self, prompt: Prompt) -> Ids:
        """The tokens that all prompts begin with that begin like this one; none where that cannot be told."""
        if prompt.text is not None:
            texts = [msgspec.structs.replace(prompt, text=prompt.text + probe, begun="") for probe in _PROBES]
        else:
            said = [Message(role=Role.USER, content=probe) for probe in _PROBES]
            texts = [msgspec.structs.replace(prompt, messages=(*prompt.messages, one), begun="") for one in said]
        first, *others = [self.prompt_ids(text) for text in texts]
        size = min(common(first, other) for other in others)
        return first[:size] if size < self._max_length else NO_IDS

    def _forced(self, ids: NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        """The logits after each token, a chunk of tokens at a time, shape (chunk, vocabulary)."""
        if not ids.size:
            return
        sequence = self.sequence(int(ids.size) + 1)
        for part in chunks(ids):
            sequence.append(part)
            yield sequence.rows()
        sequence.close()


class _Closed:
    def __getattr__(self, name: str) -> Any:
        raise InputError("This model is closed.", "Load it again.")


def _log_softmax(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = rows - rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def _difference(item: GoldenItem, found: GoldenItem, *, same_isa: bool) -> str | None:
    if found.output != item.output or len(found.logits) != len(item.logits):
        return f"it answers {found.output!r} instead of {item.output!r}"
    worst = float(np.max(np.abs(np.subtract(found.logits, item.logits)), initial=0.0))
    # Written so that a NaN counts as a difference.
    if same_isa and not worst <= LOGPROB_TOLERANCE:
        return f"a log-probability differs by {worst:.4g}, {LOGPROB_TOLERANCE:g} is allowed"
    return None
