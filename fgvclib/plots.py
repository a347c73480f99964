"""One visual language for all figures: what a colour or a line style means is the same in every notebook.

Boxes differ in colour (Okabe-Ito, safe for colour-blind readers) and in line style (safe in grey). Attention maps share
one colour map. Functions draw on the axes given, or return a new figure.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fgvclib.backbones import normalisation
from fgvclib.config import Config
from fgvclib.data import PhotoDataset
from fgvclib.geometry import box_to_theta, crop, min_max_normalise

BOX_STYLES = {
    "true": {"edgecolor": "#009E73", "linestyle": "-"},
    "predicted": {"edgecolor": "#D55E00", "linestyle": "--"},
    "target": {"edgecolor": "#56B4E9", "linestyle": ":"},
}
SERIES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
# Beside the colours, for readers in grey:
LINES = ["-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
ATTENTION_MAP = "magma"
FRAMES = 8  # epochs that the film strip of a running training has room for
BOX_NAMES = {"true": "true box", "predicted": r"predicted: AffNet's $\theta$", "target": r"target: from $M$ at $\tau$"}


def use_style() -> None:
    """Set matplotlib's defaults for the collection; every notebook calls it once."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 150,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=SERIES, linestyle=LINES),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "axes.grid": True,
            "grid.alpha": 0.25,
            "image.cmap": ATTENTION_MAP,
            "legend.frameon": False,
            "legend.handlelength": 3,
            "lines.linewidth": 2,
        }
    )


def to_picture(images: Tensor, config: Config) -> np.ndarray:
    """Normalised images (..., 3, H, W) → arrays (..., H, W, 3) in [0, 1] that `imshow` takes."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation(config.backbone))
    return (images.detach().cpu() * std + mean).clamp(0, 1).movedim(-3, -1).numpy()


def show_image(ax: Axes, picture: np.ndarray, title: str = "", boxes: Mapping[str, Sequence[float]] | None = None):
    """A picture (H, W, 3) with boxes xyxy in [0, 1], by kind: "true", "predicted" or "target"."""
    height, width = picture.shape[:2]
    ax.imshow(picture, extent=(0, width, height, 0))
    for kind, box in (boxes or {}).items():
        draw_box(ax, box, kind, width, height)
    _finish_image(ax, title)


def show_attention(ax: Axes, attention: Tensor, title: str = "", boxes: Mapping[str, Sequence[float]] | None = None):
    """An attention map (n, n) as cells, with boxes xyxy in [0, 1]; the colour scale spans the map's own range."""
    values = attention.detach().cpu().squeeze().numpy()
    height, width = values.shape
    ax.imshow(values, cmap=ATTENTION_MAP, extent=(0, width, height, 0), interpolation="nearest")
    for kind, box in (boxes or {}).items():
        draw_box(ax, box, kind, width, height)
    _finish_image(ax, title)


def draw_box(ax: Axes, box: Sequence[float], kind: str, width: float = 1, height: float = 1) -> None:
    """A box xyxy in [0, 1] on axes that span `width` x `height`."""
    x1, y1, x2, y2 = (float(value) for value in box)
    corner, size = (x1 * width, y1 * height), ((x2 - x1) * width, (y2 - y1) * height)
    ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=3.5, alpha=0.7, clip_on=False))
    ax.add_patch(Rectangle(corner, *size, fill=False, linewidth=2, clip_on=False, **BOX_STYLES[kind]))


def box_legend(figure: Figure, kinds: Sequence[str], labels: Mapping[str, str] | None = None) -> None:
    """One legend below the figure for the kinds of boxes it shows."""
    handles = [Rectangle((0, 0), 1, 1, fill=False, linewidth=2, **BOX_STYLES[kind]) for kind in kinds]
    names = [(labels or {}).get(kind, f"{kind} box") for kind in kinds]
    figure.legend(handles, names, loc="outside lower center", ncols=len(kinds))


def _finish_image(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize="small")
    ax.set_axis_off()


