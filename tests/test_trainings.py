"""Several trainings side by side: each once, with what one alone would have given, and all stopped by one interrupt."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from processes import alive, until

from fgvclib.config import PROJECT, load_config
from fgvclib.study import trainings
from fgvclib.study.experiment import SETTING_2, Experiment
from fgvclib.study.table2 import ROWS
from fgvclib.study.trainings import (
    POLITENESS,
    TrainingsFailed,
    default_jobs,
    let_notebooks_go_first,
    train_side_by_side,
    wanted_runs,
)

TWO_ROWS = ("Baseline", "No local supervision")


def test_without_rows_the_notebooks_runs_are_wanted_those_waited_for_first():
    experiment = Experiment("smoke", "synthbirds", [3, 4])
    wanted = wanted_runs(experiment)
    assert wanted[:3] == [("Baseline", 3), ("End-to-end", 3), (SETTING_2, 3)]
    assert sorted(wanted) == sorted([(SETTING_2, 3), *((row, seed) for row in ROWS for seed in (3, 4))])
    assert wanted_runs(experiment, ["a", "b"]) == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]


def test_large_crops_train_one_at_a_time(monkeypatch):
    state = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    monkeypatch.setattr(trainings, "process_state", lambda: state)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    assert default_jobs(load_config("cpu")) == 3
    assert default_jobs(load_config("paper")) == 1
    for gpu in ("cuda", "mps"):
        state.device = torch.device(gpu)
        assert default_jobs(load_config("cpu")) == 1


def give_way(answer):
    """What a training's process does at its start → its niceness, and that of its session where Linux has one."""
    os.setsid()
    let_notebooks_go_first()
    session = Path("/proc/self/autogroup")
    answer.send((os.nice(0), int(session.read_text().split()[-1]) if session.exists() else None))


@pytest.mark.skipif(not hasattr(os, "nice"), reason="Windows has no niceness")
def test_a_training_lets_notebooks_go_first_with_its_whole_session():
    before, context = os.nice(0), multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=give_way, args=(send,))
    process.start()
    process.join(60)
    assert receive.poll()
    nice, of_session = receive.recv()
    assert nice == min(before + POLITENESS, 19)
    assert of_session in (POLITENESS, None)


@pytest.fixture
def experiment(tiny, splits, tmp_path):
    """The tiny configuration with one epoch, and a results folder of its own."""
    found = Experiment("smoke", "synthbirds")
    found.config, found.folder, found.splits = replace(tiny, epochs=1), tmp_path, splits
    return found


def test_each_run_is_trained_once_and_one_that_fails_stops_no_other(experiment, tmp_path):
    runs = [("Baseline", 0), ("Nobody", 0), ("No end-to-end", 0)]
    with pytest.raises(TrainingsFailed, match="^Nobody-seed0: 'Nobody' is not a row") as failure:
        train_side_by_side(experiment, runs, jobs=2)
    assert len(str(failure.value).splitlines()) == 1
    trained = [experiment.run("Baseline"), experiment.run("No end-to-end")]
    made = [run.checkpoint.stat().st_mtime_ns for run in trained]

    train_side_by_side(experiment, [runs[0], runs[2]], jobs=2)
    assert [run.checkpoint.stat().st_mtime_ns for run in trained] == made

    experiment.folder = tmp_path / "alone"
    alone = experiment.run("No end-to-end").model.state_dict()
    assert all(torch.equal(value, alone[name]) for name, value in trained[1].model.state_dict().items())


def test_reports_that_no_pipe_holds_at_once_arrive_whole(experiment):
    runs = [(letter * 100_000, 0) for letter in "ab"]
    with pytest.raises(TrainingsFailed) as failure:
        train_side_by_side(experiment, runs, jobs=2)
    lines = sorted(str(failure.value).splitlines())
    assert [line.startswith(f"{row}-seed0: {row!r} is not a row") for line, (row, _) in zip(lines, runs, strict=True)]


def test_training_that_is_killed_is_told(experiment, monkeypatch):
    monkeypatch.setattr(trainings, "_train", killed)
    with pytest.raises(TrainingsFailed, match="^A training ended with exit status -9 "):
        train_side_by_side(experiment, RUNS, jobs=2)


