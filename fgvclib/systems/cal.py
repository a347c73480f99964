"""CAL (Rao et al. 2021), counterfactual attention, and WS-DAN (Hu et al. 2019), on which it builds.

Several learned attention maps pool the features; in training one drawn by chance shows where to crop a second view, and
one more, perhaps the same, what to hide in a third. CAL adds that the learned maps must answer better than random ones:
the difference, the effect of attention, has to name the class too.

Constants are those of `raoyongming/CAL:fgvc`, whose published accuracy averages eight looks. It was trained by SGD at
0.001 for all parameters, times 0.9 every second epoch, weight decay 1e-5, four photos on each of four GPUs, 160 epochs;
here the profile's schedule holds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.geometry import attention_to_box, box_to_theta, crop, resize
from fgvclib.model.system import Answer
from fgvclib.systems.base import Looks, System
from fgvclib.utils.parallel import of_all_processes

PUBLISHED_CELLS = 14  # along a side of F for a ResNet at 448 px
MAPS, FEW_MAPS = 32, 8  # M; the second where F has fewer cells (ours)
SCALE = 100.0  # of the normalised features before the linear layer
CENTRE_RATE = 0.05  # the step of c towards f
RATE_FACTOR = 0.1  # ours: at the full rate of the other systems the scaled features make the loss diverge
# Thresholds as shares of a map's largest value, drawn between the two; margins as shares of the photo's side.
CROP_THRESHOLD, CROP_MARGIN = (0.4, 0.6), 0.1
DROP_THRESHOLD = (0.2, 0.5)
TEST_THRESHOLD, TEST_MARGIN = 0.1, 0.05


class CAL(System):
    """Logits "main" = Y of the photo, "views" of the crop and the drop (2B), "effect" = Y - Y' of all three (3B).

    Y' are the logits that random attention gives.
    """

    localise = True
    passes = 2.0
    training_passes = 3.0
    counterfactual = True

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        cells = crop_size // self.backbone.feature_info[-1]["reduction"]
        maps, channels = MAPS if cells >= PUBLISHED_CELLS else FEW_MAPS, self.backbone.num_features
        self.attend = nn.Sequential(nn.Conv2d(channels, maps, 1, bias=False), nn.BatchNorm2d(maps), nn.ReLU())
        self.output = nn.Linear(maps * channels, num_classes, bias=False)
        self.register_buffer("centres", torch.zeros(num_classes, maps * channels))  # c

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images → logits Y (B, K), Y - Y' (just Y where it is not needed), f (B, M C), A (B, M, n, n) in fp32."""
        features = self.features(images)
        attention = self.attend(features)
        f = pool(attention, features)
        logits = self.output(SCALE * f)
        effect = logits
        if self.training and self.counterfactual:
            effect = logits - self.output(SCALE * pool(self.random_attention(attention), features))
        return logits, effect, f, attention.detach().float()

    def random_attention(self, attention: Tensor) -> Tensor:
        """The map of the counterfactual: uniform in [0, 2) in every cell, whatever the photo."""
        return 2 * torch.rand_like(attention)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        """In evaluation mode, the mean of the logits of the photo and of a crop around all that the maps mark."""
        photo = resize(images, self.crop_size)
        logits, effect, f, attention = self.answer(photo)
        if not self.training:
            boxes = marked_box(attention.mean(dim=1), TEST_THRESHOLD, TEST_MARGIN, self.crop_size)
            of_crop, *_ = self.answer(crop(images, box_to_theta(boxes), self.crop_size))
            return Looks({"main": (logits + of_crop) / 2}, boxes=boxes)
        cropping, dropping = draw_maps(attention)
        boxes = marked_box(cropping, draw(CROP_THRESHOLD, len(images), images.device), CROP_MARGIN, self.crop_size)
        cropped = crop(images, box_to_theta(boxes), self.crop_size)
        dropped = photo * ~marked(dropping, draw(DROP_THRESHOLD, len(images), images.device), self.crop_size)[:, None]
        views, effect_of_views, *_ = self.answer(torch.cat([cropped, dropped]))
        named = {"main": logits, "views": views, "effect": torch.cat([effect, effect_of_views])}
        return Looks(named, {"features": f, "centres": self.move_centres(f.detach(), labels)}, boxes)

    @torch.no_grad()
    def move_centres(self, f: Tensor, labels: Tensor) -> Tensor:
        """The normalised centres of the photos' classes (B, M C), before c += 0.05 (f - c/|c|) for each photo.

        Where several processes train, for the photos of all, so that c stays equal everywhere.
        """
        normalised = F.normalize(self.centres[labels], dim=1)
        f, normalised_of_all, labels = map(of_all_processes, (f, normalised, labels))
        self.centres.index_add_(0, labels, CENTRE_RATE * (f - normalised_of_all))
        return normalised

    def loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        """⅓ CE(Y) + ⅔ CE(Y of the views) + CE(effect) + the batch's mean of |f - c/|c||²."""
        logits, parts = looks.logits, looks.parts
        terms = {
            "photo": F.cross_entropy(logits["main"], labels) / 3,
            "views": F.cross_entropy(logits["views"], labels.repeat(2)) * 2 / 3,
            "centres": (parts["features"] - parts["centres"]).square().sum() / len(labels),
        }
        if self.counterfactual:
            terms["effect"] = F.cross_entropy(logits["effect"], labels.repeat(3))
        return terms | {"total": sum(terms.values())}

    def groups(self) -> list[dict]:
        return [{"params": list(self.parameters()), "rate": RATE_FACTOR}]


