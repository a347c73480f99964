"""ISE, iterative self-attention ensembles (Simonelli et al. 2018): several networks, each sees what the last one marks.

The first classifies the photo, the second the box of the first one's activation, and so on; their answers are averaged.
No code is public, and the comparison in our paper tells the idea alone. Three stages, the map and its threshold, and
that all stages train at once, are ours.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.backbones import create_backbone, feature_maps
from fgvclib.model.geometry import WHOLE_IMAGE, attention_to_box, box_to_theta, crop, nested, resize
from fgvclib.systems.base import Looks, System
from fgvclib.systems.windows import activation

STAGES = 3  # ours
THRESHOLD = 0.3  # tau, that of our paper (ours)


class ISE(System):
    """Logits "stage1" to "stage3", and "main", the logarithm of the mean probability; boxes: what the last stage sees.

    Boxes have no gradient, so that each network learns from its own look alone. That is why they may train together,
    in place of one after the other (ours).
    """

    localise = True
    passes = float(STAGES)
    training_passes = float(STAGES)

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        self.later = nn.ModuleList(create_backbone(backbone, pretrained) for _ in range(STAGES - 1))
        self.outputs = nn.ModuleList(nn.Linear(self.backbone.num_features, num_classes) for _ in range(STAGES))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        boxes = images.new_tensor(WHOLE_IMAGE).expand(len(images), 4)
        view, logits = resize(images, self.crop_size), {}
        for stage, network in enumerate([self.backbone, *self.later]):
            features = feature_maps(network, view.contiguous(memory_format=torch.channels_last))
            logits[f"stage{stage + 1}"] = self.outputs[stage](features.mean(dim=(2, 3)))
            if stage < STAGES - 1:
                marked = attention_to_box(activation(features)[:, None], THRESHOLD)
                boxes = nested(marked, boxes)
                view = crop(images, box_to_theta(boxes), self.crop_size)
        return Looks(logits | {"main": log_mean_probability(list(logits.values()))}, boxes=boxes)

    def loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        """The sum of the stages' cross-entropies."""
        terms = {name: F.cross_entropy(logits, labels) for name, logits in looks.logits.items() if name != "main"}
        return terms | {"total": sum(terms.values())}


def log_mean_probability(logits: list[Tensor]) -> Tensor:
    """Logits (B, K) of some networks → the logarithm of their mean probability, (B, K)."""
    each = torch.stack([values.float().log_softmax(dim=1) for values in logits])
    return each.logsumexp(dim=0) - math.log(len(logits))
