"""Reading the CUB layout, splitting it, augmenting: on a small hand-made folder."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fgvclib.config import load_config
from fgvclib.data import checksums, cub200
from fgvclib.data.augment import Lighting
from fgvclib.data.index import BOX
from fgvclib.data.loaders import EpochSampler, PhotoDataset, evaluation_loader, training_loader
from fgvclib.data.splits import dataset_checksum, load_splits, read_dataset
from fgvclib.training.loop import train

NAMES = ["001.Auk", "002.Booby", "003.Coot"]
TRAIN, TEST = 5, 2  # photos per class
COUNT = len(NAMES) * (TRAIN + TEST)


def write_cub(root: Path) -> list[dict]:
    """21 photos of various sizes with ids 10, 13, 16, … in files of differing order; returns what is in them."""
    rng = np.random.default_rng(0)
    photos = []
    for number in range(COUNT):
        label, place = divmod(number, TRAIN + TEST)
        name = f"{NAMES[label]}/photo_{number}.jpg"
        width, height = int(rng.integers(20, 50)), int(rng.integers(20, 50))
        box = [2.0 + place, 3.0, width / 2, height / 4]  # x, y, width, height in pixels
        (root / "images" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels) if number else Image.fromarray(pixels[..., 0])  # the first one is grey
        picture.save(root / "images" / name)
        identity = 10 + 3 * number
        photos.append({"id": identity, "path": name, "label": label, "train": place < TRAIN, "box": box,
                       "size": (width, height)})  # fmt: skip
    lines = {
        "images.txt": [f"{p['id']} {p['path']}" for p in photos],
        "image_class_labels.txt": [f"{p['id']} {p['label'] + 1}" for p in reversed(photos)],
        "train_test_split.txt": [f"{p['id']} {int(p['train'])}" for p in photos],
        "bounding_boxes.txt": [" ".join(map(str, [p["id"], *p["box"]])) for p in reversed(photos)],
        "classes.txt": [f"{i} {name}" for i, name in enumerate(NAMES, 1)],
    }
    for name, rows in lines.items():
        (root / name).write_text("\n".join(rows) + "\n")
    return photos


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("FGVC_DATA", str(tmp_path))
    return load_config(
        "smoke", "cub200", num_classes=3, image_size=32, crop_size=32, batch_size=4, validation_fraction=0.4
    )


@pytest.fixture
def photos(tmp_path):
    """The contents of the data set that `config` points to."""
    return write_cub(tmp_path / "CUB_200_2011")


@pytest.fixture
def folder(tmp_path, photos):
    return tmp_path / "CUB_200_2011"


# --- reading


def test_every_photo_is_read_with_its_own_label_split_and_box(folder, photos):
    table, names = cub200.read(folder)
    assert names == NAMES and len(table) == COUNT
    for row, photo in zip(table.sort_values("image_id").to_dict("records"), photos, strict=True):
        x, y, width, height = photo["box"]
        assert row["image_id"] == photo["id"] and row["label"] == photo["label"]
        assert row["is_train"] == photo["train"]
        assert Path(row["path"]) == folder / "images" / photo["path"]
        assert [row[corner] for corner in BOX] == pytest.approx([x, y, x + width, y + height])


def test_first_classes_only(config, folder):
    table, names = read_dataset(replace(config, num_classes=2))
    assert names == NAMES[:2]
    assert len(table) == 2 * (TRAIN + TEST) and set(table["label"]) == {0, 1}


def test_class_names_follow_their_numbers_not_their_lines(folder):
    lines = (folder / "classes.txt").read_text().splitlines()
    (folder / "classes.txt").write_text("\n".join(reversed(lines)) + "\n")
    assert cub200.read(folder)[1] == NAMES


@pytest.mark.parametrize("name", cub200.INDEX_FILES)
def test_missing_index_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        cub200.read(folder)


def with_id(identity: str, line: str) -> str:
    return " ".join([identity, *line.split()[1:]])


DAMAGE = {  # lines of an index file → lines of a damaged one, and what the message says
    "empty": (lambda lines: [], "same image ids"),
    "one line less": (lambda lines: lines[:-1], "same image ids"),
    "one line more": (lambda lines: [*lines, with_id("999", lines[0])], "same image ids"),
    "other id": (lambda lines: [with_id("999", lines[0]), *lines[1:]], "same image ids"),
    "same id twice": (lambda lines: [*lines, lines[0]], "twice"),
}
FILES_WITH_PHOTO_IDS = [name for name in cub200.INDEX_FILES if name != "classes.txt"]


@pytest.mark.parametrize("name", FILES_WITH_PHOTO_IDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_index_files_that_disagree_are_refused(folder, name, damage):
    change, message = DAMAGE[damage]
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=message):
        cub200.read(folder)


@pytest.mark.parametrize("label", ["0", "4", "-1"])
def test_label_out_of_range_is_refused(folder, label):
    path = folder / "image_class_labels.txt"
    path.write_text(path.read_text().replace("\n10 1\n", f"\n10 {label}\n"))
    with pytest.raises(ValueError, match="image_class_labels.txt: the line of id .* whole number from 1 to 3"):
        cub200.read(folder)


@pytest.mark.parametrize(
    "name, line",
    [
        ("image_class_labels.txt", "10 one"),
        ("image_class_labels.txt", "10 1.5"),
        ("image_class_labels.txt", "10"),
        ("train_test_split.txt", "10 yes"),
        ("train_test_split.txt", "10 2"),
        ("bounding_boxes.txt", "10 1.0 2.0 wide 4.0"),
        ("bounding_boxes.txt", "10 1.0 2.0 3.0"),
        ("bounding_boxes.txt", "10 1.0 2.0 inf 4.0"),
    ],
)
def test_value_that_is_no_number_of_its_kind_is_refused_with_the_files_name(folder, name, line):
    path = folder / name
    lines = [line if old.startswith("10 ") else old for old in path.read_text().splitlines()]
    assert line in lines
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=name):
        cub200.read(folder)


# --- splitting


def test_validation_is_a_disjoint_stratified_part_of_the_training_split(config, photos):
    splits = load_splits(config)
    train_ids, validation_ids = set(splits.train["image_id"]), set(splits.validation["image_id"])
    assert not train_ids & validation_ids
    assert train_ids | validation_ids == {p["id"] for p in photos if p["train"]}
    assert set(splits.test["image_id"]) == {p["id"] for p in photos if not p["train"]}
    assert splits.validation["label"].value_counts().to_dict() == dict.fromkeys(range(3), 2)  # 0.4 of 5
    assert splits.class_names == NAMES


def test_validation_is_the_same_every_time(config, photos):
    np.random.seed(1)
    first = load_splits(config)
    np.random.seed(2)
    torch.manual_seed(2)
    assert first.validation.equals(load_splits(config).validation)


def test_every_class_has_a_validation_photo_however_small_the_part(config, photos):
    splits = load_splits(replace(config, validation_fraction=0.01))
    assert sorted(splits.validation["label"]) == [0, 1, 2]


def test_validation_part_leaves_every_class_a_training_photo(config, photos):
    splits = load_splits(replace(config, validation_fraction=0.9))
    assert sorted(set(splits.train["label"])) == [0, 1, 2] and len(splits.validation) > len(splits.train)


def test_no_validation_part_leaves_the_whole_training_split(config, photos):
    splits = load_splits(replace(config, validation_fraction=0.0))
    assert len(splits.train) == sum(p["train"] for p in photos) and splits.validation.empty
    assert list(splits.validation) == list(load_splits(config).validation)


def test_boxes_are_relative_to_each_photos_size(config, photos):
    by_id = {p["id"]: p for p in photos}
    splits = load_splits(config)
    for table in (splits.validation, splits.test):
        for row in table.to_dict("records"):
            (x, y, w, h), (width, height) = by_id[row["image_id"]]["box"], by_id[row["image_id"]]["size"]
            expected = [x / width, y / height, min((x + w) / width, 1), (y + h) / height]
            assert [row[corner] for corner in BOX] == pytest.approx(expected)


def test_checksum_changes_with_any_file(config, folder):
    before = dataset_checksum(config)
    assert dataset_checksum(config) == before
    for path in (folder / "bounding_boxes.txt", next((folder / "images").rglob("*.jpg"))):
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert dataset_checksum(config) != before
        path.write_bytes(content)


def test_checksum_is_kept_in_the_results_where_the_data_cannot_be_written(folder, tmp_path, monkeypatch):
    """As in a folder of data that several users share; each run asks for it."""
    paths = [str(path) for path in sorted((folder / "images").rglob("*.jpg"))]
    monkeypatch.setattr(checksums, "data_root", lambda: Path(os.devnull))
    monkeypatch.setattr(checksums, "results_root", lambda: tmp_path / "results")
    first = checksums.files_checksum(paths)
    monkeypatch.setattr(checksums, "open", None, raising=False)  # reading a photo again would fail
    assert checksums.files_checksum(paths) == first


# --- no box information in training


def test_training_table_and_batches_carry_no_boxes(config, photos):
    splits = load_splits(config)
    assert list(splits.train.columns) == ["image_id", "path", "label"]
    loader, _ = training_loader(splits.train, config, seed=0)
    assert {key for batch in loader for key in batch} == {"image", "label", "index"}
    assert {key for batch in evaluation_loader(splits.test, config) for key in batch} == {"image", "label", "index"}


def test_training_with_garbage_in_place_of_the_boxes_gives_the_same_weights(tiny, data_folder, tmp_path, monkeypatch):
    weights = []
    for garbage in (False, True):
        root = tmp_path / str(garbage)
        shutil.copytree(data_folder, root)
        if garbage:
            (dataset,) = root.glob("synthbirds*")
            split = dict(line.split() for line in (dataset / "train_test_split.txt").read_text().splitlines())
            path = dataset / "bounding_boxes.txt"
            lines = [line if split[line.split()[0]] == "0" else f"{line.split()[0]} 0 0 0.1 0.1"
                     for line in path.read_text().splitlines()]  # fmt: skip
            path.write_text("\n".join(lines) + "\n")
        monkeypatch.setenv("FGVC_DATA", str(root))
        checkpoint = root / "checkpoint.pt"
        history = list(train(replace(tiny, epochs=1), load_splits(tiny), 0, checkpoint))
        weights.append(torch.load(checkpoint, weights_only=True)["model"])
    assert history[-1]["validation_mean_iou"] < 0.01  # the garbage was read
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# --- photos


def photo_table(photos: list[dict], folder: Path) -> pd.DataFrame:
    return pd.DataFrame(
        {"path": [str(folder / "images" / p["path"]) for p in photos], "label": [p["label"] for p in photos]}
    )


def test_evaluation_photos_are_resized_and_normalised_in_the_tables_order(config, folder, photos):
    table = photo_table(photos, folder)
    batches = list(evaluation_loader(table, config))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(COUNT))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [p["label"] for p in photos]
    images = torch.cat([batch["image"] for batch in batches])
    assert images.shape == (COUNT, 3, 32, 32)
    for image, path in zip(images, table["path"], strict=True):
        square = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        expected = (np.asarray(square, dtype=float) - 127) / 128  # EfficientNet-Lite0's
        assert image.numpy() == pytest.approx(expected.transpose(2, 0, 1), abs=1e-5)


@pytest.mark.parametrize("content", [b"", b"no picture", None], ids=["empty", "text", "cut off"])
def test_photo_that_can_not_be_read_is_named(config, folder, photos, content):
    splits = load_splits(config)
    bad = Path(splits.train["path"][3])
    bad.write_bytes(bad.read_bytes()[:300] if content is None else content)
    with pytest.raises(OSError, match=f"{bad.name} cannot be read as a photo"):
        training_loader(splits.train, config, seed=0)


def test_test_photo_that_can_not_be_read_is_named(config, folder, photos):
    bad = folder / "images" / next(p["path"] for p in photos if not p["train"])
    bad.write_bytes(b"no picture")
    with pytest.raises(OSError, match=bad.name):
        load_splits(config)


# --- augmenting and ordering


@pytest.fixture
def table(folder, photos):
    return photo_table(photos, folder)


def epoch_of(table, config, epoch: int, seed: int = 0) -> dict[int, torch.Tensor]:
    """Photo → image in that epoch."""
    loader, sampler = training_loader(table, config, seed)
    sampler.epoch = epoch
    return {int(i): image for batch in loader for i, image in zip(batch["index"], batch["image"], strict=True)}


def test_augmentation_is_the_same_with_and_without_workers(table, config):
    alone = epoch_of(table, config, epoch=1)
    helped = epoch_of(table, replace(config, workers=2), epoch=1)
    assert list(alone) == list(helped)
    assert all(torch.equal(alone[i], helped[i]) for i in alone)


def test_augmentation_of_a_photo_depends_on_seed_epoch_and_photo_alone(table, config):
    dataset = PhotoDataset(table, config, augment=True, seed=5)
    torch.manual_seed(1)
    first = dataset[2 * COUNT + 7]["image"]
    dataset[3], torch.rand(5)
    again = PhotoDataset(table, replace(config, batch_size=2), augment=True, seed=5)[2 * COUNT + 7]["image"]
    assert torch.equal(first, again)
    others = [dataset[3 * COUNT + 7], PhotoDataset(table, config, augment=True, seed=6)[2 * COUNT + 7]]
    assert all(not torch.equal(first, other["image"]) for other in others)


def test_augmentation_leaves_the_global_random_numbers_alone(table, config):
    dataset = PhotoDataset(table, config, augment=True)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset[4]
    assert torch.equal(torch.rand(3), expected)


def test_an_epochs_order_does_not_depend_on_the_epochs_before(table, config):
    loader, sampler = training_loader(table, config, seed=0)
    for sampler.epoch in range(3):  # noqa: B007
        last = [int(i) for batch in loader for i in batch["index"]]
    assert last == list(epoch_of(table, config, epoch=2))


def test_every_photo_comes_once_per_epoch_in_an_order_of_its_own():
    sampler = EpochSampler(50, seed=3)
    orders = []
    for epoch in range(3):
        sampler.epoch = epoch
        items = list(sampler)
        assert {item // 50 for item in items} == {epoch}
        orders.append([item % 50 for item in items])
        assert sorted(orders[-1]) == list(range(50))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [item % 50 for item in EpochSampler(50, seed=4)] != orders[0]


def test_training_batches_are_full_unless_there_is_only_one(table, config):
    sizes = [len(batch["label"]) for batch in training_loader(table, config, seed=0)[0]]
    assert sizes == [4] * 5  # of 21 photos
    assert [len(batch["label"]) for batch in training_loader(table[:3], config, seed=0)[0]] == [3]


def test_labels_stay_with_their_photos(table, config):
    for batch in training_loader(table, config, seed=0)[0]:
        assert batch["label"].tolist() == table["label"][batch["index"].tolist()].tolist()


def test_corners_that_a_rotation_leaves_empty_have_the_mean_colour(config, tmp_path):
    Image.new("RGB", (32, 32), (127, 127, 127)).save(tmp_path / "grey.png")
    dataset = PhotoDataset(pd.DataFrame({"path": [str(tmp_path / "grey.png")], "label": [0]}), config, augment=True)
    for epoch in range(10):  # the photo has the mean colour itself, so that nothing of the rotation is to be seen
        assert dataset[epoch]["image"].flatten(1).std(dim=1).max() < 1e-6


def test_half_of_the_epochs_show_the_mirror_image(config, tmp_path):
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, 16:] = 255  # bright on the right
    Image.fromarray(half).save(tmp_path / "half.png")
    dataset = PhotoDataset(pd.DataFrame({"path": [str(tmp_path / "half.png")], "label": [0]}), config, augment=True)
    images = [dataset[epoch]["image"] for epoch in range(200)]
    mirrored = sum(bool(image[..., :16].mean() > image[..., 16:].mean()) for image in images)
    assert 70 < mirrored < 130  # four standard deviations


def test_lighting_has_the_covariance_of_imagenets_pixels():
    torch.manual_seed(0)
    image = torch.rand(3, 4, 4)
    transform = Lighting(0.1)
    shifts = torch.stack([(transform(image) - image).flatten(1) for _ in range(4000)])  # (4000, 3, 16)
    assert (shifts - shifts[..., :1]).abs().max() < 1e-6  # the same for every pixel
    covariance = np.cov(shifts[..., 0].numpy().T)
    vectors, values = Lighting.eigenvectors.numpy(), Lighting.eigenvalues.numpy()
    expected = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T
    assert covariance == pytest.approx(expected, abs=0.06 * float(expected.max()))
