"""API-Net: pairs by a double loop, the rank loss by hand, one plain pass for an answer, frozen epochs, parameters."""

import math

import pytest
import torch

from fgvclib.model.backbones import create_backbone
from fgvclib.systems.apinet import APINet, nearest_pairs
from fgvclib.systems.base import Looks

BACKBONE = "efficientnet_lite0.pypi"


@pytest.fixture
def system():
    torch.manual_seed(0)
    return APINet(4, BACKBONE, 128, pretrained=False)


def test_pairs_are_those_of_a_double_loop():
    torch.manual_seed(0)
    x, labels = torch.randn(9, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 3])  # 3 has one photo
    expected = []
    for same in (True, False):
        for i in range(9):
            found, least = None, math.inf
            for j in range(9):
                distance = math.dist(x[i].tolist(), x[j].tolist())
                if i != j and (labels[i] == labels[j]).item() == same and distance < least:
                    found, least = j, distance
            if found is not None:
                expected.append((i, found))
    first, second = nearest_pairs(x, labels)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(expected) == 2 * 9 - 1  # the photo of class 3 has no partner of its class


def test_gates_are_those_of_the_formula(system):
    system.eval()
    images, labels = torch.randn(2, 3, 128, 128), torch.tensor([0, 1])
    with torch.no_grad():
        looks = system(images, labels)
        x = system.features(images).mean(dim=(2, 3))
        w_1, _, w_2 = system.mutual
        assert looks.parts["photo"].tolist() == [0, 1, 1, 0]  # pairs (0, 1) and (1, 0)
        for row, (photo, pair) in enumerate([(0, (0, 1)), (1, (1, 0)), (1, (0, 1)), (0, (1, 0))]):
            m = w_2(w_1(torch.cat([x[pair[0]], x[pair[1]]])))
            gates = {"self": torch.sigmoid(m * x[photo]), "other": torch.sigmoid(m * x[1 - photo])}
            for name, gate in gates.items():
                expected = system.output(x[photo] * (1 + gate))
                assert torch.allclose(looks.logits[name][row], expected, atol=1e-4), (row, name)


def test_loss_by_hand(system):
    probabilities = {"self": [[0.5, 0.5], [0.9, 0.1]], "other": [[0.6, 0.4], [0.8, 0.2]]}
    logits = {name: torch.tensor(values).log() for name, values in probabilities.items()}
    looks = Looks(logits, {"photo": torch.tensor([1, 0])})
    terms = system.loss(looks, torch.tensor([0, 1]))  # true classes of the rows: 1, 0
    assert terms["rank"].item() == pytest.approx(0)  # 0.4 - 0.5 + 0.05 < 0, 0.8 - 0.9 + 0.05 < 0
    terms = system.loss(looks, torch.tensor([1, 0]))  # 0, 1: 0.6 - 0.5 + 0.05 = 0.2 - 0.1 + 0.05 = 0.15
    assert terms["rank"].item() == pytest.approx(0.15, rel=1e-5)
    by_hand = -(math.log(0.5) + math.log(0.1) + math.log(0.6) + math.log(0.2)) / 4
    assert terms["cross_entropy"].item() == pytest.approx(by_hand, rel=1e-5)


def test_photo_without_any_partner_gives_a_loss_of_zero(system):
    looks = system.eval()(torch.randn(1, 3, 128, 128), torch.tensor([2]))
    assert system.loss(looks, torch.tensor([2]))["total"] == 0


def test_answer_is_the_linear_layer_on_the_mean_of_the_map(system):
    system.eval()
    images = torch.randn(3, 3, 128, 128)
    with torch.no_grad():
        expected = system.output(system.backbone(images).mean(dim=(2, 3))).log_softmax(dim=1)
        assert torch.allclose(system.predict(images).log_probabilities, expected, atol=1e-5)


def test_backbone_and_its_statistics_are_frozen_in_the_first_epochs(system):
    frozen = {}
    for epochs in (1, 2, 10, 100):
        frozen[epochs] = 0
        for epoch in range(epochs):
            system.begin_epoch(epoch, epochs)
            frozen[epochs] += system.frozen
    assert frozen == {1: 0, 2: 1, 10: 1, 100: 8}
    system.begin_epoch(0, 10)
    system.train()
    before = {name: value.clone() for name, value in system.backbone.state_dict().items()}
    labels = torch.tensor([0, 0, 1, 1])
    system.loss(system(torch.randn(4, 3, 128, 128), labels), labels)["total"].backward()
    assert all(value.grad is None for value in system.backbone.parameters())
    assert all(value.grad is not None for value in system.mutual.parameters())
    assert all(torch.equal(value, before[name]) for name, value in system.backbone.state_dict().items())
    system.begin_epoch(1, 10)
    system(torch.randn(4, 3, 128, 128), labels)
    assert not torch.equal(system.backbone.bn1.running_mean, before["bn1.running_mean"])
    assert all(value.requires_grad for value in system.parameters())


def test_parameters_and_batches(system):
    backbone = sum(value.numel() for value in create_backbone(BACKBONE, False).parameters())
    mutual = 2 * 1280 * 320 + 320 + 320 * 1280 + 1280
    assert sum(value.numel() for value in system.parameters()) == backbone + mutual + 1280 * 4 + 4
    assert system.batches == (8, 2)
    assert APINet(4, BACKBONE, 448, pretrained=False).batches == (30, 4)
