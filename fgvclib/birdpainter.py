"""Paints the pictures of the synthetic bird data set: one perched bird in a cluttered landscape.

A picture is a stack of layers: a blurred landscape with sharp clutter and a perch, the bird, and occluders
in front of it. The bird is vector art in body units (the body is about one unit long), rasterised several
times too large and scaled down, so that its alpha mask gives an exact box at any size. Points are complex
numbers (x to the right, y down), which turns rotations and placements into single multiplications. Marks are
placed in body units or, on the head, in head radii; the landscape in image sides.

Two sisters drawn from the same random state make the same picture but for their marks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Box = tuple[float, float, float, float]
Colour = tuple[int, ...]

BOX_ALPHA = 64
"""A pixel belongs to the bird, and so to its box, from this alpha (0 to 255) on."""
LARGE_BIRDS = 0.7  # exponent below 1: more large birds than small ones, whose marks no one could see
SIZE_RANGE = (1 / 6, 2 / 3)
"""Range of the larger side of the bird's box, as a fraction of the image side."""
MAX_HIDDEN = 0.35
"""Occluders that would hide a larger part of the bird than this are left out."""

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


@dataclass(frozen=True)
class Species:
    """A species: its names and the field marks that tell it from the others.

    A mark is "plain" (or "none") or reads "<colour> <pattern>", e.g. crown "black cap", eyebrow "white line".
    """

    name: str
    genus: str
    tail: str
    bill: str
    bill_colour: str = "dark"
    crown: str = "plain"
    eyebrow: str = "none"
    eye_ring: str = "none"
    face: str = "plain"
    throat: str = "plain"
    breast: str = "plain"
    wing_bars: int = 0
    rump: str = "plain"
    tail_tip: str = "plain"


@dataclass(frozen=True)
class BodyPlan:
    """Shape and base palette shared by the species of a genus; lengths in body units, angles in degrees."""

    depth: float  # half the height of the body
    head: float  # radius
    neck: complex  # from the shoulder to the centre of the head
    tilt: float  # of the body, bill up
    leg: float
    wing: float
    upper: str
    under: str
    breast: str
    flight: str  # wing and tail feathers
    crest: float = 0.0
    tail_lift: float = 0.0
    leg_colour: str = "pink"


BODY_PLANS: dict[str, BodyPlan] = {
    "Marshfinch": BodyPlan(0.33, 0.265, 0.10 - 0.13j, 30, 0.26, 1.00, "brown", "cream", "buff", "brown"),
    "Leafwarbler": BodyPlan(0.245, 0.195, 0.15 - 0.10j, 20, 0.30, 0.95, "olive", "cream", "yellow", "olive"),
    "Silkcrest": BodyPlan(
        0.30, 0.245, 0.10 - 0.15j, 46, 0.20, 1.05, "buff", "cream", "buff", "slate", 0.34, 0, "black"
    ),
    "Streamtail": BodyPlan(
        0.235, 0.205, 0.13 - 0.14j, 12, 0.40, 0.95, "grey", "white", "white", "slate", leg_colour="black"
    ),
    "Needlebill": BodyPlan(
        0.29, 0.200, 0.22 - 0.22j, 18, 0.58, 1.05, "brown", "white", "buff", "brown", leg_colour="olive"
    ),
    "Thornshrike": BodyPlan(
        0.29, 0.270, 0.12 - 0.16j, 44, 0.26, 1.00, "grey", "white", "cream", "black", leg_colour="black"
    ),
    "Flycatcher": BodyPlan(
        0.25, 0.245, 0.08 - 0.14j, 56, 0.16, 1.05, "brown", "cream", "white", "brown", leg_colour="black"
    ),
    "Hillthrush": BodyPlan(0.31, 0.215, 0.17 - 0.18j, 34, 0.40, 1.05, "olive", "white", "cream", "brown"),
    "Stonewren": BodyPlan(
        0.345, 0.240, 0.12 - 0.06j, 8, 0.30, 0.80, "chestnut", "buff", "cream", "chestnut", tail_lift=68
    ),
    "Rivermartin": BodyPlan(
        0.245, 0.225, 0.12 - 0.10j, 38, 0.12, 1.40, "blue", "white", "cream", "slate", leg_colour="black"
    ),
}

# Length in body units and how much longer the outer feathers are than the inner ones.
TAILS = {"short": (0.42, -0.10), "notched": (0.56, 0.14), "long": (1.10, -0.22), "forked": (0.88, 0.55)}
_TAIL_FEATHER = 0.055  # half the width
# Length and depth in head radii, and how far the tip drops.
BILLS = {
    "cone": (0.86, 0.78, 0.10),
    "thin": (0.80, 0.27, 0.04),
    "hooked": (0.90, 0.48, 0.26),
    "straight": (2.30, 0.27, 0.02),
    "curved": (2.10, 0.27, 0.75),
    "flat": (0.62, 0.34, 0.06),
}


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
    """Draws one picture of a species.

    Args:
        species: a species whose genus is in BODY_PLANS.
        rng: the only source of variation.
        image_size: side of the picture in pixels, at least 32.

    Returns:
        The RGB picture and the exact box (x, y, w, h) of the bird in pixels, hidden parts included.
    """
    scene = paint_scene(species, rng, image_size)
    return compose(scene), scene.box


def paint_scene(species: Species, rng: np.random.Generator, image_size: int) -> Scene:
    """Paints the layers of one picture; see `draw_bird` for the arguments."""
    low, high = np.array(SIZE_RANGE) * image_size
    side = low + 1 + (high - low - 2) * rng.uniform() ** LARGE_BIRDS
    art, feet = paint_bird(species, rng, side)
    left, top, right, bottom = art.getchannel("A").point(lambda a: 255 * (a >= BOX_ALPHA)).getbbox()
    x = int(rng.integers(-left, image_size - right + 1))
    y = int(rng.integers(-top, image_size - bottom + 1))
    bird = Image.new("RGBA", (image_size, image_size))
    bird.paste(art, (x, y))
    box = (float(x + left), float(y + top), float(right - left), float(bottom - top))
    landscape = _landscape(rng, image_size, feet + complex(x, y), side)
    occluders = _occluders(rng, bird, box)
    return Scene(landscape, bird, occluders, box, _curves(rng), int(rng.integers(2**32)))


