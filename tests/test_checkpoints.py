"""Checkpoints: two generations, refusals in a sentence, disks that fill up, pickles that would run code."""

import os
import resource
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fgvclib.config import PROJECT
from fgvclib.training import checkpoints
from fgvclib.training.checkpoints import NotSaved, load_checkpoint, previous_path, save_checkpoint

DATA = {"classes": "1", "labels": "2", "boxes": "3", "photos": "4"}
IDENTITY = {"config": {"epochs": 3}, "seed": 0, "data": DATA, "world_size": 1}


def state(epoch: int, **changes) -> dict:
    return IDENTITY | {"model": {"weight": torch.full((50_000,), float(epoch))}, "history": [epoch]} | changes


@pytest.fixture
def saved(tmp_path) -> Path:
    """The checkpoint after epoch 2, that of epoch 1 beside it."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    return path


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


def test_the_last_two_are_kept(saved):
    assert load_checkpoint(saved, IDENTITY)["history"] == [2]
    assert torch.load(previous_path(saved), weights_only=True)["history"] == [1]
    assert sorted(content(saved)) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_nothing_there_is_no_error(tmp_path):
    assert load_checkpoint(tmp_path / "checkpoint.pt", IDENTITY) is None


class Harmful:
    """What a pickle can do to who loads it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-5000])


def half_written(path):
    path.write_bytes(path.read_bytes()[:1000])


DAMAGES = {
    "truncated": (truncated, "is not a readable checkpoint"),
    "half written": (half_written, "is not a readable checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "is not a readable checkpoint"),
    "text": (lambda path: path.write_text("epoch 2"), "is not a readable checkpoint"),
    "code": (lambda path: torch.save(Harmful(path.parent / "mark"), path), "is not a readable checkpoint"),
    "a list": (lambda path: torch.save([1, 2], path), "was written by another version of fgvclib"),
    "older version": (
        lambda path: torch.save(state(2, format=checkpoints.FORMAT - 1), path),
        "was written by another version of fgvclib",
    ),
    "other configuration": (
        lambda path: save_checkpoint(path, state(2, config={"epochs": 4})),
        r"belongs to another run \(epochs: 4 there, 3 now\)",
    ),
    "other seed": (
        lambda path: save_checkpoint(path, state(2, seed=7)),
        r"belongs to another run \(seed: 7 there, 0 now\)",
    ),
    "other photos": (
        lambda path: save_checkpoint(path, state(2, data=DATA | {"labels": "5", "photos": "6"})),
        r"belongs to another run \(other labels, other photos\)",
    ),
    "more processes": (
        lambda path: save_checkpoint(path, state(2, world_size=4)),
        r"belongs to another run \(processes: 4 there, 1 now\)",
    ),
}


@pytest.mark.parametrize("damage, told", DAMAGES.values(), ids=DAMAGES)
def test_unusable_checkpoint_is_refused_and_the_previous_one_used(saved, damage, told):
    before = previous_path(saved).read_bytes()
    damage(saved)
    previous_path(saved).write_bytes(before)
    with pytest.warns(UserWarning, match=rf"checkpoint\.pt {told}; going on from checkpoint\.previous\.pt") as said:
        assert load_checkpoint(saved, IDENTITY)["history"] == [1]
    assert len(said) == 1
    assert not (saved.parent / "mark").exists()


@pytest.mark.parametrize("damage, told", DAMAGES.values(), ids=DAMAGES)
def test_without_a_usable_one_nothing_is_touched(saved, damage, told):
    damage(saved)
    half_written(previous_path(saved))
    before = content(saved)
    with pytest.raises(ValueError, match=rf"checkpoint\.pt {told}; "):
        load_checkpoint(saved, IDENTITY)
    assert content(saved) == before


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()], ids=repr)
def test_checkpoint_that_could_not_be_looked_at_is_not_called_damaged(saved, monkeypatch, error):
    """The advice would be to delete it."""

    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(type(error)):
        load_checkpoint(saved, IDENTITY)


def test_crash_between_the_two_renames_loses_one_epoch_only(saved):
    saved.replace(previous_path(saved))
    with warnings.catch_warnings(action="error"):
        assert load_checkpoint(saved, IDENTITY)["history"] == [2]


@pytest.fixture
def small_disk():
    """No file may grow beyond 100 kB, as on a disk that is nearly full: the operating system refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_save_fails(saved, reason: str):
    before = content(saved)
    with pytest.raises(
        NotSaved, match=rf"checkpoint\.pt could not be written \(.*{reason}.*last good checkpoint is kept"
    ):
        save_checkpoint(saved, state(3))
    assert content(saved) == before
    assert load_checkpoint(saved, IDENTITY)["history"] == [2]


def test_disk_that_fills_up_while_saving_keeps_both(saved, small_disk):
    assert_save_fails(saved, "")


def test_full_device_keeps_both(saved, monkeypatch):
    """/dev/full answers every write with "no space left on device"."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    real = checkpoints.atomic_path

    @contextmanager
    def onto_full_device(path):
        with real(path) as temporary:
            temporary.symlink_to("/dev/full")
            yield temporary

    monkeypatch.setattr(checkpoints, "atomic_path", onto_full_device)
    assert_save_fails(saved, "unexpected pos")  # as the C++ writer of torch says it


def test_folder_that_can_not_be_written_to(saved, monkeypatch):
    def refused(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    assert_save_fails(saved, "Permission denied")


INTERRUPTED = """
import signal, sys, torch
from pathlib import Path
from fgvclib.training.checkpoints import save_checkpoint
state = {str(i): torch.zeros(64, 64) for i in range(100)}
signal.signal(signal.SIGALRM, signal.default_int_handler)
for n in range(40):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + n * 0.0001)
        save_checkpoint(Path(sys.argv[1]), state)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupt_while_saving_is_a_keyboard_interrupt_and_kills_nothing(tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, tmp_path / "checkpoint.pt"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "interrupted" in done.stdout
    assert not list(tmp_path.glob(".*.tmp"))
