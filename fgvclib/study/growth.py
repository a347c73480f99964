"""How time and memory grow: with the batch and the photo's side, the classes, the photos of a data set, the processes.

Every function gives a table with one row for each size, which is its first column; `exponents` says how fast the others
grow. As in `efficiency`, nothing here loads or trains any weights.
"""

import gc
import multiprocessing
import os
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fgvclib.config import Config, load_config
from fgvclib.data.cub200 import FOLDER, INDEX_FILES
from fgvclib.data.index import check_classes
from fgvclib.data.splits import read_dataset, set_aside, split
from fgvclib.model.losses import EmbeddingLoss
from fgvclib.study.efficiency import TrainingStep, compare, training_memory
from fgvclib.study.table2 import ROWS
from fgvclib.training.evaluation import confusion
from fgvclib.training.identity import data_checksums
from fgvclib.utils.device import default_device

MIB = 2**20
MOST_FOR_ALL_PAIRS = 3000  # classes; 10,000 would hold 50 million pairs in memory, several times
PHOTOS_OF_A_CLASS = 4  # in the tables of `over_classes`
DATASET_CLASSES = 20  # of `over_photos`
# What the columns of the tables mean.
OF_CLASSES = {
    "loss_ms": "embedding loss",
    "table_ms": "checks of the table",
    "figure_ms": "confusion figure",
    "all_pairs_ms": "loss over all pairs (not ours)",
}
OF_PHOTOS = {"index_s": "index and its checks", "splits_s": "splits and boxes", "checksums_s": "checksums"}
OF_STEPS = {"ours_ms": "step, end-to-end", "baseline_ms": "step, baseline", "gib": "memory of a step"}
NAMES = OF_STEPS | OF_CLASSES | OF_PHOTOS | {"mib": "memory of the tables"}
STEPS = 5  # timed by `over_processes`; all processes must take equally many


def over_steps(config: Config, key: str, values: Sequence[int], budget_s: float) -> pd.DataFrame:
    """A training step over `batch_size` or the input's side, `image_size`.

    Columns: the value, ms with the given teacher map, ms of the baseline, and GiB. With `image_size` the crop grows
    in proportion.
    """
    rows = []
    for value in values:
        sized = replace(config, **{key: value})
        if key == "image_size":
            sized = replace(sized, crop_size=max(32, round(value * config.crop_size / config.image_size)))
        sides = {"ours": TrainingStep(sized, "given"), "baseline": TrainingStep(replace(sized, **ROWS["Baseline"]))}
        medians = 1e3 * compare(sides, budget_s).median()
        memory = training_memory(sized, sized.precision)["value"]
        rows.append({key: value, "ours_ms": medians["ours"], "baseline_ms": medians["baseline"], "gib": memory})
        del sides
        gc.collect()
    return pd.DataFrame(rows)


def over_classes(
    config: Config, values: Sequence[int], budget_s: float, draw: Callable[[np.ndarray, list[str]], object]
) -> pd.DataFrame:
    """What depends on the number of classes: the embedding loss, checks of the photo table, the confusion figure.

    `draw` makes the figure from counts and names. Columns: classes, ms of the loss, forward and backward, ms of a loss
    that compares all pairs of classes (NaN above 3000 of them), ms of the table, ms of the figure.
    """
    rows = []
    for classes in values:
        sides = _loss_sides(config, classes) | _table_sides(classes, draw)
        medians = 1e3 * compare(sides, budget_s).median()
        rows.append({"classes": classes} | {name: medians.get(name, np.nan) for name in OF_CLASSES})
    return pd.DataFrame(rows)


def _loss_sides(config: Config, classes: int) -> dict[str, Callable[[], object]]:
    device = default_device()
    features = torch.randn(config.batch_size, config.embedding_dim, device=device, requires_grad=True)
    labels = torch.randint(classes, (config.batch_size,), device=device)
    ours = EmbeddingLoss(classes, config.embedding_dim).to(device)
    sides = {"loss_ms": lambda: ours(features, labels).backward()}
    if classes <= MOST_FOR_ALL_PAIRS:
        centres = torch.randn(classes, config.embedding_dim, device=device)
        sides["all_pairs_ms"] = lambda: _all_pairs_loss(features, labels, centres).backward()
    return sides


def _table_sides(classes: int, draw: Callable[[np.ndarray, list[str]], object]) -> dict[str, Callable[[], object]]:
    """Four photos of each class, one of them for testing; answers of which a third is wrong."""
    labels, names = np.repeat(np.arange(classes), PHOTOS_OF_A_CLASS), [f"class {label}" for label in range(classes)]
    numbers = np.arange(len(labels))
    photos = pd.DataFrame({"label": labels, "is_train": numbers % PHOTOS_OF_A_CLASS > 0})
    answers = (labels + (numbers % 3 == 0)) % classes

    def table() -> None:
        check_classes(photos, names, Path("nowhere"))
        set_aside(photos[photos["is_train"]], 0.1)

    return {"table_ms": table, "figure_ms": lambda: draw(confusion(labels, answers, range(classes)), names)}


def _all_pairs_loss(features: Tensor, labels: Tensor, centres: Tensor, margin: float = 0.75) -> Tensor:
    """What the embedding loss would cost if it compared the centres of all classes."""
    centres = centres.index_add(0, labels, features)
    shortfall = (margin - torch.pdist(centres).square()).clamp_min(0)
    return (features - centres[labels]).square().sum() + shortfall.square().sum()


