"""RA-CNN: its squares, its two steps and what each of them changes, against loops and differences."""

import pytest
import torch

from fgvclib.model.backbones import create_backbone
from fgvclib.systems.racnn import RACNN, peak, rank_loss, square_around, square_box

BACKBONE = "test_efficientnet"  # of timm: an eighth of Lite0's work
CLASSES, SIZE = 4, 64


@pytest.fixture
def system():
    torch.manual_seed(0)
    return RACNN(CLASSES, BACKBONE, SIZE, pretrained=False).train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randn(4, 3, 80, 80, generator=generator), "label": torch.arange(4)}


def state(system, squares: bool) -> dict[str, torch.Tensor]:
    """Weights and statistics of the networks of the squares, or of all others."""
    return {name: v.clone() for name, v in system.state_dict().items() if name.startswith("squares") == squares}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_rank_loss_by_hand():
    assert rank_loss(torch.tensor([[0.2, 0.5, 0.4]])).item() == pytest.approx(0.15)
    assert rank_loss(torch.tensor([[0.2, 0.5, 0.4], [0.1, 0.2, 0.3]])).item() == pytest.approx(0.075)
    assert rank_loss(torch.tensor([[0.6, 0.5, 0.5]])).item() == pytest.approx(0.15 + 0.05)


@pytest.mark.parametrize(("epoch", "term"), [(0, "peak"), (1, "rank")])
def test_classes_and_squares_learn_in_turn(epoch, term, system, batch):
    system.begin_epoch(epoch, 10)
    optimiser = torch.optim.SGD(system.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(2):  # in the second round momentum and decay could move what has no gradient
        squares, others = state(system, True), state(system, False)
        kinds = []
        for terms in system.steps(batch, system):
            optimiser.zero_grad()
            terms["total"].backward()
            optimiser.step()
            kinds.append(set(terms))
            if len(kinds) == 1:
                assert equal(squares, state(system, True)) and not equal(others, state(system, False))
                others = state(system, False)
        assert kinds == [{"scale1", "scale2", "scale3", "main", "total", "accuracy"}, {term, "total"}]
        assert equal(others, state(system, False)) and not equal(squares, state(system, True))
    assert all(value.requires_grad for value in system.parameters())
    assert all(layer.training for layer in system.modules())


def test_each_look_is_taught_by_its_own_class_and_their_layer_by_all(system, batch):
    terms = system.loss(system(batch["image"], batch["label"]), batch["label"])
    own = {"scale1": "backbone.", "scale2": "finer.0.", "scale3": "finer.1.", "main": "together."}
    for i, (name, network) in enumerate(own.items()):
        system.zero_grad()
        terms[name].backward(retain_graph=True)
        reached = [n for n, value in system.named_parameters() if value.grad is not None and value.grad.any()]
        assert any(n.startswith(network) for n in reached)
        assert all(n.startswith((network, f"outputs.{i}.")) for n in reached)


def test_classes_learn_from_cross_entropies_by_hand(system, batch):
    looks = system(batch["image"], batch["label"])
    total = 0.0
    for logits in looks.logits.values():
        total -= sum(logits[i].log_softmax(dim=0)[i].item() for i in range(4)) / 4
    assert len(looks.logits) == 4
    assert system.loss(looks, batch["label"])["total"].item() == pytest.approx(total, rel=1e-5)


def test_squares_are_inside_nested_and_never_small(system, batch):
    generator = torch.Generator().manual_seed(2)
    for scale in range(2):  # wild ones, up to the ends of the sigmoid's range
        with torch.no_grad():
            system.squares[scale][-2].weight.mul_(1e4)
            system.squares[scale][-2].bias.copy_(30 * torch.randn(3, generator=generator))
    system.eval()
    with torch.no_grad():
        looks = system(batch["image"])
        squares = looks.parts["squares"]
        inner = square_box(squares).tolist()
        for (x, y, half), (x1, y1, x2, y2) in zip(squares.flatten(0, 1).tolist(), sum(inner, []), strict=True):
            assert 1 / 3 - 1e-6 <= half <= 1 / 2 + 1e-6
            assert min(x1, y1) >= -1e-6 and max(x2, y2) <= 1 + 1e-6
            assert [x1, y1, x2, y2] == pytest.approx([x - half, y - half, x + half, y + half], abs=1e-6)
    for photo in range(4):
        (x1, y1, x2, _), (left, top, right, bottom) = inner[photo]
        side = x2 - x1  # of the first square; the second lies in it
        expected = [x1 + side * left, y1 + side * top, x1 + side * right, y1 + side * bottom]
        assert looks.boxes[photo].tolist() == pytest.approx(expected, abs=1e-5)
    assert squares.flatten(0, 1).std(dim=0).max() > 0.01


def test_the_gradient_of_the_squares_is_that_of_differences(system, batch):
    system.double()
    images, labels = batch["image"].double(), batch["label"]
    torch.nn.init.zeros_(system.squares[1][0].weight)  # a square does not learn by what the next network sees in it
    biases = [layers[-2].bias for layers in system.squares]

    def loss() -> torch.Tensor:
        """Of the second and the third look, with another weight each: in the rank loss the second may cancel out."""
        looks = system(images, labels, squares_learn=True)
        return (looks.logits["scale2"].softmax(dim=1) - 2 * looks.logits["scale3"].softmax(dim=1))[[0, 1], [0, 1]].sum()

    loss().backward()
    found = torch.cat([bias.grad for bias in biases])
    step, expected = 1e-7, []
    with torch.no_grad():
        for bias in biases:
            for i in range(3):
                bias[i] += step
                above = loss()
                bias[i] -= 2 * step
                expected.append((above - loss()) / (2 * step))
                bias[i] += step
    assert found.abs().min() > 0
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-3 * found.abs().max().item())


def test_first_squares_are_the_smallest_around_the_peak(system, batch):
    maps = torch.rand(3, 5, 4, 6, generator=torch.Generator().manual_seed(3))
    for photo, (x, y) in enumerate(peak(maps).tolist()):
        sums = {(i, j): maps[photo, :, i, j].sum().item() for i in range(4) for j in range(6)}
        i, j = max(sums, key=sums.get)
        assert (x, y) == pytest.approx(((j + 0.5) / 6, (i + 0.5) / 4))
    found = square_around(torch.tensor([[0.1, 0.5], [0.4, 0.9]])).tolist()
    assert found == [pytest.approx([1 / 3, 1 / 2, 1 / 3]), pytest.approx([0.4, 2 / 3, 1 / 3])]
    system.begin_epoch(0, 10)
    optimiser = torch.optim.SGD(system.squares.parameters(), lr=10.0)
    errors = []
    for _ in range(60):
        looks = system(batch["image"], batch["label"], squares_learn=True)
        optimiser.zero_grad()
        system.square_loss(looks, batch["label"])["total"].backward()
        optimiser.step()
        difference = looks.parts["squares"] - square_around(looks.parts["peaks"])
        errors.append(difference.abs().max().item())
    assert errors[-1] < errors[0] / 2


def test_parameters(system):
    own = sum(value.numel() for value in system.parameters())
    backbone = sum(value.numel() for value in create_backbone(BACKBONE, pretrained=False).parameters())
    square = (256 * 64 + 64) + (1024 + 1024 * 3 + 3)  # with as many cells as the look has
    squares = 2 * square + 1024 * 64 * (2**2 + 1**2)
    assert own == 3 * (backbone + 256 * CLASSES + CLASSES) + (3 * 256 * CLASSES + CLASSES) + squares
