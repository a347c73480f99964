"""Files that are either complete or absent, however a run ends, and that two processes do not write at once."""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

LONGEST_SOCKET_NAME, SOCKET_NAME_ENDS = 103, 40  # bytes that macOS allows (Linux: 107), and what Python appends
BUSY = "FGVC_BUSY"  # environment variable: the lock file that trainings beside a notebook hold until they end
GRACE_SECONDS = 20  # for a stopped training to save
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # of NFS, Lustre, FUSE


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there takes its place when the block ends without error.

    Raises IsADirectoryError before anything is written where a folder is there.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id: on a file system that machines or containers share, it is not the only one of its number.
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(folder: Path, root: Path, is_complete: Callable[[], bool]) -> None:
    """Let a finished folder appear as `root`, in one step.

    Where another run was faster, which `is_complete` tells, its folder stays. Raises OSError for anything else there.
    """
    with suppress(OSError):
        root.rmdir()  # an empty folder in its place, which Windows would not replace
    try:
        folder.rename(root)
    except OSError:
        if not is_complete():
            raise


def lock_path(folder: Path, name: str) -> Path:
    """The lock file for what `name` means in a results folder: a notebook, or a file that several notebooks change."""
    return folder / ".locks" / f"{name}.lock"


@contextmanager
def locked(
    path: Path | str, if_taken: Callable[[], None] = lambda: None, variable: str = "FGVC_RESULTS"
) -> Iterator[None]:
    """Hold the lock file `path`. While another process holds it, call `if_taken`, which may raise, then wait.

    The lock of a dead process is free, however it died. Raises OSError that says what to do, by the environment
    `variable`, where the folder cannot be written to, or is on a file system without locks.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    lock = FileLock(path, fallback_to_soft=False)  # a soft one would outlive a process that is killed
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        if_taken()
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise OSError(_why_no_lock(path, error, variable)) from error
    try:
        yield
    finally:
        lock.release()


def wait_for_idle_machine() -> None:
    """Wait for the end of the trainings that run beside this notebook, if any do: before a runtime is measured."""
    if path := os.environ.get(BUSY):
        with locked(path):
            pass


def keep_socket_names_short(worker: int) -> None:
    """Let a worker process put its sockets into /tmp where those in TMPDIR would have names too long for the system.

    For `worker_init_fn` of a DataLoader, whose main process would wait for ever.
    """
    if len(tempfile.gettempdir()) > LONGEST_SOCKET_NAME - SOCKET_NAME_ENDS:
        tempfile.tempdir = "/tmp"


def _why_no_lock(path: Path, error: Exception, variable: str) -> str:
    missing = isinstance(error, NotImplementedError) or error.errno in NO_LOCKS
    reason = "is on a file system without locks" if missing else "cannot be written to"
    detail = getattr(error, "strerror", None) or error
    return f"{path.parent} {reason} ({detail}); name a folder elsewhere by the environment variable {variable}."


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file. Raises ValueError that names the file where it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text in UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run again.") from error
