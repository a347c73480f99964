"""The search for a learning rate: three for every system, on the validation part, each trained once."""

import csv
import runpy
import sys

import pandas as pd
import pytest

from fgvclib.config import PROJECT, load_config, results_folder
from fgvclib.study import elope
from fgvclib.study.experiment import Experiment
from fgvclib.study.intervals import run_difference
from fgvclib.study.table3 import own_recipes, searched_rates
from fgvclib.training import loop, runs

rates = runpy.run_path(PROJECT / "benchmarks" / "rates.py")


def fail(*args, **kwargs):
    raise AssertionError("must not be called")


@pytest.fixture
def overrides(small, untrained, data_folder, tmp_path, monkeypatch):
    """What makes the smoke profile tiny, with two epochs; results go to a folder of their own."""
    monkeypatch.setenv("FGVC_DATA", str(data_folder))
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    return small.changes()


def history(overrides, rate, system="finetune"):
    folder = results_folder(load_config("smoke", "synthbirds", **overrides | {"learning_rate": rate}))
    with (folder / "runs" / f"{system}-seed0" / "history.csv").open() as file:
        return [float(line["validation_accuracy"]) for line in csv.DictReader(file)]


def as_options(overrides):
    return [text for key, value in overrides.items() for text in ("--set", f"{key}={value}")]


def search(overrides, *systems):
    return rates["search"](list(systems), "smoke", "synthbirds", 0, overrides, lambda text: None)


def test_three_rates_are_trained_once_without_a_look_at_the_test_split(overrides, monkeypatch):
    common = Experiment("smoke", "synthbirds", 0, overrides)
    before = common.run("finetune").checkpoint.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_predict_test", fail)
        table = search(overrides, "finetune")
        assert common.run("finetune").checkpoint.stat().st_mtime_ns == before
        assert table["learning_rate"].tolist() == [0.001, 0.003, 0.009]
        for _, row in table.iterrows():
            accuracy = history(overrides, row["learning_rate"])
            assert len(accuracy) == 2 and row["seed"] == 0
            assert row["best_accuracy"] == pytest.approx(max(accuracy)) == pytest.approx(accuracy[row["epoch"] - 1])
            assert row["last_accuracy"] == pytest.approx(accuracy[-1])
        patch.setattr(loop, "train_one_epoch", fail)
        assert search(overrides, "finetune").equals(table)
    with monkeypatch.context() as patch:  # the scores come later, without training
        patch.setattr(loop, "train_one_epoch", fail)
        other = Experiment("smoke", "synthbirds", 0, overrides | {"learning_rate": 0.001})
        assert not other.has_run("finetune") and other.run("finetune").metrics["accuracy"] >= 0


def test_search_for_elope_does_not_look_at_the_test_split_either(overrides, monkeypatch):
    """Its boxes need a Baseline with each rate."""
    monkeypatch.setattr(runs, "_predict_test", fail)
    monkeypatch.setattr(elope, "EPOCHS", 1)
    assert len(search(overrides | {"epochs": 1}, "ELoPE")) == 3


def test_run_of_the_chosen_rate_alone_is_scored(overrides, monkeypatch):
    overrides |= {"epochs": 1}
    base = Experiment("smoke", "synthbirds", 0, overrides)
    table = search(overrides, "finetune")
    table["last_accuracy"] = [0.2, 0.4, 0.6]
    monkeypatch.setattr(loop, "train_one_epoch", fail)
    rates["score"](table, base, lambda text: None)
    recipes = own_recipes(table, base)
    assert recipes.empty  # the common rate has no scores yet
    assert own_recipes(table.head(1), base).empty  # a search that is not over
    scored = [base.with_values(learning_rate=rate).has_run("finetune") for rate in table["learning_rate"]]
    assert scored == [False, False, True]


@pytest.mark.parametrize("rate", [0.001, 0.003, 0.009])
def test_search_of_another_seed_that_is_not_over_is_neither_scored_nor_in_the_way(overrides, monkeypatch, rate):
    overrides |= {"epochs": 1}
    base = Experiment("smoke", "synthbirds", [0, 1], overrides)
    begun = base.with_values(learning_rate=rate)
    accuracy = begun.run("finetune", 1, scored=False).history["validation_accuracy"].iloc[-1]
    line = {"system": "finetune", "learning_rate": rate, "seed": 1, "last_accuracy": accuracy}
    base.save_table(pd.DataFrame([line]), "rates")
    monkeypatch.setattr(sys, "argv", ["rates.py", "--profile", "smoke", *as_options(overrides), "finetune"])
    rates["main"]()
    found = [base.with_values(learning_rate=rate) for rate in (0.001, 0.003, 0.009)]
    assert [experiment.has_run("finetune", 1) for experiment in found] == [False] * 3
    assert sum(experiment.has_run("finetune", 0) for experiment in found) == 1


