"""What every notebook opens first: a profile on a data set, its seeds, and the folder that its results go to."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from fgvclib.config import PROJECT, Config, check_seeds, load_config, results_folder
from fgvclib.data.fixed_boxes import with_fixed_boxes
from fgvclib.data.splits import Splits, load_splits
from fgvclib.study.bounds import BASELINE, BOUNDS
from fgvclib.study.elope import ELOPE, elope_values, has_boxes, with_attnet_boxes
from fgvclib.study.table2 import ROWS
from fgvclib.systems import SYSTEMS, TRAINED_AS
from fgvclib.training.runs import CHECKPOINT, Run, is_done, load_run, take_training, train_or_load, train_unscored
from fgvclib.training.warmup import take_warm_up
from fgvclib.utils.device import device_name
from fgvclib.utils.files import atomic_path, lock_path, locked, read_json, write_json
from fgvclib.utils.literal import literal

SETTING_2 = "setting 2"
SHIPPED = PROJECT / "results" / "reference"  # what tools/reference.py publishes


def read_seeds(seeds: Sequence[int] | int | str) -> list[int]:
    """Different whole numbers: a list, one of them, or their text, such as "0,1,2". Raises ValueError."""
    value = literal(seeds) if isinstance(seeds, str) else seeds
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    check_seeds(numbers)
    return numbers


def read_names(names: Sequence[str] | str, known: Iterable[str]) -> list[str]:
    """Names from a list, or from their text, such as "dcl,mmal". Raises ValueError for one that is not known."""
    known, given = list(known), names.split(",") if isinstance(names, str) else names
    found = [name.strip() for name in given if name.strip()]
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not known here; choose among {', '.join(known)}.")
    return found


class Experiment:
    """One profile on one data set. Raises ValueError for names and values that do not exist.

    Seeds may be one number; seeds and overrides may be text, as papermill's `-p` knows neither lists nor dictionaries.
    """

    def __init__(
        self, profile: str, dataset: str, seeds: Sequence[int] | int | str = (0,), overrides: dict | str | None = None
    ):
        overrides = literal(overrides) if isinstance(overrides, str) else overrides
        if not isinstance(overrides, dict | None):
            raise ValueError(f"overrides are {overrides!r}; write them as {{'learning_rate': 0.005}}.")
        self.overrides = overrides or {}  # also those that no result depends on, such as workers
        self.config = load_config(profile, dataset, **self.overrides)
        self.seeds = read_seeds(seeds)
        self.folder = results_folder(self.config)

    def with_values(self, **values) -> "Experiment":
        """The same profile, data set and seeds with other configuration values, in a results folder of its own."""
        return Experiment(self.config.profile, self.config.dataset, self.seeds, self.overrides | values)

    def __str__(self) -> str:
        return f"{self.config.profile} profile on {self.config.dataset}, seeds {self.seeds}, {device_name()}"

    @cached_property
    def splits(self) -> Splits:
        """Training, validation and test tables of the data set."""
        return load_splits(self.config)

    def row_config(self, row: str) -> Config:
        """Configuration of a row: a key of `table2.ROWS`, `bounds.BOUNDS` or `SYSTEMS`, "ELoPE", or "setting 2"."""
        if row == SETTING_2:
            setting = {"backbone": self.config.setting2_backbone, "embedding_dim": self.config.setting2_embedding_dim}
            return replace(self.config, **setting)
        rows = ROWS | BOUNDS | {name: {"system": name} for name in SYSTEMS} | {ELOPE: elope_values(self.config)}
        if row not in rows:
            raise ValueError(f"{row!r} is not a row; the rows are {', '.join(rows)}, and {SETTING_2!r}.")
        return replace(self.config, **rows[row])

    def run(
        self, row: str, seed: int | None = None, announce: Callable[[str], None] = print, scored: bool = True
    ) -> Run:
        """The run of a row with a seed (the first one where none is given), trained if it is not there yet.

        With `scored` False the test split is not looked at: see `runs.train_unscored`.

        "ELoPE" takes its boxes from the row "Baseline" with that seed, which is trained first. A system that trains as
        another does takes that one's weights, where they are here; one that warms up as another does, its warm-up.
        """
        seed, folder = self.seeds[0] if seed is None else seed, self.run_folder(row, seed)
        first = row == ELOPE and (self.has_weights(BASELINE, seed) or not has_boxes(folder))
        baseline = self.run(BASELINE, seed, announce, scored) if first else None
        splits = self._splits_of(row, seed, folder, baseline, announce)
        twin = TRAINED_AS.get(row)
        if twin and not is_done(folder) and self.has_weights(twin, seed):
            take_training(Run(folder, self.row_config(row), seed, splits), self.run(twin, seed, announce), announce)
        others = [self.run_folder(other, seed) for other in ROWS if other != row]
        take_warm_up(Run(folder, self.row_config(row), seed, splits), others, announce)
        train = train_or_load if scored else train_unscored
        return train(self.row_config(row), splits, seed, folder, announce)

    def trained(self, row: str, seed: int | None = None, announce: Callable[[str], None] = print) -> Run:
        """`run`, but what is not trained here yet is taken from the committed runs, where they have it.

        Of most rows these hold predictions and scores; weights are shipped for "End-to-end" with seed 0 alone.
        """
        return self.committed(row, seed, announce) or self.run(row, seed, announce)

    def find(self, row: str, seed: int | None = None, announce: Callable[[str], None] = print) -> Run | None:
        """The run that is here, or among the committed ones; None where it is nowhere. Nothing is trained."""
        if not self.has_run(row, seed):
            return self.committed(row, seed, announce)
        seed, folder = self.seeds[0] if seed is None else seed, self.run_folder(row, seed)
        return load_run(self.row_config(row), self._splits_of(row, seed, folder), seed, folder, announce)

    def is_trained(self, row: str, seed: int | None = None) -> bool:
        """Whether `trained` gives a model without training."""
        run = self.committed(row, seed, lambda text: None)
        return self.has_weights(row, seed) or (run is not None and run.checkpoint.exists())

    def committed(self, row: str, seed: int | None = None, announce: Callable[[str], None] = print) -> Run | None:
        """The committed run of a row; None where there is none, or the row is finished here. Nothing is trained."""
        folder = SHIPPED / self.folder.name / "runs" / self.run_folder(row, seed).name
        if self.has_run(row, seed) or not (folder / "metrics.json").exists():
            return None
        seed = self.seeds[0] if seed is None else seed
        try:
            return load_run(self.row_config(row), self._splits_of(row, seed, folder), seed, folder, announce)
        except ValueError as error:  # drawn with other library versions, the photos are not the same to the byte
            announce(f"The committed run is of no use here: {error}")
            return None

    def _splits_of(
        self,
        row: str,
        seed: int,
        folder: Path,
        baseline: Run | None = None,
        announce: Callable[[str], None] = print,
    ) -> Splits:
        """Tables of the row's run in a folder: photos that are cut before training carry where."""
        config = self.row_config(row)
        if row == ELOPE:
            return with_attnet_boxes(self.splits, config, seed, folder, baseline, announce)
        return self.splits if config.fixed_box == "none" else with_fixed_boxes(load_splits(config), config)

    def has_run(self, row: str, seed: int | None = None) -> bool:
        """Whether the run of a row is there already, so that `run` loads it without training."""
        return (self.run_folder(row, seed) / "metrics.json").exists()

    def has_weights(self, row: str, seed: int | None = None) -> bool:
        """Whether the run of a row is there with its checkpoint: copies of committed runs have their scores alone."""
        return self.has_run(row, seed) and (self.run_folder(row, seed) / CHECKPOINT).exists()

    def run_folder(self, row: str, seed: int | None = None) -> Path:
        """Where the run of a row is, or will be."""
        return self.folder / "runs" / f"{row.replace(' ', '-')}-seed{self.seeds[0] if seed is None else seed}"

    def find_table(self, name: str) -> pd.DataFrame | None:
        """`<name>.csv` of the results folder, or of the committed runs; None where neither has it."""
        paths = (folder / f"{name}.csv" for folder in (self.folder, SHIPPED / self.folder.name))
        return next((pd.read_csv(path) for path in paths if path.exists()), None)

    def save_table(self, table: pd.DataFrame, name: str) -> Path:
        """Write `<name>.csv` into the results folder."""
        with atomic_path(self.folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
        return self.folder / f"{name}.csv"

    def save_figure(self, figure: Figure | Image.Image, name: str) -> Path:
        """Write `figures/<name>.png`, a matplotlib figure at 150 dpi."""
        path = self.folder / "figures" / f"{name}.png"
        with atomic_path(path) as temporary:
            if isinstance(figure, Figure):
                figure.savefig(temporary, dpi=150, bbox_inches="tight", format="png")
            else:
                figure.save(temporary, format="png", optimize=True)
        return path

    def save_metrics(self, **metrics) -> None:
        """Add values to metrics.json."""
        path = self.folder / "metrics.json"
        with locked(lock_path(self.folder, "metrics")):  # notebooks may run at the same time
            write_json(path, (read_json(path) if path.exists() else {}) | metrics)
