"""RA-CNN (Fu et al. 2017; klrc/RACNN-pytorch, jeong-tae/RACNN-pytorch): three networks, each looks closer.

The first sees the photo, the second a square of it, the third a square of that square. Where the squares are, two small
networks say. Classes and squares learn in turn: the squares by a rank loss alone, which wants each closer look to be
surer of the class than the one before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.backbones import create_backbone, feature_maps
from fgvclib.model.geometry import WHOLE_IMAGE, box_to_theta, crop, nested, resize
from fgvclib.systems.base import Looks, System, accuracy
from fgvclib.systems.windows import activation

SCALES = 3
MARGIN = 0.05  # of the rank loss (paper)
SMALLEST, LARGEST = 1 / 3, 1 / 2  # half side of a square, in sides of the look that it is cut from (repositories)
FIRST = max(1 / 4, SMALLEST)  # half side that the squares learn first: a quarter (repositories), clipped
CHANNELS, HIDDEN = 64, 1024  # of a network for squares: ours, so that it stays small; the repositories


class RACNN(System):
    """Logits "scale1" to "scale3" of the looks, and "main" of the features of all three; boxes: the finest square.

    The photo is seen at crop_size, a square at half of it. `geometry.crop` cuts the squares, and its gradient is exact;
    the paper multiplies by a soft square, sigmoids in x and y (ours).
    """

    localise = True
    passes = 1.5
    training_passes = 3.0  # 1.5 in each of the two steps
    halves = True
    first_epoch = False

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        channels, stride = self.backbone.num_features, self.backbone.feature_info[-1]["reduction"]
        self.finer = nn.ModuleList(create_backbone(backbone, pretrained) for _ in range(SCALES - 1))
        self.outputs = nn.ModuleList(nn.Linear(channels, num_classes) for _ in range(SCALES))
        self.together = nn.Linear(SCALES * channels, num_classes)
        cells = (max(1, size // stride) for size in (crop_size, crop_size // 2))
        self.squares = nn.ModuleList(square_network(channels, side) for side in cells)

    def forward(self, images: Tensor, labels: Tensor | None = None, squares_learn: bool = False) -> Looks:
        """With `squares_learn` a gradient reaches the networks of the squares alone, else all others alone.

        Parts: "squares" (B, 2, 3), see `square`, and the "peaks" (B, 2, 2) xy of the maps that they are made from.
        """
        boxes = images.new_tensor(WHOLE_IMAGE).expand(len(images), 4)
        view = resize(images, self.crop_size)
        logits, x, squares, peaks = {}, [], [], []
        with frozen(self.backbone, self.finer, self.outputs, self.together) if squares_learn else nullcontext():
            for scale, network in enumerate([self.backbone, *self.finer]):
                features = feature_maps(network, view.contiguous(memory_format=torch.channels_last))
                x.append(features.mean(dim=(2, 3)))  # (B, C)
                logits[f"scale{scale + 1}"] = self.outputs[scale](x[scale])
                if scale < SCALES - 1:
                    square = self.square(features, scale)
                    squares.append(square if squares_learn else square.detach())
                    peaks.append(peak(features))
                    boxes = nested(square_box(squares[scale]), boxes)
                    view = crop(images, box_to_theta(boxes), self.crop_size // 2)
            # Each network learns from its own look, the layer on top from all: beside them, not afterwards (ours).
            logits["main"] = self.together(torch.cat(x, dim=1).detach())
        parts = {"squares": torch.stack(squares, dim=1), "peaks": torch.stack(peaks, dim=1)}
        return Looks(logits, parts, boxes.detach().clamp(0, 1))

    def square(self, features: Tensor, scale: int) -> Tensor:
        """F (B, C, n, n) of a look, which gets no gradient → centre x, y and half side (B, 3), in sides of the look.

        Of the allowed size and inside by the sigmoid's range, as learning would end at a clipped value (ours).
        """
        layers = self.squares[scale]
        with torch.autocast(features.device.type, enabled=False):  # half precision would be pixels off
            t = layers(features.detach().to(layers[-2].weight.dtype))  # t_x, t_y, t_l in (0, 1)
        half = SMALLEST + (LARGEST - SMALLEST) * t[:, 2:]
        return torch.cat([half + (1 - 2 * half) * t[:, :2], half], dim=1)

    def steps(self, batch: dict[str, Tensor], look: Callable[..., Looks]) -> Iterator[dict[str, Tensor]]:
        """Two steps: the classes, where the squares are now; then the squares, as the networks see now."""
        images, labels = batch["image"], batch["label"]
        looks = look(images, labels)
        yield self.loss(looks, labels) | {"accuracy": accuracy(looks.logits["main"], labels)}
        yield self.square_loss(look(images, labels, True), labels)

    def loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        """The sum of the cross-entropies of the three looks and of all together."""
        terms = {name: F.cross_entropy(logits, labels) for name, logits in looks.logits.items()}
        return terms | {"total": sum(terms.values())}

    def square_loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        """The rank loss; in the first epoch smooth L1 to the smallest square around the peak (ours: for 128 steps)."""
        if self.first_epoch:
            term = F.smooth_l1_loss(looks.parts["squares"], square_around(looks.parts["peaks"]))
            return {"peak": term, "total": term}
        sure = [looks.logits[f"scale{i + 1}"].softmax(dim=1).gather(1, labels[:, None]) for i in range(SCALES)]
        term = rank_loss(torch.cat(sure, dim=1))
        return {"rank": term, "total": term}

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.first_epoch = epoch == 0


def rank_loss(p: Tensor) -> Tensor:
    """Probabilities (B, scales) of the true class → sum over s of max(0, p_s - p_(s+1) + 0.05), mean over photos."""
    return (p[:, :-1] - p[:, 1:] + MARGIN).clamp_min(0).sum(dim=1).mean()


def square_network(channels: int, side: int) -> nn.Sequential:
    """F (B, channels, n, n), pooled to side × side cells where n differs → (B, 3) in (0, 1).

    The published one is fully connected on all channels; a 1×1 convolution first spares most weights (ours).
    """
    cells = [nn.Conv2d(channels, CHANNELS, 1), nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    return nn.Sequential(*cells, nn.Linear(CHANNELS * side**2, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 3), nn.Sigmoid())


def square_box(squares: Tensor) -> Tensor:
    """Centre x, y and half side (..., 3) → boxes (..., 4) xyxy."""
    centre, half = squares[..., :2], squares[..., 2:]
    return torch.cat([centre - half, centre + half], dim=-1)


def square_around(peaks: Tensor) -> Tensor:
    """Points (..., 2) xy in [0, 1] → the first square (..., 3) to learn for each, moved inside."""
    return torch.cat([peaks.clamp(FIRST, 1 - FIRST), torch.full_like(peaks[..., :1], FIRST)], dim=-1)


def peak(features: Tensor) -> Tensor:
    """F (B, C, h, w) → the centre (B, 2) xy in [0, 1] of the most active cell."""
    attention = activation(features)
    height, width = attention.shape[1:]
    cell = attention.flatten(1).argmax(dim=1)
    return torch.stack([(cell % width + 0.5) / width, (cell // width + 0.5) / height], dim=1)


@contextmanager
def frozen(*layers: nn.Module) -> Iterator[None]:
    """Layers in training that meanwhile get no gradient and keep the statistics of their BatchNorm."""
    for layer in layers:
        layer.eval().requires_grad_(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.train().requires_grad_(True)
