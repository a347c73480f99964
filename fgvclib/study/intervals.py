"""Differences with their uncertainty: what may be claimed of two rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isinf, sqrt

import numpy as np
import pandas as pd
from scipy.stats import t as student

from fgvclib.training.runs import Run


@dataclass(frozen=True)
class Difference:
    """A mean difference and the half width of its 95 % interval, which is infinite for a single photo."""

    mean: float
    half_width: float

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        if isinf(self.half_width):
            return f"{self.mean:+.1f}, one photo and no interval"
        return f"{self.mean:+.1f} ± {self.half_width:.1f}" + ("" if self.told_apart else ", not told apart")


def crossed_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Scores (seeds, photos) of two rows → the mean of first - second with its 95 % interval over seeds and photos.

    Both rows have the same seeds and photos, so a difference is paired twice. Seeds and photos are crossed random
    effects: the variance of the mean is (MS_seeds + MS_photos - MS_rest) / (S N) with the mean squares of the two-way
    analysis of variance, its degrees of freedom are Satterthwaite's. Of one seed the interval is over photos alone.
    """
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    seeds, photos = differences.shape
    centre = differences.mean()
    if photos == 1:
        return Difference(centre, inf)
    by_seed = differences.mean(axis=1, keepdims=True) - centre
    by_photo = differences.mean(axis=0, keepdims=True) - centre
    photo_square = seeds * np.square(by_photo).sum() / (photos - 1)
    if seeds == 1:
        return Difference(centre, student.ppf(0.975, photos - 1) * sqrt(photo_square / photos))
    seed_square = photos * np.square(by_seed).sum() / (seeds - 1)
    rest = np.square(differences - centre - by_seed - by_photo).sum() / ((seeds - 1) * (photos - 1))
    square = max(seed_square + photo_square - rest, rest)  # no less than independent answers would have
    if square == 0:  # the rows answer alike, or differ by the same everywhere
        return Difference(centre, 0.0)
    parts = [(seed_square, seeds - 1), (photo_square, photos - 1), (rest, (seeds - 1) * (photos - 1))]
    freedom = square**2 / sum(part**2 / degrees for part, degrees in parts)
    return Difference(centre, student.ppf(0.975, freedom) * sqrt(square / (seeds * photos)))


def share_interval(row: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[float, float]:
    """Scores (seeds, photos) of three rows → 95 % interval of (row - lower) / (upper - lower), of their means.

    Over photos alone, by a bootstrap of them (the middle 95 % of 2,000 draws): another seed may fall outside.
    """
    scores = np.stack([np.asarray(found, dtype=float).mean(axis=0) for found in (row, lower, upper)])
    photos = scores.shape[1]
    draws = np.random.default_rng(0).multinomial(photos, np.full(photos, 1 / photos), size=2_000)  # (draws, photos)
    means = draws @ scores.T / photos  # (draws, 3)
    shares = (means[:, 0] - means[:, 1]) / (means[:, 2] - means[:, 1])
    return float(np.quantile(shares, 0.025)), float(np.quantile(shares, 0.975))


def run_difference(first: Sequence[Run], second: Sequence[Run]) -> Difference | None:
    """`crossed_difference` of the accuracies of two rows' runs, in points, over the seeds that both have.

    None where they share no seed."""
    answers = [{run.seed: hits(run.predictions) for run in runs} for runs in (first, second)]
    seeds = sorted(set.intersection(*(set(found) for found in answers)))
    if not seeds:
        return None
    return crossed_difference(*(np.stack([found[seed] for seed in seeds]) for found in answers))


def hits(predictions: pd.DataFrame, level: float | None = None) -> np.ndarray:
    """Table of `evaluation.predict` → 100 for every photo that is recognised, 0 for the others; in order of their ids.

    With a `level`, 100 for every photo whose box has at least that IoU with the true one.
    """
    table = predictions.sort_values("image_id")
    found = table["prediction"] == table["label"] if level is None else table["iou"] >= level
    return 100.0 * found.to_numpy()
