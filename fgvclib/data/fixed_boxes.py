"""Crops that are fixed before training (ours): what a localisation could bring at most, and what it must beat.

"oracle" crops every photo, of training and of test, to its true box: the upper bound of any localisation, and the one
place where a training may see true boxes. "centre" crops to the middle, "teacher" to the box of the teacher's map,
which costs a second network at test time.
"""

from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from fgvclib.config import Config
from fgvclib.data.index import BOX, CROP
from fgvclib.data.splits import Splits, read_dataset
from fgvclib.data.teacher_maps import teacher_component, teacher_maps
from fgvclib.model.geometry import box_to_theta, centre_box, target_box, theta_to_box, widen


def can_cut_to_true_boxes(config: Config) -> bool:
    """Whether every photo of the data set, of training and of test, has the true box that an "oracle" needs."""
    photos, _ = read_dataset(config)
    return bool(photos[BOX].notna().all(axis=None))


def with_fixed_boxes(splits: Splits, config: Config) -> Splits:
    """The splits with columns crop_x1 … crop_y2 in [0, 1], the configured box widened by `crop_margin`.

    `PhotoDataset` cuts the photos there. The training table loses its true boxes again. Raises ValueError for boxes of
    AttNet's, which has to be trained first.
    """
    if config.fixed_box == "attnet":
        raise ValueError('fixed_box = "attnet" is for the row "ELoPE" alone: fgvc train --rows ELoPE.')
    tables = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    component = teacher_component(splits.train, config) if config.fixed_box == "teacher" else None
    cropped = {name: _with_crop(photos, config, component) for name, photos in tables.items()}
    cropped["train"] = cropped["train"].drop(columns=BOX, errors="ignore")
    return replace(splits, **cropped)


def _with_crop(photos: pd.DataFrame, config: Config, component: Tensor | None) -> pd.DataFrame:
    boxes = widened(_boxes(photos, config, component), config.crop_margin)
    return photos.assign(**dict(zip(CROP, boxes.numpy().T, strict=True)))


def widened(boxes: Tensor, margin: float) -> Tensor:
    """Boxes (N, 4) in [0, 1] → wider and higher by the share `margin`, cut at the photo."""
    return theta_to_box(widen(box_to_theta(boxes), margin)).clamp(0, 1)


def _boxes(photos: pd.DataFrame, config: Config, component: Tensor | None) -> Tensor:
    if config.fixed_box == "oracle":
        return torch.from_numpy(photos[BOX].to_numpy(dtype="float32"))
    if config.fixed_box == "teacher":
        return target_box(teacher_maps(photos, config, component), config)
    return centre_box(len(photos))
