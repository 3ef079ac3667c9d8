"""Neighbour tables of sparse convolution: which input rows reach which output rows through which element of the kernel.

A table is made from sorted keys, one number a cell. Elements of a kernel are numbered in row-major order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.pointcloud.nn.sparse_tensor import Sites, linear_keys

Sizes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """Pairs of input and output rows.

    Attributes:
        source, target: the cells of the input and of the output.
        inputs, outputs: P of int64, rows of the two; grouped by element of the kernel.
        counts: pairs of each element of the kernel.
        identity: the element that joins every row to itself, whose pairs are not listed; None where there is none.
    """

    source: Sites
    target: Sites
    inputs: Tensor
    outputs: Tensor
    counts: tuple[int, ...]
    identity: int | None = None

    @functools.cached_property
    def by_output(self) -> tuple[Tensor, Tensor]:
        """The pairs in order of their output rows (P), and where each row's begin, with the end of the last (rows + 1)."""
        order = torch.argsort(self.outputs, stable=True)
        ends = torch.bincount(self.outputs, minlength=len(self.target)).cumsum(0)
        return order, torch.cat([ends.new_zeros(1), ends])

    @functools.cached_property
    def reverse(self) -> Table:
        """The same pairs from the output to the input: what gradients and inverse convolutions follow."""
        table = Table(self.target, self.source, self.outputs, self.inputs, self.counts, self.identity)
        table.__dict__["reverse"] = self
        return table

    @functools.cached_property
    def groups(self) -> tuple[tuple[int, Tensor, Tensor], ...]:
        """Of each element of the kernel that has pairs: its number, and the input and output rows."""
        rows = zip(self.inputs.split(self.counts), self.outputs.split(self.counts), strict=True)
        return tuple((k, inputs, outputs) for k, (inputs, outputs) in enumerate(rows) if len(inputs))

    @functools.cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """The pairs as spconv lists them: 2, K, longest of int32, filled up with -1; and the count of each element, K of int32."""
        groups = list(self.groups)
        if self.identity is not None:
            rows = torch.arange(len(self.source), device=self.inputs.device)
            groups.append((self.identity, rows, rows))
        longest = max((len(inputs) for _, inputs, _ in groups), default=0)
        pairs = torch.full((2, len(self.counts), longest), -1, dtype=torch.int32, device=self.inputs.device)
        counts = torch.zeros(len(self.counts), dtype=torch.int32, device=self.inputs.device)
        for k, inputs, outputs in groups:
            pairs[0, k, : len(inputs)], pairs[1, k, : len(outputs)], counts[k] = inputs, outputs, len(inputs)
        return pairs, counts


def submanifold(sites: Sites, kernel: Sizes, dilation: Sizes) -> Table:
    """Neighbours among the cells themselves, for kernels of odd sides."""
    centre = math.prod(kernel) // 2
    halves = list(_neighbours_before_centre(sites, kernel, dilation))
    # If j is the neighbour of i at element k, then i is that of j at the mirrored element.
    mirrored = [(j, i) for i, j in reversed(halves)]
    nothing = sites.coordinates.new_zeros(0)
    pairs = [*halves, (nothing, nothing), *mirrored]
    outputs, inputs = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    return Table(sites, sites, inputs, outputs, tuple(len(rows) for rows, _ in pairs), identity=centre)


