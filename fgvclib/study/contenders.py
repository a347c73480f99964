"""What AffNet is compared with in Table 1 (paper, section 3.1), and SoftHull, a closed form of ours."""

import math

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.affnet import AffineEstimator, AttentionPreprocessor, axis_maxima, start_at
from fgvclib.model.backbones import Stem
from fgvclib.model.geometry import WHOLE_IMAGE, box_to_theta


class FFNN(AffineEstimator):
    """One hidden layer of 32 with BatchNorm: 6500 parameters for a 14x14 map."""

    def build(self, map_size: int) -> None:
        output = nn.Linear(32, 4)
        start_at(output)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(map_size**2, 32), nn.BatchNorm1d(32), nn.ReLU(), output)

    def estimate(self, mask: Tensor) -> Tensor:
        return self.layers(mask)


class ResNetS(AffineEstimator):
    """ResNet-50's stem + layer1, as in AttNet, and a linear layer: 241732 parameters for a 14x14 map."""

    def build(self, map_size: int) -> None:
        self.stem = Stem("resnet50", pretrained=False)
        cells = math.ceil(map_size / 4) ** 2
        self.output = nn.Linear(self.stem.num_features * cells, 4)
        start_at(self.output)

    def estimate(self, mask: Tensor) -> Tensor:
        (features,) = self.stem(mask.expand(-1, 3, -1, -1))
        return self.output(features.flatten(1))


class ResNet50(AffineEstimator):
    """A full ResNet-50 on the map re-scaled to 224x224x3: 23516228 parameters."""

    def build(self, map_size: int) -> None:
        self.network = timm.create_model("resnet50", num_classes=4)
        start_at(self.network.fc)

    def estimate(self, mask: Tensor) -> Tensor:
        large = F.interpolate(mask, (224, 224), mode="bilinear", align_corners=False)
        return self.network(large.expand(-1, 3, -1, -1))


class SoftHull(AffineEstimator):
    """The hull of the mask in closed form (ours; not in the paper): w_tau is its only parameter.

    With p the maxima over rows or columns in [0, 1], the first foreground index is sum_i prod_{j<=i} (1 - p_j); the
    last follows from the reversed vector. Without pre-processing the normalised map itself takes the mask's place.
    """

    def build(self, map_size: int) -> None:
        self.map_size = map_size
        # The pre-processing leaves the background at sigmoid(0) = 0.5, where a product needs 0.
        self.background = 0.5 if isinstance(self.preprocess, AttentionPreprocessor) else 0.0

    def estimate(self, mask: Tensor) -> Tensor:
        foreground = ((mask - self.background) / (1 - self.background)).clamp(0, 1)
        columns, rows = axis_maxima(foreground)
        left, right = self._ends(columns)
        top, bottom = self._ends(rows)
        boxes = torch.stack([left, top, right, bottom], dim=1)
        nothing_found = (right <= left).unsqueeze(1)
        return box_to_theta(torch.where(nothing_found, boxes.new_tensor(WHOLE_IMAGE), boxes))

    def _ends(self, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n) soft flags → soft start and end, as fractions of n."""
        empty = 1 - occupied
        first = empty.cumprod(dim=1).sum(dim=1)
        after_last = empty.flip(1).cumprod(dim=1).sum(dim=1)
        return first / self.map_size, 1 - after_last / self.map_size
