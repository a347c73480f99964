"""The tables as figures: Tables 1 to 3, bounds, teachers, efficiency."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fgvclib.figures.style import LINES, MARKERS, SERIES
from fgvclib.figures.training import remark_no_boxes


def table2_figure(table: pd.DataFrame, accuracy: pd.DataFrame) -> Figure:
    """Table 2 at a glance: every seed's accuracy and the paper's; beside it the boxes, where they are scored.

    accuracy: per cent, a row per seed and a column per row of the table.
    """
    boxed = table["box_acc_0.5"].notna().any()
    size = (11 if boxed else 7.5, 0.5 * len(table) + 1.6)
    figure, axes = plt.subplots(1, 1 + boxed, figsize=size, sharey=True, squeeze=False)
    left, places = axes[0, 0], np.arange(len(table))[::-1]
    for place, row in zip(places, table["description"], strict=True):
        look = {"color": SERIES[0], "linestyle": "none"}
        left.plot(accuracy[row], np.full(len(accuracy), place), "o", markersize=6, alpha=0.7, label="a seed", **look)
        left.plot(accuracy[row].mean(), place, "|", markersize=20, markeredgewidth=2.5, label="mean", **look)
    look = {"color": SERIES[1], "linestyle": "none", "markersize": 6}
    left.plot(table["paper_accuracy"], places, "D", fillstyle="none", label="paper (other photos)", **look)
    left.axvline(table["accuracy_mean"].iloc[0], color="black", linewidth=1, linestyle=":")
    left.set(yticks=places, yticklabels=table["description"], xlabel="test accuracy, %; dotted: mean of the first row")
    left.set(ylim=(-0.6, len(table) - 0.4), title=f"Accuracy, {len(accuracy)} seed{'s' * (len(accuracy) > 1)}")
    handles, names = left.get_legend_handles_labels()
    if boxed:
        right = axes[0, 1]
        right.plot(table["box_acc_0.5"], places, "o", color=SERIES[1], linestyle="none", label="crop")
        right.plot(table["teacher_box_acc_0.5"], places, "X", color=SERIES[2], linestyle="none", label="teacher's box")
        right.set(xlabel="share of test photos with IoU ≥ 0.5", title="Boxes: right is better", xlim=(-0.02, 1))
        handles, names = handles[:2] + handles[-1:] + right.get_legend_handles_labels()[0], names[:2] + names[-1:]
        names += right.get_legend_handles_labels()[1]
    figure.legend(handles, names, loc="outside lower center", ncols=5)
    return figure


def senders_figure(into_map: pd.DataFrame, into_box: pd.DataFrame, limit: float | None = None) -> Figure:
    """Gradient norms by row (index) and sender (columns) as stacked bars: into the map A, and into theta.

    `limit` is the one on a photo's classification gradient into theta, if there is one.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.5 * len(into_map) + 1.6), sharey=True)
    looks = {name: (SERIES[i], hatch) for i, (name, hatch) in enumerate(zip(into_map, ["", "//", ".."], strict=False))}
    for ax, sizes, title in zip(axes, (into_map, into_box), ("the map $A$", r"the box $\theta$"), strict=True):
        start = np.zeros(len(sizes))
        for name, values in sizes.items():
            colour, hatch = looks[name]
            look = {"color": colour, "hatch": hatch, "edgecolor": "white", "label": f"from {name}"}
            ax.barh(sizes.index, values, 0.6, left=start, **look)
            start = start + values.to_numpy()
        loudest = sizes.iloc[-1].idxmax()
        ax.set(title=f"Into {title}: the loudest of {sizes.index[-1]!r} is {loudest}", xlabel="L2 norms, stacked")
    axes[0].invert_yaxis()
    limited = rf"the classifier's gradient into $\theta$ limited to {limit:g} a photo" if limit else None
    key = axes[0].get_legend_handles_labels()
    figure.legend(*key, title=limited, loc="outside lower center", ncols=len(looks))
    return figure


def cosine_strip(cosine: np.ndarray) -> Figure:
    """One dot per photo between -1 and 1, scattered upwards so that dots do not hide each other, and their mean."""
    figure, ax = plt.subplots(figsize=(9, 2.2))
    heights = np.random.default_rng(0).uniform(-1, 1, len(cosine))
    ax.plot(cosine, heights, "o", color=SERIES[0], markersize=5, alpha=0.45, linestyle="none")
    ax.axvline(0, color="black", linewidth=1, linestyle="-")
    ax.axvline(cosine.mean(), color=SERIES[1], linestyle="--", label=f"mean {cosine.mean():+.2f}")
    ax.set(xlim=(-1.03, 1.03), ylim=(-1.5, 1.5), yticks=[], xlabel="cosine of the two gradients into $\\theta$")
    ax.set_title(f"They pull to the same side in {(cosine > 0).sum()} of {len(cosine)} photos")
    ax.legend(loc="upper left", fontsize="small")
    return figure


