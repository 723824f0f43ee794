"""Where candidates are made: the work folder with what was made in it, and the processes that work there.

Owns what all makers do alike: nothing is made twice, one candidate's failure is its own, and every process has a log.
What a candidate is made of is its maker's.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from edgewise.bundle import Bundle
from edgewise.errors import BundleError, DiskFullError, EdgewiseError
from edgewise.files import write_atomically
from edgewise.quantize.candidates import Built, Made
from edgewise.quantize.process import WorkerError, run_fresh
from edgewise.quantize.recipes import Choice

Result = TypeVar("Result")


class Bench:
    """A work folder and the processes that work in it.

    Args:
        work: The folder; what lies there from a run before is taken as it is.
        logs: Where the processes' output goes.
        peak: Told the largest resident memory of each process, in bytes.
    """

    def __init__(self, work: Path, logs: Path, peak: Callable[[int], None]) -> None:
        self.work = work
        self._logs = logs
        self._peak = peak
        self._shelf = Shelf(work)

    def run(self, work: str, job: msgspec.Struct, result: type[Result], *, log: str = "", threads: int = 1) -> Result:
        """Do a piece of work in a fresh process; its log is called after the work unless told otherwise.

        Raises:
            EdgewiseError: As `run_fresh`.
        """
        return run_fresh(work, job, result, log=self._logs / f"{log or work}.log", threads=threads, peak=self._peak)

    def build(self, choice: Choice, make: Callable[[Choice, Path], Made], *, required: bool) -> Built:
        """Make a candidate, or take what was made of it before; whatever goes wrong is kept as its problem.

        Args:
            choice: The candidate.
            make: Makes its bundle at a path.
            required: Whether there is no run without it.

        Raises:
            DiskFullError: It would meet every other candidate as well.
            EdgewiseError: A required candidate cannot be made.
        """
        found = self._shelf.find(choice)
        if found is not None:
            return found
        bundle = self._shelf.bundle(choice)
        # A kill may have left one without its record.
        shutil.rmtree(bundle, ignore_errors=True)
        started = time.perf_counter()
        try:
            made = make(choice, bundle)
        except DiskFullError:
            raise
        except EdgewiseError as e:
            if required:
                raise
            made = Made(state="failed", problem=str(e), lasting=not isinstance(e, WorkerError))
        return self._shelf.keep(choice, msgspec.structs.replace(made, seconds=time.perf_counter() - started))


class Shelf:
    """What was made in a work folder: bundles under `candidates/`, a record of each under `made/`.

    Args:
        work: The folder.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._whole: dict[str, Built] = {}

    def bundle(self, choice: Choice) -> Path:
        """Where a choice's bundle lies, or will."""
        return self._work / "candidates" / choice.id

    def find(self, choice: Choice) -> Built | None:
        """What was made of a choice, if its record is there and its bundle whole."""
        if choice.id in self._whole:
            return self._whole[choice.id]
        try:
            made = msgspec.json.decode(self._record(choice).read_bytes(), type=Made)
            found = Built(choice, self.bundle(choice), made)
            if found.usable and Bundle.open(found.bundle).model_digest != made.model_digest:
                return None
        except (OSError, msgspec.MsgspecError, BundleError):
            return None
        self._whole[choice.id] = found
        return found

    def keep(self, choice: Choice, made: Made) -> Built:
        """Write down what became of a choice, if it would come out the same again."""
        found = Built(choice, self.bundle(choice), made)
        if made.lasting:
            write_atomically(self._record(choice), msgspec.json.encode(made))
            self._whole[choice.id] = found
        return found

    def _record(self, choice: Choice) -> Path:
        return self._work / "made" / f"{choice.id}.json"
