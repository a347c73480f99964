"""Training runs on disk: trained once, then loaded, so that a laptop reads what a GPU has computed.

A run's folder holds checkpoint.pt, run.log and history.csv (one line per epoch), trajectories.csv (the boxes of a few
photos over the epochs), predictions.csv (one row per test photo) and metrics.json, written last: it marks the run as
done. The test split is evaluated once, at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from fgvclib.config import Config, training_values
from fgvclib.data import BOX, Splits, evaluation_loader
from fgvclib.datasets import has_boxes
from fgvclib.evaluation import predict, summarise
from fgvclib.files import atomic_path, read_json, write_json
from fgvclib.model import EndToEndModel, build_model
from fgvclib.teacher_maps import teacher_maps
from fgvclib.training import read_checkpoint, train


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    folder: Path
    config: Config
    seed: int
    splits: Splits

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Scores on the test split, as `evaluation.summarise` names them."""
        return read_json(self.folder / "metrics.json")["test"]

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch: loss terms, training and validation scores, learning rate, seconds."""
        return pd.read_csv(self.folder / "history.csv")

    @cached_property
    def trajectories(self) -> pd.DataFrame:
        """Boxes of the watched validation photos: epoch, row of the validation table, x1, y1, x2, y2."""
        return pd.read_csv(self.folder / "trajectories.csv")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Table of `evaluation.predict` over the test split."""
        scores = pd.read_csv(self.folder / "predictions.csv")
        return scores.assign(path=self.splits.test["path"])

    @cached_property
    def model(self) -> EndToEndModel:
        """The trained model in evaluation mode, on the CPU."""
        model = build_model(self.config, len(self.splits.class_names), pretrained=False)
        model.load_state_dict(read_checkpoint(self.folder / "checkpoint.pt")["model"])
        return model.eval()


def train_or_load(
    config: Config, splits: Splits, seed: int, folder: Path, announce: Callable[[str], None] = print
) -> Run:
    """The finished run in `folder`, trained from where it stands if it is not finished.

    Raises ValueError where the folder holds a run of another configuration or seed.
    """
    run = Run(Path(folder), config, seed, splits)
    identity = {"config": training_values(config), "seed": seed}
    done = run.folder / "metrics.json"
    if not done.exists():
        _train(run, announce)
        write_json(done, identity | {"test": _evaluate(run)})
    stored = read_json(done)
    if any(stored[key] != value for key, value in identity.items()):
        raise ValueError(f"{run.folder} holds a run of another configuration or seed; move it away to train anew.")
    return run


def _train(run: Run, announce: Callable[[str], None]) -> None:
    name = run.folder.name
    unscored = "" if has_boxes(run.splits.test) else "; there are no true boxes, so localisation is not scored"
    announce(f"{name}: training {run.config.epochs} epochs on {len(run.splits.train)} photos{unscored}")
    run.folder.mkdir(parents=True, exist_ok=True)
    records, boxes, log = [], [], []
    for record in train(run.config, run.splits, run.seed, run.folder / "checkpoint.pt"):
        watched = pd.DataFrame(record["watched_boxes"], columns=["row", *BOX])
        boxes.append(watched.assign(epoch=record["epoch"]))
        records.append({key: value for key, value in record.items() if key != "watched_boxes"})
        line = f"{name}: {describe_epoch(record, run.config.epochs)}"
        announce(line)
        log.append(line)
        _write_csv(run.folder / "history.csv", pd.DataFrame(records))
        _write_csv(run.folder / "trajectories.csv", pd.concat(boxes))
        _write_text(run.folder / "run.log", "\n".join(log) + "\n")


def describe_epoch(record: dict, epochs: int) -> str:
    """One line for the log: `epoch 3/10  loss 2.31  train 54.2 %  validation 51.0 %  IoU 0.46  13 s`."""
    iou = f"IoU {record['validation_mean_iou']:.2f}  " if "validation_mean_iou" in record else ""
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['train_total']:.3f}  "
        f"train {record['train_accuracy']:.1%}  validation {record['validation_accuracy']:.1%}  "
        f"{iou}{record['seconds']:.0f} s"
    )


def _evaluate(run: Run) -> dict[str, float]:
    fixed = run.config.teacher_weights == "imagenet"
    maps = teacher_maps(run.splits.test, run.config) if fixed else None
    loader = evaluation_loader(run.splits.test, run.config, maps)
    predictions = predict(run.model, loader, run.splits.test, teacher_threshold=run.config.threshold)
    _write_csv(run.folder / "predictions.csv", predictions.drop(columns="path"))
    return summarise(predictions)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    _write_text(path, table.to_csv(index=False))


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
