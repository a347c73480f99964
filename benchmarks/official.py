"""The networks of three systems as their authors published them, to time them beside ours.

    mkdir official && cd official
    git clone https://github.com/yangze0930/NTS-Net
    git clone https://github.com/ZF4444/MMAL-Net                                    # needs scikit-image
    git clone https://github.com/PRIS-CV/PMG-Progressive-Multi-Granularity-Training

The code of 2018 to 2021 asks for names that NumPy no longer has, for a GPU and for a download of weights; it gets
stand-ins, and not a line of it is changed. Weights are random.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import numpy as np
from torch import Tensor, nn


def official_networks(folder: Path) -> dict[str, "AsPublished"]:
    """System → its authors' network, of the clones that `folder` has. Raises ValueError where it has none."""
    there = {system: name for system, (name, _) in CLONES.items() if (folder / name).is_dir()}
    if not there:
        names = ", ".join(name for name, _ in CLONES.values())
        raise ValueError(f"{folder} has none of the clones {names}; benchmarks/official.py says how to get them.")
    return {system: AsPublished(CLONES[system][1], folder / name) for system, name in there.items()}


class AsPublished(nn.Module):
    """X (B, 3, 448, 448) → what the authors' network gives in evaluation mode, on the CPU."""

    def __init__(self, build: Callable[[], Callable[[Tensor], object]], clone: Path):
        super().__init__()
        self.source = f"{clone.name}@{_commit(clone)}"
        with alone_on_path(clone), stand_ins(), without_weights():
            self.answer = build()

    def forward(self, images: Tensor) -> object:
        """Run the network, which asks for a GPU again in each pass."""
        with stand_ins():
            return self.answer(images)


def build_nts() -> nn.Module:
    """NTS-Net with the six parts that its test script looks at."""
    return import_module("core.model").attention_net(topN=import_module("config").PROPOSAL_NUM)


def build_mmal() -> nn.Module:
    """MMAL-Net in its status "test", without windows."""
    config = import_module("config")
    network = import_module("networks.model").MainNet(config.proposalN, config.num_classes, config.channels)
    return _Called(network, epoch=0, batch_idx=0, status="test", DEVICE="cpu")


def build_pmg() -> nn.Module:
    """PMG with 512 features for each step."""
    return import_module("model").PMG(import_module("Resnet").resnet50(pretrained=False), 512, 200)


CLONES = {  # system → folder of its clone, and what builds its network there
    "nts": ("NTS-Net", build_nts),
    "mmal": ("MMAL-Net", build_mmal),
    "pmg": ("PMG-Progressive-Multi-Granularity-Training", build_pmg),
}


class _Called(nn.Module):
    def __init__(self, network: nn.Module, **options):
        super().__init__()
        self.network, self.options = network, options

    def forward(self, images: Tensor) -> object:
        return self.network(images, **self.options)


@contextmanager
def stand_ins() -> Iterator[None]:
    """Give old code `np.int`, arrays of what is not alike, and a `.cuda()` that leaves a tensor where it is."""
    with (
        patch.object(np, "int", int, create=True),
        patch.object(np, "array", partial(_array, np.array)),
        patch.object(Tensor, "cuda", lambda self: self),
    ):
        yield


def _array(array: Callable[..., np.ndarray], values: object, *args, **options) -> np.ndarray:
    try:
        return array(values, *args, **options)
    except ValueError:  # numbers among arrays of one number, in MMAL-Net
        return array([value.item() if isinstance(value, np.ndarray) else value for value in values])


@contextmanager
def without_weights() -> Iterator[None]:
    """Let a network that asks for weights keep its random ones."""
    with (
        patch("torch.utils.model_zoo.load_url"),
        patch("torch.load"),
        patch.object(nn.Module, "load_state_dict"),
    ):
        yield


@contextmanager
def alone_on_path(clone: Path) -> Iterator[None]:
    """Import from a clone alone: all three have a module "config" or "model"."""
    before = set(sys.modules)
    with patch.object(sys, "path", [str(clone), *sys.path]):
        yield
    for name in set(sys.modules) - before:
        if str(clone) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _commit(clone: Path) -> str:
    command = ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
