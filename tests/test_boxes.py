"""Boxes without a classifier: the teachers' table, and what AttNet and AffNet learn alone."""

import runpy
import sys
from dataclasses import replace

import pytest
import torch

from fgvclib.config import PROJECT
from fgvclib.data.index import BOX
from fgvclib.data.teacher_maps import teacher_component, teacher_maps
from fgvclib.model.geometry import attention_to_box, box_iou
from fgvclib.study import boxes


@pytest.fixture
def config(tiny, tmp_path, monkeypatch):
    """A fixed teacher, and a results folder of the test's own."""
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    return replace(
        tiny, teacher_weights="imagenet", teacher_layer="stage", teacher_mean="ddt+rms", localisation_epochs=1
    )


def ious(photos, maps, tau, shape, upsample):
    true = torch.from_numpy(photos[BOX].to_numpy(dtype="float32"))
    return box_iou(true, attention_to_box(maps, tau, shape, upsample))


def test_threshold_is_chosen_on_validation_photos_and_the_test_photos_scored_with_it(config, splits):
    table = boxes.teachers_table(splits, config, ["validation", "test"])
    assert len(table) == len(boxes.TEACHERS) * len(boxes.BOXES) * 2
    row = table[(table["teacher"] == "ddt+rms") & table["box"].str.startswith("largest")].set_index("part")
    component = teacher_component(splits.train, config)
    found = {part: teacher_maps(getattr(splits, part), config, component) for part in ("validation", "test")}
    means = {}
    for tau in boxes.THRESHOLDS:
        iou = ious(splits.validation, found["validation"], tau, "largest", 4)
        means[tau] = sum((iou >= level).float().mean().item() for level in (0.3, 0.5, 0.7)) / 3
    assert row["tau"].nunique() == 1 and means[row["tau"].iloc[0]] == pytest.approx(max(means.values()))
    iou = ious(splits.test, found["test"], row["tau"].iloc[0], "largest", 4)
    assert row.loc["test", "mean_iou"] == pytest.approx(iou.mean().item(), abs=1e-5)
    assert row.loc["test", "box_acc_0.5"] == pytest.approx((iou >= 0.5).float().mean().item())
    assert set(table["backbone"]) == {config.backbone} and set(table["size"]) == {config.teacher_size}
    assert row["photos"].to_dict() == {"validation": len(splits.validation), "test": len(splits.test)}


def test_without_true_boxes_no_threshold_can_be_chosen(config, splits):
    boxless = replace(splits, validation=splits.validation.assign(**dict.fromkeys(BOX, float("nan"))))
    with pytest.raises(ValueError, match="No validation photo has a true box to choose tau by; set validation_frac"):
        boxes.teachers_table(boxless, config, ["validation"])


def test_price_of_an_attnet_stands_beside_the_classifiers(config, splits):
    names = ["stride 4, 64 px", "strides 8 and 16, 64 px"]
    table = boxes.attnets_table(splits, config, names, ["validation"])
    assert table["attnet"].tolist() == names and set(table["part"]) == {"validation"}
    assert table["million_multiply_adds"].tolist() == [6.2, 20.1]
    assert set(table["teacher_size"]) == {config.teacher_size} and set(table["epochs"]) == {1}
    share = table["over_classifier"]
    assert share[1] / share[0] == pytest.approx(20.127 / 6.231, rel=0.01)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--set", "teachers=3"], "'teachers' is not a configuration key"),
        (["--set", "map_size=none at all"], "map_size = 'none at all', but"),
        (["--dataset", "folder"], "has no folder train"),
    ],
)
def test_benchmark_tells_bad_input_in_a_sentence(config, arguments, told, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FGVC_FOLDER", str(tmp_path))
    command = ["boxes.py", "teachers", "--profile", "smoke", "--dataset", "synthbirds", "--output", "teachers.csv"]
    monkeypatch.setattr(sys, "argv", [*command, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PROJECT / "benchmarks" / "boxes.py"), run_name="__main__")
    assert end.value.code == 2 and told in capsys.readouterr().err