def compose(scene: Scene) -> Image.Image:
    """Flattens the layers of a scene and adds light and sensor noise."""
    picture = scene.landscape.copy()
    picture.paste(scene.bird, mask=scene.bird)
    picture.paste(scene.occluders, mask=scene.occluders)
    pixels = np.asarray(picture.point(scene.curves)).astype(np.int16)
    noise = np.random.default_rng(scene.noise_seed)
    grain = noise.standard_normal(pixels.shape[:2], np.float32) * noise.uniform(0.5, 2.5)
    pixels += np.rint(grain).astype(np.int16)[..., None]
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))


# ---------------------------------------------------------------------------------------------- drawing tools


def _spline(points, steps: int = 7, closed: bool = True) -> np.ndarray:
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


_BLADE = np.array(
    [0, 0.25 - 0.8j, 0.55 - 1j, 0.82 - 0.85j, 0.95 - 0.5j, 1, 0.95 + 0.5j, 0.82 + 0.85j, 0.55 + 1j, 0.25 + 0.8j]
)
_LEAF = np.array([0, 0.15 - 0.55j, 0.38 - 1j, 0.65 - 0.72j, 1, 0.65 + 0.72j, 0.38 + 1j, 0.15 + 0.55j])


def _place(shape: np.ndarray, base: complex, tip: complex, half_width: float) -> np.ndarray:
    """Lays a shape (x from 0 to 1, y from -1 to 1) from base to tip."""
    along = tip - base
    return base + shape.real * along + 1j * shape.imag * half_width * along / max(abs(along), 1e-9)


def _shade(colour: Colour, factor: float) -> Colour:
    """Lightens (factor above 1, towards white) or darkens a colour."""
    if factor > 1:
        return tuple(int(c + (255 - c) * (factor - 1)) for c in colour)
    return tuple(int(c * factor) for c in colour)


class _Canvas:
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


# --------------------------------------------------------------------------------------------------- the bird


class _Pose:
    """Where the parts of one bird are: maps body, head and wing coordinates to the picture's directions."""

    def __init__(self, species: Species, rng: np.random.Generator):
        plan = self.plan = BODY_PLANS[species.genus]
        self.body_turn = np.exp(-1j * np.radians(plan.tilt + rng.uniform(-9, 11)))
        shoulder = (0.34 - 0.55j * plan.depth) * self.body_turn
        self.head_at = shoulder + plan.neck + rng.uniform(-0.04, 0.04) + 1j * rng.uniform(-0.06, 0.04)
        self.head_turn = np.exp(-1j * np.radians(rng.uniform(-14, 18)))
        self.facing = rng.uniform(0.78, 1.0)  # below 1 the bill is turned towards or away from the viewer
        self.wing_turn = np.exp(1j * np.radians(rng.uniform(-9, 5)))
        self.tail_turn = self.body_turn * np.exp(1j * np.radians(plan.tail_lift + rng.uniform(-14, 12)))
        self.tail_fan = rng.uniform(0.05, 0.12)
        self.leg = plan.leg * rng.uniform(0.75, 1.1)
        self.slope = rng.uniform(-0.2, 0.2)

    def body(self, points) -> np.ndarray:
        return np.asarray(points, complex) * self.body_turn

    def head(self, points) -> np.ndarray:
        return self.head_at + np.asarray(points, complex) * self.plan.head * self.head_turn

    def wing(self, along, across) -> np.ndarray:
        """Wing coordinates: `along` 0 at the shoulder and 1 at the tip, `across` from -0.5 (back) to 0.5."""
        flat = -np.asarray(along) * self.plan.wing + 1j * np.asarray(across) * self.plan.depth * 1.3
        return self.body(0.36 - 0.20j * self.plan.depth + flat * self.wing_turn)

    def contour(self) -> np.ndarray:
        b = self.plan.depth
        front = self.head([0.95 - 0.14j, 0.72 - 0.68j, 0.08 - 1.02j, -0.62 - 0.80j, -0.98 - 0.22j])
        back = self.body([0.12 - 0.95j * b, -0.14 - 0.90j * b, -0.38 - 0.62j * b, -0.58 - 0.26j * b])
        below = [-0.57 + 0.14j * b, -0.40 + 0.52j * b, -0.10 + 0.98j * b, 0.20 + 1.02j * b, 0.42 + 0.72j * b]
        below = self.body(below)
        chin = self.head(0.86 + 0.34j)
        throat = 0.5 * chin + 0.5 * below[-1] + 0.03 * self.body_turn
        return _spline(np.concatenate([front, back, below, [throat, chin]]))


def paint_bird(species: Species, rng: np.random.Generator, side: float) -> tuple[Image.Image, complex]:
    """Paints a bird alone, the larger side of its extent being `side` pixels.

    Returns:
        The RGBA layer (with a few pixels of margin) and the point between the feet in pixels of the layer.
    """
    pose, palette = _Pose(species, rng), _individual_palette(rng)
    parts = _Parts(species, pose)
    outline = parts.outline()
    corner = outline.real.min() + 1j * outline.imag.min()
    spread = np.array([np.ptp(outline.real), np.ptp(outline.imag)])
    factor = 4 if side < 60 else 3
    scale = float(side * factor / spread.max())
    margin = 2 * factor / scale
    width, height = (int(n) for n in np.ceil((spread + 2 * margin) * scale / factor))
    paint = Image.new("RGB", (width * factor, height * factor), palette[pose.plan.upper])
    mask = Image.new("L", paint.size)
    canvas = _Canvas(paint, scale, corner - margin * (1 + 1j), mask)
    _paint_parts(canvas, parts, species, pose, palette, rng)
    paint = ImageChops.multiply(paint, _light(mask, canvas, rng))
    paint.putalpha(mask)
    layer = paint.resize((width, height), Image.Resampling.LANCZOS)
    feet = complex(parts.feet.mean() - canvas.corner) * scale / factor
    if rng.random() < 0.5:
        return layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT), complex(width - feet.real, feet.imag)
    return layer, feet


def _individual_palette(rng: np.random.Generator) -> dict[str, Colour]:
    """The named colours with the cast of one individual (a few percent, far less than between names)."""
    cast = rng.uniform(0.95, 1.05) * rng.uniform(0.975, 1.025, 3)
    return {name: tuple(int(v) for v in np.clip(np.array(c) * cast, 0, 255)) for name, c in COLOURS.items()}


