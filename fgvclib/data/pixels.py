"""Photos as squares of pixels, decoded once for each table and size.

The squares lie in one file, which is mapped into the memory of all that read it: epochs, workers and processes share
its pages, and the system drops them when it needs memory. The file is in `.cache` in the data root, or in the results
where that cannot be written, and can be deleted at any time. A square is used only if its photo has not changed since
(size and times of the file) and its own bytes are whole (CRC-32).
"""

import os
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from fgvclib.config import data_root, results_root
from fgvclib.data.photos import open_photo, upright_size
from fgvclib.utils.files import atomic_path
from fgvclib.utils.progress import progress

DECODING_THREADS = 8
READER = 2  # to be raised whenever the pixels that `read_photo` gives change
Crop = tuple[float, float, float, float]  # xyxy, as shares of the photo
WHOLE: Crop = (0.0, 0.0, 1.0, 1.0)


def read_photo(path: Path | str, cut_bottom: int = 0) -> Image.Image:
    """An upright RGB photo without its lowest `cut_bottom` rows of pixels. Raises OSError as `open_photo` does."""
    photo = open_photo(path)
    return photo.crop((0, 0, photo.width, max(photo.height - cut_bottom, 1))) if cut_bottom else photo


def photo_size(path: Path | str, cut_bottom: int = 0) -> tuple[int, int]:
    """Width and height of what `read_photo` gives, without decoding. Raises OSError as it does."""
    width, height = upright_size(path)
    return width, max(height - cut_bottom, 1)


def to_square(photo: Image.Image, size: int, crop: Crop = WHOLE) -> Image.Image:
    """The part `crop` of a photo, resized bilinearly with antialiasing; the aspect ratio is not kept [ELoPE]."""
    x1, y1, x2, y2 = crop
    part = (x1 * photo.width, y1 * photo.height, x2 * photo.width, y2 * photo.height)
    return photo.resize((size, size), Image.Resampling.BILINEAR, box=part)


def load_pixels(
    paths: tuple[str, ...], size: int, cut_bottom: int = 0, crops: tuple[Crop, ...] | None = None
) -> "Pixels":
    """Photos, or a part of each, as squares, all of them decoded and kept. Raises OSError as `open_photo` does.

    Where no place can be written, a warning says so, and the squares are decoded whenever they are read.
    """
    pixels = Pixels(paths, size, cut_bottom, crops)
    missing = [index for index in range(len(paths)) if not pixels.is_kept(index)]
    if missing:
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            for _ in progress(pool.map(pixels.decode, missing), "reading photos", total=len(missing)):
                pass
    return pixels


class Pixels:
    """Photos as squares: `pixels[index]` is an array of uint8 (size, size, 3), read from the file of the table."""

    def __init__(self, paths: tuple[str, ...], size: int, cut_bottom: int, crops: tuple[Crop, ...] | None = None):
        self.paths, self.size, self.cut_bottom, self.crops = paths, size, cut_bottom, crops
        self.stamps = [_stamp(path) for path in paths]
        self.file, self.records = self._open()

    def __reduce__(self):
        """A worker of its own memory gets the paths, and maps the file itself."""
        return Pixels, (self.paths, self.size, self.cut_bottom, self.crops)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        if index >= len(self):
            raise IndexError(index)
        record = self.records[index] if self.is_kept(index) else None
        if record is None or record["crc"] != zlib.crc32(record["pixels"]):
            return self.decode(index)
        return record["pixels"]

    def is_kept(self, index: int) -> bool:
        """Whether the file holds the photo as it is now; its bytes may still prove damaged."""
        return self.records is not None and bool(self.records[index]["stamp"] == self.stamps[index])

    def decode(self, index: int) -> np.ndarray:
        """Read the photo itself, and keep its square."""
        crop = WHOLE if self.crops is None else self.crops[index]
        pixels = np.asarray(to_square(read_photo(self.paths[index], self.cut_bottom), self.size, crop))
        if self.records is not None:
            try:
                self._write(index, pixels)
            except OSError as error:
                self.records = None
                _warn(error)
        return pixels

    def _write(self, index: int, pixels: np.ndarray) -> None:
        # Not through the map: where the disk is full, that would end the process (SIGBUS) instead of raising OSError.
        record = np.array((self.stamps[index], zlib.crc32(pixels), pixels), self.records.dtype)
        with open(self.file, "r+b") as file:
            file.seek(self.records.offset + index * record.nbytes)
            file.write(record.tobytes())

    def _open(self) -> tuple[Path | None, np.ndarray | None]:
        """The table's file and its records; the file is made (empty, sparse) where there is none or one cut short."""
        parts = () if self.crops is None else (self.crops,)
        facts = repr((READER, self.paths, self.size, self.cut_bottom, *parts)).encode()
        name = f"{blake2b(facts, digest_size=12).hexdigest()}-{self.size}px.npy"
        kind = np.dtype([("stamp", "S32"), ("crc", "<u4"), ("pixels", "u1", (self.size, self.size, 3))])
        for folder in (data_root() / ".cache", results_root() / ".cache"):
            file = folder / name
            try:
                return file, np.lib.format.open_memmap(file, mode="r")
            except (OSError, ValueError):
                try:
                    with atomic_path(file) as temporary:
                        np.lib.format.open_memmap(temporary, "w+", kind, (len(self.paths),))
                    return file, np.lib.format.open_memmap(file, mode="r")
                except OSError as error:
                    problem = error
        _warn(problem)
        return None, None


def _stamp(path: str) -> bytes:
    """Changes when the photo's file does."""
    try:
        file = os.stat(path)
    except OSError:
        open_photo(path)  # raises, and says why
        raise
    facts = (file.st_size, file.st_mtime_ns, file.st_ctime_ns)
    return blake2b(repr(facts).encode(), digest_size=16).hexdigest().encode()


def _warn(error: OSError) -> None:
    warnings.warn(f"Decoded photos are not kept, so each epoch decodes them anew: {error.strerror}.", stacklevel=3)
