"""Paired differences: against numbers worked out by hand."""

import math

import pytest

from fgvclib.study.intervals import paired_difference


def test_interval_of_three_pairs():
    found = paired_difference([70.0, 72.0, 77.0], [69.0, 70.0, 71.0])  # 1, 2, 6: mean 3, deviation sqrt(7)
    assert found.mean == pytest.approx(3)
    assert found.half_width == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-5)  # t(0.975, 2) of any table
    assert not found.told_apart
    assert str(found) == "+3.0 ± 6.6, not told apart"


def test_equal_differences_are_told_apart():
    assert paired_difference([3.0, 4.0], [1.0, 2.0]).told_apart


def test_one_seed_has_no_interval():
    found = paired_difference([3.0], [1.0])
    assert not found.told_apart and "one seed" in str(found)


def test_pairs_must_match():
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 2.0])