def _label_rows(axes: np.ndarray, labels: Sequence[str]) -> None:
    """What a row of panels shows, upright at its left."""
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.text(-0.06, 0.5, label, transform=ax.transAxes, rotation=90, ha="right", va="center")


def image_grid(rows: int, columns: int, side: float = 1.8) -> tuple[Figure, np.ndarray]:
    """Figure with rows x columns of square axes, `side` inches each → figure and axes (rows, columns)."""
    return plt.subplots(rows, columns, figsize=(columns * side, rows * (side + 0.15)), squeeze=False)


def show_curves(ax: Axes, curves: Mapping[str, pd.Series], title: str, ylabel: str, xlabel: str = "epoch") -> None:
    """Lines by name; they differ in colour, line style and marker."""
    for (name, series), marker in zip(curves.items(), cycle(MARKERS)):
        ax.plot(series.index, series.values, marker=marker, markersize=4, label=name)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="small")


def film_strip(pictures: np.ndarray, trajectories: pd.DataFrame, crop_size: int, epochs: Sequence[int]) -> Figure:
    """How the crop moves: one row per watched photo, the photo with its last box, then its crop after some epochs.

    pictures (N, H, W, 3) in [0, 1]; trajectories as in `Run.trajectories`, N photos in the order of `row`.
    """
    figure, axes = image_grid(len(pictures), len(epochs) + 1, side=1.35)
    _draw_film(axes, pictures, trajectories, crop_size, epochs)
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
    terms = {name: history[f"train_{name}"] for name in ("cross_entropy", "embedding", "attention", "affine")}
    return {name.replace("_", " "): values for name, values in terms.items() if values.any()}


def training_figure(
    history: pd.DataFrame,
    epochs: int,
    pictures: np.ndarray,
    trajectories: pd.DataFrame,
    crop_size: int,
    frames: Sequence[int],
) -> Figure:
    """A training of `epochs` so far: loss terms, accuracy and boxes, and below them the crops after some epochs.

    history and trajectories as in `Run`; pictures as for `film_strip`; at most FRAMES epochs as `frames`.
    """
    history = history.set_index("epoch")
    heights = [3.0, 1.2 * len(pictures)]
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
    axes = below.subplots(len(pictures), FRAMES + 1, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    _draw_film(axes, pictures, trajectories, crop_size, frames)
    return figure


def cut(picture: np.ndarray, box: Sequence[float], size: int) -> np.ndarray:
    """The part of a picture (H, W, 3) inside a box xyxy in [0, 1], as (size, size, 3): what the classifier sees."""
    image = torch.from_numpy(picture).movedim(-1, 0).unsqueeze(0).float()
    theta = box_to_theta(torch.tensor([[float(value) for value in box]]))
    return crop(image, theta, size)[0].movedim(0, -1).numpy()


def table2_figure(table: pd.DataFrame) -> Figure:
    """Table 2 at a glance: accuracy of every row with its spread over seeds, and the boxes' quality beside it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.55 * len(table) + 1.6), sharey=True)
    places = np.arange(len(table))[::-1]
    left.errorbar(table["accuracy_mean"], places, xerr=table["accuracy_std"].fillna(0), fmt="o", capsize=4)
    left.axvline(table["accuracy_mean"].iloc[0], color="black", linewidth=1, linestyle=":")
    left.set(yticks=places, yticklabels=table["description"], xlabel="test accuracy [%], dotted: first row")
    left.set(title="Right is better; bars: standard deviation over seeds", ylim=(-0.6, len(table) - 0.4))
    right.barh(places + 0.18, table["box_acc_0.5"], 0.34, label="crop", color=SERIES[1])
    look = {"label": "teacher's own box", "color": SERIES[5], "hatch": "//"}
    right.barh(places - 0.18, table["teacher_box_acc_0.5"], 0.34, **look)
    right.set(xlabel="share of test photos with IoU ≥ 0.5", title="Whose boxes fit more often?", xlim=(0, 1))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def bounds_figure(table: pd.DataFrame) -> Figure:
    """`bounds.bounds_table` between baseline and oracle: accuracy with its spread, and how often the box was right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.5 * len(table) + 1.6), sharey=True)
    places = np.arange(len(table))[::-1]
    accuracy = table.set_index("row")["accuracy_mean"]
    left.axvspan(accuracy["Baseline"], accuracy["Oracle crop"], color="#EEEEEE", label="from baseline to perfect box")
    left.errorbar(accuracy, places, xerr=table["accuracy_std"].fillna(0), fmt="o", capsize=4, color=SERIES[0])
    for place, value, share in zip(places, accuracy, table["share_of_gain"], strict=True):
        if np.isfinite(share):
            left.annotate(f"{share:.0%}", (value, place), (0, 7), textcoords="offset points", ha="center", size="small")
    left.set(
        yticks=places, yticklabels=table["row"], xlabel="test accuracy [%] ± std. over seeds; small: share of the gain"
    )
    gain = accuracy["Oracle crop"] - accuracy["Baseline"]
    left.set(title=f"From baseline to perfect box: {gain:+.1f} points", ylim=(-0.6, len(table) - 0.3))
    left.legend(loc="lower left", fontsize="small")
    right.barh(places, table["box_acc_0.5"], 0.5, color=SERIES[1])
    right.set(xlabel="share of test photos with IoU ≥ 0.5", title="Boxes: longer is better", xlim=(0, 1))
    return figure


