"""Files that two processes write at once are one or the other, never a mixture; folders appear once."""

import pytest

from fgvclib.utils.files import atomic_path, move_into_place


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """As on machines that share a disk, whose processes may have the same number."""
    with atomic_path(tmp_path / "file") as first, atomic_path(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"  # the one that was ready last
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def folder(path, content):
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_folder_takes_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "set").mkdir()
    move_into_place(folder(tmp_path / "made", "mine"), tmp_path / "set", lambda: False)
    assert (tmp_path / "set" / "file").read_text() == "mine"


def test_folder_of_a_faster_run_stays_if_it_is_complete(tmp_path):
    made, there = folder(tmp_path / "made", "mine"), folder(tmp_path / "set", "theirs")
    move_into_place(made, there, lambda: True)
    with pytest.raises(OSError):
        move_into_place(made, there, lambda: False)
    assert (there / "file").read_text() == "theirs"
