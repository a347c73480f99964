"""What a teacher that never changes sees of each photo, computed once and kept on disk (ours).

The paper's teacher is the network in training: a second pass through the classifier in every step. An ImageNet network
gives every photo the same features for ever. They are kept per photo, in half precision, so that all runs, splits and
kinds of map share one pass; a map is arithmetic on them, and only has to move with the photo's augmentation.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fgvclib.config import Config, TeacherLayer, TeacherMean, results_root
from fgvclib.data.augment import to_input
from fgvclib.data.index import BOX
from fgvclib.data.pixels import READER, read_photo
from fgvclib.data.splits import Splits
from fgvclib.model.geometry import box_iou, min_max_normalise, target_box
from fgvclib.model.teacher import build_teacher, principal_component
from fgvclib.utils.device import default_device, on_default_device
from fgvclib.utils.files import atomic_path, locked
from fgvclib.utils.progress import photo_progress

TAKEN = "teacher maps: another process is computing some; waiting for it."
FORMAT = 1  # to be raised whenever the features that are kept change
FEATURE_KEYS = (  # the configuration values that features depend on
    "backbone",
    "teacher_size",
    "teacher_output_stride",
    "teacher_layer",
    "cut_bottom",
)


def teacher_maps(photos: pd.DataFrame, config: Config, component: Tensor | None = None) -> Tensor:
    """Maps (N, 1, n, n) in [0, 1] of the photos as they are, in the table's order; whole, even where `CROP` cuts them.

    `component` is that of `teacher_component`. Raises ValueError where the teacher is the live one, whose maps change,
    or needs a component and has none.
    """
    teacher = build_teacher(config)
    maps = [teacher.to_map(batch, component) for batch in _batches(_stored(photos, config))]
    return torch.cat(maps) if maps else torch.empty(0, 1, config.map_size, config.map_size)


def maps_of(backbone: nn.Module, photos: pd.DataFrame, config: Config) -> Tensor:
    """Maps (N, 1, n, n) in [0, 1] that a trained classifier's backbone gives of whole photos, in the table's order.

    Layer, mean over channels and size are the configured teacher's. Nothing is kept on disk, and nothing learns.
    """
    teacher, loader = build_teacher(replace(config, teacher_weights="live")), _loader(photos["path"], config)
    with on_default_device(backbone) as device:
        maps = [
            min_max_normalise(teacher(backbone, images.to(device))).cpu()
            for images in photo_progress(loader, "maps of the classifier", len(photos))
        ]
    return torch.cat(maps)


def teacher_component(training: pd.DataFrame, config: Config) -> Tensor | None:
    """Mean and principal axis (2, C) of the training photos' features; None where the teacher needs neither.

    Kept on disk under a name that changes with the training photos and all that their features depend on.
    """
    if not build_teacher(config).needs_component:
        return None
    names = sorted(path.name for path in _files(training, config))
    kept = _folder(config) / "components" / f"{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:20]}.npy"
    if not _is_whole(kept):
        _save(kept, principal_component(_batches(_stored(training, config))).numpy())
    return torch.from_numpy(np.load(kept))


def compare_teachers(splits: Splits, config: Config, thresholds: Sequence[float]) -> pd.DataFrame:
    """BoxAcc@0.5 on the validation part of the target boxes of the ImageNet teachers (layer x mean).

    One row for each teacher, one column for each tau; photos without a true box do not count. The widest layer has no
    ddt: it would need all training photos.
    To choose among them is to use true boxes: on the validation part alone, never on the test split.
    """
    true = torch.from_numpy(splits.validation[BOX].to_numpy(dtype="float32"))
    boxed = true.isfinite().all(dim=1)
    rows = {}
    for layer, mean in itertools.product(get_args(TeacherLayer), get_args(TeacherMean)):
        if layer == "last" and mean.startswith("ddt"):
            continue
        teacher = replace(config, teacher_weights="imagenet", teacher_layer=layer, teacher_mean=mean)
        maps = teacher_maps(splits.validation, teacher, teacher_component(splits.train, teacher))
        hits = {tau: box_iou(true, target_box(maps, teacher, tau))[boxed] >= 0.5 for tau in thresholds}
        rows[f"{layer}, {mean}"] = {tau: float(hit.float().mean()) for tau, hit in hits.items()}
    return pd.DataFrame(rows).T.rename_axis("teacher", axis=0).rename_axis("tau", axis=1)


def _stored(photos: pd.DataFrame, config: Config) -> list[Path]:
    """The files that hold the photos' features, in the table's order; those missing or damaged are computed.

    An interrupted computation goes on where it stopped. While one process computes, others wait.
    """
    if config.teacher_weights != "imagenet":
        raise ValueError("teacher_weights is 'live': such a teacher has no fixed maps; choose 'imagenet'.")
    kept = _files(photos, config)
    if not all(map(_is_whole, kept)):
        with locked(_folder(config) / ".lock", lambda: print(TAKEN, flush=True)):
            missing = {path: photo for path, photo in zip(kept, photos["path"], strict=True) if not _is_whole(path)}
            _compute(missing, config)
    return kept


def _is_whole(path: Path) -> bool:
    """Whether a file is there and not cut short, as a power failure or a copy onto a full disk leaves it."""
    try:
        np.load(path, mmap_mode="r")  # reads the header, and compares its sizes with the file's
    except (FileNotFoundError, EOFError, ValueError):
        return False
    return True


def _files(photos: pd.DataFrame, config: Config) -> list[Path]:
    return [_folder(config) / f"{_photo_key(path)}.npy" for path in photos["path"]]


def _compute(missing: dict[Path, str], config: Config) -> None:
    """Write the features of photos, given as file to write → photo."""
    device, teacher = default_device(), build_teacher(config)
    files = list(missing)
    loader = _loader(missing.values(), config)
    done = 0
    for images in photo_progress(loader, "teacher maps", len(files)):
        for features in teacher.fixed_features(images.to(device)).half().cpu().numpy():
            _save(files[done], features)
            done += 1


def _loader(paths: Iterable[str], config: Config) -> DataLoader:
    """Photos as the teacher sees them. No pixels are kept: each is read once."""
    # On a CPU one by one: a photo's activations then stay in the cache, which is measured to be twice as fast.
    at_once = 1 if default_device().type == "cpu" else config.batch_size
    return DataLoader(_Photos(list(paths), config), at_once, num_workers=config.workers)


class _Photos(Dataset):
    """Normalised squares (3, S, S) at the teacher's size."""

    def __init__(self, paths: list[str], config: Config):
        self.paths, self.config = paths, replace(config, image_size=config.teacher_size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return to_input(read_photo(self.paths[index], self.config.cut_bottom), self.config)


def _batches(paths: Sequence[Path], size: int = 64) -> Iterator[Tensor]:
    """Features (B, C, h, w) of at most `size` photos at a time, so that memory does not grow with the data set."""
    for start in range(0, len(paths), size):
        yield torch.from_numpy(np.stack([np.load(path) for path in paths[start : start + size]])).float()


def _save(path: Path, values: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


def _folder(config: Config) -> Path:
    """Where features are kept: its name changes with all that they depend on but the photo."""
    values = [FORMAT, READER, timm.__version__, *(getattr(config, key) for key in FEATURE_KEYS)]
    return results_root() / "teacher_features" / hashlib.sha256(json.dumps(values).encode()).hexdigest()[:20]


def _photo_key(path: str) -> str:
    """Changes with the photo's bytes alone: photos that were copied or unpacked again are the same photos."""
    file = os.stat(path)
    return _digest(path, file.st_size, file.st_mtime_ns, file.st_ctime_ns)


@cache
def _digest(path: str, *_facts: int) -> str:
    """Of the photo's bytes, read once in a process as long as the file's size and dates stay."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]
