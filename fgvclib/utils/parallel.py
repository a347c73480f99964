"""Several processes, one training run: what `accelerate launch` needs beyond `Accelerator.prepare`.

Every process has a batch of its own, of the configured size, and the gradients are averaged over processes. Two
processes with batches of b photos then compute what one computes with 2b, except where photos of a batch meet: in
BatchNorm, whose statistics are taken over all processes on GPUs (torch has no such layer for CPUs), and in class
centres, of the embedding loss and of CAL, which see the features of all processes. With one process nothing here does
anything.
"""

import os
import warnings
from datetime import timedelta

import torch.distributed
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import broadcast, gather, parse_flag_from_env
from timm.layers import convert_sync_batchnorm  # torch's own would lose the activation of timm's combined layers
from torch import Tensor, nn

# The others wait while the first process computes teacher maps or waits for another job's run: hours, where torch
# would give up after ten minutes.
PATIENCE = timedelta(days=7)
RANKS, ADDRESS = ("RANK", "LOCAL_RANK", "WORLD_SIZE"), ("MASTER_ADDR", "MASTER_PORT")


def process_state() -> PartialState:
    """This process among those of `accelerate launch`, which tells of CPUs in a variable that PartialState ignores."""
    _forget_other_launchers()
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)


def _forget_other_launchers() -> None:
    """Take ranks out of the environment that are not those of a whole group, for which accelerate would look."""
    ranks = [name for name in RANKS if name in os.environ]
    if not ranks or all(name in os.environ for name in (*RANKS, *ADDRESS)):
        return
    missing = [name for name in (*RANKS, *ADDRESS) if name not in os.environ]
    warnings.warn(
        f"Ignored as left over from another launcher: {', '.join(ranks)} in the environment, without "
        f"{', '.join(missing)}. `unset {' '.join(ranks)}` ends this warning.",
        stacklevel=2,
    )
    for name in ranks:
        del os.environ[name]


def create_accelerator(precision: str = "fp32") -> Accelerator:
    """For one process or as many as `accelerate launch` started.

    It computes in fp32 itself: accelerate keeps one precision for all trainings of a process, while here each has that
    of its configuration (`device.forward`). Raises ValueError where `accelerate launch --mixed_precision` asks for
    another one than the configuration.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        raise ValueError(
            f"accelerate is asked for {asked} (--mixed_precision or ACCELERATE_MIXED_PRECISION), but the configuration "
            f"says precision = {precision}; leave that option out, and choose fp32 or bf16 by --set precision=…."
        )
    # Which parameters learn depends on the epoch and the row of Table 2, and a stage may leave out the classifier.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision="no", kwargs_handlers=[parallel])


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


def of_all_processes(rows: Tensor) -> Tensor:
    """Rows (B, ...) of all n processes in their order, (n B, ...), without gradient; every process has the same B."""
    return rows if _alone() else gather(rows)


def _alone() -> bool:
    return not (torch.distributed.is_available() and torch.distributed.is_initialized())
