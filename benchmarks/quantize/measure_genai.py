"""Generates with a language model in a process of its own: python measure_genai.py JOB RESULT.

JOB holds kind ("bare": a folder of onnxruntime-genai's builder, driven by its own loop; "edgewise": a bundle), path,
threads, tokens (how many to generate), and prompts: texts with the ids that a bare loop is fed. RESULT gets load_ms,
the first-token times, tokens_per_s after the first tokens, the generated ids and the peak memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure_onnx import peak

Continue = Callable[[dict[str, Any], int], Iterator[int]]


def bare(path: str, threads: int) -> Continue:
    """onnxruntime-genai's own loop, greedy."""
    import onnxruntime_genai as og

    config = og.Config(path)
    session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)

    def generate(prompt: dict[str, Any], tokens: int) -> Iterator[int]:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=len(prompt["ids"]) + tokens)
        generator = og.Generator(model, params)
        generator.append_tokens(prompt["ids"])
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return generate


def edgewise(path: str, threads: int) -> Continue:
    """The product's own runtime."""
    from edgewise.edge import EdgeGenerator

    model = EdgeGenerator.load(path, threads=threads)

    def generate(prompt: dict[str, Any], tokens: int) -> Iterator[int]:
        return (piece.token for piece in model.generate(prompt["text"], max_tokens=tokens))

    return generate


def main() -> None:
    """Measure, and write what was found."""
    job = json.loads(Path(sys.argv[1]).read_text())
    started = time.perf_counter()
    generate = {"bare": bare, "edgewise": edgewise}[job["kind"]](job["path"], job["threads"])
    load_ms = (time.perf_counter() - started) * 1e3
    for _ in generate(job["prompts"][0], 4):  # warms up
        pass
    firsts, answers, later, seconds = [], [], 0, 0.0
    for prompt in job["prompts"]:
        start = time.perf_counter()
        stream = generate(prompt, job["tokens"])
        ids = [next(stream)]
        first = time.perf_counter()
        ids += stream
        seconds += time.perf_counter() - first
        later += len(ids) - 1
        firsts.append((first - start) * 1e3)
        answers.append(ids)
    found = {"load_ms": load_ms, "first_ms": firsts, "tokens_per_s": later / seconds, "peak_rss_bytes": peak()}
    Path(sys.argv[2]).write_text(json.dumps({**found, "answers": answers}))


if __name__ == "__main__":
    main()
