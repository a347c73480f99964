"""The training view: what it shows, and that stopping keeps the checkpoint."""

import os
import signal
import time
from io import BytesIO

import pandas as pd
import pytest
from PIL import Image

from fgvclib.apps import live
from fgvclib.apps.live import TrainingStopped, TrainingView
from fgvclib.study.experiment import Experiment
from fgvclib.training import loop
from fgvclib.training.checkpoints import read_checkpoint
from fgvclib.utils.progress import HEADLESS


@pytest.fixture
def experiment(small, untrained, data_folder, tmp_path, monkeypatch) -> Experiment:
    """The smoke profile with the values of `small`; results go to a folder of this test."""
    monkeypatch.setenv("FGVC_DATA", str(data_folder))
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    monkeypatch.delenv(HEADLESS, raising=False)
    return Experiment("smoke", "synthbirds", overrides=small.changes())


@pytest.fixture
def shown(monkeypatch) -> list:
    """What notebook cells would display."""
    widgets = []
    monkeypatch.setattr(live, "display", widgets.append)
    return widgets


@pytest.fixture(autouse=True)
def interruptible():
    """As in a kernel. A shell may start background processes with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_training_is_shown_with_every_epoch_and_the_run_is_the_plain_one(experiment, shown, monkeypatch):
    pictures, real = [], TrainingView.update

    def update(view, line):
        view._drawn = -1e9  # draw at once
        real(view, line)
        pictures.append((line, view.image.value))

    monkeypatch.setattr(TrainingView, "update", update)
    run = live.train(experiment, "End-to-end")
    assert run.history["epoch"].tolist() == [1, 2]
    assert len(shown) == 1
    lines, images = zip(*pictures, strict=True)
    assert ["epoch 1/2" in lines[1], "epoch 2/2" in lines[2]] == [True, True]
    assert images[1] != images[2]  # the epoch that a line is about is in the figure
    assert Image.open(BytesIO(images[1])).size == Image.open(BytesIO(images[2])).size


@pytest.mark.parametrize("row", ["Baseline", "End-to-end"])
def test_training_without_validation_photos_is_shown_by_its_losses(experiment, shown, row):
    """As in the paper profile. A training must not end because there is nothing to draw."""
    with_none = experiment.with_values(validation_fraction=0.0)
    assert live.train(with_none, row).history["epoch"].tolist() == [1, 2]
    (box,) = shown
    assert bytes(box.children[1].value).startswith(b"\x89PNG")


def test_finished_run_is_loaded_and_shows_nothing(experiment, shown, monkeypatch):
    monkeypatch.setattr(Experiment, "has_run", lambda self, row: True)
    monkeypatch.setattr(Experiment, "run", lambda self, row: "the run")
    assert live.train(experiment, "End-to-end") == "the run"
    assert not shown


def test_headless_prints_lines(experiment, shown, monkeypatch):
    monkeypatch.setenv(HEADLESS, "1")
    monkeypatch.setattr(Experiment, "run", lambda self, row, announce=print: announce("epoch 1/2") or "the run")
    assert live.train(experiment, "End-to-end") == "the run"
    assert not shown


def test_stopped_training_keeps_its_epochs_and_goes_on_from_there(experiment, shown, monkeypatch):
    real = TrainingView.update

    def stop_after_the_first_epoch(view, line):
        real(view, line)
        if "epoch 1/2" in line:
            signal.raise_signal(signal.SIGINT)  # as ■ sends it to the kernel

    with monkeypatch.context() as patch:
        patch.setattr(TrainingView, "update", stop_after_the_first_epoch)
        with pytest.raises(TrainingStopped, match="1 of 2 epochs are saved in End-to-end-seed0. Run this cell again"):
            live.train(experiment, "End-to-end")
    checkpoint = experiment.run_folder("End-to-end") / "checkpoint.pt"
    assert len(read_checkpoint(checkpoint)["history"]) == 1
    assert not experiment.has_run("End-to-end")
    trained, real_epoch = [], loop.train_one_epoch
    monkeypatch.setattr(loop, "train_one_epoch", lambda *a: trained.append(1) or real_epoch(*a))
    assert live.train(experiment, "End-to-end").history["epoch"].tolist() == [1, 2]
    assert len(trained) == 1


def test_an_interrupt_stops_at_once_and_not_at_the_end_of_an_epoch(experiment):
    with pytest.raises(TrainingStopped, match="0 of 2 epochs"), TrainingView(experiment, "End-to-end"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)


def test_errors_pass_unchanged(experiment):
    with pytest.raises(OSError, match="disk full"), TrainingView(experiment, "End-to-end"):
        raise OSError("disk full")


def test_stop_is_told_in_one_sentence_in_place_of_a_traceback():
    assert TrainingStopped("stopped; 3 of 10")._render_traceback_() == ["stopped; 3 of 10"]


def test_film_strip_spreads_over_long_trainings():
    assert live._spread(pd.Series(range(1, 91)).to_numpy(), 4).tolist() == [1, 30, 60, 90]
    assert live._spread(pd.Series([1, 2]).to_numpy(), 8).tolist() == [1, 2]


def test_view_before_the_first_epoch_shows_the_line_alone(experiment):
    view = TrainingView(experiment, "End-to-end")
    view.update("training 2 epochs on <12> photos")
    assert view.status.value == "training 2 epochs on &lt;12&gt; photos"
    assert view.image.layout.display == "none"
