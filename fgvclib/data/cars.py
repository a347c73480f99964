"""Stanford Cars (Krause et al. 2013): 196 cars. No official source is left, so you bring a copy, of three kinds:

- photos in `cars_train` and `cars_test` (torchvision's `StanfordCars`; Kaggle nests `cars_train/cars_train`) with the
  devkit's `cars_train_annos.mat` and `cars_meta.mat`, and `cars_test_annos_withlabels.mat`;
- photos by class in `train/CLASS` and `test/CLASS`, here or up to two folders down; boxes from `anno_train.csv` and
  `anno_test.csv` beside them or from the `.mat` files, where there are any;
- the Hugging Face copies, `train-*.parquet` and `test-*.parquet`, whose photos are unpacked by class on first use.

The boxes are used as they are written; the devkit does not say whether its first pixel is 0 or 1.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fgvclib.config import Config, data_root
from fgvclib.data.download import check_md5, unpack
from fgvclib.data.folder import read_by_class, relative_names
from fgvclib.data.index import BOX, COLUMNS, find, numbers
from fgvclib.utils.files import move_into_place
from fgvclib.utils.progress import progress

COUNTS = (196, 8144, 8041)
TRAIN_LABELS, LABELLED_TEST = "cars_train_annos.mat", "cars_test_annos_withlabels*.mat"
DEVKIT = "car_devkit.tgz"
CHECKSUMS = {LABELLED_TEST: "b0a2b23655a3edd16d84508592a98d10", DEVKIT: "c3b158d763b6e2245038c8ad08e45376"}
_BY_HAND = (
    "no official source is left; bring a copy with cars_train, cars_test, devkit/ and cars_test_annos_withlabels.mat "
    "(torchvision, Kaggle), with train/CLASS and test/CLASS, or with train-*.parquet and test-*.parquet (Hugging Face)"
)


def prepare(config: Config) -> Path:
    """Folder of the data set; a Hugging Face copy and a packed devkit are unpacked where that was not done yet.

    Raises FileNotFoundError that says what to bring.
    """
    root = data_root() / "stanford_cars"
    if not root.is_dir():
        raise FileNotFoundError(f"Stanford Cars is not in {root}: {_BY_HAND}.")
    devkit = find(root, DEVKIT)
    if devkit and not find(root, TRAIN_LABELS):
        check_md5(devkit, CHECKSUMS[DEVKIT])
        unpack(devkit, root / "devkit", TRAIN_LABELS)
    if not _has_mat_layout(root) and _parquet_files(root):
        _unpack_parquet(root)
    return root


def read(root: Path | str) -> tuple[pd.DataFrame, list[str]]:
    """Table of photos and class names. Raises FileNotFoundError or ValueError that names the file at fault."""
    root = Path(root)
    if _has_mat_layout(root):
        return _read_mat_layout(root)
    folder = _by_class_folder(root)
    photos, class_names = read_by_class(folder)
    photos[BOX] = _boxes_by_name(root, photos)
    return photos, class_names


def fingerprint(root: Path) -> bytes:
    """What, beside the photos' content, decides what is read."""
    photos, class_names = read(root)
    columns = photos[["label", "is_train", *BOX]].to_numpy().tolist()
    return repr([class_names, relative_names(photos, root), columns]).encode()


# --- photos in cars_train and cars_test, labels in .mat files


def _has_mat_layout(root: Path) -> bool:
    return _photo_folder(root, "cars_train") is not None


def _photo_folder(root: Path, name: str) -> Path | None:
    """`name` or, as Kaggle nests it, `name/name`: the one that holds photos."""
    for folder in (root / name, root / name / name, *sorted(root.glob(f"*/{name}"))):
        if next(folder.glob("*.jpg"), None):
            return folder
    return None


