"""Photos, attention maps, boxes and crops, and the whole system of Figure 1 from photo to answer."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fgvclib.config import Config
from fgvclib.data.loaders import PhotoDataset
from fgvclib.figures.style import (
    ATTENTION_MAP,
    BOX_NAMES,
    BOX_STYLES,
    MASK_MAP,
    SERIES,
    _finish_image,
    _label_rows,
    image_grid,
    shorten,
)
from fgvclib.model.backbones import normalisation
from fgvclib.model.geometry import box_to_theta, crop

LETTERS_PER_INCH = 11  # of a title above a small panel
_PHOTOS = {"allowed": True}


def may_show(dataset: str, show_photos: bool) -> bool:
    """Say whether figures draw the photos of a data set, or a blank panel in their place; → whether they do.

    The drawn birds of SynthBirds are always shown. Photos of others may carry their photographer's rights: a notebook
    that is published with its outputs is run with `show_photos` False, and prints why panels are blank. Boxes and
    attention maps are drawn either way.
    """
    _PHOTOS["allowed"] = show_photos or dataset == "synthbirds"
    if not _PHOTOS["allowed"]:
        print("Photos are blank panels here: they belong to their photographers. show_photos = True shows them.")
    return _PHOTOS["allowed"]


def to_picture(images: Tensor, config: Config) -> np.ndarray:
    """Normalised images (..., 3, H, W) → arrays (..., H, W, 3) in [0, 1] that `imshow` takes."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation(config.backbone))
    return (images.detach().cpu() * std + mean).clamp(0, 1).movedim(-3, -1).numpy()


def show_image(ax: Axes, picture: np.ndarray, title: str = "", boxes: Mapping[str, Sequence[float]] | None = None):
    """A picture (H, W, 3) with boxes xyxy in [0, 1], by kind: "true", "predicted" or "target"; see `may_show`.

    Whatever title the axes get is drawn as it is, without mathematics: it may be a class name, with `$` in it.
    """
    height, width = picture.shape[:2]
    shown = picture if _PHOTOS["allowed"] else np.full((1, 1, 3), 0.9)
    ax.imshow(shown, extent=(0, width, height, 0))
    for kind, box in (boxes or {}).items():
        draw_box(ax, box, kind, width, height)
    _finish_image(ax, title, parse_math=False)


def show_attention(ax: Axes, attention: Tensor, title: str = "", boxes: Mapping[str, Sequence[float]] | None = None):
    """An attention map (n, n) as cells, with boxes xyxy in [0, 1]; the colour scale spans the map's own range."""
    values = attention.detach().cpu().squeeze().numpy()
    height, width = values.shape
    ax.imshow(values, cmap=ATTENTION_MAP, extent=(0, width, height, 0), interpolation="nearest")
    for kind, box in (boxes or {}).items():
        draw_box(ax, box, kind, width, height)
    _finish_image(ax, title)


def draw_box(ax: Axes, box: Sequence[float], kind: str, width: float = 1, height: float = 1) -> None:
    """A box xyxy in [0, 1] on axes that span `width` x `height`; the line is thinner in a small panel."""
    line = float(np.clip(1.2 * ax.get_window_extent().width / ax.figure.dpi, 0.8, 2))
    x1, y1, x2, y2 = (float(value) for value in box)
    if np.isnan(x1):  # a photo without a true box
        return
    corner, size = (x1 * width, y1 * height), ((x2 - x1) * width, (y2 - y1) * height)
    ax.add_patch(
        Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=1.8 * line, alpha=0.7, clip_on=False)
    )
    ax.add_patch(Rectangle(corner, *size, fill=False, linewidth=line, clip_on=False, **BOX_STYLES[kind]))


def box_legend(figure: Figure, kinds: Sequence[str], labels: Mapping[str, str] | None = None) -> None:
    """One legend below the figure for the kinds of boxes it shows."""
    handles = [Rectangle((0, 0), 1, 1, fill=False, linewidth=2, **BOX_STYLES[kind]) for kind in kinds]
    names = [(labels or {}).get(kind, f"{kind} box") for kind in kinds]
    figure.legend(handles, names, loc="outside lower center", ncols=len(kinds))


def cut(picture: np.ndarray, box: Sequence[float], size: int) -> np.ndarray:
    """The part of a picture (H, W, 3) inside a box xyxy in [0, 1], as (size, size, 3): what the classifier sees."""
    image = torch.from_numpy(picture).movedim(-1, 0).unsqueeze(0).float()
    theta = box_to_theta(torch.tensor([[float(value) for value in box]]))
    return crop(image, theta, size)[0].movedim(0, -1).numpy()


