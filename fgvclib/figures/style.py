"""One visual language for all figures: what a colour or a line style means is the same in every notebook.

Boxes differ in colour (Okabe-Ito, safe for colour-blind readers) and in line style (safe in grey).
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BOX_STYLES = {
    "true": {"edgecolor": "#009E73", "linestyle": "-"},
    "predicted": {"edgecolor": "#D55E00", "linestyle": "--"},
    "target": {"edgecolor": "#56B4E9", "linestyle": ":"},
    "other": {"edgecolor": "#CC79A7", "linestyle": "-."},
}


SERIES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


# Beside the colours, for readers in grey:
LINES = ["-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3))]


MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


ATTENTION_MAP = "magma"


MASK_MAP = "gray"  # of masks, which run from 0 to 1: what counts is white, the background (0.5) grey


BOX_NAMES = {"true": "true box", "predicted": r"predicted: AffNet's $\theta$", "target": r"target: from $M$ at $\tau$"}


def use_style() -> None:
    """Set matplotlib's defaults for the collection; every notebook calls it once."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "font.size": 11,  # "small" is then 9 points, the least that can be read where a figure fills a page
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


def _finish_image(ax: Axes, title: str, **text) -> None:
    ax.set_title(title, fontsize="small", **text)
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


def shorten(name: str, length: int) -> str:
    """At most `length` characters, the last of them an ellipsis where some had to go."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes, for an image widget; the figure is closed."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return buffer.getvalue()
