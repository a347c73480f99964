"""How a training went: curves, crops over the epochs, confusion, accuracy and IoU over the photos."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from fgvclib.figures.boxes import box_legend, cut, show_image
from fgvclib.figures.style import MARKERS, SERIES, shorten, show_curves

FRAMES = 8  # epochs that the film strip of a running training has room for
TRAIL = 5  # boxes of one photo that can be told apart


def box_trails(
    pictures: np.ndarray,
    trails: np.ndarray,
    steps: Sequence[int],
    iou: np.ndarray | None = None,
    reference: Mapping[str, np.ndarray] | None = None,
    unit: str = "step",
) -> Figure:
    """Boxes of a training on each photo, from light (early) to dark (late); below them the IoU as it went.

    pictures (N, H, W, 3) in [0, 1]; trails (N, T, 4) xyxy in [0, 1] after each of the `steps` (T,), counted in `unit`;
    iou (N, T); reference: boxes (N, 4) to compare with, by their kind. At most TRAIL boxes are drawn on a photo.
    """
    rows = 1 if iou is None else 2
    size = (2.7 * len(pictures), 2.8 + 1.15 * (rows - 1))
    figure, axes = plt.subplots(rows, len(pictures), figsize=size, height_ratios=[2.6, 1][:rows], squeeze=False)
    colours = plt.get_cmap("Oranges")(np.linspace(0.2, 1, len(steps)))
    drawn = np.unique(np.linspace(0, len(steps) - 1, TRAIL).astype(int))
    for column, (picture, boxes) in enumerate(zip(pictures, trails, strict=True)):
        height, width = picture.shape[:2]
        goals = {kind: boxes_of_kind[column] for kind, boxes_of_kind in (reference or {}).items()}
        show_image(axes[0, column], 0.25 + 0.75 * picture, boxes=goals)  # pale: light lines can be told from dark ones
        for box, colour in zip(boxes[drawn], colours[drawn], strict=True):
            (x1, x2), (y1, y2) = box[::2] * width, box[1::2] * height
            look = {"edgecolor": colour, "linewidth": 1.8, "clip_on": False}
            axes[0, column].add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **look))
    for column, ax in enumerate(axes[1] if iou is not None else []):
        ax.plot(steps, iou[column], color="0.5", linewidth=1, linestyle="-")
        ax.scatter(steps, iou[column], color=colours, s=22, zorder=3, edgecolor="0.4", linewidth=0.5)
        ax.set(ylim=(0, 1), yticks=[0, 0.5, 1], title=f"IoU at the end: {iou[column, -1]:.2f}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        ax.set(xlabel=unit, ylabel="" if column else "IoU")
    if reference:
        box_legend(figure, list(reference))
    return figure


def _draw_film(axes: np.ndarray, pictures: np.ndarray, trajectories: pd.DataFrame, crop_size: int, epochs) -> None:
    rows = sorted(trajectories["row"].unique())
    for line, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        boxes = trajectories[trajectories["row"] == row].set_index("epoch")[["x1", "y1", "x2", "y2"]]
        show_image(axes[line, 0], picture, "photo" if line == 0 else "", {"predicted": boxes.loc[epochs[-1]]})
        for ax, epoch in zip(axes[line, 1:], epochs, strict=False):
            view = cut(picture, boxes.loc[epoch], crop_size)
            show_image(ax, view, f"epoch {epoch}" if line == 0 else "")


def loss_curves(history: pd.DataFrame) -> dict[str, pd.Series]:
    """The weighted loss terms of `Run.history` (index: epoch) that were on, by name, for `show_curves`."""
    terms = {name: history.get(f"train_{name}") for name in ("cross_entropy", "embedding", "attention", "affine")}
    return {name.replace("_", " "): values for name, values in terms.items() if values is not None and values.any()}


def training_figure(
    history: pd.DataFrame,
    epochs: int,
    pictures: np.ndarray,
    trajectories: pd.DataFrame,
    crop_size: int,
    frames: Sequence[int],
) -> Figure:
    """A training of `epochs` so far: loss terms, accuracy and boxes, and below them the crops after some epochs.

    history and trajectories as in `Run`; pictures (N, H, W, 3) in [0, 1] of its photos, in the order of `row`; at most
    FRAMES epochs as `frames`. Without a validation part there are no pictures, and no scores of one.
    """
    history = history.set_index("epoch")
    heights = [3.0, max(0.1, 1.2 * len(pictures))]
    figure = plt.figure(figsize=(10.5, sum(heights)))
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    losses, quality = above.subplots(1, 2)
    show_curves(losses, loss_curves(history), f"Loss, lower is better: {len(history)} of {epochs} epochs", "weighted")
    scores = {"accuracy": "accuracy", "mean IoU of the boxes": "mean_iou", "boxes with IoU ≥ 0.5": "box_acc_0.5"}
    scores = {name: f"validation_{score}" for name, score in scores.items()}
    curves = {name: history[score] for name, score in scores.items() if score in history}  # boxes, where there are any
    show_curves(quality, curves, "Validation photos (boxes are scored, never trained on)", "share, or mean IoU")
    losses.set_yscale("log")
    quality.set_ylim(0, 1)
    for ax in (losses, quality):
        ax.set_xlim(0.5, epochs + 0.5)
    if len(pictures):
        axes = below.subplots(len(pictures), FRAMES + 1, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        _draw_film(axes, pictures, trajectories, crop_size, frames)
    return figure


def show_confusion(ax: Axes, counts: np.ndarray, names: Sequence[str], groups: Sequence[str], title: str = "") -> None:
    """`evaluation.confusion` of K classes, rows true, as shares of a row (in %); lines part the contiguous groups.

    Up to 12 classes have numbers and names on both sides (below without their group), up to 40 have names on the left.
    Where there are no numbers, a bar says what the colours mean.
    """
    as_it_is = {"fontsize": "small", "parse_math": False}  # `$` in a class name
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = len(counts) * -(-len(names) // len(counts)) - 0.5  # the last of several classes a cell need not exist
    image = ax.imshow(100 * shares, cmap="Greens", vmin=0, vmax=100, extent=(-0.5, side, side, -0.5))
    starts = [i for i, group in enumerate(groups) if i == 0 or groups[i - 1] != group]
    if len(names) <= 40:
        for start in starts[1:]:
            ax.axhline(start - 0.5, color="0.6", linewidth=0.8)
            ax.axvline(start - 0.5, color="0.6", linewidth=0.8)
        middles = (np.array(starts) + np.array([*starts[1:], len(names)]) - 1) / 2
        ax.set_xticks(middles, [groups[start] for start in starts], rotation=40, ha="right", **as_it_is)
        ax.set_yticks(range(len(names)), [shorten(name, 34) for name in names], **as_it_is)
        ax.tick_params(length=0)
    if len(names) <= 12:
        marks = [name.removesuffix(group).strip() or name for name, group in zip(names, groups, strict=True)]
        ax.set_xticks(range(len(names)), marks, rotation=40, ha="right", **as_it_is)
        for (row, column), share in np.ndenumerate(shares):
            ink = {"color": "white" if share > 0.55 else "black", "ha": "center", "va": "center"}
            ax.text(column, row, f"{100 * share:.0f}" if share >= 0.005 else "", fontsize="small", **ink)
    if len(names) > 12:
        ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0, 0.04, 1)), label="% of the row")
    ax.set(title=title, xlabel="predicted", ylabel="true")
    ax.grid(False)


def binned_accuracy(ax: Axes, correct: pd.DataFrame, by: pd.Series, bins: int = 6) -> None:
    """Accuracy of every column of `correct` (booleans) in bins of equally many photos by `by`, with standard errors."""
    if by.isna().all():
        return remark_no_boxes(ax)
    groups = pd.qcut(by, min(bins, by.nunique()), duplicates="drop")
    places = by.groupby(groups, observed=True).median()
    aside = 0.006 * (places.max() - places.min())  # so that error bars do not cover each other
    for i, (name, values) in enumerate(correct.items()):
        shares = values.groupby(groups, observed=True).agg(["mean", "count"])
        error = np.sqrt(shares["mean"] * (1 - shares["mean"]) / shares["count"])
        ax.errorbar(places + i * aside, 100 * shares["mean"], 100 * error, marker=MARKERS[i], capsize=3, label=name)
    ax.set(ylabel="accuracy, %", ylim=(0, 103))
    ax.legend(fontsize="small")


def remark_no_boxes(ax: Axes) -> None:
    """In place of what true boxes are needed for."""
    ax.text(0.5, 0.5, "not scored:\nthe photos have no true boxes", ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()


def iou_histogram(ax: Axes, iou: Mapping[str, np.ndarray], title: str) -> None:
    """IoU of every photo for several localisers, as outlines that do not hide each other, with their means."""
    if all(np.isnan(values).all() for values in iou.values()):
        return remark_no_boxes(ax)
    for (name, values), style in zip(iou.items(), ["-", "--", ":"], strict=False):
        shares = np.full(len(values), 100 / len(values))
        look = {"histtype": "step", "linewidth": 2, "linestyle": style, "label": f"{name}: mean {np.mean(values):.2f}"}
        ax.hist(values, np.linspace(0, 1, 21), weights=shares, **look)
    ax.set(title=title, xlabel="IoU with the true box", ylabel="photos, %", xlim=(0, 1))
    ax.legend(fontsize="small")


def show_threshold(ax: Axes, scores: pd.DataFrame, trivial: pd.Series, chosen: float, title: str) -> None:
    """Box scores (columns) over the threshold (index), with the centre box as thin lines and the chosen threshold."""
    for name, colour, marker, line in zip(scores, SERIES, MARKERS, ["--", "-."], strict=False):
        look = {"color": colour, "marker": marker}
        ax.plot(scores.index, scores[name], markersize=4, linestyle="-", label=name, **look)
        ax.axhline(trivial[name], color=colour, linewidth=1, linestyle=line, label=f"centre box: {name}")
    ax.axvline(chosen, color="black", linewidth=1, linestyle=":", label=rf"$\tau$ = {chosen:g} of this profile")
    ax.set(title=title, xlabel=r"threshold $\tau$", ylabel="mean IoU, or share of photos", ylim=(0, 1))
    ax.legend(fontsize="small")


def end_to_end_curves(histories: Mapping[str, pd.DataFrame], warmup: int, photos: int) -> Figure:
    """Loss terms of the first run; validation accuracy of all runs and their boxes, where there are any.

    histories as `Run.history` with the index epoch; a line marks the end of the warm-up; the bands are one standard
    error of a share of so many validation `photos`.
    """
    first = next(iter(histories.values()))
    shares = {"Validation accuracy": "validation_accuracy", "Boxes with IoU ≥ 0.5": "validation_box_acc_0.5"}
    shares = {title: column for title, column in shares.items() if column in first and first[column].notna().any()}
    panels = 1 + len(shares)
    figure, (axes,) = plt.subplots(1, panels, figsize=(11 / 3 * panels, 3.6), squeeze=False)
    show_curves(axes[0], loss_curves(first), f"Loss terms, {next(iter(histories))}", "weighted loss")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylim(top=4 * axes[0].get_ylim()[1])  # room for the key above the curves
    for ax, (title, column) in zip(axes[1:], shares.items(), strict=True):
        boxes = "box" in column  # the baseline's is always the whole photo
        curves = {name: 100 * h[column] for name, h in histories.items() if not (boxes and name == "baseline")}
        show_curves(ax, curves, f"{title}: higher is better", "validation photos, %")
        for name, colour in zip(curves, SERIES, strict=False):
            share = curves[name] / 100
            error = 100 * np.sqrt(share * (1 - share) / photos)
            ax.fill_between(share.index, curves[name] - error, curves[name] + error, color=colour, alpha=0.12)
        ax.set_ylim(0, 103)
    for ax in axes:
        if 0 < warmup < len(first):
            ax.axvline(warmup + 0.5, color="black", linewidth=1, linestyle=":", label="warm-up ends")
            ax.legend(fontsize="small")
    return figure


def box_curves(histories: Mapping[str, Sequence[pd.DataFrame]], photos: int) -> Figure:
    """Share of validation photos whose box has IoU ≥ 0.5, and ≥ 0.7, after every epoch: a line for each row of runs.

    histories: `Run.history` of the row's seeds; a line is their mean. The bands are one standard error of a share of so
    many validation `photos`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for ax, level in zip(axes, (0.5, 0.7), strict=True):
        column, title = f"validation_box_acc_{level}", f"Boxes with IoU ≥ {level}: higher is better"
        means = {row: pd.concat(seeds).groupby("epoch")[column].mean() for row, seeds in histories.items()}
        show_curves(ax, {row: 100 * share for row, share in means.items()}, title, "validation photos, %")
        for share, colour in zip(means.values(), SERIES, strict=False):
            error = np.sqrt(share * (1 - share) / photos)
            ax.fill_between(share.index, 100 * (share - error), 100 * (share + error), color=colour, alpha=0.12)
        ax.set_ylim(bottom=0)
        ax.get_legend().remove()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return figure
