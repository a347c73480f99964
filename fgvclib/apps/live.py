"""A training to watch: curves and crops that grow with every epoch (notebook 04).

The training runs in the cell, so that the cells below wait for it. The notebook's own stop, ■ in the toolbar,
interrupts it; finished epochs are saved.
"""

import math
import os
import time
from html import escape
from types import TracebackType

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from fgvclib import figures
from fgvclib.study.experiment import Experiment
from fgvclib.training.runs import Run
from fgvclib.utils.progress import HEADLESS

SHOWN = 5  # watched photos in the film strip


class TrainingStopped(RuntimeError):
    """Somebody stopped the training; the message says how to go on."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows this in place of a traceback: nothing went wrong."""
        return [str(self)]


def train(experiment: Experiment, row: str) -> Run:
    """`experiment.run(row)`, watched while it trains; a finished run is loaded, headless one line an epoch is printed.

    Raises TrainingStopped where the kernel's interrupt ends it.
    """
    if HEADLESS in os.environ or experiment.has_run(row):
        return experiment.run(row)
    view = TrainingView(experiment, row)
    display(view.box)
    with view:
        return experiment.run(row, announce=view.update)


class TrainingView:
    """The widgets of one training. As a context it turns an interrupt into TrainingStopped."""

    def __init__(self, experiment: Experiment, row: str):
        self.row, self.folder = row, experiment.run_folder(row)
        self.config = experiment.row_config(row)
        self.validation = experiment.splits.validation
        self.status = widgets.HTML()
        self.image = widgets.Image(format="png", layout=widgets.Layout(width="100%", max_width="1000px"))
        self.image.layout.display = "none"  # until there is something to see
        self.box = widgets.VBox([self.status, self.image])
        self._drawn = -math.inf  # when the figure was drawn last

    def __enter__(self) -> "TrainingView":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if isinstance(error, KeyboardInterrupt):
            raise TrainingStopped(self._farewell()) from None

    def update(self, line: str) -> None:
        """Show a line that `runs.train_or_load` announces, and what it has written so far."""
        self.status.value = escape(line)
        if len(self._history()) and time.monotonic() - self._drawn > 1:  # a resumed run announces its past at once
            self.image.value = figures.to_png(self._figure())
            self.image.layout.display = ""
            self._drawn = time.monotonic()

    def _history(self) -> pd.DataFrame:
        path = self.folder / "history.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame()

    def _figure(self) -> Figure:
        history, trajectories = self._history(), pd.read_csv(self.folder / "trajectories.csv")
        rows = _spread(trajectories["row"].unique(), SHOWN)
        pictures = figures.to_picture(figures.photo_batch(self.validation.iloc[rows], self.config), self.config)
        watched = trajectories[trajectories["row"].isin(rows)]
        frames = _spread(history["epoch"].to_numpy(), figures.FRAMES)
        return figures.training_figure(history, self.config.epochs, pictures, watched, self.config.crop_size, frames)

    def _farewell(self) -> str:
        saved = f"{len(self._history())} of {self.config.epochs} epochs are saved in {self.folder.name}"
        return f"{self.row}: stopped as you asked; {saved}. Run this cell again to go on from there."


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, the first and the last among them."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(int))]
