"""The teacher pass: the attention map M that supervises AttNet and AffNet (paper, section 2; training only)."""

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgvclib.model.backbones import create_backbone
from fgvclib.model.geometry import min_max_normalise, resize

if TYPE_CHECKING:
    from fgvclib.config import Config


class Teacher:
    """Un-cropped images and the classifier's backbone → M (B, 1, n, n), the mean over the last feature maps.

    It has an input size and an output stride of its own, so that a classifier of small crops still gives a map of many
    cells. No gradient flows. BatchNorm works with the running statistics and leaves them alone: the paper does not say,
    and statistics that saw every image twice, whole and cropped, would fit neither.

    The paper's teacher is the network in training: `weights` "live". Three choices are ours. `weights` "imagenet" is a
    network that never changes; its maps, brought to [0, 1], can be computed once per photo. `layer` "stage" looks at
    the last stage, before EfficientNet widens it to its head (in a ResNet the two are one). `mean` "rms" is the root
    mean square over the channels, in which a strong negative response counts too.
    """

    def __init__(
        self,
        backbone: str,
        size: int = 448,
        output_stride: int = 32,
        map_size: int = 14,
        weights: str = "live",
        layer: str = "last",
        mean: str = "mean",
    ):
        self.backbone, self.size, self.output_stride, self.map_size = backbone, size, output_stride, map_size
        self.weights, self.layer, self.mean = weights, layer, mean

    @torch.no_grad()
    def __call__(self, live: nn.Module, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) and the classifier's backbone → M; resized where its grid differs from A's."""
        small = resize(images, self.size).contiguous(memory_format=torch.channels_last)
        if self.weights == "imagenet":
            found = self._fixed.to(images.device)(small)
            return min_max_normalise(resize(found.to(images.dtype), self.map_size))
        weights = {f"backbone.{name}": value for name, value in live.state_dict(keep_vars=True).items()}
        found = functional_call(self._skeleton, weights, small)
        # Under autocast it comes in half precision, which CPUs can not resize.
        return resize(found.to(images.dtype), self.map_size)

    @cached_property
    def _fixed(self) -> nn.Module:
        return self._network(pretrained=True).to(memory_format=torch.channels_last)

    @cached_property
    def _skeleton(self) -> nn.Module:
        with torch.device("meta"):  # the architecture alone: the weights are the live network's
            return self._network(pretrained=False)

    def _network(self, pretrained: bool) -> nn.Module:
        backbone = create_backbone(self.backbone, pretrained, self.output_stride)
        return _ChannelMean(backbone, self.layer, self.mean).eval()


class _ChannelMean(nn.Module):
    """Images (B, 3, H, W) → one map (B, 1, h, w) over the channels of a backbone's last layer or stage."""

    def __init__(self, backbone: nn.Module, layer: str, mean: str):
        super().__init__()
        self.backbone, self.layer, self.mean = backbone, layer, mean

    def forward(self, images: Tensor) -> Tensor:
        if self.layer == "stage":
            (features,) = self.backbone.forward_intermediates(images, indices=[-1], intermediates_only=True)
        else:
            features = self.backbone.forward_features(images)  # (B, C, h, w)
        if self.mean == "rms":
            return features.square().mean(dim=1, keepdim=True).sqrt()
        return features.mean(dim=1, keepdim=True)


def build_teacher(config: "Config", size: int | None = None) -> Teacher:
    """The teacher that a configuration describes, with another input size where one is given."""
    return Teacher(
        config.backbone,
        size or config.teacher_size,
        config.teacher_output_stride,
        config.map_size,
        config.teacher_weights,
        config.teacher_layer,
        config.teacher_mean,
    )
