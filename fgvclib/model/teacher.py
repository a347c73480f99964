"""The teacher pass: the attention map M that supervises AttNet and AffNet (paper, section 2; training only)."""

from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgvclib.model.backbones import create_backbone, feature_maps
from fgvclib.model.geometry import min_max_normalise, resize

if TYPE_CHECKING:
    from fgvclib.config import Config


class Teacher(nn.Module):
    """Un-cropped images and the classifier's backbone → M (B, 1, n, n), the mean over the last feature maps.

    It has an input size and an output stride of its own, so that a classifier of small crops still gives a map of many
    cells. No gradient flows. BatchNorm works with the running statistics and leaves them alone: the paper does not say,
    and statistics that saw every image twice, whole and cropped, would fit neither.

    The paper's teacher is the network in training: `weights` "live". Three choices are ours. `weights` "imagenet" is a
    network that never changes; its maps, brought to [0, 1], can be computed once per photo. `layer` "stage" looks at
    the last stage, before EfficientNet widens it to its head (in a ResNet the two are one). `mean` "rms" is the root
    mean square over the channels, in which a strong negative response counts too.

    A fixed network is loaded on first use. It moves with `.to()`, but is neither trained nor part of the state dict:
    its weights are those of its tag, and would only make checkpoints larger.
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
        super().__init__()
        self.backbone, self.size, self.output_stride, self.map_size = backbone, size, output_stride, map_size
        self.weights, self.layer, self.mean = weights, layer, mean
        self.fixed: nn.Module | None = None

    @torch.no_grad()
    def forward(self, live: nn.Module, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) and the classifier's backbone → M; resized where its grid differs from A's."""
        small = resize(images, self.size).contiguous(memory_format=torch.channels_last)
        if self.weights == "imagenet":
            found = self._fixed().to(images.device)(small)
            return min_max_normalise(resize(found.to(images.dtype), self.map_size))
        tensors = chain(live.named_parameters(), live.named_buffers())  # not state_dict(), which lacks some buffers
        found = functional_call(self._skeleton, {f"backbone.{name}": value for name, value in tensors}, small)
        # Under autocast it comes in half precision, which CPUs cannot resize.
        return resize(found.to(images.dtype), self.map_size)

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher stays in evaluation mode."""
        return super().train(False)

    def _fixed(self) -> nn.Module:
        if self.fixed is None:
            self.fixed = _without_state(self._network(pretrained=True).to(memory_format=torch.channels_last))
        return self.fixed

    @cached_property
    def _skeleton(self) -> nn.Module:  # cached beside the sub-modules: it has no weights to move or to save
        with torch.device("meta"):  # the architecture alone: the weights are the live network's
            return self._network(pretrained=False)

    def _network(self, pretrained: bool) -> nn.Module:
        backbone = create_backbone(self.backbone, pretrained, self.output_stride)
        return _ChannelMean(backbone, self.layer, self.mean).eval()


def _without_state(network: nn.Module) -> nn.Module:
    """Turn all weights into buffers that `.to()` moves and `state_dict()` leaves out."""
    for module in network.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            module._parameters.pop(name, None)
            module._buffers.pop(name, None)
            module.register_buffer(name, value.detach(), persistent=False)
    return network


class _ChannelMean(nn.Module):
    """Images (B, 3, H, W) → one map (B, 1, h, w) over the channels of a backbone's last layer or stage."""

    def __init__(self, backbone: nn.Module, layer: str, mean: str):
        super().__init__()
        self.backbone, self.layer, self.mean = backbone, layer, mean

    def forward(self, images: Tensor) -> Tensor:
        if self.layer == "stage":
            (features,) = self.backbone.forward_intermediates(images, indices=[-1], intermediates_only=True)
        else:
            features = feature_maps(self.backbone, images)  # (B, C, h, w)
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