def system_figure(
    images: Mapping[str, np.ndarray],
    maps: Mapping[str, Tensor],
    box: Sequence[float],
    probabilities: pd.Series,
    captions: Mapping[str, str],
    answer: str | None = None,
) -> Figure:
    """Figures 1 and 2 of the paper in two rows of four panels, from the tensors of one photo.

    images: "image", "small" and "crop", arrays (H, W, 3); maps: "attention", "mask" and "teacher", (n, n);
    `probabilities` of the classes by name, of which the five largest are shown and `answer` is marked; `captions` by
    the names of the panels ("image", "small", "attention", "mask", "box", "crop", "prediction", "teacher") stand below
    them. Dashed: the teacher, which is there in training alone.
    """
    figure = plt.figure(figsize=(10.4, 6.9))
    figure.set_layout_engine("none")
    axes = {name: _system_panel(figure, name, captions.get(name, "")) for name in _SYSTEM_PANELS}
    for first, last, name, colour in (("small", "attention", "AttNet", 0), ("crop", "prediction", "classifier", 2)):
        _module_frame(figure, axes[first], axes[last], name, SERIES[colour])
    _module_frame(figure, axes["mask"], axes["mask"], "AffNet", SERIES[1])
    _module_frame(figure, axes["box"], axes["box"], "AffNet", SERIES[1])
    _module_frame(figure, axes["teacher"], axes["teacher"], "teacher (training)", "0.35", linestyle="--")
    _system_arrows(figure, axes)
    show_image(axes["image"], images["image"])
    show_image(axes["small"], images["small"])
    show_attention(axes["attention"], maps["attention"])
    _show_mask_with_maxima(axes["mask"], maps["mask"])
    show_image(axes["box"], images["image"], boxes={"predicted": box})
    show_image(axes["crop"], images["crop"])
    show_probabilities(axes["prediction"], probabilities, answer, room=25)
    show_attention(axes["teacher"], maps["teacher"])
    return figure


_SYSTEM_PANELS = {
    "image": (0, 0, "image $X$"),
    "small": (0, 1, "what AttNet sees"),
    "attention": (0, 2, "attention map $A$"),
    "mask": (0, 3, "mask and its maxima"),
    "box": (1, 0, r"box from $\theta$"),
    "crop": (1, 1, "crop"),
    "prediction": (1, 2, "prediction"),
    "teacher": (1, 3, "attention map $M$"),
}


def _system_panel(figure: Figure, name: str, caption: str) -> Axes:
    """Axes at the place of a panel, with its title above and its caption below."""
    row, column, title = _SYSTEM_PANELS[name]
    left, bottom = 0.022 + 0.25 * column, 0.605 - 0.5 * row
    ax = figure.add_axes((left, bottom, 0.205, 0.205 * 10.4 / 6.9))
    figure.text(left + 0.1025, bottom + 0.315, title, ha="center", va="bottom", fontsize=11)
    figure.text(left + 0.1025, bottom - 0.012, caption, ha="center", va="top", fontsize=9.5, color="0.25")
    return ax


def _system_arrows(figure: Figure, axes: Mapping[str, Axes]) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 16, "linewidth": 2, "transform": figure.transFigure}
    for first, second in (("image", "small"), ("small", "attention"), ("attention", "mask"), ("box", "crop"),
                          ("crop", "prediction")):  # fmt: skip
        start, end = axes[first].get_position(), axes[second].get_position()
        height = (start.y0 + start.y1) / 2
        ends = (start.x1 + 0.007, height), (end.x0 - 0.004, height)
        figure.add_artist(FancyArrowPatch(*ends, **style, color="0.25"))


def _module_frame(figure: Figure, first: Axes, last: Axes, name: str, colour: str, linestyle: str = "none") -> None:
    """A tinted frame with a name behind the panels from `first` to `last`; with a line around it where one is named."""
    left, end, bottom = first.get_position().x0 - 0.014, last.get_position().x1 + 0.014, first.get_position().y0 - 0.095
    frame = {"boxstyle": "round,pad=0,rounding_size=0.01", "mutation_aspect": 1.5, "transform": figure.transFigure}
    line = {"edgecolor": colour, "linestyle": linestyle} if linestyle != "none" else {"edgecolor": "none"}
    alpha = {"facecolor": (*to_rgb(colour), 0.10)}
    figure.add_artist(FancyBboxPatch((left, bottom), end - left, 0.475, **alpha, **line, **frame)).set_zorder(-1)
    look = {"fontsize": 12, "fontweight": "bold", "color": colour}
    figure.text(left + 0.006, bottom + 0.468, name, ha="left", va="top", **look)


def _show_mask_with_maxima(ax: Axes, mask: Tensor) -> None:
    """Figure 2: the mask (n, n), its column maxima as a strip above and its row maxima as a strip on the right.

    The colour scale is 0 to 1, so that the background of a mask, 0.5, is neither dark nor bright.
    """
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
        inner.imshow(part, vmin=0, vmax=1, cmap=MASK_MAP, aspect="auto", interpolation="nearest")
        inner.set_axis_off()


