"""The teacher pass: the attention map M that supervises AttNet and AffNet (paper, section 2; training only)."""

from collections.abc import Iterable
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fgvclib.model.backbones import create_backbone, feature_maps
from fgvclib.model.folding import Folded
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
    mean square over the channels, in which a strong negative response counts too. "ddt" is deep descriptor
    transforming (see `principal_component`), "ddt+rms" the mean of both, each in [0, 1]. These two need a network that
    never changes, and the component of its features; ValueError where it is missing.

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

    @property
    def needs_component(self) -> bool:
        """Whether a map needs the principal component of the training photos' features."""
        return self.mean.startswith("ddt")

    def features_of(self, backbone: nn.Module) -> int:
        """Number C of the features that a map is made from."""
        return backbone.feature_info[-1]["num_chs"] if self.layer == "stage" else backbone.num_features

    @torch.no_grad()
    def forward(self, live: nn.Module, images: Tensor, component: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) and the classifier's backbone → M; resized where its grid differs from A's.

        `component` (2, C) is that of `principal_component`.
        """
        if self.weights == "imagenet":
            return self.to_map(self.fixed_features(images).to(images.dtype), component)
        features = self._features(live, images)
        # Under autocast they come in half precision; a map has that of the images.
        return resize(_over_channels(features.to(images.dtype), self.mean), self.map_size)

    @torch.no_grad()
    def fixed_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) → the features (B, C, h, w) of the ImageNet network."""
        return self._features(self._fixed().to(images.device), images)

    def to_map(self, features: Tensor, component: Tensor | None = None) -> Tensor:
        """Features (B, C, h, w) of the ImageNet network → M (B, 1, n, n) in [0, 1]."""
        if not self.needs_component:
            found = _over_channels(features, self.mean)
        elif component is None:
            raise ValueError(f"teacher_mean {self.mean!r} needs the component of data.teacher_maps.teacher_component.")
        else:
            found = _along(features, component)
            if self.mean == "ddt+rms":
                found = (min_max_normalise(found) + min_max_normalise(_over_channels(features, "rms"))) / 2
        return min_max_normalise(resize(found, self.map_size))

    def _features(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """Features (B, C, h, w) of the images with the weights and statistics of `backbone`."""
        tensors = chain(backbone.named_parameters(), backbone.named_buffers())  # not state_dict(), which lacks some
        skeleton = _skeleton(self.backbone, self.output_stride, self.layer)
        sized = resize(images, self.size).contiguous(memory_format=torch.channels_last)
        return skeleton({f"backbone.{name}": value for name, value in tensors}, sized)

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher stays in evaluation mode."""
        return super().train(False)

    def _fixed(self) -> nn.Module:
        if self.fixed is None:
            network = create_backbone(self.backbone, output_stride=self.output_stride)
            self.fixed = _without_state(network.to(memory_format=torch.channels_last))
        return self.fixed


@cache  # making one takes as long as a training step of small photos
def _skeleton(backbone: str, output_stride: int, layer: str) -> Folded:
    """The architecture alone, for all teachers of its kind: the weights are a live network's, or the fixed one's."""
    with torch.device("meta"):
        return Folded(_Features(create_backbone(backbone, pretrained=False, output_stride=output_stride), layer))


def _without_state(network: nn.Module) -> nn.Module:
    """Turn all weights into buffers that `.to()` moves and `state_dict()` leaves out."""
    for module in network.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            module._parameters.pop(name, None)
            module._buffers.pop(name, None)
            module.register_buffer(name, value.detach(), persistent=False)
    return network


class _Features(nn.Module):
    """Images (B, 3, H, W) → features (B, C, h, w) of a backbone's last layer or stage."""

    def __init__(self, backbone: nn.Module, layer: str):
        super().__init__()
        self.backbone, self.layer = backbone, layer

    def forward(self, images: Tensor) -> Tensor:
        if self.layer == "last":
            return feature_maps(self.backbone, images)
        (features,) = self.backbone.forward_intermediates(images, indices=[-1], intermediates_only=True)
        return features


def _over_channels(features: Tensor, mean: str) -> Tensor:
    """(B, C, h, w) → (B, 1, h, w)."""
    if mean == "rms":
        return features.square().mean(dim=1, keepdim=True).sqrt()
    return features.mean(dim=1, keepdim=True)


def _along(features: Tensor, component: Tensor) -> Tensor:
    """(B, C, h, w) → (B, 1, h, w): how far each cell lies from the mean along the principal axis."""
    mean, axis = component.to(features)
    return torch.einsum("bchw,c->bhw", features - mean[:, None, None], axis).unsqueeze(1)


def principal_component(batches: Iterable[Tensor]) -> Tensor:
    """Feature maps (B, C, h, w) of many photos, batch by batch → (2, C): the cells' mean and first principal axis.

    Deep descriptor transforming (Wei et al., "Unsupervised object discovery and co-localization by deep descriptor
    transforming", 2017): what photos have in common varies most between its cells and the others. An axis has no sign;
    here the middle of the maps, half as wide and high, outweighs the border (ours). One pass, in double precision.
    Raises ValueError for maps below 3x3 cells.
    """
    places = products = cells = 0
    for features in batches:
        features = features.double()
        vectors = features.transpose(0, 1).flatten(1)  # (C, B h w)
        products = products + vectors @ vectors.T
        places = places + features.sum(dim=0)  # (C, h, w)
        cells += vectors.shape[1]
    mean = places.sum(dim=(1, 2)) / cells
    axis = torch.linalg.eigh(products / cells - torch.outer(mean, mean)).eigenvectors[:, -1]
    response = torch.tensordot(axis, places, dims=1)  # (h, w)
    h, w = response.shape
    if min(h, w) < 3:
        raise ValueError(f"The teacher's maps have {h}x{w} cells, of which none is in the middle; raise teacher_size.")
    above, beside = max(1, h // 4), max(1, w // 4)
    middle = torch.zeros_like(response, dtype=torch.bool)
    middle[above : h - above, beside : w - beside] = True
    if response[middle].mean() < response[~middle].mean():
        axis = -axis
    return torch.stack([mean, axis]).float()


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
