"""What holds of every system of Table 3; what is particular to one is in `test_system_<name>.py`."""

import math

import pytest
import torch
from torch import nn

from fgvclib.systems import SYSTEMS

CLASSES, SIZE, IMAGE = 4, 128, 160
BACKBONE = "efficientnet_lite0.pypi"


@pytest.fixture(params=SYSTEMS)
def system(request):
    torch.manual_seed(0)
    return SYSTEMS[request.param](CLASSES, BACKBONE, SIZE, pretrained=False)


@pytest.fixture
def batch():
    """Eight photos, two of each class, each class of a colour of its own."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(CLASSES).repeat_interleave(2)
    colours = torch.randn(CLASSES, 3, 1, 1, generator=generator)[labels]
    return {"image": colours + torch.randn(8, 3, IMAGE, IMAGE, generator=generator) / 2, "label": labels}


def count_pixels(system) -> list[int]:
    """A list that grows by B H W whenever a network looks at colours."""
    counted = []
    looking = [layer for layer in system.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels == 3]
    assert looking
    for layer in looking:
        layer.register_forward_pre_hook(lambda layer, inputs: counted.append(inputs[0][:, 0].numel()))
    return counted


def train(system, batch, steps: int, rate: float = 0.003) -> list[float]:
    """The total loss of each of some passes over one batch."""
    groups = [{"params": group["params"], "lr": rate * group["rate"]} for group in system.groups()]
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    losses = []
    for _ in range(steps):
        total = 0.0
        for terms in system.steps(batch, system):
            optimiser.zero_grad()
            terms["total"].backward()
            optimiser.step()
            total += terms["total"].item()
        losses.append(total)
    return losses


def test_an_answer_costs_the_stated_passes(system, batch):
    counted = count_pixels(system.eval())
    with torch.no_grad():
        system.predict(batch["image"])
    assert sum(counted) == pytest.approx(system.passes * 8 * SIZE**2, rel=0.01)


def test_a_training_step_costs_the_stated_passes(system, batch):
    system.train()
    system.begin_epoch(5, 10)
    counted = count_pixels(system)
    train(system, batch, steps=1)
    assert sum(counted) == pytest.approx(system.training_passes * 8 * SIZE**2, rel=0.01)


def test_an_answer_is_a_distribution_and_the_same_twice(system, batch):
    system.eval()
    with torch.no_grad():
        first, second = system.predict(batch["image"]), system.predict(batch["image"])
    assert first.log_probabilities.shape == (8, CLASSES)
    assert torch.equal(first.log_probabilities, second.log_probabilities)
    assert torch.allclose(first.log_probabilities.exp().sum(dim=1), torch.ones(8), atol=1e-5)
    if first.boxes is not None:
        assert first.boxes.shape == (8, 4)
        assert (first.boxes >= 0).all() and (first.boxes <= 1).all()
        assert (first.boxes[:, 2:] > first.boxes[:, :2]).all()


def test_every_parameter_learns(system, batch):
    """Over one batch, after the phases in which some are frozen: all of them, through one of the batch's steps."""
    system.train()
    system.begin_epoch(5, 10)
    moved = set()
    for terms in system.steps(batch, system):
        system.zero_grad()
        terms["total"].backward()
        moved |= {name for name, value in system.named_parameters() if value.grad is not None and value.grad.any()}
    assert {name for name, _ in system.named_parameters()} - moved == set(system.without_gradient)


def test_groups_hold_every_parameter_once(system):
    held = [id(parameter) for group in system.groups() for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in system.parameters())


def test_the_terms_sum_to_the_total(system, batch):
    system.train()
    system.begin_epoch(5, 10)
    for terms in system.steps(batch, system):
        assert math.isclose(
            sum(float(v) for k, v in terms.items() if k != "total"), float(terms["total"]), rel_tol=1e-4
        )


def test_the_loss_falls_on_eight_photos(system, batch):
    system.train()
    system.begin_epoch(5, 10)
    losses = train(system, batch, steps=12)
    assert sum(losses[-3:]) < sum(losses[:3])
