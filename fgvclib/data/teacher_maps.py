"""Maps of a teacher that never changes, computed once per photo and kept on disk (ours).

The paper's teacher is the network in training: a second pass through the classifier in every step. An ImageNet network
gives every photo the same map for ever, which then only has to move with the photo's augmentation.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fgvclib.config import Config, TeacherLayer, TeacherMean, results_root
from fgvclib.data.index import BOX, CROP
from fgvclib.data.loaders import evaluation_loader
from fgvclib.utils.device import default_device
from fgvclib.utils.files import atomic_path
from fgvclib.model.geometry import attention_to_box, box_iou
from fgvclib.utils.progress import progress
from fgvclib.model.teacher import build_teacher

MAP_KEYS = (  # the configuration values that a map depends on
    "backbone",
    "teacher_size",
    "teacher_output_stride",
    "teacher_layer",
    "teacher_mean",
    "map_size",
    "cut_bottom",
)


def teacher_maps(photos: pd.DataFrame, config: Config) -> Tensor:
    """Maps (N, 1, n, n) in [0, 1] of the photos as they are, in the table's order; whole, even where `CROP` cuts them.

    Stored in `results/teacher_maps/` under a name that changes with `MAP_KEYS` and the photos' paths, sizes and dates.
    Raises ValueError where the configured teacher is the live one, whose maps change.
    """
    if config.teacher_weights != "imagenet":
        raise ValueError("teacher_weights is 'live': such a teacher has no fixed maps; choose 'imagenet'.")
    path = results_root() / "teacher_maps" / f"{_key(photos, config)}.npy"
    if not path.exists():
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, _compute(photos, config).numpy())
    return torch.from_numpy(np.load(path))


def compare_teachers(photos: pd.DataFrame, config: Config, thresholds: Sequence[float]) -> pd.DataFrame:
    """BoxAcc@0.5 of the tau-boxes of four ImageNet teachers (layer x mean) on photos that have true boxes.

    One row for each teacher, one column for each tau. To choose among them is to use true boxes: on the validation part
    alone, never on the test split.
    """
    true = torch.from_numpy(photos[BOX].to_numpy(dtype="float32"))
    rows = {}
    for layer, mean in itertools.product(get_args(TeacherLayer), get_args(TeacherMean)):
        teacher = replace(config, teacher_weights="imagenet", teacher_layer=layer, teacher_mean=mean)
        maps = teacher_maps(photos, teacher)
        hits = {tau: box_iou(true, attention_to_box(maps, tau)) >= 0.5 for tau in thresholds}
        rows[f"{layer}, {mean}"] = {tau: float(hit.float().mean()) for tau, hit in hits.items()}
    return pd.DataFrame(rows).T.rename_axis("teacher", axis=0).rename_axis("tau", axis=1)


def _compute(photos: pd.DataFrame, config: Config) -> Tensor:
    device = default_device()
    teacher, no_live_network = build_teacher(config), nn.Module()
    whole = photos.drop(columns=CROP, errors="ignore")  # the teacher's box is scored, and cropped to, in whole photos
    loader = evaluation_loader(whole, config, image_size=config.teacher_size)
    batches = progress(loader, "teacher maps")
    return torch.cat([teacher(no_live_network, batch["image"].to(device)).cpu() for batch in batches])


def _key(photos: pd.DataFrame, config: Config) -> str:
    files = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in photos["path"]]
    text = json.dumps([[getattr(config, name) for name in MAP_KEYS], files])
    return hashlib.sha256(text.encode()).hexdigest()[:20]
