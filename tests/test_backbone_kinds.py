"""Every kind of timm network that is promised works as classifier, teacher and stem, or is refused in a sentence."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.layers import Conv2dSame

from fgvclib.model import system
from fgvclib.model.attnet import AttNet
from fgvclib.model.backbones import OFFLINE, create_backbone, feature_maps, normalisation
from fgvclib.model.folding import Halving
from fgvclib.model.geometry import crop
from fgvclib.model.system import build_model
from fgvclib.model.teacher import Teacher, _skeleton

KINDS = {
    "resnet10t": 512,
    "tresnet_m": 2048,
    "mobilenetv4_conv_small": 960,
    "convnext_atto": 320,
    "swin_tiny_patch4_window7_224": 768,
    "vit_tiny_patch16_224": 192,
}
SIZED = ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224")  # made for 224 pixels


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {tag: create_backbone(tag, pretrained=False).eval() for tag in KINDS}


@pytest.mark.parametrize("tag, channels", KINDS.items())
@pytest.mark.parametrize("size", [64, 96])
def test_features_are_maps_with_the_channels_first(networks, tag, channels, size):
    stride = 16 if tag.startswith("vit") else 32
    with torch.no_grad():
        found = feature_maps(networks[tag], torch.randn(2, 3, size, size))
    assert found.shape == (2, channels, -(-size // stride), -(-size // stride))
    assert networks[tag].num_features == channels


@pytest.mark.parametrize("tag", SIZED)
def test_at_their_own_size_they_are_timms_own_networks(networks, tag):
    own = timm.create_model(tag, num_classes=0, global_pool="").eval()
    own.load_state_dict(networks[tag].state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found, expected = feature_maps(networks[tag], images), own.forward_features(images)
    rows = expected[0, 1:].view(14, 14, -1) if expected.ndim == 3 else expected[0]  # row by row behind the class token
    torch.testing.assert_close(found[0].permute(1, 2, 0), rows)


@pytest.mark.parametrize("tag", KINDS)
def test_live_teachers_map_is_the_mean_over_the_networks_own_features(networks, tag):
    """At another size than the classifier's, and with every buffer that a state dict leaves out."""
    images = torch.randn(2, 3, 96, 96)
    cells = 6 if tag.startswith("vit") else 3
    found = Teacher(tag, 96, 32, cells)(networks[tag], images).numpy()
    with torch.no_grad():
        features = feature_maps(networks[tag], images).numpy()
    expected = sum(features[:, channel] for channel in range(KINDS[tag])) / KINDS[tag]
    assert found[:, 0] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_live_teachers_map_of_a_photo_depends_on_that_photo_alone(networks):
    images = torch.randn(5, 3, 64, 64)
    teacher = Teacher("resnet10t", 64, 32, 2)
    found, alone = teacher(networks["resnet10t"], images), teacher(networks["resnet10t"], images[3:4])
    torch.testing.assert_close(found[3:4], alone, rtol=1e-4, atol=1e-5)


# The stem of resnet10t has its last convolution beside the BatchNorm; mobilenetv4 is of a kind that is left as it is.
@pytest.mark.parametrize("tag, left", [(OFFLINE, 0), ("resnet18", 0), ("resnet10t", 1), ("mobilenetv4_conv_small", 46)])
def test_teacher_without_its_batchnorms_has_the_features_of_the_live_network(tag, left):
    torch.manual_seed(0)
    live, images = create_backbone(tag, pretrained=False), torch.randn(2, 3, 96, 96)
    for module in live.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics and weights of their own, as after a training
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    found = Teacher(tag, 96, 32, 3)(live, images)
    with torch.no_grad():
        expected = feature_maps(live.eval(), images).mean(dim=1, keepdim=True)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in _skeleton(tag, 32, "last").modules()) == left


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("sides", [(8, 8), (9, 9), (8, 11), (7, 10)])
def test_halving_convolution_needs_no_padded_copy_for_what_same_padding_gives(kernel, sides):
    torch.manual_seed(0)
    same = Conv2dSame(4, 8, kernel, stride=2, groups=4, bias=True)
    halving = Halving(same)
    halving.weight, halving.bias = same.weight, same.bias
    images = torch.randn(2, 4, *sides)
    torch.testing.assert_close(halving(images), same(images))


@pytest.mark.parametrize("tag", sorted(set(KINDS) - {"vit_tiny_patch16_224"}))
def test_attnet_sees_a_stage_of_stride_4(tag):
    attnet = AttNet(tag, pretrained=False).eval()
    seen = []
    attnet.stem.register_forward_hook(lambda module, inputs, output: seen.extend(stage.shape for stage in output))
    with torch.no_grad():
        assert attnet(torch.randn(2, 3, 80, 96)).shape == (2, 1, 14, 14)
    assert seen == [(2, attnet.stem.num_features, 16, 16)]


