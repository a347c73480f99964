"""Crops fixed before training, the rows beside Table 2, and the share of the oracle's gain."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fgvclib.config import PAPER, PROFILES
from fgvclib.data.fixed_boxes import with_fixed_boxes
from fgvclib.data.index import BOX, CROP
from fgvclib.data.loaders import PhotoDataset, colour_transform, evaluation_loader, training_loader
from fgvclib.data.splits import Splits, load_splits, read_dataset
from fgvclib.model.geometry import IDENTITY_THETA, attention_to_box, crop, widen
from fgvclib.model.system import build_model
from fgvclib.study.bounds import BOUNDS, bounds_table
from fgvclib.study.experiment import Experiment
from fgvclib.study.table2 import ROWS
from fgvclib.training.evaluation import predict
from fgvclib.training.loop import train
from fgvclib.training.runs import Run


@pytest.fixture
def fixed(tiny, splits, data_folder, monkeypatch):
    """Kind of box → the splits with that crop."""
    monkeypatch.setenv("FGVC_DATA", str(data_folder))

    def cut(kind, margin=0.0):
        config = replace(tiny, **ROWS["Baseline"], fixed_box=kind, crop_margin=margin)
        return with_fixed_boxes(load_splits(config), config)

    return cut


def test_centre_crop_is_the_middle_seven_tenths(fixed):
    for photos in (fixed("centre").train, fixed("centre").test):
        assert photos[CROP].to_numpy() == pytest.approx(np.tile([0.15, 0.15, 0.85, 0.85], (len(photos), 1)))


def test_oracle_crops_to_the_true_box_wider_by_the_margin(fixed):
    photos = fixed("oracle", margin=0.5).test
    true = photos[BOX].to_numpy()
    grow = 0.25 * (true[:, 2:] - true[:, :2])
    by_hand = np.hstack([true[:, :2] - grow, true[:, 2:] + grow]).clip(0, 1)
    assert photos[CROP].to_numpy() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("part", ["train", "test"])
def test_oracle_refuses_photos_without_a_true_box(tiny, data_folder, monkeypatch, part):
    monkeypatch.setenv("FGVC_DATA", str(data_folder))
    photos, names = read_dataset(tiny)
    photos.loc[photos["is_train"].eq(part == "train").idxmax(), BOX] = np.nan
    monkeypatch.setattr("fgvclib.data.splits.read_dataset", lambda config: (photos, names))
    with pytest.raises(ValueError, match="synthbirds has photos without a true box"):
        load_splits(replace(tiny, **BOUNDS["Oracle crop"]))


def test_only_the_oracles_training_knows_where_the_object_is(fixed, splits):
    assert not set(BOX) & set(splits.train.columns)
    for kind in ("centre", "oracle"):
        assert not set(BOX) & set(fixed(kind).train.columns)
    assert len(fixed("centre").train[CROP].drop_duplicates()) == 1
    assert len(fixed("oracle").train[CROP].drop_duplicates()) == len(splits.train)


def test_photo_is_cut_at_its_crop(tiny, tmp_path):
    """A photo of two colours, left and right: the crop to one half has one colour."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    photos = pd.DataFrame({"path": [str(tmp_path / "halves.png")], "label": [0]})
    for x, red in ((0.0, 255), (0.5, 0)):
        cut = PhotoDataset(photos.assign(**dict(zip(CROP, [x, 0, x + 0.5, 1], strict=True))), tiny)
        found = cut[0]["image"][0, :, 2:-2]  # the resize looks a pixel beyond the cut
        assert torch.allclose(found, torch.full((64, 60), (red - 127) / 128), atol=1e-4)


def test_box_of_a_cut_photo_is_scored_in_the_whole_photo(tiny, splits):
    model = build_model(replace(tiny, **BOUNDS["Oracle crop"]), 3, pretrained=False)
    photos = splits.test.assign(**dict(zip(CROP, splits.test[BOX].to_numpy().T, strict=True)))
    found = predict(model, evaluation_loader(photos, tiny), photos)
    assert found[[f"box_{corner}" for corner in BOX]].to_numpy() == pytest.approx(photos[BOX].to_numpy(), abs=1e-6)
    assert found["iou"].to_numpy() == pytest.approx(1)


