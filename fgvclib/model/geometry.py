"""Boxes, theta and crops: how an attention map becomes a box, and a box becomes a crop (paper, section 2.2).

Boxes are xyxy in [0, 1] of the image's width and height. theta = [s_x, s_y, t_x, t_y] (equation 6) works in the
coordinates of `torch.nn.functional.affine_grid`, where the image spans [-1, 1]: x_in = s_x * x_out + t_x.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from fgvclib.config import Config

WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
IDENTITY_THETA = (1.0, 1.0, 0.0, 0.0)


def box_to_theta(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy in [0, 1] → theta (..., 4) whose crop shows just the box."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([high - low, high + low - 1], dim=-1)


def theta_to_box(theta: Tensor) -> Tensor:
    """theta (..., 4) → boxes (..., 4) xyxy; the inverse of `box_to_theta`, beyond [0, 1] where the crop is.

    A negative scale mirrors the crop; its box is the same region with ordered corners.
    """
    scale, centre = theta[..., :2].abs(), theta[..., 2:]
    return torch.cat([centre - scale + 1, centre + scale + 1], dim=-1) / 2


def nested(inner: Tensor, outer: Tensor) -> Tensor:
    """Boxes (..., 4) of the crops that the boxes `outer` (..., 4) cut → the same places as boxes of the photo."""
    low, high = outer[..., :2], outer[..., 2:]
    return inner * torch.cat([high - low] * 2, dim=-1) + torch.cat([low] * 2, dim=-1)


def widen(theta: Tensor, margin: float) -> Tensor:
    """theta (B, 4) of a box → of the box that is wider and higher by the share `margin`, cut at the image (ours).

    A margin of 0 changes nothing, not even a theta that reaches beyond the image.
    """
    if margin == 0:
        return theta
    wider = torch.cat([theta[..., :2] * (1 + margin), theta[..., 2:]], dim=-1)
    return box_to_theta(theta_to_box(wider).clamp(0, 1))


def crop(images: Tensor, theta: Tensor, size: int) -> Tensor:
    """Differentiable crop by bilinear sampling (spatial transformer; paper, section 2).

    images (B, 3, H, W) and theta (B, 4) → (B, 3, size, size). The paper leaves open what lies beyond the image: here
    zeros, which after normalisation is the classifier's mean colour, so that nothing there looks like an object.
    """
    # A grid in half precision would be a pixel off.
    grid = _sampling_grid(theta.to(images.dtype), size)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def _sampling_grid(theta: Tensor, size: int) -> Tensor:
    """theta (B, 4) → the points (B, size, size, 2), xy, that a crop is read from; pixel centres, align_corners=False.

    `affine_grid` gives the same points by a matrix product per pixel. A box without rotation needs none.
    """
    centres = (2 * torch.arange(size, dtype=theta.dtype, device=theta.device) + 1) / size - 1  # (size,)
    x, y = (theta[:, :2, None] * centres + theta[:, 2:, None]).unbind(dim=1)  # equation 6, (B, size) each
    shape = (theta.shape[0], size, size)  # not len(): ONNX export keeps the batch free
    return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)


def min_max_normalise(attention: Tensor) -> Tensor:
    """Scale every map of (B, 1, n, n) to [0, 1]; a constant map becomes zeros with a finite gradient."""
    low = attention.amin(dim=(-2, -1), keepdim=True)
    span = attention.amax(dim=(-2, -1), keepdim=True) - low
    return (attention - low) / torch.where(span < torch.finfo(attention.dtype).tiny ** 0.5, 1.0, span)


def attention_to_box(attention: Tensor, threshold: float = 0.3, component: str = "all", upsample: int = 1) -> Tensor:
    """Smallest rectangle that holds ALL cells >= threshold after min-max normalisation (paper, section 2.2.1).

    attention (B, 1, n, n) → boxes (B, 4) xyxy in [0, 1] at cell edges: columns i..j of n cover [i/n, (j+1)/n]. A map
    with nothing to find (constant, or with NaN) gives the whole image. Not differentiable: it makes targets.

    Two choices are ours: `upsample` first enlarges the map so many times, bilinearly, and `component` "largest" looks
    at the largest connected component alone.
    """
    attention = attention.detach()
    if upsample > 1:
        attention = F.interpolate(attention, scale_factor=upsample, mode="bilinear", align_corners=False)
    mask = min_max_normalise(attention).squeeze(1) >= threshold  # (B, n, n); NaN compares as False
    if component == "largest":
        mask = largest_component(mask)
    left, right = _first_and_last(mask.any(dim=1))
    top, bottom = _first_and_last(mask.any(dim=2))
    boxes = torch.stack([left, top, right, bottom], dim=1)
    empty = ~mask.flatten(1).any(dim=1)
    boxes[empty] = boxes.new_tensor(WHOLE_IMAGE)
    return boxes


def target_box(attention: Tensor, config: "Config", threshold: float | None = None) -> Tensor:
    """Maps (B, 1, n, n) → boxes (B, 4): `attention_to_box` as configured, with another threshold where one is given."""
    threshold = config.threshold if threshold is None else threshold
    return attention_to_box(attention, threshold, config.box_component, config.box_upsample)


def largest_component(mask: Tensor) -> Tensor:
    """Flags (B, n, n) → those of the largest component only, with 8 neighbours a cell; of equals, the first by row.

    Every set cell starts with a number of its own. The highest number around a cell goes to the cell that its number
    names and from there to all that bear it, until nothing changes: a component then has that of its first cell.
    """
    if not len(mask):
        return mask
    cells = mask[0].numel()
    flags = mask.flatten(1)
    numbers, before = flags * torch.arange(cells, 0, -1, device=mask.device), None
    while before is None or not torch.equal(numbers, before):
        before = numbers
        around = F.max_pool2d(numbers.view(mask.shape).float(), 3, stride=1, padding=1).flatten(1).long() * flags
        named = (cells - numbers).clamp_max(cells - 1)  # the cell that a number names
        numbers = numbers.scatter_reduce(1, named, around, "amax") * flags
        numbers = numbers.gather(1, (cells - numbers).clamp_max(cells - 1)) * flags
    sizes = torch.zeros(len(mask), cells + 1, device=mask.device).scatter_add_(1, numbers, flags.float())
    largest = cells - sizes.flip(1).argmax(dim=1, keepdim=True)  # argmax takes the first of equals
    return mask & (numbers == largest).view(mask.shape)


def _first_and_last(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n) flags → start of the first and end of the last set cell, as fractions of n."""
    n = occupied.shape[1]
    flags = occupied.float()
    return flags.argmax(dim=1) / n, (n - flags.flip(1).argmax(dim=1)) / n


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of paired boxes, (B, 4) and (B, 4) → (B,) in [0, 1]; empty pairs give 0."""
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    intersection = (high - low).clamp_min(0).prod(dim=1)
    union = box_area(first) + box_area(second) - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def box_area(boxes: Tensor) -> Tensor:
    """(B, 4) xyxy → (B,) area; a box whose corners are swapped has none."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(dim=1)


