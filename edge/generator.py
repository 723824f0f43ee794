"""A language model from a bundle: it continues texts, and tells how likely a text is.

Owns how onnxruntime-genai is given a bundle, greedy generation with the probability of each token, and scoring. Writes
no prompt and keeps no conversation. onnxruntime-genai (extra "generate") is imported when a model is loaded.

Texts go through the tokenizers library, as the checkpoint's do. onnxruntime-genai has a tokenizer of its own that goes
by the class in `tokenizer_config.json`: where that is wrong a newline becomes -1, and even where it is right it splits
some digits differently.

    from edgewise.edge import EdgeGenerator

    model = EdgeGenerator.load("bundle")
    for piece in model.generate("The capital of France is", max_tokens=16):
        piece.text
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer  # type: ignore[import-untyped]  # ships stubs without a py.typed
from tokenizers.decoders import DecodeStream  # type: ignore[import-untyped]  # the same

from edgewise.bundle import Bundle, GenaiConfig, GenerationPreprocessing, GoldenItem, read_config
from edgewise.bundle.generator import CONFIG, OPTIONAL_FILES, REQUIRED_FILES
from edgewise.dialogue import Piece
from edgewise.edge.device import probe
from edgewise.edge.model import check_runtime
from edgewise.edge.stops import until
from edgewise.errors import BundleError, CertificateError, InputError, MissingExtraError

GOLDEN_TOKENS = 16
"""Tokens of a golden answer at most."""

LOGPROB_TOLERANCE = 0.02
"""Largest difference of a golden log-probability on the instruction-set class that computed it, in nats.

