"""Figures that explain one idea: pooling, embedding loss, pre-processing, the maxima that AffNet reads."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from fgvclib.figures.boxes import box_legend, cut, draw_box, outline_cells, show_attention, show_image
from fgvclib.figures.style import ATTENTION_MAP, BOX_STYLES, MARKERS, SERIES, _label_rows, image_grid
from fgvclib.model.geometry import min_max_normalise


def box_statistics(photos: pd.DataFrame, side: float = 0.7) -> Figure:
    """Sizes, centres and coverage of the true boxes (columns x1, y1, x2, y2 in [0, 1]) against a centre box."""
    x1, y1, x2, y2 = (100 * photos[column].to_numpy() for column in ("x1", "y1", "x2", "y2"))
    figure, (sizes, centres, cover) = plt.subplots(1, 3, figsize=(11, 4.1))
    dots = {"s": 14, "alpha": 0.5, "linewidths": 0}
    sizes.scatter(x2 - x1, y2 - y1, color=BOX_STYLES["true"]["edgecolor"], label="true boxes", **dots)
    sizes.plot(100 * side, 100 * side, "*", color="black", markersize=13, linestyle="none", label="centre box")
    smaller = ((x2 - x1 < 100 * side) & (y2 - y1 < 100 * side)).mean()
    sizes.set_title(f"{smaller:.0%} are smaller, both ways,\nthan the centre box")
    sizes.set(xlabel="width, % of the image", ylabel="height, % of the image")
    sizes.legend(loc="upper left")
    centres.scatter((x1 + x2) / 2, (y1 + y2) / 2, color=BOX_STYLES["true"]["edgecolor"], **dots)
    centres.plot(50, 50, "*", color="black", markersize=13)
    off = np.median(np.hypot((x1 + x2) / 2 - 50, (y1 + y2) / 2 - 50))
    centres.set_title(f"Half of the birds sit more than {off:.0f} %\nof the side away from the centre")
    centres.set(xlabel="from the left, %", ylabel="from the top, %")
    covered = 100 * box_coverage(photos)
    picture = cover.imshow(covered, extent=(0, 100, 100, 0), vmin=0)
    corner = 50 * (1 - side)
    cover.add_patch(Rectangle((corner, corner), 100 * side, 100 * side, fill=False, edgecolor="white", linestyle="--"))
    cover.text(corner + 2, corner + 6, "centre box", color="white", fontsize="small")
    cover.set_title(f"No place is covered in more\nthan {covered.max():.0f} % of the photos")
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


def kmax_figure(feature_maps: Tensor, k: int, picture: np.ndarray) -> Figure:
    """A photo (H, W, 3), and some of its feature maps (N, h, w) with the k largest cells outlined."""
    figure, axes = image_grid(1, 1 + len(feature_maps), side=1.8)
    show_image(axes[0, 0], picture, "the photo")
    for ax, values in zip(axes[0, 1:], feature_maps.detach(), strict=True):
        k = min(k, values.numel())
        best = values.flatten().topk(k)
        cells = torch.zeros(values.numel(), dtype=torch.bool).index_fill(0, best.indices, True)
        show_attention(ax, values, f"{k} largest: {best.values.mean():.2f}\nall cells: {values.mean():.2f}")
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
    pictures: np.ndarray,
    maps: Tensor,
    threshold: float,
    boxes: Tensor,
    true_boxes: np.ndarray | None = None,
    iou: Tensor | None = None,
) -> Figure:
    """From map to box: photos, their maps (N, 1, n, n), the cells >= threshold with their hull, and the boxes.

    True boxes and IoU (N,) are drawn where they are known. A single photo is shown in a row, several in columns.
    """
    if len(pictures) == 1:
        figure, axes = image_grid(1, 4, side=2.3)
        axes = axes.T
    else:
        figure, axes = image_grid(4, len(pictures), side=1.75)
    normalised = min_max_normalise(maps).squeeze(1)
    for column, (picture, values, box) in enumerate(zip(pictures, normalised, boxes, strict=True)):
        show_image(axes[0, column], picture)
        show_attention(axes[1, column], values)
        show_attention(axes[2, column], values, boxes={"target": box})
        outline_cells(axes[2, column], values.numpy() >= threshold)
        known = {} if true_boxes is None else {"true": true_boxes[column]}
        title = "" if iou is None else f"IoU {iou[column]:.2f}"
        show_image(axes[3, column], picture, title, known | {"target": box})
    labels = ["photo", "$M$, normalised", rf"cells ≥ {threshold:g}, hull", "boxes"]
    if len(pictures) == 1:
        for ax, label in zip(axes[:, 0], labels, strict=True):
            ax.set_title(label, fontsize="small")
    else:
        _label_rows(axes, labels)
    kinds = ["target"] if true_boxes is None else ["true", "target"]
    box_legend(figure, kinds, {"target": r"hull box of the cells ≥ $\tau$"})
    return figure


def preprocessing_figure(attention: Tensor, threshold: float, sharpnesses: Sequence[float]) -> Figure:
    """A map (n, n) through AffNet's pre-processing, with a mask for each sharpness; below, what becomes of a cell."""
    normalised = min_max_normalise(attention[None, None]).squeeze()
    figure = plt.figure(figsize=(10.5, 5.6))
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    axes = above.subplots(1, 2 + len(sharpnesses))
    show_attention(axes[0], normalised, "1. min-max: 0 to 1")
    _show_mask(axes[1], (normalised - threshold).relu(), rf"2. subtract $w_\tau$ = {threshold:g}, ReLU")
    for ax, k in zip(axes[2:], sharpnesses, strict=True):
        _show_mask(ax, torch.sigmoid(k * (normalised - threshold).relu()), f"3. sigmoid, k = {k:g}")
    curves = below.subplots(1, 2)
    for ax, end, title in zip(
        curves, (1.0, threshold + 0.12), ("The whole range", "Close to the threshold"), strict=True
    ):
        cells = torch.linspace(0 if end == 1 else threshold - 0.05, end, 501)
        for k in (3, 10, 100, 1000):
            ax.plot(cells, torch.sigmoid(k * (cells - threshold).relu()), label=f"k = {k:g}")
        ax.axvline(threshold, color="black", linewidth=1, linestyle=":")
        ax.set(title=title, xlabel="normalised cell", ylabel="cell of the mask", ylim=(0.45, 1.03))
    curves[0].legend(loc="lower right", fontsize="small")
    return figure


