"""Paired differences: against numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from fgvclib.study.intervals import Difference, crossed_difference


def test_difference_is_told_apart_where_its_interval_leaves_zero_out():
    assert str(Difference(3.0, 6.57)) == "+3.0 ± 6.6, not told apart"
    assert str(Difference(-3.0, 2.0)) == "-3.0 ± 2.0"


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
