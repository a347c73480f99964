"""The data sets: every layout read, damaged in every way we could think of, and trained on."""

import io
import os
import pickle
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_datasets as tiny_copies
import torch
import torchvision
from PIL import Image
from tiny_datasets import HEIGHT, LAYOUTS, NAMES, TEST, TRAIN, WIDTH, box, entries, jpeg
from torchvision.transforms import v2

from fgvclib.apps.predict import save_drawing
from fgvclib.config import DATASETS, load_config
from fgvclib.data import aircraft, cars, download, folder
from fgvclib.data import pixels as photo_files
from fgvclib.data.boxed import BoxedPhotos
from fgvclib.data.index import BOX, COLUMNS
from fgvclib.data.loaders import PhotoDataset
from fgvclib.data.pixels import load_pixels, photo_size, read_photo
from fgvclib.data.splits import SOURCES, dataset_checksum, load_splits, read_dataset, verify_dataset
from fgvclib.tools.cli import main
from fgvclib.training.loop import train
from fgvclib.utils.files import move_into_place

COUNT = len(NAMES) * (TRAIN + TEST)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty data root."""
    monkeypatch.setenv("FGVC_DATA", str(tmp_path))
    monkeypatch.delenv("FGVC_FOLDER", raising=False)
    return tmp_path


def config_for(dataset: str, **overrides):
    return load_config("smoke", dataset, **{"num_classes": None, "validation_fraction": 0.25} | overrides)


@pytest.fixture(params=LAYOUTS)
def layout(request, root):
    """(config, folder, whether it has boxes) of a tiny copy."""
    dataset, write, boxed = LAYOUTS[request.param]
    return config_for(dataset, cut_banner=False), write(root), boxed


def assert_one_sentence(text: str) -> None:
    assert "\n" not in text.strip() and "Traceback" not in text and text.strip().endswith(".")


# --- one interface


def test_every_name_has_a_module_with_the_same_interface():
    assert tuple(SOURCES) == DATASETS
    for module in SOURCES.values():
        for name in ("prepare", "read", "fingerprint", "COUNTS", "CHECKSUMS"):
            assert hasattr(module, name), f"{module.__name__} has no {name}"


def test_every_photo_is_read_with_its_label_split_and_box(layout):
    config, _, boxed = layout
    photos, names = read_dataset(config)
    assert names == NAMES and list(photos.columns) == COLUMNS
    assert photos["image_id"].is_unique and pd.api.types.is_integer_dtype(photos["image_id"])
    rows = {Path(row["path"]).read_bytes(): row for row in photos.to_dict("records")}
    assert len(rows) == len(photos) == COUNT
    for e in entries():
        row = rows[jpeg(e["number"])]  # by content: each layout names its photos otherwise
        assert (row["label"], row["is_train"]) == (e["label"], e["train"])
        corners = [row[corner] for corner in BOX]
        assert corners == box(e["number"]) if boxed else np.isnan(corners).all()


@pytest.mark.parametrize("name", [name for name, (_, _, boxed) in LAYOUTS.items() if boxed])
def test_splits_have_relative_boxes_but_not_for_training(root, name):
    dataset, write, _ = LAYOUTS[name]
    write(root)
    splits = load_splits(config_for(dataset, cut_banner=False))
    assert list(splits.train.columns) == ["image_id", "path", "label"]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (9, 3, 6)
    numbers = {jpeg(e["number"]): e["number"] for e in entries()}
    for row in pd.concat([splits.validation, splits.test]).to_dict("records"):
        expected = np.array(box(numbers[Path(row["path"]).read_bytes()])) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
        assert [row[corner] for corner in BOX] == pytest.approx(expected)


def test_what_is_looked_at_before_the_test_is_the_validation_part_or_training_photos_without_boxes(layout):
    config, _, _ = layout
    splits = load_splits(config)
    assert splits.watched.equals(splits.validation)
    splits = load_splits(replace(config, validation_fraction=0.0))
    assert list(splits.watched.columns) == list(splits.test.columns) and splits.watched[BOX].isna().all(axis=None)
    assert set(splits.watched["path"]) <= set(splits.train["path"]) and 0 < len(splits.watched) <= 40


def test_classes_are_chosen_by_index_and_numbered_anew(layout):
    config, _, _ = layout
    whole, _ = read_dataset(config)
    photos, names = read_dataset(replace(config, classes=(2, 0)))
    assert names == [NAMES[2], NAMES[0]]
    labels = dict(zip(whole["path"], whole["label"], strict=True))
    assert [labels[path] for path in photos["path"]] == [{0: 2, 1: 0}[label] for label in photos["label"]]
    assert len(photos) == 2 * (TRAIN + TEST)
    first, _ = read_dataset(replace(config, classes=(0, 1)))
    assert first.equals(read_dataset(replace(config, num_classes=2))[0])


def test_more_classes_than_there_are_is_refused(layout):
    config, _, _ = layout
    for wrong in (replace(config, num_classes=4), replace(config, classes=(3,))):
        with pytest.raises(ValueError, match="Class 3 is asked for, but .* has 3"):
            read_dataset(wrong)


def test_class_indices_of_synthbirds(tiny):
    chosen = replace(tiny, train_per_class=2, test_per_class=1, classes=(2, 0))
    assert [name[:4] for name in read_dataset(chosen)[1]] == ["003.", "001."]


def test_checksum_changes_with_labels_boxes_and_photos(layout):
    config, folder_, _ = layout
    before = dataset_checksum(config)
    assert dataset_checksum(config) == before
    victim = Path(read_dataset(config)[0]["path"][4])
    content = victim.read_bytes()
    victim.write_bytes(content + b"\n")
    assert dataset_checksum(config) != before
    victim.write_bytes(content)
    assert dataset_checksum(config) == before


def test_photos_with_boxes_move_together(layout):
    config, _, boxed = layout
    plain, flipped = (BoxedPhotos(config, "test", t) for t in (None, v2.RandomHorizontalFlip(1)))
    assert len(plain) == 6 and plain.classes == NAMES
    for before, after in zip(plain, flipped, strict=True):
        assert before["image"].shape == (3, HEIGHT, WIDTH) and before["image"].dtype == torch.uint8
        assert torch.equal(before["image"].flip(2), after["image"]) and before["label"] == after["label"]
        if boxed:
            (x1, y1, x2, y2), moved = before["box"][0].tolist(), after["box"][0].tolist()
            assert moved == [WIDTH - x2, y1, WIDTH - x1, y2]
        else:
            assert before["box"] is None and after["box"] is None


@pytest.mark.parametrize("part", ["train", "test"])
def test_same_photos_and_labels_as_torchvision(root, part):
    tiny_copies.aircraft(root), tiny_copies.cars_torchvision(root), tiny_copies.own_folder(root)
    theirs = {
        "aircraft": torchvision.datasets.FGVCAircraft(root, "trainval" if part == "train" else "test"),
        "cars": torchvision.datasets.StanfordCars(root, part),
        "folder": torchvision.datasets.ImageFolder(root / "folder" / part),
    }
    for name, dataset in theirs.items():
        ours = BoxedPhotos(config_for(name, cut_banner=False), part)
        assert ours.classes == list(dataset.classes) and len(ours) == len(dataset)
        for mine, (image, label) in zip(ours, dataset, strict=True):
            assert mine["label"] == label
            assert np.array_equal(mine["image"].permute(1, 2, 0), np.asarray(image.convert("RGB")))


def test_banner_of_aircraft_is_cut_off_unless_asked_to_stay(root):
    tiny_copies.aircraft(root)
    cut, whole = (config_for("aircraft", cut_banner=cut) for cut in (True, False))
    for config, height in ((cut, HEIGHT - 20), (whole, HEIGHT)):
        assert BoxedPhotos(config, "test")[0]["image"].shape == (3, height, WIDTH)
        boxes = load_splits(config).test[BOX].to_numpy()
        x1, y1, x2, y2 = box(TRAIN)  # the first test photo
        assert boxes[0] == pytest.approx(np.array([x1, y1, x2, min(y2, height)]) / [WIDTH, height, WIDTH, height])
    table = load_splits(cut).test
    square = Image.open(table["path"][0]).crop((0, 0, WIDTH, HEIGHT - 20)).resize((96, 96), Image.Resampling.BILINEAR)
    assert np.array_equal(PhotoDataset(table, cut).pixels[0], np.asarray(square))
    assert not np.array_equal(PhotoDataset(table, whole).pixels[0], np.asarray(square))


@pytest.mark.parametrize("name", [*LAYOUTS, "synthbirds"])
def test_every_layout_trains_for_an_epoch(root, small, data_folder, monkeypatch, name):
    dataset, write, boxed = LAYOUTS.get(name, ("synthbirds", lambda root: None, True))
    if dataset == "synthbirds":
        monkeypatch.setenv("FGVC_DATA", str(data_folder))
    write(root)
    config = replace(small, dataset=dataset, epochs=1, warmup_epochs=0)
    (record,) = train(config, load_splits(config), 0, root / "checkpoint.pt", pretrained=False)
    assert np.isfinite(record["train_total"]) and 0 <= record["validation_accuracy"] <= 1
    assert ("validation_mean_iou" in record) == boxed


def test_own_folder_elsewhere(root, monkeypatch):
    shutil.move(tiny_copies.own_folder(root), root / "my photos")
    with pytest.raises(FileNotFoundError, match="put photos into train/CLASS/ .* FGVC_FOLDER"):
        read_dataset(config_for("folder"))
    monkeypatch.setenv("FGVC_FOLDER", str(root / "my photos"))
    assert read_dataset(config_for("folder"))[1] == NAMES


def test_own_folder_is_used_with_all_its_classes():
    assert load_config("cpu", "folder").num_classes is None
    assert load_config("cpu", "folder", num_classes=2).num_classes == 2


def test_boxes_of_some_photos_only(root):
    path = tiny_copies.folder_with_boxes(root) / "boxes.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:6]) + "\n", encoding="utf-8")
    photos, _ = read_dataset(config_for("folder"))
    assert photos[BOX].notna().all(axis=1).sum() == 5


def test_parquet_copy_is_unpacked_once_and_anew_for_other_files(root):
    path = tiny_copies.cars_parquet(root)
    photos, _ = read_dataset(config_for("cars"))
    victim = Path(photos["path"][0])
    stamp = victim.stat().st_mtime_ns
    assert read_dataset(config_for("cars"))[0].equals(photos) and victim.stat().st_mtime_ns == stamp
    (path / "data" / "test-extra.parquet").write_bytes((path / "data" / "test-00000-of-00001.parquet").read_bytes())
    assert len(read_dataset(config_for("cars"))[0]) == COUNT + len(NAMES) * TEST
    assert not list(path.glob(".*"))  # no half-made folder is left


def cars_with_packed_devkit(root: Path, monkeypatch) -> Path:
    """A copy whose `car_devkit.tgz` has the right checksum."""
    path = tiny_copies.cars_torchvision(root)
    archive = shutil.make_archive(str(root / "car_devkit"), "gztar", path, "devkit")
    shutil.rmtree(path / "devkit")
    shutil.move(archive, path / "car_devkit.tgz")
    monkeypatch.setitem(cars.CHECKSUMS, cars.DEVKIT, download.md5_of(path / "car_devkit.tgz"))
    return path


@pytest.mark.parametrize("kind", ["parquet", "devkit"])
def test_copy_that_another_run_unpacks_meanwhile_is_used(root, monkeypatch, kind):
    path = tiny_copies.cars_parquet(root) if kind == "parquet" else cars_with_packed_devkit(root, monkeypatch)

    def overtaken(made, target, is_complete):
        shutil.copytree(made, target)
        move_into_place(made, target, is_complete)

    monkeypatch.setattr(cars if kind == "parquet" else download, "move_into_place", overtaken)
    assert len(read_dataset(config_for("cars"))[0]) == COUNT
    assert not list(path.glob(".*"))


def test_devkit_in_its_archive_is_unpacked(root, monkeypatch):
    with monkeypatch.context() as patch:
        path = cars_with_packed_devkit(root, patch)
        assert len(read_dataset(config_for("cars"))[0]) == COUNT
    shutil.rmtree(path / "devkit")
    with pytest.raises(OSError, match="car_devkit.tgz is damaged or another file"):
        read_dataset(config_for("cars"))


# --- damage, to each layout


def test_photo_that_is_listed_but_missing(layout):
    config, folder_, _ = layout
    if config.dataset == "folder" or not {"devkit", "data", "images"} & {p.name for p in folder_.iterdir()}:
        pytest.skip("photos are not listed but found")
    if any(folder_.rglob("*.parquet")):
        pytest.skip("photos lie inside the files")
    victim = sorted(folder_.rglob("*.jpg"))[7]
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=f"{victim.name} is listed .* but missing") as error:
        load_splits(config)
    assert_one_sentence(str(error.value))


def test_class_without_test_photos(layout):
    config, _, _ = layout
    photos, _ = read_dataset(config)
    source = SOURCES[config.dataset]
    fewer = photos[photos["is_train"] | (photos["label"] != 1)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="Booby has 4 .* 0 test") as error:
        patch.setattr(source, "read", lambda root: (fewer, NAMES))
        read_dataset(config)
    assert_one_sentence(str(error.value))


def test_photo_cut_short_is_named_by_the_check(layout, monkeypatch, capsys):
    config, _, _ = layout
    monkeypatch.setattr(SOURCES[config.dataset], "COUNTS", (3, 12, 6))
    monkeypatch.setattr(SOURCES[config.dataset], "CHECKSUMS", {})
    arguments = ["data", config.dataset, "--profile", "smoke"]
    assert main(arguments) == 0
    assert "3 classes, 12 training and 6 test photos" in capsys.readouterr().out
    victim = Path(read_dataset(config)[0]["path"][5])
    victim.write_bytes(victim.read_bytes()[:600])
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"{victim.name} cannot be read as a photo" in error
    assert_one_sentence(error)


def test_wrong_count_is_told_by_the_check(layout, monkeypatch):
    config, _, _ = layout
    monkeypatch.setattr(SOURCES[config.dataset], "COUNTS", (3, 12, 7))
    monkeypatch.setattr(SOURCES[config.dataset], "CHECKSUMS", {})
    with pytest.raises(ValueError, match="3 classes, 12 training and 6 test photos, but 3, 12 and 7 belong") as error:
        verify_dataset(config)
    assert_one_sentence(str(error.value))


def test_check_of_a_part_of_the_data_set_asks_for_the_chosen_classes_alone(layout, monkeypatch):
    config, _, _ = layout
    monkeypatch.setattr(SOURCES[config.dataset], "COUNTS", (200, 12, 7))
    monkeypatch.setattr(SOURCES[config.dataset], "CHECKSUMS", {})
    if config.dataset != "folder":
        assert "6 test photos, a part of the data set; 2 classes" in verify_dataset(replace(config, num_classes=2))
    with pytest.raises(ValueError, match="Class 3 is asked for"):
        verify_dataset(replace(config, classes=(0, 3)))


def test_published_counts():
    assert {name: module.COUNTS for name, module in SOURCES.items()} == {
        "synthbirds": None,
        "cub200": (200, 5994, 5794),
        "aircraft": (100, 6667, 3333),
        "cars": (196, 8144, 8041),
        "folder": None,
    }


def test_check_tells_a_box_outside_its_photo(root):
    path = tiny_copies.folder_with_boxes(root)
    replace_in(path / "boxes.csv", "train/Auk/0.jpg,1,2,20,25", "train/Auk/0.jpg,1,60,20,80")
    with pytest.raises(ValueError, match="0.jpg lies outside the photo of 40x50"):
        verify_dataset(config_for("folder"))


def test_check_says_where_localisation_is_not_scored(root):
    tiny_copies.own_folder(root)
    assert "none with a true box, so localisation is not scored" in verify_dataset(config_for("folder"))


def test_windows_line_ends_and_byte_order_mark_change_nothing(layout):
    config, folder_, _ = layout
    before = read_dataset(config)[0]
    texts = [path for pattern in ("*.txt", "*.csv") for path in folder_.rglob(pattern)]
    if not texts:
        pytest.skip("this layout has no text files")
    for path in texts:
        content = path.read_bytes().replace(b"\n", b"\r\n") if b"\r" not in path.read_bytes() else path.read_bytes()
        path.write_bytes(b"\xef\xbb\xbf" + content)
    assert read_dataset(config)[0].equals(before)


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


AIRCRAFT_DAMAGE = {
    "variant unknown": ("images_variant_test.txt", " Auk", " Dodo", "'Dodo' is not a variant"),
    "id twice": ("images_variant_trainval.txt", "0034310 ", "0034309 ", "lists the id 34309 twice"),
    "in both splits": ("images_variant_test.txt", "0034313 ", "0034309 ", "0034309 is in both splits"),
    "no box": ("images_box.txt", "0034309 ", "0099999 ", "has no box for the photo 0034309"),
    "box of words": ("images_box.txt", "0034309 2", "0034309 wide", "the line of id 34309 must hold numbers"),
    "box outside": ("images_box.txt", "0034313 6 7 24 25", "0034313 600 7 640 25", "lies outside the photo of 40x30"),
    "variant twice": ("variants.txt", "Booby", "Auk", "lists a variant twice"),
    "latin-1": ("variants.txt", "Öre gull", None, "must be text in UTF-8"),
}


@pytest.mark.parametrize("damage", AIRCRAFT_DAMAGE)
def test_damaged_aircraft(root, damage):
    name, old, new, message = AIRCRAFT_DAMAGE[damage]
    path = tiny_copies.aircraft(root) / "data" / name
    if new is None:
        path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    else:
        replace_in(path, old, new)
    with pytest.raises(ValueError, match=message) as error:
        load_splits(config_for("aircraft"))
    assert_one_sentence(str(error.value))


@pytest.mark.parametrize("name", aircraft.INDEX_FILES)
def test_missing_file_of_aircraft(root, name):
    path = tiny_copies.aircraft(root) / "data" / name
    path.unlink()
    with pytest.raises(FileNotFoundError if name != "variants.txt" else OSError, match=name) as error:
        load_splits(config_for("aircraft"))
    assert_one_sentence(str(error.value))


def parts_with(change) -> list[dict]:
    part = [e for e in entries() if not e["train"]]
    change(part)
    return part


CARS_DAMAGE = {
    "label out of range": (lambda part: part[2].update(label=3), "the class of 00003.jpg must hold .* from 1 to 3"),
    "label zero": (lambda part: part[2].update(label=-1), "the class of 00003.jpg must hold .* from 1 to 3"),
    "one line less": (lambda part: part.pop(), None),
}


@pytest.mark.parametrize("damage", CARS_DAMAGE)
def test_damaged_labels_of_cars(root, damage):
    change, message = CARS_DAMAGE[damage]
    path = tiny_copies.cars_torchvision(root)
    tiny_copies._mat(path / "cars_test_annos_withlabels.mat", parts_with(change))
    if message is None:  # the photo is left out, which the counts tell
        assert len(read_dataset(config_for("cars"))[0]) == COUNT - 1
        return
    with pytest.raises(ValueError, match=message) as error:
        load_splits(config_for("cars"))
    assert_one_sentence(str(error.value))


@pytest.mark.parametrize(
    "name", ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"]
)
@pytest.mark.parametrize("content", [None, b"", b"MATLAB 5.0 MAT-file, cut short"])
def test_missing_or_damaged_mat_file(root, name, content):
    path = tiny_copies.cars_torchvision(root) / name
    path.unlink() if content is None else path.write_bytes(content)
    kind, message = (FileNotFoundError, f"no {path.name}") if content is None else (ValueError, "not a readable .mat")
    with pytest.raises(kind, match=message) as error:
        load_splits(config_for("cars"))
    assert_one_sentence(str(error.value))


def test_unlabelled_test_file_in_place_of_the_labelled_one(root):
    path = tiny_copies.cars_torchvision(root)
    shutil.copy(path / "devkit" / "cars_test_annos.mat", path / "cars_test_annos_withlabels.mat")
    with pytest.raises(ValueError, match="has no field class"):
        load_splits(config_for("cars"))


def test_other_labels_of_cars_are_told_by_the_check(root):
    tiny_copies.cars_torchvision(root)
    with pytest.raises(OSError, match="cars_test_annos_withlabels.mat is damaged or another file"):
        verify_dataset(config_for("cars"))


def test_cars_that_are_not_there_say_what_to_bring(root, capsys):
    for make in (lambda: None, lambda: (root / "stanford_cars").mkdir()):
        make()
        assert main(["data", "cars"]) == 1
        error = capsys.readouterr().err
        assert "bring a copy" in error and "parquet" in error
        assert_one_sentence(error)


def test_annotations_that_number_the_photos_otherwise_are_refused(root):
    path = tiny_copies.cars_by_class(root)
    lines = (path / "anno_train.csv").read_text().splitlines()
    names = [line.split(",")[0] for line in lines]
    shifted = [",".join([name, *line.split(",")[1:]]) for name, line in zip(names[1:] + names[:1], lines, strict=True)]
    (path / "anno_train.csv").write_text("\n".join(shifted))
    with pytest.raises(ValueError, match="anno_train.csv numbers the photos otherwise"):
        read_dataset(config_for("cars"))


def test_by_class_cars_without_annotations_have_no_boxes(root):
    path = tiny_copies.cars_by_class(root)
    (path / "anno_train.csv").unlink(), (path / "anno_test.csv").unlink()
    assert read_dataset(config_for("cars"))[0][BOX].isna().all(axis=None)


@pytest.mark.parametrize(
    "damage, kind, message",
    [
        ("no test files", FileNotFoundError, r"has no test-\*.parquet"),
        ("cut short", ValueError, "is not a readable parquet file"),
        ("no features", ValueError, "does not say which columns"),
        ("label out of range", ValueError, "row 1 has the label 7 of 3 classes"),
        ("no bytes", ValueError, "row 1 holds no photo"),
    ],
)
def test_damaged_parquet(root, monkeypatch, damage, kind, message):
    if damage == "label out of range":
        monkeypatch.setattr(tiny_copies, "_parts", _parts_with_label_7)
    if damage == "no bytes":
        monkeypatch.setattr(tiny_copies, "jpeg", lambda number: jpeg(number) if number != 5 else b"")
    path = tiny_copies.cars_parquet(root, features=damage != "no features")
    if damage == "no test files":
        (path / "data" / "test-00000-of-00001.parquet").unlink()
    if damage == "cut short":
        victim = path / "data" / "test-00000-of-00001.parquet"
        victim.write_bytes(victim.read_bytes()[:500])
    with pytest.raises(kind, match=message) as error:
        load_splits(config_for("cars"))
    assert_one_sentence(str(error.value))
    assert {p.name for p in path.iterdir()} == {"data"}  # nothing half-made is left


def _parts_with_label_7() -> dict[str, list[dict]]:
    parts = {name: [e for e in entries() if e["train"] == (name == "train")] for name in ("train", "test")}
    parts["test"][1]["label"] = 7
    return parts


def test_parquet_without_pyarrow(root, monkeypatch, capsys):
    tiny_copies.cars_parquet(root)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert main(["data", "cars"]) == 1
    error = capsys.readouterr().err
    assert "pip install pyarrow" in error and error.count("\n") == 1


def move_photo(path: Path) -> None:
    (path / "train" / "Auk").rename(path / "train" / "Albatross")


FOLDER_DAMAGE = {
    "class lists differ": (move_photo, ValueError, "train and test differ in the classes Albatross, Auk"),
    "no test": (lambda path: shutil.rmtree(path / "test"), FileNotFoundError, "test is not there; put photos"),
    "class empty": (
        lambda path: [p.unlink() for p in (path / "test" / "Auk").iterdir()],
        FileNotFoundError,
        "test has no photo of the classes Auk; put photos",
    ),
    "one photo a class": (
        lambda path: [p.unlink() for p in [*sorted((path / "train" / "Auk").iterdir())[1:], path / "boxes.csv"]],
        ValueError,
        "Auk has 1 training and 2 test photos",
    ),
    "box of another photo": (
        lambda path: replace_in(path / "boxes.csv", "test/Auk/4.jpg", "test/Auk/99.jpg"),
        ValueError,
        "a box for test/Auk/99.jpg, which is not a photo",
    ),
    "box twice": (
        lambda path: replace_in(path / "boxes.csv", "test/Auk/4.jpg", "test/Auk/5.jpg"),
        ValueError,
        "lists test/Auk/5.jpg twice",
    ),
    "box of words": (
        lambda path: replace_in(path / "boxes.csv", "test/Auk/4.jpg,5", "test/Auk/4.jpg,five"),
        ValueError,
        "the line of test/Auk/4.jpg must hold numbers",
    ),
    "box outside": (
        lambda path: replace_in(path / "boxes.csv", "test/Auk/4.jpg,5,6,24,25", "test/Auk/4.jpg,45,6,60,25"),
        ValueError,
        r"\[45.0, 6.0, 60.0, 25.0\] of .*4.jpg lies outside the photo of 40x50",
    ),
    "box inside out": (
        lambda path: replace_in(path / "boxes.csv", "test/Auk/4.jpg,5,6,24,25", "test/Auk/4.jpg,24,6,5,25"),
        ValueError,
        "4.jpg lies outside .* or is empty",
    ),
    "semicolons": (
        lambda path: (path / "boxes.csv").write_text((path / "boxes.csv").read_text().replace(",", ";")),
        ValueError,
        "must start with the line path,x1,y1,x2,y2",
    ),
    "a line too long": (
        lambda path: replace_in(path / "boxes.csv", "test/Auk/4.jpg", "test/Auk/4.jpg,1,2,3"),
        ValueError,
        "boxes.csv is not a table",
    ),
}


@pytest.mark.parametrize("damage", FOLDER_DAMAGE)
def test_damaged_folder(root, damage):
    change, kind, message = FOLDER_DAMAGE[damage]
    change(tiny_copies.folder_with_boxes(root))
    with pytest.raises(kind, match=message) as error:
        load_splits(config_for("folder"))
    assert_one_sentence(str(error.value))


def test_box_that_sticks_out_is_clipped(root):
    path = tiny_copies.folder_with_boxes(root)
    replace_in(path / "boxes.csv", "test/Auk/4.jpg,5,6,24,25", "test/Auk/4.jpg,-3,6,60,25")
    assert load_splits(config_for("folder")).test[BOX].iloc[0].tolist() == pytest.approx([0, 6 / 50, 1, 25 / 50])


def test_hidden_files_are_no_photos(root):
    path = tiny_copies.own_folder(root)
    for name in ("train/Auk/._1.jpg", "train/Auk/.DS_Store", "train/Auk/Thumbs.db", "test/notes.txt"):
        (path / name).write_bytes(b"\0")
    assert len(read_dataset(config_for("folder"))[0]) == COUNT
    assert folder.read(path)[0]["image_id"].tolist() == list(range(1, COUNT + 1))


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN"])
@pytest.mark.parametrize("filled", [True, False])
def test_folders_that_other_programs_leave_behind_are_neither_classes_nor_parts_of_one(root, name, filled):
    path = tiny_copies.own_folder(root)
    for place in ("train", "test/Auk"):
        (path / place / name).mkdir()
        if filled:
            shutil.copy(path / "train/Auk/1.jpg", path / place / name / "1-checkpoint.jpg")
    photos, names = read_dataset(config_for("folder"))
    assert (len(photos), names) == (COUNT, NAMES)


@pytest.mark.parametrize("name", [".DS_Store", "._1.jpg", "notes.txt"])
def test_class_folder_without_photos_is_named(root, name):
    path = tiny_copies.own_folder(root)
    (path / "train" / "Puffin").mkdir()
    (path / "train" / "Puffin" / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="train has no photo of the classes Puffin; put photos") as error:
        read_dataset(config_for("folder"))
    assert_one_sentence(str(error.value))


def test_folder_without_classes_is_told(root):
    path = tiny_copies.own_folder(root)
    shutil.rmtree(path / "train")
    (path / "train" / ".git").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="train has no folder of a class; put photos"):
        read_dataset(config_for("folder"))


def test_drawings_of_predict_are_no_photos_but_other_files_of_such_names_are(root):
    path = tiny_copies.own_folder(root)
    save_drawing(Image.new("RGB", (8, 8)), path / "test" / "Auk" / "4.jpg.box.png")
    assert len(read_dataset(config_for("folder"))[0]) == COUNT
    Image.new("RGB", (8, 8)).save(path / "test" / "Auk" / "5.jpg.box.png")
    assert len(read_dataset(config_for("folder"))[0]) == COUNT + 1


def test_photos_in_folders_of_a_class_and_behind_links_are_found_once(root):
    path = tiny_copies.own_folder(root)
    (path / "train" / "Auk" / "more").mkdir()
    shutil.move(path / "train" / "Auk" / "1.jpg", path / "train" / "Auk" / "more" / "1.jpg")
    shutil.move(path / "train" / "Booby", root / "elsewhere")
    (path / "train" / "Booby").symlink_to(root / "elsewhere")
    for loop in (path / "train" / "Auk" / "self", path / "train" / "Auk" / "more" / "up"):
        loop.symlink_to(path / "train" / "Auk")
    (path / "train" / "Auk" / "all").symlink_to(path / "train")
    (path / "test" / "Auk" / "nowhere.jpg").symlink_to(root / "nowhere.jpg")
    with pytest.raises(FileNotFoundError, match="nowhere.jpg is listed in the data set but missing"):
        read_dataset(config_for("folder"))
    (path / "test" / "Auk" / "nowhere.jpg").unlink()
    photos, names = read_dataset(config_for("folder"))
    assert (len(photos), names) == (COUNT, NAMES) and photos["label"].value_counts().eq(TRAIN + TEST).all()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_accents_written_in_two_ways_are_the_same_class(root, forms):
    """`Cafz` sorts between the two spellings of `Café`, so that labels by the alphabet alone would be swapped."""
    path = tiny_copies.folder_with_boxes(root)
    for part, form in zip(("train", "test"), forms, strict=True):
        (path / part / NAMES[2]).rename(path / part / unicodedata.normalize(form, NAMES[2]))
    photos, _ = read_dataset(config_for("folder"))
    assert photos[BOX].notna().all(axis=None)
    (path / "boxes.csv").unlink()
    for part, form in zip(("train", "test"), forms, strict=True):
        (path / part / "Auk").rename(path / part / unicodedata.normalize(form, "Café"))
        (path / part / "Booby").rename(path / part / "Cafz")
    photos, names = read_dataset(config_for("folder"))
    assert names == ["Cafz", "Café", NAMES[2]]
    folders = [unicodedata.normalize("NFC", Path(photo).parent.name) for photo in photos["path"]]
    assert folders == [names[label] for label in photos["label"]]


@pytest.mark.parametrize("place", ["train", "train/Auk"])
def test_name_that_is_not_utf8_is_told_in_a_sentence_that_can_be_printed(root, place):
    path = tiny_copies.own_folder(root)
    os.mkdir(os.fsencode(path / place) + b"/M\xf6we")
    with pytest.raises(ValueError, match=r"M\\xf6we has a name that is not in UTF-8; rename it\.") as error:
        read_dataset(config_for("folder"))
    assert str(error.value).encode("utf-8")


@pytest.mark.parametrize("below", ["CUB_200_2011", "archive/CUB_200_2011"])
def test_copies_that_are_nested_as_kaggle_does_are_used(root, below):
    made = tiny_copies.cub200(root / "made")
    (root / "CUB_200_2011" / below).parent.mkdir(parents=True)
    made.rename(root / "CUB_200_2011" / below)
    photos, _ = read_dataset(config_for("cub200"))
    assert len(photos) == COUNT and dataset_checksum(config_for("cub200"))


def test_nested_copy_of_aircraft_is_used(root):
    tiny_copies.aircraft(root).rename(root / "made")
    (root / "fgvc-aircraft-2013b").mkdir()
    (root / "made").rename(root / "fgvc-aircraft-2013b" / "fgvc-aircraft-2013b")
    assert len(read_dataset(config_for("aircraft"))[0]) == COUNT


# --- pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("cut", [0, 3])
def test_size_is_known_without_decoding(tmp_path, orientation, cut):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (8, 12)).save(tmp_path / "turned.png", exif=exif)
    expected = (8, 12 - cut) if orientation < 5 else (12, 8 - cut)
    assert read_photo(tmp_path / "turned.png", cut).size == photo_size(tmp_path / "turned.png", cut) == expected


def test_photo_of_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "one.png")
    assert (load_pixels((str(tmp_path / "one.png"),), 8)[0] == [10, 20, 30]).all()
    assert read_photo(tmp_path / "one.png", cut_bottom=20).size == photo_size(tmp_path / "one.png", 20) == (1, 1)


# --- the cache


@pytest.fixture
def cached(root):
    """Paths of three photos whose squares of 16 pixels are kept."""
    paths = tuple(str(root / f"{number}.jpg") for number in range(3))
    for number, path in enumerate(paths):
        Path(path).write_bytes(jpeg(number))
    load_pixels(paths, 16)
    return paths


def kept_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / ".cache").rglob("*") if path.is_file())


@pytest.fixture
def decoded(monkeypatch):
    """Names of the photos that are decoded from now on."""
    names = []
    monkeypatch.setattr(
        photo_files, "read_photo", lambda path, cut=0: names.append(Path(path).name) or read_photo(path)
    )
    return names


def square(number: int, size: int = 16) -> np.ndarray:
    photo = Image.open(io.BytesIO(jpeg(number)))
    return np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR))


def test_photos_are_decoded_once_for_each_table_and_size_into_one_file(root, cached, decoded):
    assert len(kept_files(root)) == 1
    assert np.array_equal(load_pixels(cached, 16), [square(number) for number in range(3)])
    assert decoded == []
    assert np.array_equal(load_pixels(cached, 8), [square(number, 8) for number in range(3)])
    load_pixels(cached, 16, cut_bottom=5)
    assert sorted(decoded) == sorted(2 * ["0.jpg", "1.jpg", "2.jpg"]) and len(kept_files(root)) == 3


def test_changed_photo_is_decoded_anew_and_alone(cached, decoded):
    old = os.stat(cached[1])
    content = jpeg(7)
    Path(cached[1]).write_bytes(content + b"\0" * (old.st_size - len(content)))
    os.utime(cached[1], ns=(old.st_atime_ns, old.st_mtime_ns))  # even with the old time of change
    for _ in range(2):
        assert np.array_equal(load_pixels(cached, 16), [square(0), square(7), square(2)])
    assert decoded == ["1.jpg"]


def test_table_that_shares_photos_with_another_has_its_own_order(cached):
    assert np.array_equal(load_pixels(cached[::-1], 16), [square(number) for number in (2, 1, 0)])


@pytest.mark.parametrize("damage", [lambda c: c[:-5], lambda c: b"", lambda c: c[:50], lambda c: c[:-9] + bytes(9)])
def test_damaged_file_is_mended(root, cached, decoded, damage):
    """Cut short, or with the zeros that a crash leaves where a square's last page did not reach the disk."""
    (file,) = kept_files(root)
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert np.array_equal(load_pixels(cached, 16), [square(number) for number in range(3)])
    assert 1 <= len(decoded) <= 3  # and not once more in the second round


def test_process_that_is_killed_while_it_decodes_leaves_nothing_half_written(root, cached, decoded):
    """The second photo's record gets its head and half of its pixels; the third one's is not begun."""
    (file,) = kept_files(root)
    whole, records = file.read_bytes(), np.load(file, mmap_mode="r")
    written = records.offset + records.itemsize + records.itemsize // 2
    file.write_bytes(whole[:written] + bytes(len(whole) - written))
    assert np.array_equal(load_pixels(cached, 16), [square(number) for number in range(3)])
    assert sorted(decoded) == ["1.jpg", "2.jpg"] and file.read_bytes() == whole


def test_two_processes_that_begin_at_once_have_the_same_pixels(cached, decoded):
    first = photo_files.Pixels(cached, 24, 0)
    second = photo_files.Pixels(cached, 24, 0)
    assert np.array_equal(first, second) and np.array_equal(first, [square(number, 24) for number in range(3)])
    assert len(decoded) == 3  # what one has decoded, the other reads


def test_process_whose_file_another_one_has_replaced_reads_the_new_one(root, cached, decoded):
    """Both have found no file; the second one's takes the place of the first one's, which is open by then."""
    first = photo_files.Pixels(cached, 24, 0)
    (empty,) = (file for file in kept_files(root) if "24px" in file.name)
    empty.unlink()
    second = photo_files.Pixels(cached, 24, 0)
    for _ in range(2):
        assert np.array_equal(first, [square(number, 24) for number in range(3)])
    assert np.array_equal(second, first) and len(decoded) == 3


