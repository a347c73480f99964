"""Photos as squares of pixels, decoded once for each table and size.

The squares lie in one file, from which each is read when it is wanted: epochs, workers and processes share what the
system caches of it, and no process holds more than the squares of its batches. The file is in `.cache` in the data
root, or in the results where that cannot be written, and can be deleted at any time. A square is used only if its photo
has not changed since (size and times of the file) and its own bytes are whole (CRC-32).
"""

import os
import warnings
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from fgvclib.config import data_root, results_root
from fgvclib.data.photos import RULES, open_photo, upright_size
from fgvclib.utils.files import atomic_path
from fgvclib.utils.progress import photo_progress

DECODING_THREADS = 8
STAMP = 32  # bytes
_GIVING_UP = Lock()
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
            squares = pool.map(pixels.decode, missing)
            for _ in photo_progress(squares, "reading photos", len(missing), lambda square: 1):
                pass
    return pixels


class Pixels:
    """Photos as squares: `pixels[index]` is an array of uint8 (size, size, 3), read from the file of the table."""

    def __init__(self, paths: tuple[str, ...], size: int, cut_bottom: int, crops: tuple[Crop, ...] | None = None):
        self.paths, self.size, self.cut_bottom, self.crops = paths, size, cut_bottom, crops
        self.stamps = [_stamp(path) for path in paths]
        self.kind = np.dtype([("stamp", f"S{STAMP}"), ("crc", "<u4"), ("pixels", "u1", (size, size, 3))])
        self.file: Path | None = None
        self.places = [data_root() / ".cache", results_root() / ".cache"]
        self._open()

    def __reduce__(self):
        """A worker of its own memory gets the paths, and opens the file itself."""
        return Pixels, (self.paths, self.size, self.cut_bottom, self.crops)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        if index >= len(self):
            raise IndexError(index)
        content = self._read(index, self.kind.itemsize)
        if len(content) == self.kind.itemsize and content.startswith(self.stamps[index]):
            record = np.frombuffer(content, self.kind)[0]
            if record["crc"] == zlib.crc32(record["pixels"]):
                return record["pixels"]
        return self.decode(index)

    def is_kept(self, index: int) -> bool:
        """Whether the file holds the photo as it is now; its bytes may still prove damaged."""
        return self._read(index, STAMP) == self.stamps[index]

    def decode(self, index: int) -> np.ndarray:
        """Read the photo itself, and keep its square."""
        crop = WHOLE if self.crops is None else self.crops[index]
        pixels = np.asarray(to_square(read_photo(self.paths[index], self.cut_bottom), self.size, crop))
        while (file := self.file) is not None:  # which another thread may give up at any time
            try:
                self._write(file, index, pixels)
                break
            except OSError as error:
                self._give_up(file, error)
        return pixels

    def _give_up(self, file: Path, problem: OSError) -> None:
        """Go on with the file of the next place, as this one cannot be written."""
        with _GIVING_UP:
            if self.file == file:  # and no other thread has done so
                self._open(problem)

    def _read(self, index: int, count: int) -> bytes:
        """The first `count` bytes of a photo's record; nothing if there is no file."""
        # Not through a map, whose pages count as memory of each process that has touched them: gigabytes, in the end.
        return b"" if self.file is None else os.pread(self.opened, count, self.start + index * self.kind.itemsize)

    def _write(self, path: Path, index: int, pixels: np.ndarray) -> None:
        record = np.array((self.stamps[index], zlib.crc32(pixels), pixels), self.kind)
        with path.open("r+b") as file:
            if not os.path.samestat(os.fstat(file.fileno()), os.fstat(self.opened)):
                # A process that began at the same time, and found no file either, has put its own in place of the one
                # that is read here: what is written would never be found, and each epoch would decode anew.
                os.dup2(file.fileno(), self.opened, inheritable=False)
            file.seek(self.start + index * record.nbytes)
            file.write(record.tobytes())

    def _open(self, problem: OSError | None = None) -> None:
        """Open the table's file in the next place; a missing file, or one cut short, is made anew, empty and sparse.

        If no place is left, nothing is kept, and a warning gives the last `problem`.
        """
        parts = () if self.crops is None else (self.crops,)
        facts = repr((READER, self.paths, self.size, self.cut_bottom, *parts)).encode()
        name = f"{blake2b(facts, digest_size=12).hexdigest()}-{self.size}px.npy"
        while self.places:
            file = self.places.pop(0) / name
            try:
                self.start = self._records_start(file)
                self.opened = os.open(file, os.O_RDONLY)
            except OSError as error:
                problem = error
                continue
            weakref.finalize(self, os.close, self.opened)
            self.file = file  # last: other threads go on with the old one, and come to wait here
            return
        self.file = None
        _warn(problem)

    def _records_start(self, file: Path) -> int:
        """The offset of the first record, in bytes. Makes the file if there is none, or one that was cut short."""
        try:
            return np.lib.format.open_memmap(file, mode="r").offset
        except (OSError, ValueError):
            with atomic_path(file) as temporary:
                return np.lib.format.open_memmap(temporary, "w+", self.kind, (len(self.paths),)).offset


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
    with RULES:
        warnings.warn(f"Decoded photos are not kept, so each epoch decodes them anew: {error.strerror}.", stacklevel=3)
