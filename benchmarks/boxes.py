"""Boxes of teachers, and of AttNet and AffNet alone, on a data set with true boxes.

    python benchmarks/boxes.py teachers --dataset cub200 --set num_classes=null --output teachers.csv
    python benchmarks/boxes.py attnets --dataset cub200 --set num_classes=null --output boxes.csv

The first run passes every photo through the ImageNet network once, at `teacher_size`; an interrupted one goes on where
it stopped. Every row says with what it was computed.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from fgvclib.config import DATASETS, PROFILES, load_config
from fgvclib.data.splits import load_splits
from fgvclib.study import boxes
from fgvclib.utils.files import atomic_path
from fgvclib.utils.literal import settings
from fgvclib.utils.provenance import provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["teachers", "attnets"])
    parser.add_argument("--profile", choices=PROFILES, default="photos")
    parser.add_argument("--dataset", choices=DATASETS, default="cub200")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value")
    parser.add_argument("--attnets", nargs="+", choices=boxes.ATTNETS, default=list(boxes.ATTNETS))
    parser.add_argument("--parts", nargs="+", choices=["validation", "test"], default=["validation", "test"])
    parser.add_argument("--sample", type=int, metavar="N", help="score N random test photos in place of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", default="as published", help="what was done to the photos, for the table")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        table = measure(arguments)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(table.to_string(index=False))
    with atomic_path(arguments.output) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f")


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """The table that was asked for. Raises OSError where the data are missing; ValueError for values that are wrong."""
    config = load_config(arguments.profile, arguments.dataset, **settings(arguments.set))
    splits = load_splits(config)
    if arguments.sample:
        splits = replace(splits, test=splits.test.sample(arguments.sample, random_state=0).reset_index(drop=True))
    if arguments.table == "teachers":
        table = boxes.teachers_table(splits, config, arguments.parts)
    else:
        table = boxes.attnets_table(splits, config, arguments.attnets, arguments.parts, arguments.seed)
    made = provenance()
    return table.assign(
        dataset=f"{arguments.dataset}, {len(splits.class_names)} classes, photos {arguments.photos}",
        training_photos=len(splits.train),
        commit=made["commit"],
        dirty=made["dirty"],
        device=made["device"],
        date=made["date"],
        command=made["command"],
    )


if __name__ == "__main__":
    main()
