"""The whole system of Figure 1: image → AttNet → AffNet → crop → classifier, with the teacher pass beside it."""

from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgvclib.model.affnet import AffNet
from fgvclib.model.attnet import AttNet
from fgvclib.model.classifier import Classifier
from fgvclib.model.geometry import resize, theta_to_box
from fgvclib.model.localiser import Localiser, whole_image
from fgvclib.model.teacher import Teacher, build_teacher

if TYPE_CHECKING:
    from fgvclib.config import Config


class ModelOutput(NamedTuple):
    """One forward pass; `attention` is None where localisation is off, `embedding` where the classifier has none."""

    logits: Tensor  # (B, classes)
    embedding: Tensor | None  # (B, embedding_dim)
    attention: Tensor | None  # A, (B, 1, n, n)
    theta: Tensor  # (B, 4)
    crop: Tensor  # (B, 3, crop_size, crop_size)


class Answer(NamedTuple):
    """What a system says of photos, and where it looked: both from the same passes."""

    log_probabilities: Tensor  # (B, classes)
    boxes: Tensor | None = None  # (B, 4) xyxy in [0, 1] of X, beyond it where the crop is; None: the whole photo
    attention: Tensor | None = None  # A, (B, 1, n, n), of an AttNet that the system has


class EndToEndModel(Localiser):
    """A `Localiser` with a classifier behind it: images X (B, 3, H, W), normalised → `ModelOutput`.

    The classifier gives logits and embedding, as `Classifier` does, or logits alone, as any timm network does; the
    embedding loss must then be off. The teacher is there for training only. With `localise` False the crop is the whole
    image, and AttNet and AffNet are not run: the baseline of Table 2. Further arguments are those of `Localiser`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        attnet: AttNet,
        affnet: AffNet,
        teacher: Teacher,
        localise: bool = True,
        **localiser,
    ):
        super().__init__(attnet, affnet, **localiser)
        self.classifier, self.teacher = classifier, teacher
        component = torch.zeros(2, teacher.features_of(classifier.backbone)) if teacher.needs_component else None
        self.register_buffer("teacher_component", component)  # fitted before training; kept with the weights
        self.localise = localise

    def forward(self, images: Tensor) -> ModelOutput:
        cropped, theta, attention = super().forward(images)
        answer = self.classifier(cropped)
        logits, embedding = (answer, None) if isinstance(answer, Tensor) else answer
        return ModelOutput(logits, embedding, attention, theta, cropped)

    def predict(self, images: Tensor) -> Answer:
        """X (B, 3, H, W) → `Answer`, with theta's box (without `crop_margin`) and AttNet's map."""
        output = self(images)
        logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
        return Answer(logits.log_softmax(dim=1), theta_to_box(output.theta), output.attention)

    def localisation(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """X → A (B, 1, n, n) and theta (B, 4); None and the identity where localisation is off."""
        return super().localisation(images) if self.localise else (None, whole_image(images))

    def teacher_map(self, images: Tensor) -> Tensor:
        """X → M (B, 1, n, n), without gradient; see `Teacher`."""
        live = getattr(self.classifier, "backbone", self.classifier)
        return self.teacher(live, images, self.teacher_component)


def build_model(config: "Config", num_classes: int, pretrained: bool = True) -> EndToEndModel:
    """The system that a configuration describes.

    A module that no gradient can reach is frozen (beta and lambda both 0), so that weight decay leaves it alone too;
    where that holds for both, localisation is off and the model is the baseline of Table 2. Raises ValueError where a
    backbone cannot do what the configuration asks of it.
    """
    attnet = build_attnet(config, pretrained)
    affnet = AffNet(config.map_size, threshold=config.threshold, sharpness=config.sharpness)
    affnet_learns = config.lambda_aff > 0 or config.beta_aff > 0
    attnet.requires_grad_(config.lambda_att > 0 or (config.beta_att > 0 and affnet_learns))
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
        localise=localises(config),
    )
    if _shapes(config) not in _FITTING:
        _check(model, config)
        _FITTING.add(_shapes(config))
    return model.to(memory_format=torch.channels_last)  # measured: 1.5 to 2.5 times as fast on CPUs


def localises(config: "Config") -> bool:
    """Whether a gradient reaches AttNet or AffNet; without one the system is the baseline of Table 2."""
    return config.lambda_att > 0 or config.lambda_aff > 0 or config.beta_aff > 0


def build_attnet(config: "Config", pretrained: bool = True) -> AttNet:
    """The AttNet that a configuration describes."""
    return AttNet(
        config.attnet_backbone,
        pretrained,
        config.map_size,
        config.attnet_standardise,
        config.attnet_stride,
        config.attnet_size,
        images_for=config.backbone,
    )


# All that the shapes in a pass depend on.
_shapes = attrgetter(
    "image_size", "crop_size", "backbone", "attnet_backbone", "attnet_stride", "attnet_size", "map_size",
    "teacher_size", "teacher_output_stride", "teacher_weights", "teacher_layer",
)  # fmt: skip
_FITTING: set[tuple] = set()  # a check costs a second, and the same networks are built again and again


class _Passes(nn.Module):
    """The networks' passes in a training step: AttNet's, the classifier's and, where it is live, the teacher's."""

    def __init__(self, model: EndToEndModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> None:
        self.model.attnet(images)
        self.model.classifier(resize(images, self.model.crop_size))
        if self.model.teacher.weights == "live":
            self.model.teacher_map(images)


@torch.no_grad()
def _check(model: EndToEndModel, config: "Config") -> None:
    """Raises ValueError where a backbone cannot take its images: a pass of shapes alone, on the meta device."""
    passes = _Passes(model).eval()
    tensors = dict(chain(passes.named_parameters(), passes.named_buffers()))
    images = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
    try:
        functional_call(passes, {name: tensor.to("meta") for name, tensor in tensors.items()}, images)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{config.backbone} (AttNet: {config.attnet_backbone}) cannot take crops of {config.crop_size} pixels and "
            f"the teacher's images of {config.teacher_size}: {error}. Choose other sizes, or a convolutional network, "
            "a vision transformer or a Swin transformer of timm."
        ) from error
    passes.train()
