"""A data set as torchvision has them, for a look at photos with their true boxes, or for an oracle's crops.

Not for training the system of the paper, which sees no boxes: that is `fgvclib.data.loaders.PhotoDataset`.
"""

from collections.abc import Callable

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from fgvclib.config import Config
from fgvclib.data.index import BOX
from fgvclib.data.pixels import read_photo
from fgvclib.data.splits import read_dataset


class BoxedPhotos(Dataset):
    """Full photos of the official `split`, "train" or "test". Item → {"image", "label", "box"}.

    `image` is a tv_tensors.Image (3, H, W) of uint8, `label` an int, `box` tv_tensors.BoundingBoxes (1, 4) in pixels,
    xyxy, or None. `transforms` (torchvision's v2) get the whole item, so that the box moves with the image.
    """

    def __init__(self, config: Config, split: str, transforms: Callable[[dict], dict] | None = None):
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; choose train or test.")
        photos, self.classes = read_dataset(config)
        self.photos = photos[photos["is_train"] == (split == "train")].reset_index(drop=True)
        self.config, self.transforms = config, transforms

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> dict:
        photo = self.photos.iloc[index]
        image = tv_tensors.Image(functional.pil_to_tensor(read_photo(photo["path"], self.config.cut_bottom)))
        item = {"image": image, "label": int(photo["label"]), "box": _box(photo, image)}
        return item if self.transforms is None else self.transforms(item)


def _box(photo, image: tv_tensors.Image) -> tv_tensors.BoundingBoxes | None:
    corners = torch.tensor([[float(photo[corner]) for corner in BOX]])
    if corners.isnan().any():
        return None
    box = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=image.shape[-2:])
    return functional.clamp_bounding_boxes(box)
