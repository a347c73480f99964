"""Archives from the internet: resumed where they broke off, checked by MD5, unpacked in one step or not at all.

Whatever fails, the error says what to do by hand: an archive that lies in the data root is used as if it had been
downloaded.
"""

import errno
import hashlib
import http.client
import math
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fgvclib import __version__
from fgvclib.data.index import find
from fgvclib.utils.files import locked, move_into_place
from fgvclib.utils.progress import progress

CHUNK = 2**20  # bytes
TIMEOUT_SECONDS = 60  # without any answer
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class NotObtained(OSError):
    """A data set could not be downloaded or unpacked; the message says what to do by hand."""


@dataclass(frozen=True)
class Archive:
    """A published archive: `marker` is a file, relative to the unpacked folder, that a complete copy holds."""

    dataset: str
    url: str
    name: str
    md5: str
    marker: str


def obtain(archive: Archive, root: Path) -> Path:
    """The unpacked folder `root`, made from the archive beside it, which is downloaded where it is missing.

    A copy up to two folders further down, as Kaggle nests them, is used where it lies. Raises NotObtained.
    """
    if marker := find(root, archive.marker):
        return marker.parents[archive.marker.count("/")]
    told = f"{archive.dataset}: another process is downloading or unpacking it; waiting for its result."
    try:
        with locked(root.parent / f".{archive.name}.lock", lambda: print(told, flush=True), "FGVC_DATA"):
            if not (root / archive.marker).is_file():  # another run may have been faster
                _refuse_remains(root, archive.marker)
                path = root.parent / archive.name
                if path.exists():
                    check_md5(path, archive.md5)
                else:
                    download(archive.url, path, archive.md5)
                unpack(path, root, archive.marker)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error).rstrip(".")
        raise NotObtained(
            f"{archive.dataset} is not in {root} and could not be brought there: {reason}. By hand: download "
            f"{archive.url} and save it as {root.parent / archive.name}, then run `fgvc data {archive.dataset}`."
        ) from error
    return root


def _refuse_remains(root: Path, marker: str) -> None:
    if root.is_dir() and any(root.iterdir()):
        raise OSError(f"{root} is there without {marker}, so it is not a complete copy; move it away")


def download(url: str, path: Path, md5: str) -> None:
    """Save what `url` gives as `path`, going on with `<path>.part` where an earlier download broke off.

    A connection that breaks is taken up again as long as each attempt gets further. Raises OSError, also where the
    MD5 is another one: then nothing is kept.
    """
    part = path.with_name(f"{path.name}.part")
    while True:
        before = _size(part)
        try:
            _download_rest(url, part)
            break
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not before:
                raise OSError(f"{url} answers {error.code} {error.reason}") from error
            if error.headers.get("Content-Range") == f"bytes */{before}":
                break  # the part is all of it
            part.unlink()  # of another file
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in _LOCAL_ERRORS:
                raise OSError(f"{part} cannot be written ({error.strerror})") from error
            if _size(part) <= before:
                reason = getattr(error, "reason", error)
                raise OSError(f"{url} cannot be reached or broke off ({reason})") from error
    found = md5_of(part)
    if found != md5:
        part.unlink()
        raise OSError(f"what {url} gave is damaged or another file (MD5 {found} instead of {md5}); nothing was kept")
    part.replace(path)


def _download_rest(url: str, part: Path) -> None:
    """One connection, from the end of `part` to the end of the file."""
    have = _size(part)
    headers = {"User-Agent": f"fgvclib/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        have = have if resumed else 0
        missing = int(response.headers.get("Content-Length", 0))  # 0 where the server does not say
        _check_space(part.parent, missing)
        chunks = iter(lambda: response.read(CHUNK), b"")
        total = math.ceil((have + missing) / CHUNK) or None
        bar = progress(chunks, f"downloading {part.stem}", total=total, initial=have // CHUNK, unit="MiB")
        with open(part, "ab" if resumed else "wb") as file:
            for chunk in bar:
                file.write(chunk)
        if _size(part) < have + missing:
            raise ConnectionError(f"the connection ended after {_size(part)} of {have + missing} bytes")


def _check_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise OSError(errno.ENOSPC, f"{wanted / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free", str(folder))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def md5_of(path: Path) -> str:
    """MD5 of a file, as its authors publish it; it guards against damage, not against malice."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_md5(path: Path, wanted: str) -> None:
    """Raises OSError if a file is not the published one."""
    found = md5_of(path)
    if found != wanted:
        raise OSError(f"{path} is damaged or another file (MD5 {found} instead of {wanted}); replace or delete it")


def unpack(path: Path, root: Path, marker: str) -> None:
    """Unpack a tar archive that holds a folder named as `root` is. It appears in one step, complete, or not at all.

    Where another run was faster, which the file `marker` in `root` tells, its copy stays. Raises OSError, for a damaged
    archive as well as for one that would write outside its folder.
    """
    workshop = Path(tempfile.mkdtemp(".partial", f".{root.name}.", root.parent))
    try:
        _extract(path, workshop)
        if not (workshop / root.name).is_dir():
            raise OSError(f"{path} holds no folder {root.name}, so it is another archive; delete it")
        move_into_place(workshop / root.name, root, (root / marker).is_file)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise OSError(f"{path} is damaged ({error}); delete it") from error
    except OSError as error:
        if error.errno in _LOCAL_ERRORS:
            raise OSError(f"{path} cannot be unpacked in {root.parent} ({error.strerror})") from error
        raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _extract(path: Path, folder: Path) -> None:
    # Python 3.11.0 to 3.11.3 have no filter; what it guards against is refused below for every version.
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(path) as archive:
        for member in progress(archive, f"unpacking {path.name}", unit="file"):
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                raise OSError(f"{path} holds {member.name}, which leads out of its folder; do not use this archive")
            archive.extract(member, folder, **options)
