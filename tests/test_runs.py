"""Runs on disk: trained once, then loaded; the test split looked at once; metrics.json last."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from math import isnan, nan

import pandas as pd
import pytest
import torch

from fgvclib.study.table2 import table2
from fgvclib.training import loop, runs
from fgvclib.training.checkpoints import read_checkpoint
from fgvclib.training.evaluation import predict, summarise
from fgvclib.training.runs import describe_epoch, train_or_load
from fgvclib.utils.files import locked

FILES = {"checkpoint.pt", "history.csv", "trajectories.csv", "predictions.csv", "metrics.json"}


@pytest.fixture(scope="module")
def finished(tiny, splits, tmp_path_factory):
    """A run, what it announced, and which tables were predicted on."""
    said, looked_at = [], []

    def recorded(model, loader, photos, *args, **options):
        looked_at.append(next(name for name in ("train", "validation", "test") if photos is getattr(splits, name)))
        return predict(model, loader, photos, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "predict", recorded)
        patch.setattr(loop, "predict", recorded)
        run = train_or_load(tiny, splits, 0, tmp_path_factory.mktemp("runs") / "end-to-end", said.append)
    return run, said, looked_at


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run's folder, to be changed."""
    return shutil.copytree(finished[0].folder, tmp_path / "copy")


def no_training(*args, **options):
    raise AssertionError("this run should not train")


def test_folder_holds_the_files_that_the_lesson_reads(finished):
    assert FILES <= {path.name for path in finished[0].folder.iterdir()}
    assert not list(finished[0].folder.glob("*.tmp"))


def test_test_split_is_looked_at_once_at_the_end(finished):
    assert finished[2] == ["validation", "validation", "test"]


def test_one_line_is_announced_per_epoch(finished):
    said = [line for line in finished[1] if "epoch " in line]
    assert len(said) == 2 and "epoch 1/2" in said[0] and "epoch 2/2" in said[1]


def test_epochs_line_is_readable():
    record = {"epoch": 3, "train_total": 2.3149, "train_accuracy": 0.5421, "validation_accuracy": 0.51,
              "validation_mean_iou": 0.456, "seconds": 12.6}  # fmt: skip
    expected = "epoch 3/10  loss 2.315  train 54.2%  validation 51.0%  IoU 0.46  13 s"
    assert describe_epoch(record, 10) == expected
    del record["validation_mean_iou"]
    assert describe_epoch(record, 10) == expected.replace("IoU 0.46  ", "")


def test_run_and_table_without_true_boxes_say_so(tiny, splits, finished, tmp_path):
    """All but the boxes as in the finished run: the weights are the same, localisation is not scored."""
    bare = {part: getattr(splits, part).assign(x1=nan, y1=nan, x2=nan, y2=nan) for part in ("validation", "test")}
    said = []
    run = train_or_load(tiny, replace(splits, **bare), 0, tmp_path / "run", said.append)
    assert said[0].endswith("there are no true boxes, so localisation is not scored") and "IoU" not in said[1]
    assert run.metrics == {"accuracy": finished[0].metrics["accuracy"]}
    row = table2({"End-to-end": [run]}).iloc[0]
    assert row["accuracy_mean"] == pytest.approx(100 * run.metrics["accuracy"]) and isnan(row["mean_iou"])


def test_second_call_loads_without_training(tiny, splits, finished, monkeypatch):
    monkeypatch.setattr(runs, "train", no_training)
    monkeypatch.setattr(runs, "predict", no_training)
    run = train_or_load(tiny, splits, 0, finished[0].folder)
    assert run.metrics == finished[0].metrics
    assert run.history.equals(finished[0].history)


def test_metrics_are_those_of_the_saved_predictions_and_model(finished, splits, tiny):
    run = finished[0]
    assert run.metrics == pytest.approx(summarise(run.predictions))
    assert run.predictions["path"].tolist() == splits.test["path"].tolist()
    assert "teacher_mean_iou" in run.metrics
    assert not run.model.training
    stored = torch.load(run.folder / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(value, stored[name]) for name, value in run.model.state_dict().items())
    again = predict(run.model, runs.evaluation_loader(splits.test, tiny), splits.test)
    assert again["prediction"].tolist() == run.predictions["prediction"].tolist()


def test_history_and_trajectories_have_a_row_per_epoch(finished):
    run = finished[0]
    assert run.history["epoch"].tolist() == [1, 2]
    assert run.trajectories["epoch"].tolist() == [1, 1, 1, 2, 2, 2]
    assert list(run.trajectories.columns) == ["row", "x1", "y1", "x2", "y2", "epoch"]


def test_metrics_name_the_configuration_and_seed(finished, tiny):
    stored = json.loads((finished[0].folder / "metrics.json").read_text())
    assert stored["config"] == {name: value for name, value in asdict(tiny).items() if "table1" not in name}
    assert stored["seed"] == 0


