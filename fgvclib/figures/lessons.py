"""Figures that explain one idea: pooling, embedding loss, pre-processing, the maxima that AffNet reads."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from fgvclib.figures.boxes import box_legend, outline_cells, show_attention, show_image
from fgvclib.figures.style import BOX_STYLES, MARKERS, SERIES, _label_rows, image_grid
from fgvclib.model.geometry import min_max_normalise


def box_statistics(photos: pd.DataFrame, side: float = 0.7) -> Figure:
    """Sizes, centres and coverage of the true boxes (columns x1, y1, x2, y2 in [0, 1]) against a centre box."""
    x1, y1, x2, y2 = (100 * photos[column].to_numpy() for column in ("x1", "y1", "x2", "y2"))
    figure, (sizes, centres, cover) = plt.subplots(1, 3, figsize=(12, 4))
    dots = {"s": 14, "alpha": 0.5, "linewidths": 0}
    sizes.scatter(x2 - x1, y2 - y1, color=BOX_STYLES["true"]["edgecolor"], label="true boxes", **dots)
    sizes.plot(100 * side, 100 * side, "*", color="black", markersize=13, linestyle="none", label="centre box")
    smaller = ((x2 - x1 < 100 * side) & (y2 - y1 < 100 * side)).mean()
    sizes.set_title(f"{smaller:.0%} are narrower and lower than the centre box")
    sizes.set(xlabel="width, % of the image", ylabel="height, % of the image")
    sizes.legend(loc="upper left")
    centres.scatter((x1 + x2) / 2, (y1 + y2) / 2, color=BOX_STYLES["true"]["edgecolor"], **dots)
    centres.plot(50, 50, "*", color="black", markersize=13)
    off = np.median(np.hypot((x1 + x2) / 2 - 50, (y1 + y2) / 2 - 50))
    centres.set_title(f"Half of the centres are more than {off:.0f} % off")
    centres.set(xlabel="from the left, %", ylabel="from the top, %")
    covered = 100 * box_coverage(photos)
    picture = cover.imshow(covered, extent=(0, 100, 100, 0), vmin=0)
    corner = 50 * (1 - side)
    cover.add_patch(Rectangle((corner, corner), 100 * side, 100 * side, fill=False, edgecolor="white", linestyle="--"))
    cover.text(corner + 2, corner + 6, "centre box", color="white", fontsize="small")
    cover.set_title(f"No place is covered in more than {covered.max():.0f} %")
    cover.set(xlabel="from the left, %", ylabel="from the top, %")
    cover.grid(False)
    figure.colorbar(picture, ax=cover, label="% of the photos", shrink=0.85)
    for ax in (sizes, centres):
        ax.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    centres.invert_yaxis()
    return figure


def box_coverage(photos: pd.DataFrame, cells: int = 50) -> np.ndarray:
    """(cells, cells): share of the photos whose true box covers the middle of that cell."""
    middles = (np.arange(cells) + 0.5) / cells
    across = (photos[["x1"]].to_numpy() <= middles) & (middles < photos[["x2"]].to_numpy())  # (N, cells)
    down = (photos[["y1"]].to_numpy() <= middles) & (middles < photos[["y2"]].to_numpy())
    return np.einsum("ny,nx->yx", down.astype(float), across.astype(float)) / len(photos)


def kmax_figure(feature_maps: Tensor, k: int) -> Figure:
    """Some feature maps (N, h, w) with their k largest cells outlined: what global k-max pooling averages."""
    figure, axes = image_grid(1, len(feature_maps), side=2.1)
    for ax, values in zip(axes[0], feature_maps.detach(), strict=True):
        best = values.flatten().topk(min(k, values.numel()))
        cells = torch.zeros(values.numel(), dtype=torch.bool).index_fill(0, best.indices, True)
        title = f"mean of the {k} largest: {best.values.mean():.2f}\nmean of all cells: {values.mean():.2f}"
        show_attention(ax, values, title)
        outline_cells(ax, cells.view_as(values).numpy(), linewidth=2)
    return figure


def embedding_toy(panels: Mapping[str, tuple[Tensor, Tensor]], labels: Tensor) -> Figure:
    """Unit features (N, 2) and class centres (K, 2) by title, on the unit circle, marked and numbered by class."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.7))
    for ax, (title, (features, centres)) in zip(axes, panels.items(), strict=True):
        ax.add_patch(Circle((0, 0), 1, fill=False, color="0.8"))
        for label, (x, y) in enumerate(centres.tolist()):
            mine, marker = features[labels == label], MARKERS[label % len(MARKERS)]
            ax.scatter(*(1.07 * mine).T.tolist(), s=20, alpha=0.6, marker=marker, color=SERIES[label], linewidths=0)
            ax.plot([0, 0.93 * x], [0, 0.93 * y], color=SERIES[label], linewidth=1, linestyle="-")
            ax.text(0.72 * x, 0.72 * y, f"{label + 1}", ha="center", va="center", size="small", bbox=_WHITE)
            ax.plot(0.93 * x, 0.93 * y, "*", markersize=15, color=SERIES[label], markeredgecolor="white")
        ax.set(title=title, xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
        ax.set_axis_off()
    return figure


_WHITE = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": "none"}


def hull_steps(
    pictures: np.ndarray, maps: Tensor, threshold: float, true_boxes: np.ndarray, boxes: Tensor, iou: Tensor
) -> Figure:
    """From map to box: photos, their maps (N, 1, n, n), the cells >= threshold with their hull, and both boxes."""
    figure, axes = image_grid(4, len(pictures), side=1.75)
    normalised = min_max_normalise(maps).squeeze(1)
    for column, (picture, values, box) in enumerate(zip(pictures, normalised, boxes, strict=True)):
        show_image(axes[0, column], picture)
        show_attention(axes[1, column], values)
        show_attention(axes[2, column], values, boxes={"target": box})
        outline_cells(axes[2, column], values.numpy() >= threshold)
        found = {"true": true_boxes[column], "target": box}
        show_image(axes[3, column], picture, f"IoU {iou[column]:.2f}", found)
    labels = ["photo", "$M$, normalised", rf"cells ≥ {threshold:g}, hull", "boxes"]
    _label_rows(axes, labels)
    box_legend(figure, ["true", "target"], {"target": r"hull box of the cells ≥ $\tau$"})
    return figure


def preprocessing_figure(stages: Mapping[str, Tensor], threshold: float, sharpnesses: Sequence[float]) -> Figure:
    """Stages of AffNet's pre-processing on one map (n, n), and the curve that each sharpness makes of a cell."""
    size, ratios = (2.35 * len(stages) + 3.6, 2.75), [*[1] * len(stages), 1.5]
    figure, axes = plt.subplots(1, len(ratios), figsize=size, width_ratios=ratios)
    for ax, (name, values) in zip(axes, stages.items(), strict=False):
        show_attention(ax, values, f"{name}\n{values.min():.2f} … {values.max():.2f}")
    cells = torch.linspace(0, 1, 501)
    for k in sharpnesses:
        axes[-1].plot(cells, torch.sigmoid(k * (cells - threshold).relu()), label=f"k = {k:g}")
    axes[-1].axvline(threshold, color="black", linewidth=1, linestyle=":")
    axes[-1].set(title="The larger k, the harder the step", xlabel="normalised cell", ylabel="pre-processed cell")
    axes[-1].set_ylim(0, 1.03)
    axes[-1].legend(fontsize="small", loc="lower right")
    return figure


def axis_maxima_figure(values: Tensor, box: Sequence[float], title: str) -> Figure:
    """Figure 2 of the paper: a map (n, n) with its hull box, its column maxima above, its row maxima on the right."""
    n = len(values)
    x1, y1, x2, y2 = (n * float(value) for value in box)
    figure = plt.figure(figsize=(5.6, 5.6))
    figure.set_layout_engine("none")
    whole = figure.add_axes((0.10, 0.08, 0.55, 0.55))
    columns = figure.add_axes((0.10, 0.67, 0.55, 0.20))
    rows = figure.add_axes((0.69, 0.08, 0.20, 0.55))
    show_attention(whole, values, boxes={"target": box})
    edges = np.arange(n + 1)
    columns.stairs(values.amax(dim=0), edges, fill=True, color=SERIES[0])
    rows.stairs(values.amax(dim=1), edges, fill=True, color=SERIES[1], orientation="horizontal")
    columns.set(xlim=(0, n), ylim=(0, 1.05), xticks=[])
    rows.set(ylim=(n, 0), xlim=(0, 1.05), yticks=[])
    columns.set_title("maximum over each column → NN$_h$ → $s_x, t_x$", fontsize="small")
    rows.set_title("maximum over each row\n→ NN$_v$ → $s_y, t_y$", fontsize="small")
    for place in (x1, x2):
        columns.axvline(place, **_EDGE)
    for place in (y1, y2):
        rows.axhline(place, **_EDGE)
    figure.suptitle(title, x=0.10, ha="left")
    return figure


_EDGE = {"color": BOX_STYLES["target"]["edgecolor"], "linestyle": ":", "linewidth": 2.5}
