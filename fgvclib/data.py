"""What a training is fed with: photos as augmented squares, in an order that can be resumed.

`fgvclib.datasets` reads the data sets; its names that every experiment needs can be imported from here as well. What a
loader yields holds no true box.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from fgvclib.backbones import normalisation
from fgvclib.config import Config
from fgvclib.datasets import BOX, Splits, dataset_checksum, load_splits, prepare_dataset
from fgvclib.datasets.pixels import load_pixels, to_square

__all__ = [
    "BOX",
    "CROP",
    "EpochSampler",
    "Lighting",
    "PhotoDataset",
    "Splits",
    "dataset_checksum",
    "evaluation_loader",
    "load_pixels",
    "load_splits",
    "prepare_dataset",
    "to_input",
    "training_loader",
]

CROP = [f"crop_{corner}" for corner in BOX]  # of photos that are cut before training: see fixed_boxes.py


class PhotoDataset(Dataset):
    """Photos as normalised squares. Item → {"image": (3, S, S), "label": int, "index": row of the table}.

    With `maps` (N, 1, n, n) in [0, 1], an item has its "teacher_map" (1, n, n) too, turned and mirrored with the image.
    Photos whose table has the columns `CROP` are cut there first.

    With `augment`, item `epoch * len + i` is photo i as that epoch sees it: the random numbers depend on seed, epoch
    and photo alone, so that neither the number of workers nor an interruption changes what is trained on.
    """

    def __init__(
        self, photos: pd.DataFrame, config: Config, augment: bool = False, seed: int = 0, maps: Tensor | None = None
    ):
        self.labels = photos["label"].tolist()
        self.pixels = load_pixels(tuple(photos["path"]), config.image_size, config.cut_bottom)
        self.crops = photos[CROP].to_numpy() * config.image_size if CROP[0] in photos else None
        self.maps = maps
        self.seed = seed
        self.augment = augment
        self.move = _geometric_augmentation(config) if augment else v2.Identity()
        self.colour = _colour_transform(config, augment)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> dict:
        epoch, index = divmod(item, len(self))
        image = self._photo(index)
        teacher_map = [] if self.maps is None else [tv_tensors.Image(self.maps[index])]
        with torch.random.fork_rng(devices=[], enabled=self.augment):
            if self.augment:
                torch.manual_seed(_mix(self.seed, epoch, index))
            image, *teacher_map = self.move([image, *teacher_map])
            found = {"image": self.colour(image), "label": self.labels[index], "index": index}
        return found if self.maps is None else found | {"teacher_map": teacher_map[0].as_subclass(Tensor)}

    def _photo(self, index: int) -> Image.Image:
        photo = Image.fromarray(self.pixels[index])
        if self.crops is None:
            return photo
        return photo.resize(photo.size, Image.Resampling.BILINEAR, box=tuple(self.crops[index]))


class EpochSampler(Sampler):
    """All items in a new order each epoch, as `epoch * len + index`. Set `epoch` before iterating."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter((self.epoch * self.length + order).tolist())


def training_loader(
    photos: pd.DataFrame, config: Config, seed: int, maps: Tensor | None = None
) -> tuple[DataLoader, EpochSampler]:
    """Augmented batches; a last batch that is not full is left out (BatchNorm can not work on a single image)."""
    dataset = PhotoDataset(photos, config, augment=True, seed=seed, maps=maps)
    sampler = EpochSampler(len(dataset), seed)
    drop_last = len(dataset) > config.batch_size
    return _loader(dataset, config, sampler=sampler, drop_last=drop_last), sampler


def evaluation_loader(
    photos: pd.DataFrame, config: Config, maps: Tensor | None = None, image_size: int | None = None
) -> DataLoader:
    """Every photo once, in the table's order, resized (to `image_size` where it is given) and normalised."""
    sized = replace(config, image_size=image_size or config.image_size)
    return _loader(PhotoDataset(photos, sized, maps=maps), config)


def _loader(dataset: Dataset, config: Config, **options) -> DataLoader:
    return DataLoader(
        dataset,
        config.batch_size,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


def to_input(photo: Image.Image, config: Config) -> Tensor:
    """An RGB photo of any size → what the system gets of it at test time: a normalised square (3, S, S)."""
    return _colour_transform(config, augment=False)(to_square(photo, config.image_size))


def _geometric_augmentation(config: Config) -> v2.Transform:
    """Turns and mirrors an image, and a map with it; outside the image is the mean colour, outside the map zero."""
    mean, _ = normalisation(config.backbone)
    fill = {Image.Image: [round(255 * channel) for channel in mean], tv_tensors.Image: [0.0]}
    turn = v2.RandomRotation(20, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
    return v2.Compose([turn, v2.RandomHorizontalFlip()])


def _colour_transform(config: Config, augment: bool) -> v2.Transform:
    """PIL image → normalised tensor, with colours jittered where `augment` asks for it."""
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    normalise = [v2.Normalize(*normalisation(config.backbone))]
    if not augment:
        return v2.Compose([*to_tensor, *normalise])
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
    return v2.Compose([jitter, *to_tensor, Lighting(0.1), *normalise])


class Lighting(v2.Transform):
    """AlexNet-style colour noise along the principal components of ImageNet's pixels; images in [0, 1] [ELoPE]."""

    eigenvalues = torch.tensor([0.2175, 0.0188, 0.0045])
    eigenvectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

    def __init__(self, strength: float):
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list) -> dict[str, Tensor]:
        weights = torch.randn(3) * self.strength * self.eigenvalues
        return {"shift": (self.eigenvectors @ weights).view(3, 1, 1)}

    def transform(self, inpt: Tensor, params: dict[str, Tensor]) -> Tensor:
        return inpt + params["shift"]


def _mix(*numbers: int) -> int:
    """One seed from several numbers, without the collisions of a sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