Threads and versions change the order of float32 sums, which moves a logit by about 1e-4 of its size; wrong weights or a
wrong tokenizer move it by whole nats.
"""

# Logits of a whole text at once would be its length times the vocabulary: 1.6 GB for 8,192 tokens of a small model.
_CHUNK = 256

# The checkpoint may ask for sampling or penalties; greedy means the likeliest token, whatever was said before.
_GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "temperature": 1.0,
    "top_k": 1,
    "top_p": 1.0,
    # Nothing is drawn; without a seed the runtime spends 15 ms a text on gathering one.
    "random_seed": 1,
}


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
    """A language model from a bundle. Several threads may generate at once, each in its own call.

    Build it with `EdgeGenerator.load(path)`. Close it, or use it in a `with` block, to free its memory early.
    """

    def __init__(
        self, bundle: Bundle, genai: ModuleType, model: Any, tokenizer: Tokenizer, config: GenaiConfig
    ) -> None:
        self._bundle = bundle
        self._genai = genai
        self._model = model
        self._tokenizer = tokenizer
        self._ends = _ends(config)
        self._max_length = _preprocessing(bundle).max_length

    @classmethod
    def load(cls, path: Path | str, *, threads: int = 1) -> EdgeGenerator:
        """Verify the bundle at `path` and get it ready to generate. Nothing is written into it.

        Args:
            path: A bundle's folder.
            threads: Threads of one operator.

        Raises:
            BundleError: Not a bundle of a language model, damaged, too new, or this runtime cannot run it.
            InputError: `threads` is below 1.
            MissingExtraError: onnxruntime-genai is not installed.
        """
        if threads < 1:
            raise InputError(f"A model needs one thread or more, not {threads}.", "Give threads=1.")
        bundle = Bundle.open(path)
        files = _files(bundle)
        check_runtime(bundle.core.target.min_onnxruntime)
        genai = _import()
        config = _config(files)
        return cls(bundle, genai, _model(bundle, files, genai, threads), _tokenizer(files), config)

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self._bundle

    @property
    def digest(self) -> str:
        """The model digest of the bundle."""
        return self._bundle.model_digest

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self._max_length

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """The ids of a text, shape (n,), whatever the tokenizer puts around it included.

        Raises:
            InputError: Not a text that the tokenizer can read.
        """
        if not isinstance(text, str):
            raise InputError(f"A language model takes a text (str), given {type(text).__name__}.", "Give a str.")
        try:
            return np.asarray(self._tokenizer.encode(text).ids, dtype=np.int32)
        except TypeError as e:  # the Rust library's word for a lone surrogate
            raise InputError(f"This text cannot be tokenized: {e}.", "Give valid Unicode.") from e

    def detokenize(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of ids; special tokens have none."""
        return str(self._tokenizer.decode([int(token) for token in ids]))

    def generate(self, prompt: str, *, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[Piece]:
        """Continue a text greedily: each token is the likeliest one.

        Args:
            prompt: The text.
            max_tokens: Tokens to generate at most; fewer where prompt and answer would exceed `max_length`.
            stop: Texts that end the answer and do not belong to it.

        Returns:
            The pieces as they are generated. The token with which the model itself ends is not among them.

        Raises:
            InputError: The prompt is empty, too long or no text, or the limits make no sense.
        """
        ids = self.tokenize(prompt)
        if not ids.size:
            raise InputError("The prompt holds no token.", "Give a longer text.")
        if ids.size >= self._max_length:
            raise InputError(
                f"The prompt has {ids.size} tokens, the model reads {self._max_length} with its answer.",
                "Give a shorter prompt.",
            )
        if max_tokens < 1:
            raise InputError(f"max_tokens must be 1 or more, not {max_tokens}.", "Give a larger one.")
        if isinstance(stop, str) or not all(isinstance(word, str) and word for word in stop):
            raise InputError(f"stop takes a list of texts, none of them empty; given {stop!r}.", "Give stop=['text'].")
        length = min(int(ids.size) + max_tokens, self._max_length)
        pieces = self._pieces(ids, length)
        return until(pieces, stop) if stop else pieces

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
            problem = _difference(item, self._answer(str(item.input)), same_isa=same_isa)
            if problem:
                raise CertificateError(
                    f"Golden item {number} of {len(items)} comes out differently on this machine: {problem}.",
                    "Certificates of this bundle do not hold here; certify it on this machine.",
                )

    def golden_items(self, prompts: Sequence[str]) -> tuple[GoldenItem, ...]:
        """Answers to a few prompts, for packing beside the model; prompts that it answers with nothing are left out.

        Raises:
            InputError: A prompt is empty, too long or no text.
        """
        answers = (self._answer(prompt) for prompt in prompts)
        return tuple(item for item in answers if item.logits)

    def close(self) -> None:
        """Free the model. It answers nothing afterwards; pieces that are still being generated end first."""
        self._tokenizer = self._model = _Closed()

    def __enter__(self) -> EdgeGenerator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, prompt: str) -> GoldenItem:
        pieces = list(self.generate(prompt, max_tokens=GOLDEN_TOKENS))
        logprobs = tuple(piece.logprob for piece in pieces)
        score = float(np.mean(logprobs)) if logprobs else 0.0
        return GoldenItem(prompt, "".join(piece.text for piece in pieces), score, logprobs)

    def _generator(self, length: int) -> Any:
        """One text of at most `length` tokens; the runtime takes the memory for all of them at once."""
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=length, **_GREEDY)
        return self._genai.Generator(self._model, params)

    def _forced(self, ids: NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        """The logits after each token, a chunk of tokens at a time, shape (chunk, vocabulary)."""
        if not ids.size:
            return
        with self._translated():
            generator = self._generator(int(ids.size) + 1)
            for start in range(0, ids.size, _CHUNK):
                generator.append_tokens(ids[start : start + _CHUNK])
                yield np.asarray(generator.get_output("logits")[0], dtype=np.float32)

    def _pieces(self, ids: NDArray[np.int32], length: int) -> Iterator[Piece]:
        # It begins with the prompt: some tokenizers drop the blank before the first word of a text.
        stream = DecodeStream(ids=ids.tolist(), skip_special_tokens=True)
        tokenizer = self._tokenizer
        with self._translated():
            generator = self._generator(length)
            for start in range(0, ids.size, _CHUNK):
                generator.append_tokens(ids[start : start + _CHUNK])
            scratch = np.empty_like(generator.get_logits().reshape(-1))
            for number in range(length - int(ids.size)):
                logits = generator.get_logits().reshape(-1)
                generator.generate_next_token()
                token = int(generator.get_next_tokens()[0])
                if token in self._ends:
                    return
                logprob = _logprob(logits, token, scratch)
                margin = None if number else _margin(token, logprob, scratch)
                yield Piece(stream.step(tokenizer, token) or "", token, logprob, margin)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The runtime knows no error but RuntimeError."""
        try:
            yield
        except RuntimeError as e:
            raise BundleError(
                f"onnxruntime-genai {self._genai.__version__} cannot run {self._bundle.core.name}: {_line(e)}",
                "Update it, or build the model again with this version.",
            ) from e


class _Closed:
    def __getattr__(self, name: str) -> Any:
        raise InputError("This model is closed.", "Load it again.")


def _import() -> ModuleType:
    try:
        import onnxruntime_genai
    except ImportError as e:
        raise MissingExtraError("Running a language model", "generate") from e
    onnxruntime_genai.disable_telemetry_events()
    return onnxruntime_genai  # type: ignore[no-any-return]  # it ships no types


def _preprocessing(bundle: Bundle) -> GenerationPreprocessing:
    how = bundle.core.preprocessing
    if not isinstance(how, GenerationPreprocessing):
        raise BundleError(
            f"The bundle {bundle.core.name} is no language model, it does {bundle.core.task}.",
            "Load it with edgewise.edge.EdgeModel.",
        )
    return how


def _files(bundle: Bundle) -> dict[str, bytes]:
    """The small files by name."""
    files = {file.name: bundle.read(file.blob) for file in _preprocessing(bundle).files}
    wrong = set(REQUIRED_FILES) - set(files) or set(files) - {*REQUIRED_FILES, *OPTIONAL_FILES}
    if wrong:
        problem = f"The bundle {bundle.core.name} lacks, or should not hold, the file {min(wrong)}."
        raise BundleError(problem, "Do not use this bundle.")
    return files


def _config(files: Mapping[str, bytes]) -> GenaiConfig:
    """The configuration, read with the same strictness as when it was packed: it could name libraries to load."""
    try:
        return read_config(files[CONFIG])
    except InputError as e:
        raise BundleError(e.problem, "Do not use this bundle.") from e


def _ends(config: GenaiConfig) -> frozenset[int]:
    """The tokens that end an answer."""
    found = config.model.eos_token_id
    return frozenset(() if found is None else (found,) if isinstance(found, int) else found)


def _tokenizer(files: Mapping[str, bytes]) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as e:  # the Rust library raises plain Exception and ValueError
        raise BundleError(f"The tokenizer of the bundle cannot be read: {e}.", "Update tokenizers.") from e
    # Set once, here: changing it later would race with other threads' encoding.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _model(bundle: Bundle, files: Mapping[str, bytes], genai: ModuleType, threads: int) -> Any:
    """The runtime's model. It wants a folder with its configuration; the graph and the weights stay where they are."""
    try:
        with tempfile.TemporaryDirectory(prefix="edgewise-") as name:
            (Path(name) / CONFIG).write_bytes(files[CONFIG])
            config = genai.Config(name)
            config.overlay(_overlay(bundle, Path(name), threads))
            return genai.Model(config)
    except OSError as e:
        problem = f"The bundle {bundle.core.name} needs a temporary folder to be opened: {e.strerror or e}."
        raise BundleError(problem, "Set TMPDIR to a folder that can be written.") from e
    except RuntimeError as e:
        raise BundleError(
            f"onnxruntime-genai {genai.__version__} cannot open the bundle {bundle.core.name}: {_line(e)}",
            "Update it, or build the model again with this version.",
        ) from e


def _overlay(bundle: Bundle, folder: Path, threads: int) -> str:
    """What this machine adds to the configuration: threads, and the graph in its place among the blobs."""
    # The runtime takes the name as one below the folder. Both are resolved, since ".." does not undo a link.
    graph = os.path.relpath(bundle.graph_path.resolve(), folder.resolve())
    session = {
        "intra_op_num_threads": threads,
        "inter_op_num_threads": 1,
        "log_severity_level": 3,
        # Spinning buys latency only where there is a pool, and burns a core while waiting.
        "session.intra_op.allow_spinning": "1" if threads > 1 else "0",
    }
    return msgspec.json.encode({"model": {"decoder": {"filename": graph, "session_options": session}}}).decode()


def _logprob(logits: NDArray[np.float32], token: int, scratch: NDArray[np.float32]) -> float:
    """Log-softmax at the greedy token, whose logit is the largest. A fresh array a token would double its cost."""
    np.subtract(logits, logits[token], out=scratch)
    return -float(np.log(np.exp(scratch, out=scratch).sum()))


def _margin(token: int, logprob: float, scratch: NDArray[np.float32]) -> float:
    """The greedy token's probability minus the second largest; `_logprob` left each over the first in `scratch`."""
    scratch[token] = 0.0
    return float(np.exp(logprob) * (1.0 - scratch.max()))


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


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
