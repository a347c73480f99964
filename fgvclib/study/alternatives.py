"""What one could use in the place of AttNet and AffNet, around the same classifier: the competitors of notebook 08.

All map images X (B, 3, H, W) to logits (B, classes), as `EndToEndModel` does. They exist only to be timed; no
training recipe is given.
"""

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from fgvclib.model.affnet import start_at
from fgvclib.model.backbones import create_backbone
from fgvclib.model.classifier import Classifier
from fgvclib.model.geometry import attention_to_box, box_to_theta, crop, resize

FIVE_CROP_MARGIN = 8 / 7  # the usual 256 pixels for crops of 224


class SpatialTransformer(nn.Module):
    """A full backbone looks for theta, as in Jaderberg et al. (2015): "the same network architecture as for the
    classification network itself" (paper, section 1.1)."""

    def __init__(self, classifier: Classifier, backbone: str, crop_size: int):
        super().__init__()
        self.classifier, self.crop_size = classifier, crop_size
        self.backbone = create_backbone(backbone, pretrained=False)
        self.output = nn.Linear(self.backbone.num_features, 4)
        start_at(self.output)

    def forward(self, images: Tensor) -> Tensor:
        small = resize(images, self.crop_size).contiguous(memory_format=torch.channels_last)
        theta = self.output(self.backbone.forward_features(small).mean(dim=(2, 3)))
        return self.classifier(crop(images, theta, self.crop_size))[0]


class TwoPassCrop(nn.Module):
    """The classifier sees the whole image, then the box of its own attention map at tau: no further parameters."""

    def __init__(self, classifier: Classifier, crop_size: int, threshold: float = 0.3):
        super().__init__()
        self.classifier, self.crop_size, self.threshold = classifier, crop_size, threshold

    def forward(self, images: Tensor) -> Tensor:
        attention = self.classifier.feature_maps(resize(images, self.crop_size)).mean(dim=1, keepdim=True)
        theta = box_to_theta(attention_to_box(attention, self.threshold))
        return self.classifier(crop(images, theta, self.crop_size))[0]


class MultiCrop(nn.Module):
    """Mean probability over the corners and the centre of the image, with `mirrored` also over their mirror images.

    Answers the logarithm of that mean, so that a softmax over it gives the mean itself.
    """

    def __init__(self, classifier: Classifier, crop_size: int, mirrored: bool = False):
        super().__init__()
        self.classifier, self.crop_size = classifier, crop_size
        self.cut = transforms.ten_crop if mirrored else transforms.five_crop

    def forward(self, images: Tensor) -> Tensor:
        views = self.cut(resize(images, round(FIVE_CROP_MARGIN * self.crop_size)), [self.crop_size] * 2)
        probabilities = [self.classifier(view)[0].softmax(dim=1) for view in views]  # one by one: the memory of one
        return torch.stack(probabilities).mean(dim=0).log()
