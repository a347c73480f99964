"""Rows beside Table 2 (ours): how much a localisation could bring at most, and how much of it a row recovers."""

from collections.abc import Mapping, Sequence

import pandas as pd

from fgvclib.study.table2 import ROWS
from fgvclib.training.runs import Run, list_seeds

BASELINE, ORACLE = "Baseline", "Oracle crop"

# All that is ours taken away but `theta_gradient_limit`: without it small classifiers diverge in the first epoch.
PAPERS_RECIPE = {
    "teacher_weights": "live",
    "teacher_layer": "last",
    "teacher_mean": "mean",
    "teacher_size": 160,  # with stride 16 a map of 10x10 cells: the small network's own would be too coarse
    "teacher_output_stride": 16,
    "threshold": 0.3,
    "localisation_epochs": 0,
    "warmup_epochs": 0,
    "crop_margin": 0.0,
}

BOUNDS: dict[str, dict] = {
    "Centre crop": {**ROWS[BASELINE], "fixed_box": "centre"},
    "Paper's recipe": PAPERS_RECIPE,
    "Teacher crop": {**ROWS[BASELINE], "fixed_box": "teacher", "teacher_weights": "imagenet"},
    ORACLE: {**ROWS[BASELINE], "fixed_box": "oracle"},
}


def bounds_table(runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Runs of every row, one per seed → accuracy in per cent, the share of the oracle's gain, and the boxes' scores.

    `share_of_gain` = (row - baseline) / (oracle - baseline), of accuracies averaged over the seeds. It needs the rows
    "Baseline" and "Oracle crop"; a data set where the oracle gains nothing has none.
    """
    table = pd.DataFrame([_row(name, seeds) for name, seeds in runs.items()])
    accuracy = table.set_index("row")["accuracy_mean"]
    gain = accuracy[ORACLE] - accuracy[BASELINE]
    share = (table["accuracy_mean"] - accuracy[BASELINE]) / gain if gain > 0 else float("nan")
    table.insert(4, "share_of_gain", share)
    return table


def _row(name: str, runs: Sequence[Run]) -> dict:
    scores = pd.DataFrame([run.metrics for run in runs])
    accuracy = 100 * scores.pop("accuracy")
    identity = {"row": name, "seeds": list_seeds(runs)}
    boxes = scores.loc[:, ~scores.columns.str.startswith("teacher_")].mean()
    return identity | {"accuracy_mean": accuracy.mean(), "accuracy_std": accuracy.std()} | boxes.to_dict()
