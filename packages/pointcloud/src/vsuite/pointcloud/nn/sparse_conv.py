"""Sparse convolution in plain torch: submanifold, strided, inverse and transposed, in one to three dimensions.

Names and weights are spconv's: `weight` is (out_channels, kernel sides, in_channels). Each layer finds the pairs of input
and output cells in a table (made once for its cells and geometry, see `neighbours.py`), multiplies the inputs of each element of
the kernel by that element's matrix, and sums the products of each output in one fixed order. So nothing races: results repeat bit
for bit on any number of threads, whatever the order of the rows. From one number of threads to another the last bit of torch's matrix
products may differ; under `torch.use_deterministic_algorithms(True)` it does not. Gradients are of first order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vsuite.core.errors import InputError, unknown
from vsuite.pointcloud.nn import neighbours, spconv_backend
from vsuite.pointcloud.nn.neighbours import Table
from vsuite.pointcloud.nn.sparse_tensor import SparseTensor
from vsuite.pointcloud.nn.spconv_backend import Backend

Size = int | Sequence[int]


def sizes(name: str, given: Size, dimensions: int, least: int) -> tuple[int, ...]:
    """One integer for all axes, or one an axis; raises `InputError` for another number of them and for values below `least`."""
    values = (given,) * dimensions if isinstance(given, int) else tuple(given)
    if len(values) != dimensions or not all(isinstance(value, int) and value >= least for value in values):
        raise InputError(f"{name} is one integer of {least} or more, or {dimensions} of them; got {given}")
    return values


def segment_sum(values: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    """Row i of the result is the sum of values[order[offsets[i] : offsets[i + 1]]], added up in this order."""
    if not len(values):
        return values.new_zeros(len(offsets) - 1, values.shape[1])
    # The kernel behind embedding bags gathers and adds in one pass, one thread a row: many times faster than index_add.
    return torch.embedding_bag(values, order, offsets, mode=0, include_last_offset=True)[0]


@contextlib.contextmanager
def _one_thread_if_strict() -> Iterator[None]:
    """Under torch's strict determinism, one thread on CPU: MKL sums in another order where it shares a product among several."""
    threads = torch.get_num_threads()
    if threads == 1 or not torch.are_deterministic_algorithms_enabled():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _accumulate(features: Tensor, weight: Tensor, table: Table) -> Tensor:
    """N, C_in and K, C_in, C_out -> rows of the output, C_out."""
    products = features.new_empty(len(table.inputs), weight.shape[2])
    for (k, inputs, _), product in zip(table.groups, products.split([count for count in table.counts if count]), strict=True):
        torch.mm(features.index_select(0, inputs), weight[k], out=product)
    result = segment_sum(products, *table.by_output)
    return result if table.identity is None else result.addmm_(features, weight[table.identity])


class _Convolution(torch.autograd.Function):
    """Keeps only the features for the way back, not the products, which are many times larger."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, table: Table) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.table = table
        with torch.autocast(features.device.type, enabled=False), _one_thread_if_strict():
            return _accumulate(features, weight, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        table: Table = ctx.table
        grad_features = grad_weight = None
        with torch.autocast(grad.device.type, enabled=False), _one_thread_if_strict():
            if ctx.needs_input_grad[0]:
                grad_features = _accumulate(grad, weight.transpose(1, 2), table.reverse)
            if ctx.needs_input_grad[1]:
                grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
                if table.identity is not None:
                    grad_weight[table.identity] = features.T @ grad
                for k, inputs, outputs in table.groups:
                    grad_weight[k] = features.index_select(0, inputs).T @ grad.index_select(0, outputs)
        return grad_features, grad_weight, None


def convolve(features: Tensor, weight: Tensor, bias: Tensor | None, table: Table, backend: Backend = "auto") -> Tensor:
    """One sparse convolution along a table.

    Args:
        features: N, C_in. weight: C_out, sides of the kernel, C_in. bias: C_out.
        backend: see `spconv_backend.use_spconv`.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device) and features.dtype != torch.float64:
        kind = torch.get_autocast_dtype(device)
        features, weight, bias = features.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    if spconv_backend.use_spconv(backend, features.device, features.dtype) and len(features):
        result = spconv_backend.convolve(features, weight, table)
    else:
        result = _Convolution.apply(features, weight.flatten(1, -2).permute(1, 2, 0), table)
    return result if bias is None else result + bias


class SparseModule(nn.Module):
    """A layer that takes and returns sparse tensors; in `SparseSequential` all other layers see the features alone."""


class _SparseConvolution(SparseModule):
    """What all sparse convolutions share: the weights, and the way from a table to the output.

    Args:
        in_channels, out_channels: 1 or more.
        kernel_size: its sides.
        bias: add one number a channel.
        indice_key: the name under which inverse convolutions find this layer's table.
        backend: "auto", "torch" or "spconv"; see `spconv_backend.use_spconv`.
    """

    dimensions: ClassVar[int]

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, bias: bool, indice_key: str | None, backend: Backend
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels) < 1:
            raise InputError(f"{type(self).__name__} takes 1 or more channels; got {in_channels} and {out_channels}")
        if backend not in spconv_backend.BACKENDS:
            raise unknown("backend", str(backend), spconv_backend.BACKENDS)
        self.in_channels, self.out_channels, self.indice_key, self.backend = in_channels, out_channels, indice_key, backend
        self.kernel_size = sizes("kernel_size", kernel_size, self.dimensions, 1)
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel_size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch's dense convolutions do, with the fan of the whole kernel."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def table(self, x: SparseTensor) -> Table:
        """The pairs of this layer for the cells of x."""
        raise NotImplementedError

    def forward(self, x: SparseTensor) -> SparseTensor:
        check_input(self, x, self.in_channels)
        table = self.table(x)
        features = convolve(x.features, self.weight, self.bias, table, self.backend)
        named = x.named if self.indice_key is None else x.named | {self.indice_key: table}
        return SparseTensor.of(features, table.target, named)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, bias={self.bias is not None}"


