"""Plots as PNG or SVG bytes. Owns how they look; what they show is computed elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec

from edgewise.contracts import Bound
from edgewise.errors import MissingExtraError
from edgewise.router.evaluation import CurvePoint


def require_plotting() -> None:
    """Tell early, before any work is done, that a plot cannot be drawn.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("Plotting", "quantize")


def plot_operating_curve(
    curve: Sequence[CurvePoint], certified: CurvePoint, bound: Bound, *, measure: str = "accuracy", form: str = "png"
) -> bytes:
    """Accuracy against the share answered locally, with the certified point on it.

    Args:
        curve: The curve, from nothing local to everything.
        certified: The certified point.
        bound: What certifies it.
        measure: What stands in the place of accuracy, in words.
        form: "png" or "svg".

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    require_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = [100 * point.local_share for point in curve]
    accuracies = [100 * point.accuracy for point in curve]
    axes.plot(shares, accuracies, color="#2b6cb0", label="most confident items at the edge, the rest in the cloud")
    axes.axhline(accuracies[0], color="#718096", linewidth=1, linestyle=":", label="cloud alone")
    axes.axhline(accuracies[-1], color="#c05621", linewidth=1, linestyle=":", label="edge alone")
    axes.plot(
        [100 * certified.local_share],
        [100 * certified.accuracy],
        marker="o",
        markersize=9,
        linestyle="none",
        color="#2f855a",
        label=f"certified: α = {100 * bound.alpha:g} %, δ = {100 * bound.delta:g} %, n = {bound.n}",
    )
    axes.set_xlabel("share answered locally (%)")
    axes.set_ylabel(f"{measure} (%)")
    axes.set_xlim(0, 100)
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", framealpha=0.9)
    picture = io.BytesIO()
    figure.savefig(picture, format=form, dpi=150)
    return picture.getvalue()
