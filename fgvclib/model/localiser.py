"""Localisation for any network behind it: image → AttNet → AffNet → crop (paper, section 2 and Figure 1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fgvclib.model.affnet import AffNet
from fgvclib.model.attnet import AttNet
from fgvclib.model.geometry import IDENTITY_THETA, crop, widen
from fgvclib.model.gradients import clip_gradient, scale_gradient


class Localised(NamedTuple):
    """What a `Localiser` makes of a batch; `attention` is None where localisation is off."""

    crop: Tensor  # (B, 3, crop_size, crop_size)
    theta: Tensor  # (B, 4)
    attention: Tensor | None  # A, (B, 1, n, n)


class Localiser(nn.Module):
    """images X (B, 3, H, W), normalised → `Localised`, whose crop any network can classify.

    beta_att and beta_aff scale the gradient that the rest of the network sends into A and theta (equations 3 and 8).
    The rest of A includes L_aff, which reaches it through theta; the rest of theta does not. `theta_gradient_limit`
    (ours) first shortens what the classifier sends into the theta of each photo to this norm: bilinear sampling passes
    on the finest texture of the image, which can be far louder than L_aff. `crop_margin` (ours) lets the classifier see
    that much more than the box. While the attribute `trust_theta` is False (ours), AttNet and AffNet learn from the
    local losses, but the crop is the whole image.
    """

    def __init__(
        self,
        attnet: AttNet,
        affnet: AffNet,
        crop_size: int = 448,
        beta_att: float = 1.0,
        beta_aff: float = 1.0,
        crop_margin: float = 0.0,
        theta_gradient_limit: float | None = None,
    ):
        super().__init__()
        self.attnet, self.affnet = attnet, affnet
        self.crop_size, self.crop_margin = crop_size, crop_margin
        self.beta_att, self.beta_aff = beta_att, beta_aff
        self.theta_gradient_limit = theta_gradient_limit
        self.trust_theta = True

    def forward(self, images: Tensor) -> Localised:
        attention, theta = self.localisation(images)
        if self.trust_theta:
            to_crop = scale_gradient(theta, self.beta_aff)  # eq. 8: beta_aff of dL/dtheta from the classifier
            to_crop = widen(clip_gradient(to_crop, self.theta_gradient_limit), self.crop_margin)  # (B, 4)
        else:
            to_crop = whole_image(images)
        return Localised(crop(images, to_crop, self.crop_size), theta, attention)

    def localisation(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """X → A (B, 1, n, n) and theta (B, 4)."""
        attention = self.attnet(images)  # A, (B, 1, n, n)
        with torch.autocast(images.device.type, enabled=False):  # bf16 knows a box to a few pixels only
            attention = attention.to(torch.promote_types(attention.dtype, torch.float32))
            theta = self.affnet(scale_gradient(attention, self.beta_att))  # eq. 3: beta_att of dL/dA from theta, (B, 4)
        return attention, theta

    def localisation_parameters(self) -> list[nn.Parameter]:
        """The parameters of AttNet and AffNet, for an optimiser group of their own."""
        return [*self.attnet.parameters(), *self.affnet.parameters()]


def whole_image(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) → the theta (B, 4) whose crop shows all of them."""
    return images.new_tensor(IDENTITY_THETA).expand(len(images), 4)