def mask_figure(attention: Tensor, mask: Tensor, box: Sequence[float]) -> Figure:
    """A map (n, n) with its box, and the mask (n, n) that AffNet makes of it, grey from 0 (black) to 1 (white)."""
    figure, axes = image_grid(1, 2, side=2.6)
    show_attention(axes[0, 0], attention, "map, and the box of its cells ≥ $\\tau$", {"target": box})
    _show_mask(axes[0, 1], mask.detach(), "mask: 0.5 is grey")
    return figure


def theta_figure(picture: np.ndarray, box: Sequence[float]) -> Figure:
    """A photo (H, W, 3) with the box of a theta, and the crop inside it."""
    figure, axes = image_grid(1, 2, side=2.6)
    show_image(axes[0, 0], picture, "photo, box of θ", {"predicted": box})
    show_image(axes[0, 1], cut(picture, box, len(picture)), "crop")
    return figure


def _show_mask(ax: Axes, values: Tensor, title: str) -> None:
    """Values (n, n) on one grey scale for all masks: 0 is black, 0.5 grey, 1 white."""
    n = len(values)
    ax.imshow(values, cmap="gray", vmin=0, vmax=1, extent=(0, n, n, 0), interpolation="nearest")
    ax.set_title(title, fontsize="small")
    ax.set_axis_off()


def axis_maxima_figure(values: Tensor, box: Sequence[float], title: str) -> Figure:
    """Figure 2 of the paper: a map (n, n) with its hull box, its column maxima above, its row maxima on the right."""
    n = len(values)
    x1, y1, x2, y2 = (n * float(value) for value in box)
    figure = plt.figure(figsize=(5.6, 5.6))
    figure.set_layout_engine("none")
    whole = figure.add_axes((0.10, 0.08, 0.55, 0.55))
    columns = figure.add_axes((0.10, 0.67, 0.55, 0.20))
    rows = figure.add_axes((0.69, 0.08, 0.20, 0.55))
    _show_mask(whole, values, "")
    draw_box(whole, box, "target", n, n)
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


