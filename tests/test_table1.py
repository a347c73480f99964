"""Table 1's rows: what is trained, with which seeds, and what a row without training says."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fgvclib.config import load_config
from fgvclib.model.geometry import attention_to_box, box_to_theta
from fgvclib.study import table1

MAPS = {"train": torch.rand(12, 1, 14, 14), "test": torch.rand(6, 1, 14, 14)}


def contestants(seeds=(0,), **values) -> dict[str, table1.Contestant]:
    config = load_config("smoke", table1_steps=2, table1_resnet_s_steps=1, **values)
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
    contestant = contestants()["ResNet-50 + prep."]
    row, scores = table1.evaluate_contestant(contestant, MAPS, 0.3)
    assert row["parameters"] == 23_516_229 and row["seeds"] == "not trained here"
    assert table1.add_runtimes(table1.table1([row]), [contestant], MAPS)["runtime_ms_batch1"][0] > 0
    assert all(np.isnan(value) for name, value in row.items() if name.startswith(("sl1", "iou"))) and scores.empty


def test_shifts_move_every_cell_and_fill_with_the_minimum():
    maps = torch.rand(3, 1, 5, 5)
    found = table1.shifts(maps)
    for b, i, j in np.ndindex(3, 3, 3):
        expected = np.full((5, 5), maps[b].min())
        for row, column in np.ndindex(5, 5):
            if 0 <= row + i - 1 < 5 and 0 <= column + j - 1 < 5:
                expected[row, column] = maps[b, 0, row + i - 1, column + j - 1]
        np.testing.assert_allclose(found[b, i, j, 0], expected, atol=1e-6)


def test_fit_takes_the_steps_of_a_plain_loop_over_shifted_maps():
    torch.manual_seed(0)
    network, other = table1.FFNN(14), table1.FFNN(14)
    other.load_state_dict(network.state_dict())
    maps, generator = table1.symmetries(MAPS["train"]), torch.Generator().manual_seed(4)
    optimiser = torch.optim.Adam(other.parameters(), 1e-3, betas=(0.9, 0.95))
    losses = []
    for rate in (1e-3, 7.5e-4, 2.5e-4):  # half a cosine over three steps
        optimiser.param_groups[0]["lr"] = rate
        other.train(len(losses) < 1.5)
        batch = table1.shifted(maps[torch.randint(len(maps), (8,), generator=generator)], generator)
        loss = F.smooth_l1_loss(other(batch), box_to_theta(attention_to_box(batch, 0.3)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert table1.fit(network, MAPS["train"], 3, 0.3, 8, 1e-3, seed=4) == pytest.approx(losses, rel=1e-4)
