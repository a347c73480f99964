"""STN, the spatial transformer (Jaderberg et al. 2015) with one crop: only the cross-entropy teaches where to look.

A second backbone sees the photo and answers theta, bilinear sampling cuts that region out of the photo, and the
classifier sees the crop. No map and no box guides it, so it tends to stay near the whole photo, where it starts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.affnet import start_at
from fgvclib.model.backbones import create_backbone, feature_maps
from fgvclib.model.geometry import crop, resize, theta_to_box
from fgvclib.model.gradients import clip_gradient
from fgvclib.systems.base import Looks, System

# Ours: with neither, the crop of drawn birds left the bird in the first epoch. The limit is that of the end-to-end
# system's `theta_gradient_limit` for small networks.
LOCALISER_RATE, GRADIENT_LIMIT = 0.01, 0.1


class STN(System):
    """X → resized → localiser → theta = [s_x, s_y, t_x, t_y] → crop of X → classifier.

    The published system has four crops of fixed size; one of free size is what compares with the paper's Figure 1
    (ours). Its localiser is "the same network architecture as for the classification network itself" (paper, 1.1).
    """

    localise = True
    passes = 2.0
    training_passes = 2.0

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        self.output = nn.Linear(self.backbone.num_features, num_classes)
        self.localiser = create_backbone(backbone, pretrained)
        self.theta = nn.Linear(self.localiser.num_features, 4)
        start_at(self.theta, (0, 0, 0, 0))

    def locate(self, images: Tensor) -> Tensor:
        """X (B, 3, H, W) → theta (B, 4) in float32; at the start [1, 1, 0, 0], the whole photo.

        Scales are bounded to (0, 2) and the centre to the photo, as a crop beside it would never learn again (ours).
        """
        x = feature_maps(self.localiser, resize(images, self.crop_size)).mean(dim=(2, 3))
        with torch.autocast(x.device.type, enabled=False):  # half precision would be pixels off
            bounded = F.softsign(self.theta(x.to(self.theta.weight.dtype)))  # (B, 4), in (-1, 1)
        return torch.cat([1 + bounded[:, :2], bounded[:, 2:]], dim=1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        theta = self.locate(images)
        x = self.features(crop(images, clip_gradient(theta, GRADIENT_LIMIT), self.crop_size)).mean(dim=(2, 3))  # (B, C)
        return Looks({"main": self.output(x)}, boxes=theta_to_box(theta.detach()).clamp(0, 1))

    def groups(self) -> list[dict]:
        """The localiser learns a hundredth as fast: a crop that leaves the object early never finds it again (ours)."""
        return [
            {"params": [*self.backbone.parameters(), *self.output.parameters()], "rate": 1.0},
            {"params": [*self.localiser.parameters(), *self.theta.parameters()], "rate": LOCALISER_RATE},
        ]
