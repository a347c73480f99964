"""AttNet: 64 pixels in, 14x14 cells out, with the pre-trained stem."""

import pytest
import torch

from fgvclib.model.attnet import AttNet
from fgvclib.model.backbones import OFFLINE, create_backbone
from fgvclib.model.geometry import resize
from fgvclib.study.efficiency import million_multiply_adds


@pytest.fixture(scope="module")
def attnet():
    return AttNet(OFFLINE).eval()


@pytest.mark.parametrize("height, width", [(64, 64), (32, 32), (448, 448), (97, 203)])
def test_network_sees_64_pixels_whatever_the_image(attnet, height, width):
    seen = []
    handle = attnet.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    attention = attnet(torch.randn(1, 3, height, width))
    handle.remove()
    assert seen == [(1, 3, 64, 64)]
    assert attention.shape == (1, 1, 14, 14)


@pytest.mark.parametrize("backbone, map_size", [(OFFLINE, 14), (OFFLINE, 7), (OFFLINE, 20), ("resnet50", 14)])
def test_map_has_the_asked_number_of_cells(backbone, map_size):
    attnet = AttNet(backbone, pretrained=False, map_size=map_size)
    assert attnet(torch.randn(2, 3, 80, 80)).shape == (2, 1, map_size, map_size)
    assert attnet.input_size == 4 * (map_size + 2)


def test_paper_default_has_the_parameters_of_resnet50_up_to_layer1_and_a_3x3_convolution():
    attnet = AttNet("resnet50", pretrained=False)
    head = 256 * 9 + 1
    assert sum(p.numel() for p in attnet.parameters()) == 9536 + 215808 + head


def test_stem_starts_with_the_pretrained_weights(attnet):
    pretrained = create_backbone(OFFLINE, pretrained=True).state_dict()
    stem = attnet.stem.layers.state_dict()
    assert len(stem) > 20
    for name, value in stem.items():
        assert torch.equal(value, pretrained[name]), name


def test_stem_without_pretraining_has_other_weights():
    pretrained = create_backbone(OFFLINE, pretrained=True).state_dict()
    stem = AttNet(OFFLINE, pretrained=False).stem.layers.state_dict()
    assert not torch.equal(stem["conv_stem.weight"], pretrained["conv_stem.weight"])


def test_attention_moves_with_the_object(attnet):
    """A cell of the map answers to its own part of the image."""
    images = torch.zeros(1, 3, 64, 64)
    images[..., 8:16, 48:56] = 3.0
    with torch.no_grad():
        change = (attnet(images) - attnet(torch.zeros(1, 3, 64, 64))).abs()[0, 0]
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    weights = change / change.sum()
    assert (weights * rows).sum() == pytest.approx(12 / 4 - 1.5, abs=1)
    assert (weights * columns).sum() == pytest.approx(52 / 4 - 1.5, abs=1)


def test_standardised_features_have_mean_0_and_variance_1_in_training():
    attnet = AttNet(OFFLINE, standardise=True)
    seen = []
    attnet.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    attnet(torch.randn(4, 3, 64, 64))
    torch.testing.assert_close(seen[0].mean(dim=(0, 2, 3)), torch.zeros(24), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen[0].var(dim=(0, 2, 3)), torch.ones(24), atol=1e-2, rtol=0)


def test_standardising_adds_no_parameters():
    plain, standardised = (sum(p.numel() for p in AttNet(OFFLINE, False, 14, on).parameters()) for on in (False, True))
    assert plain == standardised


@pytest.mark.parametrize("size", [64, 96])
def test_two_strides_meet_on_one_grid_before_the_convolution(size):
    attnet = AttNet(OFFLINE, standardise=True, stride=(8, 16), size=size).eval()
    images, seen = torch.randn(2, 3, 128, 128), []
    attnet.stem.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], *output]))
    with torch.no_grad():
        attention = attnet(images)
        pixels, fine, coarse = seen
        both = torch.cat([resize(fine, 16), resize(coarse, 16)], dim=1)  # the running statistics are still 0 and 1
        expected = torch.nn.functional.conv2d(both / (1 + 1e-5) ** 0.5, attnet.head.weight, attnet.head.bias)
    assert [stage.shape[1:] for stage in seen] == [
        (3, size, size),
        (40, size // 8, size // 8),
        (112, size // 16, size // 16),
    ]
    torch.testing.assert_close(attention, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "backbone, options, mmac",
    [("resnet50", {}, 64.6), (OFFLINE, {}, 6.2), (OFFLINE, {"stride": (8, 16)}, 20.1),
     (OFFLINE, {"stride": (8, 16), "size": 96}, 45.0), (OFFLINE, {"stride": (8, 16), "size": 112}, 61.1)],
)  # fmt: skip
def test_price_in_million_multiply_adds(backbone, options, mmac):
    """The paper's costs 64.6; what ours may cost as well."""
    attnet = AttNet(backbone, pretrained=False, **options).eval()
    assert million_multiply_adds(attnet, torch.zeros(1, 3, 128, 128)) == pytest.approx(mmac, abs=0.1)


def test_gradient_reaches_every_parameter(attnet):
    attnet(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in attnet.parameters())
    attnet.zero_grad()


def test_shrinking_filters_out_what_is_too_fine():
    stripes = torch.tensor([1.0, 1, 1, -3]).repeat(64).expand(1, 1, 256, 256)  # mean 0, period of one new pixel
    small = resize(stripes, 64)
    assert small[..., 2:-2].abs().max() < 1e-5


def test_resize_to_the_same_size_returns_the_images_themselves():
    images = torch.randn(1, 3, 64, 64)
    assert resize(images, 64) is images


def test_stages_of_several_strides_are_joined_in_half_precision_too():
    """`precision` bf16, as on GPUs: the resize between them has no half-precision form on CPUs."""
    torch.manual_seed(0)
    attnet, images = AttNet(OFFLINE, stride=(8, 16), size=96, standardise=True).eval(), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = attnet(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = attnet(images).float()
    assert (found - expected).abs().max() < 0.2 * expected.std()