@pytest.mark.parametrize("live", [True, False])
def test_teachers_box_is_scored_in_the_whole_photo(tiny, splits, live):
    """The live teacher finds a box in the crop; a fixed one has found the same box in the whole photo."""
    model = build_model(replace(tiny, **BOUNDS["Oracle crop"]), 3, pretrained=False)
    photos = splits.test.assign(**dict(zip(CROP, splits.test[BOX].to_numpy().T, strict=True)))
    maps = torch.zeros(len(photos), 1, 4, 4)
    maps[:, :, 1:3, 0:2] = 1  # rows 1 and 2, columns 0 and 1 of 4: the box 0, 0.25, 0.5, 0.75
    model.teacher_map = lambda images: maps[: len(images)]
    loader = evaluation_loader(photos, tiny, None if live else maps)
    found = predict(model, loader, photos, attention_to_box)[[f"teacher_{corner}" for corner in BOX]].to_numpy()
    for row, (x1, y1, x2, y2) in zip(found, photos[BOX].to_numpy(), strict=True):
        width, height = x2 - x1, y2 - y1
        inside = [x1, y1 + height / 4, x1 + width / 2, y1 + 3 * height / 4]
        assert row == pytest.approx(inside if live else [0, 0.25, 0.5, 0.75], abs=1e-6)


def test_fixed_crop_trains_without_localisation(small, fixed, tmp_path):
    config = replace(small, epochs=1, **BOUNDS["Centre crop"])
    (record,) = train(config, fixed("centre"), 0, tmp_path / "checkpoint.pt", pretrained=False)
    assert {"train_attention", "train_affine"}.isdisjoint(record)
    (box,) = {tuple(np.round(box[1:], 6)) for box in record["watched_boxes"]}
    assert box == (0.15, 0.15, 0.85, 0.85)


def test_every_row_has_a_configuration():
    for name, values in BOUNDS.items():
        config = Experiment("smoke", "synthbirds").row_config(name)
        assert {key: getattr(config, key) for key in values} == values
        assert "," not in name  # `fgvc train --rows` separates rows so


@pytest.mark.parametrize("profile", PROFILES)
def test_classifier_alone_can_move_the_box_from_where_it_starts(profile):
    config = Experiment(profile, "cub200").row_config("No local supervision")
    theta = torch.tensor([IDENTITY_THETA]).repeat(2, 1).requires_grad_()
    seen = crop(
        torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), widen(theta, config.crop_margin), 16
    )
    seen[..., :8].square().sum().backward()
    assert theta.grad.abs().min() > 0


def test_row_without_the_classifiers_gradient_differs_in_that_alone():
    config = Experiment("photos", "cub200").row_config("No gradient from the classifier")
    assert config == replace(Experiment("photos", "cub200").row_config("End-to-end"), beta_aff=0.0)


def test_papers_row_is_the_paper_profile_itself():
    paper = Experiment("paper", "cub200")
    assert paper.row_config("Paper's losses and live teacher") == paper.row_config("End-to-end") == paper.config
    assert (
        paper.row_config("No end-to-end with the paper's losses") == paper.row_config("No end-to-end") != paper.config
    )
    row = "o gradient from AffNet to AttNet"
    assert paper.row_config(f"N{row} with the paper's losses") == paper.row_config(f"N{row}") != paper.config


@pytest.mark.parametrize("profile", ["smoke", "cpu", "photos"])
def test_papers_row_differs_from_the_paper_by_what_a_small_profile_needs_alone(profile):
    row = asdict(Experiment(profile, "synthbirds").row_config("Paper's losses and live teacher"))
    differing = {key for key, value in asdict(PAPER).items() if row[key] != value and not key.startswith("table1_")}
    data = {"profile", "num_classes", "train_per_class", "test_per_class", "photo_size", "validation_fraction"}
    sizes = {"image_size", "crop_size", "teacher_size", "teacher_output_stride"}
    networks = {"backbone", "setting2_backbone", "attnet_backbone", "attnet_standardise", "theta_gradient_limit"}
    schedule = {"epochs", "batch_size", "learning_rate", "localisation_learning_rate", "lr_drops", "workers"}
    assert differing <= data | sizes | networks | schedule


