"""Table 1: networks that estimate theta from an attention map (paper, section 3.1).

The paper gives neither the number of maps nor the training: here every network is trained with Adam on L_aff
(equation 7), and the table says for how many steps. Maps are mirrored and transposed at random, since a box moves
with its map (ours).
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fgvclib.affnet import AUTHORS_SHARPNESS, DEFAULT_SHARPNESS, AffineEstimator, AffNet
from fgvclib.config import Config
from fgvclib.contenders import FFNN, ResNet50, ResNetS, SoftHull
from fgvclib.data import Splits, evaluation_loader
from fgvclib.evaluation import count_parameters
from fgvclib.files import atomic_path
from fgvclib.geometry import attention_to_box, box_iou, box_to_theta, theta_to_box
from fgvclib.model import EndToEndModel
from fgvclib.paper import paper_table
from fgvclib.progress import progress
from fgvclib.teacher import Teacher

BATCH_SIZE = 32
LEARNING_RATE = 3e-3
LARGE_BATCH = 64  # for the second runtime column
CONTENDERS = {"FFNN": FFNN, "ResNet-S": ResNetS, "ResNet-50": ResNet50, "AffNet": AffNet}


def export_maps(model: EndToEndModel, splits: Splits, config: Config, path: Path) -> None:
    """Write the benchmark set: teacher maps of all training and test photos, float32 (N, n, n) each, as .npz.

    The photos enter at the size that gives a map of `map_size` cells without resizing. The validation photos count as
    training photos here: nothing is chosen on these maps.
    """
    stride = config.teacher_output_stride
    teacher = Teacher(config.backbone, config.map_size * stride, stride, config.map_size)
    parts = {"train": pd.concat([splits.train, splits.validation]), "test": splits.test}
    maps = {}
    for name, photos in parts.items():
        batches = progress(evaluation_loader(photos, config), f"maps of the {name} photos")
        found = [teacher(model.classifier.backbone, batch["image"]) for batch in batches]
        maps[name] = torch.cat(found).squeeze(1).numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **maps, test_image_id=splits.test["image_id"].to_numpy())


def load_maps(path: Path) -> dict[str, Tensor]:
    """Benchmark set → {"train": (N, 1, n, n), "test": (M, 1, n, n), "test_image_id": (M,)}."""
    with np.load(path) as stored:
        maps = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return maps | {name: maps[name].unsqueeze(1) for name in ("train", "test")}


def fit(network: AffineEstimator, maps: Tensor, steps: int, threshold: float = 0.3, seed: int = 0) -> list[float]:
    """Train on maps (N, 1, n, n) for `steps` steps of Adam with cosine decay → the loss of every step."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    network.train()
    losses = []
    for _ in progress(range(steps), type(network).__name__):
        batch = maps[torch.randint(len(maps), (BATCH_SIZE,), generator=generator)]
        batch = _random_symmetry(batch, generator)
        loss = F.smooth_l1_loss(network(batch), box_to_theta(attention_to_box(batch, threshold)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def _random_symmetry(maps: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight symmetries of the square, the same for the whole batch."""
    turns, mirrored = torch.randint(4, (), generator=generator), torch.randint(2, (), generator=generator)
    maps = torch.rot90(maps, int(turns), dims=(2, 3))
    return maps.flip(3) if mirrored else maps


@torch.no_grad()
def score(network: AffineEstimator, maps: Tensor, threshold: float = 0.3) -> pd.DataFrame:
    """Per map: sl1_error (mean over theta) and iou with the exact hull; predicted x1, y1, x2, y2 in [0, 1]."""
    network.eval()
    target = attention_to_box(maps, threshold)
    theta = torch.cat([network(batch) for batch in maps.split(BATCH_SIZE)])
    boxes = theta_to_box(theta).clamp(0, 1)
    error = F.smooth_l1_loss(theta, box_to_theta(target), reduction="none").mean(dim=1)
    table = pd.DataFrame(boxes.numpy(), columns=["x1", "y1", "x2", "y2"])
    return table.assign(sl1_error=error.numpy(), iou=box_iou(boxes, target).numpy())


@torch.no_grad()
def runtime_ms(network: AffineEstimator, maps: Tensor, budget_s: float = 1.0) -> float:
    """Median milliseconds of a forward pass over one batch of maps, from as many passes as fit into the budget."""
    network.eval()
    network(maps)  # the first pass allocates
    times: list[float] = []
    while sum(times) < budget_s or len(times) < 3:
        started = time.perf_counter()
        network(maps)
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))


class Contestant(NamedTuple):
    """One row of Table 1: a network before training, and the steps it will get."""

    model: str
    preprocess: bool
    sharpness: float
    network: AffineEstimator
    steps: int

    @property
    def name(self) -> str:
        """Short row name for figures: `AffNet + prep.`."""
        return f"{self.model} + prep." if self.preprocess else self.model


def contestants(config: Config) -> list[Contestant]:
    """The paper's eight rows at our default sharpness, then AffNet at the authors' sharpness and SoftHull."""
    rows = [
        _contestant(name, preprocess, DEFAULT_SHARPNESS, config) for name in CONTENDERS for preprocess in (False, True)
    ]
    authors = _contestant("AffNet", True, AUTHORS_SHARPNESS, config)._replace(model="AffNet, authors' sharpness")
    return [*rows, authors, _contestant("SoftHull", True, DEFAULT_SHARPNESS, config)]


def _contestant(name: str, preprocess: bool, sharpness: float, config: Config) -> Contestant:
    torch.manual_seed(0)  # every row starts from the same random numbers, whatever ran before
    kind = SoftHull if name == "SoftHull" else CONTENDERS[name]
    network = kind(config.map_size, preprocess, config.threshold, sharpness)
    steps = config.table1_resnet50_steps if name == "ResNet-50" else config.table1_steps
    return Contestant(name, preprocess, sharpness, network, steps)


def evaluate_contestant(contestant: Contestant, maps: dict[str, Tensor], threshold: float) -> tuple[dict, pd.DataFrame]:
    """Train and score → the row of Table 1, and the per-map table of `score`."""
    network = contestant.network
    fit(network, maps["train"], contestant.steps, threshold)
    scores = score(network, maps["test"], threshold)
    row = {
        "model": contestant.model,
        "preprocess": "yes" if contestant.preprocess else "no",
        "parameters": count_parameters(network),
        "sharpness": contestant.sharpness if contestant.preprocess else None,
        "steps": contestant.steps,
        "runtime_ms_batch1": runtime_ms(network, maps["test"][:1]),
        f"runtime_ms_batch{LARGE_BATCH}": runtime_ms(network, _repeat_to(maps["test"], LARGE_BATCH)),
        "sl1_error": scores["sl1_error"].mean(),
        "iou_gt_0.80": (scores["iou"] > 0.80).mean(),
        "iou_gt_0.95": (scores["iou"] > 0.95).mean(),
    }
    return row, scores


def _repeat_to(maps: Tensor, count: int) -> Tensor:
    return maps.repeat(-(-count // len(maps)), 1, 1, 1)[:count]


def table1(rows: list[dict]) -> pd.DataFrame:
    """Rows of `evaluate_contestant` → Table 1, with the paper's columns beside ours where the paper has the row."""
    paper = paper_table(1).rename(columns={"sl1_error_e-3": "sl1_error"})
    paper["sl1_error"] *= 1e-3
    keys = ["model", "preprocess"]
    paper = paper.rename(columns={name: f"paper_{name}" for name in paper.columns if name not in keys})
    return pd.DataFrame(rows).merge(paper, on=keys, how="left")