def _neighbours_before_centre(sites: Sites, kernel: Sizes, dilation: Sizes) -> Iterator[tuple[Tensor, Tensor]]:
    """For each element before the middle one: the rows that have a neighbour there, and the rows of these neighbours."""
    reach = [size // 2 * step for size, step in zip(kernel, dilation, strict=True)]
    # Each axis is longer by the reach of the kernel than the grid, so that a step across its border meets no cell of the next line.
    sizes = [size + more for size, more in zip(sites.spatial_shape, reach, strict=True)]
    _check_countable(sites.batch_size, sizes)
    steps = _steps(sizes)
    keys = linear_keys(sites.coordinates, sizes)
    ended = torch.cat([keys, keys.new_full((1,), torch.iinfo(torch.int64).max)])
    half, width = math.prod(kernel) // 2, kernel[-1]
    shifts = [
        sum((i * d - r) * step for i, d, r, step in zip(_indices(element, kernel), dilation, reach, steps, strict=True))
        for element in range(half)
    ]
    sought, found = torch.empty_like(keys), torch.empty_like(keys)
    for element, shift in enumerate(shifts):
        torch.add(keys, shift, out=sought)
        if element % width == 0 or dilation[-1] > 1:
            place = torch.searchsorted(keys, sought)
        hit = torch.index_select(ended, 0, place, out=found) == sought
        rows = hit.nonzero().squeeze(1)
        yield rows, place.index_select(0, rows)
        place += hit  # the next cell of the line, if it is there, follows: one search serves the whole line


def _indices(element: int, kernel: Sizes) -> list[int]:
    """Where an element stands along each axis of the kernel."""
    return [element // step % size for step, size in zip(_steps(kernel), kernel, strict=True)]


def _steps(sizes: Sizes | list[int]) -> list[int]:
    """How far apart in row-major order two neighbours along each axis are."""
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]


def _check_countable(batch_size: int, sizes: Sizes | list[int]) -> None:
    if batch_size * math.prod(sizes) >= 2**62:
        raise InputError(f"a batch of {batch_size} grids of {tuple(sizes)} has too many cells to number them")


def strided(sites: Sites, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Table:
    """A convolution whose output has every cell that some input reaches."""
    shape = tuple(
        (size + 2 * pad - step * (side - 1) - 1) // jump + 1
        for size, side, jump, pad, step in zip(sites.spatial_shape, kernel, stride, padding, dilation, strict=True)
    )

    def reached(axis: int, cells: Tensor, element: Tensor) -> tuple[Tensor, Tensor]:
        position = cells + padding[axis] - element * dilation[axis]
        return position.div(stride[axis], rounding_mode="floor"), position % stride[axis] == 0

    return _generated(sites, shape, kernel, reached)


def transposed(sites: Sites, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, output_padding: Sizes) -> Table:
    """A transposed convolution whose output has every cell that some input reaches."""
    shape = tuple(
        (size - 1) * jump - 2 * pad + step * (side - 1) + more + 1
        for size, side, jump, pad, step, more in zip(sites.spatial_shape, kernel, stride, padding, dilation, output_padding, strict=True)
    )

    def reached(axis: int, cells: Tensor, element: Tensor) -> tuple[Tensor, Tensor]:
        position = cells * stride[axis] - padding[axis] + element * dilation[axis]
        return position, torch.ones_like(position, dtype=torch.bool)

    return _generated(sites, shape, kernel, reached)


def _generated(sites: Sites, shape: Sizes, kernel: Sizes, reached: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Table:
    """A table whose output cells follow from the input's.

    Args:
        shape: of the output.
        reached: (axis, cells of the input, element of the kernel along this axis) -> the cell of the output, and whether there is one.
    """
    if min(shape) < 1:
        raise InputError(f"a kernel of {kernel} leaves nothing of a grid of {sites.spatial_shape}: the output's shape would be {shape}")
    _check_countable(sites.batch_size, shape)
    device = sites.coordinates.device
    rows = torch.arange(len(sites), device=device)
    elements, keys = torch.zeros_like(rows), sites.coordinates[:, 0] * math.prod(shape)
    # One axis after the other, so that what falls between the strides is dropped early; the last axis first, so that the
    # pairs end up grouped by element in row-major order.
    for axis in reversed(range(len(shape))):
        element = torch.arange(kernel[axis], device=device)[:, None]
        position, exists = reached(axis, sites.coordinates[:, axis + 1].index_select(0, rows), element)
        exists = exists & (position >= 0) & (position < shape[axis])
        kept = exists.flatten().nonzero().squeeze(1)
        pair, along = kept % max(len(rows), 1), kept // max(len(rows), 1)
        keys = keys.index_select(0, pair) + position.flatten().index_select(0, kept) * _steps(shape)[axis]
        elements = elements.index_select(0, pair) + along * _steps(kernel)[axis]
        rows = rows.index_select(0, pair)
    cells, outputs = torch.unique(keys, return_inverse=True)
    counts = torch.bincount(elements, minlength=math.prod(kernel)).tolist()
    return Table(sites, Sites(_coordinates(cells, shape), shape, sites.batch_size), rows, outputs, tuple(counts))


def _coordinates(keys: Tensor, shape: Sizes) -> Tensor:
    """The inverse of `linear_keys`: N -> N, 1 + D."""
    columns = []
    for size in reversed(shape):
        columns.append(keys % size)
        keys = keys.div(size, rounding_mode="floor")
    return torch.stack([keys, *reversed(columns)], dim=1)
