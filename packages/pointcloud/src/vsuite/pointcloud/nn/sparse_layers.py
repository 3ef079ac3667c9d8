"""What sparse networks need beside convolutions: sequences, norms, pooling."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.nn import fold_batch_norm
from vsuite.pointcloud.nn import neighbours
from vsuite.pointcloud.nn.sparse_conv import Size, SparseModule, _SparseConvolution, check_input, sizes
from vsuite.pointcloud.nn.sparse_tensor import SparseTensor


class SparseSequential(nn.Sequential, SparseModule):
    """Layers in a row; those that know nothing of sparse tensors (norms, activations, linear layers) see the features: N, C."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        for layer in self:
            x = layer(x) if isinstance(layer, SparseModule) else x.replace_feature(layer(x.features))
        return x

    def fold(self) -> None:
        """Folds each norm into the convolution right before it."""
        layers = list(self)
        for i, (conv, norm) in enumerate(pairwise(layers)):
            if isinstance(conv, _SparseConvolution) and isinstance(norm, nn.BatchNorm1d):
                fold_sparse(conv, norm)
                self[i + 1] = nn.Identity()


def fold_sparse(conv: _SparseConvolution, norm: nn.BatchNorm1d) -> None:
    """Folds a norm into a sparse convolution, whose weights begin with the output channels as those of dense ones do."""
    fold_batch_norm(conv, norm)  # type: ignore[arg-type]


class SparseBatchNorm(nn.BatchNorm1d):
    """Batch norm over rows: N, C -> N, C. A training batch of fewer than two rows, which has no variance, is treated as in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)
        return super().forward(x)


class _SparsePool(SparseModule):
    """Pools over the occupied cells in each window; the output has every cell whose window holds one.

    Args:
        kernel_size: sides of the window.
        stride: from one window to the next; None is the window's own size.
        padding, dilation: as of dense pooling.
        indice_key: the name under which inverse convolutions find this layer's table.
    """

    dimensions: ClassVar[int]
    mode: ClassVar[str]

    def __init__(
        self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, *, dilation: Size = 1, indice_key: str | None = None
    ) -> None:
        super().__init__()
        self.kernel_size = sizes("kernel_size", kernel_size, self.dimensions, 1)
        self.stride = self.kernel_size if stride is None else sizes("stride", stride, self.dimensions, 1)
        self.padding = sizes("padding", padding, self.dimensions, 0)
        self.dilation = sizes("dilation", dilation, self.dimensions, 1)
        self.indice_key = indice_key

    def forward(self, x: SparseTensor) -> SparseTensor:
        check_input(self, x)
        table = x.sites.table(neighbours.strided, self.kernel_size, self.stride, self.padding, self.dilation)
        order, offsets = table.by_output
        named = x.named if self.indice_key is None else x.named | {self.indice_key: table}
        return SparseTensor.of(_pool(x.features, table.inputs.index_select(0, order), offsets, self.mode), table.target, named)


def _pool(features: Tensor, rows: Tensor, offsets: Tensor, mode: str) -> Tensor:
    """Mean or maximum of features[rows[offsets[i] : offsets[i + 1]]] for each i; zero where there are none."""
    if not len(rows):
        return features.new_zeros(len(offsets) - 1, features.shape[1])
    return F.embedding_bag(rows, features, offsets, mode=mode, include_last_offset=True)


class _SparseGlobalPool(nn.Module):
    """Pools all cells of each sample: a sparse tensor -> B, C; zero for a sample without cells."""

    mode: ClassVar[str]

    def forward(self, x: SparseTensor) -> Tensor:
        ends = x.sites.samples().cumsum(0)
        rows = torch.arange(len(x.sites), device=ends.device)
        return _pool(x.features, rows, torch.cat([ends.new_zeros(1), ends]), self.mode)


class SparseGlobalMaxPool(_SparseGlobalPool):
    """The largest value of each channel in each sample: a sparse tensor -> B, C; zero for a sample without cells."""

    mode = "max"


class SparseGlobalAvgPool(_SparseGlobalPool):
    """The mean over the cells of each sample: a sparse tensor -> B, C; zero for a sample without cells."""

    mode = "mean"


class _SparseMaxPool(_SparsePool):
    """The largest value of the occupied cells in each window (so it can be negative).

    Args:
        kernel_size, stride, padding, dilation, indice_key: see `_SparsePool`.
    """

    mode = "max"


class _SparseAvgPool(_SparsePool):
    """The mean over the occupied cells in each window; empty cells do not count.

    Args:
        kernel_size, stride, padding, dilation, indice_key: see `_SparsePool`.
    """

    mode = "mean"


class SparseMaxPool1d(_SparseMaxPool):
    __doc__, dimensions = _SparseMaxPool.__doc__, 1


class SparseMaxPool2d(_SparseMaxPool):
    __doc__, dimensions = _SparseMaxPool.__doc__, 2


class SparseMaxPool3d(_SparseMaxPool):
    __doc__, dimensions = _SparseMaxPool.__doc__, 3


class SparseAvgPool1d(_SparseAvgPool):
    __doc__, dimensions = _SparseAvgPool.__doc__, 1


class SparseAvgPool2d(_SparseAvgPool):
    __doc__, dimensions = _SparseAvgPool.__doc__, 2


class SparseAvgPool3d(_SparseAvgPool):
    __doc__, dimensions = _SparseAvgPool.__doc__, 3
