"""Figures: what is drawn of photos, and the system figure from the tensors of one photo."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from fgvclib import figures
from fgvclib.study.paper import backbones, paper_table


@pytest.fixture(autouse=True)
def photos_are_shown_again():
    yield
    figures.may_show("synthbirds", True)
    plt.close("all")


PHOTO = np.linspace(0, 1, 4 * 6 * 3).reshape(4, 6, 3)


@pytest.mark.parametrize(
    ("dataset", "wanted", "shown"),
    [("synthbirds", False, True), ("cub200", True, True), ("cub200", False, False), ("folder", False, False)],
)
def test_photos_of_others_can_be_left_out(dataset, wanted, shown, capsys):
    assert figures.may_show(dataset, wanted) is shown
    assert ("blank panels" in capsys.readouterr().out) is not shown  # a reader of the outputs is told why
    figure, ((ax,),) = figures.image_grid(1, 1)
    figures.show_image(ax, PHOTO, boxes={"true": (0.25, 0.25, 0.5, 0.75)})
    drawn = np.asarray(ax.images[0].get_array())
    assert np.array_equal(drawn, PHOTO) is shown
    assert (drawn == drawn.flat[0]).all() is not shown
    assert ax.patches[-1].get_bbox().extents.tolist() == [1.5, 1.0, 3.0, 3.0]  # the box is drawn either way


def test_the_system_figure_is_readable_and_its_mask_has_one_scale():
    figures.use_style()
    image, cells = np.zeros((8, 8, 3)), torch.full((4, 4), 0.5)
    probabilities = pd.Series([0.7, 0.3], index=["a", "b"])
    maps = {"attention": cells, "mask": cells, "teacher": cells}
    images = {"image": image, "small": image, "crop": image}
    figure = figures.system_figure(images, maps, (0.1, 0.1, 0.9, 0.9), probabilities, {"mask": "here"}, "a")
    assert figure.get_size_inches()[0] <= 11
    texts = [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts if text.axes is None) >= 9
    (mask, *_) = [ax for ax in figure.findobj(plt.Axes) if ax.images and ax.images[0].get_cmap().name == "gray"]
    assert mask.images[0].get_clim() == (0, 1)


def test_views_count_the_pixels_that_the_image_really_has():
    picture = np.zeros((100, 200, 3), np.uint8)
    figure = figures.compare_views([picture], [(0.4, 0.4, 0.65, 0.5)], ["bird"], image_size=80, view=40)
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert titles == ["bird", "11 real pixels across", "22 real pixels across"]  # 1.08 * 0.25 of 40, and of 80


def test_a_step_that_is_not_told_apart_from_nothing_has_no_colour():
    accuracy = pd.Series([50.0, 60.0, 61.0, 55.0, 56.0], index=list("abcde"))
    figure = figures.waterfall_figure(accuracy, [4.0, 2.0, 3.0, float("nan")], "0 1")
    assert "seeds 0 1" in figure.axes[0].get_xlabel()
    first, *steps = (bar.get_facecolor() for bar in figure.axes[0].patches)
    assert steps[1] == steps[3] and len({first, *steps}) == 4
    assert [bar.get_width() for bar in figure.axes[0].patches] == [50, 10, 1, -6, 1]


@pytest.mark.parametrize("accuracy, panels", [([0.4, 0.5], 2), ([float("nan")] * 2, 1)])
def test_curves_of_a_training_without_validation_photos_have_one_panel(accuracy, panels):
    history = pd.DataFrame({"train_cross_entropy": [2.0, 1.0], "validation_accuracy": accuracy}, index=[1, 2])
    assert len(figures.end_to_end_curves({"setting 1": history}, 0, 40).axes) == panels


def test_the_noise_of_an_accuracy_is_binomial():
    assert figures.sampling_error(50, 100) == pytest.approx(5)  # 100 * sqrt(0.25 / 100)
    assert 1.96 * figures.sampling_error(88.5, 5794) == pytest.approx(0.82, abs=0.01)


def test_every_row_of_table_3_has_a_backbone():
    names = backbones()
    assert names["method"].tolist() == paper_table(3)["method"].tolist()
    assert names["verified"].isin(["yes", "no"]).all() and names.notna().all(axis=None)
    published = paper_table(3).merge(names, on="method")
    panels = figures.table3_figure(published).axes
    assert [len(ax.get_yticks()) for ax in panels] == [15, 16, 12]
    assert sum(len(line.get_xdata()) for line in panels[0].get_lines()) == 15
    assert "number 6 of 15" in panels[0].get_title() + panels[0].get_title(loc="left")


def test_long_names_above_a_gallery_do_not_run_into_each_other():
    names = [
        f"{name}\n→ Cream-browed Barred Leafwarbler\n28% sure"
        for name in ("Rufous-capped Marshfinch", "Plain Marshfinch") * 3
    ]
    pictures = np.zeros((6, 8, 8, 3))
    figure = figures.localisation_gallery(pictures, [{}] * 6, {"crop": pictures}, names)
    figure.canvas.draw()
    extents = [ax.title.get_window_extent() for ax in figure.axes[:6]]
    assert all(left.x1 < right.x0 for left, right in pairwise(extents))


def test_a_dollar_in_a_class_name_is_no_mathematics():
    names, pictures = ["$5 # $6", "Ke$ha $x_"], np.zeros((2, 8, 8, 3))
    figures.localisation_gallery(pictures, [{}] * 2, {"crop": pictures}, names)
    figures.compare_views([np.zeros((8, 8, 3), np.uint8)] * 2, [(0.1, 0.1, 0.9, 0.9)] * 2, names, 8, 8)
    _, (confusion, bars, photo) = plt.subplots(1, 3)
    figures.show_confusion(confusion, np.eye(2), names, names)
    figures.show_probabilities(bars, pd.Series([0.7, 0.3], index=names))
    figures.show_image(photo, pictures[0])
    photo.set_title(names[0], fontsize="small")  # as notebook 01 does
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()  # such a name, read as mathematics, would be an error or lose its dollars
        texts = plt.figure(number).findobj(lambda part: isinstance(part, plt.Text) and "$" in part.get_text())
        assert texts and not any(text.get_parse_math() for text in texts if text.get_text() in names)
