"""ISE: its boxes, its mean and what its stages learn from, against loops."""

import itertools
import math

import pytest
import torch
from torch import nn

from fgvclib.model.backbones import create_backbone
from fgvclib.systems.ise import ISE, log_mean_probability

BACKBONE = "efficientnet_lite0.pypi"
CLASSES, SIZE = 3, 96


@pytest.fixture
def system():
    torch.manual_seed(0)
    return ISE(CLASSES, BACKBONE, SIZE, pretrained=False).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def hull(cells: list[list[float]]) -> list[float]:
    """xyxy in [0, 1] of the cells that reach 0.3 of the way from the least to the greatest."""
    values = [value for row in cells for value in row]
    limit = min(values) + 0.3 * (max(values) - min(values))
    marked = [(y, x) for y, row in enumerate(cells) for x, value in enumerate(row) if value >= limit]
    rows, columns = [y for y, _ in marked], [x for _, x in marked]
    n = len(cells)
    return [min(columns) / n, min(rows) / n, (max(columns) + 1) / n, (max(rows) + 1) / n]


def cut(image: torch.Tensor, box: list[float], size: int) -> torch.Tensor:
    """The box of an image (3, H, W) at size × size pixels, point by point between its neighbours, zero outside."""
    x1, y1, x2, y2 = box
    height, width = image.shape[1:]
    padded = nn.functional.pad(image, (1, 1, 1, 1))
    ys = [(y1 + (y2 - y1) * (i + 0.5) / size) * height + 0.5 for i in range(size)]
    xs = [(x1 + (x2 - x1) * (i + 0.5) / size) * width + 0.5 for i in range(size)]

    def weights(places: list[float], count: int) -> torch.Tensor:
        matrix = torch.zeros(size, count)
        for i, place in enumerate(places):
            low = math.floor(place)
            matrix[i, low] += 1 - (place - low)
            matrix[i, low + 1] += place - low
        return matrix

    return weights(ys, height + 2) @ padded @ weights(xs, width + 2).T


class Brightness(nn.Module):
    """A backbone whose maps are the mean colours of 8 × 8 cells, again and again."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return nn.functional.avg_pool2d(images, SIZE // 8).repeat(1, 427, 1, 1)[:, :1280]


def test_each_stage_sees_what_the_one_before_marks(system):
    system.backbone, *later = networks = [Brightness() for _ in range(3)]
    system.later = nn.ModuleList(later)
    images = torch.zeros(2, 3, 128, 128)
    images[0, :, 32:100, 70:120], images[0, :, 60:80, 90:100] = 1, 5
    images[1, :, 10:50, 2:90], images[1, :, 20:30, 20:30] = 1, 3
    boxes, sides = [[0.0, 0.0, 1.0, 1.0]] * 2, []
    with torch.no_grad():
        found = system.predict(images).boxes
    for first, second in itertools.pairwise(networks):
        maps = nn.functional.avg_pool2d(first.seen, SIZE // 8)
        for photo in range(2):
            left, top, right, bottom = hull(maps[photo].mean(dim=0).tolist())
            x1, y1, x2, y2 = boxes[photo]
            width, height = x2 - x1, y2 - y1
            boxes[photo] = [x1 + width * left, y1 + height * top, x1 + width * right, y1 + height * bottom]
            assert x1 <= boxes[photo][0] < boxes[photo][2] <= x2 and y1 <= boxes[photo][1] < boxes[photo][3] <= y2
            sides.append((right - left, bottom - top))
        expected = torch.stack([cut(image, box, SIZE) for image, box in zip(images, boxes, strict=True)])
        torch.testing.assert_close(second.seen, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(found, torch.tensor(boxes))
    assert all(min(side) < 1 for side in sides)  # each look is closer than the one before


def test_the_answer_is_the_mean_of_the_probabilities(system, images):
    first, second = torch.tensor([[2.0, 6, 2]]).log(), torch.tensor([[1.0, 1, 2]]).log()
    assert log_mean_probability([first, second]).exp().tolist() == [pytest.approx([0.225, 0.425, 0.35])]
    with torch.no_grad():
        looks = system(images)
        answer = system.predict(images).log_probabilities.exp()
    for photo in range(2):
        for k in range(CLASSES):
            shares = []
            for stage in (1, 2, 3):
                powers = [math.exp(value) for value in looks.logits[f"stage{stage}"][photo].tolist()]
                shares.append(powers[k] / sum(powers))
            assert answer[photo, k].item() == pytest.approx(sum(shares) / 3, rel=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_loss_of_a_stage_reaches_its_own_network_alone(stage, system, images):
    terms = system.loss(system(images), torch.tensor([0, 2]))
    terms[f"stage{stage}"].backward()
    reached = {name for name, value in system.named_parameters() if value.grad is not None and value.grad.any()}
    own = ("backbone", "later.0", "later.1")[stage - 1], f"outputs.{stage - 1}"
    assert {name.rsplit(".", 1)[0] for name in reached if name.startswith("outputs")} == {own[1]}
    assert any(name.startswith(own[0]) for name in reached) and all(name.startswith(own) for name in reached)


def test_parameters(system):
    own = sum(value.numel() for value in system.parameters())
    backbone = sum(value.numel() for value in create_backbone(BACKBONE, pretrained=False).parameters())
    assert own == 3 * (backbone + 1280 * CLASSES + CLASSES)