def bounds_figure(table: pd.DataFrame) -> Figure:
    """`bounds.bounds_table` between baseline and oracle: accuracy with its spread, and how often the box was right.

    A hollow dot is a row with a single seed.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.8, 0.5 * len(table) + 1.7), sharey=True)
    places = np.arange(len(table))[::-1]
    accuracy, single = table.set_index("row")["accuracy_mean"], (table["seeds"].str.split().str.len() == 1).to_numpy()
    look = {"fmt": "o", "capsize": 4, "color": SERIES[0]}
    for rows, face, label in ((~single, SERIES[0], "mean ± std. over seeds"), (single, "white", "a single seed")):
        if rows.any():
            spread = table.loc[rows, "accuracy_std"].fillna(0)
            left.errorbar(accuracy[rows], places[rows], xerr=spread, markerfacecolor=face, label=label, **look)
    for place, value, share in zip(places, accuracy, table["share_of_gain"], strict=True):
        if np.isfinite(share):
            left.annotate(f"{share:.0%}", (value, place), (0, 7), textcoords="offset points", ha="center", size="small")
    left.set(xlabel="test accuracy [%]; small: share of the gain", ylim=(-0.6, len(table) - 0.3))
    left.set_yticks(places, table["row"].str.replace(" (and live|with the)", "\n\\1", regex=True), fontsize="small")
    if "Oracle crop" not in accuracy:
        remark_no_boxes(right)
        return figure
    gain = accuracy["Oracle crop"] - accuracy["Baseline"]
    left.axvspan(accuracy["Baseline"], accuracy["Oracle crop"], color="#EEEEEE", label="from baseline to perfect box")
    left.set_title(f"From baseline to perfect box: {gain:+.1f} points")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize="small")
    right.barh(places, table["box_acc_0.5"], 0.5, color=SERIES[1])
    right.set(xlabel="share of test photos with IoU ≥ 0.5", title="Boxes: longer is better", xlim=(0, 1))
    return figure


def waterfall_figure(accuracy: pd.Series, half_widths: Sequence[float], seeds: str) -> Figure:
    """From row to row, what each step brings: accuracies in per cent, in the order of the steps, over the same seeds.

    half_widths: of each step's 95 % interval, NaN where there is none. A step whose interval holds zero is grey; the
    first row, from which the steps start, is an outline.
    """
    figure, ax = plt.subplots(figsize=(8.5, 0.5 * len(accuracy) + 1.2))
    places, steps = np.arange(len(accuracy))[::-1], accuracy.diff()
    starts = accuracy - steps.fillna(accuracy)
    told = zip(steps.iloc[1:], half_widths, strict=True)
    colours = [SERIES[2] if step > half else SERIES[1] if -step > half else "grey" for step, half in told]
    edges = ["black", *["none"] * (len(accuracy) - 1)]
    ax.barh(places, steps.fillna(accuracy), left=starts, color=["white", *colours], edgecolor=edges, height=0.6)
    texts = [f"{accuracy.iloc[0]:.1f}", *(f"{step:+.1f}" for step in steps.iloc[1:])]
    ax.errorbar(accuracy.iloc[1:], places[1:], xerr=half_widths, fmt="none", color="black", capsize=3)
    reach = np.nan_to_num([0.0, *half_widths])
    for place, value, text in zip(places, np.maximum(accuracy + reach, starts), texts, strict=True):
        ax.annotate(text, (value, place), (4, 0), textcoords="offset points", va="center", size="small")
    low, high = (accuracy - reach).min(), (accuracy + reach).max()
    ax.set_yticks(places, accuracy.index, fontsize="small")
    ax.set(xlim=(low - 1, high + 0.15 * (high - low) + 1))
    named = f"seed{'s' * (' ' in seeds)} {seeds}"
    ax.set_xlabel(f"test accuracy [%], {named} (the axis does not start at 0)")
    ax.set_title("What each step brings, with its 95 % interval; grey: not told apart from nothing")
    return figure


def teachers_figure(table: pd.DataFrame, trivial: float) -> Figure:
    """`teacher_maps.compare_teachers` as lines over tau, and the centre box's score to beat."""
    figure, ax = plt.subplots(figsize=(8.5, 4))
    for (name, scores), marker in zip(table.iterrows(), cycle(MARKERS)):
        ax.plot(scores.index, scores, marker=marker, label=name)
    ax.axhline(trivial, color="black", linewidth=1, linestyle=":", label="centre box 0.7")
    name, tau = table.stack().idxmax()
    ax.set(xlabel=r"threshold $\tau$", ylabel="BoxAcc@0.5, validation photos", ylim=(0, 1))
    better = int((table.max(axis=1) > trivial).sum())
    ax.set_title(
        f"At some threshold {better} of {len(table)} teachers beat a box that looks at nothing ({trivial:.2f})\n"
        rf"Best: {name} at $\tau$ = {tau:g}, {table.max(axis=None):.2f}"
    )
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", title="layer, mean")
    return figure


