"""Downloading from a server on this machine: broken off, resumed, damaged, refused; and unpacking, safely."""

import errno
import functools
import hashlib
import http.server
import io
import os
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import filelock._unix
import pytest
import tiny_datasets as tiny_copies

from fgvclib.config import load_config
from fgvclib.data import aircraft, cub200, download
from fgvclib.data.download import NotObtained, obtain
from fgvclib.data.splits import verify_dataset
from fgvclib.tools.cli import main
from fgvclib.utils.files import locked

CONTENT = bytes(range(256)) * 4000  # about a MB: more than sockets hold back


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`, with ranges unless told otherwise; hangs up after the next of `server.break_after`."""

    def do_GET(self):
        server = self.server
        start = 0
        server.asked.append(self.headers.get("Range"))
        if server.status is not None:
            return self.send_error(server.status)
        if server.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.end_headers()
                return None
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        end = server.break_after.pop(0) if server.break_after else len(server.content)
        self.wfile.write(server.content[start:end])
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.ranges, server.status, server.break_after, server.asked = CONTENT, True, None, [], []
        server.url = f"http://127.0.0.1:{server.server_port}/set.tgz"
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty data root, and small pieces."""
    monkeypatch.setenv("FGVC_DATA", str(tmp_path))
    monkeypatch.setattr(download, "CHUNK", 2**16)
    return tmp_path


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def fetch(server, path: Path) -> None:
    download.download(server.url, path, md5(CONTENT))


# --- downloading


def test_broken_download_goes_on_where_it_broke_off(server, root):
    server.break_after = [300_000, 700_000]
    fetch(server, root / "set.tgz")
    assert (root / "set.tgz").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=700000-"]
    assert [path.name for path in root.iterdir()] == ["set.tgz"]


def test_interrupted_download_goes_on_in_the_next_run(server, root):
    (root / "set.tgz.part").write_bytes(CONTENT[:123_456])
    fetch(server, root / "set.tgz")
    assert server.asked == ["bytes=123456-"] and (root / "set.tgz").read_bytes() == CONTENT


def test_server_without_ranges_sends_all_of_it_again(server, root):
    server.ranges = False
    (root / "set.tgz.part").write_bytes(b"x" * 1000)
    fetch(server, root / "set.tgz")
    assert (root / "set.tgz").read_bytes() == CONTENT


@pytest.mark.parametrize("part, requests", [(CONTENT, 1), (CONTENT + b"more", 2)])
def test_part_that_is_complete_or_too_long(server, root, part, requests):
    (root / "set.tgz.part").write_bytes(part)
    fetch(server, root / "set.tgz")
    assert (root / "set.tgz").read_bytes() == CONTENT and len(server.asked) == requests


def test_connection_that_gets_no_further_is_given_up(server, root):
    server.break_after = [200_000] * 9
    with pytest.raises(OSError, match="the connection ended after 200000 of 1024000 bytes"):
        fetch(server, root / "set.tgz")
    assert (root / "set.tgz.part").stat().st_size == 200_000  # kept for the next time


@pytest.mark.parametrize("status, reason", [(404, "404 Not Found"), (503, "503 Service Unavailable")])
def test_answer_of_the_server_is_told(server, root, status, reason):
    server.status = status
    with pytest.raises(OSError, match=reason):
        fetch(server, root / "set.tgz")


def test_other_content_than_published_is_not_kept(server, root):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(OSError, match="damaged or another file .MD5 .* nothing was kept"):
        fetch(server, root / "set.tgz")
    assert not list(root.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_full_disk_while_downloading(server, root):
    (root / "set.tgz.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"set.tgz.part cannot be written \(No space left on device\)"):
        fetch(server, root / "set.tgz")


def test_disk_that_is_too_small_is_told_before(server, root, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2e9, 2e9, 1000))
    with pytest.raises(OSError, match="0.0 GB are needed and 0.0 GB are free"):
        fetch(server, root / "set.tgz")


# --- unpacking


def archive(members: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../outside", "set/../../outside", "/tmp/fgvc-outside", "set/a/../../../outside"])
def test_archive_that_leads_outside_is_refused(root, name):
    path = archive({"set/good": b"1", name: b"2"}, root / "set.tgz")
    with pytest.raises(OSError, match="leads out of its folder; do not use this archive"):
        download.unpack(path, root / "set", "a")
    assert [p.name for p in root.iterdir()] == ["set.tgz"]
    assert not (root.parent / "outside").exists() and not Path("/tmp/fgvc-outside").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_archive_with_links_or_devices_is_refused(root, kind):
    with tarfile.open(root / "set.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("set/link")
        info.type, info.linkname = kind, "/etc"
        tar.addfile(info)
    with pytest.raises(OSError, match="set/link, which leads out"):
        download.unpack(root / "set.tgz", root / "set", "a")
    assert not (root / "set").exists()


def test_archive_cut_short_leaves_nothing(root):
    path = archive({f"set/{i}": os.urandom(5000) for i in range(20)}, root / "set.tgz")
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(OSError, match="set.tgz is damaged"):
        download.unpack(path, root / "set", "a")
    assert [p.name for p in root.iterdir()] == ["set.tgz"]


def test_archive_of_something_else(root):
    with pytest.raises(OSError, match="holds no folder set"):
        download.unpack(archive({"other/file": b"1"}, root / "set.tgz"), root / "set", "a")


def test_full_disk_while_unpacking_leaves_nothing(root, monkeypatch):
    path = archive({"set/a": b"1", "set/b": b"2"}, root / "set.tgz")
    real = tarfile.TarFile.extract

    def extract(self, member, *arguments, **options):
        if member.name == "set/b":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, member, *arguments, **options)

    monkeypatch.setattr(tarfile.TarFile, "extract", extract)
    with pytest.raises(OSError, match=r"set.tgz cannot be unpacked in .* \(No space left on device\)"):
        download.unpack(path, root / "set", "a")
    assert [p.name for p in root.iterdir()] == ["set.tgz"]


# --- both, as `fgvc data` does


@pytest.fixture(params=["cub200", "aircraft"])
def published(request, root, server, tmp_path_factory, monkeypatch):
    """(data set's module, name, folder) of a tiny data set that the server has, and nothing of it in the data root."""
    module = {"cub200": cub200, "aircraft": aircraft}[request.param]
    folder = getattr(tiny_copies, request.param)(tmp_path_factory.mktemp("elsewhere"))
    packed = shutil.make_archive(str(folder), "gztar", folder.parent, folder.name)
    server.content = Path(packed).read_bytes()
    monkeypatch.setattr(module, "ARCHIVE", replace(module.ARCHIVE, url=server.url, md5=md5(server.content)))
    monkeypatch.setattr(module, "COUNTS", (3, 12, 6))
    return module, request.param, folder.name


def test_data_set_is_downloaded_checked_and_not_downloaded_again(published, root, server, capsys):
    module, name, folder = published
    server.break_after = [20_000]
    for _ in range(2):
        assert main(["data", name, "--profile", "smoke"]) == 0
        said = capsys.readouterr().out
        assert "3 classes, 12 training and 6 test photos, 18 with a true box; every photo can be read" in said
    assert len(server.asked) == 2  # both in the first run
    assert {path.name for path in root.iterdir() if not path.name.startswith(".")} == {folder, module.ARCHIVE.name}


def test_second_process_says_that_it_waits_and_takes_the_first_ones_copy(published, root, server, monkeypatch):
    module, name, folder = published
    taken, wanted, said = threading.Event(), threading.Event(), []

    def other():
        with locked(root / f".{module.ARCHIVE.name}.lock"):
            taken.set()
            assert wanted.wait(60)
            download.unpack(saved, root / folder, module.ARCHIVE.marker)

    def say(line, **_):
        said.append(line)
        wanted.set()

    saved = root / module.ARCHIVE.name
    saved.write_bytes(server.content)
    monkeypatch.setattr(download, "print", say, raising=False)
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(other)
        assert taken.wait(60)
        assert obtain(module.ARCHIVE, root / folder) == root / folder
        holder.result()
    assert said == [f"{name}: another process is downloading or unpacking it; waiting for its result."]


def test_data_root_without_locks_is_refused(published, root, server, monkeypatch):
    """A lock of another kind would outlive a process that is killed."""
    module, name, folder = published

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", refuse)
    with pytest.raises(NotObtained, match=r"without locks \(No locks available\); name a folder .* FGVC_DATA. By hand"):
        obtain(module.ARCHIVE, root / folder)
    assert server.asked == []


def test_archive_saved_by_hand_is_used(published, root, server):
    module, name, _ = published
    (root / module.ARCHIVE.name).write_bytes(server.content)
    assert "18 with a true box" in verify_dataset(load_config("smoke", name))
    assert server.asked == []


def test_other_archive_saved_by_hand_is_refused_and_kept(published, root, server):
    module, name, _ = published
    (root / module.ARCHIVE.name).write_bytes(b"not it")
    with pytest.raises(NotObtained, match="damaged or another file .* replace or delete it. By hand: download"):
        verify_dataset(load_config("smoke", name))
    assert (root / module.ARCHIVE.name).read_bytes() == b"not it"


def test_every_failure_says_what_to_do_by_hand(published, root, server, capsys):
    module, name, folder = published
    server.status = 404
    assert main(["data", name]) == 1
    error = capsys.readouterr().err
    assert f"download {server.url} and save it as {root / module.ARCHIVE.name}, then run `fgvc data {name}`" in error
    assert error.count("\n") == 1


def test_without_internet(published, root, server, monkeypatch, capsys):
    module, name, _ = published
    monkeypatch.setattr(module, "ARCHIVE", replace(module.ARCHIVE, url="http://127.0.0.1:9/set.tgz"))
    assert main(["data", name]) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_half_a_copy_is_not_written_over(published, root, server):
    module, name, folder = published
    (root / folder).mkdir()
    (root / folder / "mine.txt").write_text("dear")
    with pytest.raises(NotObtained, match="is not a complete copy; move it away"):
        verify_dataset(load_config("smoke", name))
    assert (root / folder / "mine.txt").read_text() == "dear" and server.asked == []


def test_data_root_that_can_not_be_written(published, root, server, monkeypatch):
    module, name, _ = published
    monkeypatch.setenv("FGVC_DATA", "/proc/no/such/place" if Path("/proc").exists() else "/dev/null/place")
    with pytest.raises(NotObtained, match="By hand"):
        verify_dataset(load_config("smoke", name))


def test_full_disk_is_told_with_what_to_do(published, root, server, monkeypatch):
    module, name, _ = published

    def full(url, path, md5):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(download, "download", full)
    with pytest.raises(NotObtained, match="No space left on device.* By hand"):
        obtain(module.ARCHIVE, root / "CUB_200_2011")
