"""spconv as the engine of sparse convolutions on CUDA.

Only the arithmetic is spconv's: it follows our neighbour tables, so cells, their order and the names of weights are the same.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from vsuite.core.errors import InputError, unknown
from vsuite.pointcloud.nn.neighbours import Table

Backend = Literal["auto", "torch", "spconv"]
BACKENDS = ("auto", "torch", "spconv")


@functools.cache
def why_unavailable() -> str:
    """Why spconv cannot be used in this process; empty where it can."""
    try:
        from spconv.cppconstants import CPU_ONLY_BUILD
    except Exception as error:  # a build for another CUDA raises all kinds
        return f"spconv cannot be imported ({error}); install it with: pip install 'vsuite-pointcloud[cuda]'"
    if CPU_ONLY_BUILD:
        return "spconv is installed as its CPU build, which is refused: its threads race, so its sums are wrong at random"
    return ""


def use_spconv(backend: Backend, device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether spconv computes.

    Args:
        backend: "torch" never asks it; "auto" does on CUDA where it can be imported, but for bfloat16; "spconv" insists.

    Raises:
        InputError: for "spconv" where it cannot be used, with the reason.
    """
    if backend not in BACKENDS:
        raise unknown("backend", str(backend), BACKENDS)
    if backend == "torch" or (backend == "auto" and (device.type != "cuda" or dtype == torch.bfloat16)):
        return False
    reason = why_unavailable()
    if not reason and device.type != "cuda":
        reason = (
            f"the features are on {device.type}, and spconv is used on CUDA only: on CPU its threads race, so its sums are wrong at random"
        )
    if not reason and dtype == torch.bfloat16:
        reason = "spconv does not compute in bfloat16"
    if backend == "spconv" and reason:
        raise InputError(f"backend 'spconv': {reason}; the backend 'torch' runs everywhere")
    return not reason


def convolve(features: Tensor, weight: Tensor, table: Table) -> Tensor:
    """N, C_in and weights in spconv's layout (out, kernel, in) -> rows of the output, C_out."""
    from spconv.core import ConvAlgo
    from spconv.pytorch.functional import indice_conv

    pairs, counts = table.padded
    return indice_conv(features, weight, pairs, counts, len(table.target), ConvAlgo.Native)
