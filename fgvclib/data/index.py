"""Index files as tables, with one clear sentence for each way in which they can be damaged.

A data set is one table with a row per photo: `image_id` (whole number), `path`, `label` from 0, `is_train`, and the
true box `x1, y1, x2, y2` in pixels of the upright photo, NaN where there is none.
"""

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd

BOX = ["x1", "y1", "x2", "y2"]
CROP = [f"crop_{corner}" for corner in BOX]  # of photos that are cut before training: see fixed_boxes.py
COLUMNS = ["image_id", "path", "label", "is_train", *BOX]


def find(root: Path, pattern: str) -> Path | None:
    """The first match of a pattern in `root` or up to two folders down."""
    for prefix in ("", "*/", "*/*/"):
        found = sorted(root.glob(prefix + pattern))
        if found:
            return found[0]
    return None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, whatever its line ends. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder is not a complete copy of the data set.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8 ({error}); restore it.") from error
    return [line.strip() for line in lines if line.strip()]


def read_index(path: Path, columns: list[str]) -> pd.DataFrame:
    """A text file of lines with a number and one value for each column, separated by blanks → values by that id.

    A single value may itself hold blanks: names do.
    """
    rows = [line.split(maxsplit=len(columns)) for line in read_lines(path)]
    try:
        short = [row[0] for row in rows if len(row) <= len(columns)]
        if short:
            raise ValueError(f"the line of id {short[0]} is too short")
        table = pd.DataFrame(rows, columns=["id", *columns]).astype({"id": int}).set_index("id")
    except ValueError as error:
        wanted = " ".join(f"<{column}>" for column in columns)
        raise ValueError(f"{path} must hold lines of `<id> {wanted}` in UTF-8 ({error}); restore it.") from error
    if not table.index.is_unique:
        raise ValueError(f"{path} lists the id {table.index[table.index.duplicated()][0]} twice.")
    return table


def read_numbers(path: Path, columns: list[str], allowed: range | None = None) -> pd.DataFrame:
    """An index file of numbers: finite, and where `allowed` is given one of these."""
    table = read_index(path, columns)
    return numbers(table, f"{path}: the line of id {{}}", allowed)


def numbers(table: pd.DataFrame, place: str, allowed: range | None = None) -> pd.DataFrame:
    """The table as floats. Raises ValueError that names the index of the first bad row in `place`, a format string."""
    values = table.apply(pd.to_numeric, errors="coerce").astype(float)
    good = np.isfinite(values) if allowed is None else values.isin(allowed)
    if not good.all(axis=None):
        wanted = "numbers" if allowed is None else f"a whole number from {allowed.start} to {allowed.stop - 1}"
        row = values.index[~good.all(axis=1)][0]
        raise ValueError(f"{place.format(row)} must hold {wanted}; restore the file.")
    return values


def same_name(text: str) -> str:
    """One form for names that look alike: file systems differ in how they write accents."""
    return unicodedata.normalize("NFC", text)


def check_photos(photos: pd.DataFrame, root: Path) -> None:
    """Raises ValueError or FileNotFoundError that names the first photo listed twice, or listed but not there."""
    for column in ("image_id", "path"):
        repeated = photos[column][photos[column].duplicated()]
        if len(repeated):
            raise ValueError(f"The index files in {root} list the photo {repeated.iloc[0]} twice; restore them.")
    for path in photos["path"]:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is listed in the data set but missing; restore it or unpack anew.")


def check_classes(photos: pd.DataFrame, class_names: list[str], root: Path) -> None:
    """Raises ValueError that names the first class without two training photos (one to validate) and a test photo."""
    counts = photos.groupby("label")["is_train"].agg(["sum", "count"]).reindex(range(len(class_names)), fill_value=0)
    for name, training, count in zip(class_names, counts["sum"], counts["count"], strict=True):
        if training < 2 or training == count:
            raise ValueError(
                f"{root}: class {name} has {training} training and {count - training} test photos, but at least 2 and "
                "1 are needed; add photos, or choose other classes (num_classes or classes)."
            )
