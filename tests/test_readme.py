"""README and docs/results.md say what the committed runs measured, and link to what exists."""

import importlib.util
import json
import re

import pandas as pd
import pytest

from fgvclib.config import PROJECT
from fgvclib.study.intervals import Difference

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
    monkeypatch.setattr(report, "difference", lambda name, *rows: Difference(4.0, 4.1))
    assert report.headline().count("+4.0 ± 4.1 points") == report.headline().count("not told apart") == 3
    monkeypatch.setattr(report, "difference", lambda name, *rows: Difference(4.0, 3.9))
    assert "not told apart" not in report.headline()


def test_difference_of_committed_rows_is_that_of_their_mean_accuracies(report):
    runs = report.accuracies(report.DRAWN)
    seeds = report.shared_seeds(runs, *report.GAIN)
    crop, whole = (sum(runs[row][seed] for seed in seeds) / len(seeds) for row in report.GAIN)
    assert report.difference(report.DRAWN, *report.GAIN).mean == pytest.approx(crop - whole)


@pytest.mark.parametrize("level", [0.5, 0.7])
def test_difference_of_boxes_is_that_of_the_committed_scores(report, level):
    seeds = report.shared_seeds(report.accuracies(report.DRAWN), *report.GAIN)
    runs = report.REFERENCE / report.DRAWN / "runs"
    first, second = (
        [json.loads((runs / f"{row}-seed{seed}" / "metrics.json").read_text())["test"] for seed in seeds]
        for row in report.GAIN
    )
    expected = sum(a[f"box_acc_{level}"] - b[f"box_acc_{level}"] for a, b in zip(first, second, strict=True))
    assert expected > 0
    assert report.difference(report.DRAWN, *report.GAIN, level).mean == pytest.approx(100 * expected / len(seeds))


def test_centre_box_is_compared_without_the_margin_that_its_crop_has(report):
    """As theta's box is. The middle of the photo, 0.7 of each side, by plain arithmetic."""
    table = pd.read_csv(report.REFERENCE / report.BIRDS / "runs" / "Centre-crop-seed0" / "predictions.csv")
    assert table["box_x2"].iloc[0] - table["box_x1"].iloc[0] == pytest.approx(0.7 * 1.1)
    width = (table["x2"].clip(upper=0.85) - table["x1"].clip(lower=0.15)).clip(lower=0)
    height = (table["y2"].clip(upper=0.85) - table["y1"].clip(lower=0.15)).clip(lower=0)
    union = (table["x2"] - table["x1"]) * (table["y2"] - table["y1"]) + 0.49 - width * height
    expected = 100.0 * (width * height / union >= 0.5)
    assert expected.mean() != 100.0 * (table["iou"] >= 0.5).mean()
    assert report._hits(report.BIRDS, "Centre crop", [0], 0.5).mean() == pytest.approx(expected.mean(), abs=0.1)


def test_teachers_box_is_compared_without_the_margin_that_its_crop_has(report):
    stored = json.loads(report._run(report.BIRDS, "Teacher crop", 0).joinpath("metrics.json").read_text())["test"]
    assert stored["teacher_box_acc_0.5"] != stored["box_acc_0.5"]
    assert report._hits(report.BIRDS, "Teacher crop", [0], 0.5).mean() == pytest.approx(
        100 * stored["teacher_box_acc_0.5"]
    )


@pytest.mark.parametrize(("document", "link"), LINKS)
def test_link_leads_somewhere(document, link):
    assert ((PROJECT / document).parent / link).exists()