def test_trouble_while_scoring_is_told_in_a_sentence(overrides, monkeypatch, capsys):
    """As on a full disk."""
    overrides |= {"epochs": 1}

    def predict(*_):
        raise OSError("No space left on device.")

    monkeypatch.setattr(runs, "_predict_test", predict)
    monkeypatch.setattr(sys, "argv", ["rates.py", "--profile", "smoke", *as_options(overrides), "finetune"])
    with pytest.raises(SystemExit) as end:
        rates["main"]()
    assert end.value.code == 2 and "No space left on device." in capsys.readouterr().err


def test_recipes_are_compared_with_the_classifier_of_the_same_recipe(overrides):
    overrides |= {"epochs": 1}
    base = Experiment("smoke", "synthbirds", 0, overrides)
    chosen = {"Baseline": 0.001, "finetune": 0.009}
    for system, rate in chosen.items():
        base.run(system), base.with_values(learning_rate=rate).run(system)
    lines = [
        {"system": system, "learning_rate": rate, "seed": 0, "last_accuracy": 0.5 + (rate == own)}
        for system, own in chosen.items()
        for rate in (0.001, 0.003, 0.009)
    ]
    lines += [line | {"learning_rate": 10 * line["learning_rate"]} for line in lines]  # around another common rate
    recipes = own_recipes(pd.DataFrame(lines), base).set_index("system")
    assert [name for name in recipes if isinstance(name, float)] == [0.001, 0.003, 0.009]
    assert recipes["own_rate"].to_dict() == chosen and recipes.loc["finetune", 0.009] == 150
    slow, fast = (base.with_values(learning_rate=rate) for rate in (0.001, 0.009))
    assert recipes.loc["finetune", "own_accuracy"] == 100 * fast.find("finetune").metrics["accuracy"]
    common = run_difference([base.find("finetune")], [base.find("Baseline")])
    own = run_difference([fast.find("finetune")], [slow.find("Baseline")])
    assert recipes["own_gain"].to_dict() == {"Baseline": "", "finetune": str(own)}
    assert recipes.loc["finetune", "common_gain"] == str(common)


def test_rate_that_diverges_ends_no_search_and_is_never_chosen(overrides, monkeypatch):
    overrides |= {"epochs": 1}
    base, told, real = Experiment("smoke", "synthbirds", 0, overrides), [], runs.train

    def train(config, *args, **kwargs):
        if config.learning_rate == 0.009:
            raise loop.NonFiniteLoss("the loss is nan.")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(runs, "train", train)
    table = rates["search"](["finetune"], "smoke", "synthbirds", 0, overrides, told.append)
    assert table["learning_rate"].tolist() == [0.001, 0.003, 0.009]
    assert table["last_accuracy"].isna().tolist() == [False, False, True] and table["epoch"].tolist() == [1, 1, 0]
    assert "finetune diverges at the learning rate 0.009: the loss is nan." in told
    rates["score"](table, base, told.append)
    base.run("finetune")
    assert own_recipes(table, base)[0.009].tolist() == [0.0]


def test_lines_of_other_systems_stay(overrides):
    overrides |= {"epochs": 1}
    folder = results_folder(load_config("smoke", "synthbirds", **overrides))
    folder.mkdir(parents=True)
    kept = {"system": "dcl", "learning_rate": 0.003, "seed": 0, "best_accuracy": 0.5, "epoch": 1, "last_accuracy": 0.5}
    pd.DataFrame([kept, kept | {"system": "finetune", "best_accuracy": 7.0}]).to_csv(folder / "rates.csv", index=False)
    table = search(overrides, "finetune")
    assert table["system"].tolist() == ["dcl", *["finetune"] * 3]
    assert table.iloc[0].to_dict() == kept and table["best_accuracy"].max() <= 1
    assert pd.read_csv(folder / "rates.csv").equals(table)


def test_first_of_equal_epochs_is_named():
    found = rates["best"](pd.DataFrame({"epoch": [1, 2, 3, 4], "validation_accuracy": [0.2, 0.6, 0.6, 0.4]}))
    assert found == {"best_accuracy": 0.6, "epoch": 2, "last_accuracy": 0.4}


def test_rates_are_a_third_and_three_times_the_profiles():
    assert searched_rates(0.01) == [0.00333, 0.01, 0.03] and searched_rates(0.12345)[1] == 0.12345


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["nobody"], "'nobody' is not a row"),
        (["cal-one-look"], "trains as cal does; search that one"),
        (["finetune", "--set", "validation_fraction=0"], "no validation part"),
    ],
)
def test_what_cannot_be_searched_is_told_before_anything_is_trained(overrides, arguments, told, monkeypatch, capsys):
    monkeypatch.setattr(runs, "train", fail)
    monkeypatch.setattr(sys, "argv", ["rates.py", "--profile", "smoke", *as_options(overrides), *arguments])
    with pytest.raises(SystemExit) as end:
        rates["main"]()
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_data_that_are_missing_are_told_in_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FGVC_FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["rates.py", "--profile", "smoke", "--dataset", "folder", "finetune"])
    with pytest.raises(SystemExit) as end:
        rates["main"]()
    assert end.value.code == 2 and "has no folder train" in capsys.readouterr().err