def teachers_figure(table: pd.DataFrame, trivial: float) -> Figure:
    """`teacher_maps.compare_teachers` as lines over tau, and the centre box's score to beat."""
    figure, ax = plt.subplots(figsize=(6.5, 3.6))
    for (name, scores), marker in zip(table.iterrows(), cycle(MARKERS)):
        ax.plot(scores.index, scores, marker=marker, label=name)
    ax.axhline(trivial, color="black", linewidth=1, linestyle=":", label="centre box 0.7")
    name, tau = table.stack().idxmax()
    ax.set(xlabel=r"threshold $\tau$", ylabel="BoxAcc@0.5, validation photos", ylim=(0, 1))
    ax.set_title(rf"Best: {name} at $\tau$ = {tau:g}, {table.max(axis=None):.2f}; centre box {trivial:.2f}")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", title="layer, mean")
    return figure


def table3_figure(table: pd.DataFrame, dataset: str) -> Figure:
    """Table 3: the paper's numbers on the three benchmarks (diamonds: its own), and apart what was measured here."""
    benchmarks = {"cub200_2011": "CUB-200-2011", "stanford_cars": "Stanford Cars", "fgvc_aircraft": "FGVC-Aircraft"}
    published, measured = table[table["source"] == "paper"], table[table["source"] != "paper"]
    figure, axes = plt.subplots(1, 4, figsize=(14, 6), width_ratios=[1, 1, 1, 1])
    for ax, (column, title) in zip(axes, benchmarks.items(), strict=False):
        rows = published.dropna(subset=[column]).sort_values(column)
        ours = rows["method"].str.startswith("Ours").to_numpy()
        names, places = rows["method"].str.replace("Ours", "Paper").to_numpy(), np.arange(len(rows))
        ax.plot(rows[column], places, "o", color="0.55")
        ax.plot(rows[column][ours], places[ours], "D", markersize=8, color=SERIES[1])
        ax.set(yticks=places, yticklabels=names, xlim=(80, 98), xlabel="accuracy [%]")
        rank = 1 + int((rows[column] > rows[column][ours].max()).sum())
        ax.set_title(f"{title}, published:\nthe paper is number {rank} of {len(rows)}")
        ax.tick_params(axis="y", labelsize="small")
    values, spread = measured[f"measured_{dataset}"], measured[f"measured_{dataset}_std"].fillna(0)
    names = measured["method"].str.replace(" (", "\n(").str.replace(" without", "\nwithout")
    axes[3].barh(names[::-1], values[::-1], 0.5, xerr=spread[::-1], color=SERIES[0])
    axes[3].set_ylim(-1.5, len(measured) + 0.5)  # three rows need not be as thick as the column is high
    axes[3].tick_params(axis="y", labelsize="small")
    axes[3].set(title=f"{dataset}, measured here\nrows compare with each other", xlabel="accuracy [%]", xlim=(0, 100))
    return figure


