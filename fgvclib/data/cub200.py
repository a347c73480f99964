"""CUB-200-2011 (Wah et al. 2011): 200 birds, from CaltechDATA; and the reader of its layout."""

from pathlib import Path

import pandas as pd

from fgvclib.config import Config, data_root
from fgvclib.data.download import Archive, obtain
from fgvclib.data.index import COLUMNS, read_index, read_numbers

ARCHIVE = Archive(
    dataset="cub200",
    url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
    name="CUB_200_2011.tgz",
    md5="97eceeb196236b17998738112f37df78",
    marker="images.txt",
)
FOLDER = "CUB_200_2011"  # below the data root
COUNTS = (200, 5994, 5794)  # classes, training photos, test photos
CHECKSUMS: dict[str, str] = {}  # of files beside the archive
INDEX_FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "classes.txt")


def prepare(config: Config) -> Path:
    """Folder of the data set, downloaded where it is missing. Raises OSError that says what to do by hand."""
    return obtain(ARCHIVE, data_root() / FOLDER)


def read(root: Path | str) -> tuple[pd.DataFrame, list[str]]:
    """Table of photos and class names of a folder in this layout. Boxes are x, y, width, height there.

    Raises FileNotFoundError or ValueError that names the file at fault.
    """
    root = Path(root)
    class_names = read_index(root / "classes.txt", ["name"])["name"].sort_index()
    if list(class_names.index) != list(range(1, len(class_names) + 1)):
        raise ValueError(f"{root / 'classes.txt'} must number the classes from 1 without gaps.")
    images = read_index(root / "images.txt", ["path"])
    labels = read_numbers(root / "image_class_labels.txt", ["label"], range(1, len(class_names) + 1))
    is_train = read_numbers(root / "train_test_split.txt", ["is_train"], range(2))
    boxes = read_numbers(root / "bounding_boxes.txt", ["x1", "y1", "width", "height"])
    photos = pd.concat([images, labels, is_train, boxes], axis=1)
    if photos.isna().any(axis=None):
        raise ValueError(f"The index files in {root} do not list the same image ids; unpack the data set again.")
    photos = photos.astype({"label": int, "is_train": bool})
    photos["label"] -= 1
    photos["x2"] = photos["x1"] + photos.pop("width")
    photos["y2"] = photos["y1"] + photos.pop("height")
    photos["path"] = [str(root / "images" / path) for path in photos["path"]]
    return photos.reset_index(names="image_id")[COLUMNS], class_names.tolist()


def fingerprint(root: Path) -> bytes:
    """What, beside the photos' content, decides what is read."""
    return b"".join((root / name).read_bytes() for name in INDEX_FILES)