def over_photos(values: Sequence[int]) -> pd.DataFrame:
    """A data set of so many photos, in CUB-200-2011's layout → seconds of what comes before any training, and MiB.

    Columns: photos; seconds to read and check the index, to split it and read the sizes of photos with boxes, to take
    the checksums that identify a run; the most memory that Python and numpy held at once. All photos are one tiny file.
    """
    config = load_config("paper", "cub200", validation_fraction=0.1)
    rows = []
    for count in values:
        with TemporaryDirectory() as folder, patch.dict(os.environ, FGVC_DATA=folder):
            write_index(Path(folder) / FOLDER, count)
            tracemalloc.start()  # it slows what it watches, so that times are taken in a second turn
            _read(config)
            peak = tracemalloc.get_traced_memory()[1] / MIB
            tracemalloc.stop()
            rmtree(Path(folder) / ".cache")  # checksums are kept
            rows.append({"photos": count} | _read(config) | {"mib": peak})
    return pd.DataFrame(rows)


def _read(config: Config) -> dict[str, float]:
    """Seconds from the index to the identity of a run."""
    began = time.perf_counter()
    photos, names = read_dataset(config)
    read = time.perf_counter()
    splits = split(photos, names, config)
    divided = time.perf_counter()
    data_checksums(splits, config)
    return {"index_s": read - began, "splits_s": divided - read, "checksums_s": time.perf_counter() - divided}


def write_index(root: Path, count: int) -> None:
    """Index files of `count` photos of 20 classes in CUB-200-2011's layout; every photo is a link to one tiny file."""
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(root / "photo.png")
    for number in range(count):
        (root / "images" / f"{number}.png").symlink_to(root / "photo.png")
    numbers = range(1, count + 1)
    lines = (
        (f"{i} {i - 1}.png" for i in numbers),
        (f"{i} {i % DATASET_CLASSES + 1}" for i in numbers),
        (f"{i} {i // DATASET_CLASSES % 2}" for i in numbers),
        (f"{i} 2 2 8 8" for i in numbers),
        (f"{i} class {i}" for i in range(1, DATASET_CLASSES + 1)),
    )
    for name, text in zip(INDEX_FILES, lines, strict=True):
        (root / name).write_text("\n".join(text), encoding="utf-8")


def over_processes(config: Config, count: int) -> pd.DataFrame:
    """A training step of one process, and of each of `count` that join by gloo on the CPU, with a thread each.

    Every process has a batch of its own. Columns: processes, ms a step, photos a second of all processes together.
    Raises RuntimeError where one of them fails.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__])  # torch is imported once; without a fork server it has no effect
    together, answers = context.Barrier(count), context.SimpleQueue()
    with TemporaryDirectory() as folder:
        arguments = (count, replace(config, workers=0), f"file://{folder}/group", together, answers)
        group = [context.Process(target=_timed_steps, args=(rank, *arguments)) for rank in range(count)]
        for process in group:
            process.start()
        _wait_for(group)
    rows = [{"processes": processes, "ms": 1e3 * seconds} for processes, seconds in answers.get().items()]
    table = pd.DataFrame(rows)
    return table.assign(photos_per_s=1e3 * config.batch_size * table["processes"] / table["ms"])


def _wait_for(group: Sequence[BaseProcess]) -> None:
    """Wait until all have ended. Raises RuntimeError where one fails, for which the others would wait for ever."""
    running = {process.sentinel: process for process in group}
    try:
        while running:
            for sentinel in wait(list(running)):
                process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise RuntimeError(
                        f"One of {len(group)} processes that train together ended with exit status {process.exitcode}: "
                        "its own message is above, or in the terminal; where there is none, free some memory."
                    )
    finally:
        for process in running.values():
            process.kill()
            process.join()


def _timed_steps(rank: int, count: int, config: Config, place: str, together, answers) -> None:
    """In a process of its own: the first one alone, then all of them together."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    warnings.simplefilter("ignore", FutureWarning)  # of torch's own, once for each process
    torch.set_num_threads(1)
    step = TrainingStep(config, "given")
    together.wait()
    seconds = {1: _median(step)} if rank == 0 else {}  # the others wait for it, without working, in the next line
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=count)
    step.model = DistributedDataParallel(step.model)
    seconds[count] = _median(step)
    dist.destroy_process_group()
    if rank == 0:
        answers.put(seconds)


def _median(step: TrainingStep) -> float:
    return compare({"step": step}, budget_s=np.inf, repetitions=STEPS)["step"].median()


def exponents(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of this module → for each of their columns, from which size to which, and the exponent p of size^p.

    p is that between the last two sizes, where fixed costs weigh least: 1 is linear, 2 the square.
    """
    rows = []
    for table in tables:
        size, *others = table.columns
        for name in others:
            known = table[[size, name]].dropna().tail(2)
            if len(known) < 2:  # one size does not grow, as with batch_size = 2
                continue
            (small, before), (large, after) = known.to_numpy()
            power = np.log(after / before) / np.log(large / small)
            rows.append({"over": size, "what": NAMES.get(name, name), "from": small, "to": large, "exponent": power})
    return pd.DataFrame(rows)