def system_figure(
    images: Mapping[str, np.ndarray],
    maps: Mapping[str, Tensor],
    box: Sequence[float],
    probabilities: pd.Series,
    captions: Mapping[str, str],
    answer: str | None = None,
) -> Figure:
    """Figures 1 and 2 of the paper in one row, from the tensors of one photo.

    images: "image", "small" and "crop", arrays (H, W, 3); maps: "attention" and "mask", (n, n); `probabilities` of the
    classes by name, of which the five largest are shown and `answer` is marked; `captions` by the names of the panels
    ("image", "small", "attention", "mask", "box", "crop", "prediction") stand below them.
    """
    titles = {
        "image": "image $X$",
        "small": "what AttNet sees",
        "attention": "attention map $A$",
        "mask": "mask and its maxima",
        "box": r"box from $\theta$",
        "crop": "crop",
        "prediction": "prediction",
    }
    side, gap, bottom, height = 1.85, 0.55, 0.75, 3.35
    width = len(titles) * (side + gap) + 0.45
    figure = plt.figure(figsize=(width, height))
    figure.set_layout_engine("none")
    axes = {}
    for i, (name, title) in enumerate(titles.items()):
        left = gap / 2 + i * (side + gap)
        axes[name] = figure.add_axes((left / width, bottom / height, side / width, side / height))
        _panel_text(figure, (left + side / 2) / width, title, captions.get(name, ""))
        if i:
            middle = (bottom + side / 2) / height
            _arrow(figure, (left - gap + 0.16) / width, (left - 0.10) / width, middle)
    for first, last, name, colour in (("small", "attention", "AttNet", 0), ("mask", "box", "AffNet", 1)):
        _module_frame(figure, axes[first], axes[last], name, SERIES[colour])
    _module_frame(figure, axes["prediction"], axes["prediction"], "classifier", SERIES[2], right=0.42 / width)
    show_image(axes["image"], images["image"])
    show_image(axes["small"], images["small"])
    show_attention(axes["attention"], maps["attention"])
    _show_mask_with_maxima(axes["mask"], maps["mask"])
    show_image(axes["box"], images["image"], boxes={"predicted": box})
    show_image(axes["crop"], images["crop"])
    show_probabilities(axes["prediction"], probabilities, answer)
    return figure


def _panel_text(figure: Figure, centre: float, title: str, caption: str) -> None:
    figure.text(centre, 0.805, title, ha="center", va="bottom", fontsize=10.5)
    figure.text(centre, 0.195, caption, ha="center", va="top", fontsize=9, color="0.3", linespacing=1.35)


def _arrow(figure: Figure, start: float, end: float, height: float) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 16, "linewidth": 2, "color": "0.25"}
    figure.add_artist(FancyArrowPatch((start, height), (end, height), transform=figure.transFigure, **style))


def _module_frame(figure: Figure, first: Axes, last: Axes, name: str, colour: str, right: float = 0.0) -> None:
    """A tinted frame with a name behind the panels from `first` to `last`."""
    margin = 0.009
    left, end = first.get_position().x0 - margin, last.get_position().x1 + margin + right
    frame = {"boxstyle": "round,pad=0,rounding_size=0.01", "mutation_aspect": 5, "transform": figure.transFigure}
    figure.add_artist(
        FancyBboxPatch((left, 0.02), end - left, 0.96, facecolor=colour, alpha=0.10, edgecolor="none", **frame)
    ).set_zorder(-1)
    figure.text(left + 0.006, 0.965, name, ha="left", va="top", fontsize=11.5, fontweight="bold", color=colour)


