"""One process or several: what torchrun starts, without CUDA too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vsuite.core.errors import InputError

Value = TypeVar("Value")


class Place(NamedTuple):
    """Where a process stands among those of a run."""

    device: torch.device
    rank: int
    world_size: int


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[Place]:
    """This process's device, its rank and the number of processes.

    Under torchrun the process group is set up (nccl for CUDA, else gloo) and taken down afterwards, unless the
    caller has one already; started plainly, there is one process and no group.
    """
    launched = dist.is_available() and (dist.is_initialized() or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys())
    if not launched:
        yield Place(device, 0, 1)
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Place(device, dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, wrapped so that processes share gradients where there are several; starts from rank 0's weights."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes, on all of them."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def from_rank_0(value: Value) -> Value:
    """Rank 0's value, on all processes."""
    if not dist.is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def first_alone(action: Callable[[], Value]) -> Value:
    """What the action returns on rank 0, on all processes; what it finds wrong is raised on all, so that none waits for ever."""
    found: tuple[Any, str] = (None, "")
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            found = (action(), "")
        except InputError as error:
            found = (None, str(error))
    value, problem = from_rank_0(found)
    if problem:
        raise InputError(problem)
    return value


def from_all(value: Value) -> list[Value]:
    """Every process's value, in order of rank."""
    if not dist.is_initialized():
        return [value]
    boxes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, value)
    return boxes


def share_buffers(model: nn.Module) -> None:
    """Gives all processes rank 0's buffers (running means, say), which each has updated from its own batches."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
