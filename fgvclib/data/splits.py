"""The data sets behind one small interface. A module for each; `SOURCES` lists them.

A module has `prepare(config)` (its folder, downloaded or drawn where that is possible), `read(folder)` (a table with
the columns `index.COLUMNS`, and class names), `fingerprint(folder)`, `COUNTS` (classes, training and test photos, as
published) and `CHECKSUMS` (file pattern → MD5).

True boxes serve evaluation alone. They live in the validation and test tables that `evaluation` reads; the training
table of `Splits` has no such columns.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from fgvclib.config import Config
from fgvclib.data import aircraft, cars, cub200, folder, synthbirds
from fgvclib.data.checksums import photos_checksum
from fgvclib.data.download import check_md5
from fgvclib.data.index import BOX, check_classes, check_photos
from fgvclib.data.pixels import DECODING_THREADS, photo_size, read_photo
from fgvclib.utils.progress import progress

SOURCES: dict[str, ModuleType] = {
    "synthbirds": synthbirds,
    "cub200": cub200,
    "aircraft": aircraft,
    "cars": cars,
    "folder": folder,
}


@dataclass(frozen=True)
class Splits:
    """Tables with one row per photo: image_id, path, label; `validation` and `test` also x1, y1, x2, y2 in [0, 1].

    Boxes are NaN where a photo has none. `validation` is a fixed part of the official training split, the same for
    every seed, and empty where `validation_fraction` is 0.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    class_names: list[str]

    @property
    def watched(self) -> pd.DataFrame:
        """Photos to look at before the test: the validation part or, where it is empty, up to 40 training photos.

        Of training photos the boxes are NaN.
        """
        if len(self.validation):
            return self.validation
        few = self.train.iloc[:: math.ceil(len(self.train) / 40)].reset_index(drop=True)
        return few.reindex(columns=self.validation.columns).assign(**dict.fromkeys(BOX, float("nan")))


def prepare_dataset(config: Config) -> Path:
    """Folder of the configured data set; SynthBirds is drawn, CUB-200-2011 and Aircraft downloaded where missing.

    Raises OSError that says what to do by hand.
    """
    return SOURCES[config.dataset].prepare(config)


def read_dataset(config: Config) -> tuple[pd.DataFrame, list[str]]:
    """Table of the configured classes' photos (columns: `index.COLUMNS`) and the class names; labels count from 0.

    Raises OSError or ValueError that names what is wrong with the data set.
    """
    root = prepare_dataset(config)
    photos, class_names = SOURCES[config.dataset].read(root)
    chosen = config.classes or range(len(class_names) if config.num_classes is None else config.num_classes)
    if max(chosen) >= len(class_names):
        raise ValueError(f"Class {max(chosen)} is asked for, but {root} has {len(class_names)}, counted from 0.")
    labels = {label: new for new, label in enumerate(chosen)}
    photos = photos[photos["label"].isin(labels)].reset_index(drop=True)
    photos["label"] = photos["label"].map(labels)
    class_names = [class_names[label] for label in chosen]
    check_photos(photos, root)
    check_classes(photos, class_names, root)
    return photos, class_names


def load_splits(config: Config) -> Splits:
    """Read the configured data set and set the validation part aside. Raises OSError or ValueError."""
    return split(*read_dataset(config), config)


def split(photos: pd.DataFrame, class_names: list[str], config: Config) -> Splits:
    """What `read_dataset` gives → its parts, with boxes as shares of the photos. Raises OSError or ValueError."""
    is_train, photos = photos["is_train"], photos.drop(columns="is_train")
    fit, validation = set_aside(photos[is_train], config.validation_fraction)
    if config.fixed_box == "oracle":  # the one row that is told where the object is; see fixed_boxes.py
        if photos[BOX].isna().any(axis=None):
            raise ValueError(f"{config.dataset} has photos without a true box, which an oracle's crop needs.")
        fit = _with_relative_boxes(fit, config.cut_bottom)
    else:
        fit = fit.drop(columns=BOX).reset_index(drop=True)
    return Splits(
        train=fit,
        validation=_with_relative_boxes(validation, config.cut_bottom),
        test=_with_relative_boxes(photos[~is_train], config.cut_bottom),
        class_names=class_names,
    )


