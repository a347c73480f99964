"""Photos without true boxes: figures leave the boxes out and say so."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fgvclib.figures.boxes import show_image
from fgvclib.figures.tables import bounds_figure
from fgvclib.figures.training import binned_accuracy, iou_histogram


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_figures_that_need_true_boxes_say_that_there_are_none(ax):
    missing = np.full(4, np.nan)
    iou_histogram(ax, {"centre box": missing}, "IoU")
    assert [text.get_text() for text in ax.texts] == ["not scored:\nthe photos have no true boxes"]
    binned_accuracy(ax, pd.DataFrame({"right": [True, False, True, True]}), pd.Series(missing))
    assert len(ax.texts) == 2 and not ax.patches and not ax.lines


def test_photo_without_a_true_box_is_drawn_without_it(ax):
    boxes = {"true": [float("nan")] * 4, "predicted": [0.1, 0.2, 0.5, 0.6]}
    show_image(ax, np.zeros((10, 20, 3)), boxes=boxes)
    outlines = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in ax.patches]
    assert outlines == [pytest.approx((2, 2, 8, 4))] * 2  # the predicted box alone, white below its colour


def test_bounds_without_an_oracle_show_the_accuracies_alone():
    rows = {
        "row": ["Baseline", "End-to-end with the paper's losses"],
        "seeds": "0 1",
        "accuracy_mean": [75.0, 80.0],
        "accuracy_std": np.nan,
    }
    figure = bounds_figure(pd.DataFrame(rows | {"share_of_gain": np.nan, "box_acc_0.5": np.nan}))
    left, right = figure.axes
    assert left.containers[0].lines[0].get_xdata().tolist() == [75, 80] and not left.get_title()
    assert [label.get_text() for label in left.get_yticklabels()] == ["Baseline", "End-to-end\nwith the paper's losses"]
    assert "no true boxes" in right.texts[0].get_text()
    plt.close(figure)
