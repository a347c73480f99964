"""Write what the committed runs measured into docs/results.md and README.md: `python docs/report.py`.

Every number and every "above" or "not told apart" on these pages comes from results/reference/ by this script;
tests/test_readme.py fails where a page says anything else.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fgvclib.config import Config
from fgvclib.data.index import BOX
from fgvclib.model.geometry import box_iou, centre_box
from fgvclib.study import bounds, boxes, table2
from fgvclib.study.intervals import Difference, crossed_difference, hits, share_interval
from fgvclib.study.table3 import RIVALS, cost

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
DRAWN, BIRDS, EFFICIENCY = "cpu-synthbirds", "photos-cub200", "paper-efficiency"
TEACHERS_OF_ALL, ALL_BIRDS = "photos-cub200-all", "photos-cub200-num_classes=200"
MAPS_OF_ALL = "photos-cub200-num_classes=200-epochs=1"
RIVALS_ON_BIRDS = "photos-cub200-num_classes=50"
LARGER = {"EfficientNet-Lite1": f"{RIVALS_ON_BIRDS}-backbone=efficientnet_lite1.pypi"}  # classifier, teacher → folder
LARGE_CROPS = "cpu-synthbirds-crop_size=224"
GENTLER = "AttNet and AffNet at a lower rate"
FINER = "The same, and a teacher that sees 576 pixels"
RECIPES = {  # folder → on the same photos: what other values are → the folder with the runs at these
    ALL_BIRDS: {GENTLER: "photos-cub200-27427991e1", FINER: "photos-cub200-ada7541626"},
    BIRDS: {
        GENTLER: "photos-cub200-localisation_epochs=12-localisation_learning_rate=0.0002",
        FINER: "photos-cub200-e4b75d92df",
    },
}
PHOTOS_OF = {ALL_BIRDS: "all 200 classes", BIRDS: "first 100 classes"}
ROWS = {  # method of table3.csv → row that its runs are named after
    "Classifier without localisation": "Baseline",
    "End-to-end (setting 1)": "End-to-end",
    "End-to-end (setting 2)": "setting 2",
    **{method: system for system, method in RIVALS.items()},
}
COLUMNS = {"million_multiply_adds": "million multiply-adds", "over_classifier": "over the classifier's"}
PRICES, SCORES = tuple(COLUMNS), ("mean_iou", "box_acc_0.3", "box_acc_0.5", "box_acc_0.7")
COLUMNS |= {"mean_iou": "mean IoU"} | {f"box_acc_{level}": f"BoxAcc@{level}" for level in (0.3, 0.5, 0.7)}
DIGITS = {"million_multiply_adds": ".1f", "over_classifier": ".0%", "tau": ".2f"}
BY_TAU = (
    "Share of validation photos whose box has IoU ≥ 0.5, by τ. Mean and rms are over the channels, ddt is the "
    "principal axis of the features (notebook 10, section 5)."
)
MADE_BY = ["dataset", "training_photos", "commit", "dirty", "device", "date", "command", "box_acc_mean"]
CROP = "End-to-end"
GAIN = (CROP, "Baseline")
RECIPE = (
    "EfficientNet-Lite0 on 128 pixels (drawn birds: 112). A crop is cut from a photo of twice that side, so part of "
    "the gain is resolution. On real birds AttNet sees 96 pixels, costs a third of the classifier and is first trained "
    "alone; its teacher was chosen with the true boxes of validation photos, which no training sees."
)
OVERLAP = "Public ImageNet weights, whose photos overlap CUB's test photos: accuracies can be too high."
QUESTIONS = {  # the first row minus the second
    "Does localisation help?": GAIN,
    "Do the local losses alone help?": ("No end-to-end", "Baseline"),
    "Does a spatial transformer alone help?": ("No local supervision", "Baseline"),
    "Do the gradients through the crop and AffNet help?": ("End-to-end", "No end-to-end"),
    "Does the classifier's gradient help?": ("End-to-end", "No gradient from the classifier"),
    "Does the gradient from AffNet into AttNet help?": ("End-to-end", "No gradient from AffNet to AttNet"),
    "Does end-to-end training help with the paper's losses?": (
        "Paper's losses and live teacher",
        "No end-to-end with the paper's losses",
    ),
    "Does the gradient from AffNet into AttNet help with the paper's losses?": (
        "Paper's losses and live teacher",
        "No gradient from AffNet to AttNet with the paper's losses",
    ),
    "Does our recipe help?": ("End-to-end", "Paper's losses and live teacher"),
    "Is it better than the middle of the photo?": ("End-to-end", "Centre crop"),
    "How much better is the teacher's box, in two passes?": ("Teacher crop", "End-to-end"),
    "How much better is the true box?": ("Oracle crop", "End-to-end"),
    "Is it better than the authors' earlier system?": ("End-to-end", "ELoPE"),
    "Is setting 2 better than setting 1?": ("setting 2", "End-to-end"),
}
CENTRE, TEACHER = "Centre crop", "Teacher crop"
NOTHING_LEARNT = (bounds.BASELINE, CENTRE, bounds.ORACLE)  # rows whose box is given
HOW_TO_READ = (
    "**How to read it.** After an accuracy, ± is the standard deviation over seeds; after a difference, it is half of "
    "a 95 % interval, paired by photo and, where there are several seeds, by seed. With one seed the interval covers "
    "photos alone; another seed may fall outside it. With two or three seeds 95 % is nominal: seeds that happen to "
    "agree make an interval too narrow, so the narrowest are optimistic. Every interval stands for itself: about one "
    "in twenty excludes zero even where nothing differs, so with this many expect some, and a borderline verdict may "
    "change with the next seed. BoxAcc@δ is the share of test photos whose box has at least the IoU δ with the true "
    "one. The box is θ's, before `crop_margin` widens the crop; where boxes are given (rows named crop), it is the "
    "crop itself. The share of the gain is a row's gain over the Baseline divided by the Oracle crop's gain over it; "
    "in brackets is its 95 % interval over photos alone."
)


def main() -> None:
    """Rewrite both pages."""
    (ROOT / "docs" / "results.md").write_text(results_page(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(with_results(readme.read_text(encoding="utf-8")), encoding="utf-8")


def results_page() -> str:
    """docs/results.md as text."""
    made = "Made by `python docs/report.py` from [the committed runs](../results/README.md), never edited by hand."
    parts = ["# Results", made, HOW_TO_READ]
    made_by = f"Commands, and which verdicts are borderline: [{DRAWN}](../results/reference/{DRAWN}/README.md)."
    parts += ["## Drawn birds", provenance(DRAWN), made_by, *_table2(DRAWN), *_answers(DRAWN)]
    parts += [*_bounds(DRAWN), *_table1(DRAWN), *_table3(DRAWN), *_nts(), *_own_recipes(DRAWN)]
    parts += [*_real_birds(), "## Efficiency", provenance(EFFICIENCY), *_efficiency()]
    return "\n\n".join(parts) + "\n"


def with_results(readme: str) -> str:
    """README with its result line and its table of lessons as they must be."""
    readme = _between(readme, "result", headline())
    return _between(readme, "lessons", "\n".join(["| lesson | read | run |", "|---|---|---|", *_lessons()]))


def _between(text: str, mark: str, content: str) -> str:
    marks = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    return re.sub(marks, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def headline() -> str:
    """What end-to-end gained over the whole photo, on real and on drawn birds, with its intervals."""
    classes = _json(REFERENCE / BIRDS / "manifest.json")["configuration"]["num_classes"]
    places = {ALL_BIRDS: "CUB-200-2011", BIRDS: f"its first {classes} classes", DRAWN: "the embedded drawn birds"}
    return (
        "**Measured here**, on a CPU, one thread a run, one classifier pass a photo; accuracy on test photos. "
        + " ".join(_headline_of(name, place) for name, place in places.items())
        + f" {RECIPE} {OVERLAP} The paper: 87.0 → 88.5 % on CUB-200-2011 (ResNet-101, 448 pixels for both). "
        "[All results](docs/results.md)."
    )


def _headline_of(name: str, place: str) -> str:
    gain, named = difference(name, *GAIN), accuracies(name)
    seeds = shared_seeds(named, *GAIN)
    crop, whole = (sum(named[row][seed] for seed in seeds) / len(seeds) for row in GAIN)
    over = "photos, one seed" if len(seeds) == 1 else f"photos and {len(seeds)} seeds"
    over += "" if gain.told_apart else "; not told apart"
    points = f"{gain.mean:+.1f} ± {gain.half_width:.1f} points (95 % over {over})"
    return f"On {place}: {crop:.1f} % with localisation, {whole:.1f} % without; {points}."


def _lessons() -> Iterable[str]:
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
        copies = sorted(REFERENCE.glob(f"*/notebooks/{path.name}"), key=lambda copy: DRAWN not in str(copy))
        read = f"[as executed]({copies[0].relative_to(ROOT)})" if copies else "not executed here"
        yield f"| {title} | {read} | [notebook](notebooks/{path.name}) |"


def provenance(name: str) -> str:
    """When, by which code and on which hardware a reference folder was made."""
    manifest = _json(REFERENCE / name / "manifest.json")
    config, entries = manifest["configuration"], manifest["notebooks"].values()
    newest = max(entry["started"] for entry in entries)[:10]
    text = f"`{config['profile']}` profile on {config['dataset']}. Notebooks executed at {_commits(entries)}, "
    text += f"the newest on {newest} on {describe_hardware(manifest['hardware'])}"
    trained = _trained(name)
    return text + (f"; {trained}." if trained else ".")


def _trained(name: str) -> str:
    """By which code and on which processors the runs of a reference folder were trained; "" where it has none."""
    runs = [_json(path).get("provenance", {}) for path in sorted((REFERENCE / name).glob("runs/*/metrics.json"))]
    if not runs:
        return ""
    made = [*runs, *(earlier for run in runs for earlier in run.get("earlier", []))]
    processors = sorted({each["processor"] for each in made if "processor" in each})
    processors += ["a processor that was not recorded"] * any("processor" not in each for each in made)
    return f"runs trained at {_commits(made)}, on {' or '.join(processors)}"


def _commits(made: Iterable[Mapping]) -> str:
    """Their commits; "with changes" where some code was not committed."""
    dirty: dict[str, bool] = {}
    for entry in made:
        commit = (entry.get("commit") or "unknown")[:7]
        dirty[commit] = dirty.get(commit, False) or bool(entry.get("dirty"))
    named = [f"`{commit}`" + " (with changes)" * changed for commit, changed in sorted(dirty.items())]
    return ("commit " if len(named) == 1 else "commits ") + ", ".join(named)


def describe_hardware(hardware: Mapping) -> str:
    """Processor and cores, or the GPU."""
    return hardware.get("gpu") or f"{hardware.get('cores', '?')} cores of {hardware.get('cpu', 'an unnamed CPU')}"


def accuracies(name: str) -> dict[str, dict[int, float]]:
    """Row → seed → test accuracy in per cent, of every committed run."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted((REFERENCE / name).glob("runs/*/metrics.json")):
        row, seed = path.parent.name.rsplit("-seed", 1)
        found.setdefault(_row_name(row), {})[int(seed)] = 100 * _json(path)["test"]["accuracy"]
    return found


def _run(name: str, row: str, seed: int) -> Path:
    return REFERENCE / name / "runs" / f"{row.replace(' ', '-')}-seed{seed}"


def _row_name(folder: str) -> str:
    """The row that a run's folder was named after, with blanks again."""
    return {row.replace(" ", "-"): row for row in (*table2.ROWS, *bounds.BOUNDS, *ROWS.values())}[folder]


def difference(name: str, first: str, second: str, level: float | None = None) -> Difference:
    """Accuracy of one row minus another's, in points, with its interval over test photos and the seeds both have.

    With a `level` it is BoxAcc at that IoU in place of accuracy.
    """
    seeds = shared_seeds(accuracies(name), first, second)
    return _paired((name, first), (name, second), seeds, level)


def _paired(
    first: tuple[str, str], second: tuple[str, str], seeds: list[int], level: float | None = None
) -> Difference:
    """As `difference`, of the first (folder, row) minus the second."""
    return crossed_difference(_hits(*first, seeds, level), _hits(*second, seeds, level))


def _hits(name: str, row: str, seeds: list[int], level: float | None = None) -> np.ndarray:
    """(seeds, photos), as `intervals.hits`; centre and teacher's box count without the crop's margin, as theta's."""
    tables = [pd.read_csv(_run(name, row, seed) / "predictions.csv") for seed in seeds]
    if row == CENTRE and level is not None:
        true = torch.tensor(tables[0][BOX].to_numpy())
        iou = box_iou(true, centre_box(len(true)).to(true)).numpy()
        tables = [table.assign(iou=iou) for table in tables]
    if row == TEACHER and level is not None:
        tables = [table.assign(iou=table["teacher_iou"]) for table in tables]
    return np.stack([hits(table, level) for table in tables])


def shared_seeds(runs: Mapping[str, Mapping], first: str, second: str) -> list[int]:
    """Seeds of `accuracies` that both rows have."""
    return sorted(set(runs.get(first, {})) & set(runs.get(second, {})))


def markdown(rows: list[Mapping]) -> str:
    """Rows as a table; the first row's keys are the columns."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows)])


def number(value: float, form: str) -> str:
    """A formatted number; a dash for what was not measured."""
    return "–" if pd.isna(value) else format(value, form)


def _mean_and_spread(mean: float, spread: float) -> str:
    return number(mean, ".1f") + ("" if pd.isna(spread) else f" ± {spread:.1f}")


def _table2(name: str) -> Iterable[str]:
    path = REFERENCE / name / "table2.csv"
    if not path.exists():
        return
    table = pd.read_csv(path, dtype={"seeds": str})
    yield "### Table 2: what each part contributes"
    if (table["seeds"] == "0").all():
        yield "These rows have a single seed, so their order proves nothing. Rows with more seeds are under Bounds."
    rows = [
        {
            "": row["description"],
            "local losses": row["local_losses"],
            "β_att": f"{row['beta_att']:g}",
            "β_aff": f"{row['beta_aff']:g}",
            "seeds": row["seeds"],
            "accuracy [%]": _mean_and_spread(row["accuracy_mean"], row["accuracy_std"]),
            "paper, CUB [%]": number(row["paper_accuracy"], ".1f"),
            "BoxAcc@0.5": number(row["box_acc_0.5"], ".2f"),
            "teacher's box": number(row["teacher_box_acc_0.5"], ".2f"),
        }
        for row in table.to_dict("records")
    ]
    yield markdown(rows)
    yield f"![Table 2: every seed](../results/reference/{name}/figures/05_table2.png)"
    yield f"![Gradients by sender](../results/reference/{name}/figures/05_gradients.png)"


def _answers(name: str) -> Iterable[str]:
    runs = accuracies(name)
    if any({CENTRE, TEACHER} & {*pair} for pair in QUESTIONS.values() if shared_seeds(runs, *pair)):
        yield f"In points. The boxes of {CENTRE} and {TEACHER} count without `crop_margin` here, as θ's do."
    else:
        yield "In points."
    yield markdown(
        [
            _answer(question, *((name, row) for row in pair))
            for question, pair in QUESTIONS.items()
            if shared_seeds(runs, *pair)
        ]
    )


def _table1(name: str) -> Iterable[str]:
    path = REFERENCE / name / "table1.csv"
    if not path.exists():
        return
    table = pd.read_csv(path, dtype={"seeds": str})
    yield "### Table 1: from attention map to box"
    config = _json(REFERENCE / name / "manifest.json")["configuration"]
    frozen = config["teacher_weights"] == "imagenet"
    teacher = "a frozen ImageNet network's" if frozen else "those of the trained Baseline"
    yield (
        f"`paper | ours`. Maps: {teacher}, `{config['teacher_mean']}` over channels, boxes at τ = "
        f"{config['threshold']:g}; the paper's are a trained classifier's means. ± is over trainings on one and the "
        "same set of maps: another set moves a row by more. A row that is not trained here has parameters and runtime "
        "alone. Runtime: one map, batch 1, again and again, so from a warm cache."
    )
    scores = {"SL1 error [10⁻³]": ("sl1_error", 1e3, ".2f"), "IoU > 0.80": ("iou_gt_0.80", 1, ".2f")}
    scores |= {"IoU > 0.95": ("iou_gt_0.95", 1, ".2f")}
    rows = []
    for row in table.to_dict("records"):
        shown = {
            "model": row["model"],
            "pre-processing": row["preprocess"],
            "k": number(row["sharpness"], "g"),
            "seeds": row.get("seeds", "0"),
            "parameters": f"{row['parameters']:,}",
            "runtime [ms]": f"{number(row['paper_runtime_ms'], '.1f')} \\| {number(row['runtime_ms_batch1'], '.2f')}",
        }
        for title, (key, factor, form) in scores.items():
            spread = row.get(f"{key}_std", float("nan"))
            ours = number(factor * row[key], form) + ("" if pd.isna(spread) else f" ± {factor * spread:{form}}")
            shown[title] = f"{number(factor * row[f'paper_{key}'], form)} \\| {ours}"
        rows.append(shown)
    yield markdown(rows)


def _bounds(name: str) -> Iterable[str]:
    table = pd.read_csv(REFERENCE / name / "bounds.csv", dtype={"seeds": str})
    yield "### Bounds: how much of a perfect box's gain is recovered"
    boxes = [column for column in ("box_acc_0.3", "box_acc_0.5", "box_acc_0.7", "mean_iou") if column in table]
    yield markdown(
        [
            {
                "": row["row"],
                "seeds": row["seeds"],
                "accuracy [%]": _mean_and_spread(row["accuracy_mean"], row["accuracy_std"]),
                "share of the gain": _share(name, name, row["row"], row["share_of_gain"]),
            }
            | {COLUMNS[column]: number(row[column], ".2f") for column in boxes}
            for row in table.to_dict("records")
        ]
    )
    yield f"![From row to row](../results/reference/{name}/figures/10_waterfall.png)"


def _share(name: str, folder: str, row: str, share: float) -> str:
    """A share of the gain with its interval: of a row in `folder`, between the bounds in `name`."""
    shown = number(share, ".0%")
    if row in (bounds.BASELINE, bounds.ORACLE) or pd.isna(share):
        return shown
    places = [(folder, row), (name, bounds.BASELINE), (name, bounds.ORACLE)]
    seeds = sorted(set.intersection(*(set(accuracies(place)[found]) for place, found in places)))
    low, high = share_interval(*(_hits(*place, seeds) for place in places))
    return f"{shown} [{100 * low:.0f}, {100 * high:.0f}]"


def _attnets(name: str) -> Iterable[str]:
    """What the accuracy of End-to-end is with other AttNets, trained in folders of their own, seed 0."""
    profiles = REFERENCE / name / "runs" / f"{CROP}-seed0"
    others = sorted(REFERENCE.glob(f"{name}-attnet_*/runs/{CROP}-seed0"))
    if not others:
        return
    yield "### What AttNet's price buys"
    yield (
        f"{CROP}, seed 0, with other AttNets; all else is the profile's. The price is for one photo, alone and as a "
        "share of the classifier's. The difference is in points. "
        + " ".join(f"`{folder.parts[-3]}`: {_trained(folder.parts[-3])}." for folder in others)
    )
    prices = pd.read_csv(REFERENCE / name / "boxes.csv").drop_duplicates("attnet").set_index("attnet")
    named = {(_strides(stride), size): attnet for attnet, (stride, size) in boxes.ATTNETS.items()}
    rows = {}
    for folder in [profiles, *others]:
        stored = _json(folder / "metrics.json")
        attnet = named[_strides(stored["config"]["attnet_stride"]), stored["config"]["attnet_size"]]
        against = _paired((folder.parts[-3], CROP), (name, CROP), [0])
        shown = {"AttNet": attnet} | {COLUMNS[key]: number(prices.loc[attnet, key], DIGITS[key]) for key in PRICES}
        shown["accuracy [%]"] = number(100 * stored["test"]["accuracy"], ".1f")
        shown["against the profile's"] = "–" if folder == profiles else str(against)
        price = prices.loc[attnet, PRICES[0]]
        rows[price] = shown | {COLUMNS[key]: number(stored["test"][key], ".2f") for key in SCORES}
    yield markdown([rows[price] for price in sorted(rows)])


