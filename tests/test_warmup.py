"""A warm-up is trained once for all rows of Table 2 in which it is the same."""

import json
import os
import shutil

import pytest
import torch

from fgvclib.model.system import build_model
from fgvclib.study.experiment import Experiment
from fgvclib.study.table2 import ROWS
from fgvclib.training import loop
from fgvclib.training.checkpoints import WARM_UP, NotSaved, read_checkpoint, save_checkpoint
from fgvclib.training.loop import begin_epoch
from fgvclib.training.warmup import take_warm_up, warm_up_values
from fgvclib.utils.provenance import FRESH

PAIRS = [("Baseline", "No local supervision"), ("No end-to-end", "No gradient from AffNet to AttNet")]


@pytest.fixture
def experiments(small, untrained, data_folder, tmp_path, monkeypatch):
    """A function: name → an experiment with one epoch of warm-up and one of crops, in a results folder of that name."""
    monkeypatch.setenv("FGVC_DATA", str(data_folder))
    monkeypatch.setenv(FRESH, "0")  # to be set back

    def experiment(name, **overrides):
        monkeypatch.setenv("FGVC_RESULTS", str(tmp_path / name))
        return Experiment("smoke", "synthbirds", 0, small.changes() | {"epochs": 2, "warmup_epochs": 1} | overrides)

    return experiment


@pytest.fixture
def epochs_trained(monkeypatch):
    """One entry for each epoch that is trained."""
    trained, as_it_is = [], loop.train_one_epoch
    monkeypatch.setattr(loop, "train_one_epoch", lambda *args: trained.append(1) or as_it_is(*args))
    return trained


def weights(run):
    return read_checkpoint(run.checkpoint)["model"]


def test_rows_that_differ_only_in_what_crops_bring_warm_up_alike():
    experiment = Experiment("cpu", "synthbirds")
    kinds = {}
    for row in ROWS:
        kinds.setdefault(json.dumps(warm_up_values(experiment.row_config(row).values())), []).append(row)
    assert sorted(kinds.values()) == sorted([*map(list, PAIRS), ["End-to-end"]])


@pytest.mark.parametrize("rows", PAIRS)
@pytest.mark.parametrize("turn", [1, -1])
def test_a_row_that_takes_a_warm_up_ends_as_if_it_had_trained_its_own(experiments, epochs_trained, rows, turn):
    first, second = rows[::turn]
    alone = experiments("alone").run(second)
    assert len(epochs_trained) == 2
    together, said = experiments("together"), []
    given = together.run(first)
    taken = together.run(second, announce=said.append)
    assert len(epochs_trained) == 2 + 2 + 1
    assert f"{taken.folder.name}: begins after the warm-up of {given.folder.name}, which is the same" in said
    found, expected = weights(taken), weights(alone)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert taken.metrics == alone.metrics and taken.predictions.equals(alone.predictions)
    assert taken.history.drop(columns="seconds").equals(alone.history.drop(columns="seconds"))
    assert any(not torch.equal(value, found[name]) for name, value in weights(given).items())
    assert read_checkpoint(taken.checkpoint)["provenance"]["warmed_up_as"] == given.folder.name


def test_end_to_end_takes_none_of_a_row_whose_attnet_learns_otherwise(experiments, epochs_trained):
    experiment = experiments("results")
    experiment.run("No end-to-end")
    experiment.run("End-to-end")
    assert len(epochs_trained) == 4


@pytest.mark.parametrize(
    "rows", [("No end-to-end", "End-to-end"), ("No end-to-end", "No gradient from AffNet to AttNet")]
)
def test_affnet_that_learns_from_the_crop_alone_warms_up_otherwise_than_a_frozen_one(experiments, epochs_trained, rows):
    """Without L_aff it gets zero gradients, and decays."""
    experiment = experiments("results", lambda_aff=0.0)
    for row in rows:
        experiment.run(row)
    assert len(epochs_trained) == 4


