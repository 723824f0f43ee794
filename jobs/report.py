"""A finished run's report to look at: rebuilt from `report.json` and `plan.json`, and opened in a browser.

Owns neither the report nor how it looks. Touches nothing else in the run folder.
"""

from __future__ import annotations

import webbrowser
from pathlib import Path

from edgewise.errors import InputError
from edgewise.files import write_atomically
from edgewise.quantize.joint import PLAN, read_plan
from edgewise.quantize.page import PAGE, render_page
from edgewise.quantize.run_folder import read_report


def rebuild_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a finished run, in place of the one that may be there, and say where it lies.

    The joint plan that was made of the run is on it, if there is one.

    Args:
        run: A folder that quantize wrote.
        out: Where the page goes; `run/report.html` if None.

    Raises:
        InputError: `run` is not a run folder, its report or its plan cannot be read, or the page cannot be written.
    """
    plan = read_plan(run / PLAN) if (run / PLAN).is_file() else None
    page = render_page(read_report(run), plan)
    place = out or run / PAGE
    try:
        write_atomically(place, page.encode())
    except OSError as e:
        raise InputError(f"{place} cannot be written: {e.strerror or e}.", "Name another file with --out.") from e
    return place


def open_report(page: Path) -> bool:
    """Ask the system's browser to show a page; False where there is none."""
    return webbrowser.open(page.resolve().as_uri())