def _show_mask_with_maxima(ax: Axes, mask: Tensor) -> None:
    """Figure 2: the mask (n, n), its column maxima as a strip above and its row maxima as a strip on the right."""
    values = mask.detach().cpu().squeeze().numpy()
    ax.set_axis_off()
    strip, gap = 0.08, 0.03
    body = 1 - strip - gap
    parts = (
        ((0, 0, body, body), values),
        ((0, body + gap, body, strip), values.max(axis=0, keepdims=True)),
        ((body + gap, 0, strip, body), values.max(axis=1, keepdims=True)),
    )
    for place, part in parts:
        inner = ax.inset_axes(place)
        inner.imshow(part, vmin=values.min(), vmax=values.max(), aspect="auto", interpolation="nearest")
        inner.set_axis_off()


def show_probabilities(ax: Axes, probabilities: pd.Series, answer: str | None = None, count: int = 5) -> None:
    """The most probable classes as bars with their names above; the right `answer` is drawn in another colour."""
    best = probabilities.nlargest(min(count, len(probabilities)))
    colours = [BOX_STYLES["true"]["edgecolor"] if name == answer else "0.6" for name in best.index]
    places = np.arange(len(best))
    ax.barh(places, best.to_numpy(), height=0.32, color=colours)
    for place, (name, value) in zip(places, best.items(), strict=True):
        ax.text(0, place - 0.24, shorten(name, 31), va="bottom", fontsize=8.5)
        ax.text(value, place, f" {value:.0%}", va="center", fontsize=8.5)
    ax.set(xlim=(0, 1), ylim=(max(len(best), 4) - 0.6, -0.75))
    ax.set_axis_off()


def compare_views(
    pictures: Sequence[np.ndarray], boxes: Sequence[Sequence[float]], titles: Sequence[str], view: int
) -> Figure:
    """Why localise: photos with their true boxes, the bird in a `view`-pixel whole image, and in a `view`-pixel crop.

    pictures: arrays (H, W, 3) of uint8; boxes xyxy in [0, 1]. Both lower rows show the same region of the photo.
    """
    figure, axes = image_grid(3, len(pictures), side=2.6)
    for column, (picture, box, title) in enumerate(zip(pictures, boxes, titles, strict=True)):
        height, width = picture.shape[:2]
        photo, region = Image.fromarray(picture), square_around(box, width, height)
        share = (region[2] - region[0]) / width
        small = photo.resize((view, view), Image.Resampling.BILINEAR)
        scale = np.tile([view / width, view / height], 2)
        seen = small.resize((400, 400), Image.Resampling.NEAREST, box=tuple(region * scale))
        crop = photo.resize((view, view), Image.Resampling.BILINEAR, box=tuple(region))
        show_image(axes[0, column], picture, title, {"true": box})
        show_image(axes[1, column], np.asarray(seen), f"{share * view:.0f} pixels across")
        show_image(axes[2, column], np.asarray(crop), f"{view} pixels across")
    _label_rows(axes, ["photo, true box", f"whole photo at {view} px, enlarged", f"crop at {view} px"])
    return figure


def square_around(box: Sequence[float], width: int, height: int, margin: float = 1.08) -> np.ndarray:
    """The square region (pixels, xyxy) inside an image that holds a box xyxy in [0, 1] with a small margin."""
    x1, y1, x2, y2 = np.asarray(box, float) * [width, height, width, height]
    side = min(margin * max(x2 - x1, y2 - y1), width, height)
    left = np.clip((x1 + x2 - side) / 2, 0, width - side)
    top = np.clip((y1 + y2 - side) / 2, 0, height - side)
    return np.array([left, top, left + side, top + side])


def photo_batch(photos: pd.DataFrame, config: Config) -> Tensor:
    """Photos of a table as a normalised batch (N, 3, S, S), without augmentation."""
    dataset = PhotoDataset(photos, config)
    return torch.stack([dataset[index]["image"] for index in range(len(dataset))])