def test_workers_get_the_place_and_not_the_pixels(cached, decoded):
    content = pickle.dumps(load_pixels(cached, 16))
    assert len(content) < 3 * 16 * 16 * 3
    assert np.array_equal(pickle.loads(content), [square(number) for number in range(3)]) and decoded == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_full_or_read_only_disk_costs_time_alone(root, cached, monkeypatch, error):
    def refuse(*arguments):
        raise error

    monkeypatch.setenv("FGVC_RESULTS", str(root / "results"))
    monkeypatch.setattr(photo_files.Pixels, "_write", refuse)
    with pytest.warns(UserWarning, match=f"not kept.*: {error.strerror}"):
        pixels = load_pixels(cached, 12)
    for _ in range(2):
        assert np.array_equal(pixels, [square(number, 12) for number in range(3)])


def test_photos_of_a_data_root_that_can_not_be_written_are_kept_beside_the_results(root, cached, monkeypatch, decoded):
    monkeypatch.setenv("FGVC_RESULTS", str(root / "results"))
    shutil.rmtree(root / ".cache")
    (root / ".cache").write_text("a file where a folder should be made")
    for _ in range(2):
        assert np.array_equal(load_pixels(cached, 16), [square(number) for number in range(3)])
    assert len(decoded) == 3 and len(list((root / "results" / ".cache").iterdir())) == 1


def test_squares_go_beside_the_results_where_the_file_of_another_user_cannot_be_written(
    root, cached, monkeypatch, decoded
):
    """It is half full, and can be read: what is not in it is kept in the results, once."""
    monkeypatch.setenv("FGVC_RESULTS", str(root / "results"))
    write = photo_files.Pixels._write

    def refuse(self, file, *arguments):
        if file.parent == root / ".cache":
            raise OSError(13, "Permission denied")
        write(self, file, *arguments)

    monkeypatch.setattr(photo_files.Pixels, "_write", refuse)
    pixels = load_pixels(cached, 12)
    for _ in range(3):
        assert np.array_equal(pixels, [square(number, 12) for number in range(3)])
    assert len(decoded) == 3


def test_photo_that_is_gone_is_named(cached):
    Path(cached[1]).unlink()
    with pytest.raises(OSError, match=r"1.jpg cannot be read as a photo \(there is no such file\); check the path\."):
        load_pixels(cached, 16)