@pytest.mark.parametrize("tag", KINDS)
def test_whole_system_trains_a_step(tiny, tag):
    torch.manual_seed(0)
    config = replace(tiny, backbone=tag, crop_size=48, teacher_size=64, teacher_output_stride=32)
    model = build_model(config, 3, pretrained=False).train()
    images = torch.randn(2, 3, 64, 64)
    assert model.teacher_map(images).shape == (2, 1, 14, 14)
    output = model(images)
    torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 2])).backward()
    first = next(model.classifier.backbone.parameters())
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("tag", sorted(set(KINDS) - {"resnet10t", "convnext_atto"}))
def test_stride_that_a_network_cannot_have_is_refused(tag):
    with pytest.raises(ValueError, match=f"{tag} cannot have an output stride of 16; choose a ResNet, RegNet"):
        create_backbone(tag, pretrained=False, output_stride=16)


@pytest.mark.parametrize(
    "values, what",
    [
        ({"backbone": "levit_128s"}, "levit_128s .*cannot take crops of 32 pixels .*a vision transformer"),
        ({"backbone": "vit_tiny_patch16_224", "crop_size": 40}, "crops of 40 pixels .*divisible by patch size"),
        ({"backbone": "vit_tiny_patch16_224", "teacher_size": 40}, "images of 40: .*divisible by patch size"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tiny, values, what):
    config = replace(tiny, **{"teacher_output_stride": 32} | values)
    with pytest.raises(ValueError, match=what):
        build_model(config, 3, pretrained=False)


def test_check_of_the_shapes_leaves_the_model_as_it_was_built(tiny):
    model = build_model(tiny, 3, pretrained=False)
    assert all(module.training for name, module in model.named_modules() if not name.startswith("teacher"))
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cpu"}
    counts = [count.item() for name, count in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts and set(counts) == {0}


def test_shapes_are_checked_once_for_equal_values(tiny, monkeypatch):
    sizes, real = [], system._check
    monkeypatch.setattr(system, "_FITTING", set())
    monkeypatch.setattr(system, "_check", lambda model, config: sizes.append(config.crop_size) or real(model, config))
    for size in (40, 40, 48, 40):
        build_model(replace(tiny, crop_size=size), 3, pretrained=False)
    assert sizes == [40, 48]


def test_convnext_has_the_asked_stride():
    backbone = create_backbone("convnext_atto", pretrained=False, output_stride=16).eval()
    with torch.no_grad():
        assert feature_maps(backbone, torch.randn(1, 3, 64, 64)).shape[2:] == (4, 4)


# --- each network sees images as it was trained to


def normalised(photo: torch.Tensor, tag: str) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation(tag))
    return (photo - mean) / std


def test_attention_map_does_not_depend_on_the_classifiers_normalisation():
    photo = torch.rand(1, 3, 96, 96)
    maps = []
    for tag in ("resnet10t", "tresnet_m", "vit_tiny_patch16_224"):  # mean 0.485, 0, 0.5
        torch.manual_seed(0)
        attnet = AttNet(OFFLINE, pretrained=False, images_for=tag).eval()
        with torch.no_grad():
            maps.append(attnet(normalised(photo, tag)).numpy())
    torch.manual_seed(0)
    with torch.no_grad():
        own = AttNet(OFFLINE, pretrained=False).eval()(normalised(photo, OFFLINE)).numpy()
    assert all(np.allclose(found, own, rtol=1e-4, atol=1e-5) for found in maps)
    assert np.ptp(own) > 1e-3


def test_built_system_knows_whose_normalisation_its_images_have(tiny):
    photo = torch.rand(1, 3, 64, 64)
    model = build_model(replace(tiny, backbone="resnet10t", attnet_backbone=OFFLINE), 3, pretrained=False).eval()
    bare = AttNet(OFFLINE, pretrained=False, standardise=True).eval()
    bare.load_state_dict(model.attnet.state_dict())
    with torch.no_grad():
        found, expected = model.attnet(normalised(photo, "resnet10t")), bare(normalised(photo, OFFLINE))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_outside_of_the_image_is_the_classifiers_mean_colour():
    mean, _ = normalisation("resnet10t")
    photo = torch.tensor(mean).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    beyond = crop(normalised(photo, "resnet10t"), torch.tensor([[2.0, 2.0, 0.0, 0.0]]), 32)
    assert beyond.abs().max() < 1e-6


# --- a fixed teacher's weights


@pytest.fixture
def fixed():
    teacher = Teacher(OFFLINE, 64, 32, 4, weights="imagenet")
    teacher(torch.nn.Module(), torch.randn(1, 3, 64, 64))
    return teacher


def test_fixed_teacher_moves_but_is_neither_saved_nor_trained(fixed):
    assert not fixed.state_dict() and not list(fixed.parameters())
    assert sum(buffer.numel() for buffer in fixed.buffers()) > 3e6
    moved = fixed.to("meta")
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}


def test_fixed_teacher_keeps_its_statistics_in_training(fixed):
    before = [buffer.clone() for buffer in fixed.buffers()]
    fixed.train()(torch.nn.Module(), torch.randn(4, 3, 64, 64))
    assert not any(module.training for module in fixed.modules())
    assert all(torch.equal(old, new) for old, new in zip(before, fixed.buffers(), strict=True))