def shorten(name: str, length: int) -> str:
    """At most `length` characters, the last of them an ellipsis where some had to go."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def spot_the_difference(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[Sequence[str]]) -> Figure:
    """Rows of aligned pictures (H, W, 3) of uint8; what differs from the first of its row is ringed.

    A picture that differs nearly everywhere shows another pose and gets no ring.
    """
    figure, axes = image_grid(len(rows), max(len(row) for row in rows), side=2.3)
    for ax in axes.flat:
        ax.set_axis_off()
    for pictures, names, places in zip(rows, titles, axes, strict=True):
        for picture, name, ax in zip(pictures, names, places, strict=False):
            show_image(ax, picture, name)
            difference = np.abs(picture.astype(int) - pictures[0]).max(axis=2) > 40
            near = gaussian_filter(difference.astype(float), sigma=len(picture) / 40)
            if 0 < (near > 0.02).mean() < 0.25:
                ax.contour(near, levels=[0.02], colors=SERIES[3], linewidths=2)
    return figure


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


def localisation_gallery(
    pictures: np.ndarray,
    boxes: Sequence[Mapping[str, Sequence[float]]],
    rows: Mapping[str, Tensor | np.ndarray],
    titles: Sequence[str],
) -> Figure:
    """One column per photo: the photo with its boxes, then what `rows` holds, labelled on the left.

    pictures (N, H, W, 3) in [0, 1]. A row is either attention maps, a tensor (N, 1, n, n) drawn with the box
    "target" where its label names M and "predicted" otherwise, or pictures (N, S, S, 3).
    """
    figure, axes = image_grid(1 + len(rows), len(pictures), side=1.9)
    for column, (picture, drawn, title) in enumerate(zip(pictures, boxes, titles, strict=True)):
        show_image(axes[0, column], picture, title, drawn)
        for ax, (label, row) in zip(axes[1:, column], rows.items(), strict=True):
            if isinstance(row, Tensor):
                kind = "target" if "M" in label else "predicted"
                show_attention(ax, row[column], boxes={kind: drawn[kind]} if kind in drawn else None)
            else:
                show_image(ax, row[column])
    _label_rows(axes, ["photo", *rows])
    box_legend(figure, [kind for kind in BOX_STYLES if kind in boxes[0]], BOX_NAMES)
    return figure


def show_confusion(ax: Axes, counts: np.ndarray, names: Sequence[str], groups: Sequence[str], title: str = "") -> None:
    """Confusion matrix (K, K), rows true, as shares of a row (in %); lines part the groups, each contiguous."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    starts = [i for i, group in enumerate(groups) if i == 0 or groups[i - 1] != group]
    if len(names) <= 40:
        for start in starts[1:]:
            ax.axhline(start - 0.5, color="0.6", linewidth=0.8)
            ax.axvline(start - 0.5, color="0.6", linewidth=0.8)
        middles = (np.array(starts) + np.array([*starts[1:], len(names)]) - 1) / 2
        ax.set_xticks(middles, [groups[start] for start in starts], rotation=40, ha="right", fontsize="x-small")
        ax.set_yticks(range(len(names)), [shorten(name, 34) for name in names], fontsize="x-small")
        ax.tick_params(length=0)
    if len(names) <= 12:
        for (row, column), share in np.ndenumerate(shares):
            ink = {"color": "white" if share > 0.55 else "black", "ha": "center", "va": "center"}
            ax.text(column, row, f"{100 * share:.0f}" if share >= 0.005 else "", fontsize="x-small", **ink)
    ax.set(title=title, xlabel="predicted", ylabel="true")
    ax.grid(False)


