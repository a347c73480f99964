"""Gradients scaled on their way back: equations 3, 4 and 8 to 10 of the paper; and shortened (ours)."""

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, beta: float) -> Tensor:
        ctx.beta = beta
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.beta, None


def scale_gradient(x: Tensor, beta: float) -> Tensor:
    """x unchanged on the way forward; the gradient that comes back is multiplied by beta (equations 3 and 8)."""
    return _ScaleGradient.apply(x, beta)


class _ClipGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, max_norm: float) -> Tensor:
        ctx.max_norm = max_norm
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        per_sample = len(gradient) * gradient.norm(dim=1, keepdim=True)
        return gradient * torch.where(per_sample > ctx.max_norm, ctx.max_norm / per_sample, 1.0), None


def clip_gradient(x: Tensor, max_norm: float | None) -> Tensor:
    """x (B, d) unchanged on the way forward; every sample's gradient is shortened to `max_norm` on the way back (ours).

    The norm is that of each sample's own loss (the objective is their mean), so the limit does not depend on the batch
    size. None changes nothing.
    """
    return x if max_norm is None else _ClipGradient.apply(x, max_norm)
