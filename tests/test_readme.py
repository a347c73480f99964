"""README and docs/results.md say what the committed runs measured, and link to what exists."""

import importlib.util
import re

import pytest

from fgvclib.config import PROJECT

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "data/README.md", "results/README.md"]
DOCUMENTS += [str(path.relative_to(PROJECT)) for path in sorted((PROJECT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|\.\./\.\./actions)([^)#\s]+)")
LINKS = [(name, link) for name in DOCUMENTS for link in sorted(set(LINK.findall((PROJECT / name).read_text("utf-8"))))]


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", PROJECT / "docs" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_page_is_what_the_committed_runs_measured(report):
    page = (PROJECT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == report.results_page(), "Run `python docs/report.py`."


def test_readme_has_their_headline_and_every_lesson(report):
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert readme == report.with_results(readme), "Run `python docs/report.py`."
    assert report.headline() in readme
    for notebook in (PROJECT / "notebooks").glob("[0-9]*.ipynb"):
        assert f"notebooks/{notebook.name})" in readme


def test_a_difference_whose_interval_holds_zero_is_not_called_a_gain(report, monkeypatch):
    runs = {"End-to-end": {0: 70.0, 1: 60.0, 2: 75.0}, "Baseline": {0: 66.0, 1: 64.0, 2: 69.0}}
    committed = report.accuracies
    monkeypatch.setattr(report, "accuracies", lambda name: runs if name == report.DRAWN else committed(name))
    drawn = report.headline().partition("drawn birds")[2]
    assert "not told apart" in drawn and "above" not in drawn
    runs["End-to-end"] = {0: 70.0, 1: 68.0, 2: 73.0}
    assert "+4.0 ± 0.0 points above the whole photo" in report.headline()


@pytest.mark.parametrize(("document", "link"), LINKS)
def test_link_leads_somewhere(document, link):
    assert ((PROJECT / document).parent / link).exists()
