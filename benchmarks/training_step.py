"""Photos a second in training: our loop, end to end and with the classifier alone, beside a bare PyTorch loop.

    python benchmarks/training_step.py --profile cpu --threads 1

The bare loop trains the same classifier by cross-entropy on tensors that lie in memory: what a loop could reach at
best. All take turns, so that a busy machine slows all alike. The column of CPU ms counts the processor time of this
process, not of the loader's workers, and says more than photos a second where other programs run.
"""

import argparse
import time
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F

from fgvclib.config import PROFILES, Config
from fgvclib.data.loaders import training_loader
from fgvclib.data.splits import Splits
from fgvclib.model.system import build_model
from fgvclib.study.experiment import Experiment
from fgvclib.training.loop import build_loss, build_optimiser, train_one_epoch
from fgvclib.utils.parallel import create_accelerator


def check_steps(steps: int, config: Config, splits: Splits) -> None:
    """Raises ValueError where the training photos do not fill so many batches."""
    most = len(splits.train) // config.batch_size
    if not 1 <= steps <= most:
        raise ValueError(
            f"--steps is {steps}, but {len(splits.train)} training photos in batches of {config.batch_size} allow for "
            f"1 to {most}."
        )


def our_loop(config: Config, splits: Splits, steps: int, given_maps: bool = False) -> Callable[[], None]:
    """A function that trains `steps` steps as `training.loop.train` does.

    A fixed teacher's maps are made before a training begins and come with the batches; with `given_maps`, so do a live
    teacher's. Here they are random numbers, since only the time counts.
    """
    accelerator = create_accelerator(config.precision)
    model = build_model(config, len(splits.class_names))
    criterion = build_loss(config, len(splits.class_names)).to(accelerator.device)
    photos = splits.train.head(steps * config.batch_size)
    given_maps |= criterion.needs_teacher and config.teacher_weights == "imagenet"
    maps = torch.rand(len(photos), 1, config.map_size, config.map_size) if given_maps else None
    loader, sampler = training_loader(photos, config, 0, maps)
    prepared = accelerator.prepare(model.to(accelerator.device), build_optimiser(model, config), loader)

    def run() -> None:
        sampler.epoch += 1
        train_one_epoch(prepared[0], criterion, prepared[1], prepared[2], accelerator, config.precision)

    return run


def bare_loop(config: Config, splits: Splits, steps: int) -> Callable[[], None]:
    """A function that trains the classifier alone for `steps` steps, on one batch of random pixels."""
    device = create_accelerator(config.precision).device
    classifier = build_model(config, len(splits.class_names)).classifier.to(device).train()
    optimiser = torch.optim.SGD(classifier.parameters(), config.learning_rate, config.momentum)
    images = torch.randn(config.batch_size, 3, config.crop_size, config.crop_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(config.batch_size, device=device) % len(splits.class_names)

    def run() -> None:
        for _ in range(steps):
            logits, _ = classifier(images)
            optimiser.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimiser.step()
        logits.sum().item()  # waits for a GPU

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="cpu", choices=PROFILES)
    parser.add_argument("--dataset", default="synthbirds")
    parser.add_argument("--steps", type=int, default=6, help="in each turn")
    parser.add_argument("--turns", type=int, default=3, help="after one that is not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    try:
        experiment = Experiment(options.profile, options.dataset)
        config, splits, steps = experiment.config, experiment.splits, options.steps
        check_steps(steps, config, splits)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    loops = {"end to end": our_loop(config, splits, steps)}
    if config.teacher_weights == "live":  # those of a fixed teacher are always given
        loops["end to end, given maps"] = our_loop(config, splits, steps, given_maps=True)
    loops["the classifier alone"] = our_loop(experiment.row_config("Baseline"), splits, steps)
    loops["bare PyTorch"] = bare_loop(config, splits, steps)
    seconds = {name: [] for name in loops}
    processor = {name: [] for name in loops}
    for turn in range(options.turns + 1):
        for name, run in loops.items():
            began, used = time.perf_counter(), time.process_time()
            run()
            if turn > 0:
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - used)
    photos = steps * config.batch_size
    table = pd.DataFrame({"photos/s": photos / pd.DataFrame(seconds).median()})
    table["CPU ms a step"] = 1e3 * pd.DataFrame(processor).median() / steps
    table["share of bare PyTorch"] = table["CPU ms a step"]["bare PyTorch"] / table["CPU ms a step"]
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
