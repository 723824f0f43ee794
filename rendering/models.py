"""What inspect, predict and doctor show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table

from edgewise.rendering.words import facts, megabytes

if TYPE_CHECKING:
    from edgewise.bundle import Bundle, TensorSpec
    from edgewise.jobs.doctor import Diagnosis
    from edgewise.jobs.predict import Predicted


_SHOWN_TENSORS = 6


def bundle_view(bundle: Bundle) -> RenderableType:
    """What a bundle holds, and what was attested of it."""
    core = bundle.core
    table = facts()
    rows = [
        ("name", core.name),
        ("task", core.task),
        ("digest", bundle.model_digest),
        ("size", megabytes(bundle.size_bytes)),
        ("recipe", f"{core.recipe.name} {_options(core.recipe.options)}".strip()),
        ("made with", _options(core.recipe.tools)),
        ("needs", f"onnxruntime {core.target.min_onnxruntime} or newer, opset {core.target.opset}"),
        ("inputs", _tensors(core.inputs)),
        ("outputs", _tensors(core.outputs)),
        *([("labels", _labels(core.labels))] if core.labels else []),
        ("licences", ", ".join(core.licences) or "none stated"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    for attestation in bundle.attestations():
        table.add_row(f"attested: {attestation.kind}", _figures(attestation.payload) or "see --json")
    return table


def diagnosis_view(diagnosis: Diagnosis) -> RenderableType:
    """What this machine can and cannot do."""
    device = diagnosis.device
    table = facts()
    table.add_row("edgewise", diagnosis.edgewise)
    table.add_row("python", device.python)
    table.add_row("processor", f"{device.isa}, {device.cores} cores, {device.memory_bytes / 2**30:.1f} GiB of memory")
    table.add_row("base", ", ".join(f"{package.name} {package.version or 'MISSING'}" for package in diagnosis.base))
    for extra in diagnosis.extras:
        missing = [package.name for package in extra.packages if package.version is None]
        table.add_row(f"extra {extra.name}", "complete" if not missing else f"missing {', '.join(missing)}")
    problems = [f"• {problem}" for problem in diagnosis.problems] or ["Nothing is missing."]
    return Group(table, *problems)


def predictions_view(rows: Sequence[Predicted]) -> RenderableType:
    """Answers with their scores."""
    table = Table(box=None, pad_edge=False)
    table.add_column("answer", style="bold", no_wrap=True)
    table.add_column(rows[0].signal, justify="right")
    table.add_column("item", overflow="fold")
    for row in rows:
        table.add_row(row.output, _score(row), row.input)
    return table


def _score(row: Predicted) -> str:
    if row.out_of_distribution:
        return "unknown words: to the cloud"
    return "" if math.isnan(row.score) else f"{row.score:.4f}"


def _figures(payload: Mapping[str, Any], prefix: str = "") -> str:
    """Every number of an attestation with the path that leads to it, device and digests left out."""
    found = []
    for key, value in payload.items():
        if isinstance(value, Mapping) and key != "device":
            found.append(_figures(value, f"{prefix}{key}."))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(f"{prefix}{key} {value:.6g}" if isinstance(value, float) else f"{prefix}{key} {value}")
    return ", ".join(part for part in found if part)


def _options(values: Any) -> str:
    return ", ".join(
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def _tensors(specs: Sequence[TensorSpec]) -> str:
    shown = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs[:_SHOWN_TENSORS])
    return f"{shown}, and {len(specs) - _SHOWN_TENSORS} more" if len(specs) > _SHOWN_TENSORS else shown


def _labels(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:12])
    return f"{len(labels)}: {shown}{', …' if len(labels) > 12 else ''}"
