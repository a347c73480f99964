"""What a training is fed with: photos as augmented squares, in an order that can be resumed.

What a loader yields holds no true box.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from fgvclib.config import Config
from fgvclib.data.augment import colour_transform, geometric_augmentation
from fgvclib.data.index import CROP
from fgvclib.data.pixels import load_pixels
from fgvclib.utils.files import keep_socket_names_short


class PhotoDataset(Dataset):
    """Photos as normalised squares. Item → {"image": (3, S, S), "label": int, "index": row of the table}.

    With `maps` (N, 1, n, n) in [0, 1], an item has its "teacher_map" (1, n, n) too, turned and mirrored with the image.
    Photos whose table has the columns `CROP` are cut there first: what AttNet found in the original photo [ELoPE], the
    bounds in X, as the end-to-end system does.

    With `augment`, item `epoch * len + i` is photo i as that epoch sees it: the random numbers depend on seed, epoch
    and photo alone, so that neither the number of workers nor an interruption changes what is trained on.
    """

    def __init__(
        self, photos: pd.DataFrame, config: Config, augment: bool = False, seed: int = 0, maps: Tensor | None = None
    ):
        self.labels = photos["label"].tolist()
        cut = CROP[0] in photos
        original = cut and config.fixed_box == "attnet"
        parts = tuple(photos[CROP].itertuples(index=False, name=None)) if original else None
        self.pixels = load_pixels(tuple(photos["path"]), config.image_size, config.cut_bottom, parts)
        self.crops = photos[CROP].to_numpy() * config.image_size if cut and not original else None
        self.maps = maps
        self.seed = seed
        self.augment = augment
        self.move = geometric_augmentation(config) if augment else v2.Identity()
        self.colour = colour_transform(config, augment)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> dict:
        epoch, index = divmod(item, len(self))
        image = self._photo(index)
        teacher_map = [] if self.maps is None else [tv_tensors.Image(self.maps[index])]
        with torch.random.fork_rng(devices=[], enabled=self.augment):
            if self.augment:
                # torch.manual_seed would note its call stack for every kind of accelerator: a fifth of a photo's time.
                torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
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


class BalancedSampler(EpochSampler):
    """As EpochSampler, so that every batch holds `classes` different classes with `photos` photos of each.

    What does not fill a batch is left out, other photos in each epoch; of a class with fewer than `photos`, everything:
    `training.loop.train` refuses such a class.
    """

    def __init__(self, labels: Sequence[int], seed: int, classes: int, photos: int):
        super().__init__(len(labels), seed)
        self.rows = pd.Series(range(len(labels))).groupby(np.asarray(labels)).apply(np.array)
        self.classes, self.photos = min(classes, len(self.rows)), photos

    def __len__(self) -> int:
        groups = [len(rows) // self.photos for rows in self.rows]
        rounds = [sum(count > turn for count in groups) for turn in range(max(groups))]
        return sum(count // self.classes * self.classes for count in rounds) * self.photos

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = [rng.permutation(rows) for rows in self.rows]
        order = []
        for turn in range(max(map(len, shuffled)) // self.photos):
            groups = [rows[turn * self.photos :][: self.photos] for rows in shuffled]
            groups = [groups[i] for i in rng.permutation(len(groups)) if len(groups[i]) == self.photos]
            order += groups[: len(groups) // self.classes * self.classes]
        return iter((self.epoch * self.length + np.concatenate(order)).tolist())


def training_loader(
    photos: pd.DataFrame,
    config: Config,
    seed: int,
    maps: Tensor | None = None,
    balanced: tuple[int, int] | None = None,
) -> tuple[DataLoader, EpochSampler]:
    """Augmented batches; a last batch that is not full is left out (BatchNorm cannot work on a single image).

    With `balanced` (classes, photos of each), batches are those of BalancedSampler, whatever `batch_size`.
    """
    dataset = PhotoDataset(photos, config, augment=True, seed=seed, maps=maps)
    if balanced:
        sampler = BalancedSampler(dataset.labels, seed, *balanced)
        sized = replace(config, batch_size=sampler.classes * sampler.photos)
        return _loader(dataset, sized, sampler=sampler), sampler
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
        # Else it takes its seed from the training's random numbers, which must not change with the number of workers,
        # nor where a run is resumed.
        generator=torch.Generator(),
        worker_init_fn=keep_socket_names_short,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


def _mix(*numbers: int) -> int:
    """One seed from several numbers, without the collisions of a sum."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