def test_share_of_gain_is_measured_between_baseline_and_oracle(tiny):
    def runs(*accuracies):
        found = []
        for seed, accuracy in enumerate(accuracies):
            run = Run(Path("nowhere"), tiny, seed, Splits(*[pd.DataFrame()] * 3, class_names=[]))
            run.__dict__["metrics"] = {"accuracy": accuracy, "box_acc_0.5": 0.2, "teacher_box_acc_0.5": 0.9}
            found.append(run)
        return found

    table = bounds_table({"Baseline": runs(0.6, 0.7), "End-to-end": runs(0.7, 0.8), "Oracle crop": runs(0.8, 0.9)})
    assert table["accuracy_mean"].tolist() == pytest.approx([65, 75, 85])
    assert table["accuracy_std"].tolist() == pytest.approx([100 * 0.005**0.5] * 3)
    assert table["share_of_gain"].tolist() == pytest.approx([0, 0.5, 1])
    assert "teacher_box_acc_0.5" not in table and table["seeds"].tolist() == ["0 1"] * 3
    fewer = {"Baseline": runs(0.6, 0.7), "End-to-end": runs(0.7), "Oracle crop": runs(0.8, 0.7)}  # of seed 0, a half
    assert bounds_table(fewer)["share_of_gain"].tolist() == pytest.approx([0, 0.5, 1])
    level = bounds_table({"Baseline": runs(0.6), "Oracle crop": runs(0.6)})
    assert level["share_of_gain"].isna().all()


def test_without_true_boxes_there_is_no_oracle_and_no_box_is_scored(tiny):
    run = Run(Path("nowhere"), tiny, 0, Splits(*[pd.DataFrame()] * 3, class_names=[]))
    run.__dict__["metrics"] = {"accuracy": 0.75}
    table = bounds_table({"Baseline": [run], "End-to-end": [run]})
    assert table["accuracy_mean"].tolist() == [75, 75]
    assert table[["share_of_gain", "mean_iou", "box_acc_0.5", "top1_loc"]].isna().all(axis=None)


# --- the teacher that does not change


def test_map_turns_and_mirrors_with_its_photo(tiny, tmp_path):
    """A bright square in the photo and the same square as the map: they stay in the same place."""
    square = np.zeros((56, 56, 3), np.uint8)
    square[8:20, 4:24] = 255
    Image.fromarray(square).save(tmp_path / "square.png")
    photos = pd.DataFrame({"path": [str(tmp_path / "square.png")], "label": [0]})
    config = replace(tiny, image_size=56)
    maps = torch.from_numpy(square[..., 0] / 255).float()[None, None]
    dataset = PhotoDataset(photos, config, augment=True, maps=maps)
    dataset.colour = colour_transform(config, augment=False)  # places matter here, not colours
    places = set()
    for epoch in range(12):
        item = dataset[epoch]
        overlap = (item["image"].mean(dim=0) > 0.5) == (item["teacher_map"][0] > 0.5)  # empty corners have about 0
        assert overlap.float().mean() > 0.97
        places.add(int(item["teacher_map"].sum(dim=(0, 1)).argmax() > 28))
    assert places == {0, 1}  # mirrored in some epochs


def test_images_are_augmented_alike_with_and_without_maps(tiny, splits):
    maps = torch.rand(len(splits.train), 1, 14, 14)
    plain, with_maps = (PhotoDataset(splits.train, tiny, augment=True, maps=m) for m in (None, maps))
    for item in range(0, 30, 7):
        assert torch.equal(plain[item]["image"], with_maps[item]["image"])


def test_batches_bring_the_map_of_their_own_photos(tiny, splits):
    maps = torch.arange(len(splits.train)).float().view(-1, 1, 1, 1).expand(-1, 1, 14, 14).contiguous()
    loader, _ = training_loader(splits.train, tiny, 0, maps)
    for batch in loader:
        assert torch.equal(batch["teacher_map"].amax(dim=(1, 2, 3)).long(), batch["index"])
