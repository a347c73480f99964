"""Paints one perched bird of a species.

The bird is vector art in body units (the body is about one unit long), rasterised several times too large and
scaled down, so that its alpha mask gives an exact box at any size. Marks are placed in body units or, on the
head, in head radii.

Marks that are not worn take their random numbers all the same, so that sisters of the same outline who are painted
from the same random state differ in their marks only.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from synthbirds.canvas import BLADE, COLOURS, LEAF, Canvas, Colour, place, spline, toned
from synthbirds.species import Species


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
        return spline(np.concatenate([front, back, below, [throat, chin]]))


def paint_bird(species: Species, rng: np.random.Generator, side: float) -> tuple[Image.Image, complex]:
    """A bird alone, the larger side of its extent being `side` pixels, and the point between its feet.

    The RGBA layer has a few pixels of margin; the point, x + iy, is in its pixels.
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
    canvas = Canvas(paint, scale, corner - margin * (1 + 1j), mask)
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
        upper = spline([*top, tip], 5, closed=False)
        lower = spline([gape[2], *low], 5, closed=False)
        line = spline(gape, 5, closed=False)
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
        return pose.head(spline([0.66 - 0.72j, 0.2 - 1.06j, -0.35 - 1.32j, tip, *nape]))

    def outline(self) -> np.ndarray:
        """All points that bound the bird."""
        toes = np.concatenate([self.feet + 0.12, self.feet - 0.08, self.feet + 0.04j])
        feathers = [place(BLADE, base, tip, _TAIL_FEATHER) for base, tip in self.tail]
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
        strand = spline([root - 0.02 * k, (root + end) / 2 - 0.02j, end], 4, closed=False)
        canvas.line(strand, toned(colour, 0.8), 0.008)


def _mark_colour(mark: str, default: str) -> str:
    return default if mark in ("plain", "none") else mark.split()[0]


def _paint_tail(canvas, parts, species, pose, palette) -> None:
    colour = palette[pose.plan.flight]
    middle = len(parts.tail) // 2
    order = sorted(range(len(parts.tail)), key=lambda i: -abs(i - middle))
    for i in order:
        base, tip = parts.tail[i]
        shade = toned(colour, 0.62 + 0.05 * (i % 3))
        canvas.fill(place(BLADE, base, tip, _TAIL_FEATHER), shade)
        if species.tail_tip != "plain":
            length = abs(tip - base)
            start = tip + (base - tip) * min(0.5, 0.16 / length)
            canvas.fill(place(BLADE, start, tip, 0.05), palette[_mark_colour(species.tail_tip, "white")])
        canvas.line([base, base + (tip - base) * 0.97], toned(shade, 0.72), 0.007)
        edge = base + 0.05j * (tip - base) / abs(tip - base) + np.array([0.3, 0.85]) * (tip - base)
        canvas.line(edge, toned(shade, 1.25), 0.006)


def _paint_legs(canvas, parts, pose, palette) -> None:
    colour = toned(palette[pose.plan.leg_colour], 0.85)
    for hip, foot, tone in zip(parts.hips, parts.feet, (0.7, 1.0), strict=True):
        shade = toned(colour, tone)
        ankle = foot - 0.02j - 0.035
        canvas.line([hip, (hip + ankle) / 2 - 0.02, ankle, foot - 0.012j], shade, 0.036)
        for reach in (0.11 + 0.015j, 0.09 + 0.038j, 0.055 + 0.05j, -0.07 + 0.03j):
            toe = [foot - 0.012j, foot + reach * 0.55 - 0.018j, foot + reach + 1j * pose.slope * reach.real]
            canvas.line(spline(toe, 4, closed=False), shade, 0.026)


def _paint_plumage(canvas, parts, species, pose, palette, rng) -> None:
    """Paint the feathered body: soft regions first, then marks, then single feathers."""
    plan, b = pose.plan, pose.plan.depth
    body_mask = Image.new("L", canvas.image.size)
    Canvas(body_mask, canvas.scale, canvas.corner).fill(parts.contour, 255)
    soft = Canvas(Image.new("RGB", canvas.image.size, palette[plan.upper]), canvas.scale, canvas.corner)
    mantle = [0.30 - 0.95j * b, -0.1 - 1.1j * b, -0.4 - 0.9j * b, -0.2 - 0.55j * b, 0.2 - 0.6j * b]
    soft.fill(pose.body(spline(mantle)), toned(palette[plan.upper], 0.88))
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


def _blur(canvas: Canvas, radius: float) -> None:
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
        canvas.line(pose.head(spline(brow, closed=False)), colour, 0.20 * radius)
    colour = palette[_mark_colour(species.face, "black")]
    if species.face.endswith("mask"):
        above = [0.98 - 0.12j, 0.5 - 0.40j, -0.1 - 0.36j, -0.75 - 0.16j]
        below = [-0.85 + 0.12j, -0.3 + 0.22j, 0.4 + 0.12j, 0.98 + 0.1j]
        canvas.fill(pose.head(spline(above + below)), colour)
    elif species.face.endswith("moustache"):
        stripe = spline([0.86 + 0.22j, 0.5 + 0.42j, 0.12 + 0.82j], closed=False)
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
    ground = toned(palette[pose.plan.upper], 0.5) if striped else colour
    canvas.fill(pose.head(spline(above + below)), ground)
    if striped:
        stripe = [0.88 - 0.50j, 0.4 - 1.0j, -0.4 - 1.1j, -1.1 - 0.55j, -0.5 - 0.72j, 0.3 - 0.72j]
        canvas.fill(pose.head(spline(stripe)), colour)


