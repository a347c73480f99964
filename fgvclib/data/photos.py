"""Opening photos: what a phone or a camera makes becomes an upright RGB picture, or one sentence that says why not."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import RLock

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

LIMIT = 300_000_000  # pixels; Pillow by itself refuses more than 179 million, and phones make 200 million
MARK = ("Software", "fgvc predict")  # PNG text that tells a drawing of `fgvc predict` from a photo
DRAWING_SUFFIX = ".box.png"
ORIENTATION = 0x0112  # EXIF: how to turn the stored pixels so that the photo is upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def open_photo(path: Path | str) -> Image.Image:
    """The photo as a viewer shows it: RGB with 8 bits, turned as its EXIF orientation says, transparent parts white.

    Raises OSError with one sentence for what is not a photo, damaged, or beyond 300 million pixels.
    """
    try:
        with _opened(path) as photo:
            photo.load()
            orientation = _orientation(photo)  # a TIFF has none left: Pillow turns it as it reads the pixels
            photo = to_rgb(photo)
    except Exception as error:  # decoders raise many kinds for damaged files
        raise OSError(_sentence(Path(path), error)) from error
    # Not ImageOps.exif_transpose, which also writes the other EXIF fields anew and fails where one is malformed.
    return photo if orientation not in UPRIGHT else photo.transpose(UPRIGHT[orientation])


def upright_size(path: Path | str) -> tuple[int, int]:
    """Width and height of what `open_photo` gives, without decoding the pixels. Raises OSError as it does."""
    try:
        with _opened(path) as photo:
            # Pillow gives a TIFF's size before or after turning, by version; its tags do not change.
            is_tiff = isinstance(photo, TiffImageFile)
            width, height = (photo.tag_v2[IMAGEWIDTH], photo.tag_v2[IMAGELENGTH]) if is_tiff else photo.size
            turned = 5 <= _orientation(photo) <= 8  # by a quarter
    except Exception as error:
        raise OSError(_sentence(Path(path), error)) from error
    return (height, width) if turned else (width, height)


def _opened(path: Path | str) -> Image.Image:
    _register_heif()
    with _pillows_rules():
        photo = Image.open(path)
    if photo.width * photo.height > LIMIT:
        photo.close()
        raise Image.DecompressionBombError
    return photo


RULES = RLock()  # held while warnings are switched off, for all threads; who wants to warn waits for it
os.register_at_fork(before=RULES.acquire, after_in_parent=RULES.release, after_in_child=RULES.release)


@contextmanager
def _pillows_rules() -> Iterator[None]:
    """Pillow without its own limit and its warnings of damaged EXIF data: both belong to the importing program."""
    with RULES, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _orientation(photo: Image.Image) -> int:
    try:
        with _pillows_rules():
            return int(photo.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data say nothing of the orientation, and nothing against the pixels
        return 1


@cache
def _register_heif() -> None:
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()


def to_rgb(photo: Image.Image) -> Image.Image:
    """Any mode → RGB. Pillow's `convert` alone clips 16 bits to white, and shows what lies under transparent parts.

    Raises ValueError for numbers whose white is not known.
    """
    if photo.mode.startswith(("I", "F")):
        photo = Image.fromarray(_eight_bits(np.asarray(photo), photo.mode))
    if photo.has_transparency_data:
        opaque = Image.new("RGBA", photo.size, "white")
        opaque.alpha_composite(photo.convert("RGBA"))
        photo = opaque
    return photo.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of 16 or 32 bits → uint8. White is 1 for floats; else 65535, or 255 where 32 bits hold no more."""
    low, high = values.min(), values.max()
    white = 1 if mode.startswith("F") else 255 if mode == "I" and high <= 255 else 65535
    if not 0 <= low <= high <= white:
        raise ValueError(f"its values lie between {low:g} and {high:g}, where 0 to {white} is expected")
    return (values * (255 / white)).round().astype(np.uint8)


def is_drawing(path: Path) -> bool:
    """Whether a file is a drawing of `fgvc predict`, by name and content."""
    key, value = MARK
    if not path.name.endswith(DRAWING_SUFFIX):
        return False
    try:
        with _opened(path) as picture:
            return picture.info.get(key) == value
    except OSError:  # not even a picture
        return False


def printable(path: Path | str) -> str:
    r"""A name as text that can be printed and stored; bytes that are not UTF-8 become `\xf6` and the like."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _sentence(path: Path, error: Exception) -> str:
    """What is wrong with the file at `path`, and what to do."""
    reason, remedy = str(error), "restore or remove it"
    if isinstance(error, FileNotFoundError):
        reason, remedy = "there is no such file", "check the path"
    elif path.is_dir():
        reason, remedy = "it is a folder", "give the photos in it"
    elif isinstance(error, PermissionError):
        reason, remedy = "permission denied", "change its permissions"
    elif isinstance(error, Image.DecompressionBombError):
        reason, remedy = f"it has more than {LIMIT:,} pixels", "make it smaller"
    elif isinstance(error, ValueError):
        remedy = "save it as JPEG or PNG"
    elif isinstance(error, MemoryError):
        reason, remedy = "it does not fit into the memory", "make it smaller"
    elif isinstance(error, UnidentifiedImageError) and path.stat().st_size == 0:
        reason = "it is empty"
    elif isinstance(error, UnidentifiedImageError) and _is_heif(path):
        reason, remedy = "HEIC needs the package pillow-heif", "install that with pip, or save the photo as JPEG"
    elif isinstance(error, UnidentifiedImageError):
        reason, remedy = "its format is not known here", "save it as JPEG or PNG"
    return f"{path} cannot be read as a photo ({reason}); {remedy}."


def _is_heif(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS
