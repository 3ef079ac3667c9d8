"""The device and the precision that a user asked for."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Literal, get_args

from vsuite.core.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]
"""What networks compute in: as they are, or under autocast."""


def check_precision(precision: str) -> None:
    """Raises `InputError` for what is no `Precision`."""
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast on a device to "bf16" or "fp16"; nothing for "fp32"."""
    import torch

    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def pick_device(device: str | torch.device | None = "auto") -> torch.device:
    """The torch device for "auto" or None (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: for another name, and for a CUDA device that this machine or this build of torch does not have.
    """
    import torch

    name = "auto" if device is None else str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:(0|[1-9][0-9]?))?", name):
        raise InputError(f"device {name!r} cannot be used; allowed are auto, cpu, cuda and cuda:N")
    if not torch.cuda.is_available():
        why = "no CUDA device is visible" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
        raise InputError(f"device {name!r} is not available: {why}; use cpu or auto")
    found, count = torch.device(name), torch.cuda.device_count()
    if (found.index or 0) >= count:
        raise InputError(f"device {name!r} does not exist: there is {', '.join(f'cuda:{i}' for i in range(count))}")
    return found
