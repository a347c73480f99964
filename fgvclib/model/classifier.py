"""The classifier: backbone, global k-max pooling, embedding layer, output layer ([ELoPE]; paper, section 3.2)."""

import torch
from torch import Tensor, nn

from fgvclib.model.backbones import create_backbone, feature_maps


class GlobalKMaxPool2d(nn.Module):
    """Mean of the k largest values of each feature map: (B, C, h, w) → (B, C). [ELoPE]: k = 4.

    k = 1 is global max pooling, k = h * w global average pooling; a map with fewer cells than k is averaged.
    """

    def __init__(self, k: int = 4):
        super().__init__()
        self.k = k

    def forward(self, features: Tensor) -> Tensor:
        cells = features.flatten(2)  # (B, C, h * w)
        return cells.topk(min(self.k, cells.shape[2]), dim=2).values.mean(dim=2)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class Classifier(nn.Module):
    """images (B, 3, H, W) → logits (B, classes) and embedding (B, embedding_dim)."""

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet101.tv_in1k",
        pretrained: bool = True,
        kmax: int = 4,
        embedding_dim: int = 512,
    ):
        super().__init__()
        self.backbone = create_backbone(backbone, pretrained)
        for module in self.backbone.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = False  # in place, autograd copies what is overwritten: 3 % of a training step
        self.pool = GlobalKMaxPool2d(kmax)
        self.embedding = nn.Sequential(
            nn.Linear(self.backbone.num_features, embedding_dim), nn.BatchNorm1d(embedding_dim), nn.PReLU()
        )
        self.output = nn.Linear(embedding_dim, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.embedding(self.pool(self.feature_maps(images)))
        return self.output(embedding), embedding

    def feature_maps(self, images: Tensor) -> Tensor:
        """Output of the last layer: (B, C, H/stride, W/stride)."""
        return feature_maps(self.backbone, images.contiguous(memory_format=torch.channels_last))