def centre_box(count: int, side: float = 0.7) -> Tensor:
    """`count` boxes (count, 4) of `side` times the image, in its middle: the trivial localiser to beat."""
    low, high = (1 - side) / 2, (1 + side) / 2
    return torch.tensor([low, low, high, high]).repeat(count, 1)


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear resize to (B, C, size, size), low-pass filtered where it shrinks; nothing to do costs nothing."""
    if images.shape[-2:] == (size, size):
        return images
    wide = images.to(torch.promote_types(images.dtype, torch.float32))  # CPUs cannot filter in half precision
    return F.interpolate(wide, (size, size), mode="bilinear", align_corners=False, antialias=True).to(images.dtype)


def rearrange_tiles(images: Tensor, origin: Tensor) -> Tensor:
    """Cut images (B, C, H, W) into n × n tiles and put tile origin[b, r, c] in row r and column c → (B, C, H, W).

    Tiles are numbered by row from 0; origin is (B, n, n). Raises ValueError where n does not divide H and W.
    """
    batch, channels, height, width = images.shape
    n = origin.shape[-1]
    if height % n or width % n:
        raise ValueError(f"{width}x{height} pixels cannot be cut into {n}x{n} tiles; choose a multiple of {n}.")
    tiles = images.reshape(batch, channels, n, height // n, n, width // n).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.flatten(1, 2)[torch.arange(batch, device=images.device)[:, None], origin.flatten(1)]
    tiles = tiles.unflatten(1, (n, n)).permute(0, 3, 1, 4, 2, 5)  # (B, C, n, h, n, w)
    return tiles.reshape(images.shape)
