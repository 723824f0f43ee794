"""The report page in a real browser: it runs without a complaint, draws its plots, and answers the mouse and the keys.

Chromium prints the page's tree after its scripts ran. A copy of the page gets one more script, which plays the reader
and writes down what it saw; the page's own policy, which forbids just that, is tried in a test of its own.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.quantize.page import render_page, render_plan

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")

READER = """
const seen = {};
const key = (mark) => mark.dataset.c;
const mark = document.querySelectorAll(".point")[1];
// A window that the desktop has not given the focus yet takes it without telling, so the event is sent by hand.
mark.focus();
seen.focused = document.activeElement === mark;
mark.dispatchEvent(new FocusEvent("focus"));
const tip = document.getElementById("tip");
seen.tip = tip.hidden ? null : tip.innerText;
seen.lit = document.querySelectorAll(`.point.lit`).length;
seen.litRows = document.querySelectorAll("tr.lit").length;
document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
seen.hiddenAgain = tip.hidden;
const table = document.querySelector("table.sortable");
const order = () => [...table.tBodies[0].rows].map((row) => row.dataset.c);
const button = [...table.querySelectorAll("th button")].find((found) => found.textContent === "size");
button.click(); seen.ascending = order();
button.click(); seen.descending = order();
seen.sorted = button.closest("th").getAttribute("aria-sort");
seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
seen.boxes = [...document.querySelectorAll(".mark")].filter((found) => found.getBoundingClientRect().width < 2).length;
document.body.dataset.seen = JSON.stringify(seen);
"""


def _load(path: Path):
    spec = importlib.util.spec_from_file_location("edgewise_report_values", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


values = _load(Path(__file__).parents[1] / "unit" / "report_values.py")


def dumped(page: str, folder: Path, *options: str) -> tuple[str, str]:
    """The page's tree after its scripts ran, and what the browser logged of it."""
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            *options,
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def with_script(page: str, script: str) -> str:
    return page.replace("</body>", f"<script>{script}</script></body>")


@pytest.mark.parametrize("width", [1280, 500])
def test_a_reader_sees_plots_details_and_sorted_tables(tmp_path, width):
    page = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", render_page(values.full_report()), count=1)
    tree, complaints = dumped(with_script(page, READER), tmp_path, f"--window-size={width},900")
    assert complaints == ""
    assert len(re.findall(r'<svg[^>]*class="plot"', tree)) == 3
    assert len(re.findall(r'<g [^>]*class="point', tree)) == 15
    seen = json.loads(re.search(r'data-seen="([^"]*)"', tree)[1].replace("&quot;", '"'))
    assert seen["focused"]
    assert seen["tip"].startswith("int8_dynamic")
    assert "22.9 MB" in seen["tip"]
    assert "1.77 ms" in seen["tip"]
    assert (seen["lit"], seen["litRows"], seen["hiddenAgain"]) == (3, 3, True)
    assert seen["ascending"] == ["c3", "c4", "c1", "c2", "c0"]
    assert seen["descending"] == seen["ascending"][::-1]
    assert seen["sorted"] == "descending"
    assert not seen["wide"], "the page scrolls sideways"
    assert seen["boxes"] == 0


def test_the_page_runs_its_own_script_and_no_other(tmp_path):
    tree, complaints = dumped(render_page(values.full_report("text-generation")), tmp_path)
    assert complaints == ""
    # Its script took the browser's own hints away, so it ran.
    assert not re.search(r'class="point[^>]*><title>', tree)
    tree, complaints = dumped(with_script(render_page(values.full_report()), "document.title = 'taken'"), tmp_path)
    assert "Content Security Policy" in complaints
    assert "<title>taken" not in tree


PLANNER = """
const seen = {};
// What matters most is drawn last.
const mark = [...document.querySelector("#plan svg.plot").querySelectorAll(".point")].at(-1);
mark.dispatchEvent(new FocusEvent("focus"));
seen.tip = document.getElementById("tip").innerText;
seen.lit = document.querySelectorAll(".curves .lit").length;
seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
seen.saves = [...document.querySelectorAll("button.save")].filter((found) => !found.hidden).length;
document.body.dataset.seen = JSON.stringify(seen);
"""


def test_a_plan_alone_tells_its_marks_on_a_narrow_screen(tmp_path):
    page = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", render_plan(values.full_plan()), count=1)
    tree, complaints = dumped(with_script(page, PLANNER), tmp_path, "--window-size=500,900")
    assert complaints == ""
    seen = json.loads(re.search(r'data-seen="([^"]*)"', tree)[1].replace("&quot;", '"'))
    assert "68.80 % at the edge, certified" in seen["tip"]
    # In both pictures, what is kept and what is not.
    assert (seen["lit"], seen["wide"], seen["saves"]) == (4, False, 1)
