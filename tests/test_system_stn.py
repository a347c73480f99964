"""STN: the start at the whole photo, the gradient in theta, boxes that always meet the photo, the parameters."""

import torch

from fgvclib.model.backbones import create_backbone
from fgvclib.systems import stn
from fgvclib.systems.stn import STN

BACKBONE = "test_efficientnet"  # of timm: an eighth of Lite0's work
SIZE = 64


def network() -> STN:
    torch.manual_seed(0)
    return STN(4, BACKBONE, SIZE, pretrained=False).eval()


def test_the_start_is_bit_equal_to_the_classifier_on_the_photo():
    system, images = network(), torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        looks = system(images)
        assert torch.equal(looks.logits["main"], system.output(system.features(images).mean(dim=(2, 3))))
    assert torch.equal(looks.boxes, torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2))


def test_the_gradient_in_theta_is_that_of_differences(monkeypatch):
    monkeypatch.setattr(stn, "GRADIENT_LIMIT", None)
    system, images, labels = network().double(), torch.randn(2, 3, 80, 80).double(), torch.tensor([0, 1])
    with torch.no_grad():
        system.theta.bias.copy_(torch.tensor([-0.3, -0.2, 0.1, -0.1]))

    def loss() -> torch.Tensor:
        return system.loss(system(images), labels)["total"]

    loss().backward()
    found = system.theta.bias.grad.clone()
    step = 1e-8  # small: bilinear sampling and ReLU have kinks
    for i in range(4):
        with torch.no_grad():
            system.theta.bias[i] += step
            above = loss()
            system.theta.bias[i] -= 2 * step
            below = loss()
            system.theta.bias[i] += step
        assert torch.isclose((above - below) / (2 * step), found[i], rtol=0, atol=1e-3 * found.abs().max())


def test_no_photo_moves_theta_by_more_than_the_limit():
    system, images = network(), torch.randn(1, 3, 80, 80)
    with torch.no_grad():
        system.output.weight.mul_(1000)  # a gradient far above it
        wrong = system(images).logits["main"].argmin(dim=1)
    system.loss(system(images), wrong)["total"].backward()
    assert torch.isclose(system.theta.bias.grad.norm(), torch.tensor(stn.GRADIENT_LIMIT))  # the bounds have slope 1


def test_even_a_localiser_gone_wild_looks_at_the_photo():
    system = network()
    with torch.no_grad():
        system.theta.bias.copy_(torch.tensor([-50.0, 50.0, 90.0, -90.0]))
        boxes = system(torch.randn(2, 3, SIZE, SIZE)).boxes
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] > boxes[:, :2]).all()


def test_the_localiser_learns_a_hundredth_as_fast():
    system = network()
    rates = {id(value): group["rate"] for group in system.groups() for value in group["params"]}
    assert rates[id(system.theta.bias)] == rates[id(system.localiser.conv_stem.weight)] == 0.01
    assert rates[id(system.output.bias)] == rates[id(system.backbone.conv_stem.weight)] == 1


def test_parameters():
    own = sum(value.numel() for value in network().parameters())
    backbone = sum(value.numel() for value in create_backbone(BACKBONE, pretrained=False).parameters())
    assert own == 2 * backbone + (256 * 4 + 4) + (256 * 4 + 4)  # classes, theta
