"""DCL, destruction and construction learning (Chen et al. 2019; JDAI-CV/DCL): only the training differs.

Tiles of the photo are shuffled a little, which destroys the whole and keeps the details. From the photo and from its
shuffled copy the network must tell the class, which of the two it sees, and where each tile came from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.geometry import rearrange_tiles, resize
from fgvclib.systems.base import Looks, System

PUBLISHED_TILES = 7  # N, tiles a side (paper)
CELL = 32  # pixels of a cell of the last map; a tile is never smaller (ours)


class DCL(System):
    """X → resized to crop_size → mean F → class, and in training "whole or shuffled"; 1×1 convolution of F → places."""

    training_passes = 2.0
    location_weight = 1.0  # γ, as published for CUB

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        self.tiles = tiles_a_side(crop_size)
        self.reach = 2 if self.tiles == PUBLISHED_TILES else 1  # k: 2 for N = 7 (paper), else 1 (ours)
        channels = self.backbone.num_features
        self.output = nn.Linear(channels, num_classes, bias=False)
        self.shuffled = nn.Linear(channels, 2, bias=False)
        self.location = nn.Conv2d(channels, 1, 1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        """With labels: logits "main" and "shuffled" (B, K) of both views, "destroyed" (2B, 2), the whole first.

        Parts are "location" and its "target", (2B, N, N) in [-1, 1].
        """
        images = resize(images, self.crop_size)
        if labels is None:
            return Looks({"main": self.output(self.features(images).mean(dim=(2, 3)))})
        origin = draw_shuffle(len(images), self.tiles, self.reach).to(images.device)
        whole = torch.arange(self.tiles**2, device=images.device).view(1, self.tiles, self.tiles).expand_as(origin)
        maps = self.features(torch.cat([images, rearrange_tiles(images, origin)]))
        x = maps.mean(dim=(2, 3))  # (2B, C)
        main, shuffled = self.output(x).chunk(2)
        location = F.adaptive_avg_pool2d(self.location(maps), self.tiles).squeeze(1).tanh()
        parts = {"location": location, "target": place(torch.cat([whole, origin]), self.tiles)}
        return Looks({"main": main, "shuffled": shuffled, "destroyed": self.shuffled(x)}, parts)

    def loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        both = torch.cat([looks.logits["main"], looks.logits["shuffled"]])
        is_shuffled = torch.arange(2, device=labels.device).repeat_interleave(len(labels))
        terms = {
            "cross_entropy": F.cross_entropy(both, labels.repeat(2)),
            "destroyed": F.cross_entropy(looks.logits["destroyed"], is_shuffled),
            "location": self.location_weight * (looks.parts["location"] - looks.parts["target"]).abs().mean(),
        }
        return terms | {"total": sum(terms.values())}

    def groups(self) -> list[dict]:
        """New layers learn ten times as fast as the backbone (JDAI-CV/DCL)."""
        new = [self.output, self.shuffled, self.location]
        return [
            {"params": list(self.backbone.parameters()), "rate": 1.0},
            {"params": [parameter for layer in new for parameter in layer.parameters()], "rate": 10.0},
        ]


class DCLVehicles(DCL):
    """The weight for Cars and Aircraft."""

    location_weight = 0.01


def tiles_a_side(crop_size: int) -> int:
    """N: 7 where it divides the photo (448, 224 px; paper), else the most tiles that do, none below a cell (ours)."""
    most = min(PUBLISHED_TILES, crop_size // CELL)
    return max((n for n in range(1, most + 1) if crop_size % n == 0), default=1)


def draw_shuffle(count: int, tiles: int, reach: int) -> Tensor:
    """Region confusion (paper) → (count, N, N): the tile, numbered by row, that each place shows.

    In every row tile i moves to the rank of i + U(-k, k), then in every column likewise, so that in x and in y
    |σ(i) - i| < 2k. JDAI-CV/DCL swaps neighbours instead, and breaks this bound (its issue 31).
    """
    index = torch.arange(tiles).float()
    columns = (index + reach * (2 * torch.rand(count, tiles, tiles) - 1)).argsort(dim=2)
    rows = (index[:, None] + reach * (2 * torch.rand(count, tiles, tiles) - 1)).argsort(dim=1)
    return rows * tiles + columns.gather(1, rows)  # the column that the tile had before it changed its row


def place(origin: Tensor, tiles: int) -> Tensor:
    """Tile numbers i in [0, N²) → (i - ⌊N²/2⌋) / N², within tanh's range (JDAI-CV/DCL); there by the permutation.

    The official code finds a tile's origin by its mean colour, which fails for equal tiles.
    """
    return (origin - tiles**2 // 2) / tiles**2
