"""PMG: the jigsaw, four steps on a batch, the sum of four heads, what it costs."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fgvclib.model.backbones import Stem, create_backbone
from fgvclib.systems.pmg import PMG, jigsaw

BACKBONE = "efficientnet_lite0.pypi"


@pytest.fixture
def system():
    torch.manual_seed(0)
    return PMG(4, BACKBONE, 128, pretrained=False)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {"image": torch.randn(4, 3, 160, 160), "label": torch.arange(4)}


def cut(image, tiles: int) -> list:
    """The tiles of an image (3, S, S) as nested lists, by row."""
    side = image.shape[-1] // tiles
    corners = [(side * r, side * c) for r in range(tiles) for c in range(tiles)]
    return [image[:, y : y + side, x : x + side].tolist() for y, x in corners]


@pytest.mark.parametrize("tiles", [8, 4, 2])
def test_jigsaw_keeps_the_tiles_and_moves_them_alike_in_all_photos(tiles):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    shuffled = jigsaw(images, tiles)
    orders = []
    for before, after in zip(images, shuffled, strict=True):
        old, new = cut(before, tiles), cut(after, tiles)
        assert sorted(old) == sorted(new)
        orders.append([old.index(tile) for tile in new])
    assert orders[0] == orders[1] != list(range(tiles**2))


def test_jigsaw_of_one_tile_is_the_identity():
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(jigsaw(images, 1), images)


def test_a_batch_changes_the_weights_four_times_and_each_step_sees_the_last(system, batch):
    optimiser = torch.optim.SGD(system.parameters(), lr=0.01)
    seen, tiles = [], []

    def look(images, labels, count):
        seen.append(system.blocks[0][0][0].weight.detach().clone())
        tiles.append(count)
        return system(images, labels, count)

    names = []
    for terms in system.steps(batch, look):
        before = copy.deepcopy(system.state_dict())
        optimiser.zero_grad()
        terms["total"].backward()
        optimiser.step()
        names.append([name for name, layers in system.heads.items() if layers[-1].weight.grad is not None])
        assert not torch.equal(system.state_dict()["backbone.conv_stem.weight"], before["backbone.conv_stem.weight"])
    assert tiles == [8, 4, 2, 1]
    assert names == [["stride8"], ["stride16"], ["stride32"], ["all"]]  # each step teaches one head
    assert not torch.equal(seen[0], seen[1])  # the first step taught this layer


def test_loss_on_whole_photos_counts_twice(system, batch):
    *_, last = system.steps(batch, system)
    # In training mode BatchNorm uses the batch's own statistics, so that the same photos give the same logits.
    logits = system(batch["image"]).logits
    by_hand = -sum(logits["all"].log_softmax(dim=1)[i, i].item() for i in range(4)) / 4
    assert last["total"].item() == pytest.approx(2 * by_hand, rel=1e-3)


def test_answer_is_the_sum_of_four_heads(system, batch):
    system.eval()
    with torch.no_grad():
        logits = system(batch["image"]).logits
        total = logits["stride8"] + logits["stride16"] + logits["stride32"] + logits["all"]
        answer = system.predict(batch["image"]).log_probabilities
    assert torch.allclose(answer, total.log_softmax(dim=1), atol=1e-5)


def test_small_heads_cost_a_fifth_of_the_backbone(system):
    images = torch.randn(1, 3, 128, 128)
    backbone = create_backbone(BACKBONE, False).eval()
    system.eval()
    with torch.no_grad():
        with FlopCounterMode(display=False) as whole:
            system(images)
        with FlopCounterMode(display=False) as plain:
            backbone(images)
    assert whole.get_total_flops() / plain.get_total_flops() == pytest.approx(1.2, abs=0.1)


def parameters(channels: tuple[int, ...], narrow: int, wide: int, classes: int) -> int:
    blocks = sum(count * narrow + 2 * narrow + 9 * narrow * wide + 2 * wide for count in channels)
    heads = [2 * v + v * narrow + narrow + 2 * narrow + narrow * classes + classes for v in (wide,) * 3 + (3 * wide,)]
    return blocks + sum(heads)


@pytest.mark.parametrize(
    ("backbone", "size", "channels", "widths"),
    [(BACKBONE, 128, (40, 112, 320), (64, 128)), ("resnet50.a1_in1k", 448, (512, 1024, 2048), (512, 1024))],
)
def test_parameters_and_rates(backbone, size, channels, widths):
    slow, fast = PMG(200, backbone, size, pretrained=False).groups()
    stages = Stem(backbone, False, (8, 16, 32))
    assert sum(value.numel() for value in slow["params"]) == sum(value.numel() for value in stages.parameters())
    assert sum(value.numel() for value in fast["params"]) == parameters(channels, *widths, 200)
    assert fast["rate"] == pytest.approx(10 * slow["rate"])


def test_sizes_and_backbones_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="crop_size is 100, but PMG cuts 8x8 tiles; choose a multiple"):
        PMG(4, BACKBONE, 100, pretrained=False)
    with pytest.raises(ValueError, match="has no stages of strides 8, 16 and 32"):
        PMG(4, "vit_tiny_patch16_224.augreg_in21k", 224, pretrained=False)