def killed(*arguments):
    """In place of a training: a process that ends without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(begun, error):
    """In place of `Experiment.run`: notes the row, and raises the error in the row "b"."""

    def run(row, seed):
        begun.append(row)
        if row == "b":
            raise error

    return run


RUNS = [("a", 0), ("b", 0), ("c", 0)]


def test_with_one_job_too_a_training_that_fails_stops_no_other(experiment, monkeypatch):
    begun = []
    monkeypatch.setattr(experiment, "run", failing(begun, FloatingPointError("the loss is NaN.")))
    with pytest.raises(TrainingsFailed, match="^b-seed0: the loss is NaN.$"):
        train_side_by_side(experiment, RUNS, jobs=1)
    assert begun == ["a", "b", "c"]
    with pytest.raises(FloatingPointError, match="^the loss is NaN.$"):
        train_side_by_side(experiment, RUNS[1:2], jobs=1)


@pytest.mark.parametrize("made", [None, RuntimeError("a worker was killed")])
def test_with_one_job_an_interrupt_stops_all_of_them(experiment, monkeypatch, made):
    """Also where a library has made another error of it."""
    begun, error = [], KeyboardInterrupt()
    if made is not None:
        made.__context__, error = error, made
    monkeypatch.setattr(experiment, "run", failing(begun, error))
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(experiment, RUNS, jobs=1)
    assert begun == ["a", "b"]


def test_processes_of_one_launch_stop_together(experiment, monkeypatch):
    begun = []
    monkeypatch.setattr(trainings, "process_state", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(experiment, "run", failing(begun, FloatingPointError("the loss is NaN.")))
    with pytest.raises(FloatingPointError):
        train_side_by_side(experiment, RUNS, jobs=1)
    assert begun == ["a", "b"]


def test_processes_of_one_launch_train_one_run_at_a_time(experiment, monkeypatch):
    begun = []
    monkeypatch.setattr(trainings, "process_state", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(experiment, "run", failing(begun, None))
    with pytest.raises(ValueError, match="^--jobs 2 does not go with .* whose 2 processes .*; leave --jobs out.$"):
        train_side_by_side(experiment, RUNS, jobs=2)
    assert not begun
    train_side_by_side(experiment, RUNS[:1], jobs=2)
    assert begun == ["a"]


def test_swallowed_interrupt_stops_at_the_next_line(capsys):
    stopped = threading.Event()
    trainings._announce(stopped, "epoch 1")
    with pytest.raises(KeyboardInterrupt):
        trainings._interrupt(stopped, 2, None)
    with pytest.raises(KeyboardInterrupt):
        trainings._announce(stopped, "epoch 2")
    assert capsys.readouterr().out == "epoch 1\nepoch 2\n"


@contextmanager
def two_trainings(tiny, data_folder, results):
    """`fgvc train --jobs 2` for a thousand epochs, with photo workers, once both trainings are in their second."""
    values = tiny.changes() | {"epochs": 1000, "workers": 2}
    options = [f"--set={key}={json.dumps(value)}" for key, value in values.items()]
    command = [sys.executable, "-m", "fgvclib", "train", "--profile", "smoke", "--jobs", "2", *options]
    command += ["--rows", ",".join(TWO_ROWS)]
    environment = {**os.environ, "FGVC_RESULTS": str(results), "FGVC_DATA": str(data_folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where this test runs in a shell's background
    with subprocess.Popen(command, env=environment, cwd=PROJECT, preexec_fn=heed, **pipes) as process:
        begun = set()
        for line in process.stdout:
            if "epoch 2/1000" in line:
                begun.add(line.partition(":")[0])
            if len(begun) == 2:
                break
        yield process


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_one_interrupt_stops_all_of_them(tiny, data_folder, tmp_path):
    with two_trainings(tiny, data_folder, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()  # to its end: nothing that could write is left
    assert process.returncode == 130
    for row in TWO_ROWS:
        assert f"{row.replace(' ', '-')}-seed0: interrupted" in rest
    assert "Traceback" not in rest


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_trainings_leave_no_process(tiny, data_folder, tmp_path):
    with two_trainings(tiny, data_folder, tmp_path) as process:
        pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.kill()
        process.communicate(timeout=600)  # until all that could write, photo workers among them, have ended
    assert len(pids) >= 2
    until(lambda: not any(map(alive, pids)))


def start_method():
    return multiprocessing.get_start_method()


def test_photo_workers_start_as_in_a_training_alone():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(start_method) == "spawn"  # what a process hands on if nothing is done
        pool.apply(trainings.start_workers_as_usual)
        assert pool.apply(start_method) == start_method()
