"""Table 3: the paper's comparison with other methods, and what was measured here, clearly apart."""

from collections.abc import Mapping, Sequence

import pandas as pd

from fgvclib.study.paper import paper_table
from fgvclib.training.runs import Run, list_seeds


def table3(runs: Mapping[str, Sequence[Run]], dataset: str) -> pd.DataFrame:
    """The paper's rows, then one row for each method in `runs`, in a column of their own for the data set.

    Accuracies are per cent. A number measured here must not be read along the same line as the published ones unless
    data set and profile are the paper's, hence the column `source`.
    """
    published = paper_table(3).assign(source="paper")
    measured = pd.DataFrame([_row(method, seeds, dataset) for method, seeds in runs.items()])
    return pd.concat([published, measured], ignore_index=True)


def _row(method: str, runs: Sequence[Run], dataset: str) -> dict:
    accuracy = 100 * pd.Series([run.metrics["accuracy"] for run in runs])
    return {
        "method": method,
        "source": f"measured here, {runs[0].config.profile} profile",
        "seeds": list_seeds(runs),
        f"measured_{dataset}": accuracy.mean(),
        f"measured_{dataset}_std": accuracy.std(),
    }
