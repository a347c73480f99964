"""Paired differences: against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fgvclib.study.intervals import Difference, crossed_difference, hits, share_interval


def test_difference_is_told_apart_where_its_interval_leaves_zero_out():
    assert str(Difference(3.0, 6.57)) == "+3.0 ± 6.6, not told apart"
    assert str(Difference(-3.0, 2.0)) == "-3.0 ± 2.0"


def test_photos_are_hit_in_the_order_of_their_ids_by_class_or_by_box():
    columns = {"image_id": [3, 1, 2], "label": [0, 1, 2], "prediction": [0, 1, 0], "iou": [0.5, np.nan, 0.7]}
    assert hits(pd.DataFrame(columns)).tolist() == [100, 0, 100]
    assert hits(pd.DataFrame(columns), 0.5).tolist() == [0, 100, 100]


def test_seeds_that_agree_on_every_photo_leave_the_photos_interval():
    rng = np.random.default_rng(0)
    first, second = np.repeat(rng.integers(0, 2, (2, 1, 50)), 3, axis=1)
    alone = crossed_difference(first[:1], second[:1])
    assert crossed_difference(first, second).mean == pytest.approx(alone.mean)
    assert crossed_difference(first, second).half_width == pytest.approx(alone.half_width)


def test_one_seed_gives_the_paired_interval_over_photos():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 1, 50))
    found = crossed_difference(first, second)
    low, high = stats.ttest_rel(first[0], second[0]).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


@pytest.mark.parametrize("seeds", [2, 3])
def test_crossed_interval_is_what_the_mean_squares_give(seeds):
    """The two-way analysis of variance in loops; with two seeds, two of its squares share their degrees of freedom."""
    photos, rng = 5, np.random.default_rng(3)
    table = rng.normal(0, 3, (seeds, 1)) + rng.normal(0, 4, (1, photos)) + rng.normal(0, 2, (seeds, photos))
    mean = sum(table.flat) / (seeds * photos)
    rows = [sum(row) / photos - mean for row in table]
    columns = [sum(column) / seeds - mean for column in table.T]
    of_seeds = photos * sum(row**2 for row in rows) / (seeds - 1)
    of_photos = seeds * sum(column**2 for column in columns) / (photos - 1)
    left = [table[s, p] - mean - rows[s] - columns[p] for s in range(seeds) for p in range(photos)]
    of_rest = sum(value**2 for value in left) / ((seeds - 1) * (photos - 1))
    square = of_seeds + of_photos - of_rest
    assert square > of_rest  # else the interval is that of independent answers
    uncertain = of_seeds**2 / (seeds - 1) + of_photos**2 / (photos - 1) + of_rest**2 / ((seeds - 1) * (photos - 1))
    half_width = stats.t.ppf(0.975, square**2 / uncertain) * (square / (seeds * photos)) ** 0.5
    found = crossed_difference(table, np.zeros_like(table))
    assert (found.mean, found.half_width) == pytest.approx((mean, half_width))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_rows_that_answer_alike_differ_by_nothing(seeds):
    answers = 100.0 * np.random.default_rng(0).integers(0, 2, (seeds, 50))
    assert str(crossed_difference(answers, answers)) == "+0.0 ± 0.0, not told apart"


def test_crossed_interval_holds_the_truth_19_times_of_20():
    """Photos, seeds and chance of known sizes: other photos and other seeds must fall into the interval."""
    rng, hits, tries = np.random.default_rng(1), 0, 1500
    for _ in range(tries):
        differences = 2 + rng.normal(0, 1, (3, 1)) + rng.normal(0, 8, (1, 60)) + rng.normal(0, 10, (3, 60))
        found = crossed_difference(differences, np.zeros_like(differences))
        hits += abs(found.mean - 2) <= found.half_width
    assert 0.935 < hits / tries < 0.985


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(2)
    alike = np.repeat(rng.normal(0, 5, (1, 200)), 3, axis=0) + rng.normal(0, 1, (3, 200))
    apart = alike + np.array([[-4.0], [0.0], [4.0]])
    none = np.zeros_like(alike)
    assert crossed_difference(apart, none).half_width > 3 * crossed_difference(alike, none).half_width


def test_a_single_photo_has_no_interval():
    found = crossed_difference(np.array([[100.0], [100.0]]), np.array([[0.0], [0.0]]))
    assert str(found) == "+100.0, one photo and no interval" and not found.told_apart


def test_bounds_have_shares_without_spread():
    lower, upper = np.zeros((2, 300)), np.full((2, 300), 100.0)
    assert share_interval(lower, lower, upper) == (0.0, 0.0) and share_interval(upper, lower, upper) == (1.0, 1.0)


def test_interval_of_a_share_is_that_of_a_ratio_of_means():
    """By the delta method: the variance of a share s is that of mean(row - lower - s (upper - lower)) / mean gain²."""
    random = np.random.default_rng(1)
    hit = [100.0 * (random.random((3, 4000)) < share) for share in (0.7, 0.5, 0.8)]
    row, lower, upper = (found.mean(axis=0) for found in hit)
    share = (row - lower).mean() / (upper - lower).mean()
    rest = row - lower - share * (upper - lower)
    half = 1.96 * rest.std(ddof=1) / np.sqrt(4000) / (upper - lower).mean()
    assert share_interval(*hit) == pytest.approx((share - half, share + half), abs=0.1 * half)
