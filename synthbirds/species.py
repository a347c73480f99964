"""The species: ten genera of four sisters, and the field marks that tell the sisters apart.

The shape and the colours that sisters share belong to the genus, see `bird.BODY_PLANS`.
"""

from dataclasses import dataclass, fields


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


def _genus(name: str, base: dict, sisters: dict[str, dict]) -> list[Species]:
    """Make the species of a genus from the marks they share and those that set each of them apart."""
    return [Species(name=f"{first} {name}", genus=name, **(base | marks)) for first, marks in sisters.items()]


SPECIES = [
    *_genus(
        "Marshfinch",
        {"tail": "notched", "bill": "cone", "bill_colour": "pink", "breast": "brown streaks"},
        {
            "Plain": {},
            "Spectacled": {"eye_ring": "white ring"},
            "Rufous-capped": {"crown": "rufous cap"},
            "Double-barred": {"wing_bars": 2},
        },
    ),
    *_genus(
        "Leafwarbler",
        {"tail": "notched", "bill": "thin"},
        {
            "Olive": {},
            "Browed": {"eyebrow": "cream line"},
            "Barred": {"wing_bars": 1},
            "Cream-browed Barred": {"eyebrow": "cream line", "wing_bars": 1},
        },
    ),
    *_genus(
        "Silkcrest",
        {"tail": "short", "bill": "flat", "face": "black mask"},
        {
            "Common": {"tail_tip": "yellow tips"},
            "Red-tailed": {"tail_tip": "red tips"},
            "Bibbed": {"tail_tip": "yellow tips", "throat": "black bib"},
            "Bibbed Red-tailed": {"tail_tip": "red tips", "throat": "black bib"},
        },
    ),
    *_genus(
        "Streamtail",
        {"tail": "long", "bill": "thin", "tail_tip": "white tips"},
        {
            "Grey": {},
            "Black-capped": {"crown": "black cap"},
            "Yellow-rumped": {"rump": "yellow patch"},
            "Collared": {"breast": "black band"},
        },
    ),
    *_genus(
        "Needlebill",
        {"tail": "short", "bill": "straight", "breast": "brown streaks"},
        {
            "Straight-billed": {},
            "Curve-billed": {"bill": "curved"},
            "White-browed": {"eyebrow": "white line"},
            "Red-billed": {"bill_colour": "red"},
        },
    ),
    *_genus(
        "Thornshrike",
        {"tail": "long", "bill": "hooked", "face": "black mask"},
        {
            "Masked": {},
            "Rufous-capped": {"crown": "rufous cap"},
            "White-rumped": {"rump": "white patch"},
            "Rufous-capped White-rumped": {"crown": "rufous cap", "rump": "white patch"},
        },
    ),
    *_genus(
        "Flycatcher",
        {"tail": "notched", "bill": "flat"},
        {
            "Dusky": {},
            "Ringed": {"eye_ring": "white ring"},
            "Rufous-throated": {"throat": "rufous patch"},
            "Streaked": {"breast": "brown streaks"},
        },
    ),
    *_genus(
        "Hillthrush",
        {"tail": "notched", "bill": "thin", "breast": "brown spots"},
        {
            "Spotted": {},
            "Yellow-billed": {"bill_colour": "yellow"},
            "Golden-ringed": {"eye_ring": "yellow ring"},
            "Moustached": {"face": "black moustache"},
        },
    ),
    *_genus(
        "Stonewren",
        {"tail": "short", "bill": "thin"},
        {
            "Rusty": {},
            "Bright-browed": {"eyebrow": "white line"},
            "Black-throated": {"throat": "black bib"},
            "Golden-striped": {"crown": "yellow stripe"},
        },
    ),
    *_genus(
        "Rivermartin",
        {"tail": "forked", "bill": "flat"},
        {
            "Blue": {},
            "Banded": {"breast": "slate band"},
            "Black-capped": {"crown": "black cap"},
            "Rufous-throated": {"throat": "rufous patch"},
        },
    ),
]


def species_list(num_classes: int | None = None) -> list[Species]:
    """The first species of the table, sisters side by side; None: all of them.

    Raises ValueError where num_classes is not between 1 and the number of species.
    """
    if num_classes is None:
        return list(SPECIES)
    if not 1 <= num_classes <= len(SPECIES):
        raise ValueError(
            f"num_classes is {num_classes}, but there are {len(SPECIES)} species: "
            f"choose a number from 1 to {len(SPECIES)}."
        )
    return list(SPECIES[:num_classes])


def field_marks(species: Species) -> dict[str, str]:
    """The marks of a species in words and in a fixed order, e.g. {"tail": "long", "wing bars": "2", ...}."""
    names = [field.name for field in fields(species) if field.name not in ("name", "genus")]
    return {name.replace("_", " "): str(getattr(species, name)) for name in names}
