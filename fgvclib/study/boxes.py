"""Boxes without a classifier (ours): what each fixed teacher finds, and what AttNet and AffNet learn of it alone.

What has to be chosen is chosen on the validation part of the training split. The test split is scored once, with that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from fgvclib.config import Config
from fgvclib.data.loaders import evaluation_loader
from fgvclib.data.splits import Splits, has_boxes
from fgvclib.data.teacher_maps import teacher_component, teacher_maps
from fgvclib.model.geometry import target_box, theta_to_box
from fgvclib.model.system import EndToEndModel, build_model
from fgvclib.study.efficiency import million_multiply_adds
from fgvclib.training.evaluation import iou_with_true, localisation_scores
from fgvclib.training.loop import build_loss, train_localisation
from fgvclib.utils.device import default_device

TEACHERS = ("mean", "rms", "ddt", "ddt+rms")
BOXES = {"hull of all cells": ("all", 1), "largest component, map enlarged 4 times": ("largest", 4)}
THRESHOLDS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
ATTNETS = {  # name → attnet_stride, attnet_size
    "stride 4, 64 px": (4, 64),
    "strides 8 and 16, 64 px": ((8, 16), 64),
    "strides 8 and 16, 96 px": ((8, 16), 96),
    "strides 8 and 16, 112 px": ((8, 16), 112),
}


def teachers_table(splits: Splits, config: Config, parts: Sequence[str]) -> pd.DataFrame:
    """One row for each teacher, kind of box and part: network, size, tau, photos and `localisation_scores`.

    tau is the one with the highest `box_acc_mean` on the validation photos, for the test photos too. Raises ValueError
    where none of these has a true box to choose it by.
    """
    if not has_boxes(splits.validation):
        raise ValueError("No validation photo has a true box to choose tau by; set validation_fraction above 0.")
    rows, network = [], {"backbone": config.backbone, "size": config.teacher_size}
    for mean in TEACHERS:
        teacher = replace(config, teacher_weights="imagenet", teacher_mean=mean)
        component = teacher_component(splits.train, teacher)
        maps = {part: teacher_maps(getattr(splits, part), teacher, component) for part in {"validation", *parts}}
        for box, (shape, upsample) in BOXES.items():
            kind = replace(teacher, box_component=shape, box_upsample=upsample)
            chosen = {tau: _scores(splits.validation, target_box(maps["validation"], kind, tau)) for tau in THRESHOLDS}
            tau = max(chosen, key=lambda tau: chosen[tau]["box_acc_mean"])
            for part in parts:
                photos = getattr(splits, part)
                scores = _scores(photos, target_box(maps[part], kind, tau))
                found = {"box": box, "tau": tau, "part": part, "photos": len(photos), **scores}
                rows.append({"teacher": mean, **network, **found})
    return pd.DataFrame(rows)


def attnets_table(
    splits: Splits, config: Config, names: Sequence[str], parts: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """AttNet and AffNet, trained alone for `localisation_epochs` → one row for each of `ATTNETS` and part.

    `teacher_size` and `epochs` say what they learnt from, and for how long. `million_multiply_adds` is AttNet's price
    for a photo, `over_classifier` the share by which it and AffNet make the classifier dearer.
    """
    rows, learnt = [], {"teacher_size": config.teacher_size, "epochs": config.localisation_epochs}
    for name in names:
        stride, size = ATTNETS[name]
        own = replace(config, attnet_stride=stride, attnet_size=size)
        model = train_alone(splits, own, seed)
        price = _price(model, own)
        for part in parts:
            photos = getattr(splits, part)
            scores = _scores(photos, find_boxes(model, photos, own))
            scored = {"part": part, "photos": len(photos), "seed": seed, **scores}
            rows.append({"attnet": name, **price, **learnt, **scored})
    return pd.DataFrame(rows)


def train_alone(splits: Splits, config: Config, seed: int) -> EndToEndModel:
    """A system whose AttNet and AffNet have learnt from the fixed teacher's maps, and whose classifier has not."""
    torch.manual_seed(seed)
    classes = len(splits.class_names)
    model, criterion = build_model(config, classes).to(default_device()), build_loss(config, classes)
    maps = teacher_maps(splits.train, config, teacher_component(splits.train, config))
    train_localisation(model, criterion, splits, maps, config, seed)
    return model.eval()


@torch.no_grad()
def find_boxes(model: EndToEndModel, photos: pd.DataFrame, config: Config) -> Tensor:
    """Boxes (N, 4) in [0, 1] that AttNet and AffNet find in photos, in the table's order."""
    device = next(model.parameters()).device
    batches = evaluation_loader(photos, config)
    found = [theta_to_box(model.localisation(batch["image"].to(device))[1]).cpu() for batch in batches]
    return torch.cat(found).clamp(0, 1)


def _scores(photos: pd.DataFrame, boxes: Tensor) -> Mapping[str, float]:
    return localisation_scores(iou_with_true(photos, boxes.double()))


def _price(model: EndToEndModel, config: Config) -> dict[str, float]:
    image = torch.zeros(1, 3, config.image_size, config.image_size, device=default_device())
    crop = torch.zeros(1, 3, config.crop_size, config.crop_size, device=default_device())
    attnet, classifier = million_multiply_adds(model.attnet, image), million_multiply_adds(model.classifier, crop)
    affnet = million_multiply_adds(model.affnet, torch.zeros(1, 1, config.map_size, config.map_size).to(image))
    return {"million_multiply_adds": round(attnet, 1), "over_classifier": round((attnet + affnet) / classifier, 4)}
