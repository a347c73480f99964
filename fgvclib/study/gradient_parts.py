"""What each loss sends into A and theta: equations 3-4 and 8-10, taken apart for looking at."""

import pandas as pd
import torch
from torch import Tensor

from fgvclib.config import Config
from fgvclib.data.loaders import evaluation_loader
from fgvclib.model.geometry import crop, widen
from fgvclib.model.gradients import clip_gradient
from fgvclib.model.losses import EndToEndLoss, normalise
from fgvclib.model.system import EndToEndModel, ModelOutput
from fgvclib.utils.device import on_default_device
from fgvclib.utils.progress import progress

Parts = dict[str, dict[str, Tensor]]


@torch.no_grad()
def class_centres(model: EndToEndModel, photos: pd.DataFrame, config: Config) -> Tensor:
    """Where training draws the embeddings of each class: the mean direction of its photos' (K, d), on the CPU [ELoPE].

    Every class must have a photo in the table. Of a fresh `EmbeddingLoss` the centres are zero, and unit vectors are
    equally far from zero: without centres it sends no gradient at all.
    """
    embeddings, labels = [], []
    with on_default_device(model) as device:
        for batch in progress(evaluation_loader(photos, config), "class centres"):
            embeddings.append(normalise(model(batch["image"].to(device)).embedding).cpu())
            labels.append(batch["label"])
    found = torch.cat(embeddings)
    sums = found.new_zeros(int(photos["label"].max()) + 1, found.shape[1]).index_add(0, torch.cat(labels), found)
    return normalise(sums)


def gradient_parts(
    model: EndToEndModel,
    criterion: EndToEndLoss,
    images: Tensor,
    labels: Tensor,
    teacher_map: Tensor,
    limit: float | None = None,
) -> Parts:
    """Gradients of "classification" (L_CE + lambda L_emb), "attention" and "affine" as if both betas were 1.

    Each part is {"A": (B, 1, n, n), "theta": (B, 4)}, zero where nothing flows. `teacher_map` (B, 1, n, n) is what
    the model was trained with (`localisation.attention_maps`). `limit` is the model's `theta_gradient_limit`, or None
    to see the gradients in full. Modules stay in the mode they are in; training mode moves the running statistics and
    the class centres, so evaluation mode is what one usually wants, with the centres of `class_centres`.
    """
    attention = model.attnet(images).detach().requires_grad_()
    theta = model.affnet(attention)
    cropped = crop(images, widen(clip_gradient(theta, limit), model.crop_margin), model.crop_size)
    output = ModelOutput(*model.classifier(cropped), attention, theta, cropped)
    terms = criterion(output, labels, teacher_map)
    losses = {
        "classification": terms["cross_entropy"] + terms["embedding"],
        "attention": terms["attention"],
        "affine": terms["affine"],
    }
    return {name: gradients_of(loss, {"A": attention, "theta": theta}) for name, loss in losses.items()}


def gradients_of(loss: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of a scalar into each tensor, by name, zero where nothing flows; the graph is kept."""
    found = torch.autograd.grad(loss, list(wanted.values()), retain_graph=True, allow_unused=True)
    pairs = zip(wanted.items(), found, strict=True)
    return {name: torch.zeros_like(x) if gradient is None else gradient for (name, x), gradient in pairs}


def total_gradient(parts: Parts, beta_att: float, beta_aff: float) -> dict[str, Tensor]:
    """Parts of `gradient_parts` → dL/dA and dL/dtheta for these betas, by equations 3 and 8.

    L_aff belongs to "the rest" of A (equation 5) but is local to theta, where beta_aff does not touch it.
    """
    classification, attention, affine = (parts[name] for name in ("classification", "attention", "affine"))
    return {
        "A": beta_att * (beta_aff * classification["A"] + affine["A"]) + attention["A"],
        "theta": beta_aff * classification["theta"] + affine["theta"],
    }


def norms(parts: Parts) -> pd.DataFrame:
    """L2 norm of each part over the batch: one row per part, columns "A" and "theta"."""
    return pd.DataFrame({name: {x: float(g.norm()) for x, g in part.items()} for name, part in parts.items()}).T
