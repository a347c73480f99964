"""MMAL: its windows, its object and its first epoch, against loops."""

import itertools
import math

import pytest
import torch
from torch import nn

from fgvclib.systems.mmal import BIRDS, MMAL, VEHICLES, active_windows, halved, object_box, slide
from fgvclib.systems.windows import activation, best_windows, cut

BACKBONE = "efficientnet_lite0.pypi"


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def all_windows(cells: int, shapes) -> list[tuple[int, int, int, int]]:
    """xyxy in cells of every window of the shapes, shape by shape, row by row."""
    return [
        (x, y, x + columns, y + rows)
        for rows, columns in shapes
        for y in range(cells - rows + 1)
        for x in range(cells - columns + 1)
    ]


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def greedy(scores: list[float], boxes: list, count: int, limit: float) -> list[int]:
    """Non-maximum suppression by its definition, then the best of those suppressed."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = []
    for i in order:
        if all(iou(boxes[i], boxes[j]) <= limit for j in kept):
            kept.append(i)
    return (kept + [i for i in order if i not in kept])[:count]


@pytest.mark.parametrize(("sizes", "counts"), [(BIRDS, [361, 241, 315]), (VEHICLES, [241, 235, 115])])
def test_windows_are_all_those_of_the_paper_with_their_means(sizes, counts, generator):
    attention = torch.rand(2, 14, 14, generator=generator)
    for (shapes, _), count in zip(sizes, counts, strict=True):
        means, boxes = slide(attention, shapes)
        expected = all_windows(14, shapes)
        assert boxes.tolist() == [list(map(float, box)) for box in expected] and len(expected) == count
        for photo, (i, (x1, y1, x2, y2)) in itertools.product(range(2), enumerate(expected)):
            inside = [attention[photo, y, x].item() for y in range(y1, y2) for x in range(x1, x2)]
            assert math.isclose(means[photo, i].item(), sum(inside) / len(inside), rel_tol=1e-5)


@pytest.mark.parametrize("sizes", [BIRDS, VEHICLES])
def test_small_maps_have_windows_of_half_the_side(sizes):
    for (large, many), (small, few) in zip(sizes, halved(sizes), strict=True):
        assert many == few and len(set(small)) == len(small)
        assert set(small) == {(math.ceil(rows / 2), math.ceil(columns / 2)) for rows, columns in large}
        assert max(max(shape) for shape in small) <= 8  # they fit where the network uses them


def test_chosen_windows_are_those_of_greedy_suppression(generator):
    boxes = all_windows(8, [(2, 2), (2, 3), (5, 4)])
    scores = torch.rand(3, len(boxes), generator=generator)
    for limit in (0.0, 0.25, 0.6):
        chosen = best_windows(scores, torch.tensor(boxes).float(), 12, limit)
        assert chosen.tolist() == [greedy(row, boxes, 12, limit) for row in scores.tolist()]


def test_no_window_is_chosen_twice_where_few_survive():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [0, 0, 3, 4], [8, 8, 9, 9]])
    assert best_windows(torch.tensor([[0.3, 0.5, 0.4, 0.1]]), boxes, 4, 0.25).tolist() == [[1, 3, 2, 0]]


def test_active_windows_of_each_size_follow_each_other(generator):
    attention = torch.rand(2, 14, 14, generator=generator)
    found = active_windows(attention, BIRDS) * 14
    assert found.shape == (2, 2 + 3 + 2, 4)
    for photo in range(2):
        expected = []
        for shapes, count in BIRDS:
            boxes = all_windows(14, shapes)
            means = [attention[photo, y1:y2, x1:x2].mean().item() for x1, y1, x2, y2 in boxes]
            expected += [list(boxes[i]) for i in greedy(means, boxes, count, 0.25)]
        assert found[photo].round().long().tolist() == expected


def largest_by_flood_fill(mask: list[list[bool]]) -> set[tuple[int, int]]:
    cells = {(y, x) for y, row in enumerate(mask) for x, flag in enumerate(row) if flag}
    largest: set[tuple[int, int]] = set()
    while cells:
        edge = [min(cells)]
        component = set(edge)
        while edge:
            y, x = edge.pop()
            around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & cells - component
            component |= around
            edge += around
        cells -= component
        largest = max(largest, component, key=len)  # of equals, the first
    return largest


def test_object_is_the_largest_component_within_the_other_mask(generator):
    before, last = (torch.rand(40, 8, 8, generator=generator) ** 4 for _ in range(2))
    boxes = object_box([before, last])
    for photo in range(40):
        flags = (last[photo] > last[photo].mean()).tolist()
        allowed = before[photo] > before[photo].mean()
        cells = [(y, x) for y, x in largest_by_flood_fill(flags) if allowed[y, x]]
        rows, columns = ([cell[i] for cell in cells] for i in (0, 1))
        whole = [0, 0, 1, 1]
        hull = [min(columns) / 8, min(rows) / 8, (max(columns) + 1) / 8, (max(rows) + 1) / 8] if cells else whole
        assert boxes[photo].tolist() == hull


def test_object_that_the_masks_do_not_agree_on_is_the_whole_photo():
    last, before = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    last[:, 2, 3], before[:, 6, 6] = 1, 1
    assert object_box([before, last]).tolist() == [[0, 0, 1, 1]]
    assert object_box([last, last]).tolist() == [[3 / 8, 2 / 8, 4 / 8, 3 / 8]]


def test_activation_is_a_sum_and_the_root_mean_square_of_signed_maps():
    assert activation(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).item() == 7
    assert activation(torch.tensor([3.0, -4.0]).view(1, 2, 1, 1)).item() == pytest.approx(math.sqrt(12.5))


def test_windows_are_cut_from_the_photo():
    photos = torch.arange(2 * 3 * 64.0).view(2, 3, 8, 8)
    cuts = cut(photos, torch.tensor([[0.0, 0, 0.5, 0.5], [0.5, 0.25, 1, 0.75]]).expand(2, 2, 4), 4)
    for photo in range(2):
        assert torch.allclose(cuts[2 * photo], photos[photo, :, :4, :4], atol=1e-3)
        assert torch.allclose(cuts[2 * photo + 1], photos[photo, :, 2:6, 4:], atol=1e-3)


def test_first_epoch_sees_the_photo_alone():
    torch.manual_seed(0)
    system = MMAL(5, BACKBONE, 128, pretrained=False).train()
    images, labels = torch.randn(2, 3, 160, 160), torch.tensor([1, 4])
    system.begin_epoch(0, 10)
    looks = system(images, labels)
    expected = -looks.logits["main"].log_softmax(dim=1)[[0, 1], labels].mean()
    assert system.loss(looks, labels)["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    system.begin_epoch(1, 10)
    looks = system(images, labels)
    assert {name: len(logits) for name, logits in looks.logits.items()} == {"photo": 2, "main": 2, "windows": 14}
    by_photo = [looks.logits["windows"][7 * i + j].log_softmax(dim=0)[labels[i]] for i in range(2) for j in range(7)]
    expected = -torch.stack(by_photo).mean().item()
    assert system.loss(looks, labels)["windows"].item() == pytest.approx(expected, rel=1e-5)


def test_adds_no_parameters_to_plain_fine_tuning():
    system = MMAL(5, BACKBONE, 128, pretrained=False)
    assert sum(p.numel() for p in system.output.parameters()) == 1280 * 5 + 5
    assert set(system.parameters()) == {*system.backbone.parameters(), *system.output.parameters()}


def test_resnet_at_448_px_has_the_published_maps():
    system = MMAL(5, "resnet50.a1_in1k", 448, pretrained=False)
    assert system.stage == "layer4" and system.sizes == BIRDS
    kept = []
    for block in system.backbone.layer4[1:]:
        block.register_forward_hook(lambda block, inputs, output: kept.append(output.sum(dim=1)))
    with torch.no_grad():
        _, maps = system.eval().look(torch.randn(1, 3, 448, 448))
    assert [tuple(a.shape) for a in maps] == [(1, 14, 14)] * 2
    assert all(torch.allclose(a, b) for a, b in zip(maps, kept, strict=True))


def test_transformer_is_refused():
    with pytest.raises(ValueError, match="mmal needs a convolutional backbone, which vit_tiny"):
        MMAL(5, "vit_tiny_patch16_224.augreg_in21k", 448, pretrained=False)


def test_hooks_are_gone_after_a_look():
    system = MMAL(5, BACKBONE, 128, pretrained=False).eval()
    with torch.no_grad():
        system.predict(torch.randn(1, 3, 128, 128))
    assert not any(isinstance(m, nn.Module) and m._forward_hooks for m in system.modules())
