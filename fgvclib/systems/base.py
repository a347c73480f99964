"""What a system is: the interface that the training loop, the scores and the tables know."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.backbones import create_backbone, feature_maps
from fgvclib.model.system import Answer


class Looks(NamedTuple):
    """What a forward pass gives."""

    logits: dict[str, Tensor]  # name → (B, classes), or more rows where a photo is seen several times
    parts: dict[str, Tensor] = {}  # what the loss needs besides
    boxes: Tensor | None = None  # (B, 4) xyxy in [0, 1] of X: where the system looked


class System(nn.Module):
    """One system of Table 3: X (B, 3, H, W), normalised → `Looks`. A rival is one file, and one line in `SYSTEMS`.

    Whatever has parameters runs inside `forward`, as several GPUs need. Hence its `labels`, for pairs and centres.
    Raises ValueError for a crop_size below `smallest_crop`, or one that the backbone cannot take.
    """

    localise = False  # whether its answer has boxes
    passes = 1.0  # of the backbone at crop_size, for one answer; a pass at half the side counts a quarter
    training_passes = 1.0  # for one training step
    batches: tuple[int, int] | None = None  # (classes, photos of each) in a batch, where it must be balanced
    smallest_crop = 1  # the least crop_size, in pixels, that it takes
    halves = False  # whether its backbone also sees pictures of half that side
    without_gradient: tuple[str, ...] = ()  # parameters that not every batch reaches

    def __init__(
        self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True, output_stride: int = 32
    ):
        super().__init__()
        if crop_size < self.smallest_crop:
            least = f"{type(self).__name__} needs {self.smallest_crop} pixels or more"
            raise ValueError(f"crop_size is {crop_size}, but {least}; raise it.")
        self.num_classes, self.crop_size = num_classes, crop_size
        self.backbone = create_backbone(backbone, pretrained, output_stride)
        for side in (crop_size, crop_size // 2)[: 1 + self.halves]:
            check_side(self.backbone, backbone, side, crop_size)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w) → the backbone's last map F (B, C, h / stride, w / stride)."""
        return feature_maps(self.backbone, images.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        """X (B, 3, H, W), with labels (B,) in training → what the loss and the answer are made of."""
        raise NotImplementedError

    def loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms of the loss by name, scalars, and their sum as "total"."""
        term = F.cross_entropy(looks.logits["main"], labels)
        return {"cross_entropy": term, "total": term}

    def predict(self, images: Tensor) -> Answer:
        """X (B, 3, H, W) → `Answer`, in evaluation mode; skips what only training needs."""
        looks = self(images)
        return Answer(looks.logits["main"].float().log_softmax(dim=1), looks.boxes)

    def steps(self, batch: dict[str, Tensor], look: Callable[..., Looks]) -> Iterator[dict[str, Tensor]]:
        """The terms of the loss for each optimiser step on a batch ("image", "label"), and in one of them "accuracy".

        A generator, as a second step sees the weights that the first has changed. `look` is this system as the loop
        calls it: several processes and mixed precision wrap it.
        """
        looks = look(batch["image"], batch["label"])
        yield self.loss(looks, batch["label"]) | {"accuracy": accuracy(looks.logits["main"], batch["label"])}

    def groups(self) -> list[dict]:
        """Parameters ("params") with multipliers ("rate") on the learning rate."""
        return [{"params": list(self.parameters()), "rate": 1.0}]

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze and thaw, switch phases; `epoch` counts from 0."""


@torch.no_grad()
def check_side(backbone: nn.Module, tag: str, side: int, crop_size: int) -> None:
    """Raises ValueError where a backbone cannot take pictures of `side` pixels: a pass of shapes alone."""
    shapes = deepcopy(backbone).to("meta").eval()
    try:
        feature_maps(shapes, torch.empty(1, 3, side, side, device="meta"))
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{tag} cannot take pictures of {side} pixels ({error}), which crop_size = {crop_size} asks of it; choose "
            "another crop_size or backbone."
        ) from error


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of logits (B, classes) whose largest is that of the label (B,): a scalar without gradient."""
    return (logits.argmax(dim=1) == labels).float().mean()
