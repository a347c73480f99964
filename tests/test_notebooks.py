"""Every notebook, executed as a user would: one papermill run of the whole collection in the smoke profile."""

import json

import pandas as pd
import pytest

from fgvclib.study.paper import paper_table
from fgvclib.study.table2 import ROWS
from fgvclib.tools.runner import list_notebooks, run_all


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVC_RESULTS", str(tmp_path_factory.mktemp("results")))
        patch.setenv("FGVC_DATA", str(tmp_path_factory.mktemp("data")))
        yield run_all("smoke", "synthbirds", [0, 1])


def test_every_notebook_leaves_an_executed_copy(results):
    executed = {path.name for path in (results / "notebooks").glob("*.ipynb")}
    assert executed == {path.name for path in list_notebooks()}


def test_executed_copies_show_no_warnings_or_errors(results):
    for path in (results / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                assert output["output_type"] != "error", path.name
                assert output.get("name") != "stderr", (path.name, output["text"])


def test_table1_has_the_parameter_counts_of_the_paper(results):
    table = pd.read_csv(results / "table1.csv")
    columns = ["model", "preprocess", "parameters", "runtime_ms_batch1", "sl1_error", "iou_gt_0.80", "iou_gt_0.95"]
    assert set(columns) <= set(table.columns)
    ours = table.set_index(["model", "preprocess"])["parameters"]
    paper = paper_table(1).set_index(["model", "preprocess"])["parameters"]
    pd.testing.assert_series_equal(ours[paper.index], paper)


def test_table2_has_all_rows_over_both_seeds(results):
    table = pd.read_csv(results / "table2.csv")
    assert list(table["description"]) == list(ROWS)
    assert (table["seeds"] == "0 1").all()
    assert table["accuracy_mean"].between(0, 100).all()
    pd.testing.assert_series_equal(table["paper_accuracy"], paper_table(2)["accuracy_percent"], check_names=False)


def test_table3_keeps_published_and_measured_apart(results):
    table = pd.read_csv(results / "table3.csv")
    paper = table["source"] == "paper"
    assert table.loc[paper, "measured_synthbirds"].isna().all()
    assert table.loc[~paper, ["cub200_2011", "stanford_cars", "fgvc_aircraft"]].isna().all(axis=None)
    assert table.loc[~paper, "measured_synthbirds"].notna().all()


def test_localisation_is_scored_beside_what_needs_no_image(results):
    table = pd.read_csv(results / "localisation.csv").set_index("localiser")
    assert {"End-to-end, crop", "End-to-end, teacher's box", "centre box 0.7", "whole image"} < set(table.index)
    measured = table[table["seeds"].notna()]
    assert (measured["seeds"] == "0 1").all() and measured["box_acc_mean"].between(0, 1).all()


def test_figures_metrics_and_manifest_are_there(results):
    assert len(list((results / "figures").glob("*.png"))) >= 10
    assert {"table1", "end_to_end", "ablation", "comparison"} <= set(json.loads((results / "metrics.json").read_text()))
    manifest = json.loads((results / "manifest.json").read_text())
    assert len(manifest["notebooks"]) == len(list_notebooks())


def test_efficiency_has_the_papers_figures_and_says_what_is_open(results):
    table = pd.read_csv(results / "efficiency.csv")
    measured = table[table["note"] != "not yet measured on a GPU"]
    assert (measured["value"] > 0).all() and measured["what"].is_unique
    assert table["paper_value"].notna().any() and (results / "figures" / "08_growth.png").exists()
    grown = pd.read_csv(results / "growth.csv")
    assert set(grown["over"]) == {"batch_size", "image_size", "classes", "photos"} and grown["exponent"].notna().all()
