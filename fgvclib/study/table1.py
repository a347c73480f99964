"""Table 1: networks that estimate theta from an attention map (paper, section 3.1).

The paper gives neither the number of maps nor the training: here every network is trained with Adam on L_aff
(equation 7), and the table says for how many steps. Maps are mirrored, turned and shifted by a cell at random, since a
box moves with its map (ours). The recipe was chosen on a held-out part of the training maps.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from fgvclib.config import Config
from fgvclib.data.index import BOX
from fgvclib.data.loaders import PhotoDataset, evaluation_loader
from fgvclib.data.splits import Splits
from fgvclib.model.affnet import DEFAULT_SHARPNESS, AffineEstimator, AffNet
from fgvclib.model.geometry import attention_to_box, box_iou, box_to_theta, theta_to_box
from fgvclib.model.system import EndToEndModel
from fgvclib.model.teacher import build_teacher
from fgvclib.study.contenders import FFNN, ResNet50, ResNetS, SoftHull
from fgvclib.study.paper import paper_table
from fgvclib.training.evaluation import count_parameters
from fgvclib.utils.device import default_device, on_default_device
from fgvclib.utils.files import atomic_path, wait_for_idle_machine
from fgvclib.utils.progress import progress

SHARPNESS = 1000.0  # of the table's rows (ours): close to the binary mask that the targets are computed from
BATCH_SIZE = 256
RESNET_BATCH_SIZE = 32  # a ResNet's step costs many times that of the others
LEARNING_RATE = 1e-2
RESNET_LEARNING_RATE = 1e-3
TARGETS_AT_ONCE = 8192  # maps whose boxes are found together, for memory
SCORED_AT_ONCE = 64  # maps in a pass
RUNTIME_S = 0.2  # seconds that a runtime is measured for
CONTENDERS = {"FFNN": FFNN, "ResNet-S": ResNetS, "ResNet-50": ResNet50, "AffNet": AffNet}


def export_maps(model: EndToEndModel, splits: Splits, config: Config, path: Path) -> None:
    """Write the benchmark set: teacher maps of training and test photos, float32 (N, n, n) each, as .npz.

    Each training photo gives `table1_views` maps, one for each epoch's augmentation; a test photo gives one, as it is.
    The photos enter at the size that gives a map of `map_size` cells without resizing. The validation photos count as
    training photos here: nothing is chosen on these maps.
    """
    teacher = build_teacher(config, size=config.map_size * config.teacher_output_stride)
    fit_photos = pd.concat([splits.train, splits.validation], ignore_index=True)
    augmented = PhotoDataset(fit_photos, config, augment=True)
    views = Subset(augmented, range(config.table1_views * len(augmented)))  # item = epoch * len + photo
    loaders = {"train": DataLoader(views, config.batch_size), "test": evaluation_loader(splits.test, config)}
    maps = {}
    with on_default_device(model) as device:
        for name, loader in loaders.items():
            batches = (batch["image"].to(device) for batch in progress(loader, f"maps of the {name} photos"))
            found = [teacher(model.classifier.backbone, X, model.teacher_component).cpu() for X in batches]
            maps[name] = torch.cat(found).squeeze(1).numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **maps, test_image_id=splits.test["image_id"].to_numpy())


def load_maps(path: Path) -> dict[str, Tensor]:
    """Benchmark set → {"train": (N, 1, n, n), "test": (M, 1, n, n), "test_image_id": (M,)}."""
    with np.load(path) as stored:
        maps = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return maps | {name: maps[name].unsqueeze(1) for name in ("train", "test")}


def fit(
    network: AffineEstimator,
    maps: Tensor,
    steps: int,
    threshold: float = 0.3,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> list[float]:
    """Train on maps (N, 1, n, n) for `steps` steps of Adam with cosine decay → the loss of every step.

    BatchNorm works with its running statistics in the second half: the noise of batch statistics, small as it is, is
    larger than the error that IoU > 0.95 allows.
    """
    moves = shifts(symmetries(maps)).flatten(0, 2)  # (9 * 8 N, 1, n, n), whose boxes are found once, not in every step
    targets = torch.cat([box_to_theta(attention_to_box(part, threshold)) for part in moves.split(TARGETS_AT_ONCE)])
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    losses = []
    for step in progress(range(steps), type(network).__name__):
        network.train(step < steps / 2)
        drawn = torch.randint(len(moves) // 9, (batch_size,), generator=generator)
        down, right = torch.randint(3, (2, batch_size), generator=generator)
        picked = (9 * drawn + 3 * down + right).to(moves.device)
        loss = F.smooth_l1_loss(network(moves[picked]), targets[picked])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def symmetries(maps: Tensor) -> Tensor:
    """Maps (N, 1, n, n) → (8 N, 1, n, n): every map mirrored and turned in all eight ways."""
    turned = torch.cat([torch.rot90(maps, turns, dims=(2, 3)) for turns in range(4)])
    return torch.cat([turned, turned.flip(3)])


def shifts(maps: Tensor) -> Tensor:
    """Maps (B, 1, n, n) → (B, 3, 3, 1, n, n): every map moved by 1, 0 or -1 cell down, then by as many right.

    The cells that come in hold the map's minimum.
    """
    n = maps.shape[-1]
    low = maps.amin(dim=(2, 3), keepdim=True)
    windows = F.pad(maps - low, (1, 1, 1, 1)).unfold(2, n, 1).unfold(3, n, 1)  # (B, 1, 3, 3, n, n)
    return (windows + low[..., None, None]).permute(0, 2, 3, 1, 4, 5)


def shifted(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Every map (B, 1, n, n) moved at random by -1, 0 or 1 cell along each axis, as `shifts` does."""
    down, right = torch.randint(3, (2, len(maps)), generator=generator).to(maps.device)
    return shifts(maps)[torch.arange(len(maps), device=maps.device), down, right]