class CALOneLook(CAL):
    """CAL that answers from the photo alone, without the crop."""

    localise = False
    passes = 1.0

    def predict(self, images: Tensor) -> Answer:
        logits, *_ = self.answer(resize(images, self.crop_size))
        return Answer(logits.float().log_softmax(dim=1))


class WSDAN(CAL):
    """CAL without the effect of attention in the loss."""

    counterfactual = False


def pool(attention: Tensor, features: Tensor) -> Tensor:
    """A (B, M, n, n) and F (B, C, n, n) → f (B, M C) of length 1: means of A_m F, signed square roots, normalised."""
    means = torch.einsum("bmij,bcij->bmc", attention, features).flatten(1).float() / attention[0, 0].numel()
    return F.normalize(means.sign() * (means.abs() + 1e-6).sqrt(), dim=1)


def draw_maps(attention: Tensor) -> Tensor:
    """A (B, M, n, n) → two of the maps of each photo (2, B, n, n), drawn in proportion to the root of their sums."""
    weights = (attention.sum(dim=(2, 3)) + 1e-8).sqrt()
    drawn = torch.multinomial(weights, 2, replacement=True)
    return attention[torch.arange(len(attention), device=attention.device), drawn.T]


def draw(between: tuple[float, float], count: int, device: torch.device) -> Tensor:
    """Uniform numbers between the two: (count, 1, 1)."""
    low, high = between
    return low + (high - low) * torch.rand(count, 1, 1, device=device)


def marked(maps: Tensor, threshold: Tensor | float, size: int) -> Tensor:
    """Maps (B, n, n) → flags (B, size, size) of the pixels that reach `threshold` times the largest value of a map."""
    limit = threshold * maps.amax(dim=(1, 2), keepdim=True)
    return resize(maps[:, None], size).squeeze(1) >= limit


def marked_box(maps: Tensor, threshold: Tensor | float, margin: float, size: int) -> Tensor:
    """Maps (B, n, n) → the hull of the marked pixels, wider by `margin` on each side: boxes (B, 4) in [0, 1]."""
    boxes = attention_to_box(marked(maps, threshold, size)[:, None].float(), threshold=0.5)
    return (boxes + margin * boxes.new_tensor([-1, -1, 1, 1])).clamp(0, 1)