def binned_accuracy(ax: Axes, correct: pd.DataFrame, by: pd.Series, bins: int = 6) -> None:
    """Accuracy of every column of `correct` (booleans) in bins of equally many photos by `by`, with standard errors."""
    groups = pd.qcut(by, min(bins, by.nunique()), duplicates="drop")
    places = by.groupby(groups, observed=True).median()
    aside = 0.006 * (places.max() - places.min())  # so that error bars do not cover each other
    for i, (name, values) in enumerate(correct.items()):
        shares = values.groupby(groups, observed=True).agg(["mean", "count"])
        error = np.sqrt(shares["mean"] * (1 - shares["mean"]) / shares["count"])
        ax.errorbar(places + i * aside, 100 * shares["mean"], 100 * error, marker=MARKERS[i], capsize=3, label=name)
    ax.set(ylabel="accuracy, %", ylim=(0, 103))
    ax.legend(fontsize="small")


def outline_cells(ax: Axes, cells: np.ndarray, **style) -> None:
    """A line around the True cells (n, n) of a map that `show_attention` has drawn."""
    padded = np.pad(cells.astype(int), 1)
    upright = [[(x, y - 1), (x, y)] for y, x in np.argwhere(np.diff(padded, axis=1))]
    level = [[(x - 1, y), (x, y)] for y, x in np.argwhere(np.diff(padded, axis=0))]
    ax.add_collection(LineCollection(upright + level, **({"color": "white", "linewidth": 1.2} | style)))


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


def iou_histogram(ax: Axes, iou: Mapping[str, np.ndarray], title: str) -> None:
    """IoU of every photo for several localisers, as outlines that do not hide each other, with their means."""
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


def table1_errors(scores: Mapping[str, pd.DataFrame], levels: Sequence[float] = (0.80, 0.95)) -> Figure:
    """Rows of Table 1 in full: share of the maps up to an error, and share above an IoU; names with "+ prep." solid."""
    figure, (errors, overlaps) = plt.subplots(1, 2, figsize=(12.5, 4.4))
    models = list(dict.fromkeys(name.removesuffix(" + prep.") for name in scores))
    for name, table in scores.items():
        plain = name.removesuffix(" + prep.")
        number = models.index(plain) % len(SERIES)
        look = {"color": SERIES[number], "linestyle": "--" if name == plain else "-"}
        look |= {"marker": MARKERS[number], "markersize": 5, "markevery": (0.03 * number, 0.2)}
        shares = 100 * np.arange(1, len(table) + 1) / len(table)
        errors.plot(np.sort(table["sl1_error"].clip(lower=1e-7)), shares, label=name, **look)
        overlaps.plot(np.sort(table["iou"])[::-1], shares, **look)
    errors.set(title="Share of the maps up to an error: left is better", xlabel="SL1 error of a map", xscale="log")
    overlaps.set(
        title="Share of the maps above an IoU: right is better", xlabel="IoU with the target box", xlim=(0.5, 1)
    )
    for level in levels:
        overlaps.axvline(level, color="black", linewidth=1, linestyle=":")
    for ax in (errors, overlaps):
        ax.set(ylabel="maps, %", ylim=(0, 101))
    figure.legend(loc="outside right center", fontsize="small")
    return figure


def sharpness_figure(sweep: pd.DataFrame, authors: float, default: float) -> Figure:
    """What the sharpness (index, rising) does: iou_gt_0.95, silent, gradient_mean and gradient_median (over maps)."""
    figure, (hits, gradients) = plt.subplots(1, 2, figsize=(11, 3.9))
    hits.plot(sweep.index, 100 * sweep["iou_gt_0.95"], marker="o", linestyle="-", label="maps with IoU > 0.95")
    hits.plot(sweep.index, 100 * sweep["silent"], marker="s", linestyle="--", label="silent maps")
    first, last = 100 * sweep.iloc[0], 100 * sweep.iloc[-1]
    good, silent = (f"{first[name]:.0f} → {last[name]:.0f} %" for name in ("iou_gt_0.95", "silent"))
    hits.set_title(f"k = {sweep.index[0]:g} → {sweep.index[-1]:g}: good boxes {good}, silent maps {silent}")
    hits.set(ylabel="maps, %", ylim=(0, 103))
    gradients.plot(sweep.index, sweep["gradient_mean"], marker="o", linestyle="-", label="mean over the maps")
    gradients.plot(sweep.index, sweep["gradient_median"], marker="s", linestyle="--", label="median over the maps")
    gradients.set_title("Where the lines part, few maps carry the gradient")
    gradients.set_ylabel(r"mean $|\partial\theta / \partial A|$ over the cells")
    gradients.set_yscale("symlog", linthresh=1e-4)
    for ax, place in ((hits, "upper left"), (gradients, "lower left")):
        ax.axvline(authors, color="black", linewidth=1, linestyle=":", label=f"authors' k = {authors:g}")
        ax.axvline(default, color="black", linewidth=1, linestyle="-.", label=f"default k = {default:g}")
        ax.set(xscale="log", xlabel="sharpness $k$")
        ax.legend(loc=place, fontsize="small")
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes, for an image widget; the figure is closed."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return buffer.getvalue()


