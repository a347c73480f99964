"""The teacher pass: the attention map M that supervises AttNet and AffNet (paper, section 2; training only)."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgvclib.attnet import resize
from fgvclib.backbones import create_backbone


class Teacher:
    """Un-cropped images and the classifier's backbone → M (B, 1, n, n), the mean over the last feature maps.

    Owns no weights: it runs the live backbone's, at an input size and an output stride of its own, so that a classifier
    of small crops still gives a map of many cells. No gradient flows. BatchNorm works with the running statistics and
    leaves them alone: the paper does not say, and statistics that saw every image twice, whole and cropped, would fit
    neither.
    """

    def __init__(self, backbone: str, size: int = 448, output_stride: int = 32, map_size: int = 14):
        self.size, self.map_size = size, map_size
        with torch.device("meta"):
            self.architecture = create_backbone(backbone, pretrained=False, output_stride=output_stride).eval()

    @torch.no_grad()
    def __call__(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) and a backbone of the same architecture → M; resized where its grid differs from A's."""
        weights = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
        small = resize(images, self.size).contiguous(memory_format=torch.channels_last)
        features = functional_call(self.architecture, weights, small)  # (B, C, h, w)
        return resize(features.mean(dim=1, keepdim=True), self.map_size)
