"""What one could use in the place of AttNet and AffNet, around the same classifier: the competitors of notebook 08.

All map images X (B, 3, H, W) to logits (B, classes), as `EndToEndModel` does. They exist only to be timed; no
training recipe is given. The spatial transformer, which also trains, is `systems.stn`.
"""

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from fgvclib.model.classifier import Classifier
from fgvclib.model.geometry import attention_to_box, box_to_theta, crop, resize

FIVE_CROP_MARGIN = 8 / 7  # the usual 256 pixels for crops of 224


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
