"""AffNet: from an attention map to theta (paper, section 2.2 and Figure 2)."""

import torch
from torch import Tensor, nn

from fgvclib.model.geometry import IDENTITY_THETA, min_max_normalise

DEFAULT_SHARPNESS = 10.0  # not given in the paper; the value that reproduces its Table 1


class AttentionPreprocessor(nn.Module):
    """The differentiable mask of section 2.2.1: min-max, subtract w_tau + ReLU, times sharpness + sigmoid.

    (B, 1, n, n) → (B, 1, n, n) in [0.5, 1]: cells below the threshold become sigmoid(0) = 0.5, the others approach 1.
    The threshold w_tau is the only learnable parameter.
    """

    def __init__(self, threshold: float = 0.3, sharpness: float = DEFAULT_SHARPNESS):
        super().__init__()
        self.w_tau = nn.Parameter(torch.tensor(float(threshold)))
        self.sharpness = sharpness

    def forward(self, attention: Tensor) -> Tensor:
        above = torch.relu(min_max_normalise(attention) - self.w_tau)  # (B, 1, n, n)
        return torch.sigmoid(self.sharpness * above)  # (B, 1, n, n), in [0.5, 1]


class AffineEstimator(nn.Module):
    """What all rows of Table 1 share: attention (B, 1, n, n) → optional pre-processing → `estimate` → theta (B, 4).

    Subclasses make their layers in `build`.
    """

    def __init__(
        self,
        map_size: int = 14,
        preprocess: bool = True,
        threshold: float = 0.3,
        sharpness: float = DEFAULT_SHARPNESS,
    ):
        super().__init__()
        self.preprocess = AttentionPreprocessor(threshold, sharpness) if preprocess else nn.Identity()
        self.build(map_size)

    def forward(self, attention: Tensor) -> Tensor:
        return self.estimate(self.preprocess(attention))

    def build(self, map_size: int) -> None:
        """Make the layers for maps of `map_size` cells a side."""
        raise NotImplementedError

    def estimate(self, mask: Tensor) -> Tensor:
        """mask (B, 1, n, n) → theta (B, 4)."""
        raise NotImplementedError


class AffNet(AffineEstimator):
    """Splits the problem by axis: max over rows, max over columns, and a small network for each.

    Starts at the identity crop (section 2.2.3). 4868 parameters for a 14x14 map, which fixes the BatchNorm that the
    text does not mention; the pre-processing adds one.
    """

    def build(self, map_size: int) -> None:
        self.horizontal = _axis_network(map_size)
        self.vertical = _axis_network(map_size)

    def offsets(self) -> list[nn.Parameter]:
        """The biases of theta's scales and translations, and w_tau: values with a meaning of their own."""
        biases = [network[-1].bias for network in (self.horizontal, self.vertical)]
        return [*biases, *self.preprocess.parameters()]

    def estimate(self, mask: Tensor) -> Tensor:
        columns, rows = axis_maxima(mask)  # (B, n) each
        s_x, t_x = self.horizontal(columns).unbind(dim=1)
        s_y, t_y = self.vertical(rows).unbind(dim=1)
        return torch.stack([s_x, s_y, t_x, t_y], dim=1)  # theta of eq. 6, (B, 4)


def axis_maxima(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, n, n) → maxima over each column and each row, (B, n) both: all that a box depends on (Figure 2)."""
    return mask.amax(dim=2).flatten(1), mask.amax(dim=3).flatten(1)


def _axis_network(map_size: int) -> nn.Sequential:
    """(B, n) → (B, 2): scale and translation along one axis."""
    output = nn.Linear(128, 2)
    start_at(output, [1.0, 0.0])
    return nn.Sequential(nn.Linear(map_size, 128), nn.BatchNorm1d(128), nn.ReLU(), output)


def start_at(layer: nn.Linear, values: list[float] | tuple[float, ...] = IDENTITY_THETA) -> None:
    """Let a linear layer answer `values` to any input: zero weights, and the values as bias (section 2.2.3)."""
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(values))
