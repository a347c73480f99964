"""The default device for everything but training, where accelerate chooses; the precision of a forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def on_default_device(network: nn.Module) -> Iterator[torch.device]:
    """The device for passes over many photos; the network is on it meanwhile, and back afterwards."""
    device, before = default_device(), next(network.parameters()).device
    network.to(device)
    try:
        yield device
    finally:
        network.to(before)


def device_name(device: torch.device | None = None) -> str:
    """Name of the GPU, or the CPU with its number of threads; of the default device where none is given."""
    kind = (device or default_device()).type
    if kind == "cuda":
        return torch.cuda.get_device_name()
    if kind != "cpu":
        return kind.upper()  # MPS, of a Mac
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a forward pass computes with `config.precision`, "fp32" or "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def forward(model: Callable[..., tuple], images: Tensor, *others, precision: str) -> tuple:
    """The named tuple that a model makes of images, computed with `precision` and given in fp32 at least."""
    with autocast(precision, images.device):
        output = model(images, *others)
    return type(output)(*map(_at_least_fp32, output))


def _at_least_fp32(value: Tensor | dict | None) -> Tensor | dict | None:
    if isinstance(value, dict):
        return {name: _at_least_fp32(inner) for name, inner in value.items()}
    if value is None or not value.is_floating_point():
        return value
    return value.to(torch.promote_types(value.dtype, torch.float32))
