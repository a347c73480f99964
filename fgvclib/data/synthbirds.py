"""SynthBirds, drawn by `synthbirds` in the layout of CUB-200-2011."""

from pathlib import Path

import synthbirds
from fgvclib.config import Config, data_root
from fgvclib.data.cub200 import fingerprint, read
from fgvclib.utils.progress import progress

__all__ = ["CHECKSUMS", "COUNTS", "fingerprint", "prepare", "read"]

COUNTS = None  # as many as the configuration says
CHECKSUMS: dict[str, str] = {}


def prepare(config: Config) -> Path:
    """Folder of the data set, drawn where it is missing."""
    num_classes = max(config.classes) + 1 if config.classes else config.num_classes
    num_classes = len(synthbirds.species_list(num_classes))
    name = f"synthbirds-{num_classes}x{config.train_per_class}+{config.test_per_class}-{config.photo_size}px"
    return synthbirds.generate(
        data_root() / name,
        num_classes=num_classes,
        train_per_class=config.train_per_class,
        test_per_class=config.test_per_class,
        image_size=config.photo_size,
        progress=progress,
    )