def _read_mat_layout(root: Path) -> tuple[pd.DataFrame, list[str]]:
    class_names = [str(name) for name in np.atleast_1d(_read_mat(_needed(root, "cars_meta.mat"), "class_names"))]
    parts = []
    for part, pattern in (("train", TRAIN_LABELS), ("test", LABELLED_TEST)):
        table = _annotations(_needed(root, pattern), len(class_names))
        folder = _photo_folder(root, f"cars_{part}") or root / f"cars_{part}"
        table["path"] = [str(folder / name) for name in table["name"]]
        parts.append(table.assign(is_train=part == "train"))
    photos = pd.concat(parts, ignore_index=True)
    return photos.assign(image_id=photos.index + 1)[COLUMNS], class_names


def _needed(root: Path, pattern: str) -> Path:
    found = find(root, pattern)
    if found is None:
        raise FileNotFoundError(f"{root} has photos but no {pattern.replace('*', '')}: {_BY_HAND}.")
    return found


def _annotations(path: Path, num_classes: int) -> pd.DataFrame:
    """Name, label from 0 and box of every photo in an annotation file."""
    records = np.atleast_1d(_read_mat(path, "annotations"))
    fields = ["fname", "class", *(f"bbox_{corner}" for corner in BOX)]
    missing = [field for field in fields if field not in (records.dtype.names or ())]
    if missing:
        raise ValueError(f"{path} has no field {missing[0]}; replace it, the test labels by {LABELLED_TEST}.")
    names = [str(name) for name in records["fname"]]
    columns = {name: records[field].tolist() for name, field in zip(["label", *BOX], fields[1:], strict=True)}
    table = pd.DataFrame(columns, index=names)
    if not table.index.is_unique:
        raise ValueError(f"{path} lists {table.index[table.index.duplicated()][0]} twice; restore it.")
    labels = numbers(table[["label"]], f"{path}: the class of {{}}", range(1, num_classes + 1)).astype(int) - 1
    boxes = numbers(table[BOX], f"{path}: the box of {{}}")
    return pd.concat([labels, boxes], axis=1).reset_index(names="name")


def _read_mat(path: Path, variable: str) -> Any:
    from scipy.io import loadmat

    try:
        return loadmat(path, squeeze_me=True)[variable]
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise ValueError(f"{path} is not a readable .mat file with {variable!r} ({error}); restore it.") from error


# --- photos by class


def _by_class_folder(root: Path) -> Path:
    """The folder that holds train/ and test/."""
    if _parquet_files(root):
        return _unpacked(root)
    train = find(root, "train/")
    if train is None:
        raise FileNotFoundError(f"{root} is not a copy of Stanford Cars that is known: {_BY_HAND}.")
    return train.parent


def _boxes_by_name(root: Path, photos: pd.DataFrame) -> np.ndarray:
    """Boxes (N, 4) of photos whose split and file name an annotation file knows, else NaN."""
    boxes = np.full((len(photos), 4), np.nan)
    for part, is_train in (("train", True), ("test", False)):
        rows = np.flatnonzero(photos["is_train"] == is_train)
        known = _known_boxes(root, part)
        if known is None:
            continue
        path, table = known
        matched = table.set_index("name").reindex([Path(photo).name for photo in photos["path"].iloc[rows]])
        pairs = pd.DataFrame({"folder": photos["label"].to_numpy()[rows], "file": matched["label"].to_numpy()})
        pairs = pairs.dropna().drop_duplicates()
        if pairs["folder"].duplicated().any() or pairs["file"].duplicated().any():
            raise ValueError(f"{path} numbers the photos otherwise than the class folders do; remove it (no boxes).")
        boxes[rows] = matched[BOX].to_numpy()
    return boxes