def show_probabilities(
    ax: Axes, probabilities: pd.Series, answer: str | None = None, count: int = 5, room: int = 31
) -> None:
    """The most probable classes as bars with their names (up to `room` letters) above; `answer` has another colour."""
    best = probabilities.nlargest(min(count, len(probabilities)))
    colours = [BOX_STYLES["true"]["edgecolor"] if name == answer else "0.6" for name in best.index]
    places = np.arange(len(best))
    ax.barh(places, best.to_numpy(), height=0.32, color=colours)
    for place, (name, value) in zip(places, best.items(), strict=True):
        ax.text(0, place - 0.24, shorten(name, room), va="bottom", fontsize=9.5, parse_math=False)
        ax.text(value, place, f" {value:.0%}", va="center", fontsize=9.5)
    ax.set(xlim=(0, 1), ylim=(max(len(best), 4) - 0.6, -0.75))
    ax.set_axis_off()


def compare_views(
    pictures: Sequence[np.ndarray],
    boxes: Sequence[Sequence[float]],
    titles: Sequence[str],
    image_size: int,
    view: int,
) -> Figure:
    """Why localise: photos with their true boxes, the bird in a `view`-pixel whole image, and in a `view`-pixel crop.

    pictures: arrays (H, W, 3) of uint8, first squeezed to X, `image_size` pixels a side; boxes xyxy in [0, 1]. Both
    lower rows show the same square region of X. The titles count real pixels: a crop cannot show more than X has.
    """
    figure, axes = image_grid(3, len(pictures), side=2.55)
    for column, (picture, box, title) in enumerate(zip(pictures, boxes, titles, strict=True)):
        whole = Image.fromarray(picture).resize((image_size, image_size), Image.Resampling.BILINEAR)
        region = square_around(box, image_size, image_size)
        share = (region[2] - region[0]) / image_size
        small = whole.resize((view, view), Image.Resampling.BILINEAR)
        part = tuple(region * view / image_size)
        seen = small.resize((400, 400), Image.Resampling.NEAREST, box=part)
        cropped = whole.resize((view, view), Image.Resampling.BILINEAR, box=tuple(region))
        show_image(axes[0, column], picture, title, {"true": box})
        show_image(axes[1, column], np.asarray(seen), f"{share * view:.0f} real pixels across")
        real = min(view, share * image_size)
        show_image(axes[2, column], np.asarray(cropped), f"{real:.0f} real pixels across")
    _label_rows(axes, ["photo, true box", f"whole photo at {view} px", f"crop at {view} px"])
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
    images = [dataset[index]["image"] for index in range(len(dataset))]
    return torch.stack(images) if images else torch.empty(0, 3, config.image_size, config.image_size)


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


def localisation_gallery(
    pictures: np.ndarray,
    boxes: Sequence[Mapping[str, Sequence[float]]],
    rows: Mapping[str, Tensor | np.ndarray],
    titles: Sequence[str],
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """One column per photo: the photo with its boxes, then what `rows` holds, labelled on the left.

    pictures (N, H, W, 3) in [0, 1]. A row is either attention maps, a tensor (N, 1, n, n) drawn with the box
    "target" where its label names M and "predicted" otherwise, or pictures (N, S, S, 3). `notes` are short titles of
    the panels of a row, by the row's label. Titles wider than a panel are broken.
    """
    side = min(1.9, 10.6 / len(pictures))
    figure, axes = image_grid(1 + len(rows), len(pictures), side=side)
    for column, (picture, drawn, title) in enumerate(zip(pictures, boxes, titles, strict=True)):
        lines = [textwrap.fill(line, int(LETTERS_PER_INCH * side)) for line in title.splitlines()]
        show_image(axes[0, column], picture, "\n".join(lines), drawn)
        for ax, (label, row) in zip(axes[1:, column], rows.items(), strict=True):
            note = notes[label][column] if notes and label in notes else ""
            if isinstance(row, Tensor):
                kind = "target" if "M" in label else "predicted"
                show_attention(ax, row[column], note, {kind: drawn[kind]} if kind in drawn else None)
            else:
                show_image(ax, row[column], note)
    _label_rows(axes, ["photo", *rows])
    box_legend(figure, [kind for kind in BOX_STYLES if any(kind in drawn for drawn in boxes)], BOX_NAMES)
    return figure


def outline_cells(ax: Axes, cells: np.ndarray, **style) -> None:
    """A line around the True cells (n, n) of a map that `show_attention` has drawn."""
    padded = np.pad(cells.astype(int), 1)
    upright = [[(x, y - 1), (x, y)] for y, x in np.argwhere(np.diff(padded, axis=1))]
    level = [[(x - 1, y), (x, y)] for y, x in np.argwhere(np.diff(padded, axis=0))]
    ax.add_collection(LineCollection(upright + level, **({"color": "white", "linewidth": 1.2} | style)))