def figure_1(pictures: Mapping[str, np.ndarray | Tensor], shapes: Mapping[str, str]) -> Figure:
    """Figure 1 of the paper: solid arrows pass a gradient back, dashed ones do not; orange is that gradient.

    What `pictures` holds of "X" and "crop", arrays (H, W, 3), and of "A" and "M", maps (n, n), is drawn in its place;
    `shapes` by the same names, "theta" and "theta_tau" stand below.
    """
    figure, ax = plt.subplots(figsize=(11, 5.4))
    ax.set(xlim=(0, 11), ylim=(-0.15, 5.25), aspect="equal")
    ax.set_axis_off()
    for name, (place, colour) in _MODULES.items():
        _draw_module(ax, *place, name, colour)
    for name, (x, y, symbol) in _TENSORS.items():
        _draw_tensor(ax, x, y, symbol, shapes.get(name, ""), pictures.get(name))
    for x, y, text in _LOSSES:
        ax.text(x, y, text, ha="center", va="center", fontsize=10.5, bbox=_LOSS)
    for points, look in _ARROWS:
        for start, end in zip(points[:-2], points[1:-1], strict=True):
            ax.plot(*zip(start, end, strict=True), color="0.25", linewidth=1.6, linestyle=_DASHES[look])
        arrow = {"arrowstyle": "-|>", "mutation_scale": 13, "color": "0.25", "linewidth": 1.6, "shrinkA": 0}
        ax.add_patch(FancyArrowPatch(*points[-2:], shrinkB=0, linestyle=_DASHES[look], **arrow))
    for start, end in _GRADIENTS:
        look = {"arrowstyle": "-|>", "mutation_scale": 15, "color": SERIES[1], "linewidth": 2.4}
        ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))
    for x, text in ((3.22, r"$\times\,\beta_{att}$ (3)"), (5.66, r"$\times\,\beta_{aff}$ (8)")):
        ax.text(x, 0.12, text, ha="center", va="center", fontsize=10.5, color=SERIES[1], bbox=_VALVE)
    ax.text(8.1, 0.2, "gradient", ha="center", va="bottom", fontsize=9.5, color=SERIES[1])
    ax.text(9.35, 4.72, "same weights", fontsize=9, color="0.45", ha="right", va="bottom")
    ax.plot([9.45, 9.45, 1.85, 1.85], [2.0, 4.95, 4.95, 4.62], color="0.6", linewidth=1.2, linestyle=":")
    ax.text(8.9, 3.55, "training only", fontsize=9.5, color="0.45", ha="right", style="italic")
    return figure


_LOSS = {"boxstyle": "round,pad=0.35", "facecolor": "#FFF3E0", "edgecolor": SERIES[1]}
_VALVE = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": SERIES[1]}
_DASHES = {"gradient": "-", "none": (0, (4, 3))}
_MODULES = {  # (x, y, width) of the middle, colour
    "AttNet\n(2.1)": ((1.97, 1.3, 0.95), SERIES[0]),
    "AffNet\n(2.2)": ((4.45, 1.3, 0.95), SERIES[1]),
    "crop": ((6.72, 1.3, 0.75), "#777777"),
    "classifier": ((9.45, 1.3, 1.0), SERIES[2]),
    "backbone": ((1.85, 4.1, 1.05), SERIES[2]),
    "box of the\ncells ≥ $\\tau$": ((4.45, 4.1, 1.05), "#777777"),
}
_TENSORS = {
    "X": (0.65, 1.3, "$X$"),
    "A": (3.22, 1.3, "$A$"),
    "theta": (5.66, 1.3, r"$\theta$ (6)"),
    "crop": (8.1, 1.3, "crop"),
    "M": (3.22, 4.1, "$M$"),
    "theta_tau": (5.66, 4.1, r"$\theta_\tau$"),
}
_LOSSES = (
    (3.22, 2.72, r"$L_{att}$ (2)"),
    (5.66, 2.72, r"$L_{aff}$ (7)"),
    (10.5, 2.72, r"$L_{CE} + \lambda L_{emb}$"),
)
_ARROWS = (
    (((1.12, 1.3), (1.49, 1.3)), "gradient"),
    (((2.45, 1.3), (2.77, 1.3)), "gradient"),
    (((3.67, 1.3), (3.97, 1.3)), "gradient"),
    (((4.93, 1.3), (5.25, 1.3)), "gradient"),
    (((6.06, 1.3), (6.34, 1.3)), "gradient"),
    (((7.1, 1.3), (7.62, 1.3)), "gradient"),
    (((8.58, 1.3), (8.94, 1.3)), "gradient"),
    (((9.96, 1.3), (10.5, 1.3), (10.5, 2.45)), "gradient"),
    (((0.65, 0.55), (0.65, -0.12), (6.72, -0.12), (6.72, 0.93)), "gradient"),
    (((3.22, 2.08), (3.22, 2.45)), "gradient"),
    (((5.66, 1.74), (5.66, 2.45)), "gradient"),
    (((0.65, 2.08), (0.65, 4.1), (1.3, 4.1)), "none"),
    (((2.39, 4.1), (2.74, 4.1)), "none"),
    (((3.7, 4.1), (3.91, 4.1)), "none"),
    (((4.99, 4.1), (5.25, 4.1)), "none"),
    (((3.22, 3.38), (3.22, 3.0)), "none"),
    (((5.66, 3.7), (5.66, 3.0)), "none"),
)
_GRADIENTS = (((9.3, 0.12), (6.36, 0.12)), ((4.95, 0.12), (3.92, 0.12)), ((2.52, 0.12), (1.6, 0.12)))


