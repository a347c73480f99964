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
            turn = UPRIGHT.get(photo.getexif().get(ORIENTATION))
            photo = to_rgb(photo)
    except Exception as error:  # decoders raise many kinds for damaged files
        raise OSError(f"{path} {_reason(path, error)}") from error
    # Not ImageOps.exif_transpose, which also writes the other EXIF fields anew and fails where one is malformed.
    return photo if turn is None else photo.transpose(turn)


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


def _reason(path: Path | str, error: Exception) -> str:
    """The rest of the sentence that starts with the path: what is wrong and what to do."""
    path = Path(path)
    if isinstance(error, FileNotFoundError):
        return "does not exist; check the path."
    if path.is_dir():
        return "is a folder; give the photos in it."
    if isinstance(error, PermissionError):
        return "can not be read: permission denied."
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller."
    if isinstance(error, UnidentifiedImageError):
        if path.stat().st_size == 0:
            return "is empty; copy it again."
        if _is_heif(path):
            return "is a HEIC photo; `pip install pillow-heif` makes it readable, or save it as JPEG."
        return "is no photo in a format that is known here; save it as JPEG or PNG."
    if isinstance(error, MemoryError):
        return "does not fit into the memory; make it smaller."
    return f"can not be read as a photo ({error}); restore or remove it."


def _is_heif(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS
