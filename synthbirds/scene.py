"""Stacks the layers of a picture, landscape, bird and occluders, and adds light and noise."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from synthbirds.bird import paint_bird
from synthbirds.canvas import Box
from synthbirds.landscape import paint_landscape, paint_occluders
from synthbirds.species import Species

BOX_ALPHA = 64
"""A pixel belongs to the bird, and so to its box, from this alpha (0 to 255) on."""
LARGE_BIRDS = 0.7  # exponent below 1: more large birds than small ones, whose marks no one could see
SIZE_RANGE = (1 / 6, 2 / 3)
"""Range of the larger side of the bird's box, as a fraction of the image side."""
MAX_HIDDEN = 0.35
"""Occluders that would hide a larger part of the bird than this are left out."""


@dataclass(frozen=True)
class Scene:
    """The layers of one picture, all image_size x image_size; `box` is (x, y, w, h) of the bird in pixels."""

    landscape: Image.Image
    bird: Image.Image
    occluders: Image.Image
    box: Box
    curves: list[int]  # lookup table of the exposure, contrast and colour temperature
    noise_seed: int


def draw_bird(species: Species, rng: np.random.Generator, image_size: int) -> tuple[Image.Image, Box]:
    """One RGB picture of a species, and the exact box (x, y, w, h) of the bird in pixels, hidden parts included.

    `rng` is the only source of variation; `image_size` is the side of the picture in pixels, at least 32.
    """
    scene = paint_scene(species, rng, image_size)
    return compose(scene), scene.box


def paint_scene(species: Species, rng: np.random.Generator, image_size: int) -> Scene:
    """The layers of one picture; the arguments are those of `draw_bird`."""
    low, high = np.array(SIZE_RANGE) * image_size
    side = low + 1 + (high - low - 2) * rng.uniform() ** LARGE_BIRDS
    art, feet = paint_bird(species, rng, side)
    left, top, right, bottom = art.getchannel("A").point(lambda a: 255 * (a >= BOX_ALPHA)).getbbox()
    x = int(rng.integers(-left, image_size - right + 1))
    y = int(rng.integers(-top, image_size - bottom + 1))
    bird = Image.new("RGBA", (image_size, image_size))
    bird.paste(art, (x, y))
    box = (float(x + left), float(y + top), float(right - left), float(bottom - top))
    landscape = paint_landscape(rng, image_size, feet + complex(x, y), side)
    occluders = paint_occluders(rng, image_size, box)
    if _hidden_part(bird, occluders) > MAX_HIDDEN:
        occluders = Image.new("RGBA", bird.size)
    return Scene(landscape, bird, occluders, box, _curves(rng), int(rng.integers(2**32)))


def compose(scene: Scene) -> Image.Image:
    """Flatten the layers of a scene and add light and sensor noise."""
    picture = scene.landscape.copy()
    picture.paste(scene.bird, mask=scene.bird)
    picture.paste(scene.occluders, mask=scene.occluders)
    pixels = np.asarray(picture.point(scene.curves)).astype(np.int16)
    noise = np.random.default_rng(scene.noise_seed)
    grain = noise.standard_normal(pixels.shape[:2], np.float32) * noise.uniform(0.5, 2.5)
    pixels += np.rint(grain).astype(np.int16)[..., None]
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))


def _hidden_part(bird: Image.Image, occluders: Image.Image) -> float:
    """The part of the bird that the occluders cover, from 0 to 1."""
    is_bird = np.asarray(bird.getchannel("A")) >= BOX_ALPHA
    return np.asarray(occluders.getchannel("A"))[is_bird].mean() / 255


def _curves(rng: np.random.Generator) -> list[int]:
    """Exposure, contrast and colour temperature as one lookup table per channel."""
    warmth = rng.normal(0, 0.045)
    gain = rng.uniform(0.86, 1.10) * np.array([1 + warmth, 1.0, 1 - warmth])[:, None]
    level = np.linspace(0, 1, 256) * gain
    level = 0.45 + (level - 0.45) * rng.uniform(0.86, 1.10)
    return [int(v) for v in np.clip(255 * level, 0, 255).ravel()]
