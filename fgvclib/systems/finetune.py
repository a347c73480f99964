"""Plain fine-tuning: a pre-trained backbone, the mean of its last map, one linear layer. What all others must beat."""

from torch import Tensor, nn

from fgvclib.model.geometry import resize
from fgvclib.systems.base import Looks, System


class FineTune(System):
    """X → resized to crop_size → logits W x + b, where x is the mean of F over its cells."""

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        self.output = nn.Linear(self.backbone.num_features, num_classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        x = self.features(resize(images, self.crop_size)).mean(dim=(2, 3))  # (B, C)
        return Looks({"main": self.output(x)})
