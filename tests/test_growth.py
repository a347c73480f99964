"""What is measured as it grows: that it is what it says, and the arithmetic of the exponents; no timing is judged."""

import multiprocessing
import os
import sys

import numpy as np
import pandas as pd
import pytest

from fgvclib.config import load_config
from fgvclib.data.cub200 import FOLDER
from fgvclib.data.splits import load_splits
from fgvclib.study import growth
from fgvclib.training.evaluation import confusion


def test_photos_have_a_row_each_and_the_data_root_is_as_before():
    before = os.environ["FGVC_DATA"]
    table = growth.over_photos([120, 160])
    assert list(table) == ["photos", "index_s", "splits_s", "checksums_s", "mib"]
    assert list(table["photos"]) == [120, 160] and (table > 0).all(axis=None)
    assert os.environ["FGVC_DATA"] == before


def test_drawn_index_is_a_whole_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("FGVC_DATA", str(tmp_path))
    growth.write_index(tmp_path / FOLDER, 160)
    splits = load_splits(load_config("paper", "cub200", validation_fraction=0.25))
    assert (len(splits.train), len(splits.validation), len(splits.test), len(splits.class_names)) == (60, 20, 80, 20)
    assert splits.test[["x1", "y1", "x2", "y2"]].iloc[0].tolist() == [2 / 16, 2 / 16, 10 / 16, 10 / 16]


def test_classes_have_a_row_each_and_all_pairs_end_where_they_would_not_fit(tiny, monkeypatch):
    monkeypatch.setattr(growth, "MOST_FOR_ALL_PAIRS", 4)
    drawn = set()
    table = growth.over_classes(tiny, [3, 5], 0, lambda counts, names: drawn.add((counts.shape, len(names))))
    assert list(table) == ["classes", "loss_ms", "table_ms", "figure_ms", "all_pairs_ms"]
    assert table["all_pairs_ms"].notna().tolist() == [True, False]
    assert drawn == {((3, 3), 3), ((5, 5), 5)}


def test_image_size_takes_the_crop_along(tiny, monkeypatch):
    sizes = []
    monkeypatch.setattr(growth, "TrainingStep", lambda config, teacher="live": lambda: None)
    monkeypatch.setattr(growth, "training_memory", lambda config, precision: sizes.append(config) or {"value": 1.0})
    table = growth.over_steps(tiny, "image_size", [64, 96], 0)
    assert [(config.image_size, config.crop_size) for config in sizes] == [(64, 32), (96, 48)]
    assert list(table) == ["image_size", "ours_ms", "baseline_ms", "gib"]


def ends_early(rank, count, config, place, together, answers):
    """In place of a process's steps: the first one waits for the others, one of which fails."""
    if rank == 1:
        sys.exit(3)
    together.wait()


def test_process_that_fails_ends_the_others(tiny, monkeypatch):
    monkeypatch.setattr(growth, "_timed_steps", ends_early)
    with pytest.raises(RuntimeError, match="^One of 3 processes that train together ended with exit status 3: "):
        growth.over_processes(tiny, 3)
    assert not multiprocessing.active_children()


def test_exponents_are_those_of_the_last_two_sizes_that_are_known():
    n = np.array([10.0, 100, 1000, 10_000])
    table = pd.DataFrame({"n": n, "square": 3 * n**2, "linear": 5 * n, "short": [1, 10, 1000, np.nan], "fixed": 7.0})
    found = growth.exponents([table]).set_index("what")
    assert found["exponent"].to_dict() == pytest.approx({"square": 2, "linear": 1, "short": 2, "fixed": 0})
    assert found.loc["short", ["over", "from", "to"]].tolist() == ["n", 100, 1000]


def test_one_size_alone_has_no_exponent():
    """As where notebook 08 is run with a batch that cannot be made smaller."""
    assert growth.exponents([pd.DataFrame({"n": [2], "seconds": [0.1]})]).empty


@pytest.mark.parametrize("classes, side", [(7, 7), (500, 500), (501, 251), (1300, 434)])
def test_confusion_counts_as_a_loop_does_and_stays_small(classes, side):
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(classes, size=(2, 300))
    order = rng.permutation(classes)
    shared, place = -(-classes // side), order.tolist()
    expected = np.zeros((side, side), dtype=int)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[place.index(label) // shared, place.index(prediction) // shared] += 1
    assert np.array_equal(confusion(labels, predictions, order), expected)
