"""Measures ONNX files side by side in fresh interleaved processes, and runs what builds them. Decides nothing.

A finished round is kept under a digest of everything that shapes it, so that an interrupted measurement goes on where
it was and a second run is quick; `fresh=True` measures anew.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
from numpy.typing import NDArray

from edgewise.bundle import Bundle, TensorSpec
from edgewise.bundle.graph import external_locations
from edgewise.dataset import load_examples, require_labels
from edgewise.edge import probe
from edgewise.edge.text import TextEncoder
from edgewise.errors import EdgewiseError
from edgewise.files import sha256_bytes, sha256_file, write_atomically

MEASURE = Path(__file__).parent / "measure_onnx.py"
POLL_S = 0.05
_INPUTS = tuple(
    TensorSpec(name, "int64", ("batch", "tokens")) for name in ("input_ids", "attention_mask", "token_type_ids")
)


class BenchmarkError(EdgewiseError):
    """A benchmark could not go on."""


@dataclass(frozen=True)
class Model:
    """One ONNX file to be measured.

    Attributes:
        name: Its name in the tables.
        onnx: The file; external data lies beside it.
        tokenizer: The `tokenizer.json` that goes with it.
        max_length: Tokens of a text that are read.
    """

    name: str
    onnx: Path
    tokenizer: Path
    max_length: int

    def size_bytes(self) -> int:
        """Bytes of the graph with its external data."""
        return sum(path.stat().st_size for path in self.files())

    def digest(self) -> str:
        """Digest of the graph with its external data."""
        return sha256_bytes("".join(sha256_file(path) for path in self.files()).encode())

    def files(self) -> list[Path]:
        """The graph, and what it reads beside itself."""
        return [self.onnx, *(self.onnx.parent / name for name in sorted(external_locations(self.onnx.read_bytes())))]

    def encode(self, text: str) -> dict[str, NDArray[Any]]:
        """Tensors of one text, batch of one."""
        return self.encoder().encode(text)

    def encoder(self) -> TextEncoder:
        """Its text encoder."""
        return TextEncoder(self.tokenizer.read_bytes(), _INPUTS, max_length=self.max_length)


def model_of_bundle(name: str, path: Path) -> Model:
    """The graph of a bundle, which plain onnxruntime opens in place.

    Raises:
        BundleError: Not a bundle of a text model.
    """
    bundle = Bundle.open(path)
    how = bundle.core.preprocessing
    return Model(name, bundle.graph_path, bundle.blob_path(how.tokenizer), how.max_length)


@dataclass(frozen=True)
class Texts:
    """A part of the data.

    Attributes:
        texts: Its texts.
        truth: Index of each right label, shape (n,).
    """

    texts: tuple[str, ...]
    truth: NDArray[Any]


def read_texts(path: Path, labels: Sequence[str]) -> Texts:
    """Read a data file.

    Raises:
        DataError: It cannot be read, or has no labels.
    """
    examples = load_examples(path)
    truth = [labels.index(label) for label in require_labels(examples, path)]
    return Texts(tuple(str(example.input) for example in examples), np.array(truth))


def timing_texts(models: Sequence[Model], texts: Sequence[str], count: int, tokens: int | None) -> list[str]:
    """At most `count` texts, evenly spread; with `tokens`, only texts that are exactly so long to every model.

    Raises:
        BenchmarkError: There is no such text.
    """
    if tokens is not None:
        # Trimmed vocabularies read a text differently; each must see the same number of tokens.
        encoders = {model.tokenizer.read_bytes(): model.encoder() for model in models}.values()
        texts = [text for text in texts if all(_length(encoder, text) == tokens for encoder in encoders)]
    if not texts:
        raise BenchmarkError(f"No text has {tokens} tokens.", "Give another length.")
    count = min(count, len(texts))
    return [texts[place * len(texts) // count] for place in range(count)]


def _length(encoder: TextEncoder, text: str) -> int:
    return encoder.encode(text)["input_ids"].shape[1]


@dataclass(frozen=True)
class Timing:
    """What fresh processes measured of one model at one number of threads; an entry a round.

    Attributes:
        p50_ms: Median of the calls of each process.
        p95_ms: 95 % quantile of each.
        load_ms: From the file to a session.
        first_ms: First call.
        peak_rss_bytes: Largest resident memory of each process.
    """

    p50_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    load_ms: tuple[float, ...]
    first_ms: tuple[float, ...]
    peak_rss_bytes: tuple[int, ...]


def measure(
    models: Sequence[Model],
    texts: Sequence[str],
    *,
    threads: Sequence[int],
    rounds: int,
    calls: int,
    kept: Path,
    fresh: bool = False,
    say: Callable[[str], None] = print,
) -> dict[int, dict[str, Timing]]:
    """Time models that take turns: in each round every model gets one fresh process a number of threads.

    Args:
        models: The models.
        texts: What each process answers, over and over.
        threads: Numbers of threads.
        rounds: Rounds.
        calls: Timed calls of a process.
        kept: Folder for finished rounds.
        fresh: Whether rounds that are there already are measured anew.
        say: Takes lines of progress.

    Returns:
        By threads and name.

    Raises:
        BenchmarkError: A process failed.
    """
    folder = kept / _key(models, texts, threads, calls)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(rounds):
        path = folder / f"round-{number}.json"
        if fresh or not path.exists():
            started = time.monotonic()
            round_ = _round(models, texts, threads, calls, number)
            write_atomically(path, json.dumps(round_, indent=1).encode())
            say(f"round {number + 1}/{rounds}: {len(models)} models, {time.monotonic() - started:.0f} s")
        found.append(json.loads(path.read_text()))
    return {
        count: {model.name: _timing([round_[str(count)][model.name] for round_ in found]) for model in models}
        for count in threads
    }


def _round(
    models: Sequence[Model], texts: Sequence[str], threads: Sequence[int], calls: int, number: int
) -> dict[str, dict[str, Any]]:
    start = number % len(models)
    turn = [*models[start:], *models[:start]]
    return {str(count): {model.name: run_model(model, texts, count, calls) for model in turn} for count in threads}


def _timing(rounds: Sequence[Mapping[str, Any]]) -> Timing:
    return Timing(**{name: tuple(round_[name] for round_ in rounds) for name in Timing.__dataclass_fields__})


def _key(models: Sequence[Model], texts: Sequence[str], threads: Sequence[int], calls: int) -> str:
    facts = [
        [[model.name, model.digest(), sha256_file(model.tokenizer), model.max_length] for model in models],
        [*texts],
        [*threads],
        calls,
        sha256_file(MEASURE),
        onnxruntime.__version__,
        _processor(),
    ]
    return sha256_bytes(json.dumps(facts).encode())


def run_model(
    model: Model, texts: Sequence[str], threads: int, calls: int, logits: Path | None = None
) -> dict[str, Any]:
    """Run a model in one fresh process.

    Raises:
        BenchmarkError: It failed.
    """
    with tempfile.TemporaryDirectory(prefix="edgewise-bench-") as folder:
        feeds, asked, answered = (Path(folder) / name for name in ("feeds.npz", "job.json", "result.json"))
        write_feeds(model, texts, feeds)
        job = {"onnx": str(model.onnx), "feeds": str(feeds), "threads": threads, "calls": calls}
        asked.write_text(json.dumps({**job, "logits": str(logits) if logits else None}))
        done = subprocess.run(
            [sys.executable, str(MEASURE), str(asked), str(answered)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise BenchmarkError(f"{model.name} does not run: {last_line(done.stderr)}", "See its graph.")
        return dict(json.loads(answered.read_text()))


def write_feeds(model: Model, texts: Sequence[str], path: Path) -> None:
    """Encode texts as one model reads them."""
    encoder = model.encoder()
    encoded = {f"{n}/{name}": row for n, text in enumerate(texts) for name, row in encoder.encode(text).items()}
    np.savez(path, **encoded)  # type: ignore[arg-type]  # the stub takes the names for its own options


def answers(model: Model, texts: Sequence[str], kept: Path) -> NDArray[Any]:
    """Logits of a model on all texts, shape (n, classes), computed on one thread, or kept from before.

    Raises:
        BenchmarkError: It does not run.
    """
    facts = [model.digest(), sha256_file(model.tokenizer), model.max_length, [*texts], _processor()]
    path = kept / f"{sha256_bytes(json.dumps(facts).encode())[:16]}.npy"
    if not path.exists():
        kept.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".half.npy")
        run_model(model, texts, 1, 0, logits=half)
        half.replace(path)
    found = np.load(path)
    if not np.isfinite(found).all():
        raise BenchmarkError(f"{model.name} answers with NaN or infinity.", "See its graph.")
    return np.asarray(found)


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Attributes:
        code: Its exit code.
        wall_s: Its wall time.
        peak_sum_bytes: Largest sum of the resident memory of its process tree, sampled every 50 ms. Pages that
            processes share count once for each of them, so the truth is at most this, spikes between samples aside.
        peak_process_bytes: Largest resident memory of one of its processes, as the kernel keeps it (VmHWM).
        tail: The last line that it wrote.
    """

    code: int
    wall_s: float
    peak_sum_bytes: int
    peak_process_bytes: int
    tail: str


