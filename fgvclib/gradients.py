"""What each loss term sends into A and theta: equations 3-4 and 8-10, taken apart for looking at."""

import pandas as pd
import torch
from torch import Tensor

from fgvclib.geometry import crop
from fgvclib.losses import EndToEndLoss
from fgvclib.model import EndToEndModel, ModelOutput


def gradients_by_term(
    model: EndToEndModel, criterion: EndToEndLoss, images: Tensor, labels: Tensor
) -> dict[str, dict[str, Tensor]]:
    """Loss term → {"A": gradient (B, 1, n, n), "theta": gradient (B, 4)}, as if both betas were 1.

    Modules stay in the mode they are in, and neither weights nor their gradients are touched. Training mode moves the
    running statistics of BatchNorm and the class centres, so evaluation mode is what one usually wants.
    """
    attention = model.attnet(images).detach().requires_grad_()
    theta = model.affnet(attention)
    cropped = crop(images, theta, model.crop_size)
    output = ModelOutput(*model.classifier(cropped), attention, theta, cropped)
    terms = criterion(output, labels, model.teacher_map(images))
    del terms["total"]
    wanted = {"A": attention, "theta": theta}
    return {name: _gradients(term, wanted) for name, term in terms.items()}


def _gradients(term: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(term, list(wanted.values()), retain_graph=True, allow_unused=True)
    pairs = zip(wanted.items(), found, strict=True)
    return {name: torch.zeros_like(x) if gradient is None else gradient for (name, x), gradient in pairs}


def total_gradient(parts: dict[str, dict[str, Tensor]], beta_att: float, beta_aff: float) -> dict[str, Tensor]:
    """Parts of `gradients_by_term` → dL/dA and dL/dtheta for these betas, by equations 3 and 8.

    L_aff counts as "the rest" for A (equation 5); its part that is local to theta does not pass through beta_aff.
    """
    classification = {name: parts["cross_entropy"][name] + parts["embedding"][name] for name in ("A", "theta")}
    return {
        "A": beta_att * (beta_aff * classification["A"] + parts["affine"]["A"]) + parts["attention"]["A"],
        "theta": beta_aff * classification["theta"] + parts["affine"]["theta"],
    }


def norms(parts: dict[str, dict[str, Tensor]]) -> pd.DataFrame:
    """L2 norm of each part over the batch: one row per loss term, columns "A" and "theta"."""
    return pd.DataFrame({name: {x: float(g.norm()) for x, g in part.items()} for name, part in parts.items()}).T
