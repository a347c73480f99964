"""iSQRT-COV (Li et al. 2018; jiangtaoxie/fast-MPN-COV): classify how channels vary together, not how strong they are.

The covariance of the channels over all cells takes the place of their mean. Its matrix square root, by a few
Newton-Schulz iterations of matrix products alone, keeps single large directions from drowning the rest.
"""

import torch
from torch import Tensor, nn

from fgvclib.model.geometry import resize
from fgvclib.systems.base import Looks, System

OUTPUT_STRIDE = 16  # the last stage keeps its input's resolution (fast-MPN-COV)
PUBLISHED_CHANNELS = 256  # d (fast-MPN-COV)
SMALL_CHANNELS = 64  # d where there are fewer than 256 cells, as fewer cells than channels make Σ singular (ours)
ITERATIONS = 5  # fast-MPN-COV
OUTPUT_RATE = 5.0  # fast-MPN-COV


class ISqrtCov(System):
    """X → resized → F at stride 16 → 1×1 convolution to d channels → Σ → its square root, upper triangle → linear."""

    smallest_crop = 2 * OUTPUT_STRIDE  # a single cell has no covariance

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained, OUTPUT_STRIDE)
        undo_dilation(self.backbone)
        cells = (crop_size // OUTPUT_STRIDE) ** 2  # M
        d = PUBLISHED_CHANNELS if cells >= PUBLISHED_CHANNELS else SMALL_CHANNELS
        convolution = nn.Conv2d(self.backbone.num_features, d, 1, bias=False)
        self.reduction = nn.Sequential(convolution, nn.BatchNorm2d(d), nn.ReLU())
        self.output = nn.Linear(d * (d + 1) // 2, num_classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        x = self.reduction(self.features(resize(images, self.crop_size))).flatten(2)  # (B, d, M)
        with torch.autocast(x.device.type, enabled=False):  # in half precision the iterations diverge
            root = matrix_root(covariance(x.float()))
        row, column = torch.triu_indices(*root.shape[1:], device=x.device)
        return Looks({"main": self.output(root[:, row, column])})

    def groups(self) -> list[dict]:
        """The linear layer learns five times as fast."""
        return [
            {"params": [*self.backbone.parameters(), *self.reduction.parameters()], "rate": 1.0},
            {"params": list(self.output.parameters()), "rate": OUTPUT_RATE},
        ]


def covariance(x: Tensor) -> Tensor:
    """Channels at M cells (B, d, M) → Σ = x (I - 11ᵀ/M) xᵀ / M, (B, d, d)."""
    centred = x - x.mean(dim=2, keepdim=True)
    return centred @ centred.mT / x.shape[2]


def matrix_root(sigma: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Positive semi-definite Σ (B, d, d), not zero → about Σ^½, (B, d, d), by coupled Newton-Schulz iterations.

    They converge only near I, hence the division by the trace before and the product with its root after.
    """
    trace = sigma.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    identity = torch.eye(sigma.shape[1], dtype=sigma.dtype, device=sigma.device)
    y, z = sigma / trace, identity  # Y = A, Z = I
    for _ in range(iterations):
        t = (3 * identity - z @ y) / 2  # T = ½(3I - ZY)
        y, z = y @ t, t @ z  # Y → A^½, Z → A^-½
    return trace.sqrt() * y


def undo_dilation(backbone: nn.Module) -> None:
    """timm spreads the kernels of a stage that keeps its resolution; fast-MPN-COV does not."""
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d) and layer.dilation != (1, 1):
            if not isinstance(layer.padding, str):
                layer.padding = tuple(p // d for p, d in zip(layer.padding, layer.dilation, strict=True))
            layer.dilation = (1, 1)
