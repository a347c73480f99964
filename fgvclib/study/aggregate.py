"""The tables of a results folder beside the paper's, and Tables 2 and 3 of several data sets put together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fgvclib.config import aggregate_folder, load_config, results_folder
from fgvclib.utils.files import atomic_path

TABLES = {"table1": "03", "table2": "05", "table3": "07", "efficiency": "08"}  # and the notebooks that make them


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
        raise ValueError(f"{path} does not exist; notebooks 05 and 07 make them.")
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


def print_tables(folder: Path) -> None:
    """Print a results folder's tables, paper | ours, or which notebooks make some, and say where its figures are."""
    found = [name for name in TABLES if (folder / f"{name}.csv").exists()]
    for name in found:
        table = pd.read_csv(folder / f"{name}.csv")
        print(f"\n{name} (paper | ours)\n{beside_paper(table).to_string(index=False)}")
    if not found:
        print(f"{folder} has no tables yet; notebooks {', '.join(TABLES.values())} make them.")
    figures = sorted((folder / "figures").glob("*.png"))
    if figures:
        print(f"\n{len(figures)} figures: {folder / 'figures'}")


def beside_paper(table: pd.DataFrame) -> pd.DataFrame:
    """Text table in which a measured column and the `paper_` column of its name share cells: "paper | ours".

    `paper_accuracy` belongs to the first column that is called `accuracy` or starts with `accuracy_`.
    """
    shown = table.map(_rounded)
    for paper in [name for name in table.columns if name.startswith("paper_")]:
        wanted = paper.removeprefix("paper_")
        ours = [name for name in table.columns if name == wanted or name.startswith(f"{wanted}_")]
        if ours:
            shown[ours[0]] = shown[paper] + " | " + shown[ours[0]]
            shown = shown.drop(columns=paper)
    return shown


def _rounded(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.0f}" if value.is_integer() else f"{value:.3f}"
    return str(value)
