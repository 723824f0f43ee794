"""What the router's benchmarks borrow from those of quantization: base model and data, how a benchmark shows itself.

The scripts of a benchmark import their neighbours by bare names, as Python runs them; so must who borrows from them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "quantize"))

import tables
from figures import Goal
from harness import BenchmarkError, edgewise_quantize, machine
from minilm import EXAMPLE, WORK, prepare, prepare_minilm, rebuild

DATA = Path(__file__).parents[3] / "shared" / "data"
"""Where CLINC150 and RouteLLM's evaluation lie unless told otherwise: beside the repository."""

__all__ = [
    "DATA",
    "EXAMPLE",
    "WORK",
    "BenchmarkError",
    "Goal",
    "edgewise_quantize",
    "machine",
    "prepare",
    "prepare_minilm",
    "rebuild",
    "tables",
]
