"""API-Net, attentive pairwise interaction (Zhuang et al. 2020; PeiqinZhuang/API-Net): only the training differs.

Two similar photos gate each other's features, each channel by how much it tells the two apart. A photo must be surer
of its class under its own gate than under the other's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.geometry import resize
from fgvclib.systems.base import Looks, System

PUBLISHED_SIZE = 448  # pixels; smaller photos come in smaller batches (ours)
PUBLISHED_BATCH, SMALL_BATCH = (30, 4), (8, 2)  # classes, photos of each: PeiqinZhuang/API-Net; ours
FROZEN_SHARE = 0.08  # of the epochs, without the backbone: 8 of 100 (PeiqinZhuang/API-Net)
REDUCTION = 4  # W1 has a quarter of C outputs: 512 of 2048 (PeiqinZhuang/API-Net); the share is ours
DROPOUT = 0.5  # PeiqinZhuang/API-Net
MARGIN = 0.05  # of the rank loss (PeiqinZhuang/API-Net)


class APINet(System):
    """X → resized to crop_size → x, the mean of F → the linear layer; in training on gated x of pairs of photos."""

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        channels = self.backbone.num_features
        self.batches = PUBLISHED_BATCH if crop_size >= PUBLISHED_SIZE else SMALL_BATCH
        self.mutual = nn.Sequential(  # no activation between the two (PeiqinZhuang/API-Net)
            nn.Linear(2 * channels, channels // REDUCTION),  # W1
            nn.Dropout(DROPOUT),
            nn.Linear(channels // REDUCTION, channels),  # W2
        )
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(channels, num_classes)
        self.frozen = False

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        """With labels: logits "self" and "other" (2P, K) of P pairs; the part "photo" (2P,) says whose they are."""
        x = self.features(resize(images, self.crop_size)).mean(dim=(2, 3))  # (B, C)
        main = self.output(x)
        if labels is None:
            return Looks({"main": main})
        first, second = nearest_pairs(x, labels)
        x_1, x_2 = x[first], x[second]
        m = self.mutual(torch.cat([x_1, x_2], dim=1))  # m = W2 W1 [x_1; x_2]
        g_1, g_2 = (m * x_1).sigmoid(), (m * x_2).sigmoid()  # g_i = σ(m ⊙ x_i)
        own = torch.cat([x_1 + g_1 * x_1, x_2 + g_2 * x_2])  # self_i = x_i + g_i ⊙ x_i
        other = torch.cat([x_1 + g_2 * x_1, x_2 + g_1 * x_2])  # other_i = x_i + g_j ⊙ x_i
        logits = {"self": self.output(self.dropout(own)), "other": self.output(self.dropout(other))}
        return Looks({"main": main.detach()} | logits, {"photo": torch.cat([first, second])})

    def loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of all gated features, and how far own gates fall short of being surer, over all pairs.

        Zero where a batch has no pair.
        """
        labels = labels[looks.parts["photo"]]
        both = [looks.logits["self"], looks.logits["other"]]
        count = max(1, len(labels))
        cross_entropy = sum(F.cross_entropy(logits, labels, reduction="sum") for logits in both) / (2 * count)
        p_self, p_other = (logits.softmax(dim=1).gather(1, labels[:, None]) for logits in both)
        rank = (p_other - p_self + MARGIN).clamp_min(0).sum() / count
        return {"cross_entropy": cross_entropy, "rank": rank, "total": cross_entropy + rank}

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze the backbone in the first 8 % of the epochs, at least one, but never in the last (ours)."""
        self.frozen = epoch < min(max(1, round(FROZEN_SHARE * epochs)), epochs - 1)
        self.backbone.requires_grad_(not self.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "APINet":
        """As always, but a frozen backbone keeps the statistics of its BatchNorm layers."""
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self


def nearest_pairs(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, C), labels (B,) → photo and partner (P,): the nearest of its class, then the nearest of another.

    A photo that has no partner of a kind gives no pair of that kind (ours), so P ≤ 2B; the official code takes the
    batch's first photo. No gradient.
    """
    x = x.detach().float()
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B)
    same = labels[:, None] == labels
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    pairs = []
    for possible in (same & ~itself, ~same):
        first = possible.any(dim=1).nonzero().squeeze(1)
        pairs.append((first, distance.masked_fill(~possible, torch.inf).argmin(dim=1)[first]))
    return torch.cat([pairs[0][0], pairs[1][0]]), torch.cat([pairs[0][1], pairs[1][1]])
