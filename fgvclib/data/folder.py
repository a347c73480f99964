"""A folder of one's own photos: `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, as torchvision's `ImageFolder` reads them.

True boxes are optional: `boxes.csv` with the columns path (`test/Robin/1.jpg`), x1, y1, x2, y2 in pixels of the photo
as one sees it. They are for evaluation alone; without them localisation is not scored.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from fgvclib.config import Config, folder_root
from fgvclib.data.index import BOX, COLUMNS, numbers, same_name

COUNTS = None
CHECKSUMS: dict[str, str] = {}
LAYOUT = "put photos into train/CLASS/ and test/CLASS/, one folder for each class"


def prepare(config: Config) -> Path:
    """The folder. Raises FileNotFoundError that says what belongs there."""
    root = folder_root()
    if not (root / "train").is_dir():
        raise FileNotFoundError(
            f"{root} has no folder train: {LAYOUT}; the environment variable FGVC_FOLDER names another place."
        )
    return root


def read(root: Path | str) -> tuple[pd.DataFrame, list[str]]:
    """Table of photos and class names, in the alphabet's order. Raises FileNotFoundError or ValueError."""
    root = Path(root)
    photos, class_names = read_by_class(root)
    boxes = root / "boxes.csv"
    if boxes.exists():
        photos[BOX] = _read_boxes(boxes, relative_names(photos, root))
    return photos, class_names


def read_by_class(root: Path) -> tuple[pd.DataFrame, list[str]]:
    """`train/CLASS/*` and `test/CLASS/*` → table without boxes, and class names."""
    train, test = _listing(root / "train"), _listing(root / "test")
    missing = {same_name(name) for name in train.classes} ^ {same_name(name) for name in test.classes}
    if missing:
        raise ValueError(f"{root}: train and test differ in the classes {', '.join(sorted(missing))}; {LAYOUT}.")
    samples = [(*sample, part is train) for part in (train, test) for sample in part.samples]
    photos = pd.DataFrame(samples, columns=["path", "label", "is_train"])
    photos = photos[~photos["path"].map(lambda path: Path(path).name.startswith("."))]  # what macOS leaves behind
    photos = photos.reset_index(drop=True)
    return photos.assign(image_id=photos.index + 1, **dict.fromkeys(BOX, np.nan))[COLUMNS], train.classes


def _listing(folder: Path):
    from torchvision.datasets import ImageFolder  # imports torch, which the other data sets are read without

    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} can not be used ({error}); {LAYOUT}.") from error


def relative_names(photos: pd.DataFrame, root: Path) -> list[str]:
    """`train/CLASS/name.jpg` of every photo."""
    return [same_name(Path(path).relative_to(root).as_posix()) for path in photos["path"]]


def _read_boxes(path: Path, names: list[str]) -> np.ndarray:
    """Boxes of the photos `names` (N, 4) in pixels, NaN where there is none."""
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True)
    except ValueError as error:  # so are pandas' own errors, and that of the encoding
        raise ValueError(f"{path} is no table in UTF-8 ({str(error).strip()}); correct it.") from error
    if list(table.columns) != ["path", *BOX]:
        raise ValueError(f"{path} must start with the line path,x1,y1,x2,y2 and hold one line a photo.")
    table["path"] = [same_name(str(name).replace("\\", "/")) for name in table["path"]]
    table = table.set_index("path")
    unknown = sorted(set(table.index) - set(names))
    if unknown:
        raise ValueError(f"{path} has a box for {unknown[0]}, which is no photo of the data set; correct the path.")
    if not table.index.is_unique:
        raise ValueError(f"{path} lists {table.index[table.index.duplicated()][0]} twice; keep one box a photo.")
    return numbers(table, f"{path}: the line of {{}}").reindex(names).to_numpy()


def fingerprint(root: Path) -> bytes:
    """What, beside the photos' content, decides what is read."""
    photos, _ = read(root)
    return repr([relative_names(photos, root), photos[BOX].to_numpy().tolist()]).encode()
