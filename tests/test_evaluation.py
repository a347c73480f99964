"""Scores by hand: accuracy over samples, boxes against true ones."""

import re

import pandas as pd
import pytest
import torch

from fgvclib.model.geometry import attention_to_box, box_to_theta, theta_to_box
from fgvclib.model.system import Answer, ModelOutput
from fgvclib.training.evaluation import count_parameters, localisation_scores, predict, summarise, trivial_localisers

TRUE = [[0.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.6, 0.6], [0.1, 0.1, 0.9, 0.9], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
CROPS = [[0.0, 0.0, 0.5, 0.5], [0.4, 0.2, 0.8, 0.6], [0.3, 0.3, 0.7, 0.7], [0.0, 0.0, 0.5, 0.5], [-0.5, 0.0, 0.5, 1.0]]
IOU = [1.0, 0.08 / 0.24, 0.16 / 0.64, 0.0, 0.5]  # the last crop counts within the image
LABELS, PREDICTED = [0, 1, 2, 0, 1], [0, 1, 2, 1, 0]


class Stub(torch.nn.Module):
    """A model whose answers are known: the image holds the number of the photo."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.modes = []

    def forward(self, images):
        self.modes.append((self.training, torch.is_grad_enabled()))
        numbers = images[:, 0, 0, 0].long()
        logits = torch.nn.functional.one_hot(torch.tensor(PREDICTED)[numbers], 3).float()
        return ModelOutput(logits, None, None, box_to_theta(torch.tensor(CROPS)[numbers]), None)

    def predict(self, images):
        output = self(images)
        return Answer(output.logits.log_softmax(dim=1), theta_to_box(output.theta))

    def teacher_map(self, images):
        maps = torch.zeros(len(images), 1, 4, 4)
        maps[:, 0, 1, 1:3] = 1  # box [1/4, 1/4, 3/4, 1/2]
        return maps


@pytest.fixture
def photos():
    table = pd.DataFrame({"image_id": range(10, 15), "path": [f"{i}.jpg" for i in range(5)], "label": LABELS})
    return table.join(pd.DataFrame(TRUE, columns=["x1", "y1", "x2", "y2"]))


def batches(*groups: list[int]) -> list[dict]:
    return [
        {"image": torch.tensor(g).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2), "index": torch.tensor(g)}
        for g in groups
    ]


def test_accuracy_is_over_samples_with_a_short_last_batch(photos):
    """Three of three, then none of two: 3/5, where the mean over batches would be 1/2."""
    summary = summarise(predict(Stub(), batches([0, 1, 2], [3, 4]), photos))
    assert summary["accuracy"] == pytest.approx(0.6)


@pytest.mark.parametrize(("rank", "told"), [("0", ["3 of 5", "5 of 5"]), ("1", [])])
def test_scoring_says_how_far_it_is_in_the_first_process(photos, monkeypatch, capsys, rank, told):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("fgvclib.utils.progress.LINE_SECONDS", 0)
    predict(Stub(), batches([0, 1, 2], [3, 4]), photos)
    assert re.findall(r"scoring: (\d of \d) photos, [\d.]+ photos/s", capsys.readouterr().out) == told


@pytest.mark.parametrize("groups", [([0, 1, 2, 3, 4],), ([0, 1, 2, 3], [4]), ([4, 2], [0, 3], [1])])
def test_predictions_do_not_depend_on_the_batches(photos, groups):
    table = predict(Stub(), batches(*groups), photos)
    assert table["prediction"].tolist() == PREDICTED
    assert table["image_id"].tolist() == list(range(10, 15))
    assert table["iou"].tolist() == pytest.approx(IOU, abs=1e-6)
    assert table["probability"].tolist() == pytest.approx([2.718281828 / (2.718281828 + 2)] * 5)
    assert table[["box_x1", "box_y1", "box_x2", "box_y2"]].to_numpy() == pytest.approx(
        torch.tensor(CROPS).clamp(0, 1).numpy(), abs=1e-6
    )


def test_top_1_localisation_asks_for_the_class_and_half_the_box(photos):
    summary = summarise(predict(Stub(), batches(list(range(5))), photos))
    assert summary["top1_loc"] == pytest.approx(1 / 5)  # photo 0; photo 4 has the box but not the class
    assert summary["box_acc_0.5"] == pytest.approx(2 / 5)
    assert summary["mean_iou"] == pytest.approx(sum(IOU) / 5)


def test_box_accuracy_counts_boxes_at_the_level_and_above():
    scores = localisation_scores(pd.Series([0.0, 0.3, 0.5, 0.69, 0.7, 1.0]))
    assert scores == pytest.approx(
        {
            "mean_iou": 3.19 / 6,
            "box_acc_0.3": 5 / 6,
            "box_acc_0.5": 4 / 6,
            "box_acc_0.7": 2 / 6,
            "box_acc_mean": (5 / 6 + 4 / 6 + 2 / 6) / 3,
        }
    )


def test_teacher_is_scored_where_it_is_asked_for(photos):
    table = predict(Stub(), batches([0, 1], [2, 3, 4]), photos, map_box=attention_to_box)
    areas = [0.25, 0.16, 0.64, 0.25, 1.0]
    overlaps = [0.25 * 0.25, 0.35 * 0.25, 0.5 * 0.25, 0.0, 0.5 * 0.25]
    expected = [o / (a + 0.125 - o) for a, o in zip(areas, overlaps, strict=True)]
    assert table["teacher_iou"].tolist() == pytest.approx(expected, abs=1e-6)
    summary = summarise(table)
    assert summary["teacher_mean_iou"] == pytest.approx(sum(expected) / 5)
    assert {"teacher_box_acc_0.3", "teacher_box_acc_0.5", "teacher_box_acc_0.7"} < set(summary)
    assert "teacher_iou" not in predict(Stub(), batches(list(range(5))), photos)


def test_box_of_attnets_map_is_scored_beside_the_teachers_where_there_is_one(photos):
    """The map's box is [0, 0, 1/4, 1/4]; a baseline has no map."""

    class WithMap(Stub):
        def predict(self, images):
            attention = torch.zeros(len(images), 1, 4, 4)
            attention[:, 0, 0, 0] = 1
            return super().predict(images)._replace(attention=attention)

    table = predict(WithMap(), batches([0, 1], [2, 3, 4]), photos, map_box=attention_to_box)
    assert table[["attention_x1", "attention_y1", "attention_x2", "attention_y2"]].eq([0, 0, 0.25, 0.25]).all(axis=None)
    true = torch.tensor(TRUE)
    overlaps = (0.25 - true[:, :2]).clamp(min=0).prod(dim=1)
    areas = (true[:, 2:] - true[:, :2]).prod(dim=1)
    assert table["attention_iou"].tolist() == pytest.approx((overlaps / (areas + 0.0625 - overlaps)).tolist(), abs=1e-6)
    assert summarise(table)["attention_mean_iou"] == pytest.approx(table["attention_iou"].mean())
    without = predict(Stub(), batches(list(range(5))), photos, map_box=attention_to_box)
    assert table[without.columns].equals(without)
    assert not [name for name in summarise(without) if name.startswith("attention")]


def test_model_is_run_in_evaluation_mode_without_gradient(photos):
    model = Stub().train()
    predict(model, batches([0, 1, 2], [3, 4]), photos)
    assert model.modes == [(False, False)] * 2


def test_trivial_localisers_by_hand():
    photos = pd.DataFrame([[0.0, 0.0, 0.5, 0.5], [0.15, 0.15, 0.85, 0.85]], columns=["x1", "y1", "x2", "y2"])
    scores = trivial_localisers(photos)
    overlap = 0.35**2  # of the first box and the centre box
    assert scores.loc["whole image", "mean_iou"] == pytest.approx((0.25 + 0.49) / 2)
    assert scores.loc["centre box 0.7", "mean_iou"] == pytest.approx((overlap / (0.25 + 0.49 - overlap) + 1) / 2)
    assert scores["box_acc_0.3"].tolist() == [0.5, 0.5] and scores["box_acc_0.5"].tolist() == [0, 0.5]


def test_parameters_are_counted():
    assert count_parameters(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))) == 18 + 6


