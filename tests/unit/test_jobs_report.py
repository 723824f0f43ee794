"""Rebuilding a run's page: in place or elsewhere, from report.json alone, with an error for what is no run."""

import importlib.util
import sys
from pathlib import Path

import pytest

from edgewise.errors import InputError
from edgewise.jobs import report as job
from edgewise.quantize.joint import encode_plan
from edgewise.quantize.page import render_page
from edgewise.quantize.run_folder import write_report


def _load(path: Path):
    spec = importlib.util.spec_from_file_location("edgewise_report_values", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


VALUES = _load(Path(__file__).parent / "report_values.py")
REPORT = VALUES.full_report()


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_report(folder, REPORT, "digest")
    return folder


def test_the_page_is_rebuilt_in_place_from_the_report_alone(run):
    (run / "report.html").write_text("an older page")
    assert job.rebuild_report(run) == run / "report.html"
    assert (run / "report.html").read_text(encoding="utf-8") == render_page(REPORT)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_the_page_goes_where_it_is_asked_to(run, tmp_path):
    before = sorted(run.iterdir())
    page = job.rebuild_report(run, tmp_path / "shared" / "page.html")
    assert page.read_text(encoding="utf-8") == render_page(REPORT)
    assert sorted(run.iterdir()) == before


def test_a_plan_that_lies_in_the_run_is_shown_and_a_damaged_one_is_named(run):
    plan = VALUES.full_plan()
    (run / "plan.json").write_bytes(encode_plan(plan))
    assert job.rebuild_report(run).read_text(encoding="utf-8") == render_page(REPORT, plan)
    (run / "plan.json").write_text('{"headline": 3}')
    with pytest.raises(InputError, match=r"plan\.json holds no readable plan"):
        job.rebuild_report(run)


def test_what_is_no_run_is_refused_and_stays_as_it_is(tmp_path):
    with pytest.raises(InputError, match=r"report\.json"):
        job.rebuild_report(tmp_path)
    (tmp_path / "report.json").write_text('{"headline": 3}')
    with pytest.raises(InputError, match=r"report\.json"):
        job.rebuild_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_place_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=r"taken cannot be written"):
        job.rebuild_report(run, tmp_path / "taken")
    with pytest.raises(InputError, match=r"page\.html cannot be written"):
        job.rebuild_report(run, run / "report.json" / "page.html")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_opening_asks_the_system_for_the_file(run, monkeypatch):
    asked = []
    monkeypatch.setattr(job.webbrowser, "open", lambda url: asked.append(url) or True)
    assert job.open_report(run / "report.html")
    assert asked == [(run / "report.html").resolve().as_uri()]
