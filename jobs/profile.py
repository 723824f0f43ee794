"""Measuring what a bundle costs on this machine: load, first answer, latency, memory, and whether it answers as packed.

Owns what is measured where nothing is said. Needs the base install only, so that any device can do it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgewise.bundle import Bundle, Png
from edgewise.contracts import Input, Progress
from edgewise.dataset import item_key, load_examples
from edgewise.errors import BundleError, ConfigError, EdgewiseError
from edgewise.quantize.items import require_kind
from edgewise.quantize.measure import ROUNDS, Checked, CheckJob, Measured, measure_interleaved, performance
from edgewise.quantize.process import run_fresh
from edgewise.quantize.profiling import Profile
from edgewise.quantize.progress import NullProgress

GOLDEN_CALLS = 50
"""Timed calls a process at least, where golden items stand in for data."""


@dataclass(frozen=True)
class ProfileJob:
    """Profile a bundle.

    Attributes:
        bundle: Its folder.
        data: A data file, or a folder of images; None takes the bundle's golden items, again and again.
        threads: Threads of one prediction; beside the first, latency alone is measured with each.
        lengths: Lengths of text, in tokens, at which the graph is timed as well.
        rounds: Fresh processes.
        text_field: Field of a data file that holds the text.
    """

    bundle: Path
    data: Path | None = None
    threads: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = ()
    rounds: int = ROUNDS
    text_field: str = "text"


def profile_bundle(job: ProfileJob, progress: Progress | None = None) -> Profile:
    """Measure a bundle in fresh processes on this machine.

    Golden items that come out differently are no error: the profile says so.

    Raises:
        BundleError: The bundle cannot be used, or has no golden items while no data is given.
        ConfigError: A number of threads or rounds, or a length, below 1.
        DataError: The data cannot be read, or is of the other kind.
        MissingExtraError: It is a language model, and what runs those is not installed.
    """
    progress = progress or NullProgress()
    _check_numbers(job)
    bundle = Bundle.open(job.bundle)
    inputs, rounds = _inputs(job, bundle)
    with tempfile.TemporaryDirectory(prefix="edgewise-profile-") as folder:
        log = Path(folder) / "log"
        progress.stage("golden", 1)
        check = CheckJob(str(job.bundle))
        golden = run_fresh("check", check, Checked, log=log, threads=job.threads[0]).golden
        progress.advance()
        progress.stage("measure", rounds)
        measured = _measure(job, inputs, rounds, Path(folder), log, progress)
    return Profile(
        model_digest=bundle.model_digest,
        name=bundle.core.name,
        kind=bundle.core.kind,
        size_bytes=bundle.size_bytes,
        performance=performance(measured, bundle.size_bytes),
        threads=job.threads[0],
        device=measured.rounds[0].device,
        golden=golden,
        items=len({item_key(item) for item in inputs}),
        rounds=rounds,
        facts=measured.facts,
    )


def _check_numbers(job: ProfileJob) -> None:
    if not job.threads:
        raise ConfigError("No number of threads is given.", "Give one or more, such as 1.")
    wrong = next((value for value in (*job.threads, job.rounds) if value < 1), None)
    if wrong is not None:
        raise ConfigError(f"A bundle cannot be measured with {wrong} threads or rounds.", "Give 1 or more.")


def _inputs(job: ProfileJob, bundle: Bundle) -> tuple[list[Input], int]:
    """What is timed, and in how many processes; round r of m takes items r, r + m and so on."""
    if job.data is not None:
        examples = load_examples(job.data, text_field=job.text_field)
        require_kind(examples, bundle.core.task, job.data)
        return [example.input for example in examples], min(job.rounds, len(examples))
    golden: list[Input] = [item.input.png if isinstance(item.input, Png) else item.input for item in bundle.golden()]
    if not golden:
        raise BundleError(f"{job.bundle} has no golden items to measure with.", "Give data with --data.")
    again = -(-GOLDEN_CALLS // len(golden))
    # Each as often as there are rounds, so that every process sees all of them.
    return [item for item in golden * again for _ in range(job.rounds)], job.rounds


def _measure(job: ProfileJob, inputs: list[Input], rounds: int, work: Path, log: Path, progress: Progress) -> Measured:
    found = measure_interleaved(
        {"bundle": job.bundle},
        inputs,
        work=work,
        log=log,
        threads=job.threads[0],
        rounds=rounds,
        lengths=job.lengths,
        thread_counts=job.threads[1:],
        advance=progress.advance,
    )["bundle"]
    if isinstance(found, EdgewiseError):
        raise found
    return found
