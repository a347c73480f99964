"""ELoPE (Hanselmann & Ney, WACV 2020), the authors' earlier system: three trainings, one after the other.

(a) The run of the row "Baseline" with the same seed: a classifier of whole photos. (b) AttNet alone learns the mean of
(a)'s last map. (c) A new classifier, from ImageNet weights, learns on the boxes of AttNet's maps, cut from the original
photos. There is no AffNet, and no gradient reaches a box. (c) is an ordinary run; (b) is kept in its folder.

Ours: AttNet starts from ImageNet weights instead of (a)'s stem, and learns by Adam, as before an end-to-end training.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fgvclib.config import PAPER, Config
from fgvclib.data.augment import to_input
from fgvclib.data.index import CROP
from fgvclib.data.loaders import evaluation_loader, training_loader
from fgvclib.data.pixels import photo_size
from fgvclib.data.splits import Splits
from fgvclib.data.teacher_maps import maps_of
from fgvclib.model.attnet import AttNet
from fgvclib.model.geometry import WHOLE_IMAGE, target_box
from fgvclib.model.system import build_attnet
from fgvclib.study.bounds import BASELINE
from fgvclib.study.table2 import ROWS
from fgvclib.training.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint, weights_checksum
from fgvclib.training.identity import run_identity
from fgvclib.training.loop import train_on_maps
from fgvclib.training.runs import ATTNET, Run, move_aside, training_lock
from fgvclib.utils.device import default_device, on_default_device
from fgvclib.utils.parallel import process_state
from fgvclib.utils.provenance import is_replaced, provenance

ELOPE = "ELoPE"
EPOCHS = 45  # of (b), where the profile has no localisation_epochs [ELoPE]
SHORTEST_SIDE = 10  # pixels; a photo with a shorter side of its box stays whole [ELoPE]
OF_MAP = ("teacher_weights", "teacher_layer", "teacher_mean")
OF_BOX = ("threshold", "box_component", "box_upsample", "crop_margin")


def elope_values(config: Config) -> dict:
    """The values in which the row differs from a profile: map and box are those of [ELoPE] in all of them."""
    own = {key: getattr(PAPER, key) for key in (*OF_MAP, *OF_BOX)}
    return ROWS[BASELINE] | own | {"fixed_box": "attnet", "localisation_epochs": config.localisation_epochs or EPOCHS}


def has_boxes(folder: Path) -> bool:
    """Whether the boxes of a run are there, and not to be made anew."""
    return (folder / ATTNET).exists() and not is_replaced(folder / ATTNET)


def with_attnet_boxes(
    splits: Splits, config: Config, seed: int, folder: Path, baseline: Run | None, announce: Callable = print
) -> Splits:
    """The splits with the columns `CROP`: boxes from `folder`, made there with the run `baseline` where there are none.

    Raises ValueError where they were made from another baseline or other data, where there is neither, and where the
    baseline has lost its weights.
    """
    identity = run_identity(config, splits, seed) | {"world_size": 1}  # AttNet learns in one process
    if baseline:
        if not baseline.checkpoint.exists():
            raise ValueError(f"{baseline.checkpoint} is missing; delete {baseline.folder} to train this run again.")
        identity["data"][BASELINE] = weights_checksum(baseline.checkpoint)
    with process_state().main_process_first():
        if baseline and not has_boxes(folder):
            with training_lock(folder, announce):
                move_aside(folder)
                if not has_boxes(folder):  # no other process has made them meanwhile
                    announce(f"{folder.name}: AttNet learns the maps of {baseline.folder.name}")
                    _make(baseline, splits, config, seed, folder / ATTNET, identity)
        state = load_checkpoint(folder / ATTNET, identity)
    if state is None:
        raise ValueError(f"{folder / ATTNET} is missing, and with it the boxes of this run; train it with --fresh.")
    crops = {name: dict(zip(CROP, boxes.double().numpy().T, strict=True)) for name, boxes in state["boxes"].items()}
    return replace(splits, **{name: getattr(splits, name).assign(**columns) for name, columns in crops.items()})


def _make(baseline: Run, splits: Splits, config: Config, seed: int, path: Path, identity: dict) -> None:
    started = time.perf_counter()
    attnet = learn_maps(baseline, splits, config, seed)
    boxes = {name: find_boxes(attnet, getattr(splits, name), config) for name in ("train", "validation", "test")}
    made_by = provenance(default_device()) | {"minutes": round((time.perf_counter() - started) / 60, 2)}
    state = {"model": attnet.state_dict(), "boxes": boxes, "provenance": made_by}
    save_checkpoint(path, identity | state)


def learn_maps(baseline: Run, splits: Splits, config: Config, seed: int) -> AttNet:
    """(b): an AttNet that has learnt the maps which the baseline's frozen classifier gives of the training photos."""
    maps = maps_of(baseline.model.classifier.backbone, splits.train, config)
    torch.manual_seed(seed)
    attnet = build_attnet(config).to(default_device()).train()
    train_on_maps(
        list(attnet.parameters()),
        lambda images, targets: {"attention": F.smooth_l1_loss(attnet(images), targets)},
        training_loader(splits.train, replace(config, image_size=attnet.input_size), seed, maps),
        config.localisation_epochs,
        "AttNet alone",
    )
    return attnet.cpu().eval()


@torch.no_grad()
def find_boxes(attnet: AttNet, photos: pd.DataFrame, config: Config) -> Tensor:
    """Boxes (N, 4) in [0, 1] of AttNet's maps of photos, in the table's order: the hull of all cells from tau on."""
    boxes = [torch.empty(0, 4)]
    with on_default_device(attnet) as device:
        for batch in evaluation_loader(photos, config, image_size=attnet.input_size) if len(photos) else []:
            boxes.append(target_box(attnet(batch["image"].to(device)), config).cpu())
    sizes = [photo_size(path, config.cut_bottom) for path in photos["path"]]
    return whole_where_short(torch.cat(boxes), torch.tensor(sizes).view(-1, 2))


def load_attnet(folder: Path, config: Config) -> AttNet:
    """(b) from the folder of a run, in evaluation mode. Raises ValueError where it is missing or does not fit."""
    path = folder / ATTNET
    if not path.exists():
        raise ValueError(f"{path} is missing, the AttNet that finds this run's boxes; copy it beside the checkpoint.")
    attnet = build_attnet(config, pretrained=False)
    try:
        attnet.load_state_dict(read_checkpoint(path)["model"])
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is not the AttNet of the checkpoint beside it; copy both from one run.") from error
    return attnet.eval()


@torch.no_grad()
def photo_box(attnet: AttNet, photo: Image.Image, config: Config) -> Tensor:
    """An RGB photo → the box (4,) in [0, 1] that `find_boxes` finds in it."""
    image = to_input(photo, replace(config, image_size=attnet.input_size))
    attention = attnet(image.unsqueeze(0).to(next(attnet.parameters()).device))
    return whole_where_short(target_box(attention, config).cpu(), torch.tensor([photo.size]))[0]


def whole_where_short(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (N, 4) in [0, 1], but the whole photo where a side is below `SHORTEST_SIDE` of its (N, 2) pixels."""
    sides = (boxes[:, 2:] - boxes[:, :2]) * sizes
    return torch.where((sides < SHORTEST_SIDE).any(dim=1, keepdim=True), boxes.new_tensor(WHOLE_IMAGE), boxes)