def run_command(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Finished:
    """Run a command to its end, with what it prints in `log`, and watch the memory of its process tree."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        started = time.monotonic()
        process = subprocess.Popen(
            [*command], stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}, cwd=cwd
        )
        watch = TreeWatch(process.pid)
        try:
            watch.start()
            code = process.wait()
            wall = time.monotonic() - started
        finally:
            # Ctrl-C: the command has heard it too, and may have its own way to end.
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            watch.stop()
    tail = last_line(log.read_text(encoding="utf-8", errors="replace"))
    return Finished(code, wall, watch.peak_sum_bytes, watch.peak_process_bytes, tail)


class TreeWatch(threading.Thread):
    """Samples the resident memory of a process and all its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self.peak_sum_bytes = 0
        self.peak_process_bytes = 0

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._over.wait(POLL_S):
            with suppress(psutil.Error):
                found = [memory_of(process.pid) for process in [self._root, *self._root.children(recursive=True)]]
                self.peak_sum_bytes = max(self.peak_sum_bytes, sum(now for now, _ in found))
                self.peak_process_bytes = max(self.peak_process_bytes, *(highest for _, highest in found))

    def stop(self) -> None:
        """End sampling."""
        self._over.set()
        self.join()


def memory_of(pid: int) -> tuple[int, int]:
    """Resident memory of a process now, and its largest so far (VmRSS, VmHWM), in bytes; zeros once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    lines = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("VmRSS", "VmHWM")))
    now, highest = (int(lines.get(name, "0").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, highest


def edgewise_quantize(arguments: Sequence[str], out: Path, log: Path) -> Finished:
    """Run `edgewise quantize`; a goal on accuracy that it missed is a result.

    Raises:
        BenchmarkError: There is no report.
    """
    command = [sys.executable, "-P", "-m", "edgewise.cli", "quantize", *arguments, "--out", str(out)]
    done = run_command(command, log)
    if done.code not in (0, 1) or not (out / "report.json").exists():
        raise BenchmarkError(f"edgewise quantize ended with {done.code}: {done.tail}", f"See {log}.")
    return done


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def machine() -> dict[str, Any]:
    """The machine, and what it was busy with when asked."""
    device = probe()
    return {
        "processor": _processor(),
        "isa": device.isa,
        "cores": device.cores,
        "memory_bytes": device.memory_bytes,
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "load_average": list(os.getloadavg()),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