@torch.no_grad()
def score(network: AffineEstimator, maps: Tensor, threshold: float = 0.3) -> pd.DataFrame:
    """Per map: sl1_error (mean over theta) and iou with the exact hull; predicted x1, y1, x2, y2 in [0, 1]."""
    network.eval()
    target = attention_to_box(maps, threshold)
    theta = torch.cat([network(batch) for batch in maps.split(SCORED_AT_ONCE)])
    boxes = theta_to_box(theta).clamp(0, 1)
    error = F.smooth_l1_loss(theta, box_to_theta(target), reduction="none").mean(dim=1)
    table = pd.DataFrame(boxes.cpu().numpy(), columns=BOX)
    return table.assign(sl1_error=error.cpu().numpy(), iou=box_iou(boxes, target).cpu().numpy())


def sensitivity(network: AffineEstimator, maps: Tensor) -> Tensor:
    """How much a change of each cell moves theta: mean over its four values of |d theta / d A|, (N, 1, n, n)."""
    network.eval()
    maps = maps.clone().requires_grad_()
    theta = network(maps)  # (N, 4); a map's theta depends on that map alone
    parts = [torch.autograd.grad(value.sum(), maps, retain_graph=True)[0] for value in theta.unbind(1)]
    return torch.stack(parts).abs().mean(dim=0)


@torch.no_grad()
def runtime_ms(network: AffineEstimator, maps: Tensor) -> float:
    """Median milliseconds of a forward pass over one batch of maps, from as many passes as fit into `RUNTIME_S`."""
    network.eval()
    times: list[float] = []
    while sum(times) <= RUNTIME_S:
        started = time.perf_counter()
        network(maps)
        if maps.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times[1:] or times))  # the first pass allocates


