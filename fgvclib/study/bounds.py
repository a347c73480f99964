"""Rows beside Table 2 (ours): how much a localisation could bring, how much a row recovers, and what from whom."""

from collections.abc import Mapping, Sequence

import pandas as pd

from fgvclib.config import PAPER
from fgvclib.study.table2 import ROWS
from fgvclib.training.evaluation import localisation_scores
from fgvclib.training.runs import Run, list_seeds

BASELINE, ORACLE = "Baseline", "Oracle crop"

# The paper's values of all that makes the objective and the teacher. From the profile come data, networks, sizes and
# schedule, and what small networks need to train at all: `attnet_standardise` and `theta_gradient_limit`.
PAPERS_KEYS = (
    *("teacher_weights", "teacher_layer", "teacher_mean", "threshold", "sharpness", "crop_margin"),
    *("box_component", "box_upsample", "attnet_stride", "attnet_size"),
    *("lambda_emb", "lambda_att", "lambda_aff", "beta_att", "beta_aff", "localisation_epochs", "warmup_epochs"),
)

PAPERS = {key: getattr(PAPER, key) for key in PAPERS_KEYS}

BOUNDS: dict[str, dict] = {
    "Centre crop": {**ROWS[BASELINE], "fixed_box": "centre"},
    "Paper's losses and live teacher": PAPERS,
    "No end-to-end with the paper's losses": PAPERS | ROWS["No end-to-end"],
    "No gradient from AffNet to AttNet with the paper's losses": PAPERS | ROWS["No gradient from AffNet to AttNet"],
    "No gradient from the classifier": {"beta_aff": 0.0},  # AttNet still hears L_aff, through AffNet
    "Teacher crop": {**ROWS[BASELINE], "fixed_box": "teacher", "teacher_weights": "imagenet"},
    ORACLE: {**ROWS[BASELINE], "fixed_box": "oracle"},
}


def bounds_table(runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Runs of every row, one per seed → accuracy in per cent, the share of the oracle's gain, and the boxes' scores.

    `share_of_gain` = (row - baseline) / (oracle - baseline), of accuracies averaged over the seeds that all three have.
    It is NaN where they share none, and where the oracle gains nothing.
    """
    table = pd.DataFrame([_row(name, seeds) for name, seeds in runs.items()])
    accuracy = pd.DataFrame(
        {name: {run.seed: run.metrics["accuracy"] for run in seeds} for name, seeds in runs.items()}
    )
    table.insert(4, "share_of_gain", [_share_of_gain(accuracy, name) for name in runs])
    return table


def _share_of_gain(accuracy: pd.DataFrame, row: str) -> float:
    """Of accuracies with a line for each seed and a column for each row."""
    named = accuracy.reindex(columns=list(dict.fromkeys((BASELINE, ORACLE, row)))).dropna()
    mean = named.mean()
    gain = mean[ORACLE] - mean[BASELINE]
    return (mean[row] - mean[BASELINE]) / gain if gain > 0 else float("nan")


def _row(name: str, runs: Sequence[Run]) -> dict:
    scores = pd.DataFrame([run.metrics for run in runs])
    accuracy = 100 * scores.pop("accuracy")
    identity = {"row": name, "seeds": list_seeds(runs)}
    names = localisation_scores(pd.Series(dtype=float), pd.Series(dtype=bool))
    boxes = scores.reindex(columns=list(names)).mean()  # NaN without true boxes
    return identity | {"accuracy_mean": accuracy.mean(), "accuracy_std": accuracy.std()} | boxes.to_dict()
