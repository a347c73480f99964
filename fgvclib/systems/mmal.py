"""MMAL (Zhang et al. 2021), named TBMSL-Net in Table 3: one network looks at the photo, the object and its parts.

The activations of the photo's maps tell where the object is, and the same network looks at that box again: its answer
counts. In training it also looks at the windows of the object that are most active, so that it learns from parts too.

Constants are those of `ZF4444/MMAL-Net`. Their recipe: SGD with a learning rate of 0.001 for all parameters, divided by
10 after 60 and 100 of 200 epochs, weight decay 1e-4, batches of 6.
"""

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvclib.model.geometry import attention_to_box, box_to_theta, crop, largest_component, nested, resize
from fgvclib.systems.base import Looks, System
from fgvclib.systems.windows import activation, best_windows, cut

# Shapes of windows, (rows, columns) in cells of a 14x14 map, and how many of each size are looked at.
Sizes = tuple[tuple[tuple[tuple[int, int], ...], int], ...]
BIRDS: Sizes = (
    (((4, 4), (3, 5), (5, 3)), 2),
    (((6, 6), (5, 7), (7, 5)), 3),
    (((8, 8), (6, 10), (10, 6), (7, 9), (9, 7), (7, 10), (10, 7)), 2),
)
VEHICLES: Sizes = (  # Cars and Aircraft
    (((6, 6), (5, 7), (7, 5)), 3),
    (((8, 8), (6, 10), (10, 6), (7, 9), (9, 7)), 2),
    (((10, 10), (9, 11), (11, 9), (8, 12), (12, 8)), 1),
)
PUBLISHED_CELLS = 14  # of the last map of a ResNet at 448 px
FEWEST_CELLS = 8  # a coarser map than this holds no windows worth choosing between (ours)
NMS_IOU = 0.25
DROPOUT = 0.5


class MMAL(System):
    """Logits "photo", "main" (the object) and, in training, "windows"; in the first epoch the photo's alone, as "main".

    Raises ValueError for a backbone that is a transformer: its blocks give no maps.
    """

    localise = True
    passes = 2.0
    training_passes = 3.75  # 1 + 1 + 7 windows at half the side
    halves = True
    smallest_crop = 4 * FEWEST_CELLS  # the first stage that is made of blocks has a stride of 4
    sizes = BIRDS
    photo_alone = False

    def __init__(self, num_classes: int, backbone: str, crop_size: int, pretrained: bool = True):
        super().__init__(num_classes, backbone, crop_size, pretrained)
        if hasattr(self.backbone, "num_prefix_tokens") or getattr(self.backbone, "output_fmt", "NCHW") != "NCHW":
            raise ValueError(f"mmal needs a convolutional backbone, which {backbone} is not; choose a ResNet.")
        # The last stage, or an earlier one where the last has too few cells (ours).
        stages = [s for s in self.backbone.feature_info if crop_size // s["reduction"] >= FEWEST_CELLS]
        self.stage, cells = stages[-1]["module"], crop_size // stages[-1]["reduction"]
        if cells < PUBLISHED_CELLS:
            self.sizes = halved(self.sizes)
        self.output = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(self.backbone.num_features, num_classes))

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.photo_alone = epoch == 0

    def look(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images → logits, and A (B, n, n) of the stage's last two blocks, or of its only one (ours); no gradient."""
        stage = self.backbone.get_submodule(self.stage)
        maps = []
        with ExitStack() as hooks:
            for block in list(getattr(stage, "blocks", stage).children())[-2:]:
                hooks.enter_context(block.register_forward_hook(lambda *call: maps.append(activation(call[-1]))))
            x = self.features(images).mean(dim=(2, 3))
        return self.output(x), maps

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Looks:
        photo, maps = self.look(resize(images, self.crop_size))
        if self.training and self.photo_alone:
            return Looks({"main": photo})
        boxes = object_box(maps)
        of_object, maps = self.look(crop(images, box_to_theta(boxes), self.crop_size))
        logits = {"photo": photo, "main": of_object}
        if self.training:
            windows = nested(active_windows(maps[-1], self.sizes), boxes[:, None])
            logits["windows"], _ = self.look(cut(images, windows, self.crop_size // 2))
        return Looks(logits, boxes=boxes)

    def loss(self, looks: Looks, labels: Tensor) -> dict[str, Tensor]:
        """CE(photo) + CE(object) + mean CE(windows)."""
        terms = {}
        for name, logits in looks.logits.items():
            terms[name] = F.cross_entropy(logits, labels.repeat_interleave(len(logits) // len(labels)))
        return terms | {"total": sum(terms.values())}


class MMALVehicles(MMAL):
    """The windows for Cars and Aircraft."""

    training_passes = 3.5  # 6 windows
    sizes = VEHICLES


def object_box(maps: list[Tensor]) -> Tensor:
    """A of some blocks, the last one last → boxes (B, 4) in [0, 1]; the whole photo where nothing is found.

    Above-average cells of the last A; of these the largest component; of it, what lies in the masks of the others.
    """
    *others, last = [attention > attention.mean(dim=(1, 2), keepdim=True) for attention in maps]
    cells = largest_component(last)
    for mask in others:
        cells = cells & mask
    return attention_to_box(cells[:, None].float(), threshold=0.5)


def slide(attention: Tensor, shapes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """A (B, n, n) → mean activation (B, N) of the windows of all shapes at all places, boxes (N, 4) xyxy in cells."""
    means, boxes = [], []
    for rows, columns in shapes:
        means.append(F.avg_pool2d(attention[:, None], (rows, columns), stride=1).flatten(1))
        places = [torch.arange(attention.shape[1] - side + 1, device=attention.device) for side in (rows, columns)]
        y, x = (place.flatten() for place in torch.meshgrid(*places, indexing="ij"))
        boxes.append(torch.stack([x, y, x + columns, y + rows], dim=1))
    return torch.cat(means, dim=1), torch.cat(boxes).float()


def active_windows(attention: Tensor, sizes: Sizes) -> Tensor:
    """A of the object (B, n, n) → its windows (B, M, 4) in [0, 1]: the most active of each size that hardly overlap."""
    chosen = []
    for shapes, count in sizes:
        means, boxes = slide(attention, shapes)
        chosen.append(boxes[best_windows(means, boxes, count, NMS_IOU)])
    return torch.cat(chosen, dim=1) / attention.shape[1]


def halved(sizes: Sizes) -> Sizes:
    """Windows for a map of fewer cells: half as high and wide, rounded up (ours)."""
    return tuple((tuple(dict.fromkeys(((h + 1) // 2, (w + 1) // 2) for h, w in shapes)), n) for shapes, n in sizes)
