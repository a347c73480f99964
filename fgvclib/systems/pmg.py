"""PMG, progressive multi-granularity training (Du et al. 2020; PRIS-CV/PMG-Progressive-Multi-Granularity-Training).

Each of the last three stages of the backbone has a classifier, and one more sees all three. Shallow stages learn from
finely shuffled photos, deeper ones from coarser ones, all together from whole ones: four optimiser steps a batch.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.geometry import rearrange_tiles, resize
from fgvclib.systems.base import Looks, System, accuracy

# Head → (tiles a side n of the photos it learns from, weight of its loss), in the order of the steps (the repository).
STEPS = {"stride8": (8, 1.0), "stride16": (4, 1.0), "stride32": (2, 1.0), "all": (1, 2.0)}
STRIDES = (8, 16, 32)
PUBLISHED_WIDTHS, SMALL_WIDTHS = (512, 1024), (64, 128)  # of the 1×1 and 3×3 convolutions: the repository; ours
SMALL_CHANNELS = 512  # of the last stage: a backbone that has no more, such as Lite0, gets small widths (ours)
BACKBONE_RATE = 0.1  # 0.0002 against 0.002 of the heads (the repository)
STATISTICS = {"eps": 1e-5, "momentum": 0.01}  # of BatchNorm behind the convolutions (the repository)


class PMG(System):
    """X → resized to crop_size → maps of strides 8, 16, 32 → three vectors v → four heads, whose logits add up."""

    training_passes = 4.0

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        finest = max(tiles for tiles, _ in STEPS.values())
        if crop_size % finest:
            raise ValueError(f"crop_size is {crop_size}, but PMG cuts {finest}x{finest} tiles; choose a multiple.")
        last = {stage["reduction"]: i for i, stage in enumerate(self.backbone.feature_info)}
        if not set(STRIDES) <= set(last):
            raise ValueError(f"{backbone} has no stages of strides 8, 16 and 32, as PMG needs; choose another one.")
        self.stages = [last[stride] for stride in STRIDES]
        channels = [self.backbone.feature_info[stage]["num_chs"] for stage in self.stages]
        self.backbone.prune_intermediate_layers(self.stages, prune_norm=True, prune_head=True)
        narrow, wide = SMALL_WIDTHS if channels[-1] <= SMALL_CHANNELS else PUBLISHED_WIDTHS
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(count, narrow, 1), convolution(narrow, wide, 3)) for count in channels
        )
        inputs = dict.fromkeys(STEPS, wide) | {"all": 3 * wide}
        self.heads = nn.ModuleDict({name: head(width, narrow, num_classes) for name, width in inputs.items()})

    def forward(self, images: Tensor, labels: Tensor | None = None, tiles: int = 1) -> Looks:
        """Logits of the four heads, and their sum "main", of photos shuffled in tiles × tiles tiles; 1 keeps them."""
        images = jigsaw(resize(images, self.crop_size), tiles).contiguous(memory_format=torch.channels_last)
        maps = self.backbone.forward_intermediates(images, indices=self.stages, intermediates_only=True)
        v = [block(stage).amax(dim=(2, 3)) for block, stage in zip(self.blocks, maps, strict=True)]  # global maximum
        v.append(torch.cat(v, dim=1))
        # All heads in every step, as published, so that their BatchNorm statistics are also of whole photos.
        logits = {name: layers(vector) for (name, layers), vector in zip(self.heads.items(), v, strict=True)}
        return Looks(logits | {"main": sum(logits.values())})

    def steps(self, batch: dict[str, Tensor], look: Callable[..., Looks]) -> Iterator[dict[str, Tensor]]:
        """Four steps, each for one head; the last, on whole photos, brings "accuracy"."""
        labels = batch["label"]
        for name, (tiles, weight) in STEPS.items():
            looks = look(batch["image"], labels, tiles)
            term = weight * F.cross_entropy(looks.logits[name], labels)
            right = {"accuracy": accuracy(looks.logits["main"], labels)} if tiles == 1 else {}
            yield {name: term, "total": term} | right

    def groups(self) -> list[dict]:
        """The backbone learns at a tenth of the heads' rate."""
        heads = [*self.blocks.parameters(), *self.heads.parameters()]
        return [
            {"params": list(self.backbone.parameters()), "rate": BACKBONE_RATE},
            {"params": heads, "rate": 1.0},
        ]


def jigsaw(images: Tensor, tiles: int) -> Tensor:
    """Images (B, 3, S, S) with their tiles × tiles tiles shuffled, all by one random permutation (the repository)."""
    origin = torch.randperm(tiles**2).view(1, tiles, tiles).expand(len(images), -1, -1)
    return rearrange_tiles(images, origin.to(images.device))


def convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """A convolution that keeps the map's size, BatchNorm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, **STATISTICS), nn.ReLU())


def head(inputs: int, hidden: int, num_classes: int) -> nn.Sequential:
    """A vector (B, inputs) → logits (B, num_classes)."""
    first = [nn.BatchNorm1d(inputs), nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ELU()]
    return nn.Sequential(*first, nn.Linear(hidden, num_classes))
