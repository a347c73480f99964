"""FGVC-Aircraft 2013b (Maji et al. 2013): 100 variants, in the layout that torchvision's `FGVCAircraft` reads.

torchvision checks neither the archive nor boxes. The 20-pixel copyright banner at the bottom of every photo is cut off
when photos are read (`Config.cut_banner`), as the authors ask.
"""

from pathlib import Path

import pandas as pd

from fgvclib.config import Config, data_root
from fgvclib.data.download import Archive, obtain
from fgvclib.data.index import BOX, COLUMNS, read_index, read_lines, read_numbers

ARCHIVE = Archive(
    dataset="aircraft",
    url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
    name="fgvc-aircraft-2013b.tar.gz",
    md5="d4acdd33327262359767eeaa97a4f732",
    marker="data/variants.txt",
)
COUNTS = (100, 6667, 3333)  # classes, training (trainval), test photos
CHECKSUMS: dict[str, str] = {}
INDEX_FILES = ("variants.txt", "images_variant_trainval.txt", "images_variant_test.txt", "images_box.txt")


def prepare(config: Config) -> Path:
    """Folder of the data set, downloaded where it is missing. Raises OSError that says what to do by hand."""
    return obtain(ARCHIVE, data_root() / "fgvc-aircraft-2013b")


def read(root: Path | str) -> tuple[pd.DataFrame, list[str]]:
    """Table of photos and class names. Raises FileNotFoundError or ValueError that names the file at fault."""
    data = Path(root) / "data"
    class_names = read_lines(data / "variants.txt")
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"{data / 'variants.txt'} lists a variant twice; restore it.")
    parts = [_read_part(data, part, class_names) for part in ("trainval", "test")]
    photos = pd.concat(parts)
    if not photos.index.is_unique:
        repeated = photos.index[photos.index.duplicated()][0]
        raise ValueError(f"The photo {repeated:07d} is in both splits of {data}; unpack the data set again.")
    boxes = read_numbers(data / "images_box.txt", BOX).reindex(photos.index)
    if boxes.isna().any(axis=None):
        without = boxes.index[boxes.isna().any(axis=1)][0]
        raise ValueError(f"{data / 'images_box.txt'} has no box for the photo {without:07d}; restore it.")
    boxes[["x1", "y1"]] -= 1  # the first pixel is (1, 1), and a box includes its last one (README of the data set)
    return pd.concat([photos, boxes], axis=1).reset_index(names="image_id")[COLUMNS], class_names


def _read_part(data: Path, part: str, class_names: list[str]) -> pd.DataFrame:
    path = data / f"images_variant_{part}.txt"
    table = read_index(path, ["variant"])
    unknown = table[~table["variant"].isin(class_names)]
    if len(unknown):
        raise ValueError(f"{path}: {unknown['variant'].iloc[0]!r} is not a variant of variants.txt; restore the file.")
    labels = {name: label for label, name in enumerate(class_names)}
    return pd.DataFrame(
        {
            "path": [str(data / "images" / f"{image_id:07d}.jpg") for image_id in table.index],
            "label": table["variant"].map(labels).astype(int),
            "is_train": part == "trainval",
        },
        index=table.index,
    )


def fingerprint(root: Path) -> bytes:
    """What, beside the photos' content, decides what is read."""
    return b"".join((root / "data" / name).read_bytes() for name in INDEX_FILES)