# --- photos without a true box


def without_box(photos, *rows):
    photos.loc[list(rows), ["x1", "y1", "x2", "y2"]] = float("nan")
    return photos


def test_photos_without_a_true_box_count_for_accuracy_alone(photos):
    """Of the IoUs 1, 1/3, 1/4, 0 and 1/2 the second and the last two are not known."""
    table = predict(Stub(), batches(list(range(5))), without_box(photos, 1, 3, 4), map_box=attention_to_box)
    assert table["iou"].isna().tolist() == [False, True, False, True, True]
    summary = summarise(table)
    assert summary["accuracy"] == pytest.approx(3 / 5)
    assert summary["mean_iou"] == pytest.approx((1 + 0.25) / 2)
    assert summary["box_acc_0.5"] == pytest.approx(1 / 2) and summary["top1_loc"] == pytest.approx(1 / 2)
    assert summary["teacher_box_acc_0.3"] == 0  # 1/5 and 1/6
    true = torch.tensor(TRUE)[[0, 2]]
    areas = (true[:, 2:] - true[:, :2]).prod(dim=1)  # the IoU with the whole image
    assert trivial_localisers(photos).loc["whole image", "mean_iou"] == pytest.approx(areas.mean().item())


def test_without_any_true_box_localisation_is_not_scored(photos):
    photos = without_box(photos, 0, 1, 2, 3, 4)
    summary = summarise(predict(Stub(), batches(list(range(5))), photos, map_box=attention_to_box))
    assert summary == pytest.approx({"accuracy": 3 / 5})
    assert trivial_localisers(photos).isna().all(axis=None)
