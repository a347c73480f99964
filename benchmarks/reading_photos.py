"""Images per second of `PhotoDataset` beside torchvision's `ImageFolder` with the same transforms, in one process.

    python benchmarks/reading_photos.py --dataset cub200 --profile cpu --num-classes 25

Each round measures all ways of reading one after the other, so that whatever else the machine does slows all of them.
The items are compared first: all ways give the same pixels, augmented or not. What `ImageFolder` reads and resizes goes
through the very transforms of `PhotoDataset`.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fgvclib.config import DATASETS, PROFILES, Config, load_config
from fgvclib.data.loaders import PhotoDataset
from fgvclib.data.splits import load_splits

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
    config = load_config(arguments.profile, arguments.dataset, cut_banner=False, **chosen)  # ImageFolder cuts nothing
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
    for index in range(0, len(photos), 10):
        images = [dataset[index]["image"] for dataset in datasets.values()]
        if not all(torch.equal(images[0], image) for image in images):
            raise ValueError(f"photo {index} has other pixels")
    return pd.DataFrame([{name: rate(dataset) for name, dataset in datasets.items()} for _ in range(rounds)])


def all_ways(photos: pd.DataFrame, config: Config, folder: Path, augment: bool) -> dict[str, PhotoDataset]:
    theirs, ours = (PhotoDataset(photos, config, augment=augment) for _ in range(2))
    theirs.pixels = FolderPixels(ImageFolder(folder, v2.Resize((config.image_size, config.image_size))))
    return {THEIRS: theirs, "decoded once, from the file": ours}


class FolderPixels:
    """Squares of uint8 that torchvision reads and resizes."""

    def __init__(self, dataset: ImageFolder):
        self.dataset = dataset

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self.dataset[index][0])


def rate(dataset: PhotoDataset) -> float:
    """Images per second over one pass."""
    start = time.perf_counter()
    for index in range(len(dataset)):
        dataset[index]
    return len(dataset) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
