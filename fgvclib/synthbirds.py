"""A seeded synthetic data set of fine-grained bird classes in the folder layout of CUB-200-2011.

The experiments need a data set that everyone can have at once, without a download, and that poses the
problem of the paper: classes that differ in small marks of an object whose size and place vary. Every
picture shows one bird on a cluttered background. Species come in genera of four sisters that share body
plan and colours and differ in one or two field marks only (a wing bar, an eye ring, the colour of the rump
...), so that a classifier must see the bird large enough to tell them apart; neither the background nor the
overall colour gives the class away. Species are listed genus by genus: the first N hold sisters for every N
above one.
"""

import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from fgvclib.birdpainter import Box, Species, draw_bird

__all__ = ["GENERATOR_VERSION", "Species", "draw_bird", "field_marks", "generate", "species_list"]

GENERATOR_VERSION = 2
"""To be raised whenever the pictures of a given seed change."""
MIN_IMAGE_SIZE = 32
JPEG_QUALITY = 92
_RECORD = "synthbirds.json"


def _genus(name: str, base: dict, sisters: dict[str, dict]) -> list[Species]:
    """Makes the species of a genus from the marks they share and those that set each of them apart."""
    return [Species(name=f"{first} {name}", genus=name, **(base | marks)) for first, marks in sisters.items()]


_SPECIES = [
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


def species_list(num_classes: int) -> list[Species]:
    """The first species of the table, sisters side by side.

    Raises:
        ValueError: num_classes is not between 1 and the number of species.
    """
    if not 1 <= num_classes <= len(_SPECIES):
        raise ValueError(
            f"num_classes is {num_classes}, but there are {len(_SPECIES)} species: "
            f"choose a number from 1 to {len(_SPECIES)}."
        )
    return list(_SPECIES[:num_classes])


def field_marks(species: Species) -> dict[str, str]:
    """The marks of a species in words and in a fixed order, e.g. {"tail": "long", "wing bars": "2", ...}."""
    names = [field.name for field in fields(species) if field.name not in ("name", "genus")]
    return {name.replace("_", " "): str(getattr(species, name)) for name in names}


def generate(
    root: str | Path,
    num_classes: int = 20,
    train_per_class: int = 40,
    test_per_class: int = 20,
    image_size: int = 256,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Draws the data set into `root`, unless exactly this data set is there already.

    A picture depends on (seed, class, number within the class, image_size) only, so the files are the same
    byte for byte whatever the number of workers, and data sets of different extent agree where they overlap.
    The data set appears under `root` in one step when it is complete. Scripts must call this under
    `if __name__ == "__main__":`, as always with process pools; notebooks need not.

    Args:
        root: folder of the data set; its parents are created.
        num_classes: number of species, see `species_list`.
        train_per_class: training pictures of a class; they come first.
        test_per_class: test pictures of a class.
        image_size: side of the square pictures in pixels.
        seed: a non-negative integer.
        workers: number of processes; None for one per core, 0 to draw in this process.

    Returns:
        `root` as a path.

    Raises:
        ValueError: an argument is out of range, or `root` holds something else.
    """
    root = Path(root)
    species = species_list(num_classes)
    parameters = {
        "generator_version": GENERATOR_VERSION,
        "num_classes": num_classes,
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
        "image_size": image_size,
        "seed": seed,
    }
    _check_parameters(parameters, workers)
    if _is_complete(root, parameters):
        return root
    partial_root = root.with_name(root.name + ".partial")
    if partial_root.exists():
        shutil.rmtree(partial_root)
    try:
        _write(partial_root, species, parameters, workers)
        if root.exists():
            root.rmdir()
        partial_root.rename(root)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return root


def _check_parameters(parameters: dict, workers: int | None) -> None:
    least = {"train_per_class": 1, "test_per_class": 1, "image_size": MIN_IMAGE_SIZE, "seed": 0}
    for name, low in least.items():
        if not isinstance(parameters[name], int) or parameters[name] < low:
            raise ValueError(f"{name} is {parameters[name]}: give a whole number of at least {low}.")
    if workers is not None and workers < 0:
        raise ValueError(f"workers is {workers}: give None for one process per core, or a whole number of at least 0.")


def _is_complete(root: Path, parameters: dict) -> bool:
    """Whether `root` holds this data set (True) or nothing (False); anything else is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    record = root / _RECORD
    if not record.is_file():
        raise ValueError(
            f"{root} exists but is no synthetic bird data set (it has no {_RECORD}): choose another folder."
        )
    found = json.loads(record.read_text())
    if found != parameters:
        odd = ", ".join(f"{k} {found.get(k)} instead of {v}" for k, v in parameters.items() if found.get(k) != v)
        raise ValueError(
            f"{root} holds another synthetic bird data set ({odd}): choose another folder, or delete "
            "this one to draw it anew."
        )
    return True


def _write(folder: Path, species: list[Species], parameters: dict, workers: int | None) -> None:
    """Writes pictures, tables and, last, the record of the parameters."""
    class_names = [f"{i:03d}.{s.name.replace(' ', '_')}" for i, s in enumerate(species, 1)]
    for name in class_names:
        (folder / "images" / name).mkdir(parents=True)
    train = parameters["train_per_class"]
    numbers = range(train + parameters["test_per_class"])
    jobs = [(c, n, f"{name}/{name[4:]}_{n + 1:04d}.jpg") for c, name in enumerate(class_names) for n in numbers]
    boxes = _draw_all(folder, jobs, parameters, workers)
    _write_table(folder / "classes.txt", class_names)
    _write_table(folder / "images.txt", [path for _, _, path in jobs])
    _write_table(folder / "image_class_labels.txt", [str(c + 1) for c, _, _ in jobs])
    _write_table(folder / "train_test_split.txt", [str(int(n < train)) for _, n, _ in jobs])
    _write_table(folder / "bounding_boxes.txt", [" ".join(f"{v:.1f}" for v in box) for box in boxes])
    (folder / _RECORD).write_text(json.dumps(parameters, indent=2) + "\n")


def _write_table(path: Path, rows: list[str]) -> None:
    """Writes one line per row, each after its number counted from 1."""
    path.write_text("".join(f"{i} {row}\n" for i, row in enumerate(rows, 1)))


def _draw_all(folder: Path, jobs: list[tuple[int, int, str]], parameters: dict, workers: int | None) -> list[Box]:
    draw = partial(_draw_file, str(folder / "images"), parameters["seed"], parameters["image_size"])
    progress = partial(tqdm, total=len(jobs), desc="drawing birds", unit="image")
    if workers == 0:
        return list(progress(map(draw, jobs)))
    # Forking a process that runs threads (a notebook kernel, torch) can deadlock, so spawn.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers or os.cpu_count() or 1, len(jobs)), mp_context=context) as pool:
        return list(progress(pool.map(draw, jobs, chunksize=8)))


def _draw_file(images: str, seed: int, image_size: int, job: tuple[int, int, str]) -> Box:
    class_index, number, path = job
    rng = np.random.default_rng([seed, class_index, number])
    picture, box = draw_bird(_SPECIES[class_index], rng, image_size)
    picture.save(Path(images, path), quality=JPEG_QUALITY)
    return box
