"""Checkpoints: the last two epochs of a run, so that one survives a crash, a full disk or a careless copy."""

import hashlib
import os
import warnings
from pathlib import Path

import torch

from fgvclib.training.identity import differences
from fgvclib.utils.files import atomic_path

WARM_UP = "warmup.pt"  # beside a run's checkpoint: what that was at the end of the warm-up
FORMAT = 2  # 2 has the class names, so that a checkpoint alone can name what it sees


class NotSaved(OSError):
    """A checkpoint could not be written; the one before it is untouched."""


def previous_path(path: Path) -> Path:
    """Where the checkpoint before the one in `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state`, which torch.load must be able to read with `weights_only`; the last one becomes the previous one.

    At every moment at least one of the two is complete. Raises NotSaved where the disk is full or not writable.
    """
    try:
        with atomic_path(path) as temporary:
            # A path, not a file of Python's: an interrupt in its write would end the process in C++, without a word.
            torch.save({"format": FORMAT, **state}, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if path.exists():
                os.replace(path, previous_path(path))
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where a write fails half-way
        raise NotSaved(
            f"{path} could not be written ({error}); the last good checkpoint is kept: "
            "make room on the disk, then give the same command again."
        ) from error


def load_checkpoint(path: Path, identity: dict) -> dict | None:
    """The newest sound state among `path` and the one before it; None where there is neither.

    `identity` is that of `identity.run_identity`, with which it must agree. A file that is damaged, of another version
    or foreign is refused with a sentence: as a warning where the previous one serves, else as ValueError.
    """
    refusals = []
    for candidate in (path, previous_path(path)):
        try:
            state = read_checkpoint(candidate)
            _check_identity(candidate, state, identity)
        except FileNotFoundError:
            continue
        except ValueError as error:
            refusals.append(str(error))
            continue
        if refusals:
            reason = refusals[0].partition(";")[0]
            warnings.warn(f"{reason}; going on from {candidate.name} instead.", stacklevel=2)
        return state
    if refusals:
        raise ValueError(refusals[0])
    return None


def read_checkpoint(path: Path) -> dict:
    """The state in a checkpoint file.

    Raises FileNotFoundError or PermissionError, and ValueError for a file that is damaged or of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, MemoryError):  # these say nothing against the file
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file, with advice that does not apply
        raise ValueError(f"{path} is not a readable checkpoint; delete it to start this run again.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} was written by another version of fgvclib; delete it to start this run again.")
    return state


def weights_checksum(checkpoint: Path) -> str:
    """SHA-256 of the weights in a checkpoint. Raises as `read_checkpoint` does."""
    weights = read_checkpoint(checkpoint)["model"]
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights.values())).hexdigest()


def _check_identity(path: Path, state: dict, identity: dict) -> None:
    """Raises ValueError that says how the state differs from what it should belong to."""
    found = differences(state, identity)
    if found:
        raise ValueError(
            f"{path} belongs to another run ({', '.join(found)}); move it away, or train anew with --fresh."
        )
