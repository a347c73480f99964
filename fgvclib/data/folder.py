"""A folder of the user's photos: `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, as torchvision's `ImageFolder` reads them.

Unlike there, what other programs leave behind is neither a class nor a photo, and a class is the same in `train` and
`test` however its accents are written.

True boxes are optional: `boxes.csv` with the columns path (`test/Robin/1.jpg`), x1, y1, x2, y2 in pixels of the photo
as one sees it. They are for evaluation alone; without them localisation is not scored.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from fgvclib.config import Config, folder_root
from fgvclib.data.index import BOX, COLUMNS, numbers, same_name
from fgvclib.data.photos import is_drawing, printable

COUNTS = None
CHECKSUMS: dict[str, str] = {}
SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
# Jupyter's and Git's folders and macOS' files start with a dot; archives from macOS, Synology and Windows add others.
LEFT_BEHIND = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
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
    train, test = _photos_by_class(root / "train"), _photos_by_class(root / "test")
    if missing := train.keys() ^ test.keys():
        raise ValueError(f"{root}: train and test differ in the classes {', '.join(sorted(missing))}; {LAYOUT}.")
    class_names = sorted(train)
    samples = [
        (str(path), label, part is train)
        for part in (train, test)
        for label, name in enumerate(class_names)
        for path in part[name]
    ]
    photos = pd.DataFrame(samples, columns=["path", "label", "is_train"])
    return photos.assign(image_id=photos.index + 1, **dict.fromkeys(BOX, np.nan))[COLUMNS], class_names


def _photos_by_class(folder: Path) -> dict[str, list[Path]]:
    """Class name → its photos. Raises FileNotFoundError for a folder without classes, or a class without photos."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there; {LAYOUT}.")
    classes: dict[str, list[Path]] = {}
    for entry in _listed(folder):
        if entry.is_dir():
            classes.setdefault(same_name(entry.name), []).extend(_photos_below(entry, {folder.resolve()}))
    if empty := [name for name, photos in classes.items() if not photos]:
        raise FileNotFoundError(f"{folder} has no photo of the classes {', '.join(empty)}; {LAYOUT}.")
    if not classes:
        raise FileNotFoundError(f"{folder} has no folder of a class; {LAYOUT}.")
    return classes


def _photos_below(folder: Path, above: set[Path]) -> Iterator[Path]:
    """Photos in a folder and in those below it. Links are followed, unless they lead back to a folder `above`."""
    here = folder.resolve()
    if here in above:
        return
    for entry in _listed(folder):
        if entry.is_dir():
            yield from _photos_below(entry, above | {here})
        elif entry.suffix.lower() in SUFFIXES and not is_drawing(entry):
            yield entry


def _listed(folder: Path) -> list[Path]:
    """What is in a folder but left behind there by other programs. Raises ValueError for a name that is not text."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(LEFT_BEHIND))
    for entry in entries:
        if printable(entry.name) != entry.name:
            raise ValueError(f"{printable(entry)} has a name that is not in UTF-8; rename it.")
    return entries


def relative_names(photos: pd.DataFrame, root: Path) -> list[str]:
    """`train/CLASS/name.jpg` of every photo."""
    return [same_name(Path(path).relative_to(root).as_posix()) for path in photos["path"]]


def _read_boxes(path: Path, names: list[str]) -> np.ndarray:
    """Boxes of the photos `names` (N, 4) in pixels, NaN where there is none."""
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True)
    except ValueError as error:  # so are pandas' own errors, and that of the encoding
        raise ValueError(f"{path} is not a table in UTF-8 ({str(error).strip()}); correct it.") from error
    if list(table.columns) != ["path", *BOX]:
        raise ValueError(f"{path} must start with the line path,x1,y1,x2,y2 and hold one line a photo.")
    table["path"] = [same_name(str(name).replace("\\", "/")) for name in table["path"]]
    table = table.set_index("path")
    unknown = sorted(set(table.index) - set(names))
    if unknown:
        raise ValueError(f"{path} has a box for {unknown[0]}, which is not a photo of the data set; correct the path.")
    if not table.index.is_unique:
        raise ValueError(f"{path} lists {table.index[table.index.duplicated()][0]} twice; keep one box a photo.")
    return numbers(table, f"{path}: the line of {{}}").reindex(names).to_numpy()


def fingerprint(root: Path) -> bytes:
    """What, beside the photos' content, decides what is read."""
    photos, _ = read(root)
    return repr([relative_names(photos, root), photos[BOX].to_numpy().tolist()]).encode()
