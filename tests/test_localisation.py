"""The localisation table: its scores by hand, over seeds, and the published ones beside them."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from fgvclib.data.loaders import evaluation_loader
from fgvclib.data.splits import load_splits
from fgvclib.data.teacher_maps import teacher_maps
from fgvclib.model.system import build_model
from fgvclib.study.localisation import SCORES, attention_maps, localisation_table
from fgvclib.study.paper import published_localisation

# Two photos; the boxes' IoUs with the whole image are their areas, 0.36 and 0.49; with the centre box 0.36/0.49 and 1.
TEST = pd.DataFrame([[0.2, 0.2, 0.8, 0.8], [0.15, 0.15, 0.85, 0.85]], columns=["x1", "y1", "x2", "y2"])


def run(seed: int, iou: list[float], right: list[bool], teacher_iou: list[float] = (0.0, 0.0), test=TEST):
    predictions = pd.DataFrame({"label": [0, 1], "prediction": [label if r else 2 for label, r in enumerate(right)]})
    predictions = predictions.assign(iou=iou, teacher_iou=teacher_iou)
    config = SimpleNamespace(profile="cpu", dataset="synthbirds")
    return SimpleNamespace(seed=seed, predictions=predictions, config=config, splits=SimpleNamespace(test=test))


def test_scores_by_hand_are_the_mean_over_seeds():
    first = run(0, [0.75, 0.4], [True, False], [0.55, 0.2])
    second = run(3, [0.6, 0.5], [False, True], [0.3, 0.3])
    table = localisation_table({"End-to-end": [first, second]}).set_index("localiser")
    crop, teacher = table.loc["End-to-end, crop"], table.loc["End-to-end, teacher's box"]
    assert crop["box_acc_0.3"] == 1
    assert crop["box_acc_0.5"] == crop["gt_known_loc"] == pytest.approx((1 / 2 + 1) / 2)
    assert crop["box_acc_0.7"] == pytest.approx((1 / 2 + 0) / 2)
    assert crop["box_acc_mean"] == pytest.approx((1 + 3 / 4 + 1 / 4) / 3)
    assert crop["mean_iou"] == pytest.approx((0.75 + 0.4 + 0.6 + 0.5) / 4)
    assert crop["top1_loc"] == pytest.approx(1 / 2)  # photo 0 of the first, photo 1 of the second
    assert teacher["gt_known_loc"] == pytest.approx(1 / 4) and teacher["top1_loc"] == pytest.approx(1 / 4)
    assert crop["seeds"] == "0 3" and crop["source"] == "measured here, cpu profile on synthbirds"


def test_box_of_a_has_a_row_where_every_seed_was_scored_with_it():
    first, second = run(0, [0.9, 0.9], [True, False]), run(1, [0.9, 0.9], [True, True])
    first.predictions["attention_iou"] = [0.5, 0.4]
    assert "End-to-end, box of A" not in localisation_table({"End-to-end": [first, second]})["localiser"].tolist()
    second.predictions["attention_iou"] = [0.7, 0.6]
    found = localisation_table({"End-to-end": [first, second]}).set_index("localiser").loc["End-to-end, box of A"]
    assert found["mean_iou"] == pytest.approx(0.55)
    assert found["box_acc_0.5"] == pytest.approx(3 / 4) and found["box_acc_0.7"] == pytest.approx(1 / 4)
    assert found["top1_loc"] == pytest.approx(3 / 4)


def test_boxes_that_need_no_image_take_the_classes_of_the_first_row():
    runs = {"End-to-end": [run(0, [0, 0], [True, False])], "other": [run(0, [0, 0], [True, True])]}
    table = localisation_table(runs).set_index("localiser")
    centre, whole = table.loc["centre box 0.7"], table.loc["whole image"]
    assert centre["mean_iou"] == pytest.approx((0.36 / 0.49 + 1) / 2)
    assert (centre["box_acc_0.7"], centre["top1_loc"]) == (1, 1 / 2)
    assert whole["mean_iou"] == pytest.approx((0.36 + 0.49) / 2)
    assert (whole["box_acc_0.3"], whole["gt_known_loc"], whole["top1_loc"]) == (1, 0, 0)


def test_published_scores_are_apart_and_say_where_they_are_from():
    table = localisation_table({"End-to-end": [run(0, [1, 1], [True, True])]}).set_index("localiser")
    assert table.loc["centre box", "box_acc_mean"] == pytest.approx(0.597)
    assert table.loc["CAM ResNet-50", "box_acc_mean"] == pytest.approx(0.630)
    assert table.loc["highest published", "gt_known_loc"] == pytest.approx(0.9845)
    published = table.loc[list(published_localisation()["localiser"])]
    assert published["source"].str.startswith("CUB-200-2011: ").all() and published["seeds"].isna().all()
    assert published["mean_iou"].isna().all()  # what was not published stays empty


def test_photos_without_a_true_box_do_not_count():
    half = TEST.copy()
    half.loc[1] = float("nan")
    table = localisation_table({"End-to-end": [run(0, [0.6, float("nan")], [True, True], test=half)]})
    scores = table.set_index("localiser")["mean_iou"]
    assert scores["End-to-end, crop"] == pytest.approx(0.6)
    assert scores["whole image"] == pytest.approx(0.36)


def test_a_data_set_without_true_boxes_is_not_scored_and_the_table_says_so():
    nan, nothing = float("nan"), TEST * float("nan")
    table = localisation_table({"End-to-end": [run(0, [nan, nan], [True, True], [nan, nan], test=nothing)]})
    ours = table[table["seeds"].notna()]
    assert ours[SCORES].isna().all(axis=None) and len(ours) == 4
    assert set(ours["source"]) == {"not measured: synthbirds has no true boxes"}


def test_the_map_shown_is_the_one_that_was_trained_on(tiny, data_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("FGVC_DATA", str(data_folder))
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    photos = load_splits(tiny).test
    rows = [len(photos) - 1, 0]
    images = next(iter(evaluation_loader(photos.iloc[rows], tiny)))["image"]
    fixed = replace(tiny, teacher_weights="imagenet", teacher_size=96)  # larger than image_size: another map
    model = build_model(fixed, 3).eval()
    attention, shown = attention_maps(model, photos.iloc[rows], fixed, photos)
    torch.testing.assert_close(attention, model.attnet(images))
    torch.testing.assert_close(shown, teacher_maps(photos, fixed)[rows])
    assert not torch.allclose(shown, model.teacher_map(images), atol=1e-3)
    live = build_model(tiny, 3).eval()
    torch.testing.assert_close(attention_maps(live, photos.iloc[rows], tiny)[1], live.teacher_map(images))
    assert len(attention_maps(live, photos, tiny)[1]) == len(photos)
    live.localise = False
    assert attention_maps(live, photos.iloc[rows], tiny)[0] is None