class _Parts:
    """The outlines of the parts of one posed bird."""

    def __init__(self, species: Species, pose: _Pose):
        self.contour = pose.contour()
        self.tail = self._tail(species, pose)
        self.bill = self._bill(species, pose)
        hip = -0.02 - 0.003 * pose.plan.tilt
        self.hips = pose.body(np.array([hip, hip + 0.10]) + 0.80j * pose.plan.depth)
        over_feet = np.abs(self.contour.real - self.hips.real.mean()) < 0.12
        drop = self.contour.imag[over_feet].max() + 0.55 * pose.leg
        x = self.hips.real + np.array([-0.01, 0.07])
        self.feet = x + 1j * (drop + pose.slope * (x - x.mean()))
        self.crest = self._crest(pose)
        self.wing_tip = pose.wing([1.0, 0.9], [0.05, 0.1])

    @staticmethod
    def _tail(species: Species, pose: _Pose) -> list[tuple[complex, complex]]:
        length, fork = TAILS[species.tail]
        base = pose.body(-0.46 - 0.02j)
        rank = np.linspace(-1, 1, 7)
        fan = pose.tail_fan * (0.5 if fork > 0.5 else 1)
        reach = (length + 0.12) * (1 + fork * (np.abs(rank) - 0.7))
        roots = base + 1j * 0.045 * rank * pose.tail_turn
        tips = base + (-reach + 1j * rank * (0.05 + fan * length)) * pose.tail_turn
        return list(zip(roots, tips, strict=True))

    @staticmethod
    def _bill(species: Species, pose: _Pose) -> dict[str, np.ndarray]:
        length, depth, drop = BILLS[species.bill]
        length *= pose.facing
        root, tip = 0.84 + 0.04j, 0.84 + length + 1j * (0.10 + drop)
        gape = [root + 0.02j, root + length * 0.45 + 1j * (0.06 + drop * 0.2), tip - 0.06 * length]
        top = [
            root - 0.5j * depth,
            root + length * 0.38 - 1j * depth * 0.42 + 0.05j * drop,
            root + length * 0.78 - 1j * depth * 0.16 + 0.45j * drop,
        ]
        if species.bill == "hooked":
            top[2] = root + length * 0.90 - 0.14j * depth + 0.1j * drop
        low = [
            root + length * 0.72 + 1j * (depth * 0.20 + 0.45 * drop),
            root + length * 0.3 + 1j * depth * 0.42,
            root + 0.46j * depth,
        ]
        if species.bill == "hooked":
            gape[2] = tip - 0.14 * length - 0.12j
        upper = _spline([*top, tip], 5, closed=False)
        lower = _spline([gape[2], *low], 5, closed=False)
        line = _spline(gape, 5, closed=False)
        return {
            "upper": pose.head(np.concatenate([upper, line[::-1]])),
            "lower": pose.head(np.concatenate([line, lower])),
            "gape": pose.head(line),
            "culmen": pose.head(upper),
        }

    @staticmethod
    def _crest(pose: _Pose) -> np.ndarray:
        if not pose.plan.crest:
            return np.empty(0, complex)
        c = pose.plan.crest / pose.plan.head
        tip = -0.75 - 0.62 * c - (1.05 + 0.52 * c) * 1j
        nape = [-1.0 - 1.0j, -0.98 - 0.3j, 0.1 - 0.5j]
        return pose.head(_spline([0.66 - 0.72j, 0.2 - 1.06j, -0.35 - 1.32j, tip, *nape]))

    def outline(self) -> np.ndarray:
        """All points that bound the bird."""
        toes = np.concatenate([self.feet + 0.12, self.feet - 0.08, self.feet + 0.04j])
        feathers = [_place(_BLADE, base, tip, _TAIL_FEATHER) for base, tip in self.tail]
        bill = [self.bill["upper"], self.bill["lower"]]
        return np.concatenate([self.contour, *bill, *feathers, toes, self.crest, self.wing_tip])


def _paint_parts(canvas, parts, species, pose, palette, rng) -> None:
    _paint_tail(canvas, parts, species, pose, palette)
    _paint_legs(canvas, parts, pose, palette)
    if len(parts.crest):
        _paint_crest(canvas, parts, species, pose, palette)
    _paint_plumage(canvas, parts, species, pose, palette, rng)
    _paint_wing(canvas, species, pose, palette)
    _paint_bill(canvas, parts, species, pose, palette)
    _paint_eye(canvas, species, pose, palette)


def _paint_crest(canvas, parts, species, pose, palette) -> None:
    colour = palette[_mark_colour(species.crown, pose.plan.upper)]
    canvas.fill(parts.crest, colour)
    root, tip = pose.head(0.1 - 0.8j), parts.crest[21]
    for k in range(5):
        end = tip + (root - tip) * 0.12 * k + 0.012j * (k - 2)
        strand = _spline([root - 0.02 * k, (root + end) / 2 - 0.02j, end], 4, closed=False)
        canvas.line(strand, _shade(colour, 0.8), 0.008)


def _mark_colour(mark: str, default: str) -> str:
    return default if mark in ("plain", "none") else mark.split()[0]


def _paint_tail(canvas, parts, species, pose, palette) -> None:
    colour = palette[pose.plan.flight]
    middle = len(parts.tail) // 2
    order = sorted(range(len(parts.tail)), key=lambda i: -abs(i - middle))
    for i in order:
        base, tip = parts.tail[i]
        shade = _shade(colour, 0.62 + 0.05 * (i % 3))
        canvas.fill(_place(_BLADE, base, tip, _TAIL_FEATHER), shade)
        if species.tail_tip != "plain":
            length = abs(tip - base)
            start = tip + (base - tip) * min(0.5, 0.16 / length)
            canvas.fill(_place(_BLADE, start, tip, 0.05), palette[_mark_colour(species.tail_tip, "white")])
        canvas.line([base, base + (tip - base) * 0.97], _shade(shade, 0.72), 0.007)
        edge = base + 0.05j * (tip - base) / abs(tip - base) + np.array([0.3, 0.85]) * (tip - base)
        canvas.line(edge, _shade(shade, 1.25), 0.006)


