"""What a result was computed with: code, versions, device, command. No absolute path, host or user name is in it."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvclib import __version__
from fgvclib.config import PROJECT
from fgvclib.utils.progress import HEADLESS

if TYPE_CHECKING:
    import torch

# Environment variable: a run that was made before this time (seconds since 1970) is made anew; where names of folders
# follow, a run in one of these.
FRESH = "FGVC_FRESH"
PACKAGES = ("torch", "torchvision", "timm")


def provenance(device: "torch.device | None" = None) -> dict[str, Any]:
    """{commit, dirty, library, versions, device, processor, threads, command, date} of the present process."""
    import torch  # which `fgvc --help` need not wait for

    from fgvclib.utils.device import device_name

    return {
        **code_state(),
        "library": library_hash(),
        "versions": versions(PACKAGES),
        "device": device_name(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def same_making(there: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether library code, versions, device and processor of two provenances are the same."""
    return all(there.get(key) == now[key] for key in ("library", "versions", "device", "processor"))


@functools.cache
def library_hash() -> str:
    """SHA-256 over the library's Python files and their names; that of the first call, as modules stay loaded."""
    library, digest = PROJECT / "fgvclib", hashlib.sha256()
    for path in sorted(library.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(library).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def code_state() -> dict[str, Any]:
    """{commit, dirty} of this repository; both None outside git, or with a warning where git refuses to answer."""
    # A copy that was installed inside somebody else's repository must not take on that one's commit.
    top = _git("rev-parse", "--show-toplevel")
    commit = _git("rev-parse", "HEAD") if top and Path(top).resolve() == PROJECT else None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain")) if commit else None}


def describe_code(state: dict[str, Any]) -> str:
    """`commit 0123456789`, `commit 0123456789 with changes`, or `commit not recorded`."""
    if not state.get("commit"):
        return "commit not recorded"
    return f"commit {state['commit'][:10]}{' with changes' if state['dirty'] else ''}"


def _git(*arguments: str) -> str | None:
    """What git answers about this repository, None where it cannot."""
    # In a checkout of another owner git refuses, as its settings may run programs. Its Python is running already.
    own = ["-c", f"safe.directory={PROJECT}"]
    command = ["git", "--no-optional-locks", *own, "-C", str(PROJECT), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return None
    if "dubious ownership" in answer.stderr:
        warnings.warn(
            f"The commit is not recorded, as git refuses to read {PROJECT}, which belongs to another user; "
            f"`git config --global --add safe.directory {PROJECT}` allows it.",
            stacklevel=3,
        )
    return answer.stdout.strip() if answer.returncode == 0 else None


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Version of Python, of fgvclib and of every package; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "fgvclib": __version__}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def processor() -> str:
    """The model of the CPU, as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def command() -> str:
    """The command line without its folders, or the notebook."""
    if "ipykernel" in sys.modules:
        # Set by the runner and by Jupyter.
        notebook = os.environ.get(HEADLESS) or Path(os.environ.get("JPY_SESSION_NAME", "")).name
        return f"notebook {notebook}".strip()
    program, *arguments = sys.orig_argv if sys.argv[0] == "-c" else sys.argv
    name = "fgvc" if Path(program).name == "__main__.py" else Path(program).name
    return " ".join([name, *map(_without_folder, arguments)])


def _without_folder(word: str) -> str:
    """`/home/me/t.csv` → `t.csv`, also behind an option: `--output=/home/me/t.csv` → `--output=t.csv`."""
    option, equals, value = word.rpartition("=")
    return option + equals + (Path(value).name if os.path.isabs(value) else value)


def ask_for_fresh_runs(folders: Iterable[str] = ()) -> None:
    """Let this process and those that it starts train anew every run that is there now.

    With names of run folders, such as "ELoPE-seed0", only these: what they depend on is used as it is.
    """
    os.environ[FRESH] = " ".join([repr(time.time()), *folders])


def without_fresh() -> str:
    """What to add to "the same command" that goes on: --fresh, given again, would put aside what is done."""
    return " without --fresh" if FRESH in os.environ else ""


def is_replaced(path: Path, folder: str | None = None) -> bool:
    """Whether a file is older than `ask_for_fresh_runs` allows for the run folder of that name, by default its own."""
    asked, *folders = os.environ.get(FRESH, "0").split()
    return (not folders or (folder or path.parent.name) in folders) and path.stat().st_mtime < float(asked)
