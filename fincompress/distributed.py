"""Several processes of one run, as ``torchrun`` and ``accelerate launch`` start them: all compute, rank 0 writes.

A process that is alone, which is every other one, passes through these functions without importing torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from fincompress.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # the others wait while rank 0 saves, or while a slower one decodes


def alone() -> bool:
    """Whether no launcher started this process: a job scheduler may set one of the two."""
    return "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1"


def is_main() -> bool:
    """Whether this process writes and prints: it is rank 0, or alone."""
    return alone() or os.environ["RANK"] == "0"


def join() -> None:
    """Become one of the processes of a launch; does nothing where this process is alone, or is one already.

    Raises UserError where there are more processes than GPUs, and for a launch that splits the model itself.
    """
    if alone() or _group():
        return
    for name in ("FSDP", "DEEPSPEED"):  # scoring, dropping and saving need the whole model in each process
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise UserError(f"{name} splits a model, which is not supported here: launch with --multi_gpu, or torchrun")
    import torch

    if cuda := torch.cuda.is_available():
        place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= gpus:
            raise UserError(f"{os.environ['LOCAL_WORLD_SIZE']} processes, but {gpus} GPUs are seen: start one for each")
        torch.cuda.set_device(place)
    # What is not on a GPU goes through gloo everywhere.
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)


def continue_alone() -> bool:
    """End what ``join`` began: rank 0 continues as one that is alone. Returns whether this process is rank 0."""
    if group := _group():
        group.barrier()
        group.destroy_process_group()
    return is_main()


def _group():
    """``torch.distributed`` where this process is one of several, else None: accelerate joins one that is alone too."""
    if alone():
        return None
    import torch.distributed

    return torch.distributed if torch.distributed.is_initialized() else None


def size() -> int:
    """Processes that compute together."""
    group = _group()
    return group.get_world_size() if group else 1


def rank() -> int:
    """Number of this process among them."""
    group = _group()
    return group.get_rank() if group else 0


def barrier() -> None:
    """Wait for all processes."""
    if group := _group():
        group.barrier()


def from_main(function: Callable[[], T]) -> T:
    """What ``function`` returns in rank 0, in every process; it is called there alone. So is what it raises."""
    group = _group()
    if group is None:
        return function()
    outcome = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:  # or the others would wait
            outcome[1] = error
    group.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def gather(value: T) -> list[T]:
    """The ``value`` of every process, by rank, in every process."""
    group = _group()
    if group is None:
        return [value]
    values = [None] * group.get_world_size()
    group.all_gather_object(values, value)
    return values


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in every process."""
    if group := _group():
        value = value.clone()
        group.all_reduce(value)
    return value


def share(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The rows of a batch that are this process's: neighbours, by rank; maybe none of few rows."""
    return {name: tensor.tensor_split(size())[rank()] for name, tensor in batch.items()}
