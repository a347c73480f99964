"""Table 2: what each part of the system contributes (paper, section 3.2.1)."""

from collections.abc import Mapping, Sequence

import pandas as pd

from fgvclib.study.paper import paper_table
from fgvclib.training.runs import Run, list_seeds

_NO_LOCAL_LOSSES = {"lambda_att": 0.0, "lambda_aff": 0.0}

ROWS: dict[str, dict[str, float]] = {
    "Baseline": {**_NO_LOCAL_LOSSES, "beta_att": 0.0, "beta_aff": 0.0},
    # A margin is cut at the photo's edge. This row starts there, and the cut would let no gradient through.
    "No local supervision": {**_NO_LOCAL_LOSSES, "crop_margin": 0.0},
    "No end-to-end": {"beta_att": 0.0, "beta_aff": 0.0},
    "No gradient from AffNet to AttNet": {"beta_att": 0.0},
    "End-to-end": {},
}


def table2(runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Runs of every row, one per seed → the table, with the paper's accuracy beside ours.

    Accuracies are per cent, boxes in [0, 1]; `accuracy_std` is the sample standard deviation over seeds, missing for
    a single one.
    """
    rows = [_row(description, seeds) for description, seeds in runs.items()]
    paper = paper_table(2).set_index("description")["accuracy_percent"]
    return pd.DataFrame(rows).assign(paper_accuracy=[paper[row["description"]] for row in rows])


def _row(description: str, runs: Sequence[Run]) -> dict:
    config = runs[0].config
    scores = pd.DataFrame([run.metrics for run in runs])
    boxes = scores.reindex(columns=["mean_iou", "box_acc_0.5", "teacher_box_acc_0.5"])  # not scored without true boxes
    return {
        "description": description,
        "local_losses": "yes" if config.lambda_att > 0 or config.lambda_aff > 0 else "no",
        "beta_att": config.beta_att,
        "beta_aff": config.beta_aff,
        "accuracy_mean": 100 * scores["accuracy"].mean(),
        "accuracy_std": 100 * scores["accuracy"].std(),
        "seeds": list_seeds(runs),
        **boxes.mean(),
    }