def _draw_module(ax: Axes, x: float, y: float, width: float, name: str, colour: str) -> None:
    shape = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": colour, "edgecolor": "none"}
    ax.add_patch(FancyBboxPatch((x - width / 2, y - 0.36), width, 0.72, **shape))
    ax.text(x, y, name, ha="center", va="center", color="white", fontsize=10.5, fontweight="bold")


def _draw_tensor(ax: Axes, x: float, y: float, symbol: str, shape: str, picture: np.ndarray | Tensor | None) -> None:
    if picture is None:
        ax.text(x, y, symbol, ha="center", va="center", fontsize=13)
    else:
        values = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else picture
        place = (x - 0.44, x + 0.44, y - 0.44, y + 0.44)
        ax.imshow(values, cmap=ATTENTION_MAP, extent=place, interpolation="nearest", zorder=2)
        ax.text(x, y + 0.47, symbol, ha="center", va="bottom", fontsize=11)
    ax.text(x, y - 0.5 if picture is not None else y - 0.25, shape, ha="center", va="top", fontsize=9, color="0.35")


def pulls_figure(pictures: np.ndarray, boxes: Tensor, goals: Tensor, pulls: Mapping[str, Tensor]) -> Figure:
    """Where each loss wants to move the edges of a box: downhill, as arrows on the middle of each edge.

    pictures (N, H, W, 3) in [0, 1]; boxes and the teacher's, `goals`, (N, 4) xyxy; pulls by the name of the loss,
    -dL/dbox (N, 4). Arrows show the direction and, within one loss, the size; the longest of each loss is equally long.
    """
    figure, axes = image_grid(1, len(pictures), side=2.7)
    for i, (ax, picture, box, goal) in enumerate(zip(axes[0], pictures, boxes, goals, strict=True)):
        height, width = picture.shape[:2]
        show_image(ax, picture, boxes={"target": goal, "predicted": box})
        x1, y1, x2, y2 = (box * torch.tensor([width, height, width, height])).tolist()
        for j, pull in enumerate(pulls.values()):
            move = (0.25 * width * pull[i] / pull.abs().max()).tolist()
            shift = 0.07 * width * (2 * j - len(pulls) + 1)  # so that the arrows do not cover each other
            x, y = (x1 + x2) / 2 + shift, (y1 + y2) / 2 + shift
            for corner, (start_x, start_y) in enumerate([(x1, y), (x, y1), (x2, y), (x, y2)]):
                across, down = (move[corner], 0) if corner % 2 == 0 else (0, move[corner])
                ends = (start_x, start_y), (start_x + across, start_y + down)
                ax.add_patch(FancyArrowPatch(*ends, color=_PULL_COLOURS[j], **_PULL))
        ax.set(xlim=(-0.06 * width, 1.06 * width), ylim=(1.06 * height, -0.06 * height))
    lines = [Line2D([], [], color=colour, linewidth=3, linestyle="-") for colour in _PULL_COLOURS[: len(pulls)]]
    figure.legend(lines, list(pulls), loc="outside lower center", ncols=len(pulls))
    return figure


_PULL_COLOURS = [SERIES[2], SERIES[0]]
_PULL = {
    "arrowstyle": "-|>",
    "mutation_scale": 14,
    "linewidth": 2.5,
    "shrinkA": 0,
    "shrinkB": 0,
    "zorder": 4,
    "clip_on": False,
}