def _paint_legs(canvas, parts, pose, palette) -> None:
    colour = _shade(palette[pose.plan.leg_colour], 0.85)
    for hip, foot, tone in zip(parts.hips, parts.feet, (0.7, 1.0), strict=True):
        shade = _shade(colour, tone)
        ankle = foot - 0.02j - 0.035
        canvas.line([hip, (hip + ankle) / 2 - 0.02, ankle, foot - 0.012j], shade, 0.036)
        for reach in (0.11 + 0.015j, 0.09 + 0.038j, 0.055 + 0.05j, -0.07 + 0.03j):
            toe = [foot - 0.012j, foot + reach * 0.55 - 0.018j, foot + reach + 1j * pose.slope * reach.real]
            canvas.line(_spline(toe, 4, closed=False), shade, 0.026)


def _paint_plumage(canvas, parts, species, pose, palette, rng) -> None:
    """Paints the feathered body: soft regions first, then marks, then single feathers."""
    plan, b = pose.plan, pose.plan.depth
    body_mask = Image.new("L", canvas.image.size)
    _Canvas(body_mask, canvas.scale, canvas.corner).fill(parts.contour, 255)
    soft = _Canvas(Image.new("RGB", canvas.image.size, palette[plan.upper]), canvas.scale, canvas.corner)
    mantle = [0.30 - 0.95j * b, -0.1 - 1.1j * b, -0.4 - 0.9j * b, -0.2 - 0.55j * b, 0.2 - 0.6j * b]
    soft.fill(pose.body(_spline(mantle)), _shade(palette[plan.upper], 0.88))
    chin = pose.head([1.1 + 0.22j, 0.45 + 0.34j, -0.05 + 0.62j])
    flank = [0.20 + 0.05j * b, -0.15 + 0.25j * b, -0.7 + 0.05j * b]
    belly = [-0.6 + 1.6j * b, 0.3 + 1.8j * b, 1.1 + 0.4j * b]
    soft.fill(np.concatenate([chin, pose.body(flank + belly)]), palette[plan.under])
    breast = [0.16 + 0.1j * b, 0.06 + 0.5j * b, 0.12 + 1.3j * b, 0.9 + 1.3j * b, 1.1 - 0.2j * b]
    soft.fill(np.concatenate([chin, pose.body(breast)]), palette[plan.breast])
    if species.rump != "plain":
        rump = [-0.24 - 1.2j * b, -0.26 - 0.35j * b, -0.5 + 0j, -0.72 + 0.1j * b, -0.7 - 0.8j * b]
        soft.fill(pose.body(rump), palette[_mark_colour(species.rump, "white")])
    _blur(soft, 0.022)
    _paint_head_marks(soft, species, pose, palette)
    _blur(soft, 0.006)
    _paint_breast_marks(soft, species, pose, palette, rng)
    _paint_feather_strokes(soft, pose, rng)
    canvas.image.paste(soft.image, mask=body_mask)
    canvas.mask.paste(255, mask=body_mask)


def _blur(canvas: _Canvas, radius: float) -> None:
    """Blurs by a radius in units; small radii in pixels are left to the final reduction."""
    pixels = radius * canvas.scale
    if pixels > 0.7:
        canvas.image.paste(canvas.image.filter(ImageFilter.BoxBlur(pixels)))


def _paint_head_marks(canvas, species, pose, palette) -> None:
    _paint_throat(canvas, species, pose, palette)
    _paint_crown(canvas, species, pose, palette)
    radius = pose.plan.head
    if species.eyebrow != "none":
        brow = [0.95 - 0.22j, 0.45 - 0.50j, -0.2 - 0.47j, -0.85 - 0.22j]
        colour = palette[_mark_colour(species.eyebrow, "white")]
        canvas.line(pose.head(_spline(brow, closed=False)), colour, 0.20 * radius)
    colour = palette[_mark_colour(species.face, "black")]
    if species.face.endswith("mask"):
        above = [0.98 - 0.12j, 0.5 - 0.40j, -0.1 - 0.36j, -0.75 - 0.16j]
        below = [-0.85 + 0.12j, -0.3 + 0.22j, 0.4 + 0.12j, 0.98 + 0.1j]
        canvas.fill(pose.head(_spline(above + below)), colour)
    elif species.face.endswith("moustache"):
        stripe = _spline([0.86 + 0.22j, 0.5 + 0.42j, 0.12 + 0.82j], closed=False)
        canvas.line(pose.head(stripe), colour, 0.24 * radius)


def _paint_throat(canvas, species, pose, palette) -> None:
    if species.throat == "plain":
        return
    b = pose.plan.depth
    chin = pose.head([1.1 + 0.16j, 0.45 + 0.28j, -0.02 + 0.60j])
    bib = pose.body([0.30 + 0.12j * b, 0.40 + 0.42j * b, 0.7 + 0.4j * b])
    canvas.fill(np.concatenate([chin, bib]), palette[_mark_colour(species.throat, "black")])


def _paint_crown(canvas, species, pose, palette) -> None:
    if species.crown == "plain":
        return
    striped = species.crown.endswith("stripe")
    colour = palette[_mark_colour(species.crown, "black")]
    above = [1.02 - 0.16j, 0.85 - 0.9j, 0.1 - 1.3j, -0.8 - 1.1j]
    below = [-1.25 - 0.25j, -0.8 - 0.24j, -0.1 - 0.40j, 0.55 - 0.42j]
    ground = _shade(palette[pose.plan.upper], 0.5) if striped else colour
    canvas.fill(pose.head(_spline(above + below)), ground)
    if striped:
        stripe = [0.88 - 0.50j, 0.4 - 1.0j, -0.4 - 1.1j, -1.1 - 0.55j, -0.5 - 0.72j, 0.3 - 0.72j]
        canvas.fill(pose.head(_spline(stripe)), colour)


