"""Tables 2 and 3 of several data sets, put together from the tables that each results folder has."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fgvclib.config import aggregate_folder, load_config, results_folder
from fgvclib.utils.files import atomic_path


def aggregate(profile: str, datasets: Sequence[str], overrides: dict | None = None) -> Path:
    """Write table2.csv and table3.csv over all `datasets` into a results folder of their own; that folder.

    Raises ValueError that names a data set without tables, or a name that does not exist.
    """
    configs = {dataset: load_config(profile, dataset, **(overrides or {})) for dataset in datasets}
    tables = {dataset: [_read(results_folder(config), n) for n in (2, 3)] for dataset, config in configs.items()}
    folder = aggregate_folder(list(configs.values()))
    _write(
        folder / "table2.csv", pd.concat([t.assign(dataset=name) for name, (t, _) in tables.items()]), first="dataset"
    )
    _write(folder / "table3.csv", _join_table3([t for _, t in tables.values()]), first="method")
    return folder


def _read(folder: Path, number: int) -> pd.DataFrame:
    path = folder / f"table{number}.csv"
    if not path.exists():
        raise ValueError(f"{path} does not exist; `fgvc grid` makes it.")
    return pd.read_csv(path, dtype={"seeds": str})  # a single seed would be read as a number, and become 0.0


def _join_table3(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The paper's rows once, then one row for each measured method with a column for every data set."""
    keys = ["method", "source", "seeds"]
    published = tables[0][tables[0]["source"] == "paper"]
    published = published.loc[:, [name for name in published if not name.startswith("measured_")]]
    measured = []
    for table in tables:
        ours = table[table["source"] != "paper"]
        measured.append(ours.set_index(keys)[[name for name in table if name.startswith("measured_")]])
    return pd.concat([published, pd.concat(measured, axis=1).reset_index()], ignore_index=True)


def _write(path: Path, table: pd.DataFrame, first: str) -> None:
    columns = [first, *(name for name in table if name != first)]
    with atomic_path(path) as temporary:
        table[columns].to_csv(temporary, index=False)
