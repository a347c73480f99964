"""CPU time of one answer of the systems of Table 3 over that of timm's plain ResNet-50: ours beside the official code.

    python benchmarks/systems.py --systems nts,mmal,pmg --official official

One photo of 448 pixels, one thread, random weights. All take turns, so that a busy machine slows all alike; the ratios
are medians. The folder `official` holds clones of the authors' repositories, see `official.py`.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import timm
import torch
from official import AsPublished, official_networks

from fgvclib.config import END_TO_END, load_config
from fgvclib.study.efficiency import CLASSES, Answering, compare, inference, noise, ratios
from fgvclib.systems import SYSTEMS, build_network
from fgvclib.utils.provenance import provenance

PLAIN = "plain ResNet-50"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default="nts,mmal,pmg", help=f"of {', '.join([END_TO_END, *SYSTEMS])}")
    parser.add_argument("--repetitions", type=int, default=5, help="after one that is not counted; default: 5")
    parser.add_argument("--size", type=int, default=448, help="side of the photo in pixels; default: 448")
    parser.add_argument("--official", type=Path, help="folder with clones of the authors' repositories")
    parser.add_argument("--output", type=Path, help="CSV file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        official = official_networks(options.official) if options.official else {}
        table = measure(options.systems.split(","), official, options.size, options.repetitions)
    except ValueError as error:
        parser.error(str(error))
    print(table.round(2).to_string(index=False, na_rep=""))
    if options.output:
        made = provenance()
        made_by = {key: made[key] for key in ("commit", "dirty", "device", "date", "command")}
        table.assign(**made_by).to_csv(options.output, index=False, float_format="%.4f")


def measure(systems: list[str], official: dict[str, AsPublished], size: int, repetitions: int) -> pd.DataFrame:
    """One row a system: its CPU time over the plain network's, and that of its authors' code where it is given.

    Raises ValueError for a system that does not exist, and for a size that is too small for one.
    """
    config = load_config("paper", backbone="resnet50.tv_in1k", image_size=size, crop_size=size, batch_size=1)
    photo = noise(config)
    plain = timm.create_model("resnet50", num_classes=CLASSES)
    sides = {PLAIN: inference(plain.to(photo.device, memory_format=torch.channels_last), photo)}
    for system in systems:
        network = build_network(replace(config, system=system), CLASSES, pretrained=False)
        sides[system] = inference(Answering(network).to(photo.device), photo)
    for network in official.values():
        sides[network.source] = inference(network, photo)
    times = compare(sides, budget_s=math.inf, repetitions=repetitions)
    found = ratios(times, over=PLAIN)["cpu_time_value"]
    rows = []
    for system in systems:
        source = official[system].source if system in official else None
        rows.append({"system": system, "ours": found[system], "official": found.get(source), "official_code": source})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