def competitors_figure(table: pd.DataFrame) -> Figure:
    """Inference time over that of the classifier alone, one bar per system: columns value, low, high of `ratios`."""
    figure, ax = plt.subplots(figsize=(7.5, 0.5 + 0.45 * len(table)))
    errors = [table["value"] - table["low"], table["high"] - table["value"]]
    colours = [SERIES[1] if name == "ours" else SERIES[0] for name in table.index]
    hatches = ["//" if name == "ours" else "" for name in table.index]
    ax.barh(table.index, table["value"], xerr=errors, color=colours, hatch=hatches)
    for row, value in enumerate(table["high"]):
        ax.text(value, row, f"  {table['value'].iloc[row]:.2f}", va="center")
    ax.axvline(1, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="time / time of the classifier alone", xlim=(0, 1.12 * table["high"].max()))
    ax.set_title("What localisation costs at test time: shorter is better (median, with quartiles)")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return figure


def growth_figure(batch: pd.DataFrame, size: pd.DataFrame, classes: pd.DataFrame) -> Figure:
    """Time and memory of a training step over batch and input size; the embedding loss over the number of classes."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    for ax, table, title in zip(axes, (batch, size), ("photos in a batch", "side of the photo [px]"), strict=False):
        x = table.iloc[:, 0]
        ax.plot(x, table["baseline_ms"], "o-", color=SERIES[0], label="baseline [ms]")
        ax.plot(x, table["ours_ms"], "s--", color=SERIES[1], label="end-to-end [ms]")
        memory = ax.twinx()
        memory.plot(x, table["gib"], "^:", color=SERIES[2], label="memory, end-to-end [GiB]")
        memory.set(ylabel="GiB", ylim=(0, None))
        memory.spines["right"].set_visible(True)
        memory.grid(visible=False)
        ax.set(xlabel=title, ylabel="ms per training step", ylim=(0, None), xticks=x)
    handles = axes[0].get_lines() + memory.get_lines()
    axes[0].legend(handles, [line.get_label() for line in handles], fontsize="small", loc="lower right")
    for ax, table, power, name in zip(axes, (batch, size), (1, 2), ("photos", "pixels"), strict=False):
        more, longer = _factor(table.iloc[:, 0]) ** power, _factor(table["ours_ms"])
        ax.set_title(f"{more:.3g}x the {name}: {longer:.1f}x the time", fontsize="medium")
    axes[2].loglog(classes["classes"], classes["all_pairs_ms"], "o-", color=SERIES[0], label="all pairs of classes")
    axes[2].loglog(classes["classes"], classes["ours_ms"], "s--", color=SERIES[1], label="classes of the batch (ours)")
    title = f"{_factor(classes['classes']):g}x the classes: {_factor(classes['ours_ms']):.1f}x the time (ours)"
    axes[2].set(xlabel="classes", ylabel="ms of the embedding loss", title=title)
    axes[2].legend(fontsize="small")
    return figure


def _factor(values: pd.Series) -> float:
    """The last value over the first."""
    return values.iloc[-1] / values.iloc[0]
