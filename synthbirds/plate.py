"""The plate of a field guide: every species alone, genus by genus. `python -m synthbirds.plate FILE` writes it."""

import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from synthbirds.bird import paint_bird
from synthbirds.species import Species, species_list

PAPER, INK = (250, 248, 243), (60, 55, 50)


def paint_plate(side: int = 160, seed: int = 7) -> Image.Image:
    """All species on one sheet, two genera in a row, in one pose; `side` is the room of a bird in pixels."""
    genera: dict[str, list[Species]] = {}
    for species in species_list():
        genera.setdefault(species.genus, []).append(species)
    width, height = side * 4 + side // 3, round(1.66 * side)
    plate = Image.new("RGB", (2 * width, height * -(-len(genera) // 2)), PAPER)
    for number, (genus, sisters) in enumerate(genera.items()):
        left, top = number % 2 * width + side // 6, number // 2 * height
        _write(plate, genus, left + 2 * side, top + 0.05 * side, 0.17 * side)
        for place, species in enumerate(sisters):
            _paint(plate, species, left + place * side, round(top + 0.36 * side), side, seed)
    return plate.quantize(192, dither=Image.Dither.NONE)


def _paint(plate: Image.Image, species: Species, left: int, top: int, side: int, seed: int) -> None:
    """One bird with its name below, without the genus's."""
    bird, _ = paint_bird(species, np.random.default_rng(seed), 0.9 * side)
    bird = bird.crop(bird.getchannel("A").getbbox())
    plate.paste(bird, (left + (side - bird.width) // 2, top + round(0.9 * side) - bird.height), bird)
    marks = species.name.removesuffix(species.genus).strip().replace(" ", "\n")
    _write(plate, marks, left + side / 2, top + 0.94 * side, 0.115 * side)


def _write(plate: Image.Image, text: str, middle: float, top: float, size: float) -> None:
    look = {"fill": INK, "font": ImageFont.load_default(size), "anchor": "ma", "align": "center"}
    ImageDraw.Draw(plate).multiline_text((middle, top), text, spacing=0.1 * size, **look)


if __name__ == "__main__":
    paint_plate().save(sys.argv[1], optimize=True)
