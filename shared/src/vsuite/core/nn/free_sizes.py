"""Reshaping and cropping that leave sizes free in compiled and exported graphs.

While it traces a graph with free sizes, torch asks questions about them that it often cannot answer in general (is the
batch a multiple of all windows?), and then binds the graph to sizes like those of the example. These forms ask none.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`x.reshape(shape)`, for shapes without -1."""
    fixed = torch.compiler.is_exporting() and all(isinstance(n, int) for n in shape)
    if fixed or not torch.compiler.is_compiling():
        return x.reshape(tuple(shape))
    strides = [1, *itertools.accumulate(reversed(shape[1:]), operator.mul)]
    # Not `contiguous`, which leaves no trace in the graph where the traced strides, but not those at run time, already are.
    return x.clone(memory_format=torch.contiguous_format).as_strided(tuple(shape), strides[::-1])


def crop(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """`x.narrow(axis, start, length)`; a copy in graphs."""
    if not torch.compiler.is_compiling():
        return x.narrow(axis, start, length)
    return x.index_select(axis, torch.arange(length, device=x.device) + start)
