"""Localisation scored as the weakly supervised field does (WSOL), beside what that field has published."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from fgvclib.config import Config
from fgvclib.data.loaders import evaluation_loader
from fgvclib.data.teacher_maps import teacher_component, teacher_maps
from fgvclib.model.system import EndToEndModel
from fgvclib.study.paper import published_localisation
from fgvclib.training.evaluation import localisation_scores, trivial_ious
from fgvclib.training.runs import Run, list_seeds
from fgvclib.utils.device import on_default_device
from fgvclib.utils.progress import progress

SCORES = ["box_acc_0.3", "box_acc_0.5", "box_acc_0.7", "box_acc_mean", "gt_known_loc", "top1_loc", "mean_iou"]


@torch.no_grad()
def attention_maps(
    model: EndToEndModel, photos: pd.DataFrame, config: Config, training: pd.DataFrame | None = None
) -> tuple[Tensor | None, Tensor]:
    """A and M, each (N, 1, n, n) on the CPU, of a table's photos; A is None for a baseline.

    M is what the model was trained with: a fixed teacher's map is made at the teacher's own size (`teacher_maps`; some
    teachers need the `training` photos), the live teacher's is that of the weights as they are now.
    """
    fixed = config.teacher_weights == "imagenet"
    attention, teacher = [], []
    with on_default_device(model) as device:
        for batch in progress(evaluation_loader(photos, config), "attention maps"):
            images = batch["image"].to(device)
            attention += [model.attnet(images).cpu()] if model.localise else []
            teacher += [] if fixed else [model.teacher_map(images).cpu()]
    if fixed:
        component = None if training is None else teacher_component(training, config)
        teacher = [teacher_maps(photos, config, component)]
    return torch.cat(attention) if attention else None, torch.cat(teacher)


def localisation_table(runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Runs by name, one per seed → scores in [0, 1], the mean over the seeds; photos without a true box do not count.

    Each name has its crop and the box of its teacher's map; from an AttNet also that of A, read as the teacher's is
    (`geometry.target_box`). The boxes that need no image follow, with the classes that the first name predicts for
    their Top-1 Loc; then the published ones. These are of all 200 classes of CUB-200-2011, ours of the data set at
    hand, hence the column `source`, which also says where a data set has no true boxes.
    """
    rows, first = [], next(iter(runs.values()))
    for name, seeds in runs.items():
        rows.append(_row(f"{name}, crop", seeds, [run.predictions["iou"] for run in seeds]))
        rows.append(_row(f"{name}, teacher's box", seeds, [run.predictions["teacher_iou"] for run in seeds]))
        if all("attention_iou" in run.predictions for run in seeds):  # runs scored by earlier code lack it
            rows.append(_row(f"{name}, box of A", seeds, [run.predictions["attention_iou"] for run in seeds]))
    trivial = reversed(trivial_ious(first[0].splits.test).items())  # the whole image last: the least to beat
    rows += [_row(name, first, [iou] * len(first)) for name, iou in trivial]
    return pd.concat([pd.DataFrame(rows), _published()], ignore_index=True)[["localiser", *SCORES, "seeds", "source"]]


def _row(localiser: str, runs: Sequence[Run], ious: Sequence[pd.Series]) -> dict:
    scores = []
    for run, iou in zip(runs, ious, strict=True):
        correct = run.predictions["prediction"] == run.predictions["label"]
        scores.append(localisation_scores(iou, correct))
    means = pd.DataFrame(scores).mean()
    config = runs[0].config
    measured = f"measured here, {config.profile} profile on {config.dataset}"
    return {
        "localiser": localiser,
        "source": measured if means.notna().all() else f"not measured: {config.dataset} has no true boxes",
        "seeds": list_seeds(runs),
        "gt_known_loc": means["box_acc_0.5"],
        **means,
    }


def _published() -> pd.DataFrame:
    percent = published_localisation()
    scores = {name: percent.pop(f"{name}_percent") / 100 for name in ("box_acc_mean", "gt_known_loc")}
    return percent.assign(**scores, source="CUB-200-2011: " + percent["source"])