def check_input(layer: nn.Module, x: SparseTensor, channels: int | None = None) -> None:
    """Raises `InputError` for a tensor of another number of dimensions or channels than the layer's."""
    if len(x.spatial_shape) != layer.dimensions:
        raise InputError(f"{type(layer).__name__} takes grids of {layer.dimensions} axes; got {x}")
    if channels is not None and x.features.shape[1] != channels:
        raise InputError(f"{type(layer).__name__} takes {channels} channels; got {x}")


class _SubMConv(_SparseConvolution):
    """Submanifold convolution: the output has the cells of the input; what lies around them counts as zero.

    Args:
        kernel_size: odd sides.
        dilation: cells from one element of the kernel to the next.
        in_channels, out_channels, bias, indice_key, backend: see `_SparseConvolution`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        *,
        dilation: Size = 1,
        bias: bool = True,
        indice_key: str | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias, indice_key, backend)
        if any(side % 2 == 0 for side in self.kernel_size):
            raise InputError(f"a submanifold convolution has a kernel of odd sides; got {self.kernel_size}")
        self.dilation = sizes("dilation", dilation, self.dimensions, 1)

    def table(self, x: SparseTensor) -> Table:
        return x.sites.table(neighbours.submanifold, self.kernel_size, self.dilation)


class _SparseConv(_SparseConvolution):
    """Convolution whose output has every cell that the kernel reaches from an occupied one.

    At these cells it equals torch's dense convolution with the same stride, padding and dilation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size = 0,
        *,
        dilation: Size = 1,
        bias: bool = True,
        indice_key: str | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias, indice_key, backend)
        self.stride = sizes("stride", stride, self.dimensions, 1)
        self.padding = sizes("padding", padding, self.dimensions, 0)
        self.dilation = sizes("dilation", dilation, self.dimensions, 1)

    def table(self, x: SparseTensor) -> Table:
        return x.sites.table(neighbours.strided, self.kernel_size, self.stride, self.padding, self.dilation)


class _SparseConvTranspose(_SparseConv):
    """Transposed convolution whose output has every cell that the kernel reaches from an occupied one.

    At these cells it equals torch's dense transposed convolution of the same geometry.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        *,
        dilation: Size = 1,
        bias: bool = True,
        indice_key: str | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, bias=bias, indice_key=indice_key, backend=backend
        )
        self.output_padding = sizes("output_padding", output_padding, self.dimensions, 0)

    def table(self, x: SparseTensor) -> Table:
        geometry = self.kernel_size, self.stride, self.padding, self.dilation, self.output_padding
        return x.sites.table(neighbours.transposed, *geometry)


class _SparseInverseConv(_SparseConvolution):
    """The way back of the convolution that was given the same `indice_key`: from its output cells to its input cells.

    It equals the transposed convolution of the partner's geometry at the cells that the partner read.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        indice_key: str,
        *,
        bias: bool = True,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias, indice_key, backend)
        self.partner = indice_key
        self.indice_key = None  # it adds no table of its own

    def table(self, x: SparseTensor) -> Table:
        if self.partner not in x.named:
            raise unknown("indice_key (of the layers before)", self.partner, x.named)
        table = x.named[self.partner]
        if x.sites is not table.target:
            raise InputError(f"the input is not of the cells that the layer {self.partner!r} returned: {x}")
        if len(table.counts) != math.prod(self.kernel_size):
            raise InputError(f"a kernel of {self.kernel_size} cannot invert the layer {self.partner!r} of {len(table.counts)} elements")
        return table.reverse


class SubMConv1d(_SubMConv):
    __doc__, dimensions = _SubMConv.__doc__, 1


class SubMConv2d(_SubMConv):
    __doc__, dimensions = _SubMConv.__doc__, 2


class SubMConv3d(_SubMConv):
    __doc__, dimensions = _SubMConv.__doc__, 3


class SparseConv1d(_SparseConv):
    __doc__, dimensions = _SparseConv.__doc__, 1


class SparseConv2d(_SparseConv):
    __doc__, dimensions = _SparseConv.__doc__, 2


class SparseConv3d(_SparseConv):
    __doc__, dimensions = _SparseConv.__doc__, 3


class SparseConvTranspose1d(_SparseConvTranspose):
    __doc__, dimensions = _SparseConvTranspose.__doc__, 1


class SparseConvTranspose2d(_SparseConvTranspose):
    __doc__, dimensions = _SparseConvTranspose.__doc__, 2


class SparseConvTranspose3d(_SparseConvTranspose):
    __doc__, dimensions = _SparseConvTranspose.__doc__, 3


class SparseInverseConv1d(_SparseInverseConv):
    __doc__, dimensions = _SparseInverseConv.__doc__, 1


class SparseInverseConv2d(_SparseInverseConv):
    __doc__, dimensions = _SparseInverseConv.__doc__, 2


class SparseInverseConv3d(_SparseInverseConv):
    __doc__, dimensions = _SparseInverseConv.__doc__, 3
