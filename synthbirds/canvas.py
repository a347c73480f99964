"""The drawing tools that the bird and the landscape share.

Points are complex numbers (x to the right, y down), which turns rotations and placements into single
multiplications.
"""

import numpy as np
from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]
"""x, y, width and height in pixels."""
Colour = tuple[int, ...]

COLOURS: dict[str, Colour] = {
    "black": (40, 37, 40),
    "white": (246, 242, 234),
    "chestnut": (138, 70, 38),
    "rufous": (190, 98, 46),
    "brown": (128, 100, 72),
    "buff": (216, 182, 138),
    "cream": (238, 226, 198),
    "olive": (122, 122, 66),
    "yellow": (240, 202, 56),
    "grey": (134, 140, 146),
    "slate": (84, 94, 110),
    "blue": (76, 112, 160),
    "red": (196, 48, 40),
    "pink": (210, 152, 132),
    "orange": (230, 134, 44),
}

# Outlines to be laid with `place`: x from 0 at the base to 1 at the tip, y from -1 to 1.
BLADE = np.array(
    [0, 0.25 - 0.8j, 0.55 - 1j, 0.82 - 0.85j, 0.95 - 0.5j, 1, 0.95 + 0.5j, 0.82 + 0.85j, 0.55 + 1j, 0.25 + 0.8j]
)
LEAF = np.array([0, 0.15 - 0.55j, 0.38 - 1j, 0.65 - 0.72j, 1, 0.65 + 0.72j, 0.38 + 1j, 0.15 + 0.55j])


def spline(points, steps: int = 7, closed: bool = True) -> np.ndarray:
    """A Catmull-Rom curve through complex points."""
    p = np.asarray(points, complex)
    if closed:
        p = np.concatenate([p[-1:], p, p[:2]])
    else:
        p = np.concatenate([p[:1], p, p[-1:]])
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.T.ravel() if closed else np.append(curve.T.ravel(), p[-1])


def place(shape: np.ndarray, base: complex, tip: complex, half_width: float) -> np.ndarray:
    """Lay a shape (x from 0 to 1, y from -1 to 1) from base to tip."""
    along = tip - base
    return base + shape.real * along + 1j * shape.imag * half_width * along / max(abs(along), 1e-9)


def toned(colour: Colour, factor: float) -> Colour:
    """Lighten (factor above 1, towards white) or darken a colour."""
    if factor > 1:
        return tuple(int(c + (255 - c) * (factor - 1)) for c in colour)
    return tuple(int(c * factor) for c in colour)


class Canvas:
    """Draws shapes given in units on images of `scale` pixels per unit whose corner is at `corner`."""

    def __init__(self, image: Image.Image, scale: float = 1.0, corner: complex = 0, mask: Image.Image | None = None):
        self.image, self.mask, self.scale, self.corner = image, mask, scale, corner
        self._pen = ImageDraw.Draw(image, "RGBA" if image.mode == "RGB" else image.mode)
        self._mask_pen = ImageDraw.Draw(mask) if mask is not None else None

    def pixels(self, points) -> list[float]:
        flat = (np.atleast_1d(np.asarray(points, complex)) - self.corner) * self.scale
        return flat.view(float).ravel().tolist()

    def fill(self, points, colour) -> None:
        xy = self.pixels(points)
        self._pen.polygon(xy, fill=colour)
        if self._mask_pen:
            self._mask_pen.polygon(xy, fill=255)

    def line(self, points, colour, width: float) -> None:
        xy, width = self.pixels(points), max(1, round(width * self.scale))
        self._pen.line(xy, fill=colour, width=width, joint="curve" if width > 3 else None)
        if self._mask_pen:
            self._mask_pen.line(xy, fill=255, width=width, joint="curve" if width > 3 else None)

    def dot(self, centre: complex, radius: float, colour) -> None:
        x, y = self.pixels(centre)
        r = radius * self.scale
        self._pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        if self._mask_pen:
            self._mask_pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
