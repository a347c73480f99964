"""Table 3 here: what a system costs, which are worth their cost, and where each of the paper's rows is."""

from dataclasses import replace

import pandas as pd
import pytest

from fgvclib import figures
from fgvclib.study.paper import paper_table
from fgvclib.study.table3 import NOT_MEASURED, RIVALS, cost, own_rates, paper_rows, pareto_front, table3
from fgvclib.systems import SYSTEMS
from fgvclib.training.runs import train_or_load


def test_front_holds_what_nothing_beats():
    costs, scores = [2, 1, 1, 3, 2, 4], [80, 70, 75, 80, 79, 81]
    beaten = [
        any(
            (costs[j] <= costs[i] and scores[j] >= scores[i]) and (costs[j], scores[j]) != (costs[i], scores[i])
            for j in range(6)
        )
        for i in range(6)
    ]
    assert pareto_front(costs, scores) == [2, 0, 5]
    assert {i for i in range(6) if not beaten[i]} == {0, 2, 5}


def searched(tried):
    """A search of one seed: system → its accuracies at 0.01, 0.03 and 0.09, as far as they were tried."""
    lines = [(name, *pair) for name, found in tried.items() for pair in zip((0.01, 0.03, 0.09), found, strict=False)]
    return pd.DataFrame(lines, columns=["system", "learning_rate", "last_accuracy"]).assign(best_accuracy=0.9)


def test_own_rate_is_the_best_after_the_last_epoch_and_the_common_one_among_equals():
    search = searched({"a": (0.5, 0.6, 0.7), "b": (0.6, 0.6, 0.1), "c": (0.6, 0.5, 0.6)})
    assert own_rates(search, common=0.03).to_dict() == {"a": 0.09, "b": 0.03, "c": 0.01}


def test_rate_is_not_chosen_where_training_diverged_or_the_search_is_not_over():
    nan = float("nan")
    search = searched({"a": (nan, 0.2, nan), "b": (0.3, 0.2, nan), "none": (nan, nan, nan), "begun": (0.4, 0.5)})
    assert own_rates(search, common=0.03).to_dict() == {"a": 0.03, "b": 0.01}
    for system in ("none", "begun"):
        assert own_rates(search[search["system"] == system], common=0.03).empty
    assert own_rates(search, common=0.01).empty  # all have tried other rates than its


def test_every_row_of_the_paper_has_a_system_or_a_reason():
    rows = paper_rows()
    assert len(rows) == 16 and set(rows["method"]) == {m for m in paper_table(3)["method"] if not m.startswith("Ours")}
    assert not set(RIVALS.values()) & set(NOT_MEASURED)
    assert ((rows["system"] != "") != (rows["why_not"] != "")).all()
    named = rows[rows["system"] != ""].set_index("system")["method"].to_dict()
    assert named == {system: method for system, method in RIVALS.items() if method in set(rows["method"])}
    assert set(RIVALS) == {*SYSTEMS, "ELoPE"}


def test_cost_of_plain_fine_tuning_is_its_backbones(tiny):
    found = cost(replace(tiny, system="finetune"), 3)
    assert found["passes"] == found["training_passes"] == 1
    assert found["parameters"] == 4_652_008 - 1_281_000 + 3 * 1280 + 3  # EfficientNet-Lite0 with another last layer
    end_to_end = cost(tiny, 3)  # a live teacher at 64 pixels beside crops of 32
    assert (end_to_end["passes"], end_to_end["training_passes"]) == (1, 1 + 4)
    assert end_to_end["million_macs"] > found["million_macs"]


def test_several_networks_cost_what_they_see(tiny):
    """Whole passes and quarters of one, in multiply-adds too: a backbone at half the side has a quarter of them."""
    sized = replace(tiny, crop_size=128, image_size=128)
    one, ise, racnn = (cost(replace(sized, system=name), 3) for name in ("finetune", "ise", "racnn"))
    assert (ise["passes"], ise["training_passes"], racnn["passes"], racnn["training_passes"]) == (3, 3, 1.5, 3)
    assert ise["million_macs"] == pytest.approx(3 * one["million_macs"])
    convolutions = 1280 * 64 * (16 + 4) / 1e6  # of the networks for squares, on 4 × 4 and 2 × 2 cells
    connected = ((64 * 16 + 3) * 1024 + (64 * 4 + 3) * 1024) / 1e6
    linear = 1280 * 3 / 1e6
    expected = 1.5 * (one["million_macs"] - linear) + (3 + 3) * linear + convolutions + connected
    assert racnn["million_macs"] == pytest.approx(expected, rel=1e-4)


def test_measured_rows_stand_apart_with_their_cost(small, untrained, splits, tmp_path):
    config = replace(small, system="finetune", epochs=1)
    runs = {"finetune": [train_or_load(config, splits, seed, tmp_path / str(seed)) for seed in (0, 1)]}
    table = table3(runs, "synthbirds")
    row = table.iloc[-1]
    mean = 50 * sum(run.metrics["accuracy"] for run in runs["finetune"])
    assert row["measured_synthbirds"] == pytest.approx(mean) and row["seeds"] == "0 1" and row["passes"] == 1
    assert table["measured_synthbirds"].notna().sum() == 1 and len(table) == len(paper_table(3)) + 1


def test_dots_of_both_recipes_stand_on_the_systems_line():
    rows = {"system": ["a", "b"], "common_accuracy": [60.0, 50.0], "own_accuracy": [58.0, 70.0]}
    (ax,) = figures.recipes_figure(pd.DataFrame(rows)).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    dots = {dot.get_label(): dot.get_offsets().tolist() for dot in ax.collections[1:]}
    assert dots == {"the common rate": [[50.0, 0.0], [60.0, 1.0]], "its own rate": [[70.0, 0.0], [58.0, 1.0]]}


def test_systems_stand_in_order_with_their_cost_and_the_front_filled():
    rows = {"method": ["a", "b", "c"], "seeds": ["0 1", "0", "0 1"], "passes": [1.0, 1.5, 2.0]}
    rows |= {"million_macs": [99.6, 150.0, 200.0], "x": [60.0, 60.0, 50.0], "x_std": [1.0, float("nan"), 3.0]}
    left, right = figures.systems_figure(pd.DataFrame(rows), "x", [0]).axes
    labels = dict(zip((text.get_text() for text in left.get_yticklabels()), left.get_yticks(), strict=True))
    assert labels == {"c": 1, "a": 2, "b, one seed": 3}  # equal accuracies, and yet no dot hides another
    (dots,) = (found for found in left.collections if len(found.get_offsets()) == 3)
    assert dots.get_offsets().tolist() == [[60.0, 2.0], [60.0, 3.0], [50.0, 1.0]]
    assert [tuple(face) == (1, 1, 1, 1) for face in dots.get_facecolors()] == [False, True, True]
    shown = {text.xy[1]: text.get_text() for text in right.texts}
    assert shown == {2: "100, 1 pass", 3: "150, 1.5 passes", 1: "200, 2 passes"}
    assert [bar.get_width() for bar in right.patches] == rows["million_macs"]
