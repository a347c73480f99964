"""A training that is killed again and again ends with what the uninterrupted one has, bit for bit."""

import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fgvclib.training import loop, runs
from fgvclib.training.runs import train_or_load
from fgvclib.utils.files import read_json

SEED = 3
BACKBONE = "test_efficientnet"  # of timm: five blocks, an eighth of Lite0's work
FAULTS = ("rename", "moment", "half a checkpoint", "rename", "truncated", "moment", "rename", "moment")


def kill_me(*ignored):
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(config, splits, folder: Path, fault: str | None, when: float) -> None:
    """In a process of its own: train, and die by SIGKILL. `when` is in seconds, or counts renames."""
    torch.set_num_threads(1)
    runs.train = partial(loop.train, pretrained=False)
    if fault == "moment":
        threading.Timer(when, kill_me).start()
    elif fault == "rename":
        _die_at_rename(int(when))
    elif fault == "half a checkpoint":
        torch.save = lambda state, path: (path.write_bytes(b"PK" * 1000), kill_me())
    began = time.monotonic()
    train_or_load(config, splits, SEED, folder, announce=lambda text: None)
    folder.with_suffix(".seconds").write_text(str(time.monotonic() - began))
    os._exit(0)  # does not wait for the timer


def _die_at_rename(number: int) -> None:
    """Every file gets its name by a rename; die before the given one."""
    real, seen = os.replace, []

    def counted(*paths):
        seen.append(paths)
        if len(seen) == number:
            kill_me()
        real(*paths)

    os.replace = counted


def outcome(folder: Path) -> dict:
    """All that a run leaves behind, without the wall clock."""
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("history", "trajectories", "predictions")}
    tables["history"] = tables["history"].drop(columns="seconds")
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    tensors = {f"{part}.{name}": value for part in ("model", "criterion") for name, value in checkpoint[part].items()}
    for index, moments in checkpoint["optimiser"]["state"].items():
        tensors[f"momentum {index}"] = moments["momentum_buffer"]
    metrics = read_json(folder / "metrics.json")
    del metrics["provenance"]  # says when, and for how long
    return {"metrics": metrics, "tables": tables, "tensors": tensors}


def test_killed_at_random_moments_and_resumed(tiny, splits, tmp_path, processes):
    config = replace(tiny, epochs=3, backbone=BACKBONE, attnet_backbone=BACKBONE)
    rng = np.random.default_rng(0)

    def attempt(folder, fault=None, when=0.0) -> int:
        process = processes.Process(target=train_until_killed, args=(config, splits, folder, fault, when))
        process.start()
        process.join(120)
        return process.exitcode

    assert attempt(tmp_path / "uninterrupted") == 0
    duration = float((tmp_path / "uninterrupted.seconds").read_text())
    folders, kills = [tmp_path / "killed"], 0
    for fault in FAULTS:
        if (folders[-1] / "metrics.json").exists():  # it was done before the moment came
            folders.append(tmp_path / f"killed{len(folders)}")
        if fault == "truncated":  # what a power cut may leave of the last file
            _truncate(folders[-1] / "checkpoint.pt")
            continue
        when = rng.uniform(0.1, 0.8 * duration) if fault == "moment" else rng.integers(1, 6)
        status = attempt(folders[-1], fault, when)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        if fault == "half a checkpoint" and status != 0:
            assert list(folders[-1].glob(".checkpoint.pt.*.tmp"))
    assert kills >= 4  # the moments may come late on a machine that is busy when the duration is measured
    assert attempt(folders[-1]) == 0
    for folder in folders:
        assert_same_outcome(folder, tmp_path / "uninterrupted")


def assert_same_outcome(folder: Path, uninterrupted: Path) -> None:
    assert not list(folder.glob(".*.tmp")) and not (folder / "checkpoint.previous.pt").exists()
    found, expected = outcome(folder), outcome(uninterrupted)
    assert found["metrics"] == expected["metrics"]
    for name, table in expected["tables"].items():
        pd.testing.assert_frame_equal(found["tables"][name], table, check_exact=True)
    assert found["tensors"].keys() == expected["tensors"].keys()
    differing = [name for name, value in expected["tensors"].items() if not torch.equal(found["tensors"][name], value)]
    assert not differing


def _truncate(checkpoint: Path) -> None:
    if checkpoint.exists() and checkpoint.with_name("checkpoint.previous.pt").exists():
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
