"""DCL: the shuffle's bound and inverse, the places to learn, the parameters."""

import pytest
import torch

from fgvclib.model.backbones import create_backbone
from fgvclib.model.geometry import rearrange_tiles
from fgvclib.systems.dcl import DCL, DCLVehicles, draw_shuffle, place, tiles_a_side

BACKBONE = "efficientnet_lite0.pypi"


@pytest.mark.parametrize(("tiles", "reach"), [(7, 2), (4, 1)])
def test_no_tile_moves_as_far_as_twice_the_reach(tiles, reach):
    torch.manual_seed(0)
    origins = draw_shuffle(1000, tiles, reach).tolist()
    furthest = 0
    for origin in origins:
        assert sorted(tile for row in origin for tile in row) == list(range(tiles**2))
        for r in range(tiles):
            for c in range(tiles):
                furthest = max(furthest, abs(origin[r][c] // tiles - r), abs(origin[r][c] % tiles - c))
    assert furthest == 2 * reach - 1  # the bound is reached, too


def test_tiles_go_where_they_are_told_and_the_inverse_restores_the_photos():
    torch.manual_seed(0)
    images, origin = torch.randn(3, 3, 28, 28), draw_shuffle(3, 7, 2)
    shuffled = rearrange_tiles(images, origin)
    for b in range(3):
        for r in range(7):
            for c in range(7):
                row, column = divmod(origin[b, r, c].item(), 7)
                tile = images[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert torch.equal(shuffled[b, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4], tile)
    inverse = origin.flatten(1).argsort(dim=1).view(3, 7, 7)
    assert not torch.equal(shuffled, images)
    assert torch.equal(rearrange_tiles(shuffled, inverse), images)


def test_tiles_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="28x30 pixels cannot be cut into 7x7 tiles"):
        rearrange_tiles(torch.zeros(1, 3, 30, 28), torch.arange(49).view(1, 7, 7))


def test_places_are_the_published_ones():
    assert place(torch.arange(49), 7).tolist() == pytest.approx([(i - 24) / 49 for i in range(49)])
    assert [tiles_a_side(size) for size in (448, 224, 128, 320, 96)] == [7, 7, 4, 5, 3]


def test_location_loss_is_a_weighted_mean_distance_and_zero_at_the_target():
    torch.manual_seed(0)
    system = DCLVehicles(4, BACKBONE, 128, pretrained=False)
    labels = torch.tensor([0, 3])
    looks = system(torch.randn(2, 3, 128, 128), labels)
    location, target = looks.parts["location"], looks.parts["target"]
    assert location.shape == target.shape == (4, 4, 4)
    assert target[1].flatten().tolist() == [(i - 8) / 16 for i in range(16)]  # a whole photo
    assert not torch.equal(target[2], target[3])  # each photo has a shuffle of its own
    distances = [abs(a - b) for a, b in zip(location.flatten().tolist(), target.flatten().tolist(), strict=True)]
    assert system.loss(looks, labels)["location"].item() == pytest.approx(0.01 * sum(distances) / 64, rel=1e-4)
    there = looks._replace(parts={"location": target, "target": target})
    assert system.loss(there, labels)["location"] == 0


def test_both_views_are_classified():
    system = DCL(4, BACKBONE, 128, pretrained=False)
    labels = torch.tensor([1])
    looks = system(torch.randn(1, 3, 128, 128), labels)
    by_hand = [-looks.logits[view].log_softmax(dim=1)[0, 1].item() for view in ("main", "shuffled")]
    terms = system.loss(looks, labels)
    assert terms["cross_entropy"].item() == pytest.approx(sum(by_hand) / 2, rel=1e-5)
    destroyed = looks.logits["destroyed"].log_softmax(dim=1)
    assert terms["destroyed"].item() == pytest.approx(-(destroyed[0, 0] + destroyed[1, 1]).item() / 2, rel=1e-5)


def test_parameters_and_rates():
    system = DCL(200, BACKBONE, 448, pretrained=False)
    assert (system.tiles, system.reach) == (7, 2)
    backbone = sum(value.numel() for value in create_backbone(BACKBONE, False).parameters())
    old, new = system.groups()
    assert sum(value.numel() for value in old["params"]) == backbone
    assert sum(value.numel() for value in new["params"]) == 1280 * 200 + 1280 * 2 + 1280 + 1
    assert new["rate"] == 10 * old["rate"]
