"""Opening photos: what a phone or a camera makes becomes an upright RGB picture, or one sentence that says why not."""

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow refuses what has twice as many pixels as this; by default that is 179 million, and phones make 200 million.
Image.MAX_IMAGE_PIXELS = 150_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)  # the photo is shown all the same

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

    Raises OSError with one sentence for what is no photo, damaged, or beyond 300 million pixels.
    """
    _register_heif()
    try:
        with Image.open(path) as photo:
            photo.load()
            turn = UPRIGHT.get(_orientation(photo))
            photo = to_rgb(photo)
    except Exception as error:  # decoders raise many kinds for damaged files
        raise OSError(_sentence(Path(path), error)) from error
    # Not ImageOps.exif_transpose, which also writes the other EXIF fields anew and fails where one is malformed.
    return photo if turn is None else photo.transpose(turn)


def upright_size(path: Path | str) -> tuple[int, int]:
    """Width and height of what `open_photo` gives, without decoding the pixels. Raises OSError as it does."""
    _register_heif()
    try:
        with Image.open(path) as photo:
            width, height = photo.size
            turned = _orientation(photo) >= 5  # by a quarter
    except Exception as error:
        raise OSError(_sentence(Path(path), error)) from error
    return (height, width) if turned else (width, height)


def _orientation(photo: Image.Image) -> int:
    try:
        return int(photo.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data say nothing of the orientation, and nothing against the pixels
        return 1


@cache
def _register_heif() -> None:
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()


def to_rgb(photo: Image.Image) -> Image.Image:
    """Any mode → RGB. Pillow's `convert` alone clips 16 bits to white, and shows what lies under transparent parts."""
    if photo.mode.startswith("I"):  # 16 bits, also where Pillow keeps them in 32
        values = np.asarray(photo).clip(0, 65535) / 257
        photo = Image.fromarray(values.round().astype(np.uint8))
    if photo.has_transparency_data:
        opaque = Image.new("RGBA", photo.size, "white")
        opaque.alpha_composite(photo.convert("RGBA"))
        photo = opaque
    return photo.convert("RGB")


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
        reason, remedy = f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels", "make it smaller"
    elif isinstance(error, MemoryError):
        reason, remedy = "it does not fit into the memory", "make it smaller"
    elif isinstance(error, UnidentifiedImageError) and path.stat().st_size == 0:
        reason = "it is empty"
    elif isinstance(error, UnidentifiedImageError) and _is_heif(path):
        reason, remedy = "HEIC needs the package pillow-heif", "install that with pip, or save the photo as JPEG"
    elif isinstance(error, UnidentifiedImageError):
        reason, remedy = "its format is not known here", "save it as JPEG or PNG"
    return f"{path} can not be read as a photo ({reason}); {remedy}."


def _is_heif(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS
