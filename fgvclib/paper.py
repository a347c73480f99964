"""The paper's own numbers, as printed in its Tables 1 to 3."""

from importlib.resources import files

import pandas as pd


def paper_table(number: int) -> pd.DataFrame:
    """Table 1, 2 or 3 of Hanselmann & Ney (2020)."""
    with files("fgvclib").joinpath("paper_tables", f"table{number}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)