def _strides(value: int | Iterable[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _recipes(name: str) -> Iterable[str]:
    """What rows are at other values than the profile's, each recipe beside the profile's and the one before."""
    before = []
    for title, folder in RECIPES.get(name, {}).items():
        if (REFERENCE / folder).exists():
            yield f"### {title} ({PHOTOS_OF[name]})"
            yield from _recipe(name, folder, before)
            before.append((title, folder))


def _recipe(name: str, folder: str, before: list[tuple[str, str]]) -> Iterable[str]:
    """Rows of a folder at other values; those in which no network localises are of the profile's folder `name`."""
    profiles, runs = accuracies(name), accuracies(folder)
    rows = {row: sorted(runs[row].keys() & profiles[row].keys()) for row in runs}
    changed = _changes(name, folder, next(iter(rows.items())))
    yield (
        f"The profile but for {changed}; how they were chosen: [{folder}](../results/reference/{folder}/README.md); "
        f"{_trained(folder)}. Validation photos, mean over the seeds that both have:"
    )
    yield markdown([_learnt(place, row, seeds) for row, seeds in rows.items() for place in (name, folder)])
    yield "Test photos; the share of the true box's gain is of the same seeds:"
    yield markdown([_bounded(name, folder, row, seeds) for row, seeds in rows.items()])
    yield from _map_boxes(folder)
    yield (
        f"In points; the boxes of {CENTRE} without `crop_margin`. Rows in which no network localises are the profile's."
        ' "There" is the profile, or the section that the question names.'
    )
    asked = {f"Do these values help {row}?": ((folder, row), (name, row)) for row in runs}
    for title, other in before:
        shared = [row for row in runs if row in accuracies(other)]
        asked |= {f'Beside "{title}", {row}?': ((folder, row), (other, row)) for row in shared}
    places = {row: name for row in NOTHING_LEARNT} | {row: folder for row in runs}
    for question, pair in QUESTIONS.items():
        if set(pair) <= places.keys() and set(pair) & runs.keys():
            asked[question] = tuple((places[row], row) for row in pair)
    yield markdown([_answer(question, *pair) for question, pair in asked.items()])


def _changes(name: str, folder: str, row: tuple[str, list[int]]) -> str:
    """The values of a folder's run that are not those of the same row in `name`."""
    here, there = (_json(_run(place, row[0], row[1][0]) / "metrics.json")["config"] for place in (folder, name))
    return ", ".join(f"`{key}` {here[key]} in place of {there[key]}" for key in here if here[key] != there.get(key))


def _learnt(name: str, row: str, seeds: list[int]) -> dict[str, str]:
    """Epochs alone, rate after them, and validation scores over the epochs with the classifier."""
    folders = [_run(name, row, seed) for seed in seeds]
    config = _json(folders[0] / "metrics.json")["config"]
    mean = pd.concat([pd.read_csv(folder / "history.csv") for folder in folders]).groupby("epoch").mean()
    alone = str(config["localisation_epochs"]) if config["lambda_att"] or config["lambda_aff"] else "–"
    shown = {"row": row, "seeds": " ".join(map(str, seeds)), "epochs alone": alone}
    shown["rate then"] = f"{config['localisation_learning_rate']:g}"
    for level in (0.5, 0.7):
        for epoch in (1, len(mean)):
            shown[f"BoxAcc@{level} after epoch {epoch}"] = f"{mean.loc[epoch, f'validation_box_acc_{level}']:.2f}"
    return shown | {"accuracy at the end [%]": f"{100 * mean.iloc[-1]['validation_accuracy']:.1f}"}


def _bounded(name: str, folder: str, row: str, seeds: list[int]) -> dict[str, str]:
    """Test scores of a row in a folder; whole photo and true box, which bound its accuracy, are in that of `name`."""
    ours = pd.Series(accuracies(folder)[row])[seeds]
    whole, oracle = (pd.Series(accuracies(name)[bound])[seeds].mean() for bound in (bounds.BASELINE, bounds.ORACLE))
    scores = [_test_scores(folder, row, seed) for seed in seeds]
    shown = {"row": row, "seeds": " ".join(map(str, seeds)), "accuracy [%]": _mean_and_spread(ours.mean(), ours.std())}
    shown["share of the gain"] = _share(name, folder, row, (ours.mean() - whole) / (oracle - whole))
    return shown | {COLUMNS[key]: f"{np.mean([score[key] for score in scores]):.2f}" for key in SCORES}


def _map_boxes(folder: str) -> Iterable[str]:
    """Boxes of AttNet's maps, beside AffNet's, of the runs that were scored with them."""
    rows = []
    for row, named in accuracies(folder).items():
        seeds = [seed for seed in named if "attention_mean_iou" in _test_scores(folder, row, seed)]
        if seeds:
            tables = [pd.read_csv(_run(folder, row, seed) / "predictions.csv") for seed in seeds]
            shown = {"row": row, "seeds": " ".join(map(str, seeds))}
            scores = [_test_scores(folder, row, seed) for seed in seeds]
            shown |= {COLUMNS[key]: f"{np.mean([found[f'attention_{key}'] for found in scores]):.2f}" for key in SCORES}
            rows.append(shown | {f"@{level}, map − AffNet": _map_gain(tables, level) for level in (0.5, 0.7)})
    if rows:
        yield (
            "Boxes read from AttNet's own map, in the same pass, as the teacher's are from its map: enlarged, the "
            "largest component at the configured τ, nothing chosen anew. Differences to AffNet's boxes in points:"
        )
        yield markdown(rows)


def _test_scores(folder: str, row: str, seed: int) -> dict[str, float]:
    return _json(_run(folder, row, seed) / "metrics.json")["test"]


def _map_gain(tables: list[pd.DataFrame], level: float) -> str:
    """BoxAcc of the map's box minus AffNet's, with its interval; tables of predictions, one per seed."""
    of_map = np.stack([hits(table.assign(iou=table["attention_iou"]), level) for table in tables])
    return str(crossed_difference(of_map, np.stack([hits(table, level) for table in tables])))


def _answer(question: str, first: tuple[str, str], second: tuple[str, str]) -> dict[str, str]:
    """The first (folder, row) minus the second, over the seeds that both have."""
    seeds = sorted(accuracies(first[0])[first[1]].keys() & accuracies(second[0])[second[1]].keys())
    rows = f"{first[1]} − {second[1]}" if first[1] != second[1] else f"{first[1]}, here − there"
    shown = {"question": question, "difference": rows, "seeds": " ".join(map(str, seeds))}
    shown["accuracy"] = str(_paired(first, second, seeds))
    return shown | {f"BoxAcc@{level}": str(_paired(first, second, seeds, level)) for level in (0.5, 0.7)}


def _table3(name: str) -> Iterable[str]:
    table = pd.read_csv(REFERENCE / name / "table3.csv", dtype={"seeds": str})
    ours = table[table["source"] != "paper"].to_dict("records")
    yield "### Table 3: what was measured here"
    yield (
        "Notebook 07 shows it beside the published rows, which stand on other data and other backbones. The gain is "
        "over the classifier without localisation: all rows share its runs, and move together with them. ELoPE cuts "
        "its crops from the original photo, the end-to-end system from the smaller X; and ELoPE needs two trainings "
        "before this one. Passes in training leave these out, and what a frozen teacher and AttNet and AffNet alone "
        "take before the first epoch (photos profile)."
    )
    column = next(name for name in table if name.startswith("measured_") and not name.endswith("_std"))
    rows = [
        {
            "method": row["method"],
            "seeds": row["seeds"],
            "accuracy [%]": _mean_and_spread(row[column], row[f"{column}_std"]),
            "gain [points, 95 %]": "" if row["method"] == ours[0]["method"] else _gain(name, row["method"]),
            "passes, test / training": f"{row['passes']:.2f} / {row['training_passes']:.2f}",
            "million multiply-adds": number(row["million_macs"], ".1f"),
            "BoxAcc@0.5": number(row["box_acc_0.5"], ".2f"),
        }
        for row in ours
    ]
    yield markdown(rows)
    yield f"![Accuracy over cost](../results/reference/{name}/figures/07_measured.png)"


def _nts() -> Iterable[str]:
    runs = accuracies(LARGE_CROPS)
    seeds = shared_seeds(runs, "nts", "finetune")
    means = {row: sum(runs[row][seed] for seed in seeds) / len(seeds) for row in ("nts", "finetune")}
    yield "### NTS-Net, which takes crops of 224 pixels and more"
    named = "seed" if len(seeds) == 1 else "seeds"
    yield (
        f"The same profile at crops of 224 pixels, the whole of the photo ({named} {' '.join(map(str, seeds))}): "
        f"NTS-Net {means['nts']:.1f} %, fine-tuning {means['finetune']:.1f} %. Difference in points: "
        f"{difference(LARGE_CROPS, 'nts', 'finetune')}; {_trained(LARGE_CROPS)}."
    )


def _own_recipes(name: str) -> Iterable[str]:
    path = REFERENCE / name / "own_rates.csv"
    if not path.exists():
        return
    table = pd.read_csv(path)
    rates = sorted((column for column in table if re.fullmatch(r"[\d.]+", column)), key=float)
    methods = {row: method for method, row in ROWS.items()}
    yield "### Table 3 with a learning rate of its own for every system"
    yield (
        "The same search for each: three rates, one seed, the best on the validation photos after the last epoch "
        "(`benchmarks/rates.py`). The gain is over the classifier without localisation with the same recipe."
    )
    yield markdown(
        [
            {"method": methods[row["system"]]}
            | {f"validation [%] at {rate}": number(row[rate], ".1f") for rate in rates}
            | {"own rate": f"{row['own_rate']:g}"}
            | {f"test [%], {recipe} rate": number(row[f"{recipe}_accuracy"], ".1f") for recipe in ("common", "own")}
            | {f"gain, {recipe} rate": row[f"{recipe}_gain"] for recipe in ("common", "own")}
            for row in table.fillna("").to_dict("records")
        ]
    )


def _gain(name: str, method: str) -> str:
    return str(difference(name, ROWS[method], "Baseline"))


def _real_birds() -> Iterable[str]:
    yield "## Real birds: all 200 classes, boxes without a classifier"
    yield from _boxes(TEACHERS_OF_ALL)
    yield "## Real birds: all 200 classes, from attention map to box"
    yield _made_how(MAPS_OF_ALL)
    yield provenance(MAPS_OF_ALL)
    yield from _table1(MAPS_OF_ALL)
    yield "## Real birds: all 200 classes"
    yield OVERLAP
    yield from _classifiers(ALL_BIRDS)
    classes = _json(REFERENCE / BIRDS / "manifest.json")["configuration"]["num_classes"]
    yield f"## Real birds: the first {classes} classes"
    yield OVERLAP
    yield from _classifiers(BIRDS)
    yield "## Real birds: the first 50 classes, and the systems of Table 3"
    yield OVERLAP
    yield provenance(RIVALS_ON_BIRDS)
    yield from _table3(RIVALS_ON_BIRDS)
    yield from _own_recipes(RIVALS_ON_BIRDS)
    yield from _answers(RIVALS_ON_BIRDS)
    yield from _larger_classifiers(RIVALS_ON_BIRDS)


def _classifiers(birds: str) -> Iterable[str]:
    yield provenance(birds)
    yield from _boxes(birds)
    yield from _networks(birds)
    yield from _attnets(birds)
    yield from _recipes(birds)
    yield from _table2(birds)
    yield from _bounds(birds)
    yield from _map_boxes(birds)
    yield from _answers(birds)


def _larger_classifiers(name: str) -> Iterable[str]:
    """Larger networks as classifier and teacher, beside the profile's in `name`."""
    yield "### Larger classifiers"
    yield (
        "A larger network takes the place of Lite0 as classifier and as teacher. AttNet stays that of Lite0, and every "
        "other value is the profile's, chosen for Lite0. "
        + "; ".join(f"{network}: {_trained(folder)}" for network, folder in LARGER.items())
        + "."
    )
    places = {"EfficientNet-Lite0": name} | LARGER
    yield markdown([_priced(*place, row) for place in places.items() for row in reversed(GAIN)])
    asked = {}
    for network, folder in LARGER.items():
        short = network.removeprefix("EfficientNet-")
        asked[f"Does localisation help {short}?"] = ((folder, GAIN[0]), (folder, GAIN[1]))
        asked[f"Does {short} help on the whole photo?"] = ((folder, GAIN[1]), (name, GAIN[1]))
        asked[f"Is {short} on the whole photo better than Lite0 end to end?"] = ((folder, GAIN[1]), (name, GAIN[0]))
    yield markdown([_answer(question, *pair) for question, pair in asked.items()])


def _priced(network: str, folder: str, row: str) -> dict[str, str]:
    """Test scores of a row, mean over its seeds, and the multiply-adds of one answer."""
    accuracy = pd.Series(accuracies(folder)[row])
    scores = [_test_scores(folder, row, seed) for seed in accuracy.index]
    config = Config(**_json(_run(folder, row, accuracy.index[0]) / "metrics.json")["config"])
    shown = {"classifier": network, "row": row, "seeds": " ".join(map(str, accuracy.index))}
    shown["accuracy [%]"] = _mean_and_spread(accuracy.mean(), accuracy.std())
    shown |= {COLUMNS[key]: f"{np.mean([score[key] for score in scores]):.2f}" for key in SCORES[2:]}
    return shown | {"million multiply-adds": f"{cost(config, config.num_classes)['million_macs']:.1f}"}


def _made_how(birds: str) -> str:
    return f"How these were made, and on which copy of the photos: [{birds}](../results/reference/{birds}/README.md)."


def _boxes(birds: str) -> Iterable[str]:
    folder = REFERENCE / birds
    readme = folder / "README.md"
    yield _made_how(birds)
    titles = {"teachers": "Teachers: boxes of their maps", "boxes": "AttNet and AffNet alone: their boxes"}
    for name, title in titles.items():
        path = folder / f"{name}.csv"
        if path.exists() and readme.exists():
            table = pd.read_csv(path)
            made = _made(table)
            table = table.drop(columns=MADE_BY, errors="ignore")
            yield f"### {title}"
            if made:
                yield made
            if "0.5" in table:
                yield BY_TAU
            yield markdown([_plain(row) for row in table.to_dict("records")])


def _made(table: pd.DataFrame) -> str:
    """By which code, where and when the lines of a script's table were made; "" for a notebook's table."""
    if "commit" not in table:
        return ""
    devices, newest = " or ".join(sorted(set(table["device"]))), table["date"].max()[:10]
    return f"Made at {_commits(table.to_dict('records'))} on {devices}, the newest line on {newest}."


def _networks(name: str) -> Iterable[str]:
    """Boxes of the profile's kind of teacher, by other networks and at other sizes."""
    path = REFERENCE / name / "networks.csv"
    if not path.exists():
        return
    table = pd.read_csv(path)
    made = _made(table)
    table = table.drop(columns=MADE_BY, errors="ignore")
    table = table[(table["teacher"] == "ddt+rms") & table["box"].str.startswith("largest")]
    yield "### Teachers: networks and sizes"
    yield made
    yield "`ddt+rms`, largest component, each with the τ that suits it best. The profile has Lite0 at 448 pixels."
    yield markdown([_plain(row) for row in table.drop(columns=["teacher", "box"]).to_dict("records")])


def _plain(row: Mapping) -> dict[str, str]:
    forms = {key: number(value, DIGITS.get(key, ".3f")) for key, value in row.items() if isinstance(value, float)}
    return {COLUMNS.get(key, key): forms.get(key, str(value)) for key, value in row.items()}


def _efficiency() -> Iterable[str]:
    table = pd.read_csv(REFERENCE / EFFICIENCY / "efficiency.csv")
    yield (
        "Both sides of a ratio run in turn; median with quartiles. Memory is counted, not metered. The first line is "
        f"of an older notebook, see [{EFFICIENCY}](../results/reference/{EFFICIENCY}/README.md)."
    )
    yield markdown(
        [
            {
                "what": row["what"],
                "paper": _papers(row),
                "ours": _measured(row),
                "repetitions": number(row["repetitions"], "g"),
                "on": row["device"],
            }
            for row in table[table["device"] != "GPU"].to_dict("records")
        ]
    )
    yield from _systems()


def _papers(row: Mapping) -> str:
    """The paper's value; of memory it says how large the card was that it trained on."""
    value = number(row["paper_value"], ".4g")
    return f"fits a card of {value} GB" if row["unit"] == "GiB" and value != "–" else value


def _measured(row: Mapping) -> str:
    if row["unit"] == "count":
        return f"{row['value']:,.0f}"
    if "lower bound" in str(row["note"]):
        return f"at least {row['value']:.3g} {row['unit']}"
    unit = "" if row["unit"] == "ratio" else f" {row['unit']}"
    quartiles = "" if pd.isna(row["low"]) else f" ({row['low']:.4g} to {row['high']:.4g})"
    return f"{row['value']:.4g}{unit}{quartiles}"


def _systems() -> Iterable[str]:
    table = pd.read_csv(REFERENCE / EFFICIENCY / "systems.csv")
    made = table.iloc[0]
    yield "### One answer of the systems of Table 3, ours beside the official code"
    yield (
        f"CPU time over that of a plain ResNet-50: one photo of 448 pixels, random weights, {made['device']}; "
        f"`benchmarks/systems.py` at commit `{made['commit'][:7]}`, {made['date'][:10]}."
    )
    yield markdown(
        [
            {
                "system": row["system"],
                "ours": number(row["ours"], ".2f"),
                "official code": number(row["official"], ".2f"),
                "that of": row["official_code"] if isinstance(row["official_code"], str) else "–",
            }
            for row in table.to_dict("records")
        ]
    )


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
