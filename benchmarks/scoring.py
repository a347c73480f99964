"""Photos a second of the passes over whole tables, beside bare forward passes, and the memory that they take.

    python benchmarks/scoring.py speed --dataset cub200 --profile photos --threads 1
    python benchmarks/scoring.py memory --dataset cub200 --profile photos --threads 1 --photos 200 1000

A training with a fixed teacher begins with the pass `teacher_maps` and ends with `predict`. The bare passes run the
same networks on tensors that lie in memory: what a pass could reach at best. All take turns, so that a busy machine
slows all alike. Each turn of `teacher_maps` finds no kept features; the squares that `predict` reads are decoded before
the first turn, as by a training.

Memory is the peak resident memory of a process of its own for each pass and number of photos, and the largest of its
workers'. The data root's folder `.cache` gets the squares of as many photos.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pandas as pd
import torch

from fgvclib.config import DATASETS, PROFILES, Config
from fgvclib.data.loaders import evaluation_loader, training_loader
from fgvclib.data.teacher_maps import teacher_maps
from fgvclib.model.system import build_model
from fgvclib.model.teacher import build_teacher
from fgvclib.study.experiment import Experiment
from fgvclib.training.evaluation import predict
from fgvclib.training.loop import build_loss, build_optimiser, train_one_epoch
from fgvclib.utils.device import default_device
from fgvclib.utils.parallel import create_accelerator

BARE = {"teacher maps": "bare teacher", "end to end": "bare system", "the classifier alone": "bare classifier"}
UNITS_A_MIB = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss: bytes there, KiB elsewhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["speed", "memory", *PASSES])
    parser.add_argument("--profile", choices=PROFILES, default="photos")
    parser.add_argument("--dataset", choices=DATASETS, default="synthbirds")
    parser.add_argument("--photos", type=int, nargs="+", default=[64], help="for memory: several numbers; default: 64")
    parser.add_argument("--turns", type=int, default=3, help="after one that is not counted; default: 3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.table in PASSES:
        print(json.dumps(peak(options.table, options)))
    else:
        print((memory_table if options.table == "memory" else speed_table)(options).to_string())


def open_table(profile: str, dataset: str, count: int) -> tuple[Config, Config, pd.DataFrame]:
    """Configurations end to end and of the classifier alone, and `count` photos; a fixed teacher, without ddt."""
    experiment = Experiment(profile, dataset)
    splits = experiment.splits
    photos = pd.concat([splits.test, splits.train], ignore_index=True)
    if len(photos) < count:
        raise SystemExit(f"{dataset} has {len(photos)} photos in the profile {profile}, fewer than {count}.")
    fixed = replace(experiment.config, teacher_weights="imagenet", teacher_mean="rms")
    return fixed, experiment.row_config("Baseline"), photos.sample(count, random_state=0).reset_index(drop=True)


def speed_table(options: argparse.Namespace) -> pd.DataFrame:
    """Photos a second of every side, and the medians over the turns of its rate over the bare pass's."""
    count = options.photos[0]
    config, alone, photos = open_table(options.profile, options.dataset, count)
    sides = teacher_sides(config, photos) | scoring_sides(config, alone, photos)
    seconds = []
    for turn in range(options.turns + 1):
        row = {name: measured(run) for name, run in (sides.items() if turn % 2 else reversed(sides.items()))}
        seconds += [row] if turn > 0 else []
    times = pd.DataFrame(seconds)[list(sides)]
    table = pd.DataFrame({"photos/s": (count / times).median().round(1)})
    for name, bare in BARE.items():
        table.loc[name, "over bare"] = (times[bare] / times[name]).median().round(2)
    table.loc["end to end", "over the bare classifier"] = (
        (times["bare classifier"] / times["end to end"]).median().round(2)
    )
    return table


