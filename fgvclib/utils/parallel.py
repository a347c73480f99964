"""Several processes, one training run: what `accelerate launch` needs beyond `Accelerator.prepare`.

Every process has a batch of its own, of the configured size, and the gradients are averaged over processes. Two
processes with batches of b photos then compute what one computes with 2b, except where photos of a batch meet: in
BatchNorm, whose statistics are taken over all processes on GPUs (torch has no such layer for CPUs), and in the
embedding loss, whose class centres see the features of all processes. With one process nothing here does anything.
"""

import torch.distributed
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import broadcast, parse_flag_from_env
from timm.layers import convert_sync_batchnorm  # torch's own would lose the activation of timm's combined layers
from torch import nn


def process_state() -> PartialState:
    """This process among those of `accelerate launch`, which tells of CPUs in a variable that PartialState ignores."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def create_accelerator(precision: str = "fp32") -> Accelerator:
    """For one process or as many as `accelerate launch` started; its `--mixed_precision` holds unless this is bf16."""
    # Which parameters learn depends on the epoch and the row of Table 2, and a stage may leave out the classifier.
    mixed_precision = "bf16" if precision == "bf16" else None
    return Accelerator(
        mixed_precision=mixed_precision, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )


def synchronise_batchnorm(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """BatchNorm over the batches of all processes, on GPUs; the weights' names stay what they are."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        return convert_sync_batchnorm(model)
    return model


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers (running statistics) of the first one, so that all evaluate the same model."""
    if _alone():
        return
    for buffer in module.buffers():
        broadcast(buffer)


def _alone() -> bool:
    return not (torch.distributed.is_available() and torch.distributed.is_initialized())
