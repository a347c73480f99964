"""NTS-Net (Yang et al. 2018): a navigator scores windows of the photo, a classifier says which of them tell the class.

The classifier looks at the windows with the best scores, and its loss on each of them orders them; the navigator must
rank them alike. The answer comes from the features of the photo and of the best windows, side by side.

Constants are those of `yangze0930/NTS-Net`, which cuts six windows at test time, too, and uses four. It was trained by
SGD at 0.001 for all parameters, divided by 10 after 60 and 100 epochs, weight decay 1e-4, batches of 16; here the
profile's schedule holds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.geometry import resize
from fgvclib.systems.base import Looks, System
from fgvclib.systems.windows import best_windows, cut

THIRD, TWO_THIRDS = 2 ** (1 / 3), 2 ** (2 / 3)  # of an octave: three sides between one and its double
# Of each of the navigator's maps: the side of a cell in pixels of the input, if the backbone's stride is 32; the sides
# of its windows in pixels of an input of 448.
LEVELS = (
    (32, (48 * THIRD, 48 * TWO_THIRDS)),
    (64, (96 * THIRD, 96 * TWO_THIRDS)),
    (128, (192, 192 * THIRD, 192 * TWO_THIRDS)),
)
RATIOS = (0.667, 1.0, 1.5)  # height over width
PUBLISHED_CROP = 448
WIDTH = 128  # channels of the navigator
PROPOSED, CONCATENATED = 6, 4  # windows looked at in training, and those of them whose features answer
NMS_IOU = 0.25
DROPOUT = 0.5
NAVIGATOR_RATE = 0.1  # ours: at the full rate of the other systems the rank loss makes it diverge


class Navigator(nn.Module):
    """F (B, C, n, n) → a score s for every window (B, N), in the order of `anchors`."""

    def __init__(self, channels: int):
        super().__init__()
        layers = [nn.Conv2d(channels if i == 0 else WIDTH, WIDTH, 3, min(i + 1, 2), padding=1) for i in range(3)]
        self.convolutions = nn.ModuleList(layers)
        self.scores = nn.ModuleList(nn.Conv2d(WIDTH, len(sides) * len(RATIOS), 1) for _, sides in LEVELS)

    def forward(self, features: Tensor) -> Tensor:
        found = []
        for convolution, score in zip(self.convolutions, self.scores, strict=True):
            features = convolution(features).relu()
            found.append(score(features).permute(0, 2, 3, 1).flatten(1))  # cell by cell, as the anchors
        return torch.cat(found, dim=1)


class NTS(System):
    """Logits "main" (photo and windows together) and, in training, "photo" and "windows" (6 B); scores as a part.

    Raises ValueError for a backbone whose last stage has another stride than the windows' first level.
    """

    passes = 2.0  # 1 + 4 windows at half the side
    training_passes = 2.5  # 1 + 6
    halves = True
    smallest_crop = 224  # in a smaller one hardly any windows are left (ours)
    # Scores of a level learn only where one of its windows was chosen; a convolution, from its own level and the later.
    without_gradient = tuple(
        f"navigator.{part}.{level}.{kind}"
        for part in ("convolutions", "scores")
        for level in range(len(LEVELS))
        for kind in ("weight", "bias")
    )

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        stride, needed = self.backbone.feature_info[-1]["reduction"], LEVELS[0][0]
        if stride != needed:
            raise ValueError(f"nts looks at features of stride {needed}, but those of {backbone} have {stride}.")
        channels = self.backbone.num_features
        self.navigator = Navigator(channels)
        self.dropout = nn.Dropout(DROPOUT)
        self.photo, self.window = nn.Linear(channels, num_classes), nn.Linear(channels, num_classes)
        self.together = nn.Linear((1 + CONCATENATED) * channels, num_classes)
        self.register_buffer("anchors", anchors(crop_size), persistent=False)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        features = self.features(resize(images, self.crop_size))
        scores = self.navigator(features.detach())  # the rank loss must not change what the classifier sees
        count = PROPOSED if self.training else CONCATENATED
        chosen = best_windows(scores.detach().float(), self.anchors, count, NMS_IOU)  # (B, count)
        views = cut(images, self.anchors[chosen] / self.crop_size, self.crop_size // 2)  # zeros beyond the photo
        of_photo = self.dropout(features.mean(dim=(2, 3)))  # (B, C)
        of_windows = self.dropout(self.features(views).mean(dim=(2, 3))).view(len(images), count, -1)
        together = torch.cat([of_photo[:, None], of_windows[:, :CONCATENATED]], dim=1).flatten(1)
        logits = {"main": self.together(together)}
        if self.training:
            logits |= {"photo": self.photo(of_photo), "windows": self.window(of_windows).flatten(0, 1)}
        return Looks(logits, {"scores": scores.gather(1, chosen)})

    def loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        """CE(photo) + CE(together) + mean CE(windows) + rank loss."""
        of_windows = F.cross_entropy(looks.logits["windows"], labels.repeat_interleave(PROPOSED), reduction="none")
        terms = {
            "photo": F.cross_entropy(looks.logits["photo"], labels),
            "together": F.cross_entropy(looks.logits["main"], labels),
            "windows": of_windows.mean(),
            "rank": rank_loss(looks.parts["scores"], of_windows.detach().view(-1, PROPOSED)),
        }
        return terms | {"total": sum(terms.values())}

    def groups(self) -> list[dict]:
        layers = [self.backbone, self.photo, self.window, self.together]
        return [
            {"params": [parameter for layer in layers for parameter in layer.parameters()], "rate": 1.0},
            {"params": list(self.navigator.parameters()), "rate": NAVIGATOR_RATE},
        ]


def rank_loss(scores: Tensor, errors: Tensor) -> Tensor:
    """Scores s and errors CE of windows (B, M) → (1/B) sum of max(0, 1 - s_i + s_j) over i, j with CE_j > CE_i."""
    worse = errors[:, None, :] > errors[:, :, None]  # (B, i, j)
    hinge = (1 - scores[:, :, None] + scores[:, None, :]).relu()
    return (hinge * worse).sum() / len(scores)


def anchors(crop_size: int) -> Tensor:
    """Windows (N, 4) xyxy in pixels of the first look, level by level, row by row; they can reach beyond the photo.

    Sides are in proportion to crop_size, so that at 224 px they are half as long (ours).
    """
    boxes = []
    for stride, sides in LEVELS:
        cells = -(-crop_size // stride)  # a convolution of stride 2 rounds up
        centres = (torch.arange(cells) + 0.5) * stride
        y, x = (place.reshape(-1, 1) for place in torch.meshgrid(centres, centres, indexing="ij"))
        shapes = torch.tensor([(side * ratio**0.5, side / ratio**0.5) for side in sides for ratio in RATIOS])
        height, width = crop_size / PUBLISHED_CROP * shapes.T
        boxes.append(torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1).flatten(0, 1))
    return torch.cat(boxes)
