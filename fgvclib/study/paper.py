"""Numbers that others have published: the paper's own Tables 1 to 3, and localisation on CUB-200-2011."""

from importlib.resources import files

import pandas as pd


def paper_table(number: int) -> pd.DataFrame:
    """Table 1, 2 or 3 of Hanselmann & Ney (2020)."""
    return _read(f"table{number}.csv")


def backbones() -> pd.DataFrame:
    """The network behind each row of Table 3: method, backbone, verified ("yes" or "no"), source.

    The paper's table does not say. Where no public code or statement of the authors was found, `verified` is "no".
    """
    return _read("backbones.csv")


def published_localisation() -> pd.DataFrame:
    """Scores of weakly supervised localisers on the test split of CUB-200-2011, in per cent, each with its source."""
    return _read("localisation.csv")


def _read(name: str) -> pd.DataFrame:
    with files("fgvclib.study").joinpath("paper_tables", name).open(encoding="utf-8") as file:
        return pd.read_csv(file)
