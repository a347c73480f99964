"""Accuracy over samples, and boxes scored against the true ones (WSOL convention: Choe et al., CVPR 2020)."""

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from fgvclib.data import BOX
from fgvclib.geometry import attention_to_box, box_iou, centre_box, theta_to_box
from fgvclib.model import EndToEndModel

IOU_LEVELS = (0.3, 0.5, 0.7)


@torch.no_grad()
def predict(
    model: EndToEndModel, loader: DataLoader, photos: pd.DataFrame, teacher_threshold: float | None = None
) -> pd.DataFrame:
    """Run the model once over a loader of `photos` (in their order) → one row per photo.

    Columns: image_id, path, label, prediction, probability, box_x1 … box_y2 (of the crop, clipped to the image), iou
    with the true box; with `teacher_threshold` also teacher_x1 … and teacher_iou, which cost a second pass. Leaves the
    model in evaluation mode.
    """
    device = next(model.parameters()).device
    model.eval()
    parts = []
    for batch in loader:
        images = batch["image"].to(device, non_blocking=True)
        output = model(images)
        probability, prediction = output.logits.softmax(dim=1).max(dim=1)
        columns = [batch["index"], prediction, probability, *theta_to_box(output.theta).clamp(0, 1).unbind(1)]
        if teacher_threshold is not None:
            columns += attention_to_box(model.teacher_map(images), teacher_threshold).unbind(1)
        parts.append(torch.stack([column.cpu().double() for column in columns], dim=1))
    names = ["index", "prediction", "probability", *named_box("box")]
    names += named_box("teacher") if teacher_threshold is not None else []
    return _score(photos, pd.DataFrame(torch.cat(parts).numpy(), columns=names))


def named_box(prefix: str) -> list[str]:
    """Columns of a box in the table of `predict`: "box" is the crop's, "teacher" the teacher's."""
    return [f"{prefix}_{corner}" for corner in BOX]


def _score(photos: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Join predictions to the photos' labels and true boxes."""
    predicted = predicted.astype({"index": int, "prediction": int}).set_index("index").sort_index()
    table = photos[["image_id", "path", "label", *BOX]].join(predicted)
    table["iou"] = box_iou(_tensor(table, BOX), _tensor(table, named_box("box"))).numpy()
    if "teacher_x1" in table:
        table["teacher_iou"] = box_iou(_tensor(table, BOX), _tensor(table, named_box("teacher"))).numpy()
    return table


def _tensor(table: pd.DataFrame, columns: list[str]) -> torch.Tensor:
    return torch.from_numpy(table[columns].to_numpy(dtype=float, copy=True))


def summarise(predictions: pd.DataFrame) -> dict[str, float]:
    """Table of `predict` → accuracy and top1_loc in [0, 1], mean_iou and box_acc_*; teacher_* where it was asked."""
    correct = predictions["prediction"] == predictions["label"]
    summary = {
        "accuracy": correct.mean(),
        "top1_loc": (correct & (predictions["iou"] >= 0.5)).mean(),
        **localisation_scores(predictions["iou"]),
    }
    if "teacher_iou" in predictions:
        scores = localisation_scores(predictions["teacher_iou"])
        summary |= {f"teacher_{name}": value for name, value in scores.items()}
    return {name: float(value) for name, value in summary.items()}


def localisation_scores(iou: pd.Series) -> dict[str, float]:
    """IoU of every photo → mean_iou and box_acc_0.3/0.5/0.7, the shares with at least that IoU."""
    return {"mean_iou": float(iou.mean())} | {f"box_acc_{level}": float((iou >= level).mean()) for level in IOU_LEVELS}


def trivial_localisers(photos: pd.DataFrame) -> pd.DataFrame:
    """Scores of the boxes that need no image: the whole image, and a centre box of 0.7 of each side."""
    true = _tensor(photos, BOX)
    boxes = {"whole image": centre_box(len(photos), 1.0), "centre box 0.7": centre_box(len(photos), 0.7)}
    scores = {name: localisation_scores(pd.Series(box_iou(true, box).numpy())) for name, box in boxes.items()}
    return pd.DataFrame(scores).T


def count_parameters(module: nn.Module) -> int:
    """Number of learnable values."""
    return sum(parameter.numel() for parameter in module.parameters())
