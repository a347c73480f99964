"""Photos of every kind become upright RGB, or one sentence."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

from fgvclib.data import photos
from fgvclib.data.photos import open_photo, upright_size

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (99, 99, 99)
# The upright photo, 3 wide and 2 high, and how its pixels are stored for each EXIF orientation (EXIF 2.3, table 6:
# where row 0 and column 0 of what is stored lie in the photo).
UPRIGHT = np.array([[RED, GREEN, BLUE], [GREY, RED, GREY]], dtype=np.uint8)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.swapaxes(0, 1),  # left, top
    6: UPRIGHT.swapaxes(0, 1)[::-1],  # right, top
    7: UPRIGHT.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: UPRIGHT.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


def with_exif(path: Path, pixels: np.ndarray, orientation: int, **more) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **more)
    return path


@pytest.mark.parametrize("name", ["photo.png", "photo.tif", "photo.webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_is_turned_upright(tmp_path, orientation, name):
    """The rule of the table by hand for the two turns that phones make: orientation 6 is stored turned left."""
    stored = STORED[orientation]
    if orientation == 6:
        assert stored[0].tolist() == [list(BLUE), list(GREY)]  # row 0 is the right side, from the top
    if orientation == 8:
        assert stored[0].tolist() == [list(GREY), list(RED)]  # row 0 is the left side, from the bottom
    more = {"lossless": True} if name.endswith("webp") else {}
    path = with_exif(tmp_path / name, np.ascontiguousarray(stored), orientation, **more)
    assert np.array_equal(np.asarray(open_photo(path)), UPRIGHT)
    assert upright_size(path) == (3, 2)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_left_alone(tmp_path, orientation):
    photo = open_photo(with_exif(tmp_path / "photo.png", UPRIGHT, orientation))
    assert np.array_equal(np.asarray(photo), UPRIGHT)


def test_malformed_exif_does_not_stop_the_photo(tmp_path):
    """The fields of an image editor, written as another type than they are: ImageOps.exif_transpose fails on them."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 3, 72.0
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 16, axis=1).repeat(16, axis=0)).save(path, exif=exif)
    raw = path.read_bytes()
    at = raw.index(b"\x01\x1a\x00\x05")  # XResolution, a rational number
    path.write_bytes(raw[: at + 2] + b"\x00\x02" + raw[at + 4 :])  # as text
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(path))
    photo = open_photo(path)  # stored black on the left, and turned by 180 degrees
    assert photo.getpixel((3, 3))[0] > 200 and photo.getpixel((28, 3))[0] < 55


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # pytest forgets the library's own filter
def test_damaged_exif_does_not_stop_the_photo(tmp_path):
    path = save(tmp_path / "odd.jpg", UPRIGHT)
    content, segment = path.read_bytes(), b"Exif\0\0II*\0\xff\xff\xff\xff garbage"
    path.write_bytes(content[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + content[2:])
    assert open_photo(path).size == (3, 2)


def save(path: Path, pixels, mode=None, **options) -> Path:
    picture = Image.fromarray(np.asarray(pixels))
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def test_transparent_parts_are_white(tmp_path):
    pixels = np.array([[(0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 51)]], dtype=np.uint8)
    (row,) = np.asarray(open_photo(save(tmp_path / "alpha.png", pixels))).tolist()
    assert row == [[255, 255, 255], [0, 0, 0], [255, 204, 204]]  # a fifth of red over white: 255 - 51


def test_transparent_palette_colour_is_white(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "palette.png", transparency=0)
    assert np.asarray(open_photo(tmp_path / "palette.png")).tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("name, kind", [("deep.png", np.uint16), ("deep.tif", np.int32)])
def test_sixteen_bits_become_eight_and_are_not_clipped(tmp_path, name, kind):
    path = save(tmp_path / name, np.array([[0, 257, 128 * 257, 65535]], dtype=kind))
    assert Image.open(path).mode.startswith("I")
    assert np.asarray(open_photo(path))[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize(
    "kind, values, greys",
    [
        (np.float32, [0, 0.25, 0.5, 1], [0, 64, 128, 255]),
        (np.int32, [0, 1, 128, 255], [0, 1, 128, 255]),  # 8 bits in a science camera's 32
        (np.int32, [0, 257, 256, 65535], [0, 1, 1, 255]),
        (np.uint16, [0, 255, 257, 65535], [0, 1, 1, 255]),
        (np.uint16, [0, 1, 128, 255], [0, 0, 0, 1]),  # a photo in the dark stays dark
    ],
)
def test_deep_tiffs_are_neither_black_nor_white(tmp_path, kind, values, greys):
    path = save(tmp_path / "deep.tif", np.array([values], dtype=kind))
    assert np.asarray(open_photo(path))[0, :, 0].tolist() == greys


@pytest.mark.parametrize(
    "kind, values, told",
    [
        (np.float32, [0, 300.5], "between 0 and 300.5, where 0 to 1 is"),
        (np.float32, [-0.5, 1], "between -0.5 and 1,"),
        (np.float32, [0, np.nan], "between nan and nan,"),
        (np.int32, [0, 70000], "between 0 and 70000, where 0 to 65535 is"),
        (np.int32, [-3, 255], "between -3 and 255,"),
    ],
)
def test_numbers_whose_white_is_not_known_are_refused(tmp_path, kind, values, told):
    path = save(tmp_path / "deep.tif", np.array([values], dtype=kind))
    with pytest.raises(OSError, match=rf"deep.tif .*\(its values lie {told}.*\); save it as JPEG or PNG\."):
        open_photo(path)


def test_grey_is_three_equal_channels(tmp_path):
    path = save(tmp_path / "grey.jpg", np.full((8, 8), 77, dtype=np.uint8))
    assert Image.open(path).mode == "L"
    assert set(np.asarray(open_photo(path)).ravel().tolist()) == {77}


@pytest.mark.parametrize("options", [{"mode": "CMYK"}, {"progressive": True}, {}], ids=["cmyk", "progressive", "plain"])
def test_kinds_of_jpeg_have_the_same_colours(tmp_path, options):
    pixels = np.full((16, 24, 3), (200, 60, 20), dtype=np.uint8)
    path = save(tmp_path / "photo.jpg", pixels, quality=95, **options)
    photo = open_photo(path)
    assert (photo.mode, photo.size) == ("RGB", (24, 16))
    assert np.abs(np.asarray(photo).astype(int) - pixels).max() <= 4


def test_photo_of_one_pixel(tmp_path):
    assert open_photo(save(tmp_path / "dot.png", np.array([[[1, 2, 3]]], dtype=np.uint8))).getpixel((0, 0)) == (1, 2, 3)


def test_photo_of_200_megapixels_is_opened_and_of_more_than_300_refused(tmp_path, monkeypatch):
    """Pillow's own limit is 179 million. The limit is moved to small photos here, and was measured with large ones."""
    assert photos.LIMIT == 300_000_000
    monkeypatch.setattr(photos, "LIMIT", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert open_photo(save(tmp_path / "large.png", np.zeros((9, 11, 3), dtype=np.uint8))).size == (11, 9)
    with pytest.raises(OSError, match=r"larger.png .*\(it has more than 100 pixels\); make it smaller\."):
        open_photo(save(tmp_path / "larger.png", np.zeros((9, 12, 3), dtype=np.uint8)))


def test_pillows_settings_stay_those_of_the_importing_program(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    filters = list(warnings.filters)
    open_photo(save(tmp_path / "large.png", np.zeros((9, 11, 3), dtype=np.uint8)))
    with pytest.raises(OSError, match="no such file"):
        open_photo(tmp_path / "missing.png")
    assert Image.MAX_IMAGE_PIXELS == 10 and warnings.filters == filters
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")


# --- what cannot be opened


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-500])


def broken_png(path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(path, format="PNG")
    raw = bytearray(path.read_bytes())
    raw[45:60] = bytes(15)
    path.write_bytes(raw)


FAULTS = {
    "missing": (lambda path: None, "(there is no such file); check the path."),
    "folder": (lambda path: path.mkdir(), "(it is a folder); give the photos in it."),
    "empty": (lambda path: path.write_bytes(b""), "(it is empty); restore or remove it."),
    "text": (lambda path: path.write_text("no photo"), "(its format is not known here); save it as JPEG or PNG."),
    "truncated": (truncated, "(image file is truncated"),
    "broken PNG": (broken_png, "("),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_photo_gets_one_sentence(tmp_path, fault):
    make, sentence = FAULTS[fault]
    make(tmp_path / "photo.jpg")
    with pytest.raises(OSError) as caught:
        open_photo(tmp_path / "photo.jpg")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'photo.jpg'} cannot be read as a photo {sentence}")
    assert text.endswith(".") and "\n" not in text


def heic(path: Path) -> Path:
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    return path


def test_heic_without_its_package_says_what_to_install(tmp_path):
    with pytest.raises(OSError, match=r"\(HEIC needs the package pillow-heif\); install that with pip, or save"):
        open_photo(heic(tmp_path / "photo.heic"))


def test_heic_package_is_used_where_it_is_installed(monkeypatch):
    called = []
    plugin = SimpleNamespace(register_heif_opener=lambda: called.append(True))
    monkeypatch.setattr(photos, "find_spec", lambda name: name == "pillow_heif")
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    photos._register_heif.__wrapped__()
    assert called == [True]
