"""The whole system of Figure 1: image → AttNet → AffNet → crop → classifier, with the teacher pass beside it."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from fgvclib.model.affnet import AffNet
from fgvclib.model.attnet import AttNet
from fgvclib.model.classifier import Classifier
from fgvclib.model.geometry import IDENTITY_THETA, crop, widen
from fgvclib.model.gradients import clip_gradient, scale_gradient
from fgvclib.model.teacher import Teacher, build_teacher

if TYPE_CHECKING:
    from fgvclib.config import Config


class ModelOutput(NamedTuple):
    """One forward pass; `attention` is None where localisation is off."""

    logits: Tensor  # (B, classes)
    embedding: Tensor  # (B, embedding_dim)
    attention: Tensor | None  # A, (B, 1, n, n)
    theta: Tensor  # (B, 4)
    crop: Tensor  # (B, 3, crop_size, crop_size)


class EndToEndModel(nn.Module):
    """images X (B, 3, H, W), normalised → `ModelOutput`.

    beta_att and beta_aff scale the gradient that the rest of the network sends into A and theta (equations 3 and 8).
    The rest of A includes L_aff, which reaches it through theta; the rest of theta does not. `theta_gradient_limit`
    (ours) first shortens what the classifier sends into the theta of each photo to this norm: bilinear sampling passes
    on the finest texture of the image, which can be far louder than L_aff. With `localise` False the crop is the whole
    image, and AttNet and AffNet are not run: the baseline of Table 2. `crop_margin` (ours) lets the classifier see that
    much more than the box. While the attribute `trust_theta` is False
    (ours), they are run and learn from the local losses, but the classifier still gets the whole image.
    """

    def __init__(
        self,
        classifier: Classifier,
        attnet: AttNet,
        affnet: AffNet,
        teacher: Teacher,
        crop_size: int = 448,
        beta_att: float = 1.0,
        beta_aff: float = 1.0,
        theta_gradient_limit: float | None = None,
        crop_margin: float = 0.0,
        localise: bool = True,
    ):
        super().__init__()
        self.classifier, self.attnet, self.affnet = classifier, attnet, affnet
        self.teacher = teacher
        self.crop_size = crop_size
        self.beta_att, self.beta_aff = beta_att, beta_aff
        self.theta_gradient_limit = theta_gradient_limit
        self.crop_margin = crop_margin
        self.localise = localise
        self.trust_theta = True

    def forward(self, images: Tensor) -> ModelOutput:
        attention, theta = self.localisation(images)
        heard = clip_gradient(scale_gradient(theta, self.beta_aff), self.theta_gradient_limit)
        heard = widen(heard, self.crop_margin) if self.trust_theta else self._identity(images)
        cropped = crop(images, heard, self.crop_size)
        return ModelOutput(*self.classifier(cropped), attention, theta, cropped)

    def localisation(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """X → A (B, 1, n, n) and theta (B, 4); None and the identity where localisation is off."""
        if not self.localise:
            return None, self._identity(images)
        attention = self.attnet(images)
        with torch.autocast(images.device.type, enabled=False):  # bf16 knows a box to a few pixels only
            attention = attention.to(torch.promote_types(attention.dtype, torch.float32))
            return attention, self.affnet(scale_gradient(attention, self.beta_att))

    @staticmethod
    def _identity(images: Tensor) -> Tensor:
        return images.new_tensor(IDENTITY_THETA).expand(len(images), 4)

    def teacher_map(self, images: Tensor) -> Tensor:
        """X → M (B, 1, n, n), without gradient; see `Teacher`."""
        return self.teacher(self.classifier.backbone, images)

    def localisation_parameters(self) -> list[nn.Parameter]:
        """The parameters of AttNet and AffNet, for an optimiser group of their own."""
        return [*self.attnet.parameters(), *self.affnet.parameters()]


def build_model(config: "Config", num_classes: int, pretrained: bool = True) -> EndToEndModel:
    """The system that a configuration describes.

    A module that no gradient can reach is frozen (beta and lambda both 0), so that weight decay leaves it alone too;
    where that holds for both, localisation is off and the model is the baseline of Table 2.
    """
    attnet = AttNet(
        config.attnet_backbone,
        pretrained,
        config.map_size,
        config.attnet_standardise,
        config.attnet_stride,
        images_for=config.backbone,
    )
    affnet = AffNet(config.map_size, threshold=config.threshold, sharpness=config.sharpness)
    affnet_learns = config.lambda_aff > 0 or config.beta_aff > 0
    attnet_learns = config.lambda_att > 0 or (config.beta_att > 0 and affnet_learns)
    attnet.requires_grad_(attnet_learns)
    affnet.requires_grad_(affnet_learns)
    classifier = Classifier(
        num_classes, config.backbone, pretrained, kmax=config.kmax, embedding_dim=config.embedding_dim
    )
    model = EndToEndModel(
        classifier,
        attnet,
        affnet,
        build_teacher(config),
        crop_size=config.crop_size,
        beta_att=config.beta_att,
        beta_aff=config.beta_aff,
        theta_gradient_limit=config.theta_gradient_limit,
        crop_margin=config.crop_margin,
        localise=attnet_learns or affnet_learns,
    )
    return model.to(memory_format=torch.channels_last)  # measured: 1.5 to 2.5 times as fast on CPUs
