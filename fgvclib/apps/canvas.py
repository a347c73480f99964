"""Pictures composed with Pillow in the visual language of `figures`, fast enough to follow a slider.

A matplotlib figure of eight panels takes some 300 ms to lay out and draw; the explorer has 150 ms for everything.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fgvclib.figures import ATTENTION_MAP, BOX_STYLES, shorten

SCALE = 1.5  # pixels of the picture for one of the page: sharp on screens with more pixels than one
SIDE, GAP, TITLE, LEGEND = 232, 18, 38, 30  # of a panel, between panels, above one and below all, in pixels of the page
COLUMNS = 4
# Drawn and skipped pixels, by matplotlib's name of the style.
DASHES = {"-": (1, 0), "--": (9, 5), ":": (3, 4), "-.": (16, 4)}
INK, PALE = "#222222", "#666666"
Corners = Sequence[float]  # x1, y1, x2, y2


class Panel(NamedTuple):
    """A square picture with what stands above it and on it."""

    picture: Image.Image
    title: str
    note: str = ""
    boxes: Mapping[str, Corners] = {}  # xyxy in [0, 1] of `body`, by kind as in `figures.BOX_STYLES`
    cells: np.ndarray | None = None  # (n, n) flags: the True ones are outlined
    body: float = 1.0  # the share of each side, from the lower left corner, that boxes and cells are drawn on
    frame: str | None = None  # kind of box whose colour and line frame the picture
    smooth: bool = False  # photos are enlarged smoothly, cells and what a network gets as the squares that they are


def compose(panels: Sequence[Panel], legend: Mapping[str, str]) -> Image.Image:
    """Panels in rows of four, with a legend of the kinds of boxes below."""
    rows = -(-len(panels) // COLUMNS)
    size = (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + TITLE + GAP) + LEGEND)
    canvas = Image.new("RGB", _pixels(*size), "white")
    draw = ImageDraw.Draw(canvas)
    for index, panel in enumerate(panels):
        row, column = divmod(index, COLUMNS)
        _draw_panel(canvas, draw, panel, GAP + column * (SIDE + GAP), row * (SIDE + TITLE + GAP))
    _draw_legend(draw, legend, size[1] - LEGEND + 4)
    return canvas


def _draw_panel(canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, left: float, top: float) -> None:
    draw.text(_pixels(left, top + 4), panel.title, INK, _font(12.5, bold=True))
    draw.text(_pixels(left, top + 21), panel.note, PALE, _font(11))
    side = _pixels(SIDE)[0]
    how = Image.Resampling.BILINEAR if panel.smooth else Image.Resampling.NEAREST
    corner = _pixels(left, top + TITLE)
    canvas.paste(panel.picture.resize((side, side), how), corner)
    body = panel.body * side
    place = np.array([corner[0], corner[1] + side - body])
    if panel.cells is not None:
        _outline(draw, panel.cells, place, body)
    _draw_boxes(draw, {kind: body * np.array(box) + np.tile(place, 2) for kind, box in panel.boxes.items()})
    if panel.frame:
        _draw_boxes(draw, {panel.frame: (*corner, corner[0] + side, corner[1] + side)})


def _draw_boxes(draw: ImageDraw.ImageDraw, boxes: Mapping[str, Corners]) -> None:
    """Boxes in pixels, each in its kind's colour and line style, on white lines that keep them visible.

    All white lines come first: of boxes that coincide, both are seen.
    """
    for box in boxes.values():
        _rectangle(draw, box, 4, "white", "-")
    for kind, box in boxes.items():
        _rectangle(draw, box, 2.2, BOX_STYLES[kind]["edgecolor"], BOX_STYLES[kind]["linestyle"])


def _rectangle(draw: ImageDraw.ImageDraw, box: Corners, width: float, colour: str, style: str) -> None:
    x1, y1, x2, y2 = box
    for y in (y1, y2):
        _line(draw, (x1, x2), y, round(width * SCALE), colour, DASHES[style], upright=False)
    for x in (x1, x2):
        _line(draw, (y1, y2), x, round(width * SCALE), colour, DASHES[style], upright=True)


def _line(
    draw, along: Sequence[float], at: float, width: int, colour: str, dashes: tuple[int, int], upright: bool
) -> None:
    """A dashed line from along[0] to along[1], `at` pixels across, `width` wide."""
    first, last = sorted(along)
    low, high = round(at - width / 2), round(at - width / 2) + width - 1
    drawn, skipped = (last - first, 1) if dashes[1] == 0 else (SCALE * dashes[0], SCALE * dashes[1])
    for start in np.arange(first, max(last, first + 1), drawn + skipped):
        end = min(start + drawn, last)
        corners = (low, start, high, end) if upright else (start, low, end, high)
        draw.rectangle([round(value) for value in corners], fill=colour)


def _outline(draw: ImageDraw.ImageDraw, cells: np.ndarray, place: np.ndarray, side: float) -> None:
    """White lines between cells that are True and cells that are not."""
    n = len(cells)
    padded = np.pad(cells.astype(int), 1)
    for y, x in np.argwhere(np.diff(padded, axis=1)):
        ends = place[1] + side / n * np.array([y - 1, y])
        _line(draw, ends, place[0] + side / n * x, 2, "white", DASHES["-"], upright=True)
    for y, x in np.argwhere(np.diff(padded, axis=0)):
        ends = place[0] + side / n * np.array([x - 1, x])
        _line(draw, ends, place[1] + side / n * y, 2, "white", DASHES["-"], upright=False)


def _draw_legend(draw: ImageDraw.ImageDraw, legend: Mapping[str, str], top: float) -> None:
    left = GAP
    for kind, text in legend.items():
        _draw_boxes(draw, {kind: _pixels(left, top + 2, left + 26, top + 14)})
        draw.text(_pixels(left + 34, top), text, INK, _font(12))
        left += 34 + draw.textlength(text, _font(12)) / SCALE + 26


def attention_picture(values: Tensor, low: float = 0.0, high: float = 1.0) -> Image.Image:
    """A map (n, n) in the colours of all attention maps; `low` is the darkest value, `high` the brightest."""
    shares = (values.detach().cpu().numpy() - low) / (high - low)
    return Image.fromarray(_colours()[np.clip(255 * shares, 0, 255).astype(np.uint8)])


def mask_picture(mask: Tensor, body: float, cell: int = 16) -> Image.Image:
    """A mask (n, n) in [0.5, 1], its column maxima above and its row maxima on the right: what AffNet is given."""
    n = len(mask)
    side = round(n * cell / body)
    strip = round(0.7 * (side - n * cell))
    whole = Image.new("RGB", (side, side), "white")
    parts = (
        (mask, (0, side - n * cell), (n * cell, n * cell)),
        (mask.amax(dim=0, keepdim=True), (0, 0), (n * cell, strip)),
        (mask.amax(dim=1, keepdim=True), (side - strip, side - n * cell), (strip, n * cell)),
    )
    for values, corner, size in parts:
        whole.paste(attention_picture(values, low=0.5).resize(size, Image.Resampling.NEAREST), corner)
    return whole


def bars_picture(probabilities: pd.DataFrame, colours: Mapping[str, str], answer: int | None, count: int = 4):
    """Grouped bars as a panel's picture: classes (rows, in order, by name) by what the classifier was shown (columns).

    The most probable classes of the last column, and in any case the right `answer`, a label, which has a check mark.
    """
    best = probabilities.iloc[:, -1].reset_index(drop=True).nlargest(count).index.tolist()
    if answer is not None and answer not in best:
        best = [*best[:-1], answer]
    picture = Image.new("RGB", _pixels(SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    height = SIDE / count
    for place, label in enumerate(best):
        top = place * height
        mark = "✓ " if label == answer else ""
        draw.text(_pixels(0, top), mark + shorten(probabilities.index[label], 31), INK, _font(11, bold=bool(mark)))
        for line, (shown, colour) in enumerate(colours.items()):
            value, y = float(probabilities[shown].iloc[label]), top + 16 + 12 * line
            draw.rectangle([*_pixels(0, y + 1), *_pixels(max(1, (SIDE - 40) * value), y + 10)], fill=colour)
            draw.text(_pixels((SIDE - 40) * value + 5, y - 1), f"{value:.0%}", INK, _font(10))
    return picture


def to_jpeg(picture: Image.Image) -> bytes:
    """The picture as JPEG at full colour resolution: 11 ms where PNG takes 55."""
    buffer = BytesIO()
    picture.save(buffer, format="jpeg", quality=92, subsampling=0)
    return buffer.getvalue()


def _pixels(*values: float) -> tuple[int, ...]:
    return tuple(round(SCALE * value) for value in values)


def _font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    return dejavu(SCALE * size, bold)


@cache
def dejavu(pixels: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: the same on every machine, with the letters of most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), pixels)


@cache
def _colours() -> np.ndarray:
    return (255 * matplotlib.colormaps[ATTENTION_MAP](np.arange(256))[:, :3]).astype(np.uint8)
