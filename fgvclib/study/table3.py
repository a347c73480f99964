"""Table 3: the paper's comparison with other methods, and what was measured here, clearly apart.

Accuracy alone does not say what a system costs, so every row that was measured here has its passes of the backbone, its
multiply-adds and its parameters beside it.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import pandas as pd
import torch

from fgvclib.config import END_TO_END, Config
from fgvclib.model.system import EndToEndModel
from fgvclib.study.bounds import BASELINE
from fgvclib.study.efficiency import Answering, million_multiply_adds
from fgvclib.study.elope import ELOPE
from fgvclib.study.experiment import Experiment
from fgvclib.study.intervals import run_difference
from fgvclib.study.paper import paper_table
from fgvclib.systems import build_network
from fgvclib.systems.base import System
from fgvclib.training.runs import Run, list_seeds

FACTORS = (1 / 3, 1, 3)  # of the common learning rate: what `benchmarks/rates.py` tries for every system
# Rows that can be trained here beside the paper's own, and what their authors call them; a row that the paper's table
# has bears its name there. The others came later, or are a baseline.
RIVALS = {
    "finetune": "Fine-tuning",
    "stn": "STN",
    "racnn": "RA-CNN",
    "ise": "ISE",
    "nts": "NTS-Net",
    "dcl": "DCL",
    "dcl-vehicles": "DCL, vehicles",
    "mamc": "OSME-MAMC",
    "isqrt": "iSQRT-COV",
    "apinet": "API-Net",
    "mmal": "TBMSL-Net",
    "mmal-vehicles": "TBMSL-Net, vehicles",
    "pmg": "PMG",
    "cal": "CAL",
    "cal-one-look": "CAL, one pass",
    "wsdan": "WS-DAN",
    ELOPE: "ELoPE",
}
# Why a row of the paper's table has no system here.
NOT_MEASURED = {
    "CS Parts": "support vector machines around features, not a network that one loop trains",
    "Spatial RNN": "two networks and a sequential LSTM over cells; no public code",
    "Stacked LSTM": "three trainings with Mask R-CNN between them; no public code",
    "GPipe": "557M parameters without public weights: a result of scale",
    "AutoAugm": "an augmentation policy, from scratch: torchvision has it, no system is needed",
    "TResNet": "a backbone: any timm tag can be named by `backbone`",
}


def table3(runs: Mapping[str, Sequence[Run]], dataset: str) -> pd.DataFrame:
    """The paper's rows, then one row for each method in `runs`, in a column of their own for the data set.

    Accuracies are per cent. A number measured here must not be read along the same line as the published ones unless
    data set and profile are the paper's, hence the column `source`. Of a measured row, `cost` says what it takes.
    """
    published = paper_table(3).assign(source="paper")
    measured = pd.DataFrame([_row(method, seeds, dataset) for method, seeds in runs.items()])
    return pd.concat([published, measured], ignore_index=True)


def _row(method: str, runs: Sequence[Run], dataset: str) -> dict:
    config, metrics = runs[0].config, pd.DataFrame([run.metrics for run in runs])
    accuracy = 100 * metrics["accuracy"]
    boxes = metrics.reindex(columns=["box_acc_0.5"]).mean().to_dict()  # NaN where no photo has a true box
    return {
        "method": method,
        "source": f"measured here, {config.profile} profile",
        "seeds": list_seeds(runs),
        f"measured_{dataset}": accuracy.mean(),
        f"measured_{dataset}_std": accuracy.std(),
        **cost(config, len(runs[0].splits.class_names)),
        **boxes,
    }


@cache
def cost(config: Config, num_classes: int) -> dict[str, float]:
    """What a system takes: its backbone, passes of it, multiply-adds of one answer, parameters that learn.

    `passes` counts pixels: one is the backbone at crop_size. `training_passes` has the live teacher's in it; of ELoPE
    it is the last training's, without the Baseline before it, that one's maps, and AttNet's training. `million_macs`
    are those of convolutions and matrix products, for one photo of noise.
    """
    network = build_network(config, num_classes, pretrained=False).eval()
    if found_before := config.fixed_box == "attnet":  # an AttNet that has learnt alone
        network.attnet.requires_grad_(True)
    photo = torch.rand(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    passes, training_passes = _passes(network, config)
    return {
        "backbone": config.backbone,
        "views": f"{'photo → ' * found_before}{config.image_size} → {config.crop_size}",
        "passes": passes,
        "training_passes": training_passes,
        "million_macs": million_multiply_adds(Answering(network, found_before), photo),
        "parameters": sum(value.numel() for value in network.parameters() if value.requires_grad),
    }


def _passes(network: EndToEndModel | System, config: Config) -> tuple[float, float]:
    if config.system != END_TO_END:
        return network.passes, network.training_passes
    taught = config.teacher_weights == "live" and (config.lambda_att > 0 or config.lambda_aff > 0)
    return 1.0, 1.0 + taught * (config.teacher_size / config.crop_size) ** 2


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Positions of the systems that none beats: no other has at least the score at no more cost. By rising cost."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i]))
    front: list[int] = []
    for i in order:
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


def searched_rates(common: float) -> list[float]:
    """The three learning rates, with three digits, so that `--set learning_rate=0.00333` names the same folder."""
    return [common if factor == 1 else float(f"{common * factor:.3g}") for factor in FACTORS]


def own_rates(search: pd.DataFrame, common: float) -> pd.Series:
    """One seed of `rates.csv` → the learning rate of each system that is best on validation after the last epoch.

    Among equals the common one, then the lowest. A rate at which the training diverged (NaN) is never chosen. Left out
    are systems that lack one of the `searched_rates`, as in a search that is not over, or that diverged at all.
    """
    lines = search[search["learning_rate"].isin(searched_rates(common))]
    tried = lines.groupby("system")["learning_rate"].transform("nunique")
    last = lines[tried == len(FACTORS)].pivot(index="system", columns="learning_rate", values="last_accuracy")
    common_first = sorted(searched_rates(common), key=lambda rate: (rate != common, rate))
    return last.reindex(columns=common_first).dropna(how="all").idxmax(axis=1)


def own_recipes(search: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Each searched system with the common rate and with its own, for the first seed of the search.

    A row each: `system`, validation accuracy at every rate, `own_rate`, and for the recipes "common" and "own" the test
    accuracy and the gain over the Baseline with the same recipe, as text with its interval. Accuracies are per cent.
    Where a training diverged, the validation accuracy is 0. Left out are systems without both runs, and all gains where
    the Baseline was not searched.
    """
    seed = int(search["seed"].min())
    search = search[search["seed"] == seed]
    rates = own_rates(search, experiment.config.learning_rate)
    own = {system: experiment.with_values(learning_rate=rate).find(system, seed) for system, rate in rates.items()}
    common = {system: experiment.find(system, seed) for system in rates.index}
    systems = [system for system in rates.index if own[system] and common[system]]
    tried = search.pivot(index="system", columns="learning_rate", values="last_accuracy").loc[systems]
    tried = tried.reindex(columns=sorted(searched_rates(experiment.config.learning_rate)))  # of this common rate alone
    table = (100 * tried).round(9).fillna(0.0)  # 100 · 0.55 is not 55
    table["own_rate"] = rates[systems]
    for recipe, runs in {"common": common, "own": own}.items():
        table[f"{recipe}_accuracy"] = [100 * runs[system].metrics["accuracy"] for system in systems]
        rivals = [system for system in systems if system != BASELINE and BASELINE in systems]
        gains = {system: str(run_difference([runs[system]], [runs[BASELINE]])) for system in rivals}
        table[f"{recipe}_gain"] = [gains.get(system, "") for system in systems]
    return table.reset_index()


def paper_rows() -> pd.DataFrame:
    """Every row of the paper's Table 3 but its own two: method, the `system` here that reproduces it, or `why_not`."""
    methods = paper_table(3)["method"]
    named = {method: system for system, method in RIVALS.items()}
    rows = [
        {"method": method, "system": named.get(method, ""), "why_not": NOT_MEASURED.get(method, "")}
        for method in methods[~methods.str.startswith("Ours")]
    ]
    return pd.DataFrame(rows)