def test_a_warm_up_at_another_rate_of_localisation_is_left_alone(experiments, epochs_trained):
    """It has no effect on a Baseline, which may come from a folder with another, but its optimiser holds it."""
    given = experiments("results").run("Baseline")
    other = experiments("results", localisation_learning_rate=0.0005)
    shutil.copytree(given.folder, other.run_folder("Baseline", 0))
    other.run("Baseline")
    assert len(epochs_trained) == 2
    run = other.run("No local supervision")
    assert len(epochs_trained) == 4
    assert 0.0005 in read_checkpoint(run.checkpoint)["schedule"]["base_lrs"]


def test_rows_in_which_others_find_nothing_keep_no_warm_up(experiments):
    experiment = experiments("results")
    assert not (experiment.run("Centre crop").folder / WARM_UP).exists()
    assert not (experiment.run("finetune").folder / WARM_UP).exists()


def test_a_warm_up_that_cannot_be_written_stops_no_training(experiments, monkeypatch):
    def full(path, state):
        if path.name == WARM_UP:
            raise NotSaved("no space left on device")
        save_checkpoint(path, state)

    monkeypatch.setattr(loop, "save_checkpoint", full)
    run = experiments("results").run("Baseline")
    assert run.metrics and not (run.folder / WARM_UP).exists()


def test_a_warm_up_of_other_code_or_seed_or_a_damaged_or_replaced_one_is_left_alone(experiments, epochs_trained):
    experiment = experiments("results")
    path = experiment.run("Baseline").folder / WARM_UP
    sound = path.read_bytes()

    def left_alone(seed=0):
        trained = len(epochs_trained)
        run = experiment.run("No local supervision", seed)
        run.folder.rename(run.folder.with_name(f"aside-{trained}"))
        return len(epochs_trained) == trained + 2

    assert not left_alone() and left_alone(seed=1)
    state = read_checkpoint(path)
    for other in (
        {"library": "of an earlier losses.py"},
        {"earlier": [{"library": "of an earlier losses.py"}]},
        {"versions": state["provenance"]["versions"] | {"torch": "2.1.0"}},
        {"device": "NVIDIA A100"},
        {"processor": "another"},
    ):
        torch.save(state | {"provenance": state["provenance"] | other}, path)
        assert left_alone()
    path.unlink()
    path.mkdir()  # as little to be read as a file of another user
    with pytest.warns(UserWarning, match="the warm-up is trained again"):
        assert left_alone()
    path.rmdir()
    path.write_bytes(sound[:1000])
    with pytest.warns(UserWarning, match="warmup.pt is not a readable checkpoint; the warm-up is trained again."):
        assert left_alone()
    path.write_bytes(sound)
    assert not left_alone()
    later = str(path.stat().st_mtime + 1)
    for folders in ("", " Baseline-seed0", " No-local-supervision-seed0"):
        os.environ[FRESH] = later + folders
        assert left_alone()
    os.environ[FRESH] = later + " End-to-end-seed0"
    assert not left_alone()


@pytest.mark.parametrize("kept", ["checkpoint.pt", "checkpoint.previous.pt"])
def test_what_is_trained_already_is_kept(experiments, kept):
    experiment = experiments("results")
    given, run = experiment.run("Baseline"), experiment.run("No local supervision")
    (run.folder / "metrics.json").unlink()
    run.checkpoint.rename(run.folder / kept)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.folder.iterdir())
    take_warm_up(run, [given.folder], announce=pytest.fail)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in run.folder.iterdir()) == before


@pytest.mark.parametrize("row", ROWS)
def test_attnet_runs_in_the_warm_up_only_where_it_learns(small, row):
    experiment = Experiment("smoke", "synthbirds", 0, small.changes() | {"warmup_epochs": 1})
    config = experiment.row_config(row)
    model = build_model(config, 3, pretrained=False).train()
    images = torch.randn(2, 3, config.image_size, config.image_size)
    looked = []
    for epoch in range(2):
        begin_epoch(model, epoch, config)
        looked.append(model(images).attention is not None)
    assert looked == {"Baseline": [False, False], "No local supervision": [False, True]}.get(row, [True, True])
