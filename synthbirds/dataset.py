"""Writes the data set in the folder layout of CUB-200-2011."""

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np

from synthbirds.canvas import Box
from synthbirds.scene import draw_bird
from synthbirds.species import SPECIES, Species, species_list

GENERATOR_VERSION = 2
"""To be raised whenever the pictures of a given seed change."""
MIN_IMAGE_SIZE = 32
JPEG_QUALITY = 92
_RECORD = "synthbirds.json"
_WORKSHOP = ".partial"  # ends the name of the hidden folder beside the root in which a run draws
_STALE_SECONDS = 24 * 3600  # far longer than a run takes


def generate(
    root: str | Path,
    num_classes: int = 20,
    train_per_class: int = 40,
    test_per_class: int = 20,
    image_size: int = 256,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable = lambda drawn, **options: drawn,
) -> Path:
    """Draw the data set into `root`, unless exactly this data set is there already → `root`.

    `num_classes` is between 1 and the number of species, `image_size` is the side of the square pictures in pixels, at
    least 32, and `workers` the number of processes: None for one per core, 0 to draw in this one. `progress` wraps the
    photos as they are drawn, given a `description`, `total` and `unit`. Raises ValueError where a number is out of
    range, or `root` holds something else, and OSError where the pictures cannot be written.

    A picture depends on (seed, class, number within the class, image_size) only, so the files are the same
    byte for byte whatever the number of workers, and data sets of different extent agree where they overlap.
    The data set appears under `root` in one step when it is complete, so runs at the same time do no harm.
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
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    workshop = Path(tempfile.mkdtemp(_WORKSHOP, f".{root.name}.", root.parent))
    try:
        # Not the workshop itself is to become the root: mkdtemp locks everybody else out of it.
        _write(workshop / "set", species, parameters, workers, progress)
        _move_into_place(workshop / "set", root, parameters)
    except OSError as error:
        advice = "make room there or choose another folder, then draw again"
        raise OSError(f"The birds could not be drawn into {root} ({error}): {advice}.") from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return root


def _remove_leftovers(root: Path) -> None:
    """Remove what killed runs left behind, by age: in a younger folder another run may be drawing."""
    for folder in root.parent.glob(f".{glob.escape(root.name)}.*{_WORKSHOP}"):
        with suppress(FileNotFoundError):  # another run may be clearing up as well
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


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
            f"{root} exists but is not a synthetic bird data set (it has no {_RECORD}): choose another folder."
        )
    try:
        found = dict(json.loads(record.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{record} is damaged: delete the folder {root} to have the birds drawn again.") from error
    if found != parameters:
        odd = ", ".join(f"{k} {found.get(k)} instead of {v}" for k, v in parameters.items() if found.get(k) != v)
        raise ValueError(
            f"{root} holds another synthetic bird data set ({odd}): choose another folder, or delete "
            "this one to draw it anew."
        )
    return True


def _move_into_place(folder: Path, root: Path, parameters: dict) -> None:
    """Let a finished data set appear as `root`, in one step; where another run was faster, its set stays."""
    with suppress(OSError):
        root.rmdir()  # an empty folder in its place, which Windows would not replace
    try:
        folder.rename(root)
    except OSError:
        if not _is_complete(root, parameters):
            raise


def _write(folder: Path, species: list[Species], parameters: dict, workers: int | None, progress: Callable) -> None:
    """Write pictures, tables and, last, the record of the parameters."""
    class_names = [f"{i:03d}.{s.name.replace(' ', '_')}" for i, s in enumerate(species, 1)]
    for name in class_names:
        (folder / "images" / name).mkdir(parents=True)
    train = parameters["train_per_class"]
    numbers = range(train + parameters["test_per_class"])
    jobs = [(c, n, f"{name}/{name[4:]}_{n + 1:04d}.jpg") for c, name in enumerate(class_names) for n in numbers]
    boxes = _draw_all(folder, jobs, parameters, workers, progress)
    _write_table(folder / "classes.txt", class_names)
    _write_table(folder / "images.txt", [path for _, _, path in jobs])
    _write_table(folder / "image_class_labels.txt", [str(c + 1) for c, _, _ in jobs])
    _write_table(folder / "train_test_split.txt", [str(int(n < train)) for _, n, _ in jobs])
    _write_table(folder / "bounding_boxes.txt", [" ".join(f"{v:.1f}" for v in box) for box in boxes])
    (folder / _RECORD).write_text(json.dumps(parameters, indent=2) + "\n")


def _write_table(path: Path, rows: list[str]) -> None:
    """Write one line per row, each after its number counted from 1."""
    path.write_text("".join(f"{i} {row}\n" for i, row in enumerate(rows, 1)))


def _draw_all(
    folder: Path, jobs: list[tuple[int, int, str]], parameters: dict, workers: int | None, progress: Callable
) -> list[Box]:
    draw = partial(_draw_file, str(folder / "images"), parameters["seed"], parameters["image_size"])
    show = partial(progress, description="drawing birds", total=len(jobs), unit="photo")
    if workers == 0:
        return list(show(map(draw, jobs)))
    with ExitStack() as stack:
        count = min(workers or os.cpu_count() or 1, len(jobs))
        lines = [_start_worker(stack, draw.args, jobs[first::count]) for first in range(count)]
        return list(show(_next_box(lines[number % count]) for number in range(len(jobs))))


def _start_worker(stack: ExitStack, setting: tuple, jobs: list[tuple[int, int, str]]) -> TextIO:
    """Start a process that draws `jobs` → what it prints: a line for each box. It ends with the stack, or before.

    Not a process pool, which would run a script of the user's once more in each process, and cannot where it has no
    file; nor a fork, which can deadlock in a process that runs threads (a notebook kernel, torch).
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", "synthbirds"]
    worker = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    stack.enter_context(worker)
    stack.callback(worker.kill)
    with suppress(BrokenPipeError), worker.stdin:  # it ended early, which its missing lines tell
        json.dump([setting, jobs], worker.stdin)
    return worker.stdout


def _next_box(lines: TextIO) -> Box:
    line = lines.readline()
    if not line:
        raise RuntimeError("A process that draws birds ended early; its own message is above, or in the terminal.")
    found = json.loads(line)
    if isinstance(found, str):
        raise OSError(found)
    return tuple(found)


def draw_as_worker(source: TextIO, target: TextIO) -> None:
    """What `python -m synthbirds` does: read jobs, draw each, and print its box, or why it cannot be written."""
    setting, jobs = json.load(source)
    for job in jobs:
        try:
            answer = [float(side) for side in _draw_file(*setting, job)]
        except OSError as error:  # told once, by the process that reads it
            answer = str(error)
        print(json.dumps(answer), file=target, flush=True)


def _draw_file(images: str, seed: int, image_size: int, job: tuple[int, int, str]) -> Box:
    class_index, number, path = job
    rng = np.random.default_rng([seed, class_index, number])
    picture, box = draw_bird(SPECIES[class_index], rng, image_size)
    picture.save(Path(images, path), quality=JPEG_QUALITY)
    return box