@pytest.mark.parametrize("change, seed", [({"beta_att": 0.0}, 0), ({"epochs": 3}, 0), ({}, 1)])
def test_run_of_another_configuration_or_seed_is_refused(tiny, splits, copy, change, seed, monkeypatch):
    monkeypatch.setattr(runs, "train", no_training)
    with pytest.raises(ValueError, match="another configuration or seed"):
        train_or_load(replace(tiny, **change), splits, seed, copy)


def test_half_finished_run_of_another_configuration_is_refused_and_left_alone(tiny, splits, copy):
    (copy / "metrics.json").unlink()
    history = (copy / "history.csv").read_text()
    with pytest.raises(ValueError, match="another configuration or seed"):
        train_or_load(replace(tiny, epochs=5), splits, 0, copy)
    assert (copy / "history.csv").read_text() == history and not (copy / "metrics.json").exists()


def test_metrics_are_written_last(tiny, splits, copy, monkeypatch):
    """Where the evaluation fails there are none, and the next call ends the run without training again."""
    expected = json.loads((copy / "metrics.json").read_text())
    for name in ("metrics.json", "predictions.csv", "history.csv", "trajectories.csv"):
        (copy / name).unlink()

    def fails(*args, **options):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "predict", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            train_or_load(tiny, splits, 0, copy)
    assert not (copy / "metrics.json").exists()
    monkeypatch.setattr(loop, "train_one_epoch", no_training)
    train_or_load(tiny, splits, 0, copy)
    assert json.loads((copy / "metrics.json").read_text()) == expected
    assert len(pd.read_csv(copy / "history.csv")) == 2  # written anew from the checkpoint
    newest = max((path for path in copy.iterdir() if path.name in FILES), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "metrics.json"


def test_damaged_metrics_are_refused_with_a_sentence(tiny, splits, copy):
    (copy / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json is not valid JSON"):
        train_or_load(tiny, splits, 0, copy)


def test_run_is_reused_when_only_table_1_would_be_trained_longer(tiny, splits, tmp_path):
    train_or_load(tiny, splits, 0, tmp_path / "run")
    longer = replace(tiny, table1_steps=tiny.table1_steps + 1)
    train_or_load(longer, splits, 0, tmp_path / "run", announce=pytest.fail)


# --- other processes, interruption, leftovers


def test_second_process_waits_for_the_first_and_takes_its_result(tiny, splits, copy, monkeypatch):
    """The lock is held elsewhere; its holder finishes the run once it is told that somebody waits."""
    monkeypatch.setattr(runs, "train", no_training)
    metrics = (copy / "metrics.json").read_text()
    (copy / "metrics.json").unlink()
    taken, wanted, said = threading.Event(), threading.Event(), []

    def other():
        with locked(copy / ".lock"):
            taken.set()
            assert wanted.wait(60)
            (copy / "metrics.json").write_text(metrics)

    def announce(line):
        said.append(line)
        wanted.set()

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(other)
        assert taken.wait(60)
        run = train_or_load(tiny, splits, 0, copy, announce)
        holder.result()
    assert said == ["copy: another process is training this run; waiting for its result."]
    assert run.metrics == json.loads(metrics)["test"]


def test_interrupt_says_what_is_saved_and_how_to_go_on(tiny, splits, finished, copy, monkeypatch):
    records = read_checkpoint(copy / "checkpoint.pt")["history"]
    (copy / "metrics.json").unlink()

    def interrupted(*args):
        yield records[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", interrupted)
    said = []
    with pytest.raises(KeyboardInterrupt):
        train_or_load(tiny, splits, 0, copy, said.append)
    assert said[-1] == (
        f"copy: interrupted after epoch 1 of 2, whose state is saved in {copy}; "
        "the same call or command goes on from there."
    )
    assert len(pd.read_csv(copy / "history.csv")) == 1
    with locked(copy / ".lock", pytest.fail):
        pass  # free again


def test_interrupt_in_the_first_epoch_promises_nothing(tiny, splits, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", interrupted)
    said = []
    with pytest.raises(KeyboardInterrupt):
        train_or_load(tiny, splits, 0, tmp_path / "run", said.append)
    assert said[-1].startswith("run: interrupted in the first epoch, of which nothing is saved")


def test_what_a_killed_process_was_writing_is_cleared(tiny, splits, copy, monkeypatch):
    (copy / "metrics.json").unlink()
    (copy / ".checkpoint.pt.12345.tmp").write_bytes(b"half")
    monkeypatch.setattr(loop, "train_one_epoch", no_training)
    train_or_load(tiny, splits, 0, copy)
    assert not list(copy.glob(".*.tmp"))


def test_previous_checkpoint_goes_when_the_run_is_done(finished):
    assert not (finished[0].folder / "checkpoint.previous.pt").exists()


@pytest.mark.parametrize("content", [None, b"half"], ids=["missing", "damaged"])
def test_finished_run_without_its_weights_says_how_to_train_it_again(tiny, splits, copy, content):
    (copy / "checkpoint.pt").unlink()
    if content:
        (copy / "checkpoint.pt").write_bytes(content)
    run = train_or_load(tiny, splits, 0, copy)  # the scores are there
    with pytest.raises(ValueError, match=rf"checkpoint.pt.*; delete {copy} to train this run again\."):
        _ = run.model
