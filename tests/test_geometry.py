"""Boxes, theta and crops against pixels, loops and finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fgvclib.model.geometry import (
    attention_to_box,
    box_area,
    box_iou,
    box_to_theta,
    centre_box,
    crop,
    largest_component,
    min_max_normalise,
    nested,
    target_box,
    theta_to_box,
    widen,
)

IDENTITY = torch.tensor([[1.0, 1.0, 0.0, 0.0]])


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    corners = np.sort(np.random.default_rng(seed).random((count, 2, 2)), axis=1)  # (count, low/high, x/y)
    return torch.from_numpy(corners.reshape(count, 4))


def loop_box(attention: np.ndarray, threshold: float) -> list[float]:
    """The hull by looking at every cell of one map."""
    n = len(attention)
    low, high = attention.min(), attention.max()
    cells = [(r, c) for r in range(n) for c in range(n) if (attention[r, c] - low) / (high - low) >= threshold]
    rows, columns = zip(*cells, strict=True)
    return [min(columns) / n, min(rows) / n, (max(columns) + 1) / n, (max(rows) + 1) / n]


# --- boxes and theta


def test_box_of_a_crop_is_found_in_the_photo():
    inner, outer = torch.tensor([[[0.5, 0, 1, 0.25], [0, 0, 1, 1]]]), torch.tensor([[0.5, 0.25, 1, 0.75]])
    assert nested(inner, outer[:, None]).tolist() == [[[0.75, 0.25, 1, 0.375], [0.5, 0.25, 1, 0.75]]]
    inner, outer = random_boxes(10), random_boxes(10, seed=1)
    photos = theta_to_box(compose(box_to_theta(outer), box_to_theta(inner)))
    torch.testing.assert_close(nested(inner, outer), photos)


def compose(outer, inner):
    """theta (N, 4) of a crop of a crop: x = s (s' x' + t') + t."""
    return torch.cat([outer[:, :2] * inner[:, :2], outer[:, :2] * inner[:, 2:] + outer[:, 2:]], dim=1)


def test_box_to_theta_and_back_is_the_identity():
    boxes = random_boxes(100)
    torch.testing.assert_close(theta_to_box(box_to_theta(boxes)), boxes)


def test_theta_to_box_and_back_is_the_identity_for_positive_scales():
    theta = torch.cat([torch.rand(100, 2) + 0.1, torch.randn(100, 2)], dim=1)
    torch.testing.assert_close(box_to_theta(theta_to_box(theta)), theta)


def test_theta_of_a_box_in_pixels_follows_the_definition():
    width, height, x1, y1, x2, y2 = 640, 480, 100, 30, 420, 450
    box = torch.tensor([x1 / width, y1 / height, x2 / width, y2 / height], dtype=torch.float64)
    expected = [(x2 - x1) / width, (y2 - y1) / height, (x1 + x2) / width - 1, (y1 + y2) / height - 1]
    assert box_to_theta(box).tolist() == pytest.approx(expected)


def test_theta_maps_the_corners_of_the_crop_to_the_corners_of_the_box():
    boxes = random_boxes(20)
    theta = box_to_theta(boxes)
    for output, corner in ((-1, boxes[:, :2]), (1, boxes[:, 2:])):
        torch.testing.assert_close(theta[:, :2] * output + theta[:, 2:], 2 * corner - 1)


def test_boxes_of_any_leading_shape():
    boxes = random_boxes(12)
    assert torch.equal(box_to_theta(boxes.view(3, 4, 4)).view(12, 4), box_to_theta(boxes))


def test_negative_scale_covers_the_same_box_with_ordered_corners():
    theta = torch.tensor([0.5, 0.4, 0.2, -0.1])
    for sign in ([-1, 1], [1, -1], [-1, -1]):
        mirrored = theta * torch.tensor([*sign, 1, 1])
        assert torch.equal(theta_to_box(mirrored), theta_to_box(theta))


# --- crop


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_identity_theta_reproduces_the_image(dtype, tolerance):
    images = torch.randn(2, 3, 37, 37, dtype=dtype)
    torch.testing.assert_close(crop(images, IDENTITY.expand(2, 4).to(dtype), 37), images, atol=tolerance, rtol=0)


@pytest.mark.parametrize("x, y, size", [(0, 0, 6), (4, 2, 6), (10, 4, 6), (3, 1, 1)])
def test_crop_of_whole_pixels_is_a_slice(x, y, size):
    images = torch.randn(1, 3, 10, 16, dtype=torch.float64)
    box = torch.tensor([[x / 16, y / 10, (x + size) / 16, (y + size) / 10]], dtype=torch.float64)
    torch.testing.assert_close(crop(images, box_to_theta(box), size), images[:, :, y : y + size, x : x + size])


def test_crop_at_half_size_averages_two_by_two_pixels():
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    box = torch.tensor([[2 / 12, 4 / 12, 10 / 12, 12 / 12]], dtype=torch.float64).expand(2, 4)
    means = images[:, :, 4:12, 2:10].reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    torch.testing.assert_close(crop(images, box_to_theta(box), 4), means)


def test_every_image_has_its_own_crop():
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], dtype=torch.float64)
    expected = torch.stack([images[0, :, :4, :4], images[1, :, 4:, 4:]])
    torch.testing.assert_close(crop(images, box_to_theta(boxes), 4), expected)