def _paint_breast_marks(canvas, species, pose, palette, rng) -> None:
    b = pose.plan.depth
    colour = palette[_mark_colour(species.breast, "brown")]
    rows, columns = np.meshgrid(np.arange(6), np.arange(5), indexing="ij")
    spots = 0.44 - 0.105 * rows + 1j * b * (0.10 + 0.19 * columns + 0.10 * rows)
    # Drawn for unmarked birds too: sisters then share all that follows.
    spots = pose.body(spots + 0.02 * (rng.standard_normal((6, 5)) + 1j * rng.standard_normal((6, 5)))).ravel()
    if species.breast.endswith("band"):
        band = [0.14 + 0.12j * b, 0.30 + 0.50j * b, 0.46 + 0.62j * b, 0.62 + 0.5j * b]
        canvas.line(pose.body(_spline(band, closed=False)), colour, 0.12)
    elif species.breast.endswith("spots"):
        for spot in spots:
            canvas.dot(spot, 0.021, colour)
    elif species.breast.endswith("streaks"):
        for spot in spots:
            canvas.fill(_place(_LEAF, spot, spot + pose.body(-0.095 + 0.012j), 0.013), colour)


def _paint_feather_strokes(canvas, pose, rng) -> None:
    """Short translucent strokes along the lie of the feathers."""
    count = int(min(260, canvas.scale * 0.9))
    b = pose.plan.depth
    angle, radius = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    at = pose.body(0.02 + radius * (0.56 * np.cos(angle) + 1j * b * np.sin(angle)))
    at[: count // 4] = pose.head(radius * np.exp(1j * angle))[: count // 4]
    lie = pose.body(-rng.uniform(0.03, 0.06, count) + 1j * rng.normal(0, 0.008, count))
    bright = rng.random(count) < 0.5
    for start, along, light in zip(at, lie, bright, strict=True):
        canvas.line([start, start + along], (255, 250, 240, 24) if light else (30, 22, 16, 30), 0.009)


def _paint_wing(canvas, species, pose, palette) -> None:
    wing, plan = pose.wing, pose.plan
    flight, cover = palette[plan.flight], palette[plan.upper]
    edge = _shade(flight, 1.35)
    for i in range(6):
        base, tip = wing(0.42, 0.30 - 0.05 * i), wing(0.99 - 0.055 * i, 0.02 + 0.055 * i)
        _feather(canvas, base, tip, 0.05, _shade(flight, 0.50 + 0.03 * i), edge)
    for i in range(5):
        base, tip = wing(0.26, 0.36 - 0.15 * i), wing(0.74 - 0.045 * i, 0.27 - 0.125 * i)
        _feather(canvas, base, tip, 0.062, _shade(flight, 0.72 + 0.05 * i), edge)
    rows = ((0.16, 0.47, 0.058, flight), (0.04, 0.30, 0.050, cover))
    for row, (start, end, width, colour) in enumerate(rows):
        tips = []
        for across in np.linspace(0.46, -0.44, 8):
            root, tip = wing(start, across * 0.85), wing(end - 0.16 * across**2 - 0.05 * across, across)
            _feather(canvas, root, tip, width, _shade(colour, 0.80), _shade(colour, 1.18))
            tips.append(_place(_BLADE, tip + (root - tip) * 0.30, tip, width * 0.80))
        for tip in tips if row < species.wing_bars else ():
            canvas.fill(tip, palette["white"])
    _paint_shoulder(canvas, pose, cover)


def _paint_shoulder(canvas, pose, colour) -> None:
    """The small coverts: scales that melt into the mantle."""
    for start, end, span, count in ((-0.01, 0.20, 0.40, 8), (-0.05, 0.13, 0.36, 7), (-0.08, 0.06, 0.28, 6)):
        for across in np.linspace(span, -span, count):
            root, tip = pose.wing(start, across * 0.8), pose.wing(end - 0.25 * across**2, across)
            _feather(canvas, root, tip, 0.05, _shade(colour, 0.92), _shade(colour, 0.80))


def _feather(canvas, base, tip, half_width, colour, edge) -> None:
    canvas.fill(_place(_BLADE, base, tip, half_width), edge)
    canvas.fill(_place(_BLADE, base, tip - (tip - base) * 0.025, half_width * 0.84), colour)
    if canvas.scale > 120:
        canvas.line([base + (tip - base) * 0.2, tip - (tip - base) * 0.06], _shade(colour, 0.78), 0.005)


def _paint_bill(canvas, parts, species, pose, palette) -> None:
    colour = palette["slate" if species.bill_colour == "dark" else species.bill_colour]
    canvas.fill(parts.bill["lower"], _shade(colour, 0.68))
    canvas.fill(parts.bill["upper"], _shade(colour, 0.9))
    canvas.line(parts.bill["culmen"][1:-4], _shade(colour, 1.3), 0.02 * pose.plan.head / 0.2)
    canvas.line(parts.bill["gape"][:-2], _shade(colour, 0.4), 0.010)


def _paint_eye(canvas, species, pose, palette) -> None:
    r = pose.plan.head
    eye = pose.head(0.40 - 0.17j)
    if species.eye_ring != "none":
        canvas.dot(eye, 0.31 * r, palette[_mark_colour(species.eye_ring, "white")])
    else:
        canvas.dot(eye, 0.225 * r, (150, 138, 120))
    canvas.dot(eye, 0.20 * r, (24, 18, 16))
    canvas.dot(eye + 0.05j * r, 0.13 * r, (74, 46, 28))
    canvas.dot(eye + 0.01j * r, 0.12 * r, (12, 9, 9))
    canvas.dot(eye + (0.06 - 0.08j) * r, 0.062 * r, (255, 255, 255))


def _light(mask, canvas, rng) -> Image.Image:
    """The light on the bird: a soft relief from its outline, lit from above, with cool shade below."""
    step = max(1, max(mask.size) // 72)
    relief = mask.reduce(step).filter(ImageFilter.GaussianBlur(0.085 * canvas.scale / step))
    height = np.asarray(relief, np.float32) / 255
    dy, dx = np.array(np.gradient(height)) * 0.13 * canvas.scale / step
    sun = rng.uniform(-0.5, 0.5)
    lit = 0.60 + 0.34 / np.sqrt(1 + 9 * (dx**2 + dy**2)) + 0.85 * (dy + dx * sun)
    rows = np.linspace(0, 1, height.shape[0], dtype=np.float32)[:, None]
    lit = np.clip(lit * (1.08 - 0.18 * rows), 0.32, 1)
    cool = np.stack([lit, lit**0.96, lit**0.84], -1)
    return Image.fromarray((255 * cool).astype(np.uint8)).resize(mask.size, Image.Resampling.BILINEAR)


# ---------------------------------------------------------------------------------------------- the landscape


@dataclass(frozen=True)
class _Scenery:
    """A kind of landscape: its colours from top to bottom, what stands in it and what birds sit on there."""

    ramp: tuple[Colour, ...]
    details: tuple[Callable, ...]
    tones: tuple[Colour, ...]
    perches: tuple[Callable, ...]
    decoys: tuple[Callable, ...]


def _landscape(rng: np.random.Generator, size: int, feet: complex, side: float) -> Image.Image:
    scenery = _SCENERIES[rng.integers(len(_SCENERIES))]
    image = _gradient(scenery.ramp, rng, size)
    canvas = _Canvas(image, size)
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
    canvas = _Canvas(sharp, 2 * size)
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


def _foliage(canvas, rng, tones) -> None:
    for _ in range(rng.integers(35, 75)):
        base = _somewhere(rng)
        tip = base + rng.uniform(0.05, 0.15) * np.exp(1j * rng.uniform(0, 2 * np.pi))
        colour = _random_colour(rng, tones)
        canvas.fill(_place(_LEAF, base, tip, rng.uniform(0.012, 0.032)), colour)
        canvas.line([base, tip], _shade(colour, 1.2), 0.004)


def _bokeh(canvas, rng, tones) -> None:
    for _ in range(rng.integers(6, 22)):
        colour = _shade(_random_colour(rng, tones), 1.45)
        canvas.dot(_somewhere(rng), rng.uniform(0.015, 0.05), (*colour, int(rng.integers(50, 130))))


def _blades(canvas, rng, tones) -> None:
    for _ in range(rng.integers(25, 60)):
        root = complex(rng.uniform(-0.1, 1.1), 1.05)
        top = root + complex(rng.normal(0, 0.14), -rng.uniform(0.25, 1.05))
        bend = (root + top) / 2 + rng.normal(0, 0.04)
        canvas.line(_spline([root, bend, top], 5, closed=False), _random_colour(rng, tones), rng.uniform(0.006, 0.018))


def _twigs(canvas, rng, tones) -> None:
    for _ in range(rng.integers(3, 8)):
        start, turn, width = _somewhere(rng), rng.uniform(0, 2 * np.pi), rng.uniform(0.010, 0.022)
        colour = _random_colour(rng, ((96, 78, 62), (70, 60, 54)))
        for _ in range(4):
            way = rng.uniform(0.12, 0.4) * np.exp(1j * (turn + rng.normal(0, 0.5)))
            bend = way * (0.5 + 0.08j * rng.normal())
            canvas.line(_spline([start, start + bend, start + way], 6, closed=False), colour, width)
            start, width = start + way * rng.uniform(0.3, 0.9), 0.75 * width


def _trunks(canvas, rng, tones) -> None:
    for _ in range(rng.integers(2, 6)):
        x, width = rng.uniform(0, 1), rng.uniform(0.03, 0.13)
        lean, colour = rng.normal(0, 0.05), _random_colour(rng, ((92, 78, 62), (120, 108, 94), (66, 58, 48)))
        for k in range(6):
            strip = np.array([x + width * k / 6, x + width * (k + 1) / 6])
            outline = [*(strip - 0.05j), *(strip + lean + 1.05j)[::-1]]
            canvas.fill(outline, _shade(colour, 0.65 + 0.11 * min(k, 5 - k)))


def _ripples(canvas, rng, tones) -> None:
    for _ in range(rng.integers(60, 120)):
        near = rng.uniform(0, 1) ** 0.7
        at = complex(rng.uniform(-0.1, 1), 0.2 + 0.85 * near)
        length = rng.uniform(0.06, 0.3) * (0.3 + near)
        colour = _shade(_random_colour(rng, tones), rng.choice([0.7, 1.0, 1.45]))
        canvas.fill(_place(_LEAF, at, at + length, 0.004 + 0.011 * near), (*colour, 170))


def _stones(canvas, rng, tones) -> None:
    for at in sorted((_somewhere(rng, 0.1, 1.1) for _ in range(rng.integers(12, 30))), key=lambda z: z.imag):
        _stone(canvas, rng, at - 0.05, rng.uniform(0.03, 0.12), _random_colour(rng, tones))


def _stone(canvas, rng, at: complex, radius: float, colour: Colour) -> None:
    corners = np.exp(2j * np.pi * (np.arange(7) + rng.uniform(-0.25, 0.25, 7)) / 7) * rng.uniform(0.8, 1.1, 7)
    outline = corners.real + 0.65j * corners.imag
    for scale, tone in ((1, 0.6), (0.9, 0.85), (0.68, 1.0), (0.4, 1.12)):
        facet = at - (1 - scale) * radius * (0.2 + 0.45j) + outline * radius * scale
        canvas.fill(_spline(facet, 4), _shade(colour, tone))


def _drifts(canvas, rng, tones) -> None:
    for level in np.sort(rng.uniform(0.45, 1, 4)):
        ridge = np.linspace(-0.1, 1.1, 7) + 1j * (level + rng.normal(0, 0.03, 7))
        drift = [*_spline(ridge, 5, closed=False), 1.1 + 1.1j, -0.1 + 1.1j]
        canvas.fill(drift, _random_colour(rng, tones, 0.06))


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
    stem = _spline([at, at + (top - at) * 0.4 + rng.normal(0, 0.04), top], 6, closed=False)
    canvas.line(stem, (88, 74, 54), 0.007)
    for k in range(2, len(stem) - 1, 3):
        _dead_leaf(canvas, rng, stem[k], rng.uniform(0.012, 0.026), _random_colour(rng, _GREENS))


def _berries(canvas, rng, at, reach, colour) -> None:
    _hanging_stem(canvas, rng, at - 1.2j * reach)
    for _ in range(rng.integers(2, 7)):
        berry = at + reach * complex(*rng.normal(0, 0.7, 2))
        stalk = [berry, (berry + at) / 2 - 0.3j * reach, at - 1.2j * reach]
        canvas.line(_spline(stalk, 4, closed=False), (84, 72, 50), 0.005)
        _ball(canvas, berry, reach * 0.42, colour)


def _ball(canvas, at, radius, colour) -> None:
    for scale, tone in ((1, 0.6), (0.88, 0.78), (0.7, 0.93), (0.5, 1.05), (0.16, 1.6)):
        canvas.dot(at - (1 - scale) * radius * (0.35 + 0.45j), radius * scale, _shade(colour, tone))


def _fruit(canvas, rng, at, reach, colour) -> None:
    _hanging_stem(canvas, rng, at - 0.8j * reach)
    _ball(canvas, at, reach, colour)


def _flower(canvas, rng, at, reach, colour) -> None:
    foot = complex(at.real + rng.normal(0, 0.1), 1.05)
    stem = _spline([at, (at + foot) / 2 + rng.normal(0, 0.03), foot], 6, closed=False)
    canvas.line(stem, (88, 112, 54), 0.008)
    turn = np.exp(1j * rng.uniform(0, np.pi))
    for k in range(6):
        tip = at + reach * turn * np.exp(1j * np.pi * k / 3)
        canvas.fill(_place(_BLADE, at, tip, reach * 0.36), _shade(colour, 0.80 + 0.07 * (k % 4)))
    canvas.dot(at, reach * 0.28, _shade(colour, 0.45))


def _dead_leaf(canvas, rng, at, reach, colour) -> None:
    tip = at + 2.2 * reach * np.exp(1j * rng.uniform(0, 2 * np.pi))
    canvas.fill(_place(_LEAF, at, tip, reach * 0.7), _shade(colour, 0.92))
    canvas.fill([*_place(_LEAF, at, tip, reach * 0.7)[4:], at], _shade(colour, 0.78))
    canvas.line([at, tip], _shade(colour, 0.6), 0.005)


def _pebble(canvas, rng, at, reach, colour) -> None:
    _stone(canvas, rng, at, 1.5 * reach, colour)


_HANGING = (_berries, _fruit, _dead_leaf)
_GROWING = (_flower, _flower, _dead_leaf, _berries)
_LYING = (_pebble, _flower, _dead_leaf)


def _branch(canvas, rng, feet: complex, side: float, tones) -> None:
    """A branch with bark passing under the feet, with a few side twigs and leaves."""
    thick = max(0.012, side * rng.uniform(0.05, 0.13))
    slope = rng.uniform(-0.12, 0.12)
    x = np.array([-0.1, 0.25, 0.5, 0.75, 1.1]) - feet.real
    bend = rng.normal(0, 0.5)
    axis = feet + x + 1j * (slope * x + 0.3 * bend * x**2 + 0.5 * thick)
    axis = _spline(axis, 8, closed=False)
    bark = _random_colour(rng, ((112, 92, 72), (128, 118, 106), (88, 68, 52)))
    for _ in range(rng.integers(1, 5)):
        start = axis[rng.integers(len(axis))]
        end = start + rng.uniform(0.1, 0.3) * np.exp(1j * rng.uniform(-2.6, 2.6))
        canvas.line([start, (start + end) / 2 + 0.02j, end], _shade(bark, 0.8), 0.008)
        for k in range(rng.integers(0, 4)):
            root = start + (end - start) * (0.4 + 0.2 * k)
            _dead_leaf(canvas, rng, root, rng.uniform(0.02, 0.035), _random_colour(rng, tones))
    for offset, tone in ((0.5, 0.45), (0.36, 0.62), (0.2, 0.8), (0.02, 0.95), (-0.18, 1.08), (-0.34, 0.95)):
        canvas.line(axis + 1j * offset * thick * 0.55, _shade(bark, tone), thick * (1 - abs(offset)))
    for _ in range(40):
        at = axis[rng.integers(len(axis))] + rng.uniform(0, 0.05) + 1j * thick * rng.uniform(-0.4, 0.45)
        at += 1j * slope * 0.03
        canvas.line([at, at + rng.uniform(0.01, 0.05) * (1 + 1j * slope)], (*_shade(bark, 0.5), 90), 0.004)


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
        stalk = _spline([x + 1.05j, middle, top], 6, closed=False)
        canvas.line(stalk, _random_colour(rng, _GREENS + _STRAWS), rng.uniform(0.006, 0.014))
    width = max(0.01, 0.05 * side)
    lean = rng.choice([-1, 1])
    stem = feet + lean * np.array([-0.9, -0.35, 0, 0.35, 0.8]) + 1j * np.array([0.55, 0.10, 0, 0, 0.14])
    stem = _spline(stem + 0.4j * width, 8, closed=False)
    colour = _random_colour(rng, _GREENS + _STRAWS)
    for offset, tone in ((0.3, 0.6), (0, 0.95), (-0.25, 1.15)):
        canvas.line(stem + 1j * offset * width, _shade(colour, tone), width * (1 - abs(offset) * 1.8))
    for k in (3, 11, 22):
        tip = stem[k] + complex(rng.normal(0, 0.15), -rng.uniform(0.1, 0.3))
        canvas.fill(_place(_LEAF, stem[k], tip, 0.012), _random_colour(rng, _GREENS + _STRAWS))


def _rock(canvas, rng, feet, side, tones) -> None:
    """A boulder under the feet that reaches out of the picture or into the water."""
    half = side * rng.uniform(0.6, 1.4)
    colour = _random_colour(rng, ((132, 128, 122), (148, 134, 116), (104, 106, 110)))
    crest = np.array([-1.3 + 1.1j, -1.0 + 0.38j, -0.5 + 0.06j, 0.01j, 0.5 + 0.05j, 0.95 + 0.34j, 1.35 + 1.2j])
    wobble = (rng.standard_normal(7) + 1j * rng.standard_normal(7)) * np.array([1, 1, 1, 0, 1, 1, 1])
    crest = _spline(feet + half * (crest + 0.05 * wobble), 6, closed=False)
    floor = np.array([crest[-1].real, crest[0].real]) + 1.3j
    for k in range(14):
        squeeze = feet.real + (crest.real - feet.real) * (1 - 0.022 * k) - 0.015 * half * k
        layer = squeeze + 1j * (crest.imag + 0.075 * half * k)
        canvas.fill([*layer, *floor], _shade(colour, 1.06 - 0.03 * k))
    for _ in range(6):
        crack = crest[rng.integers(8, 30)] + half * rng.uniform(0.05, 0.9) * 1j
        way = half * rng.uniform(0.15, 0.5) * np.exp(1j * rng.uniform(0.4, 2.6))
        bend = crack + way * (0.5 + 0.2j * rng.normal())
        canvas.line([crack, bend, crack + way], (*_shade(colour, 0.45), 110), 0.006)
    for _ in range(90):
        at = crest[rng.integers(8, 30)] + half * complex(rng.normal(0, 0.08), rng.uniform(0.02, 1.1))
        canvas.dot(at, half * rng.uniform(0.006, 0.03), (*_shade(colour, rng.choice([0.6, 1.25])), 60))


def _mound(canvas, rng, feet, side, tones) -> None:
    """Open ground with tufts, its edge passing under the feet."""
    x = np.linspace(-0.15, 1.15, 8)
    lean, bulge = rng.uniform(-0.12, 0.12), rng.uniform(0.05, 0.25)
    ridge = x + 1j * (feet.imag + lean * (x - feet.real) + bulge * (x - feet.real) ** 2)
    ridge = _spline(ridge, 5, closed=False)
    colour = _random_colour(rng, tones, 0.08)
    for k in range(24):
        canvas.fill([*(ridge + 0.02j * k), 1.15 + 1.3j, -0.15 + 1.3j], _shade(colour, 1.04 - 0.010 * k))
    for down in np.sort(rng.uniform(0, 1, rng.integers(90, 200))) ** 1.5:
        root = ridge[rng.integers(len(ridge))] + complex(rng.normal(0, 0.05), 0.6 * down)
        tip = root + complex(rng.normal(0, 0.015), -rng.uniform(0.012, 0.04) * (1 + 2 * down))
        canvas.line([root, tip], _shade(_random_colour(rng, tones), 0.9 - 0.2 * down), 0.004 + 0.004 * down)


_GREENS = ((88, 116, 58), (120, 140, 70), (64, 90, 52), (150, 152, 84))
_STRAWS = ((176, 156, 98), (142, 140, 80), (112, 120, 66), (198, 176, 124))
_AUTUMN = ((206, 140, 60), (176, 96, 48), (216, 178, 84), (120, 96, 58))
_WATER = ((92, 124, 140), (168, 190, 198), (64, 90, 106), (126, 146, 130))
_SCREE = ((136, 130, 122), (160, 146, 126), (108, 106, 108))
_SNOW = ((232, 236, 244), (212, 222, 236), (244, 244, 246))
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


# ------------------------------------------------------------------------------ in front of the bird, light


def _occluders(rng: np.random.Generator, bird: Image.Image, box: Box) -> Image.Image:
    """Twigs, leaves or grass in front of the bird, in about half of the pictures."""
    size = bird.width
    layer = Image.new("RGBA", bird.size)
    kind = rng.integers(6)
    if kind >= 3:
        return layer
    double = Image.new("RGBA", (2 * size, 2 * size))
    x, y, w, h = box
    _OCCLUDERS[kind](_Canvas(double, 2.0), rng, complex(x, y), w, h, max(w, h))
    front = double.reduce(2)
    alpha, hiding = np.asarray(bird.getchannel("A")) >= BOX_ALPHA, np.asarray(front.getchannel("A"))
    return front if hiding[alpha].mean() <= 255 * MAX_HIDDEN else layer


def _front_blades(canvas, rng, corner, w, h, side) -> None:
    bottom = canvas.image.height / 2 + 5
    for _ in range(rng.integers(2, 7)):
        root = complex(corner.real + w * rng.uniform(-0.2, 1.2), bottom)
        top = complex(root.real + side * rng.normal(0, 0.25), corner.imag + h * rng.uniform(0.1, 0.8))
        middle = (root + top) / 2 + side * rng.normal(0, 0.06)
        blade = _spline([root, middle, top], 8, closed=False)
        taper = np.linspace(1, 0.1, len(blade)) * side * rng.uniform(0.012, 0.035)
        colour = _random_colour(rng, _GREENS + _STRAWS)
        canvas.fill([*(blade - taper), *(blade + taper)[::-1]], (*colour, 255))


def _front_twig(canvas, rng, corner, w, h, side) -> None:
    through = corner + w * rng.uniform(0.15, 0.85) + 1j * h * rng.uniform(0.35, 0.95)
    edge = complex(rng.choice([-5, canvas.image.width / 2 + 5]), through.imag + side * rng.uniform(-0.3, 1.0))
    tip = through + side * 0.5 * np.exp(0.5j * rng.normal()) * np.sign(through.real - edge.real)
    twig = _spline([edge, (edge + through) / 2 + 0.08j * side, through, tip], 8, closed=False)
    taper = 1j * np.linspace(0.032, 0.006, len(twig)) * side
    colour = _random_colour(rng, ((104, 84, 64), (78, 64, 52)))
    canvas.fill([*(twig - taper), *(twig + taper)[::-1]], (*_shade(colour, 0.7), 255))
    canvas.fill([*(twig - taper), *(twig + 0.1 * taper)[::-1]], (*colour, 255))
    for at in twig[[7, 13, 19, -1]]:
        _front_leaf(canvas, rng, at, side * rng.uniform(0.08, 0.18))


def _front_leaves(canvas, rng, corner, w, h, side) -> None:
    for _ in range(rng.integers(1, 5)):
        at = corner + w * rng.uniform(0, 1) + 1j * h * rng.uniform(0.45, 1.05)
        _front_leaf(canvas, rng, at, side * rng.uniform(0.14, 0.34))


def _front_leaf(canvas, rng, at, length, *_) -> None:
    tip = at + length * np.exp(1j * rng.uniform(0, 2 * np.pi))
    colour = _random_colour(rng, _GREENS)
    leaf = _place(_LEAF, at, tip, length * 0.28)
    canvas.fill(leaf, (*colour, 255))
    canvas.fill([*leaf[4:], at], (*_shade(colour, 0.82), 255))
    canvas.line([at, tip], (*_shade(colour, 1.25), 255), length * 0.03)


_OCCLUDERS = (_front_blades, _front_twig, _front_leaves)


def _curves(rng: np.random.Generator) -> list[int]:
    """Exposure, contrast and colour temperature as one lookup table per channel."""
    warmth = rng.normal(0, 0.045)
    gain = rng.uniform(0.86, 1.10) * np.array([1 + warmth, 1.0, 1 - warmth])[:, None]
    level = np.linspace(0, 1, 256) * gain
    level = 0.45 + (level - 0.45) * rng.uniform(0.86, 1.10)
    return [int(v) for v in np.clip(255 * level, 0, 255).ravel()]