def _known_boxes(root: Path, part: str) -> tuple[Path, pd.DataFrame] | None:
    """The annotation file of a split and its content; None where there is none."""
    csv = find(root, f"anno_{part}.csv")
    if csv:
        try:
            table = pd.read_csv(csv, header=None, names=["name", *BOX, "label"])
        except ValueError as error:  # so are pandas' own errors, and that of the encoding
            problem = str(error).strip()
            raise ValueError(f"{csv} is not a table of name,x1,y1,x2,y2,class ({problem}); restore it.") from error
        if not table["name"].is_unique:
            raise ValueError(f"{csv} lists {table['name'][table['name'].duplicated()].iloc[0]} twice; restore it.")
        numbers(table.set_index("name"), f"{csv}: the line of {{}}")
        return csv, table
    mat = find(root, TRAIN_LABELS if part == "train" else LABELLED_TEST)
    return (mat, _annotations(mat, COUNTS[0])) if mat else None


# --- Hugging Face copies


def _parquet_files(root: Path) -> list[Path]:
    return sorted(path for prefix in ("", "*/") for path in root.glob(f"{prefix}*.parquet"))


def _unpacked(root: Path) -> Path:
    """Where the photos of the parquet files belong: a folder of its own for other files."""
    files = [(path.name, path.stat().st_size) for path in _parquet_files(root)]
    return root / f"unpacked-{sha256(repr(files).encode()).hexdigest()[:8]}"


def _unpack_parquet(root: Path) -> None:
    """Write the photos of all parquet files by class, in one step. Raises OSError or ValueError."""
    target = _unpacked(root)
    if target.is_dir():
        return
    try:
        workshop = Path(tempfile.mkdtemp(".partial", f".{target.name}.", root))
    except OSError as error:
        raise OSError(f"Parquet files cannot be unpacked in {root} ({error.strerror}); make it writable.") from error
    try:
        for part in ("train", "test"):
            files = [path for path in _parquet_files(root) if path.name.startswith(part)]
            if not files:
                raise FileNotFoundError(f"{root} has no {part}-*.parquet; copy all parquet files of the data set.")
            for name, content in progress(_photos_in(files), f"unpacking {part}", unit="photo"):
                path = workshop / "set" / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        move_into_place(workshop / "set", target, target.is_dir)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _photos_in(files: list[Path]) -> Iterator[tuple[str, bytes]]:
    """`class/name.jpg` and content of every photo; a name of our own for a row that has none."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        message = "Reading the parquet copy of Stanford Cars needs pyarrow: `pip install pyarrow`."
        raise ImportError(message) from error
    used = set()
    for number, path in enumerate(files):
        try:
            table = pyarrow.parquet.ParquetFile(path)
            image, label, class_names = _columns(path, table.schema_arrow)
            rows = (row for batch in table.iter_batches(64, columns=[image, label]) for row in batch.to_pylist())
            for row, values in enumerate(rows):
                folder, name, content = _photo(path, row, values[image], values[label], class_names)
                if not name or (folder, name) in used:
                    name = f"file_{number}_row_{row}.jpg"
                used.add((folder, name))
                yield f"{folder}/{name}", content
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is not a readable parquet file ({error}); copy it again.") from error


def _columns(path: Path, schema) -> tuple[str, str, list[str]]:
    """Name of the image column, of the label column, and the class names that Hugging Face keeps in the schema."""
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = info.get("info", {}).get("features", {})
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    if not images or not labels:
        raise ValueError(f"{path} does not say which columns are the Image and the ClassLabel; use another copy.")
    return images[0], labels[0], features[labels[0]]["names"]


def _photo(path: Path, row: int, image: dict | None, label: int | None, class_names: list[str]):
    """Class folder, file name (may be empty) and content of a row."""
    if not image or not image.get("bytes"):
        raise ValueError(f"{path}: row {row} holds no photo; copy the file again.")
    if label is None or not 0 <= label < len(class_names):
        raise ValueError(f"{path}: row {row} has the label {label} of {len(class_names)} classes; copy the file again.")
    folder = class_names[label].replace("/", "-").lstrip(".")
    return folder, Path(image.get("path") or "").name, image["bytes"]