def test_beyond_the_image_are_zeros():
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64) + 1
    boxes = torch.tensor([[-0.5, 0.0, 0.5, 1.0]], dtype=torch.float64)  # its left half lies outside
    cropped = crop(images, box_to_theta(boxes), 8)
    assert torch.equal(cropped[..., :4], torch.zeros(1, 3, 8, 4, dtype=torch.float64))
    torch.testing.assert_close(cropped[..., 4:], images[..., :4])


def test_negative_scale_mirrors_the_crop():
    images = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    mirror_x, mirror_y = torch.tensor([[-1.0, 1, 0, 0]]).double(), torch.tensor([[1.0, -1, 0, 0]]).double()
    torch.testing.assert_close(crop(images, mirror_x, 9), images.flip(3))
    torch.testing.assert_close(crop(images, mirror_y, 9), images.flip(2))


def test_gradient_of_the_crop_by_finite_differences():
    torch.manual_seed(0)
    images = torch.randn(2, 2, 9, 7, dtype=torch.float64)
    theta = torch.tensor([[0.613, 0.471, 0.137, -0.211], [1.217, 0.853, 0.319, 0.173]], dtype=torch.float64)
    weights = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    variable = theta.clone().requires_grad_()
    (crop(images, variable, 5) * weights).sum().backward()
    step = 1e-6
    for i in range(2):
        for j in range(4):
            high, low = theta.clone(), theta.clone()
            high[i, j] += step
            low[i, j] -= step
            slope = ((crop(images, high, 5) - crop(images, low, 5)) * weights).sum() / (2 * step)
            assert variable.grad[i, j].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)


# --- attention maps to boxes


@pytest.mark.parametrize("n", [2, 7, 14])
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.9])
def test_box_of_random_maps_equals_a_loop_over_the_cells(n, threshold):
    rng = np.random.default_rng(n)
    maps = rng.normal(size=(50, n, n)) ** 3  # heavy tails: few cells reach the threshold
    boxes = attention_to_box(torch.from_numpy(maps).unsqueeze(1), threshold)
    assert boxes.numpy() == pytest.approx(np.array([loop_box(m, threshold) for m in maps]))


def test_box_holds_all_components_not_the_largest():
    attention = torch.zeros(1, 1, 10, 10)
    attention[0, 0, 4:8, 4:8] = 1.0  # the large one
    attention[0, 0, 1, 2] = 0.5
    attention[0, 0, 5, 9] = 0.31
    assert attention_to_box(attention, 0.3)[0].tolist() == pytest.approx([0.2, 0.1, 1.0, 0.8])


def test_cell_at_the_threshold_counts():
    attention = torch.tensor([[[[0.0, 0.5], [1.0, 0.0]]]])
    assert attention_to_box(attention, 0.5)[0].tolist() == [0, 0, 1, 1]
    assert attention_to_box(attention, 0.500001)[0].tolist() == [0, 0.5, 0.5, 1]