def set_aside(photos: pd.DataFrame, fraction: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split off `fraction` of every class; the same photos every time.

    That is at least one photo of a class, none for 0, and never its last.
    """
    if fraction == 0:
        return photos, photos.iloc[:0]
    validation = photos.groupby("label").sample(frac=fraction, random_state=0)
    missing = sorted(set(photos["label"]) - set(validation["label"]))
    first = photos[photos["label"].isin(missing)].groupby("label").head(1)
    validation = pd.concat([validation, first]).sort_index()
    left = photos["label"].value_counts() - validation["label"].value_counts()
    whole = validation[validation["label"].isin(left.index[left == 0])]
    validation = validation.drop(whole.groupby("label").head(1).index)
    return photos.drop(validation.index), validation


def _with_relative_boxes(photos: pd.DataFrame, cut_bottom: int) -> pd.DataFrame:
    """Boxes as shares of the photo, clipped to it. Raises ValueError for a box of which nothing is inside."""
    photos = photos.reset_index(drop=True)
    sizes = np.array([photo_size(path, cut_bottom) for path in photos["path"]], dtype=float).reshape(-1, 2)
    boxes = (photos[BOX].to_numpy() / np.tile(sizes, 2)).clip(0, 1)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)  # False where there is no box
    if empty.any():
        (path, *box), (width, height) = photos[["path", *BOX]][empty].values.tolist()[0], sizes[empty][0]
        raise ValueError(
            f"The box {box} of {path} lies outside the photo of {width:.0f}x{height:.0f} pixels or is empty; correct "
            "the boxes, or restore them with the photos."
        )
    photos[BOX] = boxes
    return photos


def has_boxes(photos: pd.DataFrame) -> bool:
    """Whether any photo of a table has a true box."""
    return bool(photos[BOX].notna().all(axis=1).any())


def dataset_checksum(config: Config) -> str:
    """SHA-256 over the index files and every photo of the configured classes, or the name of what was drawn."""
    photos, _ = read_dataset(config)
    return photos_checksum(photos["path"], config, SOURCES[config.dataset].fingerprint(prepare_dataset(config)))


def _chosen_classes(config: Config) -> float:
    """How many classes were asked for, in place of the profile's; infinite where it was left at these."""
    if "classes" in config.changes():
        return len(config.classes)
    return config.num_classes if config.changes().get("num_classes") else math.inf


def verify_dataset(config: Config) -> str:
    """Prepare the whole data set, check files, counts and every photo → one sentence on what is there.

    Raises OSError or ValueError that says what is wrong and what to do.
    """
    source, root = SOURCES[config.dataset], prepare_dataset(config)
    for pattern, md5 in source.CHECKSUMS.items():
        for path in sorted(root.rglob(pattern)):
            check_md5(path, md5)
    photos, class_names = source.read(root)
    check_photos(photos, root)
    found = (len(class_names), int(photos["is_train"].sum()), int((~photos["is_train"]).sum()))
    there = "{:,} classes, {:,} training and {:,} test photos".format(*found)
    if source.COUNTS not in (None, found) and _chosen_classes(config) < source.COUNTS[0]:
        photos, chosen = read_dataset(config)  # raises where one of them is not there
        there += f", a part of the data set; {len(chosen):,} classes are asked for"
    elif source.COUNTS not in (None, found):
        raise ValueError(
            f"{root} holds {there}, but {source.COUNTS[0]:,}, {source.COUNTS[1]:,} and {source.COUNTS[2]:,} belong to "
            f"{config.dataset}; move this copy away to get a complete one, or use the classes that are complete "
            "(--set num_classes=N)."
        )
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for _ in progress(pool.map(read_photo, photos["path"]), "checking photos", total=len(photos)):
            pass
    _with_relative_boxes(photos, config.cut_bottom)
    boxed = int(photos[BOX].notna().all(axis=1).sum())
    boxes = f"{boxed:,} with a true box" if boxed else "none with a true box, so localisation is not scored"
    return f"{root}: {there}, {boxes}; every photo can be read."
