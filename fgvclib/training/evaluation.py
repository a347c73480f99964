"""Accuracy over samples, and boxes scored against the true ones as weakly supervised localisation (WSOL) does.

The convention is that of Choe et al. (CVPR 2020; extended as arXiv 2007.04178). BoxAcc@d is the share of photos whose
box has at least the IoU d with the true one; theirs is the best over all thresholds of a map, chosen on true boxes,
while ours has the one box that the system finds, before `crop_margin` widens the crop (boxes fixed before training
count as they are cut). A photo without a true box has the IoU NaN and counts in no box score.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from fgvclib.data.index import BOX, CROP
from fgvclib.model.geometry import box_iou, centre_box, nested
from fgvclib.model.system import EndToEndModel
from fgvclib.systems.base import System
from fgvclib.utils.device import autocast, forward
from fgvclib.utils.progress import photo_progress

IOU_LEVELS = (0.3, 0.5, 0.7)
MAPS = ("teacher", "attention")  # whose boxes `predict` adds to the crop's
MOST_CELLS = 500  # a side of a confusion matrix; a figure has no more pixels for them


@torch.no_grad()
def predict(
    model: EndToEndModel | System,
    loader: DataLoader,
    photos: pd.DataFrame,
    map_box: Callable[[torch.Tensor], torch.Tensor] | None = None,
    gather: Callable = lambda columns: columns,
    precision: str = "fp32",
) -> pd.DataFrame:
    """Run the model once over a loader of `photos` (in their order) → one row per photo.

    Columns: image_id, path, label, prediction, probability, box_x1 … box_y2 (where the model looked, clipped to the
    photo; of an EndToEndModel theta's, without `crop_margin`), iou with the true box (NaN where there is none). With
    `map_box`, which makes boxes (B, 4) of maps (B, 1, n, n), also those of AttNet's map, attention_x1 … and
    attention_iou, where there is one; and of the teacher's, teacher_x1 … and teacher_iou, which cost a second pass
    where the batches bring no maps. Boxes are fractions of the photo, also where `photos` says that the model sees a
    crop of it. Leaves the model in evaluation mode. Where processes share a prepared loader, `gather` is their
    `gather_for_metrics`. `precision` is that of the passes, as in the configuration. Progress is told by
    `photo_progress`. Memory holds a batch at a time, and the table.
    """
    device = next(model.parameters()).device
    model.eval()
    parts, boxes, whole_photo = [], {"box": None}, False
    for batch in photo_progress(loader, "scoring", len(photos), lambda batch: len(parts[-1])):
        images = batch["image"].to(device, non_blocking=True)
        answer = forward(model.predict, images, precision=precision)
        probability, prediction = answer.log_probabilities.exp().max(dim=1)
        boxes = {"box": centre_box(len(images), 1.0).to(device) if answer.boxes is None else answer.boxes.clamp(0, 1)}
        if map_box is not None:
            whole_photo = "teacher_map" in batch  # the map of a fixed teacher
            with autocast(precision, device):
                maps = {"teacher": batch["teacher_map"].to(device) if whole_photo else model.teacher_map(images)}
            maps |= {} if answer.attention is None else {"attention": answer.attention}
            boxes |= {name: map_box(found) for name, found in maps.items()}
        corners = [corner for found in boxes.values() for corner in found.unbind(1)]
        columns = [batch["index"].to(device), prediction, probability, *corners]
        parts.append(torch.stack([column.cpu().double() for column in gather(columns)], dim=1))
    names = ["index", "prediction", "probability", *(corner for name in boxes for corner in named_box(name))]
    table = pd.DataFrame(torch.cat(parts).numpy() if parts else [], columns=names, dtype=float)
    if CROP[0] in photos:
        _uncrop(table, photos, [name for name in boxes if not (name == "teacher" and whole_photo)])
    return _score(photos, table)


def named_box(prefix: str) -> list[str]:
    """Columns of a box in the table of `predict`: "box" is the crop's, "teacher" and "attention" are those of maps."""
    return [f"{prefix}_{corner}" for corner in BOX]


def _score(photos: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Join predictions to the photos' labels and true boxes."""
    predicted = predicted.astype({"index": int, "prediction": int}).set_index("index").sort_index()
    table = photos[["image_id", "path", "label", *BOX]].join(predicted)
    table["iou"] = iou_with_true(table, _tensor(table, named_box("box")))
    for name in MAPS:
        if f"{name}_x1" in table:
            table[f"{name}_iou"] = iou_with_true(table, _tensor(table, named_box(name)))
    return table


def iou_with_true(photos: pd.DataFrame, boxes: torch.Tensor) -> pd.Series:
    """IoU of every photo's true box x1 … y2 with one of `boxes` (N, 4); NaN where the photo has no true box."""
    iou = pd.Series(box_iou(_tensor(photos, BOX), boxes).numpy(), index=photos.index)
    return iou.where(photos[BOX].notna().all(axis=1))


def _uncrop(table: pd.DataFrame, photos: pd.DataFrame, prefixes: list[str]) -> None:
    """Turn boxes in fractions of the crops of `photos` into fractions of the photos."""
    crops = _tensor(photos.loc[table["index"].astype(int)], CROP)
    for prefix in prefixes:
        table[named_box(prefix)] = nested(_tensor(table, named_box(prefix)), crops).numpy()


def _tensor(table: pd.DataFrame, columns: list[str]) -> torch.Tensor:
    return torch.from_numpy(table[columns].to_numpy(dtype=float, copy=True))


def summarise(predictions: pd.DataFrame) -> dict[str, float]:
    """Table of `predict` → accuracy in [0, 1] and the scores of `localisation_scores`.

    Where the table has boxes of maps, their scores follow, as teacher_* and attention_*.
    Boxes are scored over the photos that have a true one; without any, accuracy is the only score.
    """
    correct = predictions["prediction"] == predictions["label"]
    if predictions["iou"].isna().all():
        return {"accuracy": float(correct.mean())}
    summary = {"accuracy": float(correct.mean()), **localisation_scores(predictions["iou"], correct)}
    for name in MAPS:
        if f"{name}_iou" in predictions:
            scores = localisation_scores(predictions[f"{name}_iou"])
            summary |= {f"{name}_{score}": value for score, value in scores.items()}
    return summary


def confusion(labels: Sequence[int], predictions: Sequence[int], order: Sequence[int]) -> np.ndarray:
    """How often a class (row) was taken for another (column), all K classes in `order` → counts (K, K).

    Beyond 500 classes neighbours share a row and a column, so that memory does not grow with the square of K.
    """
    place = np.empty(len(order), dtype=int)
    place[np.asarray(order)] = np.arange(len(order)) // -(-len(order) // MOST_CELLS)
    counts = np.zeros([place.max() + 1] * 2, dtype=int)
    np.add.at(counts, (place[np.asarray(labels)], place[np.asarray(predictions)]), 1)
    return counts


def localisation_scores(iou: pd.Series, correct: pd.Series | None = None) -> dict[str, float]:
    """IoU of every photo → mean_iou, box_acc_0.3/0.5/0.7 (the shares with at least that IoU) and their mean.

    `box_acc_mean` is MaxBoxAccV2 but for its "Max": no threshold is chosen on true boxes. `box_acc_0.5` is what the
    field calls GT-known Loc, as the box does not depend on the class. With `correct`, also `top1_loc`: class right and
    IoU at least 0.5. Photos with the IoU NaN do not count; where all have it, every score is NaN.
    """
    known = iou.dropna()
    accuracies = {f"box_acc_{level}": (known >= level).mean() for level in IOU_LEVELS}
    scores = {"mean_iou": known.mean(), **accuracies, "box_acc_mean": sum(accuracies.values()) / len(IOU_LEVELS)}
    if correct is not None:
        scores["top1_loc"] = (correct[known.index] & (known >= 0.5)).mean()
    return {name: float(value) for name, value in scores.items()}


def trivial_localisers(photos: pd.DataFrame) -> pd.DataFrame:
    """Scores of the boxes that need no image: the whole image, and a centre box of 0.7 of each side."""
    return pd.DataFrame({name: localisation_scores(iou) for name, iou in trivial_ious(photos).items()}).T


def trivial_ious(photos: pd.DataFrame) -> dict[str, pd.Series]:
    """IoU of every photo's true box with the boxes that need no image, by name."""
    boxes = {"whole image": centre_box(len(photos), 1.0), "centre box 0.7": centre_box(len(photos), 0.7)}
    return {name: iou_with_true(photos, box) for name, box in boxes.items()}


def count_parameters(module: nn.Module) -> int:
    """Number of learnable values."""
    return sum(parameter.numel() for parameter in module.parameters())
