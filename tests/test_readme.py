"""The README says what the committed reference run measured, and links to what exists."""

import re

import pandas as pd
import pytest

from fgvclib.config import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
REFERENCE = PROJECT / "results" / "reference" / "cpu-synthbirds"


def table_rows(first_cell: str) -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] == first_cell]


@pytest.mark.parametrize(
    "row", pd.read_csv(REFERENCE / "table2.csv").to_dict("records"), ids=lambda r: r["description"]
)
def test_table2_is_the_reference_runs(row):
    (cells,) = table_rows(row["description"])
    assert cells[4] == f"{row['accuracy_mean']:.1f} ± {row['accuracy_std']:.1f}"
    assert cells[5:7] == [f"{row['box_acc_0.5']:.2f}", f"{row['teacher_box_acc_0.5']:.2f}"]


def test_table1_is_the_reference_runs():
    table = pd.read_csv(REFERENCE / "table1.csv")
    shown = [cells for model in table["model"].unique() for cells in table_rows(model) if cells[1] in ("yes", "no")]
    ours = [cells[-1].replace("\\|", "|").split("|")[-1].strip() for cells in shown]
    assert ours == [f"{value:.2f}" for value in table["iou_gt_0.95"]]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)", README))))
def test_link_leads_somewhere(target):
    assert (PROJECT / target).exists()


REAL_BIRDS = {
    "Baseline": "whole photo (baseline)",
    "Paper's recipe": "the paper's recipe, one pass",
    "End-to-end": "**end-to-end with our changes, one pass**",
    "Oracle crop": "the true box (bound)",
}


@pytest.mark.parametrize("name", REAL_BIRDS)
def test_real_birds_are_the_reference_runs(name):
    row = pd.read_csv(REFERENCE.parent / "photos-cub200" / "bounds.csv").set_index("row").loc[name]
    (cells,) = table_rows(REAL_BIRDS[name])
    spread = "" if pd.isna(row["accuracy_std"]) else f" ± {row['accuracy_std']:.1f}"
    assert cells[1:4] == [row["seeds"], f"{row['accuracy_mean']:.1f}{spread}", f"{row['share_of_gain']:.0%}"]
    columns = ["box_acc_0.3", "box_acc_0.5", "box_acc_0.7"]
    assert cells[4:7] == [f"{row[column]:.2f}" for column in columns]


@pytest.mark.parametrize(
    "what", ["localisation + classifier over classifier", "training step over baseline, given teacher map"]
)
def test_efficiency_is_the_reference_runs(what):
    table = pd.read_csv(REFERENCE.parent / "paper-efficiency" / "efficiency.csv")
    row = table[table["device"] != "GPU"].set_index("what").loc[what]
    (cells,) = table_rows(what)
    assert cells[3].startswith(f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
