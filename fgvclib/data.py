"""Photos in the CUB-200-2011 layout: reading, splitting, augmenting.

True boxes serve evaluation alone. They live in the validation and test tables that `evaluation` reads; the training
table has no such columns, and what a loader yields has none either.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from fgvclib import synthbirds
from fgvclib.backbones import normalisation
from fgvclib.config import Config, data_root

BOX = ["x1", "y1", "x2", "y2"]
CROP = [f"crop_{corner}" for corner in BOX]  # of photos that are cut before training: see fixed_boxes.py
INDEX_FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "classes.txt")
CACHE_LIMIT = 4 * 2**30  # bytes of decoded photos to keep in memory
DECODING_THREADS = 8


@dataclass(frozen=True)
class Splits:
    """Tables with one row per photo: image_id, path, label; `validation` and `test` also x1, y1, x2, y2 in [0, 1].

    `validation` is a fixed part of the official training split, the same for every seed.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    class_names: list[str]


def prepare_dataset(config: Config) -> Path:
    """Folder of the configured data set; SynthBirds is drawn where it is missing.

    Raises FileNotFoundError that says what to download where a data set is not there.
    """
    if config.dataset == "synthbirds":
        num_classes = len(synthbirds.species_list(config.num_classes))
        name = f"synthbirds-{num_classes}x{config.train_per_class}+{config.test_per_class}-{config.photo_size}px"
        return synthbirds.generate(
            data_root() / name,
            num_classes=num_classes,
            train_per_class=config.train_per_class,
            test_per_class=config.test_per_class,
            image_size=config.photo_size,
        )
    root = data_root() / "CUB_200_2011"
    if not (root / "images.txt").is_file():
        raise FileNotFoundError(
            f"CUB-200-2011 is not in {root}; download CUB_200_2011.tgz from CaltechDATA, and unpack it there."
        )
    return root


def load_splits(config: Config) -> Splits:
    """Read the configured data set and set the validation part aside."""
    photos, class_names = read_cub(prepare_dataset(config), config.num_classes)
    is_train = photos.pop("is_train")
    fit, validation = _set_aside(photos[is_train], config.validation_fraction)
    if config.fixed_box == "oracle":
        fit = _with_relative_boxes(fit)  # the one row that is told where the bird is; see fixed_boxes.py
    else:
        fit = fit.drop(columns=BOX).reset_index(drop=True)
    return Splits(
        train=fit,
        validation=_with_relative_boxes(validation),
        test=_with_relative_boxes(photos[~is_train]),
        class_names=class_names,
    )


def read_cub(root: Path | str, num_classes: int | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Photos and class names of a folder in the CUB-200-2011 layout; only the first `num_classes` where given.

    The table has `image_id`, `path`, `label` from 0, `is_train` and the box x1, y1, x2, y2 in pixels. Raises
    FileNotFoundError or ValueError that names the file at fault.
    """
    root = Path(root)
    class_names = _read_index(root / "classes.txt", ["name"])["name"].sort_index()
    if list(class_names.index) != list(range(1, len(class_names) + 1)):
        raise ValueError(f"{root / 'classes.txt'} must number the classes from 1 without gaps.")
    images = _read_index(root / "images.txt", ["path"])
    labels = _numbers(root / "image_class_labels.txt", ["label"], range(1, len(class_names) + 1))
    is_train = _numbers(root / "train_test_split.txt", ["is_train"], range(2))
    boxes = _numbers(root / "bounding_boxes.txt", ["x1", "y1", "width", "height"])
    photos = pd.concat([images, labels, is_train, boxes], axis=1)
    if photos.isna().any(axis=None):
        raise ValueError(f"The index files in {root} do not list the same image ids; unpack the data set again.")
    photos = photos.astype({"label": int, "is_train": bool})
    photos["label"] -= 1
    photos["x2"] = photos["x1"] + photos.pop("width")
    photos["y2"] = photos["y1"] + photos.pop("height")
    photos["path"] = [str(root / "images" / path) for path in photos["path"]]
    if num_classes is not None:
        photos, class_names = photos[photos["label"] < num_classes], class_names[:num_classes]
    return photos.reset_index(names="image_id"), class_names.tolist()


def _read_index(path: Path, columns: list[str]) -> pd.DataFrame:
    """One of CUB's text files as text: an id, then one value for each column, separated by blanks.

    A single value may itself hold blanks: file names do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder is no complete copy of the CUB-200-2011 layout.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split(maxsplit=len(columns)) for line in lines if line.strip()]
        short = [row[0] for row in rows if len(row) <= len(columns)]
        if short:
            raise ValueError(f"the line of id {short[0]} is too short")
        table = pd.DataFrame(rows, columns=["id", *columns]).astype({"id": int}).set_index("id")
    except ValueError as error:
        wanted = " ".join(f"<{column}>" for column in columns)
        raise ValueError(f"{path} must hold lines of `<id> {wanted}` in UTF-8 ({error}); restore it.") from error
    if not table.index.is_unique:
        raise ValueError(f"{path} lists the id {table.index[table.index.duplicated()][0]} twice.")
    return table


