"""Tiny copies of every layout that `fgvclib.data.splits` reads: 3 classes, each with 4 training and 2 test photos."""

import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

NAMES = ["Auk", "Booby", "Öre gull"]  # one with a blank and an accent
TRAIN, TEST = 4, 2
WIDTH, HEIGHT = 40, 50


def photo(number: int) -> Image.Image:
    """Another noise for each number."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def jpeg(number: int) -> bytes:
    content = io.BytesIO()
    photo(number).save(content, "jpeg")
    return content.getvalue()


def box(number: int) -> list[int]:
    """x1, y1, x2, y2 in pixels."""
    return [number % 7 + 1, number % 5 + 2, 20 + number % 9, 25 + number % 4]


def entries() -> list[dict]:
    """What every copy holds: number, label, whether it is for training."""
    count = TRAIN + TEST
    return [
        {"number": number, "label": number // count, "train": number % count < TRAIN}
        for number in range(len(NAMES) * count)
    ]


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(number))


def write_lines(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def cub200(root: Path) -> Path:
    folder = root / "CUB_200_2011"
    rows = {name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")}
    for e in entries():
        name = f"{NAMES[e['label']]}/{e['number']}.jpg"
        save(folder / "images" / name, e["number"])
        x1, y1, x2, y2 = box(e["number"])
        values = [name, e["label"] + 1, int(e["train"]), f"{x1} {y1} {x2 - x1} {y2 - y1}"]
        for file, value in zip(rows, values, strict=True):
            rows[file].append(f"{e['number'] + 1} {value}")
    for file, lines in rows.items():
        write_lines(folder / f"{file}.txt", lines)
    write_lines(folder / "classes.txt", [f"{i} {name}" for i, name in enumerate(NAMES, 1)])
    return folder


def aircraft(root: Path) -> Path:
    folder = root / "fgvc-aircraft-2013b"
    data, lines, boxes = folder / "data", {True: [], False: []}, []
    for e in entries():
        image_id = f"{34309 + e['number']:07d}"
        save(data / "images" / f"{image_id}.jpg", e["number"])
        lines[e["train"]].append(f"{image_id} {NAMES[e['label']]}")
        x1, y1, x2, y2 = box(e["number"])
        boxes.append(f"{image_id} {x1 + 1} {y1 + 1} {x2} {y2}")  # first pixel 1, last one included
    write_lines(data / "variants.txt", NAMES)
    write_lines(data / "images_variant_trainval.txt", lines[True])
    write_lines(data / "images_variant_test.txt", lines[False])
    write_lines(data / "images_box.txt", boxes)
    return folder


def _mat(path: Path, part: list[dict], labelled: bool = True) -> None:
    fields = [(f"bbox_{corner}", object) for corner in ("x1", "y1", "x2", "y2")]
    fields += [("class", object)] if labelled else []
    records = np.zeros((1, len(part)), [*fields, ("fname", object)])
    for i, e in enumerate(part):
        label = [e["label"] + 1] if labelled else []
        records[0, i] = (*box(e["number"]), *label, f"{i + 1:05d}.jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": records})


def _meta(path: Path) -> None:
    savemat(path, {"class_names": np.array([NAMES], dtype=object)})


def _parts() -> dict[str, list[dict]]:
    return {"train": [e for e in entries() if e["train"]], "test": [e for e in entries() if not e["train"]]}


def cars_torchvision(root: Path, nested: bool = False) -> Path:
    folder = root / "stanford_cars"
    for name, part in _parts().items():
        photos = folder / f"cars_{name}" / (f"cars_{name}" if nested else "")
        for i, e in enumerate(part, 1):
            save(photos / f"{i:05d}.jpg", e["number"])
    _mat(folder / "devkit" / "cars_train_annos.mat", _parts()["train"])
    _mat(folder / "devkit" / "cars_test_annos.mat", _parts()["test"], labelled=False)
    _mat(folder / "cars_test_annos_withlabels.mat", _parts()["test"])
    _meta(folder / "devkit" / "cars_meta.mat")
    return folder


def cars_nested(root: Path) -> Path:
    """As Kaggle has them, with a download's name for the labels."""
    folder = cars_torchvision(root, nested=True)
    labels = folder / "cars_test_annos_withlabels.mat"
    labels.rename(folder / "cars_test_annos_withlabels (1).mat")
    return folder


def cars_by_class(root: Path) -> Path:
    folder = root / "stanford_cars"
    for name, part in _parts().items():
        with open(folder_made(folder) / f"anno_{name}.csv", "w", newline="", encoding="utf-8") as file:
            for i, e in enumerate(part, 1):
                save(folder / "car_data" / "car_data" / name / NAMES[e["label"]] / f"{i:05d}.jpg", e["number"])
                csv.writer(file).writerow([f"{i:05d}.jpg", *box(e["number"]), e["label"] + 1])
    return folder


def cars_parquet(root: Path, features: bool = True) -> Path:
    """As Hugging Face has them: no boxes, the training photos in two files, one photo without a name."""
    import pyarrow
    import pyarrow.parquet

    folder = folder_made(root / "stanford_cars" / "data").parent
    info = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}} if features else {}
    shards = {"train-00000-of-00002": _parts()["train"][:5], "train-00001-of-00002": _parts()["train"][5:]}
    for name, part in (shards | {"test-00000-of-00001": _parts()["test"]}).items():
        images = [{"bytes": jpeg(e["number"]), "path": f"{e['number']}.jpg" if e["number"] else None} for e in part]
        table = pyarrow.table({"image": images, "label": [e["label"] for e in part]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": info}})})
        pyarrow.parquet.write_table(table, folder / "data" / f"{name}.parquet")
    return folder


def own_folder(root: Path, boxes: bool = False) -> Path:
    folder, lines = root / "folder", ["path,x1,y1,x2,y2"]
    for e in entries():
        name = f"{'train' if e['train'] else 'test'}/{NAMES[e['label']]}/{e['number']}.jpg"
        save(folder / name, e["number"])
        lines.append(",".join(map(str, [name, *box(e["number"])])))
    if boxes:
        write_lines(folder / "boxes.csv", lines)
    return folder


def folder_with_boxes(root: Path) -> Path:
    return own_folder(root, boxes=True)


def folder_made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


LAYOUTS = {  # name → data set, its writer, whether it has boxes
    "cub200": ("cub200", cub200, True),
    "aircraft": ("aircraft", aircraft, True),
    "cars as torchvision has them": ("cars", cars_torchvision, True),
    "cars nested": ("cars", cars_nested, True),
    "cars by class": ("cars", cars_by_class, True),
    "cars in parquet": ("cars", cars_parquet, False),
    "folder": ("folder", own_folder, False),
    "folder with boxes": ("folder", folder_with_boxes, True),
}