class Contestant(NamedTuple):
    """One row of Table 1: a network, and the training it gets with every seed. Without steps it is not trained here."""

    model: str
    preprocess: bool
    sharpness: float
    build: Callable[[], AffineEstimator]
    steps: int
    batch_size: int
    learning_rate: float
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Short row name for figures: `AffNet + prep.`."""
        return f"{self.model} + prep." if self.preprocess else self.model

    def network(self, seed: int) -> AffineEstimator:
        """The network before training, with the same random numbers whatever ran before."""
        torch.manual_seed(seed)
        return self.build()


def contestants(config: Config, seeds: Sequence[int] = (0,)) -> list[Contestant]:
    """The paper's eight rows at `SHARPNESS`, three of them also at the authors', and SoftHull.

    With FFNN and ResNet-S at both, what splitting the axes brings can be told from what the sharpness does. The ResNets
    train with the first seed alone.
    """
    rows = [_contestant(name, prep, SHARPNESS, config, seeds) for name in CONTENDERS for prep in (False, True)]
    for name in ("AffNet", "FFNN", "ResNet-S"):
        authors = _contestant(name, True, DEFAULT_SHARPNESS, config, seeds)
        rows.append(authors._replace(model=f"{name}, authors' sharpness"))
    return [*rows, _contestant("SoftHull", True, SHARPNESS, config, seeds)]


def _contestant(name: str, preprocess: bool, sharpness: float, config: Config, seeds: Sequence[int]) -> Contestant:
    kind = SoftHull if name == "SoftHull" else CONTENDERS[name]
    build = partial(kind, config.map_size, preprocess, config.threshold, sharpness)
    steps = {
        "ResNet-S": config.table1_resnet_s_steps,
        "ResNet-50": config.table1_resnet50_steps,
        "SoftHull": math.ceil(config.table1_steps / 8),  # a single parameter is found soon
    }.get(name, config.table1_steps)
    recipe = (RESNET_BATCH_SIZE, RESNET_LEARNING_RATE) if "ResNet" in name else (BATCH_SIZE, LEARNING_RATE)
    seeds = tuple(seeds[:1] if "ResNet" in name else seeds)
    return Contestant(name, preprocess, sharpness, build, steps, *recipe, seeds)


def evaluate_contestant(contestant: Contestant, maps: dict[str, Tensor], threshold: float) -> tuple[dict, pd.DataFrame]:
    """Train and score with every seed → the row of Table 1, and the per-map table of `score` of the first seed.

    The row has means over the seeds, and `<score>_std`, NaN for a single one. What is not trained here has its
    parameters alone: its scores are NaN, and its per-map table is empty.
    """
    device = default_device()
    test, tables = maps["test"].to(device), []
    for seed in contestant.seeds if contestant.steps else ():
        network = contestant.network(seed).to(device)
        recipe = (contestant.steps, threshold, contestant.batch_size, contestant.learning_rate)
        fit(network, maps["train"].to(device), *recipe, seed)
        tables.append(score(network, test, threshold))
    with torch.device("meta"):  # to be counted
        network = contestant.build()
    row = {
        "model": contestant.model,
        "preprocess": "yes" if contestant.preprocess else "no",
        "parameters": count_parameters(network),
        "sharpness": contestant.sharpness if contestant.preprocess else None,
        "steps": contestant.steps,
        "batch_size": contestant.batch_size,
        "seeds": " ".join(str(seed) for seed in contestant.seeds) if contestant.steps else "not trained here",
    }
    return row | _over_seeds(tables), tables[0] if tables else pd.DataFrame(columns=[*BOX, "sl1_error", "iou"])


def _over_seeds(tables: list[pd.DataFrame]) -> dict[str, float]:
    """Tables of `score`, one per seed → mean and standard deviation of each score, NaN where there is none."""
    scores = {
        "sl1_error": [table["sl1_error"].mean() for table in tables],
        "iou_gt_0.80": [(table["iou"] > 0.80).mean() for table in tables],
        "iou_gt_0.95": [(table["iou"] > 0.95).mean() for table in tables],
    }
    values = {name: pd.Series(found, dtype=float) for name, found in scores.items()}
    means = {name: found.mean() for name, found in values.items()}
    return means | {f"{name}_std": found.std() for name, found in values.items()}


def table1(rows: list[dict]) -> pd.DataFrame:
    """Rows of `evaluate_contestant` → Table 1, with the paper's columns beside ours where the paper has the row."""
    paper = paper_table(1).rename(columns={"sl1_error_e-3": "sl1_error"})
    paper["sl1_error"] *= 1e-3
    keys = ["model", "preprocess"]
    paper = paper.rename(columns={name: f"paper_{name}" for name in paper.columns if name not in keys})
    return pd.DataFrame(rows).merge(paper, on=keys, how="left")


def add_runtimes(table: pd.DataFrame, contestants: Sequence[Contestant], maps: dict[str, Tensor]) -> pd.DataFrame:
    """Table 1 with each row's `runtime_ms_batch1`, measured when no training runs beside the notebook any more."""
    wait_for_idle_machine()
    device = default_device()
    one = maps["test"][:1].to(device)
    # It does not depend on the weights.
    times = [runtime_ms(contestant.network(contestant.seeds[0]).to(device), one) for contestant in contestants]
    return table.assign(runtime_ms_batch1=times)
