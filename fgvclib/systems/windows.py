"""Where to look next: how active a map is, which of many windows to look at, and looking at several at once."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from fgvclib.model.geometry import box_to_theta, crop


def activation(features: Tensor) -> Tensor:
    """A = sum of F (B, C, n, n) over the channels → (B, n, n), without gradient.

    Where features can be negative, as in an EfficientNet's stages, A is their root mean square (ours).
    """
    features = features.detach().float()
    return torch.where(features.amin() < 0, features.square().mean(dim=1).sqrt(), features.sum(dim=1))


def best_windows(scores: Tensor, boxes: Tensor, count: int, iou: float) -> Tensor:
    """Scores (B, N) of the same N windows of each photo, boxes (N, 4) → indices (B, count), the best first.

    Non-maximum suppression drops a window whose IoU with a better one exceeds `iou`. Where fewer than `count` survive,
    the best of those dropped follow (ours), so that every photo gives as many, and none twice.
    """
    photos = torch.arange(len(scores), device=scores.device).repeat_interleave(len(boxes))
    survives = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    survives[batched_nms(boxes.repeat(len(scores), 1), scores.flatten(), photos, iou)] = True
    worst_first = scores.argsort(dim=1).argsort(dim=1)  # the rank of each score, 0 the lowest
    return (worst_first + survives.view(scores.shape) * scores.shape[1]).topk(count, dim=1).indices


def cut(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """X (B, 3, H, W) and boxes (B, M, 4) in [0, 1] → (B M, 3, size, size), those of a photo together."""
    return crop(images.repeat_interleave(boxes.shape[1], dim=0), box_to_theta(boxes.flatten(0, 1)), size)