def teacher_sides(config: Config, photos: pd.DataFrame) -> dict[str, Callable[[], object]]:
    device, teacher = default_device(), build_teacher(config)
    at_once = 1 if device.type == "cpu" else config.batch_size  # on a CPU the faster way
    images = torch.randn(at_once, 3, config.teacher_size, config.teacher_size, device=device)

    def kept_nowhere() -> None:
        with empty_results():
            teacher_maps(photos, config)

    def bare() -> None:
        for start in range(0, len(photos), at_once):
            teacher.fixed_features(images[: len(photos) - start])

    return {"teacher maps": kept_nowhere, BARE["teacher maps"]: bare}


def scoring_sides(config: Config, alone: Config, photos: pd.DataFrame) -> dict[str, Callable[[], object]]:
    device, classes = default_device(), int(photos["label"].max()) + 1
    system, classifier = (build_model(c, classes, pretrained=False).to(device).eval() for c in (config, alone))
    loaders = evaluation_loader(photos, config), evaluation_loader(photos, alone)

    @torch.no_grad()
    def bare(network: torch.nn.Module, size: int) -> None:
        images = torch.randn(config.batch_size, 3, size, size, device=device)
        for start in range(0, len(photos), config.batch_size):
            network(images[: len(photos) - start])

    return {
        "end to end": lambda: predict(system, loaders[0], photos),
        BARE["end to end"]: lambda: bare(system, config.image_size),
        "the classifier alone": lambda: predict(classifier, loaders[1], photos),
        BARE["the classifier alone"]: lambda: bare(system.classifier, config.crop_size),
    }


def measured(run: Callable[[], object]) -> float:
    """Seconds of a call; a GPU is waited for."""
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@contextmanager
def empty_results() -> Iterator[None]:
    """A results root in which nothing is kept yet."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, FGVC_RESULTS=folder):
        yield


def memory_table(options: argparse.Namespace) -> pd.DataFrame:
    """Peak MiB of the process, and of its largest worker, of every pass (rows) over as many photos (columns)."""
    columns = {}
    for count in options.photos:
        for name in PASSES:
            # A process for each: its peak never falls.
            command = [sys.executable, __file__, name, "--photos", str(count), "--threads", str(options.threads)]
            command += ["--profile", options.profile, "--dataset", options.dataset]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
            for owner, mib in json.loads(told).items():
                columns.setdefault((f"{count} photos", owner), {})[name] = mib
    return pd.DataFrame(columns)


def peak(name: str, options: argparse.Namespace) -> dict[str, int]:
    """Peak MiB of this process and its workers after a pass."""
    config, _, photos = open_table(options.profile, options.dataset, options.photos[0])
    PASSES[name](config, photos)
    owners = {"process": resource.RUSAGE_SELF, "worker": resource.RUSAGE_CHILDREN}
    return {owner: resource.getrusage(who).ru_maxrss // UNITS_A_MIB for owner, who in owners.items()}


def make_maps(config: Config, photos: pd.DataFrame) -> None:
    with empty_results():
        teacher_maps(photos, config)


def score(config: Config, photos: pd.DataFrame) -> None:
    model = build_model(config, int(photos["label"].max()) + 1, pretrained=False).to(default_device())
    predict(model, evaluation_loader(photos, config), photos)


def train_an_epoch(config: Config, photos: pd.DataFrame) -> None:
    """On random maps: the teacher's pass is measured by itself."""
    accelerator = create_accelerator(config.precision)
    classes = int(photos["label"].max()) + 1
    model = build_model(config, classes, pretrained=False).to(accelerator.device)
    criterion = build_loss(config, classes).to(accelerator.device)
    loader, _ = training_loader(photos, config, 0, torch.rand(len(photos), 1, config.map_size, config.map_size))
    prepared = accelerator.prepare(model, build_optimiser(model, config), loader)
    train_one_epoch(prepared[0], criterion, prepared[1], prepared[2], accelerator, config.precision)


PASSES = {"teacher maps": make_maps, "scoring": score, "an epoch of training": train_an_epoch}

if __name__ == "__main__":
    main()