def test_box_ignores_scale_and_offset_of_the_map():
    attention = torch.randn(30, 1, 14, 14, dtype=torch.float64)
    for changed in (attention * 1e-6, attention * 1e6, attention - 7):
        assert torch.equal(attention_to_box(changed), attention_to_box(attention))


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, float("nan"), float("inf")])
def test_constant_or_non_finite_map_gives_the_whole_image(value):
    assert attention_to_box(torch.full((2, 1, 14, 14), value)).tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_cell_gives_the_whole_image_and_leaves_the_other_maps_alone(value):
    attention = torch.zeros(2, 1, 10, 10)
    attention[:, 0, 3, 4] = 1
    attention[0, 0, 7, 7] = value
    boxes = attention_to_box(attention)
    assert boxes[0].tolist() == [0, 0, 1, 1]
    assert boxes[1].tolist() == pytest.approx([0.4, 0.3, 0.5, 0.4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_box_in_half_precision_equals_the_loop(dtype):
    rng = np.random.default_rng(0)
    maps = np.where(rng.random((50, 14, 14)) < 0.03, 3.0, 0.2) + 0.1 * rng.random((50, 14, 14))
    maps[:, 6, 6] = 3.0
    boxes = attention_to_box(torch.from_numpy(maps).unsqueeze(1).to(dtype))
    assert boxes.numpy() == pytest.approx(np.array([loop_box(m, 0.3) for m in maps]), abs=1e-6)


def flood(mask: np.ndarray) -> np.ndarray:
    """The largest component of one map, found by flooding from every cell; of equals the first by row."""
    best, seen = set(), set()
    for start in zip(*np.nonzero(mask), strict=True):
        if start in seen:
            continue
        found, waiting = {start}, [start]
        while waiting:
            row, column = waiting.pop()
            for near in ((row + r, column + c) for r in (-1, 0, 1) for c in (-1, 0, 1)):
                if near not in found and min(near) >= 0 and max(near) < len(mask) and mask[near]:
                    found.add(near)
                    waiting.append(near)
        seen |= found
        best = found if len(found) > len(best) else best
    result = np.zeros_like(mask)
    for cell in best:
        result[cell] = True
    return result


@pytest.mark.parametrize("share", [0.05, 0.2, 0.35, 0.5, 0.9])
def test_largest_component_equals_a_flood_by_loops(share):
    masks = np.random.default_rng(0).random((30, 17, 17)) < share
    found = largest_component(torch.from_numpy(masks)).numpy()
    assert np.array_equal(found, np.array([flood(mask) for mask in masks]))


def test_long_winding_component_is_one():
    """A snake through every second row of 15x15: the way through it is far longer than the map is wide."""
    mask = np.zeros((15, 15), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    assert torch.equal(largest_component(torch.from_numpy(mask)[None])[0], torch.from_numpy(mask))


def test_no_cell_and_every_cell():
    masks = torch.stack([torch.zeros(5, 5), torch.ones(5, 5)]).bool()
    assert torch.equal(largest_component(masks), masks)


def test_box_of_the_largest_component_leaves_a_stray_cell_out():
    attention = torch.zeros(2, 1, 10, 10)
    attention[:, 0, 4:8, 3:8] = 1.0
    attention[0, 0, 1, 1] = 0.9  # apart
    attention[1, 0, 3, 8] = 0.9  # at a corner: a neighbour
    boxes = attention_to_box(attention, 0.3, component="largest")
    assert boxes[0].tolist() == pytest.approx([0.3, 0.4, 0.8, 0.8])
    assert boxes[1].tolist() == pytest.approx([0.3, 0.3, 0.9, 0.8])


def test_enlarged_map_has_its_box_at_a_finer_grid():
    """By hand: an axis enlarged four times is linear between the cells' centres, at 1/8, 3/8, 5/8 and 7/8."""
    row = np.array([0.0, 1.0, 0.4, 0.0])
    fine = np.interp((np.arange(16) + 0.5) / 16, [0.125, 0.375, 0.625, 0.875], row)
    inside = np.nonzero(fine / fine.max() >= 0.6)[0]
    expected = [inside[0] / 16, 0, (inside[-1] + 1) / 16, 1]
    attention = torch.from_numpy(np.tile(row, (4, 1)))[None, None]
    assert attention_to_box(attention, 0.6, upsample=4)[0].tolist() == pytest.approx(expected)
    assert expected[:3:2] != [0.25, 0.5]  # what the cells themselves give


def test_target_box_is_that_of_the_configuration(tiny):
    attention = torch.randn(8, 1, 14, 14)
    config = replace(tiny, threshold=0.45, box_component="largest", box_upsample=4)
    assert torch.equal(target_box(attention, config), attention_to_box(attention, 0.45, "largest", 4))
    assert torch.equal(target_box(attention, config, 0.7), attention_to_box(attention, 0.7, "largest", 4))
    assert torch.equal(target_box(attention, tiny), attention_to_box(attention, tiny.threshold))


def test_no_maps_have_no_boxes(tiny):
    """As those of a validation part that is empty."""
    for kind in ("all", "largest"):
        config = replace(tiny, box_component=kind, box_upsample=4)
        assert target_box(torch.empty(0, 1, 14, 14), config).shape == (0, 4)


def test_targets_carry_no_gradient():
    assert not attention_to_box(torch.randn(2, 1, 4, 4, requires_grad=True)).requires_grad


def test_min_max_of_every_map_is_zero_and_one():
    maps = min_max_normalise(torch.randn(20, 1, 14, 14) * torch.logspace(-6, 6, 20).view(-1, 1, 1, 1))
    assert torch.equal(maps.amin(dim=(1, 2, 3)), torch.zeros(20))
    torch.testing.assert_close(maps.amax(dim=(1, 2, 3)), torch.ones(20))


# --- intersection over union


def test_iou_equals_counting_cells_of_a_raster():
    rng = np.random.default_rng(0)
    first, second = (np.sort(rng.integers(0, 21, (200, 2, 2)), axis=1).reshape(200, 4) for _ in range(2))

    def cells(box):
        x1, y1, x2, y2 = box
        return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}

    expected = []
    for a, b in zip(first, second, strict=True):
        union = cells(a) | cells(b)
        expected.append(len(cells(a) & cells(b)) / len(union) if union else 0.0)
    assert 0 < np.mean(np.array(expected) > 0) < 1
    actual = box_iou(torch.from_numpy(first) / 20.0, torch.from_numpy(second) / 20.0)
    assert actual.numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_swapped_corners_have_no_area_and_no_overlap():
    swapped = torch.tensor([[0.8, 0.8, 0.2, 0.2], [0.8, 0.2, 0.2, 0.9]])
    assert box_area(swapped).tolist() == [0, 0]
    assert box_iou(swapped, torch.tensor([[0.0, 0, 1, 1]] * 2)).tolist() == [0, 0]


def test_centre_box_has_the_given_side_and_the_images_centre():
    boxes = centre_box(3, 0.7)
    assert boxes.tolist() == [pytest.approx([0.15, 0.15, 0.85, 0.85])] * 3
    assert centre_box(1, 1.0).tolist() == [[0, 0, 1, 1]]


# --- the margin around a crop


def test_widen_grows_the_box_around_its_centre_and_stops_at_the_image():
    theta = torch.tensor([[0.5, 0.2, 0.1, 0.0], [0.4, 0.4, 0.5, -0.8]])
    found = theta_to_box(widen(theta, 0.5)).numpy()
    # x from 0.05 to 0.55 wide 0.5, y 0.4 to 0.6: 0.75 and 0.3 wide; the second is cut at the right and upper edge
    assert found[0] == pytest.approx([0.55 - 0.375, 0.5 - 0.15, 0.55 + 0.375, 0.5 + 0.15])
    assert found[1] == pytest.approx([0.75 - 0.3, 0.0, 1.0, 0.1 + 0.3])


def test_widen_without_a_margin_changes_nothing_and_lets_the_gradient_through():
    theta = torch.tensor([[1.2, -0.3, 0.9, 0.0]], requires_grad=True)
    assert widen(theta, 0.0) is theta
    inside = torch.tensor([[0.3, 0.3, 0.0, 0.1]], requires_grad=True)
    widen(inside, 0.2).sum().backward()
    assert inside.grad[0].tolist() == pytest.approx([1.2, 1.2, 1.0, 1.0])
