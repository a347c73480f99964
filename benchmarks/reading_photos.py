"""Images per second of `PhotoDataset` beside torchvision's `ImageFolder` with the same transforms, in one process.

    python benchmarks/reading_photos.py --dataset cub200 --profile cpu --num-classes 25

Each round measures all ways of reading one after the other, so that whatever else the machine does slows all of them.
Before that the pixels are compared: without augmentation all ways give the same.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fgvclib.config import DATASETS, PROFILES, Config, load_config
from fgvclib.data import PhotoDataset, _transform
from fgvclib.datasets import load_splits
from fgvclib.datasets import photos as photo_files

THEIRS = "torchvision ImageFolder"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="synthbirds")
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--num-classes", type=int)
    parser.add_argument("--photos", type=int, default=150, help="default: 150")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    arguments = parser.parse_args()
    chosen = {"num_classes": arguments.num_classes} if arguments.num_classes else {}
    config = load_config(arguments.profile, arguments.dataset, **chosen)
    torch.set_num_threads(1)
    photos = load_splits(config).test
    photos = photos.sample(min(arguments.photos, len(photos)), random_state=0).sort_index().reset_index(drop=True)
    with tempfile.TemporaryDirectory() as folder:
        link_by_class(photos, Path(folder))
        for augment in (False, True):
            rates = measure(photos, config, Path(folder), augment, arguments.rounds)
            ratios = rates.div(rates[THEIRS], axis=0).median()
            table = pd.DataFrame({"images/s": rates.median().round(1), "times ImageFolder": ratios.round(2)})
            print(f"\n{len(photos)} photos of {config.dataset}, {config.image_size} pixels, augment={augment}, "
                  f"medians of {arguments.rounds} rounds\n{table.to_string()}", flush=True)  # fmt: skip


def link_by_class(photos: pd.DataFrame, folder: Path) -> None:
    """Photos as `ImageFolder` wants them, in the table's order."""
    for row, (path, label) in enumerate(zip(photos["path"], photos["label"], strict=True)):
        link = folder / f"{label:04d}" / f"{row:06d}{Path(path).suffix}"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path(path).absolute())


def measure(photos: pd.DataFrame, config: Config, folder: Path, augment: bool, rounds: int) -> pd.DataFrame:
    """Images per second of every way (columns) in every round."""
    datasets = all_ways(photos, config, folder, augment)
    for dataset in datasets.values():
        if not augment:
            compare(datasets[THEIRS], dataset, config)
    return pd.DataFrame([{name: rate(dataset) for name, dataset in datasets.items()} for _ in range(rounds)])


def all_ways(photos: pd.DataFrame, config: Config, folder: Path, augment: bool) -> dict[str, Dataset]:
    size = (config.image_size, config.image_size)
    steps = v2.Compose([v2.Resize(size, antialias=True), _transform(config, augment)])
    in_memory = PhotoDataset(photos, config, augment=augment)
    limit, photo_files.CACHE_LIMIT = photo_files.CACHE_LIMIT, 0
    photo_files._load.cache_clear()
    from_disk = PhotoDataset(photos, config, augment=augment)
    photo_files.CACHE_LIMIT = limit
    return {THEIRS: ImageFolder(folder, steps), "PhotoDataset, from the disk's cache": from_disk,
            "PhotoDataset, from memory": in_memory}  # fmt: skip


def compare(theirs: Dataset, ours: Dataset, config: Config) -> None:
    """Raises ValueError where the pixels differ."""
    for index in range(0, len(theirs), 10):
        image = ours[index] if ours is theirs else (ours[index]["image"], ours[index]["label"])
        if not torch.equal(theirs[index][0], image[0]) and not config.cut_bottom:
            raise ValueError(f"photo {index} has other pixels")


def rate(dataset: Dataset) -> float:
    """Images per second over one pass."""
    start = time.perf_counter()
    for index in range(len(dataset)):
        dataset[index]
    return len(dataset) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
