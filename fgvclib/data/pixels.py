"""Photos as squares of pixels, decoded once for each size.

The squares that a training reads are kept as raw bytes in `.cache` in the data root, which can be deleted at any time.
An entry is used only if its photo has not changed since (size and times of the file) and its own bytes are undamaged
(CRC-32). `benchmarks/reading_photos.py` measures what that brings.
"""

import os
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from fgvclib.config import data_root
from fgvclib.utils.files import atomic_path
from fgvclib.data.photos import open_photo, upright_size
from fgvclib.utils.progress import progress

CACHE_LIMIT = 4 * 2**30  # bytes of one table's photos that are kept in memory, of the last four tables
DECODING_THREADS = 8
READER = 1  # to be raised whenever the pixels that `read_photo` gives change
_STAMP_BYTES, _CRC_BYTES = 16, 4


def read_photo(path: Path | str, cut_bottom: int = 0) -> Image.Image:
    """An upright RGB photo without its lowest `cut_bottom` rows of pixels. Raises OSError as `open_photo` does."""
    photo = open_photo(path)
    return photo.crop((0, 0, photo.width, max(photo.height - cut_bottom, 1))) if cut_bottom else photo


def photo_size(path: Path | str, cut_bottom: int = 0) -> tuple[int, int]:
    """Width and height of what `read_photo` gives, without decoding. Raises OSError as it does."""
    width, height = upright_size(path)
    return width, max(height - cut_bottom, 1)


def to_square(photo: Image.Image, size: int) -> Image.Image:
    """Resized bilinearly with antialiasing; the aspect ratio is not kept [ELoPE]."""
    return photo.resize((size, size), Image.Resampling.BILINEAR)


def load_pixels(paths: tuple[str, ...], size: int, cut_bottom: int = 0) -> "np.ndarray | _LazyPixels":
    """Photos as squares of uint8 (N, size, size, 3): read once into memory, or one by one if they are too many."""
    return _load(paths, tuple(_stamp(path, size, cut_bottom) for path in paths), size, cut_bottom)


@lru_cache(maxsize=4)
def _load(paths: tuple[str, ...], stamps: tuple[bytes, ...], size: int, cut_bottom: int):
    pixels = _LazyPixels(paths, stamps, size, cut_bottom)
    if len(paths) * size * size * 3 > CACHE_LIMIT:
        return pixels
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        squares = pool.map(pixels.__getitem__, range(len(paths)))
        return np.stack(list(progress(squares, "reading photos", total=len(paths))))


class _LazyPixels:
    def __init__(self, paths: tuple[str, ...], stamps: tuple[bytes, ...], size: int, cut_bottom: int):
        self.paths, self.stamps, self.size, self.cut_bottom = paths, stamps, size, cut_bottom

    def __getitem__(self, index: int) -> np.ndarray:
        path, stamp = self.paths[index], self.stamps[index]
        entry = _entry(path, self.size)
        pixels = _read_entry(entry, stamp, self.size)
        if pixels is None:
            pixels = np.asarray(to_square(read_photo(path, self.cut_bottom), self.size))
            _write_entry(entry, stamp, pixels)
        return pixels


def _stamp(path: str, size: int, cut_bottom: int) -> bytes:
    """Changes when the photo's file does, or the way in which it is read."""
    try:
        file = os.stat(path)
    except OSError as error:
        raise OSError(f"{path} can not be read as a photo ({error.strerror}); restore or remove it.") from error
    facts = (READER, path, size, cut_bottom, file.st_size, file.st_mtime_ns, file.st_ctime_ns)
    return blake2b(repr(facts).encode(), digest_size=_STAMP_BYTES).digest()


def _entry(path: str, size: int) -> Path:
    name = blake2b(path.encode(), digest_size=16).hexdigest()
    return data_root() / ".cache" / f"{size}px" / name[:2] / f"{name[2:]}.rgb"


def _read_entry(entry: Path, stamp: bytes, size: int) -> np.ndarray | None:
    """The pixels of a cache entry; None if it is absent, stale or damaged."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    head, pixels = content[: _STAMP_BYTES + _CRC_BYTES], memoryview(content)[_STAMP_BYTES + _CRC_BYTES :]
    if head != stamp + _crc(pixels) or len(pixels) != size * size * 3:
        return None
    return np.frombuffer(pixels, np.uint8).reshape(size, size, 3)


def _write_entry(entry: Path, stamp: bytes, pixels: np.ndarray) -> None:
    """Keep pixels; where that is impossible, a training decodes the photos anew each time."""
    content = pixels.tobytes()
    try:
        with atomic_path(entry) as temporary:
            temporary.write_bytes(stamp + _crc(content) + content)
    except OSError as error:
        warnings.warn(f"Decoded photos are not kept for the next time: {error.strerror}.", stacklevel=2)


def _crc(content) -> bytes:
    return zlib.crc32(content).to_bytes(_CRC_BYTES, "big")
