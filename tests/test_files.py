"""Files that two processes write at once are one or the other, never a mixture; folders appear once."""

import errno
import os
import tempfile

import filelock._unix
import pytest

from fgvclib.utils.files import atomic_path, keep_socket_names_short, locked, move_into_place, read_json


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


@pytest.mark.parametrize("content", [b"", b"{", '{"name": "Möwe"}'.encode("latin-1"), b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path / 'file.json'} is not valid JSON .+; delete it and run again"):
        read_json(tmp_path / "file.json")


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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", refuse)
    with (
        pytest.raises(OSError, match=rf"{tmp_path} is on a file system without locks \(.+\); name a .* FGVC_RESULTS"),
        locked(tmp_path / "lock"),
    ):
        pytest.fail("was taken")


def test_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(OSError, match=rf"{tmp_path} cannot be written to \(Read-only file system\); name a folder"),
        locked(tmp_path / "lock"),
    ):
        pytest.fail("was taken")


@pytest.mark.parametrize("length, expected", [(30, None), (120, "/tmp")])
def test_workers_leave_a_temporary_folder_whose_name_is_too_long(monkeypatch, length, expected):
    folder = "/" + "x" * (length - 1)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    keep_socket_names_short(0)
    assert tempfile.tempdir == (expected or folder)