def _numbers(path: Path, columns: list[str], allowed: range | None = None) -> pd.DataFrame:
    """An index file of numbers: finite, and where `allowed` is given one of these."""
    table = _read_index(path, columns).apply(pd.to_numeric, errors="coerce").astype(float)
    good = np.isfinite(table) if allowed is None else table.isin(allowed)
    if not good.all(axis=None):
        image_id = table.index[~good.all(axis=1)][0]
        wanted = "numbers" if allowed is None else f"a whole number from {allowed.start} to {allowed.stop - 1}"
        raise ValueError(f"{path}: the line of id {image_id} must hold {wanted}; restore the file.")
    return table


def _set_aside(photos: pd.DataFrame, fraction: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split off `fraction` of every class (at least one photo); the same photos every time."""
    validation = photos.groupby("label").sample(frac=fraction, random_state=0)
    missing = sorted(set(photos["label"]) - set(validation["label"]))
    first = photos[photos["label"].isin(missing)].groupby("label").head(1)
    validation = pd.concat([validation, first]).sort_index()
    return photos.drop(validation.index), validation


def _with_relative_boxes(photos: pd.DataFrame) -> pd.DataFrame:
    photos = photos.reset_index(drop=True)
    sizes = np.array([_photo_size(path) for path in photos["path"]], dtype=float).reshape(-1, 2)
    photos[BOX] = (photos[BOX].to_numpy() / np.tile(sizes, 2)).clip(0, 1)
    return photos


def _photo_size(path: str) -> tuple[int, int]:
    with _open_photo(path) as photo:
        return photo.size


@contextmanager
def _open_photo(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as photo:
            yield photo
    except OSError as error:
        raise OSError(f"{path} can not be read as a photo ({error}); restore or remove it.") from error


def dataset_checksum(config: Config) -> str:
    """SHA-256 over the index files and every photo of the configured data set."""
    root = prepare_dataset(config)
    digest = hashlib.sha256()
    for name in INDEX_FILES:
        digest.update((root / name).read_bytes())
    for path in read_cub(root)[0]["path"]:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


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
        self.pixels = load_pixels(tuple(photos["path"]), config.image_size)
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
            item = {"image": self.colour(image), "label": self.labels[index], "index": index}
        return item if self.maps is None else item | {"teacher_map": teacher_map[0].as_subclass(Tensor)}

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


@lru_cache(maxsize=4)
def load_pixels(paths: tuple[str, ...], size: int) -> "np.ndarray | _LazyPixels":
    """Photos as squares of uint8 (N, size, size, 3): decoded once into memory, or one by one if they are too many."""
    pixels = _LazyPixels(paths, size)
    if len(paths) * size * size * 3 > CACHE_LIMIT:
        return pixels
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        return np.stack(list(pool.map(pixels.__getitem__, range(len(paths)))))


class _LazyPixels:
    def __init__(self, paths: tuple[str, ...], size: int):
        self.paths, self.size = paths, size

    def __getitem__(self, index: int) -> np.ndarray:
        with _open_photo(self.paths[index]) as photo:
            return np.asarray(_square(photo.convert("RGB"), self.size))


def to_input(photo: Image.Image, config: Config) -> Tensor:
    """An RGB photo of any size → what the system gets of it at test time: a normalised square (3, S, S)."""
    return _colour_transform(config, augment=False)(_square(photo, config.image_size))


def _square(photo: Image.Image, size: int) -> Image.Image:
    return photo.resize((size, size), Image.Resampling.BILINEAR)


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
