"""Table 1's rows: what is trained, with which seeds, and what a row without training says."""

import numpy as np
import pytest
import torch

from fgvclib.config import load_config
from fgvclib.study import table1

MAPS = {"train": torch.rand(12, 1, 14, 14), "test": torch.rand(6, 1, 14, 14)}


def contestants(seeds=(0,), **values) -> dict[str, table1.Contestant]:
    config = load_config("smoke", table1_steps=2, table1_resnet_s_steps=1, table1_runtime_s=0.0, **values)
    return {contestant.name: contestant for contestant in table1.contestants(config, seeds)}


def test_split_and_sharpness_can_be_told_apart():
    rows = contestants()
    with_prep = {name: row.sharpness for name, row in rows.items() if row.preprocess}
    assert {name for name, k in with_prep.items() if k == 10} == {
        f"{model}, authors' sharpness + prep." for model in ("FFNN", "ResNet-S", "AffNet")
    }
    assert {k for k in with_prep.values()} == {10, 1000} and len(rows) == 12


def test_row_has_mean_and_standard_deviation_over_the_seeds():
    row, first = table1.evaluate_contestant(contestants([3, 5])["FFNN"], MAPS, 0.3)
    errors = []
    for seed in (3, 5):
        torch.manual_seed(seed)
        network = table1.FFNN(14, False, 0.3, 1000.0)
        table1.fit(network, MAPS["train"], 2, 0.3, seed=seed)
        errors.append(table1.score(network, MAPS["test"])["sl1_error"].mean())
    assert errors[0] != errors[1] and row["seeds"] == "3 5"
    assert row["sl1_error"] == pytest.approx(np.mean(errors))
    assert row["sl1_error_std"] == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5)
    assert first["sl1_error"].mean() == pytest.approx(errors[0])


def test_single_seed_has_no_spread_and_resnets_train_with_the_first_seed():
    rows = contestants([3, 5])
    assert rows["ResNet-S"].seeds == (3,) and rows["AffNet"].seeds == (3, 5)
    row, _ = table1.evaluate_contestant(rows["ResNet-S"], MAPS, 0.3)
    assert np.isfinite(row["sl1_error"]) and np.isnan(row["sl1_error_std"])


@pytest.mark.parametrize("profile, steps", [("smoke", 0), ("cpu", 0), ("photos", 0), ("paper", 3000)])
def test_resnet50_is_trained_in_full_or_not_at_all(profile, steps):
    assert load_config(profile).table1_resnet50_steps == steps


def test_row_without_training_has_parameters_and_runtime_alone(monkeypatch):
    monkeypatch.setattr(table1, "fit", pytest.fail)
    row, scores = table1.evaluate_contestant(contestants()["ResNet-50 + prep."], MAPS, 0.3)
    assert row["parameters"] == 23_516_229 and row["runtime_ms_batch1"] > 0 and row["seeds"] == "not trained here"
    assert all(np.isnan(value) for name, value in row.items() if name.startswith(("sl1", "iou"))) and scores.empty
