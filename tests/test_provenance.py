"""What a result was computed with: the commit of this repository alone, a hash of every library file, the command."""

import subprocess
import sys

import pytest

from fgvclib.utils import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project with one module under git, none of it committed; a function that calls git."""

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    (tmp_path / "fgvclib").mkdir()
    (tmp_path / "fgvclib" / "losses.py").write_text("loss = 1\n")
    git("init")
    monkeypatch.setattr(provenance, "PROJECT", tmp_path.resolve())
    return git


def test_code_state_is_that_of_this_repository_only(repository, tmp_path, monkeypatch):
    assert provenance.code_state() == {"commit": None, "dirty": None}  # no commit yet
    repository("add", "."), repository("commit", "-m", "first")
    state = provenance.code_state()
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "fgvclib" / "losses.py").write_text("changed")
    assert provenance.code_state() == {**state, "dirty": True}
    assert provenance.describe_code({**state, "dirty": True}) == f"commit {state['commit'][:10]} with changes"
    inside = tmp_path / "fgvclib"  # installed inside somebody else's repository
    monkeypatch.setattr(provenance, "PROJECT", inside.resolve())
    assert provenance.code_state() == {"commit": None, "dirty": None}


def test_checkout_of_another_owner_is_read(repository, monkeypatch):
    repository("add", "."), repository("commit", "-m", "first")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert len(provenance.code_state()["commit"]) == 40


def test_refusal_of_git_is_told(tmp_path, monkeypatch):
    """As versions of git answer that do not take the permission from the command line."""
    refusal = subprocess.CompletedProcess([], 128, "", "fatal: detected dubious ownership in repository at '/x'\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: refusal)
    with pytest.warns(UserWarning, match="The commit is not recorded, as git refuses to read"):
        assert provenance.code_state() == {"commit": None, "dirty": None}


def test_hash_of_the_library_changes_with_content_and_name_of_every_file(repository, tmp_path):
    def library_hash():
        return provenance.library_hash.__wrapped__()

    before, library = library_hash(), tmp_path / "fgvclib"
    assert library_hash() == before and len(before) == 64
    (library / "losses.py").write_text("loss = 2\n")
    edited = library_hash()
    (library / "model").mkdir()
    (library / "losses.py").rename(library / "model" / "losses.py")
    moved = library_hash()
    (library / "notes.txt").write_text("no code")
    assert len({before, edited, moved}) == 3 and library_hash() == moved


@pytest.mark.parametrize(
    "words, expected",
    [
        (["/home/anna/fgvclib/__main__.py", "train", "--seeds", "0,1"], "fgvc train --seeds 0,1"),
        (["/home/anna/.venv/bin/fgvc", "predict", "/home/anna/bird.jpg"], "fgvc predict bird.jpg"),
        (["boxes.py", "--output=/home/anna/t.csv", "--set", "epochs=3"], "boxes.py --output=t.csv --set epochs=3"),
        (["study.py"], "study.py"),
    ],
)
def test_command_names_no_folder(words, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert provenance.command() == expected


def test_command_of_a_notebook_is_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setenv("FGVC_HEADLESS", "05_ablation")
    assert provenance.command() == "notebook 05_ablation"


def test_provenance_says_code_versions_device_and_command():
    found = provenance.provenance()
    assert set(found) == {"commit", "dirty", "library", "versions", "device", "processor", "threads", "command", "date"}
    assert set(found["versions"]) == {"python", "fgvclib", "torch", "torchvision", "timm"}
    assert all(found["versions"].values()) and found["date"].endswith("+00:00")
