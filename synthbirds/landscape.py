"""Paints what surrounds the bird: a blurred landscape, clutter, a perch, and occluders in front of the bird.

Lengths are in image sides, those of occluders in pixels. No landscape belongs to a species or genus, and clutter
comes in all the colours of birds, so that the surroundings do not give the class away.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from synthbirds.canvas import BLADE, COLOURS, LEAF, Box, Canvas, Colour, place, spline, toned

_GREENS = ((88, 116, 58), (120, 140, 70), (64, 90, 52), (150, 152, 84))
_STRAWS = ((176, 156, 98), (142, 140, 80), (112, 120, 66), (198, 176, 124))
_AUTUMN = ((206, 140, 60), (176, 96, 48), (216, 178, 84), (120, 96, 58))
_WATER = ((92, 124, 140), (168, 190, 198), (64, 90, 106), (126, 146, 130))
_SCREE = ((136, 130, 122), (160, 146, 126), (108, 106, 108))
_SNOW = ((232, 236, 244), (212, 222, 236), (244, 244, 246))


@dataclass(frozen=True)
class _Scenery:
    """A kind of landscape: its colours from top to bottom, what stands in it and what birds sit on there."""

    ramp: tuple[Colour, ...]
    details: tuple[Callable, ...]
    tones: tuple[Colour, ...]
    perches: tuple[Callable, ...]
    decoys: tuple[Callable, ...]


def paint_landscape(rng: np.random.Generator, size: int, feet: complex, side: float) -> Image.Image:
    """An RGB landscape of `size` x `size` pixels, with a perch for a bird.

    The bird stands at `feet`, x + iy in pixels, and the larger of its sides has `side` pixels; `rng` is the only source
    of variation.
    """
    scenery = _SCENERIES[rng.integers(len(_SCENERIES))]
    image = _gradient(scenery.ramp, rng, size)
    canvas = Canvas(image, size)
    far, near = size * rng.uniform(0.012, 0.035), size * rng.uniform(0.003, 0.014)
    for detail in scenery.details:
        detail(canvas, rng, scenery.tones)
    distant = image.reduce(2).filter(ImageFilter.GaussianBlur(far / 2))
    image.paste(distant.resize(image.size, Image.Resampling.BILINEAR))
    for detail in scenery.details:
        detail(canvas, rng, scenery.tones)
    _decoys(canvas, rng, scenery.decoys, int(rng.integers(0, 4)))
    image = image.filter(ImageFilter.GaussianBlur(near))
    sharp = image.resize((2 * size, 2 * size), Image.Resampling.BILINEAR)
    canvas = Canvas(sharp, 2 * size)
    scenery.perches[rng.integers(len(scenery.perches))](canvas, rng, feet / size, side / size, scenery.tones)
    _decoys(canvas, rng, scenery.decoys, int(rng.integers(1, 5)))
    return sharp.reduce(2)


def _gradient(ramp: tuple[Colour, ...], rng: np.random.Generator, size: int) -> Image.Image:
    """A vertical colour ramp, disturbed by smooth noise."""
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    noise = sum(_smooth_noise(rng, size, cells) / cells**0.7 for cells in (3, 9))
    level = np.clip(height + 0.55 * noise, 0, 1)
    stops = np.linspace(0, 1, len(ramp))
    table = np.stack([np.interp(np.linspace(0, 1, 256), stops, [c[i] for c in ramp]) for i in range(3)], -1)
    return Image.fromarray(table[(255 * level).astype(np.uint8)].astype(np.uint8))


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    coarse = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _random_colour(rng, tones, spread: float = 0.16) -> Colour:
    factor = rng.uniform(1 - 1.6 * spread, 1 + spread)
    return tuple(min(255, int(v * factor)) for v in tones[rng.integers(len(tones))])


def _somewhere(rng, low: float = -0.05, high: float = 1.05) -> complex:
    return complex(rng.uniform(low, high), rng.uniform(low, high))


# ------------------------------------------------------------------------------------------- what stands in a landscape
# Painted twice, before and after the blur of the distance: once far away and once near.


def _foliage(canvas, rng, tones) -> None:
    for _ in range(rng.integers(35, 75)):
        base = _somewhere(rng)
        tip = base + rng.uniform(0.05, 0.15) * np.exp(1j * rng.uniform(0, 2 * np.pi))
        colour = _random_colour(rng, tones)
        canvas.fill(place(LEAF, base, tip, rng.uniform(0.012, 0.032)), colour)
        canvas.line([base, tip], toned(colour, 1.2), 0.004)


def _bokeh(canvas, rng, tones) -> None:
    for _ in range(rng.integers(6, 22)):
        colour = toned(_random_colour(rng, tones), 1.45)
        canvas.dot(_somewhere(rng), rng.uniform(0.015, 0.05), (*colour, int(rng.integers(50, 130))))


def _blades(canvas, rng, tones) -> None:
    for _ in range(rng.integers(25, 60)):
        root = complex(rng.uniform(-0.1, 1.1), 1.05)
        top = root + complex(rng.normal(0, 0.14), -rng.uniform(0.25, 1.05))
        bend = (root + top) / 2 + rng.normal(0, 0.04)
        canvas.line(spline([root, bend, top], 5, closed=False), _random_colour(rng, tones), rng.uniform(0.006, 0.018))


def _twigs(canvas, rng, tones) -> None:
    for _ in range(rng.integers(3, 8)):
        start, turn, width = _somewhere(rng), rng.uniform(0, 2 * np.pi), rng.uniform(0.010, 0.022)
        colour = _random_colour(rng, ((96, 78, 62), (70, 60, 54)))
        for _ in range(4):
            way = rng.uniform(0.12, 0.4) * np.exp(1j * (turn + rng.normal(0, 0.5)))
            bend = way * (0.5 + 0.08j * rng.normal())
            canvas.line(spline([start, start + bend, start + way], 6, closed=False), colour, width)
            start, width = start + way * rng.uniform(0.3, 0.9), 0.75 * width


def _trunks(canvas, rng, tones) -> None:
    for _ in range(rng.integers(2, 6)):
        x, width = rng.uniform(0, 1), rng.uniform(0.03, 0.13)
        lean, colour = rng.normal(0, 0.05), _random_colour(rng, ((92, 78, 62), (120, 108, 94), (66, 58, 48)))
        for k in range(6):
            strip = np.array([x + width * k / 6, x + width * (k + 1) / 6])
            outline = [*(strip - 0.05j), *(strip + lean + 1.05j)[::-1]]
            canvas.fill(outline, toned(colour, 0.65 + 0.11 * min(k, 5 - k)))


def _ripples(canvas, rng, tones) -> None:
    for _ in range(rng.integers(60, 120)):
        near = rng.uniform(0, 1) ** 0.7
        at = complex(rng.uniform(-0.1, 1), 0.2 + 0.85 * near)
        length = rng.uniform(0.06, 0.3) * (0.3 + near)
        colour = toned(_random_colour(rng, tones), rng.choice([0.7, 1.0, 1.45]))
        canvas.fill(place(LEAF, at, at + length, 0.004 + 0.011 * near), (*colour, 170))


def _stones(canvas, rng, tones) -> None:
    for at in sorted((_somewhere(rng, 0.1, 1.1) for _ in range(rng.integers(12, 30))), key=lambda z: z.imag):
        _stone(canvas, rng, at - 0.05, rng.uniform(0.03, 0.12), _random_colour(rng, tones))


def _stone(canvas, rng, at: complex, radius: float, colour: Colour) -> None:
    corners = np.exp(2j * np.pi * (np.arange(7) + rng.uniform(-0.25, 0.25, 7)) / 7) * rng.uniform(0.8, 1.1, 7)
    outline = corners.real + 0.65j * corners.imag
    for scale, tone in ((1, 0.6), (0.9, 0.85), (0.68, 1.0), (0.4, 1.12)):
        facet = at - (1 - scale) * radius * (0.2 + 0.45j) + outline * radius * scale
        canvas.fill(spline(facet, 4), toned(colour, tone))


def _drifts(canvas, rng, tones) -> None:
    for level in np.sort(rng.uniform(0.45, 1, 4)):
        ridge = np.linspace(-0.1, 1.1, 7) + 1j * (level + rng.normal(0, 0.03, 7))
        drift = [*spline(ridge, 5, closed=False), 1.1 + 1.1j, -0.1 + 1.1j]
        canvas.fill(drift, _random_colour(rng, tones, 0.06))


# --------------------------------------------------------------------------------------------------------------- decoys


def _decoys(canvas, rng, kinds, count: int) -> None:
    """Things in the colours of birds: berries, flowers, fruits, stones and leaves."""
    names = list(COLOURS)
    for _ in range(count):
        colour = COLOURS[names[rng.integers(len(names))]]
        at, reach = _somewhere(rng, 0, 1), rng.uniform(0.02, 0.06)
        kinds[rng.integers(len(kinds))](canvas, rng, at, reach, colour)


def _hanging_stem(canvas, rng, at) -> None:
    """A thin twig with a few leaves that comes down to a point from the upper edge."""
    top = complex(at.real + rng.normal(0, 0.25), -0.05)
    stem = spline([at, at + (top - at) * 0.4 + rng.normal(0, 0.04), top], 6, closed=False)
    canvas.line(stem, (88, 74, 54), 0.007)
    for k in range(2, len(stem) - 1, 3):
        _dead_leaf(canvas, rng, stem[k], rng.uniform(0.012, 0.026), _random_colour(rng, _GREENS))


def _berries(canvas, rng, at, reach, colour) -> None:
    _hanging_stem(canvas, rng, at - 1.2j * reach)
    for _ in range(rng.integers(2, 7)):
        berry = at + reach * complex(*rng.normal(0, 0.7, 2))
        stalk = [berry, (berry + at) / 2 - 0.3j * reach, at - 1.2j * reach]
        canvas.line(spline(stalk, 4, closed=False), (84, 72, 50), 0.005)
        _ball(canvas, berry, reach * 0.42, colour)


def _ball(canvas, at, radius, colour) -> None:
    for scale, tone in ((1, 0.6), (0.88, 0.78), (0.7, 0.93), (0.5, 1.05), (0.16, 1.6)):
        canvas.dot(at - (1 - scale) * radius * (0.35 + 0.45j), radius * scale, toned(colour, tone))


def _fruit(canvas, rng, at, reach, colour) -> None:
    _hanging_stem(canvas, rng, at - 0.8j * reach)
    _ball(canvas, at, reach, colour)


def _flower(canvas, rng, at, reach, colour) -> None:
    foot = complex(at.real + rng.normal(0, 0.1), 1.05)
    stem = spline([at, (at + foot) / 2 + rng.normal(0, 0.03), foot], 6, closed=False)
    canvas.line(stem, (88, 112, 54), 0.008)
    turn = np.exp(1j * rng.uniform(0, np.pi))
    for k in range(6):
        tip = at + reach * turn * np.exp(1j * np.pi * k / 3)
        canvas.fill(place(BLADE, at, tip, reach * 0.36), toned(colour, 0.80 + 0.07 * (k % 4)))
    canvas.dot(at, reach * 0.28, toned(colour, 0.45))


def _dead_leaf(canvas, rng, at, reach, colour) -> None:
    tip = at + 2.2 * reach * np.exp(1j * rng.uniform(0, 2 * np.pi))
    canvas.fill(place(LEAF, at, tip, reach * 0.7), toned(colour, 0.92))
    canvas.fill([*place(LEAF, at, tip, reach * 0.7)[4:], at], toned(colour, 0.78))
    canvas.line([at, tip], toned(colour, 0.6), 0.005)


def _pebble(canvas, rng, at, reach, colour) -> None:
    _stone(canvas, rng, at, 1.5 * reach, colour)


_HANGING = (_berries, _fruit, _dead_leaf)
_GROWING = (_flower, _flower, _dead_leaf, _berries)
_LYING = (_pebble, _flower, _dead_leaf)


# -------------------------------------------------------------------------------------------------------------- perches
# What the bird stands on passes under `feet` and suits its size, `side`.


def _branch(canvas, rng, feet: complex, side: float, tones) -> None:
    """A branch with bark passing under the feet, with a few side twigs and leaves."""
    thick = max(0.012, side * rng.uniform(0.05, 0.13))
    slope = rng.uniform(-0.12, 0.12)
    x = np.array([-0.1, 0.25, 0.5, 0.75, 1.1]) - feet.real
    bend = rng.normal(0, 0.5)
    axis = feet + x + 1j * (slope * x + 0.3 * bend * x**2 + 0.5 * thick)
    axis = spline(axis, 8, closed=False)
    bark = _random_colour(rng, ((112, 92, 72), (128, 118, 106), (88, 68, 52)))
    for _ in range(rng.integers(1, 5)):
        start = axis[rng.integers(len(axis))]
        end = start + rng.uniform(0.1, 0.3) * np.exp(1j * rng.uniform(-2.6, 2.6))
        canvas.line([start, (start + end) / 2 + 0.02j, end], toned(bark, 0.8), 0.008)
        for k in range(rng.integers(0, 4)):
            root = start + (end - start) * (0.4 + 0.2 * k)
            _dead_leaf(canvas, rng, root, rng.uniform(0.02, 0.035), _random_colour(rng, tones))
    for offset, tone in ((0.5, 0.45), (0.36, 0.62), (0.2, 0.8), (0.02, 0.95), (-0.18, 1.08), (-0.34, 0.95)):
        canvas.line(axis + 1j * offset * thick * 0.55, toned(bark, tone), thick * (1 - abs(offset)))
    for _ in range(40):
        at = axis[rng.integers(len(axis))] + rng.uniform(0, 0.05) + 1j * thick * rng.uniform(-0.4, 0.45)
        at += 1j * slope * 0.03
        canvas.line([at, at + rng.uniform(0.01, 0.05) * (1 + 1j * slope)], (*toned(bark, 0.5), 90), 0.004)


def _snowy_branch(canvas, rng, feet, side, tones) -> None:
    _branch(canvas, rng, feet, side, ((150, 110, 70), (186, 178, 160)))
    for _ in range(6):
        at = complex(rng.uniform(0, 1), rng.uniform(0, 1))
        canvas.dot(at, rng.uniform(0.004, 0.01), (250, 250, 255, 190))


def _reed(canvas, rng, feet, side, tones) -> None:
    """A bent reed under the feet among upright ones."""
    for _ in range(rng.integers(2, 6)):
        x = rng.uniform(0, 1)
        middle, top = x + rng.normal(0, 0.03) + 0.6j, x + rng.normal(0, 0.12) + 1j * rng.uniform(0, 0.4)
        stalk = spline([x + 1.05j, middle, top], 6, closed=False)
        canvas.line(stalk, _random_colour(rng, _GREENS + _STRAWS), rng.uniform(0.006, 0.014))
    width = max(0.01, 0.05 * side)
    lean = rng.choice([-1, 1])
    stem = feet + lean * np.array([-0.9, -0.35, 0, 0.35, 0.8]) + 1j * np.array([0.55, 0.10, 0, 0, 0.14])
    stem = spline(stem + 0.4j * width, 8, closed=False)
    colour = _random_colour(rng, _GREENS + _STRAWS)
    for offset, tone in ((0.3, 0.6), (0, 0.95), (-0.25, 1.15)):
        canvas.line(stem + 1j * offset * width, toned(colour, tone), width * (1 - abs(offset) * 1.8))
    for k in (3, 11, 22):
        tip = stem[k] + complex(rng.normal(0, 0.15), -rng.uniform(0.1, 0.3))
        canvas.fill(place(LEAF, stem[k], tip, 0.012), _random_colour(rng, _GREENS + _STRAWS))


def _rock(canvas, rng, feet, side, tones) -> None:
    """A boulder under the feet that reaches out of the picture or into the water."""
    half = side * rng.uniform(0.6, 1.4)
    colour = _random_colour(rng, ((132, 128, 122), (148, 134, 116), (104, 106, 110)))
    crest = np.array([-1.3 + 1.1j, -1.0 + 0.38j, -0.5 + 0.06j, 0.01j, 0.5 + 0.05j, 0.95 + 0.34j, 1.35 + 1.2j])
    wobble = (rng.standard_normal(7) + 1j * rng.standard_normal(7)) * np.array([1, 1, 1, 0, 1, 1, 1])
    crest = spline(feet + half * (crest + 0.05 * wobble), 6, closed=False)
    floor = np.array([crest[-1].real, crest[0].real]) + 1.3j
    for k in range(14):
        squeeze = feet.real + (crest.real - feet.real) * (1 - 0.022 * k) - 0.015 * half * k
        layer = squeeze + 1j * (crest.imag + 0.075 * half * k)
        canvas.fill([*layer, *floor], toned(colour, 1.06 - 0.03 * k))
    for _ in range(6):
        crack = crest[rng.integers(8, 30)] + half * rng.uniform(0.05, 0.9) * 1j
        way = half * rng.uniform(0.15, 0.5) * np.exp(1j * rng.uniform(0.4, 2.6))
        bend = crack + way * (0.5 + 0.2j * rng.normal())
        canvas.line([crack, bend, crack + way], (*toned(colour, 0.45), 110), 0.006)
    for _ in range(90):
        at = crest[rng.integers(8, 30)] + half * complex(rng.normal(0, 0.08), rng.uniform(0.02, 1.1))
        canvas.dot(at, half * rng.uniform(0.006, 0.03), (*toned(colour, rng.choice([0.6, 1.25])), 60))


def _mound(canvas, rng, feet, side, tones) -> None:
    """Open ground with tufts, its edge passing under the feet."""
    x = np.linspace(-0.15, 1.15, 8)
    lean, bulge = rng.uniform(-0.12, 0.12), rng.uniform(0.05, 0.25)
    ridge = x + 1j * (feet.imag + lean * (x - feet.real) + bulge * (x - feet.real) ** 2)
    ridge = spline(ridge, 5, closed=False)
    colour = _random_colour(rng, tones, 0.08)
    for k in range(24):
        canvas.fill([*(ridge + 0.02j * k), 1.15 + 1.3j, -0.15 + 1.3j], toned(colour, 1.04 - 0.010 * k))
    for down in np.sort(rng.uniform(0, 1, rng.integers(90, 200))) ** 1.5:
        root = ridge[rng.integers(len(ridge))] + complex(rng.normal(0, 0.05), 0.6 * down)
        tip = root + complex(rng.normal(0, 0.015), -rng.uniform(0.012, 0.04) * (1 + 2 * down))
        canvas.line([root, tip], toned(_random_colour(rng, tones), 0.9 - 0.2 * down), 0.004 + 0.004 * down)


# ----------------------------------------------------------------------------------------------- the kinds of landscape


_RAMPS = {
    "sky": ((150, 184, 216), (190, 210, 226), (226, 228, 222)),
    "haze": ((190, 200, 208), (218, 214, 206), (234, 216, 190)),
    "leaves": ((124, 150, 92), (84, 116, 66), (52, 76, 48)),
    "autumn": ((210, 170, 96), (168, 118, 66), (98, 76, 50)),
    "reeds": ((204, 204, 180), (176, 168, 118), (128, 126, 78)),
    "water": ((172, 192, 196), (108, 138, 152), (74, 104, 120)),
    "meadow": ((184, 206, 204), (140, 164, 92), (96, 126, 60)),
    "scree": ((186, 190, 196), (158, 150, 138), (122, 112, 100)),
    "snow": ((196, 208, 222), (222, 228, 236), (240, 242, 246)),
    "forest": ((116, 130, 104), (84, 92, 70), (64, 60, 46)),
}
_SCENERIES = (
    _Scenery(_RAMPS["sky"], (_twigs,), _GREENS, (_branch,), _HANGING),
    _Scenery(_RAMPS["haze"], (_twigs, _bokeh), _STRAWS, (_branch, _reed), _HANGING),
    _Scenery(_RAMPS["leaves"], (_foliage, _bokeh), _GREENS, (_branch,), _HANGING),
    _Scenery(_RAMPS["autumn"], (_foliage, _bokeh), _AUTUMN, (_branch, _mound), _GROWING),
    _Scenery(_RAMPS["reeds"], (_blades,), _STRAWS, (_reed,), _GROWING),
    _Scenery(_RAMPS["water"], (_ripples,), _WATER, (_rock, _reed), _GROWING),
    _Scenery(_RAMPS["meadow"], (_blades,), _GREENS, (_mound, _reed), _GROWING),
    _Scenery(_RAMPS["scree"], (_stones,), _SCREE, (_rock,), _LYING),
    _Scenery(_RAMPS["snow"], (_twigs, _drifts), _SNOW, (_snowy_branch, _mound), _HANGING),
    _Scenery(_RAMPS["forest"], (_trunks, _bokeh), _GREENS, (_branch,), _HANGING),
)


# ------------------------------------------------------------------------------------------------- in front of the bird


def paint_occluders(rng: np.random.Generator, size: int, box: Box) -> Image.Image:
    """Paint twigs, leaves or grass in front of a bird at `box`, in about half of the pictures."""
    kind = rng.integers(2 * len(_OCCLUDERS))
    if kind >= len(_OCCLUDERS):
        return Image.new("RGBA", (size, size))
    double = Image.new("RGBA", (2 * size, 2 * size))
    x, y, w, h = box
    _OCCLUDERS[kind](Canvas(double, 2.0), rng, complex(x, y), w, h, max(w, h))
    return double.reduce(2)


def _front_blades(canvas, rng, corner, w, h, side) -> None:
    bottom = canvas.image.height / 2 + 5
    for _ in range(rng.integers(2, 7)):
        root = complex(corner.real + w * rng.uniform(-0.2, 1.2), bottom)
        top = complex(root.real + side * rng.normal(0, 0.25), corner.imag + h * rng.uniform(0.1, 0.8))
        middle = (root + top) / 2 + side * rng.normal(0, 0.06)
        blade = spline([root, middle, top], 8, closed=False)
        taper = np.linspace(1, 0.1, len(blade)) * side * rng.uniform(0.012, 0.035)
        colour = _random_colour(rng, _GREENS + _STRAWS)
        canvas.fill([*(blade - taper), *(blade + taper)[::-1]], (*colour, 255))


def _front_twig(canvas, rng, corner, w, h, side) -> None:
    through = corner + w * rng.uniform(0.15, 0.85) + 1j * h * rng.uniform(0.35, 0.95)
    edge = complex(rng.choice([-5, canvas.image.width / 2 + 5]), through.imag + side * rng.uniform(-0.3, 1.0))
    tip = through + side * 0.5 * np.exp(0.5j * rng.normal()) * np.sign(through.real - edge.real)
    twig = spline([edge, (edge + through) / 2 + 0.08j * side, through, tip], 8, closed=False)
    taper = 1j * np.linspace(0.032, 0.006, len(twig)) * side
    colour = _random_colour(rng, ((104, 84, 64), (78, 64, 52)))
    canvas.fill([*(twig - taper), *(twig + taper)[::-1]], (*toned(colour, 0.7), 255))
    canvas.fill([*(twig - taper), *(twig + 0.1 * taper)[::-1]], (*colour, 255))
    for at in twig[[7, 13, 19, -1]]:
        _front_leaf(canvas, rng, at, side * rng.uniform(0.08, 0.18))


def _front_leaves(canvas, rng, corner, w, h, side) -> None:
    for _ in range(rng.integers(1, 5)):
        at = corner + w * rng.uniform(0, 1) + 1j * h * rng.uniform(0.45, 1.05)
        _front_leaf(canvas, rng, at, side * rng.uniform(0.14, 0.34))


def _front_leaf(canvas, rng, at, length) -> None:
    tip = at + length * np.exp(1j * rng.uniform(0, 2 * np.pi))
    colour = _random_colour(rng, _GREENS)
    leaf = place(LEAF, at, tip, length * 0.28)
    canvas.fill(leaf, (*colour, 255))
    canvas.fill([*leaf[4:], at], (*toned(colour, 0.82), 255))
    canvas.line([at, tip], (*toned(colour, 1.25), 255), length * 0.03)


_OCCLUDERS = (_front_blades, _front_twig, _front_leaves)
