"""OSME-MAMC (Sun et al. 2018; Hawkeye-FineGrained/Hawkeye): two gates on the channels, for two parts of the object.

Each gate (OSME, "one squeeze, multi-excitation") weights the channels and makes a feature of its own. A metric loss
(MAMC, "multi-attention multi-class") draws together features of the same gate and class, in three graded ways.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.geometry import resize
from fgvclib.systems.base import Looks, System

GATES = 2  # P (Hawkeye)
REDUCTION = 16  # 2048 → 128 → 2048
PUBLISHED_WIDTH = 1024  # of a feature
SMALL_WIDTH = 256  # where F has fewer than 2048 channels (ours)
METRIC_WEIGHT = 0.5  # Hawkeye
BACKBONE_RATE = 0.1  # Hawkeye


class MAMC(System):
    """X → resized → x, the mean of F → per gate m_p = σ(W₂ReLU(W₁x)), f_p = W₃(m_p ⊙ x) → Σ f_p → linear.

    The paper's W₃ sees all cells, 103M weights a gate at 224 pixels. Here it sees their mean (ours).
    """

    batches = (8, 2)  # two photos of a class (paper); eight classes (ours)

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        channels = self.backbone.num_features
        width = PUBLISHED_WIDTH if channels >= 2048 else SMALL_WIDTH
        self.gates = nn.ModuleList(gate(channels) for _ in range(GATES))
        self.embeddings = nn.ModuleList(nn.Linear(channels, width) for _ in range(GATES))
        self.output = nn.Linear(width, num_classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        """Part "features" is (B, P, width), one feature a gate."""
        x = self.features(resize(images, self.crop_size)).mean(dim=(2, 3))  # (B, C)
        features = [embed(m(x) * x) for m, embed in zip(self.gates, self.embeddings, strict=True)]
        features = torch.stack(features, dim=1)
        return Looks({"main": self.output(features.sum(dim=1))}, {"features": features})

    def loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        terms = {
            "cross_entropy": F.cross_entropy(looks.logits["main"], labels),
            "metric": METRIC_WEIGHT * metric_loss(F.normalize(looks.parts["features"].float(), dim=2), labels),
        }
        return terms | {"total": sum(terms.values())}

    def groups(self) -> list[dict]:
        """The backbone learns a tenth as fast as the new layers (Hawkeye)."""
        new = [self.gates, self.embeddings, self.output]
        return [
            {"params": list(self.backbone.parameters()), "rate": BACKBONE_RATE},
            {"params": [parameter for layer in new for parameter in layer.parameters()], "rate": 1.0},
        ]


def gate(channels: int) -> nn.Sequential:
    """x (B, C) → m (B, C) in (0, 1): squeeze and excitation."""
    squeezed = channels // REDUCTION
    return nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels), nn.Sigmoid())


def metric_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Features f (B, P, D), labels (B,) → mean over anchors a of Σ₊ log(1 + Σ₋ exp(a·f₋ - a·f₊)), for three pairs of
    sets, which are summed (Hawkeye). An anchor is not its own positive, as it is in Hawkeye's code (ours)."""
    batch, gates, _ = features.shape
    f = features.flatten(0, 1)  # (BP, D), gate by gate within a photo
    y = labels.repeat_interleave(gates)
    p = torch.arange(gates, device=labels.device).repeat(batch)
    same_class, same_gate = y[:, None] == y, p[:, None] == p  # (BP, BP)
    itself = torch.eye(len(f), dtype=torch.bool, device=labels.device)
    closest = same_class & same_gate
    neither = ~same_class & ~same_gate
    sets = [  # positives f₊ and negatives f₋ of each anchor
        (closest & ~itself, ~closest),
        (same_gate & ~same_class, neither),
        (same_class & ~same_gate, neither),
    ]
    product = f @ f.T  # a·f
    losses = []
    for positive, negative in sets:
        against = product.masked_fill(~negative, torch.finfo(product.dtype).min).logsumexp(dim=1, keepdim=True)
        losses.append((F.softplus(against - product) * positive).sum(dim=1).mean())
    return torch.stack(losses).sum()