BENCHMARKS = {  # column of Table 3 → name, and number of test photos of the official split
    "cub200_2011": ("CUB-200-2011", 5794),
    "stanford_cars": ("Stanford Cars", 8041),
    "fgvc_aircraft": ("FGVC-Aircraft", 3333),
}


def sampling_error(percent: float, photos: int) -> float:
    """Standard error, in points, of an accuracy that was counted on so many test photos (binomial)."""
    return 100 * float(np.sqrt(percent / 100 * (1 - percent / 100) / photos))


def table3_figure(published: pd.DataFrame) -> Figure:
    """Table 3 as dots: method, `backbone` and a column for each benchmark.

    Filled dots share the paper's backbone, ResNet-101; diamonds are the paper's own two rows. The band is what chance
    alone, in the choice of the test photos, does to the first of these: plus and minus 1.96 standard errors.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10.8, 5.4))
    for ax, (column, (title, photos)) in zip(axes, BENCHMARKS.items(), strict=True):
        rows = published.dropna(subset=[column]).sort_values(column).reset_index(drop=True)
        ours, same = rows["method"].str.startswith("Ours"), rows["backbone"].str.startswith("ResNet-101")
        setting1 = rows.loc[rows["method"] == "Ours (setting 1)", column].item()
        noise = 1.96 * sampling_error(setting1, photos)
        ax.axvspan(setting1 - noise, setting1 + noise, color=SERIES[1], alpha=0.12, linewidth=0)
        for chosen, look in (
            (same & ~ours, {"marker": "o", "color": SERIES[0]}),
            (~same & ~ours, {"marker": "o", "color": SERIES[0], "markerfacecolor": "white"}),
            (ours, {"marker": "D", "color": SERIES[1]}),
        ):
            ax.plot(rows.loc[chosen, column], rows.index[chosen], linestyle="none", markersize=7, **look)
        ax.set_yticks(rows.index, rows["method"].str.replace("Ours", "Paper"), fontsize="small")
        rank = 1 + int((rows[column] > rows.loc[ours, column].max()).sum())
        ax.set_title(f"{title}:\nnumber {rank} of {len(rows)}")
        ax.set(xlabel="accuracy [%]", xlim=(rows[column].min() - 1, rows[column].max() + 1))
    return figure


def systems_figure(table: pd.DataFrame, column: str, front: Sequence[int]) -> Figure:
    """Accuracy beside the cost of one answer, best system first: means in `column`, their std. over seeds as bars.

    front: positions in the table of the systems on the Pareto front of accuracy and multiply-adds; their dots are
    filled. The dotted line is the first row's mean.
    """
    places = table[column].rank(method="first")
    alone = ~table["seeds"].str.contains(" ")
    names = table["method"] + np.where(alone, ", one seed", "")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.32 * len(table) + 1.6), sharey=True, width_ratios=(3, 2))
    left.axvline(table[column].iloc[0], color="black", linewidth=1, linestyle=":")
    look = {"color": SERIES[0], "linewidth": 1.2, "capsize": 3, "linestyle": "none"}
    left.errorbar(table[column], places, xerr=table[f"{column}_std"].fillna(0), **look)
    faces = [SERIES[0] if i in front else "white" for i in range(len(table))]
    left.scatter(table[column], places, 70, faces, edgecolors=SERIES[0], zorder=3)
    left.set(yticks=places, yticklabels=names, xlabel="test accuracy [%], mean and std. over seeds")
    left.set_title("Accuracy; filled: the Pareto front")
    right.barh(places, table["million_macs"], 0.55, color=SERIES[5])
    for place, passes, cost in zip(places, table["passes"], table["million_macs"], strict=True):
        label = f"{cost:.0f}, {passes:.3g} pass{'es' * (passes != 1)}"
        right.annotate(label, (cost, place), (4, 0), textcoords="offset points", va="center", fontsize="small")
    right.set(xlabel="million multiply-adds of one answer", title="Its cost, and passes of the backbone")
    right.set_xlim(0, 1.45 * table["million_macs"].max())
    right.grid(visible=False, axis="y")
    return figure


def recipes_figure(table: pd.DataFrame) -> Figure:
    """`table3.own_recipes`: from the accuracy with the common learning rate to that with a rate of its own."""
    table = table.sort_values("common_accuracy").reset_index(drop=True)
    figure, ax = plt.subplots(figsize=(8.5, 0.36 * len(table) + 1.4))
    ax.hlines(table.index, table["common_accuracy"], table["own_accuracy"], color="grey", linewidth=1.5, zorder=1)
    for recipe, face in (("common", "white"), ("own", SERIES[0])):
        label = "the common rate" if recipe == "common" else "its own rate"
        ax.scatter(table[f"{recipe}_accuracy"], table.index, 60, face, edgecolors=SERIES[0], label=label, zorder=2)
    ax.set_yticks(table.index, table["system"], fontsize="small")
    ax.set(
        xlabel="test accuracy [%], one seed",
        title="What a learning rate of its own changes; a dot alone: it is the common one",
    )
    ax.legend(loc="lower right", fontsize="small")
    return figure


def table1_errors(scores: Mapping[str, pd.DataFrame], levels: Sequence[float] = (0.80, 0.95)) -> Figure:
    """Share of the maps up to an error, and above an IoU: four rows of Table 1 in colour, the others grey.

    Rows that were not trained have empty tables and are left out.
    """
    shown = [f"{name} + prep." for name in ("AffNet", "SoftHull", "ResNet-S", "FFNN")]
    figure, (errors, overlaps) = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, table in sorted(scores.items(), key=lambda pair: pair[0] in shown):
        look = {"color": "0.8", "linestyle": "-", "linewidth": 1}
        if name in shown:
            i = shown.index(name)
            look = {"color": SERIES[i], "linestyle": "-", "label": name, "marker": MARKERS[i], "markersize": 5}
            look |= {"markevery": (0.05 * i, 0.2)}
        shares = 100 * np.arange(1, len(table) + 1) / max(len(table), 1)
        errors.plot(np.sort(table["sl1_error"].clip(lower=1e-7)), shares, **look)
        overlaps.plot(np.sort(table["iou"])[::-1], shares, **look)
    errors.set(title="Share of the maps up to an error: left is better", xlabel="SL1 error of a map", xscale="log")
    title = "Share of the maps above an IoU: right is better"
    overlaps.set(title=title, xlabel="IoU with the target box", xlim=(0.5, 1))
    for level in levels:
        overlaps.axvline(level, color="black", linewidth=1, linestyle=":")
    for ax in (errors, overlaps):
        ax.set(ylabel="maps, %", ylim=(0, 101))
    figure.legend(*errors.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def sharpness_figure(sweep: pd.DataFrame, authors: float, sharp: float) -> Figure:
    """What the sharpness (index, rising) does: iou_gt_0.95, silent, gradient_mean and gradient_median (over maps)."""
    figure, (hits, gradients) = plt.subplots(1, 2, figsize=(11, 3.9))
    hits.plot(sweep.index, 100 * sweep["iou_gt_0.95"], marker="o", linestyle="-", label="maps with IoU > 0.95")
    hits.plot(sweep.index, 100 * sweep["silent"], marker="s", linestyle="--", label="silent maps")
    first, last = 100 * sweep.iloc[0], 100 * sweep.iloc[-1]
    good, silent = (f"{first[name]:.0f} → {last[name]:.0f} %" for name in ("iou_gt_0.95", "silent"))
    hits.set_title(f"k = {sweep.index[0]:g} → {sweep.index[-1]:g}: good boxes {good}, silent maps {silent}")
    hits.set(ylabel="maps, %", ylim=(0, 103))
    gradients.plot(sweep.index, sweep["gradient_mean"], marker="o", linestyle="-", label="mean over the maps")
    gradients.plot(sweep.index, sweep["gradient_median"], marker="s", linestyle="--", label="median over the maps")
    gradients.set_title("Where the lines part, few maps carry the gradient")
    gradients.set_ylabel(r"mean $|\partial\theta / \partial A|$ over the cells")
    gradients.set_yscale("symlog", linthresh=1e-4)
    for ax in (hits, gradients):
        ax.axvline(authors, color="black", linewidth=1, linestyle=":", label=f"authors' k = {authors:g}")
        ax.axvline(sharp, color="black", linewidth=1, linestyle="-.", label=f"Table 1's k = {sharp:g}")
        ax.set(xscale="log", xlabel="sharpness $k$")
    for ax in (hits, gradients):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize="small")
    return figure


def competitors_figure(table: pd.DataFrame) -> Figure:
    """Inference time over that of the classifier alone, one bar per system: columns value, low, high of `ratios`."""
    figure, ax = plt.subplots(figsize=(8.5, 0.9 + 0.45 * len(table)))
    errors = [table["value"] - table["low"], table["high"] - table["value"]]
    colours = [SERIES[1] if name == "ours" else SERIES[0] for name in table.index]
    hatches = ["//" if name == "ours" else "" for name in table.index]
    ax.barh(table.index, table["value"], xerr=errors, color=colours, hatch=hatches)
    for row, value in enumerate(table["high"]):
        ax.text(value, row, f"  {table['value'].iloc[row]:.2f}", va="center")
    ax.axvline(1, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="time / time of the classifier alone", xlim=(0, 1.12 * table["high"].max()))
    ax.set_title("What localisation costs at test time (median, with quartiles)")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return figure


def growth_figure(batch: pd.DataFrame, size: pd.DataFrame) -> Figure:
    """Time (above) and memory (below) of a training step over batch and input size: tables of `growth.over_steps`."""
    figure, axes = plt.subplots(2, 2, figsize=(8.5, 5.8), sharex="col")
    for (time, memory), table, power, name in zip(axes.T, (batch, size), (1, 2), ("photos", "pixels"), strict=True):
        x = table.iloc[:, 0]
        unit, scale = ("s", 1e-3) if table["ours_ms"].max() >= 1000 else ("ms", 1)
        time.plot(x, scale * table["baseline_ms"], "o-", color=SERIES[0], label="baseline")
        time.plot(x, scale * table["ours_ms"], "s--", color=SERIES[1], label="end-to-end")
        memory.plot(x, table["gib"], "s--", color=SERIES[1])
        more, longer, larger = (_factor(table[column]) for column in (table.columns[0], "ours_ms", "gib"))
        time.set_title(f"{more**power:.3g} × the {name}: {longer:.1f} × the time")
        memory.set_title(f"{larger:.1f} × the memory")
        time.set(ylabel=f"training step [{unit}]", ylim=(0, 1.1 * scale * table["ours_ms"].max()), xticks=x)
        memory.set(ylabel="memory [GiB]", ylim=(0, 1.1 * table["gib"].max()), xticks=x)
        memory.set_xlabel({"photos": "photos in a batch", "pixels": "side of the photo [px]"}[name])
    axes[0, 0].legend(fontsize="small", loc="lower right")
    return figure


def scale_figure(classes: pd.DataFrame, photos: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Times of `growth.over_classes` and `growth.over_photos`, on logarithmic axes beside a line that is linear.

    names: what a column is called (`growth.NAMES`).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.8, 4.2))
    for ax, table in ((left, classes), (right, photos)):
        x, times = table.iloc[:, 0], table.iloc[:, 1:].drop(columns="mib", errors="ignore")
        for i, column in enumerate(times):
            ax.loglog(x, times[column], color=SERIES[i], marker=MARKERS[i], linestyle=LINES[i], label=names[column])
        ax.loglog(
            x,
            times.min(axis=None) / 2 * x / x.iloc[0],
            color="black",
            linewidth=1,
            linestyle=":",
            label="linear, to compare",
        )
        ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    left.set(xlabel="classes", ylabel="time [ms]")
    left.set_title(
        f"{_factor(classes['classes']):g} × the classes: {_factor(classes['loss_ms']):.1f} × the loss's time"
    )
    right.set(xlabel="photos of the data set", ylabel="time [s]")
    factor, seconds = _factor(photos["photos"]), photos.filter(like="_s").sum(axis=1)
    right.set_title(
        f"{factor:g} × the photos: {_factor(seconds):.0f} × the time, {_factor(photos['mib']):.0f} × the memory"
    )
    return figure


def _factor(values: pd.Series) -> float:
    """The last value over the first."""
    return values.iloc[-1] / values.iloc[0]
