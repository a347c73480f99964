"""The search that every system gets alike: a third, once and three times the profile's learning rate, one seed.

    python benchmarks/rates.py finetune mmal End-to-end --profile cpu --dataset synthbirds --seed 0

A training is that of `fgvc train --set learning_rate=…`, in the same folder: what is there is not trained again, and an
interrupted search goes on where it stopped. `rates.csv`, in the results folder of the profile, has a line for each
system, rate and seed: the best validation accuracy in [0, 1], the first epoch that had it, and the accuracy after the
last epoch, with whose weights a run is scored. Where the training diverged, the epoch is 0 and both accuracies are
missing. The test split is looked at afterwards, for the chosen rate alone; with ELoPE, the Baseline that it builds on
is scored as well.
"""

import argparse
import math
from collections.abc import Callable

import pandas as pd

from fgvclib.config import DATASETS, PROFILES
from fgvclib.study.experiment import Experiment
from fgvclib.study.table3 import own_rates, searched_rates
from fgvclib.systems import TRAINED_AS
from fgvclib.training.loop import NonFiniteLoss
from fgvclib.utils.files import lock_path, locked
from fgvclib.utils.literal import settings

KEYS = ["system", "learning_rate", "seed"]
DIVERGED = {"best_accuracy": math.nan, "epoch": 0, "last_accuracy": math.nan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", help="rows of Table 2, or systems of Table 3")
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--dataset", choices=DATASETS, default="synthbirds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a configuration value")
    options = parser.parse_args()
    try:
        overrides = settings(options.set)
        table = search(options.systems, options.profile, options.dataset, options.seed, overrides)
        print(table.to_string(index=False))
        base = Experiment(options.profile, options.dataset, options.seed, overrides)
        score(table[table["system"].isin(options.systems)], base)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def search(
    systems: list[str],
    profile: str,
    dataset: str,
    seed: int,
    overrides: dict | None = None,
    announce: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Train what is missing, and write and return `rates.csv`, which keeps the lines of other systems and seeds.

    Raises ValueError for names and values that do not exist, for a system that trains as another does, and where no
    validation part is set aside; OSError where the data are missing.
    """
    base = Experiment(profile, dataset, seed, overrides)
    for system in systems:
        base.row_config(system)  # refuses a name that is none before anything is trained
        if system in TRAINED_AS:
            raise ValueError(f"{system} trains as {TRAINED_AS[system]} does; search that one.")
    if not len(base.splits.validation):
        raise ValueError(f"The {profile} profile sets no validation part aside; give --set validation_fraction=0.1.")
    path = base.folder / "rates.csv"
    for system in systems:
        for rate in searched_rates(base.config.learning_rate):
            try:
                found = best(base.with_values(learning_rate=rate).run(system, seed, announce, scored=False).history)
            except NonFiniteLoss as error:  # an answer of the search, and no reason to leave the other rates untried
                announce(f"{system} diverges at the learning rate {rate}: {error}")
                found = DIVERGED
            row = pd.DataFrame([dict(zip(KEYS, (system, rate, seed), strict=True)) | found])
            with locked(lock_path(base.folder, "rates")):  # two searches may run at the same time
                table = pd.concat([pd.read_csv(path), row]) if path.exists() else row
                base.save_table(table.drop_duplicates(KEYS, keep="last").sort_values(KEYS), "rates")
    return pd.read_csv(path)


def score(searched: pd.DataFrame, base: Experiment, announce: Callable[[str], None] = print) -> None:
    """Score the run of each system's own rate, with the seed of `base`, on the test split; nothing is trained."""
    of_seed = searched[searched["seed"] == base.seeds[0]]
    for system, rate in own_rates(of_seed, base.config.learning_rate).items():
        base.with_values(learning_rate=rate).run(system, announce=announce)


def best(history: pd.DataFrame) -> dict[str, float]:
    """The best validation accuracy, the first epoch that had it, and the accuracy after the last epoch."""
    accuracy = history.set_index("epoch")["validation_accuracy"]
    return {"best_accuracy": accuracy.max(), "epoch": int(accuracy.idxmax()), "last_accuracy": accuracy.iloc[-1]}


if __name__ == "__main__":
    main()