def _paint_breast_marks(canvas, species, pose, palette, rng) -> None:
    b = pose.plan.depth
    colour = palette[_mark_colour(species.breast, "brown")]
    rows, columns = np.meshgrid(np.arange(6), np.arange(5), indexing="ij")
    spots = 0.44 - 0.105 * rows + 1j * b * (0.10 + 0.19 * columns + 0.10 * rows)
    # Drawn for unmarked birds too: sisters then share all that follows.
    spots = pose.body(spots + 0.02 * (rng.standard_normal((6, 5)) + 1j * rng.standard_normal((6, 5)))).ravel()
    if species.breast.endswith("band"):
        band = [0.14 + 0.12j * b, 0.30 + 0.50j * b, 0.46 + 0.62j * b, 0.62 + 0.5j * b]
        canvas.line(pose.body(spline(band, closed=False)), colour, 0.12)
    elif species.breast.endswith("spots"):
        for spot in spots:
            canvas.dot(spot, 0.021, colour)
    elif species.breast.endswith("streaks"):
        for spot in spots:
            canvas.fill(place(LEAF, spot, spot + pose.body(-0.095 + 0.012j), 0.013), colour)


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
    edge = toned(flight, 1.35)
    for i in range(6):
        base, tip = wing(0.42, 0.30 - 0.05 * i), wing(0.99 - 0.055 * i, 0.02 + 0.055 * i)
        _feather(canvas, base, tip, 0.05, toned(flight, 0.50 + 0.03 * i), edge)
    for i in range(5):
        base, tip = wing(0.26, 0.36 - 0.15 * i), wing(0.74 - 0.045 * i, 0.27 - 0.125 * i)
        _feather(canvas, base, tip, 0.062, toned(flight, 0.72 + 0.05 * i), edge)
    rows = ((0.16, 0.47, 0.058, flight), (0.04, 0.30, 0.050, cover))
    for row, (start, end, width, colour) in enumerate(rows):
        tips = []
        for across in np.linspace(0.46, -0.44, 8):
            root, tip = wing(start, across * 0.85), wing(end - 0.16 * across**2 - 0.05 * across, across)
            _feather(canvas, root, tip, width, toned(colour, 0.80), toned(colour, 1.18))
            tips.append(place(BLADE, tip + (root - tip) * 0.30, tip, width * 0.80))
        for tip in tips if row < species.wing_bars else ():
            canvas.fill(tip, palette["white"])
    _paint_shoulder(canvas, pose, cover)


def _paint_shoulder(canvas, pose, colour) -> None:
    """The small coverts: scales that melt into the mantle."""
    for start, end, span, count in ((-0.01, 0.20, 0.40, 8), (-0.05, 0.13, 0.36, 7), (-0.08, 0.06, 0.28, 6)):
        for across in np.linspace(span, -span, count):
            root, tip = pose.wing(start, across * 0.8), pose.wing(end - 0.25 * across**2, across)
            _feather(canvas, root, tip, 0.05, toned(colour, 0.92), toned(colour, 0.80))


def _feather(canvas, base, tip, half_width, colour, edge) -> None:
    canvas.fill(place(BLADE, base, tip, half_width), edge)
    canvas.fill(place(BLADE, base, tip - (tip - base) * 0.025, half_width * 0.84), colour)
    if canvas.scale > 120:
        canvas.line([base + (tip - base) * 0.2, tip - (tip - base) * 0.06], toned(colour, 0.78), 0.005)


def _paint_bill(canvas, parts, species, pose, palette) -> None:
    colour = palette["slate" if species.bill_colour == "dark" else species.bill_colour]
    canvas.fill(parts.bill["lower"], toned(colour, 0.68))
    canvas.fill(parts.bill["upper"], toned(colour, 0.9))
    canvas.line(parts.bill["culmen"][1:-4], toned(colour, 1.3), 0.02 * pose.plan.head / 0.2)
    canvas.line(parts.bill["gape"][:-2], toned(colour, 0.4), 0.010)


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
    # In double precision: in single, numpy's powers depend on the processor, and now and then so would a pixel.
    height = np.asarray(relief, np.float64) / 255
    dy, dx = np.array(np.gradient(height)) * 0.13 * canvas.scale / step
    sun = rng.uniform(-0.5, 0.5)
    lit = 0.60 + 0.34 / np.sqrt(1 + 9 * (dx**2 + dy**2)) + 0.85 * (dy + dx * sun)
    rows = np.linspace(0, 1, height.shape[0])[:, None]
    lit = np.clip(lit * (1.08 - 0.18 * rows), 0.32, 1)
    cool = np.stack([lit, lit**0.96, lit**0.84], -1)
    return Image.fromarray((255 * cool).astype(np.uint8)).resize(mask.size, Image.Resampling.BILINEAR)
